#include "wire/place.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

#define N_NOTES 10
#define NOTE_BYTES 9000 // larger than a frame that goes without a buffer of its own

// ---------------------------------------------------------------- what goes on in a round

typedef enum status (*step)(struct rpc_client *c, struct err *err);

static uint8_t bytes[NOTE_BYTES];

static void set_note(Note *n, int64_t number)
{
    note_init(n);
    n->number = number;
    n->data = (ProtobufCBinaryData){.len = sizeof bytes, .data = bytes};
}

static struct rpc_opts opts(void)
{
    return (struct rpc_opts){
        .deadline_us = time_deadline_in_ms(CALL_MS), .token = "user", .max_attempts = 1};
}

static enum status unary(struct rpc_client *c, int method, struct err *err)
{
    struct rpc_opts o = opts();
    Note req, *ret = NULL;
    set_note(&req, 7);
    enum status s = call_note(c, method, &o, &req, &ret, err);
    rpc_message_free(ret);
    return s;
}
static enum status step_echo(struct rpc_client *c, struct err *err)
{
    return unary(c, ECHO, err);
}
static enum status step_inline(struct rpc_client *c, struct err *err)
{
    return unary(c, ECHO_INLINE, err);
}
static enum status step_later(struct rpc_client *c, struct err *err)
{
    return unary(c, LATER, err);
}
static enum status step_tally(struct rpc_client *c, struct err *err)
{
    return unary(c, TALLY, err);
}

struct done {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    enum status s;
    bool is_done;
};

static void async_done(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    struct done *d = ud;
    (void)err;
    rpc_message_free(reply);
    pthread_mutex_lock(&d->lock);
    d->s = s;
    d->is_done = true;
    pthread_cond_signal(&d->cond);
    pthread_mutex_unlock(&d->lock);
}

static enum status step_async(struct rpc_client *c, struct err *err)
{
    (void)err;
    struct done d = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, STATUS_OK, false};
    struct rpc_opts o = opts();
    Note req;
    set_note(&req, 7);
    rpc_unary_async(c, &test_service.methods[ECHO], &o, &req.base, async_done, &d);
    pthread_mutex_lock(&d.lock);
    while (!d.is_done)
        pthread_cond_wait(&d.cond, &d.lock);
    pthread_mutex_unlock(&d.lock);
    return d.s;
}

static enum status read_to_end(struct rpc_stream *st, int64_t *ret_n, struct err *err)
{
    for (;;) {
        ProtobufCMessage *m = NULL;
        enum status s = rpc_stream_recv(st, &m, err);
        if (s != STATUS_OK || !m)
            return s;
        rpc_message_free(m);
        ++*ret_n;
    }
}

static enum status stream_down(struct rpc_client *c, int method, struct err *err)
{
    struct rpc_opts o = opts();
    struct rpc_stream *st = NULL;
    int64_t n = 0;
    Note req;
    set_note(&req, N_NOTES);
    enum status s = rpc_stream_open(c, &test_service.methods[method], &o, &req.base, &st, err);
    if (s == STATUS_OK)
        s = read_to_end(st, &n, err);
    rpc_stream_free(st);
    return s == STATUS_OK && n != N_NOTES ? err_set(err, STATUS_DATA_LOSS, "messages are missing")
                                          : s;
}
static enum status step_count(struct rpc_client *c, struct err *err)
{
    return stream_down(c, COUNT, err);
}
static enum status step_ticker(struct rpc_client *c, struct err *err)
{
    return stream_down(c, TICKER, err);
}

static enum status step_sum(struct rpc_client *c, struct err *err)
{
    struct rpc_opts o = opts();
    struct rpc_stream *st = NULL;
    ProtobufCMessage *m = NULL;
    Note n;
    set_note(&n, 1);
    enum status s = rpc_stream_open(c, &test_service.methods[SUM], &o, NULL, &st, err);
    for (int i = 0; s == STATUS_OK && i < N_NOTES; i++)
        s = rpc_stream_send(st, &n.base, err);
    if (s == STATUS_OK)
        s = rpc_stream_close_send(st, err);
    if (s == STATUS_OK)
        s = rpc_stream_recv(st, &m, err);
    if (s == STATUS_OK && (!m || ((Note *)(void *)m)->number != N_NOTES))
        s = err_set(err, STATUS_DATA_LOSS, "messages are missing");
    rpc_message_free(m);
    rpc_stream_free(st);
    return s;
}

static enum status step_chat(struct rpc_client *c, struct err *err)
{
    struct rpc_opts o = opts();
    struct rpc_stream *st = NULL;
    int64_t rest = 0;
    Note n;
    enum status s = rpc_stream_open(c, &test_service.methods[CHAT], &o, NULL, &st, err);
    for (int i = 0; s == STATUS_OK && i < N_NOTES; i++) {
        ProtobufCMessage *m = NULL;
        set_note(&n, i);
        s = rpc_stream_send(st, &n.base, err);
        if (s == STATUS_OK)
            s = rpc_stream_recv(st, &m, err);
        if (s == STATUS_OK && (!m || ((Note *)(void *)m)->number != i + 1))
            s = err_set(err, STATUS_DATA_LOSS, "a message is missing");
        rpc_message_free(m);
    }
    if (s == STATUS_OK)
        s = rpc_stream_close_send(st, err);
    if (s == STATUS_OK)
        s = read_to_end(st, &rest, err);
    rpc_stream_free(st);
    return s;
}

