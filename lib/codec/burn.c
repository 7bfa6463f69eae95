// Subtitles that become part of the picture: scripts (ASS) through libass, pictures of text (PGS,
// DVD, DVB) through FFmpeg's decoders.
//
// What a frame shows depends on its segment and its time alone, so that a segment is the same
// whichever others are made with it: each segment begins with a clean renderer or decoder, which is
// given everything that may still show. In large files without an index of their own that is what
// began at most WINDOW_US before the segment; in others it is everything.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ass/ass.h>
#include <libavutil/imgutils.h>
#include <libswscale/swscale.h>

#include "base/mem.h"
#include "base/str.h"
#include "codec/internal.h"

#define WINDOW_US INT64_C(120000000)
#define WHOLE_BYTES (64 << 20) // files up to that are read through
#define MAX_PACKETS 65536
#define MAX_PACKET_BYTES (64U << 20) // of all
#define UNSAID_US 5000000            // an event whose length is not said
#define MAX_BURN_TRACKS 4
#define MAX_FONTS 32
#define MAX_FONT_BYTES (16 << 20)
#define MAX_ALL_FONT_BYTES (64 << 20)
#define MAX_FONT_FILE (4 << 20)
#define MAX_RECTS 64

// ---------------------------------------------------------------- the font that is always there

static const char *const font_files[] = {"/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
                                         "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf"};

struct font {
    char *data;
    size_t n;
};
// Written once, by codec_preload() and before any thread: a confined process opens no files.
static struct font fonts[N_ELEMENTS(font_files)];

void codec_burn_preload(void)
{
    for (size_t i = 0; i < N_ELEMENTS(font_files); i++) {
        FILE *f = fonts[i].data ? NULL : fopen(font_files[i], "rbe");
        char *data = f ? mem_alloc(MAX_FONT_FILE) : NULL;
        size_t n = data ? fread(data, 1, MAX_FONT_FILE, f) : 0;
        if (f)
            fclose(f);
        if (n > 0 && n < MAX_FONT_FILE)
            fonts[i] = (struct font){TAKE(data), n};
        mem_free(data);
    }
}

// ---------------------------------------------------------------- state

struct event {                     // a packet of the track, on the timeline
    int64_t start_us, duration_us; // 0: not said
    uint8_t *data;
    size_t n;
};

// Something to be laid over a picture: a mask of one colour, or pixels of their own.
struct overlay {
    int x, y, w, h;
    const uint8_t *mask; // NULL: pixels
    int stride;
    uint8_t alpha, color[3]; // with mask: Y, Cb, Cr
    uint8_t *pixels;         // w * h of A, Y, Cb, Cr
};

struct codec_burner {
    const struct media_plan *plan;
    int width, height, matrix;
    enum media_subtitle kind;
    bool whole;
    struct event *events; // in the order of the file
    size_t n, cap, bytes;
    size_t segment; // that is being made; SIZE_MAX: none yet
    // scripts
    ASS_Library *library;
    ASS_Renderer *renderer;
    ASS_Track *track;
    // pictures
    AVCodecParameters *par;
    AVRational time_base;
    AVCodecContext *dec;
    size_t next; // event to be decoded
    int64_t ends_us;
    struct overlay rects[MAX_RECTS];
    size_t n_rects;
};

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "burn in: out of memory");
}

static void clear_rects(struct codec_burner *b)
{
    for (size_t i = 0; i < b->n_rects; i++)
        mem_free(b->rects[i].pixels);
    b->n_rects = 0;
}

void codec_burner_free(struct codec_burner *b)
{
    if (!b)
        return;
    clear_rects(b);
    for (size_t i = 0; i < b->n; i++)
        mem_free(b->events[i].data);
    mem_free(b->events);
    if (b->track)
        ass_free_track(b->track);
    if (b->renderer)
        ass_renderer_done(b->renderer);
    if (b->library)
        ass_library_done(b->library);
    avcodec_free_context(&b->dec);
    avcodec_parameters_free(&b->par);
    mem_free(b);
}

// ---------------------------------------------------------------- reading the track

