// Reading back what we wrote. Strict: one layout is accepted, the writer's, because everything that
// passes here was made by it inside the confined process, or is a lie.
#include "media/cmaf.h"

#include <string.h>

#include "media/cmaf_internal.h"

#define BAD(...) return err_set(err, STATUS_INVALID_ARGUMENT, "segment: " __VA_ARGS__)

// Enter the box that begins here: its body, and `r` moves past it.
static bool enter(struct reader *r, uint32_t type, struct reader *body)
{
    size_t left = reader_left(r);
    uint32_t size = reader_be32(r), got = reader_be32(r);
    if (r->failed || got != type || size < 8 || size > left)
        return false;
    const uint8_t *p = reader_bytes(r, size - 8);
    if (!p && size > 8)
        return false;
    reader_init(body, p, size - 8);
    return true;
}

static bool enter_full(struct reader *r, uint32_t type, struct reader *body, uint8_t *version,
                       uint32_t *flags)
{
    if (!enter(r, type, body))
        return false;
    uint32_t v = reader_be32(body);
    *version = (uint8_t)(v >> 24);
    *flags = v & 0xffffff;
    return !body->failed;
}

struct run {
    uint32_t default_duration, default_flags, flags, n;
    int32_t data_offset;
    uint64_t bytes;
    struct media_sample *samples; // filled when not NULL; room for max
    size_t max;
};

static bool read_samples(struct reader *r, struct run *run, struct media_fragment *f)
{
    int64_t dts = f->base_time;
    f->first_pts = INT64_MAX;
    for (uint32_t i = 0; i < run->n; i++) {
        uint32_t duration = run->default_duration, sample_flags = run->default_flags;
        int32_t cts = 0;
        if (run->flags & TRUN_DURATION)
            duration = reader_be32(r);
        uint32_t size = reader_be32(r);
        run->bytes += size;
        if (run->flags & TRUN_FLAGS)
            sample_flags = reader_be32(r);
        if (run->flags & TRUN_CTS)
            cts = (int32_t)reader_be32(r);
        if (r->failed || duration == 0 ||
            (sample_flags != FLAGS_SYNC && sample_flags != FLAGS_NON_SYNC))
            return false;
        if (cts < f->min_cts)
            f->min_cts = cts;
        if (dts + cts < f->first_pts)
            f->first_pts = dts + cts;
        if (sample_flags == FLAGS_SYNC) {
            f->n_sync++;
            f->first_is_sync |= i == 0;
        }
        if (run->samples && i < run->max)
            run->samples[i] = (struct media_sample){
                .size = size, .duration = duration, .cts = cts, .sync = sample_flags == FLAGS_SYNC};
        dts += duration;
        if (dts > INT64_MAX / 4)
            return false;
    }
    f->duration = dts - f->base_time;
    return reader_left(r) == 0;
}

static bool read_traf(struct reader *traf, struct run *run, struct media_fragment *f)
{
    struct reader r;
    uint8_t version;
    uint32_t flags;
    if (!enter_full(traf, BOX('t', 'f', 'h', 'd'), &r, &version, &flags))
        return false;
    bool uniform = flags == (TFHD_BASE_IS_MOOF | TFHD_DEFAULT_DURATION | TFHD_DEFAULT_FLAGS);
    if (!uniform && flags != TFHD_BASE_IS_MOOF)
        return false;
    f->track_id = reader_be32(&r);
    if (uniform) {
        run->default_duration = reader_be32(&r);
        run->default_flags = reader_be32(&r);
    }
    if (r.failed || reader_left(&r))
        return false;
    if (!enter_full(traf, BOX('t', 'f', 'd', 't'), &r, &version, &flags) || version != 1)
        return false;
    uint64_t base = reader_be64(&r);
    if (r.failed || reader_left(&r) || base > INT64_MAX / 4)
        return false;
    f->base_time = (int64_t)base;
    if (!enter_full(traf, BOX('t', 'r', 'u', 'n'), &r, &version, &run->flags) || version != 1 ||
        reader_left(traf))
        return false;
    uint32_t want = TRUN_OFFSET | TRUN_SIZE;
    if (!uniform)
        want |= TRUN_DURATION | TRUN_FLAGS | TRUN_CTS;
    if (run->flags != want)
        return false;
    run->n = f->n_samples = reader_be32(&r);
    run->data_offset = (int32_t)reader_be32(&r);
    return run->n > 0 && run->n <= MEDIA_MAX_FRAMES && read_samples(&r, run, f);
}

