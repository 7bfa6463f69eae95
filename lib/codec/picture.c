// From a decoded frame to a rung's picture: combs of interlaced frames are blended, then one
// conversion with fixed flags (accurate_rnd and bitexact make it the same on every CPU), then a
// quarter turn where the camera was held upright. A picture depends on its own frame alone, so it
// is the same wherever decoding began.
#include <string.h>

#include <libavutil/imgutils.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>

#include "base/mem.h"
#include "codec/internal.h"

struct codec_scaler {
    struct SwsContext *sws;
    AVBufferPool *pool;          // of pictures: fresh memory for each would cost its page faults
    int width, height, rotation; // of the result; the conversion's own size is turned back
    int in_w, in_h, in_format, in_range, in_space, in_trc;
    struct codec_tonemap *tonemap; // once an HDR picture has come
};

#define ALIGN 64 // of lines, for vector instructions

static size_t picture_bytes(int w, int h)
{
    // Vector code reads and writes whole vectors past the end of the last line.
    return (size_t)av_image_get_buffer_size(AV_PIX_FMT_YUV420P, w, h, ALIGN) + ALIGN;
}

struct codec_scaler *codec_scaler_new(uint32_t width, uint32_t height, int rotation)
{
    struct codec_scaler *s = mem_alloc(sizeof(*s));
    if (s) {
        s->width = (int)width;
        s->height = (int)height;
        s->rotation = rotation;
        s->in_format = AV_PIX_FMT_NONE;
        bool turned = rotation % 180 != 0;
        s->pool = av_buffer_pool_init(
            turned ? picture_bytes(s->height, s->width) : picture_bytes(s->width, s->height), NULL);
        if (!s->pool) {
            mem_free(s);
            return NULL;
        }
    }
    return s;
}

void codec_scaler_free(struct codec_scaler *s)
{
    if (!s)
        return;
    sws_freeContext(s->sws);
    codec_tonemap_free(s->tonemap);
    av_buffer_pool_uninit(&s->pool); // frames that are still held keep what they need
    mem_free(s);
}

// The deprecated full-range formats are their plain ones with the range said apart.
static int plain_format(int f, int *range)
{
    static const int pairs[][2] = {{AV_PIX_FMT_YUVJ420P, AV_PIX_FMT_YUV420P},
                                   {AV_PIX_FMT_YUVJ422P, AV_PIX_FMT_YUV422P},
                                   {AV_PIX_FMT_YUVJ444P, AV_PIX_FMT_YUV444P},
                                   {AV_PIX_FMT_YUVJ440P, AV_PIX_FMT_YUV440P},
                                   {AV_PIX_FMT_YUVJ411P, AV_PIX_FMT_YUV411P}};
    for (size_t i = 0; i < N_ELEMENTS(pairs); i++) {
        if (f == pairs[i][0]) {
            *range = 1;
            return pairs[i][1];
        }
    }
    return f;
}

void codec_frame_fill_colors(AVFrame *f, const AVCodecParameters *par)
{
    if (f->color_primaries == AVCOL_PRI_UNSPECIFIED)
        f->color_primaries = par->color_primaries;
    if (f->color_trc == AVCOL_TRC_UNSPECIFIED)
        f->color_trc = par->color_trc;
    if (f->colorspace == AVCOL_SPC_UNSPECIFIED)
        f->colorspace = par->color_space;
}

static bool is_rgb(const AVFrame *f)
{
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(f->format);
    return d && (d->flags & (AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL));
}

int codec_frame_matrix(const AVFrame *f)
{
    if (is_rgb(f)) // has none of its own, so it gets the usual one
        return SWS_CS_ITU709;
    switch (f->colorspace) {
    case AVCOL_SPC_BT709:
        return SWS_CS_ITU709;
    case AVCOL_SPC_FCC:
        return SWS_CS_FCC;
    case AVCOL_SPC_SMPTE240M:
        return SWS_CS_SMPTE240M;
    case AVCOL_SPC_BT2020_NCL:
    case AVCOL_SPC_BT2020_CL:
        return SWS_CS_BT2020;
    default:
        return SWS_CS_ITU601;
    }
}

