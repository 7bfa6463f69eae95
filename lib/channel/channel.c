// One side of one connection.
//
//   initiator   NEW -> SENT_INIT -> OPEN
//   responder   NEW -> OPEN (NK), UNCONFIRMED -> OPEN at the first valid record (IK), or
//               SENT_RESPONSE -> OPEN at the third message (XX)
//   from OPEN   LEFT (we closed), CLOSED (the peer did)      from anywhere   DEAD (something wrong)
//
// Frames (big-endian):
//   header       "CQ" | version 1 | type 1 | session 8
//   handshake    header | link 1 | length 2 | noise message | mac1 16          (handshake.c)
//   record       header | counter 8 | ciphertext | tag 16       associated data: what precedes it
//
// An IK responder sends nothing until the initiator's first record came: before that the first
// message may be a replay, and what we sent would have weak forward secrecy only. An NK responder
// need not wait: its peer is anonymous anyway, and a replayer cannot read the answer.
//
// A new handshake inside a session travels in three records of the same count: RENEW_INIT,
// RENEW_RESPONSE, RENEW_SWITCH. The responder's key changes after the second, the initiator's after
// the third; counters go on. Data records may leave before, between and after them, on either side,
// so nobody waits. The new handshake's prologue holds the hash of the one before.
//
// Whatever is wrong, the peer hears nothing: no answer tells it which check failed.
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "channel/internal.h"
#include "crypto/aead.h"
#include "crypto/crypto.h"

#define LINKS_KNOWN (1U << CHAN_LINK_CLIENT | 1U << CHAN_LINK_SERVICE | 1U << CHAN_LINK_ENROL)
#define RECORD_HEAD (CHAN_HEADER_SIZE + CHAN_COUNTER_SIZE)

_Static_assert(CHAN_RECORD_OVERHEAD == RECORD_HEAD + CHAN_TAG_SIZE,
               "the public header says how much room a record needs");

static const char *const refusals[] = {
    [CHAN_FINE] = "fine",
    [CHAN_MALFORMED] = "malformed",
    [CHAN_BAD_MAC1] = "bad_mac1",
    [CHAN_BAD_KEY] = "bad_key",
    [CHAN_BAD_GRANT] = "bad_grant",
    [CHAN_REVOKED] = "revoked",
    [CHAN_WRONG_ROLE] = "wrong_role",
    [CHAN_BAD_SECRET] = "bad_secret",
    [CHAN_REPLAY] = "replay",
    [CHAN_GAP] = "gap",
    [CHAN_BAD_TAG] = "bad_tag",
    [CHAN_NO_MEMORY] = "no_memory",
};
_Static_assert(N_ELEMENTS(refusals) == CHAN_N_REFUSALS, "each refusal has a name");

const char *chan_refusal_name(enum chan_refusal r)
{
    return r < CHAN_N_REFUSALS ? refusals[r] : "unknown";
}

enum chan_refusal chan_refusal(const struct chan *c)
{
    return c->refusal;
}

// ---------------------------------------------------------------- life

static void renewal_free(struct chan_renewal *r)
{
    if (!r)
        return;
    mem_free(r->known);
    crypto_wipe(r, sizeof(*r));
    mem_free(r);
}

static void forget(struct chan_cipher *k)
{
    crypto_record_forget(k->record);
    crypto_wipe(k->key, sizeof(k->key));
    k->counter = 0;
}

static void die(struct chan *c)
{
    chan_handshake_free(TAKE(c->hs));
    renewal_free(TAKE(c->renewal));
    forget(&c->send);
    forget(&c->receive);
    c->state = CHAN_ST_DEAD;
}

// err holds the details already, in our own log's words.
static enum status end(struct chan *c, enum chan_refusal why, struct err *err)
{
    die(c);
    c->refusal = why;
    return err_wrap(err, STATUS_UNAVAILABLE, "channel");
}

static enum status refuse(struct chan *c, enum chan_refusal why, struct err *err, const char *text)
{
    (void)err_set(err, STATUS_UNAVAILABLE, "%s", text);
    return end(c, why, err);
}

void chan_free(struct chan *c)
{
    if (!c)
        return;
    die(c);
    for (struct chan_known *k = c->known; k != &c->first;) {
        struct chan_known *older = k->older;
        mem_free(k);
        k = older;
    }
    chan_local_unref(c->local);
    crypto_record_free(c->send.record);
    crypto_record_free(c->receive.record);
    crypto_wipe(c, sizeof(*c));
    mem_free(c);
}

