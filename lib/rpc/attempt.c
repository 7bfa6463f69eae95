// One attempt of a call: what it needs, its start on a connection, its end.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/details.h"
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
    struct attempt *s = mem_alloc(sizeof *s);
    if (!s)
        return NULL;
    flow_init(&s->flow, &attempt_ops);
    s->refs = 1;
    s->client = c;
    s->m = spec->m;
    s->deadline_us = spec->deadline_us;
    s->flow.label = spec->m->name;
    s->nth = 1;
    if (spec->trace)
        s->trace = *spec->trace;
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
    bool live = s->is_live;
    if (s->endpoint)
        client_result_code(s, STATUS_CANCELLED);
    if (s->on_gone)
        s->on_gone(s);
    flow_done(&s->flow);
    mem_free(s);
    if (live)
        client_leave(c);
}

void call_spec_init(struct call_spec *spec, const struct rpc_method *m, const struct rpc_opts *o)
{
    *spec = (struct call_spec){.m = m, .deadline_us = time_deadline_in_ms(DEFAULT_DEADLINE_MS)};
    if (!o) {
        call_spec_inherit(spec);
        return;
    }
    spec->cancel[0] = o->cancel;
    spec->fail_fast = o->fail_fast;
    spec->token = o->token && o->token[0] ? o->token : NULL;
    spec->route = o->route;
    spec->key = o->idempotency_key;
    spec->forwarded = o->on_behalf;
    spec->trace = o->trace;
    spec->metadata = o->metadata;
    spec->n_metadata = o->n_metadata;
    if (o->deadline_us)
        spec->deadline_us = o->deadline_us;
    if (!o->detached)
        call_spec_inherit(spec);
}

static size_t room(const char *s)
{
    return s ? strlen(s) + 1 : 0;
}

size_t call_spec_room(const struct call_spec *spec)
{
    size_t n = spec->n_metadata * sizeof(struct rpc_metadata);
    for (size_t i = 0; i < spec->n_metadata; i++)
        n += strlen(spec->metadata[i].key) + 1 + spec->metadata[i].n_value;
    n += spec->trace ? sizeof *spec->trace : 0;
    return n + room(spec->token) + room(spec->route) + room(spec->key);
}

static void *keep(char **at, const void *p, size_t n)
{
    if (!p)
        return NULL;
    void *dst = memcpy(*at, p, n);
    *at += n;
    return dst;
}

char *call_spec_keep(struct call_spec *spec, char *to)
{
    size_t n = spec->n_metadata;
    const struct rpc_metadata *from = spec->metadata;
    // What needs alignment first.
    struct rpc_metadata *kept = n ? keep(&to, from, n * sizeof *from) : NULL;
    for (size_t i = 0; i < n; i++) {
        kept[i].key = keep(&to, from[i].key, strlen(from[i].key) + 1);
        kept[i].value = keep(&to, from[i].value, from[i].n_value);
    }
    spec->metadata = kept;
    spec->trace = keep(&to, spec->trace, sizeof *spec->trace); // of bytes alone
    spec->token = keep(&to, spec->token, room(spec->token));
    spec->route = keep(&to, spec->route, room(spec->route));
    spec->key = keep(&to, spec->key, room(spec->key));
    return to;
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

static bool is_utf8(const char *s)
{
    return !s || str_is_utf8(s, strlen(s));
}

// What would be cut or refused on the wire is refused here, where it can be fixed, and before the
// server ends the connection because of it.
enum status call_spec_check(const struct call_spec *spec, struct err *err)
{
    if (strlen(spec->m->name) > FRAME_METHOD_MAX ||
        (spec->route && strlen(spec->route) > FRAME_ROUTE_MAX) ||
        (spec->key && strlen(spec->key) > FRAME_KEY_MAX) ||
        (spec->token && strlen(spec->token) > FRAME_TOKEN_MAX))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s: token, route or key too long",
                       spec->m->name);
    if (!is_utf8(spec->route) || !is_utf8(spec->key))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s: route or key is not UTF-8",
                       spec->m->name);
    if (spec->req_len > RPC_MAX_MESSAGE_BYTES)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "%s: a request of %zu bytes is too large: at most %u", spec->m->name,
                       spec->req_len, RPC_MAX_MESSAGE_BYTES);
    enum status s = check_metadata(spec, err);
    if (s != STATUS_OK)
        return s;
    if (cancel_is_fired(spec->cancel[0]) || cancel_is_fired(spec->cancel[1]))
        return err_set(err, STATUS_CANCELLED, "cancelled");
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
                              .n_metadata = spec->n_metadata,
                              .attempt = s->nth > 1 ? s->nth : spec->attempt};
    frame_put_open(&c->calls, s->flow.id, &call);
    s->flow.open_pos = c->calls_taken + c->calls.len - c->calls_off;
    if (!spec->req || flow_push_small(&s->flow, spec->req, spec->req_len, true))
        return true;
    struct chunk *ch =
        spec->req_stays ? chunk_borrow(spec->req, spec->req_len) : chunk_new(spec->req_len);
    if (!ch) {
        flow_abort(&s->flow, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        return true;
    }
    if (!spec->req_stays)
        memcpy(ch->data, spec->req, spec->req_len);
    ch->last = ch->half = true;
    flow_push(&s->flow, ch);
    return true;
}

