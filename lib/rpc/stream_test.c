// Streams: each direction, deferred, slow readers beside fast ones, forwarding.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "rpc/test_util.h"

#define LONG_MS 30000

static struct rpc_stream *open_stream(struct rpc_client *c, int method, int64_t number,
                                      size_t bytes)
{
    static uint8_t data[65536];
    Note req;
    note_init(&req);
    req.number = number;
    req.data = (ProtobufCBinaryData){.len = bytes, .data = data};
    struct rpc_stream *st = NULL;
    struct err err = ERR_INIT;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(LONG_MS)};
    const struct rpc_method *m = &test_service.methods[method];
    enum status s =
        rpc_stream_open(c, m, &o, m->kind == RPC_SERVER_STREAM ? &req.base : NULL, &st, &err);
    if (s != STATUS_OK)
        print_error("%s\n", err.msg);
    assert_int_equal(s, STATUS_OK);
    return st;
}

static bool recv_note(struct rpc_stream *st, int64_t *ret_number)
{
    ProtobufCMessage *m = NULL;
    struct err err = ERR_INIT;
    enum status s = rpc_stream_recv(st, &m, &err);
    if (s != STATUS_OK)
        print_error("recv: %s: %s\n", status_name(s), err.msg);
    assert_int_equal(s, STATUS_OK);
    if (m)
        *ret_number = ((Note *)(void *)m)->number;
    rpc_message_free(m);
    return m != NULL;
}

static void expect_numbers(struct rpc_stream *st, int64_t from, int64_t to)
{
    int64_t n;
    for (int64_t i = from; i < to; i++) {
        assert_true(recv_note(st, &n));
        assert_int_equal(n, i);
    }
}

static void expect_end(struct rpc_stream *st)
{
    int64_t n;
    assert_false(recv_note(st, &n));
    assert_false(recv_note(st, &n)); // and again
    rpc_stream_free(st);
}

static void send_note(struct rpc_stream *st, int64_t number, size_t bytes)
{
    static uint8_t data[256 << 10];
    Note n;
    struct err err = ERR_INIT;
    note_init(&n);
    n.number = number;
    n.data = (ProtobufCBinaryData){.len = bytes, .data = data};
    enum status s = rpc_stream_send(st, &n.base, &err);
    if (s != STATUS_OK)
        print_error("send: %s: %s\n", status_name(s), err.msg);
    assert_int_equal(s, STATUS_OK);
}

static void check_server_stream(struct rpc_client *c, int method)
{
    struct rpc_stream *st = open_stream(c, method, 500, 1000);
    expect_numbers(st, 0, 500);
    expect_end(st);
    expect_end(open_stream(c, method, 0, 0));
}

static void check_client_stream(struct rpc_client *c, int64_t count, size_t bytes)
{
    struct rpc_stream *st = open_stream(c, SUM, 0, 0);
    struct err err = ERR_INIT;
    for (int64_t i = 0; i < count; i++)
        send_note(st, i, bytes);
    assert_int_equal(rpc_stream_close_send(st, &err), STATUS_OK);
    ProtobufCMessage *m = NULL;
    assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
    assert_non_null(m);
    assert_int_equal(((Note *)(void *)m)->number, count * (count - 1) / 2);
    assert_int_equal(strtoll(((Note *)(void *)m)->text, NULL, 10), count);
    rpc_message_free(m);
    expect_end(st);
}

static void check_bidi(struct rpc_client *c)
{
    struct rpc_stream *st = open_stream(c, CHAT, 0, 0);
    struct err err = ERR_INIT;
    int64_t n;
    for (int64_t i = 0; i < 200; i++) {
        send_note(st, i, (size_t)i * 100);
        assert_true(recv_note(st, &n));
        assert_int_equal(n, i + 1);
    }
    assert_int_equal(rpc_stream_close_send(st, &err), STATUS_OK);
    expect_end(st);
}

static void check_all(struct rpc_client *c)
{
    check_server_stream(c, COUNT);
    check_server_stream(c, TICKER);
    check_client_stream(c, 500, 1000);
    // Larger than the window: the next is being assembled while the reader is busy with this one.
    check_client_stream(c, 40, 250 << 10);
    check_bidi(c);
}

static void test_streams_over_every_transport(void **state)
{
    (void)state;
    const char *urls[] = {"inproc://rpc-streams", "tcp://127.0.0.1:0"};
    for (size_t i = 0; i < 2 * N_ELEMENTS(urls); i++) {
        struct world w;
        world_init(&w);
        world_serve(&w, urls[i / 2], i % 2);
        struct rpc_client *c = world_client(&w);
        check_all(c);
        rpc_client_free(c);
        world_done(&w);
    }
}

