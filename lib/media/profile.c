// The players that are known by name. What a row says was taken from the makers' own lists of
// supported media; where those leave a choice the careful one is taken, because a wrong "yes" is a
// black picture and a wrong "no" only costs work.
#include "media/profile.h"

#include <string.h>

#include "base/str.h"

#define ROWS(field, a) .field = (a), .n_##field = N_ELEMENTS(a)

// ---- lists ----

static bool matches(const char *item, size_t n, const char *name)
{
    if (n == 1 && *item == '*')
        return true;
    if (n == 3 && memcmp(item, "pcm", 3) == 0 && str_starts_with(name, "pcm_"))
        return true;
    return strlen(name) == n && memcmp(item, name, n) == 0;
}

bool media_list_has(const char *list, const char *name)
{
    for (const char *at = list; at && *at;) {
        size_t n = strcspn(at, ",");
        if (matches(at, n, name))
            return true;
        at += n;
        at += *at == ',';
    }
    return false;
}

// ---- rows that several players share ----

#define H264_WEB                                                                                   \
    "Constrained Baseline,Baseline,Extended,Main,High,Constrained High,Progressive High"

// clang-format off
static const struct media_container_rule generic_containers[] = {
    {"mp4", "h264", "aac,mp3,opus,vorbis,flac,pcm_s16le"},
    {"mp3,ogg,flac,wav,aac", NULL, "aac,mp3,opus,vorbis,flac,pcm_s16le"},
};
static const struct media_video_rule generic_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_bit_depth = 8},
};
static const struct media_audio_rule generic_audio[] = {
    {.codecs = "aac,mp3,opus,vorbis,flac,pcm_s16le"},
};

#define WEB_SOUND                                                                                  \
    {"mp3", NULL, "mp3"}, {"ogg", NULL, "opus,vorbis,flac"}, {"flac", NULL, "flac"},               \
    {"wav", NULL, "pcm"}, {"aac", NULL, "aac"}
static const struct media_container_rule chrome_containers[] = {
    {"mp4", "h264,vp9,av1", "aac,mp3,opus,flac"},
    {"webm", "vp8,vp9,av1", "opus,vorbis"},
    WEB_SOUND,
};
static const struct media_video_rule chrome_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_level = 52, .max_bit_depth = 8},
    {.codecs = "vp8", .max_bit_depth = 8},
    {.codecs = "vp9", .profiles = "Profile 0,Profile 2", .max_bit_depth = 10},
    {.codecs = "av1", .profiles = "Main", .max_bit_depth = 10},
};
static const struct media_audio_rule chrome_audio[] = {
    {.codecs = "aac,opus,flac,vorbis", .max_channels = 8, .max_sample_rate = 96000},
    {.codecs = "mp3", .max_channels = 2},
    {.codecs = "pcm", .max_channels = 2, .max_bit_depth = 32, .max_sample_rate = 96000},
};

static const struct media_container_rule edge_containers[] = {
    {"mp4", "h264,hevc,vp9,av1", "aac,mp3,opus,flac,ac3,eac3"},
    {"webm", "vp8,vp9,av1", "opus,vorbis"},
    WEB_SOUND,
};
static const struct media_video_rule edge_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_level = 52, .max_bit_depth = 8},
    {.codecs = "hevc", .profiles = "Main,Main 10", .max_level = 153, .max_bit_depth = 10},
    {.codecs = "vp8", .max_bit_depth = 8},
    {.codecs = "vp9", .profiles = "Profile 0,Profile 2", .max_bit_depth = 10},
    {.codecs = "av1", .profiles = "Main", .max_bit_depth = 10},
};
static const struct media_audio_rule edge_audio[] = {
    {.codecs = "aac,opus,flac,vorbis", .max_channels = 8, .max_sample_rate = 96000},
    {.codecs = "mp3", .max_channels = 2},
    {.codecs = "ac3,eac3", .max_channels = 6},
    {.codecs = "pcm", .max_channels = 2, .max_bit_depth = 32, .max_sample_rate = 96000},
};

