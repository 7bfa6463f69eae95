// The store: one mutex over what is known (index, pins, quota), held for memory only. Whoever
// changes an object on the disk marks its entry first (COMMITTING, DELETING); others that need it
// settled wait for the mark to go.
//
//   ABSENT --> COMMITTING --> LIVE --> DELETING --> ABSENT      (entries of ABSENT are freed when
//   no
//      ^-----------'                                             pin and no hold speaks of them)
#include "object/internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/dir.h"
#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"

#define FORMAT_TEXT "cauce-origin 1\n"
#define SETTLE_MS 30000

// ---------------------------------------------------------------- small things

int64_t store_now_us(const struct object_store *s)
{
    return s->o.mono_us ? s->o.mono_us(s->o.ud) : time_mono_us();
}

int64_t store_wall_ms(const struct object_store *s)
{
    return s->o.wall_ms ? s->o.wall_ms(s->o.ud) : time_wall_ms();
}

bool item_parse(const char *item, uint8_t ret[ITEM_SIZE])
{
    if (!item || !uuid_is_valid(item))
        return false;
    char hex[2 * ITEM_SIZE + 1];
    size_t n = 0;
    for (; *item; item++)
        if (*item != '-')
            hex[n++] = *item;
    hex[n] = 0;
    return str_unhex(ret, ITEM_SIZE, hex);
}

void store_temp_name(struct object_store *s, char *dst, size_t size)
{
    pthread_mutex_lock(&s->mu);
    uint64_t n = s->temp_seq++;
    pthread_mutex_unlock(&s->mu);
    snprintf(dst, size, "tmp/%llu", (unsigned long long)n);
}

enum status store_wait(struct object_store *s, const char *what, struct err *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += SETTLE_MS / 1000;
    if (pthread_cond_timedwait(&s->cond, &s->mu, &until) == ETIMEDOUT)
        return err_set(err, STATUS_UNAVAILABLE, "%s: the disk takes too long", what);
    return STATUS_OK;
}

enum status store_settled(struct object_store *s, const uint8_t *digest, struct entry **ret,
                          struct err *err)
{
    for (;;) {
        struct entry *e = index_find(&s->ix, digest);
        if (!e || e->state == ENTRY_ABSENT || e->state == ENTRY_LIVE) {
            *ret = e;
            return STATUS_OK;
        }
        enum status st = store_wait(s, "object", err);
        if (st != STATUS_OK)
            return st;
    }
}

// ---------------------------------------------------------------- quota

enum status store_reserve(struct object_store *s, int64_t bytes, struct err *err)
{
    bool ro;
    int64_t space = io_space(&s->io, s->dirfd, &ro);
    enum status st = STATUS_OK;
    pthread_mutex_lock(&s->mu);
    int64_t taken = s->used_bytes + s->reserved_bytes;
    if (s->o.max_bytes > 0 && bytes > s->o.max_bytes - taken)
        st = err_set(err, STATUS_RESOURCE_EXHAUSTED,
                     "origin: %lld bytes do not fit, %lld of %lld are taken", (long long)bytes,
                     (long long)taken, (long long)s->o.max_bytes);
    else if (ro)
        st = err_set(err, STATUS_RESOURCE_EXHAUSTED, "origin: its disk is read-only");
    else if (space >= 0 && bytes > space - s->unwritten_bytes - s->o.min_free_bytes)
        st = err_set(err, STATUS_RESOURCE_EXHAUSTED,
                     "origin: %lld bytes do not fit, the disk has %lld left", (long long)bytes,
                     (long long)space);
    if (st == STATUS_OK) {
        s->reserved_bytes += bytes;
        s->unwritten_bytes += bytes;
    }
    pthread_mutex_unlock(&s->mu);
    return st;
}

void store_unreserve(struct object_store *s, int64_t reserved, int64_t unwritten)
{
    pthread_mutex_lock(&s->mu);
    s->reserved_bytes -= reserved;
    s->unwritten_bytes -= unwritten;
    pthread_mutex_unlock(&s->mu);
}

void store_wrote(struct object_store *s, int64_t bytes)
{
    store_unreserve(s, 0, bytes);
}

void object_store_usage(struct object_store *s, struct object_store_usage *ret)
{
    bool ro;
    int64_t space = io_space(&s->io, s->dirfd, &ro);
    pthread_mutex_lock(&s->mu);
    *ret = (struct object_store_usage){
        .objects = s->n_objects,
        .bytes = s->used_bytes,
        .free_bytes = space,
        .max_bytes = s->o.max_bytes,
        .uploads_open = uploads_n_open(s),
        .reserved_bytes = s->reserved_bytes,
        .pins = (int64_t)s->ix.pins.n,
        .damaged = s->n_damaged,
        .pins_damaged = s->log.n_damaged,
    };
    pthread_mutex_unlock(&s->mu);
}

