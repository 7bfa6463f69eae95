// Health.Watch: whoever watches hears the state at once, then each change.
//
// While somebody watches, the role is asked again every LOOK_MS, by a job on the pool, since asking
// may block; a timer starts the job. Draining is told at once, and ends every watch. A watcher that
// takes nothing is written to when it has room again, and then hears the latest state only: no
// queue grows for it. How many watch at once is limited by the method's max_concurrent.
//
// A watch is in the list until somebody takes it out, under the lock; who did ends its call and
// frees it.
#include <string.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/node.rpc.h"
#include "service/internal.h"

#define LOOK_MS 500

struct state {
    uint64_t turn; // of asking: an answer that took long must not hide a later one
    bool is_serving;
    char reason[200];
};

struct watch { // one call
    struct list link;
    struct health *health;
    struct rpc_call *call;
    struct cancel *cancel; // the call's
    bool hears_why;
    bool is_told; // anything; then:
    struct state told;
};

struct health {
    struct instance *in;
    pthread_mutex_t lock;
    pthread_cond_t looked;
    struct list watches;
    struct state state; // the latest
    uint64_t n_asked;
    struct work_timer *timer; // NULL: nobody watches, or memory was short when it was to be set
    bool is_looking;          // the job is queued or runs
    bool is_over;
};

struct health *health_new(struct instance *in)
{
    struct health *h = mem_alloc(sizeof(*h));
    if (!h)
        return NULL;
    h->in = in;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->looked, NULL);
    list_init(&h->watches);
    return h;
}

void health_free(struct health *h)
{
    if (!h)
        return;
    work_timer_cancel(h->timer);
    pthread_cond_destroy(&h->looked);
    pthread_mutex_destroy(&h->lock);
    mem_free(h);
}

static struct state ask(struct health *h)
{
    struct state s = {.reason = ""};
    pthread_mutex_lock(&h->lock);
    s.turn = ++h->n_asked;
    pthread_mutex_unlock(&h->lock);
    s.is_serving = instance_is_ready(h->in, s.reason, sizeof(s.reason));
    return s;
}

bool health_may_say_why(const struct rpc_call *call)
{
    const struct rpc_user *user = rpc_call_user(call);
    const struct chan_peer *peer = rpc_call_peer(call);
    bool is_node = peer && peer->has_grant && !rpc_call_is_forwarded(call);
    return is_node || (user && user->roles & ROLE_ADMIN);
}

// ---------------------------------------------------------------- telling; lock held

static bool is_news(const struct watch *w, const struct state *s)
{
    return !w->is_told || w->told.is_serving != s->is_serving || !str_eq(w->told.reason, s->reason);
}

// A watcher without room hears it from on_writable().
static void tell(struct watch *w)
{
    struct state s = w->health->state;
    Node__CheckReply reply = NODE__CHECK_REPLY__INIT;
    if (!w->hears_why)
        s.reason[0] = '\0';
    if (!is_news(w, &s))
        return;
    reply.status = s.is_serving ? NODE__SERVING__SERVING : NODE__SERVING__NOT_SERVING;
    reply.reason = s.reason;
    if (!rpc_call_try_write(w->call, &reply.base))
        return;
    w->is_told = true;
    w->told = s;
}

static void set_state(struct health *h, const struct state *s)
{
    if (h->is_over || s->turn < h->state.turn) // the last word, or a later one, was said
        return;
    h->state = *s;
    list_for_each(l, &h->watches)
    {
        tell(list_entry(l, struct watch, link));
    }
}

// ---------------------------------------------------------------- looking again

static void on_timer(void *ud);

// Lock held.
static void set_timer(struct health *h)
{
    struct work_timer *old = h->timer;
    bool wanted = !h->is_over && !h->is_looking && !list_is_empty(&h->watches);
    h->timer = wanted
                   ? work_timer_start(h->in->svc.timers, time_deadline_in_ms(LOOK_MS), on_timer, h)
                   : NULL;
    // It has fired, or was not set: one that could fire now would wait for our lock.
    work_timer_cancel(old);
}

