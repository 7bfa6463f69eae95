// Handshakes of every link, both sides, and those inside a session. A fuzzer cannot make a mac1 or
// a tag, so it is given both: the first byte says how far an input is helped.
#include <string.h>

#include "base/mem.h"
#include "channel/internal.h"
#include "crypto/crypto.h"
#include "fuzz.h"
#include "fuzz_keys.h"

enum how {
    RAW,            // a responder is sent the input's parts as they are
    MAC1,           // with the right mac1 and length
    RESPONSE,       // an initiator is, with its session, mac1 and length
    INIT_PAYLOAD,   // a payload in a first message that opens
    ANSWER_PAYLOAD, // and in a second one
    FINISH_PAYLOAD, // and in a third one
    INSIDE_SESSION, // sealed records of a handshake inside a session, either way
    N_HOWS
};

static struct fuzz_world world;

// Feeds n bytes. Who refuses stays silent, and takes nothing any more.
static bool feed(struct chan *c, uint8_t *p, size_t n, struct buf *out)
{
    struct err err = ERR_INIT;
    enum chan_event event = CHAN_NOTHING;
    uint8_t *data = NULL;
    size_t len = 0;
    buf_reset(out);
    enum status s = chan_receive(c, p, n, out, &event, &data, &len, &err);
    FUZZ_CHECK(s == STATUS_OK || s == STATUS_UNAVAILABLE);
    if (s == STATUS_OK) {
        FUZZ_CHECK(event != CHAN_DATA || (data >= p && data + len <= p + n));
        return true;
    }
    FUZZ_CHECK(out->len == 0 && err.msg[0] && !chan_is_ready(c));
    FUZZ_CHECK(chan_refusal(c) != CHAN_FINE || c->state == CHAN_ST_CLOSED);
    return false;
}

// A frame of a handshake around bytes of the input; the caller frees it.
static uint8_t *frame(const struct chan *c, enum chan_type type, unsigned link,
                      struct fuzz_input noise, size_t *ret_n)
{
    uint8_t mac1_key[32];
    uint8_t *p = mem_alloc(noise.n + CHAN_HANDSHAKE_OVERHEAD);
    FUZZ_CHECK(p);
    chan_mac1_key(mac1_key, world.server.public_key);
    chan_put_header(p, c, type);
    p[CHAN_HEADER_SIZE] = (uint8_t)link;
    p[CHAN_HEADER_SIZE + 1] = (uint8_t)(noise.n >> 8);
    p[CHAN_HEADER_SIZE + 2] = (uint8_t)noise.n;
    if (noise.n)
        memcpy(p + CHAN_HEADER_SIZE + 3, noise.p, noise.n);
    *ret_n = noise.n + CHAN_HANDSHAKE_OVERHEAD;
    chan_mac1(p + *ret_n - CHAN_MAC1_SIZE, mac1_key, p, *ret_n - CHAN_MAC1_SIZE);
    return p;
}

static void respond_raw(struct fuzz_input in, struct buf *out)
{
    struct chan *server = fuzz_responder(&world);
    for (bool ok = true; ok && in.n;) {
        struct fuzz_input part = fuzz_part(&in);
        AUTO(mem_free_p) uint8_t *p = mem_dup(part.n ? part.p : (const void *)"", part.n);
        FUZZ_CHECK(p);
        ok = feed(server, p, part.n, out);
    }
    FUZZ_CHECK(!chan_is_ready(server) || chan_peer(server)->link == CHAN_LINK_CLIENT);
    chan_free(server);
}

static void respond_mac1(struct fuzz_input in, struct buf *out)
{
    struct chan *server = fuzz_responder(&world);
    bool ok = true;
    static const enum chan_type types[] = {CHAN_INIT, CHAN_FINISH};
    for (unsigned i = 0; ok && i < N_ELEMENTS(types); i++) {
        unsigned link = fuzz_u8(&in);
        struct fuzz_input part = fuzz_part(&in);
        size_t n;
        AUTO(mem_free_p) uint8_t *p = frame(server, types[i], link, part, &n);
        ok = feed(server, p, n, out);
    }
    chan_free(server);
}

static enum chan_link link_of(struct fuzz_input *in)
{
    return (enum chan_link)(CHAN_LINK_CLIENT + fuzz_u8(in) % 3);
}

