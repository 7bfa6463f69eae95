#include "rpc/test_util.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "crypto/crypto.h"
#include "rpc/transport.h"

// ---------------------------------------------------------------- the message

static const ProtobufCFieldDescriptor note_fields[] = {
    {.name = "data",
     .id = 1,
     .label = PROTOBUF_C_LABEL_NONE,
     .type = PROTOBUF_C_TYPE_BYTES,
     .offset = offsetof(Note, data)},
    {.name = "text",
     .id = 2,
     .label = PROTOBUF_C_LABEL_NONE,
     .type = PROTOBUF_C_TYPE_STRING,
     .offset = offsetof(Note, text),
     .default_value = &protobuf_c_empty_string},
    {.name = "number",
     .id = 3,
     .label = PROTOBUF_C_LABEL_NONE,
     .type = PROTOBUF_C_TYPE_INT64,
     .offset = offsetof(Note, number)},
    {.name = "children",
     .id = 4,
     .label = PROTOBUF_C_LABEL_REPEATED,
     .type = PROTOBUF_C_TYPE_MESSAGE,
     .quantifier_offset = offsetof(Note, n_children),
     .offset = offsetof(Note, children),
     .descriptor = &note_descriptor},
};
static const unsigned note_by_name[] = {3, 0, 2, 1};
static const ProtobufCIntRange note_ranges[] = {{1, 0}, {0, 4}};

static void init_note(ProtobufCMessage *m)
{
    note_init((Note *)(void *)m);
}

const ProtobufCMessageDescriptor note_descriptor = {
    .magic = PROTOBUF_C__MESSAGE_DESCRIPTOR_MAGIC,
    .name = "test.Note",
    .short_name = "Note",
    .c_name = "Note",
    .package_name = "test",
    .sizeof_message = sizeof(Note),
    .n_fields = 4,
    .fields = note_fields,
    .fields_sorted_by_name = note_by_name,
    .n_field_ranges = 1,
    .field_ranges = note_ranges,
    .message_init = init_note,
};

void note_init(Note *n)
{
    *n = (Note){.base = PROTOBUF_C_MESSAGE_INIT(&note_descriptor),
                .text = (char *)(uintptr_t)protobuf_c_empty_string};
}

// ---------------------------------------------------------------- the service

#define NOTE .request = &note_descriptor, .reply = &note_descriptor
static const struct rpc_method methods[] = {
    [ECHO] = {"test.Notes.Echo", RPC_UNARY, ROLE_ANON, NOTE},
    [ECHO_INLINE] = {"test.Notes.EchoInline", RPC_UNARY, ROLE_ANON, .run_inline = true, NOTE},
    [FAIL] = {"test.Notes.Fail", RPC_UNARY, ROLE_ANON, NOTE},
    [WAIT] = {"test.Notes.Wait", RPC_UNARY, ROLE_ANON, NOTE},
    [COUNT] = {"test.Notes.Count", RPC_SERVER_STREAM, ROLE_ANON, NOTE},
    [SUM] = {"test.Notes.Sum", RPC_CLIENT_STREAM, ROLE_ANON, NOTE},
    [CHAT] = {"test.Notes.Chat", RPC_BIDI, ROLE_ANON, NOTE},
    [LATER] = {"test.Notes.Later", RPC_UNARY, ROLE_ANON, NOTE},
    [TICKER] = {"test.Notes.Ticker", RPC_SERVER_STREAM, ROLE_ANON, NOTE},
    [ONCE] = {"test.Notes.Once", RPC_UNARY, ROLE_ANON, .idempotent = true, NOTE},
    [WHO] = {"test.Notes.Who", RPC_UNARY, ROLE_ANON, NOTE},
    [FOR_USERS] = {"test.Notes.ForUsers", RPC_UNARY, ROLE_USER, NOTE},
    [FOR_CREATORS] = {"test.Notes.ForCreators", RPC_UNARY, ROLE_CREATOR, NOTE},
    [FOR_ADMINS] = {"test.Notes.ForAdmins", RPC_UNARY, ROLE_ADMIN, NOTE},
    [FOR_ORIGINS] = {"test.Notes.ForOrigins", RPC_UNARY, ROLE_NODE_ORIGIN, NOTE},
    [NUMBERED] = {"test.Notes.Numbered", RPC_SERVER_STREAM, ROLE_ANON, NOTE},
    [TALLY] = {"test.Notes.Tally", RPC_UNARY, ROLE_ANON, NOTE},
};
const struct rpc_service test_service = {"test.Notes", methods, N_METHODS};

