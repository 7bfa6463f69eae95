// Job.Watch: how a job is, again whenever it changes, until it ends. A watcher holds no thread: it
// is woken by the item's notifications, and looked at each second for what workers tell of their
// progress.
#include "orchestrator/internal.h"

#include <math.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

#define LOOK_MS 1000
#define APART_MS 250           // between two messages
#define SAY_ANYWAY_MS 15000    // so that both sides know that the other is there
#define MAX_MESSAGE (4U << 20) // of one look

struct watcher {
    struct orch *o;
    struct rpc_call *call;
    char job[UUID_SIZE], item[UUID_SIZE];
    uint8_t *last; // packed; what was sent last
    size_t last_len;
    int64_t sent_ms;
};

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "watch: out of memory");
}

// ---------------------------------------------------------------- what there is to say

static enum status fill_kinds(struct orch *o, struct arena *a, Orchestrator__JobUpdate *ret,
                              struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    static const char sql[] =
        "SELECT t.kind, count(*), count(*) FILTER (WHERE t.state = 'done'),"
        "  count(*) FILTER (WHERE t.state = 'leased'), avg(" ORCH_TASK_PROGRESS ")::float8 "
        "FROM orchestrator.task t WHERE t.job = $1::uuid AND NOT t.demand "
        "GROUP BY t.kind ORDER BY min(t.position)";
    enum status s = db_query(o->db, sql, DB_PARAMS(DB_TEXT(ret->job->job_id)), &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r);
    ret->kinds = arena_array(a, n + 1, sizeof ret->kinds[0]);
    for (size_t i = 0; i < n; i++) {
        Orchestrator__KindProgress *k = arena_alloc(a, sizeof *k);
        if (!ret->kinds || !k)
            return no_memory(err);
        orchestrator__kind_progress__init(k);
        k->kind = orch_str(a, db_text(r, i, 0));
        k->tasks = (int32_t)db_i64(r, i, 1);
        k->done = (int32_t)db_i64(r, i, 2);
        k->running = (int32_t)db_i64(r, i, 3);
        k->progress = db_double(r, i, 4);
        ret->kinds[ret->n_kinds++] = k;
    }
    return STATUS_OK;
}

