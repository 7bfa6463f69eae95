// Waiting until an item can be played: events say when to look, the job says what is true. Looking
// comes after subscribing, so nothing is missed in between.
#include <string.h>

#include "cauce/event.rpc.h"
#include "cauce/orchestrator.rpc.h"
#include "internal.h"

enum {
    FOLLOW_MS = 10 * 60 * 1000, // one subscription; then another
    MIN_LOOK_DISTANCE_MS = 200, // between two looks that only progress events ask for
};

struct waiting {
    struct cauce *c;
    struct cancel *cancel;
    const char *item_id;
    cauce_until until;
    int64_t deadline_us;
    cauce_progress_fn fn;
    void *ud;
    int64_t looked_ms;
    bool done;
};

static void report(struct waiting *w, double progress)
{
    cauce_progress p = {"transcode", 1000, (int64_t)(progress * 1000), 0};
    if (w->fn && w->fn(&p, w->ud) != 0)
        cancel_fire(w->cancel);
}

static enum status look(struct waiting *w, struct err *err)
{
    Orchestrator__GetJobRequest req = ORCHESTRATOR__GET_JOB_REQUEST__INIT;
    req.job_id = client_str(w->item_id);
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *j = NULL;
    struct client_try t;
    enum status s = client_try_begin(&t, w->c, CLIENT_LOGGED_IN, NULL, 0, w->cancel, err);
    if (s == STATUS_OK)
        s = CLIENT_CALL(&t, orchestrator_job_get(w->c->rpc, &t.opts, &req, &j, err), err);
    if (s != STATUS_OK)
        return s;
    w->looked_ms = time_mono_ms();
    report(w, j->progress);
    if (str_eq(j->state, "failed"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "%s", j->reason[0] ? j->reason : "failed");
    w->done = str_eq(j->state, "done") || (w->until == CAUCE_UNTIL_PLAYABLE && j->playable);
    return STATUS_OK;
}

static int64_t left_ms(const struct waiting *w)
{
    int64_t left = time_left_ms(w->deadline_us);
    return left < FOLLOW_MS ? left : FOLLOW_MS;
}

// One subscription, until done or broken.
static enum status follow(struct waiting *w, struct err *err)
{
    struct client_try t;
    enum status s =
        client_try_begin(&t, w->c, CLIENT_LOGGED_IN, "transcode", left_ms(w), w->cancel, err);
    if (s != STATUS_OK)
        return s;
    Event__ReadRequest req = EVENT__READ_REQUEST__INIT;
    req.topic = client_str("transcode");
    req.from_seq = -1;
    req.follow = 1;
    req.subject = client_str(w->item_id);
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    s = event_event_read_open(w->c->rpc, &t.opts, &req, &st, err);
    if (s == STATUS_OK)
        s = look(w, err);
    while (s == STATUS_OK && !w->done) {
        AUTO(rpc_message_free_p) Event__EventRecord *e = NULL;
        s = event_event_read_recv(st, &e, err);
        if (s == STATUS_OK && !e)
            return err_set(err, STATUS_UNAVAILABLE, "the event stream ended");
        bool is_progress = s == STATUS_OK && str_ends_with(e->kind, ".progress");
        if (s == STATUS_OK &&
            (!is_progress || time_mono_ms() - w->looked_ms >= MIN_LOOK_DISTANCE_MS))
            s = look(w, err);
    }
    return s;
}

static enum status wait_ready(struct waiting *w, struct err *err)
{
    for (unsigned n = 0; !w->done; n++) {
        int64_t began_ms = time_mono_ms();
        enum status s = follow(w, err);
        if (s == STATUS_OK || !client_is_transient(s))
            return s;
        if (time_left_ms(w->deadline_us) == 0)
            return err_set(err, STATUS_DEADLINE_EXCEEDED, "item %s is not ready yet", w->item_id);
        if (time_mono_ms() - began_ms > 10000)
            n = 0;
        s = client_backoff(w->cancel, n, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

cauce_status cauce_wait_ready(cauce *c, const char *item_id, cauce_until until, uint32_t timeout_ms,
                              cauce_progress_fn fn, void *ud, cauce_error *err)
{
    struct err e = ERR_INIT;
    struct waiting w = {
        .c = c,
        .cancel = cancel_new(c->cancel),
        .item_id = item_id,
        .until = until,
        .deadline_us = timeout_ms ? time_deadline_in_ms(timeout_ms) : TIME_NEVER,
        .fn = fn,
        .ud = ud,
    };
    enum status s =
        w.cancel ? wait_ready(&w, &e) : err_set(&e, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    cancel_unref(w.cancel);
    return client_fail(&e, s, err);
}
