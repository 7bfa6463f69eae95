// The queue of work: one table, claimed with SKIP LOCKED, leases judged by the database's clock.
// Every statement that lets a worker's word count names the fencing token that came with its lease.
//
// Lock order: job, task, worker, event topic. A statement that locks tasks without their job
// (claim, renew, release, raise, the sweep) takes nothing else afterwards.
#include "orchestrator/internal.h"

#include <string.h>

#include "base/buf.h"
#include "base/str.h"

// A worker whose work keeps failing for reasons of its own rests, so that it cannot use up
// everybody's attempts.
#define QUARANTINE_AFTER "5"
#define QUARANTINE_FOR "60 seconds"

enum status queue_notify(struct db_conn *c, const char *channel, const char *payload,
                         struct err *err)
{
    return db_exec(c, "SELECT pg_notify($1::text, $2::text)",
                   DB_PARAMS(DB_TEXT(channel), DB_TEXT(payload)), NULL, err);
}

// ---------------------------------------------------------------- leases

#define TASK_COLUMNS                                                                               \
    "t.id, t.job, t.item, t.kind, t.fence, t.attempts, t.priority, t.target, t.renditions, "       \
    "t.first_segment, t.n_segments"

static void read_task(const struct db_result *r, struct queue_task *t)
{
    *t = (struct queue_task){
        .fence = db_i64(r, 0, 4),
        .attempt = (int32_t)db_i64(r, 0, 5),
        .priority = (int32_t)db_i64(r, 0, 6),
        .first_segment = (int32_t)db_i64(r, 0, 9),
        .n_segments = (int32_t)db_i64(r, 0, 10),
    };
    str_copy(t->id, sizeof t->id, db_text(r, 0, 0));
    str_copy(t->job, sizeof t->job, db_text(r, 0, 1));
    str_copy(t->item, sizeof t->item, db_text(r, 0, 2));
    str_copy(t->kind, sizeof t->kind, db_text(r, 0, 3));
    str_copy(t->target, sizeof t->target, db_text(r, 0, 7));
    str_copy(t->renditions, sizeof t->renditions, db_text(r, 0, 8));
}

// The row a of orchestrator.task may go to worker $1, while the origins $2 do not answer.
// clang-format off
#define MAY_HAVE                                                                                   \
    "a.state = 'available' AND NOT EXISTS (SELECT FROM orchestrator.worker"                        \
    "  WHERE id = $1::text AND (cordoned OR quarantined_until > now())) "                          \
    /* A pause is of what nobody waits for. */                                                     \
    "AND (a.demand OR NOT EXISTS (SELECT FROM orchestrator.job j WHERE j.id = a.job AND j.paused)) " \
    "AND (avoid <> $1::text OR NOT EXISTS (SELECT FROM orchestrator.worker w"                      \
    "  WHERE w.id <> $1::text AND " ORCH_WORKER_SERVES ")) "                                       \
    "AND target <> ALL (string_to_array($2::text, ',')) "                                          \
    "AND (SELECT route FROM orchestrator.item i WHERE i.id = a.item)"                              \
    "  <> ALL (string_to_array($2::text, ',')) "                                                   \
    /* Background work keeps away from what is about to be made because somebody waits for it. */  \
    "AND (a.demand OR NOT EXISTS (SELECT FROM orchestrator.task d WHERE d.item = a.item"           \
    "  AND d.demand AND d.state IN ('available', 'leased')"                                        \
    "  AND d.first_segment < a.first_segment + a.n_segments"                                       \
    "  AND d.first_segment + d.n_segments > a.first_segment"                                       \
    "  AND d.renditions = ANY (string_to_array(a.renditions, ',')))) "
#define LEASE_IT                                                                                       \
    "turn AS (INSERT INTO orchestrator.turn SELECT owner, clock_timestamp() FROM c"                \
    "  ON CONFLICT (owner) DO UPDATE SET served = excluded.served) "                               \
    "UPDATE orchestrator.task t SET state = 'leased', fence = t.fence + 1,"                        \
    "  attempts = t.attempts + 1, worker = $1::text, yielding = false,"                            \
    "  lease_until = now() + $3::bigint * interval '1 millisecond', stage = '', progress = 0 "     \
    "FROM c WHERE t.id = c.id RETURNING " TASK_COLUMNS
