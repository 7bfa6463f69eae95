#include "base/rand.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/time.h"

void rand_bytes(void *p, size_t n)
{
    unsigned char *at = p;
    while (n > 0) {
        ssize_t got = getrandom(at, n, 0);
        if (got < 0 && errno != EINTR)
            abort();
        if (got > 0) {
            at += got;
            n -= (size_t)got;
        }
    }
}

uint64_t rand_u64(void)
{
    uint64_t v;
    rand_bytes(&v, sizeof v);
    return v;
}

uint64_t rand_below(uint64_t n)
{
    uint64_t skip = (0 - n) % n; // values below this would make the low results likelier
    uint64_t v;
    do
        v = rand_u64();
    while (v < skip);
    return v % n;
}

// The last time and counter given out: RFC 9562 section 6.2 method 1, a 12 bit counter in rand_a,
// seeded at random in its lower half and borrowing from the next millisecond when it runs over.
static struct {
    pthread_mutex_t lock;
    int64_t ms;
    unsigned counter;
} uuid_last = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void uuid_tick(int64_t *ret_ms, unsigned *ret_counter)
{
    int64_t now = time_wall_ms();
    pthread_mutex_lock(&uuid_last.lock);
    if (now > uuid_last.ms) {
        uuid_last.ms = now;
        uuid_last.counter = (unsigned)rand_below(0x800);
    } else if (++uuid_last.counter > 0xfff) {
        uuid_last.ms++;
        uuid_last.counter = 0;
    }
    *ret_ms = uuid_last.ms;
    *ret_counter = uuid_last.counter;
    pthread_mutex_unlock(&uuid_last.lock);
}

void rand_uuid7(char dst[UUID_SIZE])
{
    int64_t ms;
    unsigned counter;
    uuid_tick(&ms, &counter);
    uint64_t tail = rand_u64();
    snprintf(dst, UUID_SIZE, "%08x-%04x-7%03x-%04x-%012llx", (unsigned)(ms >> 16) & 0xffffffffU,
             (unsigned)ms & 0xffffU, counter, 0x8000U | (unsigned)(tail >> 48 & 0x3fff),
             (unsigned long long)(tail & 0xffffffffffffULL));
}

_Bool uuid_is_valid(const char *s)
{
    static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
    if (!s || strlen(s) != sizeof shape - 1)
        return false;
    for (size_t i = 0; shape[i]; i++) {
        bool hex = (s[i] >= '0' && s[i] <= '9') || (s[i] >= 'a' && s[i] <= 'f');
        if (shape[i] == '-' ? s[i] != '-' : !hex)
            return false;
    }
    return true;
}
