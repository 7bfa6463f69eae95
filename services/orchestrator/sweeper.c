// What happens by itself. One thread minds the queue (leases that ran out, retries that are due)
// and only talks to the database, so that nothing slow delays it; the other tells the store and the
// origins what they must know, finishes commits that were cut off, and asks how the origins are.
#include "orchestrator/internal.h"

#include <pthread.h>
#include <string.h>

#include "cauce/origin.rpc.h"
#include "cauce/store.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

#define ROUND_MS 1000
#define POLL_EVERY_US (INT64_C(2) * 1000000)
#define OLD_EVERY_US (INT64_C(60) * 1000000)
#define CALL_MS 5000
#define COMMIT_MS 20000
#define BATCH 16
#define MAX_SHUT_OUT 64 // within one round; the leases of others run out
// After a time without database, and at the start, leases get this long to be renewed before any is
// taken away: their workers could not reach us.
#define GRACE_US (INT64_C(2) * ORCH_RENEW_MS * 1000)

struct sweeper {
    struct orch *o;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t queue_thread, chore_thread;
    bool stop, kicked;
    char shut_out[MAX_SHUT_OUT][CHAN_NODE_ID_SIZE]; // workers whose tasks are to be taken back
    size_t n_shut_out;
    // the queue thread's own
    int64_t steady_since_us; // the database has answered since then; 0: it does not
    int64_t next_old_us;
    struct local_worker *local;
    // the chore thread's own
    int64_t next_poll_us;
};

static void failed(struct orch *o, const char *what, const struct err *err)
{
    log_warn(o->log, "sweep_failed", F_STR("what", what), F_ERR(err));
}

// ---------------------------------------------------------------- the queue

static void drop_old_uploads(struct orch *o)
{
    struct err err = ERR_INIT;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(o->db,
                 "SELECT id FROM orchestrator.upload WHERE state IN ('opening', 'open')"
                 "  AND updated < now() - $1::bigint * interval '1 millisecond' LIMIT 50",
                 DB_PARAMS(DB_I64(o->env.options->upload_ttl_ms)), &r, &err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++)
        s = commit_abort(o, db_text(r, i, 0), &err);
    if (s != STATUS_OK)
        failed(o, "old uploads", &err);
}

static void purge_old_failures(struct orch *o)
{
    struct err err = ERR_INIT;
    if (queue_purge(o->db, o->env.options->failed_ttl_ms, &err) != STATUS_OK)
        failed(o, "old failures", &err);
}

static enum status sweep(struct orch *o, bool expire)
{
    struct err err = ERR_INIT;
    int64_t n = 0;
    enum status s = queue_sweep(o->db, expire, &n, &err);
    if (s != STATUS_OK)
        failed(o, "queue", &err);
    else if (n)
        log_info(o->log, "tasks_returned", F_I64("n", n));
    return s;
}

static bool pop_shut_out(struct sweeper *w, char ret[CHAN_NODE_ID_SIZE])
{
    pthread_mutex_lock(&w->lock);
    bool found = w->n_shut_out > 0;
    if (found)
        (void)str_copy(ret, CHAN_NODE_ID_SIZE, w->shut_out[--w->n_shut_out]);
    pthread_mutex_unlock(&w->lock);
    return found;
}

static void take_back(struct sweeper *w)
{
    char worker[CHAN_NODE_ID_SIZE];
    struct err err = ERR_INIT;
    while (pop_shut_out(w, worker)) {
        enum status s = queue_take_back(w->o->db, worker, &err);
        if (s == STATUS_OK)
            s = db_query(w->o->db,
                         "UPDATE orchestrator.worker SET last_seen = least(last_seen,"
                         "  now() - interval '1 hour') WHERE id = $1::text",
                         DB_PARAMS(DB_TEXT(worker)), NULL, &err);
        if (s != STATUS_OK)
            failed(w->o, "tasks of a worker that is shut out", &err);
    }
}

void sweeper_shut_out(struct sweeper *w, const char *worker)
{
    pthread_mutex_lock(&w->lock);
    if (w->n_shut_out < MAX_SHUT_OUT)
        (void)str_copy(w->shut_out[w->n_shut_out++], CHAN_NODE_ID_SIZE, worker);
    pthread_mutex_unlock(&w->lock);
}

