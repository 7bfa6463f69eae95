#pragma once
// What the files of lib/object share: disk operations, hash table, index, pin log, backend, store.
#include <pthread.h>
#include <sys/types.h>

#include "base/list.h"
#include "object/store.h"
#include "object/upload.h"

// ---------------------------------------------------------------- io.c: the disk, with faults
// Paths are relative to dirfd. Every error names the path.
struct io {
    int (*fault)(void *ud, enum object_io_op op, const char *path);
    void *ud;
};
enum status io_open(const struct io *io, int dirfd, const char *path, int flags, int *ret,
                    struct err *err) MUST_CHECK;
enum status io_mkdir(const struct io *io, int dirfd, const char *path, struct err *err) MUST_CHECK;
enum status io_read(const struct io *io, int fd, const char *path, int64_t at, void *p, size_t n,
                    struct err *err) MUST_CHECK; // exactly n bytes, else DATA_LOSS
enum status io_write(const struct io *io, int fd, const char *path, int64_t at, const void *p,
                     size_t n, struct err *err) MUST_CHECK;
enum status io_resize(const struct io *io, int fd, const char *path, int64_t size,
                      struct err *err) MUST_CHECK;
// INTERNAL when it fails, whatever errno says: what it covered counts as lost.
enum status io_sync(const struct io *io, int fd, const char *path, struct err *err) MUST_CHECK;
enum status io_sync_dir(const struct io *io, int dirfd, const char *path,
                        struct err *err) MUST_CHECK;
enum status io_rename(const struct io *io, int dirfd, const char *from, const char *to,
                      struct err *err) MUST_CHECK;
enum status io_unlink(const struct io *io, int dirfd, const char *path,
                      struct err *err) MUST_CHECK;                 // what is not there is fine
void io_discard(const struct io *io, int dirfd, const char *path); // else the next start does it
// A small file, all or nothing: written as `temp`, synced, renamed; the folder of `path` synced.
enum status io_write_file(const struct io *io, int dirfd, const char *temp, const char *path,
                          const char *folder, const void *p, size_t n, struct err *err) MUST_CHECK;
