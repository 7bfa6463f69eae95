// The orchestrator's handlers over real sealed connections and a PostgreSQL of its own; the origins
// and the store are fakes behind the same server.
#include "orchestrator/internal.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cauce/orchestrator.rpc.h"
#include "cauce/origin.rpc.h"
#include "cauce/store.rpc.h"
#include "cauce/transcode.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "media/image.h"
#include "orchestrator/test_plan.h"
#include "support/pg.h"

#define NODES "inproc://orchestrator-test-nodes"
#define USERS "inproc://orchestrator-test-users"
#define SOURCE_SIZE 1000000
#define ANA "018f2b6e-7d3a-7c11-9a55-00000000000a"
#define BOB "018f2b6e-7d3a-7c11-9a55-00000000000b"

struct world {
    struct test_pg *pg;
    struct db *db;
    struct db_opts db_opts;
    struct orch_options options;
    uint8_t operator_secret[64];
    struct chan_trust trust;
    struct chan_identity server, orchestrator, worker[2], gateway;
    struct svc_node origins[3];
    const struct svc_node *origin_list[3];
    struct work_pool *pool;
    struct rpc_server *rpc;
    struct rpc_client *inner, *as_user, *as_worker[2], *as_gateway;
    struct orch *o;
    uint8_t next_digest;

    // what the fakes do and saw
    pthread_mutex_t lock;
    char down[64];         // this origin does not answer
    enum status create_st; // of Catalog.Create
    enum status finish_st; // of Upload.Finish
    int n_created, n_finished, n_unpinned, n_dropped, n_put;
    char spied[UUID_SIZE]; // an item
    int n_forgotten;       // of its objects that were unpinned by their digests
    bool proven;           // of the last Upload.Create
    char told[256];        // states of SetMedia, "planned..."
};
static struct world w;

#define must(call)                                                                                 \
    do {                                                                                           \
        struct err err = ERR_INIT;                                                                 \
        enum status must_s_ = (call);                                                              \
        if (must_s_ != STATUS_OK)                                                                  \
            fail_msg("%s: %s", status_name(must_s_), err.msg);                                     \
    } while (0)
#define must_fail(expected, call)                                                                  \
    do {                                                                                           \
        struct err err = ERR_INIT;                                                                 \
        enum status must_s_ = (call);                                                              \
        if (must_s_ != (expected))                                                                 \
            fail_msg("%s instead of %s: %s", status_name(must_s_), status_name(expected),          \
                     err.msg);                                                                     \
    } while (0)

// ---------------------------------------------------------------- fakes

static bool is_down(const char *node)
{
    pthread_mutex_lock(&w.lock);
    bool down = str_eq(w.down, node);
    pthread_mutex_unlock(&w.lock);
    return down;
}

static enum status fake_create(struct rpc_call *c, const Origin__CreateRequest *req,
                               Origin__CreateReply *ret, struct err *err)
{
    (void)c, (void)err;
    pthread_mutex_lock(&w.lock);
    w.proven = req->proven;
    pthread_mutex_unlock(&w.lock);
    ret->missing_bytes = req->size;
    return STATUS_OK;
}

static enum status fake_finish(struct rpc_call *c, const Origin__FinishRequest *req,
                               Origin__FinishReply *ret, struct err *err)
{
    pthread_mutex_lock(&w.lock);
    w.n_finished++;
    enum status s = w.finish_st;
    pthread_mutex_unlock(&w.lock);
    if (s != STATUS_OK)
        return err_set(err, s, "3 leaves are missing");
    AUTO(db_result_free_p) struct db_result *r = NULL;
    s = db_query(w.db, "SELECT digest, size FROM orchestrator.upload WHERE id = $1::uuid",
                 DB_PARAMS(DB_TEXT(req->upload_id)), &r, err);
    if (s != STATUS_OK)
        return s;
    size_t len = 0;
    const uint8_t *digest = db_bytes(r, 0, 0, &len);
    ret->digest = orch_bytes(rpc_call_arena(c), digest, len);
    ret->size = db_i64(r, 0, 1);
    return STATUS_OK;
}

static enum status fake_drop(struct rpc_call *c, const Origin__DropRequest *req,
                             Origin__DropReply *ret, struct err *err)
{
    (void)c, (void)req, (void)ret, (void)err;
    pthread_mutex_lock(&w.lock);
    w.n_dropped++;
    pthread_mutex_unlock(&w.lock);
    return STATUS_OK;
}

static enum status fake_unpin(struct rpc_call *c, const Origin__PinRequest *req,
                              Origin__PinReply *ret, struct err *err)
{
    (void)c, (void)ret, (void)err;
    pthread_mutex_lock(&w.lock);
    w.n_unpinned += req->n_digests == 0;
    w.n_forgotten += str_eq(req->item_id, w.spied) ? (int)req->n_digests : 0;
    pthread_mutex_unlock(&w.lock);
    return STATUS_OK;
}

static enum status fake_stat(struct rpc_call *c, const Origin__StatRequest *req,
                             Origin__StatReply *ret, struct err *err)
{
    (void)c, (void)req, (void)err;
    ret->exists = true;
    ret->size = SOURCE_SIZE;
    return STATUS_OK;
}

static enum status fake_usage(struct rpc_call *c, const Origin__UsageRequest *req,
                              Origin__UsageReply *ret, struct err *err)
{
    (void)c, (void)req, (void)err;
    ret->free_bytes = INT64_C(1) << 40;
    return STATUS_OK;
}

static enum status fake_item(struct rpc_call *c, const Store__CreateItemRequest *req,
                             Store__Item *ret, struct err *err)
{
    (void)c, (void)req, (void)ret;
    pthread_mutex_lock(&w.lock);
    w.n_created++;
    enum status s = w.create_st;
    pthread_mutex_unlock(&w.lock);
    return s == STATUS_OK ? s : err_set(err, s, "the store is away");
}

static enum status fake_set_media(struct rpc_call *c, const Store__SetMediaRequest *req,
                                  Store__Item *ret, struct err *err)
{
    (void)c, (void)ret, (void)err;
    pthread_mutex_lock(&w.lock);
    size_t n = strlen(w.told);
    snprintf(w.told + n, sizeof w.told - n, "%s ", req->state);
    pthread_mutex_unlock(&w.lock);
    return STATUS_OK;
}

static enum status fake_check(struct rpc_call *c, const Store__CheckRequest *req,
                              Store__CheckReply *ret, struct err *err)
{
    (void)req, (void)err;
    struct arena *a = rpc_call_arena(c);
    const struct rpc_user *u = rpc_call_user(c);
    ret->allowed = u && str_eq(u->id, ANA);
    ret->reason = orch_str(a, ret->allowed ? "owner" : "not_bought");
    ret->media_token = orch_str(a, "media-token-of-ana");
    return STATUS_OK;
}

static enum status fake_put(struct rpc_call *c, Origin__PutObjectReply *ret, struct err *err)
{
    (void)ret;
    Origin__PutObjectRequest *m = NULL;
    enum status s;
    pthread_mutex_lock(&w.lock);
    w.n_put++;
    pthread_mutex_unlock(&w.lock);
    while ((s = origin_object_put_read(c, &m, err)) == STATUS_OK && m)
        ;
    return s;
}

static void serve_fakes(struct rpc_server *s)
{
    static const struct origin_upload_handlers uploads = {
        .create = fake_create, .finish = fake_finish, .drop = fake_drop};
    static const struct origin_object_handlers objects = {
        .stat = fake_stat, .unpin = fake_unpin, .usage = fake_usage, .put = fake_put};
    static const struct store_catalog_handlers catalog = {.create = fake_item,
                                                          .set_media = fake_set_media};
    static const struct store_entitlement_handlers rights = {.check = fake_check};
    must(origin_upload_serve(s, &uploads, NULL, &err));
    must(origin_object_serve(s, &objects, NULL, &err));
    must(store_catalog_serve(s, &catalog, NULL, &err));
    must(store_entitlement_serve(s, &rights, NULL, &err));
}

static struct rpc_client *get_store(void *ud, struct err *err)
{
    (void)ud, (void)err;
    return w.inner;
}

static struct rpc_client *get_origin(void *ud, const char *node_id, struct err *err)
{
    (void)ud;
    if (!is_down(node_id))
        return w.inner;
    backends_report(w.o->backends, node_id, STATUS_UNAVAILABLE);
    (void)err_set(err, STATUS_UNAVAILABLE, "%s is down", node_id);
    return NULL;
}

static enum status verify_media(void *ud, const char *token, struct svc_media_claims *ret,
                                struct err *err)
{
    (void)ud;
    if (!str_starts_with(token, "ana:"))
        return err_set(err, STATUS_UNAUTHENTICATED, "bad media token");
    *ret = (struct svc_media_claims){.sub = ANA, .rights = SVC_RIGHT_STREAM};
    str_copy(ret->item, sizeof ret->item, token + 4);
    return STATUS_OK;
}

static enum status verify_user(void *ud, const char *token, size_t len, struct rpc_user *ret,
                               struct err *err)
{
    (void)ud;
    bool ana = len == 3 && memcmp(token, "ana", 3) == 0,
         bob = len == 3 && memcmp(token, "bob", 3) == 0;
    if (!ana && !bob)
        return err_set(err, STATUS_UNAUTHENTICATED, "no such user");
    *ret = (struct rpc_user){.roles = ROLE_USER | ROLE_CREATOR,
                             .exp_wall_ms = time_wall_ms() + 3600000};
    str_copy(ret->id, sizeof ret->id, ana ? ANA : BOB);
    str_copy(ret->name, sizeof ret->name, ana ? "ana" : "bob");
    return STATUS_OK;
}

// ---------------------------------------------------------------- the world

