// The plan's bytes. One description of the layout serves both directions: each io_*() writes its
// field when encoding and reads and bounds it when decoding, so that the two cannot drift apart.
//
// "CPLN", version byte, then fields: unsigned = LEB128 varint, signed = zigzag varint, text and
// blobs = length varint and bytes.
#include "media/plan.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "media/plan_internal.h"

struct io {
    struct buf *out; // encoding; NULL when decoding
    struct reader in;
    bool bad;
    enum status why; // decoding: RESOURCE_EXHAUSTED when memory ran out
};

static void io_fail(struct io *io)
{
    io->bad = true;
}

static uint64_t get_varint(struct io *io)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t b = reader_u8(&io->in);
        uint64_t part = b & 0x7f;
        if (io->in.failed || (shift == 63 && part > 1) || (shift > 0 && b == 0))
            break; // short, over 64 bits, or not the shortest form
        v |= part << shift;
        if (!(b & 0x80))
            return v;
    }
    io_fail(io);
    return 0;
}

static void put_varint(struct io *io, uint64_t v)
{
    while (v >= 0x80) {
        buf_put_u8(io->out, (uint8_t)(v | 0x80));
        v >>= 7;
    }
    buf_put_u8(io->out, (uint8_t)v);
}

static uint64_t io_u64(struct io *io, uint64_t v, uint64_t max)
{
    if (io->out)
        put_varint(io, v);
    else
        v = get_varint(io);
    if (v > max) {
        io_fail(io);
        return 0;
    }
    return io->bad ? 0 : v;
}

static int64_t io_i64(struct io *io, int64_t v)
{
    uint64_t z = ((uint64_t)v << 1) ^ (v < 0 ? UINT64_MAX : 0);
    z = io_u64(io, z, UINT64_MAX);
    return (int64_t)(z >> 1) ^ -(int64_t)(z & 1);
}

// One unsigned field, in place. The cast is to the field's own type, whose range `max` respects.
#define U(field, max) ((field) = (__typeof__(field))io_u64(io, (uint64_t)(field), (max)))
#define I(field) ((field) = io_i64(io, (field)))

static void io_bytes(struct io *io, void *p, size_t n)
{
    if (io->out) {
        buf_append(io->out, p, n);
        return;
    }
    const uint8_t *from = reader_bytes(&io->in, n);
    if (from)
        memcpy(p, from, n);
    else
        io_fail(io);
}

static void io_text(struct io *io, char *s, size_t size)
{
    size_t n = (size_t)io_u64(io, io->out ? strlen(s) : 0, size - 1);
    io_bytes(io, s, n);
    if (!io->out) {
        s[io->bad ? 0 : n] = '\0';
        if (strlen(s) != n || !str_is_utf8(s, n))
            io_fail(io);
    }
}

static void io_ratio(struct io *io, struct media_rational *r)
{
    U(r->num, INT32_MAX);
    U(r->den, INT32_MAX);
}

// Storage for n things when decoding, but never more than the bytes that are left could describe.
static void *io_room(struct io *io, void *have, size_t n, size_t size)
{
    if (io->out || io->bad || n == 0)
        return have;
    void *p = mem_array(n, size);
    if (!p) {
        io->why = STATUS_RESOURCE_EXHAUSTED;
        io_fail(io);
    }
    return p;
}

static void io_track(struct io *io, struct media_track *t)
{
    U(t->type, MEDIA_N_TRACK_TYPES - 1);
    U(t->index, UINT16_MAX);
    U(t->chosen, 1);
    io_text(io, t->codec, sizeof(t->codec));
    io_text(io, t->language, sizeof(t->language));
    io_text(io, t->title, sizeof(t->title));
    U(t->is_default, 1);
    U(t->is_forced, 1);
    U(t->is_commentary, 1);
    U(t->is_hearing_impaired, 1);
    U(t->subtitle, MEDIA_N_SUBTITLES - 1);
    io_text(io, t->profile, sizeof(t->profile));
    U(t->width, MEDIA_MAX_SIDE_PX);
    U(t->height, MEDIA_MAX_SIDE_PX);
    U(t->sample_rate, 1000000);
    U(t->channels, 1024);
    U(t->bit_depth, 64);
    U(t->level, UINT16_MAX);
    U(t->refs, UINT16_MAX);
    U(t->interlaced, 1);
    U(t->rotation, 270);
    io_ratio(io, &t->sar);
    io_ratio(io, &t->frame_rate);
    U(t->bitrate_bps, INT64_MAX);
    U(t->duration_us, INT64_MAX);
    for (size_t i = 0; i < N_ELEMENTS(t->color); i++)
        U(t->color[i], UINT8_MAX);
    U(t->frame_samples, 1 << 20);
    I(t->origin);
    U(t->seek, MEDIA_N_SEEKS - 1);
}

