// Nothing lost: numbered messages arrive all, once and in order, however slow their reader is; over
// a link that delays, cuts and corrupts every call ends once, in time, and with the truth.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "wire/proxy.h"
#include "wire/util.h"

#define MAX_NOTE_BYTES 4096

// ---------------------------------------------------------------- what one reader sees

struct tale {        // of one stream
    int64_t n;       // messages, all of them as they must be
    enum status s;   // how it ended
    const char *lie; // or what must never happen
    struct err err;
};

static bool is_note(const Note *n, int64_t number, size_t bytes)
{
    uint8_t want[MAX_NOTE_BYTES];
    note_fill(want, bytes, number);
    return n->number == number && n->data.len == bytes && memcmp(n->data.data, want, bytes) == 0;
}

// The next message; false at the end.
static bool read_one(struct rpc_stream *st, struct tale *t, int64_t number, size_t bytes)
{
    ProtobufCMessage *m = NULL;
    t->s = rpc_stream_recv(st, &m, &t->err);
    if (t->s != STATUS_OK || !m) {
        if (m)
            t->lie = "a message came with a bad status";
        return false;
    }
    if (!is_note((const Note *)(const void *)m, number, bytes))
        t->lie = "a message is wrong, missing or there twice";
    rpc_message_free(m);
    t->n++;
    return !t->lie;
}

static enum status open_numbered(struct rpc_client *c, int64_t number, size_t bytes,
                                 const char *text, int64_t deadline_us, struct rpc_stream **ret,
                                 struct err *err)
{
    static uint8_t zeros[MAX_NOTE_BYTES];
    struct rpc_opts o = {.deadline_us = deadline_us};
    Note req;
    note_init(&req);
    req.number = number;
    req.text = (char *)(uintptr_t)text;
    req.data = (ProtobufCBinaryData){.len = bytes, .data = zeros};
    return rpc_stream_open(c, &test_service.methods[NUMBERED], &o, &req.base, ret, err);
}

// ---------------------------------------------------------------- a slow reader beside fast ones

#define N_SLOW 10000
#define SLOW_BYTES 2048
#define N_FAST 8
#define FAST_BYTES 1000
// What one stream may have between a writer and a reader that stopped: a full window queued on
// either side, and one message that found the last bytes of credit.
#define STREAM_BOUND_BYTES (2 * (1 << 20) + SLOW_BYTES)
// The process holds both sides of nine streams; malloc and the heads of messages take a share, the
// records on their way at most the window of 8 MiB.
#define HELD_BOUND_BYTES ((1 + N_FAST) * STREAM_BOUND_BYTES * 5 / 4 + (8 << 20))

struct slow { // a reader that takes as many messages as it is allowed
    struct rpc_stream *st;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int64_t allowed, n;
    struct tale tale;
    bool ended;
};

static void *read_slowly(void *ud)
{
    struct slow *s = ud;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (s->n >= s->allowed)
            pthread_cond_wait(&s->cond, &s->lock);
        pthread_mutex_unlock(&s->lock);
        bool more = read_one(s->st, &s->tale, s->n, SLOW_BYTES);
        pthread_mutex_lock(&s->lock);
        s->n += more;
        s->ended = !more;
        pthread_cond_broadcast(&s->cond);
        if (!more)
            break;
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

// Allow that many in all, and wait until they are read, or the stream's end.
static void allow(struct slow *s, int64_t n)
{
    int64_t until = time_deadline_in_ms(PATIENCE_MS);
    struct timespec ts;
    pthread_mutex_lock(&s->lock);
    s->allowed = n;
    pthread_cond_broadcast(&s->cond);
    while (s->n < n && !s->ended && time_mono_us() < until) {
        clock_gettime(CLOCK_REALTIME, &ts);
        ts.tv_sec++;
        pthread_cond_timedwait(&s->cond, &s->lock, &ts);
    }
    bool done = s->n >= n || s->ended;
    pthread_mutex_unlock(&s->lock);
    assert_true(done);
}

struct fast {
    struct rpc_client *c;
    pthread_t thread;
    _Atomic int64_t n; // messages so far
    _Atomic bool *stop;
    const char *lie;
};

static void *read_fast(void *ud)
{
    struct fast *f = ud;
    struct tale t = {.err = ERR_INIT};
    struct rpc_stream *st = NULL;
    if (open_numbered(f->c, 1 << 30, FAST_BYTES, "", time_deadline_in_ms(120000), &st, &t.err) !=
        STATUS_OK) {
        f->lie = "a stream does not open";
        return NULL;
    }
    while (!*f->stop && read_one(st, &t, f->n, FAST_BYTES))
        f->n++;
    f->lie = t.s != STATUS_OK ? "a stream ended by itself" : t.lie;
    rpc_stream_free(st);
    return NULL;
}

static void *echo_fast(void *ud) // both directions at once
{
    struct fast *f = ud;
    struct err err = ERR_INIT;
    struct rpc_stream *st = NULL;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(120000)};
    struct tale t = {.err = ERR_INIT};
    uint8_t bytes[FAST_BYTES];
    Note n;
    note_init(&n);
    n.data = (ProtobufCBinaryData){.len = sizeof bytes, .data = bytes};
    if (rpc_stream_open(f->c, &test_service.methods[CHAT], &o, NULL, &st, &err) != STATUS_OK) {
        f->lie = "a stream does not open";
        return NULL;
    }
    for (n.number = 0; !*f->stop && !t.lie; n.number++, f->n++) {
        note_fill(bytes, sizeof bytes, n.number + 1);
        if (rpc_stream_send(st, &n.base, &err) != STATUS_OK ||
            !read_one(st, &t, n.number + 1, sizeof bytes))
            t.lie = "a stream ended by itself";
    }
    f->lie = t.lie;
    rpc_stream_free(st);
    return NULL;
}

