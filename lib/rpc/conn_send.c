// Sending. Frames wait unsealed in three places: `control` (window updates and the like), `calls`
// (opens, statuses, small messages; kept in order) and each flow's queue of messages. conn_flush()
// builds as many records as the peer's window and the transport's slots allow, each from everything
// that is ready at that moment: control, then calls, then unary flows, then streams in turn. It
// runs when the lock is released, so whatever one I/O event caused leaves in one record; there is
// no timer. On the dialling side a small record waits while another is still being written, which
// gathers the calls of many threads the same way.
//
// Acknowledgements say "taken from the transport and authenticated". They bound what is inside the
// transport (nng's queues drop silently), and their delay steers the byte window: it grows while
// our own bytes delay them little, so that sealing, the way and opening overlap, and shrinks to a
// record or two where the link is slow.
#include <string.h>

#include "base/mem.h"
#include "base/time.h"
#include "rpc/conn_internal.h"

#define RECORD_LAST_MIN (4U << 10)   // what overshoots the window at most
#define RECORD_CALLS_MIN (20U << 10) // the same, when any frame of `calls` must find room
#define ACK_SLOTS 4 // of the last records, for acknowledgements that are due: see conn_flush()
#define ACK_RECORDS (CONN_UNACKED_MAX / 4)
#define ACK_BYTES (CONN_WINDOW_MIN / 2)
#define QUANTUM (16U << 10) // of one flow before the next has its turn
#define COALESCE_BYTES (32U << 10)
#define GATHER_BEHIND (2 * CONN_WINDOW_MIN)

// What others wait behind: bytes on the way, and of one record, while a stream has something to
// send.
struct limits {
    size_t window, record;
};

static struct limits limits_now(const struct conn *c)
{
    static const struct limits beside_calls = {CONN_WINDOW_MIN, CONN_WINDOW_MIN / 2},
                               beside_streams = {CONN_WINDOW_START, CONN_WINDOW_START / 4};
    struct limits l = {c->window, CHAN_MAX_RECORD};
    if (list_is_empty(&c->ready_bulk) || c->now_us >= c->mixed_until_us)
        return l;
    l = c->now_us < c->calls_until_us ? beside_calls : beside_streams;
    l.window = l.window < c->window ? l.window : c->window;
    return l;
}

// Half of the window, so that one is on its way while another is sealed or opened; and the last one
// just fills it, since a peer may wait for a full window before it acknowledges.
static size_t record_limit(const struct conn *c)
{
    struct limits l = limits_now(c);
    size_t left = l.window > c->unacked_bytes ? l.window - c->unacked_bytes : 0;
    if (l.record > l.window / 2)
        l.record = l.window / 2;
    size_t least = conn_pending(&c->calls, c->calls_off) ? RECORD_CALLS_MIN : RECORD_LAST_MIN;
    if (l.record > left && c->unacked_bytes)
        l.record = left > least ? left : least;
    return l.record;
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

// n_status: how many of b's frames are STATUS, less those taken here.
static size_t take_run(struct buf *b, size_t *off, uint8_t *dst, size_t room, unsigned *n_status)
{
    size_t n = b->len - *off;
    unsigned taken = *n_status;
    if (n > room)
        n = frame_run(b->data + *off, n, room, &taken);
    *n_status -= taken;
    if (n)
        memcpy(dst, b->data + *off, n);
    *off += n;
    if (*off == b->len && !b->failed) { // what failed is conn_flush()'s to see
        buf_reset(b);
        *off = 0;
    } else if (*off > b->len / 2) { // it may never run empty: what was taken must not pile up
        b->len -= *off;
        memmove(b->data, b->data + *off, b->len + 1); // and its NUL
        *off = 0;
    }
    return n;
}

static size_t take_control(struct conn *c, uint8_t *dst, size_t room)
{
    unsigned none = 0;
    return take_run(&c->control, &c->control_off, dst, room, &none);
}

// A call counts until its STATUS is acknowledged, so each record knows how many it holds.
static size_t take_calls(struct conn *c, uint8_t *dst, size_t room, unsigned *n_status)
{
    *n_status += c->calls_n_status;
    size_t n = take_run(&c->calls, &c->calls_off, dst, room, &c->calls_n_status);
    *n_status -= c->calls_n_status;
    c->calls_taken += n;
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
        memcpy(dst + out, ch->bytes + ch->off, n);
        out += n;
        moved += n + FRAME_DATA_COST;
        f->bytes_out += n;
        ch->off += n;
        f->tx_queued -= n;
        c->tx_queued -= n;
        f->tx_credit -= (int64_t)n + FRAME_DATA_COST;
        if (conn_has_tx_credit(c))
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
            conn_touch(c, f);
            if (f->raw || flow_can_write(f)) // a writer that waits for more is left asleep
                flow_post(f, f->raw ? FLOW_SEALED | FLOW_WRITABLE : FLOW_WRITABLE);
        }
        if (!f->tx_head && f->tx_half_pending && room - out >= FRAME_HEAD_MAX) {
            out += frame_head(dst + out, FRAME_END, 0, f->id, 0);
            f->tx_half = true;
            f->tx_half_pending = false;
        }
        if (!f->tx_head && f->tx_status_pending && !f->tx_half_pending)
            flow_put_status(f);
        if (f->tx_head && c->tx_credit <= FRAME_DATA_COST) { // all wait for the connection
            f->is_ready = true;
            list_push_front(l, &f->ready);
            break;
        }
        flow_make_ready(f);
    }
    return out;
}

