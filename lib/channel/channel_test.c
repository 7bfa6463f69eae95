// Whole connections in memory: what must work, and everything that must be refused in silence.
#include "channel/channel.h"

#include "channel/test_util.h"

// ---------------------------------------------------------------- what must work

static void test_chan_client_link_carries_records_both_ways(void **state)
{
    (void)state;
    struct world w;
    struct pair p;

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_CLIENT);
    assert_true(chan_is_ready(p.client) && chan_is_ready(p.server));
    send_text(&p, p.server, p.client, "hello, whoever you are");
    send_text(&p, p.client, p.server, "");
    send_text(&p, p.client, p.server, "abc");
    assert_int_equal(chan_received_counter(p.server), 2);
    const struct chan_peer *peer = chan_peer(p.server);
    assert_int_equal(peer->link, CHAN_LINK_CLIENT);
    assert_false(peer->has_grant);
    assert_memory_equal(peer->key, (uint8_t[32]){0}, 32);
    assert_memory_equal(chan_peer(p.client)->key, w.server.public_key, 32);
    assert_memory_equal(peer->handshake_hash, chan_peer(p.client)->handshake_hash, 64);
    pair_done(&p);
}

static void test_chan_service_link_tells_who_is_there(void **state)
{
    (void)state;
    struct world w;
    struct pair p;

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_SERVICE);
    const struct chan_peer *c = chan_peer(p.server), *s = chan_peer(p.client);
    assert_true(c->has_grant && s->has_grant);
    assert_string_equal(c->grant.node_id, "orchestrator-1");
    assert_int_equal(c->grant.role, ROLE_ORCHESTRATOR);
    assert_memory_equal(c->key, w.client.public_key, 32);
    assert_string_equal(s->grant.node_id, "video-1");
    assert_int_equal(s->grant.role, ROLE_ORIGIN);
    assert_memory_equal(c->handshake_hash, s->handshake_hash, 64);
    pair_done(&p);
}

static void test_chan_service_responder_says_nothing_before_first_record(void **state)
{
    (void)state;
    struct world w;
    struct pair p;

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_SERVICE);
    assert_true(chan_is_ready(p.client));
    assert_false(chan_is_ready(p.server));
    assert_int_equal(seal_text(p.server, "too early"), 0);
    send_text(&p, p.client, p.server, "it is me");
    assert_true(chan_is_ready(p.server));
    send_text(&p, p.server, p.client, "welcome");
    pair_done(&p);
}

static void test_chan_handshake_sizes_are_fixed(void **state)
{
    (void)state;
    struct world w;
    struct pair p;

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_CLIENT); // e, payload 64
    assert_int_equal(p.init.len, 12 + 3 + 32 + 64 + 16 + 16);
    assert_int_equal(p.response.len, 12 + 3 + 32 + 64 + 16 + 16);
    pair_done(&p);
    pair_connect(&p, &w, CHAN_LINK_SERVICE); // e, s, payload 256
    assert_int_equal(p.init.len, 12 + 3 + 32 + 48 + 256 + 16 + 16);
    assert_int_equal(p.response.len, 12 + 3 + 32 + 256 + 16 + 16);
    pair_done(&p);
}

static void test_chan_largest_record_passes_and_larger_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct pair p;
    const size_t most = CHAN_MAX_RECORD - CHAN_RECORD_OVERHEAD;

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_CLIENT);
    assert_int_equal(chan_seal(p.client, record, most + 1, NULL), 0);
    memset(record + 20, 'x', most);
    assert_int_equal(chan_seal(p.client, record, most, NULL), CHAN_MAX_RECORD);
    struct result r = feed(p.server, record, CHAN_MAX_RECORD, &p.scratch);
    assert_int_equal(r.event, CHAN_DATA);
    assert_int_equal(r.len, most);
    assert_int_equal(r.data[0], 'x');
    assert_int_equal(r.data[most - 1], 'x');
    pair_done(&p);
}

