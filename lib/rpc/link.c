// A link: a socket that dials one endpoint for ever, and the connection it has at the moment.
//
// Dialling again. Whoever is refused in the handshake would be so again: the pause doubles with
// each connection on which no record came, and is short again after one.
//
// A link's life is run by the client's clock thread: pipes come and go on the transport's threads,
// which only note it and wake the clock. It takes back what the dead connection still had in the
// transport before the new one says its first word, or that would arrive first.
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

// ---------------------------------------------------------------- connection's callbacks

static struct link *link_of(struct conn *c)
{
    return c->ud;
}

static void owner_open(struct conn *c, uint32_t id, const struct frame_open *o)
{
    (void)id;
    (void)o;
    conn_kill(c, "OPEN from a server");
}
static bool owner_auth(struct conn *c, uint32_t slot, const void *token, size_t n)
{
    (void)c;
    (void)slot;
    (void)token;
    (void)n;
    return false;
}

static bool role_fits(const struct conn *c, const struct rpc_client *cl)
{
    const struct chan_peer *p = chan_peer(c->chan);
    if (!cl->o.expect_role)
        return true;
    return p && p->has_grant && p->grant.role < 31 &&
           (1U << p->grant.role & cl->o.expect_role) != 0;
}

static void owner_ready(struct conn *c)
{
    struct link *l = link_of(c);
    struct rpc_client *cl = l->client;
    if (!role_fits(c, cl)) {
        conn_kill(c, "the server's grant is for another role");
        return;
    }
    pthread_mutex_lock(&cl->lock);
    if (!l->draining)
        l->live = conn_ref(c);
    endpoint_connected(cl, l);
    pthread_cond_broadcast(&cl->cond);
    pthread_mutex_unlock(&cl->lock);
    clock_wake_at(cl->clock, 0); // calls may be waiting
}

// Called with the link's lock held. The pause after the connection that is there now.
static void set_backoff(struct link *l, int64_t ms)
{
    l->backoff_ms = ms < TRANSPORT_BACKOFF_MAX_MS ? ms : TRANSPORT_BACKOFF_MAX_MS;
    l->ops->set_backoff(l->transport, l->backoff_ms);
}

static void owner_confirmed(struct conn *c)
{
    struct link *l = link_of(c);
    pthread_mutex_lock(&l->lock);
    l->n_refused = 0;
    set_backoff(l, TRANSPORT_BACKOFF_MIN_MS);
    pthread_mutex_unlock(&l->lock);
}
static void owner_idle(struct conn *c)
{
    struct rpc_client *cl = link_of(c)->client;
    pthread_mutex_lock(&cl->lock);
    pthread_cond_broadcast(&cl->cond);
    pthread_mutex_unlock(&cl->lock);
}

// Called with the client's lock held. The link still holds a reference of its own.
void link_forget_live(struct link *l, struct conn *c)
{
    if (l->live != c)
        return;
    l->live = NULL;
    atomic_fetch_sub(&c->refs, 1);
}

static void owner_goaway(struct conn *c)
{
    struct link *l = link_of(c);
    struct rpc_client *cl = l->client;
    pthread_mutex_lock(&cl->lock);
    if (l->endpoint->current == l)
        endpoint_drain(cl, l->endpoint);
    l->draining = true;
    link_forget_live(l, c);
    pthread_mutex_unlock(&cl->lock);
    clock_wake_at(cl->clock, 0);
}

// Once for each time that it begins; rpc_channels_each() tells who asks later.
static void log_refused(struct link *l, const char *why)
{
    pthread_mutex_lock(&l->lock);
    bool first = l->n_refused++ == 0;
    pthread_mutex_unlock(&l->lock);
    if (first)
        log_warn(l->client->o.log, "rpc_handshake_failed", F_STR("endpoint", l->endpoint->url),
                 F_STR("why", why));
}

