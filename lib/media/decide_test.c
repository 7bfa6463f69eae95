// The decision as a matrix: sources by players, then wishes and limits. What is expected was
// reasoned from the profiles' rows.
#include "media/decide.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/str.h"
#include "media/offer.h"
#include "media/plan_internal.h"

// ---- sources ----

struct row {
    const char *name;
    enum media_container container;
    const char *container_name;
    // picture; no codec: none
    const char *video, *profile;
    uint16_t level, depth, refs;
    uint32_t width, height, fps;
    int64_t kbps;
    uint8_t transfer;
    int16_t rotation;
    int32_t sar;
    bool interlaced;
    // sound
    const char *audio;
    uint16_t channels;
    uint32_t rate;
    uint16_t bits;
    // the file
    const char *copies; // "v", "a", "va": what the plan has packed-anew renditions of
    bool index_last, two_videos, data_stream;
    // What players do with it, "profile,profile=mode: reasons; ..."; those not named play it as it
    // is. Modes: R picture and sound packed anew, Rv the picture alone, T made anew.
    const char *expected;
};

#define H264(l) .video = "h264", .profile = "High", .level = (l), .depth = 8, .refs = 4
#define HD .width = 1920, .height = 1080, .fps = 25, .kbps = 5000
#define UHD .width = 3840, .height = 2160, .fps = 24, .kbps = 18000
#define AAC .audio = "aac", .channels = 2, .rate = 48000
#define AC3 .audio = "ac3", .channels = 6, .rate = 48000
#define MP4 .container = MEDIA_CONTAINER_MP4, .container_name = "mov,mp4"
#define MKV .container = MEDIA_CONTAINER_MATROSKA, .container_name = "matroska"
#define TS .container = MEDIA_CONTAINER_MPEGTS, .container_name = "mpegts"

