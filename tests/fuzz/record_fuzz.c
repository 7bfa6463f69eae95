// Opening records: raw bytes are refused, sealed ones open to what was sealed, and sealed ones in
// which anything was changed are refused; after a refusal nothing opens any more.
#include <string.h>

#include "base/mem.h"
#include "channel/internal.h"
#include "crypto/crypto.h"
#include "fuzz.h"
#include "fuzz_keys.h"

#define HEAD (CHAN_RECORD_OVERHEAD - CHAN_TAG_SIZE)

// A session is made once, and each input finds it as it was then.
static struct chan *client, *server;
static struct chan client_then, server_then;

static void connect_once(void)
{
    static struct fuzz_world world;
    struct err err = ERR_INIT;
    enum chan_event event;
    uint8_t *data;
    size_t n;
    struct buf init, response;
    if (client)
        return;
    fuzz_world_init(&world);
    server = fuzz_responder(&world);
    client = fuzz_initiator(&world, CHAN_LINK_CLIENT);
    buf_init(&init, CHAN_MAX_HANDSHAKE);
    buf_init(&response, CHAN_MAX_HANDSHAKE);
    FUZZ_CHECK(chan_start(client, &init, &err) == STATUS_OK);
    FUZZ_CHECK(chan_receive(server, init.data, init.len, &response, &event, &data, &n, &err) ==
               STATUS_OK);
    FUZZ_CHECK(chan_receive(client, response.data, response.len, &init, &event, &data, &n, &err) ==
               STATUS_OK);
    FUZZ_CHECK(chan_is_ready(client) && chan_is_ready(server));
    memcpy(&client_then, client, sizeof client_then);
    memcpy(&server_then, server, sizeof server_then);
    buf_done(&init);
    buf_done(&response);
}

struct opened {
    enum status s;
    enum chan_event event;
    uint8_t *data;
    size_t n;
};

static struct opened receive(uint8_t *p, size_t n)
{
    struct opened o = {.event = CHAN_NOTHING};
    struct err err = ERR_INIT;
    struct buf out;
    buf_init(&out, CHAN_MAX_RECORD);
    o.s = chan_receive(server, p, n, &out, &o.event, &o.data, &o.n, &err);
    FUZZ_CHECK(o.s == STATUS_OK || (o.s == STATUS_UNAVAILABLE && out.len == 0 && err.msg[0]));
    buf_done(&out);
    return o;
}

static uint8_t *sealed(struct fuzz_input in, size_t *ret_n)
{
    uint8_t *p = mem_alloc(in.n + CHAN_RECORD_OVERHEAD);
    FUZZ_CHECK(p);
    if (in.n)
        memcpy(p + HEAD, in.p, in.n);
    *ret_n = chan_seal(client, p, in.n, NULL);
    return p;
}

static void nothing_opens(void)
{
    size_t n;
    AUTO(mem_free_p) uint8_t *p = sealed((struct fuzz_input){0}, &n);
    FUZZ_CHECK(receive(p, n).s != STATUS_OK);
}

// A fuzzer that watches comparisons may learn what the client seals, and nothing else opens.
static void try_raw(struct fuzz_input in)
{
    AUTO(mem_free_p) uint8_t *p = mem_dup(in.n ? in.p : (const void *)"", in.n);
    FUZZ_CHECK(p);
    struct opened o = receive(p, in.n);
    if (o.event == CHAN_DATA) {
        size_t n;
        AUTO(mem_free_p) uint8_t *same = sealed((struct fuzz_input){o.data, o.n}, &n);
        FUZZ_CHECK(n == in.n && memcmp(same, in.p, n) == 0);
    }
    if (o.s != STATUS_OK)
        nothing_opens();
}

static void try_sealed(struct fuzz_input in, struct fuzz_input flips)
{
    size_t n;
    AUTO(mem_free_p) uint8_t *p = sealed(in, &n);
    FUZZ_CHECK(n == in.n + CHAN_RECORD_OVERHEAD);
    AUTO(mem_free_p) uint8_t *copy = mem_dup(p, n);
    FUZZ_CHECK(copy);
    while (flips.n) {
        size_t at = fuzz_u16(&flips) % n;
        p[at] ^= fuzz_u8(&flips);
    }
    bool changed = memcmp(copy, p, n) != 0;
    bool stray = memcmp(copy + 4, p + 4, CHAN_SESSION_SIZE) != 0; // another session's: dropped
    struct opened o = receive(p, n);
    if (!changed) {
        FUZZ_CHECK(o.s == STATUS_OK && o.event == CHAN_DATA && o.n == in.n);
        FUZZ_CHECK(in.n == 0 || memcmp(o.data, in.p, in.n) == 0);
        FUZZ_CHECK(receive(copy, n).s != STATUS_OK); // again
        nothing_opens();
    } else {
        FUZZ_CHECK(o.event == CHAN_NOTHING && (stray || o.s != STATUS_OK));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    connect_once();
    if (fuzz_u8(&in) & 1) {
        struct fuzz_input flips = fuzz_part(&in);
        if (in.n <= CHAN_MAX_RECORD - CHAN_RECORD_OVERHEAD)
            try_sealed(in, flips);
    } else {
        try_raw(in);
    }
    memcpy(client, &client_then, sizeof client_then);
    memcpy(server, &server_then, sizeof server_then);
    return 0;
}
