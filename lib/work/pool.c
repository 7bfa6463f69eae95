// A queue, a condition variable, threads. Stopping lets the queue run empty first.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include "base/mem.h"
#include "base/str.h"
#include "work/internal.h"

struct work_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct list queue; // struct work_task
    size_t n_queued, queue_max;
    bool stopping, joined;
    char name[16]; // what the kernel shows of a thread's name
    unsigned n_threads;
    pthread_t threads[];
};

static void *pool_thread(void *ud)
{
    struct work_pool *p = ud;
    pthread_setname_np(pthread_self(), p->name);
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (list_is_empty(&p->queue) && !p->stopping)
            pthread_cond_wait(&p->wake, &p->lock);
        struct list *first = list_pop_front(&p->queue);
        if (!first)
            break;
        p->n_queued--;
        pthread_mutex_unlock(&p->lock);
        // Copied first: fn may free the task that it was embedded in.
        struct work_task *t = list_entry(first, struct work_task, link);
        work_fn fn = t->fn;
        void *task_ud = t->ud;
        if (t->owned)
            mem_free(t);
        fn(task_ud);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

// Signals are for the program's main thread.
static int thread_start(pthread_t *t, void *(*fn)(void *), void *ud)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(t, NULL, fn, ud);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed;
}

struct work_pool *work_pool_new(const char *name, unsigned n_threads, size_t queue_max)
{
    AUTO(work_pool_free_p)
    struct work_pool *p = mem_alloc(sizeof *p + n_threads * sizeof p->threads[0]);
    if (!p)
        return NULL;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    list_init(&p->queue);
    p->queue_max = queue_max;
    str_copy(p->name, sizeof p->name, name);
    for (; p->n_threads < n_threads; p->n_threads++)
        if (thread_start(&p->threads[p->n_threads], pool_thread, p) != 0)
            return NULL;
    return TAKE(p);
}

static bool push_locked(struct work_pool *p, struct work_task *t)
{
    list_push_back(&p->queue, &t->link);
    p->n_queued++;
    pthread_cond_signal(&p->wake);
    return true;
}

bool work_pool_push(struct work_pool *p, struct work_task *t, bool again)
{
    pthread_mutex_lock(&p->lock);
    bool ok = (!p->stopping || again) && push_locked(p, t);
    pthread_mutex_unlock(&p->lock);
    return ok;
}

bool work_pool_submit(struct work_pool *p, work_fn fn, void *ud)
{
    struct work_task *t = mem_alloc(sizeof *t);
    if (!t)
        return false;
    *t = (struct work_task){.fn = fn, .ud = ud, .owned = true};
    pthread_mutex_lock(&p->lock);
    bool ok = !p->stopping && p->n_queued < p->queue_max && push_locked(p, t);
    pthread_mutex_unlock(&p->lock);
    if (!ok)
        mem_free(t);
    return ok;
}

bool work_pool_is_stopping(struct work_pool *p)
{
    pthread_mutex_lock(&p->lock);
    bool stopping = p->stopping;
    pthread_mutex_unlock(&p->lock);
    return stopping;
}

size_t work_pool_n_queued(struct work_pool *p)
{
    pthread_mutex_lock(&p->lock);
    size_t n = p->n_queued;
    pthread_mutex_unlock(&p->lock);
    return n;
}

void work_pool_stop(struct work_pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    bool join = !p->joined;
    p->joined = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; join && i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
}

void work_pool_free(struct work_pool *p)
{
    if (!p)
        return;
    work_pool_stop(p);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}
