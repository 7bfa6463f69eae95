// The parent's side of the confined codec process. One thread, one poll loop over the control
// socket and the caller's cancel descriptor. Nothing that the child
// says is believed: records are bounded, offsets checked, plans decoded with every invariant,
// segments compared with the plan, each at most once.
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "media/cmaf.h"
#include "media/image.h"
#include "media/loudness.h"
#include "media/webvtt.h"

#define DEFAULT_STALL_MS 10000
#define SEND_TIMEOUT_S 10
#define PROBE_CPU_S 8
#define PROBE_BYTES_PER_S (16 << 20)

const char *child_outcome_name(enum child_outcome o)
{
    switch (o) {
    case CHILD_OK:
        return "ok";
    case CHILD_REJECTED:
        return "rejected";
    case CHILD_CRASH:
        return "crash";
    case CHILD_TIMEOUT:
        return "timeout";
    case CHILD_LIMIT:
        return "limit";
    case CHILD_SOURCE:
        return "source";
    case CHILD_SINK:
        return "sink";
    case CHILD_CANCELLED:
        return "cancelled";
    case CHILD_FAILED:
        return "failed";
    }
    return "failed";
}

enum collecting { COLLECT_NOTHING, COLLECT_SEGMENT, COLLECT_PLAN };

struct child {
    const struct child_job *job;
    struct child_result *ret;
    int source_fd, control_fd;
    struct codec_process process;
    bool is_started;
    bool ended; // outcome is settled
    bool has_verdict;
    enum media_verdict verdict;
    struct buf packet; // sending
    uint8_t *received; // MEDIA_RECORD_MAX + 1
    uint8_t *block;    // MEDIA_READ_BLOCK, for fetching
    struct media_window window;
    enum collecting collecting;
    struct media_segment_out out;
    struct buf body;
    size_t body_size;
    uint8_t *seen; // one byte per task segment and rendition
    uint32_t n_seen;
    int64_t last_heard_us;
};

static void settle(struct child *c, enum child_outcome o, enum status s, const char *text)
{
    if (c->ended)
        return;
    c->ended = true;
    c->ret->outcome = o;
    c->ret->status = s;
    str_copy(c->ret->text, sizeof(c->ret->text), text);
}

// ---- starting ----

// Enough for the deadline on every thread, so that a child which lost its parent ends too. A probe
// gets what a true film of that size needs many times over (3 hours: 0.8 s), since a small file can
// be made to keep a demuxer busy for hours.
static unsigned cpu_seconds(const struct child_job *job)
{
    if (job->task->kind == MEDIA_TASK_PROBE)
        return (unsigned)(PROBE_CPU_S + job->task->source_size / PROBE_BYTES_PER_S);
    int64_t left_ms = time_left_ms(job->deadline_us);
    if (left_ms > INT64_C(24) * 3600 * 1000)
        left_ms = INT64_C(24) * 3600 * 1000;
    int64_t s = (left_ms / 1000 + 2) * (job->task->threads + 1);
    return s < 1000000 ? (unsigned)s : 1000000;
}

static bool open_channels(struct child *c, int *ret_child_end)
{
    int pair[2];
    c->source_fd = memfd_create("cauce-source", MFD_CLOEXEC);
    if (c->source_fd < 0 || ftruncate(c->source_fd, c->job->task->source_size) != 0)
        return false;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    c->control_fd = pair[0];
    *ret_child_end = pair[1];
    const struct timeval limit = {.tv_sec = SEND_TIMEOUT_S};
    return setsockopt(c->control_fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) == 0;
}

static void start(struct child *c)
{
    struct err err = ERR_INIT;
    int child_end = -1;
    if (!open_channels(c, &child_end)) {
        err_errno(&err, errno, "codec process: descriptors");
        settle(c, CHILD_FAILED, err.code, err.msg);
    } else if (codec_host_start(c->job->host, c->source_fd, child_end, cpu_seconds(c->job),
                                c->job->nice, &c->process, &err) == STATUS_OK) {
        c->is_started = true;
    } else {
        settle(c, CHILD_FAILED, err.code, err.msg);
    }
    if (child_end >= 0)
        close(child_end);
}

// ---- talking ----

static bool send_record(struct child *c, const struct media_record *r)
{
    buf_reset(&c->packet);
    if (media_record_encode(r, &c->packet, NULL) != STATUS_OK)
        return false;
    ssize_t n;
    do
        n = send(c->control_fd, c->packet.data, c->packet.len, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)c->packet.len;
}

