// Audio chunks. Sound is decoded into 48 kHz stereo for a window of the timeline, then each segment
// is encoded by an encoder of its own with warm-up frames before and tail frames after it that are
// thrown away; so a segment's bytes do not depend on which others are asked for.
//
// Decoders remember: noise that stands for what was not coded (AAC, HE-AAC) and dither (MP2) go on
// from packet to packet. So every window has a decoder of its own that begins at a packet which the
// window alone decides: where the source can be searched by time a window is one segment, elsewhere
// each is decoded from the source's first packet.
//
// Positions: a decoded frame lies where its time stamp says; coarse time stamps (Matroska's
// milliseconds, MPEG's 90 kHz) are snapped to the comb that the plan holds, so that joins are exact
// to the sample. Resampling starts where an input and an output sample fall together.
#include <string.h>

#include <libavutil/channel_layout.h>
#include <libavutil/opt.h>
#include <libswresample/swresample.h>

#include "base/mem.h"
#include "codec/internal.h"

#define WARMUP_FRAMES 4
#define TAIL_FRAMES 2
#define GROUP_SEGMENTS 16    // decoded at once when it is from the first packet: about a minute
#define RESAMPLE_WARMUP 4096 // output samples before the window
#define RESAMPLE_TAIL 2048   // input samples after it
#define DECODE_WARMUP_MS 700 // for decoders that need to settle: HE-AAC, Opus, MP3
#define CONVERT_MAX 65536    // input samples converted at once

struct window {
    int64_t begin, end; // 48 kHz presentation samples
    float *side[2];
};

struct audio_job {
    struct codec_input *in;
    const struct media_plan *plan;
    const struct media_task *task;
    const struct codec_sink *sink;
    int stream;
    AVCodecContext *dec;
    int64_t zero; // stream ticks
    struct window w;
    // decoding one window
    int64_t first_packet; // earlier ones are not given to the decoder; unknown: all are
    int rate;
    struct SwrContext *mix; // any format to stereo float, same rate
    AVChannelLayout mix_layout;
    int mix_format;
    struct SwrContext *resample; // NULL at 48 kHz
    int64_t fed, feed_end;       // input samples at `rate`, timeline positions
    int64_t out;                 // next 48 kHz sample that comes out
    float *stereo[2];            // CONVERT_MAX samples each
    int64_t expected;            // where the next frame begins if it has no time of its own
    uint32_t done, total;
};

// ---- into the window ----

static void put_window(struct audio_job *j, float *const in[2], int64_t n)
{
    int64_t from = j->out < j->w.begin ? j->w.begin : j->out;
    int64_t to = j->out + n > j->w.end ? j->w.end : j->out + n;
    for (size_t c = 0; c < 2 && from < to; c++)
        memcpy(j->w.side[c] + (from - j->w.begin), in[c] + (from - j->out),
               (size_t)(to - from) * sizeof(float));
    j->out += n;
}

// n stereo samples at the source's rate, in order.
static enum status feed_samples(struct audio_job *j, float *const in[2], int64_t n, struct err *err)
{
    j->fed += n;
    if (!j->resample) {
        put_window(j, in, n);
        return STATUS_OK;
    }
    int room = (int)av_rescale_rnd(n, MEDIA_AUDIO_RATE, j->rate, AV_ROUND_UP) + 512;
    float *out[2] = {mem_array((size_t)room, sizeof(float)),
                     mem_array((size_t)room, sizeof(float))};
    enum status s = STATUS_OK;
    int got = -1;
    if (out[0] && out[1])
        got = swr_convert(j->resample, (uint8_t **)out, room, (const uint8_t **)(uintptr_t)in,
                          (int)n);
    if (got < 0)
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "resample: out of memory");
    else
        put_window(j, out, got);
    mem_free(out[0]);
    mem_free(out[1]);
    return s;
}

static enum status feed_silence(struct audio_job *j, int64_t until, struct err *err)
{
    enum status s = STATUS_OK;
    while (s == STATUS_OK && j->fed < until) {
        int64_t n = until - j->fed < CONVERT_MAX ? until - j->fed : CONVERT_MAX;
        memset(j->stereo[0], 0, (size_t)n * sizeof(float));
        memset(j->stereo[1], 0, (size_t)n * sizeof(float));
        s = feed_samples(j, j->stereo, n, err);
    }
    return s;
}

// ---- decoded frames ----

