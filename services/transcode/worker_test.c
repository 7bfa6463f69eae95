// The worker between an orchestrator and origins of our own making, with the real cauce-codec.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/origin.rpc.h"
#include "cauce/transcode.rpc.h"
#include "media/task.h"
#include "support/media.h"
#include "transcode/child.h"
#include "transcode/internal.h"

#define FILM "video/nasa_2video_2audio_2movtext.mp4"
#define ITEM "01890a5d-ac96-774b-bcce-b302099a8001"
#define WAIT_MS 30000
enum { ORCHESTRATOR = 9, WORKER = 10, ORIGIN = 12, MAX_TASKS = 4, MAX_OBJECTS = 64, N_ORIGINS = 2 };

struct object {
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size;
};

struct world;
struct origin { // a fake one
    struct world *w;
    struct rpc_server *server;
    struct rpc_client *client;
    // under the world's lock
    enum status fails; // Read and Tree answer this
    bool lies;         // one byte in each leaf is another
    bool hold_read, hold_put;
    unsigned n_reads, n_held, n_cancelled;
    struct object objects[MAX_OBJECTS];
    size_t n_objects;
};

struct lease {
    Transcode__TaskKind kind;
    char id[16];
    int32_t first, n;
    size_t n_origins;
    bool leased;
    // what was said about it
    unsigned n_completed, n_failed, n_released;
    size_t n_outputs, plan_len; // n_outputs: published, and with Complete
    size_t n_published;
    int32_t first_published;
    size_t n_at_first; // outputs of the first publication
    int32_t n_made;    // segments from the second on that the lease says are made
    bool wanted;       // for the spare slot
    bool urgent;
    bool yield;      // what Renew answers
    unsigned n_told; // so often
    int64_t fence;
    uint64_t said; // of all Complete requests: must stay the same
    Transcode__FailClass class;
    char message[256];
};

struct world {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint8_t operator_secret[64];
    struct chan_trust trust;
    struct chan_identity worker_id, orchestrator_id, origin_id;
    struct work_pool *pool;
    struct rpc_server *server;
    struct rpc_client *orchestrator;
    struct origin origins[N_ORIGINS];
    Common__Endpoint endpoints[N_ORIGINS], *endpoint_list[N_ORIGINS];
    char names[N_ORIGINS][16];
    struct lease leases[MAX_TASKS];
    size_t n_leases;
    unsigned refuse_completes; // with UNAVAILABLE, so many
    bool refuse_publish;       // likewise
    char lost[16];             // what Renew says
    int64_t renew_ms;          // what Join says; 0: 100
    bool renew_waits;          // Renew answers when its wait is over, or a lease is lost
    unsigned n_renewing;       // calls that wait just now
    size_t n_renewed;          // leases that the last one named
    // the source
    uint8_t *source, *plan;
    size_t source_len, plan_len;
    struct buf leaves;
    uint8_t digest[OBJECT_DIGEST_SIZE];
    uint32_t n_segments;
    char first_rendition[32];
    // the worker
    char scratch[64];
    struct codec_host *codec;
    struct leaf_cache *cache;
    struct worker *worker;
};

// ---------------------------------------------------------------- waiting

static void lock(struct world *w)
{
    pthread_mutex_lock(&w->lock);
}

