// Probe: choose the streams, learn every time stamp (from an index where there is one, by reading
// the whole otherwise), decode a first picture and a first sound to be sure that they can be, and
// make the plan.
#include <stdlib.h>
#include <string.h>

#include <libavutil/avutil.h>
#include <libavutil/pixdesc.h>

#include "base/mem.h"
#include "base/str.h"
#include "codec/internal.h"

#define MAX_FPS 60
#define FILL_MS 1000 // a picture shown longer is repeated, so that segments can be cut in it
#define MAX_GAP_S INT64_C(3600)
#define VFR_TIMESCALE 90000
#define LEAST_OTHER_SIDE 360 // of pictures in other codecs than H.264
#define MAX_TRY_PACKETS 600
#define SMALL_LEAD_US 100000

struct stamp {
    int64_t pts, dts, duration, pos;
    uint32_t order, size; // as they lie in the source
    bool key;
};
struct stamps {
    struct stamp *p;
    size_t n, cap;
    bool uneven; // there are packets that are no picture at a time of its own
    AVRational tb;
};

struct probe {
    struct codec_input *in;
    const struct codec_sink *progress;
    struct media_plan *plan;
    struct media_options options;
    bool no_pts; // the picture's first packet does not say when it is shown
    size_t n_without_pts;
    int64_t first_shown; // the time that the first decoded picture came out with
    int video;           // stream number, -1 none
    struct codec_sounds sounds;
    struct stamps frames;
    struct codec_picture *pictures; // may be NULL
};

static bool stamps_add(struct stamps *s, struct stamp v)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 1024;
        struct stamp *p = mem_realloc(s->p, cap, sizeof(*p));
        if (!p)
            return false;
        s->p = p;
        s->cap = cap;
    }
    s->p[s->n++] = v;
    return true;
}

// ---- streams ----

static bool is_usable_video(const AVStream *st)
{
    const AVCodecParameters *par = st->codecpar;
    return par->codec_type == AVMEDIA_TYPE_VIDEO &&
           !(st->disposition & AV_DISPOSITION_ATTACHED_PIC) && par->width > 0 && par->height > 0 &&
           avcodec_find_decoder(par->codec_id);
}

// A cover that is not marked as one: Matroska and others hold it as an ordinary stream.
static bool may_be_still(const AVStream *st)
{
    switch (st->codecpar->codec_id) {
    case AV_CODEC_ID_PNG:
    case AV_CODEC_ID_MJPEG:
    case AV_CODEC_ID_GIF:
        return true;
    default:
        return st->nb_frames == 1;
    }
}

// Better: no still, then more pixels, then earlier; the one marked as default stands for four times
// its pixels. MP4 marks the first one anyhow, which may be a thumbnail.
static int64_t video_score(const AVStream *st)
{
    return (int64_t)st->codecpar->width * st->codecpar->height *
               (st->disposition & AV_DISPOSITION_DEFAULT ? 4 : 1) +
           (may_be_still(st) ? 0 : INT64_C(1) << 40);
}

static enum status choose_streams(struct probe *p, struct err *err)
{
    AVFormatContext *f = p->in->fmt;
    p->video = -1;
    bool too_large = false;
    for (unsigned i = 0; i < f->nb_streams && i < MEDIA_MAX_TRACKS; i++) {
        AVStream *st = f->streams[i];
        st->discard = AVDISCARD_ALL;
        const AVCodecParameters *par = st->codecpar;
        if ((uint32_t)par->width > MEDIA_MAX_SIDE_PX || (uint32_t)par->height > MEDIA_MAX_SIDE_PX ||
            (int64_t)par->width * par->height > MEDIA_MAX_PIXELS) {
            too_large = true;
            continue;
        }
        if (is_usable_video(st) &&
            (p->video < 0 || video_score(st) > video_score(f->streams[p->video])))
            p->video = (int)i;
    }
    if (too_large && p->video < 0)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "the picture is larger than %dx%d or 64 megapixels", MEDIA_MAX_SIDE_PX,
                       MEDIA_MAX_SIDE_PX);
    codec_sounds_choose(p->in, &p->sounds);
    if (p->video < 0 && p->sounds.n == 0)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "the file holds no picture or sound that can be decoded");
    if (p->video >= 0)
        f->streams[p->video]->discard = AVDISCARD_DEFAULT;
    return STATUS_OK;
}

