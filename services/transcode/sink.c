// Storing results at the target origin while the codec goes on with the next: a short queue and one
// thread per task, which also tells of what is stored. The first failure ends it.
#include "transcode/internal.h"

#include <string.h>

#include "cauce/origin.rpc.h"

#include "base/mem.h"
#include "base/time.h"

#define MAX_QUEUED_BYTES (32U << 20)
#define PIECE (192U << 10)
#define CALL_MS 60000
#define ATTEMPTS 4

struct segment {
    struct list link;
    uint8_t *bytes;
    size_t n;
    Transcode__Output *out;
};

struct sink {
    struct run *run;
    sink_stored_fn fn;
    void *ud;
    Transcode__Output **stored; // and not taken by fn; the thread's own until it is idle
    size_t n_stored, max;
    size_t n_put; // the putting thread's own
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct list queue;
    size_t queued_bytes; // waiting or being put
    bool busy;           // the thread has one, or tells of some
    bool stop;
    bool told;      // of some; the thread's own
    struct err err; // of the first failure
    int64_t busy_us, stored_bytes;
};

// ---------------------------------------------------------------- one object

struct bytes {
    const uint8_t *p;
};

static enum status from_memory(void *ud, int64_t offset, size_t len, void *dst, struct err *err)
{
    (void)err;
    const struct bytes *b = ud;
    memcpy(dst, b->p + offset, len);
    return STATUS_OK;
}

static enum status send_all(struct rpc_stream *st, struct run *r, const uint8_t *digest,
                            int64_t size, sink_fill_fn fill, void *ud, uint8_t *piece,
                            struct err *err)
{
    Origin__PutObjectRequest m;
    origin__put_object_request__init(&m);
    uint8_t copy[OBJECT_DIGEST_SIZE];
    memcpy(copy, digest, sizeof copy);
    m.digest = (ProtobufCBinaryData){.data = copy, .len = sizeof copy};
    m.size = size;
    m.item_id = r->task->item_id;
    enum status s = STATUS_OK;
    int64_t at = 0;
    do {
        size_t n = size - at < (int64_t)PIECE ? (size_t)(size - at) : PIECE;
        s = fill(ud, at, n, piece, err);
        m.data = (ProtobufCBinaryData){.data = piece, .len = n};
        if (s == STATUS_OK)
            s = origin_object_put_send(st, &m, err);
        origin__put_object_request__init(&m); // what follows is data alone
        at += (int64_t)n;
    } while (s == STATUS_OK && at < size);
    return s;
}

static enum status put_once(struct run *r, const uint8_t *digest, int64_t size, sink_fill_fn fill,
                            void *ud, struct err *err)
{
    struct rpc_client *c = r->env->origin(r->env->ud, r->task->target_origin, err);
    AUTO(mem_free_p) uint8_t *piece = mem_alloc(PIECE);
    if (!c || !piece)
        return c ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "store: out of memory")
                 : STATUS_UNAVAILABLE;
    // A large object may take as long as it moves at a MiB per second.
    struct rpc_opts opts = {.deadline_us = time_deadline_in_ms(CALL_MS + size / 1024),
                            .cancel = r->cancel};
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    enum status s = origin_object_put_open(c, &opts, &st, err);
    if (s == STATUS_OK)
        s = send_all(st, r, digest, size, fill, ud, piece, err);
    // An origin that has the object already may answer before all was sent.
    AUTO(rpc_message_free_p) Origin__PutObjectReply *reply = NULL;
    if (s == STATUS_OK || (s == STATUS_CANCELLED && !cancel_is_fired(r->cancel)))
        s = origin_object_put_finish(st, &reply, err);
    return s;
}

enum status sink_copy(struct run *r, const uint8_t digest[32], int64_t size, sink_fill_fn fill,
                      void *ud, struct err *err)
{
    enum status s = STATUS_OK;
    for (int i = 0; i < ATTEMPTS; i++) {
        s = put_once(r, digest, size, fill, ud, err);
        bool again = s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED;
        if (!again || cancel_is_fired(r->cancel))
            break;
    }
    return s == STATUS_OK ? s : err_wrap(err, s, "store at %s", r->task->target_origin->node_id);
}

// ---------------------------------------------------------------- queue and thread

static void segment_free(struct segment *g)
{
    mem_free(g->bytes);
    mem_free(g);
}

// The next one; NULL when it is over.
static struct segment *take(struct sink *s)
{
    pthread_mutex_lock(&s->lock);
    while (list_is_empty(&s->queue) && !s->stop)
        pthread_cond_wait(&s->changed, &s->lock);
    struct list *it = s->stop ? NULL : list_pop_front(&s->queue);
    pthread_mutex_unlock(&s->lock);
    return it ? list_entry(it, struct segment, link) : NULL;
}

// Under the lock: the end of something that took since begin_us.
static void note(struct sink *s, const struct err *err, int64_t begin_us)
{
    if (err->code != STATUS_OK && s->err.code == STATUS_OK)
        s->err = *err;
    s->busy_us += time_mono_us() - begin_us;
}

