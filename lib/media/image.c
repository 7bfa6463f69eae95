#include "media/image.h"

#include <inttypes.h>
#include <string.h>

#include "base/str.h"

#define TILE_WIDTH 160
#define TILE_HEIGHT_MAX 284 // of pictures held upright
#define TILE_COLUMNS 10
#define MAX_TILES 100

static const char *const names[MEDIA_N_IMAGES] = {[MEDIA_IMAGE_POSTER] = "poster",
                                                  [MEDIA_IMAGE_TILES] = "tiles",
                                                  [MEDIA_IMAGE_PREVIEW] = "preview",
                                                  [MEDIA_IMAGE_WAVEFORM] = "waveform",
                                                  [MEDIA_IMAGE_LOUDNESS] = "loudness"};

const char *media_image_name(enum media_image i)
{
    return names[i];
}

const char *media_image_type(enum media_image i)
{
    return i == MEDIA_IMAGE_PREVIEW     ? "image/webp"
           : media_image_is_measured(i) ? "application/json"
                                        : "image/jpeg";
}

int media_image_find(const char *name)
{
    for (int i = 0; i < MEDIA_N_IMAGES; i++) {
        if (str_eq(names[i], name))
            return i;
    }
    return -1;
}

bool media_image_is_measured(enum media_image i)
{
    return i == MEDIA_IMAGE_WAVEFORM || i == MEDIA_IMAGE_LOUDNESS;
}

bool media_image_is_planned(const struct media_plan *p, enum media_image i)
{
    if (i == MEDIA_IMAGE_TILES)
        return p->video.n_segments > 1;
    if (i == MEDIA_IMAGE_WAVEFORM)
        return !p->video.n_segments && p->audio.n_segments;
    if (i == MEDIA_IMAGE_LOUDNESS)
        return p->audio.n_segments > 0;
    if (p->video.n_segments)
        return true;
    if (i == MEDIA_IMAGE_PREVIEW)
        return false;
    for (size_t k = 0; k < p->source.n_tracks; k++) {
        if (p->source.tracks[k].type == MEDIA_TRACK_PICTURE)
            return true;
    }
    return false;
}

static uint32_t even(uint64_t n)
{
    return n < 2 ? 2 : (uint32_t)(n & ~UINT64_C(1));
}

static void fit(uint32_t width, uint32_t height, uint32_t limit, uint32_t *ret_width,
                uint32_t *ret_height)
{
    uint32_t longer = width > height ? width : height;
    uint32_t most = longer < limit ? longer : limit;
    if (longer == 0)
        longer = most = 1;
    *ret_width = even((uint64_t)width * most / longer);
    *ret_height = even((uint64_t)height * most / longer);
}

void media_poster_size(uint32_t width, uint32_t height, uint32_t *ret_width, uint32_t *ret_height)
{
    fit(width, height, MEDIA_POSTER_MAX_PX, ret_width, ret_height);
}

void media_preview_size(uint32_t width, uint32_t height, uint32_t *ret_width, uint32_t *ret_height)
{
    fit(width, height, MEDIA_PREVIEW_MAX_PX, ret_width, ret_height);
}

// RIFF's length tells all bytes but its own head.
static bool is_webp(const uint8_t *b, size_t n)
{
    return n > 12 && n <= MEDIA_MAX_PREVIEW_BYTES && memcmp(b, "RIFF", 4) == 0 &&
           memcmp(b + 8, "WEBP", 4) == 0 &&
           ((uint32_t)b[4] | (uint32_t)b[5] << 8 | (uint32_t)b[6] << 16 | (uint32_t)b[7] << 24) ==
               n - 8;
}

// As the codec process writes it: names, numbers and nothing that a browser could take for more.
static bool is_waveform(const uint8_t *b, size_t n)
{
    static const char head[] = "{\"version\":2,\"channels\":1,";
    if (n < sizeof(head) || n > MEDIA_MAX_IMAGE_BYTES || memcmp(b, head, sizeof(head) - 1) != 0 ||
        b[n - 2] != ']' || b[n - 1] != '}')
        return false;
    for (size_t i = 0; i < n; i++)
        if (!b[i] || !strchr("abcdefghijklmnopqrstuvwxyz_0123456789{}[]\":,.-", b[i]))
            return false;
    return true;
}

bool media_image_is_sane(const void *bytes, size_t n)
{
    const uint8_t *b = bytes;
    if (is_webp(b, n) || is_waveform(b, n))
        return true;
    return n > 4 && n <= MEDIA_MAX_IMAGE_BYTES && b[0] == 0xff && b[1] == 0xd8 &&
           b[n - 2] == 0xff && b[n - 1] == 0xd9;
}

void media_tiles_layout(const struct media_plan *p, struct media_tiles *ret)
{
    *ret = (struct media_tiles){.n = 0};
    if (!media_image_is_planned(p, MEDIA_IMAGE_TILES))
        return;
    const struct media_rendition *top = &p->renditions[0];
    uint32_t n = p->video.n_segments < MAX_TILES ? (uint32_t)p->video.n_segments : MAX_TILES;
    uint64_t height = (uint64_t)TILE_WIDTH * top->height / top->width;
    ret->n = n;
    ret->columns = n < TILE_COLUMNS ? n : TILE_COLUMNS;
    ret->rows = (n + TILE_COLUMNS - 1) / TILE_COLUMNS;
    ret->height = even(height < TILE_HEIGHT_MAX ? height : TILE_HEIGHT_MAX);
    ret->width = height < TILE_HEIGHT_MAX
                     ? TILE_WIDTH
                     : even((uint64_t)TILE_HEIGHT_MAX * top->width / top->height);
}

size_t media_tile_segment(const struct media_plan *p, const struct media_tiles *t, uint32_t k)
{
    return (size_t)((uint64_t)k * p->video.n_segments / t->n);
}

static void put_time(struct buf *b, int64_t us)
{
    int64_t ms = us / 1000;
    buf_printf(b, "%02" PRId64 ":%02" PRId64 ":%02" PRId64 ".%03" PRId64, ms / 3600000,
               ms / 60000 % 60, ms / 1000 % 60, ms % 1000);
}

enum status media_tiles_index(const struct media_plan *p, const char *url, struct buf *b,
                              struct err *err)
{
    struct media_tiles t;
    media_tiles_layout(p, &t);
    buf_puts(b, "WEBVTT\n");
    for (uint32_t k = 0; k < t.n; k++) {
        int64_t end = k + 1 < t.n
                          ? media_segment_start_us(&p->video, media_tile_segment(p, &t, k + 1))
                          : media_ticks_to_us(p->video.duration, p->video.timescale);
        buf_puts(b, "\n");
        put_time(b, media_segment_start_us(&p->video, media_tile_segment(p, &t, k)));
        buf_puts(b, " --> ");
        put_time(b, end);
        buf_printf(b, "\n%s#xywh=%u,%u,%u,%u\n", url, k % t.columns * t.width,
                   k / t.columns * t.height, t.width, t.height);
    }
    if (b->failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "index of the tiles: buffer is full");
    return STATUS_OK;
}
