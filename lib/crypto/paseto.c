// PASETO v4 (https://github.com/paseto-standard/paseto-spec,
// docs/01-Protocol-Versions/Version4.md).
//
// The caller's choice of function fixes version and purpose; a token that says otherwise is
// refused. Everything in a token is authenticated through PAE, which writes the number of pieces
// and the length of each before its bytes, so that no two lists of pieces look alike.
#include "crypto/crypto.h"

#include <string.h>

#include <sodium.h>

#include "base/mem.h"
#include "base/str.h"

#define LOCAL_HEADER "v4.local."
#define PUBLIC_HEADER "v4.public."
#define NONCE_SIZE 32
#define MAC_SIZE 32
#define SIG_SIZE 64

struct piece {
    const void *p;
    size_t n;
};

static struct piece text_piece(const char *s)
{
    return (struct piece){s ? s : "", s ? strlen(s) : 0};
}

static void le64(uint8_t out[8], uint64_t v)
{
    for (unsigned i = 0; i < 8; i++)
        out[i] = (uint8_t)(v >> (8 * i));
    out[7] &= 0x7f; // the specification's: languages without unsigned numbers exist
}

// Pre-authentication encoding.
static bool pae(struct buf *out, const struct piece *pieces, size_t n)
{
    uint8_t len[8];

    le64(len, n);
    buf_append(out, len, sizeof(len));
    for (size_t i = 0; i < n; i++) {
        le64(len, pieces[i].n);
        buf_append(out, len, sizeof(len));
        buf_append(out, pieces[i].p, pieces[i].n);
    }
    return !out->failed;
}

static struct buf scratch(void)
{
    struct buf b;

    buf_init(&b, 4 * CRYPTO_PASETO_MAX_BYTES);
    return b;
}

static enum status out_of_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "token: out of memory or too long");
}

static enum status refused(struct err *err)
{
    return err_set(err, STATUS_UNAUTHENTICATED, "token: malformed or forged");
}

// header, base64url(body) and, when there is one, '.' and base64url(footer).
static enum status emit(struct buf *out, const char *header, const struct buf *body,
                        struct piece footer, struct err *err)
{
    size_t footer_len = footer.n > 0 ? 1 + str_b64_len(footer.n) : 0;
    size_t total = strlen(header) + str_b64_len(body->len) + footer_len;
    if (total > CRYPTO_PASETO_MAX_BYTES)
        return err_set(err, STATUS_INVALID_ARGUMENT, "token: %zu bytes, at most %d allowed", total,
                       CRYPTO_PASETO_MAX_BYTES);
    char *p = (char *)buf_reserve(out, total + 1);
    if (!p)
        return out_of_memory(err);
    memcpy(p, header, strlen(header));
    p += strlen(header);
    str_b64(p, body->data, body->len);
    p += str_b64_len(body->len);
    if (footer.n > 0) {
        *p++ = '.';
        str_b64(p, footer.p, footer.n);
    }
    buf_commit(out, total);
    return STATUS_OK;
}

// Decoded parts of a token, in one heap block.
struct parsed {
    uint8_t *body, *footer;
    size_t body_len, footer_len;
};

static void parsed_done(struct parsed *t)
{
    crypto_wipe(t->body, t->body_len);
    mem_free(t->body);
}

static enum status parse(struct parsed *t, const char *header, size_t min_body, const char *token,
                         size_t len, const char *footer, struct err *err)
{
    size_t header_len = strlen(header);

    if (len > CRYPTO_PASETO_MAX_BYTES || len <= header_len ||
        memcmp(token, header, header_len) != 0)
        return refused(err);
    token += header_len;
    len -= header_len;
    const char *dot = memchr(token, '.', len);
    size_t b64_len = dot ? (size_t)(dot - token) : len;
    size_t footer_b64_len = dot ? len - b64_len - 1 : 0;
    if (dot && footer_b64_len == 0)
        return refused(err);

    t->body = mem_alloc(len + 1);
    if (!t->body)
        return out_of_memory(err);
    if (!str_unb64(t->body, len, token, b64_len, &t->body_len) || t->body_len < min_body)
        return refused(err);
    t->footer = t->body + t->body_len;
    if (footer_b64_len > 0 &&
        !str_unb64(t->footer, len - t->body_len, dot + 1, footer_b64_len, &t->footer_len))
        return refused(err);
    if (footer &&
        (t->footer_len != strlen(footer) || !crypto_equal(t->footer, footer, t->footer_len)))
        return refused(err);
    return STATUS_OK;
}

// ---------------------------------------------------------------- public (signed)

enum status crypto_paseto_sign(struct buf *out, const uint8_t sec[64], const void *msg, size_t n,
                               const char *footer, const char *implicit, struct err *err)
{
    AUTO(buf_done) struct buf m2 = scratch();
    AUTO(buf_done) struct buf body = scratch();
    struct piece f = text_piece(footer);
    uint8_t sig[SIG_SIZE];

    if (!pae(&m2, (struct piece[]){text_piece(PUBLIC_HEADER), {msg, n}, f, text_piece(implicit)},
             4))
        return out_of_memory(err);
    crypto_ed25519_sign(sig, sec, m2.data, m2.len);
    if (!buf_append(&body, msg, n) || !buf_append(&body, sig, sizeof(sig)))
        return out_of_memory(err);
    return emit(out, PUBLIC_HEADER, &body, f, err);
}

