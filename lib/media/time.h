#pragma once
// Media time: integer ticks that never travel without their time base.
#include <stdbool.h>
#include <stdint.h>

#define MEDIA_TIME_UNKNOWN INT64_MIN

struct media_rational {
    int32_t num, den;
};
struct media_time {
    int64_t ticks;              // MEDIA_TIME_UNKNOWN when not known
    struct media_rational base; // seconds per tick, e.g. 1/90000
};

// a * b / c rounded down (towards minus infinity) or up; saturates at the ends of int64_t.
// b >= 0, c > 0.
int64_t media_scale_floor(int64_t a, int64_t b, int64_t c);
int64_t media_scale_ceil(int64_t a, int64_t b, int64_t c);
int64_t media_scale_near(int64_t a, int64_t b, int64_t c); // nearest, halves away from zero

// Ticks of 1/timescale to microseconds, nearest.
int64_t media_ticks_to_us(int64_t ticks, uint32_t timescale);

// Lowest terms with 0 < num, den <= max; false when the value is not positive or out of reach.
bool media_rational_reduce(int64_t num, int64_t den, int32_t max, struct media_rational *ret);