bool object_store_is_healthy(struct object_store *s, char *reason, size_t reason_size)
{
    bool ro;
    int64_t space = io_space(&s->io, s->dirfd, &ro);
    pthread_mutex_lock(&s->mu);
    bool failed = s->log.failed;
    pthread_mutex_unlock(&s->mu);
    if (failed)
        snprintf(reason, reason_size, "the disk failed while pins were written: restart");
    else if (ro)
        snprintf(reason, reason_size, "the disk is read-only");
    else if (space >= 0 && space < s->o.min_free_bytes)
        snprintf(reason, reason_size, "the disk is full: %lld bytes left", (long long)space);
    else
        return true;
    return false;
}

// ---------------------------------------------------------------- open and free

static enum status lock_dir(struct object_store *s, struct err *err)
{
    enum status made = dir_make(s->o.dir, err);
    if (made != STATUS_OK)
        return made;
    s->dirfd = open(s->o.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dirfd < 0)
        return err_errno(err, errno, "open %s", s->o.dir);
    enum status st = io_open(&s->io, s->dirfd, "lock", O_RDWR | O_CREAT, &s->lock_fd, err);
    if (st == STATUS_OK && flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0)
        st = err_set(err, STATUS_FAILED_PRECONDITION, "another process uses it");
    return st;
}

static enum status check_format(struct object_store *s, struct err *err)
{
    struct stat stt;
    if (fstatat(s->dirfd, "format", &stt, AT_SYMLINK_NOFOLLOW) != 0)
        return io_write_file(&s->io, s->dirfd, "tmp/format", "format", ".", FORMAT_TEXT,
                             strlen(FORMAT_TEXT), err);
    int fd = -1;
    enum status st = io_open(&s->io, s->dirfd, "format", O_RDONLY, &fd, err);
    if (st != STATUS_OK)
        return st;
    char text[sizeof FORMAT_TEXT] = "";
    st = io_read(&s->io, fd, "format", 0, text, strlen(FORMAT_TEXT), NULL);
    close(fd);
    if (st != STATUS_OK || strcmp(text, FORMAT_TEXT) != 0)
        return err_set(err, STATUS_FAILED_PRECONDITION, "not an origin directory of version 1");
    return STATUS_OK;
}

static enum status drop_temp(void *ud, const char *name, struct err *err)
{
    struct object_store *s = ud;
    char path[300];
    snprintf(path, sizeof path, "tmp/%s", name);
    return io_unlink(&s->io, s->dirfd, path, err);
}

static enum status count_object(void *ud, const uint8_t *digest, int64_t size, struct err *err)
{
    struct object_store *s = ud;
    if (size < 0) {
        s->n_damaged++;
        return s->backend->ops->set_aside(s->backend, digest, err);
    }
    struct entry *e = index_get(&s->ix, digest);
    if (!e)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "objects: out of memory");
    e->state = ENTRY_LIVE;
    e->size = size;
    e->idle_since_us = store_now_us(s);
    s->n_objects++;
    s->used_bytes += stored_bytes(size);
    return STATUS_OK;
}

static enum status replay_pin(void *ud, enum pin_op op, const uint8_t *item, const uint8_t *digest,
                              struct err *err)
{
    struct object_store *s = ud;
    int64_t now = store_now_us(s);
    struct pin *p = index_find_pin(&s->ix, item, digest);
    switch (op) {
    case PIN_ADD: {
        if (p)
            return STATUS_OK;
        struct entry *e = index_get(&s->ix, digest);
        if (e && index_add_pin(&s->ix, item, e))
            return STATUS_OK;
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "pins: out of memory");
    }
    case PIN_REMOVE:
        if (p)
            index_remove_pin(&s->ix, p, now);
        return STATUS_OK;
    case PIN_REMOVE_ITEM:
        for (struct item *i; (i = index_find_item(&s->ix, item));)
            index_remove_pin(&s->ix, list_entry(i->pins.next, struct pin, of_item), now);
        return STATUS_OK;
    }
    return STATUS_OK;
}

