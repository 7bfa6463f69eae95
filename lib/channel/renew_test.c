// New handshakes inside a session, keys that are rotated, and why connections are refused.
#include "channel/test_util.h"

struct link {
    struct world w;
    struct chan_local *ours, *theirs; // the initiator's, the responder's
    struct pair p;
};

static void pair_over(struct link *l)
{
    struct pair *p = &l->p;
    struct err err = ERR_INIT;

    p->client = chan_dial(l->ours, CHAN_LINK_SERVICE, l->w.server.public_key, NULL, &err);
    p->server = chan_accept(l->theirs, BOTH_LINKS, &err);
    assert_non_null(p->client);
    assert_non_null(p->server);
    buf_init(&p->init, CHAN_MAX_RECORD);
    buf_init(&p->response, CHAN_MAX_RECORD);
    buf_init(&p->scratch, CHAN_MAX_RECORD);
    assert_int_equal(chan_start(p->client, &p->init, &err), STATUS_OK);
    assert_int_equal(feed(p->server, p->init.data, p->init.len, &p->response).event, CHAN_REPLY);
    assert_int_equal(feed(p->client, p->response.data, p->response.len, &p->scratch).event,
                     CHAN_READY);
    send_text(p, p->client, p->server, "first");
}

static void link_up(struct link *l)
{
    memset(l, 0, sizeof(*l));
    make_world(&l->w);
    l->ours = chan_local_new(&l->w.client, &l->w.trust);
    l->theirs = chan_local_new(&l->w.server, &l->w.trust);
    assert_non_null(l->ours);
    assert_non_null(l->theirs);
    pair_over(l);
}

static void link_down(struct link *l)
{
    pair_done(&l->p);
    chan_local_unref(l->ours);
    chan_local_unref(l->theirs);
}

static void renew(struct link *l)
{
    struct pair *p = &l->p;
    struct err err = ERR_INIT;

    buf_reset(&p->init);
    assert_int_equal(chan_renew(p->client, l->w.server.public_key, &p->init, &err), STATUS_OK);
    assert_true(chan_is_renewing(p->client));
    assert_int_equal(feed(p->server, p->init.data, p->init.len, &p->response).status, STATUS_OK);
    assert_int_equal(feed(p->client, p->response.data, p->response.len, &p->init).status,
                     STATUS_OK);
    assert_false(chan_is_renewing(p->client));
    assert_int_equal(feed(p->server, p->init.data, p->init.len, &p->scratch).status, STATUS_OK);
    assert_int_equal(p->scratch.len, 0);
}

static void assert_keys_agree(const struct pair *p)
{
    assert_memory_equal(p->client->send.key, p->server->receive.key, 32);
    assert_memory_equal(p->client->receive.key, p->server->send.key, 32);
    assert_memory_equal(p->client->hash, p->server->hash, 64);
}

static void regrant(struct link *l, struct chan_identity *id, unsigned role, const char *name,
                    uint64_t serial)
{
    struct chan_grant g = grant_for(id, role, name);

    g.serial = serial;
    set_grant(id, &g, l->w.operator_secret);
}

// ---------------------------------------------------------------- what must work

static void test_renew_gives_fresh_keys_and_records_go_on(void **state)
{
    (void)state;
    struct link l;
    uint8_t old[2][32], hash[64];

    link_up(&l);
    const struct chan_peer *peer = chan_peer(l.p.server);
    memcpy(old[0], l.p.client->send.key, 32);
    memcpy(old[1], l.p.client->receive.key, 32);
    memcpy(hash, l.p.client->hash, 64);
    for (unsigned i = 1; i <= 3; i++) {
        uint64_t counter = l.p.client->send.counter;
        renew(&l);
        assert_keys_agree(&l.p);
        assert_memory_not_equal(old[0], l.p.client->send.key, 32);
        assert_memory_not_equal(old[1], l.p.client->receive.key, 32);
        assert_memory_not_equal(hash, l.p.client->hash, 64);
        assert_int_equal(l.p.client->send.counter, counter + 2); // init and switch are records
        send_text(&l.p, l.p.client, l.p.server, "there");
        send_text(&l.p, l.p.server, l.p.client, "and back");
        assert_int_equal(chan_n_renewed(l.p.client), i);
        assert_int_equal(chan_n_renewed(l.p.server), i);
    }
    assert_ptr_equal(peer, chan_peer(l.p.server)); // nothing was learnt: nothing grew
    link_down(&l);
}