static void end_wishes(struct orch *o)
{
    struct err err = ERR_INIT;
    if (demand_sweep(o->db, &err) != STATUS_OK)
        failed(o, "wishes", &err);
}

void sweeper_queue_round(struct orch *o)
{
    (void)sweep(o, true);
    end_wishes(o);
    drop_old_uploads(o);
    purge_old_failures(o);
}

static void queue_round(struct sweeper *w)
{
    struct orch *o = w->o;
    int64_t now_us = time_mono_us();
    take_back(w);
    bool expire = w->steady_since_us && now_us - w->steady_since_us >= GRACE_US;
    if (sweep(o, expire) != STATUS_OK) {
        w->steady_since_us = 0;
        __atomic_store_n(&o->db_answers, false, __ATOMIC_RELAXED);
        return;
    }
    __atomic_store_n(&o->db_answers, true, __ATOMIC_RELAXED);
    if (!w->steady_since_us)
        w->steady_since_us = now_us;
    local_worker_round(w->local);
    end_wishes(o);
    if (now_us < w->next_old_us)
        return;
    w->next_old_us = now_us + OLD_EVERY_US;
    drop_old_uploads(o);
    purge_old_failures(o);
}

// ---------------------------------------------------------------- commits

static void finish_commits(struct orch *o)
{
    struct err err = ERR_INIT;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(o->db,
                 "UPDATE orchestrator.upload SET updated = now() WHERE id IN ("
                 "  SELECT id FROM orchestrator.upload WHERE state = 'committing'"
                 "  AND updated < now() - interval '20 seconds' ORDER BY updated LIMIT $1::int"
                 "  FOR UPDATE SKIP LOCKED) RETURNING id, route",
                 DB_PARAMS(DB_I64(BATCH)), &r, &err);
    if (s != STATUS_OK) {
        failed(o, "commits", &err);
        return;
    }
    for (size_t i = 0; i < db_result_n_rows(r); i++) {
        if (backends_is_open(o->backends, db_text(r, i, 1)))
            continue;
        s = commit_run(o, db_text(r, i, 0), time_deadline_in_ms(COMMIT_MS), &err);
        if (s == STATUS_OK)
            log_info(o->log, "commit_finished", F_STR("upload", db_text(r, i, 0)));
        else
            failed(o, "commit", &err);
    }
}

// ---------------------------------------------------------------- what the store must know

static enum status tell_store(struct orch *o, const struct db_result *r, size_t row,
                              struct err *err)
{
    struct rpc_client *c = o->env.store(o->env.ud, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    AUTO(arena_free_p) struct arena *a = arena_new(16384);
    if (!a)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "tell the store: out of memory");
    Store__SetMediaRequest req;
    store__set_media_request__init(&req);
    req.item_id = orch_str(a, db_text(r, row, 0));
    req.state = orch_str(a, db_text(r, row, 1));
    req.reason = orch_str(a, db_text(r, row, 2));
    req.duration_us = db_i64(r, row, 3);
    req.width = (int32_t)db_i64(r, row, 4);
    req.height = (int32_t)db_i64(r, row, 5);
    req.kind = orch_str(a, db_text(r, row, 6));
    struct rpc_opts opts = {.deadline_us = time_deadline_in_ms(CALL_MS)};
    AUTO(rpc_message_free_p) Store__Item *reply = NULL;
    enum status s = store_catalog_set_media(c, &opts, &req, &reply, err);
    return s == STATUS_OK ? s : err_wrap(err, s, "tell the store of item %s", req.item_id);
}

// One teller at a time and item (telling_until), so that an older state never comes last.
static bool tell_states(struct orch *o)
{
    struct err err = ERR_INIT;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        o->db,
        "UPDATE orchestrator.item SET telling_until = now() + interval '20 seconds' WHERE id = ("
        "  SELECT id FROM orchestrator.item WHERE media_sent < media_version"
        "  AND telling_until < now() ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) "
        "RETURNING id, state, reason, duration_us, width, height, kind, media_version",
        NULL, 0, &r, &err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0) {
        if (s != STATUS_OK)
            failed(o, "store", &err);
        return false;
    }
    s = tell_store(o, r, 0, &err);
    bool told = s == STATUS_OK || s == STATUS_NOT_FOUND; // deleted there: nothing to keep in step
    if (!told)
        failed(o, "store", &err);
    // After a failure the claim runs out by itself, which spaces the attempts.
    s = told ? db_query(o->db,
                        "UPDATE orchestrator.item SET telling_until = '-infinity',"
                        "  media_sent = greatest(media_sent, $2::bigint) WHERE id = $1::uuid",
                        DB_PARAMS(DB_TEXT(db_text(r, 0, 0)), DB_I64(db_i64(r, 0, 7))), NULL, &err)
             : STATUS_OK;
    if (s != STATUS_OK)
        failed(o, "store", &err);
    return told && s == STATUS_OK;
}

