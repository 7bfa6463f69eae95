// What a server does not take: too much at once, what waited too long, what comes when it leaves;
// and where that goes.
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "rpc/test_site.h"

// ---------------------------------------------------------------- limits

static void test_too_many_at_once_are_shed(void **state)
{
    (void)state;
    struct site a, b;
    site_serve(&a, true);
    site_serve(&b, true);
    struct rpc_client *c = site_client((struct site *[]){&a}, 1);
    struct pending p[3];
    pending_begin(c, HOLD_TWO, "", NULL, &p[0]);
    pending_begin(c, HOLD_TWO, "", NULL, &p[1]);
    assert_true(wait_for_count(&a.n_holding, 2));
    const struct rpc_opts once = {.max_attempts = 1};
    pending_begin(c, HOLD_TWO, "", &once, &p[2]);
    assert_int_equal(pending_end(&p[2]), STATUS_UNAVAILABLE);
    assert_string_equal(p[2].details.reason, RPC_REASON_OVERLOADED);
    assert_true(p[2].details.retryable);
    assert_true(p[2].details.retry_after_ms > 0);
    assert_non_null(strstr(p[2].msg, "at most 2"));
    rpc_details_done(&p[2].details);
    site_call_ok(c, SEE, NULL, 0, ""); // other methods go on
    struct rpc_method_stats s = site_stats(&a, HOLD_TWO);
    assert_int_equal(s.n_shed, 1);
    assert_int_equal(s.n_started, 3);
    assert_int_equal(s.in_flight, 2);
    assert_int_equal(s.by_status[STATUS_UNAVAILABLE], 1);

    // No handler saw it, so it goes elsewhere though its method is not idempotent; and the server
    // is not thought to be broken.
    struct rpc_client *both = site_client((struct site *[]){&a, &b}, 2);
    site_call_ok(both, SEE, NULL, 0, "");
    site_release(&b);
    for (int i = 0; i < 8; i++)
        site_call_ok(both, HOLD_TWO, NULL, 0, "");
    assert_int_equal(b.n_holding, 8);
    struct rpc_client_stats cs;
    rpc_client_get_stats(both, &cs);
    assert_false(cs.breaker_open);

    site_release(&a);
    assert_int_equal(pending_end(&p[0]), STATUS_OK);
    assert_int_equal(pending_end(&p[1]), STATUS_OK);
    site_call_ok(c, HOLD_TWO, NULL, 0, ""); // there is room again
    rpc_client_free(both);
    rpc_client_free(c);
    site_done(&a);
    site_done(&b);
}
static void test_what_waited_too_long_is_shed(void **state)
{
    (void)state;
    struct site t;
    site_init(&t);
    t.narrow = work_pool_new("narrow", 1, 100);
    site_new_server(&t);
    site_listen(&t, true);
    struct rpc_client *c = site_client((struct site *[]){&t}, 1);
    struct pending hold, hasty, patient;
    const struct rpc_opts once = {.max_attempts = 1};
    pending_begin(c, HOLD, "", NULL, &hold);
    assert_true(wait_for_count(&t.n_holding, 1));
    pending_begin(c, HASTY, "", &once, &hasty);
    pending_begin(c, SEE, "", NULL, &patient);
    struct looked waits = {.site = &t, .method = HASTY, .state = RPC_CALL_QUEUED, .age_ms = 3};
    assert_true(eventually(site_has_call, &waits));
    site_release(&t);
    assert_int_equal(pending_end(&hold), STATUS_OK);
    assert_int_equal(pending_end(&hasty), STATUS_UNAVAILABLE);
    assert_string_equal(hasty.details.reason, RPC_REASON_OVERLOADED);
    rpc_details_done(&hasty.details);
    assert_int_equal(pending_end(&patient), STATUS_OK);
    assert_int_equal(t.n_seen, 1);
    assert_int_equal(site_stats(&t, HASTY).n_shed, 1);
    rpc_client_free(c);
    site_done(&t);
}

