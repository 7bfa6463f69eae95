// Uploads on the disk, three files each under uploads/:
//
//   ID.state  one line: "cauce-upload 1 STATE OWNER ITEM SIZE DIGEST\n", replaced as a whole;
//             STATE is open, held (the object was here), done (the object was made)
//   ID.data   the staged object: bytes at their place, leaf digests, footer (written by finish)
//   ID.have   8 bytes, the first one 1 once the leaf digests are in place; then one bit per leaf,
//             set only after the leaf was synced (so a torn or lost write only forgets)
//
// The state file is written last and deleted first: data without a state is litter of a crash.
//
//   CREATING --> OPEN --> FINISHING --> DONE        each may go to DROPPING, which ends it;
//   CREATING,
//                 ^-----------'                     FINISHING and DROPPING belong to one thread
//
// A failed sync loses every write since the last good one, also of other connections whose pages
// went along with it: `epoch` moves, and what was written in an older epoch never counts.
#include "object/internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"

#define HAVE_HEAD 8
#define MAX_PENDING 256 // leaves put before a connection syncs by itself: 16 MiB
#define PATH_SIZE 64

enum state { CREATING, OPEN, FINISHING, DONE, DROPPING };

struct upload {
    struct hnode node;
    char id[UUID_SIZE], owner[UUID_SIZE], item[UUID_SIZE];
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size, n_leaves;
    enum state state;
    struct entry *held; // the object is here, kept for finish
    bool reserved;      // quota is taken: stored_bytes(size)
    bool has_leaves;    // the leaf digests are in place
    uint8_t *have;      // one bit per leaf
    int64_t n_have, have_bytes;
    int64_t touched_wall_ms;
    unsigned n_users;    // connections
    unsigned n_writing;  // of them inside a write to the data file
    uint64_t epoch;      // see above
    uint64_t leaves_gen; // the newest connection that sends leaf digests
    pthread_mutex_t
        disk_mu;     // one sync, one opening, one leaf list at a time; taken before store.mu
    int fd, have_fd; // open while n_users > 0
};

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

static void path_of(char *dst, const char *id, const char *what)
{
    snprintf(dst, PATH_SIZE, "uploads/%s.%s", id, what);
}

