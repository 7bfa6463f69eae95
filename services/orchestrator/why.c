// Job.Why: what keeps a job from its end, in words, and what to do about it.
#include "orchestrator/internal.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

#define MAX_LINES 32
#define LINE_SIZE 512

struct words {
    struct orch *o;
    struct arena *arena;
    Orchestrator__WhyReply *ret;
};

static void add(struct words *w, char **list, size_t *n, const char *text)
{
    if (list && *n < MAX_LINES)
        list[(*n)++] = orch_str(w->arena, text);
}

#define SAY(w, list, ...)                                                                          \
    do {                                                                                           \
        char line_[LINE_SIZE];                                                                     \
        (void)snprintf(line_, sizeof line_, __VA_ARGS__);                                          \
        add((w), (w)->ret->list, &(w)->ret->n_##list, line_);                                      \
    } while (0)

static enum status query(struct words *w, const char *sql, const char *p, struct db_result **ret,
                         struct err *err)
{
    return db_query(w->o->db, sql, &(struct db_param){.type = DB_P_TEXT, .ptr = p}, p != NULL, ret,
                    err);
}

// ---------------------------------------------------------------- ended

static void of_ended(struct words *w, const Orchestrator__JobInfo *j)
{
    if (str_eq(j->state, "done")) {
        SAY(w, lines, "it is finished: all %d tasks are done", j->tasks);
        return;
    }
    SAY(w, lines, "it %s: %s", str_eq(j->state, "failed") ? "failed" : "was stopped", j->reason);
}

// What the tasks that ended it say. ret_purged: no retry will help.
static enum status of_dead_tasks(struct words *w, const Orchestrator__JobInfo *j, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = query(w,
                          "SELECT kind, renditions, first_segment, attempts, worker, error "
                          "FROM orchestrator.task WHERE job = $1::uuid AND state = 'dead' "
                          "ORDER BY position LIMIT 5",
                          j->job_id, &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++)
        SAY(w, lines, "task %s %s/%lld ended after %lld attempts, the last one at %s: %s",
            db_text(r, i, 0), db_text(r, i, 1), (long long)db_i64(r, i, 2),
            (long long)db_i64(r, i, 3), db_text(r, i, 4), db_text(r, i, 5));
    AUTO(db_result_free_p) struct db_result *item = NULL;
    if (s == STATUS_OK)
        s = query(w, "SELECT purged FROM orchestrator.item WHERE id = $1::uuid", j->item_id, &item,
                  err);
    if (s != STATUS_OK || db_result_n_rows(item) == 0)
        return s;
    if (db_bool(item, 0, 0))
        SAY(w, advice, "the upload was given up: correct the file and upload it again");
    else
        SAY(w, advice, "mediactl job retry %s tries again; the upload is still there", j->job_id);
    return STATUS_OK;
}

// ---------------------------------------------------------------- under way

static enum status of_leases(struct words *w, const Orchestrator__JobInfo *j, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = query(w,
                          "SELECT kind, renditions, first_segment, worker, stage,"
                          "  (progress * 100)::int,"
                          "  greatest(extract(epoch FROM now() - (lease_until"
                          "    - interval '15 seconds'))::bigint, 0) "
                          "FROM orchestrator.task WHERE job = $1::uuid AND state = 'leased' "
                          "ORDER BY position LIMIT 8",
                          j->job_id, &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++)
        SAY(w, lines, "%s makes %s %s/%lld: %s, %lld %%, heard of %lld s ago", db_text(r, i, 3),
            db_text(r, i, 0), db_text(r, i, 1), (long long)db_i64(r, i, 2),
            *db_text(r, i, 4) ? db_text(r, i, 4) : "begun", (long long)db_i64(r, i, 5),
            (long long)db_i64(r, i, 6));
    return s;
}

static enum status of_retries(struct words *w, const Orchestrator__JobInfo *j, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = query(w,
                          "SELECT kind, renditions, first_segment, attempts, error,"
                          "  greatest(extract(epoch FROM not_before - now())::bigint, 0), state "
                          "FROM orchestrator.task WHERE job = $1::uuid AND error <> ''"
                          "  AND state IN ('retry_wait', 'available', 'leased') "
                          "ORDER BY attempts DESC, position LIMIT 5",
                          j->job_id, &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++) {
        char when[64] = "";
        if (str_eq(db_text(r, i, 6), "retry_wait"))
            (void)snprintf(when, sizeof when, ", tried again in %lld s",
                           (long long)db_i64(r, i, 5));
        SAY(w, lines, "attempt %lld of %d of %s %s/%lld failed%s: %s", (long long)db_i64(r, i, 3),
            ORCH_MAX_ATTEMPTS, db_text(r, i, 0), db_text(r, i, 1), (long long)db_i64(r, i, 2), when,
            db_text(r, i, 4));
    }
    return s;
}

static enum status of_origins(struct words *w, const Orchestrator__JobInfo *j, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = query(w,
                          "SELECT route FROM orchestrator.item WHERE id = $1::uuid UNION "
                          "SELECT target FROM orchestrator.task WHERE item = $1::uuid"
                          "  AND target <> '' AND state <> 'done'",
                          j->item_id, &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++) {
        const char *origin = db_text(r, i, 0);
        bool known = orch_origin_node(w->o, origin) != NULL;
        if (known && !backends_is_open(w->o->backends, origin))
            continue;
        SAY(w, lines, "origin %s, which holds its source and segments, %s", origin,
            known ? "does not answer" : "is not in nodes.ini");
        SAY(w, advice, "start origin %s; what waits for it goes on by itself", origin);
    }
    return s;
}

static enum status of_workers(struct words *w, bool waits, bool is_admin, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = query(
        w,
        "SELECT id, cordoned, quarantined_until > now(), quarantine_reason,"
        "  CASE WHEN quarantined_until = 'infinity' THEN -1 WHEN quarantined_until <= now() THEN 0"
        "    ELSE extract(epoch FROM quarantined_until - now())::bigint END, slots,"
        "  (SELECT count(*) FROM orchestrator.task t WHERE t.worker = w.id AND t.state = 'leased')"
        "FROM orchestrator.worker w WHERE last_seen > now() - interval '" ORCH_WORKER_GONE_AFTER
        "' ORDER BY id LIMIT 1000",
        NULL, &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r), n_serve = 0, n_free = 0;
    for (size_t i = 0; i < n; i++) {
        bool cordoned = db_bool(r, i, 1), quarantined = db_bool(r, i, 2);
        n_serve += !cordoned && !quarantined;
        n_free += !cordoned && !quarantined && db_i64(r, i, 5) > db_i64(r, i, 6);
        if (!waits || !is_admin)
            continue; // of no concern, or of none to people who do not run the workers
        if (quarantined && db_i64(r, i, 4) >= 0)
            SAY(w, lines, "worker %s is in quarantine for %lld s: %s", db_text(r, i, 0),
                (long long)db_i64(r, i, 4), db_text(r, i, 3));
        else if (quarantined)
            SAY(w, lines, "worker %s is in quarantine: %s", db_text(r, i, 0), db_text(r, i, 3));
        else if (cordoned)
            SAY(w, lines, "worker %s is cordoned: it gets no work", db_text(r, i, 0));
        if (cordoned || quarantined)
            SAY(w, advice, "mediactl worker uncordon %s lets it work again", db_text(r, i, 0));
    }
    if (!waits)
        return STATUS_OK;
    if (n == 0) {
        SAY(w, lines, "no worker is up");
        SAY(w, advice, "start one: cauced transcode (docs/operations.md)");
    } else if (n_serve == 0) {
        SAY(w, lines, "none of %zu workers may take work", n);
    } else if (n_free == 0) {
        SAY(w, lines, "all %zu workers are busy: it waits for its turn", n_serve);
        SAY(w, advice, "more workers, or mediactl job priority JOB high, make it sooner");
    }
    return STATUS_OK;
}

static enum status of_waiting(struct words *w, const Orchestrator__JobInfo *j, bool is_admin,
                              struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = query(w,
                          "SELECT count(*) FILTER (WHERE t.state = 'available'),"
                          "  count(*) FILTER (WHERE t.state = 'blocked'),"
                          "  (SELECT count(*) FROM orchestrator.task o JOIN orchestrator.job k"
                          "    ON k.id = o.job WHERE o.state = 'available' AND o.job <> $1::uuid"
                          "    AND NOT k.paused AND o.rank > coalesce(max(t.rank) FILTER"
                          "      (WHERE t.state = 'available'), 0)) "
                          "FROM orchestrator.task t WHERE t.job = $1::uuid",
                          j->job_id, &r, err);
    if (s != STATUS_OK)
        return s;
    int64_t n_waiting = db_i64(r, 0, 0), n_blocked = db_i64(r, 0, 1), n_before = db_i64(r, 0, 2);
    if (n_waiting)
        SAY(w, lines, "%lld tasks wait; %lld tasks of other jobs come first", (long long)n_waiting,
            (long long)n_before);
    if (n_blocked)
        SAY(w, lines, "%lld tasks wait until the source has been moved to the right origin",
            (long long)n_blocked);
    return of_workers(w, n_waiting > 0, is_admin, err);
}

static enum status of_running(struct words *w, const Orchestrator__JobInfo *j, bool is_admin,
                              struct err *err)
{
    SAY(w, lines, "it is %s: %d of %d tasks are done", j->paused ? "paused" : j->state,
        j->tasks_done, j->tasks);
    if (j->paused)
        SAY(w, advice, "mediactl job resume %s", j->job_id);
    enum status s = of_origins(w, j, err);
    if (s == STATUS_OK)
        s = of_retries(w, j, err);
    if (s == STATUS_OK)
        s = of_leases(w, j, err);
    return s == STATUS_OK ? of_waiting(w, j, is_admin, err) : s;
}

enum status job_why(struct rpc_call *call, const Orchestrator__GetJobRequest *req,
                    Orchestrator__WhyReply *ret, struct err *err)
{
    struct arena *a = rpc_call_arena(call);
    struct words w = {.o = rpc_call_self(call), .arena = a, .ret = ret};
    ret->lines = arena_array(a, MAX_LINES, sizeof ret->lines[0]);
    ret->advice = arena_array(a, MAX_LINES, sizeof ret->advice[0]);
    Orchestrator__JobInfo j;
    orchestrator__job_info__init(&j);
    enum status s = jobs_find(call, a, req->job_id, &j, err);
    if (s != STATUS_OK)
        return s;
    ret->state = j.state;
    if (str_eq(j.state, "queued") || str_eq(j.state, "running"))
        return of_running(&w, &j, rpc_call_user(call)->roles & ROLE_ADMIN, err);
    of_ended(&w, &j);
    return str_eq(j.state, "done") ? STATUS_OK : of_dead_tasks(&w, &j, err);
}
