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
#include "media/loudness.h"
#include "media/task.h"
#include "media/texts.h"
#include "transcode/child.h"

// Looking at a file takes little; one without index must be read through.
#define PROBE_MS 15000
#define PROBE_BYTES_PER_MS (10 << 10)
#define CHUNK_MS (INT64_C(15) * 60 * 1000)
#define STALL_MS 30000
#define PUBLISH_MS 5000
// On the same core, of the time that somebody who waits gets: what comes after the segment that is
// waited for a third, which is still three times that of what nobody waits for, a tenth.
#define FOLLOWING_NICE 5
#define BACKGROUND_NICE 10

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
    // The first reason stays, but for yielding, which any other one overrules.
    int was = STOP_NONE;
    bool first = __atomic_compare_exchange_n(&r->stop, &was, (int)why, false, __ATOMIC_ACQ_REL,
                                             __ATOMIC_ACQUIRE);
    if (!first && (was != STOP_YIELD || why == STOP_YIELD ||
                   !__atomic_compare_exchange_n(&r->stop, &was, (int)why, false, __ATOMIC_ACQ_REL,
                                                __ATOMIC_ACQUIRE)))
        return;
    uint64_t one = 1;
    if (write(r->stop_fd, &one, sizeof one) < 0)
        (void)0; // a counter of 1 or 2 never overflows
    if (why != STOP_YIELD)
        cancel_fire(r->cancel);
}

void run_yield(struct run *r)
{
    __atomic_store_n(&r->yield, true, __ATOMIC_RELEASE);
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
    struct checks *checks;   // verify; else NULL
    struct media_plan *plan; // chunk, images
    Transcode__CompleteRequest *ret;
    size_t n_outputs; // that the task has to make
    // A codec process makes some renditions of consecutive segments; between two segments of all of
    // them the work can be cut off without loss. Counts are of outputs.
    pthread_mutex_t lock;
    size_t row;                 // renditions of the process that runs
    int nice;                   // of it
    size_t n_begun, n_now;      // made before it was started; that it is to make
    size_t n_made, n_published; // so far
    int64_t told_us;            // when the last publication was; the sink's thread's
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
    return w->checks ? checks_read(w->checks, w->source, offset, len, dst, err)
                     : source_read(w->source, offset, len, dst, err);
}

static void on_progress(void *ud, int64_t done, int64_t total)
{
    struct work *w = ud;
    int64_t before = (int64_t)w->n_begun, part = (int64_t)w->n_now, all = (int64_t)w->n_outputs;
    if (all) // of outputs, as if all were alike
        done = done * part + before * total, total *= all;
    run_progress(w->run, TRANSCODE__STAGE__ENCODE, done, total);
}

static uint32_t window_blocks(const struct run *r)
{
    return (uint32_t)(r->env->window_bytes / MEDIA_READ_BLOCK);
}

