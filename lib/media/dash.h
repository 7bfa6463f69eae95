#pragma once
// DASH manifest (ISO/IEC 23009-1, live profile of the ISO base media format, type static), a pure
// function of the plan. It names the very segments that the HLS playlists name, by the same
// relative addresses, so that a token in the path stays.
#include "base/buf.h"
#include "base/err.h"
#include "media/offer.h"
#include "media/plan.h"
#include "media/playlist.h"

// What is offered: one adaptation set of pictures for each codec, one of sound for each track and
// codec, with language, role and channels. rates: one of each rendition, or NULL.
// errors: RESOURCE_EXHAUSTED when the buffer's limit is too small
enum status media_dash_manifest(const struct media_plan *p, const struct media_offer *offer,
                                const struct media_rate *rates, struct buf *ret,
                                struct err *err) MUST_CHECK;
