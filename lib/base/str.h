#pragma once
// Strings: checked parsing and the few helpers everybody needs.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

// Whole-string decimal within [min, max]; no sign, space or suffix is skipped over silently.
enum status str_parse_i64(const char *s, int64_t min, int64_t max, int64_t *ret,
                          struct err *err) MUST_CHECK;
// "250ms", "30s", "15m", "6h", "30d"; a bare number is refused. Milliseconds.
enum status str_parse_duration_ms(const char *s, int64_t *ret, struct err *err) MUST_CHECK;
// "512", "64K", "16M", "2G" (powers of 1024).
enum status str_parse_bytes(const char *s, int64_t *ret, struct err *err) MUST_CHECK;

bool str_eq(const char *a, const char *b); // NULL equals NULL only
bool str_starts_with(const char *s, const char *prefix);
bool str_ends_with(const char *s, const char *suffix);
bool str_is_utf8(const void *s, size_t n);
// Bytes of the well-formed UTF-8 character at s (RFC 3629 section 4); 0 when there is none.
size_t str_utf8_char(const void *s, size_t n);
// Copy with truncation on a character boundary; always terminates. Returns false when cut.
bool str_copy(char *dst, size_t size, const char *src);

// Lower-case hex; dst holds 2 * n + 1.
void str_hex(char *dst, const void *bytes, size_t n);
// Exactly n bytes from 2 * n hex digits (either case) and nothing else.
bool str_unhex(void *dst, size_t n, const char *hex);
// base64url without padding; dst holds str_b64_len(n) + 1.
size_t str_b64_len(size_t n);
void str_b64(char *dst, const void *bytes, size_t n);
// Strict: no padding, no foreign characters, no non-zero trailing bits. False when bad or over cap.
bool str_unb64(void *dst, size_t cap, const char *s, size_t s_len, size_t *ret_len);