static void unlock(struct world *w)
{
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static bool wait_changed(struct world *w, int64_t until_us)
{
    struct timespec at = {.tv_sec = until_us / 1000000, .tv_nsec = until_us % 1000000 * 1000};
    return pthread_cond_timedwait(&w->changed, &w->lock, &at) == 0;
}

// Wait, under the lock, until the condition holds; the test fails after half a minute.
#define AWAIT(w, condition)                                                                        \
    do {                                                                                           \
        int64_t until_ = time_deadline_in_ms(WAIT_MS);                                             \
        lock(w);                                                                                   \
        while (!(condition) && wait_changed(w, until_))                                            \
            ;                                                                                      \
        bool holds_ = (condition);                                                                 \
        unlock(w);                                                                                 \
        if (!holds_)                                                                               \
            fail_msg("waited in vain for: %s", #condition);                                        \
    } while (0)

static void on_cancel(void *ud)
{
    struct world *w = ud;
    lock(w);
    unlock(w);
}

// In a handler: until *flag is false or the call is cancelled. False: cancelled.
static bool held(struct origin *o, struct rpc_call *call, const bool *flag)
{
    struct cancel *c = rpc_call_cancel(call);
    struct cancel_hook *hook = cancel_hook(c, on_cancel, o->w);
    lock(o->w);
    o->n_held += *flag;
    pthread_cond_broadcast(&o->w->changed);
    int64_t until = time_deadline_in_ms(WAIT_MS);
    while (*flag && !cancel_is_fired(c) && wait_changed(o->w, until))
        ;
    bool ok = !*flag;
    o->n_cancelled += !ok;
    unlock(o->w);
    cancel_unhook(hook);
    return ok;
}

// ---------------------------------------------------------------- a fake origin

static enum status origin_fails(struct origin *o, struct err *err)
{
    lock(o->w);
    enum status s = o->fails;
    unlock(o->w);
    return s ? err_set(err, s, "this origin is closed") : STATUS_OK;
}

static enum status on_tree(struct rpc_call *call, const Origin__TreeRequest *req, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    (void)req;
    enum status s = origin_fails(o, err);
    Origin__TreeReply m;
    origin__tree_reply__init(&m);
    m.digests = (ProtobufCBinaryData){.data = o->w->leaves.data, .len = o->w->leaves.len};
    return s == STATUS_OK ? origin_object_tree_write(call, &m, err) : s;
}

static enum status on_read(struct rpc_call *call, const Origin__ReadRequest *req, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    enum status s = origin_fails(o, err);
    lock(o->w);
    o->n_reads++;
    bool lies = o->lies;
    unlock(o->w);
    if (s == STATUS_OK && !held(o, call, &o->hold_read))
        return err_set(err, STATUS_CANCELLED, "cancelled");
    int64_t at = req->offset, end = at + req->length;
    uint8_t *piece = arena_alloc(rpc_call_arena(call), OBJECT_LEAF_BYTES);
    while (s == STATUS_OK && at < end) {
        size_t n = end - at < OBJECT_LEAF_BYTES ? (size_t)(end - at) : OBJECT_LEAF_BYTES;
        memcpy(piece, o->w->source + at, n);
        piece[n / 2] ^= lies;
        Origin__ReadReply m;
        origin__read_reply__init(&m);
        m.data = (ProtobufCBinaryData){.data = piece, .len = n};
        s = origin_object_read_write(call, &m, err);
        at += (int64_t)n;
    }
    return s;
}

static enum status on_put(struct rpc_call *call, Origin__PutObjectReply *ret, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    (void)ret;
    struct object obj = {.size = -1};
    uint8_t got[OBJECT_DIGEST_SIZE];
    AUTO(buf_done) struct buf b;
    buf_init(&b, MEDIA_MAX_SEGMENT_BYTES);
    Origin__PutObjectRequest *m = NULL;
    enum status s;
    while ((s = origin_object_put_read(call, &m, err)) == STATUS_OK && m) {
        if (obj.size < 0) {
            obj.size = m->size;
            if (m->digest.len != sizeof obj.digest || !str_eq(m->item_id, ITEM))
                return err_set(err, STATUS_INVALID_ARGUMENT, "no digest or item");
            memcpy(obj.digest, m->digest.data, sizeof obj.digest);
        }
        buf_append(&b, m->data.data, m->data.len);
    }
    if (s != STATUS_OK)
        return s;
    object_digest(got, b.data, b.len);
    if ((int64_t)b.len != obj.size || memcmp(got, obj.digest, sizeof got) != 0)
        return err_set(err, STATUS_DATA_LOSS, "not these bytes");
    if (!held(o, call, &o->hold_put))
        return err_set(err, STATUS_CANCELLED, "cancelled");
    lock(o->w);
    if (o->n_objects < MAX_OBJECTS)
        o->objects[o->n_objects++] = obj;
    unlock(o->w);
    return STATUS_OK;
}

static bool has_object(struct origin *o, ProtobufCBinaryData digest, int64_t size)
{
    for (size_t i = 0; i < o->n_objects; i++)
        if (digest.len == OBJECT_DIGEST_SIZE && o->objects[i].size == size &&
            memcmp(o->objects[i].digest, digest.data, digest.len) == 0)
            return true;
    return false;
}

// ---------------------------------------------------------------- a fake orchestrator

static struct lease *find_lease(struct world *w, const char *id)
{
    for (size_t i = 0; i < w->n_leases; i++)
        if (str_eq(w->leases[i].id, id))
            return &w->leases[i];
    return NULL;
}

static enum status on_join(struct rpc_call *call, const Transcode__JoinRequest *req,
                           Transcode__JoinReply *ret, struct err *err)
{
    (void)err;
    const struct world *w = rpc_call_self(call);
    ret->lease_ms = 30000;
    ret->renew_ms = w->renew_ms ? w->renew_ms : 100;
    return req->slots > 0 ? STATUS_OK : STATUS_INVALID_ARGUMENT;
}

static void describe_made(const struct lease *l, Transcode__Task *t, struct arena *a)
{
    if (!l->n_made)
        return;
    Transcode__MadeSegments *m = arena_alloc(a, sizeof *m);
    transcode__made_segments__init(m);
    t->made = arena_array(a, 1, sizeof t->made[0]);
    t->made[t->n_made++] = m;
    m->rendition = t->renditions[0];
    m->segments = arena_array(a, (size_t)l->n_made, sizeof m->segments[0]);
    for (int32_t i = 0; i < l->n_made; i++)
        m->segments[m->n_segments++] = l->first + 1 + i;
}

static Transcode__Task *describe(struct world *w, struct lease *l, struct arena *a)
{
    Transcode__Task *t = arena_alloc(a, sizeof *t);
    char **renditions = arena_alloc(a, sizeof *renditions);
    transcode__task__init(t);
    t->task_id = l->id;
    t->fence = l->fence;
    t->attempt = 1;
    t->kind = l->kind;
    t->item_id = arena_strdup(a, ITEM);
    t->source_digest = (ProtobufCBinaryData){.data = w->digest, .len = sizeof w->digest};
    t->source_size = (int64_t)w->source_len;
    t->source_origins = w->endpoint_list;
    t->n_source_origins = l->n_origins;
    t->target_origin = &w->endpoints[1];
    t->lease_ms = 30000;
    if (l->kind == TRANSCODE__TASK_KIND__CHUNK) {
        t->plan = (ProtobufCBinaryData){.data = w->plan, .len = w->plan_len};
        renditions[0] = w->first_rendition;
        t->renditions = renditions;
        t->n_renditions = 1;
        t->first_segment = l->first;
        t->n_segments = l->n;
        t->urgent = l->urgent;
        describe_made(l, t, a);
    }
    return t;
}

static enum status on_lease(struct rpc_call *call, const Transcode__LeaseRequest *req,
                            Transcode__LeaseReply *ret, struct err *err)
{
    struct world *w = rpc_call_self(call);
    struct cancel *c = rpc_call_cancel(call);
    struct arena *a = rpc_call_arena(call);
    (void)err;
    ret->tasks = arena_array(a, 1, sizeof *ret->tasks);
    struct cancel_hook *hook = cancel_hook(c, on_cancel, w);
    int64_t until = time_deadline_in_ms(req->wait_ms);
    lock(w);
    do {
        for (size_t i = 0; i < w->n_leases && !ret->n_tasks && !cancel_is_fired(c); i++)
            if (!w->leases[i].leased && req->wanted_only == w->leases[i].wanted) {
                w->leases[i].leased = true;
                ret->tasks[ret->n_tasks++] = describe(w, &w->leases[i], a);
            }
    } while (!ret->n_tasks && !cancel_is_fired(c) && wait_changed(w, until));
    unlock(w);
    cancel_unhook(hook);
    return STATUS_OK;
}

static bool names_lost(const struct world *w, const Transcode__RenewRequest *req)
{
    for (size_t i = 0; i < req->n_leases; i++)
        if (w->lost[0] && str_eq(req->leases[i]->task_id, w->lost))
            return true;
    return false;
}

static enum status on_renew(struct rpc_call *call, const Transcode__RenewRequest *req,
                            Transcode__RenewReply *ret, struct err *err)
{
    struct world *w = rpc_call_self(call);
    struct cancel *c = rpc_call_cancel(call);
    (void)err;
    ret->lost = arena_array(rpc_call_arena(call), 1, sizeof *ret->lost);
    struct cancel_hook *hook = cancel_hook(c, on_cancel, w);
    int64_t until = time_deadline_in_ms(req->wait_ms);
    lock(w);
    w->n_renewing++;
    w->n_renewed = req->n_leases;
    while (w->renew_waits && !names_lost(w, req) && !cancel_is_fired(c) && wait_changed(w, until))
        ;
    if (names_lost(w, req))
        ret->lost[ret->n_lost++] = arena_strdup(rpc_call_arena(call), w->lost);
    w->n_renewing--;
    ret->yield = arena_array(rpc_call_arena(call), MAX_TASKS, sizeof *ret->yield);
    for (size_t i = 0; i < req->n_leases; i++) {
        struct lease *l = find_lease(w, req->leases[i]->task_id);
        if (l && l->yield) {
            l->n_told++;
            ret->yield[ret->n_yield++] = l->id;
        }
    }
    unlock(w);
    cancel_unhook(hook);
    return STATUS_OK;
}

// All that a Complete says but the seconds, which are measured again.
static uint64_t summary(const Transcode__CompleteRequest *r)
{
    uint64_t h = (uint64_t)r->fence * 31 + r->n_outputs;
    for (size_t i = 0; i < r->n_outputs; i++)
        for (size_t k = 0; k < r->outputs[i]->digest.len; k++)
            h = (h ^ r->outputs[i]->digest.data[k]) * 1099511628211U;
    return h ? h : 1;
}

// How many of them lie at the target; SIZE_MAX when not all do.
static size_t count_stored(struct world *w, size_t n, Transcode__Output *const *outputs)
{
    for (size_t i = 0; i < n; i++)
        if (!has_object(&w->origins[1], outputs[i]->digest, outputs[i]->size) ||
            outputs[i]->init_digest.len != OBJECT_DIGEST_SIZE)
            return SIZE_MAX;
    return n;
}

static enum status on_publish(struct rpc_call *call, const Transcode__PublishRequest *req,
                              Transcode__PublishReply *ret, struct err *err)
{
    struct world *w = rpc_call_self(call);
    (void)ret;
    enum status s = STATUS_OK;
    lock(w);
    struct lease *l = find_lease(w, req->task_id);
    if (!l || l->fence != req->fence) {
        s = err_set(err, STATUS_ABORTED, "not that lease");
    } else if (w->refuse_publish) {
        s = err_set(err, STATUS_UNAVAILABLE, "not now");
    } else {
        if (!l->n_published) {
            l->first_published = req->outputs[0]->segment;
            l->n_at_first = req->n_outputs;
        }
        l->n_published += count_stored(w, req->n_outputs, req->outputs);
    }
    unlock(w);
    return s;
}

static enum status on_complete(struct rpc_call *call, const Transcode__CompleteRequest *req,
                               Transcode__CompleteReply *ret, struct err *err)
{
    struct world *w = rpc_call_self(call);
    (void)ret;
    enum status s = STATUS_OK;
    lock(w);
    struct lease *l = find_lease(w, req->task_id);
    if (!l || l->fence != req->fence || (l->said && l->said != summary(req))) {
        s = err_set(err, STATUS_ABORTED, "not that lease");
    } else if (w->refuse_completes) {
        w->refuse_completes--;
        l->said = summary(req);
        s = err_set(err, STATUS_UNAVAILABLE, "not now");
    } else {
        l->n_outputs = l->n_published + count_stored(w, req->n_outputs, req->outputs);
        l->plan_len = req->plan.len;
        l->n_completed++;
    }
    unlock(w);
    return s;
}

static enum status on_fail(struct rpc_call *call, const Transcode__FailRequest *req,
                           Transcode__FailReply *ret, struct err *err)
{
    struct world *w = rpc_call_self(call);
    (void)ret, (void)err;
    lock(w);
    struct lease *l = find_lease(w, req->task_id);
    if (l && l->fence == req->fence) {
        l->class = req->class_;
        str_copy(l->message, sizeof l->message, req->message);
        l->n_failed++;
    }
    unlock(w);
    return STATUS_OK;
}

static enum status on_release(struct rpc_call *call, const Transcode__ReleaseRequest *req,
                              Transcode__ReleaseReply *ret, struct err *err)
{
    struct world *w = rpc_call_self(call);
    (void)ret, (void)err;
    lock(w);
    for (size_t i = 0; i < req->n_leases; i++) {
        struct lease *l = find_lease(w, req->leases[i]->task_id);
        if (l && l->fence == req->leases[i]->fence)
            l->n_released++;
    }
    unlock(w);
    return STATUS_OK;
}

// ---------------------------------------------------------------- the world

static void make_identity(struct world *w, struct chan_identity *id, unsigned role)
{
    struct chan_grant g = {.role = role,
                           .not_before_s = time_wall_ms() / 1000 - 60,
                           .not_after_s = time_wall_ms() / 1000 + 3600};
    crypto_dh_keypair(id->public_key, id->secret);
    memcpy(g.key, id->public_key, sizeof g.key);
    snprintf(g.node_id, sizeof g.node_id, "node-%u", role);
    AUTO(buf_done) struct buf b;
    buf_init(&b, sizeof id->grant);
    assert_int_equal(chan_grant_sign(&b, &g, w->operator_secret, NULL), STATUS_OK);
    memcpy(id->grant, b.data, b.len);
    id->grant_len = b.len;
}

static struct rpc_server *make_server(struct world *w, const struct chan_identity *id)
{
    struct err err = ERR_INIT;
    struct rpc_server_opts o = {.identity = id, .trust = &w->trust, .pool = w->pool};
    struct rpc_server *s = rpc_server_new(&o, &err);
    if (!s)
        fail_msg("%s", err.msg);
    return s;
}

static struct rpc_client *listen_and_dial(struct world *w, struct rpc_server *s, const char *url,
                                          const struct chan_identity *id)
{
    struct err err = ERR_INIT;
    struct rpc_endpoint e = {.url = url};
    memcpy(e.key, id->public_key, sizeof e.key);
    struct rpc_client_opts o = {
        .identity = &w->worker_id, .trust = &w->trust, .endpoints = &e, .n_endpoints = 1};
    if (rpc_server_listen(s, url, false, NULL, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    struct rpc_client *c = rpc_client_new(&o, &err);
    if (!c)
        fail_msg("%s", err.msg);
    return c;
}

static void start_orchestrator(struct world *w)
{
    static const struct transcode_work_handlers handlers = {.join = on_join,
                                                            .lease = on_lease,
                                                            .renew = on_renew,
                                                            .publish = on_publish,
                                                            .complete = on_complete,
                                                            .fail = on_fail,
                                                            .release = on_release};
    w->server = make_server(w, &w->orchestrator_id);
    assert_int_equal(transcode_work_serve(w->server, &handlers, w, NULL), STATUS_OK);
    w->orchestrator =
        listen_and_dial(w, w->server, "inproc://worker-test-orchestrator", &w->orchestrator_id);
}

static void start_origin(struct world *w, size_t i)
{
    static const struct origin_object_handlers handlers = {
        .tree = on_tree, .read = on_read, .put = on_put};
    struct origin *o = &w->origins[i];
    char url[64];
    o->w = w;
    o->server = make_server(w, &w->origin_id);
    assert_int_equal(origin_object_serve(o->server, &handlers, o, NULL), STATUS_OK);
    snprintf(w->names[i], sizeof w->names[i], "origin-%zu", i);
    snprintf(url, sizeof url, "inproc://worker-test-%s", w->names[i]);
    o->client = listen_and_dial(w, o->server, url, &w->origin_id);
    common__endpoint__init(&w->endpoints[i]);
    w->endpoints[i].node_id = w->names[i];
    w->endpoint_list[i] = &w->endpoints[i];
}

static void stop_server(struct rpc_server *s, struct rpc_client *c)
{
    rpc_client_free(c);
    rpc_server_close(s);
    rpc_server_stop(s, 2000);
    rpc_server_free(s);
}

static struct rpc_client *orchestrator_client(void *ud, struct err *err)
{
    (void)err;
    return ((struct world *)ud)->orchestrator;
}

static struct rpc_client *origin_client(void *ud, const Common__Endpoint *at, struct err *err)
{
    struct world *w = ud;
    for (size_t i = 0; i < N_ORIGINS; i++)
        if (str_eq(w->names[i], at->node_id))
            return w->origins[i].client;
    (void)err_set(err, STATUS_UNAVAILABLE, "no origin %s", at->node_id);
    return NULL;
}

// Descriptors of children: their sources and themselves.
static size_t count_descriptors(void)
{
    size_t n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char link[64] = "";
        if (readlinkat(dirfd(d), e->d_name, link, sizeof link - 1) > 0)
            n += strstr(link, "memfd:cauce-source") || strstr(link, "[pidfd]");
    }
    closedir(d);
    return n;
}

static void start_host(struct world *w)
{
    char codec[512];
    const char *bin = getenv("CAUCE_BIN_DIR");
    snprintf(codec, sizeof codec, "%s/cauce-codec", bin ? bin : ".");
    w->codec = codec_host_new(codec);
    assert_non_null(w->codec);
}

static void start_worker(struct world *w, unsigned slots)
{
    if (!w->codec)
        start_host(w);
    struct err err = ERR_INIT;
    struct worker_env env = {.slots = slots,
                             .codec = w->codec,
                             .scratch = w->scratch,
                             .build = "test",
                             .cpu_class = "test",
                             .leaves = w->cache,
                             .orchestrator = orchestrator_client,
                             .origin = origin_client,
                             .ud = w};
    if (worker_new(&env, &w->worker, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

// Afterwards nothing of it is left: no process, no descriptor, nothing in the scratch folder but
// whole trees.
static void stop_worker(struct world *w)
{
    worker_free(w->worker);
    w->worker = NULL;
    codec_host_free(TAKE(w->codec));
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
    assert_int_equal(count_descriptors(), 0);
    DIR *d = opendir(w->scratch);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.' && !str_ends_with(e->d_name, ".tree"))
            fail_msg("left behind: %s", e->d_name);
    closedir(d);
}

static void set_source(struct world *w, const void *bytes, size_t n)
{
    struct object_hasher h;
    mem_free(w->source);
    buf_done(&w->leaves);
    w->source = mem_dup(bytes, n);
    w->source_len = n;
    assert_non_null(w->source);
    buf_init(&w->leaves, 1 << 20);
    object_hasher_init(&h, &w->leaves);
    assert_int_equal(object_hasher_update(&h, bytes, n, NULL), STATUS_OK);
    assert_int_equal(object_hasher_final(&h, w->digest, NULL), STATUS_OK);
}

static bool load_film(struct world *w)
{
    struct stat st;
    int fd = test_media_open(FILM);
    if (fd < 0)
        return false;
    assert_int_equal(fstat(fd, &st), 0);
    AUTO(mem_free_p) uint8_t *bytes = mem_alloc((size_t)st.st_size);
    assert_non_null(bytes);
    assert_int_equal(read(fd, bytes, (size_t)st.st_size), st.st_size);
    close(fd);
    set_source(w, bytes, (size_t)st.st_size);
    return true;
}

static enum status from_source(void *ud, int64_t offset, size_t len, void *dst, struct err *err)
{
    (void)err;
    memcpy(dst, ((struct world *)ud)->source + offset, len);
    return STATUS_OK;
}

// The plan that chunk tasks carry.
static void make_plan(struct world *w)
{
    struct media_task t = {
        .kind = MEDIA_TASK_PROBE, .source_size = (int64_t)w->source_len, .threads = 1};
    struct child_job job = {.host = w->codec,
                            .task = &t,
                            .deadline_us = time_deadline_in_ms(WAIT_MS),
                            .cancel_fd = -1,
                            .ud = w,
                            .fetch = from_source};
    struct child_result r;
    child_run(&job, &r);
    if (r.outcome != CHILD_OK)
        fail_msg("%s", r.text);
    w->plan = mem_dup(r.plan_bytes, r.plan_len);
    w->plan_len = r.plan_len;
    w->n_segments = (uint32_t)r.plan->video.n_segments;
    // The smallest rung: it takes the least time.
    size_t last = 0;
    while (last + 1 < r.plan->n_renditions && r.plan->renditions[last + 1].kind == MEDIA_VIDEO &&
           !r.plan->renditions[last + 1].lazy)
        last++;
    str_copy(w->first_rendition, sizeof w->first_rendition, r.plan->renditions[last].id);
    child_result_done(&r);
}

static int setup(void **state)
{
    struct world *w = mem_alloc(sizeof *w);
    assert_non_null(w);
    *state = w;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &a);
    pthread_condattr_destroy(&a);
    assert_int_equal(crypto_init(NULL), STATUS_OK);
    crypto_ed25519_keypair(w->trust.operator_public, w->operator_secret);
    make_identity(w, &w->worker_id, WORKER);
    make_identity(w, &w->orchestrator_id, ORCHESTRATOR);
    make_identity(w, &w->origin_id, ORIGIN);
    strcpy(w->scratch, "/tmp/cauce-worker-XXXXXX");
    assert_non_null(mkdtemp(w->scratch));
    start_host(w);
    w->pool = work_pool_new("test", 12, 1000);
    assert_non_null(w->pool);
    start_orchestrator(w);
    for (size_t i = 0; i < N_ORIGINS; i++)
        start_origin(w, i);
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    worker_free(w->worker);
    codec_host_free(w->codec);
    stop_server(w->server, w->orchestrator);
    for (size_t i = 0; i < N_ORIGINS; i++)
        stop_server(w->origins[i].server, w->origins[i].client);
    work_pool_free(w->pool);
    leaf_cache_free(w->cache);
    DIR *d = opendir(w->scratch);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.')
            (void)unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
    rmdir(w->scratch);
    buf_done(&w->leaves);
    mem_free(w->source);
    mem_free(w->plan);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    mem_free(w);
    return 0;
}

// From origin 0, and from origin 1 as well when n_origins is 2.
static struct lease *offer(struct world *w, Transcode__TaskKind kind, size_t n_origins)
{
    lock(w);
    struct lease *l = &w->leases[w->n_leases];
    *l = (struct lease){.kind = kind,
                        .n_origins = n_origins,
                        .n = (int32_t)w->n_segments,
                        .fence = 7 + (int64_t)w->n_leases};
    snprintf(l->id, sizeof l->id, "task-%zu", w->n_leases);
    assert_true(++w->n_leases <= MAX_TASKS);
    unlock(w);
    return l;
}

static void expect_nothing_said(struct world *w, const struct lease *l)
{
    lock(w);
    unsigned said = l->n_completed + l->n_failed + l->n_released;
    unlock(w);
    assert_int_equal(said, 0);
}

// ---------------------------------------------------------------- the tests

static void test_probe_and_chunk_are_stored_and_completed(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    start_worker(w, 1);
    struct lease *p = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, p->n_completed || p->n_failed);
    assert_int_equal(p->n_failed, 0);
    assert_int_equal(p->plan_len, w->plan_len);
    struct lease *c = offer(w, TRANSCODE__TASK_KIND__CHUNK, 1);
    AWAIT(w, c->n_completed || c->n_failed);
    if (c->n_failed)
        fail_msg("%s", c->message);
    assert_int_equal(c->n_outputs, w->n_segments);
    stop_worker(w);
}

static void test_leaves_kept_between_tasks_are_not_asked_for_again(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    w->cache = leaf_cache_new(16 << 20);
    assert_non_null(w->cache);
    start_worker(w, 1);
    struct lease *p = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, p->n_completed || p->n_failed);
    unsigned reads = w->origins[0].n_reads;
    assert_true(reads > 0);
    struct lease *again = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, again->n_completed || again->n_failed);
    assert_int_equal(again->n_completed, 1);
    assert_int_equal(w->origins[0].n_reads, reads);
    stop_worker(w);
}

static void lose(struct world *w, const struct lease *l)
{
    lock(w);
    str_copy(w->lost, sizeof w->lost, l->id);
    unlock(w);
}

static void release_hold(struct world *w, bool *flag)
{
    lock(w);
    *flag = false;
    unlock(w);
}

static void test_lost_lease_drops_the_work_and_the_next_is_taken(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    struct origin *o = &w->origins[0];
    o->hold_read = true;
    start_worker(w, 1);
    struct lease *first = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, o->n_held == 1);
    lose(w, first);
    AWAIT(w, o->n_cancelled == 1);
    release_hold(w, &o->hold_read);
    struct lease *next = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, next->n_completed || next->n_failed);
    assert_int_equal(next->n_completed, 1);
    expect_nothing_said(w, first);
    stop_worker(w);
}