static void make_identity(struct chan_identity *id, unsigned role_bit, const char *node)
{
    unsigned role = (unsigned)__builtin_ctz(role_bit);
    struct chan_grant g = {.role = role,
                           .not_before_s = time_wall_ms() / 1000 - 60,
                           .not_after_s = time_wall_ms() / 1000 + 3600};
    struct buf b;
    crypto_dh_keypair(id->public_key, id->secret);
    memcpy(g.key, id->public_key, 32);
    str_copy(g.node_id, sizeof g.node_id, node);
    buf_init(&b, sizeof id->grant);
    must(chan_grant_sign(&b, &g, w.operator_secret, &err));
    memcpy(id->grant, b.data, b.len);
    id->grant_len = b.len;
    buf_done(&b);
}

static struct rpc_client *make_client(const char *url, const struct chan_identity *id)
{
    struct rpc_endpoint e = {.url = url};
    memcpy(e.key, w.server.public_key, 32);
    struct rpc_client_opts o = {
        .identity = id, .trust = id ? &w.trust : NULL, .endpoints = &e, .n_endpoints = 1};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    return c;
}

static void start_orchestrator(void)
{
    struct orch_env env = {
        .pool = w.pool,
        .db = w.db,
        .listen = &w.db_opts,
        .options = &w.options,
        .origins = w.origin_list,
        .n_origins = 3,
        .store = get_store,
        .origin = get_origin,
        .verify_media = verify_media,
    };
    must(orch_new(&env, &w.o, &err));
}

static int setup(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    w.pg = test_pg_new(); // forks: before any thread
    w.db = test_pg_db(w.pg, 16, true);
    w.db_opts = (struct db_opts){.conninfo = test_pg_conninfo(w.pg)};
    w.options = (struct orch_options){.max_upload_bytes = INT64_C(1) << 40,
                                      .max_open_uploads = 20,
                                      .upload_ttl_ms = 86400000,
                                      .failed_ttl_ms = 86400000};
    static const char *const kinds[] = {"video", "video", "audio"};
    static const char *const names[] = {"video-1", "video-2", "audio-1"};
    for (size_t i = 0; i < 3; i++) {
        w.origins[i].role = ROLE_NODE_ORIGIN;
        str_copy(w.origins[i].id, sizeof w.origins[i].id, names[i]);
        str_copy(w.origins[i].kind, sizeof w.origins[i].kind, kinds[i]);
        str_copy(w.origins[i].url, sizeof w.origins[i].url, NODES);
        w.origin_list[i] = &w.origins[i];
    }
    pthread_mutex_init(&w.lock, NULL);
    if (crypto_init(&e) != STATUS_OK)
        return -1;
    crypto_ed25519_keypair(w.trust.operator_public, w.operator_secret);
    make_identity(&w.server, ROLE_NODE_ORCHESTRATOR, "orchestrator-1");
    make_identity(&w.orchestrator, ROLE_NODE_ORCHESTRATOR, "orchestrator-1");
    make_identity(&w.worker[0], ROLE_NODE_TRANSCODE, "worker-1");
    make_identity(&w.worker[1], ROLE_NODE_TRANSCODE, "worker-2");
    make_identity(&w.gateway, ROLE_NODE_GATEWAY, "gateway-1");
    w.pool = work_pool_new("test", 8, 1000);
    struct rpc_server_opts o = {
        .identity = &w.server, .trust = &w.trust, .pool = w.pool, .verify = verify_user};
    w.rpc = rpc_server_new(&o, &e);
    assert_non_null(w.rpc);
    w.inner = make_client(NODES, &w.orchestrator);
    start_orchestrator();
    must(orch_serve(w.o, w.rpc, &err));
    serve_fakes(w.rpc);
    must(rpc_server_listen(w.rpc, NODES, false, NULL, &err));
    must(rpc_server_listen(w.rpc, USERS, true, NULL, &err));
    w.as_user = make_client(USERS, NULL);
    w.as_worker[0] = make_client(NODES, &w.worker[0]);
    w.as_worker[1] = make_client(NODES, &w.worker[1]);
    w.as_gateway = make_client(NODES, &w.gateway);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    orch_drain(w.o);
    rpc_server_close(w.rpc);
    rpc_server_stop(w.rpc, 2000);
    orch_free(w.o);
    rpc_client_free(w.as_user);
    rpc_client_free(w.as_worker[0]);
    rpc_client_free(w.as_worker[1]);
    rpc_client_free(w.as_gateway);
    rpc_client_free(w.inner);
    rpc_server_free(w.rpc);
    work_pool_free(w.pool);
    rpc_fini();
    db_free(w.db);
    test_pg_free(w.pg);
    return 0;
}

static int reset(void **state)
{
    (void)state;
    must(db_query(w.db,
                  "UPDATE orchestrator.task SET state = 'cancelled' WHERE state IN"
                  " ('available', 'leased', 'retry_wait', 'blocked')",
                  NULL, 0, NULL, &err));
    must(db_query(w.db, "DELETE FROM orchestrator.chore", NULL, 0, NULL, &err));
    must(db_query(w.db, "UPDATE orchestrator.item SET media_sent = media_version", NULL, 0, NULL,
                  &err));
    must(db_query(w.db, "UPDATE orchestrator.worker SET failed_in_row = 0", NULL, 0, NULL, &err));
    pthread_mutex_lock(&w.lock);
    w.down[0] = w.told[0] = '\0';
    w.create_st = w.finish_st = STATUS_OK;
    w.n_created = w.n_finished = w.n_unpinned = w.n_dropped = 0;
    w.n_put = w.n_forgotten = 0;
    w.spied[0] = '\0';
    pthread_mutex_unlock(&w.lock);
    return 0;
}

// Until the query says true; at most ten seconds.
static void wait_for(const char *sql, const char *p)
{
    int64_t until_us = time_deadline_in_ms(10000);
    for (;;) {
        AUTO(db_result_free_p) struct db_result *r = NULL;
        must(db_query(w.db, sql, DB_PARAMS(DB_TEXT(p)), &r, &err));
        if (db_result_n_rows(r) == 1 && db_bool(r, 0, 0))
            return;
        if (time_mono_us() > until_us)
            fail_msg("did not come true: %s", sql);
        must(db_query(w.db, "SELECT pg_sleep(0.02)", NULL, 0, NULL, &err));
    }
}

// ---------------------------------------------------------------- what users and workers do

static const struct rpc_opts ana = {.token = "ana"}, bob = {.token = "bob"};

struct upload {
    char id[UUID_SIZE], item[UUID_SIZE], job[UUID_SIZE];
};

static enum status open_upload(const struct rpc_opts *who, const void *head, size_t head_len,
                               uint8_t digest_byte, struct upload *ret, struct err *err)
{
    uint8_t digest[ORCH_DIGEST_SIZE];
    memset(digest, digest_byte, sizeof digest);
    uint8_t bytes[64];
    memcpy(bytes, head, head_len);
    char name[] = "Holiday.in.Spain.mp4";
    Orchestrator__OpenUploadRequest req;
    orchestrator__open_upload_request__init(&req);
    req.filename = name;
    req.size = head_len ? SOURCE_SIZE : 0;
    req.digest = (ProtobufCBinaryData){.data = digest, .len = sizeof digest};
    req.head = (ProtobufCBinaryData){.data = bytes, .len = head_len};
    AUTO(rpc_message_free_p) Orchestrator__OpenUploadReply *reply = NULL;
    enum status s = orchestrator_upload_open(w.as_user, who, &req, &reply, err);
    if (s == STATUS_OK) {
        str_copy(ret->id, sizeof ret->id, reply->upload_id);
        str_copy(ret->item, sizeof ret->item, reply->item_id);
    }
    return s;
}

static const char mp4_head[] = "\0\0\0\x18"
                               "ftypisom\0\0\2\0isomavc1";

static void open_film(struct upload *u)
{
    must(open_upload(&ana, mp4_head, sizeof mp4_head - 1, ++w.next_digest, u, &err));
}

static enum status commit(struct upload *u, bool sync, const struct rpc_opts *who,
                          char ret_state[16], struct err *err)
{
    Orchestrator__CommitRequest req;
    orchestrator__commit_request__init(&req);
    req.upload_id = u->id;
    req.sync = sync;
    AUTO(rpc_message_free_p) Orchestrator__CommitReply *reply = NULL;
    enum status s = orchestrator_upload_commit(w.as_user, who, &req, &reply, err);
    if (s == STATUS_OK) {
        str_copy(u->job, sizeof u->job, reply->job_id);
        str_copy(ret_state, 16, reply->state);
        char url[64];
        snprintf(url, sizeof url, "/item/%s", u->item);
        assert_string_equal(reply->url, url);
    }
    return s;
}

static enum status commit_as(struct upload *u, char *preset, char **codecs, size_t n_codecs,
                             struct err *e)
{
    Orchestrator__CommitRequest req;
    orchestrator__commit_request__init(&req);
    req.upload_id = u->id;
    req.preset = preset;
    req.video_codecs = codecs;
    req.n_video_codecs = n_codecs;
    AUTO(rpc_message_free_p) Orchestrator__CommitReply *reply = NULL;
    return orchestrator_upload_commit(w.as_user, &ana, &req, &reply, e);
}

static void committed_film(struct upload *u)
{
    char state[16];
    open_film(u);
    must(commit(u, false, &ana, state, &err));
    assert_string_equal(state, "processing");
}

static Transcode__LeaseReply *lease(int who, int slots, int64_t wait_ms)
{
    Transcode__LeaseRequest req;
    transcode__lease_request__init(&req);
    req.slots = slots;
    req.wait_ms = wait_ms;
    Transcode__LeaseReply *reply = NULL;
    must(transcode_work_lease(w.as_worker[who], NULL, &req, &reply, &err));
    return reply;
}

