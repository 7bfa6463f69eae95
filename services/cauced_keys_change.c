// cauced keys renew, rotate, retire, revoke: what changes while the platform runs.
//
//   renew    another grant for the same key
//   rotate   a second key beside the first: the node answers to both, and shows the new one
//   retire   the first key goes; what is shown with it is refused from then on
//   revoke   the node goes, with all its keys
//
// Each writes nodes.ini and files of the node; running nodes take both over by themselves, where
// they see this folder, or once they are copied to where they do. A command that was cut off is
// completed by giving it again.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauced.h"
#include "command.h"
#include "config/config.h"
#include "crypto/crypto.h"
#include "invitation.h"

struct options {
    char *keys;
    int64_t valid_ms;
    bool all, json, unlisted;
};
#define OPT(field) offsetof(struct options, field)

#define KEYS_ROW                                                                                   \
    {                                                                                              \
        "keys", CFG_STRING, OPT(keys), NULL, 0, 0, "directory that 'cauced keys' made"             \
    }
#define JSON_ROW                                                                                   \
    {                                                                                              \
        "json", CFG_BOOL, OPT(json), NULL, 0, 0, "one JSON object a node on standard output"       \
    }
#define VALID_ROW                                                                                  \
    {                                                                                              \
        "valid", CFG_DURATION_MS, OPT(valid_ms), KEYRING_VALID, 0, 0, "how long new grants last"   \
    }

struct command {
    const char *name, *did;
    struct cfg_spec spec;
    enum status (*run)(struct keyring *k, const char *id, const struct options *o, struct err *err);
};

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

static enum status find(struct keyring *k, const char *id, struct svc_node **ret, struct err *err)
{
    *ret = keyring_find(k, id);
    return *ret ? STATUS_OK
                : err_set(err, STATUS_NOT_FOUND,
                          "nodes.ini has no node '%s'; 'cauced keys show' "
                          "lists them",
                          id);
}

static bool is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

// ---------------------------------------------------------------- renew

static enum status renew_node(struct keyring *k, const char *id, const struct options *o,
                              struct err *err)
{
    struct svc_node *n;
    enum status s = find(k, id, &n, err);

    if (s == STATUS_OK && n->has_next_key)
        s = keyring_write_grant(k, n, ".next.grant", n->next_key, o->valid_ms / 1000, err);
    if (s == STATUS_OK && !n->has_next_key)
        s = keyring_write_grant(k, n, ".grant", n->key, o->valid_ms / 1000, err);
    return s;
}

// ---------------------------------------------------------------- rotate

static enum status make_next_key(struct keyring *k, struct svc_node *n, struct err *err)
{
    uint8_t secret[32];
    AUTO(mem_free_p) char *path = keyring_path(k, n->id, ".next.key");
    if (!path)
        return no_memory(err);
    enum status s = crypto_key_load(path, "cauce-x25519-secret", secret, sizeof(secret), err);
    if (s == STATUS_NOT_FOUND) {
        crypto_dh_keypair(n->next_key, secret);
        s = crypto_key_save(path, "cauce-x25519-secret", secret, sizeof(secret), err);
    }
    if (s == STATUS_OK)
        crypto_dh_public(n->next_key, secret);
    crypto_wipe(secret, sizeof(secret));
    n->has_next_key = s == STATUS_OK;
    return s;
}

static enum status rotate_node(struct keyring *k, const char *id, const struct options *o,
                               struct err *err)
{
    struct svc_node *n;
    enum status s = find(k, id, &n, err);

    if (s != STATUS_OK)
        return s;
    if (n->has_next_key)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "%s has two keys already: 'cauced keys retire %s' ends that first", id, id);
    if (!k->has_operator)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "a new key needs a grant, and operator.key is not in %s: put it there",
                       k->dir);
    s = make_next_key(k, n, err);
    if (s == STATUS_OK)
        s = keyring_write_grant(k, n, ".next.grant", n->next_key, o->valid_ms / 1000, err);
    return s == STATUS_OK ? keyring_write_nodes(k, err) : s;
}

// ---------------------------------------------------------------- retire

static enum status move_file(const struct keyring *k, const char *id, const char *from,
                             const char *to, struct err *err)
{
    AUTO(mem_free_p) char *a = keyring_path(k, id, from);
    AUTO(mem_free_p) char *b = keyring_path(k, id, to);

    if (!a || !b)
        return no_memory(err);
    if (rename(a, b) != 0 && errno != ENOENT) // its secret may be on its own machine only
        return err_errno(err, errno, "rename %s", a);
    return STATUS_OK;
}

