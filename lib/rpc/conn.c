// A connection.
//
// Sending. Frames wait unsealed in three places: `control` (window updates and the like), `calls`
// (opens, statuses, small messages; kept in order) and each flow's queue of messages. flush()
// builds as many records as the peer's window and the transport's slots allow, each from everything
// that is ready at that moment: control, then calls, then unary flows, then streams in turn. It
// runs when the lock is released, so whatever one I/O event caused leaves in one record; there is
// no timer. On the dialling side a small record waits while another is still being written, which
// gathers the calls of many threads the same way.
//
// Acknowledgements say "taken from the transport and authenticated". They bound what is inside the
// transport (its queues drop silently), and their delay steers the byte window. Consumption is
// WINDOW's business: every DATA byte spends credit of its flow, and of the connection on a client
// link.
//
// Telling owners. Under the lock only flags are set and waiters woken; owners' callbacks run from
// settle(), one flow at a time, with the lock released. While they run the connection is corked, so
// that replies made there share a record.
#include "rpc/conn.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/rpc.h"

#define RECORD_HEAD (CHAN_RECORD_OVERHEAD - 16) // room before the plaintext
#define RECORD_MIXED (64U << 10)                // record size while several calls are active
#define MIXED_US 100000
#define WINDOW_MIN (256U << 10)
#define WINDOW_MAX (8U << 20)
#define ACK_RECORDS (CONN_UNACKED_MAX / 4)
#define ACK_BYTES (WINDOW_MIN / 4)
#define QUANTUM (16U << 10) // of one flow before the next has its turn
#define SMALL_MAX (16U << 10)
#define CALLS_HIGH (1U << 20)
#define CALLS_MAX (4U << 20)
#define COALESCE_BYTES (32U << 10)
#define TX_CREDIT_MAX (64LL << 20)
#define HALF_OPEN_US 5000000
#define UNLIMITED INT64_MAX
#define FLOW_DROP (1U << 31) // internal event: the connection's reference of the flow goes

static bool has_conn_tx_credit(const struct conn *c)
{
    return c->o.is_client_link && !c->o.is_server;
}
static bool has_conn_rx_credit(const struct conn *c)
{
    return c->o.is_client_link && c->o.is_server;
}
static size_t pending(const struct buf *b, size_t off)
{
    return b->len - off;
}
static unsigned n_unacked(const struct conn *c)
{
    return (unsigned)(c->tx_records - c->tx_acked);
}

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
    buf_init(&c->control, CALLS_MAX);
    buf_init(&c->calls, 16 * CALLS_MAX);
    list_init(&c->ready_urgent);
    list_init(&c->ready_bulk);
    list_init(&c->flows);
    list_init(&c->link);
    c->hash = hash;
    c->hash_mask = n_buckets - 1;
    c->post_tail = &c->post_head;
    c->window = WINDOW_MIN;
    c->tx_credit = has_conn_tx_credit(c) ? CONN_CLIENT_CREDIT : UNLIMITED;
    c->rx_credit = has_conn_rx_credit(c) ? CONN_CLIENT_CREDIT : UNLIMITED;
    c->next_tick_us = c->born_us + HALF_OPEN_US;
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

// ---------------------------------------------------------------- flows

void flow_init(struct flow *f, const struct flow_ops *ops)
{
    *f = (struct flow){.ops = ops,
                       .deadline_us = TIME_NEVER,
                       .tx_credit = CONN_STREAM_CREDIT,
                       .rx_credit = CONN_STREAM_CREDIT,
                       .rx_window = CONN_STREAM_CREDIT};
    f->tx_tail = &f->tx_head;
    f->rx_tail = &f->rx_head;
    list_init(&f->all);
    list_init(&f->ready);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&f->cond, &attr);
    pthread_condattr_destroy(&attr);
}

static void drop_tx(struct flow *f)
{
    while (f->tx_head) {
        struct chunk *next = f->tx_head->next;
        mem_free(f->tx_head);
        f->tx_head = next;
    }
    f->tx_tail = &f->tx_head;
    if (f->conn)
        f->conn->tx_queued -= f->tx_queued;
    f->tx_queued = 0;
    f->tx_half_pending = f->tx_status_pending = false;
}

static void drop_rx(struct flow *f)
{
    while (f->rx_head) {
        struct rx_msg *next = f->rx_head->next;
        mem_free(f->rx_head);
        f->rx_head = next;
    }
    f->rx_tail = &f->rx_head;
    mem_free(f->part);
    f->part = NULL;
    f->part_len = f->part_cap = 0;
}