static void test_chan_rekeys_at_the_boundary(void **state)
{
    (void)state;
    struct world w;
    struct pair p;
    uint8_t first_key[32];
    uint64_t counter = 0;

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_CLIENT);
    memcpy(first_key, p.client->send.key, sizeof(first_key));
    for (uint64_t i = 0; i < 2 * CHAN_REKEY_RECORDS + 2; i++) {
        if (i == CHAN_REKEY_RECORDS)
            assert_memory_equal(first_key, p.client->send.key, 32);
        record[20] = (uint8_t)i;
        size_t n = chan_seal(p.client, record, 1, &counter);
        assert_int_equal(counter, i);
        struct result r = feed(p.server, record, n, &p.scratch);
        assert_int_equal(r.event, CHAN_DATA);
        assert_int_equal(r.data[0], (uint8_t)i);
        if (i == CHAN_REKEY_RECORDS)
            assert_memory_not_equal(first_key, p.client->send.key, 32);
    }
    assert_memory_equal(p.client->send.key, p.server->receive.key, 32);
    send_text(&p, p.server, p.client, "the other direction has a count of its own");
    pair_done(&p);
}

static void test_chan_counter_stops_before_its_end(void **state)
{
    (void)state;
    struct world w;
    struct pair p;

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_CLIENT);
    p.client->send.counter = p.server->receive.counter = UINT64_MAX - 1;
    send_text(&p, p.client, p.server, "the last one");
    assert_int_equal(seal_text(p.client, "one too many"), 0);
    assert_int_equal(chan_seal_close(p.client, record), 0);
    pair_done(&p);
}

static void test_chan_close_ends_the_session(void **state)
{
    (void)state;
    struct world w;
    struct pair p;
    uint8_t close[CHAN_RECORD_OVERHEAD];

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_CLIENT);
    size_t n = chan_seal_close(p.client, close);
    assert_int_equal(n, CHAN_RECORD_OVERHEAD);
    assert_int_equal(seal_text(p.client, "after the end"), 0);
    assert_int_equal(chan_seal_close(p.client, record), 0);
    send_text(&p, p.server, p.client, "was under way"); // still opened
    assert_int_equal(feed(p.server, close, n, &p.scratch).event, CHAN_CLOSED);
    assert_false(chan_is_ready(p.server));
    assert_int_equal(seal_text(p.server, "after the end"), 0);
    assert_int_equal(feed(p.server, close, n, &p.scratch).status, STATUS_UNAVAILABLE);
    pair_done(&p);
}

// ---------------------------------------------------------------- changed handshakes

static void assert_init_refused(struct world *w, uint8_t *frame, size_t n)
{
    AUTO(buf_done) struct buf out = {0};
    struct err err = ERR_INIT;
    AUTO(chan_free_p)
    struct chan *server = chan_new_responder(BOTH_LINKS, &w->server, &w->trust, &err);

    buf_init(&out, CHAN_MAX_RECORD);
    assert_non_null(server);
    struct result r = feed(server, frame, n, &out);
    assert_true(r.status != STATUS_OK || r.event == CHAN_NOTHING);
    assert_int_equal(out.len, 0);
    assert_false(chan_is_ready(server));
    assert_int_equal(seal_text(server, "x"), 0);
}

static void test_chan_changed_init_is_refused(void **state)
{
    (void)state;
    struct world w;
    uint8_t bad[CHAN_MAX_HANDSHAKE];

    make_world(&w);
    for (enum chan_link link = CHAN_LINK_CLIENT; link <= CHAN_LINK_SERVICE; link++) {
        struct pair p;
        pair_new(&p, &w, link);
        size_t n = p.init.len;
        for (size_t cut = 0; cut < n; cut++) {
            memcpy(bad, p.init.data, n);
            assert_init_refused(&w, bad, cut);
            if (cut > CHAN_HEADER_SIZE + 3 + CHAN_MAC1_SIZE) {
                size_t noise = cut - (CHAN_HEADER_SIZE + 3 + CHAN_MAC1_SIZE);
                bad[CHAN_HEADER_SIZE + 1] = (uint8_t)(noise >> 8);
                bad[CHAN_HEADER_SIZE + 2] = (uint8_t)noise;
                fix_mac1(&w, bad, cut);
                assert_init_refused(&w, bad, cut);
            }
        }
        for (size_t bit = 0; bit < 8 * n; bit++) {
            memcpy(bad, p.init.data, n);
            bad[bit / 8] ^= (uint8_t)(1U << bit % 8);
            assert_init_refused(&w, bad, n);
            if (bit / 8 >= n - CHAN_MAC1_SIZE || in_session_field(bit / 8))
                continue;
            fix_mac1(&w, bad, n); // now the handshake itself must notice
            assert_init_refused(&w, bad, n);
        }
        memcpy(bad, p.init.data, n); // one byte too many
        bad[n] = 0;
        assert_init_refused(&w, bad, n + 1);
        assert_int_equal(feed(p.server, p.init.data, n, &p.response).status, STATUS_OK);
        pair_done(&p);
    }
}

