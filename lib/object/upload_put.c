// One connection feeds an upload: leaf digests, then leaves.
#include "object/upload_internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

#define MAX_PENDING 256 // leaves put before a connection syncs by itself: 16 MiB

struct object_upload {
    struct object_store *store;
    struct upload *u;
    int64_t pending[MAX_PENDING]; // leaves written, not synced
    size_t n_pending;
    uint64_t epoch; // of pending
    int64_t n_stored;
    struct object_tree tree;          // leaf digests so far
    uint64_t leaves_gen;              // 0: none so far
    uint8_t part[OBJECT_DIGEST_SIZE]; // of a digest cut by a message's end
    size_t part_fill;
};

enum status object_upload_open(struct object_store *s, const char *id, const char *owner,
                               struct object_upload **ret, struct err *err)
{
    struct object_upload *c = mem_alloc(sizeof *c);
    if (!c)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "upload: out of memory");
    c->store = s;
    object_tree_init(&c->tree);
    struct upload *u = NULL;
    pthread_mutex_lock(&s->mu);
    enum status st = upload_find_settled(s, id, &u, err);
    if (st == STATUS_OK && (!u || strcmp(u->owner, owner) != 0))
        st = err_set(err, STATUS_NOT_FOUND, "upload %s: unknown; open it again", id);
    if (st == STATUS_OK) {
        u->n_users++;
        u->touched_wall_ms = store_wall_ms(s);
        upload_notice_object(s, u);
        c->u = u;
    }
    pthread_mutex_unlock(&s->mu);
    if (st == STATUS_OK)
        *ret = c;
    else
        mem_free(c);
    return st;
}

void object_upload_free(struct object_upload *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->store->mu);
    upload_leave(c->store, c->u);
    pthread_mutex_unlock(&c->store->mu);
    mem_free(c);
}

void object_upload_info(struct object_upload *c, struct object_upload_info *ret)
{
    pthread_mutex_lock(&c->store->mu);
    upload_notice_object(c->store, c->u);
    upload_get_info(c->u, ret);
    pthread_mutex_unlock(&c->store->mu);
}

int64_t object_upload_n_stored(const struct object_upload *c)
{
    return c->n_stored;
}

size_t object_upload_missing(struct object_upload *c, struct object_run *runs, size_t max,
                             bool *ret_truncated)
{
    const struct upload *u = c->u;
    size_t n = 0;
    *ret_truncated = false;
    pthread_mutex_lock(&c->store->mu);
    bool whole = upload_is_whole(u);
    for (int64_t i = 0; !whole && i < u->n_leaves; i++) {
        if (i % 8 == 0 && u->have[i / 8] == 0xff) {
            i += 7;
            continue;
        }
        if (upload_bit(u->have, i))
            continue;
        if (n > 0 && runs[n - 1].first + runs[n - 1].count == i) {
            runs[n - 1].count++;
            continue;
        }
        if (n == max) {
            *ret_truncated = true;
            break;
        }
        runs[n++] = (struct object_run){.first = i, .count = 1};
    }
    pthread_mutex_unlock(&c->store->mu);
    return n;
}

// Mutex held. Dropped or finished uploads take nothing more: *ret_done says that nothing is needed.
static enum status check_open(const struct object_store *s, const struct upload *u, bool *ret_done,
                              struct err *err)
{
    *ret_done = u->state == UPLOAD_FINISHING || upload_is_whole(u);
    if (*ret_done || (u->state == UPLOAD_OPEN && upload_find(s, u->id) == u))
        return STATUS_OK;
    return err_set(err, STATUS_NOT_FOUND, "upload %s: it was dropped", u->id);
}

// ---------------------------------------------------------------- leaf digests

// disk_mu held: is this connection still the newest that sends leaf digests, and are they needed?
static enum status leaves_turn(struct object_upload *c, bool *ret_skip, struct err *err)
{
    struct upload *u = c->u;
    pthread_mutex_lock(&c->store->mu);
    enum status st = check_open(c->store, u, ret_skip, err);
    if (st == STATUS_OK && c->leaves_gen == 0)
        c->leaves_gen = ++u->leaves_gen;
    if (st == STATUS_OK && !*ret_skip && !u->has_leaves && c->leaves_gen != u->leaves_gen)
        st = err_set(err, STATUS_ABORTED, "upload %s: another connection sends its leaf digests",
                     u->id);
    *ret_skip |= u->has_leaves;
    pthread_mutex_unlock(&c->store->mu);
    return st;
}