// A grant of another key would shut the node out; after a rotation that was cut off there is one.
static enum status check_next_grant(const struct svc_node *n, const struct chan_grant *g,
                                    struct err *err)
{
    if (crypto_equal(g->key, n->has_next_key ? n->next_key : n->key, sizeof(n->key)))
        return STATUS_OK;
    if (n->has_next_key)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "%s.next.grant is not of the next key that nodes.ini has: 'cauced keys "
                       "renew %s' makes another",
                       n->id, n->id);
    return err_set(err, STATUS_FAILED_PRECONDITION,
                   "a rotation of %s was cut off: 'cauced keys rotate %s' completes it first",
                   n->id, n->id);
}

static enum status retire_node(struct keyring *k, const char *id, const struct options *o,
                               struct err *err)
{
    struct chan_grant g;
    struct svc_node *n;
    AUTO(mem_free_p) char *next = keyring_path(k, id, ".next.grant");
    enum status s = find(k, id, &n, err);

    (void)o;
    if (s != STATUS_OK)
        return s;
    if (!next)
        return no_memory(err);
    if (!n->has_next_key && !is_there(next))
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "%s has one key only: 'cauced keys rotate %s' gives it another first", id,
                       id);
    s = keyring_load_grant(k, id, ".next.grant", &g, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "the grant of the next key");
    s = check_next_grant(n, &g, err);
    if (s != STATUS_OK)
        return s;
    if (n->has_next_key) {
        memcpy(n->key, n->next_key, sizeof(n->key));
        memset(n->next_key, 0, sizeof(n->next_key));
        n->has_next_key = false;
        s = keyring_revoke(k, id, g.serial - 1, err);
        if (s == STATUS_OK)
            s = keyring_write_nodes(k, err);
    }
    if (s == STATUS_OK)
        s = move_file(k, id, ".next.key", ".key", err);
    return s == STATUS_OK ? move_file(k, id, ".next.grant", ".grant", err) : s;
}

// ---------------------------------------------------------------- revoke

static enum status remove_files(const struct keyring *k, const char *id, struct err *err)
{
    static const char *const suffixes[] = {".key", ".grant", ".next.key", ".next.grant",
                                           ".token.key"};

    for (size_t i = 0; i < N_ELEMENTS(suffixes); i++) {
        AUTO(mem_free_p) char *path = keyring_path(k, id, suffixes[i]);
        if (!path)
            return no_memory(err);
        if (unlink(path) != 0 && errno != ENOENT)
            return err_errno(err, errno, "remove %s", path);
    }
    return STATUS_OK;
}

// Above whatever grants of it are known to be out.
static uint64_t last_serial(const struct keyring *k, const char *id)
{
    static const char *const suffixes[] = {".grant", ".next.grant"};
    uint64_t serial = (uint64_t)(time_wall_ms() / 1000);
    struct chan_grant g;

    for (size_t i = 0; i < N_ELEMENTS(suffixes); i++)
        if (keyring_load_grant(k, id, suffixes[i], &g, NULL) == STATUS_OK && g.serial > serial)
            serial = g.serial;
    return serial;
}

static enum status revoke_node(struct keyring *k, const char *id, const struct options *o,
                               struct err *err)
{
    struct svc_node *n = keyring_find(k, id);

    if (!n && !o->unlisted)
        return err_set(err, STATUS_NOT_FOUND,
                       "nodes.ini has no node '%s'; with --unlisted its grants are revoked "
                       "all the same",
                       id);
    enum status s = keyring_revoke(k, id, last_serial(k, id), err);
    if (s != STATUS_OK)
        return s;
    if (n)
        keyring_remove(k, n);
    s = keyring_write_nodes(k, err);
    if (s == STATUS_OK)
        s = invitation_withdraw(k->dir, id, err);
    return s == STATUS_OK ? remove_files(k, id, err) : s;
}

// ---------------------------------------------------------------- the commands

static const struct cfg_option renew_rows[] = {
    KEYS_ROW, VALID_ROW, JSON_ROW, {"all", CFG_BOOL, OPT(all), NULL, 0, 0, "every node"}};
static const struct cfg_option rotate_rows[] = {KEYS_ROW, VALID_ROW, JSON_ROW};
static const struct cfg_option retire_rows[] = {KEYS_ROW, JSON_ROW};
static const struct cfg_option revoke_rows[] = {
    KEYS_ROW,
    JSON_ROW,
    {"unlisted", CFG_BOOL, OPT(unlisted), NULL, 0, 0, "also a node that nodes.ini does not have"}};

