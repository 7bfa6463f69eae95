// What a server does around its handlers: context of calls, interceptors, metrics, limits, what
// can be seen of it, and how it leaves.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "rpc/test_util.h"

enum {
    SEE,        // notes what its call says of itself
    SEE_INLINE, // the same on the I/O strand
    RELAY,      // calls the next site's method that text names; number 1: detached
    HOLD,       // until released or cancelled
    HOLD_TWO,   // the same, at most two at once
    HASTY,      // as SEE, but waits at most a millisecond for a thread
    REFUSE,     // with details
    DRIP,       // server stream: number notes
    MIRROR,     // bidi: every note comes back
    N_OWN
};
#define NOTE .request = &note_descriptor, .reply = &note_descriptor
static const struct rpc_method own_methods[N_OWN] = {
    [SEE] = {"test.Own.See", RPC_UNARY, ROLE_ANON, NOTE},
    [SEE_INLINE] = {"test.Own.SeeInline", RPC_UNARY, ROLE_ANON, .run_inline = true, NOTE},
    [RELAY] = {"test.Own.Relay", RPC_UNARY, ROLE_ANON, NOTE},
    [HOLD] = {"test.Own.Hold", RPC_UNARY, ROLE_ANON, NOTE},
    [HOLD_TWO] = {"test.Own.HoldTwo", RPC_UNARY, ROLE_ANON, .max_concurrent = 2, NOTE},
    [HASTY] = {"test.Own.Hasty", RPC_UNARY, ROLE_ANON, .max_queue_ms = 1, NOTE},
    [REFUSE] = {"test.Own.Refuse", RPC_UNARY, ROLE_ANON, NOTE},
    [DRIP] = {"test.Own.Drip", RPC_SERVER_STREAM, ROLE_ANON, NOTE},
    [MIRROR] = {"test.Own.Mirror", RPC_BIDI, ROLE_ANON, NOTE},
};
static const struct rpc_service own_service = {"test.Own", own_methods, N_OWN};

struct seen { // of a call, by its handler
    struct rpc_trace trace;
    uint8_t parent[8];
    unsigned attempt;
    int64_t left_ms;
    char flavour[32]; // metadata
    size_t n_metadata;
    char node[CHAN_NODE_ID_SIZE];
    bool is_current, is_forwarded;
};
struct site { // a server and what it saw
    struct world w;
    struct work_pool *narrow; // one thread
    struct log *log;
    struct rpc_server *s;
    char url[RPC_URL_SIZE];
    struct rpc_client *next;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool released;
    struct seen seen;
    _Atomic int n_seen, n_holding, n_cancelled, n_before, n_after;
    char order[64]; // which interceptors ran, in turn
    enum status after;
    struct rpc_timings timings;
};

static void note_order(struct site *t, const char *what)
{
    pthread_mutex_lock(&t->lock);
    size_t n = strlen(t->order);
    str_copy(t->order + n, sizeof t->order - n, what);
    pthread_mutex_unlock(&t->lock);
}

static struct seen last_seen(struct site *t)
{
    pthread_mutex_lock(&t->lock);
    struct seen s = t->seen;
    pthread_mutex_unlock(&t->lock);
    return s;
}

static void release(struct site *t)
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
    release(t);
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

static enum status do_drip(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)ret;
    Note n;
    note_init(&n);
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
    [SEE] = do_see,       [SEE_INLINE] = do_see, [RELAY] = do_relay,
    [HOLD] = do_hold,     [HOLD_TWO] = do_hold,  [HASTY] = do_see,
    [REFUSE] = do_refuse, [DRIP] = do_drip,      [MIRROR] = do_mirror,
};

static enum status thunk(struct rpc_call *c, void (*h)(void), const ProtobufCMessage *req,
                         ProtobufCMessage *ret, struct err *err)
{
    return ((handler)h)(c, (const Note *)(const void *)req, (Note *)(void *)ret, err);
}

// ---------------------------------------------------------------- sites

static void site_init(struct site *t)
{
    memset(t, 0, sizeof *t);
    world_init(&t->w);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->cond, NULL);
}

static void site_new_server(struct site *t)
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

static void site_listen(struct site *t, bool is_public)
{
    struct err err = ERR_INIT;
    enum status s = rpc_server_listen(t->s, "tcp://127.0.0.1:0", is_public, t->url, &err);
    if (s != STATUS_OK)
        print_error("%s\n", err.msg);
    assert_int_equal(s, STATUS_OK);
}

static void site_serve(struct site *t, bool is_public)
{
    site_init(t);
    site_new_server(t);
    site_listen(t, is_public);
}

static void site_done(struct site *t)
{
    release(t);
    rpc_server_free(t->s);
    rpc_client_free(t->next);
    work_pool_free(t->narrow);
    world_done(&t->w);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->cond);
}

static struct rpc_client *client_of(struct site *const *sites, size_t n)
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

static enum status call_own(struct rpc_client *c, int method, const struct rpc_opts *o,
                            int64_t number, const char *text, struct err *err)
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

static void call_ok(struct rpc_client *c, int method, const struct rpc_opts *o, int64_t number,
                    const char *text)
{
    struct err err = ERR_INIT;
    enum status s = call_own(c, method, o, number, text, &err);
    if (s != STATUS_OK)
        print_error("%s: %s\n", own_methods[method].name, err.msg);
    assert_int_equal(s, STATUS_OK);
}

