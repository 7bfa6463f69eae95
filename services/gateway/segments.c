// A segment, or a picture of the item: cache, else ask the orchestrator where it is (which raises
// what is not made yet and waits for it, costing no thread here), then read it from its origin on
// the pool and verify it.
//
// Pictures are served with composition offsets that are not negative, and the init segment takes
// the shift off by an edit list: players made of FFmpeg show pictures with negative offsets late by
// as much as the most negative one, because their demuxer delays what it cannot put before its own
// decode time. Stored segments have the plan's exact times.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/orchestrator.rpc.h"
#include "cauce/origin.rpc.h"
#include "gateway/internal.h"
#include "media/cmaf.h"
#include "media/image.h"

enum { READ_MS = 20000, RETRY_WITHIN_MS = 500, LOCATE_MARGIN_MS = 2000 };

struct segment {
    struct edge_object base;
    char etag[OBJECT_HEX_SIZE];
    const char *type; // MIME, static
    size_t len;
    uint8_t bytes[];
};

struct segment_fetch {
    struct gateway *g;
    char key[EDGE_KEY_SIZE], item[37], rendition[16], route[CHAN_NODE_ID_SIZE];
    int32_t number;
    const char *type;
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size;
    struct edge_plan *plan; // of the segments of a rendition; a reference
    struct rpc_trace trace; // of the request that came first
};

static void segment_destroy(struct edge_object *o)
{
    mem_free(o);
}

static void fetch_free(struct segment_fetch *f)
{
    if (f && f->plan)
        edge_object_unref(&f->plan->base);
    mem_free(f);
}

static void fetch_done(struct segment_fetch *f, enum status s, struct segment *seg,
                       const struct err *err)
{
    struct gateway *g = f->g;
    edge_cache_put(g->segments, f->key, s, seg ? &seg->base : NULL, err);
    fetch_free(f);
    gateway_op_end(g);
}

// ---------------------------------------------------------------- reading

static enum status receive(struct rpc_stream *stream, uint8_t *at, size_t n, struct err *err)
{
    size_t have = 0;
    for (;;) {
        AUTO(rpc_message_free_p) Origin__ReadReply *part = NULL;
        enum status s = origin_object_read_recv(stream, &part, err);
        if (s != STATUS_OK)
            return s;
        if (!part)
            break;
        if (part->data.len > n - have)
            return err_set(err, STATUS_DATA_LOSS, "the origin sent more than was asked for");
        memcpy(at + have, part->data.data, part->data.len);
        have += part->data.len;
    }
    return have == n ? STATUS_OK
                     : err_set(err, STATUS_DATA_LOSS, "the origin sent %zu bytes of %zu", have, n);
}

static enum status read_once(struct gateway *g, const char *route, const uint8_t *digest,
                             int64_t offset, size_t n, const struct rpc_trace *trace, uint8_t *at,
                             struct err *err)
{
    struct rpc_client *c = svc_client(g->svc, ROLE_NODE_ORIGIN, route, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    uint8_t name[OBJECT_DIGEST_SIZE];
    memcpy(name, digest, sizeof name);
    Origin__ReadRequest req;
    origin__read_request__init(&req);
    req.digest = (ProtobufCBinaryData){.len = sizeof name, .data = name};
    req.offset = offset;
    req.length = (int64_t)n;
    const struct rpc_opts o = {
        .deadline_us = time_deadline_in_ms(READ_MS), .cancel = g->stopping, .trace = trace};
    AUTO(rpc_stream_free_p) struct rpc_stream *stream = NULL;
    enum status s = origin_object_read_open(c, &o, &req, &stream, err);
    return s == STATUS_OK ? receive(stream, at, n, err) : s;
}

enum status gateway_read_object(struct gateway *g, const char *route,
                                const uint8_t digest[OBJECT_DIGEST_SIZE], int64_t offset, size_t n,
                                const struct rpc_trace *trace, uint8_t *ret_bytes, struct err *err)
{
    // A connection that was cut deserves another try; an origin that was waited for does not.
    int64_t no_more_us = time_deadline_in_ms(RETRY_WITHIN_MS);
    enum status s = read_once(g, route, digest, offset, n, trace, ret_bytes, err);
    if (s == STATUS_UNAVAILABLE && time_left_ms(no_more_us) > 0)
        s = read_once(g, route, digest, offset, n, trace, ret_bytes, err);
    return s;
}

// Segments of pictures: their bytes are no longer those of the digest.
static enum status adapt(struct segment_fetch *f, struct segment *seg, struct err *err)
{
    const struct media_plan *plan = f->plan ? f->plan->plan : NULL;
    int i = plan ? media_plan_find(plan, f->rendition) : -1;
    if (i < 0 || plan->renditions[i].kind != MEDIA_VIDEO)
        return STATUS_OK;
    seg->etag[0] = 's'; // shifted; no digit of a digest
    enum status s =
        media_cmaf_adapt(plan, (size_t)i, (uint32_t)f->number + 1, seg->bytes, seg->len, err);
    return s == STATUS_OK ? s : err_wrap(err, STATUS_DATA_LOSS, "segment %d", f->number);
}

static enum status read_segment(struct segment_fetch *f, struct segment **ret, struct err *err)
{
    size_t n = (size_t)f->size;
    struct segment *seg = mem_alloc(sizeof *seg + n);
    if (!seg)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "segment: out of memory");
    edge_object_init(&seg->base, sizeof *seg + n, segment_destroy);
    enum status s =
        gateway_read_object(f->g, f->route, f->digest, 0, n, &f->trace, seg->bytes, err);
    uint8_t digest[OBJECT_DIGEST_SIZE];
    if (s == STATUS_OK) {
        object_digest(digest, seg->bytes, n);
        if (memcmp(digest, f->digest, sizeof digest) != 0)
            s = err_set(err, STATUS_DATA_LOSS, "origin %s sent bytes that are not the segment's",
                        f->route);
    }
    if (s != STATUS_OK) {
        edge_object_unref(&seg->base);
        return s;
    }
    seg->len = n;
    seg->type = f->type;
    str_hex(seg->etag, digest, sizeof digest);
    s = adapt(f, seg, err);
    if (s == STATUS_OK)
        *ret = seg;
    else
        edge_object_unref(&seg->base);
    return s;
}