// The renewal is due in a minute only: what ends the work is the one that waits, which must name
// the task that was begun after it.
static void test_lease_is_lost_while_a_renewal_waits(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    struct origin *o = &w->origins[0];
    o->hold_read = true;
    w->renew_ms = 60000;
    w->renew_waits = true;
    start_worker(w, 2);
    (void)offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, w->n_renewing == 1 && w->n_renewed == 1);
    struct lease *second = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, o->n_held == 2 && w->n_renewed == 2);
    lose(w, second);
    AWAIT(w, o->n_cancelled == 1);
    release_hold(w, &o->hold_read);
    expect_nothing_said(w, second);
    stop_worker(w);
}

static void test_cancelled_while_storing_ends_the_child(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    struct origin *target = &w->origins[1];
    target->hold_put = true;
    start_worker(w, 1);
    struct lease *first = offer(w, TRANSCODE__TASK_KIND__CHUNK, 1);
    AWAIT(w, target->n_held == 1);
    lose(w, first);
    AWAIT(w, target->n_cancelled == 1);
    release_hold(w, &target->hold_put);
    struct lease *next = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, next->n_completed || next->n_failed);
    expect_nothing_said(w, first);
    assert_int_equal(target->n_objects, 0);
    stop_worker(w);
}

static void test_closed_origin_is_a_transient_failure(void **state)
{
    struct world *w = *state;
    static const char film[] = "not looked at";
    set_source(w, film, sizeof film);
    w->origins[0].fails = STATUS_UNAVAILABLE;
    start_worker(w, 1);
    struct lease *l = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, l->n_completed || l->n_failed);
    assert_int_equal(l->n_completed, 0);
    assert_int_equal(l->class, TRANSCODE__FAIL_CLASS__TRANSIENT);
    assert_non_null(strstr(l->message, "this origin is closed"));
    stop_worker(w);
}

