// From the text of an ASS event to that of a WebVTT cue. Everything is written as WebVTT that may
// hold anything, and then cleaned like what came as WebVTT.
#include <string.h>

#include "media/webvtt.h"

struct style {
    bool b, i, u;
};

struct reader_state {
    struct buf *out;
    struct style now, written; // as the script has it; as the tags say
    bool drawing;              // vector shapes, which are no text
    int align;                 // 1..9 like the keys of a number pad; 0: none given
    bool placed;
    int64_t x, y; // of \pos, thousandths
};

static void write_style(struct reader_state *s)
{
    if (memcmp(&s->now, &s->written, sizeof(s->now)) == 0)
        return;
    if (s->written.u)
        buf_puts(s->out, "</u>");
    if (s->written.i)
        buf_puts(s->out, "</i>");
    if (s->written.b)
        buf_puts(s->out, "</b>");
    if (s->now.b)
        buf_puts(s->out, "<b>");
    if (s->now.i)
        buf_puts(s->out, "<i>");
    if (s->now.u)
        buf_puts(s->out, "<u>");
    s->written = s->now;
}

static void put_text(struct reader_state *s, const char *p, size_t n)
{
    if (s->drawing)
        return;
    write_style(s);
    if (n == 1 && *p == '<')
        buf_puts(s->out, "&lt;");
    else if (n == 1 && *p == '>')
        buf_puts(s->out, "&gt;");
    else if (n == 1 && *p == '&')
        buf_puts(s->out, "&amp;");
    else
        buf_append(s->out, p, n);
}

// A number at p; ret_len 0: none. In thousandths, within a million.
static int64_t read_number(const char *p, size_t n, size_t *ret_len)
{
    size_t at = 0;
    bool minus = n && *p == '-', any = false;
    int64_t v = 0, unit = 1000;
    for (at = minus; at < n && ((p[at] >= '0' && p[at] <= '9') || (p[at] == '.' && unit == 1000));
         at++) {
        if (p[at] == '.') {
            unit = 100;
        } else if (unit == 1000) {
            v = v < 1000000000 ? v * 10 + (p[at] - '0') * 1000 : v;
            any = true;
        } else {
            v += (p[at] - '0') * unit;
            unit /= 10;
        }
    }
    *ret_len = any ? at : 0;
    return minus ? -v : v;
}

static void read_pos(struct reader_state *s, const char *p, size_t n)
{
    size_t len;
    int64_t x = read_number(p, n, &len);
    if (len == 0 || len >= n || p[len] != ',')
        return;
    p += len + 1;
    n -= len + 1;
    while (n && *p == ' ')
        p++, n--;
    int64_t y = read_number(p, n, &len);
    if (len == 0)
        return;
    s->x = x;
    s->y = y;
    s->placed = true;
}

// One override without its backslash: "i1", "an8", "pos(10,20)".
static void read_override(struct reader_state *s, const char *p, size_t n)
{
    static const int legacy[12] = {0, 1, 2, 3, 0, 7, 8, 9, 0, 4, 5, 6};
    size_t len;
    if (n > 4 && memcmp(p, "pos(", 4) == 0) {
        read_pos(s, p + 4, n - 4);
        return;
    }
    if (n == 3 && memcmp(p, "an", 2) == 0 && p[2] >= '1' && p[2] <= '9') {
        s->align = p[2] - '0';
        return;
    }
    if (n >= 1 && *p == 'r') { // to the line's style, or to another that is not known here
        s->now = (struct style){false, false, false};
        return;
    }
    int64_t v = n > 1 ? read_number(p + 1, n - 1, &len) / 1000 : 0;
    if (n > 1 && len != n - 1)
        return; // "\bord2", "\iclip(...)": others that begin alike
    switch (*p) {
    case 'b': // also a weight
        s->now.b = v == 1 || v >= 600;
        break;
    case 'i':
        s->now.i = v == 1;
        break;
    case 'u':
        s->now.u = v == 1;
        break;
    case 'p':
        s->drawing = v > 0;
        break;
    case 'a':
        if (v > 0 && v < 12)
            s->align = legacy[v];
        break;
    default:
        break;
    }
}

static void read_overrides(struct reader_state *s, const char *p, size_t n)
{
    for (size_t at = 0; at < n;) {
        if (p[at++] != '\\')
            continue;
        size_t len = 0;
        unsigned depth = 0;
        while (at + len < n && (depth || p[at + len] != '\\')) {
            depth += p[at + len] == '(';
            depth -= depth && p[at + len] == ')';
            len++;
        }
        if (len)
            read_override(s, p + at, len);
        at += len;
    }
}

static unsigned percent(int64_t milli, uint32_t of)
{
    int64_t v = milli / (10 * (int64_t)of);
    return v < 0 ? 0 : v > 100 ? 100 : (unsigned)v;
}

static void settings_of(const struct reader_state *s, uint32_t width, uint32_t height,
                        char settings[MEDIA_CUE_SETTINGS])
{
    struct buf b;
    buf_init(&b, MEDIA_CUE_SETTINGS - 1);
    int column = s->align ? (s->align - 1) % 3 : 1, row = s->align ? (s->align - 1) / 3 : 0;
    if (s->placed && width && height)
        buf_printf(&b, "line:%u%% position:%u%% ", percent(s->y, height), percent(s->x, width));
    else if (row)
        buf_printf(&b, "line:%s ", row == 2 ? "5%" : "50%");
    if (column != 1 && !s->placed)
        buf_printf(&b, "position:%s ", column == 0 ? "5%" : "95%");
    if (column != 1)
        buf_printf(&b, "align:%s", column == 0 ? "start" : "end");
    media_webvtt_clean_settings(buf_str(&b), b.len, settings);
    buf_done(&b);
}

void media_webvtt_from_ass(const char *text, size_t n, uint32_t width, uint32_t height,
                           struct buf *ret, char settings[MEDIA_CUE_SETTINGS])
{
    struct buf raw;
    buf_init(&raw, 16 * MEDIA_MAX_CUE_BYTES);
    struct reader_state s = {.out = &raw};
    if (n > MEDIA_MAX_CUE_BYTES)
        n = MEDIA_MAX_CUE_BYTES;
    for (size_t at = 0; at < n;) {
        const char *p = text + at;
        size_t left = n - at;
        const char *end = *p == '{' ? memchr(p, '}', left) : NULL;
        if (end) {
            read_overrides(&s, p + 1, (size_t)(end - p) - 1);
            at += (size_t)(end - p) + 1;
        } else if (*p == '\\' && left > 1 && (p[1] == 'N' || p[1] == 'n')) {
            put_text(&s, "\n", 1);
            at += 2;
        } else if (*p == '\\' && left > 1 && p[1] == 'h') {
            put_text(&s, "&nbsp;", 6);
            at += 2;
        } else {
            if (*p == '\\' && left > 1 && (p[1] == '{' || p[1] == '}'))
                p++, at++;
            put_text(&s, p, 1);
            at++;
        }
    }
    media_webvtt_clean(buf_str(&raw), raw.len, ret);
    settings_of(&s, width, height, settings);
    buf_done(&raw);
}
