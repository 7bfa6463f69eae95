// The gateway as a whole, in this process, against services that are stand-ins: real keys, grants,
// sealed connections and HTTP; what the stand-ins answer is fixed here.
#include <arpa/inet.h>
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/node.rpc.h"
#include "cauce/orchestrator.rpc.h"
#include "cauce/origin.rpc.h"
#include "cauce/store.rpc.h"
#include "crypto/crypto.h"
#include "gateway/internal.h"
#include "media/cmaf.h"
#include "service/internal.h"

#define ITEM "019346af-0000-7000-8000-000000000001"
#define OTHER "019346af-0000-7000-8000-000000000002"
#define USER "019346af-0000-7000-8000-0000000000aa"
enum {
    SEGMENT_BYTES = 300000,
    SOURCE_BYTES = 1200000,
    LATE = 2,    // this segment is not made in time
    DAMAGED = 3, // of this one the origin has other bytes
};

struct world {
    char dir[64];
    uint8_t operator_secret[64], session_secret[64], store_secret[64], stranger_secret[64];
    struct instance gateway, orchestrator, origin, store;
    struct buf plan;
    size_t n_segments;
    char http[RPC_URL_SIZE], rpc[2 * RPC_URL_SIZE];
    struct buf access, media, other_media, expired_media, forged_media;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int n_plans, n_locates, n_reads;
    bool with_text;                            // the item has one
    bool hold;                                 // Locate waits
    uint8_t listed[16], located[16], read[16]; // the last calls' traces
};
static struct world w;

// ---------------------------------------------------------------- stand-ins

static void keep_trace(const struct rpc_call *c, uint8_t dst[16])
{
    pthread_mutex_lock(&w.lock);
    memcpy(dst, rpc_call_trace(c)->trace_id, 16);
    pthread_mutex_unlock(&w.lock);
}

// Byte i of segment n; the source counts as segment 99.
static uint8_t content(int n, int64_t i)
{
    return (uint8_t)((i * 7 + n * 13 + (i >> 9)) & 0xff);
}

static void object_of(int n, size_t size, uint8_t digest[OBJECT_DIGEST_SIZE])
{
    uint8_t *bytes = mem_alloc(size);
    for (size_t i = 0; i < size; i++)
        bytes[i] = content(n, (int64_t)i);
    object_digest(digest, bytes, size);
    mem_free(bytes);
}

static const char text_bytes[] = "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nearly\n"
                                 "\n00:10:00.000 --> 00:10:02.000\nlate\n";

static Common__ObjectRef *text_ref(struct arena *a)
{
    uint8_t digest[OBJECT_DIGEST_SIZE];
    Common__ObjectRef *o = arena_alloc(a, sizeof *o);
    common__object_ref__init(o);
    object_digest(digest, text_bytes, sizeof text_bytes - 1);
    o->digest = (ProtobufCBinaryData){sizeof digest, arena_dup(a, digest, sizeof digest)};
    o->size = sizeof text_bytes - 1;
    o->route = arena_strdup(a, "video-1");
    return o;
}

static Common__ObjectRef *ref(struct arena *a, int n, int64_t size)
{
    uint8_t digest[OBJECT_DIGEST_SIZE];
    Common__ObjectRef *o = arena_alloc(a, sizeof *o);
    common__object_ref__init(o);
    object_of(n, (size_t)size, digest);
    o->digest = (ProtobufCBinaryData){sizeof digest, arena_dup(a, digest, sizeof digest)};
    o->size = size;
    o->route = arena_strdup(a, "video-1");
    return o;
}

static enum status fake_plan(struct rpc_call *c, const Orchestrator__PlanRequest *req,
                             Orchestrator__PlanReply *ret, struct err *err)
{
    struct arena *a = rpc_call_arena(c);
    pthread_mutex_lock(&w.lock);
    w.n_plans++;
    pthread_mutex_unlock(&w.lock);
    if (!str_eq(req->item_id, ITEM))
        return err_set(err, STATUS_NOT_FOUND, "no item %s", req->item_id);
    ret->plan = (ProtobufCBinaryData){w.plan.len, arena_dup(a, w.plan.data, w.plan.len)};
    ret->title = arena_strdup(a, "Title");
    ret->source = ref(a, 99, SOURCE_BYTES);
    ret->source_type = arena_strdup(a, "audio/mpeg");
    if (!w.with_text)
        return STATUS_OK;
    ret->subtitles = arena_array(a, 1, sizeof(void *));
    ret->n_subtitles = 1;
    ret->subtitles[0] = arena_alloc(a, sizeof **ret->subtitles);
    orchestrator__subtitle_info__init(ret->subtitles[0]);
    ret->subtitles[0]->id = arena_strdup(a, "x1");
    ret->subtitles[0]->language = arena_strdup(a, "de");
    return STATUS_OK;
}

static enum status fake_locate(struct rpc_call *c, const Orchestrator__LocateRequest *req,
                               Orchestrator__LocateReply *ret, struct err *err)
{
    struct arena *a = rpc_call_arena(c);
    keep_trace(c, w.located);
    pthread_mutex_lock(&w.lock);
    w.n_locates++;
    pthread_cond_broadcast(&w.moved);
    while (w.hold)
        pthread_cond_wait(&w.moved, &w.lock);
    pthread_mutex_unlock(&w.lock);
    if (str_eq(req->rendition, "x2"))
        return err_set(err, STATUS_NOT_FOUND, "gone");
    if (req->first == LATE)
        return err_set(err, STATUS_DEADLINE_EXCEEDED, "not made yet");
    ret->n_segments = 1;
    ret->segments = arena_array(a, 1, sizeof(void *));
    ret->segments[0] = arena_alloc(a, sizeof **ret->segments);
    orchestrator__segment_ref__init(ret->segments[0]);
    ret->segments[0]->number = req->first;
    ret->segments[0]->object =
        str_eq(req->rendition, "x1") ? text_ref(a) : ref(a, req->first, SEGMENT_BYTES);
    return STATUS_OK;
}

static enum status fake_open(struct rpc_call *c, const Orchestrator__OpenRequest *req,
                             Orchestrator__OpenReply *ret, struct err *err)
{
    (void)err;
    ret->item_id = req->item_id;
    ret->title = arena_printf(rpc_call_arena(c), "for %s", rpc_call_user(c)->name);
    return STATUS_OK;
}