void flow_done(struct flow *f)
{
    assert(!f->is_added);
    drop_rx(f);
    while (f->tx_head) {
        struct chunk *next = f->tx_head->next;
        mem_free(f->tx_head);
        f->tx_head = next;
    }
    pthread_cond_destroy(&f->cond);
    conn_unref(f->conn);
}

void flow_post(struct flow *f, unsigned events)
{
    struct conn *c = f->conn;
    f->events |= events;
    if (f->n_waiting)
        pthread_cond_broadcast(&f->cond);
    if (f->is_posted)
        return;
    f->is_posted = true;
    f->ops->ref(f);
    f->post_next = NULL;
    *c->post_tail = f;
    c->post_tail = &f->post_next;
}

static struct flow *flow_find(const struct conn *c, uint32_t id)
{
    struct flow *f = c->hash[id & c->hash_mask];
    while (f && f->id != id)
        f = f->hash_next;
    return f;
}

bool flow_add(struct conn *c, struct flow *f, uint32_t id)
{
    if (c->dead)
        return false;
    if (id == 0)
        id = ++c->next_id;
    if (id == 0 || flow_find(c, id))
        return false;
    f->conn = conn_ref(c);
    f->id = id;
    struct flow **at = &c->hash[id & c->hash_mask];
    f->hash_next = *at;
    *at = f;
    list_push_back(&c->flows, &f->all);
    c->n_flows++;
    f->is_added = true;
    f->ops->ref(f);
    conn_want_tick(c, f->deadline_us);
    return true;
}

static void give_conn_credit(struct conn *c, size_t cost)
{
    if (!has_conn_rx_credit(c))
        return;
    c->rx_grant += (int64_t)cost;
    if (c->rx_grant < CONN_CLIENT_CREDIT / 4)
        return;
    frame_put_number(&c->control, FRAME_WINDOW, 0, (uint64_t)c->rx_grant);
    c->rx_credit += c->rx_grant;
    c->rx_grant = 0;
}

// The flow is over for the peer: forget its id. Its owner keeps reading what has arrived on the
// dialling side; a server drops it.
static void flow_remove(struct flow *f)
{
    struct conn *c = f->conn;
    if (!f->is_added)
        return;
    struct flow **at = &c->hash[f->id & c->hash_mask];
    while (*at != f)
        at = &(*at)->hash_next;
    *at = f->hash_next;
    list_remove(&f->all);
    list_remove(&f->ready);
    f->is_ready = f->is_added = false;
    f->ended = true;
    c->n_flows--;
    if (c->last_flow == f)
        c->last_flow = NULL;
    drop_tx(f);
    c->rx_held -= f->rx_held;
    if (c->o.is_server) {
        size_t owed = f->part_cost;
        for (struct rx_msg *m = f->rx_head; m; m = m->next)
            owed += m->cost;
        drop_rx(f);
        give_conn_credit(c, owed);
    }
    f->rx_held = 0;
    flow_post(f, FLOW_DROP);
}

// A second flow within the last moments makes records small, so that none waits behind much.
static void touch(struct conn *c, const struct flow *f)
{
    if (c->last_flow != f && c->last_flow)
        c->mixed_until_us = c->now_us + MIXED_US;
    c->last_flow = f;
}

static bool tx_possible(const struct flow *f)
{
    if (!f->tx_head)
        return f->tx_half_pending || f->tx_status_pending;
    return f->tx_credit > FRAME_DATA_COST ||
           (f->tx_head->n == f->tx_head->off && f->tx_credit >= FRAME_DATA_COST);
}

static void make_ready(struct flow *f)
{
    struct conn *c = f->conn;
    if (f->is_ready || !f->is_added || !tx_possible(f))
        return;
    f->is_ready = true;
    list_push_back(f->urgent ? &c->ready_urgent : &c->ready_bulk, &f->ready);
}

struct chunk *chunk_new(size_t n)
{
    struct chunk *c = mem_alloc(sizeof *c + n);
    if (c)
        c->n = n;
    return c;
}

void flow_push(struct flow *f, struct chunk *ch)
{
    if (!f->is_added || f->tx_half || f->tx_half_pending || f->tx_status_pending) {
        mem_free(ch);
        return;
    }
    ch->next = NULL;
    *f->tx_tail = ch;
    f->tx_tail = &ch->next;
    f->tx_queued += ch->n;
    f->conn->tx_queued += ch->n;
    f->tx_half_pending |= ch->half;
    make_ready(f);
}

