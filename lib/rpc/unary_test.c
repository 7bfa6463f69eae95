// Unary calls: every transport, every status, who may call, deadlines, cancellation, limits.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "rpc/test_util.h"

static void echo_ok(struct rpc_client *c, int method, const void *data, size_t n)
{
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    note_init(&req);
    req.number = 42;
    req.text = (char *)(uintptr_t) "hola";
    req.data = (ProtobufCBinaryData){.len = n, .data = (uint8_t *)(uintptr_t)data};
    enum status s = call_note(c, method, NULL, &req, &ret, &err);
    if (s != STATUS_OK)
        print_error("%s: %s\n", status_name(s), err.msg);
    assert_int_equal(s, STATUS_OK);
    assert_int_equal(ret->number, 42);
    assert_string_equal(ret->text, "hola");
    assert_int_equal(ret->data.len, n);
    if (n)
        assert_memory_equal(ret->data.data, data, n);
    rpc_message_free(ret);
}

static void test_echo_over_every_transport(void **state)
{
    (void)state;
    char ipc[64];
    snprintf(ipc, sizeof ipc, "ipc:///tmp/cauce-rpc-test-%d", (int)getpid());
    const char *urls[] = {"inproc://rpc-test", ipc, "tcp://127.0.0.1:0", "tcp://[::1]:0"};
    for (size_t i = 0; i < 2 * N_ELEMENTS(urls); i++) {
        struct world w;
        world_init(&w);
        world_serve(&w, urls[i / 2], i % 2);
        if (i >= 4)
            assert_null(strstr(w.url, ":0"));
        AUTO(rpc_client_free_p) struct rpc_client *c = world_client(&w);
        for (int k = 0; k < 20; k++) {
            echo_ok(c, ECHO, "abc", 3);
            echo_ok(c, ECHO_INLINE, NULL, 0);
        }
        assert_true(rpc_client_is_connected(c));
        struct rpc_client_stats st;
        rpc_client_get_stats(c, &st);
        assert_int_equal(st.n_calls, 40);
        assert_int_equal(st.n_failed, 0);
        assert_true(st.records_out > 0 && st.bytes_in > 0);
        rpc_client_free(TAKE(c));
        world_done(&w);
    }
}

static void test_large_messages_are_fragmented(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    size_t n = 3U << 20;
    uint8_t *big = malloc(n);
    assert_non_null(big);
    for (size_t i = 0; i < n; i++)
        big[i] = (uint8_t)(i * 7 + (i >> 11));
    echo_ok(c, ECHO, big, 1U << 20);
    echo_ok(c, ECHO_INLINE, big, 100000);
    echo_ok(c, ECHO, big, n);
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    note_init(&req);
    uint8_t *huge = calloc(1, RPC_MAX_MESSAGE_BYTES);
    req.data = (ProtobufCBinaryData){.len = RPC_MAX_MESSAGE_BYTES, .data = huge};
    assert_int_equal(call_note(c, ECHO, NULL, &req, &ret, &err), STATUS_RESOURCE_EXHAUSTED);
    free(huge);
    free(big);
    rpc_client_free(c);
    world_done(&w);
}

static void test_every_status_crosses_with_its_message(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "inproc://rpc-status", true);
    struct rpc_client *c = world_client(&w);
    for (int code = 1; code <= 16; code++) {
        Note req, *ret = NULL;
        struct err err = ERR_INIT;
        int64_t after = 0;
        struct rpc_opts o = {.ret_retry_after_ms = &after};
        note_init(&req);
        req.number = code;
        req.text = (char *)(uintptr_t) "qué pasó";
        assert_int_equal(call_note(c, FAIL, &o, &req, &ret, &err), code);
        assert_int_equal(after, 1234);
        assert_null(ret);
        if (code == STATUS_INTERNAL)
            assert_null(strstr(err.msg, "qué"));
        else
            assert_string_equal(err.msg, "qué pasó");
        if (code == STATUS_UNAVAILABLE)
            echo_ok(c, ECHO, "x", 1);
    }
    rpc_client_free(c);
    world_done(&w);
}