static void send_task(struct child *c)
{
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, MEDIA_PLAN_MAX_BYTES + 4096);
    bool ok = media_task_encode(c->job->task, &b, &err) == STATUS_OK;
    if (!ok)
        settle(c, CHILD_FAILED, err.code, err.msg);
    struct media_record r = {.type = MEDIA_REC_TASK, .a = (int64_t)b.len};
    ok = ok && send_record(c, &r);
    for (size_t at = 0; ok && at < b.len;) {
        size_t n = b.len - at < MEDIA_RECORD_MAX - 1 ? b.len - at : MEDIA_RECORD_MAX - 1;
        r = (struct media_record){.type = MEDIA_REC_DATA, .data = b.data + at, .data_len = n};
        ok = send_record(c, &r);
        at += n;
    }
    buf_done(&b); // a child that cannot be told will be seen to have ended
}

static void nonsense(struct child *c, const char *what)
{
    char text[160];
    snprintf(text, sizeof(text), "the codec process spoke nonsense: %s", what);
    settle(c, CHILD_CRASH, STATUS_INTERNAL, text);
}

static bool write_all(int fd, const uint8_t *p, size_t n, int64_t offset)
{
    while (n > 0) {
        ssize_t w = pwrite(fd, p, n, offset);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return false;
        p += w;
        n -= (size_t)w;
        offset += w;
    }
    return true;
}

// The memfd is memory: what leaves the window is given back before more comes.
static bool make_room(struct child *c, size_t block)
{
    size_t out = media_window_add(&c->window, block);
    return out == MEDIA_NO_BLOCK ||
           fallocate(c->source_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t)out * MEDIA_READ_BLOCK, MEDIA_READ_BLOCK) == 0;
}

static void on_read(struct child *c, int64_t offset, int64_t len)
{
    int64_t left = c->job->task->source_size - offset;
    if (left <= 0 || offset % MEDIA_READ_BLOCK ||
        len != (left < MEDIA_READ_BLOCK ? left : MEDIA_READ_BLOCK)) {
        nonsense(c, "a read that is no block of the source");
        return;
    }
    struct err err = ERR_INIT;
    enum status s = c->job->fetch(c->job->ud, offset, (size_t)len, c->block, &err);
    if (s != STATUS_OK) {
        settle(c, CHILD_SOURCE, s, err.msg);
        return;
    }
    c->ret->fetched_bytes += len;
    if (!make_room(c, (size_t)(offset / MEDIA_READ_BLOCK)) ||
        !write_all(c->source_fd, c->block, (size_t)len, offset)) {
        settle(c, CHILD_FAILED, STATUS_RESOURCE_EXHAUSTED, "no memory for the source's bytes");
        return;
    }
    (void)send_record(c,
                      &(struct media_record){.type = MEDIA_REC_AVAILABLE, .a = offset, .b = len});
}

// Where this segment of the task is noted as seen; NULL when it is none of the task's.
static uint8_t *seen_mark(struct child *c, const struct media_segment_out *o)
{
    const struct media_task *t = c->job->task;
    if (t->kind == MEDIA_TASK_PROBE || t->kind == MEDIA_TASK_VERIFY ||
        o->segment < t->first_segment || o->segment - t->first_segment >= t->n_segments)
        return NULL;
    for (uint32_t i = 0; i < t->n_renditions; i++)
        if (t->renditions[i] == o->rendition)
            return &c->seen[(size_t)i * t->n_segments + (o->segment - t->first_segment)];
    return NULL;
}

// What is no segment of sound or picture says nothing about times.
static bool check_other(struct child *c, bool sane, const char *what)
{
    if (!sane) {
        nonsense(c, what);
        return false;
    }
    c->out.first_pts = c->out.duration = 0;
    c->out.samples = c->out.repeated = c->out.dropped = 0;
    return true;
}

static bool check_segment(struct child *c)
{
    struct err err = ERR_INIT;
    struct media_fragment f;
    if (media_cmaf_check(c->job->plan, c->out.rendition, c->out.segment, c->body.data, c->body.len,
                         &f, &err) != STATUS_OK) {
        nonsense(c, err.msg);
        return false;
    }
    // The ledger comes from the boxes, not from what was said about them.
    c->out.first_pts = f.first_pts;
    c->out.duration = f.duration;
    c->out.samples = f.n_samples;
    return true;
}

