#include "rpc/test_site.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

#define NOTE .request = &note_descriptor, .reply = &note_descriptor
const struct rpc_method own_methods[N_OWN] = {
    [SEE] = {"test.Own.See", RPC_UNARY, ROLE_ANON, NOTE},
    [SEE_INLINE] = {"test.Own.SeeInline", RPC_UNARY, ROLE_ANON, .run_inline = true, NOTE},
    [RELAY] = {"test.Own.Relay", RPC_UNARY, ROLE_ANON, NOTE},
    [HOLD] = {"test.Own.Hold", RPC_UNARY, ROLE_ANON, NOTE},
    [HOLD_TWO] = {"test.Own.HoldTwo", RPC_UNARY, ROLE_ANON, .max_concurrent = 2, NOTE},
    [HASTY] = {"test.Own.Hasty", RPC_UNARY, ROLE_ANON, .max_queue_ms = 1, NOTE},
    [REFUSE] = {"test.Own.Refuse", RPC_UNARY, ROLE_ANON, NOTE},
    [POSTPONE] = {"test.Own.Postpone", RPC_UNARY, ROLE_ANON, NOTE},
    [DRIP] = {"test.Own.Drip", RPC_SERVER_STREAM, ROLE_ANON, NOTE},
    [MIRROR] = {"test.Own.Mirror", RPC_BIDI, ROLE_ANON, NOTE},
};
const struct rpc_service own_service = {"test.Own", own_methods, N_OWN};

struct seen site_seen(struct site *t)
{
    pthread_mutex_lock(&t->lock);
    struct seen s = t->seen;
    pthread_mutex_unlock(&t->lock);
    return s;
}

void site_release(struct site *t)
{
    pthread_mutex_lock(&t->lock);
    t->released = true;
    pthread_cond_broadcast(&t->cond);
    pthread_mutex_unlock(&t->lock);
}

// ---------------------------------------------------------------- handlers

static enum status do_see(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    (void)err;
    struct site *t = rpc_call_self(c);
    const struct rpc_metadata *m = rpc_call_metadata(c, "flavour");
    const struct chan_peer *p = rpc_call_peer(c);
    struct seen seen = {.trace = *rpc_call_trace(c),
                        .attempt = rpc_call_attempt(c),
                        .left_ms = time_left_ms(rpc_call_deadline_us(c)),
                        .is_current = rpc_call_current() == c,
                        .is_forwarded = rpc_call_is_forwarded(c)};
    memcpy(seen.parent, rpc_call_parent_span(c), sizeof seen.parent);
    (void)rpc_call_metadata_all(c, &seen.n_metadata);
    if (m)
        memcpy(seen.flavour, m->value, m->n_value < 31 ? m->n_value : 31);
    if (p->has_grant)
        str_copy(seen.node, sizeof seen.node, p->grant.node_id);
    pthread_mutex_lock(&t->lock);
    t->seen = seen;
    pthread_mutex_unlock(&t->lock);
    t->n_seen++;
    ret->text = arena_strdup(rpc_call_arena(c), "seen");
    return STATUS_OK;
}

static const struct rpc_method *method_of(const char *name)
{
    for (size_t i = 0; i < N_OWN; i++) {
        if (str_eq(own_methods[i].name, name))
            return &own_methods[i];
    }
    return NULL;
}

static enum status do_relay(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    struct site *t = rpc_call_self(c);
    (void)do_see(c, req, ret, err);
    const struct rpc_opts o = {.deadline_us = time_deadline_in_ms(600000),
                               .detached = req->number == 1};
    Note n;
    note_init(&n);
    ProtobufCMessage *reply = NULL;
    enum status s = rpc_unary(t->next, method_of(req->text), &o, &n.base, &reply, err);
    rpc_message_free(reply);
    return s;
}

static void on_cancel(void *ud)
{
    struct site *t = ud;
    t->n_cancelled++;
    site_release(t);
}