enum status media_cmaf_head(const void *bytes, size_t n, int64_t size, struct media_sample *samples,
                            size_t max, struct media_fragment *ret, struct err *err)
{
    struct reader file, styp, moof, mfhd, traf;
    struct media_fragment f = {0};
    struct run run = {.samples = samples, .max = max};
    uint8_t version;
    uint32_t flags;
    reader_init(&file, bytes, n);
    if (size > MEDIA_MAX_SEGMENT_BYTES || (int64_t)n > size ||
        !enter(&file, BOX('s', 't', 'y', 'p'), &styp))
        BAD("does not begin with styp");
    const uint8_t *moof_at = file.p;
    if (!enter(&file, BOX('m', 'o', 'o', 'f'), &moof) ||
        !enter_full(&moof, BOX('m', 'f', 'h', 'd'), &mfhd, &version, &flags))
        BAD("no moof after styp");
    f.sequence = reader_be32(&mfhd);
    if (mfhd.failed || !enter(&moof, BOX('t', 'r', 'a', 'f'), &traf) || reader_left(&moof) ||
        !read_traf(&traf, &run, &f))
        BAD("its moof is not one that we write");
    const uint8_t *mdat_at = file.p;
    int64_t left = size - (mdat_at - (const uint8_t *)bytes); // the mdat alone
    if (reader_be32(&file) != left || reader_be32(&file) != BOX('m', 'd', 'a', 't') || file.failed)
        BAD("not exactly one mdat after moof");
    if ((int64_t)run.bytes != left - 8 || run.data_offset != mdat_at + 8 - moof_at)
        BAD("sample sizes do not fill the mdat");
    f.data_offset = (size_t)(mdat_at + 8 - (const uint8_t *)bytes);
    f.data_len = (size_t)run.bytes;
    *ret = f;
    return STATUS_OK;
}

enum status media_cmaf_parse(const void *bytes, size_t n, struct media_fragment *ret,
                             struct err *err)
{
    return media_cmaf_head(bytes, n, (int64_t)n, NULL, 0, ret, err);
}

enum status media_cmaf_key(const void *bytes, size_t n, struct buf *ret, struct err *err)
{
    struct media_fragment f;
    struct media_sample key;
    enum status s = media_cmaf_head(bytes, n, (int64_t)n, &key, 1, &f, err);
    if (s != STATUS_OK)
        return s;
    if (!f.first_is_sync || f.duration > UINT32_MAX || key.size > f.data_len)
        BAD("does not begin with a picture of its own");
    key.data = (const uint8_t *)bytes + f.data_offset;
    key.duration = (uint32_t)f.duration;
    return media_cmaf_fragment(f.sequence, f.track_id, f.base_time, &key, 1, ret, err);
}

enum status media_cmaf_check(const struct media_plan *p, size_t rendition, size_t segment,
                             const void *bytes, size_t n, struct media_fragment *ret,
                             struct err *err)
{
    const struct media_grid *g = media_rendition_grid(p, rendition);
    if (!g || segment >= g->n_segments)
        BAD("number %zu is not in the plan", segment);
    struct media_fragment f;
    enum status s = media_cmaf_parse(bytes, n, &f, err);
    if (s != STATUS_OK)
        return s;
    const struct media_rendition *r = &p->renditions[rendition];
    const struct media_segment *seg = &g->segments[segment];
    bool video = r->kind == MEDIA_VIDEO;
    uint32_t samples = media_rendition_samples(p, rendition, segment);
    int64_t duration = media_rendition_duration(p, rendition, segment);
    if (f.track_id != (video ? MEDIA_VIDEO_TRACK : MEDIA_AUDIO_TRACK))
        BAD("%s/%zu is on track %u", r->id, segment, f.track_id);
    if (f.base_time != seg->start || f.first_pts != seg->start)
        BAD("%s/%zu begins at %lld, the plan says %lld", r->id, segment, (long long)f.base_time,
            (long long)seg->start);
    if (f.n_samples != samples || f.duration != duration)
        BAD("%s/%zu has %u samples lasting %lld, the plan says %u and %lld", r->id, segment,
            f.n_samples, (long long)f.duration, samples, (long long)duration);
    // A source may have several keyframes in a segment.
    if (!f.first_is_sync || (video && !r->copy && f.n_sync != 1))
        BAD("%s/%zu has %u sync samples, not the first alone", r->id, segment, f.n_sync);
    if (video && -(int64_t)f.min_cts > r->cts_shift)
        BAD("%s/%zu has an offset of %d, the plan allows -%u", r->id, segment, (int)f.min_cts,
            r->cts_shift);
    *ret = f;
    return STATUS_OK;
}

