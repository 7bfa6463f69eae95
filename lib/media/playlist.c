#include "media/playlist.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

#define KEYS_SUFFIX "-keys"

static void put_frame_rate(struct buf *b, struct media_rational r)
{
    int64_t milli = media_scale_near(r.num, 1000, r.den);
    buf_printf(b, ",FRAME-RATE=%" PRId64 ".%03" PRId64, milli / 1000, milli % 1000);
}

bool media_language_is_plain(const char *language)
{
    bool plain = *language != '\0';
    for (const char *c = language; *c; c++)
        plain &= (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || *c == '-';
    return plain;
}

// ---------------------------------------------------------------- rates

struct media_rate media_rate_of(const struct media_plan *p, size_t rendition, const int64_t *sizes)
{
    const struct media_grid *g = media_rendition_grid(p, rendition);
    struct media_rate rate = {0};
    int64_t longest = 0, bytes = 0;
    for (size_t i = 0; g && i < g->n_segments; i++) {
        longest = g->segments[i].duration > longest ? g->segments[i].duration : longest;
        bytes += sizes[i];
    }
    if (bytes <= 0)
        return rate;
    int64_t target = media_scale_ceil(longest, 1, g->timescale) * g->timescale;
    double peak = 0, mean = 8.0 * (double)bytes * g->timescale / (double)g->duration;
    for (size_t i = 0; i < g->n_segments; i++) {
        int64_t run = 0, ticks = 0;
        for (size_t k = i; k < g->n_segments && 2 * ticks <= 3 * target; k++) {
            run += sizes[k];
            ticks += g->segments[k].duration;
            double bps = 8.0 * (double)run * g->timescale / (double)ticks;
            if (2 * ticks >= target && 2 * ticks <= 3 * target && bps > peak)
                peak = bps;
        }
    }
    peak = peak > mean ? peak : mean; // all of it is shorter than half a target duration
    rate.peak_bps = peak < UINT32_MAX ? (uint32_t)peak : UINT32_MAX;
    rate.mean_bps = mean < UINT32_MAX ? (uint32_t)mean : UINT32_MAX;
    return rate;
}

// Measured, or else as planned.
static struct media_rate rate_at(const struct media_plan *p, const struct media_rate *rates,
                                 size_t rendition)
{
    const struct media_rendition *r = &p->renditions[rendition];
    if (rates && rates[rendition].peak_bps)
        return rates[rendition];
    return (struct media_rate){r->bandwidth_bps, r->bitrate_bps};
}

// ---------------------------------------------------------------- sound

static void raw_label(const struct media_plan *p, size_t track, char *dst, size_t size)
{
    const struct media_track *t = &p->source.tracks[track];
    const char *from = *t->title ? t->title : *t->language ? t->language : "";
    size_t n = 0;
    for (; *from && n + 1 < size; from++)
        if ((unsigned char)*from >= 0x20 && *from != 0x7f && !strchr("\"<>&'", *from))
            dst[n++] = *from;
    while (n && ((unsigned char)dst[n - 1] & 0xc0) == 0x80 && *from) // half a character
        n--;
    if (n && *from && ((unsigned char)dst[n - 1] & 0xc0) == 0xc0)
        n--;
    dst[n] = '\0';
    if (n == 0)
        snprintf(dst, size, "Track %u", (unsigned)t->index);
}

void media_track_label(const struct media_plan *p, size_t track, char *dst, size_t size)
{
    char other[80];
    raw_label(p, track, dst, size);
    for (size_t i = 0; i < p->source.n_tracks; i++) {
        if (i == track || p->source.tracks[i].type != p->source.tracks[track].type)
            continue;
        raw_label(p, i, other, sizeof(other));
        if (str_eq(other, dst)) {
            size_t n = strlen(dst);
            snprintf(dst + n, size - n, " (%u)", (unsigned)p->source.tracks[track].index);
            return;
        }
    }
}

static bool is_offered(const struct media_plan *p, const struct media_offer *o, size_t i,
                       enum media_kind kind)
{
    return p->renditions[i].kind == kind && media_offer_has(p, o, i);
}

// Is it the first of its family that is offered? That one stands for the group.
static bool begins_group(const struct media_plan *p, const struct media_offer *o, size_t rendition)
{
    char family[16], other[16];
    if (!is_offered(p, o, rendition, MEDIA_AUDIO))
        return false;
    media_rendition_family(&p->renditions[rendition], family);
    for (size_t i = 0; i < rendition; i++) {
        media_rendition_family(&p->renditions[i], other);
        if (is_offered(p, o, i, MEDIA_AUDIO) && str_eq(family, other))
            return false;
    }
    return true;
}

static size_t default_track(const struct media_plan *p, const struct media_offer *o)
{
    const struct media_track *usual = media_plan_track(p, MEDIA_TRACK_AUDIO);
    if (o->default_track && o->default_track <= p->source.n_tracks)
        return o->default_track - 1U;
    return usual ? (size_t)(usual - p->source.tracks) : 0;
}

static void put_audio(const struct media_plan *p, const struct media_offer *o, size_t i,
                      const char *group, struct buf *b)
{
    const struct media_rendition *r = &p->renditions[i];
    const struct media_track *t = &p->source.tracks[r->track];
    char label[96];
    media_track_label(p, r->track, label, sizeof(label));
    bool is_default = r->track == default_track(p, o);
    buf_printf(b, "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"%s\",NAME=\"%s\",DEFAULT=%s,AUTOSELECT=%s",
               group, label, is_default ? "YES" : "NO",
               t->is_commentary && !is_default ? "NO" : "YES"); // the default has to be YES
    if (media_language_is_plain(t->language))
        buf_printf(b, ",LANGUAGE=\"%s\"", t->language);
    buf_printf(b, ",CHANNELS=\"%u\",URI=\"%s.m3u8\"\n", (unsigned)r->channels, r->id);
}

// A group, and the peak of its members' rates.
static void put_group(const struct media_plan *p, const struct media_offer *o, size_t first,
                      struct buf *b)
{
    char family[16], other[16];
    media_rendition_family(&p->renditions[first], family);
    for (size_t i = first; i < p->n_renditions; i++) {
        media_rendition_family(&p->renditions[i], other);
        if (is_offered(p, o, i, MEDIA_AUDIO) && str_eq(family, other))
            put_audio(p, o, i, family, b);
    }
}

static struct media_rate group_rate(const struct media_plan *p, const struct media_offer *o,
                                    const struct media_rate *rates, size_t first)
{
    char family[16], other[16];
    struct media_rate most = {0};
    media_rendition_family(&p->renditions[first], family);
    for (size_t i = first; i < p->n_renditions; i++) {
        media_rendition_family(&p->renditions[i], other);
        if (!is_offered(p, o, i, MEDIA_AUDIO) || !str_eq(family, other))
            continue;
        struct media_rate r = rate_at(p, rates, i);
        most.peak_bps = r.peak_bps > most.peak_bps ? r.peak_bps : most.peak_bps;
        most.mean_bps = r.mean_bps > most.mean_bps ? r.mean_bps : most.mean_bps;
    }
    return most;
}

// ---------------------------------------------------------------- master

static enum status finish(const struct buf *b, struct err *err)
{
    if (b->failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "playlist: buffer is full");
    return STATUS_OK;
}

// ITU-T H.273: PQ and HLG.
static const char *video_range(const struct media_rendition *r)
{
    return r->color[1] == 16 ? "PQ" : r->color[1] == 18 ? "HLG" : "SDR";
}

// group: the rendition that stands for the group of sound; -1: silent.
static void put_variant(const struct media_plan *p, const struct media_offer *o,
                        const struct media_rate *rates, size_t i, int group, struct buf *b)
{
    const struct media_rendition *r = &p->renditions[i];
    struct media_rate v = rate_at(p, rates, i);
    struct media_rate a =
        group < 0 ? (struct media_rate){0} : group_rate(p, o, rates, (size_t)group);
    buf_printf(b,
               "#EXT-X-STREAM-INF:BANDWIDTH=%" PRIu64 ",AVERAGE-BANDWIDTH=%" PRIu64 ",CODECS=\"%s",
               (uint64_t)v.peak_bps + a.peak_bps, (uint64_t)v.mean_bps + a.mean_bps, r->codecs);
    if (group >= 0)
        buf_printf(b, ",%s", p->renditions[group].codecs);
    buf_printf(b, "\",RESOLUTION=%ux%u", r->width, r->height);
    put_frame_rate(b, r->frame_rate);
    if (strcmp(video_range(r), "SDR") != 0)
        buf_printf(b, ",VIDEO-RANGE=%s", video_range(r));
    if (group >= 0) {
        char family[16];
        media_rendition_family(&p->renditions[group], family);
        buf_printf(b, ",AUDIO=\"%s\"", family);
    }
    buf_printf(b, "\n%s.m3u8\n", r->id);
}

// The encoder's buffer holds one second at the peak rate, so no picture is larger than that.
static void put_keys_variant(const struct media_plan *p, size_t i, struct buf *b)
{
    const struct media_rendition *r = &p->renditions[i];
    const struct media_grid *g = &p->video;
    int64_t shortest = g->duration;
    for (size_t k = 0; k + 1 < g->n_segments; k++)
        if (g->segments[k].duration < shortest)
            shortest = g->segments[k].duration;
    uint64_t bps = (uint64_t)media_scale_ceil(r->maxrate_bps, g->timescale, shortest);
    buf_printf(b,
               "#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=%" PRIu64
               ",CODECS=\"%s\",RESOLUTION=%ux%u,URI=\"%s" KEYS_SUFFIX ".m3u8\"\n",
               bps, r->codecs, r->width, r->height, r->id);
}

// in_groups: they are variants of a film, and their groups hold the other tracks.
static void put_audio_variants(const struct media_plan *p, const struct media_offer *o,
                               const struct media_rate *rates, bool in_groups, struct buf *b)
{
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        char family[16];
        if (!is_offered(p, o, i, MEDIA_AUDIO) || r->track != default_track(p, o))
            continue;
        struct media_rate rate = rate_at(p, rates, i);
        media_rendition_family(r, family);
        buf_printf(b, "#EXT-X-STREAM-INF:BANDWIDTH=%u,AVERAGE-BANDWIDTH=%u,CODECS=\"%s\"",
                   rate.peak_bps, rate.mean_bps, r->codecs);
        if (in_groups)
            buf_printf(b, ",AUDIO=\"%s\"", family);
        buf_printf(b, "\n%s.m3u8\n", r->id);
    }
}