static struct chan *chan_new(struct chan_local *l, struct err *err)
{
    // Until it is told to start, libsodium's ciphers are its portable ones: 8 times slower.
    if (crypto_init(err) != STATUS_OK)
        return NULL;
    struct chan *c = mem_alloc(sizeof(*c));

    if (c) {
        c->local = chan_local_ref(l);
        c->known = &c->first;
        c->send.record = crypto_record_new(true);
        c->receive.record = crypto_record_new(false);
    }
    if (c && c->send.record && c->receive.record)
        return c;
    chan_free(c);
    (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "channel: out of memory");
    return NULL;
}

static struct chan *lacks(struct err *err, const char *what)
{
    (void)err_set(err, STATUS_INVALID_ARGUMENT, "channel: %s", what);
    return NULL;
}

static void mean(struct chan *c, const uint8_t responder_key[32])
{
    memcpy(c->responder_key, responder_key, sizeof(c->responder_key));
    chan_mac1_key(c->mac1_key, responder_key);
}

struct chan *chan_dial(struct chan_local *l, enum chan_link link, const uint8_t responder_key[32],
                       const struct chan_join *join, struct err *err)
{
    bool is_join = link == CHAN_LINK_ENROL;

    if (link > CHAN_LINK_ENROL || !(LINKS_KNOWN & 1U << link))
        return lacks(err, "no such link");
    if (chan_link_has_grants(link) && !chan_local_has_grant(l))
        return lacks(err, "a service link needs our key, its grant and the operator's key");
    if (is_join && (!join || !chan_local_has_identity(l)))
        return lacks(err, "enrolment needs our key and a join secret");
    AUTO(chan_free_p) struct chan *c = chan_new(l, err);
    if (!c)
        return NULL;
    c->hs = mem_alloc(sizeof(*c->hs));
    if (!c->hs) {
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "channel: out of memory");
        return NULL;
    }
    c->is_initiator = true;
    c->link = c->first.peer.link = link;
    mean(c, responder_key);
    memcpy(c->first.peer.key, responder_key, sizeof(c->first.peer.key));
    if (link != CHAN_LINK_CLIENT)
        (void)chan_local_current(l, c->hs);
    if (is_join)
        c->hs->join = *join;
    rand_bytes(c->session, sizeof(c->session));
    return TAKE(c);
}

struct chan *chan_accept(struct chan_local *l, unsigned accept_links, struct err *err)
{
    if (accept_links == 0 || (accept_links & ~LINKS_KNOWN) || !chan_local_has_identity(l))
        return lacks(err, "a responder needs a key, and links that it accepts");
    if ((accept_links & 1U << CHAN_LINK_SERVICE) && !chan_local_has_grant(l))
        return lacks(err, "a service link needs our key, its grant and the operator's key");
    if ((accept_links & 1U << CHAN_LINK_ENROL) && !chan_local_may_join(l))
        return lacks(err, "enrolment needs the secrets that it accepts");
    struct chan *c = chan_new(l, err);
    if (c)
        c->accept_links = accept_links;
    return c;
}

struct chan *chan_new_initiator(enum chan_link link, const uint8_t responder_key[32],
                                const struct chan_identity *id, const struct chan_trust *trust,
                                struct err *err)
{
    AUTO(chan_local_unref_p) struct chan_local *l = chan_local_new(id, trust);

    if (!l) {
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "channel: out of memory");
        return NULL;
    }
    return chan_dial(l, link, responder_key, NULL, err);
}

struct chan *chan_new_responder(unsigned accept_links, const struct chan_identity *id,
                                const struct chan_trust *trust, struct err *err)
{
    AUTO(chan_local_unref_p) struct chan_local *l = chan_local_new(id, trust);

    if (!l) {
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "channel: out of memory");
        return NULL;
    }
    return chan_accept(l, accept_links, err);
}

// ---------------------------------------------------------------- the first handshake

enum status chan_start(struct chan *c, struct buf *out, struct err *err)
{
    if (!c->is_initiator || c->state != CHAN_ST_NEW)
        return err_set(err, STATUS_FAILED_PRECONDITION, "channel: already started");
    if (!chan_write_init(c, out))
        return refuse(c, CHAN_BAD_KEY, err,
                      "the first message cannot be made: unusable key or no memory");
    c->state = CHAN_ST_SENT_INIT;
    return STATUS_OK;
}

static void open_session(struct chan *c, enum chan_state state)
{
    chan_split(c, c->send.key, c->receive.key);
    memcpy(c->first.peer.handshake_hash, c->hash, sizeof(c->hash));
    c->state = state;
}

