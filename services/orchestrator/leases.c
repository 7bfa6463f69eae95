// Leases that were taken away (a cancelled job, a worker that is shut out or drained): who holds
// one hears of it while it renews, so that no encoder goes on for nobody.
#include "orchestrator/internal.h"

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

#define MAX_LIST_BYTES (64U << 10)

// ---------------------------------------------------------------- a worker that was started again

struct joining {
    const char *worker;
    const Transcode__JoinRequest *req;
};

static enum status join_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct joining *j = ud;
    // An attempt that it died in counts: the task may be why.
    static const char drop[] =
        "UPDATE orchestrator.task SET state = 'available', error = 'worker ' || worker ||"
        "  ' was started again', worker = '', lease_until = NULL, stage = '', progress = 0 "
        "WHERE id IN (SELECT t.id FROM orchestrator.task t JOIN orchestrator.worker w"
        "    ON w.id = t.worker WHERE t.worker = $1::text AND t.state = 'leased'"
        "  AND w.instance <> $2::text AND t.attempts < $3::int FOR UPDATE OF t SKIP LOCKED)";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c, drop,
                DB_PARAMS(DB_TEXT(j->worker), DB_TEXT(j->req->instance), DB_I64(ORCH_MAX_ATTEMPTS)),
                &r, err);
    if (s == STATUS_OK && db_result_n_affected(r) > 0)
        s = queue_notify(c, ORCH_TASK_CHANNEL, "", err);
    if (s != STATUS_OK)
        return s;
    static const char join[] =
        "INSERT INTO orchestrator.worker (id, slots, build, cpu_class, codecs, threads, instance) "
        "VALUES ($1::text, $2::int, $3::text, $4::text, $5::text, $6::int, $7::text) "
        "ON CONFLICT (id) DO UPDATE SET slots = $2::int, build = $3::text, cpu_class = $4::text,"
        "  codecs = $5::text, threads = $6::int, instance = $7::text, last_seen = now()";
    return db_exec(c, join,
                   DB_PARAMS(DB_TEXT(j->worker), DB_I64(j->req->slots), DB_TEXT(j->req->build),
                             DB_TEXT(j->req->cpu_class), DB_TEXT(j->req->codecs),
                             DB_I64(j->req->threads), DB_TEXT(j->req->instance)),
                   NULL, err);
}

enum status leases_join(struct db *db, const char *worker, const Transcode__JoinRequest *req,
                        struct err *err)
{
    struct joining j = {.worker = worker, .req = req};
    return db_tx(db, DB_READ_COMMITTED, join_tx, &j, err);
}

// ---------------------------------------------------------------- a renewal that waits

struct lease_watch {
    struct orch *o;
    struct rpc_call *call;
    struct buf held; // "task:fence,task:fence"
};

static void watch_free(struct lease_watch *w)
{
    buf_done(&w->held);
    mem_free(w);
}

static enum status find_lost(struct lease_watch *w, Transcode__RenewReply *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        w->o->db,
        "SELECT split_part(l, ':', 1) FROM unnest(string_to_array($2::text, ',')) l "
        "WHERE NOT EXISTS (SELECT FROM orchestrator.task t"
        "  WHERE t.id = split_part(l, ':', 1)::uuid AND t.fence = split_part(l, ':', 2)::bigint"
        "  AND t.worker = $1::text AND t.state IN ('leased', 'done'))",
        DB_PARAMS(DB_TEXT(rpc_call_peer(w->call)->grant.node_id), DB_TEXT(buf_str(&w->held))), &r,
        err);
    if (s != STATUS_OK)
        return s;
    struct arena *a = rpc_call_arena(w->call);
    size_t n = db_result_n_rows(r);
    ret->lost = arena_array(a, n + 1, sizeof ret->lost[0]);
    if (!ret->lost)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "renew: out of memory");
    for (size_t i = 0; i < n; i++)
        ret->lost[ret->n_lost++] = orch_str(a, db_text(r, i, 0));
    return STATUS_OK;
}

static bool try_watch(void *ud, enum hub_why why)
{
    struct lease_watch *w = ud;
    struct err err = ERR_INIT;
    Transcode__RenewReply reply;
    transcode__renew_reply__init(&reply);
    enum status s = STATUS_OK;
    if (why == HUB_CANCELLED)
        s = err_set(&err, STATUS_CANCELLED, "renew: cancelled");
    else if (why == HUB_EVENT)
        s = find_lost(w, &reply, &err);
    // The leases are renewed: neither the end of the wait nor of this process is a failure.
    if (why == HUB_EVENT && s == STATUS_OK && reply.n_lost == 0)
        return false;
    rpc_call_finish(w->call, s, &reply.base, &err);
    watch_free(w);
    return true;
}

enum status leases_watch(struct rpc_call *call, const Transcode__RenewRequest *req, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct lease_watch *w = mem_alloc(sizeof *w);
    if (!w)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "renew: out of memory");
    w->o = o;
    w->call = call;
    buf_init(&w->held, MAX_LIST_BYTES);
    for (size_t i = 0; i < req->n_leases; i++)
        buf_printf(&w->held, "%s%s:%lld", i ? "," : "", req->leases[i]->task_id,
                   (long long)req->leases[i]->fence);
    if (w->held.failed) {
        watch_free(w);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "renew: out of memory");
    }
    rpc_call_defer(call);
    enum status s = hub_park(o->hub, HUB_LEASES, NULL, time_deadline_in_ms(req->wait_ms),
                             rpc_call_cancel(call), try_watch, w, err);
    if (s != STATUS_OK) {
        rpc_call_finish(call, s, NULL, err);
        watch_free(w);
    }
    return STATUS_OK;
}
