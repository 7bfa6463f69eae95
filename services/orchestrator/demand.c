// What somebody waits for. A Locate of a segment that is not made yet becomes a wish: a task beside
// those of the job, for that one rendition, from the wanted segment on, as far ahead as a player is
// likely to go soon. It is the only thing that is ever made of a lazy rendition.
//
// Nothing is split or restarted. Tasks may overlap; whoever leases one is told what is made
// already, the first publication of a segment wins, and background work keeps away from what a
// demand task is about to make. Who is on the way to a wanted segment but not there yet gives its
// lease back after the running segment; so does background work while something urgent finds no
// free slot.
//
// The job's row lock makes one decision at a time per item, on any number of orchestrators. Wishes
// end: what nobody has asked for again within ORCH_WISH_MS is dropped by the sweep.
#include "orchestrator/internal.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"

// How far ahead of the wanted segment its task reaches.
#define AHEAD_VIDEO_US (INT64_C(16) * 1000000)
#define AHEAD_AUDIO_US (INT64_C(64) * 1000000)
#define MAX_AHEAD 64 // segments
#define MAX_NEAR 128 // tasks about one place
// Wishes of one item that nobody has begun. What comes after so many is not made while anybody
// waits for it, and whoever asks for a film's every place at once keeps no worker from other films.
#define MAX_WAITING 64
#define POSITION 1000000 // after the job's own tasks in lists
// A lease that was renewed lately: its worker lives, or died less than that ago.
#define LIVE "lease_until > now() + interval '7 seconds'"
#define DEAD_FOR "10 minutes" // a segment that cannot be made is not tried again for so long
// Waiting workers take a task at once. One that nobody has taken after this long finds them busy,
// whatever the workers' own numbers say.
#define TAKEN_WITHIN "250 milliseconds"

// ---------------------------------------------------------------- where things are

struct near { // a task that covers, or begins soon after, the wanted segment
    char id[UUID_SIZE];
    bool demand, leased, live;
    int32_t first, end;
    int64_t n_before; // of its segments before the wanted one, those that are made
};

struct place {
    const struct demand *want;
    int32_t first, end;   // the window, from the wanted segment on
    bool made[MAX_AHEAD]; // by segment - first
    struct near near[MAX_NEAR];
    size_t n_near;
    int32_t target;  // the first segment of the window that is not made
    bool unmeasured; // nothing can be made of it yet
    bool hid;        // a task that may be leased was locked, so that claims passed it over
};

// An UPDATE of one task that ends with RETURNING state.
static enum status change(struct db_conn *c, struct place *p, const char *sql,
                          const struct db_param *params, size_t n, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c, sql, params, n, &r, err);
    if (s == STATUS_OK && db_result_n_rows(r) == 1)
        p->hid |= str_eq(db_text(r, 0, 0), "available");
    return s;
}

static enum status read_made(struct db_conn *c, struct place *p, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c,
                "SELECT segment FROM orchestrator.output WHERE item = $1::uuid"
                "  AND rendition = $2::text AND segment >= $3::int AND segment < $4::int",
                DB_PARAMS(DB_TEXT(p->want->item), DB_TEXT(p->want->rendition), DB_I64(p->first),
                          DB_I64(p->end)),
                &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++)
        p->made[db_i64(r, i, 0) - p->first] = true;
    p->target = p->first;
    while (p->target < p->end && p->made[p->target - p->first])
        p->target++;
    return s;
}

