// How it goes: tracks are chosen first, by wishes. Then everything that speaks against the source
// is noted, each note with what it rules out: the file as it is, its picture's packets, its sound's
// packets. What is left decides the mode.
#include "media/decide.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

// What a note rules out.
enum { FILE_AS_IT_IS = 1U, PICTURE_COPY = 2U, SOUND_COPY = 4U };

struct decider {
    const struct media_plan *plan;
    const struct media_profile *profile;
    const struct media_limits *limits;
    const struct media_wishes *wishes;
    struct media_decision *d;
    unsigned ruled_out;
};

// ---------------------------------------------------------------- names

static const struct {
    enum media_reason reason;
    const char *name;
} reasons[] = {
    {MEDIA_REASON_CONTAINER, "container"},
    {MEDIA_REASON_CONTAINER_INDEX, "container_index"},
    {MEDIA_REASON_CONTAINER_BITRATE, "container_bitrate"},
    {MEDIA_REASON_UNKNOWN_STREAM, "unknown_stream"},
    {MEDIA_REASON_SEVERAL_VIDEO, "several_video"},
    {MEDIA_REASON_EDITS, "edits"},
    {MEDIA_REASON_VIDEO_CODEC, "video_codec"},
    {MEDIA_REASON_VIDEO_PROFILE, "video_profile"},
    {MEDIA_REASON_VIDEO_LEVEL, "video_level"},
    {MEDIA_REASON_VIDEO_BIT_DEPTH, "video_bit_depth"},
    {MEDIA_REASON_VIDEO_RANGE, "video_range"},
    {MEDIA_REASON_VIDEO_SIZE, "video_size"},
    {MEDIA_REASON_VIDEO_FRAME_RATE, "video_frame_rate"},
    {MEDIA_REASON_VIDEO_BITRATE, "video_bitrate"},
    {MEDIA_REASON_VIDEO_REFS, "video_refs"},
    {MEDIA_REASON_VIDEO_INTERLACED, "video_interlaced"},
    {MEDIA_REASON_VIDEO_ANAMORPHIC, "video_anamorphic"},
    {MEDIA_REASON_VIDEO_ROTATION, "video_rotation"},
    {MEDIA_REASON_AUDIO_CODEC, "audio_codec"},
    {MEDIA_REASON_AUDIO_PROFILE, "audio_profile"},
    {MEDIA_REASON_AUDIO_CHANNELS, "audio_channels"},
    {MEDIA_REASON_AUDIO_SAMPLE_RATE, "audio_sample_rate"},
    {MEDIA_REASON_AUDIO_BIT_DEPTH, "audio_bit_depth"},
    {MEDIA_REASON_AUDIO_BITRATE, "audio_bitrate"},
    {MEDIA_REASON_AUDIO_SECONDARY, "audio_secondary"},
    {MEDIA_REASON_SUBTITLE_CODEC, "subtitle_codec"},
    {MEDIA_REASON_SUBTITLE_BURN, "subtitle_burn"},
    {MEDIA_REASON_LIMIT_BITRATE, "limit_bitrate"},
    {MEDIA_REASON_LIMIT_HEIGHT, "limit_height"},
    {MEDIA_REASON_LIMIT_NETWORK, "limit_network"},
    {MEDIA_REASON_ASKED_RENDITIONS, "asked_renditions"},
    {MEDIA_REASON_ASKED_NORMALISED, "asked_normalised"},
    {MEDIA_REASON_NO_COPIES, "no_copies"},
    {MEDIA_REASON_NOT_COPIED, "not_copied"},
    {MEDIA_REASON_PACKAGE_CODEC, "package_codec"},
};

const char *media_reason_name(enum media_reason r)
{
    for (size_t i = 0; i < N_ELEMENTS(reasons); i++)
        if (reasons[i].reason == r)
            return reasons[i].name;
    return "";
}