static enum status step_cancel(struct rpc_client *c, struct err *err)
{
    struct rpc_opts o = opts();
    struct rpc_stream *st = NULL;
    ProtobufCMessage *m = NULL;
    Note req;
    set_note(&req, 1 << 20);
    enum status s = rpc_stream_open(c, &test_service.methods[COUNT], &o, &req.base, &st, err);
    if (s == STATUS_OK)
        s = rpc_stream_recv(st, &m, err);
    rpc_message_free(m);
    rpc_stream_free(st); // before its end
    return s;
}

static const struct {
    const char *name;
    step fn;
} steps[] = {
    {"echo", step_echo},   {"inline", step_inline}, {"later", step_later},   {"tally", step_tally},
    {"async", step_async}, {"count", step_count},   {"ticker", step_ticker}, {"sum", step_sum},
    {"chat", step_chat},   {"cancel", step_cancel},
};

// ---------------------------------------------------------------- the place

static enum status route(void *ud, const struct rpc_method *m, const char *name,
                         struct rpc_client **ret, struct err *err)
{
    (void)m;
    (void)name;
    (void)err;
    *ret = ((struct place *)ud)->up;
    return STATUS_OK;
}

void place_init(struct place *p, const struct transport_ops *transport)
{
    static const struct rpc_service *const known[] = {&test_service};
    struct err err = ERR_INIT;
    memset(p, 0, sizeof *p);
    world_init(&p->w);
    if (transport)
        p->w.transport = transport;
    world_serve(&p->w, "tcp://127.0.0.1:0", false);
    p->up = world_client(&p->w);
    struct rpc_server_opts o = world_server_opts(&p->w);
    p->gateway = rpc_server_new(&o, &err);
    assert_non_null(p->gateway);
    rpc_server_set_router(p->gateway, known, 1, route, p);
    assert_int_equal(rpc_server_listen(p->gateway, "tcp://127.0.0.1:0", true, p->url, &err),
                     STATUS_OK);
    p->bystander = world_client(&p->w);
    struct rpc_opts for_long = {.deadline_us = time_deadline_in_ms(3600000)};
    assert_int_equal(
        rpc_stream_open(p->bystander, &test_service.methods[CHAT], &for_long, NULL, &p->chat, &err),
        STATUS_OK);
}

void place_done(struct place *p)
{
    rpc_stream_free(p->chat);
    rpc_client_free(p->bystander);
    rpc_server_free(p->gateway);
    rpc_client_free(p->up);
    world_done(&p->w);
}

bool place_is_well(struct place *p, struct err *err)
{
    Note n;
    ProtobufCMessage *m = NULL;
    set_note(&n, p->n_chat);
    bool well = rpc_stream_send(p->chat, &n.base, err) == STATUS_OK &&
                rpc_stream_recv(p->chat, &m, err) == STATUS_OK && m &&
                ((Note *)(void *)m)->number == p->n_chat + 1;
    rpc_message_free(m);
    p->n_chat++;
    return well && step_echo(p->bystander, err) == STATUS_OK;
}

// ---------------------------------------------------------------- a round

bool place_may_tell(enum status s)
{
    return s == STATUS_OK || s == STATUS_RESOURCE_EXHAUSTED || s == STATUS_UNAVAILABLE ||
           s == STATUS_CANCELLED || s == STATUS_INTERNAL;
}

static void run_steps(struct rpc_client *c, struct verdict *v)
{
    for (size_t i = 0; i < N_ELEMENTS(steps); i++) {
        struct err err = ERR_INIT;
        enum status s = steps[i].fn(c, &err);
        if (s == STATUS_OK)
            continue;
        if (!v->n_failed++ || (place_may_tell(v->s) && !place_may_tell(s))) {
            v->step = steps[i].name;
            v->s = s;
            snprintf(v->msg, sizeof v->msg, "%.100s", err.msg);
        }
    }
}

static struct rpc_client *try_client(struct place *p, bool through_gateway)
{
    struct rpc_endpoint e = {.url = through_gateway ? p->url : p->w.url};
    memcpy(e.key, p->w.server.public_key, 32);
    struct rpc_client_opts o = {.endpoints = &e,
                                .n_endpoints = 1,
                                .connect_timeout_ms = CALL_MS,
                                .transport = p->w.transport};
    if (!through_gateway) {
        o.identity = &p->w.node;
        o.trust = &p->w.trust;
        o.expect_role = ROLE_NODE_ORCHESTRATOR;
    }
    struct err err = ERR_INIT;
    return rpc_client_new(&o, &err);
}

bool place_takes_clients(struct place *p, struct err *err)
{
    struct rpc_client *c = try_client(p, true);
    bool well = c && step_echo(c, err) == STATUS_OK;
    rpc_client_free(c);
    return well;
}

void place_round(struct place *p, bool through_gateway, struct verdict *v)
{
    *v = (struct verdict){0};
    struct rpc_client *c = try_client(p, through_gateway);
    if (c)
        run_steps(c, v);
    rpc_client_free(c);
}