// clang-format on

// What somebody waits for: the most urgent, whoever it is for.
static const char claim_urgent[] =
    "WITH c AS (SELECT id, owner FROM orchestrator.task a WHERE priority >= 900 AND " MAY_HAVE
    "  ORDER BY priority DESC, created LIMIT 1 FOR UPDATE SKIP LOCKED), " LEASE_IT;
static const char claim_wanted[] =
    "WITH c AS (SELECT id, owner FROM orchestrator.task a WHERE priority >= 1000 AND " MAY_HAVE
    "  AND (SELECT count(*) FROM orchestrator.task l WHERE l.worker = $1::text"
    "    AND l.state = 'leased') >= (SELECT slots FROM orchestrator.worker WHERE id = $1::text)"
    "  ORDER BY priority DESC, created LIMIT 1 FOR UPDATE SKIP LOCKED), " LEASE_IT;
// The best of one owner; "" of all.
static const char claim_turn[] =
    "WITH c AS (SELECT id, owner FROM orchestrator.task a"
    "  WHERE ($4::text = '' OR owner = nullif($4::text, '')::uuid) AND " MAY_HAVE
    "  ORDER BY rank DESC, created, position LIMIT 1 FOR UPDATE SKIP LOCKED), " LEASE_IT;
// Whose turn it is: what lets an item be looked at and played comes before all else, then the one
// who was served longest ago. Nothing is locked, so that nobody else finds the queue empty.
static const char next_turn[] =
    "WITH RECURSIVE o AS ("
    "  (SELECT owner FROM orchestrator.task WHERE state = 'available' ORDER BY owner LIMIT 1)"
    "  UNION ALL SELECT (SELECT t.owner FROM orchestrator.task t WHERE t.state = 'available'"
    "    AND t.owner > o.owner ORDER BY t.owner LIMIT 1) FROM o WHERE o.owner IS NOT NULL) "
    "SELECT o.owner FROM o LEFT JOIN orchestrator.turn u ON u.owner = o.owner CROSS JOIN LATERAL ("
    "  SELECT rank FROM orchestrator.task a WHERE a.owner = o.owner AND " MAY_HAVE
    "  ORDER BY rank DESC, created, position LIMIT 1) best "
    "ORDER BY best.rank >= 600 DESC, u.served NULLS FIRST, o.owner LIMIT 1";

static enum status claim(struct db *db, const char *sql, const char *worker, const char *away,
                         const char *owner, struct queue_task *ret, bool *ret_found,
                         struct err *err)
{
    const struct db_param params[] = {DB_TEXT(worker), DB_TEXT(away), DB_I64(ORCH_LEASE_MS),
                                      DB_TEXT(owner)};
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(db, sql, params, owner ? 4 : 3, &r, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "claim a task");
    *ret_found = db_result_n_rows(r) == 1;
    if (*ret_found)
        read_task(r, ret);
    return STATUS_OK;
}

enum status queue_claim(struct db *db, const char *worker, const char *away, struct queue_task *ret,
                        bool *ret_found, struct err *err)
{
    enum status s = claim(db, claim_urgent, worker, away, NULL, ret, ret_found, err);
    if (s != STATUS_OK || *ret_found)
        return s;
    AUTO(db_result_free_p) struct db_result *turn = NULL;
    s = db_query(db, next_turn, DB_PARAMS(DB_TEXT(worker), DB_TEXT(away)), &turn, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "claim a task");
    if (db_result_n_rows(turn) == 0)
        return STATUS_OK;
    s = claim(db, claim_turn, worker, away, db_text(turn, 0, 0), ret, ret_found, err);
    if (s != STATUS_OK || *ret_found)
        return s;
    return claim(db, claim_turn, worker, away, "", ret, ret_found, err); // others were quicker
}

enum status queue_claim_wanted(struct db *db, const char *worker, const char *away,
                               struct queue_task *ret, bool *ret_found, struct err *err)
{
    return claim(db, claim_wanted, worker, away, NULL, ret, ret_found, err);
}

