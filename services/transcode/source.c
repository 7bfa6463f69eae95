// The source of a task: ranges of an object, read from an origin that has it and verified leaf by
// leaf against the root, so that what the codec sees is what was uploaded, whoever sent it.
//
// Reading goes on where it stopped: the stream stays open beyond what was asked, and twice as far
// with each read that follows the one before, which is all the read-ahead a decoder needs.
#include "transcode/internal.h"

#include <string.h>

#include "cauce/origin.rpc.h"

#include "base/buf.h"
#include "base/mem.h"
#include "base/time.h"

#define CALL_MS 30000
#define MAX_AHEAD (INT64_C(16) << 20)
#define ATTEMPTS 4 // per read, over all origins

struct source {
    struct run *run;
    const uint8_t *digest;
    int64_t size;
    struct buf leaves; // all leaf digests, verified
    size_t origin;     // the one of the lease's list that is used now
    struct rpc_stream *stream;
    Origin__ReadReply *message; // its last one, and how much of it is used
    size_t used;
    int64_t at, until; // the stream's next byte and its end
    int64_t ahead;
    uint8_t leaf[OBJECT_LEAF_BYTES]; // the last one that was read
    int64_t leaf_number;             // -1: none
    int64_t waited_us;
};

static void close_stream(struct source *s)
{
    rpc_message_free(s->message);
    s->message = NULL;
    s->used = 0;
    rpc_stream_free(s->stream);
    s->stream = NULL;
}

void source_free(struct source *s)
{
    if (!s)
        return;
    close_stream(s);
    buf_done(&s->leaves);
    mem_free(s);
}

double source_seconds(const struct source *s)
{
    return (double)s->waited_us / 1e6;
}

static struct rpc_client *client(struct source *s, struct err *err)
{
    const Transcode__Task *t = s->run->task;
    return s->run->env->origin(s->run->env->ud, t->source_origins[s->origin % t->n_source_origins],
                               err);
}

static struct rpc_opts call_opts(struct source *s)
{
    return (struct rpc_opts){.deadline_us = time_deadline_in_ms(CALL_MS), .cancel = s->run->cancel};
}

// ---------------------------------------------------------------- the tree

static enum status read_tree(struct source *s, struct err *err)
{
    struct rpc_client *c = client(s, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    Origin__TreeRequest req;
    origin__tree_request__init(&req);
    req.digest = s->run->task->source_digest;
    struct rpc_opts opts = call_opts(s);
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    enum status r = origin_object_tree_open(c, &opts, &req, &st, err);
    buf_reset(&s->leaves);
    while (r == STATUS_OK) {
        AUTO(rpc_message_free_p) Origin__TreeReply *m = NULL;
        r = origin_object_tree_recv(st, &m, err);
        if (r != STATUS_OK || !m)
            break;
        buf_append(&s->leaves, m->digests.data, m->digests.len);
        if (s->leaves.failed)
            return err_set(err, STATUS_DATA_LOSS, "the origin sends too many leaf digests");
    }
    if (r != STATUS_OK)
        return err_wrap(err, r, "tree of the source");
    return object_verify_leaves(s->digest, s->size, s->leaves.data, s->leaves.len, err);
}

enum status source_open(struct run *run, struct source **ret, struct err *err)
{
    const Transcode__Task *t = run->task;
    AUTO(source_free_p) struct source *s = mem_alloc(sizeof *s);
    if (!s)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "source: out of memory");
    s->run = run;
    s->digest = t->source_digest.data;
    s->size = t->source_size;
    s->leaf_number = -1;
    buf_init(&s->leaves, (size_t)object_n_leaves(s->size) * OBJECT_DIGEST_SIZE);
    int64_t begin_us = time_mono_us();
    const char *dir = run->env->scratch;
    enum status r = STATUS_UNAVAILABLE;
    if (dir && tree_cache_load(dir, s->digest, &s->leaves))
        r = object_verify_leaves(s->digest, s->size, s->leaves.data, s->leaves.len, err);
    bool cached = r == STATUS_OK;
    for (size_t i = 0; i < t->n_source_origins && r != STATUS_OK && r != STATUS_CANCELLED; i++) {
        s->origin = i;
        r = read_tree(s, err);
    }
    s->waited_us = time_mono_us() - begin_us;
    if (r != STATUS_OK)
        return r;
    if (dir && !cached)
        tree_cache_save(dir, s->digest, &s->leaves);
    *ret = TAKE(s);
    return STATUS_OK;
}

// ---------------------------------------------------------------- bytes