typedef enum status (*handler)(struct rpc_call *c, const Note *req, Note *ret, struct err *err);

static enum status thunk(struct rpc_call *c, void (*h)(void), const ProtobufCMessage *req,
                         ProtobufCMessage *ret, struct err *err)
{
    return ((handler)h)(c, (const Note *)(const void *)req, (Note *)(void *)ret, err);
}

static enum status do_echo(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)err;
    struct world *w = rpc_call_self(c);
    w->last_left_ms = time_left_ms(rpc_call_deadline_us(c));
    *ret = *req;
    return STATUS_OK;
}

static enum status do_fail(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)ret;
    rpc_call_retry_after(c, 1234);
    if (req->data.len)
        return err_set(err, (enum status)req->number, "%.*s", (int)req->data.len,
                       (const char *)req->data.data);
    return err_set(err, (enum status)req->number, "%s", req->text);
}

struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
};

static void wake(void *ud)
{
    struct waiter *w = ud;
    pthread_mutex_lock(&w->lock);
    w->done = true;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->lock);
}

static enum status do_wait(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    (void)ret;
    struct world *world = rpc_call_self(c);
    struct waiter w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    struct cancel_hook *h = cancel_hook(rpc_call_cancel(c), wake, &w);
    world->n_waiting++;
    pthread_mutex_lock(&w.lock);
    while (!w.done)
        pthread_cond_wait(&w.cond, &w.lock);
    pthread_mutex_unlock(&w.lock);
    cancel_unhook(h);
    world->n_cancelled++;
    return err_set(err, STATUS_CANCELLED, "was told to stop");
}

static enum status do_count(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)ret;
    for (int64_t i = 0; i < req->number; i++) {
        Note n;
        note_init(&n);
        n.number = i;
        n.data = req->data;
        enum status s = rpc_call_write(c, &n.base, err);
        if (s != STATUS_OK) {
            ((struct world *)rpc_call_self(c))->n_cancelled++;
            return s;
        }
    }
    return STATUS_OK;
}

static enum status do_sum(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    int64_t n = 0;
    for (;;) {
        ProtobufCMessage *m;
        enum status s = rpc_call_read(c, &m, err);
        if (s != STATUS_OK) {
            ((struct world *)rpc_call_self(c))->n_cancelled++;
            return s;
        }
        if (!m)
            break;
        ret->number += ((Note *)(void *)m)->number;
        n++;
    }
    ret->text = arena_printf(rpc_call_arena(c), "%lld", (long long)n);
    return STATUS_OK;
}

static enum status do_chat(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    (void)ret;
    for (;;) {
        ProtobufCMessage *m;
        enum status s = rpc_call_read(c, &m, err);
        if (s != STATUS_OK || !m)
            return s;
        Note n = *(Note *)(void *)m;
        n.number++;
        s = rpc_call_write(c, &n.base, err);
        if (s != STATUS_OK)
            return s;
    }
}

static void *answer_later(void *ud)
{
    Note n;
    note_init(&n);
    n.text = (char *)(uintptr_t) "later";
    rpc_call_finish(ud, STATUS_OK, &n.base, NULL);
    return NULL;
}

static enum status do_later(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    (void)ret;
    (void)err;
    pthread_t t;
    rpc_call_defer(c);
    if (pthread_create(&t, NULL, answer_later, c) == 0)
        pthread_detach(t);
    return STATUS_OK;
}

struct ticker {
    struct rpc_call *call;
    int64_t next, n;
    uint8_t bytes[1000];
};

static void tick(void *ud)
{
    struct ticker *t = ud;
    Note n;
    note_init(&n);
    n.data = (ProtobufCBinaryData){.len = sizeof t->bytes, .data = t->bytes};
    bool stop = cancel_is_fired(rpc_call_cancel(t->call));
    while (!stop && t->next < t->n) {
        n.number = t->next;
        if (!rpc_call_try_write(t->call, &n.base))
            return;
        t->next++;
    }
    rpc_call_finish(t->call, stop ? STATUS_CANCELLED : STATUS_OK, NULL, NULL);
    mem_free(t);
}