static enum status read_near(struct db_conn *c, struct place *p, struct err *err)
{
    static const char sql[] =
        "SELECT id, demand, state = 'leased', coalesce(" LIVE ", false), first_segment,"
        "  first_segment + n_segments, (SELECT count(*) FROM orchestrator.output o"
        "    WHERE o.item = $1::uuid AND o.rendition = $2::text"
        "    AND o.segment >= t.first_segment AND o.segment < $3::int) "
        "FROM orchestrator.task t WHERE item = $1::uuid AND kind = 'chunk'"
        "  AND first_segment < $4::int AND first_segment + n_segments > $3::int"
        "  AND $2::text = ANY (string_to_array(renditions, ','))"
        "  AND (state = 'leased' OR (demand AND state IN ('blocked', 'available', 'retry_wait'))) "
        "ORDER BY first_segment LIMIT $5::int";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c, sql,
                            DB_PARAMS(DB_TEXT(p->want->item), DB_TEXT(p->want->rendition),
                                      DB_I64(p->first), DB_I64(p->end), DB_I64(MAX_NEAR)),
                            &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++) {
        struct near *n = &p->near[p->n_near++];
        *n = (struct near){.demand = db_bool(r, i, 1),
                           .leased = db_bool(r, i, 2),
                           .live = db_bool(r, i, 3),
                           .first = (int32_t)db_i64(r, i, 4),
                           .end = (int32_t)db_i64(r, i, 5),
                           .n_before = db_i64(r, i, 6)};
        str_copy(n->id, sizeof n->id, db_text(r, i, 0));
    }
    return s;
}

static bool covers(const struct near *n, int32_t segment)
{
    return n->first <= segment && n->end > segment;
}

// Of this task the target comes next, or after that: going on is sooner than beginning anew.
static bool is_close(const struct place *p, const struct near *n)
{
    return p->first - n->first - n->n_before <= 1;
}

static bool is_urgent(const struct place *p)
{
    return !p->want->follow && p->target == p->first;
}

// ---------------------------------------------------------------- what becomes of a wish

static enum status wish(struct db_conn *c, struct place *p, const struct near *n, struct err *err)
{
    static const char sql[] =
        "UPDATE orchestrator.task SET wanted_until = now() + $2::bigint * interval '1 millisecond',"
        "  wanted = CASE WHEN $3::bool THEN $4::int ELSE wanted END,"
        "  yielding = yielding AND NOT $3::bool,"
        "  priority = CASE WHEN demand THEN greatest(priority, $5::int) ELSE priority END "
        "WHERE id = $1::uuid RETURNING state";
    bool urgent = is_urgent(p);
    return change(c, p, sql,
                  DB_PARAMS(DB_TEXT(n->id), DB_I64(ORCH_WISH_MS), DB_BOOL(urgent),
                            DB_I64(p->target), DB_I64(urgent ? ORCH_PRIO_WANTED : ORCH_PRIO_NEXT)),
                  err);
}

// Its worker is busy with what comes before: it stops at the next boundary, and the target is begun
// elsewhere, or by the same worker, at once.
static enum status make_yield(struct db_conn *c, struct place *p, const struct near *n,
                              struct err *err)
{
    return change(
        c, p, "UPDATE orchestrator.task SET yielding = true WHERE id = $1::uuid RETURNING state",
        DB_PARAMS(DB_TEXT(n->id)), err);
}

static enum status cut_off(struct db_conn *c, struct place *p, const struct near *n,
                           struct err *err)
{
    return change(c, p,
                  "UPDATE orchestrator.task SET n_segments = $2::int - first_segment "
                  "WHERE id = $1::uuid AND state <> 'leased' RETURNING state",
                  DB_PARAMS(DB_TEXT(n->id), DB_I64(p->target)), err);
}

// One that covers the target. ret_covered: it will make it in time.
static enum status use_near(struct db_conn *c, struct place *p, const struct near *n,
                            bool *ret_covered, struct err *err)
{
    if (n->leased && !n->live)
        return STATUS_OK; // nobody may be working on it
    if (is_close(p, n) || !is_urgent(p)) {
        *ret_covered = true;
        return wish(c, p, n, err);
    }
    return n->leased ? make_yield(c, p, n, err) : cut_off(c, p, n, err);
}

