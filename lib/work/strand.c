// A strand is a queue and one task of the pool ("the turn") that empties it. The turn is in the
// pool's queue or running exactly while `scheduled`; it takes a bounded number of tasks, so that a
// busy strand does not keep a thread from the others.
#include <pthread.h>

#include "base/mem.h"
#include "work/internal.h"

enum { TASKS_PER_TURN = 16 };

struct work_strand {
    struct work_pool *pool;
    pthread_mutex_t lock;
    pthread_cond_t idle;
    struct list queue; // struct work_task
    size_t n_queued;
    struct work_task turn;
    bool scheduled, running;
    bool orphan; // freed from inside its own task: the turn frees it in the end
    pthread_t runner;
};

static void destroy(struct work_strand *s)
{
    pthread_cond_destroy(&s->idle);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

// Lock held on entry and return.
static void run_some(struct work_strand *s)
{
    s->running = true;
    s->runner = pthread_self();
    for (int i = 0; i < TASKS_PER_TURN && !list_is_empty(&s->queue); i++) {
        struct work_task *t = list_entry(list_pop_front(&s->queue), struct work_task, link);
        s->n_queued--;
        pthread_mutex_unlock(&s->lock);
        t->fn(t->ud);
        mem_free(t);
        pthread_mutex_lock(&s->lock);
    }
    s->running = false;
}

static void turn(void *ud)
{
    struct work_strand *s = ud;
    pthread_mutex_lock(&s->lock);
    run_some(s);
    if (!list_is_empty(&s->queue)) {
        work_pool_push(s->pool, &s->turn, true);
        pthread_mutex_unlock(&s->lock);
        return;
    }
    s->scheduled = false;
    bool orphan = s->orphan;
    pthread_cond_broadcast(&s->idle);
    pthread_mutex_unlock(&s->lock);
    if (orphan)
        destroy(s);
}

struct work_strand *work_strand_new(struct work_pool *p)
{
    struct work_strand *s = mem_alloc(sizeof *s);
    if (!s)
        return NULL;
    s->pool = p;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->idle, NULL);
    list_init(&s->queue);
    s->turn = (struct work_task){.fn = turn, .ud = s};
    return s;
}

bool work_strand_submit(struct work_strand *s, work_fn fn, void *ud)
{
    struct work_task *t = mem_alloc(sizeof *t);
    if (!t)
        return false;
    *t = (struct work_task){.fn = fn, .ud = ud};
    pthread_mutex_lock(&s->lock);
    bool ok =
        s->scheduled ? !work_pool_is_stopping(s->pool) : work_pool_push(s->pool, &s->turn, false);
    if (ok) {
        s->scheduled = true;
        list_push_back(&s->queue, &t->link);
        s->n_queued++;
    }
    pthread_mutex_unlock(&s->lock);
    if (!ok)
        mem_free(t);
    return ok;
}

size_t work_strand_n_queued(struct work_strand *s)
{
    pthread_mutex_lock(&s->lock);
    size_t n = s->n_queued;
    pthread_mutex_unlock(&s->lock);
    return n;
}

void work_strand_free(struct work_strand *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    if (s->running && pthread_equal(s->runner, pthread_self())) {
        s->orphan = true;
        pthread_mutex_unlock(&s->lock);
        return;
    }
    while (s->scheduled)
        pthread_cond_wait(&s->idle, &s->lock);
    pthread_mutex_unlock(&s->lock);
    destroy(s);
}
