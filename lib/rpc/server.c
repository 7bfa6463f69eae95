// A server: its methods, its clock, its stop. Handlers run on the pool the service gave us.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define DEFAULT_IO_THREADS 2
#define DEFAULT_CALLS_CLIENT 128
#define DEFAULT_CALLS_SERVICE 4096 // a gateway brings many clients' calls over one link
#define LATE_US 5000               // until a full pool is tried again
#define GOODBYE_MS 50              // for peers to take note when there is no grace

// ---------------------------------------------------------------- methods

static unsigned name_hash(const char *name)
{
    unsigned h = 2166136261U;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 16777619U;
    return h % N_METHOD_BUCKETS;
}

struct method_entry *server_method(struct rpc_server *s, const char *name)
{
    struct method_entry *e = s->methods[name_hash(name)];
    while (e && strcmp(e->m->name, name) != 0)
        e = e->next;
    return e;
}

static void set_method(struct method_entry *e, const struct rpc_method *m)
{
    const char *dot = strrchr(m->name, '.');
    unsigned queue_ms = m->max_queue_ms ? m->max_queue_ms : RPC_MAX_QUEUE_MS;
    e->m = m;
    e->service = m->name;
    e->n_service = dot ? (size_t)(dot - m->name) : 0;
    e->max_concurrent = m->max_concurrent ? m->max_concurrent : RPC_MAX_CONCURRENT;
    e->max_queue_us = queue_ms * INT64_C(1000);
}

static enum status add_method(struct rpc_server *s, const struct rpc_method *m, rpc_thunk thunk,
                              void (*handler)(void), void *self, struct err *err)
{
    struct method_entry *e = server_method(s, m->name);
    if (e && e->thunk && thunk)
        return err_set(err, STATUS_ALREADY_EXISTS, "method %s is served already", m->name);
    if (!e) {
        e = mem_alloc(sizeof *e);
        if (!e)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "method %s: out of memory", m->name);
        struct method_entry **at = &s->methods[name_hash(m->name)];
        e->next = *at;
        *at = e;
        set_method(e, m);
    }
    if (thunk) {
        set_method(e, m);
        e->thunk = thunk;
        e->handler = handler;
        e->self = self;
    }
    return STATUS_OK;
}

enum status rpc_server_add(struct rpc_server *s, const struct rpc_service *svc,
                           const rpc_thunk *thunks, void (*const *handlers)(void), void *self,
                           struct err *err)
{
    if (s->is_listening)
        return err_set(err, STATUS_FAILED_PRECONDITION, "%s: the server listens already",
                       svc->name);
    for (size_t i = 0; i < svc->n_methods; i++) {
        enum status st = add_method(s, &svc->methods[i], thunks[i], handlers[i], self, err);
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

enum status rpc_server_intercept(struct rpc_server *s, const struct rpc_interceptor *i,
                                 struct err *err)
{
    if (s->is_listening)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "interceptor %s: the server listens already", i->name);
    if (s->n_interceptors == RPC_INTERCEPTORS_MAX)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "interceptor %s: more than %d", i->name,
                       RPC_INTERCEPTORS_MAX);
    s->interceptors[s->n_interceptors++] = *i;
    return STATUS_OK;
}

void rpc_server_set_router(struct rpc_server *s, const struct rpc_service *const *known,
                           size_t n_known, rpc_route_fn fn, void *ud)
{
    s->route = fn;
    s->route_ud = ud;
    struct err err = ERR_INIT;
    for (size_t i = 0; i < n_known; i++) {
        for (size_t k = 0; k < known[i]->n_methods; k++) {
            if (add_method(s, &known[i]->methods[k], NULL, NULL, NULL, &err) != STATUS_OK)
                log_error(s->o.log, "rpc_route_table", F_ERR(&err));
        }
    }
}

void rpc_server_set_elsewhere(struct rpc_server *s, rpc_elsewhere_fn fn, void *ud, unsigned allow)
{
    s->elsewhere = fn;
    s->elsewhere_ud = ud;
    s->elsewhere_allow = allow;
}

// ---------------------------------------------------------------- time

void server_call_late(struct rpc_server *s, struct rpc_call *c)
{
    pthread_mutex_lock(&s->lock);
    list_push_back(&s->late_calls, &c->late);
    pthread_mutex_unlock(&s->lock);
    clock_wake_at(s->clock, time_mono_us() + LATE_US);
}

static void submit_late(struct rpc_server *s)
{
    struct list late;
    list_init(&late);
    pthread_mutex_lock(&s->lock);
    while (!list_is_empty(&s->late_calls))
        list_push_back(&late, list_pop_front(&s->late_calls));
    pthread_mutex_unlock(&s->lock);
    while (!list_is_empty(&late)) {
        struct rpc_call *c = list_entry(list_pop_front(&late), struct rpc_call, late);
        conn_lock(c->flow.conn);
        c->writable_again = true;
        conn_unlock(c->flow.conn);
        call_submit_writable(c);
    }
}