static enum status open_swr(struct SwrContext **ret, const AVChannelLayout *in_layout,
                            int in_format, int in_rate, int out_rate, struct err *err)
{
    AVChannelLayout stereo = AV_CHANNEL_LAYOUT_STEREO, in = {0};
    swr_free(ret);
    // Channels without places: the usual ones for that many.
    if (in_layout->order == AV_CHANNEL_ORDER_UNSPEC || in_layout->order == AV_CHANNEL_ORDER_CUSTOM)
        av_channel_layout_default(&in, in_layout->nb_channels);
    else
        (void)av_channel_layout_copy(&in, in_layout);
    int n = swr_alloc_set_opts2(ret, &stereo, AV_SAMPLE_FMT_FLTP, out_rate, &in, in_format, in_rate,
                                0, NULL);
    if (n >= 0)
        n = av_opt_set_double(*ret, "rematrix_maxval", 1.0, 0); // a downmix does not clip
    if (n >= 0)
        n = swr_init(*ret);
    av_channel_layout_uninit(&in);
    if (n < 0) {
        swr_free(ret);
        return err_set(err,
                       n == AVERROR(ENOMEM) ? STATUS_RESOURCE_EXHAUSTED : STATUS_INVALID_ARGUMENT,
                       "sound of %d channels cannot be converted", in_layout->nb_channels);
    }
    return STATUS_OK;
}

