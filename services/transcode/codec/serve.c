#include "serve.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "media/task.h"

struct task_entry {
    pid_t pid; // 0: free
    int report_fd;
};

union fd_message {
    struct cmsghdr head;
    char room[CMSG_SPACE(SERVE_N_FDS * sizeof(int))];
};

static void send_report(int fd, const struct serve_report *r, int pid_fd)
{
    union fd_message with = {.room = {0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)r, .iov_len = sizeof(*r)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (pid_fd >= 0) {
        m.msg_control = with.room;
        m.msg_controllen = CMSG_SPACE(sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(c), &pid_fd, sizeof(pid_fd));
    }
    // A parent that no longer listens needs no report.
    (void)sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
}

// The number of descriptors that came; -1: the socket's end.
static int receive(struct serve_request *ret, int fds[SERVE_N_FDS])
{
    union fd_message with;
    struct iovec iov = {.iov_base = ret, .iov_len = sizeof(*ret)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = with.room,
                       .msg_controllen = sizeof(with.room)};
    ssize_t n;
    do
        n = recvmsg(SERVE_FD, &m, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (!c || c->cmsg_type != SCM_RIGHTS)
        return 0;
    size_t n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(fds, CMSG_DATA(c), n_fds * sizeof(int));
    return n == sizeof(*ret) ? (int)n_fds : 0;
}

// In the forked process. The descriptors came above the numbers that they get: the socket and the
// signals hold those.
static void become_task(const int fds[SERVE_N_FDS], pid_t parent, const sigset_t *mask)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0 || getppid() != parent)
        _exit(1);
    if (dup2(fds[SERVE_SOURCE], MEDIA_CHILD_SOURCE_FD) < 0 ||
        dup2(fds[SERVE_CONTROL], MEDIA_CHILD_CONTROL_FD) < 0 ||
        syscall(SYS_close_range, MEDIA_CHILD_CONTROL_FD + 1, ~0U, 0) != 0 ||
        sigprocmask(SIG_SETMASK, mask, NULL) != 0)
        _exit(1);
}

static struct task_entry *free_entry(struct task_entry *all)
{
    for (size_t i = 0; i < SERVE_MAX_TASKS; i++)
        if (all[i].pid == 0)
            return &all[i];
    return NULL;
}

static void on_request(struct task_entry *all, const sigset_t *mask, int (*task)(unsigned cpu_s),
                       const struct serve_request *req, int fds[SERVE_N_FDS])
{
    struct task_entry *e = free_entry(all);
    struct serve_report r = {.event = SERVE_STARTED};
    pid_t parent = getpid(), pid = e ? fork() : -1;
    if (pid == 0) {
        become_task(fds, parent, mask);
        (void)setpriority(PRIO_PROCESS, 0, req->nice); // its threads have it from here
        _exit(task(req->cpu_s)); // not exit(): libraries' exit handlers have no business in here
    }
    r.error = pid > 0 ? 0 : e ? errno : EAGAIN;
    int pid_fd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
    send_report(fds[SERVE_REPORT], &r, pid_fd);
    if (pid_fd >= 0)
        close(pid_fd);
    close(fds[SERVE_SOURCE]);
    close(fds[SERVE_CONTROL]);
    if (pid > 0)
        *e = (struct task_entry){.pid = pid, .report_fd = fds[SERVE_REPORT]};
    else
        close(fds[SERVE_REPORT]);
}

static void reap(struct task_entry *all)
{
    struct rusage use;
    int wstatus;
    for (pid_t pid; (pid = wait4(-1, &wstatus, WNOHANG, &use)) > 0;) {
        for (size_t i = 0; i < SERVE_MAX_TASKS; i++) {
            if (all[i].pid != pid)
                continue;
            struct serve_report r = {
                .event = SERVE_ENDED,
                .wstatus = wstatus,
                .cpu_us = (int64_t)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000000 +
                          use.ru_utime.tv_usec + use.ru_stime.tv_usec,
                .peak_rss_bytes = (int64_t)use.ru_maxrss * 1024};
            send_report(all[i].report_fd, &r, -1);
            close(all[i].report_fd);
            all[i] = (struct task_entry){.pid = 0};
        }
    }
}

int serve(int (*task)(unsigned cpu_s))
{
    static struct task_entry all[SERVE_MAX_TASKS];
    sigset_t ended, mask;
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || sigprocmask(SIG_BLOCK, &ended, &mask) != 0)
        return 1;
    int signal_fd = signalfd(-1, &ended, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signal_fd < 0)
        return 1;
    for (;;) {
        struct pollfd p[2] = {{.fd = SERVE_FD, .events = POLLIN},
                              {.fd = signal_fd, .events = POLLIN}};
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return 1;
        struct signalfd_siginfo drop;
        if (p[1].revents && read(signal_fd, &drop, sizeof(drop)) > 0)
            reap(all);
        if (!p[0].revents)
            continue;
        struct serve_request req;
        int fds[SERVE_N_FDS];
        int n = receive(&req, fds);
        if (n < 0)
            return 0;
        if (n == SERVE_N_FDS)
            on_request(all, &mask, task, &req, fds);
        for (int i = 0; n != SERVE_N_FDS && i < n; i++)
            close(fds[i]);
    }
}