// A progress event now and then. Whoever is busy with the job tells more than this could.
struct progress_event {
    const char *job, *task, *stage;
    double progress;
};

static enum status tell_progress(struct db_conn *c, void *ud, struct err *err)
{
    const struct progress_event *e = ud;
    static const char ration[] =
        "UPDATE orchestrator.job SET told = now() WHERE id = ("
        "  SELECT id FROM orchestrator.job WHERE id = $1::uuid"
        "    AND told < now() - interval '1 second' FOR NO KEY UPDATE SKIP LOCKED) "
        "RETURNING item, owner,"
        "  (SELECT count(*) FROM orchestrator.task WHERE job = $1::uuid AND NOT demand),"
        "  (SELECT count(*) FROM orchestrator.task WHERE job = $1::uuid AND NOT demand"
        "    AND state = 'done')";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c, ration, DB_PARAMS(DB_TEXT(e->job)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    struct buf json;
    buf_init(&json, 1024);
    buf_printf(&json, "{\"job\":\"%s\",\"task\":\"%s\",\"stage\":\"%s\",\"progress\":%.3f,", e->job,
               e->task, e->stage, e->progress);
    buf_printf(&json, "\"tasks\":%lld,\"tasks_done\":%lld}", (long long)db_i64(r, 0, 2),
               (long long)db_i64(r, 0, 3));
    if (json.failed)
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "progress event: out of memory");
    else
        s = event_append(c, ORCH_SCHEMA, "transcode", "task.progress", db_text(r, 0, 0),
                         db_text(r, 0, 1), buf_str(&json), err);
    buf_done(&json);
    return s;
}

enum status queue_renew(struct db *db, const char *worker, const struct queue_progress *p,
                        bool *ret_held, struct err *err)
{
    static const char sql[] =
        "UPDATE orchestrator.task SET lease_until = now() + $4::bigint * interval '1 millisecond',"
        "  stage = $5::text, progress = $6::float8 "
        "WHERE id = $1::uuid AND worker = $2::text AND fence = $3::bigint AND state = 'leased' "
        "RETURNING job";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(db, sql,
                 DB_PARAMS(DB_TEXT(p->task), DB_TEXT(worker), DB_I64(p->fence),
                           DB_I64(ORCH_LEASE_MS), DB_TEXT(p->stage), DB_DOUBLE(p->progress)),
                 &r, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "renew task %s", p->task);
    *ret_held = db_result_n_rows(r) == 1;
    if (!*ret_held)
        return STATUS_OK;
    struct progress_event e = {
        .job = db_text(r, 0, 0), .task = p->task, .stage = p->stage, .progress = p->progress};
    // The lease is renewed; an event that could not be told is no reason to say otherwise.
    struct err ignored = ERR_INIT;
    (void)!db_tx(db, DB_READ_COMMITTED, tell_progress, &e, &ignored);
    return STATUS_OK;
}

struct release {
    const char *worker, *task;
    int64_t fence;
};

static enum status release_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct release *r = ud;
    static const char sql[] =
        "UPDATE orchestrator.task SET state = 'available', attempts = attempts - 1, worker = '',"
        "  lease_until = NULL, stage = '', progress = 0 "
        "WHERE id = $1::uuid AND worker = $2::text AND fence = $3::bigint AND state = 'leased'";
    AUTO(db_result_free_p) struct db_result *res = NULL;
    enum status s = db_exec(
        c, sql, DB_PARAMS(DB_TEXT(r->task), DB_TEXT(r->worker), DB_I64(r->fence)), &res, err);
    if (s == STATUS_OK && db_result_n_affected(res) == 1)
        s = queue_notify(c, ORCH_TASK_CHANNEL, "", err);
    return s;
}

enum status queue_release(struct db *db, const char *worker, const char *task, int64_t fence,
                          struct err *err)
{
    struct release r = {.worker = worker, .task = task, .fence = fence};
    return db_tx(db, DB_READ_COMMITTED, release_tx, &r, err);
}