static void test_wrong_bytes_are_refused_and_had_elsewhere(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    w->origins[0].lies = true;
    start_worker(w, 1);
    struct lease *alone = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, alone->n_completed || alone->n_failed);
    assert_int_equal(alone->n_completed, 0);
    assert_int_equal(alone->class, TRANSCODE__FAIL_CLASS__TRANSIENT);
    assert_non_null(strstr(alone->message, "not what was uploaded"));
    assert_true(w->origins[0].n_reads > 0);
    struct lease *two = offer(w, TRANSCODE__TASK_KIND__PROBE, 2);
    AWAIT(w, two->n_completed || two->n_failed);
    assert_int_equal(two->n_completed, 1);
    assert_true(w->origins[1].n_reads > 0);
    stop_worker(w);
}

static void test_drain_gives_leases_back_within_five_seconds(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    struct origin *o = &w->origins[0];
    o->hold_read = true;
    start_worker(w, 2);
    struct lease *a = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    struct lease *b = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, o->n_held == 2);
    int64_t begin_ms = time_mono_ms();
    worker_drain(w->worker);
    stop_worker(w);
    assert_true(time_mono_ms() - begin_ms < 5000);
    assert_int_equal(a->n_released, 1);
    assert_int_equal(b->n_released, 1);
    assert_int_equal(a->n_completed + a->n_failed + b->n_completed + b->n_failed, 0);
}

