// Allocation in one place. The counters exist for tests alone: a test walks n from 0 upwards with
// mem_fail_at(n) until the code under test passes, and so has seen every allocation of it fail
// once.
#include "base/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Per thread, because the code under test may share the process with threads of its own; the one
// exception to "no mutable state at file scope", since an allocator has no handle to hang it off.
static _Thread_local int64_t fail_at = -1;
static _Thread_local int64_t n_allocs;

// And for tests of code that hands its work to threads of its own. Negative: off, or it happened.
static _Atomic int64_t any_left = -1;
static atomic_bool any_failed;

static bool must_fail(void)
{
    if (atomic_load_explicit(&any_left, memory_order_relaxed) >= 0 &&
        atomic_fetch_sub(&any_left, 1) == 0) {
        any_failed = true;
        return true;
    }
    return n_allocs++ == fail_at;
}

void mem_fail_at(int64_t n)
{
    fail_at = n;
    n_allocs = 0;
}

int64_t mem_n_allocs(void)
{
    return n_allocs;
}

void mem_fail_any_at(int64_t n)
{
    any_failed = false;
    any_left = n;
}

bool mem_any_failed(void)
{
    return any_failed;
}

void *mem_array(size_t n, size_t size)
{
    size_t total; // calloc() checks as well, but sanitizers take its refusal for a bug
    if (__builtin_mul_overflow(n, size, &total) || must_fail())
        return NULL;
    return calloc(1, total ? total : 1);
}

void *mem_alloc(size_t size)
{
    return mem_array(1, size);
}

void *mem_alloc_unset(size_t size)
{
    return must_fail() ? NULL : malloc(size ? size : 1);
}

void *mem_realloc(void *p, size_t n, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(n, size, &total) || must_fail())
        return NULL;
    return realloc(p, total ? total : 1);
}

void *mem_dup(const void *p, size_t size)
{
    void *d = mem_alloc_unset(size);
    if (d && size)
        memcpy(d, p, size);
    return d;
}

char *mem_strdup(const char *s)
{
    return s ? mem_dup(s, strlen(s) + 1) : NULL;
}

char *mem_printf(const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    char *s = n < 0 ? NULL : mem_alloc((size_t)n + 1);
    if (s)
        vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(ap);
    return s;
}

void mem_free(void *p)
{
    free(p);
}

// glibc gives the free end of a heap back from 128 KiB on, and takes it again page by page, until
// it has freed a block of its own mapping: from then on it keeps twice as much as that.
void mem_expect_blocks(size_t size)
{
    void *volatile p = malloc(size); // or it would be left out
    free(p);
}