// What the codec process ended with. A probe that hangs is the file's doing as much as a crash is:
// twice, and the file is refused. One that hits its limits would do so again: refused at once.
static void judge(const struct work *w, const struct child_result *c, struct run_verdict *v)
{
    bool probe = w->run->task->kind == TRANSCODE__TASK_KIND__PROBE;
    switch (c->outcome) {
    case CHILD_OK:
        return;
    case CHILD_REJECTED:
        fail(v, TRANSCODE__FAIL_CLASS__REJECTED, c->text);
        return;
    case CHILD_LIMIT:
        fail(v, probe ? TRANSCODE__FAIL_CLASS__REJECTED : TRANSCODE__FAIL_CLASS__CRASH, c->text);
        return;
    case CHILD_CRASH:
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
    const Transcode__Task *t = w->run->task;
    struct err err = ERR_INIT;
    if (media_options_parse(t->preset, (const char *const *)t->video_codecs, t->n_video_codecs,
                            &task.options, &err) != STATUS_OK) {
        fail(v, TRANSCODE__FAIL_CLASS__TRANSIENT, err.msg); // a newer orchestrator's
        return;
    }
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

static bool is_chunk(const struct work *w)
{
    return w->run->task->kind == TRANSCODE__TASK_KIND__CHUNK;
}

// Under the lock: nothing is lost by stopping here, and there is more to come.
static bool is_between(const struct work *w)
{
    return (w->n_made - w->n_begun) % w->row == 0 && w->n_made < w->n_outputs;
}

// What is named and stored like a picture.
static bool is_picture(const struct work *w)
{
    return w->run->task->kind == TRANSCODE__TASK_KIND__IMAGES ||
           w->run->task->kind == TRANSCODE__TASK_KIND__MEASURE;
}

static void stop_if_yielding(struct work *w, bool between)
{
    if (between && __atomic_load_n(&w->run->yield, __ATOMIC_ACQUIRE))
        run_stop(w->run, STOP_YIELD);
}

// Seconds since the last publication: together they are those of the task.
static void take_seconds(struct work *w, Transcode__StageSeconds *ret)
{
    transcode__stage_seconds__init(ret);
    int64_t now_us = time_mono_us();
    ret->encode = (double)(now_us - w->told_us) / 1e6;
    w->told_us = now_us;
}

// On the sink's thread. What cannot be told now comes with the next segments, or with Complete.
static enum status on_stored(void *ud, Transcode__Output **outputs, size_t n, struct err *err)
{
    struct work *w = ud;
    struct run *r = w->run;
    Transcode__StageSeconds seconds;
    Transcode__PublishRequest req;
    transcode__publish_request__init(&req);
    take_seconds(w, &seconds);
    req.task_id = r->task->task_id;
    req.fence = r->task->fence;
    req.outputs = outputs;
    req.n_outputs = n;
    req.seconds = &seconds;
    struct rpc_client *c = r->env->orchestrator(r->env->ud, err);
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(PUBLISH_MS), .cancel = r->cancel};
    AUTO(rpc_message_free_p) Transcode__PublishReply *reply = NULL;
    enum status s = c ? transcode_work_publish(c, &o, &req, &reply, err) : STATUS_UNAVAILABLE;
    if (s == STATUS_ABORTED || s == STATUS_NOT_FOUND)
        run_stop(r, STOP_LOST); // somebody else has it by now, or nobody wants it
    if (s != STATUS_OK)
        return s;
    if (reply->yield)
        run_yield(r);
    pthread_mutex_lock(&w->lock);
    w->n_published += n;
    bool idle = w->n_published == w->n_made && is_between(w);
    pthread_mutex_unlock(&w->lock);
    stop_if_yielding(w, idle);
    return STATUS_OK;
}

// What an output is called: borrowed from the plan, the task or nobody.
static const char *output_name(const struct work *w, uint32_t which)
{
    const Transcode__Task *t = w->run->task;
    char text[MEDIA_TEXT_ID_SIZE];
    if (is_chunk(w))
        return w->plan->renditions[which].id;
    if (is_picture(w))
        return media_image_name((enum media_image)which);
    media_text_name(which, text);
    for (size_t i = 0; i < t->n_renditions; i++)
        if (which == MEDIA_TEXT_FILE || str_eq(t->renditions[i], text))
            return t->renditions[i];
    return "";
}

// The number by which a codec process knows what is called that; -1: nothing of the plan is.
static int output_number(const struct work *w, const char *name)
{
    if (is_chunk(w))
        return media_plan_find(w->plan, name);
    if (is_picture(w))
        return media_image_find(name);
    return media_text_find_added(name) >= 0 ? MEDIA_TEXT_FILE : media_text_find(w->plan, name);
}

static Transcode__Output *new_output(struct work *w, const struct media_segment_out *out, size_t n)
{
    const struct media_rendition *r = is_chunk(w) ? &w->plan->renditions[out->rendition] : NULL;
    Transcode__Output *o = arena_alloc(w->arena, sizeof *o);
    uint8_t *digests = arena_alloc(w->arena, 2 * OBJECT_DIGEST_SIZE);
    char *name = arena_strdup(w->arena, output_name(w, out->rendition));
    if (!o || !digests || !name)
        return NULL;
    transcode__output__init(o);
    crypto_blake2b(digests + OBJECT_DIGEST_SIZE, OBJECT_DIGEST_SIZE, r ? r->init : NULL,
                   r ? r->init_len : 0, NULL, 0, NULL);
    o->rendition = name;
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
    return o;
}

// The numbers go with the task's end, so that nobody has to read the object for them.
static enum status tell_loudness(struct work *w, const void *json, size_t n, struct err *err)
{
    struct media_loudness l;
    enum status s = media_loudness_parse(json, n, &l, err);
    if (s != STATUS_OK)
        return s;
    Common__Loudness *told = arena_alloc(w->arena, sizeof *told);
    if (!told)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "loudness: out of memory");
    common__loudness__init(told);
    told->integrated_mlufs = l.integrated_mlufs;
    told->range_mlu = l.range_mlu;
    told->true_peak_mdb = l.true_peak_mdb;
    w->ret->loudness = told;
    return STATUS_OK;
}

