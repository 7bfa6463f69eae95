// Clients: which backend, when again, when not, and what they say of themselves.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rpc/internal.h"
#include "rpc/test_util.h"

#define S 1000000LL

// ---------------------------------------------------------------- breaker, with a clock of its own

static void bad(struct breaker *b, int n, int64_t now_us)
{
    for (int i = 0; i < n; i++)
        breaker_end(b, BREAKER_BAD, false, now_us);
}

static void test_breaker_opens_after_failures_in_a_row(void **state)
{
    (void)state;
    struct breaker b = {.n_failures = 0};
    bad(&b, 4, 100 * S);
    breaker_end(&b, BREAKER_NEUTRAL, false, 100 * S);
    assert_true(breaker_allows(&b, 100 * S));
    breaker_end(&b, BREAKER_GOOD, false, 100 * S);
    bad(&b, 4, 100 * S);
    assert_int_equal(breaker_state(&b, 100 * S), RPC_BREAKER_CLOSED);
    bad(&b, 1, 100 * S);
    assert_int_equal(breaker_state(&b, 100 * S), RPC_BREAKER_OPEN);
    assert_false(breaker_allows(&b, 100 * S + 999999));
    assert_true(breaker_allows(&b, 100 * S + 1100000)); // at most a tenth of jitter
}

static void test_breaker_opens_at_half_failing(void **state)
{
    (void)state;
    struct breaker b = {.n_failures = 0};
    for (int i = 0; i < 9; i++) {
        breaker_end(&b, BREAKER_BAD, false, 50 * S + i);
        breaker_end(&b, BREAKER_GOOD, false, 50 * S + i);
    }
    breaker_end(&b, BREAKER_GOOD, false, 51 * S);
    assert_int_equal(breaker_state(&b, 51 * S), RPC_BREAKER_CLOSED); // 9 of 19
    breaker_end(&b, BREAKER_BAD, false, 51 * S);
    assert_int_equal(breaker_state(&b, 51 * S), RPC_BREAKER_OPEN); // 10 of 20
}

static void test_breaker_forgets_what_is_long_ago(void **state)
{
    (void)state;
    struct breaker b = {.n_failures = 0};
    for (int i = 0; i < 9; i++) {
        breaker_end(&b, BREAKER_BAD, false, 50 * S);
        breaker_end(&b, BREAKER_GOOD, false, 50 * S);
    }
    for (int i = 0; i < 20; i++)
        breaker_end(&b, BREAKER_GOOD, false, 61 * S);
    assert_int_equal(b.n_bad, 0);
    assert_int_equal(b.n_good, 20);
    breaker_end(&b, BREAKER_BAD, false, 61 * S);
    assert_int_equal(breaker_state(&b, 61 * S), RPC_BREAKER_CLOSED);
    breaker_end(&b, BREAKER_GOOD, false, 500 * S); // many windows later
    assert_int_equal(b.n_good, 1);
}

static void test_breaker_probes_one_at_a_time(void **state)
{
    (void)state;
    struct breaker b = {.n_failures = 0};
    bad(&b, 5, 0);
    int64_t now = 2 * S;
    assert_int_equal(breaker_state(&b, now), RPC_BREAKER_HALF_OPEN);
    assert_true(breaker_begin(&b, now));
    assert_false(breaker_allows(&b, now));
    breaker_end(&b, BREAKER_GOOD, false, now); // of a call from before: no say
    assert_false(breaker_allows(&b, now));
    breaker_end(&b, BREAKER_NEUTRAL, true, now); // its caller gave up: the next one
    assert_true(breaker_allows(&b, now));
    assert_true(breaker_begin(&b, now));
    breaker_end(&b, BREAKER_BAD, true, now);
    assert_false(breaker_allows(&b, now + 2 * S - 1)); // twice as long
    now += 2200000;
    assert_true(breaker_begin(&b, now));
    breaker_end(&b, BREAKER_GOOD, true, now);
    assert_int_equal(breaker_state(&b, now), RPC_BREAKER_CLOSED);
    bad(&b, 5, now);
    assert_true(breaker_allows(&b, now + 1100000)); // begins again at a second
}

static void test_breaker_stays_open_thirty_seconds_at_most(void **state)
{
    (void)state;
    struct breaker b = {.n_failures = 0};
    bad(&b, 5, 0);
    int64_t now = 0;
    for (int i = 0; i < 20; i++) {
        now = b.open_until_us;
        assert_true(breaker_begin(&b, now));
        breaker_end(&b, BREAKER_BAD, true, now);
        assert_true(b.open_until_us - now <= 33 * S);
    }
    assert_true(b.open_until_us - now >= 30 * S);
}

