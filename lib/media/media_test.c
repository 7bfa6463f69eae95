#include "media/media.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "media/loudness.h"

// ---- a plan made by hand: 25 frames per second, two rungs, AAC and Opus ----

static const uint8_t avcc[] = {1,   100, 0,  31, 0xff, 0xe1, 0,    4,   0x67,
                               100, 0,   31, 1,  0,    2,    0x68, 0xee};
static const uint8_t asc[] = {0x11, 0x90};
static const uint8_t dops[] = {0, 2, 1, 0x38, 0, 0, 0xbb, 0x80, 0, 0, 0};

static void set_init(struct media_rendition *r, const uint8_t *config, size_t n)
{
    bool video = r->kind == MEDIA_VIDEO;
    struct media_track_config c = {.codec = r->codec,
                                   .timescale = r->timescale,
                                   .width = r->width,
                                   .height = r->height,
                                   .channels = video ? 0 : 2,
                                   .sample_rate = video ? 0 : MEDIA_AUDIO_RATE,
                                   .priming = r->priming,
                                   .bitrate_bps = r->bitrate_bps,
                                   .config = config,
                                   .config_len = n};
    struct buf b;
    buf_init(&b, MEDIA_MAX_INIT_BYTES);
    assert_int_equal(media_cmaf_init(&c, &b, NULL), STATUS_OK);
    r->init = buf_take(&b, &r->init_len);
    buf_done(&b);
}

static void add_audio(struct media_plan *p, const char *id, enum media_codec codec)
{
    struct media_rendition *r = &p->renditions[p->n_renditions++];
    bool aac = codec == MEDIA_CODEC_AAC;
    snprintf(r->id, sizeof(r->id), "%s", id);
    snprintf(r->codecs, sizeof(r->codecs), "%s", aac ? "mp4a.40.2" : "opus");
    r->kind = MEDIA_AUDIO;
    r->codec = codec;
    r->track = 1;
    r->channels = 2;
    r->frame_rate = (struct media_rational){0, 1};
    r->timescale = MEDIA_AUDIO_RATE;
    r->frame_samples = aac ? 1024 : 960;
    r->priming = aac ? 1024 : 312;
    r->bitrate_bps = 128000;
    set_init(r, aac ? asc : dops, aac ? sizeof(asc) : sizeof(dops));
}

static struct media_plan *make_plan(uint32_t n_frames, bool constant, uint32_t key_every)
{
    struct media_plan *p = media_plan_new();
    assert_non_null(p);
    p->kind = MEDIA_VIDEO;
    snprintf(p->build, sizeof(p->build), "test");
    p->source = (struct media_source){.container = MEDIA_CONTAINER_MP4,
                                      .size_bytes = 1000000,
                                      .duration_us = (int64_t)n_frames * 40000,
                                      .bitrate_bps = 200000,
                                      .n_jumps = 2,
                                      .jumps = {{1000, -5000000}, {70000, 20000000}},
                                      .n_tracks = 2};
    snprintf(p->source.title, sizeof(p->source.title), "R\xc3\xado");
    for (size_t i = 0; i < 2; i++) {
        struct media_track *t = &p->source.tracks[i];
        t->type = i ? MEDIA_TRACK_AUDIO : MEDIA_TRACK_VIDEO;
        t->chosen = true;
        snprintf(t->codec, sizeof(t->codec), "%s", i ? "aac" : "h264");
        t->width = i ? 0 : 854;
        t->height = i ? 0 : 480;
        t->sar = t->frame_rate = (struct media_rational){1, 1};
    }

    struct media_grid *g = &p->video;
    g->timescale = 12800;
    g->n_frames = n_frames;
    g->duration = (int64_t)n_frames * 512;
    if (constant) {
        g->frame_ticks = 512;
    } else {
        g->frame_times = mem_array(n_frames + 1, sizeof(int64_t));
        assert_non_null(g->frame_times);
        for (uint32_t i = 0; i <= n_frames; i++)
            g->frame_times[i] = (int64_t)i * 512 + (i && i < n_frames ? i % 3 : 0);
    }
    struct media_keyframe keys[4096];
    size_t n_keys = 0;
    for (uint32_t i = 0; key_every && i < n_frames && n_keys < N_ELEMENTS(keys); i += key_every)
        keys[n_keys++] = (struct media_keyframe){media_grid_frame_time(g, i), i, (int64_t)i * 1000};
    assert_int_equal(media_plan_cut_video(g, keys, n_keys, NULL), STATUS_OK);
    p->n_renditions = media_plan_ladder(854, 480, (struct media_rational){25, 1}, p->renditions, 5);
    for (size_t i = 0; i < p->n_renditions; i++) {
        p->renditions[i].timescale = g->timescale;
        p->renditions[i].cts_shift = 1100;
        set_init(&p->renditions[i], avcc, sizeof(avcc));
    }
    assert_int_equal(media_plan_cut_audio(&p->audio, (int64_t)n_frames * 1920, 1024, NULL),
                     STATUS_OK);
    add_audio(p, "a128", MEDIA_CODEC_AAC);
    add_audio(p, "o128", MEDIA_CODEC_OPUS);
    media_plan_set_bandwidth(p);
    struct err err = ERR_INIT;
    if (media_plan_check(p, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return p;
}

// ---- time ----

static void test_scaling_rounds_as_named_and_saturates(void **state)
{
    (void)state;
    static const struct {
        int64_t a, b, c, floor, ceil, near;
    } rows[] = {
        {7, 1, 2, 3, 4, 4},
        {-7, 1, 2, -4, -3, -4},
        {5, 1, 3, 1, 2, 2},
        {4, 1, 3, 1, 2, 1},
        {-4, 1, 3, -2, -1, -1},
        {90000, 1000, 90000, 1000, 1000, 1000},
        {INT64_MAX, 4, 2, INT64_MAX, INT64_MAX, INT64_MAX},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        assert_int_equal(media_scale_floor(rows[i].a, rows[i].b, rows[i].c), rows[i].floor);
        assert_int_equal(media_scale_ceil(rows[i].a, rows[i].b, rows[i].c), rows[i].ceil);
        assert_int_equal(media_scale_near(rows[i].a, rows[i].b, rows[i].c), rows[i].near);
    }
}

// ---- sniffing ----

static void test_sniff_names_the_kind_by_content(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        enum media_kind kind;
    } rows[] = {
        {"", 0, MEDIA_UNKNOWN},
        {"\0", 1, MEDIA_UNKNOWN},
        {"#EXTM3U\n", 8, MEDIA_UNKNOWN},
        {"ffconcat version 1.0", 20, MEDIA_UNKNOWN},
        {"\x7f"
         "ELF",
         4, MEDIA_UNKNOWN},
        {"\0\0\0\x18"
         "ftypisom....",
         16, MEDIA_VIDEO},
        {"\0\0\0\x18"
         "ftypM4A ....",
         16, MEDIA_AUDIO},
        {"\x1a\x45\xdf\xa3....A_OPUS", 14, MEDIA_AUDIO},
        {"\x1a\x45\xdf\xa3....V_VP8A_OPUS", 19, MEDIA_VIDEO},
        {"OggS....\x01vorbis", 15, MEDIA_AUDIO},
        {"OggS....\x80theora", 15, MEDIA_VIDEO},
        {"RIFF....AVI ", 12, MEDIA_VIDEO},
        {"RIFF....WAVE", 12, MEDIA_AUDIO},
        {"RIFF....WEBP", 12, MEDIA_UNKNOWN},
        {"ID3\4", 4, MEDIA_AUDIO},
        {"\xff\xfb\x90\x64", 4, MEDIA_AUDIO},
        {"\xff\xff\xff\xff", 4, MEDIA_UNKNOWN},
        {"fLaC", 4, MEDIA_AUDIO},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++)
        if (media_sniff(rows[i].bytes, rows[i].n) != rows[i].kind)
            fail_msg("row %zu", i);
}

// ---- cutting ----

static void test_cut_segments_cover_everything_with_lengths_in_bounds(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {1, 2, 30, 49, 50, 51, 75, 100, 137, 750, 3001};
    static const uint32_t keys[] = {0, 1, 12, 48, 50, 90, 250};
    for (size_t i = 0; i < N_ELEMENTS(lengths); i++) {
        for (size_t k = 0; k < N_ELEMENTS(keys); k++) {
            AUTO(media_plan_free_p)
            struct media_plan *p = make_plan(lengths[i], (i + k) % 2, keys[k]);
            const struct media_grid *g = &p->video;
            for (size_t s = 0; s + 1 < g->n_segments; s++) {
                int64_t ms = g->segments[s].duration * 1000 / g->timescale;
                assert_in_range(ms, s < 2 ? 1999 : 2999, s < 2 ? 3001 : 5001);
            }
        }
    }
}

static void test_cut_follows_source_keyframes_within_a_second(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(1000, true, 110); // 4.4 s apart
    size_t on_key = 0;
    for (size_t s = 0; s < p->video.n_segments; s++) {
        const struct media_segment *seg = &p->video.segments[s];
        on_key += seg->first_frame % 110 == 0;
        assert_int_equal(seg->seek_ticks, seg->first_frame / 110 * 110);
    }
    assert_true(on_key > p->video.n_segments / 2);
}

// Frames 1/25 s apart, keyframes every so many; which cuts come out, by frame.
static void test_cuts_for_copies_lie_on_keyframes_or_are_none(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_frames, key_every, first[8]; // first: frames that segments begin with, then 0
        bool cut;
    } rows[] = {
        {500, 50, {50, 100, 200, 300, 400}, true}, // 2 s, 2 s, then 4 s
        {500, 48, {48, 96, 192, 288, 384}, true},
        {500, 110, {110, 220, 330, 440}, true}, // 4.4 s
        {250, 25, {50, 100, 200}, true},        // each second: not cut at all of them
        {600, 250, {250, 500}, true},           // what encoders do when left alone
        {530, 250, {250}, true},                // a short rest joins the last one
        {600, 290, {0}, false},                 // 11.6 s are too long
        {100, 100, {0}, true},
        {400, 400, {0}, false},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct media_keyframe keys[64];
        struct media_grid g = {.timescale = 25000,
                               .frame_ticks = 1000,
                               .n_frames = rows[i].n_frames,
                               .duration = (int64_t)rows[i].n_frames * 1000};
        size_t n = 0, segment = 0;
        bool cut = false;
        for (uint32_t k = 0; k < rows[i].n_frames; k += rows[i].key_every)
            keys[n++] = (struct media_keyframe){(int64_t)k * 1000, k, k};
        assert_int_equal(media_plan_cut_at_keys(&g, keys, n, &cut, NULL), STATUS_OK);
        if (cut != rows[i].cut)
            fail_msg("row %zu: %s", i, cut ? "cut" : "not cut");
        for (uint32_t at = 0; cut && segment < g.n_segments; segment++) {
            const struct media_segment *s = &g.segments[segment];
            if (s->first_frame != at || (segment && rows[i].first[segment - 1] != at) ||
                s->seek_ticks != (int64_t)at)
                fail_msg("row %zu: segment %zu begins at %u", i, segment, s->first_frame);
            at += s->n_frames;
            assert_true(segment + 1 < g.n_segments || at == g.n_frames);
        }
        assert_true(!cut || rows[i].first[segment - 1] == 0);
        mem_free(g.segments);
        mem_free(g.chunks);
    }
}

