// Verified leaves of sources, shared by the worker's slots. A film's chunks are many tasks and each
// begins with the container's header; the key is the leaf's own digest, so what is found is right
// whatever task put it there. The least recently used go first.
#include "transcode/internal.h"

#include <string.h>

#include "base/mem.h"

#define N_BUCKETS 1024

struct entry {
    struct list used, bucket;
    uint8_t digest[OBJECT_DIGEST_SIZE];
    size_t n;
    uint8_t bytes[];
};

struct leaf_cache {
    pthread_mutex_t lock;
    struct list used; // oldest first
    struct list buckets[N_BUCKETS];
    size_t bytes, max_bytes;
};

struct leaf_cache *leaf_cache_new(size_t max_bytes)
{
    struct leaf_cache *c = mem_alloc(sizeof *c);
    if (!c)
        return NULL;
    pthread_mutex_init(&c->lock, NULL);
    list_init(&c->used);
    for (size_t i = 0; i < N_BUCKETS; i++)
        list_init(&c->buckets[i]);
    c->max_bytes = max_bytes;
    return c;
}

static void drop(struct leaf_cache *c, struct entry *e)
{
    list_remove(&e->used);
    list_remove(&e->bucket);
    c->bytes -= e->n;
    mem_free(e);
}

void leaf_cache_free(struct leaf_cache *c)
{
    if (!c)
        return;
    while (!list_is_empty(&c->used))
        drop(c, list_entry(c->used.next, struct entry, used));
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

static struct list *bucket(struct leaf_cache *c, const uint8_t *digest)
{
    return &c->buckets[(digest[0] | (unsigned)digest[1] << 8) % N_BUCKETS];
}

static struct entry *find(struct leaf_cache *c, const uint8_t *digest)
{
    struct list *head = bucket(c, digest);
    list_for_each(it, head)
    {
        struct entry *e = list_entry(it, struct entry, bucket);
        if (memcmp(e->digest, digest, OBJECT_DIGEST_SIZE) == 0)
            return e;
    }
    return NULL;
}

static void touch(struct leaf_cache *c, struct entry *e)
{
    list_remove(&e->used);
    list_push_back(&c->used, &e->used);
}

bool leaf_cache_get(struct leaf_cache *c, const uint8_t digest[32], void *dst, size_t n)
{
    pthread_mutex_lock(&c->lock);
    struct entry *e = find(c, digest);
    bool ok = e && e->n == n;
    if (ok) {
        memcpy(dst, e->bytes, n);
        touch(c, e);
    }
    pthread_mutex_unlock(&c->lock);
    return ok;
}

void leaf_cache_put(struct leaf_cache *c, const uint8_t digest[32], const void *bytes, size_t n)
{
    struct entry *e = n <= c->max_bytes ? mem_alloc(sizeof *e + n) : NULL;
    if (!e)
        return;
    memcpy(e->digest, digest, OBJECT_DIGEST_SIZE);
    memcpy(e->bytes, bytes, n);
    e->n = n;
    list_init(&e->used);
    list_init(&e->bucket);
    pthread_mutex_lock(&c->lock);
    struct entry *known = find(c, digest);
    if (known) {
        touch(c, known);
    } else {
        while (c->bytes + n > c->max_bytes)
            drop(c, list_entry(c->used.next, struct entry, used));
        list_push_back(&c->used, &e->used);
        list_push_back(bucket(c, digest), &e->bucket);
        c->bytes += n;
        e = NULL;
    }
    pthread_mutex_unlock(&c->lock);
    mem_free(e);
}
