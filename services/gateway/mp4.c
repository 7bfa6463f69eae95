// One MP4 file of two renditions, to keep: "v720+a128.mp4". Its index is made of the heads of all
// segments, once, and kept for a while; the rest goes through in blocks like the source itself, so
// a slow client costs memory for two of them and no thread.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/orchestrator.rpc.h"
#include "gateway/internal.h"
#include "media/cmaf.h"
#include "media/mp4file.h"

enum {
    LOCATE_MAX = 1000,
    LOCATE_MARGIN_MS = 2000,
    STEP_MS = 5000,
    MAX_MAKING = 2, // at once: each keeps one thread of the pool waiting
};

struct place { // of a segment
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size;
    char route[CHAN_NODE_ID_SIZE];
};
struct mp4 { // as cached
    struct edge_object base;
    struct edge_plan *plan; // a reference
    struct media_mp4 *file;
    struct place *places; // of its parts
    char etag[33];
};
struct mp4_fetch {
    struct gateway *g;
    struct edge_plan *plan; // a reference
    int video, audio;
    char key[EDGE_KEY_SIZE], item[UUID_SIZE];
    struct rpc_trace trace;
};

static void mp4_destroy(struct edge_object *o)
{
    struct mp4 *m = (struct mp4 *)(void *)o;
    media_mp4_free(m->file);
    mem_free(m->places);
    if (m->plan)
        edge_object_unref(&m->plan->base);
    mem_free(m);
}

static void mp4_unref(struct mp4 *m)
{
    if (m)
        edge_object_unref(&m->base);
}
DEFINE_AUTO(struct mp4, mp4_unref)

// ---------------------------------------------------------------- where segments are

static enum status take_place(struct place *p, const Common__ObjectRef *o, struct err *err)
{
    if (!o || o->digest.len != OBJECT_DIGEST_SIZE || o->size <= 0 ||
        o->size > MEDIA_MAX_SEGMENT_BYTES || !str_copy(p->route, sizeof p->route, o->route))
        return err_set(err, STATUS_INTERNAL, "the orchestrator named no place of a segment");
    memcpy(p->digest, o->digest.data, sizeof p->digest);
    p->size = o->size;
    return STATUS_OK;
}

