#include "rpc/frame.h"

#include <string.h>

#include "base/mem.h"
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

size_t frame_run(const uint8_t *p, size_t n, size_t max, unsigned *ret_n_status)
{
    const uint8_t *at = p, *end = p + n;
    size_t run = 0;
    struct frame f;
    *ret_n_status = 0;
    while (frame_next(&at, end, &f) && (size_t)(at - p) <= max) {
        run = (size_t)(at - p);
        *ret_n_status += f.type == FRAME_STATUS;
    }
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

// ---------------------------------------------------------------- OPEN

bool frame_metadata_key_ok(const char *key, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char c = key[i];
        if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '_' && c != '.' && c != '-')
            return false;
    }
    return n > 0 && n <= RPC_METADATA_KEY_MAX;
}

static size_t put_trace(uint8_t *dst, const struct rpc_trace *t)
{
    memcpy(dst, t->trace_id, 16);
    memcpy(dst + 16, t->span_id, 8);
    dst[24] = t->flags;
    return 25;
}

static size_t put_metadata(uint8_t *dst, const struct rpc_metadata *m, size_t n)
{
    size_t len = put_varint(dst, n);
    for (size_t i = 0; i < n; i++) {
        len += put_text(dst + len, m[i].key, RPC_METADATA_KEY_MAX);
        len += put_varint(dst + len, m[i].n_value);
        if (m[i].n_value)
            memcpy(dst + len, m[i].value, m[i].n_value);
        len += m[i].n_value;
    }
    return len;
}

static size_t metadata_room(const struct rpc_metadata *m, size_t n)
{
    size_t room = n ? 10 : 0;
    for (size_t i = 0; i < n; i++)
        room += 1 + strlen(m[i].key) + 10 + m[i].n_value;
    return room;
}

#define OPEN_MAX (1 + 10 + 10 + 3 + FRAME_METHOD_MAX + FRAME_ROUTE_MAX + FRAME_KEY_MAX + 25 + 10)

void frame_put_open(struct buf *b, uint32_t id, const struct frame_call *c)
{
    uint8_t p[OPEN_MAX];
    size_t n = 0;
    size_t room = metadata_room(c->metadata, c->n_metadata);
    p[n++] = (uint8_t)(c->flags | (c->trace ? FRAME_OPEN_TRACE : 0U) |
                       (c->n_metadata ? FRAME_OPEN_METADATA : 0U) |
                       (c->attempt > 1 ? FRAME_OPEN_ATTEMPT : 0U));
    n += put_varint(p + n, c->slot);
    n += put_varint(p + n, c->deadline_ms);
    n += put_text(p + n, c->method, FRAME_METHOD_MAX);
    n += put_text(p + n, c->route, FRAME_ROUTE_MAX);
    n += put_text(p + n, c->key, FRAME_KEY_MAX);
    if (c->trace)
        n += put_trace(p + n, c->trace);
    if (!c->n_metadata) {
        n += c->attempt > 1 ? put_varint(p + n, c->attempt) : 0;
        frame_put(b, FRAME_OPEN, 0, id, p, n);
        return;
    }
    uint8_t *all = mem_alloc(n + room + 10);
    if (!all)
        return; // the call then ends by its deadline, as when the buffer cannot grow
    memcpy(all, p, n);
    n += put_metadata(all + n, c->metadata, c->n_metadata);
    n += c->attempt > 1 ? put_varint(all + n, c->attempt) : 0;
    frame_put(b, FRAME_OPEN, 0, id, all, n);
    mem_free(all);
}

bool frame_metadata_next(const uint8_t **p, const uint8_t *end, struct rpc_metadata *ret,
                         size_t *ret_key_len)
{
    if (*p >= end)
        return false;
    size_t key_len = *(*p)++;
    if (key_len > (size_t)(end - *p) || !frame_metadata_key_ok((const char *)*p, key_len))
        return false;
    ret->key = (const char *)*p;
    *ret_key_len = key_len;
    *p += key_len;
    uint64_t n;
    if (!get_varint(p, end, UINT32_MAX, &n) || n > (uint64_t)(end - *p))
        return false;
    ret->value = *p;
    ret->n_value = (size_t)n;
    *p += n;
    return true;
}

// Well-formed, and where it ends; too much of it is not malformed but refused with words.
static bool get_metadata(const uint8_t **p, const uint8_t *end, struct frame_open *ret)
{
    uint64_t count;
    if (!get_varint(p, end, UINT32_MAX, &count))
        return false;
    ret->metadata = *p;
    size_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        struct rpc_metadata m;
        size_t key_len;
        if (!frame_metadata_next(p, end, &m, &key_len))
            return false;
        sum += key_len + m.n_value;
    }
    ret->n_metadata_bytes = (size_t)(*p - ret->metadata);
    ret->metadata_too_much = count > RPC_METADATA_MAX || sum > RPC_METADATA_MAX_BYTES;
    ret->n_metadata = ret->metadata_too_much ? 0 : (unsigned)count;
    return true;
}

