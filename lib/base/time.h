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
bool time_parse_rfc3339(const char *s, int64_t *ret_wall_ms);
