// The orchestrator's start and stop.
#include "orchestrator/orchestrator.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "orchestrator/internal.h"

// ---------------------------------------------------------------- small shared things

Google__Protobuf__Timestamp *orch_timestamp(struct arena *a, int64_t us)
{
    Google__Protobuf__Timestamp *t = us ? arena_alloc(a, sizeof *t) : NULL;
    if (!t)
        return NULL;
    google__protobuf__timestamp__init(t);
    t->seconds = us / 1000000;
    t->nanos = (int32_t)(us % 1000000 * 1000);
    return t;
}

Common__Loudness *orch_loudness(struct arena *a, const struct media_loudness *l)
{
    Common__Loudness *m = arena_alloc(a, sizeof *m);
    if (!m)
        return NULL;
    common__loudness__init(m);
    m->integrated_mlufs = l->integrated_mlufs;
    m->range_mlu = l->range_mlu;
    m->true_peak_mdb = l->true_peak_mdb;
    return m;
}

ProtobufCBinaryData orch_bytes(struct arena *a, const void *p, size_t n)
{
    uint8_t *copy = n ? arena_dup(a, p, n) : NULL;
    return (ProtobufCBinaryData){.data = copy, .len = copy ? n : 0};
}

char *orch_str(struct arena *a, const char *s)
{
    char *copy = s && *s ? arena_strdup(a, s) : NULL;
    // What protobuf-c's own initialiser uses for an absent string; never written to.
    return copy ? copy : (char *)(uintptr_t)protobuf_c_empty_string;
}

int64_t orch_page_size(const Common__Page *p)
{
    if (!p || p->size <= 0)
        return 50;
    return p->size < 200 ? p->size : 200;
}

const char *orch_page_after(const Common__Page *p)
{
    return p && p->token ? p->token : "";
}

const struct svc_node *orch_origin_node(const struct orch *o, const char *node_id)
{
    for (size_t i = 0; i < o->env.n_origins; i++)
        if (str_eq(o->env.origins[i]->id, node_id))
            return o->env.current ? o->env.current(o->env.ud, node_id) : o->env.origins[i];
    return NULL;
}

struct rpc_client *orch_origin(struct orch *o, const char *node_id, struct err *err)
{
    if (!orch_origin_node(o, node_id)) {
        (void)err_set(err, STATUS_UNAVAILABLE, "origin %s is not in nodes.ini", node_id);
        return NULL;
    }
    return o->env.origin(o->env.ud, node_id, err);
}

// ---------------------------------------------------------------- the orchestrator

// The listener's thread: what changed in the database wakes who waits for it here.
static void on_notify(void *ud, const char *channel, const char *payload)
{
    struct orch *o = ud;
    if (!payload) { // connected (again): anything may have happened meanwhile
        items_changed(o->items, NULL);
        hub_wake(o->hub, HUB_TASKS, NULL);
        hub_wake(o->hub, HUB_ITEM, NULL);
        hub_wake(o->hub, HUB_LEASES, NULL);
    } else if (str_eq(channel, ORCH_UNPUBLISHED_CHANNEL)) {
        items_unpublished(o->items, payload);
    } else if (str_eq(channel, ORCH_LOST_CHANNEL)) {
        hub_wake(o->hub, HUB_LEASES, NULL);
    } else if (str_eq(channel, ORCH_TASK_CHANNEL)) {
        hub_wake(o->hub, HUB_TASKS, NULL);
    } else {
        items_changed(o->items, payload);
        hub_wake(o->hub, HUB_ITEM, payload);
    }
    // Not the sweeper: every orchestrator hears this, and who made the change kicks its own.
}

