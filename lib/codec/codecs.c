// Video codecs besides H.264: how their encoders are set, what their configurations say.
//
// All of them work on one thread, in groups of pictures that are one segment each, and give one
// packet for each picture that is shown: AV1 and VP9 pack pictures that are never shown together
// with the next one that is.
#include <stdio.h>
#include <string.h>

#include <libavutil/imgutils.h>

#include "base/str.h"
#include "codec/internal.h"

// Set where each codec gives about what H.264 does at its CRF of 23, at the speed of a request.
static const struct {
    const char *suffix; // of names
    uint8_t crf;
    double rate; // of H.264's
} codecs[MEDIA_N_CODECS] = {
    [MEDIA_CODEC_HEVC] = {"hevc", 26, 0.7},
    [MEDIA_CODEC_AV1] = {"av1", 35, 0.6},
    [MEDIA_CODEC_VP9] = {"vp9", 33, 0.75},
};

// No keyframe but the first; one thread; nothing about the encoder in the stream.
static const char x265_params[] =
    "keyint=-1:min-keyint=1:scenecut=0:open-gop=0:vbv-init=0.5:pools=none:frame-threads=1:"
    "lookahead-threads=0:wpp=0:pmode=0:pme=0:info=0:repeat-headers=0:aud=0:log-level=none";
static const char svt_params[] = "lp=1:scd=0:enable-overlays=0";

bool codec_is_other_video(enum media_codec codec)
{
    return codecs[codec].suffix != NULL;
}

bool codec_other_rung(const struct media_rendition *h264, enum media_codec codec,
                      struct media_rendition *ret)
{
    struct media_rendition r = *h264;
    r.codec = codec;
    r.lazy = true;
    r.crf = codecs[codec].crf;
    r.profile = r.level = 0;
    r.maxrate_bps = (uint32_t)(h264->maxrate_bps * codecs[codec].rate);
    r.bitrate_bps = (uint32_t)(h264->bitrate_bps * codecs[codec].rate);
    if (codec != MEDIA_CODEC_HEVC)
        r.cts_shift = 0; // packets are in the order of presentation
    r.recipe[0] = '\0';
    r.init = NULL;
    r.init_len = 0;
    int n = snprintf(r.id, sizeof(r.id), "%s-%s", h264->id, codecs[codec].suffix);
    *ret = r;
    return n > 0 && (size_t)n < sizeof(r.id);
}

void codec_set_other_video(AVCodecContext *c, const struct media_rendition *r, AVDictionary **o)
{
    c->gop_size = 1 << 20;
    av_dict_set_int(o, "crf", r->crf, 0);
    switch (r->codec) {
    case MEDIA_CODEC_HEVC:
        av_dict_set(o, "preset", "veryfast", 0);
        av_dict_set(o, "x265-params", x265_params, 0);
        break;
    case MEDIA_CODEC_AV1:
        av_dict_set(o, "preset", "10", 0);
        av_dict_set(o, "svtav1-params", svt_params, 0);
        break;
    case MEDIA_CODEC_VP9:
        c->bit_rate = r->maxrate_bps; // "constrained quality": the CRF, but no more than this
        c->rc_max_rate = 0;
        c->rc_buffer_size = 0;
        av_dict_set(o, "deadline", "good", 0);
        av_dict_set(o, "cpu-used", "5", 0);
        av_dict_set(o, "row-mt", "0", 0);
        av_dict_set(o, "auto-alt-ref", "1", 0);
        av_dict_set(o, "lag-in-frames", "16", 0);
        break;
    case MEDIA_CODEC_NONE:
    case MEDIA_CODEC_H264:
    case MEDIA_CODEC_AAC:
    case MEDIA_CODEC_OPUS:
    case MEDIA_CODEC_FLAC:
    case MEDIA_N_CODECS:
        break;
    }
}

