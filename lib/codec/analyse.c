// How hard a film is to encode: short runs of frames from all over it, made small and encoded at
// one CRF without a cap. Deterministic: what is looked at depends on the plan alone, never on time.
//
// It costs a bounded number of decoded pixels, about as many as half a second of CPU time decodes,
// and less for a short film. A film that cannot be read here and there is one nothing is known of.
#include <string.h>

#include "base/mem.h"
#include "codec/internal.h"
#include "media/title.h"

#define MAX_SAMPLES 5
#define SAMPLE_FRAMES 12
#define LEAST_FRAMES 4
#define MAX_PIXELS_DECODED (INT64_C(120) << 20)
#define FRAMES_OF_FILM 25 // one frame in so many is looked at, at most
#define MAX_SIDE 640
#define EXTRA_PACKETS 64 // that a decoder may take before its first frame

struct analysis {
    struct codec_input *in;
    const struct media_plan *plan;
    int stream;
    AVCodecContext *dec;
    struct codec_scaler *scaler;
    struct media_rendition as; // how samples are encoded
    uint64_t key_bytes, other_bytes;
    uint32_t n_keys, n_others;
};

// At most MAX_SIDE wide and high, both sides even.
static void sample_size(uint32_t w, uint32_t h, uint32_t *ret_w, uint32_t *ret_h)
{
    uint32_t side = w > h ? w : h;
    uint64_t num = side > MAX_SIDE ? MAX_SIDE : side;
    *ret_w = (uint32_t)(w * num / side) & ~1U;
    *ret_h = (uint32_t)(h * num / side) & ~1U;
    *ret_w = *ret_w < 16 ? 16 : *ret_w;
    *ret_h = *ret_h < 16 ? 16 : *ret_h;
}

static enum status collect(struct analysis *a, AVCodecContext *enc, const AVFrame *frame,
                           struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    if (!pkt || avcodec_send_frame(enc, frame) == AVERROR(ENOMEM))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "analysis: out of memory");
    while (avcodec_receive_packet(enc, pkt) >= 0) {
        bool key = pkt->flags & AV_PKT_FLAG_KEY;
        *(key ? &a->key_bytes : &a->other_bytes) += (uint64_t)pkt->size;
        *(key ? &a->n_keys : &a->n_others) += 1;
        av_packet_unref(pkt);
    }
    return STATUS_OK;
}

static enum status encode_frame(struct analysis *a, AVCodecContext *enc, const AVFrame *frame,
                                uint32_t index, struct err *err)
{
    AUTO(codec_frame_free_p) AVFrame *small = NULL;
    enum status s = codec_scaler_run(a->scaler, frame, &small, err);
    if (s != STATUS_OK)
        return s;
    small->pts = index;
    small->pict_type = AV_PICTURE_TYPE_NONE;
    return collect(a, enc, small, err);
}

// Decodes on from where the input is; *ret_n: how many frames there were, at most max.
static enum status encode_run(struct analysis *a, AVCodecContext *enc, uint32_t max,
                              uint32_t *ret_n, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AUTO(codec_frame_free_p) AVFrame *frame = av_frame_alloc();
    enum status s = STATUS_OK;
    if (!pkt || !frame)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "analysis: out of memory");
    *ret_n = 0;
    for (uint32_t packets = 0; *ret_n < max && packets < 2 * max + EXTRA_PACKETS;) {
        if (av_read_frame(a->in->fmt, pkt) < 0)
            break;
        if (pkt->stream_index == a->stream) {
            packets++;
            (void)avcodec_send_packet(a->dec, pkt); // damage is passed over
        }
        av_packet_unref(pkt);
        while (s == STATUS_OK && *ret_n < max && avcodec_receive_frame(a->dec, frame) >= 0) {
            s = encode_frame(a, enc, frame, (*ret_n)++, err);
            av_frame_unref(frame);
        }
        if (s != STATUS_OK)
            return s;
    }
    return collect(a, enc, NULL, err);
}

static enum status take_sample(struct analysis *a, const struct media_segment *at, uint32_t frames,
                               struct err *err)
{
    AUTO(codec_context_free_p) AVCodecContext *enc = NULL;
    uint32_t n;
    enum status s = codec_input_seek(a->in, a->stream, a->plan->source.seek, at->seek_ticks,
                                     at->seek_offset, err);
    if (s != STATUS_OK)
        return s;
    avcodec_flush_buffers(a->dec);
    s = codec_encoder_open(&a->as, &enc, err);
    return s == STATUS_OK ? encode_run(a, enc, frames, &n, err) : s;
}