// ---------------------------------------------------------------- when again

static void test_budget_is_refilled_by_successes_and_time(void **state)
{
    (void)state;
    struct retry_budget r = {.units = 2000, .refilled_us = 10 * S};
    assert_true(retry_spend(&r, 10 * S) && retry_spend(&r, 10 * S) && !retry_spend(&r, 10 * S));
    for (int i = 0; i < 10; i++)
        retry_earn(&r);
    assert_true(retry_spend(&r, 10 * S));
    assert_false(retry_spend(&r, 10 * S + 999999));
    assert_true(retry_spend(&r, 11 * S));
    assert_true(retry_spend(&r, 1000 * S));
    assert_true(r.units < RETRY_BUDGET_MAX);
}

static void test_plan_follows_method_and_caller(void **state)
{
    (void)state;
    struct retry_plan p;
    struct rpc_method m = {.name = "t.T.T", .kind = RPC_UNARY, .hedge_after_ms = 10};
    retry_init(&p, &m, NULL);
    assert_int_equal(p.most, 1);
    assert_int_equal(p.hedge_us, 0); // not repeatable
    m.idempotent = true;
    retry_init(&p, &m, NULL);
    assert_int_equal(p.most, 3);
    assert_int_equal(p.hedge_us, 10000);
    m.max_attempts = 7;
    m.initial_backoff_ms = 10;
    m.max_backoff_ms = 40;
    retry_init(&p, &m, NULL);
    assert_int_equal(p.most, 7);
    for (int i = 0; i < 100; i++) {
        int64_t first = retry_backoff_us(&p, 1, 0), last = retry_backoff_us(&p, 9, 0);
        assert_in_range(first, 5000, 15000);
        assert_in_range(last, 20000, 60000);
    }
    assert_true(retry_backoff_us(&p, 1, 500) >= 500000);
    struct rpc_opts o = {.max_attempts = 1};
    retry_init(&p, &m, &o);
    assert_int_equal(p.most, 1);
    assert_true(p.never);
    m = (struct rpc_method){.name = "t.T.T", .kind = RPC_SERVER_STREAM, .hedge_after_ms = 10};
    o = (struct rpc_opts){.idempotency_key = "k"};
    retry_init(&p, &m, &o);
    assert_int_equal(p.most, 3);
    assert_int_equal(p.hedge_us, 0); // never a stream
}

// A client that nobody serves: for what needs a budget.
static struct rpc_client *lonely_client(const struct rpc_client_opts *more)
{
    static const struct rpc_endpoint nowhere = {.url = "inproc://client-test-nowhere"};
    struct rpc_client_opts o = *more;
    struct err err = ERR_INIT;
    if (!o.endpoints) {
        o.endpoints = &nowhere;
        o.n_endpoints = 1;
    }
    struct rpc_client *c = rpc_client_new(&o, &err);
    if (!c)
        print_error("%s\n", err.msg);
    assert_non_null(c);
    return c;
}

static void test_what_never_started_is_repeated_for_free(void **state)
{
    (void)state;
    struct rpc_client_opts o = {.lazy = true};
    struct rpc_client *c = lonely_client(&o);
    struct rpc_method m = {.name = "t.T.T", .kind = RPC_UNARY};
    struct attempt_end e = {.code = STATUS_UNAVAILABLE, .not_started = true, .conn_serial = 1};
    struct retry_plan p;
    int64_t at, now = 5 * S, far = 500 * S;
    retry_init(&p, &m, NULL);
    p.n_tried = 1;
    assert_true(retry_next(&p, &e, c, far, now, &at));
    assert_int_equal(at, now); // at once
    p.n_tried++;
    assert_false(retry_next(&p, &e, c, far, now, &at)); // the same connection again
    e.conn_serial = 2;
    assert_true(retry_next(&p, &e, c, far, now, &at));
    p.n_tried++;
    for (e.conn_serial = 3; e.conn_serial < 6; e.conn_serial++, p.n_tried++)
        assert_true(retry_next(&p, &e, c, far, now, &at));
    assert_false(retry_next(&p, &e, c, far, now, &at)); // somebody should hear of it
    struct rpc_client_stats st;
    rpc_client_get_stats(c, &st);
    assert_int_equal(st.n_retries, 0); // none of them paid

    e = (struct attempt_end){.code = STATUS_UNAVAILABLE, .conn_serial = 9};
    m.idempotent = true;
    retry_init(&p, &m, NULL);
    p.n_tried = 1;
    assert_false(retry_next(&p, &e, c, now + 1, now, &at)); // after the deadline
    e.retry_after_ms = 3000;
    assert_true(retry_next(&p, &e, c, far, now, &at));
    assert_true(at >= now + 3 * S);
    e.retry_after_ms = 61000; // rather say so
    assert_false(retry_next(&p, &e, c, far, now, &at));
    e = (struct attempt_end){.code = STATUS_ABORTED};
    assert_false(retry_next(&p, &e, c, far, now, &at));
    e.retryable = true;
    assert_true(retry_next(&p, &e, c, far, now, &at));
    rpc_client_free(c);
}

