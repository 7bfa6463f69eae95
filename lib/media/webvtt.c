// WebVTT, the plain form of it: cleaned when it is written, refused when it is read and not clean.
#include "media/webvtt.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

#define MAX_OPEN_TAGS 16
#define MAX_ANNOTATION 64
#define MAX_TAG                                                                                    \
    1024 // what is longer is text: many that never end would each be searched to the end

// ---------------------------------------------------------------- text

// What is being written of a cue: the tags that are open, and where its text began.
struct cleaner {
    struct buf *out;
    size_t begin;
    const char *open[MAX_OPEN_TAGS];
    size_t n_open;
};

static const struct {
    const char *name;
    bool classes, annotation;
} tags[] = {{"b", true, false}, {"i", true, false},   {"u", true, false},    {"c", true, false},
            {"v", true, true},  {"lang", true, true}, {"ruby", true, false}, {"rt", true, false}};

static void trim_line(struct cleaner *c)
{
    struct buf *b = c->out;
    while (b->len > c->begin && b->data[b->len - 1] == ' ')
        b->len--;
}

static bool at_line_start(const struct cleaner *c)
{
    return c->out->len == c->begin || c->out->data[c->out->len - 1] == '\n';
}

static void end_line(struct cleaner *c)
{
    trim_line(c);
    if (!at_line_start(c))
        buf_putc(c->out, '\n');
}

// A character of text, escaped where it must be.
static void put_char(struct cleaner *c, const char *p, size_t n)
{
    unsigned char first = (unsigned char)*p;
    if (first == '\n' || first == '\r')
        end_line(c);
    else if (first == '\t')
        buf_putc(c->out, ' ');
    else if (first == '<')
        buf_puts(c->out, "&lt;");
    else if (first == '>')
        buf_puts(c->out, "&gt;");
    else if (first == '&')
        buf_puts(c->out, "&amp;");
    else if (first >= 0x20 && first != 0x7f)
        buf_append(c->out, p, n);
}

static size_t put_utf8(struct cleaner *c, const char *p, size_t left)
{
    size_t n = str_utf8_char(p, left);
    // C1 controls, byte order marks and the separators that some take for ends of lines.
    bool drop = n == 2 && (unsigned char)p[0] == 0xc2 && (unsigned char)p[1] < 0xa0;
    drop |= n == 3 && (memcmp(p, "\xef\xbb\xbf", 3) == 0 || memcmp(p, "\xe2\x80\xa8", 3) == 0 ||
                       memcmp(p, "\xe2\x80\xa9", 3) == 0);
    if (n == 0) {
        buf_puts(c->out, "\xef\xbf\xbd");
        return 1;
    }
    if (!drop)
        put_char(c, p, n);
    return n;
}

static void put_code_point(struct cleaner *c, uint32_t v)
{
    char s[4];
    size_t n = 0;
    if (v < 0x80) {
        s[n++] = (char)v;
    } else if (v < 0x800) {
        s[n++] = (char)(0xc0 | v >> 6);
    } else if (v < 0x10000) {
        s[n++] = (char)(0xe0 | v >> 12);
        s[n++] = (char)(0x80 | (v >> 6 & 0x3f));
    } else {
        s[n++] = (char)(0xf0 | v >> 18);
        s[n++] = (char)(0x80 | (v >> 12 & 0x3f));
        s[n++] = (char)(0x80 | (v >> 6 & 0x3f));
    }
    if (v >= 0x80)
        s[n++] = (char)(0x80 | (v & 0x3f));
    for (size_t at = 0; at < n;) // surrogates are not well-formed and become U+FFFD, once
        at += str_utf8_char(s, n) ? put_utf8(c, s + at, n - at) : (put_utf8(c, "\xff", 1), n);
}

