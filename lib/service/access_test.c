// Who may call what: every method of every service against every kind of caller, over real sealed
// connections, with the .proto files' own text as the measure. Then tokens that must not pass.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/services.rpc.h"
#include "crypto/crypto.h"
#include "service/internal.h"

#define REACHED STATUS_DATA_LOSS // what our handlers answer: no dispatcher says that by itself
#define NODE_URL "inproc://access-test-nodes"
#define CLIENT_URL "inproc://access-test-clients"
#define ENROL_URL "inproc://access-test-newcomers"
#define N_NODE_ROLES 7

struct world {
    uint8_t operator_secret[64], session_secret[64], stranger_secret[64], store_secret[64];
    struct chan_trust trust;
    struct chan_identity server, nodes[N_NODE_ROLES];
    struct svc_nodes *ini;
    struct svc_tokens *tokens;
    struct work_pool *pool;
    struct rpc_server *rpc;
    struct chan_join join;
    struct rpc_client *as_client, *as_newcomer, *as_node[N_NODE_ROLES];
};
static struct world w;

// ---------------------------------------------------------------- what the .proto files say

struct rule {
    char name[128];
    unsigned allow;
};
static struct rule rules[256];
static size_t n_rules;

static unsigned role_bit(const char *word)
{
    static const struct {
        const char *word;
        unsigned bit;
    } words[] = {
        {"ANON", 1U << 1},
        {"USER", 1U << 2},
        {"CREATOR", 1U << 3},
        {"ADMIN", 1U << 4},
        {"JOINER", 1U << 5},
        {"NODE_SESSION", 1U << 8},
        {"NODE_ORCHESTRATOR", 1U << 9},
        {"NODE_TRANSCODE", 1U << 10},
        {"NODE_STORE", 1U << 11},
        {"NODE_ORIGIN", 1U << 12},
        {"NODE_GATEWAY", 1U << 13},
        {"NODE_ADMIN", 1U << 14},
    };
    for (size_t i = 0; i < N_ELEMENTS(words); i++)
        if (str_eq(words[i].word, word))
            return words[i].bit;
    fail_msg("the .proto files name a role that is not known here: %s", word);
    return 0;
}

