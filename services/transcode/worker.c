// The worker's threads: one per slot, which waits for a task, does it and says how it went; and a
// keeper, which renews every lease that is held and tells the orchestrator that we are here. While
// leases are held a renewal is always under way: the orchestrator answers it at once when one is
// lost, so that no encoder goes on for nobody. A task that is begun ends it, for a new one that
// names it too.
//
// Nothing here lasts: a worker that dies loses its leases and nothing else.
#include "transcode/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"

#define LEASE_WAIT_MS 20000
#define LEASE_CALL_MS 25000
#define JOIN_EVERY_MS 15000
#define CALL_MS 5000
#define RELEASE_MS 2000
#define REPORT_FOR_MS 120000 // how long a result is held for an orchestrator that does not answer
#define MAX_RESULT_BYTES (16U << 20)

struct slot {
    struct worker *w;
    bool spare; // for what somebody waits for while the others are busy
    pthread_t thread;
    bool started;
};

struct worker {
    struct worker_env env;
    pthread_mutex_t lock;
    pthread_cond_t changed; // draining
    struct list runs;       // under lock
    bool draining;
    struct cancel *cancel; // of polls
    struct cancel *poll;   // of the renewal that waits, or NULL; under lock
    unsigned n_begun;      // tasks so far; under lock
    bool joined;           // the orchestrator knows that earlier leases are over; under lock
    char instance[UUID_SIZE];
    pthread_t keeper;
    bool keeper_started;
    unsigned n_seen;  // the keeper's own: of n_begun, when it looked last
    int64_t renew_ms; // the keeper's own
    unsigned n_cores;
    unsigned n_slots; // without the spare one, which is the last
    struct slot slots[];
};

static bool is_draining(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    bool d = w->draining;
    pthread_mutex_unlock(&w->lock);
    return d;
}

// False: draining.
static bool rest(struct worker *w, int64_t ms)
{
    int64_t at_us = time_deadline_in_ms(ms);
    struct timespec at = {.tv_sec = at_us / 1000000, .tv_nsec = at_us % 1000000 * 1000};
    pthread_mutex_lock(&w->lock);
    int r = 0;
    while (!w->draining && r == 0)
        r = pthread_cond_timedwait(&w->changed, &w->lock, &at);
    bool go_on = !w->draining;
    pthread_mutex_unlock(&w->lock);
    return go_on;
}

// The keeper's: until a task is begun that it has not renewed yet. False: draining.
static bool await_task(struct worker *w, int64_t ms)
{
    int64_t at_us = time_deadline_in_ms(ms);
    struct timespec at = {.tv_sec = at_us / 1000000, .tv_nsec = at_us % 1000000 * 1000};
    pthread_mutex_lock(&w->lock);
    int r = 0;
    while (!w->draining && r == 0 && w->n_begun == w->n_seen)
        r = pthread_cond_timedwait(&w->changed, &w->lock, &at);
    bool go_on = !w->draining;
    pthread_mutex_unlock(&w->lock);
    return go_on;
}

// 0.5, 1, 2, 4 s, each with up to half as much again.
static int64_t backoff_ms(unsigned n_failed)
{
    int64_t ms = INT64_C(500) << (n_failed < 3 ? n_failed : 3);
    return ms + (int64_t)rand_below((uint64_t)ms / 2);
}

// ---------------------------------------------------------------- how it went

// A call that is repeated while the orchestrator does not answer and the lease may still be ours.
typedef enum status (*report_fn)(struct rpc_client *c, const struct rpc_opts *o, void *ud,
                                 struct err *err);

static enum status report(struct worker *w, struct run *r, report_fn fn, void *ud, struct err *err)
{
    int64_t until_us = time_deadline_in_ms(REPORT_FOR_MS);
    enum status s = STATUS_UNAVAILABLE;
    for (unsigned n = 0;; n++) {
        struct rpc_client *c = w->env.orchestrator(w->env.ud, err);
        bool last = is_draining(w);
        struct rpc_opts o = {.deadline_us = time_deadline_in_ms(last ? RELEASE_MS : CALL_MS)};
        s = c ? fn(c, &o, ud, err) : STATUS_UNAVAILABLE;
        bool again = s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED;
        if (!again || last || run_stopped(r) == STOP_LOST || time_mono_us() >= until_us)
            return s;
        (void)rest(w, backoff_ms(n));
    }
}

