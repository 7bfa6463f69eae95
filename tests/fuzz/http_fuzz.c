// What the HTTP edge parses itself: paths against patterns, escapes, conditions and ranges.
#include <string.h>

#include "base/arena.h"
#include "base/mem.h"
#include "fuzz.h"
#include "http/internal.h"

static char *text_of(struct arena *a, struct fuzz_input in)
{
    char *s = arena_strndup(a, (const char *)(in.n ? in.p : (const void *)""), in.n);
    FUZZ_CHECK(s);
    return s;
}

static void try_route(struct arena *a, struct fuzz_input in)
{
    static const char *const patterns[] = {"/", "/item/{id}",
                                           "/hls/{token}/{item}/{rendition}/{n}.m4s",
                                           "/{a}/{b}/{c}/{d}/{e}/{f}/{g}", "/x{a}y/z"};
    struct http_vars vars;
    unsigned which = fuzz_u8(&in);
    const char *pattern =
        which < N_ELEMENTS(patterns) ? patterns[which] : text_of(a, fuzz_part(&in));
    const char *path = text_of(a, in);
    if (!http_route_match(pattern, path, &vars))
        return;
    FUZZ_CHECK(vars.n <= HTTP_MAX_VARS);
    for (size_t i = 0; i < vars.n; i++) {
        const struct http_var *v = &vars.vars[i];
        FUZZ_CHECK(v->value >= path && v->value + v->value_len <= path + strlen(path));
        FUZZ_CHECK(!memchr(v->value, '/', v->value_len));
    }
}

static void try_unescape(struct arena *a, struct fuzz_input in)
{
    bool plus = fuzz_u8(&in) & 1;
    const char *s = text_of(a, in);
    char *out = http_unescape(a, s, strlen(s), plus);
    FUZZ_CHECK(!out || strlen(out) <= strlen(s));
}

static void try_conditions(struct arena *a, struct fuzz_input in)
{
    unsigned how = fuzz_u8(&in);
    int64_t size = how & 1 ? -1 : (int64_t)fuzz_u16(&in), first = 0, last = 0;
    const char *texts[4];
    for (unsigned i = 0; i < 4; i++) {
        struct fuzz_input part = i < 3 ? fuzz_part(&in) : in;
        texts[i] = how & 2U << i ? text_of(a, part) : NULL;
    }
    struct http_conditions c = {texts[0], texts[1], texts[2], texts[3]};
    enum http_outcome o =
        http_evaluate(&c, how & 32, how & 64, how & 128 ? "tag" : NULL, true, size, &first, &last);
    FUZZ_CHECK(o != HTTP_PARTIAL || (first >= 0 && first <= last && last < size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    AUTO(arena_free_p) struct arena *a = arena_new(16 << 20);
    FUZZ_CHECK(a);
    switch (fuzz_u8(&in) % 3) {
    case 0:
        try_route(a, in);
        break;
    case 1:
        try_unescape(a, in);
        break;
    default:
        try_conditions(a, in);
        break;
    }
    return 0;
}
