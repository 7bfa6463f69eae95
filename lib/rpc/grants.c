// Grants and keys that change while connections are open.
//
// Each call asks about its caller's grant. What was open before is found here: a server looks
// through its connections when it is told to, ends what belongs to a peer that is no longer good
// and gives the connection a second, so that the peer hears why.
//
// A client's sessions are renewed from inside, by its clock thread: when their keys are old, when
// we have another identity, and when the server has another key. The server answers with the grant
// that it has by then.
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/conn_internal.h"
#include "rpc/internal.h"

#define FAREWELL_US 1000000
#define UNARY_GRACE_US 5000000

// ---------------------------------------------------------------- servers

void rpc_server_set_identity(struct rpc_server *s, const struct chan_identity *id,
                             const struct chan_identity *other)
{
    chan_local_set_identity(s->local, id, other);
}

static void end_flows(struct conn *c)
{
    list_for_each_safe(it, tmp, &c->flows)
    {
        struct flow *f = list_entry(it, struct flow, all);
        f->status = (struct frame_status){.code = STATUS_PERMISSION_DENIED};
        (void)str_copy(f->status.msg, sizeof f->status.msg,
                       "the node's grant has expired or was revoked");
        flow_post(f, FLOW_ENDED);
    }
}

static void check_caller(struct rpc_server *s, struct conn *c)
{
    conn_lock(c);
    const struct chan_peer *p = chan_peer(c->chan);
    if (!c->dead && c->ready && !c->end_at_us && p->link == CHAN_LINK_SERVICE &&
        !rpc_server_trusts_peer(s, p)) {
        log_warn(s->o.log, "rpc_grant_ended", F_STR("node", p->grant.node_id),
                 F_I64("serial", (int64_t)p->grant.serial), F_I64("calls", c->n_calls));
        end_flows(c);
        conn_goaway(c);
        conn_end_at(c, time_mono_us() + FAREWELL_US, "the peer's grant has ended");
    }
    conn_unlock(c);
}

static void each_conn(struct rpc_server *s, void (*check)(struct rpc_server *s, struct conn *c))
{
    size_t n;
    struct conn **all = server_conns(s, &n);
    for (size_t i = 0; all && i < n; i++) {
        check(s, all[i]);
        conn_unref(all[i]);
    }
    mem_free(all);
}

void rpc_server_check_grants(struct rpc_server *s)
{
    each_conn(s, check_caller);
}

static bool has_revoked_user(const struct rpc_server *s, const struct rpc_call *c)
{
    return c->token && atomic_load(&c->token->is_verified) &&
           !s->o.user_ok(s->o.user_ok_ud, &c->token->user);
}

static void check_call(const struct rpc_server *s, struct rpc_call *c, int64_t now_us)
{
    struct flow *f = &c->flow;
    if (c->finished || f->ended || f->status.code != STATUS_OK || !has_revoked_user(s, c))
        return;
    if (!c->revoked_us)
        c->revoked_us = now_us;
    if (c->entry->m->kind == RPC_UNARY && now_us - c->revoked_us < UNARY_GRACE_US)
        return;
    log_info(s->o.log, "rpc_login_ended", F_STR("method", f->label),
             F_STR("login", c->token->user.session));
    f->status = (struct frame_status){.code = STATUS_UNAUTHENTICATED};
    (void)str_copy(f->status.msg, sizeof f->status.msg,
                   "the login has ended or its rights have changed: renew the token");
    flow_post(f, FLOW_ENDED);
}

static void check_calls(struct rpc_server *s, struct conn *c)
{
    int64_t now_us = time_mono_us();
    conn_lock(c);
    list_for_each_safe(it, tmp, &c->flows)
    {
        struct flow *f = list_entry(it, struct flow, all);
        check_call(s, list_entry(f, struct rpc_call, flow), now_us);
    }
    conn_unlock(c);
}

void rpc_server_check_users(struct rpc_server *s)
{
    if (s->o.user_ok)
        each_conn(s, check_calls);
}

void rpc_server_doubt_tokens(struct rpc_server *s)
{
    token_cache_doubt(s->tokens);
}

// ---------------------------------------------------------------- clients

