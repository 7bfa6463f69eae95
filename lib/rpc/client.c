// A client: its life, where its calls go and how they end, waiting for a connection.
#include <errno.h>
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define DEFAULT_CONNECT_MS 5000
#define DEFAULT_RENEW_MS 3600000
#define DRAIN_LOOK_US 50000
#define GOODBYE_US 100000

static void waiters_tick(struct rpc_client *cl, int64_t now_us, int64_t *next_us);

// Only the clock thread adds and removes links, so it may walk the list without the lock.
static int64_t on_tick(void *ud, int64_t now_us)
{
    struct rpc_client *cl = ud;
    int64_t next = TIME_NEVER;
    if (!cl->is_started)
        return TIME_NEVER;
    list_for_each_safe(it, tmp, &cl->links)
    {
        struct link *l = list_entry(it, struct link, all);
        link_tick(l, now_us, &next);
        pthread_mutex_lock(&cl->lock);
        bool draining = l->draining;
        pthread_mutex_unlock(&cl->lock);
        if (!draining)
            continue;
        if (l->conn && !l->conn->dead && l->conn->n_flows > 0) {
            next = now_us + DRAIN_LOOK_US < next ? now_us + DRAIN_LOOK_US : next;
            continue;
        }
        pthread_mutex_lock(&cl->lock);
        list_remove(&l->all);
        pthread_mutex_unlock(&cl->lock);
        link_free(l);
    }
    endpoints_tick(cl, now_us, &next);
    unary_tick(cl, now_us, &next);
    waiters_tick(cl, now_us, &next);
    return next < now_us + 1000 ? now_us + 1000 : next;
}

// ---------------------------------------------------------------- waiting for a connection

static void waiters_tick(struct rpc_client *cl, int64_t now_us, int64_t *next_us)
{
    struct list due;
    list_init(&due);
    pthread_mutex_lock(&cl->lock);
    bool live = endpoints_any_usable(cl, now_us);
    list_for_each_safe(it, tmp, &cl->waiters)
    {
        struct client_waiter *w = list_entry(it, struct client_waiter, node);
        int64_t at = live ? w->not_before_us : w->until_us;
        if (at > now_us && !cl->is_closing) {
            *next_us = at < *next_us ? at : *next_us;
            continue;
        }
        list_remove(&w->node);
        list_push_back(&due, &w->node);
    }
    pthread_mutex_unlock(&cl->lock);
    while (!list_is_empty(&due)) {
        struct client_waiter *w = list_entry(list_pop_front(&due), struct client_waiter, node);
        w->fn(w);
    }
}

void client_when_ready(struct rpc_client *cl, struct client_waiter *w)
{
    pthread_mutex_lock(&cl->lock);
    list_push_back(&cl->waiters, &w->node);
    cl->is_wanted = true;
    pthread_mutex_unlock(&cl->lock);
    clock_wake_at(cl->clock, 0);
}

// ---------------------------------------------------------------- choosing a connection

struct conn *client_pick(struct attempt *s, const struct endpoint *avoid, bool only_other)
{
    struct rpc_client *cl = s->client;
    int64_t now = time_mono_us();
    pthread_mutex_lock(&cl->lock);
    struct endpoint *e = cl->is_closing ? NULL : endpoint_choose(cl, now, avoid);
    if (!e && avoid && !only_other && !cl->is_closing)
        e = endpoint_choose(cl, now, NULL);
    if (!e) {
        pthread_mutex_unlock(&cl->lock);
        return NULL;
    }
    struct conn *c = conn_ref(e->current->live);
    s->endpoint = e;
    s->conn_serial = e->conn_serial;
    s->started_us = now;
    s->is_probe = breaker_begin(&e->breaker, now);
    e->n_open++;
    e->n_calls++;
    cl->stats.n_calls++;
    cl->n_live += !s->is_live;
    s->is_live = true;
    pthread_mutex_unlock(&cl->lock);
    return c;
}

// Called with the client's lock held.
static void leave_endpoint(struct attempt *s, enum breaker_verdict v, int64_t now_us)
{
    struct endpoint *e = s->endpoint;
    s->endpoint = NULL;
    breaker_end(&e->breaker, v, s->is_probe, now_us);
    s->is_probe = false;
    e->n_open--;
    endpoint_release(s->client, e);
}

void client_unpick(struct attempt *s)
{
    struct rpc_client *cl = s->client;
    pthread_mutex_lock(&cl->lock);
    s->endpoint->n_calls--;
    cl->stats.n_calls--;
    leave_endpoint(s, BREAKER_NEUTRAL, 0);
    pthread_mutex_unlock(&cl->lock);
}