static void owner_dead(struct conn *c)
{
    struct link *l = link_of(c);
    struct rpc_client *cl = l->client;
    log_debug(cl->o.log, "rpc_connection_lost", F_STR("endpoint", l->endpoint->url),
              F_STR("why", c->why));
    pthread_mutex_lock(&cl->lock);
    link_forget_live(l, c);
    endpoint_lost(cl, l, c->why);
    l->try_next_key = !c->confirmed && !l->try_next_key;
    l->endpoint->bytes_in += c->bytes_in;
    l->endpoint->bytes_out += c->bytes_out;
    cl->stats.bytes_in += c->bytes_in;
    cl->stats.bytes_out += c->bytes_out;
    cl->stats.records_in += c->rx_records;
    cl->stats.records_out += c->tx_records;
    bool is_wanted = !cl->is_closing && l->endpoint->current == l;
    pthread_mutex_unlock(&cl->lock);
    if (!c->confirmed && is_wanted)
        log_refused(l, c->why);
    clock_wake_at(cl->clock, 0);
}

static void owner_wake(struct conn *c, int64_t at_us)
{
    clock_wake_at(link_of(c)->client->clock, at_us);
}

static void owner_free(struct conn *c)
{
    for (uint32_t i = 0; i < c->n_slots; i++)
        token_unref(c->slots[i]);
    mem_free(c->slots);
}

static const struct conn_owner client_conn_owner = {
    .open = owner_open,
    .auth = owner_auth,
    .ready = owner_ready,
    .confirmed = owner_confirmed,
    .goaway = owner_goaway,
    .idle = owner_idle,
    .dead = owner_dead,
    .wake = owner_wake,
    .free = owner_free,
};

// ---------------------------------------------------------------- transport's events

static bool on_attach(void *ud, uint32_t pipe)
{
    struct link *l = ud;
    pthread_mutex_lock(&l->lock);
    l->new_pipe = pipe;
    pthread_mutex_unlock(&l->lock);
    clock_wake_at(l->client->clock, 0);
    return true;
}

static void on_detach(void *ud, uint32_t pipe)
{
    struct link *l = ud;
    pthread_mutex_lock(&l->lock);
    if (l->new_pipe == pipe)
        l->new_pipe = 0;
    if (l->conn && l->conn->o.pipe == pipe)
        l->lost = true;
    pthread_mutex_unlock(&l->lock);
    clock_wake_at(l->client->clock, 0);
}

bool link_is_lost(struct link *l)
{
    pthread_mutex_lock(&l->lock);
    bool lost = l->lost;
    pthread_mutex_unlock(&l->lock);
    return lost;
}

struct conn *link_conn(struct link *l)
{
    pthread_mutex_lock(&l->lock);
    struct conn *c = l->conn ? conn_ref(l->conn) : NULL;
    pthread_mutex_unlock(&l->lock);
    return c;
}

static void on_receive(void *ud, uint32_t pipe, struct transport_msg *m, bool more)
{
    struct link *l = ud;
    struct conn *c = link_conn(l);
    if (c && c->o.pipe == pipe)
        conn_input(c, m, more);
    else
        l->ops->msg_free(m);
    conn_unref(c);
}

static void on_sent(void *ud, uint32_t pipe)
{
    struct conn *c = link_conn(ud);
    if (c && c->o.pipe == pipe)
        conn_slot_free(c);
    conn_unref(c);
}

static void on_failed(void *ud, const char *why)
{
    struct link *l = ud;
    pthread_mutex_lock(&l->client->lock);
    endpoint_lost(l->client, l, why);
    pthread_mutex_unlock(&l->client->lock);
}

static const struct transport_events link_events = {
    .attach = on_attach,
    .detach = on_detach,
    .receive = on_receive,
    .sent = on_sent,
    .failed = on_failed,
};

// ---------------------------------------------------------------- links (clock thread)

void link_free(struct link *l)
{
    if (!l)
        return;
    if (l->conn) { // it must not send to what is freed
        conn_lock(l->conn);
        conn_kill(l->conn, "closed");
        conn_unlock(l->conn);
    }
    if (l->transport)
        l->ops->free(l->transport);
    conn_unref(l->conn);
    pthread_mutex_lock(&l->client->lock);
    l->endpoint->n_links--;
    if (l->endpoint->current == l)
        l->endpoint->current = NULL;
    endpoint_release(l->client, l->endpoint);
    pthread_mutex_unlock(&l->client->lock);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}

