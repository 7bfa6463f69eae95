// Records sealed by OpenSSL's libcrypto: the same bytes. A context keeps the cipher and the key, so
// a record sets its nonce and nothing else, and allocates nothing.
#include <limits.h>
#include <string.h>

#include <openssl/evp.h>

#include "base/mem.h"
#include "crypto/aead.h"
#include "crypto/crypto.h"

#define TAG_SIZE 16
#define NONCE_SIZE 12

struct crypto_record {
    EVP_CIPHER_CTX *ctx;
    bool seals, has_key;
    uint8_t key[32]; // that ctx has
};

static bool start(struct crypto_record *r)
{
    return EVP_CipherInit_ex(r->ctx, EVP_chacha20_poly1305(), NULL, NULL, NULL, r->seals) == 1;
}

struct crypto_record *crypto_record_new(bool seals)
{
    struct crypto_record *r = mem_alloc(sizeof(*r));

    if (!r)
        return NULL;
    r->seals = seals;
    r->ctx = EVP_CIPHER_CTX_new();
    if (r->ctx && start(r))
        return r;
    crypto_record_free(r);
    return NULL;
}

void crypto_record_free(struct crypto_record *r)
{
    if (!r)
        return;
    EVP_CIPHER_CTX_free(r->ctx); // wipes
    crypto_wipe(r, sizeof(*r));
    mem_free(r);
}

void crypto_record_forget(struct crypto_record *r)
{
    if (!r || !r->has_key)
        return;
    r->has_key = false;
    crypto_wipe(r->key, sizeof(r->key));
    EVP_CIPHER_CTX_reset(r->ctx); // wipes
}

static bool use_key(struct crypto_record *r, const uint8_t key[32])
{
    if (r->has_key && crypto_equal(r->key, key, sizeof(r->key)))
        return true;
    r->has_key = start(r) && EVP_CipherInit_ex(r->ctx, NULL, NULL, key, NULL, -1) == 1;
    memcpy(r->key, key, sizeof(r->key));
    return r->has_key;
}

static bool begin(struct crypto_record *r, const uint8_t key[32], uint64_t nonce, const void *ad,
                  size_t ad_len)
{
    uint8_t iv[NONCE_SIZE] = {0};
    int len;

    if (ad_len > INT_MAX || !use_key(r, key))
        return false;
    for (unsigned i = 0; i < 8; i++)
        iv[4 + i] = (uint8_t)(nonce >> 8 * i);
    return EVP_CipherInit_ex(r->ctx, NULL, NULL, NULL, iv, -1) == 1 &&
           (ad_len == 0 || EVP_CipherUpdate(r->ctx, NULL, &len, ad, (int)ad_len) == 1);
}

// A stream cipher: nothing is left over for the end.
static bool run(struct crypto_record *r, uint8_t *out, const void *in, size_t n)
{
    int len = 0;

    return n == 0 || (n <= INT_MAX && EVP_CipherUpdate(r->ctx, out, &len, in, (int)n) == 1 &&
                      (size_t)len == n);
}

bool crypto_record_seal(struct crypto_record *r, uint8_t *out, const uint8_t key[32],
                        uint64_t nonce, const void *ad, size_t ad_len, const void *in, size_t n)
{
    int len;

    return begin(r, key, nonce, ad, ad_len) && run(r, out, in, n) &&
           EVP_CipherFinal_ex(r->ctx, out + n, &len) == 1 &&
           EVP_CIPHER_CTX_ctrl(r->ctx, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, out + n) == 1;
}

bool crypto_record_open(struct crypto_record *r, uint8_t *out, const uint8_t key[32],
                        uint64_t nonce, const void *ad, size_t ad_len, const void *in, size_t n)
{
    uint8_t tag[TAG_SIZE], none[TAG_SIZE];
    int len;

    if (n < TAG_SIZE)
        return false;
    n -= TAG_SIZE;
    for (size_t i = 0; i < TAG_SIZE; i++)
        tag[i] = ((const uint8_t *)in)[n + i];
    return begin(r, key, nonce, ad, ad_len) && run(r, out, in, n) &&
           EVP_CIPHER_CTX_ctrl(r->ctx, EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, tag) == 1 &&
           EVP_CipherFinal_ex(r->ctx, none, &len) == 1;
}

const char *crypto_record_library(void)
{
    return "libcrypto";
}
