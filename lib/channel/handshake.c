// Handshake messages: their frames, what they carry, and what it proves.
//
//   header | link 1 | length 2 | noise message | mac1 16
//
// mac1 needs nothing but the responder's public key. It is no proof of identity; it makes bytes
// from somebody who does not even know whom they talk to cost 0.4 us instead of a key agreement,
// and it tells a responder that has two keys which of them is meant.
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "channel/internal.h"
#include "crypto/crypto.h"

#define PAYLOAD_STEP 64 // payloads are padded to a multiple, so that their length tells little

// Fields of a handshake payload: type 1, length 2, value. The first FIELD_END ends the payload;
// fields of unknown types are skipped.
enum { FIELD_END = 0, FIELD_GRANT = 1, FIELD_JOIN_ID = 2 };

static const struct {
    enum chan_link link;
    const char *protocol;
    bool has_grants; // both sides show who they are
} links[] = {
    {CHAN_LINK_CLIENT, "Noise_NK_25519_ChaChaPoly_BLAKE2b", false},
    {CHAN_LINK_SERVICE, "Noise_IK_25519_ChaChaPoly_BLAKE2b", true},
    {CHAN_LINK_ENROL, "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2b", false},
};

static const char *link_protocol(enum chan_link link)
{
    for (size_t i = 0; i < N_ELEMENTS(links); i++)
        if (links[i].link == link)
            return links[i].protocol;
    return NULL;
}

bool chan_link_has_grants(enum chan_link link)
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

// ---------------------------------------------------------------- noise

void chan_handshake_free(struct chan_handshake *hs)
{
    if (!hs)
        return;
    crypto_wipe(hs, sizeof(*hs));
    mem_free(hs);
}

// The prologue binds version and link type: who changes either makes the first AEAD fail. A
// handshake inside a session is bound to that session too.
static enum status noise_begin(struct chan *c, struct err *err)
{
    struct chan_handshake *hs = c->hs;
    uint8_t prologue[9 + NOISE_HASH_SIZE] = "cauce/1";
    struct noise_keypair s = {.is_set = true};
    bool is_xx = c->link == CHAN_LINK_ENROL;

    prologue[7] = CHAN_VERSION;
    prologue[8] = (uint8_t)c->link;
    memcpy(prologue + 9, c->hash, NOISE_HASH_SIZE);
    memcpy(s.public_key, hs->id.public_key, sizeof(s.public_key));
    memcpy(s.secret, hs->id.secret, sizeof(s.secret));
    struct noise_opts o = {
        .protocol = link_protocol(c->link),
        .is_initiator = c->is_initiator,
        .prologue = prologue,
        .prologue_len = hs->is_renewal ? sizeof(prologue) : 9,
        .s = hs->has_id ? &s : NULL,
        .rs = c->is_initiator && !is_xx ? c->responder_key : NULL,
        .psk = is_xx ? hs->join.secret : NULL,
    };
    enum status status = noise_init(&hs->noise, &o, err);
    crypto_wipe(&s, sizeof(s));
    return status;
}

void chan_split(struct chan *c, uint8_t send_key[NOISE_KEY_SIZE],
                uint8_t receive_key[NOISE_KEY_SIZE])
{
    noise_split(&c->hs->noise, c->is_initiator ? send_key : receive_key,
                c->is_initiator ? receive_key : send_key);
    memcpy(c->hash, c->hs->noise.sym.h, sizeof(c->hash));
    c->generation = c->hs->generation;
    chan_handshake_free(TAKE(c->hs));
}

// ---------------------------------------------------------------- writing

static void put_field(struct buf *b, uint8_t type, const void *p, size_t n)
{
    buf_put_u8(b, type);
    buf_put_be16(b, (uint16_t)n);
    buf_append(b, p, n);
}

static bool put_payload(struct buf *b, const struct chan *c, enum chan_type type)
{
    static const uint8_t zeros[PAYLOAD_STEP];

    if (chan_link_has_grants(c->link))
        put_field(b, FIELD_GRANT, c->hs->id.grant, c->hs->id.grant_len);
    if (c->link == CHAN_LINK_ENROL && type == CHAN_INIT)
        put_field(b, FIELD_JOIN_ID, c->hs->join.id, sizeof(c->hs->join.id));
    buf_put_u8(b, FIELD_END);
    buf_append(b, zeros, (PAYLOAD_STEP - b->len % PAYLOAD_STEP) % PAYLOAD_STEP);
    return !b->failed;
}

