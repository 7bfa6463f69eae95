// A VERIFY task: whether published segments are what the plan says. Each is decoded as a player
// would: without damage, with all its pictures or packets; and a few of its pictures are held
// against the source's at the same times, both so small that no choice of an encoder shows. Wrong
// pictures are wildly unlike, so the bound is wide and most of a segment's samples must be past it.
//
// The source is decoded once for all renditions of a segment.
#include <string.h>

#include "base/mem.h"
#include "codec/internal.h"
#include "media/checks.h"

enum {
    THUMB_W = 32,
    THUMB_H = 18,
    N_SAMPLES = 3,   // pictures of a segment
    MAX_UNLIKE = 28, // mean difference of brightness, of 255, of the same picture
};

struct sample {
    int64_t want; // grid time; its picture is shown then
    uint8_t thumb[THUMB_W * THUMB_H];
    bool is_there;
    int best; // the least difference to a picture of the source around that time; -1: none yet
};
struct check {
    size_t rendition;
    uint32_t segment;
    int64_t offset;
    uint32_t size;
    struct sample samples[N_SAMPLES];
};
struct verify {
    const struct codec_source *src; // all of it
    const struct media_plan *plan;
    const struct media_task *task;
    struct codec_input *in; // the source; NULL: nothing to compare with
    AVCodecContext *dec;
    int stream;
    struct codec_scaler *small; // of the source's pictures
};

static enum status refuse(const struct verify *v, const struct check *c, struct err *err,
                          const char *what, long long n, long long planned)
{
    return err_set(err, STATUS_INVALID_ARGUMENT, "%s/%u: %lld %s where the plan has %lld",
                   v->plan->renditions[c->rendition].id, c->segment, n, what, planned);
}

// ---------------------------------------------------------------- small pictures

static bool make_thumb(struct codec_scaler *s, const AVFrame *f, uint8_t *dst)
{
    struct err ignored = ERR_INIT;
    AUTO(codec_frame_free_p) AVFrame *small = NULL;
    if (codec_scaler_run(s, f, &small, &ignored) != STATUS_OK)
        return false;
    for (int y = 0; y < THUMB_H; y++)
        memcpy(dst + y * THUMB_W, small->data[0] + (ptrdiff_t)y * small->linesize[0], THUMB_W);
    return true;
}

static int difference(const uint8_t *a, const uint8_t *b)
{
    int sum = 0;
    for (int i = 0; i < THUMB_W * THUMB_H; i++)
        sum += a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];
    return sum / (THUMB_W * THUMB_H);
}

// ---------------------------------------------------------------- a published segment

static void take_sample(struct codec_scaler *small, struct check *c, const AVFrame *f, uint32_t at,
                        uint32_t n, int64_t start, int64_t frame_ticks)
{
    for (uint32_t i = 0; i < N_SAMPLES; i++) {
        struct sample *s = &c->samples[i];
        if (s->is_there || at != i * n / N_SAMPLES)
            continue;
        s->want = start + (int64_t)at * frame_ticks;
        s->best = -1;
        s->is_there = make_thumb(small, f, s->thumb);
    }
}

static bool is_damaged(const AVFrame *f)
{
    return f->decode_error_flags != 0 || (f->flags & AV_FRAME_FLAG_CORRUPT) != 0;
}

// Everything that comes out of the decoder now; ret_n: pictures so far.
static bool take_frames(struct check *c, const struct media_segment *seg, uint32_t planned,
                        AVCodecContext *dec, struct codec_scaler *small, AVFrame *f,
                        uint32_t *ret_n)
{
    int r = 0;
    while ((r = avcodec_receive_frame(dec, f)) >= 0) {
        if (is_damaged(f))
            return false;
        if (small && planned)
            take_sample(small, c, f, *ret_n, planned, seg->start, seg->duration / planned);
        *ret_n += 1;
        av_frame_unref(f);
    }
    return r == AVERROR(EAGAIN) || r == AVERROR_EOF;
}

