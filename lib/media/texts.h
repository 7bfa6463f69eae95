#pragma once
// Tracks of text that an item has: those of its source that can be read (one task makes them all,
// each a whole track of WebVTT in the plain form), and those that were added afterwards. They are
// stored and asked for like renditions of one segment.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "media/plan.h"

#define MEDIA_TEXT_ID_SIZE 8
#define MEDIA_MAX_TEXT_TRACKS 32     // of one source
#define MEDIA_MAX_ADDED_TEXTS 99     // ever added to one item; "x1" is the first
#define MEDIA_TEXT_FILE 0xff         // "rendition" of a texts task whose source is a file of text
#define MEDIA_TEXT_PIECE_US 30000000 // an HLS segment of text lasts that long

struct media_text {
    char id[MEDIA_TEXT_ID_SIZE]; // "s3": track 3 of the source; "x1"
    char language[8];            // ISO 639, may be empty
    char title[64];              // may be empty; UTF-8
    bool is_default, is_forced, is_hearing_impaired;
};

// "s3" to 3; -1: that is not the name of a track of text of the source.
int media_text_find(const struct media_plan *p, const char *id);
// "x1" to 1; -1: not the name of an added one.
int media_text_find_added(const char *id);
void media_text_name(unsigned track, char ret[MEDIA_TEXT_ID_SIZE]);
void media_text_name_added(unsigned number, char ret[MEDIA_TEXT_ID_SIZE]);
// Whether track `index` of the source is one that is made into WebVTT.
bool media_text_is_planned(const struct media_plan *p, unsigned index);
// The source's own. Returns how many; at most MEDIA_MAX_TEXT_TRACKS.
size_t media_texts_of_source(const struct media_plan *p,
                             struct media_text ret[MEDIA_MAX_TEXT_TRACKS]);

// ---- HLS (RFC 8216) ----
// EXT-X-MEDIA lines of group "subs", for a master playlist; each names "ID.m3u8".
void media_texts_put_group(const struct media_text *texts, size_t n, struct buf *b);
// The group into a finished master playlist, and a word of it on each of its variants. A playlist
// without variants stays as it is.
// errors, of all that write: RESOURCE_EXHAUSTED
enum status media_texts_into_master(const struct media_text *texts, size_t n, struct buf *playlist,
                                    struct err *err) MUST_CHECK;
size_t media_text_n_pieces(const struct media_plan *p);
// The media playlist of one: "ID/0.vtt", "ID/1.vtt", ...
enum status media_text_playlist(const struct media_plan *p, const char *id, struct buf *ret,
                                struct err *err) MUST_CHECK;

// ---- DASH ----
// One adaptation set for each, of the whole file "ID.vtt".
void media_texts_put_sets(const struct media_text *texts, size_t n, struct buf *b);
// The sets into a finished manifest, at the end of its period.
enum status media_texts_into_manifest(const struct media_text *texts, size_t n,
                                      struct buf *manifest, struct err *err) MUST_CHECK;
