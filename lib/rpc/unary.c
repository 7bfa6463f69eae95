// Unary calls: their attempts, repeats and hedges, for callers that wait and for those that do not.
//
//                 +-------------- retry_next(): later -------------+
//                 v                                                |
//   waiting --its time, or a connection--> in flight --------> attempt ended
//      ^            |                       |  (one attempt, or   |
//      |            | no connection         |   two: the hedge)   | an answer, or no more tries
//      +------------+                       +-- hedge_us later    v
//                                              waits beside it   over --> done(), once
//
// A caller that waits makes its first attempt on its own thread, with nothing allocated but the
// attempt; only if that is not the end of it does the call become a struct unary as well.
//
// Everything about a struct unary is under the client's lock, but for its plan while retry_next()
// looks at it: then nothing is in flight nor waits, and only a cancellation can come in between.
// References: the call's own until it was told, one for its place in a list, one for each attempt.
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define STACK_MESSAGE 4096
#define N_TRIES 2 // in flight at once: an attempt and its hedge

enum wait { FOR_TIME, FOR_CONN, FOR_HEDGE };

struct unary {
    atomic_uint refs;
    struct list node; // client's waiting or due while is_listed; completed
    struct rpc_client *client;
    struct call_spec spec;
    struct retry_plan plan;
    rpc_done_fn done; // NULL: somebody waits at cond
    void *ud;
    int64_t *ret_retry_after_ms;
    struct rpc_details *ret_details;
    struct cancel_hook *hook[2];
    int64_t begun_us;
    bool is_armed; // its hooks are in place
    bool is_inline;

    bool is_over, is_cancelled, is_told, is_listed;
    bool is_left; // a try failed and left the rest to the other one
    enum wait waits;
    int64_t due_us, connect_until_us; // while listed
    struct attempt *tries[N_TRIES];   // in flight
    unsigned n_open;                  // of these
    const struct endpoint *avoid;     // where it failed last; only compared

    // The answer, or the last failure so far.
    struct attempt *last; // NULL: there is err
    struct attempt_end end;
    struct err err;
    pthread_cond_t cond;                       // for who waits
    _Alignas(struct rpc_metadata) char data[]; // what spec points to
};

static struct unary *unary_ref(struct unary *u)
{
    atomic_fetch_add(&u->refs, 1);
    return u;
}

static void unary_unref(struct unary *u)
{
    if (atomic_fetch_sub(&u->refs, 1) != 1)
        return;
    struct rpc_client *c = u->client;
    for (size_t i = 0; i < N_ELEMENTS(u->spec.cancel); i++)
        cancel_unref(u->spec.cancel[i]);
    mem_free(u->end.reply);
    attempt_unref(u->last);
    if (!u->done)
        pthread_cond_destroy(&u->cond);
    mem_free(u);
    client_leave(c);
}

// ---------------------------------------------------------------- the answer

static enum status read_answer(struct attempt *s, struct attempt_end *e, ProtobufCMessage **ret,
                               struct err *err)
{
    if (e->code != STATUS_OK)
        return err_from_status(err, &s->flow.status);
    if (!e->reply)
        return err_set(err, STATUS_INTERNAL, "%s: the server sent no reply", s->m->name);
    return message_take(s->m->reply, TAKE(e->reply), ret, err);
}

static void tell_details(const struct attempt *s, const struct attempt_end *e,
                         int64_t *ret_retry_after_ms, struct rpc_details *ret_details)
{
    if (ret_retry_after_ms)
        *ret_retry_after_ms = e->retry_after_ms;
    if (ret_details)
        attempt_get_details(s, ret_details);
}

static enum status unary_answer(struct unary *u, ProtobufCMessage **ret, struct err *err)
{
    for (size_t i = 0; i < N_ELEMENTS(u->hook); i++)
        cancel_unhook(u->hook[i]);
    tell_details(u->last, &u->end, u->ret_retry_after_ms, u->ret_details);
    if (u->last)
        return read_answer(u->last, &u->end, ret, err);
    return err_set(err, u->err.code, "%s", u->err.msg);
}