static enum status do_ticker(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)ret;
    struct ticker *t = mem_alloc(sizeof *t);
    if (!t)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    t->call = c;
    t->n = req->number;
    rpc_call_defer(c);
    rpc_call_on_writable(c, tick, t);
    return STATUS_OK;
}

static enum status do_once(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    struct world *w = rpc_call_self(c);
    if (w->n_once++ < req->number)
        return err_set(err, STATUS_UNAVAILABLE, "not yet");
    w->n_effects++;
    *ret = *req;
    return STATUS_OK;
}

static enum status do_who(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)req;
    (void)err;
    const struct rpc_user *u = rpc_call_user(c);
    ret->text = arena_strdup(rpc_call_arena(c), u ? u->id : "-");
    return STATUS_OK;
}

void note_fill(uint8_t *dst, size_t n, int64_t number)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = (uint8_t)((uint64_t)number * 167 + i * 31 + ((uint64_t)number >> 8));
}

static enum status do_numbered(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    (void)ret;
    struct world *w = rpc_call_self(c);
    bool watched = strcmp(req->text, "watched") == 0;
    Note n;
    note_init(&n);
    n.data.len = req->data.len;
    n.data.data = arena_alloc(rpc_call_arena(c), req->data.len + 1);
    if (!n.data.data)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    for (int64_t i = 0; i < req->number; i++) {
        n.number = i;
        note_fill(n.data.data, n.data.len, i);
        enum status s = rpc_call_write(c, &n.base, err);
        if (s != STATUS_OK)
            return s;
        if (watched)
            w->n_written = i + 1;
    }
    return STATUS_OK;
}

// What a service does with an idempotency key: a second execution finds the effect of the first.
static enum status do_tally(struct rpc_call *c, const Note *req, Note *ret, struct err *err)
{
    struct world *w = rpc_call_self(c);
    if (req->number < 0 || req->number >= N_TALLIES)
        return err_set(err, STATUS_OUT_OF_RANGE, "no such tally");
    w->n_executed[req->number]++;
    uint16_t none = 0;
    if (rpc_call_idempotency_key(c)[0])
        atomic_compare_exchange_strong(&w->n_effective[req->number], &none, 1);
    else
        w->n_effective[req->number]++;
    *ret = *req;
    return STATUS_OK;
}

static const handler handlers[] = {
    [ECHO] = do_echo,         [ECHO_INLINE] = do_echo, [FAIL] = do_fail,
    [WAIT] = do_wait,         [COUNT] = do_count,      [SUM] = do_sum,
    [CHAT] = do_chat,         [LATER] = do_later,      [TICKER] = do_ticker,
    [ONCE] = do_once,         [WHO] = do_who,          [FOR_USERS] = do_who,
    [FOR_CREATORS] = do_who,  [FOR_ADMINS] = do_who,   [FOR_ORIGINS] = do_who,
    [NUMBERED] = do_numbered, [TALLY] = do_tally,
};

// Tokens of tests: "user", "creator", "admin" are those roles; "short" expires in 150 ms.
static enum status verify(void *ud, const char *token, size_t len, struct rpc_user *ret,
                          struct err *err)
{
    struct world *w = ud;
    w->n_verified++;
    static const struct {
        const char *text;
        unsigned roles;
        int64_t life_ms;
    } known[] = {
        {"user", ROLE_USER, 60000},
        {"creator", ROLE_USER | ROLE_CREATOR, 60000},
        {"admin", ROLE_ADMIN, 60000},
        {"short", ROLE_USER, 150},
    };
    for (size_t i = 0; i < N_ELEMENTS(known); i++) {
        if (len != strlen(known[i].text) || memcmp(token, known[i].text, len) != 0)
            continue;
        snprintf(ret->id, sizeof ret->id, "%s-id", known[i].text);
        ret->roles = known[i].roles;
        ret->exp_wall_ms = time_wall_ms() + known[i].life_ms;
        return STATUS_OK;
    }
    return err_set(err, STATUS_UNAUTHENTICATED, "no such token");
}

// ---------------------------------------------------------------- the world

