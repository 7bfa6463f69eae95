// Our side of handshakes, shared by many connections and changed while they are open.
//
// What a handshake needs of it is copied under the lock when the handshake begins; connections that
// are open hold a reference and no key. The keys of mac1 are made once, not per connection, and a
// grant's signature (63 us of the 250 that a service link costs its responder) is checked once:
// what was found is kept under the hash of the grant. Time, revocation and role are judged anew
// each time. Responders only: an initiator meets few.
#include <string.h>

#include "base/mem.h"
#include "base/time.h"
#include "channel/internal.h"
#include "crypto/crypto.h"

#define N_SEEN 256 // grants whose signature was good; a platform has as many nodes, or fewer

struct seen {
    bool is_set;
    uint8_t hash[32];
    struct chan_grant grant;
};

struct chan_local {
    atomic_uint refs, generation;
    pthread_mutex_t lock; // guards what follows
    unsigned n_ids;
    struct chan_identity ids[CHAN_MAX_IDENTITIES]; // the first is what we show as initiator
    uint8_t mac1_keys[CHAN_MAX_IDENTITIES][32];
    bool has_trust;
    struct chan_trust trust;
    chan_join_fn join;
    void *join_ud;
    struct seen *seen; // N_SEEN of them, made when the first is kept
};

static void set_identity(struct chan_local *l, unsigned i, const struct chan_identity *id)
{
    l->ids[i] = *id;
    chan_mac1_key(l->mac1_keys[i], id->public_key);
    l->n_ids = i + 1;
}

struct chan_local *chan_local_new(const struct chan_identity *id, const struct chan_trust *trust)
{
    struct chan_local *l = mem_alloc(sizeof(*l));

    if (!l)
        return NULL;
    l->refs = 1;
    pthread_mutex_init(&l->lock, NULL);
    if (id)
        set_identity(l, 0, id);
    if (trust)
        l->trust = *trust;
    l->has_trust = trust != NULL;
    return l;
}

struct chan_local *chan_local_ref(struct chan_local *l)
{
    atomic_fetch_add(&l->refs, 1);
    return l;
}

void chan_local_unref(struct chan_local *l)
{
    if (!l || atomic_fetch_sub(&l->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&l->lock);
    mem_free(l->seen);
    crypto_wipe(l, sizeof(*l));
    mem_free(l);
}

static bool is_same_identity(const struct chan_identity *a, const struct chan_identity *b)
{
    return crypto_equal(a->secret, b->secret, sizeof(a->secret)) &&
           memcmp(a->public_key, b->public_key, sizeof(a->public_key)) == 0 &&
           a->grant_len == b->grant_len && memcmp(a->grant, b->grant, a->grant_len) == 0;
}

static bool is_same(const struct chan_local *l, const struct chan_identity *id,
                    const struct chan_identity *other)
{
    return l->n_ids == (other ? 2U : 1U) && is_same_identity(&l->ids[0], id) &&
           (!other || is_same_identity(&l->ids[1], other));
}

void chan_local_set_identity(struct chan_local *l, const struct chan_identity *id,
                             const struct chan_identity *other)
{
    pthread_mutex_lock(&l->lock);
    if (is_same(l, id, other)) {
        pthread_mutex_unlock(&l->lock);
        return;
    }
    crypto_wipe(l->ids, sizeof(l->ids));
    set_identity(l, 0, id);
    if (other)
        set_identity(l, 1, other);
    pthread_mutex_unlock(&l->lock);
    atomic_fetch_add(&l->generation, 1);
}

unsigned chan_local_generation(const struct chan_local *l)
{
    return atomic_load(&l->generation);
}

void chan_local_set_join(struct chan_local *l, chan_join_fn fn, void *ud)
{
    pthread_mutex_lock(&l->lock);
    l->join = fn;
    l->join_ud = ud;
    pthread_mutex_unlock(&l->lock);
}

// ---------------------------------------------------------------- what a handshake needs

static void take_identity(const struct chan_local *l, unsigned i, struct chan_handshake *hs)
{
    hs->id = l->ids[i];
    hs->has_id = true;
    hs->generation = atomic_load(&l->generation);
}

bool chan_local_current(struct chan_local *l, struct chan_handshake *hs)
{
    pthread_mutex_lock(&l->lock);
    bool ok = l->n_ids > 0;
    if (ok)
        take_identity(l, 0, hs);
    pthread_mutex_unlock(&l->lock);
    return ok;
}

bool chan_local_meant(struct chan_local *l, const uint8_t *frame, size_t n,
                      struct chan_handshake *hs, uint8_t mac1_key[32])
{
    uint8_t mac[CHAN_MAC1_SIZE];
    bool found = false;

    pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; i < l->n_ids && !found; i++) {
        chan_mac1(mac, l->mac1_keys[i], frame, n - CHAN_MAC1_SIZE);
        found = crypto_equal(mac, frame + n - CHAN_MAC1_SIZE, sizeof(mac));
        if (!found)
            continue;
        take_identity(l, i, hs);
        memcpy(mac1_key, l->mac1_keys[i], 32);
    }
    pthread_mutex_unlock(&l->lock);
    return found;
}

