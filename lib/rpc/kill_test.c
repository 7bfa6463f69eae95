// Connections that break amid streams in both directions: however and whichever side ends them, the
// transport must let go of every one, or it would stop doing so for all others.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rpc/test_util.h"
#include "rpc/transport.h"

#define N_CLIENTS 4
#define ROUNDS 8
#define NOTE_BYTES 60000
#define LET_GO_MS 20000

// ---------------------------------------------------------------- a tap below lib/rpc

static const struct transport_ops *inner;
#define MAX_TAPS 8
#define MAX_PIPES (4 * N_CLIENTS) // some may linger from the round before
static struct tap {               // one listener or dialer
    const struct transport_events *ev;
    void *ud;
    struct transport *t;
    uint32_t pipes[MAX_PIPES]; // alive now
    unsigned n_received;
    bool is_server;
} taps[MAX_TAPS];
static size_t n_taps;
static pthread_mutex_t tap_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t tap_cond = PTHREAD_COND_INITIALIZER;

static bool tap_attach(void *ud, uint32_t pipe)
{
    struct tap *t = ud;
    if (!t->ev->attach(t->ud, pipe))
        return false;
    pthread_mutex_lock(&tap_lock);
    for (size_t i = 0; i < MAX_PIPES; i++) {
        if (!t->pipes[i]) {
            t->pipes[i] = pipe;
            break;
        }
    }
    pthread_mutex_unlock(&tap_lock);
    return true;
}

static void tap_detach(void *ud, uint32_t pipe)
{
    struct tap *t = ud;
    t->ev->detach(t->ud, pipe);
    pthread_mutex_lock(&tap_lock);
    for (size_t i = 0; i < MAX_PIPES; i++) {
        if (t->pipes[i] == pipe)
            t->pipes[i] = 0;
    }
    pthread_cond_broadcast(&tap_cond);
    pthread_mutex_unlock(&tap_lock);
}

static void tap_receive(void *ud, uint32_t pipe, struct transport_msg *m, bool more)
{
    struct tap *t = ud;
    t->ev->receive(t->ud, pipe, m, more);
    pthread_mutex_lock(&tap_lock);
    t->n_received++;
    pthread_cond_broadcast(&tap_cond);
    pthread_mutex_unlock(&tap_lock);
}

static void tap_sent(void *ud, uint32_t pipe)
{
    struct tap *t = ud;
    if (t->ev->sent)
        t->ev->sent(t->ud, pipe);
}

static const struct transport_events tap_events = {
    .attach = tap_attach, .detach = tap_detach, .receive = tap_receive, .sent = tap_sent};

static struct tap *tap_new(const struct transport_events *ev, void *ud, bool is_server)
{
    pthread_mutex_lock(&tap_lock);
    assert_true(n_taps < MAX_TAPS);
    struct tap *t = &taps[n_taps++];
    *t = (struct tap){.ev = ev, .ud = ud, .is_server = is_server};
    pthread_mutex_unlock(&tap_lock);
    return t;
}

static enum status tap_listen(const char *url, const struct transport_events *ev, void *ud,
                              char *ret_url, size_t ret_url_size, struct transport **ret,
                              struct err *err)
{
    struct tap *t = tap_new(ev, ud, true);
    enum status s = inner->listen(url, &tap_events, t, ret_url, ret_url_size, ret, err);
    t->t = *ret;
    return s;
}

static enum status tap_dial(const char *url, const struct transport_events *ev, void *ud,
                            struct transport **ret, struct err *err)
{
    struct tap *t = tap_new(ev, ud, false);
    enum status s = inner->dial(url, &tap_events, t, ret, err);
    t->t = *ret;
    return s;
}

static struct transport_ops tapped;

// ---------------------------------------------------------------- streams

struct side {
    pthread_t up, down;
    struct rpc_client *c;
    struct rpc_stream *streams[2]; // open ones; tap_lock
    bool is_over;                  // tap_lock
};
enum { UP, DOWN };

static const struct rpc_opts *long_opts(struct rpc_opts *o)
{
    *o = (struct rpc_opts){.deadline_us = time_deadline_in_ms(60000)};
    return o;
}

static uint8_t bytes[NOTE_BYTES];

static bool side_begin(struct side *side, int which, int method, const Note *req)
{
    struct rpc_stream *st = NULL;
    struct rpc_opts o;
    struct err err = ERR_INIT;
    if (rpc_stream_open(side->c, &test_service.methods[method], long_opts(&o),
                        req ? &req->base : NULL, &st, &err) != STATUS_OK)
        return false;
    pthread_mutex_lock(&tap_lock);
    side->streams[which] = st;
    if (side->is_over)
        rpc_stream_cancel(st);
    pthread_mutex_unlock(&tap_lock);
    return true;
}

static void side_end(struct side *side, int which)
{
    pthread_mutex_lock(&tap_lock);
    struct rpc_stream *st = side->streams[which];
    side->streams[which] = NULL;
    pthread_mutex_unlock(&tap_lock);
    rpc_stream_free(st);
}

// A stream that began late, or again, on the connection after the one that broke would go on until
// its deadline.
static void side_cancel(struct side *side)
{
    pthread_mutex_lock(&tap_lock);
    side->is_over = true;
    for (int i = UP; i <= DOWN; i++) {
        if (side->streams[i])
            rpc_stream_cancel(side->streams[i]);
    }
    pthread_mutex_unlock(&tap_lock);
}

