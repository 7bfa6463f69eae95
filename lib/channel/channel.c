// One side of one connection.
//
//   initiator   NEW -> SENT_INIT -> OPEN
//   responder   NEW -> OPEN (NK) or UNCONFIRMED -> OPEN at the first valid record (IK)
//   from OPEN   LEFT (we closed), CLOSED (the peer did)      from anywhere   DEAD (something wrong)
//
// Frames (big-endian):
//   header       "CQ" | version 1 | type 1 | session 8
//   handshake    header | link 1 | length 2 | noise message | mac1 16
//   record       header | counter 8 | ciphertext | tag 16       associated data: what precedes it
//
// mac1 needs nothing but the responder's public key. It is no proof of identity; it makes bytes
// from somebody who does not even know whom they talk to cost 0.4 us instead of a key agreement.
//
// An IK responder sends nothing until the initiator's first record came: before that the first
// message may be a replay, and what we sent would have weak forward secrecy only. An NK responder
// need not wait: its peer is anonymous anyway, and a replayer cannot read the answer.
//
// Whatever is wrong, the peer hears nothing: no answer tells it which check failed.
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/time.h"
#include "channel/internal.h"
#include "crypto/crypto.h"

#define MAGIC "CQ"
#define PAYLOAD_STEP 64 // payloads are padded to a multiple, so that their length tells little
#define HANDSHAKE_OVERHEAD (CHAN_HEADER_SIZE + 1 + 2 + CHAN_MAC1_SIZE)

_Static_assert(CHAN_RECORD_OVERHEAD == CHAN_HEADER_SIZE + CHAN_COUNTER_SIZE + CHAN_TAG_SIZE,
               "the public header says how much room a record needs");

// Fields of a handshake payload: type 1, length 2, value. The first FIELD_END ends the payload;
// fields of unknown types are skipped.
enum { FIELD_END = 0, FIELD_GRANT = 1 };

static const struct {
    enum chan_link link;
    const char *protocol;
    bool has_grants; // both sides show who they are
} links[] = {
    {CHAN_LINK_CLIENT, "Noise_NK_25519_ChaChaPoly_BLAKE2b", false},
    {CHAN_LINK_SERVICE, "Noise_IK_25519_ChaChaPoly_BLAKE2b", true},
};
#define LINKS_KNOWN (1U << CHAN_LINK_CLIENT | 1U << CHAN_LINK_SERVICE)

static const char *link_protocol(enum chan_link link)
{
    for (size_t i = 0; i < N_ELEMENTS(links); i++)
        if (links[i].link == link)
            return links[i].protocol;
    return NULL;
}

static bool link_has_grants(enum chan_link link)
{
    for (size_t i = 0; i < N_ELEMENTS(links); i++)
        if (links[i].link == link)
            return links[i].has_grants;
    return false;
}

// ---------------------------------------------------------------- mac1

void chan_mac1_key(uint8_t out[32], const uint8_t responder_key[32])
{
    struct crypto_blake2b h;

    crypto_blake2b_init(&h, 32, NULL, 0, NULL);
    crypto_blake2b_update(&h, "cauce-mac1", 10);
    crypto_blake2b_update(&h, responder_key, 32);
    crypto_blake2b_final(&h, out, 32);
}

void chan_mac1(uint8_t out[CHAN_MAC1_SIZE], const uint8_t mac1_key[32], const void *frame, size_t n)
{
    crypto_blake2b(out, CHAN_MAC1_SIZE, frame, n, mac1_key, 32, NULL);
}

// ---------------------------------------------------------------- life

static void handshake_free(struct chan_handshake *hs)
{
    if (!hs)
        return;
    crypto_wipe(hs, sizeof(*hs));
    mem_free(hs);
}

static void die(struct chan *c)
{
    handshake_free(TAKE(c->hs));
    crypto_wipe(&c->send, sizeof(c->send));
    crypto_wipe(&c->receive, sizeof(c->receive));
    c->state = CHAN_ST_DEAD;
}

static enum status refuse(struct chan *c, struct err *err, const char *why)
{
    die(c);
    return err_set(err, STATUS_UNAVAILABLE, "channel: %s", why);
}

void chan_free(struct chan *c)
{
    if (!c)
        return;
    die(c);
    crypto_wipe(c, sizeof(*c));
    mem_free(c);
}