static enum status on_segment(void *ud, const struct media_segment_out *out, const void *bytes,
                              size_t n, struct err *err)
{
    struct work *w = ud;
    Transcode__Output *o = new_output(w, out, n);
    if (!o)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "segment: out of memory");
    pthread_mutex_lock(&w->lock);
    w->n_made++;
    bool between = is_between(w);
    pthread_mutex_unlock(&w->lock);
    enum status s = sink_put(w->sink, bytes, n, o, err);
    if (s == STATUS_OK && is_picture(w) && out->rendition == MEDIA_IMAGE_LOUDNESS)
        s = tell_loudness(w, bytes, n, err);
    if (s == STATUS_OK)
        stop_if_yielding(w, between);
    return s;
}

// What is still to be made of a task, as runs of segments that lack the same renditions.
struct gap {
    uint64_t lacking; // bits: of the task's renditions
    int32_t first, n;
    int nice; // of its process
};

static int place_of(const Transcode__Task *t, const char *rendition)
{
    for (size_t i = 0; i < t->n_renditions; i++)
        if (str_eq(t->renditions[i], rendition))
            return (int)i;
    return -1;
}

static uint64_t lacking(const Transcode__Task *t, int32_t segment)
{
    uint64_t bits = t->n_renditions == 64 ? UINT64_MAX : (UINT64_C(1) << t->n_renditions) - 1;
    for (size_t i = 0; i < t->n_made; i++) {
        int place = place_of(t, t->made[i]->rendition);
        for (size_t k = 0; place >= 0 && k < t->made[i]->n_segments; k++)
            if (t->made[i]->segments[k] == segment)
                bits &= ~(UINT64_C(1) << place);
    }
    return bits;
}

// The next gap from segment *at on; false: there is none.
static bool next_gap(const Transcode__Task *t, int32_t *at, struct gap *ret)
{
    int32_t end = t->first_segment + t->n_segments;
    while (*at < end && !lacking(t, *at))
        ++*at;
    if (*at == end)
        return false;
    *ret = (struct gap){.lacking = lacking(t, *at), .first = *at};
    while (*at < end && lacking(t, *at) == ret->lacking)
        ++*at, ret->n++;
    return true;
}

// The next gap as it is to be made. Of an urgent task the first segment is made by itself, before
// all else: whoever waits for it may go elsewhere, and the rest must not be in the way there.
static bool next_part(const struct work *w, int32_t *at, struct gap *ret)
{
    const Transcode__Task *t = w->run->task;
    bool first = *at == t->first_segment;
    if (!next_gap(t, at, ret))
        return false;
    ret->nice = t->urgent ? FOLLOWING_NICE : BACKGROUND_NICE;
    if (t->urgent && first && is_chunk(w)) {
        *at = ret->first + 1;
        ret->n = 1;
        ret->nice = 0;
    }
    return true;
}

static size_t gap_outputs(const struct gap *g)
{
    return (size_t)__builtin_popcountll(g->lacking) * (size_t)g->n;
}