static void *pour_up(void *ud)
{
    struct side *side = ud;
    struct err err = ERR_INIT;
    Note n;
    note_init(&n);
    n.data = (ProtobufCBinaryData){.len = sizeof bytes, .data = bytes};
    if (!side_begin(side, UP, SUM, NULL))
        return NULL;
    while (rpc_stream_send(side->streams[UP], &n.base, &err) == STATUS_OK) {
    }
    side_end(side, UP);
    return NULL;
}

static void *pour_down(void *ud)
{
    struct side *side = ud;
    struct err err = ERR_INIT;
    Note n;
    note_init(&n);
    n.number = 1 << 30;
    n.data = (ProtobufCBinaryData){.len = sizeof bytes, .data = bytes};
    if (!side_begin(side, DOWN, COUNT, &n))
        return NULL;
    ProtobufCMessage *m = NULL;
    while (rpc_stream_recv(side->streams[DOWN], &m, &err) == STATUS_OK && m) {
        rpc_message_free(m);
        m = NULL;
    }
    side_end(side, DOWN);
    return NULL;
}

// With tap_lock held. A transport that hangs could not be freed either: end at once.
static void wait_tap(int64_t until_us, const char *what)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_sec += 1;
    pthread_cond_timedwait(&tap_cond, &tap_lock, &ts);
    if (time_mono_us() < until_us)
        return;
    fprintf(stderr, "kill_test: %s: waited too long\n", what);
    _exit(1);
}

static bool is_pouring(unsigned at_least)
{
    for (size_t i = 0; i < n_taps; i++) {
        if (taps[i].n_received < at_least * (taps[i].is_server ? N_CLIENTS : 1))
            return false;
    }
    return true;
}

enum { SERVER_DROPS = 1, CLIENT_DROPS = 2 };

struct drop {
    struct transport *t;
    uint32_t pipe;
};

static void *drop_one(void *ud)
{
    struct drop *d = ud;
    inner->drop(d->t, d->pipe);
    return NULL;
}

// Ends every connection that there is, and waits until the transport has let go of each.
static void drop_all(unsigned who)
{
    struct drop d[2 * MAX_PIPES];
    pthread_t threads[2 * MAX_PIPES];
    size_t n = 0;
    uint32_t before[MAX_TAPS][MAX_PIPES];
    pthread_mutex_lock(&tap_lock);
    for (size_t i = 0; i < n_taps; i++) {
        memcpy(before[i], taps[i].pipes, sizeof before[i]);
        for (size_t k = 0; k < MAX_PIPES; k++) {
            if (taps[i].pipes[k] && (who & (taps[i].is_server ? SERVER_DROPS : CLIENT_DROPS)))
                d[n++] = (struct drop){taps[i].t, taps[i].pipes[k]};
        }
    }
    pthread_mutex_unlock(&tap_lock);
    assert_true(n >= N_CLIENTS);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, drop_one, &d[i]), 0);
    for (size_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    int64_t until = time_deadline_in_ms(LET_GO_MS);
    pthread_mutex_lock(&tap_lock);
    for (size_t i = 0; i < n_taps; i++) {
        for (size_t k = 0; k < MAX_PIPES; k++) {
            while (before[i][k] && taps[i].pipes[k] == before[i][k])
                wait_tap(until, "for the transport to let a connection go");
        }
    }
    pthread_mutex_unlock(&tap_lock);
}

static unsigned n_rounds(void)
{
    const char *e = getenv("CAUCE_TEST_ROUNDS");
    return e ? (unsigned)atoi(e) : ROUNDS;
}

static void run_round(struct world *w, unsigned round)
{
    struct side sides[N_CLIENTS] = {0};
    pthread_mutex_lock(&tap_lock);
    n_taps = 1; // the listener's stays
    taps[0].n_received = 0;
    pthread_mutex_unlock(&tap_lock);
    for (size_t i = 0; i < N_CLIENTS; i++) {
        sides[i].c = world_client(w);
        assert_int_equal(pthread_create(&sides[i].up, NULL, pour_up, &sides[i]), 0);
        assert_int_equal(pthread_create(&sides[i].down, NULL, pour_down, &sides[i]), 0);
    }
    int64_t until = time_deadline_in_ms(LET_GO_MS);
    pthread_mutex_lock(&tap_lock);
    while (!is_pouring(6 + round % 7))
        wait_tap(until, "for streams to flow");
    pthread_mutex_unlock(&tap_lock);
    drop_all(1 + round % 3);
    for (size_t i = 0; i < N_CLIENTS; i++) {
        side_cancel(&sides[i]);
        pthread_join(sides[i].up, NULL);
        pthread_join(sides[i].down, NULL);
        rpc_client_free(sides[i].c);
    }
}

static void check_kills(const struct transport_ops *transport, const char *url)
{
    inner = transport;
    tapped = *transport;
    tapped.listen = tap_listen;
    tapped.dial = tap_dial;
    n_taps = 0;
    struct world w;
    world_init(&w);
    w.transport = &tapped;
    world_serve(&w, url, false);
    for (unsigned round = 0; round < n_rounds(); round++)
        run_round(&w, round);
    world_done(&w);
}

static void test_tcp(void **state)
{
    (void)state;
    check_kills(&transport_epoll, "tcp://127.0.0.1:0");
    check_kills(&transport_nng, "tcp://127.0.0.1:0");
}

static void test_ipc(void **state)
{
    (void)state;
    char url[64];
    snprintf(url, sizeof url, "ipc:///tmp/cauce-kill-%d", (int)getpid());
    check_kills(&transport_epoll, url);
    check_kills(&transport_nng, url);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tcp), cmocka_unit_test(test_ipc)};
    return cmocka_run_group_tests(tests, NULL, group_done);
}
