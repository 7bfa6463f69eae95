// Two blocks: one being sent, one being fetched. The connection is suspended only when the first is
// used up before the second has come. The lock is never held while the source is called.
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "http/internal.h"

struct block {
    uint8_t *bytes;
    size_t len, used;
};

struct http_stream {
    pthread_mutex_t lock;
    atomic_uint n_refs; // the request's, the response's, one while a block is wanted
    struct MHD_Connection *conn;
    struct http_source source;
    int64_t start, length; // what is to be sent
    int64_t asked;         // bytes asked for or received, from start
    struct block now, next;
    bool wanted, failed, suspended;
};

struct http_stream *http_stream_new(const struct http_source *source, int64_t offset,
                                    int64_t length)
{
    struct http_stream *s = mem_alloc(sizeof *s);
    if (!s) {
        source->done(source->ud);
        return NULL;
    }
    pthread_mutex_init(&s->lock, NULL);
    atomic_init(&s->n_refs, 1);
    s->source = *source;
    s->start = offset;
    s->length = length;
    return s;
}

void http_stream_unref(struct http_stream *s)
{
    if (!s || atomic_fetch_sub(&s->n_refs, 1) != 1)
        return;
    s->source.done(s->source.ud);
    pthread_mutex_destroy(&s->lock);
    mem_free(s->now.bytes);
    mem_free(s->next.bytes);
    mem_free(s);
}

static void resume_locked(struct http_stream *s)
{
    if (s->suspended) {
        s->suspended = false;
        MHD_resume_connection(s->conn);
    }
}

void http_stream_abort(struct http_stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->failed = true;
    resume_locked(s);
    pthread_mutex_unlock(&s->lock);
}

void http_stream_give(struct http_stream *s, const void *bytes, size_t n)
{
    uint8_t *copy = n ? mem_dup(bytes, n) : NULL;
    pthread_mutex_lock(&s->lock);
    s->wanted = false;
    if (copy && !s->failed && s->asked + (int64_t)n <= s->length) {
        s->next = (struct block){.bytes = copy, .len = n};
        s->asked += (int64_t)n;
        copy = NULL;
    } else {
        s->failed = true;
    }
    resume_locked(s);
    pthread_mutex_unlock(&s->lock);
    mem_free(copy);
    http_stream_unref(s);
}

static void swap_blocks(struct http_stream *s)
{
    if (s->now.used < s->now.len || !s->next.bytes)
        return;
    mem_free(s->now.bytes);
    s->now = s->next;
    s->next = (struct block){0};
}

// Ask for the block after those we have, unless one is on its way. Lock held on entry and return,
// released while the source runs (which may give at once).
static void want_more(struct http_stream *s)
{
    int64_t left = s->length - s->asked;
    if (s->wanted || s->failed || s->next.bytes || left <= 0)
        return;
    s->wanted = true;
    int64_t offset = s->start + s->asked;
    size_t max = left < (int64_t)HTTP_STREAM_BLOCK ? (size_t)left : HTTP_STREAM_BLOCK;
    atomic_fetch_add(&s->n_refs, 1);
    pthread_mutex_unlock(&s->lock);
    s->source.want(s->source.ud, s, offset, max);
    pthread_mutex_lock(&s->lock);
}

static ssize_t read_some(void *cls, uint64_t pos, char *dst, size_t max)
{
    struct http_stream *s = cls;
    (void)pos; // MHD asks in order
    ssize_t n = 0;
    pthread_mutex_lock(&s->lock);
    swap_blocks(s);
    want_more(s);
    swap_blocks(s);
    struct block *b = &s->now;
    if (b->used < b->len) {
        size_t take = b->len - b->used < max ? b->len - b->used : max;
        memcpy(dst, b->bytes + b->used, take);
        b->used += take;
        n = (ssize_t)take;
    } else if (s->failed || s->asked >= s->length) {
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    } else {
        s->suspended = true;
        MHD_suspend_connection(s->conn);
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}

static void response_gone(void *cls)
{
    http_stream_unref(cls);
}

struct MHD_Response *http_stream_response(struct http_stream *s)
{
    struct MHD_Response *resp = MHD_create_response_from_callback((uint64_t)s->length, 64 * 1024,
                                                                  read_some, s, response_gone);
    if (resp)
        atomic_fetch_add(&s->n_refs, 1);
    return resp;
}

void http_stream_attach(struct http_stream *s, struct MHD_Connection *conn)
{
    s->conn = conn;
}
