// Forwarding: a client's call goes on to a service, fragment by fragment, undecoded.
//
// Two flows are tied together: `down` towards the client (a server's call on its connection) and
// `up` towards the service (a client's stream on another connection). Fragments that arrive on one
// are pushed on the other; the credit of their bytes is given back on the first only when the
// second has sealed them, so a slow client slows its own service call and nothing is buffered in
// between.
//
// The two connections have a lock each, and neither is taken inside the other: what must move is
// taken from one under its lock, then pushed under the other's. Each direction moves on one thread
// at a time (`busy`), or fragments could overtake each other.
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

enum { UP, DOWN, N_DIRECTIONS }; // where to

struct proxy {
    pthread_mutex_t lock; // everything here; held for moments only
    struct rpc_call *call;
    struct attempt *up; // referenced from its start until the call is answered
    bool busy[N_DIRECTIONS], again[N_DIRECTIONS];
    bool answered;
    struct rpc_client *client;
    struct client_waiter waiter;
};

struct proxy *proxy_new(struct rpc_call *c)
{
    struct proxy *p = mem_alloc(sizeof *p);
    if (!p)
        return NULL;
    pthread_mutex_init(&p->lock, NULL);
    p->call = c;
    return p;
}

void proxy_free(struct proxy *p)
{
    if (!p)
        return;
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}

static struct chunk *to_chunk(struct rx_msg *m)
{
    struct chunk *c = chunk_new(m->n);
    if (!c)
        return NULL;
    memcpy(c->data, m->data, m->n);
    c->last = m->last;
    c->half = m->half;
    return c;
}

static void take_all(struct flow *f, struct rx_msg **ret_head, bool *ret_half)
{
    struct rx_msg **at = ret_head;
    conn_lock(f->conn);
    while ((*at = flow_take(f)))
        at = &(*at)->next;
    *ret_half = f->rx_half;
    conn_unlock(f->conn);
}

// False: out of memory.
static bool push_all(struct flow *f, struct rx_msg *m, bool half)
{
    bool ok = true;
    conn_lock(f->conn);
    while (m) {
        struct rx_msg *next = m->next;
        struct chunk *c = ok ? to_chunk(m) : NULL; // nothing may follow a fragment left out
        ok = c != NULL;
        if (c)
            flow_push(f, c);
        mem_free(m);
        m = next;
    }
    if (half && ok)
        flow_half_close(f);
    conn_unlock(f->conn);
    return ok;
}

// What `to` has sealed is credit for whoever sends to `from`.
static void pass_credit(struct flow *from, struct flow *to)
{
    conn_lock(to->conn);
    size_t cost = to->tx_sealed;
    to->tx_sealed = 0;
    conn_unlock(to->conn);
    if (!cost)
        return;
    conn_lock(from->conn);
    flow_grant(from, cost);
    conn_unlock(from->conn);
}

static void answer(struct proxy *p, const struct frame_status *st)
{
    pthread_mutex_lock(&p->lock);
    bool first = !p->answered;
    p->answered = true;
    struct attempt *up = TAKE(p->up); // which references the call in turn
    pthread_mutex_unlock(&p->lock);
    attempt_unref(up);
    if (!first)
        return;
    conn_lock(p->call->flow.conn);
    call_finish_locked(p->call, st);
}

static void move_once(struct proxy *p, struct attempt *s, int where)
{
    struct flow *down = &p->call->flow, *up = &s->flow;
    struct flow *from = where == UP ? down : up, *to = where == UP ? up : down;
    struct rx_msg *m = NULL;
    bool half = false, ended = false;
    struct frame_status st = {.code = STATUS_OK};
    pass_credit(from, to);
    if (where == DOWN) {
        // Before taking: what arrived ahead of the status is then among what is taken.
        conn_lock(up->conn);
        ended = up->ended;
        st = up->status;
        conn_unlock(up->conn);
    }
    take_all(from, &m, &half);
    if ((m || (half && where == UP)) && !push_all(to, m, half && where == UP)) {
        attempt_cancel(s);
        st = (struct frame_status){.code = STATUS_RESOURCE_EXHAUSTED, .msg = "out of memory"};
        ended = true;
    }
    if (ended) {
        answer(p, &st);
        client_result_code(s, st.code);
    }
}

static void move(struct proxy *p, struct attempt *s, int where)
{
    pthread_mutex_lock(&p->lock);
    p->again[where] = true;
    if (p->busy[where]) {
        pthread_mutex_unlock(&p->lock);
        return;
    }
    p->busy[where] = true;
    while (p->again[where]) {
        p->again[where] = false;
        pthread_mutex_unlock(&p->lock);
        move_once(p, s, where);
        pthread_mutex_lock(&p->lock);
    }
    p->busy[where] = false;
    pthread_mutex_unlock(&p->lock);
}

// Events of the service's side. The stream holds a reference of the call while it lives.
static void on_up_event(struct attempt *s, unsigned events)
{
    struct rpc_call *c = s->ud;
    struct proxy *p = c->proxy;
    if (events & (FLOW_READABLE | FLOW_ENDED))
        move(p, s, DOWN);
    if (events & FLOW_SEALED)
        move(p, s, UP);
}

static void on_up_gone(struct attempt *s)
{
    call_unref(s->ud);
}

