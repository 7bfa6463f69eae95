// child_run() with the real cauce-codec: ordinary files, hostile files, escape attempts.
#include "child.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/time.h"
#include "media/cmaf.h"
#include "support/media.h"

struct source {
    const uint8_t *bytes; // or
    int fd;
    int64_t size;
    enum status fails; // instead of bytes
    uint32_t window;   // blocks; 0: as many as the child likes
    uint32_t codecs;   // that the probe is asked for, bits
    int64_t most_held; // bytes of the source in memory, as seen when more was asked for
    size_t n_segments;
    uint64_t hash; // of all segments' bytes, in order of coming
    struct media_plan *plan;
};

// Memory behind the one source that a child of ours has just now.
static int64_t held_bytes(void)
{
    int64_t held = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char link[64] = "";
        struct stat st;
        if (readlinkat(dirfd(d), e->d_name, link, sizeof(link) - 1) > 0 &&
            strstr(link, "memfd:cauce-source") && fstat(atoi(e->d_name), &st) == 0)
            held += (int64_t)st.st_blocks * 512;
    }
    closedir(d);
    return held;
}

static enum status fetch(void *ud, int64_t offset, size_t len, void *dst, struct err *err)
{
    struct source *s = ud;
    int64_t held = s->window ? held_bytes() : 0;
    if (held > s->most_held)
        s->most_held = held;
    if (s->fails)
        return err_set(err, s->fails, "the test says no");
    if (s->bytes)
        memcpy(dst, s->bytes + offset, len);
    else if (pread(s->fd, dst, len, offset) != (ssize_t)len)
        return err_set(err, STATUS_DATA_LOSS, "short read");
    return STATUS_OK;
}

static enum status segment(void *ud, const struct media_segment_out *out, const void *bytes,
                           size_t n, struct err *err)
{
    struct source *s = ud;
    (void)err;
    s->n_segments++;
    uint64_t h = 1469598103934665603U + out->rendition * 1000 + out->segment;
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)bytes)[i]) * 1099511628211U;
    s->hash += h; // of any order
    return STATUS_OK;
}

static struct codec_host *host;

static struct codec_host *host_of(const char *program)
{
    char path[512];
    const char *dir = getenv("CAUCE_BIN_DIR");
    snprintf(path, sizeof(path), "%s/%s", dir ? dir : ".", program);
    struct codec_host *h = codec_host_new(program[0] == '/' ? program : path);
    assert_non_null(h);
    return h;
}

static struct child_job job_for(struct source *s, const struct media_task *t, int64_t ms)
{
    return (struct child_job){.host = host,
                              .task = t,
                              .plan = s->plan,
                              .deadline_us = time_deadline_in_ms(ms),
                              .cancel_fd = -1,
                              .ud = s,
                              .fetch = fetch,
                              .segment = segment};
}

static struct child_result probe(struct source *s)
{
    struct media_task t = {.kind = MEDIA_TASK_PROBE,
                           .source_size = s->size,
                           .threads = 1,
                           .options = {.video_codecs = s->codecs},
                           .window_blocks = s->window};
    struct child_job job = job_for(s, &t, 60000);
    struct child_result r;
    child_run(&job, &r);
    return r;
}

static bool open_media(const char *name, struct source *s)
{
    struct stat st;
    int fd = test_media_open(name);
    if (fd < 0)
        return false;
    assert_int_equal(fstat(fd, &st), 0);
    *s = (struct source){.fd = fd, .size = st.st_size};
    return true;
}

// ---- ordinary files ----