// Consumes the plan.
static enum status complete_plan(int who, const Transcode__Task *t, struct media_plan *plan,
                                 struct err *ret_err)
{
    struct buf b;
    buf_init(&b, MEDIA_PLAN_MAX_BYTES);
    must(media_plan_encode(plan, &b, &err));
    Transcode__CompleteRequest req;
    transcode__complete_request__init(&req);
    req.task_id = t->task_id;
    req.fence = t->fence;
    req.plan = (ProtobufCBinaryData){.data = b.data, .len = b.len};
    AUTO(rpc_message_free_p) Transcode__CompleteReply *reply = NULL;
    enum status s = transcode_work_complete(w.as_worker[who], NULL, &req, &reply, ret_err);
    buf_done(&b);
    media_plan_free(plan);
    return s;
}

static enum status complete_probe(int who, const Transcode__Task *t, uint32_t n_frames,
                                  struct err *ret_err)
{
    return complete_plan(who, t, test_plan(n_frames, SOURCE_SIZE), ret_err);
}

static Transcode__Output *output(struct arena *a, char *name, int32_t segment)
{
    Transcode__Output *o = arena_alloc(a, sizeof *o);
    uint8_t *digests = arena_alloc(a, 64);
    transcode__output__init(o);
    crypto_blake2b(digests, 32, name, strlen(name), NULL, 0, NULL);
    digests[0] = (uint8_t)segment;
    o->rendition = name;
    o->segment = segment;
    o->digest = (ProtobufCBinaryData){.data = digests, .len = 32};
    o->init_digest = (ProtobufCBinaryData){.data = digests + 32, .len = 32};
    o->size = 1000 + segment;
    return o;
}

static Transcode__Output *segment_output(struct arena *a, const struct media_plan *plan, char *name,
                                         int32_t k)
{
    Transcode__Output *o = output(a, name, k);
    size_t which = (size_t)media_plan_find(plan, name);
    const struct media_rendition *r = &plan->renditions[which];
    const struct media_segment *seg = &media_rendition_grid(plan, which)->segments[k];
    crypto_blake2b(o->init_digest.data, 32, r->init, r->init_len, NULL, 0, NULL);
    o->first_pts = seg->start;
    o->samples = (int32_t)media_rendition_samples(plan, which, (size_t)k);
    o->duration = r->kind == MEDIA_AUDIO ? (int64_t)o->samples * r->frame_samples : seg->duration;
    return o;
}

enum spoil {
    SPOIL_NOTHING,
    SPOIL_DURATION,
    SPOIL_START,
    SPOIL_SAMPLES,
    SPOIL_INIT,
    SPOIL_SIZE,
    SPOIL_SEGMENT,
    N_SPOILS
};

static void spoil_output(Transcode__Output *o, enum spoil what)
{
    switch (what) {
    case SPOIL_DURATION:
        o->duration++;
        return;
    case SPOIL_START:
        o->first_pts--;
        return;
    case SPOIL_SAMPLES:
        o->samples++;
        return;
    case SPOIL_INIT:
        o->init_digest.data[31] ^= 1;
        return;
    case SPOIL_SIZE:
        o->size = 0;
        return;
    case SPOIL_SEGMENT:
        o->segment += 1000;
        return;
    case SPOIL_NOTHING:
    case N_SPOILS:
        return;
    }
}

// Exactly what the plan says, but for what is spoilt of the last output.
static enum status complete_chunk(int who, const Transcode__Task *t, enum spoil what,
                                  bool *ret_duplicate, struct err *ret_err)
{
    AUTO(media_plan_free_p) struct media_plan *plan = NULL;
    must(media_plan_decode(t->plan.data, t->plan.len, &plan, &err));
    AUTO(arena_free_p) struct arena *a = arena_new(1 << 20);
    Transcode__CompleteRequest req;
    transcode__complete_request__init(&req);
    req.task_id = t->task_id;
    req.fence = t->fence;
    req.outputs = arena_array(a, t->n_renditions * (size_t)t->n_segments, sizeof req.outputs[0]);
    for (size_t i = 0; i < t->n_renditions; i++) {
        for (int32_t k = t->first_segment; k < t->first_segment + t->n_segments; k++)
            req.outputs[req.n_outputs++] = t->kind == TRANSCODE__TASK_KIND__CHUNK
                                               ? segment_output(a, plan, t->renditions[i], k)
                                               : output(a, t->renditions[i], k);
    }
    spoil_output(req.outputs[req.n_outputs - 1], what);
    Common__Loudness loudness = COMMON__LOUDNESS__INIT;
    loudness.integrated_mlufs = -30000;
    loudness.range_mlu = 5000;
    loudness.true_peak_mdb = -20000;
    if (t->kind == TRANSCODE__TASK_KIND__MEASURE)
        req.loudness = &loudness;
    AUTO(rpc_message_free_p) Transcode__CompleteReply *reply = NULL;
    enum status s = transcode_work_complete(w.as_worker[who], NULL, &req, &reply, ret_err);
    if (s == STATUS_OK && ret_duplicate)
        *ret_duplicate = reply->duplicate;
    return s;
}

static void plan_film(uint32_t n_frames)
{
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(0, 1, 5000);
    assert_int_equal(l->n_tasks, 1);
    assert_int_equal(l->tasks[0]->kind, TRANSCODE__TASK_KIND__PROBE);
    must(complete_probe(0, l->tasks[0], n_frames, &err));
}

static void test_what_the_uploader_chose_comes_to_the_probe(void **state)
{
    (void)state;
    char fast[] = "fast", quality[] = "quality", odd[] = "best", hevc[] = "hevc", av1[] = "av1";
    char *codecs[] = {hevc, av1}, *unknown[] = {hevc, odd};
    struct upload u;
    open_film(&u);
    must_fail(STATUS_INVALID_ARGUMENT, commit_as(&u, odd, NULL, 0, &err));
    must_fail(STATUS_INVALID_ARGUMENT, commit_as(&u, fast, unknown, 2, &err));
    must(commit_as(&u, quality, codecs, 2, &err));
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(0, 1, 5000);
    assert_int_equal(l->n_tasks, 1);
    assert_string_equal(l->tasks[0]->item_id, u.item);
    assert_string_equal(l->tasks[0]->preset, "quality");
    assert_int_equal(l->tasks[0]->n_video_codecs, 2);
    assert_string_equal(l->tasks[0]->video_codecs[0], "hevc");
    assert_string_equal(l->tasks[0]->video_codecs[1], "av1");
}

static void do_all_chunks(void)
{
    for (int i = 0;; i++) {
        AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(i % 2, 3, 100);
        if (l->n_tasks == 0)
            return;
        for (size_t k = 0; k < l->n_tasks; k++)
            must(complete_chunk(i % 2, l->tasks[k], SPOIL_NOTHING, NULL, &err));
    }
}

static enum status locate(struct rpc_client *c, const struct rpc_opts *who, const char *token,
                          const char *item, const char *rendition, int first, int count,
                          int64_t wait_ms, size_t *ret_n, struct err *err)
{
    char id[UUID_SIZE], name[16], media[64];
    str_copy(id, sizeof id, item);
    str_copy(name, sizeof name, rendition);
    str_copy(media, sizeof media, token);
    Orchestrator__LocateRequest req;
    orchestrator__locate_request__init(&req);
    req.item_id = id;
    req.rendition = name;
    req.media_token = media;
    req.first = first;
    req.count = count;
    req.wait_ms = wait_ms;
    AUTO(rpc_message_free_p) Orchestrator__LocateReply *reply = NULL;
    enum status s = orchestrator_playback_locate(c, who, &req, &reply, err);
    if (s == STATUS_OK)
        *ret_n = reply->n_segments;
    return s;
}

// ---------------------------------------------------------------- uploads

static void test_upload_of_what_is_no_medium_is_refused_with_a_reason(void **state)
{
    (void)state;
    struct upload u;
    static const char text[] = "#EXTM3U\n#EXTINF:3\nfile:///etc/passwd\n";
    must_fail(STATUS_INVALID_ARGUMENT, open_upload(&ana, text, sizeof text - 1, 200, &u, &err));
    struct rpc_details d;
    struct rpc_opts o = ana;
    o.ret_details = &d;
    must_fail(STATUS_INVALID_ARGUMENT, open_upload(&o, "", 0, 201, &u, &err));
    assert_int_equal(d.n_violations, 1);
    assert_string_equal(d.violations[0].field, "size");
    rpc_details_done(&d);
    must_fail(STATUS_UNAUTHENTICATED,
              open_upload(NULL, mp4_head, sizeof mp4_head - 1, 202, &u, &err));
}

static void test_upload_opened_again_is_the_same(void **state)
{
    (void)state;
    struct upload a, b, c;
    must(open_upload(&ana, mp4_head, sizeof mp4_head - 1, ++w.next_digest, &a, &err));
    must(open_upload(&ana, mp4_head, sizeof mp4_head - 1, w.next_digest, &b, &err));
    must(open_upload(&bob, mp4_head, sizeof mp4_head - 1, w.next_digest, &c, &err));
    assert_string_equal(a.id, b.id);
    assert_string_not_equal(a.id, c.id);
}

static bool is_proven(const struct rpc_opts *who)
{
    struct upload u;
    must(open_upload(who, mp4_head, sizeof mp4_head - 1, w.next_digest, &u, &err));
    pthread_mutex_lock(&w.lock);
    bool proven = w.proven;
    pthread_mutex_unlock(&w.lock);
    return proven;
}

static void test_bytes_are_taken_as_proven_for_who_has_an_item_of_them_only(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    assert_true(is_proven(&ana));
    assert_false(is_proven(&bob)); // knows the digest, from wherever
    assert_false(is_proven(&bob)); // an upload that is merely open proves nothing
}

