// An images task: stills of the film for its poster and its seek bar, some moving moments of it, or
// the cover of a song.
//
// Stills are taken where segments begin: the keyframe alone where one is near enough. Otherwise the
// decoder goes on from where it is when that is in the same run of the source, so that a source
// with few keyframes is decoded once and not again and again; pictures that no other needs are
// passed over. The poster is the tile that shows most, from before it was made small.
#include <string.h>

#include <libavutil/imgutils.h>
#include <libswscale/swscale.h>

#include "base/mem.h"
#include "codec/internal.h"

#define JPEG_QUALITY 4 // of mjpeg's scale: 2 best, 31 worst
#define NEAR_MS 2500   // a keyframe so long before a segment stands for its first picture
#define MAX_PASSED 256 // packets between a seek and the keyframe that it should lead to

struct stills {
    struct codec_input *in;
    const struct media_plan *plan;
    int stream;
    AVCodecContext *dec;
    int64_t run_ticks; // where the source's run was entered that is being decoded
    int64_t at;        // grid time of the last picture; MEDIA_TIME_UNKNOWN: nowhere yet
    AVFrame *best;     // the picture of the tile that shows most
};

// ---------------------------------------------------------------- JPEG

// Limited range and the source's matrix to what pictures in files mean: BT.601, and full range for
// JPEG.
static enum status to_file_colors(const AVFrame *in, int space, bool full, AVFrame **ret,
                                  struct err *err)
{
    AUTO(codec_frame_free_p) AVFrame *out = av_frame_alloc();
    struct SwsContext *sws =
        sws_getContext(in->width, in->height, AV_PIX_FMT_YUV420P, in->width, in->height,
                       AV_PIX_FMT_YUV420P, SWS_BICUBIC | SWS_ACCURATE_RND, NULL, NULL, NULL);
    bool ok = out && sws;
    if (ok) {
        out->format = full ? AV_PIX_FMT_YUVJ420P : AV_PIX_FMT_YUV420P;
        out->color_range = full ? AVCOL_RANGE_JPEG : AVCOL_RANGE_MPEG;
        out->width = in->width;
        out->height = in->height;
        (void)sws_setColorspaceDetails(sws, sws_getCoefficients(space), 0,
                                       sws_getCoefficients(SWS_CS_ITU601), full, 0, 1 << 16,
                                       1 << 16);
        ok = av_frame_get_buffer(out, 0) >= 0 &&
             sws_scale(sws, (const uint8_t *const *)in->data, in->linesize, 0, in->height,
                       out->data, out->linesize) == in->height;
    }
    sws_freeContext(sws);
    if (!ok)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
    *ret = TAKE(out);
    return STATUS_OK;
}

static enum status jpeg_open(const AVFrame *f, AVCodecContext **ret, struct err *err)
{
    const AVCodec *codec = avcodec_find_encoder(AV_CODEC_ID_MJPEG);
    AUTO(codec_context_free_p) AVCodecContext *c = codec ? avcodec_alloc_context3(codec) : NULL;
    if (!c)
        return err_set(err, STATUS_INTERNAL, "JPEG: this build of FFmpeg has no encoder");
    c->width = f->width;
    c->height = f->height;
    c->pix_fmt = AV_PIX_FMT_YUVJ420P;
    c->color_range = AVCOL_RANGE_JPEG;
    c->time_base = (AVRational){1, 25};
    c->thread_count = 1;
    c->flags |= AV_CODEC_FLAG_QSCALE | AV_CODEC_FLAG_BITEXACT;
    c->global_quality = JPEG_QUALITY * FF_QP2LAMBDA;
    if (avcodec_open2(c, codec, NULL) < 0)
        return err_set(err, STATUS_INTERNAL, "JPEG: %dx%d cannot be encoded", f->width, f->height);
    *ret = TAKE(c);
    return STATUS_OK;
}

