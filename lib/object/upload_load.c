// Uploads at the start of a store: read what the last run left, remove what it did not finish.
#include "object/upload_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"

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
           upload_check_spec(spec, NULL) == STATUS_OK;
}

static enum status read_small(struct object_store *s, const char *path, char *text, size_t size,
                              struct stat *st_file, struct err *err)
{
    int fd = -1;
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
    char path[UPLOAD_PATH_SIZE];
    struct stat stt;
    upload_path(path, u->id, "have");
    enum status st = upload_open_files(s, u, err);
    if (st != STATUS_OK)
        return st;
    if (fstat(u->have_fd, &stt) != 0)
        return err_errno(err, errno, "stat %s", path);
    if (mtime_ms(&stt) > u->touched_wall_ms)
        u->touched_wall_ms = mtime_ms(&stt);
    size_t n = upload_have_size(u);
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
        if (upload_bit(u->have, i)) {
            u->n_have++;
            u->have_bytes += (int64_t)object_leaf_len(u->size, i);
        }
    return STATUS_OK;
}

// An open upload whose data went is either one that a crash cut after the object was made, or lost.
static enum status load_open(struct object_store *s, struct upload *u, bool *ret_keep,
                             struct err *err)
{
    char path[UPLOAD_PATH_SIZE];
    struct stat stt;
    upload_path(path, u->id, "data");
    bool has_data = fstatat(s->dirfd, path, &stt, AT_SYMLINK_NOFOLLOW) == 0;
    if (u->prove && !has_data)
        upload_ask_for_proof(s, u);
    else
        upload_notice_object(s, u);
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

static enum status load_upload(struct object_store *s, const char *id, struct err *err)
{
    char path[UPLOAD_PATH_SIZE], text[300], state[8], owner[UUID_SIZE], item[UUID_SIZE];
    struct stat stt;
    struct object_upload_spec spec = {.id = id};
    upload_path(path, id, "state");
    enum status st = read_small(s, path, text, sizeof text, &stt, err);
    if (st != STATUS_OK)
        return st;
    if (!parse_state(text, &spec, state, owner, item))
        return upload_delete_files(s, id, err); // unreadable: its owner opens it again
    spec.prove = strcmp(state, "prove") == 0;
    struct upload *u = upload_new(&spec);
    if (!u)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "upload: out of memory");
    u->touched_wall_ms = mtime_ms(&stt);
    u->state = strcmp(state, "done") == 0 ? UPLOAD_DONE : UPLOAD_OPEN;
    htab_insert(&s->uploads, &u->node);
    bool keep = true;
    if (u->state == UPLOAD_OPEN)
        st = load_open(s, u, &keep, err);
    upload_close_files(u);
    if (st == STATUS_OK && !keep) {
        htab_remove(&s->uploads, &u->node);
        upload_free(u);
        st = upload_delete_files(s, id, err);
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
        u = upload_find(s, id);
    }
    if (u && u->state == UPLOAD_OPEN)
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