static void test_uploads_of_others_are_not_found(void **state)
{
    (void)state;
    struct upload u;
    char st[16];
    open_film(&u);
    must_fail(STATUS_NOT_FOUND, commit(&u, false, &bob, st, &err));
    Orchestrator__GetUploadRequest req;
    orchestrator__get_upload_request__init(&req);
    req.upload_id = u.id;
    Orchestrator__UploadInfo *info = NULL;
    must_fail(STATUS_NOT_FOUND, orchestrator_upload_get(w.as_user, &bob, &req, &info, &err));
}

static void test_commit_answers_the_same_again(void **state)
{
    (void)state;
    struct upload u;
    char st[16], job[UUID_SIZE];
    committed_film(&u);
    str_copy(job, sizeof job, u.job);
    must(commit(&u, false, &ana, st, &err));
    assert_string_equal(u.job, job);
    wait_for("SELECT count(*) = 1 FROM orchestrator.task WHERE item = $1::uuid", u.item);
}

static void test_commit_of_an_incomplete_upload_leaves_it_open(void **state)
{
    (void)state;
    struct upload u;
    char st[16];
    open_film(&u);
    w.finish_st = STATUS_FAILED_PRECONDITION;
    must_fail(STATUS_FAILED_PRECONDITION, commit(&u, false, &ana, st, &err));
    w.finish_st = STATUS_OK;
    must(commit(&u, false, &ana, st, &err));
}

static void test_commit_that_was_cut_off_is_finished_by_the_sweeper(void **state)
{
    (void)state;
    struct upload u;
    char st[16];
    open_film(&u);
    w.create_st = STATUS_UNAVAILABLE;
    must_fail(STATUS_UNAVAILABLE, commit(&u, false, &ana, st, &err));
    w.create_st = STATUS_OK;
    must(db_query(w.db,
                  "UPDATE orchestrator.upload SET updated = now() - interval '1 minute'"
                  " WHERE id = $1::uuid AND state = 'committing'",
                  DB_PARAMS(DB_TEXT(u.id)), NULL, &err));
    sweeper_kick(w.o->sweeper);
    wait_for("SELECT count(*) = 1 FROM orchestrator.task WHERE item = $1::uuid", u.item);
    must(commit(&u, false, &ana, st, &err));
    wait_for("SELECT count(*) = 1 FROM orchestrator.task WHERE item = $1::uuid", u.item);
}

static void test_abort_drops_the_upload_at_its_origin(void **state)
{
    (void)state;
    struct upload u;
    open_film(&u);
    Orchestrator__AbortRequest req;
    orchestrator__abort_request__init(&req);
    req.upload_id = u.id;
    AUTO(rpc_message_free_p) Orchestrator__AbortReply *reply = NULL;
    must(orchestrator_upload_abort(w.as_user, &ana, &req, &reply, &err));
    wait_for("SELECT NOT EXISTS (SELECT FROM orchestrator.chore WHERE upload = $1::uuid)", u.id);
    assert_int_equal(w.n_dropped, 1);
}

// ---------------------------------------------------------------- work

static void test_whole_job_from_probe_to_ready(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(750);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(0, 1, 5000);
    assert_string_equal(l->tasks[0]->renditions[0], "a128"); // sound first: it is cheap
    must(complete_chunk(0, l->tasks[0], SPOIL_NOTHING, NULL, &err));
    AUTO(rpc_message_free_p) Transcode__LeaseReply *first = lease(1, 1, 5000);
    assert_int_equal(first->tasks[0]->first_segment, 0);
    assert_int_equal(first->tasks[0]->n_segments, 1);
    must(complete_chunk(1, first->tasks[0], SPOIL_NOTHING, NULL, &err));
    // Told before the next state comes, or the store would hear of that one alone.
    wait_for("SELECT state = 'playable' AND media_sent = media_version"
             " FROM orchestrator.item WHERE id = $1::uuid",
             u.item);
    do_all_chunks();
    wait_for("SELECT state = 'ready' AND media_sent = media_version"
             " FROM orchestrator.item WHERE id = $1::uuid",
             u.item);
    assert_non_null(strstr(w.told, "playable"));
    assert_true(str_ends_with(w.told, "ready "));

    Orchestrator__GetJobRequest req;
    orchestrator__get_job_request__init(&req);
    req.job_id = u.item;
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *job = NULL;
    must(orchestrator_job_get(w.as_user, &ana, &req, &job, &err));
    assert_string_equal(job->state, "done");
    assert_int_equal(job->tasks, job->tasks_done);
    struct media_plan *plan = test_plan(750, SOURCE_SIZE);
    size_t n = 0;
    for (size_t i = 0; i < plan->n_renditions; i++)
        n += media_rendition_grid(plan, i)->n_segments;
    for (int i = 0; i < MEDIA_N_IMAGES; i++)
        n += media_image_is_planned(plan, (enum media_image)i);
    media_plan_free(plan);
    assert_int_equal(job->n_outputs, n);
    assert_int_equal(job->outputs[0]->digest.len, 32);
    must_fail(STATUS_NOT_FOUND, orchestrator_job_get(w.as_user, &bob, &req, &job, &err));
    wait_for("SELECT string_agg(kind, ',' ORDER BY seq) LIKE"
             " 'item.planned%item.playable%job.done' FROM orchestrator.event"
             " WHERE topic = 'transcode' AND kind <> 'task.progress' AND subject = $1::text",
             u.item);
}

// Waits for what the item's film is made of to be out of the way.
static Transcode__LeaseReply *lease_kind(Transcode__TaskKind kind)
{
    for (int i = 0; i < 100; i++) {
        Transcode__LeaseReply *l = lease(0, 1, 5000);
        assert_int_equal(l->n_tasks, 1);
        if (l->tasks[0]->kind == kind)
            return l;
        must(complete_chunk(0, l->tasks[0], SPOIL_NOTHING, NULL, &err));
        rpc_message_free(l);
    }
    fail_msg("no task of that kind");
    return NULL;
}

static enum status complete_with(const Transcode__Task *t, Transcode__Output **outputs, size_t n,
                                 const char *left_out, struct err *ret_err)
{
    Transcode__CompleteRequest req;
    char why[64];
    str_copy(why, sizeof why, left_out);
    transcode__complete_request__init(&req);
    req.task_id = t->task_id;
    req.fence = t->fence;
    req.outputs = outputs;
    req.n_outputs = n;
    req.left_out = why;
    AUTO(rpc_message_free_p) Transcode__CompleteReply *reply = NULL;
    return transcode_work_complete(w.as_worker[0], NULL, &req, &reply, ret_err);
}

static enum status complete_images(const Transcode__Task *t, Transcode__Output **outputs, size_t n,
                                   struct err *ret_err)
{
    return complete_with(t, outputs, n, "", ret_err);
}

static void test_pictures_are_published_as_far_as_there_are_any(void **state)
{
    (void)state;
    struct upload u;
    char poster[] = "poster", tiles[] = "tiles", other[] = "v480";
    committed_film(&u);
    plan_film(750);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease_kind(TRANSCODE__TASK_KIND__IMAGES);
    const Transcode__Task *t = l->tasks[0];
    assert_int_equal(t->n_renditions, 3);
    assert_true(t->plan.len > 0);
    AUTO(arena_free_p) struct arena *a = arena_new(1 << 16);
    Transcode__Output *twice[] = {output(a, poster, 0), output(a, poster, 0)};
    must_fail(STATUS_INVALID_ARGUMENT, complete_images(t, twice, 2, &err));
    Transcode__Output *late = output(a, tiles, 1), *strange = output(a, other, 0);
    must_fail(STATUS_INVALID_ARGUMENT, complete_images(t, &late, 1, &err));
    must_fail(STATUS_INVALID_ARGUMENT, complete_images(t, &strange, 1, &err));
    Transcode__Output *large = output(a, tiles, 0);
    large->size = MEDIA_MAX_IMAGE_BYTES + 1;
    must_fail(STATUS_INVALID_ARGUMENT, complete_images(t, &large, 1, &err));
    Transcode__Output *good = output(a, poster, 0); // the source had nothing for the other
    must(complete_images(t, &good, 1, &err));

    AUTO(rpc_message_free_p) Orchestrator__LocateReply *found = NULL;
    Orchestrator__LocateRequest req;
    orchestrator__locate_request__init(&req);
    req.item_id = u.item;
    req.rendition = poster;
    req.count = 1;
    must(orchestrator_playback_locate(w.as_gateway, NULL, &req, &found, &err));
    assert_int_equal(found->n_segments, 1);
    assert_int_equal(found->segments[0]->object->size, 1000);
    req.rendition = tiles;
    rpc_message_free(TAKE(found));
    must_fail(STATUS_NOT_FOUND,
              orchestrator_playback_locate(w.as_gateway, NULL, &req, &found, &err));
    do_all_chunks();
    wait_for("SELECT state = 'ready' FROM orchestrator.item WHERE id = $1::uuid", u.item);
}

// ---------------------------------------------------------------- loudness

static struct media_plan *plan_with_normalised(void)
{
    struct media_plan *p = test_plan(250, SOURCE_SIZE);
    struct media_rendition *r = &p->renditions[p->n_renditions];
    *r = p->renditions[p->n_renditions++ - 1]; // of the sound that there is
    str_copy(r->id, sizeof r->id, "a128n");
    r->lazy = r->normalised = true;
    r->init = mem_dup(r->init, r->init_len);
    assert_non_null(r->init);
    return p;
}

