#include "base/str.h"

#include <string.h>

// Decimal digits at s, stopping at the first other character. False when there are none or the
// value leaves int64_t.
static bool parse_digits(const char **s, bool negative, int64_t *ret)
{
    const char *p = *s;
    int64_t v = 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        int d = *p - '0';
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, negative ? -d : d, &v))
            return false;
    }
    if (p == *s)
        return false;
    *s = p;
    *ret = v;
    return true;
}

enum status str_parse_i64(const char *s, int64_t min, int64_t max, int64_t *ret, struct err *err)
{
    const char *p = s ? s : "";
    bool negative = *p == '-';
    int64_t v;
    p += negative;
    if (!parse_digits(&p, negative, &v) || *p != '\0')
        return err_set(err, STATUS_INVALID_ARGUMENT, "'%s' is not a whole number", s ? s : "");
    if (v < min || v > max)
        return err_set(err, STATUS_OUT_OF_RANGE, "%s is outside %lld..%lld", s, (long long)min,
                       (long long)max);
    *ret = v;
    return STATUS_OK;
}

struct unit {
    const char *suffix;
    int64_t factor;
};

static bool parse_with_unit(const char *s, const struct unit *units, size_t n, int64_t *ret)
{
    const char *p = s ? s : "";
    int64_t v;
    if (!parse_digits(&p, false, &v))
        return false;
    for (size_t i = 0; i < n; i++)
        if (strcmp(p, units[i].suffix) == 0)
            return !__builtin_mul_overflow(v, units[i].factor, ret);
    return false;
}

enum status str_parse_duration_ms(const char *s, int64_t *ret, struct err *err)
{
    static const struct unit units[] = {
        {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000},
    };
    int64_t v;
    if (!parse_with_unit(s, units, N_ELEMENTS(units), &v))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "'%s' is not a duration such as 250ms, 30s, 15m, 6h or 30d", s ? s : "");
    *ret = v;
    return STATUS_OK;
}

enum status str_parse_bytes(const char *s, int64_t *ret, struct err *err)
{
    static const struct unit units[] = {
        {"", 1}, {"K", 1LL << 10}, {"M", 1LL << 20}, {"G", 1LL << 30}, {"T", 1LL << 40},
    };
    int64_t v;
    if (!parse_with_unit(s, units, N_ELEMENTS(units), &v))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "'%s' is not a size such as 512, 64K, 16M or 2G", s ? s : "");
    *ret = v;
    return STATUS_OK;
}

bool str_eq(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

bool str_starts_with(const char *s, const char *prefix)
{
    return s && strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_ends_with(const char *s, const char *suffix)
{
    size_t n = s ? strlen(s) : 0, m = strlen(suffix);
    return s && n >= m && memcmp(s + n - m, suffix, m) == 0;
}

size_t str_utf8_char(const void *s, size_t n)
{
    const unsigned char *p = s;
    if (n == 0)
        return 0;
    unsigned char c = p[0];
    if (c < 0x80)
        return 1;
    size_t want = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (c < 0xc2 || c > 0xf4 || n < want)
        return 0;
    // The second byte's range keeps out overlong forms, surrogates and what is past U+10FFFF.
    unsigned char lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    unsigned char hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < lo || p[1] > hi)
        return 0;
    for (size_t i = 2; i < want; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return want;
}

bool str_is_utf8(const void *s, size_t n)
{
    const unsigned char *p = s;
    while (n > 0) {
        size_t len = str_utf8_char(p, n);
        if (len == 0)
            return false;
        p += len;
        n -= len;
    }
    return true;
}

bool str_copy(char *dst, size_t size, const char *src)
{
    size_t n = strlen(src);
    if (size == 0)
        return false;
    if (n < size) {
        memcpy(dst, src, n + 1);
        return true;
    }
    size_t cut = size - 1;
    while (cut > 0 && ((unsigned char)src[cut] & 0xc0) == 0x80)
        cut--;
    memcpy(dst, src, cut);
    dst[cut] = '\0';
    return false;
}

void str_hex(char *dst, const void *bytes, size_t n)
{
    static const char hex_digits[] = "0123456789abcdef";
    const unsigned char *p = bytes;
    for (size_t i = 0; i < n; i++) {
        *dst++ = hex_digits[p[i] >> 4];
        *dst++ = hex_digits[p[i] & 15];
    }
    *dst = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool str_unhex(void *dst, size_t n, const char *hex)
{
    unsigned char *out = dst;
    if (!hex || strlen(hex) != 2 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        int hi = hex_value(hex[2 * i]), lo = hex_value(hex[2 * i + 1]);
        if (hi < 0 || lo < 0)
            return false;
        out[i] = (unsigned char)(hi << 4 | lo);
    }
    return true;
}

size_t str_b64_len(size_t n)
{
    return n / 3 * 4 + (n % 3 ? n % 3 + 1 : 0);
}

void str_b64(char *dst, const void *bytes, size_t n)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const unsigned char *p = bytes;
    for (; n >= 3; n -= 3, p += 3) {
        *dst++ = letters[p[0] >> 2];
        *dst++ = letters[(p[0] & 3) << 4 | p[1] >> 4];
        *dst++ = letters[(p[1] & 15) << 2 | p[2] >> 6];
        *dst++ = letters[p[2] & 63];
    }
    if (n > 0) {
        *dst++ = letters[p[0] >> 2];
        *dst++ = letters[(p[0] & 3) << 4 | (n == 2 ? p[1] >> 4 : 0)];
    }
    if (n == 2)
        *dst++ = letters[(p[1] & 15) << 2];
    *dst = '\0';
}

static int b64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '-' ? 62 : c == '_' ? 63 : -1;
}

bool str_unb64(void *dst, size_t cap, const char *s, size_t s_len, size_t *ret_len)
{
    unsigned char *out = dst;
    size_t n = s_len / 4 * 3 + (s_len % 4 ? s_len % 4 - 1 : 0), at = 0;
    if (s_len % 4 == 1 || n > cap)
        return false;
    unsigned bits = 0, n_bits = 0;
    for (size_t i = 0; i < s_len; i++) {
        int v = b64_value(s[i]);
        if (v < 0)
            return false;
        bits = (bits << 6 | (unsigned)v) & 0xfffU;
        n_bits += 6;
        if (n_bits >= 8) {
            n_bits -= 8;
            out[at++] = (unsigned char)(bits >> n_bits);
        }
    }
    if ((bits & ((1U << n_bits) - 1)) != 0)
        return false;
    *ret_len = at;
    return true;
}