static bool check_measured(struct child *c)
{
    const struct buf *b = &c->body;
    struct err ignored = ERR_INIT;
    struct media_loudness l;
    bool sane = c->out.rendition == MEDIA_IMAGE_LOUDNESS
                    ? media_loudness_parse(b->data, b->len, &l, &ignored) == STATUS_OK
                    : media_image_is_sane(b->data, b->len);
    return check_other(c, sane, "what is no loudness or waveform in the plain form");
}

static bool check_output(struct child *c)
{
    const struct buf *b = &c->body;
    switch (c->job->task->kind) {
    case MEDIA_TASK_IMAGES:
        return check_other(c, media_image_is_sane(b->data, b->len),
                           "a picture that is no JPEG or WebP");
    case MEDIA_TASK_MEASURE:
        return check_measured(c);
    case MEDIA_TASK_TEXTS:
        return check_other(c, media_webvtt_is_sane(b->data, b->len),
                           "text that is no WebVTT in the plain form");
    case MEDIA_TASK_PROBE:
    case MEDIA_TASK_VERIFY:
    case MEDIA_TASK_CHUNK:
        return check_segment(c);
    }
    return false;
}

static void finish_segment(struct child *c)
{
    struct err err = ERR_INIT;
    if (!check_output(c))
        return;
    *seen_mark(c, &c->out) = 1;
    c->n_seen++;
    enum status s = c->job->segment(c->job->ud, &c->out, c->body.data, c->body.len, &err);
    if (s != STATUS_OK)
        settle(c, CHILD_SINK, s, err.msg);
}

static void finish_plan(struct child *c)
{
    struct err err = ERR_INIT;
    if (media_plan_decode(c->body.data, c->body.len, &c->ret->plan, &err) != STATUS_OK)
        nonsense(c, err.msg);
    else
        c->ret->plan_bytes = buf_take(&c->body, &c->ret->plan_len);
}

static void begin_body(struct child *c, enum collecting what, size_t size)
{
    c->collecting = what;
    c->body_size = size;
    buf_reset(&c->body);
}

static void on_data(struct child *c, const struct media_record *r)
{
    if (c->collecting == COLLECT_NOTHING || r->data_len > c->body_size - c->body.len) {
        nonsense(c, "data that was not announced");
        return;
    }
    if (!buf_append(&c->body, r->data, r->data_len)) {
        settle(c, CHILD_FAILED, STATUS_RESOURCE_EXHAUSTED, "no memory for a result");
        return;
    }
    if (c->body.len < c->body_size)
        return;
    enum collecting what = c->collecting;
    c->collecting = COLLECT_NOTHING;
    if (what == COLLECT_SEGMENT)
        finish_segment(c);
    else
        finish_plan(c);
}

static void on_segment(struct child *c, const struct media_segment_out *o)
{
    const uint8_t *seen = seen_mark(c, o);
    if (!seen || *seen)
        nonsense(c, "a segment that was not asked for");
    c->out = *o;
    begin_body(c, COLLECT_SEGMENT, o->size);
}

static void on_verdict(struct child *c, const struct media_record *r)
{
    c->has_verdict = true;
    c->verdict = r->verdict;
    str_copy(c->ret->text, sizeof(c->ret->text), r->text);
}

static void on_record(struct child *c, const struct media_record *r)
{
    bool interleaved = r->type == MEDIA_REC_READ || r->type == MEDIA_REC_DATA;
    if ((c->collecting != COLLECT_NOTHING && !interleaved) || c->has_verdict) {
        nonsense(c, "a record out of turn");
        return;
    }
    switch (r->type) {
    case MEDIA_REC_READY:
        send_task(c);
        return;
    case MEDIA_REC_READ:
        on_read(c, r->a, r->b);
        return;
    case MEDIA_REC_DATA:
        on_data(c, r);
        return;
    case MEDIA_REC_PROGRESS:
        if (c->job->progress)
            c->job->progress(c->job->ud, r->a, r->b);
        return;
    case MEDIA_REC_SEGMENT:
        on_segment(c, &r->out);
        return;
    case MEDIA_REC_PLAN:
        if (c->job->task->kind != MEDIA_TASK_PROBE || c->ret->plan || r->a == 0 ||
            r->a > MEDIA_PLAN_MAX_BYTES)
            nonsense(c, "a plan that was not asked for");
        else
            begin_body(c, COLLECT_PLAN, (size_t)r->a);
        return;
    case MEDIA_REC_VERDICT:
        on_verdict(c, r);
        return;
    case MEDIA_REC_TASK:
    case MEDIA_REC_AVAILABLE:
        break;
    }
    nonsense(c, "a record of the parent's");
}

