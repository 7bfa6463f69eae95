// Encoders by rendition. Everything that shapes bytes is set here explicitly and said in the
// recipe.
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libavutil/channel_layout.h>
#include <libavutil/cpu.h>
#include <libavutil/mem.h>
#include <libavutil/opt.h>
#include <libavutil/sha.h>

#include "base/mem.h"
#include "base/str.h"
#include "codec/internal.h"

#define CONFIG_MAX 2048

const char *codec_build(void)
{
    return "cauce-codec 3, libavcodec " AV_STRINGIFY(LIBAVCODEC_VERSION);
}

const char *codec_cpu_class(void)
{
    static const struct {
        int flag;
        const char *name;
    } classes[] = {{AV_CPU_FLAG_AVX512, "avx512"}, {AV_CPU_FLAG_AVX2, "avx2"},
                   {AV_CPU_FLAG_AVX, "avx"},       {AV_CPU_FLAG_SSSE3, "ssse3"},
                   {AV_CPU_FLAG_SSE2, "sse2"},     {AV_CPU_FLAG_NEON, "neon"}};
    int have = av_get_cpu_flags();
    for (size_t i = 0; i < N_ELEMENTS(classes); i++)
        if (have & classes[i].flag)
            return classes[i].name;
    return "plain";
}

static const char *encoder_name(enum media_codec c)
{
    switch (c) {
    case MEDIA_CODEC_H264:
        return "libx264";
    case MEDIA_CODEC_AAC:
        return "aac";
    case MEDIA_CODEC_OPUS:
        return "libopus";
    case MEDIA_CODEC_HEVC:
        return "libx265";
    case MEDIA_CODEC_AV1:
        return "libsvtav1";
    case MEDIA_CODEC_VP9:
        return "libvpx-vp9";
    case MEDIA_CODEC_FLAC:
        return "flac";
    case MEDIA_CODEC_NONE:
    case MEDIA_N_CODECS:
        break;
    }
    return "";
}

// One segment is one group of pictures: no keyframe but the first. VBV one second long and
// as full at the start as bandwidth_bps allows for: segments made apart keep the promise when
// played one after another, and the keyframe at their beginning has room.
static const char x264_params[] =
    "keyint=infinite:min-keyint=1000000:open-gop=0:vbv-init=" AV_STRINGIFY(
        MEDIA_H264_START) ":threads=1:lookahead-threads=1:sliced-threads=0:force-cfr=1";
// "quality" costs about four times as much. Both reorder by at most two frames (media_rendition's
// cts_shift).
static const struct {
    const char *name, *more;
} x264_presets[MEDIA_N_PRESETS] = {
    [MEDIA_PRESET_FAST] = {"veryfast", ""},
    [MEDIA_PRESET_QUALITY] = {"medium", ":rc-lookahead=50"},
};

static void set_video(AVCodecContext *c, const struct media_rendition *r, AVDictionary **o)
{
    c->width = (int)r->width;
    c->height = (int)r->height;
    c->pix_fmt = AV_PIX_FMT_YUV420P;
    c->sample_aspect_ratio = (AVRational){1, 1};
    c->framerate = (AVRational){r->frame_rate.num, r->frame_rate.den};
    c->time_base = (AVRational){r->frame_rate.den, r->frame_rate.num};
    c->rc_max_rate = r->maxrate_bps;
    c->rc_buffer_size = (int)r->maxrate_bps;
    c->color_range = AVCOL_RANGE_MPEG;
    c->color_primaries = r->color[0];
    c->color_trc = r->color[1];
    c->colorspace = r->color[2];
    c->thread_count = 1;
    if (codec_is_other_video(r->codec)) {
        codec_set_other_video(c, r, o);
        return;
    }
    char params[sizeof(x264_params) + 32];
    snprintf(params, sizeof(params), "%s%s", x264_params, x264_presets[r->preset].more);
    av_dict_set(o, "preset", x264_presets[r->preset].name, 0);
    av_dict_set(o, "profile", "high", 0);
    av_dict_set_int(o, "crf", r->crf, 0);
    av_dict_set(o, "x264-params", params, 0);
    c->level = r->level;
}