enum status link_open(struct rpc_client *cl, struct endpoint *e, struct err *err)
{
    struct link *l = mem_alloc(sizeof *l);
    if (!l)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "dial %s: out of memory", e->url);
    l->client = cl;
    l->endpoint = e;
    l->backoff_ms = TRANSPORT_BACKOFF_MIN_MS;
    l->ops = transport_for(cl->o.transport, e->url);
    list_init(&l->all);
    pthread_mutex_init(&l->lock, NULL);
    pthread_mutex_lock(&cl->lock);
    e->n_links++;
    e->current = l; // before a first attempt fails, which may be at once
    pthread_mutex_unlock(&cl->lock);
    enum status s = l->ops->dial(e->url, &link_events, l, &l->transport, err);
    if (s != STATUS_OK) {
        link_free(l);
        return s;
    }
    pthread_mutex_lock(&cl->lock);
    list_push_back(&cl->links, &l->all);
    pthread_mutex_unlock(&cl->lock);
    return STATUS_OK;
}

// A server that refuses does not say why; these are its reasons.
static const char *why_lost(const struct conn *c)
{
    if (c->confirmed)
        return "the server closed the connection";
    return c->o.is_client_link
               ? "refused in the handshake: it has another key, or lets nobody in from here for now"
               : "refused in the handshake: it has another key, or does not accept this node's "
                 "grant";
}

static void link_drop_conn(struct link *l)
{
    struct conn *c = l->conn;
    conn_lock(c);
    conn_kill(c, why_lost(c));
    conn_unlock(c);
    l->ops->quiesce(l->transport);
    pthread_mutex_lock(&l->lock);
    l->conn = NULL;
    l->lost = false;
    pthread_mutex_unlock(&l->lock);
    conn_unref(c);
}

static void choose_key(struct link *l, uint8_t key[32])
{
    struct endpoint *e = l->endpoint;
    pthread_mutex_lock(&l->client->lock);
    memcpy(key, l->try_next_key && e->has_next_key ? e->next_key : e->key, 32);
    pthread_mutex_unlock(&l->client->lock);
}

static void link_new_conn(struct link *l, uint32_t pipe)
{
    struct rpc_client *cl = l->client;
    struct err err = ERR_INIT;
    uint8_t key[32];
    choose_key(l, key);
    struct chan *chan = chan_dial(cl->local, cl->kind, key, &cl->join, &err);
    link_renewed(l, time_mono_us());
    struct conn_opts o = {.ops = l->ops,
                          .t = l->transport,
                          .pipe = pipe,
                          .chan = chan,
                          .owner = &client_conn_owner,
                          .ud = l,
                          .is_client_link = cl->kind != CHAN_LINK_SERVICE,
                          .n_slots = TRANSPORT_DIAL_SLOTS - 1, // one for handshakes
                          .handshake_us = cl->o.handshake_timeout_ms * 1000,
                          .ping_us = cl->o.ping_after_ms * 1000};
    struct conn *c = chan ? conn_new(&o) : NULL;
    if (!c) {
        log_error(cl->o.log, "rpc_connect_failed", F_STR("endpoint", l->endpoint->url),
                  F_ERR(&err));
        l->ops->drop(l->transport, pipe);
        return;
    }
    pthread_mutex_lock(&l->lock);
    l->conn = c;
    set_backoff(l, 2 * l->backoff_ms); // unless it becomes one
    pthread_mutex_unlock(&l->lock);
    conn_lock(c);
    conn_start(c);
    conn_unlock(c);
}

void link_tick(struct link *l, int64_t now_us, int64_t *next_us)
{
    pthread_mutex_lock(&l->lock);
    uint32_t pipe = l->new_pipe;
    bool drop = l->conn && (l->lost || (pipe && pipe != l->conn->o.pipe));
    pthread_mutex_unlock(&l->lock);
    if (drop)
        link_drop_conn(l);
    if (pipe && !l->conn) {
        pthread_mutex_lock(&l->lock);
        bool is_there = l->new_pipe == pipe; // or its end, or the next one, has woken the clock
        if (is_there)
            l->new_pipe = 0;
        pthread_mutex_unlock(&l->lock);
        if (is_there)
            link_new_conn(l, pipe);
    }
    if (!l->conn)
        return;
    link_look_after_session(l, now_us, next_us);
    int64_t at = l->conn->next_tick_us;
    if (at <= now_us)
        at = conn_tick(l->conn, now_us);
    *next_us = at < *next_us ? at : *next_us;
}
