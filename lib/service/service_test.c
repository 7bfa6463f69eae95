// nodes.ini, tokens and the merging of options; processes are tested by services/cauced_test.
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
#include "crypto/crypto.h"
#include "service/internal.h"
#include "support/vectors.h"

// ---------------------------------------------------------------- nodes.ini

static enum status load_text(const char *text, struct svc_nodes **ret, struct err *err)
{
    char path[] = "/tmp/cauce-nodes-XXXXXX";
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    enum status s = svc_nodes_load(path, ret, err);
    unlink(path);
    return s;
}

#define KEY_A "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"
#define KEY_B "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI"
#define OPERATOR "[operator]\nkey = " KEY_B "\n"
#define NODE(id, role, rest) "[" id "]\nrole = " role "\nurl = ipc:///x\nkey = " KEY_A "\n" rest

static void test_nodes_are_read_in_order(void **state)
{
    (void)state;
    AUTO(svc_nodes_free_p) struct svc_nodes *n = NULL;
    struct err err = ERR_INIT;
    uint8_t key_b[32];

    memset(key_b, 2, sizeof(key_b));
    assert_int_equal(load_text(OPERATOR
                               "serial-floor = 17\n" NODE("video-1", "origin", "kind = video\n")
                                   NODE("session-1", "session", "token-key = " KEY_B "\n")
                                       NODE("audio-1", "origin", "kind = audio\n"),
                               &n, &err),
                     STATUS_OK);
    assert_memory_equal(svc_nodes_operator(n), key_b, 32);
    assert_int_equal(svc_nodes_serial_floor(n), 17);
    const struct svc_node *a = svc_nodes_next(n, ROLE_NODE_ORIGIN, NULL);
    assert_string_equal(a->id, "video-1");
    assert_string_equal(a->kind, "video");
    assert_string_equal(a->url, "ipc:///x");
    assert_int_equal(a->key[31], 1);
    a = svc_nodes_next(n, ROLE_NODE_ORIGIN, a);
    assert_string_equal(a->id, "audio-1");
    assert_null(svc_nodes_next(n, ROLE_NODE_ORIGIN, a));
    assert_null(svc_nodes_next(n, ROLE_NODE_STORE, NULL));
    a = svc_nodes_find(n, "session-1");
    assert_true(a->has_token_key);
    assert_memory_equal(a->token_key, key_b, 32);
    assert_null(svc_nodes_find(n, "nobody"));
}

static void test_nodes_broken_file_is_refused_and_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {NODE("a", "origin", ""), "no [operator] key"},
        {OPERATOR "[a]\nurl = ipc:///x\nkey = " KEY_A "\n", "[a] has no role"},
        {OPERATOR "[a]\nrole = origin\nkey = " KEY_A "\n", "[a] has no url"},
        {OPERATOR "[a]\nrole = origin\nurl = ipc:///x\n", "[a] has no key"},
        {OPERATOR NODE("a", "emperor", ""), "[a] role"},
        {OPERATOR NODE("a", "origin", "colour = blue\n"), "[a] colour"},
        {OPERATOR NODE("a", "session", "token-key = AQE\n"), "[a] token-key"},
        {OPERATOR "[a]\nurl = elsewhere\n", "[a] url"},
        {"[operator]\nkey = short\n", "[operator] key"},
        {OPERATOR "serial-floor = -1\n", "serial-floor"},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct svc_nodes *n = NULL;
        struct err err = ERR_INIT;
        assert_int_equal(load_text(rows[i].text, &n, &err), STATUS_INVALID_ARGUMENT);
        assert_null(n);
        if (!strstr(err.msg, rows[i].says))
            fail_msg("row %zu: '%s' does not say '%s'", i, err.msg, rows[i].says);
    }
    struct svc_nodes *n = NULL;
    assert_int_equal(svc_nodes_load("/nonexistent/nodes.ini", &n, NULL), STATUS_NOT_FOUND);
}

static char reload_path[64];

static int reload_setup(void **state)
{
    (void)state;
    strcpy(reload_path, "/tmp/cauce-nodes-XXXXXX");
    int fd = mkstemp(reload_path);
    if (fd >= 0)
        close(fd);
    return fd >= 0 ? 0 : -1;
}

static int reload_teardown(void **state)
{
    (void)state;
    return unlink(reload_path);
}

