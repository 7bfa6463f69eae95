// Segments as they should be pass; other pictures, damage and other lengths are noticed.
#include "codec/codec.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "media/checks.h"

#define MAX_SEGMENTS 8
#define MAX_BYTES (4U << 20)

struct film {
    struct codec_source src;
    struct media_plan *plan;
    struct buf segments[MEDIA_MAX_RENDITIONS][MAX_SEGMENTS]; // init segment in front
};
struct world {
    struct film film, other; // of one size and length
};

static enum status keep(void *ud, const struct media_segment_out *out, const void *bytes, size_t n,
                        struct err *err)
{
    struct film *f = ud;
    (void)err;
    assert_true(out->segment < MAX_SEGMENTS);
    struct buf *b = &f->segments[out->rendition][out->segment];
    const struct media_rendition *r = &f->plan->renditions[out->rendition];
    assert_true(buf_append(b, r->init, r->init_len) && buf_append(b, bytes, n));
    return STATUS_OK;
}

// All renditions of one kind that are made without being asked for.
static void task_of(const struct media_plan *p, enum media_kind kind, struct media_task *t)
{
    *t = (struct media_task){.kind = MEDIA_TASK_CHUNK, .threads = 1};
    for (size_t i = 0; i < p->n_renditions; i++)
        if (p->renditions[i].kind == kind && !p->renditions[i].lazy)
            t->renditions[t->n_renditions++] = (uint8_t)i;
    t->n_segments = (uint32_t)media_rendition_grid(p, t->renditions[0])->n_segments;
    assert_in_range(t->n_segments, 1, MAX_SEGMENTS);
}