static bool is_named_second(void *ud, const struct chan_grant *g)
{
    (void)ud;
    return g->serial == 2;
}

static void test_local_that_is_told_nothing_new_has_not_changed(void **state)
{
    (void)state;
    struct link l;
    struct chan_identity other;

    link_up(&l);
    other = l.w.server;
    crypto_dh_keypair(other.public_key, other.secret);
    unsigned generation = chan_local_generation(l.ours);
    chan_local_set_identity(l.ours, &l.w.client, NULL);
    assert_int_equal(chan_local_generation(l.ours), generation);
    chan_local_set_identity(l.ours, &l.w.client, &other);
    assert_int_equal(chan_local_generation(l.ours), generation + 1);
    chan_local_set_identity(l.ours, &l.w.client, &other);
    assert_int_equal(chan_local_generation(l.ours), generation + 1);
    regrant(&l, &l.w.client, ROLE_ORCHESTRATOR, "orchestrator-1", 99);
    chan_local_set_identity(l.ours, &l.w.client, &other);
    assert_int_equal(chan_local_generation(l.ours), generation + 2);
    link_down(&l);
}

static void test_local_judges_grants_of_open_sessions(void **state)
{
    (void)state;
    struct link l;
    struct chan_grant g;

    link_up(&l);
    assert_true(chan_is_with(l.p.client, l.w.server.public_key));
    assert_false(chan_is_with(l.p.client, l.w.client.public_key));
    l.w.trust.is_revoked = is_named_second;
    struct chan_local *judge = chan_local_new(&l.w.client, &l.w.trust);
    assert_non_null(judge);
    g = grant_for(&l.w.server, ROLE_ORIGIN, "video-1");
    assert_true(chan_local_trusts(judge, &g));
    g.serial = 2;
    assert_false(chan_local_trusts(judge, &g));
    g = grant_for(&l.w.server, ROLE_ORIGIN, "video-1");
    g.not_after_s = now_s() - 1;
    assert_false(chan_local_trusts(judge, &g));
    chan_local_unref(judge);
    link_down(&l);
}

// Records of both sides between all the messages of the handshake.
static void test_renew_lets_records_pass_meanwhile(void **state)
{
    (void)state;
    struct link l;
    struct pair *p = &l.p;
    struct err err = ERR_INIT;
    uint8_t early[64], late[64];

    link_up(&l);
    buf_reset(&p->init);
    send_text(p, p->server, p->client, "hello");
    assert_int_equal(chan_renew(p->client, l.w.server.public_key, &p->init, &err), STATUS_OK);
    size_t n_early = seal_text(p->client, "after the init");
    memcpy(early, record, n_early);
    send_text(p, p->server, p->client, "before the init came");
    assert_int_equal(feed(p->server, p->init.data, p->init.len, &p->response).status, STATUS_OK);
    assert_int_equal(feed(p->server, early, n_early, &p->scratch).event, CHAN_DATA);
    size_t n_late = seal_text(p->server, "after the response");
    memcpy(late, record, n_late);
    send_text(p, p->client, p->server, "before the response came");
    assert_int_equal(feed(p->client, p->response.data, p->response.len, &p->init).status,
                     STATUS_OK);
    assert_int_equal(feed(p->client, late, n_late, &p->scratch).event, CHAN_DATA);
    n_early = seal_text(p->client, "after the switch");
    memcpy(early, record, n_early);
    send_text(p, p->server, p->client, "before the switch came");
    assert_int_equal(feed(p->server, p->init.data, p->init.len, &p->scratch).status, STATUS_OK);
    assert_int_equal(feed(p->server, early, n_early, &p->scratch).event, CHAN_DATA);
    assert_keys_agree(p);
    link_down(&l);
}