static void test_options_are_known_by_name(void **state)
{
    (void)state;
    static const char *const codecs[] = {"vp9", "hevc"}, *const odd[] = {"h264"};
    struct media_options o = {.video_codecs = 1};
    assert_int_equal(media_options_parse("", NULL, 0, &o, NULL), STATUS_OK);
    assert_true(o.preset == MEDIA_PRESET_FAST && o.video_codecs == 0);
    assert_int_equal(media_options_parse("quality", codecs, 2, &o, NULL), STATUS_OK);
    assert_int_equal(o.preset, MEDIA_PRESET_QUALITY);
    assert_int_equal(o.video_codecs, 1U << MEDIA_CODEC_VP9 | 1U << MEDIA_CODEC_HEVC);
    assert_int_equal(media_options_parse("slow", NULL, 0, &o, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(media_options_parse("fast", odd, 1, &o, NULL), STATUS_INVALID_ARGUMENT);
}

static void test_ladder_never_exceeds_the_source(void **state)
{
    (void)state;
    static const struct {
        uint32_t w, h;
        size_t n;
        const char *top;
        uint32_t top_w, top_h;
    } rows[] = {
        {3840, 2160, 5, "v1080", 1920, 1080},
        {1920, 1080, 5, "v1080", 1920, 1080},
        {1080, 1920, 5, "v1080", 1080, 1920},
        {1920, 800, 5, "v1080", 1920, 800},
        {854, 480, 3, "v480", 854, 480},
        {640, 480, 3, "v480", 640, 480},
        {640, 360, 2, "v360", 640, 360},
        {214, 160, 1, "v240", 214, 160},
        {1, 1, 1, "v240", 2, 2},
        {16384, 3, 5, "v1080", 1920, 2},
        {161, 121, 1, "v240", 160, 120},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct media_rendition r[5];
        size_t n = media_plan_ladder(rows[i].w, rows[i].h, (struct media_rational){30, 1}, r, 5);
        assert_int_equal(n, rows[i].n);
        assert_string_equal(r[0].id, rows[i].top);
        assert_int_equal(r[0].width, rows[i].top_w);
        assert_int_equal(r[0].height, rows[i].top_h);
        for (size_t k = 0; k < n; k++) {
            assert_true(r[k].width % 2 == 0 && r[k].height % 2 == 0 && r[k].width && r[k].height);
            assert_true(r[k].maxrate_bps > 0 && r[k].level >= 21);
        }
    }
}

// A segment may take what its time lets in and what the buffer held where it began.
static void test_bandwidth_holds_for_segments_that_begin_with_a_full_buffer(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(1000, true, 50);
    double shortest = 2; // half of the longest, which 4 s are
    assert_int_equal(p->renditions[0].codec, MEDIA_CODEC_H264);
    for (size_t i = 0; i < p->video.n_segments; i++)
        assert_true(p->video.segments[i].duration >= 2 * (int64_t)p->video.timescale);
    double bits = p->renditions[0].maxrate_bps * (shortest + MEDIA_H264_START);
    assert_true(p->renditions[0].bandwidth_bps >= bits / shortest);
    assert_true(p->renditions[0].bandwidth_bps < bits / shortest + 10000); // boxes
}

// ---- bytes ----

static struct buf encoded(const struct media_plan *p)
{
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, MEDIA_PLAN_MAX_BYTES);
    if (media_plan_encode(p, &b, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return b;
}

static void test_plan_bytes_round_trip(void **state)
{
    (void)state;
    for (int constant = 0; constant < 2; constant++) {
        AUTO(media_plan_free_p) struct media_plan *p = make_plan(777, constant, 48), *q = NULL;
        struct buf a = encoded(p);
        assert_int_equal(media_plan_decode(a.data, a.len, &q, NULL), STATUS_OK);
        struct buf b = encoded(q);
        assert_int_equal(a.len, b.len);
        assert_memory_equal(a.data, b.data, a.len);
        assert_string_equal(q->source.title, p->source.title);
        assert_int_equal(q->source.n_jumps, p->source.n_jumps);
        assert_memory_equal(q->source.jumps, p->source.jumps, sizeof(p->source.jumps));
        assert_int_equal(q->video.n_segments, p->video.n_segments);
        assert_memory_equal(q->video.segments, p->video.segments,
                            p->video.n_segments * sizeof(*p->video.segments));
        assert_int_equal(media_grid_frame_time(&q->video, 776),
                         media_grid_frame_time(&p->video, 776));
        buf_done(&a);
        buf_done(&b);
    }
}

static void test_plan_cut_off_or_longer_is_refused(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(60, false, 10);
    struct buf a = encoded(p);
    for (size_t n = 0; n < a.len; n++) {
        struct media_plan *q = NULL;
        assert_int_not_equal(media_plan_decode(a.data, n, &q, NULL), STATUS_OK);
        assert_null(q);
    }
    struct media_plan *q = NULL;
    assert_true(buf_putc(&a, 0));
    assert_int_equal(media_plan_decode(a.data, a.len, &q, NULL), STATUS_INVALID_ARGUMENT);
    buf_done(&a);
}

// Any changed byte is either refused or yields a plan that passes every check and encodes again.
static void test_plan_mutations_never_break_an_invariant(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(200, false, 25);
    struct buf a = encoded(p);
    for (size_t at = 0; at < a.len; at++) {
        static const uint8_t xors[] = {1, 0x40, 0x80, 0xff};
        for (size_t x = 0; x < N_ELEMENTS(xors); x++) {
            a.data[at] ^= xors[x];
            AUTO(media_plan_free_p) struct media_plan *q = NULL;
            if (media_plan_decode(a.data, a.len, &q, NULL) == STATUS_OK) {
                struct buf b = encoded(q);
                buf_done(&b);
            }
            a.data[at] ^= xors[x];
        }
    }
    buf_done(&a);
}

static void test_plan_decode_survives_every_failed_allocation(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(200, false, 25);
    struct buf a = encoded(p);
    for (int64_t n = 0;; n++) {
        AUTO(media_plan_free_p) struct media_plan *q = NULL;
        mem_fail_at(n);
        enum status s = media_plan_decode(a.data, a.len, &q, NULL);
        mem_fail_at(-1);
        if (s == STATUS_OK)
            break;
        assert_null(q);
        assert_true(n < 100);
    }
    buf_done(&a);
}

static void test_plan_check_names_what_is_wrong(void **state)
{
    (void)state;
    for (int what = 0; what < 13; what++) {
        AUTO(media_plan_free_p) struct media_plan *p = make_plan(300, true, 25);
        struct err err = ERR_INIT;
        switch (what) {
        case 0:
            p->video.segments[1].start++;
            break;
        case 1:
            p->video.segments[1].n_frames++;
            break;
        case 2:
            p->video.chunks[0].n_segments++;
            break;
        case 3:
            p->renditions[0].width = 7;
            break;
        case 4:
            snprintf(p->renditions[1].id, sizeof(p->renditions[1].id), "v480");
            break;
        case 5:
            snprintf(p->renditions[1].codecs, sizeof(p->renditions[1].codecs), "a\"b");
            break;
        case 6:
            p->renditions[0].init[20] ^= 1;
            break;
        case 7:
            p->audio.timescale = 44100;
            break;
        case 8:
            p->source.jumps[1].offset = p->source.jumps[0].offset;
            break;
        case 9:
            p->source.jumps[0].shift_us = INT64_MAX;
            break;
        case 10: // a ladder of its own comes first
            p->renditions[0].lazy = true;
            break;
        case 11:
            p->renditions[media_plan_find(p, "a128")].lazy = true;
            break;
        default:
            p->renditions[0].scale_from = 2;
            break;
        }
        assert_int_equal(media_plan_check(p, &err), STATUS_INVALID_ARGUMENT);
        assert_true(strlen(err.msg) > 8);
    }
}

// ---- playlists ----

static void test_rendition_playlist_is_golden(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    struct buf b;
    buf_init(&b, 1 << 16);
    assert_int_equal(media_playlist_rendition(p, 0, &b, NULL), STATUS_OK);
    assert_string_equal(buf_str(&b), "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:5\n"
                                     "#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:VOD\n"
                                     "#EXT-X-INDEPENDENT-SEGMENTS\n"
                                     "#EXT-X-MAP:URI=\"v480/init.mp4\"\n"
                                     "#EXTINF:2.000000,\nv480/0.m4s\n"
                                     "#EXTINF:2.000000,\nv480/1.m4s\n"
                                     "#EXTINF:5.000000,\nv480/2.m4s\n"
                                     "#EXT-X-ENDLIST\n");
    buf_done(&b);
}

static void test_master_playlist_is_golden(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    for (size_t i = 0; i < p->n_renditions; i++)
        p->renditions[i].bandwidth_bps = 1000000 - (uint32_t)i * 100000;
    struct buf b;
    buf_init(&b, 1 << 16);
    assert_int_equal(
        media_playlist_master(p, &(struct media_offer){.max_height = 360}, NULL, &b, NULL),
        STATUS_OK);
    assert_string_equal(
        buf_str(&b),
        "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n"
        "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a128\",NAME=\"Track 0\",DEFAULT=YES,AUTOSELECT=YES,"
        "CHANNELS=\"2\",URI=\"a128.m3u8\"\n"
        "#EXT-X-STREAM-INF:BANDWIDTH=1600000,AVERAGE-BANDWIDTH=608000,CODECS=\"avc1.64001e,mp4a.40."
        "2\","
        "RESOLUTION=640x360,FRAME-RATE=25.000,AUDIO=\"a128\"\nv360.m3u8\n"
        "#EXT-X-STREAM-INF:BANDWIDTH=1500000,AVERAGE-BANDWIDTH=368000,CODECS=\"avc1.640015,mp4a.40."
        "2\","
        "RESOLUTION=426x240,FRAME-RATE=25.000,AUDIO=\"a128\"\nv240.m3u8\n"
        "#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=400000,CODECS=\"avc1.64001e\",RESOLUTION=640x360,"
        "URI=\"v360-keys.m3u8\"\n"
        "#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=200000,CODECS=\"avc1.640015\",RESOLUTION=426x240,"
        "URI=\"v240-keys.m3u8\"\n");
    buf_reset(&b);
    // Nothing fits: the lowest stays.
    assert_int_equal(media_playlist_master(p, &(struct media_offer){.max_kbps = 1}, NULL, &b, NULL),
                     STATUS_OK);
    assert_non_null(strstr(buf_str(&b), "v240.m3u8"));
    assert_null(strstr(buf_str(&b), "v360.m3u8"));
    buf_done(&b);
}

static void test_dash_manifest_is_golden(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    for (size_t i = 0; i < p->n_renditions; i++)
        p->renditions[i].bandwidth_bps = 1000000 - (uint32_t)i * 100000;
    const struct media_offer offer = {.codecs = 1U << MEDIA_CODEC_AAC | 1U << MEDIA_CODEC_OPUS,
                                      .max_height = 360};
    struct buf b;
    buf_init(&b, 1 << 16);
    assert_int_equal(media_dash_manifest(p, &offer, NULL, &b, NULL), STATUS_OK);
    assert_string_equal(
        buf_str(&b),
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        "<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" "
        "profiles=\"urn:mpeg:dash:profile:isoff-live:2011\" type=\"static\" "
        "mediaPresentationDuration=\"PT9.000000S\" maxSegmentDuration=\"PT5.000000S\" "
        "minBufferTime=\"PT2S\">\n"
        "  <Period id=\"0\" start=\"PT0S\">\n"
        "    <AdaptationSet id=\"1\" contentType=\"video\" mimeType=\"video/mp4\" "
        "segmentAlignment=\"true\" "
        "startWithSAP=\"1\">\n"
        "      <SegmentTemplate timescale=\"12800\" startNumber=\"0\" "
        "initialization=\"$RepresentationID$/init.mp4\" "
        "media=\"$RepresentationID$/$Number$.m4s\">\n"
        "        <SegmentTimeline>\n"
        "          <S t=\"0\" d=\"25600\" r=\"1\"/>\n"
        "          <S d=\"64000\"/>\n"
        "        </SegmentTimeline>\n"
        "      </SegmentTemplate>\n"
        "      <Representation id=\"v360\" codecs=\"avc1.64001e\" bandwidth=\"900000\" "
        "width=\"640\" height=\"360\" frameRate=\"25\" sar=\"1:1\"/>\n"
        "      <Representation id=\"v240\" codecs=\"avc1.640015\" bandwidth=\"800000\" "
        "width=\"426\" height=\"240\" frameRate=\"25\" sar=\"1:1\"/>\n"
        "    </AdaptationSet>\n"
        "    <AdaptationSet id=\"3\" contentType=\"audio\" mimeType=\"audio/mp4\" "
        "segmentAlignment=\"true\" "
        "startWithSAP=\"1\">\n"
        "      <Label>Track 0</Label>\n"
        "      <Role schemeIdUri=\"urn:mpeg:dash:role:2011\" value=\"main\"/>\n"
        "      <SegmentTemplate timescale=\"48000\" startNumber=\"0\" "
        "initialization=\"$RepresentationID$/init.mp4\" "
        "media=\"$RepresentationID$/$Number$.m4s\">\n"
        "        <SegmentTimeline>\n"
        "          <S t=\"0\" d=\"92160\" r=\"1\"/>\n"
        "          <S d=\"184320\"/>\n"
        "          <S d=\"64384\"/>\n"
        "        </SegmentTimeline>\n"
        "      </SegmentTemplate>\n"
        "      <Representation id=\"a128\" codecs=\"mp4a.40.2\" bandwidth=\"700000\" "
        "audioSamplingRate=\"48000\">\n"
        "        <AudioChannelConfiguration "
        "schemeIdUri=\"urn:mpeg:dash:23003:3:audio_channel_configuration:2011\" value=\"2\"/>\n"
        "      </Representation>\n"
        "    </AdaptationSet>\n"
        "    <AdaptationSet id=\"4\" contentType=\"audio\" mimeType=\"audio/mp4\" "
        "segmentAlignment=\"true\" "
        "startWithSAP=\"1\">\n"
        "      <Label>Track 0</Label>\n"
        "      <Role schemeIdUri=\"urn:mpeg:dash:role:2011\" value=\"main\"/>\n"
        "      <SegmentTemplate timescale=\"48000\" startNumber=\"0\" "
        "initialization=\"$RepresentationID$/init.mp4\" "
        "media=\"$RepresentationID$/$Number$.m4s\">\n"
        "        <SegmentTimeline>\n"
        "          <S t=\"0\" d=\"92160\" r=\"1\"/>\n"
        "          <S d=\"184320\"/>\n"
        "          <S d=\"64384\"/>\n"
        "        </SegmentTimeline>\n"
        "      </SegmentTemplate>\n"
        "      <Representation id=\"o128\" codecs=\"opus\" bandwidth=\"600000\" "
        "audioSamplingRate=\"48000\">\n"
        "        <AudioChannelConfiguration "
        "schemeIdUri=\"urn:mpeg:dash:23003:3:audio_channel_configuration:2011\" value=\"2\"/>\n"
        "      </Representation>\n"
        "    </AdaptationSet>\n"
        "  </Period>\n"
        "</MPD>\n");
    buf_reset(&b);
    b.limit = 100;
    assert_int_equal(media_dash_manifest(p, &offer, NULL, &b, NULL), STATUS_RESOURCE_EXHAUSTED);
    buf_done(&b);
}

// A second sound track, in German, and what is made on request.
static struct media_plan *make_rich_plan(void)
{
    struct media_plan *p = make_plan(225, true, 0);
    struct media_track *t = &p->source.tracks[p->source.n_tracks++];
    *t = p->source.tracks[1];
    t->index = 2;
    snprintf(p->source.tracks[1].language, sizeof(t->language), "en");
    snprintf(t->language, sizeof(t->language), "de");
    snprintf(t->title, sizeof(t->title), "Kommentar \"3\"");
    t->is_commentary = true;
    static const struct {
        const char *id;
        uint8_t track, channels;
        bool lazy, normalised;
    } more[] = {{"a128-2", 2, 2, true, false},
                {"a64", 1, 2, true, false},
                {"a384", 1, 6, true, false},
                {"a128n", 1, 2, true, true}};
    for (size_t i = 0; i < N_ELEMENTS(more); i++) {
        add_audio(p, more[i].id, MEDIA_CODEC_AAC);
        struct media_rendition *r = &p->renditions[p->n_renditions - 1];
        r->track = more[i].track;
        r->channels = more[i].channels;
        r->lazy = more[i].lazy;
        r->normalised = more[i].normalised;
        r->bandwidth_bps = 100000;
    }
    return p;
}

static char *master_of(const struct media_plan *p, const char *offer, struct buf *b)
{
    struct media_offer o;
    buf_reset(b);
    assert_int_equal(media_offer_parse(offer, &o, NULL), STATUS_OK);
    assert_int_equal(media_playlist_master(p, &o, NULL, b, NULL), STATUS_OK);
    return (char *)b->data;
}

static void test_master_lists_languages_and_what_was_asked_for(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_rich_plan();
    struct buf b;
    buf_init(&b, 1 << 16);
    const char *m = master_of(p, "", &b);
    assert_non_null(strstr(m, "GROUP-ID=\"a128\",NAME=\"en\",DEFAULT=YES,AUTOSELECT=YES,"
                              "LANGUAGE=\"en\",CHANNELS=\"2\",URI=\"a128.m3u8\""));
    assert_non_null(strstr(m, "GROUP-ID=\"a128\",NAME=\"Kommentar 3\",DEFAULT=NO,AUTOSELECT=NO,"
                              "LANGUAGE=\"de\",CHANNELS=\"2\",URI=\"a128-2.m3u8\""));
    assert_null(strstr(m, "a64"));
    assert_null(strstr(m, "a384"));
    assert_null(strstr(m, "a128n"));
    assert_null(strstr(m, "o128"));
    m = master_of(p, "t3", &b);
    assert_non_null(strstr(m, "NAME=\"en\",DEFAULT=NO"));
    assert_non_null(strstr(m, "NAME=\"Kommentar 3\",DEFAULT=YES,AUTOSELECT=YES"));
    m = master_of(p, "surround", &b);
    assert_non_null(strstr(m, "GROUP-ID=\"a384\",NAME=\"en\",DEFAULT=YES,AUTOSELECT=YES,"
                              "LANGUAGE=\"en\",CHANNELS=\"6\",URI=\"a384.m3u8\""));
    assert_non_null(strstr(m, "AUDIO=\"a384\"\nv480.m3u8"));
    assert_non_null(strstr(m, "AUDIO=\"a128\"\nv480.m3u8"));
    m = master_of(p, "even", &b);
    assert_non_null(strstr(m, "GROUP-ID=\"a128n\""));
    assert_null(strstr(m, "GROUP-ID=\"a128\""));
    m = master_of(p, "aac-rates", &b);
    assert_non_null(strstr(m, "AUDIO=\"a64\"\nv240.m3u8"));
    assert_non_null(strstr(m, "CODECS=\"mp4a.40.2\",AUDIO=\"a64\"\na64.m3u8"));
    m = master_of(p, "opus", &b);
    assert_non_null(strstr(m, "AUDIO=\"o128\"\nv480.m3u8"));
    assert_null(strstr(m, "a128"));
    buf_done(&b);
}

static void test_master_tells_measured_rates(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    // 2, 2 and 5 s; target 5 s: runs of 2.5 to 7.5 s count
    static const int64_t sizes[] = {100000, 300000, 250000};
    struct media_rate rates[MEDIA_MAX_RENDITIONS] = {{0}};
    rates[0] = media_rate_of(p, 0, sizes);
    assert_int_equal(rates[0].mean_bps, 650000 * 8 / 9);
    assert_int_equal(rates[0].peak_bps, 400000 * 8 / 4);
    struct buf b;
    char want[80];
    buf_init(&b, 1 << 16);
    assert_int_equal(media_playlist_master(p, &(struct media_offer){0}, rates, &b, NULL),
                     STATUS_OK);
    snprintf(want, sizeof(want), "BANDWIDTH=%u,AVERAGE-BANDWIDTH=%u,",
             800000 + p->renditions[3].bandwidth_bps, 577777 + 128000);
    assert_non_null(strstr(buf_str(&b), want));
    buf_done(&b);
}

static void test_keys_playlist_names_pictures_of_their_own(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    char name[16];
    struct buf b;
    buf_init(&b, 1 << 16);
    assert_int_equal(media_playlist_keys(p, 0, &b, NULL), STATUS_OK);
    assert_non_null(strstr(buf_str(&b), "#EXT-X-I-FRAMES-ONLY\n#EXT-X-MAP:URI=\"v480/init.mp4\"\n"
                                        "#EXTINF:2.000000,\nv480-keys/0.m4s\n"));
    assert_int_equal(media_playlist_keys(p, 3, &b, NULL), STATUS_NOT_FOUND);
    assert_true(media_playlist_keys_of("v480-keys", name, sizeof(name)));
    assert_string_equal(name, "v480");
    assert_false(media_playlist_keys_of("v480", name, sizeof(name)));
    assert_false(media_playlist_keys_of("-keys", name, sizeof(name)));
    assert_false(media_playlist_keys_of("a-name-too-long-to-be-one-keys", name, sizeof(name)));
    buf_done(&b);
}

static void test_offers_have_one_name_each(void **state)
{
    (void)state;
    static const char *const good[] = {"",
                                       "hevc",
                                       ("h264-aac-opus-hevc-av1-vp9-flac-copy-acopy-surround-even-"
                                        "rates-p16384-k4294967295-t64-s64"),
                                       "copy",
                                       "acopy",
                                       "p720-k3000",
                                       "t2-s3"};
    static const char *const bad[] = {
        "-",    "copy-",  "-copy",       "copy--even", "even-copy", "acopy-copy", "p0",
        "p",    "p16385", "p-1",         "p720x",      "k04",       "t65",        "s65",
        "none", "mp3",    "k4294967296", "h265",       "p720-p480", "../x"};
    for (size_t i = 0; i < N_ELEMENTS(good); i++) {
        struct media_offer o;
        char name[MEDIA_OFFER_SIZE];
        struct err err = ERR_INIT;
        if (media_offer_parse(good[i], &o, &err) != STATUS_OK)
            fail_msg("%s: %s", good[i], err.msg);
        media_offer_name(&o, name);
        assert_string_equal(name, good[i]);
    }
    for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
        struct media_offer o;
        if (media_offer_parse(bad[i], &o, NULL) != STATUS_INVALID_ARGUMENT)
            fail_msg("%s", bad[i]);
    }
}

static void test_an_offer_holds_what_was_decided(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_rich_plan();
    static const struct {
        const char *player, *language, *name;
        bool normalised;
        uint32_t max_height;
    } rows[] = {{"generic", "", "", false, 0},        {"mpv", "", "surround", false, 0},
                {"chrome", "de", "t3", false, 0},     {"chrome", "", "even", true, 0},
                {"chrome", "", "p360", false, 360},   {"chrome", "", "", false, 20000},
                {"roku", "de", "p480-t3", false, 480}};
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        const struct media_profile *profile = media_profile_find(rows[i].player);
        const struct media_limits limits = {.max_height = rows[i].max_height};
        struct media_wishes w = MEDIA_NO_WISHES;
        w.no_direct = w.no_copies = true;
        w.audio_language = rows[i].language;
        w.normalised = rows[i].normalised;
        struct media_decision d;
        struct media_offer o, again;
        char name[MEDIA_OFFER_SIZE];
        media_decide(p, profile, &limits, &w, &d);
        media_offer_for(p, profile, &limits, &d, &o);
        media_offer_name(&o, name);
        assert_string_equal(name, rows[i].name);
        assert_int_equal(media_offer_parse(name, &again, NULL), STATUS_OK);
        assert_true(media_offer_has(p, &again, (size_t)d.video_rendition));
        assert_true(media_offer_has(p, &again, (size_t)d.audio_rendition));
    }
}

// ---- pictures ----

static void test_tiles_cover_the_film(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    struct media_tiles l;
    struct buf b;
    buf_init(&b, 1 << 16);
    media_tiles_layout(p, &l);
    assert_int_equal(l.n, 3);
    assert_int_equal(l.columns, 3);
    assert_int_equal(l.rows, 1);
    assert_int_equal(l.width, 160);
    assert_int_equal(l.height, 88);
    assert_int_equal(media_tiles_index(p, "tiles.jpg", &b, NULL), STATUS_OK);
    assert_string_equal(buf_str(&b), "WEBVTT\n\n"
                                     "00:00:00.000 --> 00:00:02.000\n"
                                     "tiles.jpg#xywh=0,0,160,88\n\n"
                                     "00:00:02.000 --> 00:00:04.000\n"
                                     "tiles.jpg#xywh=160,0,160,88\n\n"
                                     "00:00:04.000 --> 00:00:09.000\n"
                                     "tiles.jpg#xywh=320,0,160,88\n");
    buf_done(&b);

    AUTO(media_plan_free_p) struct media_plan *long_film = make_plan(60000, false, 0);
    media_tiles_layout(long_film, &l);
    assert_true(long_film->video.n_segments > 100);
    assert_int_equal(l.n, 100);
    assert_int_equal(l.rows, 10);
    assert_int_equal(media_tile_segment(long_film, &l, 0), 0);
    for (uint32_t k = 1; k < l.n; k++)
        assert_true(media_tile_segment(long_film, &l, k) >
                    media_tile_segment(long_film, &l, k - 1));
    assert_true(media_tile_segment(long_film, &l, l.n - 1) < long_film->video.n_segments);
}

static void test_pictures_are_planned_where_there_is_something_to_show(void **state)
{
    (void)state;
    uint32_t w, h;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    assert_true(media_image_is_planned(p, MEDIA_IMAGE_POSTER));
    assert_int_equal(media_image_find("poster"), MEDIA_IMAGE_POSTER);
    assert_int_equal(media_image_find("v480"), -1);
    p->video.n_segments = 0; // a song
    assert_false(media_image_is_planned(p, MEDIA_IMAGE_TILES));
    assert_false(media_image_is_planned(p, MEDIA_IMAGE_POSTER));
    assert_true(media_image_is_planned(p, MEDIA_IMAGE_WAVEFORM));
    p->source.tracks[p->source.n_tracks++] = (struct media_track){.type = MEDIA_TRACK_PICTURE};
    assert_true(media_image_is_planned(p, MEDIA_IMAGE_POSTER));
    media_poster_size(3840, 2160, &w, &h);
    assert_true(w == 1280 && h == 720);
    media_poster_size(1080, 1921, &w, &h);
    assert_true(w == 718 && h == 1280);
    media_poster_size(1, 1, &w, &h);
    assert_true(w == 2 && h == 2);
}

// ---- CMAF ----

static struct buf fragment(const struct media_plan *p, size_t rendition, size_t segment,
                           bool reorder)
{
    static const uint8_t data[8] = {0, 0, 0, 4, 0x65, 1, 2, 3};
    const struct media_grid *g = media_rendition_grid(p, rendition);
    bool video = p->renditions[rendition].kind == MEDIA_VIDEO;
    uint32_t n = media_rendition_samples(p, rendition, segment);
    struct media_sample *s = mem_array(n, sizeof(*s));
    assert_non_null(s);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t f = g->segments[segment].first_frame + i;
        s[i] = (struct media_sample){.data = data, .size = 5 + i % 4, .sync = !video || i == 0};
        s[i].duration =
            video ? (uint32_t)(media_grid_frame_time(g, f + 1) - media_grid_frame_time(g, f))
                  : p->renditions[rendition].frame_samples;
    }
    for (uint32_t i = 1; video && reorder && i + 1 < n; i += 2) {
        s[i].cts = (int32_t)s[i].duration;
        s[i + 1].cts = -(int32_t)s[i].duration;
    }
    struct buf b;
    buf_init(&b, 1 << 20);
    struct err err = ERR_INIT;
    if (media_cmaf_fragment(7, video ? 1 : 2, g->segments[segment].start, s, n, &b, &err))
        fail_msg("%s", err.msg);
    mem_free(s);
    return b;
}