// ---------------------------------------------------------------- several servers

#define N_WORLDS 3
struct worlds {
    struct world w[N_WORLDS];
    struct rpc_endpoint e[N_WORLDS];
};

static void worlds_init(struct worlds *ws)
{
    for (int i = 0; i < N_WORLDS; i++) {
        world_init(&ws->w[i]);
        world_serve(&ws->w[i], "tcp://127.0.0.1:0", true);
        ws->e[i] = (struct rpc_endpoint){.url = ws->w[i].url};
        memcpy(ws->e[i].key, ws->w[i].server.public_key, 32);
    }
}

static void worlds_done(struct worlds *ws)
{
    for (int i = 0; i < N_WORLDS; i++)
        world_done(&ws->w[i]);
}

static uint64_t n_served(struct world *w)
{
    struct rpc_server_stats st;
    rpc_server_get_stats(w->s, &st);
    return st.n_calls;
}

struct look {
    const char *name;
    unsigned states[5], n, n_open;
    struct rpc_channel_info last;
    uint64_t n_calls, n_hedges, n_retries;
};

static void on_channel(void *ud, const struct rpc_channel_info *info)
{
    struct look *l = ud;
    if (strcmp(info->name, l->name) != 0)
        return;
    l->n++;
    l->n_open += info->calls_open;
    l->states[info->state]++;
    l->n_calls += info->n_calls;
    l->n_hedges += info->n_hedges;
    l->n_retries += info->n_retries;
    l->last = *info;
}

static struct look look_at(const char *name)
{
    struct look l = {.name = name};
    rpc_channels_each(on_channel, &l);
    return l;
}

static void pause_ms(long ms)
{
    static const _Atomic int never;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_nsec += ms * 1000000;
    ts.tv_sec += ts.tv_nsec / 1000000000;
    ts.tv_nsec %= 1000000000;
    pthread_mutex_lock(&lock);
    while (!never && pthread_cond_timedwait(&cond, &lock, &ts) == 0) {
    }
    pthread_mutex_unlock(&lock);
}

// Until so many of its endpoints are in that state, at most ten seconds.
static bool wait_for_state(const char *name, enum rpc_channel_state state, unsigned n)
{
    int64_t until = time_mono_us() + 10 * S;
    while (look_at(name).states[state] != n && time_mono_us() < until)
        pause_ms(2);
    return look_at(name).states[state] == n;
}

static enum status echo_with(struct rpc_client *c, const struct rpc_method *m,
                             const struct rpc_opts *o, struct err *err)
{
    Note req;
    ProtobufCMessage *ret = NULL;
    note_init(&req);
    enum status s = rpc_unary(c, m, o, &req.base, &ret, err);
    rpc_message_free(ret);
    return s;
}

static enum status echo(struct rpc_client *c, const struct rpc_opts *o, struct err *err)
{
    return echo_with(c, &test_service.methods[ECHO], o, err);
}

