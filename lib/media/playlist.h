#pragma once
// HLS playlists (RFC 8216, version 7), pure functions of the plan. URIs are relative, so that a
// token in the path stays: the master names "v720.m3u8"; that one names "v720/init.mp4" and
// "v720/0.m4s", "v720/1.m4s", ... Segment numbers are the plan's.
#include "base/buf.h"
#include "base/err.h"
#include "media/plan.h"

// The variants that the item has: video with its audio group (AAC), or audio alone (AAC, Opus).
// max_height, max_bitrate_bps: leave out what is above; 0 = no limit; the lowest always stays.
enum status media_playlist_master(const struct media_plan *p, uint32_t max_height,
                                  int64_t max_bitrate_bps, struct buf *ret,
                                  struct err *err) MUST_CHECK;
enum status media_playlist_rendition(const struct media_plan *p, size_t rendition, struct buf *ret,
                                     struct err *err) MUST_CHECK;
// Whether a master playlist or manifest with these limits offers that rendition.
bool media_playlist_has(const struct media_plan *p, size_t rendition, uint32_t max_height,
                        int64_t max_bitrate_bps);
// Letters and hyphens alone: fit to be written between quotes. False for an empty one.
bool media_language_is_plain(const char *language);