static enum status keep_event(struct codec_burner *b, const AVPacket *pkt, int64_t start_us,
                              int64_t duration_us, struct err *err)
{
    if (b->n == MAX_PACKETS || (size_t)pkt->size > MAX_PACKET_BYTES - b->bytes)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "the subtitles are too many to be burnt in: more than %d, or %u MiB",
                       MAX_PACKETS, MAX_PACKET_BYTES >> 20);
    if (b->n == b->cap) {
        size_t cap = b->cap ? 2 * b->cap : 256;
        struct event *p = mem_realloc(b->events, cap, sizeof(*p));
        if (!p)
            return no_memory(err);
        b->events = p;
        b->cap = cap;
    }
    // FFmpeg's decoders read a little further than a packet's end.
    uint8_t *data = mem_alloc((size_t)pkt->size + AV_INPUT_BUFFER_PADDING_SIZE);
    if (!data)
        return no_memory(err);
    memcpy(data, pkt->data, (size_t)pkt->size);
    b->events[b->n++] = (struct event){start_us, duration_us, data, (size_t)pkt->size};
    b->bytes += (size_t)pkt->size;
    return STATUS_OK;
}

// Source time to movie time by the track's edit list; false: it is not shown.
static bool map_time(const struct codec_edits *e, int64_t *us)
{
    for (size_t i = 0; i < e->n; i++) {
        if (*us >= e->p[i].media_us && *us - e->p[i].media_us < e->p[i].duration_us) {
            *us += e->p[i].movie_us - e->p[i].media_us;
            return true;
        }
    }
    return e->n == 0;
}

struct reading {
    struct codec_input *in;
    int subtitle, video;
    struct codec_edits edits;
    int64_t zero_us, from_us, to_us; // of the timeline
};

static int64_t packet_us(const struct reading *r, const AVPacket *pkt)
{
    int64_t t = pkt->pts != AV_NOPTS_VALUE ? pkt->pts : pkt->dts;
    if (t == AV_NOPTS_VALUE)
        return MEDIA_TIME_UNKNOWN;
    return av_rescale_q(t, r->in->fmt->streams[pkt->stream_index]->time_base, AV_TIME_BASE_Q);
}

static enum status take_packet(struct codec_burner *b, const struct reading *r, const AVPacket *pkt,
                               bool *ret_end, struct err *err)
{
    int64_t us = packet_us(r, pkt);
    if (us == MEDIA_TIME_UNKNOWN || us < -MEDIA_MAX_DURATION_US || us > 4 * MEDIA_MAX_DURATION_US)
        return STATUS_OK;
    if (pkt->stream_index != r->subtitle) {
        // Pictures come a little out of order.
        *ret_end = !b->whole && us - r->zero_us > r->to_us + 1000000;
        return STATUS_OK;
    }
    const AVStream *st = r->in->fmt->streams[r->subtitle];
    if (!map_time(&r->edits, &us) || pkt->size <= 0)
        return STATUS_OK;
    us -= r->zero_us;
    if (!b->whole && (us >= r->to_us || us < r->from_us))
        return STATUS_OK;
    return keep_event(b, pkt, us, codec_packet_duration_us(pkt, st->time_base), err);
}

static enum status read_events(struct codec_burner *b, const struct reading *r, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    bool end = false;
    int n = 0;
    if (!pkt)
        return no_memory(err);
    while (!end && (n = codec_input_read(r->in, pkt)) >= 0) {
        enum status s = take_packet(b, r, pkt, &end, err);
        av_packet_unref(pkt);
        if (s != STATUS_OK)
            return s;
    }
    bool broken = r->in->failed || n == AVERROR(ENOMEM);
    return broken ? codec_error(r->in, n, "burn in", err) : STATUS_OK;
}

static bool go_to(struct reading *r)
{
    const AVStream *st = r->in->fmt->streams[r->video];
    int64_t ticks = av_rescale_q(r->from_us + r->zero_us, AV_TIME_BASE_Q, st->time_base);
    return av_seek_frame(r->in->fmt, r->video, ticks, AVSEEK_FLAG_BACKWARD) >= 0;
}