static enum status take_back_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct release *r = ud;
    static const char sql[] =
        "UPDATE orchestrator.task SET state = 'available', fence = fence + 1,"
        "  attempts = attempts - 1, worker = '', lease_until = NULL, stage = '', progress = 0 "
        "WHERE worker = $1::text AND state = 'leased'";
    AUTO(db_result_free_p) struct db_result *res = NULL;
    enum status s = db_exec(c, sql, DB_PARAMS(DB_TEXT(r->worker)), &res, err);
    if (s == STATUS_OK && db_result_n_affected(res) > 0)
        s = queue_notify(c, ORCH_TASK_CHANNEL, "", err);
    return s == STATUS_OK ? queue_notify(c, ORCH_LOST_CHANNEL, "", err) : s;
}

enum status queue_take_back(struct db *db, const char *worker, struct err *err)
{
    struct release r = {.worker = worker};
    return db_tx(db, DB_READ_COMMITTED, take_back_tx, &r, err);
}

// ---------------------------------------------------------------- the end of a lease

// Lock the job that a task belongs to, then the task.
static enum status lock_task(struct db_conn *c, const char *task, struct db_result **ret,
                             struct err *err)
{
    enum status s = db_exec(c,
                            "SELECT id FROM orchestrator.job WHERE id = "
                            "(SELECT job FROM orchestrator.task WHERE id = $1::uuid) "
                            "FOR NO KEY UPDATE",
                            DB_PARAMS(DB_TEXT(task)), NULL, err);
    if (s != STATUS_OK)
        return s;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    s = db_exec(c,
                "SELECT " TASK_COLUMNS ", t.state, t.worker, t.crashes FROM orchestrator.task t "
                "WHERE t.id = $1::uuid FOR UPDATE",
                DB_PARAMS(DB_TEXT(task)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) != 1)
        return err_set(err, STATUS_NOT_FOUND, "no task %s", task);
    *ret = TAKE(r);
    return STATUS_OK;
}

bool queue_is_beside(const char *kind)
{
    return !str_eq(kind, "probe") && !str_eq(kind, "move") && !str_eq(kind, "chunk");
}

bool queue_is_planned(const char *kind)
{
    return str_eq(kind, "chunk") || str_eq(kind, "images") || str_eq(kind, "texts") ||
           str_eq(kind, "measure");
}

static enum status stale(struct err *err, const char *task, int64_t fence)
{
    return err_set(err, STATUS_ABORTED, "task %s: token %lld is no longer the newest", task,
                   (long long)fence);
}

enum status queue_hold(struct db_conn *c, const char *worker, const char *task, int64_t fence,
                       struct queue_hold *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = lock_task(c, task, &r, err);
    if (s != STATUS_OK)
        return s;
    read_task(r, &ret->task);
    ret->attempts = ret->task.attempt;
    const char *state = db_text(r, 0, 11);
    if (ret->task.fence != fence)
        return stale(err, task, fence);
    ret->duplicate = str_eq(state, "done") && str_eq(db_text(r, 0, 12), worker);
    // A lease that ran out while nobody else took the task has lost nothing: its result counts.
    bool open =
        str_eq(state, "leased") || str_eq(state, "available") || str_eq(state, "retry_wait");
    return ret->duplicate || open ? STATUS_OK : stale(err, task, fence);
}

enum status queue_done(struct db_conn *c, const char *worker, const struct queue_hold *h,
                       const struct queue_seconds *sec, struct err *err)
{
    static const char sql[] =
        "UPDATE orchestrator.task SET state = 'done', worker = $2::text, lease_until = NULL,"
        "  stage = '', progress = 1, seconds_fetch = $4::float8, seconds_encode = $5::float8,"
        "  seconds_store = $6::float8, seconds_cpu = $7::float8, error = '', finished = now() "
        "WHERE id = $1::uuid AND fence = $3::bigint";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c, sql,
                            DB_PARAMS(DB_TEXT(h->task.id), DB_TEXT(worker), DB_I64(h->task.fence),
                                      DB_DOUBLE(sec->fetch), DB_DOUBLE(sec->encode),
                                      DB_DOUBLE(sec->store), DB_DOUBLE(sec->cpu)),
                            &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_affected(r) != 1)
        return stale(err, h->task.id, h->task.fence);
    return db_exec(c,
                   "UPDATE orchestrator.worker SET done = done + 1, failed_in_row = 0,"
                   "  last_seen = now() WHERE id = $1::text",
                   DB_PARAMS(DB_TEXT(worker)), NULL, err);
}

