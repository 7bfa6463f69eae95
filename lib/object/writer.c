// Storing an object whose bytes come in order: staged under tmp/, hashed on the way, published.
#include "object/internal.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

enum status store_pin_live(struct object_store *s, const uint8_t *item, struct entry *e,
                           struct err *err)
{
    e->idle_since_us = store_now_us(s);
    if (!item || index_find_pin(&s->ix, item, e->digest))
        return STATUS_OK;
    enum status st = pin_log_reserve(&s->log, 1, err);
    if (st != STATUS_OK)
        return st;
    if (!index_add_pin(&s->ix, item, e))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "pin: out of memory");
    pin_log_queue(&s->log, PIN_ADD, item, e->digest);
    return STATUS_OK;
}

// Mutex held; the entry is COMMITTING and ours.
static enum status commit_entry(struct object_store *s, struct entry *e, int fd, const char *staged,
                                int64_t size, struct err *err)
{
    e->state = ENTRY_COMMITTING;
    pthread_mutex_unlock(&s->mu);
    enum status st = io_sync(&s->io, fd, staged, err);
    if (st == STATUS_OK)
        st = s->backend->ops->publish(s->backend, staged, e->digest, err);
    pthread_mutex_lock(&s->mu);
    e->state = st == STATUS_OK ? ENTRY_LIVE : ENTRY_ABSENT;
    if (st == STATUS_OK) {
        e->size = size;
        e->idle_since_us = store_now_us(s);
        s->n_objects++;
        s->used_bytes += stored_bytes(size);
    } else {
        index_release(&s->ix, e);
    }
    pthread_cond_broadcast(&s->cond);
    return st;
}

static enum status publish_locked(struct object_store *s, int fd, const char *staged,
                                  const uint8_t *digest, int64_t size, const uint8_t *item,
                                  bool *ret_existed, struct err *err)
{
    struct entry *e;
    enum status st = store_settled(s, digest, &e, err);
    if (st != STATUS_OK)
        return st;
    *ret_existed = e && e->state == ENTRY_LIVE;
    if (!e && !(e = index_get(&s->ix, digest)))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "object: out of memory");
    if (!*ret_existed)
        st = commit_entry(s, e, fd, staged, size, err);
    if (st == STATUS_OK)
        st = store_pin_live(s, item, e, err);
    if (st == STATUS_OK && item)
        st = pin_log_commit(&s->log, &s->mu, &s->cond, err);
    return st;
}

enum status store_publish(struct object_store *s, int fd, const char *staged, const uint8_t *digest,
                          int64_t size, const uint8_t *item, bool *ret_existed, struct err *err)
{
    pthread_mutex_lock(&s->mu);
    enum status st = publish_locked(s, fd, staged, digest, size, item, ret_existed, err);
    pthread_mutex_unlock(&s->mu);
    return st;
}

struct object_writer {
    struct object_store *store;
    int fd;
    char path[40];
    int64_t size, written; // of the staged file's bytes, written counts leaf digests too
    struct object_hasher hasher;
    struct buf leaves;
    bool failed;
};

enum status object_writer_new(struct object_store *s, int64_t size, struct object_writer **ret,
                              struct err *err)
{
    if (size < 0 || size > OBJECT_MAX_BYTES)
        return err_set(err, STATUS_OUT_OF_RANGE, "object: %lld bytes", (long long)size);
    struct object_writer *w = mem_alloc(sizeof *w);
    if (!w)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "object: out of memory");
    enum status st = store_reserve(s, stored_bytes(size), err);
    if (st != STATUS_OK) {
        mem_free(w);
        return st;
    }
    AUTO(object_writer_free_p) struct object_writer *owned = w;
    w->store = s;
    w->fd = -1;
    w->size = size;
    buf_init(&w->leaves, (size_t)object_n_leaves(size) * OBJECT_DIGEST_SIZE + FOOTER_SIZE);
    object_hasher_init(&w->hasher, &w->leaves);
    store_temp_name(s, w->path, sizeof w->path);
    st = io_open(&s->io, s->dirfd, w->path, O_RDWR | O_CREAT | O_EXCL, &w->fd, err);
    if (st == STATUS_OK)
        *ret = TAKE(owned);
    return st;
}

static enum status writer_append(struct object_writer *w, const void *p, size_t n, struct err *err)
{
    enum status st = io_write(&w->store->io, w->fd, w->path, w->written, p, n, err);
    if (st == STATUS_OK) {
        w->written += (int64_t)n;
        store_wrote(w->store, (int64_t)n);
    }
    return st;
}

enum status object_writer_write(struct object_writer *w, const void *p, size_t n, struct err *err)
{
    if (w->failed)
        return err_set(err, STATUS_FAILED_PRECONDITION, "object: writing it failed before");
    enum status st = STATUS_OK;
    if (n > (uint64_t)(w->size - w->hasher.size))
        st = err_set(err, STATUS_INVALID_ARGUMENT, "object: more than the announced %lld bytes",
                     (long long)w->size);
    if (st == STATUS_OK)
        st = object_hasher_update(&w->hasher, p, n, err);
    if (st == STATUS_OK)
        st = writer_append(w, p, n, err);
    w->failed = st != STATUS_OK;
    return st;
}

static enum status writer_finish(struct object_writer *w, const uint8_t *digest, struct err *err)
{
    if (w->hasher.size != w->size)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "object: %lld of the announced %lld bytes came", (long long)w->hasher.size,
                       (long long)w->size);
    uint8_t got[OBJECT_DIGEST_SIZE], footer[FOOTER_SIZE];
    enum status st = object_hasher_final(&w->hasher, got, err);
    if (st == STATUS_OK && memcmp(got, digest, sizeof got) != 0)
        st = err_set(err, STATUS_DATA_LOSS, "object: the bytes do not hash to its digest");
    footer_make(footer, w->size);
    if (st == STATUS_OK && !buf_append(&w->leaves, footer, sizeof footer))
        st = err_set(err, STATUS_RESOURCE_EXHAUSTED, "object: out of memory");
    if (st == STATUS_OK)
        st = writer_append(w, w->leaves.data, w->leaves.len, err);
    return st;
}

enum status object_writer_commit(struct object_writer *w, const uint8_t digest[OBJECT_DIGEST_SIZE],
                                 const char *item, bool *ret_existed, struct err *err)
{
    uint8_t id[ITEM_SIZE];
    if (item && !item_parse(item, id))
        return err_set(err, STATUS_INVALID_ARGUMENT, "item: not an id");
    if (w->failed)
        return err_set(err, STATUS_FAILED_PRECONDITION, "object: writing it failed before");
    w->failed = true; // whatever happens, nothing may be written from now on
    bool existed = false;
    enum status st = writer_finish(w, digest, err);
    if (st == STATUS_OK)
        st = store_publish(w->store, w->fd, w->path, digest, w->size, item ? id : NULL, &existed,
                           err);
    if (st == STATUS_OK && ret_existed)
        *ret_existed = existed;
    return st;
}

void object_writer_free(struct object_writer *w)
{
    if (!w)
        return;
    struct object_store *s = w->store;
    if (w->fd >= 0) {
        close(w->fd);
        io_discard(&s->io, s->dirfd, w->path); // renamed away: fine
    }
    int64_t total = stored_bytes(w->size);
    store_unreserve(s, total, total - w->written);
    buf_done(&w->leaves);
    mem_free(w);
}
