// What is done around every handler, in this order; afterwards the other way round:
//
//   metrics      counts the call and its times
//   auth         who calls, and may they; a token not seen before waits for the handler's thread
//   limits       sheds what is too much: calls of the method at once, time in the queue
//   deadline     what nobody waits for any more does not run
//   the server's own interceptors
//   log          one line a call: failures, or with debug all
//
// They are called by name: a table of functions would cost an inline call more than what they do.
// Each has up to three moments: when the request is complete (on the I/O strand, where nothing may
// block), before the handler on its thread, and at the end. What is counted is counted before the
// status leaves, so that whoever has the answer finds it counted.
#include <string.h>

#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define BUSY_RETRY_MIN_MS 100
#define BUSY_RETRY_MAX_MS 5000
#define LOG_FAILURES_PER_S 50 // a flood is for the metrics to tell

// ---------------------------------------------------------------- metrics

static uint64_t add(_Atomic uint64_t *counter, uint64_t n)
{
    return atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static unsigned bucket_of(int64_t us)
{
    if (us <= 16)
        return 0;
    unsigned i = 64U - (unsigned)__builtin_clzll((uint64_t)(us - 1) >> 4);
    return i < RPC_HISTOGRAM_BUCKETS - 1 ? i : RPC_HISTOGRAM_BUCKETS - 1;
}

static void observe(struct histogram *h, int64_t us)
{
    add(&h->counts[bucket_of(us)], 1);
    if (us > 0)
        add(&h->sum_us, (uint64_t)us);
}

static void set_time(_Atomic int64_t *at, int64_t now_us)
{
    atomic_store_explicit(at, now_us, memory_order_relaxed);
}

static void metrics_arrived(struct rpc_call *c)
{
    struct method_metrics *m = &c->entry->metrics;
    set_time(&c->arrived_us, time_mono_us());
    // Others may come and go at any moment: those that ended must not be more than had come.
    uint64_t released = atomic_load_explicit(&m->released, memory_order_acquire);
    uint64_t started = add(&m->started, 1);
    c->n_ahead = started > released ? (unsigned)(started - released) : 0;
}

static void metrics_before(struct rpc_call *c, bool is_inline)
{
    // Inline handlers begin where the request arrives.
    int64_t now = is_inline ? c->arrived_us : time_mono_us();
    set_time(&c->started_us, now);
    observe(&c->entry->metrics.queue, now - c->arrived_us);
}

static void metrics_end(struct rpc_call *c, enum status s, const struct rpc_timings *t)
{
    struct method_metrics *m = &c->entry->metrics;
    unsigned code = (unsigned)s;
    add(&m->by_status[code < RPC_N_STATUS ? code : STATUS_UNKNOWN], 1);
    add(&m->bytes_in, t->bytes_in);
    add(&m->bytes_out, t->bytes_out);
    if (c->started_us)
        observe(&m->handling, t->handling_us);
    add(&m->released, 1);
}

// ---------------------------------------------------------------- auth

static enum status auth_arrived(struct rpc_call *c, struct err *err)
{
    // A verified token needs no thread to wait on.
    return call_is_known(c) ? call_authorise(c, c->entry->m->allow, err) : STATUS_OK;
}

static enum status auth_before(struct rpc_call *c, struct err *err)
{
    return c->authorised ? STATUS_OK : call_authorise(c, c->entry->m->allow, err);
}

// ---------------------------------------------------------------- limits

// About how long one call takes, which is when there may be room.
static int64_t busy_retry_ms(const struct method_metrics *m)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < RPC_HISTOGRAM_BUCKETS; i++)
        n += get(&m->handling.counts[i]);
    int64_t ms = n ? (int64_t)(get(&m->handling.sum_us) / n / 1000) : 0;
    if (ms < BUSY_RETRY_MIN_MS)
        return BUSY_RETRY_MIN_MS;
    return ms < BUSY_RETRY_MAX_MS ? ms : BUSY_RETRY_MAX_MS;
}

void chain_shed(struct rpc_call *c, int64_t retry_after_ms)
{
    add(&c->entry->metrics.shed, 1);
    c->reason = RPC_REASON_OVERLOADED;
    c->retry_after_ms = retry_after_ms;
}

static enum status limits_arrived(struct rpc_call *c, struct err *err)
{
    const struct method_entry *e = c->entry;
    if (c->n_ahead < e->max_concurrent)
        return STATUS_OK;
    chain_shed(c, busy_retry_ms(&e->metrics));
    return err_set(err, STATUS_UNAVAILABLE, "%s: %u calls run already, at most %u", e->m->name,
                   c->n_ahead, e->max_concurrent);
}

static enum status limits_before(struct rpc_call *c, struct err *err)
{
    const struct method_entry *e = c->entry;
    int64_t waited = c->started_us - c->arrived_us;
    if (waited <= e->max_queue_us)
        return STATUS_OK;
    chain_shed(c, waited / 1000 < BUSY_RETRY_MAX_MS ? waited / 1000 : BUSY_RETRY_MAX_MS);
    return err_set(err, STATUS_UNAVAILABLE,
                   "%s: the server is overloaded: %lld ms passed before a thread was free, at most "
                   "%lld",
                   e->m->name, (long long)(waited / 1000), (long long)(e->max_queue_us / 1000));
}

// ---------------------------------------------------------------- deadline

