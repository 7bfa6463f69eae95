#include "media/offer.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

#define BIT(codec) (1U << (codec))
#define VIDEO_CODECS                                                                               \
    (BIT(MEDIA_CODEC_H264) | BIT(MEDIA_CODEC_HEVC) | BIT(MEDIA_CODEC_AV1) | BIT(MEDIA_CODEC_VP9))
#define AUDIO_CODECS (BIT(MEDIA_CODEC_AAC) | BIT(MEDIA_CODEC_OPUS) | BIT(MEDIA_CODEC_FLAC))

// ---------------------------------------------------------------- names

static const struct {
    const char *word;
    size_t offset; // of a bool
} flags[] = {
    {"copy", offsetof(struct media_offer, copies)},
    {"acopy", offsetof(struct media_offer, sound_copies)},
    {"surround", offsetof(struct media_offer, surround)},
    {"even", offsetof(struct media_offer, normalised)},
    {"rates", offsetof(struct media_offer, rates)},
};

static bool *flag_of(struct media_offer *o, size_t i)
{
    return (bool *)((char *)o + flags[i].offset);
}

static void put_word(char *dst, const char *word)
{
    size_t n = strlen(dst);
    snprintf(dst + n, MEDIA_OFFER_SIZE - n, "%s%s", n ? "-" : "", word);
}

static void put_number(char *dst, char letter, uint32_t v)
{
    char word[16];
    snprintf(word, sizeof(word), "%c%" PRIu32, letter, v);
    if (v)
        put_word(dst, word);
}

void media_offer_name(const struct media_offer *o, char *dst)
{
    struct media_offer copy = *o;
    dst[0] = '\0';
    for (int c = MEDIA_CODEC_NONE + 1; c < MEDIA_N_CODECS; c++)
        if (o->codecs & BIT(c))
            put_word(dst, media_codec_name((enum media_codec)c));
    for (size_t i = 0; i < N_ELEMENTS(flags); i++)
        if (*flag_of(&copy, i))
            put_word(dst, flags[i].word);
    put_number(dst, 'p', o->max_height);
    put_number(dst, 'k', o->max_kbps);
    put_number(dst, 't', o->default_track);
    put_number(dst, 's', o->burn);
}

static bool take_number(const char *word, char letter, uint32_t max, uint32_t *ret)
{
    int64_t v;
    if (word[0] != letter || str_parse_i64(word + 1, 1, max, &v, NULL) != STATUS_OK)
        return false;
    *ret = (uint32_t)v;
    return true;
}

static bool take_word(const char *word, struct media_offer *o)
{
    uint32_t track;
    for (int c = MEDIA_CODEC_NONE + 1; c < MEDIA_N_CODECS; c++)
        if (str_eq(word, media_codec_name((enum media_codec)c))) {
            o->codecs |= BIT(c);
            return true;
        }
    for (size_t i = 0; i < N_ELEMENTS(flags); i++)
        if (str_eq(word, flags[i].word))
            return *flag_of(o, i) = true;
    if (take_number(word, 't', MEDIA_MAX_TRACKS, &track)) {
        o->default_track = (uint8_t)track;
        return true;
    }
    if (take_number(word, 's', MEDIA_MAX_TRACKS, &track)) {
        o->burn = (uint8_t)track;
        return true;
    }
    return take_number(word, 'p', MEDIA_MAX_SIDE_PX, &o->max_height) ||
           take_number(word, 'k', UINT32_MAX, &o->max_kbps);
}

enum status media_offer_parse(const char *name, struct media_offer *ret, struct err *err)
{
    struct media_offer o = {0};
    char word[16], again[MEDIA_OFFER_SIZE];
    for (const char *at = name; *at;) {
        size_t n = strcspn(at, "-");
        if (n == 0 || n >= sizeof(word))
            break;
        memcpy(word, at, n);
        word[n] = '\0';
        if (!take_word(word, &o))
            break;
        at += n;
        at += *at == '-';
    }
    // One name for one offer: caches hold each once, and nothing else gets through.
    media_offer_name(&o, again);
    if (!str_eq(name, again))
        return err_set(err, STATUS_INVALID_ARGUMENT, "no such choice of renditions");
    *ret = o;
    return STATUS_OK;
}

// ---------------------------------------------------------------- the list

void media_rendition_family(const struct media_rendition *r, char *dst)
{
    memcpy(dst, r->id, sizeof(r->id));
    char *dash = strrchr(dst, '-');
    if (r->kind == MEDIA_AUDIO && dash && dash[1] &&
        strspn(dash + 1, "0123456789") == strlen(dash + 1))
        *dash = '\0';
}

static bool any_rendition(const struct media_plan *p,
                          bool (*is)(const struct media_rendition *, const struct media_offer *),
                          const struct media_offer *o)
{
    for (size_t i = 0; i < p->n_renditions; i++)
        if (is(&p->renditions[i], o))
            return true;
    return false;
}

static bool is_burnt(const struct media_rendition *r, const struct media_offer *o)
{
    return r->kind == MEDIA_VIDEO && r->burn && r->burn == o->burn;
}

static bool is_normalised(const struct media_rendition *r, const struct media_offer *o)
{
    (void)o;
    return r->kind == MEDIA_AUDIO && r->normalised;
}

