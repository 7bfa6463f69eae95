// Sessions that live on while keys, grants and identities change under them.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "crypto/crypto.h"
#include "rpc/internal.h"
#include "rpc/test_util.h"

#define PATIENCE_MS 20000

// ---------------------------------------------------------------- what tests look at

static struct conn *conn_of(struct rpc_client *c)
{
    pthread_mutex_lock(&c->lock);
    struct link *l = c->n_endpoints ? c->endpoints[0]->current : NULL;
    struct conn *conn = l && l->live ? conn_ref(l->live) : NULL;
    pthread_mutex_unlock(&c->lock);
    return conn;
}

static unsigned n_renewed(struct rpc_client *c)
{
    struct conn *conn = conn_of(c);
    if (!conn)
        return 0;
    conn_lock(conn);
    unsigned n = chan_n_renewed(conn->chan);
    conn_unlock(conn);
    conn_unref(conn);
    return n;
}

// The key that the server showed in the session's last handshake.
static bool server_has(struct rpc_client *c, const uint8_t key[32])
{
    struct conn *conn = conn_of(c);
    if (!conn)
        return false;
    conn_lock(conn);
    bool yes = memcmp(chan_peer(conn->chan)->grant.key, key, 32) == 0;
    conn_unlock(conn);
    conn_unref(conn);
    return yes;
}

static uint64_t n_connects(struct rpc_client *c)
{
    struct rpc_client_stats stats;
    rpc_client_get_stats(c, &stats);
    return stats.n_connects;
}

static void echo(struct rpc_client *c, int method)
{
    Note req, *reply = NULL;
    struct err err = ERR_INIT;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(PATIENCE_MS), .max_attempts = 1};
    note_init(&req);
    req.number = 7;
    enum status s = call_note(c, method, &o, &req, &reply, &err);
    if (s != STATUS_OK)
        fail_msg("%d: %s", (int)s, err.msg);
    rpc_message_free(reply);
}

// Calls, none of which may fail, until it is so.
#define ECHO_UNTIL(c, condition)                                                                   \
    do {                                                                                           \
        int64_t until_ = time_mono_ms() + PATIENCE_MS;                                             \
        do {                                                                                       \
            echo(c, ECHO);                                                                         \
            assert_true(time_mono_ms() < until_);                                                  \
        } while (!(condition));                                                                    \
    } while (0)

static void sign(struct world *w, struct chan_identity *id, unsigned role, uint64_t serial)
{
    struct chan_grant g = {.role = role,
                           .not_before_s = time_wall_ms() / 1000 - 60,
                           .not_after_s = time_wall_ms() / 1000 + 3600,
                           .serial = serial};
    AUTO(buf_done) struct buf b;
    struct err err = ERR_INIT;
    memcpy(g.key, id->public_key, sizeof g.key);
    snprintf(g.node_id, sizeof g.node_id, "node-%u", role);
    buf_init(&b, sizeof id->grant);
    assert_int_equal(chan_grant_sign(&b, &g, w->operator_secret, &err), STATUS_OK);
    memcpy(id->grant, b.data, b.len);
    id->grant_len = b.len;
}

static struct rpc_client *client_of(struct world *w, const struct rpc_endpoint *e,
                                    int64_t renew_after_ms)
{
    struct rpc_client_opts o = {.endpoints = e,
                                .n_endpoints = 1,
                                .transport = w->transport,
                                .identity = &w->node,
                                .trust = &w->trust,
                                .renew_after_ms = renew_after_ms};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    return c;
}

static struct rpc_endpoint endpoint_of(const struct world *w, const uint8_t key[32],
                                       const uint8_t next[32])
{
    struct rpc_endpoint e = {.url = w->url, .has_next_key = next != NULL};
    memcpy(e.key, key, sizeof e.key);
    if (next)
        memcpy(e.next_key, next, sizeof e.next_key);
    return e;
}

// ---------------------------------------------------------------- traffic besides

struct traffic {
    struct rpc_client *c;
    atomic_bool stop;
    atomic_int n_calls, n_failed;
    pthread_t thread;
};

