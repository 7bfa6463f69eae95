// cauced keys: the operator's root key, node keys, grants, token keys and nodes.ini.
//
//   DIR/operator.key        Ed25519 secret; belongs somewhere safe and offline afterwards
//   DIR/nodes.ini           public: give it to every node
//   DIR/ID.key, ID.grant    the node's X25519 secret and its grant: give them to that node only
//   DIR/ID.token.key        session and store: the Ed25519 secret that signs tokens
//
// Run again it adds what is missing, takes new addresses over, and renews grants that end soon. A
// key is never replaced. nodes.ini is written last, so that a run which was cut off leaves keys
// without a name, which the next run finds and names.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauced.h"
#include "channel/channel.h"
#include "config/config.h"
#include "crypto/crypto.h"
#include "service/service.h"

#define MAX_NODES 512
#define MAX_INI_BYTES (1U << 20)
#define RENEW_S (30 * 24 * 3600) // a grant that ends within this is made anew
#define BACKDATE_S 3600          // clocks of nodes differ

struct options {
    char *out;
    char **node;
    int64_t valid_ms;
};
#define OPT(field) offsetof(struct options, field)

static const struct cfg_option rows[] = {
    {"out", CFG_STRING, OPT(out), NULL, 0, 0, "directory, made if need be"},
    {"node", CFG_STRING_LIST, OPT(node), NULL, 0, 0,
     "a node to add, or to change the address of: ID:ROLE[:KIND]@URL"},
    {"valid", CFG_DURATION_MS, OPT(valid_ms), "3650d", 0, 0, "how long new grants last"},
};
static const struct cfg_spec spec = {
    .section = "keys",
    .usage = "cauced keys --out DIR [--node ID:ROLE[:KIND]@URL ...]\n\n"
             "ROLE: session orchestrator transcode store origin gateway admin; KIND, of origins: "
             "video audio",
    .options = rows,
    .n_options = N_ELEMENTS(rows),
};

struct keys {
    const char *dir;
    int64_t valid_s;
    uint8_t operator_secret[64], operator_public[32];
    bool has_operator;
    struct svc_nodes *before; // NULL when nodes.ini is not there yet
    struct svc_node nodes[MAX_NODES];
    size_t n;
};

static char *path_of(const struct keys *k, const char *name, const char *suffix)
{
    return mem_printf("%s/%s%s", k->dir, name, suffix);
}

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

// ---------------------------------------------------------------- the operator

static enum status load_nodes(struct keys *k, struct err *err)
{
    AUTO(mem_free_p) char *path = path_of(k, "nodes.ini", "");
    if (!path)
        return no_memory(err);
    enum status s = svc_nodes_load(path, &k->before, err);
    if (s == STATUS_NOT_FOUND)
        return STATUS_OK;
    for (const struct svc_node *n = NULL;
         s == STATUS_OK && (n = svc_nodes_next(k->before, ROLE_NODE_ANY, n));) {
        if (k->n == MAX_NODES)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: more than %d nodes", path,
                           MAX_NODES);
        k->nodes[k->n++] = *n;
    }
    return s;
}

// Without the operator's key a run can still change addresses; whatever needs a signature fails.
static enum status load_operator(struct keys *k, struct err *err)
{
    AUTO(mem_free_p) char *path = path_of(k, "operator.key", "");
    if (!path)
        return no_memory(err);
    enum status s = crypto_key_load(path, "cauce-ed25519-secret", k->operator_secret, 64, err);
    if (s == STATUS_NOT_FOUND && k->before) {
        memcpy(k->operator_public, svc_nodes_operator(k->before), 32);
        return STATUS_OK;
    }
    if (s == STATUS_NOT_FOUND) {
        crypto_ed25519_keypair(k->operator_public, k->operator_secret);
        s = crypto_key_save(path, "cauce-ed25519-secret", k->operator_secret, 64, err);
    }
    if (s != STATUS_OK)
        return s;
    k->has_operator = true;
    memcpy(k->operator_public, k->operator_secret + 32, 32);
    if (k->before && !crypto_equal(k->operator_public, svc_nodes_operator(k->before), 32))
        return err_set(err, STATUS_FAILED_PRECONDITION, "%s is not the operator key of nodes.ini",
                       path);
    return STATUS_OK;
}

// ---------------------------------------------------------------- the words of --node