static void set_audio(AVCodecContext *c, const struct media_rendition *r, const AVCodec *codec,
                      AVDictionary **o)
{
    c->sample_rate = MEDIA_AUDIO_RATE;
    c->sample_fmt = codec->sample_fmts ? codec->sample_fmts[0] : AV_SAMPLE_FMT_FLTP;
    if (r->codec == MEDIA_CODEC_FLAC) {
        c->sample_fmt = r->profile == 24 ? AV_SAMPLE_FMT_S32 : AV_SAMPLE_FMT_S16;
        c->bits_per_raw_sample = r->profile;
        c->frame_size = MEDIA_FLAC_FRAME;
    }
    if (r->codec == MEDIA_CODEC_OPUS) {
        c->sample_fmt = AV_SAMPLE_FMT_FLT;
        av_dict_set(o, "vbr", "constrained", 0);
        av_dict_set(o, "application", "audio", 0);
        av_dict_set(o, "frame_duration", "20", 0);
    }
    c->time_base = (AVRational){1, MEDIA_AUDIO_RATE};
    if (r->codec != MEDIA_CODEC_FLAC)
        c->bit_rate = r->bitrate_bps;
    c->ch_layout = r->channels == 6 ? (AVChannelLayout)AV_CHANNEL_LAYOUT_5POINT1_BACK
                                    : (AVChannelLayout)AV_CHANNEL_LAYOUT_STEREO;
    c->thread_count = 1;
}

enum status codec_encoder_open(const struct media_rendition *r, AVCodecContext **ret,
                               struct err *err)
{
    const AVCodec *codec = avcodec_find_encoder_by_name(encoder_name(r->codec));
    if (!codec)
        return err_set(err, STATUS_INTERNAL, "encoder %s is missing in this build of FFmpeg",
                       encoder_name(r->codec));
    AUTO(codec_context_free_p) AVCodecContext *c = avcodec_alloc_context3(codec);
    if (!c)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encoder: out of memory");
    AVDictionary *o = NULL;
    if (r->kind == MEDIA_VIDEO)
        set_video(c, r, &o);
    else
        set_audio(c, r, codec, &o);
    c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER | AV_CODEC_FLAG_BITEXACT;
    int n = avcodec_open2(c, codec, &o);
    const AVDictionaryEntry *unused = av_dict_get(o, "", NULL, AV_DICT_IGNORE_SUFFIX);
    enum status s = STATUS_OK;
    if (n == AVERROR(ENOMEM))
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "encoder %s: out of memory", codec->name);
    else if (n < 0)
        s = err_set(err, STATUS_INTERNAL, "encoder %s does not open for %s: %s", codec->name, r->id,
                    av_err2str(n));
    else if (unused)
        s = err_set(err, STATUS_INTERNAL, "encoder %s has no option %s", codec->name, unused->key);
    av_dict_free(&o);
    if (s == STATUS_OK)
        *ret = TAKE(c);
    return s;
}

bool codec_put_sample(struct buf *b, enum media_codec codec, const uint8_t *p, size_t n)
{
    struct codec_nals w;
    if (codec == MEDIA_CODEC_VP9)
        return buf_append(b, p, n);
    if (codec == MEDIA_CODEC_AV1)
        return codec_put_obus(b, p, n);
    codec_nals_init(&w, codec, 0, p, n);
    return codec_put_nals(b, &w, false);
}

// ---- decoder configurations ----

// OpusSpecificBox from an OpusHead packet: the same fields, big-endian.
static enum status put_dops(struct buf *b, const uint8_t *p, size_t n, struct err *err)
{
    if (n < 19 || memcmp(p, "OpusHead", 8) != 0 || p[18] != 0)
        return err_set(err, STATUS_INTERNAL, "encoder gave no usable Opus header");
    buf_put_u8(b, 0);
    buf_put_u8(b, p[9]);
    buf_put_be16(b, (uint16_t)(p[10] | p[11] << 8));
    buf_put_be32(b, (uint32_t)p[12] | (uint32_t)p[13] << 8 | (uint32_t)p[14] << 16 |
                        (uint32_t)p[15] << 24);
    buf_put_be16(b, (uint16_t)(p[16] | p[17] << 8));
    buf_put_u8(b, 0);
    return STATUS_OK;
}

