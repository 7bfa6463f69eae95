#pragma once
// Allocation: plain malloc behind one place where tests can make the n-th call fail.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/auto.h"

void *mem_alloc(size_t size) MUST_CHECK;           // zeroed; NULL when out of memory
void *mem_array(size_t n, size_t size) MUST_CHECK; // zeroed; NULL also when n * size overflows
void *mem_alloc_unset(size_t size) MUST_CHECK;     // not zeroed: for what is filled at once
void *mem_realloc(void *p, size_t n, size_t size) MUST_CHECK; // p stays valid on NULL
void *mem_dup(const void *p, size_t size) MUST_CHECK;
char *mem_strdup(const char *s) MUST_CHECK; // NULL in, NULL out
char *mem_printf(const char *fmt, ...) PRINTF_LIKE(1, 2) MUST_CHECK;
void mem_free(void *p);
// Blocks of up to size bytes will come and go all the time: what is freed of them is better kept,
// about twice size in each of the allocator's heaps, than given back to the system. A hint that
// costs microseconds and cannot fail; any thread.
void mem_expect_blocks(size_t size);
static inline void mem_free_p(void *pp) // AUTO(mem_free_p) char *s = ...
{
    mem_free(*(void **)pp);
}

// Tests: make the n-th allocation from now (0 = the next) of this thread fail, once; -1 turns it
// off.
void mem_fail_at(int64_t n);
// Allocations made by this thread since the last mem_fail_at().
int64_t mem_n_allocs(void);
// The same for the n-th allocation from now by whichever thread makes it.
void mem_fail_any_at(int64_t n);
bool mem_any_failed(void); // since the last mem_fail_any_at()