static void test_what_no_thread_takes_is_shed(void **state)
{
    (void)state;
    struct site t;
    site_init(&t);
    t.narrow = work_pool_new("narrow", 1, 1);
    site_new_server(&t);
    site_listen(&t, true);
    struct rpc_client *c = site_client((struct site *[]){&t}, 1);
    struct pending hold, queued, shed;
    const struct rpc_opts once = {.max_attempts = 1};
    pending_begin(c, HOLD, "", NULL, &hold);
    assert_true(wait_for_count(&t.n_holding, 1));
    pending_begin(c, SEE, "", &once, &queued);
    pending_begin(c, SEE, "", &once, &shed);
    assert_int_equal(pending_end(&shed), STATUS_UNAVAILABLE);
    assert_string_equal(shed.details.reason, RPC_REASON_OVERLOADED);
    assert_int_equal(shed.details.retry_after_ms, 1000);
    rpc_details_done(&shed.details);
    site_call_ok(c, SEE_INLINE, NULL, 0, "");
    site_release(&t);
    assert_int_equal(pending_end(&hold), STATUS_OK);
    assert_int_equal(pending_end(&queued), STATUS_OK);
    rpc_client_free(c);
    site_done(&t);
}
static bool has_shed(void *ud)
{
    return site_stats(ud, SEE).n_shed > 0;
}

static bool has_dripped(void *site)
{
    return site_stats(site, DRIP).by_status[STATUS_OK] == 1;
}

static unsigned open_calls(const struct site *t)
{
    struct rpc_server_stats s;
    rpc_server_get_stats(t->s, &s);
    return s.calls_open;
}

static bool has_no_open_call(void *site)
{
    return open_calls(site) == 0;
}

// Its handler is through, its last message waits for credit and its status behind that: then its
// caller leaves.
static void test_a_stream_that_is_left_at_its_end_makes_room(void **state)
{
    (void)state;
    struct site t;
    site_serve(&t, true);
    struct rpc_client *c = site_client((struct site *[]){&t}, 1);
    static uint8_t data[1000];
    Note n;
    note_init(&n);
    n.number = 65; // of which a stream's first credit, 64 KiB, takes 64
    n.data = (ProtobufCBinaryData){.len = sizeof data, .data = data};
    struct rpc_stream *st = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(rpc_stream_open(c, &own_methods[DRIP], NULL, &n.base, &st, &err), STATUS_OK);
    assert_true(eventually(has_dripped, &t));
    assert_int_equal(open_calls(&t), 1);
    rpc_stream_free(st);
    assert_true(eventually(has_no_open_call, &t));
    rpc_client_free(c);
    site_done(&t);
}

static void test_attempts_are_numbered(void **state)
{
    (void)state;
    struct site t;
    site_init(&t);
    t.narrow = work_pool_new("narrow", 1, 1);
    site_new_server(&t);
    site_listen(&t, true);
    struct rpc_client *c = site_client((struct site *[]){&t}, 1);
    struct pending hold, queued, again;
    pending_begin(c, HOLD_TWO, "", NULL, &hold);
    assert_true(wait_for_count(&t.n_holding, 1));
    pending_begin(c, SEE, "", NULL, &queued);
    pending_begin(c, SEE, "", NULL, &again); // shed, and comes again a second later
    assert_true(eventually(has_shed, &t));
    site_release(&t);
    assert_int_equal(pending_end(&queued), STATUS_OK);
    assert_int_equal(pending_end(&again), STATUS_OK);
    assert_int_equal(site_seen(&t).attempt, 2);
    assert_int_equal(pending_end(&hold), STATUS_OK);
    rpc_client_free(c);
    site_done(&t);
}
// ---------------------------------------------------------------- leaving

struct load {
    struct rpc_client *c;
    atomic_bool stop;
    _Atomic int n_calls, n_streams, n_failed;
};

static void load_failed(struct load *l, const char *what, const struct err *err)
{
    l->n_failed++;
    print_error("%s: %s: %s\n", what, status_name(err->code), err->msg);
}

