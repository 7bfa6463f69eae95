// Job.* (with watch.c and why.c), Backend.*: what people see of the work.
#include "orchestrator/internal.h"

#include <stdio.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"

#include "base/str.h"

#define MAX_BACKENDS 256
#define MAX_REASON 400 // of a cancellation, bytes
#define MAX_PRIORITY 1000

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "jobs: out of memory");
}

// How far a job is: done tasks, and of leased ones what their stage is worth.
// clang-format off
#define JOB_SQL                                                                                    \
    "SELECT * FROM (SELECT j.id, j.item, i.title,"                                                 \
    "  CASE WHEN j.state = 'queued' AND n.touched THEN 'running' ELSE j.state END AS state,"       \
    "  j.reason, n.tasks, n.done, n.progress, " ORCH_US("j.created") " AS created,"                \
    "  " ORCH_US("j.playable") " AS playable, " ORCH_US("j.finished") " AS finished, j.owner,"     \
    "  j.priority, j.paused "                                                                      \
    "FROM orchestrator.job j JOIN orchestrator.item i ON i.id = j.item CROSS JOIN LATERAL ("       \
    "  SELECT count(*) AS tasks, count(*) FILTER (WHERE t.state = 'done') AS done,"                \
    "    coalesce(bool_or(t.attempts > 0), false) AS touched,"                                     \
    "    coalesce(avg(" ORCH_TASK_PROGRESS "), 0) AS progress"                                \
    "  FROM orchestrator.task t WHERE t.job = j.id AND NOT t.demand) n) x "
// clang-format on

static enum status fill_job(struct arena *a, const struct db_result *r, size_t row,
                            Orchestrator__JobInfo *ret, struct err *err)
{
    ret->job_id = orch_str(a, db_text(r, row, 0));
    ret->item_id = orch_str(a, db_text(r, row, 1));
    ret->title = orch_str(a, db_text(r, row, 2));
    ret->state = orch_str(a, db_text(r, row, 3));
    ret->reason = orch_str(a, db_text(r, row, 4));
    ret->tasks = (int32_t)db_i64(r, row, 5);
    ret->tasks_done = (int32_t)db_i64(r, row, 6);
    // Before the plan there is one task: its end is not the job's.
    bool done = str_eq(ret->state, "done");
    ret->progress = done ? 1.0 : ret->tasks > 1 ? db_double(r, row, 7) : 0.0;
    ret->created = orch_timestamp(a, db_i64(r, row, 8));
    ret->playable = orch_timestamp(a, db_i64(r, row, 9));
    ret->finished = orch_timestamp(a, db_i64(r, row, 10));
    ret->owner = orch_str(a, db_text(r, row, 11));
    ret->priority = (int32_t)db_i64(r, row, 12);
    ret->paused = db_bool(r, row, 13);
    return ret->created ? STATUS_OK : no_memory(err);
}

// ---------------------------------------------------------------- List

static enum status list(struct rpc_call *call, const Orchestrator__ListJobsRequest *req,
                        Orchestrator__ListJobsReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    const struct rpc_user *user = rpc_call_user(call);
    int64_t size = orch_page_size(req->page);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(o->db,
                 JOB_SQL "WHERE ($1::text = '' OR owner = nullif($1::text, '')::uuid)"
                         "  AND ($2::text = '' OR state = $2::text)"
                         "  AND ($3::text = '' OR id < nullif($3::text, '')::uuid) "
                         "ORDER BY id DESC LIMIT $4::bigint",
                 DB_PARAMS(DB_TEXT(user->roles & ROLE_ADMIN ? "" : user->id), DB_TEXT(req->state),
                           DB_TEXT(orch_page_after(req->page)), DB_I64(size + 1)),
                 &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r);
    bool more = n > (size_t)size;
    n -= more;
    ret->jobs = arena_array(a, n + 1, sizeof ret->jobs[0]);
    for (size_t i = 0; s == STATUS_OK && i < n; i++) {
        Orchestrator__JobInfo *job = arena_alloc(a, sizeof *job);
        if (!ret->jobs || !job)
            return no_memory(err);
        orchestrator__job_info__init(job);
        s = fill_job(a, r, i, job, err);
        ret->jobs[ret->n_jobs++] = job;
    }
    if (more)
        ret->next_page = orch_str(a, db_text(r, n - 1, 0));
    return s;
}

