// Edit lists of MP4 (ISO/IEC 14496-12 8.6.6), read from the file itself: FFmpeg applies them to
// text by rules made for pictures and sound, which move cues.
#include <libavutil/mathematics.h>

#include "base/mem.h"
#include "codec/internal.h"

#define MAX_TOP_BOXES 4096
#define MAX_BOXES 65536 // below moov
#define MAX_EDITS 4096
#define MAX_US (1000 * MEDIA_MAX_DURATION_US) // what is later is never shown

struct box {
    uint32_t type;
    int64_t body, end; // where it is in the file
};

struct boxes {
    const struct codec_source *src;
    unsigned left; // that may still be looked at
};

#define TYPE(a, b, c, d) ((uint32_t)(a) << 24 | (uint32_t)(b) << 16 | (uint32_t)(c) << 8 | (d))

static enum status read_at(const struct codec_source *s, int64_t at, uint8_t *dst, int64_t n,
                           struct err *err)
{
    return codec_source_read(s, at, dst, n, "edit list", err);
}

static uint64_t be(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++)
        v = v << 8 | p[i];
    return v;
}

// The box at `at`, inside what ends at `end`. type 0: there is none.
static enum status read_box(struct boxes *b, int64_t at, int64_t end, struct box *ret,
                            struct err *err)
{
    uint8_t head[16];
    *ret = (struct box){.type = 0};
    if (end - at < 8)
        return STATUS_OK;
    if (b->left-- == 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "edit list: the file has too many boxes");
    enum status s = read_at(b->src, at, head, 8, err);
    int64_t size = (int64_t)be(head, 4), header = 8;
    if (s == STATUS_OK && size == 1) {
        header = 16;
        s = end - at < 16 ? STATUS_OK : read_at(b->src, at + 8, head + 8, 8, err);
        size = end - at < 16 ? 0 : (int64_t)(be(head + 8, 8) & INT64_MAX);
    } else if (size == 0) {
        size = end - at;
    }
    if (s != STATUS_OK || size < header || size > end - at)
        return s; // damage ends the list
    *ret = (struct box){.type = (uint32_t)be(head + 4, 4), .body = at + header, .end = at + size};
    return STATUS_OK;
}

// The first box of that type inside `in`, from `from` on. type 0: there is none.
static enum status find(struct boxes *b, const struct box *in, int64_t from, uint32_t type,
                        struct box *ret, struct err *err)
{
    for (int64_t at = from; at < in->end;) {
        enum status s = read_box(b, at, in->end, ret, err);
        if (s != STATUS_OK || ret->type == type || ret->type == 0)
            return s;
        at = ret->end;
    }
    *ret = (struct box){.type = 0};
    return STATUS_OK;
}

// Number of `bytes` at that place in a full box whose layout depends on its version.
static enum status read_field(struct boxes *b, const struct box *box, int64_t at_v0, int64_t at_v1,
                              unsigned bytes, uint64_t *ret, struct err *err)
{
    uint8_t version, field[8];
    enum status s = read_at(b->src, box->body, &version, 1, err);
    if (s != STATUS_OK)
        return s;
    int64_t at = box->body + (version == 1 ? at_v1 : at_v0);
    if (at + bytes > box->end)
        return err_set(err, STATUS_INVALID_ARGUMENT, "edit list: a box is too short");
    s = read_at(b->src, at, field, bytes, err);
    *ret = be(field, bytes);
    return s;
}

static enum status child_field(struct boxes *b, const struct box *in, uint32_t type, int64_t at_v0,
                               int64_t at_v1, uint64_t *ret, struct err *err)
{
    struct box box;
    enum status s = find(b, in, in->body, type, &box, err);
    *ret = 0;
    return s == STATUS_OK && box.type ? read_field(b, &box, at_v0, at_v1, 4, ret, err) : s;
}

// Microseconds, within what can be added to; also when they are more than any number holds.
static int64_t to_us(int64_t ticks, uint32_t scale)
{
    int64_t us = av_rescale(ticks, 1000000, scale);
    return us >= 0 && us < MAX_US ? us : MAX_US;
}