static void test_round_robin_takes_turns(void **state)
{
    (void)state;
    struct worlds ws;
    struct err err = ERR_INIT;
    worlds_init(&ws);
    struct rpc_client_opts o = {
        .endpoints = ws.e, .n_endpoints = 3, .policy = RPC_ROUND_ROBIN, .name = "round"};
    struct rpc_client *c = lonely_client(&o);
    assert_true(wait_for_state("round", RPC_CHANNEL_READY, 3));
    for (int i = 0; i < 30; i++)
        assert_int_equal(echo(c, NULL, &err), STATUS_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(n_served(&ws.w[i]), 10);
    assert_int_equal(look_at("round").n_calls, 30);
    rpc_client_free(c);
    assert_int_equal(look_at("round").n, 0);
    worlds_done(&ws);
}

struct pending {
    _Atomic int n_done, n_ok;
    _Atomic int last;
};

static void on_done(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    (void)err;
    struct pending *p = ud;
    rpc_message_free(reply);
    p->n_ok += s == STATUS_OK;
    p->last = (int)s;
    p->n_done++;
}

static void test_least_loaded_goes_where_less_is_in_flight(void **state)
{
    (void)state;
    struct worlds ws;
    struct pending p = {.n_done = 0};
    struct cancel *stop = cancel_new(NULL);
    Note req;
    note_init(&req);
    worlds_init(&ws);
    struct rpc_client_opts o = {.endpoints = ws.e, .n_endpoints = 3, .name = "least"};
    struct rpc_client *c = lonely_client(&o);
    assert_true(wait_for_state("least", RPC_CHANNEL_READY, 3));
    struct rpc_opts co = {.cancel = stop};
    for (int i = 0; i < 30; i++) // none of them ends
        rpc_unary_async(c, &test_service.methods[WAIT], &co, &req.base, on_done, &p);
    for (int i = 0; i < 3; i++) {
        assert_true(wait_for_count(&ws.w[i].n_waiting, 10));
        assert_int_equal(ws.w[i].n_waiting, 10);
    }
    cancel_fire(stop);
    assert_true(wait_for_count(&p.n_done, 30));
    assert_int_equal(p.last, STATUS_CANCELLED);
    rpc_client_free(c);
    cancel_unref(stop);
    worlds_done(&ws);
}

static void test_endpoints_change_without_failing_calls(void **state)
{
    (void)state;
    struct worlds ws;
    struct pending p = {.n_done = 0};
    struct err err = ERR_INIT;
    Note req;
    note_init(&req);
    worlds_init(&ws);
    struct rpc_client_opts o = {.endpoints = ws.e, .n_endpoints = 1, .name = "change"};
    struct rpc_client *c = lonely_client(&o);
    struct rpc_stream *st = NULL;
    assert_int_equal(rpc_stream_open(c, &test_service.methods[CHAT], NULL, NULL, &st, &err),
                     STATUS_OK);
    assert_int_equal(rpc_client_set_endpoints(c, &ws.e[1], 2, &err), STATUS_OK);
    for (int i = 0; i < 20; i++)
        assert_int_equal(echo(c, NULL, &err), STATUS_OK);
    assert_int_equal(n_served(&ws.w[0]), 1); // the stream alone
    assert_int_equal(look_at("change").states[RPC_CHANNEL_DRAINING], 1);
    for (int i = 0; i < 10; i++) { // which goes on
        ProtobufCMessage *m = NULL;
        req.number = i;
        assert_int_equal(rpc_stream_send(st, &req.base, &err), STATUS_OK);
        assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
        assert_int_equal(((Note *)(void *)m)->number, i + 1);
        rpc_message_free(m);
    }
    rpc_stream_free(st);
    int64_t until = time_mono_us() + 10 * S;
    while (look_at("change").n != 2 && time_mono_us() < until)
        pause_ms(2);
    assert_int_equal(look_at("change").n, 2); // nothing is left of it

    assert_int_equal(rpc_client_set_endpoints(c, NULL, 0, &err), STATUS_OK);
    struct rpc_opts fast = {.fail_fast = true};
    assert_int_equal(echo(c, &fast, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.msg, "no backend is configured"));
    rpc_unary_async(c, &test_service.methods[ECHO], NULL, &req.base, on_done, &p); // it waits
    assert_int_equal(rpc_client_set_endpoints(c, ws.e, 3, &err), STATUS_OK);
    assert_true(wait_for_count(&p.n_done, 1));
    assert_int_equal(p.last, STATUS_OK);
    rpc_client_free(c);
    worlds_done(&ws);
}

static void test_lazy_client_dials_a_few_of_many(void **state)
{
    (void)state;
    static char urls[1000][RPC_URL_SIZE];
    static struct rpc_endpoint many[1000];
    struct worlds ws;
    struct err err = ERR_INIT;
    worlds_init(&ws);
    for (int i = 0; i < 1000; i++) { // every address is one of the three
        int k = i % N_WORLDS;
        snprintf(urls[i], sizeof urls[i], "%s", ws.w[k].url);
        many[i] = ws.e[k];
        many[i].url = urls[i];
        if (i >= N_WORLDS) // keys differ, or they would be the same endpoint
            memcpy(many[i].key, &i, sizeof i);
    }
    struct rpc_client_opts o = {
        .endpoints = many, .n_endpoints = 1000, .max_connections = 4, .lazy = true, .name = "lazy"};
    struct rpc_client *c = lonely_client(&o);
    struct look l = look_at("lazy");
    assert_int_equal(l.n, 1000);
    assert_int_equal(l.states[RPC_CHANNEL_IDLE], 1000);
    struct rpc_opts co = {.deadline_us = time_deadline_in_ms(300)};
    (void)echo(c, &co, &err); // with those keys, most likely nobody
    l = look_at("lazy");
    // Those that were given up for others, when this took long, are on their way out.
    assert_true(l.states[RPC_CHANNEL_IDLE] + l.states[RPC_CHANNEL_DRAINING] >= 996);
    assert_true(l.states[RPC_CHANNEL_IDLE] < 1000);
    // A hopeless choice makes room for others: in the end a good one is among them.
    assert_int_equal(rpc_client_set_endpoints(c, many, 6, &err), STATUS_OK);
    co.deadline_us = time_deadline_in_ms(20000);
    int64_t until = time_mono_us() + 20 * S;
    while (!rpc_client_is_connected(c) && time_mono_us() < until)
        pause_ms(5);
    assert_int_equal(echo(c, &co, &err), STATUS_OK);
    rpc_client_free(c);
    worlds_done(&ws);
}

static void test_failures_name_the_endpoint_and_why(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    assert_int_equal(echo(c, NULL, &err), STATUS_OK);
    char url[RPC_URL_SIZE];
    snprintf(url, sizeof url, "%s", w.url);
    world_stop(&w);
    int64_t until = time_mono_us() + 10 * S;
    while (rpc_client_is_connected(c) && time_mono_us() < until)
        pause_ms(2);
    struct rpc_opts fast = {.fail_fast = true};
    assert_int_equal(echo(c, &fast, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.msg, url));
    assert_non_null(strstr(err.msg, "no connection for"));
    struct rpc_opts brief = {.deadline_us = time_deadline_in_ms(50)};
    int64_t before = time_mono_us();
    assert_int_equal(echo(c, &brief, &err), STATUS_DEADLINE_EXCEEDED);
    assert_true(time_mono_us() - before >= 45000);
    assert_non_null(strstr(err.msg, url));
    rpc_client_free(c);
    world_done(&w);
}

// ---------------------------------------------------------------- hedges

static void test_hedge_finds_the_server_that_answers(void **state)
{
    (void)state;
    struct worlds ws;
    struct pending blocked = {.n_done = 0}, p = {.n_done = 0};
    struct err err = ERR_INIT;
    struct cancel *stop = cancel_new(NULL);
    Note req;
    note_init(&req);
    for (int i = 0; i < N_WORLDS; i++) {
        world_init(&ws.w[i]);
        if (i == 0) { // one thread, which will be taken
            work_pool_free(ws.w[0].pool);
            ws.w[0].pool = work_pool_new("one", 1, 100);
        }
        world_serve(&ws.w[i], "tcp://127.0.0.1:0", true);
        ws.e[i].url = ws.w[i].url;
        memcpy(ws.e[i].key, ws.w[i].server.public_key, 32);
    }
    struct rpc_client *blocker = world_client(&ws.w[0]);
    struct rpc_opts bo = {.cancel = stop, .deadline_us = TIME_NEVER};
    rpc_unary_async(blocker, &test_service.methods[WAIT], &bo, &req.base, on_done, &blocked);
    assert_true(wait_for_count(&ws.w[0].n_waiting, 1));

    struct rpc_method hedged = test_service.methods[ECHO];
    hedged.idempotent = true;
    hedged.hedge_after_ms = 20;
    struct rpc_client_opts o = {
        .endpoints = ws.e, .n_endpoints = 2, .policy = RPC_ROUND_ROBIN, .name = "hedge"};
    struct rpc_client *c = lonely_client(&o);
    assert_true(wait_for_state("hedge", RPC_CHANNEL_READY, 2));
    for (int i = 0; i < 6; i++)
        assert_int_equal(echo_with(c, &hedged, NULL, &err), STATUS_OK);
    for (int i = 0; i < 4; i++)
        rpc_unary_async(c, &hedged, NULL, &req.base, on_done, &p);
    assert_true(wait_for_count(&p.n_done, 4));
    assert_int_equal(p.n_ok, 4);
    struct look l = look_at("hedge");
    assert_true(l.n_hedges >= 4);
    struct rpc_client_stats st;
    rpc_client_get_stats(c, &st);
    assert_int_equal(st.n_hedges, l.n_hedges);
    assert_int_equal(st.n_retries, 0);
    assert_int_equal(look_at("hedge").n_open, 0); // losers are cancelled

    // With nobody else to ask there is no hedge, and the deadline still ends it.
    assert_int_equal(rpc_client_set_endpoints(c, ws.e, 1, &err), STATUS_OK);
    struct rpc_opts brief = {.deadline_us = time_deadline_in_ms(100)};
    assert_int_equal(echo_with(c, &hedged, &brief, &err), STATUS_DEADLINE_EXCEEDED);
    cancel_fire(stop);
    assert_true(wait_for_count(&blocked.n_done, 1));
    rpc_client_free(c);
    rpc_client_free(blocker);
    cancel_unref(stop);
    worlds_done(&ws);
}

// ---------------------------------------------------------------- both ways of calling

static void test_async_calls_are_repeated_as_waiting_ones_are(void **state)
{
    (void)state;
    struct world w;
    struct pending p = {.n_done = 0};
    Note req;
    note_init(&req);
    world_init(&w);
    world_serve(&w, "inproc://client-async", true);
    struct rpc_client *c = world_client(&w);
    req.number = 2; // fails twice, then works
    rpc_unary_async(c, &test_service.methods[ONCE], NULL, &req.base, on_done, &p);
    assert_true(wait_for_count(&p.n_done, 1));
    assert_int_equal(p.n_ok, 1);
    assert_int_equal(w.n_once, 3);
    assert_int_equal(w.n_effects, 1);
    w.n_once = 0;
    struct rpc_opts one = {.max_attempts = 1};
    rpc_unary_async(c, &test_service.methods[ONCE], &one, &req.base, on_done, &p);
    assert_true(wait_for_count(&p.n_done, 2));
    assert_int_equal(p.last, STATUS_UNAVAILABLE);
    assert_int_equal(w.n_once, 1);
    rpc_client_free(c);
    world_done(&w);
}

struct canceller {
    struct rpc_client *client;
    struct cancel *stop;
};

static void *fire_between_attempts(void *ud)
{
    const struct canceller *k = ud;
    struct rpc_client_stats st = {.n_calls = 0};
    for (int64_t until = time_mono_us() + 10 * S; !st.n_retries && time_mono_us() < until;)
        rpc_client_get_stats(k->client, &st);
    cancel_fire(k->stop);
    return NULL;
}

static void test_cancel_ends_a_call_between_its_attempts(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    Note req, *ret = NULL;
    pthread_t t;
    struct cancel *stop = cancel_new(NULL);
    note_init(&req);
    req.number = STATUS_UNAVAILABLE; // with 1234 ms to wait
    world_init(&w);
    world_serve(&w, "inproc://client-cancel", true);
    struct rpc_client *c = world_client(&w);
    struct rpc_opts o = {.idempotency_key = "k", .cancel = stop};
    struct canceller k = {.client = c, .stop = stop};
    assert_int_equal(pthread_create(&t, NULL, fire_between_attempts, &k), 0);
    int64_t before = time_mono_us();
    assert_int_equal(call_note(c, FAIL, &o, &req, &ret, &err), STATUS_CANCELLED);
    assert_true(time_mono_us() - before < S);
    pthread_join(t, NULL);
    assert_int_equal(call_note(c, ECHO, &o, &req, &ret, &err), STATUS_CANCELLED); // fired before
    rpc_client_free(c);
    cancel_unref(stop);
    world_done(&w);
}

static void test_client_that_closes_ends_what_waits(void **state)
{
    (void)state;
    struct pending p = {.n_done = 0};
    struct rpc_client_opts o = {.name = "closing"};
    struct rpc_client *c = lonely_client(&o);
    Note req;
    note_init(&req);
    for (int i = 0; i < 10; i++)
        rpc_unary_async(c, &test_service.methods[ECHO], NULL, &req.base, on_done, &p);
    rpc_client_free(c);
    assert_int_equal(p.n_done, 10);
    assert_int_equal(p.last, STATUS_CANCELLED);
}

// ---------------------------------------------------------------- what is in flight

struct seen_call {
    const char *method;
    int n;
    struct rpc_client_call_info last;
};

static void on_call(void *ud, const struct rpc_client_call_info *info)
{
    struct seen_call *s = ud;
    if (strcmp(info->method, s->method) != 0)
        return;
    s->n++;
    s->last = *info;
}

static void test_calls_in_flight_and_waiting_are_shown(void **state)
{
    (void)state;
    struct world w;
    struct pending p = {.n_done = 0};
    struct cancel *stop = cancel_new(NULL);
    Note req;
    note_init(&req);
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    struct rpc_opts o = {.cancel = stop, .deadline_us = TIME_NEVER};
    rpc_unary_async(c, &test_service.methods[WAIT], &o, &req.base, on_done, &p);
    assert_true(wait_for_count(&w.n_waiting, 1));
    struct seen_call s = {.method = "test.Notes.Wait"};
    rpc_client_calls_each(on_call, &s);
    assert_int_equal(s.n, 1);
    assert_string_equal(s.last.url, w.url);
    assert_int_equal(s.last.deadline_ms, -1);
    assert_int_equal(s.last.attempts, 1);
    struct rpc_client_opts lo = {.name = "nobody"};
    struct rpc_client *lonely = lonely_client(&lo);
    o.deadline_us = time_deadline_in_ms(60000);
    rpc_unary_async(lonely, &test_service.methods[LATER], &o, &req.base, on_done, &p);
    s = (struct seen_call){.method = "test.Notes.Later"};
    rpc_client_calls_each(on_call, &s);
    assert_int_equal(s.n, 1);
    assert_string_equal(s.last.url, "");
    assert_true(s.last.deadline_ms > 50000);
    cancel_fire(stop);
    assert_true(wait_for_count(&p.n_done, 2));
    rpc_client_free(lonely);
    rpc_client_free(c);
    cancel_unref(stop);
    world_done(&w);
}

// ---------------------------------------------------------------- streams

static void test_stream_is_repeated_before_its_first_message(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    Note req;
    ProtobufCMessage *m = NULL;
    struct rpc_stream *st = NULL;
    note_init(&req);
    req.number = 2; // fails twice
    world_init(&w);
    world_serve(&w, "inproc://client-again", true);
    struct rpc_client *c = world_client(&w);
    struct rpc_method once = test_service.methods[ONCE];
    once.kind = RPC_SERVER_STREAM; // of one message
    once.initial_backoff_ms = once.max_backoff_ms = 1;
    assert_int_equal(rpc_stream_open(c, &once, NULL, &req.base, &st, &err), STATUS_OK);
    assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
    assert_non_null(m);
    rpc_message_free(m);
    assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
    assert_null(m);
    assert_int_equal(w.n_once, 3);
    rpc_stream_free(st);

    w.n_once = 0;
    struct rpc_opts o = {.max_attempts = 1};
    assert_int_equal(rpc_stream_open(c, &once, &o, &req.base, &st, &err), STATUS_OK);
    assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_UNAVAILABLE);
    rpc_stream_free(st);
    assert_int_equal(w.n_once, 1);

    once.initial_backoff_ms = once.max_backoff_ms = 60000; // cancelled while it waits
    w.n_once = 0;
    o = (struct rpc_opts){.deadline_us = time_deadline_in_ms(600000)};
    assert_int_equal(rpc_stream_open(c, &once, &o, &req.base, &st, &err), STATUS_OK);
    assert_true(wait_for_count(&w.n_once, 1));
    rpc_stream_cancel(st);
    enum status s = rpc_stream_recv(st, &m, &err);
    assert_int_equal(s, STATUS_CANCELLED);
    rpc_stream_free(st);
    rpc_client_free(c);
    world_done(&w);
}

