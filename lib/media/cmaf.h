#pragma once
// CMAF boxes (ISO/IEC 14496-12, -14, -15, 23000-19; Opus: the "Encapsulation of Opus in ISOBMFF"
// text), written and read by us. Video is track 1, audio track 2 everywhere, so that fragments of
// both can follow one merged init segment.
//
// tfdt is the plan's start; the i-th sample's decode time is the i-th presentation time;
// composition offsets are signed (trun version 1); durations sum to the plan's.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "media/plan.h"

#define MEDIA_VIDEO_TRACK 1
#define MEDIA_AUDIO_TRACK 2
#define MEDIA_MAX_SEGMENT_BYTES (64 << 20)
#define MEDIA_FLAC_STREAMINFO 34 // bytes

struct media_track_config {
    enum media_codec codec;
    uint32_t timescale;
    uint32_t width, height;         // video
    uint32_t channels, sample_rate; // audio
    uint32_t priming;               // audio: edit list media_time
    uint32_t bitrate_bps;
    const uint8_t *config; // avcC, hvcC, av1C body, vpcC body with version; AudioSpecificConfig,
                           // dOps body, STREAMINFO
    size_t config_len;
};
enum status media_cmaf_init(const struct media_track_config *c, struct buf *ret,
                            struct err *err) MUST_CHECK;

// What the init segment of a rendition was made from, config borrowed from the plan.
// INVALID_ARGUMENT when those bytes are not what media_cmaf_init() makes of it.
enum status media_cmaf_init_config(const struct media_plan *p, size_t rendition,
                                   struct media_track_config *ret, struct err *err) MUST_CHECK;

struct media_sample {
    const uint8_t *data; // video: length-prefixed NAL units
    uint32_t size;
    uint32_t duration;
    int32_t cts; // presentation minus decode time
    bool sync;
};
// styp + moof + mdat.
enum status media_cmaf_fragment(uint32_t sequence, uint32_t track_id, int64_t base_time,
                                const struct media_sample *samples, size_t n, struct buf *ret,
                                struct err *err) MUST_CHECK;

// What a fragment of ours says about itself.
struct media_fragment {
    uint32_t sequence, track_id, n_samples;
    int64_t base_time; // tfdt
    int64_t first_pts; // least presentation time
    int64_t duration;  // sum of the samples'
    int32_t min_cts;
    bool first_is_sync;
    uint32_t n_sync;
    size_t data_offset, data_len; // the mdat's body
};
// Exactly one styp + moof + mdat of one track as media_cmaf_fragment() writes them, to the last
// byte. errors: INVALID_ARGUMENT
enum status media_cmaf_parse(const void *bytes, size_t n, struct media_fragment *ret,
                             struct err *err) MUST_CHECK;
// The same of the first n bytes of a segment of `size`, which hold all before the mdat's body.
// samples: NULL, or room for what the first `max` samples are, data left out.
enum status media_cmaf_head(const void *bytes, size_t n, int64_t size, struct media_sample *samples,
                            size_t max, struct media_fragment *ret, struct err *err) MUST_CHECK;
#define MEDIA_HEAD_BYTES(n_samples) (132 + 16 * (size_t)(n_samples)) // enough for that
// The fragment's first sample alone, shown as long as all of them: for I-frame playlists.
enum status media_cmaf_key(const void *bytes, size_t n, struct buf *ret,
                           struct err *err) MUST_CHECK;
// The same, and that it is segment `segment` of that rendition: start, duration, samples, sync.
enum status media_cmaf_check(const struct media_plan *p, size_t rendition, size_t segment,
                             const void *bytes, size_t n, struct media_fragment *ret,
                             struct err *err) MUST_CHECK;

// ---- one fragmented MP4 of a video and an audio rendition ----
// ftyp + moov with both tracks, from the plan's init segments; either may be -1. Video offsets are
// made non-negative (cts_shift, taken off by an edit list), as FFmpeg-based players want them, so
// each video segment must go through media_cmaf_adapt().
enum status media_cmaf_merge_init(const struct media_plan *p, int video_rendition,
                                  int audio_rendition, struct buf *ret, struct err *err) MUST_CHECK;
// Change a segment in place for that file: its sequence number, and the offsets when it is video.
// The size stays the same.
enum status media_cmaf_adapt(const struct media_plan *p, size_t rendition, uint32_t sequence,
                             void *bytes, size_t n, struct err *err) MUST_CHECK;
