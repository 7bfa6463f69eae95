// Sample tables are kept as the boxes have them, big-endian and run-length coded, and grow while
// parts are added. Chunk offsets are written last, when the header's size is known: it does not
// depend on them. (ISO/IEC 14496-12, 8.5 to 8.7)
#include "media/mp4file.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "media/cmaf.h"
#include "media/cmaf_internal.h"

#define MOVIE_TIMESCALE MEDIA_AUDIO_RATE // exact for sound, and finer than any frame
#define MAX_TABLE_BYTES (MEDIA_MAX_FRAMES * 8U)
#define MAX_HEADER_BYTES (6U * MAX_TABLE_BYTES)

struct runs { // of equal values: how often, what
    struct buf table;
    uint32_t n_entries, count, value;
};

struct track {
    int rendition;
    bool video;
    uint32_t n_samples, n_sync, n_chunks;
    int64_t duration; // of all samples, in the rendition's timescale
    struct buf sizes, syncs;
    struct runs durations, offsets; // stts, ctts
    struct buf chunks;              // stsc
    uint32_t n_chunk_entries, samples_per_chunk;
    size_t offsets_at; // of the chunk offsets in the header
};

struct part {
    struct media_mp4_part at;
    int64_t body; // where its mdat's body begins in the segment
    int64_t len;
    int64_t place; // in the file
};

struct media_mp4 {
    const struct media_plan *plan;
    struct track tracks[2];
    size_t n_tracks;
    struct part *parts;
    size_t n_parts, n_added;
    int64_t body_bytes;
    struct media_sample *samples; // of the segment that is being added
    struct buf header;
};

// ---------------------------------------------------------------- parts

static size_t n_segments(const struct media_plan *p, int rendition)
{
    const struct media_grid *g = rendition < 0 ? NULL : media_rendition_grid(p, (size_t)rendition);
    return g ? g->n_segments : 0;
}

static int64_t start_us(const struct media_plan *p, int rendition, size_t segment)
{
    return media_segment_start_us(media_rendition_grid(p, (size_t)rendition), segment);
}

// By time, pictures first, so that a player finds both near each other.
static void list_parts(struct media_mp4 *m, int video, int audio)
{
    size_t nv = n_segments(m->plan, video), na = n_segments(m->plan, audio), v = 0, a = 0;
    while (v < nv || a < na) {
        bool take_video =
            v < nv && (a == na || start_us(m->plan, video, v) <= start_us(m->plan, audio, a));
        m->parts[m->n_parts++].at = take_video
                                        ? (struct media_mp4_part){(uint32_t)video, (uint32_t)v++}
                                        : (struct media_mp4_part){(uint32_t)audio, (uint32_t)a++};
    }
}

static uint32_t most_samples(const struct media_mp4 *m)
{
    uint32_t most = 0;
    for (size_t i = 0; i < m->n_parts; i++) {
        uint32_t n =
            media_rendition_samples(m->plan, m->parts[i].at.rendition, m->parts[i].at.segment);
        most = n > most ? n : most;
    }
    return most;
}

static void add_track(struct media_mp4 *m, int rendition)
{
    if (rendition < 0)
        return;
    struct track *t = &m->tracks[m->n_tracks++];
    t->rendition = rendition;
    t->video = m->plan->renditions[rendition].kind == MEDIA_VIDEO;
    buf_init(&t->sizes, MAX_TABLE_BYTES);
    buf_init(&t->syncs, MAX_TABLE_BYTES);
    buf_init(&t->durations.table, MAX_TABLE_BYTES);
    buf_init(&t->offsets.table, 2 * MAX_TABLE_BYTES);
    buf_init(&t->chunks, MAX_TABLE_BYTES);
}

static bool is_kind(const struct media_plan *p, int rendition, enum media_kind kind)
{
    return rendition < 0 ||
           ((size_t)rendition < p->n_renditions && p->renditions[rendition].kind == kind);
}

enum status media_mp4_new(const struct media_plan *p, int video_rendition, int audio_rendition,
                          struct media_mp4 **ret, struct err *err)
{
    if ((video_rendition < 0 && audio_rendition < 0) || !is_kind(p, video_rendition, MEDIA_VIDEO) ||
        !is_kind(p, audio_rendition, MEDIA_AUDIO))
        return err_set(err, STATUS_INVALID_ARGUMENT, "file: no such renditions");
    AUTO(media_mp4_free_p) struct media_mp4 *m = mem_alloc(sizeof(*m));
    if (!m)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "file: out of memory");
    m->plan = p;
    buf_init(&m->header, MAX_HEADER_BYTES);
    add_track(m, video_rendition);
    add_track(m, audio_rendition);
    size_t n = n_segments(p, video_rendition) + n_segments(p, audio_rendition);
    m->parts = mem_array(n + 1, sizeof(*m->parts));
    if (m->parts)
        list_parts(m, video_rendition, audio_rendition);
    m->samples = m->parts ? mem_array(most_samples(m) + 1U, sizeof(*m->samples)) : NULL;
    if (!m->samples)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "file: out of memory");
    *ret = TAKE(m);
    return STATUS_OK;
}