static void read_job(void *ud)
{
    struct segment_fetch *f = ud;
    struct segment *seg = NULL;
    struct err err = ERR_INIT;
    const uint8_t *before = log_set_trace(f->trace.trace_id);
    enum status s = read_segment(f, &seg, &err);
    if (s == STATUS_DATA_LOSS)
        log_error(f->g->svc->log, "segment_damaged", F_STR("item", f->item),
                  F_STR("rendition", f->rendition), F_I64("number", f->number), F_ERR(&err));
    log_set_trace(before);
    fetch_done(f, s, seg, &err);
}

// ---------------------------------------------------------------- locating

static enum status take_place(struct segment_fetch *f, const Orchestrator__LocateReply *reply,
                              struct err *err)
{
    const Orchestrator__SegmentRef *seg = reply->n_segments ? reply->segments[0] : NULL;
    const Common__ObjectRef *o = seg && seg->number == f->number ? seg->object : NULL;
    if (!o || o->digest.len != OBJECT_DIGEST_SIZE || o->size <= 0 ||
        o->size > MEDIA_MAX_SEGMENT_BYTES || !str_copy(f->route, sizeof f->route, o->route))
        return err_set(err, STATUS_INTERNAL, "the orchestrator named no place of the segment");
    memcpy(f->digest, o->digest.data, sizeof f->digest);
    f->size = o->size;
    return STATUS_OK;
}

static void on_located(void *ud, enum status s, Orchestrator__LocateReply *reply,
                       const struct err *err)
{
    struct segment_fetch *f = ud;
    struct err e = ERR_INIT;
    if (s == STATUS_OK)
        s = take_place(f, reply, &e);
    else if (err)
        e = *err;
    rpc_message_free(reply);
    if (s == STATUS_DEADLINE_EXCEEDED) // not made in time: the player should ask again
        s = STATUS_UNAVAILABLE;
    if (s == STATUS_OK && !work_pool_submit(f->g->svc->pool, read_job, f))
        s = err_set(&e, STATUS_UNAVAILABLE, "the gateway is busy");
    else if (s == STATUS_OK)
        return;
    fetch_done(f, s, NULL, &e);
}

static void fetch_segment(struct gateway *g, struct segment_fetch *f)
{
    struct err err = ERR_INIT;
    gateway_op_begin(g);
    struct rpc_client *c = svc_client(g->svc, ROLE_NODE_ORCHESTRATOR, NULL, &err);
    if (!c) {
        fetch_done(f, STATUS_UNAVAILABLE, NULL, &err);
        return;
    }
    int64_t wait_ms = g->options->segment_wait_ms;
    Orchestrator__LocateRequest req;
    orchestrator__locate_request__init(&req);
    req.item_id = f->item;
    req.rendition = f->rendition;
    req.first = f->number;
    req.count = 1;
    req.wait_ms = wait_ms;
    const struct rpc_opts o = {.deadline_us = time_deadline_in_ms(wait_ms + LOCATE_MARGIN_MS),
                               .cancel = g->stopping,
                               .trace = &f->trace};
    orchestrator_playback_locate_async(c, &o, &req, on_located, f);
}

// ---------------------------------------------------------------- answering

static void release_segment(void *ud)
{
    edge_object_unref(ud);
}