// "&...;" at p. 0: not one.
static size_t put_entity(struct cleaner *c, const char *p, size_t left)
{
    static const char *const known[] = {"&amp;", "&lt;", "&gt;", "&lrm;", "&rlm;", "&nbsp;"};
    for (size_t i = 0; i < N_ELEMENTS(known); i++) {
        size_t n = strlen(known[i]);
        if (left >= n && memcmp(p, known[i], n) == 0) {
            buf_append(c->out, known[i], n);
            return n;
        }
    }
    if (left < 4 || p[1] != '#')
        return 0;
    bool hex = p[2] == 'x' || p[2] == 'X';
    size_t at = hex ? 3 : 2, from = at;
    uint32_t v = 0;
    for (; at < left && at < from + 7; at++) {
        char ch = p[at];
        uint32_t digit = ch >= '0' && ch <= '9'          ? (uint32_t)(ch - '0')
                         : hex && ch >= 'a' && ch <= 'f' ? (uint32_t)(ch - 'a' + 10)
                         : hex && ch >= 'A' && ch <= 'F' ? (uint32_t)(ch - 'A' + 10)
                                                         : 99;
        if (digit == 99)
            break;
        v = v * (hex ? 16 : 10) + digit;
    }
    if (at == from || at == left || p[at] != ';' || v > 0x10ffff)
        return 0;
    put_code_point(c, v);
    return at + 1;
}

static void close_to(struct cleaner *c, size_t keep)
{
    while (c->n_open > keep)
        buf_printf(c->out, "</%s>", c->open[--c->n_open]);
}

static bool is_class_char(char ch)
{
    return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
           ch == '_' || ch == '.';
}