void chan_put_header(uint8_t out[CHAN_HEADER_SIZE], const struct chan *c, enum chan_type type)
{
    memcpy(out, "CQ", 2);
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
    if (!put_payload(&payload, c, type))
        return false;
    size_t n = noise_write(&c->hs->noise, payload.data, payload.len, noise,
                           sizeof(frame) - CHAN_HANDSHAKE_OVERHEAD);
    if (n == 0)
        return false;
    chan_put_header(frame, c, type);
    frame[CHAN_HEADER_SIZE] = (uint8_t)c->link;
    frame[CHAN_HEADER_SIZE + 1] = (uint8_t)(n >> 8);
    frame[CHAN_HEADER_SIZE + 2] = (uint8_t)n;
    chan_mac1(noise + n, c->mac1_key, frame, CHAN_HEADER_SIZE + 3 + n);
    return buf_append(out, frame, n + CHAN_HANDSHAKE_OVERHEAD);
}

bool chan_write_init(struct chan *c, struct buf *out)
{
    return noise_begin(c, NULL) == STATUS_OK && put_handshake(c, CHAN_INIT, out);
}

// ---------------------------------------------------------------- reading

static enum chan_refusal refused(enum chan_refusal why, struct err *err, const char *text)
{
    (void)err_set(err, STATUS_UNAVAILABLE, "%s", text);
    return why;
}

