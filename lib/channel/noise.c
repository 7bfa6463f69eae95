#include "channel/noise.h"

#include <string.h>

#include "base/str.h"

// ---------------------------------------------------------------- patterns (7)

// What a side must have before the first message: its peer's static key, or its own.
enum { PRE_RESPONDER_S = 1 };

static const struct pattern {
    const char *name;
    unsigned pre; // PRE_ bits
    unsigned n_messages;
    uint8_t messages[NOISE_MAX_MESSAGES][NOISE_MAX_TOKENS];
} patterns[] = {
    // clang-format off
    {"NN", 0,               2, {{NOISE_E}, {NOISE_E, NOISE_EE}}},
    {"NK", PRE_RESPONDER_S, 2, {{NOISE_E, NOISE_ES}, {NOISE_E, NOISE_EE}}},
    {"XK", PRE_RESPONDER_S, 3, {{NOISE_E, NOISE_ES}, {NOISE_E, NOISE_EE}, {NOISE_S, NOISE_SE}}},
    {"IK", PRE_RESPONDER_S, 2, {{NOISE_E, NOISE_ES, NOISE_S, NOISE_SS}, {NOISE_E, NOISE_EE, NOISE_SE}}},
    {"XX", 0,               3, {{NOISE_E}, {NOISE_E, NOISE_EE, NOISE_S, NOISE_ES}, {NOISE_S, NOISE_SE}}},
    // clang-format on
};

static const struct {
    const char *name;
    enum crypto_aead aead;
} ciphers[] = {
    {"ChaChaPoly", CRYPTO_CHACHAPOLY},
    {"AESGCM", CRYPTO_AESGCM},
};

// Put a psk token where "pskP" says (9.4): P = 0 before the first token, else at the end of
// message P.
static bool add_psk(struct noise *n, unsigned position)
{
    uint8_t *tokens = n->messages[position == 0 ? 0 : position - 1];

    if (position > n->n_messages)
        return false;
    if (position == 0) {
        memmove(tokens + 1, tokens, NOISE_MAX_TOKENS - 1);
        tokens[0] = NOISE_PSK;
    } else {
        while (*tokens != NOISE_END)
            tokens++;
        *tokens = NOISE_PSK;
    }
    n->has_psk = true;
    return true;
}

// "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2b" -> pattern, psk position, cipher.
static const struct pattern *parse_protocol(struct noise *n, const char *name)
{
    const struct pattern *found = NULL;

    if (strncmp(name, "Noise_", 6) != 0)
        return NULL;
    name += 6;
    for (size_t i = 0; i < N_ELEMENTS(patterns); i++)
        if (strncmp(name, patterns[i].name, 2) == 0)
            found = &patterns[i];
    if (!found)
        return NULL;
    name += 2;
    n->n_messages = found->n_messages;
    memcpy(n->messages, found->messages, sizeof(n->messages));
    if (strncmp(name, "psk", 3) == 0) {
        if (name[3] < '0' || name[3] > '9' || !add_psk(n, (unsigned)(name[3] - '0')))
            return NULL;
        name += 4;
    }
    if (strncmp(name, "_25519_", 7) != 0)
        return NULL;
    name += 7;
    for (size_t i = 0; i < N_ELEMENTS(ciphers); i++) {
        size_t len = strlen(ciphers[i].name);
        if (strncmp(name, ciphers[i].name, len) == 0 && str_eq(name + len, "_BLAKE2b")) {
            n->sym.aead = ciphers[i].aead;
            return crypto_aead_is_available(n->sym.aead) ? found : NULL;
        }
    }
    return NULL;
}

// ---------------------------------------------------------------- symmetric state (5.2)

static void mix_hash(struct noise_symmetric *s, const void *p, size_t len)
{
    struct crypto_blake2b h;

    crypto_blake2b_init(&h, NOISE_HASH_SIZE, NULL, 0, NULL);
    crypto_blake2b_update(&h, s->h, sizeof(s->h));
    crypto_blake2b_update(&h, p, len);
    crypto_blake2b_final(&h, s->h, sizeof(s->h));
}

