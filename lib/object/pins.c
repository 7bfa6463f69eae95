// The pin log: what items keep, as an append-only file of fixed records.
//
//   record (64 bytes): op 1 | zero 7 | item 16 | digest 32 | check 8 (BLAKE2b-64 of the 56 before)
//
// Records are queued under the store's mutex, so that the file's order is the order in which memory
// changed. The first caller that needs them durable writes and syncs for all (leader); the others
// wait for it. A write that fails (disk full) leaves its batch in place: the caller hears of it,
// and the next commit writes the batch again at the same offset. A sync that fails ends the log:
// pins can be changed again after a restart, which reads what really is on the disk.
//
// A torn record at the end is what a crash leaves and is cut off. An unreadable record before
// readable ones is damage: it may have been a pin, so nothing is collected as garbage afterwards.
#include "object/internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

#define LOG_PATH "pins.log"
#define TEMP_PATH "tmp/pins.log"
#define MAX_QUEUED_BYTES ((size_t)64 << 20)
#define CHECK_AT (PIN_RECORD_SIZE - 8)

static void record_check(const uint8_t *rec, uint8_t ret[8])
{
    crypto_blake2b(ret, 8, rec, CHECK_AT, NULL, 0, NULL);
}

static void record_make(uint8_t rec[PIN_RECORD_SIZE], enum pin_op op, const uint8_t *item,
                        const uint8_t *digest)
{
    memset(rec, 0, PIN_RECORD_SIZE);
    rec[0] = (uint8_t)op;
    memcpy(rec + 8, item, ITEM_SIZE);
    if (digest)
        memcpy(rec + 24, digest, OBJECT_DIGEST_SIZE);
    record_check(rec, rec + CHECK_AT);
}

static bool record_is_good(const uint8_t *rec)
{
    uint8_t check[8];
    record_check(rec, check);
    return memcmp(check, rec + CHECK_AT, 8) == 0 && rec[0] >= PIN_ADD && rec[0] <= PIN_REMOVE_ITEM;
}

struct loader {
    pin_log_fn fn;
    void *ud;
    int64_t n_bad_run; // unreadable records since the last good one
    int64_t good_end;
};

static enum status load_record(struct pin_log *l, struct loader *ld, const uint8_t *rec, int64_t at,
                               struct err *err)
{
    if (!record_is_good(rec)) {
        ld->n_bad_run++;
        return STATUS_OK;
    }
    l->n_damaged += ld->n_bad_run;
    ld->n_bad_run = 0;
    ld->good_end = at + PIN_RECORD_SIZE;
    return ld->fn(ld->ud, (enum pin_op)rec[0], rec + 8, rec + 24, err);
}

static enum status load(struct pin_log *l, struct loader *ld, int64_t bytes, struct err *err)
{
    enum { CHUNK = 1024 * PIN_RECORD_SIZE };
    AUTO(mem_free_p) uint8_t *chunk = mem_alloc(CHUNK);
    if (!chunk)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", LOG_PATH);
    int64_t whole = bytes - bytes % PIN_RECORD_SIZE;
    for (int64_t at = 0; at < whole;) {
        size_t n = whole - at < CHUNK ? (size_t)(whole - at) : CHUNK;
        enum status s = io_read(l->io, l->fd, LOG_PATH, at, chunk, n, err);
        for (size_t i = 0; s == STATUS_OK && i < n; i += PIN_RECORD_SIZE)
            s = load_record(l, ld, chunk + i, at + (int64_t)i, err);
        if (s != STATUS_OK)
            return s;
        at += (int64_t)n;
    }
    return STATUS_OK;
}

enum status pin_log_open(struct pin_log *l, const struct io *io, int dirfd, pin_log_fn fn, void *ud,
                         struct err *err)
{
    *l = (struct pin_log){.io = io, .dirfd = dirfd, .fd = -1};
    buf_init(&l->pending, MAX_QUEUED_BYTES);
    buf_init(&l->batch, 2 * MAX_QUEUED_BYTES);
    enum status s = io_open(io, dirfd, LOG_PATH, O_RDWR | O_CREAT, &l->fd, err);
    if (s != STATUS_OK)
        return s;
    struct stat st;
    if (fstat(l->fd, &st) != 0)
        return err_errno(err, errno, "stat %s", LOG_PATH);
    struct loader ld = {.fn = fn, .ud = ud};
    s = load(l, &ld, st.st_size, err);
    if (s != STATUS_OK)
        return s;
    l->end = ld.good_end;
    l->n_records = l->end / PIN_RECORD_SIZE;
    if (st.st_size != l->end)
        s = io_resize(io, l->fd, LOG_PATH, l->end, err);
    return s;
}

void pin_log_done(struct pin_log *l)
{
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
    buf_done(&l->pending);
    buf_done(&l->batch);
}

static enum status is_usable(const struct pin_log *l, struct err *err)
{
    return l->failed ? err_set(err, STATUS_INTERNAL,
                               "pin log: the disk failed; restart to go on from what is stored")
                     : STATUS_OK;
}

enum status pin_log_reserve(struct pin_log *l, size_t n, struct err *err)
{
    enum status s = is_usable(l, err);
    if (s == STATUS_OK && n > 0 && !buf_reserve(&l->pending, n * PIN_RECORD_SIZE)) {
        l->pending.failed = false;
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "pin log: no memory for %zu records", n);
    }
    return s;
}