// ---- can it be decoded? ----

// Decode from the beginning until a picture comes.
static enum status try_picture(struct probe *p, struct err *err)
{
    AUTO(codec_context_free_p) AVCodecContext *dec = NULL;
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AUTO(codec_frame_free_p) AVFrame *frame = av_frame_alloc();
    enum status s = codec_decoder_open(p->in, p->video, 1, &dec, err);
    if (s != STATUS_OK)
        return s;
    if (!pkt || !frame)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    int n_packets = 0, r = 0;
    bool got = false;
    while (n_packets < MAX_TRY_PACKETS && !got) {
        r = av_read_frame(p->in->fmt, pkt);
        if (r >= 0 && pkt->stream_index != p->video) {
            av_packet_unref(pkt);
            continue;
        }
        n_packets++;
        (void)avcodec_send_packet(dec, r >= 0 ? pkt : NULL); // a bad packet is not the end
        av_packet_unref(pkt);
        while (avcodec_receive_frame(dec, frame) >= 0) {
            if (!got)
                p->first_shown = frame->best_effort_timestamp;
            got = true;
        }
        if (r < 0)
            break;
    }
    if (p->in->failed)
        return codec_error(p->in, r, "probe", err);
    if (!got)
        return err_set(err, STATUS_INVALID_ARGUMENT, "no picture can be decoded from the file");
    // No other decoder says how many frames it refers to.
    if (dec->codec_id == AV_CODEC_ID_H264 && dec->refs > 0 && dec->refs <= 16)
        p->plan->source.tracks[p->video].refs = (uint16_t)dec->refs;
    return STATUS_OK;
}

// ---- time stamps ----

static enum status note_video(struct probe *p, const AVPacket *pkt, struct err *err)
{
    int64_t t = pkt->pts != AV_NOPTS_VALUE ? pkt->pts : pkt->dts;
    p->frames.uneven |= pkt->pts == AV_NOPTS_VALUE || (pkt->flags & AV_PKT_FLAG_DISCARD) ||
                        av_packet_get_side_data(pkt, AV_PKT_DATA_NEW_EXTRADATA, NULL);
    p->no_pts |= p->frames.n == 0 && pkt->pts == AV_NOPTS_VALUE;
    if (t == AV_NOPTS_VALUE || (pkt->flags & AV_PKT_FLAG_DISCARD))
        return STATUS_OK;
    if (pkt->pts == AV_NOPTS_VALUE)
        p->n_without_pts++;
    struct stamp s = {.pts = t,
                      .dts = pkt->dts,
                      .duration = pkt->duration,
                      .pos = pkt->pos,
                      .order = (uint32_t)p->frames.n,
                      .size = (uint32_t)pkt->size,
                      .key = (pkt->flags & AV_PKT_FLAG_KEY) != 0};
    if (p->frames.n >= MEDIA_MAX_FRAMES)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the file holds more than %u pictures",
                       MEDIA_MAX_FRAMES);
    if (!stamps_add(&p->frames, s))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    return STATUS_OK;
}