// How many frames to look at, and in how many places.
static uint32_t how_many(const struct media_plan *p, const AVCodecParameters *par,
                         uint32_t *ret_samples)
{
    int64_t frames = MAX_PIXELS_DECODED / ((int64_t)par->width * par->height + 1);
    if (frames > p->video.n_frames / FRAMES_OF_FILM)
        frames = p->video.n_frames / FRAMES_OF_FILM;
    if (frames > MAX_SAMPLES * SAMPLE_FRAMES)
        frames = MAX_SAMPLES * SAMPLE_FRAMES;
    if (frames < LEAST_FRAMES)
        frames = LEAST_FRAMES;
    // Without an index each place would be reached by decoding all that lies before it.
    *ret_samples = p->source.seek == MEDIA_SEEK_NONE ? 1 : (uint32_t)(frames + 11) / SAMPLE_FRAMES;
    return (uint32_t)frames / *ret_samples;
}

static enum status take_samples(struct analysis *a, struct err *err)
{
    const AVCodecParameters *par = a->in->fmt->streams[a->stream]->codecpar;
    const struct media_grid *g = &a->plan->video;
    uint32_t n_samples, frames = how_many(a->plan, par, &n_samples);
    enum status s = codec_decoder_open(a->in, a->stream, 1, &a->dec, err);
    for (uint32_t i = 0; i < n_samples && s == STATUS_OK; i++) {
        size_t at = a->plan->source.seek == MEDIA_SEEK_NONE
                        ? 0
                        : g->n_segments * (2 * i + 1) / (2 * n_samples);
        s = take_sample(a, &g->segments[at], frames, err);
    }
    return s;
}

static void sum_up(const struct analysis *a, struct media_title *ret)
{
    if (a->n_keys == 0)
        return;
    ret->pixels = a->as.width * a->as.height;
    ret->key_bytes = (uint32_t)(a->key_bytes / a->n_keys);
    ret->other_bytes = a->n_others ? (uint32_t)(a->other_bytes / a->n_others) : ret->key_bytes / 4;
}

static enum status analyse(struct codec_input *in, const struct media_plan *plan, int stream,
                           struct media_title *ret, struct err *err)
{
    const AVCodecParameters *par = in->fmt->streams[stream]->codecpar;
    struct analysis a = {.in = in, .plan = plan, .stream = stream};
    a.as = (struct media_rendition){.id = "sample",
                                    .kind = MEDIA_VIDEO,
                                    .codec = MEDIA_CODEC_H264,
                                    .frame_rate = plan->renditions[0].frame_rate,
                                    .maxrate_bps = 200000000,
                                    .crf = MEDIA_TITLE_CRF,
                                    .profile = 100,
                                    .level = 51,
                                    .color = {2, 2, 2}};
    sample_size((uint32_t)par->width, (uint32_t)par->height, &a.as.width, &a.as.height);
    a.scaler = codec_scaler_new(a.as.width, a.as.height, 0);
    if (!a.scaler)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "analysis: out of memory");
    bool sparse = in->sparse;
    in->sparse = false;
    struct err why = ERR_INIT;
    enum status s = take_samples(&a, &why);
    in->sparse = sparse;
    codec_scaler_free(a.scaler);
    avcodec_free_context(&a.dec);
    if (s == STATUS_RESOURCE_EXHAUSTED)
        return err_set(err, s, "%s", why.msg);
    if (in->failed) { // bytes that are not there yet; the index, which made the plan, was
        in->failed = false;
        return STATUS_OK;
    }
    if (s == STATUS_OK)
        sum_up(&a, ret);
    return STATUS_OK;
}

// The rate of the picture as H.264 would need it: later codecs take about half.
static int64_t source_bps(const struct media_plan *p, enum AVCodecID codec, int64_t bytes)
{
    int64_t us = media_ticks_to_us(p->video.duration, p->video.timescale);
    bool later = codec == AV_CODEC_ID_HEVC || codec == AV_CODEC_ID_AV1 || codec == AV_CODEC_ID_VP9;
    return us > 0 ? media_scale_near(bytes, later ? 16000000 : 8000000, us) : 0;
}

enum status codec_fit_ladder(struct codec_input *in, struct media_plan *plan, int stream,
                             int64_t video_bytes, struct err *err)
{
    const AVCodecParameters *par = in->fmt->streams[stream]->codecpar;
    struct media_title title = {0};
    enum status s = analyse(in, plan, stream, &title, err);
    if (s != STATUS_OK)
        return s;
    size_t n = plan->n_renditions;
    plan->n_renditions =
        media_title_fit(&title, (uint64_t)par->width * (uint64_t)par->height,
                        source_bps(plan, par->codec_id, video_bytes), plan->renditions, n);
    // What comes into the places of those left out starts from nothing.
    memset(&plan->renditions[plan->n_renditions], 0,
           (n - plan->n_renditions) * sizeof(plan->renditions[0]));
    return STATUS_OK;
}
