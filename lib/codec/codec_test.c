// Probe and encode on the shared test media, without confinement.
#include "codec/codec.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "codec/internal.h"
#include "support/media.h"

static bool open_media(const char *name, struct codec_source *s)
{
    struct stat st;
    int fd = test_media_open(name);
    if (fd < 0)
        return false;
    assert_int_equal(fstat(fd, &st), 0);
    *s = (struct codec_source){.fd = fd, .size = st.st_size};
    return true;
}

static struct media_plan *probe(const struct codec_source *s)
{
    struct media_plan *p = NULL;
    struct err err = ERR_INIT;
    if (codec_probe(s, NULL, &p, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return p;
}

// ---- probe ----

static const struct {
    const char *name;
    enum media_kind kind;
    uint32_t frames; // on the grid; 0 for sound
    uint32_t duration_ms;
    const char *top; // best picture, or first sound
    uint32_t width, height;
} files[] = {
    {"video/bbb_1080p24_hevc_aac51_5s.ts", MEDIA_VIDEO, 120, 5013, "v1080", 1920, 1080},
    {"video/bbb_1080p24_mpeg2_mp2.ts", MEDIA_VIDEO, 60, 2501, "v1080", 1920, 1080},
    {"video/bbb_480p_3audio_3subs.mkv", MEDIA_VIDEO, 720, 30016, "v480", 854, 480},
    {"video/crowd_720x400_h264_5s.mp4", MEDIA_VIDEO, 150, 5005, "v360", 640, 356},
    {"video/crystal_720x480_prores_pcm.mov", MEDIA_VIDEO, 60, 2000, "v480", 720, 480},
    {"video/desk_352x288_h263_aac.3gp", MEDIA_VIDEO, 72, 5128, "v240", 320, 240},
    {"video/dog_1080p_vfr_h264_aac.mp4", MEDIA_VIDEO, 41, 1599, "v1080", 1920, 1080},
    {"video/face_1080x720_av1_aac_1s.mp4", MEDIA_VIDEO, 30, 1087, "v720", 1080, 720},
    {"video/face_160x120_mjpeg_pcm.avi", MEDIA_VIDEO, 68, 4533, "v240", 160, 120},
    {"video/nasa_2video_2audio_2movtext.mp4", MEDIA_VIDEO, 390, 13056, "v240", 426, 240},
    {"video/night_city_720x405_mpeg2.mpg", MEDIA_VIDEO, 190, 7600, "v360", 640, 360},
    {"video/pedestrians_768x576_msmpeg4v3.avi", MEDIA_VIDEO, 795, 79500, "v480", 640, 480},
    {"video/phone_4k60_rot90_h264.mp4", MEDIA_VIDEO, 18, 312, "v1080", 1080, 1920},
    {"video/phone_568x320_rot90_h264.mov", MEDIA_VIDEO, 62, 2069, "v240", 240, 426},
    {"video/race1906_214x160_theora.ogv", MEDIA_VIDEO, 288, 19200, "v240", 214, 160},
    {"video/roofs_1080p_hevc10_hdr.mp4", MEDIA_VIDEO, 28, 1017, "v1080", 1920, 1080},
    {"video/sar_2to1_640x360_h264.mp4", MEDIA_VIDEO, 150, 5000, "v720", 1280, 360},
    {"video/screen_1024x768_vp8_37s.webm", MEDIA_VIDEO, 557, 37133, "v720", 960, 720},
    {"video/webcam_640x360_h264_aac.flv", MEDIA_VIDEO, 569, 18966, "v360", 640, 360},
    {"audio/guitar_6s.wav", MEDIA_AUDIO, 0, 6000, "a128", 0, 0},
    {"audio/guitar_vorbis.ogg", MEDIA_AUDIO, 0, 22831, "a128", 0, 0},
    {"audio/ring_opus_12s.mka", MEDIA_AUDIO, 0, 12202, "a128", 0, 0},
    {"audio/score_31s.mp3", MEDIA_AUDIO, 0, 31059, "a128", 0, 0},
    {"audio/six_channels_51.ac3", MEDIA_AUDIO, 0, 8113, "a128", 0, 0},
    {"audio/six_channels_51.flac", MEDIA_AUDIO, 0, 8100, "a128", 0, 0},
};

static void test_probe_finds_frames_duration_and_ladder(void **state)
{
    (void)state;
    size_t good = 0;
    for (size_t i = 0; i < N_ELEMENTS(files); i++) {
        struct codec_source s;
        if (!open_media(files[i].name, &s))
            skip();
        AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
        int64_t ms = media_plan_duration_us(p) / 1000;
        if (p->kind != files[i].kind || p->video.n_frames != files[i].frames ||
            ms < files[i].duration_ms - 1 || ms > files[i].duration_ms + 1 ||
            strcmp(p->renditions[0].id, files[i].top) != 0 ||
            p->renditions[0].width != files[i].width || p->renditions[0].height != files[i].height)
            print_error("%s: %s, %u frames, %lld ms, %s %ux%u\n", files[i].name,
                        media_kind_name(p->kind), p->video.n_frames, (long long)ms,
                        p->renditions[0].id, p->renditions[0].width, p->renditions[0].height);
        else
            good++;
        close(s.fd);
    }
    assert_int_equal(good, N_ELEMENTS(files));
}

// ---- encode ----

#define MAX_SEGMENTS 64
struct segments {
    uint64_t hash[MAX_SEGMENTS][MEDIA_MAX_RENDITIONS];
    size_t n;
    uint32_t repeated, dropped;
};

static enum status keep(void *ud, const struct media_segment_out *out, const void *bytes, size_t n,
                        struct err *err)
{
    struct segments *s = ud;
    (void)err;
    uint64_t h = 1469598103934665603U;
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)bytes)[i]) * 1099511628211U;
    assert_true(out->segment < MAX_SEGMENTS && s->hash[out->segment][out->rendition] == 0);
    s->hash[out->segment][out->rendition] = h;
    s->n++;
    s->repeated += out->repeated;
    s->dropped += out->dropped;
    return STATUS_OK;
}

