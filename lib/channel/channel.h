#pragma once
// Secure channel: Noise handshakes (rev 34, 25519_ChaChaPoly_BLAKE2b), node grants, sealed records.
// Pure state machines over bytes: no I/O, no threads. docs/protocol.md has the formats.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

// ---------------------------------------------------------------- identities and grants

#define CHAN_NODE_ID_SIZE 64
// Role numbers of nodes are those of cauce.Role (8 session ... 14 admin).
struct chan_grant {
    uint8_t key[32]; // the node's X25519 public key
    unsigned role;   // role number
    char node_id[CHAN_NODE_ID_SIZE];
    int64_t not_before_s, not_after_s; // Unix seconds
    uint64_t serial;
};
// A signed grant: fixed binary layout, "CQG1" first, Ed25519 signature last (grant.c).
#define CHAN_GRANT_SIZE (4 + 32 + 2 + CHAN_NODE_ID_SIZE + 8 + 8 + 8 + 64)
// errors  sign INVALID_ARGUMENT: node id, role or times are impossible; verify UNAUTHENTICATED:
//         malformed, forged, not yet or no longer valid
enum status chan_grant_sign(struct buf *out, const struct chan_grant *g,
                            const uint8_t operator_secret[64], struct err *err) MUST_CHECK;
enum status chan_grant_verify(struct chan_grant *ret, const void *p, size_t n,
                              const uint8_t operator_public[32], int64_t now_s,
                              struct err *err) MUST_CHECK;

struct chan_identity {
    uint8_t secret[32], public_key[32];
    uint8_t grant[512]; // signed, as sent; grant_len 0 when none
    size_t grant_len;
};
struct chan_trust {
    uint8_t operator_public[32];
    uint64_t serial_floor; // grants below are refused
};

enum chan_link { CHAN_LINK_CLIENT = 1, CHAN_LINK_SERVICE = 2, CHAN_LINK_ENROL = 3 };

struct chan_peer { // who is at the other end, fixed by the handshake
    enum chan_link link;
    bool has_grant;
    struct chan_grant grant; // when has_grant
    uint8_t key[32];         // static key; zero for anonymous clients
    uint8_t handshake_hash[64];
};

// ---------------------------------------------------------------- a connection

#define CHAN_MAX_RECORD 262144             // a whole message on the wire
#define CHAN_RECORD_OVERHEAD (12 + 8 + 16) // header, counter, tag
#define CHAN_REKEY_RECORDS 65536

struct chan; // one side of one connection; belongs to one thread at a time
// id and trust are copied, and wiped when the handshake ends. A service link needs both, with our
// grant; a client link needs neither on the initiator's side. CHAN_LINK_ENROL is not offered.
// errors  NULL: INVALID_ARGUMENT (a key, grant or trust is missing), RESOURCE_EXHAUSTED
struct chan *chan_new_initiator(enum chan_link link, const uint8_t responder_key[32],
                                const struct chan_identity *id, const struct chan_trust *trust,
                                struct err *err) MUST_CHECK;
// accept_links: bit set 1U << link
struct chan *chan_new_responder(unsigned accept_links, const struct chan_identity *id,
                                const struct chan_trust *trust, struct err *err) MUST_CHECK;
void chan_free(struct chan *c);
DEFINE_AUTO(struct chan, chan_free)

// The initiator's first message.
enum status chan_start(struct chan *c, struct buf *out, struct err *err) MUST_CHECK;

enum chan_event {
    CHAN_NOTHING, // a stray message of another session, dropped
    CHAN_REPLY,   // out holds a message to send; keep going (IK responder: unconfirmed until the
                  // first record, with which chan_is_ready() becomes true)
    CHAN_READY,   // handshake done (out may hold a message to send first)
    CHAN_DATA,    // data holds an opened record's plaintext
    CHAN_CLOSED,  // the peer closed the session
};
// Feed one received message. in is decrypted in place; *ret_data points into it.
// out     receives the message to send, where there is one; room for 1024 bytes is enough
// errors  UNAVAILABLE for anything wrong: the connection must be closed without an answer; err says
//         what was wrong, for our own log only
enum status chan_receive(struct chan *c, uint8_t *in, size_t n, struct buf *out,
                         enum chan_event *ret_event, uint8_t **ret_data, size_t *ret_len,
                         struct err *err) MUST_CHECK;

bool chan_is_ready(
    const struct chan *c); // may seal (for an IK responder: after the first valid record)
const struct chan_peer *chan_peer(const struct chan *c);
// Seal in place: msg has CHAN_RECORD_OVERHEAD - 16 bytes of room before the n bytes of plaintext
// and 16 after. Returns the whole length; 0, with nothing sealed, when the session is not ready, is
// closed, or when n exceeds CHAN_MAX_RECORD - CHAN_RECORD_OVERHEAD. ret_counter: this record's
// number, for ACKs. May be NULL.
size_t chan_seal(struct chan *c, uint8_t *msg, size_t n, uint64_t *ret_counter);
// A close record: the last one we send. Returns its length; 0 when the session is not ready.
size_t chan_seal_close(struct chan *c, uint8_t msg[CHAN_RECORD_OVERHEAD]);
uint64_t chan_received_counter(const struct chan *c); // records opened so far