void codec_other_recipe(struct media_rendition *r)
{
    const char *how = r->codec == MEDIA_CODEC_HEVC  ? "libx265 preset=veryfast "
                      : r->codec == MEDIA_CODEC_AV1 ? "libsvtav1 preset=10 "
                                                    : "libvpx-vp9 good cpu-used=5 lag=16 arf";
    const char *params = r->codec == MEDIA_CODEC_HEVC  ? x265_params
                         : r->codec == MEDIA_CODEC_AV1 ? svt_params
                                                       : "";
    snprintf(r->recipe, sizeof(r->recipe),
             "%s%s crf=%u maxrate=%u fps=%d/%d color=%u/%u/%u scale=%ux%u from=%u; %s", how, params,
             (unsigned)r->crf, r->maxrate_bps, r->frame_rate.num, r->frame_rate.den,
             (unsigned)r->color[0], (unsigned)r->color[1], (unsigned)r->color[2], r->width,
             r->height, (unsigned)r->scale_from, codec_build());
}

// ---- AV1 ----

// SVT-AV1 waits for ever when it is closed before its first frame, as happens when only its
// configuration was wanted.
static void give_a_frame(AVCodecContext *c)
{
    AUTO(codec_frame_free_p) AVFrame *f = av_frame_alloc();
    if (!f)
        return;
    f->format = c->pix_fmt;
    f->width = c->width;
    f->height = c->height;
    ptrdiff_t strides[4];
    if (av_frame_get_buffer(f, 0) < 0)
        return;
    for (int i = 0; i < 4; i++)
        strides[i] = f->linesize[i];
    (void)av_image_fill_black(f->data, strides, f->format, AVCOL_RANGE_MPEG, f->width, f->height);
    f->pts = 0;
    (void)avcodec_send_frame(c, f); // one that has ended already refuses it
}

void codec_context_free_p(AVCodecContext **c)
{
    if (*c && (*c)->codec && av_codec_is_encoder((*c)->codec) && avcodec_is_open(*c) &&
        (*c)->codec_id == AV_CODEC_ID_AV1)
        give_a_frame(*c);
    avcodec_free_context(c);
}

enum { OBU_SEQUENCE = 1, OBU_DELIMITER = 2, OBU_REDUNDANT = 7, OBU_TILES = 8, OBU_PADDING = 15 };

struct obu {
    const uint8_t *whole, *body;
    size_t whole_len, body_len;
    unsigned type;
};

// The next unit of a temporal unit (AV1 specification, 5.3); false at the end or at damage.
static bool next_obu(const uint8_t **p, const uint8_t *end, struct obu *ret)
{
    const uint8_t *at = *p;
    if (end - at < 2)
        return false;
    unsigned head = *at++;
    if (head & 4) // extension
        at++;
    uint64_t size = (uint64_t)(end - at);
    if (head & 2) {
        size = 0;
        for (unsigned shift = 0; shift < 56 && at < end; shift += 7) {
            size |= (uint64_t)(*at & 0x7f) << shift;
            if (!(*at++ & 0x80))
                break;
        }
    }
    if (at > end || size > (uint64_t)(end - at))
        return false;
    *ret = (struct obu){*p, at, (size_t)(at - *p) + (size_t)size, (size_t)size, head >> 3 & 15};
    *p = at + size;
    return true;
}

// What a sample does not hold (AV1 in ISOBMFF, 2.4).
bool codec_put_obus(struct buf *b, const uint8_t *p, size_t n)
{
    const uint8_t *end = p + n;
    struct obu u;
    while (next_obu(&p, end, &u))
        if (u.type != OBU_DELIMITER && u.type != OBU_REDUNDANT && u.type != OBU_TILES &&
            u.type != OBU_PADDING)
            buf_append(b, u.whole, u.whole_len);
    return !b->failed && p == end;
}

