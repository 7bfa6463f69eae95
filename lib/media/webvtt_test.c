// Subtitles as text: cleaning, ASS, the plain form, slices, playlists.
#include "media/webvtt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "media/texts.h"

// ---- cleaning ----

static const struct {
    const char *in, *out;
} texts[] = {
    {"plain", "plain"},
    {"", ""},
    {"a < b & c > d", "a &lt; b &amp; c &gt; d"},
    {"a --> b", "a --&gt; b"},
    {"<i>open", "<i>open</i>"},
    {"<b><i>x</b>y</i>", "<b><i>x</i></b>y"},
    {"<I>shout</I>", "<i>shout</i>"},
    {"<font color=\"red\">red</font>", "red"},
    {"<script>x</script>", "x"},
    {"</b>stray", "stray"},
    {"<c.yellow.bg_blue>x</c>", "<c.yellow.bg_blue>x</c>"},
    {"<v.loud Mary Ann>hi", "<v.loud Mary Ann>hi</v>"},
    {"<v --><b onclick=x>hi</b>", "<v -><b>hi</b></v>"},
    {"<lang en-GB>x</lang>", "<lang en-GB>x</lang>"},
    {"<ruby>k<rt>a</rt></ruby>", "<ruby>k<rt>a</rt></ruby>"},
    {"<00:00:01.000>word", "word"},
    {"1 <2 and 3> 2", "1 &lt;2 and 3&gt; 2"},
    {"&lt;&nbsp;&amp;", "&lt;&nbsp;&amp;"},
    {"&#65;&#x42;&#60;&#1;&bogus;", "AB&lt;&amp;bogus;"},
    {"one\r\n\r\n\n two  \n", "one\n two"},
    {"a\001\002\tb\177", "a b"},
    {"bad \xff\xc3 utf", "bad \xef\xbf\xbd\xef\xbf\xbd utf"},
    {"\xef\xbb\xbfmark", "mark"},
    {"&#xd800;", "\xef\xbf\xbd"},
};

static void test_cleaning_leaves_plain_text_and_known_tags(void **state)
{
    (void)state;
    struct buf b, again;
    buf_init(&b, 4096);
    buf_init(&again, 4096);
    for (size_t i = 0; i < N_ELEMENTS(texts); i++) {
        buf_reset(&b);
        buf_reset(&again);
        media_webvtt_clean(texts[i].in, strlen(texts[i].in), &b);
        assert_string_equal(buf_str(&b), texts[i].out);
        assert_null(strstr(buf_str(&b), "-->"));
        media_webvtt_clean(buf_str(&b), b.len, &again);
        assert_string_equal(buf_str(&again), buf_str(&b));
    }
    buf_done(&b);
    buf_done(&again);
}

// ---- ASS ----

static const struct {
    const char *in, *out, *settings;
} events[] = {
    {"Hello\\Nworld", "Hello\nworld", ""},
    {"{\\i1}soft{\\i0} loud", "<i>soft</i> loud", ""},
    {"{\\b1\\u1}x{\\r}y", "<b><u>x</u></b>y", ""},
    {"{\\b700}x{\\b400}y", "<b>x</b>y", ""},
    {"{\\an8}top", "top", "line:5%"},
    {"{\\an1}left", "left", "position:5% align:start"},
    {"{\\a7}old", "old", "line:5% align:end position:95%"},
    {"{\\pos(192,72)}there", "there", "line:25% position:50%"},
    {"{\\bord2\\iclip(1,2)\\c&HFF&\\t(0,5,\\i1)}x", "x", ""},
    {"{\\p1}m 0 0 l 10 10{\\p0}shape", "shape", ""},
    {"a\\hb <c> & d", "a&nbsp;b &lt;c&gt; &amp; d", ""},
    {"{comment}x\\{y\\}", "x{y}", ""},
    {"", "", ""},
};

#define LONG_TAG 1100 // longer than any that is looked for

