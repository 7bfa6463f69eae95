#include "rpc/frame.h"

#include <string.h>

#include "base/str.h"

static bool get_varint(const uint8_t **p, const uint8_t *end, uint64_t max, uint64_t *ret)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64 && *p < end; shift += 7) {
        uint8_t b = *(*p)++;
        if (shift == 63 && b > 1)
            return false;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            *ret = v;
            return v <= max;
        }
    }
    return false;
}

static size_t put_varint(uint8_t *dst, uint64_t v)
{
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        dst[n++] = (uint8_t)(v | 0x80);
    dst[n++] = (uint8_t)v;
    return n;
}

bool frame_next(const uint8_t **p, const uint8_t *end, struct frame *ret)
{
    if (*p >= end)
        return false;
    uint8_t head = *(*p)++;
    uint64_t id, n;
    if (!get_varint(p, end, UINT32_MAX, &id) || !get_varint(p, end, UINT32_MAX, &n) ||
        n > (uint64_t)(end - *p))
        return false;
    *ret = (struct frame){.type = (enum frame_type)(head & FRAME_TYPE_MASK),
                          .flags = head & ~(unsigned)FRAME_TYPE_MASK,
                          .id = (uint32_t)id,
                          .p = *p,
                          .n = (size_t)n};
    *p += n;
    return true;
}

size_t frame_head(uint8_t *dst, enum frame_type type, unsigned flags, uint32_t id, size_t n)
{
    dst[0] = (uint8_t)((unsigned)type | flags);
    size_t len = 1;
    len += put_varint(dst + len, id);
    len += put_varint(dst + len, n);
    return len;
}

void frame_put(struct buf *b, enum frame_type type, unsigned flags, uint32_t id, const void *p,
               size_t n)
{
    uint8_t *dst = buf_reserve(b, FRAME_HEAD_MAX + n);
    if (!dst)
        return;
    size_t head = frame_head(dst, type, flags, id, n);
    if (n)
        memcpy(dst + head, p, n);
    buf_commit(b, head + n);
}

void frame_put_number(struct buf *b, enum frame_type type, uint32_t id, uint64_t v)
{
    uint8_t num[10];
    frame_put(b, type, 0, id, num, put_varint(num, v));
}

bool frame_number(const struct frame *f, uint64_t *ret)
{
    const uint8_t *p = f->p;
    return get_varint(&p, f->p + f->n, UINT64_MAX, ret);
}

size_t frame_run(const uint8_t *p, size_t n, size_t max)
{
    if (n <= max)
        return n;
    const uint8_t *at = p, *end = p + n;
    size_t run = 0;
    struct frame f;
    while (frame_next(&at, end, &f) && (size_t)(at - p) <= max)
        run = (size_t)(at - p);
    return run;
}

static size_t put_text(uint8_t *dst, const char *s, size_t max)
{
    size_t n = s ? strnlen(s, max) : 0;
    dst[0] = (uint8_t)n;
    if (n)
        memcpy(dst + 1, s, n);
    return n + 1;
}

static bool get_text(const uint8_t **p, const uint8_t *end, char *dst, size_t max)
{
    if (*p >= end)
        return false;
    size_t n = *(*p)++;
    if (n > max || n > (size_t)(end - *p) || memchr(*p, 0, n) || !str_is_utf8(*p, n))
        return false;
    memcpy(dst, *p, n);
    dst[n] = 0;
    *p += n;
    return true;
}

void frame_put_open(struct buf *b, uint32_t id, unsigned flags, uint32_t slot, uint64_t deadline_ms,
                    const char *method, const char *route, const char *key)
{
    uint8_t p[1 + 10 + 10 + 3 + FRAME_METHOD_MAX + FRAME_ROUTE_MAX + FRAME_KEY_MAX];
    size_t n = 0;
    p[n++] = (uint8_t)flags;
    n += put_varint(p + n, slot);
    n += put_varint(p + n, deadline_ms);
    n += put_text(p + n, method, FRAME_METHOD_MAX);
    n += put_text(p + n, route, FRAME_ROUTE_MAX);
    n += put_text(p + n, key, FRAME_KEY_MAX);
    frame_put(b, FRAME_OPEN, 0, id, p, n);
}

bool frame_open(const struct frame *f, struct frame_open *ret)
{
    const uint8_t *p = f->p, *end = f->p + f->n;
    uint64_t slot;
    if (p >= end)
        return false;
    ret->flags = *p++;
    if (!get_varint(&p, end, UINT32_MAX, &slot) ||
        !get_varint(&p, end, INT64_MAX, &ret->deadline_ms) ||
        !get_text(&p, end, ret->method, FRAME_METHOD_MAX) ||
        !get_text(&p, end, ret->route, FRAME_ROUTE_MAX) ||
        !get_text(&p, end, ret->key, FRAME_KEY_MAX))
        return false;
    ret->slot = (uint32_t)slot;
    return true;
}

void frame_put_status(struct buf *b, uint32_t id, const struct frame_status *s)
{
    if (s->code == STATUS_OK) {
        frame_put(b, FRAME_STATUS, 0, id, NULL, 0);
        return;
    }
    uint8_t p[20 + sizeof s->msg];
    size_t n = put_varint(p, (uint64_t)s->code);
    n += put_varint(p + n, s->retry_after_ms > 0 ? (uint64_t)s->retry_after_ms : 0);
    size_t len = strnlen(s->msg, sizeof s->msg);
    memcpy(p + n, s->msg, len);
    frame_put(b, FRAME_STATUS, 0, id, p, n + len);
}

bool frame_status(const struct frame *f, struct frame_status *ret)
{
    *ret = (struct frame_status){.code = STATUS_OK};
    if (f->n == 0)
        return true;
    const uint8_t *p = f->p, *end = f->p + f->n;
    uint64_t code, retry;
    if (!get_varint(&p, end, UINT32_MAX, &code) || !get_varint(&p, end, INT64_MAX, &retry))
        return false;
    size_t n = (size_t)(end - p);
    if (n >= sizeof ret->msg || !str_is_utf8(p, n) || (n && memchr(p, 0, n)))
        return false;
    ret->code = status_from_wire((unsigned)code);
    ret->retry_after_ms = (int64_t)retry;
    if (n)
        memcpy(ret->msg, p, n);
    return true;
}
