// One MP4 file to keep, made of the segments of two renditions. Their heads come first, for the
// index at the beginning of the file; then each segment is fetched whole, checked against its
// digest, and its body written to its place. What a run that was cut has written is kept.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "media/cmaf.h"
#include "media/mp4file.h"

struct save {
    struct cauce *c;
    const char *path;
    char *part; // "FILE.part"
    cauce_progress_fn fn;
    void *ud;
    struct client_play *play;
    struct media_mp4 *mp4;
    int fd;
    int64_t kept, at; // bytes of the file that were there; that are
};

static bool report(const struct save *s, const char *stage, int64_t total, int64_t done,
                   int64_t kept)
{
    cauce_progress p = {stage, total, done, kept};
    return !s->fn || s->fn(&p, s->ud) == 0;
}

static enum status cancelled(struct err *err)
{
    return err_set(err, STATUS_CANCELLED, "cancelled; the same command continues");
}

// ---------------------------------------------------------------- the index

static enum status read_heads(struct save *s, struct err *err)
{
    size_t n = media_mp4_n_parts(s->mp4);
    enum status st = STATUS_OK;
    struct buf head;
    buf_init(&head, MEDIA_MAX_SEGMENT_BYTES);
    for (size_t i = 0; st == STATUS_OK && i < n; i++) {
        struct media_mp4_part part = media_mp4_part(s->mp4, i);
        struct client_object o;
        buf_reset(&head);
        st = client_play_segment(s->play, part.rendition, part.segment, &o, err);
        size_t want = media_mp4_head_bytes(s->mp4, i);
        if (st == STATUS_OK)
            st = client_object_read(&o, 0, (int64_t)want < o.size ? (int64_t)want : o.size, &head,
                                    err);
        if (st == STATUS_OK)
            st = media_mp4_add(s->mp4, head.data, head.len, o.size, err);
        if (st == STATUS_OK && !report(s, "index", (int64_t)n, (int64_t)i + 1, 0))
            st = cancelled(err);
    }
    buf_done(&head);
    return st == STATUS_OK ? media_mp4_finish(s->mp4, err) : st;
}

static enum status prepare(struct save *s, const char *item_id, const char *renditions,
                           const cauce_play_opts *opts, struct err *err)
{
    int video = -1, audio = -1;
    enum status st = client_play_new(s->c, item_id, true, opts, &s->play, err);
    if (st == STATUS_OK)
        st = client_play_choose(s->play, renditions, &video, &audio, err);
    if (st == STATUS_OK)
        st = media_mp4_new(client_play_plan(s->play), video, audio, &s->mp4, err);
    return st == STATUS_OK ? read_heads(s, err) : st;
}

// ---------------------------------------------------------------- what is there

static enum status write_at(const struct save *s, const uint8_t *p, size_t n, int64_t offset,
                            struct err *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t w = pwrite(s->fd, p + done, n - done, (off_t)(offset + (int64_t)done));
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return err_errno(err, errno, "write %s", s->part);
        done += (size_t)w;
    }
    return STATUS_OK;
}

