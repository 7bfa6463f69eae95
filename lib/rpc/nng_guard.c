// Keeps nng's listeners alive.
//
// nng 1.5.2 passes an error of the SP header's exchange on to the accept that waits on the
// listener, and takes NNG_ECLOSED there for its own end: it never accepts again. EPIPE becomes
// NNG_ECLOSED. So whoever connects and leaves before the eight bytes were written ends a listener
// for good (seen: a handful of connects that close at once, over ipc and tcp). ECONNRESET is what
// such a peer amounts to, and nng goes on accepting after it.
//
// nng offers no way to change that, so its one call that can meet the error is answered here: the
// dynamic linker prefers the program's sendmsg() to libc's. Only a failed write of an SP header is
// touched.
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rpc/nng_guard.h"

static bool is_sp_header(const struct msghdr *m)
{
    return m->msg_iovlen == 1 && m->msg_iov[0].iov_len <= 8 && m->msg_iov[0].iov_len > 4 &&
           memcmp(m->msg_iov[0].iov_base, "\0SP\0", 4) == 0;
}

__attribute__((visibility("default"))) ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    ssize_t n = syscall(SYS_sendmsg, fd, m, flags);
    if (n < 0 && errno == EPIPE && is_sp_header(m))
        errno = ECONNRESET;
    return n;
}

bool nng_guard_is_active(void)
{
    // Through the dynamic linker, as nng calls it.
    uint8_t header[] = {0, 'S', 'P', 0, 0, 0, 0, 0};
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return true; // cannot tell; what is short of descriptors fails elsewhere
    close(fds[1]);
    struct iovec v = {.iov_base = header, .iov_len = sizeof header};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    ssize_t (*called)(int, const struct msghdr *, int) = NULL;
    *(void **)&called = dlsym(RTLD_DEFAULT, "sendmsg"); // POSIX's way around ISO C's types
    bool active = called && called(fds[0], &m, MSG_NOSIGNAL) < 0 && errno == ECONNRESET;
    close(fds[0]);
    return active;
}
