#include "fake_server.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/event.rpc.h"
#include "cauce/orchestrator.rpc.h"
#include "cauce/origin.rpc.h"
#include "cauce/session.rpc.h"
#include "cauce/store.rpc.h"
#include "crypto/crypto.h"

static struct fake *enter(struct rpc_call *c)
{
    struct fake *f = rpc_call_self(c);
    pthread_mutex_lock(&f->lock);
    return f;
}

static void leave(struct fake *f)
{
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

static void *make(struct rpc_call *c, const ProtobufCMessageDescriptor *d)
{
    ProtobufCMessage *m = arena_alloc(rpc_call_arena(c), d->sizeof_message);
    protobuf_c_message_init(d, m);
    return m;
}

// ---------------------------------------------------------------- session

static void fill_user(struct rpc_call *c, Session__User *u)
{
    struct arena *a = rpc_call_arena(c);
    u->id = arena_strdup(a, "u-1");
    u->name = arena_strdup(a, "ada");
    u->n_roles = 2;
    u->roles = arena_array(a, 2, sizeof(char *));
    u->roles[0] = arena_strdup(a, "user");
    u->roles[1] = arena_strdup(a, "creator");
}

static enum status give_tokens(struct rpc_call *c, struct fake *f, Session__Tokens *ret)
{
    struct arena *a = rpc_call_arena(c);
    ret->access_token = arena_printf(a, "access-%d", f->generation);
    ret->refresh_token = arena_printf(a, "refresh-%d", f->generation);
    ret->access_expires = make(c, &google__protobuf__timestamp__descriptor);
    ret->access_expires->seconds = time_wall_ms() / 1000 + f->life_s;
    ret->user = make(c, &session__user__descriptor);
    fill_user(c, ret->user);
    return STATUS_OK;
}

static enum status do_register(struct rpc_call *c, const Session__RegisterRequest *req,
                               Session__Tokens *ret, struct err *err)
{
    if (strlen(req->password) < 8)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the password is too short");
    struct fake *f = enter(c);
    f->generation++;
    enum status s = give_tokens(c, f, ret);
    leave(f);
    return s;
}

static enum status do_refresh(struct rpc_call *c, const Session__RefreshRequest *req,
                              Session__Tokens *ret, struct err *err)
{
    struct fake *f = enter(c);
    char want[32];
    snprintf(want, sizeof(want), "refresh-%d", f->generation);
    enum status s = STATUS_OK;
    if (strcmp(req->refresh_token, want) != 0) {
        s = err_set(err, STATUS_UNAUTHENTICATED, "spent");
    } else {
        f->generation++;
        f->n_refreshes++;
        s = give_tokens(c, f, ret);
    }
    leave(f);
    return s;
}

static enum status do_who_am_i(struct rpc_call *c, const Session__WhoAmIRequest *req,
                               Session__User *ret, struct err *err)
{
    (void)req, (void)err;
    fill_user(c, ret);
    return STATUS_OK;
}

static enum status do_logout(struct rpc_call *c, const Session__LogoutRequest *req,
                             Session__LogoutReply *ret, struct err *err)
{
    (void)c, (void)req, (void)ret, (void)err;
    return STATUS_OK;
}

// ---------------------------------------------------------------- uploads

static int64_t missing_bytes(const struct fake *f)
{
    int64_t n = 0;
    for (int64_t i = 0; i < object_n_leaves(f->size); i++)
        n += f->have[i] ? 0 : (int64_t)object_leaf_len(f->size, i);
    return n;
}

static enum status do_open_upload(struct rpc_call *c, const Orchestrator__OpenUploadRequest *req,
                                  Orchestrator__OpenUploadReply *ret, struct err *err)
{
    if (req->digest.len != OBJECT_DIGEST_SIZE || object_n_leaves(req->size) > FAKE_MAX_LEAVES)
        return err_set(err, STATUS_INVALID_ARGUMENT, "cannot");
    struct fake *f = enter(c);
    if (memcmp(f->digest, req->digest.data, OBJECT_DIGEST_SIZE) != 0) {
        memcpy(f->digest, req->digest.data, OBJECT_DIGEST_SIZE);
        f->size = req->size;
        f->has_leaves = f->is_committed = false;
        memset(f->have, 0, sizeof(f->have));
    }
    struct arena *a = rpc_call_arena(c);
    ret->upload_id = arena_strdup(a, "up-1");
    ret->item_id = arena_strdup(a, FAKE_ITEM);
    ret->route = arena_strdup(a, FAKE_ROUTE);
    ret->existed = f->is_committed;
    ret->missing_bytes = missing_bytes(f);
    leave(f);
    return STATUS_OK;
}

static enum status do_leaves(struct rpc_call *c, Origin__LeavesReply *ret, struct err *err)
{
    (void)ret;
    struct fake *f = rpc_call_self(c);
    struct buf b;
    buf_init(&b, sizeof(f->leaves));
    Origin__LeavesRequest *m = NULL;
    enum status s;
    while ((s = origin_upload_leaves_read(c, &m, err)) == STATUS_OK && m)
        buf_append(&b, m->digests.data, m->digests.len);
    pthread_mutex_lock(&f->lock);
    if (s == STATUS_OK)
        s = object_verify_leaves(f->digest, f->size, b.data, b.len, err);
    if (s == STATUS_OK) {
        memcpy(f->leaves, b.data, b.len);
        f->has_leaves = true;
    }
    leave(f);
    buf_done(&b);
    return s;
}

static enum status do_missing(struct rpc_call *c, const Origin__MissingRequest *req,
                              Origin__MissingReply *ret, struct err *err)
{
    (void)err;
    if (strcmp(rpc_call_route(c), FAKE_ROUTE) != 0 || strcmp(req->upload_id, "up-1") != 0)
        return err_set(err, STATUS_NOT_FOUND, "no such upload");
    struct fake *f = enter(c);
    int64_t n = object_n_leaves(f->size);
    ret->need_leaves = !f->has_leaves;
    ret->missing_bytes = missing_bytes(f);
    ret->missing = arena_array(rpc_call_arena(c), (size_t)n, sizeof(ret->missing[0]));
    for (int64_t i = 0; i < n; i++) {
        if (f->have[i])
            continue;
        if (i == 0 || f->have[i - 1]) {
            ret->missing[ret->n_missing] = make(c, &origin__run__descriptor);
            ret->missing[ret->n_missing++]->first = i;
        }
        ret->missing[ret->n_missing - 1]->count++;
    }
    leave(f);
    return STATUS_OK;
}

static enum status take_leaves(struct fake *f, const Origin__PutRequest *m, struct err *err)
{
    enum status s = object_verify_range(f->leaves, f->size, m->leaf * OBJECT_LEAF_BYTES,
                                        m->data.data, m->data.len, err);
    for (size_t at = 0; s == STATUS_OK && at < m->data.len; at += OBJECT_LEAF_BYTES) {
        f->have[m->leaf + (int64_t)(at / OBJECT_LEAF_BYTES)] = true;
        f->n_leaves_received++;
    }
    return s;
}

static enum status do_put(struct rpc_call *c, Origin__PutReply *ret, struct err *err)
{
    Origin__PutRequest *m = NULL;
    enum status s;
    while ((s = origin_upload_put_read(c, &m, err)) == STATUS_OK && m) {
        struct fake *f = enter(c);
        s = take_leaves(f, m, err);
        if (s == STATUS_OK && f->break_puts > 0) {
            f->break_puts--;
            s = err_set(err, STATUS_UNAVAILABLE, "lost the connection");
        }
        leave(f);
        if (s != STATUS_OK)
            return s;
    }
    struct fake *f = enter(c);
    ret->missing_bytes = missing_bytes(f);
    leave(f);
    return s;
}

static enum status do_commit(struct rpc_call *c, const Orchestrator__CommitRequest *req,
                             Orchestrator__CommitReply *ret, struct err *err)
{
    (void)req;
    struct fake *f = enter(c);
    enum status s =
        missing_bytes(f) ? err_set(err, STATUS_FAILED_PRECONDITION, "leaves miss") : STATUS_OK;
    f->is_committed = s == STATUS_OK;
    struct arena *a = rpc_call_arena(c);
    ret->item_id = arena_strdup(a, FAKE_ITEM);
    ret->job_id = arena_strdup(a, "job-1");
    ret->state = arena_strdup(a, "processing");
    ret->url = arena_strdup(a, "/item/" FAKE_ITEM);
    leave(f);
    return s;
}

// ---------------------------------------------------------------- the job

static enum status do_get_job(struct rpc_call *c, const Orchestrator__GetJobRequest *req,
                              Orchestrator__JobInfo *ret, struct err *err)
{
    (void)req, (void)err;
    struct fake *f = enter(c);
    f->n_job_gets++;
    struct arena *a = rpc_call_arena(c);
    ret->state = arena_strdup(a, !f->job_done ? "running" : f->job_failure ? "failed" : "done");
    ret->reason = arena_strdup(a, f->job_failure ? f->job_failure : "");
    ret->progress = f->job_done ? 1 : 0.25;
    leave(f);
    return STATUS_OK;
}

// The job ends only after it was looked at: so that only the event can tell of the end.
static enum status do_read_events(struct rpc_call *c, const Event__ReadRequest *req,
                                  struct err *err)
{
    if (!req->follow || strcmp(req->topic, "transcode") != 0 ||
        strcmp(rpc_call_route(c), "transcode") != 0 || strcmp(req->subject, FAKE_ITEM) != 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "not what a waiting client asks for");
    struct fake *f = enter(c);
    while (f->n_job_gets == 0)
        pthread_cond_wait(&f->changed, &f->lock);
    f->job_done = true;
    leave(f);
    Event__EventRecord *e = make(c, &event__event_record__descriptor);
    e->seq = 1;
    e->kind = arena_strdup(rpc_call_arena(c), "job.done");
    return event_event_read_write(c, e, err);
}

// ---------------------------------------------------------------- playback

static Common__ObjectRef *ref_to(struct rpc_call *c, const struct fake_object *o)
{
    Common__ObjectRef *r = make(c, &common__object_ref__descriptor);
    r->digest.data = arena_dup(rpc_call_arena(c), o->digest, OBJECT_DIGEST_SIZE);
    r->digest.len = OBJECT_DIGEST_SIZE;
    r->size = (int64_t)o->bytes.len;
    r->route = arena_strdup(rpc_call_arena(c), FAKE_ROUTE);
    return r;
}

static enum status do_open_play(struct rpc_call *c, const Orchestrator__OpenRequest *req,
                                Orchestrator__OpenReply *ret, struct err *err)
{
    if (strcmp(req->item_id, FAKE_ITEM) != 0)
        return err_set(err, STATUS_NOT_FOUND, "no item %s", req->item_id);
    struct fake *f = enter(c);
    struct arena *a = rpc_call_arena(c);
    ret->item_id = arena_strdup(a, FAKE_ITEM);
    ret->media_token = arena_strdup(a, "media-1");
    ret->title = arena_strdup(a, "Line one\nline two");
    ret->complete = f->is_complete;
    if (!f->plan) {
        ret->mode = ORCHESTRATOR__MODE__DIRECT;
        ret->source = ref_to(c, &f->source);
        ret->source_type = arena_strdup(a, "video/mp4");
    } else {
        ret->mode = ORCHESTRATOR__MODE__STREAM;
        ret->audio_rendition = arena_strdup(a, "a128");
        struct buf b;
        buf_init(&b, MEDIA_PLAN_MAX_BYTES);
        if (media_plan_encode(f->plan, &b, err) != STATUS_OK)
            print_error("%s\n", err->msg);
        ret->plan.data = arena_dup(a, b.data, b.len);
        ret->plan.len = b.len;
        buf_done(&b);
    }
    leave(f);
    return STATUS_OK;
}

static enum status do_locate(struct rpc_call *c, const Orchestrator__LocateRequest *req,
                             Orchestrator__LocateReply *ret, struct err *err)
{
    if (strcmp(req->rendition, "a128") != 0 || strcmp(req->media_token, "media-1") != 0)
        return err_set(err, STATUS_PERMISSION_DENIED, "no");
    struct fake *f = enter(c);
    ret->segments = arena_array(rpc_call_arena(c), f->n_segments, sizeof(ret->segments[0]));
    int32_t end = req->first + req->count;
    for (int32_t i = req->first; i < end && (size_t)i < f->n_segments; i++) {
        Orchestrator__SegmentRef *s = make(c, &orchestrator__segment_ref__descriptor);
        s->number = i;
        s->object = ref_to(c, &f->segments[i]);
        ret->segments[ret->n_segments++] = s;
    }
    leave(f);
    return STATUS_OK;
}

static const struct fake_object *find_object(const struct fake *f, const ProtobufCBinaryData *d)
{
    if (d->len == OBJECT_DIGEST_SIZE && memcmp(d->data, f->source.digest, d->len) == 0)
        return &f->source;
    for (size_t i = 0; d->len == OBJECT_DIGEST_SIZE && i < f->n_segments; i++)
        if (memcmp(d->data, f->segments[i].digest, d->len) == 0)
            return &f->segments[i];
    return NULL;
}

static enum status send_part(struct rpc_call *c, const uint8_t *p, size_t n, bool corrupt,
                             struct err *err)
{
    Origin__ReadReply r = ORIGIN__READ_REPLY__INIT;
    AUTO(mem_free_p) uint8_t *copy = mem_dup(p, n);
    if (!copy)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    copy[0] ^= corrupt ? 1 : 0;
    r.data = (ProtobufCBinaryData){n, copy};
    return origin_object_read_write(c, &r, err);
}

static enum status do_read(struct rpc_call *c, const Origin__ReadRequest *req, struct err *err)
{
    struct fake *f = enter(c);
    const struct fake_object *o = find_object(f, &req->digest);
    bool corrupt = f->corrupt, breaks = f->break_reads > 0;
    f->break_reads -= breaks;
    leave(f);
    if (!o || strcmp(req->media_token, "media-1") != 0)
        return err_set(err, STATUS_NOT_FOUND, "no such object");
    int64_t end = req->length ? req->offset + req->length : (int64_t)o->bytes.len;
    enum status s = STATUS_OK;
    for (int64_t at = req->offset; s == STATUS_OK && at < end;) {
        size_t n = end - at < 100000 ? (size_t)(end - at) : 100000;
        s = send_part(c, o->bytes.data + at, n, corrupt, err);
        at += (int64_t)n;
        f = enter(c);
        f->bytes_read += (int64_t)n;
        leave(f);
        if (s == STATUS_OK && breaks)
            return err_set(err, STATUS_UNAVAILABLE, "lost the connection");
    }
    return s;
}

static enum status do_tree(struct rpc_call *c, const Origin__TreeRequest *req, struct err *err)
{
    struct fake *f = enter(c);
    const struct fake_object *o = find_object(f, &req->digest);
    leave(f);
    if (!o)
        return err_set(err, STATUS_NOT_FOUND, "no such object");
    Origin__TreeReply r = ORIGIN__TREE_REPLY__INIT;
    r.digests = (ProtobufCBinaryData){o->leaves.len, o->leaves.data};
    return origin_object_tree_write(c, &r, err);
}

// ---------------------------------------------------------------- store

static enum status do_list(struct rpc_call *c, const Store__ListItemsRequest *req,
                           Store__ListItemsReply *ret, struct err *err)
{
    (void)req, (void)err;
    struct arena *a = rpc_call_arena(c);
    ret->n_items = 1;
    ret->items = arena_array(a, 1, sizeof(ret->items[0]));
    ret->items[0] = make(c, &store__item__descriptor);
    ret->items[0]->item_id = arena_strdup(a, FAKE_ITEM);
    ret->items[0]->title = arena_strdup(a, rpc_call_user(c) ? "for a user" : "for anybody");
    ret->next_page = arena_strdup(a, "p2");
    return STATUS_OK;
}

static enum status do_quote(struct rpc_call *c, const Store__QuoteRequest *req,
                            Store__QuoteReply *ret, struct err *err)
{
    (void)err;
    ret->quote_id = arena_strdup(rpc_call_arena(c), "q-1");
    ret->total = make(c, &common__money__descriptor);
    ret->total->minor = 500 * (int64_t)req->n_item_ids;
    ret->total->currency = arena_strdup(rpc_call_arena(c), "EUR");
    return STATUS_OK;
}

// The first answer for a key is lost on its way: the client must ask again, under the same key.
static enum status do_purchase(struct rpc_call *c, const Store__PurchaseRequest *req,
                               Store__Order *ret, struct err *err)
{
    struct fake *f = enter(c);
    bool is_first = strcmp(f->charged_key, req->idempotency_key) != 0;
    if (is_first) {
        f->n_charges++;
        str_copy(f->charged_key, sizeof(f->charged_key), req->idempotency_key);
    }
    ret->order_id = arena_strdup(rpc_call_arena(c), "o-1");
    ret->state = arena_strdup(rpc_call_arena(c), "paid");
    leave(f);
    return is_first ? err_set(err, STATUS_UNAVAILABLE, "lost the connection") : STATUS_OK;
}

// ---------------------------------------------------------------- life

static enum status verify(void *ud, const char *token, size_t len, struct rpc_user *ret,
                          struct err *err)
{
    struct fake *f = ud;
    char want[32];
    pthread_mutex_lock(&f->lock);
    int n = snprintf(want, sizeof(want), "access-%d", f->generation);
    pthread_mutex_unlock(&f->lock);
    if (len != (size_t)n || memcmp(token, want, len) != 0)
        return err_set(err, STATUS_UNAUTHENTICATED, "bad token");
    memset(ret, 0, sizeof(*ret));
    snprintf(ret->id, sizeof(ret->id), "u-1");
    snprintf(ret->name, sizeof(ret->name), "ada");
    ret->roles = ROLE_USER | ROLE_CREATOR;
    ret->exp_wall_ms = time_wall_ms() + 600000;
    return STATUS_OK;
}

static const struct session_session_handlers session = {
    .register_ = do_register, .refresh = do_refresh, .who_am_i = do_who_am_i, .logout = do_logout};
static const struct orchestrator_upload_handlers uploads = {.open = do_open_upload,
                                                            .commit = do_commit};
static const struct orchestrator_playback_handlers playback = {.open = do_open_play,
                                                               .locate = do_locate};
static const struct orchestrator_job_handlers jobs = {.get = do_get_job};
static const struct origin_upload_handlers origin_uploads = {
    .leaves = do_leaves, .missing = do_missing, .put = do_put};
static const struct origin_object_handlers objects = {.read = do_read, .tree = do_tree};
static const struct event_event_handlers events = {.read = do_read_events};
static const struct store_catalog_handlers catalog = {.list = do_list};
static const struct store_shop_handlers shop = {.quote = do_quote, .purchase = do_purchase};

static void serve(struct fake *f, const char *url)
{
    struct err e = ERR_INIT;
    struct rpc_server_opts o = {.identity = &f->identity,
                                .trust = &f->trust,
                                .pool = f->pool,
                                .verify = verify,
                                .verify_ud = f};
    f->server = rpc_server_new(&o, &e);
    if (!f->server || session_session_serve(f->server, &session, f, &e) ||
        orchestrator_upload_serve(f->server, &uploads, f, &e) ||
        orchestrator_playback_serve(f->server, &playback, f, &e) ||
        orchestrator_job_serve(f->server, &jobs, f, &e) ||
        origin_upload_serve(f->server, &origin_uploads, f, &e) ||
        origin_object_serve(f->server, &objects, f, &e) ||
        event_event_serve(f->server, &events, f, &e) ||
        store_catalog_serve(f->server, &catalog, f, &e) ||
        store_shop_serve(f->server, &shop, f, &e) ||
        rpc_server_listen(f->server, url, true, f->url, &e))
        fail_msg("%s", e.msg);
}

void fake_start(struct fake *f)
{
    memset(f, 0, sizeof(*f));
    assert_int_equal(crypto_init(NULL), STATUS_OK);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    f->life_s = 600;
    f->generation = 1;
    crypto_dh_keypair(f->identity.public_key, f->identity.secret);
    f->pool = work_pool_new("fake", 4, 256);
    assert_non_null(f->pool);
    serve(f, "tcp://127.0.0.1:0");
    char key[64];
    str_b64(key, f->identity.public_key, 32);
    snprintf(f->address, sizeof(f->address), "cauce://%s#%s", f->url + strlen("tcp://"), key);
}

static void end_server(struct fake *f)
{
    if (!f->server)
        return;
    rpc_server_close(f->server);
    rpc_server_stop(f->server, 1000);
    rpc_server_free(f->server);
    f->server = NULL;
}

void fake_restart(struct fake *f)
{
    char url[RPC_URL_SIZE];
    str_copy(url, sizeof(url), f->url);
    end_server(f);
    serve(f, url);
}

static void object_done(struct fake_object *o)
{
    buf_done(&o->bytes);
    buf_done(&o->leaves);
}

void fake_stop(struct fake *f)
{
    end_server(f);
    work_pool_free(f->pool);
    object_done(&f->source);
    for (size_t i = 0; i < f->n_segments; i++)
        object_done(&f->segments[i]);
    media_plan_free(f->plan);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->lock);
}