enum status orch_new(const struct orch_env *env, struct orch **ret, struct err *err)
{
    static const char *const channels[] = {ORCH_TASK_CHANNEL, ORCH_ITEM_CHANNEL, ORCH_LOST_CHANNEL,
                                           ORCH_UNPUBLISHED_CHANNEL};
    static const unsigned readers = ROLE_NODE_ORCHESTRATOR | ROLE_NODE_STORE | ROLE_NODE_GATEWAY;
    static const struct event_topic topics[] = {
        {"upload", readers}, {"transcode", readers}, {"swarm", readers | ROLE_NODE_ORIGIN}};
    struct orch *o = mem_alloc(sizeof *o);
    if (!o)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "orchestrator: out of memory");
    o->env = *env;
    o->db = env->db;
    o->log = env->log;
    o->hub = hub_new(env->pool);
    o->items = items_new(env->db);
    o->backends = backends_new(o);
    enum status s = o->hub && o->items && o->backends
                        ? STATUS_OK
                        : err_set(err, STATUS_RESOURCE_EXHAUSTED, "orchestrator: out of memory");
    if (s == STATUS_OK)
        s = event_log_new(env->db, env->listen, ORCH_SCHEMA, topics, N_ELEMENTS(topics), env->log,
                          &o->events, err);
    if (s == STATUS_OK) {
        o->listener = db_listen(env->listen, channels, N_ELEMENTS(channels), on_notify, o, err);
        s = o->listener ? STATUS_OK : err ? err->code : STATUS_INTERNAL;
    }
    if (s == STATUS_OK && !(o->sweeper = sweeper_new(o)))
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "orchestrator: cannot start its threads");
    if (s != STATUS_OK) {
        orch_free(o);
        return s;
    }
    *ret = o;
    return STATUS_OK;
}

enum status orch_serve(struct orch *o, struct rpc_server *server, struct err *err)
{
    static enum status (*const parts[])(struct orch *, struct rpc_server *, struct err *) = {
        uploads_serve, work_serve, playback_serve, jobs_serve, admin_serve, subtitles_serve};
    enum status s = event_log_serve(o->events, server, err);
    for (size_t i = 0; s == STATUS_OK && i < N_ELEMENTS(parts); i++)
        s = parts[i](o, server, err);
    return s;
}

void orch_drain(struct orch *o)
{
    hub_close(o->hub);
    event_log_close(o->events);
}

void orch_free(struct orch *o)
{
    if (!o)
        return;
    hub_stop(o->hub); // its waiters use all of the rest
    sweeper_free(o->sweeper);
    if (o->listener)
        db_listener_free(o->listener);
    backends_free(o->backends);
    event_log_free(o->events);
    items_free(o->items);
    hub_free(o->hub);
    mem_free(o);
}

// ---------------------------------------------------------------- the role

struct role {
    struct svc *svc;
    struct db *db;
    struct db_opts db_opts;
    const struct svc_node **origins;
    struct orch *orch;
};

static struct rpc_client *store_client(void *ud, struct err *err)
{
    struct role *r = ud;
    return svc_client(r->svc, ROLE_NODE_STORE, NULL, err);
}

static struct rpc_client *origin_client(void *ud, const char *node_id, struct err *err)
{
    struct role *r = ud;
    return svc_client(r->svc, ROLE_NODE_ORIGIN, node_id, err);
}

static const struct svc_node *current_origin(void *ud, const char *node_id)
{
    struct role *r = ud;
    return svc_nodes_find(r->svc->nodes, node_id);
}

static enum status verify_media(void *ud, const char *token, struct svc_media_claims *ret,
                                struct err *err)
{
    struct role *r = ud;
    return svc_tokens_verify_media(r->svc->tokens, token, ret, err);
}

static enum status list_origins(struct role *r, size_t *ret_n, struct err *err)
{
    size_t n = 0;
    const struct svc_node *node = NULL;
    while ((node = svc_nodes_next(r->svc->nodes, ROLE_NODE_ORIGIN, node)))
        n++;
    r->origins = mem_array(n + 1, sizeof(struct svc_node *));
    if (!r->origins)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "orchestrator: out of memory");
    while (*ret_n < n && (node = svc_nodes_next(r->svc->nodes, ROLE_NODE_ORIGIN, node)))
        r->origins[(*ret_n)++] = node;
    return STATUS_OK;
}

static void stop(void *self)
{
    struct role *r = self;
    orch_free(r->orch);
    db_free(r->db);
    mem_free(r->origins);
    mem_free(r);
}