static void test_probe_and_chunks_of_a_film_agree_with_the_plan(void **state)
{
    (void)state;
    struct source s;
    if (!open_media("video/nasa_2video_2audio_2movtext.mp4", &s))
        skip();
    struct child_result p = probe(&s);
    if (p.outcome != CHILD_OK)
        fail_msg("%s: %s", child_outcome_name(p.outcome), p.text);
    assert_int_equal(p.plan->kind, MEDIA_VIDEO);
    s.plan = p.plan;
    for (size_t r = 0; r < p.plan->n_renditions; r++) {
        const struct media_grid *g = media_rendition_grid(p.plan, r);
        uint64_t by_chunk = 0;
        for (int pass = 0; pass < 2; pass++) { // chunk by chunk, then at once with two threads
            s.hash = s.n_segments = 0;
            for (size_t c = 0; c < (pass ? 1 : g->n_chunks); c++) {
                struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                                       .source_size = s.size,
                                       .threads = pass ? 2 : 1,
                                       .first_segment = pass ? 0 : g->chunks[c].first_segment,
                                       .n_segments =
                                           pass ? (uint32_t)g->n_segments : g->chunks[c].n_segments,
                                       .n_renditions = 1,
                                       .renditions = {(uint8_t)r},
                                       .plan = p.plan_bytes,
                                       .plan_len = p.plan_len};
                struct child_job job = job_for(&s, &t, 60000);
                struct child_result ret;
                child_run(&job, &ret);
                if (ret.outcome != CHILD_OK)
                    fail_msg("%s: %s", child_outcome_name(ret.outcome), ret.text);
                assert_true(ret.cpu_us > 0 && ret.fetched_bytes > 0);
                child_result_done(&ret);
            }
            assert_int_equal(s.n_segments, g->n_segments);
            if (pass == 0)
                by_chunk = s.hash;
        }
        assert_true(by_chunk == s.hash);
    }
    child_result_done(&p);
    close(s.fd);
}

// Their encoders do more than x264: threads, priorities, questions about the machine.
static void test_other_codecs_work_confined(void **state)
{
    (void)state;
    static const char *const ids[] = {"v240-hevc", "v240-av1", "v240-vp9", "vcopy"};
    struct source s;
    if (!open_media("video/nasa_2video_2audio_2movtext.mp4", &s))
        skip();
    s.codecs = 1U << MEDIA_CODEC_HEVC | 1U << MEDIA_CODEC_AV1 | 1U << MEDIA_CODEC_VP9;
    struct child_result p = probe(&s);
    assert_int_equal(p.outcome, CHILD_OK);
    s.plan = p.plan;
    for (size_t i = 0; i < N_ELEMENTS(ids); i++) {
        int r = media_plan_find(p.plan, ids[i]);
        assert_true(r >= 0);
        struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                               .source_size = s.size,
                               .threads = 2,
                               .n_segments = 1,
                               .n_renditions = 1,
                               .renditions = {(uint8_t)r},
                               .plan = p.plan_bytes,
                               .plan_len = p.plan_len};
        struct child_job job = job_for(&s, &t, 60000);
        struct child_result ret;
        s.n_segments = 0;
        child_run(&job, &ret);
        if (ret.outcome != CHILD_OK)
            fail_msg("%s: %s: %s", ids[i], child_outcome_name(ret.outcome), ret.text);
        assert_int_equal(s.n_segments, 1);
        child_result_done(&ret);
    }
    child_result_done(&p);
    close(s.fd);
}

// Sound and the lowest picture of the film's segments, with the window of s.
static uint64_t make_segments(struct source *s, const struct child_result *p, int64_t *ret_fetched)
{
    s->hash = s->n_segments = 0;
    *ret_fetched = 0;
    for (size_t r = p->plan->n_renditions; r-- > p->plan->n_renditions - 2;) {
        struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                               .source_size = s->size,
                               .threads = 1,
                               .window_blocks = s->window,
                               .n_segments = (uint32_t)media_rendition_grid(p->plan, r)->n_segments,
                               .n_renditions = 1,
                               .renditions = {(uint8_t)r},
                               .plan = p->plan_bytes,
                               .plan_len = p->plan_len};
        struct child_job job = job_for(s, &t, 60000);
        struct child_result ret;
        child_run(&job, &ret);
        if (ret.outcome != CHILD_OK)
            fail_msg("%s: %s", child_outcome_name(ret.outcome), ret.text);
        *ret_fetched += ret.fetched_bytes;
        child_result_done(&ret);
    }
    return s->hash;
}