// The cipher key is the first half of the hash-sized output.
static void set_key(struct noise_symmetric *s, const uint8_t temp[NOISE_HASH_SIZE])
{
    memcpy(s->key, temp, NOISE_KEY_SIZE);
    s->has_key = true;
    s->nonce = 0;
}

static void mix_key(struct noise_symmetric *s, const uint8_t ikm[32])
{
    uint8_t temp[NOISE_HASH_SIZE];

    crypto_noise_hkdf(s->ck, ikm, 32, s->ck, temp, NULL);
    set_key(s, temp);
    crypto_wipe(temp, sizeof(temp));
}

static void mix_key_and_hash(struct noise_symmetric *s, const uint8_t psk[32])
{
    uint8_t temp_h[NOISE_HASH_SIZE], temp_k[NOISE_HASH_SIZE];

    crypto_noise_hkdf(s->ck, psk, 32, s->ck, temp_h, temp_k);
    mix_hash(s, temp_h, sizeof(temp_h));
    set_key(s, temp_k);
    crypto_wipe(temp_h, sizeof(temp_h));
    crypto_wipe(temp_k, sizeof(temp_k));
}

static size_t encrypt_and_hash(struct noise_symmetric *s, uint8_t *out, const void *in, size_t len)
{
    if (s->has_key)
        len = crypto_seal(s->aead, out, s->key, s->nonce++, s->h, sizeof(s->h), in, len);
    else if (len > 0)
        memcpy(out, in, len);
    mix_hash(s, out, len);
    return len;
}

static bool decrypt_and_hash(struct noise_symmetric *s, uint8_t *out, const uint8_t *in, size_t len)
{
    if (!s->has_key) {
        if (len > 0)
            memcpy(out, in, len);
    } else {
        if (!crypto_open(s->aead, out, s->key, s->nonce, s->h, sizeof(s->h), in, len))
            return false;
        s->nonce++;
    }
    mix_hash(s, in, len);
    return true;
}

static size_t tag_size(const struct noise_symmetric *s)
{
    return s->has_key ? NOISE_TAG_SIZE : 0;
}

// ---------------------------------------------------------------- handshake state (5.3)

static bool has_token(const struct noise *n, unsigned first, enum noise_token token)
{
    for (unsigned m = first; m < n->n_messages; m += 2)
        if (memchr(n->messages[m], (int)token, NOISE_MAX_TOKENS))
            return true;
    return false;
}

static enum status check_keys(const struct noise *n, const struct pattern *p, const char *protocol,
                              struct err *err)
{
    bool sends_s = has_token(n, n->is_initiator ? 0 : 1, NOISE_S);
    bool is_known = !n->is_initiator && (p->pre & PRE_RESPONDER_S);

    if ((sends_s || is_known) && !n->s.is_set)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s: needs our static key", protocol);
    if (n->is_initiator && (p->pre & PRE_RESPONDER_S) && !n->has_rs)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s: needs the peer's static key", protocol);
    return STATUS_OK;
}

enum status noise_init(struct noise *n, const struct noise_opts *o, struct err *err)
{
    memset(n, 0, sizeof(*n));
    const struct pattern *p = parse_protocol(n, o->protocol);
    if (!p)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s: unknown Noise protocol", o->protocol);
    n->is_initiator = o->is_initiator;
    if (o->s)
        n->s = *o->s;
    if (o->e)
        n->e = *o->e;
    if (o->rs) {
        memcpy(n->rs, o->rs, sizeof(n->rs));
        n->has_rs = true;
    }
    if (n->has_psk != (o->psk != NULL))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s: pre-shared key %s", o->protocol,
                       o->psk ? "not used" : "missing");
    if (o->psk)
        memcpy(n->psk, o->psk, sizeof(n->psk));
    enum status s = check_keys(n, p, o->protocol, err);
    if (s != STATUS_OK)
        return s;

    size_t name_len = strlen(o->protocol); // of those in the tables none exceeds the hash's size
    memcpy(n->sym.h, o->protocol, name_len);
    memcpy(n->sym.ck, n->sym.h, sizeof(n->sym.ck));
    mix_hash(&n->sym, o->prologue, o->prologue_len);
    if (p->pre & PRE_RESPONDER_S)
        mix_hash(&n->sym, n->is_initiator ? n->rs : n->s.public_key, NOISE_KEY_SIZE);
    return STATUS_OK;
}