// ---------------------------------------------------------------- Get

// A reply holds at most 4 MiB: a page has so many of each, at most.
#define PAGE_TASKS 5000
#define PAGE_OUTPUTS 10000
#define MAX_PAGES 100000

// One row more than a page tells that there is another.
static size_t end_page(struct arena *a, size_t n, size_t max, int64_t page,
                       Orchestrator__JobInfo *ret)
{
    if (n <= max)
        return n;
    ret->next_page = arena_printf(a, "%lld", (long long)page + 1);
    return max;
}

static enum status fill_tasks(struct orch *o, struct arena *a, bool active, int64_t page,
                              Orchestrator__JobInfo *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        o->db,
        "SELECT id, kind, state, attempts, worker, stage, progress, renditions, first_segment,"
        "  n_segments, priority, seconds_fetch, seconds_encode, seconds_store, seconds_cpu, error "
        "FROM orchestrator.task WHERE job = $1::uuid"
        "  AND (NOT $2::bool OR state IN ('leased', 'retry_wait')) "
        "ORDER BY position, id OFFSET $3::bigint LIMIT $4::bigint",
        DB_PARAMS(DB_TEXT(ret->job_id), DB_BOOL(active), DB_I64(page * PAGE_TASKS),
                  DB_I64(PAGE_TASKS + 1)),
        &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = end_page(a, db_result_n_rows(r), PAGE_TASKS, page, ret);
    ret->task_list = arena_array(a, n + 1, sizeof ret->task_list[0]);
    for (size_t i = 0; i < n; i++) {
        Orchestrator__TaskInfo *t = arena_alloc(a, sizeof *t);
        if (!ret->task_list || !t)
            return no_memory(err);
        orchestrator__task_info__init(t);
        t->task_id = orch_str(a, db_text(r, i, 0));
        t->kind = orch_str(a, db_text(r, i, 1));
        t->state = orch_str(a, db_text(r, i, 2));
        t->attempts = (int32_t)db_i64(r, i, 3);
        t->worker = orch_str(a, db_text(r, i, 4));
        t->stage = orch_str(a, db_text(r, i, 5));
        t->progress = db_double(r, i, 6);
        t->renditions = orch_str(a, db_text(r, i, 7));
        t->first_segment = (int32_t)db_i64(r, i, 8);
        t->n_segments = (int32_t)db_i64(r, i, 9);
        t->priority = (int32_t)db_i64(r, i, 10);
        t->seconds_fetch = db_double(r, i, 11);
        t->seconds_encode = db_double(r, i, 12);
        t->seconds_store = db_double(r, i, 13);
        t->seconds_cpu = db_double(r, i, 14);
        t->error = orch_str(a, db_text(r, i, 15));
        ret->task_list[ret->n_task_list++] = t;
    }
    return STATUS_OK;
}

enum status jobs_fill_tasks(struct orch *o, struct arena *a, bool active,
                            Orchestrator__JobInfo *ret, struct err *err)
{
    return fill_tasks(o, a, active, 0, ret, err);
}