static enum status send_complete(struct rpc_client *c, const struct rpc_opts *o, void *ud,
                                 struct err *err)
{
    AUTO(rpc_message_free_p) Transcode__CompleteReply *reply = NULL;
    return transcode_work_complete(c, o, ud, &reply, err);
}

static enum status send_fail(struct rpc_client *c, const struct rpc_opts *o, void *ud,
                             struct err *err)
{
    AUTO(rpc_message_free_p) Transcode__FailReply *reply = NULL;
    return transcode_work_fail(c, o, ud, &reply, err);
}

static enum status send_release(struct rpc_client *c, const struct rpc_opts *o, void *ud,
                                struct err *err)
{
    AUTO(rpc_message_free_p) Transcode__ReleaseReply *reply = NULL;
    return transcode_work_release(c, o, ud, &reply, err);
}

static void give_back(struct worker *w, const Transcode__Task *t)
{
    Transcode__LeaseProgress lease;
    transcode__lease_progress__init(&lease);
    lease.task_id = t->task_id;
    lease.fence = t->fence;
    Transcode__LeaseProgress *leases[] = {&lease};
    Transcode__ReleaseRequest req;
    transcode__release_request__init(&req);
    req.leases = leases;
    req.n_leases = 1;
    struct err err = ERR_INIT;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(RELEASE_MS)};
    struct rpc_client *c = w->env.orchestrator(w->env.ud, &err);
    enum status s = c ? send_release(c, &o, &req, &err) : STATUS_UNAVAILABLE;
    if (s != STATUS_OK)
        log_warn(w->env.log, "release_failed", F_STR("task", t->task_id), F_ERR(&err));
}

static void say_failed(struct worker *w, struct run *r, const struct run_verdict *v)
{
    Transcode__FailRequest req;
    transcode__fail_request__init(&req);
    char text[sizeof v->text];
    str_copy(text, sizeof text, v->text);
    req.task_id = r->task->task_id;
    req.fence = r->task->fence;
    req.class_ = v->class;
    req.message = text;
    struct err err = ERR_INIT;
    enum status s = report(w, r, send_fail, &req, &err);
    log_info(w->env.log, "task_failed", F_STR("task", req.task_id), F_I64("class", req.class_),
             F_STR("reason", text), F_STR("told", status_name(s)));
}

static void say_complete(struct worker *w, struct run *r, Transcode__CompleteRequest *req)
{
    struct err err = ERR_INIT;
    enum status s = report(w, r, send_complete, req, &err);
    if (s == STATUS_OK) {
        log_info(w->env.log, "task_done", F_STR("task", req->task_id),
                 F_I64("segments", req->n_outputs), F_DBL("fetch_s", req->seconds->fetch),
                 F_DBL("encode_s", req->seconds->encode), F_DBL("store_s", req->seconds->store));
        return;
    }
    log_warn(w->env.log, "complete_refused", F_STR("task", req->task_id), F_ERR(&err));
    if (s == STATUS_ABORTED || s == STATUS_NOT_FOUND || run_stopped(r) != STOP_NONE)
        return; // somebody else has it by now
    struct run_verdict v = {.class = TRANSCODE__FAIL_CLASS__TRANSIENT};
    str_copy(v.text, sizeof v.text, err.msg);
    say_failed(w, r, &v);
}

// ---------------------------------------------------------------- a slot

static void work_on(struct worker *w, struct run *r)
{
    struct arena *a = arena_new(MAX_RESULT_BYTES);
    Transcode__CompleteRequest result;
    struct run_verdict v = {.class = TRANSCODE__FAIL_CLASS__RESOURCE, .text = "out of memory"};
    if (a)
        run_task(r, a, &result, &v);
    bool done = v.class == TRANSCODE__FAIL_CLASS__FAIL_CLASS_UNSPECIFIED;
    if (done) // even when stopping: the work is there
        say_complete(w, r, &result);
    else if (run_stopped(r) == STOP_DRAIN || run_stopped(r) == STOP_YIELD)
        give_back(w, r->task);
    else if (run_stopped(r) == STOP_NONE)
        say_failed(w, r, &v);
    else
        log_info(w->env.log, "task_lost", F_STR("task", r->task->task_id));
    arena_free(a);
}

