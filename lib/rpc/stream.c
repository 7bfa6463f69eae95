// The caller's side of a call: one attempt, its messages and its end; unary calls that wait.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define DEFAULT_DEADLINE_MS 15000
#define STACK_MESSAGE 4096

static struct rpc_stream *of(struct flow *f)
{
    return list_entry(f, struct rpc_stream, flow);
}

enum status err_from_status(struct err *err, const struct frame_status *s)
{
    if (s->code == STATUS_OK)
        return STATUS_OK;
    return err_set(err, s->code, "%s", s->msg[0] ? s->msg : status_name(s->code));
}

// ---------------------------------------------------------------- an attempt

static void on_event(struct flow *f, unsigned events)
{
    struct rpc_stream *s = of(f);
    if (s->on_event)
        s->on_event(s, events);
}
static void on_ref(struct flow *f)
{
    stream_ref(of(f));
}
static void on_unref(struct flow *f)
{
    stream_unref(of(f));
}
static const struct flow_ops stream_ops = {.event = on_event, .ref = on_ref, .unref = on_unref};

struct rpc_stream *stream_new(struct rpc_client *c, const struct call_spec *spec)
{
    if (!client_enter(c))
        return NULL;
    struct rpc_stream *s = mem_alloc(sizeof *s);
    if (!s) {
        client_leave(c);
        return NULL;
    }
    flow_init(&s->flow, &stream_ops);
    s->refs = 1;
    s->client = c;
    s->m = spec->m;
    s->deadline_us = spec->deadline_us;
    s->flow.urgent = spec->m->kind == RPC_UNARY;
    s->flow.is_unary_in = spec->m->kind == RPC_UNARY || spec->m->kind == RPC_CLIENT_STREAM;
    return s;
}

struct rpc_stream *stream_ref(struct rpc_stream *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

void stream_unref(struct rpc_stream *s)
{
    if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    struct rpc_client *c = s->client;
    if (s->on_gone)
        s->on_gone(s);
    flow_done(&s->flow);
    mem_free(s);
    client_leave(c);
}

static void on_cancel(void *ud)
{
    rpc_stream_cancel(ud);
}

void call_spec_init(struct call_spec *spec, const struct rpc_method *m, const struct rpc_opts *o)
{
    *spec = (struct call_spec){.m = m, .deadline_us = time_deadline_in_ms(DEFAULT_DEADLINE_MS)};
    if (!o)
        return;
    spec->token = o->token && o->token[0] ? o->token : NULL;
    spec->route = o->route;
    spec->key = o->idempotency_key;
    spec->forwarded = o->on_behalf;
    if (o->deadline_us)
        spec->deadline_us = o->deadline_us;
}

// What would be cut or refused on the wire is refused here, where it can be fixed.
enum status call_spec_check(const struct call_spec *spec, struct err *err)
{
    if (strlen(spec->m->name) > FRAME_METHOD_MAX ||
        (spec->route && strlen(spec->route) > FRAME_ROUTE_MAX) ||
        (spec->key && strlen(spec->key) > FRAME_KEY_MAX) ||
        (spec->token && strlen(spec->token) > FRAME_TOKEN_MAX))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s: token, route or key too long",
                       spec->m->name);
    if (spec->req_len > RPC_MAX_MESSAGE_BYTES)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: a request of %zu bytes is too large",
                       spec->m->name, spec->req_len);
    if (spec->deadline_us <= time_mono_us())
        return err_set(err, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    return STATUS_OK;
}

// An attempt on a connection, waiting for one if need be.
static enum status open_attempt(struct rpc_client *c, const struct call_spec *spec,
                                const struct rpc_opts *o, struct rpc_stream **ret, struct err *err)
{
    struct cancel *cancel = o ? o->cancel : NULL;
    int64_t until = o && o->fail_fast ? 0 : client_connect_deadline(c, spec->deadline_us);
    struct rpc_stream *s = stream_new(c, spec);
    if (!s)
        return err_set(err, STATUS_CANCELLED, "the client is closing or out of memory");
    while (!stream_start(s, spec)) {
        enum status st = client_wait_ready(c, until, cancel, err);
        if (st == STATUS_UNAVAILABLE && spec->deadline_us <= time_mono_us())
            st = err_set(err, STATUS_DEADLINE_EXCEEDED, "deadline exceeded before a connection");
        if (st != STATUS_OK) {
            stream_unref(s);
            return st;
        }
    }
    if (cancel)
        s->cancel_hook = cancel_hook(cancel, on_cancel, s);
    *ret = s;
    return STATUS_OK;
}

// ---------------------------------------------------------------- unary, waiting