static void test_renew_shows_the_new_grant_to_both(void **state)
{
    (void)state;
    struct link l;

    link_up(&l);
    const struct chan_peer *before = chan_peer(l.p.server);
    regrant(&l, &l.w.client, ROLE_ORCHESTRATOR, "orchestrator-1", 6);
    regrant(&l, &l.w.server, ROLE_ORIGIN, "video-1", 7);
    chan_local_set_identity(l.ours, &l.w.client, NULL);
    chan_local_set_identity(l.theirs, &l.w.server, NULL);
    assert_int_equal(chan_generation(l.p.client), 0);
    assert_int_equal(chan_local_generation(l.ours), 1);
    renew(&l);
    assert_int_equal(chan_generation(l.p.client), 1);
    assert_int_equal(chan_peer(l.p.server)->grant.serial, 6);
    assert_int_equal(chan_peer(l.p.client)->grant.serial, 7);
    assert_int_equal(before->grant.serial, 5); // whoever still looks at it may
    assert_memory_equal(before->handshake_hash, chan_peer(l.p.server)->handshake_hash, 64);
    link_down(&l);
}

// Both sides change their keys; the responder has two for a while, and mac1 says which is meant.
static void test_renew_with_rotated_keys(void **state)
{
    (void)state;
    struct link l;
    struct chan_identity old_server;

    link_up(&l);
    old_server = l.w.server;
    crypto_dh_keypair(l.w.client.public_key, l.w.client.secret);
    regrant(&l, &l.w.client, ROLE_ORCHESTRATOR, "orchestrator-1", 6);
    crypto_dh_keypair(l.w.server.public_key, l.w.server.secret);
    regrant(&l, &l.w.server, ROLE_ORIGIN, "video-1", 6);
    chan_local_set_identity(l.ours, &l.w.client, NULL);
    chan_local_set_identity(l.theirs, &l.w.server, &old_server);

    struct chan_identity new_server = l.w.server;
    l.w.server = old_server; // who has not heard yet
    renew(&l);
    assert_memory_equal(chan_peer(l.p.client)->key, old_server.public_key, 32);
    assert_memory_equal(chan_peer(l.p.server)->key, l.w.client.public_key, 32);
    l.w.server = new_server;
    renew(&l);
    assert_memory_equal(chan_peer(l.p.client)->key, new_server.public_key, 32);
    assert_int_equal(chan_peer(l.p.client)->grant.serial, 6);

    pair_done(&l.p); // new connections, to either key
    pair_over(&l);
    pair_done(&l.p);
    l.w.server = old_server;
    pair_over(&l);
    link_down(&l);
}

static void test_renew_on_the_rekey_boundary(void **state)
{
    (void)state;
    struct link l;

    for (uint64_t before = 0; before < 4; before++) {
        link_up(&l);
        l.p.client->send.counter = l.p.server->receive.counter = CHAN_REKEY_RECORDS - before;
        l.p.server->send.counter = l.p.client->receive.counter = CHAN_REKEY_RECORDS - before;
        renew(&l);
        for (unsigned i = 0; i < 4; i++) {
            send_text(&l.p, l.p.client, l.p.server, "x");
            send_text(&l.p, l.p.server, l.p.client, "y");
        }
        assert_keys_agree(&l.p);
        link_down(&l);
    }
}

static void test_renew_of_who_is_leaving_does_no_harm(void **state)
{
    (void)state;
    struct link l;
    struct pair *p = &l.p;
    struct err err = ERR_INIT;
    uint8_t close[CHAN_RECORD_OVERHEAD];

    link_up(&l); // the initiator leaves while its new handshake is under way
    buf_reset(&p->init);
    assert_int_equal(chan_renew(p->client, l.w.server.public_key, &p->init, &err), STATUS_OK);
    size_t n = chan_seal_close(p->client, close);
    assert_int_equal(feed(p->server, p->init.data, p->init.len, &p->response).status, STATUS_OK);
    size_t n_text = seal_text(p->server, "under the new key");
    assert_int_equal(feed(p->client, p->response.data, p->response.len, &p->scratch).status,
                     STATUS_OK);
    assert_int_equal(p->scratch.len, 0);
    assert_int_equal(feed(p->client, record, n_text, &p->scratch).event, CHAN_DATA);
    assert_int_equal(feed(p->server, close, n, &p->scratch).event, CHAN_CLOSED);
    link_down(&l);

    link_up(&l); // the responder left before the init came
    buf_reset(&p->init);
    (void)chan_seal_close(p->server, close);
    assert_int_equal(chan_renew(p->client, l.w.server.public_key, &p->init, &err), STATUS_OK);
    assert_int_equal(feed(p->server, p->init.data, p->init.len, &p->scratch).status, STATUS_OK);
    assert_int_equal(p->scratch.len, 0);
    link_down(&l);
}

