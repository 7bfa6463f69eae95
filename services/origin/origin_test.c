// The role in this process: its handlers over sealed connections, as users and services reach them.
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/origin.rpc.h"
#include "internal.h"

#define ITEM "01890a5d-ac96-774b-bcce-b302099a8001"
#define ITEM_2 "01890a5d-ac96-774b-bcce-b302099a8002"
#define ALICE "01890a5d-ac96-774b-bcce-b302099a8003"
#define BOB "01890a5d-ac96-774b-bcce-b302099a8004"
#define UPLOAD "01890a5d-ac96-774b-bcce-b302099a8011"
enum { LEAF = OBJECT_LEAF_BYTES, THREADS = 4 };

struct world {
    char dir[64];
    uint8_t operator_secret[64], session_secret[64], store_secret[64];
    struct chan_trust trust;
    struct chan_identity server, orchestrator, worker, session;
    struct svc_nodes *nodes;
    struct svc svc;
    struct origin_options options;
    struct origin *origin;
    char public_url[RPC_URL_SIZE], service_url[RPC_URL_SIZE];
    struct rpc_client *orch, *work, *user, *other_role;
    struct buf alice, bob, admin; // access tokens
};

// ---------------------------------------------------------------- fixture

static void make_node(struct world *w, struct chan_identity *id, unsigned role)
{
    int64_t now_s = time_wall_ms() / 1000;
    struct chan_grant g = {
        .role = role, .not_before_s = now_s - 60, .not_after_s = now_s + 3600, .serial = 1};
    crypto_dh_keypair(id->public_key, id->secret);
    memcpy(g.key, id->public_key, sizeof g.key);
    snprintf(g.node_id, sizeof g.node_id, "node-%u", role);
    struct buf b;
    buf_init(&b, sizeof id->grant);
    assert_int_equal(chan_grant_sign(&b, &g, w->operator_secret, NULL), STATUS_OK);
    memcpy(id->grant, b.data, b.len);
    id->grant_len = b.len;
    buf_done(&b);
}

static void load_nodes(struct world *w)
{
    uint8_t session_pub[32], store_pub[32];
    char op[64], se[64], st[64], key[64], path[128];
    crypto_ed25519_keypair(session_pub, w->session_secret);
    crypto_ed25519_keypair(store_pub, w->store_secret);
    str_b64(op, w->trust.operator_public, 32);
    str_b64(se, session_pub, 32);
    str_b64(st, store_pub, 32);
    str_b64(key, w->server.public_key, 32);
    snprintf(path, sizeof path, "%s/nodes.ini", w->dir);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fprintf(f,
            "[operator]\nkey = %s\n"
            "[video-1]\nrole = origin\nkind = video\nurl = inproc://video\nkey = %s\n"
            "[session-1]\nrole = session\nurl = inproc://session\nkey = %s\ntoken-key = %s\n"
            "[store-1]\nrole = store\nurl = inproc://store\nkey = %s\ntoken-key = %s\n",
            op, key, key, se, key, st);
    fclose(f);
    struct err e = ERR_INIT;
    if (svc_nodes_load(path, &w->nodes, &e) != STATUS_OK)
        fail_msg("%s", e.msg);
}

static void access_token(struct world *w, const char *id, unsigned roles, struct buf *ret)
{
    struct rpc_user u = {.roles = roles, .exp_wall_ms = time_wall_ms() + 60000};
    str_copy(u.id, sizeof u.id, id);
    str_copy(u.name, sizeof u.name, "somebody");
    str_copy(u.session, sizeof u.session, "01890a5d-ac96-774b-bcce-b302099a80ff");
    buf_init(ret, 4096);
    assert_int_equal(svc_token_mint_access(w->session_secret, &u, ret, NULL), STATUS_OK);
}

static char *media_token(struct world *w, const char *user, const char *item)
{
    struct svc_media_claims c = {.rights = SVC_RIGHT_STREAM, .exp_wall_ms = time_wall_ms() + 60000};
    str_copy(c.sub, sizeof c.sub, user);
    str_copy(c.item, sizeof c.item, item);
    struct buf b;
    size_t n;
    buf_init(&b, 4096);
    assert_int_equal(svc_token_mint_media(w->store_secret, &c, &b, NULL), STATUS_OK);
    return (char *)buf_take(&b, &n);
}

static struct rpc_client *client(struct world *w, const char *url, const struct chan_identity *id)
{
    struct rpc_endpoint ep = {.url = url};
    memcpy(ep.key, w->server.public_key, 32);
    struct rpc_client_opts o = {.identity = id,
                                .trust = id ? &w->trust : NULL,
                                .expect_role = id ? ROLE_NODE_ORIGIN : 0,
                                .endpoints = &ep,
                                .n_endpoints = 1};
    struct err e = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &e);
    if (!c)
        fail_msg("%s", e.msg);
    return c;
}