static struct chan *started(enum chan_link link, struct buf *out)
{
    struct chan *c = fuzz_initiator(&world, link);
    struct err err = ERR_INIT;
    buf_reset(out);
    FUZZ_CHECK(chan_start(c, out, &err) == STATUS_OK);
    return c;
}

static void answer(struct fuzz_input in, struct buf *out)
{
    enum chan_link link = link_of(&in);
    struct chan *client = started(link, out);
    size_t n;
    AUTO(mem_free_p) uint8_t *p = frame(client, CHAN_RESPONSE, link, in, &n);
    FUZZ_CHECK(!feed(client, p, n, out)); // nobody can guess it
    chan_free(client);
}

// ---------------------------------------------------------------- payloads

// A Noise handshake whose payloads are the input's.
static void noise_of(struct noise *n, enum chan_link link, bool is_initiator)
{
    static const char *const names[] = {
        [CHAN_LINK_CLIENT] = "Noise_NK_25519_ChaChaPoly_BLAKE2b",
        [CHAN_LINK_SERVICE] = "Noise_IK_25519_ChaChaPoly_BLAKE2b",
        [CHAN_LINK_ENROL] = "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2b",
    };
    uint8_t prologue[9] = "cauce/1";
    const struct chan_identity *me = is_initiator ? &world.client : &world.server;
    struct noise_keypair s = {.is_set = true};
    struct err err = ERR_INIT;
    prologue[7] = CHAN_VERSION;
    prologue[8] = (uint8_t)link;
    memcpy(s.public_key, me->public_key, sizeof s.public_key);
    memcpy(s.secret, me->secret, sizeof s.secret);
    struct noise_opts o = {
        .protocol = names[link],
        .is_initiator = is_initiator,
        .prologue = prologue,
        .prologue_len = sizeof prologue,
        .s = link == CHAN_LINK_CLIENT && is_initiator ? NULL : &s,
        .rs = is_initiator && link != CHAN_LINK_ENROL ? world.server.public_key : NULL,
        .psk = link == CHAN_LINK_ENROL ? world.join.secret : NULL,
    };
    FUZZ_CHECK(noise_init(n, &o, &err) == STATUS_OK);
}

// The next message of the handshake around that payload, fed to c.
static bool send_payload(struct noise *noise, struct chan *c, enum chan_type type,
                         enum chan_link link, struct fuzz_input payload, struct buf *out)
{
    uint8_t message[CHAN_MAX_HANDSHAKE];
    size_t n = noise_write(noise, payload.n ? payload.p : (const void *)"", payload.n, message,
                           sizeof message);
    if (n == 0)
        return false;
    AUTO(mem_free_p)
    uint8_t *p = frame(c, type, (unsigned)link, (struct fuzz_input){message, n}, &n);
    return feed(c, p, n, out);
}

static struct fuzz_input noise_part(const uint8_t *frame_bytes, size_t n)
{
    FUZZ_CHECK(n > CHAN_HANDSHAKE_OVERHEAD);
    return (struct fuzz_input){frame_bytes + CHAN_HEADER_SIZE + 3, n - CHAN_HANDSHAKE_OVERHEAD};
}

static void read_answer(struct noise *noise, const struct buf *out)
{
    uint8_t payload[CHAN_MAX_HANDSHAKE];
    size_t n;
    struct fuzz_input m = noise_part(out->data, out->len);
    FUZZ_CHECK(noise_read(noise, m.p, m.n, payload, &n));
}

static void init_payload(struct fuzz_input in, struct buf *out, bool finish)
{
    enum chan_link link = finish ? CHAN_LINK_ENROL : link_of(&in);
    struct chan *server = fuzz_responder(&world);
    struct noise noise;
    uint8_t join[3 + CHAN_JOIN_ID_SIZE] = {2, 0, CHAN_JOIN_ID_SIZE};
    memcpy(join + 3, world.join.id, CHAN_JOIN_ID_SIZE);
    noise_of(&noise, link, true);
    struct fuzz_input good = {join, sizeof join};
    bool ok = send_payload(&noise, server, CHAN_INIT, link, finish ? good : in, out);
    FUZZ_CHECK(!finish || ok);
    if (finish) {
        read_answer(&noise, out);
        FUZZ_CHECK(send_payload(&noise, server, CHAN_FINISH, link, in, out) ||
                   in.n + CHAN_HANDSHAKE_OVERHEAD + 64 > CHAN_MAX_HANDSHAKE);
    }
    noise_wipe(&noise);
    chan_free(server);
}