static enum status deadline_before(struct rpc_call *c, struct err *err)
{
    if (c->started_us < c->deadline_us)
        return STATUS_OK;
    return err_set(err, STATUS_DEADLINE_EXCEEDED, "%s: its time was up before it began",
                   c->entry->m->name);
}

// ---------------------------------------------------------------- the server's own

static enum status own_before(struct rpc_call *c, struct err *err)
{
    const struct rpc_server *s = c->server;
    for (; c->n_before < s->n_interceptors; c->n_before++) {
        const struct rpc_interceptor *i = &s->interceptors[c->n_before];
        enum status st = i->before ? i->before(i->ud, c, err) : STATUS_OK;
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

static void own_after(struct rpc_call *c, enum status s, const struct rpc_timings *t)
{
    while (c->n_before > 0) {
        const struct rpc_interceptor *i = &c->server->interceptors[--c->n_before];
        if (i->after)
            i->after(i->ud, c, s, t);
    }
}

// ---------------------------------------------------------------- log

// clang-format off
static const enum log_level levels[RPC_N_STATUS] = {
    [STATUS_OK] = LOG_DEBUG,                 [STATUS_CANCELLED] = LOG_DEBUG,
    [STATUS_UNKNOWN] = LOG_WARN,             [STATUS_INVALID_ARGUMENT] = LOG_INFO,
    [STATUS_DEADLINE_EXCEEDED] = LOG_INFO,   [STATUS_NOT_FOUND] = LOG_DEBUG,
    [STATUS_ALREADY_EXISTS] = LOG_DEBUG,     [STATUS_PERMISSION_DENIED] = LOG_INFO,
    [STATUS_RESOURCE_EXHAUSTED] = LOG_WARN,  [STATUS_FAILED_PRECONDITION] = LOG_DEBUG,
    [STATUS_ABORTED] = LOG_DEBUG,            [STATUS_OUT_OF_RANGE] = LOG_DEBUG,
    [STATUS_UNIMPLEMENTED] = LOG_INFO,       [STATUS_INTERNAL] = LOG_WARN,
    [STATUS_UNAVAILABLE] = LOG_WARN,         [STATUS_DATA_LOSS] = LOG_WARN,
    [STATUS_UNAUTHENTICATED] = LOG_INFO,
};
// clang-format on

// Whether this second has room for another line about a failure.
static bool may_log_failure(struct rpc_server *s)
{
    int64_t now = time_mono_ms() / 1000, second = s->log_second;
    if (second != now && atomic_compare_exchange_strong(&s->log_second, &second, now))
        atomic_store_explicit(&s->n_logged, 0, memory_order_relaxed);
    return atomic_fetch_add_explicit(&s->n_logged, 1, memory_order_relaxed) < LOG_FAILURES_PER_S;
}

static void log_after(struct rpc_call *c, const struct frame_status *st,
                      const struct rpc_timings *t)
{
    struct log *l = c->server->o.log;
    unsigned code = (unsigned)st->code;
    enum log_level level = levels[code < RPC_N_STATUS ? code : STATUS_UNKNOWN];
    if (!log_is_on(l, level) || (level > LOG_DEBUG && !may_log_failure(c->server)))
        return;
    const struct chan_peer *p = rpc_call_peer(c);
    char span[17], parent[17];
    str_hex(span, c->trace.span_id, sizeof c->trace.span_id);
    str_hex(parent, c->parent_span, sizeof c->parent_span);
    LOG_AT_(l, level, "rpc_call", F_STR("method", c->entry->m->name),
            F_STR("status", status_name(st->code)), F_STR("error", st->msg),
            F_STR("user", c->token && c->token->is_verified ? c->token->user.id : ""),
            F_STR("node", p && p->has_grant ? p->grant.node_id : ""), F_STR("span", span),
            F_STR("parent", parent), F_I64("attempt", c->attempt), F_I64("queue_us", t->queue_us),
            F_I64("took_us", t->handling_us), F_I64("bytes_in", t->bytes_in),
            F_I64("bytes_out", t->bytes_out));
}

// ---------------------------------------------------------------- the chain

enum status chain_arrived(struct rpc_call *c, struct err *err)
{
    metrics_arrived(c);
    enum status s = auth_arrived(c, err);
    return s == STATUS_OK ? limits_arrived(c, err) : s;
}

void chain_forwarded(struct rpc_call *c)
{
    metrics_arrived(c);
    metrics_before(c, true);
}

enum status chain_before(struct rpc_call *c, bool is_inline, struct err *err)
{
    metrics_before(c, is_inline);
    enum status s = auth_before(c, err);
    if (s == STATUS_OK && !is_inline)
        s = limits_before(c, err);
    if (s == STATUS_OK)
        s = deadline_before(c, err);
    return s == STATUS_OK && c->server->n_interceptors ? own_before(c, err) : s;
}

void chain_end(struct rpc_call *c, enum status s, struct rpc_timings *ret)
{
    int64_t started = c->started_us;
    *ret = (struct rpc_timings){.bytes_in = c->flow.bytes_in,
                                .bytes_out = c->flow.bytes_out + c->flow.tx_queued};
    if (started) {
        ret->queue_us = started - c->arrived_us;
        ret->handling_us = time_mono_us() - started;
    }
    metrics_end(c, s, ret);
}

void chain_after(struct rpc_call *c, const struct frame_status *st, const struct rpc_timings *t)
{
    struct rpc_call *before = rpc_call_enter(c); // it may end on a thread that works for another
    own_after(c, st->code, t);
    log_after(c, st, t);
    rpc_call_enter(before);
}