static enum status set_up(struct codec_scaler *s, const AVFrame *in, int w, int h, struct err *err)
{
    int range = in->color_range == AVCOL_RANGE_JPEG, format = plain_format(in->format, &range);
    int space = codec_frame_matrix(in);
    if (s->sws && s->in_w == in->width && s->in_h == in->height && s->in_format == format &&
        s->in_range == range && s->in_space == space && s->in_trc == (int)in->color_trc)
        return STATUS_OK;
    bool hdr = codec_frame_is_hdr(in);
    sws_freeContext(s->sws);
    s->sws = sws_getContext(in->width, in->height, format, w, h,
                            hdr ? AV_PIX_FMT_YUV420P10 : AV_PIX_FMT_YUV420P,
                            SWS_BICUBIC | SWS_ACCURATE_RND | SWS_BITEXACT, NULL, NULL, NULL);
    if (!s->sws)
        return err_set(err, STATUS_INVALID_ARGUMENT, "pictures of format %s cannot be converted",
                       av_get_pix_fmt_name(in->format) ? av_get_pix_fmt_name(in->format) : "?");
    // The matrix stays the source's (the stream says which); only the range becomes the usual one.
    // RGB has no range of its own and uses the destination's matrix.
    const int *table = sws_getCoefficients(space);
    (void)sws_setColorspaceDetails(s->sws, table, range, table, 0, 0, 1 << 16, 1 << 16);
    s->in_w = in->width;
    s->in_h = in->height;
    s->in_format = format;
    s->in_range = range;
    s->in_space = space;
    s->in_trc = in->color_trc;
    codec_tonemap_free(s->tonemap);
    s->tonemap = hdr ? codec_tonemap_new(in) : NULL;
    return !hdr || s->tonemap ? STATUS_OK
                              : err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
}

// Memory from the pool, whose buffers are of that size; NULL: of its own.
static AVFrame *picture_new(AVBufferPool *pool, int w, int h)
{
    AVFrame *f = av_frame_alloc();
    if (!f)
        return NULL;
    f->format = AV_PIX_FMT_YUV420P;
    f->width = w;
    f->height = h;
    f->buf[0] = pool ? av_buffer_pool_get(pool) : av_buffer_alloc(picture_bytes(w, h));
    if (!f->buf[0] || av_image_fill_arrays(f->data, f->linesize, f->buf[0]->data,
                                           AV_PIX_FMT_YUV420P, w, h, ALIGN) < 0)
        av_frame_free(&f);
    return f;
}

// dst (w x h) = src turned clockwise.
static void turn_plane(uint8_t *dst, int dst_stride, const uint8_t *src, int src_stride, int w,
                       int h, int rotation)
{
    for (int y = 0; y < h; y++) {
        for (int x = 0; x < w; x++) {
            int sx = rotation == 90 ? y : rotation == 180 ? w - 1 - x : h - 1 - y;
            int sy = rotation == 90 ? w - 1 - x : rotation == 180 ? h - 1 - y : x;
            dst[(ptrdiff_t)y * dst_stride + x] = src[(ptrdiff_t)sy * src_stride + sx];
        }
    }
}

static enum status turn(const AVFrame *in, int w, int h, int rotation, AVFrame **ret,
                        struct err *err)
{
    AVFrame *out = picture_new(NULL, w, h);
    if (!out)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
    out->colorspace = in->colorspace;
    for (int p = 0; p < 3; p++) {
        int half = p > 0;
        turn_plane(out->data[p], out->linesize[p], in->data[p], in->linesize[p], w >> half,
                   h >> half, rotation);
    }
    *ret = out;
    return STATUS_OK;
}

// ---- interlaced frames ----

// Two moments lie in one interlaced frame, on alternating lines; where something moved, a line
// differs from both its neighbours in the same direction. There the three are blended; still parts
// keep their detail, and so do frames that are only said to be interlaced.
#define COMB 10 // of 255, that a line must differ by

static int unit_of(const AVPixFmtDescriptor *d)
{
    return 1 << (d->comp[0].depth - 8);
}

static void blend_line8(uint8_t *out, const uint8_t *a, const uint8_t *b, const uint8_t *c, int n)
{
    for (int x = 0; x < n; x++) {
        int up = a[x] - b[x], down = c[x] - b[x];
        bool comb = (up > COMB && down > COMB) || (up < -COMB && down < -COMB);
        out[x] = comb ? (uint8_t)((a[x] + 2 * b[x] + c[x] + 2) >> 2) : b[x];
    }
}

static void blend_line16(uint16_t *out, const uint16_t *a, const uint16_t *b, const uint16_t *c,
                         int n, int unit)
{
    int least = COMB * unit;
    for (int x = 0; x < n; x++) {
        int up = a[x] - b[x], down = c[x] - b[x];
        bool comb = (up > least && down > least) || (up < -least && down < -least);
        out[x] = comb ? (uint16_t)((a[x] + 2 * b[x] + c[x] + 2) >> 2) : b[x];
    }
}

static const void *line(const AVFrame *f, int plane, int y)
{
    return f->data[plane] + (ptrdiff_t)y * f->linesize[plane];
}

static void blend_plane(AVFrame *out, const AVFrame *in, int plane, int w, int h, int unit)
{
    for (int y = 0; y < h; y++) {
        const void *b = line(in, plane, y), *a = y > 0 ? line(in, plane, y - 1) : b,
                   *c = y + 1 < h ? line(in, plane, y + 1) : b;
        void *to = out->data[plane] + (ptrdiff_t)y * out->linesize[plane];
        if (unit == 1)
            blend_line8(to, a, b, c, w);
        else
            blend_line16(to, a, b, c, w, unit);
    }
}