// Those of [first, ...) that are there, at least the first; waits for that one.
static enum status locate(const struct mp4_fetch *f, size_t rendition, struct place *places,
                          size_t first, size_t n, int64_t until_us, struct err *err)
{
    struct rpc_client *c = svc_client(f->g->svc, ROLE_NODE_ORCHESTRATOR, NULL, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    int64_t left_ms = time_left_ms(until_us);
    Orchestrator__LocateRequest req;
    orchestrator__locate_request__init(&req);
    char item[UUID_SIZE], id[sizeof f->plan->plan->renditions[0].id];
    (void)str_copy(item, sizeof item, f->item);
    (void)str_copy(id, sizeof id, f->plan->plan->renditions[rendition].id);
    req.item_id = item;
    req.rendition = id;
    req.first = (int32_t)first;
    req.count = (int32_t)(n - first < LOCATE_MAX ? n - first : LOCATE_MAX);
    req.wait_ms = left_ms < STEP_MS ? left_ms : STEP_MS;
    const struct rpc_opts o = {.deadline_us = time_deadline_in_ms(req.wait_ms + LOCATE_MARGIN_MS),
                               .cancel = f->g->stopping,
                               .trace = &f->trace};
    AUTO(rpc_message_free_p) Orchestrator__LocateReply *reply = NULL;
    enum status s = orchestrator_playback_locate(c, &o, &req, &reply, err);
    for (size_t i = 0; s == STATUS_OK && i < reply->n_segments; i++) {
        const Orchestrator__SegmentRef *seg = reply->segments[i];
        if (seg->number < 0 || (size_t)seg->number >= n)
            s = err_set(err, STATUS_INTERNAL, "the orchestrator named a segment that cannot be");
        else
            s = take_place(&places[seg->number], seg->object, err);
    }
    return s;
}

static enum status not_whole(const struct mp4_fetch *f, size_t rendition, size_t at, size_t n,
                             struct err *err)
{
    return err_set(err, STATUS_UNAVAILABLE,
                   "%s is being made, %zu of %zu segments are there: try again soon",
                   f->plan->plan->renditions[rendition].id, at, n);
}

// All of a rendition's. What is not made yet is waited for as long as anybody waits for a segment.
static enum status locate_all(const struct mp4_fetch *f, size_t rendition, struct place *places,
                              size_t n, int64_t until_us, struct err *err)
{
    for (size_t at = 0; at < n;) {
        if (places[at].size > 0) {
            at++;
            continue;
        }
        if (time_left_ms(until_us) == 0)
            return not_whole(f, rendition, at, n, err);
        enum status s = locate(f, rendition, places, at, n, until_us, err);
        if (s == STATUS_DEADLINE_EXCEEDED)
            return not_whole(f, rendition, at, n, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- the index

// The places in the order of the file.
static enum status find_places(const struct mp4_fetch *f, struct mp4 *m, struct err *err)
{
    const struct media_plan *p = f->plan->plan;
    const int chosen[2] = {f->video, f->audio};
    int64_t until_us = time_deadline_in_ms(f->g->options->segment_wait_ms);
    size_t n_parts = media_mp4_n_parts(m->file);
    m->places = mem_array(n_parts, sizeof *m->places);
    if (!m->places)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "file: out of memory");
    for (size_t k = 0; k < N_ELEMENTS(chosen); k++) {
        if (chosen[k] < 0)
            continue;
        size_t rendition = (size_t)chosen[k], n = media_rendition_grid(p, rendition)->n_segments;
        AUTO(mem_free_p) struct place *places = mem_array(n, sizeof *places);
        if (!places)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "file: out of memory");
        enum status s = locate_all(f, rendition, places, n, until_us, err);
        if (s != STATUS_OK)
            return s;
        for (size_t i = 0; i < n_parts; i++) {
            struct media_mp4_part at = media_mp4_part(m->file, i);
            if (at.rendition == rendition)
                m->places[i] = places[at.segment];
        }
    }
    return STATUS_OK;
}

static enum status read_heads(const struct mp4_fetch *f, struct mp4 *m, struct err *err)
{
    struct buf head;
    enum status s = STATUS_OK;
    buf_init(&head, MEDIA_MAX_SEGMENT_BYTES);
    for (size_t i = 0; s == STATUS_OK && i < media_mp4_n_parts(m->file); i++) {
        const struct place *p = &m->places[i];
        size_t n = media_mp4_head_bytes(m->file, i);
        n = (int64_t)n < p->size ? n : (size_t)p->size;
        buf_reset(&head);
        uint8_t *room = buf_reserve(&head, n);
        if (!room)
            s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "file: out of memory");
        if (s == STATUS_OK)
            s = gateway_read_object(f->g, p->route, p->digest, 0, n, &f->trace, room, err);
        if (s == STATUS_OK)
            s = media_mp4_add(m->file, room, n, p->size, err);
    }
    buf_done(&head);
    return s == STATUS_OK ? media_mp4_finish(m->file, err) : s;
}

// Of the index too: where one release writes it differently, a download goes not on with another's.
static void set_etag(struct mp4 *m)
{
    struct crypto_blake2b h;
    uint8_t digest[16];
    size_t n;
    const uint8_t *header = media_mp4_header(m->file, &n);
    crypto_blake2b_init(&h, sizeof digest, NULL, 0, NULL);
    crypto_blake2b_update(&h, header, n);
    for (size_t i = 0; i < media_mp4_n_parts(m->file); i++)
        crypto_blake2b_update(&h, m->places[i].digest, sizeof m->places[i].digest);
    crypto_blake2b_final(&h, digest, sizeof digest);
    str_hex(m->etag, digest, sizeof digest);
}

static enum status make(struct mp4_fetch *f, struct mp4 **ret, struct err *err)
{
    AUTO(mp4_unref_p) struct mp4 *m = mem_alloc(sizeof *m);
    if (!m)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "file: out of memory");
    edge_object_init(&m->base, 0, mp4_destroy);
    m->plan = TAKE(f->plan);
    f->plan = m->plan; // which lives as long as m
    enum status s = media_mp4_new(m->plan->plan, f->video, f->audio, &m->file, err);
    if (s == STATUS_OK)
        s = find_places(f, m, err);
    if (s == STATUS_OK)
        s = read_heads(f, m, err);
    f->plan = NULL;
    if (s != STATUS_OK)
        return s;
    set_etag(m);
    m->base.bytes =
        sizeof *m + media_mp4_memory(m->file) + media_mp4_n_parts(m->file) * sizeof *m->places;
    *ret = TAKE(m);
    return STATUS_OK;
}