static void put_file(const char *text)
{
    FILE *f = fopen(reload_path, "we");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void test_nodes_reload_changes_what_is_asked_for_next(void **state)
{
    (void)state;
    AUTO(svc_nodes_free_p) struct svc_nodes *n = NULL;
    struct err err = ERR_INIT;

    put_file(OPERATOR NODE("video-1", "origin", "kind = video\n")
                 NODE("video-2", "origin", "kind = video\n"));
    assert_int_equal(svc_nodes_load(reload_path, &n, &err), STATUS_OK);
    const struct svc_node *one = svc_nodes_find(n, "video-1"), *two = svc_nodes_find(n, "video-2");
    put_file(OPERATOR NODE("video-3", "origin", "kind = video\n")
                 NODE("video-1", "origin", "kind = audio\nnext-key = " KEY_B "\n"));
    assert_int_equal(svc_nodes_reload(n, reload_path, &err), STATUS_OK);
    assert_string_equal(one->kind, "video"); // as it was handed out
    assert_string_equal(two->id, "video-2");
    assert_null(svc_nodes_find(n, "video-2"));
    const struct svc_node *now = svc_nodes_find(n, "video-1");
    assert_string_equal(now->kind, "audio");
    assert_true(now->has_next_key);
    assert_ptr_equal(svc_nodes_next(n, ROLE_NODE_ORIGIN, NULL), now);
    assert_ptr_equal(svc_nodes_next(n, ROLE_NODE_ORIGIN, one), svc_nodes_find(n, "video-3"));
    assert_null(svc_nodes_next(n, ROLE_NODE_ORIGIN, svc_nodes_find(n, "video-3")));
    assert_int_equal(svc_nodes_reload(n, reload_path, &err), STATUS_OK); // nothing new
    assert_ptr_equal(svc_nodes_find(n, "video-1"), now);
}

static void test_nodes_reload_of_a_broken_file_changes_nothing(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum status status;
    } rows[] = {
        {OPERATOR NODE("video-2", "emperor", ""), STATUS_INVALID_ARGUMENT},
        {"", STATUS_INVALID_ARGUMENT},
        {"[operator]\nkey = " KEY_A "\n" NODE("video-2", "origin", ""), STATUS_FAILED_PRECONDITION},
        {OPERATOR "revoked = video-1:soon\n", STATUS_INVALID_ARGUMENT},
    };
    AUTO(svc_nodes_free_p) struct svc_nodes *n = NULL;
    struct err err = ERR_INIT;

    put_file(OPERATOR NODE("video-1", "origin", ""));
    assert_int_equal(svc_nodes_load(reload_path, &n, &err), STATUS_OK);
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        put_file(rows[i].text);
        assert_int_equal(svc_nodes_reload(n, reload_path, &err), rows[i].status);
        assert_non_null(svc_nodes_find(n, "video-1"));
        assert_null(svc_nodes_find(n, "video-2"));
    }
    assert_int_equal(svc_nodes_reload(n, "/nonexistent/nodes.ini", &err), STATUS_NOT_FOUND);
    assert_non_null(svc_nodes_find(n, "video-1"));
}

static bool is_revoked(struct svc_nodes *n, const char *id, uint64_t serial, uint8_t key)
{
    struct chan_grant g = {.serial = serial};

    (void)str_copy(g.node_id, sizeof(g.node_id), id);
    memset(g.key, key, sizeof(g.key));
    return svc_nodes_is_revoked(n, &g);
}

static void test_grants_are_revoked_by_floor_by_name_and_by_removal(void **state)
{
    (void)state;
    AUTO(svc_nodes_free_p) struct svc_nodes *n = NULL;
    struct err err = ERR_INIT;

    put_file(OPERATOR "serial-floor = 10\nrevoked = w-1:20, w-2\nrevoked = w-3:30\n" NODE(
        "w-4", "transcode", ""));
    assert_int_equal(svc_nodes_load(reload_path, &n, &err), STATUS_OK);
    assert_true(is_revoked(n, "other", 9, 1));
    assert_false(is_revoked(n, "other", 10, 1));
    assert_true(is_revoked(n, "w-1", 20, 1));
    assert_false(is_revoked(n, "w-1", 21, 1));
    assert_true(is_revoked(n, "w-2", INT64_MAX, 1));
    assert_true(is_revoked(n, "w-3", 30, 1));
    assert_false(is_revoked(n, "w-4", 99, 1));
    put_file(OPERATOR NODE("w-1", "transcode", ""));
    assert_int_equal(svc_nodes_reload(n, reload_path, &err), STATUS_OK);
    assert_false(is_revoked(n, "w-1", 20, 1)); // taken back
    assert_true(is_revoked(n, "w-4", 99, 1));  // it was there, with this key
    assert_false(is_revoked(n, "w-4", 99, 2)); // and comes again with another
}