static enum status do_hold(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    (void)ret;
    struct site *t = rpc_call_self(c);
    struct cancel *k = rpc_call_cancel(c);
    struct cancel_hook *h = cancel_hook(k, on_cancel, t);
    t->n_holding++;
    pthread_mutex_lock(&t->lock);
    while (!t->released)
        pthread_cond_wait(&t->cond, &t->lock);
    pthread_mutex_unlock(&t->lock);
    cancel_unhook(h);
    return cancel_is_fired(k) ? err_set(err, STATUS_CANCELLED, "told to stop") : STATUS_OK;
}

static enum status do_refuse(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    (void)ret;
    rpc_call_reason(c, "TASTE");
    rpc_call_retryable(c);
    rpc_call_retry_after(c, 70);
    rpc_call_trailer(c, "chef", "Ana", 3);
    rpc_call_violation(c, "children[1].text", "must be one of %d words", 12);
    return rpc_call_bad_field(c, err, "number", "must be %d at most", 7);
}

static void answer_postponed(void *ud)
{
    struct rpc_call *c = ud;
    struct site *t = rpc_call_self(c);
    Note n;
    note_init(&n);
    pthread_mutex_lock(&t->lock);
    t->seen.is_current = rpc_call_current() == c;
    pthread_mutex_unlock(&t->lock);
    rpc_call_finish(c, STATUS_OK, &n.base, NULL);
}

static enum status do_postpone(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    (void)ret;
    (void)err;
    rpc_call_defer(c);
    rpc_call_on_writable(c, answer_postponed, c);
    return STATUS_OK;
}

static enum status do_drip(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)ret;
    Note n;
    note_init(&n);
    n.data = req->data;
    for (; n.number < req->number; n.number++) {
        enum status s = rpc_call_write(c, &n.base, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

static enum status do_mirror(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    (void)ret;
    for (;;) {
        ProtobufCMessage *m;
        enum status s = rpc_call_read(c, &m, err);
        if (s != STATUS_OK || !m)
            return s;
        s = rpc_call_write(c, m, err);
        if (s != STATUS_OK)
            return s;
    }
}

typedef enum status (*handler)(struct rpc_call *c, const Note *req, Note *ret, struct err *err);
static const handler own_handlers[N_OWN] = {
    [SEE] = do_see,       [SEE_INLINE] = do_see, [RELAY] = do_relay,   [HOLD] = do_hold,
    [HOLD_TWO] = do_hold, [HASTY] = do_see,      [REFUSE] = do_refuse, [POSTPONE] = do_postpone,
    [DRIP] = do_drip,     [MIRROR] = do_mirror,
};

static enum status thunk(struct rpc_call *c, void (*h)(void), const ProtobufCMessage *req,
                         ProtobufCMessage *ret, struct err *err)
{
    return ((handler)h)(c, (const Note *)(const void *)req, (Note *)(void *)ret, err);
}

// ---------------------------------------------------------------- sites

void site_init(struct site *t)
{
    memset(t, 0, sizeof *t);
    world_init(&t->w);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->cond, NULL);
}

void site_new_server(struct site *t)
{
    struct err err = ERR_INIT;
    struct rpc_server_opts o = world_server_opts(&t->w);
    rpc_thunk thunks[N_OWN];
    void (*plain[N_OWN])(void);
    for (size_t i = 0; i < N_OWN; i++) {
        thunks[i] = thunk;
        plain[i] = (void (*)(void))own_handlers[i];
    }
    o.log = t->log;
    if (t->narrow)
        o.pool = t->narrow;
    t->s = rpc_server_new(&o, &err);
    assert_non_null(t->s);
    assert_int_equal(rpc_server_add(t->s, &own_service, thunks, plain, t, &err), STATUS_OK);
}

void site_listen(struct site *t, bool is_public)
{
    struct err err = ERR_INIT;
    enum status s = rpc_server_listen(t->s, "tcp://127.0.0.1:0", is_public, t->url, &err);
    if (s != STATUS_OK)
        print_error("%s\n", err.msg);
    assert_int_equal(s, STATUS_OK);
}

void site_serve(struct site *t, bool is_public)
{
    site_init(t);
    site_new_server(t);
    site_listen(t, is_public);
}

void site_done(struct site *t)
{
    site_release(t);
    rpc_server_free(t->s);
    rpc_client_free(t->next);
    work_pool_free(t->narrow);
    world_done(&t->w);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->cond);
}