static void *make_calls(void *ud)
{
    struct traffic *t = ud;
    uint8_t data[100000];
    memset(data, 1, sizeof data);
    while (!t->stop) {
        Note req, *reply = NULL;
        struct rpc_opts o = {.deadline_us = time_deadline_in_ms(PATIENCE_MS), .max_attempts = 1};
        note_init(&req);
        req.data = (ProtobufCBinaryData){.len = sizeof data, .data = data};
        t->n_failed += call_note(t->c, ECHO, &o, &req, &reply, NULL) != STATUS_OK;
        t->n_calls++;
        rpc_message_free(reply);
    }
    return NULL;
}

static void traffic_begin(struct traffic *t, struct rpc_client *c)
{
    *t = (struct traffic){.c = c};
    assert_int_equal(pthread_create(&t->thread, NULL, make_calls, t), 0);
}

static void traffic_end(struct traffic *t)
{
    assert_true(wait_for_count(&t->n_calls, 1));
    t->stop = true;
    pthread_join(t->thread, NULL);
    assert_int_equal(t->n_failed, 0);
}

// ---------------------------------------------------------------- tests

static void test_session_gets_new_keys_by_time_and_calls_notice_nothing(void **state)
{
    (void)state;
    struct world w;
    struct traffic t;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", false);
    struct rpc_endpoint e = endpoint_of(&w, w.server.public_key, NULL);
    struct rpc_client *c = client_of(&w, &e, 5);
    traffic_begin(&t, c);
    ECHO_UNTIL(c, n_renewed(c) >= 10);
    traffic_end(&t);
    assert_int_equal(n_connects(c), 1);
    rpc_client_free(c);
    world_done(&w);
}

static bool note_serial(void *ud, const struct chan_peer *peer)
{
    _Atomic uint64_t *serial = ud;
    *serial = peer->grant.serial;
    return true;
}

static void test_new_grant_of_the_client_reaches_the_server_in_its_session(void **state)
{
    (void)state;
    struct world w;
    struct err err = ERR_INIT;
    _Atomic uint64_t serial = 0;
    world_init(&w);
    struct rpc_server_opts o = world_server_opts(&w);
    o.grant_ok = note_serial;
    o.grant_ok_ud = &serial;
    w.s = rpc_server_new(&o, &err);
    assert_non_null(w.s);
    world_add(&w, w.s);
    assert_int_equal(rpc_server_listen(w.s, "tcp://127.0.0.1:0", false, w.url, &err), STATUS_OK);
    struct rpc_endpoint e = endpoint_of(&w, w.server.public_key, NULL);
    struct rpc_client *c = client_of(&w, &e, 0);
    echo(c, FOR_ORIGINS);
    assert_int_equal(serial, 5);
    rpc_client_set_identity(c, &w.node); // the same: nothing is to be done
    echo(c, ECHO);
    sign(&w, &w.node, 12, 77);
    rpc_client_set_identity(c, &w.node);
    ECHO_UNTIL(c, n_renewed(c) >= 1);
    echo(c, FOR_ORIGINS);
    assert_int_equal(serial, 77);
    assert_int_equal(n_renewed(c), 1);
    assert_int_equal(n_connects(c), 1);
    rpc_client_free(c);
    world_done(&w);
}

// The server's key A is replaced by B: both at first, then B alone.
static void test_server_changes_its_key_under_traffic(void **state)
{
    (void)state;
    struct world w;
    struct chan_identity b;
    struct traffic t;
    struct err err = ERR_INIT;
    world_init(&w);
    make_node(&w, &b, 9, 3600);
    world_serve(&w, "tcp://127.0.0.1:0", false);
    struct rpc_endpoint e = endpoint_of(&w, w.server.public_key, NULL);
    struct rpc_client *c = client_of(&w, &e, 0);
    traffic_begin(&t, c);
    echo(c, ECHO);
    rpc_server_set_identity(w.s, &b, &w.server);
    e = endpoint_of(&w, w.server.public_key, b.public_key);
    assert_int_equal(rpc_client_set_endpoints(c, &e, 1, &err), STATUS_OK);
    echo(c, ECHO);
    assert_true(server_has(c, w.server.public_key)); // nothing hurries
    e = endpoint_of(&w, b.public_key, NULL);
    assert_int_equal(rpc_client_set_endpoints(c, &e, 1, &err), STATUS_OK);
    ECHO_UNTIL(c, server_has(c, b.public_key));
    rpc_server_set_identity(w.s, &b, NULL);
    echo(c, ECHO);
    traffic_end(&t);
    assert_int_equal(n_connects(c), 1);
    rpc_client_free(c);
    world_done(&w);
}

