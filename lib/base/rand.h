#pragma once
// Random bytes from the kernel (getrandom), and ids made of them.
#include <stddef.h>
#include <stdint.h>

void rand_bytes(void *p, size_t n); // aborts only if the kernel has no entropy source at all
uint64_t rand_u64(void);
uint64_t rand_below(uint64_t n); // uniform in [0, n); n > 0

// UUIDv7 (RFC 9562 section 5.7), text form; ids made later by this process sort later.
#define UUID_SIZE 37
void rand_uuid7(char dst[UUID_SIZE]);
_Bool uuid_is_valid(const char *s); // canonical lower-case text form
