// Work.*: tasks as leases. Who calls is the node of the caller's grant: a worker can only speak for
// itself.
#include "orchestrator/internal.h"

#include <string.h>

#include "cauce/transcode.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

#define MAX_SLOTS 256
#define MAX_LEASES 256
#define MAX_MESSAGE 400            // of a failure, bytes
#define MAX_LEASE_BYTES (2U << 20) // plans in one reply
#define MAX_OUTPUTS 4096

static const char *worker_id(const struct rpc_call *call)
{
    return rpc_call_peer(call)->grant.node_id;
}

// ---------------------------------------------------------------- Join

static enum status join(struct rpc_call *call, const Transcode__JoinRequest *req,
                        Transcode__JoinReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    if (req->slots < 0 || req->slots > MAX_SLOTS || strlen(req->build) > 200 ||
        strlen(req->cpu_class) > 200 || strlen(req->codecs) > 200 || req->threads < 0 ||
        strlen(req->instance) > 64)
        return err_set(err, STATUS_INVALID_ARGUMENT, "join: %d slots; at most %d", req->slots,
                       MAX_SLOTS);
    enum status s = leases_join(o->db, worker_id(call), req, err);
    ret->lease_ms = ORCH_LEASE_MS;
    ret->renew_ms = ORCH_RENEW_MS;
    return s;
}

// ---------------------------------------------------------------- Lease

struct lease_wait {
    struct orch *o;
    struct rpc_call *call;
    int32_t slots;
    bool wanted_only;
};

static Common__Endpoint *endpoint(struct arena *a, const struct svc_node *n)
{
    Common__Endpoint *e = arena_alloc(a, sizeof *e);
    if (!e)
        return NULL;
    common__endpoint__init(e);
    e->node_id = orch_str(a, n->id);
    e->url = orch_str(a, n->url);
    e->key = orch_bytes(a, n->key, sizeof n->key);
    return e;
}

static bool split_list(struct arena *a, const char *list, size_t *ret_n, char ***ret)
{
    *ret = arena_array(a, MEDIA_MAX_RENDITIONS, sizeof **ret);
    for (const char *p = list; *ret && *p && *ret_n < MEDIA_MAX_RENDITIONS;) {
        size_t n = strcspn(p, ",");
        if (!((*ret)[(*ret_n)++] = arena_strndup(a, p, n)))
            return false;
        p += n + (p[n] == ',');
    }
    return *ret != NULL;
}

static Transcode__TaskKind task_kind(const char *kind)
{
    return str_eq(kind, "probe")     ? TRANSCODE__TASK_KIND__PROBE
           : str_eq(kind, "chunk")   ? TRANSCODE__TASK_KIND__CHUNK
           : str_eq(kind, "images")  ? TRANSCODE__TASK_KIND__IMAGES
           : str_eq(kind, "measure") ? TRANSCODE__TASK_KIND__MEASURE
           : verify_is(kind)         ? TRANSCODE__TASK_KIND__VERIFY
           : str_eq(kind, "texts")   ? TRANSCODE__TASK_KIND__TEXTS
                                     : TRANSCODE__TASK_KIND__MOVE;
}

