// A connection: its life, its lock, its clock. conn_send.c builds records, conn_receive.c takes
// them apart, flow.c keeps what each call has queued.
//
// Telling owners. Under the lock only flags are set; waiters are woken and owners' callbacks run
// from settle(), one flow at a time, with the lock released. While they run the connection is
// corked, so that replies made there share a record.
#include <errno.h>
#include <stdio.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/conn_internal.h"

#define UNLIMITED INT64_MAX

// ---------------------------------------------------------------- life

struct conn *conn_new(const struct conn_opts *o)
{
    struct conn *c = mem_alloc(sizeof *c);
    unsigned n_buckets = o->is_server && o->is_client_link ? 32 : 512;
    struct flow **hash = mem_array(n_buckets, sizeof(struct flow *));
    if (!c || !hash) {
        mem_free(c);
        mem_free(hash);
        chan_free(o->chan);
        return NULL;
    }
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_init(&c->inbox_lock, NULL);
    c->refs = 1;
    c->o = *o;
    c->ud = o->ud;
    c->chan = o->chan;
    c->born_us = c->now_us = c->last_rx_us = time_mono_us();
    buf_init(&c->control, CONN_CALLS_MAX);
    buf_init(&c->calls, 16 * CONN_CALLS_MAX);
    list_init(&c->ready_urgent);
    list_init(&c->ready_bulk);
    list_init(&c->flows);
    list_init(&c->assembling);
    list_init(&c->link);
    list_init(&c->crowd);
    c->hash = hash;
    c->hash_mask = n_buckets - 1;
    c->post_tail = &c->post_head;
    c->window = CONN_WINDOW_START;
    c->tx_credit = conn_has_tx_credit(c) ? CONN_CLIENT_CREDIT : UNLIMITED;
    c->rx_credit = conn_has_rx_credit(c) ? CONN_CLIENT_CREDIT : UNLIMITED;
    if (c->o.handshake_us == 0)
        c->o.handshake_us = CONN_HANDSHAKE_US;
    c->next_tick_us = c->born_us + c->o.handshake_us;
    return c;
}

struct conn *conn_ref(struct conn *c)
{
    atomic_fetch_add(&c->refs, 1);
    return c;
}

void conn_unref(struct conn *c)
{
    if (!c || atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    for (; c->inbox_len; c->inbox_len--, c->inbox_head = (c->inbox_head + 1) % CONN_INBOX_MAX)
        c->o.ops->msg_free(c->inbox[c->inbox_head]);
    if (c->o.owner->free)
        c->o.owner->free(c);
    chan_free(c->chan);
    buf_done(&c->control);
    buf_done(&c->calls);
    mem_free(c->hash);
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->inbox_lock);
    mem_free(c);
}

void conn_want_tick(struct conn *c, int64_t at_us)
{
    if (at_us >= c->next_tick_us || c->dead)
        return;
    c->next_tick_us = at_us;
    c->o.owner->wake(c, at_us);
}
// ---------------------------------------------------------------- lock, events

void conn_lock(struct conn *c)
{
    pthread_mutex_lock(&c->lock);
}

struct conn_teller { // on its thread's stack
    pthread_t thread;
    struct conn_teller *next;
};

// From within an owner's callback: what it caused is told, and sent, once it has returned.
static bool is_telling(const struct conn *c)
{
    pthread_t self = pthread_self();
    const struct conn_teller *t = c->tellers;
    while (t && !pthread_equal(t->thread, self))
        t = t->next;
    return t != NULL;
}

static void tell(struct conn *c, struct flow *f, unsigned events)
{
    struct conn_teller me = {.thread = pthread_self(), .next = c->tellers}, **at = &c->tellers;
    bool is_awaited = f->n_waiting > 0;
    c->tellers = &me;
    c->corked++;
    pthread_mutex_unlock(&c->lock);
    if (is_awaited) // now, or who wakes would only wait for the lock
        pthread_cond_broadcast(&f->cond);
    if (events & ~FLOW_DROP)
        f->ops->event(f, events & ~FLOW_DROP);
    if (events & FLOW_DROP)
        f->ops->unref(f);
    f->ops->unref(f);
    pthread_mutex_lock(&c->lock);
    c->corked--;
    while (*at != &me)
        at = &(*at)->next;
    *at = me.next;
}

// Tell owners, then send. True when the lock was released in between.
static bool settle(struct conn *c)
{
    bool released = false;
    for (;;) {
        struct flow *f = c->post_head;
        if (!f) {
            conn_flush(c);
            if (!c->post_head)
                return released;
            continue;
        }
        c->post_head = f->post_next;
        if (!c->post_head)
            c->post_tail = &c->post_head;
        unsigned events = f->events;
        f->events = 0;
        f->is_posted = false;
        released = true;
        tell(c, f, events);
    }
}

void conn_unlock(struct conn *c)
{
    if (c->tellers && is_telling(c)) {
        pthread_mutex_unlock(&c->lock);
        return;
    }
    // Unreferencing the last flow inside settle() must not free c.
    if (c->post_head || !list_is_empty(&c->ready_bulk) || !list_is_empty(&c->ready_urgent)) {
        conn_ref(c);
        settle(c);
        pthread_mutex_unlock(&c->lock);
        conn_unref(c);
        return;
    }
    conn_flush(c);
    if (c->post_head) {
        conn_unlock(c);
        return;
    }
    pthread_mutex_unlock(&c->lock);
}