static enum status read_track(struct codec_burner *b, const struct codec_source *src,
                              struct reading *r, struct err *err)
{
    AVFormatContext *f = r->in->fmt;
    for (unsigned i = 0; i < f->nb_streams; i++)
        f->streams[i]->discard = AVDISCARD_ALL;
    f->streams[r->subtitle]->discard = AVDISCARD_DEFAULT;
    enum status s = STATUS_OK;
    if (codec_is_mov(r->in))
        s = codec_edits_read(src, (uint32_t)f->streams[r->subtitle]->id, &r->edits, err);
    if (s != STATUS_OK)
        return s;
    if (!b->whole) {
        f->streams[r->video]->discard = AVDISCARD_DEFAULT; // tells when to stop
        if (r->from_us > 0 && !go_to(r) && r->in->failed)
            return codec_error(r->in, AVERROR(EIO), "burn in", err);
    }
    return read_events(b, r, err);
}

// ---------------------------------------------------------------- scripts

static void say_nothing(int level, const char *fmt, va_list args, void *ud)
{
    (void)level, (void)fmt, (void)args, (void)ud;
}

static bool is_font(const AVStream *st)
{
    const AVDictionaryEntry *mime = av_dict_get(st->metadata, "mimetype", NULL, 0),
                            *name = av_dict_get(st->metadata, "filename", NULL, 0);
    const char *m = mime ? mime->value : "", *f = name ? name->value : "";
    return strstr(m, "font") || strstr(m, "truetype") || strstr(m, "opentype") ||
           str_ends_with(f, ".ttf") || str_ends_with(f, ".otf") || str_ends_with(f, ".ttc") ||
           str_ends_with(f, ".TTF") || str_ends_with(f, ".OTF");
}

static bool add_font(struct codec_burner *b, const char *data, size_t n)
{
    char *copy = mem_dup(data, n); // libass keeps one of its own
    if (!copy)
        return false;
    ass_add_font(b->library, "font", copy, (int)n);
    mem_free(copy);
    return true;
}

// What the film brought, then what is always there.
static enum status add_fonts(struct codec_burner *b, const AVFormatContext *f, struct err *err)
{
    size_t n = 0, bytes = 0;
    bool ok = true;
    for (unsigned i = 0; i < f->nb_streams && n < MAX_FONTS; i++) {
        const AVCodecParameters *par = f->streams[i]->codecpar;
        if (par->codec_type != AVMEDIA_TYPE_ATTACHMENT || !is_font(f->streams[i]) ||
            par->extradata_size <= 0 || par->extradata_size > MAX_FONT_BYTES ||
            (size_t)par->extradata_size > MAX_ALL_FONT_BYTES - bytes)
            continue;
        ok = ok && add_font(b, (const char *)par->extradata, (size_t)par->extradata_size);
        bytes += (size_t)par->extradata_size;
        n++;
    }
    for (size_t i = 0; i < N_ELEMENTS(fonts); i++)
        if (fonts[i].data) {
            ok = ok && add_font(b, fonts[i].data, fonts[i].n);
            n++;
        }
    if (!ok)
        return no_memory(err);
    return n ? STATUS_OK
             : err_set(err, STATUS_INTERNAL, "burn in: no font: install fonts-dejavu-core");
}

