// Who may call what: every method of every service against every kind of caller, over real sealed
// connections, with the .proto files' own text as the measure. Then tokens that must not pass.
#include <dirent.h>
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
#define N_NODE_ROLES 7
#define FIRST_NODE_ROLE 8
_Static_assert(ROLE_NODE_ANY == ((1U << N_NODE_ROLES) - 1) << FIRST_NODE_ROLE, "a role is missing");

// A server's way to run handlers: a refusal must not depend on it.
enum style { INLINE, POOLED, DEFERRED, N_STYLES };
// Those who call: a node of each role, whoever has no key, and a newcomer.
enum caller { CLIENT = N_NODE_ROLES, NEWCOMER, N_CALLERS };

struct house { // one server of each style, and a client of it for each caller
    enum style style;
    struct rpc_server *rpc;
    char urls[3][64]; // for nodes, clients, newcomers
    struct rpc_client *clients[N_CALLERS];
    struct rpc_service services[32]; // the generated ones, but for who runs their handlers
    struct rpc_method methods[256];
    size_t n_services, n_methods;
};

struct world {
    uint8_t operator_secret[64], session_secret[64], stranger_secret[64], store_secret[64];
    struct chan_trust trust;
    struct chan_identity server, nodes[N_NODE_ROLES];
    struct svc_nodes *ini;
    struct svc_tokens *tokens;
    struct work_pool *pool;
    struct chan_join join;
    struct house houses[N_STYLES];
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

static void read_proto_file(const char *folder, const char *name)
{
    static char text[1 << 18];
    char path[512];

    snprintf(path, sizeof(path), "%.300s/%.200s", folder, name);
    FILE *f = fopen(path, "re");
    if (!f)
        fail_msg("cannot open %s", path);
    size_t n = fread(text, 1, sizeof(text) - 1, f);
    assert_true(n < sizeof(text) - 1);
    fclose(f);
    text[n] = '\0';
    read_proto_text(text);
}

static void read_protos(void)
{
    const char *source = getenv("CAUCE_SOURCE_DIR");
    char folder[400];

    snprintf(folder, sizeof(folder), "%.300s/proto/cauce", source ? source : ".");
    DIR *d = opendir(folder);
    if (!d)
        fail_msg("cannot open %s", folder);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (str_ends_with(e->d_name, ".proto") && !str_eq(e->d_name, "options.proto"))
            read_proto_file(folder, e->d_name);
    closedir(d);
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
    const struct house *h = rpc_call_self(c);
    enum status s = err_set(err, REACHED, "reached");

    (void)handler;
    (void)req;
    (void)ret;
    if (h->style != DEFERRED)
        return s;
    rpc_call_defer(c);
    rpc_call_finish(c, s, NULL, err);
    return STATUS_OK;
}

static void no_handler(void)
{
}

// The generated service, run in the house's style. Handlers of streams are never run inline.
static const struct rpc_service *in_style(struct house *h, const struct rpc_service *s)
{
    struct rpc_method *methods = &h->methods[h->n_methods];

    assert_true(h->n_services < N_ELEMENTS(h->services) &&
                h->n_methods + s->n_methods <= N_ELEMENTS(h->methods));
    memcpy(methods, s->methods, s->n_methods * sizeof(*methods));
    for (size_t i = 0; i < s->n_methods; i++)
        methods[i].run_inline = h->style == INLINE && methods[i].kind == RPC_UNARY;
    h->n_methods += s->n_methods;
    h->services[h->n_services] = *s;
    h->services[h->n_services].methods = methods;
    return &h->services[h->n_services++];
}

static void add_service(struct house *h, const struct rpc_service *s)
{
    rpc_thunk thunks[64];
    void (*handlers[64])(void);
    struct err err = ERR_INIT;

    assert_true(s->n_methods <= N_ELEMENTS(thunks));
    for (size_t i = 0; i < s->n_methods; i++) {
        thunks[i] = reached;
        handlers[i] = no_handler;
    }
    assert_int_equal(rpc_server_add(h->rpc, in_style(h, s), thunks, handlers, h, &err), STATUS_OK);
}

static void make_identity(struct chan_identity *id, unsigned role, const uint8_t signer[64])
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
    assert_int_equal(chan_grant_sign(&b, &g, signer, &err), STATUS_OK);
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

static struct rpc_client *make_newcomer(const char *url)
{
    struct chan_identity id = {0};
    struct rpc_endpoint e = {.url = url};
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

static bool house_start(struct house *h, enum style style)
{
    static const char *const kinds[] = {"nodes", "clients", "newcomers"};
    struct err err = ERR_INIT;
    struct rpc_server_opts o = {.identity = &w.server,
                                .trust = &w.trust,
                                .pool = w.pool,
                                .verify = svc_tokens_verify_access,
                                .verify_ud = w.tokens,
                                .join = find_secret};

    h->style = style;
    h->rpc = rpc_server_new(&o, &err);
    if (!h->rpc)
        return false;
    for (size_t i = 0; i < cauce_n_services; i++)
        add_service(h, cauce_services[i]);
    for (size_t i = 0; i < N_ELEMENTS(kinds); i++)
        snprintf(h->urls[i], sizeof(h->urls[i]), "inproc://access-test-%s-%d", kinds[i], style);
    if (rpc_server_listen(h->rpc, h->urls[0], false, NULL, &err) != STATUS_OK ||
        rpc_server_listen(h->rpc, h->urls[1], true, NULL, &err) != STATUS_OK ||
        rpc_server_listen_enrol(h->rpc, h->urls[2], NULL, &err) != STATUS_OK)
        return false;
    for (unsigned i = 0; i < N_NODE_ROLES; i++)
        h->clients[i] = make_client(h->urls[0], &w.nodes[i], ROLE_NODE_ORIGIN);
    h->clients[CLIENT] = make_client(h->urls[1], NULL, 0);
    h->clients[NEWCOMER] = make_newcomer(h->urls[2]);
    return true;
}

static int start(void **state)
{
    (void)state;
    struct err err = ERR_INIT;

    if (crypto_init(&err) != STATUS_OK)
        return -1;
    read_protos();
    crypto_ed25519_keypair(w.trust.operator_public, w.operator_secret);
    make_identity(&w.server, 12, w.operator_secret);
    for (unsigned i = 0; i < N_NODE_ROLES; i++)
        make_identity(&w.nodes[i], FIRST_NODE_ROLE + i, w.operator_secret);
    memset(&w.join, 7, sizeof(w.join));
    make_tokens();
    w.pool = work_pool_new("access", 2, 1000);
    for (unsigned i = 0; i < N_STYLES; i++)
        if (!house_start(&w.houses[i], (enum style)i))
            return -1;
    return 0;
}

static int stop(void **state)
{
    (void)state;
    for (unsigned i = 0; i < N_STYLES; i++) {
        struct house *h = &w.houses[i];
        for (unsigned k = 0; k < N_CALLERS; k++)
            rpc_client_free(h->clients[k]);
        rpc_server_close(h->rpc);
        rpc_server_stop(h->rpc, 1000);
        rpc_server_free(h->rpc);
    }
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
static void check_house(const struct house *h, enum caller caller, const char *who,
                        const char *token, unsigned have)
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
            enum status got = call(h->clients[caller], m, token);
            if (got != want)
                fail_msg("%s calls %s (style %d): %s, expected %s", who, m->name, (int)h->style,
                         status_name(got), status_name(want));
        }
    }
    assert_int_equal(n, n_rules);
}