static void run_done(struct unary *u)
{
    struct err err = ERR_INIT;
    ProtobufCMessage *reply = NULL;
    enum status s = unary_answer(u, &reply, &err);
    struct rpc_call *before = rpc_call_enter(NULL); // whose thread this is, is chance
    u->done(u->ud, s, reply, &err);
    rpc_call_enter(before);
    unary_unref(u);
}

static void run_completed(void *ud)
{
    struct rpc_client *c = ud;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        struct list *it = list_pop_front(&c->completed);
        if (!it)
            break;
        pthread_mutex_unlock(&c->lock);
        run_done(list_entry(it, struct unary, node));
        pthread_mutex_lock(&c->lock);
    }
    c->completing = false;
    pthread_mutex_unlock(&c->lock);
    client_leave(c); // what finish() counted for this task
}

// ---------------------------------------------------------------- the end

struct to_do { // what finish() leaves for when the lock is released
    struct attempt *losers[N_TRIES];
    bool unlist, run, run_here;
};

// Called with the client's lock held.
static bool unlist(struct unary *u)
{
    bool was = u->is_listed;
    if (was)
        list_remove(&u->node);
    u->is_listed = false;
    return was; // the caller has its reference to give back
}

// Called with the client's lock held. Answer and attempt are in place. here: an answer came, on a
// thread that may tell of it if that does not block.
static void finish(struct unary *u, bool here, struct to_do *ret)
{
    struct rpc_client *c = u->client;
    *ret = (struct to_do){.unlist = unlist(u)};
    u->is_over = true;
    for (size_t i = 0; i < N_TRIES; i++) {
        struct attempt *s = u->tries[i];
        if (!s)
            continue;
        s->cancel_wanted = true;
        ret->losers[i] = s->is_started ? attempt_ref(s) : NULL;
    }
    if (!u->done) {
        u->is_told = true;
        pthread_cond_signal(&u->cond);
        return;
    }
    ret->run_here = here && u->is_inline;
    if (ret->run_here)
        return;
    list_push_back(&c->completed, &u->node);
    ret->run = !c->completing;
    c->completing = true;
    c->n_live += ret->run;
    if (ret->run && !c->pool)
        c->pool = c->own_pool = work_pool_new("rpc-done", 2, 1024);
}

// Once the lock is released. u is referenced by the caller.
static void finished(struct unary *u, struct to_do *d)
{
    struct rpc_client *c = u->client;
    for (size_t i = 0; i < N_TRIES; i++) {
        if (!d->losers[i])
            continue;
        attempt_cancel(d->losers[i]);
        attempt_unref(d->losers[i]);
    }
    if (d->run && (!c->pool || !work_pool_submit(c->pool, run_completed, c)))
        run_completed(c); // the pool is full: late is worse than here
    if (d->run_here)
        run_done(u);
    if (d->unlist)
        unary_unref(u);
}

// Ends the call with an error of our own, unless it is over already.
static void finish_with(struct unary *u, const struct err *err)
{
    struct rpc_client *c = u->client;
    struct to_do d = {.run = false};
    pthread_mutex_lock(&c->lock);
    bool first = !u->is_over;
    struct attempt *old = first ? TAKE(u->last) : NULL;
    if (first) {
        u->err = *err;
        u->end = (struct attempt_end){.code = err->code};
        finish(u, false, &d);
    }
    pthread_mutex_unlock(&c->lock);
    attempt_unref(old);
    if (first)
        finished(u, &d);
}

// ---------------------------------------------------------------- waiting

// Called with the client's lock held.
static void wait_listed(struct unary *u, enum wait waits, int64_t due_us)
{
    u->waits = waits;
    u->due_us = due_us;
    u->is_listed = true;
    unary_ref(u);
    list_push_back(&u->client->waiting, &u->node);
}