// ---------------------------------------------------------------- slow and fast together

struct puller {
    struct rpc_client *c;
    int64_t n;
    bool ok;
};

static void *read_all(void *ud)
{
    struct puller *r = ud;
    struct rpc_stream *st = open_stream(r->c, COUNT, r->n, 200);
    int64_t got = 0, number = 0;
    while (recv_note(st, &number) && number == got)
        got++;
    r->ok = got == r->n;
    rpc_stream_free(st);
    return NULL;
}

static void test_slow_reader_loses_nothing_and_delays_nobody(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    struct rpc_stream *slow = open_stream(c, COUNT, 10000, 500);
    expect_numbers(slow, 0, 1);
    // While nobody reads the slow one, eight others run to their end.
    struct puller r[8];
    pthread_t t[8];
    for (size_t i = 0; i < N_ELEMENTS(r); i++) {
        r[i] = (struct puller){c, 2000, false};
        assert_int_equal(pthread_create(&t[i], NULL, read_all, &r[i]), 0);
    }
    for (size_t i = 0; i < N_ELEMENTS(r); i++) {
        pthread_join(t[i], NULL);
        assert_true(r[i].ok);
    }
    struct rpc_server_stats st;
    rpc_server_get_stats(w.s, &st);
    // Bounded: of the slow stream's 5 MB no more than a window has left the server.
    assert_true(st.bytes_out < 8 * 2000 * 300 + (1 << 20));
    expect_numbers(slow, 1, 10000);
    expect_end(slow);
    rpc_client_free(c);
    world_done(&w);
}

static void test_sender_waits_for_a_reader_that_does_not_read(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    Note n;
    note_init(&n);
    static uint8_t data[20000];
    n.data = (ProtobufCBinaryData){.len = sizeof data, .data = data};
    struct err err = ERR_INIT;
    struct rpc_stream *st = NULL;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(300)};
    // The echo's replies are not read, so in the end nothing can be sent either.
    assert_int_equal(rpc_stream_open(c, &test_service.methods[CHAT], &o, NULL, &st, &err),
                     STATUS_OK);
    enum status s = STATUS_OK;
    size_t sent = 0;
    for (; s == STATUS_OK && sent < 1000; sent++)
        s = rpc_stream_send(st, &n.base, &err);
    assert_int_equal(s, STATUS_DEADLINE_EXCEEDED);
    assert_true(sent > 3 && sent < 200);
    rpc_stream_free(st);
    rpc_client_free(c);
    world_done(&w);
}

// ---------------------------------------------------------------- forwarding

struct gateway {
    struct world w;        // the service behind, and keys
    struct rpc_server *s;  // the gateway
    struct rpc_client *up; // its connection to the service
    struct rpc_client *c;  // a client of the gateway
    char url[RPC_URL_SIZE];
};

static enum status route(void *ud, const struct rpc_method *m, const char *name,
                         struct rpc_client **ret, struct err *err)
{
    struct gateway *g = ud;
    (void)m;
    if (strcmp(name, "nowhere") == 0)
        return err_set(err, STATUS_NOT_FOUND, "no backend of that name");
    *ret = g->up;
    return STATUS_OK;
}

static void gateway_init(struct gateway *g)
{
    static const struct rpc_service *const known[] = {&test_service};
    struct err err = ERR_INIT;
    world_init(&g->w);
    world_serve(&g->w, "tcp://127.0.0.1:0", false);
    g->up = world_client(&g->w);
    struct rpc_server_opts o = world_server_opts(&g->w);
    g->s = rpc_server_new(&o, &err);
    assert_non_null(g->s);
    rpc_server_set_router(g->s, known, 1, route, g);
    assert_int_equal(rpc_server_listen(g->s, "tcp://127.0.0.1:0", true, g->url, &err), STATUS_OK);
    g->c = world_client_to(&g->w, g->url, true);
}

static void gateway_done(struct gateway *g)
{
    rpc_client_free(g->c);
    rpc_server_free(g->s);
    rpc_client_free(g->up);
    world_done(&g->w);
}

static void test_gateway_forwards_every_kind(void **state)
{
    (void)state;
    struct gateway g;
    gateway_init(&g);
    static uint8_t big[1 << 20];
    memset(big, 7, sizeof big);
    for (size_t n = 1; n <= sizeof big; n *= 16) {
        Note req, *ret = NULL;
        struct err err = ERR_INIT;
        struct rpc_opts o = {.deadline_us = time_deadline_in_ms(LONG_MS)};
        note_init(&req);
        req.number = (int64_t)n;
        req.data = (ProtobufCBinaryData){.len = n, .data = big};
        assert_int_equal(call_note(g.c, ECHO, &o, &req, &ret, &err), STATUS_OK);
        assert_int_equal(ret->number, n);
        assert_int_equal(ret->data.len, n);
        assert_memory_equal(ret->data.data, big, n);
        assert_true(g.w.last_left_ms > 0 && g.w.last_left_ms <= LONG_MS); // shrinks on the way
        rpc_message_free(ret);
    }
    check_all(g.c);
    gateway_done(&g);
}

