// One thread moves all bytes. What was read waits in a queue of segments, each with the time at
// which it may be written: the rate limit sets when a segment has left the narrow place, delay and
// jitter how long it travels after that. Reading stops while the narrow place is a buffer ahead, so
// that the sender feels the limit as it would feel a slow link's.
#include "wire/proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/rand.h"
#include "base/time.h"

#define MAX_CONNS 64
#define READ_BYTES (16U << 10)
#define QUEUE_BYTES (4U << 20) // of one direction of a connection: what travels on a long link
#define RATE_BUFFER_BYTES (64U << 10)
#define URL_BYTES 64

struct segment {
    struct list node;
    int64_t due_us;
    size_t n, off;
    uint8_t data[];
};

struct flow_dir { // one direction of a connection
    struct list queue;
    size_t queued;
    int64_t last_due_us;
    int64_t passed;          // bytes read
    int64_t cut_at, flip_at; // of `passed`; -1: never
    bool ended, end_passed;  // the sender's half-close came, was passed on
};

struct pair {
    int fd[2]; // [UP]: the client's, read for UP; [DOWN]: the server's
    struct flow_dir dir[2];
    uint64_t rng;
    int64_t dies_us;
    bool is_draining; // cut with FIN, waits for both ends to close
};

struct tcp_proxy {
    pthread_t thread;
    pthread_mutex_t lock; // all below; the thread gives it up while it polls
    int listen_fd, wake_fd;
    bool stop, refuse;
    uint16_t target_port;
    uint64_t seed, n_accepted;
    char url[URL_BYTES];
    struct tcp_proxy_link link[2];
    int64_t free_us[2]; // when the narrow place is free again
    int64_t life_min_us, life_max_us;
    enum tcp_proxy_cut life_cut;
    struct pair *pairs[MAX_CONNS];
    struct tcp_proxy_stats stats;
};

// ---------------------------------------------------------------- chance

static uint64_t mix(uint64_t *state) // splitmix64
{
    uint64_t z = *state += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

static int64_t between(uint64_t *state, int64_t min, int64_t max)
{
    return max <= min ? min : min + (int64_t)(mix(state) % (uint64_t)(max - min + 1));
}

static void draw(struct pair *c, enum tcp_proxy_dir d, const struct tcp_proxy_link *l)
{
    struct flow_dir *f = &c->dir[d];
    f->cut_at = f->flip_at = -1;
    if (l->cut_max_bytes)
        f->cut_at = f->passed + between(&c->rng, l->cut_min_bytes, l->cut_max_bytes);
    if (l->flip_mean_bytes)
        f->flip_at = f->passed + between(&c->rng, 0, 2 * l->flip_mean_bytes);
}

// ---------------------------------------------------------------- connections

static void flow_clear(struct flow_dir *f)
{
    struct list *n;
    while ((n = list_pop_front(&f->queue)))
        mem_free(list_entry(n, struct segment, node));
    f->queued = 0;
}

static void pair_close(struct tcp_proxy *p, size_t at, bool reset)
{
    struct pair *c = p->pairs[at];
    struct linger l = {.l_onoff = 1, .l_linger = 0};
    for (int d = 0; d < 2; d++) {
        if (reset)
            setsockopt(c->fd[d], SOL_SOCKET, SO_LINGER, &l, sizeof l);
        close(c->fd[d]);
        flow_clear(&c->dir[d]);
    }
    mem_free(c);
    p->pairs[at] = NULL;
    p->stats.conns_open--;
}

static void pair_cut(struct tcp_proxy *p, size_t at, enum tcp_proxy_cut how)
{
    struct pair *c = p->pairs[at];
    if (c->is_draining)
        return;
    p->stats.n_cuts++;
    if (how == TCP_PROXY_RST) {
        pair_close(p, at, true);
        return;
    }
    c->is_draining = true;
    for (int d = 0; d < 2; d++) {
        shutdown(c->fd[d], SHUT_WR);
        flow_clear(&c->dir[d]);
    }
}

static size_t buffer_bytes(const struct tcp_proxy_link *l)
{
    return l->buffer_bytes ? l->buffer_bytes : l->rate_bytes_s ? RATE_BUFFER_BYTES : 0;
}

// The kernel's buffers would hide a slow link: they get the size of the link's own.
static void limit_buffers(int fd, const struct tcp_proxy_link *in, const struct tcp_proxy_link *out)
{
    int one = 1, rcv = (int)buffer_bytes(in), snd = (int)buffer_bytes(out);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (rcv)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &rcv, sizeof rcv);
    if (snd)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &snd, sizeof snd);
}

