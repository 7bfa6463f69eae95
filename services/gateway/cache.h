#pragma once
// The edge cache: reference counted objects by key, within a quota of bytes, least recently used
// out first. Who misses is told to fetch; who comes meanwhile waits for the same fetch.
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct edge_object { // first member of what is cached
    atomic_uint n_refs;
    size_t bytes; // what it counts for
    void (*destroy)(struct edge_object *o);
};
void edge_object_init(struct edge_object *o, size_t bytes, void (*destroy)(struct edge_object *o));
void edge_object_ref(struct edge_object *o);
void edge_object_unref(struct edge_object *o); // NULL does nothing
DEFINE_AUTO(struct edge_object, edge_object_unref)

struct edge_cache;
#define EDGE_KEY_SIZE 160
// refresh_ms  a hit older than this asks for a refresh as well; 0 = never
struct edge_cache *edge_cache_new(size_t quota_bytes, int64_t refresh_ms) MUST_CHECK;
void edge_cache_free(struct edge_cache *c); // nobody waits any more
DEFINE_AUTO(struct edge_cache, edge_cache_free)

// Called with no lock held; o is borrowed for the call, NULL unless s is OK.
typedef void (*edge_done_fn)(void *ud, enum status s, struct edge_object *o, const struct err *err);

struct edge_answer {
    struct edge_object *hit; // a reference of the caller's own; NULL: done will be called
    bool fetch;              // the caller must fetch it, and call edge_cache_put() exactly once
};
// errors  RESOURCE_EXHAUSTED: done will not be called
enum status edge_cache_get(struct edge_cache *c, const char *key, edge_done_fn done, void *ud,
                           struct edge_answer *ret, struct err *err) MUST_CHECK;
// The end of a fetch. o is consumed. Waiters are called before it returns. A refresh that failed
// leaves what is there, unless it is NOT_FOUND or FAILED_PRECONDITION: then it is dropped.
void edge_cache_put(struct edge_cache *c, const char *key, enum status s, struct edge_object *o,
                    const struct err *err);

struct edge_stats {
    uint64_t hits, misses, joined, evicted;
    size_t bytes, objects;
};
void edge_cache_get_stats(struct edge_cache *c, struct edge_stats *ret);