static enum status fake_read(struct rpc_call *c, const Origin__ReadRequest *req, struct err *err)
{
    keep_trace(c, w.read);
    pthread_mutex_lock(&w.lock);
    w.n_reads++;
    pthread_mutex_unlock(&w.lock);
    uint8_t text[OBJECT_DIGEST_SIZE];
    object_digest(text, text_bytes, sizeof text_bytes - 1);
    if (memcmp(text, req->digest.data, sizeof text) == 0) {
        char copy[sizeof text_bytes];
        memcpy(copy, text_bytes, sizeof copy);
        Origin__ReadReply reply;
        origin__read_reply__init(&reply);
        reply.data = (ProtobufCBinaryData){sizeof copy - 1, (uint8_t *)copy};
        return origin_object_read_write(c, &reply, err);
    }
    int n = -1;
    for (int i = 0; i < 100 && n < 0; i++) {
        uint8_t digest[OBJECT_DIGEST_SIZE];
        if (i >= 8 && i != 99)
            continue;
        object_of(i, i == 99 ? SOURCE_BYTES : SEGMENT_BYTES, digest);
        n = memcmp(digest, req->digest.data, sizeof digest) == 0 ? i : -1;
    }
    if (n < 0)
        return err_set(err, STATUS_NOT_FOUND, "no such object");
    uint8_t part[65536];
    for (int64_t at = 0; at < req->length;) {
        size_t len =
            req->length - at < (int64_t)sizeof part ? (size_t)(req->length - at) : sizeof part;
        for (size_t i = 0; i < len; i++)
            part[i] = content(n == DAMAGED ? 50 : n, req->offset + at + (int64_t)i);
        Origin__ReadReply reply;
        origin__read_reply__init(&reply);
        reply.data = (ProtobufCBinaryData){len, part};
        enum status s = origin_object_read_write(c, &reply, err);
        if (s != STATUS_OK)
            return s;
        at += (int64_t)len;
    }
    return STATUS_OK;
}

static enum status fake_list(struct rpc_call *c, const Store__ListItemsRequest *req,
                             Store__ListItemsReply *ret, struct err *err)
{
    if (!rpc_call_is_forwarded(c)) // the gateway's own role must not count
        return err_set(err, STATUS_PERMISSION_DENIED, "asked in the gateway's own name");
    keep_trace(c, w.listed);
    if (str_eq(req->kind, "odd")) {
        rpc_call_reason(c, "ODD_KIND");
        rpc_call_retry_after(c, 4200);
        rpc_call_violation(c, "page", "must be \"even\"");
        return rpc_call_bad_field(c, err, "kind", "must be video or audio");
    }
    ret->next_page =
        arena_printf(rpc_call_arena(c), "%s/%d/%s", req->kind, req->page ? req->page->size : 0,
                     rpc_call_user(c) ? rpc_call_user(c)->name : "nobody");
    return STATUS_OK;
}

static enum status start_orchestrator(struct svc *svc, const void *o, void **self, struct err *err)
{
    const struct orchestrator_playback_handlers h = {
        .plan = fake_plan, .locate = fake_locate, .open = fake_open};
    (void)o;
    (void)self;
    return orchestrator_playback_serve(svc->server, &h, NULL, err);
}
static enum status start_origin(struct svc *svc, const void *o, void **self, struct err *err)
{
    const struct origin_object_handlers h = {.read = fake_read};
    (void)o;
    (void)self;
    return origin_object_serve(svc->server, &h, NULL, err);
}
static enum status start_store(struct svc *svc, const void *o, void **self, struct err *err)
{
    const struct store_catalog_handlers h = {.list = fake_list};
    (void)o;
    (void)self;
    return store_catalog_serve(svc->server, &h, NULL, err);
}
#define STAND_IN(n, bit, fn)                                                                       \
    {                                                                                              \
        .name = n, .role = bit, .spec = {.section = n, .usage = n},                                \
        .options_size = sizeof(struct svc_options), .start = fn                                    \
    }
static const struct svc_role orchestrator_stand_in =
    STAND_IN("orchestrator", ROLE_NODE_ORCHESTRATOR, start_orchestrator);
static const struct svc_role origin_stand_in = STAND_IN("origin", ROLE_NODE_ORIGIN, start_origin);
static const struct svc_role store_stand_in = STAND_IN("store", ROLE_NODE_STORE, start_store);

// ---------------------------------------------------------------- the world

