#pragma once
// Uploads: objects that arrive leaf by leaf, over days and several connections if need be.
//
// First the leaf digests (checked against the object's digest), then leaves in any order, each
// checked before it is written; a leaf counts once it is on disk. Everything survives a crash.
// Several connections may feed one upload. Any thread; all of it may block on disk.
// source: docs/protocol.md "Uploads", docs/operations.md "Origin directory"
#include "object/store.h"

struct object_upload_spec {
    const char *id, *owner, *item; // UUID text
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size;
    // The digest alone earns nothing: when the object is here, OBJECT_PROOF_LEAVES of its leaves,
    // chosen at random, must be put before finish. What comes by another way later does not count.
    bool prove;
};
#define OBJECT_PROOF_LEAVES 8 // of all: fewer when the object has fewer
struct object_upload_info {
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size;
    bool existed;     // the object is here: nothing to send (never with `prove`, unless done)
    bool need_leaves; // send the leaf digests first
    int64_t n_have, missing_bytes;
};

// Make room, or find that the object is here. The same spec again answers the same; `prove` holds
// as it was given first.
//
// errors  INVALID_ARGUMENT; OUT_OF_RANGE; ALREADY_EXISTS: this id with another spec;
//         RESOURCE_EXHAUSTED: quota or disk
enum status object_upload_create(struct object_store *s, const struct object_upload_spec *spec,
                                 struct object_upload_info *ret, struct err *err) MUST_CHECK;
// Make the object of the complete upload and pin it for the item. The same answer when repeated,
// until the upload's record expires.
//
// errors  NOT_FOUND; FAILED_PRECONDITION: leaves are missing; RESOURCE_EXHAUSTED; INTERNAL
enum status object_upload_finish(struct object_store *s, const char *id,
                                 struct object_upload_info *ret, struct err *err) MUST_CHECK;
// Forget it and its bytes; an object made of it stays. Unknown ids are fine.
enum status object_upload_drop(struct object_store *s, const char *id, struct err *err) MUST_CHECK;
// Drop what was not touched for upload_ttl_ms.
enum status object_upload_expire(struct object_store *s, int64_t *ret_dropped,
                                 struct err *err) MUST_CHECK;

// One connection's use of an upload; one thread at a time.
struct object_upload;
// owner   must be the upload's
// errors  NOT_FOUND: unknown, or another owner's (the two look alike)
enum status object_upload_open(struct object_store *s, const char *id, const char *owner,
                               struct object_upload **ret, struct err *err) MUST_CHECK;
// Syncs nothing: what was put since the last object_upload_sync() does not count.
void object_upload_free(struct object_upload *u);
DEFINE_AUTO(struct object_upload, object_upload_free)

void object_upload_info(struct object_upload *u, struct object_upload_info *ret);

struct object_run {
    int64_t first, count; // leaves
};
// Runs of leaves that are missing, ascending. Returns how many were written; *ret_truncated when
// there are more than max.
size_t object_upload_missing(struct object_upload *u, struct object_run *runs, size_t max,
                             bool *ret_truncated);

// The leaf digests, in order, in pieces of any size; then _leaves_end(), after which they are
// durable. A newer connection that does the same takes over.
//
// errors  DATA_LOSS: they are not this object's; ABORTED: another connection took over;
//         RESOURCE_EXHAUSTED, INTERNAL
enum status object_upload_leaves_add(struct object_upload *u, const void *p, size_t n,
                                     struct err *err) MUST_CHECK;
enum status object_upload_leaves_end(struct object_upload *u, struct err *err) MUST_CHECK;

// Whole leaves from `leaf` on. What is here already is passed over. Syncs by itself every 16 MiB.
//
// errors  FAILED_PRECONDITION: no leaf digests yet; INVALID_ARGUMENT: outside the object or cut;
//         DATA_LOSS: names the leaf that does not match its digest (those before it are kept);
//         RESOURCE_EXHAUSTED; INTERNAL
enum status object_upload_put(struct object_upload *u, int64_t leaf, const void *p, size_t n,
                              struct err *err) MUST_CHECK;
// What was put through this connection is durable on STATUS_OK.
enum status object_upload_sync(struct object_upload *u, struct err *err) MUST_CHECK;
// Leaves that became durable through this connection.
int64_t object_upload_n_stored(const struct object_upload *u);