static void test_hostile_file_is_rejected_with_a_reason(void **state)
{
    struct world *w = *state;
    static const char playlist[] =
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n";
    set_source(w, playlist, sizeof playlist - 1);
    start_worker(w, 1);
    struct lease *l = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, l->n_completed || l->n_failed);
    assert_int_equal(l->class, TRANSCODE__FAIL_CLASS__REJECTED);
    assert_non_null(strstr(l->message, "not a film or sound file"));
    stop_worker(w);
}

static void test_complete_is_repeated_under_the_same_token(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    w->refuse_completes = 4; // more than one call's own attempts
    start_worker(w, 1);
    struct lease *l = offer(w, TRANSCODE__TASK_KIND__CHUNK, 1);
    AWAIT(w, l->n_completed || l->n_failed);
    if (l->n_failed)
        fail_msg("%s", l->message);
    assert_int_equal(w->refuse_completes, 0);
    assert_int_equal(l->n_outputs, w->n_segments);
    stop_worker(w);
}

// A chunk of all segments, to a worker that is started for it.
static struct lease *offer_chunk(struct world *w, int32_t n_made)
{
    struct lease *l = offer(w, TRANSCODE__TASK_KIND__CHUNK, 1);
    lock(w);
    l->n_made = n_made;
    unlock(w);
    start_worker(w, 1);
    return l;
}