// ---------------------------------------------------------------- what must be refused

static void test_renew_out_of_turn_is_not_started(void **state)
{
    (void)state;
    struct link l;
    struct pair client_link;
    struct err err = ERR_INIT;
    const uint8_t *key = l.w.server.public_key;

    link_up(&l);
    assert_int_equal(chan_renew(l.p.server, key, &l.p.init, &err), STATUS_FAILED_PRECONDITION);
    buf_reset(&l.p.init);
    assert_int_equal(chan_renew(l.p.client, key, &l.p.init, &err), STATUS_OK);
    assert_int_equal(chan_renew(l.p.client, key, &l.p.scratch, &err), STATUS_FAILED_PRECONDITION);
    pair_connect(&client_link, &l.w, CHAN_LINK_CLIENT);
    assert_int_equal(chan_renew(client_link.client, key, &l.p.scratch, &err),
                     STATUS_FAILED_PRECONDITION);
    pair_done(&client_link);
    link_down(&l);
}

static void test_renew_may_not_change_who_it_is(void **state)
{
    (void)state;
    static const struct {
        unsigned role;
        const char *name;
    } others[] = {{ROLE_ORCHESTRATOR, "orchestrator-2"}, {ROLE_ORIGIN, "orchestrator-1"}};

    for (size_t i = 0; i < N_ELEMENTS(others); i++) {
        struct link l;
        struct err err = ERR_INIT;
        link_up(&l);
        regrant(&l, &l.w.client, others[i].role, others[i].name, 9);
        chan_local_set_identity(l.ours, &l.w.client, NULL);
        buf_reset(&l.p.init);
        assert_int_equal(chan_renew(l.p.client, l.w.server.public_key, &l.p.init, &err), STATUS_OK);
        assert_int_equal(feed(l.p.server, l.p.init.data, l.p.init.len, &l.p.scratch).status,
                         STATUS_UNAVAILABLE);
        assert_int_equal(chan_refusal(l.p.server), CHAN_BAD_GRANT);
        assert_string_equal(chan_peer(l.p.server)->grant.node_id, "orchestrator-1");
        link_down(&l);
    }
}

// The handshake inside is judged like the one outside: seal what an initiator would never send.
static size_t seal_renewal(struct chan *from, enum chan_type type, const void *p, size_t n,
                           uint8_t *out)
{
    size_t len;

    memcpy(record + CHAN_RECORD_OVERHEAD - 16, p, n);
    len = chan_seal(from, record, n, NULL);
    // The type is under the tag, so seal again with the right one.
    from->send.counter--;
    assert_true(len > 0);
    chan_put_header(record, from, type);
    memcpy(record + CHAN_RECORD_OVERHEAD - 16, p, n);
    for (unsigned i = 0; i < 8; i++)
        record[CHAN_HEADER_SIZE + i] = (uint8_t)(from->send.counter >> (56 - 8 * i));
    crypto_seal(CRYPTO_CHACHAPOLY, record + 20, from->send.key, from->send.counter, record, 20,
                record + 20, n);
    from->send.counter++;
    memcpy(out, record, len);
    return len;
}

static void assert_inner_refused(struct chan *from, struct chan *to, enum chan_type type,
                                 const void *p, size_t n, struct buf *scratch)
{
    uint8_t sealed[CHAN_MAX_HANDSHAKE + CHAN_RECORD_OVERHEAD + 1];
    struct chan saved = *to, saved_from = *from;
    struct chan_handshake *hs = NULL;

    if (to->hs)
        assert_non_null(hs = mem_dup(to->hs, sizeof(*hs)));
    size_t len = seal_renewal(from, type, p, n, sealed);
    assert_int_equal(feed(to, sealed, len, scratch).status, STATUS_UNAVAILABLE);
    assert_int_equal(to->state, CHAN_ST_DEAD);
    assert_int_equal(scratch->len, 0);
    *to = saved;
    to->hs = hs;
    from->send = saved_from.send;
}

