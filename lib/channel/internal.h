#pragma once
// What the files of this folder, and its tests, share.
#include "channel/channel.h"
#include "channel/noise.h"

#define CHAN_VERSION 1
#define CHAN_SESSION_SIZE 8
#define CHAN_HEADER_SIZE (2 + 1 + 1 + CHAN_SESSION_SIZE)
#define CHAN_COUNTER_SIZE 8
#define CHAN_TAG_SIZE 16
#define CHAN_MAC1_SIZE 16
#define CHAN_MAX_HANDSHAKE 1024 // a whole handshake message

enum chan_type { CHAN_INIT = 1, CHAN_RESPONSE = 2, CHAN_RECORD = 5, CHAN_CLOSE = 6 };

enum chan_state {
    CHAN_ST_NEW,         // initiator: chan_start() next; responder: waits for the init
    CHAN_ST_SENT_INIT,   // initiator: waits for the response
    CHAN_ST_UNCONFIRMED, // IK responder: waits for the first record
    CHAN_ST_OPEN,
    CHAN_ST_LEFT,   // we sent a close record; what the peer still sends is opened
    CHAN_ST_CLOSED, // the peer closed
    CHAN_ST_DEAD,   // something was wrong
};

struct chan_cipher {
    uint8_t key[NOISE_KEY_SIZE];
    uint64_t counter; // of the next record
};

// Freed, wiped, when the handshake ends: an open connection holds no private key.
struct chan_handshake {
    struct noise noise;
    struct chan_identity id;
    struct chan_trust trust;
    bool has_id, has_trust;
};

struct chan {
    enum chan_state state;
    bool is_initiator;
    unsigned accept_links;
    uint8_t session[CHAN_SESSION_SIZE];
    uint8_t mac1_key[32];
    struct chan_handshake *hs;
    struct chan_peer peer;
    struct chan_cipher send, receive;
};

void chan_mac1_key(uint8_t out[32], const uint8_t responder_key[32]);
void chan_mac1(uint8_t out[CHAN_MAC1_SIZE], const uint8_t mac1_key[32], const void *frame,
               size_t n); // n: the bytes before the mac