static void test_nodes_reload_says_whom_it_shuts_out(void **state)
{
    (void)state;
    AUTO(svc_nodes_free_p) struct svc_nodes *n = NULL;
    struct err err = ERR_INIT;
    char id[CHAN_NODE_ID_SIZE];

    put_file(OPERATOR "revoked = w-0:5\n" NODE("w-1", "transcode", "")
                 NODE("w-2", "transcode", ""));
    assert_int_equal(svc_nodes_load(reload_path, &n, &err), STATUS_OK);
    assert_false(svc_nodes_shut_out(n, 0, id));
    put_file(OPERATOR "revoked = w-0:5, w-1:9, w-3\n" NODE("w-2", "transcode", ""));
    assert_int_equal(svc_nodes_reload(n, reload_path, &err), STATUS_OK);
    assert_true(svc_nodes_shut_out(n, 0, id));
    assert_string_equal(id, "w-1");
    assert_true(svc_nodes_shut_out(n, 1, id));
    assert_string_equal(id, "w-3"); // known by its grant alone
    assert_false(svc_nodes_shut_out(n, 2, id));
    assert_int_equal(svc_nodes_reload(n, reload_path, &err), STATUS_OK);
    assert_false(svc_nodes_shut_out(n, 0, id)); // nothing new
    // A key that is retired is revoked, and its node stays.
    put_file(OPERATOR "revoked = w-0:5, w-1:9, w-3, w-2:7\n" NODE("w-2", "transcode", ""));
    assert_int_equal(svc_nodes_reload(n, reload_path, &err), STATUS_OK);
    assert_false(svc_nodes_shut_out(n, 0, id));
}

static void test_role_names_round_trip(void **state)
{
    (void)state;
    static const char *const names[] = {"session", "orchestrator", "transcode", "store",
                                        "origin",  "gateway",      "admin"};
    for (unsigned i = 0; i < N_ELEMENTS(names); i++) {
        assert_int_equal(svc_role_from_name(names[i]), 1U << (8 + i));
        assert_string_equal(svc_role_name(1U << (8 + i)), names[i]);
    }
    assert_int_equal(svc_role_from_name("user"), 0);
}

// ---------------------------------------------------------------- tokens

struct mint {
    uint8_t session[64], store[64], stranger[64];
    struct svc_nodes *nodes;
    struct svc_tokens *tokens;
};

static void mint_init(struct mint *m)
{
    char text[2048], a[64], b[64];
    uint8_t pub[32];
    struct err err = ERR_INIT;

    crypto_ed25519_keypair(pub, m->session);
    str_b64(a, pub, 32);
    crypto_ed25519_keypair(pub, m->store);
    str_b64(b, pub, 32);
    crypto_ed25519_keypair(pub, m->stranger);
    snprintf(text, sizeof(text),
             OPERATOR NODE("session-1", "session", "token-key = %s\n")
                 NODE("store-1", "store", "token-key = %s\n"),
             a, b);
    m->nodes = NULL;
    assert_int_equal(load_text(text, &m->nodes, &err), STATUS_OK);
    m->tokens = svc_tokens_new(m->nodes);
    assert_non_null(m->tokens);
}

static void mint_done(struct mint *m)
{
    svc_tokens_free(m->tokens);
    svc_nodes_free(m->nodes);
}

static struct rpc_user a_user(void)
{
    return (struct rpc_user){.id = "018f2b6e-7d3a-7c11-9a55-0123456789ab",
                             .name = "ann \"the\" \xc3\xa9",
                             .session = "018f2b6e-7d3a-7c11-9a55-ba9876543210",
                             .roles = ROLE_USER | ROLE_ADMIN,
                             .exp_wall_ms = (time_wall_ms() / 1000 + 600) * 1000};
}