// A client that waits for its response, again and again from the same state.
static void assert_response_refused(struct pair *p, uint8_t *frame, size_t n)
{
    struct chan saved = *p->client;
    struct chan_handshake hs = *p->client->hs;

    struct result r = feed(p->client, frame, n, &p->scratch);
    assert_true(r.status != STATUS_OK || r.event == CHAN_NOTHING);
    assert_false(chan_is_ready(p->client));
    assert_int_equal(seal_text(p->client, "x"), 0);
    struct chan_handshake *again = p->client->hs;
    *p->client = saved;
    if (!again)
        again = mem_alloc(sizeof(*again)); // it was freed
    assert_non_null(again);
    *again = hs;
    p->client->hs = again;
}

static void test_chan_changed_response_is_refused(void **state)
{
    (void)state;
    struct world w;
    uint8_t bad[CHAN_MAX_HANDSHAKE];

    make_world(&w);
    for (enum chan_link link = CHAN_LINK_CLIENT; link <= CHAN_LINK_SERVICE; link++) {
        struct pair p;
        pair_new(&p, &w, link);
        assert_int_equal(feed(p.server, p.init.data, p.init.len, &p.response).status, STATUS_OK);
        size_t n = p.response.len;
        for (size_t cut = 0; cut < n; cut++) {
            memcpy(bad, p.response.data, n);
            assert_response_refused(&p, bad, cut);
        }
        for (size_t bit = 0; bit < 8 * n; bit++) {
            memcpy(bad, p.response.data, n);
            bad[bit / 8] ^= (uint8_t)(1U << bit % 8);
            assert_response_refused(&p, bad, n);
            if (bit / 8 >= n - CHAN_MAC1_SIZE)
                continue;
            fix_mac1(&w, bad, n);
            assert_response_refused(&p, bad, n);
        }
        struct result r = feed(p.client, p.response.data, n, &p.scratch);
        assert_int_equal(r.event, CHAN_READY); // the true one still works
        pair_done(&p);
    }
}

static void test_chan_replayed_init_gives_an_unconfirmed_session_only(void **state)
{
    (void)state;
    struct world w;
    struct pair p;
    struct err err = ERR_INIT;
    uint8_t copy[CHAN_MAX_HANDSHAKE];

    make_world(&w);
    pair_new(&p, &w, CHAN_LINK_SERVICE);
    size_t n = p.init.len;
    memcpy(copy, p.init.data, n);
    assert_int_equal(feed(p.server, p.init.data, n, &p.response).event, CHAN_REPLY);
    assert_int_equal(feed(p.client, p.response.data, p.response.len, &p.scratch).event, CHAN_READY);
    size_t len = seal_text(p.client, "first");

    AUTO(chan_free_p)
    struct chan *again = chan_new_responder(BOTH_LINKS, &w.server, &w.trust, &err);
    assert_int_equal(feed(again, copy, n, &p.scratch).event, CHAN_REPLY);
    assert_false(chan_is_ready(again));
    // The records of the true session are no use to the replayer.
    assert_int_equal(feed(again, record, len, &p.scratch).status, STATUS_UNAVAILABLE);
    assert_false(chan_is_ready(again));
    pair_done(&p);
}

static void test_chan_second_init_on_a_connection_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct pair p;
    uint8_t copy[CHAN_MAX_HANDSHAKE];

    make_world(&w);
    pair_new(&p, &w, CHAN_LINK_CLIENT);
    memcpy(copy, p.init.data, p.init.len);
    assert_int_equal(feed(p.server, p.init.data, p.init.len, &p.response).status, STATUS_OK);
    assert_int_equal(feed(p.server, copy, p.init.len, &p.scratch).status, STATUS_UNAVAILABLE);
    pair_done(&p);
}

