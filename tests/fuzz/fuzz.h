#pragma once
// Fuzz targets: each program takes one input at a time, from libFuzzer (preset fuzz, which
// `tests/run --fuzz` builds) or, in every other build, from the files of its corpus (replay.c).
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

// What must be so, whatever came in. assert() would be gone from a release build.
#define FUZZ_CHECK(x)                                                                              \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

// Takes numbers from the front of an input; 0 when it is used up.
struct fuzz_input {
    const uint8_t *p;
    size_t n;
};
static inline uint8_t fuzz_u8(struct fuzz_input *in)
{
    if (in->n == 0)
        return 0;
    in->n--;
    return *in->p++;
}
static inline unsigned fuzz_u16(struct fuzz_input *in)
{
    unsigned hi = fuzz_u8(in);
    return hi << 8 | fuzz_u8(in);
}
// The next part: a length of two bytes and as much of that as there is.
static inline struct fuzz_input fuzz_part(struct fuzz_input *in)
{
    size_t n = fuzz_u16(in);
    struct fuzz_input part = {in->p, n < in->n ? n : in->n};
    in->p += part.n;
    in->n -= part.n;
    return part;
}