enum media_reason media_reason_at(size_t i)
{
    return i < N_ELEMENTS(reasons) ? reasons[i].reason : MEDIA_REASON_NONE;
}

const char *media_mode_name(enum media_mode m)
{
    switch (m) {
    case MEDIA_MODE_DIRECT:
        return "direct";
    case MEDIA_MODE_REMUX:
        return "remux";
    case MEDIA_MODE_TRANSCODE:
        return "transcode";
    }
    return "";
}

const char *media_subtitle_way_name(enum media_subtitle_way w)
{
    switch (w) {
    case MEDIA_SUBTITLE_OFF:
        return "off";
    case MEDIA_SUBTITLE_INSIDE:
        return "inside";
    case MEDIA_SUBTITLE_BESIDE:
        return "beside";
    case MEDIA_SUBTITLE_BURNT:
        return "burnt";
    case MEDIA_SUBTITLE_LOST:
        return "lost";
    }
    return "";
}

// ---------------------------------------------------------------- notes

static void PRINTF_LIKE(5, 6)
    note(struct decider *k, enum media_reason reason, int track, unsigned out, const char *fmt, ...)
{
    struct media_decision *d = k->d;
    k->ruled_out |= out;
    if (d->n_notes == MEDIA_MAX_NOTES)
        return;
    struct media_note *n = &d->notes[d->n_notes++];
    n->reason = reason;
    n->track = track;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(n->text, sizeof(n->text), fmt, ap);
    va_end(ap);
}

bool media_decision_has(const struct media_decision *d, enum media_reason r)
{
    for (size_t i = 0; i < d->n_notes; i++)
        if (d->notes[i].reason == r)
            return true;
    return false;
}

// ---------------------------------------------------------------- choosing tracks

static const struct media_track *track_at(const struct decider *k, int i)
{
    return i == MEDIA_NO_TRACK ? NULL : &k->plan->source.tracks[i];
}

static int index_of(const struct media_plan *p, const struct media_track *t)
{
    return t ? (int)(t - p->source.tracks) : MEDIA_NO_TRACK;
}

static bool speaks(const struct media_track *t, const char *language)
{
    // "en" asks for "en-GB" too; "eng" and "en" are told apart by files themselves
    size_t n = strlen(language);
    return strncmp(t->language, language, n) == 0 &&
           (t->language[n] == '\0' || t->language[n] == '-');
}

static bool has_rendition(const struct media_plan *p, int track)
{
    for (size_t i = 0; i < p->n_renditions; i++)
        if (p->renditions[i].kind == MEDIA_AUDIO && p->renditions[i].track == track)
            return true;
    return false;
}

// The sound that is wished for, when the file has it; else the default one.
static int choose_audio_track(const struct decider *k)
{
    const struct media_source *s = &k->plan->source;
    const struct media_wishes *w = k->wishes;
    int by_language = MEDIA_NO_TRACK;
    for (size_t i = 0; i < s->n_tracks; i++) {
        const struct media_track *t = &s->tracks[i];
        if (t->type != MEDIA_TRACK_AUDIO || !has_rendition(k->plan, (int)i))
            continue;
        if (w->audio_track == t->index)
            return (int)i;
        bool better = by_language == MEDIA_NO_TRACK ||
                      (s->tracks[by_language].is_commentary && !t->is_commentary);
        if (w->audio_language && *w->audio_language && speaks(t, w->audio_language) && better)
            by_language = (int)i;
    }
    return by_language != MEDIA_NO_TRACK
               ? by_language
               : index_of(k->plan, media_plan_track(k->plan, MEDIA_TRACK_AUDIO));
}

