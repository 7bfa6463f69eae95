// WorkerAdmin.* and Job.Queue: who does the work, and what waits for them.
#include "orchestrator/internal.h"

#include <string.h>

#include "cauce/orchestrator.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "workers: out of memory");
}

// clang-format off
#define WORKER_SQL                                                                                 \
    "SELECT w.id, CASE WHEN w.last_seen < now() - interval '" ORCH_WORKER_GONE_AFTER "' THEN 'gone'" \
    "  WHEN w.quarantined_until > now() THEN 'quarantined'"                                        \
    "  WHEN w.cordoned AND b.busy > 0 THEN 'draining' WHEN w.cordoned THEN 'cordoned' ELSE 'up'"   \
    "  END, w.slots, b.busy, w.build, w.cpu_class, " ORCH_US("w.last_seen") ", w.done, w.failed,"  \
    "  CASE WHEN w.quarantined_until > now() THEN w.quarantine_reason ELSE '' END,"                \
    "  CASE WHEN w.quarantined_until > now() AND w.quarantined_until < 'infinity'"                 \
    "    THEN " ORCH_US("w.quarantined_until") " ELSE 0 END,"                                      \
    "  w.last_error, w.codecs, w.threads, w.cordoned "                                             \
    "FROM orchestrator.worker w CROSS JOIN LATERAL (SELECT count(*) AS busy"                       \
    "  FROM orchestrator.task t WHERE t.worker = w.id AND t.state = 'leased') b "
// clang-format on

static enum status fill_worker(struct arena *a, const struct db_result *r, size_t i,
                               Orchestrator__WorkerInfo *w, struct err *err)
{
    w->worker_id = orch_str(a, db_text(r, i, 0));
    w->state = orch_str(a, db_text(r, i, 1));
    w->slots = (int32_t)db_i64(r, i, 2);
    w->busy = (int32_t)db_i64(r, i, 3);
    w->build = orch_str(a, db_text(r, i, 4));
    w->cpu_class = orch_str(a, db_text(r, i, 5));
    w->last_seen = orch_timestamp(a, db_i64(r, i, 6));
    w->done = db_i64(r, i, 7);
    w->failed = db_i64(r, i, 8);
    w->reason = orch_str(a, db_text(r, i, 9));
    w->until = orch_timestamp(a, db_i64(r, i, 10));
    w->last_error = orch_str(a, db_text(r, i, 11));
    w->codecs = orch_str(a, db_text(r, i, 12));
    w->threads = (int32_t)db_i64(r, i, 13);
    w->cordoned = db_bool(r, i, 14);
    return w->last_seen ? STATUS_OK : no_memory(err);
}

static enum status list(struct rpc_call *call, const Orchestrator__ListWorkersRequest *req,
                        Orchestrator__ListWorkersReply *ret, struct err *err)
{
    (void)req;
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(o->db, WORKER_SQL "ORDER BY w.id LIMIT 1000", NULL, 0, &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r);
    ret->workers = arena_array(a, n + 1, sizeof ret->workers[0]);
    for (size_t i = 0; s == STATUS_OK && i < n; i++) {
        Orchestrator__WorkerInfo *w = arena_alloc(a, sizeof *w);
        if (!ret->workers || !w)
            return no_memory(err);
        orchestrator__worker_info__init(w);
        s = fill_worker(a, r, i, w, err);
        ret->workers[ret->n_workers++] = w;
    }
    return s;
}