static enum status check_dead(struct db_conn *c, const struct place *p, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(
        c,
        "SELECT error FROM orchestrator.task WHERE item = $1::uuid AND demand"
        "  AND state = 'dead' AND renditions = $2::text"
        "  AND first_segment <= $3::int AND first_segment + n_segments > $3::int"
        "  AND finished > now() - interval '" DEAD_FOR "' LIMIT 1",
        DB_PARAMS(DB_TEXT(p->want->item), DB_TEXT(p->want->rendition), DB_I64(p->target)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    return err_set(err, STATUS_FAILED_PRECONDITION, "segment %d of %s cannot be made: %s",
                   p->target, p->want->rendition, db_text(r, 0, 0));
}

static enum status check_room(struct db_conn *c, const struct place *p, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c,
                "SELECT count(*) FROM orchestrator.task WHERE item = $1::uuid AND demand"
                "  AND kind = 'chunk' AND state IN ('blocked', 'available', 'retry_wait')",
                DB_PARAMS(DB_TEXT(p->want->item)), &r, err);
    if (s != STATUS_OK || db_i64(r, 0, 0) < MAX_WAITING)
        return s;
    return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                   "segment %d of %s is not made yet, and %d others of the item wait for a worker: "
                   "try again in some seconds",
                   p->target, p->want->rendition, MAX_WAITING);
}

// From the target to what is made, or somebody else's, already.
static int32_t task_end(const struct place *p)
{
    int32_t end = p->target + 1;
    while (end < p->end && !p->made[end - p->first])
        end++;
    for (size_t i = 0; i < p->n_near; i++)
        if (p->near[i].first > p->target && p->near[i].first < end)
            end = p->near[i].first;
    return end;
}

static enum status add_task(struct db_conn *c, const struct place *p, const char *job,
                            struct err *err)
{
    static const char sql[] =
        "INSERT INTO orchestrator.task (id, job, item, kind, demand, state, position, priority,"
        "  renditions, first_segment, n_segments, wanted, wanted_until, unmeasured) "
        "SELECT $1::uuid, $2::uuid, $3::uuid, 'chunk', true,"
        "  CASE WHEN $11::bool OR EXISTS (SELECT FROM orchestrator.task WHERE job = $2::uuid AND "
        "kind = 'move'"
        "    AND state <> 'done') THEN 'blocked' ELSE 'available' END,"
        "  $4::int, $5::int, $6::text, $7::int, $8::int, CASE WHEN $9::bool THEN $7::int END,"
        "  now() + $10::bigint * interval '1 millisecond', $11::bool";
    char id[UUID_SIZE];
    rand_uuid7(id);
    bool urgent = is_urgent(p);
    return db_exec(c, sql,
                   DB_PARAMS(DB_TEXT(id), DB_TEXT(job), DB_TEXT(p->want->item), DB_I64(POSITION),
                             DB_I64(urgent ? ORCH_PRIO_WANTED : ORCH_PRIO_NEXT),
                             DB_TEXT(p->want->rendition), DB_I64(p->target),
                             DB_I64(task_end(p) - p->target), DB_BOOL(urgent), DB_I64(ORCH_WISH_MS),
                             DB_BOOL(p->unmeasured)),
                   NULL, err);
}

// ---------------------------------------------------------------- loudness

// What is normalised waits, blocked, for the item's measurement, which is raised to the front.
static enum status want_measured(struct db_conn *c, struct place *p, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c, "SELECT loudness_mlufs IS NOT NULL FROM orchestrator.item WHERE id = $1::uuid",
                DB_PARAMS(DB_TEXT(p->want->item)), &r, err);
    if (s != STATUS_OK || (db_result_n_rows(r) == 1 && db_bool(r, 0, 0)))
        return s;
    p->unmeasured = true;
    return change(c, p,
                  "UPDATE orchestrator.task SET priority = greatest(priority, $2::int) "
                  "WHERE item = $1::uuid AND kind = 'measure' AND state NOT IN"
                  "  ('done', 'dead', 'cancelled') RETURNING state",
                  DB_PARAMS(DB_TEXT(p->want->item),
                            DB_I64(p->want->follow ? ORCH_PRIO_NEXT : ORCH_PRIO_WANTED)),
                  err);
}