// Every fast stream goes on by that many messages.
static void wait_fast(struct fast *f, int64_t n)
{
    int64_t from[N_FAST], until = time_deadline_in_ms(PATIENCE_MS);
    for (size_t i = 0; i < N_FAST; i++)
        from[i] = f[i].n;
    for (size_t i = 0; i < N_FAST; i++) {
        while (f[i].n < from[i] + n && time_mono_us() < until)
            wire_pause(1);
        assert_true(f[i].n >= from[i] + n);
    }
}

static void test_a_slow_reader_gets_everything_and_costs_a_window(void **state)
{
    (void)state;
    struct world w;
    _Atomic bool stop = false;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    size_t before = wire_held_bytes(), most = 0, most_ahead = 0;
    struct fast fast[N_FAST] = {{0}};
    for (size_t i = 0; i < N_FAST; i++) {
        fast[i].c = c;
        fast[i].stop = &stop;
        assert_int_equal(
            pthread_create(&fast[i].thread, NULL, i % 2 ? read_fast : echo_fast, &fast[i]), 0);
    }
    wait_fast(fast, 10);
    struct slow slow = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    assert_int_equal(open_numbered(c, N_SLOW, SLOW_BYTES, "watched", time_deadline_in_ms(120000),
                                   &slow.st, &slow.tale.err),
                     STATUS_OK);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, read_slowly, &slow), 0);
    static const int64_t bursts[] = {0, 1, 2, 50, 51, 1000, 5000, 5001, N_SLOW - 1};
    for (size_t i = 0; i < N_ELEMENTS(bursts); i++) {
        allow(&slow, bursts[i]);
        wait_fast(fast, 100); // nobody waits for the slow one
        size_t held = wire_held_bytes() - before;
        size_t ahead = (size_t)(w.n_written - slow.n) * SLOW_BYTES;
        most = held > most ? held : most;
        most_ahead = ahead > most_ahead ? ahead : most_ahead;
    }
    allow(&slow, N_SLOW + 1); // and one that does not come
    pthread_join(t, NULL);
    stop = true;
    for (size_t i = 0; i < N_FAST; i++)
        pthread_join(fast[i].thread, NULL);
    print_message("the slow reader's writer was at most %zu KiB ahead, held at most %zu KiB\n",
                  most_ahead >> 10, most >> 10);
    assert_null(slow.tale.lie);
    assert_int_equal(slow.tale.s, STATUS_OK);
    assert_int_equal(slow.n, N_SLOW);
    for (size_t i = 0; i < N_FAST; i++)
        assert_null(fast[i].lie);
    assert_true(most_ahead <= STREAM_BOUND_BYTES);
    assert_true(most <= HELD_BOUND_BYTES);
    rpc_stream_free(slow.st);
    assert_true(wire_wait_quiet(&w, 1));
    rpc_client_free(c);
    world_done(&w);
}

// ---------------------------------------------------------------- a link that misbehaves

#define PING_MS 400
#define N_KEYED 600 // calls with an idempotency key, by all workers together
#define CALL_DEADLINE_MS 4000
#define STREAM_DEADLINE_MS 3000
#define STREAM_NOTES 400
#define MARGIN_MS (IS_SANITIZED ? 10000 : 3000) // a deadline may be noticed that much later
// Dialling again takes 2 s at most; a breaker that opened last waits as long again as it did.
#define RECOVERY_MS (3 * 2000)