static bool video_is_of_kind(const struct media_plan *p, const struct media_offer *o,
                             const struct media_rendition *r)
{
    uint32_t codecs = o->codecs & VIDEO_CODECS ? o->codecs & VIDEO_CODECS : BIT(MEDIA_CODEC_H264);
    uint8_t burn = any_rendition(p, is_burnt, o) ? o->burn : 0;
    if (r->burn != burn)
        return false;
    if (r->copy)
        return o->copies && !burn;
    return (codecs & BIT(r->codec)) || burn;
}

static uint32_t min_side(const struct media_rendition *r)
{
    return r->width < r->height ? r->width : r->height;
}

static uint32_t sound_bps(const struct media_plan *p)
{
    for (size_t i = 0; i < p->n_renditions; i++)
        if (p->renditions[i].kind == MEDIA_AUDIO)
            return p->renditions[i].bandwidth_bps;
    return 0;
}

static bool video_keeps_to(const struct media_plan *p, const struct media_offer *o,
                           const struct media_rendition *r)
{
    uint64_t peak = (uint64_t)r->bandwidth_bps + sound_bps(p);
    return (!o->max_height || min_side(r) <= o->max_height) &&
           (!o->max_kbps || peak <= (uint64_t)o->max_kbps * 1000);
}

static bool has_video(const struct media_plan *p, const struct media_offer *o, size_t rendition)
{
    const struct media_rendition *r = &p->renditions[rendition];
    if (!video_is_of_kind(p, o, r))
        return false;
    if (video_keeps_to(p, o, r))
        return true;
    // The lowest stays when none keeps to the limits.
    size_t lowest = rendition;
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *other = &p->renditions[i];
        if (other->kind != MEDIA_VIDEO || !video_is_of_kind(p, o, other))
            continue;
        if (video_keeps_to(p, o, other))
            return false;
        if (other->bandwidth_bps < p->renditions[lowest].bandwidth_bps)
            lowest = i;
    }
    return lowest == rendition;
}

static bool has_audio(const struct media_plan *p, const struct media_offer *o,
                      const struct media_rendition *r)
{
    char family[sizeof(r->id)];
    bool alone = p->video.n_segments == 0;
    uint32_t codecs = o->codecs & AUDIO_CODECS;
    if (r->copy)
        return o->sound_copies;
    if (r->normalised != (o->normalised && any_rendition(p, is_normalised, o)))
        return false;
    if (codecs ? !(codecs & BIT(r->codec)) : !alone && r->codec != MEDIA_CODEC_AAC)
        return false;
    if (r->channels > 2)
        return o->surround;
    // Rates that are made on request, as their default track's tells, are listed on request.
    media_rendition_family(r, family);
    int leader = media_plan_find(p, family);
    bool lazy = leader < 0 ? r->lazy : p->renditions[leader].lazy;
    return !lazy || o->rates || r->normalised || (codecs & ~BIT(MEDIA_CODEC_AAC) & BIT(r->codec));
}

bool media_offer_has(const struct media_plan *p, const struct media_offer *o, size_t rendition)
{
    const struct media_rendition *r = &p->renditions[rendition];
    return r->kind == MEDIA_VIDEO ? has_video(p, o, rendition) : has_audio(p, o, r);
}

// ---------------------------------------------------------------- what was decided

static uint32_t codec_bit(const struct media_plan *p, int rendition)
{
    return rendition < 0 || p->renditions[rendition].copy ? 0 : BIT(p->renditions[rendition].codec);
}

// Pictures that the player does not take, of those that are made?
static bool has_too_much(const struct media_plan *p, const struct media_profile *profile,
                         const struct media_offer *o)
{
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        if (r->kind == MEDIA_VIDEO && !r->copy && has_video(p, o, i) &&
            !media_picture_fits(profile, r))
            return true;
    }
    return false;
}

void media_offer_for(const struct media_plan *p, const struct media_profile *profile,
                     const struct media_limits *limits, const struct media_decision *d,
                     struct media_offer *ret)
{
    const struct media_track *usual = media_plan_track(p, MEDIA_TRACK_AUDIO);
    int video = d->video_rendition, audio = d->audio_rendition;
    *ret = (struct media_offer){.max_height = limits->max_height};
    if (limits->max_height > MEDIA_MAX_SIDE_PX)
        ret->max_height = 0; // as good as none
    ret->codecs = codec_bit(p, video) | codec_bit(p, audio);
    // What everybody can play needs no name.
    ret->codecs &= ~(BIT(MEDIA_CODEC_H264) | BIT(MEDIA_CODEC_AAC));
    int64_t limit = limits->max_bitrate_bps, network = limits->network_bps / 5 * 4;
    if (!limit || (network && network < limit))
        limit = network;
    if (limit > 0 && limit < 1000)
        limit = 1000; // 0 would be none
    ret->max_kbps = (uint32_t)(limit / 1000 < UINT32_MAX ? limit / 1000 : 0);
    ret->copies = video >= 0 && p->renditions[video].copy;
    ret->sound_copies = audio >= 0 && p->renditions[audio].copy;
    ret->surround = profile->surround && audio >= 0 && p->renditions[audio].channels > 2;
    ret->normalised = audio >= 0 && p->renditions[audio].normalised;
    if (d->subtitle == MEDIA_SUBTITLE_BURNT)
        ret->burn = (uint8_t)(d->subtitle_track + 1);
    if (d->audio_track != MEDIA_NO_TRACK && &p->source.tracks[d->audio_track] != usual)
        ret->default_track = (uint8_t)(d->audio_track + 1);
    if (video >= 0 && !p->renditions[video].copy && has_too_much(p, profile, ret))
        ret->max_height = min_side(&p->renditions[video]);
}