// By number, else the first of that language, full ones before those with foreign parts alone.
static int choose_subtitle_track(const struct decider *k)
{
    const struct media_source *s = &k->plan->source;
    const struct media_wishes *w = k->wishes;
    int found = MEDIA_NO_TRACK;
    for (size_t i = 0; i < s->n_tracks; i++) {
        const struct media_track *t = &s->tracks[i];
        if (t->type != MEDIA_TRACK_SUBTITLE || t->subtitle == MEDIA_SUBTITLE_NONE)
            continue;
        if (w->subtitle_track == t->index)
            return (int)i;
        bool wished = w->subtitle_track == MEDIA_NO_TRACK && w->subtitle_language &&
                      *w->subtitle_language && speaks(t, w->subtitle_language);
        if (wished && (found == MEDIA_NO_TRACK || (s->tracks[found].is_forced && !t->is_forced)))
            found = (int)i;
    }
    return found;
}

// ---------------------------------------------------------------- the picture

static uint32_t min_side(uint32_t w, uint32_t h)
{
    return w < h ? w : h;
}

static uint32_t max_side(uint32_t w, uint32_t h)
{
    return w > h ? w : h;
}

// ITU-T H.273 transfer characteristics.
static const char *range_of(const struct media_track *t)
{
    return t->color[1] == 16 ? "hdr10" : t->color[1] == 18 ? "hlg" : "sdr";
}

static const struct media_video_rule *video_rule(const struct media_profile *p, const char *codec)
{
    for (size_t i = 0; i < p->n_video; i++)
        if (media_list_has(p->video[i].codecs, codec))
            return &p->video[i];
    return NULL;
}

static void judge_video_codec(struct decider *k, int track, const struct media_video_rule *r)
{
    const struct media_track *t = track_at(k, track);
    const unsigned both = FILE_AS_IT_IS | PICTURE_COPY;
    if (r->profiles && *r->profiles && *t->profile && !media_list_has(r->profiles, t->profile))
        note(k, MEDIA_REASON_VIDEO_PROFILE, track, both, "video profile %s", t->profile);
    if (r->max_level && t->level > r->max_level)
        note(k, MEDIA_REASON_VIDEO_LEVEL, track, both, "video level %u, the player takes %u",
             (unsigned)t->level, (unsigned)r->max_level);
    if (r->max_bit_depth && t->bit_depth > r->max_bit_depth)
        note(k, MEDIA_REASON_VIDEO_BIT_DEPTH, track, both, "video with %u bits a sample",
             (unsigned)t->bit_depth);
    if (r->max_refs && t->refs > r->max_refs)
        note(k, MEDIA_REASON_VIDEO_REFS, track, both, "%u reference frames, the player takes %u",
             (unsigned)t->refs, (unsigned)r->max_refs);
    if ((r->max_width && max_side(t->width, t->height) > r->max_width) ||
        (r->max_height && min_side(t->width, t->height) > r->max_height))
        note(k, MEDIA_REASON_VIDEO_SIZE, track, both, "picture of %ux%u", t->width, t->height);
    if (r->max_fps && t->frame_rate.num > (int64_t)r->max_fps * t->frame_rate.den)
        note(k, MEDIA_REASON_VIDEO_FRAME_RATE, track, both,
             "%.2f frames a second, the player takes %u",
             (double)t->frame_rate.num / (double)t->frame_rate.den, r->max_fps);
    if (r->max_bitrate_bps && t->bitrate_bps > r->max_bitrate_bps)
        note(k, MEDIA_REASON_VIDEO_BITRATE, track, both,
             "picture of %lld kbit/s, the player takes %lld", (long long)t->bitrate_bps / 1000,
             (long long)r->max_bitrate_bps / 1000);
}

