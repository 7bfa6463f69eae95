#pragma once
// A whole platform in one process and in memory, as far as libcauce can see: one user, one item.
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "media/media.h"
#include "object/object.h"
#include "rpc/rpc.h"
#include "work/work.h"

#define FAKE_ITEM "0192f3a0-0000-7000-8000-000000000001"
#define FAKE_ROUTE "video-1"
enum { FAKE_MAX_LEAVES = 256, FAKE_MAX_SEGMENTS = 64 };

struct fake_object {
    uint8_t digest[OBJECT_DIGEST_SIZE];
    struct buf bytes, leaves;
};

struct fake {
    struct chan_identity identity;
    struct chan_trust trust;
    struct work_pool *pool;
    struct rpc_server *server;
    char url[RPC_URL_SIZE];
    char address[RPC_URL_SIZE + 64]; // for cauce_connect()

    pthread_mutex_t lock;
    pthread_cond_t changed;
    // logins
    int generation, n_refreshes;
    int64_t life_s; // of access tokens
    // the upload
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size;
    bool has_leaves, is_committed;
    uint8_t leaves[FAKE_MAX_LEAVES * OBJECT_DIGEST_SIZE];
    bool have[FAKE_MAX_LEAVES];
    int n_leaves_received; // over all calls
    int break_puts;        // so many Put calls end with UNAVAILABLE after one message
    // the job
    int n_job_gets;
    bool job_done;
    const char *job_failure;
    // playback
    struct fake_object source;
    struct media_plan *plan; // NULL: direct
    struct fake_object segments[FAKE_MAX_SEGMENTS];
    size_t n_segments;
    bool is_complete;
    bool corrupt;    // flips a bit of what is read
    int break_reads; // so many Read calls end with UNAVAILABLE after one message
    int64_t bytes_read;
    // shop
    int n_charges;
    char charged_key[65];
};

void fake_start(struct fake *f);
void fake_restart(struct fake *f); // the server ends and comes back at the same address
void fake_stop(struct fake *f);
void fake_set_source(struct fake *f, const void *bytes, size_t n);
void fake_make_plan(struct fake *f, uint32_t seconds); // an audio item of so many seconds

// A test's own look at, and change of, what the server's threads work with. (What went over the
// wire in between puts both in order, but no tool can see that.)
#define FAKE_GET(f, field)                                                                         \
    __extension__({                                                                                \
        pthread_mutex_lock(&(f)->lock);                                                            \
        __typeof__((f)->field) value_ = (f)->field;                                                \
        pthread_mutex_unlock(&(f)->lock);                                                          \
        value_;                                                                                    \
    })
#define FAKE_SET(f, field, value)                                                                  \
    do {                                                                                           \
        pthread_mutex_lock(&(f)->lock);                                                            \
        (f)->field = (value);                                                                      \
        pthread_mutex_unlock(&(f)->lock);                                                          \
    } while (0)