bool flow_push_small(struct flow *f, const void *p, size_t n, bool half)
{
    struct conn *c = f->conn;
    int64_t cost = (int64_t)n + FRAME_DATA_COST;
    if (f->tx_head || n > SMALL_MAX || cost > f->tx_credit || cost > c->tx_credit || f->tx_half ||
        pending(&c->calls, c->calls_off) > CALLS_HIGH)
        return false;
    if (!f->is_added)
        return true;
    frame_put(&c->calls, FRAME_DATA, FRAME_LAST | (half ? FRAME_HALF : 0U), f->id, p, n);
    f->tx_credit -= cost;
    if (has_conn_tx_credit(c))
        c->tx_credit -= cost;
    f->tx_half |= half;
    touch(c, f);
    return true;
}

void flow_half_close(struct flow *f)
{
    if (!f->is_added || f->tx_half || f->tx_half_pending)
        return;
    f->tx_half_pending = true;
    make_ready(f);
}

bool flow_can_write(const struct flow *f)
{
    int64_t most = f->tx_credit < CONN_STREAM_CREDIT_MAX ? f->tx_credit : CONN_STREAM_CREDIT_MAX;
    return (int64_t)f->tx_queued + FRAME_DATA_COST < most;
}

static void put_status(struct flow *f)
{
    struct conn *c = f->conn;
    frame_put_status(&c->calls, f->id, &f->status);
    c->calls_n_status++;
    flow_remove(f);
}

void flow_finish(struct flow *f, const struct frame_status *s)
{
    if (!f->is_added) {
        conn_call_closed(f->conn);
        return;
    }
    f->status = *s;
    if (s->code != STATUS_OK)
        drop_tx(f); // an error overtakes what no credit has come for
    if (f->tx_head) {
        f->tx_status_pending = true;
        return;
    }
    put_status(f);
}

void flow_abort(struct flow *f, enum status code, const char *msg)
{
    struct conn *c = f->conn;
    if (!f->is_added)
        return;
    // Behind its own OPEN if that has not left yet.
    bool unsent = pending(&c->calls, c->calls_off) > 0;
    frame_put(unsent ? &c->calls : &c->control, FRAME_CANCEL, 0, f->id, NULL, 0);
    f->status = (struct frame_status){.code = code};
    str_copy(f->status.msg, sizeof f->status.msg, msg);
    flow_post(f, FLOW_ENDED);
    flow_remove(f);
}

void flow_grant(struct flow *f, size_t cost)
{
    struct conn *c = f->conn;
    give_conn_credit(c, cost);
    if (!f->is_added || f->rx_half)
        return;
    f->rx_grant += (int64_t)cost;
    if (f->rx_grant < f->rx_window / 4)
        return;
    // A reader that keeps up gets a larger window, or distance would set the speed.
    if (!f->raw && f->rx_held == 0 && f->rx_window < CONN_STREAM_CREDIT_MAX) {
        f->rx_grant += f->rx_window;
        f->rx_window *= 2;
    }
    frame_put_number(&c->control, FRAME_WINDOW, f->id, (uint64_t)f->rx_grant);
    f->rx_credit += f->rx_grant;
    f->rx_grant = 0;
}

struct rx_msg *flow_take(struct flow *f)
{
    struct rx_msg *m = f->rx_head;
    if (!m)
        return NULL;
    f->rx_head = m->next;
    if (!f->rx_head)
        f->rx_tail = &f->rx_head;
    if (f->is_added) {
        size_t held = m->n + FRAME_DATA_COST;
        f->rx_held -= held;
        f->conn->rx_held -= held;
        if (!f->raw) {
            // A message being assembled behind this one is now next: without its credit back it
            // could never end.
            size_t behind = f->rx_head ? 0 : f->part_cost;
            f->part_cost -= behind;
            flow_grant(f, m->cost + behind);
        }
    }
    return m;
}

// ---------------------------------------------------------------- sending

static size_t record_limit(const struct conn *c)
{
    return c->now_us < c->mixed_until_us ? RECORD_MIXED : CHAN_MAX_RECORD;
}

static size_t ready_bytes(const struct list *l, size_t most)
{
    size_t n = 0;
    list_for_each(it, l)
    {
        const struct flow *f = list_entry(it, struct flow, ready);
        n += f->tx_queued + 64 + FRAME_HEAD_MAX * (f->tx_queued / 32 + 1);
        if (n >= most)
            return most;
    }
    return n;
}

static size_t take_run(struct buf *b, size_t *off, uint8_t *dst, size_t room)
{
    size_t n = frame_run(b->data + *off, b->len - *off, room);
    if (n)
        memcpy(dst, b->data + *off, n);
    *off += n;
    if (*off == b->len) {
        buf_reset(b);
        *off = 0;
    }
    return n;
}

