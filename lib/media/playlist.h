#pragma once
// HLS playlists (RFC 8216, version 7), pure functions of the plan. URIs are relative, so that a
// token in the path stays: the master names "v720.m3u8"; that one names "v720/init.mp4" and
// "v720/0.m4s", "v720/1.m4s", ... Segment numbers are the plan's. "v720-keys.m3u8" lists the first
// picture of each segment alone, "v720-keys/0.m4s", for players that show pictures while seeking.
#include "base/buf.h"
#include "base/err.h"
#include "media/offer.h"
#include "media/plan.h"

// What the bytes of a finished rendition came to; zeros: not finished, the plan's numbers hold.
struct media_rate {
    uint32_t peak_bps; // over any run of segments of half to one and a half target durations
    uint32_t mean_bps;
};
// sizes: bytes of each segment of the rendition, all of them made.
struct media_rate media_rate_of(const struct media_plan *p, size_t rendition, const int64_t *sizes);

// Pictures with a group of sound for each family ("a128", "a384"), in which each of the source's
// sound tracks has its place; or sound alone. rates: one of each rendition, or NULL.
enum status media_playlist_master(const struct media_plan *p, const struct media_offer *offer,
                                  const struct media_rate *rates, struct buf *ret,
                                  struct err *err) MUST_CHECK;
enum status media_playlist_rendition(const struct media_plan *p, size_t rendition, struct buf *ret,
                                     struct err *err) MUST_CHECK;
// errors: NOT_FOUND for sound
enum status media_playlist_keys(const struct media_plan *p, size_t rendition, struct buf *ret,
                                struct err *err) MUST_CHECK;
// "v720" of "v720-keys"; false when the name is of another kind. dst holds size bytes.
bool media_playlist_keys_of(const char *name, char *dst, size_t size);
// Letters and hyphens alone: fit to be written between quotes. False for an empty one.
bool media_language_is_plain(const char *language);
// What people call the sound track of that rendition: its title, else its language, else a number;
// no two tracks have the same. Without quotes, control characters and what XML reads as its own.
void media_track_label(const struct media_plan *p, size_t track, char *dst, size_t size);