static struct svc_media_claims some_claims(void)
{
    return (struct svc_media_claims){.sub = "018f2b6e-7d3a-7c11-9a55-0123456789ab",
                                     .item = "018f2b6e-0000-7c11-9a55-0123456789ab",
                                     .rights = SVC_RIGHT_STREAM,
                                     .exp_wall_ms = (time_wall_ms() / 1000 + 600) * 1000};
}

static void mint_access(struct buf *b, const uint8_t secret[64], const struct rpc_user *u)
{
    struct err err = ERR_INIT;

    buf_init(b, 8192);
    assert_int_equal(svc_token_mint_access(secret, u, b, &err), STATUS_OK);
}

static enum status verify_access(struct mint *m, const struct buf *token, struct rpc_user *ret)
{
    struct err err = ERR_INIT;

    return svc_tokens_verify_access(m->tokens, buf_str(token), token->len, ret, &err);
}

static void test_access_token_round_trip(void **state)
{
    (void)state;
    struct mint m;
    struct rpc_user u = a_user(), got;
    AUTO(buf_done) struct buf token = {0};

    mint_init(&m);
    mint_access(&token, m.session, &u);
    assert_true(str_starts_with(buf_str(&token), "v4.public."));
    for (int i = 0; i < 2; i++) { // the second time from the cache
        memset(&got, 0, sizeof(got));
        assert_int_equal(verify_access(&m, &token, &got), STATUS_OK);
        assert_string_equal(got.id, u.id);
        assert_string_equal(got.name, u.name);
        assert_string_equal(got.session, u.session);
        assert_int_equal(got.roles, u.roles);
        assert_int_equal(got.exp_wall_ms, u.exp_wall_ms);
    }
    mint_done(&m);
}

static void test_media_token_round_trip(void **state)
{
    (void)state;
    struct mint m;
    struct svc_media_claims c = some_claims(), got = {0};
    AUTO(buf_done) struct buf token = {0};
    struct err err = ERR_INIT;

    mint_init(&m);
    buf_init(&token, 8192);
    assert_int_equal(svc_token_mint_media(m.store, &c, &token, &err), STATUS_OK);
    assert_int_equal(svc_tokens_verify_media(m.tokens, buf_str(&token), &got, &err), STATUS_OK);
    assert_string_equal(got.sub, c.sub);
    assert_string_equal(got.item, c.item);
    assert_int_equal(got.rights, SVC_RIGHT_STREAM);
    assert_int_equal(got.exp_wall_ms, c.exp_wall_ms);
    mint_done(&m);
}

static void test_token_of_the_other_purpose_is_refused(void **state)
{
    (void)state;
    struct mint m;
    struct rpc_user u = a_user();
    struct svc_media_claims c = some_claims();
    AUTO(buf_done) struct buf access = {0};
    AUTO(buf_done) struct buf media = {0};
    struct err err = ERR_INIT;

    mint_init(&m);
    mint_access(&access, m.session, &u);
    buf_init(&media, 8192);
    assert_int_equal(svc_token_mint_media(m.store, &c, &media, &err), STATUS_OK);
    assert_int_equal(svc_tokens_verify_media(m.tokens, buf_str(&access), &c, &err),
                     STATUS_UNAUTHENTICATED);
    assert_int_equal(verify_access(&m, &media, &u), STATUS_UNAUTHENTICATED);
    mint_done(&m);
}

static void test_token_signed_by_the_wrong_node_is_refused(void **state)
{
    (void)state;
    struct mint m;
    struct rpc_user u = a_user(), got;
    AUTO(buf_done) struct buf by_store = {0};
    AUTO(buf_done) struct buf by_stranger = {0};

    mint_init(&m);
    mint_access(&by_store, m.store, &u); // the store mints media tokens only
    mint_access(&by_stranger, m.stranger, &u);
    assert_int_equal(verify_access(&m, &by_store, &got), STATUS_UNAUTHENTICATED);
    assert_int_equal(verify_access(&m, &by_stranger, &got), STATUS_UNAUTHENTICATED);
    mint_done(&m);
}

