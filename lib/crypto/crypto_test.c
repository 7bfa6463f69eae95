// Digests, AEADs, keys, passwords and key files against RFC vectors and against values computed
// with other implementations (Python's hashlib and hmac, OpenSSL).
#include "crypto/crypto.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#ifdef HAS_LIBCRYPTO
#include <openssl/evp.h>
#endif

#include "base/str.h"
#include "crypto/aead.h"

static void assert_hex(const void *bytes, size_t n, const char *hex)
{
    char text[257];

    assert_true(n <= 128);
    str_hex(text, bytes, n);
    assert_string_equal(text, hex);
}

static void test_blake2b_matches_rfc_7693_and_hashlib(void **state)
{
    (void)state;
    uint8_t out[64];

    crypto_blake2b(out, 64, "abc", 3, NULL, 0, NULL);
    assert_hex(out, 64,
               "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1"
               "7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923");
    crypto_blake2b(out, 3, "abc", 3, NULL, 0, NULL);
    assert_hex(out, 3, "8c45ed");
    crypto_blake2b(out, 32, "abc", 3, "0123456789abcdef", 16,
                   (const uint8_t *)"cauce.test/1\0\0\0\0");
    assert_hex(out, 32, "ad62a5d032aaf761ba642489481b522a7ce856fc0c2b5d00ddaaa0f4e4e1646e");
}

static void test_blake2b_in_pieces_equals_at_once(void **state)
{
    (void)state;
    uint8_t data[1000], once[32], pieces[32];
    struct crypto_blake2b h;

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7);
    crypto_blake2b(once, 32, data, sizeof(data), NULL, 0, NULL);
    for (size_t step = 1; step < 300; step += 13) {
        crypto_blake2b_init(&h, 32, NULL, 0, NULL);
        crypto_blake2b_update(&h, NULL, 0);
        for (size_t at = 0; at < sizeof(data); at += step) {
            size_t n = sizeof(data) - at < step ? sizeof(data) - at : step;
            crypto_blake2b_update(&h, data + at, n);
        }
        crypto_blake2b_final(&h, pieces, 32);
        assert_memory_equal(once, pieces, 32);
    }
}

static void test_hmac_matches_python(void **state)
{
    (void)state;
    uint8_t out[64], key[200];

    for (size_t i = 0; i < sizeof(key); i++)
        key[i] = (uint8_t)i;
    crypto_hmac512(out, "keykeykeykeykeykeykeykeykeykeykeykeykeykeykeykeykeykeykeykey", 60,
                   "The quick brown fox", 19);
    assert_hex(out, 64,
               "276ed0ae328757ba5f4c90ef3d49d07ff6afdb6e281a9a8d78a450f516c7d9e8"
               "e0d77e82a31d39ad424b0bf163647ada5d75090ddf7a0d6fc4e20346f5efca90");
    crypto_hmac512(out, key, sizeof(key), NULL, 0);
    assert_hex(out, 64,
               "7388546f6fc7f13d6a774d6c7ed213aafc3c82f27851f8fae9fa679c6f52eb7c"
               "c873c4a7f0b574ce29ff40e0641a436015a41a2cfbb84b9906495d4f801dbe4c");
}

static void test_hkdf_matches_python(void **state)
{
    (void)state;
    uint8_t ck[64], ikm[32], out1[64], out2[64], out3[64];

    for (size_t i = 0; i < sizeof(ck); i++)
        ck[i] = (uint8_t)i;
    memcpy(ikm, ck, sizeof(ikm));
    crypto_noise_hkdf(ck, ikm, sizeof(ikm), out1, out2, out3);
    assert_hex(out1, 64,
               "b257cf2863e7aa7f84d41d31e58df6dfb1e0a6cf3172192cc35eba2625a21975"
               "db4475b2ef89316383acac6b2ac7cf03f7583e0ff20a64fb208fa5b1199f835f");
    assert_hex(out2, 64,
               "4f4d712feaff914e80db4d0d400a46056854134b5001018c4f1fe19bb477053c"
               "5a9b92f8c937b1328c0ae7e51895b8d68068bc84d59436cc3b75de5a2d6d0630");
    assert_hex(out3, 64,
               "c3e03a921f0f492329fe003e995b982fdd8c0596cc3575e01c2f24234e05e477"
               "8d233726d60ffe48a7d9ef235a6ff5fac555bafcfdd1272c4763ded2e01c0c3f");
    crypto_noise_hkdf(ck, ikm, sizeof(ikm), ck, out3, NULL); // in place
    assert_memory_equal(ck, out1, 64);
    assert_memory_equal(out3, out2, 64);
}

