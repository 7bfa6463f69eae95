// Flows: the two streams of one call, what they have queued, and their credit. Consumption is
// WINDOW's business: every DATA byte spends credit of its flow, and of the connection on a client
// link.
#include <assert.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/conn_internal.h"

#define MIXED_US 100000
#define SMALL_MAX (16U << 10)

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
    list_init(&f->assembling);
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
    mem_free(f->details);
    conn_unref(f->conn);
}

void flow_post(struct flow *f, unsigned events)
{
    struct conn *c = f->conn;
    f->events |= events;
    if (f->is_posted)
        return;
    f->is_posted = true;
    f->ops->ref(f);
    f->post_next = NULL;
    *c->post_tail = f;
    c->post_tail = &f->post_next;
}

struct flow *flow_find(const struct conn *c, uint32_t id)
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

void conn_give_credit(struct conn *c, size_t cost)
{
    if (!conn_has_rx_credit(c))
        return;
    c->rx_grant += (int64_t)cost;
    if (c->rx_grant < CONN_CLIENT_CREDIT / 4)
        return;
    frame_put_number(&c->control, FRAME_WINDOW, 0, (uint64_t)c->rx_grant);
    c->rx_credit += c->rx_grant;
    c->rx_grant = 0;
}

void flow_remove(struct flow *f)
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
    if (f->tx_status_pending) // the call is over, and its status will not leave any more
        conn_call_closed(c);
    drop_tx(f);
    c->rx_held -= f->rx_held;
    size_t unfinished = f->part_cost;
    flow_part_ends(f);
    if (c->o.is_server) {
        size_t owed = unfinished;
        for (struct rx_msg *m = f->rx_head; m; m = m->next)
            owed += m->cost;
        drop_rx(f);
        conn_give_credit(c, owed);
    }
    f->rx_held = 0;
    conn_feed_parts(c);
    flow_post(f, FLOW_DROP);
}

void conn_touch(struct conn *c, const struct flow *f)
{
    if (c->last_flow != f && c->last_flow) {
        c->mixed_until_us = c->now_us + MIXED_US;
        if (f->urgent || c->last_flow->urgent)
            c->calls_until_us = c->mixed_until_us;
    }
    c->last_flow = f;
}

static bool tx_possible(const struct flow *f)
{
    if (!f->tx_head)
        return f->tx_half_pending || f->tx_status_pending;
    return f->tx_credit > FRAME_DATA_COST ||
           (f->tx_head->n == f->tx_head->off && f->tx_credit >= FRAME_DATA_COST);
}

void flow_make_ready(struct flow *f)
{
    struct conn *c = f->conn;
    if (f->is_ready || !f->is_added || !tx_possible(f))
        return;
    f->is_ready = true;
    list_push_back(f->urgent ? &c->ready_urgent : &c->ready_bulk, &f->ready);
}

struct chunk *chunk_new(size_t n)
{
    struct chunk *c = mem_alloc_unset(sizeof *c + n);
    if (c)
        *c = (struct chunk){.bytes = c->data, .n = n};
    return c;
}

struct chunk *chunk_borrow(const void *p, size_t n)
{
    struct chunk *c = mem_alloc_unset(sizeof *c);
    if (c)
        *c = (struct chunk){.bytes = p, .n = n};
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
    flow_make_ready(f);
}

bool flow_push_small(struct flow *f, const void *p, size_t n, bool half)
{
    struct conn *c = f->conn;
    int64_t cost = (int64_t)n + FRAME_DATA_COST;
    if (f->tx_head || n > SMALL_MAX || cost > f->tx_credit || cost > c->tx_credit || f->tx_half ||
        conn_pending(&c->calls, c->calls_off) > CONN_CALLS_HIGH)
        return false;
    if (!f->is_added)
        return true;
    frame_put(&c->calls, FRAME_DATA, FRAME_LAST | (half ? FRAME_HALF : 0U), f->id, p, n);
    f->tx_credit -= cost;
    f->bytes_out += n;
    if (conn_has_tx_credit(c))
        c->tx_credit -= cost;
    f->tx_half |= half;
    conn_touch(c, f);
    return true;
}

void flow_half_close(struct flow *f)
{
    if (!f->is_added || f->tx_half || f->tx_half_pending)
        return;
    f->tx_half_pending = true;
    flow_make_ready(f);
}

bool flow_can_write(const struct flow *f)
{
    int64_t most = f->tx_credit < CONN_STREAM_CREDIT_MAX ? f->tx_credit : CONN_STREAM_CREDIT_MAX;
    return (int64_t)f->tx_queued + FRAME_DATA_COST < most;
}

void flow_put_status(struct flow *f)
{
    struct conn *c = f->conn;
    frame_put_status(&c->calls, f->id, &f->status);
    if (!f->details)
        f->status.n_details = 0; // they were the caller's
    c->calls_n_status++;
    f->tx_status_pending = false;
    flow_remove(f);
}