static void assert_inner_changes_refused(struct link *l, struct chan *from, struct chan *to,
                                         enum chan_type type, const uint8_t *p, size_t n)
{
    uint8_t bad[CHAN_MAX_HANDSHAKE];

    for (size_t cut = 0; cut < n; cut++) {
        memcpy(bad, p, n);
        assert_inner_refused(from, to, type, bad, cut, &l->p.scratch);
    }
    for (size_t bit = 0; bit < 8 * n; bit++) {
        memcpy(bad, p, n);
        bad[bit / 8] ^= (uint8_t)(1U << bit % 8);
        assert_inner_refused(from, to, type, bad, n, &l->p.scratch);
        fix_mac1(&l->w, bad, n);
        if (memcmp(bad, p, n) != 0)
            assert_inner_refused(from, to, type, bad, n, &l->p.scratch);
    }
}

// The plaintext of a sealed message, opened with a copy of its receiver's state.
static size_t peek(const struct chan *to, const struct buf *sealed, uint8_t *out)
{
    assert_true(crypto_open(CRYPTO_CHACHAPOLY, out, to->receive.key, to->receive.counter,
                            sealed->data, 20, sealed->data + 20, sealed->len - 20));
    return sealed->len - CHAN_RECORD_OVERHEAD;
}

static void test_renew_changed_messages_are_refused(void **state)
{
    (void)state;
    struct link l;
    struct pair *p = &l.p;
    struct err err = ERR_INIT;
    uint8_t inner[CHAN_MAX_HANDSHAKE];

    link_up(&l);
    buf_reset(&p->init);
    assert_int_equal(chan_renew(p->client, l.w.server.public_key, &p->init, &err), STATUS_OK);
    size_t n = peek(p->server, &p->init, inner);
    p->client->send.counter--; // as if it had not been sealed yet
    assert_inner_changes_refused(&l, p->client, p->server, CHAN_RENEW_INIT, inner, n);
    p->client->send.counter++;

    struct chan_cipher old_send = p->server->send;
    assert_int_equal(feed(p->server, p->init.data, p->init.len, &p->response).status, STATUS_OK);
    n = peek(p->client, &p->response, inner);
    struct chan_cipher new_send = p->server->send;
    p->server->send = old_send;
    assert_inner_changes_refused(&l, p->server, p->client, CHAN_RENEW_RESPONSE, inner, n);
    p->server->send = new_send;
    assert_int_equal(feed(p->client, p->response.data, p->response.len, &p->init).status,
                     STATUS_OK);
    assert_int_equal(feed(p->server, p->init.data, p->init.len, &p->scratch).status, STATUS_OK);
    assert_keys_agree(p); // the true ones still worked
    send_text(p, p->client, p->server, "on");
    link_down(&l);
}

static void test_renew_messages_out_of_turn_are_refused(void **state)
{
    (void)state;
    static const struct {
        bool to_server;
        enum chan_type type;
    } rows[] = {
        {true, CHAN_RENEW_RESPONSE},  {true, CHAN_RENEW_SWITCH},  {false, CHAN_RENEW_INIT},
        {false, CHAN_RENEW_RESPONSE}, {false, CHAN_RENEW_SWITCH},
    };

    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct link l;
        uint8_t sealed[128];
        link_up(&l);
        struct chan *from = rows[i].to_server ? l.p.client : l.p.server;
        struct chan *to = rows[i].to_server ? l.p.server : l.p.client;
        size_t n = seal_renewal(from, rows[i].type, "", 0, sealed);
        assert_int_equal(feed(to, sealed, n, &l.p.scratch).status, STATUS_UNAVAILABLE);
        assert_int_equal(chan_refusal(to), CHAN_MALFORMED);
        link_down(&l);
    }
}