static const struct {
    enum crypto_aead aead;
    const char *sealed; // "sealed words" under key 0..31, nonce 0x0102030405060708, ad "header"
} aead_rows[] = {
    {CRYPTO_CHACHAPOLY, "832ccc88ce5dca6f0bd94ebf23f4e8a657862a572d5583674b33d129"},
    {CRYPTO_AESGCM, "77340462b88529e96ced999c3a7d25caf0c6b930a2a190e896418b33"},
};

static void test_aead_matches_openssl_and_refuses_every_changed_bit(void **state)
{
    (void)state;
    uint8_t key[32], box[28], bad[28], plain[12];
    const uint64_t nonce = 0x0102030405060708;

    for (size_t i = 0; i < sizeof(key); i++)
        key[i] = (uint8_t)i;
    for (size_t r = 0; r < N_ELEMENTS(aead_rows); r++) {
        enum crypto_aead a = aead_rows[r].aead;
        if (!crypto_aead_is_available(a)) {
            print_message("this CPU cannot do AES-GCM\n");
            continue;
        }
        assert_int_equal(crypto_seal(a, box, key, nonce, "header", 6, "sealed words", 12), 28);
        assert_hex(box, sizeof(box), aead_rows[r].sealed);
        assert_true(crypto_open(a, plain, key, nonce, "header", 6, box, sizeof(box)));
        assert_memory_equal(plain, "sealed words", 12);
        for (size_t bit = 0; bit < 8 * sizeof(box); bit++) {
            memcpy(bad, box, sizeof(box));
            bad[bit / 8] ^= (uint8_t)(1U << bit % 8);
            assert_false(crypto_open(a, plain, key, nonce, "header", 6, bad, sizeof(bad)));
        }
        for (size_t n = 0; n < sizeof(box); n++)
            assert_false(crypto_open(a, plain, key, nonce, "header", 6, box, n));
        assert_false(crypto_open(a, plain, key, nonce + 1, "header", 6, box, sizeof(box)));
        assert_false(crypto_open(a, plain, key, nonce, "Header", 6, box, sizeof(box)));
        memcpy(bad, "sealed words", 12); // in place
        crypto_seal(a, bad, key, nonce, "header", 6, bad, 12);
        assert_memory_equal(bad, box, sizeof(box));
        assert_true(crypto_open(a, bad, key, nonce, "header", 6, bad, sizeof(bad)));
        assert_memory_equal(bad, "sealed words", 12);
    }
}

// The same by libcrypto, whichever library seals records here. False: it is not there.
static bool seal_elsewhere(uint8_t *out, const uint8_t key[32], uint64_t nonce, const void *ad,
                           size_t ad_len, const uint8_t *in, size_t n)
{
#ifdef HAS_LIBCRYPTO
    uint8_t iv[12] = {0};
    int len;
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    for (unsigned i = 0; i < 8; i++)
        iv[4 + i] = (uint8_t)(nonce >> 8 * i);
    assert_int_equal(EVP_EncryptInit_ex(c, EVP_chacha20_poly1305(), NULL, key, iv), 1);
    assert_int_equal(EVP_EncryptUpdate(c, NULL, &len, ad, (int)ad_len), 1);
    assert_int_equal(EVP_EncryptUpdate(c, out, &len, in, (int)n), 1);
    assert_int_equal(EVP_EncryptFinal_ex(c, out + n, &len), 1);
    assert_int_equal(EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, 16, out + n), 1);
    EVP_CIPHER_CTX_free(c);
    return true;