static void judge_video_shape(struct decider *k, int track)
{
    const struct media_track *t = track_at(k, track);
    const struct media_profile *p = k->profile;
    const unsigned both = FILE_AS_IT_IS | PICTURE_COPY;
    if (!media_list_has(p->ranges, range_of(t)))
        note(k, MEDIA_REASON_VIDEO_RANGE, track, both, "%s picture", range_of(t));
    if (t->interlaced && !p->interlaced)
        note(k, MEDIA_REASON_VIDEO_INTERLACED, track, both, "interlaced picture");
    if (t->sar.num > 0 && t->sar.num != t->sar.den && !p->anamorphic)
        note(k, MEDIA_REASON_VIDEO_ANAMORPHIC, track, both, "pixels of %d:%d", (int)t->sar.num,
             (int)t->sar.den);
    if (t->rotation && !p->rotates)
        note(k, MEDIA_REASON_VIDEO_ROTATION, track, both, "picture turned by %d degrees",
             (int)t->rotation);
    if (k->limits->max_height && min_side(t->width, t->height) > k->limits->max_height)
        note(k, MEDIA_REASON_LIMIT_HEIGHT, track, both, "picture of %u lines, the limit is %u",
             min_side(t->width, t->height), k->limits->max_height);
}

static void judge_video(struct decider *k, int track, const struct media_container_rule *file)
{
    const struct media_track *t = track_at(k, track);
    const struct media_video_rule *r = video_rule(k->profile, t->codec);
    if (!r)
        note(k, MEDIA_REASON_VIDEO_CODEC, track, FILE_AS_IT_IS | PICTURE_COPY, "video codec %s",
             t->codec);
    else if (file && !media_list_has(file->video, t->codec))
        note(k, MEDIA_REASON_VIDEO_CODEC, track, FILE_AS_IT_IS, "video codec %s in %s", t->codec,
             media_container_name(k->plan->source.container));
    if (r)
        judge_video_codec(k, track, r);
    judge_video_shape(k, track);
}

// ---------------------------------------------------------------- the sound

static const struct media_audio_rule *audio_rule(const struct media_profile *p, const char *codec)
{
    for (size_t i = 0; i < p->n_audio; i++)
        if (media_list_has(p->audio[i].codecs, codec))
            return &p->audio[i];
    return NULL;
}

static void judge_audio_codec(struct decider *k, int track, const struct media_audio_rule *r)
{
    const struct media_track *t = track_at(k, track);
    const unsigned both = FILE_AS_IT_IS | SOUND_COPY;
    if (r->profiles && *r->profiles && *t->profile && !media_list_has(r->profiles, t->profile))
        note(k, MEDIA_REASON_AUDIO_PROFILE, track, both, "audio profile %s", t->profile);
    if (r->max_channels && t->channels > r->max_channels)
        note(k, MEDIA_REASON_AUDIO_CHANNELS, track, both, "%u channels, the player takes %u",
             (unsigned)t->channels, (unsigned)r->max_channels);
    if (r->max_sample_rate && t->sample_rate > r->max_sample_rate)
        note(k, MEDIA_REASON_AUDIO_SAMPLE_RATE, track, both, "%u Hz, the player takes %u",
             t->sample_rate, r->max_sample_rate);
    if (r->max_bit_depth && t->bit_depth > r->max_bit_depth)
        note(k, MEDIA_REASON_AUDIO_BIT_DEPTH, track, both, "sound with %u bits a sample",
             (unsigned)t->bit_depth);
    if (r->max_bitrate_bps && t->bitrate_bps > r->max_bitrate_bps)
        note(k, MEDIA_REASON_AUDIO_BITRATE, track, both,
             "sound of %lld kbit/s, the player takes %lld", (long long)t->bitrate_bps / 1000,
             (long long)r->max_bitrate_bps / 1000);
}

