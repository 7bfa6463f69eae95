#include <errno.h>
#include <pthread.h>

#include "base/mem.h"
#include "base/time.h"
#include "rpc/internal.h"

struct clock {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    pthread_t thread;
    int64_t next_us;
    bool stopping, stopped;
    clock_fn tick;
    void *ud;
};

static void wait_until(struct clock *k)
{
    while (!k->stopping && k->next_us > time_mono_us()) {
        if (k->next_us == TIME_NEVER) {
            pthread_cond_wait(&k->cond, &k->lock);
            continue;
        }
        struct timespec ts = {.tv_sec = k->next_us / 1000000,
                              .tv_nsec = k->next_us % 1000000 * 1000};
        pthread_cond_timedwait(&k->cond, &k->lock, &ts);
    }
}

static void *run(void *arg)
{
    struct clock *k = arg;
    pthread_mutex_lock(&k->lock);
    for (;;) {
        wait_until(k);
        if (k->stopping)
            break;
        k->next_us = TIME_NEVER;
        pthread_mutex_unlock(&k->lock);
        int64_t next = k->tick(k->ud, time_mono_us());
        pthread_mutex_lock(&k->lock);
        if (next < k->next_us)
            k->next_us = next;
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

struct clock *clock_new(clock_fn tick, void *ud)
{
    struct clock *k = mem_alloc(sizeof *k);
    if (!k)
        return NULL;
    k->tick = tick;
    k->ud = ud;
    k->next_us = TIME_NEVER;
    pthread_mutex_init(&k->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&k->cond, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&k->thread, NULL, run, k) != 0) {
        pthread_cond_destroy(&k->cond);
        pthread_mutex_destroy(&k->lock);
        mem_free(k);
        return NULL;
    }
    return k;
}

void clock_wake_at(struct clock *k, int64_t at_us)
{
    pthread_mutex_lock(&k->lock);
    if (at_us < k->next_us) {
        k->next_us = at_us;
        pthread_cond_signal(&k->cond);
    }
    pthread_mutex_unlock(&k->lock);
}

void clock_stop(struct clock *k)
{
    if (!k || k->stopped)
        return;
    pthread_mutex_lock(&k->lock);
    k->stopping = true;
    pthread_cond_signal(&k->cond);
    pthread_mutex_unlock(&k->lock);
    pthread_join(k->thread, NULL);
    k->stopped = true;
}

void clock_free(struct clock *k)
{
    if (!k)
        return;
    clock_stop(k);
    pthread_cond_destroy(&k->cond);
    pthread_mutex_destroy(&k->lock);
    mem_free(k);
}
