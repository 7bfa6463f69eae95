// One track's sound as 48 kHz floats, a window of the timeline at a time.
//
// A window's samples depend on the window alone. Decoders remember: noise that stands for what was
// not coded (AAC, HE-AAC) and dither (MP2) go on from packet to packet, so every window has a
// decoder of its own that begins at a packet which the window's beginning decides. Windows that
// follow one another share the reading (packets.c) and no state.
//
// Positions: a decoded frame lies where its time stamp says; coarse time stamps (Matroska's
// milliseconds, MPEG's 90 kHz) are snapped to the comb that the plan holds, so that joins are exact
// to the sample. Resampling starts where an input and an output sample fall together.
#include <string.h>

#include <libavutil/channel_layout.h>

#include "base/mem.h"
#include "base/str.h"
#include "codec/internal.h"

#define RESAMPLE_WARMUP 4096 // output samples before the window
#define RESAMPLE_TAIL 2048   // input samples after it
#define DECODE_WARMUP_MS 700 // for decoders that need to settle: HE-AAC, Opus, MP3
#define MORE_WARMUP_MS 5000  // when that was too little
#define CONVERT_MAX 65536    // samples converted at once

struct codec_sound {
    struct codec_input *in;
    const struct media_track *track;
    int channels;
    int rate;     // the track's; frames of another one are converted to it first
    int64_t zero; // stream ticks
    struct codec_packets packets;
    AVCodecContext *dec;
    // the window
    int64_t begin, end; // 48 kHz presentation samples
    float *const *side;
    struct SwrContext *mix; // any format to `channels` floats at `rate`
    AVChannelLayout mix_layout;
    int mix_format, mix_rate;
    struct SwrContext *resample;          // NULL at 48 kHz
    int64_t fed, feed_end;                // input samples at `rate`, timeline positions
    int64_t out;                          // next 48 kHz sample that comes out
    float *plane[MEDIA_MAX_CHANNELS];     // CONVERT_MAX samples each
    float *resampled[MEDIA_MAX_CHANNELS]; // resampled_room each
    int resampled_room;
    int64_t expected; // where the next frame begins if it has no time of its own
};

// ---- into the window ----

static void put_window(struct codec_sound *j, float *const in[], int64_t n)
{
    int64_t from = j->out < j->begin ? j->begin : j->out;
    int64_t to = j->out + n > j->end ? j->end : j->out + n;
    for (int c = 0; c < j->channels && from < to; c++)
        memcpy(j->side[c] + (from - j->begin), in[c] + (from - j->out),
               (size_t)(to - from) * sizeof(float));
    j->out += n;
}

// n samples at the track's rate, in order; in NULL: what the filter still holds.
static enum status feed_samples(struct codec_sound *j, float *const in[], int64_t n,
                                struct err *err)
{
    j->fed += n;
    if (!j->resample) {
        put_window(j, in, n);
        return STATUS_OK;
    }
    int got = swr_convert(j->resample, (uint8_t **)j->resampled, j->resampled_room,
                          (const uint8_t **)(uintptr_t)in, (int)n);
    if (got < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "resample: out of memory");
    put_window(j, j->resampled, got);
    return STATUS_OK;
}

static enum status feed_silence(struct codec_sound *j, int64_t until, struct err *err)
{
    enum status s = STATUS_OK;
    while (s == STATUS_OK && j->fed < until) {
        int64_t n = until - j->fed < CONVERT_MAX ? until - j->fed : CONVERT_MAX;
        for (int c = 0; c < j->channels; c++)
            memset(j->plane[c], 0, (size_t)n * sizeof(float));
        s = feed_samples(j, j->plane, n, err);
    }
    return s;
}

// ---- decoded frames ----

// Samples at the track's rate that frames of another rate have given and that did not come out yet.
static int64_t pending(const struct codec_sound *j)
{
    return j->mix && j->mix_rate != j->rate ? swr_get_delay(j->mix, j->rate) : 0;
}

static enum status flush_mix(struct codec_sound *j, struct err *err)
{
    enum status s = STATUS_OK;
    while (s == STATUS_OK && j->mix && j->mix_rate != j->rate) {
        int got = swr_convert(j->mix, (uint8_t **)j->plane, CONVERT_MAX, NULL, 0);
        if (got <= 0)
            break;
        s = feed_samples(j, j->plane, got, err);
    }
    swr_free(&j->mix);
    return s;
}

