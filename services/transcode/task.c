// One leased task from its source to its results. FFmpeg never runs here: the codec is a confined
// process that is fed and listened to by child_run().
#include "transcode/internal.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "media/image.h"
#include "media/task.h"
#include "transcode/child.h"

// Looking at a file takes little; one without index must be read through.
#define PROBE_MS 15000
#define PROBE_BYTES_PER_MS (10 << 10)
#define CHUNK_MS (INT64_C(15) * 60 * 1000)
#define STALL_MS 30000

// ---------------------------------------------------------------- a run

enum status run_init(struct run *r, const struct worker_env *env, const Transcode__Task *task,
                     unsigned threads, struct err *err)
{
    *r = (struct run){.env = env, .task = task, .threads = threads, .stop_fd = -1};
    list_init(&r->link);
    r->cancel = cancel_new(NULL);
    r->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->cancel && r->stop_fd >= 0)
        return STATUS_OK;
    run_done(r);
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "task: out of memory or descriptors");
}

void run_done(struct run *r)
{
    cancel_unref(r->cancel);
    r->cancel = NULL;
    if (r->stop_fd >= 0)
        close(r->stop_fd);
    r->stop_fd = -1;
}

void run_stop(struct run *r, enum stop_reason why)
{
    int none = STOP_NONE;
    if (!__atomic_compare_exchange_n(&r->stop, &none, (int)why, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE))
        return;
    uint64_t one = 1;
    if (write(r->stop_fd, &one, sizeof one) < 0)
        (void)0; // a counter of 1 never overflows
    cancel_fire(r->cancel);
}

enum stop_reason run_stopped(const struct run *r)
{
    return (enum stop_reason)__atomic_load_n(&r->stop, __ATOMIC_ACQUIRE);
}

void run_progress(struct run *r, Transcode__Stage stage, int64_t done, int64_t total)
{
    __atomic_store_n(&r->stage, (int)stage, __ATOMIC_RELAXED);
    __atomic_store_n(&r->done, done, __ATOMIC_RELAXED);
    __atomic_store_n(&r->total, total, __ATOMIC_RELAXED);
}

// ---------------------------------------------------------------- what both kinds need

struct work { // what the callbacks share
    struct run *run;
    struct arena *arena;
    struct source *source;
    struct sink *sink;
    struct media_plan *plan; // chunk, images
    Transcode__CompleteRequest *ret;
    size_t max_outputs;
};

static void fail(struct run_verdict *v, Transcode__FailClass class, const char *text)
{
    v->class = class;
    str_copy(v->text, sizeof v->text, text);
}

// A status that ended the work, as the orchestrator wants to hear it.
static void fail_status(struct run_verdict *v, enum status s, const struct err *err)
{
    bool ours = s == STATUS_RESOURCE_EXHAUSTED;
    fail(v, ours ? TRANSCODE__FAIL_CLASS__RESOURCE : TRANSCODE__FAIL_CLASS__TRANSIENT, err->msg);
}

static enum status on_fetch(void *ud, int64_t offset, size_t len, void *dst, struct err *err)
{
    struct work *w = ud;
    return source_read(w->source, offset, len, dst, err);
}

static void on_progress(void *ud, int64_t done, int64_t total)
{
    struct work *w = ud;
    run_progress(w->run, TRANSCODE__STAGE__ENCODE, done, total);
}

static uint32_t window_blocks(const struct run *r)
{
    return (uint32_t)(r->env->window_bytes / MEDIA_READ_BLOCK);
}

// What the codec process ended with. A probe that hangs or hits a limit is the file's doing as much
// as a crash is: twice, and the file is refused.
static void judge(const struct work *w, const struct child_result *c, struct run_verdict *v)
{
    bool probe = w->run->task->kind == TRANSCODE__TASK_KIND__PROBE;
    switch (c->outcome) {
    case CHILD_OK:
        return;
    case CHILD_REJECTED:
        fail(v, TRANSCODE__FAIL_CLASS__REJECTED, c->text);
        return;
    case CHILD_CRASH:
    case CHILD_LIMIT:
        fail(v, TRANSCODE__FAIL_CLASS__CRASH, c->text);
        return;
    case CHILD_TIMEOUT:
        fail(v, probe ? TRANSCODE__FAIL_CLASS__CRASH : TRANSCODE__FAIL_CLASS__TIMEOUT, c->text);
        return;
    case CHILD_SINK:
        fail(v,
             c->status == STATUS_RESOURCE_EXHAUSTED ? TRANSCODE__FAIL_CLASS__RESOURCE
                                                    : TRANSCODE__FAIL_CLASS__TRANSIENT,
             c->text);
        return;
    case CHILD_SOURCE:
    case CHILD_CANCELLED:
    case CHILD_FAILED:
        fail(v, TRANSCODE__FAIL_CLASS__TRANSIENT, c->text);
        return;
    }
}

static void run_child(struct work *w, const struct media_task *task, int64_t limit_ms,
                      bool segments, struct child_result *ret);