static struct attempt *get_up(struct proxy *p)
{
    pthread_mutex_lock(&p->lock);
    struct attempt *s = p->up ? attempt_ref(p->up) : NULL;
    pthread_mutex_unlock(&p->lock);
    return s;
}

// Events of the client's side.
void proxy_event(struct rpc_call *c, unsigned events)
{
    struct proxy *p = c->proxy;
    struct attempt *s = get_up(p);
    if (!s)
        return; // proxy_start() looks again once it is there
    if (events & FLOW_ENDED) {
        conn_lock(c->flow.conn);
        struct frame_status st = c->flow.status;
        conn_unlock(c->flow.conn);
        answer(p, &st); // first: the attempt's own end would say CANCELLED instead
        attempt_cancel(s);
        client_result_code(s, STATUS_CANCELLED);
    } else {
        if (events & FLOW_READABLE)
            move(p, s, UP);
        if (events & FLOW_SEALED)
            move(p, s, DOWN);
    }
    attempt_unref(s);
}

static void refuse(struct rpc_call *c, enum status code, const char *msg)
{
    struct frame_status st = {.code = code};
    str_copy(st.msg, sizeof st.msg, msg);
    answer(c->proxy, &st);
}

static bool start_up(struct rpc_call *c, struct rpc_client *cl)
{
    struct call_spec spec = {.m = c->entry->m,
                             .token = c->token ? c->token->text : NULL,
                             .route = c->route,
                             .key = c->key,
                             .deadline_us = c->deadline_us,
                             .forwarded = true,
                             .trace = &c->trace,
                             .metadata = c->metadata,
                             .n_metadata = c->n_metadata,
                             .attempt = c->attempt};
    struct attempt *s = attempt_new(cl, &spec);
    if (!s)
        return false;
    s->flow.raw = true;
    s->flow.is_unary_in = false; // fragments are not counted as messages here
    s->on_event = on_up_event;
    s->on_gone = on_up_gone;
    s->ud = call_ref(c);
    bool ok = attempt_start(s, &spec);
    struct proxy *p = c->proxy;
    pthread_mutex_lock(&p->lock);
    if (ok && !p->answered)
        p->up = attempt_ref(s);
    pthread_mutex_unlock(&p->lock);
    attempt_unref(s);
    return ok;
}

// What came before the other side existed, a cancellation included.
static void catch_up(struct rpc_call *c)
{
    conn_lock(c->flow.conn);
    bool over = c->flow.status.code != STATUS_OK;
    conn_unlock(c->flow.conn);
    proxy_event(c, over ? FLOW_ENDED : FLOW_READABLE);
}

// The waiter holds a reference of the call, and so of the proxy it is in.
static void on_ready(struct client_waiter *w)
{
    struct proxy *p = list_entry(w, struct proxy, waiter);
    struct rpc_call *c = p->call;
    conn_lock(c->flow.conn);
    struct frame_status st = c->flow.status;
    conn_unlock(c->flow.conn);
    if (st.code != STATUS_OK) // cancelled while it waited
        answer(p, &st);
    else if (start_up(c, p->client))
        catch_up(c);
    else
        refuse(c, STATUS_UNAVAILABLE, "the service behind the gateway is not reachable");
    struct rpc_client *cl = p->client;
    call_unref(c);
    client_leave(cl);
}

static void begin(struct rpc_call *c)
{
    struct rpc_server *s = c->server;
    struct proxy *p = c->proxy;
    struct err err = ERR_INIT;
    enum status st = s->route(s->route_ud, c->entry->m, c->route, &p->client, &err);
    if (st == STATUS_OK && !p->client)
        st = err_set(&err, STATUS_UNAVAILABLE, "no service is known for this call");
    if (st != STATUS_OK) {
        refuse(c, st, err.msg);
        return;
    }
    if (start_up(c, p->client)) {
        catch_up(c);
        return;
    }
    if (!client_enter(p->client)) {
        refuse(c, STATUS_UNAVAILABLE, "the gateway is shutting down");
        return;
    }
    call_ref(c);
    p->waiter.fn = on_ready;
    p->waiter.until_us = client_connect_deadline(p->client, c->deadline_us);
    client_when_ready(p->client, &p->waiter);
}

// ---------------------------------------------------------------- meant for another server

static void admit_and_begin(struct rpc_call *c)
{
    struct err err = ERR_INIT;
    enum status s = call_authorise(c, c->server->elsewhere_allow, &err);
    conn_lock(c->flow.conn);
    struct frame_status st = c->flow.status;
    conn_unlock(c->flow.conn);
    if (st.code != STATUS_OK) // cancelled meanwhile
        answer(c->proxy, &st);
    else if (s == STATUS_OK)
        begin(c);
    else
        refuse(c, s, err.msg);
}

static void admit_job(void *ud)
{
    struct rpc_call *c = ud;
    struct rpc_call *before = rpc_call_enter(c);
    admit_and_begin(c);
    rpc_call_enter(before);
    call_unref(c);
}

void proxy_start(struct rpc_call *c)
{
    chain_forwarded(c);
    if (!c->entry->thunk) {
        begin(c);
    } else if (call_is_known(c)) {
        admit_and_begin(c);
    } else if (!work_pool_submit(c->server->o.pool, admit_job, call_ref(c))) {
        refuse(c, STATUS_UNAVAILABLE, "the gateway is overloaded: try again later");
        call_unref(c);
    }
}