// The same plan and segments, without the film ever being in memory.
static void test_film_larger_than_the_window_is_read_through_it(void **state)
{
    (void)state;
    static const char *const names[] = {"video/bbb_480p_3audio_3subs.mkv",
                                        "video/underwater_640x480_mjpeg_mp2.mov"};
    for (size_t i = 0; i < N_ELEMENTS(names); i++) {
        struct source s;
        int64_t fetched, narrow_fetched;
        if (!open_media(names[i], &s))
            skip();
        struct child_result wide = probe(&s);
        assert_int_equal(wide.outcome, CHILD_OK);
        s.plan = wide.plan;
        uint64_t hash = make_segments(&s, &wide, &fetched);
        s.window = MEDIA_MIN_WINDOW_BLOCKS;
        assert_true(s.size > (int64_t)s.window * MEDIA_READ_BLOCK);
        struct child_result narrow = probe(&s);
        assert_int_equal(narrow.outcome, CHILD_OK);
        assert_int_equal(narrow.plan_len, wide.plan_len);
        assert_memory_equal(narrow.plan_bytes, wide.plan_bytes, wide.plan_len);
        assert_true(make_segments(&s, &wide, &narrow_fetched) == hash);
        assert_true(i == 0 || narrow_fetched > fetched); // this one goes back for its sound
        assert_true(s.most_held > 0 && s.most_held <= (int64_t)s.window * MEDIA_READ_BLOCK);
        child_result_done(&wide);
        child_result_done(&narrow);
        close(s.fd);
    }
}

static void test_failed_fetch_is_source(void **state)
{
    (void)state;
    static const uint8_t some[1000] = {0};
    struct source s = {.bytes = some, .size = sizeof(some), .fails = STATUS_NOT_FOUND};
    struct child_result r = probe(&s);
    assert_int_equal(r.outcome, CHILD_SOURCE);
    assert_int_equal(r.status, STATUS_NOT_FOUND);
    assert_non_null(strstr(r.text, "the test says no"));
    child_result_done(&r);
}

static void test_cancel_ends_it(void **state)
{
    (void)state;
    static const uint8_t some[1000] = {0};
    struct source s = {.bytes = some, .size = sizeof(some)};
    struct media_task t = {.kind = MEDIA_TASK_PROBE, .source_size = s.size, .threads = 1};
    struct child_job job = job_for(&s, &t, 60000);
    job.cancel_fd = eventfd(1, EFD_CLOEXEC);
    struct child_result r;
    child_run(&job, &r);
    assert_int_equal(r.outcome, CHILD_CANCELLED);
    child_result_done(&r);
    close(job.cancel_fd);
}

static void test_program_that_is_not_there_is_our_failure(void **state)
{
    (void)state;
    struct source s = {.size = 10};
    struct media_task t = {.kind = MEDIA_TASK_PROBE, .source_size = 10, .threads = 1};
    struct child_job job = job_for(&s, &t, 5000);
    struct child_result r;
    static const char *const programs[] = {"/nonexistent/cauce-codec", "/bin/true"};
    for (size_t i = 0; i < N_ELEMENTS(programs); i++) {
        job.host = host_of(programs[i]);
        child_run(&job, &r);
        assert_int_equal(r.outcome, CHILD_FAILED);
        assert_non_null(strstr(r.text, programs[i]));
        codec_host_free(job.host);
    }
}

// ---- the host that forks ----

// The one child process of ours, which is the host.
static pid_t host_pid(void)
{
    char path[64];
    int pid = 0;
    snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &pid), 1);
    fclose(f);
    return (pid_t)pid;
}

static const uint8_t words[] = "no film at all, just enough words to look at for a probe";

static void expect_a_probe_to_work(void)
{
    struct source s = {.bytes = words, .size = sizeof(words)};
    struct child_result r = probe(&s);
    if (r.outcome != CHILD_REJECTED)
        fail_msg("%s: %s", child_outcome_name(r.outcome), r.text);
    assert_true(r.cpu_us > 0 && r.peak_rss_bytes > 0);
    child_result_done(&r);
}

static void *probe_some(void *arg)
{
    (void)arg;
    for (int i = 0; i < 5; i++)
        expect_a_probe_to_work();
    return NULL;
}

static void test_one_host_serves_many_threads(void **state)
{
    (void)state;
    pthread_t threads[4];
    for (size_t i = 0; i < N_ELEMENTS(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, probe_some, NULL), 0);
    for (size_t i = 0; i < N_ELEMENTS(threads); i++)
        pthread_join(threads[i], NULL);
}

static enum status kill_host(void *ud, int64_t offset, size_t len, void *dst, struct err *err)
{
    (void)ud, (void)offset, (void)err;
    memset(dst, 0, len);
    return kill(host_pid(), SIGKILL) == 0 ? STATUS_OK : STATUS_INTERNAL;
}