static enum status receive_init(struct chan *c, const uint8_t *in, size_t n, struct buf *out,
                                enum chan_event *ret_event, struct err *err)
{
    enum chan_refusal r = chan_read_init(c, in, n, out, &c->first.peer, err);

    if (r != CHAN_FINE)
        return end(c, r, err);
    if (c->link == CHAN_LINK_ENROL)
        c->state = CHAN_ST_SENT_RESPONSE;
    else
        open_session(c, chan_link_has_grants(c->link) ? CHAN_ST_UNCONFIRMED : CHAN_ST_OPEN);
    *ret_event = c->state == CHAN_ST_OPEN ? CHAN_READY : CHAN_REPLY;
    return STATUS_OK;
}

static enum status receive_response(struct chan *c, const uint8_t *in, size_t n, struct buf *out,
                                    enum chan_event *ret_event, struct err *err)
{
    enum chan_refusal r = chan_read_response(c, in, n, out, &c->first.peer, err);

    if (r != CHAN_FINE)
        return end(c, r, err);
    open_session(c, CHAN_ST_OPEN);
    *ret_event = CHAN_READY;
    return STATUS_OK;
}

static enum status receive_finish(struct chan *c, const uint8_t *in, size_t n,
                                  enum chan_event *ret_event, struct err *err)
{
    enum chan_refusal r = chan_read_finish(c, in, n, &c->first.peer, err);

    if (r != CHAN_FINE)
        return end(c, r, err);
    open_session(c, CHAN_ST_OPEN);
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
    rekey_if_due(&c->send);
    chan_put_header(msg, c, type);
    put_be64(msg + CHAN_HEADER_SIZE, c->send.counter);
    if (!crypto_record_seal(c->send.record, msg + RECORD_HEAD, c->send.key, c->send.counter, msg,
                            RECORD_HEAD, msg + RECORD_HEAD, n))
        return 0;
    c->send.counter++;
    return n + CHAN_RECORD_OVERHEAD;
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

// Seal a copy of p into out. False: no memory, or nothing may be sealed any more.
static bool seal_copy(struct chan *c, enum chan_type type, const void *p, size_t n, struct buf *out)
{
    uint8_t *msg = may_seal(c, n) ? buf_reserve(out, n + CHAN_RECORD_OVERHEAD) : NULL;

    if (!msg)
        return false;
    if (n > 0)
        memcpy(msg + RECORD_HEAD, p, n);
    n = seal(c, type, msg, n);
    buf_commit(out, n);
    return n > 0;
}

// ---------------------------------------------------------------- new handshakes inside

enum status chan_renew(struct chan *c, const uint8_t responder_key[32], struct buf *out,
                       struct err *err)
{
    AUTO(buf_done) struct buf init = {0};
    uint8_t before[32];

    if (!c->is_initiator || c->state != CHAN_ST_OPEN || !chan_link_has_grants(c->link) || c->hs)
        return err_set(err, STATUS_FAILED_PRECONDITION, "channel: no new handshake just now");
    c->hs = mem_alloc(sizeof(*c->hs));
    if (!c->hs)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "channel: out of memory");
    (void)chan_local_current(c->local, c->hs);
    c->hs->is_renewal = true;
    memcpy(before, c->responder_key, sizeof(before));
    mean(c, responder_key);
    buf_init(&init, CHAN_MAX_HANDSHAKE);
    if (chan_write_init(c, &init) && seal_copy(c, CHAN_RENEW_INIT, init.data, init.len, out))
        return STATUS_OK;
    chan_handshake_free(TAKE(c->hs));
    mean(c, before);
    return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                   "channel: no new handshake: unusable key or no memory");
}

bool chan_is_renewing(const struct chan *c)
{
    return c->hs && c->state == CHAN_ST_OPEN;
}

unsigned chan_generation(const struct chan *c)
{
    return c->generation;
}

bool chan_is_with(const struct chan *c, const uint8_t responder_key[32])
{
    return memcmp(c->responder_key, responder_key, sizeof(c->responder_key)) == 0;
}

unsigned chan_n_renewed(const struct chan *c)
{
    return c->n_renewed;
}

static bool is_same_grant(const struct chan_grant *a, const struct chan_grant *b)
{
    return a->serial == b->serial && a->not_after_s == b->not_after_s &&
           memcmp(a->key, b->key, sizeof(a->key)) == 0;
}

// What is known of the peer from now on; *ret NULL when nothing changed. A session belongs to one
// node in one role: it may get another key and grant, not become somebody else.
static enum chan_refusal learn(const struct chan *c, const struct chan_peer *now,
                               struct chan_known **ret, struct err *err)
{
    const struct chan_peer *before = &c->known->peer;

