// Deferred calls that wait for something to happen. One thread keeps the deadlines and hands
// whoever is due to the work pool; a waiter is looked at by one pool thread at a time.
//
//   PARKED --event, deadline, cancel, stop--> RUNNING --try() true--> gone
//      ^                                        |
//      +----------------- false ----------------+   (at once again when woken meanwhile)
#include "orchestrator/internal.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

struct waiter {
    struct list link; // in hub.parked
    struct hub *hub;
    enum hub_topic topic;
    char item[UUID_SIZE];
    int64_t deadline_us;
    hub_try_fn fn;
    void *ud;
    struct cancel *cancel;
    struct cancel_hook *hook;
    bool due, cancelled; // under hub.lock
    enum hub_why why;    // for the run that begins
};

struct hub {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct work_pool *pool;
    pthread_t thread;
    struct list parked;
    struct list running;
    size_t n_waiters; // parked or running
    bool closing, may_end;
    bool stopped; // the owner's own
};

static void waiter_free(struct waiter *w)
{
    cancel_unhook(w->hook); // waits for a hook that runs: it takes the hub's lock
    cancel_unref(w->cancel);
    mem_free(w);
}

static void run_waiter(void *ud)
{
    struct waiter *w = ud;
    struct hub *h = w->hub;
    bool answered = w->fn(w->ud, w->why) || w->why != HUB_EVENT;
    pthread_mutex_lock(&h->lock);
    list_remove(&w->link);
    if (!answered)
        list_push_back(&h->parked, &w->link);
    pthread_cond_signal(&h->changed);
    pthread_mutex_unlock(&h->lock);
    if (!answered)
        return;
    waiter_free(w);
    // Only now may the hub go.
    pthread_mutex_lock(&h->lock);
    h->n_waiters--;
    pthread_cond_signal(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

// Why this waiter must run now; false when it need not.
static bool is_due(const struct hub *h, const struct waiter *w, int64_t now_us, enum hub_why *ret)
{
    if (w->cancelled)
        *ret = HUB_CANCELLED;
    else if (h->closing)
        *ret = HUB_STOPPING;
    else if (now_us >= w->deadline_us)
        *ret = HUB_TIMEOUT;
    else if (w->due)
        *ret = HUB_EVENT;
    else
        return false;
    return true;
}

// Start everybody who is due; the earliest deadline of the rest. Called and returns locked.
static int64_t dispatch(struct hub *h)
{
    int64_t now_us = time_mono_us(), next_us = TIME_NEVER;
    struct list due;
    list_init(&due);
    list_for_each_safe(it, tmp, &h->parked)
    {
        struct waiter *w = list_entry(it, struct waiter, link);
        if (is_due(h, w, now_us, &w->why)) {
            w->due = false;
            list_remove(it);
            list_push_back(&due, it);
        } else if (w->deadline_us < next_us) {
            next_us = w->deadline_us;
        }
    }
    for (struct list *it; (it = list_pop_front(&due));) {
        struct waiter *w = list_entry(it, struct waiter, link);
        list_push_back(&h->running, it);
        pthread_mutex_unlock(&h->lock);
        if (!work_pool_submit(h->pool, run_waiter, w))
            run_waiter(w); // the pool is full or stopping: slower here, but never lost
        pthread_mutex_lock(&h->lock);
        next_us = 0; // somebody may have come meanwhile: look again
    }
    return next_us;
}

static void *hub_thread(void *ud)
{
    struct hub *h = ud;
    pthread_mutex_lock(&h->lock);
    while (!h->may_end || h->n_waiters) {
        int64_t next_us = dispatch(h);
        if (next_us == 0)
            continue;
        if (next_us == TIME_NEVER) {
            if (!h->may_end || h->n_waiters)
                pthread_cond_wait(&h->changed, &h->lock);
            continue;
        }
        struct timespec at = {.tv_sec = next_us / 1000000, .tv_nsec = next_us % 1000000 * 1000};
        pthread_cond_timedwait(&h->changed, &h->lock, &at);
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

struct hub *hub_new(struct work_pool *pool)
{
    struct hub *h = mem_alloc(sizeof *h);
    if (!h)
        return NULL;
    h->pool = pool;
    list_init(&h->parked);
    list_init(&h->running);
    pthread_mutex_init(&h->lock, NULL);
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&h->changed, &a);
    pthread_condattr_destroy(&a);
    if (pthread_create(&h->thread, NULL, hub_thread, h) != 0) {
        pthread_cond_destroy(&h->changed);
        pthread_mutex_destroy(&h->lock);
        mem_free(h);
        return NULL;
    }
    return h;
}

void hub_close(struct hub *h)
{
    if (!h)
        return;
    pthread_mutex_lock(&h->lock);
    h->closing = true;
    pthread_cond_signal(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

void hub_stop(struct hub *h)
{
    if (!h || h->stopped)
        return;
    pthread_mutex_lock(&h->lock);
    h->closing = true;
    h->may_end = true;
    pthread_cond_signal(&h->changed);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    h->stopped = true;
}

void hub_free(struct hub *h)
{
    if (!h)
        return;
    hub_stop(h);
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->lock);
    mem_free(h);
}

static void on_cancel(void *ud)
{
    struct waiter *w = ud;
    pthread_mutex_lock(&w->hub->lock);
    w->cancelled = true;
    pthread_cond_signal(&w->hub->changed);
    pthread_mutex_unlock(&w->hub->lock);
}

enum status hub_park(struct hub *h, enum hub_topic topic, const char *item, int64_t deadline_us,
                     struct cancel *cancel, hub_try_fn fn, void *ud, struct err *err)
{
    struct waiter *w = mem_alloc(sizeof *w);
    if (!w)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "waiting call: out of memory");
    list_init(&w->link);
    w->hub = h;
    w->topic = topic;
    str_copy(w->item, sizeof w->item, item ? item : "");
    w->deadline_us = deadline_us;
    w->fn = fn;
    w->ud = ud;
    w->due = true;
    if (cancel) {
        w->cancel = cancel_ref(cancel);
        w->hook = cancel_hook(cancel, on_cancel, w);
        if (!w->hook) {
            cancel_unref(w->cancel);
            mem_free(w);
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "waiting call: out of memory");
        }
    }
    pthread_mutex_lock(&h->lock);
    h->n_waiters++;
    list_push_back(&h->parked, &w->link);
    pthread_cond_signal(&h->changed);
    pthread_mutex_unlock(&h->lock);
    return STATUS_OK;
}

static void mark(struct list *head, enum hub_topic topic, const char *item)
{
    list_for_each(it, head)
    {
        struct waiter *w = list_entry(it, struct waiter, link);
        if (w->topic == HUB_ANY || (w->topic == topic && (!item || str_eq(w->item, item))))
            w->due = true;
    }
}

void hub_wake(struct hub *h, enum hub_topic topic, const char *item)
{
    pthread_mutex_lock(&h->lock);
    mark(&h->parked, topic, item);
    mark(&h->running, topic, item);
    pthread_cond_signal(&h->changed);
    pthread_mutex_unlock(&h->lock);
}