static bool is_of(const struct media_plan *p, size_t rendition, enum media_kind kind)
{
    return media_rendition_grid(p, rendition) == media_plan_grid(p, kind); // copies are cut apart
}

// kind's segments [first, first + n), the renditions of `mask`.
static void encode(const struct codec_source *src, const struct media_plan *p, enum media_kind kind,
                   uint32_t first, uint32_t n, unsigned mask, unsigned threads,
                   struct segments *ret)
{
    struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                           .source_size = src->size,
                           .threads = threads,
                           .first_segment = first,
                           .n_segments = n};
    for (size_t i = 0; i < p->n_renditions; i++)
        if (is_of(p, i, kind) && (mask & (1U << i)))
            t.renditions[t.n_renditions++] = (uint8_t)i;
    struct codec_sink sink = {.segment = keep, .ud = ret};
    struct err err = ERR_INIT;
    if (codec_encode(src, p, &t, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

static void test_segments_have_the_same_bytes_alone_and_together(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum media_kind from;
    } rows[] = {
        {"video/nasa_2video_2audio_2movtext.mp4", MEDIA_VIDEO},
        {"video/crowd_720x400_h264_5s.mp4", MEDIA_VIDEO},
        // Their decoders carry something from packet to packet: dither, the noise of HE-AAC.
        {"video/underwater_640x480_mjpeg_mp2.mov", MEDIA_AUDIO},
        {"audio/blits_51_heaac_slideshow.mp4", MEDIA_AUDIO},
        {"audio/score_31s.mp3", MEDIA_AUDIO},
    };
    for (size_t f = 0; f < N_ELEMENTS(rows); f++) {
        struct codec_source s;
        if (!open_media(rows[f].name, &s))
            skip();
        AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
        for (int kind = (int)rows[f].from; kind <= MEDIA_AUDIO; kind++) {
            const struct media_grid *g = media_plan_grid(p, kind);
            if (!g)
                continue;
            struct segments whole = {0}, alone = {0};
            encode(&s, p, kind, 0, (uint32_t)g->n_segments, ~0U, 2, &whole);
            for (uint32_t i = 0; i < g->n_segments; i++)
                for (size_t r = 0; r < p->n_renditions; r++)
                    if (is_of(p, r, kind))
                        encode(&s, p, kind, i, 1, 1U << r, 1, &alone);
            assert_int_equal(whole.n, alone.n);
            assert_memory_equal(whole.hash, alone.hash, sizeof(whole.hash));
            assert_int_equal(whole.repeated + whole.dropped, 0);
        }
        close(s.fd);
    }
}

// The same recording in two containers: equal plans of sound give equal segments.
static void test_lossless_sound_in_two_containers_gives_equal_segments(void **state)
{
    (void)state;
    static const char *const names[] = {"audio/guitar_6s.wav", "audio/guitar_alac_6s.m4a"};
    struct segments got[2] = {0};
    for (size_t i = 0; i < 2; i++) {
        struct codec_source s;
        if (!open_media(names[i], &s))
            skip();
        AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
        encode(&s, p, MEDIA_AUDIO, 0, (uint32_t)p->audio.n_segments, ~0U, 1, &got[i]);
        close(s.fd);
    }
    assert_int_equal(got[0].n, got[1].n);
    assert_memory_equal(got[0].hash, got[1].hash, sizeof(got[0].hash));
}

static void test_unusual_pictures_encode_onto_their_grid(void **state)
{
    (void)state;
    static const char *const names[] = {
        "video/desk_352x288_h263_aac.3gp",    "video/face_160x120_mjpeg_pcm.avi",
        "video/phone_568x320_rot90_h264.mov", "video/puck_400x300_mpeg4asp.avi",
        "video/face_1080x720_av1_aac_1s.mp4", "video/race1906_214x160_theora.ogv",
    };
    for (size_t i = 0; i < N_ELEMENTS(names); i++) {
        struct codec_source s;
        if (!open_media(names[i], &s))
            skip();
        AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
        struct segments got = {0};
        uint32_t n = (uint32_t)p->video.n_segments;
        encode(&s, p, MEDIA_VIDEO, 0, n, ~0U, 2, &got);
        assert_true(got.n >= n);
        assert_true(got.repeated * 20 <= p->video.n_frames &&
                    got.dropped * 20 <= p->video.n_frames);
        close(s.fd);
    }
}

// ---- pictures ----

enum { SIDE = 64 };

// A frame of 8 or 10 bits whose odd lines are `odd` and whose even lines are `even` (of 255).
static AVFrame *lines(enum AVPixelFormat format, int even, int odd, bool interlaced)
{
    AVFrame *f = av_frame_alloc();
    assert_non_null(f);
    f->format = format;
    f->width = f->height = SIDE;
    f->interlaced_frame = interlaced;
    assert_int_equal(av_frame_get_buffer(f, 0), 0);
    for (int p = 0; p < 3; p++) {
        for (int y = 0; y < SIDE >> (p > 0); y++) {
            int v = p > 0 ? 128 : y % 2 ? odd : even;
            uint8_t *to = f->data[p] + (ptrdiff_t)y * f->linesize[p];
            for (int x = 0; x < SIDE >> (p > 0); x++)
                if (format == AV_PIX_FMT_YUV420P)
                    to[x] = (uint8_t)v;
                else
                    ((uint16_t *)(void *)to)[x] = (uint16_t)(v * 4);
        }
    }
    return f;
}

// Most that two lines in the middle of the scaled picture differ by.
static int contrast(AVFrame *in)
{
    AUTO(codec_scaler_free_p) struct codec_scaler *s = codec_scaler_new(SIDE, SIDE, 0);
    AVFrame *out = NULL;
    assert_non_null(s);
    assert_int_equal(codec_scaler_run(s, in, &out, NULL), STATUS_OK);
    int most = 0;
    for (int y = 8; y < SIDE - 8; y++) {
        const uint8_t *a = out->data[0] + (ptrdiff_t)y * out->linesize[0] + SIDE / 2;
        int d = abs(a[0] - a[out->linesize[0]]);
        most = d > most ? d : most;
    }
    av_frame_free(&out);
    av_frame_free(&in);
    return most;
}

static void test_combs_of_interlaced_frames_are_blended(void **state)
{
    (void)state;
    static const enum AVPixelFormat formats[] = {AV_PIX_FMT_YUV420P, AV_PIX_FMT_YUV420P10};
    for (size_t i = 0; i < N_ELEMENTS(formats); i++) {
        assert_true(contrast(lines(formats[i], 60, 180, true)) <= 2);
        // What is not said to be interlaced, and what differs little, stays.
        assert_true(contrast(lines(formats[i], 60, 180, false)) >= 110);
        assert_true(contrast(lines(formats[i], 100, 108, true)) >= 6);
    }
}

// ---- stills and covers ----

struct images {
    AVFrame *picture[MEDIA_N_IMAGES];
    uint32_t preview_width, preview_height, preview_frames;
};

static uint32_t le24(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16;
}

// An animated WebP's canvas and pictures, by its chunks (the WebP container specification).
static void note_preview(struct images *got, const uint8_t *b, size_t n)
{
    assert_true(n <= MEDIA_MAX_PREVIEW_BYTES && memcmp(b + 8, "WEBPVP8X", 8) == 0);
    got->preview_width = le24(b + 24) + 1;
    got->preview_height = le24(b + 27) + 1;
    for (size_t at = 12; at + 8 <= n; at += 8 + ((le24(b + at + 4) + 1) & ~1U))
        got->preview_frames += memcmp(b + at, "ANMF", 4) == 0;
}

static enum status keep_image(void *ud, const struct media_segment_out *out, const void *bytes,
                              size_t n, struct err *err)
{
    struct images *got = ud;
    (void)err;
    assert_true(out->rendition < MEDIA_N_IMAGES && !got->picture[out->rendition]);
    assert_true(media_image_is_sane(bytes, n) && out->size == n);
    if (out->rendition == MEDIA_IMAGE_PREVIEW) {
        note_preview(got, bytes, n);
        return STATUS_OK;
    }
    AUTO(codec_context_free_p)
    AVCodecContext *c = avcodec_alloc_context3(avcodec_find_decoder(AV_CODEC_ID_MJPEG));
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AVFrame *f = av_frame_alloc();
    assert_true(c && pkt && f && avcodec_open2(c, NULL, NULL) == 0);
    assert_int_equal(av_new_packet(pkt, (int)n), 0);
    memcpy(pkt->data, bytes, n);
    assert_int_equal(avcodec_send_packet(c, pkt), 0);
    assert_int_equal(avcodec_receive_frame(c, f), 0);
    got->picture[out->rendition] = f;
    return STATUS_OK;
}

static void make_images(const struct codec_source *s, const struct media_plan *p,
                        struct images *ret)
{
    struct media_task t = {
        .kind = MEDIA_TASK_IMAGES,
        .source_size = s->size,
        .threads = 1,
        .n_segments = 1,
        .n_renditions = 3,
        .renditions = {MEDIA_IMAGE_POSTER, MEDIA_IMAGE_TILES, MEDIA_IMAGE_PREVIEW}};
    struct codec_sink sink = {.segment = keep_image, .ud = ret};
    struct err err = ERR_INIT;
    if (codec_images(s, p, &t, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

// Lightest and darkest of a part of the picture.
static void range_of(const AVFrame *f, int x0, int y0, int w, int h, int *ret_min, int *ret_max)
{
    *ret_min = 255;
    *ret_max = 0;
    for (int y = y0; y < y0 + h; y++) {
        for (int x = x0; x < x0 + w; x++) {
            int v = f->data[0][(ptrdiff_t)y * f->linesize[0] + x];
            *ret_min = v < *ret_min ? v : *ret_min;
            *ret_max = v > *ret_max ? v : *ret_max;
        }
    }
}

static void test_films_have_a_poster_and_a_tile_for_each_part(void **state)
{
    (void)state;
    static const char *const names[] = {
        "video/phone_568x320_rot90_h264.mov", "video/screen_1024x768_vp8_37s.webm",
        "video/bbb_1080p24_mpeg2_mp2.ts",     "video/face_160x120_mjpeg_pcm.avi",
        "video/sar_2to1_640x360_h264.mp4",    "video/roofs_1080p_hevc10_hdr.mp4",
    };
    for (size_t i = 0; i < N_ELEMENTS(names); i++) {
        struct codec_source s;
        if (!open_media(names[i], &s))
            skip();
        AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
        struct images got = {.picture = {NULL}};
        struct media_tiles l;
        uint32_t w, h;
        int darkest, lightest;
        make_images(&s, p, &got);
        media_poster_size(p->renditions[0].width, p->renditions[0].height, &w, &h);
        const AVFrame *poster = got.picture[MEDIA_IMAGE_POSTER];
        assert_non_null(poster);
        assert_int_equal(poster->width, w);
        assert_int_equal(poster->height, h);
        range_of(poster, 0, 0, poster->width, poster->height, &darkest, &lightest);
        assert_true(lightest - darkest > 60);
        media_preview_size(p->renditions[0].width, p->renditions[0].height, &w, &h);
        assert_int_equal(got.preview_width, w);
        assert_int_equal(got.preview_height, h);
        if (got.preview_frames < 2 ||
            got.preview_frames > MEDIA_PREVIEW_CUTS * MEDIA_PREVIEW_CUT_FRAMES)
            fail_msg("%s: a preview of %u pictures", names[i], got.preview_frames);
        media_tiles_layout(p, &l);
        const AVFrame *sheet = got.picture[MEDIA_IMAGE_TILES];
        assert_int_equal(sheet != NULL, l.n > 0);
        for (uint32_t k = 0; k < l.n; k++) {
            assert_int_equal(sheet->width, l.columns * l.width);
            assert_int_equal(sheet->height, l.rows * l.height);
            range_of(sheet, (int)(k % l.columns * l.width), (int)(k / l.columns * l.height),
                     (int)l.width, (int)l.height, &darkest, &lightest);
            assert_true(lightest - darkest > 20); // not left black
        }
        for (int k = 0; k < MEDIA_N_IMAGES; k++)
            av_frame_free(&got.picture[k]);
        close(s.fd);
    }
}

static void test_tasks_that_do_not_fit_the_plan_are_refused(void **state)
{
    (void)state;
    struct codec_source s;
    if (!open_media("video/nasa_2video_2audio_2movtext.mp4", &s))
        skip();
    AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
    struct segments got = {0};
    struct codec_sink sink = {.segment = keep, .ud = &got};
    uint8_t sound = (uint8_t)media_plan_find(p, "a128"), none = (uint8_t)p->n_renditions;
    const struct media_task rows[] = {
        {.threads = 1, .n_segments = 1, .n_renditions = 1, .renditions = {none}},
        {.threads = 1, .n_segments = 1, .n_renditions = 2, .renditions = {0, sound}},
        {.threads = 1, .n_segments = 1, .n_renditions = 2, .renditions = {0, 0}},
        {.threads = 1, .n_segments = 99, .n_renditions = 1, .renditions = {0}},
        {.threads = 1, .first_segment = 99, .n_segments = 1, .n_renditions = 1, .renditions = {0}},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++)
        assert_int_equal(codec_encode(&s, p, &rows[i], &sink, NULL), STATUS_FAILED_PRECONDITION);
    assert_int_equal(got.n, 0);
    close(s.fd);
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
        cmocka_unit_test(test_probe_finds_frames_duration_and_ladder),
        cmocka_unit_test(test_segments_have_the_same_bytes_alone_and_together),
        cmocka_unit_test(test_lossless_sound_in_two_containers_gives_equal_segments),
        cmocka_unit_test(test_unusual_pictures_encode_onto_their_grid),
        cmocka_unit_test(test_combs_of_interlaced_frames_are_blended),
        cmocka_unit_test(test_films_have_a_poster_and_a_tile_for_each_part),
        cmocka_unit_test(test_tasks_that_do_not_fit_the_plan_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
