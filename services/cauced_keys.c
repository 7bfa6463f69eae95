// cauced keys: the operator's root key, node keys, grants, token keys and nodes.ini.
//
// Run again it adds what is missing, takes new addresses over, and renews grants that end soon. A
// key is never replaced. nodes.ini is written last, so that a run which was cut off leaves keys
// without a name, which the next run finds and names.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/dir.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauced.h"
#include "channel/channel.h"
#include "command.h"
#include "config/config.h"
#include "crypto/crypto.h"
#include "keyring.h"

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
    {"valid", CFG_DURATION_MS, OPT(valid_ms), KEYRING_VALID, 0, 0, "how long new grants last"},
};
static const struct cfg_spec spec = {
    .section = "keys",
    .usage = "cauced keys --out DIR [--node ID:ROLE[:KIND]@URL ...]\n"
             "       cauced keys show|renew|rotate|retire|revoke ...   (each has its --help)\n\n"
             "ROLE: session orchestrator transcode store origin gateway admin; KIND, of origins: "
             "video audio",
    .options = rows,
    .n_options = N_ELEMENTS(rows),
};

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

// Without the operator's key a run can still change addresses; whatever needs a signature fails.
static enum status make_operator(struct keyring *k, struct err *err)
{
    AUTO(mem_free_p) char *path = keyring_path(k, "operator.key", "");
    if (!path)
        return no_memory(err);
    if (k->has_operator || k->before)
        return STATUS_OK;
    crypto_ed25519_keypair(k->operator_public, k->operator_secret);
    k->has_operator = true;
    return crypto_key_save(path, "cauce-ed25519-secret", k->operator_secret, 64, err);
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

static enum status parse_word(const char *word, struct svc_node *n, struct err *err)
{
    const char *at = strchr(word, '@'), *colon = strchr(word, ':');
    char role[32];

    memset(n, 0, sizeof(*n));
    if (!at || !colon || colon > at)
        return bad_word(err, word, "not of the form ID:ROLE[:KIND]@URL");
    size_t role_len = strcspn(colon + 1, ":@");
    const char *after = colon + 1 + role_len;
    if (!copy_part(n->id, sizeof(n->id), word, (size_t)(colon - word)) ||
        !keyring_is_node_id(n->id))
        return bad_word(err, word, "a node id has 1 to 63 characters of a-z 0-9 . _ -");
    if (!copy_part(role, sizeof(role), colon + 1, role_len) ||
        !(n->role = svc_role_from_name(role)))
        return bad_word(err, word, "no such role");
    if (*after == ':' && !copy_part(n->kind, sizeof(n->kind), after + 1, (size_t)(at - after - 1)))
        return bad_word(err, word, "no such kind");
    if (!keyring_is_kind(n))
        return bad_word(err, word, "origins have the kind video or audio, other roles none");
    if (!keyring_is_url(at + 1) || !str_copy(n->url, sizeof(n->url), at + 1))
        return bad_word(err, word, "the address is tcp://HOST:PORT, ipc:///PATH or inproc://NAME");
    return STATUS_OK;
}

static enum status take_word(struct keyring *k, const char *word, struct err *err)
{
    struct svc_node n;
    enum status s = parse_word(word, &n, err);
    if (s != STATUS_OK)
        return s;
    struct svc_node *there = keyring_find(k, n.id);
    if (!there)
        return keyring_add(k, &n) ? STATUS_OK : bad_word(err, word, "too many nodes");
    if (there->role != n.role || !str_eq(there->kind, n.kind))
        return bad_word(err, word, "the node exists with another role or kind; choose another id");
    memcpy(there->url, n.url, sizeof(n.url));
    return STATUS_OK;
}

// ---------------------------------------------------------------- keys and grants of a node

static bool was_there(const struct keyring *k, const char *id)
{
    return k->before && svc_nodes_find(k->before, id);
}

// Load the secret, or make it when the node is new. *ret_is_here: false for a node whose secret was
// taken to its machine, which is left as it is.
static enum status node_key(struct keyring *k, struct svc_node *n, bool *ret_is_here,
                            struct err *err)
{
    uint8_t secret[32], public_key[32];
    AUTO(mem_free_p) char *path = keyring_path(k, n->id, ".key");
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

static enum status node_token_key(struct keyring *k, struct svc_node *n, struct err *err)
{
    uint8_t secret[64];
    AUTO(mem_free_p) char *path = keyring_path(k, n->id, ".token.key");
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

static bool grant_is_good(const struct keyring *k, const struct svc_node *n, const char *suffix,
                          const uint8_t key[32])
{
    struct chan_grant g;

    return keyring_load_grant(k, n->id, suffix, &g, NULL) == STATUS_OK &&
           g.not_after_s >= time_wall_ms() / 1000 + KEYRING_RENEW_S && 1U << g.role == n->role &&
           str_eq(g.node_id, n->id) && crypto_equal(g.key, key, 32) &&
           !(k->before && svc_nodes_is_revoked(k->before, &g));
}

// While its key is rotated the node shows the second one. That grant has to be the newer of both,
// for 'retire' revokes what is older.
static enum status complete_grants(struct keyring *k, const struct svc_node *n, int64_t valid_s,
                                   struct err *err)
{
    enum status s = STATUS_OK;
    bool is_due = !grant_is_good(k, n, ".grant", n->key);