// Planar YUV of 8 to 16 bits in this machine's byte order; others are left as they are.
static bool can_blend(const AVPixFmtDescriptor *d)
{
    const uint64_t no = AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_HWACCEL |
                        AV_PIX_FMT_FLAG_BITSTREAM | AV_PIX_FMT_FLAG_BE | AV_PIX_FMT_FLAG_FLOAT;
    if (!d || (d->flags & no) || d->comp[0].depth < 8)
        return false;
    int bytes = d->comp[0].depth > 8 ? 2 : 1;
    for (int i = 0; i < d->nb_components; i++)
        if (d->comp[i].plane != i || d->comp[i].step != bytes || d->comp[i].shift != 0)
            return false;
    return true;
}

// ret stays NULL when there is nothing to do.
static enum status deinterlace(const AVFrame *in, AVFrame **ret, struct err *err)
{
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(in->format);
    if (!in->interlaced_frame || !can_blend(d))
        return STATUS_OK;
    AUTO(codec_frame_free_p) AVFrame *out = av_frame_alloc();
    if (out) {
        out->format = in->format;
        out->width = in->width;
        out->height = in->height;
    }
    if (!out || av_frame_get_buffer(out, 0) < 0 || av_frame_copy_props(out, in) < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
    for (int i = 0; i < d->nb_components; i++) {
        bool chroma = i == 1 || i == 2;
        blend_plane(out, in, i, chroma ? AV_CEIL_RSHIFT(in->width, d->log2_chroma_w) : in->width,
                    chroma ? AV_CEIL_RSHIFT(in->height, d->log2_chroma_h) : in->height, unit_of(d));
    }
    *ret = TAKE(out);
    return STATUS_OK;
}

// Nothing is to be done: a conversion would copy it.
static bool is_result(const struct codec_scaler *s, const AVFrame *in)
{
    return !s->rotation && in->width == s->width && in->height == s->height &&
           s->in_format == AV_PIX_FMT_YUV420P && !s->in_range && !s->tonemap;
}

// Scaled as it is, in 10 bits, then made SDR.
static enum status scale_hdr(struct codec_scaler *s, const AVFrame *in, AVFrame *out,
                             struct err *err)
{
    AUTO(codec_frame_free_p) AVFrame *deep = av_frame_alloc();
    if (deep) {
        deep->format = AV_PIX_FMT_YUV420P10;
        deep->width = out->width;
        deep->height = out->height;
    }
    if (!deep || av_frame_get_buffer(deep, 0) < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
    if (sws_scale(s->sws, (const uint8_t *const *)in->data, in->linesize, 0, in->height, deep->data,
                  deep->linesize) != out->height)
        return err_set(err, STATUS_INVALID_ARGUMENT, "picture cannot be converted");
    codec_tonemap_run(s->tonemap, deep, out);
    return STATUS_OK;
}

static enum status scale(struct codec_scaler *s, const AVFrame *in, AVFrame *out, struct err *err)
{
    out->colorspace = s->tonemap || is_rgb(in) ? AVCOL_SPC_BT709 : in->colorspace;
    if (s->tonemap)
        return scale_hdr(s, in, out, err);
    if (sws_scale(s->sws, (const uint8_t *const *)in->data, in->linesize, 0, in->height, out->data,
                  out->linesize) != out->height)
        return err_set(err, STATUS_INVALID_ARGUMENT, "picture cannot be converted");
    return STATUS_OK;
}

enum status codec_scaler_run(struct codec_scaler *s, const AVFrame *in, AVFrame **ret,
                             struct err *err)
{
    bool turned = s->rotation % 180 != 0;
    int w = turned ? s->height : s->width, h = turned ? s->width : s->height;
    if (in->width <= 0 || in->height <= 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "picture without a size");
    AUTO(codec_frame_free_p) AVFrame *blended = NULL;
    enum status st = deinterlace(in, &blended, err);
    if (blended)
        in = blended;
    if (st == STATUS_OK)
        st = set_up(s, in, w, h, err);
    if (st != STATUS_OK)
        return st;
    if (is_result(s, in)) {
        *ret = av_frame_clone(in);
        return *ret ? STATUS_OK : err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
    }
    AUTO(codec_frame_free_p) AVFrame *out = picture_new(s->pool, w, h);
    if (!out)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
    st = scale(s, in, out, err);
    if (st != STATUS_OK)
        return st;
    if (s->rotation)
        return turn(out, s->width, s->height, s->rotation, ret, err);
    *ret = TAKE(out);
    return STATUS_OK;
}