// Of a normalised rendition: by what is stored, as another orchestrator may have heard it just now.
static enum status describe_gain(struct orch *o, const struct queue_task *q,
                                 const struct media_plan *plan, Transcode__Task *t, struct err *err)
{
    int which = media_plan_find(plan, q->renditions); // on demand, so it is alone
    if (!str_eq(q->kind, "chunk") || which < 0 || !plan->renditions[which].normalised)
        return STATUS_OK;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(o->db,
                             "SELECT loudness_mlufs, loudness_range_mlu, true_peak_mdb "
                             "FROM orchestrator.item"
                             "  WHERE id = $1::uuid AND loudness_mlufs IS NOT NULL",
                             DB_PARAMS(DB_TEXT(q->item)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_FAILED_PRECONDITION, "item %s is not measured yet", q->item);
    struct media_loudness l = {.integrated_mlufs = (int32_t)db_i64(r, 0, 0),
                               .range_mlu = (int32_t)db_i64(r, 0, 1),
                               .true_peak_mdb = (int32_t)db_i64(r, 0, 2)};
    t->gain_mdb = media_loudness_gain_mdb(&l);
    return STATUS_OK;
}

static enum status describe(struct orch *o, struct arena *a, const struct queue_task *q,
                            Transcode__Task **ret, struct err *err)
{
    AUTO(item_done) struct item it = {0};
    bool planned = queue_is_planned(q->kind) || verify_is(q->kind);
    enum status s = planned ? items_get_planned(o->items, q->item, &it, err)
                            : items_get(o->items, q->item, &it, err);
    if (s != STATUS_OK)
        return s;
    const struct svc_node *source = orch_origin_node(o, it.route);
    const struct svc_node *target = *q->target ? orch_origin_node(o, q->target) : source;
    if (!source || !target)
        return err_set(err, STATUS_UNAVAILABLE, "origin %s is not in nodes.ini",
                       source ? q->target : it.route);
    Transcode__Task *t = arena_alloc(a, sizeof *t);
    Common__Endpoint **from = arena_array(a, 1, sizeof(Common__Endpoint *));
    if (!t || !from)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "lease: out of memory");
    transcode__task__init(t);
    t->task_id = orch_str(a, q->id);
    t->fence = q->fence;
    t->attempt = q->attempt;
    t->kind = task_kind(q->kind);
    t->item_id = orch_str(a, q->item);
    t->source_digest = orch_bytes(a, it.digest, sizeof it.digest);
    t->source_size = it.size;
    t->source_origins = from;
    t->n_source_origins = 1;
    from[0] = endpoint(a, source);
    t->target_origin = endpoint(a, target);
    if (planned) {
        t->plan = orch_bytes(a, it.plan->bytes, it.plan->len);
        s = describe_gain(o, q, it.plan->plan, t, err);
        if (s != STATUS_OK)
            return s;
    }
    if (str_eq(q->kind, "texts") && media_text_find_added(q->renditions) >= 0) {
        uint8_t digest[ORCH_DIGEST_SIZE];
        s = subtitles_source(o, q->item, q->renditions, digest, &t->source_size, err);
        if (s != STATUS_OK)
            return s;
        t->source_digest = orch_bytes(a, digest, sizeof digest);
    }
    bool listed = split_list(a, q->renditions, &t->n_renditions, &t->renditions);
    t->first_segment = q->first_segment;
    t->n_segments = q->n_segments;
    t->lease_ms = ORCH_LEASE_MS;
    t->urgent = q->priority >= ORCH_PRIO_NEXT;
    if (!from[0] || !t->target_origin || !listed || (planned && !t->plan.data) ||
        !t->source_digest.data)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "lease: out of memory");
    *ret = t;
    return STATUS_OK;
}

// What of a chunk is published already, by whoever had it before or made a part of it for a viewer.
static enum status describe_made(struct orch *o, struct arena *a, const struct queue_task *q,
                                 Transcode__Task *t, struct err *err)
{
    if (!str_eq(q->kind, "chunk"))
        return STATUS_OK;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = demand_made(o->db, q, &r, err);
    size_t n = s == STATUS_OK ? db_result_n_rows(r) : 0;
    if (n == 0)
        return s;
    t->made = arena_array(a, t->n_renditions, sizeof t->made[0]);
    Transcode__MadeSegments *m = NULL;
    for (size_t i = 0; t->made && i < n; i++) {
        if (!m || !str_eq(m->rendition, db_text(r, i, 0))) {
            m = t->n_made < t->n_renditions ? arena_alloc(a, sizeof *m) : NULL;
            if (!m)
                break;
            transcode__made_segments__init(m);
            m->rendition = orch_str(a, db_text(r, i, 0));
            m->segments = arena_array(a, (size_t)q->n_segments, sizeof m->segments[0]);
            t->made[t->n_made++] = m;
        }
        if (!m->segments)
            break;
        m->segments[m->n_segments++] = (int32_t)db_i64(r, i, 1);
    }
    return m && m->segments ? STATUS_OK
                            : err_set(err, STATUS_RESOURCE_EXHAUSTED, "lease: out of memory");
}

