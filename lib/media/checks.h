#pragma once
// What a VERIFY task's codec process reads as its "source": the source itself and, from the next
// block on (media/window.h), what was made of it: a table of sizes, 4 bytes big-endian each, one
// for each (rendition, segment) of the task in the order of its list of renditions and then of
// segments, and right behind it those segments in that order, each with its rendition's init
// segment in front.
#include <stdint.h>

#include "media/window.h"

#define MEDIA_CHECKS_MAX_BYTES (INT64_C(96) << 20) // table and segments

// Where the table begins.
static inline int64_t media_checks_offset(int64_t source_size)
{
    return (source_size + MEDIA_READ_BLOCK - 1) / MEDIA_READ_BLOCK * MEDIA_READ_BLOCK;
}
