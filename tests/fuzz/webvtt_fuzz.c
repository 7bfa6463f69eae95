// Subtitles: cleaning of any text, ASS events, and the reader of the plain form.
#include <string.h>

#include "fuzz.h"
#include "media/webvtt.h"

enum { LIMIT = 1 << 20 };

static void check_clean(const struct buf *b)
{
    struct buf again;
    buf_init(&again, LIMIT);
    media_webvtt_clean(buf_str(b), b->len, &again);
    FUZZ_CHECK(again.failed ||
               (again.len == b->len && memcmp(buf_str(&again), buf_str(b), b->len) == 0));
    FUZZ_CHECK(!b->len || (!strstr(buf_str(b), "-->") && !strstr(buf_str(b), "\n\n")));
    buf_done(&again);
}

// What was cleaned is a cue that is written, read back, and cut.
static void check_cue(const struct buf *text, const char *settings)
{
    struct media_cue cue = {.start_ms = 5,
                            .end_ms = 6,
                            .settings = settings,
                            .settings_len = strlen(settings),
                            .text = buf_str(text),
                            .text_len = text->len};
    struct media_webvtt w;
    struct err err = ERR_INIT;
    struct buf b, slice;
    if (text->len == 0)
        return;
    buf_init(&b, LIMIT);
    buf_init(&slice, LIMIT);
    FUZZ_CHECK(media_webvtt_write(&cue, 1, &b, &err) == STATUS_OK);
    FUZZ_CHECK(media_webvtt_parse(b.data, b.len, &w, &err) == STATUS_OK && w.n == 1);
    FUZZ_CHECK(media_webvtt_slice(&w, 0, 5001, &slice, &err) == STATUS_OK);
    media_webvtt_plain(&w.cues[0], &slice);
    media_webvtt_done(&w);
    buf_done(&b);
    buf_done(&slice);
}

static void try_text(struct fuzz_input in, bool ass)
{
    char settings[MEDIA_CUE_SETTINGS];
    struct buf b;
    size_t n = fuzz_u8(&in);
    struct fuzz_input set = {in.p, n < in.n ? n : in.n};
    in.p += set.n;
    in.n -= set.n;
    buf_init(&b, LIMIT);
    if (in.n > MEDIA_MAX_CUE_BYTES)
        in.n = MEDIA_MAX_CUE_BYTES;
    media_webvtt_clean_settings((const char *)set.p, set.n, settings);
    if (ass)
        media_webvtt_from_ass((const char *)in.p, in.n, 384, 288, &b, settings);
    else
        media_webvtt_clean((const char *)in.p, in.n, &b);
    FUZZ_CHECK(!b.failed);
    check_clean(&b);
    check_cue(&b, settings);
    buf_done(&b);
}

static void try_file(struct fuzz_input in)
{
    struct media_webvtt w;
    struct err err = ERR_INIT;
    struct buf b;
    if (media_webvtt_parse(in.p, in.n, &w, &err) != STATUS_OK)
        return;
    buf_init(&b, LIMIT);
    FUZZ_CHECK(media_webvtt_write(w.cues, w.n, &b, &err) == STATUS_OK);
    FUZZ_CHECK(b.len == in.n && memcmp(b.data, in.p, b.len) == 0);
    buf_done(&b);
    media_webvtt_done(&w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    unsigned what = fuzz_u8(&in) % 3;
    if (what < 2)
        try_text(in, what == 1);
    else
        try_file(in);
    return 0;
}
