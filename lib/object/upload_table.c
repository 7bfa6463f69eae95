// The table of uploads: what each of them is, and its files.
#include "object/upload_internal.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"

void upload_path(char dst[UPLOAD_PATH_SIZE], const char *id, const char *kind)
{
    snprintf(dst, UPLOAD_PATH_SIZE, "uploads/%s.%s", id, kind);
}

static uint64_t id_hash(const char *id)
{
    uint64_t h = UINT64_C(1469598103934665603); // FNV-1a; ids are made by our own services
    for (; *id; id++)
        h = (h ^ (uint8_t)*id) * UINT64_C(1099511628211);
    return h;
}

struct upload *upload_find(const struct object_store *s, const char *id)
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
enum status upload_find_settled(struct object_store *s, const char *id, struct upload **ret,
                                struct err *err)
{
    for (;;) {
        *ret = upload_find(s, id);
        if (!*ret || (*ret)->state == UPLOAD_OPEN || (*ret)->state == UPLOAD_DONE)
            return STATUS_OK;
        enum status st = store_wait(s, "upload", err);
        if (st != STATUS_OK)
            return st;
    }
}

struct upload *upload_new(const struct object_upload_spec *spec)
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
    u->prove = spec->prove;
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

void upload_free(struct upload *u)
{
    upload_close_files(u);
    pthread_mutex_destroy(&u->disk_mu);
    mem_free(u->have);
    mem_free(u);
}

