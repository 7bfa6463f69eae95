// Invariants of a plan. What comes out of the codec process is believed only after this.
#include "media/plan.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "media/cmaf.h"

// 33 bits of 90 kHz are 26.5 h, at most MEDIA_MAX_JUMPS times over.
#define MEDIA_MAX_JUMP_US (INT64_C(200) * 24 * 3600 * 1000000)

#define BAD(...) return err_set(err, STATUS_INVALID_ARGUMENT, "plan: " __VA_ARGS__)

static enum status check_source(const struct media_source *s, struct err *err)
{
    if (s->size_bytes <= 0)
        BAD("source of no bytes");
    if (s->duration_us < 0 || s->duration_us > MEDIA_MAX_DURATION_US)
        BAD("source longer than 8 hours");
    if ((unsigned)s->container >= MEDIA_N_CONTAINERS || (unsigned)s->seek >= MEDIA_N_SEEKS)
        BAD("unknown container or seek mode");
    if (s->n_tracks == 0 || s->n_tracks > MEDIA_MAX_TRACKS)
        BAD("%zu tracks", s->n_tracks);
    if (s->n_jumps > MEDIA_MAX_JUMPS)
        BAD("%zu jumps", s->n_jumps);
    for (size_t i = 0; i < s->n_jumps; i++)
        if (s->jumps[i].offset < (i ? s->jumps[i - 1].offset + 1 : 0) ||
            s->jumps[i].shift_us < -MEDIA_MAX_JUMP_US || s->jumps[i].shift_us > MEDIA_MAX_JUMP_US)
            BAD("jump %zu is out of place or too far", i);
    unsigned pictures = 0;
    for (size_t i = 0; i < s->n_tracks; i++) {
        const struct media_track *t = &s->tracks[i];
        if ((unsigned)t->type >= MEDIA_N_TRACK_TYPES)
            BAD("track %zu has no known type", i);
        if (t->width > MEDIA_MAX_SIDE_PX || t->height > MEDIA_MAX_SIDE_PX ||
            (uint64_t)t->width * t->height > MEDIA_MAX_PIXELS)
            BAD("picture of %ux%u is too large", t->width, t->height);
        if (t->rotation != 0 && t->rotation != 90 && t->rotation != 180 && t->rotation != 270)
            BAD("rotation by %d degrees", t->rotation);
        if (t->sar.num < 0 || t->sar.den <= 0 || t->frame_rate.num < 0 || t->frame_rate.den <= 0)
            BAD("track %zu has a bad ratio", i);
        if ((unsigned)t->subtitle >= MEDIA_N_SUBTITLES || (unsigned)t->seek >= MEDIA_N_SEEKS)
            BAD("track %zu has an unknown subtitle kind or seek mode", i);
        if (t->chosen && t->type == MEDIA_TRACK_VIDEO && ++pictures > 1)
            BAD("two chosen video tracks");
    }
    return STATUS_OK;
}

static enum status check_chunks(const struct media_grid *g, struct err *err)
{
    size_t next = 0;
    for (size_t i = 0; i < g->n_chunks; i++) {
        if (g->chunks[i].first_segment != next || g->chunks[i].n_segments == 0)
            BAD("chunk %zu does not follow the one before", i);
        next += g->chunks[i].n_segments;
    }
    if (next != g->n_segments)
        BAD("chunks do not cover the segments");
    return STATUS_OK;
}

static enum status check_frames(const struct media_grid *g, struct err *err)
{
    if (g->n_frames == 0 || g->n_frames > MEDIA_MAX_FRAMES)
        BAD("%u frames", g->n_frames);
    if (!g->frame_times) {
        if (g->frame_ticks == 0 || (int64_t)g->n_frames * g->frame_ticks != g->duration)
            BAD("frames do not fill the duration");
        return STATUS_OK;
    }
    if (g->frame_times[0] != 0 || g->frame_times[g->n_frames] != g->duration)
        BAD("frame times do not span the duration");
    for (uint32_t i = 0; i < g->n_frames; i++)
        if (g->frame_times[i + 1] <= g->frame_times[i] ||
            g->frame_times[i + 1] - g->frame_times[i] > UINT32_MAX / 4)
            BAD("frame times do not rise");
    return STATUS_OK;
}