static unsigned threads_for(const struct worker *w, const Transcode__Task *t)
{
    if (t->urgent || w->n_slots >= w->n_cores)
        return t->urgent ? w->n_cores : 1;
    return w->n_cores / w->n_slots;
}

// spare: the first segment is what counts; the rest is for those who have the time.
static void take_on(struct worker *w, const Transcode__Task *t, bool spare)
{
    struct run r;
    struct err err = ERR_INIT;
    if (run_init(&r, &w->env, t, threads_for(w, t), &err) != STATUS_OK) {
        log_warn(w->env.log, "task_not_begun", F_STR("task", t->task_id), F_ERR(&err));
        give_back(w, t);
        return;
    }
    if (spare)
        run_yield(&r);
    log_debug(w->env.log, "task_begun", F_STR("task", t->task_id), F_I64("kind", t->kind),
              F_I64("first", t->first_segment), F_I64("n", t->n_segments));
    pthread_mutex_lock(&w->lock);
    list_push_back(&w->runs, &r.link);
    bool late = w->draining;
    w->n_begun++;
    struct cancel *poll = w->poll ? cancel_ref(w->poll) : NULL;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (poll) {
        cancel_fire(poll);
        cancel_unref(poll);
    }
    if (late)
        run_stop(&r, STOP_DRAIN);
    work_on(w, &r);
    pthread_mutex_lock(&w->lock);
    list_remove(&r.link);
    pthread_mutex_unlock(&w->lock);
    run_done(&r);
}

static enum status lease(struct worker *w, bool spare, Transcode__LeaseReply **ret, struct err *err)
{
    struct rpc_client *c = w->env.orchestrator(w->env.ud, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    Transcode__LeaseRequest req;
    transcode__lease_request__init(&req);
    req.slots = 1;
    req.wait_ms = LEASE_WAIT_MS;
    req.wanted_only = spare;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(LEASE_CALL_MS), .cancel = w->cancel};
    return transcode_work_lease(c, &o, &req, ret, err);
}

static void await_join(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->joined && !w->draining)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void *slot_thread(void *ud)
{
    struct slot *slot = ud;
    struct worker *w = slot->w;
    unsigned n_failed = 0;
    await_join(w);
    while (!is_draining(w)) {
        AUTO(rpc_message_free_p) Transcode__LeaseReply *reply = NULL;
        struct err err = ERR_INIT;
        enum status s = lease(w, slot->spare, &reply, &err);
        if (s != STATUS_OK) {
            if (s != STATUS_CANCELLED && n_failed == 0)
                log_warn(w->env.log, "lease_failed", F_ERR(&err));
            (void)rest(w, backoff_ms(n_failed++));
            continue;
        }
        n_failed = 0;
        for (size_t i = 0; i < reply->n_tasks; i++)
            take_on(w, reply->tasks[i], slot->spare);
    }
    return NULL;
}

// ---------------------------------------------------------------- the keeper

// "h264,aac,...": all that plans may ask for, since the codec program of this build has them.
static void name_codecs(char *dst, size_t size)
{
    dst[0] = '\0';
    for (int i = MEDIA_CODEC_NONE + 1; i < MEDIA_N_CODECS; i++) {
        size_t n = strlen(dst);
        (void)snprintf(dst + n, size - n, "%s%s", n ? "," : "",
                       media_codec_name((enum media_codec)i));
    }
}

static bool join(struct worker *w)
{
    struct err err = ERR_INIT;
    struct rpc_client *c = w->env.orchestrator(w->env.ud, &err);
    if (!c)
        return false;
    Transcode__JoinRequest req;
    transcode__join_request__init(&req);
    char build[128], cpu[128], codecs[128];
    str_copy(build, sizeof build, w->env.build);
    str_copy(cpu, sizeof cpu, w->env.cpu_class);
    name_codecs(codecs, sizeof codecs);
    req.slots = (int32_t)w->n_slots;
    req.build = build;
    req.cpu_class = cpu;
    req.codecs = codecs;
    req.instance = w->instance;
    req.threads = (int32_t)(w->n_slots > w->n_cores ? w->n_slots : w->n_cores);
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(CALL_MS), .cancel = w->cancel};
    AUTO(rpc_message_free_p) Transcode__JoinReply *reply = NULL;
    enum status s = transcode_work_join(c, &o, &req, &reply, &err);
    if (s == STATUS_OK && reply->renew_ms >= 100 && reply->renew_ms <= 60000)
        w->renew_ms = reply->renew_ms;
    else if (s != STATUS_OK && s != STATUS_CANCELLED)
        log_debug(w->env.log, "join_failed", F_ERR(&err));
    return s == STATUS_OK;
}

