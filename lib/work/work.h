#pragma once
// Work pool, strands, timers, cancel tokens.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef void (*work_fn)(void *ud);

// ---- pool: threads that run blocking functions, first in first out ----
struct work_pool;
// n_threads  started at once; queue_max: tasks waiting at most
struct work_pool *work_pool_new(const char *name, unsigned n_threads, size_t queue_max) MUST_CHECK;
// false when the queue is full or the pool is stopping: fn will not run.
bool work_pool_submit(struct work_pool *p, work_fn fn, void *ud) MUST_CHECK;
void work_pool_stop(
    struct work_pool *p); // runs what is queued, joins; no submit succeeds afterwards
void work_pool_free(struct work_pool *p); // stops if need be
DEFINE_AUTO(struct work_pool, work_pool_free)
size_t work_pool_n_queued(struct work_pool *p);

// ---- strand: tasks of one strand run one at a time, in order, on a pool's threads ----
struct work_strand;
struct work_strand *work_strand_new(struct work_pool *p) MUST_CHECK;
bool work_strand_submit(struct work_strand *s, work_fn fn,
                        void *ud) MUST_CHECK; // false: out of memory or pool stopping
size_t work_strand_n_queued(struct work_strand *s);
// Waits until its running task ends, unless called from it; drops none: runs the rest first. Not to
// be called from another task of a pool whose threads could all be waiting like that.
void work_strand_free(struct work_strand *s);

// ---- timers: one thread, callbacks must not block ----
struct work_timers;
struct work_timer;
struct work_timers *work_timers_new(void) MUST_CHECK;
// Pending timers never fire. Frees every timer that was not cancelled: none may be used afterwards.
void work_timers_free(struct work_timers *t);
// Fire once at deadline_us (time_mono_us clock). Never inline; runs on the timer thread.
struct work_timer *work_timer_start(struct work_timers *t, int64_t deadline_us, work_fn fn,
                                    void *ud) MUST_CHECK;
// Every timer must be cancelled once, also after it fired: that frees it.
// After return fn is not running and will not run (except when called from fn itself). Frees; NULL
// is fine. True when it was cancelled before it fired.
bool work_timer_cancel(struct work_timer *tm);

// ---- cancel tokens: a tree; reference counted, any thread ----
struct cancel;
struct cancel *cancel_new(struct cancel *parent) MUST_CHECK; // parent may be NULL
struct cancel *cancel_ref(struct cancel *c);
void cancel_unref(struct cancel *c);
DEFINE_AUTO(struct cancel, cancel_unref)
void cancel_fire(struct cancel *c); // once; runs hooks of it and its children outside any lock
bool cancel_is_fired(const struct cancel *c); // NULL is never fired
// Call fn(ud) when fired, at once if it already is. The returned hook is removed with
// cancel_unhook(), after which fn is not running and will not run.
struct cancel_hook;
struct cancel_hook *cancel_hook(struct cancel *c, work_fn fn, void *ud) MUST_CHECK;
void cancel_unhook(struct cancel_hook *h);