static enum status decode_segment(struct verify *v, struct check *c, struct codec_input *in,
                                  AVCodecContext *dec, struct codec_scaler *small, struct err *err)
{
    const struct media_rendition *r = &v->plan->renditions[c->rendition];
    const struct media_segment *seg =
        &media_rendition_grid(v->plan, c->rendition)->segments[c->segment];
    uint32_t planned = media_rendition_samples(v->plan, c->rendition, c->segment);
    uint32_t n_packets = 0, n_frames = 0;
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AUTO(codec_frame_free_p) AVFrame *f = av_frame_alloc();
    if (!pkt || !f)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "verify: out of memory");
    bool ok = true;
    for (bool end = false; ok && !end;) {
        int got = av_read_frame(in->fmt, pkt);
        if (in->failed || got == AVERROR(ENOMEM))
            return codec_error(in, got, "verify", err);
        end = got < 0;
        n_packets += !end;
        int sent = avcodec_send_packet(dec, end ? NULL : pkt);
        av_packet_unref(pkt);
        ok = (sent >= 0 || sent == AVERROR_EOF) &&
             take_frames(c, seg, planned, dec, small, f, &n_frames);
    }
    if (!ok)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s/%u: it cannot be decoded without damage",
                       r->id, c->segment);
    if (n_packets != planned)
        return refuse(v, c, err, "packets", n_packets, planned);
    if (r->kind == MEDIA_VIDEO && n_frames != planned)
        return refuse(v, c, err, "pictures", n_frames, planned);
    return STATUS_OK;
}

static enum status check_segment(struct verify *v, struct check *c, struct err *err)
{
    const struct media_rendition *r = &v->plan->renditions[c->rendition];
    struct codec_source part = *v->src;
    part.base = c->offset;
    part.size = c->size;
    AUTO(codec_input_close_p) struct codec_input *in = NULL;
    AUTO(codec_context_free_p) AVCodecContext *dec = NULL;
    AUTO(codec_scaler_free_p) struct codec_scaler *small = NULL;
    enum status s = codec_input_open(&part, &in, err);
    if (s == STATUS_OK && in->fmt->nb_streams != 1)
        return refuse(v, c, err, "tracks", in->fmt->nb_streams, 1);
    if (s == STATUS_OK)
        s = codec_decoder_open(in, 0, v->task->threads, &dec, err);
    if (s != STATUS_OK)
        return s == STATUS_INVALID_ARGUMENT ? err_wrap(err, s, "%s/%u", r->id, c->segment) : s;
    dec->err_recognition |= AV_EF_EXPLODE;
    if (r->kind == MEDIA_VIDEO && !(small = codec_scaler_new(THUMB_W, THUMB_H, 0)))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "verify: out of memory");
    return decode_segment(v, c, in, dec, small, err);
}

// ---------------------------------------------------------------- the source beside it

static int64_t grid_time(const struct verify *v, const AVFrame *f)
{
    if (f->best_effort_timestamp == AV_NOPTS_VALUE)
        return MEDIA_TIME_UNKNOWN;
    return av_rescale_q(f->best_effort_timestamp - v->plan->source.video_zero,
                        v->in->fmt->streams[v->stream]->time_base,
                        (AVRational){1, (int)v->plan->video.timescale});
}

static void hold_against(struct verify *v, struct sample *s, const AVFrame *f)
{
    uint8_t thumb[THUMB_W * THUMB_H];
    if (!make_thumb(v->small, f, thumb))
        return;
    int d = difference(thumb, s->thumb);
    if (s->best < 0 || d < s->best)
        s->best = d;
}

// A picture of the source at `at`, and the one before it, which is shown until then.
static void on_source_frame(struct verify *v, struct check *checks, size_t n, const AVFrame *before,
                            const AVFrame *f, int64_t at, int64_t around)
{
    for (size_t i = 0; i < n * N_SAMPLES; i++) {
        struct sample *s = &checks[i / N_SAMPLES].samples[i % N_SAMPLES];
        if (!s->is_there || at < s->want - around)
            continue;
        if (s->best < 0 && before)
            hold_against(v, s, before);
        if (at <= s->want + around)
            hold_against(v, s, f);
    }
}