    if (is_due)
        s = keyring_write_grant(k, n, ".grant", n->key, valid_s, err);
    if (s != STATUS_OK || !n->has_next_key)
        return s;
    if (is_due || !grant_is_good(k, n, ".next.grant", n->next_key))
        s = keyring_write_grant(k, n, ".next.grant", n->next_key, valid_s, err);
    return s;
}

static enum status complete_node(struct keyring *k, struct svc_node *n, int64_t valid_s,
                                 struct err *err)
{
    bool is_here = false;
    enum status s = node_key(k, n, &is_here, err);

    if (s != STATUS_OK || !is_here)
        return s;
    s = node_token_key(k, n, err);
    return s == STATUS_OK ? complete_grants(k, n, valid_s, err) : s;
}

static void print_gateways(const struct keyring *k)
{
    char text[64];

    for (size_t i = 0; i < k->n; i++) {
        const struct svc_node *n = &k->nodes[i];
        if (n->role != ROLE_NODE_GATEWAY)
            continue;
        str_b64(text, n->has_next_key ? n->next_key : n->key, 32); // the one it shows
        printf("%s %s\n", n->id, text);
    }
}

// ---------------------------------------------------------------- the command

static enum status make_keys(struct keyring *k, const struct options *o, struct err *err)
{
    enum status s = STATUS_OK;

    for (char *const *words = o->node; s == STATUS_OK && words && *words; words++)
        s = take_word(k, *words, err);
    if (s == STATUS_OK)
        s = make_operator(k, err);
    for (size_t i = 0; i < k->n && s == STATUS_OK; i++)
        s = complete_node(k, &k->nodes[i], o->valid_ms / 1000, err);
    if (s == STATUS_OK)
        s = keyring_write_nodes(k, err);
    if (s == STATUS_OK)
        print_gateways(k);
    return s;
}

static enum status make(const struct options *o, struct err *err)
{
    AUTO(keyring_free_p) struct keyring *k = NULL;

    enum status s = dir_make(o->out, err);
    if (s == STATUS_OK)
        s = keyring_open(o->out, &k, err);
    return s == STATUS_OK ? make_keys(k, o, err) : s;
}

static enum status run(void *ud, char **words, bool *ret_misused, struct err *err)
{
    const struct options *o = ud;
    (void)words;
    return o->out ? make(o, err) : command_misused(ret_misused, err, "--out DIR is");
}

static int make_main(int argc, char **argv)
{
    static const struct command_line command = {.name = "keys", .spec = &spec, .run = run};
    struct options o = {0};
    return command_main(&command, &o, &o, argc, argv);
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"show", cauced_keys_show},     {"renew", cauced_keys_renew},   {"rotate", cauced_keys_rotate},
    {"retire", cauced_keys_retire}, {"revoke", cauced_keys_revoke},
};

int cauced_keys(int argc, char **argv)
{
    for (size_t i = 0; argc > 0 && i < N_ELEMENTS(commands); i++)
        if (str_eq(argv[0], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    return make_main(argc, argv);
}