static bool bit_get(const uint8_t *bits, int64_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

// ---------------------------------------------------------------- table

static uint64_t id_hash(const char *id)
{
    uint64_t h = UINT64_C(1469598103934665603); // FNV-1a; ids are made by our own services
    for (; *id; id++)
        h = (h ^ (uint8_t)*id) * UINT64_C(1099511628211);
    return h;
}

static struct upload *find(const struct object_store *s, const char *id)
{
    struct hnode *n = htab_first(&s->uploads, id_hash(id));
    for (; n; n = htab_next(n)) {
        struct upload *u = list_entry(n, struct upload, node);
        if (strcmp(u->id, id) == 0)
            return u;
    }
    return NULL;
}

// Mutex held: the upload once no thread is changing its state; NULL with OK when unknown.
static enum status find_settled(struct object_store *s, const char *id, struct upload **ret,
                                struct err *err)
{
    for (;;) {
        *ret = find(s, id);
        if (!*ret || (*ret)->state == OPEN || (*ret)->state == DONE)
            return STATUS_OK;
        enum status st = store_wait(s, "upload", err);
        if (st != STATUS_OK)
            return st;
    }
}

static struct upload *upload_new(const struct object_upload_spec *spec)
{
    struct upload *u = mem_alloc(sizeof *u);
    if (!u)
        return NULL;
    if (pthread_mutex_init(&u->disk_mu, NULL) != 0) {
        mem_free(u);
        return NULL;
    }
    u->fd = u->have_fd = -1;
    str_copy(u->id, sizeof u->id, spec->id);
    str_copy(u->owner, sizeof u->owner, spec->owner);
    str_copy(u->item, sizeof u->item, spec->item);
    memcpy(u->digest, spec->digest, sizeof u->digest);
    u->size = spec->size;
    u->n_leaves = object_n_leaves(spec->size);
    u->node.hash = id_hash(u->id);
    u->have = mem_alloc((size_t)(u->n_leaves + 7) / 8 + 1);
    if (!u->have) {
        pthread_mutex_destroy(&u->disk_mu);
        mem_free(u);
        return NULL;
    }
    return u;
}

static void upload_free(struct upload *u)
{
    if (u->fd >= 0)
        close(u->fd);
    if (u->have_fd >= 0)
        close(u->have_fd);
    pthread_mutex_destroy(&u->disk_mu);
    mem_free(u->have);
    mem_free(u);
}

int64_t uploads_n_open(const struct object_store *s)
{
    int64_t n = 0;
    for (size_t i = 0; i < s->uploads.n_slots; i++)
        for (struct hnode *h = s->uploads.slots[i]; h; h = h->next)
            n += list_entry(h, struct upload, node)->state != DONE;
    return n;
}

// Mutex held.
static void set_hold(struct object_store *s, struct upload *u, struct entry *e)
{
    assert(!u->held);
    u->held = e;
    e->n_holds++;
    e->idle_since_us = store_now_us(s);
}

static void release_hold(struct object_store *s, struct upload *u)
{
    struct entry *e = u->held;
    if (!e)
        return;
    u->held = NULL;
    e->n_holds--;
    e->idle_since_us = store_now_us(s);
    index_release(&s->ix, e);
}

// Mutex held.
static void release_quota(struct object_store *s, struct upload *u)
{
    if (!u->reserved)
        return;
    u->reserved = false;
    s->reserved_bytes -= stored_bytes(u->size);
    s->unwritten_bytes -= stored_bytes(u->size) - u->have_bytes;
}

// Mutex held: the object may have come by another way since. From then on nothing need be sent.
static void notice_object(struct object_store *s, struct upload *u)
{
    struct entry *e = u->state <= OPEN && !u->held ? index_find(&s->ix, u->digest) : NULL;
    if (e && e->state == ENTRY_LIVE && e->size == u->size)
        set_hold(s, u, e);
}

// Is the object that it found here still here? Only scrub can have taken it away.
static bool is_held(const struct upload *u)
{
    return u->held && u->held->state == ENTRY_LIVE;
}

static void info_of(const struct upload *u, struct object_upload_info *ret)
{
    bool whole = u->state == DONE || is_held(u);
    *ret = (struct object_upload_info){
        .size = u->size,
        .existed = whole,
        .need_leaves = !whole && !u->has_leaves,
        .n_have = whole ? u->n_leaves : u->n_have,
        .missing_bytes = whole ? 0 : u->size - u->have_bytes,
    };
    memcpy(ret->digest, u->digest, sizeof ret->digest);
}

static size_t have_size(const struct upload *u)
{
    return HAVE_HEAD + (size_t)(u->n_leaves + 7) / 8;
}

// ---------------------------------------------------------------- state file

static enum status write_state(struct object_store *s, const struct upload *u, const char *state,
                               struct err *err)
{
    char hex[OBJECT_HEX_SIZE], text[300], path[PATH_SIZE], temp[PATH_SIZE];
    str_hex(hex, u->digest, OBJECT_DIGEST_SIZE);
    int n = snprintf(text, sizeof text, "cauce-upload 1 %s %s %s %" PRId64 " %s\n", state, u->owner,
                     u->item, u->size, hex);
    path_of(path, u->id, "state");
    store_temp_name(s, temp, sizeof temp);
    return io_write_file(&s->io, s->dirfd, temp, path, "uploads", text, (size_t)n, err);
}

// Whoever calls owns the upload (its state says so) or nobody else can see it.
static enum status delete_files(struct object_store *s, const char *id, struct err *err)
{
    static const char *const kinds[] = {"state", "data", "have"};
    for (size_t i = 0; i < N_ELEMENTS(kinds); i++) {
        char path[PATH_SIZE];
        path_of(path, id, kinds[i]);
        enum status st = io_unlink(&s->io, s->dirfd, path, err);
        if (st == STATUS_OK && i == 0)
            st = io_sync_dir(&s->io, s->dirfd, "uploads", err);
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- create

static enum status make_file(struct object_store *s, const char *id, const char *kind, int64_t size,
                             struct err *err)
{
    char path[PATH_SIZE];
    int fd;
    path_of(path, id, kind);
    enum status st = io_open(&s->io, s->dirfd, path, O_RDWR | O_CREAT | O_TRUNC, &fd, err);
    if (st != STATUS_OK)
        return st;
    st = io_resize(&s->io, fd, path, size, err);
    close(fd);
    return st;
}

static enum status make_files(struct object_store *s, struct upload *u, struct err *err)
{
    if (u->held)
        return write_state(s, u, "held", err);
    enum status st = make_file(s, u->id, "data", stored_bytes(u->size), err);
    if (st == STATUS_OK)
        st = make_file(s, u->id, "have", (int64_t)have_size(u), err);
    if (st == STATUS_OK)
        st = write_state(s, u, "open", err);
    return st;
}

static bool is_empty_digest(const uint8_t *digest)
{
    uint8_t empty[OBJECT_DIGEST_SIZE];
    object_digest(empty, "", 0);
    return memcmp(empty, digest, sizeof empty) == 0;
}

static enum status check_spec(const struct object_upload_spec *spec, struct err *err)
{
    uint8_t bytes[ITEM_SIZE];
    if (!item_parse(spec->id, bytes) || !item_parse(spec->owner, bytes) ||
        !item_parse(spec->item, bytes))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "upload: its id, owner and item must be UUIDs in lower case");
    if (spec->size < 0 || spec->size > OBJECT_MAX_BYTES)
        return err_set(err, STATUS_OUT_OF_RANGE, "upload: %lld bytes; at most %lld are taken",
                       (long long)spec->size, (long long)OBJECT_MAX_BYTES);
    if (spec->size == 0 && !is_empty_digest(spec->digest))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "upload: no bytes, but not the digest of no bytes");
    return STATUS_OK;
}

static bool same_spec(const struct upload *u, const struct object_upload_spec *spec)
{
    return strcmp(u->owner, spec->owner) == 0 && strcmp(u->item, spec->item) == 0 &&
           u->size == spec->size && memcmp(u->digest, spec->digest, sizeof u->digest) == 0;
}

static enum status create_new(struct object_store *s, struct upload *u, struct err *err)
{
    enum status st = STATUS_OK;
    if (!u->held) {
        pthread_mutex_unlock(&s->mu);
        st = store_reserve(s, stored_bytes(u->size), err);
        pthread_mutex_lock(&s->mu);
        u->reserved = st == STATUS_OK;
    }
    pthread_mutex_unlock(&s->mu);
    if (st == STATUS_OK)
        st = make_files(s, u, err);
    if (st != STATUS_OK)
        (void)delete_files(s, u->id, NULL); // without its state file the start removes the rest
    pthread_mutex_lock(&s->mu);
    if (st == STATUS_OK) {
        u->state = OPEN;
    } else {
        release_quota(s, u);
        release_hold(s, u);
        htab_remove(&s->uploads, &u->node);
        upload_free(u);
    }
    pthread_cond_broadcast(&s->cond);
    return st;
}

// Mutex held.
static enum status create_locked(struct object_store *s, const struct object_upload_spec *spec,
                                 struct object_upload_info *ret, struct err *err)
{
    struct upload *u;
    struct entry *e;
    enum status st = store_settled(s, spec->digest, &e, err);
    if (st == STATUS_OK)
        st = find_settled(s, spec->id, &u, err);
    if (st != STATUS_OK)
        return st;
    if (u && !same_spec(u, spec))
        return err_set(err, STATUS_ALREADY_EXISTS, "upload %s: another one has this id", spec->id);
    if (!u) {
        u = upload_new(spec);
        if (!u)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "upload: out of memory");
        u->state = CREATING;
        u->has_leaves = u->n_leaves == 0;
        u->touched_wall_ms = store_wall_ms(s);
        htab_insert(&s->uploads, &u->node);
        notice_object(s, u);
        st = create_new(s, u, err);
        if (st != STATUS_OK)
            return st;
    }
    u->touched_wall_ms = store_wall_ms(s);
    notice_object(s, u);
    info_of(u, ret);
    return STATUS_OK;
}

