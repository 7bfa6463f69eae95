// When to try an endpoint, and when to try again.
//
//            5 failures in a row                 time is up
//   closed ----------------------> open (1 s) --------------> half open (one probe)
//     ^                             ^                              |        |
//     |                             +------ probe fails, x2, <=30s +        |
//     +---------------------------------------- probe succeeds -------------+
#include "base/rand.h"
#include "base/time.h"
#include "rpc/internal.h"

#define FAILURES_TO_OPEN 5
#define OPEN_MIN_US 1000000
#define OPEN_MAX_US 30000000
#define BACKOFF_MIN_US 50000
#define BACKOFF_MAX_US 2000000

bool breaker_allows(const struct breaker *b, int64_t now_us)
{
    return b->open_until_us == 0 || (now_us >= b->open_until_us && !b->is_probing);
}

void breaker_begin(struct breaker *b, int64_t now_us)
{
    if (b->open_until_us != 0 && now_us >= b->open_until_us)
        b->is_probing = true;
}

void breaker_result(struct breaker *b, bool ok, int64_t now_us)
{
    b->is_probing = false;
    if (ok) {
        *b = (struct breaker){.n_failures = 0};
        return;
    }
    if (b->open_until_us == 0 && ++b->n_failures < FAILURES_TO_OPEN)
        return;
    if (b->open_until_us != 0 && now_us < b->open_until_us)
        return; // a call from before it opened
    b->open_us = b->open_us ? 2 * b->open_us : OPEN_MIN_US;
    if (b->open_us > OPEN_MAX_US)
        b->open_us = OPEN_MAX_US;
    b->open_until_us = now_us + b->open_us;
}

// Ten successes pay for one retry, so that a failing backend sees at most a tenth more calls.
void retry_earn(struct retry_budget *r)
{
    if (r->tenths < RETRY_BUDGET_MAX)
        r->tenths++;
}

bool retry_spend(struct retry_budget *r)
{
    if (r->tenths < 10)
        return false;
    r->tenths -= 10;
    return true;
}

int64_t retry_backoff_us(unsigned attempt, int64_t retry_after_ms)
{
    int64_t most = BACKOFF_MIN_US;
    for (unsigned i = 1; i < attempt && most < BACKOFF_MAX_US; i++)
        most *= 2;
    int64_t wait = most / 2 + (int64_t)rand_below((uint64_t)most); // around most, never in step
    int64_t asked = retry_after_ms > 0 && retry_after_ms < 60000 ? retry_after_ms * 1000 : 0;
    return wait > asked ? wait : asked;
}