int64_t uploads_n_open(const struct object_store *s)
{
    int64_t n = 0;
    for (size_t i = 0; i < s->uploads.n_slots; i++)
        for (struct hnode *h = s->uploads.slots[i]; h; h = h->next)
            n += list_entry(h, struct upload, node)->state != UPLOAD_DONE;
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

void upload_release_hold(struct object_store *s, struct upload *u)
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
void upload_release_quota(struct object_store *s, struct upload *u)
{
    if (!u->reserved)
        return;
    u->reserved = false;
    s->reserved_bytes -= stored_bytes(u->size);
    s->unwritten_bytes -= stored_bytes(u->size) - u->have_bytes;
}

// Mutex held. Hold the object if it is here.
static bool try_hold(struct object_store *s, struct upload *u)
{
    struct entry *e = u->state <= UPLOAD_OPEN && !u->held ? index_find(&s->ix, u->digest) : NULL;
    if (!e || e->state != ENTRY_LIVE || e->size != u->size)
        return false;
    set_hold(s, u, e);
    return true;
}

// Mutex held: the object may have come by another way since. From then on nothing need be sent.
void upload_notice_object(struct object_store *s, struct upload *u)
{
    if (!u->prove)
        (void)try_hold(s, u);
}

static void ask_for_leaf(struct upload *u, int64_t leaf)
{
    u->have[leaf / 8] &= (uint8_t) ~(1U << leaf % 8);
    u->n_have--;
    u->have_bytes -= (int64_t)object_leaf_len(u->size, leaf);
}

// Mutex held.
void upload_ask_for_proof(struct object_store *s, struct upload *u)
{
    uint8_t item[ITEM_SIZE];
    if (!try_hold(s, u))
        return;
    u->proving = u->has_leaves = true;
    memset(u->have, 0xff, (size_t)(u->n_leaves + 7) / 8);
    u->n_have = u->n_leaves;
    u->have_bytes = u->size;
    if (item_parse(u->item, item) && index_find_pin(&s->ix, item, u->digest))
        return; // a crash right after this very upload made the object
    int64_t n = u->n_leaves < OBJECT_PROOF_LEAVES ? u->n_leaves : OBJECT_PROOF_LEAVES;
    while (u->n_leaves - u->n_have < n) {
        int64_t leaf = (int64_t)rand_below((uint64_t)u->n_leaves);
        if (upload_bit(u->have, leaf))
            ask_for_leaf(u, leaf);
    }
}

// Is the object that it found here still here? Only scrub can have taken it away.
bool upload_is_held(const struct upload *u)
{
    return u->held && u->held->state == ENTRY_LIVE;
}

bool upload_is_whole(const struct upload *u)
{
    return u->state == UPLOAD_DONE || (upload_is_held(u) && !u->proving);
}

bool upload_is_complete(const struct upload *u)
{
    return upload_is_whole(u) || (u->has_leaves && u->n_have == u->n_leaves);
}

void upload_get_info(const struct upload *u, struct object_upload_info *ret)
{
    bool whole = upload_is_whole(u);
    *ret = (struct object_upload_info){
        .size = u->size,
        .existed = whole,
        .need_leaves = !whole && !u->has_leaves,
        .n_have = whole ? u->n_leaves : u->n_have,
        .missing_bytes = whole ? 0 : u->size - u->have_bytes,
    };
    memcpy(ret->digest, u->digest, sizeof ret->digest);
}

size_t upload_have_size(const struct upload *u)
{
    return HAVE_HEAD + (size_t)(u->n_leaves + 7) / 8;
}

static bool is_empty_digest(const uint8_t *digest)
{
    uint8_t empty[OBJECT_DIGEST_SIZE];
    object_digest(empty, "", 0);
    return memcmp(empty, digest, sizeof empty) == 0;
}

enum status upload_check_spec(const struct object_upload_spec *spec, struct err *err)
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

// ---------------------------------------------------------------- state file

enum status upload_write_state(struct object_store *s, const struct upload *u, const char *state,
                               struct err *err)
{
    char hex[OBJECT_HEX_SIZE], text[300], path[UPLOAD_PATH_SIZE], temp[UPLOAD_PATH_SIZE];
    str_hex(hex, u->digest, OBJECT_DIGEST_SIZE);
    int n = snprintf(text, sizeof text, "cauce-upload 1 %s %s %s %" PRId64 " %s\n", state, u->owner,
                     u->item, u->size, hex);
    upload_path(path, u->id, "state");
    store_temp_name(s, temp, sizeof temp);
    return io_write_file(&s->io, s->dirfd, temp, path, "uploads", text, (size_t)n, err);
}

enum status upload_delete_files(struct object_store *s, const char *id, struct err *err)
{
    char path[UPLOAD_PATH_SIZE];
    upload_path(path, id, "state");
    enum status st = io_unlink(&s->io, s->dirfd, path, err);
    if (st == STATUS_OK)
        st = io_sync_dir(&s->io, s->dirfd, "uploads", err);
    if (st == STATUS_OK)
        upload_discard_parts(s, id);
    return st;
}

void upload_discard_parts(struct object_store *s, const char *id)
{
    char path[UPLOAD_PATH_SIZE];
    upload_path(path, id, "data");
    io_discard(&s->io, s->dirfd, path);
    upload_path(path, id, "have");
    io_discard(&s->io, s->dirfd, path);
}

void upload_discard_files(struct object_store *s, const char *id)
{
    char path[UPLOAD_PATH_SIZE];
    upload_path(path, id, "state");
    io_discard(&s->io, s->dirfd, path);
    upload_discard_parts(s, id);
}

// ---------------------------------------------------------------- open files

enum status upload_open_files(struct object_store *s, struct upload *u, struct err *err)
{
    char path[UPLOAD_PATH_SIZE];
    enum status st = STATUS_OK;
    if (u->fd < 0) {
        upload_path(path, u->id, "data");
        st = io_open(&s->io, s->dirfd, path, O_RDWR, &u->fd, err);
    }
    if (st == STATUS_OK && u->have_fd < 0) {
        upload_path(path, u->id, "have");
        st = io_open(&s->io, s->dirfd, path, O_RDWR, &u->have_fd, err);
    }
    return st;
}

void upload_close_files(struct upload *u)
{
    if (u->fd >= 0)
        close(u->fd);
    if (u->have_fd >= 0)
        close(u->have_fd);
    u->fd = u->have_fd = -1;
}

// Mutex held. The last one closes the files, and frees an upload that was dropped meanwhile.
void upload_leave(struct object_store *s, struct upload *u)
{
    if (--u->n_users > 0)
        return;
    if (upload_find(s, u->id) != u) {
        upload_free(u);
        return;
    }
    upload_close_files(u);
}