// clang-format off
static const struct row rows[] = {
    {"mp4", MP4, H264(40), HD, AAC, .copies = "va", .expected = ""},
    {"index last", MP4, H264(40), HD, AAC, .copies = "va", .index_last = true,
     .expected = "roku=R: container_index"},
    {"mkv", MKV, H264(40), HD, AAC, .copies = "va",
     .expected = "generic=T: container;"
                 "chrome,firefox,edge,safari,ios,appletv,chromecast=R: container"},
    {"ts", TS, H264(40), HD, AAC, .copies = "va",
     .expected = "generic=T: container;"
                 "chrome,firefox,edge,safari,ios,appletv,chromecast,roku=R: container"},
    {"mov", .container = MEDIA_CONTAINER_OTHER, .container_name = "quicktime", H264(40), HD, AAC,
     .copies = "va",
     .expected = "generic=T: container;"
                 "chrome,firefox,edge,android,chromecast=R: container"},
    {"hevc", MP4, .video = "hevc", .profile = "Main", .level = 120, .depth = 8, HD, AAC,
     .copies = "va", .expected = "generic,chrome,firefox,chromecast=T: video_codec"},
    {"hdr10", MP4, .video = "hevc", .profile = "Main 10", .level = 150, .depth = 10, UHD,
     .transfer = 16, AAC, .copies = "va",
     .expected = "generic=T: video_codec;"
                 "chrome,firefox,chromecast=T: video_codec,video_range;"
                 "edge,app=T: video_range"},
    {"hlg", MP4, .video = "hevc", .profile = "Main 10", .level = 123, .depth = 10, HD,
     .transfer = 18, AAC, .copies = "va",
     .expected = "generic=T: video_codec;"
                 "chrome,firefox,chromecast=T: video_codec,video_range;"
                 "edge,roku,app=T: video_range"},
    {"10 bit h264", MKV, .video = "h264", .profile = "High 10", .level = 41, .depth = 10, .refs = 4,
     HD, AAC, .copies = "a",
     .expected = "generic,chrome,firefox,edge,safari,ios,appletv,chromecast="
                 "T: container,video_profile,video_bit_depth;"
                 "android,roku,webos,tizen,app=T: video_profile,video_bit_depth"},
    {"4:2:2", MP4, .video = "h264", .profile = "High 4:2:2", .level = 41, .depth = 8, .refs = 4, HD,
     AAC, .copies = "a",
     .expected = "generic,chrome,firefox,edge,safari,android,ios,appletv,chromecast,roku,webos,"
                 "tizen,app=T: video_profile"},
    {"level 6", MP4, H264(60), UHD, AAC, .copies = "va",
     .expected = "chrome,firefox,edge,safari,ios,appletv,android,webos,tizen,app=T: video_level;"
                 "chromecast,roku=T: video_level,video_size"},
    {"interlaced", TS, H264(40), HD, .interlaced = true, AC3, .copies = "",
     .expected = "generic=T: container,audio_codec;"
                 "chrome,firefox,chromecast=T: container,video_interlaced,audio_codec;"
                 "edge,safari,ios,appletv,roku=T: container,video_interlaced;"
                 "android=T: video_interlaced,audio_codec;"
                 "app=T: video_interlaced"},
    {"dvd", .container = MEDIA_CONTAINER_MPEGPS, .container_name = "mpeg", .video = "mpeg2video",
     .profile = "Main", .level = 8, .depth = 8, .width = 720, .height = 480, .fps = 30,
     .kbps = 6000, .sar = 2, .interlaced = true, AC3, .copies = "",
     .expected = "generic=T: container,video_codec,audio_codec;"
                 "chrome,firefox,android=T: container,video_codec,video_interlaced,audio_codec;"
                 "edge,safari,ios,appletv=T: container,video_codec,video_interlaced;"
                 "chromecast=T: container,video_codec,video_interlaced,video_anamorphic,"
                 "audio_codec;"
                 "roku=T: container,video_codec,video_interlaced,video_anamorphic;"
                 "app=T: container,video_interlaced"},
    {"avi", .container = MEDIA_CONTAINER_AVI, .container_name = "avi", .video = "mpeg4",
     .profile = "Advanced Simple Profile", .level = 5, .depth = 8, .width = 720, .height = 576,
     .fps = 25, .kbps = 1500, .audio = "mp3", .channels = 2, .rate = 44100, .copies = "",
     .expected = "generic,chrome,firefox,edge,safari,ios,appletv,chromecast,roku="
                 "T: container,video_codec;"
                 "android=T: container,package_codec"},
    {"webm", .container = MEDIA_CONTAINER_WEBM, .container_name = "matroska", .video = "vp9",
     .profile = "Profile 0", .depth = 8, .width = 1280, .height = 720, .fps = 30, .kbps = 2000,
     .audio = "opus", .channels = 2, .rate = 48000, .copies = "va",
     .expected = "generic,ios,appletv=T: container,video_codec;"
                 "roku=T: container,video_codec,audio_codec"},
    {"av1", MP4, .video = "av1", .profile = "Main", .level = 8, .depth = 8, HD, .audio = "opus",
     .channels = 2, .rate = 48000, .copies = "va",
     .expected = "generic,safari=T: video_codec;"
                 "ios,appletv,chromecast,roku=T: video_codec,audio_codec;"
                 "webos,tizen=Rv: audio_codec,package_codec"},
    {"turned", MP4, H264(40), HD, .rotation = 90, AAC, .copies = "a",
     .expected = "chromecast,roku,webos,tizen=T: video_rotation"},
    {"anamorphic", MP4, H264(30), .width = 640, .height = 360, .fps = 25, .kbps = 900, .sar = 2,
     AAC, .copies = "a", .expected = "chromecast,roku=T: video_anamorphic"},
    {"5.1", MP4, H264(40), HD, .audio = "aac", .channels = 6, .rate = 48000, .copies = "va",
     .expected = "chromecast,roku=Rv: audio_channels"},
    {"dts", MKV, H264(40), HD, .audio = "dts", .channels = 6, .rate = 48000, .copies = "v",
     .expected = "generic=T: container,audio_codec;"
                 "chrome,firefox,edge,safari,ios,appletv,chromecast=Rv: container,audio_codec;"
                 "android,roku,webos,tizen,app=Rv: audio_codec"},
    {"ac3", MP4, H264(40), HD, AC3, .copies = "v",
     .expected = "generic=T: audio_codec; chrome,firefox,android,chromecast=Rv: audio_codec"},
    {"120 fps", MP4, H264(51), .width = 1920, .height = 1080, .fps = 120, .kbps = 8000, AAC,
     .copies = "va",
     .expected = "ios,appletv,webos,tizen=T: video_frame_rate;"
                 "chromecast,roku=T: video_level,video_frame_rate"},
    {"16 refs", MP4, .video = "h264", .profile = "High", .level = 41, .depth = 8, .refs = 16, HD,
     AAC, .copies = "va", .expected = "roku=T: video_refs"},
    {"30 Mbit/s", MP4, H264(42), .width = 1920, .height = 1080, .fps = 50, .kbps = 30000, AAC,
     .copies = "va", .expected = "roku=T: video_bitrate"},
    {"two videos", MP4, H264(40), HD, AAC, .copies = "va", .two_videos = true,
     .expected = "chrome,firefox,edge,chromecast,roku=R: several_video"},
    {"data stream", MP4, H264(40), HD, AAC, .copies = "va", .data_stream = true,
     .expected = "roku=R: unknown_stream"},
    {"silent film", MP4, H264(40), HD, .copies = "v", .expected = ""},
    {"silent mkv", MKV, H264(40), HD, .copies = "v",
     .expected = "generic=T: container;"
                 "chrome,firefox,edge,safari,ios,appletv,chromecast=R: container"},
    {"flac", .container = MEDIA_CONTAINER_FLAC, .container_name = "flac", .audio = "flac",
     .channels = 2, .rate = 96000, .bits = 24, .copies = "a",
     .expected = "roku=T: audio_sample_rate"},
    {"mp3", .container = MEDIA_CONTAINER_MP3, .container_name = "mp3", .audio = "mp3",
     .channels = 2, .rate = 44100, .copies = "", .expected = ""},
    {"wav", .container = MEDIA_CONTAINER_WAV, .container_name = "wav", .audio = "pcm_f32le",
     .channels = 2, .rate = 192000, .bits = 32, .copies = "",
     .expected = "generic=T: audio_codec; chrome,firefox,edge=T: audio_sample_rate;"
                 "safari,ios,appletv,android,chromecast,roku,webos,tizen="
                 "T: audio_sample_rate,audio_bit_depth"},
    {"m4a", MP4, .audio = "aac", .channels = 2, .rate = 44100, .copies = "a", .expected = ""},
    {"ogg", .container = MEDIA_CONTAINER_OGG, .container_name = "ogg", .audio = "vorbis",
     .channels = 2, .rate = 44100, .copies = "",
     .expected = "safari,ios,appletv=T: container,package_codec; roku=T: container,audio_codec"},
};
// clang-format on