struct event_reader {
    struct rpc_stream *st;
    bool free_inside;
    _Atomic int n_inside, n_messages, n_done;
    _Atomic int status;
    int64_t next;
};

static void on_readable(void *ud)
{
    struct event_reader *r = ud;
    assert_int_equal(r->n_inside++, 0); // one at a time
    for (bool ended = false; !ended && !r->n_done;) {
        struct err err = ERR_INIT;
        ProtobufCMessage *m = NULL;
        enum status s = rpc_stream_try_recv(r->st, &m, &ended, &err);
        if (m) {
            assert_int_equal(((Note *)(void *)m)->number, r->next++);
            rpc_message_free(m);
            r->n_messages++;
        } else if (s != STATUS_OK || ended) {
            r->status = (int)s;
            r->n_inside--;
            if (r->free_inside)
                rpc_stream_free(r->st);
            r->n_done = 1;
            return;
        } else {
            break; // an event follows
        }
    }
    r->n_inside--;
}

static void test_stream_is_read_without_a_thread(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    Note req;
    static uint8_t bytes[300];
    note_init(&req);
    req.number = 2000; // more than fits into the windows
    req.data = (ProtobufCBinaryData){.len = sizeof bytes, .data = bytes};
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    static struct event_reader readers[8];
    memset(readers, 0, sizeof readers);
    for (int i = 0; i < 8; i++) {
        readers[i].free_inside = i % 2;
        assert_int_equal(
            rpc_stream_open(c, &test_service.methods[COUNT], NULL, &req.base, &readers[i].st, &err),
            STATUS_OK);
        rpc_stream_on_event(readers[i].st, on_readable, &readers[i]);
    }
    for (int i = 0; i < 8; i++) {
        assert_true(wait_for_count(&readers[i].n_done, 1));
        assert_int_equal(readers[i].n_messages, 2000);
        assert_int_equal(readers[i].status, STATUS_OK);
        if (!readers[i].free_inside)
            rpc_stream_free(readers[i].st);
    }
    rpc_client_free(c);
    world_done(&w);
}