static enum status deliver(const struct codec_sink *sink, enum media_image which, AVFrame *f,
                           struct err *err)
{
    AUTO(codec_context_free_p) AVCodecContext *c = NULL;
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    enum status s = jpeg_open(f, &c, err);
    if (s != STATUS_OK)
        return s;
    f->pts = 0;
    f->quality = c->global_quality;
    if (!pkt || avcodec_send_frame(c, f) < 0 || avcodec_receive_packet(c, pkt) < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "JPEG: out of memory");
    struct media_segment_out out = {.rendition = which, .size = (uint32_t)pkt->size};
    return sink->segment(sink->ud, &out, pkt->data, (size_t)pkt->size, err);
}

// ---------------------------------------------------------------- pictures of the film

static int64_t grid_time(const struct stills *t, const AVFrame *f)
{
    const AVStream *st = t->in->fmt->streams[t->stream];
    if (f->best_effort_timestamp == AV_NOPTS_VALUE)
        return MEDIA_TIME_UNKNOWN;
    return av_rescale_q(f->best_effort_timestamp - t->plan->source.video_zero, st->time_base,
                        (AVRational){1, (int)t->plan->video.timescale});
}

// Decode on until a picture of time `want` or later comes, or the source ends: the last one then.
static enum status decode_until(struct stills *t, int64_t want, AVFrame **ret, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AUTO(codec_frame_free_p) AVFrame *frame = av_frame_alloc();
    AUTO(codec_frame_free_p) AVFrame *last = av_frame_alloc();
    if (!pkt || !frame || !last)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "decode: out of memory");
    for (bool end = false, found = false; !end && !found;) {
        int r = codec_input_read(t->in, pkt);
        end = r < 0;
        if (t->in->failed || r == AVERROR(ENOMEM)) {
            av_packet_unref(pkt);
            return codec_error(t->in, r, "decode", err);
        }
        if (end || pkt->stream_index == t->stream)
            (void)avcodec_send_packet(t->dec, end ? NULL : pkt); // damage is passed over
        av_packet_unref(pkt);
        while (!found && avcodec_receive_frame(t->dec, frame) >= 0) {
            int64_t at = grid_time(t, frame);
            if (at != MEDIA_TIME_UNKNOWN)
                t->at = at;
            found = at >= want;
            av_frame_unref(last);
            av_frame_move_ref(last, frame);
            codec_frame_fill_colors(last, t->in->fmt->streams[t->stream]->codecpar);
        }
    }
    *ret = last->data[0] ? TAKE(last) : NULL;
    return STATUS_OK;
}

// The picture of grid time `want`, which lies in that segment. *ret NULL: none comes out there.
static enum status grab(struct stills *t, size_t segment, int64_t want, AVFrame **ret,
                        struct err *err)
{
    const struct media_segment *seg = &t->plan->video.segments[segment];
    enum media_seek how = t->plan->source.seek;
    int64_t enter = how == MEDIA_SEEK_NONE ? MEDIA_TIME_UNKNOWN : seg->seek_ticks;
    bool is_ahead = t->at != MEDIA_TIME_UNKNOWN && t->at < want && t->run_ticks == enter;
    *ret = NULL;
    if (!is_ahead) {
        enum status s = codec_input_seek(t->in, t->stream, how, enter, seg->seek_offset, err);
        if (s != STATUS_OK)
            return s;
        avcodec_flush_buffers(t->dec);
        t->run_ticks = enter;
        t->at = MEDIA_TIME_UNKNOWN;
    }
    return decode_until(t, want, ret, err);
}