// ---- a plan of a row: what the decision looks at, no more ----

static struct media_track *add_track(struct media_plan *p, enum media_track_type type,
                                     const char *codec)
{
    struct media_track *t = &p->source.tracks[p->source.n_tracks];
    *t = (struct media_track){.type = type,
                              .index = (uint16_t)p->source.n_tracks,
                              .sar = {1, 1},
                              .frame_rate = {0, 1},
                              .color = {2, 2, 2}};
    snprintf(t->codec, sizeof(t->codec), "%s", codec);
    p->source.n_tracks++;
    return t;
}

static struct media_rendition *add_rendition(struct media_plan *p, const char *id,
                                             enum media_kind kind, enum media_codec codec,
                                             size_t track, uint32_t bandwidth)
{
    struct media_rendition *r = &p->renditions[p->n_renditions++];
    *r = (struct media_rendition){.kind = kind,
                                  .codec = codec,
                                  .track = (uint8_t)track,
                                  .channels = kind == MEDIA_AUDIO ? 2 : 0,
                                  .bandwidth_bps = bandwidth};
    snprintf(r->id, sizeof(r->id), "%s", id);
    return r;
}

static void add_video(struct media_plan *p, const struct row *row)
{
    static const struct {
        const char *id;
        uint32_t width, height, bandwidth;
    } ladder[] = {{"v1080", 1920, 1080, 6000000},
                  {"v720", 1280, 720, 3500000},
                  {"v480", 854, 480, 1800000},
                  {"v240", 426, 240, 500000}};
    struct media_track *t = add_track(p, MEDIA_TRACK_VIDEO, row->video);
    t->chosen = true;
    snprintf(t->profile, sizeof(t->profile), "%s", row->profile);
    t->level = row->level;
    t->bit_depth = row->depth;
    t->refs = row->refs;
    t->width = row->width;
    t->height = row->height;
    t->frame_rate = (struct media_rational){row->fps, 1};
    t->bitrate_bps = row->kbps * 1000;
    t->rotation = row->rotation;
    t->interlaced = row->interlaced;
    if (row->sar)
        t->sar.num = row->sar;
    if (row->transfer)
        t->color[1] = row->transfer;
    for (size_t i = 0; i < N_ELEMENTS(ladder); i++) {
        struct media_rendition *r =
            add_rendition(p, ladder[i].id, MEDIA_VIDEO, MEDIA_CODEC_H264, 0, ladder[i].bandwidth);
        r->width = ladder[i].width;
        r->height = ladder[i].height;
    }
    if (strchr(row->copies, 'v')) {
        struct media_rendition *r =
            add_rendition(p, "vcopy", MEDIA_VIDEO, MEDIA_CODEC_H264, 0, 9000000);
        r->copy = r->lazy = true;
        r->width = row->width;
        r->height = row->height;
    }
    p->video = (struct media_grid){.timescale = 1000, .n_segments = 1};
}

static struct media_track *add_audio(struct media_plan *p, const struct row *row,
                                     const char *suffix)
{
    size_t at = p->source.n_tracks;
    char id[16];
    struct media_track *t = add_track(p, MEDIA_TRACK_AUDIO, row->audio);
    t->chosen = true;
    t->channels = row->channels;
    t->sample_rate = row->rate;
    t->bit_depth = row->bits;
    snprintf(id, sizeof(id), "a128%s", suffix);
    add_rendition(p, id, MEDIA_AUDIO, MEDIA_CODEC_AAC, at, 160000);
    if (!*suffix)
        add_rendition(p, "o128", MEDIA_AUDIO, MEDIA_CODEC_OPUS, at, 150000);
    snprintf(id, sizeof(id), "a64%s", suffix);
    add_rendition(p, id, MEDIA_AUDIO, MEDIA_CODEC_AAC, at, 80000)->lazy = true;
    if (!*suffix)
        add_rendition(p, "a128n", MEDIA_AUDIO, MEDIA_CODEC_AAC, at, 160000)->normalised = true;
    if (row->channels > 2) {
        struct media_rendition *lossless =
            add_rendition(p, "flac", MEDIA_AUDIO, MEDIA_CODEC_FLAC, at, 3900000);
        lossless->lazy = true;
        lossless->channels = 6;
        struct media_rendition *r =
            add_rendition(p, "a384", MEDIA_AUDIO, MEDIA_CODEC_AAC, at, 460000);
        r->lazy = true;
        r->channels = 6;
    }
    if (strchr(row->copies, 'a')) {
        struct media_rendition *r =
            add_rendition(p, *suffix ? "acopy-2" : "acopy", MEDIA_AUDIO, MEDIA_CODEC_AAC, at, 1);
        r->copy = r->lazy = true;
    }
    p->audio = (struct media_grid){.timescale = MEDIA_AUDIO_RATE, .n_segments = 1};
    return t;
}

