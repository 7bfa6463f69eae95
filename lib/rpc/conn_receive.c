// Receiving: what one message of the transport means. Nothing here waits or calls an owner; flows
// are marked and told when the lock is released.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/conn_internal.h"
#include "rpc/rpc.h"

#define TX_CREDIT_MAX (64LL << 20)
// Of acknowledgements, beyond the shortest delay seen: what our own bytes add to it.
#define QUEUE_LOW_US 2000
#define QUEUE_HIGH_US 12000
#define PART_FIRST_MIN (64U << 10)
#define PART_FIRST_MAX ((1U << 20) + 4096)

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
    c->rtt_us = c->rtt_us ? c->rtt_us + (delay - c->rtt_us) / 8 : delay;
    int64_t queued = delay - c->min_ack_us;
    if (c->window_limited && queued < QUEUE_LOW_US + c->min_ack_us / 4)
        c->window = c->window + acked < CONN_WINDOW_MAX ? c->window + acked : CONN_WINDOW_MAX;
    else if (queued > QUEUE_HIGH_US + c->min_ack_us)
        c->window = c->window / 2 > CONN_WINDOW_MIN ? c->window / 2 : CONN_WINDOW_MIN;
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
        if (conn_has_tx_credit(c))
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
    flow_make_ready(f);
    if (f->raw || flow_can_write(f))
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

// Room for the first part: messages of a stream are often alike, but what a peer once sent buys it
// no more than this.
static size_t part_first(const struct flow *f)
{
    if (f->rx_last_size < PART_FIRST_MIN)
        return PART_FIRST_MIN;
    return f->rx_last_size < PART_FIRST_MAX ? f->rx_last_size : PART_FIRST_MAX;
}

// Assemble: the message grows in f->part, an rx_msg with room.
static bool append_part(struct flow *f, const struct frame *fr)
{
    size_t need = f->part_len + fr->n;
    if (!f->part || need > f->part_cap) {
        size_t cap = f->part_cap ? 2 * f->part_cap : part_first(f);
        while (cap < need)
            cap *= 2;
        uint8_t *p = mem_realloc(f->part, sizeof(struct rx_msg) + cap, 1);
        if (!p)
            return false;
        if (!f->part)
            list_push_back(&f->conn->assembling, &f->assembling);
        f->part = p;
        f->part_cap = cap;
    }
    if (fr->n)
        memcpy(f->part + offsetof(struct rx_msg, data) + f->part_len, fr->p, fr->n);
    f->part_len = need;
    f->conn->rx_parts += fr->n;
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
        f->rx_last_size = f->part_len;
        flow_part_ends(f);
        return m;
    }
    m = mem_alloc_unset(sizeof *m + fr->n);
    if (!m)
        return NULL;
    *m = (struct rx_msg){.n = fr->n, .cost = cost};
    if (fr->n)
        memcpy(m->data, fr->p, fr->n);
    return m;
}

static void conn_hold(struct conn *c, size_t n)
{
    c->rx_held += n;
    if (c->rx_held > c->rx_held_most)
        c->rx_held_most = c->rx_held;
}

static void on_data(struct conn *c, const struct frame *fr)
{
    size_t cost = fr->n + FRAME_DATA_COST;
    if (conn_has_rx_credit(c)) {
        c->rx_credit -= (int64_t)cost;
        if (c->rx_credit < 0) {
            conn_kill(c, "more bytes than its credit");
            return;
        }
    }
    struct flow *f = flow_find(c, fr->id);
    if (!f) {
        conn_give_credit(c, cost); // for a call that is over
        return;
    }
    f->rx_credit -= (int64_t)cost;
    if (f->rx_credit < 0 || f->rx_half) {
        conn_kill(c, f->rx_half ? "bytes after the half-close" : "more bytes than its credit");
        return;
    }
    conn_touch(c, f);
    f->bytes_in += fr->n;
    bool last = fr->flags & FRAME_LAST;
    struct rx_msg *m = NULL;
    if (f->part_len + fr->n > RPC_MAX_MESSAGE_BYTES) {
        char why[160];
        snprintf(why, sizeof why, "%s: a message of %zu bytes or more: at most %u",
                 f->label ? f->label : "call", f->part_len + fr->n, RPC_MAX_MESSAGE_BYTES);
        rx_refuse(c, f, STATUS_RESOURCE_EXHAUSTED, why);
        return;
    }
    if (f->raw || last) {
        m = whole_message(f, fr, cost);
    } else if (append_part(f, fr)) {
        f->rx_held += fr->n;
        conn_hold(c, fr->n);
        if (conn_has_rx_credit(c) && c->rx_held > CONN_HELD_MAX) {
            rx_refuse(c, f, STATUS_RESOURCE_EXHAUSTED, "too many large messages at once");
            return;
        }
        if (f->rx_head)
            f->part_cost += cost;
        else
            flow_grant_part(f, cost);
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
    conn_hold(c, held);
    *f->rx_tail = m;
    f->rx_tail = &m->next;
    f->rx_half |= m->half;
    f->n_rx += last;
    conn_feed_parts(c); // the oldest may be another one now
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
        flow_keep_details(f);
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

static void became_ready(struct conn *c)
{
    c->ready = true;
    c->next_tick_us = TIME_NEVER;
    conn_want_tick(c, c->now_us + (c->confirmed ? c->o.ping_us : c->o.handshake_us));
    if (!c->o.is_server) // the first record confirms our half of the handshake
        frame_put(&c->control, FRAME_PING, 0, 0, NULL, 0);
    c->o.owner->ready(c);
}

// A stranger's message: may it be looked at?
static bool may_come_in(struct conn *c)
{
    if (c->ready || !c->o.is_server)
        return true;
    if (++c->n_early > CONN_EARLY_MAX) {
        conn_kill(c, "too many messages before the handshake");
        return false;
    }
    if (c->n_early == 1 && c->o.owner->knock && !c->o.owner->knock(c)) {
        conn_kill(c, "too many handshakes");
        return false;
    }
    return true;
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
    if (!may_come_in(c))
        return;
    if (n > CHAN_MAX_RECORD)
        conn_kill(c, "oversized message");
    else if (chan_receive(c->chan, p, n, &out, &ev, &data, &len, &err) != STATUS_OK)
        conn_kill(c, err.msg[0] ? err.msg : "not authentic");
    if (!c->dead && out.len)
        conn_send_raw(c, &out);
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

void conn_input(struct conn *c, struct transport_msg *m, bool more)
{
    conn_lock(c);
    c->corked -= c->input_corked;
    c->corked += more;
    c->input_corked = more;
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
        conn_send_raw(c, &out);
    buf_done(&out);
}