static void wake_all(void *ud)
{
    struct rpc_client *cl = ud;
    pthread_mutex_lock(&cl->lock);
    pthread_cond_broadcast(&cl->cond);
    pthread_mutex_unlock(&cl->lock);
}

static void timed_wait(struct rpc_client *cl, int64_t until_us)
{
    struct timespec ts = {.tv_sec = until_us / 1000000, .tv_nsec = until_us % 1000000 * 1000};
    pthread_cond_timedwait(&cl->cond, &cl->lock, &ts);
}

void client_want(struct rpc_client *cl)
{
    bool first = !cl->is_wanted;
    cl->is_wanted = true;
    if (first)
        clock_wake_at(cl->clock, 0);
}

// Called with the client's lock held. STATUS_OK: wait on.
static enum status why_stop(struct rpc_client *cl, const struct call_spec *spec, int64_t until_us,
                            struct err *err)
{
    int64_t now = time_mono_us();
    if (cl->is_closing)
        return err_set(err, STATUS_CANCELLED, "the client is closing");
    if (cancel_is_fired(spec->cancel[0]) || cancel_is_fired(spec->cancel[1]))
        return err_set(err, STATUS_CANCELLED, "cancelled");
    bool refused = endpoints_any_ready(cl); // by their breakers
    if (!refused && now < until_us)
        return STATUS_OK;
    enum status s = endpoints_explain(cl, now, err);
    if (now >= spec->deadline_us)
        s = err_wrap(err, STATUS_DEADLINE_EXCEEDED, "deadline exceeded before the call began");
    return s;
}

enum status client_wait_ready(struct rpc_client *cl, const struct call_spec *spec, int64_t until_us,
                              struct err *err)
{
    struct cancel_hook *h[2];
    for (int i = 0; i < 2; i++)
        h[i] = spec->cancel[i] ? cancel_hook(spec->cancel[i], wake_all, cl) : NULL;
    enum status s = STATUS_OK;
    pthread_mutex_lock(&cl->lock);
    client_want(cl);
    while (!endpoints_any_usable(cl, time_mono_us()) || cl->is_closing) {
        s = why_stop(cl, spec, until_us, err);
        if (s != STATUS_OK)
            break;
        timed_wait(cl, until_us);
    }
    pthread_mutex_unlock(&cl->lock);
    cancel_unhook(h[0]);
    cancel_unhook(h[1]);
    return s;
}

int64_t client_connect_deadline(const struct rpc_client *c, int64_t deadline_us)
{
    int64_t until = time_deadline_in_ms(c->o.connect_timeout_ms);
    return until < deadline_us ? until : deadline_us;
}

// A connection that is lost takes all its calls with it, which is one failure and not many.
static enum breaker_verdict verdict(struct endpoint *e, const struct attempt_end *end)
{
    switch (end->code) {
    case STATUS_CANCELLED:
        return BREAKER_NEUTRAL;
    case STATUS_DEADLINE_EXCEEDED:
        return end->was_silent ? BREAKER_BAD : BREAKER_NEUTRAL;
    case STATUS_UNAVAILABLE:
        if (end->was_refused) // it is there, and says what to do
            return BREAKER_GOOD;
        if (end->was_lost && e->lost_serial == end->conn_serial)
            return BREAKER_NEUTRAL;
        e->lost_serial = end->was_lost ? end->conn_serial : e->lost_serial;
        return BREAKER_BAD;
    default:
        return BREAKER_GOOD;
    }
}

void client_result_locked(struct attempt *s, struct attempt_end *e, int64_t now_us)
{
    struct rpc_client *cl = s->client;
    struct endpoint *at = s->endpoint;
    e->endpoint = at;
    if (!at)
        return;
    cl->stats.n_failed += e->code != STATUS_OK;
    at->n_failed += e->code != STATUS_OK;
    if (e->code == STATUS_OK)
        retry_earn(&cl->budget);
    leave_endpoint(s, verdict(at, e), now_us);
}

void client_result(struct attempt *s, struct attempt_end *e)
{
    int64_t now = time_mono_us();
    pthread_mutex_lock(&s->client->lock);
    client_result_locked(s, e, now);
    pthread_mutex_unlock(&s->client->lock);
}

