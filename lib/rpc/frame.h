#pragma once
// Frames: what a sealed record holds. docs/protocol.md "Frames" has the table.
//
// frame   = type-and-flags 1 | call id varint | length varint | payload
// varint  = LEB128, at most 32 bits here (64 in WINDOW and ACK payloads)
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "rpc/rpc.h"

enum frame_type {
    FRAME_AUTH = 1,   // id = slot; payload = token, empty clears the slot
    FRAME_OPEN = 2,   // payload = struct frame_open
    FRAME_DATA = 3,   // payload = bytes of a message; flags below
    FRAME_END = 4,    // half-close without a message
    FRAME_STATUS = 5, // ends a call; payload empty means OK
    FRAME_CANCEL = 6,
    FRAME_WINDOW = 7, // payload = varint bytes of credit; id 0 is the connection's
    FRAME_ACK = 8,    // payload = varint: records opened since the connection began
    FRAME_PING = 9,   // answered by an ACK at once
    FRAME_GOAWAY = 10,
};
#define FRAME_TYPE_MASK 0x1f
#define FRAME_LAST 0x80 // DATA: last fragment of its message
#define FRAME_HALF 0x40 // DATA: and the sender's last message
#define FRAME_HEAD_MAX 11
#define FRAME_DATA_COST 16 // credit a DATA frame spends beside its payload

struct frame {
    enum frame_type type;
    unsigned flags;
    uint32_t id;
    const uint8_t *p; // borrowed
    size_t n;
};

// The next frame of [*p, end), advancing *p. False when malformed.
bool frame_next(const uint8_t **p, const uint8_t *end, struct frame *ret) MUST_CHECK;
// Writes a frame's head; returns its length, at most FRAME_HEAD_MAX.
size_t frame_head(uint8_t *dst, enum frame_type type, unsigned flags, uint32_t id, size_t n);
// A whole frame.
void frame_put(struct buf *b, enum frame_type type, unsigned flags, uint32_t id, const void *p,
               size_t n);
void frame_put_number(struct buf *b, enum frame_type type, uint32_t id, uint64_t v);
bool frame_number(const struct frame *f, uint64_t *ret) MUST_CHECK;
// Length of the run of whole frames at the start of p that fits into max bytes, which are fewer than
// n. ret_n_status: how many of them are STATUS.
size_t frame_run(const uint8_t *p, size_t n, size_t max, unsigned *ret_n_status);

#define FRAME_METHOD_MAX 127
#define FRAME_ROUTE_MAX 127
#define FRAME_KEY_MAX 127
#define FRAME_TOKEN_MAX 4096

// OPEN: flags 1 | slot varint | deadline ms varint (0 none) | method | route | idempotency key,
// each a length byte and bytes | with flag 02: trace id 16, span id 8, trace flags 1 | with flag
// 04: metadata: count varint, then each a key (length byte, text) and a value (length varint,
// bytes) | with flag 08: attempt varint, from 2 upwards. Anything behind is ignored.
#define FRAME_OPEN_FORWARDED 1U
#define FRAME_OPEN_TRACE 2U
#define FRAME_OPEN_METADATA 4U
#define FRAME_OPEN_ATTEMPT 8U
struct frame_open {
    unsigned flags;
    uint32_t slot; // 0 = no token
    uint64_t deadline_ms;
    char method[FRAME_METHOD_MAX + 1], route[FRAME_ROUTE_MAX + 1], key[FRAME_KEY_MAX + 1];
    unsigned attempt; // 1: the first
    struct rpc_trace trace;  // zeros when none
    const uint8_t *metadata; // borrowed: entries for frame_metadata_next()
    size_t n_metadata_bytes;
    unsigned n_metadata;    // entries
    bool metadata_too_much; // over the limits of rpc.h: no entries are given
};
struct frame_call { // what an OPEN says; strings may be NULL
    unsigned flags; // FRAME_OPEN_FORWARDED; the others follow from what is there
    uint32_t slot;
    uint64_t deadline_ms;
    const char *method, *route, *key;
    const struct rpc_trace *trace; // or NULL
    const struct rpc_metadata *metadata;
    size_t n_metadata;
    unsigned attempt; // up to 1: not said
};
void frame_put_open(struct buf *b, uint32_t id, const struct frame_call *c);
bool frame_open(const struct frame *f, struct frame_open *ret) MUST_CHECK;
// The next of a frame_open's entries, advancing *p. ret->key is not terminated: see *ret_key_len.
bool frame_metadata_next(const uint8_t **p, const uint8_t *end, struct rpc_metadata *ret,
                         size_t *ret_key_len);
bool frame_metadata_key_ok(const char *key, size_t n); // 1..64 of [a-z0-9_.-]

// STATUS: code varint | retry-after ms varint | message length varint | message (UTF-8) | details,
// a cauce.status.v1.Details: the rest.
struct frame_status {
    enum status code;
    int64_t retry_after_ms; // 0 = not said
    char msg[240];
    const uint8_t *details; // borrowed; of a flow's status: the flow's
    size_t n_details;       // at most RPC_DETAILS_MAX_BYTES
};
void frame_put_status(struct buf *b, uint32_t id, const struct frame_status *s);
// ret->details points into the frame.
bool frame_status(const struct frame *f, struct frame_status *ret) MUST_CHECK;
