// BLAKE2b, HMAC over it and Noise's HKDF.
//
// Noise builds its HKDF on HMAC (RFC 2104) with BLAKE2b-512 as the hash, block 128 bytes, and not
// on BLAKE2b's own keyed mode; so hmac512 must never be "simplified" to a keyed digest.
#include "crypto/crypto.h"

#include <assert.h>
#include <string.h>

#include <sodium.h>

#define HASH_SIZE 64
#define BLOCK_SIZE 128

_Static_assert(sizeof(struct crypto_blake2b) >= sizeof(crypto_generichash_blake2b_state),
               "struct crypto_blake2b must hold libsodium's state");
_Static_assert(_Alignof(struct crypto_blake2b) >= _Alignof(crypto_generichash_blake2b_state),
               "struct crypto_blake2b must be aligned as libsodium's state");

static crypto_generichash_blake2b_state *state(struct crypto_blake2b *h)
{
    return (crypto_generichash_blake2b_state *)(void *)h->opaque;
}

void crypto_blake2b_init(struct crypto_blake2b *h, size_t size, const void *key, size_t key_len,
                         const uint8_t personal[16])
{
    assert(size >= 1 && size <= HASH_SIZE && key_len <= 64);
    (void)crypto_generichash_blake2b_init_salt_personal(state(h), key, key_len, size, NULL,
                                                        personal);
}

void crypto_blake2b_update(struct crypto_blake2b *h, const void *p, size_t n)
{
    if (n > 0)
        (void)crypto_generichash_blake2b_update(state(h), p, n);
}

void crypto_blake2b_final(struct crypto_blake2b *h, uint8_t *out, size_t size)
{
    assert(size >= 1 && size <= HASH_SIZE);
    (void)crypto_generichash_blake2b_final(state(h), out, size);
}

void crypto_blake2b(uint8_t *out, size_t size, const void *p, size_t n, const void *key,
                    size_t key_len, const uint8_t personal[16])
{
    struct crypto_blake2b h;

    crypto_blake2b_init(&h, size, key, key_len, personal);
    crypto_blake2b_update(&h, p, n);
    crypto_blake2b_final(&h, out, size);
}

// ---------------------------------------------------------------- HMAC (RFC 2104)

// The two halves of an HMAC key, each already absorbed, so that a key is scheduled once for the
// three outputs of an HKDF.
struct hmac_key {
    struct crypto_blake2b inner, outer;
};

static void hmac_key_init(struct hmac_key *k, const void *key, size_t key_len)
{
    uint8_t block[BLOCK_SIZE] = {0}, pad[BLOCK_SIZE];

    if (key_len > BLOCK_SIZE)
        crypto_blake2b(block, HASH_SIZE, key, key_len, NULL, 0, NULL);
    else if (key_len > 0)
        memcpy(block, key, key_len);
    for (size_t i = 0; i < BLOCK_SIZE; i++)
        pad[i] = block[i] ^ 0x36;
    crypto_blake2b_init(&k->inner, HASH_SIZE, NULL, 0, NULL);
    crypto_blake2b_update(&k->inner, pad, sizeof(pad));
    for (size_t i = 0; i < BLOCK_SIZE; i++)
        pad[i] = block[i] ^ 0x5c;
    crypto_blake2b_init(&k->outer, HASH_SIZE, NULL, 0, NULL);
    crypto_blake2b_update(&k->outer, pad, sizeof(pad));
    crypto_wipe(block, sizeof(block));
    crypto_wipe(pad, sizeof(pad));
}

// HMAC of a followed by b.
static void hmac(const struct hmac_key *k, uint8_t out[HASH_SIZE], const void *a, size_t a_len,
                 const void *b, size_t b_len)
{
    struct crypto_blake2b h = k->inner;
    uint8_t digest[HASH_SIZE];

    crypto_blake2b_update(&h, a, a_len);
    crypto_blake2b_update(&h, b, b_len);
    crypto_blake2b_final(&h, digest, sizeof(digest));
    h = k->outer;
    crypto_blake2b_update(&h, digest, sizeof(digest));
    crypto_blake2b_final(&h, out, HASH_SIZE);
    crypto_wipe(&h, sizeof(h));
    crypto_wipe(digest, sizeof(digest));
}

void crypto_hmac512(uint8_t out[64], const void *key, size_t key_len, const void *p, size_t n)
{
    struct hmac_key k;

    hmac_key_init(&k, key, key_len);
    hmac(&k, out, p, n, NULL, 0);
    crypto_wipe(&k, sizeof(k));
}

void crypto_noise_hkdf(const uint8_t ck[64], const void *ikm, size_t ikm_len, uint8_t out1[64],
                       uint8_t out2[64], uint8_t out3[64])
{
    struct hmac_key k;
    uint8_t temp[HASH_SIZE];

    hmac_key_init(&k, ck, HASH_SIZE);
    hmac(&k, temp, ikm, ikm_len, NULL, 0);
    hmac_key_init(&k, temp, sizeof(temp));
    hmac(&k, out1, "\x01", 1, NULL, 0); // out1 may be ck: it is not read any more
    hmac(&k, out2, out1, HASH_SIZE, "\x02", 1);
    if (out3)
        hmac(&k, out3, out2, HASH_SIZE, "\x03", 1);
    crypto_wipe(&k, sizeof(k));
    crypto_wipe(temp, sizeof(temp));
}
