// Garbage collection and scrub: both go over the objects in the background, in small steps.
#include "object/internal.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"

#define BATCH 64
#define SLOTS_PER_STEP 4096 // how much of the table one hold of the mutex looks at
#define COMPACT_SLACK 4096  // records of history that are not worth a rewrite

static enum status check_cancel(struct cancel *cancel, const char *what, struct err *err)
{
    return cancel_is_fired(cancel) ? err_set(err, STATUS_CANCELLED, "%s cancelled", what)
                                   : STATUS_OK;
}

// Mutex held: the object is gone from the disk's point of view, or stays.
static void entry_removed(struct object_store *s, struct entry *e, bool gone)
{
    e->state = gone ? ENTRY_ABSENT : ENTRY_LIVE;
    if (gone) {
        s->n_objects--;
        s->used_bytes -= stored_bytes(e->size);
    }
    index_release(&s->ix, e);
    pthread_cond_broadcast(&s->cond);
}

// ---------------------------------------------------------------- garbage

static bool is_garbage(const struct object_store *s, const struct entry *e, int64_t now_us)
{
    return e->state == ENTRY_LIVE && e->n_pins == 0 && e->n_holds == 0 &&
           now_us - e->idle_since_us >= s->o.grace_ms * 1000;
}

// Marks up to BATCH pieces of garbage DELETING. *at is the next slot; growing tables make it miss
// some, which the next run finds.
static size_t mark_garbage(struct object_store *s, size_t *at, struct entry **ret)
{
    size_t n = 0;
    int64_t now = store_now_us(s);
    pthread_mutex_lock(&s->mu);
    const struct htab *t = &s->ix.entries;
    size_t end = *at + SLOTS_PER_STEP;
    for (; n < BATCH && *at < t->n_slots && *at < end; (*at)++)
        for (struct hnode *node = t->slots[*at]; node && n < BATCH; node = node->next) {
            struct entry *e = list_entry(node, struct entry, node);
            if (!is_garbage(s, e, now))
                continue;
            e->state = ENTRY_DELETING;
            ret[n++] = e;
        }
    bool done = *at >= t->n_slots && n == 0;
    pthread_mutex_unlock(&s->mu);
    return done ? SIZE_MAX : n;
}

static enum status compact_if_worth(struct object_store *s, struct err *err)
{
    enum status st = STATUS_OK;
    pthread_mutex_lock(&s->mu);
    if (s->log.n_records > 2 * (int64_t)s->ix.pins.n + COMPACT_SLACK)
        st = pin_log_compact(&s->log, &s->ix, &s->mu, &s->cond, err);
    pthread_mutex_unlock(&s->mu);
    return st;
}

enum status object_store_collect(struct object_store *s, struct cancel *cancel,
                                 int64_t *ret_objects, int64_t *ret_bytes, struct err *err)
{
    *ret_objects = *ret_bytes = 0;
    if (s->log.n_damaged > 0) // set once, at the start
        return err_set(
            err, STATUS_FAILED_PRECONDITION,
            "garbage is kept: %lld pin records cannot be read; pin the items again, then "
            "move pins.log away",
            (long long)s->log.n_damaged);
    struct entry *batch[BATCH];
    enum status st = STATUS_OK;
    size_t at = 0, n;
    while (st == STATUS_OK && (n = mark_garbage(s, &at, batch)) != SIZE_MAX) {
        for (size_t i = 0; i < n; i++) { // to the end, also after an error: every mark must go
            enum status one =
                s->backend->ops->remove(s->backend, batch[i]->digest, st == STATUS_OK ? err : NULL);
            if (one == STATUS_OK) {
                ++*ret_objects;
                *ret_bytes += stored_bytes(batch[i]->size);
            } else if (st == STATUS_OK) {
                st = one;
            }
            pthread_mutex_lock(&s->mu);
            entry_removed(s, batch[i], one == STATUS_OK);
            pthread_mutex_unlock(&s->mu);
        }
        if (st == STATUS_OK)
            st = check_cancel(cancel, "collecting garbage", err);
    }
    return st == STATUS_OK ? compact_if_worth(s, err) : st;
}

// ---------------------------------------------------------------- scrub

// All digests at one moment: 32 bytes for each object.
static enum status list_objects(struct object_store *s, struct buf *ret, struct err *err)
{
    pthread_mutex_lock(&s->mu);
    const struct htab *t = &s->ix.entries;
    buf_init(ret, (t->n + 1) * OBJECT_DIGEST_SIZE);
    for (size_t i = 0; i < t->n_slots; i++)
        for (struct hnode *n = t->slots[i]; n; n = n->next) {
            const struct entry *e = list_entry(n, struct entry, node);
            if (e->state == ENTRY_LIVE)
                buf_append(ret, e->digest, sizeof e->digest);
        }
    pthread_mutex_unlock(&s->mu);
    return ret->failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "scrub: out of memory")
                       : STATUS_OK;
}