static void *load_calls(void *ud)
{
    struct load *l = ud;
    while (!l->stop) {
        struct err err = ERR_INIT;
        if (site_call(l->c, SEE, NULL, 1, "", &err) != STATUS_OK)
            load_failed(l, "call", &err);
        l->n_calls++;
    }
    return NULL;
}

// Every note of a server stream, in order.
static enum status read_drip(struct rpc_stream *s, int64_t n, struct err *err)
{
    for (int64_t i = 0; i <= n; i++) {
        ProtobufCMessage *m = NULL;
        enum status st = rpc_stream_recv(s, &m, err);
        bool ok = i < n ? m && ((Note *)(void *)m)->number == i : !m;
        rpc_message_free(m);
        if (st != STATUS_OK || !ok)
            return st != STATUS_OK ? st : err_set(err, STATUS_DATA_LOSS, "note %d", (int)i);
    }
    return STATUS_OK;
}

static enum status write_mirror(struct rpc_stream *s, int64_t n, struct err *err)
{
    Note note;
    note_init(&note);
    enum status st = STATUS_OK;
    for (note.number = 1; st == STATUS_OK && note.number <= n; note.number++) {
        ProtobufCMessage *m = NULL;
        st = rpc_stream_send(s, &note.base, err);
        if (st == STATUS_OK)
            st = rpc_stream_recv(s, &m, err);
        if (st == STATUS_OK && (!m || ((Note *)(void *)m)->number != note.number))
            st = err_set(err, STATUS_DATA_LOSS, "note %d did not come back", (int)note.number);
        rpc_message_free(m);
    }
    ProtobufCMessage *none = NULL;
    if (st == STATUS_OK)
        st = rpc_stream_close_send(s, err);
    if (st == STATUS_OK)
        st = rpc_stream_recv(s, &none, err);
    rpc_message_free(none);
    return st;
}

static void *load_streams(void *ud)
{
    struct load *l = ud;
    for (int i = 0; !l->stop; i++) {
        struct err err = ERR_INIT;
        struct rpc_stream *s = NULL;
        Note n;
        note_init(&n);
        n.number = 30;
        bool drip = i % 2;
        enum status st = rpc_stream_open(l->c, &own_methods[drip ? DRIP : MIRROR], NULL,
                                         drip ? &n.base : NULL, &s, &err);
        if (st == STATUS_OK)
            st = drip ? read_drip(s, 30, &err) : write_mirror(s, 10, &err);
        if (st != STATUS_OK)
            load_failed(l, drip ? "server stream" : "bidi stream", &err);
        rpc_stream_free(s);
        l->n_streams++;
    }
    return NULL;
}

#define N_CALLERS 6
#define N_STREAMERS 4