void pin_log_queue(struct pin_log *l, enum pin_op op, const uint8_t *item, const uint8_t *digest)
{
    uint8_t rec[PIN_RECORD_SIZE];
    record_make(rec, op, item, digest);
    bool ok = buf_append(&l->pending, rec, sizeof rec);
    assert(ok); // reserved
    (void)ok;
    l->queued++;
}

// Lead: write and sync one batch, the mutex released meanwhile.
static enum status write_batch(struct pin_log *l, pthread_mutex_t *mu, pthread_cond_t *cond,
                               struct err *err)
{
    if (l->batch.len == 0) {
        struct buf empty = l->batch;
        l->batch = l->pending;
        l->pending = empty;
        l->pending.limit = MAX_QUEUED_BYTES;
        l->batch.limit = 2 * MAX_QUEUED_BYTES;
    }
    l->syncing = true;
    pthread_mutex_unlock(mu);
    enum status s = io_write(l->io, l->fd, LOG_PATH, l->end, l->batch.data, l->batch.len, err);
    bool written = s == STATUS_OK;
    if (written)
        s = io_sync(l->io, l->fd, LOG_PATH, err);
    pthread_mutex_lock(mu);
    l->syncing = false;
    if (s == STATUS_OK) {
        int64_t n = (int64_t)(l->batch.len / PIN_RECORD_SIZE);
        l->end += (int64_t)l->batch.len;
        l->n_records += n;
        l->synced += (uint64_t)n;
        buf_reset(&l->batch);
    } else if (written) {
        l->failed = true;
    }
    pthread_cond_broadcast(cond);
    return s;
}

enum status pin_log_commit(struct pin_log *l, pthread_mutex_t *mu, pthread_cond_t *cond,
                           struct err *err)
{
    uint64_t mine = l->queued;
    while (l->synced < mine) {
        enum status s = is_usable(l, err);
        if (s == STATUS_OK && l->syncing)
            pthread_cond_wait(cond, mu); // the leader always wakes us: bounded by its disk
        else if (s == STATUS_OK)
            s = write_batch(l, mu, cond, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

static bool snapshot(const struct index *ix, struct buf *out)
{
    for (size_t i = 0; i < ix->pins.n_slots; i++)
        for (struct hnode *n = ix->pins.slots[i]; n; n = n->next) {
            const struct pin *p = list_entry(n, struct pin, node);
            uint8_t rec[PIN_RECORD_SIZE];
            record_make(rec, PIN_ADD, p->item->id, p->entry->digest);
            if (!buf_append(out, rec, sizeof rec))
                return false;
        }
    return true;
}

// The new log is complete and in place, or the old one stays. ret_fd only when OK.
static enum status replace(struct pin_log *l, const struct buf *content, int *ret_fd,
                           bool *ret_unclear, struct err *err)
{
    int fd = -1;
    *ret_unclear = false;
    enum status s = io_open(l->io, l->dirfd, TEMP_PATH, O_RDWR | O_CREAT | O_TRUNC, &fd, err);
    if (s != STATUS_OK)
        return s;
    s = io_write(l->io, fd, TEMP_PATH, 0, content->data, content->len, err);
    if (s == STATUS_OK)
        s = io_sync(l->io, fd, TEMP_PATH, err);
    if (s == STATUS_OK)
        s = io_rename(l->io, l->dirfd, TEMP_PATH, LOG_PATH, err);
    if (s == STATUS_OK) {
        s = io_sync_dir(l->io, l->dirfd, ".", err);
        *ret_unclear = s != STATUS_OK; // which of the two a restart finds, nobody knows
    }
    if (s != STATUS_OK) {
        close(fd);
        io_discard(l->io, l->dirfd, TEMP_PATH);
        return s;
    }
    *ret_fd = fd;
    return STATUS_OK;
}

enum status pin_log_compact(struct pin_log *l, const struct index *ix, pthread_mutex_t *mu,
                            pthread_cond_t *cond, struct err *err)
{
    enum status s = is_usable(l, err);
    if (s != STATUS_OK || l->syncing)
        return s; // busy: the next time will do
    struct buf content;
    buf_init(&content, (ix->pins.n + 1) * PIN_RECORD_SIZE);
    // What is queued is part of the snapshot: it goes into the batch, which the new log replaces.
    if (!snapshot(ix, &content) ||
        (l->pending.len > 0 && !buf_append(&l->batch, l->pending.data, l->pending.len))) {
        l->batch.failed = false;
        buf_done(&content);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "pin log: no memory to rewrite it");
    }
    buf_reset(&l->pending);
    l->syncing = true;
    pthread_mutex_unlock(mu);
    int fd = -1;
    bool unclear;
    s = replace(l, &content, &fd, &unclear, err);
    pthread_mutex_lock(mu);
    l->syncing = false;
    if (s == STATUS_OK) {
        close(l->fd);
        l->fd = fd;
        l->end = (int64_t)content.len;
        l->n_records = l->end / PIN_RECORD_SIZE;
        l->synced += l->batch.len / PIN_RECORD_SIZE;
        buf_reset(&l->batch);
    }
    l->failed |= unclear;
    pthread_cond_broadcast(cond);
    buf_done(&content);
    return s;
}
