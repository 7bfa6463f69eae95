// What a check looks at: segments that others made, fetched as any object is (each verified against
// its digest) and put behind the source as media/checks.h says.
#include "transcode/internal.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "media/checks.h"
#include "media/cmaf.h"

struct checks {
    int64_t source_size, at; // the table begins at `at`
    struct buf tail;         // table and segments
};

static const Transcode__Output *find(const Transcode__Task *t, const char *rendition,
                                     int32_t segment)
{
    for (size_t i = 0; i < t->n_checks; i++)
        if (str_eq(t->checks[i]->rendition, rendition) && t->checks[i]->segment == segment)
            return t->checks[i];
    return NULL;
}

// One segment at the end of the buffer, read as if it were a task's source.
static enum status append(struct run *r, const Transcode__Output *o, struct buf *b, struct err *err)
{
    Transcode__Task task = *r->task;
    Common__Endpoint *from[] = {r->task->target_origin};
    task.source_digest = o->digest;
    task.source_size = o->size;
    task.source_origins = from;
    task.n_source_origins = 1;
    struct run as_source = *r;
    as_source.task = &task;
    AUTO(source_free_p) struct source *s = NULL;
    AUTO(mem_free_p) uint8_t *bytes = mem_alloc((size_t)o->size);
    if (!bytes)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "check: out of memory");
    enum status st = source_open(&as_source, &s, err);
    if (st == STATUS_OK)
        st = source_read(s, 0, (size_t)o->size, bytes, err);
    if (st == STATUS_OK && !buf_append(b, bytes, (size_t)o->size))
        st = err_set(err, STATUS_RESOURCE_EXHAUSTED, "check: more than %lld bytes",
                     (long long)MEDIA_CHECKS_MAX_BYTES);
    return st;
}

static enum status load(struct run *r, const struct media_plan *plan, struct checks *c,
                        struct err *err)
{
    const Transcode__Task *t = r->task;
    AUTO(buf_done) struct buf bodies;
    buf_init(&bodies, (size_t)MEDIA_CHECKS_MAX_BYTES);
    for (size_t i = 0; i < t->n_renditions; i++) {
        int which = media_plan_find(plan, t->renditions[i]);
        for (int32_t k = t->first_segment; k < t->first_segment + t->n_segments; k++) {
            const Transcode__Output *o = find(t, t->renditions[i], k);
            if (which < 0 || !o || o->size <= 0 || o->size > MEDIA_MAX_SEGMENT_BYTES ||
                o->digest.len != OBJECT_DIGEST_SIZE)
                return err_set(err, STATUS_FAILED_PRECONDITION, "%s/%d is not published",
                               t->renditions[i], k);
            size_t before = bodies.len;
            const struct media_rendition *rendition = &plan->renditions[which];
            (void)buf_append(&bodies, rendition->init, rendition->init_len);
            enum status s = append(r, o, &bodies, err);
            if (s != STATUS_OK)
                return s;
            buf_put_be32(&c->tail, (uint32_t)(bodies.len - before));
        }
    }
    return buf_append(&c->tail, bodies.data, bodies.len)
               ? STATUS_OK
               : err_set(err, STATUS_RESOURCE_EXHAUSTED, "check: out of memory");
}

enum status checks_new(struct run *r, const struct media_plan *plan, struct checks **ret,
                       struct err *err)
{
    struct checks *c = mem_alloc(sizeof *c);
    if (!c)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "check: out of memory");
    c->source_size = r->task->source_size;
    c->at = media_checks_offset(c->source_size);
    buf_init(&c->tail, (size_t)MEDIA_CHECKS_MAX_BYTES);
    enum status s = load(r, plan, c, err);
    if (s != STATUS_OK) {
        checks_free(c);
        return s;
    }
    *ret = c;
    return STATUS_OK;
}

void checks_free(struct checks *c)
{
    if (!c)
        return;
    buf_done(&c->tail);
    mem_free(c);
}

int64_t checks_total(const struct checks *c)
{
    return c->at + (int64_t)c->tail.len;
}

enum status checks_read(const struct checks *c, struct source *s, int64_t offset, size_t len,
                        void *dst, struct err *err)
{
    if (offset >= c->at) { // blocks do not straddle it
        memcpy(dst, c->tail.data + (offset - c->at), len);
        return STATUS_OK;
    }
    int64_t left = c->source_size - offset;
    size_t n = (int64_t)len < left ? len : (size_t)left;
    memset((uint8_t *)dst + n, 0, len - n);
    return source_read(s, offset, n, dst, err);
}