// A film of which all but the measurement is made, and that under lease.
static Transcode__LeaseReply *film_to_measure(struct upload *u)
{
    committed_film(u);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *probe = lease(0, 1, 5000);
    must(complete_plan(0, probe->tasks[0], plan_with_normalised(), &err));
    return lease_kind(TRANSCODE__TASK_KIND__MEASURE);
}

static void test_normalised_sound_is_made_by_the_measurement(void **state)
{
    (void)state;
    struct upload u;
    size_t n = 0;
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = film_to_measure(&u);
    const Transcode__Task *t = l->tasks[0];
    assert_int_equal(t->n_renditions, 1); // a film has no waveform
    assert_string_equal(t->renditions[0], "loudness");
    must_fail(STATUS_DEADLINE_EXCEEDED,
              locate(w.as_gateway, NULL, "", u.item, "a128n", 0, 1, 0, &n, &err));
    AUTO(rpc_message_free_p) Transcode__LeaseReply *none = lease(1, 1, 100);
    assert_int_equal(none->n_tasks, 0);
    AUTO(arena_free_p) struct arena *a = arena_new(1 << 16);
    Transcode__Output *silent = output(a, t->renditions[0], 0);
    must_fail(STATUS_INVALID_ARGUMENT, complete_with(t, &silent, 1, "", &err)); // no numbers
    must(complete_chunk(0, t, SPOIL_NOTHING, NULL, &err));

    AUTO(rpc_message_free_p) Transcode__LeaseReply *wanted = lease(0, 1, 5000);
    assert_int_equal(wanted->n_tasks, 1);
    assert_string_equal(wanted->tasks[0]->renditions[0], "a128n");
    assert_int_equal(wanted->tasks[0]->gain_mdb, 14000); // from -30 to -16 LUFS
    must(complete_chunk(0, wanted->tasks[0], SPOIL_NOTHING, NULL, &err));
    must(locate(w.as_gateway, NULL, "", u.item, "a128n", 0, 1, 0, &n, &err));
    assert_int_equal(n, 1);
    Orchestrator__OpenRequest req;
    orchestrator__open_request__init(&req);
    req.item_id = u.item;
    AUTO(rpc_message_free_p) Orchestrator__DecideReply *reply = NULL;
    must(orchestrator_playback_decide(w.as_user, &ana, &req, &reply, &err));
    assert_non_null(reply->loudness);
    assert_int_equal(reply->loudness->integrated_mlufs, -30000);
    assert_int_equal(reply->loudness->range_mlu, 5000);
    assert_int_equal(reply->loudness->true_peak_mdb, -20000);
    wait_for("SELECT state = 'ready' FROM orchestrator.item WHERE id = $1::uuid", u.item);
}

static void test_film_that_cannot_be_measured_plays_but_not_normalised(void **state)
{
    (void)state;
    struct upload u;
    size_t n = 0;
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = film_to_measure(&u);
    char text[] = "the sound ends early";
    Transcode__FailRequest req;
    transcode__fail_request__init(&req);
    req.task_id = l->tasks[0]->task_id;
    req.fence = l->tasks[0]->fence;
    req.class_ = TRANSCODE__FAIL_CLASS__REJECTED;
    req.message = text;
    AUTO(rpc_message_free_p) Transcode__FailReply *reply = NULL;
    must(transcode_work_fail(w.as_worker[0], NULL, &req, &reply, &err));
    wait_for("SELECT state = 'ready' FROM orchestrator.item WHERE id = $1::uuid", u.item);
    must(locate(w.as_gateway, NULL, "", u.item, "a128", 0, 1, 0, &n, &err));
    struct err why = ERR_INIT;
    assert_int_equal(locate(w.as_gateway, NULL, "", u.item, "a128n", 0, 1, 20000, &n, &why),
                     STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(why.msg, text));
}

// ---------------------------------------------------------------- text

static void add_text_track(struct media_plan *p)
{
    uint16_t index = (uint16_t)p->source.n_tracks;
    struct media_track *t = &p->source.tracks[p->source.n_tracks++];
    t->type = MEDIA_TRACK_SUBTITLE;
    t->chosen = true;
    t->subtitle = MEDIA_SUBTITLE_TEXT;
    t->sar = t->frame_rate = (struct media_rational){1, 1};
    str_copy(t->language, sizeof t->language, "ger");
    t->index = index;
}

static void test_text_of_the_source_is_made_and_located(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *probe = lease(0, 1, 5000);
    struct media_plan *plan = test_plan(100, SOURCE_SIZE);
    add_text_track(plan);
    add_text_track(plan);
    must(complete_plan(0, probe->tasks[0], plan, &err));
    AUTO(rpc_message_free_p)
    Transcode__LeaseReply *l = lease_kind(TRANSCODE__TASK_KIND__TEXTS);
    const Transcode__Task *t = l->tasks[0];
    assert_int_equal(t->n_renditions, 2);
    assert_string_equal(t->renditions[0], "s2");
    assert_int_equal(t->source_size, SOURCE_SIZE);
    AUTO(arena_free_p) struct arena *a = arena_new(1 << 16);
    char none[] = "s1";
    Transcode__Output *strange = output(a, none, 0), *good = output(a, t->renditions[0], 0);
    Transcode__Output *twice[] = {good, good};
    must_fail(STATUS_INVALID_ARGUMENT, complete_with(t, &strange, 1, "", &err));
    must_fail(STATUS_INVALID_ARGUMENT, complete_with(t, twice, 2, "", &err));
    must(complete_with(t, &good, 1, "", &err));
    size_t n = 0;
    must(locate(w.as_gateway, NULL, "", u.item, "s2", 0, 1, 0, &n, &err));
    assert_int_equal(n, 1);
    must_fail(STATUS_NOT_FOUND, locate(w.as_gateway, NULL, "", u.item, "s1", 0, 1, 0, &n, &err));
    must_fail(STATUS_NOT_FOUND, locate(w.as_gateway, NULL, "", u.item, "x1", 0, 1, 0, &n, &err));
    // Planned, tried, and nothing came of it: nobody waits.
    must_fail(STATUS_NOT_FOUND,
              locate(w.as_gateway, NULL, "", u.item, "s3", 0, 1, 20000, &n, &err));
    do_all_chunks();
    wait_for("SELECT state = 'ready' FROM orchestrator.item WHERE id = $1::uuid", u.item);
}

struct added_text {
    struct upload *u;
    char replaces[8];
    Orchestrator__SubtitleInfo *info;
    enum status s;
    struct err err;
};

static enum status put_text(const struct rpc_opts *who, struct added_text *x, size_t size,
                            const char *lang)
{
    static uint8_t bytes[4 << 20];
    char language[16], title[] = "For all";
    str_copy(language, sizeof language, lang);
    Orchestrator__PutSubtitleRequest req;
    orchestrator__put_subtitle_request__init(&req);
    req.item_id = x->u->item;
    req.language = language;
    req.title = title;
    req.forced = true;
    req.replaces = x->replaces;
    req.data = (ProtobufCBinaryData){.data = bytes, .len = size};
    x->info = NULL;
    return orchestrator_subtitle_put(w.as_user, who, &req, &x->info, &x->err);
}

static void *put_in_background(void *ud)
{
    struct added_text *x = ud;
    struct rpc_opts o = {.token = "ana", .deadline_us = time_deadline_in_ms(25000)};
    x->s = put_text(&o, x, 100, "de");
    return NULL;
}

// Put, and what a worker makes of it: outputs, or a reason why there are none.
static void add_text(struct added_text *x, const char *id, const char *left_out)
{
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, put_in_background, x), 0);
    AUTO(rpc_message_free_p)
    Transcode__LeaseReply *l = lease_kind(TRANSCODE__TASK_KIND__TEXTS);
    const Transcode__Task *task = l->tasks[0];
    assert_string_equal(task->renditions[0], id);
    assert_int_equal(task->source_size, 100);
    assert_true(task->plan.len > 0);
    AUTO(arena_free_p) struct arena *a = arena_new(1 << 16);
    Transcode__Output *o = output(a, task->renditions[0], 0);
    must(complete_with(task, &o, !*left_out, left_out, &err));
    pthread_join(t, NULL);
}

static size_t n_subtitles(const struct upload *u, char *ret_first)
{
    char id[UUID_SIZE];
    str_copy(id, sizeof id, u->item);
    Orchestrator__PlanRequest req;
    orchestrator__plan_request__init(&req);
    req.item_id = id;
    AUTO(rpc_message_free_p) Orchestrator__PlanReply *reply = NULL;
    must(orchestrator_playback_plan(w.as_gateway, NULL, &req, &reply, &err));
    str_copy(ret_first, 8, reply->n_subtitles ? reply->subtitles[0]->id : "");
    return reply->n_subtitles;
}

static enum status delete_text(const struct rpc_opts *who, const struct upload *u, const char *name,
                               struct err *err)
{
    char item[UUID_SIZE], id[8];
    str_copy(item, sizeof item, u->item);
    str_copy(id, sizeof id, name);
    Orchestrator__DeleteSubtitleRequest req;
    orchestrator__delete_subtitle_request__init(&req);
    req.item_id = item;
    req.id = id;
    AUTO(rpc_message_free_p) Orchestrator__DeleteSubtitleReply *reply = NULL;
    return orchestrator_subtitle_delete(w.as_user, who, &req, &reply, err);
}

