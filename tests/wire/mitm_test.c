// Somebody between a client and its server who knows the transport and no key: messages come twice,
// late, again, changed, cut, or not at all. The connection dies, every call ends in time, and no
// handler runs twice for one call.
#include <arpa/inet.h>
#include <endian.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "rpc/transport.h"
#include "wire/util.h"

#define PING_MS 500
#define CALL_MS 20000
#define N_NOTES 20
#define MESSAGE_MAX (300U << 10)

// ---------------------------------------------------------------- the one in the middle

enum what {
    REPEAT,       // the message, twice
    REPLAY,       // and the one before it once more
    SWAP,         // after the next one
    DROP,         // never
    SHORTEN,      // without its last byte
    HALVE,        // without its second half
    EMPTY,        // nothing but the transport's request id
    LENGTHEN,     // with a byte behind it
    FLIP_HEADER,  // a bit of the first byte
    FLIP_COUNTER, // of what follows the header
    FLIP_MIDDLE,
    FLIP_LAST, // of its tag, or mac
    STOP,      // half of it, then the end of the connection
    N_FAULTS
};
enum { UP, DOWN };

struct message {
    size_t n; // of the body with its request id
    uint8_t bytes[MESSAGE_MAX];
};

struct relay;
struct side { // one direction of the connection
    struct relay *r;
    int from, to, dir;
    pthread_t thread;
    bool is_faulty;
    size_t n_passed;
    struct message now, before, held;
    bool has_held;
};
struct relay {
    int listen_fd;
    uint16_t target;
    char url[64];
    pthread_t thread;
    pthread_mutex_t lock; // what follows
    pthread_cond_t cond;
    enum what what;
    int dir;
    size_t nth;
    bool is_armed, is_done, has_ended; // for the next connection; it was done, and is over
};

static bool read_all(int fd, void *p, size_t n)
{
    for (size_t off = 0; off < n;) {
        ssize_t k = recv(fd, (uint8_t *)p + off, n - off, 0);
        if (k <= 0)
            return false;
        off += (size_t)k;
    }
    return true;
}

static bool write_all(int fd, const void *p, size_t n)
{
    for (size_t off = 0; off < n;) {
        ssize_t k = send(fd, (const uint8_t *)p + off, n - off, MSG_NOSIGNAL);
        if (k <= 0)
            return false;
        off += (size_t)k;
    }
    return true;
}

static bool read_message(int fd, struct message *m)
{
    uint64_t n;
    if (!read_all(fd, &n, sizeof n) || be64toh(n) > sizeof m->bytes)
        return false;
    m->n = (size_t)be64toh(n);
    return read_all(fd, m->bytes, m->n);
}

static bool write_message(int fd, const struct message *m, size_t n)
{
    uint64_t len = htobe64(m->n);
    return write_all(fd, &len, sizeof len) && write_all(fd, m->bytes, n);
}

static bool pass_on(struct side *s, const struct message *m)
{
    return write_message(s->to, m, m->n);
}

static bool flip(struct side *s, size_t at)
{
    s->now.bytes[at < s->now.n ? at : s->now.n - 1] ^= 0x10;
    return pass_on(s, &s->now);
}

static bool resized(struct side *s, size_t n)
{
    s->now.n = n;
    return pass_on(s, &s->now);
}

static bool do_fault(struct side *s, enum what what)
{
    struct message *m = &s->now;
    switch (what) {
    case REPEAT:
        return pass_on(s, m) && pass_on(s, m);
    case REPLAY:
        return pass_on(s, m) && pass_on(s, s->before.n ? &s->before : m);
    case SWAP:
        s->held = *m;
        s->has_held = true;
        return true;
    case DROP:
        return true;
    case SHORTEN:
        return resized(s, m->n - 1);
    case HALVE:
        return resized(s, m->n / 2);
    case EMPTY:
        return resized(s, 4);
    case LENGTHEN:
        m->bytes[m->n] = 0;
        return resized(s, m->n + 1);
    case FLIP_HEADER:
        return flip(s, 4);
    case FLIP_COUNTER:
        return flip(s, 4 + 12 + 7);
    case FLIP_MIDDLE:
        return flip(s, m->n / 2);
    case FLIP_LAST:
        return flip(s, m->n - 1);
    case STOP:
        write_message(s->to, m, m->n / 2);
        return false;
    case N_FAULTS:
        break;
    }
    return false;
}