// ---------------------------------------------------------------- changed records

static void test_chan_changed_record_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct pair p;

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_CLIENT);
    size_t n = seal_text(p.client, "some words");
    struct chan before = *p.server;
    uint8_t bad[128];
    for (size_t i = 0; i < 8 * n + n; i++) {
        memcpy(bad, record, n);
        if (i < 8 * n)
            bad[i / 8] ^= (uint8_t)(1U << i % 8);
        struct result r = feed(p.server, bad, i < 8 * n ? n : i - 8 * n, &p.scratch);
        // Of another session: dropped. Anything else: the end.
        assert_true(r.status != STATUS_OK || (r.event == CHAN_NOTHING && in_session_field(i / 8)));
        if (r.status != STATUS_OK) {
            assert_int_equal(p.server->state, CHAN_ST_DEAD);
            struct result dead = feed(p.server, record, n, &p.scratch);
            assert_int_equal(dead.status, STATUS_UNAVAILABLE);
        }
        *p.server = before;
    }
    assert_int_equal(feed(p.server, record, n, &p.scratch).event, CHAN_DATA);
    pair_done(&p);
}

static void test_chan_replayed_reordered_and_reflected_records_are_refused(void **state)
{
    (void)state;
    struct world w;
    struct pair p;
    uint8_t rec[3][64], bad[64];
    size_t n = 0;

    make_world(&w);
    pair_connect(&p, &w, CHAN_LINK_CLIENT);
    for (size_t i = 0; i < 3; i++) {
        n = seal_text(p.client, "word");
        memcpy(rec[i], record, n);
    }
    struct chan before = *p.server;
    memcpy(bad, rec[1], n); // a gap
    assert_int_equal(feed(p.server, bad, n, &p.scratch).status, STATUS_UNAVAILABLE);
    *p.server = before;
    memcpy(bad, rec[0], n);
    assert_int_equal(feed(p.server, bad, n, &p.scratch).event, CHAN_DATA);
    before = *p.server;
    memcpy(bad, rec[0], n); // again
    assert_int_equal(feed(p.server, bad, n, &p.scratch).status, STATUS_UNAVAILABLE);
    *p.server = before;
    memcpy(bad, rec[2], n); // out of order
    assert_int_equal(feed(p.server, bad, n, &p.scratch).status, STATUS_UNAVAILABLE);
    *p.server = before;
    memcpy(bad, rec[0], n); // back to its sender
    assert_int_equal(feed(p.client, bad, n, &p.scratch).status, STATUS_UNAVAILABLE);
    memcpy(bad, rec[1], n);
    assert_int_equal(feed(p.server, bad, n, &p.scratch).event, CHAN_DATA);
    pair_done(&p);
}

static void test_chan_strays_of_another_session_are_dropped(void **state)
{
    (void)state;
    struct world w;
    struct pair old, p;
    uint8_t bad[64];

    make_world(&w);
    pair_connect(&old, &w, CHAN_LINK_CLIENT);
    size_t n = seal_text(old.client, "stale");
    pair_new(&p, &w, CHAN_LINK_CLIENT);
    memcpy(bad, record, n); // before the init
    assert_int_equal(feed(p.server, bad, n, &p.scratch).event, CHAN_NOTHING);
    assert_int_equal(feed(p.client, bad, n, &p.scratch).event, CHAN_NOTHING);
    assert_int_equal(feed(p.server, p.init.data, p.init.len, &p.response).event, CHAN_READY);
    assert_int_equal(feed(p.server, bad, n, &p.scratch).event, CHAN_NOTHING);
    assert_int_equal(feed(p.client, p.response.data, p.response.len, &p.scratch).event, CHAN_READY);
    send_text(&p, p.client, p.server, "fresh");
    pair_done(&p);
    pair_done(&old);
}

// ---------------------------------------------------------------- who is let in

typedef void (*spoil_fn)(struct world *w, struct chan_grant *g, uint8_t signer[64]);

static void spoil_expired(struct world *w, struct chan_grant *g, uint8_t signer[64])
{
    (void)w;
    (void)signer;
    g->not_before_s = now_s() - 100;
    g->not_after_s = now_s() - 10;
}

