// The handshake machinery against published vectors, and against itself where those are absent.
#include "channel/noise.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/str.h"
#include "support/vectors.h"

#define MAX 1024

static void keypair_from(struct noise_keypair *k, const struct vector *v, const char *key)
{
    *k = (struct noise_keypair){0};
    if (vector_hex(v, key, k->secret, NOISE_KEY_SIZE) == 0)
        return;
    crypto_dh_public(k->public_key, k->secret);
    k->is_set = true;
}

static void side_from(struct noise *n, const struct vector *v, bool is_initiator)
{
    struct noise_keypair s, e;
    uint8_t prologue[MAX], rs[32], psk[32];
    struct err err = ERR_INIT;
    size_t rs_len = is_initiator ? vector_hex(v, "init_remote_static", rs, sizeof(rs)) : 0;
    const char *psks = is_initiator ? "init_psks" : "resp_psks";

    keypair_from(&s, v, is_initiator ? "init_static" : "resp_static");
    keypair_from(&e, v, is_initiator ? "init_ephemeral" : "resp_ephemeral");
    struct noise_opts o = {
        .protocol = vector_str(v, "protocol_name"),
        .is_initiator = is_initiator,
        .prologue = prologue,
        .prologue_len = vector_hex(v, is_initiator ? "init_prologue" : "resp_prologue", prologue,
                                   sizeof(prologue)),
        .s = s.is_set ? &s : NULL,
        .e = e.is_set ? &e : NULL,
        .rs = rs_len > 0 ? rs : NULL,
        .psk = vector_n(v, psks) > 0 ? psk : NULL,
    };
    if (o.psk)
        assert_int_equal(vector_hex_at(v, psks, 0, psk, sizeof(psk)), 32);
    assert_int_equal(noise_init(n, &o, &err), STATUS_OK);
}

struct transport {
    uint8_t key[2][NOISE_KEY_SIZE];
    uint64_t nonce[2];
};

static void check_transport_message(struct transport *t, enum crypto_aead aead, size_t i,
                                    const uint8_t *payload, size_t payload_len,
                                    const uint8_t *cipher, size_t cipher_len)
{
    uint8_t out[MAX];
    size_t side = i % 2;
    uint64_t nonce = t->nonce[side]++;

    assert_int_equal(crypto_seal(aead, out, t->key[side], nonce, NULL, 0, payload, payload_len),
                     cipher_len);
    assert_memory_equal(out, cipher, cipher_len);
    assert_true(crypto_open(aead, out, t->key[side], nonce, NULL, 0, cipher, cipher_len));
    assert_memory_equal(out, payload, payload_len);
}

static void check_handshake_message(struct noise *from, struct noise *to, const uint8_t *payload,
                                    size_t payload_len, const uint8_t *cipher, size_t cipher_len)
{
    uint8_t out[MAX];
    size_t got = 0;

    assert_true(noise_may_write(from));
    assert_int_equal(noise_write(from, payload, payload_len, out, sizeof(out)), cipher_len);
    assert_memory_equal(out, cipher, cipher_len);
    assert_true(noise_read(to, cipher, cipher_len, out, &got));
    assert_int_equal(got, payload_len);
    assert_memory_equal(out, payload, payload_len);
    assert_memory_equal(from->sym.h, to->sym.h, NOISE_HASH_SIZE);
}

static void run_vector(const struct vector *v)
{
    struct noise side[2];
    struct transport t = {0};
    uint8_t payload[MAX], cipher[MAX], hash[NOISE_HASH_SIZE];

    side_from(&side[0], v, true);
    side_from(&side[1], v, false);
    for (size_t i = 0; i < vector_n(v, "messages"); i++) {
        const struct vector *m = vector_at(v, "messages", i);
        size_t payload_len = vector_hex(m, "payload", payload, sizeof(payload));
        size_t cipher_len = vector_hex(m, "ciphertext", cipher, sizeof(cipher));
        if (noise_is_done(&side[0])) {
            check_transport_message(&t, side[0].sym.aead, i, payload, payload_len, cipher,
                                    cipher_len);
            continue;
        }
        check_handshake_message(&side[i % 2], &side[1 - i % 2], payload, payload_len, cipher,
                                cipher_len);
        if (noise_is_done(&side[0]))
            noise_split(&side[0], t.key[0], t.key[1]);
    }
    assert_true(noise_is_done(&side[0]) && noise_is_done(&side[1]));
    if (vector_hex(v, "handshake_hash", hash, sizeof(hash)) > 0)
        assert_memory_equal(hash, side[1].sym.h, NOISE_HASH_SIZE);
}

