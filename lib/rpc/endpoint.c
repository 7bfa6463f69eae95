// The endpoints of a client: which there are, which are dialled, which one takes the next call.
//
//   idle --dialled--> connecting --> ready --connection lost--> failing --> ready ...
//                         |            |
//                         +-> failing  +--goaway, removed, too many--> draining
//
// `endpoints` is in the order of dialling. With max_connections only the first ones are dialled;
// one that stays away goes to the end, and the next takes its place.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define SCAN_MAX 4 // ready endpoints looked at one by one; among more, two taken at random
#define REPLACE_US 1000000
#define DIAL_AGAIN_US 1000000

// ---------------------------------------------------------------- what is ready

static void ready_add(struct rpc_client *c, struct endpoint *e)
{
    if (e->ready_at || e->removed)
        return;
    c->ready[c->n_ready++] = e;
    e->ready_at = c->n_ready;
}

static void ready_remove(struct rpc_client *c, struct endpoint *e)
{
    if (!e->ready_at)
        return;
    struct endpoint *last = c->ready[--c->n_ready];
    c->ready[e->ready_at - 1] = last;
    last->ready_at = e->ready_at;
    e->ready_at = 0;
}

void endpoint_connected(struct rpc_client *c, struct link *l)
{
    struct endpoint *e = l->endpoint;
    c->stats.n_connects++;
    e->n_connects++;
    e->conn_serial = ++c->n_serials;
    e->since_us = time_mono_us();
    e->was_lost = false;
    if (e->current == l)
        ready_add(c, e);
}

void endpoint_lost(struct rpc_client *c, struct link *l, const char *why)
{
    struct endpoint *e = l->endpoint;
    if (e->current != l)
        return;
    if (why) {
        str_copy(e->last_error, sizeof e->last_error, why);
        if (e->ready_at || !e->was_lost)
            e->since_us = time_mono_us();
        e->was_lost = true;
    }
    ready_remove(c, e);
}

void endpoint_drain(struct rpc_client *c, struct endpoint *e)
{
    struct link *l = e->current;
    if (!l)
        return;
    ready_remove(c, e);
    e->current = NULL;
    l->draining = true;
    if (l->live)
        link_forget_live(l, l->live);
}

void endpoint_release(struct rpc_client *c, struct endpoint *e)
{
    (void)c;
    if (!e->removed || e->n_links || e->n_open)
        return;
    list_remove(&e->all);
    mem_free(e);
}

enum rpc_channel_state endpoint_state(const struct endpoint *e)
{
    if (e->ready_at)
        return RPC_CHANNEL_READY;
    if (e->current)
        return e->was_lost ? RPC_CHANNEL_FAILING : RPC_CHANNEL_CONNECTING;
    return e->n_links ? RPC_CHANNEL_DRAINING : RPC_CHANNEL_IDLE;
}

// ---------------------------------------------------------------- the set

static bool has_key(const struct endpoint *e, const uint8_t key[32])
{
    return memcmp(e->key, key, sizeof e->key) == 0 ||
           (e->has_next_key && memcmp(e->next_key, key, sizeof e->next_key) == 0);
}

static struct endpoint *find(const struct rpc_client *c, const struct rpc_endpoint *want)
{
    for (size_t i = 0; i < c->n_endpoints; i++) {
        struct endpoint *e = c->endpoints[i];
        if (str_eq(e->url, want->url) && has_key(e, want->key))
            return e;
    }
    return NULL;
}

static void take_keys(struct endpoint *e, const struct rpc_endpoint *from)
{
    memcpy(e->key, from->key, sizeof e->key);
    memcpy(e->next_key, from->next_key, sizeof e->next_key);
    e->has_next_key = from->has_next_key;
}

static struct endpoint *endpoint_new(const struct rpc_endpoint *from)
{
    struct endpoint *e = mem_alloc(sizeof *e);
    if (!e)
        return NULL;
    str_copy(e->url, sizeof e->url, from->url);
    take_keys(e, from);
    list_init(&e->all);
    return e;
}

static void shuffle(struct endpoint **list, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t k = (size_t)rand_below(i);
        struct endpoint *e = list[i - 1];
        list[i - 1] = list[k];
        list[k] = e;
    }
}

// Those that stay in front, in their order; then new ones.
static bool gather(struct rpc_client *c, const struct rpc_endpoint *want, size_t n,
                   struct endpoint **list, size_t *ret_n_kept, size_t *ret_n)
{
    size_t k = 0;
    for (size_t i = 0; i < c->n_endpoints; i++)
        c->endpoints[i]->removed = true;
    for (size_t i = 0; i < n; i++) {
        struct endpoint *e = find(c, &want[i]);
        if (e)
            e->removed = false;
    }
    for (size_t i = 0; i < c->n_endpoints; i++) {
        if (!c->endpoints[i]->removed)
            list[k++] = c->endpoints[i];
    }
    *ret_n_kept = k;
    for (size_t i = 0; i < n; i++) {
        if (find(c, &want[i]))
            continue;
        if (!(list[k] = endpoint_new(&want[i]))) {
            *ret_n = k;
            return false;
        }
        k++;
    }
    *ret_n = k;
    return true;
}

