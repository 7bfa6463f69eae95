#pragma once
// Digests, AEAD, key agreement, signatures, passwords, PASETO v4 tokens, key files. Only user of
// libsodium. Stateless but for the digest; any thread.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

// Once per process before anything else here. Idempotent, thread-safe.
enum status crypto_init(struct err *err) MUST_CHECK;

void crypto_wipe(void *p, size_t n);
bool crypto_equal(const void *a, const void *b, size_t n); // constant time

// ---- BLAKE2b (RFC 7693); size 1..64; key and 16-byte personal may be NULL ----
struct crypto_blake2b {
    _Alignas(64) uint8_t opaque[384];
};
void crypto_blake2b_init(struct crypto_blake2b *h, size_t size, const void *key, size_t key_len,
                         const uint8_t personal[16]);
void crypto_blake2b_update(struct crypto_blake2b *h, const void *p, size_t n);
void crypto_blake2b_final(struct crypto_blake2b *h, uint8_t *out, size_t size);
void crypto_blake2b(uint8_t *out, size_t size, const void *p, size_t n, const void *key,
                    size_t key_len, const uint8_t personal[16]);

// ---- X25519 ----
#define CRYPTO_DH_SIZE 32
void crypto_dh_keypair(uint8_t pub[32], uint8_t sec[32]);
void crypto_dh_public(uint8_t pub[32], const uint8_t sec[32]);
bool crypto_dh(uint8_t out[32], const uint8_t sec[32],
               const uint8_t pub[32]) MUST_CHECK; // false: all-zero result

// ---- HMAC-BLAKE2b-512 and Noise's HKDF (Noise rev 34 section 4.3) ----
void crypto_hmac512(uint8_t out[64], const void *key, size_t key_len, const void *p, size_t n);
void crypto_noise_hkdf(const uint8_t ck[64], const void *ikm, size_t ikm_len, uint8_t out1[64],
                       uint8_t out2[64], uint8_t out3[64]); // out3 may be NULL

// ---- AEAD with Noise's nonce layout; tag (16 bytes) appended ----
enum crypto_aead { CRYPTO_CHACHAPOLY, CRYPTO_AESGCM };
bool crypto_aead_is_available(enum crypto_aead a); // AES-GCM needs the CPU's help
// out may equal in. Returns ciphertext length n + 16.
size_t crypto_seal(enum crypto_aead a, uint8_t *out, const uint8_t key[32], uint64_t nonce,
                   const void *ad, size_t ad_len, const void *in, size_t n);
// False on a bad tag; out is untouched then as far as the caller may look.
bool crypto_open(enum crypto_aead a, uint8_t *out, const uint8_t key[32], uint64_t nonce,
                 const void *ad, size_t ad_len, const void *in, size_t n) MUST_CHECK;

// ---- Ed25519 (not named crypto_sign*: those names belong to libsodium) ----
void crypto_ed25519_keypair(uint8_t pub[32], uint8_t sec[64]);
void crypto_ed25519_seed_keypair(uint8_t pub[32], uint8_t sec[64], const uint8_t seed[32]);
void crypto_ed25519_sign(uint8_t sig[64], const uint8_t sec[64], const void *p, size_t n);
bool crypto_ed25519_verify(const uint8_t sig[64], const uint8_t pub[32], const void *p,
                           size_t n) MUST_CHECK;

// ---- passwords: Argon2id in libsodium's string form ----
struct crypto_pw_params {
    size_t mem_bytes; // 0 = 64 MiB
    unsigned passes;  // 0 = 2
};
#define CRYPTO_PW_SIZE 128
enum status crypto_pw_hash(char out[CRYPTO_PW_SIZE], const char *password, size_t len,
                           const struct crypto_pw_params *p, struct err *err) MUST_CHECK;
bool crypto_pw_verify(const char *hash, const char *password, size_t len) MUST_CHECK;
bool crypto_pw_needs_rehash(const char *hash, const struct crypto_pw_params *p);

// ---- PASETO v4 (paseto-standard Version4.md). Purpose fixed by the call, never by the token ----
// Results are appended to the buffer, on success only. footer and implicit may be NULL (empty).
#define CRYPTO_PASETO_MAX_BYTES 16384 // longer tokens are refused unread
enum status crypto_paseto_sign(struct buf *out, const uint8_t sec[64], const void *msg, size_t n,
                               const char *footer, const char *implicit,
                               struct err *err) MUST_CHECK;
// msg receives the payload. UNAUTHENTICATED on any failure but lack of memory. footer: when not
// NULL the token's must equal it; NULL takes any (it is authenticated either way).
enum status crypto_paseto_verify(struct buf *msg, const uint8_t pub[32], const char *token,
                                 size_t token_len, const char *footer, const char *implicit,
                                 struct err *err) MUST_CHECK;
enum status crypto_paseto_encrypt(struct buf *out, const uint8_t key[32], const uint8_t nonce[32],
                                  const void *msg, size_t n, const char *footer,
                                  const char *implicit,
                                  struct err *err) MUST_CHECK; // nonce NULL: random
enum status crypto_paseto_decrypt(struct buf *msg, const uint8_t key[32], const char *token,
                                  size_t token_len, const char *footer, const char *implicit,
                                  struct err *err) MUST_CHECK;

// ---- key files: one line of text each, mode 0600, refused when group or others may read ----
// "cauce-x25519-secret:<base64url>", "cauce-ed25519-secret:..."; written through a temporary name +
// fsync. A key that is there is never replaced: ALREADY_EXISTS.
enum status crypto_key_save(const char *path, const char *kind, const void *key, size_t n,
                            struct err *err) MUST_CHECK;
enum status crypto_key_load(const char *path, const char *kind, void *key, size_t n,
                            struct err *err) MUST_CHECK;
