// What a server is doing, for whoever watches it: its connections, its calls, its methods. It is
// copied under the locks and shown without them.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

static void show_address(const struct transport_addr *a, char *dst, size_t size)
{
    const uint8_t *b = a->bytes;
    dst[0] = 0;
    if (a->family == 4)
        snprintf(dst, size, "%u.%u.%u.%u", (unsigned)b[0], (unsigned)b[1], (unsigned)b[2],
                 (unsigned)b[3]);
    else if (a->family == 6) // as far as the transport tells it
        snprintf(dst, size, "%x:%x:%x:%x::/64", b[0] << 8U | b[1], b[2] << 8U | b[3],
                 b[4] << 8U | b[5], b[6] << 8U | b[7]);
}

struct peer { // as connections and calls show it
    char id[CHAN_NODE_ID_SIZE], remote[48];
    unsigned role;
};

// Connection locked.
static void see_peer(const struct conn *c, struct peer *ret)
{
    const struct chan_peer *p = chan_peer(c->chan);
    struct transport_addr addr;
    *ret = (struct peer){.role = 0};
    if (c->o.ops->peer(c->o.t, c->o.pipe, &addr))
        show_address(&addr, ret->remote, sizeof ret->remote);
    if (!p || !p->has_grant)
        return;
    str_copy(ret->id, sizeof ret->id, p->grant.node_id);
    ret->role = p->grant.role < 31 ? 1U << p->grant.role : 0;
}

// ---------------------------------------------------------------- connections

// False: it is gone.
static bool see_conn(struct conn *c, int64_t now_us, struct rpc_conn_info *ret)
{
    struct listener *l = c->ud;
    conn_lock(c);
    bool ok = !c->dead;
    if (ok) {
        struct peer peer;
        see_peer(c, &peer);
        *ret = (struct rpc_conn_info){.peer_role = peer.role,
                                      .state = !c->ready || !c->confirmed ? RPC_CONN_HALF_OPEN
                                               : c->draining              ? RPC_CONN_DRAINING
                                                                          : RPC_CONN_READY,
                                      .age_ms = (now_us - c->born_us) / 1000,
                                      .rtt_us = c->rtt_us,
                                      .calls_open = c->n_calls,
                                      .bytes_in = c->bytes_in,
                                      .bytes_out = c->bytes_out,
                                      .records_in = c->rx_records,
                                      .records_out = c->tx_records};
        str_copy(ret->peer, sizeof ret->peer, peer.id);
        str_copy(ret->remote, sizeof ret->remote, peer.remote);
        pthread_mutex_lock(&l->server->lock);
        str_copy(ret->url, sizeof ret->url, l->url);
        pthread_mutex_unlock(&l->server->lock);
    }
    conn_unlock(c);
    return ok;
}

void rpc_server_conns_each(struct rpc_server *s,
                           void (*fn)(void *ud, const struct rpc_conn_info *info), void *ud)
{
    size_t n;
    int64_t now = time_mono_us();
    struct conn **all = server_conns(s, &n);
    for (size_t i = 0; i < n; i++) {
        struct rpc_conn_info info;
        if (see_conn(all[i], now, &info))
            fn(ud, &info);
        conn_unref(all[i]);
    }
    mem_free(all);
}

// ---------------------------------------------------------------- calls

struct calls {
    struct rpc_call_info *infos;
    size_t n, most;
};

static struct rpc_call_info *calls_add(struct calls *l)
{
    if (l->n == l->most) {
        size_t most = l->most ? 2 * l->most : 64;
        struct rpc_call_info *more = mem_realloc(l->infos, most, sizeof *more);
        if (!more)
            return NULL;
        l->infos = more;
        l->most = most;
    }
    return &l->infos[l->n++];
}

// Who writes waits for room, or what was written does.
static enum rpc_call_state call_state(const struct rpc_call *c)
{
    const struct flow *f = &c->flow;
    if (!c->started_us)
        return RPC_CALL_QUEUED;
    if (!flow_can_write(f) || (f->tx_head && !f->is_ready))
        return RPC_CALL_WAITING_FOR_CREDIT;
    return c->entry->m->kind == RPC_UNARY ? RPC_CALL_RUNNING : RPC_CALL_STREAMING;
}

