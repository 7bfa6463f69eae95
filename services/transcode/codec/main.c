// cauce-codec: runs tasks on untrusted input, each in a confined process of its own. Started by the
// worker (services/transcode/codec_host.c) with a socket for requests on descriptor 3.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/mem.h"
#include "base/str.h"
#include "codec/codec.h"
#include "confine.h"
#include "control.h"
#include "escape.h"
#include "lie.h"
#include "serve.h"

// Of a probe: nobody has looked at the file before it.
#define PROBE_MEMORY (UINT64_C(480) << 20)

// ---- results, towards the parent ----

static enum status send_segment(void *ud, const struct media_segment_out *out, const void *bytes,
                                size_t n, struct err *err)
{
    struct media_record head = {.type = MEDIA_REC_SEGMENT, .out = *out};
    return control_send_bytes(ud, &head, bytes, n, err);
}

static void send_progress(void *ud, int64_t done, int64_t total)
{
    struct media_record r = {.type = MEDIA_REC_PROGRESS, .a = done, .b = total};
    if (control_send(ud, &r, NULL) != STATUS_OK)
        return; // a lost parent is noticed by the next result
}

static enum status probe(struct control *c, const struct codec_source *src,
                         const struct media_options *options, const struct codec_sink *sink,
                         struct err *err)
{
    AUTO(media_plan_free_p) struct media_plan *plan = NULL;
    enum status s = codec_probe_as(src, options, sink, &plan, err);
    if (s != STATUS_OK)
        return s;
    struct buf b;
    buf_init(&b, MEDIA_PLAN_MAX_BYTES);
    s = media_plan_encode(plan, &b, err);
    if (s == STATUS_OK) {
        struct media_record head = {.type = MEDIA_REC_PLAN, .a = (int64_t)b.len};
        s = control_send_bytes(c, &head, b.data, b.len, err);
    } else {
        s = err_wrap(err, STATUS_INTERNAL, "probe");
    }
    buf_done(&b);
    return s;
}

static enum status make(const struct codec_source *src, const struct media_task *t,
                        const struct codec_sink *sink, struct err *err)
{
    AUTO(media_plan_free_p) struct media_plan *plan = NULL;
    enum status s = media_plan_decode(t->plan, t->plan_len, &plan, err);
    if (s != STATUS_OK)
        return err_wrap(err, STATUS_INTERNAL, "task");
    switch (t->kind) {
    case MEDIA_TASK_IMAGES:
        return codec_images(src, plan, t, sink, err);
    case MEDIA_TASK_MEASURE:
        return codec_measure(src, plan, t, sink, err);
    case MEDIA_TASK_TEXTS:
        return codec_texts(src, plan, t, sink, err);
    case MEDIA_TASK_VERIFY:
        return codec_verify(src, plan, t, sink, err);
    case MEDIA_TASK_PROBE:
    case MEDIA_TASK_CHUNK:
        break;
    }
    lie_about(plan); // nothing, but for the test build
    return codec_encode(src, plan, t, sink, err);
}

static enum status run(struct control *c, struct err *err)
{
    struct media_task task;
    AUTO(mem_free_p) uint8_t *bytes = NULL;
    enum status s = control_receive_task(c, &task, &bytes, err);
    if (s == STATUS_OK && task.kind == MEDIA_TASK_PROBE)
        s = confine_memory(PROBE_MEMORY, err);
    if (s != STATUS_OK)
        return err_wrap(err, STATUS_INTERNAL, "task");
    const struct codec_source src = {
        .fd = MEDIA_CHILD_SOURCE_FD, .size = task.source_size, .need = control_need, .ud = c};
    const struct codec_sink sink = {.segment = send_segment, .progress = send_progress, .ud = c};
    return task.kind == MEDIA_TASK_PROBE ? probe(c, &src, &task.options, &sink, err)
                                         : make(&src, &task, &sink, err);
}

static enum media_verdict verdict_of(enum status s)
{
    switch (s) {
    case STATUS_OK:
        return MEDIA_VERDICT_OK;
    case STATUS_INVALID_ARGUMENT:
        return MEDIA_VERDICT_REJECTED;
    case STATUS_UNAVAILABLE:
        return MEDIA_VERDICT_SOURCE;
    case STATUS_RESOURCE_EXHAUSTED:
        return MEDIA_VERDICT_LIMIT;
    default:
        return MEDIA_VERDICT_FAILED;
    }
}

// In a forked process of its own.
static int run_task(unsigned cpu_s)
{
    struct control c;
    struct err err = ERR_INIT;
    if (control_init(&c, MEDIA_CHILD_CONTROL_FD, &err) != STATUS_OK)
        return 1;
    enum status s = confine_self(cpu_s, &err);
    if (s != STATUS_OK)
        s = err_wrap(&err, STATUS_INTERNAL, "cauce-codec");
    else
        s = control_send(&c, &(struct media_record){.type = MEDIA_REC_READY}, &err);
    if (s == STATUS_OK)
        escape_try(); // nothing, but for the test build
    if (s == STATUS_OK)
        s = run(&c, &err);
    struct media_record verdict = {.type = MEDIA_REC_VERDICT, .verdict = verdict_of(s)};
    str_copy(verdict.text, sizeof(verdict.text), s == STATUS_OK ? "" : err.msg);
    bool told = control_send(&c, &verdict, NULL) == STATUS_OK;
    control_done(&c);
    return told ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct err err = ERR_INIT;
    int type = 0;
    (void)argv;
    if (argc > 1 || getsockopt(SERVE_FD, SOL_SOCKET, SO_TYPE, &type, &(socklen_t){sizeof(type)}) ||
        type != SOCK_SEQPACKET) {
        fprintf(stderr, "cauce-codec is started by a cauced worker, not by hand\n");
        return 2;
    }
    if (codec_preload(&err) != STATUS_OK) {
        fprintf(stderr, "cauce-codec: %s\n", err.msg);
        return 1;
    }
    return serve(run_task);
}
