// Uploads as wholes: made, finished, dropped, expired. upload_internal.h has the design.
#include "object/upload_internal.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"

static enum status make_file(struct object_store *s, const char *id, const char *kind, int64_t size,
                             struct err *err)
{
    char path[UPLOAD_PATH_SIZE];
    int fd = -1;
    upload_path(path, id, kind);
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
        return upload_write_state(s, u, u->prove ? "prove" : "held", err);
    enum status st = make_file(s, u->id, "data", stored_bytes(u->size), err);
    if (st == STATUS_OK)
        st = make_file(s, u->id, "have", (int64_t)upload_have_size(u), err);
    if (st == STATUS_OK)
        st = upload_write_state(s, u, u->prove ? "prove" : "open", err);
    return st;
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
        upload_discard_files(s, u->id);
    pthread_mutex_lock(&s->mu);
    if (st == STATUS_OK) {
        u->state = UPLOAD_OPEN;
    } else {
        upload_release_quota(s, u);
        upload_release_hold(s, u);
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
        st = upload_find_settled(s, spec->id, &u, err);
    if (st != STATUS_OK)
        return st;
    if (u && !same_spec(u, spec))
        return err_set(err, STATUS_ALREADY_EXISTS, "upload %s: another one has this id", spec->id);
    if (!u) {
        u = upload_new(spec);
        if (!u)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "upload: out of memory");
        u->state = UPLOAD_CREATING;
        u->has_leaves = u->n_leaves == 0;
        u->touched_wall_ms = store_wall_ms(s);
        htab_insert(&s->uploads, &u->node);
        if (u->prove)
            upload_ask_for_proof(s, u);
        else
            upload_notice_object(s, u);
        st = create_new(s, u, err);
        if (st != STATUS_OK)
            return st;
    }
    u->touched_wall_ms = store_wall_ms(s);
    upload_notice_object(s, u);
    upload_get_info(u, ret);
    return STATUS_OK;
}

enum status object_upload_create(struct object_store *s, const struct object_upload_spec *spec,
                                 struct object_upload_info *ret, struct err *err)
{
    enum status st = upload_check_spec(spec, err);
    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&s->mu);
    st = create_locked(s, spec, ret, err);
    pthread_mutex_unlock(&s->mu);
    return st;
}

// ---------------------------------------------------------------- finish

// The upload is FINISHING and ours, no write is running; mutex not held.
static enum status make_object(struct object_store *s, struct upload *u, struct err *err)
{
    uint8_t item[ITEM_SIZE], footer[FOOTER_SIZE];
    char path[UPLOAD_PATH_SIZE];
    bool existed, parsed = item_parse(u->item, item);
    assert(parsed); // checked at create and load
    (void)parsed;
    footer_make(footer, u->size);
    upload_path(path, u->id, "data");
    pthread_mutex_lock(&u->disk_mu);
    enum status st = upload_open_files(s, u, err);
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

// Mutex held; the upload is OPEN and complete.
static enum status finish_open(struct object_store *s, struct upload *u, struct err *err)
{
    enum status st = STATUS_OK;
    u->state = UPLOAD_FINISHING;
    u->n_users++;
    while (st == STATUS_OK && u->n_writing > 0)
        st = store_wait(s, "upload", err);
    bool held = upload_is_held(u);
    pthread_mutex_unlock(&s->mu);
    if (st == STATUS_OK)
        st = held ? pin_held(s, u, err) : make_object(s, u, err);
    if (st == STATUS_OK)
        st = upload_write_state(s, u, "done", err);
    if (st == STATUS_OK)
        upload_discard_parts(s, u->id);
    pthread_mutex_lock(&s->mu);
    u->state = st == STATUS_OK ? UPLOAD_DONE : UPLOAD_OPEN;
    if (st == STATUS_OK) {
        upload_release_hold(s, u);
        upload_release_quota(s, u);
    }
    upload_leave(s, u);
    pthread_cond_broadcast(&s->cond);
    return st;
}

enum status object_upload_finish(struct object_store *s, const char *id,
                                 struct object_upload_info *ret, struct err *err)
{
    struct upload *u;
    pthread_mutex_lock(&s->mu);
    enum status st = upload_find_settled(s, id, &u, err);
    if (st == STATUS_OK && !u)
        st = err_set(err, STATUS_NOT_FOUND, "upload %s: unknown", id);
    if (st == STATUS_OK && u->state == UPLOAD_OPEN) {
        upload_notice_object(s, u);
        if (!upload_is_complete(u))
            st = err_set(err, STATUS_FAILED_PRECONDITION, "upload %s: %lld bytes are missing", id,
                         (long long)(u->size - u->have_bytes));
        else
            st = finish_open(s, u, err);
    }
    if (st == STATUS_OK) {
        u->touched_wall_ms = store_wall_ms(s);
        upload_get_info(u, ret);
    }
    pthread_mutex_unlock(&s->mu);
    return st;
}

// ---------------------------------------------------------------- drop, expiry

// Mutex held.
static enum status drop_locked(struct object_store *s, struct upload *u, struct err *err)
{
    enum upload_state before = u->state;
    u->state = UPLOAD_DROPPING;
    pthread_mutex_unlock(&s->mu);
    enum status st = upload_delete_files(s, u->id, err);
    pthread_mutex_lock(&s->mu);
    if (st != STATUS_OK) {
        u->state = before; // some files may be gone: then it answers errors until it is dropped
    } else {
        upload_release_hold(s, u);
        upload_release_quota(s, u);
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
    enum status st = upload_find_settled(s, id, &u, err);
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
            if ((u->state == UPLOAD_OPEN || u->state == UPLOAD_DONE) && u->n_users == 0 &&
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