static enum status bad_word(struct err *err, const char *word, const char *why)
{
    return err_set(err, STATUS_INVALID_ARGUMENT, "--node %s: %s", word, why);
}

static bool copy_part(char *dst, size_t size, const char *from, size_t len)
{
    if (len == 0 || len >= size)
        return false;
    memcpy(dst, from, len);
    dst[len] = '\0';
    return true;
}

static bool is_node_id(const char *id)
{
    return strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789._-") == strlen(id) && id[0] != '.' &&
           !str_eq(id, "operator");
}

static bool is_kind(const struct svc_node *n)
{
    if (n->role != ROLE_NODE_ORIGIN)
        return n->kind[0] == '\0';
    return str_eq(n->kind, "video") || str_eq(n->kind, "audio");
}

static bool is_url(const char *url)
{
    static const char *const schemes[] = {"tcp://", "ipc://", "inproc://"};

    for (const char *p = url; *p; p++)
        if ((unsigned char)*p <= ' ' || *p == ';' || *p == '#' || *p == 0x7f)
            return false;
    for (size_t i = 0; i < N_ELEMENTS(schemes); i++)
        if (str_starts_with(url, schemes[i]) && url[strlen(schemes[i])])
            return true;
    return false;
}

static enum status parse_word(const char *word, struct svc_node *n, struct err *err)
{
    const char *at = strchr(word, '@'), *colon = strchr(word, ':');
    char role[32];

    memset(n, 0, sizeof(*n));
    if (!at || !colon || colon > at)
        return bad_word(err, word, "not of the form ID:ROLE[:KIND]@URL");
    size_t role_len = strcspn(colon + 1, ":@");
    const char *after = colon + 1 + role_len;
    if (!copy_part(n->id, sizeof(n->id), word, (size_t)(colon - word)) || !is_node_id(n->id))
        return bad_word(err, word, "a node id has 1 to 63 characters of a-z 0-9 . _ -");
    if (!copy_part(role, sizeof(role), colon + 1, role_len) ||
        !(n->role = svc_role_from_name(role)))
        return bad_word(err, word, "no such role");
    if (*after == ':' && !copy_part(n->kind, sizeof(n->kind), after + 1, (size_t)(at - after - 1)))
        return bad_word(err, word, "no such kind");
    if (!is_kind(n))
        return bad_word(err, word, "origins have the kind video or audio, other roles none");
    if (!is_url(at + 1) || !str_copy(n->url, sizeof(n->url), at + 1))
        return bad_word(err, word, "the address is tcp://HOST:PORT, ipc:///PATH or inproc://NAME");
    return STATUS_OK;
}

static enum status take_word(struct keys *k, const char *word, struct err *err)
{
    struct svc_node n;
    enum status s = parse_word(word, &n, err);
    if (s != STATUS_OK)
        return s;
    for (size_t i = 0; i < k->n; i++) {
        struct svc_node *there = &k->nodes[i];
        if (!str_eq(there->id, n.id))
            continue;
        if (there->role != n.role || !str_eq(there->kind, n.kind))
            return bad_word(err, word,
                            "the node exists with another role or kind; choose another id");
        memcpy(there->url, n.url, sizeof(n.url));
        return STATUS_OK;
    }
    if (k->n == MAX_NODES)
        return bad_word(err, word, "too many nodes");
    k->nodes[k->n++] = n;
    return STATUS_OK;
}

// ---------------------------------------------------------------- keys and grants of a node

static bool was_there(const struct keys *k, const char *id)
{
    return k->before && svc_nodes_find(k->before, id);
}

// Load the secret, or make it when the node is new. *ret_is_here: false for a node whose secret was
// taken to its machine, which is left as it is.
static enum status node_key(struct keys *k, struct svc_node *n, bool *ret_is_here, struct err *err)
{
    uint8_t secret[32], public_key[32];
    AUTO(mem_free_p) char *path = path_of(k, n->id, ".key");
    if (!path)
        return no_memory(err);
    enum status s = crypto_key_load(path, "cauce-x25519-secret", secret, sizeof(secret), err);
    *ret_is_here = s != STATUS_NOT_FOUND || !was_there(k, n->id);
    if (!*ret_is_here)
        return STATUS_OK;
    if (s == STATUS_NOT_FOUND) {
        crypto_dh_keypair(public_key, secret);
        s = crypto_key_save(path, "cauce-x25519-secret", secret, sizeof(secret), err);
    }
    if (s == STATUS_OK)
        crypto_dh_public(public_key, secret);
    crypto_wipe(secret, sizeof(secret));
    if (s == STATUS_OK && was_there(k, n->id) && !crypto_equal(public_key, n->key, 32))
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "%s is not the key that nodes.ini has for %s", path, n->id);
    if (s == STATUS_OK)
        memcpy(n->key, public_key, sizeof(public_key));
    return s;
}

