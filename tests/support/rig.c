#include "support/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"

#define CLIENT_URL "inproc://test-rig-clients"
#define NODE_URL "inproc://test-rig-nodes"

static void must(enum status s, const struct err *err)
{
    if (s != STATUS_OK)
        fail_msg("%s: %s", status_name(s), err->msg);
}

static void make_identity(struct chan_identity *id, const char *node, unsigned role_bit,
                          const uint8_t operator_secret[64])
{
    struct err err = ERR_INIT;
    struct chan_grant g = {.role = (unsigned)__builtin_ctz(role_bit),
                           .not_before_s = time_wall_ms() / 1000 - 60,
                           .not_after_s = time_wall_ms() / 1000 + 3600};
    AUTO(buf_done) struct buf b;
    crypto_dh_keypair(id->public_key, id->secret);
    memcpy(g.key, id->public_key, 32);
    str_copy(g.node_id, sizeof g.node_id, node);
    buf_init(&b, sizeof id->grant);
    must(chan_grant_sign(&b, &g, operator_secret, &err), &err);
    memcpy(id->grant, b.data, b.len);
    id->grant_len = b.len;
}

// Token keys reach svc_tokens as they do in life: through nodes.ini.
static void make_tokens(struct test_rig *r)
{
    char path[] = "/tmp/cauce-rig-XXXXXX", key[64], session[64], store[64];
    uint8_t pub[32];
    struct err err = ERR_INIT;
    FILE *f = fdopen(mkstemp(path), "we");
    assert_non_null(f);
    crypto_ed25519_keypair(pub, r->session_secret);
    str_b64(session, pub, 32);
    crypto_ed25519_keypair(pub, r->store_secret);
    str_b64(store, pub, 32);
    str_b64(key, r->identity.public_key, 32);
    fprintf(f,
            "[operator]\nkey = %s\n[s]\nrole = session\nurl = ipc:///s\nkey = %s\ntoken-key = %s\n",
            key, key, session);
    fprintf(f, "[t]\nrole = store\nurl = ipc:///t\nkey = %s\ntoken-key = %s\n", key, store);
    assert_int_equal(fclose(f), 0);
    must(svc_nodes_load(path, &r->nodes, &err), &err);
    unlink(path);
    r->tokens = svc_tokens_new(r->nodes);
    assert_non_null(r->tokens);
}

static bool is_grant_ok(void *ud, const struct chan_peer *peer)
{
    struct test_rig *r = ud;
    (void)peer;
    return !atomic_load(&r->is_node_revoked);
}

static bool is_user_ok(void *ud, const struct rpc_user *user)
{
    struct test_rig *r = ud;
    (void)user;
    return !atomic_load(&r->is_user_revoked);
}

void test_rig_init(struct test_rig *r)
{
    uint8_t operator_secret[64];
    struct err err = ERR_INIT;
    memset(r, 0, sizeof *r);
    must(crypto_init(&err), &err);
    crypto_ed25519_keypair(r->trust.operator_public, operator_secret);
    make_identity(&r->identity, "server", ROLE_NODE_STORE, operator_secret);
    make_identity(&r->node_identity, "orchestrator-1", ROLE_NODE_ORCHESTRATOR, operator_secret);
    make_tokens(r);
    r->pool = work_pool_new("rig", 4, 1000);
    assert_non_null(r->pool);
    struct rpc_server_opts o = {.identity = &r->identity,
                                .trust = &r->trust,
                                .pool = r->pool,
                                .verify = svc_tokens_verify_access,
                                .verify_ud = r->tokens,
                                .grant_ok = is_grant_ok,
                                .grant_ok_ud = r,
                                .user_ok = is_user_ok,
                                .user_ok_ud = r};
    r->server = rpc_server_new(&o, &err);
    if (!r->server)
        fail_msg("%s", err.msg);
}

static struct rpc_client *make_client(struct test_rig *r, const char *url,
                                      const struct chan_identity *id)
{
    struct err err = ERR_INIT;
    struct rpc_endpoint e = {.url = url};
    struct rpc_client_opts o = {
        .identity = id, .trust = id ? &r->trust : NULL, .endpoints = &e, .n_endpoints = 1};
    memcpy(e.key, r->identity.public_key, 32);
    struct rpc_client *c = rpc_client_new(&o, &err);
    if (!c)
        fail_msg("%s", err.msg);
    return c;
}

void test_rig_listen(struct test_rig *r)
{
    struct err err = ERR_INIT;
    must(rpc_server_listen(r->server, CLIENT_URL, true, NULL, &err), &err);
    must(rpc_server_listen(r->server, NODE_URL, false, NULL, &err), &err);
    r->client = make_client(r, CLIENT_URL, NULL);
    r->node = make_client(r, NODE_URL, &r->node_identity);
}

void test_rig_stop(struct test_rig *r)
{
    if (r->is_stopped)
        return;
    r->is_stopped = true;
    rpc_client_free(r->client);
    rpc_client_free(r->node);
    rpc_server_close(r->server);
    rpc_server_stop(r->server, 2000);
}

void test_rig_done(struct test_rig *r)
{
    test_rig_stop(r);
    rpc_server_free(r->server);
    work_pool_free(r->pool);
    svc_tokens_free(r->tokens);
    svc_nodes_free(r->nodes);
}

char *test_rig_token(struct test_rig *r, const struct rpc_user *u)
{
    struct rpc_user user = *u;
    struct err err = ERR_INIT;
    struct buf b;
    size_t n = 0;
    user.exp_wall_ms = time_wall_ms() + 600000;
    buf_init(&b, 4096);
    must(svc_token_mint_access(r->session_secret, &user, &b, &err), &err);
    return (char *)buf_take(&b, &n);
}
