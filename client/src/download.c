// Downloads into a library folder: piece by piece, each verified; what is there is verified and
// kept.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "manifest.h"

struct download {
    struct cauce *c;
    const char *folder;
    cauce_progress_fn fn;
    void *ud;
    struct client_play *play;
    struct manifest m;
    char *media_part, *manifest_part, *media, *manifest, *dir;
    int media_fd, manifest_fd;
    int64_t verified, received;
};

static bool report(struct download *d, const char *stage)
{
    cauce_progress p = {stage, client_play_info(d->play)->size, d->received, d->verified};
    return !d->fn || d->fn(&p, d->ud) == 0;
}

// ---------------------------------------------------------------- what is to be downloaded

// What the pieces depend on: another source or choice of renditions starts anew.
static enum status make_key(struct download *d, struct err *err)
{
    const cauce_stream_info *i = &d->m.info;
    struct buf first;
    buf_init(&first, MANIFEST_MAX_PIECE_BYTES);
    enum status s = client_play_piece(d->play, 0, &first, err);
    uint8_t digest[OBJECT_DIGEST_SIZE];
    char hex[OBJECT_HEX_SIZE];
    if (s == STATUS_OK) {
        object_digest(digest, first.data, first.len);
        str_hex(hex, digest, sizeof(digest));
        snprintf(d->m.key, sizeof(d->m.key), "%s/%s/%.24s/%lld", i->video_rendition,
                 i->audio_rendition, hex, (long long)i->size);
    }
    buf_done(&first);
    return s;
}

static enum status describe(struct download *d, const char *item_id, struct err *err)
{
    enum status s = client_play_new(d->c, item_id, true, NULL, &d->play, err);
    if (s != STATUS_OK)
        return s;
    const struct client_piece *layout = NULL;
    if (client_play_layout(d->play, &layout, NULL) == STATUS_CANCELLED) // for the size, if known
        return err_set(err, STATUS_CANCELLED, "cancelled");
    d->m.info = *client_play_info(d->play);
    str_copy(d->m.item, sizeof(d->m.item), item_id);
    snprintf(d->m.file, sizeof(d->m.file), "media.%s", client_play_extension(d->play));
    s = make_key(d, err);
    const struct {
        const char *name;
        char **path;
    } paths[] = {{"", &d->dir},
                 {MEDIA_PART, &d->media_part},
                 {MANIFEST_PART, &d->manifest_part},
                 {MANIFEST_NAME, &d->manifest},
                 {d->m.file, &d->media}};
    for (size_t i = 0; s == STATUS_OK && i < N_ELEMENTS(paths); i++)
        s = manifest_path(d->folder, item_id, paths[i].name, paths[i].path, err);
    return s;
}

// ---------------------------------------------------------------- what is there

// How many pieces of the file are good; progress counts them as verified.
static enum status verify(struct download *d, const struct manifest *had, int fd, size_t *ret_good,
                          struct err *err)
{
    struct buf b;
    buf_init(&b, MANIFEST_MAX_PIECE_BYTES + 1);
    enum status s = STATUS_OK;
    *ret_good = 0;
    d->verified = 0;
    for (size_t i = 0; i < had->n_pieces && s == STATUS_OK; i++) {
        buf_reset(&b);
        s = manifest_read_piece(had, fd, i, &b, err);
        if (s == STATUS_OK) {
            *ret_good = i + 1;
            d->verified += had->pieces[i].at.len;
            if (!report(d, "verify"))
                s = err_set(err, STATUS_CANCELLED, "cancelled");
        }
    }
    buf_done(&b);
    return s == STATUS_DATA_LOSS ? STATUS_OK : s;
}

// True when the finished file is there and good.
static enum status check_finished(struct download *d, bool *ret, struct err *err)
{
    *ret = false;
    struct manifest had;
    if (manifest_load(d->manifest, &had, NULL) != STATUS_OK)
        return STATUS_OK;
    int fd = open(d->media, O_RDONLY | O_CLOEXEC);
    size_t good = 0;
    enum status s = STATUS_OK;
    if (fd >= 0 && str_eq(had.key, d->m.key))
        s = verify(d, &had, fd, &good, err);
    *ret = s == STATUS_OK && had.is_complete && good > 0 && good == had.n_pieces;
    if (fd >= 0)
        close(fd);
    manifest_done(&had);
    if (s == STATUS_OK && !*ret) { // goes on as a download that was cut
        rename(d->media, d->media_part);
        rename(d->manifest, d->manifest_part);
    }
    return s;
}

static enum status open_parts(struct download *d, struct err *err)
{
    if ((mkdir(d->folder, 0777) != 0 && errno != EEXIST) ||
        (mkdir(d->dir, 0777) != 0 && errno != EEXIST))
        return err_errno(err, errno, "make folder %s", d->dir);
    d->media_fd = open(d->media_part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (d->media_fd < 0)
        return err_errno(err, errno, "open %s", d->media_part);
    return STATUS_OK;
}

static enum status write_all(int fd, const void *p, size_t n, const char *path, struct err *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t w = write(fd, (const char *)p + done, n - done);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return err_errno(err, errno, "write %s", path);
        done += (size_t)w;
    }
    return STATUS_OK;
}