static void refuse_fd(int fd)
{
    struct linger l = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    close(fd);
}

// On loopback this takes no time, or fails at once, unless the listener's queue is full.
static int connect_to(uint16_t port, const struct tcp_proxy_link *in,
                      const struct tcp_proxy_link *out)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    struct timeval patience = {.tv_sec = 1};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    limit_buffers(fd, in, out);
    struct sockaddr_in sa = {
        .sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_port = htons(port)};
    if (connect(fd, (struct sockaddr *)&sa, sizeof sa) != 0 ||
        fcntl(fd, F_SETFL, O_NONBLOCK) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static struct pair *pair_new(struct tcp_proxy *p, int client)
{
    const struct tcp_proxy_link *up = &p->link[TCP_PROXY_UP], *down = &p->link[TCP_PROXY_DOWN];
    int server = connect_to(p->target_port, down, up);
    struct pair *c = server < 0 ? NULL : mem_alloc(sizeof *c);
    if (!c) {
        if (server >= 0)
            close(server);
        return NULL;
    }
    limit_buffers(client, up, down);
    c->fd[TCP_PROXY_UP] = client;
    c->fd[TCP_PROXY_DOWN] = server;
    uint64_t s = p->seed + p->n_accepted++;
    c->rng = mix(&s);
    c->dies_us = TIME_NEVER;
    if (p->life_max_us)
        c->dies_us = time_mono_us() + between(&c->rng, p->life_min_us, p->life_max_us);
    for (int d = 0; d < 2; d++) {
        list_init(&c->dir[d].queue);
        draw(c, (enum tcp_proxy_dir)d, &p->link[d]);
    }
    return c;
}

static void accept_one(struct tcp_proxy *p)
{
    int fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    for (size_t i = 0; i < MAX_CONNS && !p->refuse; i++) {
        if (p->pairs[i])
            continue;
        p->pairs[i] = pair_new(p, fd);
        if (!p->pairs[i])
            break;
        p->stats.n_conns++;
        p->stats.conns_open++;
        return;
    }
    refuse_fd(fd);
}

// ---------------------------------------------------------------- bytes

// The queue before the narrow place is full.
static bool is_behind(const struct tcp_proxy *p, int d, int64_t now_us)
{
    const struct tcp_proxy_link *l = &p->link[d];
    return l->rate_bytes_s &&
           (p->free_us[d] - now_us) * l->rate_bytes_s / 1000000 >= (int64_t)buffer_bytes(l);
}

static bool may_read(const struct tcp_proxy *p, const struct pair *c, int d, int64_t now_us)
{
    const struct tcp_proxy_link *l = &p->link[d];
    const struct flow_dir *f = &c->dir[d];
    if (c->is_draining)
        return !f->ended;
    return !l->hold && !f->ended && f->queued < QUEUE_BYTES && !is_behind(p, d, now_us);
}

static void enqueue(struct tcp_proxy *p, struct pair *c, int d, struct segment *s, int64_t now_us)
{
    const struct tcp_proxy_link *l = &p->link[d];
    struct flow_dir *f = &c->dir[d];
    int64_t due = now_us;
    if (l->rate_bytes_s) {
        if (p->free_us[d] > due)
            due = p->free_us[d];
        due += (int64_t)s->n * 1000000 / l->rate_bytes_s;
        p->free_us[d] = due;
    }
    due += l->delay_us + (l->jitter_us ? between(&c->rng, 0, l->jitter_us - 1) : 0);
    if (due < f->last_due_us)
        due = f->last_due_us;
    s->due_us = f->last_due_us = due;
    list_push_back(&f->queue, &s->node);
    f->queued += s->n;
}

static void corrupt(struct tcp_proxy *p, struct pair *c, int d, uint8_t *data, size_t n)
{
    struct flow_dir *f = &c->dir[d];
    while (f->flip_at >= f->passed && f->flip_at < f->passed + (int64_t)n) {
        data[f->flip_at - f->passed] ^= (uint8_t)(1U << (mix(&c->rng) & 7));
        p->stats.n_flips++;
        f->flip_at += 1 + between(&c->rng, 0, 2 * p->link[d].flip_mean_bytes);
    }
}

enum outcome { GOES_ON, CUT, GONE };

static enum outcome read_some(struct tcp_proxy *p, struct pair *c, int d, int64_t now_us)
{
    struct flow_dir *f = &c->dir[d];
    size_t want = READ_BYTES;
    if (p->link[d].rate_bytes_s && p->link[d].rate_bytes_s / 500 < READ_BYTES)
        want = (size_t)(p->link[d].rate_bytes_s / 500 + 64); // two milliseconds' worth
    struct segment *s = mem_alloc(sizeof *s + want);
    if (!s)
        return GONE;
    ssize_t n = recv(c->fd[d], s->data, want, 0);
    if (n <= 0 || c->is_draining) {
        mem_free(s);
        if (n == 0)
            f->ended = true;
        return n < 0 && errno != EAGAIN && errno != EINTR ? GONE : GOES_ON;
    }
    s->n = (size_t)n;
    bool cut = f->cut_at >= 0 && f->passed + n >= f->cut_at;
    if (cut)
        s->n = (size_t)(f->cut_at - f->passed);
    corrupt(p, c, d, s->data, s->n);
    f->passed += (int64_t)s->n;
    enqueue(p, c, d, s, now_us);
    return cut ? CUT : GOES_ON;
}

static bool may_write(const struct tcp_proxy *p, const struct pair *c, int d, int64_t now_us)
{
    if (p->link[d].hold || c->is_draining || list_is_empty(&c->dir[d].queue))
        return false;
    return list_entry(c->dir[d].queue.next, struct segment, node)->due_us <= now_us;
}

static enum outcome write_some(struct tcp_proxy *p, struct pair *c, int d, int64_t now_us)
{
    struct flow_dir *f = &c->dir[d];
    while (may_write(p, c, d, now_us)) {
        struct segment *s = list_entry(f->queue.next, struct segment, node);
        ssize_t n = send(c->fd[!d], s->data + s->off, s->n - s->off, MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR ? GOES_ON : GONE;
        s->off += (size_t)n;
        f->queued -= (size_t)n;
        p->stats.bytes[d] += (uint64_t)n;
        if (s->off < s->n)
            return GOES_ON;
        list_remove(&s->node);
        mem_free(s);
    }
    return GOES_ON;
}

static void pass_end(const struct tcp_proxy *p, struct pair *c, int d)
{
    struct flow_dir *f = &c->dir[d];
    if (!f->ended || f->end_passed || p->link[d].hold || !list_is_empty(&f->queue))
        return;
    if (!c->is_draining)
        shutdown(c->fd[!d], SHUT_WR);
    f->end_passed = true;
}

static void serve_pair(struct tcp_proxy *p, size_t at, const short revents[2], int64_t now_us)
{
    struct pair *c = p->pairs[at];
    for (int d = 0; d < 2; d++) {
        enum outcome o = GOES_ON;
        if (revents[d] & (POLLIN | POLLHUP | POLLERR) && may_read(p, c, d, now_us))
            o = read_some(p, c, d, now_us);
        else if (revents[d] & POLLERR) // nothing is read now, but its sender has reset it
            o = GONE;
        if (o != GONE && write_some(p, c, d, now_us) == GONE)
            o = GONE;
        if (o == GONE) { // one side reset it: so does the other see it
            pair_close(p, at, true);
            return;
        }
        if (o == CUT) {
            pair_cut(p, at, p->link[d].cut);
            return;
        }
        pass_end(p, c, d);
    }
    if (c->dir[0].end_passed && c->dir[1].end_passed)
        pair_close(p, at, false);
}

// ---------------------------------------------------------------- the thread

static short wanted(const struct tcp_proxy *p, const struct pair *c, int side, int64_t now_us)
{
    short ev = may_read(p, c, side, now_us) ? POLLIN : 0;
    if (may_write(p, c, !side, now_us))
        ev |= POLLOUT;
    return ev;
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

// When something of this connection becomes possible by the clock alone.
static int64_t next_due(const struct tcp_proxy *p, const struct pair *c, int64_t now_us)
{
    int64_t at = c->is_draining ? TIME_NEVER : c->dies_us;
    for (int d = 0; d < 2 && !c->is_draining; d++) {
        const struct tcp_proxy_link *l = &p->link[d];
        if (l->hold)
            continue;
        if (!list_is_empty(&c->dir[d].queue) && !may_write(p, c, d, now_us))
            at = earlier(at, list_entry(c->dir[d].queue.next, struct segment, node)->due_us);
        if (!c->dir[d].ended && is_behind(p, d, now_us))
            at = earlier(at,
                         p->free_us[d] + 1 - (int64_t)buffer_bytes(l) * 1000000 / l->rate_bytes_s);
    }
    return at;
}

static void end_old(struct tcp_proxy *p, int64_t now_us)
{
    for (size_t i = 0; i < MAX_CONNS; i++) {
        if (p->pairs[i] && p->pairs[i]->dies_us <= now_us)
            pair_cut(p, i, p->life_cut);
    }
}

static void poll_once(struct tcp_proxy *p)
{
    struct pollfd fds[2 + 2 * MAX_CONNS] = {{.fd = p->listen_fd, .events = POLLIN},
                                            {.fd = p->wake_fd, .events = POLLIN}};
    int64_t now = time_mono_us(), at = TIME_NEVER;
    for (size_t i = 0; i < MAX_CONNS; i++) {
        const struct pair *c = p->pairs[i];
        for (int d = 0; d < 2; d++) {
            short ev = c ? wanted(p, c, d, now) : 0;
            // Without anything wanted a hang-up would be reported for ever: leave it out.
            fds[2 + 2 * i + (size_t)d] = (struct pollfd){.fd = ev ? c->fd[d] : -1, .events = ev};
        }
        if (c)
            at = earlier(at, next_due(p, c, now));
    }
    int64_t left = at == TIME_NEVER ? 0 : at > now ? at - now : 0;
    struct timespec ts = {.tv_sec = left / 1000000, .tv_nsec = left % 1000000 * 1000};
    pthread_mutex_unlock(&p->lock);
    int n = ppoll(fds, 2 + 2 * MAX_CONNS, at == TIME_NEVER ? NULL : &ts, NULL);
    pthread_mutex_lock(&p->lock);
    if (n < 0)
        memset(fds, 0, sizeof fds);
    uint64_t drained;
    if (fds[1].revents && read(p->wake_fd, &drained, sizeof drained) < 0)
        return; // it was not woken after all
    now = time_mono_us();
    end_old(p, now);
    for (size_t i = 0; i < MAX_CONNS; i++) {
        const short ev[2] = {fds[2 + 2 * i].revents, fds[3 + 2 * i].revents};
        if (p->pairs[i])
            serve_pair(p, i, ev, now);
    }
    if (fds[0].revents)
        accept_one(p);
}

static void *run(void *ud)
{
    struct tcp_proxy *p = ud;
    pthread_mutex_lock(&p->lock);
    while (!p->stop)
        poll_once(p);
    for (size_t i = 0; i < MAX_CONNS; i++) {
        if (p->pairs[i])
            pair_close(p, i, true);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

// ---------------------------------------------------------------- what tests call

static uint16_t port_of(const char *url)
{
    const char *colon = strrchr(url, ':');
    return (uint16_t)(colon ? atoi(colon + 1) : 0);
}

static bool start_listening(struct tcp_proxy *p)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof sa;
    p->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->listen_fd < 0 || p->wake_fd < 0 ||
        bind(p->listen_fd, (struct sockaddr *)&sa, sizeof sa) != 0 ||
        listen(p->listen_fd, 128) != 0 ||
        getsockname(p->listen_fd, (struct sockaddr *)&sa, &len) != 0)
        return false;
    snprintf(p->url, sizeof p->url, "tcp://127.0.0.1:%u", (unsigned)ntohs(sa.sin_port));
    return true;
}

static void proxy_done(struct tcp_proxy *p)
{
    if (p->listen_fd >= 0)
        close(p->listen_fd);
    if (p->wake_fd >= 0)
        close(p->wake_fd);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}

struct tcp_proxy *tcp_proxy_new(const char *target_url, uint64_t seed)
{
    struct tcp_proxy *p = mem_alloc(sizeof *p);
    if (!p)
        return NULL;
    p->listen_fd = p->wake_fd = -1;
    p->seed = seed ? seed : rand_u64();
    p->target_port = port_of(target_url);
    pthread_mutex_init(&p->lock, NULL);
    if (!start_listening(p) || pthread_create(&p->thread, NULL, run, p) != 0) {
        proxy_done(p);
        return NULL;
    }
    return p;
}

// With the lock held: the thread sees the change at once.
static void wake(struct tcp_proxy *p)
{
    uint64_t one = 1;
    if (write(p->wake_fd, &one, sizeof one) < 0)
        return; // EAGAIN alone: it is being woken already
}

void tcp_proxy_free(struct tcp_proxy *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    wake(p);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    proxy_done(p);
}

const char *tcp_proxy_url(const struct tcp_proxy *p)
{
    return p->url;
}

uint64_t tcp_proxy_seed(const struct tcp_proxy *p)
{
    return p->seed;
}

void tcp_proxy_set_target(struct tcp_proxy *p, const char *target_url)
{
    pthread_mutex_lock(&p->lock);
    p->target_port = port_of(target_url);
    pthread_mutex_unlock(&p->lock);
}

static void set_dir(struct tcp_proxy *p, enum tcp_proxy_dir d, const struct tcp_proxy_link *l)
{
    bool redraw = l->cut_min_bytes != p->link[d].cut_min_bytes ||
                  l->cut_max_bytes != p->link[d].cut_max_bytes ||
                  l->flip_mean_bytes != p->link[d].flip_mean_bytes;
    p->link[d] = *l;
    p->free_us[d] = 0;
    for (size_t i = 0; i < MAX_CONNS; i++) {
        if (p->pairs[i] && redraw)
            draw(p->pairs[i], d, l);
    }
    // Connections inherit the listener's buffer before accept() returns them.
    int rcv = (int)buffer_bytes(&p->link[TCP_PROXY_UP]);
    if (d == TCP_PROXY_UP && rcv)
        setsockopt(p->listen_fd, SOL_SOCKET, SO_RCVBUF, &rcv, sizeof rcv);
    wake(p);
}

void tcp_proxy_set(struct tcp_proxy *p, enum tcp_proxy_dir dir, const struct tcp_proxy_link *l)
{
    pthread_mutex_lock(&p->lock);
    set_dir(p, dir, l);
    pthread_mutex_unlock(&p->lock);
}

void tcp_proxy_set_both(struct tcp_proxy *p, const struct tcp_proxy_link *l)
{
    pthread_mutex_lock(&p->lock);
    set_dir(p, TCP_PROXY_UP, l);
    set_dir(p, TCP_PROXY_DOWN, l);
    pthread_mutex_unlock(&p->lock);
}

void tcp_proxy_refuse(struct tcp_proxy *p, bool refuse)
{
    pthread_mutex_lock(&p->lock);
    p->refuse = refuse;
    pthread_mutex_unlock(&p->lock);
}

void tcp_proxy_set_life(struct tcp_proxy *p, int64_t min_us, int64_t max_us, enum tcp_proxy_cut how)
{
    pthread_mutex_lock(&p->lock);
    p->life_min_us = min_us;
    p->life_max_us = max_us;
    p->life_cut = how;
    int64_t now = time_mono_us();
    for (size_t i = 0; i < MAX_CONNS; i++) {
        struct pair *c = p->pairs[i];
        if (c)
            c->dies_us = max_us ? now + between(&c->rng, min_us, max_us) : TIME_NEVER;
    }
    wake(p);
    pthread_mutex_unlock(&p->lock);
}

void tcp_proxy_cut(struct tcp_proxy *p, enum tcp_proxy_cut how)
{
    pthread_mutex_lock(&p->lock);
    for (size_t i = 0; i < MAX_CONNS; i++) {
        if (p->pairs[i])
            pair_cut(p, i, how);
    }
    wake(p);
    pthread_mutex_unlock(&p->lock);
}

void tcp_proxy_get_stats(struct tcp_proxy *p, struct tcp_proxy_stats *ret)
{
    pthread_mutex_lock(&p->lock);
    *ret = p->stats;
    pthread_mutex_unlock(&p->lock);
}