#else
    (void)out, (void)key, (void)nonce, (void)ad, (void)ad_len, (void)in, (void)n;
    return false;
#endif
}

static void test_records_are_the_same_bytes_whoever_seals_them(void **state)
{
    (void)state;
    enum { MOST = 70000 };
    static uint8_t plain[MOST], box[MOST + 16], other[MOST + 16], back[MOST + 16];
    struct crypto_record *seals = crypto_record_new(true), *opens = crypto_record_new(false);
    uint8_t key[32], ad[20];

    assert_true(seals && opens);
    for (size_t i = 0; i < sizeof(plain); i++)
        plain[i] = (uint8_t)(i * 7 + i / 251);
    for (size_t i = 0; i < sizeof(ad); i++)
        ad[i] = (uint8_t)(0xa0 + i);
    uint64_t nonce = 0;
    for (size_t n = 0; n <= MOST; n = n < 300 ? n + 1 : n * 2 - 1) {
        nonce = nonce < 200 ? nonce + 1 : nonce * 3;
        if (n % 16 == 0) // keys change while a session lasts
            memset(key, (int)(n / 16 + 1), sizeof(key));
        if (n % 64 == 0)
            crypto_record_forget(seals);
        assert_true(crypto_record_seal(seals, box, key, nonce, ad, sizeof(ad), plain, n));
        (void)crypto_seal(CRYPTO_CHACHAPOLY, other, key, nonce, ad, sizeof(ad), plain, n);
        assert_memory_equal(box, other, n + 16);
        if (seal_elsewhere(other, key, nonce, ad, sizeof(ad), plain, n))
            assert_memory_equal(box, other, n + 16);
        memcpy(back, plain, n); // in place
        assert_true(crypto_record_seal(seals, back, key, nonce, ad, sizeof(ad), back, n));
        assert_memory_equal(back, box, n + 16);
        assert_true(crypto_record_open(opens, back, key, nonce, ad, sizeof(ad), back, n + 16));
        assert_memory_equal(back, plain, n);
        for (size_t at = 0; at < n + 16; at += n / 3 + 1) {
            box[at] ^= 0x10;
            assert_false(crypto_record_open(opens, back, key, nonce, ad, sizeof(ad), box, n + 16));
            box[at] ^= 0x10;
        }
        assert_false(crypto_record_open(opens, back, key, nonce + 1, ad, sizeof(ad), box, n + 16));
        assert_false(crypto_record_open(opens, back, key, nonce, ad, sizeof(ad) - 1, box, n + 16));
        assert_false(crypto_record_open(opens, back, key, nonce, ad, sizeof(ad), box, n + 15));
        assert_true(crypto_record_open(opens, back, key, nonce, ad, sizeof(ad), box, n + 16));
        assert_memory_equal(back, plain, n);
    }
    for (size_t n = 0; n < 16; n++)
        assert_false(crypto_record_open(opens, back, key, 1, ad, sizeof(ad), box, n));
    print_message("records are sealed by %s\n", crypto_record_library());
    crypto_record_free(seals);
    crypto_record_free(opens);
    crypto_record_free(NULL);
}

static void test_dh_matches_rfc_7748_and_refuses_zero(void **state)
{
    (void)state;
    uint8_t sec[32], pub[32], out[32], other[32], sec2[32], pub2[32];

    assert_true(
        str_unhex(sec, 32, "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"));
    assert_true(
        str_unhex(pub, 32, "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"));
    assert_true(crypto_dh(out, sec, pub));
    assert_hex(out, 32, "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");
    memset(pub, 0, sizeof(pub)); // a point of small order
    assert_false(crypto_dh(out, sec, pub));

    crypto_dh_keypair(pub, sec);
    crypto_dh_keypair(pub2, sec2);
    assert_memory_not_equal(pub, pub2, 32);
    assert_true(crypto_dh(out, sec, pub2));
    assert_true(crypto_dh(other, sec2, pub));
    assert_memory_equal(out, other, 32);
    crypto_dh_public(other, sec);
    assert_memory_equal(other, pub, 32);
}