static bool pass_next(struct side *s)
{
    struct relay *r = s->r;
    if (!read_message(s->from, &s->now))
        return false;
    pthread_mutex_lock(&r->lock);
    bool is_it = s->is_faulty && s->dir == r->dir && s->n_passed == r->nth;
    enum what what = r->what;
    r->is_done |= is_it;
    pthread_mutex_unlock(&r->lock);
    s->n_passed++;
    if (is_it)
        return do_fault(s, what);
    bool ok = pass_on(s, &s->now) && (!s->has_held || pass_on(s, &s->held));
    s->has_held = false;
    s->before = s->now;
    return ok;
}

static void *side_run(void *ud)
{
    struct side *s = ud;
    uint8_t hello[8];
    if (read_all(s->from, hello, sizeof hello) && write_all(s->to, hello, sizeof hello)) {
        while (pass_next(s)) {
        }
    }
    shutdown(s->from, SHUT_RDWR);
    shutdown(s->to, SHUT_RDWR);
    return NULL;
}

static int connect_to(uint16_t port)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    sa.sin_port = htons(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0)
        return fd;
    close(fd);
    return -1;
}

// One connection after the other: a client has one at a time.
static void relay_one(struct relay *r, int client, int server, struct side *up, struct side *down)
{
    pthread_mutex_lock(&r->lock);
    bool faulty = r->is_armed;
    r->is_armed = false;
    pthread_mutex_unlock(&r->lock);
    memset(up, 0, offsetof(struct side, now));
    memset(down, 0, offsetof(struct side, now));
    up->before.n = down->before.n = 0;
    up->has_held = down->has_held = false;
    up->r = down->r = r;
    up->is_faulty = down->is_faulty = faulty;
    up->from = down->to = client;
    up->to = down->from = server;
    up->dir = UP;
    down->dir = DOWN;
    bool has_thread = pthread_create(&down->thread, NULL, side_run, down) == 0;
    if (has_thread) {
        side_run(up);
        pthread_join(down->thread, NULL);
    }
    pthread_mutex_lock(&r->lock);
    r->has_ended |= faulty && r->is_done;
    r->is_armed |= faulty && !r->is_done; // it ended before that
    pthread_cond_broadcast(&r->cond);
    pthread_mutex_unlock(&r->lock);
}

static void *relay_run(void *ud)
{
    struct relay *r = ud;
    struct side *sides = mem_array(2, sizeof *sides);
    for (int client; (client = accept4(r->listen_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0;) {
        int server = sides ? connect_to(r->target) : -1;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        if (server >= 0) {
            relay_one(r, client, server, &sides[0], &sides[1]);
            close(server);
        }
        close(client);
    }
    mem_free(sides);
    return NULL;
}

static void relay_start(struct relay *r, const char *target_url)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof sa;
    *r = (struct relay){.target = (uint16_t)atoi(strrchr(target_url, ':') + 1)};
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->cond, NULL);
    r->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(r->listen_fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(r->listen_fd, 64), 0);
    assert_int_equal(getsockname(r->listen_fd, (struct sockaddr *)&sa, &len), 0);
    snprintf(r->url, sizeof r->url, "tcp://127.0.0.1:%u", (unsigned)ntohs(sa.sin_port));
    assert_int_equal(pthread_create(&r->thread, NULL, relay_run, r), 0);
}

static void relay_stop(struct relay *r)
{
    shutdown(r->listen_fd, SHUT_RDWR); // accept() ends
    pthread_join(r->thread, NULL);
    close(r->listen_fd);
    pthread_cond_destroy(&r->cond);
    pthread_mutex_destroy(&r->lock);
}

