#include "orchestrator/decision.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "orchestrator/internal.h"

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "decision: out of memory");
}

// ---------------------------------------------------------------- profiles from outside

// "a,b,c" of names; a name with a comma would be two.
static const char *join(struct arena *a, char *const *names, size_t n)
{
    const char *list = "";
    for (size_t i = 0; list && i < n; i++)
        list = arena_printf(a, "%s%s%s", list, i ? "," : "", names[i]);
    return list;
}

static enum status take_number(int64_t v, int64_t max, const char *what, size_t i, struct err *err)
{
    if (v >= 0 && v <= max)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID_ARGUMENT, "custom.%s[%zu]: a limit of %" PRId64, what, i, v);
}

static enum status take_containers(struct arena *a, const Orchestrator__PlayerProfile *from,
                                   struct media_profile *p, struct err *err)
{
    struct media_container_rule *rules = arena_array(a, from->n_containers + 1, sizeof *rules);
    if (!rules)
        return no_memory(err);
    for (size_t i = 0; i < from->n_containers; i++) {
        const Orchestrator__ContainerRule *r = from->containers[i];
        rules[i] = (struct media_container_rule){join(a, r->containers, r->n_containers),
                                                 join(a, r->video, r->n_video),
                                                 join(a, r->audio, r->n_audio)};
    }
    p->containers = rules;
    p->n_containers = from->n_containers;
    return STATUS_OK;
}

static enum status take_video(struct arena *a, const Orchestrator__PlayerProfile *from,
                              struct media_profile *p, struct err *err)
{
    struct media_video_rule *rules = arena_array(a, from->n_video + 1, sizeof *rules);
    if (!rules)
        return no_memory(err);
    for (size_t i = 0; i < from->n_video; i++) {
        const Orchestrator__VideoRule *r = from->video[i];
        const int32_t numbers[] = {r->max_level, r->max_bit_depth, r->max_refs,
                                   r->max_width, r->max_height,    r->max_fps};
        for (size_t k = 0; k < N_ELEMENTS(numbers); k++)
            if (take_number(numbers[k], UINT16_MAX, "video", i, err) != STATUS_OK)
                return err->code;
        rules[i] = (struct media_video_rule){
            .codecs = join(a, r->codecs, r->n_codecs),
            .profiles = join(a, r->profiles, r->n_profiles),
            .max_level = (uint16_t)r->max_level,
            .max_bit_depth = (uint16_t)r->max_bit_depth,
            .max_refs = (uint16_t)r->max_refs,
            .max_width = (uint32_t)r->max_width,
            .max_height = (uint32_t)r->max_height,
            .max_fps = (uint32_t)r->max_fps,
            .max_bitrate_bps = r->max_bitrate,
        };
    }
    p->video = rules;
    p->n_video = from->n_video;
    return STATUS_OK;
}

static enum status take_audio(struct arena *a, const Orchestrator__PlayerProfile *from,
                              struct media_profile *p, struct err *err)
{
    struct media_audio_rule *rules = arena_array(a, from->n_audio + 1, sizeof *rules);
    if (!rules)
        return no_memory(err);
    for (size_t i = 0; i < from->n_audio; i++) {
        const Orchestrator__AudioRule *r = from->audio[i];
        if (take_number(r->max_channels, UINT16_MAX, "audio", i, err) != STATUS_OK ||
            take_number(r->max_bit_depth, UINT16_MAX, "audio", i, err) != STATUS_OK ||
            take_number(r->max_sample_rate, INT32_MAX, "audio", i, err) != STATUS_OK)
            return err->code;
        rules[i] = (struct media_audio_rule){
            .codecs = join(a, r->codecs, r->n_codecs),
            .profiles = join(a, r->profiles, r->n_profiles),
            .max_channels = (uint16_t)r->max_channels,
            .max_bit_depth = (uint16_t)r->max_bit_depth,
            .max_sample_rate = (uint32_t)r->max_sample_rate,
            .max_bitrate_bps = r->max_bitrate,
        };
    }
    p->audio = rules;
    p->n_audio = from->n_audio;
    return STATUS_OK;
}

