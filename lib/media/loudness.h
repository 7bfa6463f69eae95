#pragma once
// How loud an item's sound is by EBU R 128 (ITU-R BS.1770-4), as it is measured once at ingest, and
// what to do about it: the gain of normalised renditions.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

#define MEDIA_LOUDNESS_SILENCE (-70000) // integrated_mlufs of what has no loudness
#define MEDIA_LOUDNESS_MAX_BYTES 256    // of its JSON

// Thousandths of LUFS, LU and dBTP.
struct media_loudness {
    int32_t integrated_mlufs, range_mlu, true_peak_mdb;
};

bool media_loudness_is_sane(const struct media_loudness *l);
// {"integrated_lufs":-18.060,"range_lu":0.000,"true_peak_dbtp":-18.060}
void media_loudness_print(const struct media_loudness *l, struct buf *ret);
// Exactly what is printed, of sane values.
// errors  INVALID_ARGUMENT
enum status media_loudness_parse(const void *json, size_t n, struct media_loudness *ret,
                                 struct err *err) MUST_CHECK;
// Thousandths of a decibel that bring it to MEDIA_LOUDNESS_TARGET, or as near as the true peak
// stays at -1 dBTP or below. Silence stays as it is.
int32_t media_loudness_gain_mdb(const struct media_loudness *l);