// One caller's text must not end the connection that everybody's calls share.
static void test_text_that_is_none_fails_its_own_call_only(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    Note req, *ret = NULL;
    world_init(&w);
    world_serve(&w, "inproc://rpc-text", true);
    struct rpc_client *c = world_client(&w);
    note_init(&req);
    req.number = STATUS_NOT_FOUND; // and a message that was cut within a character
    req.data = (ProtobufCBinaryData){.len = 9, .data = (uint8_t *)(uintptr_t) "no item \xc3"};
    assert_int_equal(call_note(c, FAIL, NULL, &req, &ret, &err), STATUS_NOT_FOUND);
    assert_string_equal(err.msg, "no item ?");
    struct rpc_opts key = {.idempotency_key = "\xff"}, route = {.route = "\xc3"};
    assert_int_equal(call_note(c, ECHO, &key, &req, &ret, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(call_note(c, ECHO, &route, &req, &ret, &err), STATUS_INVALID_ARGUMENT);
    echo_ok(c, ECHO, "x", 1);
    struct rpc_client_stats st;
    rpc_client_get_stats(c, &st);
    assert_int_equal(st.n_connects, 1);
    rpc_client_free(c);
    world_done(&w);
}

#define DENIED STATUS_PERMISSION_DENIED
#define WHO_ARE_YOU STATUS_UNAUTHENTICATED

static void test_roles_decide_who_may_call(void **state)
{
    (void)state;
    static const struct {
        const char *token;
        bool as_node;
        enum status who, user, creator, admin, origin;
    } rows[] = {
        {NULL, false, STATUS_OK, WHO_ARE_YOU, WHO_ARE_YOU, WHO_ARE_YOU, DENIED},
        {"user", false, STATUS_OK, STATUS_OK, DENIED, DENIED, DENIED},
        {"creator", false, STATUS_OK, STATUS_OK, STATUS_OK, DENIED, DENIED},
        {"admin", false, STATUS_OK, STATUS_OK, STATUS_OK, STATUS_OK, DENIED},
        {"forged", false, WHO_ARE_YOU, WHO_ARE_YOU, WHO_ARE_YOU, WHO_ARE_YOU, WHO_ARE_YOU},
        {NULL, true, STATUS_OK, WHO_ARE_YOU, WHO_ARE_YOU, WHO_ARE_YOU, STATUS_OK},
        {"user", true, STATUS_OK, STATUS_OK, DENIED, DENIED, STATUS_OK},
        {"forged", true, WHO_ARE_YOU, WHO_ARE_YOU, WHO_ARE_YOU, WHO_ARE_YOU, WHO_ARE_YOU},
    };
    for (int as_node = 0; as_node < 2; as_node++) {
        struct world w;
        world_init(&w);
        world_serve(&w, "inproc://rpc-roles", !as_node);
        struct rpc_client *c = world_client(&w);
        for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
            if (rows[i].as_node != as_node)
                continue;
            Note req, *ret = NULL;
            struct err err = ERR_INIT;
            struct rpc_opts o = {.token = rows[i].token};
            note_init(&req);
            assert_int_equal(call_note(c, WHO, &o, &req, &ret, &err), rows[i].who);
            if (ret && rows[i].token)
                assert_memory_equal(ret->text, rows[i].token, strlen(rows[i].token));
            else if (ret)
                assert_string_equal(ret->text, "-");
            rpc_message_free(ret);
            static const int methods[] = {FOR_USERS, FOR_CREATORS, FOR_ADMINS, FOR_ORIGINS};
            const enum status want[] = {rows[i].user, rows[i].creator, rows[i].admin,
                                        rows[i].origin};
            for (size_t k = 0; k < N_ELEMENTS(methods); k++) {
                ret = NULL;
                assert_int_equal(call_note(c, methods[k], &o, &req, &ret, &err), want[k]);
                rpc_message_free(ret);
            }
        }
        // Each good token was verified once, however many calls it made.
        int good = as_node ? 1 : 3;
        assert_true(w.n_verified <= good + 5);
        rpc_client_free(c);
        world_done(&w);
    }
}

static void test_expired_token_is_refused_though_cached(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "inproc://rpc-expiry", true);
    struct rpc_client *c = world_client(&w);
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    struct rpc_opts o = {.token = "short"};
    note_init(&req);
    int64_t until = time_mono_us() + 5000000;
    enum status s = call_note(c, FOR_USERS, &o, &req, &ret, &err);
    assert_int_equal(s, STATUS_OK);
    while (s == STATUS_OK && time_mono_us() < until) {
        rpc_message_free(ret);
        s = call_note(c, FOR_USERS, &o, &req, &ret, &err);
    }
    assert_int_equal(s, STATUS_UNAUTHENTICATED);
    rpc_client_free(c);
    world_done(&w);
}

