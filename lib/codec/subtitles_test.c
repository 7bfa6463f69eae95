// Extraction of text from films that the ffmpeg program makes, and from files of text.
#include <fcntl.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "codec/internal.h"
#include "media/texts.h"
#include "media/webvtt.h"

extern char **environ;

static char folder[] = "/tmp/cauce-texts-XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    return mkdtemp(folder) && codec_preload(&err) == STATUS_OK ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static const char *path_of(const char *name)
{
    static char path[4][128];
    static unsigned next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof(path[0]), "%s/%s", folder, name);
    return p;
}

static void write_file(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(path_of(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static struct codec_source open_file(const char *name)
{
    struct stat st;
    int fd = open(path_of(name), O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    assert_int_equal(unlink(path_of(name)), 0);
    return (struct codec_source){.fd = fd, .size = st.st_size};
}

// args: ffmpeg's, separated by single spaces; run inside the folder.
static struct codec_source make_film(const char *args, const char *name)
{
    char words[1024], *argv[80];
    size_t n = 0;
    snprintf(words, sizeof(words), "ffmpeg -y -v error -nostdin %s %s", args, name);
    for (char *save = NULL, *w = strtok_r(words, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[n++] = w;
    argv[n] = NULL;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, folder);
    pid_t pid;
    int status, r = posix_spawnp(&pid, "ffmpeg", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (r != 0) {
        printf("[  NOTE    ] no ffmpeg to make a film with\n");
        skip();
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (status != 0)
        fail_msg("ffmpeg %s: %d", args, status);
    return open_file(name);
}

// ---- what a task gives ----

struct results {
    size_t n;
    uint32_t track[8];
    char *bytes[8];
    struct media_webvtt text[8];
};

static enum status keep(void *ud, const struct media_segment_out *out, const void *bytes, size_t n,
                        struct err *err)
{
    struct results *r = ud;
    assert_true(r->n < N_ELEMENTS(r->bytes) && out->segment == 0 && out->size == n);
    r->track[r->n] = out->rendition;
    r->bytes[r->n] = mem_dup(bytes, n);
    assert_non_null(r->bytes[r->n]);
    if (media_webvtt_parse(r->bytes[r->n], n, &r->text[r->n], err) != STATUS_OK)
        fail_msg("%s: %.*s", err->msg, (int)n, r->bytes[r->n]);
    r->n++;
    return STATUS_OK;
}

static void results_done(struct results *r)
{
    for (size_t i = 0; i < r->n; i++) {
        media_webvtt_done(&r->text[i]);
        mem_free(r->bytes[i]);
    }
}

static struct media_plan *probe(const struct codec_source *s)
{
    struct media_plan *p = NULL;
    struct err err = ERR_INIT;
    if (codec_probe(s, NULL, &p, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return p;
}

static void extract(const struct codec_source *s, const struct media_plan *p, struct results *ret)
{
    struct media_task t = {.kind = MEDIA_TASK_TEXTS, .source_size = s->size, .n_segments = 1};
    struct codec_sink sink = {.segment = keep, .ud = ret};
    struct err err = ERR_INIT;
    for (unsigned i = 0; i < p->source.n_tracks; i++)
        if (media_text_is_planned(p, i))
            t.renditions[t.n_renditions++] = (uint8_t)i;
    *ret = (struct results){.n = 0};
    if (codec_texts(s, p, &t, &sink, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(ret->n, t.n_renditions);
}

static void assert_cue(const struct media_webvtt *w, size_t i, int64_t start_ms, int64_t end_ms,
                       const char *text)
{
    assert_true(i < w->n);
    const struct media_cue *c = &w->cues[i];
    if (c->start_ms != start_ms || c->end_ms != end_ms || c->text_len != strlen(text) ||
        memcmp(c->text, text, c->text_len) != 0)
        fail_msg("cue %zu: %lld to %lld: %.*s", i, (long long)c->start_ms, (long long)c->end_ms,
                 (int)c->text_len, c->text);
}

// ---- films ----

#define FILM "-f lavfi -i testsrc=s=64x36:r=25:d=8"
static const char srt[] = "1\n00:00:00,500 --> 00:00:01,500\nfirst <i>one</i>\n\n"
                          "2\n00:00:05,000 --> 00:00:06,000\n{\\an8}second\nline & more\n\n"
                          "3\n00:00:07,500 --> 00:00:30,000\nlast\n\n";

static void assert_srt(const struct media_webvtt *w, int64_t later_ms)
{
    assert_int_equal(w->n, 3);
    assert_cue(w, 0, 500 + later_ms, 1500 + later_ms, "first <i>one</i>");
    assert_cue(w, 1, 5000 + later_ms, 6000 + later_ms, "second\nline &amp; more");
    assert_int_equal(w->cues[2].start_ms, 7500 + later_ms);
}

static void test_text_of_every_container_keeps_its_times(void **state)
{
    (void)state;
    static const struct {
        const char *args, *name;
        int64_t later_ms;
        bool no_ends; // the muxer writes no durations, and no empty sample that would tell
    } rows[] = {
        {FILM " -i a.srt -c:v mpeg4 -c:s mov_text", "film.mp4", 0, false},
        {FILM " -i a.srt -c:v mpeg4 -c:s mov_text -movflags frag_keyframe+empty_moov", "frag.mp4",
         0, true},
        {FILM " -i a.srt -c:v mpeg4 -c:s srt", "film.mkv", 0, false},
        {FILM " -i a.srt -c:v mpeg4 -c:s ass", "film.mkv", 0, false},
        {FILM " -i a.srt -c:v libvpx -b:v 50k -deadline realtime -c:s webvtt", "film.webm", 0,
         false},
        // Text, and the picture, that begin later than the movie.
        {FILM " -itsoffset 0.4 -i a.srt -c:v mpeg4 -c:s mov_text", "late.mp4", 400, false},
        {FILM " -itsoffset 0.4 -i a.srt -c:v mpeg4 -c:s srt", "late.mkv", 400, false},
        {"-itsoffset 0.6 " FILM " -i a.srt -map 0 -map 1 -c:v mpeg4 -c:s mov_text", "pic.mp4", 0,
         false},
        {"-itsoffset 0.6 " FILM " -i a.srt -map 0 -map 1 -c:v mpeg4 -c:s srt", "pic.mkv", 0, false},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        write_file("a.srt", srt, sizeof(srt) - 1);
        struct codec_source s = make_film(rows[i].args, rows[i].name);
        assert_int_equal(unlink(path_of("a.srt")), 0);
        AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
        struct results r;
        extract(&s, p, &r);
        assert_int_equal(r.n, 1);
        if (rows[i].no_ends) {
            r.text[0].cues[0].end_ms = 1500;
            r.text[0].cues[1].end_ms = 6000;
        }
        assert_srt(&r.text[0], rows[i].later_ms);
        // Nothing lasts beyond the film.
        assert_true(r.text[0].cues[2].end_ms * 1000 <= media_plan_duration_us(p) + 500);
        results_done(&r);
        close(s.fd);
    }
}

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put_be32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

// The only entry of the text's edit list begins at media_ms of its media.
static void patch_edit(const struct codec_source *s, uint32_t media_ms)
{
    uint8_t *all = mem_alloc((size_t)s->size), *elst = NULL;
    assert_true(all && pread(s->fd, all, (size_t)s->size, 0) == s->size);
    for (uint8_t *at = all; (at = memmem(at, (size_t)(all + s->size - at), "elst", 4)); at++)
        elst = at; // the text's track is the last
    assert_non_null(elst);
    assert_int_equal(be32(elst + 8), 1);
    uint8_t *mdhd = memmem(elst, (size_t)(all + s->size - elst), "mdhd", 4);
    assert_non_null(mdhd);
    put_be32(elst + 16, (uint32_t)((uint64_t)be32(mdhd + 16) * media_ms / 1000));
    assert_int_equal(pwrite(s->fd, all, (size_t)s->size, 0), s->size);
    mem_free(all);
}

static void test_edit_list_moves_cues_by_its_own_time(void **state)
{
    (void)state;
    write_file("a.srt", srt, sizeof(srt) - 1);
    struct codec_source s = make_film(FILM " -i a.srt -c:v mpeg4 -c:s mov_text", "edit.mp4");
    assert_int_equal(unlink(path_of("a.srt")), 0);
    patch_edit(&s, 1200);
    AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
    struct results r;
    extract(&s, p, &r);
    assert_int_equal(r.text[0].n, 3);
    assert_cue(&r.text[0], 0, 0, 300, "first <i>one</i>"); // its beginning is cut off
    assert_cue(&r.text[0], 1, 3800, 4800, "second\nline &amp; more");
    assert_int_equal(r.text[0].cues[2].start_ms, 6300);
    results_done(&r);
    patch_edit(&s, 2000);
    extract(&s, p, &r);
    assert_int_equal(r.text[0].n, 2); // the first one is gone
    assert_cue(&r.text[0], 0, 3000, 4000, "second\nline &amp; more");
    results_done(&r);
    close(s.fd);
}

static const char ass[] =
    "[Script Info]\nScriptType: v4.00+\nPlayResX: 640\nPlayResY: 360\n\n[V4+ Styles]\n"
    "Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, "
    "Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, "
    "Shadow, Alignment, MarginL, MarginR, MarginV, Encoding\n"
    "Style: Default,DejaVu Sans,40,&H00FFFFFF,&H000000FF,&H00000000,&H00000000,0,0,0,0,100,100,0,0,"
    "1,2,0,2,10,10,10,1\n\n[Events]\n"
    "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    "Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,later, {\\i1}slanted{\\i0}\n"
    "Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\pos(320,180)}sign\n"
    "Dialogue: 1,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\pos(320,180)}sign\n"
    "Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\p1}m 0 0 l 9 9{\\p0}\n";

static void test_tracks_keep_language_title_and_flags(void **state)
{
    (void)state;
    write_file("a.srt", srt, sizeof(srt) - 1);
    write_file("b.ass", ass, sizeof(ass) - 1);
    struct codec_source s = make_film(
        FILM " -i a.srt -i b.ass -map 0 -map 1 -map 2 -c:v mpeg4 -c:s:0 srt -c:s:1 ass"
             " -metadata:s:s:0 language=ger -metadata:s:s:0 title=Schilder -disposition:s:0 forced"
             " -metadata:s:s:1 language=eng -disposition:s:1 default+hearing_impaired",
        "two.mkv");
    assert_int_equal(unlink(path_of("a.srt")), 0);
    assert_int_equal(unlink(path_of("b.ass")), 0);
    AUTO(media_plan_free_p) struct media_plan *p = probe(&s);
    struct media_text texts[MEDIA_MAX_TEXT_TRACKS];
    assert_int_equal(media_texts_of_source(p, texts), 2);
    assert_string_equal(texts[0].id, "s1");
    assert_string_equal(texts[0].language, "ger");
    assert_string_equal(texts[0].title, "Schilder");
    assert_true(texts[0].is_forced && !texts[0].is_default);
    assert_true(!texts[1].is_forced && texts[1].is_default && texts[1].is_hearing_impaired);
    assert_int_equal(p->source.tracks[2].subtitle, MEDIA_SUBTITLE_STYLED);
    struct results r;
    extract(&s, p, &r);
    assert_int_equal(r.track[1], 2);
    assert_srt(&r.text[0], 0);
    assert_int_equal(r.text[1].n, 2); // the same twice is once; shapes are no text
    assert_cue(&r.text[1], 0, 1000, 2500, "sign");
    assert_memory_equal(r.text[1].cues[0].settings, "line:50% position:50%", 21);
    assert_cue(&r.text[1], 1, 3000, 4000, "later, <i>slanted</i>");
    results_done(&r);
    close(s.fd);
}

// ---- files of text ----

static enum status convert(const void *bytes, size_t n, struct results *ret, struct err *err)
{
    struct media_plan *p = media_plan_new();
    assert_non_null(p);
    p->video = (struct media_grid){.timescale = 1000, .duration = 8000, .n_segments = 1};
    p->source.timeline_zero_us = 5000000; // of the film's source, which is none of the file's
    write_file("text", bytes, n);
    struct codec_source s = open_file("text");
    struct media_task t = {.kind = MEDIA_TASK_TEXTS,
                           .source_size = s.size,
                           .n_segments = 1,
                           .n_renditions = 1,
                           .renditions = {MEDIA_TEXT_FILE}};
    struct codec_sink sink = {.segment = keep, .ud = ret};
    *ret = (struct results){.n = 0};
    enum status st = codec_texts(&s, p, &t, &sink, err);
    p->video = (struct media_grid){.n_segments = 0};
    media_plan_free(p);
    close(s.fd);
    return st;
}

static void assert_file(const void *bytes, size_t n, const char *text)
{
    struct results r;
    struct err err = ERR_INIT;
    if (convert(bytes, n, &r, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(r.n, 1);
    assert_int_equal(r.track[0], MEDIA_TEXT_FILE);
    assert_cue(&r.text[0], 0, 500, 1500, text);
    results_done(&r);
}

static void test_files_of_text_are_read_in_every_encoding(void **state)
{
    (void)state;
#define CUE "00:00:00,500 --> 00:00:01,500\n"
    static const char utf8
        [] = "1\n" CUE "caf\xc3\xa9\n",
    mark[] = "\xef\xbb\xbf"
             "1\n" CUE "caf\xc3\xa9\n",
    latin[] = "1\n" CUE "caf\xe9 \x80\n",
    crlf[] = "1\r\n00:00:00,500 --> 00:00:01,500\r\na\r\nb\r\n",
    vtt[] = "WEBVTT\n\nNOTE x\n\nid\n00:00.500 --> 00:01.500 align:start region:r\n<v Ann>hi</v> "
            "<x>y\n",
    script[] =
        "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Name, "
        "MarginL, MarginR, MarginV, Effect, Text\n"
        "Dialogue: 0,0:00:00.50,0:00:01.50,Default,,0,0,0,,{\\b1}bold\n";
    assert_file(utf8, sizeof(utf8) - 1, "caf\xc3\xa9");
    assert_file(mark, sizeof(mark) - 1, "caf\xc3\xa9");
    assert_file(latin, sizeof(latin) - 1, "caf\xc3\xa9 \xe2\x82\xac");
    assert_file(crlf, sizeof(crlf) - 1, "a\nb");
    assert_file(vtt, sizeof(vtt) - 1, "<v Ann>hi</v> y");
    assert_file(script, sizeof(script) - 1, "<b>bold</b>");
    for (int big = 0; big < 2; big++) {
        uint8_t wide[256] = {0};
        size_t n = 0;
        wide[n++] = big ? 0xfe : 0xff;
        wide[n++] = big ? 0xff : 0xfe;
        for (const char *c = "1\n" CUE "wide\n"; *c; c++) {
            wide[n + (size_t)big] = (uint8_t)*c;
            n += 2;
        }
        assert_file(wide, n, "wide");
    }
}

static void test_bad_files_are_refused_with_a_reason(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "just some text\n",     "--> nothing\n", "WEBVTT\n\n",
        "[Events]\nnonsense\n", "\xff\xfe",      "1\n00:00:03,000 --> 00:00:02,000\n\n",
    };
    for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
        struct results r;
        struct err err = ERR_INIT;
        if (convert(bad[i], strlen(bad[i]), &r, &err) != STATUS_INVALID_ARGUMENT)
            fail_msg("row %zu is taken", i);
        assert_non_null(strstr(err.msg, "no subtitle can be read"));
    }
    struct results r;
    struct err err = ERR_INIT;
    struct buf b;
    buf_init(&b, 8 << 20);
    while (b.len <= MEDIA_MAX_TEXT_BYTES)
        buf_puts(&b, "00:00:01,000 --> 00:00:02,000\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n\n");
    assert_int_equal(convert(b.data, b.len, &r, &err), STATUS_INVALID_ARGUMENT);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_of_every_container_keeps_its_times),
        cmocka_unit_test(test_edit_list_moves_cues_by_its_own_time),
        cmocka_unit_test(test_tracks_keep_language_title_and_flags),
        cmocka_unit_test(test_files_of_text_are_read_in_every_encoding),
        cmocka_unit_test(test_bad_files_are_refused_with_a_reason),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
