#pragma once
// The role's state and options, and what its files share.
#include <pthread.h>

#include "base/list.h"
#include "object/store.h"
#include "object/upload.h"
#include "origin.h"

struct origin_options {
    struct svc_options common;
    char *kind, *data;
    int64_t max_bytes, min_free, grace_ms, upload_ttl_ms, collect_every_ms;
};

// feeds.c: streams that users send.
struct origin_feeds {
    struct list open; // guarded by origin.mu
    unsigned max, max_per_user;
};

struct origin {
    struct log *log;           // borrowed, as the next three
    struct svc_tokens *tokens; // verifies media tokens
    struct work_timers *timers;
    struct work_pool *pool;
    struct object_store *store;
    int64_t collect_every_ms;
    struct work_strand *strand; // upkeep runs here, one at a time
    struct cancel *stopping;
    pthread_mutex_t mu; // guards timer and feeds.open
    struct origin_feeds feeds;
    struct work_timer *timer; // the next upkeep; NULL while one runs and after the stop
};

#define ORIGIN_MESSAGE_BYTES (4 * OBJECT_LEAF_BYTES) // of data in one message of a stream
#define ORIGIN_MAX_RUNS 1000                         // in one MissingReply

// uploads.c and objects.c
enum status origin_serve_uploads(struct origin *o, struct rpc_server *server,
                                 struct err *err) MUST_CHECK;
enum status origin_serve_objects(struct origin *o, struct rpc_server *server,
                                 struct err *err) MUST_CHECK;
// 32 bytes or INVALID_ARGUMENT
enum status origin_check_digest(const ProtobufCBinaryData *d, struct err *err) MUST_CHECK;

// feeds.c: a place for the stream that a user sends; lives in the handler.
struct origin_feed {
    struct list link;
    struct origin *origin;
    struct rpc_call *call;
    char user[37];
};
void origin_feeds_init(struct origin_feeds *f, unsigned n_threads);
// errors  RESOURCE_EXHAUSTED, with retry-after: no place is free
enum status origin_feed_begin(struct origin *o, struct rpc_call *call, struct origin_feed *ret,
                              struct err *err) MUST_CHECK;
void origin_feed_expect(struct origin_feed *f, int64_t bytes); // from now on: time for so many
void origin_feed_end(struct origin_feed *f);

// stream.c: send [offset, offset + n) of an object, or its leaf digests, as the call's stream. The
// call is deferred and answered when all is sent; no thread waits for a slow reader.
//
// f  consumed always
enum origin_stream { ORIGIN_BYTES, ORIGIN_LEAVES };
enum status origin_stream_start(struct rpc_call *call, struct object_file *f,
                                enum origin_stream what, int64_t offset, int64_t n,
                                struct err *err) MUST_CHECK;

// upkeep.c: garbage and abandoned uploads, every collect_every_ms.
enum status origin_upkeep_start(struct origin *o, struct err *err) MUST_CHECK;
void origin_upkeep_stop(struct origin *o); // waits for a running one, which is cancelled
