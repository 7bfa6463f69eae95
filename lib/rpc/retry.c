// Asynchronous unary calls, and the retries of both kinds.
//
// An async call is either with a connection (cur), or in `waiting` for a connection or for its next
// attempt, or in `completed` for a pool thread that runs its callback.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define DEFAULT_ATTEMPTS 3

unsigned retry_attempts(const struct rpc_method *m, const struct rpc_opts *o)
{
    bool repeatable = m->idempotent || (o && o->idempotency_key && o->idempotency_key[0]);
    if (!repeatable)
        return 1;
    return o && o->max_attempts ? o->max_attempts : DEFAULT_ATTEMPTS;
}

bool client_may_retry(struct rpc_client *c)
{
    pthread_mutex_lock(&c->lock);
    bool ok = retry_spend(&c->budget);
    c->stats.n_retries += ok;
    pthread_mutex_unlock(&c->lock);
    return ok;
}

struct async {
    struct list node; // waiting or completed; client's lock
    struct rpc_client *client;
    struct call_spec spec;
    rpc_done_fn done;
    void *ud;
    struct cancel *cancel;
    struct cancel_hook *hook;
    atomic_bool cancelled;
    unsigned attempt, most;
    bool fail_fast, needs_conn;
    int64_t due_us, connect_until_us;
    struct attempt *cur; // client's lock
    struct frame_status status;
    struct rx_msg *reply;
    char data[]; // strings and request
};

// ---------------------------------------------------------------- the end

static void run_done(struct async *a)
{
    struct err err = ERR_INIT;
    ProtobufCMessage *reply = NULL;
    enum status s = err_from_status(&err, &a->status);
    if (s == STATUS_OK && !a->reply)
        s = err_set(&err, STATUS_INTERNAL, "%s: the server sent no reply", a->spec.m->name);
    if (s == STATUS_OK)
        s = rpc_message_unpack(a->spec.m->reply, a->reply->data, a->reply->n, &reply, &err);
    cancel_unhook(a->hook);
    cancel_unref(a->cancel);
    a->done(a->ud, s, reply, &err);
    struct rpc_client *c = a->client;
    mem_free(a->reply);
    mem_free(a);
    client_leave(c);
}

static void run_completed(void *ud)
{
    struct rpc_client *c = ud;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        struct list *it = list_pop_front(&c->completed);
        if (!it)
            break;
        pthread_mutex_unlock(&c->lock);
        run_done(list_entry(it, struct async, node));
        pthread_mutex_lock(&c->lock);
    }
    c->completing = false;
    pthread_mutex_unlock(&c->lock);
    client_leave(c); // what complete() counted for this task
}

static void complete(struct async *a)
{
    struct rpc_client *c = a->client;
    pthread_mutex_lock(&c->lock);
    list_push_back(&c->completed, &a->node);
    bool go = !c->completing;
    c->completing |= go;
    c->n_live += go;
    if (go && !c->pool)
        c->pool = c->own_pool = work_pool_new("rpc-done", 2, 1024);
    struct work_pool *pool = c->pool;
    pthread_mutex_unlock(&c->lock);
    if (go && (!pool || !work_pool_submit(pool, run_completed, c)))
        run_completed(c); // the pool is full: late is worse than here
}

static void complete_with(struct async *a, enum status code, const char *msg)
{
    a->status = (struct frame_status){.code = code};
    str_copy(a->status.msg, sizeof a->status.msg, msg);
    complete(a);
}

// ---------------------------------------------------------------- attempts

static void wait_in_list(struct async *a, int64_t due_us)
{
    struct rpc_client *c = a->client;
    pthread_mutex_lock(&c->lock);
    a->due_us = due_us;
    list_push_back(&c->waiting, &a->node);
    bool closing = c->is_closing;
    pthread_mutex_unlock(&c->lock);
    clock_wake_at(c->clock, due_us);
    if (closing)
        async_fail_waiting(c);
}

static bool again(struct async *a, int64_t *ret_at_us)
{
    if (a->status.code != STATUS_UNAVAILABLE || a->attempt >= a->most || a->cancelled)
        return false;
    *ret_at_us = time_mono_us() + retry_backoff_us(a->attempt, a->status.retry_after_ms);
    return *ret_at_us < a->spec.deadline_us && client_may_retry(a->client);
}

static void on_event(struct attempt *s, unsigned events)
{
    struct async *a = s->ud;
    if (!(events & FLOW_ENDED))
        return;
    struct conn *conn = s->flow.conn;
    conn_lock(conn);
    a->status = s->flow.status;
    struct rx_msg *m = flow_take(&s->flow);
    conn_unlock(conn);
    client_result(s, a->status.code);
    pthread_mutex_lock(&a->client->lock);
    a->cur = NULL;
    pthread_mutex_unlock(&a->client->lock);
    attempt_unref(s);
    int64_t at;
    if (again(a, &at)) {
        mem_free(m);
        a->connect_until_us = at + a->client->o.connect_timeout_ms * 1000;
        wait_in_list(a, at);
        return;
    }
    a->reply = m;
    complete(a);
}