static enum status open_script(struct codec_burner *b, const struct reading *r, struct err *err)
{
    const AVFormatContext *f = r->in->fmt;
    const AVCodecParameters *par = f->streams[r->subtitle]->codecpar;
    const AVCodecParameters *video = f->streams[r->video]->codecpar;
    b->library = ass_library_init();
    if (!b->library)
        return no_memory(err);
    ass_set_message_cb(b->library, say_nothing, NULL);
    ass_set_extract_fonts(b->library, 0); // fonts inside of scripts
    enum status s = add_fonts(b, f, err);
    if (s != STATUS_OK)
        return s;
    b->renderer = ass_renderer_init(b->library);
    b->track = b->renderer ? ass_new_track(b->library) : NULL;
    if (!b->track)
        return no_memory(err);
    ass_set_frame_size(b->renderer, b->width, b->height);
    if (video->width > 0 && video->height > 0)
        ass_set_storage_size(b->renderer, video->width, video->height);
    ass_set_hinting(b->renderer, ASS_HINTING_NONE);
    ass_set_cache_limits(b->renderer, 2000, 64);
    ass_set_fonts(b->renderer, NULL, "DejaVu Sans", ASS_FONTPROVIDER_NONE, NULL, 1);
    if (par->extradata_size > 0) {
        char *head = mem_alloc((size_t)par->extradata_size + 1);
        if (!head)
            return no_memory(err);
        memcpy(head, par->extradata, (size_t)par->extradata_size);
        head[par->extradata_size] = '\0';
        ass_process_codec_private(b->track, head, par->extradata_size);
        mem_free(head);
    }
    ass_set_check_readorder(b->track, 0);
    return STATUS_OK;
}

// ---------------------------------------------------------------- colours

// 8-bit RGB to limited range by that matrix (ITU-T H.273 numbers).
static void to_yuv(int matrix, int r, int g, int b, uint8_t ret[3])
{
    // Of 65536: Kr, Kb.
    static const int k601[2] = {19595, 7471}, k709[2] = {13933, 4732}, k2020[2] = {17216, 3886};
    const int *k = matrix == AVCOL_SPC_BT709                                         ? k709
                   : matrix == AVCOL_SPC_BT2020_NCL || matrix == AVCOL_SPC_BT2020_CL ? k2020
                                                                                     : k601;
    int kg = 65536 - k[0] - k[1];
    int64_t y = (int64_t)k[0] * r + (int64_t)kg * g + (int64_t)k[1] * b; // 65536 * 255 at most
    int64_t cb = (((int64_t)b << 16) - y) * 32768 / (65536 - k[1]);
    int64_t cr = (((int64_t)r << 16) - y) * 32768 / (65536 - k[0]);
    ret[0] = (uint8_t)(16 + (y * 219 / 255 + 32768) / 65536);
    ret[1] = (uint8_t)(128 + (cb * 224 / 255 + (cb < 0 ? -32768 : 32768)) / 65536);
    ret[2] = (uint8_t)(128 + (cr * 224 / 255 + (cr < 0 ? -32768 : 32768)) / 65536);
}

// Alpha and colour of a point of the picture.
static unsigned sample(const struct overlay *o, int x, int y, const uint8_t **ret_color)
{
    x -= o->x;
    y -= o->y;
    if (x < 0 || y < 0 || x >= o->w || y >= o->h)
        return 0;
    if (o->mask) {
        *ret_color = o->color;
        return (unsigned)o->mask[(ptrdiff_t)y * o->stride + x] * o->alpha / 255;
    }
    const uint8_t *p = o->pixels + ((ptrdiff_t)y * o->w + x) * 4;
    *ret_color = p + 1;
    return p[0];
}

static uint8_t mix(uint8_t under, unsigned over, unsigned alpha)
{
    return (uint8_t)((under * (255 - alpha) + over * alpha + 127) / 255);
}

static void blend_luma(AVFrame *f, const struct overlay *o, int x0, int y0, int x1, int y1)
{
    for (int y = y0; y < y1; y++) {
        uint8_t *line = f->data[0] + (ptrdiff_t)y * f->linesize[0];
        for (int x = x0; x < x1; x++) {
            const uint8_t *color = NULL;
            unsigned a = sample(o, x, y, &color);
            if (a)
                line[x] = mix(line[x], color[0], a);
        }
    }
}

