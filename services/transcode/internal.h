#pragma once
// What the worker's own files share.
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "cauce/transcode.rpc.h"

#include "base/list.h"
#include "log/log.h"
#include "media/plan.h"
#include "object/object.h"
#include "rpc/rpc.h"
#include "service/service.h"
#include "work/work.h"

#define WORKER_MAX_SLOTS 256

struct transcode_options {
    struct svc_options common;
    int64_t slots;        // 0: one per core
    char *codec;          // path of cauce-codec; NULL: beside this program
    char *scratch;        // folder for what may be lost; NULL: nothing is kept between tasks
    int64_t window_bytes; // of a source in memory at once, per slot
    int64_t cache_bytes;  // of sources kept between tasks, in all
};

// The world outside, so that tests can make one of their own.
struct worker_env {
    struct log *log;
    unsigned slots;
    struct codec_host *codec;
    const char *scratch;       // existing folder, or NULL
    int64_t window_bytes;      // 0: lib/media's
    struct leaf_cache *leaves; // or NULL
    const char *build, *cpu_class;
    struct rpc_client *(*orchestrator)(void *ud, struct err *err);
    struct rpc_client *(*origin)(void *ud, const Common__Endpoint *at, struct err *err);
    void *ud;
};

struct worker;
enum status worker_new(const struct worker_env *env, struct worker **ret,
                       struct err *err) MUST_CHECK; // starts its threads
void worker_drain(struct worker *w);                // gives leases back; never blocks
void worker_free(struct worker *w);                 // joins

// ---- one leased task (task.c) ----
// YIELD: what is made is published, the rest given back. The others drop everything at once.
enum stop_reason { STOP_NONE = 0, STOP_YIELD, STOP_LOST, STOP_DRAIN };
// Shared between the slot that works on it and the keeper that renews it.
struct run {
    struct list link; // worker.runs
    const struct worker_env *env;
    const Transcode__Task *task; // borrowed from the lease's reply
    unsigned threads;
    struct cancel *cancel; // of its calls
    int stop_fd;           // readable: the child must stop
    int stop;              // enum stop_reason, atomic
    bool yield;            // stop after the running segment; atomic
    int stage;             // Transcode__Stage, atomic
    int64_t done, total;   // of the stage, atomic
};
enum status run_init(struct run *r, const struct worker_env *env, const Transcode__Task *task,
                     unsigned threads, struct err *err) MUST_CHECK;
void run_done(struct run *r);
void run_stop(struct run *r, enum stop_reason why); // any thread
enum stop_reason run_stopped(const struct run *r);
void run_yield(struct run *r); // any thread
void run_progress(struct run *r, Transcode__Stage stage, int64_t done, int64_t total);

struct run_verdict {
    Transcode__FailClass class; // unspecified: it is done
    char text[240];
};
// Do the task. On success the request holds its results (memory of the arena).
void run_task(struct run *r, struct arena *a, Transcode__CompleteRequest *ret,
              struct run_verdict *verdict);

// ---- trees of sources, kept between the tasks of one source (tree_cache.c) ----
// Leaf digests as they were saved; the caller verifies them. False: not there, or of another size.
bool tree_cache_load(const char *dir, const uint8_t digest[32], struct buf *ret);
// Best effort: a folder that is full or gone costs a call more per task.
void tree_cache_save(const char *dir, const uint8_t digest[32], const struct buf *leaves);

// ---- verified leaves of sources, in memory (leaf_cache.c); any thread ----
struct leaf_cache;
struct leaf_cache *leaf_cache_new(size_t max_bytes); // NULL: out of memory
void leaf_cache_free(struct leaf_cache *c);
// The n bytes with that leaf digest. False: not there.
bool leaf_cache_get(struct leaf_cache *c, const uint8_t digest[32], void *dst, size_t n);
void leaf_cache_put(struct leaf_cache *c, const uint8_t digest[32], const void *bytes, size_t n);

// ---- reading a source (source.c): verified ranges, read ahead; one thread at a time ----
struct source;
enum status source_open(struct run *r, struct source **ret, struct err *err) MUST_CHECK;
void source_free(struct source *s);
DEFINE_AUTO(struct source, source_free)
// errors  DATA_LOSS: no origin has the right bytes; UNAVAILABLE; CANCELLED; OUT_OF_RANGE
enum status source_read(struct source *s, int64_t offset, size_t len, void *dst,
                        struct err *err) MUST_CHECK;
double source_seconds(const struct source *s); // spent waiting for bytes

// ---- what a check looks at (verify.c) ----
struct checks;
// Fetches the segments that the task names. errors  FAILED_PRECONDITION: some are not published any
// more; those of source_read()
enum status checks_new(struct run *r, const struct media_plan *plan, struct checks **ret,
                       struct err *err) MUST_CHECK;
void checks_free(struct checks *c);
int64_t checks_total(const struct checks *c); // bytes of the source with all that is behind it
// As source_read(), of that.
enum status checks_read(const struct checks *c, struct source *s, int64_t offset, size_t len,
                        void *dst, struct err *err) MUST_CHECK;

// ---- storing results (sink.c): a queue of segments and a thread that puts them ----
struct sink;
// On the sink's thread, with what was stored since the last call, whenever nothing is left to
// store. After UNAVAILABLE or DEADLINE_EXCEEDED it is called with the same and more; other failures
// end the sink.
typedef enum status (*sink_stored_fn)(void *ud, Transcode__Output **outputs, size_t n,
                                      struct err *err);
// max  outputs that will be put, in all
// fn   NULL: outputs are kept for sink_rest()
enum status sink_open(struct run *r, size_t max, sink_stored_fn fn, void *ud, struct sink **ret,
                      struct err *err) MUST_CHECK;
// Copies bytes; waits while much is queued. Fails with what storing failed with.
//
// out  borrowed until the sink is freed; its digest's 32 bytes are filled
enum status sink_put(struct sink *s, const void *bytes, size_t n, Transcode__Output *out,
                     struct err *err) MUST_CHECK;
// Waits until everything is stored and has been offered to fn.
enum status sink_flush(struct sink *s, struct err *err) MUST_CHECK;
// After sink_flush(): what is stored and fn did not take. Borrowed.
Transcode__Output **sink_rest(struct sink *s, size_t *ret_n);
void sink_free(struct sink *s); // drops what is queued
DEFINE_AUTO(struct sink, sink_free)
double sink_seconds(const struct sink *s); // spent storing; after sink_flush()
// One object whose bytes come from elsewhere (a moved source).
typedef enum status (*sink_fill_fn)(void *ud, int64_t offset, size_t len, void *dst,
                                    struct err *err);
enum status sink_copy(struct run *r, const uint8_t digest[32], int64_t size, sink_fill_fn fill,
                      void *ud, struct err *err) MUST_CHECK;