static void test_client_that_is_a_step_behind_finds_the_key_to_come(void **state)
{
    (void)state;
    struct world w;
    uint8_t old[32];
    world_init(&w);
    memcpy(old, w.server.public_key, sizeof old);
    make_node(&w, &w.server, 9, 3600);
    world_serve(&w, "tcp://127.0.0.1:0", false); // with the new key alone
    struct rpc_endpoint e = endpoint_of(&w, old, w.server.public_key);
    struct rpc_client *c = client_of(&w, &e, 0);
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(PATIENCE_MS)};
    Note req, *reply = NULL;
    enum status s = STATUS_UNAVAILABLE;
    note_init(&req);
    while (s == STATUS_UNAVAILABLE && time_mono_us() < o.deadline_us)
        s = call_note(c, ECHO, &o, &req, &reply, NULL);
    assert_int_equal(s, STATUS_OK);
    rpc_message_free(reply);
    assert_true(server_has(c, w.server.public_key));
    rpc_client_free(c);
    world_done(&w);
}

static void ended(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    _Atomic int *n = ud;
    (void)err;
    assert_int_equal(s, STATUS_UNAVAILABLE);
    rpc_message_free(reply);
    (*n)++;
}

static bool is_revoked(void *ud, const struct chan_grant *g)
{
    const atomic_bool *yes = ud;
    return *yes && g->role == 9;
}

static void test_server_that_is_revoked_loses_its_connections(void **state)
{
    (void)state;
    struct world w;
    atomic_bool revoked = false;
    _Atomic int n_ended = 0;
    Note req, *reply = NULL;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", false);
    w.trust.is_revoked = is_revoked; // as the client sees it
    w.trust.ud = &revoked;
    struct rpc_endpoint e = endpoint_of(&w, w.server.public_key, NULL);
    struct rpc_client *c = client_of(&w, &e, 0);
    note_init(&req);
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(PATIENCE_MS), .max_attempts = 1};
    rpc_unary_async(c, &test_service.methods[WAIT], &o, &req.base, ended, &n_ended);
    assert_true(wait_for_count(&w.n_waiting, 1));
    rpc_client_check_grants(c); // still good
    echo(c, ECHO);
    assert_int_equal(n_ended, 0);
    revoked = true;
    rpc_client_check_grants(c);
    assert_true(wait_for_count(&n_ended, 1));
    o = (struct rpc_opts){.deadline_us = time_deadline_in_ms(300), .max_attempts = 1};
    assert_int_not_equal(call_note(c, ECHO, &o, &req, &reply, NULL), STATUS_OK);
    rpc_client_free(c);
    world_done(&w);
}

struct verdict {
    atomic_bool bad;
    _Atomic int n_denied, n_other;
};

static bool is_good(void *ud, const struct chan_peer *peer)
{
    const struct verdict *v = ud;
    (void)peer;
    return !v->bad;
}

static void denied(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    struct verdict *v = ud;
    (void)err;
    rpc_message_free(reply);
    v->n_other += s != STATUS_PERMISSION_DENIED;
    v->n_denied++;
}

