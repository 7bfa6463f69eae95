// Access and media tokens: PASETO v4.public, JSON claims.
//
// The footer names the signing key by its PASERK id. It only chooses among the keys that nodes.ini
// lists for the purpose; version, algorithm and purpose are fixed by the call, and the implicit
// assertion keeps a token of one purpose from passing as one of the other.
//
// A verified token is remembered under its BLAKE2b hash: 63 us of signature check become one hash.
// The memory is bounded, sets of four ways, and the entry that ends first makes room. When a key
// goes all that was remembered goes too.
#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "service/internal.h"
#include "json/json.h"

#define ACCESS_IMPLICIT "cauce-access/1"
#define MEDIA_IMPLICIT "cauce-media/1"
#define MAX_CLAIMS_BYTES 4096
#define FOOTER_SIZE (sizeof("{\"kid\":\"\"}") + SVC_KEY_ID_SIZE)
#define N_SETS 512
#define N_WAYS 4

enum purpose { ACCESS, MEDIA };
static const struct {
    const char *implicit;
    unsigned signer; // the role whose keys may sign it
} purposes[] = {
    [ACCESS] = {ACCESS_IMPLICIT, ROLE_NODE_SESSION},
    [MEDIA] = {MEDIA_IMPLICIT, ROLE_NODE_STORE},
};

struct token_key {
    enum purpose purpose;
    uint8_t key[32];
    char footer[FOOTER_SIZE];
    char suffix[2 + 4 * FOOTER_SIZE / 3 + 4]; // "." and the footer as tokens carry it
};

struct verified {
    enum purpose purpose;
    int64_t exp_wall_ms;
    struct rpc_user user;           // ACCESS
    struct svc_media_claims claims; // MEDIA
};

struct way {
    uint8_t hash[32];
    struct verified v; // empty while exp_wall_ms is 0
};

struct svc_tokens {
    pthread_mutex_t lock; // guards what follows
    struct token_key *keys;
    size_t n_keys;
    unsigned generation; // of the keys: what is verified meanwhile with old ones is not kept
    struct way cache[N_SETS][N_WAYS];
};

// PASERK ID (paserk operations/ID.md): BLAKE2b-264 of the header and the key's own PASERK.
void svc_token_key_id(char out[SVC_KEY_ID_SIZE], const uint8_t token_key[32])
{
    char text[sizeof("k4.pid.k4.public.") + 44] = "k4.pid.k4.public.";
    uint8_t id[33];

    str_b64(text + strlen(text), token_key, 32);
    crypto_blake2b(id, sizeof(id), text, strlen(text), NULL, 0, NULL);
    memcpy(out, "k4.pid.", 7);
    str_b64(out + 7, id, sizeof(id));
}

static void footer_for(char out[FOOTER_SIZE], const uint8_t token_key[32])
{
    char id[SVC_KEY_ID_SIZE];

    svc_token_key_id(id, token_key);
    snprintf(out, FOOTER_SIZE, "{\"kid\":\"%s\"}", id);
}

// ---------------------------------------------------------------- keys

static void token_key_init(struct token_key *k, enum purpose purpose, const uint8_t key[32])
{
    k->purpose = purpose;
    memcpy(k->key, key, 32);
    footer_for(k->footer, key);
    k->suffix[0] = '.';
    str_b64(k->suffix + 1, k->footer, strlen(k->footer));
}

// A node has one key for tokens, or two while it changes them.
static size_t add_keys(const struct svc_node *node, struct token_key *keys, size_t n)
{
    for (enum purpose p = ACCESS; p <= MEDIA; p++) {
        if (node->role != purposes[p].signer)
            continue;
        if (node->has_token_key)
            token_key_init(&keys[n++], p, node->token_key);
        if (node->has_next_token_key)
            token_key_init(&keys[n++], p, node->next_token_key);
    }
    return n;
}

static enum status collect_keys(struct svc_nodes *nodes, struct token_key **ret, size_t *ret_n,
                                struct err *err)
{
    const unsigned signers = purposes[ACCESS].signer | purposes[MEDIA].signer;
    size_t most = 0, n = 0, taken = 0;