static enum status prepare_mix(struct audio_job *j, const AVFrame *f, struct err *err)
{
    if (j->mix && f->format == j->mix_format &&
        av_channel_layout_compare(&f->ch_layout, &j->mix_layout) == 0)
        return STATUS_OK;
    j->mix_format = f->format;
    av_channel_layout_uninit(&j->mix_layout);
    if (av_channel_layout_copy(&j->mix_layout, &f->ch_layout) < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    return open_swr(&j->mix, &f->ch_layout, f->format, j->rate, j->rate, err);
}

// Source samples from timeline 0 to the first sample of a frame.
static int64_t frame_position(const struct audio_job *j, const AVFrame *f)
{
    const AVStream *st = j->in->fmt->streams[j->stream];
    const struct media_track *track = &j->plan->source.tracks[j->stream];
    int64_t t = f->best_effort_timestamp;
    if (t == AV_NOPTS_VALUE)
        return j->expected;
    int64_t at = av_rescale_q(t - j->zero, st->time_base, (AVRational){1, j->rate});
    if (track->frame_samples == 0)
        return at;
    // Within two ticks of a tooth it is that tooth; a frame cut at its start is known by its end.
    int64_t tooth = track->frame_samples,
            near = av_rescale_q(2, st->time_base, (AVRational){1, j->rate});
    const int64_t marks[2] = {0, f->nb_samples};
    for (size_t i = 0; i < N_ELEMENTS(marks); i++) {
        int64_t d = at + marks[i] - track->origin;
        int64_t k = media_scale_near(d, 1, tooth), off = d - k * tooth;
        if (off >= -near && off <= near)
            return at - off;
    }
    return at;
}

// Channels' pointers moved on by n samples, for planar and packed formats alike.
static void skip_samples(const AVFrame *f, int n, const uint8_t *ret[AV_NUM_DATA_POINTERS * 8])
{
    int planar = av_sample_fmt_is_planar(f->format), size = av_get_bytes_per_sample(f->format);
    int planes = planar ? f->ch_layout.nb_channels : 1;
    ptrdiff_t step = (ptrdiff_t)n * size * (planar ? 1 : f->ch_layout.nb_channels);
    for (int i = 0; i < planes && i < AV_NUM_DATA_POINTERS * 8; i++)
        ret[i] = f->extended_data[i] + step;
}

static enum status take_frame(struct audio_job *j, const AVFrame *f, struct err *err)
{
    int64_t at = frame_position(j, f), n = f->nb_samples;
    j->expected = at + n;
    if (at + n <= j->fed || f->sample_rate != j->rate || n <= 0)
        return STATUS_OK; // before the window, or not what the stream said: silence stands for it
    enum status s = prepare_mix(j, f, err);
    if (s == STATUS_OK && at > j->fed)
        s = feed_silence(j, at < j->feed_end ? at : j->feed_end, err);
    while (s == STATUS_OK && j->fed < at + n && j->fed < j->feed_end) {
        const uint8_t *in[AV_NUM_DATA_POINTERS * 8] = {NULL};
        int from = (int)(j->fed - at);
        int64_t part = n - from < CONVERT_MAX ? n - from : CONVERT_MAX;
        skip_samples(f, from, in);
        int got = swr_convert(j->mix, (uint8_t **)j->stereo, (int)part, in, (int)part);
        if (got != part)
            return err_set(err, STATUS_INTERNAL, "sound: conversion lost samples");
        s = feed_samples(j, j->stereo, part, err);
    }
    return s;
}

// ---- filling a window ----

static enum status begin_window(struct audio_job *j, struct err *err)
{
    int64_t g = av_gcd(MEDIA_AUDIO_RATE, j->rate), in_step = j->rate / g,
            out_step = MEDIA_AUDIO_RATE / g;
    int64_t from = j->w.begin - (j->rate == MEDIA_AUDIO_RATE ? 0 : RESAMPLE_WARMUP);
    int64_t k = from > 0 ? from / out_step : 0;
    j->fed = k * in_step;
    j->out = k * out_step;
    j->feed_end = av_rescale_rnd(j->w.end, j->rate, MEDIA_AUDIO_RATE, AV_ROUND_UP) + RESAMPLE_TAIL;
    j->expected = j->fed;
    if (j->rate == MEDIA_AUDIO_RATE)
        return STATUS_OK;
    AVChannelLayout stereo = AV_CHANNEL_LAYOUT_STEREO;
    return open_swr(&j->resample, &stereo, AV_SAMPLE_FMT_FLTP, j->rate, MEDIA_AUDIO_RATE, err);
}

static bool is_before_start(const struct audio_job *j, const AVPacket *pkt)
{
    int64_t t = pkt->pts != AV_NOPTS_VALUE ? pkt->pts : pkt->dts;
    return j->first_packet != MEDIA_TIME_UNKNOWN && t != AV_NOPTS_VALUE &&
           t + (pkt->duration > 0 ? pkt->duration : 0) <= j->first_packet;
}

// Decode until the window is full or the source ends. ret_late: the first frame lies behind the
// window's beginning, so decoding should have started earlier.
static enum status decode(struct audio_job *j, bool last_try, bool *ret_late, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AUTO(codec_frame_free_p) AVFrame *frame = av_frame_alloc();
    if (!pkt || !frame)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    bool any = false;
    *ret_late = false;
    for (bool end = false; !end && j->fed < j->feed_end;) {
        int r = codec_input_read(j->in, pkt);
        end = r < 0;
        if (j->in->failed || r == AVERROR(ENOMEM)) {
            av_packet_unref(pkt);
            return codec_error(j->in, r, "sound", err);
        }
        if (!end && (pkt->stream_index != j->stream || is_before_start(j, pkt))) {
            av_packet_unref(pkt);
            continue;
        }
        (void)avcodec_send_packet(j->dec, end ? NULL : pkt); // damage is passed over
        av_packet_unref(pkt);
        while (j->fed < j->feed_end && avcodec_receive_frame(j->dec, frame) >= 0) {
            if (!any && !last_try && frame_position(j, frame) > j->fed) {
                *ret_late = true;
                return STATUS_OK;
            }
            any = true;
            enum status s = take_frame(j, frame, err);
            av_frame_unref(frame);
            if (s != STATUS_OK)
                return s;
        }
    }
    return STATUS_OK;
}

static enum status fill_window(struct audio_job *j, struct err *err)
{
    const AVStream *st = j->in->fmt->streams[j->stream];
    enum media_seek how = j->plan->source.tracks[j->stream].seek;
    for (int attempt = 0; attempt < 3; attempt++) {
        enum status s = begin_window(j, err);
        if (s != STATUS_OK)
            return s;
        int64_t ms = av_rescale(j->fed, 1000, j->rate) - DECODE_WARMUP_MS - attempt * 5000;
        bool last = attempt == 2 || ms <= 0 || how == MEDIA_SEEK_NONE;
        int64_t ticks = last ? MEDIA_TIME_UNKNOWN
                             : j->zero + av_rescale_q(ms, (AVRational){1, 1000}, st->time_base);
        s = codec_input_seek_sound(j->in, j->plan, j->stream, how, ticks, err);
        if (s == STATUS_INVALID_ARGUMENT && !last)
            continue;
        if (s != STATUS_OK)
            return s;
        j->first_packet = ticks;
        avcodec_free_context(&j->dec);
        s = codec_decoder_open(j->in, j->stream, 1, &j->dec, err);
        bool late = false;
        if (s == STATUS_OK)
            s = decode(j, last, &late, err);
        if (s != STATUS_OK)
            return s;
        if (!late)
            break;
    }
    return feed_silence(j, j->feed_end, err); // the source ended inside the window
}

// ---- encoding ----

struct packets {
    struct buf data;
    struct media_sample *samples;
    size_t *offsets;
    uint32_t skip, want, n; // packets to drop first, to keep, kept
};

static enum status collect(AVCodecContext *enc, struct packets *p, uint32_t frame, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    if (!pkt)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
    int r;
    while ((r = avcodec_receive_packet(enc, pkt)) >= 0) {
        if (p->skip > 0) {
            p->skip--;
        } else if (p->n < p->want) {
            p->offsets[p->n] = p->data.len;
            p->samples[p->n++] =
                (struct media_sample){.size = (uint32_t)pkt->size, .duration = frame, .sync = true};
            buf_append(&p->data, pkt->data, (size_t)pkt->size);
        }
        av_packet_unref(pkt);
    }
    if (p->data.failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
    if (r != AVERROR(EAGAIN) && r != AVERROR_EOF)
        return err_set(err, STATUS_INTERNAL, "encode: %s", av_err2str(r));
    return STATUS_OK;
}

// The window's samples from x on, as the encoder wants them.
static void copy_samples(const struct window *w, int64_t x, AVFrame *f)
{
    for (int i = 0; i < f->nb_samples; i++) {
        for (int c = 0; c < 2; c++) {
            int64_t at = x + i;
            float v = at >= w->begin && at < w->end ? w->side[c][at - w->begin] : 0;
            if (f->format == AV_SAMPLE_FMT_FLTP)
                ((float *)(void *)f->data[c])[i] = v;
            else
                ((float *)(void *)f->data[0])[2 * i + c] = v;
        }
    }
}

static enum status feed_encoder(struct audio_job *j, AVCodecContext *enc, struct packets *p,
                                int64_t first_packet, uint32_t frame, struct err *err)
{
    uint32_t all = p->skip + p->want + TAIL_FRAMES;
    for (uint32_t i = 0; i < all; i++) {
        AUTO(codec_frame_free_p) AVFrame *f = av_frame_alloc();
        if (!f)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
        f->nb_samples = (int)frame;
        f->format = enc->sample_fmt;
        f->sample_rate = MEDIA_AUDIO_RATE;
        if (av_channel_layout_copy(&f->ch_layout, &enc->ch_layout) < 0 ||
            av_frame_get_buffer(f, 0) < 0)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
        int64_t x = (first_packet + i) * frame;
        copy_samples(&j->w, x, f);
        f->pts = x;
        int r = avcodec_send_frame(enc, f);
        if (r < 0)
            return err_set(err, STATUS_INTERNAL, "encode: %s", av_err2str(r));
        enum status s = collect(enc, p, frame, err);
        if (s != STATUS_OK)
            return s;
    }
    (void)avcodec_send_frame(enc, NULL);
    return collect(enc, p, frame, err);
}

static enum status deliver(struct audio_job *j, size_t rendition, uint32_t segment,
                           struct packets *p, struct err *err)
{
    for (uint32_t i = 0; i < p->n; i++)
        p->samples[i].data = p->data.data + p->offsets[i];
    struct buf out;
    struct media_fragment check;
    buf_init(&out, MEDIA_MAX_SEGMENT_BYTES);
    enum status s =
        media_cmaf_fragment(segment + 1, MEDIA_AUDIO_TRACK, j->plan->audio.segments[segment].start,
                            p->samples, p->n, &out, err);
    if (s == STATUS_OK &&
        media_cmaf_check(j->plan, rendition, segment, out.data, out.len, &check, err) != STATUS_OK)
        s = err_wrap(err, STATUS_INTERNAL, "encode");
    if (s == STATUS_OK) {
        struct media_segment_out head = {.rendition = (uint32_t)rendition,
                                         .segment = segment,
                                         .first_pts = check.first_pts,
                                         .duration = check.duration,
                                         .samples = check.n_samples,
                                         .size = (uint32_t)out.len};
        s = j->sink->segment(j->sink->ud, &head, out.data, out.len, err);
    }
    buf_done(&out);
    return s;
}

static enum status encode_segment(struct audio_job *j, size_t rendition, uint32_t segment,
                                  struct err *err)
{
    const struct media_rendition *r = &j->plan->renditions[rendition];
    AUTO(codec_context_free_p) AVCodecContext *enc = NULL;
    enum status s = codec_encoder_open(r, &enc, err);
    if (s == STATUS_OK)
        s = codec_encoder_matches(enc, j->plan, rendition, err);
    if (s != STATUS_OK)
        return s;
    int64_t packet = j->plan->audio.segments[segment].start / r->frame_samples;
    struct packets p = {.want = media_rendition_samples(j->plan, rendition, segment),
                        .skip = packet < WARMUP_FRAMES ? (uint32_t)packet : WARMUP_FRAMES};
    buf_init(&p.data, MEDIA_MAX_SEGMENT_BYTES);
    p.samples = mem_array(p.want, sizeof(*p.samples));
    p.offsets = mem_array(p.want, sizeof(*p.offsets));
    if (p.samples && p.offsets)
        s = feed_encoder(j, enc, &p, packet - p.skip, r->frame_samples, err);
    else
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
    if (s == STATUS_OK && p.n != p.want)
        s = err_set(err, STATUS_INTERNAL, "encode: %u packets wanted, %u came", p.want, p.n);
    if (s == STATUS_OK)
        s = deliver(j, rendition, segment, &p, err);
    buf_done(&p.data);
    mem_free(p.samples);
    mem_free(p.offsets);
    return s;
}

// ---- the job ----

static enum status open_window(struct audio_job *j, uint32_t first, uint32_t n, struct err *err)
{
    const struct media_segment *a = &j->plan->audio.segments[first], *b = a + n - 1;
    const int64_t margin = 1024 * (WARMUP_FRAMES + TAIL_FRAMES + 2);
    j->w.begin = a->start > margin ? a->start - margin : 0;
    j->w.end = b->start + b->duration + margin;
    for (size_t c = 0; c < 2; c++) {
        mem_free(j->w.side[c]);
        j->w.side[c] = mem_array((size_t)(j->w.end - j->w.begin), sizeof(float));
        if (!j->w.side[c])
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    }
    return STATUS_OK;
}

static enum status encode_group(struct audio_job *j, uint32_t first, uint32_t n, struct err *err)
{
    enum status s = open_window(j, first, n, err);
    if (s == STATUS_OK)
        s = fill_window(j, err);
    for (uint32_t i = 0; i < n && s == STATUS_OK; i++) {
        for (uint32_t r = 0; r < j->task->n_renditions && s == STATUS_OK; r++)
            s = encode_segment(j, j->task->renditions[r], first + i, err);
        if (s == STATUS_OK && j->sink->progress)
            j->sink->progress(j->sink->ud, ++j->done, j->total);
    }
    return s;
}

static enum status set_up(struct audio_job *j, struct err *err)
{
    const struct media_track *t = media_plan_track(j->plan, MEDIA_TRACK_AUDIO);
    if (!t || t->index >= j->in->fmt->nb_streams)
        return err_set(err, STATUS_FAILED_PRECONDITION, "the plan is not this source's");
    j->stream = t->index;
    const AVStream *st = j->in->fmt->streams[j->stream];
    j->zero = av_rescale_q(j->plan->source.timeline_zero_us, AV_TIME_BASE_Q, st->time_base);
    j->rate = st->codecpar->sample_rate;
    if (j->rate < 1000 || j->rate > 768000)
        return err_set(err, STATUS_INVALID_ARGUMENT, "sound at %d samples a second", j->rate);
    for (unsigned i = 0; i < j->in->fmt->nb_streams; i++)
        j->in->fmt->streams[i]->discard = (int)i == j->stream ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    j->stereo[0] = mem_array(CONVERT_MAX, sizeof(float));
    j->stereo[1] = mem_array(CONVERT_MAX, sizeof(float));
    if (!j->stereo[0] || !j->stereo[1])
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    return STATUS_OK;
}

enum status codec_encode_audio(struct codec_input *in, const struct media_plan *plan,
                               const struct media_task *task, const struct codec_sink *sink,
                               struct err *err)
{
    struct audio_job j = {.in = in,
                          .plan = plan,
                          .task = task,
                          .sink = sink,
                          .total = task->n_segments,
                          .mix_format = -1};
    enum status s = set_up(&j, err);
    uint32_t most = plan->source.tracks[j.stream].seek == MEDIA_SEEK_NONE ? GROUP_SEGMENTS : 1;
    for (uint32_t at = 0; at < task->n_segments && s == STATUS_OK;) {
        uint32_t n = task->n_segments - at < most ? task->n_segments - at : most;
        s = encode_group(&j, task->first_segment + at, n, err);
        at += n;
    }
    avcodec_free_context(&j.dec);
    swr_free(&j.mix);
    swr_free(&j.resample);
    av_channel_layout_uninit(&j.mix_layout);
    for (size_t c = 0; c < 2; c++) {
        mem_free(j.stereo[c]);
        mem_free(j.w.side[c]);
    }
    return s;
}