static int64_t next_late(struct rpc_server *s, int64_t now_us)
{
    pthread_mutex_lock(&s->lock);
    int64_t at = list_is_empty(&s->late_calls) ? TIME_NEVER : now_us + LATE_US;
    pthread_mutex_unlock(&s->lock);
    return at;
}

static int64_t on_tick(void *ud, int64_t now_us)
{
    struct rpc_server *s = ud;
    submit_late(s);
    int64_t next = next_late(s, now_us), tell = server_tell_of_door(s, now_us);
    next = tell < next ? tell : next;
    size_t n;
    struct conn **all = server_conns(s, &n);
    if (!all)
        return now_us + 1000000;
    for (size_t i = 0; i < n; i++) {
        int64_t at = all[i]->next_tick_us;
        if (at <= now_us)
            at = conn_tick(all[i], now_us);
        next = at < next ? at : next;
        conn_unref(all[i]);
    }
    mem_free(all);
    // No oftener than once a millisecond, however many deadlines there are.
    return next < now_us + 1000 ? now_us + 1000 : next;
}

// ---------------------------------------------------------------- life

struct rpc_server *rpc_server_new(const struct rpc_server_opts *o, struct err *err)
{
    struct rpc_server *s = mem_alloc(sizeof *s);
    if (!s) {
        err_set(err, STATUS_RESOURCE_EXHAUSTED, "server: out of memory");
        return NULL;
    }
    s->o = *o;
    if (s->o.ping_after_ms == 0)
        s->o.ping_after_ms = DEFAULT_PING_MS;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->cond, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&s->half_open);
    list_init(&s->conns);
    list_init(&s->late_calls);
    s->door = door_new(&o->door);
    rand_bytes(s->trace_seed, sizeof s->trace_seed);
    s->tokens = token_cache_new(o->verify, o->verify_ud);
    s->local = chan_local_new(o->identity, o->trust);
    if (s->local)
        chan_local_set_join(s->local, o->join, o->join_ud);
    s->io = work_pool_new("rpc-io", o->n_io_threads ? o->n_io_threads : DEFAULT_IO_THREADS, 65536);
    s->clock = clock_new(on_tick, s);
    if (!s->door || !s->tokens || !s->local || !s->io || !s->clock) {
        err_set(err, STATUS_RESOURCE_EXHAUSTED, "server: cannot start threads");
        rpc_server_free(s);
        return NULL;
    }
    return s;
}

void rpc_server_close(struct rpc_server *s)
{
    pthread_mutex_lock(&s->lock);
    bool was = s->is_closing;
    s->is_closing = true;
    pthread_mutex_unlock(&s->lock);
    if (was)
        return;
    for (size_t i = 0; i < s->n_listeners; i++)
        s->listeners[i].ops->stop_accepting(s->listeners[i].transport);
    size_t n;
    struct conn **all = server_conns(s, &n);
    for (size_t i = 0; i < n; i++) {
        conn_lock(all[i]);
        conn_goaway(all[i]);
        conn_unlock(all[i]);
        conn_unref(all[i]);
    }
    mem_free(all);
}

// Wait until pred(s) or the deadline; pred runs without the lock.
static bool wait_for(struct rpc_server *s, bool (*pred)(struct rpc_server *), int64_t deadline_us)
{
    for (;;) {
        if (pred(s))
            return true;
        int64_t now = time_mono_us();
        if (now >= deadline_us)
            return false;
        // The state may change between pred() and here without a signal: look again soon.
        int64_t until = now + 20000 < deadline_us ? now + 20000 : deadline_us;
        struct timespec ts = {.tv_sec = until / 1000000, .tv_nsec = until % 1000000 * 1000};
        pthread_mutex_lock(&s->lock);
        pthread_cond_timedwait(&s->cond, &s->lock, &ts);
        pthread_mutex_unlock(&s->lock);
    }
}

static bool no_live_calls(struct rpc_server *s)
{
    // Under the lock: whoever ended the last one may still be inside server_call_gone().
    pthread_mutex_lock(&s->lock);
    bool none = s->n_live == 0;
    pthread_mutex_unlock(&s->lock);
    return none;
}

static unsigned open_calls(struct rpc_server *s)
{
    size_t n;
    unsigned open = 0;
    struct conn **all = server_conns(s, &n);
    for (size_t i = 0; i < n; i++) {
        conn_lock(all[i]);
        open += all[i]->dead ? 0 : all[i]->n_calls;
        open += !conn_all_acked(all[i]);
        conn_unlock(all[i]);
        conn_unref(all[i]);
    }
    mem_free(all);
    return open;
}

// Also what is still on its way: an answer, or that we are going away.
static bool is_quiet(struct rpc_server *s)
{
    return no_live_calls(s) && open_calls(s) == 0;
}

