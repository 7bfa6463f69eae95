#pragma once
// The plan: everything about an item's streams, fixed at the probe. Segments have names, exact
// times and one possible content from then on.
//
// Video: frames lie on a grid of output times; a segment is a run of grid frames and begins with a
// random access point. Audio: 48 kHz; a segment is a run of MEDIA_AUDIO_BLOCK samples, a whole
// number of AAC (1024), Opus (960) and FLAC (3840) frames, so that all audio renditions of all
// tracks share one grid; a track that begins later or ends sooner is filled with silence. Audio
// media time is presentation time plus the codec's priming; the init segment's edit list takes it
// off.
//
// A rendition is made from one source track. One that is `lazy` has its place in the plan, with
// init segment and all, but its segments are made only once somebody asks for them.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "media/sniff.h"
#include "media/time.h"

#define MEDIA_PLAN_VERSION 2
#define MEDIA_PLAN_MAX_BYTES (4U << 20) // encoded
#define MEDIA_H264_START 0.9 // of a buffer of one second of maxrate_bps, where a segment begins
#define MEDIA_MAX_RENDITIONS 64
#define MEDIA_MAX_TRACKS 64
#define MEDIA_MAX_SEGMENTS 65536
#define MEDIA_MAX_JUMPS 128
#define MEDIA_MAX_FRAMES (1U << 21) // 8 h at 60 fps fits
#define MEDIA_MAX_SIDE_PX 16384
#define MEDIA_MAX_PIXELS (64 << 20)
#define MEDIA_MAX_DURATION_US (INT64_C(8) * 3600 * 1000000)
#define MEDIA_MAX_INIT_BYTES 4096
#define MEDIA_AUDIO_RATE 48000
#define MEDIA_AUDIO_BLOCK 15360 // lcm(1024, 960, 3840)
#define MEDIA_FLAC_FRAME 3840
#define MEDIA_MAX_CHANNELS 6 // of a rendition

enum media_container {
    MEDIA_CONTAINER_OTHER = 0,
    MEDIA_CONTAINER_MP4, // also QuickTime and 3GP: source.container_name tells
    MEDIA_CONTAINER_MATROSKA,
    MEDIA_CONTAINER_WEBM,
    MEDIA_CONTAINER_MPEGTS,
    MEDIA_CONTAINER_MPEGPS,
    MEDIA_CONTAINER_AVI,
    MEDIA_CONTAINER_FLV,
    MEDIA_CONTAINER_OGG,
    MEDIA_CONTAINER_MP3,
    MEDIA_CONTAINER_ADTS,
    MEDIA_CONTAINER_AC3,
    MEDIA_CONTAINER_WAV,
    MEDIA_CONTAINER_FLAC,
    MEDIA_N_CONTAINERS
};
enum media_codec {
    MEDIA_CODEC_NONE = 0,
    MEDIA_CODEC_H264,
    MEDIA_CODEC_AAC,
    MEDIA_CODEC_OPUS,
    MEDIA_CODEC_HEVC,
    MEDIA_CODEC_AV1,
    MEDIA_CODEC_VP9,
    MEDIA_CODEC_FLAC,
    MEDIA_N_CODECS
};
// What text or pictures a subtitle track holds.
enum media_subtitle {
    MEDIA_SUBTITLE_NONE = 0, // not a subtitle track, or one that cannot be read here
    MEDIA_SUBTITLE_TEXT,     // SRT, WebVTT, mov_text
    MEDIA_SUBTITLE_STYLED,   // ASS, SSA
    MEDIA_SUBTITLE_BITMAP,   // PGS, DVD, DVB
    MEDIA_N_SUBTITLES
};
// What an uploader may choose: how much work goes into H.264.
enum media_preset { MEDIA_PRESET_FAST = 0, MEDIA_PRESET_QUALITY = 1, MEDIA_N_PRESETS };
// How decoding gets to the middle of the source.
enum media_seek {
    MEDIA_SEEK_TIME = 0,  // the container's own index
    MEDIA_SEEK_BYTES = 1, // byte offsets found by scanning
    MEDIA_SEEK_NONE = 2,  // from the beginning each time
    MEDIA_N_SEEKS
};
enum media_track_type {
    MEDIA_TRACK_OTHER = 0,
    MEDIA_TRACK_VIDEO,
    MEDIA_TRACK_AUDIO,
    MEDIA_TRACK_SUBTITLE,
    MEDIA_TRACK_PICTURE, // attached cover
    MEDIA_N_TRACK_TYPES
};
const char *media_container_name(enum media_container c); // "mp4", "matroska", ...: profile names
bool media_codec_is_video(enum media_codec c);
const char *media_codec_name(enum media_codec c); // "h264", "aac", "opus", "hevc", ...

