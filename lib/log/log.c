// A line is built on the stack and leaves in one write(), so that logging works when memory is
// short and lines of several processes on one file do not mix. What does not fit is left out, and
// the line says so.
#include "log/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

enum { LINE_BYTES = 8192, TAIL_BYTES = 32, VALUE_BYTES = 2048 };

struct sink { // what a log and its children share
    pthread_mutex_t lock;
    int fd;
    bool json;
    atomic_int level;
};

struct log {
    struct log *parent; // NULL: this one owns the sink
    struct sink *sink;
    char *key, *value; // what a child adds to its parent's fields
};

static const char *const level_names[] = {
    [LOG_DEBUG] = "debug", [LOG_INFO] = "info", [LOG_WARN] = "warn",
    [LOG_ERROR] = "error", [LOG_OFF] = "off",
};

struct log *log_new(int fd, enum log_level level, bool json)
{
    struct log *l = mem_alloc(sizeof *l);
    struct sink *s = mem_alloc(sizeof *s);
    if (!l || !s) {
        mem_free(l);
        mem_free(s);
        return NULL;
    }
    pthread_mutex_init(&s->lock, NULL);
    s->fd = fd;
    s->json = json;
    atomic_init(&s->level, (int)level);
    l->sink = s;
    return l;
}

struct log *log_with(struct log *parent, const char *key, const char *value)
{
    AUTO(log_free_p) struct log *l = mem_alloc(sizeof *l);
    if (!l)
        return NULL;
    l->parent = parent;
    l->sink = parent ? parent->sink : NULL;
    l->key = mem_strdup(key);
    l->value = mem_strdup(value);
    return l->key && (l->value || !value) ? TAKE(l) : NULL;
}

void log_free(struct log *l)
{
    if (!l)
        return;
    if (l->sink && !l->key && !l->parent) {
        pthread_mutex_destroy(&l->sink->lock);
        mem_free(l->sink);
    }
    mem_free(l->key);
    mem_free(l->value);
    mem_free(l);
}

void log_set_level(struct log *l, enum log_level level)
{
    if (l && l->sink)
        atomic_store(&l->sink->level, (int)level);
}

bool log_level_parse(const char *name, enum log_level *ret)
{
    for (size_t i = 0; i < N_ELEMENTS(level_names); i++)
        if (str_eq(name, level_names[i])) {
            *ret = (enum log_level)i;
            return true;
        }
    return false;
}

static size_t cut_length(const char *s)
{
    size_t n = strnlen(s, VALUE_BYTES);
    if (n == VALUE_BYTES)
        while (n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80)
            n--;
    return n;
}

// Text form: bare when it is one plain word, else quoted like JSON, so that no value can forge a
// line or another field.
static bool put_string(struct buf *b, const char *s, bool json)
{
    if (!s)
        return buf_puts(b, json ? "null" : "-");
    size_t n = cut_length(s);
    bool plain = !json && n > 0;
    for (size_t i = 0; plain && i < n; i++)
        plain = s[i] > ' ' && s[i] < 0x7f && !strchr("\"=\\", s[i]);
    return plain ? buf_append(b, s, n) : buf_put_json_string(b, s, n);
}

static bool put_key(struct buf *b, const char *key, bool json)
{
    return json ? buf_putc(b, ',') && put_string(b, key, true) && buf_putc(b, ':')
                : buf_printf(b, " %s=", key);
}

static bool put_double(struct buf *b, double v, bool json)
{
    if (v != v || v - v != 0) // JSON has no NaN and no infinity
        return buf_puts(b, json ? "null" : "nan");
    return buf_printf(b, "%.6g", v);
}

static bool put_error(struct buf *b, const struct err *e, bool json)
{
    if (!e)
        return put_string(b, NULL, json);
    return put_string(b, e->msg, json) && put_key(b, "code", json) &&
           put_string(b, status_name(e->code), json);
}

static bool put_value(struct buf *b, const struct log_field *f, bool json)
{
    switch (f->type) {
    case LOG_F_STR:
        return put_string(b, f->ptr, json);
    case LOG_F_I64:
        return buf_printf(b, "%lld", (long long)f->i64);
    case LOG_F_DOUBLE:
        return put_double(b, f->dbl, json);
    case LOG_F_BOOL:
        return buf_puts(b, f->i64 ? "true" : "false");
    case LOG_F_ERR:
        return put_error(b, f->ptr, json);
    case LOG_F_SECRET:
        return buf_printf(b, json ? "\"[%lld secret bytes]\"" : "[%lld-secret-bytes]",
                          (long long)f->i64);
    }
    return false;
}

// A field is written whole or not at all.
static bool put_field(struct buf *b, const struct log_field *f, bool json)
{
    size_t start = b->len;
    if (put_key(b, f->key, json) && put_value(b, f, json))
        return true;
    b->len = start;
    b->failed = false;
    return false;
}

static bool put_inherited(struct buf *b, const struct log *l, bool json)
{
    if (!l || !l->key)
        return true;
    return put_inherited(b, l->parent, json) && put_field(b, &F_STR(l->key, l->value), json);
}

static void put_head(struct buf *b, enum log_level level, const char *event, bool json)
{
    char now[TIME_RFC3339_SIZE];
    time_rfc3339(now, time_wall_ms());
    if (json) {
        buf_printf(b, "{\"time\":\"%s\",\"level\":\"%s\",\"event\":", now, level_names[level]);
        put_string(b, event, true);
    } else {
        buf_printf(b, "%s %-5s %s", now, level_names[level], event);
    }
}

static void write_line(struct sink *s, const uint8_t *p, size_t n)
{
    pthread_mutex_lock(&s->lock);
    while (n > 0) {
        ssize_t done = write(s->fd, p, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) // nobody is left to be told
            break;
        p += done;
        n -= (size_t)done;
    }
    pthread_mutex_unlock(&s->lock);
}

// A thread works for one call at a time, and lines far below the handler must name its trace too.
static _Thread_local const uint8_t *thread_trace;

const uint8_t *log_set_trace(const uint8_t *trace_id)
{
    const uint8_t *before = thread_trace;
    thread_trace = trace_id;
    return before;
}

static bool put_trace(struct buf *b, bool json)
{
    char hex[33];
    if (!thread_trace)
        return true;
    str_hex(hex, thread_trace, 16);
    return put_field(b, &F_STR("trace", hex), json);
}

bool log_is_on(const struct log *l, enum log_level level)
{
    return l && l->sink && level < LOG_OFF && (int)level >= atomic_load(&l->sink->level);
}

void log_write(struct log *l, enum log_level level, const char *event,
               const struct log_field *fields, size_t n)
{
    if (!log_is_on(l, level))
        return;
    int saved_errno = errno;
    bool json = l->sink->json;
    uint8_t text[LINE_BYTES] = "";
    // Never grows: limit stays below cap. The tail's bytes are kept back until all fields are in.
    struct buf b = {.data = text, .cap = sizeof text, .limit = sizeof text - 1 - TAIL_BYTES};
    put_head(&b, level, event, json);
    bool whole = put_inherited(&b, l, json) && put_trace(&b, json);
    for (size_t i = 0; i < n; i++)
        whole &= put_field(&b, &fields[i], json);
    b.limit = sizeof text - 1;
    if (!whole)
        put_field(&b, &F_BOOL("cut", true), json);
    buf_puts(&b, json ? "}\n" : "\n");
    write_line(l->sink, b.data, b.len);
    errno = saved_errno;
}