static enum status scan(struct probe *p, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    if (!pkt)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    int64_t said = 0;
    int r;
    p->in->jumps.finding = codec_may_jump(p->in);
    while ((r = codec_input_read(p->in, pkt)) >= 0) {
        bool whole = pkt->pos < 0 || pkt->size < 0 || pkt->pos + pkt->size <= p->in->src->size;
        enum status s = STATUS_OK;
        if (whole && pkt->stream_index == p->video)
            s = note_video(p, pkt, err);
        else if (whole)
            codec_sounds_note(p->in, &p->sounds, pkt);
        av_packet_unref(pkt);
        if (s != STATUS_OK)
            return s;
        if (p->progress && p->progress->progress && p->in->pos - said >= 8 << 20) {
            said = p->in->pos;
            p->progress->progress(p->progress->ud, said, p->in->src->size);
        }
    }
    if (p->in->failed)
        return codec_error(p->in, r, "probe", err);
    if (p->in->jumps.too_many)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the film's clock jumps more than %d times",
                       MEDIA_MAX_JUMPS);
    p->plan->source.n_jumps = p->in->jumps.n;
    memcpy(p->plan->source.jumps, p->in->jumps.list, sizeof(p->plan->source.jumps));
    return STATUS_OK;
}

// Program streams say of some pictures only when they are decoded. The times at which pictures are
// shown are those at which they are decoded, all later by the same delay, if not in that order.
static void fill_pts(struct probe *p)
{
    struct stamps *s = &p->frames;
    if (p->n_without_pts == 0 || p->no_pts || s->n == 0)
        return;
    for (size_t i = 0; i < s->n; i++)
        if (s->p[i].dts == AV_NOPTS_VALUE)
            return;
    int64_t delay = s->p[0].pts - s->p[0].dts;
    for (size_t i = 0; i < s->n; i++)
        s->p[i].pts = s->p[i].dts + delay;
}

// Matroska is entered at clusters, not at blocks: the demuxer has noted those of the keyframes.
static void use_clusters(struct probe *p)
{
    AVStream *st = p->in->fmt->streams[p->video];
    for (size_t i = 0; i < p->frames.n; i++) {
        struct stamp *s = &p->frames.p[i];
        if (!s->key)
            continue;
        const AVIndexEntry *e =
            avformat_index_get_entry_from_timestamp(st, s->pts, AVSEEK_FLAG_BACKWARD);
        s->pos = e && e->timestamp == s->pts ? e->pos : -1;
    }
}

// ---- the video grid ----

static int by_pts(const void *a, const void *b)
{
    const struct stamp *x = a, *y = b;
    return x->pts < y->pts ? -1 : x->pts > y->pts;
}

// Sorted, no two at one time.
static void sort_stamps(struct stamps *s)
{
    if (s->n)
        qsort(s->p, s->n, sizeof(*s->p), by_pts);
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) {
        if (n && s->p[i].pts == s->p[n - 1].pts)
            s->p[n - 1].key |= s->p[i].key;
        else
            s->p[n++] = s->p[i];
    }
    s->uneven |= n != s->n;
    s->n = n;
}

// Where frame i would lie on a grid of that rate anchored at the first; -1 when off by more than
// the time base's own rounding.
static int64_t grid_index(const struct stamps *s, size_t i, AVRational rate)
{
    int64_t d = s->p[i].pts - s->p[0].pts;
    AVRational frame = {rate.den, rate.num};
    int64_t k = av_rescale_q_rnd(d, s->tb, frame, AV_ROUND_NEAR_INF);
    int64_t back = av_rescale_q_rnd(k, frame, s->tb, AV_ROUND_NEAR_INF), off = d - back;
    int64_t ms = av_rescale_q(1, (AVRational){1, 1000}, s->tb);
    return (off < 0 ? -off : off) <= (ms > 1 ? ms : 1) ? k : -1;
}

// A constant rate fits when every frame lies on its grid, at a place of its own, and at most 5 % of
// the places are empty.
static bool rate_fits(const struct stamps *s, AVRational rate, int64_t *ret_places)
{
    if (rate.num <= 0 || rate.den <= 0 || av_q2d(rate) < 0.5 || av_q2d(rate) > 1000)
        return false;
    int64_t last = -1;
    for (size_t i = 0; i < s->n; i++) {
        int64_t k = grid_index(s, i, rate);
        if (k <= last)
            return false;
        last = k;
    }
    *ret_places = last + 1;
    return (last + 1 - (int64_t)s->n) * 20 <= last + 1;
}