static const struct media_container_rule safari_containers[] = {
    {"mp4,mov", "h264,hevc", "aac,mp3,ac3,eac3,alac,flac,opus"},
    {"webm", "vp8,vp9", "opus,vorbis"},
    {"mp3", NULL, "mp3"}, {"flac", NULL, "flac"}, {"wav", NULL, "pcm"}, {"aac", NULL, "aac"},
};
static const struct media_container_rule ios_containers[] = {
    {"mp4,mov", "h264,hevc", "aac,mp3,ac3,eac3,alac,flac"},
    {"mp3", NULL, "mp3"}, {"flac", NULL, "flac"}, {"wav", NULL, "pcm"}, {"aac", NULL, "aac"},
};
static const struct media_video_rule safari_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_level = 52, .max_bit_depth = 8},
    {.codecs = "hevc", .profiles = "Main,Main 10", .max_level = 153, .max_bit_depth = 10},
    {.codecs = "vp8", .max_bit_depth = 8},
    {.codecs = "vp9", .profiles = "Profile 0", .max_bit_depth = 8},
};
static const struct media_video_rule ios_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_level = 52, .max_bit_depth = 8, .max_fps = 60},
    {.codecs = "hevc", .profiles = "Main,Main 10", .max_level = 153, .max_bit_depth = 10,
     .max_fps = 60},
};
static const struct media_audio_rule apple_audio[] = {
    {.codecs = "aac,ac3,eac3,alac,flac,opus,vorbis", .max_channels = 8, .max_sample_rate = 96000},
    {.codecs = "mp3", .max_channels = 2},
    {.codecs = "pcm", .max_channels = 2, .max_bit_depth = 24, .max_sample_rate = 96000},
};

static const struct media_container_rule android_containers[] = {
    {"mp4", "h264,hevc,vp9,av1,mpeg4,h263", "aac,mp3,opus,flac"},
    {"mkv", "h264,hevc,vp8,vp9,av1,mpeg4", "aac,mp3,opus,vorbis,flac"},
    {"webm", "vp8,vp9,av1", "opus,vorbis"},
    {"ts", "h264,hevc", "aac,mp3"},
    WEB_SOUND,
};
static const struct media_video_rule android_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_level = 51, .max_bit_depth = 8},
    {.codecs = "hevc", .profiles = "Main,Main 10", .max_level = 153, .max_bit_depth = 10},
    {.codecs = "vp8,mpeg4,h263", .max_bit_depth = 8},
    {.codecs = "vp9", .profiles = "Profile 0,Profile 2", .max_bit_depth = 10},
    {.codecs = "av1", .profiles = "Main", .max_bit_depth = 10},
};
static const struct media_audio_rule android_audio[] = {
    {.codecs = "aac,opus,vorbis,flac", .max_channels = 8, .max_sample_rate = 96000},
    {.codecs = "mp3", .max_channels = 2},
    {.codecs = "pcm", .max_channels = 2, .max_bit_depth = 24, .max_sample_rate = 96000},
};

static const struct media_container_rule chromecast_containers[] = {
    {"mp4", "h264", "aac,mp3"},
    {"webm", "vp8,vp9", "opus,vorbis"},
    WEB_SOUND,
};
static const struct media_video_rule chromecast_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_level = 42, .max_bit_depth = 8,
     .max_width = 1920, .max_height = 1080, .max_fps = 60},
    {.codecs = "vp8", .max_bit_depth = 8, .max_width = 1920, .max_height = 1080},
    {.codecs = "vp9", .profiles = "Profile 0", .max_bit_depth = 8, .max_width = 1920,
     .max_height = 1080},
};
static const struct media_audio_rule chromecast_audio[] = {
    {.codecs = "aac,opus,vorbis,flac", .max_channels = 2, .max_sample_rate = 96000},
    {.codecs = "mp3", .max_channels = 2},
    {.codecs = "pcm", .max_channels = 2, .max_bit_depth = 16, .max_sample_rate = 48000},
};