    for (const struct svc_node *at = NULL; (at = svc_nodes_next(nodes, signers, at));)
        most++;
    struct token_key *keys = mem_array(2 * most + 1, sizeof(*keys));
    if (!keys)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "token keys: out of memory");
    for (const struct svc_node *at = NULL;
         taken < most && (at = svc_nodes_next(nodes, signers, at)); taken++)
        n = add_keys(at, keys, n);
    *ret = keys;
    *ret_n = n;
    return STATUS_OK;
}

struct svc_tokens *svc_tokens_new(struct svc_nodes *nodes)
{
    struct svc_tokens *t = mem_alloc(sizeof(*t));

    if (!t || collect_keys(nodes, &t->keys, &t->n_keys, NULL) != STATUS_OK) {
        mem_free(t);
        return NULL;
    }
    pthread_mutex_init(&t->lock, NULL);
    return t;
}

void svc_tokens_free(struct svc_tokens *t)
{
    if (!t)
        return;
    pthread_mutex_destroy(&t->lock);
    mem_free(t->keys);
    mem_free(t);
}

static bool has_all(const struct token_key *keys, size_t n, const struct token_key *of, size_t n_of)
{
    for (size_t i = 0; i < n_of; i++) {
        bool found = false;
        for (size_t k = 0; k < n && !found; k++)
            found = keys[k].purpose == of[i].purpose && memcmp(keys[k].key, of[i].key, 32) == 0;
        if (!found)
            return false;
    }
    return true;
}

enum status svc_tokens_update(struct svc_tokens *t, struct svc_nodes *nodes, struct err *err)
{
    struct token_key *keys = NULL;
    size_t n = 0;
    enum status s = collect_keys(nodes, &keys, &n, err);

    if (s != STATUS_OK)
        return s;
    pthread_mutex_lock(&t->lock);
    if (!has_all(keys, n, t->keys, t->n_keys)) {
        memset(t->cache, 0, sizeof(t->cache));
        t->generation++;
    }
    struct token_key *old = t->keys;
    t->keys = keys;
    t->n_keys = n;
    pthread_mutex_unlock(&t->lock);
    mem_free(old);
    return STATUS_OK;
}

static bool signer_of(struct svc_tokens *t, enum purpose purpose, const char *token, size_t len,
                      struct token_key *ret, unsigned *ret_generation)
{
    bool found = false;

    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->n_keys && !found; i++) {
        const struct token_key *k = &t->keys[i];
        size_t n = strlen(k->suffix);
        found = k->purpose == purpose && len > n && memcmp(token + len - n, k->suffix, n) == 0;
        if (found)
            *ret = *k;
    }
    *ret_generation = t->generation;
    pthread_mutex_unlock(&t->lock);
    return found;
}

// ---------------------------------------------------------------- cache

static struct way *set_of(struct svc_tokens *t, const uint8_t hash[32])
{
    return t->cache[((size_t)hash[0] << 8 | hash[1]) % N_SETS];
}

static bool cache_get(struct svc_tokens *t, const uint8_t hash[32], struct verified *ret)
{
    bool found = false;

    pthread_mutex_lock(&t->lock);
    struct way *set = set_of(t, hash);
    for (size_t i = 0; i < N_WAYS && !found; i++) {
        found = set[i].v.exp_wall_ms != 0 && memcmp(set[i].hash, hash, 32) == 0;
        if (found)
            *ret = set[i].v;
    }
    pthread_mutex_unlock(&t->lock);
    return found;
}

static void cache_put(struct svc_tokens *t, const uint8_t hash[32], const struct verified *v,
                      unsigned generation)
{
    pthread_mutex_lock(&t->lock);
    if (generation != t->generation) { // its key may have gone meanwhile
        pthread_mutex_unlock(&t->lock);
        return;
    }
    struct way *set = set_of(t, hash), *victim = set;
    for (size_t i = 1; i < N_WAYS; i++)
        if (set[i].v.exp_wall_ms < victim->v.exp_wall_ms)
            victim = &set[i];
    memcpy(victim->hash, hash, 32);
    victim->v = *v;
    pthread_mutex_unlock(&t->lock);
}

// ---------------------------------------------------------------- claims

struct word_bit {
    const char *word;
    unsigned bit;
};
static const struct word_bit role_words[] = {
    {"user", ROLE_USER}, {"creator", ROLE_CREATOR}, {"admin", ROLE_ADMIN}};