static void set_object(struct fake_object *o, const void *bytes, size_t n)
{
    struct object_hasher h;
    object_done(o);
    buf_init(&o->bytes, n + 1);
    buf_init(&o->leaves, FAKE_MAX_LEAVES * OBJECT_DIGEST_SIZE);
    assert_true(buf_append(&o->bytes, bytes, n));
    object_hasher_init(&h, &o->leaves);
    assert_int_equal(object_hasher_update(&h, bytes, n, NULL), STATUS_OK);
    assert_int_equal(object_hasher_final(&h, o->digest, NULL), STATUS_OK);
}

void fake_set_source(struct fake *f, const void *bytes, size_t n)
{
    pthread_mutex_lock(&f->lock);
    set_object(&f->source, bytes, n);
    pthread_mutex_unlock(&f->lock);
}

// ---------------------------------------------------------------- an audio item

static void set_audio_rendition(struct media_rendition *r)
{
    static const uint8_t config[] = {0x11, 0x90};
    str_copy(r->id, sizeof(r->id), "a128");
    str_copy(r->codecs, sizeof(r->codecs), "mp4a.40.2");
    r->kind = MEDIA_AUDIO;
    r->codec = MEDIA_CODEC_AAC;
    r->channels = 2;
    r->frame_rate = (struct media_rational){0, 1};
    r->timescale = MEDIA_AUDIO_RATE;
    r->frame_samples = 1024;
    r->priming = 1024;
    r->bitrate_bps = 128000;
    struct media_track_config c = {.codec = r->codec,
                                   .timescale = r->timescale,
                                   .channels = 2,
                                   .sample_rate = MEDIA_AUDIO_RATE,
                                   .priming = r->priming,
                                   .bitrate_bps = r->bitrate_bps,
                                   .config = config,
                                   .config_len = sizeof(config)};
    struct buf b;
    buf_init(&b, MEDIA_MAX_INIT_BYTES);
    assert_int_equal(media_cmaf_init(&c, &b, NULL), STATUS_OK);
    r->init = buf_take(&b, &r->init_len);
    buf_done(&b);
}