bool attempt_start_avoiding(struct attempt *s, const struct call_spec *spec,
                            const struct endpoint *avoid, bool only_other)
{
    struct conn *c = client_pick(s, avoid, only_other);
    if (!c)
        return false;
    conn_lock(c);
    bool ok = begin(s, c, spec);
    conn_unlock(c);
    conn_unref(c);
    if (!ok)
        client_unpick(s);
    return ok;
}

bool attempt_start(struct attempt *s, const struct call_spec *spec)
{
    return attempt_start_avoiding(s, spec, NULL, false);
}

void attempt_cancel(struct attempt *s)
{
    struct conn *c = s->flow.conn;
    conn_lock(c);
    flow_abort(&s->flow, STATUS_CANCELLED, "cancelled");
    conn_unlock(c);
}

static void on_cancel(void *ud)
{
    attempt_cancel(ud);
}

void attempt_hook(struct attempt *s, const struct call_spec *spec)
{
    for (size_t i = 0; i < N_ELEMENTS(s->cancel_hook); i++) {
        if (spec->cancel[i])
            s->cancel_hook[i] = cancel_hook(spec->cancel[i], on_cancel, s);
    }
}

void attempt_unhook(struct attempt *s)
{
    for (size_t i = 0; i < N_ELEMENTS(s->cancel_hook); i++) {
        cancel_unhook(s->cancel_hook[i]);
        s->cancel_hook[i] = NULL;
    }
}

enum status attempt_open(struct rpc_client *c, const struct call_spec *spec, struct attempt **ret,
                         struct err *err)
{
    int64_t until = spec->fail_fast ? 0 : client_connect_deadline(c, spec->deadline_us);
    struct attempt *s = attempt_new(c, spec);
    if (!s)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", spec->m->name);
    while (!attempt_start(s, spec)) {
        enum status st = client_wait_ready(c, spec, until, err);
        if (st != STATUS_OK) {
            attempt_unref(s);
            return st;
        }
    }
    *ret = s;
    return STATUS_OK;
}

// ---------------------------------------------------------------- its end

void attempt_get_end(struct attempt *s, struct attempt_end *ret)
{
    struct conn *c = s->flow.conn;
    conn_lock(c);
    const struct frame_status *st = &s->flow.status;
    *ret = (struct attempt_end){
        .code = st->code,
        .retry_after_ms = st->retry_after_ms,
        .conn_serial = s->conn_serial,
        .was_silent = c->last_rx_us<s->started_us, .was_lost = c->dead, .got_any = s->flow.n_rx> 0};
    if (st->code != STATUS_OK) {
        struct rpc_details d;
        details_unpack(st, &d);
        bool unavailable = st->code == STATUS_UNAVAILABLE;
        bool leaves = unavailable && str_eq(d.reason, RPC_REASON_NOT_STARTED);
        ret->retryable = d.retryable;
        ret->was_shed = unavailable && str_eq(d.reason, RPC_REASON_OVERLOADED);
        ret->was_refused = leaves || ret->was_shed;
        ret->not_started = leaves || (unavailable && s->flow.unsent);
        rpc_details_done(&d);
    }
    if (s->m->kind == RPC_UNARY && !s->flow.raw)
        ret->reply = flow_take(&s->flow);
    conn_unlock(c);
}

// The status does not change any more once the flow has ended, so this needs no lock then.
void attempt_get_details(const struct attempt *s, struct rpc_details *ret)
{
    *ret = (struct rpc_details){.reason = ""};
    if (s && s->flow.status.code != STATUS_OK)
        details_unpack(&s->flow.status, ret);
}