// Inside a second handshake the first one of another session does not open: it is bound to its own.
static void test_renew_of_another_session_is_refused(void **state)
{
    (void)state;
    struct link l;
    struct err err = ERR_INIT;
    uint8_t inner[CHAN_MAX_HANDSHAKE], sealed[CHAN_MAX_HANDSHAKE + 64];

    link_up(&l);
    struct pair first = l.p;
    buf_reset(&first.init);
    pair_over(&l);
    memcpy(l.p.client->session, first.client->session, CHAN_SESSION_SIZE);
    memcpy(l.p.server->session, first.client->session, CHAN_SESSION_SIZE);
    assert_int_equal(chan_renew(first.client, l.w.server.public_key, &first.init, &err), STATUS_OK);
    size_t n = peek(first.server, &first.init, inner);
    n = seal_renewal(l.p.client, CHAN_RENEW_INIT, inner, n, sealed);
    assert_int_equal(feed(l.p.server, sealed, n, &l.p.scratch).status, STATUS_UNAVAILABLE);
    assert_int_equal(chan_refusal(l.p.server), CHAN_BAD_KEY);
    pair_done(&first);
    link_down(&l);
}

static void test_renew_survives_every_failed_allocation(void **state)
{
    (void)state;
    bool done = false;

    for (int64_t n = 0; !done; n++) {
        struct link l;
        struct pair *p = &l.p;
        struct err err = ERR_INIT;
        enum chan_event event;
        uint8_t *data;
        size_t len;
        link_up(&l);
        regrant(&l, &l.w.client, ROLE_ORCHESTRATOR, "orchestrator-1", 6);
        chan_local_set_identity(l.ours, &l.w.client, NULL);
        buf_reset(&p->init);
        buf_reset(&p->response);
        mem_fail_at(n);
        bool started = chan_renew(p->client, l.w.server.public_key, &p->init, &err) == STATUS_OK;
        done = started && chan_receive(p->server, p->init.data, p->init.len, &p->response, &event,
                                       &data, &len, &err) == STATUS_OK;
        buf_reset(&p->init);
        done = done &&
               chan_receive(p->client, p->response.data, p->response.len, &p->init, &event, &data,
                            &len, &err) == STATUS_OK &&
               chan_receive(p->server, p->init.data, p->init.len, &p->response, &event, &data, &len,
                            &err) == STATUS_OK;
        mem_fail_at(-1);
        if (!started) // nothing was said: the session goes on
            send_text(p, p->client, p->server, "still here");
        if (done)
            assert_int_equal(chan_peer(p->server)->grant.serial, 6);
        assert_true(n < 100);
        link_down(&l);
    }
}

// ---------------------------------------------------------------- reasons

static bool is_origin(void *ud, const struct chan_grant *g)
{
    (void)ud;
    return g->role == ROLE_ORIGIN;
}

static enum chan_refusal initiator_says(struct link *l, const struct chan_trust *trust)
{
    AUTO(chan_local_unref_p) struct chan_local *ours = chan_local_new(&l->w.client, trust);
    AUTO(buf_done) struct buf init = {0};
    AUTO(buf_done) struct buf response = {0};
    struct err err = ERR_INIT;

    buf_init(&init, CHAN_MAX_HANDSHAKE);
    buf_init(&response, CHAN_MAX_HANDSHAKE);
    AUTO(chan_free_p)
    struct chan *c = chan_dial(ours, CHAN_LINK_SERVICE, l->w.server.public_key, NULL, &err);
    AUTO(chan_free_p) struct chan *s = chan_accept(l->theirs, BOTH_LINKS, &err);
    assert_int_equal(chan_start(c, &init, &err), STATUS_OK);
    assert_int_equal(feed(s, init.data, init.len, &response).event, CHAN_REPLY);
    (void)feed(c, response.data, response.len, &init);
    return chan_refusal(c);
}

static void test_refusals_of_a_peer_tell_why(void **state)
{
    (void)state;
    struct link l;

    link_up(&l);
    struct chan_trust t = l.w.trust;
    assert_int_equal(initiator_says(&l, &t), CHAN_FINE);
    t.roles = 1U << ROLE_ORIGIN | 1U << ROLE_ORCHESTRATOR;
    assert_int_equal(initiator_says(&l, &t), CHAN_FINE);
    t.roles = 1U << ROLE_ORCHESTRATOR;
    assert_int_equal(initiator_says(&l, &t), CHAN_WRONG_ROLE);
    t = l.w.trust;
    t.serial_floor = 6;
    assert_int_equal(initiator_says(&l, &t), CHAN_REVOKED);
    t = l.w.trust;
    t.is_revoked = is_origin;
    assert_int_equal(initiator_says(&l, &t), CHAN_REVOKED);
    t = l.w.trust;
    t.operator_public[0] ^= 1;
    assert_int_equal(initiator_says(&l, &t), CHAN_BAD_GRANT);
    link_down(&l);
}