static void test_added_text_is_chosen_replaced_and_removed(void **state)
{
    (void)state;
    struct upload u;
    struct added_text x = {.u = &u};
    char first[8];
    size_t n = 0;
    committed_film(&u);
    plan_film(100);
    do_all_chunks();
    add_text(&x, "x1", "");
    assert_int_equal(x.s, STATUS_OK);
    assert_string_equal(x.info->id, "x1");
    assert_string_equal(x.info->state, "ready");
    assert_true(x.info->forced && !x.info->is_default);
    rpc_message_free(x.info);
    assert_int_equal(n_subtitles(&u, first), 1);
    assert_string_equal(first, "x1");
    must(locate(w.as_gateway, NULL, "", u.item, "x1", 0, 1, 0, &n, &err));

    str_copy(x.replaces, sizeof x.replaces, "x1");
    add_text(&x, "x2", "this is no subtitle");
    assert_int_equal(x.s, STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(x.err.msg, "this is no subtitle"));
    assert_int_equal(n_subtitles(&u, first), 1); // the one that was there stays
    assert_string_equal(first, "x1");
    add_text(&x, "x3", "");
    assert_int_equal(x.s, STATUS_OK);
    rpc_message_free(x.info);
    assert_int_equal(n_subtitles(&u, first), 1);
    assert_string_equal(first, "x3");
    must_fail(STATUS_NOT_FOUND, locate(w.as_gateway, NULL, "", u.item, "x1", 0, 1, 0, &n, &err));

    must_fail(STATUS_NOT_FOUND, delete_text(&bob, &u, "x3", &err));
    must_fail(STATUS_INVALID_ARGUMENT, delete_text(&ana, &u, "s2", &err));
    must(delete_text(&ana, &u, "x3", &err));
    must(delete_text(&ana, &u, "x3", &err));
    assert_int_equal(n_subtitles(&u, first), 0);
    wait_for("SELECT state = 'ready' FROM orchestrator.item WHERE id = $1::uuid", u.item);
    wait_for("SELECT string_agg(kind, ',' ORDER BY seq) LIKE '%subtitle.added%subtitle.added,"
             "subtitle.removed%subtitle.removed' FROM orchestrator.event WHERE topic = 'transcode'"
             " AND kind LIKE 'subtitle.%' AND subject = $1::text",
             u.item);
}

static void test_added_text_is_checked_before_it_is_stored(void **state)
{
    (void)state;
    struct upload u;
    struct added_text x = {.u = &u};
    committed_film(&u);
    assert_int_equal(put_text(&ana, &x, 100, "de"), STATUS_UNAVAILABLE); // no plan yet
    plan_film(100);
    assert_int_equal(put_text(&ana, &x, 0, "de"), STATUS_INVALID_ARGUMENT);
    assert_int_equal(put_text(&ana, &x, (4 << 20) - (64 << 10) + 1, "de"), STATUS_INVALID_ARGUMENT);
    assert_int_equal(put_text(&ana, &x, 100, "d e"), STATUS_INVALID_ARGUMENT);
    assert_int_equal(put_text(&bob, &x, 100, "de"), STATUS_NOT_FOUND);
    str_copy(x.replaces, sizeof x.replaces, "x1");
    assert_int_equal(put_text(&ana, &x, 100, "de"), STATUS_INVALID_ARGUMENT);
    do_all_chunks();
}

static void test_added_text_that_is_removed_is_not_made_any_more(void **state)
{
    (void)state;
    struct upload u;
    struct added_text x = {.u = &u};
    pthread_t t;
    size_t n = 0;
    committed_film(&u);
    plan_film(100);
    do_all_chunks();
    assert_int_equal(pthread_create(&t, NULL, put_in_background, &x), 0);
    AUTO(rpc_message_free_p)
    Transcode__LeaseReply *l = lease_kind(TRANSCODE__TASK_KIND__TEXTS);
    must(delete_text(&ana, &u, "x1", &err));
    pthread_join(t, NULL); // answered at once
    assert_int_equal(x.s, STATUS_OK);
    assert_string_equal(x.info->state, "removed");
    rpc_message_free(x.info);
    AUTO(arena_free_p) struct arena *a = arena_new(1 << 16);
    Transcode__Output *o = output(a, l->tasks[0]->renditions[0], 0);
    must_fail(STATUS_ABORTED, complete_with(l->tasks[0], &o, 1, "", &err));
    must_fail(STATUS_NOT_FOUND, locate(w.as_gateway, NULL, "", u.item, "x1", 0, 1, 0, &n, &err));
}

static void test_text_beyond_the_most_is_refused_before_it_is_stored(void **state)
{
    (void)state;
    struct upload u;
    struct added_text x = {.u = &u};
    committed_film(&u);
    plan_film(100);
    must(db_query(w.db,
                  "INSERT INTO orchestrator.subtitle (item, number, digest, size, task, state) "
                  "SELECT $1::uuid, n, decode(repeat('11', 32), 'hex'), 1, $1::uuid, 'removed'"
                  "  FROM generate_series(1, 99) n",
                  DB_PARAMS(DB_TEXT(u.item)), NULL, &err));
    assert_int_equal(put_text(&ana, &x, 100, "de"), STATUS_RESOURCE_EXHAUSTED);
    pthread_mutex_lock(&w.lock);
    assert_int_equal(w.n_put, 0);
    pthread_mutex_unlock(&w.lock);
    do_all_chunks();
}

static void test_object_that_is_used_again_is_not_given_up(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(100);
    do_all_chunks();
    pthread_mutex_lock(&w.lock);
    str_copy(w.spied, sizeof w.spied, u.item);
    pthread_mutex_unlock(&w.lock);
    must(db_query(w.db,
                  "INSERT INTO orchestrator.chore (kind, origin, item, digest) "
                  "SELECT 'unpin', i.route, i.id, x.digest FROM orchestrator.item i, ("
                  "  SELECT decode(repeat('77', 32), 'hex') UNION"
                  "  (SELECT digest FROM orchestrator.output WHERE item = $1::uuid LIMIT 1))"
                  "  x (digest) WHERE i.id = $1::uuid",
                  DB_PARAMS(DB_TEXT(u.item)), NULL, &err));
    wait_for("SELECT NOT EXISTS (SELECT FROM orchestrator.chore WHERE item = $1::uuid)", u.item);
    pthread_mutex_lock(&w.lock);
    assert_int_equal(w.n_forgotten, 1);
    pthread_mutex_unlock(&w.lock);
}

static void test_results_that_disagree_with_the_plan_are_refused(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(100);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(0, 1, 5000);
    for (enum spoil what = SPOIL_NOTHING + 1; what < N_SPOILS; what++)
        must_fail(STATUS_INVALID_ARGUMENT, complete_chunk(0, l->tasks[0], what, NULL, &err));
    must(complete_chunk(0, l->tasks[0], SPOIL_NOTHING, NULL, &err));
}

static void test_old_token_publishes_nothing(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(100);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *old = lease(0, 1, 5000);
    must(db_query(w.db,
                  "UPDATE orchestrator.task SET lease_until = now() - interval '1 second'"
                  " WHERE id = $1::uuid",
                  DB_PARAMS(DB_TEXT(old->tasks[0]->task_id)), NULL, &err));
    int64_t n = 0;
    must(queue_sweep(w.db, true, &n, &err));
    AUTO(rpc_message_free_p) Transcode__LeaseReply *new = lease(1, 1, 5000);
    assert_string_equal(new->tasks[0]->task_id, old->tasks[0]->task_id);
    must_fail(STATUS_ABORTED, complete_chunk(0, old->tasks[0], SPOIL_NOTHING, NULL, &err));
    bool duplicate = true;
    must(complete_chunk(1, new->tasks[0], SPOIL_NOTHING, &duplicate, &err));
    assert_false(duplicate);
    must_fail(STATUS_ABORTED, complete_chunk(0, old->tasks[0], SPOIL_NOTHING, NULL, &err));
}

struct racer {
    const Transcode__Task *task;
    pthread_barrier_t *start;
    bool duplicate;
    enum status s;
};

static void *race(void *ud)
{
    struct racer *r = ud;
    struct err err = ERR_INIT;
    pthread_barrier_wait(r->start);
    r->s = complete_chunk(0, r->task, SPOIL_NOTHING, &r->duplicate, &err);
    return NULL;
}

static void test_concurrent_completes_publish_once(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(100);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(0, 1, 5000);
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, 4);
    struct racer r[4];
    pthread_t t[4];
    for (int i = 0; i < 4; i++) {
        r[i] = (struct racer){.task = l->tasks[0], .start = &start};
        assert_int_equal(pthread_create(&t[i], NULL, race, &r[i]), 0);
    }
    int first = 0;
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(r[i].s, STATUS_OK);
        first += !r[i].duplicate;
    }
    pthread_barrier_destroy(&start);
    assert_int_equal(first, 1);
}

static void test_rejected_input_leaves_nothing_behind(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(0, 1, 5000);
    char text[] = "the index is cut off";
    Transcode__FailRequest req;
    transcode__fail_request__init(&req);
    req.task_id = l->tasks[0]->task_id;
    req.fence = l->tasks[0]->fence;
    req.class_ = TRANSCODE__FAIL_CLASS__REJECTED;
    req.message = text;
    AUTO(rpc_message_free_p) Transcode__FailReply *reply = NULL;
    must(transcode_work_fail(w.as_worker[0], NULL, &req, &reply, &err));
    assert_false(reply->will_retry);
    wait_for("SELECT media_sent = media_version AND purged FROM orchestrator.item"
             " WHERE id = $1::uuid",
             u.item);
    wait_for("SELECT count(*) = 1 FROM orchestrator.chore WHERE item = $1::uuid", u.item);
    assert_string_equal(w.told, "failed ");
    assert_int_equal(w.n_dropped, 1);
    assert_int_equal(w.n_unpinned, 1);
    char st[16];
    must(commit(&u, false, &ana, st, &err));
    assert_string_equal(st, "failed");
}