static void judge_audio(struct decider *k, int track, const struct media_container_rule *file)
{
    const struct media_track *t = track_at(k, track);
    const struct media_audio_rule *r = audio_rule(k->profile, t->codec);
    if (!r)
        note(k, MEDIA_REASON_AUDIO_CODEC, track, FILE_AS_IT_IS | SOUND_COPY, "audio codec %s",
             t->codec);
    else if (file && !media_list_has(file->audio, t->codec))
        note(k, MEDIA_REASON_AUDIO_CODEC, track, FILE_AS_IT_IS, "audio codec %s in %s", t->codec,
             media_container_name(k->plan->source.container));
    if (r)
        judge_audio_codec(k, track, r);
    const struct media_track *usual = media_plan_track(k->plan, MEDIA_TRACK_AUDIO);
    if (t != usual && !k->profile->picks_tracks)
        note(k, MEDIA_REASON_AUDIO_SECONDARY, track, FILE_AS_IT_IS,
             "sound track %u is not the one that the player takes", (unsigned)t->index);
    if (k->wishes->normalised)
        note(k, MEDIA_REASON_ASKED_NORMALISED, track, FILE_AS_IT_IS | SOUND_COPY,
             "even loudness was asked for");
}

// ---------------------------------------------------------------- the file

static const char *container_of(const struct media_source *s)
{
    return str_eq(s->container_name, "quicktime") ? "mov" : media_container_name(s->container);
}

static const struct media_container_rule *container_rule(const struct media_profile *p,
                                                         const char *container, bool has_video)
{
    for (size_t i = 0; i < p->n_containers; i++) {
        const struct media_container_rule *r = &p->containers[i];
        if (media_list_has(r->containers, container) && (!has_video || (r->video && *r->video)))
            return r;
    }
    return NULL;
}

static void judge_streams(struct decider *k)
{
    const struct media_source *s = &k->plan->source;
    unsigned pictures = 0;
    for (size_t i = 0; i < s->n_tracks; i++) {
        const struct media_track *t = &s->tracks[i];
        pictures += t->type == MEDIA_TRACK_VIDEO;
        bool known = t->type != MEDIA_TRACK_OTHER && *t->codec && !str_eq(t->codec, "none") &&
                     !str_eq(t->codec, "unknown_codec");
        if (!known && !k->profile->skips_unknown)
            note(k, MEDIA_REASON_UNKNOWN_STREAM, (int)i, FILE_AS_IT_IS,
                 "stream %u is of a kind that is not known", (unsigned)t->index);
    }
    if (pictures > 1 && !k->profile->picks_tracks)
        note(k, MEDIA_REASON_SEVERAL_VIDEO, MEDIA_NO_TRACK, FILE_AS_IT_IS, "%u video streams",
             pictures);
}

// Streams that the file begins late or trims: the sound's place on the timeline says so.
static bool is_edited(const struct media_plan *p)
{
    const struct media_track *a = media_plan_track(p, MEDIA_TRACK_AUDIO);
    return p->source.container == MEDIA_CONTAINER_MP4 &&
           (p->source.timeline_zero_us != 0 ||
            (a && a->frame_samples && (a->origin >= MEDIA_AUDIO_RATE || a->origin < -8192)));
}

static const struct media_container_rule *judge_file(struct decider *k, bool has_video)
{
    const struct media_source *s = &k->plan->source;
    const struct media_profile *p = k->profile;
    const struct media_container_rule *r = container_rule(p, container_of(s), has_video);
    if (!r)
        note(k, MEDIA_REASON_CONTAINER, MEDIA_NO_TRACK, FILE_AS_IT_IS, "container %s",
             container_of(s));
    if (!s->streamable && !p->takes_late_index)
        note(k, MEDIA_REASON_CONTAINER_INDEX, MEDIA_NO_TRACK, FILE_AS_IT_IS,
             "the file's index is at its end");
    if (p->max_file_bitrate_bps && s->bitrate_bps > p->max_file_bitrate_bps)
        note(k, MEDIA_REASON_CONTAINER_BITRATE, MEDIA_NO_TRACK, FILE_AS_IT_IS,
             "%lld kbit/s, the player takes %lld", (long long)s->bitrate_bps / 1000,
             (long long)p->max_file_bitrate_bps / 1000);
    if (is_edited(k->plan) && !p->edits)
        note(k, MEDIA_REASON_EDITS, MEDIA_NO_TRACK, FILE_AS_IT_IS,
             "streams of the file begin late or are trimmed");
    judge_streams(k);
    return r;
}

