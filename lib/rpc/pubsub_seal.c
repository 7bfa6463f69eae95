// Sealing and opening of published messages: bytes in, bytes out.
//
//   topic 8 | "CE" 2 | version 1 | 0 1 | publisher 8 | epoch 8 | number 8 | ciphertext | tag 16
//   | signature 64
//
// The nonce is the number, which never repeats under a key: it goes on across epochs, and another
// start is another publisher with other keys.
#include <string.h>

#include "base/rand.h"
#include "crypto/crypto.h"
#include "rpc/pubsub.h"

#define TAG_SIZE 16U
#define SIGNATURE_SIZE 64U
#define VERSION 1

static const uint8_t person_topic[16] = "cauce-topic";
static const uint8_t magic[4] = {'C', 'E', VERSION, 0};

struct pubsub_topic pubsub_topic_of(const char *name)
{
    struct pubsub_topic t;
    crypto_blake2b(t.id, sizeof t.id, name, strlen(name), NULL, 0, person_topic);
    return t;
}

// ---------------------------------------------------------------- writer

void pubsub_writer_init(struct pubsub_writer *w, const char *topic)
{
    uint8_t verify_key[32];
    *w = (struct pubsub_writer){.topic = pubsub_topic_of(topic), .publisher = rand_u64()};
    crypto_ed25519_keypair(verify_key, w->sign_secret);
    pubsub_writer_change_epoch(w);
}

void pubsub_writer_done(struct pubsub_writer *w)
{
    crypto_wipe(w, sizeof *w);
}

void pubsub_writer_change_epoch(struct pubsub_writer *w)
{
    w->epoch++;
    rand_bytes(w->key, sizeof w->key);
}

void pubsub_grant_of(const struct pubsub_writer *w, struct pubsub_grant *ret)
{
    *ret = (struct pubsub_grant){.publisher = w->publisher, .epoch = w->epoch, .number = w->number};
    memcpy(ret->key, w->key, sizeof ret->key);
    memcpy(ret->verify_key, w->sign_secret + 32, sizeof ret->verify_key);
}

enum status pubsub_seal(struct pubsub_writer *w, const void *payload, size_t n, struct buf *out,
                        struct err *err)
{
    if (n > PUBSUB_MAX_PAYLOAD)
        return err_set(err, STATUS_INVALID_ARGUMENT, "publish: %zu bytes are more than %u", n,
                       PUBSUB_MAX_PAYLOAD);
    if (!buf_reserve(out, n + PUBSUB_OVERHEAD))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "publish: out of memory");
    uint8_t *msg = out->data + out->len, *sealed = msg + PUBSUB_HEADER_SIZE;
    w->number++;
    buf_append(out, w->topic.id, sizeof w->topic.id); // there is room: none of these fails
    buf_append(out, magic, sizeof magic);
    buf_put_be64(out, w->publisher);
    buf_put_be64(out, w->epoch);
    buf_put_be64(out, w->number);
    crypto_seal(CRYPTO_CHACHAPOLY, sealed, w->key, w->number, msg, PUBSUB_HEADER_SIZE, payload, n);
    crypto_ed25519_sign(sealed + n + TAG_SIZE, w->sign_secret, msg,
                        PUBSUB_HEADER_SIZE + n + TAG_SIZE);
    buf_commit(out, n + TAG_SIZE + SIGNATURE_SIZE);
    return STATUS_OK;
}

// ---------------------------------------------------------------- reader

void pubsub_reader_init(struct pubsub_reader *r, const char *topic)
{
    *r = (struct pubsub_reader){.topic = pubsub_topic_of(topic)};
}

void pubsub_reader_done(struct pubsub_reader *r)
{
    crypto_wipe(r, sizeof *r);
}

static void set_epoch(struct pubsub_epoch *e, const struct pubsub_grant *g)
{
    e->epoch = g->epoch;
    memcpy(e->key, g->key, sizeof e->key);
}

static void forget(struct pubsub_epoch *e)
{
    crypto_wipe(e, sizeof *e);
}

