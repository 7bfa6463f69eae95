#pragma once
// Pictures of an item that are not its film: named and sized by the plan alone, made once by a
// worker, each a JPEG but for the preview and the waveform. They are stored and asked for like
// renditions of one segment.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "media/plan.h"

enum media_image {
    MEDIA_IMAGE_POSTER,  // a still of the film, or the cover of a song
    MEDIA_IMAGE_TILES,   // small stills on a grid, for the seek bar
    MEDIA_IMAGE_PREVIEW, // a few moments of the film, moving: an animated WebP
    // How a song's level goes on, and its loudness: JSON (docs/media.md)
    MEDIA_IMAGE_WAVEFORM,
    MEDIA_IMAGE_LOUDNESS, // of an item's sound: JSON (media/loudness.h)
    MEDIA_N_IMAGES
};
#define MEDIA_MAX_IMAGE_BYTES (4U << 20)
#define MEDIA_POSTER_MAX_PX 1280 // longer side
#define MEDIA_MAX_PREVIEW_BYTES (1U << 20)
#define MEDIA_PREVIEW_MAX_PX 320 // longer side
#define MEDIA_PREVIEW_FPS 10
#define MEDIA_PREVIEW_CUTS 5
#define MEDIA_PREVIEW_CUT_FRAMES 6

const char *media_image_name(enum media_image i); // "poster", "tiles", ...: part of addresses
const char *media_image_type(enum media_image i); // "image/jpeg"
int media_image_find(const char *name);           // -1: none of that name
// Whether an item of that plan has it: sound has a poster only when it brought a cover.
bool media_image_is_planned(const struct media_plan *p, enum media_image i);
// Those that a measure task makes from the sound, not an images task.
bool media_image_is_measured(enum media_image i);
// Size of the poster of a picture of width x height: not larger than it, even.
void media_poster_size(uint32_t width, uint32_t height, uint32_t *ret_width, uint32_t *ret_height);
// Size of the preview of such a picture, even.
void media_preview_size(uint32_t width, uint32_t height, uint32_t *ret_width, uint32_t *ret_height);
// JPEG or WebP by its first and last bytes, or a waveform, and not too large.
bool media_image_is_sane(const void *bytes, size_t n);

// The grid of tiles: row by row; the last row may be short. n 0: the item has none.
struct media_tiles {
    uint32_t width, height; // of one tile, pixels
    uint32_t columns, rows, n;
};
void media_tiles_layout(const struct media_plan *p, struct media_tiles *ret);
// The segment whose first picture tile k shows; it stands for the time until the next tile's.
size_t media_tile_segment(const struct media_plan *p, const struct media_tiles *t, uint32_t k);
// WebVTT (W3C) whose cues name "URL#xywh=x,y,w,h", as players expect for previews.
// errors: RESOURCE_EXHAUSTED when the buffer's limit is too small
enum status media_tiles_index(const struct media_plan *p, const char *url, struct buf *ret,
                              struct err *err) MUST_CHECK;