static enum status fill_outputs(struct orch *o, struct arena *a, int64_t page,
                                Orchestrator__JobInfo *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        o->db,
        "SELECT rendition, segment, digest, size, worker, attempts, seconds "
        "FROM orchestrator.output WHERE item = $1::uuid "
        "ORDER BY rendition, segment OFFSET $2::bigint LIMIT $3::bigint",
        DB_PARAMS(DB_TEXT(ret->item_id), DB_I64(page * PAGE_OUTPUTS), DB_I64(PAGE_OUTPUTS + 1)), &r,
        err);
    if (s != STATUS_OK)
        return s;
    size_t n = end_page(a, db_result_n_rows(r), PAGE_OUTPUTS, page, ret);
    ret->outputs = arena_array(a, n + 1, sizeof ret->outputs[0]);
    for (size_t i = 0; i < n; i++) {
        Orchestrator__OutputInfo *t = arena_alloc(a, sizeof *t);
        if (!ret->outputs || !t)
            return no_memory(err);
        orchestrator__output_info__init(t);
        size_t len = 0;
        const uint8_t *digest = db_bytes(r, i, 2, &len);
        t->rendition = orch_str(a, db_text(r, i, 0));
        t->segment = (int32_t)db_i64(r, i, 1);
        t->digest = orch_bytes(a, digest, len);
        t->size = db_i64(r, i, 3);
        t->worker = orch_str(a, db_text(r, i, 4));
        t->attempts = (int32_t)db_i64(r, i, 5);
        t->seconds = db_double(r, i, 6);
        ret->outputs[ret->n_outputs++] = t;
    }
    return STATUS_OK;
}