static enum status custom_profile(struct arena *a, const Orchestrator__PlayerProfile *from,
                                  const struct media_profile **ret, struct err *err)
{
    struct media_profile *p = arena_alloc(a, sizeof *p);
    if (!p)
        return no_memory(err);
    if (from->n_containers > MEDIA_MAX_RULES || from->n_video > MEDIA_MAX_RULES ||
        from->n_audio > MEDIA_MAX_RULES)
        return err_set(err, STATUS_INVALID_ARGUMENT, "custom: more than %d rules of a kind",
                       MEDIA_MAX_RULES);
    *p = (struct media_profile){
        .name = *from->name ? orch_str(a, from->name) : "custom",
        .about = "",
        .package_video = join(a, from->package_video, from->n_package_video),
        .package_audio = join(a, from->package_audio, from->n_package_audio),
        .subtitles = join(a, from->subtitles, from->n_subtitles),
        .ranges = from->n_ranges ? join(a, from->ranges, from->n_ranges) : "sdr",
        .shows_webvtt = from->shows_webvtt,
        .rotates = from->rotates,
        .interlaced = from->interlaced,
        .anamorphic = from->anamorphic,
        .picks_tracks = from->picks_tracks,
        .skips_unknown = from->skips_unknown,
        .takes_late_index = from->takes_late_index,
        .edits = from->edits,
        .copies = from->copies,
        .surround = from->surround,
        .max_file_bitrate_bps = from->max_file_bitrate,
    };
    enum status s = take_containers(a, from, p, err);
    if (s == STATUS_OK)
        s = take_video(a, from, p, err);
    if (s == STATUS_OK)
        s = take_audio(a, from, p, err);
    if (s == STATUS_OK)
        s = media_profile_check(p, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "custom profile");
    *ret = p;
    return STATUS_OK;
}

// Lists alone, with what any browser can where a list is empty: any codec in any container.
static enum status listed_profile(struct arena *a, const Orchestrator__DeviceProfile *from,
                                  const struct media_profile **ret, struct err *err)
{
    const struct media_profile *generic = media_profile_find("generic");
    *ret = generic;
    if (!from || (!from->n_containers && !from->n_video_codecs && !from->n_audio_codecs))
        return STATUS_OK;
    struct media_profile *p = arena_dup(a, generic, sizeof *generic);
    struct media_container_rule *file = arena_alloc(a, sizeof *file);
    struct media_video_rule *video = arena_array(a, 2, sizeof *video);
    struct media_audio_rule *audio = arena_alloc(a, sizeof *audio);
    if (!p || !file || !video || !audio)
        return no_memory(err);
    *file = (struct media_container_rule){"mp4,mp3,ogg,flac,wav,aac", "*", "*"};
    if (from->n_containers)
        file->containers = join(a, from->containers, from->n_containers);
    video[0] = generic->video[0]; // what is known about H.264 holds wherever it is played
    video[1] = (struct media_video_rule){.codecs = "h264"};
    if (from->n_video_codecs) {
        video[1].codecs = join(a, from->video_codecs, from->n_video_codecs);
        if (!video[1].codecs)
            return no_memory(err);
        if (!media_list_has(video[1].codecs, "h264"))
            video[0] = video[1];
    }
    *audio = generic->audio[0];
    if (from->n_audio_codecs)
        p->package_audio = audio->codecs = join(a, from->audio_codecs, from->n_audio_codecs);
    p->name = "listed";
    p->containers = file;
    p->n_containers = 1;
    p->video = video;
    p->n_video = 2;
    p->audio = audio;
    p->n_audio = 1;
    enum status s = media_profile_check(p, err);
    if (s == STATUS_OK)
        *ret = p;
    return s == STATUS_OK ? s : err_wrap(err, s, "profile");
}

static enum status find_profile(struct arena *a, const Orchestrator__OpenRequest *req,
                                const struct media_profile **ret, struct err *err)
{
    if (req->custom)
        return custom_profile(a, req->custom, ret, err);
    if (!*req->player)
        return listed_profile(a, req->profile, ret, err);
    *ret = media_profile_find(req->player);
    if (*ret)
        return STATUS_OK;
    const char *known = "";
    for (size_t i = 0; known && media_profile_at(i); i++)
        known = arena_printf(a, "%s%s%s", known, i ? ", " : "", media_profile_at(i)->name);
    return err_set(err, STATUS_NOT_FOUND, "no player %.20s; known are %s", req->player,
                   known ? known : "none");
}

// ---------------------------------------------------------------- wishes and limits

// The lower one of two limits of which 0 is none.
static int64_t lower(int64_t a, int64_t b)
{
    if (a <= 0 || (b > 0 && b < a))
        return b > 0 ? b : 0;
    return a;
}