static void wait_for_retry(struct unary *u, int64_t at_us)
{
    struct rpc_client *c = u->client;
    struct err err = ERR_INIT;
    pthread_mutex_lock(&c->lock);
    u->connect_until_us = at_us + c->o.connect_timeout_ms * 1000;
    bool stop = c->is_closing || u->is_cancelled;
    if (!stop && !u->is_over)
        wait_listed(u, FOR_TIME, at_us);
    pthread_mutex_unlock(&c->lock);
    if (!stop) {
        clock_wake_at(c->clock, at_us);
        return;
    }
    err_set(&err, STATUS_CANCELLED, "cancelled before another attempt");
    finish_with(u, &err);
}

static void no_connection(struct unary *u)
{
    struct rpc_client *c = u->client;
    struct err err = ERR_INIT;
    int64_t now = time_mono_us();
    pthread_mutex_lock(&c->lock);
    client_want(c);
    bool usable = endpoints_any_usable(c, now);       // by now: one that came since we looked
    bool refused = !usable && endpoints_any_ready(c); // by their breakers
    bool cancelled = u->is_cancelled; // while the attempt that found none was counted in flight
    bool give_up = (u->spec.fail_fast && !usable) || refused || cancelled || c->is_closing ||
                   now >= u->connect_until_us;
    if (give_up)
        endpoints_explain(c, now, &err);
    else if (!u->is_over)
        wait_listed(u, FOR_CONN,
                    u->connect_until_us < u->spec.deadline_us ? u->connect_until_us
                                                              : u->spec.deadline_us);
    bool closing = c->is_closing;
    pthread_mutex_unlock(&c->lock);
    if (closing)
        err_set(&err, STATUS_CANCELLED, "the client is closing");
    else if (cancelled)
        err_set(&err, STATUS_CANCELLED, "cancelled");
    else if (give_up && now >= u->spec.deadline_us)
        err_wrap(&err, STATUS_DEADLINE_EXCEEDED, "deadline exceeded before the call began");
    if (give_up)
        finish_with(u, &err);
    else
        clock_wake_at(c->clock, 0); // a connection may have come in between
}

// ---------------------------------------------------------------- attempts

// Called with the client's lock held.
static void untrack(struct unary *u, const struct attempt *s)
{
    for (size_t i = 0; i < N_TRIES; i++) {
        if (u->tries[i] != s)
            continue;
        u->tries[i] = NULL;
        u->n_open--;
    }
}

// Nothing is in flight and the last attempt did not bring the answer: another one, or its error.
static void next_or_end(struct unary *u)
{
    struct rpc_client *c = u->client;
    int64_t at;
    if (retry_next(&u->plan, &u->end, c, u->spec.deadline_us, time_mono_us(), &at)) {
        wait_for_retry(u, at);
        return;
    }
    struct to_do d = {.run = false};
    pthread_mutex_lock(&c->lock);
    bool first = !u->is_over;
    if (first)
        finish(u, false, &d);
    pthread_mutex_unlock(&c->lock);
    if (first)
        finished(u, &d);
}

static void on_event(struct attempt *s, unsigned events)
{
    struct unary *u = s->ud;
    struct rpc_client *c = u->client;
    struct attempt_end e;
    struct to_do d = {.run = false};
    if (!(events & FLOW_ENDED))
        return;
    attempt_get_end(s, &e);
    int64_t now = time_mono_us();
    pthread_mutex_lock(&c->lock);
    client_result_locked(s, &e, now);
    untrack(u, s);
    bool dropped = u->is_over, other = u->n_open > 0, unlisted = false;
    bool answer = !dropped && !retry_is_failure(&e);
    struct attempt *old = NULL;
    if (!dropped) {
        old = u->last; // of a try that failed before
        u->last = s;
        u->end = e;
        u->avoid = e.endpoint;
    }
    u->is_left = other;
    if (answer)
        finish(u, true, &d);
    else if (!dropped && !other)
        unlisted = unlist(u); // no hedge of what is not in flight
    pthread_mutex_unlock(&c->lock);
    attempt_unref(dropped ? s : old);
    if (dropped)
        mem_free(e.reply);
    else if (answer)
        finished(u, &d);
    else if (!other)
        next_or_end(u);
    if (unlisted)
        unary_unref(u);
    unary_unref(u);
}