// Each value of colour stands for four points: their mean, by how much of it each covers.
static void blend_chroma(AVFrame *f, const struct overlay *o, int x0, int y0, int x1, int y1)
{
    for (int y = y0 / 2; y < (y1 + 1) / 2; y++) {
        for (int x = x0 / 2; x < (x1 + 1) / 2; x++) {
            unsigned all = 0, cb = 0, cr = 0;
            for (int i = 0; i < 4; i++) {
                const uint8_t *color = NULL;
                unsigned a = sample(o, 2 * x + i % 2, 2 * y + i / 2, &color);
                if (!a)
                    continue;
                all += a;
                cb += a * color[1];
                cr += a * color[2];
            }
            if (!all)
                continue;
            uint8_t *u = f->data[1] + (ptrdiff_t)y * f->linesize[1] + x,
                    *v = f->data[2] + (ptrdiff_t)y * f->linesize[2] + x;
            *u = mix(*u, (cb + all / 2) / all, (all + 2) / 4);
            *v = mix(*v, (cr + all / 2) / all, (all + 2) / 4);
        }
    }
}

static void blend(AVFrame *f, const struct overlay *o)
{
    int x0 = o->x > 0 ? o->x : 0, y0 = o->y > 0 ? o->y : 0;
    int x1 = o->x + o->w < f->width ? o->x + o->w : f->width,
        y1 = o->y + o->h < f->height ? o->y + o->h : f->height;
    if (x0 >= x1 || y0 >= y1)
        return;
    blend_luma(f, o, x0, y0, x1, y1);
    blend_chroma(f, o, x0, y0, x1, y1);
}

// ---------------------------------------------------------------- pictures of text

// To the output's size, as alpha, Y, Cb, Cr.
static enum status scale_rect(struct codec_burner *b, const AVSubtitleRect *rect, int canvas_w,
                              int canvas_h, struct overlay *ret, struct err *err)
{
    int64_t x0 = (int64_t)rect->x * b->width / canvas_w,
            y0 = (int64_t)rect->y * b->height / canvas_h,
            x1 = (int64_t)(rect->x + rect->w) * b->width / canvas_w,
            y1 = (int64_t)(rect->y + rect->h) * b->height / canvas_h;
    *ret = (struct overlay){
        .x = (int)x0, .y = (int)y0, .w = (int)(x1 - x0), .h = (int)(y1 - y0), .stride = 0};
    if (ret->w <= 0 || ret->h <= 0 || ret->w > 4 * b->width || ret->h > 4 * b->height)
        return STATUS_OK;
    size_t in_points = (size_t)rect->w * (size_t)rect->h;
    AUTO(mem_free_p) uint8_t *rgba = mem_array(in_points, 4);
    ret->pixels = mem_array((size_t)ret->w * (size_t)ret->h, 4);
    struct SwsContext *sws =
        sws_getContext(rect->w, rect->h, AV_PIX_FMT_RGBA, ret->w, ret->h, AV_PIX_FMT_RGBA,
                       SWS_BILINEAR | SWS_ACCURATE_RND | SWS_BITEXACT, NULL, NULL, NULL);
    if (!rgba || !ret->pixels || !sws) {
        sws_freeContext(sws);
        mem_free(TAKE(ret->pixels));
        return no_memory(err);
    }
    for (int y = 0; y < rect->h; y++) {
        for (int x = 0; x < rect->w; x++) {
            uint32_t c;
            memcpy(&c,
                   rect->data[1] + (size_t)rect->data[0][(ptrdiff_t)y * rect->linesize[0] + x] * 4,
                   4);
            uint8_t *p = rgba + ((size_t)y * (size_t)rect->w + (size_t)x) * 4;
            p[0] = (uint8_t)(c >> 16);
            p[1] = (uint8_t)(c >> 8);
            p[2] = (uint8_t)c;
            p[3] = (uint8_t)(c >> 24);
        }
    }
    const uint8_t *from[1] = {rgba};
    uint8_t *to[1] = {ret->pixels};
    const int from_stride[1] = {rect->w * 4}, to_stride[1] = {ret->w * 4};
    (void)sws_scale(sws, from, from_stride, 0, rect->h, to, to_stride);
    sws_freeContext(sws);
    for (size_t i = 0; i < (size_t)ret->w * (size_t)ret->h; i++) {
        uint8_t *p = ret->pixels + 4 * i, yuv[3];
        to_yuv(b->matrix, p[0], p[1], p[2], yuv);
        p[0] = p[3];
        memcpy(p + 1, yuv, 3);
    }
    return STATUS_OK;
}