// ---------------------------------------------------------------- failure

// What the origin must be told when an item's bytes are given up: now, and once more when a worker
// that does not know yet must have noticed.
static enum status purge_item(struct db_conn *c, const char *item, struct err *err)
{
    static const char *const steps[] = {
        ("INSERT INTO orchestrator.chore (kind, origin, item, not_before) "
         "SELECT 'unpin', i.route, i.id, now() + w.wait FROM orchestrator.item i,"
         "  (VALUES (interval '0'), (interval '60 seconds')) AS w (wait) WHERE i.id = $1::uuid"),
        ("INSERT INTO orchestrator.chore (kind, origin, item) "
         "SELECT DISTINCT 'unpin', t.target, t.item FROM orchestrator.task t, orchestrator.item i "
         "WHERE t.item = $1::uuid AND i.id = t.item AND t.kind = 'move' AND t.target <> i.route"),
        ("INSERT INTO orchestrator.chore (kind, origin, item, upload) "
         "SELECT 'drop', u.route, u.item, u.id FROM orchestrator.upload u WHERE u.item = $1::uuid"),
        "DELETE FROM orchestrator.output WHERE item = $1::uuid",
        "UPDATE orchestrator.item SET purged = true WHERE id = $1::uuid",
    };
    for (size_t i = 0; i < N_ELEMENTS(steps); i++) {
        enum status s = db_exec(c, steps[i], DB_PARAMS(DB_TEXT(item)), NULL, err);
        if (s != STATUS_OK)
            return err_wrap(err, s, "give up item %s", item);
    }
    return STATUS_OK;
}

static enum status tell_failed(struct db_conn *c, const char *job, const char *item,
                               const char *owner, const char *reason, struct err *err)
{
    struct buf json;
    buf_init(&json, 4096);
    buf_printf(&json, "{\"job\":\"%s\",\"reason\":", job);
    buf_put_json_string(&json, reason, strlen(reason));
    buf_puts(&json, "}");
    enum status s = json.failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "event: out of memory")
                                : event_append(c, ORCH_SCHEMA, "transcode", "job.failed", item,
                                               owner, buf_str(&json), err);
    buf_done(&json);
    return s;
}

enum status queue_fail_job(struct db_conn *c, const char *job, const char *reason, bool purge,
                           struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c,
                "UPDATE orchestrator.job SET state = 'failed', reason = $2::text,"
                "  finished = now() WHERE id = $1::uuid AND state NOT IN ('failed', 'cancelled') "
                "RETURNING item, owner",
                DB_PARAMS(DB_TEXT(job), DB_TEXT(reason)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    const char *item = db_text(r, 0, 0);
    s = db_exec(c,
                "UPDATE orchestrator.task SET state = 'cancelled', lease_until = NULL "
                "WHERE job = $1::uuid AND state NOT IN ('done', 'dead', 'cancelled')",
                DB_PARAMS(DB_TEXT(job)), NULL, err);
    if (s == STATUS_OK)
        s = queue_notify(c, ORCH_LOST_CHANNEL, "", err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "UPDATE orchestrator.item SET state = 'failed', reason = $2::text,"
                    "  media_version = media_version + 1 WHERE id = $1::uuid",
                    DB_PARAMS(DB_TEXT(item), DB_TEXT(reason)), NULL, err);
    if (s == STATUS_OK && purge)
        s = purge_item(c, item, err);
    if (s == STATUS_OK)
        s = queue_notify(c, ORCH_ITEM_CHANNEL, item, err);
    if (s == STATUS_OK)
        s = tell_failed(c, job, item, db_text(r, 0, 1), reason, err);
    return s;
}

// 1, 2, 4, 8 s, each with up to half as much again.
static enum status retry_later(struct db_conn *c, const char *task, const char *message,
                               struct err *err)
{
    return db_exec(c,
                   "UPDATE orchestrator.task SET state = 'retry_wait', worker = '',"
                   "  lease_until = NULL, stage = '', progress = 0, error = $2::text,"
                   "  not_before = now() + power(2, greatest(attempts, 1) - 1)"
                   "    * (1 + random() / 2) * interval '1 second' "
                   "WHERE id = $1::uuid",
                   DB_PARAMS(DB_TEXT(task), DB_TEXT(message)), NULL, err);
}

static enum status die(struct db_conn *c, const struct queue_task *t, const char *message,
                       const char *reason, bool purge, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "UPDATE orchestrator.task SET state = 'dead', lease_until = NULL,"
                            "  error = $2::text, finished = now() WHERE id = $1::uuid "
                            "RETURNING demand",
                            DB_PARAMS(DB_TEXT(t->id), DB_TEXT(message)), &r, err);
    if (s != STATUS_OK)
        return s;
    // What was made for one who waits does not spoil the item: he alone is told.
    bool beside = queue_is_beside(t->kind);
    if (!db_bool(r, 0, 0) && !beside)
        return queue_fail_job(c, t->job, reason, purge, err);
    if (beside)
        s = publish_end(c, t, err); // it may have been the last
    return s == STATUS_OK ? queue_notify(c, ORCH_ITEM_CHANNEL, t->item, err) : s;
}