static enum status check_measurable(struct orch *o, const struct item *it, const char *rendition,
                                    struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(o->db,
                             "SELECT error FROM orchestrator.task t WHERE item = $1::uuid"
                             "  AND kind = 'measure' AND state IN ('dead', 'cancelled')"
                             "  AND NOT EXISTS (SELECT FROM orchestrator.item i"
                             "    WHERE i.id = t.item AND i.loudness_mlufs IS NOT NULL) LIMIT 1",
                             DB_PARAMS(DB_TEXT(it->id)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    return err_set(err, STATUS_FAILED_PRECONDITION,
                   "%s cannot be made: the loudness of item %s could not be measured: %s",
                   rendition, it->id, db_text(r, 0, 0));
}

// ---------------------------------------------------------------- a wish

// How many segments from there on last no longer than a player looks ahead; at least one.
static int32_t count_ahead(const struct media_plan *plan, size_t rendition, int32_t segment)
{
    const struct media_grid *g = media_rendition_grid(plan, rendition);
    bool video = plan->renditions[rendition].kind == MEDIA_VIDEO;
    int64_t left_us = video ? AHEAD_VIDEO_US : AHEAD_AUDIO_US;
    int32_t n = 0;
    while (n < MAX_AHEAD && (size_t)(segment + n) < g->n_segments && left_us > 0)
        left_us -= media_segment_duration_us(g, (size_t)(segment + n++));
    return n;
}

static enum status want_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct demand *d = ud;
    AUTO(db_result_free_p) struct db_result *job = NULL;
    // Nobody waits for the disk: a wish that is lost with the database's machine is wished again.
    enum status s = db_exec(c,
                            "SELECT id, set_config('synchronous_commit', 'off', true)"
                            "  FROM orchestrator.job WHERE item = $1::uuid"
                            "  AND state IN ('queued', 'running', 'done') FOR NO KEY UPDATE",
                            DB_PARAMS(DB_TEXT(d->item)), &job, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(job) == 0)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "segment %d of %s is not made, and the item's job has ended", d->segment,
                       d->rendition);
    AUTO(mem_free_p) struct place *p = mem_alloc(sizeof *p);
    if (!p)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "demand: out of memory");
    *p = (struct place){.want = d, .first = d->segment, .end = d->segment + d->n_ahead};
    s = read_made(c, p, err);
    if (s != STATUS_OK || p->target == p->end)
        return s;
    s = read_near(c, p, err);
    if (s == STATUS_OK && d->normalised)
        s = want_measured(c, p, err);
    bool covered = false;
    for (size_t i = 0; s == STATUS_OK && i < p->n_near; i++)
        if (covers(&p->near[i], p->target))
            s = use_near(c, p, &p->near[i], &covered, err);
    if (s == STATUS_OK && !covered) {
        s = check_dead(c, p, err);
        if (s == STATUS_OK)
            s = check_room(c, p, err);
        if (s == STATUS_OK)
            s = add_task(c, p, db_text(job, 0, 0), err);
    }
    d->wake = s == STATUS_OK && (!covered || p->hid);
    return d->wake ? queue_notify(c, ORCH_TASK_CHANNEL, "", err) : s;
}

