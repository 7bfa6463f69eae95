// Buckets hold the time at which all taken tokens have come back: a token adds 1/rate to it, and
// there is one to take while that time is less than a burst away. So an address that was quiet for
// long enough is as good as unknown and is forgotten, and the table is small: DOOR_CALLERS_MAX of
// them at most, the longest idle forgotten first.
//
// What succeeds gives its tokens back, so that many honest clients behind one address are limited
// only in how many are half way in at once, and a flood is limited in how often it fails.
//
// Callers sit in lists by how many half-open pipes they have, so that the one with most is at hand:
// a flood of one address pushes out its own pipes and nobody else's.
#include "rpc/door.h"

#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rand.h"

#define N_BUCKETS 1024

#define DEFAULT_HALF_OPEN 4096
#define DEFAULT_CONNS_PER_S 200
#define DEFAULT_CONNS_BURST 1024
#define DEFAULT_HANDSHAKES_PER_S 50
#define DEFAULT_HANDSHAKES_BURST 512
#define DEFAULT_TIMEOUT_MS 5000
#define DEFAULT_CONNS (1U << 20)   // until files say less
#define HANDSHAKES_PER_CORE_S 5000 // what one core does of them, about
#define ALL_BURST_PART 4           // of a second's handshakes, of all addresses at once

struct door {
    struct rpc_door_limits l;
    unsigned n_half_open, n_conns, n_callers, most;
    bool is_quarter; // max_conns_per_addr, of max_conns
    struct door_bucket all_handshakes;
    uint32_t seed;         // of the table: strangers must not choose who shares a bucket
    struct list *by_count; // [0 .. max_half_open_per_addr + 1]
    struct door_caller *table[N_BUCKETS];
};

// ---------------------------------------------------------------- buckets

static int64_t token_us(unsigned per_s)
{
    return per_s < 1000000 ? 1000000 / per_s : 1;
}

static bool bucket_has(const struct door_bucket *b, unsigned per_s, unsigned burst, int64_t now_us)
{
    return b->until_us - now_us <= (int64_t)(burst - 1) * token_us(per_s);
}

static void bucket_take(struct door_bucket *b, unsigned per_s, int64_t now_us)
{
    if (b->until_us < now_us)
        b->until_us = now_us;
    b->until_us += token_us(per_s);
}

static void bucket_give(struct door_bucket *b, unsigned per_s)
{
    b->until_us -= token_us(per_s);
}

// ---------------------------------------------------------------- life

static void or_else(unsigned *v, unsigned by_default)
{
    if (*v == 0)
        *v = by_default;
}

static unsigned quarter(unsigned n)
{
    return n < 4 ? 1 : n / 4;
}

static void fill_in(struct rpc_door_limits *l)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    or_else(&l->max_half_open, DEFAULT_HALF_OPEN);
    or_else(&l->max_half_open_per_addr, quarter(l->max_half_open));
    or_else(&l->conns_per_s, DEFAULT_CONNS_PER_S);
    or_else(&l->conns_burst, DEFAULT_CONNS_BURST);
    or_else(&l->handshakes_per_s, DEFAULT_HANDSHAKES_PER_S);
    or_else(&l->handshakes_burst, DEFAULT_HANDSHAKES_BURST);
    or_else(&l->all_handshakes_per_s,
            (cores > 2 ? (unsigned)cores / 2 : 1) * HANDSHAKES_PER_CORE_S);
    or_else(&l->max_conns, DEFAULT_CONNS);
    or_else(&l->max_conns_per_addr, quarter(l->max_conns));
    if (l->handshake_timeout_ms == 0)
        l->handshake_timeout_ms = DEFAULT_TIMEOUT_MS;
}

struct door *door_new(const struct rpc_door_limits *l)
{
    struct door *d = mem_alloc(sizeof *d);
    if (!d)
        return NULL;
    d->l = *l;
    d->is_quarter = l->max_conns_per_addr == 0;
    fill_in(&d->l);
    d->seed = (uint32_t)rand_u64();
    // A pipe too many is counted until it is shown out; who has no limit here is this machine.
    size_t n = (size_t)d->l.max_half_open + 2;
    d->by_count = mem_array(n, sizeof *d->by_count);
    if (!d->by_count) {
        mem_free(d);
        return NULL;
    }
    for (size_t i = 0; i < n; i++)
        list_init(&d->by_count[i]);
    return d;
}

void door_free(struct door *d)
{
    if (!d)
        return;
    for (size_t i = 0; i < N_BUCKETS; i++) {
        while (d->table[i]) {
            struct door_caller *next = d->table[i]->hash_next;
            mem_free(d->table[i]);
            d->table[i] = next;
        }
    }
    mem_free(d->by_count);
    mem_free(d);
}

const struct rpc_door_limits *door_limits(const struct door *d)
{
    return &d->l;
}

static void lower(unsigned *v, unsigned most)
{
    if (*v > most)
        *v = most ? most : 1;
}

void door_set_files(struct door *d, unsigned n)
{
    lower(&d->l.max_half_open, n / 4);
    lower(&d->l.max_half_open_per_addr, d->l.max_half_open);
    lower(&d->l.max_conns, n - n / 3);
    lower(&d->l.max_conns_per_addr, d->is_quarter ? quarter(d->l.max_conns) : d->l.max_conns);
}