static bool find_rate(const struct probe *p, AVRational *ret, int64_t *ret_places)
{
    const AVStream *st = p->in->fmt->streams[p->video];
    const struct stamps *s = &p->frames;
    AVRational mean = {0, 1};
    if (s->n > 1)
        (void)av_reduce(&mean.num, &mean.den, (int64_t)(s->n - 1) * s->tb.den,
                        (s->p[s->n - 1].pts - s->p[0].pts) * s->tb.num, 1001000);
    int whole = mean.den ? (int)(av_q2d(mean) + 0.5) : 0;
    // The container's own word first, then round rates, so that rounding in short files does not
    // make up odd ones.
    const AVRational candidates[] = {
        st->r_frame_rate, {whole, 1}, {whole * 1000, 1001}, st->avg_frame_rate, mean};
    for (size_t i = 0; i < N_ELEMENTS(candidates); i++) {
        AVRational r = candidates[i];
        if (r.num > 0 && r.den > 0 && av_reduce(&r.num, &r.den, r.num, r.den, 120000) &&
            rate_fits(s, r, ret_places)) {
            *ret = r;
            return true;
        }
    }
    return false;
}

static enum status too_long(struct err *err)
{
    return err_set(err, STATUS_INVALID_ARGUMENT, "the film is longer than 8 hours");
}

static enum status constant_grid(struct probe *p, AVRational rate, int64_t places, int64_t zero,
                                 struct err *err)
{
    struct media_grid *g = &p->plan->video;
    int64_t every = 1; // rates above 60 are thinned
    while (av_q2d(rate) / (double)every > MAX_FPS + 0.5)
        every++;
    AVRational out;
    av_reduce(&out.num, &out.den, rate.num, (int64_t)rate.den * every, INT32_MAX / 4096);
    int64_t factor = 1;
    while (out.num * factor < 10000)
        factor *= 2;
    // Frames before the first one (it begins after time 0) show the first one.
    AVRational frame = {out.den, out.num};
    int64_t lead =
        av_rescale_q_rnd(p->frames.p[0].pts - zero, p->frames.tb, frame, AV_ROUND_NEAR_INF);
    int64_t n = (places + every - 1) / every + (lead > 0 ? lead : 0);
    if (n > MEDIA_MAX_FRAMES || n / av_q2d(out) * 1e6 > (double)MEDIA_MAX_DURATION_US)
        return too_long(err);
    g->timescale = (uint32_t)(out.num * factor);
    g->frame_ticks = (uint32_t)(out.den * factor);
    g->n_frames = (uint32_t)n;
    g->duration = n * g->frame_ticks;
    // The source's frames lie on the grid exactly: a first one that begins half a frame late would
    // make every later choice between two grid frames a matter of rounding.
    int64_t led = lead > 0 ? av_rescale_q(lead, frame, p->frames.tb) : 0;
    p->plan->source.video_zero = p->frames.p[0].pts - led;
    return STATUS_OK;
}

struct times {
    int64_t *p;
    size_t n, cap;
};

static bool times_add(struct times *t, int64_t v)
{
    if (t->n == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 1024;
        int64_t *p = mem_realloc(t->p, cap, sizeof(*p));
        if (!p)
            return false;
        t->p = p;
        t->cap = cap;
    }
    t->p[t->n++] = v;
    return true;
}

