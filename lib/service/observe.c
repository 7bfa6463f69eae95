// Node.Methods, Channels and Calls: copies of what lib/rpc shows, made into messages.
//
// Clients belong to the process: where several nodes share one, each shows the clients of all.
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/mem.h"
#include "base/str.h"
#include "cauce/node.rpc.h"
#include "service/internal.h"

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

// An array of messages that grows in an arena. Once memory is short it takes nothing more.
struct rows {
    struct arena *arena;
    void **all;
    size_t n, most;
    bool failed;
};

// A new message of that size, zeroed; NULL: failed.
static void *rows_add(struct rows *r, size_t size)
{
    if (r->n == r->most && !r->failed) {
        size_t most = r->most ? 2 * r->most : 16;
        void **all = arena_array(r->arena, most, sizeof(all[0]));
        r->failed = !all;
        if (all && r->n)
            memcpy(all, r->all, r->n * sizeof(all[0]));
        r->all = all ? all : r->all;
        r->most = all ? most : r->most;
    }
    void *m = r->failed ? NULL : arena_alloc(r->arena, size);
    r->failed = !m;
    if (m)
        r->all[r->n++] = m;
    return m;
}

static char *text(struct rows *r, const char *s)
{
    char *copy = arena_strdup(r->arena, s);
    r->failed |= !copy;
    return copy;
}

static char *role_text(struct rows *r, unsigned role)
{
    const char *name = role ? svc_role_name(role) : NULL;
    return text(r, name ? name : "");
}

static const char *self_id(struct rpc_call *call)
{
    const struct instance *in = rpc_call_self(call);
    return in->svc.self->id;
}

// ---------------------------------------------------------------- methods

struct methods {
    struct rows rows;
    const Node__MethodsRequest *req;
};

static Node__Histogram *make_histogram(struct rows *r, const struct rpc_histogram *h)
{
    Node__Histogram *ret = arena_alloc(r->arena, sizeof(*ret));
    int64_t *counts = arena_array(r->arena, RPC_HISTOGRAM_BUCKETS, sizeof(counts[0]));
    r->failed |= !ret || !counts;
    if (r->failed)
        return NULL;
    node__histogram__init(ret);
    for (size_t i = 0; i < RPC_HISTOGRAM_BUCKETS; i++)
        counts[i] = (int64_t)h->counts[i];
    ret->counts = counts;
    ret->n_counts = RPC_HISTOGRAM_BUCKETS;
    ret->sum_us = (int64_t)h->sum_us;
    return ret;
}

static void count_statuses(struct rows *r, const struct rpc_method_stats *m, Node__MethodStats *ret)
{
    struct rows failures = {.arena = r->arena};
    ret->calls = (int64_t)m->by_status[STATUS_OK];
    for (unsigned s = STATUS_OK + 1; s < RPC_N_STATUS; s++) {
        ret->calls += (int64_t)m->by_status[s];
        Node__StatusCount *c =
            m->by_status[s] ? rows_add(&failures, sizeof(Node__StatusCount)) : NULL;
        if (!c)
            continue;
        node__status_count__init(c);
        c->status = text(&failures, status_name((enum status)s));
        c->count = (int64_t)m->by_status[s];
    }
    r->failed |= failures.failed;
    ret->failures = (Node__StatusCount **)failures.all;
    ret->n_failures = failures.n;
}

// Those of a forwarded method are not ours.
static void set_limits(Node__MethodStats *s, const struct rpc_method_stats *m)
{
    const struct rpc_method *d = m->method;
    if (m->is_forwarded)
        return;
    s->max_concurrent = d->max_concurrent ? d->max_concurrent : RPC_MAX_CONCURRENT;
    s->max_queue_ms = d->max_queue_ms ? d->max_queue_ms : RPC_MAX_QUEUE_MS;
}

static void add_method(void *ud, const struct rpc_method_stats *m)
{
    struct methods *all = ud;
    struct rows *r = &all->rows;
    bool is_used = m->n_started != 0;
    if (!str_starts_with(m->method->name, all->req->prefix) || (!is_used && !all->req->unused))
        return;
    Node__MethodStats *s = rows_add(r, sizeof(*s));
    if (!s)
        return;
    node__method_stats__init(s);
    s->name = text(r, m->method->name);
    s->in_flight = m->in_flight;
    s->shed = (int64_t)m->n_shed;
    s->bytes_in = (int64_t)m->bytes_in;
    s->bytes_out = (int64_t)m->bytes_out;
    s->forwarded = m->is_forwarded;
    s->queue = make_histogram(r, &m->queue);
    s->handling = make_histogram(r, &m->handling);
    set_limits(s, m);
    count_statuses(r, m, s);
}

static int by_name(const void *a, const void *b)
{
    const Node__MethodStats *x = *(Node__MethodStats *const *)a;
    const Node__MethodStats *y = *(Node__MethodStats *const *)b;
    return strcmp(x->name, y->name);
}