static void fetch_done(struct mp4_fetch *f, enum status s, struct mp4 *m, const struct err *err)
{
    struct gateway *g = f->g;
    atomic_fetch_sub(&g->n_making, 1);
    edge_cache_put(g->files, f->key, s, m ? &m->base : NULL, err);
    if (f->plan)
        edge_object_unref(&f->plan->base);
    mem_free(f);
    gateway_op_end(g);
}

static void make_job(void *ud)
{
    struct mp4_fetch *f = ud;
    struct mp4 *m = NULL;
    struct err err = ERR_INIT;
    const uint8_t *before = log_set_trace(f->trace.trace_id);
    enum status s = make(f, &m, &err);
    log_set_trace(before);
    fetch_done(f, s, m, &err);
}

// ---------------------------------------------------------------- sending

struct sending {
    struct gateway *g;
    struct mp4 *mp4; // a reference
    struct rpc_trace trace;
};
struct block {
    struct sending *sending;
    struct http_stream *stream;
    int64_t offset;
    size_t max;
};

static enum status read_block(const struct block *b, uint8_t *to, size_t n,
                              const struct media_mp4_span *at, struct err *err)
{
    const struct sending *s = b->sending;
    size_t header_len;
    if (!at->in_header) {
        const struct place *p = &s->mp4->places[at->part];
        return gateway_read_object(s->g, p->route, p->digest, at->offset, n, &s->trace, to, err);
    }
    memcpy(to, media_mp4_header(s->mp4->file, &header_len) + at->offset, n);
    return STATUS_OK;
}