enum status jobs_find(struct rpc_call *call, struct arena *a, const char *id,
                      Orchestrator__JobInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    const struct rpc_user *user = rpc_call_user(call);
    if (!uuid_is_valid(id))
        return err_set(err, STATUS_NOT_FOUND, "no job %.40s", id);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        o->db,
        JOB_SQL "WHERE (id = $1::uuid OR item = $1::uuid)"
                "  AND ($2::text = '' OR owner = nullif($2::text, '')::uuid)",
        DB_PARAMS(DB_TEXT(id), DB_TEXT(user->roles & ROLE_ADMIN ? "" : user->id)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no job %s", id);
    return fill_job(a, r, 0, ret, err);
}

static enum status get(struct rpc_call *call, const Orchestrator__GetJobRequest *req,
                       Orchestrator__JobInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    int64_t page = 0;
    if (*req->page && str_parse_i64(req->page, 0, MAX_PAGES, &page, NULL) != STATUS_OK)
        return rpc_bad_field(err, "page", "no page %.20s: take it from the reply before",
                             req->page);
    enum status s = jobs_find(call, a, req->job_id, ret, err);
    if (s == STATUS_OK)
        s = fill_tasks(o, a, false, page, ret, err);
    return s == STATUS_OK ? fill_outputs(o, a, page, ret, err) : s;
}

static enum status retry(struct rpc_call *call, const Orchestrator__GetJobRequest *req,
                         Orchestrator__JobInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    Orchestrator__JobInfo now;
    orchestrator__job_info__init(&now);
    enum status s = jobs_find(call, rpc_call_arena(call), req->job_id, &now, err);
    bool failed = s == STATUS_OK && str_eq(now.state, "failed"),
         cancelled = s == STATUS_OK && str_eq(now.state, "cancelled");
    if (failed && !(rpc_call_user(call)->roles & ROLE_ADMIN))
        return err_set(err, STATUS_PERMISSION_DENIED,
                       "only an administrator tries a failed job again");
    if (failed || cancelled)
        s = queue_retry(o->db, now.job_id, err);
    if (s != STATUS_OK)
        return s;
    log_info(rpc_call_log(call), "job_retried", F_STR("job", now.job_id));
    sweeper_kick(o->sweeper);
    return get(call, req, ret, err); // of a job that has not failed: how it is
}

// ---------------------------------------------------------------- what people decide

static enum status cancel(struct rpc_call *call, const Orchestrator__CancelJobRequest *req,
                          Orchestrator__JobInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    if (strlen(req->reason) > MAX_REASON)
        return rpc_call_bad_field(call, err, "reason", "more than %d bytes", MAX_REASON);
    Orchestrator__JobInfo now;
    orchestrator__job_info__init(&now);
    enum status s = jobs_find(call, rpc_call_arena(call), req->job_id, &now, err);
    if (s != STATUS_OK)
        return s;
    const char *who = rpc_call_user(call)->name;
    char reason[MAX_REASON + 64];
    snprintf(reason, sizeof reason, "cancelled by %.40s%s%s", who, *req->reason ? ": " : "",
             req->reason);
    s = job_cancel(o->db, now.job_id, reason, err);
    if (s != STATUS_OK)
        return s;
    log_info(rpc_call_log(call), "job_cancelled", F_STR("job", now.job_id), F_STR("by", who));
    sweeper_kick(o->sweeper);
    return jobs_find(call, rpc_call_arena(call), now.job_id, ret, err);
}

static enum status set_paused(struct rpc_call *call, const char *id, bool paused,
                              Orchestrator__JobInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    Orchestrator__JobInfo now;
    orchestrator__job_info__init(&now);
    enum status s = jobs_find(call, rpc_call_arena(call), id, &now, err);
    if (s == STATUS_OK)
        s = job_set_paused(o->db, now.job_id, paused, err);
    return s == STATUS_OK ? jobs_find(call, rpc_call_arena(call), now.job_id, ret, err) : s;
}

static enum status pause_job(struct rpc_call *call, const Orchestrator__GetJobRequest *req,
                             Orchestrator__JobInfo *ret, struct err *err)
{
    return set_paused(call, req->job_id, true, ret, err);
}

static enum status resume(struct rpc_call *call, const Orchestrator__GetJobRequest *req,
                          Orchestrator__JobInfo *ret, struct err *err)
{
    return set_paused(call, req->job_id, false, ret, err);
}

static enum status set_priority(struct rpc_call *call, const Orchestrator__SetPriorityRequest *req,
                                Orchestrator__JobInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    if (req->priority < -MAX_PRIORITY || req->priority > MAX_PRIORITY)
        return rpc_call_bad_field(call, err, "priority", "%d is not in -%d..%d", req->priority,
                                  MAX_PRIORITY, MAX_PRIORITY);
    if (req->priority > 0 && !(rpc_call_user(call)->roles & ROLE_ADMIN))
        return err_set(err, STATUS_PERMISSION_DENIED,
                       "only an administrator puts a job before those of others");
    Orchestrator__JobInfo now;
    orchestrator__job_info__init(&now);
    enum status s = jobs_find(call, rpc_call_arena(call), req->job_id, &now, err);
    if (s == STATUS_OK)
        s = job_set_priority(o->db, now.job_id, req->priority, err);
    return s == STATUS_OK ? jobs_find(call, rpc_call_arena(call), now.job_id, ret, err) : s;
}

// ---------------------------------------------------------------- origins

static enum status list_backends(struct rpc_call *call,
                                 const Orchestrator__ListBackendsRequest *req,
                                 Orchestrator__ListBackendsReply *ret, struct err *err)
{
    (void)req;
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    struct backend_info *info = arena_array(a, MAX_BACKENDS, sizeof *info);
    ret->backends = arena_array(a, MAX_BACKENDS, sizeof ret->backends[0]);
    if (!info || !ret->backends)
        return no_memory(err);
    size_t n = backends_list(o->backends, info, MAX_BACKENDS);
    for (size_t i = 0; i < n; i++) {
        Orchestrator__BackendInfo *b = arena_alloc(a, sizeof *b);
        if (!b)
            return no_memory(err);
        orchestrator__backend_info__init(b);
        b->node_id = orch_str(a, info[i].node->id);
        b->kind = orch_str(a, info[i].node->kind);
        b->state = orch_str(a, info[i].state);
        b->calls = info[i].calls;
        b->failures = info[i].failures;
        b->free_bytes = info[i].free_bytes;
        ret->backends[ret->n_backends++] = b;
    }
    return STATUS_OK;
}

enum status jobs_serve(struct orch *o, struct rpc_server *s, struct err *err)
{
    static const struct orchestrator_job_handlers jobs = {.list = list,
                                                          .get = get,
                                                          .retry = retry,
                                                          .cancel = cancel,
                                                          .pause = pause_job,
                                                          .resume = resume,
                                                          .set_priority = set_priority,
                                                          .watch = job_watch,
                                                          .why = job_why,
                                                          .queue = queue_depths};
    static const struct orchestrator_backend_handlers backends = {.list = list_backends};
    enum status st = orchestrator_job_serve(s, &jobs, o, err);
    return st == STATUS_OK ? orchestrator_backend_serve(s, &backends, o, err) : st;
}
