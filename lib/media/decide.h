#pragma once
// The playback decision: the source's own bytes, its packets packed anew, or renditions, and why.
// Pure functions of the plan, the player's profile and what is wished and allowed.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "media/plan.h"
#include "media/profile.h"

// What speaks against the source as it is. Numbers go over the wire and are never given anew.
enum media_reason {
    MEDIA_REASON_NONE = 0,
    // the file
    MEDIA_REASON_CONTAINER = 1,
    MEDIA_REASON_CONTAINER_INDEX = 2,   // at the end of the file
    MEDIA_REASON_CONTAINER_BITRATE = 3, // of the whole file, more than the player takes
    MEDIA_REASON_UNKNOWN_STREAM = 4,
    MEDIA_REASON_SEVERAL_VIDEO = 5,
    MEDIA_REASON_EDITS = 6, // streams that begin late or are trimmed
    // the picture
    MEDIA_REASON_VIDEO_CODEC = 10,
    MEDIA_REASON_VIDEO_PROFILE = 11,
    MEDIA_REASON_VIDEO_LEVEL = 12,
    MEDIA_REASON_VIDEO_BIT_DEPTH = 13,
    MEDIA_REASON_VIDEO_RANGE = 14, // HDR
    MEDIA_REASON_VIDEO_SIZE = 15,
    MEDIA_REASON_VIDEO_FRAME_RATE = 16,
    MEDIA_REASON_VIDEO_BITRATE = 17,
    MEDIA_REASON_VIDEO_REFS = 18,
    MEDIA_REASON_VIDEO_INTERLACED = 19,
    MEDIA_REASON_VIDEO_ANAMORPHIC = 20,
    MEDIA_REASON_VIDEO_ROTATION = 21,
    // the sound
    MEDIA_REASON_AUDIO_CODEC = 30,
    MEDIA_REASON_AUDIO_PROFILE = 31,
    MEDIA_REASON_AUDIO_CHANNELS = 32,
    MEDIA_REASON_AUDIO_SAMPLE_RATE = 33,
    MEDIA_REASON_AUDIO_BIT_DEPTH = 34,
    MEDIA_REASON_AUDIO_BITRATE = 35,
    MEDIA_REASON_AUDIO_SECONDARY = 36, // another track than the one that the player would take
    // subtitles
    MEDIA_REASON_SUBTITLE_CODEC = 40, // cannot be shown as it is
    MEDIA_REASON_SUBTITLE_BURN = 41,  // so it goes into the picture
    // what is allowed and wished
    MEDIA_REASON_LIMIT_BITRATE = 50,
    MEDIA_REASON_LIMIT_HEIGHT = 51,
    MEDIA_REASON_LIMIT_NETWORK = 52,
    MEDIA_REASON_ASKED_RENDITIONS = 53, // direct play was ruled out
    MEDIA_REASON_ASKED_NORMALISED = 54, // loudness
    MEDIA_REASON_NO_COPIES = 55,        // packing anew was ruled out
    MEDIA_REASON_NOT_COPIED = 56,       // the source's packets cannot be packed anew
    MEDIA_REASON_PACKAGE_CODEC = 57,    // the player does not take the codec in segments
};
const char *media_reason_name(enum media_reason r); // "video_codec"; "" for an unknown number
enum media_reason media_reason_at(size_t i);        // all of them, rising; NONE past the last

enum media_mode {
    MEDIA_MODE_DIRECT = 1,    // the source's own bytes
    MEDIA_MODE_REMUX = 2,     // its picture (or, of sound, its sound) packed anew
    MEDIA_MODE_TRANSCODE = 3, // made anew
};
const char *media_mode_name(enum media_mode m); // "direct", "remux", "transcode"

enum media_subtitle_way {
    MEDIA_SUBTITLE_OFF = 0,    // none was wished, or there is none
    MEDIA_SUBTITLE_INSIDE = 1, // the player shows the one in the file
    MEDIA_SUBTITLE_BESIDE = 2, // as WebVTT beside the stream
    MEDIA_SUBTITLE_BURNT = 3,  // part of the picture
    MEDIA_SUBTITLE_LOST = 4,   // can be neither shown nor burnt in
};
const char *media_subtitle_way_name(enum media_subtitle_way w);

struct media_limits {
    uint32_t max_height;     // the shorter side of the picture; 0: no limit
    int64_t max_bitrate_bps; // of picture and sound together; 0: no limit
    int64_t network_bps;     // what the network was seen to carry; a fifth is left free; 0: unknown
};
enum media_burn {
    MEDIA_BURN_NEEDED = 0, // what the player cannot show
    MEDIA_BURN_NEVER = 1,
    MEDIA_BURN_ALWAYS = 2,
};
#define MEDIA_NO_TRACK (-1)
struct media_wishes {
    int audio_track;               // source stream; MEDIA_NO_TRACK: by language
    int subtitle_track;            // likewise
    const char *audio_language;    // NULL or "": the default track
    const char *subtitle_language; // NULL or "": no subtitles
    enum media_burn burn;
    bool keep_styles;     // styled subtitles are shown as they are, if need be burnt in
    bool prefer_original; // packed-anew sound also where the picture is made anew
    bool normalised;      // even loudness
    bool no_direct, no_copies;
};

// One thing that speaks against the source: what, about which track, in words.
struct media_note {
    enum media_reason reason;
    int track; // index into source.tracks; MEDIA_NO_TRACK: the file, or no track
    char text[96];
};
#define MEDIA_MAX_NOTES 24
struct media_decision {
    enum media_mode mode;
    size_t n_notes; // empty when and only when the mode is DIRECT
    struct media_note notes[MEDIA_MAX_NOTES];
    // Indices into source.tracks; MEDIA_NO_TRACK: none.
    int video_track, audio_track, subtitle_track;
    // Indices into renditions, what to play when not the source; -1: none.
    int video_rendition, audio_rendition;
    enum media_subtitle_way subtitle;
};
void media_decide(const struct media_plan *p, const struct media_profile *profile,
                  const struct media_limits *limits, const struct media_wishes *wishes,
                  struct media_decision *ret);
// Is a picture that was made within the size, rate and level that the player takes of its codec?
bool media_picture_fits(const struct media_profile *profile, const struct media_rendition *r);
bool media_decision_has(const struct media_decision *d, enum media_reason r);
// What wishes are when nobody wishes anything.
#define MEDIA_NO_WISHES                                                                            \
    ((struct media_wishes){.audio_track = MEDIA_NO_TRACK, .subtitle_track = MEDIA_NO_TRACK})