// False: it is over, or what was to be hedged has ended, and whoever saw that has taken over.
static bool track(struct unary *u, struct attempt *s, bool is_hedge)
{
    struct rpc_client *c = u->client;
    pthread_mutex_lock(&c->lock);
    bool ok = !u->is_over && (!is_hedge || u->n_open == 1);
    for (size_t i = 0; ok && i < N_TRIES; i++) {
        if (u->tries[i])
            continue;
        u->tries[i] = s; // the reference goes to on_event()
        break;
    }
    u->n_open += ok;
    u->plan.n_tried += ok;
    s->nth = u->plan.n_tried;
    pthread_mutex_unlock(&c->lock);
    return ok;
}

// It is on its way, or even back.
static void started(struct unary *u, struct attempt *s, bool may_hedge)
{
    struct rpc_client *c = u->client;
    int64_t due = 0;
    pthread_mutex_lock(&c->lock);
    s->is_started = true;
    bool cancel = s->cancel_wanted;
    if (may_hedge && !u->is_over && u->n_open == 1 && u->tries[0] == s) {
        due = s->started_us + u->plan.hedge_us;
        wait_listed(u, FOR_HEDGE, due);
    }
    pthread_mutex_unlock(&c->lock);
    if (cancel)
        attempt_cancel(s);
    if (due)
        clock_wake_at(c->clock, due);
}

// False: it could not be started for want of a connection.
static bool start_try(struct unary *u, bool is_hedge)
{
    struct rpc_client *c = u->client;
    struct attempt *s = attempt_new(c, &u->spec);
    if (!s)
        return false;
    s->on_event = on_event;
    s->ud = u;
    unary_ref(u);
    attempt_ref(s); // ours, while on_event() may already give up the other
    if (!track(u, s, is_hedge)) {
        attempt_unref(s);
        attempt_unref(s);
        unary_unref(u);
        return true; // nothing is to be done
    }
    bool ok = attempt_start_avoiding(s, &u->spec, u->avoid, is_hedge);
    if (ok) {
        started(u, s, !is_hedge && u->plan.hedge_us > 0);
    } else {
        pthread_mutex_lock(&c->lock);
        untrack(u, s);
        u->plan.n_tried--;
        pthread_mutex_unlock(&c->lock);
        attempt_unref(s);
        unary_unref(u);
    }
    attempt_unref(s);
    return ok;
}

static void too_late(struct unary *u)
{
    struct err err = ERR_INIT;
    pthread_mutex_lock(&u->client->lock);
    struct attempt *last = u->last ? attempt_ref(u->last) : NULL;
    pthread_mutex_unlock(&u->client->lock);
    if (last) {
        (void)err_from_status(&err, &last->flow.status);
        err_wrap(&err, STATUS_DEADLINE_EXCEEDED, "deadline exceeded after %u attempts",
                 u->plan.n_tried);
    } else {
        pthread_mutex_lock(&u->client->lock);
        (void)endpoints_explain(u->client, time_mono_us(), &err);
        pthread_mutex_unlock(&u->client->lock);
        err_wrap(&err, STATUS_DEADLINE_EXCEEDED, "deadline exceeded before the call began");
    }
    attempt_unref(last);
    finish_with(u, &err);
}

static void try_now(struct unary *u)
{
    if (u->spec.deadline_us <= time_mono_us())
        too_late(u);
    else if (!start_try(u, false))
        no_connection(u);
}