struct storm {
    struct world w;
    struct tcp_proxy *p;
    struct rpc_client *c;
    _Atomic int next_keyed, next_plain, n_streams, n_cut_streams, n_async_begun, n_async_ended;
    _Atomic bool stop;
    _Atomic int64_t latest_ms; // how far past its deadline the latest call ended
};

struct worker {
    struct storm *s;
    pthread_t thread;
    const char *lie;
    char text[300];
};

static void note_end(struct storm *s, int64_t deadline_us)
{
    int64_t late = (time_mono_us() - deadline_us) / 1000, was = s->latest_ms;
    while (late > was && !atomic_compare_exchange_weak(&s->latest_ms, &was, late)) {
    }
}

static bool may_end_so(enum status s)
{
    return s == STATUS_OK || s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED;
}

static const char *lie_about(struct worker *w, enum status s, const struct err *err)
{
    snprintf(w->text, sizeof w->text, "ended %s: %s", status_name(s), err->msg);
    return w->text;
}

// Repeats each keyed call until it is answered: whatever the link did, it has one effect.
static void *call_keyed(void *ud)
{
    struct worker *w = ud;
    struct storm *s = w->s;
    int i;
    while (!w->lie && (i = s->next_keyed++) < N_KEYED) {
        char key[32];
        snprintf(key, sizeof key, "key-%d", i);
        enum status st;
        do {
            int64_t deadline = time_deadline_in_ms(CALL_DEADLINE_MS);
            st = wire_call(s->c, TALLY, i, key, CALL_DEADLINE_MS);
            note_end(s, deadline);
            if (st != STATUS_OK)
                wire_pause(5);
        } while (st == STATUS_UNAVAILABLE || st == STATUS_DEADLINE_EXCEEDED);
        if (st != STATUS_OK)
            w->lie = "a keyed call ended otherwise than OK, UNAVAILABLE, DEADLINE_EXCEEDED";
    }
    return NULL;
}

// Calls that may not be repeated: nobody does.
static void *call_plain(void *ud)
{
    struct worker *w = ud;
    struct storm *s = w->s;
    while (!s->stop && !w->lie) {
        int i = s->next_plain++;
        if (i >= N_TALLIES)
            return NULL;
        int64_t deadline = time_deadline_in_ms(CALL_DEADLINE_MS);
        enum status st = wire_call(s->c, TALLY, i, NULL, CALL_DEADLINE_MS);
        note_end(s, deadline);
        int n = s->w.n_executed[i];
        if (!may_end_so(st))
            w->lie = "a plain call ended otherwise than OK, UNAVAILABLE, DEADLINE_EXCEEDED";
        else if (st == STATUS_OK ? n != 1 : n > 1)
            w->lie = "a plain call was executed not once";
        if (st != STATUS_OK)
            wire_pause(5);
    }
    return NULL;
}

static void *stream_down(void *ud)
{
    struct worker *w = ud;
    struct storm *s = w->s;
    while (!s->stop && !w->lie) {
        struct tale t = {.err = ERR_INIT};
        struct rpc_stream *st = NULL;
        int64_t deadline = time_deadline_in_ms(STREAM_DEADLINE_MS);
        t.s = open_numbered(s->c, STREAM_NOTES, 1000, "", deadline, &st, &t.err);
        while (st && read_one(st, &t, t.n, 1000)) {
        }
        note_end(s, deadline);
        s->n_streams++;
        s->n_cut_streams += t.s != STATUS_OK;
        w->lie = t.lie;
        if (!may_end_so(t.s))
            w->lie = lie_about(w, t.s, &t.err);
        else if (t.s == STATUS_OK && st && t.n != STREAM_NOTES)
            w->lie = "a stream ended well before its last message";
        ProtobufCMessage *m = NULL;
        if (st && !w->lie && (rpc_stream_recv(st, &m, &t.err) != t.s || m))
            w->lie = "a stream ended twice, differently";
        rpc_message_free(m);
        rpc_stream_free(st);
        if (t.s != STATUS_OK)
            wire_pause(5);
    }
    return NULL;
}