// AV1CodecConfigurationRecord (2.3.3): profile, level and tier stand at the front of a sequence
// header that has neither timing nor decoder models, as this encoder's.
static enum status put_av1c(struct buf *b, const uint8_t *p, size_t n, struct err *err)
{
    const uint8_t *end = p + n;
    struct obu u;
    bool found = false;
    while (!found && next_obu(&p, end, &u))
        found = u.type == OBU_SEQUENCE && u.body_len >= 5;
    // still picture, reduced header, timing: none; one operating point
    if (!found || (u.body[0] & 0x1e) || (u.body[0] & 1) || (u.body[1] & 0xf0))
        return err_set(err, STATUS_INTERNAL, "encoder gave no usable sequence header");
    unsigned profile = u.body[0] >> 5, level = u.body[3] >> 3;
    unsigned tier = level > 7 ? u.body[3] >> 2 & 1 : 0;
    buf_put_u8(b, 0x81);
    buf_put_u8(b, (uint8_t)(profile << 5 | level));
    buf_put_u8(b, (uint8_t)(tier << 7 | 0x0c)); // 8 bits, 4:2:0, place of chroma not known
    buf_put_u8(b, 0);
    buf_append(b, u.whole, u.whole_len);
    return STATUS_OK;
}

// ---- VP9 ----

// Least level whose rate of luma samples and picture size suffice (VP9 levels; webmproject.org).
static uint8_t vp9_level(int width, int height, AVRational rate)
{
    static const struct {
        uint8_t level;
        double per_second, size;
    } levels[] = {{10, 829440, 36864},       {11, 2764800, 73728},      {20, 4608000, 122880},
                  {21, 9216000, 245760},     {30, 20736000, 552960},    {31, 36864000, 983040},
                  {40, 83558400, 2228224},   {41, 160432128, 2228224},  {50, 311951360, 8912896},
                  {51, 588251136, 8912896},  {52, 1176502272, 8912896}, {60, 1176502272, 35651584},
                  {61, 2353004544, 35651584}};
    double size = (double)width * height, per_second = size * av_q2d(rate);
    for (size_t i = 0; i < N_ELEMENTS(levels); i++)
        if (per_second <= levels[i].per_second && size <= levels[i].size)
            return levels[i].level;
    return 62;
}

// VPCodecConfigurationRecord, with the box's version (VP codec ISO media file format binding).
static void put_vpcc(struct buf *b, const AVCodecContext *enc)
{
    buf_put_be32(b, 0x01000000);
    buf_put_u8(b, 0); // profile
    buf_put_u8(b, vp9_level(enc->width, enc->height, enc->framerate));
    buf_put_u8(b, 0x80); // 8 bits, 4:2:0, limited range
    buf_put_u8(b, (uint8_t)enc->color_primaries);
    buf_put_u8(b, (uint8_t)enc->color_trc);
    buf_put_u8(b, (uint8_t)enc->colorspace);
    buf_put_be16(b, 0);
}

enum status codec_other_config(const AVCodecContext *enc, enum media_codec codec, struct buf *ret,
                               struct err *err)
{
    if (codec == MEDIA_CODEC_AV1)
        return put_av1c(ret, enc->extradata,
                        enc->extradata_size > 0 ? (size_t)enc->extradata_size : 0, err);
    put_vpcc(ret, enc);
    return STATUS_OK;
}

void codec_name_other(struct media_rendition *r, const uint8_t *config)
{
    if (r->codec == MEDIA_CODEC_HEVC) {
        r->profile = config[1] & 31;
        r->level = config[12];
        codec_name_record(r->codec, config, r->codecs, sizeof(r->codecs));
    } else if (r->codec == MEDIA_CODEC_AV1) {
        r->profile = config[1] >> 5;
        r->level = config[1] & 31;
        snprintf(r->codecs, sizeof(r->codecs), "av01.%u.%02u%c.08", (unsigned)r->profile,
                 (unsigned)r->level, config[2] & 0x80 ? 'H' : 'M');
    } else {
        r->profile = config[4];
        r->level = config[5];
        snprintf(r->codecs, sizeof(r->codecs), "vp09.%02u.%02u.08", (unsigned)r->profile,
                 (unsigned)r->level);
    }
}