struct media_track {
    enum media_track_type type;
    uint16_t index;   // stream number in the source
    bool chosen;      // goes into the renditions
    char codec[24];   // FFmpeg's codec name: "h264", "aac", "vp9", ...
    char language[8]; // ISO 639, may be empty
    char title[64];   // as the file says, may be empty; UTF-8
    bool is_default, is_forced, is_commentary, is_hearing_impaired; // as the file says
    enum media_subtitle subtitle;
    char profile[32]; // "High", "LC", may be empty
    uint32_t width, height;
    uint32_t sample_rate;
    uint16_t channels;
    uint16_t bit_depth; // 0 unknown
    uint16_t level;     // video, in the codec's own numbers: H.264 41, HEVC 123, AV1 13; 0 unknown
    uint16_t refs;      // video: reference frames; 0 unknown
    bool interlaced;    // video: as the file says
    int16_t rotation;   // degrees clockwise to show it upright: 0, 90, 180, 270
    struct media_rational sar, frame_rate; // frame_rate 0/1: not known
    int64_t bitrate_bps;                   // 0 unknown
    int64_t duration_us;                   // 0 unknown
    uint8_t color[3]; // video: primaries, transfer, matrix (ITU-T H.273 numbers); 2: not specified
    // Audio positions: the track's first sample is sample `origin` of the timeline, in source
    // samples. frame_samples other than 0: packets lie on a comb of that distance through `origin`,
    // and coarse time stamps are snapped to it.
    uint32_t frame_samples;
    int64_t origin;
    enum media_seek seek; // audio; a video track's is the source's
};

// From this byte of the source on its time stamps are moved by that much: its clock jumped.
struct media_jump {
    int64_t offset, shift_us;
};
struct media_source {
    enum media_container container;
    char container_name[24]; // "mov,mp4,...": FFmpeg's first name, or "quicktime" by brand
    char mime[48];           // for direct play: "video/mp4"
    int64_t size_bytes;
    int64_t duration_us;
    int64_t bitrate_bps;
    bool streamable; // index first: a player can start before the end has arrived
    enum media_seek seek;
    int64_t video_zero;       // chosen video stream's ticks that are time 0 of the video grid
    int64_t timeline_zero_us; // source time that is timeline 0 (container start time after edits)
    char title[128], artist[128], album[128]; // tags, may be empty; UTF-8
    char album_artist[128], genre[64], date[32];
    uint16_t track_number, n_album_tracks, disc_number, n_discs; // of an album; 0 unknown
    size_t n_jumps;
    struct media_jump jumps[MEDIA_MAX_JUMPS]; // rising by offset
    size_t n_tracks;
    struct media_track tracks[MEDIA_MAX_TRACKS];
};