static struct chan *chan_new(const struct chan_identity *id, const struct chan_trust *trust,
                             struct err *err)
{
    AUTO(chan_free_p) struct chan *c = mem_alloc(sizeof(*c));
    if (c)
        c->hs = mem_alloc(sizeof(*c->hs));
    if (!c || !c->hs) {
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "channel: out of memory");
        return NULL;
    }
    if (id) {
        c->hs->id = *id;
        c->hs->has_id = true;
    }
    if (trust) {
        c->hs->trust = *trust;
        c->hs->has_trust = true;
    }
    return TAKE(c);
}

static bool grants_possible(const struct chan_identity *id, const struct chan_trust *trust)
{
    return id && trust && id->grant_len > 0 && id->grant_len <= sizeof(id->grant);
}

struct chan *chan_new_initiator(enum chan_link link, const uint8_t responder_key[32],
                                const struct chan_identity *id, const struct chan_trust *trust,
                                struct err *err)
{
    if (!link_protocol(link) || (link_has_grants(link) && !grants_possible(id, trust))) {
        (void)err_set(err, STATUS_INVALID_ARGUMENT,
                      "channel: link %d needs our key, its grant and the operator's key",
                      (int)link);
        return NULL;
    }
    struct chan *c = chan_new(link_has_grants(link) ? id : NULL, trust, err);
    if (!c)
        return NULL;
    c->is_initiator = true;
    c->peer.link = link;
    memcpy(c->peer.key, responder_key, sizeof(c->peer.key));
    chan_mac1_key(c->mac1_key, responder_key);
    rand_bytes(c->session, sizeof(c->session));
    return c;
}

struct chan *chan_new_responder(unsigned accept_links, const struct chan_identity *id,
                                const struct chan_trust *trust, struct err *err)
{
    if (!id || accept_links == 0 || (accept_links & ~LINKS_KNOWN) ||
        ((accept_links & 1U << CHAN_LINK_SERVICE) && !grants_possible(id, trust))) {
        (void)err_set(err, STATUS_INVALID_ARGUMENT,
                      "channel: links %#x need our key and, between services, its grant and the "
                      "operator's key",
                      accept_links);
        return NULL;
    }
    struct chan *c = chan_new(id, trust, err);
    if (!c)
        return NULL;
    c->accept_links = accept_links;
    chan_mac1_key(c->mac1_key, id->public_key);
    return c;
}

// ---------------------------------------------------------------- handshake frames

// The prologue binds version and link type: who changes either makes the first AEAD fail.
static enum status noise_begin(struct chan *c, enum chan_link link, struct err *err)
{
    uint8_t prologue[] = {'c', 'a', 'u', 'c', 'e', '/', '1', CHAN_VERSION, (uint8_t)link};
    struct noise_keypair s = {.is_set = c->hs->has_id};

    memcpy(s.public_key, c->hs->id.public_key, sizeof(s.public_key));
    memcpy(s.secret, c->hs->id.secret, sizeof(s.secret));
    struct noise_opts o = {
        .protocol = link_protocol(link),
        .is_initiator = c->is_initiator,
        .prologue = prologue,
        .prologue_len = sizeof(prologue),
        .s = s.is_set ? &s : NULL,
        .rs = c->is_initiator ? c->peer.key : NULL,
    };
    enum status status = noise_init(&c->hs->noise, &o, err);
    crypto_wipe(&s, sizeof(s));
    return status;
}

static bool put_payload(struct buf *b, const struct chan *c)
{
    static const uint8_t zeros[PAYLOAD_STEP];

    if (link_has_grants(c->peer.link)) {
        buf_put_u8(b, FIELD_GRANT);
        buf_put_be16(b, (uint16_t)c->hs->id.grant_len);
        buf_append(b, c->hs->id.grant, c->hs->id.grant_len);
    }
    buf_put_u8(b, FIELD_END);
    buf_append(b, zeros, (PAYLOAD_STEP - b->len % PAYLOAD_STEP) % PAYLOAD_STEP);
    return !b->failed;
}

static void put_header(uint8_t out[CHAN_HEADER_SIZE], const struct chan *c, enum chan_type type)
{
    memcpy(out, MAGIC, 2);
    out[2] = CHAN_VERSION;
    out[3] = (uint8_t)type;
    memcpy(out + 4, c->session, CHAN_SESSION_SIZE);
}