void noise_set_psk(struct noise *n, const uint8_t psk[32])
{
    memcpy(n->psk, psk, sizeof(n->psk));
}

void noise_wipe(struct noise *n)
{
    crypto_wipe(n, sizeof(*n));
}

bool noise_is_done(const struct noise *n)
{
    return n->next == n->n_messages;
}

bool noise_may_write(const struct noise *n)
{
    return !noise_is_done(n) && (n->next % 2 == 0) == n->is_initiator;
}

static bool mix_dh(struct noise *n, const struct noise_keypair *own, bool has_peer,
                   const uint8_t peer[NOISE_KEY_SIZE])
{
    uint8_t shared[32];

    if (!own->is_set || !has_peer || !crypto_dh(shared, own->secret, peer))
        return false;
    mix_key(&n->sym, shared);
    crypto_wipe(shared, sizeof(shared));
    return true;
}

// Tokens that carry no bytes, alike for the writer and the reader.
static bool mix_token(struct noise *n, enum noise_token t)
{
    switch (t) {
    case NOISE_EE:
        return mix_dh(n, &n->e, n->has_re, n->re);
    case NOISE_ES:
        return n->is_initiator ? mix_dh(n, &n->e, n->has_rs, n->rs)
                               : mix_dh(n, &n->s, n->has_re, n->re);
    case NOISE_SE:
        return n->is_initiator ? mix_dh(n, &n->s, n->has_re, n->re)
                               : mix_dh(n, &n->e, n->has_rs, n->rs);
    case NOISE_SS:
        return mix_dh(n, &n->s, n->has_rs, n->rs);
    case NOISE_PSK:
        mix_key_and_hash(&n->sym, n->psk);
        return true;
    case NOISE_END:
    case NOISE_E:
    case NOISE_S:
        break;
    }
    return false;
}

// With a psk an ephemeral key is also mixed into the chaining key (9.2).
static void mix_ephemeral(struct noise *n, const uint8_t e[NOISE_KEY_SIZE])
{
    mix_hash(&n->sym, e, NOISE_KEY_SIZE);
    if (n->has_psk)
        mix_key(&n->sym, e);
}

static size_t write_token(struct noise *n, enum noise_token t, uint8_t *out, size_t cap, bool *ok)
{
    switch (t) {
    case NOISE_E:
        if (cap < NOISE_KEY_SIZE)
            break;
        if (!n->e.is_set)
            crypto_dh_keypair(n->e.public_key, n->e.secret);
        n->e.is_set = true;
        memcpy(out, n->e.public_key, NOISE_KEY_SIZE);
        mix_ephemeral(n, n->e.public_key);
        return NOISE_KEY_SIZE;
    case NOISE_S:
        if (cap < NOISE_KEY_SIZE + tag_size(&n->sym))
            break;
        return encrypt_and_hash(&n->sym, out, n->s.public_key, NOISE_KEY_SIZE);
    case NOISE_EE:
    case NOISE_ES:
    case NOISE_SE:
    case NOISE_SS:
    case NOISE_PSK:
        *ok = mix_token(n, t);
        return 0;
    case NOISE_END:
        return 0;
    }
    *ok = false;
    return 0;
}