enum status codec_encoder_config(const AVCodecContext *enc, enum media_codec codec, struct buf *ret,
                                 struct err *err)
{
    const uint8_t *p = enc->extradata;
    size_t n = enc->extradata_size > 0 ? (size_t)enc->extradata_size : 0;
    enum status s = STATUS_OK;
    if (codec == MEDIA_CODEC_H264 || codec == MEDIA_CODEC_HEVC)
        s = codec_put_record(ret, codec, 8, p, n, NULL, err) == STATUS_OK
                ? STATUS_OK
                : err_set(err, STATUS_INTERNAL, "encoder gave no usable parameter sets");
    else if (codec == MEDIA_CODEC_AV1 || codec == MEDIA_CODEC_VP9)
        s = codec_other_config(enc, codec, ret, err);
    else if (codec == MEDIA_CODEC_OPUS)
        s = put_dops(ret, p, n, err);
    else if (codec == MEDIA_CODEC_FLAC && n != MEDIA_FLAC_STREAMINFO)
        s = err_set(err, STATUS_INTERNAL, "encoder gave no FLAC stream information");
    else if (n < 2)
        s = err_set(err, STATUS_INTERNAL, "encoder gave no AAC configuration");
    else
        buf_append(ret, p, n);
    if (s == STATUS_OK && ret->failed)
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "encoder configuration: out of memory");
    return s;
}

enum status codec_encoder_matches(const AVCodecContext *enc, const struct media_plan *p,
                                  size_t rendition, struct err *err)
{
    struct media_track_config planned;
    struct buf b;
    buf_init(&b, CONFIG_MAX);
    enum status s = media_cmaf_init_config(p, rendition, &planned, err);
    if (s == STATUS_OK)
        s = codec_encoder_config(enc, p->renditions[rendition].codec, &b, err);
    if (s == STATUS_OK &&
        (b.len != planned.config_len || memcmp(b.data, planned.config, b.len) != 0))
        s = err_set(err, STATUS_FAILED_PRECONDITION,
                    "%s: this build's encoder differs from the plan's (%s)",
                    p->renditions[rendition].id, p->build);
    buf_done(&b);
    return s;
}

// ---- what a plan says about a rendition ----

static void write_recipe(struct media_rendition *r)
{
    if (r->copy)
        snprintf(r->recipe, sizeof(r->recipe), "copy of track %u", (unsigned)r->track);
    else if (codec_is_other_video(r->codec))
        codec_other_recipe(r);
    else if (r->kind == MEDIA_VIDEO)
        snprintf(
            r->recipe, sizeof(r->recipe),
            "libx264 preset=%s profile=%u level=%u crf=%u maxrate=%u bufsize=%u %s%s fps=%d/%d "
            "color=%u/%u/%u scale=%ux%u from=%u combs=10 bicubic+accurate_rnd+bitexact; %s",
            x264_presets[r->preset].name, (unsigned)r->profile, (unsigned)r->level,
            (unsigned)r->crf, r->maxrate_bps, r->maxrate_bps, x264_params,
            x264_presets[r->preset].more, r->frame_rate.num, r->frame_rate.den,
            (unsigned)r->color[0], (unsigned)r->color[1], (unsigned)r->color[2], r->width,
            r->height, (unsigned)r->scale_from, codec_build());
    else
        snprintf(
            r->recipe, sizeof(r->recipe),
            "%s bitrate=%u bits=%u rate=%d channels=%u track=%u%s frame=%u priming=%u warmup=4 "
            "tail=2; %s",
            encoder_name(r->codec), r->bitrate_bps, (unsigned)r->profile, MEDIA_AUDIO_RATE,
            (unsigned)r->channels, (unsigned)r->track, r->normalised ? " normalised" : "",
            r->frame_samples, r->priming, codec_build());
    codec_burn_recipe(r);
}

static enum status digest_recipe(struct media_rendition *r, struct err *err)
{
    struct AVSHA *sha = av_sha_alloc();
    if (!sha || av_sha_init(sha, 256) < 0) {
        av_free(sha);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "recipe: out of memory");
    }
    av_sha_update(sha, (const uint8_t *)r->recipe, strlen(r->recipe));
    av_sha_final(sha, r->recipe_digest);
    av_free(sha);
    return STATUS_OK;
}