static struct media_limits limits_of(const Orchestrator__OpenRequest *req)
{
    struct media_limits l = {0};
    if (req->profile) {
        l.max_height = (uint32_t)lower(req->profile->max_height, 0);
        l.max_bitrate_bps = lower(req->profile->max_bitrate, 0);
    }
    if (req->limits) {
        l.max_height = (uint32_t)lower(l.max_height, req->limits->max_height);
        l.max_bitrate_bps = lower(l.max_bitrate_bps, req->limits->max_bitrate);
        l.network_bps = lower(req->limits->network, 0);
    }
    return l;
}

static struct media_wishes wishes_of(const Orchestrator__OpenRequest *req)
{
    struct media_wishes w = MEDIA_NO_WISHES;
    const Orchestrator__Wishes *from = req->wishes;
    if (from) {
        w.audio_track = from->audio_track > 0 ? from->audio_track - 1 : MEDIA_NO_TRACK;
        w.subtitle_track = from->subtitle_track > 0 ? from->subtitle_track - 1 : MEDIA_NO_TRACK;
        w.audio_language = from->audio_language;
        w.subtitle_language = from->subtitle_language;
        w.burn = from->burn == ORCHESTRATOR__BURN__BURN_NEVER    ? MEDIA_BURN_NEVER
                 : from->burn == ORCHESTRATOR__BURN__BURN_ALWAYS ? MEDIA_BURN_ALWAYS
                                                                 : MEDIA_BURN_NEEDED;
        w.keep_styles = from->keep_styles;
        w.prefer_original = from->prefer_original;
        w.normalised = from->normalised;
        w.no_direct = from->no_direct;
        w.no_copies = from->no_copies;
    }
    w.no_direct |= req->profile && req->profile->never_direct;
    return w;
}

enum status decision_make(struct arena *a, const struct media_plan *plan,
                          const Orchestrator__OpenRequest *req, struct decision *ret,
                          struct err *err)
{
    enum status s = find_profile(a, req, &ret->profile, err);
    if (s != STATUS_OK)
        return s;
    const struct media_limits limits = limits_of(req);
    const struct media_wishes wishes = wishes_of(req);
    struct media_offer offer;
    media_decide(plan, ret->profile, &limits, &wishes, &ret->d);
    media_offer_for(plan, ret->profile, &limits, &ret->d, &offer);
    media_offer_name(&offer, ret->offer);
    return STATUS_OK;
}

// ---------------------------------------------------------------- telling

// The numbers are the same on purpose: both are written down for good.
_Static_assert((int)ORCHESTRATOR__REASON__REASON_PACKAGE_CODEC == (int)MEDIA_REASON_PACKAGE_CODEC,
               "reasons keep their numbers on the wire");
_Static_assert((int)ORCHESTRATOR__METHOD__METHOD_TRANSCODE == (int)MEDIA_MODE_TRANSCODE,
               "methods keep their numbers on the wire");
_Static_assert((int)ORCHESTRATOR__SUBTITLE_WAY__SUBTITLE_LOST == (int)MEDIA_SUBTITLE_LOST,
               "ways keep their numbers on the wire");

// 1 + the stream's number; 0 for none.
static int32_t stream_of(const struct media_plan *plan, int track)
{
    return track == MEDIA_NO_TRACK ? 0 : plan->source.tracks[track].index + 1;
}

static const char *video_about(struct arena *a, const struct media_track *t)
{
    const char *turned = t->rotation ? arena_printf(a, ", turned by %d", t->rotation) : "";
    const char *rate =
        t->frame_rate.num > 0
            ? arena_printf(a, ", %.5g fps", (double)t->frame_rate.num / (double)t->frame_rate.den)
            : "";
    const char *level = t->level ? arena_printf(a, " level %u", (unsigned)t->level) : "";
    return arena_printf(a, "%s%s%s%ux%u%s%s%s%s", t->profile, level ? level : "",
                        *t->profile || t->level ? ", " : "", t->width, t->height, rate ? rate : "",
                        turned ? turned : "", t->interlaced ? ", interlaced" : "",
                        t->bit_depth > 8 ? ", more than 8 bits" : "");
}

static const char *about_of(struct arena *a, const struct media_track *t)
{
    switch (t->type) {
    case MEDIA_TRACK_VIDEO:
        return video_about(a, t);
    case MEDIA_TRACK_AUDIO:
        return arena_printf(a, "%s%s%u channels, %u Hz", t->profile, *t->profile ? ", " : "",
                            (unsigned)t->channels, t->sample_rate);
    case MEDIA_TRACK_SUBTITLE:
        return t->is_forced ? "forced" : t->is_hearing_impaired ? "for the hard of hearing" : "";
    case MEDIA_TRACK_OTHER:
    case MEDIA_TRACK_PICTURE:
    case MEDIA_N_TRACK_TYPES:
        return "";
    }
    return "";
}