static void test_changed_or_cut_token_is_refused(void **state)
{
    (void)state;
    struct mint m;
    struct rpc_user u = a_user(), got;
    AUTO(buf_done) struct buf token = {0};
    struct err err = ERR_INIT;

    mint_init(&m);
    mint_access(&token, m.session, &u);
    assert_int_equal(verify_access(&m, &token, &got), STATUS_OK); // it is in the cache now
    for (size_t i = 0; i < token.len; i++) {
        token.data[i] ^= 1;
        assert_int_equal(verify_access(&m, &token, &got), STATUS_UNAUTHENTICATED);
        token.data[i] ^= 1;
        assert_int_equal(svc_tokens_verify_access(m.tokens, buf_str(&token), i, &got, &err),
                         STATUS_UNAUTHENTICATED);
    }
    assert_int_equal(verify_access(&m, &token, &got), STATUS_OK);
    mint_done(&m);
}

static void test_expired_token_is_refused_also_when_cached(void **state)
{
    (void)state;
    struct mint m;
    struct rpc_user u = a_user(), got;
    AUTO(buf_done) struct buf old = {0};
    AUTO(buf_done) struct buf brief = {0};

    mint_init(&m);
    u.exp_wall_ms = time_wall_ms() - 1;
    mint_access(&old, m.session, &u);
    assert_int_equal(verify_access(&m, &old, &got), STATUS_UNAUTHENTICATED);
    // A machine that is busy elsewhere lets a life go by; the next is twice as long.
    enum status s = STATUS_UNAUTHENTICATED;
    for (int64_t life_ms = 30; s != STATUS_OK && life_ms < 4000; life_ms *= 2) {
        buf_done(&brief);
        u.exp_wall_ms = time_wall_ms() + life_ms;
        mint_access(&brief, m.session, &u);
        s = verify_access(&m, &brief, &got);
    }
    assert_int_equal(s, STATUS_OK);
    while (time_wall_ms() < u.exp_wall_ms) // until the moment itself, and not longer
        assert_true(verify_access(&m, &brief, &got) == STATUS_OK ||
                    time_wall_ms() >= u.exp_wall_ms);
    assert_int_equal(verify_access(&m, &brief, &got), STATUS_UNAUTHENTICATED);
    mint_done(&m);
}

static void test_tokens_follow_the_keys_of_the_list(void **state)
{
    (void)state;
    struct mint m;
    struct rpc_user u = a_user(), got;
    struct err err = ERR_INIT;
    char text[1024], old[64], new[64];
    AUTO(buf_done) struct buf by_old = {0};
    AUTO(buf_done) struct buf by_new = {0};

    mint_init(&m);
    mint_access(&by_old, m.session, &u);
    mint_access(&by_new, m.stranger, &u);
    str_b64(old, m.session + 32, 32);
    str_b64(new, m.stranger + 32, 32);
    assert_int_equal(verify_access(&m, &by_old, &got), STATUS_OK);
    assert_int_equal(verify_access(&m, &by_new, &got), STATUS_UNAUTHENTICATED);
    snprintf(text, sizeof(text),
             OPERATOR NODE("session-1", "session", "token-key = %s\nnext-token-key = %s\n"), old,
             new);
    put_file(text);
    assert_int_equal(svc_nodes_reload(m.nodes, reload_path, &err), STATUS_OK);
    assert_int_equal(svc_tokens_update(m.tokens, m.nodes, &err), STATUS_OK);
    assert_int_equal(verify_access(&m, &by_old, &got), STATUS_OK);
    assert_int_equal(verify_access(&m, &by_new, &got), STATUS_OK);
    snprintf(text, sizeof(text), OPERATOR NODE("session-1", "session", "token-key = %s\n"), new);
    put_file(text);
    assert_int_equal(svc_nodes_reload(m.nodes, reload_path, &err), STATUS_OK);
    assert_int_equal(svc_tokens_update(m.tokens, m.nodes, &err), STATUS_OK);
    assert_int_equal(verify_access(&m, &by_old, &got),
                     STATUS_UNAUTHENTICATED); // though it was kept
    assert_int_equal(verify_access(&m, &by_new, &got), STATUS_OK);
    mint_done(&m);
}