static const struct word_bit right_words[] = {{"stream", SVC_RIGHT_STREAM},
                                              {"download", SVC_RIGHT_DOWNLOAD}};

static bool get_text(const struct json_value *claims, const char *key, char *dst, size_t size)
{
    const char *s = NULL;
    size_t len = 0;

    if (!json_get_string(json_member(claims, key), &s, &len) || len >= size)
        return false;
    memcpy(dst, s, len);
    dst[len] = '\0';
    return true;
}

// Words that we do not know grant nothing.
static bool get_bits(const struct json_value *claims, const char *key, const struct word_bit *words,
                     size_t n, unsigned *ret)
{
    const struct json_value *list = json_member(claims, key);

    if (json_kind(list) != JSON_KIND_ARRAY)
        return false;
    *ret = 0;
    for (size_t i = 0; i < json_size(list); i++)
        for (size_t w = 0; w < n; w++)
            if (str_eq(json_string_or(json_element(list, i), NULL), words[w].word))
                *ret |= words[w].bit;
    return true;
}

// A token without one is as old as can be.
static bool get_epoch(const struct json_value *claims, int64_t *ret)
{
    const struct json_value *v = json_member(claims, "epoch");

    *ret = 0;
    return !v || (json_get_i64(v, ret) && *ret >= 0);
}

static bool get_exp(const struct json_value *claims, int64_t *ret)
{
    char text[TIME_RFC3339_SIZE];

    return get_text(claims, "exp", text, sizeof(text)) && time_parse_rfc3339(text, ret) && *ret > 0;
}

static bool read_claims(const struct json_value *c, enum purpose purpose, struct verified *v)
{
    v->purpose = purpose;
    if (!get_exp(c, &v->exp_wall_ms))
        return false;
    if (purpose == ACCESS) {
        v->user.exp_wall_ms = v->exp_wall_ms;
        return get_epoch(c, &v->user.epoch) && get_text(c, "sub", v->user.id, sizeof(v->user.id)) &&
               v->user.id[0] != '\0' && get_text(c, "name", v->user.name, sizeof(v->user.name)) &&
               get_text(c, "sid", v->user.session, sizeof(v->user.session)) &&
               get_bits(c, "roles", role_words, N_ELEMENTS(role_words), &v->user.roles);
    }
    v->claims.exp_wall_ms = v->exp_wall_ms;
    return get_text(c, "sub", v->claims.sub, sizeof(v->claims.sub)) &&
           get_text(c, "item", v->claims.item, sizeof(v->claims.item)) &&
           v->claims.item[0] != '\0' &&
           get_bits(c, "rights", right_words, N_ELEMENTS(right_words), &v->claims.rights);
}

static bool put_time(struct buf *b, const char *key, int64_t wall_ms)
{
    char text[TIME_RFC3339_SIZE];

    time_rfc3339(text, wall_ms);
    return buf_printf(b, ",\"%s\":\"%s\"", key, text);
}

static bool put_text(struct buf *b, const char *before, const char *value)
{
    return buf_puts(b, before) && buf_put_json_string(b, value, strlen(value));
}

static bool put_bits(struct buf *b, const char *key, const struct word_bit *words, size_t n,
                     unsigned bits)
{
    const char *comma = "";

    buf_printf(b, ",\"%s\":[", key);
    for (size_t i = 0; i < n; i++) {
        if (!(bits & words[i].bit))
            continue;
        buf_printf(b, "%s\"%s\"", comma, words[i].word);
        comma = ",";
    }
    return buf_putc(b, ']');
}

// ---------------------------------------------------------------- minting

static enum status mint(const uint8_t secret[64], enum purpose purpose, struct buf *claims,
                        struct buf *out, struct err *err)
{
    char footer[FOOTER_SIZE];

    buf_putc(claims, '}');
    if (claims->failed)
        return err_set(err, STATUS_INVALID_ARGUMENT, "token: claims are too long");
    footer_for(footer, secret + 32); // an Ed25519 secret key ends with its public key
    return crypto_paseto_sign(out, secret, claims->data, claims->len, footer,
                              purposes[purpose].implicit, err);
}

enum status svc_token_mint_access(const uint8_t secret[64], const struct rpc_user *user,
                                  struct buf *out, struct err *err)
{
    AUTO(buf_done) struct buf c = {0};

