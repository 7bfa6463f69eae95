#include "fuzz_keys.h"

#include <string.h>

#include "crypto/crypto.h"
#include "fuzz.h"

#define ALL_LINKS (1U << CHAN_LINK_CLIENT | 1U << CHAN_LINK_SERVICE | 1U << CHAN_LINK_ENROL)

void fuzz_keys_init(void)
{
    static bool is_done;
    struct err err = ERR_INIT;
    if (!is_done)
        FUZZ_CHECK(crypto_init(&err) == STATUS_OK);
    is_done = true;
}

static void make_node(struct chan_identity *id, uint8_t number, unsigned role,
                      const uint8_t operator_secret[64])
{
    struct chan_grant g = {
        .role = role, .node_id = "node", .not_before_s = 1, .not_after_s = INT64_C(1) << 40};
    struct err err = ERR_INIT;
    struct buf b;
    memset(id->secret, number, sizeof id->secret);
    crypto_dh_public(id->public_key, id->secret);
    memcpy(g.key, id->public_key, sizeof g.key);
    buf_init(&b, sizeof id->grant);
    FUZZ_CHECK(chan_grant_sign(&b, &g, operator_secret, &err) == STATUS_OK);
    memcpy(id->grant, b.data, b.len);
    id->grant_len = b.len;
    buf_done(&b);
}

void fuzz_world_init(struct fuzz_world *w)
{
    static const uint8_t seed[32] = {7};
    uint8_t operator_secret[64];
    fuzz_keys_init();
    memset(w, 0, sizeof *w);
    crypto_ed25519_seed_keypair(w->trust.operator_public, operator_secret, seed);
    make_node(&w->client, 1, 9, operator_secret);
    make_node(&w->server, 2, 12, operator_secret);
    memcpy(w->join.id, FUZZ_JOIN_ID, sizeof w->join.id);
    memset(w->join.secret, 3, sizeof w->join.secret);
}

static bool find_join(void *ud, const uint8_t id[CHAN_JOIN_ID_SIZE], uint8_t ret_secret[32])
{
    const struct fuzz_world *w = ud;
    memcpy(ret_secret, w->join.secret, 32);
    return memcmp(id, w->join.id, CHAN_JOIN_ID_SIZE) == 0;
}

struct chan *fuzz_responder(const struct fuzz_world *w)
{
    struct err err = ERR_INIT;
    struct chan_local *l = chan_local_new(&w->server, &w->trust);
    FUZZ_CHECK(l);
    chan_local_set_join(l, find_join, (void *)(uintptr_t)w);
    struct chan *c = chan_accept(l, ALL_LINKS, &err);
    FUZZ_CHECK(c);
    chan_local_unref(l);
    return c;
}

struct chan *fuzz_initiator(const struct fuzz_world *w, enum chan_link link)
{
    struct err err = ERR_INIT;
    struct chan_local *l = chan_local_new(link == CHAN_LINK_CLIENT ? NULL : &w->client,
                                          link == CHAN_LINK_SERVICE ? &w->trust : NULL);
    FUZZ_CHECK(l);
    struct chan *c =
        chan_dial(l, link, w->server.public_key, link == CHAN_LINK_ENROL ? &w->join : NULL, &err);
    FUZZ_CHECK(c);
    chan_local_unref(l);
    return c;
}

void fuzz_writer(struct pubsub_writer *ret)
{
    static const uint8_t seed[32] = {9};
    uint8_t verify_key[32];
    *ret = (struct pubsub_writer){
        .topic = pubsub_topic_of(FUZZ_TOPIC), .publisher = 77, .epoch = 3, .number = 100};
    memset(ret->key, 4, sizeof ret->key);
    crypto_ed25519_seed_keypair(verify_key, ret->sign_secret, seed);
}