// The header is looked at here too: inside a session no other has.
static bool is_handshake_frame(const uint8_t *in, size_t n, enum chan_type type)
{
    if (n <= CHAN_HANDSHAKE_OVERHEAD || n > CHAN_MAX_HANDSHAKE)
        return false;
    if (memcmp(in, "CQ", 2) != 0 || in[2] != CHAN_VERSION || in[3] != type)
        return false;
    size_t noise_len = (size_t)in[CHAN_HEADER_SIZE + 1] << 8 | in[CHAN_HEADER_SIZE + 2];
    return noise_len == n - CHAN_HANDSHAKE_OVERHEAD;
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
static enum chan_refusal judge_grant(struct chan *c, const uint8_t *payload, size_t n,
                                     struct chan_peer *ret, struct err *err)
{
    const struct noise *noise = &c->hs->noise;
    const uint8_t *grant = NULL;
    size_t grant_len = 0;

    if (!find_field(payload, n, FIELD_GRANT, &grant, &grant_len))
        return refused(CHAN_BAD_GRANT, err, "the peer shows no grant");
    enum chan_refusal r =
        chan_local_judge(c->local, grant, grant_len, !c->is_initiator, &ret->grant, err);
    if (r != CHAN_FINE)
        return r;
    if (!noise->has_rs || !crypto_equal(noise->rs, ret->grant.key, sizeof(noise->rs))) {
        (void)err_set(err, STATUS_UNAVAILABLE, "the grant of %s is another key's",
                      ret->grant.node_id);
        return CHAN_BAD_GRANT;
    }
    memcpy(ret->key, noise->rs, sizeof(ret->key));
    ret->has_grant = true;
    return CHAN_FINE;
}

static enum chan_refusal judge_join_id(struct chan *c, const uint8_t *payload, size_t n,
                                       struct chan_peer *ret, struct err *err)
{
    struct chan_join *j = &c->hs->join;
    const uint8_t *id = NULL;
    size_t id_len = 0;

    if (!find_field(payload, n, FIELD_JOIN_ID, &id, &id_len) || id_len != sizeof(j->id))
        return refused(CHAN_MALFORMED, err, "enrolment without the id of a secret");
    memcpy(j->id, id, sizeof(j->id));
    if (!chan_local_find_join(c->local, j))
        return refused(CHAN_BAD_SECRET, err, "enrolment with a secret that is not open");
    noise_set_psk(&c->hs->noise, j->secret);
    memcpy(ret->join_id, j->id, sizeof(ret->join_id));
    return CHAN_FINE;
}

// Open the noise message of a checked frame and judge what it says about the peer.
static enum chan_refusal take_message(struct chan *c, const uint8_t *in, size_t n,
                                      struct chan_peer *ret, struct err *err)
{
    uint8_t payload[CHAN_MAX_HANDSHAKE];
    size_t len = 0;

    if (!noise_read(&c->hs->noise, in + CHAN_HEADER_SIZE + 3, n - CHAN_HANDSHAKE_OVERHEAD, payload,
                    &len))
        return refused(CHAN_BAD_KEY, err, "a handshake message that does not open");
    if (chan_link_has_grants(c->link))
        return judge_grant(c, payload, len, ret, err);
    if (c->link == CHAN_LINK_ENROL && in[3] == CHAN_INIT)
        return judge_join_id(c, payload, len, ret, err);
    return CHAN_FINE;
}

static enum chan_refusal answer_init(struct chan *c, const uint8_t *in, size_t n, struct buf *out,
                                     struct chan_peer *ret, struct err *err)
{
    struct chan_peer peer = {.link = c->link};

    if (noise_begin(c, err) != STATUS_OK)
        return CHAN_BAD_KEY;
    enum chan_refusal r = take_message(c, in, n, &peer, err);
    if (r != CHAN_FINE)
        return r;
    if (!put_handshake(c, CHAN_RESPONSE, out))
        return refused(CHAN_BAD_KEY, err, "no answer can be made: unusable key or no memory");
    *ret = peer;
    return CHAN_FINE;
}

enum chan_refusal chan_read_init(struct chan *c, const uint8_t *in, size_t n, struct buf *out,
                                 struct chan_peer *ret, struct err *err)
{
    bool is_renewal = c->state == CHAN_ST_OPEN;

    if (!is_handshake_frame(in, n, CHAN_INIT))
        return refused(CHAN_MALFORMED, err, "not a first message");
    c->hs = mem_alloc(sizeof(*c->hs));
    if (!c->hs)
        return refused(CHAN_NO_MEMORY, err, "out of memory");
    if (!chan_local_meant(c->local, in, n, c->hs, c->mac1_key))
        return refused(CHAN_BAD_MAC1, err, "not for us");
    unsigned link = in[CHAN_HEADER_SIZE];
    if (is_renewal ? link != c->link || memcmp(in + 4, c->session, CHAN_SESSION_SIZE) != 0
                   : link > CHAN_LINK_ENROL || !(c->accept_links & 1U << link))
        return refused(CHAN_MALFORMED, err, "this kind of link is not accepted here");
    c->link = (enum chan_link)link;
    c->hs->is_renewal = is_renewal;
    memcpy(c->session, in + 4, CHAN_SESSION_SIZE);
    return answer_init(c, in, n, out, ret, err);
}

// Frame and mac1 of a message after the first.
static bool is_next_frame(const struct chan *c, const uint8_t *in, size_t n, enum chan_type type)
{
    uint8_t mac[CHAN_MAC1_SIZE];

    if (!is_handshake_frame(in, n, type) || in[CHAN_HEADER_SIZE] != c->link ||
        memcmp(in + 4, c->session, CHAN_SESSION_SIZE) != 0)
        return false;
    chan_mac1(mac, c->mac1_key, in, n - CHAN_MAC1_SIZE);
    return crypto_equal(mac, in + n - CHAN_MAC1_SIZE, sizeof(mac));
}

enum chan_refusal chan_read_response(struct chan *c, const uint8_t *in, size_t n, struct buf *out,
                                     struct chan_peer *ret, struct err *err)
{
    struct chan_peer peer = {.link = c->link};

    if (!is_next_frame(c, in, n, CHAN_RESPONSE))
        return refused(CHAN_MALFORMED, err, "malformed answer");
    enum chan_refusal r = take_message(c, in, n, &peer, err);
    if (r != CHAN_FINE)
        return r;
    if (!crypto_equal(c->hs->noise.rs, c->responder_key, sizeof(c->responder_key)))
        return refused(CHAN_BAD_KEY, err, "it is another than we meant to reach");
    memcpy(peer.key, c->responder_key, sizeof(peer.key));
    if (c->link == CHAN_LINK_ENROL && !put_handshake(c, CHAN_FINISH, out))
        return refused(CHAN_BAD_KEY, err, "no answer can be made: unusable key or no memory");
    *ret = peer;
    return CHAN_FINE;
}

enum chan_refusal chan_read_finish(struct chan *c, const uint8_t *in, size_t n,
                                   struct chan_peer *ret, struct err *err)
{
    struct chan_peer peer = *ret;

    if (!is_next_frame(c, in, n, CHAN_FINISH))
        return refused(CHAN_MALFORMED, err, "malformed third message");
    // Its last key is the secret's; who could make the mac1 knows all the rest of the join string.
    if (take_message(c, in, n, &peer, err) != CHAN_FINE)
        return refused(CHAN_BAD_SECRET, err, "enrolment with a wrong secret");
    memcpy(peer.key, c->hs->noise.rs, sizeof(peer.key));
    *ret = peer;
    return CHAN_FINE;
}
