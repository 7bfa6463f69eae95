#include "media/texts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "media/playlist.h"

bool media_text_is_planned(const struct media_plan *p, unsigned index)
{
    if (index >= p->source.n_tracks)
        return false;
    const struct media_track *t = &p->source.tracks[index];
    return t->chosen && t->type == MEDIA_TRACK_SUBTITLE &&
           (t->subtitle == MEDIA_SUBTITLE_TEXT || t->subtitle == MEDIA_SUBTITLE_STYLED);
}

// "s3" to 3; one spelling for each number.
static int number_of(const char *id, char letter, int64_t min, int64_t max)
{
    int64_t n;
    bool spelt = id[0] == letter && (id[1] != '0' || id[2] == '\0');
    return spelt && str_parse_i64(id + 1, min, max, &n, NULL) == STATUS_OK ? (int)n : -1;
}

int media_text_find(const struct media_plan *p, const char *id)
{
    int track = number_of(id, 's', 0, MEDIA_MAX_TRACKS - 1);
    return track >= 0 && media_text_is_planned(p, (unsigned)track) ? track : -1;
}

int media_text_find_added(const char *id)
{
    return number_of(id, 'x', 1, MEDIA_MAX_ADDED_TEXTS);
}

void media_text_name(unsigned track, char ret[MEDIA_TEXT_ID_SIZE])
{
    snprintf(ret, MEDIA_TEXT_ID_SIZE, "s%u", track % MEDIA_MAX_TRACKS);
}

void media_text_name_added(unsigned number, char ret[MEDIA_TEXT_ID_SIZE])
{
    snprintf(ret, MEDIA_TEXT_ID_SIZE, "x%u", number % (MEDIA_MAX_ADDED_TEXTS + 1));
}

size_t media_texts_of_source(const struct media_plan *p,
                             struct media_text ret[MEDIA_MAX_TEXT_TRACKS])
{
    size_t n = 0;
    for (unsigned i = 0; i < p->source.n_tracks && n < MEDIA_MAX_TEXT_TRACKS; i++) {
        const struct media_track *t = &p->source.tracks[i];
        if (!media_text_is_planned(p, i))
            continue;
        struct media_text *x = &ret[n++];
        *x = (struct media_text){.is_default = t->is_default,
                                 .is_forced = t->is_forced,
                                 .is_hearing_impaired = t->is_hearing_impaired};
        media_text_name(i, x->id);
        str_copy(x->language, sizeof(x->language), t->language);
        str_copy(x->title, sizeof(x->title), t->title);
    }
    return n;
}

// ---------------------------------------------------------------- HLS

// What people choose by. Between quotes: without quotes and control characters.
static void label(const struct media_text *t, char ret[80])
{
    char name[64];
    size_t n = 0;
    for (const char *c = t->title; *c && n + 1 < sizeof(name); c++)
        if ((unsigned char)*c >= 0x20 && *c != '"' && *c != 0x7f)
            name[n++] = *c;
    name[n] = '\0';
    const char *what = n ? name : media_language_is_plain(t->language) ? t->language : t->id;
    snprintf(ret, 80, "%s%s", what, t->is_forced && !n ? " (forced)" : "");
}

// A group's names must differ.
static void put_name(const struct media_text *texts, size_t i, struct buf *b)
{
    char mine[80], other[80];
    bool taken = false;
    label(&texts[i], mine);
    for (size_t k = 0; k < i && !taken; k++) {
        label(&texts[k], other);
        taken = str_eq(mine, other);
    }
    buf_printf(b, ",NAME=\"%s", mine);
    if (taken)
        buf_printf(b, " [%s]", texts[i].id);
    buf_puts(b, "\"");
}

// At most one is the default: the first that says so.
static bool is_the_default(const struct media_text *texts, size_t i)
{
    for (size_t k = 0; k < i; k++)
        if (texts[k].is_default)
            return false;
    return texts[i].is_default;
}

void media_texts_put_group(const struct media_text *texts, size_t n, struct buf *b)
{
    for (size_t i = 0; i < n; i++) {
        const struct media_text *t = &texts[i];
        buf_puts(b, "#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"subs\"");
        put_name(texts, i, b);
        if (media_language_is_plain(t->language))
            buf_printf(b, ",LANGUAGE=\"%s\"", t->language);
        buf_printf(b, ",DEFAULT=%s,AUTOSELECT=YES,FORCED=%s",
                   is_the_default(texts, i) ? "YES" : "NO", t->is_forced ? "YES" : "NO");
        if (t->is_hearing_impaired)
            buf_puts(b, ",CHARACTERISTICS=\"public.accessibility.transcribes-spoken-dialog,"
                        "public.accessibility.describes-music-and-sound\"");
        buf_printf(b, ",URI=\"%s.m3u8\"\n", t->id);
    }
}