static enum status check_segments(const struct media_grid *g, bool is_video, struct err *err)
{
    int64_t at = 0;
    uint32_t frame = 0;
    for (size_t i = 0; i < g->n_segments; i++) {
        const struct media_segment *s = &g->segments[i];
        if (s->start != at || s->duration <= 0 || s->duration > g->duration - at)
            BAD("segment %zu is out of place", i);
        // 16 s is the longest that any cut may be, tails included, unless a frame is longer.
        if (s->duration > (int64_t)g->timescale * 16 && s->n_frames != 1)
            BAD("segment %zu is too long", i);
        at += s->duration;
        if (is_video) {
            if (s->first_frame != frame || s->n_frames == 0 || s->n_frames > g->n_frames - frame)
                BAD("segment %zu has wrong frames", i);
            frame += s->n_frames;
            if (media_grid_frame_time(g, s->first_frame) != s->start ||
                media_grid_frame_time(g, frame) != at)
                BAD("segment %zu and its frames disagree", i);
        } else if (s->n_frames || s->first_frame) {
            BAD("segment %zu of sound has frames", i);
        } else if (s->start % MEDIA_AUDIO_BLOCK) {
            BAD("segment %zu is off the audio grid", i);
        }
        if (s->seek_offset < -1)
            BAD("segment %zu has a bad offset", i);
    }
    if (at != g->duration || (is_video && frame != g->n_frames))
        BAD("segments do not fill the duration");
    return STATUS_OK;
}

static enum status check_grid(const struct media_grid *g, bool is_video, struct err *err)
{
    if (g->n_segments == 0) {
        if (g->n_chunks || g->n_frames || g->duration || g->frame_times)
            BAD("empty grid with content");
        return STATUS_OK;
    }
    if (g->n_segments > MEDIA_MAX_SEGMENTS || g->n_chunks > g->n_segments)
        BAD("%zu segments, %zu chunks", g->n_segments, g->n_chunks);
    if (g->timescale < 1000 || g->timescale > 10000000)
        BAD("timescale %u", g->timescale);
    if (!is_video && g->timescale != MEDIA_AUDIO_RATE)
        BAD("audio grid of %u Hz", g->timescale);
    if (g->duration <= 0 || media_ticks_to_us(g->duration, g->timescale) > MEDIA_MAX_DURATION_US)
        BAD("duration out of range");
    if (is_video) {
        enum status s = check_frames(g, err);
        if (s != STATUS_OK)
            return s;
    } else if (g->n_frames || g->frame_times || g->frame_ticks) {
        BAD("audio grid with frames");
    }
    enum status s = check_segments(g, is_video, err);
    return s == STATUS_OK ? check_chunks(g, err) : s;
}

static bool is_id(const char *s)
{
    if (!*s || *s == '-')
        return false;
    for (; *s; s++)
        if (!((*s >= 'a' && *s <= 'z') || (*s >= '0' && *s <= '9') || *s == '-'))
            return false;
    return true;
}