static void spoil_not_yet(struct world *w, struct chan_grant *g, uint8_t signer[64])
{
    (void)w;
    (void)signer;
    g->not_before_s = now_s() + 100;
}

static void spoil_revoked(struct world *w, struct chan_grant *g, uint8_t signer[64])
{
    (void)signer;
    w->trust.serial_floor = g->serial; // the other's stays good
    g->serial--;
}

static void spoil_another_key(struct world *w, struct chan_grant *g, uint8_t signer[64])
{
    (void)w;
    (void)signer;
    g->key[0] ^= 1;
}

static void spoil_another_operator(struct world *w, struct chan_grant *g, uint8_t signer[64])
{
    uint8_t pub[32];

    (void)w;
    (void)g;
    crypto_ed25519_keypair(pub, signer);
}

static const spoil_fn spoils[] = {spoil_expired, spoil_not_yet, spoil_revoked, spoil_another_key,
                                  spoil_another_operator};

static void spoil(struct world *w, struct chan_identity *id, spoil_fn fn)
{
    struct chan_grant g = grant_for(id, ROLE_ORIGIN, "bad");
    uint8_t signer[64];

    memcpy(signer, w->operator_secret, sizeof(signer));
    fn(w, &g, signer);
    set_grant(id, &g, signer);
}

static void test_chan_bad_grant_of_the_initiator_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(spoils); i++) {
        struct world w;
        struct pair p;
        make_world(&w);
        spoil(&w, &w.client, spoils[i]);
        pair_new(&p, &w, CHAN_LINK_SERVICE);
        struct result r = feed(p.server, p.init.data, p.init.len, &p.response);
        assert_int_equal(r.status, STATUS_UNAVAILABLE);
        assert_false(chan_peer(p.server)->has_grant);
        pair_done(&p);
    }
}

static void test_chan_bad_grant_of_the_responder_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(spoils); i++) {
        struct world w;
        struct pair p;
        make_world(&w);
        spoil(&w, &w.server, spoils[i]);
        pair_new(&p, &w, CHAN_LINK_SERVICE);
        assert_int_equal(feed(p.server, p.init.data, p.init.len, &p.response).event, CHAN_REPLY);
        struct result r = feed(p.client, p.response.data, p.response.len, &p.scratch);
        assert_int_equal(r.status, STATUS_UNAVAILABLE);
        pair_done(&p);
    }
}

static void test_chan_wrong_responder_key_is_refused(void **state)
{
    (void)state;
    struct world w, other;
    struct pair p;

    make_world(&w);
    make_world(&other);
    pair_new(&p, &w, CHAN_LINK_CLIENT);
    assert_init_refused(&other, p.init.data, p.init.len);
    pair_done(&p);
}

static void test_chan_link_that_is_not_accepted_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;

    make_world(&w);
    for (enum chan_link link = CHAN_LINK_CLIENT; link <= CHAN_LINK_SERVICE; link++) {
        struct pair p;
        pair_new(&p, &w, link);
        AUTO(chan_free_p)
        struct chan *server =
            chan_new_responder(BOTH_LINKS & ~(1U << link), &w.server, &w.trust, &err);
        assert_non_null(server);
        assert_int_equal(feed(server, p.init.data, p.init.len, &p.response).status,
                         STATUS_UNAVAILABLE);
        pair_done(&p);
    }
}

static void test_chan_garbage_is_refused_and_never_answered(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    AUTO(buf_done) struct buf out = {0};
    uint8_t bytes[600];
    uint32_t seed = 12345;

    make_world(&w);
    buf_init(&out, CHAN_MAX_RECORD);
    for (unsigned i = 0; i < 2000; i++) {
        AUTO(chan_free_p)
        struct chan *server = chan_new_responder(BOTH_LINKS, &w.server, &w.trust, &err);
        assert_non_null(server);
        for (size_t j = 0; j < sizeof(bytes); j++)
            bytes[j] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
        if (i % 2) { // close to the real thing
            memcpy(bytes, "CQ\1", 3);
            bytes[3] = (uint8_t)(i % 8);
            bytes[12] = (uint8_t)(1 + i % 3);
        }
        struct result r = feed(server, bytes, seed % sizeof(bytes), &out);
        assert_true(r.status != STATUS_OK || r.event == CHAN_NOTHING);
        assert_int_equal(out.len, 0);
    }
}