static void drop_tables(struct track *t)
{
    buf_done(&t->sizes);
    buf_done(&t->syncs);
    buf_done(&t->durations.table);
    buf_done(&t->offsets.table);
    buf_done(&t->chunks);
}

void media_mp4_free(struct media_mp4 *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n_tracks; i++)
        drop_tables(&m->tracks[i]);
    buf_done(&m->header);
    mem_free(m->samples);
    mem_free(m->parts);
    mem_free(m);
}

size_t media_mp4_n_parts(const struct media_mp4 *m)
{
    return m->n_parts;
}

struct media_mp4_part media_mp4_part(const struct media_mp4 *m, size_t part)
{
    return m->parts[part].at;
}

size_t media_mp4_head_bytes(const struct media_mp4 *m, size_t part)
{
    const struct media_mp4_part *at = &m->parts[part].at;
    return MEDIA_HEAD_BYTES(media_rendition_samples(m->plan, at->rendition, at->segment));
}

size_t media_mp4_n_added(const struct media_mp4 *m)
{
    return m->n_added;
}

// ---------------------------------------------------------------- tables

static void end_run(struct runs *r)
{
    if (!r->count)
        return;
    buf_put_be32(&r->table, r->count);
    buf_put_be32(&r->table, r->value);
    r->n_entries++;
    r->count = 0;
}

static void put_run(struct runs *r, uint32_t value)
{
    if (r->count && r->value != value)
        end_run(r);
    r->value = value;
    r->count++;
}

static void add_chunk(struct track *t, uint32_t n_samples)
{
    t->n_chunks++;
    if (t->n_chunk_entries && t->samples_per_chunk == n_samples)
        return;
    buf_put_be32(&t->chunks, t->n_chunks);
    buf_put_be32(&t->chunks, n_samples);
    buf_put_be32(&t->chunks, 1); // sample description
    t->n_chunk_entries++;
    t->samples_per_chunk = n_samples;
}

static void add_samples(struct track *t, const struct media_sample *s, uint32_t n, uint32_t shift)
{
    for (uint32_t i = 0; i < n; i++) {
        t->n_samples++;
        buf_put_be32(&t->sizes, s[i].size);
        put_run(&t->durations, s[i].duration);
        if (!t->video)
            continue;
        put_run(&t->offsets, (uint32_t)s[i].cts + shift);
        if (s[i].sync) {
            buf_put_be32(&t->syncs, t->n_samples);
            t->n_sync++;
        }
    }
    add_chunk(t, n);
}

static bool is_full(const struct track *t)
{
    return t->sizes.failed || t->syncs.failed || t->durations.table.failed ||
           t->offsets.table.failed || t->chunks.failed;
}

static struct track *track_of(struct media_mp4 *m, uint32_t rendition)
{
    return (uint32_t)m->tracks[0].rendition == rendition ? &m->tracks[0] : &m->tracks[1];
}

// Is it that segment, as the plan has it?
static bool agrees(const struct media_plan *p, const struct media_mp4_part *at,
                   const struct media_fragment *f)
{
    const struct media_rendition *r = &p->renditions[at->rendition];
    const struct media_grid *g = media_rendition_grid(p, at->rendition);
    bool offsets_fit = r->kind == MEDIA_AUDIO || -(int64_t)f->min_cts <= r->cts_shift;
    return f->base_time == g->segments[at->segment].start && offsets_fit &&
           f->n_samples == media_rendition_samples(p, at->rendition, at->segment) &&
           f->duration == media_rendition_duration(p, at->rendition, at->segment);
}