static void test_tag_that_does_not_end_soon_is_text(void **state)
{
    (void)state;
    struct buf in, b, again;
    buf_init(&in, 4096);
    buf_init(&b, 4096);
    buf_init(&again, 4096);
    buf_puts(&in, "<b ");
    for (int i = 0; i < LONG_TAG; i++)
        buf_putc(&in, 'x');
    buf_puts(&in, ">y");
    media_webvtt_clean(buf_str(&in), in.len, &b);
    assert_memory_equal(b.data, "&lt;b x", 7);
    assert_string_equal(buf_str(&b) + b.len - 6, "x&gt;y");
    media_webvtt_clean(buf_str(&b), b.len, &again);
    assert_string_equal(buf_str(&again), buf_str(&b));
    buf_done(&in);
    buf_done(&b);
    buf_done(&again);
}

// Millions of tags that never end cost what as much text does, not its square.
static void test_tags_that_never_end_cost_little(void **state)
{
    (void)state;
    struct media_webvtt w;
    struct buf b;
    buf_init(&b, MEDIA_MAX_TEXT_BYTES);
    buf_puts(&b, "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n");
    while (b.len < MEDIA_MAX_TEXT_BYTES - 1)
        buf_putc(&b, '<');
    buf_puts(&b, "\n");
    assert_false(b.failed);
    assert_int_equal(media_webvtt_parse(b.data, b.len, &w, NULL), STATUS_INVALID_ARGUMENT);
    buf_done(&b);
}

static void test_ass_keeps_style_and_place_and_drops_the_rest(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 4096);
    for (size_t i = 0; i < N_ELEMENTS(events); i++) {
        char settings[MEDIA_CUE_SETTINGS];
        buf_reset(&b);
        media_webvtt_from_ass(events[i].in, strlen(events[i].in), 384, 288, &b, settings);
        if (b.len != strlen(events[i].out) || memcmp(buf_str(&b), events[i].out, b.len) != 0)
            fail_msg("%s: %s", events[i].in, buf_str(&b));
        assert_true(strlen(settings) == strlen(events[i].settings));
        if (i != 6)
            assert_string_equal(settings, events[i].settings);
    }
    buf_done(&b);
}

// ---- the plain form ----

static const char plain[] = "WEBVTT\n"
                            "\n00:00:01.000 --> 00:00:02.500\nfirst\n"
                            "\n00:00:02.000 --> 00:01:05.000 line:5%\n<i>second</i>\nline &amp; b\n"
                            "\n01:00:00.000 --> 01:00:00.001\nlate\n";

static void test_plain_form_is_read_and_written_back(void **state)
{
    (void)state;
    struct media_webvtt w;
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, MEDIA_MAX_TEXT_BYTES);
    assert_int_equal(media_webvtt_parse(plain, sizeof(plain) - 1, &w, &err), STATUS_OK);
    assert_int_equal(w.n, 3);
    assert_int_equal(w.cues[0].start_ms, 1000);
    assert_int_equal(w.cues[1].end_ms, 65000);
    assert_int_equal(w.cues[1].settings_len, 7);
    assert_int_equal(w.cues[2].start_ms, 3600000);
    assert_int_equal(media_webvtt_write(w.cues, w.n, &b, &err), STATUS_OK);
    assert_string_equal(buf_str(&b), plain);
    buf_reset(&b);
    media_webvtt_plain(&w.cues[1], &b);
    assert_string_equal(buf_str(&b), "second line & b");
    media_webvtt_done(&w);
    buf_done(&b);
    assert_true(media_webvtt_is_sane("WEBVTT\n", 7));
}

static void test_what_is_not_plain_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "WEBVTT",
        "WEBVTT\r\n",
        "\xef\xbb\xbfWEBVTT\n",
        "WEBVTT\n\n",
        "WEBVTT\n\nid\n00:00:01.000 --> 00:00:02.000\nx\n",
        "WEBVTT\n\n00:00:02.000 --> 00:00:02.000\nx\n",
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n",
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n\n",
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nx",
        "WEBVTT\n\n00:00:01.000 --> 00:60:02.000\nx\n",
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000 region:a\nx\n",
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000 \nx\n",
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n<script>\n",
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\na & b\n",
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n<i>open\n",
        "WEBVTT\n\n00:00:03.000 --> 00:00:04.000\nx\n\n00:00:02.000 --> 00:00:05.000\ny\n",
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nx\n\n\n00:00:02.000 --> 00:00:05.000\ny\n",
    };
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        if (media_webvtt_is_sane(bad[i], strlen(bad[i])))
            fail_msg("row %zu is taken", i);
    static const char zero[] = "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\na\0b\n";
    assert_false(media_webvtt_is_sane(zero, sizeof(zero) - 1));
}

