// The caller's side of a stream.
//
// A stream is a handle over one attempt after another: a server stream whose attempt ends before
// any message came may be tried again, as unary calls are. Who finds an attempt at its end (the
// reader, or the event) settles that once, in over(); the next attempt starts on the clock's
// thread, and readers wait for it at cond. Streams that cannot be repeated have no `again` and
// always the same attempt, and their readers take no lock of the stream's.
//
// Events. An attempt tells of changes on threads of the transport, on several at once; tell() makes
// one callback at a time of that.
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

struct again { // what another attempt needs
    struct client_waiter waiter;
    struct rpc_stream *stream;
    struct call_spec spec;
    struct retry_plan plan;
    const struct endpoint *avoid;              // only compared
    _Alignas(struct rpc_metadata) char data[]; // what spec points to
};

struct rpc_stream {
    atomic_uint refs; // the caller's, the waiting repeat's, one of each attempt
    struct rpc_client *client;
    pthread_mutex_t lock; // may be held around the client's lock, not around a connection's
    pthread_cond_t cond;
    struct attempt *cur; // changes only with `again`; NULL once the caller has freed the stream
    struct again *again; // or NULL
    bool is_reopening, is_final, is_cancelled;
    bool was_cancelled_between; // attempts: then the last one's status is not the stream's
    struct cancel *cancel[2];
    struct cancel_hook *hook[2];

    atomic_bool has_fn;
    void (*fn)(void *ud);
    void *ud;
    bool is_running, is_due;
    pthread_t runner;
};