static enum status prepare_mix(struct codec_sound *j, const AVFrame *f, struct err *err)
{
    if (j->mix && f->format == j->mix_format && f->sample_rate == j->mix_rate &&
        av_channel_layout_compare(&f->ch_layout, &j->mix_layout) == 0)
        return STATUS_OK;
    enum status s = flush_mix(j, err);
    if (s != STATUS_OK)
        return s;
    j->mix_format = f->format;
    j->mix_rate = f->sample_rate;
    av_channel_layout_uninit(&j->mix_layout);
    if (av_channel_layout_copy(&j->mix_layout, &f->ch_layout) < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    return codec_mix_open(&j->mix, &f->ch_layout, f->format, f->sample_rate, j->channels, j->rate,
                          err);
}

// Source samples from timeline 0 to the first sample of a frame.
static int64_t frame_position(const struct codec_sound *j, const AVFrame *f)
{
    const AVStream *st = j->in->fmt->streams[j->track->index];
    int64_t t = f->best_effort_timestamp;
    if (t == AV_NOPTS_VALUE)
        return j->expected;
    int64_t at = av_rescale_q(t - j->zero, st->time_base, (AVRational){1, j->rate});
    if (j->track->frame_samples == 0)
        return at;
    // Within two ticks of a tooth it is that tooth; a frame cut at its start is known by its end.
    int64_t tooth = j->track->frame_samples,
            near = av_rescale_q(2, st->time_base, (AVRational){1, j->rate});
    const int64_t marks[2] = {0, f->nb_samples};
    for (size_t i = 0; i < N_ELEMENTS(marks); i++) {
        int64_t d = at + marks[i] - j->track->origin;
        int64_t k = media_scale_near(d, 1, tooth), off = d - k * tooth;
        if (off >= -near && off <= near)
            return at - off;
    }
    return at;
}

// Channels' pointers moved on by n samples, for planar and packed formats alike.
static void skip_samples(const AVFrame *f, int n, const uint8_t *ret[CODEC_MAX_CHANNELS_IN])
{
    int planar = av_sample_fmt_is_planar(f->format), size = av_get_bytes_per_sample(f->format);
    int planes = planar ? f->ch_layout.nb_channels : 1;
    ptrdiff_t step = (ptrdiff_t)n * size * (planar ? 1 : f->ch_layout.nb_channels);
    for (int i = 0; i < planes && i < CODEC_MAX_CHANNELS_IN; i++)
        ret[i] = f->extended_data[i] + step;
}

// The frame's samples from its `from`-th on.
static enum status mix_frame(struct codec_sound *j, const AVFrame *f, int from, struct err *err)
{
    enum status s = STATUS_OK;
    int most = (int)((int64_t)CONVERT_MAX / 2 * f->sample_rate / j->rate);
    most = most > CONVERT_MAX ? CONVERT_MAX : most < 1 ? 1 : most;
    while (s == STATUS_OK && from < f->nb_samples && j->fed < j->feed_end) {
        const uint8_t *in[CODEC_MAX_CHANNELS_IN] = {NULL};
        int part = f->nb_samples - from < most ? f->nb_samples - from : most;
        skip_samples(f, from, in);
        int got = swr_convert(j->mix, (uint8_t **)j->plane, CONVERT_MAX, in, part);
        if (got < 0 || (j->mix_rate == j->rate && got != part))
            return err_set(err, STATUS_INTERNAL, "sound: conversion lost samples");
        from += part;
        s = feed_samples(j, j->plane, got, err);
    }
    return s;
}

static enum status take_frame(struct codec_sound *j, const AVFrame *f, struct err *err)
{
    if (f->nb_samples <= 0 || f->sample_rate <= 0 || f->sample_rate > 768000)
        return STATUS_OK;
    int64_t at = frame_position(j, f), n = f->nb_samples;
    if (f->sample_rate != j->rate)
        n = av_rescale(n, j->rate, f->sample_rate);
    j->expected = at + n;
    // Of another rate, frames lie where they do but for rounding.
    int64_t loose = f->sample_rate == j->rate ? 0 : j->rate / 500;
    if (at + n <= j->fed + pending(j))
        return STATUS_OK; // before the window
    enum status s = prepare_mix(j, f, err);
    if (s == STATUS_OK && at > j->fed + pending(j) + loose) {
        s = flush_mix(j, err);
        if (s == STATUS_OK)
            s = feed_silence(j, at < j->feed_end ? at : j->feed_end, err);
        if (s == STATUS_OK)
            s = prepare_mix(j, f, err);
    }
    int64_t from = j->fed + pending(j) - at;
    if (from <= loose)
        from = 0;
    if (s == STATUS_OK)
        s = mix_frame(j, f, (int)av_rescale(from, f->sample_rate, j->rate), err);
    return s;
}

// ---- a window ----

static enum status begin_window(struct codec_sound *j, struct err *err)
{
    int64_t g = av_gcd(MEDIA_AUDIO_RATE, j->rate), in_step = j->rate / g,
            out_step = MEDIA_AUDIO_RATE / g;
    int64_t from = j->begin - (j->rate == MEDIA_AUDIO_RATE ? 0 : RESAMPLE_WARMUP);
    int64_t k = from > 0 ? from / out_step : 0;
    j->fed = k * in_step;
    j->out = k * out_step;
    j->feed_end = av_rescale_rnd(j->end, j->rate, MEDIA_AUDIO_RATE, AV_ROUND_UP) + RESAMPLE_TAIL;
    j->expected = j->fed;
    swr_free(&j->mix);
    if (j->rate == MEDIA_AUDIO_RATE)
        return STATUS_OK;
    AVChannelLayout same = j->channels == 2 ? (AVChannelLayout)AV_CHANNEL_LAYOUT_STEREO
                                            : (AVChannelLayout)AV_CHANNEL_LAYOUT_5POINT1_BACK;
    return codec_mix_open(&j->resample, &same, AV_SAMPLE_FMT_FLTP, j->rate, j->channels,
                          MEDIA_AUDIO_RATE, err);
}

static int64_t ticks_of(const struct codec_sound *j, int64_t sample)
{
    const AVStream *st = j->in->fmt->streams[j->track->index];
    return j->zero + av_rescale_q(sample, (AVRational){1, j->rate}, st->time_base);
}

// Decode until the window is full or the source ends. ret_late: packets from before the window have
// given nothing for its beginning, so decoding should start earlier.
static enum status decode(struct codec_sound *j, bool *ret_late, struct err *err)
{
    AUTO(codec_frame_free_p) AVFrame *frame = av_frame_alloc();
    if (!frame)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    int64_t begin = ticks_of(j, j->fed), end = ticks_of(j, j->feed_end + j->rate / 4);
    bool any = false, before = false, more = true;
    *ret_late = false;
    for (size_t i = 0; more && j->fed < j->feed_end; i++) {
        const AVPacket *pkt;
        enum status s = codec_packets_get(&j->packets, i, &pkt, err);
        if (s != STATUS_OK)
            return s;
        more = pkt && codec_packet_time(pkt) < end;
        before |= more && codec_packet_time(pkt) < begin;
        (void)avcodec_send_packet(j->dec, more ? pkt : NULL); // damage is passed over
        while (j->fed < j->feed_end && avcodec_receive_frame(j->dec, frame) >= 0) {
            if (!any && before && frame_position(j, frame) > j->fed) {
                *ret_late = true;
                return STATUS_OK;
            }
            any = true;
            s = take_frame(j, frame, err);
            av_frame_unref(frame);
            if (s != STATUS_OK)
                return s;
        }
    }
    return flush_mix(j, err);
}

// Whether the track has nothing near the window, so that nothing needs to be read.
static bool is_silent(const struct codec_sound *j)
{
    const struct media_track *t = j->track;
    int64_t first = av_rescale(t->origin, MEDIA_AUDIO_RATE, j->rate);
    int64_t last = first + av_rescale(t->duration_us, MEDIA_AUDIO_RATE, 1000000);
    return t->duration_us > 0 &&
           (j->end < first - MEDIA_AUDIO_RATE || j->begin > last + MEDIA_AUDIO_RATE);
}

enum status codec_sound_read(struct codec_sound *j, int64_t begin, int64_t end, float *const side[],
                             struct err *err)
{
    static const int64_t warmups_ms[] = {DECODE_WARMUP_MS, MORE_WARMUP_MS};
    j->begin = begin;
    j->end = end;
    j->side = side;
    for (int c = 0; c < j->channels; c++)
        memset(side[c], 0, (size_t)(end - begin) * sizeof(float));
    if (is_silent(j))
        return STATUS_OK;
    for (size_t attempt = 0; attempt <= N_ELEMENTS(warmups_ms); attempt++) {
        enum status s = begin_window(j, err);
        if (s != STATUS_OK)
            return s;
        int64_t ticks = MEDIA_TIME_UNKNOWN;
        if (attempt < N_ELEMENTS(warmups_ms))
            ticks = ticks_of(j, j->fed - av_rescale(warmups_ms[attempt], j->rate, 1000));
        s = codec_packets_begin(&j->packets, ticks, err);
        avcodec_free_context(&j->dec);
        if (s == STATUS_OK)
            s = codec_decoder_open(j->in, j->track->index, 1, &j->dec, err);
        bool late = false;
        if (s == STATUS_OK)
            s = decode(j, &late, err);
        if (s != STATUS_OK)
            return s;
        if (!late || attempt == N_ELEMENTS(warmups_ms))
            break;
    }
    return feed_silence(j, j->feed_end, err); // the source ended inside the window
}

// ---- life ----

static enum status make_room(struct codec_sound *j, struct err *err)
{
    j->resampled_room =
        (int)av_rescale_rnd(CONVERT_MAX, MEDIA_AUDIO_RATE, j->rate, AV_ROUND_UP) + 4096;
    for (int c = 0; c < j->channels; c++) {
        j->plane[c] = mem_array(CONVERT_MAX, sizeof(float));
        if (j->rate != MEDIA_AUDIO_RATE)
            j->resampled[c] = mem_array((size_t)j->resampled_room, sizeof(float));
        if (!j->plane[c] || (j->rate != MEDIA_AUDIO_RATE && !j->resampled[c]))
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    }
    return STATUS_OK;
}

enum status codec_sound_new(struct codec_input *in, const struct media_plan *plan, size_t track,
                            int channels, struct codec_sound **ret, struct err *err)
{
    const struct media_track *t =
        track < plan->source.n_tracks ? &plan->source.tracks[track] : NULL;
    if (!t || t->index >= in->fmt->nb_streams ||
        in->fmt->streams[t->index]->codecpar->codec_type != AVMEDIA_TYPE_AUDIO)
        return err_set(err, STATUS_FAILED_PRECONDITION, "the plan is not this source's");
    const AVStream *st = in->fmt->streams[t->index];
    int rate = st->codecpar->sample_rate;
    if (rate < 1000 || rate > 768000)
        return err_set(err, STATUS_INVALID_ARGUMENT, "sound at %d samples a second", rate);
    AUTO(codec_sound_free_p) struct codec_sound *j = mem_alloc(sizeof(*j));
    if (!j)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    j->in = in;
    j->track = t;
    j->channels = channels;
    j->rate = rate;
    j->zero = av_rescale_q(plan->source.timeline_zero_us, AV_TIME_BASE_Q, st->time_base);
    for (unsigned i = 0; i < in->fmt->nb_streams; i++)
        in->fmt->streams[i]->discard = i == t->index ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    codec_packets_init(&j->packets, in, plan, t->index, t->seek,
                       t->seek == MEDIA_SEEK_NONE || codec_seek_is_exact(in));
    enum status s = make_room(j, err);
    if (s == STATUS_OK)
        *ret = TAKE(j);
    return s;
}

void codec_sound_free(struct codec_sound *j)
{
    if (!j)
        return;
    codec_packets_done(&j->packets);
    avcodec_free_context(&j->dec);
    swr_free(&j->mix);
    swr_free(&j->resample);
    av_channel_layout_uninit(&j->mix_layout);
    for (int c = 0; c < MEDIA_MAX_CHANNELS; c++) {
        mem_free(j->plane[c]);
        mem_free(j->resampled[c]);
    }
    mem_free(j);
}

bool codec_seek_is_exact(const struct codec_input *in)
{
    static const char *const exact[] = {"mov,", "matroska", "wav", "flac", "mpegts"};
    for (size_t i = 0; i < N_ELEMENTS(exact); i++)
        if (str_starts_with(in->fmt->iformat->name, exact[i]))
            return true;
    return false;
}
