#include "crypto/crypto.h"

#include <sodium.h>

enum status crypto_init(struct err *err)
{
    if (sodium_init() < 0)
        return err_set(err, STATUS_INTERNAL,
                       "cryptography: libsodium cannot start; check that getrandom or /dev/urandom "
                       "works");
    return STATUS_OK;
}

void crypto_wipe(void *p, size_t n)
{
    if (n > 0)
        sodium_memzero(p, n);
}

bool crypto_equal(const void *a, const void *b, size_t n)
{
    return n == 0 || sodium_memcmp(a, b, n) == 0;
}
