// Key agreement and signatures: X25519 (RFC 7748) and Ed25519 (RFC 8032).
#include "crypto/crypto.h"

#include <sodium.h>

void crypto_dh_keypair(uint8_t pub[32], uint8_t sec[32])
{
    randombytes_buf(sec, CRYPTO_DH_SIZE);
    crypto_dh_public(pub, sec);
}

void crypto_dh_public(uint8_t pub[32], const uint8_t sec[32])
{
    (void)crypto_scalarmult_base(pub, sec);
}

bool crypto_dh(uint8_t out[32], const uint8_t sec[32], const uint8_t pub[32])
{
    return crypto_scalarmult(out, sec, pub) == 0;
}

void crypto_ed25519_keypair(uint8_t pub[32], uint8_t sec[64])
{
    (void)crypto_sign_ed25519_keypair(pub, sec);
}

void crypto_ed25519_seed_keypair(uint8_t pub[32], uint8_t sec[64], const uint8_t seed[32])
{
    (void)crypto_sign_ed25519_seed_keypair(pub, sec, seed);
}

void crypto_ed25519_sign(uint8_t sig[64], const uint8_t sec[64], const void *p, size_t n)
{
    (void)crypto_sign_ed25519_detached(sig, NULL, p, n, sec);
}

bool crypto_ed25519_verify(const uint8_t sig[64], const uint8_t pub[32], const void *p, size_t n)
{
    return crypto_sign_ed25519_verify_detached(sig, p, n, pub) == 0;
}
