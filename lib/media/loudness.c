#include "media/loudness.h"

#include <string.h>

#include "base/mem.h"
#include "media/plan.h"

#define MAX_PEAK_MDB (-1000) // after the gain: encoders overshoot a little
#define MAX_GAIN_MDB 60000

static const struct {
    const char *name;
    size_t offset;
    int32_t least, most;
} fields[] = {
    {"{\"integrated_lufs\":", offsetof(struct media_loudness, integrated_mlufs),
     MEDIA_LOUDNESS_SILENCE, 40000},
    {",\"range_lu\":", offsetof(struct media_loudness, range_mlu), 0, 120000},
    {",\"true_peak_dbtp\":", offsetof(struct media_loudness, true_peak_mdb), -99000, 40000},
};

static int32_t value(const struct media_loudness *l, size_t i)
{
    int32_t v;
    memcpy(&v, (const char *)l + fields[i].offset, sizeof(v));
    return v;
}

bool media_loudness_is_sane(const struct media_loudness *l)
{
    for (size_t i = 0; i < N_ELEMENTS(fields); i++)
        if (value(l, i) < fields[i].least || value(l, i) > fields[i].most)
            return false;
    return true;
}

void media_loudness_print(const struct media_loudness *l, struct buf *ret)
{
    for (size_t i = 0; i < N_ELEMENTS(fields); i++) {
        int64_t v = value(l, i), size = v < 0 ? -v : v;
        buf_printf(ret, "%s%s%lld.%03lld", fields[i].name, v < 0 ? "-" : "",
                   (long long)(size / 1000), (long long)(size % 1000));
    }
    buf_puts(ret, "}");
}

// Digits are all that is looked for: what else there is shows when it is printed again.
static int32_t read_number(const char *p, const char *end)
{
    bool minus = p < end && *p == '-';
    int32_t v = 0;
    for (; p < end && *p != ',' && *p != '}'; p++)
        if (*p >= '0' && *p <= '9' && v < 1000000)
            v = v * 10 + (*p - '0');
    return minus ? -v : v;
}

enum status media_loudness_parse(const void *json, size_t n, struct media_loudness *ret,
                                 struct err *err)
{
    const char *p = json, *end = p + n;
    struct media_loudness l = {0};
    bool ok = n <= MEDIA_LOUDNESS_MAX_BYTES;
    for (size_t i = 0; ok && i < N_ELEMENTS(fields); i++) {
        size_t len = strlen(fields[i].name);
        const char *at = memmem(p, (size_t)(end - p), fields[i].name, len);
        ok = at != NULL;
        int32_t v = ok ? read_number(at + len, end) : 0;
        memcpy((char *)&l + fields[i].offset, &v, sizeof(v));
        p = ok ? at + len : p;
    }
    struct buf again;
    buf_init(&again, MEDIA_LOUDNESS_MAX_BYTES);
    media_loudness_print(&l, &again);
    ok = ok && media_loudness_is_sane(&l) && !again.failed && again.len == n &&
         memcmp(again.data, json, n) == 0;
    buf_done(&again);
    if (!ok)
        return err_set(err, STATUS_INVALID_ARGUMENT, "loudness: not in the plain form");
    *ret = l;
    return STATUS_OK;
}

int32_t media_loudness_gain_mdb(const struct media_loudness *l)
{
    if (l->integrated_mlufs <= MEDIA_LOUDNESS_SILENCE)
        return 0;
    int32_t gain = MEDIA_LOUDNESS_TARGET * 1000 - l->integrated_mlufs;
    int32_t most = MAX_PEAK_MDB - l->true_peak_mdb;
    gain = gain < most ? gain : most;
    return gain < -MAX_GAIN_MDB ? -MAX_GAIN_MDB : gain > MAX_GAIN_MDB ? MAX_GAIN_MDB : gain;
}