struct failure {
    const char *worker, *task, *message;
    int64_t fence;
    enum queue_failure why;
    bool will_retry;
};

static enum status count_failure(struct db_conn *c, const struct failure *f, struct err *err)
{
    return db_exec(
        c,
        "UPDATE orchestrator.worker SET failed = failed + 1, last_seen = now(),"
        "  last_error = $3::text,"
        "  failed_in_row = CASE WHEN $2::bool THEN failed_in_row ELSE failed_in_row + 1"
        "  END,"
        "  quarantine_reason = CASE WHEN NOT $2::bool AND failed_in_row + 1"
        "    >= " QUARANTINE_AFTER " THEN (failed_in_row + 1)"
        "    || ' tasks in a row failed; the last one: ' || $3::text"
        "    ELSE quarantine_reason END,"
        "  quarantined_until = CASE WHEN NOT $2::bool AND failed_in_row + 1"
        "    >= " QUARANTINE_AFTER " THEN now() + interval '" QUARANTINE_FOR "'"
        "    ELSE quarantined_until END "
        "WHERE id = $1::text",
        DB_PARAMS(DB_TEXT(f->worker), DB_BOOL(f->why == QUEUE_REJECTED), DB_TEXT(f->message)), NULL,
        err);
}

static enum status fail_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct failure *f = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = lock_task(c, f->task, &r, err);
    if (s != STATUS_OK)
        return s;
    struct queue_task t;
    read_task(r, &t);
    const char *state = db_text(r, 0, 11);
    if (t.fence != f->fence || str_eq(state, "done") || str_eq(state, "cancelled"))
        return stale(err, f->task, f->fence);
    f->will_retry = str_eq(state, "retry_wait") || str_eq(state, "available");
    if (!str_eq(state, "leased"))
        return STATUS_OK; // said before
    if ((s = count_failure(c, f, err)) != STATUS_OK)
        return s;

    int64_t crashes = db_i64(r, 0, 13) + (f->why == QUEUE_CRASH);
    if (f->why == QUEUE_CRASH) {
        s = db_exec(c, "UPDATE orchestrator.task SET crashes = crashes + 1 WHERE id = $1::uuid",
                    DB_PARAMS(DB_TEXT(f->task)), NULL, err);
        if (s != STATUS_OK)
            return s;
    }
    if (f->why == QUEUE_REJECTED)
        return die(c, &t, f->message, f->message, true, err);
    if (crashes >= ORCH_MAX_CRASHES)
        return die(c, &t, f->message, "the file cannot be decoded: the decoder fails on it", true,
                   err);
    if (t.attempt >= ORCH_MAX_ATTEMPTS)
        return die(c, &t, f->message, f->message, false, err);
    f->will_retry = true;
    return retry_later(c, f->task, f->message, err);
}