struct pending { // a call that somebody waits for
    _Atomic int n_done;
    enum status s;
    struct rpc_details details;
    char msg[240];
};

static void on_done(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    struct pending *p = ud;
    rpc_message_free(reply);
    p->s = s;
    str_copy(p->msg, sizeof p->msg, err->msg);
    p->n_done++;
}

static void begin(struct rpc_client *c, int method, const struct rpc_opts *o, struct pending *p)
{
    Note n;
    note_init(&n);
    *p = (struct pending){.s = STATUS_UNKNOWN};
    struct rpc_opts own = o ? *o : (struct rpc_opts){.token = NULL};
    own.ret_details = &p->details;
    rpc_unary_async(c, &own_methods[method], &own, &n.base, on_done, p);
}

static enum status end(struct pending *p)
{
    assert_true(wait_for_count(&p->n_done, 1));
    return p->s;
}

// ---------------------------------------------------------------- traces

static void test_traceparent_is_read_and_written(void **state)
{
    (void)state;
    static const char good[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    static const struct {
        const char *text;
        bool ok;
    } cases[] = {
        {good, true},
        {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true},
        {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more", false},
        {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", false},
        {"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false},
        {"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false},
        {"00-00000000000000000000000000000000-b7ad6b7169203331-01", false},
        {"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false},
        {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0", false},
        {"00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01", false},
        {"", false},
        {NULL, false},
    };
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        struct rpc_trace t = {.flags = 77};
        assert_int_equal(rpc_trace_parse(cases[i].text, &t), cases[i].ok);
        assert_int_equal(t.flags, cases[i].ok ? 1 : 77);
    }
    struct rpc_trace t, made;
    char text[RPC_TRACEPARENT_SIZE];
    assert_true(rpc_trace_parse(good, &t));
    rpc_trace_format(text, &t);
    assert_string_equal(text, good);
    rpc_trace_new(&made);
    assert_true(rpc_trace_is_set(&made) && made.flags == 1);
    rpc_trace_format(text, &made);
    assert_true(rpc_trace_parse(text, &t));
    assert_memory_equal(&t, &made, sizeof t);
}

static const uint8_t no_span[8];

static void test_a_handler_knows_its_call(void **state)
{
    (void)state;
    static const struct rpc_metadata metadata[] = {{"size", "L", 1}, {"flavour", "mint", 4}};
    struct rpc_trace trace;
    rpc_trace_new(&trace);
    trace.flags = 0;
    struct site t;
    site_serve(&t, false);
    struct rpc_client *c = world_client_to(&t.w, t.url, false);
    static const int methods[] = {SEE, SEE_INLINE};
    for (size_t i = 0; i < N_ELEMENTS(methods); i++) {
        struct rpc_opts o = {.metadata = metadata, .n_metadata = 2, .trace = &trace};
        call_ok(c, methods[i], &o, 0, "");
        struct seen s = last_seen(&t);
        assert_true(s.is_current);
        assert_string_equal(s.flavour, "mint");
        assert_int_equal(s.n_metadata, 2);
        assert_string_equal(s.node, "node-12");
        assert_int_equal(s.attempt, 1);
        assert_true(s.left_ms > 0 && s.left_ms <= 15000);
        assert_memory_equal(s.trace.trace_id, trace.trace_id, 16);
        assert_memory_equal(s.parent, trace.span_id, 8);
        assert_memory_not_equal(s.trace.span_id, trace.span_id, 8);
        assert_int_equal(s.trace.flags, 0);

        call_ok(c, methods[i], NULL, 0, ""); // a trace begins here
        s = last_seen(&t);
        assert_string_equal(s.flavour, "");
        assert_true(rpc_trace_is_set(&s.trace));
        assert_memory_not_equal(s.trace.trace_id, trace.trace_id, 16);
        assert_memory_equal(s.parent, no_span, 8);
        assert_int_equal(s.trace.flags, 1);
    }
    assert_null(rpc_call_current());
    rpc_client_free(c);
    site_done(&t);
}

static void test_calls_of_a_handler_are_part_of_its_call(void **state)
{
    (void)state;
    struct site a, b;
    site_serve(&a, true);
    site_serve(&b, true);
    a.next = client_of((struct site *[]){&b}, 1);
    struct rpc_client *c = client_of((struct site *[]){&a}, 1);
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(20000)};
    call_ok(c, RELAY, &o, 0, "test.Own.See");
    struct seen sa = last_seen(&a), sb = last_seen(&b);
    assert_memory_equal(sb.trace.trace_id, sa.trace.trace_id, 16);
    assert_memory_equal(sb.parent, sa.trace.span_id, 8);
    assert_true(sb.left_ms <= sa.left_ms);

    call_ok(c, RELAY, &o, 1, "test.Own.See"); // detached
    sa = last_seen(&a);
    sb = last_seen(&b);
    assert_memory_not_equal(sb.trace.trace_id, sa.trace.trace_id, 16);
    assert_memory_equal(sb.parent, no_span, 8);
    assert_true(sb.left_ms > 20000);

    // Whoever gives up at one end is heard at the other.
    struct cancel *k = cancel_new(NULL);
    struct pending p;
    Note n;
    note_init(&n);
    n.text = (char *)(uintptr_t) "test.Own.Hold";
    p = (struct pending){.s = STATUS_UNKNOWN};
    o = (struct rpc_opts){.cancel = k};
    rpc_unary_async(c, &own_methods[RELAY], &o, &n.base, on_done, &p);
    assert_true(wait_for_count(&b.n_holding, 1));
    cancel_fire(k);
    assert_int_equal(end(&p), STATUS_CANCELLED);
    assert_true(wait_for_count(&b.n_cancelled, 1));
    cancel_unref(k);
    rpc_client_free(c);
    site_done(&a);
    site_done(&b);
}

static enum status route(void *ud, const struct rpc_method *m, const char *to,
                         struct rpc_client **ret_client, struct err *err)
{
    (void)m;
    (void)to;
    (void)err;
    *ret_client = ud;
    return STATUS_OK;
}

static void test_a_proxy_hands_on_what_came_beside(void **state)
{
    (void)state;
    static const struct rpc_metadata metadata[] = {{"flavour", "plum", 4}};
    struct site b;
    site_serve(&b, false);
    struct world w;
    struct err err = ERR_INIT;
    world_init(&w);
    struct rpc_server_opts so = world_server_opts(&w);
    struct rpc_server *gate = rpc_server_new(&so, &err);
    struct rpc_client *up = world_client_to(&b.w, b.url, false);
    const struct rpc_service *known[] = {&own_service};
    char url[RPC_URL_SIZE];
    rpc_server_set_router(gate, known, 1, route, up);
    assert_int_equal(rpc_server_listen(gate, "tcp://127.0.0.1:0", true, url, &err), STATUS_OK);
    struct rpc_client *c = world_client_to(&w, url, true);
    struct rpc_trace trace;
    rpc_trace_new(&trace);
    struct rpc_opts o = {.metadata = metadata, .n_metadata = 1, .trace = &trace};
    call_ok(c, SEE, &o, 0, "");
    struct seen sb = last_seen(&b);
    assert_true(sb.is_forwarded);
    assert_string_equal(sb.flavour, "plum");
    assert_memory_equal(sb.trace.trace_id, trace.trace_id, 16);
    assert_memory_not_equal(sb.parent, trace.span_id, 8); // but the proxy's span
    assert_memory_not_equal(sb.parent, no_span, 8);
    call_ok(c, SEE, NULL, 0, "");
    sb = last_seen(&b);
    assert_memory_not_equal(sb.parent, no_span, 8); // the trace began at the proxy
    rpc_client_free(c);
    rpc_server_free(gate);
    rpc_client_free(up);
    world_done(&w);
    site_done(&b);
}

// ---------------------------------------------------------------- interceptors

static enum status first_before(void *ud, struct rpc_call *c, struct err *err)
{
    note_order(ud, rpc_call_current() == c ? "1" : "?");
    if (rpc_call_metadata(c, "forbidden"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "not with that");
    return STATUS_OK;
}
static void first_after(void *ud, struct rpc_call *c, enum status s, const struct rpc_timings *t)
{
    struct site *site = ud;
    note_order(site, rpc_call_current() == c ? "a" : "?");
    pthread_mutex_lock(&site->lock);
    site->after = s;
    site->timings = *t;
    pthread_mutex_unlock(&site->lock);
    site->n_after++;
}
static enum status second_before(void *ud, struct rpc_call *c, struct err *err)
{
    note_order(ud, "2");
    if (rpc_call_metadata(c, "late"))
        return err_set(err, STATUS_ABORTED, "the second does not like it");
    return STATUS_OK;
}
static void second_after(void *ud, struct rpc_call *c, enum status s, const struct rpc_timings *t)
{
    (void)c;
    (void)s;
    (void)t;
    note_order(ud, "b");
}

static void test_interceptors_run_in_order_and_back(void **state)
{
    (void)state;
    struct site t;
    struct err err = ERR_INIT;
    site_init(&t);
    site_new_server(&t);
    const struct rpc_interceptor first = {"first", &t, first_before, first_after};
    const struct rpc_interceptor second = {"second", &t, second_before, second_after};
    const struct rpc_interceptor none = {"none", NULL, NULL, NULL};
    assert_int_equal(rpc_server_intercept(t.s, &first, &err), STATUS_OK);
    assert_int_equal(rpc_server_intercept(t.s, &none, &err), STATUS_OK);
    assert_int_equal(rpc_server_intercept(t.s, &second, &err), STATUS_OK);
    site_listen(&t, true);
    assert_int_equal(rpc_server_intercept(t.s, &first, &err), STATUS_FAILED_PRECONDITION);
    struct rpc_client *c = client_of((struct site *[]){&t}, 1);
    static const struct {
        int method;
        const char *key;
        enum status s;
        const char *order;
        int n_seen;
    } cases[] = {
        {SEE, "fine", STATUS_OK, "12ba", 1},
        {SEE_INLINE, "fine", STATUS_OK, "12ba", 2},
        {SEE, "forbidden", STATUS_FAILED_PRECONDITION, "1", 2}, // after: for none that let it pass
        {SEE, "late", STATUS_ABORTED, "12a", 2},
        {REFUSE, "fine", STATUS_INVALID_ARGUMENT, "12ba", 2},
    };
    int n_after = 0;
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        const struct rpc_metadata m = {cases[i].key, "", 0};
        const struct rpc_opts o = {.metadata = &m, .n_metadata = 1, .max_attempts = 1};
        pthread_mutex_lock(&t.lock);
        t.order[0] = 0;
        pthread_mutex_unlock(&t.lock);
        assert_int_equal(call_own(c, cases[i].method, &o, 0, "", &err), cases[i].s);
        n_after += strchr(cases[i].order, 'a') != NULL;
        assert_true(wait_for_count(&t.n_after, n_after));
        // The next call may not begin before this one is done with.
        pthread_mutex_lock(&t.lock);
        assert_string_equal(t.order, cases[i].order);
        if (strchr(cases[i].order, 'a')) {
            assert_int_equal(t.after, cases[i].s);
            assert_true(t.timings.queue_us >= 0 && t.timings.handling_us >= 0);
        }
        pthread_mutex_unlock(&t.lock);
        assert_int_equal(t.n_seen, cases[i].n_seen);
    }
    rpc_client_free(c);
    site_done(&t);
}

// ---------------------------------------------------------------- log

static size_t lines_with(const char *text, const char *a, const char *b)
{
    size_t n = 0;
    for (const char *at = text; *at;) {
        const char *end = strchrnul(at, '\n');
        char line[1024];
        snprintf(line, sizeof line, "%.*s", (int)(end - at), at);
        n += strstr(line, "\"rpc_call\"") && strstr(line, a) && strstr(line, b);
        at = *end ? end + 1 : end;
    }
    return n;
}

static void test_every_call_leaves_a_line(void **state)
{
    (void)state;
    static const struct {
        enum log_level level;
        size_t n_good, n_bad;
    } rows[] = {{LOG_DEBUG, 2, 1}, {LOG_INFO, 0, 1}, {LOG_WARN, 0, 0}};
    struct rpc_trace trace;
    char id[33];
    rpc_trace_new(&trace);
    str_hex(id, trace.trace_id, 16);
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        int fd = memfd_create("log", MFD_CLOEXEC);
        assert_true(fd >= 0);
        struct site t;
        site_init(&t);
        t.log = log_new(fd, rows[i].level, true);
        site_new_server(&t);
        site_listen(&t, true);
        struct rpc_client *c = client_of((struct site *[]){&t}, 1);
        struct rpc_opts o = {.trace = &trace, .max_attempts = 1};
        struct err err = ERR_INIT;
        call_ok(c, SEE, &o, 0, "");
        call_ok(c, SEE_INLINE, &o, 0, "");
        assert_int_equal(call_own(c, REFUSE, &o, 0, "", &err), STATUS_INVALID_ARGUMENT);
        rpc_client_free(c);
        struct log *l = TAKE(t.log);
        site_done(&t); // no call is left to be logged
        log_free(l);
        char text[8192] = "";
        assert_true(pread(fd, text, sizeof text - 1, 0) >= 0);
        close(fd);
        assert_int_equal(lines_with(text, "test.Own.See", "\"OK\""), rows[i].n_good);
        assert_int_equal(lines_with(text, "test.Own.Refuse", "INVALID_ARGUMENT"), rows[i].n_bad);
        assert_int_equal(lines_with(text, id, "took_us"), rows[i].n_good + rows[i].n_bad);
    }
}

// ---------------------------------------------------------------- metrics

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

static struct rpc_method_stats stats_of(struct site *t, int method)
{
    struct wanted w = {.name = own_methods[method].name};
    rpc_server_methods_each(t->s, find_method, &w);
    assert_true(w.found);
    return w.stats;
}

static uint64_t sum(const struct rpc_histogram *h)
{
    uint64_t n = 0;
    for (size_t i = 0; i < RPC_HISTOGRAM_BUCKETS; i++)
        n += h->counts[i];
    return n;
}

static void test_methods_are_counted(void **state)
{
    (void)state;
    struct site t;
    struct err err = ERR_INIT;
    site_serve(&t, true);
    struct rpc_client *c = client_of((struct site *[]){&t}, 1);
    for (int i = 0; i < 10; i++) {
        call_ok(c, SEE, NULL, i, "four");
        call_ok(c, SEE_INLINE, NULL, i, "four");
    }
    for (int i = 0; i < 3; i++)
        assert_int_equal(call_own(c, REFUSE, &(struct rpc_opts){.max_attempts = 1}, 0, "", &err),
                         STATUS_INVALID_ARGUMENT);
    static const int methods[] = {SEE, SEE_INLINE};
    for (size_t i = 0; i < N_ELEMENTS(methods); i++) {
        struct rpc_method_stats s = stats_of(&t, methods[i]);
        assert_int_equal(s.n_started, 10);
        assert_int_equal(s.by_status[STATUS_OK], 10);
        assert_int_equal(s.in_flight, 0);
        assert_int_equal(s.n_shed, 0);
        assert_int_equal(sum(&s.queue), 10);
        assert_int_equal(sum(&s.handling), 10);
        // text and, but for the first, number: 6 + 2 bytes; "seen" comes back
        assert_int_equal(s.bytes_in, 10 * 6 + 9 * 2);
        assert_int_equal(s.bytes_out, 10 * 6);
        assert_int_equal(s.n_service, strlen("test.Own"));
        assert_memory_equal(s.service, "test.Own", s.n_service);
        assert_false(s.is_forwarded);
    }
    struct rpc_method_stats refused = stats_of(&t, REFUSE);
    assert_int_equal(refused.by_status[STATUS_INVALID_ARGUMENT], 3);
    assert_int_equal(refused.by_status[STATUS_OK], 0);
    struct rpc_server_stats all;
    rpc_server_get_stats(t.s, &all);
    assert_int_equal(all.n_calls, 23);
    assert_int_equal(all.n_failed, 3);

    struct pending p;
    begin(c, HOLD, NULL, &p);
    assert_true(wait_for_count(&t.n_holding, 1));
    struct rpc_method_stats held = stats_of(&t, HOLD);
    assert_int_equal(held.in_flight, 1);
    assert_int_equal(sum(&held.queue), 1);
    assert_int_equal(sum(&held.handling), 0);
    release(&t);
    assert_int_equal(end(&p), STATUS_OK);
    held = stats_of(&t, HOLD);
    assert_int_equal(held.in_flight, 0);
    assert_int_equal(sum(&held.handling), 1);
    assert_true(held.handling.sum_us > 0);
    rpc_client_free(c);
    site_done(&t);
}

static void test_buckets_double(void **state)
{
    (void)state;
    assert_int_equal(rpc_histogram_bound_us(0), 16);
    assert_int_equal(rpc_histogram_bound_us(1), 32);
    assert_int_equal(rpc_histogram_bound_us(RPC_HISTOGRAM_BUCKETS - 2), 16 << 20);
    assert_int_equal(rpc_histogram_bound_us(RPC_HISTOGRAM_BUCKETS - 1), TIME_NEVER);
}

// ---------------------------------------------------------------- limits

static void test_too_many_at_once_are_shed(void **state)
{
    (void)state;
    struct site a, b;
    site_serve(&a, true);
    site_serve(&b, true);
    struct rpc_client *c = client_of((struct site *[]){&a}, 1);
    struct pending p[3];
    begin(c, HOLD_TWO, NULL, &p[0]);
    begin(c, HOLD_TWO, NULL, &p[1]);
    assert_true(wait_for_count(&a.n_holding, 2));
    const struct rpc_opts once = {.max_attempts = 1};
    begin(c, HOLD_TWO, &once, &p[2]);
    assert_int_equal(end(&p[2]), STATUS_UNAVAILABLE);
    assert_string_equal(p[2].details.reason, RPC_REASON_OVERLOADED);
    assert_true(p[2].details.retryable);
    assert_true(p[2].details.retry_after_ms > 0);
    assert_non_null(strstr(p[2].msg, "at most 2"));
    rpc_details_done(&p[2].details);
    call_ok(c, SEE, NULL, 0, ""); // other methods go on
    struct rpc_method_stats s = stats_of(&a, HOLD_TWO);
    assert_int_equal(s.n_shed, 1);
    assert_int_equal(s.n_started, 3);
    assert_int_equal(s.in_flight, 2);
    assert_int_equal(s.by_status[STATUS_UNAVAILABLE], 1);

    // No handler saw it, so it goes elsewhere though its method is not idempotent; and the server
    // is not thought to be broken.
    struct rpc_client *both = client_of((struct site *[]){&a, &b}, 2);
    call_ok(both, SEE, NULL, 0, "");
    release(&b);
    for (int i = 0; i < 8; i++)
        call_ok(both, HOLD_TWO, NULL, 0, "");
    assert_int_equal(b.n_holding, 8);
    struct rpc_client_stats cs;
    rpc_client_get_stats(both, &cs);
    assert_false(cs.breaker_open);

    release(&a);
    assert_int_equal(end(&p[0]), STATUS_OK);
    assert_int_equal(end(&p[1]), STATUS_OK);
    call_ok(c, HOLD_TWO, NULL, 0, ""); // there is room again
    rpc_client_free(both);
    rpc_client_free(c);
    site_done(&a);
    site_done(&b);
}

// Look again and again, at most ten seconds, until what is looked for is there.
static bool eventually(bool (*is_so)(void *ud), void *ud)
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

struct looked { // for an open call of a method
    struct site *site;
    int method;
    enum rpc_call_state state;
    int64_t age_ms;
    int n_found, n_wanted;
    struct rpc_call_info info;
};

static void look_at(void *ud, const struct rpc_call_info *i)
{
    struct looked *l = ud;
    if (i->method != &own_methods[l->method] || i->state != l->state || i->age_ms < l->age_ms)
        return;
    l->n_found++;
    l->info = *i;
}

static bool is_open(void *ud)
{
    struct looked *l = ud;
    l->n_found = 0;
    rpc_server_calls_each(l->site->s, look_at, l);
    return l->n_found > 0 && l->n_found >= l->n_wanted;
}

static void test_what_waited_too_long_is_shed(void **state)
{
    (void)state;
    struct site t;
    site_init(&t);
    t.narrow = work_pool_new("narrow", 1, 100);
    site_new_server(&t);
    site_listen(&t, true);
    struct rpc_client *c = client_of((struct site *[]){&t}, 1);
    struct pending hold, hasty, patient;
    const struct rpc_opts once = {.max_attempts = 1};
    begin(c, HOLD, NULL, &hold);
    assert_true(wait_for_count(&t.n_holding, 1));
    begin(c, HASTY, &once, &hasty);
    begin(c, SEE, NULL, &patient);
    struct looked waits = {.site = &t, .method = HASTY, .state = RPC_CALL_QUEUED, .age_ms = 3};
    assert_true(eventually(is_open, &waits));
    release(&t);
    assert_int_equal(end(&hold), STATUS_OK);
    assert_int_equal(end(&hasty), STATUS_UNAVAILABLE);
    assert_string_equal(hasty.details.reason, RPC_REASON_OVERLOADED);
    rpc_details_done(&hasty.details);
    assert_int_equal(end(&patient), STATUS_OK);
    assert_int_equal(t.n_seen, 1);
    assert_int_equal(stats_of(&t, HASTY).n_shed, 1);
    rpc_client_free(c);
    site_done(&t);
}

static void test_what_no_thread_takes_is_shed(void **state)
{
    (void)state;
    struct site t;
    site_init(&t);
    t.narrow = work_pool_new("narrow", 1, 1);
    site_new_server(&t);
    site_listen(&t, true);
    struct rpc_client *c = client_of((struct site *[]){&t}, 1);
    struct pending hold, queued, shed;
    const struct rpc_opts once = {.max_attempts = 1};
    begin(c, HOLD, NULL, &hold);
    assert_true(wait_for_count(&t.n_holding, 1));
    begin(c, SEE, &once, &queued);
    begin(c, SEE, &once, &shed);
    assert_int_equal(end(&shed), STATUS_UNAVAILABLE);
    assert_string_equal(shed.details.reason, RPC_REASON_OVERLOADED);
    assert_int_equal(shed.details.retry_after_ms, 1000);
    rpc_details_done(&shed.details);
    call_ok(c, SEE_INLINE, NULL, 0, "");
    release(&t);
    assert_int_equal(end(&hold), STATUS_OK);
    assert_int_equal(end(&queued), STATUS_OK);
    rpc_client_free(c);
    site_done(&t);
}

// ---------------------------------------------------------------- what can be seen

struct view {
    int n;
    struct rpc_call_info calls[8];
    struct rpc_conn_info conns[8];
};

static void see_call(void *ud, const struct rpc_call_info *i)
{
    struct view *v = ud;
    if (v->n < 8)
        v->calls[v->n++] = *i;
}
static void see_conn(void *ud, const struct rpc_conn_info *i)
{
    struct view *v = ud;
    if (v->n < 8)
        v->conns[v->n++] = *i;
}

static void test_open_calls_and_connections_are_seen(void **state)
{
    (void)state;
    struct site t;
    struct err err = ERR_INIT;
    site_serve(&t, false);
    struct rpc_client *c = world_client_to(&t.w, t.url, false);
    struct rpc_trace trace;
    rpc_trace_new(&trace);
    struct pending p;
    const struct rpc_opts o = {
        .trace = &trace, .token = "user", .deadline_us = time_deadline_in_ms(60000)};
    begin(c, HOLD, &o, &p);
    assert_true(wait_for_count(&t.n_holding, 1));
    struct view v = {.n = 0};
    rpc_server_calls_each(t.s, see_call, &v);
    assert_int_equal(v.n, 1);
    assert_ptr_equal(v.calls[0].method, &own_methods[HOLD]);
    assert_string_equal(v.calls[0].user, "user-id");
    assert_string_equal(v.calls[0].peer, "node-12");
    assert_int_equal(v.calls[0].peer_role, ROLE_NODE_ORIGIN);
    assert_string_equal(v.calls[0].remote, "127.0.0.1");
    assert_int_equal(v.calls[0].state, RPC_CALL_RUNNING);
    assert_true(v.calls[0].deadline_ms > 0 && v.calls[0].deadline_ms <= 60000);
    assert_memory_equal(v.calls[0].trace.trace_id, trace.trace_id, 16);

    // A stream that nobody reads waits for credit.
    struct rpc_stream *drip = NULL;
    Note n;
    note_init(&n);
    n.number = 1000000;
    assert_int_equal(rpc_stream_open(c, &own_methods[DRIP], NULL, &n.base, &drip, &err), STATUS_OK);
    struct looked stream = {.site = &t, .method = DRIP, .state = RPC_CALL_WAITING_FOR_CREDIT};
    assert_true(eventually(is_open, &stream));
    assert_true(stream.info.bytes_out > 0 && stream.info.deadline_ms > 0);

    v = (struct view){.n = 0};
    rpc_server_conns_each(t.s, see_conn, &v);
    assert_int_equal(v.n, 1);
    assert_string_equal(v.conns[0].peer, "node-12");
    assert_int_equal(v.conns[0].peer_role, ROLE_NODE_ORIGIN);
    assert_string_equal(v.conns[0].remote, "127.0.0.1");
    assert_string_equal(v.conns[0].url, t.url);
    assert_int_equal(v.conns[0].state, RPC_CONN_READY);
    assert_int_equal(v.conns[0].calls_open, 2);
    assert_true(v.conns[0].bytes_in > 0 && v.conns[0].bytes_out > 0);
    assert_true(v.conns[0].records_in > 0 && v.conns[0].records_out > 0);

    rpc_server_close(t.s);
    v = (struct view){.n = 0};
    rpc_server_conns_each(t.s, see_conn, &v);
    assert_int_equal(v.n, 1);
    assert_int_equal(v.conns[0].state, RPC_CONN_DRAINING);
    rpc_stream_free(drip);
    release(&t);
    assert_int_equal(end(&p), STATUS_OK);
    rpc_client_free(c);
    site_done(&t);
}

// ---------------------------------------------------------------- details

static void test_details_reach_the_caller(void **state)
{
    (void)state;
    struct site t;
    site_serve(&t, true);
    struct rpc_client *c = client_of((struct site *[]){&t}, 1);
    struct pending p;
    begin(c, REFUSE, &(struct rpc_opts){.max_attempts = 1}, &p);
    assert_int_equal(end(&p), STATUS_INVALID_ARGUMENT);
    assert_string_equal(p.msg, "number: must be 7 at most");
    const struct rpc_details *d = &p.details;
    assert_string_equal(d->reason, "TASTE");
    assert_true(d->retryable);
    assert_int_equal(d->retry_after_ms, 70);
    assert_int_equal(d->n_violations, 2);
    assert_string_equal(d->violations[0].field, "children[1].text");
    assert_string_equal(d->violations[0].description, "must be one of 12 words");
    assert_string_equal(d->violations[1].field, "number");
    assert_int_equal(d->n_metadata, 1);
    assert_string_equal(d->metadata[0].key, "chef");
    assert_memory_equal(d->metadata[0].value, "Ana", 3);
    rpc_details_done(&p.details);
    rpc_client_free(c);
    site_done(&t);
}

static bool has_shed(void *ud)
{
    return stats_of(ud, SEE).n_shed > 0;
}

static void test_attempts_are_numbered(void **state)
{
    (void)state;
    struct site t;
    site_init(&t);
    t.narrow = work_pool_new("narrow", 1, 1);
    site_new_server(&t);
    site_listen(&t, true);
    struct rpc_client *c = client_of((struct site *[]){&t}, 1);
    struct pending hold, queued, again;
    begin(c, HOLD_TWO, NULL, &hold);
    assert_true(wait_for_count(&t.n_holding, 1));
    begin(c, SEE, NULL, &queued);
    begin(c, SEE, NULL, &again); // shed, and comes again a second later
    assert_true(eventually(has_shed, &t));
    release(&t);
    assert_int_equal(end(&queued), STATUS_OK);
    assert_int_equal(end(&again), STATUS_OK);
    assert_int_equal(last_seen(&t).attempt, 2);
    assert_int_equal(end(&hold), STATUS_OK);
    rpc_client_free(c);
    site_done(&t);
}

// ---------------------------------------------------------------- leaving

struct load {
    struct rpc_client *c;
    atomic_bool stop;
    _Atomic int n_calls, n_streams, n_failed;
};

static void load_failed(struct load *l, const char *what, const struct err *err)
{
    l->n_failed++;
    print_error("%s: %s: %s\n", what, status_name(err->code), err->msg);
}

static void *load_calls(void *ud)
{
    struct load *l = ud;
    while (!l->stop) {
        struct err err = ERR_INIT;
        if (call_own(l->c, SEE, NULL, 1, "", &err) != STATUS_OK)
            load_failed(l, "call", &err);
        l->n_calls++;
    }
    return NULL;
}

// Every note of a server stream, in order.
static enum status read_drip(struct rpc_stream *s, int64_t n, struct err *err)
{
    for (int64_t i = 0; i <= n; i++) {
        ProtobufCMessage *m = NULL;
        enum status st = rpc_stream_recv(s, &m, err);
        bool ok = i < n ? m && ((Note *)(void *)m)->number == i : !m;
        rpc_message_free(m);
        if (st != STATUS_OK || !ok)
            return st != STATUS_OK ? st : err_set(err, STATUS_DATA_LOSS, "note %d", (int)i);
    }
    return STATUS_OK;
}

static enum status write_mirror(struct rpc_stream *s, int64_t n, struct err *err)
{
    Note note;
    note_init(&note);
    enum status st = STATUS_OK;
    for (note.number = 1; st == STATUS_OK && note.number <= n; note.number++) {
        ProtobufCMessage *m = NULL;
        st = rpc_stream_send(s, &note.base, err);
        if (st == STATUS_OK)
            st = rpc_stream_recv(s, &m, err);
        if (st == STATUS_OK && (!m || ((Note *)(void *)m)->number != note.number))
            st = err_set(err, STATUS_DATA_LOSS, "note %d did not come back", (int)note.number);
        rpc_message_free(m);
    }
    ProtobufCMessage *none = NULL;
    if (st == STATUS_OK)
        st = rpc_stream_close_send(s, err);
    if (st == STATUS_OK)
        st = rpc_stream_recv(s, &none, err);
    rpc_message_free(none);
    return st;
}

static void *load_streams(void *ud)
{
    struct load *l = ud;
    for (int i = 0; !l->stop; i++) {
        struct err err = ERR_INIT;
        struct rpc_stream *s = NULL;
        Note n;
        note_init(&n);
        n.number = 30;
        bool drip = i % 2;
        enum status st = rpc_stream_open(l->c, &own_methods[drip ? DRIP : MIRROR], NULL,
                                         drip ? &n.base : NULL, &s, &err);
        if (st == STATUS_OK)
            st = drip ? read_drip(s, 30, &err) : write_mirror(s, 10, &err);
        if (st != STATUS_OK)
            load_failed(l, drip ? "server stream" : "bidi stream", &err);
        rpc_stream_free(s);
        l->n_streams++;
    }
    return NULL;
}

#define N_CALLERS 6
#define N_STREAMERS 4

// Site a stops while l.c, which knows both sites in some way, is used by many.
static void leave_under_load(struct rpc_client *c, struct site *a, struct site *b)
{
    struct load l = {.c = c};
    pthread_t threads[N_CALLERS + N_STREAMERS];
    for (size_t i = 0; i < N_ELEMENTS(threads); i++)
        assert_int_equal(
            pthread_create(&threads[i], NULL, i < N_CALLERS ? load_calls : load_streams, &l), 0);
    assert_true(wait_for_count(&a->n_seen, 50)); // both are in use
    assert_true(wait_for_count(&b->n_seen, 50));
    assert_true(wait_for_count(&l.n_streams, 8));
    rpc_server_stop(a->s, 60000);
    assert_int_equal(l.n_failed, 0);
    int n_calls = l.n_calls, n_streams = l.n_streams;
    assert_true(wait_for_count(&l.n_calls, n_calls + 50)); // all of it goes on elsewhere
    assert_true(wait_for_count(&l.n_streams, n_streams + 8));
    l.stop = true;
    for (size_t i = 0; i < N_ELEMENTS(threads); i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(l.n_failed, 0);
    assert_int_equal(a->n_seen + b->n_seen, l.n_calls); // and none of it twice
    struct rpc_client_stats cs;
    rpc_client_get_stats(c, &cs);
    assert_int_equal(cs.n_retries, 0); // what never started costs no budget
}

static void test_a_server_leaves_without_failing_a_call(void **state)
{
    (void)state;
    struct site a, b;
    site_serve(&a, true);
    site_serve(&b, true);
    struct rpc_client *c = client_of((struct site *[]){&a, &b}, 2);
    leave_under_load(c, &a, &b);
    rpc_client_free(c);
    site_done(&a);
    site_done(&b);
}

// Callers whose calls are passed on notice as little.
static void test_a_server_behind_a_proxy_leaves_without_failing_a_call(void **state)
{
    (void)state;
    struct site a, b;
    struct world w;
    struct err err = ERR_INIT;
    char url[RPC_URL_SIZE];
    site_serve(&a, true);
    site_serve(&b, true);
    world_init(&w);
    struct rpc_server_opts so = world_server_opts(&w);
    struct rpc_server *gate = rpc_server_new(&so, &err);
    struct rpc_client *up = client_of((struct site *[]){&a, &b}, 2);
    const struct rpc_service *known[] = {&own_service};
    rpc_server_set_router(gate, known, 1, route, up);
    assert_int_equal(rpc_server_listen(gate, "tcp://127.0.0.1:0", true, url, &err), STATUS_OK);
    struct rpc_client *c = world_client_to(&w, url, true);
    leave_under_load(c, &a, &b);
    rpc_client_free(c);
    rpc_server_free(gate);
    rpc_client_free(up);
    world_done(&w);
    site_done(&a);
    site_done(&b);
}

static void test_what_waited_when_the_server_stopped_goes_elsewhere(void **state)
{
    (void)state;
    struct site a, b;
    struct err err = ERR_INIT;
    site_init(&a);
    a.narrow = work_pool_new("narrow", 1, 100);
    site_new_server(&a);
    site_listen(&a, true);
    site_serve(&b, true);
    struct rpc_client *c = client_of((struct site *[]){&a}, 1);
    struct pending hold, p[8];
    const struct rpc_opts keyed = {.idempotency_key = "k"}; // the answer may not get through
    begin(c, HOLD, NULL, &hold);
    assert_true(wait_for_count(&a.n_holding, 1));
    for (int i = 0; i < 8; i++)
        begin(c, SEE, &keyed, &p[i]);
    struct looked queued = {.site = &a, .method = SEE, .state = RPC_CALL_QUEUED, .n_wanted = 8};
    assert_true(eventually(is_open, &queued));
    struct rpc_endpoint e[2] = {{.url = a.url}, {.url = b.url}};
    memcpy(e[0].key, a.w.server.public_key, 32);
    memcpy(e[1].key, b.w.server.public_key, 32);
    assert_int_equal(rpc_client_set_endpoints(c, e, 2, &err), STATUS_OK);
    rpc_server_stop(a.s, 0); // its one handler is told to stop; the others never begin
    for (int i = 0; i < 8; i++)
        assert_int_equal(end(&p[i]), STATUS_OK);
    assert_int_equal(a.n_seen, 0);
    assert_int_equal(b.n_seen, 8);
    assert_int_not_equal(end(&hold), STATUS_OK);
    rpc_details_done(&hold.details);
    rpc_client_free(c);
    site_done(&a);
    site_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_traceparent_is_read_and_written),
        cmocka_unit_test(test_a_handler_knows_its_call),
        cmocka_unit_test(test_calls_of_a_handler_are_part_of_its_call),
        cmocka_unit_test(test_a_proxy_hands_on_what_came_beside),
        cmocka_unit_test(test_interceptors_run_in_order_and_back),
        cmocka_unit_test(test_every_call_leaves_a_line),
        cmocka_unit_test(test_methods_are_counted),
        cmocka_unit_test(test_buckets_double),
        cmocka_unit_test(test_too_many_at_once_are_shed),
        cmocka_unit_test(test_what_waited_too_long_is_shed),
        cmocka_unit_test(test_what_no_thread_takes_is_shed),
        cmocka_unit_test(test_open_calls_and_connections_are_seen),
        cmocka_unit_test(test_details_reach_the_caller),
        cmocka_unit_test(test_attempts_are_numbered),
        cmocka_unit_test(test_a_server_leaves_without_failing_a_call),
        cmocka_unit_test(test_a_server_behind_a_proxy_leaves_without_failing_a_call),
        cmocka_unit_test(test_what_waited_when_the_server_stopped_goes_elsewhere),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
