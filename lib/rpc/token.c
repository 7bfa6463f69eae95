// Verified access tokens, found by hash. The hash is only an index (seeded, so that nobody can aim
// at a bucket); the whole text is compared. What did not verify is never cached.
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/time.h"
#include "rpc/internal.h"

#define N_BUCKETS 1024
#define MAX_CACHED 8192

struct token_cache {
    pthread_mutex_t lock;
    uint64_t seed;
    struct token *buckets[N_BUCKETS];
    size_t n;
    rpc_verify_fn verify;
    void *ud;
    atomic_uint round; // of verifying; what was found in an earlier one is in doubt
};

static uint64_t hash_text(uint64_t seed, const void *p, size_t n)
{
    const uint8_t *b = p;
    uint64_t h = seed ^ (n * 0x9e3779b97f4a7c15ULL);
    for (; n >= 8; b += 8, n -= 8) {
        uint64_t w;
        memcpy(&w, b, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdULL;
        h ^= h >> 32;
    }
    for (; n; b++, n--)
        h = (h ^ *b) * 0x100000001b3ULL;
    return h ^ h >> 29;
}

struct token_cache *token_cache_new(rpc_verify_fn verify, void *ud)
{
    struct token_cache *tc = mem_alloc(sizeof *tc);
    if (!tc)
        return NULL;
    pthread_mutex_init(&tc->lock, NULL);
    tc->seed = rand_u64();
    tc->verify = verify;
    tc->ud = ud;
    return tc;
}

void token_cache_free(struct token_cache *tc)
{
    if (!tc)
        return;
    for (size_t i = 0; i < N_BUCKETS; i++) {
        while (tc->buckets[i]) {
            struct token *next = tc->buckets[i]->next;
            token_unref(tc->buckets[i]);
            tc->buckets[i] = next;
        }
    }
    pthread_mutex_destroy(&tc->lock);
    mem_free(tc);
}

void token_cache_doubt(struct token_cache *tc)
{
    atomic_fetch_add(&tc->round, 1);
}

struct token *token_ref(struct token *t)
{
    if (t)
        atomic_fetch_add(&t->refs, 1);
    return t;
}

void token_unref(struct token *t)
{
    if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    explicit_bzero(t->text, t->len);
    mem_free(t);
}

bool token_is_fresh(const struct token *t)
{
    return t->is_verified && t->user.exp_wall_ms > time_wall_ms();
}

struct token *token_get(struct token_cache *tc, const void *text, size_t len)
{
    uint64_t h = hash_text(tc->seed, text, len);
    pthread_mutex_lock(&tc->lock);
    struct token *t = tc->buckets[h % N_BUCKETS];
    while (t && !(t->hash == h && t->len == len && memcmp(t->text, text, len) == 0))
        t = t->next;
    token_ref(t);
    pthread_mutex_unlock(&tc->lock);
    if (t)
        return t;
    t = mem_alloc(sizeof *t + len + 1);
    if (!t)
        return NULL;
    t->refs = 1;
    t->hash = h;
    t->len = len;
    memcpy(t->text, text, len);
    return t;
}

static void drop_expired(struct token_cache *tc, struct token **at, int64_t now_ms)
{
    while (*at) {
        struct token *t = *at;
        if (t->user.exp_wall_ms > now_ms) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        tc->n--;
        token_unref(t);
    }
}

static void insert(struct token_cache *tc, struct token *t)
{
    int64_t now_ms = time_wall_ms();
    struct token **at = &tc->buckets[t->hash % N_BUCKETS];
    drop_expired(tc, at, now_ms);
    if (tc->n >= MAX_CACHED)
        for (size_t i = 0; i < N_BUCKETS; i++)
            drop_expired(tc, &tc->buckets[i], now_ms);
    if (tc->n >= MAX_CACHED)
        return; // verified again next time: slower, still right
    t->is_cached = true;
    t->next = *at;
    *at = token_ref(t);
    tc->n++;
}

// Whose it is was found before and stays so: others may be reading it.
static enum status verify_again(struct token_cache *tc, struct token *t, struct err *err)
{
    unsigned round = atomic_load(&tc->round);
    struct rpc_user user = {.exp_wall_ms = 0};
    enum status s = tc->verify(tc->ud, t->text, t->len, &user, err);
    if (s == STATUS_OK)
        atomic_store(&t->round, round);
    return s;
}

enum status token_verify(struct token_cache *tc, struct token *t, struct err *err)
{
    unsigned round = atomic_load(&tc->round);
    if (t->is_verified) {
        if (atomic_load(&t->round) != round && token_is_fresh(t))
            return verify_again(tc, t, err);
        if (token_is_fresh(t))
            return STATUS_OK;
        return err_set(err, STATUS_UNAUTHENTICATED, "the access token has expired");
    }
    if (!tc->verify)
        return err_set(err, STATUS_UNAUTHENTICATED, "access tokens are not accepted here");
    struct rpc_user user = {.exp_wall_ms = 0};
    enum status s = tc->verify(tc->ud, t->text, t->len, &user, err);
    if (s != STATUS_OK)
        return s;
    if (user.exp_wall_ms <= time_wall_ms())
        return err_set(err, STATUS_UNAUTHENTICATED, "the access token has expired");
    pthread_mutex_lock(&tc->lock);
    if (!t->is_verified) {
        t->user = user;
        t->round = round;
        t->is_verified = true;
        insert(tc, t);
    }
    pthread_mutex_unlock(&tc->lock);
    return STATUS_OK;
}