static const struct media_container_rule roku_containers[] = {
    {"mp4,mkv,mov", "h264,hevc", "aac,mp3,ac3,eac3"},
    {"mp3", NULL, "mp3"}, {"flac", NULL, "flac"}, {"wav", NULL, "pcm"}, {"aac", NULL, "aac"},
};
static const struct media_video_rule roku_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_level = 42, .max_bit_depth = 8, .max_refs = 12,
     .max_width = 1920, .max_height = 1080, .max_fps = 60, .max_bitrate_bps = 20000000},
    {.codecs = "hevc", .profiles = "Main,Main 10", .max_level = 153, .max_bit_depth = 10,
     .max_fps = 60, .max_bitrate_bps = 40000000},
};
static const struct media_audio_rule roku_audio[] = {
    {.codecs = "aac", .max_channels = 2, .max_sample_rate = 48000},
    {.codecs = "mp3,flac", .max_channels = 2, .max_sample_rate = 48000},
    {.codecs = "ac3,eac3", .max_channels = 8, .max_sample_rate = 48000},
    {.codecs = "pcm", .max_channels = 2, .max_bit_depth = 16, .max_sample_rate = 48000},
};

static const struct media_container_rule tv_containers[] = {
    {"mp4,mkv,mov", "h264,hevc,av1,vp9,mpeg4", "aac,mp3,ac3,eac3"},
    {"ts,mpeg", "h264,hevc,mpeg2video", "aac,mp2,mp3,ac3,eac3"},
    {"avi", "mpeg4,h264,mjpeg", "mp3,ac3,pcm"},
    {"webm", "vp8,vp9,av1", "opus,vorbis"},
    WEB_SOUND,
};
static const struct media_video_rule tv_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_level = 51, .max_bit_depth = 8, .max_fps = 60},
    {.codecs = "hevc", .profiles = "Main,Main 10", .max_level = 153, .max_bit_depth = 10,
     .max_fps = 60, .max_bitrate_bps = 80000000},
    {.codecs = "vp9", .profiles = "Profile 0,Profile 2", .max_bit_depth = 10, .max_fps = 60},
    {.codecs = "av1", .profiles = "Main", .max_bit_depth = 10, .max_fps = 60},
    {.codecs = "vp8,mpeg4,mpeg2video,mjpeg", .max_bit_depth = 8, .max_width = 1920,
     .max_height = 1080, .max_fps = 60},
};
static const struct media_audio_rule tv_audio[] = {
    {.codecs = "aac,ac3,eac3,opus", .max_channels = 6, .max_sample_rate = 48000},
    {.codecs = "mp3,mp2,vorbis", .max_channels = 2, .max_sample_rate = 48000},
    {.codecs = "flac,pcm", .max_channels = 2, .max_bit_depth = 24, .max_sample_rate = 96000},
};

static const struct media_container_rule any_containers[] = {{"*", "*", "*"}};
static const struct media_video_rule any_video[] = {{.codecs = "*"}};
static const struct media_audio_rule any_audio[] = {{.codecs = "*"}};

// A native app with the platform's decoders and a demuxer of its own.
static const struct media_container_rule app_containers[] = {
    {"mp4,mov,mkv,webm,ts,avi,flv", "h264,hevc,vp8,vp9,av1,mpeg4,mpeg2video",
     "aac,mp3,mp2,opus,vorbis,flac,ac3,eac3,pcm"},
    WEB_SOUND,
};
static const struct media_video_rule app_video[] = {
    {.codecs = "h264", .profiles = H264_WEB, .max_level = 51, .max_bit_depth = 8},
    {.codecs = "hevc", .profiles = "Main,Main 10", .max_level = 153, .max_bit_depth = 10},
    {.codecs = "vp8,vp9,av1,mpeg4,mpeg2video", .max_bit_depth = 10},
};
static const struct media_audio_rule app_audio[] = {
    {.codecs = "aac,mp3,mp2,opus,vorbis,flac,ac3,eac3,pcm", .max_channels = 8,
     .max_sample_rate = 192000},
};

