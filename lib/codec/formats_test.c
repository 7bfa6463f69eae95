// What goes in and comes out in many forms: copies of the source's packets, formats of pictures, on
// films that the ffmpeg program makes.
#include "codec/codec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "codec/internal.h"
#include "support/media.h"

// ---- films ----

static struct codec_source make_film(const char *args, const char *suffix)
{
    struct stat st;
    int fd = test_media_make(args, suffix);
    if (fd < 0)
        fail_msg("ffmpeg %s: no film", args);
    assert_int_equal(fstat(fd, &st), 0);
    return (struct codec_source){.fd = fd, .size = st.st_size};
}

static struct media_plan *probe_as(const struct codec_source *s, uint32_t video_codecs)
{
    struct media_plan *p = NULL;
    struct err err = ERR_INIT;
    struct media_options o = {.video_codecs = video_codecs};
    if (codec_probe_as(s, &o, NULL, &p, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    // As it comes to whoever encodes.
    struct buf b;
    struct media_plan *again = NULL;
    buf_init(&b, MEDIA_PLAN_MAX_BYTES);
    if (media_plan_encode(p, &b, &err) != STATUS_OK ||
        media_plan_decode(b.data, b.len, &again, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    buf_done(&b);
    media_plan_free(p);
    return again;
}

static struct media_plan *probe(const struct codec_source *s)
{
    return probe_as(s, 0);
}

// ---- pictures, decoded ----

struct pictures {
    uint64_t *hash; // of each picture, in order
    int64_t *time;  // microseconds
    size_t n;
    AVFrame *first;
};

static void pictures_done(struct pictures *p)
{
    free(p->hash);
    free(p->time);
    av_frame_free(&p->first);
}

static uint64_t hash_frame(const AVFrame *f)
{
    uint64_t h = 1469598103934665603U;
    int bytes = f->format == AV_PIX_FMT_YUV420P10 ? 2 : 1;
    for (int p = 0; p < 3; p++)
        for (int y = 0; y < f->height >> (p > 0); y++)
            for (int x = 0; x < (f->width >> (p > 0)) * bytes; x++)
                h = (h ^ f->data[p][(ptrdiff_t)y * f->linesize[p] + x]) * 1099511628211U;
    return h;
}

static void note_picture(struct pictures *ret, const AVFrame *f, AVRational tb)
{
    ret->hash = realloc(ret->hash, (ret->n + 1) * sizeof(*ret->hash));
    ret->time = realloc(ret->time, (ret->n + 1) * sizeof(*ret->time));
    assert_true(ret->hash && ret->time);
    if (ret->n == 0)
        ret->first = av_frame_clone(f);
    ret->hash[ret->n] = hash_frame(f);
    ret->time[ret->n++] = av_rescale_q(f->best_effort_timestamp, tb, AV_TIME_BASE_Q);
}

// The first video stream of some file, by FFmpeg's own demuxer and decoder.
static void decode_all(const struct codec_source *s, struct pictures *ret)
{
    struct codec_input *in = NULL;
    struct err err = ERR_INIT;
    AVCodecContext *dec = NULL;
    AVPacket *pkt = av_packet_alloc();
    AVFrame *f = av_frame_alloc();
    *ret = (struct pictures){.n = 0};
    if (codec_input_open(s, &in, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    int v = av_find_best_stream(in->fmt, AVMEDIA_TYPE_VIDEO, -1, -1, NULL, 0);
    assert_true(v >= 0 && pkt && f);
    if (codec_decoder_open(in, v, 1, &dec, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    for (bool end = false; !end;) {
        end = av_read_frame(in->fmt, pkt) < 0;
        if (end || pkt->stream_index == v)
            assert_int_equal(avcodec_send_packet(dec, end ? NULL : pkt), 0);
        av_packet_unref(pkt);
        while (avcodec_receive_frame(dec, f) >= 0)
            note_picture(ret, f, in->fmt->streams[v]->time_base);
    }
    av_frame_free(&f);
    av_packet_free(&pkt);
    avcodec_free_context(&dec);
    codec_input_close(in);
}

static AVFrame *first_picture(const struct codec_source *s)
{
    struct pictures p;
    decode_all(s, &p);
    assert_true(p.n > 0);
    AVFrame *f = TAKE(p.first);
    pictures_done(&p);
    return f;
}

// ---- segments ----

struct collected {
    const struct media_plan *plan;
    struct buf file;
    uint32_t next, first;
};

static enum status collect(void *ud, const struct media_segment_out *out, const void *bytes,
                           size_t n, struct err *err)
{
    struct collected *c = ud;
    struct media_fragment f;
    assert_int_equal(out->segment, c->next++);
    assert_int_equal(media_cmaf_check(c->plan, out->rendition, out->segment, bytes, n, &f, err),
                     STATUS_OK);
    assert_int_equal(out->repeated + out->dropped, 0);
    return buf_append(&c->file, bytes, n) ? STATUS_OK : STATUS_RESOURCE_EXHAUSTED;
}

// A file of the init segment and the segments [first, first + n) of a rendition.
static struct codec_source make_segments(const struct codec_source *s, const struct media_plan *p,
                                         int rendition, uint32_t first, uint32_t n)
{
    struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                           .source_size = s->size,
                           .threads = 1,
                           .first_segment = first,
                           .n_segments = n,
                           .n_renditions = 1,
                           .renditions = {(uint8_t)rendition}};
    struct collected c = {.plan = p, .next = first};
    struct codec_sink sink = {.segment = collect, .ud = &c};
    struct err err = ERR_INIT;
    buf_init(&c.file, 64 << 20);
    buf_append(&c.file, p->renditions[rendition].init, p->renditions[rendition].init_len);
    if (codec_encode(s, p, &t, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(c.next, first + n);
    int fd = memfd_create("segments", MFD_CLOEXEC);
    assert_true(fd >= 0 && write(fd, c.file.data, c.file.len) == (ssize_t)c.file.len);
    struct codec_source ret = {.fd = fd, .size = (int64_t)c.file.len};
    buf_done(&c.file);
    return ret;
}

// ---- copies ----

#define FILM "-f lavfi -i testsrc2=size=128x72:rate=24:duration=9 "
#define X264 "-c:v libx264 -preset veryfast -pix_fmt yuv420p "

static const struct {
    const char *args, *suffix;
    bool fits;
    const char *codecs; // begins so; NULL: not told
} copies[] = {
    {FILM X264 "-g 48 -bf 2", ".mp4", true, "avc1."},
    {FILM X264 "-g 48 -bf 2", ".mkv", true, "avc1."},
    {FILM X264 "-g 36 -bf 2 -keyint_min 36 -sc_threshold 0", ".ts", true, "avc1."},
    {FILM X264 "-g 24 -bf 0 -movflags +frag_keyframe+empty_moov", ".mp4", true, "avc1."},
    {FILM X264 "-profile:v baseline -g 100", ".flv", true, "avc1.42"},
    {FILM X264 "-g 240 -bf 2", ".mp4", true, NULL}, // one keyframe: one segment
    {FILM "-c:v libx265 -preset ultrafast -pix_fmt yuv420p -tag:v hvc1 -x265-params "
          "log-level=none:keyint=48:open-gop=0:pools=none:frame-threads=1",
     ".mp4", true, "hvc1.1."},
    {FILM "-c:v libx265 -preset ultrafast -pix_fmt yuv420p10le -x265-params "
          "log-level=none:keyint=48:open-gop=0:pools=none:frame-threads=1:"
          "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc",
     ".ts", true, "hvc1.2."},
    // Pictures of their own times.
    {FILM "-vf settb=1/90000,setpts=(N/24+(N-5*trunc(N/5))*0.005)/TB -fps_mode passthrough "
          "-video_track_timescale 90000 " X264 "-g 48 -bf 2",
     ".mp4", true, NULL},
    // Its only closed group is the whole film, too long for a segment.
    {"-f lavfi -i testsrc2=size=128x72:rate=24:duration=14 " X264
     "-g 48 -bf 3 -x264-params open-gop=1:bframes=3:b-adapt=0 -sc_threshold 0",
     ".ts", false, NULL},
    {FILM "-vf setpts=(N/24+trunc(N/100)*2)/TB " X264 "-g 48 -fps_mode passthrough", ".mp4", false,
     NULL},
    {FILM "-c:v libx264 -preset veryfast -pix_fmt yuv444p -g 48", ".mp4", false, NULL},
    {FILM X264 "-g 48 -vf setsar=4/3", ".mp4", false, NULL},
    {FILM X264 "-flags +ildct+ilme -x264-params tff=1:keyint=48", ".mp4", false, NULL},
    {FILM "-c:v mpeg4 -g 48", ".mp4", false, NULL},
};

static void check_cuts(const struct media_plan *p, int r, const char *args)
{
    const struct media_grid *g = media_rendition_grid(p, (size_t)r);
    assert_non_null(g);
    for (size_t i = 0; i + 1 < g->n_segments; i++) {
        int64_t ms = media_segment_duration_us(g, i) / 1000;
        if (ms < 1400 || ms > 11000)
            fail_msg("%s: segment %zu lasts %lld ms", args, i, (long long)ms);
    }
}

// The pictures and their times are the source's, whole and from any segment on.
static void check_copy(const struct codec_source *s, const struct media_plan *p, int r,
                       const char *args)
{
    const struct media_grid *g = media_rendition_grid(p, (size_t)r);
    struct pictures want, got;
    decode_all(s, &want);
    for (uint32_t first = 0; first < g->n_segments; first++) {
        uint32_t n = first == 0 ? (uint32_t)g->n_segments : 1, at = g->segments[first].first_frame;
        uint32_t frames = first == 0 ? g->n_frames : g->segments[first].n_frames;
        struct codec_source copy = make_segments(s, p, r, first, n);
        decode_all(&copy, &got);
        if (got.n != frames || memcmp(got.hash, want.hash + at, frames * sizeof(*got.hash)) != 0)
            fail_msg("%s: %zu pictures of segment %u differ from the source's %u", args, got.n,
                     first, frames);
        for (uint32_t i = 0; i < frames; i++) {
            int64_t off = (got.time[i] - got.time[0]) - (want.time[at + i] - want.time[at]);
            if (off < -1100 || off > 1100)
                fail_msg("%s: picture %u is off by %lld us", args, at + i, (long long)off);
        }
        pictures_done(&got);
        close(copy.fd);
    }
    pictures_done(&want);
}

static void test_copies_hold_the_pictures_of_the_source(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(copies); i++) {
        struct codec_source s = make_film(copies[i].args, copies[i].suffix);
        AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
        int r = media_plan_find(p, "vcopy");
        if ((r >= 0) != copies[i].fits)
            fail_msg("%s %s: %s", copies[i].args, copies[i].suffix, r < 0 ? "no copy" : "a copy");
        if (r >= 0) {
            assert_true(p->renditions[r].copy && p->renditions[r].lazy && r > 0);
            if (copies[i].codecs && !str_starts_with(p->renditions[r].codecs, copies[i].codecs))
                fail_msg("%s: codecs %s", copies[i].args, p->renditions[r].codecs);
            // An HDR film's copy stays HDR, its ladder does not.
            bool hdr = strstr(copies[i].args, "smpte2084") != NULL;
            const uint8_t *told = p->renditions[r].color, *ladder = p->renditions[0].color;
            assert_int_equal(told[1] == AVCOL_TRC_SMPTE2084 && told[0] == AVCOL_PRI_BT2020, hdr);
            assert_true(!hdr || ladder[1] == AVCOL_TRC_BT709);
            check_cuts(p, r, copies[i].args);
            check_copy(&s, p, r, copies[i].args);
        }
        close(s.fd);
    }
}

// The same of films as cameras and others make them.
static void test_real_films_are_copied(void **state)
{
    (void)state;
    static const char *const names[] = {
        "video/crowd_720x400_h264_5s.mp4",
        "video/nasa_2video_2audio_2movtext.mp4",
        "video/dog_1080p_vfr_h264_aac.mp4",
    };
    for (size_t i = 0; i < N_ELEMENTS(names); i++) {
        struct stat st;
        int fd = test_media_open(names[i]);
        if (fd < 0)
            skip();
        assert_int_equal(fstat(fd, &st), 0);
        struct codec_source s = {.fd = fd, .size = st.st_size};
        AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
        int r = media_plan_find(p, "vcopy");
        if (r < 0)
            fail_msg("%s: no copy", names[i]);
        check_copy(&s, p, r, names[i]);
        close(fd);
    }
}

// ---- other codecs ----

static const struct {
    enum media_codec codec;
    const char *id, *codecs;
} others[] = {
    {MEDIA_CODEC_HEVC, "v240-hevc", "hvc1.1.6.L"},
    {MEDIA_CODEC_AV1, "v240-av1", "av01.0.00M.08"},
    {MEDIA_CODEC_VP9, "v240-vp9", "vp09.00.10.08"},
};

// Mean difference of the brightness of two pictures.
static double difference(const AVFrame *a, const AVFrame *b)
{
    double sum = 0;
    for (int y = 0; y < a->height; y++)
        for (int x = 0; x < a->width; x++)
            sum += abs(a->data[0][(ptrdiff_t)y * a->linesize[0] + x] -
                       b->data[0][(ptrdiff_t)y * b->linesize[0] + x]);
    return sum / a->width / a->height;
}

static uint64_t hash_file(const struct codec_source *s)
{
    uint64_t h = 1469598103934665603U;
    uint8_t *map = mmap(NULL, (size_t)s->size, PROT_READ, MAP_PRIVATE, s->fd, 0);
    assert_true(map != MAP_FAILED);
    for (int64_t i = 0; i < s->size; i++)
        h = (h ^ map[i]) * 1099511628211U;
    munmap(map, (size_t)s->size);
    return h;
}

// Whole and the last segment alone: every picture comes, at its time, and looks like the source's.
static void check_other(const struct codec_source *s, const struct media_plan *p, size_t i)
{
    const struct media_grid *g = &p->video;
    int r = media_plan_find(p, others[i].id);
    assert_true(r > 0 && p->renditions[r].lazy && p->renditions[r].codec == others[i].codec);
    if (!str_starts_with(p->renditions[r].codecs, others[i].codecs))
        fail_msg("%s: codecs %s", others[i].id, p->renditions[r].codecs);
    struct pictures want, got;
    decode_all(s, &want);
    for (uint32_t first = 0; first < g->n_segments; first += (uint32_t)g->n_segments - 1) {
        uint32_t n = first == 0 ? (uint32_t)g->n_segments : 1, at = g->segments[first].first_frame;
        struct codec_source made = make_segments(s, p, r, first, n);
        decode_all(&made, &got);
        if (got.n != g->n_frames - at)
            fail_msg("%s: %zu pictures, not %u", others[i].id, got.n, g->n_frames - at);
        for (uint32_t k = 1; k < got.n; k++) {
            int64_t off = got.time[k] - got.time[0] - (want.time[at + k] - want.time[at]);
            assert_true(off > -1100 && off < 1100);
        }
        if (first == 0)
            assert_true(difference(got.first, want.first) < 6);
        struct codec_source again = make_segments(s, p, r, first, n);
        assert_true(hash_file(&made) == hash_file(&again));
        pictures_done(&got);
        close(made.fd);
        close(again.fd);
    }
    pictures_done(&want);
}

static void test_other_codecs_give_every_picture(void **state)
{
    (void)state;
    struct codec_source s = make_film(
        "-f lavfi -i testsrc2=size=128x72:rate=24:duration=5 -c:v libx264 -g 24 -pix_fmt yuv420p",
        ".mp4");
    AUTO(media_plan_free_p)
    struct media_plan *p =
        probe_as(&s, 1U << MEDIA_CODEC_HEVC | 1U << MEDIA_CODEC_AV1 | 1U << MEDIA_CODEC_VP9);
    assert_true(p->video.n_segments > 1);
    for (size_t i = 0; i < N_ELEMENTS(others); i++)
        check_other(&s, p, i);
    close(s.fd);
}

// ---- colours ----

#define PLAIN "-f lavfi -i color=c=%s:size=%s:rate=10:duration=1,format=%s%s -c:v ffv1"

// One colour all over, in, and what the top rung shows in its middle.
static const struct {
    const char *color, *size, *format, *filter, *tags;
    uint8_t yuv[3], told[3]; // told: primaries, transfer, matrix
    uint8_t slack;
} colors[] = {
    {"red", "96x64", "yuv444p", "", "", {81, 90, 240}, {2, 2, 2}, 1},
    {"red", "96x64", "yuv422p10le", "", "", {81, 90, 240}, {2, 2, 2}, 1},
    {"red", "97x65", "yuv420p", "", "", {81, 90, 240}, {2, 2, 2}, 1},
    {"red", "97x65", "yuv444p", "", "", {81, 90, 240}, {2, 2, 2}, 1},
    {"red", "96x64", "gbrp", "", "", {63, 102, 240}, {2, 2, 1}, 1},
    {"blue", "96x64", "bgr0", "", "", {32, 240, 118}, {2, 2, 1}, 1},
    {"0x808080", "96x64", "gray", "", "", {126, 128, 128}, {2, 2, 2}, 1},
    {"0x808080", "96x64", "gbrp", "", "", {126, 128, 128}, {2, 2, 1}, 1},
    // 203 cd/m2, the white of paper: a little below SDR's own, and the same by PQ and HLG.
    {"gray",
     "96x64",
     "yuv420p10le",
     ",geq=lum=573:cb=512:cr=512",
     " -color_trc smpte2084 -colorspace bt2020nc -color_primaries bt2020",
     {214, 128, 128},
     {1, 1, 1},
     3},
    {"gray",
     "96x64",
     "yuv420p10le",
     ",geq=lum=721:cb=512:cr=512",
     " -color_trc arib-std-b67 -colorspace bt2020nc -color_primaries bt2020",
     {214, 128, 128},
     {1, 1, 1},
     3},
};

static void check_color(size_t i)
{
    char args[512];
    uint8_t got[3];
    snprintf(args, sizeof(args), PLAIN "%s", colors[i].color, colors[i].size, colors[i].format,
             colors[i].filter, colors[i].tags);
    struct codec_source s = make_film(args, ".mkv");
    AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
    const struct media_rendition *r = &p->renditions[0];
    if (memcmp(r->color, colors[i].told, 3) != 0)
        fail_msg("%s: told as %u/%u/%u", args, r->color[0], r->color[1], r->color[2]);
    struct codec_source made = make_segments(&s, p, 0, 0, 1);
    AVFrame *f = first_picture(&made);
    for (int k = 0; k < 3; k++) {
        int half = k > 0;
        got[k] = f->data[k][(ptrdiff_t)(f->height / 2 >> half) * f->linesize[k] +
                            (f->width / 2 >> half)];
    }
    for (int k = 0; k < 3; k++)
        if (abs(got[k] - colors[i].yuv[k]) > colors[i].slack)
            fail_msg("%s: %u/%u/%u", args, got[0], got[1], got[2]);
    av_frame_free(&f);
    close(made.fd);
    close(s.fd);
}

static void test_pictures_of_many_formats_keep_their_colours(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(colors); i++)
        check_color(i);
}

static AVFrame *ramp(enum AVColorTransferCharacteristic trc, int u, int v)
{
    AVFrame *f = av_frame_alloc();
    assert_non_null(f);
    f->format = AV_PIX_FMT_YUV420P10;
    f->color_trc = trc;
    f->colorspace = AVCOL_SPC_BT2020_NCL;
    f->width = 1024;
    f->height = 2;
    assert_int_equal(av_frame_get_buffer(f, 0), 0);
    for (int x = 0; x < 1024; x++)
        for (int y = 0; y < 2; y++)
            ((uint16_t *)(void *)(f->data[0] + (ptrdiff_t)y * f->linesize[0]))[x] = (uint16_t)x;
    for (int x = 0; x < 512; x++) {
        ((uint16_t *)(void *)f->data[1])[x] = (uint16_t)u;
        ((uint16_t *)(void *)f->data[2])[x] = (uint16_t)v;
    }
    return f;
}

// From black to white without a step back, greys stay grey, red stays red.
static void test_tone_mapping_keeps_order_and_hue(void **state)
{
    (void)state;
    static const enum AVColorTransferCharacteristic curves[] = {AVCOL_TRC_SMPTE2084,
                                                                AVCOL_TRC_ARIB_STD_B67};
    for (size_t i = 0; i < N_ELEMENTS(curves); i++) {
        AVFrame *in = ramp(curves[i], 512, 512), *red = ramp(curves[i], 470, 700);
        AVFrame *out = av_frame_alloc();
        out->format = AV_PIX_FMT_YUV420P;
        out->width = 1024;
        out->height = 2;
        assert_int_equal(av_frame_get_buffer(out, 0), 0);
        struct codec_tonemap *t = codec_tonemap_new(in);
        assert_non_null(t);
        codec_tonemap_run(t, in, out);
        for (int x = 1; x < 1024; x++)
            assert_true(out->data[0][x] >= out->data[0][x - 1]);
        for (int x = 0; x < 512; x++)
            assert_true(abs(out->data[1][x] - 128) <= 1 && abs(out->data[2][x] - 128) <= 1);
        assert_int_equal(out->data[0][64], 16);
        assert_int_equal(out->data[0][940], 235);
        codec_tonemap_run(t, red, out);
        for (int x = 100; x < 300; x++)
            if (out->data[2][x] <= 150 || out->data[1][x] >= 140)
                fail_msg("red at %d: %u/%u", 2 * x, out->data[1][x], out->data[2][x]);
        codec_tonemap_free(t);
        av_frame_free(&in);
        av_frame_free(&red);
        av_frame_free(&out);
    }
}

// x265 3.5 never gives back the text of its parameters, about 1 KB for each encoder.
const char *__lsan_default_suppressions(void);
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void)
{
    return "leak:libx265\n";
}

static int set_up(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    return codec_preload(&err) == STATUS_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies_hold_the_pictures_of_the_source),
        cmocka_unit_test(test_real_films_are_copied),
        cmocka_unit_test(test_other_codecs_give_every_picture),
        cmocka_unit_test(test_pictures_of_many_formats_keep_their_colours),
        cmocka_unit_test(test_tone_mapping_keeps_order_and_hue),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