// The file for us alone: two that write different files of one name would mix them. Whoever had it
// before may have finished meanwhile, and given it its name.
static enum status open_part(struct save *s, struct err *err)
{
    struct stat ours, named;
    s->fd = open(s->part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (s->fd < 0)
        return err_errno(err, errno, "open %s", s->part);
    bool is_taken = flock(s->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!is_taken && (fstat(s->fd, &ours) != 0 || stat(s->part, &named) != 0 ||
                      ours.st_ino != named.st_ino || ours.st_dev != named.st_dev))
        is_taken = true;
    return is_taken ? err_set(err, STATUS_FAILED_PRECONDITION,
                              "another download is writing %s: let it end, or choose another name",
                              s->part)
                    : STATUS_OK;
}

// Does the file begin with that header? A header says where everything is: one for other
// renditions, or of an item that was made anew, differs.
static bool has_header(const struct save *s, const uint8_t *header, size_t n)
{
    uint8_t block[4096];
    for (size_t done = 0; done < n;) {
        size_t want = n - done < sizeof(block) ? n - done : sizeof(block);
        ssize_t got = pread(s->fd, block, want, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0 || memcmp(block, header + done, (size_t)got) != 0)
            return false;
        done += (size_t)got;
    }
    return true;
}

// Whole parts that were written stay; the file ends after them.
static enum status resume(struct save *s, struct err *err)
{
    struct stat st;
    size_t n;
    const uint8_t *header = media_mp4_header(s->mp4, &n);
    if (fstat(s->fd, &st) != 0)
        return err_errno(err, errno, "look at %s", s->part);
    if (!S_ISREG(st.st_mode))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s is not a file", s->part);
    int64_t have = st.st_size < media_mp4_size(s->mp4) ? st.st_size : media_mp4_size(s->mp4);
    s->at = (int64_t)n;
    if (!has_header(s, header, n)) {
        if (ftruncate(s->fd, 0) != 0)
            return err_errno(err, errno, "cut %s", s->part);
        return write_at(s, header, n, 0, err);
    }
    while (s->at < have) {
        struct media_mp4_span span;
        media_mp4_at(s->mp4, s->at, &span);
        if (span.len > have - s->at)
            break;
        s->at += span.len;
    }
    s->kept = s->at;
    return ftruncate(s->fd, (off_t)s->at) == 0 ? STATUS_OK
                                               : err_errno(err, errno, "cut %s", s->part);
}

// ---------------------------------------------------------------- the rest

static enum status take_part(struct save *s, struct buf *bytes, struct err *err)
{
    struct media_mp4_span span;
    struct client_object o;
    media_mp4_at(s->mp4, s->at, &span);
    struct media_mp4_part part = media_mp4_part(s->mp4, span.part);
    buf_reset(bytes);
    enum status st = client_play_segment(s->play, part.rendition, part.segment, &o, err);
    if (st == STATUS_OK)
        st = client_object_get(&o, bytes, err);
    if (st == STATUS_OK && span.offset + span.len != (int64_t)bytes->len)
        st = err_set(err, STATUS_DATA_LOSS, "a segment is not as long as its head said");
    if (st == STATUS_OK)
        st = write_at(s, bytes->data + span.offset, (size_t)span.len, s->at, err);
    if (st == STATUS_OK)
        s->at += span.len;
    return st;
}

static enum status take_rest(struct save *s, struct err *err)
{
    struct buf bytes;
    int64_t total = media_mp4_size(s->mp4);
    enum status st = STATUS_OK;
    buf_init(&bytes, MEDIA_MAX_SEGMENT_BYTES);
    while (st == STATUS_OK && s->at < total) {
        st = take_part(s, &bytes, err);
        if (st == STATUS_OK && !report(s, "download", total, s->at - s->kept, s->kept))
            st = cancelled(err);
    }
    buf_done(&bytes);
    return st;
}

static enum status save(struct save *s, const char *item_id, const char *renditions,
                        const cauce_play_opts *opts, struct err *err)
{
    s->part = mem_printf("%s.part", s->path);
    if (!s->part)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status st = prepare(s, item_id, renditions, opts, err);
    if (st != STATUS_OK)
        return st;
    st = open_part(s, err);
    if (st == STATUS_OK)
        st = resume(s, err);
    if (st == STATUS_OK)
        st = take_rest(s, err);
    if (st == STATUS_OK && (fsync(s->fd) != 0 || rename(s->part, s->path) != 0))
        st = err_errno(err, errno, "finish %s", s->path);
    return st;
}

cauce_status cauce_save(cauce *c, const char *item_id, const char *renditions,
                        const cauce_play_opts *opts, const char *path, cauce_progress_fn fn,
                        void *ud, cauce_download_result *ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    struct save s = {.c = c, .path = path, .fn = fn, .ud = ud, .fd = -1};
    cauce_play_opts o;
    cauce_play_opts_init(&o);
    if (opts)
        o = *opts;
    o.never_direct = 1; // the source is no rendition
    enum status st = save(&s, item_id, renditions, &o, &e);
    if (st == STATUS_OK && ret) {
        memset(ret, 0, sizeof(*ret));
        str_copy(ret->path, sizeof(ret->path), path);
        ret->size = s.at;
        ret->received = s.at - s.kept;
        ret->verified = 0;
    }
    if (s.fd >= 0)
        close(s.fd);
    media_mp4_free(s.mp4);
    client_play_free(s.play);
    mem_free(s.part);
    return client_fail(&e, st, err);
}
