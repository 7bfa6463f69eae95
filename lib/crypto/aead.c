// AEADs with the nonce layouts of Noise (rev 34 section 12): four zero bytes, then the counter,
// little-endian for ChaChaPoly and big-endian for AES-GCM.
#include "crypto/crypto.h"

#include <sodium.h>

#define TAG_SIZE 16
#define NONCE_SIZE 12

static void nonce_layout(enum crypto_aead a, uint8_t out[NONCE_SIZE], uint64_t nonce)
{
    out[0] = out[1] = out[2] = out[3] = 0;
    for (unsigned i = 0; i < 8; i++) {
        unsigned shift = a == CRYPTO_AESGCM ? 8 * (7 - i) : 8 * i;
        out[4 + i] = (uint8_t)(nonce >> shift);
    }
}

bool crypto_aead_is_available(enum crypto_aead a)
{
    return a == CRYPTO_CHACHAPOLY || crypto_aead_aes256gcm_is_available() == 1;
}

size_t crypto_seal(enum crypto_aead a, uint8_t *out, const uint8_t key[32], uint64_t nonce,
                   const void *ad, size_t ad_len, const void *in, size_t n)
{
    uint8_t npub[NONCE_SIZE];

    nonce_layout(a, npub, nonce);
    switch (a) {
    case CRYPTO_CHACHAPOLY:
        (void)crypto_aead_chacha20poly1305_ietf_encrypt(out, NULL, in, n, ad, ad_len, NULL, npub,
                                                        key);
        break;
    case CRYPTO_AESGCM:
        (void)crypto_aead_aes256gcm_encrypt(out, NULL, in, n, ad, ad_len, NULL, npub, key);
        break;
    }
    return n + TAG_SIZE;
}

bool crypto_open(enum crypto_aead a, uint8_t *out, const uint8_t key[32], uint64_t nonce,
                 const void *ad, size_t ad_len, const void *in, size_t n)
{
    uint8_t npub[NONCE_SIZE];

    if (n < TAG_SIZE)
        return false;
    nonce_layout(a, npub, nonce);
    switch (a) {
    case CRYPTO_CHACHAPOLY:
        return crypto_aead_chacha20poly1305_ietf_decrypt(out, NULL, NULL, in, n, ad, ad_len, npub,
                                                         key) == 0;
    case CRYPTO_AESGCM:
        return crypto_aead_aes256gcm_decrypt(out, NULL, NULL, in, n, ad, ad_len, npub, key) == 0;
    }
    return false;
}