static void test_ed25519_matches_rfc_8032(void **state)
{
    (void)state;
    uint8_t seed[32], pub[32], sec[64], sig[64];

    assert_true(
        str_unhex(seed, 32, "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"));
    crypto_ed25519_seed_keypair(pub, sec, seed);
    assert_hex(pub, 32, "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
    crypto_ed25519_sign(sig, sec, "\x72", 1);
    assert_hex(sig, 64,
               "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
               "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00");
    assert_true(crypto_ed25519_verify(sig, pub, "\x72", 1));
    assert_false(crypto_ed25519_verify(sig, pub, "\x73", 1));
    sig[0] ^= 1;
    assert_false(crypto_ed25519_verify(sig, pub, "\x72", 1));
    sig[0] ^= 1;
    crypto_ed25519_keypair(pub, sec);
    assert_false(crypto_ed25519_verify(sig, pub, "\x72", 1));
}

static const struct crypto_pw_params cheap = {.mem_bytes = 64 << 10, .passes = 1};

static void test_password_round_trip_and_rehash(void **state)
{
    (void)state;
    char hash[CRYPTO_PW_SIZE], again[CRYPTO_PW_SIZE];
    struct err err = ERR_INIT;

    assert_int_equal(crypto_pw_hash(hash, "correct horse", 13, &cheap, &err), STATUS_OK);
    assert_true(str_starts_with(hash, "$argon2id$v=19$m=64,t=1,p=1$"));
    assert_int_equal(crypto_pw_hash(again, "correct horse", 13, &cheap, &err), STATUS_OK);
    assert_string_not_equal(hash, again); // salted
    assert_true(crypto_pw_verify(hash, "correct horse", 13));
    assert_false(crypto_pw_verify(hash, "correct horsf", 13));
    assert_false(crypto_pw_verify(hash, "correct horse", 12));
    assert_false(crypto_pw_verify("", "correct horse", 13));
    assert_false(crypto_pw_needs_rehash(hash, &cheap));
    assert_true(crypto_pw_needs_rehash(hash, NULL));
    assert_true(crypto_pw_needs_rehash("nonsense", &cheap));
    assert_int_equal(crypto_pw_hash(hash, "x", 1, &(struct crypto_pw_params){.mem_bytes = 1}, &err),
                     STATUS_INVALID_ARGUMENT);
}

// OpenSSL's Argon2id of "password": 2 passes, 1024 KiB, 1 lane, salt "somesaltsomesalt".
static const char openssl_hash[] = "$argon2id$v=19$m=1024,t=2,p=1$c29tZXNhbHRzb21lc2FsdA"
                                   "$CKGe5/bX9YnCq2rxjW5yQXKxn31v1GKzhDCrMc6r6vA";

static void test_password_verifies_another_implementations_hash(void **state)
{
    (void)state;
    assert_true(crypto_pw_verify(openssl_hash, "password", 8));
    assert_false(crypto_pw_verify(openssl_hash, "Password", 8));
}

// ---------------------------------------------------------------- key files

static char folder[] = "/tmp/cauce-key-test-XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");

    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path, 0600), 0);
}