// The first picture of the segment alone.
static void respond_key(struct http_request *r, struct segment *seg)
{
    char etag[OBJECT_HEX_SIZE + 4];
    struct err err = ERR_INIT;
    struct buf b;
    buf_init(&b, MEDIA_MAX_SEGMENT_BYTES);
    enum status s = media_cmaf_key(seg->bytes, seg->len, &b, &err);
    snprintf(etag, sizeof etag, "%s-k", seg->etag);
    if (s != STATUS_OK)
        gateway_respond_error(r, s, &err);
    else
        http_respond(r,
                     &(struct http_response){.type = seg->type,
                                             .etag = etag,
                                             .cache_control = "private, max-age=86400, immutable",
                                             .ranges = true,
                                             .bytes = b.data,
                                             .len = b.len});
    buf_done(&b);
}

static void respond_segment(struct http_request *r, struct segment *seg)
{
    const struct media_context *c = http_request_context(r);
    if (c->is_key) {
        respond_key(r, seg);
        return;
    }
    if (c->is_piece) {
        gateway_respond_piece(r, seg->bytes, seg->len, seg->etag);
        return;
    }
    edge_object_ref(&seg->base);
    http_respond(r, &(struct http_response){
                        .type = seg->type,
                        .etag = seg->etag,
                        .cache_control = "private, max-age=86400, immutable",
                        .ranges = true,
                        .bytes = seg->bytes,
                        .len = seg->len,
                        .release = release_segment,
                        .release_ud = &seg->base,
                    });
}

static void segment_done(void *ud, enum status s, struct edge_object *o, const struct err *err)
{
    if (s == STATUS_OK)
        respond_segment(ud, (struct segment *)(void *)o);
    else
        gateway_respond_error(ud, s, err);
}

static struct segment_fetch *describe(struct http_request *r, struct gateway *g,
                                      const struct edge_plan *p, const char *name, int64_t n,
                                      const char *type)
{
    const struct media_context *c = http_request_context(r);
    struct segment_fetch *f = mem_alloc(sizeof *f);
    if (!f)
        return NULL;
    f->g = g;
    f->trace = gateway_trace_of(r);
    f->number = (int32_t)n;
    f->type = type;
    (void)str_copy(f->item, sizeof f->item, c->claims.item);
    (void)str_copy(f->rendition, sizeof f->rendition, name);
    snprintf(f->key, sizeof f->key, "%s/%s/%lld/%s", f->item, f->rendition, (long long)n,
             p->version);
    return f;
}

// Takes over f; NULL: no memory.
static void serve(struct http_request *r, struct gateway *g, struct segment_fetch *f)
{
    struct edge_answer found;
    struct err err = ERR_INIT;
    if (!f) {
        http_respond_problem(r, STATUS_RESOURCE_EXHAUSTED, "out of memory", 2);
        return;
    }
    enum status s = edge_cache_get(g->segments, f->key, segment_done, r, &found, &err);
    if (s != STATUS_OK)
        gateway_respond_error(r, s, &err);
    else if (found.fetch)
        fetch_segment(g, TAKE(f));
    if (found.hit)
        respond_segment(r, (struct segment *)(void *)found.hit);
    edge_object_unref(found.hit);
    fetch_free(f);
}

void gateway_segment(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    const char *name = http_request_var(r, "rendition");
    struct media_context *c = http_request_context(r);
    char pictures[16];
    c->is_key = media_playlist_keys_of(name, pictures, sizeof pictures);
    if (c->is_key)
        name = pictures;
    int rendition = media_plan_find(p->plan, name);
    const struct media_grid *grid =
        rendition < 0 ? NULL : media_rendition_grid(p->plan, (size_t)rendition);
    int64_t n;
    if (!grid || str_parse_i64(http_request_var(r, "n"), 0, (int64_t)grid->n_segments - 1, &n,
                               NULL) != STATUS_OK) {
        http_respond_problem(r, STATUS_NOT_FOUND, "no such segment", 0);
        return;
    }
    bool is_audio = p->plan->renditions[rendition].kind == MEDIA_AUDIO;
    c->is_key &= !is_audio;
    struct segment_fetch *f = describe(r, g, p, name, n, is_audio ? "audio/mp4" : "video/mp4");
    if (f) {
        edge_object_ref(&p->base);
        f->plan = p;
    }
    serve(r, g, f);
}

static void text(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    if (gateway_text_request(r, p))
        serve(r, g, describe(r, g, p, http_request_var(r, "rendition"), 0, "text/vtt"));
}

void gateway_text(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, text);
}

void gateway_image(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    const char *name = http_request_route(r)->data;
    int which = media_image_find(name);
    if (which < 0 || !media_image_is_planned(p->plan, (enum media_image)which))
        http_respond_problem(r, STATUS_NOT_FOUND, "the item has no such picture", 0);
    else
        serve(r, g, describe(r, g, p, name, 0, media_image_type((enum media_image)which)));
}