static int64_t network_share(const struct media_limits *l)
{
    return l->network_bps / 5 * 4;
}

// Too many bits rule the file out, and the picture's packets, or the sound's when there is none.
static void judge_limits(struct decider *k, bool has_video)
{
    const struct media_source *s = &k->plan->source;
    unsigned out = FILE_AS_IT_IS | (has_video ? PICTURE_COPY : SOUND_COPY);
    if (k->limits->max_bitrate_bps && s->bitrate_bps > k->limits->max_bitrate_bps)
        note(k, MEDIA_REASON_LIMIT_BITRATE, MEDIA_NO_TRACK, out, "%lld kbit/s, the limit is %lld",
             (long long)s->bitrate_bps / 1000, (long long)k->limits->max_bitrate_bps / 1000);
    if (k->limits->network_bps && s->bitrate_bps > network_share(k->limits))
        note(k, MEDIA_REASON_LIMIT_NETWORK, MEDIA_NO_TRACK, out,
             "%lld kbit/s, the network carries %lld", (long long)s->bitrate_bps / 1000,
             (long long)k->limits->network_bps / 1000);
    if (k->wishes->no_direct)
        note(k, MEDIA_REASON_ASKED_RENDITIONS, MEDIA_NO_TRACK, FILE_AS_IT_IS,
             "renditions were asked for");
}

// ---------------------------------------------------------------- subtitles

static int burnt_rendition(const struct media_plan *p, int track)
{
    for (size_t i = 0; i < p->n_renditions; i++)
        if (p->renditions[i].kind == MEDIA_VIDEO && p->renditions[i].burn == track + 1)
            return (int)i;
    return -1;
}

static void burn_in(struct decider *k, const char *why)
{
    struct media_decision *d = k->d;
    if (burnt_rendition(k->plan, d->subtitle_track) < 0) {
        d->subtitle = MEDIA_SUBTITLE_LOST;
        return;
    }
    d->subtitle = MEDIA_SUBTITLE_BURNT;
    note(k, MEDIA_REASON_SUBTITLE_BURN, d->subtitle_track, FILE_AS_IT_IS | PICTURE_COPY,
         "subtitles go into the picture: %s", why);
}

// Whether the player shows the track out of the file is known only when the file is played.
static void judge_subtitle(struct decider *k)
{
    struct media_decision *d = k->d;
    const struct media_track *t = track_at(k, d->subtitle_track);
    const struct media_wishes *w = k->wishes;
    d->subtitle = MEDIA_SUBTITLE_OFF;
    if (!t)
        return;
    if (w->burn == MEDIA_BURN_ALWAYS) {
        burn_in(k, "it was asked for");
        return;
    }
    bool file = !(k->ruled_out & FILE_AS_IT_IS);
    bool as_text = t->subtitle != MEDIA_SUBTITLE_BITMAP && k->profile->shows_webvtt &&
                   !(t->subtitle == MEDIA_SUBTITLE_STYLED && w->keep_styles);
    if (file && media_list_has(k->profile->subtitles, t->codec)) {
        d->subtitle = MEDIA_SUBTITLE_INSIDE;
    } else if (as_text) {
        d->subtitle = MEDIA_SUBTITLE_BESIDE;
    } else if (w->burn == MEDIA_BURN_NEVER) {
        d->subtitle = MEDIA_SUBTITLE_LOST;
    } else {
        burn_in(k, "the player cannot show them");
        if (d->subtitle == MEDIA_SUBTITLE_BURNT)
            note(k, MEDIA_REASON_SUBTITLE_CODEC, d->subtitle_track, FILE_AS_IT_IS | PICTURE_COPY,
                 "subtitles of kind %s", t->codec);
    }
}