static enum status node_token_key(struct keys *k, struct svc_node *n, struct err *err)
{
    uint8_t secret[64];
    AUTO(mem_free_p) char *path = path_of(k, n->id, ".token.key");
    if (!path)
        return no_memory(err);
    if (!(n->role & (ROLE_NODE_SESSION | ROLE_NODE_STORE)))
        return STATUS_OK;
    enum status s = crypto_key_load(path, "cauce-ed25519-secret", secret, sizeof(secret), err);
    if (s == STATUS_NOT_FOUND && !n->has_token_key) {
        crypto_ed25519_keypair(n->token_key, secret);
        s = crypto_key_save(path, "cauce-ed25519-secret", secret, sizeof(secret), err);
    }
    if (s == STATUS_OK) {
        memcpy(n->token_key, secret + 32, 32);
        n->has_token_key = true;
    }
    crypto_wipe(secret, sizeof(secret));
    return s;
}

static bool grant_is_good(const struct keys *k, const struct svc_node *n, const char *path)
{
    uint8_t bytes[CHAN_GRANT_SIZE];
    struct chan_grant g;

    if (crypto_key_load(path, "cauce-grant", bytes, sizeof(bytes), NULL) != STATUS_OK)
        return false;
    return chan_grant_verify(&g, bytes, sizeof(bytes), k->operator_public,
                             time_wall_ms() / 1000 + RENEW_S, NULL) == STATUS_OK &&
           1U << g.role == n->role && str_eq(g.node_id, n->id) && crypto_equal(g.key, n->key, 32) &&
           (!k->before || g.serial >= svc_nodes_serial_floor(k->before));
}

static unsigned role_number(unsigned role_bit)
{
    unsigned number = 0;

    while (role_bit >>= 1)
        number++;
    return number;
}

static enum status node_grant(struct keys *k, const struct svc_node *n, struct err *err)
{
    AUTO(buf_done) struct buf b = {0};
    AUTO(mem_free_p) char *path = path_of(k, n->id, ".grant");
    int64_t now_s = time_wall_ms() / 1000;

    if (!path)
        return no_memory(err);
    if (grant_is_good(k, n, path))
        return STATUS_OK;
    if (!k->has_operator)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "%s needs a new grant, and operator.key is not in %s: put it there", n->id,
                       k->dir);
    struct chan_grant g = {.role = role_number(n->role),
                           .not_before_s = now_s - BACKDATE_S,
                           .not_after_s = now_s + k->valid_s,
                           .serial = (uint64_t)now_s};
    memcpy(g.key, n->key, sizeof(g.key));
    (void)str_copy(g.node_id, sizeof(g.node_id), n->id);
    buf_init(&b, CHAN_GRANT_SIZE);
    enum status s = chan_grant_sign(&b, &g, k->operator_secret, err);
    if (s != STATUS_OK)
        return s;
    if (unlink(path) != 0 && errno != ENOENT)
        return err_errno(err, errno, "replace %s", path);
    return crypto_key_save(path, "cauce-grant", b.data, b.len, err);
}

static enum status complete_node(struct keys *k, struct svc_node *n, struct err *err)
{
    bool is_here = false;
    enum status s = node_key(k, n, &is_here, err);

    if (s != STATUS_OK || !is_here)
        return s;
    s = node_token_key(k, n, err);
    return s == STATUS_OK ? node_grant(k, n, err) : s;
}

// ---------------------------------------------------------------- nodes.ini

static void put_key(struct buf *b, const char *name, const uint8_t key[32])
{
    char text[64];

    str_b64(text, key, 32);
    buf_printf(b, "%s = %s\n", name, text);
}