static bool put_handshake(struct chan *c, enum chan_type type, struct buf *out)
{
    AUTO(buf_done) struct buf payload = {0};
    uint8_t frame[CHAN_MAX_HANDSHAKE];
    uint8_t *noise = frame + CHAN_HEADER_SIZE + 3;

    buf_init(&payload, CHAN_MAX_HANDSHAKE);
    if (!put_payload(&payload, c))
        return false;
    size_t n = noise_write(&c->hs->noise, payload.data, payload.len, noise,
                           sizeof(frame) - HANDSHAKE_OVERHEAD);
    if (n == 0)
        return false;
    put_header(frame, c, type);
    frame[CHAN_HEADER_SIZE] = (uint8_t)c->peer.link;
    frame[CHAN_HEADER_SIZE + 1] = (uint8_t)(n >> 8);
    frame[CHAN_HEADER_SIZE + 2] = (uint8_t)n;
    chan_mac1(noise + n, c->mac1_key, frame, CHAN_HEADER_SIZE + 3 + n);
    return buf_append(out, frame, n + HANDSHAKE_OVERHEAD);
}

// Is this a whole handshake frame with a good mac1?
static bool check_handshake_frame(const struct chan *c, const uint8_t *in, size_t n)
{
    uint8_t mac[CHAN_MAC1_SIZE];

    if (n <= HANDSHAKE_OVERHEAD || n > CHAN_MAX_HANDSHAKE)
        return false;
    size_t noise_len = (size_t)in[CHAN_HEADER_SIZE + 1] << 8 | in[CHAN_HEADER_SIZE + 2];
    if (noise_len != n - HANDSHAKE_OVERHEAD)
        return false;
    chan_mac1(mac, c->mac1_key, in, n - CHAN_MAC1_SIZE);
    return crypto_equal(mac, in + n - CHAN_MAC1_SIZE, sizeof(mac));
}

static bool find_field(const uint8_t *p, size_t n, uint8_t type, const uint8_t **ret, size_t *ret_n)
{
    struct reader r;

    reader_init(&r, p, n);
    while (reader_left(&r) > 0) {
        uint8_t t = reader_u8(&r);
        if (t == FIELD_END)
            break;
        size_t len = reader_be16(&r);
        const uint8_t *value = reader_bytes(&r, len);
        if (r.failed)
            break;
        if (t == type) {
            *ret = value;
            *ret_n = len;
            return true;
        }
    }
    return false;
}

// The grant must be the operator's, in time, not revoked, and about the very key that was proven.
static enum status check_peer_grant(struct chan *c, const uint8_t *payload, size_t n,
                                    struct err *err)
{
    const struct noise *noise = &c->hs->noise;
    const uint8_t *grant = NULL;
    size_t grant_len = 0;

    if (!find_field(payload, n, FIELD_GRANT, &grant, &grant_len))
        return err_set(err, STATUS_UNAVAILABLE, "channel: the peer shows no grant");
    if (chan_grant_verify(&c->peer.grant, grant, grant_len, c->hs->trust.operator_public,
                          time_wall_ms() / 1000, err) != STATUS_OK)
        return err_wrap(err, STATUS_UNAVAILABLE, "channel");
    if (c->peer.grant.serial < c->hs->trust.serial_floor)
        return err_set(err, STATUS_UNAVAILABLE, "channel: the grant of %s is revoked",
                       c->peer.grant.node_id);
    if (!noise->has_rs || !crypto_equal(noise->rs, c->peer.grant.key, sizeof(noise->rs)))
        return err_set(err, STATUS_UNAVAILABLE, "channel: the grant of %s is another key's",
                       c->peer.grant.node_id);
    memcpy(c->peer.key, noise->rs, sizeof(c->peer.key));
    c->peer.has_grant = true;
    return STATUS_OK;
}

// Open the noise message of a checked frame and judge what it says about the peer.
static enum status take_handshake(struct chan *c, const uint8_t *in, size_t n, struct err *err)
{
    uint8_t payload[CHAN_MAX_HANDSHAKE];
    size_t payload_len = 0;

    if (!noise_read(&c->hs->noise, in + CHAN_HEADER_SIZE + 3, n - HANDSHAKE_OVERHEAD, payload,
                    &payload_len))
        return err_set(err, STATUS_UNAVAILABLE, "channel: handshake refused");
    if (link_has_grants(c->peer.link))
        return check_peer_grant(c, payload, payload_len, err);
    return STATUS_OK;
}

