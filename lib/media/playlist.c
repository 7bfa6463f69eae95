#include "media/playlist.h"

#include <inttypes.h>

static uint32_t short_side(const struct media_rendition *r)
{
    return r->width < r->height ? r->width : r->height;
}

static int first_of(const struct media_plan *p, enum media_kind kind)
{
    for (size_t i = 0; i < p->n_renditions; i++)
        if (p->renditions[i].kind == kind)
            return (int)i;
    return -1;
}

static void put_frame_rate(struct buf *b, struct media_rational r)
{
    int64_t milli = media_scale_near(r.num, 1000, r.den);
    buf_printf(b, ",FRAME-RATE=%" PRId64 ".%03" PRId64, milli / 1000, milli % 1000);
}

static void put_video_variant(const struct media_plan *p, size_t i, int audio, struct buf *b)
{
    const struct media_rendition *r = &p->renditions[i];
    const struct media_rendition *a = audio < 0 ? NULL : &p->renditions[audio];
    uint64_t peak = (uint64_t)r->bandwidth_bps + (a ? a->bandwidth_bps : 0);
    uint64_t mean = (uint64_t)r->bitrate_bps + (a ? a->bitrate_bps : 0);
    buf_printf(b,
               "#EXT-X-STREAM-INF:BANDWIDTH=%" PRIu64 ",AVERAGE-BANDWIDTH=%" PRIu64 ",CODECS=\"%s",
               peak, mean, r->codecs);
    if (a)
        buf_printf(b, ",%s", a->codecs);
    buf_printf(b, "\",RESOLUTION=%ux%u", r->width, r->height);
    put_frame_rate(b, r->frame_rate);
    if (a)
        buf_puts(b, ",AUDIO=\"audio\"");
    buf_printf(b, "\n%s.m3u8\n", r->id);
}

bool media_language_is_plain(const char *language)
{
    bool plain = *language != '\0';
    for (const char *c = language; *c; c++)
        plain &= (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || *c == '-';
    return plain;
}

static void put_audio_group(const struct media_plan *p, int audio, struct buf *b)
{
    const struct media_track *t = media_plan_track(p, MEDIA_TRACK_AUDIO);
    buf_puts(b,
             "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"main\",DEFAULT=YES,AUTOSELECT=YES");
    if (t && media_language_is_plain(t->language))
        buf_printf(b, ",LANGUAGE=\"%s\"", t->language);
    buf_printf(b, ",CHANNELS=\"2\",URI=\"%s.m3u8\"\n", p->renditions[audio].id);
}

static void put_audio_variants(const struct media_plan *p, struct buf *b)
{
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        if (r->kind != MEDIA_AUDIO)
            continue;
        buf_printf(b,
                   "#EXT-X-STREAM-INF:BANDWIDTH=%u,AVERAGE-BANDWIDTH=%u,CODECS=\"%s\"\n%s.m3u8\n",
                   r->bandwidth_bps, r->bitrate_bps, r->codecs, r->id);
    }
}

bool media_playlist_has(const struct media_plan *p, size_t rendition, uint32_t max_height,
                        int64_t max_bitrate_bps)
{
    const struct media_rendition *r = &p->renditions[rendition];
    int audio = first_of(p, MEDIA_AUDIO);
    bool is_lowest = rendition + 1 == p->n_renditions || r[1].kind != MEDIA_VIDEO;
    if (r->kind != MEDIA_VIDEO || is_lowest)
        return true;
    int64_t peak = (int64_t)r->bandwidth_bps + (audio < 0 ? 0 : p->renditions[audio].bandwidth_bps);
    return (!max_height || short_side(r) <= max_height) &&
           (!max_bitrate_bps || peak <= max_bitrate_bps);
}

static enum status finish(const struct buf *b, struct err *err)
{
    if (b->failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "playlist: buffer is full");
    return STATUS_OK;
}

enum status media_playlist_master(const struct media_plan *p, uint32_t max_height,
                                  int64_t max_bitrate_bps, struct buf *b, struct err *err)
{
    int audio = first_of(p, MEDIA_AUDIO), video = first_of(p, MEDIA_VIDEO);
    buf_puts(b, "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n");
    if (video < 0) {
        put_audio_variants(p, b);
        return finish(b, err);
    }
    if (audio >= 0)
        put_audio_group(p, audio, b);
    for (size_t i = 0; i < p->n_renditions; i++) {
        if (p->renditions[i].kind == MEDIA_VIDEO &&
            media_playlist_has(p, i, max_height, max_bitrate_bps))
            put_video_variant(p, i, audio, b);
    }
    return finish(b, err);
}

// What the boxes of a segment last: audio ends with whole packets.
static int64_t boxes_duration(const struct media_plan *p, size_t rendition, size_t segment)
{
    const struct media_rendition *r = &p->renditions[rendition];
    const struct media_grid *g = media_rendition_grid(p, rendition);
    if (r->kind == MEDIA_VIDEO)
        return g->segments[segment].duration;
    return (int64_t)media_rendition_samples(p, rendition, segment) * r->frame_samples;
}

enum status media_playlist_rendition(const struct media_plan *p, size_t rendition, struct buf *b,
                                     struct err *err)
{
    const struct media_grid *g = media_rendition_grid(p, rendition);
    if (!g)
        return err_set(err, STATUS_NOT_FOUND, "playlist: no such rendition");
    const char *id = p->renditions[rendition].id;
    int64_t longest = 0;
    for (size_t i = 0; i < g->n_segments; i++) {
        int64_t d = boxes_duration(p, rendition, i);
        if (d > longest)
            longest = d;
    }
    buf_printf(b,
               "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:%" PRId64
               "\n#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:VOD\n"
               "#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI=\"%s/init.mp4\"\n",
               media_scale_ceil(longest, 1, g->timescale), id);
    // Each EXTINF is the difference of rounded ends, so that rounding never adds up.
    int64_t end = 0, end_us = 0;
    for (size_t i = 0; i < g->n_segments; i++) {
        end += boxes_duration(p, rendition, i);
        int64_t us = media_ticks_to_us(end, g->timescale), d = us - end_us;
        end_us = us;
        buf_printf(b, "#EXTINF:%" PRId64 ".%06" PRId64 ",\n%s/%zu.m4s\n", d / 1000000, d % 1000000,
                   id, i);
    }
    buf_puts(b, "#EXT-X-ENDLIST\n");
    return finish(b, err);
}