static void test_killed_host_is_our_failure_and_is_replaced(void **state)
{
    (void)state;
    expect_a_probe_to_work();
    pid_t first = host_pid();
    struct source s = {.bytes = words, .size = sizeof(words)};
    struct media_task t = {.kind = MEDIA_TASK_PROBE, .source_size = s.size, .threads = 1};
    struct child_job job = job_for(&s, &t, 60000);
    job.fetch = kill_host;
    struct child_result r;
    child_run(&job, &r); // its task dies with it, whatever it was doing
    if (r.outcome != CHILD_FAILED)
        fail_msg("%s: %s", child_outcome_name(r.outcome), r.text);
    child_result_done(&r);
    expect_a_probe_to_work();
    assert_int_not_equal(host_pid(), first);
}

// ---- hostile files ----

static void expect_rejected(const char *what, const void *bytes, size_t n)
{
    struct source s = {.bytes = bytes, .size = (int64_t)n};
    int64_t begin = time_mono_ms();
    struct child_result r = probe(&s);
    if (r.outcome != CHILD_REJECTED || strlen(r.text) < 10)
        fail_msg("%s: %s: %s", what, child_outcome_name(r.outcome), r.text);
    assert_true(time_mono_ms() - begin < 10000);
    child_result_done(&r);
}

static void test_what_is_no_media_is_rejected_with_a_reason(void **state)
{
    (void)state;
    static const struct {
        const char *what, *bytes;
    } rows[] = {
        {"one byte", "x"},
        {"text",
         "It was a dark and stormy night; the rain fell in torrents, except at intervals.\n"},
        {"html", "<!doctype html><html><body><script>alert(1)</script></body></html>\n"},
        {"m3u8",
         "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"},
        {"m3u8 http", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n"
                      "#EXT-X-ENDLIST\n"},
        {"concat", "ffconcat version 1.0\nfile /etc/passwd\nfile other.mp4\n"},
        {"sdp",
         "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9999 RTP/AVP "
         "96\na=rtpmap:96 H264/90000\n"},
        {"dash",
         "<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\">"
         "<Period><AdaptationSet><Representation><BaseURL>http://127.0.0.1:9/</BaseURL>"
         "</Representation></AdaptationSet></Period></MPD>\n"},
        {"svg",
         "<svg xmlns=\"http://www.w3.org/2000/svg\"><image href=\"file:///etc/passwd\"/></svg>"},
        {"elf", "\x7f"
                "ELF\x02\x01\x01"},
        {"zip", "PK\x03\x04\x14"},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++)
        expect_rejected(rows[i].what, rows[i].bytes, strlen(rows[i].bytes));
    static const uint8_t ftyp[] = "\0\0\0\x18"
                                  "ftypisom\0\0\2\0isommp41";
    expect_rejected("lone ftyp", ftyp, 24);
    static const uint8_t zeros[300000];
    expect_rejected("zeros", zeros, sizeof(zeros));
}

static uint8_t *slurp(struct source *s)
{
    uint8_t *p = mem_alloc((size_t)s->size);
    assert_non_null(p);
    assert_int_equal(pread(s->fd, p, (size_t)s->size, 0), s->size);
    close(s->fd);
    return p;
}

static void test_truncated_film_is_rejected_or_shorter(void **state)
{
    (void)state;
    static const char *const names[] = {
        "video/webcam_640x360_h264_aac.flv", "video/face_sign_help.mkv",
        "video/nasa_2video_2audio_2movtext.mp4", "video/bbb_1080p24_hevc_aac51_5s.ts"};
    for (size_t i = 0; i < N_ELEMENTS(names); i++) {
        struct source s;
        if (!open_media(names[i], &s))
            skip();
        struct source whole = s;
        AUTO(mem_free_p) uint8_t *bytes = slurp(&s);
        s.bytes = bytes;
        whole.bytes = bytes;
        struct child_result full = probe(&whole);
        assert_int_equal(full.outcome, CHILD_OK);
        s.size = s.size * 6 / 10;
        struct child_result r = probe(&s);
        if (r.outcome == CHILD_OK)
            assert_true(media_plan_duration_us(r.plan) < media_plan_duration_us(full.plan));
        else
            assert_int_equal(r.outcome, CHILD_REJECTED);
        child_result_done(&r);
        child_result_done(&full);
    }
}

