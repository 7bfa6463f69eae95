// Upkeep: every so often, on a strand of the role's pool, collect garbage and drop abandoned
// uploads. The timer fires, the strand runs, and the end of the run sets the next timer.
#include <string.h>

#include "base/time.h"
#include "internal.h"

static void collect(struct origin *o)
{
    struct err e = ERR_INIT;
    int64_t objects = 0, bytes = 0, uploads = 0;
    enum status st = object_upload_expire(o->store, &uploads, &e);
    if (st != STATUS_OK)
        log_error(o->log, "expiry_failed", F_ERR(&e));
    st = object_store_collect(o->store, o->stopping, &objects, &bytes, &e);
    if (st != STATUS_OK && st != STATUS_CANCELLED)
        log_error(o->log, "collection_failed", F_ERR(&e));
    if (objects > 0 || uploads > 0)
        log_info(o->log, "collected", F_I64("objects", objects), F_I64("bytes", bytes),
                 F_I64("uploads_expired", uploads));
}

static void on_timer(void *ud);

// Runs on the strand, or before anything else at the start.
static void set_timer(struct origin *o)
{
    pthread_mutex_lock(&o->mu);
    if (!cancel_is_fired(o->stopping))
        o->timer =
            work_timer_start(o->timers, time_deadline_in_ms(o->collect_every_ms), on_timer, o);
    bool failed = !o->timer && !cancel_is_fired(o->stopping);
    pthread_mutex_unlock(&o->mu);
    if (failed)
        log_error(o->log, "upkeep_ends", F_STR("reason", "no memory for its timer"));
}

static struct work_timer *take_timer(struct origin *o)
{
    pthread_mutex_lock(&o->mu);
    struct work_timer *t = TAKE(o->timer);
    pthread_mutex_unlock(&o->mu);
    return t;
}

static void run(void *ud)
{
    struct origin *o = ud;
    work_timer_cancel(take_timer(o)); // it has fired; this frees it
    if (cancel_is_fired(o->stopping))
        return;
    collect(o);
    set_timer(o);
}

static void on_timer(void *ud)
{
    struct origin *o = ud;
    if (!work_strand_submit(o->strand, run, o))
        log_warn(o->log, "upkeep_ends", F_STR("reason", "the pool takes no more work"));
}

enum status origin_upkeep_start(struct origin *o, struct err *err)
{
    o->stopping = cancel_new(NULL);
    o->strand = work_strand_new(o->pool);
    if (!o->stopping || !o->strand)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "origin: out of memory");
    set_timer(o);
    return STATUS_OK;
}

void origin_upkeep_stop(struct origin *o)
{
    if (o->stopping)
        cancel_fire(o->stopping);
    work_timer_cancel(take_timer(o));
    if (o->strand)
        work_strand_free(o->strand);
    cancel_unref(o->stopping);
    o->strand = NULL;
    o->stopping = NULL;
}
