#include "codec_host.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "transcode/codec/serve.h"

#define FD_SAFE 16       // above the numbers that a child's descriptors get
#define START_MS 10000   // libraries load, or a fork on a machine that is short of everything
#define HOST_END_MS 2000 // for the host to end by itself once its socket is closed

struct codec_host {
    pthread_mutex_t lock;
    char *program;
    int fd; // our end of its socket; -1: it does not run
    pid_t pid;
};

struct codec_host *codec_host_new(const char *program)
{
    struct codec_host *h = mem_alloc(sizeof(*h));
    char *copy = mem_strdup(program);
    if (!h || !copy) {
        mem_free(h);
        mem_free(copy);
        return NULL;
    }
    pthread_mutex_init(&h->lock, NULL);
    h->program = copy;
    h->fd = -1;
    return h;
}

// ---- its process ----

static int spawn(const char *program, int fd, pid_t *ret)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    char *name = mem_strdup(program);
    char *const argv[] = {name, NULL};
    // What sanitizers and a test's escape attempt are told; nothing of the service's own.
    static const char *const keep[] = {"ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS",
                                       "CAUCE_TEST_ESCAPE"};
    char *env[N_ELEMENTS(keep) + 2] = {NULL};
    size_t n_env = 0;
    for (size_t i = 0; i < N_ELEMENTS(keep); i++)
        if (getenv(keep[i]))
            env[n_env++] = mem_printf("%s=%s", keep[i], getenv(keep[i]));
    env[n_env++] = mem_strdup("LC_ALL=C.UTF-8");

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    int r = name && env[n_env - 1] ? 0 : ENOMEM;
    // Standard error stays: a sanitizer's or the loader's last words belong in our log.
    if (!r)
        r = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    if (!r)
        r = posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
    if (!r)
        r = posix_spawn_file_actions_adddup2(&files, fd, SERVE_FD);
    if (!r)
        r = posix_spawn_file_actions_addclosefrom_np(&files, SERVE_FD + 1);
    if (!r)
        r = posix_spawn(ret, program, &files, &attr, argv, env);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    mem_free(name);
    for (size_t i = 0; i < N_ELEMENTS(env); i++)
        mem_free(env[i]);
    return r;
}

// Called with the lock held.
static enum status run_host(struct codec_host *h, struct err *err)
{
    int pair[2];
    if (h->fd >= 0)
        return STATUS_OK;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return err_errno(err, errno, "codec process: socket");
    int theirs = fcntl(pair[1], F_DUPFD_CLOEXEC, FD_SAFE);
    int r = theirs < 0 ? errno : spawn(h->program, theirs, &h->pid);
    close(pair[1]);
    if (theirs >= 0)
        close(theirs);
    if (r != 0) {
        close(pair[0]);
        return err_errno(err, r, "codec process: start %s", h->program);
    }
    h->fd = pair[0];
    return STATUS_OK;
}

// Called with the lock held.
static void end_host(struct codec_host *h)
{
    if (h->fd < 0)
        return;
    close(h->fd);
    h->fd = -1;
    int pid_fd = (int)syscall(SYS_pidfd_open, h->pid, 0);
    struct pollfd p = {.fd = pid_fd, .events = POLLIN};
    if (pid_fd < 0 || poll(&p, 1, HOST_END_MS) != 1)
        kill(h->pid, SIGKILL);
    if (pid_fd >= 0)
        close(pid_fd);
    while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

void codec_host_free(struct codec_host *h)
{
    if (!h)
        return;
    end_host(h);
    pthread_mutex_destroy(&h->lock);
    mem_free(h->program);
    mem_free(h);
}

// ---- a task's process ----

static bool send_request(int to, const struct serve_request *req, const int fds[SERVE_N_FDS])
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(SERVE_N_FDS * sizeof(int))];
    } with = {.room = {0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)req, .iov_len = sizeof(*req)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = with.room,
                       .msg_controllen = sizeof(with.room)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
                          .cmsg_type = SCM_RIGHTS,
                          .cmsg_len = CMSG_LEN(SERVE_N_FDS * sizeof(int))};
    memcpy(CMSG_DATA(c), fds, SERVE_N_FDS * sizeof(int));
    ssize_t n;
    do
        n = sendmsg(to, &m, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == sizeof(*req);
}