// ---------------------------------------------------------------- probe

static void probe(struct work *w, struct run_verdict *v)
{
    struct media_task task = {.kind = MEDIA_TASK_PROBE,
                              .source_size = w->run->task->source_size,
                              .threads = w->run->threads,
                              .window_blocks = window_blocks(w->run)};
    struct child_result c = {0};
    run_child(w, &task, PROBE_MS + task.source_size / PROBE_BYTES_PER_MS, false, &c);
    judge(w, &c, v);
    if (v->class == TRANSCODE__FAIL_CLASS__FAIL_CLASS_UNSPECIFIED) {
        uint8_t *copy = arena_dup(w->arena, c.plan_bytes, c.plan_len);
        w->ret->plan = (ProtobufCBinaryData){.data = copy, .len = copy ? c.plan_len : 0};
        if (!copy)
            fail(v, TRANSCODE__FAIL_CLASS__RESOURCE, "probe: out of memory");
    }
    child_result_done(&c);
}

// ---------------------------------------------------------------- chunk, images

static enum status on_segment(void *ud, const struct media_segment_out *out, const void *bytes,
                              size_t n, struct err *err)
{
    struct work *w = ud;
    Transcode__CompleteRequest *ret = w->ret;
    bool image = w->run->task->kind == TRANSCODE__TASK_KIND__IMAGES;
    const struct media_rendition *r = image ? NULL : &w->plan->renditions[out->rendition];
    Transcode__Output *o = arena_alloc(w->arena, sizeof *o);
    uint8_t *digests = arena_alloc(w->arena, 2 * OBJECT_DIGEST_SIZE);
    if (!o || !digests || ret->n_outputs == w->max_outputs)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "segment: out of memory or too many");
    transcode__output__init(o);
    enum status s = sink_put(w->sink, bytes, n, digests, err);
    if (s != STATUS_OK)
        return s;
    crypto_blake2b(digests + OBJECT_DIGEST_SIZE, OBJECT_DIGEST_SIZE, r ? r->init : NULL,
                   r ? r->init_len : 0, NULL, 0, NULL);
    o->rendition =
        arena_strdup(w->arena, r ? r->id : media_image_name((enum media_image)out->rendition));
    if (!o->rendition)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "segment: out of memory");
    o->segment = (int32_t)out->segment;
    o->digest = (ProtobufCBinaryData){.data = digests, .len = OBJECT_DIGEST_SIZE};
    o->size = (int64_t)n;
    o->first_pts = out->first_pts;
    o->duration = out->duration;
    o->samples = (int32_t)out->samples;
    o->init_digest =
        (ProtobufCBinaryData){.data = digests + OBJECT_DIGEST_SIZE, .len = OBJECT_DIGEST_SIZE};
    o->repeated = (int32_t)out->repeated;
    o->dropped = (int32_t)out->dropped;
    ret->outputs[ret->n_outputs++] = o;
    return STATUS_OK;
}

static enum status make_task(struct work *w, struct media_task *ret, struct err *err)
{
    const Transcode__Task *t = w->run->task;
    bool images = t->kind == TRANSCODE__TASK_KIND__IMAGES;
    enum status s = media_plan_decode(t->plan.data, t->plan.len, &w->plan, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "plan of the task");
    bool bad = t->first_segment < 0 || t->n_segments < 1 || t->n_renditions < 1 ||
               t->n_renditions > MEDIA_MAX_RENDITIONS;
    *ret = (struct media_task){
        .kind = images ? MEDIA_TASK_IMAGES : MEDIA_TASK_CHUNK,
        .source_size = t->source_size,
        .threads = w->run->threads,
        .window_blocks = window_blocks(w->run),
        .first_segment = (uint32_t)t->first_segment,
        .n_segments = (uint32_t)t->n_segments,
        .plan = t->plan.data,
        .plan_len = t->plan.len,
    };
    for (size_t i = 0; !bad && i < t->n_renditions; i++) {
        int which = images ? media_image_find(t->renditions[i])
                           : media_plan_find(w->plan, t->renditions[i]);
        bad = which < 0;
        ret->renditions[ret->n_renditions++] = (uint8_t)which;
    }
    if (bad)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the task and its plan disagree");
    w->max_outputs = (size_t)t->n_segments * t->n_renditions;
    w->ret->outputs = arena_array(w->arena, w->max_outputs, sizeof w->ret->outputs[0]);
    return w->ret->outputs ? STATUS_OK
                           : err_set(err, STATUS_RESOURCE_EXHAUSTED, "task: out of memory");
}

// A film plays without its poster: what a decoder makes of its pictures alone does not spoil it.
static bool goes_without(const struct work *w, const struct child_result *c)
{
    return w->run->task->kind == TRANSCODE__TASK_KIND__IMAGES &&
           (c->outcome == CHILD_REJECTED || c->outcome == CHILD_CRASH ||
            c->outcome == CHILD_LIMIT || c->outcome == CHILD_TIMEOUT);
}