static void make_plan(void)
{
    static const uint8_t asc[] = {0x11, 0x90};
    AUTO(media_plan_free_p) struct media_plan *p = media_plan_new();
    struct err err = ERR_INIT;
    p->kind = MEDIA_AUDIO;
    snprintf(p->build, sizeof p->build, "test");
    p->source = (struct media_source){.container = MEDIA_CONTAINER_MP3,
                                      .size_bytes = SOURCE_BYTES,
                                      .duration_us = 30000000,
                                      .bitrate_bps = 128000,
                                      .n_tracks = 1};
    struct media_track *t = &p->source.tracks[0];
    t->type = MEDIA_TRACK_AUDIO;
    t->chosen = true;
    snprintf(t->codec, sizeof t->codec, "mp3");
    t->sar = t->frame_rate = (struct media_rational){1, 1};
    assert_int_equal(media_plan_cut_audio(&p->audio, 30 * MEDIA_AUDIO_RATE, 1024, &err), STATUS_OK);
    struct media_rendition *r = &p->renditions[p->n_renditions++];
    snprintf(r->id, sizeof r->id, "a128");
    snprintf(r->codecs, sizeof r->codecs, "mp4a.40.2");
    r->kind = MEDIA_AUDIO;
    r->codec = MEDIA_CODEC_AAC;
    r->channels = 2;
    r->frame_rate = (struct media_rational){0, 1};
    r->timescale = MEDIA_AUDIO_RATE;
    r->frame_samples = r->priming = 1024;
    r->bitrate_bps = 128000;
    const struct media_track_config c = {.codec = r->codec,
                                         .timescale = r->timescale,
                                         .channels = 2,
                                         .sample_rate = MEDIA_AUDIO_RATE,
                                         .priming = r->priming,
                                         .bitrate_bps = r->bitrate_bps,
                                         .config = asc,
                                         .config_len = sizeof asc};
    struct buf b;
    buf_init(&b, MEDIA_MAX_INIT_BYTES);
    assert_int_equal(media_cmaf_init(&c, &b, &err), STATUS_OK);
    r->init = buf_take(&b, &r->init_len);
    media_plan_set_bandwidth(p);
    buf_init(&w.plan, MEDIA_PLAN_MAX_BYTES);
    if (media_plan_encode(p, &w.plan, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    w.n_segments = p->audio.n_segments;
    assert_true(w.n_segments > 5);
}

static void save(const char *name, const char *kind, const void *p, size_t n)
{
    AUTO(mem_free_p) char *path = mem_printf("%s/%s", w.dir, name);
    assert_int_equal(crypto_key_save(path, kind, p, n, NULL), STATUS_OK);
}

static void add_node(FILE *ini, const char *id, const char *role, unsigned number,
                     const uint8_t token_key[32])
{
    struct chan_grant g = {.role = number,
                           .not_before_s = time_wall_ms() / 1000 - 60,
                           .not_after_s = time_wall_ms() / 1000 + 90 * 86400,
                           .serial = 1};
    uint8_t secret[32];
    char key[64], file[100];
    struct buf grant;
    crypto_dh_keypair(g.key, secret);
    snprintf(g.node_id, sizeof g.node_id, "%s", id);
    buf_init(&grant, 1024);
    assert_int_equal(chan_grant_sign(&grant, &g, w.operator_secret, NULL), STATUS_OK);
    snprintf(file, sizeof file, "%s.key", id);
    save(file, "cauce-x25519-secret", secret, 32);
    snprintf(file, sizeof file, "%s.grant", id);
    save(file, "cauce-grant", grant.data, grant.len);
    buf_done(&grant);
    str_b64(key, g.key, 32);
    fprintf(ini, "[%s]\nrole = %s\nurl = ipc://%s/%s.sock\nkey = %s\n", id, role, w.dir, id, key);
    if (number == 12)
        fprintf(ini, "kind = video\n");
    if (token_key) {
        str_b64(key, token_key, 32);
        fprintf(ini, "token-key = %s\n", key);
    }
}

static void make_keys(void)
{
    uint8_t operator_key[32], session_key[32], store_key[32], unused[32];
    char text[64], path[100];
    crypto_ed25519_keypair(operator_key, w.operator_secret);
    crypto_ed25519_keypair(session_key, w.session_secret);
    crypto_ed25519_keypair(store_key, w.store_secret);
    crypto_ed25519_keypair(unused, w.stranger_secret);
    snprintf(path, sizeof path, "%s/nodes.ini", w.dir);
    FILE *ini = fopen(path, "we");
    assert_non_null(ini);
    str_b64(text, operator_key, 32);
    fprintf(ini, "[operator]\nkey = %s\n", text);
    add_node(ini, "gateway-1", "gateway", 13, NULL);
    add_node(ini, "orchestrator-1", "orchestrator", 9, NULL);
    add_node(ini, "video-1", "origin", 12, NULL);
    add_node(ini, "session-1", "session", 8, session_key); // never started
    add_node(ini, "store-1", "store", 11, store_key);
    assert_int_equal(fclose(ini), 0);
}

static void start(struct instance *in, const struct svc_role *role, bool is_gateway)
{
    char keys[] = "--keys", http[] = "--listen-http", any_http[] = "127.0.0.1:0";
    char rpc[] = "--listen-rpc", any_rpc[] = "tcp://127.0.0.1:0";
    char *argv[] = {keys, w.dir, http, any_http, rpc, any_rpc};
    const struct role_word word = {.role = role};
    struct err err = ERR_INIT;
    *in = (struct instance){0};
    enum status s = instance_load_options(in, &word, true, NULL, 0, is_gateway ? 6 : 2, argv, &err);
    if (s == STATUS_OK)
        s = instance_start(in, NULL, &err);
    if (s == STATUS_OK)
        s = instance_listen(in, &err);
    if (s != STATUS_OK)
        fail_msg("%s: %s", role->name, err.msg);
}

static void stop(struct instance *in)
{
    if (!in->role)
        return;
    instance_drain(in);
    instance_stop(in, time_deadline_in_ms(1000));
    instance_done(in);
    *in = (struct instance){0};
}

static void mint_media(struct buf *b, const uint8_t *secret, const char *item, int64_t life_ms)
{
    struct svc_media_claims c = {.sub = USER, .rights = SVC_RIGHT_STREAM};
    snprintf(c.item, sizeof c.item, "%s", item);
    c.exp_wall_ms = time_wall_ms() + life_ms;
    buf_init(b, 8192);
    assert_int_equal(svc_token_mint_media(secret, &c, b, NULL), STATUS_OK);
}

static int setup(void **state)
{
    struct rpc_user u = {.id = USER, .name = "ann", .session = USER, .roles = ROLE_USER};
    (void)state;
    w = (struct world){0};
    assert_int_equal(crypto_init(NULL), STATUS_OK);
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.moved, NULL);
    snprintf(w.dir, sizeof w.dir, "/tmp/cauce-gateway-XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    make_plan();
    make_keys();
    start(&w.orchestrator, &orchestrator_stand_in, false);
    start(&w.origin, &origin_stand_in, false);
    start(&w.store, &store_stand_in, false);
    start(&w.gateway, &gateway_role, true);
    snprintf(w.http, sizeof w.http, "%s", w.gateway.http);
    snprintf(w.rpc, sizeof w.rpc, "%s", w.gateway.public_url);
    u.exp_wall_ms = time_wall_ms() + 600000;
    buf_init(&w.access, 8192);
    assert_int_equal(svc_token_mint_access(w.session_secret, &u, &w.access, NULL), STATUS_OK);
    mint_media(&w.media, w.store_secret, ITEM, 600000);
    mint_media(&w.other_media, w.store_secret, OTHER, 600000);
    mint_media(&w.expired_media, w.store_secret, ITEM, -5000);
    mint_media(&w.forged_media, w.stranger_secret, ITEM, 600000);
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int teardown(void **state)
{
    (void)state;
    pthread_mutex_lock(&w.lock);
    w.hold = false;
    pthread_cond_broadcast(&w.moved);
    pthread_mutex_unlock(&w.lock);
    stop(&w.gateway);
    stop(&w.store);
    stop(&w.origin);
    stop(&w.orchestrator);
    struct buf *const bufs[] = {&w.plan,        &w.access,        &w.media,
                                &w.other_media, &w.expired_media, &w.forged_media};
    for (size_t i = 0; i < N_ELEMENTS(bufs); i++)
        buf_done(bufs[i]);
    nftw(w.dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    pthread_mutex_destroy(&w.lock);
    pthread_cond_destroy(&w.moved);
    return 0;
}

// ---------------------------------------------------------------- an HTTP client

struct answer {
    unsigned code;
    char *text; // header and body
    const char *body;
    size_t body_len;
};

static void answer_done(struct answer *a)
{
    mem_free(a->text);
}

static struct answer ask(const char *method, const char *path, const char *token,
                         const char *headers, const char *body)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    struct timeval patience = {.tv_sec = 30};
    struct answer ret = {0};
    struct buf b;
    a.sin_port = htons((uint16_t)atoi(strrchr(w.http, ':') + 1));
    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    buf_init(&b, 64 << 20);
    buf_printf(&b, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s", method, path, headers);
    if (token)
        buf_printf(&b, "Authorization: Bearer %s\r\n", token);
    if (body)
        buf_printf(&b, "Content-Length: %zu\r\n", strlen(body));
    buf_printf(&b, "\r\n%s", body ? body : "");
    assert_int_equal(send(fd, b.data, b.len, MSG_NOSIGNAL), b.len);
    buf_reset(&b);
    for (ssize_t n = 1; n > 0;) {
        uint8_t *at = buf_reserve(&b, 65536);
        n = recv(fd, at, 65536, 0);
        if (n > 0)
            buf_commit(&b, (size_t)n);
    }
    close(fd);
    size_t len = 0;
    ret.text = (char *)buf_take(&b, &len);
    const char *end = ret.text ? memmem(ret.text, len, "\r\n\r\n", 4) : NULL;
    if (!end || sscanf(ret.text, "HTTP/1.1 %u", &ret.code) != 1)
        ret.code = 0; // the connection was closed without an answer
    ret.body = end ? end + 4 : "";
    ret.body_len = end ? len - (size_t)(ret.body - ret.text) : 0;
    return ret;
}

static void expect(const char *method, const char *path, const char *token, const char *headers,
                   const char *body, unsigned code, const char *contains)
{
    AUTO(answer_done) struct answer a = ask(method, path, token, headers, body);
    if (a.code != code || (contains && !strstr(a.text, contains)))
        fail_msg("%s %s: wanted %u '%s', got\n%s", method, path, code, contains ? contains : "",
                 a.text ? a.text : "");
}

// "/hls/<media token>/ITEM/<rest>"; one buffer: used at once.
static const char *hls(const char *rest)
{
    static char path[4096];
    snprintf(path, sizeof path, "/hls/%s/" ITEM "/%s", buf_str(&w.media), rest);
    return path;
}

static int locates(void)
{
    pthread_mutex_lock(&w.lock);
    int n = w.n_locates;
    pthread_mutex_unlock(&w.lock);
    return n;
}

// ---------------------------------------------------------------- who may call what

// The pattern with its variables filled in.
static void fill(char *dst, size_t size, const char *pattern, const char *token)
{
    size_t n = 0;
    while (*pattern && n + 1 < size) {
        if (*pattern != '{') {
            dst[n++] = *pattern++;
            continue;
        }
        const char *value = str_starts_with(pattern, "{token}")  ? token
                            : str_starts_with(pattern, "{item}") ? ITEM
                            : str_starts_with(pattern, "{n}")    ? "0"
                                                                 : "a128";
        n += (size_t)snprintf(dst + n, size - n, "%s", value);
        pattern = strchr(pattern, '}') + 1;
    }
    dst[n] = '\0';
}

// What anybody may call. A route that is not meant to be here must not get here unnoticed.
static const char *const public_routes[] = {
    "GET /",
    "GET /item/{id}",
    "GET /static/{name}",
    "GET /livez",
    "GET /readyz",
    "GET /metrics",
    "POST /api/v1/register",
    "POST /api/v1/login",
    "POST /api/v1/refresh",
    "GET /api/v1/items",
    "GET /api/v1/search",
    "GET /api/v1/search/spoken",
    "GET /api/v1/items/{item_id}",
};

static bool is_meant_public(const struct http_route *route)
{
    char line[256];
    snprintf(line, sizeof line, "%s %s", route->method, route->path);
    for (size_t i = 0; i < N_ELEMENTS(public_routes); i++)
        if (str_eq(line, public_routes[i]))
            return true;
    return false;
}

static void expect_refused(const struct http_route *route, const char *path_token,
                           const char *bearer, unsigned code)
{
    char path[4096];
    fill(path, sizeof path, route->path, path_token);
    const char *body = str_eq(route->method, "GET") ? NULL : "{}";
    expect(route->method, path, bearer, "", body, code, "application/problem+json");
    if (str_eq(route->method, "GET")) {
        AUTO(answer_done) struct answer head = ask("HEAD", path, bearer, "", NULL);
        assert_int_equal(head.code, code);
    }
}

static void test_every_route_refuses_strangers(void **state)
{
    (void)state;
    struct gateway *g = w.gateway.self;
    size_t n_public = 0;
    assert_true(g->n_routes > 30);
    for (size_t i = 0; i < g->n_routes; i++) {
        const struct http_route *r = &g->routes[i];
        const char *access = buf_str(&w.access), *media = buf_str(&w.media);
        n_public += r->scope == HTTP_PUBLIC;
        if ((r->scope == HTTP_PUBLIC) != is_meant_public(r))
            fail_msg("%s %s has an unexpected scope", r->method, r->path);
        if (r->scope == HTTP_BEARER) {
            expect_refused(r, media, NULL, 401);
            expect_refused(r, media, "nonsense", 401);
            expect_refused(r, media, media, 401);
        } else if (r->scope == HTTP_MEDIA_TOKEN) {
            expect_refused(r, "x", access, 401);
            expect_refused(r, access, access, 401);
            expect_refused(r, buf_str(&w.expired_media), access, 401);
            expect_refused(r, buf_str(&w.forged_media), access, 401);
            expect_refused(r, buf_str(&w.other_media), access, 403);
        }
    }
    assert_int_equal(n_public, N_ELEMENTS(public_routes));
    assert_int_equal(w.n_plans + w.n_locates + w.n_reads, 0); // nothing behind was asked
}

static void test_unknown_addresses_are_not_found(void **state)
{
    (void)state;
    static const char *const paths[] = {"/nothing",
                                        "/hls/",
                                        "/api/v1/nothing",
                                        "/static/index.html",
                                        "/static/..%2f..%2fetc%2fpasswd",
                                        "/item/../../etc/passwd"};
    for (size_t i = 0; i < N_ELEMENTS(paths); i++)
        expect("GET", paths[i], NULL, "", NULL, 404, "application/problem+json");
    expect("DELETE", "/api/v1/items", buf_str(&w.access), "", NULL, 405, "Allow: GET, HEAD");
    expect("GET", hls("v720.m3u8"), NULL, "", NULL, 404, NULL);
    expect("GET", hls("a128/100000.m4s"), NULL, "", NULL, 404, NULL);
    expect("GET", hls("a128/-1.m4s"), NULL, "", NULL, 404, NULL);
    expect("GET", hls("v720/init.mp4"), NULL, "", NULL, 404, NULL);
    char path[4096];
    snprintf(path, sizeof path, "/hls/%s/" OTHER "/master.m3u8", buf_str(&w.other_media));
    expect("GET", path, NULL, "", NULL, 404, "no item");
}

// ---------------------------------------------------------------- HLS

static void expect_segment(int n)
{
    char rest[64];
    snprintf(rest, sizeof rest, "a128/%d.m4s", n);
    AUTO(answer_done) struct answer a = ask("GET", hls(rest), NULL, "", NULL);
    assert_int_equal(a.code, 200);
    assert_int_equal(a.body_len, SEGMENT_BYTES);
    for (size_t i = 0; i < a.body_len; i++)
        assert_int_equal((uint8_t)a.body[i], content(n, (int64_t)i));
}

static void test_hls_plays_and_caches(void **state)
{
    (void)state;
    char etag[OBJECT_HEX_SIZE], header[128];
    uint8_t digest[OBJECT_DIGEST_SIZE];
    expect("GET", hls("master.m3u8"), NULL, "", NULL, 200, "a128.m3u8");
    expect("GET", hls("master.m3u8"), NULL, "", NULL, 200, "Access-Control-Allow-Origin: *");
    expect("GET", hls("manifest.mpd"), NULL, "", NULL, 200, "application/dash+xml");
    expect("GET", hls("manifest.mpd"), NULL, "", NULL, 200, "<Representation id=\"a128\"");
    expect("GET", hls("a128.m3u8"), NULL, "", NULL, 200, "application/vnd.apple.mpegurl");
    expect("GET", hls("a128.m3u8"), NULL, "", NULL, 200, "a128/0.m4s");
    expect("GET", hls("a128/init.mp4"), NULL, "", NULL, 200, "audio/mp4");
    expect_segment(0);
    object_of(0, SEGMENT_BYTES, digest);
    str_hex(etag, digest, sizeof digest);
    snprintf(header, sizeof header, "If-None-Match: \"%s\"\r\n", etag);
    expect("GET", hls("a128/0.m4s"), NULL, header, NULL, 304, etag);
    expect("GET", hls("a128/0.m4s"), NULL, "Range: bytes=10-19\r\n", NULL, 206, "bytes 10-19/");
    expect("HEAD", hls("a128/0.m4s"), NULL, "", NULL, 200, "Content-Length: 300000");
    assert_int_equal(locates(), 1);
    assert_int_equal(w.n_plans, 1);

    stop(&w.orchestrator); // what is cached plays on, and says clearly what is not
    expect_segment(0);
    expect("GET", hls("a128.m3u8"), NULL, "", NULL, 200, NULL);
    expect("GET", hls("a128/1.m4s"), NULL, "", NULL, 503, "Retry-After: ");
    start(&w.orchestrator, &orchestrator_stand_in, false);
    bool recovered = false;
    for (int64_t end = time_deadline_in_ms(20000); !recovered && time_left_ms(end) > 0;) {
        AUTO(answer_done) struct answer a = ask("GET", hls("a128/1.m4s"), NULL, "", NULL);
        recovered = a.code == 200;
    }
    assert_true(recovered);
}

static void test_text_is_listed_and_served_whole_and_in_pieces(void **state)
{
    (void)state;
    w.with_text = true;
    expect("GET", hls("master.m3u8"), NULL, "", NULL, 200,
           "LANGUAGE=\"de\",DEFAULT=NO,AUTOSELECT=YES,FORCED=NO,URI=\"x1.m3u8\"");
    expect("GET", hls("master.m3u8"), NULL, "", NULL, 200, ",SUBTITLES=\"subs\"\n");
    expect("GET", hls("manifest.mpd"), NULL, "", NULL, 200, "<BaseURL>x1.vtt</BaseURL>");
    expect("GET", hls("x1.m3u8"), NULL, "", NULL, 200, ",\nx1/0.vtt\n");
    expect("GET", hls("x1.vtt"), NULL, "", NULL, 200, text_bytes);
    expect("GET", hls("x1/0.vtt"), NULL, "", NULL, 200,
           "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000\n\n"
           "00:00:01.000 --> 00:00:02.000\nearly\n");
    AUTO(answer_done) struct answer a = ask("GET", hls("x1/0.vtt"), NULL, "", NULL);
    assert_null(strstr(a.text, "late"));
    assert_non_null(strstr(a.text, "Content-Type: text/vtt\r\n"));
    assert_int_equal(locates(), 1); // one object serves them all, and playlists need none
    expect("GET", hls("x1/99.vtt"), NULL, "", NULL, 404, "no such text");
    expect("GET", hls("s2.vtt"), NULL, "", NULL, 404, "no such text");
    expect("GET", hls("s2.m3u8"), NULL, "", NULL, 404, "no such rendition");
    expect("GET", hls("x2.vtt"), NULL, "", NULL, 404, "gone"); // the orchestrator knows
    expect("GET", hls("x1/0.m4s"), NULL, "", NULL, 404, "no such segment");
}

static void test_hls_offers_are_named_once(void **state)
{
    (void)state;
    expect("GET", hls("master-p240-k64.m3u8"), NULL, "", NULL, 200, "a128.m3u8");
    expect("GET", hls("manifest-opus.mpd"), NULL, "", NULL, 200, "application/dash+xml");
    static const char *const bad[] = {"master-.m3u8",    "master-k64-p240.m3u8", "master-mp3.m3u8",
                                      "manifest-p0.mpd", "a128-keys.m3u8",       "v240-keys.m3u8"};
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        expect("GET", hls(bad[i]), NULL, "", NULL, 404, "application/problem+json");
}

static void test_file_to_keep_takes_the_right_and_all_segments(void **state)
{
    (void)state;
    struct svc_media_claims c = {.sub = USER, .item = ITEM, .rights = SVC_RIGHT_DOWNLOAD};
    struct buf token;
    char path[4096];
    c.exp_wall_ms = time_wall_ms() + 60000;
    buf_init(&token, 8192);
    assert_int_equal(svc_token_mint_media(w.store_secret, &c, &token, NULL), STATUS_OK);
    expect("GET", hls("a128.mp4"), NULL, "", NULL, 403, "not for keeping");
    static const char *const none[] = {"v720.mp4", "a128+a128.mp4", "a128+.mp4", "+a128.mp4"};
    for (size_t i = 0; i < N_ELEMENTS(none); i++) {
        snprintf(path, sizeof path, "/hls/%s/" ITEM "/%s", buf_str(&token), none[i]);
        expect("GET", path, NULL, "", NULL, 404, "no such renditions");
    }
    assert_int_equal(locates(), 0);
    snprintf(path, sizeof path, "/hls/%s/" ITEM "/a128.mp4", buf_str(&token));
    expect("GET", path, NULL, "", NULL, 503, "Retry-After: ");
    expect("GET", path, NULL, "", NULL, 503, "a128 is being made, 2 of ");
    assert_int_equal(w.n_reads, 0); // no head is read before all segments are there
    buf_done(&token);
}

static void test_hls_late_and_damaged_segments(void **state)
{
    (void)state;
    expect("GET", hls("a128/2.m4s"), NULL, "", NULL, 503, "Retry-After: 2\r\n");
    expect("GET", hls("a128/3.m4s"), NULL, "", NULL, 500, "DATA_LOSS");
    struct edge_stats s;
    edge_cache_get_stats(((struct gateway *)w.gateway.self)->segments, &s);
    assert_int_equal(s.objects, 0);
}

static struct rpc_client *connect_as_app(void)
{
    char url[2 * RPC_URL_SIZE];
    struct rpc_endpoint e = {.url = url};
    size_t n;
    assert_true(str_starts_with(w.rpc, "cauce://"));
    assert_true(str_copy(url, sizeof url, "tcp://"));
    assert_true(str_copy(url + strlen("tcp://"), sizeof url - strlen("tcp://"),
                         w.rpc + strlen("cauce://")));
    char *hash = strchr(url, '#');
    assert_true(str_unb64(e.key, 32, hash + 1, strlen(hash + 1), &n) && n == 32);
    *hash = '\0';
    struct rpc_client_opts o = {.endpoints = &e, .n_endpoints = 1};
    struct rpc_client *c = rpc_client_new(&o, NULL);
    assert_non_null(c);
    return c;
}

// An origin that is gone is said to be so soon: over HTTP, and to apps.
static void test_dead_origin_is_unavailable_soon(void **state)
{
    (void)state;
    expect("GET", hls("a128/0.m4s"), NULL, "", NULL, 200, NULL);
    stop(&w.origin);
    int64_t began = time_mono_ms();
    expect("GET", hls("a128/1.m4s"), NULL, "", NULL, 503, "Retry-After: 2\r\n");
    AUTO(rpc_client_free_p) struct rpc_client *c = connect_as_app();
    const struct rpc_opts o = {
        .token = buf_str(&w.access), .route = "video-1", .deadline_us = time_deadline_in_ms(20000)};
    Origin__ReadRequest read;
    origin__read_request__init(&read);
    AUTO(rpc_stream_free_p) struct rpc_stream *stream = NULL;
    AUTO(rpc_message_free_p) Origin__ReadReply *part = NULL;
    struct err err = ERR_INIT;
    enum status s = origin_object_read_open(c, &o, &read, &stream, &err);
    if (s == STATUS_OK)
        s = origin_object_read_recv(stream, &part, &err);
    assert_int_equal(s, STATUS_UNAVAILABLE);
    // Two seconds each are promised; a machine that has much else to do gets three times that.
    assert_true(time_mono_ms() - began < 12000);
    expect("GET", hls("a128/0.m4s"), NULL, "", NULL, 200, NULL); // what is here plays on
}

static void *ask_segment(void *ud)
{
    (void)ud;
    char path[4096];
    snprintf(path, sizeof path, "/hls/%s/" ITEM "/a128/4.m4s", buf_str(&w.media));
    struct answer a = ask("GET", path, NULL, "", NULL);
    bool ok = a.code == 200 && a.body_len == SEGMENT_BYTES;
    answer_done(&a);
    return ok ? &w : NULL;
}

static void test_hls_requests_for_one_segment_share_one_fetch(void **state)
{
    (void)state;
    enum { N = 20 };
    pthread_t t[N];
    struct gateway *g = w.gateway.self;
    w.hold = true;
    for (int i = 0; i < N; i++)
        assert_int_equal(pthread_create(&t[i], NULL, ask_segment, NULL), 0);
    struct edge_stats s = {0};
    for (int64_t end = time_deadline_in_ms(20000); s.misses + s.joined < N;) {
        assert_true(time_left_ms(end) > 0 && sched_yield() == 0);
        edge_cache_get_stats(g->segments, &s);
    }
    pthread_mutex_lock(&w.lock);
    w.hold = false;
    pthread_cond_broadcast(&w.moved);
    pthread_mutex_unlock(&w.lock);
    for (int i = 0; i < N; i++) {
        void *ok = NULL;
        pthread_join(t[i], &ok);
        assert_non_null(ok);
    }
    assert_int_equal(locates(), 1);
    assert_int_equal(w.n_reads, 1);
}

static void test_stop_ends_who_waits_for_a_segment(void **state)
{
    (void)state;
    pthread_t t;
    w.hold = true;
    assert_int_equal(pthread_create(&t, NULL, ask_segment, NULL), 0);
    pthread_mutex_lock(&w.lock);
    while (w.n_locates == 0)
        pthread_cond_wait(&w.moved, &w.lock);
    pthread_mutex_unlock(&w.lock);
    int64_t began = time_mono_ms();
    stop(&w.gateway);
    assert_true(time_mono_ms() - began < 10000); // not the 30 s that the request would wait
    void *ok = &w;
    pthread_join(t, &ok);
    assert_null(ok);
}

static void test_file_direct_play_with_ranges(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "/file/%s/" ITEM, buf_str(&w.media));
    AUTO(answer_done) struct answer a = ask("GET", path, NULL, "", NULL);
    assert_int_equal(a.code, 200);
    assert_int_equal(a.body_len, SOURCE_BYTES);
    for (size_t i = 0; i < a.body_len; i++)
        assert_int_equal((uint8_t)a.body[i], content(99, (int64_t)i));
    assert_non_null(strstr(a.text, "Content-Type: audio/mpeg\r\n"));
    assert_non_null(strstr(a.text, "sandbox"));
    AUTO(answer_done)
    struct answer part = ask("GET", path, NULL, "Range: bytes=600000-1199999\r\n", NULL);
    assert_int_equal(part.code, 206);
    assert_int_equal(part.body_len, 600000);
    assert_int_equal((uint8_t)part.body[0], content(99, 600000));
    expect("GET", path, NULL, "Range: bytes=1200000-\r\n", NULL, 416, "bytes */1200000");
}

// ---------------------------------------------------------------- JSON, pages

static void test_api_routes_reach_the_service_with_the_callers_token(void **state)
{
    (void)state;
    const char *token = buf_str(&w.access);
    const char *play = "/api/v1/items/" ITEM "/play";
    expect("POST", play, token, "", "{}", 200, "\"title\":\"for ann\"");
    expect("POST", play, token, "", "{\"itemId\":\"" OTHER "\"}", 200, "{\"itemId\":\"" ITEM "\"");
    expect("POST", play, token, "", "{\"nonsense\":1}", 400, "no field 'nonsense'");
    expect("POST", play, token, "", "{", 400, "JSON line 1");
    expect("POST", play, token, "", "[]", 400, "must be a JSON object");
    expect("GET", "/api/v1/items?kind=video&page.size=7", NULL, "", NULL, 200,
           "{\"nextPage\":\"video/7/nobody\"}");
    expect("GET", "/api/v1/items?kind=a%26b", token, "", NULL, 200, "a&b/0/ann");
    expect("GET", "/api/v1/items?page.size=x", NULL, "", NULL, 400, "field 'page.size'");
    expect("GET", "/api/v1/items?kind=%zz", NULL, "", NULL, 400, "escape");
    expect("GET", "/api/v1/items/" ITEM, NULL, "", NULL, 501, "UNIMPLEMENTED");
    expect("GET", "/api/v1/cluster", token, "", NULL, 403, "PERMISSION_DENIED"); // not an admin
}

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00f067aa0ba902b7"

static void expect_trace(const uint8_t id[16], bool is_callers)
{
    char hex[33];
    pthread_mutex_lock(&w.lock);
    str_hex(hex, id, 16);
    pthread_mutex_unlock(&w.lock);
    assert_true(str_eq(hex, TRACE) == is_callers);
}

// Asks with that header; the answer's traceresponse, of which the trace is taken over or not.
static void expect_traced(const char *header, bool is_callers)
{
    char line[200];
    snprintf(line, sizeof line, "traceparent: %s\r\n", header);
    AUTO(answer_done) struct answer a = ask("GET", "/api/v1/items", NULL, line, NULL);
    const char *r = strstr(a.text, "traceresponse: ");
    struct rpc_trace t;
    char own[RPC_TRACEPARENT_SIZE];
    assert_int_equal(a.code, 200);
    assert_non_null(r);
    snprintf(own, sizeof own, "%s", r + strlen("traceresponse: "));
    if (!rpc_trace_parse(own, &t) || strstr(own, PARENT))
        fail_msg("%s was answered with %s", header, own);
    assert_true(str_starts_with(own, "00-" TRACE "-") == is_callers);
    expect_trace(w.listed, is_callers);
    assert_memory_equal(t.trace_id, w.listed, 16);
}

static void test_a_callers_trace_is_taken_over_if_it_is_one(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        bool is_good;
    } rows[] = {
        {"00-" TRACE "-" PARENT "-01", true},
        {"00-" TRACE "-" PARENT "-00", true},
        {"00-" TRACE "-" PARENT "-ff", true},
        {"cc-" TRACE "-" PARENT "-01", true},
        {"cc-" TRACE "-" PARENT "-01-what-comes-later", true},
        {"00-" TRACE "-" PARENT "-01-more", false},
        {"cc-" TRACE "-" PARENT "-01.more", false},
        {"ff-" TRACE "-" PARENT "-01", false},
        {"00-" TRACE "-" PARENT "-1", false},
        {"00-" TRACE "-" PARENT "", false},
        {"00-" TRACE "-0000000000000000-01", false},
        {"00-00000000000000000000000000000000-" PARENT "-01", false},
        {"00-4BF92F3577B34DA6A3CE929D0E0E4736-" PARENT "-01", false},
        {"00-" TRACE "_" PARENT "-01", false},
        {"0-" TRACE "-" PARENT "-01", false},
        {"", false},
        {"00-" TRACE "-" PARENT "-01\r\ntraceparent: 00-" TRACE "-" PARENT "-01", false},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++)
        expect_traced(rows[i].header, rows[i].is_good);
    expect("GET", hls("a128/1.m4s"), NULL, "traceparent: 00-" TRACE "-" PARENT "-01\r\n", NULL, 200,
           "traceresponse: 00-" TRACE "-");
    expect_trace(w.located, true);
    expect_trace(w.read, true);
    expect("GET", "/nowhere", NULL, "traceparent: 00-" TRACE "-" PARENT "-01\r\n", NULL, 404,
           "traceresponse: 00-" TRACE "-");
    expect("POST", "/api/v1/logout", NULL, "", "{}", 401, "traceresponse: 00-");
}

static void test_problems_say_what_the_service_said_of_them(void **state)
{
    (void)state;
    expect("GET", "/api/v1/items?kind=odd", NULL, "", NULL, 400, "Retry-After: 5\r\n");
    expect("GET", "/api/v1/items?kind=odd", NULL, "", NULL, 400,
           "\"code\":\"INVALID_ARGUMENT\",\"detail\":\"kind: must be video or audio\","
           "\"reason\":\"ODD_KIND\",\"violations\":["
           "{\"field\":\"page\",\"description\":\"must be \\\"even\\\"\"},"
           "{\"field\":\"kind\",\"description\":\"must be video or audio\"}],"
           "\"retry_after\":5}\n");
    expect("GET", "/api/v1/me", buf_str(&w.access), "", NULL, 503, "Retry-After: 2\r\n");
}

static void test_pages_and_probes(void **state)
{
    (void)state;
    static const char *const pages[] = {"/", "/item/" ITEM};
    for (size_t i = 0; i < N_ELEMENTS(pages); i++) {
        expect("GET", pages[i], NULL, "", NULL, 200, "Content-Security-Policy: default-src 'none'");
        expect("GET", pages[i], NULL, "", NULL, 200, "X-Content-Type-Options: nosniff");
        expect("GET", pages[i], NULL, "", NULL, 200, "text/html");
    }
    expect("GET", "/static/hls.min.js", NULL, "", NULL, 200, "text/javascript");
    expect("GET", "/static/item.js", NULL, "", NULL, 200, "masterUrl");
    expect("GET", "/livez", NULL, "", NULL, 200, "alive");
    expect("GET", "/readyz", NULL, "", NULL, 200, "ready");
    expect("GET", "/metrics", NULL, "", NULL, 200,
           "cauce_gateway_http_requests_total{code=\"2xx\"}");
    expect("GET", "/metrics", NULL, "", NULL, 200, "# TYPE cauce_rpc_started_total counter");
}

// ---------------------------------------------------------------- RPC entry

static void test_rpc_calls_are_forwarded_to_their_owner(void **state)
{
    (void)state;
    AUTO(rpc_client_free_p) struct rpc_client *c = connect_as_app();
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(10000)};
    struct err err = ERR_INIT;
    Store__ListItemsRequest list;
    store__list_items_request__init(&list);
    AUTO(rpc_message_free_p) Store__ListItemsReply *items = NULL;
    if (store_catalog_list(c, &o, &list, &items, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_string_equal(items->next_page, "/0/nobody");

    o.token = buf_str(&w.access);
    Orchestrator__OpenRequest open;
    orchestrator__open_request__init(&open);
    open.item_id = (char *)(uintptr_t)ITEM;
    AUTO(rpc_message_free_p) Orchestrator__OpenReply *opened = NULL;
    assert_int_equal(orchestrator_playback_open(c, &o, &open, &opened, &err), STATUS_OK);
    assert_string_equal(opened->title, "for ann");

    Origin__ReadRequest read;
    origin__read_request__init(&read);
    static const char *const no_origins[] = {"", "nowhere", "store-1"};
    for (size_t i = 0; i < N_ELEMENTS(no_origins); i++) {
        AUTO(rpc_stream_free_p) struct rpc_stream *stream = NULL;
        AUTO(rpc_message_free_p) Origin__ReadReply *part = NULL;
        o.route = no_origins[i];
        enum status s = origin_object_read_open(c, &o, &read, &stream, &err);
        if (s == STATUS_OK)
            s = origin_object_read_recv(stream, &part, &err);
        assert_int_equal(s, STATUS_NOT_FOUND);
    }
}

static void mint_admin(struct buf *ret)
{
    struct rpc_user u = {.id = USER,
                         .name = "root",
                         .session = USER,
                         .roles = ROLE_USER | ROLE_ADMIN,
                         .exp_wall_ms = time_wall_ms() + 600000};
    buf_init(ret, 8192);
    assert_int_equal(svc_token_mint_access(w.session_secret, &u, ret, NULL), STATUS_OK);
}

static enum status ask_info(struct rpc_client *c, const char *token, const char *route,
                            char node[64], struct err *err)
{
    const struct rpc_opts o = {
        .token = token, .route = route, .deadline_us = time_deadline_in_ms(20000)};
    Node__InfoRequest req;
    node__info_request__init(&req);
    AUTO(rpc_message_free_p) Node__InfoReply *reply = NULL;
    enum status s = node_node_info(c, &o, &req, &reply, err);
    snprintf(node, 64, "%s", s == STATUS_OK ? reply->node_id : "");
    return s;
}

// why: NULL, or 200 bytes
static enum status ask_why(struct rpc_client *c, const char *token, const char *route, char *why,
                           struct err *err)
{
    const struct rpc_opts o = {
        .token = token, .route = route, .deadline_us = time_deadline_in_ms(20000)};
    Node__CheckRequest req;
    node__check_request__init(&req);
    AUTO(rpc_message_free_p) Node__CheckReply *reply = NULL;
    enum status s = node_health_check(c, &o, &req, &reply, err);
    if (why)
        snprintf(why, 200, "%s", s == STATUS_OK ? reply->reason : "no answer");
    return s;
}

static enum status ask_health(struct rpc_client *c, const char *token, const char *route,
                              struct err *err)
{
    return ask_why(c, token, route, NULL, err);
}

static void test_admins_reach_every_node_by_its_id(void **state)
{
    (void)state;
    AUTO(rpc_client_free_p) struct rpc_client *c = connect_as_app();
    const char *user = buf_str(&w.access);
    static const char *const up[] = {"store-1", "video-1", "orchestrator-1", "gateway-1"};
    struct buf admin;
    struct err err = ERR_INIT;
    char node[64];
    mint_admin(&admin);
    for (size_t i = 0; i < N_ELEMENTS(up); i++) {
        if (ask_info(c, buf_str(&admin), up[i], node, &err) != STATUS_OK)
            fail_msg("%s: %s", up[i], err.msg);
        assert_string_equal(node, up[i]);
        assert_int_equal(ask_info(c, user, up[i], node, &err), STATUS_PERMISSION_DENIED);
        assert_int_equal(ask_info(c, NULL, up[i], node, &err), STATUS_UNAUTHENTICATED);
    }
    assert_int_equal(ask_info(c, buf_str(&admin), NULL, node, &err), STATUS_OK);
    assert_string_equal(node, "gateway-1");
    assert_int_equal(ask_info(c, buf_str(&admin), "session-1", node, &err), STATUS_UNAVAILABLE);
    assert_int_equal(ask_info(c, buf_str(&admin), "nowhere", node, &err), STATUS_NOT_FOUND);
    assert_string_equal(err.msg, "no node is called nowhere; there are session-1, orchestrator-1, "
                                 "store-1, video-1, gateway-1");
    // Anybody may ask whether the gateway serves, and nobody else what is behind it.
    assert_int_equal(ask_health(c, NULL, NULL, &err), STATUS_OK);
    assert_int_equal(ask_health(c, NULL, "gateway-1", &err), STATUS_OK);
    assert_int_equal(ask_health(c, NULL, "store-1", &err), STATUS_UNAUTHENTICATED);
    assert_int_equal(ask_health(c, user, "store-1", &err), STATUS_PERMISSION_DENIED);
    assert_int_equal(ask_health(c, user, "nowhere", &err), STATUS_PERMISSION_DENIED);
    assert_null(strstr(err.msg, "store-1"));
    assert_int_equal(ask_health(c, buf_str(&admin), "store-1", &err), STATUS_OK);
    // Reasons are for admins.
    char why[200];
    instance_set_problem(&w.gateway, "the file on disk 7 is odd");
    instance_set_problem(&w.store, "so is that on disk 8");
    assert_int_equal(ask_why(c, NULL, NULL, why, &err), STATUS_OK);
    assert_string_equal(why, "");
    assert_int_equal(ask_why(c, user, NULL, why, &err), STATUS_OK);
    assert_string_equal(why, "");
    assert_int_equal(ask_why(c, buf_str(&admin), NULL, why, &err), STATUS_OK);
    assert_string_equal(why, "the file on disk 7 is odd");
    assert_int_equal(ask_why(c, buf_str(&admin), "store-1", why, &err), STATUS_OK);
    assert_string_equal(why, "so is that on disk 8");
    buf_done(&admin);
}

static void test_cluster_tells_who_is_up(void **state)
{
    (void)state;
    struct buf admin;
    struct err err = ERR_INIT;
    mint_admin(&admin);
    AUTO(rpc_client_free_p) struct rpc_client *c = connect_as_app();
    const struct rpc_opts o = {.token = buf_str(&admin), .deadline_us = time_deadline_in_ms(10000)};
    Node__ClusterRequest req;
    node__cluster_request__init(&req);
    AUTO(rpc_message_free_p) Node__ClusterReply *reply = NULL;
    if (node_node_cluster(c, &o, &req, &reply, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(reply->n_nodes, 5);
    for (size_t i = 0; i < reply->n_nodes; i++) {
        const Node__NodeStatus *n = reply->nodes[i];
        bool up = !str_eq(n->node_id, "session-1");
        assert_int_equal(n->status, up ? NODE__SERVING__SERVING : NODE__SERVING__SERVING_UNKNOWN);
        assert_true(up == (n->info != NULL));
        assert_true(up || n->reason[0]); // who serves may have one too: its grant ends soon
        if (n->info)
            assert_string_equal(n->info->role, n->role);
    }
    expect("GET", "/api/v1/cluster", buf_str(&admin), "", NULL, 200, "\"nodeId\":\"session-1\"");
    buf_done(&admin);
}

int main(int argc, char **argv)
{
#define WORLD(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
    const struct CMUnitTest tests[] = {
        WORLD(test_every_route_refuses_strangers),
        WORLD(test_unknown_addresses_are_not_found),
        WORLD(test_hls_plays_and_caches),
        WORLD(test_text_is_listed_and_served_whole_and_in_pieces),
        WORLD(test_hls_offers_are_named_once),
        WORLD(test_file_to_keep_takes_the_right_and_all_segments),
        WORLD(test_hls_late_and_damaged_segments),
        WORLD(test_dead_origin_is_unavailable_soon),
        WORLD(test_hls_requests_for_one_segment_share_one_fetch),
        WORLD(test_stop_ends_who_waits_for_a_segment),
        WORLD(test_file_direct_play_with_ranges),
        WORLD(test_api_routes_reach_the_service_with_the_callers_token),
        WORLD(test_pages_and_probes),
        WORLD(test_rpc_calls_are_forwarded_to_their_owner),
        WORLD(test_a_callers_trace_is_taken_over_if_it_is_one),
        WORLD(test_problems_say_what_the_service_said_of_them),
        WORLD(test_admins_reach_every_node_by_its_id),
        WORLD(test_cluster_tells_who_is_up),
    };
    if (argc > 1) // "test_file*"
        cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rpc_fini();
    return failed;
}
