#pragma once
// A connection: what both sides share. Frames in and out of sealed records, the window of
// unacknowledged records, credit, fair queueing, keep-alive. See conn.c, conn_send.c and flow.c for
// how it works.
//
// Everything here needs conn_lock() unless it says otherwise; conn_unlock() sends what became ready
// and then tells flows' owners what happened, with no lock held.
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/list.h"
#include "channel/channel.h"
#include "rpc/frame.h"
#include "rpc/transport.h"

#define CONN_STREAM_CREDIT (64 << 10)
#define CONN_STREAM_CREDIT_MAX (1 << 20)
#define CONN_CLIENT_CREDIT (1 << 20) // of all calls of a client link together
// Bytes of one client link that wait for the rest of their message, or for their handlers. See
// conn_feed_parts() for how an honest peer stays far below the last.
#define CONN_HELD_EASY (1U << 20)  // up to here windows grow freely
#define CONN_HELD_HIGH (4U << 20)  // beyond, only the oldest unfinished message gets credit
#define CONN_HELD_WHOLE (8U << 20) // beyond that much in whole messages, not even that one
#define CONN_HELD_MAX (32U << 20)  // refused
#define CONN_UNACKED_MAX 32
#define CONN_UNACKED_CONTROL_MAX 40
#define CONN_INBOX_MAX 64
#define CONN_HANDSHAKE_US 5000000

struct conn;
struct flow;
struct token;

// ---------------------------------------------------------------- flows: one call's two streams

enum flow_event {
    FLOW_REQUEST = 1U << 0,  // server: the request is here (streams: from OPEN), start the handler
    FLOW_READABLE = 1U << 1, // a message (raw: a fragment) or the half-close arrived
    FLOW_WRITABLE = 1U << 2, // credit grew
    FLOW_SEALED = 1U << 3,   // raw: queued bytes left; see tx_sealed
    FLOW_ENDED = 1U << 4,    // client: status is set; server: cancelled or lost, status says why
};
struct flow_ops {
    // Runs without any lock, possibly on two threads at once for different events.
    void (*event)(struct flow *f, unsigned events);
    void (*ref)(struct flow *f);
    void (*unref)(struct flow *f); // may free the flow; runs without conn's lock
};

struct chunk { // one message, or one forwarded fragment, to send
    struct chunk *next;
    const uint8_t *bytes; // data, or somebody's who outlives it
    size_t n, off;
    bool last, half;
    uint8_t data[];
};
struct rx_msg { // one received message, or one fragment when raw
    struct rx_msg *next;
    size_t n, cost;
    bool last, half;
    uint8_t data[];
};

struct flow {
    const struct flow_ops *ops;
    struct conn *conn; // NULL until added
    uint32_t id;
    struct flow *hash_next;
    struct list all, ready; // membership in conn's lists
    struct flow *post_next;
    unsigned events;
    bool is_posted, is_added, is_ready;
    pthread_cond_t cond; // with conn's lock; broadcast on any change when n_waiting
    unsigned n_waiting;

    bool urgent;      // unary: goes before streams
    bool raw;         // forwarded: fragments are handed over as they come
    bool is_unary_in; // the peer sends exactly one message
    int64_t deadline_us;
    const char *label;            // the method, for messages about it; static
    uint64_t bytes_in, bytes_out; // of messages, so far

    struct chunk *tx_head, **tx_tail;
    size_t tx_queued;
    int64_t tx_credit;
    size_t tx_sealed; // cost of messages that left since the owner last looked
    bool tx_half, tx_half_pending, tx_status_pending;

    struct rx_msg *rx_head, **rx_tail;
    size_t rx_held; // bytes held: queued and being assembled
    uint8_t *part;  // message being assembled
    size_t part_len, part_cap, part_cost;
    size_t part_wait;       // credit of the part that is withheld until there is room
    struct list assembling; // membership in conn's list, oldest part first
    size_t rx_last_size;    // of the last message that came in parts
    int64_t rx_credit, rx_window, rx_grant;
    bool rx_half;
    unsigned n_rx; // messages so far