// Explicit times: the source's own, not closer than 60 a second, with long stills repeated.
static enum status variable_grid(struct probe *p, int64_t zero, struct err *err)
{
    const struct stamps *s = &p->frames;
    struct media_grid *g = &p->plan->video;
    AVRational tick = {1, VFR_TIMESCALE};
    const int64_t least = VFR_TIMESCALE / MAX_FPS * 9 / 10, fill = VFR_TIMESCALE / 1000 * FILL_MS;
    struct times t = {0};
    bool ok = times_add(&t, 0);
    int64_t last_len = VFR_TIMESCALE / 25;
    for (size_t i = 0; i < s->n && ok; i++) {
        int64_t at = av_rescale_q(s->p[i].pts - zero, s->tb, tick);
        if (media_ticks_to_us(at, VFR_TIMESCALE) > MEDIA_MAX_DURATION_US) {
            mem_free(t.p);
            return too_long(err);
        }
        int64_t before = t.p[t.n - 1];
        if (at - before > MAX_GAP_S * VFR_TIMESCALE) {
            mem_free(t.p);
            return err_set(err, STATUS_INVALID_ARGUMENT,
                           "a picture of the film stands still for more than an hour");
        }
        if (at < before + least)
            continue;
        last_len = at - before;
        while (ok && at - t.p[t.n - 1] > fill * 3 / 2)
            ok = times_add(&t, t.p[t.n - 1] + fill);
        ok = ok && times_add(&t, at);
    }
    if (s->n && s->p[s->n - 1].duration > 0)
        last_len = av_rescale_q(s->p[s->n - 1].duration, s->tb, tick);
    if (last_len < least)
        last_len = least;
    if (last_len > fill)
        last_len = fill;
    ok = ok && times_add(&t, t.p[t.n - 1] + last_len);
    if (!ok || t.n - 1 > MEDIA_MAX_FRAMES) {
        mem_free(t.p);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    }
    g->timescale = VFR_TIMESCALE;
    g->n_frames = (uint32_t)(t.n - 1);
    g->frame_times = t.p;
    g->duration = t.p[t.n - 1];
    p->plan->source.video_zero = zero;
    return STATUS_OK;
}

static enum status cut_video(struct probe *p, struct err *err)
{
    int64_t zero = p->plan->source.video_zero;
    struct media_grid *g = &p->plan->video;
    const struct stamps *s = &p->frames;
    struct media_keyframe *keys = mem_array(s->n, sizeof(*keys));
    if (!keys)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    size_t n = 0;
    AVRational tick = {1, (int)g->timescale};
    // A keyframe's place on the grid, half a frame late at most by rounding.
    for (size_t i = 0; i < s->n; i++)
        if (s->p[i].key)
            keys[n++] = (struct media_keyframe){
                .time = av_rescale_q_rnd(s->p[i].pts - zero, s->tb, tick, AV_ROUND_DOWN) -
                        (g->frame_ticks ? g->frame_ticks / 4 : 0),
                .ticks = s->p[i].pts,
                .offset = s->p[i].pos};
    enum status st = media_plan_cut_video(g, keys, n, err);
    mem_free(keys);
    return st;
}

// The grid of copies, where the pictures can be copied; p->pictures are then what "vcopy" is made
// of.
static enum status cut_copies(struct probe *p, bool *ret_fits, struct err *err)
{
    const struct stamps *s = &p->frames;
    *ret_fits = false;
    if (s->uneven)
        return STATUS_OK;
    p->pictures = mem_array(s->n, sizeof(*p->pictures));
    if (!p->pictures)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    for (size_t i = 0; i < s->n; i++)
        p->pictures[i] = (struct codec_picture){s->p[i].pts, s->p[i].pos, s->p[i].order,
                                                s->p[i].size, s->p[i].key};
    return codec_copy_cut(p->in, p->video, p->plan, p->pictures, s->n, ret_fits, err);
}

// Least delay by which x264 with up to three B-frames in two levels reorders: two frames.
static uint32_t reorder_shift(const struct media_grid *g)
{
    int64_t most = 0;
    if (!g->frame_times)
        return g->frame_ticks * 2;
    for (uint32_t i = 2; i <= g->n_frames; i++)
        if (g->frame_times[i] - g->frame_times[i - 2] > most)
            most = g->frame_times[i] - g->frame_times[i - 2];
    return (uint32_t)most;
}

static uint8_t color_code(int v, int unspecified_also)
{
    return v > 0 && v < 23 && v != unspecified_also ? (uint8_t)v : 2;
}