// RFC 6381 names go into quoted attributes of a playlist.
static bool is_codecs(const char *s)
{
    if (!*s)
        return false;
    for (; *s; s++)
        if (!((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || (*s >= '0' && *s <= '9') ||
              *s == '.'))
            return false;
    return true;
}

static enum status check_video_rendition(const struct media_plan *p, size_t i, struct err *err)
{
    const struct media_rendition *r = &p->renditions[i];
    if (!media_codec_is_video(r->codec))
        BAD("%s has no video codec", r->id);
    if (r->channels || r->normalised)
        BAD("%s is a picture with channels", r->id);
    if (r->burn && (r->copy || r->burn > p->source.n_tracks ||
                    p->source.tracks[r->burn - 1].subtitle == MEDIA_SUBTITLE_NONE))
        BAD("%s has nothing to burn in", r->id);
    if (r->width < 2 || r->height < 2 || r->width % 2 || r->height % 2 ||
        r->width > MEDIA_MAX_SIDE_PX || r->height > MEDIA_MAX_SIDE_PX ||
        (uint64_t)r->width * r->height > MEDIA_MAX_PIXELS)
        BAD("%s has a picture of %ux%u", r->id, r->width, r->height);
    if (r->frame_rate.num <= 0 || r->frame_rate.den <= 0)
        BAD("%s has no frame rate", r->id);
    if (r->timescale != p->video.timescale || r->frame_samples || r->priming)
        BAD("%s is off the video grid", r->id);
    if (r->crf > 63 || r->maxrate_bps == 0 || r->cts_shift > INT32_MAX ||
        r->preset >= MEDIA_N_PRESETS)
        BAD("%s has bad encoder settings", r->id);
    if (r->scale_from != MEDIA_FROM_SOURCE &&
        (r->scale_from >= i || p->renditions[r->scale_from].copy))
        BAD("%s is scaled from a later one", r->id);
    return STATUS_OK;
}

static enum status check_audio_rendition(const struct media_plan *p, size_t i, struct err *err)
{
    const struct media_rendition *r = &p->renditions[i];
    uint32_t frame = r->codec == MEDIA_CODEC_AAC    ? 1024
                     : r->codec == MEDIA_CODEC_OPUS ? 960
                     : r->codec == MEDIA_CODEC_FLAC ? MEDIA_FLAC_FRAME
                                                    : 0;
    if (!frame || r->frame_samples != frame)
        BAD("%s is none of AAC, Opus and FLAC", r->id);
    if (r->channels == 0 || r->channels > MEDIA_MAX_CHANNELS || r->burn)
        BAD("%s has %u channels", r->id, (unsigned)r->channels);
    if (r->timescale != MEDIA_AUDIO_RATE || r->priming > 8192 || r->bitrate_bps == 0)
        BAD("%s is off the audio grid", r->id);
    return STATUS_OK;
}

static enum status check_rendition(const struct media_plan *p, size_t i, struct err *err)
{
    const struct media_rendition *r = &p->renditions[i];
    if (!is_id(r->id) || media_plan_find(p, r->id) != (int)i)
        BAD("rendition %zu has a bad or repeated id", i);
    if (!is_codecs(r->codecs))
        BAD("%s has a bad codecs string", r->id);
    if (!media_rendition_grid(p, i))
        BAD("%s has no grid", r->id);
    enum media_track_type type = r->kind == MEDIA_VIDEO ? MEDIA_TRACK_VIDEO : MEDIA_TRACK_AUDIO;
    if (r->track >= p->source.n_tracks || p->source.tracks[r->track].type != type ||
        !p->source.tracks[r->track].chosen)
        BAD("%s is made from a track that was not chosen", r->id);
    if (!r->init || r->init_len < 8 || r->init_len > MEDIA_MAX_INIT_BYTES)
        BAD("%s has no init segment", r->id);
    if (r->bandwidth_bps == 0)
        BAD("%s has no bandwidth", r->id);
    if (i > 0 && p->renditions[i - 1].kind == MEDIA_AUDIO && r->kind == MEDIA_VIDEO)
        BAD("renditions out of order");
    bool leads = i == 0 || p->renditions[i - 1].kind != r->kind;
    if (leads && (r->lazy || r->copy || r->burn || r->normalised))
        BAD("%s is first of its kind, but not what everything can play", r->id);
    enum status s = r->kind == MEDIA_VIDEO ? check_video_rendition(p, i, err)
                                           : check_audio_rendition(p, i, err);
    struct media_track_config config;
    return s == STATUS_OK ? media_cmaf_init_config(p, i, &config, err) : s;
}

static enum status check_copy_grid(const struct media_plan *p, struct err *err)
{
    const struct media_grid *g = &p->video_copy, *v = &p->video;
    if (g->n_segments == 0)
        return check_grid(g, true, err);
    if (g->timescale != v->timescale || g->duration != v->duration || g->n_frames != v->n_frames ||
        g->frame_ticks != v->frame_ticks || g->frame_times != v->frame_times)
        BAD("the grid of copies has frames of its own");
    if (g->n_segments > MEDIA_MAX_SEGMENTS || g->n_chunks > g->n_segments)
        BAD("%zu segments, %zu chunks", g->n_segments, g->n_chunks);
    enum status s = check_segments(g, true, err);
    return s == STATUS_OK ? check_chunks(g, err) : s;
}

enum status media_plan_check(const struct media_plan *p, struct err *err)
{
    if (p->kind != MEDIA_VIDEO && p->kind != MEDIA_AUDIO)
        BAD("neither video nor audio");
    if ((p->kind == MEDIA_VIDEO) != (p->video.n_segments > 0))
        BAD("kind and grids disagree");
    enum status s = check_source(&p->source, err);
    if (s == STATUS_OK)
        s = check_grid(&p->video, true, err);
    if (s == STATUS_OK)
        s = check_grid(&p->audio, false, err);
    if (s == STATUS_OK)
        s = check_copy_grid(p, err);
    if (s != STATUS_OK)
        return s;
    if (p->n_renditions == 0 || p->n_renditions > MEDIA_MAX_RENDITIONS)
        BAD("%zu renditions", p->n_renditions);
    bool has_video = false, has_audio = false; // to be had without asking for it first
    for (size_t i = 0; i < p->n_renditions; i++) {
        s = check_rendition(p, i, err);
        if (s != STATUS_OK)
            return s;
        has_video |= !p->renditions[i].lazy && p->renditions[i].kind == MEDIA_VIDEO;
        has_audio |= !p->renditions[i].lazy && p->renditions[i].kind == MEDIA_AUDIO;
    }
    if (has_video != (p->video.n_segments > 0) || has_audio != (p->audio.n_segments > 0))
        BAD("a grid without renditions");
    return STATUS_OK;
}
