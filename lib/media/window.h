#pragma once
// Which blocks of a source a codec process has at hand: the last `capacity` that were fetched. What
// was fetched first goes first, used since or not, so that the worker and its child count alike and
// nothing needs to be said about it; what goes too early costs one more fetch.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MEDIA_READ_BLOCK (1 << 20) // the parent fetches aligned blocks of this size
#define MEDIA_WINDOW_BLOCKS 256    // when a task does not say
#define MEDIA_MIN_WINDOW_BLOCKS 4
#define MEDIA_MAX_WINDOW_BLOCKS (64 << 10)
#define MEDIA_NO_BLOCK SIZE_MAX

struct media_window {
    uint8_t *have;  // a byte for each block of the source
    uint32_t *ring; // those that are there, oldest at `oldest`
    size_t n_blocks, capacity, oldest, n;
};
// capacity  in blocks; 0: MEDIA_WINDOW_BLOCKS
// errors    RESOURCE_EXHAUSTED
enum status media_window_init(struct media_window *w, int64_t source_size, uint32_t capacity,
                              struct err *err) MUST_CHECK;
void media_window_done(struct media_window *w);
bool media_window_has(const struct media_window *w, size_t block);
// The block is there from now on. Returns the one that is not any more, or MEDIA_NO_BLOCK.
size_t media_window_add(struct media_window *w, size_t block);