// The source's, but what is HDR becomes BT.709, and RGB gets that matrix (picture.c).
static void set_colors(struct media_rendition *r, const AVCodecParameters *par)
{
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(par->format);
    bool rgb = d && (d->flags & (AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL));
    if (par->color_trc == AVCOL_TRC_SMPTE2084 || par->color_trc == AVCOL_TRC_ARIB_STD_B67) {
        memset(r->color, AVCOL_SPC_BT709, sizeof(r->color));
        return;
    }
    r->color[0] = color_code(par->color_primaries, 0);
    r->color[1] = color_code(par->color_trc, 0);
    // YCgCo and the like are left unsaid: swscale does not know them either.
    r->color[2] = rgb ? AVCOL_SPC_BT709 : color_code(par->color_space, AVCOL_SPC_YCGCO);
}

static enum status add_ladder(struct probe *p, struct err *err)
{
    struct media_plan *plan = p->plan;
    const AVStream *st = p->in->fmt->streams[p->video];
    const struct media_grid *g = &plan->video;
    struct media_rational fps = {25, 1};
    uint32_t w, h;
    codec_display_size(st, &w, &h);
    int num = 25, den = 1;
    if (g->frame_ticks)
        av_reduce(&num, &den, g->timescale, g->frame_ticks, 1 << 20);
    else // to a thousandth, so that recipes stay readable
        av_reduce(&num, &den, (int64_t)g->n_frames * g->timescale * 1000 / g->duration, 1000,
                  1 << 20);
    if (num > 0 && den > 0)
        fps = (struct media_rational){num, den};
    plan->n_renditions = media_plan_ladder(w, h, fps, plan->renditions, 5);
    int64_t bytes = 0;
    for (size_t i = 0; i < p->frames.n; i++)
        bytes += p->frames.p[i].size;
    enum status s = codec_fit_ladder(p->in, plan, p->video, bytes, err);
    for (size_t i = 0; i < plan->n_renditions && s == STATUS_OK; i++) {
        struct media_rendition *r = &plan->renditions[i];
        r->preset = (uint8_t)p->options.preset;
        r->track = (uint8_t)p->video;
        r->timescale = g->timescale;
        r->cts_shift = reorder_shift(g);
        set_colors(r, st->codecpar);
        s = codec_rendition_finish(r, err);
    }
    return s;
}

// The ladder's rungs of 360 lines and more, and the top one, in the codecs that were asked for.
static enum status add_other_codecs(struct probe *p, struct err *err)
{
    struct media_plan *plan = p->plan;
    size_t n = plan->n_renditions;
    for (int codec = 0; codec < MEDIA_N_CODECS; codec++) {
        if (!(p->options.video_codecs >> codec & 1U) ||
            !codec_is_other_video((enum media_codec)codec))
            continue;
        for (size_t i = 0; i < n && plan->n_renditions < MEDIA_MAX_RENDITIONS; i++) {
            const struct media_rendition *rung = &plan->renditions[i];
            struct media_rendition *r = &plan->renditions[plan->n_renditions];
            uint32_t side = rung->width < rung->height ? rung->width : rung->height;
            if (rung->lazy || (i > 0 && side < LEAST_OTHER_SIDE) ||
                !codec_other_rung(rung, (enum media_codec)codec, r))
                continue;
            enum status s = codec_rendition_finish(r, err);
            if (s != STATUS_OK)
                return s;
            plan->n_renditions++;
        }
    }
    return STATUS_OK;
}

static enum status plan_video(struct probe *p, int64_t zero, struct err *err)
{
    AVRational rate;
    int64_t places = 0;
    enum status s;
    if (find_rate(p, &rate, &places))
        s = constant_grid(p, rate, places, zero, err);
    else
        s = variable_grid(p, zero, err);
    bool copied = false;
    if (s == STATUS_OK)
        s = cut_video(p, err);
    if (s == STATUS_OK)
        s = cut_copies(p, &copied, err);
    if (s == STATUS_OK)
        s = add_ladder(p, err);
    if (s == STATUS_OK)
        s = add_other_codecs(p, err);
    if (s == STATUS_OK && copied)
        s = codec_copy_add(p->in, p->video, p->plan, p->pictures, p->frames.n, err);
    return s == STATUS_OK ? codec_burn_add(p->plan, err) : s;
}