// Bytes an ordinary user may still write; -1 when unknown. ro: mounted read-only.
int64_t io_space(const struct io *io, int dirfd, bool *ret_ro);
// fn for each entry of a folder but . and ..; a non-OK return stops with it.
typedef enum status (*io_each_fn)(void *ud, const char *name, struct err *err);
enum status io_each(int dirfd, const char *path, io_each_fn fn, void *ud,
                    struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- htab.c: chained hash table
struct hnode {
    struct hnode *next;
    uint64_t hash;
};
struct htab {
    struct hnode **slots;
    size_t n_slots, n; // n_slots is a power of two
};
bool htab_init(struct htab *t) MUST_CHECK;
void htab_done(struct htab *t); // the nodes are the caller's
struct hnode *htab_first(const struct htab *t, uint64_t hash);
struct hnode *htab_next(const struct hnode *n); // same hash
void htab_insert(struct htab *t, struct hnode *n);
void htab_remove(struct htab *t, struct hnode *n);

// ---------------------------------------------------------------- index.c: objects and pins in
// memory
#define ITEM_SIZE 16 // an item's UUID as bytes

enum entry_state {
    ENTRY_ABSENT,     // pins or holds speak of it, but it is not here
    ENTRY_COMMITTING, // one thread renames it into place; others wait
    ENTRY_LIVE,
    ENTRY_DELETING, // one thread removes it; others wait
};
struct entry {
    struct hnode node;
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size;
    int64_t idle_since_us; // when it was last pinned or held, or came
    uint32_t n_pins;
    uint32_t n_holds; // uploads that found it here and were not finished yet
    enum entry_state state;
};
struct item {
    struct hnode node;
    uint8_t id[ITEM_SIZE];
    struct list pins;
};
struct pin {
    struct hnode node;
    struct list of_item;
    struct entry *entry;
    struct item *item;
};
struct index {
    struct htab entries, items, pins;
    uint64_t seed; // so that nobody can choose names that share a slot
};
bool index_init(struct index *ix) MUST_CHECK;
void index_done(struct index *ix);
struct entry *index_find(const struct index *ix, const uint8_t *digest);
struct entry *index_get(struct index *ix, const uint8_t *digest); // made when missing; NULL: memory
void index_release(struct index *ix, struct entry *e);            // freed when nothing speaks of it
struct item *index_find_item(const struct index *ix, const uint8_t *item);
struct pin *index_find_pin(const struct index *ix, const uint8_t *item, const uint8_t *digest);
bool index_add_pin(struct index *ix, const uint8_t *item, struct entry *e) MUST_CHECK;
void index_remove_pin(struct index *ix, struct pin *p, int64_t now_us);

// ---------------------------------------------------------------- pins.c: the log on disk
enum pin_op { PIN_ADD = 1, PIN_REMOVE = 2, PIN_REMOVE_ITEM = 3 };
#define PIN_RECORD_SIZE 64

struct pin_log {
    const struct io *io;
    int dirfd, fd;
    int64_t end;             // of what is durable
    int64_t n_records;       // up to there
    int64_t n_damaged;       // found by pin_log_open()
    struct buf pending;      // queued, in order
    struct buf batch;        // being written, or left over by a write that failed: goes first
    uint64_t queued, synced; // records since the start
    bool syncing, failed;
};
typedef enum status (*pin_log_fn)(void *ud, enum pin_op op, const uint8_t *item,
                                  const uint8_t *digest, struct err *err);
enum status pin_log_open(struct pin_log *l, const struct io *io, int dirfd, pin_log_fn fn, void *ud,
                         struct err *err) MUST_CHECK;
void pin_log_done(struct pin_log *l);
// The next three: the store's mutex is held. Room for n records, so that queueing them cannot fail.
enum status pin_log_reserve(struct pin_log *l, size_t n, struct err *err) MUST_CHECK;
void pin_log_queue(struct pin_log *l, enum pin_op op, const uint8_t *item, const uint8_t *digest);
// Returns once all that was queued before is on disk. Releases the mutex meanwhile; callers that
// come together share one sync.
enum status pin_log_commit(struct pin_log *l, pthread_mutex_t *mu, pthread_cond_t *cond,
                           struct err *err) MUST_CHECK;
// Replace the log by one record for each pin. Same locking.
enum status pin_log_compact(struct pin_log *l, const struct index *ix, pthread_mutex_t *mu,
                            pthread_cond_t *cond, struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- backend: where objects live
// An object as stored is its bytes, its leaf digests, and a footer that says its size; so that one
// rename or one PUT makes it whole. Objects are always staged in a local file first.
#define FOOTER_SIZE 16
int64_t stored_bytes(int64_t size); // bytes of the staged file
// The size whose stored_bytes() that is; -1 for none.
int64_t stored_size(int64_t file_bytes);
void footer_make(uint8_t ret[FOOTER_SIZE], int64_t size);

struct backend;
struct object_file {
    struct backend *backend;
    int64_t size;
    int fd; // -1: the backend has none
};
struct backend_ops {
    // Take the staged file, synced already; durable on OK. After an error it is where it was,
    // unless the disk refuses that as well.
    enum status (*publish)(struct backend *b, const char *staged, const uint8_t *digest,
                           struct err *err);
    enum status (*open)(struct backend *b, const uint8_t *digest, struct object_file **ret,
                        struct err *err);
    enum status (*read)(struct object_file *f, int64_t at, void *p, size_t n, struct err *err);
    void (*close)(struct object_file *f);
    enum status (*remove)(struct backend *b, const uint8_t *digest, struct err *err);
    enum status (*set_aside)(struct backend *b, const uint8_t *digest, struct err *err);
    // size -1: something of that name is there but cannot be an object
    enum status (*each)(struct backend *b,
                        enum status (*fn)(void *ud, const uint8_t *digest, int64_t size,
                                          struct err *err),
                        void *ud, struct err *err);
    void (*free)(struct backend *b);
};
struct backend {
    const struct backend_ops *ops;
};
enum status backend_fs_new(const struct io *io, int dirfd, struct backend **ret,
                           struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- store.c
struct object_store {
    struct object_store_opts o;
    struct io io;
    int dirfd, lock_fd;
    struct backend *backend;
    pthread_mutex_t mu; // guards all that follows; held for memory only, never for the disk
    pthread_cond_t cond;
    struct index ix;
    struct pin_log log;
    struct htab uploads;
    int64_t n_objects, used_bytes; // ENTRY_LIVE
    int64_t reserved_bytes;        // of the quota
    int64_t unwritten_bytes;       // reserved but not on the disk yet
    int64_t n_damaged;
    uint64_t temp_seq;
};

int64_t store_now_us(const struct object_store *s);
int64_t store_wall_ms(const struct object_store *s);
bool item_parse(const char *item, uint8_t ret[ITEM_SIZE]); // UUID text
void store_temp_name(struct object_store *s, char *dst, size_t size);
// Quota and disk; mutex not held.
enum status store_reserve(struct object_store *s, int64_t bytes, struct err *err) MUST_CHECK;
void store_unreserve(struct object_store *s, int64_t reserved, int64_t unwritten);
void store_wrote(struct object_store *s, int64_t bytes);
// Mutex held. Wait for a change; UNAVAILABLE when none comes for 30 s.
enum status store_wait(struct object_store *s, const char *what, struct err *err) MUST_CHECK;
// Mutex held: the entry once nobody is changing it; NULL with OK when there is none.
enum status store_settled(struct object_store *s, const uint8_t *digest, struct entry **ret,
                          struct err *err) MUST_CHECK;
// Mutex held: pin a live entry and queue the record.
enum status store_pin_live(struct object_store *s, const uint8_t *item, struct entry *e,
                           struct err *err) MUST_CHECK;
// Sync the staged file (whole, footer included) and make it the object of that digest; pin it for
// item unless NULL. The staged file is gone only when OK and not existed.
enum status store_publish(struct object_store *s, int fd, const char *staged, const uint8_t *digest,
                          int64_t size, const uint8_t *item, bool *ret_existed,
                          struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- upload.c
enum status uploads_load(struct object_store *s, struct err *err) MUST_CHECK;
void uploads_done(struct object_store *s);
int64_t uploads_n_open(const struct object_store *s); // mutex held