static void test_segments_are_published_as_they_are_made(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    struct lease *l = offer_chunk(w, 0);
    AWAIT(w, l->n_completed || l->n_failed);
    assert_int_equal(l->n_published, w->n_segments);
    assert_int_equal(l->n_outputs, w->n_segments);
    stop_worker(w);
}

static void test_what_could_not_be_published_comes_with_the_end(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    w->refuse_publish = true;
    struct lease *l = offer_chunk(w, 0);
    AWAIT(w, l->n_completed || l->n_failed);
    assert_int_equal(l->n_published, 0);
    assert_int_equal(l->n_outputs, w->n_segments);
    stop_worker(w);
}

static void test_what_is_made_already_is_left_out(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    assert_true(w->n_segments > 3);
    struct lease *l = offer_chunk(w, 2); // what is missing lies before and after
    AWAIT(w, l->n_completed || l->n_failed);
    assert_int_equal(l->n_outputs, w->n_segments - 2);
    stop_worker(w);
}

// Its first segment has a process of its own, the others share those of the gaps.
static void test_urgent_task_is_made_in_parts_and_whole(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    assert_true(w->n_segments > 3);
    struct lease *whole = offer(w, TRANSCODE__TASK_KIND__CHUNK, 1);
    struct lease *gaps = offer(w, TRANSCODE__TASK_KIND__CHUNK, 1);
    lock(w);
    whole->urgent = gaps->urgent = true;
    gaps->n_made = 1;
    unlock(w);
    start_worker(w, 1);
    AWAIT(w, whole->n_completed || whole->n_failed);
    AWAIT(w, gaps->n_completed || gaps->n_failed);
    assert_int_equal(whole->n_outputs, w->n_segments);
    assert_int_equal(whole->first_published, 0);
    assert_int_equal(whole->n_at_first, 1); // whoever waits for it does not wait for the next
    assert_int_equal(gaps->n_outputs, w->n_segments - 1);
    stop_worker(w);
}