bool chan_local_has_identity(struct chan_local *l)
{
    pthread_mutex_lock(&l->lock);
    bool yes = l->n_ids > 0;
    pthread_mutex_unlock(&l->lock);
    return yes;
}

bool chan_local_has_grant(struct chan_local *l)
{
    pthread_mutex_lock(&l->lock);
    bool yes = l->n_ids > 0 && l->has_trust && l->ids[0].grant_len > 0 &&
               l->ids[0].grant_len <= sizeof(l->ids[0].grant);
    pthread_mutex_unlock(&l->lock);
    return yes;
}

bool chan_local_may_join(struct chan_local *l)
{
    pthread_mutex_lock(&l->lock);
    bool yes = l->n_ids > 0 && l->join;
    pthread_mutex_unlock(&l->lock);
    return yes;
}

bool chan_local_find_join(struct chan_local *l, struct chan_join *j)
{
    pthread_mutex_lock(&l->lock);
    chan_join_fn fn = l->join;
    void *ud = l->join_ud;
    pthread_mutex_unlock(&l->lock);
    return fn && fn(ud, j->id, j->secret);
}

// ---------------------------------------------------------------- grants

static bool recall(struct chan_local *l, const uint8_t hash[32], struct chan_grant *ret,
                   struct chan_trust *ret_trust)
{
    pthread_mutex_lock(&l->lock);
    const struct seen *s = l->seen ? &l->seen[hash[0] % N_SEEN] : NULL;
    bool found = s && s->is_set && memcmp(s->hash, hash, sizeof(s->hash)) == 0;
    if (found)
        *ret = s->grant;
    *ret_trust = l->trust;
    pthread_mutex_unlock(&l->lock);
    return found;
}

static void remember(struct chan_local *l, const uint8_t hash[32], const struct chan_grant *g)
{
    pthread_mutex_lock(&l->lock);
    if (!l->seen)
        l->seen = mem_array(N_SEEN, sizeof(*l->seen));
    if (l->seen) {
        struct seen *s = &l->seen[hash[0] % N_SEEN];
        s->is_set = true;
        memcpy(s->hash, hash, sizeof(s->hash));
        s->grant = *g;
    }
    pthread_mutex_unlock(&l->lock);
}

static bool is_revoked(const struct chan_trust *trust, const struct chan_grant *g)
{
    return g->serial < trust->serial_floor ||
           (trust->is_revoked && trust->is_revoked(trust->ud, g));
}

bool chan_local_trusts(struct chan_local *l, const struct chan_grant *g)
{
    int64_t now_s = time_wall_ms() / 1000;

    pthread_mutex_lock(&l->lock);
    struct chan_trust trust = l->trust;
    pthread_mutex_unlock(&l->lock);
    return now_s >= g->not_before_s && now_s <= g->not_after_s && !is_revoked(&trust, g);
}

enum chan_refusal chan_local_judge(struct chan_local *l, const void *grant, size_t n, bool keep,
                                   struct chan_grant *ret, struct err *err)
{
    uint8_t hash[32];
    struct chan_trust trust;
    int64_t now_s = time_wall_ms() / 1000;

    crypto_blake2b(hash, sizeof(hash), grant, n, NULL, 0, NULL);
    bool is_known = recall(l, hash, ret, &trust);
    if (!is_known &&
        chan_grant_verify(ret, grant, n, trust.operator_public, now_s, err) != STATUS_OK)
        return CHAN_BAD_GRANT;
    if (!is_known && keep)
        remember(l, hash, ret);
    if (now_s < ret->not_before_s || now_s > ret->not_after_s) {
        (void)err_set(err, STATUS_UNAUTHENTICATED, "grant of %s: %s", ret->node_id,
                      now_s < ret->not_before_s ? "not valid yet" : "expired");
        return CHAN_BAD_GRANT;
    }
    if (is_revoked(&trust, ret)) {
        (void)err_set(err, STATUS_UNAUTHENTICATED, "the grant of %s is revoked", ret->node_id);
        return CHAN_REVOKED;
    }
    if (trust.roles && !(trust.roles & 1U << ret->role)) {
        (void)err_set(err, STATUS_PERMISSION_DENIED, "%s has a grant for another role",
                      ret->node_id);
        return CHAN_WRONG_ROLE;
    }
    return CHAN_FINE;
}
