// What every request shares: the trace it belongs to, and how it fails.
#include <string.h>

#include "base/rand.h"
#include "base/str.h"
#include "gateway/internal.h"

enum { AGAIN_AFTER_S = 2, MAX_AFTER_S = 3600 };

// ---------------------------------------------------------------- trace

// The caller's trace goes on with a span of ours; without a valid one a new trace begins here. Two
// headers say nothing, as no header does (W3C Trace Context 3.2).
void gateway_trace(void *gateway, struct http_request *r, struct http_trace *ret)
{
    struct rpc_trace t;
    const char *given = http_request_single_header(r, "traceparent");
    (void)gateway;
    if (given && rpc_trace_parse(given, &t))
        rand_bytes(t.span_id, sizeof t.span_id);
    else
        rpc_trace_new(&t);
    memcpy(ret->id, t.trace_id, sizeof ret->id);
    rpc_trace_format(ret->parent, &t);
}

struct rpc_trace gateway_trace_of(const struct http_request *r)
{
    struct rpc_trace t = {.flags = 0};
    (void)!rpc_trace_parse(http_request_trace(r)->parent, &t);
    return t;
}

// ---------------------------------------------------------------- failures

static unsigned seconds(enum status s, int64_t retry_after_ms)
{
    bool again = s == STATUS_UNAVAILABLE || s == STATUS_RESOURCE_EXHAUSTED;
    if (retry_after_ms <= 0)
        return again ? AGAIN_AFTER_S : 0;
    return retry_after_ms > MAX_AFTER_S * 1000 ? MAX_AFTER_S
                                               : (unsigned)((retry_after_ms + 999) / 1000);
}

static void name_fields(struct http_request *r, const struct rpc_details *d, struct http_problem *p)
{
    struct http_violation *all =
        arena_array(http_request_arena(r), d->n_violations, sizeof(struct http_violation));
    for (size_t i = 0; all && i < d->n_violations; i++)
        all[i] = (struct http_violation){d->violations[i].field, d->violations[i].description};
    p->violations = all;
    p->n_violations = all ? d->n_violations : 0;
}

void gateway_respond_failure(struct http_request *r, enum status s, const struct err *err,
                             const struct rpc_details *d)
{
    bool is_ours = s == STATUS_INTERNAL || s == STATUS_UNKNOWN;
    struct http_problem p = {
        .status = s, .reason = d->reason, .retry_after_s = seconds(s, d->retry_after_ms)};
    // What went wrong inside is for our log, not for strangers.
    p.detail = is_ours || !err ? "" : err->msg;
    if (d->n_violations)
        name_fields(r, d, &p);
    http_respond_failure(r, &p);
}

void gateway_respond_error(struct http_request *r, enum status s, const struct err *err)
{
    gateway_respond_failure(r, s, err, &(struct rpc_details){.retry_after_ms = 0});
}