static struct media_plan *plan_of(const struct row *row)
{
    struct media_plan *p = media_plan_new();
    assert_non_null(p);
    p->kind = row->video ? MEDIA_VIDEO : MEDIA_AUDIO;
    p->source.container = row->container;
    snprintf(p->source.container_name, sizeof(p->source.container_name), "%s", row->container_name);
    p->source.streamable = !row->index_last;
    p->source.bitrate_bps = row->kbps * 1000 + 200000;
    if (row->video)
        add_video(p, row);
    if (row->audio)
        (void)add_audio(p, row, "");
    if (row->two_videos)
        (void)add_track(p, MEDIA_TRACK_VIDEO, "h264");
    if (row->data_stream)
        (void)add_track(p, MEDIA_TRACK_OTHER, "none");
    return p;
}

// ---- what is expected ----

// The cell of a profile: "R: container"; "" when it plays the file as it is.
static void find_cell(const char *expected, const char *profile, char *dst, size_t size)
{
    dst[0] = '\0';
    for (const char *at = expected; *at;) {
        at += strspn(at, " ;");
        size_t n = strcspn(at, ";"), names = strcspn(at, "=");
        assert_true(names < n);
        char list[160];
        snprintf(list, sizeof(list), "%.*s", (int)names, at);
        if (media_list_has(list, profile)) {
            snprintf(dst, size, "%.*s", (int)(n - names - 1), at + names + 1);
            return;
        }
        at += n;
    }
}

static void put_cell(const struct media_plan *p, const struct media_decision *d, char *dst,
                     size_t size)
{
    dst[0] = '\0';
    if (d->mode == MEDIA_MODE_DIRECT)
        return;
    bool sound_made = d->audio_rendition >= 0 && !p->renditions[d->audio_rendition].copy;
    bool mixed = d->mode == MEDIA_MODE_REMUX && d->video_track != MEDIA_NO_TRACK && sound_made;
    int n = snprintf(dst, size, "%s: ", mixed ? "Rv" : d->mode == MEDIA_MODE_REMUX ? "R" : "T");
    for (size_t i = 0; i < d->n_notes; i++)
        n += snprintf(dst + n, size - (size_t)n, "%s%s", i ? "," : "",
                      media_reason_name(d->notes[i].reason));
}

static void check_sense(const struct media_plan *p, const struct media_decision *d)
{
    assert_int_equal(d->n_notes == 0, d->mode == MEDIA_MODE_DIRECT);
    assert_int_equal(d->video_rendition >= 0, p->video.n_segments > 0);
    assert_int_equal(d->audio_rendition >= 0, p->audio.n_segments > 0);
    if (d->video_rendition >= 0)
        assert_int_equal(p->renditions[d->video_rendition].copy, d->mode == MEDIA_MODE_REMUX);
    for (size_t i = 0; i < d->n_notes; i++)
        assert_true(d->notes[i].text[0] && media_reason_name(d->notes[i].reason)[0]);
}

static size_t n_profiles(void)
{
    size_t n = 0;
    while (media_profile_at(n))
        n++;
    return n;
}

static void test_every_player_gets_every_source_as_reasoned(void **state)
{
    (void)state;
    size_t n_cases = 0, n_wrong = 0;
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct media_plan *p = plan_of(&rows[i]);
        for (size_t k = 0; k < n_profiles(); k++, n_cases++) {
            const struct media_profile *profile = media_profile_at(k);
            struct media_decision d;
            char want[200], got[400];
            media_decide(p, profile, &(struct media_limits){0}, &MEDIA_NO_WISHES, &d);
            find_cell(rows[i].expected, profile->name, want, sizeof(want));
            put_cell(p, &d, got, sizeof(got));
            check_sense(p, &d);
            if (strcmp(want, got) == 0)
                continue;
            print_error("%s on %s: \"%s\", expected \"%s\"\n", rows[i].name, profile->name, got,
                        want);
            n_wrong++;
        }
        media_plan_free(p);
    }
    assert_int_equal(n_wrong, 0);
    assert_true(n_cases >= 500);
}

// ---- wishes and limits ----