// The source's own first: players begin with the first variant.
static void put_pictures(const struct media_plan *p, const struct media_offer *o,
                         const struct media_rate *rates, int group, struct buf *b)
{
    for (int copy = 1; copy >= 0; copy--)
        for (size_t i = 0; i < p->n_renditions; i++)
            if (is_offered(p, o, i, MEDIA_VIDEO) && p->renditions[i].copy == (copy == 1))
                put_variant(p, o, rates, i, group, b);
}

static void put_video_variants(const struct media_plan *p, const struct media_offer *o,
                               const struct media_rate *rates, struct buf *b)
{
    bool silent = true;
    for (size_t a = 0; a < p->n_renditions; a++) {
        if (!begins_group(p, o, a))
            continue;
        silent = false;
        put_pictures(p, o, rates, (int)a, b);
    }
    if (o->rates) // the film's sound alone, for lines too slow for any picture
        put_audio_variants(p, o, rates, true, b);
    if (silent)
        put_pictures(p, o, rates, -1, b);
    // What would have to be made first is no help in seeking.
    for (size_t i = 0; i < p->n_renditions; i++)
        if (is_offered(p, o, i, MEDIA_VIDEO) && !p->renditions[i].lazy)
            put_keys_variant(p, i, b);
}

enum status media_playlist_master(const struct media_plan *p, const struct media_offer *offer,
                                  const struct media_rate *rates, struct buf *b, struct err *err)
{
    buf_puts(b, "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n");
    if (!p->video.n_segments) {
        put_audio_variants(p, offer, rates, false, b);
        return finish(b, err);
    }
    for (size_t i = 0; i < p->n_renditions; i++)
        if (begins_group(p, offer, i))
            put_group(p, offer, i, b);
    put_video_variants(p, offer, rates, b);
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

// suffix: of the names of segments' folders.
static enum status put_segments(const struct media_plan *p, size_t rendition, const char *suffix,
                                const char *tag, struct buf *b, struct err *err)
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
               "#EXT-X-INDEPENDENT-SEGMENTS\n%s#EXT-X-MAP:URI=\"%s/init.mp4\"\n",
               media_scale_ceil(longest, 1, g->timescale), tag, id);
    // Each EXTINF is the difference of rounded ends, so that rounding never adds up.
    int64_t end = 0, end_us = 0;
    for (size_t i = 0; i < g->n_segments; i++) {
        end += boxes_duration(p, rendition, i);
        int64_t us = media_ticks_to_us(end, g->timescale), d = us - end_us;
        end_us = us;
        buf_printf(b, "#EXTINF:%" PRId64 ".%06" PRId64 ",\n%s%s/%zu.m4s\n", d / 1000000,
                   d % 1000000, id, suffix, i);
    }
    buf_puts(b, "#EXT-X-ENDLIST\n");
    return finish(b, err);
}

enum status media_playlist_rendition(const struct media_plan *p, size_t rendition, struct buf *b,
                                     struct err *err)
{
    return put_segments(p, rendition, "", "", b, err);
}

enum status media_playlist_keys(const struct media_plan *p, size_t rendition, struct buf *b,
                                struct err *err)
{
    if (rendition >= p->n_renditions || p->renditions[rendition].kind != MEDIA_VIDEO)
        return err_set(err, STATUS_NOT_FOUND, "playlist: no such pictures");
    return put_segments(p, rendition, KEYS_SUFFIX, "#EXT-X-I-FRAMES-ONLY\n", b, err);
}

bool media_playlist_keys_of(const char *name, char *dst, size_t size)
{
    size_t n = strlen(name), suffix = strlen(KEYS_SUFFIX);
    if (n <= suffix || !str_ends_with(name, KEYS_SUFFIX) || n - suffix >= size)
        return false;
    memcpy(dst, name, n - suffix);
    dst[n - suffix] = '\0';
    return true;
}