static enum status read_plan(struct work *w, struct err *err)
{
    const Transcode__Task *t = w->run->task;
    enum status s = media_plan_decode(t->plan.data, t->plan.len, &w->plan, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "plan of the task");
    if (t->first_segment < 0 || t->n_segments < 1 || t->n_segments > MEDIA_MAX_SEGMENTS ||
        t->n_renditions < 1 || t->n_renditions > MEDIA_MAX_RENDITIONS)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the task and its plan disagree");
    int32_t at = t->first_segment;
    for (struct gap g; next_gap(t, &at, &g);)
        w->n_outputs += gap_outputs(&g);
    return STATUS_OK;
}

static enum status make_task(struct work *w, const struct gap *g, struct media_task *ret,
                             struct err *err)
{
    const Transcode__Task *t = w->run->task;
    *ret = (struct media_task){
        .kind = is_chunk(w)                                ? MEDIA_TASK_CHUNK
                : t->kind == TRANSCODE__TASK_KIND__IMAGES  ? MEDIA_TASK_IMAGES
                : t->kind == TRANSCODE__TASK_KIND__MEASURE ? MEDIA_TASK_MEASURE
                                                           : MEDIA_TASK_TEXTS,
        .source_size = t->source_size,
        .gain_mdb = t->gain_mdb,
        .threads = w->run->threads,
        .window_blocks = window_blocks(w->run),
        .first_segment = (uint32_t)g->first,
        .n_segments = (uint32_t)g->n,
        .plan = t->plan.data,
        .plan_len = t->plan.len,
    };
    for (size_t i = 0; i < t->n_renditions; i++) {
        if (!(g->lacking >> i & 1))
            continue;
        int which = output_number(w, t->renditions[i]);
        if (which < 0)
            return err_set(err, STATUS_INVALID_ARGUMENT, "the task and its plan disagree");
        ret->renditions[ret->n_renditions++] = (uint8_t)which;
    }
    return STATUS_OK;
}

// A film plays without its poster or its text: what a decoder makes of those does not spoil it. A
// measurement has nothing to leave out: it is made or has failed.
static bool goes_without(const struct work *w, const struct child_result *c)
{
    bool parts = !is_chunk(w) && w->run->task->kind != TRANSCODE__TASK_KIND__MEASURE;
    return parts && (c->outcome == CHILD_REJECTED || c->outcome == CHILD_CRASH ||
                     c->outcome == CHILD_LIMIT || c->outcome == CHILD_TIMEOUT);
}

// One codec process for one gap. False: that was the last.
static bool fill_gap(struct work *w, const struct gap *g, struct run_verdict *v)
{
    struct err err = ERR_INIT;
    struct media_task task;
    enum status s = make_task(w, g, &task, &err);
    if (s != STATUS_OK) {
        fail_status(v, s, &err);
        return false;
    }
    pthread_mutex_lock(&w->lock);
    w->row = task.n_renditions;
    w->n_begun = w->n_made;
    w->n_now = gap_outputs(g);
    pthread_mutex_unlock(&w->lock);
    w->nice = g->nice;
    struct child_result c = {0};
    run_child(w, &task, CHUNK_MS, true, &c);
    if (goes_without(w, &c)) {
        log_warn(w->run->env->log, "left_out", F_STR("item", w->run->task->item_id),
                 F_STR("what", w->run->task->renditions[0]), F_STR("why", c.text));
        w->ret->left_out = arena_strdup(w->arena, c.text);
    } else {
        judge(w, &c, v);
    }
    child_result_done(&c);
    return v->class == TRANSCODE__FAIL_CLASS__FAIL_CLASS_UNSPECIFIED;
}

static void make(struct work *w, struct run_verdict *v)
{
    struct err err = ERR_INIT;
    enum status s = read_plan(w, &err);
    if (s == STATUS_OK)
        s = sink_open(w->run, w->n_outputs, is_chunk(w) ? on_stored : NULL, w, &w->sink, &err);
    if (s != STATUS_OK) {
        fail_status(v, s, &err);
        return;
    }
    w->told_us = time_mono_us();
    int32_t at = w->run->task->first_segment;
    for (struct gap g; next_part(w, &at, &g) && fill_gap(w, &g, v);)
        ;
    // What is made is published even when the rest is given back.
    bool failed = v->class != TRANSCODE__FAIL_CLASS__FAIL_CLASS_UNSPECIFIED;
    if (failed && run_stopped(w->run) != STOP_YIELD)
        return;
    s = sink_flush(w->sink, &err);
    w->ret->seconds->store = sink_seconds(w->sink);
    w->ret->outputs = sink_rest(w->sink, &w->ret->n_outputs);
    if (s != STATUS_OK && !failed)
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
        .nice = w->nice,
        .cancel_fd = w->run->stop_fd,
        .ud = w,
        .fetch = on_fetch,
        .segment = segments ? on_segment : NULL,
        .progress = on_progress,
    };
    child_run(&job, ret);
    double fetch = source_seconds(w->source) - waited;
    w->ret->seconds->encode += (double)(time_mono_us() - begin_us) / 1e6 - fetch;
    w->ret->seconds->cpu += (double)ret->cpu_us / 1e6;
}