static void start_origin(struct world *w)
{
    struct err e = ERR_INIT;
    struct rpc_server_opts so = {.identity = &w->server,
                                 .trust = &w->trust,
                                 .pool = w->svc.pool,
                                 .verify = svc_tokens_verify_access,
                                 .verify_ud = w->svc.tokens};
    w->svc.server = rpc_server_new(&so, &e);
    assert_non_null(w->svc.server);
    void *self = NULL;
    if (origin_role.start(&w->svc, &w->options, &self, &e) != STATUS_OK)
        fail_msg("%s", e.msg);
    w->origin = self;
    assert_int_equal(
        rpc_server_listen(w->svc.server, "inproc://origin-users", true, w->public_url, &e), 0);
    assert_int_equal(
        rpc_server_listen(w->svc.server, "inproc://origin-services", false, w->service_url, &e), 0);
}

static void stop_origin(struct world *w)
{
    origin_role.drain(w->origin);
    rpc_server_close(w->svc.server);
    rpc_server_stop(w->svc.server, 1000);
    rpc_server_free(w->svc.server);
    origin_role.stop(w->origin);
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    strcpy(w->dir, "/tmp/cauce-origin-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    crypto_ed25519_keypair(w->trust.operator_public, w->operator_secret);
    make_node(w, &w->session, 8);
    make_node(w, &w->orchestrator, 9);
    make_node(w, &w->worker, 10);
    make_node(w, &w->server, 12);
    load_nodes(w);
    w->svc = (struct svc){.self = svc_nodes_find(w->nodes, "video-1"),
                          .nodes = w->nodes,
                          .tokens = svc_tokens_new(w->nodes),
                          .identity = &w->server,
                          .trust = &w->trust,
                          .pool = work_pool_new("origin", THREADS, 1000),
                          .timers = work_timers_new(),
                          .options = &w->options.common};
    char data[128];
    snprintf(data, sizeof data, "%s/deep/data", w->dir);
    w->options = (struct origin_options){.kind = mem_strdup("video"),
                                         .data = mem_strdup(data),
                                         .common.threads = THREADS,
                                         .grace_ms = 3600000,
                                         .upload_ttl_ms = 3600000,
                                         .collect_every_ms = 3600000};
    start_origin(w);
    access_token(w, ALICE, ROLE_USER | ROLE_CREATOR, &w->alice);
    access_token(w, BOB, ROLE_USER, &w->bob);
    access_token(w, BOB, ROLE_ADMIN, &w->admin);
    w->orch = client(w, w->service_url, &w->orchestrator);
    w->work = client(w, w->service_url, &w->worker);
    w->other_role = client(w, w->service_url, &w->session);
    w->user = client(w, w->public_url, NULL);
    *state = w;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static int teardown(void **state)
{
    struct world *w = *state;
    rpc_client_free(w->orch);
    rpc_client_free(w->work);
    rpc_client_free(w->other_role);
    rpc_client_free(w->user);
    stop_origin(w);
    work_pool_free(w->svc.pool);
    work_timers_free(w->svc.timers);
    svc_tokens_free(w->svc.tokens);
    svc_nodes_free(w->nodes);
    mem_free(w->options.kind);
    mem_free(w->options.data);
    buf_done(&w->alice);
    buf_done(&w->bob);
    buf_done(&w->admin);
    nftw(w->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(w);
    return 0;
}

static struct rpc_opts as(const struct buf *token)
{
    return (struct rpc_opts){.token = buf_str(token)};
}

static uint8_t *bytes_of(size_t n)
{
    uint8_t *p = malloc(n + 1);
    assert_non_null(p);
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(i * UINT64_C(2654435761) >> 11);
    return p;
}

// ---------------------------------------------------------------- storing a result

static enum status put_object(struct rpc_client *c, const uint8_t *p, size_t n,
                              const uint8_t digest[32], const char *item, bool *existed)
{
    struct rpc_stream *s = NULL;
    struct err e = ERR_INIT;
    enum status st = origin_object_put_open(c, NULL, &s, &e);
    Origin__PutObjectRequest m;
    origin__put_object_request__init(&m);
    m.digest = (ProtobufCBinaryData){32, (uint8_t *)(uintptr_t)digest};
    m.size = (int64_t)n;
    m.item_id = (char *)(uintptr_t)item;
    for (size_t at = 0; st == STATUS_OK && (at < n || at == 0);) {
        size_t take = n - at < 100000 ? n - at : 100000;
        m.data = (ProtobufCBinaryData){take, (uint8_t *)(uintptr_t)(p + at)};
        st = origin_object_put_send(s, &m, &e);
        at += take;
        if (n == 0)
            break;
        origin__put_object_request__init(&m);
    }
    AUTO(rpc_message_free_p) Origin__PutObjectReply *r = NULL;
    if (st == STATUS_OK)
        st = origin_object_put_finish(s, &r, &e);
    if (st == STATUS_OK && existed)
        *existed = r->existed;
    rpc_stream_free(s);
    return st;
}

static enum status read_object(struct rpc_client *c, const struct rpc_opts *o,
                               const uint8_t *digest, int64_t offset, int64_t length,
                               const char *media, struct buf *ret)
{
    Origin__ReadRequest req;
    origin__read_request__init(&req);
    req.digest = (ProtobufCBinaryData){32, (uint8_t *)(uintptr_t)digest};
    req.offset = offset;
    req.length = length;
    if (media)
        req.media_token = (char *)(uintptr_t)media;
    struct rpc_stream *s = NULL;
    buf_reset(ret);
    enum status st = origin_object_read_open(c, o, &req, &s, NULL);
    while (st == STATUS_OK) {
        AUTO(rpc_message_free_p) Origin__ReadReply *r = NULL;
        st = origin_object_read_recv(s, &r, NULL);
        if (st != STATUS_OK || !r)
            break;
        assert_true(r->data.len > 0 && r->data.len <= 4 * LEAF);
        assert_true(buf_append(ret, r->data.data, r->data.len));
        if (length == 0)
            assert_true((offset + (int64_t)ret->len) % (4 * LEAF) == 0 || r->data.len < 4 * LEAF);
    }
    rpc_stream_free(s);
    return st;
}

static enum status read_tree(struct rpc_client *c, const struct rpc_opts *o, const uint8_t *digest,
                             const char *media, struct buf *ret)
{
    Origin__TreeRequest req;
    origin__tree_request__init(&req);
    req.digest = (ProtobufCBinaryData){32, (uint8_t *)(uintptr_t)digest};
    if (media)
        req.media_token = (char *)(uintptr_t)media;
    struct rpc_stream *s = NULL;
    enum status st = origin_object_tree_open(c, o, &req, &s, NULL);
    while (st == STATUS_OK) {
        AUTO(rpc_message_free_p) Origin__TreeReply *r = NULL;
        st = origin_object_tree_recv(s, &r, NULL);
        if (st != STATUS_OK || !r)
            break;
        assert_true(buf_append(ret, r->digests.data, r->digests.len));
    }
    rpc_stream_free(s);
    return st;
}

static bool stat_object(struct world *w, const uint8_t *digest, int64_t *size)
{
    Origin__StatRequest req;
    origin__stat_request__init(&req);
    req.digest = (ProtobufCBinaryData){32, (uint8_t *)(uintptr_t)digest};
    AUTO(rpc_message_free_p) Origin__StatReply *r = NULL;
    assert_int_equal(origin_object_stat(w->orch, NULL, &req, &r, NULL), STATUS_OK);
    *size = r->size;
    return r->exists;
}

static void test_result_is_stored_pinned_and_read_back(void **state)
{
    struct world *w = *state;
    enum { SIZE = 3 * (1 << 20) + 77 };
    uint8_t *p = bytes_of(SIZE), digest[32];
    object_digest(digest, p, SIZE);
    bool existed = true;
    int64_t size = -1;
    assert_false(stat_object(w, digest, &size));
    assert_int_equal(put_object(w->work, p, SIZE, digest, ITEM, &existed), STATUS_OK);
    assert_false(existed);
    assert_true(stat_object(w, digest, &size));
    assert_int_equal(size, SIZE);
    assert_true(object_store_is_pinned(w->origin->store, ITEM, digest));
    assert_int_equal(put_object(w->work, p, SIZE, digest, ITEM_2, &existed), STATUS_OK);
    assert_true(existed);
    assert_true(object_store_is_pinned(w->origin->store, ITEM_2, digest));

    static const struct {
        int64_t offset, length, want;
    } rows[] = {{0, 0, SIZE},
                {SIZE - 5, 0, 5},
                {100, 10, 10},
                {LEAF - 1, 2, 2},
                {SIZE, 0, 0},
                {4 * LEAF, 9 * LEAF, 9 * LEAF},
                {777, SIZE - 777, SIZE - 777}};
    struct buf got, leaves;
    buf_init(&got, 8 << 20);
    buf_init(&leaves, 1 << 20);
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        assert_int_equal(
            read_object(w->work, NULL, digest, rows[i].offset, rows[i].length, NULL, &got),
            STATUS_OK);
        assert_int_equal(got.len, rows[i].want);
        if (got.len > 0)
            assert_memory_equal(got.data, p + rows[i].offset, got.len);
    }
    assert_int_equal(read_object(w->work, NULL, digest, -1, 0, NULL, &got), STATUS_OUT_OF_RANGE);
    assert_int_equal(read_object(w->work, NULL, digest, SIZE, 1, NULL, &got), STATUS_OUT_OF_RANGE);
    assert_int_equal(read_object(w->work, NULL, digest, 1, INT64_MAX, NULL, &got),
                     STATUS_OUT_OF_RANGE);
    assert_int_equal(read_tree(w->work, NULL, digest, NULL, &leaves), STATUS_OK);
    assert_int_equal(object_verify_leaves(digest, SIZE, leaves.data, leaves.len, NULL), STATUS_OK);
    digest[0] ^= 1;
    assert_int_equal(read_object(w->work, NULL, digest, 0, 0, NULL, &got), STATUS_NOT_FOUND);
    buf_done(&got);
    buf_done(&leaves);
    free(p);
}

static void test_wrong_result_is_refused(void **state)
{
    struct world *w = *state;
    uint8_t *p = bytes_of(100000), digest[32];
    int64_t size;
    object_digest(digest, p, 100000);
    p[500] ^= 1;
    assert_int_equal(put_object(w->work, p, 100000, digest, ITEM, NULL), STATUS_DATA_LOSS);
    assert_int_equal(put_object(w->work, p, 100000, digest, "", NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(put_object(w->work, p, 100000, digest, "no/id", NULL),
                     STATUS_INVALID_ARGUMENT);
    assert_false(stat_object(w, digest, &size));
    struct object_store_usage u;
    object_store_usage(w->origin->store, &u);
    assert_int_equal(u.objects, 0);
    assert_int_equal(u.reserved_bytes, 0);
    free(p);
}

// Many readers that do not read must not keep others from being served: there are four threads.
static void test_slow_readers_hold_no_thread(void **state)
{
    struct world *w = *state;
    enum { SIZE = 24 << 20, N = 12 };
    uint8_t *p = bytes_of(SIZE), digest[32];
    object_digest(digest, p, SIZE);
    assert_int_equal(put_object(w->work, p, SIZE, digest, ITEM, NULL), STATUS_OK);
    struct rpc_stream *slow[N] = {NULL};
    Origin__ReadRequest req;
    origin__read_request__init(&req);
    req.digest = (ProtobufCBinaryData){32, digest};
    struct rpc_opts o = {.deadline_us = time_mono_us() + 60000000};
    for (int i = 0; i < N; i++) {
        AUTO(rpc_message_free_p) Origin__ReadReply *r = NULL;
        assert_int_equal(origin_object_read_open(w->work, &o, &req, &slow[i], NULL), STATUS_OK);
        assert_int_equal(origin_object_read_recv(slow[i], &r, NULL), STATUS_OK);
        assert_non_null(r);
    }
    struct buf got;
    buf_init(&got, SIZE);
    assert_int_equal(read_object(w->orch, NULL, digest, 0, 0, NULL, &got), STATUS_OK);
    assert_memory_equal(got.data, p, SIZE);
    for (int i = 1; i < N; i++)
        rpc_stream_free(slow[i]); // cancelled in the middle
    size_t n = 4 * LEAF;          // and the first one goes on where it was
    for (;;) {
        AUTO(rpc_message_free_p) Origin__ReadReply *r = NULL;
        assert_int_equal(origin_object_read_recv(slow[0], &r, NULL), STATUS_OK);
        if (!r)
            break;
        assert_memory_equal(r->data.data, p + n, r->data.len);
        n += r->data.len;
    }
    assert_int_equal(n, SIZE);
    rpc_stream_free(slow[0]);
    buf_done(&got);
    free(p);
}

// ---------------------------------------------------------------- who may read

static void test_users_read_with_a_media_token_of_theirs_only(void **state)
{
    struct world *w = *state;
    uint8_t *p = bytes_of(1000), digest[32];
    object_digest(digest, p, 1000);
    assert_int_equal(put_object(w->work, p, 1000, digest, ITEM, NULL), STATUS_OK);
    AUTO(mem_free_p) char *good = media_token(w, ALICE, ITEM);
    AUTO(mem_free_p) char *of_bob = media_token(w, BOB, ITEM);
    AUTO(mem_free_p) char *other_item = media_token(w, ALICE, ITEM_2);
    const struct {
        const struct buf *token;
        const char *media;
        enum status want;
    } rows[] = {
        {&w->alice, good, STATUS_OK},
        {&w->bob, of_bob, STATUS_OK},
        {&w->alice, of_bob, STATUS_PERMISSION_DENIED},
        {&w->alice, other_item, STATUS_PERMISSION_DENIED},
        {&w->alice, NULL, STATUS_PERMISSION_DENIED},
        {&w->alice, "v4.public.rubbish", STATUS_UNAUTHENTICATED},
        {&w->alice, buf_str(&w->alice), STATUS_UNAUTHENTICATED}, // an access token is none
    };
    struct buf got;
    buf_init(&got, 1 << 20);
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct rpc_opts o = as(rows[i].token);
        assert_int_equal(read_object(w->user, &o, digest, 0, 0, rows[i].media, &got), rows[i].want);
        buf_reset(&got);
        assert_int_equal(read_tree(w->user, &o, digest, rows[i].media, &got), rows[i].want);
    }
    assert_int_equal(read_object(w->user, NULL, digest, 0, 0, good, &got), STATUS_UNAUTHENTICATED);
    struct rpc_opts o = as(&w->alice); // a service that may not read by itself, with a user's token
    assert_int_equal(read_object(w->other_role, &o, digest, 0, 0, NULL, &got),
                     STATUS_PERMISSION_DENIED);
    buf_done(&got);
    free(p);
}

static void test_users_cannot_do_what_is_the_services(void **state)
{
    struct world *w = *state;
    uint8_t digest[32] = {1};
    struct rpc_opts o = as(&w->alice);
    Origin__PinRequest pin;
    origin__pin_request__init(&pin);
    Origin__CreateRequest create;
    origin__create_request__init(&create);
    Origin__FinishRequest finish;
    origin__finish_request__init(&finish);
    Origin__DropRequest drop;
    origin__drop_request__init(&drop);
    Origin__UsageRequest usage;
    origin__usage_request__init(&usage);
    AUTO(rpc_message_free_p) Origin__UsageReply *used = NULL;
    Origin__PinReply *pr = NULL;
    Origin__CreateReply *cr = NULL;
    Origin__FinishReply *fr = NULL;
    Origin__DropReply *dr = NULL;
    assert_int_equal(origin_object_unpin(w->user, &o, &pin, &pr, NULL), STATUS_PERMISSION_DENIED);
    assert_int_equal(origin_object_pin(w->work, NULL, &pin, &pr, NULL), STATUS_PERMISSION_DENIED);
    assert_int_equal(origin_upload_create(w->user, &o, &create, &cr, NULL),
                     STATUS_PERMISSION_DENIED);
    assert_int_equal(origin_upload_finish(w->user, &o, &finish, &fr, NULL),
                     STATUS_PERMISSION_DENIED);
    assert_int_equal(origin_upload_drop(w->user, &o, &drop, &dr, NULL), STATUS_PERMISSION_DENIED);
    assert_int_equal(origin_object_usage(w->user, &o, &usage, &used, NULL),
                     STATUS_PERMISSION_DENIED);
    o = as(&w->admin);
    assert_int_equal(origin_object_usage(w->user, &o, &usage, &used, NULL), STATUS_OK);
    assert_int_equal(put_object(w->user, digest, 10, digest, ITEM, NULL), STATUS_PERMISSION_DENIED);
}

// ---------------------------------------------------------------- uploads

struct file {
    size_t size;
    uint8_t *p, digest[32];
    struct buf leaves;
};

static void file_init(struct file *f, size_t size)
{
    *f = (struct file){.size = size, .p = bytes_of(size)};
    buf_init(&f->leaves, 1 << 20);
    struct object_hasher h;
    object_hasher_init(&h, &f->leaves);
    assert_int_equal(object_hasher_update(&h, f->p, size, NULL), STATUS_OK);
    assert_int_equal(object_hasher_final(&h, f->digest, NULL), STATUS_OK);
}

static void file_done(struct file *f)
{
    free(f->p);
    buf_done(&f->leaves);
}

static Origin__CreateReply *create_as(struct world *w, struct file *f, bool proven)
{
    Origin__CreateRequest req;
    origin__create_request__init(&req);
    req.upload_id = (char *)(uintptr_t)UPLOAD;
    req.owner = (char *)(uintptr_t)ALICE;
    req.item_id = (char *)(uintptr_t)ITEM;
    req.digest = (ProtobufCBinaryData){32, f->digest};
    req.size = (int64_t)f->size;
    req.proven = proven;
    Origin__CreateReply *r = NULL;
    assert_int_equal(origin_upload_create(w->orch, NULL, &req, &r, NULL), STATUS_OK);
    return r;
}

static Origin__CreateReply *create(struct world *w, struct file *f)
{
    return create_as(w, f, false);
}

static enum status send_leaves(struct world *w, const struct buf *token, struct file *f)
{
    struct rpc_opts o = as(token);
    struct rpc_stream *s = NULL;
    enum status st = origin_upload_leaves_open(w->user, &o, &s, NULL);
    Origin__LeavesRequest m;
    origin__leaves_request__init(&m);
    m.upload_id = (char *)(uintptr_t)UPLOAD;
    for (size_t at = 0; st == STATUS_OK && at < f->leaves.len; at += 100) {
        m.digests = (ProtobufCBinaryData){f->leaves.len - at < 100 ? f->leaves.len - at : 100,
                                          f->leaves.data + at};
        st = origin_upload_leaves_send(s, &m, NULL);
        origin__leaves_request__init(&m);
    }
    AUTO(rpc_message_free_p) Origin__LeavesReply *r = NULL;
    if (st == STATUS_OK)
        st = origin_upload_leaves_finish(s, &r, NULL);
    rpc_stream_free(s);
    return st;
}

// Send leaves [first, last); cut: end without the half-close, as a lost connection does.
static enum status send_range(struct world *w, const struct buf *token, struct file *f,
                              int64_t first, int64_t last, bool cut, int64_t *stored)
{
    struct rpc_opts o = as(token);
    struct rpc_stream *s = NULL;
    struct err e = ERR_INIT;
    enum status st = origin_upload_put_open(w->user, &o, &s, &e);
    Origin__PutRequest m;
    origin__put_request__init(&m);
    m.upload_id = (char *)(uintptr_t)UPLOAD;
    for (int64_t leaf = first; st == STATUS_OK && leaf < last; leaf += 4) {
        size_t at = (size_t)leaf * LEAF, end = (size_t)(leaf + 4 < last ? leaf + 4 : last) * LEAF;
        m.leaf = leaf;
        m.data = (ProtobufCBinaryData){(end < f->size ? end : f->size) - at, f->p + at};
        st = origin_upload_put_send(s, &m, &e);
        origin__put_request__init(&m);
    }
    AUTO(rpc_message_free_p) Origin__PutReply *r = NULL;
    if (st == STATUS_OK && !cut)
        st = origin_upload_put_finish(s, &r, &e);
    if (r && stored)
        *stored = r->stored_leaves;
    rpc_stream_free(s);
    return st;
}

static Origin__MissingReply *missing(struct world *w, const struct buf *token, enum status want)
{
    struct rpc_opts o = as(token);
    Origin__MissingRequest req;
    origin__missing_request__init(&req);
    req.upload_id = (char *)(uintptr_t)UPLOAD;
    Origin__MissingReply *r = NULL;
    assert_int_equal(origin_upload_missing(w->user, &o, &req, &r, NULL), want);
    return r;
}

static enum status finish(struct world *w, const struct file *f)
{
    Origin__FinishRequest req;
    origin__finish_request__init(&req);
    req.upload_id = (char *)(uintptr_t)UPLOAD;
    AUTO(rpc_message_free_p) Origin__FinishReply *r = NULL;
    enum status st = origin_upload_finish(w->orch, NULL, &req, &r, NULL);
    if (st == STATUS_OK) {
        assert_int_equal(r->size, f->size);
        assert_memory_equal(r->digest.data, f->digest, 32);
    }
    return st;
}

static void test_upload_is_sent_cut_resumed_and_finished(void **state)
{
    struct world *w = *state;
    struct file f;
    file_init(&f, 40 * LEAF + 5);
    AUTO(rpc_message_free_p) Origin__CreateReply *c = create(w, &f);
    assert_false(c->existed);
    assert_int_equal(c->missing_bytes, f.size);
    AUTO(rpc_message_free_p) Origin__MissingReply *m = missing(w, &w->alice, STATUS_OK);
    assert_true(m->need_leaves);
    assert_int_equal(send_range(w, &w->alice, &f, 0, 4, false, NULL), STATUS_FAILED_PRECONDITION);
    assert_int_equal(send_leaves(w, &w->alice, &f), STATUS_OK);
    int64_t stored = 0;
    assert_int_equal(send_range(w, &w->alice, &f, 8, 16, false, &stored), STATUS_OK);
    assert_int_equal(stored, 8);
    assert_int_equal(finish(w, &f), STATUS_FAILED_PRECONDITION);
    f.p[21 * LEAF + 3] ^= 1;
    assert_int_equal(send_range(w, &w->alice, &f, 20, 24, false, NULL), STATUS_DATA_LOSS);
    f.p[21 * LEAF + 3] ^= 1;
    assert_int_equal(send_range(w, &w->alice, &f, 30, 34, true, NULL), STATUS_OK);

    rpc_client_free(w->user); // the origin comes back with what it had
    rpc_client_free(w->orch);
    stop_origin(w);
    start_origin(w);
    w->user = client(w, w->public_url, NULL);
    w->orch = client(w, w->service_url, &w->orchestrator);
    rpc_message_free(TAKE(m));
    m = missing(w, &w->alice, STATUS_OK);
    assert_false(m->need_leaves);
    assert_int_equal(m->missing[0]->first, 0);
    assert_int_equal(m->missing[0]->count, 8);
    assert_int_equal(m->missing[1]->first, 16);
    assert_int_equal(m->missing[1]->count, 4);
    assert_int_equal(m->missing[2]->first, 21); // leaf 20 came before the bad one
    for (size_t i = 0; i < m->n_missing; i++)
        assert_int_equal(send_range(w, &w->alice, &f, m->missing[i]->first,
                                    m->missing[i]->first + m->missing[i]->count, false, &stored),
                         STATUS_OK);
    assert_int_equal(finish(w, &f), STATUS_OK);
    assert_int_equal(finish(w, &f), STATUS_OK);
    assert_true(object_store_is_pinned(w->origin->store, ITEM, f.digest));
    AUTO(mem_free_p) char *media = media_token(w, BOB, ITEM);
    struct buf got;
    buf_init(&got, f.size);
    struct rpc_opts o = as(&w->bob);
    assert_int_equal(read_object(w->user, &o, f.digest, 0, 0, media, &got), STATUS_OK);
    assert_int_equal(got.len, f.size);
    assert_memory_equal(got.data, f.p, f.size);
    buf_done(&got);
    file_done(&f);
}

// Whoever merely knows the digest of an object that is here gets nothing for it.
static void test_object_that_is_here_must_be_proven(void **state)
{
    struct world *w = *state;
    struct file f;
    file_init(&f, 40 * LEAF + 5);
    assert_int_equal(put_object(w->work, f.p, f.size, f.digest, ITEM_2, NULL), STATUS_OK);
    AUTO(rpc_message_free_p) Origin__CreateReply *c = create(w, &f);
    assert_false(c->existed);
    assert_in_range(c->missing_bytes, 7 * LEAF, 8 * LEAF);
    assert_int_equal(finish(w, &f), STATUS_FAILED_PRECONDITION);
    AUTO(rpc_message_free_p) Origin__MissingReply *m = missing(w, &w->alice, STATUS_OK);
    assert_false(m->need_leaves);
    assert_int_equal(m->missing_bytes, c->missing_bytes);
    size_t at = (size_t)m->missing[0]->first * LEAF;
    f.p[at] ^= 1;
    assert_int_equal(
        send_range(w, &w->alice, &f, m->missing[0]->first, m->missing[0]->first + 1, false, NULL),
        STATUS_DATA_LOSS);
    f.p[at] ^= 1;
    int64_t stored = 0, all = 0;
    for (size_t i = 0; i < m->n_missing; i++, all += stored)
        assert_int_equal(send_range(w, &w->alice, &f, m->missing[i]->first,
                                    m->missing[i]->first + m->missing[i]->count, false, &stored),
                         STATUS_OK);
    assert_int_equal(all, 8);
    assert_int_equal(finish(w, &f), STATUS_OK);
    assert_true(object_store_is_pinned(w->origin->store, ITEM, f.digest));
    file_done(&f);
}

static void test_object_that_the_owner_has_already_needs_no_bytes(void **state)
{
    struct world *w = *state;
    struct file f;
    file_init(&f, 40 * LEAF + 5);
    assert_int_equal(put_object(w->work, f.p, f.size, f.digest, ITEM_2, NULL), STATUS_OK);
    AUTO(rpc_message_free_p) Origin__CreateReply *c = create_as(w, &f, true);
    assert_true(c->existed);
    assert_int_equal(finish(w, &f), STATUS_OK);
    assert_true(object_store_is_pinned(w->origin->store, ITEM, f.digest));
    file_done(&f);
}

// Users that send slowly keep nobody from reading, nor the services from their calls.
static void test_slow_senders_leave_threads_for_others(void **state)
{
    struct world *w = *state;
    enum { N = 12 };
    struct file f;
    file_init(&f, 40 * LEAF);
    rpc_message_free(create(w, &f));
    assert_int_equal(send_leaves(w, &w->alice, &f), STATUS_OK);
    struct rpc_opts o = as(&w->alice);
    o.deadline_us = time_deadline_in_ms(60000);
    struct rpc_stream *slow[N] = {NULL};
    int refused = 0;
    for (int i = 0; i < N; i++) {
        Origin__PutRequest m;
        origin__put_request__init(&m);
        m.upload_id = (char *)(uintptr_t)UPLOAD;
        m.data = (ProtobufCBinaryData){LEAF, f.p};
        assert_int_equal(origin_upload_put_open(w->user, &o, &slow[i], NULL), STATUS_OK);
        enum status st = origin_upload_put_send(slow[i], &m, NULL);
        assert_true(st == STATUS_OK || st == STATUS_RESOURCE_EXHAUSTED);
    }
    rpc_message_free(missing(w, &w->alice, STATUS_OK)); // a thread is there for this, and for
    assert_int_equal(put_object(w->work, f.p, LEAF, f.digest, ITEM_2, NULL), STATUS_DATA_LOSS);
    // Those that found no place were told so; the others are still there and can go on.
    for (int i = N - 1; i >= 0; i--) {
        AUTO(rpc_message_free_p) Origin__PutReply *r = NULL;
        enum status st = origin_upload_put_finish(slow[i], &r, NULL);
        assert_true(st == STATUS_OK || st == STATUS_RESOURCE_EXHAUSTED);
        refused += st != STATUS_OK;
        rpc_stream_free(slow[i]);
    }
    assert_in_range(refused, N - THREADS / 2, N - 1);
    assert_int_equal(send_range(w, &w->alice, &f, 0, 40, false, NULL), STATUS_OK);
    assert_int_equal(finish(w, &f), STATUS_OK);
    file_done(&f);
}

static void test_uploads_are_their_owners(void **state)
{
    struct world *w = *state;
    struct file f;
    file_init(&f, 3 * LEAF);
    rpc_message_free(create(w, &f));
    assert_null(missing(w, &w->bob, STATUS_NOT_FOUND));
    assert_null(missing(w, &w->admin, STATUS_NOT_FOUND));
    assert_int_equal(send_leaves(w, &w->bob, &f), STATUS_NOT_FOUND);
    assert_int_equal(send_leaves(w, &w->alice, &f), STATUS_OK);
    assert_int_equal(send_range(w, &w->bob, &f, 0, 3, false, NULL), STATUS_NOT_FOUND);
    assert_int_equal(send_range(w, &w->alice, &f, 0, 3, false, NULL), STATUS_OK);
    file_done(&f);
}

static void test_dropped_upload_is_gone(void **state)
{
    struct world *w = *state;
    struct file f;
    file_init(&f, 3 * LEAF);
    rpc_message_free(create(w, &f));
    Origin__DropRequest req;
    origin__drop_request__init(&req);
    req.upload_id = (char *)(uintptr_t)UPLOAD;
    for (int i = 0; i < 2; i++) {
        AUTO(rpc_message_free_p) Origin__DropReply *r = NULL;
        assert_int_equal(origin_upload_drop(w->orch, NULL, &req, &r, NULL), STATUS_OK);
    }
    assert_int_equal(finish(w, &f), STATUS_NOT_FOUND);
    assert_null(missing(w, &w->alice, STATUS_NOT_FOUND));
    file_done(&f);
}

// ---------------------------------------------------------------- pins, scrub, usage

static void test_pins_by_call(void **state)
{
    struct world *w = *state;
    uint8_t *p = bytes_of(1000), d[2][32];
    for (int i = 0; i < 2; i++) {
        object_digest(d[i], p, 500 + (size_t)i);
        assert_int_equal(put_object(w->work, p, 500 + (size_t)i, d[i], ITEM, NULL), STATUS_OK);
    }
    ProtobufCBinaryData list[2] = {{32, d[0]}, {32, d[1]}};
    Origin__PinRequest req;
    origin__pin_request__init(&req);
    req.item_id = (char *)(uintptr_t)ITEM_2;
    req.digests = list;
    req.n_digests = 2;
    Origin__PinReply *r = NULL;
    assert_int_equal(origin_object_pin(w->orch, NULL, &req, &r, NULL), STATUS_OK);
    assert_int_equal(r->changed, 2);
    rpc_message_free(TAKE(r));
    req.item_id = (char *)(uintptr_t)ITEM;
    req.n_digests = 0;
    assert_int_equal(origin_object_unpin(w->orch, NULL, &req, &r, NULL), STATUS_OK);
    assert_int_equal(r->changed, 2);
    rpc_message_free(TAKE(r));
    list[1].len = 31;
    req.n_digests = 2;
    assert_int_equal(origin_object_pin(w->orch, NULL, &req, &r, NULL), STATUS_INVALID_ARGUMENT);
    assert_true(object_store_is_pinned(w->origin->store, ITEM_2, d[1]));
    assert_false(object_store_is_pinned(w->origin->store, ITEM, d[1]));
    free(p);
}

static void test_scrub_names_the_damaged_object(void **state)
{
    struct world *w = *state;
    uint8_t *p = bytes_of(1000), d[2][32];
    char hex[OBJECT_HEX_SIZE], path[300];
    for (int i = 0; i < 2; i++) {
        object_digest(d[i], p, 500 + (size_t)i);
        assert_int_equal(put_object(w->work, p, 500 + (size_t)i, d[i], ITEM, NULL), STATUS_OK);
    }
    str_hex(hex, d[1], 32);
    snprintf(path, sizeof path, "%s/objects/%.2s/%s", w->options.data, hex, hex);
    FILE *f = fopen(path, "r+e");
    assert_non_null(f);
    fputc(p[0] ^ 1, f);
    fclose(f);
    Origin__ScrubRequest req;
    origin__scrub_request__init(&req);
    struct rpc_stream *s = NULL;
    assert_int_equal(origin_object_scrub_open(w->orch, NULL, &req, &s, NULL), STATUS_OK);
    size_t n_bad = 0;
    bool done = false;
    for (;;) {
        AUTO(rpc_message_free_p) Origin__ScrubReply *r = NULL;
        assert_int_equal(origin_object_scrub_recv(s, &r, NULL), STATUS_OK);
        if (!r)
            break;
        for (size_t i = 0; i < r->n_bad; i++, n_bad++)
            assert_memory_equal(r->bad[i].data, d[1], 32);
        done = r->done;
        assert_int_equal(r->checked, 2);
    }
    rpc_stream_free(s);
    assert_int_equal(n_bad, 1);
    assert_true(done);
    int64_t size;
    assert_false(stat_object(w, d[1], &size));
    assert_true(stat_object(w, d[0], &size));
    Origin__UsageRequest ureq;
    origin__usage_request__init(&ureq);
    AUTO(rpc_message_free_p) Origin__UsageReply *u = NULL;
    assert_int_equal(origin_object_usage(w->orch, NULL, &ureq, &u, NULL), STATUS_OK);
    assert_int_equal(u->objects, 1);
    assert_true(u->free_bytes > 0);
    free(p);
}

// ---------------------------------------------------------------- the role

static void test_upkeep_collects_by_itself(void **state)
{
    struct world *w = *state;
    uint8_t *p = bytes_of(500), d[32];
    object_digest(d, p, 500);
    assert_int_equal(put_object(w->work, p, 500, d, ITEM, NULL), STATUS_OK);
    assert_int_equal(object_store_unpin(w->origin->store, ITEM, NULL, 0, NULL, NULL), STATUS_OK);
    rpc_client_free(w->orch);
    stop_origin(w);
    w->options.grace_ms = 0;
    w->options.collect_every_ms = 1;
    start_origin(w);
    w->orch = client(w, w->service_url, &w->orchestrator);
    int64_t size, until = time_mono_us() + 10000000;
    while (stat_object(w, d, &size)) // each answer takes a round trip
        assert_true(time_mono_us() < until);
    free(p);
}

static void test_wrong_options_are_named(void **state)
{
    struct world *w = *state;
    void *self = NULL;
    struct err e = ERR_INIT;
    struct origin_options o = w->options;
    o.kind = (char *)(uintptr_t) "audio";
    assert_int_equal(origin_role.start(&w->svc, &o, &self, &e), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(e.msg, "video-1"));
    o.kind = (char *)(uintptr_t) "text";
    assert_int_equal(origin_role.start(&w->svc, &o, &self, &e), STATUS_INVALID_ARGUMENT);
    o = w->options;
    o.data = NULL;
    assert_int_equal(origin_role.start(&w->svc, &o, &self, &e), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(e.msg, "--data"));
    assert_null(self);
    o = w->options; // the directory is in use
    assert_int_equal(origin_role.start(&w->svc, &o, &self, &e), STATUS_FAILED_PRECONDITION);
    char reason[100];
    assert_true(origin_role.ready(w->origin, reason, sizeof reason));
}

static int group_done(void **state)
{
    (void)state;
    rpc_fini();
    return 0;
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    if (crypto_init(NULL) != STATUS_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        CASE(test_result_is_stored_pinned_and_read_back),
        CASE(test_wrong_result_is_refused),
        CASE(test_slow_readers_hold_no_thread),
        CASE(test_users_read_with_a_media_token_of_theirs_only),
        CASE(test_users_cannot_do_what_is_the_services),
        CASE(test_upload_is_sent_cut_resumed_and_finished),
        CASE(test_object_that_is_here_must_be_proven),
        CASE(test_object_that_the_owner_has_already_needs_no_bytes),
        CASE(test_slow_senders_leave_threads_for_others),
        CASE(test_uploads_are_their_owners),
        CASE(test_dropped_upload_is_gone),
        CASE(test_pins_by_call),
        CASE(test_scrub_names_the_damaged_object),
        CASE(test_upkeep_collects_by_itself),
        CASE(test_wrong_options_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
