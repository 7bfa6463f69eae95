// A client: a link per endpoint, which one a call takes, and waiting for one.
#include <errno.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define DEFAULT_CONNECT_MS 5000
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
    for (size_t i = 0; i < cl->n_endpoints && !cl->is_closing; i++) {
        struct err err = ERR_INIT;
        if (cl->endpoints[i].current || link_open(cl, &cl->endpoints[i], &err) == STATUS_OK)
            continue;
        log_warn(cl->o.log, "rpc_dial_failed", F_STR("endpoint", cl->endpoints[i].url),
                 F_ERR(&err));
        next = now_us + 1000000 < next ? now_us + 1000000 : next;
    }
    async_tick(cl, now_us, &next);
    waiters_tick(cl, now_us, &next);
    return next < now_us + 1000 ? now_us + 1000 : next;
}

// ---------------------------------------------------------------- waiting for a connection

static void waiters_tick(struct rpc_client *cl, int64_t now_us, int64_t *next_us)
{
    struct list due;
    list_init(&due);
    pthread_mutex_lock(&cl->lock);
    bool live = client_has_live(cl);
    list_for_each_safe(it, tmp, &cl->waiters)
    {
        struct client_waiter *w = list_entry(it, struct client_waiter, node);
        if (!live && w->until_us > now_us && !cl->is_closing) {
            *next_us = w->until_us < *next_us ? w->until_us : *next_us;
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
    pthread_mutex_unlock(&cl->lock);
    clock_wake_at(cl->clock, 0);
}

// ---------------------------------------------------------------- choosing a connection

// Called with the client's lock held: the least loaded endpoint that is connected and trusted.
static struct link *choose(struct rpc_client *cl, int64_t now_us, bool *ret_refused)
{
    struct link *best = NULL;
    unsigned best_load = 0;
    for (size_t i = 0; i < cl->n_endpoints; i++) {
        struct endpoint *e = &cl->endpoints[(cl->turn + i) % cl->n_endpoints];
        struct link *l = e->current;
        if (!l || !l->live)
            continue;
        if (!breaker_allows(&e->breaker, now_us)) {
            *ret_refused = true;
            continue;
        }
        unsigned load = l->live->n_flows;
        if (!best || load < best_load) {
            best = l;
            best_load = load;
        }
    }
    cl->turn++;
    return best;
}

struct conn *client_pick(struct rpc_client *cl, struct endpoint **ret_endpoint)
{
    int64_t now = time_mono_us();
    bool refused = false;
    pthread_mutex_lock(&cl->lock);
    struct link *l = choose(cl, now, &refused);
    struct conn *c = l ? conn_ref(l->live) : NULL;
    if (l) {
        *ret_endpoint = l->endpoint;
        breaker_begin(&l->endpoint->breaker, now);
    }
    pthread_mutex_unlock(&cl->lock);
    return c;
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

enum status client_pause(struct rpc_client *cl, int64_t until_us, struct cancel *cancel,
                         struct err *err)
{
    struct cancel_hook *h = cancel ? cancel_hook(cancel, wake_all, cl) : NULL;
    pthread_mutex_lock(&cl->lock);
    while (!cl->is_closing && !cancel_is_fired(cancel) && time_mono_us() < until_us)
        timed_wait(cl, until_us);
    bool stop = cl->is_closing || cancel_is_fired(cancel);
    pthread_mutex_unlock(&cl->lock);
    cancel_unhook(h);
    return stop ? err_set(err, STATUS_CANCELLED, "cancelled") : STATUS_OK;
}

enum status client_wait_ready(struct rpc_client *cl, int64_t until_us, struct cancel *cancel,
                              struct err *err)
{
    struct cancel_hook *h = cancel ? cancel_hook(cancel, wake_all, cl) : NULL;
    enum status s = STATUS_OK;
    bool refused = false;
    pthread_mutex_lock(&cl->lock);
    for (;;) {
        refused = false;
        int64_t now = time_mono_us();
        if (cl->is_closing || cancel_is_fired(cancel)) {
            s = err_set(err, STATUS_CANCELLED, "cancelled");
            break;
        }
        if (choose(cl, now, &refused))
            break;
        if (refused) {
            s = err_set(err, STATUS_UNAVAILABLE,
                        "%s: it failed repeatedly and is left alone for "
                        "a moment",
                        cl->endpoints[0].url);
            break;
        }
        if (now >= until_us) {
            s = err_set(err, STATUS_UNAVAILABLE, "%s: no connection", cl->endpoints[0].url);
            break;
        }
        timed_wait(cl, until_us);
    }
    pthread_mutex_unlock(&cl->lock);
    cancel_unhook(h);
    return s;
}

int64_t client_connect_deadline(const struct rpc_client *c, int64_t deadline_us)
{
    int64_t until = time_deadline_in_ms(c->o.connect_timeout_ms);
    return until < deadline_us ? until : deadline_us;
}

void client_result(struct attempt *s, enum status code)
{
    struct rpc_client *cl = s->client;
    pthread_mutex_lock(&cl->lock);
    if (!s->counted) {
        s->counted = true;
        cl->stats.n_failed += code != STATUS_OK;
        if (code == STATUS_OK)
            retry_earn(&cl->budget);
        if (s->endpoint)
            breaker_result(&s->endpoint->breaker, code != STATUS_UNAVAILABLE, time_mono_us());
    }
    pthread_mutex_unlock(&cl->lock);
}

bool client_enter(struct rpc_client *c)
{
    pthread_mutex_lock(&c->lock);
    bool ok = !c->is_closing;
    c->n_live += ok;
    c->stats.n_calls += ok;
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
    clock_free(cl->clock);
    list_for_each_safe(it, tmp, &cl->links)
    {
        struct link *l = list_entry(it, struct link, all);
        list_remove(&l->all);
        cl->clock = NULL;
        link_free(l);
    }
    work_pool_free(cl->own_pool);
    explicit_bzero(&cl->identity, sizeof cl->identity);
    mem_free(cl->endpoints);
    pthread_cond_destroy(&cl->cond);
    pthread_mutex_destroy(&cl->lock);
    mem_free(cl);
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
    if (o->identity) {
        cl->identity = *o->identity;
        cl->o.identity = &cl->identity;
    }
    if (o->trust) {
        cl->trust = *o->trust;
        cl->o.trust = &cl->trust;
    }
    pthread_mutex_init(&cl->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&cl->cond, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&cl->links);
    list_init(&cl->waiting);
    list_init(&cl->completed);
    list_init(&cl->waiters);
    cl->budget.tenths = RETRY_BUDGET_MAX;
    cl->pool = o->pool;
    cl->endpoints = mem_array(o->n_endpoints, sizeof *cl->endpoints);
    cl->clock = cl->endpoints ? clock_new(on_tick, cl) : NULL;
    if (!cl->clock) {
        err_set(err, STATUS_RESOURCE_EXHAUSTED, "client: out of memory or threads");
        client_release(cl);
        return NULL;
    }
    for (size_t i = 0; i < o->n_endpoints; i++) {
        if (!str_copy(cl->endpoints[i].url, sizeof cl->endpoints[i].url, o->endpoints[i].url)) {
            err_set(err, STATUS_INVALID_ARGUMENT, "address too long: %s", o->endpoints[i].url);
            client_release(cl);
            return NULL;
        }
        memcpy(cl->endpoints[i].key, o->endpoints[i].key, 32);
    }
    cl->o.endpoints = NULL;
    cl->n_endpoints = o->n_endpoints;
    for (size_t i = 0; i < cl->n_endpoints; i++) {
        if (link_open(cl, &cl->endpoints[i], err) != STATUS_OK) {
            rpc_client_free(cl);
            return NULL;
        }
    }
    cl->is_started = true; // from here on the links are the clock's
    clock_wake_at(cl->clock, 0);
    return cl;
}

// Cancel what is open and wait a moment for the server to know: then nothing more comes in, and
// nng closes quietly. (Seen: its reaper hangs now and then on a pipe closed amid a stream.)
static void say_goodbye(struct rpc_client *cl, struct conn *c)
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
        if (quiet || now >= until)
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
        struct conn *c = link_conn(list_entry(it, struct link, all));
        if (c)
            say_goodbye(cl, c);
        conn_unref(c);
    }
}

void rpc_client_free(struct rpc_client *cl)
{
    if (!cl)
        return;
    pthread_mutex_lock(&cl->lock);
    cl->is_closing = true;
    pthread_cond_broadcast(&cl->cond);
    pthread_mutex_unlock(&cl->lock);
    clock_stop(cl->clock); // links stay as they are from here on
    abort_flows(cl);
    int64_t next = TIME_NEVER;
    waiters_tick(cl, time_mono_us(), &next);
    async_fail_waiting(cl);
    pthread_mutex_lock(&cl->lock);
    while (cl->n_live)
        pthread_cond_wait(&cl->cond, &cl->lock);
    pthread_mutex_unlock(&cl->lock);
    while (!list_is_empty(&cl->links)) {
        struct list *it = list_pop_front(&cl->links);
        link_free(list_entry(it, struct link, all));
    }
    client_release(cl);
}

bool client_has_live(struct rpc_client *cl)
{
    bool refused = false;
    return choose(cl, time_mono_us(), &refused) != NULL;
}

bool rpc_client_is_connected(struct rpc_client *cl)
{
    bool refused = false;
    pthread_mutex_lock(&cl->lock);
    bool yes = choose(cl, time_mono_us(), &refused) != NULL || refused;
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
    ret->breaker_open = true;
    for (size_t i = 0; i < cl->n_endpoints; i++) {
        const struct endpoint *e = &cl->endpoints[i];
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
