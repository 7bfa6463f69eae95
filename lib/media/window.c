#include "media/window.h"

#include "base/mem.h"

enum status media_window_init(struct media_window *w, int64_t source_size, uint32_t capacity,
                              struct err *err)
{
    size_t n = (size_t)((source_size + MEDIA_READ_BLOCK - 1) / MEDIA_READ_BLOCK);
    *w =
        (struct media_window){.n_blocks = n, .capacity = capacity ? capacity : MEDIA_WINDOW_BLOCKS};
    if (w->capacity > n)
        w->capacity = n;
    w->have = mem_alloc(n);
    w->ring = mem_array(w->capacity, sizeof(*w->ring));
    if (w->have && w->ring)
        return STATUS_OK;
    media_window_done(w);
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "window on the source: out of memory");
}

void media_window_done(struct media_window *w)
{
    mem_free(w->have);
    mem_free(w->ring);
    *w = (struct media_window){0};
}

bool media_window_has(const struct media_window *w, size_t block)
{
    return block < w->n_blocks && w->have[block];
}

size_t media_window_add(struct media_window *w, size_t block)
{
    size_t dropped = MEDIA_NO_BLOCK;
    if (block >= w->n_blocks || w->have[block])
        return dropped;
    if (w->n == w->capacity) {
        dropped = w->ring[w->oldest];
        w->have[dropped] = 0;
        w->oldest = (w->oldest + 1) % w->capacity;
        w->n--;
    }
    w->ring[(w->oldest + w->n++) % w->capacity] = (uint32_t)block;
    w->have[block] = 1;
    return dropped;
}