// Only what can neither end a tag nor look like an arrow.
static void put_annotation(struct cleaner *c, const char *p, size_t n)
{
    while (n && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
        p++, n--;
    size_t begin = c->out->len;
    for (size_t i = 0; i < n && c->out->len - begin < MAX_ANNOTATION;) {
        size_t len = str_utf8_char(p + i, n - i);
        unsigned char first = (unsigned char)p[i];
        bool plain = len > 1 ? first > 0xc2
                             : len == 1 && first >= 0x20 && first != 0x7f && first != '&' &&
                                   first != '<' && first != '>';
        bool mark = len == 3 && (first == 0xe2 || first == 0xef);
        bool arrow = first == '-' && c->out->len > begin && c->out->data[c->out->len - 1] == '-';
        if (plain && !mark && !arrow && !(first == ' ' && c->out->len == begin)) {
            if (c->out->len == begin)
                buf_putc(c->out, ' ');
            buf_append(c->out, p + i, len);
        }
        i += len ? len : 1;
    }
    while (c->out->len > begin && c->out->data[c->out->len - 1] == ' ')
        c->out->len--;
}

static void open_tag(struct cleaner *c, size_t which, const char *rest, size_t n)
{
    if (c->n_open == MAX_OPEN_TAGS)
        return;
    size_t at = 0;
    buf_printf(c->out, "<%s", tags[which].name);
    if (n && *rest == '.') {
        while (at < n && at < MAX_ANNOTATION && is_class_char(rest[at]))
            at++;
        size_t len = at;
        while (len && rest[len - 1] == '.')
            len--;
        buf_append(c->out, rest, len);
        while (at < n && rest[at] != ' ' && rest[at] != '\t' && rest[at] != '\n')
            at++;
    }
    if (tags[which].annotation)
        put_annotation(c, rest + at, n - at);
    buf_putc(c->out, '>');
    c->open[c->n_open++] = tags[which].name;
}

static void close_tag(struct cleaner *c, const char *name)
{
    for (size_t i = c->n_open; i > 0; i--) {
        if (c->open[i - 1] == name) {
            close_to(c, i - 1);
            return;
        }
    }
}

// "<...>" at p: written when it is one of ours, left out otherwise. 0: not a tag.
static size_t put_tag(struct cleaner *c, const char *p, size_t left)
{
    const char *end = memchr(p, '>', left < MAX_TAG ? left : MAX_TAG);
    if (!end)
        return 0;
    bool closing = p[1] == '/';
    const char *name = p + 1 + closing;
    size_t n = (size_t)(end - name), len = 0;
    while (len < n &&
           ((name[len] >= 'a' && name[len] <= 'z') || (name[len] >= 'A' && name[len] <= 'Z')))
        len++;
    bool stamp = len == 0 && n && name[0] >= '0' && name[0] <= '9' && memchr(name, ':', n);
    if (len == 0 && !stamp && !(closing && n == 0))
        return 0;
    for (size_t i = 0; i < N_ELEMENTS(tags); i++) {
        bool same = strlen(tags[i].name) == len;
        for (size_t k = 0; same && k < len; k++)
            same = (name[k] | 0x20) == tags[i].name[k];
        bool ends = len == n || name[len] == '.' || name[len] == ' ' || name[len] == '\t' ||
                    name[len] == '\n';
        if (!same || !ends)
            continue;
        if (closing)
            close_tag(c, tags[i].name);
        else
            open_tag(c, i, name + len, n - len);
        break;
    }
    return (size_t)(end - p) + 1;
}

void media_webvtt_clean(const char *text, size_t n, struct buf *ret)
{
    struct cleaner c = {.out = ret, .begin = ret->len};
    for (size_t at = 0; at < n && !ret->failed;) {
        size_t used = text[at] == '<'   ? put_tag(&c, text + at, n - at)
                      : text[at] == '&' ? put_entity(&c, text + at, n - at)
                                        : 0;
        at += used ? used : put_utf8(&c, text + at, n - at);
    }
    trim_line(&c);
    while (ret->len > c.begin && ret->data[ret->len - 1] == '\n') {
        ret->len--;
        trim_line(&c);
    }
    close_to(&c, 0);
    if (ret->data)
        ret->data[ret->len] = '\0';
}

// ---------------------------------------------------------------- settings

static bool setting_is_known(const char *p, size_t n)
{
    static const char *const names[] = {"vertical:", "line:", "position:", "size:", "align:"};
    size_t name = 0;
    for (size_t i = 0; i < N_ELEMENTS(names); i++) {
        size_t len = strlen(names[i]);
        if (n > len && memcmp(p, names[i], len) == 0)
            name = len;
    }
    for (size_t i = name; name && i < n; i++) {
        bool plain = (p[i] >= 'a' && p[i] <= 'z') || (p[i] >= '0' && p[i] <= '9') || p[i] == '%' ||
                     p[i] == '.' || p[i] == ',' || (p[i] == '-' && i == name);
        if (!plain)
            return false;
    }
    return name > 0;
}

void media_webvtt_clean_settings(const char *settings, size_t n, char dst[MEDIA_CUE_SETTINGS])
{
    size_t used = 0;
    for (size_t at = 0; at < n;) {
        size_t len = 0;
        while (at + len < n && settings[at + len] != ' ' && settings[at + len] != '\t')
            len++;
        if (setting_is_known(settings + at, len) && used + len + 1 < MEDIA_CUE_SETTINGS) {
            if (used)
                dst[used++] = ' ';
            memcpy(dst + used, settings + at, len);
            used += len;
        }
        at += len + 1;
    }
    dst[used] = '\0';
}

// ---------------------------------------------------------------- a whole track

static void put_time(struct buf *b, int64_t ms)
{
    buf_printf(b, "%02" PRId64 ":%02" PRId64 ":%02" PRId64 ".%03" PRId64, ms / 3600000,
               ms / 60000 % 60, ms / 1000 % 60, ms % 1000);
}

static void put_cue(struct buf *b, const struct media_cue *c)
{
    buf_puts(b, "\n");
    put_time(b, c->start_ms);
    buf_puts(b, " --> ");
    put_time(b, c->end_ms);
    if (c->settings_len) {
        buf_puts(b, " ");
        buf_append(b, c->settings, c->settings_len);
    }
    buf_puts(b, "\n");
    buf_append(b, c->text, c->text_len);
    buf_puts(b, "\n");
}

enum status media_webvtt_write(const struct media_cue *cues, size_t n, struct buf *b,
                               struct err *err)
{
    if (n > MEDIA_MAX_CUES)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "subtitles: %zu cues; at most %d", n,
                       MEDIA_MAX_CUES);
    buf_puts(b, "WEBVTT\n");
    for (size_t i = 0; i < n; i++)
        put_cue(b, &cues[i]);
    return b->failed
               ? err_set(err, STATUS_RESOURCE_EXHAUSTED,
                         "subtitles: more than %u bytes, or out of memory", MEDIA_MAX_TEXT_BYTES)
               : STATUS_OK;
}

