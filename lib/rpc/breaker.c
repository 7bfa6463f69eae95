// When to leave an endpoint alone.
//
//            5 failures in a row,
//            or half of 20 and more in 10 s       its time is up
//   closed ---------------------------------> open ------------> half open (one probe at a time)
//     ^                                        ^  (1 s, x2 each time, <= 30 s)     |        |
//     |                                        +-------------- probe fails --------+        |
//     +------------------------------------------------------- probe succeeds --------------+
//
// A probe that ends without a verdict (its caller gave up) makes room for the next one. Calls that
// began before the breaker opened have no say any more.
#include <string.h>

#include "base/rand.h"
#include "rpc/internal.h"

#define FAILURES_TO_OPEN 5
#define WINDOW_CALLS_MIN 20
#define SLOT_US 1000000
#define OPEN_MIN_US 1000000
#define OPEN_MAX_US 30000000

enum rpc_breaker_state breaker_state(const struct breaker *b, int64_t now_us)
{
    if (b->open_until_us == 0)
        return RPC_BREAKER_CLOSED;
    return now_us < b->open_until_us ? RPC_BREAKER_OPEN : RPC_BREAKER_HALF_OPEN;
}

bool breaker_allows(const struct breaker *b, int64_t now_us)
{
    return b->open_until_us == 0 || (now_us >= b->open_until_us && !b->is_probing);
}

bool breaker_begin(struct breaker *b, int64_t now_us)
{
    bool probe = b->open_until_us != 0 && now_us >= b->open_until_us && !b->is_probing;
    b->is_probing |= probe;
    return probe;
}

// Slots that lie further back than the window count no more.
static void forget_old(struct breaker *b, int64_t slot)
{
    if (slot - b->slot >= BREAKER_SLOTS) {
        memset(b->slots, 0, sizeof b->slots);
        b->n_good = b->n_bad = 0;
        b->slot = slot;
    }
    while (b->slot < slot) {
        struct breaker_slot *s = &b->slots[++b->slot % BREAKER_SLOTS];
        b->n_good -= s->n_good;
        b->n_bad -= s->n_bad;
        *s = (struct breaker_slot){.n_good = 0};
    }
}

static void open_it(struct breaker *b, int64_t now_us)
{
    b->open_us = b->open_us ? 2 * b->open_us : OPEN_MIN_US;
    if (b->open_us > OPEN_MAX_US)
        b->open_us = OPEN_MAX_US;
    // Up to a tenth longer, so that many clients do not probe a weak server in step.
    b->open_until_us = now_us + b->open_us + (int64_t)rand_below((uint64_t)b->open_us / 10);
    b->n_opened++;
}

static void close_it(struct breaker *b)
{
    *b = (struct breaker){.slot = b->slot, .n_opened = b->n_opened};
}

void breaker_end(struct breaker *b, enum breaker_verdict v, bool was_probe, int64_t now_us)
{
    if (was_probe)
        b->is_probing = false;
    if (v == BREAKER_NEUTRAL)
        return;
    if (b->open_until_us != 0) {
        if (was_probe && v == BREAKER_BAD)
            open_it(b, now_us);
        else if (was_probe)
            close_it(b);
        return;
    }
    if (now_us / SLOT_US != b->slot)
        forget_old(b, now_us / SLOT_US);
    struct breaker_slot *s = &b->slots[b->slot % BREAKER_SLOTS];
    if (v == BREAKER_GOOD) {
        s->n_good++;
        b->n_good++;
        b->n_failures = 0;
        return;
    }
    s->n_bad++;
    b->n_bad++;
    b->n_failures++;
    if (b->n_failures >= FAILURES_TO_OPEN ||
        (b->n_good + b->n_bad >= WINDOW_CALLS_MIN && b->n_bad >= b->n_good))
        open_it(b, now_us);
}