// The next word of letters, digits, '_' and '.', or one other character; comments are skipped.
static const char *next_word(const char *p, char out[128])
{
    for (;;) {
        p += strspn(p, " \t\r\n");
        if (strncmp(p, "//", 2) != 0)
            break;
        p += strcspn(p, "\n");
    }
    size_t n = strspn(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.");
    n = n > 0 ? n : *p != '\0';
    assert_true(n < 128);
    memcpy(out, p, n);
    out[n] = '\0';
    return p + n;
}

// Behind "allow:": a role or a list of them.
static const char *read_allow(const char *p, struct rule *r)
{
    char word[128];

    p = next_word(p, word);
    if (!str_eq(word, "[")) {
        r->allow |= role_bit(word);
        return p;
    }
    for (p = next_word(p, word); !str_eq(word, "]"); p = next_word(p, word))
        if (!str_eq(word, ","))
            r->allow |= role_bit(word);
    return p;
}

static void read_proto_text(const char *p)
{
    char word[128], package[128] = "", service[128] = "";

    for (p = next_word(p, word); word[0]; p = next_word(p, word)) {
        if (str_eq(word, "package"))
            p = next_word(p, package);
        else if (str_eq(word, "service"))
            p = next_word(p, service);
        else if (str_eq(word, "rpc")) {
            p = next_word(p, word);
            assert_true(n_rules < N_ELEMENTS(rules));
            snprintf(rules[n_rules].name, sizeof(rules[0].name), "%.40s.%.40s.%.40s", package,
                     service, word);
            n_rules++;
        } else if (str_eq(word, "allow") && n_rules > 0) {
            const char *after = next_word(p, word);
            if (str_eq(word, ":")) // else a field of that name
                p = read_allow(after, &rules[n_rules - 1]);
        }
    }
}

static void read_protos(void)
{
    static const char *const files[] = {"enrol",  "event",   "node",  "orchestrator",
                                        "origin", "session", "store", "transcode"};
    const char *source = getenv("CAUCE_SOURCE_DIR");
    static char text[1 << 18];

    for (size_t i = 0; i < N_ELEMENTS(files); i++) {
        char path[512];
        snprintf(path, sizeof(path), "%s/proto/cauce/%s.proto", source ? source : ".", files[i]);
        FILE *f = fopen(path, "re");
        if (!f)
            fail_msg("cannot open %s", path);
        size_t n = fread(text, 1, sizeof(text) - 1, f);
        assert_true(n < sizeof(text) - 1);
        fclose(f);
        text[n] = '\0';
        read_proto_text(text);
    }
}

static const struct rule *rule_of(const char *method)
{
    for (size_t i = 0; i < n_rules; i++)
        if (str_eq(rules[i].name, method))
            return &rules[i];
    fail_msg("%s is in no .proto file", method);
    return NULL;
}

// ---------------------------------------------------------------- the world

static enum status reached(struct rpc_call *c, void (*handler)(void), const ProtobufCMessage *req,
                           ProtobufCMessage *ret, struct err *err)
{
    (void)c;
    (void)handler;
    (void)req;
    (void)ret;
    return err_set(err, REACHED, "reached");
}

static void no_handler(void)
{
}

static void add_service(const struct rpc_service *s)
{
    rpc_thunk thunks[64];
    void (*handlers[64])(void);
    struct err err = ERR_INIT;

    assert_true(s->n_methods <= N_ELEMENTS(thunks));
    for (size_t i = 0; i < s->n_methods; i++) {
        thunks[i] = reached;
        handlers[i] = no_handler;
    }
    assert_int_equal(rpc_server_add(w.rpc, s, thunks, handlers, NULL, &err), STATUS_OK);
}

static void make_identity(struct chan_identity *id, unsigned role)
{
    struct chan_grant g = {.role = role,
                           .not_before_s = time_wall_ms() / 1000 - 60,
                           .not_after_s = time_wall_ms() / 1000 + 3600};
    AUTO(buf_done) struct buf b = {0};
    struct err err = ERR_INIT;

    crypto_dh_keypair(id->public_key, id->secret);
    memcpy(g.key, id->public_key, 32);
    snprintf(g.node_id, sizeof(g.node_id), "node-%u", role);
    buf_init(&b, CHAN_GRANT_SIZE);
    assert_int_equal(chan_grant_sign(&b, &g, w.operator_secret, &err), STATUS_OK);
    memcpy(id->grant, b.data, b.len);
    id->grant_len = b.len;
}

static struct rpc_client *make_client(const char *url, const struct chan_identity *id,
                                      unsigned expect_role)
{
    struct rpc_endpoint e = {.url = url};
    struct rpc_client_opts o = {.identity = id,
                                .trust = id ? &w.trust : NULL,
                                .expect_role = expect_role,
                                .endpoints = &e,
                                .n_endpoints = 1};
    struct err err = ERR_INIT;

    memcpy(e.key, w.server.public_key, 32);
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    return c;
}

static bool find_secret(void *ud, const uint8_t id[CHAN_JOIN_ID_SIZE], uint8_t ret_secret[32])
{
    (void)ud;
    memcpy(ret_secret, w.join.secret, sizeof(w.join.secret));
    return memcmp(id, w.join.id, sizeof(w.join.id)) == 0;
}

static struct rpc_client *make_newcomer(void)
{
    struct chan_identity id = {0};
    struct rpc_endpoint e = {.url = ENROL_URL};
    struct rpc_client_opts o = {
        .identity = &id, .join = &w.join, .endpoints = &e, .n_endpoints = 1};
    struct err err = ERR_INIT;

    crypto_dh_keypair(id.public_key, id.secret);
    memcpy(e.key, w.server.public_key, 32);
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    return c;
}

// Token keys reach svc_tokens as they do in life: through nodes.ini.
static void make_tokens(void)
{
    char path[] = "/tmp/cauce-access-XXXXXX", key[64], session[64], store[64];
    uint8_t pub[32];
    struct err err = ERR_INIT;
    FILE *f = fdopen(mkstemp(path), "we");

    assert_non_null(f);
    crypto_ed25519_keypair(pub, w.session_secret);
    str_b64(session, pub, 32);
    crypto_ed25519_keypair(pub, w.store_secret);
    str_b64(store, pub, 32);
    crypto_ed25519_keypair(pub, w.stranger_secret);
    str_b64(key, w.server.public_key, 32);
    fprintf(f,
            "[operator]\nkey = %s\n[s]\nrole = session\nurl = ipc:///s\nkey = %s\ntoken-key = %s\n",
            key, key, session);
    fprintf(f, "[t]\nrole = store\nurl = ipc:///t\nkey = %s\ntoken-key = %s\n", key, store);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(svc_nodes_load(path, &w.ini, &err), STATUS_OK);
    unlink(path);
    w.tokens = svc_tokens_new(w.ini);
    assert_non_null(w.tokens);
}

static int start(void **state)
{
    (void)state;
    struct err err = ERR_INIT;

    if (crypto_init(&err) != STATUS_OK)
        return -1;
    read_protos();
    crypto_ed25519_keypair(w.trust.operator_public, w.operator_secret);
    make_identity(&w.server, 12);
    make_tokens();
    w.pool = work_pool_new("access", 2, 1000);
    struct rpc_server_opts o = {.identity = &w.server,
                                .trust = &w.trust,
                                .pool = w.pool,
                                .verify = svc_tokens_verify_access,
                                .verify_ud = w.tokens,
                                .join = find_secret};
    w.rpc = rpc_server_new(&o, &err);
    if (!w.rpc)
        return -1;
    for (size_t i = 0; i < cauce_n_services; i++)
        add_service(cauce_services[i]);
    if (rpc_server_listen(w.rpc, NODE_URL, false, NULL, &err) != STATUS_OK ||
        rpc_server_listen(w.rpc, CLIENT_URL, true, NULL, &err) != STATUS_OK ||
        rpc_server_listen_enrol(w.rpc, ENROL_URL, NULL, &err) != STATUS_OK)
        return -1;
    memset(&w.join, 7, sizeof(w.join));
    w.as_newcomer = make_newcomer();
    w.as_client = make_client(CLIENT_URL, NULL, 0);
    for (unsigned i = 0; i < N_NODE_ROLES; i++) {
        make_identity(&w.nodes[i], 8 + i);
        w.as_node[i] = make_client(NODE_URL, &w.nodes[i], ROLE_NODE_ORIGIN);
    }
    return 0;
}

static int stop(void **state)
{
    (void)state;
    rpc_client_free(w.as_client);
    rpc_client_free(w.as_newcomer);
    for (unsigned i = 0; i < N_NODE_ROLES; i++)
        rpc_client_free(w.as_node[i]);
    rpc_server_close(w.rpc);
    rpc_server_stop(w.rpc, 1000);
    rpc_server_free(w.rpc);
    work_pool_free(w.pool);
    svc_tokens_free(w.tokens);
    svc_nodes_free(w.ini);
    rpc_fini();
    return 0;
}

// ---------------------------------------------------------------- calling

static enum status call_stream(struct rpc_client *c, const struct rpc_method *m,
                               const struct rpc_opts *o, const ProtobufCMessage *req,
                               struct err *err)
{
    AUTO(rpc_stream_free_p) struct rpc_stream *stream = NULL;
    AUTO(rpc_message_free_p) ProtobufCMessage *reply = NULL;
    enum status s =
        rpc_stream_open(c, m, o, m->kind == RPC_SERVER_STREAM ? req : NULL, &stream, err);

    return s == STATUS_OK ? rpc_stream_recv(stream, &reply, err) : s;
}

static enum status call(struct rpc_client *c, const struct rpc_method *m, const char *token)
{
    struct rpc_opts o = {
        .token = token, .deadline_us = time_deadline_in_ms(10000), .max_attempts = 1};
    AUTO(mem_free_p) ProtobufCMessage *req = mem_alloc(m->request->sizeof_message);
    AUTO(rpc_message_free_p) ProtobufCMessage *reply = NULL;
    struct err err = ERR_INIT;

    assert_non_null(req);
    protobuf_c_message_init(m->request, req);
    return m->kind == RPC_UNARY ? rpc_unary(c, m, &o, req, &reply, &err)
                                : call_stream(c, m, &o, req, &err);
}

static struct buf token_of(unsigned roles, const uint8_t secret[64], int64_t life_ms)
{
    struct rpc_user u = {.id = "018f2b6e-7d3a-7c11-9a55-0123456789ab",
                         .name = "ann",
                         .session = "s",
                         .roles = roles,
                         .exp_wall_ms = time_wall_ms() + life_ms};
    struct buf b;
    struct err err = ERR_INIT;

    buf_init(&b, 8192);
    assert_int_equal(svc_token_mint_access(secret, &u, &b, &err), STATUS_OK);
    return b;
}

// have: what the caller is. Every method is asked; the text of the .proto files is the judge.
static void check_caller(const char *who, struct rpc_client *c, const char *token, unsigned have)
{
    const unsigned users = ROLE_USER | ROLE_CREATOR | ROLE_ADMIN;
    size_t n = 0;

    for (size_t s = 0; s < cauce_n_services; s++) {
        for (size_t i = 0; i < cauce_services[s]->n_methods; i++, n++) {
            const struct rpc_method *m = &cauce_services[s]->methods[i];
            const struct rule *r = rule_of(m->name);
            enum status want = r->allow & have              ? REACHED
                               : !token && r->allow & users ? STATUS_UNAUTHENTICATED
                                                            : STATUS_PERMISSION_DENIED;
            enum status got = call(c, m, token);
            if (got != want)
                fail_msg("%s calls %s: %s, expected %s", who, m->name, status_name(got),
                         status_name(want));
        }
    }
    assert_int_equal(n, n_rules);
}

// ---------------------------------------------------------------- tests

static void test_generated_table_is_what_the_proto_files_say(void **state)
{
    (void)state;
    size_t n = 0;

    assert_true(n_rules > 40);
    for (size_t s = 0; s < cauce_n_services; s++) {
        for (size_t i = 0; i < cauce_services[s]->n_methods; i++, n++) {
            const struct rpc_method *m = &cauce_services[s]->methods[i];
            if (m->allow == 0 || m->allow != rule_of(m->name)->allow)
                fail_msg("%s: generated %#x, the .proto file says %#x", m->name, m->allow,
                         rule_of(m->name)->allow);
        }
    }
    assert_int_equal(n, n_rules);
    // A few by hand, so that both cannot be wrong in the same way unnoticed.
    assert_int_equal(rule_of("cauce.session.v1.Session.Login")->allow, ROLE_ANON);
    assert_int_equal(rule_of("cauce.session.v1.UserAdmin.SetRoles")->allow, ROLE_ADMIN);
    assert_int_equal(rule_of("cauce.transcode.v1.Work.Complete")->allow, ROLE_NODE_TRANSCODE);
}

static void test_anonymous_client_reaches_only_anon_methods(void **state)
{
    (void)state;
    check_caller("anonymous", w.as_client, NULL, ROLE_ANON);
}

static void test_users_reach_what_their_roles_allow(void **state)
{
    (void)state;
    static const struct {
        const char *who;
        unsigned roles, have;
    } rows[] = {
        {"a token without roles", 0, ROLE_ANON | ROLE_USER},
        {"user", ROLE_USER, ROLE_ANON | ROLE_USER},
        {"creator", ROLE_USER | ROLE_CREATOR, ROLE_ANON | ROLE_USER | ROLE_CREATOR},
        {"admin", ROLE_ADMIN, ROLE_ANON | ROLE_USER | ROLE_CREATOR | ROLE_ADMIN},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        AUTO(buf_done) struct buf token = token_of(rows[i].roles, w.session_secret, 600000);
        check_caller(rows[i].who, w.as_client, buf_str(&token), rows[i].have);
    }
}

static void test_nodes_reach_what_their_grants_allow(void **state)
{
    (void)state;
    for (unsigned i = 0; i < N_NODE_ROLES; i++)
        check_caller(svc_role_name(1U << (8 + i)), w.as_node[i], NULL, ROLE_ANON | 1U << (8 + i));
}

static void test_newcomer_reaches_enrolment_and_nothing_else(void **state)
{
    (void)state;
    AUTO(buf_done) struct buf token = token_of(ROLE_ADMIN, w.session_secret, 600000);

    assert_int_equal(rule_of("cauce.enrol.v1.Enrol.Join")->allow, ROLE_JOINER);
    check_caller("newcomer with a token", w.as_newcomer, buf_str(&token), ROLE_JOINER);
}

static void test_node_that_passes_a_users_token_is_both(void **state)
{
    (void)state;
    AUTO(buf_done) struct buf token = token_of(ROLE_USER, w.session_secret, 600000);

    check_caller("orchestrator for a user", w.as_node[1], buf_str(&token),
                 ROLE_ANON | ROLE_USER | ROLE_NODE_ORCHESTRATOR);
}

static void check_token_refused(const char *what, const char *token)
{
    for (size_t s = 0; s < cauce_n_services; s++) {
        for (size_t i = 0; i < cauce_services[s]->n_methods; i++) {
            const struct rpc_method *m = &cauce_services[s]->methods[i];
            enum status got = call(w.as_client, m, token);
            if (got != STATUS_UNAUTHENTICATED)
                fail_msg("%s on %s: %s", what, m->name, status_name(got));
        }
    }
}

static void test_bad_tokens_reach_nothing(void **state)
{
    (void)state;
    AUTO(buf_done) struct buf expired = token_of(ROLE_ADMIN, w.session_secret, -1);
    AUTO(buf_done) struct buf forged = token_of(ROLE_ADMIN, w.stranger_secret, 600000);
    AUTO(buf_done) struct buf by_store = token_of(ROLE_ADMIN, w.store_secret, 600000);
    AUTO(buf_done) struct buf changed = token_of(ROLE_USER, w.session_secret, 600000);
    AUTO(buf_done) struct buf media = {0};
    struct svc_media_claims claims = {
        .sub = "u", .item = "i", .rights = 3, .exp_wall_ms = time_wall_ms() + 600000};
    struct err err = ERR_INIT;

    buf_init(&media, 8192);
    assert_int_equal(svc_token_mint_media(w.store_secret, &claims, &media, &err), STATUS_OK);
    changed.data[20] ^= 1;
    check_token_refused("an expired token", buf_str(&expired));
    check_token_refused("a forged token", buf_str(&forged));
    check_token_refused("a token of the store", buf_str(&by_store));
    check_token_refused("a changed token", buf_str(&changed));
    check_token_refused("a media token", buf_str(&media));
    check_token_refused("no token at all", "v4.public.");
    check_token_refused("words", "let me in");
}

static void test_wrong_links_are_not_served(void **state)
{
    (void)state;
    const struct rpc_method *any = &cauce_services[0]->methods[0];
    struct rpc_client *anonymous_to_nodes = make_client(NODE_URL, NULL, 0);
    struct rpc_client *node_to_clients = make_client(CLIENT_URL, &w.nodes[5], 0);
    struct rpc_client *expects_store = make_client(NODE_URL, &w.nodes[5], ROLE_NODE_STORE);
    struct rpc_client *const wrong[] = {anonymous_to_nodes, node_to_clients, expects_store};

    for (size_t i = 0; i < N_ELEMENTS(wrong); i++) {
        struct rpc_opts o = {.deadline_us = time_deadline_in_ms(300), .max_attempts = 1};
        AUTO(mem_free_p) ProtobufCMessage *req = mem_alloc(any->request->sizeof_message);
        AUTO(rpc_message_free_p) ProtobufCMessage *reply = NULL;
        struct err err = ERR_INIT;
        protobuf_c_message_init(any->request, req);
        enum status s = rpc_unary(wrong[i], any, &o, req, &reply, &err);
        assert_true(s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED);
        rpc_client_free(wrong[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generated_table_is_what_the_proto_files_say),
        cmocka_unit_test(test_anonymous_client_reaches_only_anon_methods),
        cmocka_unit_test(test_users_reach_what_their_roles_allow),
        cmocka_unit_test(test_nodes_reach_what_their_grants_allow),
        cmocka_unit_test(test_newcomer_reaches_enrolment_and_nothing_else),
        cmocka_unit_test(test_node_that_passes_a_users_token_is_both),
        cmocka_unit_test(test_bad_tokens_reach_nothing),
        cmocka_unit_test(test_wrong_links_are_not_served),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
