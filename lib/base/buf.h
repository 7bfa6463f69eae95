#pragma once
// A growing byte buffer with a limit chosen by its owner.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/auto.h"
#include "base/err.h"

struct buf {
    uint8_t *data; // NUL-terminated one past len whenever not NULL
    size_t len;
    size_t cap;
    size_t limit;
    bool failed; // an append failed: out of memory or over limit; data holds what fitted before
};

void buf_init(struct buf *b, size_t limit_bytes);
void buf_done(struct buf *b);  // frees; b may be init'ed again
void buf_reset(struct buf *b); // len 0, failed false, keeps memory

// Appends return false, and set failed, when out of memory or over the limit; nothing is appended
// then. A writer may ignore the results and check `failed` once at the end.
bool buf_append(struct buf *b, const void *p, size_t n);
bool buf_puts(struct buf *b, const char *s);
bool buf_putc(struct buf *b, char c);
bool buf_printf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
bool buf_put_u8(struct buf *b, uint8_t v);
bool buf_put_be16(struct buf *b, uint16_t v);
bool buf_put_be32(struct buf *b, uint32_t v);
bool buf_put_be64(struct buf *b, uint64_t v);
uint8_t *buf_reserve(struct buf *b, size_t n); // n writable bytes at the end; then buf_commit()
void buf_commit(struct buf *b, size_t n);
// JSON string literal of s (n bytes of UTF-8; bad bytes become U+FFFD), quotes included.
bool buf_put_json_string(struct buf *b, const char *s, size_t n);
// The bytes as a heap block the caller frees with mem_free(); the buffer is empty afterwards.
uint8_t *buf_take(struct buf *b, size_t *ret_len);
static inline const char *buf_str(const struct buf *b)
{
    return b->data ? (const char *)b->data : "";
}

// A reader over borrowed bytes. Reading past the end sets failed and yields zeros.
struct reader {
    const uint8_t *p, *end;
    bool failed;
};
void reader_init(struct reader *r, const void *p, size_t n);
uint8_t reader_u8(struct reader *r);
uint16_t reader_be16(struct reader *r);
uint32_t reader_be32(struct reader *r);
uint64_t reader_be64(struct reader *r);
const uint8_t *reader_bytes(struct reader *r, size_t n); // borrowed; NULL when short
size_t reader_left(const struct reader *r);
