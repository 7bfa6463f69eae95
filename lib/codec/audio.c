// Audio chunks: each segment is encoded by an encoder of its own with warm-up frames before and
// tail frames after it that are thrown away, from a window of samples that is decoded for it alone
// (sound.c); so a segment's bytes do not depend on which others are asked for. Renditions of one
// track and one number of channels share the decoding.
#include <math.h>
#include <string.h>

#include <libavutil/channel_layout.h>

#include "base/mem.h"
#include "codec/internal.h"

#define WARMUP_FRAMES 4
#define TAIL_FRAMES 2
// Around a segment, for any codec: the longest frame that is warmed up with is AAC's.
#define MARGIN (1024 * (WARMUP_FRAMES + TAIL_FRAMES + 2))

struct window {
    int64_t begin, end; // 48 kHz presentation samples
    float *side[MEDIA_MAX_CHANNELS];
};

struct audio_job {
    struct codec_input *in;
    const struct media_plan *plan;
    const struct media_task *task;
    const struct codec_sink *sink;
    struct window w;
    uint32_t done, total;
};

// ---- encoding ----

struct packets {
    struct buf data;
    struct media_sample *samples;
    size_t *offsets;
    uint32_t first, skip, want, n; // number of the first kept, packets to drop first, to keep, kept
};

static bool keep_packet(const AVCodecContext *enc, struct packets *p, const AVPacket *pkt,
                        uint32_t frame)
{
    size_t at = p->data.len;
    bool ok = enc->codec_id == AV_CODEC_ID_FLAC
                  ? codec_put_flac_frame(&p->data, pkt->data, (size_t)pkt->size, p->first + p->n)
                  : buf_append(&p->data, pkt->data, (size_t)pkt->size);
    p->offsets[p->n] = at;
    p->samples[p->n++] = (struct media_sample){
        .size = (uint32_t)(p->data.len - at), .duration = frame, .sync = true};
    return ok;
}