static void check_caller(enum caller caller, const char *who, const char *token, unsigned have)
{
    for (unsigned i = 0; i < N_STYLES; i++)
        check_house(&w.houses[i], caller, who, token, have);
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

// What users are, by their tokens.
static const struct {
    const char *who;
    unsigned roles, have;
} users[] = {
    {"a token without roles", 0, ROLE_ANON | ROLE_USER},
    {"user", ROLE_USER, ROLE_ANON | ROLE_USER},
    {"creator", ROLE_USER | ROLE_CREATOR, ROLE_ANON | ROLE_USER | ROLE_CREATOR},
    {"admin", ROLE_ADMIN, ROLE_ANON | ROLE_USER | ROLE_CREATOR | ROLE_ADMIN},
};

static void test_anonymous_client_reaches_only_anon_methods(void **state)
{
    (void)state;
    check_caller(CLIENT, "anonymous", NULL, ROLE_ANON);
}

static void test_users_reach_what_their_roles_allow(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(users); i++) {
        AUTO(buf_done) struct buf token = token_of(users[i].roles, w.session_secret, 600000);
        check_caller(CLIENT, users[i].who, buf_str(&token), users[i].have);
    }
}

static void test_nodes_reach_what_their_grants_allow(void **state)
{
    (void)state;
    for (unsigned i = 0; i < N_NODE_ROLES; i++) {
        unsigned bit = 1U << (FIRST_NODE_ROLE + i);
        check_caller((enum caller)i, svc_role_name(bit), NULL, ROLE_ANON | bit);
    }
}