enum status object_upload_create(struct object_store *s, const struct object_upload_spec *spec,
                                 struct object_upload_info *ret, struct err *err)
{
    enum status st = check_spec(spec, err);
    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&s->mu);
    st = create_locked(s, spec, ret, err);
    pthread_mutex_unlock(&s->mu);
    return st;
}

// ---------------------------------------------------------------- use by a connection

static enum status open_files(struct object_store *s, struct upload *u, struct err *err)
{
    char path[PATH_SIZE];
    enum status st = STATUS_OK;
    if (u->fd < 0) {
        path_of(path, u->id, "data");
        st = io_open(&s->io, s->dirfd, path, O_RDWR, &u->fd, err);
    }
    if (st == STATUS_OK && u->have_fd < 0) {
        path_of(path, u->id, "have");
        st = io_open(&s->io, s->dirfd, path, O_RDWR, &u->have_fd, err);
    }
    return st;
}

// Mutex held. The last one closes the files, and frees an upload that was dropped meanwhile.
static void leave(struct object_store *s, struct upload *u)
{
    if (--u->n_users > 0)
        return;
    if (find(s, u->id) != u) {
        upload_free(u);
        return;
    }
    int fd = u->fd, have_fd = u->have_fd;
    u->fd = u->have_fd = -1;
    if (fd >= 0)
        close(fd);
    if (have_fd >= 0)
        close(have_fd);
}

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
    enum status st = find_settled(s, id, &u, err);
    if (st == STATUS_OK && (!u || strcmp(u->owner, owner) != 0))
        st = err_set(err, STATUS_NOT_FOUND, "upload %s: unknown; open it again", id);
    if (st == STATUS_OK) {
        u->n_users++;
        u->touched_wall_ms = store_wall_ms(s);
        notice_object(s, u);
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
    leave(c->store, c->u);
    pthread_mutex_unlock(&c->store->mu);
    mem_free(c);
}

