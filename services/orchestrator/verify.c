// Checks of results by decoding them: those of a new worker's first tasks, then of one in many. A
// check is a task like others, given to another worker when there is one. What it refutes is
// unpublished and made again elsewhere; whoever made it rests until an administrator says
// otherwise.
//
// Whoever made it means all of it: of what several published (a viewer's wish is made by another)
// it cannot be told who was wrong, so that nobody rests. The task's token goes up: what its maker
// still has to say of it, or says again, does not count.
//
// A check can be wrong itself, and be made so by whoever uploads. So what another has made again is
// always checked as well, and when that is refuted too, it is the film that the check cannot judge:
// whoever rests because of it works again, and the job's results are left alone from then on.
//
// Objects of refuted segments stay at their origin until the item goes: a segment that is made
// again may well be the same object, which must not be given up then.
#include "orchestrator/internal.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

#define REFUTED "refuted: "
#define REFUTED_TWICE "refuted twice, so the check cannot judge this film: "
#define MAX_ATTEMPTS 3 // of a check that does not come to a verdict
// A check takes MEDIA_CHECKS_MAX_BYTES at most, init segments included: of a task that made more,
// as many of its first segments as come to half of that on average.
#define MOST_BYTES "50331648"
#define VERIFY_COLUMNS                                                                             \
    "INSERT INTO orchestrator.task (id, job, item, kind, position, priority, renditions,"          \
    "  first_segment, n_segments, avoid, checks, checked_fence) "                                  \
    "SELECT gen_random_uuid(), t.job, t.item, 'verify', t.position, $1::int, t.renditions,"        \
    "  t.first_segment, (SELECT CASE WHEN coalesce(sum(o.size), 0) <= " MOST_BYTES                 \
    "      THEN t.n_segments"                                                                      \
    "      ELSE greatest(floor(t.n_segments * " MOST_BYTES ".0 / sum(o.size)), 1)::int END"        \
    "    FROM orchestrator.output o WHERE o.item = t.item"                                         \
    "    AND o.rendition = ANY (string_to_array(t.renditions, ','))"                               \
    "    AND o.segment >= t.first_segment AND o.segment < t.first_segment + t.n_segments),"        \
    "  t.worker, t.id, t.fence FROM orchestrator.task t "

bool verify_is(const char *kind)
{
    return str_eq(kind, "verify");
}

// ---------------------------------------------------------------- what is checked