enum status media_mp4_add(struct media_mp4 *m, const void *head, size_t n, int64_t size,
                          struct err *err)
{
    if (m->n_added == m->n_parts)
        return err_set(err, STATUS_INVALID_ARGUMENT, "file: it has no more parts");
    struct part *part = &m->parts[m->n_added];
    const struct media_rendition *r = &m->plan->renditions[part->at.rendition];
    uint32_t samples = media_rendition_samples(m->plan, part->at.rendition, part->at.segment);
    struct media_fragment f;
    enum status s = media_cmaf_head(head, n, size, m->samples, samples, &f, err);
    if (s == STATUS_OK && !agrees(m->plan, &part->at, &f))
        s = err_set(err, STATUS_INVALID_ARGUMENT, "file: not what the plan says");
    if (s != STATUS_OK)
        return err_wrap(err, s, "%s/%u", r->id, part->at.segment);
    struct track *t = track_of(m, part->at.rendition);
    add_samples(t, m->samples, f.n_samples, r->cts_shift);
    if (is_full(t))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "file: its index is too large");
    t->duration += f.duration;
    part->body = (int64_t)f.data_offset;
    part->len = (int64_t)f.data_len;
    part->place = m->body_bytes; // from the first body on, until the header's size is known
    m->body_bytes += part->len;
    m->n_added++;
    return STATUS_OK;
}

// ---------------------------------------------------------------- header

// Sound's grid is as long as the sound and the longest priming that any rendition has.
static int64_t shown_ticks(const struct media_mp4 *m, const struct track *t)
{
    const struct media_plan *p = m->plan;
    uint32_t priming = 0;
    for (size_t i = 0; !t->video && i < p->n_renditions; i++)
        if (p->renditions[i].kind == MEDIA_AUDIO && p->renditions[i].priming > priming)
            priming = p->renditions[i].priming;
    return media_rendition_grid(p, (size_t)t->rendition)->duration - priming;
}

static uint64_t shown_movie(const struct media_mp4 *m, const struct track *t)
{
    const struct media_rendition *r = &m->plan->renditions[t->rendition];
    return (uint64_t)media_scale_ceil(shown_ticks(m, t), MOVIE_TIMESCALE, r->timescale);
}

static void put_ftyp(struct buf *b)
{
    static const char brands[] = "isom\0\0\2\0isomiso6mp41";
    size_t at = cmaf_begin(b, BOX('f', 't', 'y', 'p'));
    buf_append(b, brands, sizeof(brands) - 1);
    cmaf_end(b, at);
}

static void put_mvhd(const struct media_mp4 *m, struct buf *b)
{
    uint64_t longest = 0;
    for (size_t i = 0; i < m->n_tracks; i++) {
        uint64_t d = shown_movie(m, &m->tracks[i]);
        longest = d > longest ? d : longest;
    }
    size_t at = cmaf_begin_full(b, BOX('m', 'v', 'h', 'd'), 1, 0);
    cmaf_put_zeros(b, 16); // created, modified
    buf_put_be32(b, MOVIE_TIMESCALE);
    buf_put_be64(b, longest);
    buf_put_be32(b, 0x10000); // rate 1
    buf_put_be16(b, 0x100);   // volume 1
    cmaf_put_zeros(b, 10);
    cmaf_put_matrix(b);
    cmaf_put_zeros(b, 24);
    buf_put_be32(b, MEDIA_AUDIO_TRACK + 1); // next track
    cmaf_end(b, at);
}

static void put_tkhd(const struct media_mp4 *m, const struct track *t, struct buf *b)
{
    const struct media_rendition *r = &m->plan->renditions[t->rendition];
    size_t at = cmaf_begin_full(b, BOX('t', 'k', 'h', 'd'), 1, 3); // enabled, in movie
    cmaf_put_zeros(b, 16);
    buf_put_be32(b, t->video ? MEDIA_VIDEO_TRACK : MEDIA_AUDIO_TRACK);
    cmaf_put_zeros(b, 4);
    buf_put_be64(b, shown_movie(m, t));
    cmaf_put_zeros(b, 8 + 2 + 2); // reserved, layer, group
    buf_put_be16(b, t->video ? 0 : 0x100);
    cmaf_put_zeros(b, 2);
    cmaf_put_matrix(b);
    buf_put_be32(b, r->width << 16);
    buf_put_be32(b, r->height << 16);
    cmaf_end(b, at);
}

// Takes off the shift of composition offsets, or the codec's priming, and what follows the end.
static void put_edts(const struct media_mp4 *m, const struct track *t, struct buf *b)
{
    const struct media_rendition *r = &m->plan->renditions[t->rendition];
    size_t at = cmaf_begin(b, BOX('e', 'd', 't', 's'));
    size_t elst = cmaf_begin_full(b, BOX('e', 'l', 's', 't'), 1, 0);
    buf_put_be32(b, 1);
    buf_put_be64(b, shown_movie(m, t));
    buf_put_be64(b, t->video ? r->cts_shift : r->priming);
    buf_put_be32(b, 0x10000);
    cmaf_end(b, elst);
    cmaf_end(b, at);
}