static void try_now(struct async *a)
{
    struct rpc_client *c = a->client;
    int64_t now = time_mono_us();
    if (a->cancelled) {
        complete_with(a, STATUS_CANCELLED, "cancelled");
        return;
    }
    if (a->spec.deadline_us <= now) {
        complete_with(a, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
        return;
    }
    struct attempt *s = attempt_new(c, &a->spec);
    if (!s) {
        complete_with(a, STATUS_CANCELLED, "the client is closing or out of memory");
        return;
    }
    s->on_event = on_event;
    s->ud = a;
    pthread_mutex_lock(&c->lock);
    a->attempt++;
    a->cur = s;
    pthread_mutex_unlock(&c->lock);
    // From a successful start on, `a` belongs to on_event().
    attempt_ref(s);
    if (attempt_start(s, &a->spec)) {
        pthread_mutex_lock(&c->lock);
        s->is_started = true;
        bool cancel = s->cancel_wanted;
        pthread_mutex_unlock(&c->lock);
        if (cancel)
            attempt_cancel(s);
        attempt_unref(s);
        return;
    }
    pthread_mutex_lock(&c->lock);
    a->attempt--;
    a->cur = NULL;
    pthread_mutex_unlock(&c->lock);
    attempt_unref(s);
    attempt_unref(s);
    if (a->fail_fast || now >= a->connect_until_us) {
        struct err err = ERR_INIT;
        err_set(&err, STATUS_UNAVAILABLE, "%s: no connection", c->endpoints[0].url);
        complete_with(a, STATUS_UNAVAILABLE, err.msg);
        return;
    }
    a->needs_conn = true;
    int64_t until =
        a->connect_until_us < a->spec.deadline_us ? a->connect_until_us : a->spec.deadline_us;
    wait_in_list(a, until);
}

static void on_cancel(void *ud)
{
    struct async *a = ud;
    struct rpc_client *c = a->client;
    struct attempt *s = NULL;
    a->cancelled = true;
    pthread_mutex_lock(&c->lock);
    if (a->cur) {
        a->cur->cancel_wanted = true;
        s = a->cur->is_started ? attempt_ref(a->cur) : NULL;
    }
    pthread_mutex_unlock(&c->lock);
    if (s)
        attempt_cancel(s);
    attempt_unref(s);
    clock_wake_at(c->clock, 0); // it may be waiting
}

// On the clock thread: whoever's time has come, or whose connection has.
void async_tick(struct rpc_client *c, int64_t now_us, int64_t *next_us)
{
    struct list due;
    list_init(&due);
    pthread_mutex_lock(&c->lock);
    bool live = client_has_live(c);
    list_for_each_safe(it, tmp, &c->waiting)
    {
        struct async *a = list_entry(it, struct async, node);
        if (a->due_us <= now_us || a->cancelled || (a->needs_conn && live)) {
            list_remove(&a->node);
            list_push_back(&due, &a->node);
        } else if (a->due_us < *next_us) {
            *next_us = a->due_us;
        }
    }
    pthread_mutex_unlock(&c->lock);
    while (!list_is_empty(&due)) {
        struct async *a = list_entry(list_pop_front(&due), struct async, node);
        a->needs_conn = false;
        try_now(a);
    }
}

void async_fail_waiting(struct rpc_client *c)
{
    for (;;) {
        pthread_mutex_lock(&c->lock);
        struct list *it = list_pop_front(&c->waiting);
        pthread_mutex_unlock(&c->lock);
        if (!it)
            return;
        complete_with(list_entry(it, struct async, node), STATUS_CANCELLED,
                      "the client is closing");
    }
}

// ---------------------------------------------------------------- the call

static const char *keep(char **at, const char *s)
{
    if (!s)
        return NULL;
    size_t n = strlen(s) + 1;
    char *dst = memcpy(*at, s, n);
    *at += n;
    return dst;
}

static size_t room(const char *s)
{
    return s ? strlen(s) + 1 : 0;
}

static struct async *async_new(struct rpc_client *c, const struct call_spec *spec,
                               const ProtobufCMessage *req)
{
    struct async *a = mem_alloc(sizeof *a + room(spec->token) + room(spec->route) +
                                room(spec->key) + spec->req_len + 1);
    if (!a)
        return NULL;
    char *at = a->data;
    a->client = c;
    a->spec = *spec;
    a->spec.token = keep(&at, spec->token);
    a->spec.route = keep(&at, spec->route);
    a->spec.key = keep(&at, spec->key);
    protobuf_c_message_pack(req, (uint8_t *)at);
    a->spec.req = at;
    list_init(&a->node);
    return a;
}

void rpc_unary_async(struct rpc_client *c, const struct rpc_method *m, const struct rpc_opts *o,
                     const ProtobufCMessage *req, rpc_done_fn done, void *ud)
{
    struct err err = ERR_INIT;
    struct call_spec spec;
    call_spec_init(&spec, m, o);
    spec.req_len = protobuf_c_message_get_packed_size(req);
    enum status s = call_spec_check(&spec, &err);
    bool entered = client_enter(c);
    struct async *a = entered ? async_new(c, &spec, req) : NULL;
    if (!a) { // nothing to remember it in: the answer comes at once
        if (entered)
            client_leave(c);
        s = err_set(&err, STATUS_CANCELLED, "the client is closing or out of memory");
        done(ud, s, NULL, &err);
        return;
    }
    a->done = done;
    a->ud = ud;
    a->most = retry_attempts(m, o);
    a->fail_fast = o && o->fail_fast;
    a->connect_until_us = client_connect_deadline(c, spec.deadline_us);
    if (s != STATUS_OK) {
        complete_with(a, s, err.msg);
        return;
    }
    if (o && o->cancel) {
        a->cancel = cancel_ref(o->cancel);
        a->hook = cancel_hook(a->cancel, on_cancel, a);
    }
    try_now(a);
}