static void count_event(void *ud)
{
    (*(_Atomic int *)ud)++;
}

static void test_no_event_comes_after_free(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    Note req;
    note_init(&req);
    req.number = 500;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    for (int i = 0; i < 50; i++) {
        struct rpc_stream *st = NULL;
        _Atomic int *n = calloc(1, sizeof *n);
        assert_int_equal(
            rpc_stream_open(c, &test_service.methods[COUNT], NULL, &req.base, &st, &err),
            STATUS_OK);
        rpc_stream_on_event(st, count_event, n);
        assert_true(wait_for_count(n, i % 2));
        rpc_stream_free(st);
        free(n); // a late event would be seen by the sanitizers
    }
    rpc_client_free(c);
    world_done(&w);
}

struct chatter {
    struct rpc_stream *st;
    int n_to_send;
    _Atomic int n_sent, n_got, n_done;
    _Atomic int n_full;
};

static void on_chat(void *ud)
{
    struct chatter *ch = ud;
    struct err err = ERR_INIT;
    static uint8_t bytes[4096];
    Note n;
    note_init(&n);
    n.data = (ProtobufCBinaryData){.len = sizeof bytes, .data = bytes};
    for (bool sent = true; sent && ch->n_sent < ch->n_to_send;) {
        n.number = ch->n_sent;
        assert_int_equal(rpc_stream_try_send(ch->st, &n.base, &sent, &err), STATUS_OK);
        ch->n_sent += sent;
        ch->n_full += !sent;
        if (ch->n_sent == ch->n_to_send)
            assert_int_equal(rpc_stream_close_send(ch->st, &err), STATUS_OK);
    }
    for (bool ended = false; !ended && !ch->n_done;) {
        ProtobufCMessage *m = NULL;
        assert_int_equal(rpc_stream_try_recv(ch->st, &m, &ended, &err), STATUS_OK);
        if (!m && !ended)
            return;
        if (m)
            assert_int_equal(((Note *)(void *)m)->number, ++ch->n_got);
        rpc_message_free(m);
        if (ended)
            ch->n_done = 1;
    }
}

