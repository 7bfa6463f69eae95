// Service Upload: the orchestrator creates, finishes and drops; the owner sends.
#include "base/mem.h"
#include "cauce/origin.rpc.h"
#include "internal.h"

#include <string.h>

static enum status join(struct rpc_call *call, const char *upload_id, struct object_upload **ret,
                        struct err *err)
{
    struct origin *o = rpc_call_self(call);
    const struct rpc_user *user = rpc_call_user(call);
    if (!user)
        return err_set(err, STATUS_UNAUTHENTICATED, "upload: sign in first");
    return object_upload_open(o->store, upload_id, user->id, ret, err);
}

static enum status create(struct rpc_call *call, const Origin__CreateRequest *req,
                          Origin__CreateReply *ret, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    enum status st = origin_check_digest(&req->digest, err);
    if (st != STATUS_OK)
        return st;
    struct object_upload_spec spec = {.id = req->upload_id,
                                      .owner = req->owner,
                                      .item = req->item_id,
                                      .size = req->size,
                                      .prove = !req->proven};
    memcpy(spec.digest, req->digest.data, OBJECT_DIGEST_SIZE);
    struct object_upload_info info;
    st = object_upload_create(o->store, &spec, &info, err);
    if (st != STATUS_OK)
        return st;
    ret->existed = info.existed;
    ret->missing_bytes = info.missing_bytes;
    log_info(rpc_call_log(call), "upload_created", F_STR("upload", spec.id),
             F_STR("item", spec.item), F_I64("bytes", spec.size), F_BOOL("existed", info.existed));
    return STATUS_OK;
}

static enum status leaves_all(struct rpc_call *call, struct origin_feed *feed, struct err *err)
{
    AUTO(object_upload_free_p) struct object_upload *u = NULL;
    for (;;) {
        Origin__LeavesRequest *req;
        enum status st = origin_upload_leaves_read(call, &req, err);
        if (st == STATUS_OK && !req)
            break;
        if (st == STATUS_OK && !u) {
            st = join(call, req->upload_id, &u, err);
            struct object_upload_info info;
            if (st == STATUS_OK) {
                object_upload_info(u, &info);
                origin_feed_expect(feed, object_n_leaves(info.size) * OBJECT_DIGEST_SIZE);
            }
        }
        if (st == STATUS_OK)
            st = object_upload_leaves_add(u, req->digests.data, req->digests.len, err);
        if (st != STATUS_OK)
            return st;
    }
    return u ? object_upload_leaves_end(u, err)
             : err_set(err, STATUS_INVALID_ARGUMENT, "upload: the first message names it");
}

static enum status leaves(struct rpc_call *call, Origin__LeavesReply *ret, struct err *err)
{
    (void)ret;
    struct origin_feed feed;
    enum status st = origin_feed_begin(rpc_call_self(call), call, &feed, err);
    if (st != STATUS_OK)
        return st;
    st = leaves_all(call, &feed, err);
    origin_feed_end(&feed);
    return st;
}

static enum status missing(struct rpc_call *call, const Origin__MissingRequest *req,
                           Origin__MissingReply *ret, struct err *err)
{
    struct arena *a = rpc_call_arena(call);
    AUTO(object_upload_free_p) struct object_upload *u = NULL;
    enum status st = join(call, req->upload_id, &u, err);
    if (st != STATUS_OK)
        return st;
    struct object_run *runs = arena_array(a, ORIGIN_MAX_RUNS, sizeof *runs);
    Origin__Run *out = arena_array(a, ORIGIN_MAX_RUNS, sizeof *out);
    ret->missing = arena_array(a, ORIGIN_MAX_RUNS, sizeof *ret->missing);
    if (!runs || !out || !ret->missing)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "upload: out of memory");
    bool truncated;
    ret->n_missing = object_upload_missing(u, runs, ORIGIN_MAX_RUNS, &truncated);
    ret->truncated = truncated;
    for (size_t i = 0; i < ret->n_missing; i++) {
        origin__run__init(&out[i]);
        out[i].first = runs[i].first;
        out[i].count = runs[i].count;
        ret->missing[i] = &out[i];
    }
    struct object_upload_info info;
    object_upload_info(u, &info);
    ret->need_leaves = info.need_leaves;
    ret->missing_bytes = info.missing_bytes;
    return STATUS_OK;
}

