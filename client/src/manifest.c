// Reading and writing manifests; checking pieces against them.
#include "manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/rand.h"

static const char first_line[] = "cauce-library 1";

void manifest_done(struct manifest *m)
{
    mem_free(TAKE(m->pieces));
    m->n_pieces = m->cap = 0;
}

enum status manifest_path(const char *folder, const char *item_id, const char *name, char **ret,
                          struct err *err)
{
    if (!uuid_is_valid(item_id))
        return err_set(err, STATUS_INVALID_ARGUMENT, "\"%s\" is not an item's id", item_id);
    *ret = name[0] ? mem_printf("%s/%s/%s", folder, item_id, name)
                   : mem_printf("%s/%s", folder, item_id);
    return *ret ? STATUS_OK : err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

enum status manifest_add(struct manifest *m, const struct manifest_piece *p, struct err *err)
{
    if (m->n_pieces == m->cap) {
        size_t cap = m->cap ? m->cap * 2 : 64;
        struct manifest_piece *more = mem_realloc(m->pieces, cap, sizeof(*more));
        if (!more)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        m->pieces = more;
        m->cap = cap;
    }
    m->pieces[m->n_pieces++] = *p;
    return STATUS_OK;
}

// ---------------------------------------------------------------- text

static int64_t piece_end(const struct manifest *m)
{
    return m->n_pieces ? m->pieces[m->n_pieces - 1].at.offset + m->pieces[m->n_pieces - 1].at.len
                       : 0;
}

// "<offset> <bytes> <digest>", right behind the piece before.
static bool parse_piece(const struct manifest *m, char *text, struct manifest_piece *ret)
{
    char *offset = strsep(&text, " "), *len = strsep(&text, " ");
    return text && str_parse_i64(offset, 0, OBJECT_MAX_BYTES, &ret->at.offset, NULL) == STATUS_OK &&
           str_parse_i64(len, 1, MANIFEST_MAX_PIECE_BYTES, &ret->at.len, NULL) == STATUS_OK &&
           ret->at.offset == piece_end(m) && str_unhex(ret->digest, OBJECT_DIGEST_SIZE, text);
}

static void parse_value(struct manifest *m, const char *name, const char *value)
{
    const struct {
        const char *name;
        char *dst;
        size_t size;
    } texts[] = {
        {"item", m->item, sizeof(m->item)},
        {"key", m->key, sizeof(m->key)},
        {"file", m->file, sizeof(m->file)},
        {"title", m->info.title, sizeof(m->info.title)},
        {"type", m->info.mime, sizeof(m->info.mime)},
        {"video", m->info.video_rendition, sizeof(m->info.video_rendition)},
        {"audio", m->info.audio_rendition, sizeof(m->info.audio_rendition)},
    };
    for (size_t i = 0; i < N_ELEMENTS(texts); i++)
        if (str_eq(texts[i].name, name))
            str_copy(texts[i].dst, texts[i].size, value);
    int64_t n = 0;
    if (str_eq(name, "duration-us") && str_parse_i64(value, 0, INT64_MAX, &n, NULL) == STATUS_OK)
        m->info.duration_us = n;
    if (str_eq(name, "mode"))
        m->info.direct = str_eq(value, "direct");
}

static enum status parse(struct manifest *m, char *text, struct err *err)
{
    char *line = strsep(&text, "\n");
    if (!str_eq(line, first_line))
        return err_set(err, STATUS_DATA_LOSS, "not a manifest of a library");
    // text is NULL after the last line, which is whole only if a newline ended it
    while ((line = strsep(&text, "\n")) && text && !m->is_complete) {
        if (str_eq(line, "end")) {
            m->is_complete = true;
            break;
        }
        char *value = line, *name = strsep(&value, " ");
        if (!value)
            break;
        if (!str_eq(name, "piece")) {
            parse_value(m, name, value);
            continue;
        }
        struct manifest_piece p;
        if (!parse_piece(m, value, &p))
            break;
        enum status s = manifest_add(m, &p, err);
        if (s != STATUS_OK)
            return s;
    }
    m->info.size = piece_end(m);
    return STATUS_OK;
}

static enum status read_file(int fd, struct buf *ret, struct err *err)
{
    for (;;) {
        uint8_t *p = buf_reserve(ret, 65536);
        if (!p)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "too large");
        ssize_t n = read(fd, p, 65536);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "read");
        if (n == 0)
            return STATUS_OK;
        buf_commit(ret, (size_t)n);
    }
}

enum status manifest_load(const char *path, struct manifest *ret, struct err *err)
{
    memset(ret, 0, sizeof(*ret));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "open %s", path);
    struct buf b;
    buf_init(&b, MANIFEST_MAX_BYTES);
    enum status s = read_file(fd, &b, err);
    close(fd);
    if (s == STATUS_OK && !buf_putc(&b, '\0'))
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    if (s == STATUS_OK)
        s = parse(ret, (char *)b.data, err);
    buf_done(&b);
    if (s != STATUS_OK)
        manifest_done(ret);
    return s == STATUS_OK ? s : err_wrap(err, s, "%s", path);
}

// A value is one line whatever a title holds.
static void put_line(struct buf *b, const char *name, const char *value)
{
    buf_printf(b, "%s ", name);
    for (const char *p = value; *p; p++)
        buf_putc(b, *p == '\n' || *p == '\r' ? ' ' : *p);
    buf_putc(b, '\n');
}

void manifest_put_head(const struct manifest *m, struct buf *ret)
{
    buf_printf(ret, "%s\n", first_line);
    put_line(ret, "item", m->item);
    put_line(ret, "key", m->key);
    put_line(ret, "file", m->file);
    put_line(ret, "title", m->info.title);
    put_line(ret, "type", m->info.mime);
    put_line(ret, "mode", m->info.direct ? "direct" : "stream");
    put_line(ret, "video", m->info.video_rendition);
    put_line(ret, "audio", m->info.audio_rendition);
    buf_printf(ret, "duration-us %" PRId64 "\n", m->info.duration_us);
}

void manifest_put_piece(const struct manifest_piece *p, struct buf *ret)
{
    char hex[OBJECT_HEX_SIZE];
    str_hex(hex, p->digest, OBJECT_DIGEST_SIZE);
    buf_printf(ret, "piece %" PRId64 " %" PRId64 " %s\n", p->at.offset, p->at.len, hex);
}

// ---------------------------------------------------------------- media

enum status manifest_read_piece(const struct manifest *m, int fd, size_t i, struct buf *ret,
                                struct err *err)
{
    const struct manifest_piece *p = &m->pieces[i];
    size_t want = (size_t)p->at.len;
    uint8_t *to = buf_reserve(ret, want);
    if (!to)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    for (size_t done = 0; done < want;) {
        ssize_t n = pread(fd, to + done, want - done, p->at.offset + (int64_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "read %s", m->file);
        if (n == 0)
            return err_set(err, STATUS_DATA_LOSS, "%s is cut off", m->file);
        done += (size_t)n;
    }
    uint8_t digest[OBJECT_DIGEST_SIZE];
    object_digest(digest, to, want);
    if (memcmp(digest, p->digest, sizeof(digest)) != 0)
        return err_set(err, STATUS_DATA_LOSS, "%s is damaged at byte %" PRId64, m->file,
                       p->at.offset);
    buf_commit(ret, want);
    return STATUS_OK;
}