static void end_all(struct rpc_server *s, bool kill)
{
    size_t n;
    s->is_ending = true;
    struct conn **all = server_conns(s, &n);
    for (size_t i = 0; i < n; i++) {
        struct conn *c = all[i];
        conn_lock(c);
        if (kill) {
            conn_kill(c, "closed");
        } else {
            list_for_each_safe(it, tmp, &c->flows)
            {
                struct flow *f = list_entry(it, struct flow, all);
                if (f->tx_status_pending) // it has ended, and its status says how
                    continue;
                f->status = (struct frame_status){.code = STATUS_UNAVAILABLE,
                                                  .msg = "the server is stopping"};
                flow_post(f, FLOW_ENDED);
            }
        }
        conn_unlock(c);
        conn_unref(c);
    }
    mem_free(all);
}

void rpc_server_stop(struct rpc_server *s, int64_t grace_ms)
{
    if (s->is_stopped)
        return;
    rpc_server_close(s);
    if (!wait_for(s, is_quiet, time_deadline_in_ms(grace_ms ? grace_ms : GOODBYE_MS))) {
        end_all(s, false);
        // Cancelled handlers end soon, and their answers are worth a moment.
        wait_for(s, is_quiet, time_deadline_in_ms(grace_ms < 1000 ? grace_ms : 1000));
    }
    end_all(s, true);
    while (!wait_for(s, no_live_calls, time_deadline_in_ms(10000)))
        log_warn(s->o.log, "rpc_stop_waits_for_handlers", F_I64("calls", atomic_load(&s->n_live)));
    for (size_t i = 0; i < s->n_listeners; i++)
        s->listeners[i].ops->free(s->listeners[i].transport);
    work_pool_stop(s->io);
    clock_stop(s->clock);
    s->is_stopped = true;
}

void rpc_server_free(struct rpc_server *s)
{
    if (!s)
        return;
    if (s->clock && s->io)
        rpc_server_stop(s, 0);
    for (size_t i = 0; i < N_CONN_BUCKETS; i++) {
        while (s->table[i]) {
            struct conn *c = s->table[i];
            s->table[i] = c->table_next;
            server_kill_conn(c, "closed");
            conn_unref(c);
        }
    }
    clock_free(s->clock);
    work_pool_free(s->io);
    token_cache_free(s->tokens);
    chan_local_unref(s->local);
    door_free(s->door);
    for (size_t i = 0; i < N_METHOD_BUCKETS; i++) {
        while (s->methods[i]) {
            struct method_entry *next = s->methods[i]->next;
            mem_free(s->methods[i]);
            s->methods[i] = next;
        }
    }
    pthread_cond_destroy(&s->cond);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

void server_call_gone(struct rpc_server *s)
{
    if (!s->is_closing) { // nobody waits; and once it is counted, s may be gone
        atomic_fetch_sub(&s->n_live, 1);
        return;
    }
    pthread_mutex_lock(&s->lock);
    if (atomic_fetch_sub(&s->n_live, 1) == 1)
        pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
}

static void add_method_stats(void *ud, const struct rpc_method_stats *m)
{
    struct rpc_server_stats *ret = ud;
    ret->n_calls += m->n_started;
    for (size_t i = STATUS_OK + 1; i < RPC_N_STATUS; i++)
        ret->n_failed += m->by_status[i];
}

void rpc_server_get_stats(struct rpc_server *s, struct rpc_server_stats *ret)
{
    size_t n;
    unsigned open = 0;
    struct conn **all = server_conns(s, &n);
    struct rpc_server_stats live = {.n_calls = 0};
    for (size_t i = 0; i < n; i++) {
        struct conn *c = all[i];
        conn_lock(c);
        if (!c->dead) {
            open += c->n_calls;
            live.bytes_in += c->bytes_in;
            live.bytes_out += c->bytes_out;
            live.records_in += c->rx_records;
            live.records_out += c->tx_records;
        }
        conn_unlock(c);
        conn_unref(c);
    }
    mem_free(all);
    pthread_mutex_lock(&s->lock);
    *ret = s->stats;
    ret->conns_open = s->n_conns;
    ret->half_open = door_n_half_open(s->door);
    pthread_mutex_unlock(&s->lock);
    rpc_server_methods_each(s, add_method_stats, ret);
    ret->calls_open = open;
    ret->bytes_in += live.bytes_in;
    ret->bytes_out += live.bytes_out;
    ret->records_in += live.records_in;
    ret->records_out += live.records_out;
}

unsigned server_max_calls(const struct rpc_server *s, const struct conn *c)
{
    if (s->o.max_calls_per_conn)
        return s->o.max_calls_per_conn;
    return c->o.is_client_link ? DEFAULT_CALLS_CLIENT : DEFAULT_CALLS_SERVICE;
}

void rpc_fini(void)
{
    transport_nng_fini();
}