// Called and returns locked.
static void store(struct sink *s, struct segment *g)
{
    bool failed = s->err.code != STATUS_OK;
    pthread_mutex_unlock(&s->lock);
    struct err err = ERR_INIT;
    struct bytes b = {g->bytes};
    int64_t begin_us = time_mono_us();
    if (!failed &&
        sink_copy(s->run, g->out->digest.data, (int64_t)g->n, from_memory, &b, &err) == STATUS_OK)
        s->stored[s->n_stored++] = g->out;
    pthread_mutex_lock(&s->lock);
    note(s, &err, begin_us);
    s->queued_bytes -= g->n;
    s->stored_bytes += (int64_t)g->n;
    pthread_cond_broadcast(&s->changed); // there is room again
}

// Called and returns locked.
static void tell(struct sink *s)
{
    if (!s->fn || s->n_stored == 0 || s->err.code != STATUS_OK || s->stop)
        return;
    pthread_mutex_unlock(&s->lock);
    struct err err = ERR_INIT;
    int64_t begin_us = time_mono_us();
    enum status st = s->fn(s->ud, s->stored, s->n_stored, &err);
    if (st == STATUS_OK)
        s->n_stored = 0;
    s->told = true;
    if (st == STATUS_UNAVAILABLE || st == STATUS_DEADLINE_EXCEEDED || st == STATUS_UNIMPLEMENTED)
        err = (struct err)ERR_INIT; // with the next, or at the end
    pthread_mutex_lock(&s->lock);
    note(s, &err, begin_us);
}

static void *store_thread(void *ud)
{
    struct sink *s = ud;
    struct segment *g;
    while ((g = take(s))) {
        pthread_mutex_lock(&s->lock);
        s->busy = true;
        store(s, g);
        // Several at once cost less, but the first of an urgent task is what somebody waits for.
        if (list_is_empty(&s->queue) || (s->run->task->urgent && !s->told))
            tell(s);
        s->busy = false;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
        segment_free(g);
    }
    return NULL;
}

enum status sink_open(struct run *run, size_t max, sink_stored_fn fn, void *ud, struct sink **ret,
                      struct err *err)
{
    struct sink *s = mem_alloc(sizeof *s);
    Transcode__Output **stored = mem_array(max + 1, sizeof *stored);
    if (!s || !stored) {
        mem_free(s);
        mem_free(stored);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "store: out of memory");
    }
    *s = (struct sink){.run = run, .fn = fn, .ud = ud, .stored = stored, .max = max};
    list_init(&s->queue);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    int e = pthread_create(&s->thread, NULL, store_thread, s);
    if (e != 0) {
        pthread_cond_destroy(&s->changed);
        pthread_mutex_destroy(&s->lock);
        mem_free(s->stored);
        mem_free(s);
        return err_errno(err, e, "store: thread");
    }
    *ret = s;
    return STATUS_OK;
}

enum status sink_put(struct sink *s, const void *bytes, size_t n, Transcode__Output *out,
                     struct err *err)
{
    if (s->n_put == s->max)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "store: more than was announced");
    struct segment *g = mem_alloc(sizeof *g);
    uint8_t *copy = mem_dup(bytes, n);
    if (!g || !copy) {
        mem_free(g);
        mem_free(copy);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "store: out of memory");
    }
    g->bytes = copy;
    g->n = n;
    g->out = out;
    object_digest(out->digest.data, bytes, n);
    pthread_mutex_lock(&s->lock);
    // Ends: every put has a deadline.
    while (s->queued_bytes && s->queued_bytes + n > MAX_QUEUED_BYTES && s->err.code == STATUS_OK)
        pthread_cond_wait(&s->changed, &s->lock);
    if (s->err.code != STATUS_OK) {
        enum status st = err_set(err, s->err.code, "%s", s->err.msg);
        pthread_mutex_unlock(&s->lock);
        segment_free(g);
        return st;
    }
    s->queued_bytes += n;
    s->n_put++;
    list_push_back(&s->queue, &g->link);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return STATUS_OK;
}

enum status sink_flush(struct sink *s, struct err *err)
{
    pthread_mutex_lock(&s->lock);
    int64_t total = s->stored_bytes + (int64_t)s->queued_bytes;
    while (s->queued_bytes || s->busy) {
        run_progress(s->run, TRANSCODE__STAGE__STORE, s->stored_bytes, total);
        pthread_cond_wait(&s->changed, &s->lock);
    }
    enum status st = s->err.code;
    if (st != STATUS_OK)
        (void)err_set(err, st, "%s", s->err.msg);
    pthread_mutex_unlock(&s->lock);
    return st;
}

Transcode__Output **sink_rest(struct sink *s, size_t *ret_n)
{
    *ret_n = s->n_stored;
    return s->stored;
}

double sink_seconds(const struct sink *s)
{
    return (double)s->busy_us / 1e6;
}

void sink_free(struct sink *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    for (struct list *it; (it = list_pop_front(&s->queue));)
        segment_free(list_entry(it, struct segment, link));
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    mem_free(s->stored);
    mem_free(s);
}
