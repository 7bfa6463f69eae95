// Enrolment (XXpsk3): a newcomer and a responder that have a secret in common, and all who have
// not.
#include "channel/test_util.h"

struct door { // the responder's secrets
    struct chan_join join;
    bool is_open;
    unsigned n_asked;
};

static bool find_join(void *ud, const uint8_t id[CHAN_JOIN_ID_SIZE], uint8_t ret_secret[32])
{
    struct door *d = ud;

    d->n_asked++;
    if (!d->is_open || memcmp(id, d->join.id, CHAN_JOIN_ID_SIZE) != 0)
        return false;
    memcpy(ret_secret, d->join.secret, 32);
    return true;
}

struct meeting {
    struct chan_identity newcomer, host;
    struct chan_local *ours, *theirs;
    struct door door;
    struct chan *client, *server;
    struct buf init, response, finish, scratch;
};

static void fill(uint8_t *p, size_t n, uint8_t with)
{
    memset(p, with, n);
}

static void meet(struct meeting *m, const struct chan_join *known)
{
    struct err err = ERR_INIT;

    memset(m, 0, sizeof(*m));
    crypto_dh_keypair(m->newcomer.public_key, m->newcomer.secret);
    crypto_dh_keypair(m->host.public_key, m->host.secret);
    m->ours = chan_local_new(&m->newcomer, NULL);
    m->theirs = chan_local_new(&m->host, NULL);
    assert_non_null(m->ours);
    assert_non_null(m->theirs);
    fill(m->door.join.id, sizeof(m->door.join.id), 7);
    fill(m->door.join.secret, sizeof(m->door.join.secret), 8);
    m->door.is_open = true;
    chan_local_set_join(m->theirs, find_join, &m->door);
    buf_init(&m->init, CHAN_MAX_HANDSHAKE);
    buf_init(&m->response, CHAN_MAX_HANDSHAKE);
    buf_init(&m->finish, CHAN_MAX_HANDSHAKE);
    buf_init(&m->scratch, CHAN_MAX_RECORD);
    m->client = chan_dial(m->ours, CHAN_LINK_ENROL, m->host.public_key,
                          known ? known : &m->door.join, &err);
    m->server = chan_accept(m->theirs, 1U << CHAN_LINK_ENROL, &err);
    assert_non_null(m->client);
    assert_non_null(m->server);
    assert_int_equal(chan_start(m->client, &m->init, &err), STATUS_OK);
}

static void part(struct meeting *m)
{
    chan_free(m->client);
    chan_free(m->server);
    chan_local_unref(m->ours);
    chan_local_unref(m->theirs);
    buf_done(&m->init);
    buf_done(&m->response);
    buf_done(&m->finish);
    buf_done(&m->scratch);
}

// Up to and with the third message, which lies in m->finish.
static void exchange(struct meeting *m)
{
    struct result r = feed(m->server, m->init.data, m->init.len, &m->response);
    assert_int_equal(r.event, CHAN_REPLY);
    assert_false(chan_is_ready(m->server));
    r = feed(m->client, m->response.data, m->response.len, &m->finish);
    assert_int_equal(r.event, CHAN_READY);
    assert_true(m->finish.len > 0);
}

static void test_enrol_both_know_the_secret(void **state)
{
    (void)state;
    struct meeting m;

    meet(&m, NULL);
    exchange(&m);
    struct result r = feed(m.server, m.finish.data, m.finish.len, &m.scratch);
    assert_int_equal(r.event, CHAN_READY);
    assert_int_equal(m.scratch.len, 0);
    const struct chan_peer *peer = chan_peer(m.server);
    assert_int_equal(peer->link, CHAN_LINK_ENROL);
    assert_false(peer->has_grant);
    assert_memory_equal(peer->key, m.newcomer.public_key, 32);
    assert_memory_equal(peer->join_id, m.door.join.id, sizeof(peer->join_id));
    assert_memory_equal(peer->handshake_hash, chan_peer(m.client)->handshake_hash, 64);
    assert_memory_equal(chan_peer(m.client)->key, m.host.public_key, 32);

    size_t n = seal_text(m.client, "let me in");
    r = feed(m.server, record, n, &m.scratch);
    assert_int_equal(r.event, CHAN_DATA);
    n = seal_text(m.server, "here is your grant");
    r = feed(m.client, record, n, &m.scratch);
    assert_int_equal(r.event, CHAN_DATA);
    part(&m);
}

static void test_enrol_sizes_are_fixed(void **state)
{
    (void)state;
    struct meeting m;

    meet(&m, NULL);
    exchange(&m);
    assert_int_equal(m.init.len, 12 + 3 + 32 + 64 + 16 + 16);
    assert_int_equal(m.response.len, 12 + 3 + 32 + 48 + 64 + 16 + 16);
    assert_int_equal(m.finish.len, 12 + 3 + 48 + 64 + 16 + 16);
    part(&m);
}

