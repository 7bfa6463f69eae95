// When a call is tried again: what its method and caller allow, what the end of an attempt says,
// and what the client's budget has left.
#include <string.h>

#include "base/rand.h"
#include "base/str.h"
#include "rpc/internal.h"

#define DEFAULT_ATTEMPTS 3
#define DEFAULT_BACKOFF_MIN_US 50000
#define DEFAULT_BACKOFF_MAX_US 2000000
#define RETRY_AFTER_MAX_MS 60000 // a caller rather hears of a longer one than waits
#define FREE_MAX 5               // repeats of what never started

#define BUDGET_SUCCESS 100 // ten successes pay for one repeat
#define BUDGET_REPEAT 1000
#define BUDGET_US_PER_UNIT 1000 // and so does a second

// ---------------------------------------------------------------- budget

void retry_earn(struct retry_budget *r)
{
    r->units =
        r->units + BUDGET_SUCCESS < RETRY_BUDGET_MAX ? r->units + BUDGET_SUCCESS : RETRY_BUDGET_MAX;
}

static void refill(struct retry_budget *r, int64_t now_us)
{
    int64_t units = (now_us - r->refilled_us) / BUDGET_US_PER_UNIT;
    if (units <= 0)
        return;
    r->refilled_us += units * BUDGET_US_PER_UNIT;
    r->units = r->units + units < RETRY_BUDGET_MAX ? r->units + units : RETRY_BUDGET_MAX;
}

bool retry_spend(struct retry_budget *r, int64_t now_us)
{
    refill(r, now_us);
    if (r->units < BUDGET_REPEAT)
        return false;
    r->units -= BUDGET_REPEAT;
    return true;
}

// ---------------------------------------------------------------- a call's plan

void retry_init(struct retry_plan *r, const struct rpc_method *m, const struct rpc_opts *o)
{
    bool repeatable = m->idempotent || (o && o->idempotency_key && o->idempotency_key[0]);
    unsigned most = o && o->max_attempts ? o->max_attempts
                    : m->max_attempts    ? m->max_attempts
                                         : DEFAULT_ATTEMPTS;
    *r = (struct retry_plan){
        .most = repeatable ? most : 1,
        .most_shed = most,
        .never = o && o->max_attempts == 1,
        .backoff_us = m->initial_backoff_ms * 1000LL,
        .backoff_max_us = m->max_backoff_ms * 1000LL,
        .hedge_us = repeatable && most > 1 && m->kind == RPC_UNARY ? m->hedge_after_ms * 1000LL : 0,
    };
    if (r->backoff_us == 0)
        r->backoff_us = DEFAULT_BACKOFF_MIN_US;
    if (r->backoff_max_us == 0)
        r->backoff_max_us = DEFAULT_BACKOFF_MAX_US;
    if (r->backoff_max_us < r->backoff_us)
        r->backoff_max_us = r->backoff_us;
}

int64_t retry_backoff_us(const struct retry_plan *r, unsigned nth, int64_t retry_after_ms)
{
    int64_t most = r->backoff_us;
    for (unsigned i = 1; i < nth && most < r->backoff_max_us; i++)
        most *= 2;
    if (most > r->backoff_max_us)
        most = r->backoff_max_us;
    int64_t wait = most / 2 + (int64_t)rand_below((uint64_t)most); // around most, never in step
    int64_t asked = retry_after_ms > 0 ? retry_after_ms * 1000 : 0;
    return wait > asked ? wait : asked;
}

// Whatever the method: no handler saw it. Once per connection, or a server that refuses without
// hanging up would be asked for ever.
static bool is_free(struct retry_plan *r, const struct attempt_end *e)
{
    if (r->never || !e->not_started || r->n_free == FREE_MAX || r->free_conn == e->conn_serial)
        return false;
    r->free_conn = e->conn_serial;
    r->n_free++;
    return true;
}

bool retry_next(struct retry_plan *r, const struct attempt_end *e, struct rpc_client *c,
                int64_t deadline_us, int64_t now_us, int64_t *ret_at_us)
{
    if (e->code != STATUS_UNAVAILABLE && !e->retryable)
        return false;
    if (is_free(r, e)) {
        *ret_at_us = r->n_free == 1 ? now_us : now_us + retry_backoff_us(r, r->n_free - 1, 0);
        return *ret_at_us < deadline_us;
    }
    unsigned paid = r->n_tried - r->n_free;
    if (paid >= (e->was_shed ? r->most_shed : r->most) || e->retry_after_ms > RETRY_AFTER_MAX_MS)
        return false;
    *ret_at_us = now_us + retry_backoff_us(r, paid, e->retry_after_ms);
    return *ret_at_us < deadline_us && client_may_repeat(c, e->endpoint, false, now_us);
}
