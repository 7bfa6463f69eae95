#include "media/plan.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"

static const char *const container_names[MEDIA_N_CONTAINERS] = {
    [MEDIA_CONTAINER_OTHER] = "other",  [MEDIA_CONTAINER_MP4] = "mp4",
    [MEDIA_CONTAINER_MATROSKA] = "mkv", [MEDIA_CONTAINER_WEBM] = "webm",
    [MEDIA_CONTAINER_MPEGTS] = "ts",    [MEDIA_CONTAINER_MPEGPS] = "mpeg",
    [MEDIA_CONTAINER_AVI] = "avi",      [MEDIA_CONTAINER_FLV] = "flv",
    [MEDIA_CONTAINER_OGG] = "ogg",      [MEDIA_CONTAINER_MP3] = "mp3",
    [MEDIA_CONTAINER_ADTS] = "aac",     [MEDIA_CONTAINER_AC3] = "ac3",
    [MEDIA_CONTAINER_WAV] = "wav",      [MEDIA_CONTAINER_FLAC] = "flac",
};
static const char *const codec_names[MEDIA_N_CODECS] = {
    [MEDIA_CODEC_NONE] = "none", [MEDIA_CODEC_H264] = "h264", [MEDIA_CODEC_AAC] = "aac",
    [MEDIA_CODEC_OPUS] = "opus", [MEDIA_CODEC_HEVC] = "hevc", [MEDIA_CODEC_AV1] = "av1",
    [MEDIA_CODEC_VP9] = "vp9",   [MEDIA_CODEC_FLAC] = "flac",
};

const char *media_container_name(enum media_container c)
{
    return (unsigned)c < MEDIA_N_CONTAINERS ? container_names[c] : "other";
}

bool media_codec_is_video(enum media_codec c)
{
    return c == MEDIA_CODEC_H264 || c == MEDIA_CODEC_HEVC || c == MEDIA_CODEC_AV1 ||
           c == MEDIA_CODEC_VP9;
}

const char *media_codec_name(enum media_codec c)
{
    return (unsigned)c < MEDIA_N_CODECS ? codec_names[c] : "none";
}

struct media_plan *media_plan_new(void)
{
    return mem_alloc(sizeof(struct media_plan));
}

static void grid_done(struct media_grid *g)
{
    mem_free(g->segments);
    mem_free(g->chunks);
    mem_free(g->frame_times);
}

void media_plan_free(struct media_plan *p)
{
    if (!p)
        return;
    grid_done(&p->video);
    grid_done(&p->audio);
    p->video_copy.frame_times = NULL; // was video's
    grid_done(&p->video_copy);
    for (size_t i = 0; i < MEDIA_MAX_RENDITIONS; i++)
        mem_free(p->renditions[i].init);
    mem_free(p);
}

int media_plan_find(const struct media_plan *p, const char *rendition_id)
{
    for (size_t i = 0; i < p->n_renditions; i++)
        if (str_eq(p->renditions[i].id, rendition_id))
            return (int)i;
    return -1;
}

const struct media_grid *media_plan_grid(const struct media_plan *p, enum media_kind kind)
{
    const struct media_grid *g = kind == MEDIA_VIDEO   ? &p->video
                                 : kind == MEDIA_AUDIO ? &p->audio
                                                       : NULL;
    return g && g->n_segments ? g : NULL;
}

const struct media_grid *media_rendition_grid(const struct media_plan *p, size_t rendition)
{
    if (rendition >= p->n_renditions)
        return NULL;
    const struct media_rendition *r = &p->renditions[rendition];
    if (r->kind == MEDIA_VIDEO && r->copy)
        return p->video_copy.n_segments ? &p->video_copy : NULL;
    return media_plan_grid(p, r->kind);
}

int64_t media_plan_samples(const struct media_plan *p)
{
    uint32_t priming = 0;
    for (size_t i = 0; i < p->n_renditions; i++)
        if (p->renditions[i].kind == MEDIA_AUDIO && p->renditions[i].priming > priming)
            priming = p->renditions[i].priming;
    return p->audio.duration > priming ? p->audio.duration - priming : 0;
}

