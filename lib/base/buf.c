#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

void buf_init(struct buf *b, size_t limit_bytes)
{
    *b = (struct buf){.limit = limit_bytes};
}

void buf_done(struct buf *b)
{
    mem_free(b->data);
    buf_init(b, b->limit);
}

void buf_reset(struct buf *b)
{
    b->len = 0;
    b->failed = false;
    if (b->data)
        b->data[0] = '\0';
}

uint8_t *buf_reserve(struct buf *b, size_t n)
{
    if (b->len > b->limit || n > b->limit - b->len || n >= SIZE_MAX / 2 - b->len) {
        b->failed = true;
        return NULL;
    }
    size_t need = b->len + n + 1; // one more for the NUL
    if (need > b->cap) {
        size_t cap = b->cap ? b->cap : 64;
        while (cap < need)
            cap *= 2;
        if (b->limit < SIZE_MAX && cap > b->limit + 1)
            cap = b->limit + 1;
        uint8_t *data = mem_realloc(b->data, cap, 1);
        if (!data) {
            b->failed = true;
            return NULL;
        }
        b->data = data;
        b->cap = cap;
        b->data[b->len] = '\0';
    }
    return b->data + b->len;
}

void buf_commit(struct buf *b, size_t n)
{
    if (n == 0)
        return;
    b->len += n;
    b->data[b->len] = '\0';
}

bool buf_append(struct buf *b, const void *p, size_t n)
{
    uint8_t *at = buf_reserve(b, n);
    if (!at)
        return false;
    if (n)
        memcpy(at, p, n);
    buf_commit(b, n);
    return true;
}

bool buf_puts(struct buf *b, const char *s)
{
    return buf_append(b, s, strlen(s));
}

bool buf_putc(struct buf *b, char c)
{
    return buf_append(b, &c, 1);
}

bool buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    uint8_t *at = n < 0 ? NULL : buf_reserve(b, (size_t)n);
    if (at) {
        vsnprintf((char *)at, (size_t)n + 1, fmt, again); // the NUL's place is reserved as well
        buf_commit(b, (size_t)n);
    } else {
        b->failed = true;
    }
    va_end(again);
    va_end(ap);
    return at != NULL;
}

static bool put_be(struct buf *b, uint64_t v, unsigned n_bytes)
{
    uint8_t bytes[8];
    for (unsigned i = 0; i < n_bytes; i++)
        bytes[i] = (uint8_t)(v >> (8 * (n_bytes - 1 - i)));
    return buf_append(b, bytes, n_bytes);
}

bool buf_put_u8(struct buf *b, uint8_t v)
{
    return put_be(b, v, 1);
}

bool buf_put_be16(struct buf *b, uint16_t v)
{
    return put_be(b, v, 2);
}

bool buf_put_be32(struct buf *b, uint32_t v)
{
    return put_be(b, v, 4);
}

bool buf_put_be64(struct buf *b, uint64_t v)
{
    return put_be(b, v, 8);
}

static bool put_json_ascii(struct buf *b, unsigned char c)
{
    static const char short_forms[] = "\"\"\\\\\bb\ff\nn\rr\tt"; // character, letter, ...
    for (size_t i = 0; i + 1 < sizeof short_forms; i += 2)
        if ((unsigned char)short_forms[i] == c)
            return buf_putc(b, '\\') && buf_putc(b, short_forms[i + 1]);
    if (c < 0x20 || c == 0x7f)
        return buf_printf(b, "\\u%04x", c);
    return buf_putc(b, (char)c);
}

bool buf_put_json_string(struct buf *b, const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t start = b->len;
    bool ok = buf_putc(b, '"');
    for (size_t i = 0; ok && i < n;) {
        size_t len = str_utf8_char(p + i, n - i);
        if (len == 0)
            ok = buf_puts(b, "\xef\xbf\xbd");
        else if (len == 1)
            ok = put_json_ascii(b, p[i]);
        else
            ok = buf_append(b, p + i, len);
        i += len ? len : 1;
    }
    ok = ok && buf_putc(b, '"');
    if (!ok && b->data) { // all or nothing, as every append
        b->len = start;
        b->data[start] = '\0';
    }
    return ok;
}

uint8_t *buf_take(struct buf *b, size_t *ret_len)
{
    if (!b->data && !buf_reserve(b, 0))
        return NULL;
    uint8_t *data = b->data;
    if (ret_len)
        *ret_len = b->len;
    b->data = NULL;
    buf_init(b, b->limit);
    return data;
}

void reader_init(struct reader *r, const void *p, size_t n)
{
    *r = (struct reader){.p = p, .end = n ? (const uint8_t *)p + n : p};
}

size_t reader_left(const struct reader *r)
{
    return (size_t)(r->end - r->p);
}

const uint8_t *reader_bytes(struct reader *r, size_t n)
{
    if (r->failed || n > reader_left(r)) {
        r->failed = true;
        return NULL;
    }
    const uint8_t *at = r->p;
    r->p = n ? r->p + n : r->p;
    return at;
}

static uint64_t get_be(struct reader *r, unsigned n_bytes)
{
    const uint8_t *p = reader_bytes(r, n_bytes);
    uint64_t v = 0;
    for (unsigned i = 0; p && i < n_bytes; i++)
        v = v << 8 | p[i];
    return v;
}

uint8_t reader_u8(struct reader *r)
{
    return (uint8_t)get_be(r, 1);
}

uint16_t reader_be16(struct reader *r)
{
    return (uint16_t)get_be(r, 2);
}

uint32_t reader_be32(struct reader *r)
{
    return (uint32_t)get_be(r, 4);
}

uint64_t reader_be64(struct reader *r)
{
    return get_be(r, 8);
}
