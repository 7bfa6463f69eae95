#pragma once
// DASH manifest (ISO/IEC 23009-1, live profile of the ISO base media format, type static), a pure
// function of the plan. It names the very segments that the HLS playlists name, by the same
// relative addresses, so that a token in the path stays.
#include "base/buf.h"
#include "base/err.h"
#include "media/plan.h"

// All renditions: one adaptation set of pictures, one of sound for each codec. max_height,
// max_bitrate_bps: leave out pictures above that; 0 = no limit; the lowest always stays.
// errors: RESOURCE_EXHAUSTED when the buffer's limit is too small
enum status media_dash_manifest(const struct media_plan *p, uint32_t max_height,
                                int64_t max_bitrate_bps, struct buf *ret,
                                struct err *err) MUST_CHECK;