    *ret = NULL;
    if (strcmp(before->grant.node_id, now->grant.node_id) != 0 ||
        before->grant.role != now->grant.role) {
        (void)err_set(err, STATUS_UNAVAILABLE, "%s became %s inside its session",
                      before->grant.node_id, now->grant.node_id);
        return CHAN_BAD_GRANT;
    }
    if (is_same_grant(&before->grant, &now->grant))
        return CHAN_FINE;
    struct chan_known *k = mem_alloc(sizeof(*k));
    if (!k) {
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        return CHAN_NO_MEMORY;
    }
    k->peer = *now;
    memcpy(k->peer.handshake_hash, before->handshake_hash, sizeof(before->handshake_hash));
    *ret = k;
    return CHAN_FINE;
}

static void come_to_know(struct chan *c, struct chan_known *k)
{
    if (!k)
        return;
    k->older = c->known;
    c->known = k;
}

static enum chan_refusal renew_responder(struct chan *c, const uint8_t *in, size_t n,
                                         struct buf *out, struct err *err)
{
    AUTO(buf_done) struct buf response = {0};
    struct chan_peer peer = {0};
    uint8_t send_key[NOISE_KEY_SIZE];

    buf_init(&response, CHAN_MAX_HANDSHAKE);
    enum chan_refusal r = chan_read_init(c, in, n, &response, &peer, err);
    if (r != CHAN_FINE)
        return r;
    c->renewal = mem_alloc(sizeof(*c->renewal));
    if (!c->renewal)
        return CHAN_NO_MEMORY;
    r = learn(c, &peer, &c->renewal->known, err);
    if (r != CHAN_FINE)
        return r;
    if (!seal_copy(c, CHAN_RENEW_RESPONSE, response.data, response.len, out))
        return CHAN_NO_MEMORY;
    chan_split(c, send_key, c->renewal->receive_key);
    memcpy(c->send.key, send_key, sizeof(send_key));
    crypto_wipe(send_key, sizeof(send_key));
    return CHAN_FINE;
}

static enum chan_refusal renew_initiator(struct chan *c, const uint8_t *in, size_t n,
                                         struct buf *out, struct err *err)
{
    struct chan_peer peer = {0};
    struct chan_known *known = NULL;
    uint8_t send_key[NOISE_KEY_SIZE];

    enum chan_refusal r = chan_read_response(c, in, n, NULL, &peer, err);
    if (r == CHAN_FINE)
        r = learn(c, &peer, &known, err);
    if (r != CHAN_FINE)
        return r;
    // Having said close we seal nothing more, so our direction needs no new key.
    if (c->state == CHAN_ST_OPEN && !seal_copy(c, CHAN_RENEW_SWITCH, NULL, 0, out)) {
        mem_free(known);
        return CHAN_NO_MEMORY;
    }
    come_to_know(c, known);
    chan_split(c, send_key, c->receive.key);
    memcpy(c->send.key, send_key, sizeof(send_key));
    crypto_wipe(send_key, sizeof(send_key));
    c->n_renewed++;
    return CHAN_FINE;
}

static void renew_switch(struct chan *c)
{
    come_to_know(c, TAKE(c->renewal->known));
    memcpy(c->receive.key, c->renewal->receive_key, sizeof(c->receive.key));
    renewal_free(TAKE(c->renewal));
    c->n_renewed++;
}

static enum status receive_renewal(struct chan *c, unsigned type, const uint8_t *p, size_t n,
                                   struct buf *out, struct err *err)
{
    enum chan_refusal r = CHAN_MALFORMED;
    bool is_open = c->state == CHAN_ST_OPEN;

    (void)err_set(err, STATUS_UNAVAILABLE, "a new handshake out of turn");
    if (type == CHAN_RENEW_INIT && !c->is_initiator && !c->renewal && chan_link_has_grants(c->link))
        r = is_open ? renew_responder(c, p, n, out, err) : CHAN_FINE; // who is leaving needs none
    else if (type == CHAN_RENEW_RESPONSE && c->is_initiator && c->hs)
        r = renew_initiator(c, p, n, out, err);
    else if (type == CHAN_RENEW_SWITCH && c->renewal && n == 0) {
        renew_switch(c);
        r = CHAN_FINE;
    }
    return r == CHAN_FINE ? STATUS_OK : end(c, r, err);
}

// ---------------------------------------------------------------- receiving