void pubsub_reader_adopt(struct pubsub_reader *r, const struct pubsub_grant *g, int64_t now_us)
{
    if (r->now.epoch && r->publisher == g->publisher) {
        if (g->epoch <= r->now.epoch)
            return;
        r->before = r->now;
        r->before_until_us = now_us + INT64_C(1000) * PUBSUB_OVERLAP_MS;
        set_epoch(&r->now, g);
        return;
    }
    r->publisher = g->publisher;
    r->number = g->number;
    memcpy(r->verify_key, g->verify_key, sizeof r->verify_key);
    forget(&r->before);
    set_epoch(&r->now, g);
}

struct head {
    uint64_t publisher, epoch, number;
};

static bool read_head(const struct pubsub_reader *r, const uint8_t *msg, size_t n, struct head *h)
{
    struct reader in;
    if (n < PUBSUB_OVERHEAD || n > PUBSUB_MAX_PAYLOAD + PUBSUB_OVERHEAD ||
        memcmp(msg, r->topic.id, sizeof r->topic.id) != 0 ||
        memcmp(msg + sizeof r->topic.id, magic, sizeof magic) != 0)
        return false;
    reader_init(&in, msg, n);
    (void)reader_bytes(&in, sizeof r->topic.id + sizeof magic);
    h->publisher = reader_be64(&in);
    h->epoch = reader_be64(&in);
    h->number = reader_be64(&in);
    return true;
}

static const uint8_t *key_for(struct pubsub_reader *r, uint64_t epoch, int64_t now_us)
{
    if (r->before.epoch && now_us >= r->before_until_us)
        forget(&r->before);
    if (epoch == r->now.epoch)
        return r->now.key;
    return r->before.epoch && epoch == r->before.epoch ? r->before.key : NULL;
}

static bool is_genuine(const struct pubsub_reader *r, const uint8_t *key, uint64_t number,
                       uint8_t *msg, size_t n)
{
    size_t signed_size = n - SIGNATURE_SIZE, sealed = signed_size - PUBSUB_HEADER_SIZE;
    // Opening destroys what is signed: the signature goes first. It costs more than a tag, but who
    // floods us with forgeries pays for a connection and costs one thread at most.
    if (!crypto_ed25519_verify(msg + signed_size, r->verify_key, msg, signed_size))
        return false;
    return crypto_open(CRYPTO_CHACHAPOLY, msg + PUBSUB_HEADER_SIZE, key, number, msg,
                       PUBSUB_HEADER_SIZE, msg + PUBSUB_HEADER_SIZE, sealed);
}

enum pubsub_result pubsub_open(struct pubsub_reader *r, uint8_t *msg, size_t n, int64_t now_us,
                               const uint8_t **ret_payload, size_t *ret_n)
{
    struct head h;
    if (!read_head(r, msg, n, &h)) {
        r->stats.n_forged++;
        return PUBSUB_DROPPED;
    }
    if (r->now.epoch == 0 || h.publisher != r->publisher || h.epoch > r->now.epoch) {
        r->stats.n_unknown++;
        return PUBSUB_ASK;
    }
    if (h.number <= r->number) {
        r->stats.n_repeated++;
        return PUBSUB_DROPPED;
    }
    const uint8_t *key = key_for(r, h.epoch, now_us);
    if (!key) {
        r->stats.n_stale++;
        return PUBSUB_DROPPED;
    }
    if (!is_genuine(r, key, h.number, msg, n)) {
        r->stats.n_forged++;
        return PUBSUB_DROPPED;
    }
    if (h.epoch == r->now.epoch)
        forget(&r->before); // messages come in order: none of it is under way any more
    r->stats.n_missed += h.number - r->number - 1;
    r->stats.n_opened++;
    r->number = h.number;
    *ret_payload = msg + PUBSUB_HEADER_SIZE;
    *ret_n = n - PUBSUB_OVERHEAD;
    return PUBSUB_OPENED;
}
