// A call as the server sees it: from OPEN over the role check and the handler to STATUS.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/details.h"
#include "rpc/internal.h"

#define ARENA_MAX (64U << 20)
#define STACK_MESSAGE 4096
#define FULL_RETRY_MS 1000 // the pool's queue has no room
#define USER_ROLES (ROLE_USER | ROLE_CREATOR | ROLE_ADMIN)

static struct rpc_call *of(struct flow *f)
{
    return list_entry(f, struct rpc_call, flow);
}

struct rpc_call *call_ref(struct rpc_call *c)
{
    atomic_fetch_add(&c->refs, 1);
    return c;
}

void call_unref(struct rpc_call *c)
{
    if (!c || atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    struct rpc_server *s = c->server;
    struct conn *conn = c->flow.conn;
    if (conn && !c->finished) { // it ended before a handler began
        conn_lock(conn);
        conn_call_closed(conn);
        conn_unlock(conn);
    }
    proxy_free(c->proxy);
    rpc_message_free(c->req);
    rpc_message_free(c->read_msg);
    arena_free(c->arena);
    cancel_unref(c->cancel);
    token_unref(c->token);
    flow_done(&c->flow);
    mem_free(c);
    server_call_gone(s);
}

// ---------------------------------------------------------------- who may call

bool rpc_server_trusts_peer(const struct rpc_server *s, const struct chan_peer *p)
{
    return p->link == CHAN_LINK_SERVICE && p->has_grant &&
           p->grant.not_after_s > time_wall_ms() / 1000 &&
           (!s->o.grant_ok || s->o.grant_ok(s->o.grant_ok_ud, p));
}

bool rpc_server_trusts_user(const struct rpc_server *s, const struct rpc_user *user)
{
    return user->exp_wall_ms > time_wall_ms() &&
           (!s->o.user_ok || s->o.user_ok(s->o.user_ok_ud, user));
}

// The role that counts of a node that calls, if any. False: its grant does not.
static bool find_node_role(const struct rpc_call *c, const struct chan_peer *p, unsigned *ret)
{
    *ret = 0;
    if (p->link != CHAN_LINK_SERVICE)
        return true;
    if (!rpc_server_trusts_peer(c->server, p))
        return false;
    if (!c->forwarded && p->grant.role < 31)
        *ret = 1U << p->grant.role;
    return true;
}

enum status call_authorise(struct rpc_call *c, unsigned allow, struct err *err)
{
    const struct rpc_method *m = c->entry->m;
    const struct chan_peer *peer = chan_peer(c->flow.conn->chan);
    if (peer->link == CHAN_LINK_ENROL) {
        c->authorised = allow & ROLE_JOINER;
        return c->authorised ? STATUS_OK
                             : err_set(err, STATUS_PERMISSION_DENIED,
                                       "%s: a join secret opens enrolment only", m->name);
    }
    unsigned have;
    if (!find_node_role(c, peer, &have))
        return err_set(err, STATUS_PERMISSION_DENIED,
                       "the node's grant has expired or was revoked");
    have |= ROLE_ANON;
    if (c->token) {
        enum status s = token_verify(c->server->tokens, c->token, err);
        if (s != STATUS_OK)
            return s;
        if (!rpc_server_trusts_user(c->server, &c->token->user))
            return err_set(err, STATUS_UNAUTHENTICATED,
                           "the login has ended or its rights have changed: renew the token");
        have |= ROLE_USER | (c->token->user.roles & USER_ROLES);
        if (have & ROLE_ADMIN)
            have |= USER_ROLES;
    }
    c->authorised = true;
    if (allow & have)
        return STATUS_OK;
    if (!c->token && (allow & USER_ROLES))
        return err_set(err, STATUS_UNAUTHENTICATED, "%s needs an access token: sign in first",
                       m->name);
    return err_set(err, STATUS_PERMISSION_DENIED, "%s: the caller's role does not allow it",
                   m->name);
}

// ---------------------------------------------------------------- the answer

static void mask_internal(struct rpc_call *c, struct frame_status *st, const struct err *err)
{
    char id[UUID_SIZE];
    rand_uuid7(id);
    log_error(c->server->o.log, "rpc_internal_error", F_STR("method", c->entry->m->name),
              F_STR("request", id), F_STR("error", err ? err->msg : ""));
    snprintf(st->msg, sizeof st->msg, "internal error, request %s", id);
}

static enum status check_size(const struct rpc_call *c, size_t n, struct err *err)
{
    if (n <= RPC_MAX_MESSAGE_BYTES)
        return STATUS_OK;
    return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                   "%s: a message of %zu bytes is too large: at most %u", c->entry->m->name, n,
                   RPC_MAX_MESSAGE_BYTES);
}

