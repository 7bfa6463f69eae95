// Calls with the user's token: fetched from the login, renewed shortly before it expires and once
// more when the server refuses it.
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/rand.h"
#include "cauce/session.rpc.h"
#include "session.h"

enum { RENEW_BEFORE_MS = 30000 };

// ---------------------------------------------------------------- renewal

static bool is_fresh(const struct login *l)
{
    return l->access[0] && time_wall_ms() + RENEW_BEFORE_MS < l->access_exp_ms;
}

static enum status call_refresh(struct cauce *c, struct login *l, struct err *err)
{
    Session__RefreshRequest req = SESSION__REFRESH_REQUEST__INIT;
    req.refresh_token = l->refresh;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(c->timeout_ms),
                         .cancel = c->cancel,
                         .max_attempts = 3}; // a repeated rotation answers the same for 10 s
    AUTO(rpc_message_free_p) Session__Tokens *t = NULL;
    enum status s = session_session_refresh(c->rpc, &o, &req, &t, err);
    if (s != STATUS_OK)
        return s;
    s = client_login_from(l, t, err);
    return s == STATUS_OK ? client_state_save(c, l, err) : s;
}

// Under the folder's lock: another process may have renewed meanwhile.
static enum status renew(struct cauce *c, struct login *l, struct err *err)
{
    int fd = -1;
    enum status s = client_state_lock(c, &fd, err);
    if (s != STATUS_OK)
        return s;
    struct login stored;
    s = client_state_load(c, &stored, err);
    bool is_newer = s == STATUS_OK && stored.refresh[0] && !str_eq(stored.refresh, l->refresh);
    if (is_newer)
        *l = stored;
    if (s == STATUS_OK && !(is_newer && is_fresh(l)))
        s = call_refresh(c, l, err);
    if (fd >= 0)
        close(fd);
    return s;
}

// Make c->login fresh, unless another thread has just replaced `stale`.
static enum status login_renew(struct cauce *c, const char *stale, struct err *err)
{
    pthread_mutex_lock(&c->lock);
    while (c->refreshing)
        pthread_cond_wait(&c->refreshed, &c->lock);
    if (!str_eq(c->login.access, stale) && is_fresh(&c->login)) {
        pthread_mutex_unlock(&c->lock);
        return STATUS_OK;
    }
    struct login l = c->login;
    c->refreshing = true;
    pthread_mutex_unlock(&c->lock);

    enum status s = renew(c, &l, err);

    pthread_mutex_lock(&c->lock);
    if (s == STATUS_OK)
        c->login = l;
    c->refreshing = false;
    pthread_cond_broadcast(&c->refreshed);
    pthread_mutex_unlock(&c->lock);
    if (s == STATUS_UNAUTHENTICATED || s == STATUS_PERMISSION_DENIED)
        return err_set(err, STATUS_UNAUTHENTICATED, "the login has ended: log in again");
    return s;
}

// ---------------------------------------------------------------- one call

static enum status take_token(struct client_try *t, struct err *err)
{
    struct cauce *c = t->c;
    pthread_mutex_lock(&c->lock);
    bool logged_in = c->login.refresh[0], fresh = is_fresh(&c->login);
    memcpy(t->token, c->login.access, sizeof(t->token));
    pthread_mutex_unlock(&c->lock);
    if (!logged_in) {
        t->opts.token = NULL;
        return t->auth == CLIENT_IF_LOGGED_IN
                   ? STATUS_OK
                   : err_set(err, STATUS_UNAUTHENTICATED, "not logged in: log in first");
    }
    if (!fresh) {
        enum status s = login_renew(c, t->token, err);
        if (s != STATUS_OK)
            return s;
        pthread_mutex_lock(&c->lock);
        memcpy(t->token, c->login.access, sizeof(t->token));
        pthread_mutex_unlock(&c->lock);
    }
    t->opts.token = t->token;
    return STATUS_OK;
}

enum status client_try_begin(struct client_try *t, struct cauce *c, enum client_auth auth,
                             const char *route, int64_t timeout_ms, struct cancel *cancel,
                             struct err *err)
{
    memset(t, 0, sizeof(*t));
    t->c = c;
    t->auth = auth;
    t->opts.route = route;
    t->opts.cancel = cancel ? cancel : c->cancel;
    t->opts.deadline_us = time_deadline_in_ms(timeout_ms ? timeout_ms : c->timeout_ms);
    if (cancel_is_fired(t->opts.cancel))
        return err_set(err, STATUS_CANCELLED, "cancelled");
    return auth == CLIENT_ANON ? STATUS_OK : take_token(t, err);
}

bool client_try_again(struct client_try *t, enum status *s, struct err *err)
{
    if (*s != STATUS_UNAUTHENTICATED || !t->opts.token || t->n_tries++ > 0)
        return false;
    enum status r = login_renew(t->c, t->token, err);
    if (r == STATUS_OK)
        r = take_token(t, err);
    if (r != STATUS_OK)
        *s = r;
    return r == STATUS_OK;
}

// ---------------------------------------------------------------- waiting before the next attempt

struct pause {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool fired;
};

static void pause_end(void *ud)
{
    struct pause *p = ud;
    pthread_mutex_lock(&p->lock);
    p->fired = true;
    pthread_cond_signal(&p->cond);
    pthread_mutex_unlock(&p->lock);
}

static struct timespec mono_in_ms(int64_t ms)
{
    int64_t us = time_mono_us() + ms * 1000;
    return (struct timespec){us / 1000000, (us % 1000000) * 1000};
}

static enum status pause_for(struct cancel *cancel, int64_t ms, struct err *err)
{
    struct timespec until = mono_in_ms(ms);
    struct pause p = {.lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&p.cond, &a);
    pthread_condattr_destroy(&a);
    struct cancel_hook *hook = cancel_hook(cancel, pause_end, &p);
    pthread_mutex_lock(&p.lock);
    while (hook && !p.fired && pthread_cond_timedwait(&p.cond, &p.lock, &until) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&p.lock);
    cancel_unhook(hook);
    pthread_cond_destroy(&p.cond);
    if (!hook)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    return p.fired ? err_set(err, STATUS_CANCELLED, "cancelled") : STATUS_OK;
}

enum status client_wait_ms(struct cauce *c, int64_t ms, struct err *err)
{
    return pause_for(c->cancel, ms, err);
}

enum status client_backoff(struct cancel *cancel, unsigned n, struct err *err)
{
    int64_t ms = n < 5 ? INT64_C(100) << n : 2000;
    return pause_for(cancel, ms / 2 + (int64_t)rand_below((uint64_t)ms), err);
}

enum status client_backoff_default(struct cauce *c, unsigned n, struct err *err)
{
    return client_backoff(c->cancel, n, err);
}