// Messages until the end of the stream, or the first that is not right.
static enum status put_all(struct rpc_call *call, struct object_upload **u, struct err *err)
{
    for (;;) {
        Origin__PutRequest *req;
        enum status st = origin_upload_put_read(call, &req, err);
        if (st != STATUS_OK || !req)
            return st;
        if (req->data.len > ORIGIN_MESSAGE_BYTES)
            return err_set(err, STATUS_INVALID_ARGUMENT,
                           "upload: %zu bytes in one message; at most %d", req->data.len,
                           ORIGIN_MESSAGE_BYTES);
        if (!*u)
            st = join(call, req->upload_id, u, err);
        if (st == STATUS_OK)
            st = object_upload_put(*u, req->leaf, req->data.data, req->data.len, err);
        if (st != STATUS_OK)
            return st;
    }
}

static enum status put(struct rpc_call *call, Origin__PutReply *ret, struct err *err)
{
    AUTO(object_upload_free_p) struct object_upload *u = NULL;
    struct origin_feed feed;
    enum status st = origin_feed_begin(rpc_call_self(call), call, &feed, err);
    if (st != STATUS_OK)
        return st;
    st = put_all(call, &u, err);
    origin_feed_end(&feed);
    if (!u)
        return st != STATUS_OK
                   ? st
                   : err_set(err, STATUS_INVALID_ARGUMENT, "upload: the first message names it");
    // Also after a cut or a bad leaf: what came before is kept.
    enum status synced = object_upload_sync(u, st == STATUS_OK ? err : NULL);
    if (st != STATUS_OK || synced != STATUS_OK)
        return st != STATUS_OK ? st : synced;
    struct object_upload_info info;
    object_upload_info(u, &info);
    ret->stored_leaves = object_upload_n_stored(u);
    ret->missing_bytes = info.missing_bytes;
    return STATUS_OK;
}

static enum status finish(struct rpc_call *call, const Origin__FinishRequest *req,
                          Origin__FinishReply *ret, struct err *err)
{
    struct origin *o = rpc_call_self(call);
    struct object_upload_info info;
    enum status st = object_upload_finish(o->store, req->upload_id, &info, err);
    if (st != STATUS_OK)
        return st;
    ret->size = info.size;
    ret->digest.data = arena_dup(rpc_call_arena(call), info.digest, OBJECT_DIGEST_SIZE);
    if (!ret->digest.data)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "upload: out of memory");
    ret->digest.len = OBJECT_DIGEST_SIZE;
    log_info(rpc_call_log(call), "upload_finished", F_STR("upload", req->upload_id),
             F_I64("bytes", info.size));
    return STATUS_OK;
}

static enum status drop(struct rpc_call *call, const Origin__DropRequest *req,
                        Origin__DropReply *ret, struct err *err)
{
    (void)ret;
    struct origin *o = rpc_call_self(call);
    enum status st = object_upload_drop(o->store, req->upload_id, err);
    if (st == STATUS_OK)
        log_info(rpc_call_log(call), "upload_dropped", F_STR("upload", req->upload_id));
    return st;
}

enum status origin_serve_uploads(struct origin *o, struct rpc_server *server, struct err *err)
{
    static const struct origin_upload_handlers handlers = {
        .create = create,
        .leaves = leaves,
        .missing = missing,
        .put = put,
        .finish = finish,
        .drop = drop,
    };
    return origin_upload_serve(server, &handlers, o, err);
}