static void set_segment(struct fake *f, size_t i)
{
    static const uint8_t data[16] = "0123456789abcdef";
    struct media_sample samples[512];
    uint32_t n = media_rendition_samples(f->plan, 0, i);
    assert_in_range(n, 1, N_ELEMENTS(samples));
    for (uint32_t k = 0; k < n; k++)
        samples[k] = (struct media_sample){
            .data = data, .size = 1 + (uint32_t)(i + k) % 15, .duration = 1024, .sync = true};
    struct buf b;
    struct err e = ERR_INIT;
    buf_init(&b, 1 << 20);
    if (media_cmaf_fragment(1, MEDIA_AUDIO_TRACK, f->plan->audio.segments[i].start, samples, n, &b,
                            &e) != STATUS_OK)
        fail_msg("%s", e.msg);
    set_object(&f->segments[i], b.data, b.len);
    buf_done(&b);
}

void fake_make_plan(struct fake *f, uint32_t seconds)
{
    struct media_plan *p = media_plan_new();
    assert_non_null(p);
    p->kind = MEDIA_AUDIO;
    str_copy(p->build, sizeof(p->build), "test");
    p->source = (struct media_source){.container = MEDIA_CONTAINER_FLAC,
                                      .size_bytes = 1000,
                                      .duration_us = (int64_t)seconds * 1000000,
                                      .n_tracks = 1};
    p->source.tracks[0].type = MEDIA_TRACK_AUDIO;
    p->source.tracks[0].chosen = true;
    p->source.tracks[0].sar = p->source.tracks[0].frame_rate = (struct media_rational){1, 1};
    str_copy(p->source.tracks[0].codec, sizeof(p->source.tracks[0].codec), "flac");
    assert_int_equal(media_plan_cut_audio(&p->audio, (int64_t)seconds * 48000, 1024, NULL),
                     STATUS_OK);
    p->n_renditions = 1;
    set_audio_rendition(&p->renditions[0]);
    media_plan_set_bandwidth(p);
    struct err e = ERR_INIT;
    if (media_plan_check(p, &e) != STATUS_OK)
        fail_msg("%s", e.msg);
    assert_in_range(p->audio.n_segments, 1, FAKE_MAX_SEGMENTS);
    pthread_mutex_lock(&f->lock);
    f->plan = p;
    f->n_segments = p->audio.n_segments;
    for (size_t i = 0; i < f->n_segments; i++)
        set_segment(f, i);
    f->is_complete = true;
    pthread_mutex_unlock(&f->lock);
}
