// Access tokens that count no more before they expire: what session's topic `auth` tells of logins
// and of users whose rights have changed.
//
// A token is verified without a call, so revocations are brought to whoever verifies. Two tables
// say what was revoked: logins that have ended, and for users the epoch that tokens must have. An
// entry is needed for as long as a token may live that was made before it, and no longer. So there
// are few, and a process that starts reads what happened within the life of a token and knows as
// much as the others.
//
// When there are more than fit, all tokens that were made so far are refused instead: whoever is
// still logged in gets a new one with the refresh token.
//
// Without the session service, or its database, nothing can be revoked, nor any token be made; what
// was revoked just before and not heard of yet counts until it expires.
#include <pthread.h>
#include <string.h>

#include "cauce/event.pb-c.h"

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "event/event.h"
#include "service/internal.h"
#include "json/json.h"

#define TOPIC "auth"
#define N_BUCKETS 1024
#define CLOCKS_MS 60000 // our clock and the database's may differ by that

enum what { LOGIN, USER };

struct revocation {
    struct revocation *next;
    enum what what;
    char id[UUID_SIZE];
    int64_t min_epoch;     // USER: tokens must have at least this one
    int64_t until_wall_ms; // by then every token that it is about has expired
};

struct svc_revoked {
    pthread_mutex_t lock;
    atomic_bool is_empty; // what is looked at by each call
    size_t n, max;
    uint64_t seed;
    struct revocation *buckets[N_BUCKETS];
    int64_t floor_wall_ms; // tokens that expire by this time are refused
    struct svc *svc;
    struct event_follower *follower;
};

// Kinds of events that end something.
static const struct {
    const char *kind;
    enum what what;
} kinds[] = {
    {"logout", LOGIN},          {"token.reused", LOGIN}, {"logout.everywhere", USER},
    {"password.changed", USER}, {"user.roles", USER},    {"user.disabled", USER},
};

// ---------------------------------------------------------------- the tables

static struct revocation **bucket_of(struct svc_revoked *r, const char *id)
{
    uint64_t h = r->seed;
    for (; *id; id++)
        h = (h ^ (uint8_t)*id) * 0x100000001b3ULL;
    return &r->buckets[(h ^ h >> 32) % N_BUCKETS];
}

static struct revocation *find(struct svc_revoked *r, enum what what, const char *id)
{
    struct revocation *e = *bucket_of(r, id);
    while (e && (e->what != what || !str_eq(e->id, id)))
        e = e->next;
    return e;
}

static void drop(struct svc_revoked *r, struct revocation **at)
{
    struct revocation *e = *at;
    *at = e->next;
    r->n--;
    mem_free(e);
}

static void drop_old(struct svc_revoked *r, int64_t now_ms)
{
    for (size_t i = 0; i < N_BUCKETS; i++)
        for (struct revocation **at = &r->buckets[i]; *at;)
            if ((*at)->until_wall_ms <= now_ms)
                drop(r, at);
            else
                at = &(*at)->next;
}

static void drop_all(struct svc_revoked *r)
{
    for (size_t i = 0; i < N_BUCKETS; i++)
        while (r->buckets[i])
            drop(r, &r->buckets[i]);
}

static void refuse_all_so_far(struct svc_revoked *r, int64_t now_ms)
{
    drop_all(r);
    r->floor_wall_ms = now_ms + SVC_ACCESS_TOKEN_MS;
}

static void add(struct svc_revoked *r, const struct revocation *from, int64_t now_ms)
{
    struct revocation **bucket = bucket_of(r, from->id), *e = find(r, from->what, from->id);
    if (!e && r->n == r->max)
        drop_old(r, now_ms);
    if (!e && r->n < r->max && (e = mem_alloc(sizeof *e))) {
        *e = (struct revocation){.next = *bucket, .what = from->what};
        memcpy(e->id, from->id, sizeof e->id);
        *bucket = e;
        r->n++;
    }
    if (!e) {
        refuse_all_so_far(r, now_ms);
        return;
    }
    if (from->min_epoch > e->min_epoch)
        e->min_epoch = from->min_epoch;
    if (from->until_wall_ms > e->until_wall_ms)
        e->until_wall_ms = from->until_wall_ms;
}

bool svc_revoked_user_ok(void *revoked, const struct rpc_user *u)
{
    struct svc_revoked *r = revoked;
    if (atomic_load_explicit(&r->is_empty, memory_order_acquire))
        return true;
    pthread_mutex_lock(&r->lock);
    const struct revocation *user = find(r, USER, u->id);
    bool ok = u->exp_wall_ms > r->floor_wall_ms && !find(r, LOGIN, u->session) &&
              (!user || u->epoch >= user->min_epoch);
    pthread_mutex_unlock(&r->lock);
    return ok;
}

// ---------------------------------------------------------------- events