static void take_over(struct rpc_client *c, struct endpoint **list, size_t n_kept, size_t n,
                      struct endpoint **ready)
{
    for (size_t i = 0; i < c->n_endpoints; i++) {
        struct endpoint *e = c->endpoints[i];
        if (!e->removed)
            continue;
        endpoint_drain(c, e);
        endpoint_release(c, e);
    }
    if (c->o.max_connections)
        shuffle(list + n_kept, n - n_kept);
    for (size_t i = n_kept; i < n; i++)
        list_push_back(&c->all_endpoints, &list[i]->all);
    if (c->n_ready)
        memcpy(ready, c->ready, c->n_ready * sizeof(struct endpoint *));
    mem_free(c->ready);
    mem_free(c->endpoints);
    c->ready = ready;
    c->endpoints = list;
    c->n_endpoints = n;
}

enum status endpoints_set(struct rpc_client *c, const struct rpc_endpoint *want, size_t n,
                          struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        if (strlen(want[i].url) >= RPC_URL_SIZE)
            return err_set(err, STATUS_INVALID_ARGUMENT, "address too long: %s", want[i].url);
    }
    struct endpoint **list = mem_array(c->n_endpoints + n + 1, sizeof(struct endpoint *));
    struct endpoint **ready = mem_array(c->n_endpoints + n + 1, sizeof(struct endpoint *));
    size_t n_kept = 0, n_all = 0;
    if (list && ready && gather(c, want, n, list, &n_kept, &n_all)) {
        for (size_t i = 0; i < n; i++) {
            struct endpoint *e = find(c, &want[i]);
            if (e)
                take_keys(e, &want[i]);
        }
        take_over(c, list, n_kept, n_all, ready);
        return STATUS_OK;
    }
    for (size_t i = n_kept; list && i < n_all; i++)
        mem_free(list[i]);
    for (size_t i = 0; i < c->n_endpoints; i++)
        c->endpoints[i]->removed = false;
    mem_free(list);
    mem_free(ready);
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "endpoints: out of memory");
}

void endpoints_free(struct rpc_client *c)
{
    for (struct list *it; (it = list_pop_front(&c->all_endpoints));)
        mem_free(list_entry(it, struct endpoint, all));
    mem_free(c->endpoints);
    mem_free(c->ready);
}

// ---------------------------------------------------------------- choosing

bool endpoints_any_ready(const struct rpc_client *c)
{
    return c->n_ready > 0;
}

bool endpoints_any_usable(const struct rpc_client *c, int64_t now_us)
{
    for (size_t i = 0; i < c->n_ready; i++) {
        if (breaker_allows(&c->ready[i]->breaker, now_us))
            return true;
    }
    return false;
}

// Not for secrets: which of many servers is asked.
static size_t draw(struct rpc_client *c, size_t n)
{
    c->random ^= c->random << 13;
    c->random ^= c->random >> 7;
    c->random ^= c->random << 17;
    return (size_t)(c->random % n);
}

static bool may_use(const struct endpoint *e, int64_t now_us, const struct endpoint *avoid)
{
    return e != avoid && breaker_allows(&e->breaker, now_us);
}

// From the one whose turn it is: the first, or the least loaded.
static struct endpoint *scan(const struct rpc_client *c, int64_t now_us,
                             const struct endpoint *avoid, size_t start, bool first)
{
    struct endpoint *best = NULL;
    for (size_t i = 0; i < c->n_ready; i++) {
        struct endpoint *e = c->ready[(start + i) % c->n_ready];
        if (!may_use(e, now_us, avoid))
            continue;
        if (first)
            return e;
        if (!best || e->n_open < best->n_open)
            best = e;
    }
    return best;
}

struct endpoint *endpoint_choose(struct rpc_client *c, int64_t now_us, const struct endpoint *avoid)
{
    if (c->n_ready == 0)
        return NULL;
    if (c->n_ready == 1)
        return may_use(c->ready[0], now_us, avoid) ? c->ready[0] : NULL;
    size_t turn = c->turn++;
    if (c->o.policy == RPC_ROUND_ROBIN)
        return scan(c, now_us, avoid, turn, true);
    if (c->n_ready <= SCAN_MAX)
        return scan(c, now_us, avoid, turn, false);
    struct endpoint *a = c->ready[draw(c, c->n_ready)], *b = c->ready[draw(c, c->n_ready)];
    bool a_may = may_use(a, now_us, avoid), b_may = may_use(b, now_us, avoid);
    if (a_may && b_may)
        return a->n_open <= b->n_open ? a : b;
    if (a_may || b_may)
        return a_may ? a : b;
    return scan(c, now_us, avoid, draw(c, c->n_ready), true);
}

// ---------------------------------------------------------------- dialling

