// PASETO v4 against the published vectors and, with or without them, against a second, deliberately
// plain implementation of the specification written here.
#include "crypto/crypto.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "support/vectors.h"

#define MAX 4096

static struct buf new_buf(void)
{
    struct buf b;

    buf_init(&b, MAX);
    return b;
}

// ---------------------------------------------------------------- published vectors

static enum status read_token(const struct vector *v, struct buf *payload, bool public)
{
    const char *token = vector_str(v, "token"), *footer = vector_str(v, "footer");
    const char *implicit = vector_str(v, "implicit-assertion");
    uint8_t key[32];
    struct err err = ERR_INIT;

    if (public) {
        assert_int_equal(vector_hex(v, "public-key", key, 32), 32);
        return crypto_paseto_verify(payload, key, token, strlen(token), footer, implicit, &err);
    }
    assert_int_equal(vector_hex(v, "key", key, 32), 32);
    return crypto_paseto_decrypt(payload, key, token, strlen(token), footer, implicit, &err);
}

static void write_token(const struct vector *v, struct buf *token, bool public)
{
    const char *payload = vector_str(v, "payload"), *footer = vector_str(v, "footer");
    const char *implicit = vector_str(v, "implicit-assertion");
    uint8_t key[64], nonce[32];
    struct err err = ERR_INIT;

    if (public) {
        assert_int_equal(vector_hex(v, "secret-key", key, 64), 64);
        assert_int_equal(
            crypto_paseto_sign(token, key, payload, strlen(payload), footer, implicit, &err),
            STATUS_OK);
        return;
    }
    assert_int_equal(vector_hex(v, "key", key, 64), 32);
    assert_int_equal(vector_hex(v, "nonce", nonce, 32), 32);
    assert_int_equal(
        crypto_paseto_encrypt(token, key, nonce, payload, strlen(payload), footer, implicit, &err),
        STATUS_OK);
}

static void test_paseto_published_vectors(void **state)
{
    (void)state;
    struct vectors *all = vectors_open("paseto_v4.json", "tests");
    if (!all)
        skip();

    size_t n_good = 0, n_bad = 0;
    for (size_t i = 0; i < vectors_n(all); i++) {
        const struct vector *v = vectors_at(all, i);
        AUTO(buf_done) struct buf payload = new_buf();
        AUTO(buf_done) struct buf token = new_buf();
        bool public = vector_str(v, "public-key") != NULL;
        enum status s = read_token(v, &payload, public);
        if (vector_bool(v, "expect-fail")) {
            assert_int_equal(s, STATUS_UNAUTHENTICATED);
            assert_int_equal(payload.len, 0);
            n_bad++;
            continue;
        }
        assert_int_equal(s, STATUS_OK);
        assert_string_equal(buf_str(&payload), vector_str(v, "payload"));
        write_token(v, &token, public);
        assert_string_equal(buf_str(&token), vector_str(v, "token"));
        n_good++;
    }
    vectors_close(all);
    assert_int_equal(n_good, 12);
    assert_int_equal(n_bad, 5);
}

// ---------------------------------------------------------------- a second implementation

static size_t plain_pae(uint8_t *out, const char *const *pieces, const size_t *sizes, size_t n)
{
    size_t at = 0;

    memset(out, 0, MAX);
    out[0] = (uint8_t)n;
    at = 8;
    for (size_t i = 0; i < n; i++) {
        out[at] = (uint8_t)sizes[i];
        out[at + 1] = (uint8_t)(sizes[i] >> 8);
        at += 8;
        memcpy(out + at, pieces[i], sizes[i]);
        at += sizes[i];
    }
    return at;
}

static void plain_sign(char *token, const uint8_t sec[64], const char *msg, const char *footer,
                       const char *implicit)
{
    uint8_t m2[MAX], body[MAX];
    size_t n = plain_pae(m2, (const char *const[]){"v4.public.", msg, footer, implicit},
                         (const size_t[]){10, strlen(msg), strlen(footer), strlen(implicit)}, 4);

    memcpy(body, msg, strlen(msg));
    crypto_ed25519_sign(body + strlen(msg), sec, m2, n);
    strcpy(token, "v4.public.");
    str_b64(token + 10, body, strlen(msg) + 64);
    if (*footer) {
        strcat(token, ".");
        str_b64(token + strlen(token), footer, strlen(footer));
    }
}