static void test_deadline_ends_the_call_on_both_sides(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    echo_ok(c, ECHO, "x", 1);
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    note_init(&req);
    struct rpc_opts o = {.deadline_us = time_mono_us() + 5000000};
    assert_int_equal(call_note(c, ECHO, &o, &req, &ret, &err), STATUS_OK);
    rpc_message_free(ret);
    assert_true(w.last_left_ms > 3000 && w.last_left_ms <= 5000);
    // A busy machine may need longer until the handler begins.
    for (int64_t us = 60000; w.n_waiting == 0 && us < 10000000; us *= 2) {
        o.deadline_us = time_mono_us() + us;
        assert_int_equal(call_note(c, WAIT, &o, &req, &ret, &err), STATUS_DEADLINE_EXCEEDED);
        assert_true(time_mono_us() >= o.deadline_us);
    }
    assert_true(wait_for_count(&w.n_cancelled, 1));
    assert_int_equal(call_note(c, ECHO, &o, &req, &ret, &err), STATUS_DEADLINE_EXCEEDED);
    echo_ok(c, ECHO, "x", 1);
    rpc_client_free(c);
    world_done(&w);
}

static void *fire_when_waiting(void *ud)
{
    void **a = ud;
    struct world *w = a[0];
    wait_for_count(&w->n_waiting, 1);
    cancel_fire(a[1]);
    return NULL;
}

static void test_cancel_reaches_the_handler(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    struct cancel *k = cancel_new(NULL);
    void *args[] = {&w, k};
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, fire_when_waiting, args), 0);
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    struct rpc_opts o = {.cancel = k};
    note_init(&req);
    assert_int_equal(call_note(c, WAIT, &o, &req, &ret, &err), STATUS_CANCELLED);
    pthread_join(t, NULL);
    assert_true(wait_for_count(&w.n_cancelled, 1));
    cancel_unref(k);
    rpc_client_free(c);
    world_done(&w);
}

static void test_lost_client_cancels_its_calls(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    Note req;
    note_init(&req);
    struct rpc_stream *st = NULL;
    struct err err = ERR_INIT;
    req.number = 1 << 30;
    assert_int_equal(rpc_stream_open(c, &test_service.methods[COUNT], NULL, &req.base, &st, &err),
                     STATUS_OK);
    ProtobufCMessage *m = NULL;
    assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
    rpc_message_free(m);
    rpc_stream_free(st);
    assert_true(wait_for_count(&w.n_cancelled, 1));
    rpc_client_free(c);
    world_done(&w);
}

// ---------------------------------------------------------------- async

struct gathered {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int n, n_by_status[17];
};

static void gather(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    (void)err;
    struct gathered *g = ud;
    rpc_message_free(reply);
    pthread_mutex_lock(&g->lock);
    g->n++;
    g->n_by_status[s]++;
    pthread_cond_signal(&g->cond);
    pthread_mutex_unlock(&g->lock);
}

static void gathered_wait(struct gathered *g, int n)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_sec += 20;
    pthread_mutex_lock(&g->lock);
    while (g->n < n && pthread_cond_timedwait(&g->cond, &g->lock, &ts) == 0)
        continue;
    assert_int_equal(g->n, n);
    pthread_mutex_unlock(&g->lock);
}

#define GATHERED                                                                                   \
    {                                                                                              \
        PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0,                                    \
        {                                                                                          \
            0                                                                                      \
        }                                                                                          \
    }

static void test_async_calls_complete_once(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    struct gathered g = GATHERED;
    Note req;
    note_init(&req);
    // Started before the connection exists: they wait for it.
    for (int i = 0; i < 100; i++)
        rpc_unary_async(c, &test_service.methods[i % 2 ? ECHO : ECHO_INLINE], NULL, &req.base,
                        gather, &g);
    gathered_wait(&g, 100);
    assert_int_equal(g.n_by_status[STATUS_OK], 100);
    struct cancel *k = cancel_new(NULL);
    struct rpc_opts o = {.cancel = k};
    struct rpc_opts hurry = {.deadline_us = time_mono_us() + 50000};
    for (int i = 0; i < 4; i++)
        rpc_unary_async(c, &test_service.methods[WAIT], &o, &req.base, gather, &g);
    rpc_unary_async(c, &test_service.methods[WAIT], &hurry, &req.base, gather, &g);
    assert_true(wait_for_count(&w.n_waiting, 5));
    cancel_fire(k);
    gathered_wait(&g, 105);
    assert_int_equal(g.n_by_status[STATUS_CANCELLED], 4);
    assert_int_equal(g.n_by_status[STATUS_DEADLINE_EXCEEDED], 1);
    rpc_unary_async(c, &test_service.methods[WAIT], NULL, &req.base, gather, &g);
    assert_true(wait_for_count(&w.n_waiting, 6));
    rpc_client_free(c); // what is in flight is cancelled, and told
    gathered_wait(&g, 106);
    assert_int_equal(g.n_by_status[STATUS_CANCELLED], 5);
    cancel_unref(k);
    world_done(&w);
}