// ---------------------------------------------------------------- verify

static enum status read_check(struct work *w, struct media_task *ret, struct err *err)
{
    const Transcode__Task *t = w->run->task;
    enum status s = read_plan(w, err);
    if (s == STATUS_OK)
        s = checks_new(w->run, w->plan, &w->checks, err);
    if (s != STATUS_OK)
        return s;
    *ret = (struct media_task){.kind = MEDIA_TASK_VERIFY,
                               .source_size = checks_total(w->checks),
                               .threads = w->run->threads,
                               .window_blocks = window_blocks(w->run),
                               .first_segment = (uint32_t)t->first_segment,
                               .n_segments = (uint32_t)t->n_segments,
                               .plan = t->plan.data,
                               .plan_len = t->plan.len};
    for (size_t i = 0; i < t->n_renditions; i++)
        ret->renditions[ret->n_renditions++] =
            (uint8_t)media_plan_find(w->plan, t->renditions[i]); // checks_new() has found it
    return STATUS_OK;
}

// Whatever goes wrong with a check but its verdict says nothing about what is checked.
static void verify(struct work *w, struct run_verdict *v)
{
    struct err err = ERR_INIT;
    struct media_task task;
    enum status s = read_check(w, &task, &err);
    if (s != STATUS_OK) {
        fail_status(v, s, &err);
        return;
    }
    struct child_result c = {0};
    run_child(w, &task, CHUNK_MS, false, &c);
    if (c.outcome == CHILD_REJECTED)
        fail(v, TRANSCODE__FAIL_CLASS__MISMATCH, c.text);
    else if (c.outcome != CHILD_OK)
        fail(v, TRANSCODE__FAIL_CLASS__TRANSIENT, c.text);
    child_result_done(&c);
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
    case TRANSCODE__TASK_KIND__TEXTS:
    case TRANSCODE__TASK_KIND__MEASURE:
        make(w, v);
        break;
    case TRANSCODE__TASK_KIND__VERIFY:
        verify(w, v);
        break;
    case TRANSCODE__TASK_KIND__MOVE:
        move(w, v);
        break;
    default: // a number from the wire
        fail(v, TRANSCODE__FAIL_CLASS__TRANSIENT, "this worker does not know that kind of task");
    }
}

// The sink's list goes with it.
static void keep_rest(struct work *w, struct run_verdict *v)
{
    size_t n = w->ret->n_outputs;
    Transcode__Output **copy = arena_array(w->arena, n + 1, sizeof *copy);
    if (!copy && v->class == TRANSCODE__FAIL_CLASS__FAIL_CLASS_UNSPECIFIED)
        fail(v, TRANSCODE__FAIL_CLASS__RESOURCE, "task: out of memory");
    if (copy && n)
        memcpy(copy, w->ret->outputs, n * sizeof *copy);
    w->ret->outputs = copy;
    w->ret->n_outputs = copy ? n : 0;
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
    struct work w = {.run = r, .arena = a, .ret = ret, .row = 1};
    pthread_mutex_init(&w.lock, NULL);
    do_task(&w, verdict);
    if (w.source)
        ret->seconds->fetch = source_seconds(w.source);
    keep_rest(&w, verdict);
    sink_free(w.sink);
    checks_free(w.checks);
    source_free(w.source);
    pthread_mutex_destroy(&w.lock);
    media_plan_free(w.plan);
}