static struct rpc_stream *stream_ref(struct rpc_stream *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

static void stream_unref(struct rpc_stream *s)
{
    if (atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    for (size_t i = 0; i < N_ELEMENTS(s->cancel); i++)
        cancel_unref(s->cancel[i]);
    mem_free(s->again);
    pthread_cond_destroy(&s->cond);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

// The attempt that the stream is at, referenced.
static struct attempt *hold(struct rpc_stream *s)
{
    if (!s->again)
        return attempt_ref(s->cur);
    pthread_mutex_lock(&s->lock);
    struct attempt *a = attempt_ref(s->cur);
    pthread_mutex_unlock(&s->lock);
    return a;
}

// ---------------------------------------------------------------- events

static void tell(struct rpc_stream *s)
{
    if (!s->has_fn)
        return;
    stream_ref(s);
    pthread_mutex_lock(&s->lock);
    s->is_due = true;
    if (!s->is_running) {
        s->is_running = true;
        s->runner = pthread_self();
        while (s->is_due && s->fn) {
            s->is_due = false;
            void (*fn)(void *ud) = s->fn;
            void *ud = s->ud;
            pthread_mutex_unlock(&s->lock);
            struct rpc_call *before = rpc_call_enter(NULL); // whose thread this is, is chance
            fn(ud);
            rpc_call_enter(before);
            pthread_mutex_lock(&s->lock);
        }
        s->is_running = false;
        pthread_cond_broadcast(&s->cond);
    }
    pthread_mutex_unlock(&s->lock);
    stream_unref(s);
}

void rpc_stream_on_event(struct rpc_stream *s, void (*fn)(void *ud), void *ud)
{
    pthread_mutex_lock(&s->lock);
    s->fn = fn;
    s->ud = ud;
    pthread_mutex_unlock(&s->lock);
    s->has_fn = true;
    tell(s);
}

// ---------------------------------------------------------------- another attempt

static bool over(struct rpc_stream *s, struct attempt *a, const struct attempt_end *e);

static void on_attempt_event(struct attempt *a, unsigned events)
{
    struct rpc_stream *s = a->ud;
    if ((events & FLOW_ENDED) && s->again) {
        struct attempt_end e;
        attempt_get_end(a, &e);
        (void)over(s, a, &e);
    }
    tell(s);
}

static void on_attempt_gone(struct attempt *a)
{
    stream_unref(a->ud);
}

static struct attempt *new_attempt(struct rpc_stream *s, const struct call_spec *spec)
{
    struct attempt *a = attempt_new(s->client, spec);
    if (!a)
        return NULL;
    a->on_event = on_attempt_event;
    a->on_gone = on_attempt_gone;
    a->ud = stream_ref(s);
    return a;
}

// The next attempt is on its way, or even at its end.
static void reopened(struct rpc_stream *s, struct attempt *a)
{
    pthread_mutex_lock(&s->lock);
    struct attempt *old = s->cur;
    if (old)
        s->cur = attempt_ref(a);
    s->is_reopening = false;
    a->nth = ++s->again->plan.n_tried;
    bool cancelled = s->is_cancelled;
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
    attempt_unref(old);
    if (cancelled)
        attempt_cancel(a);
    conn_lock(a->flow.conn);
    bool ended = a->flow.ended;
    conn_unlock(a->flow.conn);
    if (ended) // before it was the stream's, which then took no notice
        on_attempt_event(a, FLOW_ENDED);
}

// On the clock's thread: a connection is there, or it is too late.
static void on_waited(struct client_waiter *w)
{
    struct again *again = list_entry(w, struct again, waiter);
    struct rpc_stream *s = again->stream;
    pthread_mutex_lock(&s->lock);
    bool stop = s->is_cancelled;
    pthread_mutex_unlock(&s->lock);
    struct attempt *a = stop ? NULL : new_attempt(s, &again->spec);
    if (a)
        a->nth = again->plan.n_tried + 1;
    if (a && attempt_start_avoiding(a, &again->spec, again->avoid, false)) {
        reopened(s, a);
        attempt_unref(a);
        stream_unref(s);
        return;
    }
    attempt_unref(a);
    if (a && time_mono_us() < w->until_us) { // the connection went away at once
        client_when_ready(s->client, w);
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->is_reopening = false;
    s->is_final = true;
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
    tell(s);
    stream_unref(s);
}

// Attempt a has ended. True: so has the stream; false: there is, or will be, another attempt.
static bool over(struct rpc_stream *s, struct attempt *a, const struct attempt_end *end)
{
    struct attempt_end e = *end;
    struct rpc_client *c = s->client;
    client_result(a, &e);
    if (!s->again)
        return true;
    pthread_mutex_lock(&s->lock);
    bool final = s->cur == a && !s->is_reopening, wait = false;
    int64_t at = 0;
    if (final && !s->is_final) {
        struct again *n = s->again;
        n->avoid = e.endpoint;
        wait = !e.got_any && !s->is_cancelled && retry_is_failure(&e) &&
               retry_next(&n->plan, &e, c, n->spec.deadline_us, time_mono_us(), &at);
        if (wait) {
            int64_t until = at + c->o.connect_timeout_ms * 1000;
            n->waiter.not_before_us = at;
            n->waiter.until_us = until < n->spec.deadline_us ? until : n->spec.deadline_us;
            stream_ref(s);
        }
        s->is_reopening = wait;
        s->is_final = !wait;
        final = !wait;
    }
    pthread_mutex_unlock(&s->lock);
    if (wait)
        client_when_ready(c, &s->again->waiter);
    return final;
}

// Until there is another attempt, or there will be none.
static void wait_reopened(struct rpc_stream *s)
{
    pthread_mutex_lock(&s->lock);
    while (s->is_reopening)
        pthread_cond_wait(&s->cond, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

// ---------------------------------------------------------------- opening

static struct again *again_new(struct rpc_stream *s, const struct call_spec *spec,
                               const struct rpc_opts *o)
{
    struct again *n = mem_alloc(sizeof *n + call_spec_room(spec) + spec->req_len);
    if (!n)
        return NULL;
    n->stream = s;
    n->spec = *spec;
    char *at = call_spec_keep(&n->spec, n->data);
    if (spec->req_len)
        memcpy(at, spec->req, spec->req_len);
    n->spec.req = at;
    list_init(&n->waiter.node);
    n->waiter.fn = on_waited;
    retry_init(&n->plan, spec->m, o);
    n->plan.n_tried = 1;
    return n;
}

static struct rpc_stream *stream_new(struct rpc_client *c, const struct call_spec *spec,
                                     const struct rpc_opts *o)
{
    struct rpc_stream *s = mem_alloc(sizeof *s);
    if (!s)
        return NULL;
    s->refs = 1;
    s->client = c;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->cond, NULL);
    for (size_t i = 0; i < N_ELEMENTS(s->cancel); i++)
        s->cancel[i] = spec->cancel[i] ? cancel_ref(spec->cancel[i]) : NULL;
    // What was sent on other kinds of streams is gone, and could not be sent again.
    if (spec->m->kind != RPC_SERVER_STREAM || (o && o->max_attempts == 1))
        return s;
    s->again = again_new(s, spec, o);
    if (s->again)
        return s;
    stream_unref(s);
    return NULL;
}

static void on_cancel(void *ud)
{
    rpc_stream_cancel(ud);
}

static enum status stream_begin(struct rpc_client *c, const struct call_spec *spec,
                                const struct rpc_opts *o, struct rpc_stream **ret, struct err *err)
{
    struct rpc_stream *s = stream_new(c, spec, o);
    struct attempt *a = s ? new_attempt(s, spec) : NULL;
    enum status st = STATUS_OK;
    if (!a) {
        if (s)
            stream_unref(s);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", spec->m->name);
    }
    a->nth = 1;
    s->cur = a; // before its events come
    int64_t until = spec->fail_fast ? 0 : client_connect_deadline(c, spec->deadline_us);
    while (st == STATUS_OK && !attempt_start(a, spec))
        st = client_wait_ready(c, spec, until, err);
    if (st != STATUS_OK) {
        attempt_unref(a);
        stream_unref(s);
        return st;
    }
    for (size_t i = 0; i < N_ELEMENTS(s->hook); i++)
        s->hook[i] = s->cancel[i] ? cancel_hook(s->cancel[i], on_cancel, s) : NULL;
    *ret = s;
    return STATUS_OK;
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
        packed = mem_alloc_unset(spec.req_len + 1);
        if (!packed)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", m->name);
        protobuf_c_message_pack(req, packed);
        spec.req = packed;
    }
    enum status s = call_spec_check(&spec, err);
    return s == STATUS_OK ? stream_begin(c, &spec, o, ret, err) : s;
}

// ---------------------------------------------------------------- sending

// The call's status once it has ended badly; OK while it goes on or ended well.
static enum status ended_badly(const struct attempt *a, struct err *err)
{
    return a->flow.ended ? err_from_status(err, &a->flow.status) : STATUS_OK;
}

static enum status push(struct rpc_stream *s, const ProtobufCMessage *msg, bool may_wait,
                        bool *ret_sent, struct err *err)
{
    size_t n = protobuf_c_message_get_packed_size(msg);
    *ret_sent = false;
    if (n > RPC_MAX_MESSAGE_BYTES)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "a message of %zu bytes is too large", n);
    struct attempt *a = hold(s);
    struct conn *c = a->flow.conn;
    struct chunk *ch = NULL;
    enum status st;
    conn_lock(c);
    while (may_wait && !a->flow.ended && !flow_can_write(&a->flow)) {
        if (!flow_wait(&a->flow, a->deadline_us))
            flow_abort(&a->flow, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    }
    bool room = !a->flow.ended && flow_can_write(&a->flow);
    if (room && (ch = chunk_new(n))) {
        protobuf_c_message_pack(msg, ch->data);
        ch->last = true;
        flow_push(&a->flow, ch);
        *ret_sent = true;
    }
    st = ended_badly(a, err);
    if (st == STATUS_OK && a->flow.ended && !*ret_sent)
        // Ended well before our last message: the server wants no more of them.
        st = err_set(err, STATUS_CANCELLED, "the call has ended");
    else if (room && !ch)
        st = err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    conn_unlock(c);
    attempt_unref(a);
    return *ret_sent ? STATUS_OK : st;
}

enum status rpc_stream_send(struct rpc_stream *s, const ProtobufCMessage *msg, struct err *err)
{
    bool sent;
    return push(s, msg, true, &sent, err);
}

enum status rpc_stream_try_send(struct rpc_stream *s, const ProtobufCMessage *msg, bool *ret_sent,
                                struct err *err)
{
    return push(s, msg, false, ret_sent, err);
}

enum status rpc_stream_close_send(struct rpc_stream *s, struct err *err)
{
    struct attempt *a = hold(s);
    struct conn *c = a->flow.conn;
    conn_lock(c);
    flow_half_close(&a->flow);
    enum status st = ended_badly(a, err);
    conn_unlock(c);
    attempt_unref(a);
    return st;
}

// ---------------------------------------------------------------- receiving

// How the stream ended, which over() has said of attempt a.
static enum status end_status(struct rpc_stream *s, const struct attempt *a, struct err *err)
{
    pthread_mutex_lock(&s->lock);
    bool between = s->was_cancelled_between;
    pthread_mutex_unlock(&s->lock);
    return between ? err_set(err, STATUS_CANCELLED, "cancelled") : ended_badly(a, err);
}

// The next message of the attempt, or its end, or neither if it may not wait.
static struct rx_msg *take(struct attempt *a, bool may_wait, bool *ret_ended,
                           struct attempt_end *ret_end)
{
    struct conn *c = a->flow.conn;
    struct rx_msg *m;
    conn_lock(c);
    while (!(m = flow_take(&a->flow)) && !a->flow.ended && may_wait) {
        if (!flow_wait(&a->flow, a->deadline_us))
            flow_abort(&a->flow, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    }
    *ret_ended = !m && a->flow.ended;
    conn_unlock(c);
    if (*ret_ended)
        attempt_get_end(a, ret_end);
    return m;
}

static enum status receive(struct rpc_stream *s, bool may_wait, ProtobufCMessage **ret,
                           bool *ret_ended, struct err *err)
{
    *ret = NULL;
    for (;;) {
        struct attempt_end e;
        struct attempt *a = hold(s);
        struct rx_msg *m = take(a, may_wait, ret_ended, &e);
        enum status st = STATUS_OK;
        bool again = *ret_ended && !over(s, a, &e);
        if (*ret_ended && !again)
            st = end_status(s, a, err);
        else if (m)
            st = message_take(a->m->reply, TAKE(m), ret, err);
        mem_free(m);
        attempt_unref(a);
        if (!again)
            return st;
        *ret_ended = false;
        if (!may_wait)
            return STATUS_OK;
        wait_reopened(s);
    }
}

enum status rpc_stream_recv(struct rpc_stream *s, ProtobufCMessage **ret, struct err *err)
{
    bool ended;
    return receive(s, true, ret, &ended, err);
}

enum status rpc_stream_try_recv(struct rpc_stream *s, ProtobufCMessage **ret, bool *ret_ended,
                                struct err *err)
{
    return receive(s, false, ret, ret_ended, err);
}

void rpc_stream_details(struct rpc_stream *s, struct rpc_details *ret)
{
    struct attempt *a = hold(s);
    conn_lock(a->flow.conn);
    bool ended = a->flow.ended;
    conn_unlock(a->flow.conn);
    attempt_get_details(ended ? a : NULL, ret);
    attempt_unref(a);
}

// ---------------------------------------------------------------- the end

void rpc_stream_cancel(struct rpc_stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->is_cancelled = true;
    bool between = s->is_reopening;
    if (between) {
        s->was_cancelled_between = s->is_final = true;
        s->is_reopening = false;
        pthread_cond_broadcast(&s->cond);
    }
    struct attempt *a = attempt_ref(s->cur);
    pthread_mutex_unlock(&s->lock);
    attempt_cancel(a);
    attempt_unref(a);
    if (between)
        tell(s);
}

// The caller's hold on the attempt that it is at: one that is just being started is nobody's.
static struct attempt *let_go(struct rpc_stream *s)
{
    pthread_mutex_lock(&s->lock);
    struct attempt *a = TAKE(s->cur);
    pthread_mutex_unlock(&s->lock);
    return a;
}

void rpc_stream_free(struct rpc_stream *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->has_fn = false;
    s->fn = NULL;
    while (s->is_running && !pthread_equal(s->runner, pthread_self()))
        pthread_cond_wait(&s->cond, &s->lock);
    pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < N_ELEMENTS(s->hook); i++)
        cancel_unhook(s->hook[i]);
    rpc_stream_cancel(s);
    struct attempt *a = let_go(s);
    struct attempt_end e;
    attempt_get_end(a, &e);
    client_result(a, &e);
    attempt_unref(a);
    stream_unref(s);
}