static bool rect_is_sane(const AVSubtitleRect *r, int canvas_w, int canvas_h)
{
    return r->type == SUBTITLE_BITMAP && r->data[0] && r->data[1] && r->w > 0 && r->h > 0 &&
           r->w <= 4096 && r->h <= 4096 && r->x >= 0 && r->y >= 0 && r->x <= 2 * canvas_w &&
           r->y <= 2 * canvas_h && r->linesize[0] >= r->w;
}

static enum status take_rects(struct codec_burner *b, const AVSubtitle *sub, struct err *err)
{
    int w = b->dec->width, h = b->dec->height;
    clear_rects(b);
    if (w <= 0 || h <= 0 || w > 8192 || h > 8192) { // not said: that of the film
        const struct media_track *t = media_plan_track(b->plan, MEDIA_TRACK_VIDEO);
        bool known = t && t->width && t->height;
        w = known ? (int)t->width : b->width;
        h = known ? (int)t->height : b->height;
    }
    for (unsigned i = 0; i < sub->num_rects && b->n_rects < MAX_RECTS; i++) {
        if (!rect_is_sane(sub->rects[i], w, h))
            continue;
        enum status s = scale_rect(b, sub->rects[i], w, h, &b->rects[b->n_rects], err);
        if (s != STATUS_OK)
            return s;
        b->n_rects += b->rects[b->n_rects].pixels != NULL;
    }
    return STATUS_OK;
}

// Damage is passed over.
static enum status decode_event(struct codec_burner *b, const struct event *e, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AVSubtitle sub = {0};
    int got = 0;
    if (!pkt)
        return no_memory(err);
    pkt->data = e->data; // borrowed
    pkt->size = (int)e->n;
    pkt->pts = pkt->dts = av_rescale_q(e->start_us, AV_TIME_BASE_Q, b->time_base);
    int r = avcodec_decode_subtitle2(b->dec, &sub, &got, pkt);
    pkt->data = NULL;
    pkt->size = 0;
    if (r < 0 || !got)
        return STATUS_OK;
    enum status s = take_rects(b, &sub, err);
    // PGS says when something ends by what follows it; others say it themselves.
    bool said = sub.end_display_time && sub.end_display_time != UINT32_MAX;
    b->ends_us = said             ? e->start_us + (int64_t)sub.end_display_time * 1000
                 : e->duration_us ? e->start_us + e->duration_us
                                  : INT64_MAX;
    avsubtitle_free(&sub);
    return s;
}

static enum status open_decoder(struct codec_burner *b, struct err *err)
{
    const AVCodec *codec = avcodec_find_decoder(b->par->codec_id);
    avcodec_free_context(&b->dec);
    b->dec = codec ? avcodec_alloc_context3(codec) : NULL;
    if (!b->dec || avcodec_parameters_to_context(b->dec, b->par) < 0)
        return no_memory(err);
    b->dec->pkt_timebase = b->time_base;
    b->dec->thread_count = 1;
    return avcodec_open2(b->dec, codec, NULL) < 0
               ? err_set(err, STATUS_INVALID_ARGUMENT, "burn in: the subtitles cannot be decoded")
               : STATUS_OK;
}

// ---------------------------------------------------------------- a picture

static bool may_show(const struct codec_burner *b, const struct event *e, int64_t segment_us)
{
    return b->whole || e->start_us >= segment_us - WINDOW_US;
}