static void io_source(struct io *io, struct media_source *s)
{
    U(s->container, MEDIA_N_CONTAINERS - 1);
    io_text(io, s->container_name, sizeof(s->container_name));
    io_text(io, s->mime, sizeof(s->mime));
    U(s->size_bytes, INT64_MAX);
    U(s->duration_us, MEDIA_MAX_DURATION_US);
    U(s->bitrate_bps, INT64_MAX);
    U(s->streamable, 1);
    U(s->seek, MEDIA_N_SEEKS - 1);
    I(s->video_zero);
    I(s->timeline_zero_us);
    io_text(io, s->title, sizeof(s->title));
    io_text(io, s->artist, sizeof(s->artist));
    io_text(io, s->album, sizeof(s->album));
    io_text(io, s->album_artist, sizeof(s->album_artist));
    io_text(io, s->genre, sizeof(s->genre));
    io_text(io, s->date, sizeof(s->date));
    U(s->track_number, UINT16_MAX);
    U(s->n_album_tracks, UINT16_MAX);
    U(s->disc_number, UINT16_MAX);
    U(s->n_discs, UINT16_MAX);
    U(s->n_jumps, MEDIA_MAX_JUMPS);
    for (size_t i = 0; i < s->n_jumps && !io->bad; i++) {
        U(s->jumps[i].offset, INT64_MAX);
        I(s->jumps[i].shift_us);
    }
    U(s->n_tracks, MEDIA_MAX_TRACKS);
    for (size_t i = 0; i < s->n_tracks && !io->bad; i++)
        io_track(io, &s->tracks[i]);
}

static void put_frame_times(struct io *io, const struct media_grid *g)
{
    for (uint32_t i = 0; i < g->n_frames;) {
        int64_t d = g->frame_times[i + 1] - g->frame_times[i];
        uint32_t run = 1;
        while (i + run < g->n_frames && g->frame_times[i + run + 1] - g->frame_times[i + run] == d)
            run++;
        put_varint(io, (uint64_t)d);
        put_varint(io, run);
        i += run;
    }
}

static void get_frame_times(struct io *io, struct media_grid *g)
{
    int64_t at = 0;
    for (uint32_t i = 0; i < g->n_frames && !io->bad;) {
        uint64_t d = io_u64(io, 0, UINT32_MAX);
        uint64_t run = io_u64(io, 0, g->n_frames - i);
        if (run == 0)
            io_fail(io);
        for (; run > 0 && !io->bad; run--) {
            at += (int64_t)d; // at most 2^21 times 2^32
            g->frame_times[++i] = at;
        }
    }
}

static void io_segment(struct io *io, struct media_segment *s, bool is_video)
{
    if (is_video)
        U(s->n_frames, MEDIA_MAX_FRAMES);
    else
        U(s->duration, INT64_MAX);
    bool from_start = s->seek_ticks == MEDIA_TIME_UNKNOWN;
    U(from_start, 1);
    if (from_start)
        s->seek_ticks = MEDIA_TIME_UNKNOWN;
    else
        I(s->seek_ticks);
    int64_t off = s->seek_offset + 1;
    U(off, INT64_MAX);
    s->seek_offset = off - 1;
}

static void io_cuts(struct io *io, struct media_grid *g, bool is_video)
{
    g->segments = io_room(io, g->segments, g->n_segments, sizeof(*g->segments));
    for (size_t i = 0; i < g->n_segments && !io->bad; i++)
        io_segment(io, &g->segments[i], is_video);
    U(g->n_chunks, g->n_segments);
    g->chunks = io_room(io, g->chunks, g->n_chunks, sizeof(*g->chunks));
    uint32_t first = 0;
    for (size_t i = 0; i < g->n_chunks && !io->bad; i++) {
        g->chunks[i].first_segment = first;
        U(g->chunks[i].n_segments, g->n_segments - first);
        first += g->chunks[i].n_segments;
    }
    if (!io->out && !io->bad && !media_grid_lay_out(g, is_video))
        io_fail(io);
}

static void io_grid(struct io *io, struct media_grid *g, bool is_video)
{
    U(g->n_segments, MEDIA_MAX_SEGMENTS);
    if (g->n_segments == 0 || io->bad)
        return;
    U(g->timescale, UINT32_MAX);
    U(g->duration, INT64_MAX);
    if (is_video) {
        U(g->n_frames, MEDIA_MAX_FRAMES);
        U(g->frame_ticks, UINT32_MAX);
        if (g->frame_ticks == 0) {
            g->frame_times = io_room(io, g->frame_times, (size_t)g->n_frames + 1, sizeof(int64_t));
            if (io->out)
                put_frame_times(io, g);
            else
                get_frame_times(io, g);
        }
    }
    io_cuts(io, g, is_video);
}

