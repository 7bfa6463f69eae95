// Backend: a folder of files, objects/ab/<64 hex digits>, sharded by the first byte of the digest.
//
// A file is the object's bytes, then its leaf digests, then the footer: "CAUCEOB1" and the size as
// big-endian 64 bits. Bytes come first so that [0, size) of the file can be sent as it is.
#include "object/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"

static const uint8_t footer_magic[8] = "CAUCEOB1"; // no NUL: exactly eight

int64_t stored_bytes(int64_t size)
{
    return size + object_n_leaves(size) * OBJECT_DIGEST_SIZE + FOOTER_SIZE;
}

int64_t stored_size(int64_t file_bytes)
{
    const int64_t per_leaf = OBJECT_LEAF_BYTES + OBJECT_DIGEST_SIZE;
    int64_t body = file_bytes - FOOTER_SIZE;
    if (body < 0 || body > stored_bytes(OBJECT_MAX_BYTES))
        return -1;
    int64_t size = body - (body + per_leaf - 1) / per_leaf * OBJECT_DIGEST_SIZE;
    return size >= 0 && size <= OBJECT_MAX_BYTES && stored_bytes(size) == file_bytes ? size : -1;
}

void footer_make(uint8_t ret[FOOTER_SIZE], int64_t size)
{
    memcpy(ret, footer_magic, sizeof footer_magic);
    for (int i = 0; i < 8; i++)
        ret[8 + i] = (uint8_t)((uint64_t)size >> (56 - 8 * i));
}

struct fs {
    struct backend backend;
    const struct io *io;
    int dirfd;
};

#define PATH_SIZE 96

static void object_path(char *dst, const char *folder, const uint8_t *digest)
{
    char hex[OBJECT_HEX_SIZE];
    str_hex(hex, digest, OBJECT_DIGEST_SIZE);
    snprintf(dst, PATH_SIZE, "%s/%.2s/%s", folder, hex, hex);
}

static void shard_path(char *dst, unsigned shard)
{
    snprintf(dst, PATH_SIZE, "objects/%02x", shard);
}

static struct fs *fs_of(struct backend *b)
{
    return (struct fs *)(void *)b; // first member
}

static enum status fs_publish(struct backend *b, const char *staged, const uint8_t *digest,
                              struct err *err)
{
    struct fs *fs = fs_of(b);
    char path[PATH_SIZE], shard[PATH_SIZE];
    object_path(path, "objects", digest);
    shard_path(shard, digest[0]);
    enum status s = io_rename(fs->io, fs->dirfd, staged, path, err);
    if (s != STATUS_OK)
        return s;
    s = io_sync_dir(fs->io, fs->dirfd, shard, err);
    if (s != STATUS_OK && io_rename(fs->io, fs->dirfd, path, staged, NULL) != STATUS_OK)
        io_discard(fs->io, fs->dirfd, path); // not acknowledged, so better not there
    return s;
}

static enum status fs_check(struct fs *fs, struct object_file *f, const char *path, struct err *err)
{
    struct stat st;
    if (fstat(f->fd, &st) != 0)
        return err_errno(err, errno, "stat %s", path);
    f->size = S_ISREG(st.st_mode) ? stored_size(st.st_size) : -1;
    if (f->size < 0)
        return err_set(err, STATUS_DATA_LOSS, "%s: not an object of %lld bytes", path,
                       (long long)st.st_size);
    uint8_t want[FOOTER_SIZE], got[FOOTER_SIZE];
    footer_make(want, f->size);
    enum status s = io_read(fs->io, f->fd, path, st.st_size - FOOTER_SIZE, got, sizeof got, err);
    if (s == STATUS_OK && memcmp(want, got, sizeof got) != 0)
        s = err_set(err, STATUS_DATA_LOSS, "%s: its end is damaged", path);
    return s;
}

static void fs_close(struct object_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    mem_free(f);
}

