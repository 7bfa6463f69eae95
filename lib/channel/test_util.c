#include "channel/test_util.h"

int64_t now_s(void)
{
    return time_wall_ms() / 1000;
}

struct chan_grant grant_for(const struct chan_identity *id, unsigned role, const char *name)
{
    struct chan_grant g = {
        .role = role, .not_before_s = now_s() - 60, .not_after_s = now_s() + 3600, .serial = 5};

    memcpy(g.key, id->public_key, sizeof(g.key));
    snprintf(g.node_id, sizeof(g.node_id), "%s", name);
    return g;
}

void set_grant(struct chan_identity *id, const struct chan_grant *g,
               const uint8_t operator_secret[64])
{
    AUTO(buf_done) struct buf b = {0};
    struct err err = ERR_INIT;

    buf_init(&b, sizeof(id->grant));
    assert_int_equal(chan_grant_sign(&b, g, operator_secret, &err), STATUS_OK);
    memcpy(id->grant, b.data, b.len);
    id->grant_len = b.len;
}

void make_world(struct world *w)
{
    memset(w, 0, sizeof(*w));
    crypto_ed25519_keypair(w->trust.operator_public, w->operator_secret);
    crypto_dh_keypair(w->client.public_key, w->client.secret);
    crypto_dh_keypair(w->server.public_key, w->server.secret);
    struct chan_grant g = grant_for(&w->client, ROLE_ORCHESTRATOR, "orchestrator-1");
    set_grant(&w->client, &g, w->operator_secret);
    g = grant_for(&w->server, ROLE_ORIGIN, "video-1");
    set_grant(&w->server, &g, w->operator_secret);
}

// ---------------------------------------------------------------- moving messages

struct result feed(struct chan *c, void *in, size_t n, struct buf *out)
{
    struct result r = {0};
    struct err err = ERR_INIT;

    buf_reset(out);
    r.status = chan_receive(c, in, n, out, &r.event, &r.data, &r.len, &err);
    if (r.status != STATUS_OK) {
        assert_int_equal(r.status, STATUS_UNAVAILABLE);
        assert_int_equal(err.code, STATUS_UNAVAILABLE);
        assert_int_equal(out->len, 0); // silence
        assert_int_equal(r.event, CHAN_NOTHING);
    }
    return r;
}

void pair_new(struct pair *p, struct world *w, enum chan_link link)
{
    struct err err = ERR_INIT;

    buf_init(&p->init, CHAN_MAX_RECORD);
    buf_init(&p->response, CHAN_MAX_RECORD);
    buf_init(&p->scratch, CHAN_MAX_RECORD);
    p->client = chan_new_initiator(link, w->server.public_key,
                                   link == CHAN_LINK_SERVICE ? &w->client : NULL, &w->trust, &err);
    p->server = chan_new_responder(BOTH_LINKS, &w->server, &w->trust, &err);
    assert_non_null(p->client);
    assert_non_null(p->server);
    assert_int_equal(chan_start(p->client, &p->init, &err), STATUS_OK);
}

void pair_done(struct pair *p)
{
    chan_free(p->client);
    chan_free(p->server);
    buf_done(&p->init);
    buf_done(&p->response);
    buf_done(&p->scratch);
}

void pair_connect(struct pair *p, struct world *w, enum chan_link link)
{
    pair_new(p, w, link);
    struct result r = feed(p->server, p->init.data, p->init.len, &p->response);
    assert_int_equal(r.event, link == CHAN_LINK_CLIENT ? CHAN_READY : CHAN_REPLY);
    r = feed(p->client, p->response.data, p->response.len, &p->scratch);
    assert_int_equal(r.event, CHAN_READY);
    assert_int_equal(p->scratch.len, 0);
}

uint8_t record[CHAN_MAX_RECORD];

size_t seal_text(struct chan *from, const char *text)
{
    memcpy(record + CHAN_RECORD_OVERHEAD - 16, text, strlen(text));
    return chan_seal(from, record, strlen(text), NULL);
}

void send_text(struct pair *p, struct chan *from, struct chan *to, const char *text)
{
    size_t n = seal_text(from, text);
    assert_int_equal(n, strlen(text) + CHAN_RECORD_OVERHEAD);
    struct result r = feed(to, record, n, &p->scratch);
    assert_int_equal(r.event, CHAN_DATA);
    assert_int_equal(r.len, strlen(text));
    assert_memory_equal(r.data, text, r.len);
}

void fix_mac1(const struct world *w, uint8_t *frame, size_t n)
{
    uint8_t key[32];

    chan_mac1_key(key, w->server.public_key);
    chan_mac1(frame + n - CHAN_MAC1_SIZE, key, frame, n - CHAN_MAC1_SIZE);
}

bool in_session_field(size_t byte)
{
    return byte >= 4 && byte < 4 + CHAN_SESSION_SIZE;
}