bool flow_wait(struct flow *f, int64_t deadline_us)
{
    struct conn *c = f->conn;
    f->n_waiting++;
    bool in_time = true;
    if (!settle(c)) {
        if (deadline_us == TIME_NEVER) {
            pthread_cond_wait(&f->cond, &c->lock);
        } else {
            struct timespec ts = {.tv_sec = deadline_us / 1000000,
                                  .tv_nsec = deadline_us % 1000000 * 1000};
            in_time = pthread_cond_timedwait(&f->cond, &c->lock, &ts) != ETIMEDOUT;
        }
    }
    f->n_waiting--;
    return in_time;
}

// ---------------------------------------------------------------- the end

void conn_kill(struct conn *c, const char *why)
{
    conn_end(c, STATUS_UNAVAILABLE, why);
}

void conn_end(struct conn *c, enum status code, const char *why)
{
    if (c->dead)
        return;
    c->dead = true;
    c->ready = false;
    str_copy(c->why, sizeof c->why, why);
    c->o.ops->drop(c->o.t, c->o.pipe);
    list_for_each_safe(it, tmp, &c->flows)
    {
        struct flow *f = list_entry(it, struct flow, all);
        f->status = (struct frame_status){.code = code};
        snprintf(f->status.msg, sizeof f->status.msg, "connection lost: %s", why);
        f->unsent = f->open_pos > c->calls_taken;
        flow_post(f, FLOW_ENDED);
        flow_remove(f);
    }
    buf_reset(&c->control);
    buf_reset(&c->calls);
    c->control_off = c->calls_off = 0;
    c->o.owner->dead(c);
}

void conn_goaway(struct conn *c)
{
    if (c->draining || c->dead)
        return;
    c->draining = true;
    frame_put(&c->control, FRAME_GOAWAY, 0, 0, NULL, 0);
    frame_put(&c->control, FRAME_PING, 0, 0, NULL, 0); // its ACK says that they know
}

bool conn_all_acked(const struct conn *c)
{
    return c->dead || !c->ready ||
           (c->tx_records == c->tx_acked && !conn_pending(&c->control, c->control_off) &&
            !conn_pending(&c->calls, c->calls_off));
}

void conn_refuse(struct conn *c, uint32_t id, enum status code, const char *msg)
{
    struct frame_status s = {.code = code};
    str_copy(s.msg, sizeof s.msg, msg);
    conn_refuse_with(c, id, &s);
}

void conn_refuse_with(struct conn *c, uint32_t id, const struct frame_status *s)
{
    if (conn_pending(&c->calls, c->calls_off) > CONN_CALLS_MAX) {
        conn_kill(c, "the peer does not take its answers");
        return;
    }
    frame_put_status(&c->calls, id, s);
    c->calls_n_status++;
    c->n_calls++; // like any other, until they know
}

void conn_call_closed(struct conn *c)
{
    if (c->n_calls && --c->n_calls == 0 && c->o.owner->idle)
        c->o.owner->idle(c);
}

// ---------------------------------------------------------------- time

static void expire(struct conn *c, int64_t now_us, int64_t *next)
{
    list_for_each_safe(it, tmp, &c->flows)
    {
        struct flow *f = list_entry(it, struct flow, all);
        if (f->deadline_us > now_us) {
            *next = f->deadline_us < *next ? f->deadline_us : *next;
            continue;
        }
        f->deadline_us = TIME_NEVER;
        if (!c->o.is_server) {
            flow_abort(f, STATUS_DEADLINE_EXCEEDED, "deadline exceeded");
            continue;
        }
        if (f->tx_status_pending)
            continue;
        f->status = (struct frame_status){.code = STATUS_DEADLINE_EXCEEDED};
        str_copy(f->status.msg, sizeof f->status.msg, "deadline exceeded");
        flow_post(f, FLOW_ENDED);
    }
}

void conn_end_at(struct conn *c, int64_t at_us, const char *why)
{
    c->end_at_us = at_us;
    c->end_why = why;
    if (at_us)
        conn_want_tick(c, at_us);
}

int64_t conn_tick(struct conn *c, int64_t now_us)
{
    conn_lock(c);
    int64_t next = TIME_NEVER;
    if (!c->dead && now_us >= c->next_tick_us) {
        c->now_us = now_us;
        bool half_open = !c->ready || !c->confirmed;
        int64_t silent = now_us - c->last_rx_us;
        int64_t oldest =
            conn_n_unacked(c) ? c->sent[c->tx_acked % CONN_UNACKED_CONTROL_MAX].at_us : now_us;
        if (half_open && now_us - c->born_us >= c->o.handshake_us)
            conn_kill(c, "timed out in the handshake");
        else if (!half_open && (silent >= 2 * c->o.ping_us || now_us - oldest >= 2 * c->o.ping_us))
            conn_kill(c, "the peer is silent");
        else if (c->end_at_us && now_us >= c->end_at_us)
            conn_kill(c, c->end_why);
        if (!c->dead && !half_open && silent >= c->o.ping_us && !c->pinged) {
            frame_put(&c->control, FRAME_PING, 0, 0, NULL, 0);
            c->pinged = true;
        }
        next = half_open ? c->born_us + c->o.handshake_us
                         : c->last_rx_us + (c->pinged ? 2 : 1) * c->o.ping_us;
        if (conn_n_unacked(c) && !half_open && oldest + 2 * c->o.ping_us < next)
            next = oldest + 2 * c->o.ping_us;
        expire(c, now_us, &next);
        if (c->end_at_us && c->end_at_us < next)
            next = c->end_at_us;
        c->next_tick_us = c->dead ? TIME_NEVER : next;
    }
    next = c->next_tick_us;
    if (c->dead)
        next = TIME_NEVER;
    conn_unlock(c);
    return next;
}