// Every leaf against its digest, the digests against the root.
static enum status verify_file(struct object_file *f, const uint8_t *digest, uint8_t *leaf_bytes,
                               struct cancel *cancel, struct err *err)
{
    struct object_tree tree;
    object_tree_init(&tree);
    int64_t n = object_n_leaves(f->size);
    for (int64_t i = 0; i < n; i++) {
        uint8_t want[OBJECT_DIGEST_SIZE];
        size_t len = object_leaf_len(f->size, i);
        enum status st = check_cancel(cancel, "scrub", err);
        if (st == STATUS_OK)
            st = object_file_read(f, i * OBJECT_LEAF_BYTES, leaf_bytes, len, err);
        if (st == STATUS_OK)
            st = object_file_read_leaves(f, i, 1, want, err);
        if (st != STATUS_OK)
            return st;
        if (!object_leaf_is_good(want, leaf_bytes, len) || !object_tree_add(&tree, want))
            return err_set(err, STATUS_DATA_LOSS, "leaf %lld is damaged", (long long)i);
    }
    uint8_t root[OBJECT_DIGEST_SIZE];
    if (!object_tree_root(&tree, f->size, root) || memcmp(root, digest, sizeof root) != 0)
        return err_set(err, STATUS_DATA_LOSS, "the leaf digests are damaged");
    return STATUS_OK;
}

// errors  DATA_LOSS: damaged; NOT_FOUND: gone meanwhile
static enum status scrub_one(struct object_store *s, const uint8_t *digest, uint8_t *leaf_bytes,
                             struct cancel *cancel, int64_t *bytes, struct err *err)
{
    AUTO(object_file_free_p) struct object_file *f = NULL;
    enum status st = object_file_open(s, digest, &f, err);
    if (st == STATUS_OK)
        st = verify_file(f, digest, leaf_bytes, cancel, err);
    if (f)
        *bytes += f->size;
    return st;
}

static void set_aside(struct object_store *s, const uint8_t *digest)
{
    pthread_mutex_lock(&s->mu);
    struct entry *e = NULL;
    if (store_settled(s, digest, &e, NULL) == STATUS_OK && e && e->state == ENTRY_LIVE) {
        e->state = ENTRY_DELETING;
        pthread_mutex_unlock(&s->mu);
        enum status st = s->backend->ops->set_aside(s->backend, digest, NULL);
        pthread_mutex_lock(&s->mu);
        entry_removed(s, e, st == STATUS_OK || st == STATUS_NOT_FOUND);
        s->n_damaged++;
    }
    pthread_mutex_unlock(&s->mu);
}

static enum status scrub_list(struct object_store *s, const struct buf *list,
                              bool (*fn)(void *ud, const struct object_scrub *now), void *ud,
                              struct cancel *cancel, struct err *err)
{
    AUTO(mem_free_p) uint8_t *leaf_bytes = mem_alloc(OBJECT_LEAF_BYTES);
    if (!leaf_bytes)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "scrub: out of memory");
    struct object_scrub now = {0};
    for (size_t at = 0; at < list->len; at += OBJECT_DIGEST_SIZE) {
        const uint8_t *digest = list->data + at;
        enum status st = scrub_one(s, digest, leaf_bytes, cancel, &now.bytes, err);
        if (st == STATUS_NOT_FOUND && object_store_stat(s, digest, NULL))
            st = STATUS_DATA_LOSS; // its file went behind our back
        if (st == STATUS_DATA_LOSS)
            set_aside(s, digest);
        else if (st != STATUS_OK && st != STATUS_NOT_FOUND)
            return st;
        now.checked++;
        now.bad = st == STATUS_DATA_LOSS ? digest : NULL;
        if (!fn(ud, &now))
            return err_set(err, STATUS_CANCELLED, "scrub stopped");
    }
    return STATUS_OK;
}

enum status object_store_scrub(struct object_store *s, const uint8_t *digest,
                               bool (*fn)(void *ud, const struct object_scrub *now), void *ud,
                               struct cancel *cancel, struct err *err)
{
    struct buf list;
    enum status st;
    if (!digest) {
        st = list_objects(s, &list, err);
    } else {
        buf_init(&list, OBJECT_DIGEST_SIZE);
        if (!object_store_stat(s, digest, NULL))
            st = err_set(err, STATUS_NOT_FOUND, "scrub: the object is not here");
        else if (!buf_append(&list, digest, OBJECT_DIGEST_SIZE))
            st = err_set(err, STATUS_RESOURCE_EXHAUSTED, "scrub: out of memory");
        else
            st = STATUS_OK;
    }
    if (st == STATUS_OK)
        st = scrub_list(s, &list, fn, ud, cancel, err);
    buf_done(&list);
    return st;
}