// Pack the reply and queue it; on success the connection stays locked.
static enum status push_reply(struct rpc_call *c, const ProtobufCMessage *msg, struct err *err)
{
    size_t n = protobuf_c_message_get_packed_size(msg);
    enum status s = check_size(c, n, err);
    if (s != STATUS_OK)
        return s;
    uint8_t stack[STACK_MESSAGE];
    struct conn *conn = c->flow.conn;
    if (n <= sizeof stack) {
        protobuf_c_message_pack(msg, stack);
        conn_lock(conn);
        if (flow_push_small(&c->flow, stack, n, false))
            return STATUS_OK;
        conn_unlock(conn);
    }
    struct chunk *ch = chunk_new(n);
    if (!ch)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    protobuf_c_message_pack(msg, ch->data);
    ch->last = true;
    conn_lock(conn);
    flow_push(&c->flow, ch);
    return STATUS_OK;
}

void call_finish_locked(struct rpc_call *c, const struct frame_status *st)
{
    struct conn *conn = c->flow.conn;
    struct rpc_timings t;
    c->finished = true;
    chain_end(c, st->code, &t);
    flow_finish(&c->flow, st);
    conn_unlock(conn);
    chain_after(c, st, &t);
}

static void answer_failure(struct rpc_call *c, enum status s, const struct err *err)
{
    struct frame_status st = {.code = s, .retry_after_ms = c->retry_after_ms};
    uint8_t details[RPC_DETAILS_MAX_BYTES];
    if (s == STATUS_INTERNAL)
        mask_internal(c, &st, err);
    else if (err)
        str_copy(st.msg, sizeof st.msg, err->msg);
    st.details = details;
    if (c->reason)
        st.n_details = details_pack_reason(details, c->reason, true);
    else if (c->details)
        st.n_details = details_pack(c->details, details);
    conn_lock(c->flow.conn);
    // The handler was told to stop, because time was up or its caller's rights ended: say why.
    if (s == STATUS_CANCELLED && c->flow.status.code != STATUS_OK)
        st = c->flow.status;
    call_finish_locked(c, &st);
}

void call_answer(struct rpc_call *c, enum status s, const ProtobufCMessage *reply,
                 const struct err *err)
{
    struct err too_large = ERR_INIT;
    if (s == STATUS_OK && reply) {
        s = push_reply(c, reply, &too_large);
        err = &too_large;
    } else if (s == STATUS_OK) {
        conn_lock(c->flow.conn);
    }
    if (s == STATUS_OK)
        call_finish_locked(c, &(struct frame_status){.code = STATUS_OK});
    else
        answer_failure(c, s, err);
}

// ---------------------------------------------------------------- running a handler

static bool takes_request(const struct rpc_method *m)
{
    return m->kind == RPC_UNARY || m->kind == RPC_SERVER_STREAM;
}
static bool gives_reply(const struct rpc_method *m)
{
    return m->kind == RPC_UNARY || m->kind == RPC_CLIENT_STREAM;
}

// Told to stop before it began, because its caller left or the server stops: no handler sees it.
static enum status take_request(struct rpc_call *c, struct err *err)
{
    struct conn *conn = c->flow.conn;
    struct rx_msg *m = NULL;
    conn_lock(conn);
    struct frame_status st = c->flow.status;
    if (st.code == STATUS_OK && takes_request(c->entry->m))
        m = flow_take(&c->flow);
    conn_unlock(conn);
    if (st.code == STATUS_UNAVAILABLE)
        c->reason = RPC_REASON_NOT_STARTED;
    if (st.code != STATUS_OK)
        return err_from_status(err, &st);
    if (!takes_request(c->entry->m))
        return STATUS_OK;
    if (!m)
        return err_set(err, STATUS_CANCELLED, "the call ended before it began");
    return message_take(c->entry->m->request, m, &c->req, err);
}

