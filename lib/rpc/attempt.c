// One attempt of a call: what it needs, its start on a connection, its end.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define DEFAULT_DEADLINE_MS 15000

static struct attempt *of(struct flow *f)
{
    return list_entry(f, struct attempt, flow);
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
    struct attempt *s = of(f);
    if (s->on_event)
        s->on_event(s, events);
}
static void on_ref(struct flow *f)
{
    attempt_ref(of(f));
}
static void on_unref(struct flow *f)
{
    attempt_unref(of(f));
}
static const struct flow_ops attempt_ops = {.event = on_event, .ref = on_ref, .unref = on_unref};

struct attempt *attempt_new(struct rpc_client *c, const struct call_spec *spec)
{
    if (!client_enter(c))
        return NULL;
    struct attempt *s = mem_alloc(sizeof *s);
    if (!s) {
        client_leave(c);
        return NULL;
    }
    flow_init(&s->flow, &attempt_ops);
    s->refs = 1;
    s->client = c;
    s->m = spec->m;
    s->deadline_us = spec->deadline_us;
    s->flow.urgent = spec->m->kind == RPC_UNARY;
    s->flow.is_unary_in = spec->m->kind == RPC_UNARY || spec->m->kind == RPC_CLIENT_STREAM;
    return s;
}

struct attempt *attempt_ref(struct attempt *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

void attempt_unref(struct attempt *s)
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

void call_spec_init(struct call_spec *spec, const struct rpc_method *m, const struct rpc_opts *o)
{
    *spec = (struct call_spec){.m = m, .deadline_us = time_deadline_in_ms(DEFAULT_DEADLINE_MS)};
    if (!o)
        return;
    spec->token = o->token && o->token[0] ? o->token : NULL;
    spec->route = o->route;
    spec->key = o->idempotency_key;
    spec->forwarded = o->on_behalf;
    spec->trace = o->trace;
    spec->metadata = o->metadata;
    spec->n_metadata = o->n_metadata;
    if (o->deadline_us)
        spec->deadline_us = o->deadline_us;
}

static enum status check_metadata(const struct call_spec *spec, struct err *err)
{
    size_t sum = 0;
    for (size_t i = 0; i < spec->n_metadata; i++) {
        const struct rpc_metadata *e = &spec->metadata[i];
        if (!frame_metadata_key_ok(e->key, strlen(e->key)))
            return err_set(err, STATUS_INVALID_ARGUMENT,
                           "%s: metadata key \"%.80s\": 1 to %d of a-z 0-9 _ . -", spec->m->name,
                           e->key, RPC_METADATA_KEY_MAX);
        sum += strlen(e->key) + e->n_value;
    }
    if (spec->n_metadata > RPC_METADATA_MAX || sum > RPC_METADATA_MAX_BYTES)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "%s: metadata of %zu entries and %zu bytes: at most %d and %d",
                       spec->m->name, spec->n_metadata, sum, RPC_METADATA_MAX,
                       RPC_METADATA_MAX_BYTES);
    return STATUS_OK;
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
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "%s: a request of %zu bytes is too large: at most %u", spec->m->name,
                       spec->req_len, RPC_MAX_MESSAGE_BYTES);
    enum status s = check_metadata(spec, err);
    if (s != STATUS_OK)
        return s;
    if (spec->deadline_us <= time_mono_us())
        return err_set(err, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    return STATUS_OK;
}

// ---------------------------------------------------------------- its start and end

// The slot that holds this token on this connection; sends it first if none does.
static bool token_slot(struct conn *c, const char *token, uint32_t *ret)
{
    uint32_t n_slots = c->o.is_client_link ? 16 : 256;
    size_t len = strlen(token);
    if (!c->slots) {
        c->slots = mem_array(n_slots, sizeof(struct token *));
        c->n_slots = c->slots ? n_slots : 0;
        if (!c->slots)
            return false;
    }
    for (uint32_t i = 0; i < c->n_slots; i++) {
        const struct token *t = c->slots[i];
        if (t && t->len == len && memcmp(t->text, token, len) == 0) {
            *ret = i + 1;
            return true;
        }
    }
    struct token *t = mem_alloc(sizeof *t + len + 1);
    if (!t)
        return false;
    t->refs = 1;
    t->len = len;
    memcpy(t->text, token, len);
    uint32_t slot = c->next_slot++ % c->n_slots;
    token_unref(c->slots[slot]);
    c->slots[slot] = t;
    frame_put(&c->calls, FRAME_AUTH, 0, slot + 1, token, len);
    *ret = slot + 1;
    return true;
}