size_t noise_write(struct noise *n, const void *payload, size_t payload_len, uint8_t *out,
                   size_t cap)
{
    size_t len = 0;
    bool ok = true;

    if (!noise_may_write(n))
        return 0;
    const uint8_t *tokens = n->messages[n->next];
    for (size_t i = 0; i < NOISE_MAX_TOKENS && tokens[i] != NOISE_END; i++) {
        len += write_token(n, (enum noise_token)tokens[i], out + len, cap - len, &ok);
        if (!ok)
            return 0;
    }
    if (cap - len < tag_size(&n->sym) || cap - len - tag_size(&n->sym) < payload_len)
        return 0;
    len += encrypt_and_hash(&n->sym, out + len, payload, payload_len);
    n->next++;
    return len;
}

static size_t read_token(struct noise *n, enum noise_token t, const uint8_t *in, size_t len,
                         bool *ok)
{
    size_t size = NOISE_KEY_SIZE;

    switch (t) {
    case NOISE_E:
        if (len < size)
            break;
        memcpy(n->re, in, size);
        n->has_re = true;
        mix_ephemeral(n, n->re);
        return size;
    case NOISE_S:
        size += tag_size(&n->sym);
        if (len < size || n->has_rs || !decrypt_and_hash(&n->sym, n->rs, in, size))
            break;
        n->has_rs = true;
        return size;
    case NOISE_EE:
    case NOISE_ES:
    case NOISE_SE:
    case NOISE_SS:
    case NOISE_PSK:
        *ok = mix_token(n, t);
        return 0;
    case NOISE_END:
        return 0;
    }
    *ok = false;
    return 0;
}

// Works on a copy, so that a message that fails anywhere changes nothing.
static bool read_message(struct noise *n, const uint8_t *in, size_t len, uint8_t *payload,
                         size_t *ret_payload_len)
{
    const uint8_t *tokens = n->messages[n->next];
    bool ok = true;

    for (size_t i = 0; i < NOISE_MAX_TOKENS && tokens[i] != NOISE_END; i++) {
        size_t used = read_token(n, (enum noise_token)tokens[i], in, len, &ok);
        if (!ok)
            return false;
        in += used;
        len -= used;
    }
    size_t tag = tag_size(&n->sym);
    if (len < tag || !decrypt_and_hash(&n->sym, payload, in, len))
        return false;
    *ret_payload_len = len - tag;
    n->next++;
    return true;
}

bool noise_read(struct noise *n, const uint8_t *in, size_t len, uint8_t *payload,
                size_t *ret_payload_len)
{
    if (noise_is_done(n) || noise_may_write(n))
        return false;
    struct noise copy = *n;
    bool ok = read_message(&copy, in, len, payload, ret_payload_len);
    if (ok)
        *n = copy;
    noise_wipe(&copy);
    return ok;
}

void noise_split(const struct noise *n, uint8_t initiator_key[NOISE_KEY_SIZE],
                 uint8_t responder_key[NOISE_KEY_SIZE])
{
    uint8_t k1[NOISE_HASH_SIZE], k2[NOISE_HASH_SIZE];

    crypto_noise_hkdf(n->sym.ck, NULL, 0, k1, k2, NULL);
    memcpy(initiator_key, k1, NOISE_KEY_SIZE);
    memcpy(responder_key, k2, NOISE_KEY_SIZE);
    crypto_wipe(k1, sizeof(k1));
    crypto_wipe(k2, sizeof(k2));
}

void noise_rekey(enum crypto_aead aead, uint8_t key[NOISE_KEY_SIZE])
{
    static const uint8_t zeros[NOISE_KEY_SIZE];
    uint8_t sealed[NOISE_KEY_SIZE + NOISE_TAG_SIZE];

    crypto_seal(aead, sealed, key, UINT64_MAX, NULL, 0, zeros, sizeof(zeros));
    memcpy(key, sealed, NOISE_KEY_SIZE);
    crypto_wipe(sealed, sizeof(sealed));
}
