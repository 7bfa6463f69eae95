// Objects from the origins: every byte is checked against digests that the object's name vouches
// for.
#include <string.h>

#include "cauce/origin.rpc.h"
#include "internal.h"

enum {
    READ_TIMEOUT_MS = 60000,
    PATIENT_ATTEMPTS = 8, // without a byte of progress, about ten seconds
    HASTY_ATTEMPTS = 1,
    // For the digests, which come first when a play begins: an origin that is down is to be named
    // soon, however long those in between would wait for it.
    HASTY_TREE_MS = 1800,
    TREE_BYTES_PER_MS = 2048,
};

static unsigned max_attempts(const struct client_object *o)
{
    return o->patient ? PATIENT_ATTEMPTS : HASTY_ATTEMPTS;
}

// ---------------------------------------------------------------- leaf digests

static enum status read_tree(const struct client_object *o, struct buf *ret, struct err *err)
{
    int64_t tree_bytes = object_n_leaves(o->size) * OBJECT_DIGEST_SIZE;
    int64_t timeout_ms = o->patient ? READ_TIMEOUT_MS : HASTY_TREE_MS;
    timeout_ms += tree_bytes / TREE_BYTES_PER_MS;
    struct client_try t;
    enum status s =
        client_try_begin(&t, o->c, CLIENT_LOGGED_IN, o->route, timeout_ms, o->cancel, err);
    if (s != STATUS_OK)
        return s;
    Origin__TreeRequest req = ORIGIN__TREE_REQUEST__INIT;
    req.digest = (ProtobufCBinaryData){OBJECT_DIGEST_SIZE, (uint8_t *)(uintptr_t)o->digest};
    req.media_token = client_str(o->media_token);
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    s = origin_object_tree_open(o->c->rpc, &t.opts, &req, &st, err);
    while (s == STATUS_OK) {
        AUTO(rpc_message_free_p) Origin__TreeReply *r = NULL;
        s = origin_object_tree_recv(st, &r, err);
        if (s == STATUS_OK && !r)
            break;
        if (s == STATUS_OK && !buf_append(ret, r->digests.data, r->digests.len))
            s = err_set(err, STATUS_DATA_LOSS, "the server sent more digests than the object has");
    }
    if (s == STATUS_DEADLINE_EXCEEDED && !o->patient)
        return err_set(err, STATUS_UNAVAILABLE, "origin %s does not answer", o->route);
    return s;
}

enum status client_object_leaves(const struct client_object *o, struct buf *ret, struct err *err)
{
    for (unsigned n = 0;; n++) {
        buf_reset(ret);
        enum status s = read_tree(o, ret, err);
        if (s == STATUS_OK)
            return object_verify_leaves(o->digest, o->size, ret->data, ret->len, err);
        if (!client_is_transient(s) || !o->patient || n >= PATIENT_ATTEMPTS)
            return err_wrap(err, s, "digests of the object");
        s = client_backoff(o->cancel, n, err);
        if (s != STATUS_OK)
            return s;
    }
}

// ---------------------------------------------------------------- bytes

// One stream of [offset, offset + n); what arrived before a failure is kept.
static enum status read_range(const struct client_object *o, int64_t offset, int64_t n,
                              struct buf *ret, struct err *err)
{
    struct client_try t;
    enum status s =
        client_try_begin(&t, o->c, CLIENT_LOGGED_IN, o->route, READ_TIMEOUT_MS, o->cancel, err);
    if (s != STATUS_OK)
        return s;
    Origin__ReadRequest req = ORIGIN__READ_REQUEST__INIT;
    req.digest = (ProtobufCBinaryData){OBJECT_DIGEST_SIZE, (uint8_t *)(uintptr_t)o->digest};
    req.offset = offset;
    req.length = n;
    req.media_token = client_str(o->media_token);
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    s = origin_object_read_open(o->c->rpc, &t.opts, &req, &st, err);
    int64_t got = 0;
    while (s == STATUS_OK && got < n) {
        AUTO(rpc_message_free_p) Origin__ReadReply *r = NULL;
        s = origin_object_read_recv(st, &r, err);
        if (s != STATUS_OK)
            break;
        if (!r)
            return err_set(err, STATUS_DATA_LOSS, "the object ends %lld bytes early",
                           (long long)(n - got));
        if ((int64_t)r->data.len > n - got)
            return err_set(err, STATUS_DATA_LOSS, "the server sent more bytes than asked for");
        if (!buf_append(ret, r->data.data, r->data.len))
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        got += (int64_t)r->data.len;
    }
    return s;
}

enum status client_object_read(const struct client_object *o, int64_t offset, int64_t n,
                               struct buf *ret, struct err *err)
{
    size_t start = ret->len;
    for (unsigned attempt = 0;; attempt++) {
        int64_t got = (int64_t)(ret->len - start);
        enum status s = read_range(o, offset + got, n - got, ret, err);
        if (s == STATUS_OK)
            return s;
        if ((int64_t)(ret->len - start) > got)
            attempt = 0;
        if (!client_is_transient(s) || attempt >= max_attempts(o))
            return err_wrap(err, s, "read object");
        s = client_backoff(o->cancel, attempt, err);
        if (s != STATUS_OK)
            return s;
    }
}

enum status client_object_get(const struct client_object *o, struct buf *ret, struct err *err)
{
    size_t start = ret->len;
    enum status s = o->size ? client_object_read(o, 0, o->size, ret, err) : STATUS_OK;
    if (s != STATUS_OK)
        return s;
    uint8_t digest[OBJECT_DIGEST_SIZE];
    object_digest(digest, ret->data + start, ret->len - start);
    return memcmp(digest, o->digest, sizeof(digest)) == 0
               ? STATUS_OK
               : err_set(err, STATUS_DATA_LOSS, "the bytes are not those of the object");
}