// The keyframe that the segment is entered at, alone, when it is near enough to stand for its first
// picture. *ret NULL: it is not, or does not come.
static enum status grab_key(struct stills *t, size_t segment, AVFrame **ret, struct err *err)
{
    const struct media_segment *seg = &t->plan->video.segments[segment];
    const AVStream *st = t->in->fmt->streams[t->stream];
    enum media_seek how = t->plan->source.seek;
    *ret = NULL;
    if (how == MEDIA_SEEK_NONE || seg->seek_ticks == MEDIA_TIME_UNKNOWN)
        return STATUS_OK;
    int64_t key = av_rescale_q(seg->seek_ticks - t->plan->source.video_zero, st->time_base,
                               (AVRational){1, (int)t->plan->video.timescale});
    if (seg->start - key > (int64_t)t->plan->video.timescale * NEAR_MS / 1000)
        return STATUS_OK;
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AUTO(codec_frame_free_p) AVFrame *frame = av_frame_alloc();
    if (!pkt || !frame)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "decode: out of memory");
    enum status s = codec_input_seek(t->in, t->stream, how, seg->seek_ticks, seg->seek_offset, err);
    if (s != STATUS_OK)
        return s;
    avcodec_flush_buffers(t->dec);
    t->at = MEDIA_TIME_UNKNOWN;
    bool found = false;
    for (int n = 0; n < MAX_PASSED && !found; n++) {
        int r = av_read_frame(t->in->fmt, pkt);
        if (r < 0)
            return t->in->failed || r == AVERROR(ENOMEM) ? codec_error(t->in, r, "decode", err)
                                                         : STATUS_OK;
        found = pkt->stream_index == t->stream && (pkt->flags & AV_PKT_FLAG_KEY) &&
                !(pkt->flags & AV_PKT_FLAG_DISCARD);
        if (!found)
            av_packet_unref(pkt);
    }
    if (found && avcodec_send_packet(t->dec, pkt) >= 0) {
        (void)avcodec_send_packet(t->dec, NULL);
        if (avcodec_receive_frame(t->dec, frame) >= 0 && frame->data[0]) {
            codec_frame_fill_colors(frame, st->codecpar);
            *ret = TAKE(frame);
        }
    }
    avcodec_flush_buffers(t->dec);
    return STATUS_OK;
}

static enum status set_up(struct stills *t, struct err *err)
{
    const struct media_track *track = media_plan_track(t->plan, MEDIA_TRACK_VIDEO);
    if (!track || track->index >= t->in->fmt->nb_streams)
        return err_set(err, STATUS_FAILED_PRECONDITION, "the plan is not this source's");
    t->stream = track->index;
    for (unsigned i = 0; i < t->in->fmt->nb_streams; i++)
        t->in->fmt->streams[i]->discard = (int)i == t->stream ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    enum status s = codec_decoder_open(t->in, t->stream, 1, &t->dec, err);
    if (s == STATUS_OK)
        t->dec->skip_frame = AVDISCARD_NONREF;
    return s;
}

// A decoded picture at that size, in the colours of pictures in files.
static enum status shrink_as(const struct stills *t, const AVFrame *f, uint32_t width,
                             uint32_t height, bool full, AVFrame **ret, struct err *err)
{
    const struct media_track *track =
        t ? media_plan_track(t->plan, MEDIA_TRACK_VIDEO) : NULL; // a cover stands upright
    AUTO(codec_scaler_free_p)
    struct codec_scaler *scaler = codec_scaler_new(width, height, track ? track->rotation : 0);
    AUTO(codec_frame_free_p) AVFrame *small = NULL;
    if (!scaler)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
    enum status s = codec_scaler_run(scaler, f, &small, err);
    return s == STATUS_OK ? to_file_colors(small, codec_frame_matrix(small), full, ret, err) : s;
}

static enum status shrink(const struct stills *t, const AVFrame *f, uint32_t width, uint32_t height,
                          AVFrame **ret, struct err *err)
{
    return shrink_as(t, f, width, height, true, ret, err);
}

// ---------------------------------------------------------------- tiles

// How much there is to see: the variance of the brightness.
static uint64_t interest(const AVFrame *f)
{
    uint64_t sum = 0, squares = 0, n = (uint64_t)f->width * (uint64_t)f->height;
    for (int y = 0; y < f->height; y++) {
        const uint8_t *line = f->data[0] + (ptrdiff_t)y * f->linesize[0];
        for (int x = 0; x < f->width; x++) {
            sum += line[x];
            squares += (uint64_t)line[x] * line[x];
        }
    }
    return n ? squares / n - (sum / n) * (sum / n) : 0;
}

