#include "media/dash.h"

#include <inttypes.h>

#include "media/playlist.h"

static void put_seconds(struct buf *b, const char *name, int64_t us)
{
    buf_printf(b, " %s=\"PT%" PRId64 ".%06" PRId64 "S\"", name, us / 1000000, us % 1000000);
}

static void put_frame_rate(struct buf *b, struct media_rational r)
{
    if (r.num <= 0)
        return;
    buf_printf(b, " frameRate=\"%d", (int)r.num);
    if (r.den != 1)
        buf_printf(b, "/%d", (int)r.den);
    buf_puts(b, "\"");
}

// Runs of equal durations are one line.
static void put_timeline(const struct media_grid *g, struct buf *b)
{
    buf_printf(b,
               "      <SegmentTemplate timescale=\"%u\" startNumber=\"0\""
               " initialization=\"$RepresentationID$/init.mp4\""
               " media=\"$RepresentationID$/$Number$.m4s\">\n"
               "        <SegmentTimeline>\n",
               g->timescale);
    for (size_t i = 0; i < g->n_segments;) {
        size_t n = 1;
        while (i + n < g->n_segments && g->segments[i + n].duration == g->segments[i].duration)
            n++;
        buf_puts(b, "          <S");
        if (i == 0)
            buf_printf(b, " t=\"%" PRId64 "\"", g->segments[0].start);
        buf_printf(b, " d=\"%" PRId64 "\"", g->segments[i].duration);
        if (n > 1)
            buf_printf(b, " r=\"%zu\"", n - 1);
        buf_puts(b, "/>\n");
        i += n;
    }
    buf_puts(b, "        </SegmentTimeline>\n      </SegmentTemplate>\n");
}

static void begin_set(struct buf *b, const char *type)
{
    buf_printf(b,
               "    <AdaptationSet contentType=\"%s\" mimeType=\"%s/mp4\" segmentAlignment=\"true\""
               " startWithSAP=\"1\"",
               type, type);
}

static void put_video(const struct media_plan *p, uint32_t max_height, int64_t max_bitrate_bps,
                      struct buf *b)
{
    begin_set(b, "video");
    buf_puts(b, ">\n");
    put_timeline(&p->video, b);
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        if (r->kind != MEDIA_VIDEO || !media_playlist_has(p, i, max_height, max_bitrate_bps))
            continue;
        buf_printf(b,
                   "      <Representation id=\"%s\" codecs=\"%s\" bandwidth=\"%u\" width=\"%u\""
                   " height=\"%u\"",
                   r->id, r->codecs, r->bandwidth_bps, r->width, r->height);
        put_frame_rate(b, r->frame_rate);
        buf_puts(b, " sar=\"1:1\"/>\n");
    }
    buf_puts(b, "    </AdaptationSet>\n");
}

// One set for each codec: players switch inside a set, and not from one decoder to another.
static void put_audio(const struct media_plan *p, enum media_codec codec, struct buf *b)
{
    const struct media_track *t = media_plan_track(p, MEDIA_TRACK_AUDIO);
    begin_set(b, "audio");
    if (t && media_language_is_plain(t->language))
        buf_printf(b, " lang=\"%s\"", t->language);
    buf_puts(b, ">\n");
    put_timeline(&p->audio, b);
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        if (r->kind != MEDIA_AUDIO || r->codec != codec)
            continue;
        buf_printf(b,
                   "      <Representation id=\"%s\" codecs=\"%s\" bandwidth=\"%u\""
                   " audioSamplingRate=\"%d\">\n"
                   "        <AudioChannelConfiguration"
                   " schemeIdUri=\"urn:mpeg:dash:23003:3:audio_channel_configuration:2011\""
                   " value=\"2\"/>\n"
                   "      </Representation>\n",
                   r->id, r->codecs, r->bandwidth_bps, MEDIA_AUDIO_RATE);
    }
    buf_puts(b, "    </AdaptationSet>\n");
}

static bool has_codec(const struct media_plan *p, enum media_kind kind, enum media_codec codec)
{
    for (size_t i = 0; i < p->n_renditions; i++) {
        if (p->renditions[i].kind == kind && p->renditions[i].codec == codec)
            return true;
    }
    return false;
}

static int64_t longest_us(const struct media_grid *g)
{
    int64_t longest = 0;
    for (size_t i = 0; i < g->n_segments; i++) {
        if (g->segments[i].duration > longest)
            longest = g->segments[i].duration;
    }
    return g->n_segments ? media_ticks_to_us(longest, g->timescale) : 0;
}

enum status media_dash_manifest(const struct media_plan *p, uint32_t max_height,
                                int64_t max_bitrate_bps, struct buf *b, struct err *err)
{
    int64_t video_us = longest_us(&p->video), audio_us = longest_us(&p->audio);
    buf_puts(b, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                "<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\""
                " profiles=\"urn:mpeg:dash:profile:isoff-live:2011\" type=\"static\"");
    put_seconds(b, "mediaPresentationDuration", media_plan_duration_us(p));
    put_seconds(b, "maxSegmentDuration", video_us > audio_us ? video_us : audio_us);
    buf_puts(b, " minBufferTime=\"PT2S\">\n  <Period id=\"0\" start=\"PT0S\">\n");
    if (p->video.n_segments)
        put_video(p, max_height, max_bitrate_bps, b);
    for (int codec = MEDIA_CODEC_NONE + 1; codec < MEDIA_N_CODECS; codec++) {
        if (has_codec(p, MEDIA_AUDIO, (enum media_codec)codec))
            put_audio(p, (enum media_codec)codec, b);
    }
    buf_puts(b, "  </Period>\n</MPD>\n");
    if (b->failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "manifest: buffer is full");
    return STATUS_OK;
}