static void test_enrol_wrong_secret_is_refused_at_the_third_message(void **state)
{
    (void)state;
    struct meeting m;
    struct chan_join wrong;

    fill(wrong.id, sizeof(wrong.id), 7);
    fill(wrong.secret, sizeof(wrong.secret), 9);
    meet(&m, &wrong);
    exchange(&m);
    struct result r = feed(m.server, m.finish.data, m.finish.len, &m.scratch);
    assert_int_equal(r.status, STATUS_UNAVAILABLE);
    assert_int_equal(chan_refusal(m.server), CHAN_BAD_SECRET);
    part(&m);
}

static void test_enrol_unknown_or_closed_secret_is_refused_at_once(void **state)
{
    (void)state;
    struct meeting m;
    struct chan_join unknown;

    fill(unknown.id, sizeof(unknown.id), 6);
    fill(unknown.secret, sizeof(unknown.secret), 8);
    meet(&m, &unknown);
    assert_int_equal(feed(m.server, m.init.data, m.init.len, &m.scratch).status,
                     STATUS_UNAVAILABLE);
    assert_int_equal(chan_refusal(m.server), CHAN_BAD_SECRET);
    part(&m);
    meet(&m, NULL);
    m.door.is_open = false;
    assert_int_equal(feed(m.server, m.init.data, m.init.len, &m.scratch).status,
                     STATUS_UNAVAILABLE);
    assert_int_equal(chan_refusal(m.server), CHAN_BAD_SECRET);
    part(&m);
}

// Somebody in between who knows the responder's public key, not the secret, and no private key.
static void test_enrol_with_another_host_is_refused_by_the_newcomer(void **state)
{
    (void)state;
    struct meeting m;
    struct chan_identity other = {.grant_len = 0};

    meet(&m, NULL);
    crypto_dh_keypair(other.public_key, other.secret);
    chan_local_set_identity(m.theirs, &other, NULL);
    assert_int_equal(feed(m.server, m.init.data, m.init.len, &m.scratch).status,
                     STATUS_UNAVAILABLE);
    assert_int_equal(chan_refusal(m.server), CHAN_BAD_MAC1);
    assert_int_equal(m.door.n_asked, 0);
    memcpy(other.public_key, m.host.public_key, 32); // claims the key, has another secret
    chan_local_set_identity(m.theirs, &other, NULL);
    struct err err = ERR_INIT;
    chan_free(m.server);
    m.server = chan_accept(m.theirs, 1U << CHAN_LINK_ENROL, &err);
    struct result r = feed(m.server, m.init.data, m.init.len, &m.response);
    assert_int_equal(r.event, CHAN_REPLY);
    r = feed(m.client, m.response.data, m.response.len, &m.scratch);
    assert_int_equal(r.status, STATUS_UNAVAILABLE);
    assert_int_equal(chan_refusal(m.client), CHAN_BAD_KEY);
    part(&m);
}

// ---------------------------------------------------------------- changed messages

// A copy of one side, fed with something bad, and put back as it was.
static void assert_refused(struct chan *c, uint8_t *frame, size_t n, struct buf *scratch)
{
    struct chan saved = *c;
    struct chan_handshake *hs = NULL;

    if (c->hs)
        assert_non_null(hs = mem_dup(c->hs, sizeof(*hs)));
    struct result r = feed(c, frame, n, scratch);
    assert_true(r.status != STATUS_OK || r.event == CHAN_NOTHING);
    assert_true(r.status == STATUS_OK || chan_refusal(c) != CHAN_FINE);
    assert_int_equal(scratch->len, 0);
    assert_false(chan_is_ready(c));
    assert_int_equal(seal_text(c, "x"), 0);
    chan_handshake_free(c->hs);
    *c = saved;
    c->hs = hs;
}

static void assert_changes_refused(struct meeting *m, struct chan *c, const struct buf *message,
                                   bool session_matters)
{
    uint8_t bad[CHAN_MAX_HANDSHAKE + 1], key[32];
    size_t n = message->len;

    chan_mac1_key(key, m->host.public_key);
    for (size_t cut = 0; cut < n; cut++) {
        memcpy(bad, message->data, n);
        assert_refused(c, bad, cut, &m->scratch);
        if (cut <= CHAN_HANDSHAKE_OVERHEAD)
            continue;
        size_t noise = cut - CHAN_HANDSHAKE_OVERHEAD; // whole again, as far as a stranger can
        bad[CHAN_HEADER_SIZE + 1] = (uint8_t)(noise >> 8);
        bad[CHAN_HEADER_SIZE + 2] = (uint8_t)noise;
        chan_mac1(bad + cut - CHAN_MAC1_SIZE, key, bad, cut - CHAN_MAC1_SIZE);
        assert_refused(c, bad, cut, &m->scratch);
    }
    for (size_t bit = 0; bit < 8 * n; bit++) {
        memcpy(bad, message->data, n);
        bad[bit / 8] ^= (uint8_t)(1U << bit % 8);
        assert_refused(c, bad, n, &m->scratch);
        if (bit / 8 >= n - CHAN_MAC1_SIZE || (!session_matters && in_session_field(bit / 8)))
            continue;
        chan_mac1(bad + n - CHAN_MAC1_SIZE, key, bad, n - CHAN_MAC1_SIZE);
        assert_refused(c, bad, n, &m->scratch);
    }
    memcpy(bad, message->data, n);
    bad[n] = 0;
    assert_refused(c, bad, n + 1, &m->scratch);
}

