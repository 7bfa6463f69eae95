#pragma once
// The object store of one origin: objects by digest, pins that keep them, quota, garbage, scrub.
//
// A store is one directory, used by one process at a time (locked). Nothing half-written is ever
// visible: an object is written aside, hashed while it is written, synced, renamed into place, its
// directory synced, and only then does anybody hear that it exists. A failed fsync is never
// repeated: what it covered counts as not stored.
//
// All functions are for any thread and may block on disk, except where said.
// source: docs/operations.md "Origin directory"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "object/object.h"
#include "work/work.h"

struct object_store;

// What the store does to the disk. Tests fail the n-th of them.
enum object_io_op {
    OBJECT_IO_OPEN,
    OBJECT_IO_READ,
    OBJECT_IO_WRITE,
    OBJECT_IO_RESIZE,
    OBJECT_IO_SYNC,
    OBJECT_IO_RENAME,
    OBJECT_IO_UNLINK,
    OBJECT_IO_SPACE,
};

struct object_store_opts {
    const char *dir;              // made (0700) when missing, parents too
    int64_t max_bytes;            // quota for objects and open uploads; 0 = what the disk has
    int64_t min_free_bytes;       // refuse new bytes when the disk would have less left
    int64_t grace_ms;             // an object without a pin is kept at least this long
    int64_t upload_ttl_ms;        // an upload untouched for this long is dropped
    int64_t (*mono_us)(void *ud); // clock for grace; NULL = time_mono_us
    int64_t (*wall_ms)(void *ud); // clock for upload_ttl; NULL = time_wall_ms
    // Asked before each operation: 0 to go on, or an errno to fail with instead. NULL in
    // production.
    int (*fault)(void *ud, enum object_io_op op, const char *path);
    void *ud;
};

// Open, or make, a store: removes what a crash left behind, reads pins and open uploads, counts.
//
// o       copied; strings too
// errors  FAILED_PRECONDITION: in use by another process, or not a store of this version;
//         PERMISSION_DENIED, ...: what the file system said
enum status object_store_open(const struct object_store_opts *o, struct object_store **ret,
                              struct err *err) MUST_CHECK;
void object_store_free(struct object_store *s); // no call may be running; NULL does nothing
DEFINE_AUTO(struct object_store, object_store_free)

struct object_store_usage {
    int64_t objects, bytes; // stored objects and what they occupy, leaf digests included
    int64_t free_bytes;     // on the disk; -1 when the file system does not say
    int64_t max_bytes;      // the quota; 0 when none was set
    int64_t uploads_open, reserved_bytes; // by open uploads and running writers
    int64_t pins;
    int64_t damaged;      // objects set aside since the start, or found unusable then
    int64_t pins_damaged; // unreadable pin records found at the start: garbage is kept then
};
void object_store_usage(struct object_store *s, struct object_store_usage *ret);

// Can it take bytes and pins? Cheap. False with a reason: disk full, disk failed.
bool object_store_is_healthy(struct object_store *s, char *reason, size_t reason_size);

// ---------------------------------------------------------------- reading

// Does the object exist, and how long is it? Memory only.
bool object_store_stat(struct object_store *s, const uint8_t digest[OBJECT_DIGEST_SIZE],
                       int64_t *ret_size);

struct object_file; // an open object: stays readable when the object is deleted
// errors  NOT_FOUND; DATA_LOSS: the file is not what the store wrote
enum status object_file_open(struct object_store *s, const uint8_t digest[OBJECT_DIGEST_SIZE],
                             struct object_file **ret, struct err *err) MUST_CHECK;
void object_file_free(struct object_file *f);
DEFINE_AUTO(struct object_file, object_file_free)
int64_t object_file_size(const struct object_file *f);
// The bytes lie at [0, size) of this descriptor (borrowed; for sendfile); -1 for a backend without.
int object_file_fd(const struct object_file *f);
// Exactly n bytes; the range must lie inside the object. errors  OUT_OF_RANGE; DATA_LOSS: cut short
enum status object_file_read(struct object_file *f, int64_t offset, void *p, size_t n,
                             struct err *err) MUST_CHECK;