    buf_init(&c, MAX_CLAIMS_BYTES);
    put_text(&c, "{\"sub\":", user->id);
    put_text(&c, ",\"name\":", user->name);
    put_text(&c, ",\"sid\":", user->session);
    put_bits(&c, "roles", role_words, N_ELEMENTS(role_words), user->roles);
    buf_printf(&c, ",\"epoch\":%lld", (long long)user->epoch);
    put_time(&c, "iat", time_wall_ms());
    put_time(&c, "exp", user->exp_wall_ms);
    return mint(secret, ACCESS, &c, out, err);
}

enum status svc_token_mint_media(const uint8_t secret[64], const struct svc_media_claims *claims,
                                 struct buf *out, struct err *err)
{
    AUTO(buf_done) struct buf c = {0};

    buf_init(&c, MAX_CLAIMS_BYTES);
    put_text(&c, "{\"sub\":", claims->sub);
    put_text(&c, ",\"item\":", claims->item);
    put_bits(&c, "rights", right_words, N_ELEMENTS(right_words), claims->rights);
    put_time(&c, "exp", claims->exp_wall_ms);
    return mint(secret, MEDIA, &c, out, err);
}

// ---------------------------------------------------------------- verifying

static enum status refused(struct err *err, const char *why)
{
    return err_set(err, STATUS_UNAUTHENTICATED, "token: %s", why);
}

static enum status check(struct svc_tokens *t, enum purpose purpose, const char *token, size_t len,
                         struct verified *ret, unsigned *ret_generation, struct err *err)
{
    AUTO(buf_done) struct buf payload = {0};
    AUTO(json_free_p) struct json_value *claims = NULL;
    struct token_key k;

    if (!signer_of(t, purpose, token, len, &k, ret_generation))
        return refused(err, "signed by nobody whom we know");
    buf_init(&payload, MAX_CLAIMS_BYTES);
    enum status s = crypto_paseto_verify(&payload, k.key, token, len, k.footer,
                                         purposes[purpose].implicit, err);
    if (s != STATUS_OK)
        return s;
    struct verified v = {0};
    if (json_parse(payload.data, payload.len, 4, &claims, NULL) != STATUS_OK ||
        !read_claims(claims, purpose, &v))
        return refused(err, "claims are missing or malformed");
    *ret = v;
    return STATUS_OK;
}

static void hash_token(uint8_t hash[32], enum purpose purpose, const char *token, size_t len)
{
    struct crypto_blake2b h;
    uint8_t p = (uint8_t)purpose;

    crypto_blake2b_init(&h, 32, NULL, 0, NULL);
    crypto_blake2b_update(&h, &p, 1);
    crypto_blake2b_update(&h, token, len);
    crypto_blake2b_final(&h, hash, 32);
}

static enum status verify(struct svc_tokens *t, enum purpose purpose, const char *token, size_t len,
                          struct verified *ret, struct err *err)
{
    uint8_t hash[32];
    struct verified v;
    unsigned generation = 0;

    if (len > CRYPTO_PASETO_MAX_BYTES)
        return refused(err, "too long");
    hash_token(hash, purpose, token, len);
    bool cached = cache_get(t, hash, &v);
    enum status s = cached ? STATUS_OK : check(t, purpose, token, len, &v, &generation, err);
    if (s != STATUS_OK)
        return s;
    if (v.exp_wall_ms <= time_wall_ms())
        return refused(err, "expired");
    if (!cached)
        cache_put(t, hash, &v, generation);
    *ret = v;
    return STATUS_OK;
}

enum status svc_tokens_verify_access(void *tokens, const char *token, size_t len,
                                     struct rpc_user *ret, struct err *err)
{
    struct verified v;
    enum status s = verify(tokens, ACCESS, token, len, &v, err);

    if (s == STATUS_OK)
        *ret = v.user;
    return s;
}

enum status svc_tokens_verify_media(struct svc_tokens *t, const char *token,
                                    struct svc_media_claims *ret, struct err *err)
{
    struct verified v;
    enum status s = verify(t, MEDIA, token, strlen(token), &v, err);

    if (s == STATUS_OK)
        *ret = v.claims;
    return s;
}
