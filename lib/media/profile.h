#pragma once
// What a player can show, as data: which codecs in which containers, within which limits. Lists are
// names separated by commas, "*" is anything, NULL or "" nothing; "pcm" stands for all of PCM.
// Codecs have FFmpeg's names ("h264", "mpeg2video", "subrip"), containers those of
// media_container_name() and "mov" for QuickTime files.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MEDIA_MAX_RULES 24 // of each kind

struct media_container_rule {
    const char *containers; // these, with
    const char *video;      // these pictures: none means that it is for sound alone
    const char *audio;      // and this sound
};
// A codec that the player decodes, and up to what; 0 or NULL: no limit.
struct media_video_rule {
    const char *codecs;
    const char *profiles; // "Main,High"
    uint16_t max_level;   // in the codec's own numbers: H.264 41, HEVC 123, AV1 13
    uint16_t max_bit_depth;
    uint16_t max_refs;
    uint32_t max_width, max_height; // the longer and the shorter side
    uint32_t max_fps;
    int64_t max_bitrate_bps;
};
struct media_audio_rule {
    const char *codecs;
    const char *profiles; // "LC,HE-AAC"
    uint16_t max_channels;
    uint16_t max_bit_depth;
    uint32_t max_sample_rate;
    int64_t max_bitrate_bps;
};
struct media_profile {
    const char *name, *about;
    const struct media_container_rule *containers;
    size_t n_containers;
    const struct media_video_rule *video;
    size_t n_video;
    const struct media_audio_rule *audio;
    size_t n_audio;
    // Codecs that it takes in fragmented MP4, which is what renditions come in.
    const char *package_video, *package_audio;
    const char *subtitles;        // codecs that it shows out of a file that it plays directly
    const char *ranges;           // "sdr", "hdr10", "hlg"
    bool shows_webvtt;            // beside the stream
    bool rotates;                 // turns pictures as the file says
    bool interlaced;              // takes interlaced pictures
    bool anamorphic;              // takes pixels that are not square
    bool picks_tracks;            // plays another sound or picture than the file's first
    bool skips_unknown;           // files may hold streams that it does not know
    bool takes_late_index;        // files may have their index at the end
    bool edits;                   // honours edit lists: streams that begin late or are trimmed
    bool copies;                  // the source's packets may be packed anew for it
    bool surround;                // gets more than two channels where the sound has them
    int64_t max_file_bitrate_bps; // of a file played directly; 0: no limit
};

// The built-in ones, the most general first.
const struct media_profile *media_profile_at(size_t i);           // NULL past the last
const struct media_profile *media_profile_find(const char *name); // NULL: no such name

// Is the name on the list?
bool media_list_has(const char *list, const char *name);

// Limits that make sense, lists whose names are made of letters, digits and _-: for profiles from
// outside. errors: INVALID_ARGUMENT with the path of what is wrong ("video[1].codecs: ...")
enum status media_profile_check(const struct media_profile *p, struct err *err) MUST_CHECK;