// Until the orchestrator has answered once: slots lease nothing before. False: draining.
static bool join_first(struct worker *w)
{
    for (unsigned n = 0; !join(w); n++)
        if (!rest(w, backoff_ms(n)))
            return false;
    pthread_mutex_lock(&w->lock);
    w->joined = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return true;
}

// The leases that are held and not known to be lost, as of now. Strings belong to the arena.
static Transcode__LeaseProgress **snapshot(struct worker *w, struct arena *a, size_t *ret_n)
{
    Transcode__LeaseProgress **list = arena_array(a, w->n_slots + 1, sizeof *list);
    if (!list)
        return NULL;
    pthread_mutex_lock(&w->lock);
    list_for_each(it, &w->runs)
    {
        struct run *r = list_entry(it, struct run, link);
        if (run_stopped(r) == STOP_LOST)
            continue; // it ends just now
        Transcode__LeaseProgress *p = arena_alloc(a, sizeof *p);
        char *id = arena_strdup(a, r->task->task_id);
        if (!p || !id || *ret_n > w->n_slots)
            break;
        transcode__lease_progress__init(p);
        p->task_id = id;
        p->fence = r->task->fence;
        p->stage = (Transcode__Stage)__atomic_load_n(&r->stage, __ATOMIC_RELAXED);
        p->done = __atomic_load_n(&r->done, __ATOMIC_RELAXED);
        p->total = __atomic_load_n(&r->total, __ATOMIC_RELAXED);
        list[(*ret_n)++] = p;
    }
    pthread_mutex_unlock(&w->lock);
    return list;
}

// Of the leases that were asked about: one that was given back and taken again meanwhile is
// another.
static bool is_of(const struct run *r, const Transcode__RenewRequest *asked, const char *task_id)
{
    bool same = false;
    for (size_t i = 0; i < asked->n_leases && !same; i++)
        same =
            asked->leases[i]->fence == r->task->fence && str_eq(asked->leases[i]->task_id, task_id);
    return same && str_eq(r->task->task_id, task_id);
}

static void lose(struct worker *w, const Transcode__RenewRequest *asked, const char *task_id)
{
    pthread_mutex_lock(&w->lock);
    list_for_each(it, &w->runs)
    {
        struct run *r = list_entry(it, struct run, link);
        if (is_of(r, asked, task_id))
            run_stop(r, STOP_LOST);
    }
    pthread_mutex_unlock(&w->lock);
}

static void make_yield(struct worker *w, const Transcode__RenewRequest *asked, const char *task_id)
{
    pthread_mutex_lock(&w->lock);
    list_for_each(it, &w->runs)
    {
        struct run *r = list_entry(it, struct run, link);
        if (is_of(r, asked, task_id))
            run_yield(r);
    }
    pthread_mutex_unlock(&w->lock);
}

// The leases as of now and the token that ends the wait when there is another.
static struct cancel *begin_poll(struct worker *w, struct arena *a, Transcode__RenewRequest *req)
{
    struct cancel *poll = cancel_new(w->cancel);
    pthread_mutex_lock(&w->lock);
    w->n_seen = w->n_begun;
    w->poll = poll;
    pthread_mutex_unlock(&w->lock);
    req->leases = snapshot(w, a, &req->n_leases);
    return poll;
}

static void end_poll(struct worker *w, struct cancel *poll)
{
    pthread_mutex_lock(&w->lock);
    w->poll = NULL;
    pthread_mutex_unlock(&w->lock);
    cancel_unref(poll);
}