// ---- putting it together ----

static int64_t to_us(int64_t t, AVRational tb)
{
    return av_rescale_q(t, tb, AV_TIME_BASE_Q);
}

// Time 0 of the timeline, in us of source time. MP4 and Matroska say it themselves unless what they
// say would mean minutes of nothing (a recording that was joined in the middle), or so little that
// it stems from a muxer that had to write no negative times. Sound that leads by less than a few
// pictures is what an encoder put before it: repeating the first picture for it would add pictures
// that the film does not have.
static int64_t find_zero(const struct probe *p)
{
    int64_t first = INT64_MAX, picture = INT64_MAX;
    if (p->frames.n)
        first = picture = to_us(p->frames.p[0].pts, p->frames.tb);
    int64_t heard = codec_sounds_first_us(p->in, &p->sounds);
    if (heard < first)
        first = heard;
    bool own = codec_is_mov(p->in) || codec_is_matroska(p->in);
    if (own && first > -1000000 && first < 5000000 && (first < 0 || first > SMALL_LEAD_US))
        first = 0;
    bool close = picture != INT64_MAX && picture > first && picture - first <= SMALL_LEAD_US;
    return close ? picture : first;
}

static enum media_seek seek_mode(const char *format)
{
    if (str_starts_with(format, "mpeg")) // transport and program streams: no index at all
        return MEDIA_SEEK_BYTES;
    return str_eq(format, "ogg") || str_eq(format, "gif") ? MEDIA_SEEK_NONE : MEDIA_SEEK_TIME;
}

// Drop frames before time 0, but keep the last of them when nothing else is there at 0.
static void trim_start(struct stamps *s, int64_t zero_us)
{
    int64_t zero = av_rescale_q(zero_us, AV_TIME_BASE_Q, s->tb);
    size_t n = 0;
    while (n + 1 < s->n && s->p[n + 1].pts <= zero)
        n++;
    s->uneven |= s->n && s->p[0].pts < zero;
    if (n) {
        s->n -= n;
        memmove(s->p, s->p + n, s->n * sizeof(*s->p));
    }
    if (s->n && s->p[0].pts < zero)
        s->p[0].pts = zero;
}

// Where packets tell only when they are decoded (AVI), pictures come out of a decoder that reorders
// with the times of later packets: all are that much late.
static void take_off_delay(struct probe *p)
{
    if (!p->no_pts || p->frames.n == 0 || p->first_shown == AV_NOPTS_VALUE)
        return;
    int64_t delay = p->first_shown - p->frames.p[0].pts;
    if (delay > 0 && av_compare_ts(delay, p->frames.tb, 1, (AVRational){1, 1}) <= 0)
        p->plan->source.video_zero += delay;
}

static enum status make_plan(struct probe *p, struct err *err)
{
    struct media_plan *plan = p->plan;
    int64_t zero = find_zero(p);
    plan->source.timeline_zero_us = zero;
    plan->source.seek = seek_mode(p->in->fmt->iformat->name);
    plan->kind = p->video >= 0 ? MEDIA_VIDEO : MEDIA_AUDIO;
    str_copy(plan->build, sizeof(plan->build), codec_build());
    enum status s = STATUS_OK;
    if (p->video >= 0) {
        trim_start(&p->frames, zero);
        plan->source.tracks[p->video].chosen = true;
        s = plan_video(p, av_rescale_q(zero, AV_TIME_BASE_Q, p->frames.tb), err);
        take_off_delay(p);
    }
    if (s == STATUS_OK && p->sounds.n)
        s = codec_sounds_plan(p->in, &p->sounds, plan, err);
    if (s != STATUS_OK)
        return s;
    plan->source.duration_us = media_plan_duration_us(plan);
    if (plan->source.duration_us > 0)
        plan->source.bitrate_bps =
            media_scale_near(plan->source.size_bytes, 8000000, plan->source.duration_us);
    media_plan_set_bandwidth(plan);
    s = media_plan_check(plan, err);
    return s == STATUS_OK ? s : err_wrap(err, STATUS_INTERNAL, "probe");
}