// One of the published vectors (cacophony, public domain), so that a machine without the files
// still checks against somebody else's work.
static const struct {
    const char *payload, *cipher; // the initiator's first, then in turn
} ik_messages[] = {
    {"4c756477696720766f6e204d69736573", "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3af"
                                         "a4c7944ba83a447b38c83e327ad936929812f62"
                                         "4884847b7831e95e197b2f797088efdd2f88f1db7e1fb0e99c6441909"
                                         "7af91cee64e470f4b6fcd9298ce0b56fe20f86e"
                                         "13bf70439c538e3602a7127af71a29cc"},
    {"4d757272617920526f746862617264", "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f1448"
                                       "088439f069b267a06b3de3ecb1043bcb098e9"
                                       "af91d9c64748d998c7b47890871571"},
    {"462e20412e20486179656b", "cd54383060e7a28434cca27fb1cc524cfbabeb18181589df219d07"},
    {"4361726c204d656e676572", "a856d3bf0246bfc476c655009cd1ed677b8dcc5b349ae8ef2a05f2"},
};
static const char ik_hash[] = "1c8fa891cb414fedba6daa7c6f4ae0a6d98e5f9768cc9cecd27e805614943ee9"
                              "c8a1b27fbfb76dc197255c8aa69f6b4285c423840b8bedf45e652ca64f797d81";

static struct noise_keypair keypair_of(const char *secret)
{
    struct noise_keypair k = {.is_set = true};

    assert_true(str_unhex(k.secret, sizeof(k.secret), secret));
    crypto_dh_public(k.public_key, k.secret);
    return k;
}

static void ik_sides(struct noise side[2])
{
    const struct noise_keypair
        s0 = keypair_of("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1"),
        e0 = keypair_of("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a"),
        s1 = keypair_of("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893"),
        e1 = keypair_of("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b");
    struct noise_opts o = {.protocol = "Noise_IK_25519_ChaChaPoly_BLAKE2b",
                           .is_initiator = true,
                           .prologue = "John Galt",
                           .prologue_len = 9,
                           .s = &s0,
                           .e = &e0,
                           .rs = s1.public_key};
    struct err err = ERR_INIT;

    assert_int_equal(noise_init(&side[0], &o, &err), STATUS_OK);
    o.is_initiator = false;
    o.s = &s1;
    o.e = &e1;
    o.rs = NULL;
    assert_int_equal(noise_init(&side[1], &o, &err), STATUS_OK);
}

static void test_noise_built_in_vector(void **state)
{
    (void)state;
    struct noise side[2];
    struct transport t = {0};
    uint8_t payload[MAX], cipher[MAX], hash[NOISE_HASH_SIZE];

    ik_sides(side);
    for (size_t i = 0; i < N_ELEMENTS(ik_messages); i++) {
        size_t payload_len = strlen(ik_messages[i].payload) / 2;
        size_t cipher_len = strlen(ik_messages[i].cipher) / 2;
        assert_true(str_unhex(payload, payload_len, ik_messages[i].payload));
        assert_true(str_unhex(cipher, cipher_len, ik_messages[i].cipher));
        if (i >= 2) {
            check_transport_message(&t, CRYPTO_CHACHAPOLY, i, payload, payload_len, cipher,
                                    cipher_len);
            continue;
        }
        check_handshake_message(&side[i], &side[1 - i], payload, payload_len, cipher, cipher_len);
        if (i == 1)
            noise_split(&side[0], t.key[0], t.key[1]);
    }
    assert_true(str_unhex(hash, sizeof(hash), ik_hash));
    assert_memory_equal(hash, side[0].sym.h, sizeof(hash));
}

static void run_file(const char *file, size_t n_expected)
{
    struct vectors *all = vectors_open(file, "vectors");

    if (!all)
        skip();
    assert_int_equal(vectors_n(all), n_expected);
    for (size_t i = 0; i < n_expected; i++)
        run_vector(vectors_at(all, i));
    vectors_close(all);
}

static void test_noise_cacophony_vectors(void **state)
{
    (void)state;
    run_file("noise_25519_chachapoly_blake2b_cacophony.json", 8);
}

static void test_noise_snow_vectors(void **state)
{
    (void)state;
    run_file("noise_25519_chachapoly_blake2b_snow.json", 5);
}

