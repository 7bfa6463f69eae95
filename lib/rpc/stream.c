// The caller's side of a call: unary calls that wait, and streams.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define STACK_MESSAGE 4096

// ---------------------------------------------------------------- unary, waiting

// Called with the connection's lock held: wait until the call has ended.
static void wait_end(struct attempt *s)
{
    while (!s->flow.ended) {
        if (!flow_wait(&s->flow, s->deadline_us))
            flow_abort(&s->flow, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    }
}

static enum status take_reply(struct attempt *s, ProtobufCMessage **ret, int64_t *retry_after_ms,
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
        struct attempt *st = NULL;
        int64_t retry_after_ms = 0;
        s = attempt_open(c, &spec, o, &st, err);
        if (s == STATUS_OK) {
            s = take_reply(st, ret, &retry_after_ms, err);
            client_result(st, s);
            attempt_free(st);
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

struct rpc_stream {
    struct attempt *cur;
};

static enum status stream_begin(struct rpc_client *c, const struct call_spec *spec,
                                const struct rpc_opts *o, struct rpc_stream **ret, struct err *err)
{
    struct rpc_stream *s = mem_alloc(sizeof *s);
    if (!s)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", spec->m->name);
    enum status st = attempt_open(c, spec, o, &s->cur, err);
    if (st == STATUS_OK)
        *ret = TAKE(s);
    mem_free(s);
    return st;
}

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
    return s == STATUS_OK ? stream_begin(c, &spec, o, ret, err) : s;
}

// The call's status once it has ended badly; OK while it goes on or ended well.
static enum status ended_badly(struct attempt *s, struct err *err)
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
    struct attempt *a = s->cur;
    struct conn *c = a->flow.conn;
    conn_lock(c);
    while (!a->flow.ended && !flow_can_write(&a->flow)) {
        if (!flow_wait(&a->flow, a->deadline_us))
            flow_abort(&a->flow, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    }
    bool ended = a->flow.ended;
    enum status st = ended_badly(a, err);
    if (!ended)
        flow_push(&a->flow, ch);
    conn_unlock(c);
    if (!ended)
        return STATUS_OK;
    mem_free(ch);
    // Ended well before our last message: the server wants no more of them.
    return st != STATUS_OK ? st : err_set(err, STATUS_CANCELLED, "the call has ended");
}

enum status rpc_stream_close_send(struct rpc_stream *s, struct err *err)
{
    struct attempt *a = s->cur;
    struct conn *c = a->flow.conn;
    conn_lock(c);
    flow_half_close(&a->flow);
    enum status st = ended_badly(a, err);
    conn_unlock(c);
    return st;
}

enum status rpc_stream_recv(struct rpc_stream *s, ProtobufCMessage **ret, struct err *err)
{
    struct attempt *a = s->cur;
    struct conn *c = a->flow.conn;
    struct rx_msg *m;
    conn_lock(c);
    while (!(m = flow_take(&a->flow)) && !a->flow.ended) {
        if (!flow_wait(&a->flow, a->deadline_us))
            flow_abort(&a->flow, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    }
    enum status st = m ? STATUS_OK : ended_badly(a, err);
    conn_unlock(c);
    *ret = NULL;
    if (!m) {
        client_result(a, st);
        return st;
    }
    st = rpc_message_unpack(a->m->reply, m->data, m->n, ret, err);
    mem_free(m);
    return st;
}

void rpc_stream_cancel(struct rpc_stream *s)
{
    attempt_cancel(s->cur);
}

void rpc_stream_free(struct rpc_stream *s)
{
    if (!s)
        return;
    attempt_free(s->cur);
    mem_free(s);
}