struct media_segment {
    int64_t start, duration;        // timescale of its grid
    uint32_t first_frame, n_frames; // video: grid frames; audio: unused, 0
    int64_t seek_ticks;  // decoding starts here: source stream time base; MEDIA_TIME_UNKNOWN: from
                         // the beginning
    int64_t seek_offset; // byte offset of that keyframe; -1 unknown
};
struct media_chunk {
    uint32_t first_segment, n_segments;
};
// One per media kind that the item has; n_segments 0: the item has none of it.
struct media_grid {
    uint32_t timescale; // ticks per second
    int64_t duration;   // of the whole, in ticks: the last segment ends here
    size_t n_segments, n_chunks;
    struct media_segment *segments;
    struct media_chunk *chunks;
    // video only
    uint32_t n_frames;
    uint32_t frame_ticks; // constant distance; 0: see frame_times
    int64_t
        *frame_times; // n_frames + 1 rising times from 0, the last is the end; NULL when constant
};

struct media_rendition {
    // Codec family, rate or size, and what makes it special: "v720" (H.264), "v720-hevc", "vcopy",
    // "v720-s3" (subtitle track 3 burnt in), "a128", "a128-2" (source track 2, when it is not the
    // default one), "o128", "flac", "a384" (5.1), "a128n" (normalised loudness)
    char id[16];
    enum media_kind kind;
    enum media_codec codec;
    uint8_t track;    // index into source.tracks: what it is made from
    bool copy;        // the source's own packets, not encoded again
    bool lazy;        // made on request only
    bool normalised;  // audio: at MEDIA_LOUDNESS_TARGET, by the item's measured loudness
    uint8_t burn;     // 1 + index of the subtitle track that is burnt in; 0: none
    uint8_t channels; // audio: 1..MEDIA_MAX_CHANNELS, 0 for video
    char codecs[24];  // RFC 6381, "avc1.64001f"
    uint32_t width, height;
    struct media_rational frame_rate; // nominal, for playlists
    uint32_t timescale;               // of its segments' boxes; equals its grid's
    uint32_t frame_samples;           // audio: samples per packet
    uint32_t priming;                 // audio: samples before presentation time 0
    uint32_t cts_shift;               // video: no composition offset is below minus this
    uint32_t bitrate_bps;             // audio: rate; video: expected mean
    uint32_t maxrate_bps;             // video: cap over 1 s
    uint32_t bandwidth_bps;           // peak for playlists, overhead included
    // H.264: CRF, profile_idc, level_idc. FLAC: profile is the bits of a sample, 16 or 24
    uint8_t crf, profile, level;
    uint8_t preset; // H.264: enum media_preset
    uint8_t color[3]; // video: primaries, transfer, matrix (ITU-T H.273 numbers); 2: not specified
    uint8_t scale_from; // rendition that it is scaled from; MEDIA_FROM_SOURCE
    char recipe[768];   // everything that shapes the bytes, as text
    uint8_t recipe_digest[32];
    uint8_t *init; // the init segment
    size_t init_len;
};
#define MEDIA_FROM_SOURCE 0xff
#define MEDIA_LOUDNESS_TARGET -16 // LUFS (EBU R 128 / ITU-R BS.1770-4)

struct media_plan {
    enum media_kind kind;
    struct media_source source;
    struct media_grid video, audio;
    // The picture's grid cut at the source's keyframes alone, however far apart: of renditions that
    // are copies. Empty when there are none; frame_times is video's.
    struct media_grid video_copy;
    size_t n_renditions;
    // Video before audio; the first of each kind is the ladder, high to low, that everything can
    // play and that is not lazy.
    struct media_rendition renditions[MEDIA_MAX_RENDITIONS];
    char build[96]; // codec build that made the recipes
};

struct media_plan *media_plan_new(void); // NULL when out of memory
void media_plan_free(struct media_plan *p);
DEFINE_AUTO(struct media_plan, media_plan_free)

// ---- bytes ----
// Version, then fields in the order above, big-endian and varints; frame times run-length coded.
enum status media_plan_encode(const struct media_plan *p, struct buf *ret,
                              struct err *err) MUST_CHECK;
