// Argon2id takes 64 MiB and 90 ms of a core each time: the gate bounds both, and what waits.
#include "internal.h"

#include <errno.h>

#include "base/time.h"

void session_gate_init(struct session_gate *g, unsigned max_running, unsigned max_waiting)
{
    pthread_condattr_t attr;
    *g = (struct session_gate){.max_running = max_running, .max_waiting = max_waiting};
    pthread_mutex_init(&g->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&g->left, &attr);
    pthread_condattr_destroy(&attr);
}

void session_gate_done(struct session_gate *g)
{
    pthread_cond_destroy(&g->left);
    pthread_mutex_destroy(&g->lock);
}

static bool wait_turn(struct session_gate *g, int64_t deadline_us)
{
    struct timespec ts = {.tv_sec = (time_t)(deadline_us / 1000000),
                          .tv_nsec = (long)(deadline_us % 1000000) * 1000};
    int e = 0;
    g->n_waiting++;
    while (g->n_running == g->max_running && e != ETIMEDOUT)
        e = deadline_us == TIME_NEVER ? pthread_cond_wait(&g->left, &g->lock)
                                      : pthread_cond_timedwait(&g->left, &g->lock, &ts);
    g->n_waiting--;
    return g->n_running < g->max_running;
}

enum status session_gate_enter(struct session_gate *g, int64_t deadline_us, struct err *err)
{
    enum status s = STATUS_OK;
    pthread_mutex_lock(&g->lock);
    if (g->n_running == g->max_running && g->n_waiting == g->max_waiting)
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "too many sign-ins at once: try again in 1 s");
    else if (!wait_turn(g, deadline_us))
        s = err_set(err, STATUS_DEADLINE_EXCEEDED, "waited too long for a turn to sign in");
    else
        g->n_running++;
    pthread_mutex_unlock(&g->lock);
    return s;
}

void session_gate_leave(struct session_gate *g)
{
    pthread_mutex_lock(&g->lock);
    g->n_running--;
    pthread_cond_signal(&g->left);
    pthread_mutex_unlock(&g->lock);
}