static const char *const words[] = {"", "a", "{\"sub\":\"x\"}", "a somewhat longer piece of text"};

static void test_paseto_public_agrees_with_plain_implementation(void **state)
{
    (void)state;
    uint8_t pub[32], sec[64];
    char want[MAX];
    struct err err = ERR_INIT;

    crypto_ed25519_keypair(pub, sec);
    for (size_t i = 0; i < 64; i++) {
        const char *msg = words[i % 4], *footer = words[i / 4 % 4], *implicit = words[i / 16];
        AUTO(buf_done) struct buf token = new_buf();
        AUTO(buf_done) struct buf got = new_buf();
        plain_sign(want, sec, msg, footer, implicit);
        assert_int_equal(crypto_paseto_sign(&token, sec, msg, strlen(msg), footer, implicit, &err),
                         STATUS_OK);
        assert_string_equal(buf_str(&token), want);
        assert_int_equal(crypto_paseto_verify(&got, pub, want, strlen(want), NULL, implicit, &err),
                         STATUS_OK);
        assert_string_equal(buf_str(&got), msg);
    }
}

// The first vector of the specification for local tokens (4-E-2), so that a wrong key schedule is
// found without the files.
static void test_paseto_local_one_built_in_vector(void **state)
{
    (void)state;
    static const char token[] =
        "v4.local.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQAr68PS4AXe7If_"
        "ZgesdkUMvS2csCgglvpk5HC0e8"
        "kApeaqMfGo_7OpBnwJOAbY9V7WU6abu74MmcUE8YWAiaArVI8XIemu9chy3WVKvRBfg6t8wwYHK0ArLxxfZP73W_"
        "vfwt5A";
    uint8_t key[32], nonce[32] = {0};
    AUTO(buf_done) struct buf got = new_buf();
    AUTO(buf_done) struct buf made = new_buf();
    struct err err = ERR_INIT;

    for (size_t i = 0; i < 32; i++)
        key[i] = (uint8_t)(0x70 + i);
    assert_int_equal(crypto_paseto_decrypt(&got, key, token, strlen(token), "", NULL, &err),
                     STATUS_OK);
    assert_string_equal(
        buf_str(&got),
        "{\"data\":\"this is a hidden message\",\"exp\":\"2022-01-01T00:00:00+00:00\"}");
    assert_int_equal(crypto_paseto_encrypt(&made, key, nonce, got.data, got.len, NULL, NULL, &err),
                     STATUS_OK);
    assert_string_equal(buf_str(&made), token);
}

// ---------------------------------------------------------------- what must be refused

struct opener {
    uint8_t key[32];
    enum status (*open)(struct buf *, const uint8_t[32], const char *, size_t, const char *,
                        const char *, struct err *);
};

static void assert_refused(const struct opener *o, const char *token, size_t n, const char *footer,
                           const char *implicit)
{
    AUTO(buf_done) struct buf got = new_buf();
    struct err err = ERR_INIT;

    assert_int_equal(o->open(&got, o->key, token, n, footer, implicit, &err),
                     STATUS_UNAUTHENTICATED);
    assert_int_equal(got.len, 0);
}

static void refuse_everything_changed(struct opener *o, const char *token)
{
    size_t n = strlen(token);
    char *bad = mem_strdup(token);
    struct err err = ERR_INIT;
    AUTO(buf_done) struct buf got = new_buf();

    assert_non_null(bad);
    assert_int_equal(o->open(&got, o->key, token, n, "key-1", "here", &err), STATUS_OK);
    assert_string_equal(buf_str(&got), "payload");
    for (size_t i = 0; i < n; i++) {
        assert_refused(o, token, i, NULL, "here");
        for (unsigned bit = 0; bit < 8; bit++) {
            bad[i] = (char)(token[i] ^ (1 << bit));
            assert_refused(o, bad, n, NULL, "here");
        }
        bad[i] = token[i];
    }
    mem_free(bad);
    assert_refused(o, token, n, "key-2", "here");
    assert_refused(o, token, n, "", "here");
    assert_refused(o, token, n, "key-1", "there");
    assert_refused(o, token, n, "key-1", NULL);
    o->key[31] ^= 1;
    assert_refused(o, token, n, NULL, "here");
}

