#pragma once
// The cipher of records: ChaCha20-Poly1305 (RFC 8439) with the nonces of Noise, as crypto_seal()
// with CRYPTO_CHACHAPOLY, but with an object for each direction, so that an implementation may keep
// what it makes of a key. Which one that is, CMake's CAUCE_AEAD says; docs/decisions/0008 why.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/auto.h"

struct crypto_record; // one thread at a time

// seals: for crypto_record_seal(), else for crypto_record_open(). NULL: out of memory.
struct crypto_record *crypto_record_new(bool seals) MUST_CHECK;
void crypto_record_forget(struct crypto_record *r); // the key; NULL does nothing
void crypto_record_free(struct crypto_record *r);   // wipes; NULL does nothing

// out may equal in; it gets n + 16 bytes. Quickest with the same key as before. False: nothing was
// sealed, out must not be used.
bool crypto_record_seal(struct crypto_record *r, uint8_t *out, const uint8_t key[32],
                        uint64_t nonce, const void *ad, size_t ad_len, const void *in,
                        size_t n) MUST_CHECK;
// n includes the tag; out may equal in. False on a bad tag; out is not to be looked at then.
bool crypto_record_open(struct crypto_record *r, uint8_t *out, const uint8_t key[32],
                        uint64_t nonce, const void *ad, size_t ad_len, const void *in,
                        size_t n) MUST_CHECK;

const char *crypto_record_library(void); // "sodium", "libcrypto"