static void test_fragments_of_all_segments_agree_with_the_plan(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(313, false, 25);
    for (size_t r = 0; r < p->n_renditions; r++) {
        const struct media_grid *g = media_rendition_grid(p, r);
        for (size_t s = 0; s < g->n_segments; s++) {
            struct buf b = fragment(p, r, s, true);
            struct media_fragment f;
            struct err err = ERR_INIT;
            if (media_cmaf_check(p, r, s, b.data, b.len, &f, &err) != STATUS_OK)
                fail_msg("%s", err.msg);
            assert_int_equal(f.sequence, 7);
            assert_int_equal(f.data_offset + f.data_len, b.len);
            // Not any other segment, not cut off, not longer.
            assert_int_not_equal(media_cmaf_check(p, r, s + 1, b.data, b.len, &f, NULL), STATUS_OK);
            assert_int_not_equal(media_cmaf_parse(b.data, b.len - 1, &f, NULL), STATUS_OK);
            assert_true(buf_putc(&b, 0));
            assert_int_not_equal(media_cmaf_parse(b.data, b.len, &f, NULL), STATUS_OK);
            buf_done(&b);
        }
    }
}

static void test_fragment_mutations_are_harmless(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(60, true, 25);
    struct buf b = fragment(p, 0, 0, true);
    struct media_fragment whole;
    assert_int_equal(media_cmaf_parse(b.data, b.len, &whole, NULL), STATUS_OK);
    for (size_t at = 0; at < whole.data_offset; at++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            struct media_fragment f;
            b.data[at] ^= (uint8_t)(1U << bit);
            if (media_cmaf_parse(b.data, b.len, &f, NULL) == STATUS_OK)
                assert_true(f.data_offset + f.data_len == b.len && f.n_samples == whole.n_samples);
            b.data[at] ^= (uint8_t)(1U << bit);
        }
    }
    buf_done(&b);
}