static void test_paseto_changed_tokens_are_refused(void **state)
{
    (void)state;
    struct opener verify = {.open = crypto_paseto_verify},
                  decrypt = {.open = crypto_paseto_decrypt};
    uint8_t sec[64];
    AUTO(buf_done) struct buf public = new_buf();
    AUTO(buf_done) struct buf local = new_buf();
    struct err err = ERR_INIT;

    crypto_ed25519_keypair(verify.key, sec);
    assert_int_equal(crypto_paseto_sign(&public, sec, "payload", 7, "key-1", "here", &err),
                     STATUS_OK);
    assert_int_equal(
        crypto_paseto_encrypt(&local, decrypt.key, NULL, "payload", 7, "key-1", "here", &err),
        STATUS_OK);
    // The purpose is the caller's, not the token's.
    assert_refused(&decrypt, buf_str(&public), public.len, NULL, "here");
    assert_refused(&verify, buf_str(&local), local.len, NULL, "here");
    refuse_everything_changed(&verify, buf_str(&public));
    refuse_everything_changed(&decrypt, buf_str(&local));
}

static void test_paseto_too_long_is_refused(void **state)
{
    (void)state;
    static uint8_t big[CRYPTO_PASETO_MAX_BYTES];
    static char token[CRYPTO_PASETO_MAX_BYTES + 2];
    struct opener verify = {.open = crypto_paseto_verify};
    uint8_t sec[64];
    AUTO(buf_done) struct buf out = {0};
    struct err err = ERR_INIT;

    buf_init(&out, 1 << 20);
    crypto_ed25519_keypair(verify.key, sec);
    assert_int_equal(crypto_paseto_sign(&out, sec, big, sizeof(big), NULL, NULL, &err),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(out.len, 0);
    memset(token, 'A', sizeof(token) - 1);
    memcpy(token, "v4.public.", 10);
    assert_refused(&verify, token, sizeof(token) - 1, NULL, NULL);
}

static void test_paseto_survives_every_failed_allocation(void **state)
{
    (void)state;
    uint8_t key[32] = {7}, pub[32], sec[64];
    struct err err = ERR_INIT;
    enum status s = STATUS_RESOURCE_EXHAUSTED;

    crypto_ed25519_keypair(pub, sec);
    for (int64_t n = 0; s == STATUS_RESOURCE_EXHAUSTED; n++) {
        AUTO(buf_done) struct buf a = new_buf();
        AUTO(buf_done) struct buf b = new_buf();
        AUTO(buf_done) struct buf c = new_buf();
        AUTO(buf_done) struct buf d = new_buf();
        mem_fail_at(n);
        s = crypto_paseto_sign(&a, sec, "payload", 7, "f", "i", &err);
        if (s == STATUS_OK)
            s = crypto_paseto_verify(&b, pub, buf_str(&a), a.len, "f", "i", &err);
        if (s == STATUS_OK)
            s = crypto_paseto_encrypt(&c, key, NULL, "payload", 7, "f", "i", &err);
        if (s == STATUS_OK)
            s = crypto_paseto_decrypt(&d, key, buf_str(&c), c.len, "f", "i", &err);
        mem_fail_at(-1);
        assert_true(n < 100);
        assert_true(n > 0 || s == STATUS_RESOURCE_EXHAUSTED);
    }
    assert_int_equal(s, STATUS_OK);
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
        cmocka_unit_test(test_paseto_published_vectors),
        cmocka_unit_test(test_paseto_public_agrees_with_plain_implementation),
        cmocka_unit_test(test_paseto_local_one_built_in_vector),
        cmocka_unit_test(test_paseto_changed_tokens_are_refused),
        cmocka_unit_test(test_paseto_too_long_is_refused),
        cmocka_unit_test(test_paseto_survives_every_failed_allocation),
    };

    return cmocka_run_group_tests(tests, start, NULL);
}