// ---------------------------------------------------------------- what origins must know

static enum status unpin(struct rpc_client *c, const char *item, const uint8_t *digest, size_t len,
                         struct err *err)
{
    AUTO(arena_free_p) struct arena *a = arena_new(4096);
    ProtobufCBinaryData one = a ? orch_bytes(a, digest, len) : (ProtobufCBinaryData){0};
    if (!a || one.len != len)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "unpin: out of memory");
    Origin__PinRequest req;
    origin__pin_request__init(&req);
    req.item_id = orch_str(a, item);
    req.digests = &one;
    req.n_digests = len ? 1 : 0;
    struct rpc_opts opts = {.deadline_us = time_deadline_in_ms(CALL_MS)};
    AUTO(rpc_message_free_p) Origin__PinReply *reply = NULL;
    return origin_object_unpin(c, &opts, &req, &reply, err);
}

// An object that was given up and then made, or sent, again before anybody told the origin.
static enum status is_used(struct orch *o, const char *item, const uint8_t *digest, size_t len,
                           bool *ret, struct err *err)
{
    *ret = false;
    if (len == 0)
        return STATUS_OK; // all of the item
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(o->db,
                             "SELECT EXISTS (SELECT FROM orchestrator.output"
                             "    WHERE item = $1::uuid AND digest = $2::bytea)"
                             "  OR EXISTS (SELECT FROM orchestrator.subtitle WHERE item = $1::uuid"
                             "    AND digest = $2::bytea AND state IN ('converting', 'ready'))",
                             DB_PARAMS(DB_TEXT(item), DB_BYTES(digest, len)), &r, err);
    if (s == STATUS_OK)
        *ret = db_bool(r, 0, 0);
    return s;
}

static enum status drop(struct rpc_client *c, const char *upload, struct err *err)
{
    AUTO(arena_free_p) struct arena *a = arena_new(4096);
    if (!a)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "drop: out of memory");
    Origin__DropRequest req;
    origin__drop_request__init(&req);
    req.upload_id = orch_str(a, upload);
    struct rpc_opts opts = {.deadline_us = time_deadline_in_ms(CALL_MS)};
    AUTO(rpc_message_free_p) Origin__DropReply *reply = NULL;
    return origin_upload_drop(c, &opts, &req, &reply, err);
}