// ---------------------------------------------------------------- renditions

static int find_copy(const struct media_plan *p, enum media_kind kind, int track)
{
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        if (r->copy && r->kind == kind && r->track == track)
            return (int)i;
    }
    return -1;
}

// The source's packets of that kind, packed anew; -1, with a note, when that cannot be.
static int try_copy(struct decider *k, enum media_kind kind, int track)
{
    bool video = kind == MEDIA_VIDEO;
    unsigned out = video ? PICTURE_COPY : SOUND_COPY;
    const char *codecs = video ? k->profile->package_video : k->profile->package_audio;
    if (track == MEDIA_NO_TRACK || (k->ruled_out & out))
        return -1;
    if (!k->profile->copies)
        return -1;
    if (k->wishes->no_copies) {
        note(k, MEDIA_REASON_NO_COPIES, track, out, "%s is not to be packed anew",
             video ? "the picture" : "the sound");
        return -1;
    }
    if (!media_list_has(codecs, track_at(k, track)->codec)) {
        note(k, MEDIA_REASON_PACKAGE_CODEC, track, out, "%s in segments",
             track_at(k, track)->codec);
        return -1;
    }
    int copy = find_copy(k->plan, kind, track);
    if (copy < 0)
        note(k, MEDIA_REASON_NOT_COPIED, track, out, "%s cannot be packed anew",
             video ? "the picture" : "the sound");
    return copy;
}

static int64_t rate_limit(const struct media_limits *l)
{
    int64_t network = network_share(l);
    if (!l->max_bitrate_bps || (network && network < l->max_bitrate_bps))
        return network;
    return l->max_bitrate_bps;
}

// How well a rendition of sound fits; more is better, below 0 not at all.
static int audio_score(const struct decider *k, const struct media_rendition *r, int track)
{
    const char *codec = media_codec_name(r->codec);
    const struct media_audio_rule *rule = audio_rule(k->profile, codec);
    if (r->kind != MEDIA_AUDIO || r->copy || r->track != track)
        return -1;
    bool surround = r->channels > 2;
    bool takes = media_list_has(k->profile->package_audio, codec);
    bool fits = !rule || !rule->max_channels || r->channels <= rule->max_channels;
    if (surround && !(k->profile->surround && takes && fits && rule))
        return -1;
    // What the player cannot decode is of no use, whatever else speaks for it. Beside pictures
    // lossless sound is a waste of the line.
    return (takes ? 128 : 0) + (r->normalised == k->wishes->normalised ? 16 : 0) +
           (surround ? 8 : 0) + (r->lazy ? 0 : 4) + (r->codec == MEDIA_CODEC_FLAC ? 0 : 2);
}

static int choose_audio(const struct decider *k)
{
    const struct media_plan *p = k->plan;
    int best = -1, best_score = -1;
    int64_t limit = p->video.n_segments ? 0 : rate_limit(k->limits); // sound alone has it all
    for (size_t i = 0; i < p->n_renditions; i++) {
        int score = audio_score(k, &p->renditions[i], k->d->audio_track);
        if (score < 0)
            continue;
        score += limit && p->renditions[i].bandwidth_bps > limit ? 0 : 64;
        if (score > best_score) {
            best = (int)i;
            best_score = score;
        }
    }
    return best;
}

bool media_picture_fits(const struct media_profile *profile, const struct media_rendition *r)
{
    const struct media_video_rule *rule = video_rule(profile, media_codec_name(r->codec));
    if (!rule)
        return true;
    return (!rule->max_width || max_side(r->width, r->height) <= rule->max_width) &&
           (!rule->max_height || min_side(r->width, r->height) <= rule->max_height) &&
           (!rule->max_bitrate_bps || r->maxrate_bps <= rule->max_bitrate_bps) &&
           (!rule->max_level || r->codec != MEDIA_CODEC_H264 || r->level <= rule->max_level);
}

