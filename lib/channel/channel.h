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
    unsigned roles;        // roles a peer may have, bits 1U << role; 0: any
    // Optional: is this grant revoked? Any thread, must not block; ud must outlive its users.
    bool (*is_revoked)(void *ud, const struct chan_grant *g);
    void *ud;
};

enum chan_link { CHAN_LINK_CLIENT = 1, CHAN_LINK_SERVICE = 2, CHAN_LINK_ENROL = 3 };

struct chan_peer { // who is at the other end, as it proved
    enum chan_link link;
    bool has_grant;
    struct chan_grant grant;    // when has_grant
    uint8_t key[32];            // static key; zero for anonymous clients
    uint8_t handshake_hash[64]; // of the connection's first handshake
    uint8_t join_id[16];        // enrolment: which secret it knew
};

// A one-time secret for enrolment; the id tells which, and is no secret.
#define CHAN_JOIN_ID_SIZE 16
struct chan_join {
    uint8_t id[CHAN_JOIN_ID_SIZE], secret[32];
};
// The secret of that id, if it may be used now. Any thread; must not block.
typedef bool (*chan_join_fn)(void *ud, const uint8_t id[CHAN_JOIN_ID_SIZE], uint8_t ret_secret[32]);

// Our side of handshakes: who we are and whom we trust. One serves all connections of a server or
// client, and may change while they are open. Reference counted; any thread.
struct chan_local;
// id      may be NULL for a client link's initiator; copied
// trust   may be NULL where no grants are shown; copied
struct chan_local *chan_local_new(const struct chan_identity *id,
                                  const struct chan_trust *trust) MUST_CHECK; // NULL: no memory
struct chan_local *chan_local_ref(struct chan_local *l);
void chan_local_unref(struct chan_local *l);
DEFINE_AUTO(struct chan_local, chan_local_unref)
// From the next handshake on. id is what we show as initiator. other, or NULL, is a second one that
// initiators may ask for: the mac1 of their first message tells which (key rotation). What is set
// already is no change.
void chan_local_set_identity(struct chan_local *l, const struct chan_identity *id,
                             const struct chan_identity *other);
// Counts the changes of our identity: an initiator whose sessions are older makes them anew.
unsigned chan_local_generation(const struct chan_local *l);
// Would a peer that showed this grant when its session began be let in now?
bool chan_local_trusts(struct chan_local *l, const struct chan_grant *g);
// Responder: enrolment is open to who knows a secret of fn's.
void chan_local_set_join(struct chan_local *l, chan_join_fn fn, void *ud);

// ---------------------------------------------------------------- a connection

#define CHAN_MAX_RECORD 262144             // a whole message on the wire
#define CHAN_RECORD_OVERHEAD (12 + 8 + 16) // header, counter, tag
#define CHAN_REKEY_RECORDS 65536
#define CHAN_MAX_HANDSHAKE 1024 // a whole handshake message

struct chan; // one side of one connection; belongs to one thread at a time
// A service link needs an identity with its grant, and trust, on both sides; a client link needs
// only the responder's identity; enrolment the joiner's key, a chan_join and the responder's
// chan_local_set_join().
// responder_key  of whom we mean to reach
// join           enrolment's secret, else NULL; copied, wiped when the handshake ends
// accept_links   bit set 1U << link
// errors  NULL: INVALID_ARGUMENT (a key, grant or trust is missing), RESOURCE_EXHAUSTED
struct chan *chan_dial(struct chan_local *l, enum chan_link link, const uint8_t responder_key[32],
                       const struct chan_join *join, struct err *err) MUST_CHECK;
struct chan *chan_accept(struct chan_local *l, unsigned accept_links, struct err *err) MUST_CHECK;
// The same with a chan_local of their own.
struct chan *chan_new_initiator(enum chan_link link, const uint8_t responder_key[32],
                                const struct chan_identity *id, const struct chan_trust *trust,
                                struct err *err) MUST_CHECK;
struct chan *chan_new_responder(unsigned accept_links, const struct chan_identity *id,
                                const struct chan_trust *trust, struct err *err) MUST_CHECK;
void chan_free(struct chan *c);
DEFINE_AUTO(struct chan, chan_free)

// The initiator's first message.
enum status chan_start(struct chan *c, struct buf *out, struct err *err) MUST_CHECK;

enum chan_event {
    CHAN_NOTHING, // a stray message of another session, dropped; or part of a new handshake inside
                  // the session (out may hold a message to send)
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

// May seal (for an IK responder: after the first valid record).
bool chan_is_ready(const struct chan *c);
// Who is there. Any thread once ready. A new handshake inside the session may put another in its
// place; one that was returned stays valid as long as c.
const struct chan_peer *chan_peer(const struct chan *c);

// A new handshake inside the session of a service link, by its initiator: fresh keys, and both
// sides see the grant that the other has by now. Records go on meanwhile. out receives a sealed
// message to send at once.
// responder_key  as known by now; the peer must still be the same node in the same role
// errors  FAILED_PRECONDITION: not ready, not ours to start, or one is under way;
//         RESOURCE_EXHAUSTED
enum status chan_renew(struct chan *c, const uint8_t responder_key[32], struct buf *out,
                       struct err *err) MUST_CHECK;
bool chan_is_renewing(const struct chan *c);
unsigned chan_generation(const struct chan *c); // chan_local_generation() of its last handshake
// Initiator: is that the responder's key in the last handshake, or in the one under way?
bool chan_is_with(const struct chan *c, const uint8_t responder_key[32]);
unsigned chan_n_renewed(const struct chan *c);  // handshakes completed after the first

// Why a connection was refused, for our own counters: the peer never learns it.
enum chan_refusal {
    CHAN_FINE,
    CHAN_MALFORMED,  // not this protocol, an impossible length, out of turn, a link not offered
    CHAN_BAD_MAC1,   // not for us: a first message by who does not know our key
    CHAN_BAD_KEY,    // a handshake message that does not open; another responder than we meant
    CHAN_BAD_GRANT,  // no grant, malformed, not the operator's, out of time, or of another key
    CHAN_REVOKED,    // a grant that was revoked
    CHAN_WRONG_ROLE, // a good grant of a role that has no business here
    CHAN_BAD_SECRET, // enrolment with a secret that is unknown, used, expired or wrong
    CHAN_REPLAY,     // a record came again
    CHAN_GAP,        // a record is missing
    CHAN_BAD_TAG,    // a record that does not open
    CHAN_NO_MEMORY,
    CHAN_N_REFUSALS
};
enum chan_refusal chan_refusal(const struct chan *c);
const char *chan_refusal_name(enum chan_refusal r); // "bad_mac1"
// Seal in place: msg has CHAN_RECORD_OVERHEAD - 16 bytes of room before the n bytes of plaintext
// and 16 after. Returns the whole length; 0, with nothing sealed, when the session is not ready, is
// closed, or when n exceeds CHAN_MAX_RECORD - CHAN_RECORD_OVERHEAD. ret_counter: this record's
// number, for ACKs. May be NULL.
size_t chan_seal(struct chan *c, uint8_t *msg, size_t n, uint64_t *ret_counter);
// A close record: the last one we send. Returns its length; 0 when the session is not ready.
size_t chan_seal_close(struct chan *c, uint8_t msg[CHAN_RECORD_OVERHEAD]);
uint64_t chan_received_counter(const struct chan *c); // records opened so far