static void test_enrol_changed_messages_are_refused(void **state)
{
    (void)state;
    struct meeting m;

    meet(&m, NULL);
    assert_changes_refused(&m, m.server, &m.init, false); // the initiator chooses the session
    assert_int_equal(feed(m.server, m.init.data, m.init.len, &m.response).event, CHAN_REPLY);
    assert_changes_refused(&m, m.client, &m.response, true);
    assert_int_equal(feed(m.client, m.response.data, m.response.len, &m.finish).event, CHAN_READY);
    assert_changes_refused(&m, m.server, &m.finish, true);
    assert_int_equal(feed(m.server, m.finish.data, m.finish.len, &m.scratch).event, CHAN_READY);
    part(&m); // the true ones still worked
}

static void test_enrol_replayed_messages_lead_nowhere(void **state)
{
    (void)state;
    struct meeting m;
    struct err err = ERR_INIT;

    meet(&m, NULL);
    exchange(&m);
    AUTO(chan_free_p) struct chan *again = chan_accept(m.theirs, 1U << CHAN_LINK_ENROL, &err);
    assert_int_equal(feed(again, m.init.data, m.init.len, &m.scratch).event, CHAN_REPLY);
    assert_int_equal(feed(again, m.finish.data, m.finish.len, &m.scratch).status,
                     STATUS_UNAVAILABLE);
    assert_int_equal(feed(m.server, m.finish.data, m.finish.len, &m.scratch).event, CHAN_READY);
    assert_int_equal(feed(m.server, m.finish.data, m.finish.len, &m.scratch).status,
                     STATUS_UNAVAILABLE);
    part(&m);
}

static void test_enrol_records_before_the_third_message_are_refused(void **state)
{
    (void)state;
    struct meeting m;

    meet(&m, NULL);
    exchange(&m);
    size_t n = seal_text(m.client, "too early");
    assert_int_equal(feed(m.server, record, n, &m.scratch).status, STATUS_UNAVAILABLE);
    part(&m);
}

static void test_enrol_without_what_it_needs_is_not_made(void **state)
{
    (void)state;
    struct meeting m;
    struct err err = ERR_INIT;

    meet(&m, NULL);
    AUTO(chan_local_unref_p) struct chan_local *nobody = chan_local_new(NULL, NULL);
    assert_null(chan_dial(nobody, CHAN_LINK_ENROL, m.host.public_key, &m.door.join, &err));
    assert_null(chan_dial(m.ours, CHAN_LINK_ENROL, m.host.public_key, NULL, &err));
    assert_int_equal(err.code, STATUS_INVALID_ARGUMENT);
    assert_null(chan_accept(m.ours, 1U << CHAN_LINK_ENROL, &err)); // it has no secrets to accept
    part(&m);
}

static void test_enrol_link_is_refused_where_it_is_not_open(void **state)
{
    (void)state;
    struct meeting m;
    struct err err = ERR_INIT;

    meet(&m, NULL);
    AUTO(chan_free_p) struct chan *server = chan_accept(m.theirs, 1U << CHAN_LINK_CLIENT, &err);
    assert_int_equal(feed(server, m.init.data, m.init.len, &m.scratch).status, STATUS_UNAVAILABLE);
    assert_int_equal(m.door.n_asked, 0);
    part(&m);
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
        cmocka_unit_test(test_enrol_both_know_the_secret),
        cmocka_unit_test(test_enrol_sizes_are_fixed),
        cmocka_unit_test(test_enrol_wrong_secret_is_refused_at_the_third_message),
        cmocka_unit_test(test_enrol_unknown_or_closed_secret_is_refused_at_once),
        cmocka_unit_test(test_enrol_with_another_host_is_refused_by_the_newcomer),
        cmocka_unit_test(test_enrol_changed_messages_are_refused),
        cmocka_unit_test(test_enrol_replayed_messages_lead_nowhere),
        cmocka_unit_test(test_enrol_records_before_the_third_message_are_refused),
        cmocka_unit_test(test_enrol_without_what_it_needs_is_not_made),
        cmocka_unit_test(test_enrol_link_is_refused_where_it_is_not_open),
    };

    return cmocka_run_group_tests(tests, start, NULL);
}