static void test_well_signed_nonsense_is_refused(void **state)
{
    (void)state;
    static const char *const claims[] = {
        "",
        "[]",
        "{}",
        "{\"sub\":\"u\",\"name\":\"n\",\"sid\":\"s\",\"roles\":[]}",                    // no exp
        "{\"sub\":\"u\",\"name\":\"n\",\"sid\":\"s\",\"roles\":[],\"exp\":4102444800}", // not a
                                                                                        // string
        "{\"sub\":\"\",\"name\":\"n\",\"sid\":\"s\",\"roles\":[],\"exp\":\"2100-01-01T00:00:00Z\"}",
        "{\"sub\":\"u\",\"name\":\"n\",\"sid\":\"s\",\"roles\":\"admin\",\"exp\":\"2100-01-01T00:"
        "00:00Z\"}",
        "{\"sub\":\"0123456789012345678901234567890123456789\",\"name\":\"n\",\"sid\":\"s\","
        "\"roles\":[],\"exp\":\"2100-01-01T00:00:00Z\"}",
    };
    static const char good[] = "{\"sub\":\"u\",\"name\":\"n\",\"sid\":\"s\",\"roles\":[\"user\","
                               "\"emperor\"],\"exp\":\"2100-01-01T00:00:00Z\"}";
    struct mint m;
    struct rpc_user got;
    struct err err = ERR_INIT;
    char id[SVC_KEY_ID_SIZE], footer[100];

    mint_init(&m);
    svc_token_key_id(id, m.session + 32);
    snprintf(footer, sizeof(footer), "{\"kid\":\"%s\"}", id);
    for (size_t i = 0; i <= N_ELEMENTS(claims); i++) {
        const char *c = i < N_ELEMENTS(claims) ? claims[i] : good;
        AUTO(buf_done) struct buf token = {0};
        buf_init(&token, 8192);
        assert_int_equal(
            crypto_paseto_sign(&token, m.session, c, strlen(c), footer, "cauce-access/1", &err),
            STATUS_OK);
        assert_int_equal(verify_access(&m, &token, &got),
                         c == good ? STATUS_OK : STATUS_UNAUTHENTICATED);
    }
    assert_int_equal(got.roles, ROLE_USER); // an unknown role grants nothing
    mint_done(&m);
}

static void test_cache_stays_bounded_and_right(void **state)
{
    (void)state;
    struct mint m;
    struct rpc_user u = a_user(), got;

    mint_init(&m);
    for (int round = 0; round < 3000; round++) {
        AUTO(buf_done) struct buf token = {0};
        snprintf(u.name, sizeof(u.name), "user %d", round);
        mint_access(&token, m.session, &u);
        assert_int_equal(verify_access(&m, &token, &got), STATUS_OK);
        assert_string_equal(got.name, u.name);
    }
    mint_done(&m);
}

static void test_key_ids_are_paserk(void **state)
{
    (void)state;
    struct vectors *all = vectors_open("paseto_k4.pid.json", "tests");
    uint8_t key[32];
    char id[SVC_KEY_ID_SIZE];
    size_t n = 0;

    if (!all)
        skip();
    for (size_t i = 0; i < vectors_n(all); i++) {
        const struct vector *v = vectors_at(all, i);
        if (vector_bool(v, "expect-fail") || vector_hex(v, "key", key, sizeof(key)) != 32)
            continue;
        svc_token_key_id(id, key);
        assert_string_equal(id, vector_str(v, "paserk"));
        n++;
    }
    vectors_close(all);
    assert_true(n >= 3);
}

// ---------------------------------------------------------------- options

struct demo_options {
    struct svc_options common;
    char *data, *kind;
    bool loud;
};
#define DEMO(field) offsetof(struct demo_options, field)
static const struct cfg_option demo_rows[] = {
    {"data", CFG_STRING, DEMO(data), NULL, 0, 0, "where"},
    {"kind", CFG_STRING, DEMO(kind), "video", 0, 0, "what"},
    {"loud", CFG_BOOL, DEMO(loud), NULL, 0, 0, "how"},
};
static const struct svc_role demo_role = {
    .name = "origin",
    .role = ROLE_NODE_ORIGIN,
    .spec = {.section = "origin",
             .usage = "demo",
             .options = demo_rows,
             .n_options = N_ELEMENTS(demo_rows)},
    .options_size = sizeof(struct demo_options),
};
static const struct svc_role bare_role = {
    .name = "store",
    .role = ROLE_NODE_STORE,
    .spec = {.section = "store", .usage = "bare"},
    .options_size = sizeof(struct svc_options),
};
static const struct svc_role *const both[] = {&demo_role, &bare_role};

static enum status load(struct instance *in, const struct svc_role *role, const char *node,
                        bool only, const char *const *words, struct err *err)
{
    char *argv[16] = {NULL};
    int argc = 0;
    struct role_word w = {.role = role};

    for (; words[argc]; argc++)
        argv[argc] = (char *)(uintptr_t)words[argc];
    snprintf(w.node, sizeof(w.node), "%s", node);
    memset(in, 0, sizeof(*in));
    return instance_load_options(in, &w, only, both, N_ELEMENTS(both), argc, argv, err);
}