static void test_sound_in_a_film_container_moves_to_the_audio_origin(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(0);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(0, 5, 5000);
    assert_int_equal(l->n_tasks, 1);
    const Transcode__Task *t = l->tasks[0];
    assert_int_equal(t->kind, TRANSCODE__TASK_KIND__MOVE);
    assert_string_equal(t->target_origin->node_id, "audio-1");
    Transcode__CompleteRequest req;
    transcode__complete_request__init(&req);
    req.task_id = t->task_id;
    req.fence = t->fence;
    AUTO(rpc_message_free_p) Transcode__CompleteReply *reply = NULL;
    must(transcode_work_complete(w.as_worker[0], NULL, &req, &reply, &err));
    wait_for("SELECT route = 'audio-1' AND kind = 'audio' FROM orchestrator.item"
             " WHERE id = $1::uuid",
             u.item);
    do_all_chunks();
    wait_for("SELECT state = 'ready' FROM orchestrator.item WHERE id = $1::uuid", u.item);
}

struct poller {
    Transcode__LeaseReply *reply;
};

static void *poll_work(void *ud)
{
    struct poller *p = ud;
    Transcode__LeaseRequest req;
    transcode__lease_request__init(&req);
    req.slots = 1;
    req.wait_ms = 20000;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(25000)};
    struct err err = ERR_INIT;
    (void)!transcode_work_lease(w.as_worker[0], &o, &req, &p->reply, &err);
    return NULL;
}

static void test_waiting_worker_gets_work_as_soon_as_it_comes(void **state)
{
    (void)state;
    struct poller p = {0};
    pthread_t t;
    struct upload u;
    assert_int_equal(pthread_create(&t, NULL, poll_work, &p), 0);
    committed_film(&u);
    int64_t begin_us = time_mono_us();
    pthread_join(t, NULL);
    assert_true(time_mono_us() - begin_us < 10000000); // woken, not timed out
    assert_non_null(p.reply);
    assert_int_equal(p.reply->n_tasks, 1);
    assert_string_equal(p.reply->tasks[0]->item_id, u.item);
    rpc_message_free(p.reply);
}

// ---------------------------------------------------------------- waiting for results

struct waiter {
    struct upload *u;
    enum status s;
    size_t n;
    char state[16];
    struct err err;
};

static void *wait_for_segment(void *ud)
{
    struct waiter *x = ud;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(25000)};
    x->s = locate(w.as_gateway, &o, "", x->u->item, "v480", 5, 1, 20000, &x->n, &x->err);
    return NULL;
}

static void test_locate_raises_what_is_missing_and_answers_when_it_is_made(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(1500);
    size_t n = 0;
    must_fail(STATUS_DEADLINE_EXCEEDED,
              locate(w.as_gateway, NULL, "", u.item, "v480", 0, 4, 200, &n, &err));
    struct waiter x = {.u = &u};
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, wait_for_segment, &x), 0);
    wait_for("SELECT count(*) = 2 FROM orchestrator.task WHERE item = $1::uuid AND priority = 1000",
             u.item); // of segments 0 and 5
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(0, 2, 5000);
    assert_int_equal(l->n_tasks, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_true(l->tasks[i]->urgent);
        must(complete_chunk(0, l->tasks[i], SPOIL_NOTHING, NULL, &err));
    }
    pthread_join(t, NULL);
    assert_int_equal(x.s, STATUS_OK);
    assert_int_equal(x.n, 1);
    must_fail(STATUS_OUT_OF_RANGE,
              locate(w.as_gateway, NULL, "", u.item, "v480", 4000, 1, 0, &n, &err));
    must_fail(STATUS_NOT_FOUND, locate(w.as_gateway, NULL, "", u.item, "v4800", 0, 1, 0, &n, &err));
}

static void test_locate_by_a_user_needs_the_items_own_media_token(void **state)
{
    (void)state;
    struct upload u;
    size_t n = 0;
    committed_film(&u);
    plan_film(100);
    do_all_chunks();
    char token[64];
    snprintf(token, sizeof token, "ana:%s", u.item);
    must(locate(w.as_user, &ana, token, u.item, "v480", 0, 10, 5000, &n, &err));
    assert_in_range(n, 1, 10);
    must_fail(STATUS_PERMISSION_DENIED,
              locate(w.as_user, &bob, token, u.item, "v480", 0, 1, 0, &n, &err));
    must_fail(STATUS_UNAUTHENTICATED,
              locate(w.as_user, &ana, "forged", u.item, "v480", 0, 1, 0, &n, &err));
    must_fail(STATUS_PERMISSION_DENIED,
              locate(w.as_user, &ana, "ana:another", u.item, "v480", 0, 1, 0, &n, &err));
}

static void *commit_sync(void *ud)
{
    struct waiter *x = ud;
    struct rpc_opts o = {.token = "ana", .deadline_us = time_deadline_in_ms(30000)};
    x->s = commit(x->u, true, &o, x->state, &x->err);
    return NULL;
}

static void test_sync_commit_of_a_short_film_answers_when_it_is_ready(void **state)
{
    (void)state;
    struct upload u;
    open_film(&u);
    struct waiter x = {.u = &u};
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, commit_sync, &x), 0);
    plan_film(100);
    do_all_chunks();
    pthread_join(t, NULL);
    assert_int_equal(x.s, STATUS_OK);
    assert_string_equal(x.state, "ready");
}

// ---------------------------------------------------------------- segments one by one

// Publishes that segment of each rendition of the task.
static enum status publish_segment(int who, const Transcode__Task *t, int32_t segment,
                                   struct err *ret_err)
{
    AUTO(media_plan_free_p) struct media_plan *plan = NULL;
    must(media_plan_decode(t->plan.data, t->plan.len, &plan, &err));
    AUTO(arena_free_p) struct arena *a = arena_new(1 << 20);
    Transcode__PublishRequest req;
    transcode__publish_request__init(&req);
    req.task_id = t->task_id;
    req.fence = t->fence;
    req.outputs = arena_array(a, t->n_renditions, sizeof req.outputs[0]);
    for (size_t i = 0; i < t->n_renditions; i++)
        req.outputs[req.n_outputs++] = segment_output(a, plan, t->renditions[i], segment);
    AUTO(rpc_message_free_p) Transcode__PublishReply *reply = NULL;
    return transcode_work_publish(w.as_worker[who], NULL, &req, &reply, ret_err);
}

static enum status complete_without_outputs(int who, const Transcode__Task *t, struct err *ret_err)
{
    Transcode__CompleteRequest req;
    transcode__complete_request__init(&req);
    req.task_id = t->task_id;
    req.fence = t->fence;
    AUTO(rpc_message_free_p) Transcode__CompleteReply *reply = NULL;
    return transcode_work_complete(w.as_worker[who], NULL, &req, &reply, ret_err);
}

// The wanted segment's task.
static Transcode__LeaseReply *lease_wanted(struct upload *u, int who, int first)
{
    size_t n = 0;
    must_fail(STATUS_DEADLINE_EXCEEDED,
              locate(w.as_gateway, NULL, "", u->item, "v480", first, 1, 0, &n, &err));
    Transcode__LeaseReply *l = lease(who, 1, 5000);
    assert_int_equal(l->n_tasks, 1);
    assert_true(l->tasks[0]->urgent);
    assert_int_equal(l->tasks[0]->first_segment, first);
    assert_in_range(l->tasks[0]->n_segments, 2, 8);
    return l;
}

static void test_each_segment_is_there_as_soon_as_it_is_published(void **state)
{
    (void)state;
    struct upload u;
    size_t n = 0;
    committed_film(&u);
    plan_film(1500);
    struct waiter x = {.u = &u};
    pthread_t waits;
    assert_int_equal(pthread_create(&waits, NULL, wait_for_segment, &x), 0); // for segment 5
    wait_for("SELECT count(*) = 1 FROM orchestrator.task WHERE item = $1::uuid AND demand", u.item);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease(0, 1, 5000);
    const Transcode__Task *t = l->tasks[0];
    assert_string_equal(t->renditions[0], "v480");
    assert_int_equal(t->first_segment, 5);
    must(publish_segment(0, t, 5, &err));
    pthread_join(waits, NULL);
    assert_int_equal(x.s, STATUS_OK);
    must_fail(STATUS_INVALID_ARGUMENT, complete_without_outputs(0, t, &err)); // there is more
    must_fail(STATUS_INVALID_ARGUMENT, publish_segment(0, t, 5 + t->n_segments, &err));
    for (int32_t k = 6; k < 5 + t->n_segments; k++)
        must(publish_segment(0, t, k, &err));
    must(complete_without_outputs(0, t, &err));
    must(complete_without_outputs(0, t, &err)); // the same again
    must(locate(w.as_gateway, NULL, "", u.item, "v480", 5, t->n_segments, 0, &n, &err));
    assert_int_equal(n, t->n_segments);
}

static void test_what_a_lost_worker_published_is_not_made_again(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(1500);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *old = lease_wanted(&u, 0, 4);
    must(publish_segment(0, old->tasks[0], 4, &err));
    must(db_query(w.db,
                  "UPDATE orchestrator.task SET lease_until = now() - interval '1 second'"
                  " WHERE id = $1::uuid",
                  DB_PARAMS(DB_TEXT(old->tasks[0]->task_id)), NULL, &err));
    // Nothing else may be had: a row that a sweep holds just then is passed over.
    must(db_query(w.db,
                  "UPDATE orchestrator.task SET state = 'retry_wait',"
                  "  not_before = now() + interval '1 hour'"
                  " WHERE state = 'available' AND id <> $1::uuid",
                  DB_PARAMS(DB_TEXT(old->tasks[0]->task_id)), NULL, &err));
    int64_t moved = 0;
    must(queue_sweep(w.db, true, &moved, &err));
    AUTO(rpc_message_free_p) Transcode__LeaseReply *new = lease(1, 1, 20000);
    const Transcode__Task *t = new->tasks[0];
    assert_string_equal(t->task_id, old->tasks[0]->task_id);
    assert_int_equal(t->n_made, 1);
    assert_string_equal(t->made[0]->rendition, "v480");
    assert_int_equal(t->made[0]->n_segments, 1);
    assert_int_equal(t->made[0]->segments[0], 4);
    must_fail(STATUS_ABORTED, publish_segment(0, old->tasks[0], 5, &err));
    for (int32_t k = 5; k < 4 + t->n_segments; k++)
        must(publish_segment(1, t, k, &err));
    must(complete_without_outputs(1, t, &err));
}

