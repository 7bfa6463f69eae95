// One thread and a binary heap by deadline; every timer knows its place in it, so that cancelling
// costs O(log n). A timer is freed by work_timer_cancel() alone, also after it fired.
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/time.h"
#include "work/work.h"

struct work_timer {
    struct work_timers *owner;
    struct list link; // in owner->all
    int64_t deadline_us;
    work_fn fn;
    void *ud;
    size_t slot; // in the heap, from 1; 0 = not there: fired
};

struct work_timers {
    pthread_mutex_t lock;
    pthread_cond_t wake, fired;
    pthread_t thread;
    struct work_timer **heap; // heap[1..n]
    size_t n, cap;            // cap counts heap[0]
    struct list all;
    struct work_timer *firing;
    bool stopping;
};

static void place(struct work_timers *t, size_t slot, struct work_timer *tm)
{
    t->heap[slot] = tm;
    tm->slot = slot;
}

static void sift_up(struct work_timers *t, size_t slot)
{
    struct work_timer *tm = t->heap[slot];
    for (; slot > 1 && t->heap[slot / 2]->deadline_us > tm->deadline_us; slot /= 2)
        place(t, slot, t->heap[slot / 2]);
    place(t, slot, tm);
}

static void sift_down(struct work_timers *t, size_t slot)
{
    struct work_timer *tm = t->heap[slot];
    for (;;) {
        size_t child = 2 * slot;
        if (child > t->n)
            break;
        if (child < t->n && t->heap[child + 1]->deadline_us < t->heap[child]->deadline_us)
            child++;
        if (t->heap[child]->deadline_us >= tm->deadline_us)
            break;
        place(t, slot, t->heap[child]);
        slot = child;
    }
    place(t, slot, tm);
}

static void heap_remove(struct work_timers *t, struct work_timer *tm)
{
    size_t slot = tm->slot;
    struct work_timer *last = t->heap[t->n--];
    tm->slot = 0;
    if (last == tm)
        return;
    place(t, slot, last);
    sift_up(t, slot);
    sift_down(t, last->slot);
}

static bool heap_insert(struct work_timers *t, struct work_timer *tm)
{
    if (t->n + 2 > t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 16;
        struct work_timer **heap = mem_realloc(t->heap, cap, sizeof(struct work_timer *));
        if (!heap)
            return false;
        t->heap = heap;
        t->cap = cap;
    }
    place(t, ++t->n, tm);
    sift_up(t, t->n);
    return true;
}

static void wait_until(struct work_timers *t, int64_t deadline_us)
{
    if (deadline_us == TIME_NEVER) {
        pthread_cond_wait(&t->wake, &t->lock);
        return;
    }
    struct timespec ts = {.tv_sec = (time_t)(deadline_us / 1000000),
                          .tv_nsec = (long)(deadline_us % 1000000) * 1000};
    pthread_cond_timedwait(&t->wake, &t->lock, &ts);
}

static void *timer_thread(void *ud)
{
    struct work_timers *t = ud;
    pthread_setname_np(pthread_self(), "timers");
    pthread_mutex_lock(&t->lock);
    while (!t->stopping) {
        struct work_timer *next = t->n ? t->heap[1] : NULL;
        if (!next || next->deadline_us > time_mono_us()) {
            wait_until(t, next ? next->deadline_us : TIME_NEVER);
            continue;
        }
        heap_remove(t, next);
        t->firing = next;
        work_fn fn = next->fn;
        void *fn_ud = next->ud;
        pthread_mutex_unlock(&t->lock);
        fn(fn_ud); // may cancel, and so free, its own timer
        pthread_mutex_lock(&t->lock);
        t->firing = NULL;
        pthread_cond_broadcast(&t->fired);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static bool start_thread(struct work_timers *t)
{
    sigset_t every, old;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &old);
    bool ok = pthread_create(&t->thread, NULL, timer_thread, t) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return ok;
}

static void destroy(struct work_timers *t)
{
    pthread_cond_destroy(&t->wake);
    pthread_cond_destroy(&t->fired);
    pthread_mutex_destroy(&t->lock);
    mem_free(t->heap);
    mem_free(t);
}

struct work_timers *work_timers_new(void)
{
    struct work_timers *t = mem_alloc(sizeof *t);
    if (!t)
        return NULL;
    pthread_condattr_t mono;
    pthread_condattr_init(&mono);
    pthread_condattr_setclock(&mono, CLOCK_MONOTONIC);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, &mono);
    pthread_cond_init(&t->fired, NULL);
    pthread_condattr_destroy(&mono);
    list_init(&t->all);
    if (!start_thread(t)) {
        destroy(t);
        return NULL;
    }
    return t;
}

void work_timers_free(struct work_timers *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->stopping = true;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
    for (struct list *l; (l = list_pop_front(&t->all));)
        mem_free(list_entry(l, struct work_timer, link));
    destroy(t);
}

struct work_timer *work_timer_start(struct work_timers *t, int64_t deadline_us, work_fn fn,
                                    void *ud)
{
    struct work_timer *tm = mem_alloc(sizeof *tm);
    if (!tm)
        return NULL;
    *tm = (struct work_timer){.owner = t, .deadline_us = deadline_us, .fn = fn, .ud = ud};
    pthread_mutex_lock(&t->lock);
    bool ok = heap_insert(t, tm);
    if (ok) {
        list_push_back(&t->all, &tm->link);
        if (tm->slot == 1)
            pthread_cond_signal(&t->wake);
    }
    pthread_mutex_unlock(&t->lock);
    if (!ok)
        mem_free(tm);
    return ok ? tm : NULL;
}

bool work_timer_cancel(struct work_timer *tm)
{
    if (!tm)
        return false;
    struct work_timers *t = tm->owner;
    pthread_mutex_lock(&t->lock);
    bool pending = tm->slot != 0;
    if (pending)
        heap_remove(t, tm);
    while (t->firing == tm && !pthread_equal(t->thread, pthread_self()))
        pthread_cond_wait(&t->fired, &t->lock);
    list_remove(&tm->link);
    pthread_mutex_unlock(&t->lock);
    mem_free(tm);
    return pending;
}
