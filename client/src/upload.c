// Uploads: hash, open, ask what is missing, send that, commit. The server keeps every leaf that it
// verified, so whatever breaks is answered by asking again what is missing.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cauce/orchestrator.rpc.h"
#include "cauce/origin.rpc.h"
#include "internal.h"

enum {
    HEAD_BYTES = 4096,
    LEAVES_PER_MESSAGE = 4,     // of data: 256 KiB
    DIGESTS_PER_MESSAGE = 4096, // 128 KiB
    BATCH_BYTES = 32 << 20,     // one Put: durable when it is answered
    BATCH_TIMEOUT_MS = 10 * 60 * 1000,
    COMMIT_TIMEOUT_MS = 120 * 1000,
    DEFAULT_STALL_MS = 60000,
    MAX_CODECS = 8,
    MAX_CODECS_TEXT = 128,
};

struct upload {
    struct cauce *c;
    struct cancel *cancel; // of this upload
    const cauce_upload_opts *o;
    cauce_progress_fn fn;
    void *ud;
    int fd;
    int64_t size;
    uint8_t digest[OBJECT_DIGEST_SIZE];
    struct buf leaves;
    const char *name; // without folders
    uint8_t *block;   // LEAVES_PER_MESSAGE leaves
    Orchestrator__OpenUploadReply *open;
    int64_t sent;    // bytes handed to the wire in this run
    int64_t skipped; // bytes that were there at the start; -1: not known yet
};

static void report(struct upload *u, const char *stage, int64_t sent)
{
    cauce_progress p = {stage, u->size, sent, u->skipped > 0 ? u->skipped : 0};
    if (u->fn && u->fn(&p, u->ud) != 0)
        cancel_fire(u->cancel);
}

// ---------------------------------------------------------------- the file

static void hash_progress(void *ud, int64_t done, int64_t total)
{
    (void)total;
    report(ud, "hash", done);
}