enum status observe_methods(struct rpc_call *call, const Node__MethodsRequest *req,
                            Node__MethodsReply *ret, struct err *err)
{
    struct instance *in = rpc_call_self(call);
    struct methods m = {.rows = {.arena = rpc_call_arena(call)}, .req = req};
    rpc_server_methods_each(in->svc.server, add_method, &m);
    ret->node_id = text(&m.rows, self_id(call));
    ret->bounds_us = arena_array(m.rows.arena, RPC_HISTOGRAM_BUCKETS, sizeof(ret->bounds_us[0]));
    if (m.rows.failed || !ret->bounds_us)
        return no_memory(err);
    for (unsigned i = 0; i + 1 < RPC_HISTOGRAM_BUCKETS; i++)
        ret->bounds_us[ret->n_bounds_us++] = rpc_histogram_bound_us(i);
    ret->methods = (Node__MethodStats **)m.rows.all;
    ret->n_methods = m.rows.n;
    if (ret->n_methods)
        qsort(ret->methods, ret->n_methods, sizeof(ret->methods[0]), by_name);
    return STATUS_OK;
}

// ---------------------------------------------------------------- channels

static Node__ChannelState channel_state(enum rpc_channel_state s)
{
    switch (s) {
    case RPC_CHANNEL_IDLE:
        return NODE__CHANNEL_STATE__CHANNEL_IDLE;
    case RPC_CHANNEL_CONNECTING:
        return NODE__CHANNEL_STATE__CHANNEL_CONNECTING;
    case RPC_CHANNEL_READY:
        return NODE__CHANNEL_STATE__CHANNEL_READY;
    case RPC_CHANNEL_FAILING:
        return NODE__CHANNEL_STATE__CHANNEL_FAILING;
    case RPC_CHANNEL_DRAINING:
        return NODE__CHANNEL_STATE__CHANNEL_DRAINING;
    }
    return NODE__CHANNEL_STATE__CHANNEL_UNKNOWN;
}

static Node__BreakerState breaker_state(enum rpc_breaker_state s)
{
    switch (s) {
    case RPC_BREAKER_CLOSED:
        return NODE__BREAKER_STATE__BREAKER_CLOSED;
    case RPC_BREAKER_OPEN:
        return NODE__BREAKER_STATE__BREAKER_OPEN;
    case RPC_BREAKER_HALF_OPEN:
        return NODE__BREAKER_STATE__BREAKER_HALF_OPEN;
    }
    return NODE__BREAKER_STATE__BREAKER_CLOSED;
}

static void add_channel(void *ud, const struct rpc_channel_info *i)
{
    struct rows *r = ud;
    Node__Channel *c = rows_add(r, sizeof(*c));
    if (!c)
        return;
    node__channel__init(c);
    c->name = text(r, i->name);
    c->url = text(r, i->url);
    c->peer_role = role_text(r, i->expect_role);
    c->state = channel_state(i->state);
    c->breaker = breaker_state(i->breaker);
    c->calls_open = i->calls_open;
    c->calls = (int64_t)i->n_calls;
    c->errors = (int64_t)i->n_failed;
    c->retries = (int64_t)i->n_retries;
    c->hedges = (int64_t)i->n_hedges;
    c->connects = (int64_t)i->n_connects;
    c->bytes_in = (int64_t)i->bytes_in;
    c->bytes_out = (int64_t)i->bytes_out;
    c->age_ms = i->age_ms;
    c->rtt_us = i->rtt_us;
    c->last_error = text(r, i->last_error);
}

static void add_connection(void *ud, const struct rpc_conn_info *i)
{
    struct rows *r = ud;
    Node__Connection *c = rows_add(r, sizeof(*c));
    if (!c)
        return;
    node__connection__init(c);
    c->peer = text(r, i->peer);
    c->peer_role = role_text(r, i->peer_role);
    c->address = text(r, i->url);
    c->remote = text(r, i->remote);
    c->half_open = i->state == RPC_CONN_HALF_OPEN;
    c->draining = i->state == RPC_CONN_DRAINING;
    c->age_ms = i->age_ms;
    c->rtt_us = i->rtt_us;
    c->calls_open = i->calls_open;
    c->bytes_in = (int64_t)i->bytes_in;
    c->bytes_out = (int64_t)i->bytes_out;
    c->records_in = (int64_t)i->records_in;
    c->records_out = (int64_t)i->records_out;
}

enum status observe_channels(struct rpc_call *call, const Node__ChannelsRequest *req,
                             Node__ChannelsReply *ret, struct err *err)
{
    struct instance *in = rpc_call_self(call);
    struct rows channels = {.arena = rpc_call_arena(call)};
    struct rows connections = {.arena = rpc_call_arena(call)};
    (void)req;
    rpc_channels_each(add_channel, &channels);
    rpc_server_conns_each(in->svc.server, add_connection, &connections);
    ret->node_id = text(&channels, self_id(call));
    if (channels.failed || connections.failed)
        return no_memory(err);
    ret->channels = (Node__Channel **)channels.all;
    ret->n_channels = channels.n;
    ret->connections = (Node__Connection **)connections.all;
    ret->n_connections = connections.n;
    return STATUS_OK;
}

// ---------------------------------------------------------------- calls

