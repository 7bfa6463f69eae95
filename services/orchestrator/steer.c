// What people decide about jobs: cancel, pause, priority. Lock order as in queue.c: job, then
// tasks.
#include "orchestrator/internal.h"

#include "base/str.h"

struct steering {
    const char *job, *reason;
    bool paused;
    int32_t priority;
};

// The job, locked. ret_live: it has not ended.
static enum status lock_job(struct db_conn *c, const char *job, bool *ret_live, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "SELECT state IN ('queued', 'running') FROM orchestrator.job "
                            "WHERE id = $1::uuid FOR NO KEY UPDATE",
                            DB_PARAMS(DB_TEXT(job)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no job %s", job);
    *ret_live = db_bool(r, 0, 0);
    return STATUS_OK;
}

static enum status cancel_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct steering *t = ud;
    bool live = false;
    enum status s = lock_job(c, t->job, &live, err);
    if (s != STATUS_OK || !live)
        return s;
    s = queue_fail_job(c, t->job, t->reason, false, err);
    return s == STATUS_OK
               ? db_exec(c, "UPDATE orchestrator.job SET state = 'cancelled' WHERE id = $1::uuid",
                         DB_PARAMS(DB_TEXT(t->job)), NULL, err)
               : s;
}

enum status job_cancel(struct db *db, const char *job, const char *reason, struct err *err)
{
    struct steering t = {.job = job, .reason = reason};
    return db_tx(db, DB_READ_COMMITTED, cancel_tx, &t, err);
}

// What is on its way to a worker, or at one, is not touched: only what waits.
static enum status tell_changed(struct db_conn *c, const char *job, struct err *err)
{
    enum status s = db_exec(c,
                            "SELECT pg_notify('" ORCH_ITEM_CHANNEL "', item::text) "
                            "FROM orchestrator.job WHERE id = $1::uuid",
                            DB_PARAMS(DB_TEXT(job)), NULL, err);
    return s == STATUS_OK ? queue_notify(c, ORCH_TASK_CHANNEL, "", err) : s;
}

static enum status pause_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct steering *t = ud;
    bool live = false;
    enum status s = lock_job(c, t->job, &live, err);
    if (s == STATUS_OK && !live && t->paused)
        return err_set(err, STATUS_FAILED_PRECONDITION, "job %s has ended: nothing to pause",
                       t->job);
    if (s == STATUS_OK)
        s = db_exec(c, "UPDATE orchestrator.job SET paused = $2::bool WHERE id = $1::uuid",
                    DB_PARAMS(DB_TEXT(t->job), DB_BOOL(t->paused)), NULL, err);
    return s == STATUS_OK ? tell_changed(c, t->job, err) : s;
}

enum status job_set_paused(struct db *db, const char *job, bool paused, struct err *err)
{
    struct steering t = {.job = job, .paused = paused};
    return db_tx(db, DB_READ_COMMITTED, pause_tx, &t, err);
}

static enum status priority_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct steering *t = ud;
    bool live = false;
    enum status s = lock_job(c, t->job, &live, err);
    if (s == STATUS_OK)
        s = db_exec(c, "UPDATE orchestrator.job SET priority = $2::int WHERE id = $1::uuid",
                    DB_PARAMS(DB_TEXT(t->job), DB_I64(t->priority)), NULL, err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "UPDATE orchestrator.task SET boost = $2::int WHERE job = $1::uuid"
                    "  AND state NOT IN ('done', 'leased') AND boost <> $2::int",
                    DB_PARAMS(DB_TEXT(t->job), DB_I64(t->priority)), NULL, err);
    return s == STATUS_OK ? tell_changed(c, t->job, err) : s;
}

enum status job_set_priority(struct db *db, const char *job, int32_t priority, struct err *err)
{
    struct steering t = {.job = job, .priority = priority};
    return db_tx(db, DB_READ_COMMITTED, priority_tx, &t, err);
}