enum status queue_fail(struct db *db, const char *worker, const char *task, int64_t fence,
                       enum queue_failure why, const char *message, bool *ret_will_retry,
                       struct err *err)
{
    struct failure f = {
        .worker = worker, .task = task, .message = message, .fence = fence, .why = why};
    enum status s = db_tx(db, DB_READ_COMMITTED, fail_tx, &f, err);
    if (s == STATUS_OK)
        *ret_will_retry = f.will_retry;
    return s;
}

// ---------------------------------------------------------------- by the clock

struct sweep {
    bool expire;
    int64_t n;
};

static enum status sweep_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct sweep *w = ud;
    w->n = 0;
    static const char ripe[] =
        "UPDATE orchestrator.task SET state = 'available' WHERE id IN ("
        "  SELECT id FROM orchestrator.task WHERE state = 'retry_wait' AND not_before <= now()"
        "  FOR UPDATE SKIP LOCKED)";
    static const char expired[] =
        "UPDATE orchestrator.task SET state = 'available', error = 'worker ' || worker ||"
        "  ' was not heard of in time', worker = '', lease_until = NULL, stage = '', progress = 0 "
        "WHERE id IN (SELECT id FROM orchestrator.task WHERE state = 'leased'"
        "  AND lease_until < now() AND attempts < $1::int FOR UPDATE SKIP LOCKED)";
    // Who waits for one of these must ask for it again.
    static const char wake[] =
        "SELECT pg_notify('" ORCH_ITEM_CHANNEL "', item::text) FROM orchestrator.task"
        "  WHERE state = 'leased' AND lease_until < now() AND wanted IS NOT NULL GROUP BY item";
    AUTO(db_result_free_p) struct db_result *a = NULL;
    AUTO(db_result_free_p) struct db_result *b = NULL;
    enum status s = db_exec(c, ripe, NULL, 0, &a, err);
    if (s == STATUS_OK && w->expire)
        s = db_exec(c, wake, NULL, 0, NULL, err);
    if (s == STATUS_OK && w->expire)
        s = db_exec(c, expired, DB_PARAMS(DB_I64(ORCH_MAX_ATTEMPTS)), &b, err);
    if (s != STATUS_OK)
        return s;
    w->n = db_result_n_affected(a) + (b ? db_result_n_affected(b) : 0);
    return w->n ? queue_notify(c, ORCH_TASK_CHANNEL, "", err) : STATUS_OK;
}

// A task whose last permitted lease ran out.
static enum status bury_tx(struct db_conn *c, void *ud, struct err *err)
{
    const char *task = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = lock_task(c, task, &r, err);
    if (s != STATUS_OK)
        return s;
    struct queue_task t;
    read_task(r, &t);
    AUTO(db_result_free_p) struct db_result *late = NULL;
    s = db_exec(c,
                "SELECT FROM orchestrator.task WHERE id = $1::uuid AND state = 'leased'"
                "  AND lease_until < now() AND attempts >= $2::int",
                DB_PARAMS(DB_TEXT(task), DB_I64(ORCH_MAX_ATTEMPTS)), &late, err);
    if (s != STATUS_OK || db_result_n_rows(late) == 0)
        return s;
    static const char reason[] = "no worker could finish it: the last one was not heard of in time";
    return die(c, &t, reason, reason, false, err);
}

enum status queue_sweep(struct db *db, bool expire, int64_t *ret_n, struct err *err)
{
    struct sweep w = {.expire = expire};
    enum status s = db_tx(db, DB_READ_COMMITTED, sweep_tx, &w, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "sweep the queue");
    *ret_n = w.n;
    if (!expire)
        return STATUS_OK;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    s = db_query(db,
                 "SELECT id FROM orchestrator.task WHERE state = 'leased' AND lease_until < now()"
                 "  AND attempts >= $1::int LIMIT 100",
                 DB_PARAMS(DB_I64(ORCH_MAX_ATTEMPTS)), &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++) {
        char id[UUID_SIZE];
        str_copy(id, sizeof id, db_text(r, i, 0));
        s = db_tx(db, DB_READ_COMMITTED, bury_tx, id, err);
        *ret_n += 1;
    }
    return s;
}