enum status demand_expected(struct orch *o, const struct item *it, const char *name,
                            struct err *err)
{
    int which = media_plan_find(it->plan->plan, name);
    if (which >= 0)
        return it->plan->plan->renditions[which].normalised ? check_measurable(o, it, name, err)
                                                            : STATUS_OK;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(o->db,
                             "SELECT EXISTS (SELECT FROM orchestrator.task WHERE item = $1::uuid"
                             "    AND state NOT IN ('done', 'dead', 'cancelled')"
                             "    AND $2::text = ANY (string_to_array(renditions, ',')))"
                             "  OR EXISTS (SELECT FROM orchestrator.output"
                             "    WHERE item = $1::uuid AND rendition = $2::text)",
                             DB_PARAMS(DB_TEXT(it->id), DB_TEXT(name)), &r, err);
    if (s != STATUS_OK || db_bool(r, 0, 0))
        return s;
    return err_set(err, STATUS_NOT_FOUND,
                   "item %s has no %.12s: it could not be made from the source", it->id, name);
}

enum status demand_want(struct orch *o, const struct item *it, const char *rendition,
                        int32_t segment, bool follow, struct err *err)
{
    int which = media_plan_find(it->plan->plan, rendition);
    if (which < 0)
        return STATUS_OK; // pictures and the like are never lazy and come in their own time
    struct demand d = {.item = it->id,
                       .rendition = rendition,
                       .segment = segment,
                       .n_ahead = count_ahead(it->plan->plan, (size_t)which, segment),
                       .normalised = it->plan->plan->renditions[which].normalised,
                       .follow = follow};
    enum status s = demand_want_in(o->db, &d, err);
    if (s == STATUS_OK && d.wake)
        hub_wake(o->hub, HUB_TASKS, NULL);
    return s;
}

enum status demand_want_in(struct db *db, struct demand *d, struct err *err)
{
    return db_tx(db, DB_READ_COMMITTED, want_tx, d, err);
}

// ---------------------------------------------------------------- leases

enum status demand_made(struct db *db, const struct queue_task *t, struct db_result **ret,
                        struct err *err)
{
    return db_query(db,
                    "SELECT rendition, segment FROM orchestrator.output WHERE item = $1::uuid"
                    "  AND rendition = ANY (string_to_array($2::text, ','))"
                    "  AND segment >= $3::int AND segment < $3::int + $4::int "
                    "ORDER BY rendition, segment",
                    DB_PARAMS(DB_TEXT(t->item), DB_TEXT(t->renditions), DB_I64(t->first_segment),
                              DB_I64(t->n_segments)),
                    ret, err);
}

// Urgent tasks that wait, more than leases are about to be given back for, while nobody is free.
// clang-format off
#define MUST_YIELD                                                                                 \
    "(t.yielding OR ((t.wanted IS NULL OR t.wanted_until < now()) AND EXISTS ("                    \
    "  SELECT FROM (SELECT count(*) AS n, min(u.created) AS oldest FROM ("                         \
    "    SELECT a.created FROM orchestrator.task a"                                                \
    "    JOIN orchestrator.item i ON i.id = a.item"                                                \
    "    WHERE a.state = 'available' AND a.priority >= 900 AND a.priority > t.priority"            \
    "    AND i.route <> ALL (string_to_array($3::text, ',')) LIMIT 256) u) x"                      \
    "  WHERE x.n > (SELECT count(*) FROM orchestrator.task WHERE state = 'leased' AND yielding)"   \
    "    AND (x.oldest < now() - interval '" TAKEN_WITHIN "'"                                      \
    "      OR (SELECT count(*) FROM orchestrator.task WHERE state = 'leased')"                     \
    "        >= (SELECT coalesce(sum(slots), 0) FROM orchestrator.worker w"                        \
    "          WHERE " ORCH_WORKER_SERVES ")))))"
// clang-format on

enum status demand_yields(struct db *db, const char *task, int64_t fence, const char *away,
                          bool *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(db,
                             "UPDATE orchestrator.task t SET yielding = true WHERE id = $1::uuid"
                             "  AND fence = $2::bigint AND state = 'leased' AND kind = 'chunk'"
                             "  AND " MUST_YIELD " RETURNING 1",
                             DB_PARAMS(DB_TEXT(task), DB_I64(fence), DB_TEXT(away)), &r, err);
    *ret = s == STATUS_OK && db_result_n_rows(r) == 1;
    return s;
}

