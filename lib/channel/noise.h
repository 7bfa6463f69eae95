#pragma once
// Noise handshakes (revision 34) over 25519 and BLAKE2b; the pattern is data. Private to this
// folder and its tests; the protocol itself uses NK, IK and XXpsk3 with ChaChaPoly.
//
// source  https://noiseprotocol.org/noise.html, section numbers in noise.c
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "crypto/crypto.h"

#define NOISE_HASH_SIZE 64
#define NOISE_KEY_SIZE 32
#define NOISE_TAG_SIZE 16
#define NOISE_MAX_MESSAGES 3
#define NOISE_MAX_TOKENS 6

enum noise_token { NOISE_END, NOISE_E, NOISE_S, NOISE_EE, NOISE_ES, NOISE_SE, NOISE_SS, NOISE_PSK };

struct noise_keypair {
    bool is_set;
    uint8_t public_key[NOISE_KEY_SIZE], secret[NOISE_KEY_SIZE];
};

struct noise_symmetric { // 5.2, with 5.1's cipher state inside
    enum crypto_aead aead;
    uint8_t h[NOISE_HASH_SIZE], ck[NOISE_HASH_SIZE];
    bool has_key;
    uint8_t key[NOISE_KEY_SIZE];
    uint64_t nonce;
};

struct noise {
    struct noise_symmetric sym;
    bool is_initiator, has_psk;
    unsigned n_messages, next; // next: the message to be written or read; the initiator's are even
    uint8_t messages[NOISE_MAX_MESSAGES][NOISE_MAX_TOKENS]; // enum noise_token, NOISE_END ends
    struct noise_keypair s, e;
    bool has_rs, has_re;
    uint8_t rs[NOISE_KEY_SIZE], re[NOISE_KEY_SIZE];
    uint8_t psk[32];
};

struct noise_opts {
    const char *protocol; // "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2b"
    bool is_initiator;
    const void *prologue;
    size_t prologue_len;
    const struct noise_keypair *s; // where the pattern has one
    const struct noise_keypair *e; // tests only: NULL makes a fresh one
    const uint8_t *rs;             // where it is known beforehand
    const uint8_t *psk;            // where the pattern has one
};

// errors  INVALID_ARGUMENT: unknown protocol, or a key that its pattern needs is missing
enum status noise_init(struct noise *n, const struct noise_opts *o, struct err *err) MUST_CHECK;
// The key of a psk pattern, when the peer's first message had to tell which: noise_init() was given
// any. Before the message that has the token.
void noise_set_psk(struct noise *n, const uint8_t psk[32]);
void noise_wipe(struct noise *n);

// Is it our turn to write?
bool noise_may_write(const struct noise *n);
bool noise_is_done(const struct noise *n);

// The next message, payload sealed within. 0 when it would not fit into cap, when it is not our
// turn or when a key agreement came to zero; the handshake is over then.
size_t noise_write(struct noise *n, const void *payload, size_t payload_len, uint8_t *out,
                   size_t cap) MUST_CHECK;
// Read the next message; payload gets at most len bytes. False changes nothing of *n.
bool noise_read(struct noise *n, const uint8_t *in, size_t len, uint8_t *payload,
                size_t *ret_payload_len) MUST_CHECK;

// After the last message: the keys of the initiator's and of the responder's transport messages.
void noise_split(const struct noise *n, uint8_t initiator_key[NOISE_KEY_SIZE],
                 uint8_t responder_key[NOISE_KEY_SIZE]);
// 11.3: the key after k.
void noise_rekey(enum crypto_aead aead, uint8_t key[NOISE_KEY_SIZE]);