static void test_bidi_stream_is_written_without_a_thread(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    static struct chatter ch;
    memset(&ch, 0, sizeof ch);
    ch.n_to_send = 300;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    assert_int_equal(rpc_stream_open(c, &test_service.methods[CHAT], NULL, NULL, &ch.st, &err),
                     STATUS_OK);
    rpc_stream_on_event(ch.st, on_chat, &ch);
    assert_true(wait_for_count(&ch.n_done, 1));
    assert_int_equal(ch.n_got, 300);
    assert_true(ch.n_full > 0); // more than its credit
    rpc_stream_free(ch.st);
    rpc_client_free(c);
    world_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_breaker_opens_after_failures_in_a_row),
        cmocka_unit_test(test_breaker_opens_at_half_failing),
        cmocka_unit_test(test_breaker_forgets_what_is_long_ago),
        cmocka_unit_test(test_breaker_probes_one_at_a_time),
        cmocka_unit_test(test_breaker_stays_open_thirty_seconds_at_most),
        cmocka_unit_test(test_budget_is_refilled_by_successes_and_time),
        cmocka_unit_test(test_plan_follows_method_and_caller),
        cmocka_unit_test(test_what_never_started_is_repeated_for_free),
        cmocka_unit_test(test_round_robin_takes_turns),
        cmocka_unit_test(test_least_loaded_goes_where_less_is_in_flight),
        cmocka_unit_test(test_endpoints_change_without_failing_calls),
        cmocka_unit_test(test_lazy_client_dials_a_few_of_many),
        cmocka_unit_test(test_failures_name_the_endpoint_and_why),
        cmocka_unit_test(test_hedge_finds_the_server_that_answers),
        cmocka_unit_test(test_async_calls_are_repeated_as_waiting_ones_are),
        cmocka_unit_test(test_cancel_ends_a_call_between_its_attempts),
        cmocka_unit_test(test_client_that_closes_ends_what_waits),
        cmocka_unit_test(test_calls_in_flight_and_waiting_are_shown),
        cmocka_unit_test(test_stream_is_repeated_before_its_first_message),
        cmocka_unit_test(test_stream_is_read_without_a_thread),
        cmocka_unit_test(test_no_event_comes_after_free),
        cmocka_unit_test(test_bidi_stream_is_written_without_a_thread),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