// ISO 639-2 in three times five bits; "und" for what is not of that kind.
static uint16_t packed_language(const char *language)
{
    const char *l = strlen(language) == 3 ? language : "und";
    uint16_t packed = 0;
    for (size_t i = 0; i < 3; i++) {
        if (l[i] < 'a' || l[i] > 'z')
            return packed_language("und");
        packed = (uint16_t)(packed << 5 | (l[i] - 0x60));
    }
    return packed;
}

static void put_mdhd(const struct media_mp4 *m, const struct track *t, struct buf *b)
{
    const struct media_rendition *r = &m->plan->renditions[t->rendition];
    size_t at = cmaf_begin_full(b, BOX('m', 'd', 'h', 'd'), 1, 0);
    cmaf_put_zeros(b, 16);
    buf_put_be32(b, r->timescale);
    buf_put_be64(b, (uint64_t)t->duration);
    buf_put_be16(b, packed_language(m->plan->source.tracks[r->track].language));
    buf_put_be16(b, 0);
    cmaf_end(b, at);
}

static void put_table(struct buf *b, uint32_t type, uint32_t n, const struct buf *table)
{
    size_t at = cmaf_begin_full(b, type, 0, 0);
    buf_put_be32(b, n);
    buf_append(b, table->data, table->len);
    cmaf_end(b, at);
}

static void put_sizes(const struct track *t, struct buf *b)
{
    size_t at = cmaf_begin_full(b, BOX('s', 't', 's', 'z'), 0, 0);
    buf_put_be32(b, 0); // not constant
    buf_put_be32(b, t->n_samples);
    buf_append(b, t->sizes.data, t->sizes.len);
    cmaf_end(b, at);
}

// Room for the offsets; they are filled in when it is known where the bodies begin.
static void put_chunk_offsets(struct track *t, bool wide, struct buf *b)
{
    size_t at = cmaf_begin_full(b, wide ? BOX('c', 'o', '6', '4') : BOX('s', 't', 'c', 'o'), 0, 0);
    buf_put_be32(b, t->n_chunks);
    t->offsets_at = b->len;
    cmaf_put_zeros(b, (size_t)t->n_chunks * (wide ? 8 : 4));
    cmaf_end(b, at);
}

// The sample description is the init segment's.
static bool put_description(const struct media_mp4 *m, const struct track *t, struct buf *b)
{
    static const uint32_t path[] = {BOX('m', 'o', 'o', 'v'), BOX('t', 'r', 'a', 'k'),
                                    BOX('m', 'd', 'i', 'a'), BOX('m', 'i', 'n', 'f'),
                                    BOX('s', 't', 'b', 'l'), BOX('s', 't', 's', 'd')};
    const struct media_rendition *r = &m->plan->renditions[t->rendition];
    struct reader stsd;
    if (!cmaf_find_path(r->init, r->init_len, path, N_ELEMENTS(path), &stsd))
        return false;
    size_t at = cmaf_begin(b, BOX('s', 't', 's', 'd')), n = reader_left(&stsd);
    buf_append(b, reader_bytes(&stsd, n), n);
    cmaf_end(b, at);
    return true;
}

static bool put_stbl(const struct media_mp4 *m, struct track *t, bool wide, struct buf *b)
{
    size_t at = cmaf_begin(b, BOX('s', 't', 'b', 'l'));
    if (!put_description(m, t, b))
        return false;
    put_table(b, BOX('s', 't', 't', 's'), t->durations.n_entries, &t->durations.table);
    if (t->offsets.n_entries)
        put_table(b, BOX('c', 't', 't', 's'), t->offsets.n_entries, &t->offsets.table);
    if (t->video)
        put_table(b, BOX('s', 't', 's', 's'), t->n_sync, &t->syncs);
    put_table(b, BOX('s', 't', 's', 'c'), t->n_chunk_entries, &t->chunks);
    put_sizes(t, b);
    put_chunk_offsets(t, wide, b);
    cmaf_end(b, at);
    return true;
}

static bool put_trak(const struct media_mp4 *m, struct track *t, bool wide, struct buf *b)
{
    size_t at = cmaf_begin(b, BOX('t', 'r', 'a', 'k'));
    put_tkhd(m, t, b);
    put_edts(m, t, b);
    size_t mdia = cmaf_begin(b, BOX('m', 'd', 'i', 'a'));
    put_mdhd(m, t, b);
    cmaf_put_hdlr(b, t->video);
    size_t minf = cmaf_begin(b, BOX('m', 'i', 'n', 'f'));
    size_t head = cmaf_begin_full(b, t->video ? BOX('v', 'm', 'h', 'd') : BOX('s', 'm', 'h', 'd'),
                                  0, t->video ? 1 : 0);
    cmaf_put_zeros(b, t->video ? 8 : 4);
    cmaf_end(b, head);
    cmaf_put_dinf(b);
    bool done = put_stbl(m, t, wide, b);
    cmaf_end(b, minf);
    cmaf_end(b, mdia);
    cmaf_end(b, at);
    return done;
}