static void test_noise_aesgcm_vectors(void **state)
{
    (void)state;
    if (!crypto_aead_is_available(CRYPTO_AESGCM)) {
        print_message("this CPU cannot do AES-GCM\n");
        skip();
    }
    run_file("noise_25519_aesgcm_blake2b_cacophony.json", 8);
}

// ---------------------------------------------------------------- fresh keys, every pattern

static const struct {
    const char *protocol;
    bool has_psk;
} all_patterns[] = {
    {"Noise_NN_25519_ChaChaPoly_BLAKE2b", false},
    {"Noise_NK_25519_ChaChaPoly_BLAKE2b", false},
    {"Noise_XK_25519_ChaChaPoly_BLAKE2b", false},
    {"Noise_IK_25519_ChaChaPoly_BLAKE2b", false},
    {"Noise_XX_25519_ChaChaPoly_BLAKE2b", false},
    {"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b", true},
    {"Noise_NKpsk2_25519_ChaChaPoly_BLAKE2b", true},
    {"Noise_IKpsk1_25519_ChaChaPoly_BLAKE2b", true},
    {"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2b", true},
    {"Noise_XXpsk3_25519_ChaChaPoly_BLAKE2b", true},
};

static void fresh(struct noise_keypair *k)
{
    crypto_dh_keypair(k->public_key, k->secret);
    k->is_set = true;
}

static void fresh_pair(size_t row, struct noise side[2], struct noise_keypair s[2],
                       const uint8_t *psk0, const uint8_t *psk1)
{
    struct err err = ERR_INIT;

    fresh(&s[0]);
    fresh(&s[1]);
    bool knows_peer = all_patterns[row].protocol[7] == 'K';
    for (size_t i = 0; i < 2; i++) {
        struct noise_opts o = {
            .protocol = all_patterns[row].protocol,
            .is_initiator = i == 0,
            .prologue = "test",
            .prologue_len = 4,
            .s = &s[i],
            .rs = i == 0 && knows_peer ? s[1].public_key : NULL,
            .psk = !all_patterns[row].has_psk ? NULL
                   : i == 0                   ? psk0
                                              : psk1,
        };
        assert_int_equal(noise_init(&side[i], &o, &err), STATUS_OK);
    }
}

static void test_noise_every_pattern_agrees_on_keys(void **state)
{
    (void)state;
    const uint8_t psk[32] = {9};

    for (size_t row = 0; row < N_ELEMENTS(all_patterns); row++) {
        struct noise side[2];
        struct noise_keypair s[2];
        uint8_t msg[MAX], payload[MAX], key[4][32];
        fresh_pair(row, side, s, psk, psk);
        for (size_t i = 0; !noise_is_done(&side[0]); i++) {
            size_t len = noise_write(&side[i % 2], "hello", 5, msg, sizeof(msg)), got = 0;
            assert_true(len > 0);
            assert_true(noise_read(&side[1 - i % 2], msg, len, payload, &got));
            assert_int_equal(got, 5);
            assert_memory_equal(payload, "hello", 5);
        }
        noise_split(&side[0], key[0], key[1]);
        noise_split(&side[1], key[2], key[3]);
        assert_memory_equal(key[0], key[2], 32);
        assert_memory_equal(key[1], key[3], 32);
        assert_memory_not_equal(key[0], key[1], 32);
    }
}

static void test_noise_wrong_psk_is_refused(void **state)
{
    (void)state;
    const uint8_t psk[32] = {9}, wrong[32] = {8};

    for (size_t row = 0; row < N_ELEMENTS(all_patterns); row++) {
        if (!all_patterns[row].has_psk)
            continue;
        struct noise side[2];
        struct noise_keypair s[2];
        uint8_t msg[MAX], payload[MAX];
        bool refused = false;
        fresh_pair(row, side, s, psk, wrong);
        for (size_t i = 0; !refused && !noise_is_done(&side[0]); i++) {
            size_t len = noise_write(&side[i % 2], "hello", 5, msg, sizeof(msg)), got = 0;
            assert_true(len > 0);
            refused = !noise_read(&side[1 - i % 2], msg, len, payload, &got);
        }
        assert_true(refused);
    }
}