static void relay_arm(struct relay *r, enum what what, int dir, size_t nth)
{
    pthread_mutex_lock(&r->lock);
    r->what = what;
    r->dir = dir;
    r->nth = nth;
    r->is_armed = true;
    r->is_done = r->has_ended = false;
    pthread_mutex_unlock(&r->lock);
}

// The connection with the fault is over, because one of its ends wanted so.
static bool relay_wait_end(struct relay *r)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_MS / 1000;
    pthread_mutex_lock(&r->lock);
    int rv = 0;
    while (!r->has_ended && rv == 0)
        rv = pthread_cond_timedwait(&r->cond, &r->lock, &until);
    bool ended = r->has_ended;
    pthread_mutex_unlock(&r->lock);
    return ended;
}

// ---------------------------------------------------------------- the honest ones

static struct rpc_client *client_to(struct world *w, const char *url)
{
    struct rpc_endpoint e = {.url = url};
    memcpy(e.key, w->server.public_key, sizeof e.key);
    struct rpc_client_opts o = {.endpoints = &e,
                                .n_endpoints = 1,
                                .pool = w->pool,
                                .connect_timeout_ms = CALL_MS,
                                .handshake_timeout_ms = PING_MS,
                                .ping_after_ms = PING_MS,
                                .transport = &transport_epoll};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    return c;
}

static bool is_fair_end(enum status s)
{
    return s == STATUS_OK || s == STATUS_UNAVAILABLE;
}

static bool tally(struct world *w, struct rpc_client *c, int64_t number)
{
    enum status s = wire_call(c, TALLY, number, NULL, CALL_MS);
    assert_true(is_fair_end(s));
    assert_true(w->n_executed[number] <= 1);
    if (s == STATUS_OK)
        assert_int_equal(w->n_executed[number], 1);
    return s == STATUS_OK;
}

// Notes come in order, each once, and if it ends well all came.
static void read_notes(struct rpc_client *c)
{
    struct rpc_stream *st = NULL;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(CALL_MS)};
    struct err err = ERR_INIT;
    Note req;
    note_init(&req);
    req.number = N_NOTES;
    enum status s = rpc_stream_open(c, &test_service.methods[NUMBERED], &o, &req.base, &st, &err);
    int64_t n = 0;
    for (ProtobufCMessage *m = NULL; s == STATUS_OK; n++) {
        s = rpc_stream_recv(st, &m, &err);
        if (s != STATUS_OK || !m)
            break;
        assert_int_equal(((Note *)(void *)m)->number, n);
        rpc_message_free(m);
    }
    rpc_stream_free(st);
    assert_true(is_fair_end(s));
    if (s == STATUS_OK)
        assert_int_equal(n, N_NOTES);
}

// Which takes the connection with it: the next one would be honest.
static void calls_until_one_fails(struct world *w, struct rpc_client *c, int64_t *number)
{
    for (int i = 0; i < 3; i++) {
        if (!tally(w, c, (*number)++))
            return;
    }
    read_notes(c);
}

static void check_nth(size_t nth)
{
    struct world w;
    struct relay r;
    int64_t number = 0;
    world_init(&w);
    w.transport = &transport_epoll;
    wire_serve(&w, "tcp://127.0.0.1:0", true, 0);
    relay_start(&r, w.url);
    for (unsigned i = 0; i < 2 * N_FAULTS; i++) {
        relay_arm(&r, i / 2, i % 2, nth);
        struct rpc_client *c = client_to(&w, r.url);
        calls_until_one_fails(&w, c, &number);
        if (!relay_wait_end(&r))
            fail_msg("fault %u of message %zu: the connection goes on", i, nth);
        rpc_client_free(c);
    }
    relay_stop(&r);
    world_done(&w);
}

static void test_of_handshakes(void **state)
{
    (void)state;
    check_nth(0);
}

static void test_of_first_records(void **state)
{
    (void)state;
    check_nth(1);
}

static void test_of_later_records(void **state)
{
    (void)state;
    check_nth(3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_of_handshakes),
        cmocka_unit_test(test_of_first_records),
        cmocka_unit_test(test_of_later_records),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