static void put_mdat(const struct media_mp4 *m, bool wide, struct buf *b)
{
    if (!wide) {
        buf_put_be32(b, (uint32_t)m->body_bytes + 8);
        buf_put_be32(b, BOX('m', 'd', 'a', 't'));
        return;
    }
    buf_put_be32(b, 1); // the size follows the type
    buf_put_be32(b, BOX('m', 'd', 'a', 't'));
    buf_put_be64(b, (uint64_t)m->body_bytes + 16);
}

static void set_be(uint8_t *at, uint64_t v, size_t n)
{
    for (size_t i = n; i > 0; i--, v >>= 8)
        at[i - 1] = (uint8_t)v;
}

static void place_parts(struct media_mp4 *m, bool wide)
{
    size_t width = wide ? 8 : 4, n_done[2] = {0, 0};
    for (size_t i = 0; i < m->n_parts; i++) {
        struct part *p = &m->parts[i];
        struct track *t = track_of(m, p->at.rendition);
        size_t *n = &n_done[t - m->tracks];
        p->place += (int64_t)m->header.len;
        set_be(m->header.data + t->offsets_at + *n * width, (uint64_t)p->place, width);
        ++*n;
    }
}

enum status media_mp4_finish(struct media_mp4 *m, struct err *err)
{
    if (m->n_added != m->n_parts)
        return err_set(err, STATUS_FAILED_PRECONDITION, "file: %zu of %zu parts", m->n_added,
                       m->n_parts);
    bool wide = m->body_bytes > (int64_t)UINT32_MAX - MAX_HEADER_BYTES, done = true;
    struct buf *b = &m->header;
    for (size_t i = 0; i < m->n_tracks; i++) {
        end_run(&m->tracks[i].durations);
        end_run(&m->tracks[i].offsets);
    }
    put_ftyp(b);
    size_t moov = cmaf_begin(b, BOX('m', 'o', 'o', 'v'));
    put_mvhd(m, b);
    for (size_t i = 0; i < m->n_tracks; i++)
        done &= put_trak(m, &m->tracks[i], wide, b);
    cmaf_end(b, moov);
    put_mdat(m, wide, b);
    for (size_t i = 0; i < m->n_tracks; i++)
        if (is_full(&m->tracks[i]) || b->failed)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "file: its index is too large");
    if (!done)
        return err_set(err, STATUS_INVALID_ARGUMENT, "file: an init segment describes nothing");
    place_parts(m, wide);
    for (size_t i = 0; i < m->n_tracks; i++)
        drop_tables(&m->tracks[i]); // the header has them
    mem_free(m->samples);
    m->samples = NULL;
    return STATUS_OK;
}

// ---------------------------------------------------------------- afterwards

int64_t media_mp4_size(const struct media_mp4 *m)
{
    return (int64_t)m->header.len + m->body_bytes;
}

const uint8_t *media_mp4_header(const struct media_mp4 *m, size_t *ret_len)
{
    *ret_len = m->header.len;
    return m->header.data;
}

void media_mp4_at(const struct media_mp4 *m, int64_t offset, struct media_mp4_span *ret)
{
    int64_t header = (int64_t)m->header.len;
    if (offset < header) {
        *ret = (struct media_mp4_span){true, 0, offset, header - offset};
        return;
    }
    size_t lo = 0, hi = m->n_parts; // the answer is in [lo, hi)
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (m->parts[mid].place <= offset)
            lo = mid;
        else
            hi = mid;
    }
    const struct part *p = &m->parts[lo];
    int64_t into = offset - p->place;
    *ret = (struct media_mp4_span){false, lo, p->body + into, p->len - into};
}

size_t media_mp4_memory(const struct media_mp4 *m)
{
    size_t n = sizeof(*m) + m->header.cap + m->n_parts * sizeof(*m->parts);
    for (size_t i = 0; i < m->n_tracks; i++) {
        const struct track *t = &m->tracks[i];
        n += t->sizes.cap + t->syncs.cap + t->durations.table.cap + t->offsets.table.cap +
             t->chunks.cap;
    }
    return n;
}