static void test_merged_file_has_both_tracks_and_no_negative_offset(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(100, true, 25);
    struct buf b, f = fragment(p, 0, 0, true);
    buf_init(&b, 1 << 16);
    assert_int_equal(media_cmaf_merge_init(p, 0, media_plan_find(p, "a128"), &b, NULL), STATUS_OK);
    assert_non_null(memmem(b.data, b.len, "avc1", 4));
    assert_non_null(memmem(b.data, b.len, "mp4a", 4));
    assert_int_equal(media_cmaf_merge_init(p, 3, 0, &b, NULL), STATUS_INVALID_ARGUMENT);

    struct media_fragment before, after;
    assert_int_equal(media_cmaf_parse(f.data, f.len, &before, NULL), STATUS_OK);
    assert_int_equal(media_cmaf_adapt(p, 0, 42, f.data, f.len, NULL), STATUS_OK);
    assert_int_equal(media_cmaf_parse(f.data, f.len, &after, NULL), STATUS_OK);
    assert_int_equal(after.sequence, 42);
    assert_true(before.min_cts < 0 && after.min_cts >= 0);
    assert_int_equal(after.first_pts, before.first_pts + p->renditions[0].cts_shift);
    buf_done(&b);
    buf_done(&f);
}

static void test_key_fragment_is_the_first_picture_for_the_whole_time(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    struct buf f = fragment(p, 0, 1, true), key;
    struct media_fragment all, one;
    struct media_sample samples[2];
    buf_init(&key, 1 << 20);
    assert_int_equal(media_cmaf_head(f.data, f.len, (int64_t)f.len, samples, 2, &all, NULL),
                     STATUS_OK);
    assert_int_equal(media_cmaf_key(f.data, f.len, &key, NULL), STATUS_OK);
    assert_int_equal(media_cmaf_parse(key.data, key.len, &one, NULL), STATUS_OK);
    assert_int_equal(one.n_samples, 1);
    assert_int_equal(one.duration, all.duration);
    assert_int_equal(one.base_time, all.base_time);
    assert_int_equal(one.data_len, samples[0].size);
    assert_memory_equal(key.data + one.data_offset, f.data + all.data_offset, one.data_len);
    buf_done(&key);
    buf_done(&f);
}

