// Chunks in a list, newest first; small objects are cut from the newest, large ones get a chunk of
// their own behind it, so that one large object does not waste what is left of the newest.
#include "base/arena.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

enum { CHUNK_FIRST = 1024, CHUNK_MAX = 64 * 1024, ALIGN = _Alignof(max_align_t) };

struct chunk {
    struct chunk *next;
    size_t used, size;
    _Alignas(max_align_t) unsigned char data[];
};

struct arena {
    struct chunk *chunks;
    size_t used, limit, next_size;
};

struct arena *arena_new(size_t limit_bytes)
{
    struct arena *a = mem_alloc(sizeof *a);
    if (a) {
        a->limit = limit_bytes ? limit_bytes : SIZE_MAX;
        a->next_size = CHUNK_FIRST;
    }
    return a;
}

void arena_free(struct arena *a)
{
    if (!a)
        return;
    while (a->chunks) {
        struct chunk *c = a->chunks;
        a->chunks = c->next;
        mem_free(c);
    }
    mem_free(a);
}

static struct chunk *chunk_new(size_t size)
{
    struct chunk *c =
        size > SIZE_MAX - sizeof(struct chunk) ? NULL : mem_alloc(sizeof(struct chunk) + size);
    if (c)
        c->size = size;
    return c;
}

void *arena_alloc(struct arena *a, size_t size)
{
    if (size > SIZE_MAX - ALIGN)
        return NULL;
    size_t need = (size + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (need == 0)
        need = ALIGN;
    if (need > a->limit - a->used)
        return NULL;

    struct chunk *c = a->chunks;
    if (!c || need > c->size - c->used) {
        bool large = need > CHUNK_MAX / 4;
        struct chunk *fresh = chunk_new(large ? need : (a->next_size > need ? a->next_size : need));
        if (!fresh)
            return NULL;
        if (large && c) {
            fresh->next = c->next;
            c->next = fresh;
        } else {
            fresh->next = c;
            a->chunks = fresh;
            a->next_size = a->next_size * 2 > CHUNK_MAX ? CHUNK_MAX : a->next_size * 2;
        }
        c = fresh;
    }
    void *p = c->data + c->used;
    c->used += need;
    a->used += need;
    return p;
}

void *arena_array(struct arena *a, size_t n, size_t size)
{
    size_t total;
    return __builtin_mul_overflow(n, size, &total) ? NULL : arena_alloc(a, total);
}

void *arena_dup(struct arena *a, const void *p, size_t size)
{
    void *d = arena_alloc(a, size);
    if (d && size)
        memcpy(d, p, size);
    return d;
}

char *arena_strdup(struct arena *a, const char *s)
{
    return s ? arena_dup(a, s, strlen(s) + 1) : NULL;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    n = strnlen(s, n);
    char *d = n == SIZE_MAX ? NULL : arena_alloc(a, n + 1);
    if (d)
        memcpy(d, s, n);
    return d;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    char *s = n < 0 ? NULL : arena_alloc(a, (size_t)n + 1);
    if (s)
        vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(ap);
    return s;
}

size_t arena_used(const struct arena *a)
{
    return a->used;
}