// Whole digests: to their place behind the object's bytes.
static enum status leaves_append(struct object_upload *c, const uint8_t *p, size_t n,
                                 struct err *err)
{
    struct upload *u = c->u;
    int64_t first = c->tree.n_leaves;
    if (n / OBJECT_DIGEST_SIZE > (uint64_t)(u->n_leaves - first))
        return err_set(err, STATUS_DATA_LOSS, "upload %s: more than its %lld leaf digests", u->id,
                       (long long)u->n_leaves);
    for (size_t at = 0; at < n; at += OBJECT_DIGEST_SIZE)
        if (!object_tree_add(&c->tree, p + at))
            return err_set(err, STATUS_DATA_LOSS, "upload %s: too many leaf digests", u->id);
    bool skip;
    pthread_mutex_lock(&u->disk_mu);
    enum status st = leaves_turn(c, &skip, err);
    if (st == STATUS_OK && !skip)
        st = upload_open_files(c->store, u, err);
    if (st == STATUS_OK && !skip)
        st = io_write(&c->store->io, u->fd, "leaf digests", u->size + first * OBJECT_DIGEST_SIZE, p,
                      n, err);
    pthread_mutex_unlock(&u->disk_mu);
    return st;
}

enum status object_upload_leaves_add(struct object_upload *c, const void *p, size_t n,
                                     struct err *err)
{
    const uint8_t *at = p;
    enum status st = STATUS_OK;
    if (c->part_fill > 0) {
        size_t take = OBJECT_DIGEST_SIZE - c->part_fill;
        if (take > n)
            take = n;
        memcpy(c->part + c->part_fill, at, take);
        c->part_fill += take;
        at += take;
        n -= take;
        if (c->part_fill < OBJECT_DIGEST_SIZE)
            return STATUS_OK;
        st = leaves_append(c, c->part, OBJECT_DIGEST_SIZE, err);
        c->part_fill = 0;
    }
    size_t whole = n - n % OBJECT_DIGEST_SIZE;
    if (st == STATUS_OK && whole > 0)
        st = leaves_append(c, at, whole, err);
    memcpy(c->part, at + whole, n - whole);
    c->part_fill = n - whole;
    return st;
}

static enum status leaves_settle(struct object_upload *c, struct err *err)
{
    static const uint8_t known = 1;
    struct object_store *s = c->store;
    struct upload *u = c->u;
    bool skip;
    enum status st = leaves_turn(c, &skip, err);
    if (st != STATUS_OK || skip)
        return st;
    st = upload_open_files(s, u, err);
    if (st == STATUS_OK)
        st = io_sync(&s->io, u->fd, "leaf digests", err);
    if (st == STATUS_OK)
        st = io_write(&s->io, u->have_fd, "leaf flag", 0, &known, 1, err);
    if (st == STATUS_OK)
        st = io_sync(&s->io, u->have_fd, "leaf flag", err);
    if (st == STATUS_OK) {
        pthread_mutex_lock(&s->mu);
        u->has_leaves = true;
        pthread_mutex_unlock(&s->mu);
    }
    return st;
}

enum status object_upload_leaves_end(struct object_upload *c, struct err *err)
{
    struct upload *u = c->u;
    uint8_t root[OBJECT_DIGEST_SIZE];
    if (c->part_fill > 0 || !object_tree_root(&c->tree, u->size, root) ||
        memcmp(root, u->digest, sizeof root) != 0)
        return err_set(err, STATUS_DATA_LOSS,
                       "upload %s: %lld leaf digests that are not this object's", u->id,
                       (long long)c->tree.n_leaves);
    pthread_mutex_lock(&u->disk_mu);
    enum status st = leaves_settle(c, err);
    pthread_mutex_unlock(&u->disk_mu);
    return st;
}

// ---------------------------------------------------------------- leaves

static enum status files_for(struct object_upload *c, struct err *err)
{
    pthread_mutex_lock(&c->u->disk_mu);
    enum status st = upload_open_files(c->store, c->u, err);
    pthread_mutex_unlock(&c->u->disk_mu);
    return st;
}

// Register as a writer, so that finish waits for us. *ret_skip: the leaf need not be written.
static enum status begin_write(struct object_upload *c, int64_t leaf, bool *ret_skip,
                               struct err *err)
{
    struct upload *u = c->u;
    pthread_mutex_lock(&c->store->mu);
    enum status st = check_open(c->store, u, ret_skip, err);
    if (st == STATUS_OK && !*ret_skip && !u->has_leaves)
        st = err_set(err, STATUS_FAILED_PRECONDITION, "upload %s: send its leaf digests first",
                     u->id);
    if (st == STATUS_OK && !*ret_skip)
        *ret_skip = upload_bit(u->have, leaf);
    if (st == STATUS_OK && !*ret_skip) {
        if (c->n_pending == 0)
            c->epoch = u->epoch;
        if (c->epoch != u->epoch)
            st = err_set(err, STATUS_INTERNAL, "upload %s: the disk failed; send it again", u->id);
        else
            u->n_writing++;
    }
    pthread_mutex_unlock(&c->store->mu);
    return st;
}

static void end_write(struct object_upload *c, int64_t leaf, bool written)
{
    pthread_mutex_lock(&c->store->mu);
    if (--c->u->n_writing == 0)
        pthread_cond_broadcast(&c->store->cond);
    if (written)
        c->pending[c->n_pending++] = leaf;
    pthread_mutex_unlock(&c->store->mu);
}