void client_result_code(struct attempt *s, enum status code)
{
    struct attempt_end e = {.code = code};
    if (s->flow.conn)
        attempt_get_end(s, &e);
    e.code = code;
    client_result(s, &e);
}

bool client_may_repeat(struct rpc_client *cl, const struct endpoint *e, bool is_hedge,
                       int64_t now_us)
{
    pthread_mutex_lock(&cl->lock);
    bool ok = retry_spend(&cl->budget, now_us);
    cl->stats.n_retries += ok && !is_hedge;
    cl->stats.n_hedges += ok && is_hedge;
    list_for_each(it, &cl->all_endpoints)
    {
        struct endpoint *at = list_entry(it, struct endpoint, all);
        if (!ok || at != e)
            continue;
        at->n_retries += !is_hedge;
        at->n_hedges += is_hedge;
    }
    pthread_mutex_unlock(&cl->lock);
    return ok;
}

bool client_enter(struct rpc_client *c)
{
    pthread_mutex_lock(&c->lock);
    bool ok = !c->is_closing;
    c->n_live += ok;
    pthread_mutex_unlock(&c->lock);
    return ok;
}

void client_leave(struct rpc_client *c)
{
    pthread_mutex_lock(&c->lock);
    if (--c->n_live == 0)
        pthread_cond_broadcast(&c->cond);
    pthread_mutex_unlock(&c->lock);
}

// ---------------------------------------------------------------- life

static void client_release(struct rpc_client *cl)
{
    clock_stop(cl->clock); // transports still wake it
    for (struct list *it; (it = list_pop_front(&cl->links));)
        link_free(list_entry(it, struct link, all));
    clock_free(cl->clock);
    work_pool_free(cl->own_pool);
    chan_local_unref(cl->local);
    explicit_bzero(&cl->join, sizeof cl->join);
    endpoints_free(cl);
    pthread_cond_destroy(&cl->cond);
    pthread_mutex_destroy(&cl->lock);
    mem_free(cl);
}

