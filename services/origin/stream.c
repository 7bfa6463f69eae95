// Streams of an object's bytes or leaf digests. The call is deferred: pump() runs whenever the
// reader has granted credit, writes until there is none left, and goes away. So a paused player
// costs its open file and one message's buffer, never a thread.
//
// Messages end at multiples of 256 KiB of the object (of 64 KiB of its digests), so that from an
// aligned offset on every message holds whole leaves.
#include "base/mem.h"
#include "cauce/origin.rpc.h"
#include "internal.h"

#define LEAVES_PER_MESSAGE 2048
#define READ_AHEAD_BYTES (INT64_C(4) << 20)

struct stream {
    struct rpc_call *call;
    struct object_file *f;
    enum origin_stream what;
    int64_t at, end; // bytes, or leaves
    int64_t ahead;   // the disk was told to read up to here
    size_t n_ready;  // units of the message in `data` that waits for credit; 0: none
    uint8_t data[];  // one message
};

static void stream_free(struct stream *s)
{
    object_file_free(s->f);
    mem_free(s);
}

static int64_t unit_bytes(const struct stream *s)
{
    return s->what == ORIGIN_BYTES ? 1 : OBJECT_DIGEST_SIZE;
}

static int64_t units_per_message(enum origin_stream what)
{
    return what == ORIGIN_BYTES ? ORIGIN_MESSAGE_BYTES : LEAVES_PER_MESSAGE;
}

static enum status read_next(struct stream *s, struct err *err)
{
    int64_t per = units_per_message(s->what), n = per - s->at % per;
    if (n > s->end - s->at)
        n = s->end - s->at;
    if (s->what == ORIGIN_BYTES && s->at >= s->ahead) {
        int64_t more = s->end - s->at < READ_AHEAD_BYTES ? s->end - s->at : READ_AHEAD_BYTES;
        object_file_will_need(s->f, s->at, more);
        s->ahead = s->at + more / 2;
    }
    enum status st = s->what == ORIGIN_BYTES
                         ? object_file_read(s->f, s->at, s->data, (size_t)n, err)
                         : object_file_read_leaves(s->f, s->at, (size_t)n, s->data, err);
    if (st == STATUS_OK)
        s->n_ready = (size_t)n;
    return st;
}

// False: no credit just now.
static bool send_ready(struct stream *s)
{
    Origin__ReadReply bytes = ORIGIN__READ_REPLY__INIT;
    Origin__TreeReply leaves = ORIGIN__TREE_REPLY__INIT;
    ProtobufCBinaryData data = {s->n_ready * (size_t)unit_bytes(s), s->data};
    bytes.data = data;
    leaves.digests = data;
    if (!rpc_call_try_write(s->call, s->what == ORIGIN_BYTES ? &bytes.base : &leaves.base))
        return false;
    s->at += (int64_t)s->n_ready;
    s->n_ready = 0;
    return true;
}

// Runs on a pool thread, one at a time; frees the stream with its last run.
static void pump(void *ud)
{
    struct stream *s = ud;
    struct err e = ERR_INIT;
    enum status st = STATUS_OK;
    while (st == STATUS_OK && s->at < s->end) {
        if (cancel_is_fired(rpc_call_cancel(s->call)))
            st = err_set(&e, STATUS_CANCELLED, "the reader went away");
        if (st == STATUS_OK && s->n_ready == 0)
            st = read_next(s, &e);
        if (st == STATUS_OK && !send_ready(s) && !cancel_is_fired(rpc_call_cancel(s->call)))
            return; // called again when there is credit
    }
    struct rpc_call *call = s->call;
    stream_free(s);
    rpc_call_finish(call, st, NULL, &e);
}

enum status origin_stream_start(struct rpc_call *call, struct object_file *f,
                                enum origin_stream what, int64_t offset, int64_t n, struct err *err)
{
    int64_t per = units_per_message(what), bytes = what == ORIGIN_BYTES ? 1 : OBJECT_DIGEST_SIZE;
    struct stream *s = mem_alloc(sizeof *s + (size_t)((n < per ? n : per) * bytes));
    if (!s) {
        object_file_free(f);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "object: out of memory");
    }
    *s = (struct stream){
        .call = call, .f = f, .what = what, .at = offset, .end = offset + n, .ahead = offset};
    rpc_call_defer(call);
    rpc_call_on_writable(call, pump, s); // runs it at once
    return STATUS_OK;
}
