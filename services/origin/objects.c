// Service Object: bytes and digests out, results in, pins, usage, scrub.
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/origin.rpc.h"
#include "internal.h"

#include <string.h>

#define MAX_BAD_PER_MESSAGE 64
#define SCRUB_PROGRESS_MS 1000

// ---------------------------------------------------------------- reading

// Is the caller one of our own services, speaking for itself?
static bool is_service(struct rpc_call *call)
{
    static const unsigned readers =
        ROLE_NODE_ORCHESTRATOR | ROLE_NODE_TRANSCODE | ROLE_NODE_GATEWAY;
    const struct chan_peer *p = rpc_call_peer(call);
    return !rpc_call_is_forwarded(call) && p && p->link == CHAN_LINK_SERVICE && p->has_grant &&
           p->grant.role < 32 && (1U << p->grant.role & readers) != 0;
}

// May this call read the object? A user: with a media token of his for an item that pins it.
static enum status may_read(struct rpc_call *call, const uint8_t *digest, const char *media_token,
                            struct err *err)
{
    struct origin *o = rpc_call_self(call);
    if (is_service(call))
        return STATUS_OK;
    const struct rpc_user *user = rpc_call_user(call);
    struct svc_media_claims claims;
    if (!user || !media_token[0])
        return err_set(err, STATUS_PERMISSION_DENIED, "object: show the item's media token");
    enum status st = svc_tokens_verify_media(o->tokens, media_token, &claims, err);
    if (st != STATUS_OK)
        return err_wrap(err, st, "media token");
    if (!str_eq(claims.sub, user->id) || claims.rights == 0)
        return err_set(err, STATUS_PERMISSION_DENIED, "object: the media token is another user's");
    if (!object_store_is_pinned(o->store, claims.item, digest))
        return err_set(err, STATUS_PERMISSION_DENIED, "object: it does not belong to the item");
    return STATUS_OK;
}

static enum status open_for(struct rpc_call *call, const ProtobufCBinaryData *digest,
                            const char *media_token, struct object_file **ret, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    enum status st = origin_check_digest(digest, err);
    if (st == STATUS_OK)
        st = may_read(call, digest->data, media_token, err);
    if (st == STATUS_OK)
        st = object_file_open(o->store, digest->data, ret, err);
    return st;
}

static enum status do_stat(struct rpc_call *call, const Origin__StatRequest *req,
                           Origin__StatReply *ret, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    enum status st = origin_check_digest(&req->digest, err);
    if (st == STATUS_OK)
        ret->exists = object_store_stat(o->store, req->digest.data, &ret->size);
    return st;
}

static enum status do_read(struct rpc_call *call, const Origin__ReadRequest *req, struct err *err)
{
    AUTO(object_file_free_p) struct object_file *f = NULL;
    enum status st = open_for(call, &req->digest, req->media_token, &f, err);
    if (st != STATUS_OK)
        return st;
    int64_t size = object_file_size(f);
    if (req->offset < 0 || req->offset > size || req->length < 0 ||
        req->length > size - req->offset)
        return err_set(err, STATUS_OUT_OF_RANGE, "object: %lld+%lld is beyond its %lld bytes",
                       (long long)req->offset, (long long)req->length, (long long)size);
    int64_t n = req->length > 0 ? req->length : size - req->offset;
    return origin_stream_start(call, TAKE(f), ORIGIN_BYTES, req->offset, n, err);
}

static enum status do_tree(struct rpc_call *call, const Origin__TreeRequest *req, struct err *err)
{
    struct object_file *f = NULL;
    enum status st = open_for(call, &req->digest, req->media_token, &f, err);
    if (st != STATUS_OK)
        return st;
    return origin_stream_start(call, f, ORIGIN_LEAVES, 0, object_n_leaves(object_file_size(f)),
                               err);
}

// ---------------------------------------------------------------- storing

struct put {
    uint8_t digest[OBJECT_DIGEST_SIZE];
    char item[40];
    bool begun, existed;
    struct object_writer *w;
};

static enum status put_begin(struct origin *o, const Origin__PutObjectRequest *req, struct put *p,
                             struct err *err)
{
    int64_t size;
    enum status st = origin_check_digest(&req->digest, err);
    if (st != STATUS_OK)
        return st;
    if (!str_copy(p->item, sizeof p->item, req->item_id) || !p->item[0])
        return err_set(err, STATUS_INVALID_ARGUMENT, "object: say which item it is for");
    memcpy(p->digest, req->digest.data, sizeof p->digest);
    p->begun = true;
    // Pinned from the first byte on; gone between the question and the pin means that it must come.
    if (object_store_stat(o->store, p->digest, &size) && size == req->size) {
        st = object_store_pin(o->store, p->item, p->digest, 1, NULL, err);
        p->existed = st == STATUS_OK;
        if (st != STATUS_NOT_FOUND)
            return st;
    }
    return object_writer_new(o->store, req->size, &p->w, err);
}

static enum status put_all(struct rpc_call *call, struct put *p, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    for (;;) {
        Origin__PutObjectRequest *req;
        enum status st = origin_object_put_read(call, &req, err);
        if (st != STATUS_OK || !req)
            return st;
        if (!p->begun)
            st = put_begin(o, req, p, err);
        if (st == STATUS_OK && p->w && req->data.len > 0)
            st = object_writer_write(p->w, req->data.data, req->data.len, err);
        if (st != STATUS_OK)
            return st;
    }
}