static void test_options_of_one_role(void **state)
{
    (void)state;
    struct instance in;
    struct err err = ERR_INIT;
    const char *const words[] = {"--threads=3", "--data",   "/srv", "--no-loud", "--listen",
                                 "a",           "--listen", "b",    NULL};

    assert_int_equal(load(&in, &demo_role, "", true, words, &err), STATUS_OK);
    const struct demo_options *o = in.options;
    assert_int_equal(o->common.threads, 3);
    assert_int_equal(o->common.drain_ms, 3000);
    assert_string_equal(o->common.log_level, "info");
    assert_string_equal(o->common.listen[1], "b");
    assert_string_equal(o->data, "/srv");
    assert_string_equal(instance_kind(&in), "video");
    instance_free_options(&in);
    const char *const wrong[] = {"--colour", "blue", NULL};
    assert_int_equal(load(&in, &demo_role, "", true, wrong, &err), STATUS_INVALID_ARGUMENT);
    instance_free_options(&in);
}

static void test_options_of_several_roles_go_where_they_are_known(void **state)
{
    (void)state;
    struct instance in;
    struct err err = ERR_INIT;
    const char *const words[] = {"--data", "/srv/{node}", "--loud", "--threads", "5", NULL};
    const char *const wrong[] = {"--data", "/srv", "--colour", "blue", NULL};

    assert_int_equal(load(&in, &bare_role, "store-7", false, words, &err), STATUS_OK);
    assert_int_equal(instance_options(&in)->threads, 5);
    assert_string_equal(instance_options(&in)->node, "store-7");
    assert_null(instance_kind(&in));
    instance_free_options(&in);

    assert_int_equal(load(&in, &demo_role, "video-1", false, words, &err), STATUS_OK);
    const struct svc_node self = {.id = "video-1"};
    in.svc.self = &self;
    assert_int_equal(instance_expand_node(&in, &err), STATUS_OK);
    const struct demo_options *o = in.options;
    assert_string_equal(o->data, "/srv/video-1");
    assert_true(o->loud);
    instance_free_options(&in);

    assert_int_equal(load(&in, &bare_role, "", false, wrong, &err), STATUS_INVALID_ARGUMENT);
    instance_free_options(&in);
    const char *const other_node[] = {"--node", "a", NULL};
    assert_int_equal(load(&in, &bare_role, "b", true, other_node, &err), STATUS_INVALID_ARGUMENT);
    instance_free_options(&in);
}

static void test_options_file_has_a_section_per_named_node(void **state)
{
    (void)state;
    char path[] = "/tmp/cauce-options-XXXXXX";
    static const char text[] = "[origin]\ndata = /role\n[video-1]\ndata = /node\n";
    int fd = mkstemp(path);
    struct instance in;
    struct err err = ERR_INIT;
    const char *const words[] = {"--config", path, NULL};

    assert_int_equal(write(fd, text, sizeof(text) - 1), sizeof(text) - 1);
    close(fd);
    assert_int_equal(load(&in, &demo_role, "", true, words, &err), STATUS_OK);
    assert_string_equal(((struct demo_options *)in.options)->data, "/role");
    instance_free_options(&in);
    assert_int_equal(load(&in, &demo_role, "video-1", true, words, &err), STATUS_OK);
    assert_string_equal(((struct demo_options *)in.options)->data, "/node");
    instance_free_options(&in);
    unlink(path);
}

static int start(void **state)
{
    (void)state;
    struct err err = ERR_INIT;

    return crypto_init(&err) == STATUS_OK ? 0 : -1;
}

struct asked {
    struct svc_gauge *gauge;
    int n;
    bool nested;
};

static enum status answer_no(void *ud, struct err *err)
{
    struct asked *a = ud;
    char reason[64] = "";
    a->n++;
    // As another thread would while this one waits for the database.
    a->nested = svc_gauge_read(a->gauge, answer_no, a, reason, sizeof(reason));
    assert_string_equal(reason, "starting");
    return err_set(err, STATUS_UNAVAILABLE, "the database is away");
}