static void test_slice_has_the_cues_that_show_in_it(void **state)
{
    (void)state;
    static const struct {
        int64_t start_us, end_us;
        bool first, second, late;
    } rows[] = {
        {0, 1000000, false, false, false},
        {0, 1000001, true, false, false},
        {2400000, 30000000, true, true, false},
        {2500000, 30000000, false, true, false},
        {64999999, 65000001, false, true, false},
        {65000000, 95000000, false, false, false},
        {3600000000, 3630000000, false, false, true},
    };
    struct media_webvtt w;
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, 4096);
    assert_int_equal(media_webvtt_parse(plain, sizeof(plain) - 1, &w, &err), STATUS_OK);
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        buf_reset(&b);
        assert_int_equal(media_webvtt_slice(&w, rows[i].start_us, rows[i].end_us, &b, &err),
                         STATUS_OK);
        const char *s = buf_str(&b);
        assert_memory_equal(s, "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000\n", 50);
        if ((strstr(s, "first") != NULL) != rows[i].first ||
            (strstr(s, "second") != NULL) != rows[i].second ||
            (strstr(s, "late") != NULL) != rows[i].late)
            fail_msg("row %zu: %s", i, s);
    }
    media_webvtt_done(&w);
    buf_done(&b);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    for (int n = 0; n < 100; n++) {
        struct media_webvtt w;
        struct err err = ERR_INIT;
        mem_fail_at(n);
        enum status s = media_webvtt_parse(plain, sizeof(plain) - 1, &w, &err);
        mem_fail_at(-1);
        if (s == STATUS_OK) {
            media_webvtt_done(&w);
            assert_true(n > 0);
            return;
        }
        assert_true(s == STATUS_RESOURCE_EXHAUSTED || s == STATUS_INVALID_ARGUMENT);
    }
    fail_msg("never enough");
}

// ---- names and playlists ----

static const struct media_text group[] = {
    {.id = "s2", .language = "eng", .title = "Full \"dialogue\"", .is_default = true},
    {.id = "s3", .language = "eng", .is_forced = true},
    {.id = "s4", .language = "eng", .is_hearing_impaired = true},
    {.id = "s5", .language = "eng", .is_default = true},
    {.id = "x1", .language = "\"", .title = "a & <b>"},
};

static void test_group_names_every_text_once(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 4096);
    media_texts_put_group(group, N_ELEMENTS(group), &b);
    assert_string_equal(
        buf_str(&b),
        "#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"subs\",NAME=\"Full dialogue\",LANGUAGE=\"eng\","
        "DEFAULT=YES,AUTOSELECT=YES,FORCED=NO,URI=\"s2.m3u8\"\n"
        "#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"subs\",NAME=\"eng (forced)\",LANGUAGE=\"eng\","
        "DEFAULT=NO,AUTOSELECT=YES,FORCED=YES,URI=\"s3.m3u8\"\n"
        "#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"subs\",NAME=\"eng\",LANGUAGE=\"eng\","
        "DEFAULT=NO,AUTOSELECT=YES,FORCED=NO,"
        "CHARACTERISTICS=\"public.accessibility.transcribes-spoken-dialog,"
        "public.accessibility.describes-music-and-sound\",URI=\"s4.m3u8\"\n"
        "#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"subs\",NAME=\"eng [s5]\",LANGUAGE=\"eng\","
        "DEFAULT=NO,AUTOSELECT=YES,FORCED=NO,URI=\"s5.m3u8\"\n"
        "#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"subs\",NAME=\"a & <b>\","
        "DEFAULT=NO,AUTOSELECT=YES,FORCED=NO,URI=\"x1.m3u8\"\n");
    buf_reset(&b);
    media_texts_put_sets(group + 4, 1, &b);
    assert_non_null(strstr(buf_str(&b), "<Label>a &amp; &lt;b&gt;</Label>\n      <Role"));
    assert_non_null(strstr(buf_str(&b), "<BaseURL>x1.vtt</BaseURL>"));
    buf_done(&b);
}