static enum status find_worker(struct orch *o, struct arena *a, const char *id,
                               Orchestrator__WorkerInfo *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(o->db, WORKER_SQL "WHERE w.id = $1::text", DB_PARAMS(DB_TEXT(id)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no worker %.63s; `worker ls` names them", id);
    return fill_worker(a, r, 0, ret, err);
}

// ---------------------------------------------------------------- cordon, uncordon, forget

static enum status cordon(struct rpc_call *call, const Orchestrator__WorkerRequest *req,
                          Orchestrator__WorkerInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    enum status s =
        db_query(o->db, "UPDATE orchestrator.worker SET cordoned = true WHERE id = $1::text",
                 DB_PARAMS(DB_TEXT(req->worker_id)), NULL, err);
    return s == STATUS_OK ? find_worker(o, rpc_call_arena(call), req->worker_id, ret, err) : s;
}

static enum status uncordon(struct rpc_call *call, const Orchestrator__WorkerRequest *req,
                            Orchestrator__WorkerInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    enum status s =
        db_query(o->db,
                 "UPDATE orchestrator.worker SET cordoned = false, failed_in_row = 0,"
                 "  quarantined_until = '-infinity', quarantine_reason = '' WHERE id = $1::text",
                 DB_PARAMS(DB_TEXT(req->worker_id)), NULL, err);
    if (s == STATUS_OK)
        s = db_query(o->db, "SELECT pg_notify('" ORCH_TASK_CHANNEL "', '')", NULL, 0, NULL, err);
    return s == STATUS_OK ? find_worker(o, rpc_call_arena(call), req->worker_id, ret, err) : s;
}

static enum status forget(struct rpc_call *call, const Orchestrator__WorkerRequest *req,
                          Orchestrator__ForgetWorkerReply *ret, struct err *err)
{
    (void)ret;
    struct orch *o = rpc_call_self(call);
    Orchestrator__WorkerInfo now;
    orchestrator__worker_info__init(&now);
    enum status s = find_worker(o, rpc_call_arena(call), req->worker_id, &now, err);
    if (s != STATUS_OK)
        return s;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    s = db_query(o->db,
                 "DELETE FROM orchestrator.worker WHERE id = $1::text"
                 "  AND last_seen < now() - interval '" ORCH_WORKER_GONE_AFTER "'",
                 DB_PARAMS(DB_TEXT(req->worker_id)), &r, err);
    if (s == STATUS_OK && db_result_n_affected(r) == 0)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "worker %.63s is %s: stop it first, or cordon it", req->worker_id,
                       now.state);
    return s;
}

// ---------------------------------------------------------------- drain

struct drain_wait {
    struct orch *o;
    struct rpc_call *call;
    char worker[CHAN_NODE_ID_SIZE];
    int32_t busy_below;
};

static bool try_drain(void *ud, enum hub_why why)
{
    struct drain_wait *w = ud;
    struct err err = ERR_INIT;
    Orchestrator__WorkerInfo info;
    orchestrator__worker_info__init(&info);
    enum status s = why == HUB_CANCELLED  ? err_set(&err, STATUS_CANCELLED, "drain: cancelled")
                    : why == HUB_STOPPING ? err_set(&err, STATUS_UNAVAILABLE, "stopping")
                                          : STATUS_OK;
    AUTO(arena_free_p) struct arena *a = arena_new(1 << 16); // asked many times in one call
    if (s == STATUS_OK)
        s = a ? find_worker(w->o, a, w->worker, &info, &err) : no_memory(&err);
    if (why == HUB_EVENT && s == STATUS_OK && info.busy >= w->busy_below)
        return false;
    rpc_call_finish(w->call, s, &info.base, &err);
    mem_free(w);
    return true;
}

static enum status drain(struct rpc_call *call, const Orchestrator__DrainRequest *req,
                         Orchestrator__WorkerInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    if (req->wait_ms < 0 || req->wait_ms > ORCH_MAX_WAIT_MS || req->busy_below < 0)
        return rpc_call_bad_field(call, err, "wait_ms", "%lld is not in 0..%d",
                                  (long long)req->wait_ms, ORCH_MAX_WAIT_MS);
    Orchestrator__WorkerRequest which;
    orchestrator__worker_request__init(&which);
    which.worker_id = req->worker_id;
    enum status s = cordon(call, &which, ret, err);
    if (s == STATUS_OK && req->now)
        s = queue_take_back(o->db, req->worker_id, err);
    if (s != STATUS_OK || !req->wait_ms)
        return s == STATUS_OK ? find_worker(o, rpc_call_arena(call), req->worker_id, ret, err) : s;
    struct drain_wait *w = mem_alloc(sizeof *w);
    if (!w)
        return no_memory(err);
    *w = (struct drain_wait){.o = o, .call = call};
    w->busy_below = req->busy_below ? req->busy_below : 1;
    str_copy(w->worker, sizeof w->worker, req->worker_id);
    rpc_call_defer(call);
    s = hub_park(o->hub, HUB_ANY, NULL, time_deadline_in_ms(req->wait_ms), rpc_call_cancel(call),
                 try_drain, w, err);
    if (s != STATUS_OK) {
        rpc_call_finish(call, s, NULL, err);
        mem_free(w);
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- the queue's depth

enum status queue_depths(struct rpc_call *call, const Orchestrator__QueueRequest *req,
                         Orchestrator__QueueReply *ret, struct err *err)
{
    (void)req;
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    static const char sql[] =
        "SELECT c.class, count(*) FILTER (WHERE t.state = 'available'),"
        "  count(*) FILTER (WHERE t.state = 'blocked'),"
        "  count(*) FILTER (WHERE t.state = 'retry_wait'),"
        "  count(*) FILTER (WHERE t.state = 'leased'),"
        "  count(*) FILTER (WHERE t.state = 'available' AND j.paused),"
        "  coalesce((extract(epoch FROM now() - min(t.created) FILTER"
        "    (WHERE t.state = 'available' AND NOT j.paused)) * 1000)::bigint, 0) "
        "FROM orchestrator.task t JOIN orchestrator.job j ON j.id = t.job CROSS JOIN LATERAL ("
        "  SELECT CASE WHEN t.priority >= $1::int THEN 'wanted'"
        "    WHEN t.kind IN ('probe', 'move') THEN 'probe' WHEN t.kind <> 'chunk' THEN t.kind"
        "    WHEN t.priority >= $2::int THEN 'first' WHEN t.priority >= $3::int THEN 'audio'"
        "    ELSE 'background' END AS class) c "
        "WHERE t.state IN ('available', 'blocked', 'retry_wait', 'leased') "
        "GROUP BY c.class ORDER BY max(t.rank) DESC";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        o->db, sql,
        DB_PARAMS(DB_I64(ORCH_PRIO_NEXT), DB_I64(ORCH_PRIO_FIRST_TOP), DB_I64(ORCH_PRIO_AUDIO)), &r,
        err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r);
    ret->classes = arena_array(a, n + 1, sizeof ret->classes[0]);
    for (size_t i = 0; i < n; i++) {
        Orchestrator__QueueClass *c = arena_alloc(a, sizeof *c);
        if (!ret->classes || !c)
            return no_memory(err);
        orchestrator__queue_class__init(c);
        c->class_ = orch_str(a, db_text(r, i, 0));
        c->waiting = db_i64(r, i, 1);
        c->blocked = db_i64(r, i, 2);
        c->retry_wait = db_i64(r, i, 3);
        c->leased = db_i64(r, i, 4);
        c->paused = db_i64(r, i, 5);
        c->oldest_wait_ms = db_i64(r, i, 6);
        ret->classes[ret->n_classes++] = c;
    }
    return STATUS_OK;
}

enum status admin_serve(struct orch *o, struct rpc_server *s, struct err *err)
{
    static const struct orchestrator_worker_admin_handlers workers = {
        .list = list, .cordon = cordon, .uncordon = uncordon, .drain = drain, .forget = forget};
    return orchestrator_worker_admin_serve(s, &workers, o, err);
}