// The film of these cases: H.264 and AAC in Matroska; sound English and German; subtitles in four
// kinds: 3 SubRip English, 4 ASS German, 5 PGS French that can be burnt in, 6 DVD Spanish that
// cannot, 7 and 8 SubRip Italian, of which the first has foreign parts alone.
static struct media_plan *film(void)
{
    static const struct row row = {"film", MKV, H264(40), HD, AAC, .copies = "va"};
    static const struct {
        const char *codec, *language;
        enum media_subtitle kind;
    } subtitles[] = {
        {"subrip", "en", MEDIA_SUBTITLE_TEXT},
        {"ass", "de", MEDIA_SUBTITLE_STYLED},
        {"hdmv_pgs_subtitle", "fr", MEDIA_SUBTITLE_BITMAP},
        {"dvd_subtitle", "es", MEDIA_SUBTITLE_BITMAP},
        {"subrip", "it", MEDIA_SUBTITLE_TEXT},
        {"subrip", "it", MEDIA_SUBTITLE_TEXT},
    };
    struct media_plan *p = media_plan_new();
    assert_non_null(p);
    p->kind = MEDIA_VIDEO;
    p->source.container = row.container;
    p->source.streamable = true;
    p->source.bitrate_bps = 5200000;
    add_video(p, &row);
    static const struct {
        const char *id;
        uint8_t track;
    } burnt[] = {{"v720-s4", 4}, {"v720-s5", 5}};
    for (size_t i = 0; i < N_ELEMENTS(burnt); i++) {
        struct media_rendition *r =
            add_rendition(p, burnt[i].id, MEDIA_VIDEO, MEDIA_CODEC_H264, 0, 3500000);
        r->burn = (uint8_t)(burnt[i].track + 1);
        r->lazy = true;
        r->width = 1280;
        r->height = 720;
    }
    struct media_track *en = add_audio(p, &row, ""), *de = add_audio(p, &row, "-2");
    en->is_default = true;
    snprintf(en->language, sizeof(en->language), "en");
    snprintf(de->language, sizeof(de->language), "de");
    for (size_t i = 0; i < N_ELEMENTS(subtitles); i++) {
        struct media_track *t = add_track(p, MEDIA_TRACK_SUBTITLE, subtitles[i].codec);
        t->subtitle = subtitles[i].kind;
        snprintf(t->language, sizeof(t->language), "%s", subtitles[i].language);
    }
    p->source.tracks[7].is_forced = true;
    return p;
}

#define W(...)                                                                                     \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