static void test_gateway_passes_status_token_and_no_node_role(void **state)
{
    (void)state;
    struct gateway g;
    gateway_init(&g);
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    struct rpc_opts user = {.token = "user"}, nowhere = {.route = "nowhere"};
    note_init(&req);
    req.number = STATUS_ALREADY_EXISTS;
    req.text = (char *)(uintptr_t) "twice";
    assert_int_equal(call_note(g.c, FAIL, NULL, &req, &ret, &err), STATUS_ALREADY_EXISTS);
    assert_string_equal(err.msg, "twice");
    assert_int_equal(call_note(g.c, WHO, &user, &req, &ret, &err), STATUS_OK);
    assert_string_equal(ret->text, "user-id");
    rpc_message_free(ret);
    ret = NULL;
    assert_int_equal(call_note(g.c, FOR_USERS, NULL, &req, &ret, &err), STATUS_UNAUTHENTICATED);
    // The gateway's own node role (origin, in this test) must not open what is for origins.
    assert_int_equal(call_note(g.c, FOR_ORIGINS, NULL, &req, &ret, &err), STATUS_PERMISSION_DENIED);
    assert_int_equal(call_note(g.up, FOR_ORIGINS, NULL, &req, &ret, &err), STATUS_OK);
    rpc_message_free(ret);
    ret = NULL;
    assert_int_equal(call_note(g.c, ECHO, &nowhere, &req, &ret, &err), STATUS_NOT_FOUND);
    gateway_done(&g);
}

static bool is_elsewhere(void *ud, const struct rpc_method *m, const char *name)
{
    (void)ud;
    (void)m;
    return strcmp(name, "here") != 0;
}

static uint64_t n_calls_behind(struct gateway *g)
{
    struct rpc_server_stats st;
    rpc_server_get_stats(g->w.s, &st);
    return st.n_calls;
}

static void expect_note(struct gateway *g, const char *token, const char *name, enum status want,
                        bool is_behind)
{
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    struct rpc_opts o = {
        .token = token, .route = name, .deadline_us = time_deadline_in_ms(LONG_MS)};
    uint64_t before = n_calls_behind(g);
    note_init(&req);
    assert_int_equal(call_note(g->c, ECHO, &o, &req, &ret, &err), want);
    assert_int_equal(n_calls_behind(g) - before, is_behind);
    rpc_message_free(ret);
}

// The gateway serves the same methods itself.
static void test_gateway_forwards_what_its_route_means_for_another(void **state)
{
    (void)state;
    static const struct rpc_service *const known[] = {&test_service};
    struct gateway g;
    struct err err = ERR_INIT;
    world_init(&g.w);
    world_serve(&g.w, "tcp://127.0.0.1:0", false);
    g.up = world_client(&g.w);
    struct rpc_server_opts so = world_server_opts(&g.w);
    g.s = rpc_server_new(&so, &err);
    assert_non_null(g.s);
    world_add(&g.w, g.s);
    rpc_server_set_router(g.s, known, 1, route, &g);
    rpc_server_set_elsewhere(g.s, is_elsewhere, &g, ROLE_ADMIN);
    assert_int_equal(rpc_server_listen(g.s, "tcp://127.0.0.1:0", true, g.url, &err), STATUS_OK);
    g.c = world_client_to(&g.w, g.url, true);

    expect_note(&g, NULL, NULL, STATUS_OK, false);
    expect_note(&g, NULL, "here", STATUS_OK, false);
    for (int i = 0; i < 2; i++) { // the second time the token is known
        expect_note(&g, "nobody's", "there", STATUS_UNAUTHENTICATED, false);
        expect_note(&g, "user", "there", STATUS_PERMISSION_DENIED, false);
        expect_note(&g, "admin", "there", STATUS_OK, true);
        expect_note(&g, "admin", "nowhere", STATUS_NOT_FOUND, false);
        expect_note(&g, "admin", "here", STATUS_OK, false);
    }
    expect_note(&g, NULL, "there", STATUS_UNAUTHENTICATED, false); // though anybody may echo

    struct rpc_opts o = {.token = "admin", .route = "there"};
    Note req, *got = NULL;
    struct rpc_stream *st = NULL;
    note_init(&req);
    req.number = 20;
    assert_int_equal(rpc_stream_open(g.c, &test_service.methods[COUNT], &o, &req.base, &st, &err),
                     STATUS_OK);
    expect_numbers(st, 0, 20);
    assert_int_equal(rpc_stream_recv(st, (ProtobufCMessage **)(void *)&got, &err), STATUS_OK);
    assert_null(got);
    rpc_stream_free(st);
    gateway_done(&g);
}