static enum status do_chore(struct orch *o, const struct db_result *r, size_t row, struct err *err)
{
    const char *origin = db_text(r, row, 2);
    if (backends_is_open(o->backends, origin))
        return err_set(err, STATUS_UNAVAILABLE, "origin %s does not answer", origin);
    if (!orch_origin_node(o, origin)) {
        log_warn(o->log, "chore_without_origin", F_STR("origin", origin),
                 F_STR("item", db_text(r, row, 3)));
        return STATUS_OK; // it is gone for good, and what it held with it
    }
    struct rpc_client *c = orch_origin(o, origin, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    size_t len = 0;
    const uint8_t *digest = db_bytes(r, row, 5, &len);
    const char *kind = db_text(r, row, 1), *item = db_text(r, row, 3);
    bool used = false;
    enum status s = str_eq(kind, "unpin") ? is_used(o, item, digest, len, &used, err) : STATUS_OK;
    if (s != STATUS_OK || used)
        return s;
    s = str_eq(kind, "unpin")   ? unpin(c, item, digest, len, err)
        : str_eq(kind, "words") ? subtitles_tell(o, item, db_text(r, row, 6), origin, err)
                                : drop(c, db_text(r, row, 4), err);
    return s == STATUS_NOT_FOUND ? STATUS_OK : s;
}

static bool do_chores(struct orch *o)
{
    struct err err = ERR_INIT;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    // Taken by being put off: whoever dies with one leaves it to come up again.
    enum status s =
        db_query(o->db,
                 "UPDATE orchestrator.chore SET attempts = attempts + 1,"
                 "  not_before = now() + least(300, 15 * (attempts + 1)) * interval '1 second' "
                 "WHERE id IN (SELECT id FROM orchestrator.chore WHERE not_before <= now()"
                 "  ORDER BY not_before LIMIT $1::int FOR UPDATE SKIP LOCKED) "
                 "RETURNING id, kind, origin, item, upload, digest, name",
                 DB_PARAMS(DB_I64(BATCH)), &r, &err);
    if (s != STATUS_OK) {
        failed(o, "chores", &err);
        return false;
    }
    for (size_t i = 0; i < db_result_n_rows(r); i++) {
        s = do_chore(o, r, i, &err);
        if (s == STATUS_OK)
            s = db_query(o->db, "DELETE FROM orchestrator.chore WHERE id = $1::bigint",
                         DB_PARAMS(DB_I64(db_i64(r, i, 0))), NULL, &err);
        if (s != STATUS_OK)
            failed(o, db_text(r, i, 1), &err);
    }
    return db_result_n_rows(r) == BATCH;
}

void sweeper_chore_round(struct orch *o)
{
    finish_commits(o);
    for (int i = 0; i < BATCH && tell_states(o); i++)
        ;
    (void)do_chores(o);
}

// ---------------------------------------------------------------- threads

// Until the next round, a kick (chores only) or the stop. False: stop.
static bool wait_round(struct sweeper *w, bool kickable)
{
    int64_t at_us = time_mono_us() + ROUND_MS * 1000;
    struct timespec at = {.tv_sec = at_us / 1000000, .tv_nsec = at_us % 1000000 * 1000};
    pthread_mutex_lock(&w->lock);
    int r = 0;
    while (!w->stop && !(kickable && w->kicked) && r == 0)
        r = pthread_cond_timedwait(&w->wake, &w->lock, &at);
    if (kickable)
        w->kicked = false;
    bool go_on = !w->stop;
    pthread_mutex_unlock(&w->lock);
    return go_on;
}

// The schema must be there before anything can be done with it.
static bool is_migrated(struct orch *o)
{
    const char *dir = o->env.options->common.migrations;
    struct err err = ERR_INIT;
    if (!dir || __atomic_load_n(&o->migrated, __ATOMIC_RELAXED))
        return true;
    if (db_migrate_check(o->db, dir, &err) != STATUS_OK) {
        failed(o, "migrations", &err);
        return false;
    }
    __atomic_store_n(&o->migrated, true, __ATOMIC_RELAXED);
    return true;
}

static void *queue_thread(void *ud)
{
    struct sweeper *w = ud;
    do {
        if (is_migrated(w->o))
            queue_round(w);
    } while (wait_round(w, false));
    return NULL;
}

static void *chore_thread(void *ud)
{
    struct sweeper *w = ud;
    do {
        int64_t now_us = time_mono_us();
        if (now_us >= w->next_poll_us) {
            w->next_poll_us = now_us + POLL_EVERY_US;
            backends_poll(w->o->backends);
        }
        // Without a database there is nothing to tell; the other thread says that it is away.
        if (__atomic_load_n(&w->o->db_answers, __ATOMIC_RELAXED))
            sweeper_chore_round(w->o);
    } while (wait_round(w, true));
    return NULL;
}

struct sweeper *sweeper_new(struct orch *o)
{
    struct sweeper *w = mem_alloc(sizeof *w);
    if (!w)
        return NULL;
    w->o = o;
    w->local = local_worker_new(o);
    if (!w->local) {
        mem_free(w);
        return NULL;
    }
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&w->wake, &a);
    pthread_condattr_destroy(&a);
    if (pthread_create(&w->queue_thread, NULL, queue_thread, w) != 0)
        goto no_queue;
    if (pthread_create(&w->chore_thread, NULL, chore_thread, w) != 0)
        goto no_chores;
    return w;

no_chores:
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->queue_thread, NULL);
no_queue:
    local_worker_free(w->local);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->lock);
    mem_free(w);
    return NULL;
}

void sweeper_free(struct sweeper *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->queue_thread, NULL);
    pthread_join(w->chore_thread, NULL);
    local_worker_free(w->local);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->lock);
    mem_free(w);
}

void sweeper_kick(struct sweeper *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->kicked = true;
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->lock);
}