unsigned door_n_half_open(const struct door *d)
{
    return d->n_half_open;
}

unsigned door_n_callers(const struct door *d)
{
    return d->n_callers;
}

// ---------------------------------------------------------------- callers

static struct door_caller **table_at(struct door *d, const struct transport_addr *a)
{
    uint32_t h = 2166136261U ^ d->seed ^ a->family;
    for (size_t i = 0; i < sizeof a->bytes; i++)
        h = (h ^ a->bytes[i]) * 16777619U;
    struct door_caller **at = &d->table[(h ^ h >> 16) % N_BUCKETS];
    while (*at && ((*at)->addr.family != a->family ||
                   memcmp((*at)->addr.bytes, a->bytes, sizeof a->bytes) != 0))
        at = &(*at)->hash_next;
    return at;
}

static void forget(struct door *d, struct door_caller *c)
{
    struct door_caller **at = table_at(d, &c->addr);
    *at = c->hash_next;
    list_remove(&c->node);
    mem_free(c);
    d->n_callers--;
}

static void forget_idle(struct door *d, int64_t now_us)
{
    for (unsigned i = 0; i < 2 && !list_is_empty(&d->by_count[0]); i++) {
        struct door_caller *c = list_entry(d->by_count[0].next, struct door_caller, node);
        bool owes = c->conns.until_us > now_us || c->handshakes.until_us > now_us;
        if (owes && d->n_callers < DOOR_CALLERS_MAX)
            return;
        forget(d, c);
    }
}

static struct door_caller *caller_new(struct door *d, const struct transport_addr *addr)
{
    struct door_caller *c = mem_alloc(sizeof *c);
    if (!c)
        return NULL;
    c->addr = *addr;
    list_init(&c->node);
    list_init(&c->half_open);
    *table_at(d, addr) = c;
    list_push_back(&d->by_count[0], &c->node);
    d->n_callers++;
    return c;
}

// Whoever may open a socket file, or runs in this process, is no stranger.
static bool is_local(const struct door_caller *c)
{
    return c->addr.family == 0;
}

// Those with connections alone are in no list: they are neither a crowd nor idle.
static void set_count(struct door *d, struct door_caller *c, unsigned n)
{
    d->n_half_open += n - c->n_half_open;
    c->n_half_open = n;
    list_remove(&c->node);
    if (n || c->n_conns == 0)
        list_push_back(&d->by_count[n], &c->node);
    if (n > d->most)
        d->most = n;
    while (d->most && list_is_empty(&d->by_count[d->most]))
        d->most--;
}

// ---------------------------------------------------------------- coming and going

struct door_caller *door_enter(struct door *d, const struct transport_addr *addr, int64_t now_us)
{
    forget_idle(d, now_us);
    struct door_caller *c = *table_at(d, addr);
    if (!c)
        c = caller_new(d, addr);
    if (!c || c->n_half_open > d->l.max_half_open)
        return NULL;
    if (d->n_conns >= d->l.max_conns)
        return NULL;
    if (!is_local(c)) {
        if (c->n_conns >= d->l.max_conns_per_addr)
            return NULL;
        if (!bucket_has(&c->conns, d->l.conns_per_s, d->l.conns_burst, now_us))
            return NULL;
        bucket_take(&c->conns, d->l.conns_per_s, now_us);
    }
    set_count(d, c, c->n_half_open + 1);
    return c;
}

bool door_knock(struct door *d, struct door_caller *c, int64_t now_us)
{
    if (is_local(c))
        return true;
    if (!bucket_has(&c->handshakes, d->l.handshakes_per_s, d->l.handshakes_burst, now_us))
        return false;
    // The last half of what all may do is for those of whom nothing bad is known.
    unsigned burst = d->l.all_handshakes_per_s / ALL_BURST_PART + 1;
    if (c->handshakes.until_us > now_us)
        burst = (burst + 1) / 2;
    if (!bucket_has(&d->all_handshakes, d->l.all_handshakes_per_s, burst, now_us))
        return false;
    bucket_take(&d->all_handshakes, d->l.all_handshakes_per_s, now_us);
    bucket_take(&c->handshakes, d->l.handshakes_per_s, now_us);
    return true;
}

void door_leave(struct door *d, struct door_caller *c, bool knocked, enum door_end end)
{
    if (end != DOOR_FAILED && !is_local(c)) {
        bucket_give(&c->conns, d->l.conns_per_s);
        if (knocked)
            bucket_give(&c->handshakes, d->l.handshakes_per_s);
    }
    d->n_conns += end == DOOR_WELCOME;
    c->n_conns += end == DOOR_WELCOME;
    set_count(d, c, c->n_half_open - 1);
}

void door_gone(struct door *d, struct door_caller *c)
{
    d->n_conns--;
    c->n_conns--;
    set_count(d, c, c->n_half_open);
}

struct door_caller *door_crowd(const struct door *d, struct door_caller *c)
{
    if (!is_local(c) && c->n_half_open > d->l.max_half_open_per_addr)
        return c;
    if (d->n_half_open > d->l.max_half_open)
        return list_entry(d->by_count[d->most].next, struct door_caller, node);
    return NULL;
}