static size_t n_wanted(const struct rpc_client *c)
{
    size_t most = c->o.max_connections;
    if (c->o.lazy && !c->is_wanted)
        return 0;
    return most && most < c->n_endpoints ? most : c->n_endpoints;
}

// Those that are in nobody's way keep trying; with a choice of others they make room.
static bool is_hopeless(const struct endpoint *e, int64_t now_us)
{
    if (!e->current)
        return now_us < e->not_before_us;
    if (!e->ready_at)
        return now_us - e->since_us >= REPLACE_US;
    return breaker_state(&e->breaker, now_us) == RPC_BREAKER_OPEN;
}

static void move_to_end(struct rpc_client *c, size_t i)
{
    struct endpoint *e = c->endpoints[i];
    memmove(&c->endpoints[i], &c->endpoints[i + 1],
            (c->n_endpoints - i - 1) * sizeof(struct endpoint *));
    c->endpoints[c->n_endpoints - 1] = e;
}

// Called with the client's lock held: the next endpoint to dial, or NULL.
static struct endpoint *next_to_dial(struct rpc_client *c, int64_t now_us, int64_t *next_us)
{
    size_t want = n_wanted(c);
    bool spare = want < c->n_endpoints;
    for (size_t i = 0, n_moved = 0; spare && i < want && n_moved < want;) {
        struct endpoint *e = c->endpoints[i];
        if (!is_hopeless(e, now_us)) {
            i++;
            continue;
        }
        endpoint_drain(c, e);
        move_to_end(c, i);
        n_moved++;
    }
    for (size_t i = 0; i < want; i++) {
        struct endpoint *e = c->endpoints[i];
        int64_t at = e->not_before_us;
        if (spare && e->current && !e->ready_at)
            at = e->since_us + REPLACE_US;
        else if (e->current)
            continue;
        else if (now_us >= at)
            return e;
        *next_us = at < *next_us ? at : *next_us;
    }
    return NULL;
}

void endpoints_tick(struct rpc_client *c, int64_t now_us, int64_t *next_us)
{
    for (;;) {
        pthread_mutex_lock(&c->lock);
        struct endpoint *e = c->is_closing ? NULL : next_to_dial(c, now_us, next_us);
        if (e) {
            e->n_links++; // ours, while the lock is away
            e->since_us = now_us;
            e->was_lost = false;
        }
        pthread_mutex_unlock(&c->lock);
        if (!e)
            return;
        struct err err = ERR_INIT;
        enum status s = link_open(c, e, &err);
        if (s != STATUS_OK)
            log_warn(c->o.log, "rpc_dial_failed", F_STR("endpoint", e->url), F_ERR(&err));
        pthread_mutex_lock(&c->lock);
        if (s != STATUS_OK) {
            str_copy(e->last_error, sizeof e->last_error, err.msg);
            e->not_before_us = now_us + DIAL_AGAIN_US;
        } else if (e->removed) { // meanwhile
            endpoint_drain(c, e);
        }
        e->n_links--;
        endpoint_release(c, e);
        pthread_mutex_unlock(&c->lock);
    }
}

// ---------------------------------------------------------------- why not

// The endpoint that has most to say: one that was lost, rather than one still being dialled.
static const struct endpoint *spokesman(const struct rpc_client *c)
{
    const struct endpoint *best = c->endpoints[0];
    for (size_t i = 0; i < c->n_endpoints; i++) {
        const struct endpoint *e = c->endpoints[i];
        if (e->ready_at)
            return e; // and refused by its breaker
        if (e->current && e->last_error[0] && !best->last_error[0])
            best = e;
    }
    return best;
}

enum status endpoints_explain(const struct rpc_client *c, int64_t now_us, struct err *err)
{
    if (c->n_endpoints == 0)
        return err_set(err, STATUS_UNAVAILABLE, "%s%sno backend is configured", c->name,
                       c->name[0] ? ": " : "");
    const struct endpoint *e = spokesman(c);
    char others[48] = "";
    if (c->n_endpoints > 1)
        snprintf(others, sizeof others, " (nor do %zu other backends)", c->n_endpoints - 1);
    if (e->ready_at) {
        int64_t left_ms = (e->breaker.open_until_us - now_us) / 1000;
        return err_set(err, STATUS_UNAVAILABLE,
                       "%s: takes no calls%s: it failed repeatedly and is left alone for "
                       "%" PRId64 " ms more",
                       e->url, others, left_ms > 0 ? left_ms : 0);
    }
    if (!e->since_us)
        return err_set(err, STATUS_UNAVAILABLE, "%s: no connection yet%s", e->url, others);
    return err_set(err, STATUS_UNAVAILABLE, "%s: no connection for %" PRId64 ".%" PRId64 " s%s: %s",
                   e->url, (now_us - e->since_us) / 1000000, (now_us - e->since_us) / 100000 % 10,
                   others, e->last_error[0] ? e->last_error : "it does not answer");
}