static enum status run_handler(struct rpc_call *c, bool is_inline, ProtobufCMessage **ret_reply,
                               struct err *err)
{
    const struct rpc_method *m = c->entry->m;
    enum status s = chain_before(c, is_inline, err);
    if (s == STATUS_OK)
        s = take_request(c, err);
    if (s != STATUS_OK)
        return s;
    if (gives_reply(m)) {
        struct arena *a = rpc_call_arena(c);
        *ret_reply = a ? arena_alloc(a, m->reply->sizeof_message) : NULL;
        if (!*ret_reply)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        protobuf_c_message_init(m->reply, *ret_reply);
    }
    return c->entry->thunk(c, c->entry->handler, c->req, *ret_reply, err);
}

// Owns one reference of the call.
static void run(struct rpc_call *c, bool is_inline)
{
    struct err err = ERR_INIT;
    ProtobufCMessage *reply = NULL;
    struct rpc_call *before = rpc_call_enter(c);
    enum status s = run_handler(c, is_inline, &reply, &err);
    if (!c->deferred)
        call_answer(c, s, s == STATUS_OK ? reply : NULL, &err);
    rpc_call_enter(before);
    call_unref(c);
}

static void run_pooled(void *ud)
{
    run(ud, false);
}

static void start(struct rpc_call *c)
{
    struct err err = ERR_INIT;
    enum status s = chain_arrived(c, &err);
    if (s != STATUS_OK) {
        call_answer(c, s, NULL, &err);
        return;
    }
    call_ref(c);
    if (c->entry->m->run_inline && c->authorised) {
        run(c, true);
        return;
    }
    if (work_pool_submit(c->server->o.pool, run_pooled, c))
        return;
    call_unref(c);
    chain_shed(c, FULL_RETRY_MS);
    err_set(&err, STATUS_UNAVAILABLE, "%s: the server is overloaded: try again later",
            c->entry->m->name);
    call_answer(c, STATUS_UNAVAILABLE, NULL, &err);
}

// ---------------------------------------------------------------- events

static void run_writable(void *ud)
{
    struct rpc_call *c = ud;
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    c->writable_queued = false;
    for (;;) {
        void (*fn)(void *) = c->finished ? NULL : c->writable;
        void *fn_ud = c->writable_ud;
        if (!fn || !c->writable_again || c->writable_running)
            break;
        c->writable_again = false;
        c->writable_running = true;
        c->writable_thread = pthread_self();
        conn_unlock(conn);
        struct rpc_call *before = rpc_call_enter(c);
        fn(fn_ud);
        rpc_call_enter(before);
        conn_lock(conn);
        c->writable_running = false;
    }
    flow_post(&c->flow, 0); // wakes rpc_call_finish()
    conn_unlock(conn);
    call_unref(c);
}

void call_submit_writable(struct rpc_call *c)
{
    if (work_pool_submit(c->server->o.pool, run_writable, c))
        return;
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    bool wanted = c->writable && !c->finished;
    c->writable_queued = wanted;
    conn_unlock(conn);
    if (wanted)
        server_call_late(c->server, c); // the pool is full: nobody else would wake it again
    else
        call_unref(c);
}

static void schedule_writable(struct rpc_call *c)
{
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    bool go = c->writable && !c->finished && !c->writable_running && !c->writable_queued;
    c->writable_again = true;
    c->writable_queued |= go;
    conn_unlock(conn);
    if (!go)
        return;
    call_ref(c);
    call_submit_writable(c);
}

static void fire_cancel(struct rpc_call *c)
{
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    struct cancel *cancel = c->cancel ? cancel_ref(c->cancel) : NULL;
    conn_unlock(conn);
    if (!cancel)
        return;
    cancel_fire(cancel);
    cancel_unref(cancel);
}

static void on_event(struct flow *f, unsigned events)
{
    struct rpc_call *c = of(f);
    if (c->proxy) {
        if (events & FLOW_REQUEST)
            proxy_start(c);
        proxy_event(c, events);
        return;
    }
    if (events & FLOW_REQUEST)
        start(c);
    if (events & FLOW_ENDED)
        fire_cancel(c);
    if (events & (FLOW_ENDED | FLOW_WRITABLE) && c->deferred)
        schedule_writable(c);
}
static void on_ref(struct flow *f)
{
    call_ref(of(f));
}
static void on_unref(struct flow *f)
{
    call_unref(of(f));
}
static const struct flow_ops call_ops = {.event = on_event, .ref = on_ref, .unref = on_unref};