static void encode(struct film *f, enum media_kind kind)
{
    struct media_task t;
    struct err err = ERR_INIT;
    const struct codec_sink sink = {.segment = keep, .ud = f};
    task_of(f->plan, kind, &t);
    t.source_size = f->src.size;
    if (codec_encode(&f->src, f->plan, &t, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

static void make_film(struct film *f, const char *picture)
{
    char path[] = "/tmp/cauce-verify-XXXXXX", command[512];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    snprintf(command, sizeof command,
             "ffmpeg -y -v error -f lavfi -i '%s=size=128x72:rate=25:duration=5' -f lavfi -i "
             "sine=frequency=440:sample_rate=48000:duration=5 -c:v libx264 -preset ultrafast -g 25 "
             "-pix_fmt yuv420p -c:a aac -f mp4 %s",
             picture, path);
    assert_int_equal(system(command), 0);
    struct stat st;
    f->src.fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(fstat(f->src.fd, &st), 0);
    f->src.size = st.st_size;
    unlink(path);
    struct err err = ERR_INIT;
    if (codec_probe(&f->src, NULL, &f->plan, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < MEDIA_MAX_RENDITIONS; i++)
        for (size_t k = 0; k < MAX_SEGMENTS; k++)
            buf_init(&f->segments[i][k], MAX_BYTES);
    encode(f, MEDIA_VIDEO);
    encode(f, MEDIA_AUDIO);
}

static void drop_film(struct film *f)
{
    for (size_t i = 0; i < MEDIA_MAX_RENDITIONS; i++)
        for (size_t k = 0; k < MAX_SEGMENTS; k++)
            buf_done(&f->segments[i][k]);
    media_plan_free(f->plan);
    close(f->src.fd);
}

static int setup(void **state)
{
    struct world *w = mem_alloc(sizeof *w);
    assert_int_equal(codec_preload(NULL), STATUS_OK);
    make_film(&w->film, "testsrc2");
    make_film(&w->other, "smptebars");
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    drop_film(&w->film);
    drop_film(&w->other);
    mem_free(w);
    return 0;
}

// The source with a table and these segments behind it.
static struct codec_source with_segments(const struct film *f, const struct media_task *t,
                                         const struct buf *const *segments)
{
    struct codec_source s = {.fd = memfd_create("verify", MFD_CLOEXEC)};
    AUTO(mem_free_p) uint8_t *source = mem_alloc((size_t)f->src.size);
    assert_int_equal(pread(f->src.fd, source, (size_t)f->src.size, 0), f->src.size);
    assert_int_equal(pwrite(s.fd, source, (size_t)f->src.size, 0), f->src.size);
    size_t n = (size_t)t->n_renditions * t->n_segments;
    struct buf tail;
    buf_init(&tail, 64U << 20);
    for (size_t i = 0; i < n; i++)
        buf_put_be32(&tail, (uint32_t)segments[i]->len);
    for (size_t i = 0; i < n; i++)
        buf_append(&tail, segments[i]->data, segments[i]->len);
    assert_false(tail.failed);
    int64_t at = media_checks_offset(f->src.size);
    assert_int_equal(pwrite(s.fd, tail.data, tail.len, at), tail.len);
    s.size = at + (int64_t)tail.len;
    buf_done(&tail);
    return s;
}

// One segment of the film's own is replaced by another; NULL: none is.
static enum status verify(const struct film *f, enum media_kind kind, uint32_t segment,
                          const struct buf *instead, struct err *err)
{
    struct media_task t;
    const struct buf *segments[MEDIA_MAX_RENDITIONS * MAX_SEGMENTS];
    task_of(f->plan, kind, &t);
    for (size_t i = 0; i < t.n_renditions; i++)
        for (uint32_t k = 0; k < t.n_segments; k++)
            segments[i * t.n_segments + k] =
                instead && i == 0 && k == segment ? instead : &f->segments[t.renditions[i]][k];
    struct codec_source s = with_segments(f, &t, segments);
    t.kind = MEDIA_TASK_VERIFY;
    t.source_size = s.size;
    const struct codec_sink sink = {.segment = NULL};
    enum status st = codec_verify(&s, f->plan, &t, &sink, err);
    close(s.fd);
    return st;
}

static void expect_refused(const struct film *f, enum media_kind kind, uint32_t segment,
                           const struct buf *instead, const char *why)
{
    struct err err = ERR_INIT;
    assert_int_equal(verify(f, kind, segment, instead, &err), STATUS_INVALID_ARGUMENT);
    if (!strstr(err.msg, why))
        fail_msg("\"%s\" where \"%s\" was expected", err.msg, why);
}

static void test_right_segments_pass(void **state)
{
    struct world *w = *state;
    struct err err = ERR_INIT;
    if (verify(&w->film, MEDIA_VIDEO, 0, NULL, &err) != STATUS_OK ||
        verify(&w->film, MEDIA_AUDIO, 0, NULL, &err) != STATUS_OK ||
        verify(&w->other, MEDIA_VIDEO, 0, NULL, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

static void test_pictures_of_another_film_are_refused(void **state)
{
    struct world *w = *state;
    size_t top = 0;
    for (uint32_t k = 0; k < w->film.plan->video.n_segments; k++)
        expect_refused(&w->film, MEDIA_VIDEO, k, &w->other.segments[top][k],
                       "its pictures are not the film's");
}

static void test_segment_of_another_length_is_refused(void **state)
{
    struct world *w = *state;
    const struct media_grid *g = &w->film.plan->video;
    assert_true(g->n_segments > 1 && g->segments[0].duration != g->segments[1].duration);
    expect_refused(&w->film, MEDIA_VIDEO, 0, &w->film.segments[0][1], "where the plan has");
}

static void test_damaged_segments_are_refused(void **state)
{
    struct world *w = *state;
    int sound = -1;
    for (size_t i = 0; sound < 0 && i < w->film.plan->n_renditions; i++)
        sound = w->film.plan->renditions[i].kind == MEDIA_AUDIO ? (int)i : -1;
    const size_t renditions[] = {0, (size_t)sound};
    for (size_t i = 0; i < N_ELEMENTS(renditions); i++) {
        const struct buf *right = &w->film.segments[renditions[i]][0];
        struct buf wrong;
        buf_init(&wrong, MAX_BYTES);
        assert_true(buf_append(&wrong, right->data, right->len));
        for (size_t k = wrong.len / 2; k < wrong.len * 3 / 4; k++)
            wrong.data[k] ^= 0x5a;
        struct err err = ERR_INIT;
        enum media_kind kind = i ? MEDIA_AUDIO : MEDIA_VIDEO;
        assert_int_equal(verify(&w->film, kind, 0, &wrong, &err), STATUS_INVALID_ARGUMENT);
        buf_done(&wrong);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right_segments_pass),
        cmocka_unit_test(test_pictures_of_another_film_are_refused),
        cmocka_unit_test(test_segment_of_another_length_is_refused),
        cmocka_unit_test(test_damaged_segments_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
