// Numbers, truths and enums: from a value of JSON, or from text.
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/str.h"
#include "json/internal.h"

bool json_scalar_i64(const struct scalar *s, int64_t min, int64_t max, int64_t *ret)
{
    int64_t v;
    double d;
    if (s->text) {
        if (str_parse_i64(s->text, min, max, &v, NULL) != STATUS_OK)
            return false;
    } else if (!json_get_i64(s->json, &v)) {
        // 1.0 and 1e3 are whole numbers as well; 2^63 is the first that does not fit
        if (!json_get_double(s->json, &d) || !(d >= -0x1p63 && d < 0x1p63) || trunc(d) != d)
            return false;
        v = (int64_t)d;
    }
    if (v < min || v > max)
        return false;
    *ret = v;
    return true;
}

bool json_scalar_u64(const struct scalar *s, uint64_t *ret)
{
    int64_t v;
    if (json_scalar_i64(s, 0, INT64_MAX, &v)) {
        *ret = (uint64_t)v;
        return true;
    }
    double d;
    if (!s->text && json_get_double(s->json, &d) && d >= 0x1p63 && d < 0x1p64) {
        *ret = (uint64_t)d; // doubles of that size are whole
        return true;
    }
    if (!s->text || s->len > 20 || s->len == 0 || strspn(s->text, "0123456789") != s->len)
        return false;
    uint64_t u = 0;
    for (const char *p = s->text; *p; p++)
        if (__builtin_mul_overflow(u, 10, &u) ||
            __builtin_add_overflow(u, (uint64_t)(*p - '0'), &u))
            return false;
    *ret = u;
    return true;
}

bool json_scalar_double(const struct scalar *s, double *ret)
{
    static const struct {
        const char *name;
        double value;
    } special[] = {{"NaN", (double)NAN}, {"Infinity", HUGE_VAL}, {"-Infinity", -HUGE_VAL}};
    if (!s->text)
        return json_get_double(s->json, ret);
    for (size_t i = 0; i < N_ELEMENTS(special); i++)
        if (str_eq(s->text, special[i].name)) {
            *ret = special[i].value;
            return true;
        }
    if (s->len == 0 || strspn(s->text, "0123456789+-.eE") != s->len)
        return false;
    char *end;
    *ret = strtod(s->text, &end);
    return *end == '\0' && isfinite(*ret);
}

// The mapping has no text for numbers that a float cannot hold.
bool json_scalar_float(const struct scalar *s, float *ret)
{
    double d;
    if (!json_scalar_double(s, &d) || (isfinite(d) && !isfinite((float)d)))
        return false;
    *ret = (float)d;
    return true;
}

bool json_scalar_bool(const struct scalar *s, protobuf_c_boolean *ret)
{
    bool b;
    if (!s->json && (str_eq(s->text, "true") || str_eq(s->text, "false"))) {
        *ret = s->text[0] == 't';
        return true;
    }
    if (!json_get_bool(s->json, &b))
        return false;
    *ret = b;
    return true;
}

// Numbers without a name are kept: a newer sender may know what they mean.
bool json_scalar_enum(const struct scalar *s, const ProtobufCEnumDescriptor *d, int *ret)
{
    int64_t v;
    const ProtobufCEnumValue *e =
        s->text ? protobuf_c_enum_descriptor_get_value_by_name(d, s->text) : NULL;
    if (!e && !json_scalar_i64(s, INT32_MIN, INT32_MAX, &v))
        return false;
    *ret = e ? e->value : (int)v;
    return true;
}
