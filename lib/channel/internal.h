#pragma once
// What the files of this folder, and its tests, share.
#include <pthread.h>
#include <stdatomic.h>

#include "channel/channel.h"
#include "channel/noise.h"

#define CHAN_VERSION 1
#define CHAN_SESSION_SIZE 8
#define CHAN_HEADER_SIZE (2 + 1 + 1 + CHAN_SESSION_SIZE)
#define CHAN_COUNTER_SIZE 8
#define CHAN_TAG_SIZE 16
#define CHAN_MAC1_SIZE 16
#define CHAN_HANDSHAKE_OVERHEAD (CHAN_HEADER_SIZE + 1 + 2 + CHAN_MAC1_SIZE)
#define CHAN_MAX_IDENTITIES 2

enum chan_type {
    CHAN_INIT = 1,
    CHAN_RESPONSE = 2,
    CHAN_FINISH = 3, // XX only
    CHAN_RECORD = 5,
    CHAN_CLOSE = 6,
    // A new handshake inside the session: records, in the same count.
    CHAN_RENEW_INIT = 7,     // holds an init
    CHAN_RENEW_RESPONSE = 8, // holds a response; the last record under the responder's old key
    CHAN_RENEW_SWITCH = 9,   // empty; the last record under the initiator's old key
};

enum chan_state {
    CHAN_ST_NEW,           // initiator: chan_start() next; responder: waits for the init
    CHAN_ST_SENT_INIT,     // initiator: waits for the response
    CHAN_ST_SENT_RESPONSE, // XX responder: waits for the finish
    CHAN_ST_UNCONFIRMED,   // IK responder: waits for the first record
    CHAN_ST_OPEN,
    CHAN_ST_LEFT,   // we sent a close record; what the peer still sends is opened
    CHAN_ST_CLOSED, // the peer closed
    CHAN_ST_DEAD,   // something was wrong
};

struct chan_cipher {
    struct crypto_record *record;
    uint8_t key[NOISE_KEY_SIZE];
    uint64_t counter; // of the next record
};

// Wiped and freed when a handshake ends: an open connection holds no private key.
struct chan_handshake {
    struct noise noise;
    struct chan_identity id; // the one of ours that it is made with
    struct chan_join join;   // enrolment
    unsigned generation;
    bool has_id, is_renewal;
};

// Who the peer proved to be. Those that were replaced are kept, since others may still read them.
struct chan_known {
    struct chan_peer peer;
    struct chan_known *older;
};

// Responder: what comes into force when the initiator switches.
struct chan_renewal {
    struct chan_known *known; // NULL: the peer shows what it showed before
    uint8_t receive_key[NOISE_KEY_SIZE];
};

struct chan {
    enum chan_state state;
    enum chan_refusal refusal;
    bool is_initiator;
    enum chan_link link; // of responders once the init came
    unsigned accept_links, generation, n_renewed;
    uint8_t session[CHAN_SESSION_SIZE];
    uint8_t responder_key[32], mac1_key[32]; // the responder's: whom the handshake is with
    uint8_t hash[NOISE_HASH_SIZE];           // of the last handshake
    struct chan_local *local;
    struct chan_handshake *hs;
    struct chan_renewal *renewal;
    struct chan_known first;
    struct chan_known *_Atomic known; // the newest
    struct chan_cipher send, receive;
};

// ---- local.c ----
// A copy of one of our identities, with its generation. False: there is none like that.
bool chan_local_current(struct chan_local *l, struct chan_handshake *hs);
// The one that the frame (n bytes, mac1 last) was meant for, by its mac1; which is copied to
// mac1_key.
bool chan_local_meant(struct chan_local *l, const uint8_t *frame, size_t n,
                      struct chan_handshake *hs, uint8_t mac1_key[32]);
bool chan_local_has_identity(struct chan_local *l);
bool chan_local_has_grant(struct chan_local *l); // and trust
bool chan_local_find_join(struct chan_local *l, struct chan_join *j);
bool chan_local_may_join(struct chan_local *l);
// Is this grant the operator's, in time, not revoked, of a role we talk to? keep: remember a good
// signature.
enum chan_refusal chan_local_judge(struct chan_local *l, const void *grant, size_t n, bool keep,
                                   struct chan_grant *ret, struct err *err);

// ---- handshake.c ----
void chan_mac1_key(uint8_t out[32], const uint8_t responder_key[32]);
void chan_mac1(uint8_t out[CHAN_MAC1_SIZE], const uint8_t mac1_key[32], const void *frame,
               size_t n); // n: the bytes before the mac
bool chan_link_has_grants(enum chan_link link);
void chan_put_header(uint8_t out[CHAN_HEADER_SIZE], const struct chan *c, enum chan_type type);
void chan_handshake_free(struct chan_handshake *hs);
// Initiator: the first message of a new handshake (c->hs holds what it needs), appended to out.
bool chan_write_init(struct chan *c, struct buf *out);
// Each takes one whole handshake message; out receives the answer where there is one. What was
// proved is in ret (responders: true in part only, until the initiator's next message).
enum chan_refusal chan_read_init(struct chan *c, const uint8_t *in, size_t n, struct buf *out,
                                 struct chan_peer *ret, struct err *err);
enum chan_refusal chan_read_response(struct chan *c, const uint8_t *in, size_t n, struct buf *out,
                                     struct chan_peer *ret, struct err *err);
enum chan_refusal chan_read_finish(struct chan *c, const uint8_t *in, size_t n,
                                   struct chan_peer *ret, struct err *err);
// The handshake is complete: its keys, its hash to c->hash; c->hs is freed.
void chan_split(struct chan *c, uint8_t send_key[NOISE_KEY_SIZE],
                uint8_t receive_key[NOISE_KEY_SIZE]);