static enum status open_file(struct upload *u, const char *path, struct err *err)
{
    u->fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (u->fd < 0 || fstat(u->fd, &st) != 0)
        return err_errno(err, errno, "open %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s is not a regular file", path);
    if (st.st_size == 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s is empty", path);
    const char *slash = strrchr(path, '/');
    u->name = slash ? slash + 1 : path;
    u->size = st.st_size;
    buf_init(&u->leaves, (size_t)(object_n_leaves(u->size) + 1) * OBJECT_DIGEST_SIZE);
    struct object_file_opts fo = {.progress = hash_progress, .ud = u, .cancel = u->cancel};
    return object_hash_fd(u->fd, &fo, u->digest, &u->size, &u->leaves, err);
}

static enum status read_at(struct upload *u, int64_t offset, uint8_t *p, size_t n, struct err *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t r = pread(u->fd, p + done, n - done, offset + (int64_t)done);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return err_errno(err, errno, "read %s", u->name);
        if (r == 0)
            return err_set(err, STATUS_ABORTED, "%s became shorter while it was sent", u->name);
        done += (size_t)r;
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- calls

static enum status open_upload(struct upload *u, struct err *err)
{
    uint8_t head[HEAD_BYTES];
    size_t n = u->size < HEAD_BYTES ? (size_t)u->size : HEAD_BYTES;
    enum status s = read_at(u, 0, head, n, err);
    if (s != STATUS_OK)
        return s;
    Orchestrator__OpenUploadRequest req = ORCHESTRATOR__OPEN_UPLOAD_REQUEST__INIT;
    req.filename = client_str(u->name);
    req.size = u->size;
    req.digest = (ProtobufCBinaryData){sizeof(u->digest), u->digest};
    req.head = (ProtobufCBinaryData){n, head};
    struct client_try t;
    s = client_try_begin(&t, u->c, CLIENT_LOGGED_IN, NULL, 0, u->cancel, err);
    if (s != STATUS_OK)
        return s;
    return CLIENT_CALL(&t, orchestrator_upload_open(u->c->rpc, &t.opts, &req, &u->open, err), err);
}

static enum status send_leaves(struct upload *u, struct err *err)
{
    struct client_try t;
    enum status s = client_try_begin(&t, u->c, CLIENT_LOGGED_IN, u->open->route, BATCH_TIMEOUT_MS,
                                     u->cancel, err);
    if (s != STATUS_OK)
        return s;
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    s = origin_upload_leaves_open(u->c->rpc, &t.opts, &st, err);
    size_t at = 0;
    do {
        size_t n = u->leaves.len - at;
        if (n > DIGESTS_PER_MESSAGE * OBJECT_DIGEST_SIZE)
            n = DIGESTS_PER_MESSAGE * OBJECT_DIGEST_SIZE;
        Origin__LeavesRequest req = ORIGIN__LEAVES_REQUEST__INIT;
        req.upload_id = at == 0 ? u->open->upload_id : client_str("");
        req.digests = (ProtobufCBinaryData){n, u->leaves.data + at};
        if (s == STATUS_OK)
            s = origin_upload_leaves_send(st, &req, err);
        at += n;
    } while (s == STATUS_OK && at < u->leaves.len);
    AUTO(rpc_message_free_p) Origin__LeavesReply *r = NULL;
    return s == STATUS_OK ? origin_upload_leaves_finish(st, &r, err) : s;
}

static enum status ask_missing(struct upload *u, Origin__MissingReply **ret, struct err *err)
{
    struct client_try t;
    enum status s = client_try_begin(&t, u->c, CLIENT_LOGGED_IN, u->open->route, 0, u->cancel, err);
    if (s != STATUS_OK)
        return s;
    Origin__MissingRequest req = ORIGIN__MISSING_REQUEST__INIT;
    req.upload_id = u->open->upload_id;
    return CLIENT_CALL(&t, origin_upload_missing(u->c->rpc, &t.opts, &req, ret, err), err);
}

// Whole leaves from `leaf` on, at most one message's worth and at most `count`.
static enum status send_block(struct upload *u, struct rpc_stream *st, bool is_first, int64_t leaf,
                              int64_t count, int64_t *ret_leaves, struct err *err)
{
    int64_t n = count < LEAVES_PER_MESSAGE ? count : LEAVES_PER_MESSAGE;
    int64_t offset = leaf * OBJECT_LEAF_BYTES, end = (leaf + n) * OBJECT_LEAF_BYTES;
    if (end > u->size)
        end = u->size;
    if (leaf < 0 || n <= 0 || offset >= end)
        return err_set(err, STATUS_INTERNAL,
                       "the server misses a leaf that the file does not have");
    enum status s = read_at(u, offset, u->block, (size_t)(end - offset), err);
    if (s != STATUS_OK)
        return s;
    Origin__PutRequest req = ORIGIN__PUT_REQUEST__INIT;
    req.upload_id = is_first ? u->open->upload_id : client_str("");
    req.leaf = leaf;
    req.data = (ProtobufCBinaryData){(size_t)(end - offset), u->block};
    s = origin_upload_put_send(st, &req, err);
    if (s != STATUS_OK)
        return s;
    u->sent += end - offset;
    *ret_leaves = n;
    report(u, "send", u->sent);
    return cancel_is_fired(u->cancel) ? err_set(err, STATUS_CANCELLED, "cancelled") : STATUS_OK;
}

// One Put call with the first BATCH_BYTES of what is missing.
static enum status send_batch(struct upload *u, const Origin__MissingReply *m, struct err *err)
{
    struct client_try t;
    enum status s = client_try_begin(&t, u->c, CLIENT_LOGGED_IN, u->open->route, BATCH_TIMEOUT_MS,
                                     u->cancel, err);
    if (s != STATUS_OK)
        return s;
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    s = origin_upload_put_open(u->c->rpc, &t.opts, &st, err);
    int64_t left = BATCH_BYTES / OBJECT_LEAF_BYTES;
    bool is_first = true;
    for (size_t i = 0; s == STATUS_OK && i < m->n_missing && left > 0; i++) {
        int64_t leaf = m->missing[i]->first, count = m->missing[i]->count;
        for (int64_t n = 0; s == STATUS_OK && count > 0 && left > 0; leaf += n, count -= n) {
            s = send_block(u, st, is_first, leaf, count < left ? count : left, &n, err);
            is_first = false;
            left -= n;
        }
    }
    AUTO(rpc_message_free_p) Origin__PutReply *r = NULL;
    return s == STATUS_OK ? origin_upload_put_finish(st, &r, err) : s;
}

// ---------------------------------------------------------------- until nothing is missing

// One round. *ret_missing: bytes that the origin missed when it was asked.
static enum status send_round(struct upload *u, int64_t *ret_missing, struct err *err)
{
    AUTO(rpc_message_free_p) Origin__MissingReply *m = NULL;
    enum status s = ask_missing(u, &m, err);
    if (s != STATUS_OK)
        return s;
    if (u->skipped < 0)
        u->skipped = u->size - m->missing_bytes;
    *ret_missing = m->missing_bytes;
    u->sent = u->size - m->missing_bytes - u->skipped;
    report(u, "send", u->sent);
    if (m->need_leaves)
        return send_leaves(u, err);
    return m->missing_bytes ? send_batch(u, m, err) : STATUS_OK;
}

// An origin that is busy with others' uploads, or short of space, says so.
static bool is_worth_waiting(enum status s)
{
    return client_is_transient(s) || s == STATUS_RESOURCE_EXHAUSTED;
}

static enum status send_all(struct upload *u, struct err *err)
{
    int64_t stall_ms = u->o->stall_ms ? u->o->stall_ms : DEFAULT_STALL_MS;
    int64_t give_up = time_deadline_in_ms(stall_ms), least = INT64_MAX;
    for (unsigned n = 0;;) {
        int64_t missing = least;
        enum status s = send_round(u, &missing, err);
        if (missing < least) {
            least = missing;
            give_up = time_deadline_in_ms(stall_ms);
            n = 0;
        }
        if (s == STATUS_OK && missing == 0)
            return s;
        if (s == STATUS_OK && time_left_ms(give_up) > 0)
            continue;
        if (s == STATUS_OK)
            return err_set(err, STATUS_UNAVAILABLE, "the server does not keep what it is sent");
        if (!is_worth_waiting(s) || time_left_ms(give_up) == 0)
            return s;
        s = client_backoff(u->cancel, n++, err);
        if (s != STATUS_OK)
            return s;
    }
}

static enum status commit(struct upload *u, Orchestrator__CommitReply **ret, struct err *err)
{
    Common__Money price = COMMON__MONEY__INIT;
    price.minor = u->o->price_minor;
    price.currency = client_str(u->o->currency ? u->o->currency : "EUR");
    Orchestrator__CommitRequest req = ORCHESTRATOR__COMMIT_REQUEST__INIT;
    req.upload_id = u->open->upload_id;
    req.title = client_str(u->o->title);
    req.description = client_str(u->o->description);
    req.price = u->o->price_minor ? &price : NULL;
    req.public_ = u->o->publish != 0;
    req.sync = u->o->sync != 0;
    char list[MAX_CODECS_TEXT], *words[MAX_CODECS];
    req.preset = client_str(u->o->preset);
    req.video_codecs = words;
    str_copy(list, sizeof(list), client_str(u->o->video_codecs));
    char *rest = list;
    for (char *word; (word = strsep(&rest, ",")) && req.n_video_codecs < MAX_CODECS;)
        if (*word)
            words[req.n_video_codecs++] = word;
    struct client_try t;
    enum status s =
        client_try_begin(&t, u->c, CLIENT_LOGGED_IN, NULL, COMMIT_TIMEOUT_MS, u->cancel, err);
    if (s != STATUS_OK)
        return s;
    return CLIENT_CALL(&t, orchestrator_upload_commit(u->c->rpc, &t.opts, &req, ret, err), err);
}

// An origin that restarts between the last leaf and the commit is waited for as well.
static enum status commit_until(struct upload *u, Orchestrator__CommitReply **ret, struct err *err)
{
    int64_t give_up = time_deadline_in_ms(u->o->stall_ms ? u->o->stall_ms : DEFAULT_STALL_MS);
    report(u, "commit", u->sent);
    for (unsigned n = 0;; n++) {
        enum status s = commit(u, ret, err);
        if (!client_is_transient(s) || time_left_ms(give_up) == 0)
            return s;
        s = client_backoff(u->cancel, n, err);
        if (s != STATUS_OK)
            return s;
    }
}

// ---------------------------------------------------------------- public

static void fill_result(const struct upload *u, const Orchestrator__CommitReply *r,
                        cauce_upload_result *ret)
{
    memset(ret, 0, sizeof(*ret));
    str_copy(ret->upload_id, sizeof(ret->upload_id), u->open->upload_id);
    str_copy(ret->item_id, sizeof(ret->item_id), r->item_id);
    str_copy(ret->job_id, sizeof(ret->job_id), r->job_id);
    str_copy(ret->state, sizeof(ret->state), r->state);
    str_copy(ret->reason, sizeof(ret->reason), r->reason);
    str_copy(ret->url, sizeof(ret->url), r->url);
    ret->size = u->size;
    ret->sent = u->sent;
}

static enum status run(struct upload *u, const char *path, cauce_upload_result *ret,
                       struct err *err)
{
    u->cancel = cancel_new(u->c->cancel);
    u->block = mem_array(LEAVES_PER_MESSAGE, OBJECT_LEAF_BYTES);
    if (!u->cancel || !u->block)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = open_file(u, path, err);
    if (s == STATUS_OK)
        s = open_upload(u, err);
    if (s == STATUS_OK && u->open->existed)
        u->skipped = u->size;
    if (s == STATUS_OK && !u->open->existed)
        s = send_all(u, err);
    AUTO(rpc_message_free_p) Orchestrator__CommitReply *r = NULL;
    if (s == STATUS_OK)
        s = commit_until(u, &r, err);
    if (s == STATUS_OK)
        fill_result(u, r, ret);
    return s;
}

void cauce_upload_opts_init(cauce_upload_opts *opts)
{
    *opts = (cauce_upload_opts){.size = sizeof(*opts)};
}

cauce_status cauce_upload_file(cauce *c, const char *path, const cauce_upload_opts *opts,
                               cauce_progress_fn fn, void *ud, cauce_upload_result *ret,
                               cauce_error *err)
{
    struct err e = ERR_INIT;
    cauce_upload_opts plain;
    cauce_upload_opts_init(&plain);
    struct upload u = {
        .c = c, .o = opts ? opts : &plain, .fn = fn, .ud = ud, .fd = -1, .skipped = -1};
    enum status s = run(&u, path, ret, &e);
    if (s == STATUS_CANCELLED)
        err_set(&e, s, "cancelled; the same command continues where it ended");
    if (u.fd >= 0)
        close(u.fd);
    buf_done(&u.leaves);
    mem_free(u.block);
    rpc_message_free(u.open);
    cancel_unref(u.cancel);
    return client_fail(&e, s, err);
}