static void test_key_file_round_trip_is_private(void **state)
{
    (void)state;
    const char *path = in_folder("a.key");
    uint8_t key[32], got[32];
    struct stat st;
    struct err err = ERR_INIT;

    crypto_dh_keypair(got, key);
    assert_int_equal(crypto_key_save(path, "cauce-x25519-secret", key, 32, &err), STATUS_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(crypto_key_load(path, "cauce-x25519-secret", got, 32, &err), STATUS_OK);
    assert_memory_equal(key, got, 32);
}

static void test_key_file_is_never_replaced(void **state)
{
    (void)state;
    const char *path = in_folder("b.key");
    uint8_t key[32] = {1}, other[32] = {2}, got[32];
    struct err err = ERR_INIT;

    assert_int_equal(crypto_key_save(path, "k", key, 32, &err), STATUS_OK);
    assert_int_equal(crypto_key_save(path, "k", other, 32, &err), STATUS_ALREADY_EXISTS);
    assert_int_equal(crypto_key_load(path, "k", got, 32, &err), STATUS_OK);
    assert_memory_equal(key, got, 32);
}

static void test_key_file_that_others_may_read_is_refused(void **state)
{
    (void)state;
    const char *path = in_folder("c.key");
    uint8_t key[32] = {1};
    struct err err = ERR_INIT;

    assert_int_equal(crypto_key_save(path, "k", key, 32, &err), STATUS_OK);
    for (unsigned bit = 1; bit <= 040; bit <<= 1) {
        assert_int_equal(chmod(path, 0600 | bit), 0);
        assert_int_equal(crypto_key_load(path, "k", key, 32, &err), STATUS_PERMISSION_DENIED);
    }
}

static void test_key_file_broken_is_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "k",
        "k:",
        "k:AQIDBA",        // too short
        "k:AQIDBAUGBwgJ",  // too long
        "j:AQIDBAUGBwg",   // another kind
        "kk:AQIDBAUGBwg",  // another kind
        "k:AQIDBAUGBwh",   // trailing bits
        "k:AQIDBAUGBwg=",  // padding
        "k:AQIDBAUGBwg x", // something after it
    };
    const char *path = in_folder("d.key");
    uint8_t key[8], untouched[8] = {0};
    struct err err = ERR_INIT;

    write_file(path, "k:AQIDBAUGBwg\n");
    assert_int_equal(crypto_key_load(path, "k", key, 8, &err), STATUS_OK);
    assert_memory_equal(key, "\1\2\3\4\5\6\7\10", 8);
    memset(key, 0, sizeof(key));
    for (size_t i = 0; i < N_ELEMENTS(texts); i++) {
        write_file(path, texts[i]);
        assert_int_equal(crypto_key_load(path, "k", key, 8, &err), STATUS_INVALID_ARGUMENT);
        assert_memory_equal(key, untouched, 8);
    }
    assert_int_equal(crypto_key_load(in_folder("none"), "k", key, 8, &err), STATUS_NOT_FOUND);
    assert_int_equal(crypto_key_load(folder, "k", key, 8, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(crypto_key_save(in_folder("no/folder"), "k", key, 8, &err), STATUS_NOT_FOUND);
}

static int start(void **state)
{
    (void)state;
    struct err err = ERR_INIT;

    if (crypto_init(&err) != STATUS_OK || crypto_init(&err) != STATUS_OK)
        return -1;
    return mkdtemp(folder) ? 0 : -1;
}

static int stop(void **state)
{
    (void)state;
    for (const char *name = "abcd"; *name; name++)
        unlink(in_folder((char[]){*name, '.', 'k', 'e', 'y', 0}));
    return rmdir(folder); // fails when a temporary file was left behind
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blake2b_matches_rfc_7693_and_hashlib),
        cmocka_unit_test(test_blake2b_in_pieces_equals_at_once),
        cmocka_unit_test(test_hmac_matches_python),
        cmocka_unit_test(test_hkdf_matches_python),
        cmocka_unit_test(test_aead_matches_openssl_and_refuses_every_changed_bit),
        cmocka_unit_test(test_records_are_the_same_bytes_whoever_seals_them),
        cmocka_unit_test(test_dh_matches_rfc_7748_and_refuses_zero),
        cmocka_unit_test(test_ed25519_matches_rfc_8032),
        cmocka_unit_test(test_password_round_trip_and_rehash),
        cmocka_unit_test(test_password_verifies_another_implementations_hash),
        cmocka_unit_test(test_key_file_round_trip_is_private),
        cmocka_unit_test(test_key_file_is_never_replaced),
        cmocka_unit_test(test_key_file_that_others_may_read_is_refused),
        cmocka_unit_test(test_key_file_broken_is_refused),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