static void test_deferred_handler_answers_later(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "inproc://rpc-later", false);
    struct rpc_client *c = world_client(&w);
    for (int i = 0; i < 20; i++) {
        Note req, *ret = NULL;
        struct err err = ERR_INIT;
        note_init(&req);
        assert_int_equal(call_note(c, LATER, NULL, &req, &ret, &err), STATUS_OK);
        assert_string_equal(ret->text, "later");
        rpc_message_free(ret);
    }
    rpc_client_free(c);
    world_done(&w);
}

static void test_calls_beyond_the_limit_are_refused(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    struct err err = ERR_INIT;
    struct rpc_server_opts so = world_server_opts(&w);
    so.max_calls_per_conn = 8;
    w.s = rpc_server_new(&so, &err);
    world_add(&w, w.s);
    w.is_public = true;
    assert_int_equal(rpc_server_listen(w.s, "inproc://rpc-limit", true, w.url, &err), STATUS_OK);
    struct rpc_client *c = world_client(&w);
    struct gathered g = GATHERED;
    Note req;
    note_init(&req);
    struct cancel *k = cancel_new(NULL);
    struct rpc_opts o = {.cancel = k};
    for (int i = 0; i < 8; i++)
        rpc_unary_async(c, &test_service.methods[WAIT], &o, &req.base, gather, &g);
    assert_true(wait_for_count(&w.n_waiting, 8));
    Note *ret = NULL;
    assert_int_equal(call_note(c, ECHO, NULL, &req, &ret, &err), STATUS_RESOURCE_EXHAUSTED);
    cancel_fire(k);
    gathered_wait(&g, 8);
    assert_true(wait_for_count(&w.n_cancelled, 8));
    enum status s = STATUS_RESOURCE_EXHAUSTED; // until the handlers' ends have been counted
    for (int64_t until = time_mono_us() + 5000000; s != STATUS_OK && time_mono_us() < until;)
        s = call_note(c, ECHO, NULL, &req, &ret, &err);
    assert_int_equal(s, STATUS_OK);
    rpc_message_free(ret);
    cancel_unref(k);
    rpc_client_free(c);
    world_done(&w);
}

static void *many_calls(void *ud)
{
    for (int i = 0; i < 200; i++)
        echo_ok(ud, i % 3 ? ECHO : ECHO_INLINE, "0123456789", 10);
    return NULL;
}

static void test_many_threads_share_a_connection(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    pthread_t t[8];
    for (size_t i = 0; i < N_ELEMENTS(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, many_calls, c), 0);
    for (size_t i = 0; i < N_ELEMENTS(t); i++)
        pthread_join(t[i], NULL);
    struct rpc_server_stats st;
    rpc_server_get_stats(w.s, &st);
    assert_int_equal(st.n_calls, 1600);
    assert_int_equal(st.n_failed, 0);
    assert_int_equal(st.conns_open, 1);
    rpc_client_free(c);
    world_done(&w);
}

static void test_unknown_method_is_unimplemented(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "inproc://rpc-unknown", true);
    struct rpc_client *c = world_client(&w);
    static const struct rpc_method none = {.name = "test.Notes.None",
                                           .kind = RPC_UNARY,
                                           .allow = ROLE_ANON,
                                           .request = &note_descriptor,
                                           .reply = &note_descriptor};
    Note req;
    note_init(&req);
    struct err err = ERR_INIT;
    ProtobufCMessage *m = NULL;
    assert_int_equal(rpc_unary(c, &none, NULL, &req.base, &m, &err), STATUS_UNIMPLEMENTED);
    rpc_client_free(c);
    world_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo_over_every_transport),
        cmocka_unit_test(test_large_messages_are_fragmented),
        cmocka_unit_test(test_every_status_crosses_with_its_message),
        cmocka_unit_test(test_text_that_is_none_fails_its_own_call_only),
        cmocka_unit_test(test_roles_decide_who_may_call),
        cmocka_unit_test(test_expired_token_is_refused_though_cached),
        cmocka_unit_test(test_deadline_ends_the_call_on_both_sides),
        cmocka_unit_test(test_cancel_reaches_the_handler),
        cmocka_unit_test(test_lost_client_cancels_its_calls),
        cmocka_unit_test(test_async_calls_complete_once),
        cmocka_unit_test(test_deferred_handler_answers_later),
        cmocka_unit_test(test_calls_beyond_the_limit_are_refused),
        cmocka_unit_test(test_many_threads_share_a_connection),
        cmocka_unit_test(test_unknown_method_is_unimplemented),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
