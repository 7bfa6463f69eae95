#pragma once
// What conn.c, conn_send.c, conn_receive.c and flow.c share. All of it needs conn_lock().
#include "rpc/conn.h"

#define CONN_RECORD_HEAD (CHAN_RECORD_OVERHEAD - 16) // room before the plaintext
#define CONN_WINDOW_MIN (64U << 10)
#define CONN_WINDOW_START (256U << 10)
#define CONN_WINDOW_MAX (8U << 20)
#define CONN_CALLS_HIGH (1U << 20) // small messages wait with their flow beyond this
#define CONN_CALLS_MAX (4U << 20)
#define CONN_EARLY_MAX 8 // messages before a handshake is done, strays included
#define FLOW_DROP (1U << 31) // internal event: the connection's reference of the flow goes

static inline bool conn_has_tx_credit(const struct conn *c)
{
    return c->o.is_client_link && !c->o.is_server;
}
static inline bool conn_has_rx_credit(const struct conn *c)
{
    return c->o.is_client_link && c->o.is_server;
}
static inline size_t conn_pending(const struct buf *b, size_t off)
{
    return b->len - off;
}
static inline unsigned conn_n_unacked(const struct conn *c)
{
    return (unsigned)(c->tx_records - c->tx_acked);
}

// ---------------------------------------------------------------- flow.c
struct flow *flow_find(const struct conn *c, uint32_t id);
// The flow is over for the peer: forget its id. Its owner keeps reading what has arrived on the
// dialling side; a server drops it.
void flow_remove(struct flow *f);
void flow_make_ready(struct flow *f); // when it has something to send and the credit for it
void flow_put_status(struct flow *f);
void flow_keep_details(struct flow *f); // copies what status.details borrows
void conn_give_credit(struct conn *c, size_t cost);
// A part of a message arrived that cannot be consumed before the rest: its credit goes back as soon
// as there is room for more.
void flow_grant_part(struct flow *f, size_t cost);
// The part has become a message, or nothing.
void flow_part_ends(struct flow *f);
void conn_feed_parts(struct conn *c); // there may be room again
// A second flow within the last moments makes a stream's records small, so that none waits behind
// much; the smallest if one of the two is a call.
void conn_touch(struct conn *c, const struct flow *f);

// ---------------------------------------------------------------- conn_send.c
// Send records while there is something to send and room for it.
void conn_flush(struct conn *c);
// A handshake message, which is outside the record window.
void conn_send_raw(struct conn *c, const struct buf *b);
