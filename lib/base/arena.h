#pragma once
// Arena: many small allocations that die together; the memory of one request.
#include <stddef.h>

#include "base/auto.h"

struct arena;

// limit_bytes  total that may be handed out; 0 = no limit
struct arena *arena_new(size_t limit_bytes) MUST_CHECK;
void arena_free(struct arena *a); // NULL does nothing
DEFINE_AUTO(struct arena, arena_free)

// Zeroed, aligned for any object, valid until the arena is freed; NULL when out of memory or over
// the limit. One arena belongs to one thread at a time.
void *arena_alloc(struct arena *a, size_t size);
void *arena_array(struct arena *a, size_t n, size_t size);
void *arena_dup(struct arena *a, const void *p, size_t size);
char *arena_strdup(struct arena *a, const char *s); // NULL in, NULL out
char *arena_strndup(struct arena *a, const char *s, size_t n);
char *arena_printf(struct arena *a, const char *fmt, ...) PRINTF_LIKE(2, 3);
size_t arena_used(const struct arena *a);