static void test_client_that_is_revoked_loses_its_calls_and_hears_why(void **state)
{
    (void)state;
    struct world w;
    struct verdict v = {.bad = false};
    struct err err = ERR_INIT;
    Note req, *reply = NULL;
    world_init(&w);
    struct rpc_server_opts so = world_server_opts(&w);
    so.grant_ok = is_good;
    so.grant_ok_ud = &v;
    w.s = rpc_server_new(&so, &err);
    assert_non_null(w.s);
    world_add(&w, w.s);
    assert_int_equal(rpc_server_listen(w.s, "tcp://127.0.0.1:0", false, w.url, &err), STATUS_OK);
    struct rpc_endpoint e = endpoint_of(&w, w.server.public_key, NULL);
    struct rpc_client *c = client_of(&w, &e, 0);
    note_init(&req);
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(PATIENCE_MS), .max_attempts = 1};
    rpc_unary_async(c, &test_service.methods[WAIT], &o, &req.base, denied, &v);
    assert_true(wait_for_count(&w.n_waiting, 1));
    rpc_server_check_grants(w.s); // still good
    echo(c, ECHO);
    assert_int_equal(v.n_denied, 0);
    v.bad = true;
    rpc_server_check_grants(w.s);
    assert_true(wait_for_count(&v.n_denied, 1));
    assert_int_equal(v.n_other, 0);
    assert_true(wait_for_count(&w.n_cancelled, 1)); // its handler was told too
    o = (struct rpc_opts){.deadline_us = time_deadline_in_ms(300), .max_attempts = 1};
    assert_int_not_equal(call_note(c, ECHO, &o, &req, &reply, NULL), STATUS_OK);
    rpc_client_free(c);
    world_done(&w);
}

struct signer {
    atomic_bool is_known;
    _Atomic int n_verified;
};

static enum status verify(void *ud, const char *token, size_t len, struct rpc_user *ret,
                          struct err *err)
{
    struct signer *s = ud;
    (void)token;
    (void)len;
    s->n_verified++;
    if (!s->is_known)
        return err_set(err, STATUS_UNAUTHENTICATED, "signed by nobody whom we know");
    *ret = (struct rpc_user){.id = "u", .roles = ROLE_USER, .exp_wall_ms = time_wall_ms() + 60000};
    return STATUS_OK;
}

static enum status call_as_user(struct rpc_client *c)
{
    Note req, *reply = NULL;
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(PATIENCE_MS), .token = "text"};
    note_init(&req);
    enum status s = call_note(c, FOR_USERS, &o, &req, &reply, NULL);
    rpc_message_free(reply);
    return s;
}

static void test_tokens_are_verified_again_when_their_keys_changed(void **state)
{
    (void)state;
    struct world w;
    struct signer signer = {.is_known = true};
    struct err err = ERR_INIT;
    world_init(&w);
    struct rpc_server_opts so = world_server_opts(&w);
    so.verify = verify;
    so.verify_ud = &signer;
    w.s = rpc_server_new(&so, &err);
    assert_non_null(w.s);
    world_add(&w, w.s);
    assert_int_equal(rpc_server_listen(w.s, "tcp://127.0.0.1:0", false, w.url, &err), STATUS_OK);
    struct rpc_endpoint e = endpoint_of(&w, w.server.public_key, NULL);
    struct rpc_client *c = client_of(&w, &e, 0);
    assert_int_equal(call_as_user(c), STATUS_OK);
    assert_int_equal(call_as_user(c), STATUS_OK);
    assert_int_equal(signer.n_verified, 1);
    rpc_server_doubt_tokens(w.s);
    assert_int_equal(call_as_user(c), STATUS_OK);
    assert_int_equal(call_as_user(c), STATUS_OK);
    assert_int_equal(signer.n_verified, 2);
    signer.is_known = false;
    rpc_server_doubt_tokens(w.s);
    assert_int_equal(call_as_user(c), STATUS_UNAUTHENTICATED);
    assert_int_equal(call_as_user(c), STATUS_UNAUTHENTICATED);
    rpc_client_free(c);
    world_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_session_gets_new_keys_by_time_and_calls_notice_nothing),
        cmocka_unit_test(test_new_grant_of_the_client_reaches_the_server_in_its_session),
        cmocka_unit_test(test_server_changes_its_key_under_traffic),
        cmocka_unit_test(test_client_that_is_a_step_behind_finds_the_key_to_come),
        cmocka_unit_test(test_client_that_is_revoked_loses_its_calls_and_hears_why),
        cmocka_unit_test(test_tokens_are_verified_again_when_their_keys_changed),
        cmocka_unit_test(test_server_that_is_revoked_loses_its_connections),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
