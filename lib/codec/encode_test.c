// What the way to a picture must not change, and what an uploader's and a title's choices do: films
// that the ffmpeg program makes.
#include "codec/codec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/str.h"
#include "media/plan.h"
#include "media/task.h"
#include "support/media.h"

static struct codec_source make_film(const char *args)
{
    struct stat st;
    int fd = test_media_make(args, ".mp4");
    if (fd < 0)
        fail_msg("ffmpeg %s: no film", args);
    assert_int_equal(fstat(fd, &st), 0);
    return (struct codec_source){.fd = fd, .size = st.st_size};
}

static struct media_plan *probe_as(const struct codec_source *s, enum media_preset preset)
{
    struct media_plan *p = NULL;
    struct err err = ERR_INIT;
    struct media_options o = {.preset = preset};
    if (codec_probe_as(s, &o, NULL, &p, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return p;
}

#define MAX_SEGMENTS 16
struct segments {
    uint64_t hash[MAX_SEGMENTS];
    size_t bytes;
    uint32_t dropped;
};

static enum status keep(void *ud, const struct media_segment_out *out, const void *bytes, size_t n,
                        struct err *err)
{
    struct segments *s = ud;
    (void)err;
    uint64_t h = 1469598103934665603U;
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)bytes)[i]) * 1099511628211U;
    assert_true(out->segment < MAX_SEGMENTS);
    s->hash[out->segment] = h;
    s->bytes += n;
    s->dropped += out->dropped;
    return STATUS_OK;
}

// The top rung's segments [first, first + n).
static void encode(const struct codec_source *src, const struct media_plan *p, uint32_t first,
                   uint32_t n, unsigned threads, struct segments *ret)
{
    struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                           .source_size = src->size,
                           .threads = threads,
                           .first_segment = first,
                           .n_segments = n,
                           .n_renditions = 1};
    struct codec_sink sink = {.segment = keep, .ud = ret};
    struct err err = ERR_INIT;
    if (codec_encode(src, p, &t, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

// A task that begins in the middle leaves out what no picture that it wants needs; one that begins
// at the keyframe leaves out nothing.
static void test_pictures_left_out_on_the_way_change_nothing(void **state)
{
    (void)state;
    static const char *const films[] = {
        "-f lavfi -i testsrc2=size=128x72:rate=25:duration=11 -c:v libx264 -bf 3 -g 400",
        "-f lavfi -i testsrc2=size=128x72:rate=25:duration=11 -c:v libx264 -bf 3 -g 400 "
        "-x264-params b-pyramid=none:ref=1:weightp=0",
        // Pictures shown for seconds: the last one before the task's first may be left out at
        // first.
        "-f lavfi -i testsrc2=size=128x72:rate=25:duration=12 -vf select=lt(n\\,40)+gt(n\\,190) "
        "-fps_mode vfr -c:v libx264 -bf 3 -g 400",
        "-f lavfi -i testsrc2=size=128x72:rate=25:duration=12 -vf select=not(mod(n\\,37)) "
        "-fps_mode vfr -c:v libx264 -bf 3 -b_strategy 0 -g 400",
    };
    for (size_t f = 0; f < N_ELEMENTS(films); f++) {
        struct codec_source s = make_film(films[f]);
        AUTO(media_plan_free_p) struct media_plan *p = probe_as(&s, MEDIA_PRESET_FAST);
        struct segments whole = {.bytes = 0}, alone = {.bytes = 0};
        uint32_t n = (uint32_t)p->video.n_segments;
        assert_in_range(n, 3, MAX_SEGMENTS);
        encode(&s, p, 0, n, 1, &whole);
        for (uint32_t i = 0; i < n; i++)
            encode(&s, p, i, 1, 1 + i % 2, &alone);
        for (uint32_t i = 0; i < n; i++)
            if (whole.hash[i] != alone.hash[i])
                fail_msg("%s: segment %u differs", films[f], i);
        close(s.fd);
    }
}

static void test_quality_is_a_recipe_of_its_own(void **state)
{
    (void)state;
    struct codec_source s = make_film(
        "-f lavfi -i testsrc2=size=128x72:rate=25:duration=2 -c:v libx264 -preset ultrafast");
    AUTO(media_plan_free_p) struct media_plan *fast = probe_as(&s, MEDIA_PRESET_FAST);
    AUTO(media_plan_free_p) struct media_plan *quality = probe_as(&s, MEDIA_PRESET_QUALITY);
    const struct media_rendition *f = &fast->renditions[0], *q = &quality->renditions[0];
    assert_non_null(strstr(f->recipe, "preset=veryfast"));
    assert_non_null(strstr(q->recipe, "preset=medium"));
    assert_memory_not_equal(f->recipe_digest, q->recipe_digest, sizeof(f->recipe_digest));
    struct segments a = {.bytes = 0}, b = {.bytes = 0};
    encode(&s, fast, 0, 1, 1, &a);
    encode(&s, quality, 0, 1, 1, &b);
    assert_true(a.bytes > 0 && b.bytes > 0 && a.hash[0] != b.hash[0]);
    close(s.fd);
}

static void test_ladder_is_the_titles_own(void **state)
{
    (void)state;
    static const struct {
        const char *film;
        size_t n_rungs; // of 360 and 240 lines
        uint8_t crf;    // of the first
    } rows[] = {
        {"-f lavfi -i color=gray:s=640x360:r=25:d=2 -c:v libx264 -preset ultrafast", 1, 23},
        {"-f lavfi -i testsrc2=size=640x360:rate=25:duration=2 -c:v libx264 -preset ultrafast", 2,
         23},
        {"-f lavfi -i testsrc2=size=640x360:rate=25:duration=2 -vf noise=alls=60:allf=t -c:v "
         "libx264 "
         "-preset ultrafast",
         2, 26},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct codec_source s = make_film(rows[i].film);
        AUTO(media_plan_free_p) struct media_plan *p = probe_as(&s, MEDIA_PRESET_FAST);
        AUTO(media_plan_free_p) struct media_plan *again = probe_as(&s, MEDIA_PRESET_FAST);
        size_t n = 0;
        while (n < p->n_renditions && !p->renditions[n].lazy)
            n++;
        if (n != rows[i].n_rungs || p->renditions[0].crf != rows[i].crf)
            fail_msg("%s: %zu rungs, CRF %u", rows[i].film, n, (unsigned)p->renditions[0].crf);
        for (size_t k = 0; k < n; k++)
            assert_string_equal(p->renditions[k].recipe, again->renditions[k].recipe);
        close(s.fd);
    }
}

static int set_up(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    return codec_preload(&err) == STATUS_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pictures_left_out_on_the_way_change_nothing),
        cmocka_unit_test(test_quality_is_a_recipe_of_its_own),
        cmocka_unit_test(test_ladder_is_the_titles_own),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