static void test_wishes_and_limits_as_reasoned(void **state)
{
    (void)state;
    // clang-format off
    const struct {
        const char *profile;
        struct media_wishes wishes;
        struct media_limits limits;
        const char *want, *video, *audio; // "": the file
        enum media_subtitle_way way;
        int subtitle;
    } cases[] = {
        // limits: copies keep to them too; the best rendition that fits, else the lowest
        {"mpv", {0}, {0}, "", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_height = 1080}, "", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_height = 1079}, "T: limit_height", "v720", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_height = 480}, "T: limit_height", "v480", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_height = 100}, "T: limit_height", "v240", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_bitrate_bps = 5200000}, "", "v720", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_bitrate_bps = 5199999}, "T: limit_bitrate", "v720", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_bitrate_bps = 3660000}, "T: limit_bitrate", "v720", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_bitrate_bps = 3659999}, "T: limit_bitrate", "v480", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_bitrate_bps = 1}, "T: limit_bitrate", "v240", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.network_bps = 6500000}, "", "v720", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.network_bps = 6000000}, "T: limit_network", "v720", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.network_bps = 2500000}, "T: limit_network", "v480", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_bitrate_bps = 2000000, .network_bps = 100000000}, "T: limit_bitrate", "v480", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_bitrate_bps = 5000000, .network_bps = 1000000}, "T: limit_bitrate,limit_network", "v240", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", {0}, {.max_height = 720, .max_bitrate_bps = 2000000}, "T: limit_height,limit_bitrate", "v480", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"chrome", {0}, {.max_bitrate_bps = 3000000}, "T: container,limit_bitrate", "v480", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"chrome", {0}, {.max_height = 720}, "T: container,limit_height", "v720", "a128", MEDIA_SUBTITLE_OFF, -1},
        // direct play and copies can be ruled out
        {"mpv", W(.no_direct = true), {0}, "R: asked_renditions", "vcopy", "acopy", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", W(.no_direct = true, .no_copies = true), {0}, "T: asked_renditions,no_copies", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"chrome", W(.no_copies = true), {0}, "T: container,no_copies", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"chrome", {0}, {0}, "R: container", "vcopy", "acopy", MEDIA_SUBTITLE_OFF, -1},
        // the original sound beside a picture that is made anew
        {"mpv", W(.prefer_original = true), {.max_height = 480}, "T: limit_height", "v480", "acopy", MEDIA_SUBTITLE_OFF, -1},
        {"chrome", W(.prefer_original = true), {.max_height = 480}, "T: container,limit_height", "v480", "acopy", MEDIA_SUBTITLE_OFF, -1},
        // even loudness is only in renditions
        {"mpv", W(.normalised = true), {0}, "Rv: asked_normalised", "vcopy", "a128n", MEDIA_SUBTITLE_OFF, -1},
        {"chrome", W(.normalised = true), {0}, "Rv: container,asked_normalised", "vcopy", "a128n", MEDIA_SUBTITLE_OFF, -1},
        // sound by language and number
        {"mpv", W(.audio_language = "de"), {0}, "", "v1080", "a128-2", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", W(.audio_language = "fr"), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", W(.audio_track = 2), {0}, "", "v1080", "a128-2", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", W(.audio_track = 77), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", W(.audio_track = 1, .audio_language = "de"), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"roku", {0}, {0}, "", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"roku", W(.audio_language = "de"), {0}, "R: audio_secondary", "vcopy", "acopy-2", MEDIA_SUBTITLE_OFF, -1},
        {"chrome", W(.audio_language = "de"), {0}, "R: container,audio_secondary", "vcopy", "acopy-2", MEDIA_SUBTITLE_OFF, -1},
        // subtitles that are text
        {"mpv", W(.subtitle_language = "en"), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_INSIDE, 3},
        {"android", W(.subtitle_language = "en"), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_INSIDE, 3},
        {"chrome", W(.subtitle_language = "en"), {0}, "R: container", "vcopy", "acopy", MEDIA_SUBTITLE_BESIDE, 3},
        {"mpv", W(.subtitle_language = "xx"), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", W(.subtitle_track = 3), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_INSIDE, 3},
        {"mpv", W(.subtitle_track = 1), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_OFF, -1},
        {"mpv", W(.subtitle_language = "it"), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_INSIDE, 8},
        {"mpv", W(.subtitle_track = 7), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_INSIDE, 7},
        {"mpv", W(.subtitle_language = "en"), {.max_height = 480}, "T: limit_height", "v480", "a128", MEDIA_SUBTITLE_BESIDE, 3},
        // styled ones: as text, unless their styles matter
        {"webos", W(.subtitle_language = "de"), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_BESIDE, 4},
        {"webos", W(.subtitle_language = "de", .keep_styles = true), {0}, "T: subtitle_burn,subtitle_codec", "v720-s4", "a128", MEDIA_SUBTITLE_BURNT, 4},
        {"app", W(.subtitle_language = "de", .keep_styles = true), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_INSIDE, 4},
        {"chrome", W(.subtitle_language = "de"), {0}, "R: container", "vcopy", "acopy", MEDIA_SUBTITLE_BESIDE, 4},
        {"chrome", W(.subtitle_language = "de", .keep_styles = true), {0}, "T: container,subtitle_burn,subtitle_codec", "v720-s4", "a128", MEDIA_SUBTITLE_BURNT, 4},
        // pictures: shown by the player or burnt in
        {"mpv", W(.subtitle_language = "fr"), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_INSIDE, 5},
        {"webos", W(.subtitle_language = "fr"), {0}, "T: subtitle_burn,subtitle_codec", "v720-s5", "a128", MEDIA_SUBTITLE_BURNT, 5},
        {"webos", W(.subtitle_language = "fr", .burn = MEDIA_BURN_NEVER), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_LOST, 5},
        {"webos", W(.subtitle_language = "es"), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_LOST, 6},
        {"chrome", W(.subtitle_language = "fr"), {0}, "T: container,subtitle_burn,subtitle_codec", "v720-s5", "a128", MEDIA_SUBTITLE_BURNT, 5},
        {"chrome", W(.subtitle_language = "fr", .burn = MEDIA_BURN_NEVER), {0}, "R: container", "vcopy", "acopy", MEDIA_SUBTITLE_LOST, 5},
        {"mpv", W(.subtitle_language = "fr", .burn = MEDIA_BURN_ALWAYS), {0}, "T: subtitle_burn", "v720-s5", "a128", MEDIA_SUBTITLE_BURNT, 5},
        {"mpv", W(.subtitle_language = "en", .burn = MEDIA_BURN_ALWAYS), {0}, "", "v1080", "a128", MEDIA_SUBTITLE_LOST, 3},
        {"mpv", W(.subtitle_language = "fr"), {.max_height = 480}, "T: limit_height,subtitle_burn,subtitle_codec", "v720-s5", "a128", MEDIA_SUBTITLE_BURNT, 5},
    };
    // clang-format on
    struct media_plan *p = film();
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        struct media_decision d;
        char got[400];
        struct media_wishes w = cases[i].wishes; // track 0 is the picture: nobody wishes it
        w.audio_track = w.audio_track ? w.audio_track : MEDIA_NO_TRACK;
        w.subtitle_track = w.subtitle_track ? w.subtitle_track : MEDIA_NO_TRACK;
        media_decide(p, media_profile_find(cases[i].profile), &cases[i].limits, &w, &d);
        put_cell(p, &d, got, sizeof(got));
        check_sense(p, &d);
        if (!str_eq(got, cases[i].want) || d.subtitle != cases[i].way ||
            d.subtitle_track != cases[i].subtitle ||
            !str_eq(p->renditions[d.video_rendition].id, cases[i].video) ||
            !str_eq(p->renditions[d.audio_rendition].id, cases[i].audio))
            fail_msg("case %zu: \"%s\" %s+%s subtitle %d %s", i, got,
                     p->renditions[d.video_rendition].id, p->renditions[d.audio_rendition].id,
                     d.subtitle_track, media_subtitle_way_name(d.subtitle));
    }
    media_plan_free(p);
}