// A refusal does not depend on who runs the handler, which all styles showed with one caller each:
// the whole table goes to the style that is fastest.
static void test_nodes_that_pass_a_users_token_are_both(void **state)
{
    (void)state;
    for (unsigned i = 0; i < N_NODE_ROLES; i++)
        for (size_t k = 0; k < N_ELEMENTS(users); k++) {
            unsigned bit = 1U << (FIRST_NODE_ROLE + i);
            char who[80];
            AUTO(buf_done) struct buf token = token_of(users[k].roles, w.session_secret, 600000);
            snprintf(who, sizeof(who), "%s for: %s", svc_role_name(bit), users[k].who);
            check_house(&w.houses[INLINE], (enum caller)i, who, buf_str(&token),
                        users[k].have | bit);
        }
}

static void test_newcomer_reaches_enrolment_and_nothing_else(void **state)
{
    (void)state;
    AUTO(buf_done) struct buf token = token_of(ROLE_ADMIN, w.session_secret, 600000);

    assert_int_equal(rule_of("cauce.enrol.v1.Enrol.Join")->allow, ROLE_JOINER);
    check_caller(NEWCOMER, "newcomer with a token", buf_str(&token), ROLE_JOINER);
}

static void check_token_refused_of(const struct house *h, enum caller caller, const char *what,
                                   const char *token)
{
    for (size_t s = 0; s < cauce_n_services; s++) {
        for (size_t i = 0; i < cauce_services[s]->n_methods; i++) {
            const struct rpc_method *m = &cauce_services[s]->methods[i];
            enum status got = call(h->clients[caller], m, token);
            if (got != STATUS_UNAUTHENTICATED)
                fail_msg("%s of caller %d on %s (style %d): %s", what, (int)caller, m->name,
                         (int)h->style, status_name(got));
        }
    }
}

static void check_token_refused(const char *what, const char *token)
{
    for (unsigned i = 0; i < N_STYLES; i++)
        check_token_refused_of(&w.houses[i], CLIENT, what, token);
    for (unsigned i = 0; i < N_NODE_ROLES; i++)
        check_token_refused_of(&w.houses[INLINE], (enum caller)i, what, token);
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
    check_token_refused("another installation's token", buf_str(&forged));
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
    const char *for_nodes = w.houses[POOLED].urls[0], *for_clients = w.houses[POOLED].urls[1];
    struct chan_identity foreign = {0};
    make_identity(&foreign, 9, w.stranger_secret);
    struct rpc_client *anonymous_to_nodes = make_client(for_nodes, NULL, 0);
    struct rpc_client *node_to_clients = make_client(for_clients, &w.nodes[5], 0);
    struct rpc_client *expects_store = make_client(for_nodes, &w.nodes[5], ROLE_NODE_STORE);
    struct rpc_client *of_another = make_client(for_nodes, &foreign, 0);
    struct rpc_client *const wrong[] = {anonymous_to_nodes, node_to_clients, expects_store,
                                        of_another};

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
        cmocka_unit_test(test_nodes_that_pass_a_users_token_are_both),
        cmocka_unit_test(test_bad_tokens_reach_nothing),
        cmocka_unit_test(test_wrong_links_are_not_served),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