// What an OPEN says, kept behind the call itself. The text was bounded when it was read.
static size_t open_room(const struct frame_open *o)
{
    return o->n_metadata * sizeof(struct rpc_metadata) + o->n_metadata_bytes + o->n_metadata +
           strlen(o->route) + 1 + strlen(o->key) + 1;
}

static char *keep_text(char **at, const void *p, size_t n) // which the zeroed block terminates
{
    char *text = memcpy(*at, p, n);
    *at += n + 1;
    return text;
}

static void keep_open(struct rpc_call *c, const struct frame_open *o)
{
    const uint8_t *p = o->metadata, *end = p + o->n_metadata_bytes;
    struct rpc_metadata *entries = (struct rpc_metadata *)(void *)c->data, in;
    char *at = (char *)(entries + o->n_metadata);
    size_t key_len;
    c->metadata = o->n_metadata ? entries : NULL;
    while (c->n_metadata < o->n_metadata && frame_metadata_next(&p, end, &in, &key_len)) {
        struct rpc_metadata *e = &entries[c->n_metadata++];
        e->key = keep_text(&at, in.key, key_len);
        e->value = at;
        e->n_value = in.n_value;
        if (in.n_value)
            memcpy(at, in.value, in.n_value);
        at += in.n_value;
    }
    c->route = keep_text(&at, o->route, strlen(o->route));
    c->key = keep_text(&at, o->key, strlen(o->key));
}

static int64_t deadline_of(const struct frame_open *o, int64_t now_us)
{
    if (o->deadline_ms == 0 || o->deadline_ms > (uint64_t)(TIME_NEVER - now_us) / 1000)
        return TIME_NEVER;
    return now_us + (int64_t)o->deadline_ms * 1000;
}

static struct rpc_call *call_new(struct rpc_server *s, struct method_entry *e,
                                 const struct frame_open *o, int64_t now_us)
{
    struct rpc_call *c = mem_alloc(sizeof *c + open_room(o));
    if (!c)
        return NULL;
    flow_init(&c->flow, &call_ops);
    c->refs = 1;
    c->server = s;
    c->entry = e;
    c->forwarded = o->flags & FRAME_OPEN_FORWARDED;
    c->attempt = o->attempt;
    c->born_us = now_us;
    c->deadline_us = c->flow.deadline_us = deadline_of(o, now_us);
    c->limit_us = c->deadline_us;
    c->flow.label = e->m->name;
    keep_open(c, o);
    call_set_trace(c, &o->trace);
    return c;
}

// An answer to an OPEN that no call is made for.
struct refusal {
    enum status code; // OK: none
    const char *reason;
    char msg[240];
};

static void refuse(struct refusal *r, enum status code, const char *reason, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
static void refuse(struct refusal *r, enum status code, const char *reason, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->msg, sizeof r->msg, fmt, ap);
    va_end(ap);
    r->code = code;
    r->reason = reason;
}

static void send_refusal(struct conn *conn, uint32_t id, const struct refusal *r)
{
    uint8_t details[DETAILS_REASON_SIZE];
    struct frame_status st = {.code = r->code, .details = details};
    str_copy(st.msg, sizeof st.msg, r->msg);
    if (r->reason)
        st.n_details = details_pack_reason(details, r->reason, true);
    conn_refuse_with(conn, id, &st);
}