// ---------------------------------------------------------------- from outside

static enum status retry_tx(struct db_conn *c, void *ud, struct err *err)
{
    const char *job = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "SELECT j.state, i.purged, i.reason, i.id, i.plan IS NULL "
                            "FROM orchestrator.job j JOIN orchestrator.item i ON i.id = j.item "
                            "WHERE j.id = $1::uuid FOR NO KEY UPDATE OF j",
                            DB_PARAMS(DB_TEXT(job)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no job %s", job);
    if (!str_eq(db_text(r, 0, 0), "failed") && !str_eq(db_text(r, 0, 0), "cancelled"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "job %s has not failed", job);
    if (db_bool(r, 0, 1))
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "the upload was given up (%s): upload it again", db_text(r, 0, 2));
    const char *item = db_text(r, 0, 3);
    static const char *const steps[] = {
        "DELETE FROM orchestrator.task WHERE job = $1::uuid AND demand",
        // What waits for a move waits again.
        ("UPDATE orchestrator.task t SET state = CASE WHEN kind NOT IN ('probe', 'move') AND "
         "EXISTS ("
         "    SELECT FROM orchestrator.task m WHERE m.job = t.job AND m.kind = 'move'"
         "    AND m.state <> 'done') THEN 'blocked' ELSE 'available' END,"
         "  attempts = 0, crashes = 0, worker = '', error = '', finished = NULL "
         "WHERE job = $1::uuid AND NOT demand AND state IN ('dead', 'cancelled')"),
        ("UPDATE orchestrator.item SET reason = '', media_version = media_version + 1,"
         "  state = CASE WHEN (SELECT playable FROM orchestrator.job WHERE id = $1::uuid) IS NULL"
         "    THEN 'processing' ELSE 'playable' END "
         "WHERE id = (SELECT item FROM orchestrator.job WHERE id = $1::uuid)"),
        ("UPDATE orchestrator.job SET state = 'running', reason = '', finished = NULL,"
         "  paused = false WHERE id = $1::uuid"),
    };
    for (size_t i = 0; s == STATUS_OK && i < N_ELEMENTS(steps); i++)
        s = db_exec(c, steps[i], DB_PARAMS(DB_TEXT(job)), NULL, err);
    if (s == STATUS_OK)
        s = queue_notify(c, ORCH_TASK_CHANNEL, "", err);
    return s == STATUS_OK ? queue_notify(c, ORCH_ITEM_CHANNEL, item, err) : s;
}

enum status queue_retry(struct db *db, const char *job, struct err *err)
{
    char id[UUID_SIZE];
    str_copy(id, sizeof id, job);
    return db_tx(db, DB_READ_COMMITTED, retry_tx, id, err);
}

static enum status purge_tx(struct db_conn *c, void *ud, struct err *err)
{
    const char *job = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "SELECT j.item FROM orchestrator.job j "
                            "JOIN orchestrator.item i ON i.id = j.item "
                            "WHERE j.id = $1::uuid AND j.state IN ('failed', 'cancelled')"
                            "  AND NOT i.purged "
                            "FOR NO KEY UPDATE OF j",
                            DB_PARAMS(DB_TEXT(job)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    return purge_item(c, db_text(r, 0, 0), err);
}

enum status queue_purge(struct db *db, int64_t ttl_ms, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(db,
                 "SELECT j.id FROM orchestrator.job j JOIN orchestrator.item i ON i.id = j.item "
                 "WHERE j.state IN ('failed', 'cancelled') AND NOT i.purged"
                 "  AND j.finished < now() - $1::bigint * interval '1 millisecond' LIMIT 50",
                 DB_PARAMS(DB_I64(ttl_ms)), &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++) {
        char job[UUID_SIZE];
        str_copy(job, sizeof job, db_text(r, i, 0));
        s = db_tx(db, DB_READ_COMMITTED, purge_tx, job, err);
    }
    return s;
}