static void test_head_needs_all_before_the_body_and_the_true_size(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    struct buf f = fragment(p, 0, 1, true);
    struct media_fragment all, head;
    int64_t size = (int64_t)f.len;
    assert_int_equal(media_cmaf_parse(f.data, f.len, &all, NULL), STATUS_OK);
    assert_true(all.data_offset <= MEDIA_HEAD_BYTES(all.n_samples));
    for (size_t n = 0; n < f.len; n++)
        assert_int_equal(media_cmaf_head(f.data, n, size, NULL, 0, &head, NULL),
                         n < all.data_offset ? STATUS_INVALID_ARGUMENT : STATUS_OK);
    assert_int_equal(head.n_samples, all.n_samples);
    assert_int_equal(head.base_time, all.base_time);
    assert_int_equal(head.first_pts, all.first_pts);
    assert_int_equal(head.duration, all.duration);
    assert_int_equal(head.n_sync, all.n_sync);
    assert_int_equal(head.data_offset, all.data_offset);
    assert_int_equal(head.data_len, all.data_len);
    assert_int_equal(media_cmaf_head(f.data, all.data_offset, size + 1, NULL, 0, &head, NULL),
                     STATUS_INVALID_ARGUMENT);
    buf_done(&f);
}

// ---- one file ----

