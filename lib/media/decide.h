#pragma once
// The playback decision: the source's own bytes or renditions, and why. Pure.
#include <stdbool.h>
#include <stddef.h>

#include "media/plan.h"

// What the player can do. A list that is empty means what browsers can.
struct media_profile {
    const char *const *containers; // "mp4", "webm", "mp3", "ogg", "flac", "wav", ...
    size_t n_containers;
    const char *const *video_codecs; // "h264", "vp9", ...
    size_t n_video_codecs;
    const char *const *audio_codecs; // "aac", "mp3", "opus", ...
    size_t n_audio_codecs;
    uint32_t max_height;     // 0: no limit; the shorter side of an upright picture counts too
    int64_t max_bitrate_bps; // 0: no limit
    bool never_direct;
};
#define MEDIA_MAX_REASONS 8
struct media_decision {
    bool direct;
    size_t n_reasons; // why not direct
    char reasons[MEDIA_MAX_REASONS][96];
    int video_rendition, audio_rendition; // -1: none; set in both modes
};
void media_decide(const struct media_plan *p, const struct media_profile *profile,
                  struct media_decision *ret);