static enum status open_parts(struct object_store *s, struct err *err)
{
    enum status st = lock_dir(s, err);
    if (st == STATUS_OK)
        st = io_mkdir(&s->io, s->dirfd, "tmp", err);
    if (st == STATUS_OK)
        st = check_format(s, err);
    if (st == STATUS_OK)
        st = io_each(s->dirfd, "tmp", drop_temp, s, err);
    if (st == STATUS_OK)
        st = backend_fs_new(&s->io, s->dirfd, &s->backend, err);
    if (st == STATUS_OK)
        st = s->backend->ops->each(s->backend, count_object, s, err);
    if (st == STATUS_OK)
        st = pin_log_open(&s->log, &s->io, s->dirfd, replay_pin, s, err);
    if (st == STATUS_OK)
        st = uploads_load(s, err);
    return st;
}

static bool init_locks(struct object_store *s)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0)
        return false;
    bool ok = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0 &&
              pthread_cond_init(&s->cond, &attr) == 0;
    pthread_condattr_destroy(&attr);
    if (ok && pthread_mutex_init(&s->mu, NULL) != 0) {
        pthread_cond_destroy(&s->cond);
        ok = false;
    }
    return ok;
}

enum status object_store_open(const struct object_store_opts *o, struct object_store **ret,
                              struct err *err)
{
    struct object_store *s = mem_alloc(sizeof *s);
    if (!s)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "origin: out of memory");
    if (!init_locks(s)) {
        mem_free(s);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "origin: no lock");
    }
    AUTO(object_store_free_p) struct object_store *owned = s;
    s->o = *o;
    s->io = (struct io){o->fault, o->ud};
    s->dirfd = s->lock_fd = s->log.fd = -1;
    s->o.dir = mem_strdup(o->dir);
    if (!s->o.dir || !index_init(&s->ix) || !htab_init(&s->uploads))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "origin: out of memory");
    enum status st = open_parts(s, err);
    if (st != STATUS_OK)
        return err_wrap(err, st, "origin %s", o->dir);
    *ret = TAKE(owned);
    return STATUS_OK;
}

void object_store_free(struct object_store *s)
{
    if (!s)
        return;
    uploads_done(s);
    pin_log_done(&s->log);
    index_done(&s->ix);
    if (s->backend)
        s->backend->ops->free(s->backend);
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    if (s->dirfd >= 0)
        close(s->dirfd);
    pthread_cond_destroy(&s->cond);
    pthread_mutex_destroy(&s->mu);
    mem_free((void *)(uintptr_t)s->o.dir);
    mem_free(s);
}

// ---------------------------------------------------------------- reading

bool object_store_stat(struct object_store *s, const uint8_t digest[OBJECT_DIGEST_SIZE],
                       int64_t *ret_size)
{
    pthread_mutex_lock(&s->mu);
    const struct entry *e = index_find(&s->ix, digest);
    bool live = e && e->state == ENTRY_LIVE;
    if (live && ret_size)
        *ret_size = e->size;
    pthread_mutex_unlock(&s->mu);
    return live;
}

enum status object_file_open(struct object_store *s, const uint8_t digest[OBJECT_DIGEST_SIZE],
                             struct object_file **ret, struct err *err)
{
    if (!object_store_stat(s, digest, NULL)) {
        char hex[OBJECT_HEX_SIZE];
        str_hex(hex, digest, OBJECT_DIGEST_SIZE);
        return err_set(err, STATUS_NOT_FOUND, "object %s is not here", hex);
    }
    return s->backend->ops->open(s->backend, digest, ret, err);
}

void object_file_free(struct object_file *f)
{
    if (f)
        f->backend->ops->close(f);
}

int64_t object_file_size(const struct object_file *f)
{
    return f->size;
}

int object_file_fd(const struct object_file *f)
{
    return f->fd;
}

enum status object_file_read(struct object_file *f, int64_t offset, void *p, size_t n,
                             struct err *err)
{
    if (offset < 0 || offset > f->size || n > (uint64_t)(f->size - offset))
        return err_set(err, STATUS_OUT_OF_RANGE, "object: %lld+%zu is beyond its %lld bytes",
                       (long long)offset, n, (long long)f->size);
    return f->backend->ops->read(f, offset, p, n, err);
}

enum status object_file_read_leaves(struct object_file *f, int64_t first, size_t n, void *p,
                                    struct err *err)
{
    int64_t total = object_n_leaves(f->size);
    if (first < 0 || first > total || n > (uint64_t)(total - first))
        return err_set(err, STATUS_OUT_OF_RANGE, "object: it has %lld leaves", (long long)total);
    return f->backend->ops->read(f, f->size + first * OBJECT_DIGEST_SIZE, p, n * OBJECT_DIGEST_SIZE,
                                 err);
}

void object_file_will_need(struct object_file *f, int64_t offset, int64_t n)
{
    if (f->fd >= 0)
        (void)posix_fadvise(f->fd, offset, n, POSIX_FADV_WILLNEED);
}