    bool ended;        // nothing more will be exchanged
    bool unsent;       // client: it ended before its OPEN left
    uint64_t open_pos; // client: end of its OPEN in all that `calls` ever held
    struct frame_status status;
    uint8_t *details; // what status.details points to, when it is ours
};

void flow_init(struct flow *f, const struct flow_ops *ops);
void flow_done(struct flow *f); // frees what it holds; not added any more

struct chunk *chunk_new(size_t n);
struct chunk *chunk_borrow(const void *p, size_t n); // p stays until the flow is removed
// Queue one message; consumed. Ignored once ended.
void flow_push(struct flow *f, struct chunk *c);
// A small message that nothing of this flow precedes: straight into the queue of calls. False: use
// flow_push().
bool flow_push_small(struct flow *f, const void *p, size_t n, bool half);
void flow_half_close(struct flow *f);
bool flow_can_write(const struct flow *f);
// Server: the call's end, after everything queued. s and its details are borrowed for the call.
void flow_finish(struct flow *f, const struct frame_status *s);
// Client: give up. Sends CANCEL if the peer knows the call; sets status; FLOW_ENDED follows.
void flow_abort(struct flow *f, enum status code, const char *msg);
// Oldest received message or NULL; owned by the caller, who frees it with mem_free(). Credit is
// given back at once, except for raw flows (flow_grant()).
struct rx_msg *flow_take(struct flow *f);
void flow_grant(struct flow *f, size_t cost);
// Wait for a change until deadline_us; false when it passed.
bool flow_wait(struct flow *f, int64_t deadline_us);
void flow_post(struct flow *f, unsigned events);

// ---------------------------------------------------------------- connections

struct conn_owner { // callbacks; conn's lock is held and they must not block
    // server: a peer opens a call. Adds a flow, or answers with conn_refuse().
    void (*open)(struct conn *c, uint32_t id, const struct frame_open *o);
    // server: the first message of its handshake came. False closes the connection instead.
    bool (*knock)(struct conn *c);
    // server: AUTH. False closes the connection.
    bool (*auth)(struct conn *c, uint32_t slot, const void *token, size_t n);
    void (*ready)(struct conn *c);     // may send now
    void (*confirmed)(struct conn *c); // the first record came: no longer half open
    void (*goaway)(struct conn *c);
    void (*idle)(struct conn *c); // server: its last call is over and acknowledged
    void (*dead)(struct conn *c);
    void (*wake)(struct conn *c, int64_t at_us); // wants conn_tick() at that time
    void (*free)(struct conn *c);                // no lock: what ud and slots hold; may be NULL
};

struct conn_opts {
    const struct transport_ops *ops;
    struct transport *t;
    uint32_t pipe;
    struct chan *chan; // consumed
    const struct conn_owner *owner;
    void *ud;
    bool is_server;
    bool is_client_link;  // NK: connection credit, limits on what is held
    unsigned n_slots;     // sends in flight at most; 0 = no limit
    int64_t ping_us;      // silence before a PING; twice that kills
    int64_t handshake_us; // until it is done; 0 = CONN_HANDSHAKE_US
};

struct sent { // one unacknowledged record
    uint32_t bytes, n_status;
    int64_t at_us;
};

struct conn {
    pthread_mutex_t lock;
    atomic_uint refs;
    struct conn_opts o;
    struct chan *chan;
    bool ready, confirmed, dead, draining;
    unsigned n_early;  // messages before it was ready
    bool input_corked; // the transport has more at hand
    unsigned corked;
    int64_t born_us, now_us;