// What is left costs, per segment, what tasks of the same renditions have cost; of renditions that
// none was made of yet, what the dearest cost. It is shared by the slots that would come for it,
// each of which uses as much CPU per second of work as was measured.
static enum status fill_eta(struct orch *o, Orchestrator__JobUpdate *ret, struct err *err)
{
    static const char sql[] =
        "WITH t AS (SELECT *, " ORCH_TASK_PROGRESS " AS part FROM orchestrator.task t"
        "    WHERE job = $1::uuid AND NOT demand),"
        "rate AS (SELECT kind, renditions,"
        "    sum(seconds_cpu) / greatest(sum(n_segments), 1) AS cpu FROM t"
        "  WHERE state = 'done' AND kind <> 'probe' GROUP BY kind, renditions),"
        "rest AS (SELECT t.n_segments * (1 - t.part) * coalesce(r.cpu,"
        "    (SELECT max(cpu) FROM rate)) AS cpu FROM t LEFT JOIN rate r"
        "  ON r.kind = t.kind AND r.renditions = t.renditions WHERE t.state <> 'done') "
        "SELECT i.duration_us / 1e6, coalesce((SELECT sum(seconds_cpu) FROM t), 0),"
        "  coalesce((SELECT sum(cpu) FROM rest), 0),"
        "  (SELECT count(*) FROM t WHERE state <> 'done'), (SELECT count(*) FROM rate),"
        "  coalesce((SELECT sum(seconds_cpu) / nullif(sum(seconds_fetch + seconds_encode"
        "    + seconds_store), 0) FROM t WHERE state = 'done'), 1),"
        "  coalesce((SELECT sum(slots) FROM orchestrator.worker w"
        "    WHERE " ORCH_WORKER_SERVES "), 0),"
        "  coalesce((SELECT sum(n_segments * part) / nullif(sum(n_segments), 0) FROM t"
        "    WHERE kind = 'chunk'), 0),"
        "  coalesce((SELECT sum(seconds_cpu) FROM t WHERE kind = 'chunk' AND state = 'done'), 0),"
        "  coalesce((SELECT sum(n_segments) FILTER (WHERE state = 'done')::float8"
        "    / nullif(sum(n_segments), 0) FROM t WHERE kind = 'chunk'), 0) "
        "FROM orchestrator.item i WHERE i.id = $2::uuid";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        o->db, sql, DB_PARAMS(DB_TEXT(ret->job->job_id), DB_TEXT(ret->job->item_id)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    double media = db_double(r, 0, 0), rest_cpu = db_double(r, 0, 2),
           cpu_per_s = db_double(r, 0, 5);
    int64_t n_left = db_i64(r, 0, 3), slots = db_i64(r, 0, 6);
    double made = media * db_double(r, 0, 9);
    ret->media_seconds = media;
    ret->media_seconds_done = media * db_double(r, 0, 7);
    ret->cpu_seconds = db_double(r, 0, 1);
    ret->cpu_per_media_second = made > 0 ? db_double(r, 0, 8) / made : 0;
    int64_t lanes = slots < n_left ? slots : n_left;
    bool known = db_i64(r, 0, 4) > 0 && lanes > 0 && cpu_per_s > 0 && !ret->job->paused;
    ret->eta_ms = n_left == 0 ? 0 : -1;
    if (n_left && known)
        ret->eta_ms = (int64_t)ceil(rest_cpu / ((double)lanes * cpu_per_s) * 1000);
    return STATUS_OK;
}

static enum status look(struct watcher *w, struct arena *a, Orchestrator__JobUpdate *ret,
                        struct err *err)
{
    enum status s = jobs_find(w->call, a, w->job, ret->job, err);
    if (s == STATUS_OK)
        s = jobs_fill_tasks(w->o, a, true, ret->job, err);
    if (s == STATUS_OK)
        s = fill_kinds(w->o, a, ret, err);
    if (s == STATUS_OK)
        s = fill_eta(w->o, ret, err);
    if (s != STATUS_OK)
        return s;
    const char *state = ret->job->state;
    ret->ended = str_eq(state, "done") || str_eq(state, "failed") || str_eq(state, "cancelled");
    if (ret->ended)
        ret->eta_ms = 0;
    return STATUS_OK;
}

// ---------------------------------------------------------------- saying it

static void watcher_free(struct watcher *w)
{
    mem_free(w->last);
    mem_free(w);
}

// Remembers what was sent; false when it is what was sent last, and not long ago.
static bool is_news(struct watcher *w, const Orchestrator__JobUpdate *m, int64_t now_ms)
{
    size_t n = orchestrator__job_update__get_packed_size(m);
    AUTO(mem_free_p) uint8_t *packed = mem_alloc(n ? n : 1);
    if (!packed)
        return true;
    orchestrator__job_update__pack(m, packed);
    bool same = w->last && n == w->last_len && memcmp(packed, w->last, n) == 0;
    if (same && now_ms - w->sent_ms < SAY_ANYWAY_MS)
        return false;
    mem_free(w->last);
    w->last = TAKE(packed);
    w->last_len = n;
    return true;
}

// ret_ended: it was the last message.
static enum status tell(struct watcher *w, bool *ret_ended, struct err *err)
{
    int64_t now_ms = time_mono_ms();
    if (w->sent_ms && now_ms - w->sent_ms < APART_MS)
        return STATUS_OK; // the next look will
    AUTO(arena_free_p) struct arena *a = arena_new(MAX_MESSAGE);
    Orchestrator__JobUpdate m;
    Orchestrator__JobInfo job;
    orchestrator__job_update__init(&m);
    orchestrator__job_info__init(&job);
    m.job = &job;
    enum status s = a ? look(w, a, &m, err) : no_memory(err);
    if (s != STATUS_OK || !is_news(w, &m, now_ms))
        return s;
    if (rpc_call_try_write(w->call, &m.base)) {
        w->sent_ms = now_ms;
        *ret_ended = m.ended;
    } else { // the reader is slow: again at the next look
        mem_free(TAKE(w->last));
    }
    return STATUS_OK;
}

static bool try_tell(void *ud, enum hub_why why);

static enum status park(struct watcher *w, struct err *err)
{
    return hub_park(w->o->hub, HUB_ITEM, w->item, time_deadline_in_ms(LOOK_MS),
                    rpc_call_cancel(w->call), try_tell, w, err);
}

static bool try_tell(void *ud, enum hub_why why)
{
    struct watcher *w = ud;
    struct err err = ERR_INIT;
    bool ended = false;
    enum status s = why == HUB_CANCELLED ? err_set(&err, STATUS_CANCELLED, "watch: cancelled")
                    : why == HUB_STOPPING
                        ? err_set(&err, STATUS_UNAVAILABLE, "the orchestrator is stopping")
                        : tell(w, &ended, &err);
    if (s == STATUS_OK && !ended && why == HUB_EVENT)
        return false;
    if (s == STATUS_OK && !ended) { // a second went by: this waiter ends, another begins
        s = park(w, &err);
        if (s == STATUS_OK)
            return true;
    }
    rpc_call_finish(w->call, s, NULL, &err);
    watcher_free(w);
    return true;
}

enum status job_watch(struct rpc_call *call, const Orchestrator__GetJobRequest *req,
                      struct err *err)
{
    struct orch *o = rpc_call_self(call);
    Orchestrator__JobInfo now;
    orchestrator__job_info__init(&now);
    enum status s = jobs_find(call, rpc_call_arena(call), req->job_id, &now, err);
    if (s != STATUS_OK)
        return s;
    struct watcher *w = mem_alloc(sizeof *w);
    if (!w)
        return no_memory(err);
    *w = (struct watcher){.o = o, .call = call};
    str_copy(w->job, sizeof w->job, now.job_id);
    str_copy(w->item, sizeof w->item, now.item_id);
    rpc_call_defer(call);
    s = park(w, err);
    if (s != STATUS_OK) {
        rpc_call_finish(call, s, NULL, err);
        watcher_free(w);
    }
    return STATUS_OK;
}