static enum status collect(AVCodecContext *enc, struct packets *p, uint32_t frame, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    if (!pkt)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
    int r;
    while ((r = avcodec_receive_packet(enc, pkt)) >= 0) {
        bool ok = true;
        if (p->skip > 0)
            p->skip--;
        else if (p->n < p->want)
            ok = keep_packet(enc, p, pkt, frame);
        av_packet_unref(pkt);
        if (!ok && !p->data.failed)
            return err_set(err, STATUS_INTERNAL, "encode: a frame that is not FLAC");
    }
    if (p->data.failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
    if (r != AVERROR(EAGAIN) && r != AVERROR_EOF)
        return err_set(err, STATUS_INTERNAL, "encode: %s", av_err2str(r));
    return STATUS_OK;
}

static int32_t whole(float v, float scale)
{
    float x = v * scale;
    return x >= scale - 1 ? (int32_t)scale - 1 : x <= -scale ? -(int32_t)scale : (int32_t)lrintf(x);
}

static void put_sample(AVFrame *f, int c, int i, float v)
{
    int at = i * f->ch_layout.nb_channels + c;
    switch (f->format) {
    case AV_SAMPLE_FMT_FLTP:
        ((float *)(void *)f->extended_data[c])[i] = v;
        break;
    case AV_SAMPLE_FMT_S16:
        ((int16_t *)(void *)f->data[0])[at] = (int16_t)whole(v, 1 << 15);
        break;
    case AV_SAMPLE_FMT_S32: // of 24 bits
        ((int32_t *)(void *)f->data[0])[at] = whole(v, 1 << 23) * 256;
        break;
    default:
        ((float *)(void *)f->data[0])[at] = v;
        break;
    }
}

// The window's samples from x on, as the encoder wants them.
static void copy_samples(const struct window *w, int64_t x, float gain, AVFrame *f)
{
    for (int c = 0; c < f->ch_layout.nb_channels; c++) {
        for (int i = 0; i < f->nb_samples; i++) {
            int64_t at = x + i;
            put_sample(f, c, i,
                       at >= w->begin && at < w->end ? w->side[c][at - w->begin] * gain : 0);
        }
    }
}

static enum status feed_encoder(struct audio_job *j, AVCodecContext *enc, struct packets *p,
                                int64_t first_packet, uint32_t frame, float gain, struct err *err)
{
    bool flac = enc->codec_id == AV_CODEC_ID_FLAC;
    uint32_t all = p->skip + p->want + (flac ? 0 : TAIL_FRAMES);
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
        copy_samples(&j->w, x, gain, f);
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
    uint32_t warmup = r->codec == MEDIA_CODEC_FLAC ? 0 : WARMUP_FRAMES; // its frames stand alone
    float gain = r->normalised ? powf(10, (float)j->task->gain_mdb / 20000) : 1;
    struct packets p = {.first = (uint32_t)packet,
                        .want = media_rendition_samples(j->plan, rendition, segment),
                        .skip = packet < warmup ? (uint32_t)packet : warmup};
    buf_init(&p.data, MEDIA_MAX_SEGMENT_BYTES);
    p.samples = mem_array(p.want, sizeof(*p.samples));
    p.offsets = mem_array(p.want, sizeof(*p.offsets));
    if (p.samples && p.offsets)
        s = feed_encoder(j, enc, &p, packet - p.skip, r->frame_samples, gain, err);
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

// The renditions that one decoding serves.
struct pass {
    uint8_t track, channels;
};

static bool is_of(const struct media_rendition *r, const struct pass *p)
{
    return r->track == p->track && r->channels == p->channels;
}

static void close_window(struct window *w)
{
    for (size_t c = 0; c < N_ELEMENTS(w->side); c++)
        mem_free(w->side[c]);
    *w = (struct window){0};
}

static enum status open_window(struct audio_job *j, uint32_t segment, int channels, struct err *err)
{
    const struct media_segment *a = &j->plan->audio.segments[segment];
    close_window(&j->w);
    j->w.begin = a->start > MARGIN ? a->start - MARGIN : 0;
    j->w.end = a->start + a->duration + MARGIN;
    for (int c = 0; c < channels; c++) {
        j->w.side[c] = mem_array((size_t)(j->w.end - j->w.begin), sizeof(float));
        if (!j->w.side[c])
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    }
    return STATUS_OK;
}

static enum status run_segment(struct audio_job *j, struct codec_sound *sound, const struct pass *p,
                               uint32_t segment, struct err *err)
{
    enum status s = open_window(j, segment, p->channels, err);
    if (s == STATUS_OK)
        s = codec_sound_read(sound, j->w.begin, j->w.end, j->w.side, err);
    for (uint32_t i = 0; i < j->task->n_renditions && s == STATUS_OK; i++)
        if (is_of(&j->plan->renditions[j->task->renditions[i]], p))
            s = encode_segment(j, j->task->renditions[i], segment, err);
    if (s == STATUS_OK && j->sink->progress)
        j->sink->progress(j->sink->ud, ++j->done, j->total);
    return s;
}

static enum status run_pass(struct audio_job *j, const struct pass *p, struct err *err)
{
    AUTO(codec_sound_free_p) struct codec_sound *sound = NULL;
    enum status s = codec_sound_new(j->in, j->plan, p->track, p->channels, &sound, err);
    for (uint32_t i = 0; i < j->task->n_segments && s == STATUS_OK; i++)
        s = run_segment(j, sound, p, j->task->first_segment + i, err);
    return s;
}

static size_t find_passes(const struct audio_job *j, struct pass ret[MEDIA_MAX_RENDITIONS])
{
    size_t n = 0;
    for (uint32_t i = 0; i < j->task->n_renditions; i++) {
        const struct media_rendition *r = &j->plan->renditions[j->task->renditions[i]];
        bool known = false;
        for (size_t k = 0; k < n; k++)
            known |= is_of(r, &ret[k]);
        if (!known)
            ret[n++] = (struct pass){r->track, r->channels};
    }
    return n;
}

enum status codec_encode_audio(struct codec_input *in, const struct media_plan *plan,
                               const struct media_task *task, const struct codec_sink *sink,
                               struct err *err)
{
    struct audio_job j = {.in = in, .plan = plan, .task = task, .sink = sink};
    struct pass passes[MEDIA_MAX_RENDITIONS];
    size_t n = find_passes(&j, passes);
    enum status s = STATUS_OK;
    j.total = task->n_segments * (uint32_t)n;
    for (size_t i = 0; i < n && s == STATUS_OK; i++)
        s = run_pass(&j, &passes[i], err);
    close_window(&j.w);
    return s;
}