#define TEXT_SUBTITLES "subrip,webvtt,mov_text,text"

static const struct media_profile profiles[] = {
    {.name = "generic", .about = "any browser: H.264 and AAC in MP4",
     ROWS(containers, generic_containers), ROWS(video, generic_video),
     ROWS(audio, generic_audio), .package_video = "h264", .package_audio = "aac,opus,flac",
     .ranges = "sdr,hdr10,hlg", .shows_webvtt = true, .rotates = true, .interlaced = true,
     .anamorphic = true, .picks_tracks = true, .skips_unknown = true, .takes_late_index = true,
     .edits = true},
    {.name = "chrome", .about = "Chrome and Chromium on a computer",
     ROWS(containers, chrome_containers), ROWS(video, chrome_video),
     ROWS(audio, chrome_audio), .package_video = "h264,vp9,av1",
     .package_audio = "aac,opus,flac,mp3", .ranges = "sdr", .shows_webvtt = true, .rotates = true,
     .anamorphic = true, .skips_unknown = true, .takes_late_index = true, .edits = true,
     .copies = true},
    {.name = "firefox", .about = "Firefox on a computer",
     ROWS(containers, chrome_containers), ROWS(video, chrome_video),
     ROWS(audio, chrome_audio), .package_video = "h264,vp9,av1",
     .package_audio = "aac,opus,flac,mp3", .ranges = "sdr", .shows_webvtt = true, .rotates = true,
     .anamorphic = true, .skips_unknown = true, .takes_late_index = true, .edits = true,
     .copies = true},
    {.name = "edge", .about = "Edge on Windows with its HEVC and Dolby decoders",
     ROWS(containers, edge_containers), ROWS(video, edge_video), ROWS(audio, edge_audio),
     .package_video = "h264,hevc,vp9,av1", .package_audio = "aac,opus,flac,mp3,ac3,eac3",
     .ranges = "sdr", .shows_webvtt = true, .rotates = true, .anamorphic = true,
     .skips_unknown = true, .takes_late_index = true, .edits = true, .copies = true},
    {.name = "safari", .about = "Safari on a Mac",
     ROWS(containers, safari_containers), ROWS(video, safari_video), ROWS(audio, apple_audio),
     .package_video = "h264,hevc", .package_audio = "aac,mp3,ac3,eac3,flac,alac",
     .ranges = "sdr,hdr10,hlg", .shows_webvtt = true, .rotates = true, .anamorphic = true,
     .picks_tracks = true, .skips_unknown = true, .takes_late_index = true, .edits = true,
     .copies = true, .surround = true},
    {.name = "android", .about = "Android 10 and later",
     ROWS(containers, android_containers), ROWS(video, android_video),
     ROWS(audio, android_audio), .package_video = "h264,hevc,vp9,av1",
     .package_audio = "aac,opus,flac,mp3", .subtitles = TEXT_SUBTITLES, .ranges = "sdr,hdr10,hlg",
     .shows_webvtt = true, .rotates = true, .anamorphic = true, .picks_tracks = true,
     .skips_unknown = true, .takes_late_index = true, .edits = true, .copies = true},
    {.name = "ios", .about = "iPhone and iPad",
     ROWS(containers, ios_containers), ROWS(video, ios_video), ROWS(audio, apple_audio),
     .package_video = "h264,hevc", .package_audio = "aac,mp3,ac3,eac3,flac,alac",
     .subtitles = "mov_text", .ranges = "sdr,hdr10,hlg", .shows_webvtt = true, .rotates = true,
     .anamorphic = true, .picks_tracks = true, .skips_unknown = true, .takes_late_index = true,
     .edits = true, .copies = true},
    {.name = "appletv", .about = "Apple TV 4K",
     ROWS(containers, ios_containers), ROWS(video, ios_video), ROWS(audio, apple_audio),
     .package_video = "h264,hevc", .package_audio = "aac,mp3,ac3,eac3,flac,alac",
     .subtitles = "mov_text", .ranges = "sdr,hdr10,hlg", .shows_webvtt = true, .rotates = true,
     .anamorphic = true, .picks_tracks = true, .skips_unknown = true, .takes_late_index = true,
     .edits = true, .copies = true, .surround = true},
    {.name = "chromecast", .about = "Chromecast, 3rd generation and earlier",
     ROWS(containers, chromecast_containers), ROWS(video, chromecast_video),
     ROWS(audio, chromecast_audio), .package_video = "h264,vp9", .package_audio = "aac,mp3",
     .ranges = "sdr", .shows_webvtt = true, .skips_unknown = true, .takes_late_index = true,
     .edits = true, .copies = true},
    {.name = "roku", .about = "a small streaming box",
     ROWS(containers, roku_containers), ROWS(video, roku_video), ROWS(audio, roku_audio),
     .package_video = "h264,hevc", .package_audio = "aac,ac3,eac3", .subtitles = "subrip,webvtt",
     .ranges = "sdr,hdr10", .shows_webvtt = true, .copies = true,
     .max_file_bitrate_bps = 40000000},
    {.name = "webos", .about = "LG televisions",
     ROWS(containers, tv_containers), ROWS(video, tv_video), ROWS(audio, tv_audio),
     .package_video = "h264,hevc,av1", .package_audio = "aac,ac3,eac3",
     .subtitles = TEXT_SUBTITLES, .ranges = "sdr,hdr10,hlg", .shows_webvtt = true,
     .interlaced = true, .anamorphic = true, .picks_tracks = true, .skips_unknown = true,
     .takes_late_index = true, .edits = true, .copies = true, .surround = true},
    {.name = "tizen", .about = "Samsung televisions",
     ROWS(containers, tv_containers), ROWS(video, tv_video), ROWS(audio, tv_audio),
     .package_video = "h264,hevc,av1", .package_audio = "aac,ac3,eac3",
     .subtitles = TEXT_SUBTITLES, .ranges = "sdr,hdr10,hlg", .shows_webvtt = true,
     .interlaced = true, .anamorphic = true, .picks_tracks = true, .skips_unknown = true,
     .takes_late_index = true, .edits = true, .copies = true, .surround = true},
    {.name = "mpv", .about = "mpv, ffplay and whatever else has FFmpeg inside",
     ROWS(containers, any_containers), ROWS(video, any_video), ROWS(audio, any_audio),
     .package_video = "*", .package_audio = "*", .subtitles = "*", .ranges = "*",
     .shows_webvtt = true, .rotates = true, .interlaced = true, .anamorphic = true,
     .picks_tracks = true, .skips_unknown = true, .takes_late_index = true, .edits = true,
     .copies = true, .surround = true},
    {.name = "vlc", .about = "VLC",
     ROWS(containers, any_containers), ROWS(video, any_video), ROWS(audio, any_audio),
     .package_video = "*", .package_audio = "*", .subtitles = "*", .ranges = "*",
     .shows_webvtt = true, .rotates = true, .interlaced = true, .anamorphic = true,
     .picks_tracks = true, .skips_unknown = true, .takes_late_index = true, .edits = true,
     .copies = true, .surround = true},
    {.name = "kodi", .about = "Kodi",
     ROWS(containers, any_containers), ROWS(video, any_video), ROWS(audio, any_audio),
     .package_video = "*", .package_audio = "*", .subtitles = "*", .ranges = "*",
     .shows_webvtt = true, .rotates = true, .interlaced = true, .anamorphic = true,
     .picks_tracks = true, .skips_unknown = true, .takes_late_index = true, .edits = true,
     .copies = true, .surround = true},
    {.name = "app", .about = "a native app with the platform's decoders",
     ROWS(containers, app_containers), ROWS(video, app_video), ROWS(audio, app_audio),
     .package_video = "h264,hevc,vp9,av1", .package_audio = "aac,opus,flac,mp3,ac3,eac3",
     .subtitles = TEXT_SUBTITLES ",ass,ssa", .ranges = "sdr", .shows_webvtt = true,
     .rotates = true, .anamorphic = true, .picks_tracks = true, .skips_unknown = true,
     .takes_late_index = true, .edits = true, .copies = true, .surround = true},
};
// clang-format on