static enum status open_stream(struct source *s, int64_t offset, struct err *err)
{
    bool goes_on = offset == s->at && s->ahead;
    s->ahead = goes_on ? s->ahead * 2 : INT64_C(1) << 20;
    if (s->ahead > MAX_AHEAD)
        s->ahead = MAX_AHEAD;
    close_stream(s);
    struct rpc_client *c = client(s, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    Origin__ReadRequest req;
    origin__read_request__init(&req);
    req.digest = s->run->task->source_digest;
    req.offset = offset;
    req.length = s->size - offset < s->ahead ? s->size - offset : s->ahead;
    s->at = offset;
    s->until = offset + req.length;
    struct rpc_opts opts = call_opts(s);
    return origin_object_read_open(c, &opts, &req, &s->stream, err);
}

static enum status next_message(struct source *s, struct err *err)
{
    rpc_message_free(s->message);
    s->message = NULL;
    s->used = 0;
    enum status r = origin_object_read_recv(s->stream, &s->message, err);
    if (r == STATUS_OK && !s->message)
        return err_set(err, STATUS_DATA_LOSS, "the origin ends before byte %lld",
                       (long long)s->until);
    return r;
}

// Exactly one leaf, whose first byte is where the stream is.
static enum status read_leaf(struct source *s, int64_t leaf, struct err *err)
{
    size_t want = object_leaf_len(s->size, leaf), have = 0;
    s->leaf_number = -1;
    while (have < want) {
        if (!s->message || s->used == s->message->data.len) {
            enum status r = next_message(s, err);
            if (r != STATUS_OK)
                return r;
            continue;
        }
        size_t n = s->message->data.len - s->used;
        n = n < want - have ? n : want - have;
        memcpy(s->leaf + have, s->message->data.data + s->used, n);
        s->used += n, have += n, s->at += (int64_t)n;
    }
    if (!object_leaf_is_good(s->leaves.data + leaf * OBJECT_DIGEST_SIZE, s->leaf, want))
        return err_set(err, STATUS_DATA_LOSS, "leaf %lld of the source is not what was uploaded",
                       (long long)leaf);
    s->leaf_number = leaf;
    return STATUS_OK;
}

static enum status get_leaf_once(struct source *s, int64_t leaf, struct err *err)
{
    int64_t offset = leaf * OBJECT_LEAF_BYTES;
    if (!s->stream || s->at != offset || s->at >= s->until) {
        enum status r = open_stream(s, offset, err);
        if (r != STATUS_OK)
            return r;
    }
    return read_leaf(s, leaf, err);
}

// A stream that breaks, or runs into its deadline while the codec is busy, is opened again; bad
// bytes are asked of the next origin.
static enum status get_leaf(struct source *s, int64_t leaf, struct err *err)
{
    struct leaf_cache *cache = s->run->env->leaves;
    const uint8_t *digest = s->leaves.data + leaf * OBJECT_DIGEST_SIZE;
    size_t n = object_leaf_len(s->size, leaf);
    s->leaf_number = -1;
    if (cache && leaf_cache_get(cache, digest, s->leaf, n)) {
        s->leaf_number = leaf;
        return STATUS_OK;
    }
    enum status r = STATUS_OK;
    for (int i = 0; i < ATTEMPTS; i++) {
        r = get_leaf_once(s, leaf, err);
        if (r == STATUS_OK && cache)
            leaf_cache_put(cache, digest, s->leaf, n);
        if (r == STATUS_OK || r == STATUS_CANCELLED || cancel_is_fired(s->run->cancel))
            return r;
        close_stream(s);
        s->origin += i > 0 || r == STATUS_DATA_LOSS;
    }
    return r;
}

enum status source_read(struct source *s, int64_t offset, size_t len, void *dst, struct err *err)
{
    if (offset < 0 || offset > s->size || (int64_t)len > s->size - offset)
        return err_set(err, STATUS_OUT_OF_RANGE, "read of %zu bytes at %lld of %lld", len,
                       (long long)offset, (long long)s->size);
    int64_t begin_us = time_mono_us();
    enum status r = STATUS_OK;
    uint8_t *out = dst;
    while (len && r == STATUS_OK) {
        int64_t leaf = offset / OBJECT_LEAF_BYTES;
        size_t skip = (size_t)(offset % OBJECT_LEAF_BYTES);
        if (leaf != s->leaf_number)
            r = get_leaf(s, leaf, err);
        if (r != STATUS_OK)
            break;
        size_t n = object_leaf_len(s->size, leaf) - skip;
        n = n < len ? n : len;
        memcpy(out, s->leaf + skip, n);
        out += n, len -= n, offset += (int64_t)n;
    }
    s->waited_us += time_mono_us() - begin_us;
    return r;
}