// Claim until the slots are full, the queue is empty or the reply is large enough.
static enum status claim_all(struct lease_wait *w, Transcode__LeaseReply *reply, struct err *err)
{
    struct orch *o = w->o;
    struct arena *a = rpc_call_arena(w->call);
    const char *worker = worker_id(w->call);
    char away[ORCH_AWAY_TEXT];
    backends_away(o->backends, away, sizeof away);
    reply->tasks = arena_array(a, (size_t)w->slots, sizeof reply->tasks[0]);
    if (!reply->tasks)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "lease: out of memory");
    size_t bytes = 0;
    while (reply->n_tasks < (size_t)w->slots && bytes < MAX_LEASE_BYTES) {
        struct queue_task q;
        bool found = false;
        enum status s = w->wanted_only ? queue_claim_wanted(o->db, worker, away, &q, &found, err)
                                       : queue_claim(o->db, worker, away, &q, &found, err);
        if (s != STATUS_OK || !found)
            return reply->n_tasks ? STATUS_OK : s;
        Transcode__Task *t = NULL;
        s = describe(o, a, &q, &t, err);
        if (s == STATUS_OK)
            s = describe_made(o, a, &q, t, err);
        if (s == STATUS_OK && t->kind == TRANSCODE__TASK_KIND__PROBE)
            s = upload_options(o, a, q.item, t, err);
        if (s == STATUS_OK)
            s = verify_describe(o, a, &q, t, err);
        if (s != STATUS_OK) {
            struct err ignored = ERR_INIT;
            bool retry = false;
            (void)!queue_fail(o->db, worker, q.id, q.fence, QUEUE_TRANSIENT, err->msg, &retry,
                              &ignored);
            return reply->n_tasks ? STATUS_OK : s;
        }
        reply->tasks[reply->n_tasks++] = t;
        bytes += t->plan.len;
    }
    return STATUS_OK;
}

static void give_back(struct lease_wait *w, const Transcode__LeaseReply *reply)
{
    for (size_t i = 0; i < reply->n_tasks; i++) {
        struct err err = ERR_INIT; // else the lease runs out
        (void)!queue_release(w->o->db, worker_id(w->call), reply->tasks[i]->task_id,
                             reply->tasks[i]->fence, &err);
    }
}

static bool try_lease(void *ud, enum hub_why why)
{
    struct lease_wait *w = ud;
    struct err err = ERR_INIT;
    Transcode__LeaseReply reply;
    transcode__lease_reply__init(&reply);
    enum status s = STATUS_OK;
    if (why == HUB_CANCELLED)
        s = err_set(&err, STATUS_CANCELLED, "lease: cancelled");
    else if (why == HUB_STOPPING)
        s = err_set(&err, STATUS_UNAVAILABLE, "the orchestrator is stopping");
    else if (why == HUB_EVENT)
        s = claim_all(w, &reply, &err);
    if (why == HUB_EVENT && s == STATUS_OK && reply.n_tasks == 0)
        return false;
    if (reply.n_tasks && cancel_is_fired(rpc_call_cancel(w->call)))
        give_back(w, &reply);
    rpc_call_finish(w->call, s, &reply.base, &err);
    mem_free(w);
    return true;
}

static enum status lease(struct rpc_call *call, const Transcode__LeaseRequest *req,
                         Transcode__LeaseReply *ret, struct err *err)
{
    (void)ret;
    struct orch *o = rpc_call_self(call);
    if (req->slots < 1 || req->slots > MAX_SLOTS || req->wait_ms < 0 ||
        req->wait_ms > ORCH_MAX_WAIT_MS)
        return err_set(err, STATUS_INVALID_ARGUMENT, "lease: %d slots for %lld ms", req->slots,
                       (long long)req->wait_ms);
    enum status s =
        db_query(o->db, "UPDATE orchestrator.worker SET last_seen = now() WHERE id = $1::text",
                 DB_PARAMS(DB_TEXT(worker_id(call))), NULL, err);
    if (s != STATUS_OK)
        return s;
    struct lease_wait *w = mem_alloc(sizeof *w);
    if (!w)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "lease: out of memory");
    *w = (struct lease_wait){
        .o = o, .call = call, .slots = req->slots, .wanted_only = req->wanted_only};
    rpc_call_defer(call);
    // Without a wait it is still asked once: HUB_EVENT comes before a deadline that is not over.
    int64_t wait_ms = req->wait_ms > 50 ? req->wait_ms : 50;
    s = hub_park(o->hub, HUB_TASKS, NULL, time_deadline_in_ms(wait_ms), rpc_call_cancel(call),
                 try_lease, w, err);
    if (s != STATUS_OK) {
        rpc_call_finish(call, s, NULL, err);
        mem_free(w);
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- Renew, Release

static const char *stage_name(Transcode__Stage stage)
{
    switch ((int)stage) {
    case TRANSCODE__STAGE__FETCH:
        return "fetch";
    case TRANSCODE__STAGE__ENCODE:
        return "encode";
    case TRANSCODE__STAGE__STORE:
        return "store";
    default: // a number from the wire
        return "";
    }
}

static enum status check_leases(size_t n, Transcode__LeaseProgress *const *leases, struct err *err)
{
    if (n > MAX_LEASES)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%zu leases in one call; at most %d", n,
                       MAX_LEASES);
    for (size_t i = 0; i < n; i++)
        if (!uuid_is_valid(leases[i]->task_id))
            return err_set(err, STATUS_INVALID_ARGUMENT, "bad task id %.40s", leases[i]->task_id);
    return STATUS_OK;
}