static enum status sum_up(struct storm *s, int64_t deadline, int64_t *ret_sum, struct err *err)
{
    static uint8_t bytes[1000];
    struct rpc_opts o = {.deadline_us = deadline};
    struct rpc_stream *st = NULL;
    ProtobufCMessage *m = NULL;
    enum status end = rpc_stream_open(s->c, &test_service.methods[SUM], &o, NULL, &st, err);
    Note n;
    note_init(&n);
    n.data = (ProtobufCBinaryData){.len = sizeof bytes, .data = bytes};
    for (; end == STATUS_OK && n.number < STREAM_NOTES; n.number++)
        end = rpc_stream_send(st, &n.base, err);
    if (end == STATUS_OK)
        end = rpc_stream_close_send(st, err);
    if (end == STATUS_OK)
        end = rpc_stream_recv(st, &m, err);
    if (m)
        *ret_sum = ((Note *)(void *)m)->number;
    rpc_message_free(m);
    rpc_stream_free(st);
    return end;
}

static void *stream_up(void *ud)
{
    struct worker *w = ud;
    struct storm *s = w->s;
    while (!s->stop && !w->lie) {
        struct err err = ERR_INIT;
        int64_t deadline = time_deadline_in_ms(STREAM_DEADLINE_MS), sum = -1;
        enum status st = sum_up(s, deadline, &sum, &err);
        note_end(s, deadline);
        s->n_streams++;
        s->n_cut_streams += st != STATUS_OK;
        if (!may_end_so(st))
            w->lie = lie_about(w, st, &err);
        else if (st == STATUS_OK && sum != STREAM_NOTES * (STREAM_NOTES - 1) / 2)
            w->lie = "a client stream's messages are wrong, missing or there twice";
        if (st != STATUS_OK)
            wire_pause(5);
    }
    return NULL;
}

struct once {
    struct storm *s;
    _Atomic int n_done;
    _Atomic bool bad;
};
#define MAX_ASYNC 3000

static void async_done(void *ud, enum status st, ProtobufCMessage *reply, const struct err *err)
{
    struct once *o = ud;
    (void)err;
    o->bad = !may_end_so(st) || (reply != NULL) != (st == STATUS_OK);
    rpc_message_free(reply);
    o->n_done++;
    o->s->n_async_ended++;
}

static void *call_async(void *ud)
{
    struct worker *w = ud;
    struct storm *s = w->s;
    struct once *all = mem_array(MAX_ASYNC, sizeof *all);
    int n = 0;
    for (; all && n < MAX_ASYNC && !s->stop; n++) {
        while (s->n_async_begun - s->n_async_ended > 20)
            wire_pause(1);
        struct rpc_opts o = {.deadline_us = time_deadline_in_ms(CALL_DEADLINE_MS)};
        Note req;
        note_init(&req);
        all[n].s = s;
        s->n_async_begun++;
        rpc_unary_async(s->c, &test_service.methods[n % 2 ? ECHO : LATER], &o, &req.base,
                        async_done, &all[n]);
    }
    wait_for_count(&s->n_async_ended, n);
    for (int i = 0; i < n; i++) {
        if (all[i].n_done != 1 || all[i].bad)
            w->lie = "an async call ended not once, or badly";
    }
    mem_free(all);
    return NULL;
}

static void weather(struct storm *s, bool foul)
{
    struct tcp_proxy_link l = {0};
    if (foul)
        l = (struct tcp_proxy_link){
            .delay_us = 1000, .jitter_us = 2000, .flip_mean_bytes = 2 << 20};
    tcp_proxy_set_both(s->p, &l);
    tcp_proxy_set_life(s->p, foul ? 30000 : 0, foul ? 150000 : 0, TCP_PROXY_RST);
}

static void check_recovery(struct storm *s)
{
    int64_t began = time_mono_us(), most = time_deadline_in_ms(RECOVERY_MS + MARGIN_MS);
    while (wire_call(s->c, ECHO, 0, NULL, 1000) != STATUS_OK && time_mono_us() < most)
        wire_pause(5);
    print_message("recovered after %lld ms\n", (long long)(time_mono_us() - began) / 1000);
    assert_true(time_mono_us() < most);
}

static void check_effects(struct storm *s)
{
    unsigned again = 0;
    for (int i = 0; i < N_KEYED; i++) {
        assert_int_equal(s->w.n_effective[i], 1);
        again += s->w.n_executed[i] - 1U;
    }
    print_message("%d keyed calls: one effect each; %u executions found it done already\n", N_KEYED,
                  again);
}

static void storm_init(struct storm *s, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    s->latest_ms = INT64_MIN;
    world_init(&s->w);
    wire_serve(&s->w, "tcp://127.0.0.1:0", true, PING_MS);
    s->p = tcp_proxy_new(s->w.url, seed);
    assert_non_null(s->p);
    s->c = wire_client(&s->w, tcp_proxy_url(s->p), PING_MS);
}