static void test_refusals_of_records_tell_why(void **state)
{
    (void)state;
    static const struct {
        int at; // which byte is changed; -1: none
        unsigned n_skipped;
        bool again;
        enum chan_refusal why;
    } rows[] = {
        {40, 0, false, CHAN_BAD_TAG},  {-1, 1, false, CHAN_GAP},  {-1, 0, true, CHAN_REPLAY},
        {0, 0, false, CHAN_MALFORMED}, {-1, 0, false, CHAN_FINE},
    };

    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct link l;
        uint8_t copy[64];
        link_up(&l);
        size_t n = seal_text(l.p.client, "twenty or more bytes");
        for (unsigned k = 0; k < rows[i].n_skipped; k++)
            n = seal_text(l.p.client, "twenty or more bytes");
        memcpy(copy, record, n);
        if (rows[i].at >= 0)
            record[rows[i].at] ^= 1;
        (void)feed(l.p.server, record, n, &l.p.scratch);
        if (rows[i].again)
            (void)feed(l.p.server, copy, n, &l.p.scratch);
        assert_int_equal(chan_refusal(l.p.server), rows[i].why);
        link_down(&l);
    }
    for (unsigned r = 0; r < CHAN_N_REFUSALS; r++)
        assert_true(strlen(chan_refusal_name((enum chan_refusal)r)) >= 3);
}

// A signature that was found good is not checked again; everything else about the grant is.
static void test_grants_seen_before_are_judged_again(void **state)
{
    (void)state;
    struct link l;
    struct chan_trust t;

    link_up(&l);
    t = l.w.trust;
    t.is_revoked = is_origin;
    regrant(&l, &l.w.client, ROLE_ORIGIN, "orchestrator-1", 6);
    AUTO(chan_local_unref_p) struct chan_local *local = chan_local_new(&l.w.server, &t);
    for (unsigned i = 0; i < 2; i++) {
        struct chan_grant g;
        struct err err = ERR_INIT;
        assert_int_equal(
            chan_local_judge(local, l.w.client.grant, l.w.client.grant_len, true, &g, &err),
            CHAN_REVOKED);
        assert_int_equal(g.serial, 6);
        uint8_t forged[CHAN_GRANT_SIZE];
        memcpy(forged, l.w.client.grant, sizeof(forged));
        forged[120] ^= 1;
        assert_int_equal(chan_local_judge(local, forged, sizeof(forged), true, &g, &err),
                         CHAN_BAD_GRANT);
    }
    link_down(&l);
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
        cmocka_unit_test(test_renew_gives_fresh_keys_and_records_go_on),
        cmocka_unit_test(test_local_that_is_told_nothing_new_has_not_changed),
        cmocka_unit_test(test_local_judges_grants_of_open_sessions),
        cmocka_unit_test(test_renew_lets_records_pass_meanwhile),
        cmocka_unit_test(test_renew_shows_the_new_grant_to_both),
        cmocka_unit_test(test_renew_with_rotated_keys),
        cmocka_unit_test(test_renew_on_the_rekey_boundary),
        cmocka_unit_test(test_renew_of_who_is_leaving_does_no_harm),
        cmocka_unit_test(test_renew_out_of_turn_is_not_started),
        cmocka_unit_test(test_renew_may_not_change_who_it_is),
        cmocka_unit_test(test_renew_changed_messages_are_refused),
        cmocka_unit_test(test_renew_messages_out_of_turn_are_refused),
        cmocka_unit_test(test_renew_of_another_session_is_refused),
        cmocka_unit_test(test_renew_survives_every_failed_allocation),
        cmocka_unit_test(test_refusals_of_a_peer_tell_why),
        cmocka_unit_test(test_refusals_of_records_tell_why),
        cmocka_unit_test(test_grants_seen_before_are_judged_again),
    };

    return cmocka_run_group_tests(tests, start, NULL);
}