// Called with the connection's lock held: wait until the call has ended.
static void wait_end(struct rpc_stream *s)
{
    while (!s->flow.ended) {
        if (!flow_wait(&s->flow, s->deadline_us))
            flow_abort(&s->flow, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    }
}

static enum status take_reply(struct rpc_stream *s, ProtobufCMessage **ret, int64_t *retry_after_ms,
                              struct err *err)
{
    struct conn *c = s->flow.conn;
    conn_lock(c);
    wait_end(s);
    struct frame_status st = s->flow.status;
    struct rx_msg *m = flow_take(&s->flow);
    conn_unlock(c);
    *retry_after_ms = st.retry_after_ms;
    enum status code = err_from_status(err, &st);
    if (code == STATUS_OK && !m)
        code = err_set(err, STATUS_INTERNAL, "%s: the server sent no reply", s->m->name);
    if (code == STATUS_OK)
        code = rpc_message_unpack(s->m->reply, m->data, m->n, ret, err);
    mem_free(m);
    return code;
}

enum status rpc_unary(struct rpc_client *c, const struct rpc_method *m, const struct rpc_opts *o,
                      const ProtobufCMessage *req, ProtobufCMessage **ret, struct err *err)
{
    uint8_t stack[STACK_MESSAGE];
    AUTO(mem_free_p) uint8_t *heap = NULL;
    struct call_spec spec;
    call_spec_init(&spec, m, o);
    spec.req_len = protobuf_c_message_get_packed_size(req);
    enum status s = call_spec_check(&spec, err);
    if (s != STATUS_OK)
        return s;
    if (spec.req_len > sizeof stack && !(heap = mem_alloc(spec.req_len)))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", m->name);
    uint8_t *packed = heap ? heap : stack;
    protobuf_c_message_pack(req, packed);
    spec.req = packed;

    unsigned most = retry_attempts(m, o);
    for (unsigned attempt = 1;; attempt++) {
        struct rpc_stream *st = NULL;
        int64_t retry_after_ms = 0;
        s = open_attempt(c, &spec, o, &st, err);
        if (s == STATUS_OK) {
            s = take_reply(st, ret, &retry_after_ms, err);
            client_result(st, s);
            rpc_stream_free(st);
        }
        if (o && o->ret_retry_after_ms)
            *o->ret_retry_after_ms = s == STATUS_OK ? 0 : retry_after_ms;
        if (s != STATUS_UNAVAILABLE || attempt >= most)
            return s;
        int64_t at = time_mono_us() + retry_backoff_us(attempt, retry_after_ms);
        if (at >= spec.deadline_us || !client_may_retry(c))
            return s;
        enum status paused = client_pause(c, at, o ? o->cancel : NULL, err);
        if (paused != STATUS_OK)
            return paused;
    }
}

// ---------------------------------------------------------------- streams

enum status rpc_stream_open(struct rpc_client *c, const struct rpc_method *m,
                            const struct rpc_opts *o, const ProtobufCMessage *req,
                            struct rpc_stream **ret, struct err *err)
{
    struct call_spec spec;
    AUTO(mem_free_p) uint8_t *packed = NULL;
    call_spec_init(&spec, m, o);
    if (req) {
        spec.req_len = protobuf_c_message_get_packed_size(req);
        packed = mem_alloc(spec.req_len + 1);
        if (!packed)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", m->name);
        protobuf_c_message_pack(req, packed);
        spec.req = packed;
    }
    enum status s = call_spec_check(&spec, err);
    return s == STATUS_OK ? open_attempt(c, &spec, o, ret, err) : s;
}

// The call's status once it has ended badly; OK while it goes on or ended well.
static enum status ended_badly(struct rpc_stream *s, struct err *err)
{
    struct frame_status st = s->flow.status;
    return s->flow.ended ? err_from_status(err, &st) : STATUS_OK;
}

enum status rpc_stream_send(struct rpc_stream *s, const ProtobufCMessage *msg, struct err *err)
{
    size_t n = protobuf_c_message_get_packed_size(msg);
    if (n > RPC_MAX_MESSAGE_BYTES)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "a message of %zu bytes is too large", n);
    struct chunk *ch = chunk_new(n);
    if (!ch)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    protobuf_c_message_pack(msg, ch->data);
    ch->last = true;
    struct conn *c = s->flow.conn;
    conn_lock(c);
    while (!s->flow.ended && !flow_can_write(&s->flow)) {
        if (!flow_wait(&s->flow, s->deadline_us))
            flow_abort(&s->flow, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    }
    bool ended = s->flow.ended;
    enum status st = ended_badly(s, err);
    if (!ended)
        flow_push(&s->flow, ch);
    conn_unlock(c);
    if (!ended)
        return STATUS_OK;
    mem_free(ch);
    // Ended well before our last message: the server wants no more of them.
    return st != STATUS_OK ? st : err_set(err, STATUS_CANCELLED, "the call has ended");
}

enum status rpc_stream_close_send(struct rpc_stream *s, struct err *err)
{
    struct conn *c = s->flow.conn;
    conn_lock(c);
    flow_half_close(&s->flow);
    enum status st = ended_badly(s, err);
    conn_unlock(c);
    return st;
}

enum status rpc_stream_recv(struct rpc_stream *s, ProtobufCMessage **ret, struct err *err)
{
    struct conn *c = s->flow.conn;
    struct rx_msg *m;
    conn_lock(c);
    while (!(m = flow_take(&s->flow)) && !s->flow.ended) {
        if (!flow_wait(&s->flow, s->deadline_us))
            flow_abort(&s->flow, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    }
    enum status st = m ? STATUS_OK : ended_badly(s, err);
    conn_unlock(c);
    *ret = NULL;
    if (!m) {
        client_result(s, st);
        return st;
    }
    st = rpc_message_unpack(s->m->reply, m->data, m->n, ret, err);
    mem_free(m);
    return st;
}

void rpc_stream_cancel(struct rpc_stream *s)
{
    struct conn *c = s->flow.conn;
    conn_lock(c);
    flow_abort(&s->flow, STATUS_CANCELLED, "cancelled");
    conn_unlock(c);
}

void rpc_stream_free(struct rpc_stream *s)
{
    if (!s)
        return;
    cancel_unhook(s->cancel_hook);
    s->cancel_hook = NULL;
    if (s->flow.conn)
        rpc_stream_cancel(s);
    client_result(s, s->flow.conn ? s->flow.status.code : STATUS_CANCELLED);
    stream_unref(s);
}