int64_t media_plan_duration_us(const struct media_plan *p)
{
    int64_t v = media_ticks_to_us(p->video.duration, p->video.timescale);
    int64_t a = media_ticks_to_us(media_plan_samples(p), p->audio.timescale);
    return v > a ? v : a;
}

int64_t media_segment_start_us(const struct media_grid *g, size_t segment)
{
    return segment < g->n_segments ? media_ticks_to_us(g->segments[segment].start, g->timescale)
                                   : media_ticks_to_us(g->duration, g->timescale);
}

int64_t media_segment_duration_us(const struct media_grid *g, size_t segment)
{
    return segment < g->n_segments ? media_ticks_to_us(g->segments[segment].duration, g->timescale)
                                   : 0;
}

size_t media_grid_segment_at(const struct media_grid *g, int64_t t_us)
{
    if (!g->n_segments)
        return 0;
    int64_t t = media_scale_floor(t_us, g->timescale, 1000000);
    size_t lo = 0, hi = g->n_segments; // the answer is in [lo, hi)
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (g->segments[mid].start <= t)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

size_t media_grid_chunk_of(const struct media_grid *g, size_t segment)
{
    for (size_t i = 0; i < g->n_chunks; i++)
        if (segment < (size_t)g->chunks[i].first_segment + g->chunks[i].n_segments)
            return i;
    return g->n_chunks ? g->n_chunks - 1 : 0;
}

int64_t media_grid_frame_time(const struct media_grid *g, uint32_t frame)
{
    if (frame > g->n_frames)
        frame = g->n_frames;
    return g->frame_times ? g->frame_times[frame] : (int64_t)frame * g->frame_ticks;
}

void media_chunk_source_range(const struct media_plan *p, const struct media_grid *g, size_t chunk,
                              int64_t *ret_offset, int64_t *ret_len)
{
    *ret_offset = 0;
    *ret_len = 0;
    if (chunk >= g->n_chunks)
        return;
    const struct media_chunk *c = &g->chunks[chunk];
    int64_t from = g->segments[c->first_segment].seek_offset;
    int64_t to = p->source.size_bytes;
    size_t next = (size_t)c->first_segment + c->n_segments;
    // The cut may lie before its keyframe, so one segment more than the chunk has.
    if (next + 1 < g->n_segments && g->segments[next + 1].seek_offset >= 0)
        to = g->segments[next + 1].seek_offset;
    if (from < 0 || to <= from)
        return;
    *ret_offset = from;
    *ret_len = to - from;
}

uint32_t media_rendition_samples(const struct media_plan *p, size_t rendition, size_t segment)
{
    const struct media_grid *g = media_rendition_grid(p, rendition);
    if (!g || segment >= g->n_segments)
        return 0;
    const struct media_rendition *r = &p->renditions[rendition];
    const struct media_segment *s = &g->segments[segment];
    if (r->kind == MEDIA_VIDEO)
        return s->n_frames;
    return (uint32_t)((s->duration + r->frame_samples - 1) / r->frame_samples);
}

int64_t media_rendition_duration(const struct media_plan *p, size_t rendition, size_t segment)
{
    const struct media_grid *g = media_rendition_grid(p, rendition);
    if (!g || segment >= g->n_segments)
        return 0;
    const struct media_rendition *r = &p->renditions[rendition];
    if (r->kind == MEDIA_VIDEO)
        return g->segments[segment].duration;
    return (int64_t)media_rendition_samples(p, rendition, segment) * r->frame_samples;
}

const struct media_track *media_plan_track(const struct media_plan *p, enum media_track_type type)
{
    const struct media_track *first = NULL;
    for (size_t i = 0; i < p->source.n_tracks; i++) {
        const struct media_track *t = &p->source.tracks[i];
        if (t->type != type || !t->chosen)
            continue;
        if (t->is_default)
            return t;
        if (!first)
            first = t;
    }
    return first;
}