static bool begin(struct attempt *s, struct conn *c, const struct call_spec *spec)
{
    uint32_t slot = 0;
    if (!c->ready || c->draining)
        return false;
    if (spec->token && !token_slot(c, spec->token, &slot))
        return false;
    s->flow.deadline_us = spec->deadline_us;
    if (!flow_add(c, &s->flow, 0))
        return false;
    int64_t left = time_left_ms(spec->deadline_us);
    uint64_t ms = spec->deadline_us == TIME_NEVER ? 0 : left > 0 ? (uint64_t)left : 1;
    struct frame_call call = {.flags = spec->forwarded ? FRAME_OPEN_FORWARDED : 0U,
                              .slot = slot,
                              .deadline_ms = ms,
                              .method = spec->m->name,
                              .route = spec->route,
                              .key = spec->key,
                              .trace = spec->trace,
                              .metadata = spec->metadata,
                              .n_metadata = spec->n_metadata};
    frame_put_open(&c->calls, s->flow.id, &call);
    if (!spec->req || flow_push_small(&s->flow, spec->req, spec->req_len, true))
        return true;
    struct chunk *ch = chunk_new(spec->req_len);
    if (!ch) {
        flow_abort(&s->flow, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        return true;
    }
    memcpy(ch->data, spec->req, spec->req_len);
    ch->last = ch->half = true;
    flow_push(&s->flow, ch);
    return true;
}

bool attempt_start(struct attempt *s, const struct call_spec *spec)
{
    struct endpoint *e = NULL;
    struct conn *c = client_pick(s->client, &e);
    if (!c)
        return false;
    s->endpoint = e;
    conn_lock(c);
    bool ok = begin(s, c, spec);
    conn_unlock(c);
    conn_unref(c);
    if (!ok) {
        pthread_mutex_lock(&s->client->lock);
        e->breaker.is_probing = false;
        pthread_mutex_unlock(&s->client->lock);
        s->endpoint = NULL;
    }
    return ok;
}
void attempt_cancel(struct attempt *s)
{
    struct conn *c = s->flow.conn;
    conn_lock(c);
    flow_abort(&s->flow, STATUS_CANCELLED, "cancelled");
    conn_unlock(c);
}

void attempt_free(struct attempt *s)
{
    if (!s)
        return;
    cancel_unhook(s->cancel_hook);
    s->cancel_hook = NULL;
    if (s->flow.conn)
        attempt_cancel(s);
    client_result(s, s->flow.conn ? s->flow.status.code : STATUS_CANCELLED);
    attempt_unref(s);
}

static void on_cancel(void *ud)
{
    attempt_cancel(ud);
}

// An attempt on a connection, waiting for one if need be.
enum status attempt_open(struct rpc_client *c, const struct call_spec *spec,
                         const struct rpc_opts *o, struct attempt **ret, struct err *err)
{
    struct cancel *cancel = o ? o->cancel : NULL;
    int64_t until = o && o->fail_fast ? 0 : client_connect_deadline(c, spec->deadline_us);
    struct attempt *s = attempt_new(c, spec);
    if (!s)
        return err_set(err, STATUS_CANCELLED, "the client is closing or out of memory");
    while (!attempt_start(s, spec)) {
        enum status st = client_wait_ready(c, until, cancel, err);
        if (st == STATUS_UNAVAILABLE && spec->deadline_us <= time_mono_us())
            st = err_set(err, STATUS_DEADLINE_EXCEEDED, "deadline exceeded before a connection");
        if (st != STATUS_OK) {
            attempt_unref(s);
            return st;
        }
    }
    if (cancel)
        s->cancel_hook = cancel_hook(cancel, on_cancel, s);
    *ret = s;
    return STATUS_OK;
}