static void finish_handshake(struct chan *c)
{
    uint8_t *own = c->is_initiator ? c->send.key : c->receive.key;
    uint8_t *other = c->is_initiator ? c->receive.key : c->send.key;

    noise_split(&c->hs->noise, own, other);
    memcpy(c->peer.handshake_hash, c->hs->noise.sym.h, sizeof(c->peer.handshake_hash));
    handshake_free(TAKE(c->hs));
}

enum status chan_start(struct chan *c, struct buf *out, struct err *err)
{
    if (!c->is_initiator || c->state != CHAN_ST_NEW)
        return err_set(err, STATUS_FAILED_PRECONDITION, "channel: already started");
    enum status s = noise_begin(c, c->peer.link, err);
    if (s != STATUS_OK)
        return s;
    if (!put_handshake(c, CHAN_INIT, out))
        return refuse(c, err, "the first message cannot be made: unusable key or no memory");
    c->state = CHAN_ST_SENT_INIT;
    return STATUS_OK;
}

static enum status receive_init(struct chan *c, const uint8_t *in, size_t n, struct buf *out,
                                enum chan_event *ret_event, struct err *err)
{
    if (!check_handshake_frame(c, in, n))
        return refuse(c, err, "not for us");
    unsigned link = in[CHAN_HEADER_SIZE];
    if (link > CHAN_LINK_ENROL || !(c->accept_links & 1U << link))
        return refuse(c, err, "this kind of link is not accepted here");
    c->peer.link = (enum chan_link)link;
    memcpy(c->session, in + 4, CHAN_SESSION_SIZE);

    enum status s = noise_begin(c, c->peer.link, err);
    if (s == STATUS_OK)
        s = take_handshake(c, in, n, err);
    if (s == STATUS_OK && !put_handshake(c, CHAN_RESPONSE, out))
        s = err_set(err, STATUS_UNAVAILABLE, "channel: no answer can be made");
    if (s != STATUS_OK) {
        die(c);
        return STATUS_UNAVAILABLE;
    }
    finish_handshake(c);
    c->state = link_has_grants(c->peer.link) ? CHAN_ST_UNCONFIRMED : CHAN_ST_OPEN;
    *ret_event = c->state == CHAN_ST_OPEN ? CHAN_READY : CHAN_REPLY;
    return STATUS_OK;
}

static enum status receive_response(struct chan *c, const uint8_t *in, size_t n,
                                    enum chan_event *ret_event, struct err *err)
{
    if (!check_handshake_frame(c, in, n) || in[CHAN_HEADER_SIZE] != c->peer.link)
        return refuse(c, err, "malformed answer");
    if (take_handshake(c, in, n, err) != STATUS_OK) {
        die(c);
        return STATUS_UNAVAILABLE;
    }
    finish_handshake(c);
    c->state = CHAN_ST_OPEN;
    *ret_event = CHAN_READY;
    return STATUS_OK;
}

// ---------------------------------------------------------------- records

static void put_be64(uint8_t out[8], uint64_t v)
{
    for (unsigned i = 0; i < 8; i++)
        out[i] = (uint8_t)(v >> (56 - 8 * i));
}

static uint64_t get_be64(const uint8_t in[8])
{
    uint64_t v = 0;

    for (unsigned i = 0; i < 8; i++)
        v = v << 8 | in[i];
    return v;
}

// Both sides change keys at the same counts; nothing on the wire says so.
static void rekey_if_due(struct chan_cipher *k)
{
    if (k->counter > 0 && k->counter % CHAN_REKEY_RECORDS == 0)
        noise_rekey(CRYPTO_CHACHAPOLY, k->key);
}

static size_t seal(struct chan *c, enum chan_type type, uint8_t *msg, size_t n)
{
    const size_t ad_len = CHAN_HEADER_SIZE + CHAN_COUNTER_SIZE;

    rekey_if_due(&c->send);
    put_header(msg, c, type);
    put_be64(msg + CHAN_HEADER_SIZE, c->send.counter);
    n = crypto_seal(CRYPTO_CHACHAPOLY, msg + ad_len, c->send.key, c->send.counter, msg, ad_len,
                    msg + ad_len, n);
    c->send.counter++;
    return ad_len + n;
}

static bool may_seal(const struct chan *c, size_t n)
{
    // 2^64 - 1 as a nonce belongs to Rekey().
    return c->state == CHAN_ST_OPEN && c->send.counter < UINT64_MAX &&
           n <= CHAN_MAX_RECORD - CHAN_RECORD_OVERHEAD;
}