// ---- init segments ----

// The body of the box of that type among the boxes of r; other boxes are passed over.
static bool find(struct reader *r, uint32_t type, struct reader *body)
{
    while (reader_left(r) >= 8) {
        uint32_t got =
            (uint32_t)r->p[4] << 24 | (uint32_t)r->p[5] << 16 | (uint32_t)r->p[6] << 8 | r->p[7];
        if (!enter(r, got, body))
            return false;
        if (got == type)
            return true;
    }
    return false;
}

bool cmaf_find_path(const void *bytes, size_t n, const uint32_t *path, size_t n_path,
                    struct reader *body)
{
    struct reader r;
    reader_init(&r, bytes, n);
    for (size_t i = 0; i < n_path; i++) {
        if (!find(&r, path[i], body))
            return false;
        r = *body;
    }
    return true;
}

// The decoder's configuration inside a sample entry: what follows the entry's fixed fields.
static bool find_config(const struct media_rendition *r, struct media_track_config *c)
{
    static const uint32_t path[] = {BOX('m', 'o', 'o', 'v'), BOX('t', 'r', 'a', 'k'),
                                    BOX('m', 'd', 'i', 'a'), BOX('m', 'i', 'n', 'f'),
                                    BOX('s', 't', 'b', 'l'), BOX('s', 't', 's', 'd')};
    struct reader stsd, entry, body;
    if (!cmaf_find_path(r->init, r->init_len, path, N_ELEMENTS(path), &stsd))
        return false;
    (void)reader_bytes(&stsd, 8);
    bool video = media_codec_is_video(r->codec), aac = r->codec == MEDIA_CODEC_AAC;
    bool flac = r->codec == MEDIA_CODEC_FLAC;
    uint32_t type = video  ? cmaf_video_entry(r->codec)
                    : aac  ? BOX('m', 'p', '4', 'a')
                    : flac ? BOX('f', 'L', 'a', 'C')
                           : BOX('O', 'p', 'u', 's');
    if (!enter(&stsd, type, &entry) || !reader_bytes(&entry, video ? 78 : 28))
        return false;
    uint32_t inner = video  ? cmaf_video_config(r->codec)
                     : aac  ? BOX('e', 's', 'd', 's')
                     : flac ? BOX('d', 'f', 'L', 'a')
                            : BOX('d', 'O', 'p', 's');
    if (!enter(&entry, inner, &body))
        return false;
    size_t n = reader_left(&body);
    if (aac) { // the writer's fixed layout: 26 bytes before the length, 3 after the config
        if (!reader_bytes(&body, 4 + 2 + 3 + 2 + 13 + 1))
            return false;
        n = reader_u8(&body);
    }
    if (flac) { // after version, flags and the block's header
        if (!reader_bytes(&body, 4 + 4))
            return false;
        n = reader_left(&body);
    }
    c->config = reader_bytes(&body, n);
    c->config_len = n;
    return c->config != NULL;
}

enum status media_cmaf_init_config(const struct media_plan *p, size_t rendition,
                                   struct media_track_config *ret, struct err *err)
{
    const struct media_rendition *r = &p->renditions[rendition];
    bool video = r->kind == MEDIA_VIDEO;
    struct media_track_config c = {
        .codec = r->codec,
        .timescale = r->timescale,
        .width = video ? r->width : 0,
        .height = video ? r->height : 0,
        .channels = video ? 0 : r->channels,
        .sample_rate = video ? 0 : MEDIA_AUDIO_RATE,
        .priming = r->priming,
        .bitrate_bps = r->bitrate_bps,
    };
    struct buf again;
    buf_init(&again, MEDIA_MAX_INIT_BYTES);
    // Made again from its own configuration it must be the same: nothing else can hide in it.
    bool same = find_config(r, &c) && media_cmaf_init(&c, &again, NULL) == STATUS_OK &&
                again.len == r->init_len && memcmp(again.data, r->init, again.len) == 0;
    buf_done(&again);
    if (!same)
        return err_set(err, STATUS_INVALID_ARGUMENT, "plan: init segment of %s is not one of ours",
                       r->id);
    *ret = c;
    return STATUS_OK;
}