// What was written in b's place.
static enum status take_over(struct buf *b, struct buf *made, struct err *err)
{
    bool failed = made->failed;
    if (!failed) {
        buf_done(b);
        *b = *made;
        return STATUS_OK;
    }
    buf_done(made);
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "playlist: buffer is full");
}

enum status media_texts_into_master(const struct media_text *texts, size_t n, struct buf *playlist,
                                    struct err *err)
{
    static const char variant[] = "#EXT-X-STREAM-INF:";
    struct buf made;
    bool any = false;
    buf_init(&made, playlist->limit);
    const char *p = buf_str(playlist), *end = p + playlist->len;
    while (p < end) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        size_t len = eol ? (size_t)(eol - p) : (size_t)(end - p);
        bool is_variant = len > sizeof(variant) && memcmp(p, variant, sizeof(variant) - 1) == 0;
        if (is_variant && !any)
            media_texts_put_group(texts, n, &made);
        any |= is_variant;
        buf_append(&made, p, len);
        buf_puts(&made, is_variant ? ",SUBTITLES=\"subs\"\n" : "\n");
        p += len + 1;
    }
    return take_over(playlist, &made, err);
}

enum status media_texts_into_manifest(const struct media_text *texts, size_t n,
                                      struct buf *manifest, struct err *err)
{
    const char *p = buf_str(manifest), *at = strstr(p, "  </Period>");
    struct buf made;
    if (!at)
        return STATUS_OK;
    buf_init(&made, manifest->limit);
    buf_append(&made, p, (size_t)(at - p));
    media_texts_put_sets(texts, n, &made);
    buf_append(&made, at, manifest->len - (size_t)(at - p));
    return take_over(manifest, &made, err);
}

size_t media_text_n_pieces(const struct media_plan *p)
{
    int64_t n = media_scale_ceil(media_plan_duration_us(p), 1, MEDIA_TEXT_PIECE_US);
    return n > 0 ? (size_t)n : 1;
}

enum status media_text_playlist(const struct media_plan *p, const char *id, struct buf *b,
                                struct err *err)
{
    int64_t all = media_plan_duration_us(p);
    size_t n = media_text_n_pieces(p);
    buf_printf(b,
               "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:%d\n#EXT-X-MEDIA-SEQUENCE:0\n"
               "#EXT-X-PLAYLIST-TYPE:VOD\n",
               MEDIA_TEXT_PIECE_US / 1000000);
    for (size_t i = 0; i < n; i++) {
        int64_t start = (int64_t)i * MEDIA_TEXT_PIECE_US, d = all - start;
        if (d > MEDIA_TEXT_PIECE_US)
            d = MEDIA_TEXT_PIECE_US;
        buf_printf(b, "#EXTINF:%" PRId64 ".%06" PRId64 ",\n%s/%zu.vtt\n", d / 1000000, d % 1000000,
                   id, i);
    }
    buf_puts(b, "#EXT-X-ENDLIST\n");
    return b->failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "playlist: buffer is full")
                     : STATUS_OK;
}

// ---------------------------------------------------------------- DASH

static void put_xml(const char *text, struct buf *b)
{
    for (const char *c = text; *c; c++) {
        if (*c == '&')
            buf_puts(b, "&amp;");
        else if (*c == '<')
            buf_puts(b, "&lt;");
        else if (*c == '>') // never "]]>"
            buf_puts(b, "&gt;");
        else if (*c == '"')
            buf_puts(b, "&quot;");
        else
            buf_putc(b, *c);
    }
}

void media_texts_put_sets(const struct media_text *texts, size_t n, struct buf *b)
{
    for (size_t i = 0; i < n; i++) {
        const struct media_text *t = &texts[i];
        char name[80];
        label(t, name);
        buf_puts(b, "    <AdaptationSet contentType=\"text\" mimeType=\"text/vtt\"");
        if (media_language_is_plain(t->language))
            buf_printf(b, " lang=\"%s\"", t->language);
        buf_puts(b, ">\n      <Label>");
        put_xml(name, b);
        buf_printf(b,
                   "</Label>\n"
                   "      <Role schemeIdUri=\"urn:mpeg:dash:role:2011\" value=\"%s\"/>\n"
                   "      <Representation id=\"%s\" bandwidth=\"1000\">\n"
                   "        <BaseURL>%s.vtt</BaseURL>\n      </Representation>\n"
                   "    </AdaptationSet>\n",
                   t->is_forced             ? "forced-subtitle"
                   : t->is_hearing_impaired ? "caption"
                                            : "subtitle",
                   t->id, t->id);
    }
}