enum status demand_published(struct db_conn *c, const struct queue_task *t, const char *away,
                             bool *ret_yield, struct err *err)
{
    // The wish is fulfilled once every rendition of the task has the segment.
    static const char fulfil[] =
        "UPDATE orchestrator.task t SET wanted = NULL,"
        "  priority = CASE WHEN demand THEN least(priority, $2::int) ELSE priority END "
        "WHERE id = $1::uuid AND wanted IS NOT NULL AND ("
        "  SELECT count(*) FROM orchestrator.output o WHERE o.item = t.item"
        "  AND o.segment = t.wanted AND o.rendition = ANY (string_to_array(t.renditions, ',')))"
        "  = cardinality(string_to_array(t.renditions, ','))";
    static const char prolong[] =
        "UPDATE orchestrator.task t SET yielding = " MUST_YIELD ","
        "  lease_until = greatest(lease_until, now() + $4::bigint * interval '1 millisecond') "
        "WHERE id = $1::uuid AND fence = $2::bigint AND state = 'leased' RETURNING yielding";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c, fulfil, DB_PARAMS(DB_TEXT(t->id), DB_I64(ORCH_PRIO_NEXT)), NULL, err);
    if (s == STATUS_OK)
        s = db_exec(
            c, prolong,
            DB_PARAMS(DB_TEXT(t->id), DB_I64(t->fence), DB_TEXT(away), DB_I64(ORCH_LEASE_MS)), &r,
            err);
    // A lease that ran out while nobody else took the task: what was published counts, and the
    // worker learns of the rest when it renews.
    *ret_yield = s == STATUS_OK && db_result_n_rows(r) == 1 && db_bool(r, 0, 0);
    return s;
}

// ---------------------------------------------------------------- by the clock

static enum status sweep_tx(struct db_conn *c, void *ud, struct err *err)
{
    (void)ud;
    static const char *const steps[] = {
        // Nobody wants it any more, or it has been told for long enough how it ended.
        ("DELETE FROM orchestrator.task WHERE id IN (SELECT id FROM orchestrator.task"
         "  WHERE demand AND (CASE WHEN state IN ('blocked', 'available', 'retry_wait')"
         "      THEN wanted_until < now()"
         "    WHEN state IN ('done', 'dead', 'cancelled')"
         "      THEN coalesce(finished, wanted_until) < now() - interval '" DEAD_FOR "'"
         "    ELSE false END) FOR UPDATE SKIP LOCKED)"),
        ("UPDATE orchestrator.task SET yielding = true WHERE id IN ("
         "  SELECT id FROM orchestrator.task WHERE demand AND state = 'leased' AND NOT yielding"
         "  AND wanted_until < now() FOR UPDATE SKIP LOCKED)"),
        ("UPDATE orchestrator.task SET wanted = NULL, wanted_until = NULL WHERE id IN ("
         "  SELECT id FROM orchestrator.task WHERE NOT demand AND wanted_until < now()"
         "  FOR UPDATE SKIP LOCKED)"),
    };
    enum status s = STATUS_OK;
    int64_t n = 0;
    for (size_t i = 0; s == STATUS_OK && i < N_ELEMENTS(steps); i++) {
        AUTO(db_result_free_p) struct db_result *r = NULL;
        s = db_exec(c, steps[i], NULL, 0, &r, err);
        n += s == STATUS_OK ? db_result_n_affected(r) : 0;
    }
    // Who came for one of them just then found it locked.
    return s == STATUS_OK && n ? queue_notify(c, ORCH_TASK_CHANNEL, "", err) : s;
}

enum status demand_sweep(struct db *db, struct err *err)
{
    enum status s = db_tx(db, DB_READ_COMMITTED, sweep_tx, NULL, err);
    return s == STATUS_OK ? s : err_wrap(err, s, "sweep what was wanted");
}