static const struct command renew_command = {
    "keys renew",
    "renewed",
    {.section = "keys-renew",
     .usage =
         "cauced keys renew --keys DIR NODE...|--all\n\n"
         "A new grant for the key that the node has. Copy NODE.grant to the node where it does\n"
         "not see DIR; it takes it over while it runs.",
     .options = renew_rows,
     .n_options = N_ELEMENTS(renew_rows)},
    renew_node};
static const struct command rotate_command = {
    "keys rotate",
    "rotated",
    {.section = "keys-rotate",
     .usage =
         "cauced keys rotate --keys DIR NODE...\n\n"
         "A second key beside the first. Copy nodes.ini, NODE.next.key and NODE.next.grant to\n"
         "the node and nodes.ini to all others where they do not see DIR; all take them over\n"
         "while they run. Then: cauced keys retire.",
     .options = rotate_rows,
     .n_options = N_ELEMENTS(rotate_rows)},
    rotate_node};
static const struct command retire_command = {
    "keys retire",
    "retired",
    {.section = "keys-retire",
     .usage =
         "cauced keys retire --keys DIR NODE...\n\n"
         "Ends a rotation: the first key is refused from now on. Distribute nodes.ini as before;\n"
         "on the node rename NODE.next.key and NODE.next.grant to NODE.key and NODE.grant.",
     .options = retire_rows,
     .n_options = N_ELEMENTS(retire_rows)},
    retire_node};
static const struct command revoke_command = {
    "keys revoke",
    "revoked",
    {.section = "keys-revoke",
     .usage = "cauced keys revoke --keys DIR NODE...\n\n"
              "The node is no longer one of the platform: its connections end wherever the new\n"
              "nodes.ini is, its keys are removed from DIR. Its id may be given again.",
     .options = revoke_rows,
     .n_options = N_ELEMENTS(revoke_rows)},
    revoke_node};

static void say(const struct command *c, const char *id, bool json)
{
    if (json)
        printf("{\"node\":\"%s\",\"done\":\"%s\"}\n", id, c->did);
    else
        printf("%s %s\n", id, c->did);
}

static enum status run_one(const struct command *c, struct keyring *k, const char *id,
                           const struct options *o, struct err *err)
{
    if (!keyring_is_node_id(id))
        return err_set(err, STATUS_INVALID_ARGUMENT, "'%s' is no node id", id);
    enum status s = c->run(k, id, o, err);
    if (s == STATUS_OK)
        say(c, id, o->json);
    return s == STATUS_OK ? s : err_wrap(err, s, "%s", id);
}

static enum status run_all(const struct command *c, const struct options *o, char *const *ids,
                           struct err *err)
{
    AUTO(keyring_free_p) struct keyring *k = NULL;
    enum status s = keyring_open(o->keys, &k, err);

    if (s == STATUS_OK && !k->before)
        s = err_set(err, STATUS_NOT_FOUND, "%s has no nodes.ini; 'cauced keys --out' makes it",
                    o->keys);
    for (size_t i = 0; s == STATUS_OK && o->all && i < k->n; i++)
        s = run_one(c, k, k->nodes[i].id, o, err);
    for (; s == STATUS_OK && *ids; ids++)
        s = run_one(c, k, *ids, o, err);
    return s;
}

struct change {
    const struct command *c;
    struct options o;
};

static enum status run(void *ud, char **words, bool *ret_misused, struct err *err)
{
    const struct change *h = ud;
    if (!h->o.keys || (words[0] != NULL) == h->o.all)
        return command_misused(ret_misused, err, "--keys DIR and a NODE are");
    return run_all(h->c, &h->o, words, err);
}

static int change_main(const struct command *c, int argc, char **argv)
{
    const struct command_line command = {
        .name = c->name, .spec = &c->spec, .takes_words = true, .run = run};
    struct change h = {.c = c};
    return command_main(&command, &h.o, &h, argc, argv);
}

int cauced_keys_renew(int argc, char **argv)
{
    return change_main(&renew_command, argc, argv);
}

int cauced_keys_rotate(int argc, char **argv)
{
    return change_main(&rotate_command, argc, argv);
}

int cauced_keys_retire(int argc, char **argv)
{
    return change_main(&retire_command, argc, argv);
}

int cauced_keys_revoke(int argc, char **argv)
{
    return change_main(&revoke_command, argc, argv);
}