// False: the socket is at its end.
static bool take_record(struct child *c)
{
    ssize_t n = recv(c->control_fd, c->received, MEDIA_RECORD_MAX + 1, MSG_DONTWAIT);
    if (n < 0)
        return errno == EINTR || errno == EAGAIN;
    if (n == 0)
        return false;
    struct media_record r;
    if (media_record_decode(c->received, (size_t)n, &r, NULL) != STATUS_OK)
        nonsense(c, "a damaged record");
    else
        on_record(c, &r);
    c->last_heard_us = time_mono_us(); // after it: what we took to fetch is no stall
    return true;
}

static void listen_to(struct child *c)
{
    const struct child_job *job = c->job;
    int64_t stall_us = (job->stall_ms > 0 ? job->stall_ms : DEFAULT_STALL_MS) * 1000;
    c->last_heard_us = time_mono_us();
    while (!c->ended) {
        int64_t until = c->last_heard_us + stall_us;
        bool stall_first = until < job->deadline_us;
        if (!stall_first)
            until = job->deadline_us;
        int64_t left_ms = time_left_ms(until);
        if (left_ms == 0 && time_mono_us() >= until) {
            settle(c, CHILD_TIMEOUT, STATUS_DEADLINE_EXCEEDED,
                   stall_first ? "the codec process made no progress"
                               : "the codec process took too long");
            return;
        }
        struct pollfd p[2] = {{.fd = c->control_fd, .events = POLLIN},
                              {.fd = job->cancel_fd, .events = POLLIN}};
        int n = poll(p, 2, left_ms < 60000 ? (int)left_ms + 1 : 60000);
        if (n < 0 && errno != EINTR) {
            settle(c, CHILD_FAILED, STATUS_INTERNAL, "codec process: waiting failed");
            return;
        }
        if (n > 0 && p[1].revents) {
            settle(c, CHILD_CANCELLED, STATUS_CANCELLED, "cancelled");
            return;
        }
        if (n > 0 && p[0].revents && !take_record(c))
            return;
    }
}

// ---- the end ----

// A child that has said its verdict, or whose socket closed, ends by itself at once; it gets two
// seconds for that.
#define END_MS 2000

// How it ended; false: nobody knows, its host is gone.
static bool reap(struct child *c, int *ret_wstatus)
{
    struct codec_end end = {.wstatus = 0};
    bool lost = false, known = false;
    if (c->ended)
        codec_process_kill(&c->process);
    for (int64_t until = time_deadline_in_ms(END_MS); !known && !lost && time_mono_us() < until;)
        known = codec_process_wait(&c->process, (int)time_left_ms(until) + 1, &end, &lost);
    if (!known && !lost)
        codec_process_kill(&c->process);
    while (!known && !lost)
        known = codec_process_wait(&c->process, END_MS, &end, &lost);
    c->ret->cpu_us = end.cpu_us;
    c->ret->peak_rss_bytes = end.peak_rss_bytes;
    *ret_wstatus = end.wstatus;
    return known;
}

static void judge_signal(struct child *c, int sig)
{
    char text[160];
    if (sig == SIGXCPU || sig == SIGXFSZ) {
        settle(c, CHILD_LIMIT, STATUS_RESOURCE_EXHAUSTED,
               c->job->task->kind == MEDIA_TASK_PROBE
                   ? "the file takes more time to read than any film of its size"
                   : "the codec process ran into its limits");
    } else if (sig == SIGKILL) { // not by us: that is settled before; the kernel, out of memory
        settle(c, CHILD_CRASH, STATUS_RESOURCE_EXHAUSTED,
               "the codec process was killed: out of memory?");
    } else {
        snprintf(text, sizeof(text), "the codec process was ended by signal %d (%s)", sig,
                 sig == SIGSYS ? "a forbidden system call" : strsignal(sig));
        settle(c, CHILD_CRASH, STATUS_INTERNAL, text);
    }
}