// Changed bytes: any outcome that the parent understands, in time, but none that is ours to blame.
static void test_mutated_films_never_hang_or_confuse(void **state)
{
    (void)state;
    struct source s;
    if (!open_media("video/face_sign_help.mkv", &s))
        skip();
    AUTO(mem_free_p) uint8_t *bytes = slurp(&s);
    AUTO(mem_free_p) uint8_t *copy = mem_alloc((size_t)s.size);
    assert_non_null(copy);
    uint64_t seed = 88172645463325252U;
    for (int round = 0; round < 8; round++) {
        memcpy(copy, bytes, (size_t)s.size);
        static const int64_t per[] = {20000, 1000, 50};
        for (int64_t n = s.size / per[round % 3] + 1; n > 0; n--) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            copy[seed % (uint64_t)s.size] = (uint8_t)(seed >> 40);
        }
        struct source m = {.bytes = copy, .size = s.size};
        struct child_result r = probe(&m);
        if (r.outcome != CHILD_OK && r.outcome != CHILD_REJECTED && r.outcome != CHILD_LIMIT)
            fail_msg("round %d: %s: %s", round, child_outcome_name(r.outcome), r.text);
        child_result_done(&r);
    }
}

// ---- escapes ----

static void test_every_escape_is_stopped(void **state)
{
    (void)state;
    // What stops it: the kernel kills (crash), the call fails and the file is then looked at
    // (rejected), or the time runs out.
    static const struct {
        const char *name;
        enum child_outcome outcome;
    } rows[] = {
        {"open", CHILD_REJECTED}, {"tcp", CHILD_REJECTED},    {"udp", CHILD_REJECTED},
        {"fork", CHILD_CRASH},    {"exec", CHILD_CRASH},      {"ptrace", CHILD_CRASH},
        {"kill", CHILD_CRASH},    {"memory", CHILD_REJECTED}, {"code", CHILD_CRASH},
        {"loop", CHILD_TIMEOUT},  {"write", CHILD_LIMIT},
    };
    static const char text[] = "nothing of interest in here, just some words";
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        if (strcmp(rows[i].name, "memory") == 0)
            continue; // the address space is not limited under sanitizers
#endif
        setenv("CAUCE_TEST_ESCAPE", rows[i].name, 1);
        struct source s = {.bytes = (const uint8_t *)text, .size = sizeof(text)};
        struct media_task t = {.kind = MEDIA_TASK_PROBE, .source_size = s.size, .threads = 1};
        struct child_job job = job_for(&s, &t, strcmp(rows[i].name, "loop") == 0 ? 3000 : 20000);
        job.host = host_of("cauce-codec-escape"); // hears of the attempt as it starts
        struct child_result r;
        child_run(&job, &r);
        codec_host_free(job.host);
        if (r.outcome != rows[i].outcome)
            fail_msg("%s: %s: %s", rows[i].name, child_outcome_name(r.outcome), r.text);
        // An attempt that succeeded would have ended with a status of its own.
        if (r.outcome == CHILD_CRASH && !strstr(r.text, "forbidden system call"))
            fail_msg("%s: %s", rows[i].name, r.text);
        child_result_done(&r);
    }
    unsetenv("CAUCE_TEST_ESCAPE");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_probe_and_chunks_of_a_film_agree_with_the_plan),
        cmocka_unit_test(test_other_codecs_work_confined),
        cmocka_unit_test(test_film_larger_than_the_window_is_read_through_it),
        cmocka_unit_test(test_failed_fetch_is_source),
        cmocka_unit_test(test_cancel_ends_it),
        cmocka_unit_test(test_program_that_is_not_there_is_our_failure),
        cmocka_unit_test(test_one_host_serves_many_threads),
        cmocka_unit_test(test_killed_host_is_our_failure_and_is_replaced),
        cmocka_unit_test(test_what_is_no_media_is_rejected_with_a_reason),
        cmocka_unit_test(test_truncated_film_is_rejected_or_shorter),
        cmocka_unit_test(test_mutated_films_never_hang_or_confuse),
        cmocka_unit_test(test_every_escape_is_stopped),
    };
    host = host_of("cauce-codec");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    codec_host_free(host);
    return failed;
}
