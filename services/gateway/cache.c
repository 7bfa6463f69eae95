#include "gateway/cache.h"

#include <pthread.h>
#include <string.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

enum { N_BUCKETS = 1024 };

struct waiter {
    struct list link;
    edge_done_fn done;
    void *ud;
};

struct entry {
    struct list bucket;
    struct list lru; // in cache->lru while it has an object
    char key[EDGE_KEY_SIZE];
    struct edge_object *object; // NULL while it is fetched for the first time
    int64_t stored_ms;
    bool fetching;
    struct list waiters;
};

struct edge_cache {
    pthread_mutex_t lock;
    size_t quota;
    int64_t refresh_ms;
    struct list buckets[N_BUCKETS];
    struct list lru; // least recently used first
    struct edge_stats stats;
};

void edge_object_init(struct edge_object *o, size_t bytes, void (*destroy)(struct edge_object *o))
{
    atomic_init(&o->n_refs, 1);
    o->bytes = bytes;
    o->destroy = destroy;
}

void edge_object_ref(struct edge_object *o)
{
    atomic_fetch_add(&o->n_refs, 1);
}

void edge_object_unref(struct edge_object *o)
{
    if (o && atomic_fetch_sub(&o->n_refs, 1) == 1)
        o->destroy(o);
}

struct edge_cache *edge_cache_new(size_t quota_bytes, int64_t refresh_ms)
{
    struct edge_cache *c = mem_alloc(sizeof *c);
    if (!c)
        return NULL;
    pthread_mutex_init(&c->lock, NULL);
    c->quota = quota_bytes;
    c->refresh_ms = refresh_ms;
    for (size_t i = 0; i < N_BUCKETS; i++)
        list_init(&c->buckets[i]);
    list_init(&c->lru);
    return c;
}

static void entry_free(struct entry *e)
{
    list_remove(&e->bucket);
    edge_object_unref(e->object);
    mem_free(e);
}

void edge_cache_free(struct edge_cache *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < N_BUCKETS; i++)
        list_for_each_safe(l, next, &c->buckets[i]) entry_free(list_entry(l, struct entry, bucket));
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

// FNV-1a: keys are made of ids of ours, not of what a stranger chooses.
static struct list *bucket_of(struct edge_cache *c, const char *key)
{
    uint32_t h = 2166136261U;
    for (const char *p = key; *p; p++)
        h = (h ^ (unsigned char)*p) * 16777619U;
    return &c->buckets[h % N_BUCKETS];
}

static struct entry *find(struct edge_cache *c, const char *key)
{
    struct list *bucket = bucket_of(c, key);
    list_for_each(l, bucket)
    {
        struct entry *e = list_entry(l, struct entry, bucket);
        if (str_eq(e->key, key))
            return e;
    }
    return NULL;
}

static struct entry *insert(struct edge_cache *c, const char *key)
{
    struct entry *e = mem_alloc(sizeof *e);
    if (!e)
        return NULL;
    (void)str_copy(e->key, sizeof e->key, key);
    list_init(&e->lru);
    list_init(&e->waiters);
    list_push_back(bucket_of(c, key), &e->bucket);
    return e;
}

static void drop_object(struct edge_cache *c, struct entry *e)
{
    if (!e->object)
        return;
    list_remove(&e->lru);
    c->stats.bytes -= e->object->bytes;
    c->stats.objects--;
    edge_object_unref(e->object);
    e->object = NULL;
}

// What is being refreshed keeps its entry; what nobody needs any more goes.
static void drop_entry_if_idle(struct entry *e)
{
    if (!e->object && !e->fetching && list_is_empty(&e->waiters))
        entry_free(e);
}

static void make_room(struct edge_cache *c)
{
    while (c->stats.bytes > c->quota && !list_is_empty(&c->lru)) {
        struct entry *oldest = list_entry(c->lru.next, struct entry, lru);
        drop_object(c, oldest);
        drop_entry_if_idle(oldest);
        c->stats.evicted++;
    }
}

static void take_hit(struct edge_cache *c, struct entry *e, struct edge_answer *ret)
{
    list_remove(&e->lru);
    list_push_back(&c->lru, &e->lru);
    edge_object_ref(e->object);
    ret->hit = e->object;
    ret->fetch = c->refresh_ms && !e->fetching && time_mono_ms() - e->stored_ms > c->refresh_ms;
    e->fetching |= ret->fetch;
    c->stats.hits++;
}

enum status edge_cache_get(struct edge_cache *c, const char *key, edge_done_fn done, void *ud,
                           struct edge_answer *ret, struct err *err)
{
    *ret = (struct edge_answer){0};
    if (strlen(key) >= EDGE_KEY_SIZE)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "cache: the key is too long");
    struct waiter *w = mem_alloc(sizeof *w);
    pthread_mutex_lock(&c->lock);
    struct entry *e = find(c, key);
    if (e && e->object) {
        take_hit(c, e, ret);
        pthread_mutex_unlock(&c->lock);
        mem_free(w);
        return STATUS_OK;
    }
    if (w && !e)
        e = insert(c, key);
    if (!w || !e) {
        pthread_mutex_unlock(&c->lock);
        mem_free(w);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "cache: out of memory");
    }
    *w = (struct waiter){.done = done, .ud = ud};
    list_push_back(&e->waiters, &w->link);
    ret->fetch = !e->fetching;
    e->fetching = true;
    if (ret->fetch)
        c->stats.misses++;
    else
        c->stats.joined++;
    pthread_mutex_unlock(&c->lock);
    return STATUS_OK;
}

static void store(struct edge_cache *c, struct entry *e, enum status s, struct edge_object *o)
{
    if (s == STATUS_OK || s == STATUS_NOT_FOUND || s == STATUS_FAILED_PRECONDITION)
        drop_object(c, e);
    else
        e->stored_ms = time_mono_ms(); // a refresh that failed is not repeated at once
    if (s != STATUS_OK || o->bytes > c->quota)
        return;
    edge_object_ref(o);
    e->object = o;
    e->stored_ms = time_mono_ms();
    list_push_back(&c->lru, &e->lru);
    c->stats.bytes += o->bytes;
    c->stats.objects++;
}

void edge_cache_put(struct edge_cache *c, const char *key, enum status s, struct edge_object *o,
                    const struct err *err)
{
    struct list waiters;
    list_init(&waiters);
    pthread_mutex_lock(&c->lock);
    struct entry *e = find(c, key);
    if (e) {
        e->fetching = false;
        store(c, e, s, o);
        for (struct list *l; (l = list_pop_front(&e->waiters));)
            list_push_back(&waiters, l);
        drop_entry_if_idle(e);
        make_room(c);
    }
    pthread_mutex_unlock(&c->lock);
    for (struct list *l; (l = list_pop_front(&waiters));) {
        struct waiter *w = list_entry(l, struct waiter, link);
        w->done(w->ud, s, s == STATUS_OK ? o : NULL, err);
        mem_free(w);
    }
    edge_object_unref(o);
}

void edge_cache_get_stats(struct edge_cache *c, struct edge_stats *ret)
{
    pthread_mutex_lock(&c->lock);
    *ret = c->stats;
    pthread_mutex_unlock(&c->lock);
}