// ---------------------------------------------------------------- reading

struct lines {
    const char *p, *end;
    unsigned number; // of the line that was read last
};

// The next line without its end; false after the last. A file that ends without '\n' has lost some.
static bool next_line(struct lines *l, const char **ret, size_t *ret_len)
{
    const char *end = l->p < l->end ? memchr(l->p, '\n', (size_t)(l->end - l->p)) : NULL;
    if (!end)
        return false;
    *ret = l->p;
    *ret_len = (size_t)(end - l->p);
    l->p = end + 1;
    l->number++;
    return true;
}

// "00:00:01.000": two or more digits of hours, up to 99.
static bool read_time(const char *p, int64_t *ret)
{
    static const char form[] = "dd:dd:dd.ddd";
    for (size_t i = 0; i < sizeof(form) - 1; i++) {
        if (form[i] == 'd' ? p[i] < '0' || p[i] > '9' : p[i] != form[i])
            return false;
    }
    int64_t h = (p[0] - '0') * 10 + p[1] - '0', m = (p[3] - '0') * 10 + p[4] - '0',
            s = (p[6] - '0') * 10 + p[7] - '0',
            ms = (p[9] - '0') * 100 + (p[10] - '0') * 10 + p[11] - '0';
    *ret = ((h * 60 + m) * 60 + s) * 1000 + ms;
    return m < 60 && s < 60;
}

enum { TIME_LEN = 12, ARROW_LEN = 5, TIMES_LEN = 2 * TIME_LEN + ARROW_LEN };

static bool read_times(const char *p, size_t n, struct media_cue *c)
{
    if (n < TIMES_LEN || !read_time(p, &c->start_ms) ||
        memcmp(p + TIME_LEN, " --> ", ARROW_LEN) != 0 ||
        !read_time(p + TIME_LEN + ARROW_LEN, &c->end_ms) || c->end_ms <= c->start_ms)
        return false;
    if (n == TIMES_LEN)
        return true;
    char known[MEDIA_CUE_SETTINGS];
    c->settings = p + TIMES_LEN + 1;
    c->settings_len = n - TIMES_LEN - 1;
    if (p[TIMES_LEN] != ' ' || c->settings_len == 0 || c->settings_len >= sizeof(known))
        return false;
    media_webvtt_clean_settings(c->settings, c->settings_len, known);
    return strlen(known) == c->settings_len && memcmp(known, c->settings, c->settings_len) == 0;
}

static bool read_text(struct lines *l, struct media_cue *c)
{
    const char *line;
    size_t len;
    c->text = l->p;
    while (l->p < l->end && *l->p != '\n') {
        if (!next_line(l, &line, &len))
            return false;
        c->text_len = (size_t)(line + len - c->text);
    }
    return c->text_len > 0;
}

static bool text_is_clean(const struct media_cue *c, struct buf *scratch)
{
    buf_reset(scratch);
    media_webvtt_clean(c->text, c->text_len, scratch);
    return !scratch->failed && scratch->len == c->text_len &&
           memcmp(scratch->data, c->text, c->text_len) == 0;
}

static bool add_cue(struct media_webvtt *w, size_t *cap, const struct media_cue *c)
{
    if (w->n == *cap) {
        size_t more = *cap ? *cap * 2 : 256;
        struct media_cue *p = mem_realloc(w->cues, more, sizeof(*p));
        if (!p)
            return false;
        w->cues = p;
        *cap = more;
    }
    w->cues[w->n++] = *c;
    return true;
}

static enum status bad(const struct lines *l, const char *what, struct err *err)
{
    return err_set(err, STATUS_INVALID_ARGUMENT, "subtitles: line %u: %s", l->number, what);
}

