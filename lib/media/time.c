#include "media/time.h"

__extension__ typedef __int128 wide;

static int64_t clamp_i128(wide v)
{
    if (v > INT64_MAX)
        return INT64_MAX;
    if (v < INT64_MIN + 1)
        return INT64_MIN + 1; // INT64_MIN itself means "unknown"
    return (int64_t)v;
}

int64_t media_scale_floor(int64_t a, int64_t b, int64_t c)
{
    wide n = (wide)a * b, q = n / c;
    if (n % c < 0)
        q--;
    return clamp_i128(q);
}

int64_t media_scale_ceil(int64_t a, int64_t b, int64_t c)
{
    wide n = (wide)a * b, q = n / c;
    if (n % c > 0)
        q++;
    return clamp_i128(q);
}

int64_t media_scale_near(int64_t a, int64_t b, int64_t c)
{
    wide n = (wide)a * b, half = c / 2;
    return clamp_i128(n < 0 ? -((-n + half) / c) : (n + half) / c);
}

int64_t media_ticks_to_us(int64_t ticks, uint32_t timescale)
{
    return timescale ? media_scale_near(ticks, 1000000, timescale) : 0;
}

bool media_rational_reduce(int64_t num, int64_t den, int32_t max, struct media_rational *ret)
{
    if (num <= 0 || den <= 0)
        return false;
    int64_t a = num, b = den;
    while (b) {
        int64_t t = a % b;
        a = b;
        b = t;
    }
    num /= a;
    den /= a;
    if (num > max || den > max)
        return false;
    *ret = (struct media_rational){(int32_t)num, (int32_t)den};
    return true;
}