static void test_chan_without_what_a_link_needs_is_not_made(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    const unsigned service = 1U << CHAN_LINK_SERVICE;

    make_world(&w);
    const uint8_t *key = w.server.public_key;
    struct chan_identity bare = w.client;
    bare.grant_len = 0;
    assert_null(chan_new_initiator(CHAN_LINK_SERVICE, key, NULL, &w.trust, &err));
    assert_null(chan_new_initiator(CHAN_LINK_SERVICE, key, &w.client, NULL, &err));
    assert_null(chan_new_initiator(CHAN_LINK_SERVICE, key, &bare, &w.trust, &err));
    assert_null(chan_new_initiator(CHAN_LINK_ENROL, key, &w.client, &w.trust, &err));
    assert_int_equal(err.code, STATUS_INVALID_ARGUMENT);
    assert_null(chan_new_responder(0, &w.server, &w.trust, &err));
    assert_null(chan_new_responder(service, &w.server, NULL, &err));
    assert_null(chan_new_responder(service, &bare, &w.trust, &err));
    assert_null(chan_new_responder(1U << CHAN_LINK_ENROL, &w.server, &w.trust, &err));
    AUTO(chan_free_p)
    struct chan *c = chan_new_responder(1U << CHAN_LINK_CLIENT, &bare, NULL, &err);
    assert_non_null(c);
}

static void test_chan_survives_every_failed_allocation(void **state)
{
    (void)state;
    struct world w;
    bool done = false;

    make_world(&w);
    for (int64_t n = 0; !done; n++) {
        AUTO(buf_done) struct buf init = {0};
        AUTO(buf_done) struct buf response = {0};
        struct err err = ERR_INIT;
        enum chan_event event = CHAN_NOTHING;
        uint8_t *data = NULL;
        size_t len = 0;
        buf_init(&init, CHAN_MAX_RECORD);
        buf_init(&response, CHAN_MAX_RECORD);
        mem_fail_at(n);
        AUTO(chan_free_p)
        struct chan *client =
            chan_new_initiator(CHAN_LINK_SERVICE, w.server.public_key, &w.client, &w.trust, &err);
        AUTO(chan_free_p)
        struct chan *server = chan_new_responder(BOTH_LINKS, &w.server, &w.trust, &err);
        done = client && server && chan_start(client, &init, &err) == STATUS_OK &&
               chan_receive(server, init.data, init.len, &response, &event, &data, &len, &err) ==
                   STATUS_OK &&
               chan_receive(client, response.data, response.len, &init, &event, &data, &len,
                            &err) == STATUS_OK;
        mem_fail_at(-1);
        assert_true(n > 0 || !done);
        assert_true(n < 100);
    }
}

// ---------------------------------------------------------------- grants alone

static void test_grant_round_trip(void **state)
{
    (void)state;
    struct world w;
    struct chan_grant g, got;
    struct err err = ERR_INIT;

    make_world(&w);
    g = grant_for(&w.client, ROLE_ORIGIN, "a.long_node-id");
    g.serial = 0x0102030405060708;
    set_grant(&w.client, &g, w.operator_secret);
    assert_int_equal(w.client.grant_len, CHAN_GRANT_SIZE);
    assert_int_equal(CHAN_GRANT_SIZE, 190);
    assert_int_equal(chan_grant_verify(&got, w.client.grant, w.client.grant_len,
                                       w.trust.operator_public, now_s(), &err),
                     STATUS_OK);
    assert_memory_equal(got.key, g.key, 32);
    assert_string_equal(got.node_id, g.node_id);
    assert_int_equal(got.role, g.role);
    assert_int_equal(got.not_before_s, g.not_before_s);
    assert_int_equal(got.not_after_s, g.not_after_s);
    assert_int_equal(got.serial, g.serial);
}

