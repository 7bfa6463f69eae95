#include "media/decide.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

struct names {
    const char *const *p;
    size_t n;
};

// What every current browser plays without help.
static const char *const web_containers[] = {"mp4", "mp3", "ogg", "flac", "wav", "aac"};
static const char *const web_video[] = {"h264"};
static const char *const web_audio[] = {"aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le"};

static struct names or_default(const char *const *p, size_t n, const char *const *d, size_t n_d)
{
    return n ? (struct names){p, n} : (struct names){d, n_d};
}

static bool has(struct names l, const char *name)
{
    for (size_t i = 0; i < l.n; i++)
        if (str_eq(l.p[i], name))
            return true;
    return false;
}

static void PRINTF_LIKE(2, 3) why(struct media_decision *d, const char *fmt, ...)
{
    d->direct = false;
    if (d->n_reasons == MEDIA_MAX_REASONS)
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(d->reasons[d->n_reasons++], sizeof(d->reasons[0]), fmt, ap);
    va_end(ap);
}

static uint32_t min_side(uint32_t w, uint32_t h)
{
    return w < h ? w : h;
}

static void judge_video(const struct media_track *t, const struct media_profile *pr,
                        struct media_decision *d)
{
    struct names ok =
        or_default(pr->video_codecs, pr->n_video_codecs, web_video, N_ELEMENTS(web_video));
    if (!has(ok, t->codec))
        why(d, "video codec %s", t->codec);
    else if (t->bit_depth > 8 && str_eq(t->codec, "h264"))
        why(d, "video with %u bits a sample", (unsigned)t->bit_depth);
    else if (str_eq(t->codec, "h264") && strstr(t->profile, "4:"))
        why(d, "video profile %s", t->profile);
    uint32_t side = min_side(t->width, t->height);
    if (pr->max_height && side > pr->max_height)
        why(d, "picture of %u lines, the limit is %u", side, pr->max_height);
}

static void judge_audio(const struct media_track *t, const struct media_profile *pr,
                        struct media_decision *d)
{
    struct names ok =
        or_default(pr->audio_codecs, pr->n_audio_codecs, web_audio, N_ELEMENTS(web_audio));
    // Profiles may say just "pcm".
    if (!has(ok, t->codec) && !(str_starts_with(t->codec, "pcm_") && has(ok, "pcm")))
        why(d, "audio codec %s", t->codec);
}

static void judge_source(const struct media_plan *p, const struct media_profile *pr,
                         struct media_decision *d)
{
    const struct media_source *s = &p->source;
    struct names ok =
        or_default(pr->containers, pr->n_containers, web_containers, N_ELEMENTS(web_containers));
    if (pr->never_direct)
        why(d, "renditions were asked for");
    if (!has(ok, media_container_name(s->container)))
        why(d, "container %s", media_container_name(s->container));
    if (pr->max_bitrate_bps && s->bitrate_bps > pr->max_bitrate_bps)
        why(d, "%lld kbit/s, the limit is %lld", (long long)s->bitrate_bps / 1000,
            (long long)pr->max_bitrate_bps / 1000);
    const struct media_track *v = media_plan_track(p, MEDIA_TRACK_VIDEO);
    const struct media_track *a = media_plan_track(p, MEDIA_TRACK_AUDIO);
    if (v)
        judge_video(v, pr, d);
    if (a)
        judge_audio(a, pr, d);
}

static int choose_audio(const struct media_plan *p, const struct media_profile *pr)
{
    int first = -1;
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        if (r->kind != MEDIA_AUDIO || r->lazy)
            continue;
        if (first < 0)
            first = (int)i;
        struct names ok = {pr->audio_codecs, pr->n_audio_codecs};
        if (ok.n == 0 || has(ok, media_codec_name(r->codec)))
            return (int)i;
    }
    return first;
}

static int choose_video(const struct media_plan *p, const struct media_profile *pr, int audio)
{
    int64_t sound = audio < 0 ? 0 : p->renditions[audio].bandwidth_bps;
    int last = -1;
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        if (r->kind != MEDIA_VIDEO || r->lazy)
            continue;
        last = (int)i;
        if ((!pr->max_height || min_side(r->width, r->height) <= pr->max_height) &&
            (!pr->max_bitrate_bps || r->bandwidth_bps + sound <= pr->max_bitrate_bps))
            break; // they fall in size: the first that fits is the best
    }
    return last;
}

void media_decide(const struct media_plan *p, const struct media_profile *profile,
                  struct media_decision *ret)
{
    *ret = (struct media_decision){.direct = true};
    judge_source(p, profile, ret);
    ret->audio_rendition = choose_audio(p, profile);
    ret->video_rendition = choose_video(p, profile, ret->audio_rendition);
}