static enum status start(struct svc *svc, const void *options, void **ret_self, struct err *err)
{
    const struct orch_options *opt = options;
    struct role *r = mem_alloc(sizeof *r);
    if (!r)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "orchestrator: out of memory");
    r->svc = svc;
    r->db_opts = (struct db_opts){
        .conninfo = opt->common.database ? opt->common.database : "",
        .name = "cauce orchestrator",
        .max_conns = 16,
    };
    size_t n_origins = 0;
    enum status s = list_origins(r, &n_origins, err);
    if (s == STATUS_OK && !(r->db = db_new(&r->db_opts, err)))
        s = err && err->code ? err->code : STATUS_INTERNAL;
    if (s == STATUS_OK) {
        struct orch_env env = {
            .log = svc->log,
            .pool = svc->pool,
            .db = r->db,
            .listen = &r->db_opts,
            .options = opt,
            .origins = r->origins,
            .n_origins = n_origins,
            .current = current_origin,
            .store = store_client,
            .origin = origin_client,
            .verify_media = verify_media,
            .ud = r,
        };
        s = orch_new(&env, &r->orch, err);
    }
    if (s == STATUS_OK)
        s = svc_publish_events(svc, r->orch->events, &opt->events, err);
    if (s == STATUS_OK)
        s = orch_serve(r->orch, svc->server, err);
    if (s != STATUS_OK) {
        stop(r);
        return s;
    }
    *ret_self = r;
    return STATUS_OK;
}

static bool ready(void *self, char *reason, size_t reason_size)
{
    const struct role *r = self;
    if (__atomic_load_n(&r->orch->db_answers, __ATOMIC_RELAXED))
        return true;
    str_copy(reason, reason_size, "the database does not answer, or is not migrated");
    return false;
}

static void drain(void *self)
{
    struct role *r = self;
    orch_drain(r->orch);
}

#define OPT(field) offsetof(struct orch_options, field)
static const struct cfg_option rows[] = {
    {"max-upload", CFG_BYTES, OPT(max_upload_bytes), "64G", 1, INT64_C(1) << 40,
     "largest file that is taken"},
    {"quota", CFG_BYTES, OPT(quota_bytes), "0", 0, INT64_MAX,
     "bytes that one user's uploads may hold; 0: no limit"},
    {"max-open-uploads", CFG_I64, OPT(max_open_uploads), "100", 1, 1000000,
     "uploads that one user may have open at once"},
    {"upload-ttl", CFG_DURATION_MS, OPT(upload_ttl_ms), "7d", 60000, INT64_MAX,
     "an upload that nobody finishes is dropped after this"},
    {"failed-ttl", CFG_DURATION_MS, OPT(failed_ttl_ms), "7d", 1000, INT64_MAX,
     "how long the source of a failed job is kept for a retry"},
    {"verify-first", CFG_I64, OPT(verify_first), "3", 0, INT64_MAX,
     "how many of a new worker's results are checked by decoding them"},
    {"verify-one-in", CFG_I64, OPT(verify_one_in), "100", 0, INT64_MAX,
     "of how many later ones one is; 0: none"},
    {"local-worker", CFG_STRING, OPT(local_worker), "off", 0, 0,
     "node id (of role transcode) that this host works as while no other worker is up, or off"},
    {"local-worker-after", CFG_DURATION_MS, OPT(local_worker_after_ms), "60s", 20000, INT64_MAX,
     "how long no other worker must have been up for that"},
    SVC_EVENT_OPTION_ROWS(struct orch_options, events, "30d", "90d"),
};

static void shut_out(void *self, const char *node_id)
{
    struct role *r = self;
    sweeper_shut_out(r->orch->sweeper, node_id);
}

const struct svc_role orchestrator_role = {
    .name = "orchestrator",
    .role = ROLE_NODE_ORCHESTRATOR,
    .spec = {.section = "orchestrator",
             .usage = "cauced orchestrator [options]",
             .options = rows,
             .n_options = N_ELEMENTS(rows)},
    .options_size = sizeof(struct orch_options),
    .start = start,
    .ready = ready,
    .drain = drain,
    .stop = stop,
    .shut_out = shut_out,
};