// Among the renditions that say the same (H.264, or another codec when the player wants that), the
// best that the player takes and that keeps to the limits; the lowest when none does.
static int choose_video(const struct decider *k, int audio)
{
    const struct media_plan *p = k->plan;
    const struct media_limits *l = k->limits;
    int64_t limit = rate_limit(l), sound = audio < 0 ? 0 : p->renditions[audio].bandwidth_bps;
    uint8_t burn = k->d->subtitle == MEDIA_SUBTITLE_BURNT ? (uint8_t)(k->d->subtitle_track + 1) : 0;
    enum media_codec codec = MEDIA_CODEC_NONE;
    int last = -1;
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        if (r->kind != MEDIA_VIDEO || r->copy || r->burn != burn)
            continue;
        if (codec == MEDIA_CODEC_NONE &&
            media_list_has(k->profile->package_video, media_codec_name(r->codec)))
            codec = r->codec;
    }
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        bool wanted = codec == MEDIA_CODEC_NONE ? !r->lazy || burn : r->codec == codec;
        if (r->kind != MEDIA_VIDEO || r->copy || r->burn != burn || !wanted)
            continue;
        last = (int)i;
        if (media_picture_fits(k->profile, r) &&
            (!l->max_height || min_side(r->width, r->height) <= l->max_height) &&
            (!limit || r->bandwidth_bps + sound <= limit))
            break; // they fall in size: the first that fits is the best
    }
    return last;
}

// ---------------------------------------------------------------- all of it

static void set_mode(struct decider *k)
{
    struct media_decision *d = k->d;
    const struct media_plan *p = k->plan;
    bool has_video = d->video_track != MEDIA_NO_TRACK;
    if (!(k->ruled_out & FILE_AS_IT_IS)) {
        d->mode = MEDIA_MODE_DIRECT;
        d->audio_rendition = choose_audio(k);
        d->video_rendition = has_video ? choose_video(k, d->audio_rendition) : -1;
        return;
    }
    int video = try_copy(k, MEDIA_VIDEO, d->video_track);
    // Packets of sound are worth it where the picture's are, or when the original is preferred.
    bool may_copy_audio = !has_video || video >= 0 || k->wishes->prefer_original;
    int audio = may_copy_audio ? try_copy(k, MEDIA_AUDIO, d->audio_track) : -1;
    bool copied = has_video ? video >= 0 : audio >= 0;
    d->mode = copied ? MEDIA_MODE_REMUX : MEDIA_MODE_TRANSCODE;
    d->audio_rendition = audio >= 0 ? audio : p->audio.n_segments ? choose_audio(k) : -1;
    d->video_rendition = video >= 0 ? video : has_video ? choose_video(k, d->audio_rendition) : -1;
}

void media_decide(const struct media_plan *p, const struct media_profile *profile,
                  const struct media_limits *limits, const struct media_wishes *wishes,
                  struct media_decision *ret)
{
    struct decider k = {p, profile, limits, wishes, ret, 0};
    *ret = (struct media_decision){.mode = MEDIA_MODE_TRANSCODE};
    ret->video_track =
        p->video.n_segments ? index_of(p, media_plan_track(p, MEDIA_TRACK_VIDEO)) : MEDIA_NO_TRACK;
    ret->audio_track = p->audio.n_segments ? choose_audio_track(&k) : MEDIA_NO_TRACK;
    ret->subtitle_track = choose_subtitle_track(&k);
    bool has_video = ret->video_track != MEDIA_NO_TRACK;
    const struct media_container_rule *file = judge_file(&k, has_video);
    if (has_video)
        judge_video(&k, ret->video_track, file);
    if (ret->audio_track != MEDIA_NO_TRACK)
        judge_audio(&k, ret->audio_track, file);
    judge_limits(&k, has_video);
    judge_subtitle(&k);
    set_mode(&k);
}
