#pragma once
// Clocks. Deadlines inside a process are absolute and monotonic; wall time is for tokens and logs.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int64_t time_mono_us(void); // CLOCK_MONOTONIC
int64_t time_mono_ms(void);
int64_t time_wall_ms(void); // Unix epoch

#define TIME_NEVER INT64_MAX

// Milliseconds left until a monotonic deadline in us: 0 when past, INT64_MAX for TIME_NEVER.
int64_t time_left_ms(int64_t deadline_us);
int64_t time_deadline_in_ms(int64_t ms); // saturating; TIME_NEVER for INT64_MAX

// "2026-11-21T09:05:29.123Z"; dst holds TIME_RFC3339_SIZE.
#define TIME_RFC3339_SIZE 32
void time_rfc3339(char *dst, int64_t wall_ms);
bool time_parse_rfc3339(const char *s, int64_t *ret_wall_ms); // what is below 1 ms is dropped

// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z in Unix seconds: what the format can say.
#define TIME_RFC3339_MIN_S (-INT64_C(62135596800))
#define TIME_RFC3339_MAX_S INT64_C(253402300799)
// The same without loss: seconds within those bounds and [0, 999999999] nanoseconds. False also for
// more than nine digits of fraction.
bool time_parse_rfc3339_ns(const char *s, int64_t *ret_wall_s, int32_t *ret_ns);