static enum status fs_open(struct backend *b, const uint8_t *digest, struct object_file **ret,
                           struct err *err)
{
    struct fs *fs = fs_of(b);
    char path[PATH_SIZE];
    object_path(path, "objects", digest);
    AUTO(object_file_free_p) struct object_file *f = mem_alloc(sizeof *f);
    if (!f)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "open %s: out of memory", path);
    *f = (struct object_file){.backend = b, .fd = -1};
    enum status s = io_open(fs->io, fs->dirfd, path, O_RDONLY, &f->fd, err);
    if (s == STATUS_OK)
        s = fs_check(fs, f, path, err);
    if (s == STATUS_OK)
        *ret = TAKE(f);
    return s;
}

static enum status fs_read(struct object_file *f, int64_t at, void *p, size_t n, struct err *err)
{
    return io_read(fs_of(f->backend)->io, f->fd, "object", at, p, n, err);
}

static enum status fs_remove(struct backend *b, const uint8_t *digest, struct err *err)
{
    char path[PATH_SIZE];
    object_path(path, "objects", digest);
    return io_unlink(fs_of(b)->io, fs_of(b)->dirfd, path, err);
}

static enum status fs_set_aside(struct backend *b, const uint8_t *digest, struct err *err)
{
    struct fs *fs = fs_of(b);
    char from[PATH_SIZE], to[PATH_SIZE], hex[OBJECT_HEX_SIZE];
    object_path(from, "objects", digest);
    str_hex(hex, digest, OBJECT_DIGEST_SIZE);
    snprintf(to, sizeof to, "damaged/%s", hex);
    return io_rename(fs->io, fs->dirfd, from, to, err);
}

struct each {
    struct fs *fs;
    enum status (*fn)(void *ud, const uint8_t *digest, int64_t size, struct err *err);
    void *ud;
    unsigned shard;
};

static enum status each_name(void *ud, const char *name, struct err *err)
{
    const struct each *e = ud;
    uint8_t digest[OBJECT_DIGEST_SIZE];
    if (!str_unhex(digest, sizeof digest, name) || digest[0] != e->shard)
        return STATUS_OK; // not ours
    char path[PATH_SIZE];
    object_path(path, "objects", digest);
    struct stat st;
    if (fstatat(e->fs->dirfd, path, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return err_errno(err, errno, "stat %s", path);
    return e->fn(e->ud, digest, S_ISREG(st.st_mode) ? stored_size(st.st_size) : -1, err);
}

static enum status fs_each(struct backend *b,
                           enum status (*fn)(void *ud, const uint8_t *digest, int64_t size,
                                             struct err *err),
                           void *ud, struct err *err)
{
    struct each e = {.fs = fs_of(b), .fn = fn, .ud = ud};
    enum status s = STATUS_OK;
    for (e.shard = 0; s == STATUS_OK && e.shard < 256; e.shard++) {
        char shard[PATH_SIZE];
        shard_path(shard, e.shard);
        s = io_each(e.fs->dirfd, shard, each_name, &e, err);
    }
    return s;
}

static void fs_free(struct backend *b)
{
    mem_free(fs_of(b));
}

static const struct backend_ops fs_ops = {
    .publish = fs_publish,
    .open = fs_open,
    .read = fs_read,
    .close = fs_close,
    .remove = fs_remove,
    .set_aside = fs_set_aside,
    .each = fs_each,
    .free = fs_free,
};

enum status backend_fs_new(const struct io *io, int dirfd, struct backend **ret, struct err *err)
{
    enum status s = io_mkdir(io, dirfd, "objects", err);
    if (s == STATUS_OK)
        s = io_mkdir(io, dirfd, "damaged", err);
    for (unsigned i = 0; s == STATUS_OK && i < 256; i++) {
        char shard[PATH_SIZE];
        shard_path(shard, i);
        s = io_mkdir(io, dirfd, shard, err);
    }
    if (s == STATUS_OK)
        s = io_sync_dir(io, dirfd, "objects", err);
    if (s == STATUS_OK)
        s = io_sync_dir(io, dirfd, ".", err);
    if (s != STATUS_OK)
        return s;
    struct fs *fs = mem_alloc(sizeof *fs);
    if (!fs)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "objects: out of memory");
    *fs = (struct fs){.backend = {&fs_ops}, .io = io, .dirfd = dirfd};
    *ret = &fs->backend;
    return STATUS_OK;
}