// All segments of two renditions, and the file that they make.
struct one_file {
    struct media_plan *p;
    struct media_mp4 *m;
    struct buf *segments; // in the order of the file
    struct buf bytes;
};

static struct one_file make_file(uint32_t n_frames, int video, int audio)
{
    struct one_file f = {.p = make_plan(n_frames, false, 0)};
    struct err err = ERR_INIT;
    assert_int_equal(media_mp4_new(f.p, video, audio, &f.m, &err), STATUS_OK);
    size_t n = media_mp4_n_parts(f.m);
    f.segments = mem_array(n, sizeof(*f.segments));
    assert_non_null(f.segments);
    for (size_t i = 0; i < n; i++) {
        struct media_mp4_part at = media_mp4_part(f.m, i);
        f.segments[i] = fragment(f.p, at.rendition, at.segment, true);
        size_t head = media_mp4_head_bytes(f.m, i), all = f.segments[i].len;
        if (media_mp4_add(f.m, f.segments[i].data, head < all ? head : all, (int64_t)all, &err))
            fail_msg("%s", err.msg);
    }
    assert_int_equal(media_mp4_finish(f.m, &err), STATUS_OK);
    buf_init(&f.bytes, 1U << 30);
    for (int64_t at = 0; at < media_mp4_size(f.m);) {
        struct media_mp4_span s;
        size_t n_header;
        media_mp4_at(f.m, at, &s);
        assert_true(s.len > 0);
        const uint8_t *from =
            s.in_header ? media_mp4_header(f.m, &n_header) : f.segments[s.part].data;
        buf_append(&f.bytes, from + s.offset, (size_t)s.len);
        at += s.len;
    }
    assert_int_equal(f.bytes.len, media_mp4_size(f.m));
    return f;
}

static void drop_file(struct one_file *f)
{
    for (size_t i = 0; i < media_mp4_n_parts(f->m); i++)
        buf_done(&f->segments[i]);
    mem_free(f->segments);
    buf_done(&f->bytes);
    media_mp4_free(f->m);
    media_plan_free(f->p);
}

