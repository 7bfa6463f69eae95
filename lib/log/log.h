#pragma once
// Structured log: an event name that is a stable key, and typed fields. One line per event on a
// file descriptor: text for people on a terminal, JSON otherwise.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };

struct log_field {
    enum { LOG_F_STR, LOG_F_I64, LOG_F_DOUBLE, LOG_F_BOOL, LOG_F_ERR, LOG_F_SECRET } type;
    const char *key;
    const void *ptr; // string, struct err or secret
    int64_t i64;     // number, truth or the secret's length
    double dbl;
};

#define F_STR(k, v) ((struct log_field){.type = LOG_F_STR, .key = (k), .ptr = (v)})
#define F_I64(k, v) ((struct log_field){.type = LOG_F_I64, .key = (k), .i64 = (int64_t)(v)})
#define F_DBL(k, v) ((struct log_field){.type = LOG_F_DOUBLE, .key = (k), .dbl = (v)})
#define F_BOOL(k, v) ((struct log_field){.type = LOG_F_BOOL, .key = (k), .i64 = (v)})
#define F_ERR(e) ((struct log_field){.type = LOG_F_ERR, .key = "error", .ptr = (e)})
// A secret: only its length is ever printed.
#define F_SECRET(k, v, n)                                                                          \
    ((struct log_field){.type = LOG_F_SECRET, .key = (k), .ptr = (v), .i64 = (int64_t)(n)})

struct log; // safe to share between threads; a NULL log drops everything

// fd borrowed; json as said above; fields every line carries ("role", "node") are given by
// log_with().
struct log *log_new(int fd, enum log_level level, bool json) MUST_CHECK;
struct log *log_with(struct log *parent, const char *key,
                     const char *value) MUST_CHECK; // child log; free before parent
void log_free(struct log *l);
DEFINE_AUTO(struct log, log_free)
// Of l, its children and the log it was made from: they share one level.
void log_set_level(struct log *l, enum log_level level);
bool log_level_parse(const char *name, enum log_level *ret); // debug info warn error off

// Lines that this thread writes carry trace=<hex of these 16 bytes>, which stay borrowed until
// another call; NULL ends it. Returns what was set before.
const uint8_t *log_set_trace(const uint8_t *trace_id);
bool log_is_on(const struct log *l, enum log_level level); // whether a line would be written

void log_write(struct log *l, enum log_level level, const char *event,
               const struct log_field *fields, size_t n);

#define LOG_AT_(l, level, event, ...)                                                              \
    log_write((l), (level), (event), (const struct log_field[]){__VA_ARGS__},                      \
              sizeof((const struct log_field[]){__VA_ARGS__}) / sizeof(struct log_field))
// At least one field each: an event without a fact is rarely worth a line.
#define log_debug(l, event, ...) LOG_AT_(l, LOG_DEBUG, event, __VA_ARGS__)
#define log_info(l, event, ...) LOG_AT_(l, LOG_INFO, event, __VA_ARGS__)
#define log_warn(l, event, ...) LOG_AT_(l, LOG_WARN, event, __VA_ARGS__)
#define log_error(l, event, ...) LOG_AT_(l, LOG_ERROR, event, __VA_ARGS__)