static void look(void *ud)
{
    struct health *h = ud;
    struct state s = ask(h);
    pthread_mutex_lock(&h->lock);
    h->is_looking = false;
    set_state(h, &s);
    set_timer(h);
    pthread_cond_broadcast(&h->looked);
    pthread_mutex_unlock(&h->lock);
}

static void on_timer(void *ud)
{
    struct health *h = ud;
    pthread_mutex_lock(&h->lock);
    if (!h->is_over && !h->is_looking && !list_is_empty(&h->watches))
        h->is_looking = work_pool_submit(h->in->svc.pool, look, h);
    if (!h->is_looking) // nobody watches, or the pool is full: later
        set_timer(h);
    pthread_mutex_unlock(&h->lock);
}

// ---------------------------------------------------------------- a watch

static void watch_end(struct watch *w, enum status s, const struct err *err)
{
    rpc_call_finish(w->call, s, NULL, err); // no on_writable() after this
    mem_free(w);
}

static void on_writable(void *ud)
{
    struct watch *w = ud;
    struct health *h = w->health;
    pthread_mutex_lock(&h->lock);
    bool is_ours = cancel_is_fired(w->cancel) && !list_is_empty(&w->link);
    if (is_ours)
        list_remove(&w->link);
    else if (!list_is_empty(&w->link))
        tell(w);
    pthread_mutex_unlock(&h->lock);
    if (is_ours)
        watch_end(w, STATUS_CANCELLED, NULL);
}

// False: too late.
static bool watch_enter(struct health *h, struct watch *w, const struct state *s)
{
    pthread_mutex_lock(&h->lock);
    bool ok = !h->is_over;
    if (ok) {
        rpc_call_defer(w->call);
        list_push_back(&h->watches, &w->link);
        set_state(h, s);
        if (!h->timer)
            set_timer(h);
        rpc_call_on_writable(w->call, on_writable, w);
    }
    pthread_mutex_unlock(&h->lock);
    return ok;
}

enum status health_watch(struct rpc_call *call, const Node__WatchRequest *req, struct err *err)
{
    struct instance *in = rpc_call_self(call);
    struct watch *w = mem_alloc(sizeof(*w));
    struct state s = ask(in->health);
    (void)req;
    if (w)
        *w = (struct watch){.health = in->health,
                            .call = call,
                            .cancel = rpc_call_cancel(call),
                            .hears_why = health_may_say_why(call)};
    if (!w || !w->cancel) {
        mem_free(w);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    }
    list_init(&w->link);
    if (!watch_enter(in->health, w, &s)) {
        mem_free(w);
        return err_set(err, STATUS_UNAVAILABLE, "the node is " SVC_STOPPING);
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- the end

static struct watch *take_one(struct health *h)
{
    pthread_mutex_lock(&h->lock);
    struct list *l = list_pop_front(&h->watches);
    pthread_mutex_unlock(&h->lock);
    return l ? list_entry(l, struct watch, link) : NULL;
}

void health_drain(struct health *h)
{
    struct err err = ERR_INIT;
    const struct state last = {.turn = UINT64_MAX, .reason = SVC_STOPPING};

    (void)err_set(&err, STATUS_UNAVAILABLE, "the node is " SVC_STOPPING);
    pthread_mutex_lock(&h->lock);
    set_state(h, &last);
    h->is_over = true;
    struct work_timer *timer = TAKE(h->timer);
    pthread_mutex_unlock(&h->lock);
    work_timer_cancel(timer);
    for (struct watch *w; (w = take_one(h));)
        watch_end(w, STATUS_UNAVAILABLE, &err);
}

void health_stop(struct health *h)
{
    pthread_mutex_lock(&h->lock);
    while (h->is_looking)
        pthread_cond_wait(&h->looked, &h->lock);
    pthread_mutex_unlock(&h->lock);
}
