// What a call is made in: which call a thread works for, traces, metadata, and the details of a
// failure.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/rand.h"
#include "base/str.h"
#include "rpc/details.h"
#include "rpc/internal.h"

// A handler is an ordinary function, and what it uses knows nothing of calls: the thread is the
// only place where both meet.
static _Thread_local struct rpc_call *current;

struct rpc_call *rpc_call_current(void)
{
    return current;
}

struct rpc_call *rpc_call_enter(struct rpc_call *c)
{
    struct rpc_call *before = current;
    current = c;
    log_set_trace(c ? c->trace.trace_id : NULL);
    return before;
}

void call_spec_inherit(struct call_spec *spec)
{
    struct rpc_call *c = current;
    if (!c)
        return;
    int64_t limit = atomic_load_explicit(&c->limit_us, memory_order_relaxed);
    if (limit < spec->deadline_us)
        spec->deadline_us = limit;
    spec->cancel[1] = rpc_call_cancel(c);
    if (!spec->trace)
        spec->trace = &c->trace;
}

// ---------------------------------------------------------------- traces

static bool is_zero(const uint8_t *p, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++)
        any |= p[i];
    return any == 0;
}

void rpc_trace_new(struct rpc_trace *ret)
{
    *ret = (struct rpc_trace){.flags = 1};
    while (is_zero(ret->trace_id, sizeof ret->trace_id))
        rand_bytes(ret->trace_id, sizeof ret->trace_id);
    while (is_zero(ret->span_id, sizeof ret->span_id))
        rand_bytes(ret->span_id, sizeof ret->span_id);
}

static bool unhex_lower(uint8_t *dst, size_t n, const char *s)
{
    char part[33];
    if (strspn(s, "0123456789abcdef") < 2 * n)
        return false;
    memcpy(part, s, 2 * n);
    part[2 * n] = 0;
    return str_unhex(dst, n, part);
}

bool rpc_trace_parse(const char *s, struct rpc_trace *ret)
{
    size_t n = s ? strlen(s) : 0;
    struct rpc_trace t;
    uint8_t version;
    if (n < RPC_TRACEPARENT_SIZE - 1 || s[2] != '-' || s[35] != '-' || s[52] != '-')
        return false;
    if (!unhex_lower(&version, 1, s) || !unhex_lower(t.trace_id, 16, s + 3) ||
        !unhex_lower(t.span_id, 8, s + 36) || !unhex_lower(&t.flags, 1, s + 53))
        return false;
    // Later versions may have more, behind another dash; version ff does not exist.
    if (version == 0xff || (n > 55 && (version == 0 || s[55] != '-')))
        return false;
    if (is_zero(t.trace_id, 16) || is_zero(t.span_id, 8))
        return false;
    *ret = t;
    return true;
}

void rpc_trace_format(char dst[RPC_TRACEPARENT_SIZE], const struct rpc_trace *t)
{
    char id[33], span[17];
    str_hex(id, t->trace_id, 16);
    str_hex(span, t->span_id, 8);
    snprintf(dst, RPC_TRACEPARENT_SIZE, "00-%s-%s-%02x", id, span, (unsigned)t->flags);
}

// A bijection of 64 bits without visible order (the finalizer of MurmurHash3).
static uint64_t mix(uint64_t v)
{
    v = (v ^ v >> 33) * 0xff51afd7ed558ccdULL;
    v = (v ^ v >> 33) * 0xc4ceb9fe1a85ec53ULL;
    return v ^ v >> 33;
}

// Ids of this server: a counter under a random seed, never twice the same, and far cheaper than
// asking the kernel for each call. They are names, not secrets.
void call_set_trace(struct rpc_call *c, const struct rpc_trace *from)
{
    struct rpc_server *s = c->server;
    uint64_t n = atomic_fetch_add_explicit(&s->n_spans, 1, memory_order_relaxed);
    uint64_t id[3];
    for (size_t i = 0; i < 3; i++)
        id[i] = mix(s->trace_seed[i] + n);
    id[2] += id[2] == 0;
    if (rpc_trace_is_set(from)) {
        memcpy(c->trace.trace_id, from->trace_id, 16);
        memcpy(c->parent_span, from->span_id, 8);
        c->trace.flags = from->flags;
    } else {
        id[0] += (id[0] | id[1]) == 0;
        memcpy(c->trace.trace_id, id, 16);
        c->trace.flags = 1;
    }
    memcpy(c->trace.span_id, &id[2], 8);
}

const struct rpc_trace *rpc_call_trace(const struct rpc_call *c)
{
    return &c->trace;
}

const uint8_t *rpc_call_parent_span(const struct rpc_call *c)
{
    return c->parent_span;
}

// ---------------------------------------------------------------- metadata

const struct rpc_metadata *rpc_call_metadata_all(const struct rpc_call *c, size_t *ret_n)
{
    *ret_n = c->n_metadata;
    return c->metadata;
}

const struct rpc_metadata *rpc_call_metadata(const struct rpc_call *c, const char *key)
{
    for (size_t i = 0; i < c->n_metadata; i++) {
        if (strcmp(c->metadata[i].key, key) == 0)
            return &c->metadata[i];
    }
    return NULL;
}

unsigned rpc_call_attempt(const struct rpc_call *c)
{
    return c->attempt;
}

// ---------------------------------------------------------------- details of a failure

static struct call_details *details_of(struct rpc_call *c)
{
    if (!c->details)
        c->details = details_new(rpc_call_arena(c));
    return c->details;
}

void rpc_call_retry_after(struct rpc_call *c, int64_t ms)
{
    c->retry_after_ms = ms;
}

void rpc_call_reason(struct rpc_call *c, const char *word)
{
    struct call_details *d = details_of(c);
    if (d)
        details_reason(d, c->arena, word);
}

void rpc_call_retryable(struct rpc_call *c)
{
    struct call_details *d = details_of(c);
    if (d)
        details_retryable(d);
}

static void add_violation(struct rpc_call *c, const char *field, const char *text)
{
    struct call_details *d = details_of(c);
    if (d)
        details_violation(d, c->arena, field, text);
}

void rpc_call_violation(struct rpc_call *c, const char *field, const char *fmt, ...)
{
    char text[sizeof((struct err *)0)->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    add_violation(c, field, text);
}

enum status rpc_call_bad_field(struct rpc_call *c, struct err *err, const char *field,
                               const char *fmt, ...)
{
    char text[sizeof((struct err *)0)->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    add_violation(c, field, text);
    return err_set(err, STATUS_INVALID_ARGUMENT, "%s: %s", field, text);
}

enum status rpc_bad_field(struct err *err, const char *field, const char *fmt, ...)
{
    char text[sizeof((struct err *)0)->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (current)
        add_violation(current, field, text);
    return err_set(err, STATUS_INVALID_ARGUMENT, "%s", text);
}

void rpc_call_trailer(struct rpc_call *c, const char *key, const void *value, size_t n)
{
    struct call_details *d = details_of(c);
    if (d && frame_metadata_key_ok(key, strlen(key)))
        details_entry(d, c->arena, key, value, n);
}