static bool take_id(char dst[UUID_SIZE], const char *src)
{
    return src && uuid_is_valid(src) && str_copy(dst, UUID_SIZE, src);
}

// False: it ends nothing.
static bool read_event(const Event__EventRecord *e, struct revocation *ret)
{
    AUTO(json_free_p) struct json_value *data = NULL;
    size_t i = 0;
    while (i < N_ELEMENTS(kinds) && !str_eq(kinds[i].kind, e->kind))
        i++;
    if (i == N_ELEMENTS(kinds) || json_parse(e->data, strlen(e->data), 4, &data, NULL) != STATUS_OK)
        return false;
    *ret = (struct revocation){.what = kinds[i].what};
    ret->until_wall_ms =
        (e->time ? e->time->seconds * 1000 : time_wall_ms()) + SVC_ACCESS_TOKEN_MS + CLOCKS_MS;
    if (ret->what == LOGIN)
        return take_id(ret->id, json_string_or(json_member(data, "login"), NULL));
    return take_id(ret->id, e->subject) &&
           json_get_i64(json_member(data, "epoch"), &ret->min_epoch);
}

bool svc_revoked_apply(struct svc_revoked *r, const Event__EventRecord *e, int64_t now_wall_ms)
{
    struct revocation what;
    if (!read_event(e, &what))
        return false;
    // Heard of late, when no such token can be left: a stream that began with one may be.
    if (what.until_wall_ms < now_wall_ms + CLOCKS_MS)
        what.until_wall_ms = now_wall_ms + CLOCKS_MS;
    pthread_mutex_lock(&r->lock);
    add(r, &what, now_wall_ms);
    atomic_store_explicit(&r->is_empty, false, memory_order_release);
    pthread_mutex_unlock(&r->lock);
    return true;
}

bool svc_revoked_tidy(struct svc_revoked *r, int64_t now_wall_ms)
{
    if (atomic_load_explicit(&r->is_empty, memory_order_acquire))
        return false;
    pthread_mutex_lock(&r->lock);
    drop_old(r, now_wall_ms);
    bool is_empty = r->n == 0 && r->floor_wall_ms <= now_wall_ms;
    atomic_store_explicit(&r->is_empty, is_empty, memory_order_release);
    pthread_mutex_unlock(&r->lock);
    return !is_empty;
}

// ---------------------------------------------------------------- following

static enum status handle(void *ud, const struct Event__EventRecord *e, struct err *err)
{
    struct svc_revoked *r = ud;
    (void)err;
    if (svc_revoked_apply(r, e, time_wall_ms()))
        rpc_server_check_users(r->svc->server);
    return STATUS_OK;
}

// One node after another: a follower listens to one.
static struct rpc_client *next_session(void *ud, unsigned attempt, struct err *err)
{
    struct svc_revoked *r = ud;
    const struct svc_node *node = NULL;
    size_t n = 0;
    while ((node = svc_nodes_next(r->svc->nodes, ROLE_NODE_SESSION, node)))
        n++;
    for (size_t i = n ? attempt % n + 1 : 0; i > 0; i--)
        node = svc_nodes_next(r->svc->nodes, ROLE_NODE_SESSION, node);
    return svc_client(r->svc, ROLE_NODE_SESSION, node ? node->id : NULL, err);
}

enum status svc_revoked_follow(struct svc_revoked *r, struct svc *svc, struct err *err)
{
    r->svc = svc;
    if (!svc_nodes_next(svc->nodes, ROLE_NODE_SESSION, NULL))
        return STATUS_OK; // nobody makes tokens
    const struct event_follow_opts o = {
        .topic = TOPIC,
        .since_wall_ms = time_wall_ms() - SVC_ACCESS_TOKEN_MS - CLOCKS_MS,
        .skip_pruned = true,
        .client = next_session,
        .handle = handle,
        .ud = r,
        .log = svc->log,
    };
    return event_follow(&o, &r->follower, err);
}

void svc_revoked_close(struct svc_revoked *r)
{
    if (r && r->follower)
        event_follower_close(r->follower);
}

void svc_revoked_stop(struct svc_revoked *r)
{
    if (r)
        event_follower_free(TAKE(r->follower));
}

// ---------------------------------------------------------------- start and end

struct svc_revoked *svc_revoked_new(size_t max)
{
    struct svc_revoked *r = mem_alloc(sizeof *r);
    if (!r)
        return NULL;
    pthread_mutex_init(&r->lock, NULL);
    r->is_empty = true;
    r->max = max;
    r->seed = rand_u64();
    return r;
}

void svc_revoked_free(struct svc_revoked *r)
{
    if (!r)
        return;
    svc_revoked_stop(r);
    drop_all(r);
    pthread_mutex_destroy(&r->lock);
    mem_free(r);
}