static enum status do_put(struct rpc_call *call, Origin__PutObjectReply *ret, struct err *err)
{
    struct put p = {.begun = false};
    enum status st = put_all(call, &p, err);
    if (st == STATUS_OK && !p.begun)
        st = err_set(err, STATUS_INVALID_ARGUMENT, "object: the first message says what comes");
    if (st == STATUS_OK && p.w)
        st = object_writer_commit(p.w, p.digest, p.item, &p.existed, err);
    object_writer_free(p.w);
    ret->existed = p.existed;
    return st;
}

// ---------------------------------------------------------------- pins

// The digests of the request as one run of bytes.
static enum status flatten(struct rpc_call *call, const Origin__PinRequest *req,
                           const uint8_t **ret, struct err *err)
{
    if (req->n_digests > OBJECT_MAX_PINS_PER_CALL)
        return err_set(err, STATUS_INVALID_ARGUMENT, "pin: %zu objects; at most %d in one call",
                       req->n_digests, OBJECT_MAX_PINS_PER_CALL);
    uint8_t *all = arena_array(rpc_call_arena(call), req->n_digests + 1, OBJECT_DIGEST_SIZE);
    if (!all)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "pin: out of memory");
    for (size_t i = 0; i < req->n_digests; i++) {
        enum status st = origin_check_digest(&req->digests[i], err);
        if (st != STATUS_OK)
            return st;
        memcpy(all + i * OBJECT_DIGEST_SIZE, req->digests[i].data, OBJECT_DIGEST_SIZE);
    }
    *ret = all;
    return STATUS_OK;
}

static enum status do_pin(struct rpc_call *call, const Origin__PinRequest *req,
                          Origin__PinReply *ret, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    const uint8_t *all;
    enum status st = flatten(call, req, &all, err);
    if (st != STATUS_OK)
        return st;
    return object_store_pin(o->store, req->item_id, all, req->n_digests, &ret->changed, err);
}

static enum status do_unpin(struct rpc_call *call, const Origin__PinRequest *req,
                            Origin__PinReply *ret, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    const uint8_t *all;
    enum status st = flatten(call, req, &all, err);
    if (st != STATUS_OK)
        return st;
    return object_store_unpin(o->store, req->item_id, all, req->n_digests, &ret->changed, err);
}

// ---------------------------------------------------------------- usage, scrub

static enum status do_usage(struct rpc_call *call, const Origin__UsageRequest *req,
                            Origin__UsageReply *ret, struct err *err)
{
    (void)req;
    (void)err;
    struct origin *o = rpc_call_self(call);
    struct object_store_usage u;
    object_store_usage(o->store, &u);
    ret->objects = u.objects;
    ret->bytes = u.bytes;
    ret->free_bytes = u.free_bytes > 0 ? u.free_bytes : 0;
    ret->uploads_open = u.uploads_open;
    ret->max_bytes = u.max_bytes;
    return STATUS_OK;
}

struct scrub {
    struct rpc_call *call;
    struct err *err;
    enum status st; // of writing to the stream
    int64_t told_ms;
    Origin__ScrubReply reply;
    uint8_t bad[MAX_BAD_PER_MESSAGE][OBJECT_DIGEST_SIZE];
    ProtobufCBinaryData bad_list[MAX_BAD_PER_MESSAGE];
};

static void scrub_tell(struct scrub *s)
{
    s->st = origin_object_scrub_write(s->call, &s->reply, s->err);
    s->reply.n_bad = 0;
    s->told_ms = time_mono_ms();
}

static bool on_scrub(void *ud, const struct object_scrub *now)
{
    struct scrub *s = ud;
    s->reply.checked = now->checked;
    s->reply.bytes = now->bytes;
    if (now->bad) {
        char hex[OBJECT_HEX_SIZE];
        size_t i = s->reply.n_bad++;
        memcpy(s->bad[i], now->bad, OBJECT_DIGEST_SIZE);
        s->bad_list[i] = (ProtobufCBinaryData){OBJECT_DIGEST_SIZE, s->bad[i]};
        str_hex(hex, now->bad, OBJECT_DIGEST_SIZE);
        log_error(rpc_call_log(s->call), "object_damaged", F_STR("digest", hex));
    }
    if (s->reply.n_bad == MAX_BAD_PER_MESSAGE || time_mono_ms() - s->told_ms >= SCRUB_PROGRESS_MS)
        scrub_tell(s);
    return s->st == STATUS_OK;
}

static enum status do_scrub(struct rpc_call *call, const Origin__ScrubRequest *req, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    enum status st = req->digest.len > 0 ? origin_check_digest(&req->digest, err) : STATUS_OK;
    if (st != STATUS_OK)
        return st;
    struct scrub *s = arena_alloc(rpc_call_arena(call), sizeof *s);
    if (!s)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "scrub: out of memory");
    s->call = call;
    s->err = err;
    s->told_ms = time_mono_ms();
    origin__scrub_reply__init(&s->reply);
    s->reply.bad = s->bad_list;
    struct err e = ERR_INIT;
    st = object_store_scrub(o->store, req->digest.len > 0 ? req->digest.data : NULL, on_scrub, s,
                            rpc_call_cancel(call), &e);
    if (s->st != STATUS_OK)
        return s->st;
    if (st != STATUS_OK)
        return err_set(err, st, "%s", e.msg);
    s->reply.done = true;
    scrub_tell(s);
    return s->st;
}

enum status origin_serve_objects(struct origin *o, struct rpc_server *server, struct err *err)
{
    static const struct origin_object_handlers handlers = {
        .stat = do_stat,
        .read = do_read,
        .tree = do_tree,
        .put = do_put,
        .pin = do_pin,
        .unpin = do_unpin,
        .usage = do_usage,
        .scrub = do_scrub,
    };
    return origin_object_serve(server, &handlers, o, err);
}