// The frames are the other's; only the cuts are its own.
static void io_copy_grid(struct io *io, struct media_grid *g, const struct media_grid *frames)
{
    U(g->n_segments, MEDIA_MAX_SEGMENTS);
    if (g->n_segments == 0 || io->bad)
        return;
    if (!io->out) {
        g->timescale = frames->timescale;
        g->duration = frames->duration;
        g->n_frames = frames->n_frames;
        g->frame_ticks = frames->frame_ticks;
        g->frame_times = frames->frame_times;
    }
    io_cuts(io, g, true);
}

static void io_rendition(struct io *io, struct media_rendition *r)
{
    io_text(io, r->id, sizeof(r->id));
    U(r->kind, MEDIA_AUDIO);
    U(r->codec, MEDIA_N_CODECS - 1);
    U(r->track, MEDIA_MAX_TRACKS - 1);
    U(r->copy, 1);
    U(r->lazy, 1);
    U(r->normalised, 1);
    U(r->burn, MEDIA_MAX_TRACKS);
    U(r->channels, MEDIA_MAX_CHANNELS);
    io_text(io, r->codecs, sizeof(r->codecs));
    U(r->width, MEDIA_MAX_SIDE_PX);
    U(r->height, MEDIA_MAX_SIDE_PX);
    io_ratio(io, &r->frame_rate);
    U(r->timescale, UINT32_MAX);
    U(r->frame_samples, 1 << 20);
    U(r->priming, 1 << 20);
    U(r->cts_shift, INT32_MAX);
    U(r->bitrate_bps, UINT32_MAX);
    U(r->maxrate_bps, UINT32_MAX);
    U(r->bandwidth_bps, UINT32_MAX);
    U(r->crf, UINT8_MAX);
    U(r->profile, UINT8_MAX);
    U(r->level, UINT8_MAX);
    U(r->preset, UINT8_MAX);
    for (size_t i = 0; i < N_ELEMENTS(r->color); i++)
        U(r->color[i], UINT8_MAX);
    U(r->scale_from, UINT8_MAX);
    io_text(io, r->recipe, sizeof(r->recipe));
    io_bytes(io, r->recipe_digest, sizeof(r->recipe_digest));
    U(r->init_len, MEDIA_MAX_INIT_BYTES);
    r->init = io_room(io, r->init, r->init_len, 1);
    if (!io->bad && r->init)
        io_bytes(io, r->init, r->init_len);
}

static void io_plan(struct io *io, struct media_plan *p)
{
    U(p->kind, MEDIA_AUDIO);
    io_source(io, &p->source);
    io_grid(io, &p->video, true);
    io_grid(io, &p->audio, false);
    io_copy_grid(io, &p->video_copy, &p->video);
    U(p->n_renditions, MEDIA_MAX_RENDITIONS);
    for (size_t i = 0; i < p->n_renditions && !io->bad; i++)
        io_rendition(io, &p->renditions[i]);
    io_text(io, p->build, sizeof(p->build));
}

enum status media_plan_encode(const struct media_plan *p, struct buf *ret, struct err *err)
{
    enum status s = media_plan_check(p, err);
    if (s != STATUS_OK)
        return s;
    // io_plan() writes each field back as it was, which a const plan does not allow.
    AUTO(mem_free_p) struct media_plan *copy = mem_dup(p, sizeof(*p));
    struct buf b;
    buf_init(&b, MEDIA_PLAN_MAX_BYTES);
    struct io io = {.out = &b, .why = STATUS_INVALID_ARGUMENT};
    if (!copy)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");
    buf_append(&b, "CPLN", 4);
    buf_put_u8(&b, MEDIA_PLAN_VERSION);
    io_plan(&io, copy);
    if (io.bad)
        s = err_set(err, STATUS_INVALID_ARGUMENT, "plan: a field is out of range");
    else if (b.failed || !buf_append(ret, b.data, b.len))
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: larger than %u bytes or out of memory",
                    MEDIA_PLAN_MAX_BYTES);
    buf_done(&b);
    return s;
}

enum status media_plan_decode(const void *bytes, size_t n, struct media_plan **ret, struct err *err)
{
    struct io io = {.why = STATUS_INVALID_ARGUMENT};
    reader_init(&io.in, bytes, n);
    const uint8_t *magic = reader_bytes(&io.in, 4);
    if (n > MEDIA_PLAN_MAX_BYTES || !magic || memcmp(magic, "CPLN", 4) != 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "plan: not a plan");
    unsigned version = reader_u8(&io.in);
    if (version != MEDIA_PLAN_VERSION)
        return err_set(err, STATUS_UNIMPLEMENTED, "plan: version %u is not known here", version);
    AUTO(media_plan_free_p) struct media_plan *p = media_plan_new();
    if (!p)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");
    io_plan(&io, p);
    if (io.bad || io.in.failed || reader_left(&io.in) != 0)
        return err_set(err, io.why, "plan: damaged or cut off");
    enum status s = media_plan_check(p, err);
    if (s != STATUS_OK)
        return s;
    *ret = TAKE(p);
    return STATUS_OK;
}