static enum status open_record(struct chan *c, uint8_t *in, size_t n, struct err *err)
{
    if (n < CHAN_RECORD_OVERHEAD || n > CHAN_MAX_RECORD)
        return refuse(c, CHAN_MALFORMED, err, "a record of impossible length");
    uint64_t counter = get_be64(in + CHAN_HEADER_SIZE);
    if (counter < c->receive.counter)
        return refuse(c, CHAN_REPLAY, err, "a record came again");
    if (counter != c->receive.counter || counter == UINT64_MAX)
        return refuse(c, CHAN_GAP, err, "a record is missing");
    rekey_if_due(&c->receive);
    if (!crypto_record_open(c->receive.record, in + RECORD_HEAD, c->receive.key, counter, in,
                            RECORD_HEAD, in + RECORD_HEAD, n - RECORD_HEAD))
        return refuse(c, CHAN_BAD_TAG, err, "a record with a bad tag");
    c->receive.counter++;
    return STATUS_OK;
}

static enum status receive_record(struct chan *c, uint8_t *in, size_t n, struct buf *out,
                                  enum chan_event *ret_event, uint8_t **ret_data, size_t *ret_len,
                                  struct err *err)
{
    unsigned type = in[3];
    bool is_renewal = type != CHAN_RECORD && type != CHAN_CLOSE;

    if ((type == CHAN_CLOSE && n != CHAN_RECORD_OVERHEAD) ||
        (is_renewal && c->state == CHAN_ST_UNCONFIRMED))
        return refuse(c, CHAN_MALFORMED, err, "a record that cannot be");
    enum status s = open_record(c, in, n, err);
    if (s != STATUS_OK)
        return s;
    if (is_renewal)
        return receive_renewal(c, type, in + RECORD_HEAD, n - CHAN_RECORD_OVERHEAD, out, err);
    if (c->state == CHAN_ST_UNCONFIRMED)
        c->state = CHAN_ST_OPEN;
    if (type == CHAN_CLOSE)
        c->state = CHAN_ST_CLOSED;
    *ret_data = in + RECORD_HEAD;
    *ret_len = n - CHAN_RECORD_OVERHEAD;
    *ret_event = type == CHAN_CLOSE ? CHAN_CLOSED : CHAN_DATA;
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

static enum status dispatch(struct chan *c, uint8_t *in, size_t n, struct buf *out,
                            enum chan_event *ret_event, uint8_t **ret_data, size_t *ret_len,
                            struct err *err)
{
    switch (in[3]) {
    case CHAN_INIT:
        if (!c->is_initiator && c->state == CHAN_ST_NEW)
            return receive_init(c, in, n, out, ret_event, err);
        break;
    case CHAN_RESPONSE:
        if (c->state == CHAN_ST_SENT_INIT)
            return receive_response(c, in, n, out, ret_event, err);
        break;
    case CHAN_FINISH:
        if (c->state == CHAN_ST_SENT_RESPONSE)
            return receive_finish(c, in, n, ret_event, err);
        break;
    case CHAN_RECORD:
    case CHAN_CLOSE:
    case CHAN_RENEW_INIT:
    case CHAN_RENEW_RESPONSE:
    case CHAN_RENEW_SWITCH:
        if (may_take_record(c))
            return receive_record(c, in, n, out, ret_event, ret_data, ret_len, err);
        break;
    }
    return refuse(c, CHAN_MALFORMED, err, "a message out of turn");
}

enum status chan_receive(struct chan *c, uint8_t *in, size_t n, struct buf *out,
                         enum chan_event *ret_event, uint8_t **ret_data, size_t *ret_len,
                         struct err *err)
{
    *ret_event = CHAN_NOTHING;
    *ret_data = NULL;
    *ret_len = 0;
    if (c->state == CHAN_ST_DEAD || c->state == CHAN_ST_CLOSED)
        return err_set(err, STATUS_UNAVAILABLE, "channel: a message after the end");
    if (n < CHAN_HEADER_SIZE || memcmp(in, "CQ", 2) != 0 || in[2] != CHAN_VERSION)
        return refuse(c, CHAN_MALFORMED, err, "not a message of this protocol");
    if (is_stray(c, in))
        return STATUS_OK;
    return dispatch(c, in, n, out, ret_event, ret_data, ret_len, err);
}

bool chan_is_ready(const struct chan *c)
{
    return c->state == CHAN_ST_OPEN;
}

const struct chan_peer *chan_peer(const struct chan *c)
{
    return &((struct chan_known *)c->known)->peer;
}

uint64_t chan_received_counter(const struct chan *c)
{
    return c->receive.counter;
}