// The status outlives whoever gave its details. Without memory it goes without them.
void flow_keep_details(struct flow *f)
{
    size_t n = f->status.n_details;
    f->details = n ? mem_alloc(n) : NULL;
    if (f->details)
        memcpy(f->details, f->status.details, n);
    f->status.details = f->details;
    f->status.n_details = f->details ? n : 0;
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
        flow_keep_details(f);
        f->tx_status_pending = true;
        return;
    }
    flow_put_status(f);
}

void flow_abort(struct flow *f, enum status code, const char *msg)
{
    struct conn *c = f->conn;
    if (!f->is_added)
        return;
    // Behind its own OPEN if that has not left yet.
    bool unsent = conn_pending(&c->calls, c->calls_off) > 0;
    frame_put(unsent ? &c->calls : &c->control, FRAME_CANCEL, 0, f->id, NULL, 0);
    f->status = (struct frame_status){.code = code};
    str_copy(f->status.msg, sizeof f->status.msg, msg);
    flow_post(f, FLOW_ENDED);
    flow_remove(f);
}

// The stream's share of a grant. A reader that keeps up gets a larger window, or distance would set
// the speed: so many times larger.
static void grant_stream(struct flow *f, size_t cost, int64_t times)
{
    struct conn *c = f->conn;
    if (!f->is_added || f->rx_half)
        return;
    f->rx_grant += (int64_t)cost;
    if (f->rx_grant < f->rx_window / 4)
        return;
    if (!f->raw && !f->rx_head) {
        int64_t before = f->rx_window, grown = before * times;
        f->rx_window = grown < CONN_STREAM_CREDIT_MAX ? grown : CONN_STREAM_CREDIT_MAX;
        f->rx_grant += f->rx_window - before;
    }
    frame_put_number(&c->control, FRAME_WINDOW, f->id, (uint64_t)f->rx_grant);
    f->rx_credit += f->rx_grant;
    f->rx_grant = 0;
}

// The others' share of what is held is small enough for larger windows.
static bool is_easy(const struct flow *f, size_t most)
{
    const struct conn *c = f->conn;
    return !conn_has_rx_credit(c) || c->rx_held - f->rx_held <= most;
}

// A message that needs more than its window at first needs much more as a rule.
static int64_t times_for_part(const struct flow *f, bool is_oldest)
{
    if (is_easy(f, CONN_HELD_EASY / 4))
        return 16;
    return is_oldest || is_easy(f, CONN_HELD_EASY) ? 2 : 1;
}

void flow_grant(struct flow *f, size_t cost)
{
    conn_give_credit(f->conn, cost);
    grant_stream(f, cost, is_easy(f, CONN_HELD_EASY) ? 2 : 1);
}

// ---------------------------------------------------------------- messages in parts
//
// A message is handed over whole, so its parts give their credit back at once: it could never end
// otherwise. Of a client link's many unfinished messages all get it while they hold little
// together, then the oldest alone, so that one after the other is completed. Connection credit
// always goes back, since parts of younger messages that are still on their way must not use up
// what the oldest one needs. So a peer that keeps to its windows is never refused, and holds at
// most
//
//   CONN_HELD_HIGH + a window of 64 KiB for each of its calls + one whole message
//
// in parts. What is whole is a reader's to take, whom nobody else can hurry: when that is much,
// unfinished messages wait.

void conn_feed_parts(struct conn *c)
{
    bool oldest = true;
    if (!conn_has_rx_credit(c))
        return;
    list_for_each(it, &c->assembling)
    {
        struct flow *f = list_entry(it, struct flow, assembling);
        bool high = c->rx_held > CONN_HELD_HIGH;
        if (f->rx_head) // its reader comes first
            continue;
        if (high && (!oldest || c->rx_held - c->rx_parts > CONN_HELD_WHOLE))
            return;
        size_t cost = f->part_wait;
        f->part_wait = 0;
        if (cost)
            grant_stream(f, cost, times_for_part(f, oldest));
        oldest = false;
    }
}

void flow_grant_part(struct flow *f, size_t cost)
{
    struct conn *c = f->conn;
    if (!conn_has_rx_credit(c)) {
        grant_stream(f, cost, times_for_part(f, true));
        return;
    }
    conn_give_credit(c, cost);
    f->part_wait += cost;
    conn_feed_parts(c);
}

void flow_part_ends(struct flow *f)
{
    f->conn->rx_parts -= f->part_len;
    f->part_len = f->part_cap = f->part_cost = 0;
    grant_stream(f, f->part_wait, 1);
    f->part_wait = 0;
    list_remove(&f->assembling);
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
            flow_grant(f, m->cost);
            if (behind)
                flow_grant_part(f, behind);
        }
        conn_feed_parts(f->conn);
    }
    return m;
}