enum status verify_order(struct db_conn *c, const struct orch_options *opt, const char *worker,
                         const struct queue_task *t, struct err *err)
{
    if ((!opt->verify_first && !opt->verify_one_in) || !str_eq(t->kind, "chunk"))
        return STATUS_OK;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "UPDATE orchestrator.worker SET sampled = sampled + 1 "
                            "WHERE id = $1::text RETURNING sampled",
                            DB_PARAMS(DB_TEXT(worker)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    int64_t n = db_i64(r, 0, 0);
    bool sampled = n <= opt->verify_first || (opt->verify_one_in && n % opt->verify_one_in == 0);
    s = db_exec(c,
                VERIFY_COLUMNS "WHERE t.id = $2::uuid AND NOT t.demand AND ($3::bool OR EXISTS ("
                               "    SELECT FROM orchestrator.task x WHERE x.checks = t.id))"
                               "  AND NOT EXISTS (SELECT FROM orchestrator.task x"
                               "    WHERE x.job = t.job AND x.kind = 'verify'"
                               "    AND x.error LIKE '" REFUTED_TWICE "%')",
                DB_PARAMS(DB_I64(ORCH_PRIO_VERIFY), DB_TEXT(t->id), DB_BOOL(sampled)), NULL, err);
    return s == STATUS_OK ? queue_notify(c, ORCH_TASK_CHANNEL, "", err) : s;
}

static Transcode__Output *read_output(struct arena *a, const struct db_result *r, size_t i)
{
    Transcode__Output *o = arena_alloc(a, sizeof *o);
    size_t len = 0;
    const uint8_t *digest = db_bytes(r, i, 2, &len);
    if (!o)
        return NULL;
    transcode__output__init(o);
    o->rendition = orch_str(a, db_text(r, i, 0));
    o->segment = (int32_t)db_i64(r, i, 1);
    o->digest = orch_bytes(a, digest, len);
    o->size = db_i64(r, i, 3);
    return o->digest.data ? o : NULL;
}

enum status verify_describe(struct orch *o, struct arena *a, const struct queue_task *q,
                            Transcode__Task *t, struct err *err)
{
    if (!verify_is(q->kind))
        return STATUS_OK;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(o->db,
                             "SELECT rendition, segment, digest, size FROM orchestrator.output "
                             "WHERE item = $1::uuid"
                             "  AND rendition = ANY (string_to_array($2::text, ','))"
                             "  AND segment >= $3::int AND segment < $3::int + $4::int",
                             DB_PARAMS(DB_TEXT(q->item), DB_TEXT(q->renditions),
                                       DB_I64(q->first_segment), DB_I64(q->n_segments)),
                             &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r);
    t->checks = arena_array(a, n + 1, sizeof t->checks[0]);
    for (size_t i = 0; t->checks && i < n; i++) {
        t->checks[i] = read_output(a, r, i);
        if (!t->checks[i])
            break;
        t->n_checks++;
    }
    return t->n_checks == n ? STATUS_OK
                            : err_set(err, STATUS_RESOURCE_EXHAUSTED, "lease: out of memory");
}

// ---------------------------------------------------------------- what is refuted

struct refutation {
    const char *worker, *task, *message;
    int64_t fence;
    bool inconclusive; // no verdict: tried again a few times, then left at that
    char maker[CHAN_NODE_ID_SIZE], item[UUID_SIZE]; // who is refuted; empty: nobody
    bool alone;                                     // the maker published all of it
    bool twice;                                     // nobody is: the film cannot be judged
};

// The checked task, as it was when its results were looked at; no row when it was made again since.
static enum status find_checked(struct db_conn *c, const char *task, struct db_result **ret,
                                struct err *err)
{
    return db_exec(c,
                   "SELECT t.id, v.avoid FROM orchestrator.task v JOIN orchestrator.task t"
                   "  ON t.id = v.checks AND t.fence = v.checked_fence AND t.state = 'done' "
                   "WHERE v.id = $1::uuid FOR UPDATE OF t",
                   DB_PARAMS(DB_TEXT(task)), ret, err);
}

static enum status ask_alone(struct db_conn *c, struct refutation *f, const char *checked,
                             struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(
        c,
        "SELECT NOT EXISTS (SELECT FROM orchestrator.output o JOIN orchestrator.task t"
        "    ON o.item = t.item AND o.rendition = ANY (string_to_array(t.renditions, ','))"
        "    AND o.segment >= t.first_segment AND o.segment < t.first_segment + t.n_segments"
        "  WHERE t.id = $1::uuid AND o.worker <> $2::text)",
        DB_PARAMS(DB_TEXT(checked), DB_TEXT(f->maker)), &r, err);
    if (s == STATUS_OK)
        f->alone = db_bool(r, 0, 0);
    return s;
}

static enum status unpublish(struct db_conn *c, const struct refutation *f,
                             const struct queue_task *v, const char *checked, struct err *err)
{
    static const char *const steps[] = {
        // All of the range, whoever published it: it cannot be told which of it is wrong.
        ("DELETE FROM orchestrator.output o USING orchestrator.task t WHERE t.id = $1::uuid"
         "  AND o.item = t.item AND o.rendition = ANY (string_to_array(t.renditions, ','))"
         "  AND o.segment >= t.first_segment AND o.segment < t.first_segment + t.n_segments"
         "  AND $2::text <> '' AND $3::text <> ''"),
        ("UPDATE orchestrator.task SET state = 'available', fence = fence + 1, attempts = 0,"
         "  avoid = $2::text, worker = '', error = $3::text, finished = NULL, progress = 0 "
         "WHERE id = $1::uuid"),
        ("UPDATE orchestrator.job SET state = 'running', finished = NULL WHERE id ="
         "  (SELECT job FROM orchestrator.task WHERE id = $1::uuid) AND state = 'done'"
         "  AND $2::text <> '' AND $3::text <> ''"),
        ("UPDATE orchestrator.item SET state = 'playable', media_version = media_version + 1 "
         "WHERE id = (SELECT item FROM orchestrator.task WHERE id = $1::uuid)"
         "  AND state = 'ready' AND $2::text <> '' AND $3::text <> ''"),
    };
    enum status s = STATUS_OK;
    for (size_t i = 0; s == STATUS_OK && i < N_ELEMENTS(steps); i++)
        s = db_exec(c, steps[i],
                    DB_PARAMS(DB_TEXT(checked), DB_TEXT(f->maker), DB_TEXT(f->message)), NULL, err);
    // What else it made of this job is looked at, too.
    if (s == STATUS_OK)
        s = db_exec(
            c,
            VERIFY_COLUMNS "WHERE t.job = $2::uuid AND t.worker = $3::text AND t.kind = 'chunk'"
                           "  AND t.state = 'done' AND NOT t.demand AND NOT EXISTS ("
                           "    SELECT FROM orchestrator.task x WHERE x.checks = t.id"
                           "      AND x.checked_fence = t.fence) LIMIT 100",
            DB_PARAMS(DB_I64(ORCH_PRIO_VERIFY), DB_TEXT(v->job), DB_TEXT(f->maker)), NULL, err);
    return s;
}

static enum status quarantine(struct db_conn *c, const struct refutation *f, struct err *err)
{
    char reason[480];
    (void)snprintf(reason, sizeof reason, "a check by %s refuted what it made: %s", f->worker,
                   f->message);
    return db_exec(c,
                   "UPDATE orchestrator.worker SET quarantined_until = 'infinity',"
                   "  quarantine_reason = $2::text, last_error = $2::text, sampled = 0 "
                   "WHERE id = $1::text",
                   DB_PARAMS(DB_TEXT(f->maker), DB_TEXT(reason)), NULL, err);
}

// Whether this task's results, or others of the job twice, were refuted before.
static enum status ask_before(struct db_conn *c, const struct queue_task *v, const char *checked,
                              bool *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "SELECT EXISTS (SELECT FROM orchestrator.task x WHERE x.job = $1::uuid"
                            "  AND x.kind = 'verify' AND ((x.checks = $2::uuid"
                            "    AND x.error LIKE '" REFUTED "%')"
                            "  OR x.error LIKE '" REFUTED_TWICE "%'))",
                            DB_PARAMS(DB_TEXT(v->job), DB_TEXT(checked)), &r, err);
    if (s == STATUS_OK)
        *ret = db_bool(r, 0, 0);
    return s;
}

