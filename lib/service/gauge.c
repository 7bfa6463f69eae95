// Readiness that costs a question to the database: asked at most once a second, by one thread,
// while others get what was known before. So health calls never pile up behind a database that
// hangs.
#include "base/str.h"
#include "base/time.h"
#include "service/service.h"

#define ASK_EVERY_MS 1000

void svc_gauge_init(struct svc_gauge *g)
{
    *g = (struct svc_gauge){.asked_ms = -ASK_EVERY_MS};
    (void)err_set(&g->err, STATUS_UNAVAILABLE, "starting");
    pthread_mutex_init(&g->lock, NULL);
}

void svc_gauge_done(struct svc_gauge *g)
{
    pthread_mutex_destroy(&g->lock);
}

static void ask(struct svc_gauge *g, enum status (*fn)(void *ud, struct err *err), void *ud)
{
    struct err err = ERR_INIT;
    pthread_mutex_unlock(&g->lock);
    bool ok = fn(ud, &err) == STATUS_OK;
    pthread_mutex_lock(&g->lock);
    g->is_ready = ok;
    g->err = err;
    g->asked_ms = time_mono_ms();
    g->is_asking = false;
}

bool svc_gauge_read(struct svc_gauge *g, enum status (*fn)(void *ud, struct err *err), void *ud,
                    char *reason, size_t reason_size)
{
    pthread_mutex_lock(&g->lock);
    if (!g->is_asking && time_mono_ms() - g->asked_ms >= ASK_EVERY_MS) {
        g->is_asking = true;
        ask(g, fn, ud);
    }
    bool ok = g->is_ready;
    if (!ok)
        (void)str_copy(reason, reason_size, g->err.msg);
    pthread_mutex_unlock(&g->lock);
    return ok;
}
