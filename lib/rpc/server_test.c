// What a server does around its handlers: context of calls, traces, interceptors, log, metrics,
// details, and what can be seen of it.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/str.h"
#include "rpc/test_site.h"

// ---------------------------------------------------------------- traces

static void test_traceparent_is_read_and_written(void **state)
{
    (void)state;
    static const char good[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    static const struct {
        const char *text;
        bool ok;
    } cases[] = {
        {good, true},
        {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true},
        {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more", false},
        {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", false},
        {"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false},
        {"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false},
        {"00-00000000000000000000000000000000-b7ad6b7169203331-01", false},
        {"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false},
        {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0", false},
        {"00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01", false},
        {"", false},
        {NULL, false},
    };
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        struct rpc_trace t = {.flags = 77};
        assert_int_equal(rpc_trace_parse(cases[i].text, &t), cases[i].ok);
        assert_int_equal(t.flags, cases[i].ok ? 1 : 77);
    }
    struct rpc_trace t, made;
    char text[RPC_TRACEPARENT_SIZE];
    assert_true(rpc_trace_parse(good, &t));
    rpc_trace_format(text, &t);
    assert_string_equal(text, good);
    rpc_trace_new(&made);
    assert_true(rpc_trace_is_set(&made) && made.flags == 1);
    rpc_trace_format(text, &made);
    assert_true(rpc_trace_parse(text, &t));
    assert_memory_equal(&t, &made, sizeof t);
}

static const uint8_t no_span[8];

static void test_a_handler_knows_its_call(void **state)
{
    (void)state;
    static const struct rpc_metadata metadata[] = {{"size", "L", 1}, {"flavour", "mint", 4}};
    struct rpc_trace trace;
    rpc_trace_new(&trace);
    trace.flags = 0;
    struct site t;
    site_serve(&t, false);
    struct rpc_client *c = world_client_to(&t.w, t.url, false);
    static const int methods[] = {SEE, SEE_INLINE};
    for (size_t i = 0; i < N_ELEMENTS(methods); i++) {
        struct rpc_opts o = {.metadata = metadata, .n_metadata = 2, .trace = &trace};
        site_call_ok(c, methods[i], &o, 0, "");
        struct seen s = site_seen(&t);
        assert_true(s.is_current);
        assert_string_equal(s.flavour, "mint");
        assert_int_equal(s.n_metadata, 2);
        assert_string_equal(s.node, "node-12");
        assert_int_equal(s.attempt, 1);
        assert_true(s.left_ms > 0 && s.left_ms <= 15000);
        assert_memory_equal(s.trace.trace_id, trace.trace_id, 16);
        assert_memory_equal(s.parent, trace.span_id, 8);
        assert_memory_not_equal(s.trace.span_id, trace.span_id, 8);
        assert_int_equal(s.trace.flags, 0);

        site_call_ok(c, methods[i], NULL, 0, ""); // a trace begins here
        s = site_seen(&t);
        assert_string_equal(s.flavour, "");
        assert_true(rpc_trace_is_set(&s.trace));
        assert_memory_not_equal(s.trace.trace_id, trace.trace_id, 16);
        assert_memory_equal(s.parent, no_span, 8);
        assert_int_equal(s.trace.flags, 1);
    }
    assert_null(rpc_call_current());
    rpc_client_free(c);
    site_done(&t);
}

static void test_a_postponed_call_is_current_where_it_goes_on(void **state)
{
    (void)state;
    struct site t;
    site_serve(&t, true);
    struct rpc_client *c = site_client((struct site *[]){&t}, 1);
    site_call_ok(c, POSTPONE, NULL, 0, "");
    assert_true(site_seen(&t).is_current);
    rpc_client_free(c);
    site_done(&t);
}

static void test_calls_of_a_handler_are_part_of_its_call(void **state)
{
    (void)state;
    struct site a, b;
    site_serve(&a, true);
    site_serve(&b, true);
    a.next = site_client((struct site *[]){&b}, 1);
    struct rpc_client *c = site_client((struct site *[]){&a}, 1);
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(20000)};
    site_call_ok(c, RELAY, &o, 0, "test.Own.See");
    struct seen sa = site_seen(&a), sb = site_seen(&b);
    assert_memory_equal(sb.trace.trace_id, sa.trace.trace_id, 16);
    assert_memory_equal(sb.parent, sa.trace.span_id, 8);
    assert_true(sb.left_ms <= sa.left_ms);

    site_call_ok(c, RELAY, &o, 1, "test.Own.See"); // detached
    sa = site_seen(&a);
    sb = site_seen(&b);
    assert_memory_not_equal(sb.trace.trace_id, sa.trace.trace_id, 16);
    assert_memory_equal(sb.parent, no_span, 8);
    assert_true(sb.left_ms > 20000);

    // Whoever gives up at one end is heard at the other.
    struct cancel *k = cancel_new(NULL);
    struct pending p;
    o = (struct rpc_opts){.cancel = k};
    pending_begin(c, RELAY, "test.Own.Hold", &o, &p);
    assert_true(wait_for_count(&b.n_holding, 1));
    cancel_fire(k);
    assert_int_equal(pending_end(&p), STATUS_CANCELLED);
    assert_true(wait_for_count(&b.n_cancelled, 1));
    cancel_unref(k);
    rpc_client_free(c);
    site_done(&a);
    site_done(&b);
}
static void note_order(struct site *t, const char *what)
{
    pthread_mutex_lock(&t->lock);
    size_t n = strlen(t->order);
    str_copy(t->order + n, sizeof t->order - n, what);
    pthread_mutex_unlock(&t->lock);
}

static void test_a_proxy_hands_on_what_came_beside(void **state)
{
    (void)state;
    static const struct rpc_metadata metadata[] = {{"flavour", "plum", 4}};
    struct site b;
    site_serve(&b, false);
    struct world w;
    struct err err = ERR_INIT;
    world_init(&w);
    struct rpc_server_opts so = world_server_opts(&w);
    struct rpc_server *gate = rpc_server_new(&so, &err);
    struct rpc_client *up = world_client_to(&b.w, b.url, false);
    const struct rpc_service *known[] = {&own_service};
    char url[RPC_URL_SIZE];
    rpc_server_set_router(gate, known, 1, site_route, up);
    assert_int_equal(rpc_server_listen(gate, "tcp://127.0.0.1:0", true, url, &err), STATUS_OK);
    struct rpc_client *c = world_client_to(&w, url, true);
    struct rpc_trace trace;
    rpc_trace_new(&trace);
    struct rpc_opts o = {.metadata = metadata, .n_metadata = 1, .trace = &trace};
    site_call_ok(c, SEE, &o, 0, "");
    struct seen sb = site_seen(&b);
    assert_true(sb.is_forwarded);
    assert_string_equal(sb.flavour, "plum");
    assert_memory_equal(sb.trace.trace_id, trace.trace_id, 16);
    assert_memory_not_equal(sb.parent, trace.span_id, 8); // but the proxy's span
    assert_memory_not_equal(sb.parent, no_span, 8);
    site_call_ok(c, SEE, NULL, 0, "");
    sb = site_seen(&b);
    assert_memory_not_equal(sb.parent, no_span, 8); // the trace began at the proxy
    rpc_client_free(c);
    rpc_server_free(gate);
    rpc_client_free(up);
    world_done(&w);
    site_done(&b);
}

// ---------------------------------------------------------------- interceptors

static enum status first_before(void *ud, struct rpc_call *c, struct err *err)
{
    note_order(ud, rpc_call_current() == c ? "1" : "?");
    if (rpc_call_metadata(c, "forbidden"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "not with that");
    return STATUS_OK;
}
static void first_after(void *ud, struct rpc_call *c, enum status s, const struct rpc_timings *t)
{
    struct site *site = ud;
    note_order(site, rpc_call_current() == c ? "a" : "?");
    pthread_mutex_lock(&site->lock);
    site->after = s;
    site->timings = *t;
    pthread_mutex_unlock(&site->lock);
    site->n_after++;
}
static enum status second_before(void *ud, struct rpc_call *c, struct err *err)
{
    note_order(ud, "2");
    if (rpc_call_metadata(c, "late"))
        return err_set(err, STATUS_ABORTED, "the second does not like it");
    return STATUS_OK;
}
static void second_after(void *ud, struct rpc_call *c, enum status s, const struct rpc_timings *t)
{
    (void)c;
    (void)s;
    (void)t;
    note_order(ud, "b");
}

static void test_interceptors_run_in_order_and_back(void **state)
{
    (void)state;
    struct site t;
    struct err err = ERR_INIT;
    site_init(&t);
    site_new_server(&t);
    const struct rpc_interceptor first = {"first", &t, first_before, first_after};
    const struct rpc_interceptor second = {"second", &t, second_before, second_after};
    const struct rpc_interceptor none = {"none", NULL, NULL, NULL};
    assert_int_equal(rpc_server_intercept(t.s, &first, &err), STATUS_OK);
    assert_int_equal(rpc_server_intercept(t.s, &none, &err), STATUS_OK);
    assert_int_equal(rpc_server_intercept(t.s, &second, &err), STATUS_OK);
    site_listen(&t, true);
    assert_int_equal(rpc_server_intercept(t.s, &first, &err), STATUS_FAILED_PRECONDITION);
    struct rpc_client *c = site_client((struct site *[]){&t}, 1);
    static const struct {
        int method;
        const char *key;
        enum status s;
        const char *order;
        int n_seen;
    } cases[] = {
        {SEE, "fine", STATUS_OK, "12ba", 1},
        {SEE_INLINE, "fine", STATUS_OK, "12ba", 2},
        {SEE, "forbidden", STATUS_FAILED_PRECONDITION, "1", 2}, // after: for none that let it pass
        {SEE, "late", STATUS_ABORTED, "12a", 2},
        {REFUSE, "fine", STATUS_INVALID_ARGUMENT, "12ba", 2},
    };
    int n_after = 0;
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        const struct rpc_metadata m = {cases[i].key, "", 0};
        const struct rpc_opts o = {.metadata = &m, .n_metadata = 1, .max_attempts = 1};
        pthread_mutex_lock(&t.lock);
        t.order[0] = 0;
        pthread_mutex_unlock(&t.lock);
        assert_int_equal(site_call(c, cases[i].method, &o, 0, "", &err), cases[i].s);
        n_after += strchr(cases[i].order, 'a') != NULL;
        assert_true(wait_for_count(&t.n_after, n_after));
        // The next call may not begin before this one is done with.
        pthread_mutex_lock(&t.lock);
        assert_string_equal(t.order, cases[i].order);
        if (strchr(cases[i].order, 'a')) {
            assert_int_equal(t.after, cases[i].s);
            assert_true(t.timings.queue_us >= 0 && t.timings.handling_us >= 0);
        }
        pthread_mutex_unlock(&t.lock);
        assert_int_equal(t.n_seen, cases[i].n_seen);
    }
    rpc_client_free(c);
    site_done(&t);
}

// ---------------------------------------------------------------- log

static size_t lines_with(const char *text, const char *a, const char *b)
{
    size_t n = 0;
    for (const char *at = text; *at;) {
        const char *end = strchrnul(at, '\n');
        char line[1024];
        snprintf(line, sizeof line, "%.*s", (int)(end - at), at);
        n += strstr(line, "\"rpc_call\"") && strstr(line, a) && strstr(line, b);
        at = *end ? end + 1 : end;
    }
    return n;
}

static void test_every_call_leaves_a_line(void **state)
{
    (void)state;
    static const struct {
        enum log_level level;
        size_t n_good, n_bad;
    } rows[] = {{LOG_DEBUG, 2, 1}, {LOG_INFO, 0, 1}, {LOG_WARN, 0, 0}};
    struct rpc_trace trace;
    char id[33];
    rpc_trace_new(&trace);
    str_hex(id, trace.trace_id, 16);
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        int fd = memfd_create("log", MFD_CLOEXEC);
        assert_true(fd >= 0);
        struct site t;
        site_init(&t);
        t.log = log_new(fd, rows[i].level, true);
        site_new_server(&t);
        site_listen(&t, true);
        struct rpc_client *c = site_client((struct site *[]){&t}, 1);
        struct rpc_opts o = {.trace = &trace, .max_attempts = 1};
        struct err err = ERR_INIT;
        site_call_ok(c, SEE, &o, 0, "");
        site_call_ok(c, SEE_INLINE, &o, 0, "");
        assert_int_equal(site_call(c, REFUSE, &o, 0, "", &err), STATUS_INVALID_ARGUMENT);
        rpc_client_free(c);
        struct log *l = TAKE(t.log);
        site_done(&t); // no call is left to be logged
        log_free(l);
        char text[8192] = "";
        assert_true(pread(fd, text, sizeof text - 1, 0) >= 0);
        close(fd);
        assert_int_equal(lines_with(text, "test.Own.See", "\"OK\""), rows[i].n_good);
        assert_int_equal(lines_with(text, "test.Own.Refuse", "INVALID_ARGUMENT"), rows[i].n_bad);
        assert_int_equal(lines_with(text, id, "took_us"), rows[i].n_good + rows[i].n_bad);
    }
}
// ---------------------------------------------------------------- metrics

static uint64_t sum(const struct rpc_histogram *h)
{
    uint64_t n = 0;
    for (size_t i = 0; i < RPC_HISTOGRAM_BUCKETS; i++)
        n += h->counts[i];
    return n;
}
static void test_methods_are_counted(void **state)
{
    (void)state;
    struct site t;
    struct err err = ERR_INIT;
    site_serve(&t, true);
    struct rpc_client *c = site_client((struct site *[]){&t}, 1);
    for (int i = 0; i < 10; i++) {
        site_call_ok(c, SEE, NULL, i, "four");
        site_call_ok(c, SEE_INLINE, NULL, i, "four");
    }
    for (int i = 0; i < 3; i++)
        assert_int_equal(site_call(c, REFUSE, &(struct rpc_opts){.max_attempts = 1}, 0, "", &err),
                         STATUS_INVALID_ARGUMENT);
    static const int methods[] = {SEE, SEE_INLINE};
    for (size_t i = 0; i < N_ELEMENTS(methods); i++) {
        struct rpc_method_stats s = site_stats(&t, methods[i]);
        assert_int_equal(s.n_started, 10);
        assert_int_equal(s.by_status[STATUS_OK], 10);
        assert_int_equal(s.in_flight, 0);
        assert_int_equal(s.n_shed, 0);
        assert_int_equal(sum(&s.queue), 10);
        assert_int_equal(sum(&s.handling), 10);
        // text and, but for the first, number: 6 + 2 bytes; "seen" comes back
        assert_int_equal(s.bytes_in, 10 * 6 + 9 * 2);
        assert_int_equal(s.bytes_out, 10 * 6);
        assert_int_equal(s.n_service, strlen("test.Own"));
        assert_memory_equal(s.service, "test.Own", s.n_service);
        assert_false(s.is_forwarded);
    }
    struct rpc_method_stats refused = site_stats(&t, REFUSE);
    assert_int_equal(refused.by_status[STATUS_INVALID_ARGUMENT], 3);
    assert_int_equal(refused.by_status[STATUS_OK], 0);
    struct rpc_server_stats all;
    rpc_server_get_stats(t.s, &all);
    assert_int_equal(all.n_calls, 23);
    assert_int_equal(all.n_failed, 3);

    struct pending p;
    pending_begin(c, HOLD, "", NULL, &p);
    assert_true(wait_for_count(&t.n_holding, 1));
    struct rpc_method_stats held = site_stats(&t, HOLD);
    assert_int_equal(held.in_flight, 1);
    assert_int_equal(sum(&held.queue), 1);
    assert_int_equal(sum(&held.handling), 0);
    site_release(&t);
    assert_int_equal(pending_end(&p), STATUS_OK);
    held = site_stats(&t, HOLD);
    assert_int_equal(held.in_flight, 0);
    assert_int_equal(sum(&held.handling), 1);
    assert_true(held.handling.sum_us > 0);
    rpc_client_free(c);
    site_done(&t);
}

static void test_buckets_double(void **state)
{
    (void)state;
    assert_int_equal(rpc_histogram_bound_us(0), 16);
    assert_int_equal(rpc_histogram_bound_us(1), 32);
    assert_int_equal(rpc_histogram_bound_us(RPC_HISTOGRAM_BUCKETS - 2), 16 << 20);
    assert_int_equal(rpc_histogram_bound_us(RPC_HISTOGRAM_BUCKETS - 1), TIME_NEVER);
}
// ---------------------------------------------------------------- what can be seen

struct view {
    int n;
    struct rpc_call_info calls[8];
    struct rpc_conn_info conns[8];
};

static void see_call(void *ud, const struct rpc_call_info *i)
{
    struct view *v = ud;
    if (v->n < 8)
        v->calls[v->n++] = *i;
}
static void see_conn(void *ud, const struct rpc_conn_info *i)
{
    struct view *v = ud;
    if (v->n < 8)
        v->conns[v->n++] = *i;
}

static void test_open_calls_and_connections_are_seen(void **state)
{
    (void)state;
    struct site t;
    struct err err = ERR_INIT;
    site_serve(&t, false);
    struct rpc_client *c = world_client_to(&t.w, t.url, false);
    struct rpc_trace trace;
    rpc_trace_new(&trace);
    struct pending p;
    const struct rpc_opts o = {
        .trace = &trace, .token = "user", .deadline_us = time_deadline_in_ms(60000)};
    pending_begin(c, HOLD, "", &o, &p);
    assert_true(wait_for_count(&t.n_holding, 1));
    struct view v = {.n = 0};
    rpc_server_calls_each(t.s, see_call, &v);
    assert_int_equal(v.n, 1);
    assert_ptr_equal(v.calls[0].method, &own_methods[HOLD]);
    assert_string_equal(v.calls[0].user, "user-id");
    assert_string_equal(v.calls[0].peer, "node-12");
    assert_int_equal(v.calls[0].peer_role, ROLE_NODE_ORIGIN);
    assert_string_equal(v.calls[0].remote, "127.0.0.1");
    assert_int_equal(v.calls[0].state, RPC_CALL_RUNNING);
    assert_true(v.calls[0].deadline_ms > 0 && v.calls[0].deadline_ms <= 60000);
    assert_memory_equal(v.calls[0].trace.trace_id, trace.trace_id, 16);

    // A stream that nobody reads waits for credit.
    struct rpc_stream *drip = NULL;
    Note n;
    note_init(&n);
    n.number = 1000000;
    assert_int_equal(rpc_stream_open(c, &own_methods[DRIP], NULL, &n.base, &drip, &err), STATUS_OK);
    struct looked stream = {.site = &t, .method = DRIP, .state = RPC_CALL_WAITING_FOR_CREDIT};
    assert_true(eventually(site_has_call, &stream));
    assert_true(stream.info.bytes_out > 0 && stream.info.deadline_ms > 0);

    v = (struct view){.n = 0};
    rpc_server_conns_each(t.s, see_conn, &v);
    assert_int_equal(v.n, 1);
    assert_string_equal(v.conns[0].peer, "node-12");
    assert_int_equal(v.conns[0].peer_role, ROLE_NODE_ORIGIN);
    assert_string_equal(v.conns[0].remote, "127.0.0.1");
    assert_string_equal(v.conns[0].url, t.url);
    assert_int_equal(v.conns[0].state, RPC_CONN_READY);
    assert_int_equal(v.conns[0].calls_open, 2);
    assert_true(v.conns[0].bytes_in > 0 && v.conns[0].bytes_out > 0);
    assert_true(v.conns[0].records_in > 0 && v.conns[0].records_out > 0);

    rpc_server_close(t.s);
    v = (struct view){.n = 0};
    rpc_server_conns_each(t.s, see_conn, &v);
    assert_int_equal(v.n, 1);
    assert_int_equal(v.conns[0].state, RPC_CONN_DRAINING);
    rpc_stream_free(drip);
    site_release(&t);
    assert_int_equal(pending_end(&p), STATUS_OK);
    rpc_client_free(c);
    site_done(&t);
}

// ---------------------------------------------------------------- details

static void test_details_reach_the_caller(void **state)
{
    (void)state;
    struct site t;
    site_serve(&t, true);
    struct rpc_client *c = site_client((struct site *[]){&t}, 1);
    struct pending p;
    pending_begin(c, REFUSE, "", &(struct rpc_opts){.max_attempts = 1}, &p);
    assert_int_equal(pending_end(&p), STATUS_INVALID_ARGUMENT);
    assert_string_equal(p.msg, "number: must be 7 at most");
    const struct rpc_details *d = &p.details;
    assert_string_equal(d->reason, "TASTE");
    assert_true(d->retryable);
    assert_int_equal(d->retry_after_ms, 70);
    assert_int_equal(d->n_violations, 2);
    assert_string_equal(d->violations[0].field, "children[1].text");
    assert_string_equal(d->violations[0].description, "must be one of 12 words");
    assert_string_equal(d->violations[1].field, "number");
    assert_int_equal(d->n_metadata, 1);
    assert_string_equal(d->metadata[0].key, "chef");
    assert_memory_equal(d->metadata[0].value, "Ana", 3);
    rpc_details_done(&p.details);
    rpc_client_free(c);
    site_done(&t);
}
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_traceparent_is_read_and_written),
        cmocka_unit_test(test_a_handler_knows_its_call),
        cmocka_unit_test(test_a_postponed_call_is_current_where_it_goes_on),
        cmocka_unit_test(test_calls_of_a_handler_are_part_of_its_call),
        cmocka_unit_test(test_a_proxy_hands_on_what_came_beside),
        cmocka_unit_test(test_interceptors_run_in_order_and_back),
        cmocka_unit_test(test_every_call_leaves_a_line),
        cmocka_unit_test(test_methods_are_counted),
        cmocka_unit_test(test_buckets_double),
        cmocka_unit_test(test_open_calls_and_connections_are_seen),
        cmocka_unit_test(test_details_reach_the_caller),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