static void test_a_foul_link_loses_nothing_silently(void **state)
{
    (void)state;
    static struct storm s;
    storm_init(&s, wire_seed("foul link"));
    assert_int_equal(wire_call(s.c, ECHO, 0, NULL, PATIENCE_MS), STATUS_OK);
    // What has a number in N_TALLIES: keyed ones from 0, plain ones behind.
    s.next_plain = N_KEYED;
    static void *(*const kinds[])(void *) = {call_keyed,  call_keyed, call_keyed,
                                             call_plain,  call_plain, stream_down,
                                             stream_down, stream_up,  call_async};
    struct worker w[N_ELEMENTS(kinds)] = {{0}};
    weather(&s, true);
    for (size_t i = 0; i < N_ELEMENTS(w); i++) {
        w[i].s = &s;
        assert_int_equal(pthread_create(&w[i].thread, NULL, kinds[i], &w[i]), 0);
    }
    for (size_t i = 0; i < N_ELEMENTS(w); i++) {
        if (kinds[i] != call_keyed)
            s.stop = true;
        pthread_join(w[i].thread, NULL);
    }
    weather(&s, false);
    check_recovery(&s);
    for (size_t i = 0; i < N_ELEMENTS(w); i++) {
        if (w[i].lie)
            print_error("worker %zu: %s\n", i, w[i].lie);
        assert_null(w[i].lie);
    }
    struct tcp_proxy_stats ps;
    struct rpc_client_stats cs;
    tcp_proxy_get_stats(s.p, &ps);
    rpc_client_get_stats(s.c, &cs);
    print_message("%llu connections, %llu cuts, %llu flipped bits, %llu retries, %d of %d streams "
                  "cut, latest %lld ms past its deadline\n",
                  (unsigned long long)ps.n_conns, (unsigned long long)ps.n_cuts,
                  (unsigned long long)ps.n_flips, (unsigned long long)cs.n_retries, s.n_cut_streams,
                  s.n_streams, (long long)s.latest_ms);
    check_effects(&s);
    assert_true(ps.n_cuts >= 3 && cs.n_retries >= 1 && s.n_cut_streams >= 1); // it was foul
    assert_true(s.latest_ms <= MARGIN_MS);
    assert_true(wire_wait_quiet(&s.w, 1));
    rpc_client_get_stats(s.c, &cs);
    assert_int_equal(cs.calls_open, 0);
    rpc_client_free(s.c);
    tcp_proxy_free(s.p);
    world_done(&s.w);
}

// ---------------------------------------------------------------- a link that holds its breath

static void test_a_held_link_ends_calls_in_time_and_comes_back(void **state)
{
    (void)state;
    static struct storm s;
    storm_init(&s, wire_seed("held link"));
    for (int dir = TCP_PROXY_UP; dir <= TCP_PROXY_DOWN; dir++) {
        assert_int_equal(wire_call(s.c, ECHO, 0, NULL, PATIENCE_MS), STATUS_OK);
        struct tale t = {.err = ERR_INIT};
        struct rpc_stream *st = NULL;
        assert_int_equal(
            open_numbered(s.c, 1 << 30, 1000, "", time_deadline_in_ms(PATIENCE_MS), &st, &t.err),
            STATUS_OK);
        assert_true(read_one(st, &t, 0, 1000));
        tcp_proxy_set(s.p, (enum tcp_proxy_dir)dir, &(struct tcp_proxy_link){.hold = true});
        int64_t deadline = time_deadline_in_ms(PING_MS / 2);
        assert_int_equal(wire_call(s.c, ECHO, 0, NULL, PING_MS / 2), STATUS_DEADLINE_EXCEEDED);
        note_end(&s, deadline);
        while (read_one(st, &t, t.n, 1000)) {
        }
        assert_null(t.lie);
        assert_int_equal(t.s, STATUS_UNAVAILABLE); // no answer to a PING: the link is dead
        rpc_stream_free(st);
        tcp_proxy_set_both(s.p, &(struct tcp_proxy_link){0});
        check_recovery(&s);
    }
    assert_true(s.latest_ms <= MARGIN_MS);
    assert_true(wire_wait_quiet(&s.w, 1));
    rpc_client_free(s.c);
    tcp_proxy_free(s.p);
    world_done(&s.w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_slow_reader_gets_everything_and_costs_a_window),
        cmocka_unit_test(test_a_foul_link_loses_nothing_silently),
        cmocka_unit_test(test_a_held_link_ends_calls_in_time_and_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