static enum status renew(struct rpc_call *call, const Transcode__RenewRequest *req,
                         Transcode__RenewReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    enum status s = check_leases(req->n_leases, req->leases, err);
    if (s == STATUS_OK && (req->wait_ms < 0 || req->wait_ms > ORCH_MAX_WAIT_MS))
        s = err_set(err, STATUS_INVALID_ARGUMENT, "renew: waits %lld ms", (long long)req->wait_ms);
    if (s != STATUS_OK)
        return s;
    ret->lost = arena_array(rpc_call_arena(call), req->n_leases + 1, sizeof ret->lost[0]);
    ret->yield = arena_array(rpc_call_arena(call), req->n_leases + 1, sizeof ret->yield[0]);
    if (!ret->lost || !ret->yield)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "renew: out of memory");
    char away[ORCH_AWAY_TEXT];
    backends_away(o->backends, away, sizeof away);
    for (size_t i = 0; s == STATUS_OK && i < req->n_leases; i++) {
        const Transcode__LeaseProgress *l = req->leases[i];
        double part = l->total > 0 ? (double)l->done / (double)l->total : 0.0;
        struct queue_progress p = {.task = l->task_id,
                                   .stage = stage_name(l->stage),
                                   .fence = l->fence,
                                   .progress = part < 0.0   ? 0.0
                                               : part > 1.0 ? 1.0
                                                            : part};
        bool held = false, yield = false;
        s = queue_renew(o->db, worker_id(call), &p, &held, err);
        if (s == STATUS_OK && !held)
            ret->lost[ret->n_lost++] = l->task_id;
        else if (s == STATUS_OK)
            s = demand_yields(o->db, l->task_id, l->fence, away, &yield, err);
        if (yield)
            ret->yield[ret->n_yield++] = l->task_id;
    }
    if (s == STATUS_OK)
        s = db_query(o->db, "UPDATE orchestrator.worker SET last_seen = now() WHERE id = $1::text",
                     DB_PARAMS(DB_TEXT(worker_id(call))), NULL, err);
    if (s == STATUS_OK && req->wait_ms && ret->n_lost == 0 && ret->n_yield == 0)
        s = leases_watch(call, req, err);
    return s;
}

static enum status release(struct rpc_call *call, const Transcode__ReleaseRequest *req,
                           Transcode__ReleaseReply *ret, struct err *err)
{
    (void)ret;
    struct orch *o = rpc_call_self(call);
    enum status s = check_leases(req->n_leases, req->leases, err);
    for (size_t i = 0; s == STATUS_OK && i < req->n_leases; i++)
        s = queue_release(o->db, worker_id(call), req->leases[i]->task_id, req->leases[i]->fence,
                          err);
    return s;
}

// ---------------------------------------------------------------- Complete, Fail

static enum status read_output(const Transcode__Output *in, struct publish_output *out,
                               struct err *err)
{
    if (in->digest.len != ORCH_DIGEST_SIZE || in->init_digest.len != ORCH_DIGEST_SIZE)
        return err_set(err, STATUS_INVALID_ARGUMENT, "a digest has %d bytes", ORCH_DIGEST_SIZE);
    *out = (struct publish_output){
        .rendition = in->rendition,
        .segment = in->segment,
        .digest = in->digest.data,
        .size = in->size,
        .first_pts = in->first_pts,
        .duration = in->duration,
        .samples = in->samples,
        .repeated = in->repeated,
        .dropped = in->dropped,
        .init_digest = in->init_digest.data,
    };
    return STATUS_OK;
}

static enum status read_outputs(struct rpc_call *call, size_t n, Transcode__Output *const *in,
                                struct publish_result *ret, struct err *err)
{
    if (n > MAX_OUTPUTS)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%zu outputs in one call; at most %d", n,
                       MAX_OUTPUTS);
    struct publish_output *outputs = arena_array(rpc_call_arena(call), n + 1, sizeof *outputs);
    if (!outputs)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "outputs: out of memory");
    for (size_t i = 0; i < n; i++) {
        enum status s = read_output(in[i], &outputs[i], err);
        if (s != STATUS_OK)
            return s;
    }
    ret->outputs = outputs;
    ret->n_outputs = n;
    return STATUS_OK;
}

static struct queue_seconds read_seconds(const Transcode__StageSeconds *s)
{
    return s ? (struct queue_seconds){s->fetch, s->encode, s->store, s->cpu}
             : (struct queue_seconds){0};
}