// Here rather than on the clock's thread, so that an address that makes no sense is heard of.
static enum status dial_first(struct rpc_client *cl, struct err *err)
{
    if (cl->o.lazy || cl->o.max_connections)
        return STATUS_OK;
    for (size_t i = 0; i < cl->n_endpoints; i++) {
        cl->endpoints[i]->since_us = time_mono_us();
        enum status s = link_open(cl, cl->endpoints[i], err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

struct rpc_client *rpc_client_new(const struct rpc_client_opts *o, struct err *err)
{
    struct rpc_client *cl = mem_alloc(sizeof *cl);
    if (!cl || o->n_endpoints == 0) {
        mem_free(cl);
        err_set(err, cl ? STATUS_INVALID_ARGUMENT : STATUS_RESOURCE_EXHAUSTED,
                cl ? "a client needs an endpoint" : "client: out of memory");
        return NULL;
    }
    cl->o = *o;
    if (cl->o.connect_timeout_ms == 0)
        cl->o.connect_timeout_ms = DEFAULT_CONNECT_MS;
    if (cl->o.ping_after_ms == 0)
        cl->o.ping_after_ms = DEFAULT_PING_MS;
    if (cl->o.renew_after_ms == 0)
        cl->o.renew_after_ms = DEFAULT_RENEW_MS;
    cl->kind = o->join ? CHAN_LINK_ENROL : o->identity ? CHAN_LINK_SERVICE : CHAN_LINK_CLIENT;
    if (o->join)
        cl->join = *o->join;
    cl->o.join = NULL;
    cl->local = chan_local_new(o->identity, o->trust);
    cl->o.identity = NULL;
    cl->o.trust = NULL;
    pthread_mutex_init(&cl->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&cl->cond, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&cl->links);
    list_init(&cl->all_endpoints);
    list_init(&cl->registered);
    list_init(&cl->waiting);
    list_init(&cl->due);
    list_init(&cl->completed);
    list_init(&cl->waiters);
    cl->budget = (struct retry_budget){.units = RETRY_BUDGET_MAX, .refilled_us = time_mono_us()};
    cl->random = rand_u64() | 1;
    cl->pool = o->pool;
    cl->o.name = NULL;
    if (o->name)
        str_copy(cl->name, sizeof cl->name, o->name);
    enum status s = cl->local ? endpoints_set(cl, o->endpoints, o->n_endpoints, err)
                              : err_set(err, STATUS_RESOURCE_EXHAUSTED, "client: out of memory");
    cl->o.endpoints = NULL;
    cl->clock = s == STATUS_OK ? clock_new(on_tick, cl) : NULL;
    if (s == STATUS_OK && !cl->clock)
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "client: out of memory or threads");
    if (s == STATUS_OK)
        s = dial_first(cl, err);
    if (s != STATUS_OK) {
        client_release(cl);
        return NULL;
    }
    channels_add(cl);
    cl->is_started = true; // from here on the links are the clock's
    clock_wake_at(cl->clock, 0);
    return cl;
}

enum status rpc_client_set_endpoints(struct rpc_client *cl, const struct rpc_endpoint *e, size_t n,
                                     struct err *err)
{
    pthread_mutex_lock(&cl->lock);
    enum status s = endpoints_set(cl, e, n, err);
    pthread_cond_broadcast(&cl->cond);
    pthread_mutex_unlock(&cl->lock);
    clock_wake_at(cl->clock, 0);
    return s;
}

// Cancel what is open and wait a moment for the server to know: then nothing more comes in, and
// nng closes quietly. (Seen: its reaper hangs now and then on a pipe closed amid a stream.)
static void say_goodbye(struct rpc_client *cl, struct link *l, struct conn *c)
{
    int64_t until = time_mono_us() + GOODBYE_US;
    conn_lock(c);
    list_for_each_safe(it, tmp, &c->flows)
    {
        flow_abort(list_entry(it, struct flow, all), STATUS_CANCELLED, "the client is closing");
    }
    conn_goaway(c);
    conn_unlock(c);
    for (;;) {
        conn_lock(c);
        bool quiet = conn_all_acked(c);
        conn_unlock(c);
        int64_t now = time_mono_us();
        if (quiet || now >= until || link_is_lost(l))
            break;
        // The last ACK may come between looking and waiting: look again soon.
        pthread_mutex_lock(&cl->lock);
        timed_wait(cl, now + 5000 < until ? now + 5000 : until);
        pthread_mutex_unlock(&cl->lock);
    }
    conn_lock(c);
    conn_end(c, STATUS_CANCELLED, "the client is closing");
    conn_unlock(c);
}

static void abort_flows(struct rpc_client *cl)
{
    list_for_each(it, &cl->links)
    {
        struct link *l = list_entry(it, struct link, all);
        struct conn *c = link_conn(l);
        if (c)
            say_goodbye(cl, l, c);
        conn_unref(c);
    }
}

void rpc_client_free(struct rpc_client *cl)
{
    if (!cl)
        return;
    channels_remove(cl);
    pthread_mutex_lock(&cl->lock);
    cl->is_closing = true;
    pthread_cond_broadcast(&cl->cond);
    pthread_mutex_unlock(&cl->lock);
    clock_stop(cl->clock); // links stay as they are from here on
    abort_flows(cl);
    int64_t next = TIME_NEVER;
    waiters_tick(cl, time_mono_us(), &next);
    unary_fail_waiting(cl);
    pthread_mutex_lock(&cl->lock);
    while (cl->n_live)
        pthread_cond_wait(&cl->cond, &cl->lock);
    pthread_mutex_unlock(&cl->lock);
    client_release(cl);
}

bool rpc_client_is_connected(struct rpc_client *cl)
{
    pthread_mutex_lock(&cl->lock);
    bool yes = endpoints_any_ready(cl);
    pthread_mutex_unlock(&cl->lock);
    return yes;
}

void rpc_client_get_stats(struct rpc_client *cl, struct rpc_client_stats *ret)
{
    struct conn *live[64];
    size_t n = 0;
    int64_t now = time_mono_us();
    pthread_mutex_lock(&cl->lock);
    *ret = cl->stats;
    ret->calls_open = cl->n_live;
    ret->breaker_open = cl->n_endpoints > 0;
    for (size_t i = 0; i < cl->n_endpoints; i++) {
        const struct endpoint *e = cl->endpoints[i];
        ret->breaker_open &= !breaker_allows(&e->breaker, now);
        if (e->current && e->current->live && n < N_ELEMENTS(live))
            live[n++] = conn_ref(e->current->live);
    }
    pthread_mutex_unlock(&cl->lock);
    for (size_t i = 0; i < n; i++) {
        conn_lock(live[i]);
        if (!live[i]->dead) {
            ret->bytes_in += live[i]->bytes_in;
            ret->bytes_out += live[i]->bytes_out;
            ret->records_in += live[i]->rx_records;
            ret->records_out += live[i]->tx_records;
        }
        conn_unlock(live[i]);
        conn_unref(live[i]);
    }
}