// Who rests because of this job works again, and its other checks are over.
static enum status acquit(struct db_conn *c, const struct queue_task *v, struct err *err)
{
    static const char *const steps[] = {
        ("UPDATE orchestrator.task SET state = 'done', finished = now() WHERE job = $1::uuid"
         "  AND kind = 'verify' AND state IN ('available', 'retry_wait') AND id <> $2::uuid"),
        ("UPDATE orchestrator.worker SET quarantined_until = '-infinity', quarantine_reason = '' "
         "WHERE quarantined_until = 'infinity' AND $2::uuid IS NOT NULL AND id IN ("
         "  SELECT avoid FROM orchestrator.task WHERE job = $1::uuid AND kind = 'verify'"
         "    AND error LIKE '" REFUTED "%')"),
    };
    enum status s = STATUS_OK;
    for (size_t i = 0; s == STATUS_OK && i < N_ELEMENTS(steps); i++)
        s = db_exec(c, steps[i], DB_PARAMS(DB_TEXT(v->job), DB_TEXT(v->id)), NULL, err);
    return s;
}

static enum status refute(struct db_conn *c, struct refutation *f, const struct queue_task *v,
                          struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = find_checked(c, v->id, &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    s = ask_before(c, v, db_text(r, 0, 0), &f->twice, err);
    if (s != STATUS_OK || f->twice)
        return s == STATUS_OK ? acquit(c, v, err) : s;
    str_copy(f->maker, sizeof f->maker, db_text(r, 0, 1));
    s = ask_alone(c, f, db_text(r, 0, 0), err);
    if (s == STATUS_OK)
        s = unpublish(c, f, v, db_text(r, 0, 0), err);
    return s == STATUS_OK && f->alone ? quarantine(c, f, err) : s;
}

// The check ends here, with what it said.
static enum status settle(struct db_conn *c, const struct refutation *f, const struct queue_hold *h,
                          struct err *err)
{
    static const struct queue_seconds none = {0};
    char text[480];
    (void)snprintf(text, sizeof text, "%s%s",
                   f->twice    ? REFUTED_TWICE
                   : *f->maker ? REFUTED
                               : "",
                   f->message);
    enum status s = queue_done(c, f->worker, h, &none, err);
    return s == STATUS_OK
               ? db_exec(c, "UPDATE orchestrator.task SET error = $2::text WHERE id = $1::uuid",
                         DB_PARAMS(DB_TEXT(h->task.id), DB_TEXT(text)), NULL, err)
               : s;
}

static enum status refute_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct refutation *f = ud;
    struct queue_hold h = {.duplicate = false};
    enum status s = queue_hold(c, f->worker, f->task, f->fence, &h, err);
    if (s != STATUS_OK || h.duplicate)
        return s;
    str_copy(f->item, sizeof f->item, h.task.item);
    if (!f->inconclusive)
        s = refute(c, f, &h.task, err);
    if (s == STATUS_OK)
        s = settle(c, f, &h, err);
    if (s == STATUS_OK && !*f->maker)
        s = publish_end(c, &h.task, err); // it may have been all that the job waited for
    if (s == STATUS_OK && *f->maker)
        s = queue_notify(c, ORCH_UNPUBLISHED_CHANNEL, f->item, err);
    if (s == STATUS_OK)
        s = queue_notify(c, ORCH_TASK_CHANNEL, "", err);
    return s == STATUS_OK ? queue_notify(c, ORCH_ITEM_CHANNEL, f->item, err) : s;
}