// Its answer is late: ask somebody else too, if there is somebody and the budget allows.
static void hedge(struct unary *u)
{
    struct rpc_client *c = u->client;
    int64_t now = time_mono_us();
    pthread_mutex_lock(&c->lock);
    struct attempt *first = u->tries[0];
    const struct endpoint *at = first ? first->endpoint : NULL;
    bool go = !u->is_over && first && at && u->plan.n_tried - u->plan.n_free < u->plan.most &&
              endpoint_choose(c, now, at);
    u->avoid = go ? at : u->avoid;
    pthread_mutex_unlock(&c->lock);
    if (!go || !client_may_repeat(c, at, true, now) || start_try(u, true))
        return;
    // Nothing came of it; the first try may have failed meanwhile and left the rest to this one.
    pthread_mutex_lock(&c->lock);
    bool left = !u->is_over && u->is_left && u->n_open == 0;
    u->is_left = false;
    pthread_mutex_unlock(&c->lock);
    if (left)
        next_or_end(u);
}

// ---------------------------------------------------------------- clock thread, closing, cancel

void unary_tick(struct rpc_client *c, int64_t now_us, int64_t *next_us)
{
    pthread_mutex_lock(&c->lock);
    bool live = !list_is_empty(&c->waiting) && endpoints_any_usable(c, now_us);
    list_for_each_safe(it, tmp, &c->waiting)
    {
        struct unary *u = list_entry(it, struct unary, node);
        if (u->due_us <= now_us || (u->waits == FOR_CONN && live)) {
            list_remove(&u->node);
            list_push_back(&c->due, &u->node);
        } else if (u->due_us < *next_us) {
            *next_us = u->due_us;
        }
    }
    while (!list_is_empty(&c->due)) {
        struct unary *u = list_entry(c->due.next, struct unary, node);
        enum wait waited = u->waits;
        unlist(u);
        pthread_mutex_unlock(&c->lock);
        if (waited == FOR_HEDGE)
            hedge(u);
        else
            try_now(u);
        unary_unref(u);
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

void unary_see_waiting(struct rpc_client *c, int64_t now_us, struct call_list *calls)
{
    pthread_mutex_lock(&c->lock);
    list_for_each(it, &c->waiting)
    {
        const struct unary *u = list_entry(it, struct unary, node);
        if (u->waits == FOR_HEDGE) // it is in flight
            continue;
        struct rpc_client_call_info *i = call_list_add(calls);
        if (!i)
            break;
        bool endless = u->spec.deadline_us == TIME_NEVER;
        *i = (struct rpc_client_call_info){.method = u->spec.m->name,
                                           .age_ms = (now_us - u->begun_us) / 1000,
                                           .deadline_ms =
                                               endless ? -1 : time_left_ms(u->spec.deadline_us),
                                           .attempts = u->plan.n_tried};
        if (u->spec.trace)
            i->trace = *u->spec.trace;
    }
    pthread_mutex_unlock(&c->lock);
}

void unary_fail_waiting(struct rpc_client *c)
{
    struct err err = ERR_INIT;
    err_set(&err, STATUS_CANCELLED, "the client is closing");
    for (;;) {
        pthread_mutex_lock(&c->lock);
        struct list *it = c->waiting.next != &c->waiting ? c->waiting.next : c->due.next;
        struct unary *u = it != &c->due ? list_entry(it, struct unary, node) : NULL;
        bool in_flight = u && u->n_open > 0;
        if (u)
            unlist(u);
        pthread_mutex_unlock(&c->lock);
        if (!u)
            return;
        if (!in_flight) // else its attempt is cancelled with its connection
            finish_with(u, &err);
        unary_unref(u);
    }
}

static void on_cancel(void *ud)
{
    struct unary *u = ud;
    struct rpc_client *c = u->client;
    struct attempt *tries[N_TRIES] = {NULL};
    struct err err = ERR_INIT;
    pthread_mutex_lock(&c->lock);
    u->is_cancelled = true;
    bool now = u->is_armed && !u->is_over;
    bool waits = now && u->n_open == 0;
    for (size_t i = 0; now && i < N_TRIES; i++) {
        struct attempt *s = u->tries[i];
        if (!s)
            continue;
        s->cancel_wanted = true;
        tries[i] = s->is_started ? attempt_ref(s) : NULL;
    }
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < N_TRIES; i++) {
        if (tries[i])
            attempt_cancel(tries[i]);
        attempt_unref(tries[i]);
    }
    if (waits) {
        err_set(&err, STATUS_CANCELLED, "cancelled");
        finish_with(u, &err);
    }
}

// From here on its callers' cancellation ends it.
static void arm(struct unary *u)
{
    struct rpc_client *c = u->client;
    if (!u->spec.cancel[0] && !u->spec.cancel[1])
        return;
    unary_ref(u); // it may end before we are done
    for (size_t i = 0; i < N_ELEMENTS(u->hook); i++) {
        if (u->spec.cancel[i])
            u->hook[i] = cancel_hook(u->spec.cancel[i], on_cancel, u);
    }
    pthread_mutex_lock(&c->lock);
    u->is_armed = true;
    bool cancelled = u->is_cancelled;
    pthread_mutex_unlock(&c->lock);
    if (cancelled)
        on_cancel(u);
    unary_unref(u);
}

// ---------------------------------------------------------------- new calls

// A call that enters the client; what spec borrows is copied. message: packed here if spec has no
// request yet.
static struct unary *unary_new(struct rpc_client *c, const struct call_spec *spec,
                               const struct rpc_opts *o, const ProtobufCMessage *message)
{
    struct unary *u = mem_alloc_unset(sizeof *u + call_spec_room(spec) + spec->req_len);
    if (!u)
        return NULL;
    memset(u, 0, sizeof *u);
    if (!client_enter(c)) {
        mem_free(u);
        return NULL;
    }
    u->refs = 1;
    u->client = c;
    u->spec = *spec;
    char *at = call_spec_keep(&u->spec, u->data);
    if (spec->req)
        memcpy(at, spec->req, spec->req_len); // packed by a caller that waits
    else
        protobuf_c_message_pack(message, (uint8_t *)at);
    u->spec.req = at;
    u->spec.req_stays = true; // its attempts hold a reference while they send
    for (size_t i = 0; i < N_ELEMENTS(spec->cancel); i++) {
        if (spec->cancel[i])
            cancel_ref(spec->cancel[i]);
    }
    list_init(&u->node);
    u->ret_retry_after_ms = o ? o->ret_retry_after_ms : NULL;
    u->ret_details = o ? o->ret_details : NULL;
    u->is_inline = o && o->done_inline;
    u->begun_us = time_mono_us();
    u->connect_until_us = client_connect_deadline(c, spec->deadline_us);
    return u;
}

void rpc_unary_async(struct rpc_client *c, const struct rpc_method *m, const struct rpc_opts *o,
                     const ProtobufCMessage *req, rpc_done_fn done, void *ud)
{
    struct err err = ERR_INIT;
    struct call_spec spec;
    call_spec_init(&spec, m, o);
    spec.req_len = protobuf_c_message_get_packed_size(req);
    enum status s = call_spec_check(&spec, &err);
    struct unary *u = s == STATUS_OK ? unary_new(c, &spec, o, req) : NULL;
    if (!u) { // nothing to remember it in: the answer comes at once
        if (s == STATUS_OK)
            s = err_set(&err, STATUS_CANCELLED, "the client is closing or out of memory");
        if (o && o->ret_details)
            *o->ret_details = (struct rpc_details){.reason = ""};
        done(ud, s, NULL, &err);
        return;
    }
    u->done = done;
    u->ud = ud;
    retry_init(&u->plan, m, o);
    unary_ref(u);
    arm(u);
    try_now(u);
    unary_unref(u);
}

// ---------------------------------------------------------------- callers that wait

// Goes on where the first attempt stopped; at_us: when to try again, 0 = now.
static enum status wait_unary(struct rpc_client *c, const struct call_spec *spec,
                              const struct rpc_opts *o, const struct retry_plan *plan,
                              const struct endpoint *avoid, int64_t at_us, ProtobufCMessage **ret,
                              struct err *err)
{
    struct unary *u = unary_new(c, spec, o, NULL);
    if (!u)
        return err_set(err, STATUS_CANCELLED, "the client is closing or out of memory");
    u->plan = *plan;
    u->avoid = avoid;
    pthread_cond_init(&u->cond, NULL);
    arm(u);
    if (at_us)
        wait_for_retry(u, at_us);
    else
        try_now(u);
    pthread_mutex_lock(&c->lock);
    while (!u->is_told)
        pthread_cond_wait(&u->cond, &c->lock);
    pthread_mutex_unlock(&c->lock);
    enum status s = unary_answer(u, ret, err);
    unary_unref(u);
    return s;
}

// Called with the connection's lock held: wait until the call has ended.
static void wait_end(struct attempt *s)
{
    while (!s->flow.ended) {
        if (!flow_wait(&s->flow, s->deadline_us))
            flow_abort(&s->flow, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
    }
}

// The first attempt, on the caller's thread. False: there is more to do, at *ret_at_us.
static bool try_here(struct rpc_client *c, const struct call_spec *spec, const struct rpc_opts *o,
                     struct retry_plan *plan, const struct endpoint **ret_avoid, int64_t *ret_at_us,
                     ProtobufCMessage **ret, enum status *ret_status, struct err *err)
{
    struct attempt *s = attempt_new(c, spec);
    struct attempt_end e = {.code = STATUS_OK};
    *ret_at_us = 0;
    *ret_avoid = NULL;
    if (!s) {
        *ret_status = err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", spec->m->name);
        return true;
    }
    if (!attempt_start(s, spec)) {
        attempt_unref(s);
        return false;
    }
    s->nth = ++plan->n_tried;
    attempt_hook(s, spec);
    conn_lock(s->flow.conn);
    wait_end(s);
    conn_unlock(s->flow.conn);
    attempt_get_end(s, &e);
    client_result(s, &e);
    bool over = !retry_is_failure(&e) ||
                !retry_next(plan, &e, c, spec->deadline_us, time_mono_us(), ret_at_us);
    if (over) {
        *ret_status = read_answer(s, &e, ret, err);
        tell_details(s, &e, o ? o->ret_retry_after_ms : NULL, o ? o->ret_details : NULL);
    }
    *ret_avoid = e.endpoint;
    mem_free(e.reply);
    attempt_unhook(s);
    attempt_unref(s);
    return over;
}

enum status rpc_unary(struct rpc_client *c, const struct rpc_method *m, const struct rpc_opts *o,
                      const ProtobufCMessage *req, ProtobufCMessage **ret, struct err *err)
{
    uint8_t stack[STACK_MESSAGE];
    AUTO(mem_free_p) uint8_t *heap = NULL;
    struct call_spec spec;
    if (o && o->ret_details)
        *o->ret_details = (struct rpc_details){.reason = ""};
    call_spec_init(&spec, m, o);
    spec.req_len = protobuf_c_message_get_packed_size(req);
    enum status s = call_spec_check(&spec, err);
    if (s != STATUS_OK)
        return s;
    if (spec.req_len > sizeof stack && !(heap = mem_alloc_unset(spec.req_len)))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", m->name);
    uint8_t *packed = heap ? heap : stack;
    protobuf_c_message_pack(req, packed);
    spec.req = packed;
    spec.req_stays = true; // until the attempt has ended, and with it what it has queued

    struct retry_plan plan;
    const struct endpoint *avoid = NULL;
    int64_t at = 0;
    retry_init(&plan, m, o);
    if (plan.hedge_us == 0 && try_here(c, &spec, o, &plan, &avoid, &at, ret, &s, err))
        return s;
    return wait_unary(c, &spec, o, &plan, avoid, at, ret, err);
}