#define MAX_CALLS 1000 // of one reply; the oldest are the interesting ones

struct open_call { // copied: of the many that may be open only those that are shown become messages
    const char *method;
    char caller[RPC_URL_SIZE];
    Node__CallDirection direction;
    Node__CallState state;
    int64_t age_ms, deadline_ms;
    uint64_t bytes_in, bytes_out;
    struct rpc_trace trace;
};

struct calls {
    const char *prefix;
    struct open_call *all; // 2 * MAX_CALLS
    size_t n;
    int64_t total;
};

static int by_age(const void *a, const void *b)
{
    int64_t x = ((const struct open_call *)a)->age_ms, y = ((const struct open_call *)b)->age_ms;
    return (x < y) - (x > y);
}

static void keep_oldest(struct calls *l)
{
    qsort(l->all, l->n, sizeof(l->all[0]), by_age);
    l->n = l->n < MAX_CALLS ? l->n : MAX_CALLS;
}

// NULL: not asked for.
static struct open_call *calls_add(struct calls *l, const char *method)
{
    if (!str_starts_with(method, l->prefix))
        return NULL;
    if (l->n == (size_t)2 * MAX_CALLS)
        keep_oldest(l);
    l->total++;
    struct open_call *c = &l->all[l->n++];
    *c = (struct open_call){.method = method};
    return c;
}

static Node__CallState call_state(enum rpc_call_state s)
{
    switch (s) {
    case RPC_CALL_QUEUED:
        return NODE__CALL_STATE__CALL_QUEUED;
    case RPC_CALL_RUNNING:
        return NODE__CALL_STATE__CALL_RUNNING;
    case RPC_CALL_STREAMING:
        return NODE__CALL_STATE__CALL_STREAMING;
    case RPC_CALL_WAITING_FOR_CREDIT:
        return NODE__CALL_STATE__CALL_WAITING_FOR_CREDIT;
    }
    return NODE__CALL_STATE__CALL_RUNNING;
}

static void add_incoming(void *ud, const struct rpc_call_info *i)
{
    struct open_call *c = calls_add(ud, i->method->name);
    if (!c)
        return;
    (void)str_copy(c->caller, sizeof(c->caller), i->user[0] ? i->user : i->peer);
    c->direction = i->is_forwarded ? NODE__CALL_DIRECTION__CALL_FORWARDED
                                   : NODE__CALL_DIRECTION__CALL_INCOMING;
    c->state = call_state(i->state);
    c->age_ms = i->age_ms;
    c->deadline_ms = i->deadline_ms;
    c->bytes_in = i->bytes_in;
    c->bytes_out = i->bytes_out;
    c->trace = i->trace;
}

static void add_outgoing(void *ud, const struct rpc_client_call_info *i)
{
    struct open_call *c = calls_add(ud, i->method);
    if (!c)
        return;
    (void)str_copy(c->caller, sizeof(c->caller), i->url);
    c->direction = NODE__CALL_DIRECTION__CALL_OUTGOING;
    c->state = i->url[0] ? NODE__CALL_STATE__CALL_RUNNING : NODE__CALL_STATE__CALL_QUEUED;
    c->age_ms = i->age_ms;
    c->deadline_ms = i->deadline_ms;
    c->bytes_in = i->bytes_in;
    c->bytes_out = i->bytes_out;
    c->trace = i->trace;
}

static void make_call(struct rows *r, const struct open_call *c)
{
    char trace[33] = "";
    Node__CallStatus *s = rows_add(r, sizeof(*s));
    if (!s)
        return;
    node__call_status__init(s);
    if (rpc_trace_is_set(&c->trace))
        str_hex(trace, c->trace.trace_id, sizeof(c->trace.trace_id));
    s->method = text(r, c->method);
    s->caller = text(r, c->caller);
    s->trace_id = text(r, trace);
    s->direction = c->direction;
    s->state = c->state;
    s->age_ms = c->age_ms;
    s->deadline_ms = c->deadline_ms;
    s->bytes_in = (int64_t)c->bytes_in;
    s->bytes_out = (int64_t)c->bytes_out;
}

enum status observe_calls(struct rpc_call *call, const Node__CallsRequest *req,
                          Node__CallsReply *ret, struct err *err)
{
    struct instance *in = rpc_call_self(call);
    struct rows rows = {.arena = rpc_call_arena(call)};
    AUTO(mem_free_p)
    struct open_call *all = mem_array((size_t)2 * MAX_CALLS, sizeof(struct open_call));
    struct calls l = {.prefix = req->prefix, .all = all};
    if (!all)
        return no_memory(err);
    rpc_server_calls_each(in->svc.server, add_incoming, &l);
    rpc_client_calls_each(add_outgoing, &l);
    keep_oldest(&l);
    for (size_t i = 0; i < l.n; i++)
        make_call(&rows, &l.all[i]);
    ret->node_id = text(&rows, self_id(call));
    if (rows.failed)
        return no_memory(err);
    ret->calls = (Node__CallStatus **)rows.all;
    ret->n_calls = rows.n;
    ret->total = l.total;
    return STATUS_OK;
}