// The next report within ms; 0: none yet, -1: the host is gone. ret_pid_fd may be NULL.
static int receive(int fd, int ms, struct serve_report *ret, int *ret_pid_fd)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } with;
    struct iovec iov = {.iov_base = ret, .iov_len = sizeof(*ret)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = with.room,
                       .msg_controllen = sizeof(with.room)};
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int ready = poll(&p, 1, ms);
    if (ready == 0 || (ready < 0 && errno == EINTR))
        return 0;
    if (recvmsg(fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != sizeof(*ret))
        return -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_type == SCM_RIGHTS && ret_pid_fd)
        memcpy(ret_pid_fd, CMSG_DATA(c), sizeof(*ret_pid_fd));
    return 1;
}

// One request to the host as it is now, started first if need be.
static enum status try_start(struct codec_host *h, int source_fd, int control_fd, unsigned cpu_s,
                             int nice, struct codec_process *ret, struct err *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return err_errno(err, errno, "codec process: socket");
    const struct serve_request req = {.cpu_s = cpu_s, .nice = nice};
    const int fds[SERVE_N_FDS] = {
        [SERVE_SOURCE] = source_fd, [SERVE_CONTROL] = control_fd, [SERVE_REPORT] = pair[1]};
    pthread_mutex_lock(&h->lock);
    enum status s = run_host(h, err);
    pid_t asked = h->pid;
    bool sent = s == STATUS_OK && send_request(h->fd, &req, fds);
    pthread_mutex_unlock(&h->lock);
    close(pair[1]);
    struct serve_report r = {.event = 0};
    *ret = (struct codec_process){.pid_fd = -1, .report_fd = pair[0]};
    bool told = sent && receive(pair[0], START_MS, &r, &ret->pid_fd) == 1;
    if (told && r.event == SERVE_STARTED && r.error == 0 && ret->pid_fd >= 0)
        return STATUS_OK;
    codec_process_done(ret);
    if (s != STATUS_OK)
        return s;
    if (told)
        return err_errno(err, r.error ? r.error : EMFILE, "codec process: fork");
    pthread_mutex_lock(&h->lock);
    if (h->pid == asked) // nobody else has replaced it meanwhile
        end_host(h);
    pthread_mutex_unlock(&h->lock);
    return err_set(err, STATUS_UNAVAILABLE, "codec process: %s ended or does not answer",
                   h->program);
}

enum status codec_host_start(struct codec_host *h, int source_fd, int control_fd, unsigned cpu_s,
                             int nice, struct codec_process *ret, struct err *err)
{
    enum status s = try_start(h, source_fd, control_fd, cpu_s, nice, ret, err);
    // One that had ended unnoticed is replaced by the second try.
    return s == STATUS_UNAVAILABLE ? try_start(h, source_fd, control_fd, cpu_s, nice, ret, err) : s;
}

bool codec_process_wait(struct codec_process *p, int ms, struct codec_end *ret, bool *ret_lost)
{
    struct serve_report r;
    int got = receive(p->report_fd, ms, &r, NULL);
    *ret_lost = got < 0;
    if (got != 1)
        return false;
    *ret = (struct codec_end){
        .wstatus = r.wstatus, .cpu_us = r.cpu_us, .peak_rss_bytes = r.peak_rss_bytes};
    return true;
}

void codec_process_kill(struct codec_process *p)
{
    (void)syscall(SYS_pidfd_send_signal, p->pid_fd, SIGKILL, NULL, 0);
}

void codec_process_done(struct codec_process *p)
{
    if (p->pid_fd >= 0)
        close(p->pid_fd);
    if (p->report_fd >= 0)
        close(p->report_fd);
    *p = (struct codec_process){.pid_fd = -1, .report_fd = -1};
}
