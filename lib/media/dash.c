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

static void begin_set(struct buf *b, size_t id, const char *type)
{
    buf_printf(b,
               "    <AdaptationSet id=\"%zu\" contentType=\"%s\" mimeType=\"%s/mp4\""
               " segmentAlignment=\"true\" startWithSAP=\"1\"",
               id, type, type);
}

static uint32_t peak_of(const struct media_plan *p, const struct media_rate *rates, size_t i)
{
    return rates && rates[i].peak_bps ? rates[i].peak_bps : p->renditions[i].bandwidth_bps;
}

// Renditions that players may switch between inside a set: of one codec, one track, one way made.
static bool is_alike(const struct media_rendition *a, const struct media_rendition *b)
{
    return a->kind == b->kind && a->codec == b->codec && a->track == b->track &&
           a->copy == b->copy && a->channels == b->channels;
}

static bool begins_set(const struct media_plan *p, const struct media_offer *o, size_t rendition)
{
    if (!media_offer_has(p, o, rendition))
        return false;
    for (size_t i = 0; i < rendition; i++)
        if (is_alike(&p->renditions[i], &p->renditions[rendition]) && media_offer_has(p, o, i))
            return false;
    return true;
}

static void put_video(const struct media_plan *p, size_t i, uint32_t bandwidth, struct buf *b)
{
    const struct media_rendition *r = &p->renditions[i];
    buf_printf(b,
               "      <Representation id=\"%s\" codecs=\"%s\" bandwidth=\"%u\" width=\"%u\""
               " height=\"%u\"",
               r->id, r->codecs, bandwidth, r->width, r->height);
    put_frame_rate(b, r->frame_rate);
    buf_puts(b, " sar=\"1:1\"/>\n");
}

static void put_audio(const struct media_plan *p, size_t i, uint32_t bandwidth, struct buf *b)
{
    const struct media_rendition *r = &p->renditions[i];
    buf_printf(b,
               "      <Representation id=\"%s\" codecs=\"%s\" bandwidth=\"%u\""
               " audioSamplingRate=\"%d\">\n"
               "        <AudioChannelConfiguration"
               " schemeIdUri=\"urn:mpeg:dash:23003:3:audio_channel_configuration:2011\""
               " value=\"%u\"/>\n"
               "      </Representation>\n",
               r->id, r->codecs, bandwidth, MEDIA_AUDIO_RATE, (unsigned)r->channels);
}

static void put_role(struct buf *b, const char *role)
{
    buf_printf(b, "      <Role schemeIdUri=\"urn:mpeg:dash:role:2011\" value=\"%s\"/>\n", role);
}

static void put_audio_facts(const struct media_plan *p, const struct media_offer *o, size_t track,
                            struct buf *b)
{
    const struct media_track *t = &p->source.tracks[track];
    const struct media_track *usual = media_plan_track(p, MEDIA_TRACK_AUDIO);
    char label[96];
    bool is_main = o->default_track ? o->default_track == track + 1 : t == usual;
    media_track_label(p, track, label, sizeof(label));
    buf_printf(b, "      <Label>%s</Label>\n", label);
    put_role(b, is_main ? "main" : t->is_commentary ? "commentary" : "alternate");
}

// Players do not switch from one decoder to another, nor from one language to another.
static void put_set(const struct media_plan *p, const struct media_offer *o,
                    const struct media_rate *rates, size_t first, struct buf *b)
{
    const struct media_rendition *r = &p->renditions[first];
    const struct media_track *t = &p->source.tracks[r->track];
    bool video = r->kind == MEDIA_VIDEO;
    begin_set(b, first, video ? "video" : "audio");
    if (!video && media_language_is_plain(t->language))
        buf_printf(b, " lang=\"%s\"", t->language);
    buf_puts(b, ">\n");
    if (!video)
        put_audio_facts(p, o, r->track, b);
    put_timeline(media_rendition_grid(p, first), b);
    for (size_t i = first; i < p->n_renditions; i++) {
        if (!is_alike(&p->renditions[i], r) || !media_offer_has(p, o, i))
            continue;
        if (video)
            put_video(p, i, peak_of(p, rates, i), b);
        else
            put_audio(p, i, peak_of(p, rates, i), b);
    }
    buf_puts(b, "    </AdaptationSet>\n");
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

enum status media_dash_manifest(const struct media_plan *p, const struct media_offer *offer,
                                const struct media_rate *rates, struct buf *b, struct err *err)
{
    int64_t longest = 0;
    for (size_t i = 0; i < p->n_renditions; i++) {
        int64_t us = begins_set(p, offer, i) ? longest_us(media_rendition_grid(p, i)) : 0;
        longest = us > longest ? us : longest;
    }
    buf_puts(b, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                "<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\""
                " profiles=\"urn:mpeg:dash:profile:isoff-live:2011\" type=\"static\"");
    put_seconds(b, "mediaPresentationDuration", media_plan_duration_us(p));
    put_seconds(b, "maxSegmentDuration", longest);
    buf_puts(b, " minBufferTime=\"PT2S\">\n  <Period id=\"0\" start=\"PT0S\">\n");
    for (size_t i = 0; i < p->n_renditions; i++)
        if (begins_set(p, offer, i))
            put_set(p, offer, rates, i, b);
    buf_puts(b, "  </Period>\n</MPD>\n");
    if (b->failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "manifest: buffer is full");
    return STATUS_OK;
}