// As much of one flow's queue as quantum, credit and room allow. Returns bytes written.
static size_t take_flow(struct conn *c, struct flow *f, uint8_t *dst, size_t room, size_t quantum)
{
    size_t out = 0, moved = 0;
    while (f->tx_head && moved < quantum && room - out > FRAME_HEAD_MAX) {
        struct chunk *ch = f->tx_head;
        int64_t credit = f->tx_credit < c->tx_credit ? f->tx_credit : c->tx_credit;
        size_t left = ch->n - ch->off, n = left;
        if (credit < FRAME_DATA_COST + (left != 0))
            break;
        if ((int64_t)n > credit - FRAME_DATA_COST)
            n = (size_t)(credit - FRAME_DATA_COST);
        if (n > room - out - FRAME_HEAD_MAX)
            n = room - out - FRAME_HEAD_MAX;
        if (n > quantum)
            n = quantum;
        bool end = n == left;
        bool half = end && !ch->next && f->tx_half_pending;
        unsigned flags = (end && ch->last ? FRAME_LAST : 0U) | (half ? FRAME_HALF : 0U);
        out += frame_head(dst + out, FRAME_DATA, flags, f->id, n);
        memcpy(dst + out, ch->data + ch->off, n);
        out += n;
        moved += n + FRAME_DATA_COST;
        ch->off += n;
        f->tx_queued -= n;
        c->tx_queued -= n;
        f->tx_credit -= (int64_t)n + FRAME_DATA_COST;
        if (has_conn_tx_credit(c))
            c->tx_credit -= (int64_t)n + FRAME_DATA_COST;
        if (half) {
            f->tx_half = true;
            f->tx_half_pending = false;
        }
        if (end) {
            f->tx_head = ch->next;
            if (!f->tx_head)
                f->tx_tail = &f->tx_head;
            f->tx_sealed += ch->n + FRAME_DATA_COST;
            mem_free(ch);
        }
    }
    return out;
}

static size_t take_ready(struct conn *c, struct list *l, uint8_t *dst, size_t room)
{
    size_t out = 0;
    while (!list_is_empty(l) && room - out > 2 * FRAME_HEAD_MAX) {
        struct flow *f = list_entry(l->next, struct flow, ready);
        bool alone = l->next == l->prev;
        list_remove(&f->ready);
        f->is_ready = false;
        size_t n = take_flow(c, f, dst + out, room - out, alone ? CHAN_MAX_RECORD : QUANTUM);
        out += n;
        if (n) {
            touch(c, f);
            flow_post(f, f->raw ? FLOW_SEALED | FLOW_WRITABLE : FLOW_WRITABLE);
        }
        if (!f->tx_head && f->tx_half_pending && room - out >= FRAME_HEAD_MAX) {
            out += frame_head(dst + out, FRAME_END, 0, f->id, 0);
            f->tx_half = true;
            f->tx_half_pending = false;
        }
        if (!f->tx_head && f->tx_status_pending && !f->tx_half_pending)
            put_status(f);
        if (f->tx_head && c->tx_credit <= FRAME_DATA_COST) { // all wait for the connection
            f->is_ready = true;
            list_push_front(l, &f->ready);
            break;
        }
        make_ready(f);
    }
    return out;
}

// Build, seal and hand over one record. only_control: the window is full.
static bool send_record(struct conn *c, bool only_control)
{
    bool flows_may = !only_control && c->tx_credit > FRAME_DATA_COST;
    size_t cap = record_limit(c) - CHAN_RECORD_OVERHEAD;
    size_t want = 32 + pending(&c->control, c->control_off);
    if (!only_control)
        want += pending(&c->calls, c->calls_off);
    if (flows_may && want < cap)
        want += ready_bytes(&c->ready_urgent, cap) + ready_bytes(&c->ready_bulk, cap);
    if (want > cap)
        want = cap;
    struct transport_msg *m = c->o.ops->msg_new(want + CHAN_RECORD_OVERHEAD);
    if (!m) {
        conn_kill(c, "out of memory");
        return false;
    }
    uint8_t *data = c->o.ops->msg_data(m), *p = data + RECORD_HEAD;
    size_t n = 0;
    if (c->rx_records != c->rx_acked) {
        struct buf ack;
        buf_init(&ack, 64);
        frame_put_number(&ack, FRAME_ACK, 0, c->rx_records);
        if (ack.failed) {
            buf_done(&ack);
            c->o.ops->msg_free(m);
            conn_kill(c, "out of memory");
            return false;
        }
        memcpy(p, ack.data, ack.len);
        n = ack.len;
        buf_done(&ack);
        c->rx_acked = c->rx_records;
        c->rx_unacked_bytes = 0;
        c->ack_now = false;
    }
    n += take_run(&c->control, &c->control_off, p + n, want - n);
    if (!only_control)
        n += take_run(&c->calls, &c->calls_off, p + n, want - n);
    if (flows_may && !pending(&c->calls, c->calls_off)) {
        n += take_ready(c, &c->ready_urgent, p + n, want - n);
        n += take_ready(c, &c->ready_bulk, p + n, want - n);
        n += take_run(&c->calls, &c->calls_off, p + n, want - n);
    }
    if (n == 0) {
        c->o.ops->msg_free(m);
        return false;
    }
    size_t size = chan_seal(c->chan, data, n, NULL);
    c->o.ops->msg_shorten(m, size);
    struct sent *s = &c->sent[c->tx_records++ % CONN_UNACKED_CONTROL_MAX];
    *s = (struct sent){.bytes = (uint32_t)size, .at_us = c->now_us};
    if (!pending(&c->calls, c->calls_off)) {
        s->n_status = c->calls_n_status;
        c->calls_n_status = 0;
    }
    c->unacked_bytes += size;
    c->bytes_out += size;
    c->last_send_us = c->now_us;
    c->slots_used += c->o.n_slots != 0;
    c->o.ops->send(c->o.t, c->o.pipe, m);
    return true;
}