static enum status read_cues(struct lines *l, struct media_webvtt *w, struct buf *scratch,
                             struct err *err)
{
    const char *line;
    size_t len, cap = 0;
    int64_t last = 0;
    while (l->p < l->end) {
        struct media_cue c = {.settings = ""};
        if (!next_line(l, &line, &len) || len != 0)
            return bad(l, "an empty line was expected", err);
        if (!next_line(l, &line, &len) || !read_times(line, len, &c) || c.start_ms < last)
            return bad(l, "times are damaged or out of order", err);
        if (!read_text(l, &c) || !text_is_clean(&c, scratch))
            return bad(l, "the text before it is not clean", err);
        if (w->n == MEDIA_MAX_CUES || !add_cue(w, &cap, &c))
            return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                           "subtitles: more than %d cues, or out of memory", MEDIA_MAX_CUES);
        last = c.start_ms;
    }
    return STATUS_OK;
}

enum status media_webvtt_parse(const void *bytes, size_t n, struct media_webvtt *ret,
                               struct err *err)
{
    struct lines l = {.p = bytes, .end = (const char *)bytes + n};
    struct media_webvtt w = {.n = 0};
    const char *line;
    size_t len;
    if (n > MEDIA_MAX_TEXT_BYTES)
        return err_set(err, STATUS_INVALID_ARGUMENT, "subtitles: %zu bytes; at most %u", n,
                       MEDIA_MAX_TEXT_BYTES);
    if (n == 0 || !next_line(&l, &line, &len) || len != 6 || memcmp(line, "WEBVTT", 6) != 0)
        return bad(&l, "not WebVTT in the plain form", err);
    struct buf scratch;
    buf_init(&scratch, 8 * MEDIA_MAX_TEXT_BYTES);
    enum status s = read_cues(&l, &w, &scratch, err);
    buf_done(&scratch);
    if (s != STATUS_OK) {
        media_webvtt_done(&w);
        return s;
    }
    *ret = w;
    return STATUS_OK;
}

void media_webvtt_done(struct media_webvtt *w)
{
    mem_free(w->cues);
    *w = (struct media_webvtt){.n = 0};
}

bool media_webvtt_is_sane(const void *bytes, size_t n)
{
    struct media_webvtt w = {.n = 0};
    bool sane = media_webvtt_parse(bytes, n, &w, NULL) == STATUS_OK;
    media_webvtt_done(&w);
    return sane;
}

enum status media_webvtt_slice(const struct media_webvtt *w, int64_t start_us, int64_t end_us,
                               struct buf *b, struct err *err)
{
    buf_puts(b, "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000\n");
    for (size_t i = 0; i < w->n && w->cues[i].start_ms * 1000 < end_us; i++) {
        if (w->cues[i].end_ms * 1000 > start_us)
            put_cue(b, &w->cues[i]);
    }
    return b->failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "subtitles: buffer is full")
                     : STATUS_OK;
}

void media_webvtt_plain(const struct media_cue *c, struct buf *b)
{
    static const struct {
        const char *escape, *text;
    } escapes[] = {{"&amp;", "&"},  {"&lt;", "<"}, {"&gt;", ">"},
                   {"&nbsp;", " "}, {"&lrm;", ""}, {"&rlm;", ""}};
    for (size_t at = 0; at < c->text_len;) {
        const char *p = c->text + at;
        size_t left = c->text_len - at, used = 0;
        const char *end = *p == '<' ? memchr(p, '>', left) : NULL;
        if (end)
            used = (size_t)(end - p) + 1;
        for (size_t i = 0; !used && *p == '&' && i < N_ELEMENTS(escapes); i++) {
            size_t n = strlen(escapes[i].escape);
            if (left >= n && memcmp(p, escapes[i].escape, n) == 0) {
                buf_puts(b, escapes[i].text);
                used = n;
            }
        }
        if (!used) {
            buf_putc(b, *p == '\n' ? ' ' : *p);
            used = 1;
        }
        at += used;
    }
}