// Build, seal and hand over one record. only_control: the window is full.
static bool send_record(struct conn *c, bool only_control)
{
    bool flows_may = !only_control && c->tx_credit > FRAME_DATA_COST;
    size_t cap = record_limit(c) - CHAN_RECORD_OVERHEAD;
    size_t want = 32 + conn_pending(&c->control, c->control_off);
    if (!only_control)
        want += conn_pending(&c->calls, c->calls_off);
    if (flows_may && want < cap)
        want += ready_bytes(&c->ready_urgent, cap) + ready_bytes(&c->ready_bulk, cap);
    if (want > cap)
        want = cap;
    struct transport_msg *m = c->o.ops->msg_new(want + CHAN_RECORD_OVERHEAD);
    if (!m) {
        conn_kill(c, "out of memory");
        return false;
    }
    uint8_t *data = c->o.ops->msg_data(m), *p = data + CONN_RECORD_HEAD;
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
    unsigned n_status = 0;
    n += take_control(c, p + n, want - n);
    if (!only_control)
        n += take_calls(c, p + n, want - n, &n_status);
    if (flows_may && !conn_pending(&c->calls, c->calls_off)) {
        n += take_ready(c, &c->ready_urgent, p + n, want - n);
        n += take_ready(c, &c->ready_bulk, p + n, want - n);
        n += take_calls(c, p + n, want - n, &n_status);
    }
    if (n == 0) {
        c->o.ops->msg_free(m);
        return false;
    }
    size_t size = chan_seal(c->chan, data, n, NULL);
    if (size == 0) { // what was to be sent is taken apart already
        c->o.ops->msg_free(m);
        conn_kill(c, "a record could not be sealed");
        return false;
    }
    c->o.ops->msg_shorten(m, size);
    struct sent *s = &c->sent[c->tx_records++ % CONN_UNACKED_CONTROL_MAX];
    *s = (struct sent){.bytes = (uint32_t)size, .n_status = n_status, .at_us = c->now_us};
    c->unacked_bytes += size;
    c->bytes_out += size;
    c->last_send_us = c->now_us;
    bool left = c->o.ops->send(c->o.t, c->o.pipe, m);
    c->slots_used += c->o.n_slots != 0 && !left;
    return true;
}

// A stream alone has something, but not a whole record, and so much is on its way that a peer must
// acknowledge some of it: then more will have come.
static bool may_gather(const struct conn *c)
{
    return !conn_pending(&c->calls, c->calls_off) && list_is_empty(&c->ready_urgent) &&
           c->unacked_bytes >= GATHER_BEHIND && c->tx_queued < record_limit(c);
}

// Without room, control frames alone may leave, and the last of them only to acknowledge: two sides
// that each had filled the other's would otherwise wait for each other's acknowledgement.
static bool may_send_control(const struct conn *c, bool ack)
{
    return conn_n_unacked(c) < CONN_UNACKED_CONTROL_MAX - (ack ? 0 : ACK_SLOTS);
}

// A frame found no room: the peer would wait for it for ever.
static bool has_lost_frames(const struct conn *c)
{
    return c->control.failed || c->calls.failed;
}

void conn_flush(struct conn *c)
{
    if (c->corked || !c->ready)
        return;
    bool timed = false;
    while (!c->dead) {
        if (has_lost_frames(c)) {
            conn_kill(c, "out of memory, or too much is waiting to be sent");
            return;
        }
        bool room = conn_n_unacked(c) < CONN_UNACKED_MAX &&
                    (conn_n_unacked(c) == 0 || c->unacked_bytes < limits_now(c).window);
        bool ack = c->ack_now || c->rx_records - c->rx_acked >= ACK_RECORDS ||
                   c->rx_unacked_bytes >= ACK_BYTES;
        bool control = ack || conn_pending(&c->control, c->control_off);
        bool calls = conn_pending(&c->calls, c->calls_off) ||
                     (c->tx_credit > FRAME_DATA_COST &&
                      !(list_is_empty(&c->ready_urgent) && list_is_empty(&c->ready_bulk)));
        if (!(control || calls))
            return;
        if (!room) {
            c->window_limited |= conn_n_unacked(c) < CONN_UNACKED_MAX;
            if (!control || !may_send_control(c, ack))
                return;
        }
        if (c->o.n_slots && c->slots_used) {
            size_t n = conn_pending(&c->calls, c->calls_off) + c->tx_queued;
            if (c->slots_used >= c->o.n_slots || n < COALESCE_BYTES)
                return; // conn_slot_free() comes back here
        }
        if (room && !control && may_gather(c))
            return; // an acknowledgement comes back here
        if (!timed)
            c->now_us = time_mono_us();
        timed = true;
        if (!send_record(c, !room) && !has_lost_frames(c))
            return;
    }
}

void conn_send_raw(struct conn *c, const struct buf *b)
{
    struct transport_msg *m = c->o.ops->msg_new(b->len);
    if (!m) {
        conn_kill(c, "out of memory");
        return;
    }
    memcpy(c->o.ops->msg_data(m), b->data, b->len);
    bool left = c->o.ops->send(c->o.t, c->o.pipe, m);
    c->slots_used += c->o.n_slots != 0 && !left;
}

void conn_slot_free(struct conn *c)
{
    conn_lock(c);
    if (c->slots_used)
        c->slots_used--;
    conn_unlock(c);
}