static void test_gateway_cancels_upstream_when_the_client_goes(void **state)
{
    (void)state;
    struct gateway g;
    gateway_init(&g);
    struct rpc_stream *st = open_stream(g.c, COUNT, 1 << 30, 1000);
    expect_numbers(st, 0, 10);
    rpc_stream_cancel(st);
    rpc_stream_free(st);
    assert_true(wait_for_count(&g.w.n_cancelled, 1));
    struct rpc_stream *lost = open_stream(g.c, COUNT, 1 << 30, 1000);
    expect_numbers(lost, 0, 10);
    rpc_stream_free(lost);
    rpc_client_free(TAKE(g.c)); // without a goodbye
    assert_true(wait_for_count(&g.w.n_cancelled, 2));
    gateway_done(&g);
}

static void test_gateway_reports_a_lost_service(void **state)
{
    (void)state;
    struct gateway g;
    gateway_init(&g);
    struct rpc_stream *st = open_stream(g.c, COUNT, 1 << 30, 1000);
    expect_numbers(st, 0, 10);
    world_stop(&g.w);
    struct err err = ERR_INIT;
    enum status s = STATUS_OK;
    while (s == STATUS_OK) {
        ProtobufCMessage *m = NULL;
        s = rpc_stream_recv(st, &m, &err);
        if (s == STATUS_OK)
            assert_non_null(m);
        rpc_message_free(m);
    }
    assert_int_equal(s, STATUS_UNAVAILABLE);
    rpc_stream_free(st);
    gateway_done(&g);
}

struct gate {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool is_open;
    _Atomic int n_entered, n_left;
};

static void pass_gate(void *ud)
{
    struct gate *g = ud;
    g->n_entered++;
    pthread_mutex_lock(&g->lock);
    while (!g->is_open)
        pthread_cond_wait(&g->cond, &g->lock);
    pthread_mutex_unlock(&g->lock);
    g->n_left++;
}

static void echo_inline(struct rpc_client *c)
{
    Note req, *reply = NULL;
    struct err err = ERR_INIT;
    note_init(&req);
    assert_int_equal(call_note(c, ECHO_INLINE, NULL, &req, &reply, &err), STATUS_OK);
    rpc_message_free(&reply->base);
}

// Credit comes while the pool takes no more tasks: the writer is woken when it does again.
static void test_a_full_pool_delays_a_deferred_writer_only(void **state)
{
    (void)state;
    struct world w;
    struct gate g = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    world_init(&w);
    work_pool_free(w.pool);
    w.pool = work_pool_new("one", 1, 1);
    assert_non_null(w.pool);
    world_serve(&w, "tcp://127.0.0.1:0", false);
    struct rpc_client *c = world_client(&w);
    struct rpc_stream *st = open_stream(c, TICKER, 300, 0);
    expect_numbers(st, 0, 1);
    echo_inline(c); // by now the writer rests
    // One task holds the only thread; another fills the queue unless the writer's wake-up does.
    while (!work_pool_submit(w.pool, pass_gate, &g)) {
    }
    assert_true(wait_for_count(&g.n_entered, 1));
    int n_gates = 1 + work_pool_submit(w.pool, pass_gate, &g);
    expect_numbers(st, 1, 50);
    echo_inline(c); // the server has the credit once it answers what came after it
    pthread_mutex_lock(&g.lock);
    g.is_open = true;
    pthread_cond_broadcast(&g.cond);
    pthread_mutex_unlock(&g.lock);
    expect_numbers(st, 50, 300);
    expect_end(st);
    assert_true(wait_for_count(&g.n_left, n_gates));
    rpc_client_free(c);
    world_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_over_every_transport),
        cmocka_unit_test(test_slow_reader_loses_nothing_and_delays_nobody),
        cmocka_unit_test(test_sender_waits_for_a_reader_that_does_not_read),
        cmocka_unit_test(test_gateway_forwards_every_kind),
        cmocka_unit_test(test_gateway_passes_status_token_and_no_node_role),
        cmocka_unit_test(test_gateway_forwards_what_its_route_means_for_another),
        cmocka_unit_test(test_gateway_cancels_upstream_when_the_client_goes),
        cmocka_unit_test(test_gateway_reports_a_lost_service),
        cmocka_unit_test(test_a_full_pool_delays_a_deferred_writer_only),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