static void put_tile(AVFrame *sheet, const AVFrame *tile, const struct media_tiles *l, uint32_t k)
{
    for (int p = 0; p < 3; p++) {
        int half = p > 0;
        ptrdiff_t x = (ptrdiff_t)(k % l->columns) * (l->width >> half);
        ptrdiff_t y = (ptrdiff_t)(k / l->columns) * (l->height >> half);
        av_image_copy_plane(sheet->data[p] + y * sheet->linesize[p] + x, sheet->linesize[p],
                            tile->data[p], tile->linesize[p], (int)l->width >> half,
                            (int)l->height >> half);
    }
}

static enum status new_sheet(const struct media_tiles *l, AVFrame **ret, struct err *err)
{
    AUTO(codec_frame_free_p) AVFrame *f = av_frame_alloc();
    if (f) {
        f->format = AV_PIX_FMT_YUVJ420P;
        f->color_range = AVCOL_RANGE_JPEG;
        f->width = (int)(l->columns * l->width);
        f->height = (int)(l->rows * l->height);
    }
    if (!f || av_frame_get_buffer(f, 0) < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
    ptrdiff_t strides[4] = {f->linesize[0], f->linesize[1], f->linesize[2]};
    (void)av_image_fill_black(f->data, strides, f->format, AVCOL_RANGE_JPEG, f->width, f->height);
    *ret = TAKE(f);
    return STATUS_OK;
}

// All tiles on one sheet; the picture of the one that shows most, of the first half, is kept.
static enum status make_tiles(struct stills *t, const struct codec_sink *sink, struct err *err)
{
    const struct media_grid *g = &t->plan->video;
    struct media_tiles l;
    uint64_t most = 0;
    media_tiles_layout(t->plan, &l);
    AUTO(codec_frame_free_p) AVFrame *sheet = NULL;
    enum status s = new_sheet(&l, &sheet, err);
    for (uint32_t k = 0; s == STATUS_OK && k < l.n; k++) {
        size_t segment = media_tile_segment(t->plan, &l, k);
        AUTO(codec_frame_free_p) AVFrame *full = NULL;
        AUTO(codec_frame_free_p) AVFrame *tile = NULL;
        s = grab_key(t, segment, &full, err);
        if (s == STATUS_OK && !full)
            s = grab(t, segment, g->segments[segment].start, &full, err);
        if (s == STATUS_OK && full)
            s = shrink(t, full, l.width, l.height, &tile, err);
        if (s != STATUS_OK || !tile)
            continue;
        put_tile(sheet, tile, &l, k);
        uint64_t shows = interest(tile);
        if (shows > most && k <= l.n / 2) {
            most = shows;
            av_frame_free(&t->best);
            t->best = TAKE(full);
        }
        if (sink->progress)
            sink->progress(sink->ud, k + 1, l.n + 1);
    }
    return s == STATUS_OK ? deliver(sink, MEDIA_IMAGE_TILES, sheet, err) : s;
}

// ---------------------------------------------------------------- posters

static enum status make_poster(struct stills *t, const struct codec_sink *sink, struct err *err)
{
    const struct media_segment *seg = &t->plan->video.segments[0];
    const struct media_rendition *top = &t->plan->renditions[0];
    // A film of one segment may begin in the dark.
    int64_t want = t->plan->video.n_segments > 1 ? seg->start : seg->duration / 3;
    uint32_t w, h;
    AUTO(codec_frame_free_p) AVFrame *full = TAKE(t->best);
    AUTO(codec_frame_free_p) AVFrame *picture = NULL;
    t->at = MEDIA_TIME_UNKNOWN; // what was passed over before may be it
    enum status s = full ? STATUS_OK : grab(t, 0, want, &full, err);
    if (s != STATUS_OK || !full)
        return s;
    media_poster_size(top->width, top->height, &w, &h);
    s = shrink(t, full, w, h, &picture, err);
    return s == STATUS_OK ? deliver(sink, MEDIA_IMAGE_POSTER, picture, err) : s;
}

static enum status make_cover(struct codec_input *in, const struct codec_sink *sink,
                              struct err *err)
{
    AUTO(codec_context_free_p) AVCodecContext *dec = NULL;
    AUTO(codec_frame_free_p) AVFrame *full = av_frame_alloc();
    AUTO(codec_frame_free_p) AVFrame *picture = NULL;
    unsigned i = 0;
    while (i < in->fmt->nb_streams && in->fmt->streams[i]->attached_pic.size == 0)
        i++;
    if (!full)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
    if (i == in->fmt->nb_streams)
        return STATUS_OK;
    enum status s = codec_decoder_open(in, (int)i, 1, &dec, err);
    if (s == STATUS_INVALID_ARGUMENT)
        return STATUS_OK; // a cover that is not decoded here is none
    if (s != STATUS_OK)
        return s;
    if (avcodec_send_packet(dec, &in->fmt->streams[i]->attached_pic) < 0)
        return STATUS_OK;
    (void)avcodec_send_packet(dec, NULL);
    if (avcodec_receive_frame(dec, full) < 0 || full->width <= 0 || full->height <= 0)
        return STATUS_OK; // a damaged cover is none
    uint32_t w, h;
    media_poster_size((uint32_t)full->width, (uint32_t)full->height, &w, &h);
    s = shrink(NULL, full, w, h, &picture, err);
    return s == STATUS_OK ? deliver(sink, MEDIA_IMAGE_POSTER, picture, err) : s;
}

// ---------------------------------------------------------------- previews

#define N_PREVIEW_QUALITIES 4

static enum status webp_open(const AVFrame *f, int quality, AVCodecContext **ret, struct err *err)
{
    const AVCodec *codec = avcodec_find_encoder_by_name("libwebp_anim");
    AUTO(codec_context_free_p) AVCodecContext *c = codec ? avcodec_alloc_context3(codec) : NULL;
    if (!c)
        return err_set(err, STATUS_INTERNAL, "WebP: this build of FFmpeg has no encoder");
    c->width = f->width;
    c->height = f->height;
    c->pix_fmt = AV_PIX_FMT_YUV420P;
    c->time_base = (AVRational){1, MEDIA_PREVIEW_FPS};
    c->thread_count = 1;
    c->flags |= AV_CODEC_FLAG_QSCALE | AV_CODEC_FLAG_BITEXACT;
    c->global_quality = quality * FF_QP2LAMBDA;
    c->compression_level = 2;
    if (avcodec_open2(c, codec, NULL) < 0)
        return err_set(err, STATUS_INTERNAL, "WebP: %dx%d cannot be encoded", f->width, f->height);
    *ret = TAKE(c);
    return STATUS_OK;
}

// One animation of them all. *ret_fits: it was small enough, and is delivered.
static enum status deliver_webp(AVFrame **frames, size_t n, int quality,
                                const struct codec_sink *sink, bool *ret_fits, struct err *err)
{
    AUTO(codec_context_free_p) AVCodecContext *c = NULL;
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    enum status s = webp_open(frames[0], quality, &c, err);
    if (s != STATUS_OK)
        return s;
    for (size_t i = 0; i < n; i++) {
        frames[i]->pts = (int64_t)i;
        if (avcodec_send_frame(c, frames[i]) < 0)
            return err_set(err, STATUS_INTERNAL, "WebP: a picture is not taken");
    }
    (void)avcodec_send_frame(c, NULL);
    if (!pkt || avcodec_receive_packet(c, pkt) < 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "WebP: out of memory");
    *ret_fits = pkt->size > 0 && pkt->size <= (int)MEDIA_MAX_PREVIEW_BYTES;
    if (!*ret_fits)
        return STATUS_OK;
    struct media_segment_out out = {.rendition = MEDIA_IMAGE_PREVIEW, .size = (uint32_t)pkt->size};
    return sink->segment(sink->ud, &out, pkt->data, (size_t)pkt->size, err);
}

// The pictures of one cut, from the beginning of a segment on; they are added to frames.
static enum status take_cut(struct stills *t, size_t segment, AVFrame **frames, size_t *n,
                            struct err *err)
{
    const struct media_grid *g = &t->plan->video;
    const struct media_rendition *top = &t->plan->renditions[0];
    uint32_t w, h;
    media_preview_size(top->width, top->height, &w, &h);
    for (int k = 0; k < MEDIA_PREVIEW_CUT_FRAMES; k++) {
        AUTO(codec_frame_free_p) AVFrame *full = NULL;
        int64_t want = g->segments[segment].start + (int64_t)g->timescale * k / MEDIA_PREVIEW_FPS;
        if (want >= g->duration)
            break;
        if (k > 0 && t->at != MEDIA_TIME_UNKNOWN && t->at >= want) { // shown for longer than that
            frames[*n] = av_frame_clone(frames[*n - 1]);
            if (!frames[*n])
                return err_set(err, STATUS_RESOURCE_EXHAUSTED, "picture: out of memory");
            ++*n;
            continue;
        }
        enum status s = grab(t, segment, want, &full, err);
        if (s == STATUS_OK && full)
            s = shrink_as(t, full, w, h, false, &frames[*n], err);
        if (s != STATUS_OK || !full)
            return s;
        ++*n;
    }
    return STATUS_OK;
}

static enum status make_preview(struct stills *t, const struct codec_sink *sink, struct err *err)
{
    static const int qualities[N_PREVIEW_QUALITIES] = {60, 40, 20, 5};
    const size_t n_segments = t->plan->video.n_segments;
    size_t cuts = n_segments < MEDIA_PREVIEW_CUTS ? n_segments : MEDIA_PREVIEW_CUTS, n = 0;
    AVFrame *frames[MEDIA_PREVIEW_CUTS * MEDIA_PREVIEW_CUT_FRAMES] = {NULL};
    enum status s = STATUS_OK;
    t->at = MEDIA_TIME_UNKNOWN;
    for (size_t i = 0; i < cuts && s == STATUS_OK; i++)
        s = take_cut(t, (2 * i + 1) * n_segments / (2 * cuts), frames, &n, err);
    bool fits = n == 0;
    for (size_t i = 0; i < N_ELEMENTS(qualities) && s == STATUS_OK && !fits; i++)
        s = deliver_webp(frames, n, qualities[i], sink, &fits, err);
    for (size_t i = 0; i < N_ELEMENTS(frames); i++)
        av_frame_free(&frames[i]);
    return s;
}

// ---------------------------------------------------------------- the task

static bool wants(const struct media_plan *p, const struct media_task *t, enum media_image which)
{
    for (uint32_t i = 0; i < t->n_renditions; i++) {
        if (t->renditions[i] == which)
            return media_image_is_planned(p, which);
    }
    return false;
}

static enum status make_stills(struct codec_input *in, const struct media_plan *plan,
                               const struct media_task *task, const struct codec_sink *sink,
                               struct err *err)
{
    struct stills t = {.in = in, .plan = plan, .at = MEDIA_TIME_UNKNOWN};
    enum status s = set_up(&t, err);
    if (s == STATUS_OK && wants(plan, task, MEDIA_IMAGE_TILES))
        s = make_tiles(&t, sink, err);
    if (s == STATUS_OK && wants(plan, task, MEDIA_IMAGE_POSTER))
        s = make_poster(&t, sink, err);
    if (s == STATUS_OK && wants(plan, task, MEDIA_IMAGE_PREVIEW))
        s = make_preview(&t, sink, err);
    av_frame_free(&t.best);
    avcodec_free_context(&t.dec);
    return s;
}

enum status codec_images(const struct codec_source *src, const struct media_plan *plan,
                         const struct media_task *task, const struct codec_sink *sink,
                         struct err *err)
{
    AUTO(codec_input_close_p) struct codec_input *in = NULL;
    enum status s = codec_input_open(src, &in, err);
    if (s != STATUS_OK)
        return s;
    codec_input_use_plan(in, plan);
    if (plan->video.n_segments)
        return make_stills(in, plan, task, sink, err);
    if (wants(plan, task, MEDIA_IMAGE_POSTER))
        s = make_cover(in, sink, err);
    return s;
}