static void test_texts_go_into_what_lists_the_film(void **state)
{
    (void)state;
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, 4096);
    buf_puts(&b,
             "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv720.m3u8\n"
             "#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1\n#EXT-X-STREAM-INF:BANDWIDTH=2\nv480.m3u8\n");
    assert_int_equal(media_texts_into_master(group + 1, 1, &b, &err), STATUS_OK);
    assert_string_equal(
        buf_str(&b),
        "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO\n"
        "#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"subs\",NAME=\"eng (forced)\",LANGUAGE=\"eng\","
        "DEFAULT=NO,AUTOSELECT=YES,FORCED=YES,URI=\"s3.m3u8\"\n"
        "#EXT-X-STREAM-INF:BANDWIDTH=1,SUBTITLES=\"subs\"\nv720.m3u8\n"
        "#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1\n"
        "#EXT-X-STREAM-INF:BANDWIDTH=2,SUBTITLES=\"subs\"\nv480.m3u8\n");
    buf_reset(&b);
    buf_puts(&b, "<MPD>\n  <Period>\n  </Period>\n</MPD>\n");
    assert_int_equal(media_texts_into_manifest(group + 1, 1, &b, &err), STATUS_OK);
    assert_true(strncmp(buf_str(&b), "<MPD>\n  <Period>\n    <AdaptationSet ", 36) == 0);
    assert_non_null(strstr(buf_str(&b), "    </AdaptationSet>\n  </Period>\n</MPD>\n"));
    buf_done(&b);
    buf_init(&b, 64); // nothing is changed by what does not fit
    buf_puts(&b, "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv720.m3u8\n");
    assert_int_equal(media_texts_into_master(group, 1, &b, &err), STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(buf_str(&b), "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv720.m3u8\n");
    buf_done(&b);
}

static void test_pieces_cover_the_item(void **state)
{
    (void)state;
    struct media_plan p = {.video = {.timescale = 1000, .duration = 61500, .n_segments = 1}};
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, 4096);
    assert_int_equal(media_text_n_pieces(&p), 3);
    assert_int_equal(media_text_playlist(&p, "s1", &b, &err), STATUS_OK);
    assert_string_equal(buf_str(&b), "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:30\n"
                                     "#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:VOD\n"
                                     "#EXTINF:30.000000,\ns1/0.vtt\n#EXTINF:30.000000,\ns1/1.vtt\n"
                                     "#EXTINF:1.500000,\ns1/2.vtt\n#EXT-X-ENDLIST\n");
    buf_done(&b);
}

static void test_only_tracks_of_text_have_names(void **state)
{
    (void)state;
    struct media_plan p = {.source.n_tracks = 3};
    for (int i = 0; i < 3; i++)
        p.source.tracks[i] = (struct media_track){.type = MEDIA_TRACK_SUBTITLE, .chosen = true};
    p.source.tracks[1].subtitle = MEDIA_SUBTITLE_STYLED;
    p.source.tracks[2].subtitle = MEDIA_SUBTITLE_BITMAP;
    static const char *const none[] = {"s0", "s2", "s3", "s", "", "s01", "x1", "S1", "s1 "};
    for (size_t i = 0; i < N_ELEMENTS(none); i++)
        assert_int_equal(media_text_find(&p, none[i]), -1);
    assert_int_equal(media_text_find(&p, "s1"), 1);
    assert_int_equal(media_text_find_added("x1"), 1);
    assert_int_equal(media_text_find_added("x99"), 99);
    assert_int_equal(media_text_find_added("x100"), -1);
    assert_int_equal(media_text_find_added("x0"), -1);
    struct media_text all[MEDIA_MAX_TEXT_TRACKS];
    assert_int_equal(media_texts_of_source(&p, all), 1);
    assert_string_equal(all[0].id, "s1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cleaning_leaves_plain_text_and_known_tags),
        cmocka_unit_test(test_tag_that_does_not_end_soon_is_text),
        cmocka_unit_test(test_tags_that_never_end_cost_little),
        cmocka_unit_test(test_ass_keeps_style_and_place_and_drops_the_rest),
        cmocka_unit_test(test_plain_form_is_read_and_written_back),
        cmocka_unit_test(test_what_is_not_plain_is_refused),
        cmocka_unit_test(test_slice_has_the_cues_that_show_in_it),
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_group_names_every_text_once),
        cmocka_unit_test(test_texts_go_into_what_lists_the_film),
        cmocka_unit_test(test_pieces_cover_the_item),
        cmocka_unit_test(test_only_tracks_of_text_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
