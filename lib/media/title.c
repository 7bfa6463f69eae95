// The rules, by what was measured on films, screens and noise (docs/performance.md):
//
// - Bits grow with the pixels to the power of about 3/4: a smaller picture of the same film has
//   more detail per pixel.
// - A film that would live at its cap gets a higher CRF: the encoder then spends its bits evenly,
//   instead of freely until the buffer is empty.
// - A film that stays far below its cap gets a lower one, so that playlists promise what is true,
//   and a player on a slow line may take the larger picture.
// - More bits than the source itself has show nothing that is not in it.
// - Once a rung is small enough for any line, smaller pictures bring nothing.
#include "media/title.h"

#include "media/plan_internal.h"

#define SEGMENT_S 4
#define LEAST_BPS 150000    // a rung of this mean rate plays on any line: none below it
#define LEAST_CAP 150000    // bits per second
#define EASY_ROOM 3         // an easy film's cap, in mean rates: scenes differ
#define SOURCE_ROOM_PCT 150 // of the source's rate, for a rung of its size

static uint64_t root(uint64_t v)
{
    uint64_t r = 0;
    for (uint64_t bit = UINT64_C(1) << 31; bit; bit >>= 1)
        if ((r | bit) * (r | bit) <= v)
            r |= bit;
    return r;
}

// value x (a / b)^(3/4)
static uint64_t scale_by_pixels(uint64_t value, uint64_t a, uint64_t b)
{
    uint64_t half = root((a << 20) / b); // (a / b)^(1/2), 10 bits after the point
    uint64_t quarter = root(half << 10); // (a / b)^(1/4), likewise
    return (value * half >> 10) * quarter >> 10;
}

static uint64_t pixels_of(const struct media_rendition *r)
{
    return (uint64_t)r->width * r->height;
}

uint32_t media_title_rate(const struct media_title *t, const struct media_rendition *r)
{
    if (t->pixels == 0 || r->frame_rate.num <= 0 || r->frame_rate.den <= 0)
        return 0;
    uint64_t milli_fps = (uint64_t)r->frame_rate.num * 1000 / (uint64_t)r->frame_rate.den;
    uint64_t others = milli_fps * SEGMENT_S / 1000;
    uint64_t bits =
        8 * ((uint64_t)t->key_bytes + (uint64_t)t->other_bytes * (others ? others - 1 : 0));
    uint64_t bps = scale_by_pixels(bits / SEGMENT_S, pixels_of(r), t->pixels);
    return bps < UINT32_MAX ? (uint32_t)bps : UINT32_MAX;
}

// How much CRF rises for a film that would need that many percent of its cap.
static uint8_t crf_for_hard(uint64_t percent)
{
    return percent > 250 ? 3 : percent > 175 ? 2 : percent > 125 ? 1 : 0;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

// A segment begins with the buffer (a second of the cap) nearly full: room for its keyframe and for
// what follows while the next one comes, or the whole segment suffers from a poor first picture.
static uint64_t cap_for_key(const struct media_title *t, const struct media_rendition *r)
{
    return 3 * scale_by_pixels(8 * (uint64_t)t->key_bytes, pixels_of(r), t->pixels);
}

static void fit_rung(const struct media_title *t, uint32_t rate, uint64_t source_pixels,
                     int64_t source_bps, struct media_rendition *r)
{
    uint64_t cap = r->maxrate_bps;
    if (source_bps > 0 && source_pixels > 0)
        cap = least(cap, scale_by_pixels((uint64_t)source_bps, pixels_of(r), source_pixels) *
                             SOURCE_ROOM_PCT / 100);
    if (rate > 0) {
        r->crf = (uint8_t)(r->crf + crf_for_hard((uint64_t)rate * 100 / r->maxrate_bps));
        uint64_t easy = most((uint64_t)rate * EASY_ROOM, r->maxrate_bps / 4);
        cap = least(cap, most(easy, cap_for_key(t, r)));
    }
    cap = least(most(cap, LEAST_CAP), r->maxrate_bps);
    r->maxrate_bps = (uint32_t)cap;
    r->bitrate_bps = (uint32_t)(rate > 0 ? least(rate, cap) : cap / 10 * 6);
    r->level = media_h264_level(r);
}

size_t media_title_fit(const struct media_title *t, uint64_t source_pixels, int64_t source_bps,
                       struct media_rendition *ladder, size_t n)
{
    size_t kept = 0;
    for (uint32_t rate = UINT32_MAX; kept < n && (kept == 0 || rate == 0 || rate > LEAST_BPS);
         kept++) {
        rate = media_title_rate(t, &ladder[kept]);
        fit_rung(t, rate, source_pixels, source_bps, &ladder[kept]);
    }
    return kept;
}