// Trusts nothing: every bound and every invariant between fields is checked.
// errors: INVALID_ARGUMENT (says which), UNIMPLEMENTED for another version, RESOURCE_EXHAUSTED
enum status media_plan_decode(const void *bytes, size_t n, struct media_plan **ret,
                              struct err *err) MUST_CHECK;
// The invariants alone; encode and decode call it.
enum status media_plan_check(const struct media_plan *p, struct err *err) MUST_CHECK;

// ---- questions ----
int media_plan_find(const struct media_plan *p, const char *rendition_id); // -1: none of that name
// The grid of a rendition or of a kind (NULL when the item has none of it).
const struct media_grid *media_plan_grid(const struct media_plan *p, enum media_kind kind);
const struct media_grid *media_rendition_grid(const struct media_plan *p, size_t rendition);
int64_t media_plan_duration_us(const struct media_plan *p); // the longer of video and audio
// 48 kHz samples of sound that there are to hear: the audio grid goes on for the largest priming.
int64_t media_plan_samples(const struct media_plan *p);
int64_t media_segment_start_us(const struct media_grid *g, size_t segment);
int64_t media_segment_duration_us(const struct media_grid *g, size_t segment);
// The segment that shows time t (clamped to the ends).
size_t media_grid_segment_at(const struct media_grid *g, int64_t t_us);
size_t media_grid_chunk_of(const struct media_grid *g, size_t segment);
int64_t media_grid_frame_time(const struct media_grid *g,
                              uint32_t frame); // frame n_frames: the end
// Source bytes that decoding a chunk is expected to touch: a hint for prefetching. len 0: unknown.
void media_chunk_source_range(const struct media_plan *p, const struct media_grid *g, size_t chunk,
                              int64_t *ret_offset, int64_t *ret_len);
// Packets that segment `segment` of an audio rendition holds, or frames of a video one.
uint32_t media_rendition_samples(const struct media_plan *p, size_t rendition, size_t segment);
// What those samples last, in ticks of the rendition's grid: the segment's duration, but for the
// last segment of audio, which holds whole packets and so may go past the end of the sound.
int64_t media_rendition_duration(const struct media_plan *p, size_t rendition, size_t segment);
// The default one of the chosen tracks of that type, else the first; NULL when there is none.
const struct media_track *media_plan_track(const struct media_plan *p, enum media_track_type type);

// ---- making one (used by the probe; pure) ----
struct media_keyframe {
    int64_t time;   // video grid ticks
    int64_t ticks;  // source stream time base
    int64_t offset; // bytes; -1 unknown
};
// Cut the video grid (its frames are set) into segments and chunks. keys rise by time; may be none.
enum status media_plan_cut_video(struct media_grid *g, const struct media_keyframe *keys,
                                 size_t n_keys, struct err *err) MUST_CHECK;
// The same, but every cut is at a keyframe, so that segments can be copies of the source's packets.
// keys' times are frames of the grid, the first at 0. *ret_cut false and the grid as it was: they
// are too far apart (or too close to make sense of).
enum status media_plan_cut_at_keys(struct media_grid *g, const struct media_keyframe *keys,
                                   size_t n_keys, bool *ret_cut, struct err *err) MUST_CHECK;
// The audio grid for n_samples at 48 kHz; priming is the largest of the renditions'.
enum status media_plan_cut_audio(struct media_grid *g, int64_t n_samples, uint32_t priming,
                                 struct err *err) MUST_CHECK;
// Sizes, caps and names of the H.264 rungs for a picture shown upright with square pixels. Fills
// id, size, crf, maxrate, profile, level, frame_rate, scale_from; returns how many (1..5).
size_t media_plan_ladder(uint32_t width, uint32_t height, struct media_rational frame_rate,
                         struct media_rendition *out, size_t max);
// Peak rates for the playlists, once renditions and grids are set.
void media_plan_set_bandwidth(struct media_plan *p);