static void flush(struct conn *c)
{
    if (c->corked || !c->ready)
        return;
    bool timed = false;
    while (!c->dead) {
        bool room =
            n_unacked(c) < CONN_UNACKED_MAX && (n_unacked(c) == 0 || c->unacked_bytes < c->window);
        bool ack = c->ack_now || c->rx_records - c->rx_acked >= ACK_RECORDS ||
                   c->rx_unacked_bytes >= ACK_BYTES;
        bool control = ack || pending(&c->control, c->control_off);
        bool calls = pending(&c->calls, c->calls_off) ||
                     (c->tx_credit > FRAME_DATA_COST &&
                      !(list_is_empty(&c->ready_urgent) && list_is_empty(&c->ready_bulk)));
        if (!(control || calls))
            return;
        if (!room) {
            c->window_limited |= n_unacked(c) < CONN_UNACKED_MAX;
            if (!control || n_unacked(c) >= CONN_UNACKED_CONTROL_MAX)
                return;
        }
        if (c->o.n_slots && c->slots_used) {
            size_t n = pending(&c->calls, c->calls_off) + c->tx_queued;
            if (c->slots_used >= c->o.n_slots || n < COALESCE_BYTES)
                return; // conn_slot_free() comes back here
        }
        if (!timed)
            c->now_us = time_mono_us();
        timed = true;
        if (c->control.failed || c->calls.failed) {
            conn_kill(c, "too much is waiting to be sent");
            return;
        }
        if (!send_record(c, !room))
            return;
    }
}

// ---------------------------------------------------------------- lock, events

void conn_lock(struct conn *c)
{
    pthread_mutex_lock(&c->lock);
}