// Write the manifest's present content as a new .part file and keep it open.
static enum status restart_manifest(struct download *d, struct err *err)
{
    struct buf b;
    buf_init(&b, MANIFEST_MAX_BYTES);
    manifest_put_head(&d->m, &b);
    for (size_t i = 0; i < d->m.n_pieces; i++)
        manifest_put_piece(&d->m.pieces[i], &b);
    enum status s =
        b.failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "manifest is too large") : STATUS_OK;
    if (s == STATUS_OK) {
        d->manifest_fd = open(d->manifest_part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (d->manifest_fd < 0)
            s = err_errno(err, errno, "open %s", d->manifest_part);
    }
    if (s == STATUS_OK)
        s = write_all(d->manifest_fd, b.data, b.len, d->manifest_part, err);
    buf_done(&b);
    return s;
}

// Keep the good pieces of a download that was cut; cut off the rest.
static enum status resume(struct download *d, struct err *err)
{
    struct manifest had;
    enum status s = STATUS_OK;
    size_t good = 0;
    if (manifest_load(d->manifest_part, &had, NULL) == STATUS_OK) {
        if (str_eq(had.key, d->m.key) && str_eq(had.file, d->m.file))
            s = verify(d, &had, d->media_fd, &good, err);
        for (size_t i = 0; s == STATUS_OK && i < good; i++)
            s = manifest_add(&d->m, &had.pieces[i], err);
        manifest_done(&had);
    }
    if (good == 0)
        d->verified = 0;
    if (s == STATUS_OK && ftruncate(d->media_fd, d->verified) != 0)
        s = err_errno(err, errno, "cut %s", d->media_part);
    if (s == STATUS_OK && lseek(d->media_fd, d->verified, SEEK_SET) < 0)
        s = err_errno(err, errno, "seek in %s", d->media_part);
    return s == STATUS_OK ? restart_manifest(d, err) : s;
}

// ---------------------------------------------------------------- the rest

static enum status take_piece(struct download *d, size_t i, struct buf *bytes, struct err *err)
{
    buf_reset(bytes);
    enum status s = client_play_piece(d->play, i, bytes, err);
    if (s != STATUS_OK)
        return s;
    struct manifest_piece p = {
        .at = {d->verified + d->received, (int64_t)bytes->len},
    };
    object_digest(p.digest, bytes->data, bytes->len);
    s = write_all(d->media_fd, bytes->data, bytes->len, d->media_part, err);
    if (s != STATUS_OK)
        return s;
    d->received += (int64_t)bytes->len;
    struct buf line;
    buf_init(&line, 256);
    manifest_put_piece(&p, &line);
    s = line.failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory")
                    : write_all(d->manifest_fd, line.data, line.len, d->manifest_part, err);
    buf_done(&line);
    return s == STATUS_OK ? manifest_add(&d->m, &p, err) : s;
}

static enum status take_rest(struct download *d, struct err *err)
{
    struct buf bytes;
    buf_init(&bytes, MANIFEST_MAX_PIECE_BYTES);
    size_t n = client_play_n_pieces(d->play);
    enum status s = STATUS_OK;
    for (size_t i = d->m.n_pieces; s == STATUS_OK && i < n; i++) {
        s = take_piece(d, i, &bytes, err);
        if (s == STATUS_OK && !report(d, "download"))
            s = err_set(err, STATUS_CANCELLED, "cancelled; the same command continues");
    }
    buf_done(&bytes);
    return s;
}

// The media file first: a manifest never names a file that is not there.
static enum status finish(struct download *d, struct err *err)
{
    static const char end[] = "end\n";
    enum status s = write_all(d->manifest_fd, end, strlen(end), d->manifest_part, err);
    if (s != STATUS_OK)
        return s;
    if (fsync(d->media_fd) != 0 || fsync(d->manifest_fd) != 0 ||
        rename(d->media_part, d->media) != 0 || rename(d->manifest_part, d->manifest) != 0)
        return err_errno(err, errno, "finish %s", d->media);
    int fd = open(d->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool synced = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0)
        close(fd);
    return synced ? STATUS_OK : err_errno(err, errno, "finish %s", d->media);
}

static enum status download(struct download *d, const char *item_id, struct err *err)
{
    bool finished = false;
    enum status s = describe(d, item_id, err);
    if (s == STATUS_OK)
        s = check_finished(d, &finished, err);
    if (s != STATUS_OK || finished)
        return s;
    s = open_parts(d, err);
    if (s == STATUS_OK)
        s = resume(d, err);
    if (s == STATUS_OK)
        s = take_rest(d, err);
    return s == STATUS_OK ? finish(d, err) : s;
}

cauce_status cauce_download(cauce *c, const char *item_id, const char *folder, cauce_progress_fn fn,
                            void *ud, cauce_download_result *ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    struct download d = {
        .c = c, .folder = folder, .fn = fn, .ud = ud, .media_fd = -1, .manifest_fd = -1};
    enum status s = download(&d, item_id, &e);
    if (s == STATUS_OK && ret) {
        memset(ret, 0, sizeof(*ret));
        str_copy(ret->path, sizeof(ret->path), d.media);
        ret->size = d.verified + d.received;
        ret->received = d.received;
        ret->verified = d.verified;
    }
    if (d.media_fd >= 0)
        close(d.media_fd);
    if (d.manifest_fd >= 0)
        close(d.manifest_fd);
    client_play_free(d.play);
    manifest_done(&d.m);
    mem_free(d.media_part);
    mem_free(d.manifest_part);
    mem_free(d.media);
    mem_free(d.manifest);
    mem_free(d.dir);
    return client_fail(&e, s, err);
}