static void see_call(struct rpc_call *c, const struct peer *peer, int64_t now_us,
                     struct rpc_call_info *ret)
{
    bool endless = c->deadline_us == TIME_NEVER;
    *ret = (struct rpc_call_info){.method = c->entry->m,
                                  .peer_role = peer->role,
                                  .is_forwarded = c->proxy != NULL,
                                  .state = call_state(c),
                                  .age_ms = (now_us - c->born_us) / 1000,
                                  .deadline_ms = endless ? -1 : time_left_ms(c->deadline_us),
                                  .bytes_in = c->flow.bytes_in,
                                  .bytes_out = c->flow.bytes_out,
                                  .trace = c->trace};
    str_copy(ret->peer, sizeof ret->peer, peer->id);
    str_copy(ret->remote, sizeof ret->remote, peer->remote);
    if (c->token && c->token->is_verified)
        str_copy(ret->user, sizeof ret->user, c->token->user.id);
}

static void see_calls(struct conn *conn, int64_t now_us, struct calls *calls)
{
    struct peer peer;
    conn_lock(conn);
    if (!list_is_empty(&conn->flows))
        see_peer(conn, &peer);
    list_for_each(it, &conn->flows)
    {
        struct rpc_call_info *i = calls_add(calls);
        if (!i)
            break;
        struct flow *f = list_entry(it, struct flow, all);
        see_call(list_entry(f, struct rpc_call, flow), &peer, now_us, i);
    }
    conn_unlock(conn);
}

void rpc_server_calls_each(struct rpc_server *s,
                           void (*fn)(void *ud, const struct rpc_call_info *info), void *ud)
{
    struct calls calls = {.n = 0};
    size_t n;
    int64_t now = time_mono_us();
    struct conn **all = server_conns(s, &n);
    for (size_t i = 0; i < n; i++) {
        see_calls(all[i], now, &calls);
        conn_unref(all[i]);
    }
    mem_free(all);
    for (size_t i = 0; i < calls.n; i++)
        fn(ud, &calls.infos[i]);
    mem_free(calls.infos);
}

// ---------------------------------------------------------------- methods

static uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void see_histogram(const struct histogram *h, struct rpc_histogram *ret)
{
    for (size_t i = 0; i < RPC_HISTOGRAM_BUCKETS; i++)
        ret->counts[i] = get(&h->counts[i]);
    ret->sum_us = get(&h->sum_us);
}

static void see_method(const struct method_entry *e, struct rpc_method_stats *ret)
{
    const struct method_metrics *m = &e->metrics;
    uint64_t released = get(&m->released); // before started, which it never exceeds
    *ret = (struct rpc_method_stats){.method = e->m,
                                     .service = e->service,
                                     .n_service = e->n_service,
                                     .is_forwarded = !e->thunk,
                                     .n_started = get(&m->started),
                                     .n_shed = get(&m->shed),
                                     .bytes_in = get(&m->bytes_in),
                                     .bytes_out = get(&m->bytes_out)};
    ret->in_flight = (unsigned)(ret->n_started - released);
    for (size_t i = 0; i < RPC_N_STATUS; i++)
        ret->by_status[i] = get(&m->by_status[i]);
    see_histogram(&m->queue, &ret->queue);
    see_histogram(&m->handling, &ret->handling);
}

// The table is complete before the server listens, so it needs no lock.
void rpc_server_methods_each(struct rpc_server *s,
                             void (*fn)(void *ud, const struct rpc_method_stats *m), void *ud)
{
    for (size_t i = 0; i < N_METHOD_BUCKETS; i++) {
        for (const struct method_entry *e = s->methods[i]; e; e = e->next) {
            if (e->thunk ? !e->handler : !s->route)
                continue;
            struct rpc_method_stats stats;
            see_method(e, &stats);
            fn(ud, &stats);
        }
    }
}