static void block_job(void *ud)
{
    struct block *b = ud;
    struct gateway *g = b->sending->g;
    struct media_mp4_span at;
    struct err err = ERR_INIT;
    const uint8_t *before = log_set_trace(b->sending->trace.trace_id);
    media_mp4_at(b->sending->mp4->file, b->offset, &at);
    size_t n = at.len < (int64_t)b->max ? (size_t)at.len : b->max;
    AUTO(mem_free_p) uint8_t *bytes = mem_alloc(n);
    enum status s = bytes ? read_block(b, bytes, n, &at, &err)
                          : err_set(&err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    if (s != STATUS_OK)
        log_warn(g->svc->log, "download_cut_off", F_I64("offset", b->offset), F_ERR(&err));
    log_set_trace(before);
    http_stream_give(b->stream, bytes, s == STATUS_OK ? n : 0);
    mem_free(b);
    gateway_op_end(g);
}

static void want(void *ud, struct http_stream *stream, int64_t offset, size_t max)
{
    struct sending *s = ud;
    struct block *b = mem_alloc(sizeof *b);
    if (b)
        *b = (struct block){s, stream, offset, max};
    gateway_op_begin(s->g);
    if (b && work_pool_submit(s->g->svc->pool, block_job, b))
        return;
    mem_free(b);
    gateway_op_end(s->g);
    http_stream_give(stream, NULL, 0);
}

static void done(void *ud)
{
    struct sending *s = ud;
    struct gateway *g = s->g;
    edge_object_unref(&s->mp4->base);
    mem_free(s);
    gateway_op_end(g);
}

static void respond(struct http_request *r, struct mp4 *m)
{
    const struct media_context *c = http_request_context(r);
    char saved_as[160];
    struct sending *s = mem_alloc(sizeof *s);
    if (!s) {
        http_respond_problem(r, STATUS_RESOURCE_EXHAUSTED, "out of memory", 2);
        return;
    }
    *s = (struct sending){c->g, m, gateway_trace_of(r)};
    edge_object_ref(&m->base);
    gateway_op_begin(c->g);
    gateway_saved_as(saved_as, sizeof saved_as, m->plan, ".mp4");
    const struct http_header headers[] = {{"Content-Disposition", saved_as}};
    const struct http_source source = {.want = want, .done = done, .ud = s};
    bool video =
        m->plan->plan->renditions[media_mp4_part(m->file, 0).rendition].kind == MEDIA_VIDEO;
    http_respond(r, &(struct http_response){.type = video ? "video/mp4" : "audio/mp4",
                                            .etag = m->etag,
                                            .cache_control = "private, max-age=86400, immutable",
                                            .ranges = true,
                                            .headers = headers,
                                            .n_headers = N_ELEMENTS(headers),
                                            .source = &source,
                                            .size = media_mp4_size(m->file)});
}

static void mp4_done(void *ud, enum status s, struct edge_object *o, const struct err *err)
{
    if (s == STATUS_OK)
        respond(ud, (struct mp4 *)(void *)o);
    else
        gateway_respond_error(ud, s, err);
}

// ---------------------------------------------------------------- the request

// "v720+a128", "a128", or "v720": with the sound that everybody gets.
static bool find_renditions(const struct media_plan *p, const char *names, int *ret_video,
                            int *ret_audio)
{
    char first[16];
    const char *plus = strchr(names, '+');
    size_t n = plus ? (size_t)(plus - names) : strlen(names);
    if (n >= sizeof first)
        return false;
    memcpy(first, names, n);
    first[n] = '\0';
    int a = media_plan_find(p, first), b = plus ? media_plan_find(p, plus + 1) : -1;
    if (a < 0 || (plus && b < 0))
        return false;
    bool alone = p->renditions[a].kind == MEDIA_AUDIO;
    *ret_video = alone ? -1 : a;
    *ret_audio = alone ? a : b;
    for (size_t i = 0; !plus && !alone && *ret_audio < 0 && i < p->n_renditions; i++)
        if (p->renditions[i].kind == MEDIA_AUDIO)
            *ret_audio = (int)i;
    return !plus || (!alone && p->renditions[b].kind == MEDIA_AUDIO);
}

static struct mp4_fetch *describe(struct http_request *r, struct gateway *g, struct edge_plan *p,
                                  int video, int audio)
{
    const struct media_context *c = http_request_context(r);
    struct mp4_fetch *f = mem_alloc(sizeof *f);
    if (!f)
        return NULL;
    *f = (struct mp4_fetch){.g = g, .video = video, .audio = audio, .trace = gateway_trace_of(r)};
    (void)str_copy(f->item, sizeof f->item, c->claims.item);
    snprintf(f->key, sizeof f->key, "%s/%d/%d/%s", f->item, video, audio, p->version);
    edge_object_ref(&p->base);
    f->plan = p;
    return f;
}

static void fetch(struct mp4_fetch *f)
{
    struct err err = ERR_INIT;
    gateway_op_begin(f->g);
    bool has_room = atomic_fetch_add(&f->g->n_making, 1) < MAX_MAKING;
    if (has_room && work_pool_submit(f->g->svc->pool, make_job, f))
        return;
    err_set(&err, STATUS_UNAVAILABLE, "other files are being prepared: try again soon");
    fetch_done(f, STATUS_UNAVAILABLE, NULL, &err);
}

static void serve(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    const struct media_context *c = http_request_context(r);
    struct edge_answer found;
    struct err err = ERR_INIT;
    int video, audio;
    if (!(c->claims.rights & SVC_RIGHT_DOWNLOAD)) {
        http_respond_problem(r, STATUS_PERMISSION_DENIED,
                             "the token is for playing, not for keeping: ask for one to download",
                             0);
        return;
    }
    if (!find_renditions(p->plan, http_request_var(r, "renditions"), &video, &audio)) {
        http_respond_problem(r, STATUS_NOT_FOUND, "no such renditions", 0);
        return;
    }
    struct mp4_fetch *f = describe(r, g, p, video, audio);
    if (!f) {
        http_respond_problem(r, STATUS_RESOURCE_EXHAUSTED, "out of memory", 2);
        return;
    }
    enum status s = edge_cache_get(g->files, f->key, mp4_done, r, &found, &err);
    // From here on r may be answered and gone, unless this is a hit.
    if (s != STATUS_OK)
        gateway_respond_error(r, s, &err);
    if (s == STATUS_OK && found.hit)
        respond(r, (struct mp4 *)(void *)found.hit);
    if (s == STATUS_OK && found.fetch) {
        fetch(f);
    } else {
        edge_object_unref(&f->plan->base);
        mem_free(f);
    }
    if (s == STATUS_OK)
        edge_object_unref(found.hit);
}

void gateway_mp4(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, serve);
}