static void put_ini(struct buf *b, const struct keys *k)
{
    buf_puts(b, "; made by 'cauced keys'; every node has the same\n[operator]\n");
    put_key(b, "key", k->operator_public);
    if (k->before && svc_nodes_serial_floor(k->before) > 0)
        buf_printf(b, "serial-floor = %llu\n",
                   (unsigned long long)svc_nodes_serial_floor(k->before));
    for (size_t i = 0; i < k->n; i++) {
        const struct svc_node *n = &k->nodes[i];
        buf_printf(b, "\n[%s]\nrole = %s\n", n->id, svc_role_name(n->role));
        if (n->kind[0])
            buf_printf(b, "kind = %s\n", n->kind);
        buf_printf(b, "url = %s\n", n->url);
        put_key(b, "key", n->key);
        if (n->has_token_key)
            put_key(b, "token-key", n->token_key);
    }
}

static enum status write_whole(const char *path, const struct buf *b, struct err *err)
{
    FILE *f = fopen(path, "we");
    if (!f)
        return err_errno(err, errno, "create %s", path);
    bool ok = fwrite(b->data, 1, b->len, f) == b->len && fflush(f) == 0 && fsync(fileno(f)) == 0;
    int why = errno;
    if (fclose(f) != 0 || !ok)
        return err_errno(err, ok ? errno : why, "write %s", path);
    return STATUS_OK;
}

static enum status write_nodes(const struct keys *k, struct err *err)
{
    AUTO(buf_done) struct buf b = {0};
    AUTO(mem_free_p) char *path = path_of(k, "nodes.ini", "");
    AUTO(mem_free_p) char *temp = path_of(k, "nodes.ini", ".new");

    buf_init(&b, MAX_INI_BYTES);
    put_ini(&b, k);
    if (!path || !temp || b.failed)
        return no_memory(err);
    enum status s = write_whole(temp, &b, err);
    if (s == STATUS_OK && rename(temp, path) != 0)
        s = err_errno(err, errno, "write %s", path);
    if (s != STATUS_OK)
        unlink(temp);
    return s;
}

static void print_gateways(const struct keys *k)
{
    char text[64];

    for (size_t i = 0; i < k->n; i++) {
        if (k->nodes[i].role != ROLE_NODE_GATEWAY)
            continue;
        str_b64(text, k->nodes[i].key, 32);
        printf("%s %s\n", k->nodes[i].id, text);
    }
}

// ---------------------------------------------------------------- the command

static enum status make_keys(struct keys *k, char *const *words, struct err *err)
{
    if (mkdir(k->dir, 0700) != 0 && errno != EEXIST)
        return err_errno(err, errno, "make %s", k->dir);
    enum status s = crypto_init(err);
    if (s == STATUS_OK)
        s = load_nodes(k, err);
    for (; s == STATUS_OK && words && *words; words++)
        s = take_word(k, *words, err);
    if (s == STATUS_OK)
        s = load_operator(k, err);
    for (size_t i = 0; i < k->n && s == STATUS_OK; i++)
        s = complete_node(k, &k->nodes[i], err);
    if (s == STATUS_OK)
        s = write_nodes(k, err);
    if (s == STATUS_OK)
        print_gateways(k);
    return s;
}

static enum status run(const struct options *o, struct err *err)
{
    AUTO(mem_free_p) struct keys *k = mem_alloc(sizeof(*k));

    if (!k)
        return no_memory(err);
    if (!o->out)
        return err_set(err, STATUS_INVALID_ARGUMENT, "--out DIR is needed; see --help");
    k->dir = o->out;
    k->valid_s = o->valid_ms / 1000;
    enum status s = make_keys(k, o->node, err);
    svc_nodes_free(k->before);
    crypto_wipe(k->operator_secret, sizeof(k->operator_secret));
    return s;
}

int cauced_keys(int argc, char **argv)
{
    struct options o = {0};
    struct err err = ERR_INIT;
    enum status s = cfg_load(&spec, &o, NULL, argc, argv, NULL, &err);

    if (s == STATUS_CANCELLED)
        return 0; // help was asked for
    int code = s == STATUS_OK ? 1 : 2;
    if (s == STATUS_OK)
        s = run(&o, &err);
    if (s != STATUS_OK)
        (void)fprintf(stderr, "cauced keys: %s\n", err.msg);
    cfg_done(&spec, &o);
    return s == STATUS_OK ? 0 : code;
}
