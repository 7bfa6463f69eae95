#pragma once
// A server with real tokens and grants, and clients to it, inside a test program: for handlers
// under test over the real wire.
#include <stdatomic.h>

#include "channel/channel.h"
#include "rpc/rpc.h"
#include "service/service.h"
#include "work/work.h"

struct test_rig {
    uint8_t session_secret[64], store_secret[64]; // token keys
    struct svc_nodes *nodes;
    struct svc_tokens *tokens;
    struct chan_trust trust;
    struct chan_identity identity, node_identity;
    struct work_pool *pool;
    struct rpc_server *server;   // add handlers before test_rig_listen()
    struct rpc_client *client;   // anonymous link, for calls with and without a token
    struct rpc_client *node;     // the orchestrator's link
    atomic_bool is_node_revoked; // the orchestrator's grant counts no more
    atomic_bool is_user_revoked; // nor does any token
    bool is_stopped;
};
void test_rig_init(struct test_rig *r);
void test_rig_listen(struct test_rig *r);
// Closes clients, then stops the server. What the handlers used may be freed afterwards.
void test_rig_stop(struct test_rig *r);
// Frees all; stops it first if need be.
void test_rig_done(struct test_rig *r);
// An access token of that user, good for ten minutes. Freed with mem_free().
char *test_rig_token(struct test_rig *r, const struct rpc_user *u);