// Sound that cannot be decoded does not spoil a film; a film whose picture cannot be is refused.
static enum status try_streams(struct probe *p, struct err *err)
{
    enum status s = STATUS_OK;
    if (p->video >= 0)
        s = try_picture(p, err);
    if (s != STATUS_OK || p->sounds.n == 0)
        return s;
    if (p->video >= 0)
        s = codec_input_seek(p->in, p->sounds.t[0].stream, MEDIA_SEEK_NONE, MEDIA_TIME_UNKNOWN, -1,
                             err);
    if (s == STATUS_OK)
        s = codec_sounds_try(p->in, &p->sounds, err);
    return s == STATUS_INVALID_ARGUMENT && p->video >= 0 ? STATUS_OK : s;
}

// An index that tells of every packet: reading on needs none of the data.
static bool has_full_index(const struct probe *p)
{
    if (!codec_is_mov(p->in))
        return false;
    for (unsigned i = 0; i < p->in->fmt->nb_streams; i++) {
        const AVStream *st = p->in->fmt->streams[i];
        if (st->discard == AVDISCARD_ALL)
            continue;
        int n = avformat_index_get_entries_count(st);
        if (n == 0 || st->nb_frames <= 0 || n < st->nb_frames)
            return false; // fragments follow
    }
    return true;
}

static enum status run(struct probe *p, struct err *err)
{
    enum status s = choose_streams(p, err);
    if (s == STATUS_OK)
        s = try_streams(p, err);
    if (s != STATUS_OK)
        return s;
    codec_facts(p->in, &p->plan->source);
    int anchor = p->video >= 0 ? p->video : p->sounds.t[0].stream;
    s = codec_input_seek(p->in, anchor, MEDIA_SEEK_NONE, MEDIA_TIME_UNKNOWN, -1, err);
    if (s != STATUS_OK)
        return s;
    if (p->video >= 0)
        p->frames.tb = p->in->fmt->streams[p->video]->time_base;
    if (has_full_index(p)) { // what a parser sees in bytes that were not fetched would be wrong
        p->in->sparse = true;
        p->in->fmt->flags |= AVFMT_FLAG_NOPARSE;
    }
    s = scan(p, err);
    if (s != STATUS_OK)
        return s;
    if (p->video >= 0 && codec_is_matroska(p->in))
        use_clusters(p);
    fill_pts(p);
    sort_stamps(&p->frames);
    if (p->video >= 0 && p->frames.n == 0)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "the film has no pictures: damaged or cut off");
    codec_sounds_end(p->in, &p->sounds);
    if (p->video < 0 && p->sounds.n == 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the file holds no sound: damaged or cut off");
    return make_plan(p, err);
}

enum status codec_probe(const struct codec_source *src, const struct codec_sink *progress,
                        struct media_plan **ret, struct err *err)
{
    return codec_probe_as(src, NULL, progress, ret, err);
}

enum status codec_probe_as(const struct codec_source *src, const struct media_options *options,
                           const struct codec_sink *progress, struct media_plan **ret,
                           struct err *err)
{
    AUTO(media_plan_free_p) struct media_plan *plan = media_plan_new();
    struct probe p = {.progress = progress, .plan = plan};
    if (options)
        p.options = *options;
    if (!plan)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    enum status s = codec_input_open(src, &p.in, err);
    if (s == STATUS_OK)
        s = run(&p, err);
    mem_free(p.frames.p);
    mem_free(p.pictures);
    codec_input_close(p.in);
    if (s == STATUS_OK)
        *ret = TAKE(plan);
    return s;
}