// Digests of n leaves from `first` on, 32 bytes each.
enum status object_file_read_leaves(struct object_file *f, int64_t first, size_t n, void *p,
                                    struct err *err) MUST_CHECK;
// A hint: [offset, offset + n) will be read soon. Never blocks for long, never fails.
void object_file_will_need(struct object_file *f, int64_t offset, int64_t n);

// ---------------------------------------------------------------- writing

struct object_writer; // one object being stored; one thread at a time
// size    exact; reserved until commit or free
// errors  OUT_OF_RANGE; RESOURCE_EXHAUSTED: quota or disk
enum status object_writer_new(struct object_store *s, int64_t size, struct object_writer **ret,
                              struct err *err) MUST_CHECK;
enum status object_writer_write(struct object_writer *w, const void *p, size_t n,
                                struct err *err) MUST_CHECK;
// Make it an object, pinned for `item` (UUID text; NULL: not pinned). Durable on STATUS_OK.
//
// ret_existed  it was here already; may be NULL
// errors       DATA_LOSS: the bytes are not this digest's; INVALID_ARGUMENT: fewer bytes than
//              announced; RESOURCE_EXHAUSTED; INTERNAL: the disk failed, nothing is stored
enum status object_writer_commit(struct object_writer *w, const uint8_t digest[OBJECT_DIGEST_SIZE],
                                 const char *item, bool *ret_existed, struct err *err) MUST_CHECK;
void object_writer_free(struct object_writer *w); // without a commit nothing remains
DEFINE_AUTO(struct object_writer, object_writer_free)

// ---------------------------------------------------------------- pins

#define OBJECT_MAX_PINS_PER_CALL 10000
// Let `item` (UUID text) keep these objects (n x 32 bytes). Durable on STATUS_OK; what is pinned
// already stays so.
//
// ret_changed  how many were not pinned before; may be NULL
// errors       NOT_FOUND: one is not here, nothing was pinned; INVALID_ARGUMENT;
//              RESOURCE_EXHAUSTED; INTERNAL: the disk failed. After these two the change may or may
//              not last: repeat it
enum status object_store_pin(struct object_store *s, const char *item, const uint8_t *digests,
                             size_t n, int64_t *ret_changed, struct err *err) MUST_CHECK;
// n = 0: everything of this item. Objects or pins that are not there are not an error.
enum status object_store_unpin(struct object_store *s, const char *item, const uint8_t *digests,
                               size_t n, int64_t *ret_changed, struct err *err) MUST_CHECK;
bool object_store_is_pinned(struct object_store *s, const char *item,
                            const uint8_t digest[OBJECT_DIGEST_SIZE]);

// ---------------------------------------------------------------- upkeep

// Delete objects that nothing has pinned for the grace time, and rewrite the pin log when most of
// it is history.
//
// errors  FAILED_PRECONDITION: pin records were unreadable at the start, so that nothing can be
//         called garbage safely; CANCELLED
enum status object_store_collect(struct object_store *s, struct cancel *cancel,
                                 int64_t *ret_objects, int64_t *ret_bytes,
                                 struct err *err) MUST_CHECK;

struct object_scrub {
    int64_t checked, bytes;
    const uint8_t *bad; // digest of the object found damaged just now; NULL: none since last time
};
// Re-read and verify every object, or the one of that digest. A damaged one is set aside (kept
// under damaged/, no longer an object; storing it again repairs it).
//
// fn      told after every object; false stops
// errors  NOT_FOUND for a single digest; CANCELLED
enum status object_store_scrub(struct object_store *s, const uint8_t *digest,
                               bool (*fn)(void *ud, const struct object_scrub *now), void *ud,
                               struct cancel *cancel, struct err *err) MUST_CHECK;