// Tell owners, then send. True when the lock was released in between.
static bool settle(struct conn *c)
{
    bool released = false;
    for (;;) {
        struct flow *f = c->post_head;
        if (!f) {
            flush(c);
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
        c->corked++;
        pthread_mutex_unlock(&c->lock);
        if (events & ~FLOW_DROP)
            f->ops->event(f, events & ~FLOW_DROP);
        if (events & FLOW_DROP)
            f->ops->unref(f);
        f->ops->unref(f);
        pthread_mutex_lock(&c->lock);
        c->corked--;
    }
}

void conn_unlock(struct conn *c)
{
    // Unreferencing the last flow inside settle() must not free c.
    if (c->post_head || !list_is_empty(&c->ready_bulk) || !list_is_empty(&c->ready_urgent)) {
        conn_ref(c);
        settle(c);
        pthread_mutex_unlock(&c->lock);
        conn_unref(c);
        return;
    }
    flush(c);
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
           (c->tx_records == c->tx_acked && !pending(&c->control, c->control_off) &&
            !pending(&c->calls, c->calls_off));
}

void conn_refuse(struct conn *c, uint32_t id, enum status code, const char *msg)
{
    if (pending(&c->calls, c->calls_off) > CALLS_MAX) {
        conn_kill(c, "the peer does not take its answers");
        return;
    }
    struct frame_status s = {.code = code};
    str_copy(s.msg, sizeof s.msg, msg);
    frame_put_status(&c->calls, id, &s);
}

void conn_call_closed(struct conn *c)
{
    if (c->n_calls && --c->n_calls == 0 && c->o.owner->idle)
        c->o.owner->idle(c);
}

// ---------------------------------------------------------------- receiving

static void on_ack(struct conn *c, uint64_t n)
{
    if (n > c->tx_records) {
        conn_kill(c, "it acknowledges what was never sent");
        return;
    }
    size_t acked = 0;
    int64_t delay = -1;
    while (c->tx_acked < n) {
        struct sent *s = &c->sent[c->tx_acked++ % CONN_UNACKED_CONTROL_MAX];
        acked += s->bytes;
        delay = c->now_us - s->at_us;
        for (unsigned i = 0; i < s->n_status; i++)
            conn_call_closed(c);
    }
    if (delay < 0)
        return;
    c->unacked_bytes -= acked;
    if (c->min_ack_us == 0 || delay < c->min_ack_us)
        c->min_ack_us = delay > 0 ? delay : 1;
    if (c->window_limited && delay < 2 * c->min_ack_us)
        c->window = c->window + acked < WINDOW_MAX ? c->window + acked : WINDOW_MAX;
    else if (delay > 8 * c->min_ack_us + 20000)
        c->window = c->window / 2 > WINDOW_MIN ? c->window / 2 : WINDOW_MIN;
    c->window_limited = false;
    if (c->draining && conn_all_acked(c) && c->o.owner->idle)
        c->o.owner->idle(c);
}

static void on_window(struct conn *c, const struct frame *fr)
{
    uint64_t v;
    if (!frame_number(fr, &v) || v > (uint64_t)TX_CREDIT_MAX) {
        conn_kill(c, "bad WINDOW");
        return;
    }
    if (fr->id == 0) {
        if (has_conn_tx_credit(c))
            c->tx_credit += (int64_t)v;
        return;
    }
    struct flow *f = flow_find(c, fr->id);
    if (!f)
        return;
    f->tx_credit += (int64_t)v;
    if (f->tx_credit > TX_CREDIT_MAX) {
        conn_kill(c, "more credit than allowed");
        return;
    }
    make_ready(f);
    flow_post(f, FLOW_WRITABLE);
}

// The peer sent what this call cannot take.
static void rx_refuse(struct conn *c, struct flow *f, enum status code, const char *msg)
{
    if (!c->o.is_server) {
        flow_abort(f, code, msg);
        return;
    }
    conn_refuse(c, f->id, code, msg);
    f->status = (struct frame_status){.code = code};
    flow_post(f, FLOW_ENDED);
    flow_remove(f);
}

// Assemble: the message grows in f->part, an rx_msg with room.
static bool append_part(struct flow *f, const struct frame *fr)
{
    size_t need = f->part_len + fr->n;
    if (!f->part || need > f->part_cap) {
        size_t cap = f->part_cap ? 2 * f->part_cap : 64U << 10;
        while (cap < need)
            cap *= 2;
        uint8_t *p = mem_realloc(f->part, sizeof(struct rx_msg) + cap, 1);
        if (!p)
            return false;
        f->part = p;
        f->part_cap = cap;
    }
    if (fr->n)
        memcpy(f->part + offsetof(struct rx_msg, data) + f->part_len, fr->p, fr->n);
    f->part_len = need;
    return true;
}

static struct rx_msg *whole_message(struct flow *f, const struct frame *fr, size_t cost)
{
    struct rx_msg *m;
    if (f->part) {
        if (!append_part(f, fr))
            return NULL;
        m = (struct rx_msg *)(void *)f->part;
        m->next = NULL; // one by one: the struct's padding overlaps data
        m->n = f->part_len;
        m->cost = f->part_cost + cost;
        m->last = m->half = false;
        f->part = NULL;
        f->part_len = f->part_cap = f->part_cost = 0;
        return m;
    }
    m = mem_alloc(sizeof *m + fr->n);
    if (!m)
        return NULL;
    *m = (struct rx_msg){.n = fr->n, .cost = cost};
    if (fr->n)
        memcpy(m->data, fr->p, fr->n);
    return m;
}

static void on_data(struct conn *c, const struct frame *fr)
{
    size_t cost = fr->n + FRAME_DATA_COST;
    if (has_conn_rx_credit(c)) {
        c->rx_credit -= (int64_t)cost;
        if (c->rx_credit < 0) {
            conn_kill(c, "more bytes than its credit");
            return;
        }
    }
    struct flow *f = flow_find(c, fr->id);
    if (!f) {
        give_conn_credit(c, cost); // for a call that is over
        return;
    }
    f->rx_credit -= (int64_t)cost;
    if (f->rx_credit < 0 || f->rx_half) {
        conn_kill(c, f->rx_half ? "bytes after the half-close" : "more bytes than its credit");
        return;
    }
    touch(c, f);
    bool last = fr->flags & FRAME_LAST;
    struct rx_msg *m = NULL;
    if (f->part_len + fr->n > RPC_MAX_MESSAGE_BYTES) {
        rx_refuse(c, f, STATUS_RESOURCE_EXHAUSTED, "message too large");
        return;
    }
    if (f->raw || last) {
        m = whole_message(f, fr, cost);
    } else if (append_part(f, fr)) {
        // What is being assembled cannot be consumed: grant at once, or it could never end.
        f->rx_held += fr->n;
        c->rx_held += fr->n;
        if (has_conn_rx_credit(c) && c->rx_held > CONN_HELD_MAX) {
            rx_refuse(c, f, STATUS_RESOURCE_EXHAUSTED, "too many large messages at once");
            return;
        }
        if (f->rx_head)
            f->part_cost += cost;
        else
            flow_grant(f, cost);
        return;
    }
    if (!m) {
        conn_kill(c, "out of memory");
        return;
    }
    m->last = last;
    m->half = (fr->flags & FRAME_HALF) && last;
    size_t held = fr->n + FRAME_DATA_COST;
    f->rx_held += held;
    c->rx_held += held;
    *f->rx_tail = m;
    f->rx_tail = &m->next;
    f->rx_half |= m->half;
    f->n_rx += last;
    if (f->is_unary_in && f->n_rx > 1) {
        rx_refuse(c, f, STATUS_INVALID_ARGUMENT, "more than one message in a unary call");
        return;
    }
    flow_post(f, f->is_unary_in && c->o.is_server ? FLOW_REQUEST : FLOW_READABLE);
}

static void on_call_frame(struct conn *c, const struct frame *fr)
{
    struct flow *f = flow_find(c, fr->id);
    if (fr->type == FRAME_DATA) {
        on_data(c, fr);
        return;
    }
    if (!f)
        return; // of a call that is over
    if (fr->type == FRAME_END) {
        f->rx_half = true;
        flow_post(f, FLOW_READABLE);
        if (f->is_unary_in && f->n_rx == 0 && c->o.is_server)
            rx_refuse(c, f, STATUS_INVALID_ARGUMENT, "a call without its request");
    } else if (fr->type == FRAME_STATUS) {
        if (c->o.is_server || !frame_status(fr, &f->status)) {
            conn_kill(c, "bad STATUS");
            return;
        }
        f->rx_half = true;
        flow_post(f, FLOW_ENDED | FLOW_READABLE);
        flow_remove(f);
    } else { // CANCEL
        if (!c->o.is_server) {
            conn_kill(c, "CANCEL from a server");
            return;
        }
        f->status = (struct frame_status){.code = STATUS_CANCELLED};
        str_copy(f->status.msg, sizeof f->status.msg, "cancelled by the caller");
        flow_post(f, FLOW_ENDED);
        flow_remove(f);
    }
}

static void on_open(struct conn *c, const struct frame *fr)
{
    struct frame_open o;
    if (!c->o.is_server || fr->id == 0 || !frame_open(fr, &o)) {
        conn_kill(c, "bad OPEN");
        return;
    }
    if (flow_find(c, fr->id)) {
        conn_kill(c, "a call id used twice");
        return;
    }
    c->o.owner->open(c, fr->id, &o);
}

static void on_frame(struct conn *c, const struct frame *fr)
{
    uint64_t v;
    switch (fr->type) {
    case FRAME_AUTH:
        if (!c->o.is_server || !c->o.owner->auth(c, fr->id, fr->p, fr->n))
            conn_kill(c, "bad AUTH");
        break;
    case FRAME_OPEN:
        on_open(c, fr);
        break;
    case FRAME_DATA:
    case FRAME_END:
    case FRAME_STATUS:
    case FRAME_CANCEL:
        on_call_frame(c, fr);
        break;
    case FRAME_WINDOW:
        on_window(c, fr);
        break;
    case FRAME_ACK:
        if (frame_number(fr, &v))
            on_ack(c, v);
        else
            conn_kill(c, "bad ACK");
        break;
    case FRAME_PING:
        c->ack_now = true;
        break;
    case FRAME_GOAWAY:
        if (!c->draining)
            c->o.owner->goaway(c);
        c->draining = true;
        break;
    }
}

static void on_record(struct conn *c, const uint8_t *p, size_t n, size_t size)
{
    c->rx_records++;
    c->rx_unacked_bytes += size;
    c->last_rx_us = c->now_us;
    c->pinged = false;
    if (!c->confirmed) {
        c->confirmed = true;
        conn_want_tick(c, c->now_us + c->o.ping_us);
        c->o.owner->confirmed(c);
    }
    const uint8_t *end = p + n;
    while (p < end && !c->dead) {
        struct frame fr;
        if (!frame_next(&p, end, &fr)) {
            conn_kill(c, "malformed frame");
            return;
        }
        on_frame(c, &fr);
    }
}

// Handshake messages are outside the record window.
static void send_raw(struct conn *c, const struct buf *b)
{
    struct transport_msg *m = c->o.ops->msg_new(b->len);
    if (!m) {
        conn_kill(c, "out of memory");
        return;
    }
    memcpy(c->o.ops->msg_data(m), b->data, b->len);
    c->slots_used += c->o.n_slots != 0;
    c->o.ops->send(c->o.t, c->o.pipe, m);
}

static void became_ready(struct conn *c)
{
    c->ready = true;
    c->next_tick_us = TIME_NEVER;
    conn_want_tick(c, c->now_us + (c->confirmed ? c->o.ping_us : HALF_OPEN_US));
    if (!c->o.is_server) // the first record confirms our half of the handshake
        frame_put(&c->control, FRAME_PING, 0, 0, NULL, 0);
    c->o.owner->ready(c);
}

static void receive(struct conn *c, uint8_t *p, size_t n)
{
    struct buf out;
    buf_init(&out, 4096);
    enum chan_event ev = CHAN_NOTHING;
    uint8_t *data = NULL;
    size_t len = 0;
    struct err err = ERR_INIT;
    c->now_us = time_mono_us();
    c->bytes_in += n;
    if (n > CHAN_MAX_RECORD)
        conn_kill(c, "oversized message");
    else if (chan_receive(c->chan, p, n, &out, &ev, &data, &len, &err) != STATUS_OK)
        conn_kill(c, err.msg[0] ? err.msg : "not authentic");
    if (!c->dead && out.len)
        send_raw(c, &out);
    buf_done(&out);
    if (!c->dead && !c->ready && chan_is_ready(c->chan))
        became_ready(c);
    if (c->dead)
        return;
    if (ev == CHAN_DATA)
        on_record(c, data, len, n);
    else if (ev == CHAN_CLOSED)
        conn_kill(c, "closed by the peer");
}

void conn_input(struct conn *c, struct transport_msg *m)
{
    conn_lock(c);
    if (!c->dead)
        receive(c, c->o.ops->msg_data(m), c->o.ops->msg_size(m));
    c->o.ops->msg_free(m);
    conn_unlock(c);
}

void conn_start(struct conn *c)
{
    struct buf out;
    buf_init(&out, 4096);
    struct err err = ERR_INIT;
    if (chan_start(c->chan, &out, &err) != STATUS_OK)
        conn_kill(c, err.msg);
    else if (!c->dead)
        send_raw(c, &out);
    buf_done(&out);
}

void conn_slot_free(struct conn *c)
{
    conn_lock(c);
    if (c->slots_used)
        c->slots_used--;
    conn_unlock(c);
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

int64_t conn_tick(struct conn *c, int64_t now_us)
{
    conn_lock(c);
    int64_t next = TIME_NEVER;
    if (!c->dead && now_us >= c->next_tick_us) {
        c->now_us = now_us;
        bool half_open = !c->ready || !c->confirmed;
        int64_t silent = now_us - c->last_rx_us;
        int64_t oldest =
            n_unacked(c) ? c->sent[c->tx_acked % CONN_UNACKED_CONTROL_MAX].at_us : now_us;
        if (half_open && now_us - c->born_us >= HALF_OPEN_US)
            conn_kill(c, "the handshake took too long");
        else if (!half_open && (silent >= 2 * c->o.ping_us || now_us - oldest >= 2 * c->o.ping_us))
            conn_kill(c, "the peer is silent");
        if (!c->dead && !half_open && silent >= c->o.ping_us && !c->pinged) {
            frame_put(&c->control, FRAME_PING, 0, 0, NULL, 0);
            c->pinged = true;
        }
        next = half_open ? c->born_us + HALF_OPEN_US
                         : c->last_rx_us + (c->pinged ? 2 : 1) * c->o.ping_us;
        if (n_unacked(c) && !half_open && oldest + 2 * c->o.ping_us < next)
            next = oldest + 2 * c->o.ping_us;
        expire(c, now_us, &next);
        c->next_tick_us = c->dead ? TIME_NEVER : next;
    }
    next = c->next_tick_us;
    if (c->dead)
        next = TIME_NEVER;
    conn_unlock(c);
    return next;
}
