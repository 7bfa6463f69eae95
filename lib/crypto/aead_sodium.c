// Records sealed by libsodium, which keeps nothing between two of them.
#include "crypto/aead.h"
#include "crypto/crypto.h"

struct crypto_record {
    char nothing;
};

struct crypto_record *crypto_record_new(bool seals)
{
    static struct crypto_record everybodys; // never written to
    (void)seals;
    return &everybodys;
}

void crypto_record_forget(struct crypto_record *r)
{
    (void)r;
}

void crypto_record_free(struct crypto_record *r)
{
    (void)r;
}

bool crypto_record_seal(struct crypto_record *r, uint8_t *out, const uint8_t key[32],
                        uint64_t nonce, const void *ad, size_t ad_len, const void *in, size_t n)
{
    (void)r;
    (void)crypto_seal(CRYPTO_CHACHAPOLY, out, key, nonce, ad, ad_len, in, n);
    return true;
}

bool crypto_record_open(struct crypto_record *r, uint8_t *out, const uint8_t key[32],
                        uint64_t nonce, const void *ad, size_t ad_len, const void *in, size_t n)
{
    (void)r;
    return crypto_open(CRYPTO_CHACHAPOLY, out, key, nonce, ad, ad_len, in, n);
}

const char *crypto_record_library(void)
{
    return "sodium";
}