static bool is_complete(const struct child *c)
{
    const struct media_task *t = c->job->task;
    switch (t->kind) {
    case MEDIA_TASK_PROBE:
        return c->ret->plan_bytes != NULL;
    case MEDIA_TASK_CHUNK:
    case MEDIA_TASK_MEASURE:
        return c->n_seen == t->n_renditions * t->n_segments;
    case MEDIA_TASK_IMAGES:
    case MEDIA_TASK_TEXTS:
    case MEDIA_TASK_VERIFY:
        return true; // what the source has no picture for is left out
    }
    return false;
}

static void judge(struct child *c)
{
    static const enum child_outcome outcomes[] = {
        [MEDIA_VERDICT_OK] = CHILD_OK,         [MEDIA_VERDICT_REJECTED] = CHILD_REJECTED,
        [MEDIA_VERDICT_SOURCE] = CHILD_SOURCE, [MEDIA_VERDICT_LIMIT] = CHILD_LIMIT,
        [MEDIA_VERDICT_FAILED] = CHILD_FAILED,
    };
    static const enum status statuses[] = {
        [MEDIA_VERDICT_OK] = STATUS_OK,
        [MEDIA_VERDICT_REJECTED] = STATUS_INVALID_ARGUMENT,
        [MEDIA_VERDICT_SOURCE] = STATUS_UNAVAILABLE,
        [MEDIA_VERDICT_LIMIT] = STATUS_RESOURCE_EXHAUSTED,
        [MEDIA_VERDICT_FAILED] = STATUS_INTERNAL,
    };
    int wstatus = 0;
    bool known = reap(c, &wstatus);
    if (!known)
        settle(c, CHILD_FAILED, STATUS_UNAVAILABLE, "the codec host ended, and the task with it");
    if (c->ended)
        return;
    if (WIFSIGNALED(wstatus)) {
        judge_signal(c, WTERMSIG(wstatus));
        return;
    }
    if (!c->has_verdict || WEXITSTATUS(wstatus) != 0) {
        char text[96];
        snprintf(text, sizeof(text), "the codec process ended with status %d and no verdict",
                 WEXITSTATUS(wstatus));
        settle(c, CHILD_CRASH, STATUS_INTERNAL, text);
        return;
    }
    if (c->verdict == MEDIA_VERDICT_OK && !is_complete(c)) {
        nonsense(c, "it claims to be done but is not");
        return;
    }
    c->ended = true; // keeps the verdict's text
    c->ret->outcome = outcomes[c->verdict];
    c->ret->status = statuses[c->verdict];
}

static bool prepare(struct child *c)
{
    const struct media_task *t = c->job->task;
    buf_init(&c->packet, MEDIA_RECORD_MAX);
    buf_init(&c->body,
             t->kind == MEDIA_TASK_PROBE ? MEDIA_PLAN_MAX_BYTES : MEDIA_MAX_SEGMENT_BYTES);
    c->received = mem_alloc(MEDIA_RECORD_MAX + 1);
    c->block = mem_alloc(MEDIA_READ_BLOCK);
    c->seen = mem_array((size_t)t->n_renditions * t->n_segments + 1, 1);
    return c->received && c->block && c->seen &&
           media_window_init(&c->window, t->source_size, t->window_blocks, NULL) == STATUS_OK;
}

void child_run(const struct child_job *job, struct child_result *ret)
{
    *ret = (struct child_result){.outcome = CHILD_FAILED};
    struct child c = {.job = job, .ret = ret, .source_fd = -1, .control_fd = -1};
    if (!prepare(&c))
        settle(&c, CHILD_FAILED, STATUS_RESOURCE_EXHAUSTED, "codec process: out of memory");
    if (!c.ended)
        start(&c);
    if (!c.ended)
        listen_to(&c);
    if (c.control_fd >= 0)
        close(c.control_fd);
    if (c.is_started) {
        judge(&c);
        codec_process_done(&c.process);
    }
    if (c.source_fd >= 0)
        close(c.source_fd);
    if (ret->outcome != CHILD_OK) { // a plan that came before things went wrong is none
        media_plan_free(TAKE(ret->plan));
        mem_free(TAKE(ret->plan_bytes));
        ret->plan_len = 0;
    }
    buf_done(&c.packet);
    buf_done(&c.body);
    mem_free(c.received);
    mem_free(c.block);
    media_window_done(&c.window);
    mem_free(c.seen);
}

void child_result_done(struct child_result *r)
{
    media_plan_free(TAKE(r->plan));
    mem_free(TAKE(r->plan_bytes));
}