// Site a stops while l.c, which knows both sites in some way, is used by many.
static void leave_under_load(struct rpc_client *c, struct site *a, struct site *b)
{
    struct load l = {.c = c};
    pthread_t threads[N_CALLERS + N_STREAMERS];
    for (size_t i = 0; i < N_ELEMENTS(threads); i++)
        assert_int_equal(
            pthread_create(&threads[i], NULL, i < N_CALLERS ? load_calls : load_streams, &l), 0);
    assert_true(wait_for_count(&a->n_seen, 50)); // both are in use
    assert_true(wait_for_count(&b->n_seen, 50));
    assert_true(wait_for_count(&l.n_streams, 8));
    rpc_server_stop(a->s, 60000);
    assert_int_equal(l.n_failed, 0);
    int n_calls = l.n_calls, n_streams = l.n_streams;
    assert_true(wait_for_count(&l.n_calls, n_calls + 50)); // all of it goes on elsewhere
    assert_true(wait_for_count(&l.n_streams, n_streams + 8));
    l.stop = true;
    for (size_t i = 0; i < N_ELEMENTS(threads); i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(l.n_failed, 0);
    assert_int_equal(a->n_seen + b->n_seen, l.n_calls); // and none of it twice
    struct rpc_client_stats cs;
    rpc_client_get_stats(c, &cs);
    assert_int_equal(cs.n_retries, 0); // what never started costs no budget
}

static void test_a_server_leaves_without_failing_a_call(void **state)
{
    (void)state;
    struct site a, b;
    site_serve(&a, true);
    site_serve(&b, true);
    struct rpc_client *c = site_client((struct site *[]){&a, &b}, 2);
    leave_under_load(c, &a, &b);
    rpc_client_free(c);
    site_done(&a);
    site_done(&b);
}

// Callers whose calls are passed on notice as little.
static void test_a_server_behind_a_proxy_leaves_without_failing_a_call(void **state)
{
    (void)state;
    struct site a, b;
    struct world w;
    struct err err = ERR_INIT;
    char url[RPC_URL_SIZE];
    site_serve(&a, true);
    site_serve(&b, true);
    world_init(&w);
    struct rpc_server_opts so = world_server_opts(&w);
    struct rpc_server *gate = rpc_server_new(&so, &err);
    struct rpc_client *up = site_client((struct site *[]){&a, &b}, 2);
    const struct rpc_service *known[] = {&own_service};
    rpc_server_set_router(gate, known, 1, site_route, up);
    assert_int_equal(rpc_server_listen(gate, "tcp://127.0.0.1:0", true, url, &err), STATUS_OK);
    struct rpc_client *c = world_client_to(&w, url, true);
    leave_under_load(c, &a, &b);
    rpc_client_free(c);
    rpc_server_free(gate);
    rpc_client_free(up);
    world_done(&w);
    site_done(&a);
    site_done(&b);
}

static void test_what_waited_when_the_server_stopped_goes_elsewhere(void **state)
{
    (void)state;
    struct site a, b;
    struct err err = ERR_INIT;
    site_init(&a);
    a.narrow = work_pool_new("narrow", 1, 100);
    site_new_server(&a);
    site_listen(&a, true);
    site_serve(&b, true);
    struct rpc_client *c = site_client((struct site *[]){&a}, 1);
    struct pending hold, p[8];
    const struct rpc_opts keyed = {.idempotency_key = "k"}; // the answer may not get through
    pending_begin(c, HOLD, "", NULL, &hold);
    assert_true(wait_for_count(&a.n_holding, 1));
    for (int i = 0; i < 8; i++)
        pending_begin(c, SEE, "", &keyed, &p[i]);
    struct looked queued = {.site = &a, .method = SEE, .state = RPC_CALL_QUEUED, .n_wanted = 8};
    assert_true(eventually(site_has_call, &queued));
    struct rpc_endpoint e[2] = {{.url = a.url}, {.url = b.url}};
    memcpy(e[0].key, a.w.server.public_key, 32);
    memcpy(e[1].key, b.w.server.public_key, 32);
    assert_int_equal(rpc_client_set_endpoints(c, e, 2, &err), STATUS_OK);
    rpc_server_stop(a.s, 0); // its one handler is told to stop; the others never begin
    for (int i = 0; i < 8; i++)
        assert_int_equal(pending_end(&p[i]), STATUS_OK);
    assert_int_equal(a.n_seen, 0);
    assert_int_equal(b.n_seen, 8);
    assert_int_not_equal(pending_end(&hold), STATUS_OK);
    rpc_details_done(&hold.details);
    rpc_client_free(c);
    site_done(&a);
    site_done(&b);
}
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_too_many_at_once_are_shed),
        cmocka_unit_test(test_what_waited_too_long_is_shed),
        cmocka_unit_test(test_what_no_thread_takes_is_shed),
        cmocka_unit_test(test_a_stream_that_is_left_at_its_end_makes_room),
        cmocka_unit_test(test_attempts_are_numbered),
        cmocka_unit_test(test_a_server_leaves_without_failing_a_call),
        cmocka_unit_test(test_a_server_behind_a_proxy_leaves_without_failing_a_call),
        cmocka_unit_test(test_what_waited_when_the_server_stopped_goes_elsewhere),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