static void make(struct work *w, struct run_verdict *v)
{
    struct err err = ERR_INIT;
    struct media_task task;
    enum status s = make_task(w, &task, &err);
    if (s == STATUS_OK)
        s = sink_open(w->run, &w->sink, &err);
    if (s != STATUS_OK) {
        fail_status(v, s, &err);
        return;
    }
    struct child_result c = {0};
    run_child(w, &task, CHUNK_MS, true, &c);
    if (goes_without(w, &c))
        log_warn(w->run->env->log, "images_left_out", F_STR("item", w->run->task->item_id),
                 F_STR("why", c.text));
    else
        judge(w, &c, v);
    child_result_done(&c);
    if (v->class != TRANSCODE__FAIL_CLASS__FAIL_CLASS_UNSPECIFIED)
        return;
    s = sink_flush(w->sink, &err);
    w->ret->seconds->store = sink_seconds(w->sink);
    if (s != STATUS_OK)
        fail_status(v, s, &err);
}

static void run_child(struct work *w, const struct media_task *task, int64_t limit_ms,
                      bool segments, struct child_result *ret)
{
    int64_t begin_us = time_mono_us();
    double waited = source_seconds(w->source);
    struct child_job job = {
        .host = w->run->env->codec,
        .task = task,
        .plan = w->plan,
        .deadline_us = time_deadline_in_ms(limit_ms),
        .stall_ms = STALL_MS,
        .cancel_fd = w->run->stop_fd,
        .ud = w,
        .fetch = on_fetch,
        .segment = segments ? on_segment : NULL,
        .progress = on_progress,
    };
    child_run(&job, ret);
    double fetch = source_seconds(w->source) - waited;
    w->ret->seconds->encode = (double)(time_mono_us() - begin_us) / 1e6 - fetch;
    w->ret->seconds->cpu = (double)ret->cpu_us / 1e6;
}

// ---------------------------------------------------------------- move

static enum status on_copy(void *ud, int64_t offset, size_t len, void *dst, struct err *err)
{
    struct work *w = ud;
    run_progress(w->run, TRANSCODE__STAGE__STORE, offset, w->run->task->source_size);
    return source_read(w->source, offset, len, dst, err);
}

static void move(struct work *w, struct run_verdict *v)
{
    const Transcode__Task *t = w->run->task;
    struct err err = ERR_INIT;
    int64_t begin_us = time_mono_us();
    enum status s = sink_copy(w->run, t->source_digest.data, t->source_size, on_copy, w, &err);
    w->ret->seconds->store = (double)(time_mono_us() - begin_us) / 1e6 - source_seconds(w->source);
    if (s != STATUS_OK)
        fail_status(v, s, &err);
}

// ---------------------------------------------------------------- any

static bool is_complete(const Transcode__Task *t)
{
    return t->n_source_origins > 0 && t->target_origin &&
           t->source_digest.len == OBJECT_DIGEST_SIZE && t->source_size > 0 &&
           t->source_size <= OBJECT_MAX_BYTES;
}

static void do_task(struct work *w, struct run_verdict *v)
{
    struct err err = ERR_INIT;
    run_progress(w->run, TRANSCODE__STAGE__FETCH, 0, 0);
    enum status s = is_complete(w->run->task)
                        ? source_open(w->run, &w->source, &err)
                        : err_set(&err, STATUS_INVALID_ARGUMENT, "the lease says too little");
    if (s != STATUS_OK) {
        fail_status(v, s, &err);
        return;
    }
    switch ((int)w->run->task->kind) {
    case TRANSCODE__TASK_KIND__PROBE:
        probe(w, v);
        break;
    case TRANSCODE__TASK_KIND__CHUNK:
    case TRANSCODE__TASK_KIND__IMAGES:
        make(w, v);
        break;
    case TRANSCODE__TASK_KIND__MOVE:
        move(w, v);
        break;
    default: // a number from the wire
        fail(v, TRANSCODE__FAIL_CLASS__TRANSIENT, "this worker does not know that kind of task");
    }
}

void run_task(struct run *r, struct arena *a, Transcode__CompleteRequest *ret,
              struct run_verdict *verdict)
{
    *verdict = (struct run_verdict){.class = TRANSCODE__FAIL_CLASS__FAIL_CLASS_UNSPECIFIED};
    transcode__complete_request__init(ret);
    ret->task_id = r->task->task_id;
    ret->fence = r->task->fence;
    ret->seconds = arena_alloc(a, sizeof *ret->seconds);
    if (!ret->seconds) {
        fail(verdict, TRANSCODE__FAIL_CLASS__RESOURCE, "task: out of memory");
        return;
    }
    transcode__stage_seconds__init(ret->seconds);
    struct work w = {.run = r, .arena = a, .ret = ret};
    do_task(&w, verdict);
    if (w.source)
        ret->seconds->fetch = source_seconds(w.source);
    sink_free(w.sink);
    source_free(w.source);
    media_plan_free(w.plan);
}