void object_upload_info(struct object_upload *c, struct object_upload_info *ret)
{
    pthread_mutex_lock(&c->store->mu);
    notice_object(c->store, c->u);
    info_of(c->u, ret);
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
    bool whole = u->state == DONE || is_held(u);
    for (int64_t i = 0; !whole && i < u->n_leaves; i++) {
        if (i % 8 == 0 && u->have[i / 8] == 0xff) {
            i += 7;
            continue;
        }
        if (bit_get(u->have, i))
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
    *ret_done = u->state == DONE || u->state == FINISHING || is_held(u);
    if (*ret_done || (u->state == OPEN && find(s, u->id) == u))
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
        st = open_files(c->store, u, err);
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
    st = open_files(s, u, err);
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
    enum status st = open_files(c->store, c->u, err);
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
        *ret_skip = bit_get(u->have, leaf);
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
    st = io_read(io, u->fd, "leaf digest", u->size + leaf * OBJECT_DIGEST_SIZE, want, sizeof want,
                 err);
    if (st == STATUS_OK && !object_leaf_is_good(want, p, n))
        st = err_set(err, STATUS_DATA_LOSS, "upload %s: leaf %lld does not match its digest", u->id,
                     (long long)leaf);
    if (st == STATUS_OK)
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
        if (bit_get(u->have, leaf))
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
    enum status st = io_sync(&s->io, u->fd, "upload", err);
    AUTO(mem_free_p) uint8_t *bytes = NULL;
    size_t lo = 0, hi = 0;
    pthread_mutex_lock(&s->mu);
    if (st != STATUS_OK)
        u->epoch++;
    else if (c->epoch != u->epoch)
        st = err_set(err, STATUS_INTERNAL, "upload %s: the disk failed; send it again", u->id);
    if (st == STATUS_OK) {
        claim(c, &lo, &hi);
        bytes = hi > lo ? mem_dup(u->have + lo, hi - lo) : NULL;
    }
    pthread_mutex_unlock(&s->mu);
    c->n_pending = 0;
    if (st != STATUS_OK || hi <= lo)
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

// ---------------------------------------------------------------- finish

// The upload is FINISHING and ours, no write is running; mutex not held.
static enum status make_object(struct object_store *s, struct upload *u, struct err *err)
{
    uint8_t item[ITEM_SIZE], footer[FOOTER_SIZE];
    char path[PATH_SIZE];
    bool existed, parsed = item_parse(u->item, item);
    assert(parsed); // checked at create and load
    (void)parsed;
    footer_make(footer, u->size);
    path_of(path, u->id, "data");
    pthread_mutex_lock(&u->disk_mu);
    enum status st = open_files(s, u, err);
    if (st == STATUS_OK)
        st = io_write(&s->io, u->fd, path, stored_bytes(u->size) - FOOTER_SIZE, footer,
                      sizeof footer, err);
    if (st == STATUS_OK)
        st = store_publish(s, u->fd, path, u->digest, u->size, item, &existed, err);
    pthread_mutex_unlock(&u->disk_mu);
    return st;
}

static enum status pin_held(struct object_store *s, struct upload *u, struct err *err)
{
    uint8_t item[ITEM_SIZE];
    bool parsed = item_parse(u->item, item);
    assert(parsed);
    (void)parsed;
    pthread_mutex_lock(&s->mu);
    enum status st = store_pin_live(s, item, u->held, err);
    if (st == STATUS_OK)
        st = pin_log_commit(&s->log, &s->mu, &s->cond, err);
    pthread_mutex_unlock(&s->mu);
    return st;
}

static void delete_parts(struct object_store *s, const struct upload *u)
{
    char path[PATH_SIZE];
    path_of(path, u->id, "data");
    io_discard(&s->io, s->dirfd, path);
    path_of(path, u->id, "have");
    io_discard(&s->io, s->dirfd, path);
}

// Mutex held; the upload is OPEN and complete.
static enum status finish_open(struct object_store *s, struct upload *u, struct err *err)
{
    enum status st = STATUS_OK;
    u->state = FINISHING;
    u->n_users++;
    while (st == STATUS_OK && u->n_writing > 0)
        st = store_wait(s, "upload", err);
    bool held = is_held(u);
    pthread_mutex_unlock(&s->mu);
    if (st == STATUS_OK)
        st = held ? pin_held(s, u, err) : make_object(s, u, err);
    if (st == STATUS_OK)
        st = write_state(s, u, "done", err);
    if (st == STATUS_OK)
        delete_parts(s, u);
    pthread_mutex_lock(&s->mu);
    u->state = st == STATUS_OK ? DONE : OPEN;
    if (st == STATUS_OK) {
        release_hold(s, u);
        release_quota(s, u);
    }
    leave(s, u);
    pthread_cond_broadcast(&s->cond);
    return st;
}

enum status object_upload_finish(struct object_store *s, const char *id,
                                 struct object_upload_info *ret, struct err *err)
{
    struct upload *u;
    pthread_mutex_lock(&s->mu);
    enum status st = find_settled(s, id, &u, err);
    if (st == STATUS_OK && !u)
        st = err_set(err, STATUS_NOT_FOUND, "upload %s: unknown", id);
    if (st == STATUS_OK && u->state == OPEN) {
        notice_object(s, u);
        if (!is_held(u) && (!u->has_leaves || u->n_have < u->n_leaves))
            st = err_set(err, STATUS_FAILED_PRECONDITION, "upload %s: %lld bytes are missing", id,
                         (long long)(u->size - u->have_bytes));
        else
            st = finish_open(s, u, err);
    }
    if (st == STATUS_OK) {
        u->touched_wall_ms = store_wall_ms(s);
        info_of(u, ret);
    }
    pthread_mutex_unlock(&s->mu);
    return st;
}

// ---------------------------------------------------------------- drop, expiry

// Mutex held.
static enum status drop_locked(struct object_store *s, struct upload *u, struct err *err)
{
    enum state before = u->state;
    u->state = DROPPING;
    pthread_mutex_unlock(&s->mu);
    enum status st = delete_files(s, u->id, err);
    pthread_mutex_lock(&s->mu);
    if (st != STATUS_OK) {
        u->state = before; // some files may be gone: then it answers errors until it is dropped
    } else {
        release_hold(s, u);
        release_quota(s, u);
        htab_remove(&s->uploads, &u->node);
        if (u->n_users == 0)
            upload_free(u);
    }
    pthread_cond_broadcast(&s->cond);
    return st;
}

enum status object_upload_drop(struct object_store *s, const char *id, struct err *err)
{
    struct upload *u;
    pthread_mutex_lock(&s->mu);
    enum status st = find_settled(s, id, &u, err);
    if (st == STATUS_OK && u)
        st = drop_locked(s, u, err);
    pthread_mutex_unlock(&s->mu);
    return st;
}

static struct upload *find_expired(const struct object_store *s, int64_t now_ms)
{
    for (size_t i = 0; i < s->uploads.n_slots; i++)
        for (struct hnode *n = s->uploads.slots[i]; n; n = n->next) {
            struct upload *u = list_entry(n, struct upload, node);
            if ((u->state == OPEN || u->state == DONE) && u->n_users == 0 &&
                now_ms - u->touched_wall_ms >= s->o.upload_ttl_ms)
                return u;
        }
    return NULL;
}

enum status object_upload_expire(struct object_store *s, int64_t *ret_dropped, struct err *err)
{
    *ret_dropped = 0;
    enum status st = STATUS_OK;
    int64_t now_ms = store_wall_ms(s);
    pthread_mutex_lock(&s->mu);
    for (struct upload *u; st == STATUS_OK && (u = find_expired(s, now_ms));) {
        st = drop_locked(s, u, err);
        *ret_dropped += st == STATUS_OK;
    }
    pthread_mutex_unlock(&s->mu);
    return st;
}

// ---------------------------------------------------------------- start

static bool parse_state(const char *text, struct object_upload_spec *spec, char state[8],
                        char owner[UUID_SIZE], char item[UUID_SIZE])
{
    char hex[OBJECT_HEX_SIZE], size[24];
    if (sscanf(text, "cauce-upload 1 %7s %36s %36s %23s %64s", state, owner, item, size, hex) != 5)
        return false;
    spec->owner = owner;
    spec->item = item;
    return str_unhex(spec->digest, OBJECT_DIGEST_SIZE, hex) &&
           str_parse_i64(size, 0, OBJECT_MAX_BYTES, &spec->size, NULL) == STATUS_OK &&
           check_spec(spec, NULL) == STATUS_OK;
}

static enum status read_small(struct object_store *s, const char *path, char *text, size_t size,
                              struct stat *st_file, struct err *err)
{
    int fd;
    enum status st = io_open(&s->io, s->dirfd, path, O_RDONLY, &fd, err);
    if (st != STATUS_OK)
        return st;
    if (fstat(fd, st_file) != 0)
        st = err_errno(err, errno, "stat %s", path);
    size_t n = st == STATUS_OK && st_file->st_size > 0 ? (size_t)st_file->st_size : 0;
    if (n >= size)
        n = 0; // not ours
    if (st == STATUS_OK)
        st = io_read(&s->io, fd, path, 0, text, n, err);
    close(fd);
    text[st == STATUS_OK ? n : 0] = 0;
    return st;
}

static int64_t mtime_ms(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000 + st->st_mtim.tv_nsec / 1000000;
}

// The map of an open upload; a short file (power loss right after create) reads as nothing there.
static enum status load_have(struct object_store *s, struct upload *u, struct err *err)
{
    char path[PATH_SIZE];
    struct stat stt;
    path_of(path, u->id, "have");
    enum status st = open_files(s, u, err);
    if (st != STATUS_OK)
        return st;
    if (fstat(u->have_fd, &stt) != 0)
        return err_errno(err, errno, "stat %s", path);
    if (mtime_ms(&stt) > u->touched_wall_ms)
        u->touched_wall_ms = mtime_ms(&stt);
    size_t n = have_size(u);
    if (stt.st_size != (int64_t)n)
        return io_resize(&s->io, u->have_fd, path, (int64_t)n, err);
    uint8_t head[HAVE_HEAD];
    st = io_read(&s->io, u->have_fd, path, 0, head, sizeof head, err);
    if (st == STATUS_OK)
        st = io_read(&s->io, u->have_fd, path, HAVE_HEAD, u->have, n - HAVE_HEAD, err);
    if (st != STATUS_OK)
        return st;
    u->has_leaves = head[0] == 1 || u->n_leaves == 0;
    for (int64_t i = 0; i < u->n_leaves; i++)
        if (bit_get(u->have, i)) {
            u->n_have++;
            u->have_bytes += (int64_t)object_leaf_len(u->size, i);
        }
    return STATUS_OK;
}

// An open upload whose data went is either one that a crash cut after the object was made, or lost.
static enum status load_open(struct object_store *s, struct upload *u, bool *ret_keep,
                             struct err *err)
{
    char path[PATH_SIZE];
    struct stat stt;
    path_of(path, u->id, "data");
    notice_object(s, u);
    bool has_data = fstatat(s->dirfd, path, &stt, AT_SYMLINK_NOFOLLOW) == 0;
    *ret_keep = has_data || u->held;
    if (!has_data)
        return STATUS_OK;
    u->reserved = true;
    s->reserved_bytes += stored_bytes(u->size);
    enum status st = load_have(s, u, err);
    if (st == STATUS_OK && stt.st_size != stored_bytes(u->size))
        st = io_resize(&s->io, u->fd, path, stored_bytes(u->size), err);
    s->unwritten_bytes += stored_bytes(u->size) - u->have_bytes;
    return st;
}

static void close_files(struct upload *u)
{
    if (u->fd >= 0)
        close(u->fd);
    if (u->have_fd >= 0)
        close(u->have_fd);
    u->fd = u->have_fd = -1;
}

static enum status load_upload(struct object_store *s, const char *id, struct err *err)
{
    char path[PATH_SIZE], text[300], state[8], owner[UUID_SIZE], item[UUID_SIZE];
    struct stat stt;
    struct object_upload_spec spec = {.id = id};
    path_of(path, id, "state");
    enum status st = read_small(s, path, text, sizeof text, &stt, err);
    if (st != STATUS_OK)
        return st;
    if (!parse_state(text, &spec, state, owner, item))
        return delete_files(s, id, err); // unreadable: its owner opens it again
    struct upload *u = upload_new(&spec);
    if (!u)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "upload: out of memory");
    u->touched_wall_ms = mtime_ms(&stt);
    u->state = strcmp(state, "done") == 0 ? DONE : OPEN;
    htab_insert(&s->uploads, &u->node);
    bool keep = true;
    if (u->state == OPEN)
        st = load_open(s, u, &keep, err);
    close_files(u);
    if (st == STATUS_OK && !keep) {
        htab_remove(&s->uploads, &u->node);
        upload_free(u);
        st = delete_files(s, id, err);
    }
    return st;
}

static enum status load_state_file(void *ud, const char *name, struct err *err)
{
    char id[UUID_SIZE];
    if (strlen(name) != UUID_SIZE - 1 + strlen(".state") || !str_ends_with(name, ".state"))
        return STATUS_OK;
    memcpy(id, name, UUID_SIZE - 1);
    id[UUID_SIZE - 1] = 0;
    return uuid_is_valid(id) ? load_upload(ud, id, err) : STATUS_OK;
}

// Data and maps that no open upload owns.
static enum status drop_litter(void *ud, const char *name, struct err *err)
{
    struct object_store *s = ud;
    if (!str_ends_with(name, ".data") && !str_ends_with(name, ".have"))
        return STATUS_OK;
    char id[UUID_SIZE], path[300];
    size_t n = strlen(name) - strlen(".data");
    const struct upload *u = NULL;
    if (n == UUID_SIZE - 1) {
        memcpy(id, name, n);
        id[n] = 0;
        u = find(s, id);
    }
    if (u && u->state == OPEN)
        return STATUS_OK;
    snprintf(path, sizeof path, "uploads/%s", name);
    return io_unlink(&s->io, s->dirfd, path, err);
}

enum status uploads_load(struct object_store *s, struct err *err)
{
    enum status st = io_mkdir(&s->io, s->dirfd, "uploads", err);
    if (st == STATUS_OK)
        st = io_sync_dir(&s->io, s->dirfd, ".", err);
    if (st == STATUS_OK)
        st = io_each(s->dirfd, "uploads", load_state_file, s, err);
    if (st == STATUS_OK)
        st = io_each(s->dirfd, "uploads", drop_litter, s, err);
    return st;
}

void uploads_done(struct object_store *s)
{
    for (size_t i = 0; i < s->uploads.n_slots; i++)
        for (struct hnode *n = s->uploads.slots[i], *next; n; n = next) {
            next = n->next;
            upload_free(list_entry(n, struct upload, node));
        }
    htab_done(&s->uploads);
}