static void check_open(struct rpc_server *s, struct conn *conn, const struct method_entry *e,
                       const struct frame_open *o, struct refusal *r)
{
    unsigned most = server_max_calls(s, conn);
    bool for_clients = e && (e->m->allow & (ROLE_ANON | USER_ROLES));
    // Who has heard of the GOAWAY opens no more calls, and what crossed it is repeated elsewhere;
    // but for streams that the client writes: those it could not repeat.
    bool may_repeat = !e || takes_request(e->m);
    r->code = STATUS_OK;
    if (s->is_ending || ((s->is_closing || conn->draining) && may_repeat)) {
        conn_goaway(conn); // if it was not said yet: who hears the refusal must know
        refuse(r, STATUS_UNAVAILABLE, RPC_REASON_NOT_STARTED, "the server is shutting down");
    } else if (conn->n_calls >= most)
        refuse(r, STATUS_RESOURCE_EXHAUSTED, NULL,
               "%s: %u calls are open on this connection, at most %u", o->method, conn->n_calls,
               most);
    else if (o->slot && (o->slot > conn->n_slots || !conn->slots[o->slot - 1]))
        refuse(r, STATUS_UNAUTHENTICATED, NULL, "the call names a token that was not sent");
    else if (!e)
        refuse(r, STATUS_UNIMPLEMENTED, NULL, "%s: no such method here", o->method);
    else if (e->thunk ? !e->handler : !s->route)
        refuse(r, STATUS_UNIMPLEMENTED, NULL, "%s: not implemented here", o->method);
    else if (!e->thunk && !for_clients)
        refuse(r, STATUS_PERMISSION_DENIED, NULL, "%s: not reachable for clients", o->method);
    else if (o->metadata_too_much)
        refuse(r, STATUS_RESOURCE_EXHAUSTED, NULL,
               "%s: metadata of more than %d entries or %d bytes is not taken", o->method,
               RPC_METADATA_MAX, RPC_METADATA_MAX_BYTES);
}

static bool is_elsewhere(const struct rpc_server *s, const struct rpc_method *m, const char *route)
{
    return route[0] && s->elsewhere && s->elsewhere(s->elsewhere_ud, m, route);
}

void call_open(struct rpc_server *s, struct conn *conn, uint32_t id, const struct frame_open *o)
{
    struct method_entry *e = server_method(s, o->method);
    struct refusal r;
    check_open(s, conn, e, o, &r);
    bool routed = r.code == STATUS_OK && (!e->thunk || is_elsewhere(s, e->m, o->route));
    struct rpc_call *c = r.code == STATUS_OK ? call_new(s, e, o, conn->now_us) : NULL;
    if (c && routed && !(c->proxy = proxy_new(c))) {
        flow_done(&c->flow);
        mem_free(c);
        c = NULL;
    }
    if (!c) {
        if (r.code == STATUS_OK)
            refuse(&r, STATUS_RESOURCE_EXHAUSTED, NULL, "%s: out of memory", o->method);
        send_refusal(conn, id, &r);
        return;
    }
    if (o->slot)
        c->token = token_ref(conn->slots[o->slot - 1]);
    c->flow.urgent = e->m->kind == RPC_UNARY;
    c->flow.is_unary_in = takes_request(e->m) && !routed;
    c->flow.raw = routed;
    atomic_fetch_add(&s->n_live, 1);
    conn->n_calls++;
    if (!flow_add(conn, &c->flow, id)) {
        conn_kill(conn, "call id in use");
        call_unref(c);
        return;
    }
    if (routed || !takes_request(e->m))
        flow_post(&c->flow, FLOW_REQUEST);
    // The creator's reference now belongs to whoever answers: dropped by finish.
    atomic_fetch_sub(&c->refs, 1);
}

// ---------------------------------------------------------------- inside a handler

void *rpc_call_self(struct rpc_call *c)
{
    return c->entry->self;
}

struct arena *rpc_call_arena(struct rpc_call *c)
{
    if (!c->arena)
        c->arena = arena_new(ARENA_MAX);
    return c->arena;
}

int64_t rpc_call_deadline_us(const struct rpc_call *c)
{
    return c->deadline_us;
}

void rpc_call_limit(struct rpc_call *c, int64_t deadline_us)
{
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    c->flow.deadline_us = deadline_us < c->deadline_us ? deadline_us : c->deadline_us;
    c->limit_us = c->flow.deadline_us;
    conn_want_tick(conn, c->flow.deadline_us);
    conn_unlock(conn);
}

struct cancel *rpc_call_cancel(struct rpc_call *c)
{
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    if (!c->cancel)
        c->cancel = cancel_new(NULL);
    struct cancel *k = c->cancel;
    bool fired = c->flow.status.code != STATUS_OK;
    conn_unlock(conn);
    if (k && fired)
        cancel_fire(k);
    return k;
}

