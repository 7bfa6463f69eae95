#include "base/time.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

int64_t time_mono_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

int64_t time_mono_ms(void)
{
    return time_mono_us() / 1000;
}

int64_t time_wall_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int64_t time_left_ms(int64_t deadline_us)
{
    if (deadline_us == TIME_NEVER)
        return INT64_MAX;
    int64_t left, now = time_mono_us();
    if (deadline_us <= now || __builtin_sub_overflow(deadline_us, now, &left))
        return 0;
    return left / 1000 + (left % 1000 != 0); // rounded up: a wait must not end early
}

int64_t time_deadline_in_ms(int64_t ms)
{
    int64_t us;
    if (ms == INT64_MAX || __builtin_mul_overflow(ms, 1000, &us) ||
        __builtin_add_overflow(us, time_mono_us(), &us))
        return ms < 0 ? INT64_MIN : TIME_NEVER;
    return us;
}

// Days since 1970-01-01 in the proleptic Gregorian calendar. Years are counted from March, so that
// the leap day is the last of its year; 400 years always have 146,097 days.
static int64_t days_from_date(int64_t year, int month, int day)
{
    year -= month <= 2;
    int64_t era = (year >= 0 ? year : year - 399) / 400;
    int64_t year_of_era = year - era * 400;
    int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    return era * 146097 + day_of_era - 719468;
}

void time_rfc3339(char *dst, int64_t wall_ms)
{
    int64_t ms = wall_ms % 1000, s = wall_ms / 1000;
    if (ms < 0) {
        ms += 1000;
        s--;
    }
    if (s < TIME_RFC3339_MIN_S)
        s = TIME_RFC3339_MIN_S, ms = 0;
    if (s > TIME_RFC3339_MAX_S)
        s = TIME_RFC3339_MAX_S, ms = 999;
    time_t t = (time_t)s;
    struct tm tm;
    gmtime_r(&t, &tm);
    snprintf(dst, TIME_RFC3339_SIZE, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ",
             (unsigned)(tm.tm_year + 1900) % 10000U, (unsigned)(tm.tm_mon + 1) % 100U,
             (unsigned)tm.tm_mday % 100U, (unsigned)tm.tm_hour % 100U, (unsigned)tm.tm_min % 100U,
             (unsigned)tm.tm_sec % 100U, (unsigned)ms % 1000U);
}

// Exactly n digits at *s, moving it on; -1 when there are none.
static int digits(const char **s, int n)
{
    int v = 0;
    for (int i = 0; i < n; i++, (*s)++) {
        if (**s < '0' || **s > '9')
            return -1;
        v = v * 10 + (**s - '0');
    }
    return v;
}

static bool literal(const char **s, const char *accepted)
{
    if (**s == '\0' || !strchr(accepted, **s))
        return false;
    (*s)++;
    return true;
}

static bool parse_date(const char **s, int64_t *ret_days)
{
    static const int month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int y = digits(s, 4);
    if (y < 1 || !literal(s, "-"))
        return false;
    int m = digits(s, 2);
    if (m < 1 || m > 12 || !literal(s, "-"))
        return false;
    int d = digits(s, 2);
    bool leap = (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    if (d < 1 || d > month_days[m - 1] + (m == 2 && leap))
        return false;
    *ret_days = days_from_date(y, m, d);
    return true;
}

// A leap second (60) counts as the first moment after it, as POSIX clocks do.
static bool parse_clock(const char **s, int64_t *ret_seconds)
{
    int h = digits(s, 2);
    if (h < 0 || h > 23 || !literal(s, ":"))
        return false;
    int m = digits(s, 2);
    if (m < 0 || m > 59 || !literal(s, ":"))
        return false;
    int sec = digits(s, 2);
    if (sec < 0 || sec > 60)
        return false;
    *ret_seconds = h * 3600 + m * 60 + sec;
    return true;
}

// ".123456789": nanoseconds, and how many digits there were; later ones count for nothing.
static bool parse_fraction(const char **s, int32_t *ret_ns, size_t *ret_digits)
{
    *ret_ns = 0;
    *ret_digits = 0;
    if (**s != '.')
        return true;
    const char *start = ++*s;
    for (int32_t weight = 100000000; **s >= '0' && **s <= '9'; (*s)++, weight /= 10)
        *ret_ns += (**s - '0') * weight;
    *ret_digits = (size_t)(*s - start);
    return *ret_digits > 0;
}

static bool parse_offset(const char **s, int64_t *ret_seconds)
{
    *ret_seconds = 0;
    if (literal(s, "Zz"))
        return true;
    int sign = **s == '-' ? -1 : 1;
    if (!literal(s, "+-"))
        return false;
    int h = digits(s, 2);
    if (h < 0 || h > 23 || !literal(s, ":"))
        return false;
    int m = digits(s, 2);
    if (m < 0 || m > 59)
        return false;
    *ret_seconds = sign * (h * 3600 + m * 60);
    return true;
}

struct moment {
    int64_t s; // Unix seconds
    int32_t ns;
    size_t digits; // of the fraction
};

static bool parse_moment(const char *s, struct moment *ret)
{
    int64_t days, clock, offset;
    if (!s || !parse_date(&s, &days) || !literal(&s, "Tt ") || !parse_clock(&s, &clock) ||
        !parse_fraction(&s, &ret->ns, &ret->digits) || !parse_offset(&s, &offset) || *s != '\0')
        return false;
    ret->s = days * 86400 + clock - offset;
    return true;
}

bool time_parse_rfc3339(const char *s, int64_t *ret_wall_ms)
{
    struct moment m;
    if (!parse_moment(s, &m))
        return false;
    *ret_wall_ms = m.s * 1000 + m.ns / 1000000;
    return true;
}

bool time_parse_rfc3339_ns(const char *s, int64_t *ret_wall_s, int32_t *ret_ns)
{
    struct moment m;
    if (!parse_moment(s, &m) || m.digits > 9 || m.s < TIME_RFC3339_MIN_S ||
        m.s > TIME_RFC3339_MAX_S)
        return false;
    *ret_wall_s = m.s;
    *ret_ns = m.ns;
    return true;
}