const struct media_profile *media_profile_at(size_t i)
{
    return i < N_ELEMENTS(profiles) ? &profiles[i] : NULL;
}

const struct media_profile *media_profile_find(const char *name)
{
    for (size_t i = 0; i < N_ELEMENTS(profiles); i++)
        if (str_eq(profiles[i].name, name))
            return &profiles[i];
    return NULL;
}

// ---- checking ----

static bool is_list(const char *list)
{
    if (!list || !*list)
        return true;
    if (strlen(list) > 1024)
        return false;
    for (const char *at = list; *at;) {
        size_t n = strcspn(at, ",");
        size_t plain = strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "0123456789_- .:*");
        if (n == 0 || plain < n)
            return false;
        at += n;
        if (*at == ',' && !*++at)
            return false;
    }
    return true;
}

#define BAD(...) return err_set(err, STATUS_INVALID_ARGUMENT, __VA_ARGS__)

static enum status check_rules(const struct media_profile *p, struct err *err)
{
    for (size_t i = 0; i < p->n_containers; i++) {
        const struct media_container_rule *r = &p->containers[i];
        if (!r->containers || !*r->containers || !is_list(r->containers))
            BAD("containers[%zu].containers: no list of names", i);
        if (!is_list(r->video) || !is_list(r->audio))
            BAD("containers[%zu]: video and audio are lists of codec names", i);
    }
    for (size_t i = 0; i < p->n_video; i++) {
        const struct media_video_rule *r = &p->video[i];
        if (!r->codecs || !*r->codecs || !is_list(r->codecs))
            BAD("video[%zu].codecs: no list of names", i);
        if (!is_list(r->profiles))
            BAD("video[%zu].profiles: not a list of names", i);
        if (r->max_bitrate_bps < 0)
            BAD("video[%zu].max_bitrate: below 0", i);
    }
    for (size_t i = 0; i < p->n_audio; i++) {
        const struct media_audio_rule *r = &p->audio[i];
        if (!r->codecs || !*r->codecs || !is_list(r->codecs))
            BAD("audio[%zu].codecs: no list of names", i);
        if (!is_list(r->profiles))
            BAD("audio[%zu].profiles: not a list of names", i);
        if (r->max_bitrate_bps < 0)
            BAD("audio[%zu].max_bitrate: below 0", i);
    }
    return STATUS_OK;
}