static enum status publish_(struct rpc_call *call, const Transcode__PublishRequest *req,
                            Transcode__PublishReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    if (!uuid_is_valid(req->task_id))
        return err_set(err, STATUS_INVALID_ARGUMENT, "bad task id %.40s", req->task_id);
    struct publish_result r = {.worker = worker_id(call),
                               .task = req->task_id,
                               .fence = req->fence,
                               .seconds = read_seconds(req->seconds),
                               .part = true};
    struct publish_verdict v = {0};
    enum status s = read_outputs(call, req->n_outputs, req->outputs, &r, err);
    if (s == STATUS_OK)
        s = publish(o, &r, &v, err);
    ret->yield = v.yield;
    return s;
}

static enum status complete(struct rpc_call *call, const Transcode__CompleteRequest *req,
                            Transcode__CompleteReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    if (!uuid_is_valid(req->task_id))
        return err_set(err, STATUS_INVALID_ARGUMENT, "bad task id %.40s", req->task_id);
    struct publish_result r = {
        .worker = worker_id(call),
        .task = req->task_id,
        .fence = req->fence,
        .plan = req->plan.data,
        .plan_len = req->plan.len,
        .left_out = req->left_out,
        .seconds = read_seconds(req->seconds),
    };
    struct media_loudness loudness;
    if (req->loudness) {
        loudness = (struct media_loudness){.integrated_mlufs = req->loudness->integrated_mlufs,
                                           .range_mlu = req->loudness->range_mlu,
                                           .true_peak_mdb = req->loudness->true_peak_mdb};
        r.loudness = &loudness;
    }
    struct publish_verdict v = {0};
    enum status s = read_outputs(call, req->n_outputs, req->outputs, &r, err);
    if (s == STATUS_OK)
        s = publish(o, &r, &v, err);
    if (s != STATUS_OK)
        return s;
    ret->duplicate = v.duplicate;
    sweeper_kick(o->sweeper);
    return STATUS_OK;
}

static const struct {
    enum queue_failure why;
    const char *text; // when the worker gives none
} failures[] = {
    [TRANSCODE__FAIL_CLASS__FAIL_CLASS_UNSPECIFIED] = {QUEUE_TRANSIENT,
                                                       "failed for no reason given"},
    [TRANSCODE__FAIL_CLASS__REJECTED] = {QUEUE_REJECTED, "the file cannot be used"},
    [TRANSCODE__FAIL_CLASS__TRANSIENT] = {QUEUE_TRANSIENT, "failed; may be tried again"},
    [TRANSCODE__FAIL_CLASS__CRASH] = {QUEUE_CRASH, "the codec process died"},
    [TRANSCODE__FAIL_CLASS__TIMEOUT] = {QUEUE_TRANSIENT, "the codec process took too long"},
    [TRANSCODE__FAIL_CLASS__RESOURCE] = {QUEUE_TRANSIENT, "the worker is short of resources"},
    [TRANSCODE__FAIL_CLASS__MISMATCH] = {QUEUE_TRANSIENT, "no check, and yet refuted"},
};

static enum status fail(struct rpc_call *call, const Transcode__FailRequest *req,
                        Transcode__FailReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    if (!uuid_is_valid(req->task_id) || (size_t)req->class_ >= N_ELEMENTS(failures))
        return err_set(err, STATUS_INVALID_ARGUMENT, "bad task id or class of failure");
    char message[MAX_MESSAGE + 1];
    str_copy(message, sizeof message, *req->message ? req->message : failures[req->class_].text);
    bool will_retry = false, handled = false, transient = false;
    enum status s = verify_failed(o, worker_id(call), req, message, &handled, &transient, err);
    if (s != STATUS_OK || handled)
        return s;
    s = queue_fail(o->db, worker_id(call), req->task_id, req->fence,
                   transient ? QUEUE_TRANSIENT : failures[req->class_].why, message, &will_retry,
                   err);
    if (s != STATUS_OK)
        return s;
    log_info(rpc_call_log(call), "task_failed", F_STR("task", req->task_id),
             F_STR("worker", worker_id(call)), F_STR("reason", message),
             F_BOOL("will_retry", will_retry));
    ret->will_retry = will_retry;
    sweeper_kick(o->sweeper);
    return STATUS_OK;
}

enum status work_serve(struct orch *o, struct rpc_server *s, struct err *err)
{
    static const struct transcode_work_handlers handlers = {.join = join,
                                                            .lease = lease,
                                                            .renew = renew,
                                                            .publish = publish_,
                                                            .complete = complete,
                                                            .fail = fail,
                                                            .release = release};
    return transcode_work_serve(s, &handlers, o, err);
}