// What task kind that is and how often it was tried. ret_kind: "" when there is no such task.
static enum status look_at(struct orch *o, const char *task, char ret_kind[12], int64_t *ret_tries,
                           struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(o->db, "SELECT kind, attempts FROM orchestrator.task WHERE id = $1::uuid",
                 DB_PARAMS(DB_TEXT(task)), &r, err);
    ret_kind[0] = '\0';
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    str_copy(ret_kind, 12, db_text(r, 0, 0));
    *ret_tries = db_i64(r, 0, 1);
    return STATUS_OK;
}

enum status verify_failed(struct orch *o, const char *worker, const Transcode__FailRequest *req,
                          const char *message, bool *ret_handled, bool *ret_transient,
                          struct err *err)
{
    char kind[12];
    int64_t tries = 0;
    enum status s = look_at(o, req->task_id, kind, &tries, err);
    if (s != STATUS_OK || !verify_is(kind))
        return s;
    bool refuted = req->class_ == TRANSCODE__FAIL_CLASS__MISMATCH;
    *ret_transient = !refuted;
    *ret_handled = refuted || tries >= MAX_ATTEMPTS;
    if (!*ret_handled)
        return STATUS_OK;
    struct refutation f = {.worker = worker,
                           .task = req->task_id,
                           .message = message,
                           .fence = req->fence,
                           .inconclusive = !refuted};
    s = db_tx(o->db, DB_READ_COMMITTED, refute_tx, &f, err);
    if (s == STATUS_OK && f.twice)
        log_warn(o->log, "check_cannot_judge", F_STR("item", f.item), F_STR("why", message));
    if (s != STATUS_OK || !*f.maker)
        return s;
    log_warn(o->log, "result_refuted", F_STR("worker", f.maker), F_BOOL("rests", f.alone),
             F_STR("by", worker), F_STR("item", f.item), F_STR("why", message));
    items_unpublished(o->items, f.item);
    return f.alone ? queue_take_back(o->db, f.maker, err) : STATUS_OK;
}