    // out
    struct buf control; // ACK is made when a record leaves; WINDOW CANCEL PING GOAWAY
    struct buf calls;   // AUTH OPEN STATUS and small DATA
    size_t control_off, calls_off;
    unsigned calls_n_status; // STATUS frames in `calls`
    struct list ready_urgent, ready_bulk;
    size_t tx_queued;
    struct sent sent[CONN_UNACKED_CONTROL_MAX];
    uint64_t tx_records, tx_acked;
    size_t unacked_bytes, window;
    int64_t min_ack_us, last_send_us;
    int64_t rtt_us;       // smoothed delay of acknowledgements
    uint64_t calls_taken; // bytes of `calls` that left
    bool window_limited;
    int64_t tx_credit; // client link, dialling side: of the connection
    unsigned slots_used;
    int64_t mixed_until_us, calls_until_us; // see conn_touch()
    const struct flow *last_flow;

    // in
    uint64_t rx_records, rx_acked;
    size_t rx_unacked_bytes;
    size_t rx_held, rx_parts; // of which: in messages that are not complete
    size_t rx_held_most;      // so far
    struct list assembling;
    bool ack_now;
    int64_t rx_credit, rx_grant;
    int64_t last_rx_us;
    bool pinged;

    // calls
    struct flow **hash;
    unsigned hash_mask;
    struct list flows;
    atomic_uint n_flows; // read without the lock to compare loads
    unsigned n_calls;    // server: until their STATUS is acknowledged
    uint32_t next_id;
    struct flow *post_head, **post_tail;
    struct conn_teller *tellers;  // threads that tell owners just now
    _Atomic int64_t next_tick_us; // read without the lock

    // owner's
    void *ud;
    struct list link;
    struct conn *table_next;
    bool is_listed, confirmed_listed;
    struct door_caller *caller; // while listed
    struct list crowd;          // its half_open
    bool has_knocked;
    struct transport_msg *inbox[CONN_INBOX_MAX];
    unsigned inbox_head, inbox_len;
    pthread_mutex_t inbox_lock;
    bool inbox_scheduled, inbox_closed;
    bool is_inline; // the transport's thread deals with what it brings; that thread's own
    const char *inbox_why;
    struct token **slots; // server: tokens by slot, from 1
    uint32_t n_slots, next_slot;

    uint64_t bytes_in, bytes_out;
    char why[120];     // of its death
    int64_t end_at_us; // conn_end_at(); 0 = not set
    const char *end_why;

    // renewals of the session, dialling side
    int64_t renewed_us;
    uint64_t renewed_bytes;
};

// Consumes o->chan, also on failure.
struct conn *conn_new(const struct conn_opts *o) MUST_CHECK;
struct conn *conn_ref(struct conn *c); // no lock needed
void conn_unref(struct conn *c);       // not under the lock
void conn_lock(struct conn *c);
void conn_unlock(struct conn *c);

void conn_start(struct conn *c); // dialling side: sends the first handshake message
// One message from the transport; consumed. Takes the lock itself. more: another comes at once, and
// what this one causes may leave together with what that one does.
void conn_input(struct conn *c, struct transport_msg *m, bool more);
void conn_slot_free(struct conn *c);
void conn_kill(struct conn *c, const char *why);                  // twice is fine
void conn_end(struct conn *c, enum status code, const char *why); // the same; flows end with code
bool conn_all_acked(const struct conn *c);                        // nothing of ours is on its way
// Deadlines, keep-alive; takes the lock itself. Returns when it wants to be called next.
int64_t conn_tick(struct conn *c, int64_t now_us);
void conn_goaway(struct conn *c);
void conn_refuse(struct conn *c, uint32_t id, enum status code, const char *msg);
void conn_refuse_with(struct conn *c, uint32_t id, const struct frame_status *s); // borrowed
void conn_call_closed(struct conn *c); // server: a call that sends no STATUS is over
void conn_want_tick(struct conn *c, int64_t at_us);
// Ends by itself at that time, unless it does before; why is static. 0 takes it back.
void conn_end_at(struct conn *c, int64_t at_us, const char *why);

// Register f under a fresh id (client; id 0) or the peer's. False: out of memory or id taken. Takes
// a reference of f.
bool flow_add(struct conn *c, struct flow *f, uint32_t id) MUST_CHECK;