struct log *rpc_call_log(struct rpc_call *c)
{
    return c->server->o.log;
}
const struct rpc_method *rpc_call_method(const struct rpc_call *c)
{
    return c->entry->m;
}
const struct rpc_user *rpc_call_user(const struct rpc_call *c)
{
    return c->token ? &c->token->user : NULL;
}
const char *rpc_call_token(const struct rpc_call *c)
{
    return c->token ? c->token->text : NULL;
}
const struct chan_peer *rpc_call_peer(const struct rpc_call *c)
{
    return chan_peer(c->flow.conn->chan);
}
const char *rpc_call_idempotency_key(const struct rpc_call *c)
{
    return c->key;
}
const char *rpc_call_route(const struct rpc_call *c)
{
    return c->route;
}
bool rpc_call_is_forwarded(const struct rpc_call *c)
{
    return c->forwarded;
}

enum status rpc_call_write(struct rpc_call *c, const ProtobufCMessage *msg, struct err *err)
{
    size_t n = protobuf_c_message_get_packed_size(msg);
    enum status s = check_size(c, n, err);
    if (s != STATUS_OK)
        return s;
    struct chunk *ch = chunk_new(n);
    if (!ch)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    protobuf_c_message_pack(msg, ch->data);
    ch->last = true;
    struct conn *conn = c->flow.conn;
    struct frame_status st = {.code = STATUS_OK};
    conn_lock(conn);
    while (c->flow.status.code == STATUS_OK && !flow_can_write(&c->flow))
        flow_wait(&c->flow, TIME_NEVER); // the deadline ends it through the clock
    st = c->flow.status;
    if (st.code == STATUS_OK)
        flow_push(&c->flow, ch);
    conn_unlock(conn);
    if (st.code != STATUS_OK)
        mem_free(ch);
    return err_from_status(err, &st);
}

enum status rpc_call_read(struct rpc_call *c, ProtobufCMessage **ret, struct err *err)
{
    struct conn *conn = c->flow.conn;
    struct rx_msg *m = NULL;
    struct frame_status st = {.code = STATUS_OK};
    conn_lock(conn);
    for (;;) {
        st = c->flow.status;
        if (st.code != STATUS_OK || (m = flow_take(&c->flow)) || c->flow.rx_half)
            break;
        flow_wait(&c->flow, TIME_NEVER);
    }
    conn_unlock(conn);
    if (st.code != STATUS_OK)
        return err_from_status(err, &st);
    rpc_message_free(c->read_msg);
    c->read_msg = NULL;
    *ret = NULL;
    if (!m)
        return STATUS_OK;
    enum status s = message_take(c->entry->m->request, m, &c->read_msg, err);
    *ret = c->read_msg;
    return s;
}

void rpc_call_defer(struct rpc_call *c)
{
    call_ref(c);
    c->deferred = true;
}

void rpc_call_finish(struct rpc_call *c, enum status s, const ProtobufCMessage *reply,
                     const struct err *err)
{
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    c->writable = NULL;
    while (c->writable_running && !pthread_equal(c->writable_thread, pthread_self()))
        flow_wait(&c->flow, TIME_NEVER);
    conn_unlock(conn);
    call_answer(c, s, s == STATUS_OK && gives_reply(c->entry->m) ? reply : NULL, err);
    call_unref(c);
}

// There is credit but no memory: no event will wake the writer, so the clock does.
static void writable_later(struct rpc_call *c)
{
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    bool go = c->writable && !c->finished && !c->writable_queued;
    c->writable_queued |= go;
    conn_unlock(conn);
    if (go)
        server_call_late(c->server, call_ref(c));
}

bool rpc_call_try_write(struct rpc_call *c, const ProtobufCMessage *msg)
{
    size_t n = protobuf_c_message_get_packed_size(msg);
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    bool can =
        n <= RPC_MAX_MESSAGE_BYTES && c->flow.status.code == STATUS_OK && flow_can_write(&c->flow);
    conn_unlock(conn);
    struct chunk *ch = can ? chunk_new(n) : NULL;
    if (can && !ch)
        writable_later(c);
    if (!ch)
        return false;
    protobuf_c_message_pack(msg, ch->data);
    ch->last = true;
    conn_lock(conn);
    flow_push(&c->flow, ch);
    conn_unlock(conn);
    return true;
}

void rpc_call_on_writable(struct rpc_call *c, void (*fn)(void *ud), void *ud)
{
    struct conn *conn = c->flow.conn;
    conn_lock(conn);
    c->writable = fn;
    c->writable_ud = ud;
    bool now = flow_can_write(&c->flow) || c->flow.status.code != STATUS_OK;
    conn_unlock(conn);
    if (now)
        schedule_writable(c);
}