static void test_grant_changed_or_cut_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct chan_grant got;
    struct err err = ERR_INIT;
    uint8_t bad[CHAN_GRANT_SIZE + 1] = {0};

    make_world(&w);
    for (size_t bit = 0; bit < 8 * CHAN_GRANT_SIZE; bit++) {
        memcpy(bad, w.client.grant, CHAN_GRANT_SIZE);
        bad[bit / 8] ^= (uint8_t)(1U << bit % 8);
        assert_int_equal(
            chan_grant_verify(&got, bad, CHAN_GRANT_SIZE, w.trust.operator_public, now_s(), &err),
            STATUS_UNAUTHENTICATED);
    }
    memcpy(bad, w.client.grant, CHAN_GRANT_SIZE);
    for (size_t n = 0; n <= sizeof(bad); n++) {
        if (n != CHAN_GRANT_SIZE)
            assert_int_equal(
                chan_grant_verify(&got, bad, n, w.trust.operator_public, now_s(), &err),
                STATUS_UNAUTHENTICATED);
    }
}

static void test_grant_with_bad_contents_is_not_signed(void **state)
{
    (void)state;
    static const char *const ids[] = {"", "UPPER", "a b", "a/b", "\xc3\xa9"};
    struct world w;
    struct err err = ERR_INIT;
    AUTO(buf_done) struct buf out = {0};

    make_world(&w);
    buf_init(&out, 7 * CHAN_GRANT_SIZE);
    for (size_t i = 0; i < N_ELEMENTS(ids); i++) {
        struct chan_grant g = grant_for(&w.client, ROLE_ORIGIN, ids[i]);
        assert_int_equal(chan_grant_sign(&out, &g, w.operator_secret, &err),
                         STATUS_INVALID_ARGUMENT);
    }
    for (unsigned role = 0; role < 20; role++) {
        struct chan_grant g = grant_for(&w.client, role, "n");
        assert_int_equal(chan_grant_sign(&out, &g, w.operator_secret, &err) == STATUS_OK,
                         role >= 8 && role <= 14);
    }
    struct chan_grant g = grant_for(&w.client, ROLE_ORIGIN, "n");
    g.not_after_s = g.not_before_s - 1;
    assert_int_equal(chan_grant_sign(&out, &g, w.operator_secret, &err), STATUS_INVALID_ARGUMENT);
}

static int start(void **state)
{
    (void)state;
    struct err err = ERR_INIT;

    return crypto_init(&err) == STATUS_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chan_client_link_carries_records_both_ways),
        cmocka_unit_test(test_chan_service_link_tells_who_is_there),
        cmocka_unit_test(test_chan_service_responder_says_nothing_before_first_record),
        cmocka_unit_test(test_chan_handshake_sizes_are_fixed),
        cmocka_unit_test(test_chan_largest_record_passes_and_larger_is_refused),
        cmocka_unit_test(test_chan_rekeys_at_the_boundary),
        cmocka_unit_test(test_chan_counter_stops_before_its_end),
        cmocka_unit_test(test_chan_close_ends_the_session),
        cmocka_unit_test(test_chan_changed_init_is_refused),
        cmocka_unit_test(test_chan_changed_response_is_refused),
        cmocka_unit_test(test_chan_replayed_init_gives_an_unconfirmed_session_only),
        cmocka_unit_test(test_chan_second_init_on_a_connection_is_refused),
        cmocka_unit_test(test_chan_changed_record_is_refused),
        cmocka_unit_test(test_chan_replayed_reordered_and_reflected_records_are_refused),
        cmocka_unit_test(test_chan_strays_of_another_session_are_dropped),
        cmocka_unit_test(test_chan_bad_grant_of_the_initiator_is_refused),
        cmocka_unit_test(test_chan_bad_grant_of_the_responder_is_refused),
        cmocka_unit_test(test_chan_wrong_responder_key_is_refused),
        cmocka_unit_test(test_chan_link_that_is_not_accepted_is_refused),
        cmocka_unit_test(test_chan_garbage_is_refused_and_never_answered),
        cmocka_unit_test(test_chan_without_what_a_link_needs_is_not_made),
        cmocka_unit_test(test_chan_survives_every_failed_allocation),
        cmocka_unit_test(test_grant_round_trip),
        cmocka_unit_test(test_grant_changed_or_cut_is_refused),
        cmocka_unit_test(test_grant_with_bad_contents_is_not_signed),
    };

    return cmocka_run_group_tests(tests, start, NULL);
}