static void test_surround_goes_to_those_who_have_it(void **state)
{
    (void)state;
    static const struct row row = {"dts",          MKV,           H264(40),      HD,
                                   .audio = "dts", .channels = 6, .rate = 48000, .copies = "v"};
    static const struct {
        const char *profile, *audio;
    } cases[] = {{"chrome", "a128"}, {"appletv", "a384"}, {"webos", "a384"},
                 {"ios", "a128"},    {"roku", "a128"},    {"generic", "a128"}};
    struct media_plan *p = plan_of(&row);
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        struct media_decision d;
        media_decide(p, media_profile_find(cases[i].profile), &(struct media_limits){0},
                     &MEDIA_NO_WISHES, &d);
        assert_string_equal(p->renditions[d.audio_rendition].id, cases[i].audio);
    }
    media_plan_free(p);
}

static void test_sound_alone_keeps_to_the_limit(void **state)
{
    (void)state;
    static const struct row row = {"m4a",         MP4,           .audio = "aac",
                                   .channels = 2, .rate = 44100, .copies = "a"};
    struct media_plan *p = plan_of(&row);
    struct media_decision d;
    media_decide(p, media_profile_find("chrome"), &(struct media_limits){.max_bitrate_bps = 100000},
                 &MEDIA_NO_WISHES, &d);
    assert_int_equal(d.mode, MEDIA_MODE_TRANSCODE);
    assert_true(media_decision_has(&d, MEDIA_REASON_LIMIT_BITRATE));
    assert_string_equal(p->renditions[d.audio_rendition].id, "a64");
    assert_int_equal(d.video_rendition, -1);
    media_plan_free(p);
}

// What is made for a player is within what it takes, and so is what its playlist lists.
static void test_pictures_made_are_within_what_the_player_takes(void **state)
{
    (void)state;
    static const struct row row = {"mp4", MP4, H264(40), HD, AAC, .copies = "va"};
    static const struct {
        struct media_video_rule rule;
        const char *video, *offer;
    } cases[] = {{{.codecs = "h264"}, "v1080", ""},
                 {{.codecs = "h264", .max_height = 1080, .max_width = 1920}, "v1080", ""},
                 {{.codecs = "h264", .max_height = 720}, "v720", "p720"},
                 {{.codecs = "h264", .max_width = 854}, "v480", "p480"},
                 {{.codecs = "h264", .max_level = 31}, "v720", "p720"},
                 {{.codecs = "h264", .max_bitrate_bps = 2000000}, "v480", "p480"},
                 {{.codecs = "h264", .max_height = 100}, "v240", "p240"}};
    struct media_plan *p = plan_of(&row);
    for (size_t i = 0; i < p->n_renditions; i++) {
        struct media_rendition *r = &p->renditions[i];
        r->maxrate_bps = r->bandwidth_bps;
        r->level = r->kind == MEDIA_VIDEO ? media_h264_level(r) : 0;
    }
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        struct media_profile profile = *media_profile_find("generic");
        struct media_wishes w = MEDIA_NO_WISHES;
        struct media_decision d;
        struct media_offer o;
        char name[MEDIA_OFFER_SIZE];
        profile.video = &cases[i].rule;
        profile.n_video = 1;
        w.no_direct = true;
        media_decide(p, &profile, &(struct media_limits){0}, &w, &d);
        media_offer_for(p, &profile, &(struct media_limits){0}, &d, &o);
        media_offer_name(&o, name);
        if (!str_eq(p->renditions[d.video_rendition].id, cases[i].video) ||
            !str_eq(name, cases[i].offer))
            fail_msg("case %zu: %s of \"%s\"", i, p->renditions[d.video_rendition].id, name);
    }
    media_plan_free(p);
}

// A copy of the picture is no reason to list the sound's, nor the other way round.
static void test_offers_list_the_copies_that_were_decided(void **state)
{
    (void)state;
    static const struct row dts = {"dts",          MKV,           H264(40),      HD,
                                   .audio = "dts", .channels = 2, .rate = 48000, .copies = "va"};
    static const struct row refs = {"refs",      MKV,           .video = "h264", .profile = "High",
                                    .level = 60, .depth = 8,    .refs = 4,       HD,
                                    AAC,         .copies = "va"};
    static const struct {
        const struct row *row;
        bool prefer_original;
        const char *offer;
    } cases[] = {{&dts, false, "copy"}, {&refs, true, "acopy"}, {&refs, false, ""}};
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        const struct media_profile *chrome = media_profile_find("chrome");
        struct media_plan *p = plan_of(cases[i].row);
        struct media_wishes w = MEDIA_NO_WISHES;
        struct media_decision d;
        struct media_offer o;
        char name[MEDIA_OFFER_SIZE];
        w.prefer_original = cases[i].prefer_original;
        media_decide(p, chrome, &(struct media_limits){0}, &w, &d);
        media_offer_for(p, chrome, &(struct media_limits){0}, &d, &o);
        media_offer_name(&o, name);
        assert_string_equal(name, cases[i].offer);
        for (size_t k = 0; k < p->n_renditions; k++)
            if (p->renditions[k].copy)
                assert_int_equal(media_offer_has(p, &o, k),
                                 (int)k == d.video_rendition || (int)k == d.audio_rendition);
        media_plan_free(p);
    }
}