static void test_gauge_asks_once_and_tells_others_what_it_knows(void **state)
{
    struct svc_gauge g;
    char reason[64] = "";
    (void)state;
    svc_gauge_init(&g);
    struct asked a = {.gauge = &g, .nested = true};
    assert_false(svc_gauge_read(&g, answer_no, &a, reason, sizeof(reason)));
    assert_false(a.nested);
    assert_string_equal(reason, "the database is away");
    assert_false(svc_gauge_read(&g, answer_no, &a, reason, sizeof(reason))); // within the second
    assert_int_equal(a.n, 1);
    svc_gauge_done(&g);
}

// ---------------------------------------------------------------- where events are published

static void test_events_are_published_beside_our_address(void **state)
{
    static const struct {
        const char *listen, *want;
    } rows[] = {
        {"ipc:///run/cauce/session-1.sock", "ipc:///run/cauce/session-1.pub"},
        {"ipc:///run/cauce/session-1", "ipc:///run/cauce/session-1.pub"},
        {"inproc://store-1", "inproc://store-1.pub"},
        {"tcp://127.0.0.1:7401", "tcp://127.0.0.1:0"},
        {"tcp://[::1]:7401", "tcp://[::1]:0"},
    };
    char url[RPC_URL_SIZE], too_long[RPC_URL_SIZE];
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        assert_int_equal(svc_publish_url(rows[i].listen, url, NULL), STATUS_OK);
        assert_string_equal(url, rows[i].want);
    }
    memset(too_long, 'x', sizeof(too_long));
    memcpy(too_long, "ipc:///", 7);
    too_long[sizeof(too_long) - 1] = '\0';
    assert_int_equal(svc_publish_url(too_long, url, NULL), STATUS_INVALID_ARGUMENT);
}

static void test_followers_are_told_the_host_that_they_know(void **state)
{
    static const struct {
        const char *url, *known_as, *want;
    } rows[] = {
        {"tcp://0.0.0.0:0", "tcp://session:7401", "tcp://session:0"},
        {"tcp://0.0.0.0:7411", "tcp://session:7401", "tcp://session:7411"},
        {"tcp://[::]:7411", "tcp://[fd00::1]:7401", "tcp://[fd00::1]:7411"},
        {"tcp://127.0.0.1:0", "ipc:///run/session.sock", ""},
        {"ipc:///run/session.pub", "tcp://session:7401", ""},
    };
    char as[RPC_URL_SIZE];
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        assert_int_equal(svc_publish_as(rows[i].url, rows[i].known_as, as, NULL), STATUS_OK);
        assert_string_equal(as, rows[i].want);
    }
}

#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, reload_setup, reload_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gauge_asks_once_and_tells_others_what_it_knows),
        cmocka_unit_test(test_nodes_are_read_in_order),
        cmocka_unit_test(test_nodes_broken_file_is_refused_and_named),
        WITH_FILE(test_nodes_reload_changes_what_is_asked_for_next),
        WITH_FILE(test_nodes_reload_of_a_broken_file_changes_nothing),
        WITH_FILE(test_grants_are_revoked_by_floor_by_name_and_by_removal),
        WITH_FILE(test_nodes_reload_says_whom_it_shuts_out),
        WITH_FILE(test_tokens_follow_the_keys_of_the_list),
        cmocka_unit_test(test_role_names_round_trip),
        cmocka_unit_test(test_access_token_round_trip),
        cmocka_unit_test(test_media_token_round_trip),
        cmocka_unit_test(test_token_of_the_other_purpose_is_refused),
        cmocka_unit_test(test_token_signed_by_the_wrong_node_is_refused),
        cmocka_unit_test(test_changed_or_cut_token_is_refused),
        cmocka_unit_test(test_expired_token_is_refused_also_when_cached),
        cmocka_unit_test(test_well_signed_nonsense_is_refused),
        cmocka_unit_test(test_cache_stays_bounded_and_right),
        cmocka_unit_test(test_key_ids_are_paserk),
        cmocka_unit_test(test_events_are_published_beside_our_address),
        cmocka_unit_test(test_followers_are_told_the_host_that_they_know),
        cmocka_unit_test(test_options_of_one_role),
        cmocka_unit_test(test_options_of_several_roles_go_where_they_are_known),
        cmocka_unit_test(test_options_file_has_a_section_per_named_node),
    };

    return cmocka_run_group_tests(tests, start, NULL);
}