struct rpc_client *site_client(struct site *const *sites, size_t n)
{
    struct rpc_endpoint e[4];
    for (size_t i = 0; i < n; i++) {
        e[i] = (struct rpc_endpoint){.url = sites[i]->url};
        memcpy(e[i].key, sites[i]->w.server.public_key, 32);
    }
    struct rpc_client_opts o = {.endpoints = e,
                                .n_endpoints = n,
                                .policy = RPC_ROUND_ROBIN,
                                .transport = sites[0]->w.transport};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    return c;
}

enum status site_call(struct rpc_client *c, int method, const struct rpc_opts *o, int64_t number,
                      const char *text, struct err *err)
{
    Note n;
    ProtobufCMessage *reply = NULL;
    note_init(&n);
    n.number = number;
    n.text = (char *)(uintptr_t)text;
    enum status s = rpc_unary(c, &own_methods[method], o, &n.base, &reply, err);
    rpc_message_free(reply);
    return s;
}

void site_call_ok(struct rpc_client *c, int method, const struct rpc_opts *o, int64_t number,
                  const char *text)
{
    struct err err = ERR_INIT;
    enum status s = site_call(c, method, o, number, text, &err);
    if (s != STATUS_OK)
        print_error("%s: %s\n", own_methods[method].name, err.msg);
    assert_int_equal(s, STATUS_OK);
}

static void on_done(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    struct pending *p = ud;
    rpc_message_free(reply);
    p->s = s;
    str_copy(p->msg, sizeof p->msg, err->msg);
    p->n_done++;
}

void pending_begin(struct rpc_client *c, int method, const char *text, const struct rpc_opts *o,
                   struct pending *p)
{
    Note n;
    note_init(&n);
    n.text = (char *)(uintptr_t)text;
    *p = (struct pending){.s = STATUS_UNKNOWN};
    struct rpc_opts own = o ? *o : (struct rpc_opts){.token = NULL};
    own.ret_details = &p->details;
    rpc_unary_async(c, &own_methods[method], &own, &n.base, on_done, p);
}

enum status pending_end(struct pending *p)
{
    assert_true(wait_for_count(&p->n_done, 1));
    return p->s;
}

// ---------------------------------------------------------------- looking at a site

struct wanted {
    const char *name;
    struct rpc_method_stats stats;
    bool found;
};

static void find_method(void *ud, const struct rpc_method_stats *m)
{
    struct wanted *w = ud;
    if (!str_eq(m->method->name, w->name))
        return;
    assert_false(w->found);
    w->found = true;
    w->stats = *m;
}

struct rpc_method_stats site_stats(struct site *t, int method)
{
    struct wanted w = {.name = own_methods[method].name};
    rpc_server_methods_each(t->s, find_method, &w);
    assert_true(w.found);
    return w.stats;
}

// Look again and again, at most ten seconds, until what is looked for is there.
bool eventually(bool (*is_so)(void *ud), void *ud)
{
    int64_t until = time_mono_us() + 10000000;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    while (!is_so(ud)) {
        struct timespec ts;
        if (time_mono_us() > until)
            return false;
        clock_gettime(CLOCK_REALTIME, &ts);
        ts.tv_nsec += 1000000;
        ts.tv_sec += ts.tv_nsec / 1000000000;
        ts.tv_nsec %= 1000000000;
        pthread_mutex_lock(&lock);
        pthread_cond_timedwait(&cond, &lock, &ts);
        pthread_mutex_unlock(&lock);
    }
    return true;
}

static void look_at(void *ud, const struct rpc_call_info *i)
{
    struct looked *l = ud;
    if (i->method != &own_methods[l->method] || i->state != l->state || i->age_ms < l->age_ms)
        return;
    l->n_found++;
    l->info = *i;
}

bool site_has_call(void *ud)
{
    struct looked *l = ud;
    l->n_found = 0;
    rpc_server_calls_each(l->site->s, look_at, l);
    return l->n_found > 0 && l->n_found >= l->n_wanted;
}

enum status site_route(void *ud, const struct rpc_method *m, const char *to,
                       struct rpc_client **ret_client, struct err *err)
{
    (void)m;
    (void)to;
    (void)err;
    *ret_client = ud;
    return STATUS_OK;
}