static bool get_trace(const uint8_t **p, const uint8_t *end, struct rpc_trace *ret)
{
    if (end - *p < 25)
        return false;
    memcpy(ret->trace_id, *p, 16);
    memcpy(ret->span_id, *p + 16, 8);
    ret->flags = (*p)[24];
    *p += 25;
    return true;
}

static bool get_attempt(const uint8_t **p, const uint8_t *end, unsigned *ret)
{
    uint64_t v;
    if (!get_varint(p, end, UINT32_MAX, &v))
        return false;
    *ret = v > 1 ? (unsigned)v : 1;
    return true;
}

bool frame_open(const struct frame *f, struct frame_open *ret)
{
    const uint8_t *p = f->p, *end = f->p + f->n;
    uint64_t slot;
    if (p >= end)
        return false;
    ret->flags = *p++;
    ret->attempt = 1;
    ret->trace = (struct rpc_trace){.flags = 0};
    ret->metadata = NULL;
    ret->n_metadata_bytes = 0;
    ret->n_metadata = 0;
    ret->metadata_too_much = false;
    if (!get_varint(&p, end, UINT32_MAX, &slot) ||
        !get_varint(&p, end, INT64_MAX, &ret->deadline_ms) ||
        !get_text(&p, end, ret->method, FRAME_METHOD_MAX) ||
        !get_text(&p, end, ret->route, FRAME_ROUTE_MAX) ||
        !get_text(&p, end, ret->key, FRAME_KEY_MAX))
        return false;
    ret->slot = (uint32_t)slot;
    if ((ret->flags & FRAME_OPEN_TRACE) && !get_trace(&p, end, &ret->trace))
        return false;
    if ((ret->flags & FRAME_OPEN_METADATA) && !get_metadata(&p, end, ret))
        return false;
    return !(ret->flags & FRAME_OPEN_ATTEMPT) || get_attempt(&p, end, &ret->attempt);
}

// ---------------------------------------------------------------- STATUS

// What a handler quotes may have been cut within a character, and who reads anything but UTF-8 ends
// the connection, with everybody's calls on it.
static void mend_text(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t len = str_utf8_char(p + i, n - i);
        if (len == 0)
            p[i] = '?';
        i += len ? len : 1;
    }
}

void frame_put_status(struct buf *b, uint32_t id, const struct frame_status *s)
{
    if (s->code == STATUS_OK) {
        frame_put(b, FRAME_STATUS, 0, id, NULL, 0);
        return;
    }
    uint8_t p[30 + sizeof s->msg + RPC_DETAILS_MAX_BYTES];
    size_t n = put_varint(p, (uint64_t)s->code);
    n += put_varint(p + n, s->retry_after_ms > 0 ? (uint64_t)s->retry_after_ms : 0);
    size_t len = strnlen(s->msg, sizeof s->msg);
    n += put_varint(p + n, len);
    memcpy(p + n, s->msg, len);
    mend_text(p + n, len);
    n += len;
    if (s->n_details && s->n_details <= RPC_DETAILS_MAX_BYTES) {
        memcpy(p + n, s->details, s->n_details);
        n += s->n_details;
    }
    frame_put(b, FRAME_STATUS, 0, id, p, n);
}

bool frame_status(const struct frame *f, struct frame_status *ret)
{
    *ret = (struct frame_status){.code = STATUS_OK};
    if (f->n == 0)
        return true;
    const uint8_t *p = f->p, *end = f->p + f->n;
    uint64_t code, retry, n;
    if (!get_varint(&p, end, UINT32_MAX, &code) || !get_varint(&p, end, INT64_MAX, &retry) ||
        !get_varint(&p, end, sizeof ret->msg - 1, &n) || n > (uint64_t)(end - p))
        return false;
    if (!str_is_utf8(p, (size_t)n) || (n && memchr(p, 0, (size_t)n)) ||
        (size_t)(end - p) - n > RPC_DETAILS_MAX_BYTES)
        return false;
    ret->code = status_from_wire((unsigned)code);
    ret->retry_after_ms = (int64_t)retry;
    if (n)
        memcpy(ret->msg, p, (size_t)n);
    ret->n_details = (size_t)(end - p) - (size_t)n;
    ret->details = ret->n_details ? p + n : NULL;
    return true;
}