// A source that cannot be read now says nothing about what was made of it.
static enum status of_source(enum status s)
{
    return s == STATUS_INVALID_ARGUMENT ? STATUS_FAILED_PRECONDITION : s;
}

static enum status compare(struct verify *v, struct check *checks, size_t n,
                           const struct media_segment *seg, int64_t around, struct err *err)
{
    enum media_seek how = v->plan->source.seek;
    int64_t enter = how == MEDIA_SEEK_NONE ? MEDIA_TIME_UNKNOWN : seg->seek_ticks;
    enum status s = codec_input_seek(v->in, v->stream, how, enter, seg->seek_offset, err);
    if (s != STATUS_OK)
        return of_source(s);
    avcodec_flush_buffers(v->dec);
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AUTO(codec_frame_free_p) AVFrame *f = av_frame_alloc();
    AUTO(codec_frame_free_p) AVFrame *before = av_frame_alloc();
    if (!pkt || !f || !before)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "verify: out of memory");
    const AVCodecParameters *par = v->in->fmt->streams[v->stream]->codecpar;
    for (bool end = false, past = false; !end && !past;) {
        int r = codec_input_read(v->in, pkt);
        end = r < 0;
        if (v->in->failed || r == AVERROR(ENOMEM))
            return codec_error(v->in, r, "verify", err);
        if (end || pkt->stream_index == v->stream)
            (void)avcodec_send_packet(v->dec, end ? NULL : pkt); // the source may be damaged
        av_packet_unref(pkt);
        while (!past && avcodec_receive_frame(v->dec, f) >= 0) {
            int64_t at = grid_time(v, f);
            codec_frame_fill_colors(f, par);
            if (at != MEDIA_TIME_UNKNOWN)
                on_source_frame(v, checks, n, before->data[0] ? before : NULL, f, at, around);
            past = at != MEDIA_TIME_UNKNOWN && at > seg->start + seg->duration + around;
            av_frame_unref(before);
            av_frame_move_ref(before, f);
        }
    }
    return STATUS_OK;
}

static enum status judge(const struct verify *v, const struct check *c, struct err *err)
{
    int n = 0, n_unlike = 0, least = 255;
    for (int i = 0; i < N_SAMPLES; i++) {
        const struct sample *s = &c->samples[i];
        if (!s->is_there || s->best < 0)
            continue;
        n++;
        n_unlike += s->best > MAX_UNLIKE;
        if (s->best > MAX_UNLIKE && s->best < least)
            least = s->best;
    }
    if (2 * n_unlike <= n)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID_ARGUMENT,
                   "%s/%u: its pictures are not the film's (difference %d of 255)",
                   v->plan->renditions[c->rendition].id, c->segment, least);
}

// ---------------------------------------------------------------- the task

// The source's decoder.
static enum status open_source(struct verify *v, struct err *err)
{
    const struct media_track *track = media_plan_track(v->plan, MEDIA_TRACK_VIDEO);
    if (!track || media_rendition_grid(v->plan, v->task->renditions[0]) != &v->plan->video)
        return STATUS_OK;
    enum status s = codec_input_open(v->src, &v->in, err);
    if (s == STATUS_OK && track->index >= v->in->fmt->nb_streams)
        return err_set(err, STATUS_FAILED_PRECONDITION, "the plan is not this source's");
    if (s != STATUS_OK)
        return of_source(s);
    codec_input_use_plan(v->in, v->plan);
    v->stream = track->index;
    for (unsigned i = 0; i < v->in->fmt->nb_streams; i++)
        v->in->fmt->streams[i]->discard = (int)i == v->stream ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    s = of_source(codec_decoder_open(v->in, v->stream, v->task->threads, &v->dec, err));
    v->small = s == STATUS_OK ? codec_scaler_new(THUMB_W, THUMB_H, track->rotation) : NULL;
    return s != STATUS_OK || v->small ? s
                                      : err_set(err, STATUS_RESOURCE_EXHAUSTED, "verify: memory");
}