// What the leaf must hash to: of the upload's list, or of the object that it is a proof for.
static enum status read_leaf_digest(struct object_upload *c, int64_t leaf,
                                    uint8_t ret[OBJECT_DIGEST_SIZE], struct err *err)
{
    struct upload *u = c->u;
    if (!u->proving)
        return io_read(&c->store->io, u->fd, "leaf digest", u->size + leaf * OBJECT_DIGEST_SIZE,
                       ret, OBJECT_DIGEST_SIZE, err);
    AUTO(object_file_free_p) struct object_file *f = NULL;
    enum status st = object_file_open(c->store, u->digest, &f, err);
    return st == STATUS_OK ? object_file_read_leaves(f, leaf, 1, ret, err) : st;
}

static enum status put_leaf(struct object_upload *c, int64_t leaf, const uint8_t *p, size_t n,
                            struct err *err)
{
    const struct io *io = &c->store->io;
    struct upload *u = c->u;
    uint8_t want[OBJECT_DIGEST_SIZE];
    bool skip;
    enum status st = begin_write(c, leaf, &skip, err);
    if (st != STATUS_OK || skip)
        return st;
    st = read_leaf_digest(c, leaf, want, err);
    if (st == STATUS_OK && !object_leaf_is_good(want, p, n))
        st = err_set(err, STATUS_DATA_LOSS, "upload %s: leaf %lld does not match its digest", u->id,
                     (long long)leaf);
    if (st == STATUS_OK && !u->proving)
        st = io_write(io, u->fd, "upload", leaf * OBJECT_LEAF_BYTES, p, n, err);
    end_write(c, leaf, st == STATUS_OK);
    return st;
}

enum status object_upload_put(struct object_upload *c, int64_t leaf, const void *p, size_t n,
                              struct err *err)
{
    struct upload *u = c->u;
    const uint8_t *at = p;
    bool done;
    pthread_mutex_lock(&c->store->mu);
    enum status st = check_open(c->store, u, &done, err);
    pthread_mutex_unlock(&c->store->mu);
    if (st != STATUS_OK || done)
        return st;
    if (!u->proving)
        st = files_for(c, err);
    for (; st == STATUS_OK && n > 0; leaf++) {
        size_t len = object_leaf_len(u->size, leaf);
        if (len == 0 || n < len)
            return err_set(err, STATUS_INVALID_ARGUMENT,
                           "upload %s: %zu bytes do not end with leaf %lld", u->id, n,
                           (long long)leaf);
        st = put_leaf(c, leaf, at, len, err);
        if (st == STATUS_OK && c->n_pending == MAX_PENDING)
            st = object_upload_sync(c, err);
        at += len;
        n -= len;
    }
    return st;
}

// Mutex held. What was pending counts now. The bytes of `have` that changed are [*lo, *hi).
static void claim(struct object_upload *c, size_t *lo, size_t *hi)
{
    struct upload *u = c->u;
    *lo = SIZE_MAX;
    *hi = 0;
    for (size_t i = 0; i < c->n_pending; i++) {
        int64_t leaf = c->pending[i];
        if (upload_bit(u->have, leaf))
            continue; // another connection was first
        size_t byte = (size_t)leaf / 8;
        int64_t len = (int64_t)object_leaf_len(u->size, leaf);
        u->have[byte] |= (uint8_t)(1U << leaf % 8);
        u->n_have++;
        u->have_bytes += len;
        c->store->unwritten_bytes -= u->reserved ? len : 0;
        c->n_stored++;
        *lo = byte < *lo ? byte : *lo;
        *hi = byte >= *hi ? byte + 1 : *hi;
    }
    u->touched_wall_ms = store_wall_ms(c->store);
}

// disk_mu held.
static enum status sync_pending(struct object_upload *c, struct err *err)
{
    struct object_store *s = c->store;
    struct upload *u = c->u;
    enum status st = u->proving ? STATUS_OK : io_sync(&s->io, u->fd, "upload", err);
    AUTO(mem_free_p) uint8_t *bytes = NULL;
    size_t lo = 0, hi = 0;
    pthread_mutex_lock(&s->mu);
    if (st != STATUS_OK)
        u->epoch++;
    else if (c->epoch != u->epoch)
        st = err_set(err, STATUS_INTERNAL, "upload %s: the disk failed; send it again", u->id);
    if (st == STATUS_OK) {
        claim(c, &lo, &hi);
        bytes = hi > lo && !u->proving ? mem_dup(u->have + lo, hi - lo) : NULL;
    }
    pthread_mutex_unlock(&s->mu);
    c->n_pending = 0;
    if (st != STATUS_OK || hi <= lo || u->proving)
        return st;
    if (!bytes)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "upload: out of memory");
    st = io_write(&s->io, u->have_fd, "upload map", (int64_t)(HAVE_HEAD + lo), bytes, hi - lo, err);
    if (st == STATUS_OK)
        st = io_sync(&s->io, u->have_fd, "upload map", err);
    return st;
}

enum status object_upload_sync(struct object_upload *c, struct err *err)
{
    if (c->n_pending == 0)
        return STATUS_OK;
    pthread_mutex_lock(&c->u->disk_mu);
    enum status st = sync_pending(c, err);
    pthread_mutex_unlock(&c->u->disk_mu);
    return st;
}