static void answer_payload(struct fuzz_input in, struct buf *out)
{
    enum chan_link link = link_of(&in);
    struct chan *client = started(link, out);
    struct noise noise;
    noise_of(&noise, link, false);
    read_answer(&noise, out);
    (void)send_payload(&noise, client, CHAN_RESPONSE, link, in, out);
    noise_wipe(&noise);
    chan_free(client);
}

// ---------------------------------------------------------------- inside a session

static uint8_t *seal(struct chan *c, enum chan_type type, struct fuzz_input in, size_t *ret_n)
{
    uint8_t *p = mem_alloc(in.n + CHAN_RECORD_OVERHEAD);
    FUZZ_CHECK(p);
    chan_put_header(p, c, type);
    for (unsigned i = 0; i < 8; i++)
        p[CHAN_HEADER_SIZE + i] = (uint8_t)(c->send.counter >> (56 - 8 * i));
    size_t head = CHAN_HEADER_SIZE + CHAN_COUNTER_SIZE;
    *ret_n = head + crypto_seal(CRYPTO_CHACHAPOLY, p + head, c->send.key, c->send.counter++, p,
                                head, in.n ? in.p : (const void *)"", in.n);
    return p;
}

static struct chan *connect_service(struct chan *server, struct buf *out)
{
    struct chan *client = started(CHAN_LINK_SERVICE, out);
    struct buf response;
    buf_init(&response, CHAN_MAX_HANDSHAKE);
    FUZZ_CHECK(feed(server, out->data, out->len, &response));
    FUZZ_CHECK(feed(client, response.data, response.len, out) && chan_is_ready(client));
    buf_done(&response);
    size_t n;
    AUTO(mem_free_p) uint8_t *p = seal(client, CHAN_RECORD, (struct fuzz_input){0}, &n);
    FUZZ_CHECK(feed(server, p, n, out) && chan_is_ready(server));
    return client;
}

static void inside(struct fuzz_input in, struct buf *out)
{
    struct chan *server = fuzz_responder(&world), *client = connect_service(server, out);
    struct err err = ERR_INIT;
    unsigned how = fuzz_u8(&in);
    if (how & 1) { // a true one is under way as well
        buf_reset(out);
        FUZZ_CHECK(chan_renew(client, world.server.public_key, out, &err) == STATUS_OK);
        struct buf sealed;
        buf_init(&sealed, CHAN_MAX_RECORD);
        if (how & 2)
            FUZZ_CHECK(feed(server, out->data, out->len, &sealed));
        buf_done(&sealed);
    }
    struct chan *from = how & 4 ? server : client, *to = how & 4 ? client : server;
    for (bool ok = true; ok && in.n;) {
        enum chan_type type = (enum chan_type)(CHAN_RECORD + fuzz_u8(&in) % 6);
        bool with_mac = fuzz_u8(&in) & 1;
        struct fuzz_input part = fuzz_part(&in);
        size_t n, n_frame = part.n;
        enum chan_type frame_type = type == CHAN_RENEW_INIT ? CHAN_INIT : CHAN_RESPONSE;
        AUTO(mem_free_p)
        uint8_t *f = with_mac ? frame(from, frame_type, CHAN_LINK_SERVICE, part, &n_frame) : NULL;
        if (f)
            part = (struct fuzz_input){f, n_frame};
        AUTO(mem_free_p) uint8_t *p = seal(from, type, part, &n);
        ok = feed(to, p, n, out);
    }
    chan_free(client);
    chan_free(server);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct buf out;
    fuzz_world_init(&world);
    buf_init(&out, CHAN_MAX_RECORD);
    switch ((enum how)(fuzz_u8(&in) % N_HOWS)) {
    case RAW:
        respond_raw(in, &out);
        break;
    case MAC1:
        respond_mac1(in, &out);
        break;
    case RESPONSE:
        answer(in, &out);
        break;
    case INIT_PAYLOAD:
        init_payload(in, &out, false);
        break;
    case ANSWER_PAYLOAD:
        answer_payload(in, &out);
        break;
    case FINISH_PAYLOAD:
        init_payload(in, &out, true);
        break;
    case INSIDE_SESSION:
        inside(in, &out);
        break;
    case N_HOWS:
        break;
    }
    buf_done(&out);
    return 0;
}