// All renditions of one segment; checks: one for each rendition of the task.
static enum status verify_segment(struct verify *v, struct check *checks, struct err *err)
{
    size_t n = v->task->n_renditions;
    enum status s = STATUS_OK;
    for (size_t i = 0; s == STATUS_OK && i < n; i++)
        if (!v->plan->renditions[checks[i].rendition].copy)
            s = check_segment(v, &checks[i], err);
    if (s != STATUS_OK || !v->in)
        return s;
    const struct media_segment *seg = &v->plan->video.segments[checks[0].segment];
    uint32_t planned = media_rendition_samples(v->plan, checks[0].rendition, checks[0].segment);
    s = compare(v, checks, n, seg, planned ? 3 * seg->duration / planned / 2 : 0, err);
    for (size_t i = 0; s == STATUS_OK && i < n; i++)
        s = judge(v, &checks[i], err);
    return s;
}

// The table at the end of the source, as checks in the order of segments.
static enum status read_table(const struct codec_source *all, const struct media_plan *plan,
                              const struct media_task *t, struct check *checks, struct err *err)
{
    size_t n = (size_t)t->n_renditions * t->n_segments;
    AUTO(mem_free_p) uint8_t *table = mem_array(n, 4);
    if (!table)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "verify: out of memory");
    int64_t at = media_checks_offset(plan->source.size_bytes);
    enum status s =
        of_source(codec_source_read(all, at, table, 4 * (int64_t)n, "what is to be verified", err));
    at += 4 * (int64_t)n;
    for (size_t i = 0; s == STATUS_OK && i < n; i++) {
        size_t r = i / t->n_segments, k = i % t->n_segments;
        uint32_t size = (uint32_t)table[4 * i] << 24 | (uint32_t)table[4 * i + 1] << 16 |
                        (uint32_t)table[4 * i + 2] << 8 | table[4 * i + 3];
        checks[k * t->n_renditions + r] = (struct check){.rendition = t->renditions[r],
                                                         .segment = t->first_segment + (uint32_t)k,
                                                         .offset = at,
                                                         .size = size};
        at += size;
        if (size == 0 || at > all->size)
            return err_set(err, STATUS_INTERNAL, "verify: the table is damaged");
    }
    return s;
}

static bool is_of_plan(const struct media_plan *plan, const struct media_task *t)
{
    for (uint32_t i = 0; i < t->n_renditions; i++) {
        if (t->renditions[i] >= plan->n_renditions ||
            media_rendition_grid(plan, t->renditions[i]) !=
                media_rendition_grid(plan, t->renditions[0]) ||
            t->first_segment + t->n_segments >
                media_rendition_grid(plan, t->renditions[i])->n_segments)
            return false;
    }
    return true;
}

enum status codec_verify(const struct codec_source *src, const struct media_plan *plan,
                         const struct media_task *task, const struct codec_sink *sink,
                         struct err *err)
{
    struct codec_source source = *src;
    source.size = plan->source.size_bytes;
    if (!is_of_plan(plan, task) || media_checks_offset(source.size) >= src->size)
        return err_set(err, STATUS_INTERNAL, "verify: the task and its plan disagree");
    AUTO(mem_free_p)
    struct check *checks =
        mem_array((size_t)task->n_renditions * task->n_segments, sizeof(struct check));
    if (!checks)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "verify: out of memory");
    struct verify v = {.src = &source, .plan = plan, .task = task};
    enum status s = read_table(src, plan, task, checks, err);
    if (s == STATUS_OK)
        s = open_source(&v, err);
    for (uint32_t k = 0; s == STATUS_OK && k < task->n_segments; k++) {
        s = verify_segment(&v, &checks[(size_t)k * task->n_renditions], err);
        if (sink->progress)
            sink->progress(sink->ud, k + 1, task->n_segments);
    }
    codec_scaler_free(v.small);
    avcodec_free_context(&v.dec);
    codec_input_close(v.in);
    return s;
}