void make_node(struct world *w, struct chan_identity *id, unsigned role, int64_t life_s)
{
    struct chan_grant g = {.role = role,
                           .not_before_s = time_wall_ms() / 1000 - 60,
                           .not_after_s = time_wall_ms() / 1000 + life_s,
                           .serial = 5};
    crypto_dh_keypair(id->public_key, id->secret);
    memcpy(g.key, id->public_key, sizeof g.key);
    snprintf(g.node_id, sizeof g.node_id, "node-%u", role);
    AUTO(buf_done) struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, sizeof id->grant);
    assert_int_equal(chan_grant_sign(&b, &g, w->operator_secret, &err), STATUS_OK);
    memcpy(id->grant, b.data, b.len);
    id->grant_len = b.len;
}

void world_init(struct world *w)
{
    memset(w, 0, sizeof *w);
    const char *transport = getenv("CAUCE_TEST_TRANSPORT"); // its name; else by address
    if (transport)
        w->transport = transport_named(transport);
    crypto_ed25519_keypair(w->trust.operator_public, w->operator_secret);
    make_node(w, &w->server, 9, 3600);
    make_node(w, &w->node, 12, 3600);
    w->pool = work_pool_new("handlers", 16, 1000);
    assert_non_null(w->pool);
}

void world_add(struct world *w, struct rpc_server *s)
{
    rpc_thunk thunks[N_METHODS];
    void (*plain[N_METHODS])(void);
    struct err err = ERR_INIT;
    for (size_t i = 0; i < N_METHODS; i++) {
        thunks[i] = thunk;
        plain[i] = (void (*)(void))handlers[i];
    }
    assert_int_equal(rpc_server_add(s, &test_service, thunks, plain, w, &err), STATUS_OK);
}

struct rpc_server_opts world_server_opts(struct world *w)
{
    return (struct rpc_server_opts){.identity = &w->server,
                                    .trust = &w->trust,
                                    .pool = w->pool,
                                    .verify = verify,
                                    .verify_ud = w,
                                    .transport = w->transport};
}

void world_serve(struct world *w, const char *url, bool is_public)
{
    struct err err = ERR_INIT;
    struct rpc_server_opts o = world_server_opts(w);
    w->s = rpc_server_new(&o, &err);
    assert_non_null(w->s);
    world_add(w, w->s);
    w->is_public = is_public;
    enum status s = rpc_server_listen(w->s, url, is_public, w->url, &err);
    if (s != STATUS_OK)
        print_error("%s\n", err.msg);
    assert_int_equal(s, STATUS_OK);
}

struct rpc_client *world_client_to(struct world *w, const char *url, bool is_public)
{
    struct rpc_endpoint e = {.url = url};
    memcpy(e.key, w->server.public_key, 32);
    struct rpc_client_opts o = {.endpoints = &e, .n_endpoints = 1, .transport = w->transport};
    if (!is_public) {
        o.identity = &w->node;
        o.trust = &w->trust;
        o.expect_role = ROLE_NODE_ORCHESTRATOR;
    }
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    if (!c)
        print_error("%s\n", err.msg);
    assert_non_null(c);
    return c;
}

struct rpc_client *world_client(struct world *w)
{
    return world_client_to(w, w->url, w->is_public);
}

void world_stop(struct world *w)
{
    rpc_server_free(w->s);
    w->s = NULL;
}

void world_done(struct world *w)
{
    world_stop(w);
    work_pool_free(w->pool);
}

enum status call_note(struct rpc_client *c, int method, const struct rpc_opts *o, const Note *req,
                      Note **ret, struct err *err)
{
    ProtobufCMessage *m = NULL;
    enum status s = rpc_unary(c, &test_service.methods[method], o, &req->base, &m, err);
    *ret = (Note *)(void *)m;
    return s;
}

int group_done(void **state)
{
    (void)state;
    rpc_fini();
    return transport_messages() == 0 ? 0 : -1; // a message was forgotten
}

bool wait_for_count(const _Atomic int *v, int n)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    int64_t until = time_mono_us() + 10000000;
    while (*v < n && time_mono_us() < until) {
        struct timespec ts;
        clock_gettime(CLOCK_REALTIME, &ts);
        ts.tv_nsec += 2000000;
        if (ts.tv_nsec >= 1000000000) {
            ts.tv_sec++;
            ts.tv_nsec -= 1000000000;
        }
        pthread_mutex_lock(&lock);
        pthread_cond_timedwait(&cond, &lock, &ts);
        pthread_mutex_unlock(&lock);
    }
    return *v >= n;
}
