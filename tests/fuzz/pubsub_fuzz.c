// Published messages: what a subscriber is sent by anybody, and what the publisher's own become
// when a bit of them changes.
#include <string.h>

#include "crypto/crypto.h"
#include "fuzz.h"
#include "fuzz_keys.h"
#include "rpc/pubsub.h"

static struct pubsub_writer writer;

static void reader_for(struct pubsub_reader *r)
{
    struct pubsub_grant g;
    pubsub_grant_of(&writer, &g);
    pubsub_reader_init(r, FUZZ_TOPIC);
    pubsub_reader_adopt(r, &g, 0);
}

static void try_raw(struct fuzz_input in)
{
    struct pubsub_reader r;
    const uint8_t *payload = NULL;
    size_t n = 0;
    uint8_t *msg = malloc(in.n + 1);
    FUZZ_CHECK(msg);
    memcpy(msg, in.p, in.n);
    reader_for(&r);
    if (pubsub_open(&r, msg, in.n, 1, &payload, &n) == PUBSUB_OPENED)
        FUZZ_CHECK(payload >= msg && payload + n <= msg + in.n);
    pubsub_reader_done(&r);
    free(msg);
}

// Sealed by the publisher; then flips: pairs of a place and what to change there.
static void try_sealed(struct fuzz_input in, struct fuzz_input flips)
{
    struct pubsub_reader r;
    struct buf b;
    struct err err = ERR_INIT;
    const uint8_t *payload = NULL;
    size_t n = 0;
    bool changed = false;
    reader_for(&r);
    buf_init(&b, 1 << 20);
    if (pubsub_seal(&writer, in.p, in.n, &b, &err) == STATUS_OK) {
        uint8_t *copy = malloc(b.len);
        FUZZ_CHECK(copy);
        memcpy(copy, b.data, b.len);
        while (flips.n) {
            size_t at = fuzz_u16(&flips) % b.len;
            b.data[at] ^= fuzz_u8(&flips);
        }
        changed = memcmp(copy, b.data, b.len) != 0;
        free(copy);
        enum pubsub_result got = pubsub_open(&r, b.data, b.len, 1, &payload, &n);
        FUZZ_CHECK((got == PUBSUB_OPENED) == !changed);
        FUZZ_CHECK(changed || (n == in.n && (n == 0 || memcmp(payload, in.p, n) == 0)));
    } else {
        FUZZ_CHECK(in.n > PUBSUB_MAX_PAYLOAD);
    }
    buf_done(&b);
    pubsub_reader_done(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    fuzz_keys_init();
    fuzz_writer(&writer);
    if (fuzz_u8(&in) & 1) {
        struct fuzz_input flips = fuzz_part(&in);
        try_sealed(in, flips);
    } else {
        try_raw(in);
    }
    pubsub_writer_done(&writer);
    return 0;
}