// A limit below all that there is does not make the player decode what it cannot.
static void test_sound_is_of_a_codec_that_the_player_takes(void **state)
{
    (void)state;
    static const struct row row = {"m4a",         MP4,           .audio = "aac",
                                   .channels = 2, .rate = 44100, .copies = ""};
    struct media_plan *p = plan_of(&row);
    struct media_profile profile = *media_profile_find("chrome");
    struct media_decision d;
    p->renditions[media_plan_find(p, "a64")].bandwidth_bps = 170000; // less Opus than AAC
    profile.package_audio = "aac";
    media_decide(p, &profile, &(struct media_limits){.max_bitrate_bps = 155000}, &MEDIA_NO_WISHES,
                 &d);
    assert_int_equal(p->renditions[d.audio_rendition].codec, MEDIA_CODEC_AAC);
    media_plan_free(p);
}

// ---- names and profiles ----

static void test_reasons_have_names_of_their_own(void **state)
{
    (void)state;
    size_t n = 0;
    for (; media_reason_at(n) != MEDIA_REASON_NONE; n++)
        for (size_t k = 0; k < n; k++) {
            assert_true(media_reason_at(k) < media_reason_at(n));
            assert_string_not_equal(media_reason_name(media_reason_at(k)),
                                    media_reason_name(media_reason_at(n)));
        }
    assert_true(n >= 28);
    assert_string_equal(media_reason_name((enum media_reason)9999), "");
}

static void test_built_in_profiles_are_sound(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_profiles(); i++) {
        struct err err = ERR_INIT;
        const struct media_profile *p = media_profile_at(i);
        if (media_profile_check(p, &err) != STATUS_OK)
            fail_msg("%s: %s", p->name, err.msg);
        assert_ptr_equal(media_profile_find(p->name), p);
    }
    assert_null(media_profile_find("no such player"));
}

static void test_profiles_from_outside_are_checked_with_a_path(void **state)
{
    (void)state;
    static const struct media_container_rule no_name[] = {{"", "h264", "aac"}},
                                             quoted[] = {{"mp4", "h264\"", "aac"}};
    static const struct media_video_rule empty[] = {{.codecs = "h264"}, {.codecs = "a,,b"}};
    static const struct media_audio_rule below[] = {{.codecs = "aac", .max_bitrate_bps = -1}};
    const struct {
        struct media_profile p;
        const char *path;
    } cases[] = {
        {{.containers = no_name, .n_containers = 1}, "containers[0].containers"},
        {{.containers = quoted, .n_containers = 1}, "containers[0]"},
        {{.video = empty, .n_video = 2}, "video[1].codecs"},
        {{.audio = below, .n_audio = 1}, "audio[0].max_bitrate"},
        {{.ranges = "sdr,dolby"}, "ranges"},
        {{.subtitles = "a\nb"}, "subtitles"},
        {{.package_video = ",h264"}, "package_video"},
        {{.max_file_bitrate_bps = -5}, "max_file_bitrate"},
        {{.video = empty, .n_video = 99}, "rules"},
    };
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        struct err err = ERR_INIT;
        assert_int_equal(media_profile_check(&cases[i].p, &err), STATUS_INVALID_ARGUMENT);
        if (!strstr(err.msg, cases[i].path))
            fail_msg("%s: %s", cases[i].path, err.msg);
    }
}

static void test_lists_match_whole_names(void **state)
{
    (void)state;
    assert_true(media_list_has("h264,hevc", "hevc"));
    assert_true(media_list_has("*", "anything"));
    assert_true(media_list_has("aac,pcm", "pcm_s16le"));
    assert_false(media_list_has("h264,hevc", "h26"));
    assert_false(media_list_has("h26", "h264"));
    assert_false(media_list_has(NULL, "h264"));
    assert_false(media_list_has("", ""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_player_gets_every_source_as_reasoned),
        cmocka_unit_test(test_wishes_and_limits_as_reasoned),
        cmocka_unit_test(test_surround_goes_to_those_who_have_it),
        cmocka_unit_test(test_sound_alone_keeps_to_the_limit),
        cmocka_unit_test(test_sound_is_of_a_codec_that_the_player_takes),
        cmocka_unit_test(test_pictures_made_are_within_what_the_player_takes),
        cmocka_unit_test(test_offers_list_the_copies_that_were_decided),
        cmocka_unit_test(test_reasons_have_names_of_their_own),
        cmocka_unit_test(test_built_in_profiles_are_sound),
        cmocka_unit_test(test_profiles_from_outside_are_checked_with_a_path),
        cmocka_unit_test(test_lists_match_whole_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