static enum status begin_segment(struct codec_burner *b, size_t segment, struct err *err)
{
    int64_t start = media_segment_start_us(&b->plan->video, segment),
            end = start + media_segment_duration_us(&b->plan->video, segment);
    b->segment = segment;
    b->next = 0;
    b->ends_us = INT64_MIN;
    clear_rects(b);
    if (b->kind == MEDIA_SUBTITLE_BITMAP) {
        while (b->next < b->n && !may_show(b, &b->events[b->next], start))
            b->next++;
        return open_decoder(b, err);
    }
    ass_flush_events(b->track);
    for (size_t i = 0; i < b->n; i++) {
        const struct event *e = &b->events[i];
        int64_t duration = e->duration_us ? e->duration_us : UNSAID_US;
        if (e->start_us < end && e->start_us + duration > start && may_show(b, e, start)) {
            // It is changed while it is read.
            char *copy = mem_alloc(e->n + 1);
            if (!copy)
                return no_memory(err);
            memcpy(copy, e->data, e->n);
            copy[e->n] = '\0';
            ass_process_chunk(b->track, copy, (int)e->n, e->start_us / 1000,
                              (e->start_us + duration) / 1000 - e->start_us / 1000);
            mem_free(copy);
        }
    }
    return STATUS_OK;
}

static enum status burn_script(struct codec_burner *b, AVFrame *f, int64_t us, struct err *err)
{
    const ASS_Image *i = ass_render_frame(b->renderer, b->track, us / 1000, NULL);
    if (i && av_frame_make_writable(f) < 0)
        return no_memory(err);
    for (; i; i = i->next) {
        struct overlay o = {.x = i->dst_x,
                            .y = i->dst_y,
                            .w = i->w,
                            .h = i->h,
                            .mask = i->bitmap,
                            .stride = i->stride,
                            .alpha = (uint8_t)(255 - (i->color & 0xff))};
        to_yuv(b->matrix, (int)(i->color >> 24), (int)(i->color >> 16 & 0xff),
               (int)(i->color >> 8 & 0xff), o.color);
        if (o.w > 0 && o.h > 0 && o.alpha)
            blend(f, &o);
    }
    return STATUS_OK;
}

static enum status burn_pictures(struct codec_burner *b, AVFrame *f, int64_t us, struct err *err)
{
    while (b->next < b->n && b->events[b->next].start_us <= us) {
        enum status s = decode_event(b, &b->events[b->next++], err);
        if (s != STATUS_OK)
            return s;
    }
    if (b->n_rects == 0 || us >= b->ends_us)
        return STATUS_OK;
    if (av_frame_make_writable(f) < 0)
        return no_memory(err);
    for (size_t i = 0; i < b->n_rects; i++)
        blend(f, &b->rects[i]);
    return STATUS_OK;
}

enum status codec_burner_run(struct codec_burner *b, AVFrame *f, size_t segment, uint32_t frame,
                             struct err *err)
{
    enum status s = segment == b->segment ? STATUS_OK : begin_segment(b, segment, err);
    if (s != STATUS_OK)
        return s;
    // To the millisecond, which is how finely most containers say when a subtitle begins.
    const struct media_grid *g = &b->plan->video;
    int64_t us = media_ticks_to_us(media_grid_frame_time(g, frame), g->timescale) + 500;
    return b->kind == MEDIA_SUBTITLE_BITMAP ? burn_pictures(b, f, us, err)
                                            : burn_script(b, f, us, err);
}

// ---------------------------------------------------------------- beginning

static enum status open_track(struct codec_burner *b, const struct reading *r, struct err *err)
{
    const AVStream *st = r->in->fmt->streams[r->subtitle];
    if (b->kind != MEDIA_SUBTITLE_BITMAP)
        return open_script(b, r, err);
    b->time_base = st->time_base;
    b->par = avcodec_parameters_alloc();
    return b->par && avcodec_parameters_copy(b->par, st->codecpar) >= 0 ? STATUS_OK
                                                                        : no_memory(err);
}

