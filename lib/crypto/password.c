// Passwords: Argon2id in libsodium's string form, which carries its own salt and parameters.
#include "crypto/crypto.h"

#include <sodium.h>

#define DEFAULT_MEM_BYTES (64U << 20)
#define DEFAULT_PASSES 2U

_Static_assert(CRYPTO_PW_SIZE >= crypto_pwhash_argon2id_STRBYTES, "room for libsodium's string");

static struct crypto_pw_params with_defaults(const struct crypto_pw_params *p)
{
    struct crypto_pw_params r = p ? *p : (struct crypto_pw_params){0};

    if (r.mem_bytes == 0)
        r.mem_bytes = DEFAULT_MEM_BYTES;
    if (r.passes == 0)
        r.passes = DEFAULT_PASSES;
    return r;
}

enum status crypto_pw_hash(char out[CRYPTO_PW_SIZE], const char *password, size_t len,
                           const struct crypto_pw_params *p, struct err *err)
{
    struct crypto_pw_params r = with_defaults(p);
    char hash[crypto_pwhash_argon2id_STRBYTES];

    if (r.mem_bytes < crypto_pwhash_argon2id_MEMLIMIT_MIN ||
        r.mem_bytes > crypto_pwhash_argon2id_MEMLIMIT_MAX ||
        r.passes < crypto_pwhash_argon2id_OPSLIMIT_MIN)
        return err_set(err, STATUS_INVALID_ARGUMENT, "password hash: %zu bytes and %u passes",
                       r.mem_bytes, r.passes);
    if (crypto_pwhash_argon2id_str(hash, password, len, r.passes, r.mem_bytes) != 0)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "password hash: %zu bytes of memory",
                       r.mem_bytes);
    for (size_t i = 0; i < sizeof(hash); i++)
        out[i] = hash[i];
    return STATUS_OK;
}

bool crypto_pw_verify(const char *hash, const char *password, size_t len)
{
    return crypto_pwhash_argon2id_str_verify(hash, password, len) == 0;
}

bool crypto_pw_needs_rehash(const char *hash, const struct crypto_pw_params *p)
{
    struct crypto_pw_params r = with_defaults(p);

    return crypto_pwhash_argon2id_str_needs_rehash(hash, r.passes, r.mem_bytes) != 0;
}
