// A whole server behind a socket: SP's hello, lengths and headers, then the channel and the frames,
// as bytes come from anybody. The server ends the connection, and goes on.
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/mem.h"
#include "fuzz.h"
#include "fuzz_keys.h"
#include "rpc/rpc.h"
#include "rpc/transport.h"

enum { HELLO = 1, FRAMED = 2, DEADLINE_MS = 20000, PREFIX = 8 + 4 };

static struct sockaddr_un address = {.sun_family = AF_UNIX};

static void start_once(void)
{
    static struct rpc_server *server;
    static struct fuzz_world world;
    char url[sizeof address.sun_path + 8];
    struct err err = ERR_INIT;
    if (server)
        return;
    fuzz_world_init(&world);
    struct rpc_server_opts o = {.identity = &world.server,
                                .trust = &world.trust,
                                .pool = work_pool_new("fuzz", 1, 100),
                                .transport = &transport_epoll};
    FUZZ_CHECK(o.pool);
    server = rpc_server_new(&o, &err);
    FUZZ_CHECK(server);
    snprintf(address.sun_path, sizeof address.sun_path, "/tmp/cauce-fuzz-%ld.sock", (long)getpid());
    snprintf(url, sizeof url, "ipc://%s", address.sun_path);
    FUZZ_CHECK(rpc_server_listen(server, url, true, NULL, &err) == STATUS_OK);
}

static void remove_socket(void)
{
    unlink(address.sun_path);
}

// What is not taken any more is for nobody.
static void send_all(int fd, const void *p, size_t n)
{
    for (const char *at = p; n > 0;) {
        ssize_t sent = send(fd, at, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        at += sent;
        n -= (size_t)sent;
    }
}

static void send_framed(int fd, struct fuzz_input in)
{
    while (in.n) {
        struct fuzz_input part = fuzz_part(&in);
        uint8_t prefix[PREFIX] = {[8] = 0x80, [11] = 1};
        for (unsigned i = 0; i < 8; i++)
            prefix[i] = (uint8_t)((uint64_t)(part.n + 4) >> (56 - 8 * i));
        send_all(fd, prefix, sizeof prefix);
        send_all(fd, part.p, part.n);
    }
}

static void wait_for_end(int fd)
{
    char bytes[4096];
    struct pollfd p = {.fd = fd, .events = POLLIN};
    ssize_t n;
    do {
        FUZZ_CHECK(poll(&p, 1, DEADLINE_MS) == 1);
        n = recv(fd, bytes, sizeof bytes, 0);
    } while (n > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t hello[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};
    static bool is_started;
    struct fuzz_input in = {data, size};
    start_once();
    if (!is_started)
        atexit(remove_socket);
    is_started = true;
    unsigned flags = fuzz_u8(&in);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    FUZZ_CHECK(fd >= 0);
    FUZZ_CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    if (flags & HELLO)
        send_all(fd, hello, sizeof hello);
    if (flags & FRAMED)
        send_framed(fd, in);
    else
        send_all(fd, in.p, in.n);
    shutdown(fd, SHUT_WR);
    wait_for_end(fd);
    close(fd);
    return 0;
}