static void test_yielding_task_is_given_back_after_its_segment(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    struct origin *o = &w->origins[0];
    o->hold_read = true;
    struct lease *l = offer_chunk(w, 0);
    AWAIT(w, o->n_held == 1);
    lock(w);
    l->yield = true;
    unlock(w);
    AWAIT(w, l->n_told > 1); // what the first said has been heard by then
    release_hold(w, &o->hold_read);
    AWAIT(w, l->n_released || l->n_completed || l->n_failed);
    assert_int_equal(l->n_released, 1);
    assert_int_equal(l->n_published, 1);
    assert_int_equal(l->first_published, 0);
    stop_worker(w);
}

static void test_spare_slot_makes_the_wanted_segment_while_the_others_are_busy(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    struct origin *o = &w->origins[0];
    o->hold_read = true;
    start_worker(w, 1);
    struct lease *slow = offer(w, TRANSCODE__TASK_KIND__CHUNK, 1);
    AWAIT(w, o->n_held == 1);
    lock(w);
    struct lease *l = &w->leases[w->n_leases++];
    *l = (struct lease){.kind = TRANSCODE__TASK_KIND__CHUNK,
                        .id = "wanted",
                        .n_origins = 1,
                        .first = 1,
                        .n = 3,
                        .wanted = true,
                        .fence = 99};
    unlock(w);
    AWAIT(w, o->n_held == 2);
    release_hold(w, &o->hold_read);
    AWAIT(w, l->n_released || l->n_completed || l->n_failed);
    assert_int_equal(l->n_released, 1); // the rest is for the others
    assert_int_equal(l->n_published, 1);
    assert_int_equal(l->first_published, 1);
    AWAIT(w, slow->n_completed);
    stop_worker(w);
}