static uint32_t be32_at(const struct buf *b, size_t at)
{
    const uint8_t *p = b->data + at;
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

// The body of the n-th box of that type, found by its name.
static size_t find_box(const struct buf *b, const char *type, int nth)
{
    for (size_t at = 4; at + 4 < b->len; at++)
        if (memcmp(b->data + at, type, 4) == 0 && nth-- == 0)
            return at + 4;
    fail_msg("no %s", type);
    return 0;
}

static void test_file_holds_every_sample_where_its_tables_say(void **state)
{
    (void)state;
    struct one_file f = make_file(313, 0, 3);
    const struct buf *b = &f.bytes;
    assert_memory_equal(b->data + 4, "ftyp", 4);
    size_t moov = find_box(b, "moov", 0), mdat = find_box(b, "mdat", 0);
    assert_true(moov < mdat); // it plays while it arrives
    assert_int_equal(be32_at(b, mdat - 8), b->len - mdat + 8);
    for (int track = 0; track < 2; track++) {
        size_t sizes = find_box(b, "stsz", track), chunks = find_box(b, "stco", track);
        uint32_t n = be32_at(b, sizes + 8), n_chunks = be32_at(b, chunks + 4), sample = 0;
        size_t part = 0;
        assert_int_equal(n_chunks, (track ? f.p->audio : f.p->video).n_segments);
        for (uint32_t c = 0; c < n_chunks; c++, part++) {
            while (media_mp4_part(f.m, part).rendition != (track ? 3 : 0))
                part++;
            struct media_mp4_part at = media_mp4_part(f.m, part);
            struct media_fragment had;
            assert_int_equal(
                media_cmaf_parse(f.segments[part].data, f.segments[part].len, &had, NULL),
                STATUS_OK);
            uint32_t of_chunk = media_rendition_samples(f.p, at.rendition, at.segment), bytes = 0;
            assert_memory_equal(b->data + be32_at(b, chunks + 8 + 4 * c),
                                f.segments[part].data + had.data_offset, had.data_len);
            for (uint32_t i = 0; i < of_chunk; i++)
                bytes += be32_at(b, sizes + 12 + 4 * sample++);
            assert_int_equal(bytes, had.data_len);
        }
        assert_int_equal(sample, n);
    }
    drop_file(&f);
}

static void test_file_edits_take_off_shift_priming_and_tail(void **state)
{
    (void)state;
    struct one_file f = make_file(313, 0, 3);
    for (int track = 0; track < 2; track++) {
        size_t elst = find_box(&f.bytes, "elst", track);
        const struct media_grid *g = track ? &f.p->audio : &f.p->video;
        int64_t shown = media_scale_ceil(g->duration - (track ? 1024 : 0), 48000, g->timescale);
        assert_int_equal(be32_at(&f.bytes, elst + 12), shown);
        assert_int_equal(be32_at(&f.bytes, elst + 20), track ? 1024 : 1100);
    }
    size_t ctts = find_box(&f.bytes, "ctts", 0);
    for (uint32_t i = 0; i < be32_at(&f.bytes, ctts + 4); i++)
        assert_true(be32_at(&f.bytes, ctts + 12 + 8 * i) < 1U << 20); // none is negative
    drop_file(&f);
}

static void test_file_is_as_long_whichever_the_codec(void **state)
{
    (void)state;
    struct one_file aac = make_file(313, -1, 3), opus = make_file(313, -1, 4);
    size_t a = find_box(&aac.bytes, "elst", 0), o = find_box(&opus.bytes, "elst", 0);
    assert_int_equal(be32_at(&aac.bytes, a + 12), 313 * 1920);
    assert_int_equal(be32_at(&opus.bytes, o + 12), 313 * 1920);
    assert_int_equal(be32_at(&opus.bytes, o + 20), 312);
    drop_file(&aac);
    drop_file(&opus);
}

static void test_file_of_one_rendition_alone(void **state)
{
    (void)state;
    struct one_file f = make_file(100, -1, 3), v = make_file(100, 1, -1);
    assert_int_equal(media_mp4_n_parts(f.m), f.p->audio.n_segments);
    assert_int_equal(media_mp4_n_parts(v.m), v.p->video.n_segments);
    drop_file(&f);
    drop_file(&v);
}

static void test_file_refuses_what_is_not_the_plans_segment(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(225, true, 0);
    AUTO(media_mp4_free_p) struct media_mp4 *m = NULL;
    assert_int_equal(media_mp4_new(p, -1, -1, &m, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(media_mp4_new(p, 3, 0, &m, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(media_mp4_new(p, 0, 99, &m, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(media_mp4_new(p, 0, 3, &m, NULL), STATUS_OK);
    struct buf other = fragment(p, 0, 1, true), right = fragment(p, 0, 0, true);
    assert_int_equal(media_mp4_add(m, other.data, other.len, (int64_t)other.len, NULL),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(media_mp4_add(m, right.data, right.len, (int64_t)right.len + 1, NULL),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(media_mp4_add(m, right.data, right.len, (int64_t)right.len, NULL), STATUS_OK);
    assert_int_equal(media_mp4_n_added(m), 1);
    assert_int_equal(media_mp4_finish(m, NULL), STATUS_FAILED_PRECONDITION);
    buf_done(&other);
    buf_done(&right);
}

static void test_file_of_three_hours_takes_little_memory(void **state)
{
    (void)state;
    AUTO(media_plan_free_p) struct media_plan *p = make_plan(3 * 3600 * 25, true, 0);
    AUTO(media_mp4_free_p) struct media_mp4 *m = NULL;
    size_t most = 0;
    assert_int_equal(media_mp4_new(p, 0, 3, &m, NULL), STATUS_OK);
    for (size_t i = 0; i < media_mp4_n_parts(m); i++) {
        struct media_mp4_part at = media_mp4_part(m, i);
        struct buf s = fragment(p, at.rendition, at.segment, true);
        assert_int_equal(media_mp4_add(m, s.data, s.len, (int64_t)s.len, NULL), STATUS_OK);
        buf_done(&s);
        most = media_mp4_memory(m) > most ? media_mp4_memory(m) : most;
    }
    assert_int_equal(media_mp4_finish(m, NULL), STATUS_OK);
    most = media_mp4_memory(m) > most ? media_mp4_memory(m) : most;
    assert_true(most < 16 << 20);
}

// ---- records ----

static void test_records_round_trip_and_refuse_damage(void **state)
{
    (void)state;
    static const uint8_t data[] = "abc";
    const struct media_record rows[] = {
        {.type = MEDIA_REC_READY},
        {.type = MEDIA_REC_READ, .a = 5, .b = 6},
        {.type = MEDIA_REC_AVAILABLE, .a = 1, .b = 0},
        {.type = MEDIA_REC_PROGRESS, .a = 1, .b = 2},
        {.type = MEDIA_REC_PLAN, .a = 77},
        {.type = MEDIA_REC_DATA, .data = data, .data_len = 3},
        {.type = MEDIA_REC_VERDICT, .verdict = MEDIA_VERDICT_REJECTED, .text = "no"},
        {.type = MEDIA_REC_SEGMENT, .out = {1, 2, 3, 4, 5, 6, 7, 8}},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct buf b;
        struct media_record r;
        buf_init(&b, MEDIA_RECORD_MAX);
        assert_int_equal(media_record_encode(&rows[i], &b, NULL), STATUS_OK);
        assert_int_equal(media_record_decode(b.data, b.len, &r, NULL), STATUS_OK);
        assert_int_equal(r.type, rows[i].type);
        assert_int_equal(r.a, rows[i].a);
        assert_int_equal(r.b, rows[i].b);
        assert_memory_equal(&r.out, &rows[i].out, sizeof(r.out));
        assert_string_equal(r.text, rows[i].text);
        if (rows[i].type != MEDIA_REC_DATA && rows[i].type != MEDIA_REC_VERDICT) {
            assert_int_not_equal(media_record_decode(b.data, b.len - 1, &r, NULL), STATUS_OK);
            assert_true(buf_putc(&b, 1));
            assert_int_not_equal(media_record_decode(b.data, b.len, &r, NULL), STATUS_OK);
        }
        buf_done(&b);
    }
    struct media_record r;
    assert_int_not_equal(media_record_decode("", 0, &r, NULL), STATUS_OK);
    assert_int_not_equal(media_record_decode("\x63", 1, &r, NULL), STATUS_OK);
    assert_int_not_equal(media_record_decode("\x09\x01\xff\xfe", 4, &r, NULL), STATUS_OK);
}

static void test_task_round_trip_and_bounds(void **state)
{
    (void)state;
    static const uint8_t plan[] = {1, 2, 3};
    struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                           .source_size = 9,
                           .threads = 2,
                           .n_segments = 3,
                           .n_renditions = 2,
                           .renditions = {1, 4},
                           .plan = plan,
                           .plan_len = 3};
    struct buf b;
    struct media_task u;
    buf_init(&b, 4096);
    assert_int_equal(media_task_encode(&t, &b, NULL), STATUS_OK);
    assert_int_equal(media_task_decode(b.data, b.len, &u, NULL), STATUS_OK);
    assert_int_equal(u.renditions[1], 4);
    assert_memory_equal(u.plan, plan, 3);
    for (size_t n = 0; n < b.len; n++)
        assert_int_not_equal(media_task_decode(b.data, n, &u, NULL), STATUS_OK);
    buf_reset(&b);
    t.threads = 0;
    assert_int_equal(media_task_encode(&t, &b, NULL), STATUS_OK);
    assert_int_not_equal(media_task_decode(b.data, b.len, &u, NULL), STATUS_OK);
    buf_done(&b);
}

static void test_window_holds_what_was_fetched_last(void **state)
{
    (void)state;
    struct media_window w;
    assert_int_equal(media_window_init(&w, 10 * (int64_t)MEDIA_READ_BLOCK + 1, 4, NULL), STATUS_OK);
    for (size_t i = 7; i < 11; i++)
        assert_true(media_window_add(&w, i) == MEDIA_NO_BLOCK);
    assert_true(media_window_add(&w, 8) == MEDIA_NO_BLOCK);  // there already
    assert_true(media_window_add(&w, 11) == MEDIA_NO_BLOCK); // not of the source
    for (size_t i = 0; i < 100; i++) {
        size_t block = i % 7, out = i < 4 ? 7 + i : (i - 4) % 7;
        assert_false(media_window_has(&w, block));
        assert_true(media_window_add(&w, block) == out);
        assert_true(media_window_has(&w, block) && !media_window_has(&w, out));
    }
    media_window_done(&w);
    // No larger than the source.
    assert_int_equal(media_window_init(&w, 1, 0, NULL), STATUS_OK);
    assert_int_equal(w.capacity, 1);
    assert_true(media_window_add(&w, 0) == MEDIA_NO_BLOCK && media_window_has(&w, 0));
    media_window_done(&w);
}

// ---- loudness ----

static void test_gain_reaches_the_target_or_stops_at_the_peak(void **state)
{
    (void)state;
    static const struct {
        struct media_loudness l;
        int32_t gain_mdb;
    } rows[] = {
        {{-30000, 0, -27000}, 14000},
        {{-16000, 0, -3000}, 0},
        {{-8000, 4000, 300}, -8000},
        {{-30000, 20000, -4000}, 3000}, // to -1 dBTP
        {{-20000, 20000, 500}, -1500},  // that peak is too high already
        {{-69000, 0, -66000}, 53000},
        {{MEDIA_LOUDNESS_SILENCE, 0, -99000}, 0},
        {{MEDIA_LOUDNESS_SILENCE, 0, -2000}, 0}, // a click in silence
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++)
        assert_int_equal(media_loudness_gain_mdb(&rows[i].l), rows[i].gain_mdb);
}

static void test_loudness_is_read_as_it_is_printed_alone(void **state)
{
    (void)state;
    struct media_loudness l = {-18060, 7, -18001}, got;
    struct err err = ERR_INIT;
    struct buf b;
    buf_init(&b, MEDIA_LOUDNESS_MAX_BYTES);
    media_loudness_print(&l, &b);
    assert_string_equal(buf_str(&b), "{\"integrated_lufs\":-18.060,\"range_lu\":0.007,"
                                     "\"true_peak_dbtp\":-18.001}");
    assert_int_equal(media_loudness_parse(b.data, b.len, &got, &err), STATUS_OK);
    assert_memory_equal(&got, &l, sizeof(l));
    for (size_t n = 0; n < b.len; n++) // cut off, or another byte somewhere
        assert_int_equal(media_loudness_parse(b.data, n, &got, &err), STATUS_INVALID_ARGUMENT);
    for (size_t i = 0; i < b.len; i++) {
        uint8_t was = b.data[i];
        b.data[i] = 'x';
        assert_int_equal(media_loudness_parse(b.data, b.len, &got, &err), STATUS_INVALID_ARGUMENT);
        b.data[i] = was;
    }
    buf_done(&b);
    static const char *const bad[] = {
        "{\"integrated_lufs\":-90.000,\"range_lu\":0.000,\"true_peak_dbtp\":0.000}",
        "{\"integrated_lufs\":-9.000,\"range_lu\":-1.000,\"true_peak_dbtp\":0.000}",
        "{\"integrated_lufs\":-9.000,\"range_lu\":1.000,\"true_peak_dbtp\":999999999999.000}",
        "{\"integrated_lufs\":-9,\"range_lu\":1,\"true_peak_dbtp\":0}",
        "{}",
    };
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        assert_int_equal(media_loudness_parse(bad[i], strlen(bad[i]), &got, &err),
                         STATUS_INVALID_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bandwidth_holds_for_segments_that_begin_with_a_full_buffer),
        cmocka_unit_test(test_window_holds_what_was_fetched_last),
        cmocka_unit_test(test_scaling_rounds_as_named_and_saturates),
        cmocka_unit_test(test_sniff_names_the_kind_by_content),
        cmocka_unit_test(test_cut_segments_cover_everything_with_lengths_in_bounds),
        cmocka_unit_test(test_cut_follows_source_keyframes_within_a_second),
        cmocka_unit_test(test_cuts_for_copies_lie_on_keyframes_or_are_none),
        cmocka_unit_test(test_options_are_known_by_name),
        cmocka_unit_test(test_ladder_never_exceeds_the_source),
        cmocka_unit_test(test_plan_bytes_round_trip),
        cmocka_unit_test(test_plan_cut_off_or_longer_is_refused),
        cmocka_unit_test(test_plan_mutations_never_break_an_invariant),
        cmocka_unit_test(test_plan_decode_survives_every_failed_allocation),
        cmocka_unit_test(test_plan_check_names_what_is_wrong),
        cmocka_unit_test(test_rendition_playlist_is_golden),
        cmocka_unit_test(test_master_playlist_is_golden),
        cmocka_unit_test(test_master_lists_languages_and_what_was_asked_for),
        cmocka_unit_test(test_master_tells_measured_rates),
        cmocka_unit_test(test_keys_playlist_names_pictures_of_their_own),
        cmocka_unit_test(test_offers_have_one_name_each),
        cmocka_unit_test(test_an_offer_holds_what_was_decided),
        cmocka_unit_test(test_dash_manifest_is_golden),
        cmocka_unit_test(test_tiles_cover_the_film),
        cmocka_unit_test(test_pictures_are_planned_where_there_is_something_to_show),
        cmocka_unit_test(test_fragments_of_all_segments_agree_with_the_plan),
        cmocka_unit_test(test_fragment_mutations_are_harmless),
        cmocka_unit_test(test_merged_file_has_both_tracks_and_no_negative_offset),
        cmocka_unit_test(test_key_fragment_is_the_first_picture_for_the_whole_time),
        cmocka_unit_test(test_head_needs_all_before_the_body_and_the_true_size),
        cmocka_unit_test(test_file_holds_every_sample_where_its_tables_say),
        cmocka_unit_test(test_file_edits_take_off_shift_priming_and_tail),
        cmocka_unit_test(test_file_is_as_long_whichever_the_codec),
        cmocka_unit_test(test_file_of_one_rendition_alone),
        cmocka_unit_test(test_file_refuses_what_is_not_the_plans_segment),
        cmocka_unit_test(test_file_of_three_hours_takes_little_memory),
        cmocka_unit_test(test_records_round_trip_and_refuse_damage),
        cmocka_unit_test(test_task_round_trip_and_bounds),
        cmocka_unit_test(test_gain_reaches_the_target_or_stops_at_the_peak),
        cmocka_unit_test(test_loudness_is_read_as_it_is_printed_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