static enum status check_ranges(const char *ranges, struct err *err)
{
    static const char *const known[] = {"sdr", "hdr10", "hlg", "*"};
    for (const char *at = ranges; at && *at;) {
        size_t n = strcspn(at, ",");
        bool is_known = false;
        for (size_t i = 0; i < N_ELEMENTS(known); i++)
            is_known |= strlen(known[i]) == n && memcmp(at, known[i], n) == 0;
        if (!is_known)
            BAD("ranges: \"%.*s\" is none of sdr, hdr10, hlg", (int)(n > 20 ? 20 : n), at);
        at += n;
        at += *at == ',';
    }
    return STATUS_OK;
}

enum status media_profile_check(const struct media_profile *p, struct err *err)
{
    if (p->n_containers > MEDIA_MAX_RULES || p->n_video > MEDIA_MAX_RULES ||
        p->n_audio > MEDIA_MAX_RULES)
        BAD("more than %d rules of a kind", MEDIA_MAX_RULES);
    if (!is_list(p->package_video) || !is_list(p->package_audio))
        BAD("package_video, package_audio: not lists of codec names");
    if (!is_list(p->subtitles))
        BAD("subtitles: not a list of codec names");
    if (p->max_file_bitrate_bps < 0)
        BAD("max_file_bitrate: below 0");
    enum status s = check_ranges(p->ranges, err);
    return s == STATUS_OK ? check_rules(p, err) : s;
}
