#include "wire/flood.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/time.h"

#define TICK_MS 1
#define NICE 10
#define CATCH_UP_PART 20 // of a second's connections, at once

struct flood {
    pid_t pid;
    int ctl;
};

// ---------------------------------------------------------------- the process

struct slot {
    int fd;
    bool has_said;
    const struct flood_payload *payload;
    struct slot *next;
};
struct attack {
    struct flood_order o;
    struct flood_stats st;
    int ctl, epoll;
    unsigned n_open;
    struct slot *slots, *idle;
};

static void slot_close(struct attack *a, struct slot *s)
{
    close(s->fd);
    s->fd = -1;
    s->next = a->idle;
    a->idle = s;
    a->n_open--;
}

static int open_from(const struct attack *a)
{
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (uint32_t)(a->st.n_begun % a->o.n_addrs));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(a->o.port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1}, sizeof(struct linger));
    if (bind(fd, (struct sockaddr *)&from, sizeof from) == 0 &&
        (connect(fd, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS))
        return fd;
    close(fd);
    return -1;
}

static bool begin_one(struct attack *a)
{
    struct slot *s = a->idle;
    int fd = s ? open_from(a) : -1;
    if (fd < 0)
        return false;
    a->idle = s->next;
    *s = (struct slot){.fd = fd, .payload = &a->o.payloads[a->st.n_begun % a->o.n_payloads]};
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};
    a->st.n_begun++;
    if (++a->n_open > a->st.most_open)
        a->st.most_open = a->n_open;
    if (epoll_ctl(a->epoll, EPOLL_CTL_ADD, fd, &ev) != 0)
        slot_close(a, s);
    return true;
}

static void begin_those_due(struct attack *a, int64_t began_us, uint64_t *skipped)
{
    uint64_t due = (uint64_t)(time_mono_us() - began_us) * a->o.per_s / 1000000;
    uint64_t most = a->o.per_s / CATCH_UP_PART + 1, n = due - a->st.n_begun - *skipped;
    if (n > most) { // a rate is what was ordered, not a sum
        *skipped += n - most;
        n = most;
    }
    while (n && begin_one(a))
        n--;
    *skipped += n;
}

static void serve(struct attack *a, struct slot *s, uint32_t events)
{
    char buf[512];
    if ((events & EPOLLOUT) && !s->has_said && !(events & (EPOLLERR | EPOLLHUP))) {
        s->has_said = true;
        size_t n = s->payload->n;
        a->st.n_said += n == 0 || send(s->fd, s->payload->bytes, n, MSG_NOSIGNAL) == (ssize_t)n;
    }
    if (!(events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP)))
        return;
    ssize_t k;
    while ((k = recv(s->fd, buf, sizeof buf, 0)) > 0) {
    }
    if (k < 0 && errno == EAGAIN)
        return;
    a->st.n_closed++;
    slot_close(a, s);
}

static void attack_run(struct attack *a)
{
    struct epoll_event ev[256], stop = {.events = EPOLLIN, .data.ptr = NULL};
    int64_t began = time_mono_us();
    uint64_t skipped = 0;
    epoll_ctl(a->epoll, EPOLL_CTL_ADD, a->ctl, &stop);
    for (bool stopped = false; !stopped;) {
        int n = epoll_wait(a->epoll, ev, N_ELEMENTS(ev), TICK_MS);
        for (int i = 0; i < n; i++) {
            if (ev[i].data.ptr)
                serve(a, ev[i].data.ptr, ev[i].events);
            else
                stopped = true;
        }
        begin_those_due(a, began, &skipped);
    }
    a->st.took_us = time_mono_us() - began;
    for (unsigned i = 0; i < a->o.most_open; i++) {
        if (a->slots[i].fd >= 0)
            close(a->slots[i].fd);
    }
}

static bool attack_do(struct attack *a)
{
    a->epoll = epoll_create1(EPOLL_CLOEXEC);
    a->slots = mem_array(a->o.most_open, sizeof *a->slots);
    if (a->epoll < 0 || !a->slots)
        return false;
    for (unsigned i = 0; i < a->o.most_open; i++) {
        a->slots[i].fd = -1;
        a->slots[i].next = a->idle;
        a->idle = &a->slots[i];
    }
    attack_run(a);
    mem_free(a->slots);
    close(a->epoll);
    return true;
}

static int flood_main(int ctl)
{
    struct rlimit r;
    // Strangers have machines of their own: what they do there must not slow the server down here.
    if (setpriority(PRIO_PROCESS, 0, NICE) != 0)
        perror("flood: setpriority");
    if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
    for (;;) {
        struct attack a = {.ctl = ctl};
        char stop;
        if (recv(ctl, &a.o, sizeof a.o, MSG_WAITALL) != sizeof a.o)
            return 0; // the test is over
        if (a.o.most_open + 64 > r.rlim_cur) {
            a.o.most_open = (unsigned)r.rlim_cur - 64;
            printf("flood: %llu open files are allowed, so at most %u connections at once\n",
                   (unsigned long long)r.rlim_cur, a.o.most_open);
            fflush(stdout);
        }
        if (!attack_do(&a) || recv(ctl, &stop, 1, MSG_WAITALL) != 1 ||
            send(ctl, &a.st, sizeof a.st, MSG_NOSIGNAL) != sizeof a.st)
            return 1;
    }
}

// ---------------------------------------------------------------- the test's side

struct flood *flood_new(void)
{
    struct flood *f = mem_alloc(sizeof *f);
    int fds[2];
    if (!f || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
        mem_free(f);
        return NULL;
    }
    f->ctl = fds[0];
    f->pid = fork();
    if (f->pid == 0) {
        close(fds[0]);
        _exit(flood_main(fds[1]));
    }
    close(fds[1]);
    if (f->pid > 0)
        return f;
    close(f->ctl);
    mem_free(f);
    return NULL;
}

void flood_start(struct flood *f, const struct flood_order *o)
{
    if (send(f->ctl, o, sizeof *o, MSG_NOSIGNAL) != sizeof *o)
        perror("flood: order");
}

void flood_stop(struct flood *f, struct flood_stats *ret)
{
    *ret = (struct flood_stats){.n_begun = 0};
    if (send(f->ctl, "", 1, MSG_NOSIGNAL) != 1 ||
        recv(f->ctl, ret, sizeof *ret, MSG_WAITALL) != sizeof *ret)
        perror("flood: stop");
}

void flood_free(struct flood *f)
{
    if (!f)
        return;
    close(f->ctl);
    waitpid(f->pid, NULL, 0);
    mem_free(f);
}