// A message that is refused must leave the state as it was: the true one still works after it.
static void test_noise_refused_message_changes_nothing(void **state)
{
    (void)state;
    struct noise side[2], before;
    struct noise_keypair s[2];
    uint8_t msg[MAX], bad[MAX], payload[MAX];
    size_t got = 0;

    fresh_pair(3, side, s, NULL, NULL);
    for (size_t i = 0; i < 2; i++) {
        struct noise *to = &side[1 - i];
        size_t len = noise_write(&side[i], "hello", 5, msg, sizeof(msg));
        assert_true(len > 0);
        before = *to;
        for (size_t bit = 0; bit < 8 * len; bit++) {
            memcpy(bad, msg, len);
            bad[bit / 8] ^= (uint8_t)(1U << bit % 8);
            assert_false(noise_read(to, bad, len, payload, &got));
        }
        for (size_t n = 0; n < len; n++)
            assert_false(noise_read(to, msg, n, payload, &got));
        assert_memory_equal(to, &before, sizeof(before));
        assert_true(noise_read(to, msg, len, payload, &got));
    }
    assert_true(noise_is_done(&side[0]) && noise_is_done(&side[1]));
}

static void test_noise_refuses_wrong_turns_and_small_buffers(void **state)
{
    (void)state;
    struct noise side[2];
    struct noise_keypair s[2];
    uint8_t msg[MAX], payload[MAX];
    size_t got = 0;

    fresh_pair(3, side, s, NULL, NULL);
    assert_int_equal(noise_write(&side[1], "", 0, msg, sizeof(msg)), 0);
    assert_false(noise_read(&side[0], msg, 100, payload, &got));
    for (size_t cap = 0; cap < 32 + 48 + 5 + 16; cap++) {
        struct noise copy = side[0];
        assert_int_equal(noise_write(&copy, "hello", 5, msg, cap), 0);
    }
    assert_int_equal(noise_write(&side[0], "hello", 5, msg, 32 + 48 + 5 + 16), 32 + 48 + 5 + 16);
}

static void test_noise_zero_key_agreement_is_refused(void **state)
{
    (void)state;
    struct noise side[2];
    struct noise_keypair s[2];
    uint8_t msg[MAX] = {0}, payload[MAX]; // an all-zero ephemeral key
    size_t got = 0;

    fresh_pair(1, side, s, NULL, NULL);
    assert_false(noise_read(&side[1], msg, 32 + 16, payload, &got));
}

static void test_noise_unknown_protocols_and_missing_keys_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "Noise_",
        "Noise_KK_25519_ChaChaPoly_BLAKE2b",
        "Noise_NK_448_ChaChaPoly_BLAKE2b",
        "Noise_NK_25519_ChaChaPoly_SHA256",
        "Noise_NK_25519_ChaChaPoly_BLAKE2b2",
        "Noise_NKpsk3_25519_ChaChaPoly_BLAKE2b",
        "Noise_NKpskx_25519_ChaChaPoly_BLAKE2b",
    };
    struct noise n;
    struct err err = ERR_INIT;
    struct noise_keypair s;

    fresh(&s);
    for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
        struct noise_opts o = {.protocol = bad[i], .s = &s, .rs = s.public_key};
        assert_int_equal(noise_init(&n, &o, &err), STATUS_INVALID_ARGUMENT);
    }
    const struct noise_opts missing[] = {
        {.protocol = "Noise_NK_25519_ChaChaPoly_BLAKE2b", .is_initiator = true},
        {.protocol = "Noise_NK_25519_ChaChaPoly_BLAKE2b"},
        {.protocol = "Noise_IK_25519_ChaChaPoly_BLAKE2b", .is_initiator = true, .rs = s.public_key},
        {.protocol = "Noise_XX_25519_ChaChaPoly_BLAKE2b", .is_initiator = true},
        {.protocol = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b", .is_initiator = true},
        {.protocol = "Noise_NN_25519_ChaChaPoly_BLAKE2b", .psk = s.secret},
    };
    for (size_t i = 0; i < N_ELEMENTS(missing); i++)
        assert_int_equal(noise_init(&n, &missing[i], &err), STATUS_INVALID_ARGUMENT);
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
        cmocka_unit_test(test_noise_built_in_vector),
        cmocka_unit_test(test_noise_cacophony_vectors),
        cmocka_unit_test(test_noise_snow_vectors),
        cmocka_unit_test(test_noise_aesgcm_vectors),
        cmocka_unit_test(test_noise_every_pattern_agrees_on_keys),
        cmocka_unit_test(test_noise_wrong_psk_is_refused),
        cmocka_unit_test(test_noise_refused_message_changes_nothing),
        cmocka_unit_test(test_noise_refuses_wrong_turns_and_small_buffers),
        cmocka_unit_test(test_noise_zero_key_agreement_is_refused),
        cmocka_unit_test(test_noise_unknown_protocols_and_missing_keys_are_refused),
    };

    return cmocka_run_group_tests(tests, start, NULL);
}