// Renew what is held and wait until a lease is lost, another is taken or it is time to renew again.
// RENEW_IDLE: there is none, or the orchestrator does not wait.
enum renewal { RENEW_IDLE, RENEW_AGAIN, RENEW_FAILED };
static enum renewal renew(struct worker *w)
{
    AUTO(arena_free_p) struct arena *a = arena_new(1 << 20);
    if (!a)
        return RENEW_FAILED;
    Transcode__RenewRequest req;
    transcode__renew_request__init(&req);
    struct cancel *poll = begin_poll(w, a, &req);
    if (!poll || !req.leases || req.n_leases == 0) {
        end_poll(w, poll);
        return poll && req.leases ? RENEW_IDLE : RENEW_FAILED;
    }
    req.wait_ms = w->renew_ms;
    struct err err = ERR_INIT;
    int64_t early_us = time_deadline_in_ms(w->renew_ms / 2);
    struct rpc_client *c = w->env.orchestrator(w->env.ud, &err);
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(w->renew_ms + CALL_MS), .cancel = poll};
    AUTO(rpc_message_free_p) Transcode__RenewReply *reply = NULL;
    enum status s = c ? transcode_work_renew(c, &o, &req, &reply, &err) : STATUS_UNAVAILABLE;
    bool ended = cancel_is_fired(poll); // by a task that was begun, or by draining
    end_poll(w, poll);
    if (s != STATUS_OK && !ended)
        log_debug(w->env.log, "renew_failed", F_ERR(&err)); // work goes on: its result may count
    for (size_t i = 0; s == STATUS_OK && i < reply->n_lost; i++)
        lose(w, &req, reply->lost[i]);
    for (size_t i = 0; s == STATUS_OK && i < reply->n_yield; i++)
        make_yield(w, &req, reply->yield[i]);
    if (ended || (s == STATUS_OK && (reply->n_lost > 0 || time_mono_us() >= early_us)))
        return RENEW_AGAIN;
    return s == STATUS_OK ? RENEW_IDLE : RENEW_FAILED;
}

static void *keeper_thread(void *ud)
{
    struct worker *w = ud;
    bool go_on = join_first(w);
    int64_t next_join_us = time_deadline_in_ms(JOIN_EVERY_MS);
    while (go_on) {
        if (time_mono_us() >= next_join_us) {
            (void)join(w);
            next_join_us = time_deadline_in_ms(JOIN_EVERY_MS);
        }
        switch (renew(w)) {
        case RENEW_AGAIN:
            go_on = !is_draining(w);
            break;
        case RENEW_IDLE:
            go_on = await_task(w, w->renew_ms);
            break;
        case RENEW_FAILED:
            go_on = rest(w, w->renew_ms);
            break;
        }
    }
    return NULL;
}

// ---------------------------------------------------------------- start and stop

enum status worker_new(const struct worker_env *env, struct worker **ret, struct err *err)
{
    unsigned n = env->slots;
    struct worker *w = mem_alloc(sizeof *w + (n + 1) * sizeof w->slots[0]);
    if (!w)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "worker: out of memory");
    w->env = *env;
    w->n_slots = n;
    w->renew_ms = 5000;
    rand_uuid7(w->instance);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    w->n_cores = cores < 1 ? 1 : cores > 64 ? 64 : (unsigned)cores;
    list_init(&w->runs);
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &a);
    pthread_condattr_destroy(&a);
    w->cancel = cancel_new(NULL);
    int e = w->cancel ? pthread_create(&w->keeper, NULL, keeper_thread, w) : ENOMEM;
    w->keeper_started = e == 0;
    for (unsigned i = 0; e == 0 && i <= n; i++) {
        w->slots[i].w = w;
        w->slots[i].spare = i == n;
        e = pthread_create(&w->slots[i].thread, NULL, slot_thread, &w->slots[i]);
        w->slots[i].started = e == 0;
    }
    if (e != 0) {
        worker_drain(w);
        worker_free(w);
        return err_errno(err, e, "worker: threads");
    }
    *ret = w;
    return STATUS_OK;
}

void worker_drain(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    w->draining = true;
    list_for_each(it, &w->runs) run_stop(list_entry(it, struct run, link), STOP_DRAIN);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (w->cancel)
        cancel_fire(w->cancel);
}

void worker_free(struct worker *w)
{
    if (!w)
        return;
    worker_drain(w);
    for (unsigned i = 0; i <= w->n_slots; i++)
        if (w->slots[i].started)
            pthread_join(w->slots[i].thread, NULL);
    if (w->keeper_started)
        pthread_join(w->keeper, NULL);
    cancel_unref(w->cancel);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    mem_free(w);
}