enum status codec_burner_new(const struct codec_source *src, const struct media_plan *plan,
                             size_t rendition, uint32_t first_segment, uint32_t n_segments,
                             struct codec_burner **ret, struct err *err)
{
    const struct media_rendition *m = &plan->renditions[rendition];
    const struct media_track *t = &plan->source.tracks[m->burn - 1],
                             *video = media_plan_track(plan, MEDIA_TRACK_VIDEO);
    const struct media_grid *g = &plan->video;
    AUTO(codec_input_close_p) struct codec_input *in = NULL;
    struct codec_burner *b = mem_alloc(sizeof(*b));
    if (!b)
        return no_memory(err);
    *b = (struct codec_burner){.plan = plan,
                               .width = (int)m->width,
                               .height = (int)m->height,
                               .matrix = m->color[2],
                               .kind = t->subtitle,
                               .segment = SIZE_MAX};
    enum status s = codec_input_open_raw(src, &in, err);
    if (s == STATUS_OK &&
        (!video || t->index >= in->fmt->nb_streams || video->index >= in->fmt->nb_streams))
        s = err_set(err, STATUS_FAILED_PRECONDITION, "the plan is not this source's");
    if (s == STATUS_OK) {
        size_t last = first_segment + n_segments - 1;
        struct reading r = {.in = in,
                            .subtitle = t->index,
                            .video = video->index,
                            .zero_us = plan->source.timeline_zero_us,
                            .from_us = media_segment_start_us(g, first_segment) - WINDOW_US,
                            .to_us = media_segment_start_us(g, last) +
                                     media_segment_duration_us(g, last)};
        codec_input_use_plan(in, plan);
        // A clock that jumps cannot be searched by time.
        b->whole = codec_is_mov(in) || src->size <= WHOLE_BYTES || plan->source.n_jumps;
        s = open_track(b, &r, err);
        if (s == STATUS_OK)
            s = read_track(b, src, &r, err);
        codec_edits_done(&r.edits);
    }
    if (s == STATUS_OK)
        *ret = b;
    else
        codec_burner_free(b);
    return s;
}

// ---------------------------------------------------------------- planning

void codec_burn_recipe(struct media_rendition *r)
{
    size_t n = strlen(r->recipe);
    if (r->burn)
        snprintf(r->recipe + n, sizeof(r->recipe) - n, "; burns in track %u, libass %x",
                 (unsigned)r->burn - 1, (unsigned)ass_library_version());
}

// The rung nearest to 720 lines, and the best one unless it is larger than 1080.
static size_t choose_rungs(const struct media_plan *p, size_t ret[2])
{
    size_t n = 0, nearest = SIZE_MAX;
    uint32_t least = UINT32_MAX;
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        uint32_t side = r->width < r->height ? r->width : r->height;
        uint32_t off = side > 720 ? side - 720 : 720 - side;
        if (r->kind != MEDIA_VIDEO || r->lazy || r->copy)
            continue;
        if (off < least) {
            least = off;
            nearest = i;
        }
    }
    if (nearest == SIZE_MAX)
        return 0;
    const struct media_rendition *top = &p->renditions[0];
    uint32_t side = top->width < top->height ? top->width : top->height;
    if (nearest != 0 && side <= 1080)
        ret[n++] = 0;
    ret[n++] = nearest;
    return n;
}

enum status codec_burn_add(struct media_plan *p, struct err *err)
{
    size_t rungs[2], n = choose_rungs(p, rungs), n_tracks = 0;
    for (size_t t = 0; t < p->source.n_tracks && n_tracks < MAX_BURN_TRACKS; t++) {
        enum media_subtitle kind = p->source.tracks[t].subtitle;
        if (kind != MEDIA_SUBTITLE_STYLED && kind != MEDIA_SUBTITLE_BITMAP)
            continue;
        n_tracks++;
        for (size_t i = 0; i < n && p->n_renditions < MEDIA_MAX_RENDITIONS; i++) {
            const struct media_rendition *from = &p->renditions[rungs[i]];
            struct media_rendition *r = &p->renditions[p->n_renditions];
            *r = *from;
            r->init = NULL;
            r->init_len = 0;
            r->lazy = true;
            r->burn = (uint8_t)(t + 1);
            r->scale_from = (uint8_t)rungs[i];
            char id[sizeof(r->id)];
            snprintf(id, sizeof(id), "%.8s-s%u", from->id, (unsigned)t % MEDIA_MAX_TRACKS);
            memcpy(r->id, id, sizeof(id));
            enum status s = codec_rendition_finish(r, err);
            if (s != STATUS_OK)
                return s;
            p->n_renditions++;
        }
    }
    return STATUS_OK;
}