static void name_codec(struct media_rendition *r, const struct buf *config)
{
    switch (r->codec) {
    case MEDIA_CODEC_HEVC:
    case MEDIA_CODEC_AV1:
    case MEDIA_CODEC_VP9:
        codec_name_other(r, config->data);
        break;
    case MEDIA_CODEC_H264:
        codec_name_record(r->codec, config->data, r->codecs, sizeof(r->codecs));
        break;
    case MEDIA_CODEC_AAC:
        str_copy(r->codecs, sizeof(r->codecs), "mp4a.40.2");
        break;
    case MEDIA_CODEC_OPUS:
        str_copy(r->codecs, sizeof(r->codecs), "opus");
        break;
    case MEDIA_CODEC_FLAC:
        str_copy(r->codecs, sizeof(r->codecs), "fLaC");
        break;
    case MEDIA_CODEC_NONE:
    case MEDIA_N_CODECS:
        break;
    }
}

static enum status make_init(struct media_rendition *r, const struct buf *config, struct err *err)
{
    bool video = r->kind == MEDIA_VIDEO;
    struct media_track_config c = {.codec = r->codec,
                                   .timescale = r->timescale,
                                   .width = video ? r->width : 0,
                                   .height = video ? r->height : 0,
                                   .channels = video ? 0 : r->channels,
                                   .sample_rate = video ? 0 : MEDIA_AUDIO_RATE,
                                   .priming = r->priming,
                                   .bitrate_bps = r->bitrate_bps,
                                   .config = config->data,
                                   .config_len = config->len};
    struct buf b;
    buf_init(&b, MEDIA_MAX_INIT_BYTES);
    enum status s = media_cmaf_init(&c, &b, err);
    if (s == STATUS_OK)
        r->init = buf_take(&b, &r->init_len);
    buf_done(&b);
    return s;
}

enum status codec_rendition_describe(struct media_rendition *r, const struct buf *config,
                                     struct err *err)
{
    name_codec(r, config);
    write_recipe(r);
    enum status s = make_init(r, config, err);
    return s == STATUS_OK ? digest_recipe(r, err) : s;
}

enum status codec_rendition_finish(struct media_rendition *r, struct err *err)
{
    AUTO(codec_context_free_p) AVCodecContext *enc = NULL;
    enum status s = codec_encoder_open(r, &enc, err);
    if (s != STATUS_OK)
        return s;
    if (r->kind == MEDIA_AUDIO) {
        r->priming = (uint32_t)enc->initial_padding;
        if (enc->frame_size != (int)r->frame_samples)
            return err_set(err, STATUS_INTERNAL, "encoder %s has frames of %d samples",
                           enc->codec->name, enc->frame_size);
    }
    struct buf config;
    buf_init(&config, CONFIG_MAX);
    s = codec_encoder_config(enc, r->codec, &config, err);
    if (s == STATUS_OK)
        s = codec_rendition_describe(r, &config, err);
    buf_done(&config);
    return s;
}

enum status codec_preload(struct err *err)
{
    static const enum media_codec all[] = {MEDIA_CODEC_H264, MEDIA_CODEC_AAC, MEDIA_CODEC_OPUS,
                                           MEDIA_CODEC_FLAC};
    av_log_set_level(AV_LOG_QUIET);
    (void)setenv("SVT_LOG", "0", 1);
    codec_charsets_load();
    codec_burn_preload();
    // New memory is filled with zeros. x264 reads some that it never wrote (seen with widths that
    // are no multiple of 16: other bytes after other allocations), and a segment has one content
    // only.
    mallopt(M_PERTURB, 0xff);
    // An encoder is opened for each segment: memory that the last one gave back stays, instead of
    // going to the system and coming back page by page (2 to 3 % of a ladder's CPU time).
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    for (size_t i = 0; i < N_ELEMENTS(all); i++) {
        struct media_rendition r = {.kind = all[i] == MEDIA_CODEC_H264 ? MEDIA_VIDEO : MEDIA_AUDIO,
                                    .codec = all[i],
                                    .width = 64,
                                    .height = 64,
                                    .frame_rate = {25, 1},
                                    .bitrate_bps = 64000,
                                    .maxrate_bps = 100000,
                                    .crf = 30,
                                    .level = 21,
                                    .color = {2, 2, 2}};
        AUTO(codec_context_free_p) AVCodecContext *c = NULL;
        enum status s = codec_encoder_open(&r, &c, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}