size_t chan_seal(struct chan *c, uint8_t *msg, size_t n, uint64_t *ret_counter)
{
    if (!may_seal(c, n))
        return 0;
    if (ret_counter)
        *ret_counter = c->send.counter;
    return seal(c, CHAN_RECORD, msg, n);
}

size_t chan_seal_close(struct chan *c, uint8_t msg[CHAN_RECORD_OVERHEAD])
{
    if (!may_seal(c, 0))
        return 0;
    size_t n = seal(c, CHAN_CLOSE, msg, 0);
    c->state = CHAN_ST_LEFT;
    return n;
}

static enum status receive_record(struct chan *c, uint8_t *in, size_t n, enum chan_event *ret_event,
                                  uint8_t **ret_data, size_t *ret_len, struct err *err)
{
    const size_t ad_len = CHAN_HEADER_SIZE + CHAN_COUNTER_SIZE;
    bool is_close = in[3] == CHAN_CLOSE;

    if (n < CHAN_RECORD_OVERHEAD || n > CHAN_MAX_RECORD || (is_close && n != CHAN_RECORD_OVERHEAD))
        return refuse(c, err, "a record of impossible length");
    uint64_t counter = get_be64(in + CHAN_HEADER_SIZE);
    if (counter != c->receive.counter || counter == UINT64_MAX)
        return refuse(c, err,
                      counter < c->receive.counter ? "a record came again" : "a record is missing");
    rekey_if_due(&c->receive);
    if (!crypto_open(CRYPTO_CHACHAPOLY, in + ad_len, c->receive.key, counter, in, ad_len,
                     in + ad_len, n - ad_len))
        return refuse(c, err, "a record with a bad tag");
    c->receive.counter++;
    if (c->state == CHAN_ST_UNCONFIRMED)
        c->state = CHAN_ST_OPEN;
    if (is_close)
        c->state = CHAN_ST_CLOSED;
    *ret_data = in + ad_len;
    *ret_len = n - CHAN_RECORD_OVERHEAD;
    *ret_event = is_close ? CHAN_CLOSED : CHAN_DATA;
    return STATUS_OK;
}

// ---------------------------------------------------------------- dispatch

static bool has_session(const struct chan *c)
{
    return c->is_initiator || c->state != CHAN_ST_NEW;
}

// Left over from an earlier connection: harmless, because its session is not ours.
static bool is_stray(const struct chan *c, const uint8_t *in)
{
    if (in[3] == CHAN_INIT)
        return false;
    return !has_session(c) || memcmp(in + 4, c->session, CHAN_SESSION_SIZE) != 0;
}

static bool may_take_record(const struct chan *c)
{
    return c->state == CHAN_ST_UNCONFIRMED || c->state == CHAN_ST_OPEN || c->state == CHAN_ST_LEFT;
}

enum status chan_receive(struct chan *c, uint8_t *in, size_t n, struct buf *out,
                         enum chan_event *ret_event, uint8_t **ret_data, size_t *ret_len,
                         struct err *err)
{
    *ret_event = CHAN_NOTHING;
    *ret_data = NULL;
    *ret_len = 0;
    if (c->state == CHAN_ST_DEAD || c->state == CHAN_ST_CLOSED)
        return refuse(c, err, "a message after the end");
    if (n < CHAN_HEADER_SIZE || memcmp(in, MAGIC, 2) != 0 || in[2] != CHAN_VERSION)
        return refuse(c, err, "not a message of this protocol");
    if (is_stray(c, in))
        return STATUS_OK;
    switch (in[3]) {
    case CHAN_INIT:
        if (!c->is_initiator && c->state == CHAN_ST_NEW)
            return receive_init(c, in, n, out, ret_event, err);
        break;
    case CHAN_RESPONSE:
        if (c->state == CHAN_ST_SENT_INIT)
            return receive_response(c, in, n, ret_event, err);
        break;
    case CHAN_RECORD:
    case CHAN_CLOSE:
        if (may_take_record(c))
            return receive_record(c, in, n, ret_event, ret_data, ret_len, err);
        break;
    }
    return refuse(c, err, "a message out of turn");
}

bool chan_is_ready(const struct chan *c)
{
    return c->state == CHAN_ST_OPEN;
}

const struct chan_peer *chan_peer(const struct chan *c)
{
    return &c->peer;
}

uint64_t chan_received_counter(const struct chan *c)
{
    return c->receive.counter;
}