static const char *way_of(const struct media_plan *plan, const struct media_decision *d, int track)
{
    bool video = track == d->video_track;
    if (track == d->subtitle_track)
        return media_subtitle_way_name(d->subtitle);
    if (!video && track != d->audio_track)
        return "";
    if (d->mode == MEDIA_MODE_DIRECT)
        return "direct";
    int r = video ? d->video_rendition : d->audio_rendition;
    return r >= 0 && plan->renditions[r].copy ? "copied" : "made anew";
}

static const char *type_name(enum media_track_type t)
{
    static const char *const names[MEDIA_N_TRACK_TYPES] = {[MEDIA_TRACK_OTHER] = "other",
                                                           [MEDIA_TRACK_VIDEO] = "video",
                                                           [MEDIA_TRACK_AUDIO] = "audio",
                                                           [MEDIA_TRACK_SUBTITLE] = "subtitle",
                                                           [MEDIA_TRACK_PICTURE] = "picture"};
    return (unsigned)t < MEDIA_N_TRACK_TYPES ? names[t] : "other";
}

static Orchestrator__TrackVerdict *tell_track(struct arena *a, const struct media_plan *plan,
                                              const struct media_decision *d, int track)
{
    const struct media_track *t = &plan->source.tracks[track];
    Orchestrator__TrackVerdict *v = arena_alloc(a, sizeof *v);
    Orchestrator__Reason *reasons = arena_array(a, MEDIA_MAX_NOTES, sizeof *reasons);
    if (!v || !reasons)
        return NULL;
    orchestrator__track_verdict__init(v);
    v->stream = t->index;
    v->type = orch_str(a, type_name(t->type));
    v->codec = orch_str(a, t->codec);
    v->language = orch_str(a, t->language);
    v->title = orch_str(a, t->title);
    v->about = orch_str(a, about_of(a, t));
    v->way = orch_str(a, way_of(plan, d, track));
    v->chosen = *v->way != '\0';
    v->reasons = reasons;
    for (size_t i = 0; i < d->n_notes; i++)
        if (d->notes[i].track == track)
            reasons[v->n_reasons++] = (Orchestrator__Reason)d->notes[i].reason;
    return v;
}

static bool tell_notes(struct arena *a, const struct media_plan *plan,
                       const struct media_decision *d, Orchestrator__Decision *ret)
{
    ret->reasons = arena_array(a, MEDIA_MAX_NOTES, sizeof ret->reasons[0]);
    for (size_t i = 0; ret->reasons && i < d->n_notes; i++) {
        Orchestrator__ReasonNote *n = arena_alloc(a, sizeof *n);
        if (!n)
            return false;
        orchestrator__reason_note__init(n);
        n->reason = (Orchestrator__Reason)d->notes[i].reason;
        n->track = stream_of(plan, d->notes[i].track);
        n->text = orch_str(a, d->notes[i].text);
        ret->reasons[ret->n_reasons++] = n;
    }
    return ret->reasons != NULL;
}

enum status decision_tell(struct arena *a, const struct media_plan *plan, const struct decision *d,
                          Orchestrator__Decision **ret, struct err *err)
{
    Orchestrator__Decision *m = arena_alloc(a, sizeof *m);
    if (!m)
        return no_memory(err);
    orchestrator__decision__init(m);
    m->player = orch_str(a, d->profile->name);
    m->method = (Orchestrator__Method)d->d.mode;
    if (d->d.video_rendition >= 0)
        m->video_rendition = orch_str(a, plan->renditions[d->d.video_rendition].id);
    if (d->d.audio_rendition >= 0)
        m->audio_rendition = orch_str(a, plan->renditions[d->d.audio_rendition].id);
    m->subtitle_track = stream_of(plan, d->d.subtitle_track);
    m->subtitle = (Orchestrator__SubtitleWay)d->d.subtitle;
    m->tracks = arena_array(a, plan->source.n_tracks, sizeof m->tracks[0]);
    if (!m->tracks || !tell_notes(a, plan, &d->d, m))
        return no_memory(err);
    for (size_t i = 0; i < plan->source.n_tracks; i++) {
        m->tracks[i] = tell_track(a, plan, &d->d, (int)i);
        if (!m->tracks[i])
            return no_memory(err);
        m->n_tracks++;
    }
    *ret = m;
    return STATUS_OK;
}