enum status crypto_paseto_verify(struct buf *msg, const uint8_t pub[32], const char *token,
                                 size_t token_len, const char *footer, const char *implicit,
                                 struct err *err)
{
    AUTO(parsed_done) struct parsed t = {0};
    AUTO(buf_done) struct buf m2 = scratch();
    enum status s = parse(&t, PUBLIC_HEADER, SIG_SIZE, token, token_len, footer, err);

    if (s != STATUS_OK)
        return s;
    size_t n = t.body_len - SIG_SIZE;
    if (!pae(&m2,
             (struct piece[]){text_piece(PUBLIC_HEADER),
                              {t.body, n},
                              {t.footer, t.footer_len},
                              text_piece(implicit)},
             4))
        return out_of_memory(err);
    if (!crypto_ed25519_verify(t.body + n, pub, m2.data, m2.len))
        return refused(err);
    if (!buf_append(msg, t.body, n))
        return out_of_memory(err);
    return STATUS_OK;
}

// ---------------------------------------------------------------- local (encrypted)

struct local_keys {
    uint8_t enc[32 + 24]; // XChaCha20 key and nonce
    uint8_t auth[32];
};

static void derive(struct local_keys *k, const uint8_t key[32], const uint8_t nonce[NONCE_SIZE])
{
    struct crypto_blake2b h;

    crypto_blake2b_init(&h, sizeof(k->enc), key, 32, NULL);
    crypto_blake2b_update(&h, "paseto-encryption-key", 21);
    crypto_blake2b_update(&h, nonce, NONCE_SIZE);
    crypto_blake2b_final(&h, k->enc, sizeof(k->enc));
    crypto_blake2b_init(&h, sizeof(k->auth), key, 32, NULL);
    crypto_blake2b_update(&h, "paseto-auth-key-for-aead", 24);
    crypto_blake2b_update(&h, nonce, NONCE_SIZE);
    crypto_blake2b_final(&h, k->auth, sizeof(k->auth));
    crypto_wipe(&h, sizeof(h));
}

static void local_keys_wipe(struct local_keys *k)
{
    crypto_wipe(k, sizeof(*k));
}

static bool local_mac(uint8_t mac[MAC_SIZE], const struct local_keys *k, struct piece nonce,
                      struct piece cipher, struct piece footer, const char *implicit)
{
    AUTO(buf_done) struct buf in = scratch();

    if (!pae(
            &in,
            (struct piece[]){text_piece(LOCAL_HEADER), nonce, cipher, footer, text_piece(implicit)},
            5))
        return false;
    crypto_blake2b(mac, MAC_SIZE, in.data, in.len, k->auth, sizeof(k->auth), NULL);
    return true;
}

enum status crypto_paseto_encrypt(struct buf *out, const uint8_t key[32], const uint8_t nonce[32],
                                  const void *msg, size_t n, const char *footer,
                                  const char *implicit, struct err *err)
{
    AUTO(buf_done) struct buf body = scratch();
    AUTO(local_keys_wipe) struct local_keys k;
    uint8_t random[NONCE_SIZE], mac[MAC_SIZE];

    if (!nonce) {
        randombytes_buf(random, sizeof(random));
        nonce = random;
    }
    derive(&k, key, nonce);
    uint8_t *cipher = buf_append(&body, nonce, NONCE_SIZE) ? buf_reserve(&body, n + 1) : NULL;
    if (!cipher)
        return out_of_memory(err);
    (void)crypto_stream_xchacha20_xor(cipher, msg, n, k.enc + 32, k.enc);
    buf_commit(&body, n);
    if (!local_mac(mac, &k, (struct piece){nonce, NONCE_SIZE},
                   (struct piece){body.data + NONCE_SIZE, n}, text_piece(footer), implicit) ||
        !buf_append(&body, mac, sizeof(mac)))
        return out_of_memory(err);
    return emit(out, LOCAL_HEADER, &body, text_piece(footer), err);
}

enum status crypto_paseto_decrypt(struct buf *msg, const uint8_t key[32], const char *token,
                                  size_t token_len, const char *footer, const char *implicit,
                                  struct err *err)
{
    AUTO(parsed_done) struct parsed t = {0};
    AUTO(local_keys_wipe) struct local_keys k = {0};
    uint8_t mac[MAC_SIZE];
    enum status s = parse(&t, LOCAL_HEADER, NONCE_SIZE + MAC_SIZE, token, token_len, footer, err);

    if (s != STATUS_OK)
        return s;
    const uint8_t *cipher = t.body + NONCE_SIZE;
    size_t n = t.body_len - NONCE_SIZE - MAC_SIZE;
    derive(&k, key, t.body);
    if (!local_mac(mac, &k, (struct piece){t.body, NONCE_SIZE}, (struct piece){cipher, n},
                   (struct piece){t.footer, t.footer_len}, implicit))
        return out_of_memory(err);
    if (!crypto_equal(mac, cipher + n, MAC_SIZE))
        return refused(err);
    uint8_t *plain = buf_reserve(msg, n + 1);
    if (!plain)
        return out_of_memory(err);
    (void)crypto_stream_xchacha20_xor(plain, cipher, n, k.enc + 32, k.enc);
    buf_commit(msg, n);
    return STATUS_OK;
}