static void test_what_is_made_for_viewers_is_no_part_of_the_job(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(750);
    AUTO(rpc_message_free_p) Transcode__LeaseReply *l = lease_wanted(&u, 0, 3);
    must(db_query(w.db,
                  "UPDATE orchestrator.task SET state = 'retry_wait', not_before ="
                  "  now() + interval '1 hour' WHERE id = $1::uuid",
                  DB_PARAMS(DB_TEXT(l->tasks[0]->task_id)), NULL, &err));
    do_all_chunks();
    wait_for("SELECT state = 'ready' FROM orchestrator.item WHERE id = $1::uuid", u.item);
}

// ---------------------------------------------------------------- long films

static void test_job_of_a_long_film_comes_in_pages(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    plan_film(7 * 3600 * 25);
    wait_for("SELECT count(*) BETWEEN 1000 AND 10000 FROM orchestrator.task"
             " WHERE item = $1::uuid",
             u.item);
    must(db_query(w.db,
                  "INSERT INTO orchestrator.output (item, rendition, segment, digest, size,"
                  "  first_pts, duration, samples, init_digest, task, worker, attempts)"
                  "  SELECT $1::uuid, 'v480', n, decode(repeat('22', 32), 'hex'), 10, 0, 1, 1, '',"
                  "  $1::uuid, 'worker-1', 1 FROM generate_series(0, 10000) n",
                  DB_PARAMS(DB_TEXT(u.item)), NULL, &err));
    Orchestrator__GetJobRequest req;
    orchestrator__get_job_request__init(&req);
    req.job_id = u.item;
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *first = NULL;
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *second = NULL;
    must(orchestrator_job_get(w.as_user, &ana, &req, &first, &err));
    assert_int_equal(first->n_outputs, 10000);
    req.page = first->next_page;
    must(orchestrator_job_get(w.as_user, &ana, &req, &second, &err));
    assert_int_equal(second->n_outputs, 1);
    assert_int_equal(second->outputs[0]->segment, 10000);
    assert_string_equal(second->next_page, "");
    assert_int_equal(first->n_task_list + second->n_task_list, first->tasks);
    char wrong[] = "all";
    req.page = wrong;
    Orchestrator__JobInfo *none = NULL;
    must_fail(STATUS_INVALID_ARGUMENT, orchestrator_job_get(w.as_user, &ana, &req, &none, &err));
}

static void test_sync_commit_of_a_long_film_does_not_wait_for_it(void **state)
{
    (void)state;
    struct upload u;
    open_film(&u);
    struct waiter x = {.u = &u};
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, commit_sync, &x), 0);
    plan_film(1000);
    pthread_join(t, NULL);
    assert_int_equal(x.s, STATUS_OK);
    assert_string_equal(x.state, "processing");
}

// ---------------------------------------------------------------- playing

static enum status open_play(const struct rpc_opts *who, const char *item, struct err *err)
{
    char id[UUID_SIZE];
    str_copy(id, sizeof id, item);
    Orchestrator__OpenRequest req;
    orchestrator__open_request__init(&req);
    req.item_id = id;
    AUTO(rpc_message_free_p) Orchestrator__OpenReply *reply = NULL;
    enum status s = orchestrator_playback_open(w.as_user, who, &req, &reply, err);
    if (s == STATUS_OK) {
        assert_int_equal(reply->mode, ORCHESTRATOR__MODE__STREAM);
        assert_string_equal(reply->video_rendition, "v480");
        assert_true(reply->plan.len > 0);
        assert_true(reply->n_renditions >= 3);
    }
    return s;
}

static void test_play_needs_the_right_and_an_origin_that_answers(void **state)
{
    (void)state;
    struct upload u;
    committed_film(&u);
    must_fail(STATUS_UNAVAILABLE, open_play(&ana, u.item, &err)); // not looked at yet
    plan_film(100);
    must(open_play(&ana, u.item, &err));
    must_fail(STATUS_PERMISSION_DENIED, open_play(&bob, u.item, &err));

    AUTO(db_result_free_p) struct db_result *r = NULL;
    must(db_query(w.db, "SELECT route FROM orchestrator.item WHERE id = $1::uuid",
                  DB_PARAMS(DB_TEXT(u.item)), &r, &err));
    pthread_mutex_lock(&w.lock);
    str_copy(w.down, sizeof w.down, db_text(r, 0, 0));
    pthread_mutex_unlock(&w.lock);
    backends_report(w.o->backends, db_text(r, 0, 0), STATUS_UNAVAILABLE);
    backends_report(w.o->backends, db_text(r, 0, 0), STATUS_UNAVAILABLE);
    struct rpc_opts once = {.token = "ana", .max_attempts = 1};
    int64_t begin_us = time_mono_us();
    must_fail(STATUS_UNAVAILABLE, open_play(&once, u.item, &err));
    assert_true(time_mono_us() - begin_us < 2000000);

    pthread_mutex_lock(&w.lock);
    w.down[0] = '\0';
    pthread_mutex_unlock(&w.lock);
    backends_poll(w.o->backends); // its answer closes the breaker
    int64_t until_us = time_deadline_in_ms(5000);
    while (backends_is_open(w.o->backends, db_text(r, 0, 0)) && time_mono_us() < until_us)
        must(db_query(w.db, "SELECT pg_sleep(0.02)", NULL, 0, NULL, &err));
    must(open_play(&ana, u.item, &err));
}

static void test_playing_goes_on_while_the_database_is_away(void **state)
{
    (void)state;
    struct upload u;
    size_t n = 0;
    committed_film(&u);
    plan_film(100);
    do_all_chunks();
    must(locate(w.as_gateway, NULL, "", u.item, "v480", 0, 5, 5000, &n, &err));
    test_pg_stop(w.pg);
    size_t again = 0;
    must(locate(w.as_gateway, NULL, "", u.item, "v480", 0, 5, 0, &again, &err));
    assert_int_equal(again, n);
    Orchestrator__PlanRequest req;
    orchestrator__plan_request__init(&req);
    req.item_id = u.item;
    AUTO(rpc_message_free_p) Orchestrator__PlanReply *plan = NULL;
    must(orchestrator_playback_plan(w.as_gateway, NULL, &req, &plan, &err));
    assert_true(plan->plan.len > 0);
    struct upload late;
    struct rpc_opts once = {.token = "ana", .max_attempts = 1};
    must_fail(STATUS_UNAVAILABLE,
              open_upload(&once, mp4_head, sizeof mp4_head - 1, 250, &late, &err));
    test_pg_start(w.pg);
    open_film(&late);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup(fn, reset)
    const struct CMUnitTest tests[] = {
        TEST(test_upload_of_what_is_no_medium_is_refused_with_a_reason),
        TEST(test_upload_opened_again_is_the_same),
        TEST(test_bytes_are_taken_as_proven_for_who_has_an_item_of_them_only),
        TEST(test_uploads_of_others_are_not_found),
        TEST(test_commit_answers_the_same_again),
        TEST(test_what_the_uploader_chose_comes_to_the_probe),
        TEST(test_commit_of_an_incomplete_upload_leaves_it_open),
        TEST(test_commit_that_was_cut_off_is_finished_by_the_sweeper),
        TEST(test_abort_drops_the_upload_at_its_origin),
        TEST(test_whole_job_from_probe_to_ready),
        TEST(test_pictures_are_published_as_far_as_there_are_any),
        TEST(test_normalised_sound_is_made_by_the_measurement),
        TEST(test_film_that_cannot_be_measured_plays_but_not_normalised),
        TEST(test_text_of_the_source_is_made_and_located),
        TEST(test_added_text_is_chosen_replaced_and_removed),
        TEST(test_added_text_is_checked_before_it_is_stored),
        TEST(test_added_text_that_is_removed_is_not_made_any_more),
        TEST(test_text_beyond_the_most_is_refused_before_it_is_stored),
        TEST(test_object_that_is_used_again_is_not_given_up),
        TEST(test_results_that_disagree_with_the_plan_are_refused),
        TEST(test_old_token_publishes_nothing),
        TEST(test_concurrent_completes_publish_once),
        TEST(test_rejected_input_leaves_nothing_behind),
        TEST(test_sound_in_a_film_container_moves_to_the_audio_origin),
        TEST(test_waiting_worker_gets_work_as_soon_as_it_comes),
        TEST(test_locate_raises_what_is_missing_and_answers_when_it_is_made),
        TEST(test_locate_by_a_user_needs_the_items_own_media_token),
        TEST(test_sync_commit_of_a_short_film_answers_when_it_is_ready),
        TEST(test_sync_commit_of_a_long_film_does_not_wait_for_it),
        TEST(test_each_segment_is_there_as_soon_as_it_is_published),
        TEST(test_what_a_lost_worker_published_is_not_made_again),
        TEST(test_what_is_made_for_viewers_is_no_part_of_the_job),
        TEST(test_job_of_a_long_film_comes_in_pages),
        TEST(test_play_needs_the_right_and_an_origin_that_answers),
        TEST(test_playing_goes_on_while_the_database_is_away),
    };
    return cmocka_run_group_tests_name("orchestrator", tests, setup, teardown);
}