#define RENEW_LIMIT_US 20000000 // a server that lives answers within
#define RENEW_LOOK_US 10000     // whether it did, or a slot of the transport is free to ask
#define RENEW_AGAIN_US 1000000  // when there was no memory

void rpc_client_set_identity(struct rpc_client *c, const struct chan_identity *id)
{
    chan_local_set_identity(c->local, id, NULL);
    clock_wake_at(c->clock, 0);
}

void rpc_client_check_grants(struct rpc_client *c)
{
    atomic_fetch_add(&c->n_checks, 1);
    clock_wake_at(c->clock, 0);
}

struct server_keys {
    uint8_t key[32], next[32]; // the same twice when there is one
};

static bool is_due(const struct link *l, const struct chan *chan, const struct server_keys *keys,
                   int64_t now_us)
{
    return now_us >= l->renew_us ||
           !(chan_is_with(chan, keys->key) || chan_is_with(chan, keys->next)) ||
           chan_generation(chan) != chan_local_generation(l->client->local);
}

// Returns when to look again. A session whose keys are old is better than none.
static int64_t begin_renewal(struct link *l, struct conn *c, const struct server_keys *keys,
                             int64_t now_us)
{
    const uint8_t *key = chan_is_with(c->chan, keys->next) ? keys->next : keys->key;
    struct err err = ERR_INIT;
    struct buf out;

    buf_init(&out, 4096);
    enum status s = chan_renew(c->chan, key, &out, &err);
    if (s == STATUS_OK) {
        conn_send_raw(c, &out);
        link_renewed(l, now_us);
    }
    buf_done(&out);
    return now_us + (s == STATUS_OK ? RENEW_LOOK_US : RENEW_AGAIN_US);
}

// All at once would be a burst of handshakes: up to a tenth sooner.
void link_renewed(struct link *l, int64_t now_us)
{
    int64_t after_us = l->client->o.renew_after_ms * 1000;

    l->renewed_us = now_us;
    l->renew_us = now_us + after_us - (int64_t)rand_below((uint64_t)after_us / 10 + 1);
}

static bool is_good_server(struct link *l, const struct conn *c)
{
    const struct chan_peer *p = chan_peer(c->chan);

    return !p->has_grant || chan_local_trusts(l->client->local, &p->grant);
}

// Called with the connection's lock held. Returns when to look again.
static int64_t look_after(struct link *l, struct conn *c, const struct server_keys *keys,
                          int64_t now_us)
{
    if (chan_is_renewing(c->chan)) {
        if (now_us - l->renewed_us >= RENEW_LIMIT_US)
            conn_kill(c, "the server did not answer a new handshake");
        return now_us + RENEW_LOOK_US;
    }
    if (is_due(l, c->chan, keys, now_us)) {
        return c->slots_used < c->o.n_slots ? begin_renewal(l, c, keys, now_us)
                                            : now_us + RENEW_LOOK_US;
    }
    unsigned n_checks = atomic_load(&l->client->n_checks);
    if (l->n_checks != n_checks && !is_good_server(l, c)) {
        log_warn(l->client->o.log, "rpc_server_grant_ended", F_STR("endpoint", l->endpoint->url),
                 F_STR("node", chan_peer(c->chan)->grant.node_id));
        conn_kill(c, "the server's grant has expired or was revoked");
    }
    l->n_checks = n_checks;
    return l->renew_us;
}

void link_look_after_session(struct link *l, int64_t now_us, int64_t *next_us)
{
    struct rpc_client *cl = l->client;
    struct conn *c = l->conn;
    const struct endpoint *e = l->endpoint;
    struct server_keys keys;

    if (cl->kind != CHAN_LINK_SERVICE)
        return;
    pthread_mutex_lock(&cl->lock);
    memcpy(keys.key, e->key, sizeof keys.key);
    memcpy(keys.next, e->has_next_key ? e->next_key : e->key, sizeof keys.next);
    pthread_mutex_unlock(&cl->lock);
    int64_t at = TIME_NEVER;
    conn_lock(c);
    if (!c->dead && c->ready)
        at = look_after(l, c, &keys, now_us);
    conn_unlock(c);
    *next_us = at < *next_us ? at : *next_us;
}
