// Text and JSON for people and programs.
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "json/proto.h"

enum { MAX_OUTPUT_BYTES = 64 << 20 };

enum status ctl_status(struct ctl *k, cauce_status s, const cauce_error *e)
{
    return s == CAUCE_OK ? STATUS_OK : err_set(&k->err, (enum status)s, "%s", e->message);
}

enum status ctl_parse_money(struct ctl *k, const char *text, int64_t *ret_minor,
                            char ret_currency[4])
{
    char whole[20] = "", cents[3] = "00";
    size_t digits = strspn(text, "0123456789"), at = digits;
    bool ok = digits > 0 && digits < 16;
    if (ok)
        memcpy(whole, text, digits);
    if (ok && text[at] == '.') {
        ok = strspn(text + at + 1, "0123456789") == 2;
        if (ok)
            memcpy(cents, text + at + 1, 2);
        at += 3;
    }
    int64_t units = 0, rest = 0;
    ok = ok && text[at] == ' ' && strspn(text + at + 1, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 3 &&
         text[at + 4] == '\0' &&
         str_parse_i64(whole, 0, INT64_MAX / 200, &units, NULL) == STATUS_OK;
    for (const char *p = cents; ok && *p; p++)
        rest = rest * 10 + (*p - '0');
    if (!ok) {
        k->is_misused = true;
        return err_set(&k->err, STATUS_INVALID_ARGUMENT,
                       "\"%s\" is not an amount like \"5.00 EUR\"", text);
    }
    *ret_minor = units * 100 + rest;
    memcpy(ret_currency, text + at + 1, 4);
    return STATUS_OK;
}

void ctl_money(char dst[CTL_MONEY_SIZE], int64_t minor, const char *currency)
{
    int64_t a = minor < 0 ? -minor : minor;
    snprintf(dst, CTL_MONEY_SIZE, "%s%" PRId64 ".%02d %.8s", minor < 0 ? "-" : "", a / 100,
             (int)(a % 100), currency);
}

void ctl_say_more(const char *next_page)
{
    if (*next_page)
        printf("more: --page %s\n", next_page);
}

void ctl_duration(char dst[CTL_TIME_SIZE], int64_t us)
{
    int64_t s = (us + 500000) / 1000000;
    if (s >= 3600)
        snprintf(dst, CTL_TIME_SIZE, "%" PRId64 ":%02d:%02d", s / 3600, (int)(s / 60 % 60),
                 (int)(s % 60));
    else
        snprintf(dst, CTL_TIME_SIZE, "%d:%02d", (int)(s / 60), (int)(s % 60));
}

enum status ctl_put_message(struct ctl *k, const ProtobufCMessage *m, struct buf *b)
{
    return json_print_message(m, JSON_PROTO_DEFAULTS, b, &k->err);
}

enum status ctl_print_message(struct ctl *k, const ProtobufCMessage *m)
{
    struct buf b;
    buf_init(&b, MAX_OUTPUT_BYTES);
    enum status s = ctl_put_message(k, m, &b);
    if (s == STATUS_OK && printf("%s\n", buf_str(&b)) < 0)
        s = err_set(&k->err, STATUS_UNKNOWN, "write to standard output failed");
    buf_done(&b);
    return s;
}

// ---------------------------------------------------------------- tables

static void table_init(struct table *t, size_t n_columns)
{
    *t = (struct table){.n_columns = n_columns, .arena = arena_new(MAX_OUTPUT_BYTES)};
    t->failed = !t->arena;
}

void table_heads(struct table *t, const char *const *heads, size_t n)
{
    table_init(t, n);
    for (size_t i = 0; i < n; i++)
        table_add(t, "%s", heads[i]);
}

void table_add(struct table *t, const char *fmt, ...)
{
    if (!t->failed && t->n_cells == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 64;
        char **more = mem_realloc(t->cells, cap, sizeof(t->cells[0]));
        t->failed = !more;
        if (more) {
            t->cells = more;
            t->cap = cap;
        }
    }
    if (t->failed)
        return;
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    if (vasprintf(&text, fmt, ap) < 0)
        text = NULL;
    va_end(ap);
    char *cell = text ? arena_strdup(t->arena, text) : NULL;
    free(text);
    t->failed = !cell;
    if (cell)
        t->cells[t->n_cells++] = cell;
}

static size_t width_of(const char *s)
{
    size_t n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80; // continuation bytes take no room
    return n;
}

static void print_cell(FILE *f, const char *s, size_t width, bool is_last)
{
    for (const char *p = s; *p; p++) // a title must not move the terminal's cursor
        fputc((unsigned char)*p < 0x20 || *p == 0x7f ? '?' : *p, f);
    for (size_t n = width_of(s); !is_last && n < width + 2; n++)
        fputc(' ', f);
}

enum status table_print(struct table *t, FILE *f, struct err *err)
{
    size_t widths[16] = {0};
    for (size_t i = 0; !t->failed && i < t->n_cells; i++) {
        size_t w = width_of(t->cells[i]), *max = &widths[i % t->n_columns];
        *max = w > *max ? w : *max;
    }
    for (size_t i = 0; !t->failed && i < t->n_cells; i++) {
        bool is_last = i % t->n_columns == t->n_columns - 1;
        print_cell(f, t->cells[i], widths[i % t->n_columns], is_last);
        if (is_last)
            fputc('\n', f);
    }
    bool failed = t->failed;
    mem_free(t->cells);
    arena_free(t->arena);
    return failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory") : STATUS_OK;
}