static enum status read_entries(struct boxes *b, const struct box *elst, uint32_t movie_scale,
                                uint32_t track_scale, struct codec_edits *ret, struct err *err)
{
    uint8_t head[8];
    enum status s = elst->end - elst->body < 8 ? STATUS_INVALID_ARGUMENT
                                               : read_at(b->src, elst->body, head, 8, err);
    if (s != STATUS_OK)
        return err_set(err, s, "edit list: cannot be read");
    int64_t each = head[0] == 1 ? 20 : 12, n = (int64_t)be(head + 4, 4);
    if (n > MAX_EDITS || n > (elst->end - elst->body - 8) / each)
        return err_set(err, STATUS_INVALID_ARGUMENT, "edit list: %lld entries", (long long)n);
    ret->p = mem_array(n ? (size_t)n : 1, sizeof(*ret->p));
    if (!ret->p)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "edit list: out of memory");
    int64_t movie = 0;
    for (int64_t i = 0; i < n; i++) {
        uint8_t e[20];
        s = read_at(b->src, elst->body + 8 + i * each, e, each, err);
        if (s != STATUS_OK)
            return s;
        bool wide = each == 20;
        int64_t duration = (int64_t)(be(e, wide ? 8 : 4) & INT64_MAX);
        int64_t media = wide ? (int64_t)be(e + 8, 8) : (int32_t)be(e + 4, 4);
        int64_t at_us = to_us(movie, movie_scale);
        if (duration > INT64_MAX / 4 - movie)
            break; // beyond anything that can be shown
        movie += duration;
        if (media < 0)
            continue; // nothing is shown for so long
        ret->p[ret->n++] = (struct codec_edit){
            .media_us = to_us(media, track_scale),
            .movie_us = at_us,
            // 0 in fragmented files: to the end
            .duration_us = duration ? to_us(movie, movie_scale) - at_us : INT64_MAX / 4};
    }
    return STATUS_OK;
}

static enum status read_track(struct boxes *b, const struct box *trak, uint32_t movie_scale,
                              struct codec_edits *ret, struct err *err)
{
    struct box edts, elst = {.type = 0}, mdia;
    uint64_t track_scale = 0;
    enum status s = find(b, trak, trak->body, TYPE('e', 'd', 't', 's'), &edts, err);
    if (s == STATUS_OK && edts.type)
        s = find(b, &edts, edts.body, TYPE('e', 'l', 's', 't'), &elst, err);
    if (s == STATUS_OK)
        s = find(b, trak, trak->body, TYPE('m', 'd', 'i', 'a'), &mdia, err);
    if (s == STATUS_OK && elst.type && mdia.type)
        s = child_field(b, &mdia, TYPE('m', 'd', 'h', 'd'), 12, 20, &track_scale, err);
    if (s != STATUS_OK || !track_scale || !movie_scale)
        return s;
    return read_entries(b, &elst, movie_scale, (uint32_t)track_scale, ret, err);
}

static enum status read_movie(struct boxes *b, const struct box *moov, uint32_t track_id,
                              struct codec_edits *ret, struct err *err)
{
    uint64_t scale = 0, id = 0;
    struct box trak = {.end = moov->body};
    enum status s = child_field(b, moov, TYPE('m', 'v', 'h', 'd'), 12, 20, &scale, err);
    while (s == STATUS_OK) {
        s = find(b, moov, trak.end, TYPE('t', 'r', 'a', 'k'), &trak, err);
        if (s != STATUS_OK || !trak.type)
            break;
        s = child_field(b, &trak, TYPE('t', 'k', 'h', 'd'), 12, 20, &id, err);
        if (s == STATUS_OK && id == track_id)
            return read_track(b, &trak, (uint32_t)scale, ret, err);
    }
    return s;
}

enum status codec_edits_read(const struct codec_source *src, uint32_t track_id,
                             struct codec_edits *ret, struct err *err)
{
    struct boxes b = {.src = src, .left = MAX_TOP_BOXES};
    struct box all = {.body = 0, .end = src->size}, moov;
    *ret = (struct codec_edits){.n = 0};
    enum status s = find(&b, &all, 0, TYPE('m', 'o', 'o', 'v'), &moov, err);
    b.left = MAX_BOXES;
    if (s == STATUS_OK && moov.type)
        s = read_movie(&b, &moov, track_id, ret, err);
    if (s != STATUS_OK)
        codec_edits_done(ret);
    return s;
}

void codec_edits_done(struct codec_edits *e)
{
    mem_free(e->p);
    *e = (struct codec_edits){.n = 0};
}