static void test_two_slots_work_at_once(void **state)
{
    struct world *w = *state;
    if (!load_film(w))
        skip();
    make_plan(w);
    struct origin *o = &w->origins[0];
    o->hold_read = true;
    start_worker(w, 2);
    struct lease *a = offer(w, TRANSCODE__TASK_KIND__CHUNK, 1);
    struct lease *b = offer(w, TRANSCODE__TASK_KIND__PROBE, 1);
    AWAIT(w, o->n_held == 2);
    release_hold(w, &o->hold_read);
    AWAIT(w, (a->n_completed || a->n_failed) && (b->n_completed || b->n_failed));
    assert_int_equal(a->n_completed, 1);
    assert_int_equal(b->n_completed, 1);
    stop_worker(w);
}

int main(void)
{
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_probe_and_chunk_are_stored_and_completed),
        TEST(test_leaves_kept_between_tasks_are_not_asked_for_again),
        TEST(test_lost_lease_drops_the_work_and_the_next_is_taken),
        TEST(test_lease_is_lost_while_a_renewal_waits),
        TEST(test_cancelled_while_storing_ends_the_child),
        TEST(test_closed_origin_is_a_transient_failure),
        TEST(test_wrong_bytes_are_refused_and_had_elsewhere),
        TEST(test_drain_gives_leases_back_within_five_seconds),
        TEST(test_hostile_file_is_rejected_with_a_reason),
        TEST(test_complete_is_repeated_under_the_same_token),
        TEST(test_segments_are_published_as_they_are_made),
        TEST(test_what_could_not_be_published_comes_with_the_end),
        TEST(test_what_is_made_already_is_left_out),
        TEST(test_urgent_task_is_made_in_parts_and_whole),
        TEST(test_yielding_task_is_given_back_after_its_segment),
        TEST(test_spare_slot_makes_the_wanted_segment_while_the_others_are_busy),
        TEST(test_two_slots_work_at_once),
    };
    int n = cmocka_run_group_tests(tests, NULL, NULL);
    rpc_fini();
    return n;
}
