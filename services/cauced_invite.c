// cauced invite: a one-time secret with which a machine becomes a node (cauced join).
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "cauced.h"
#include "command.h"
#include "config/config.h"
#include "crypto/crypto.h"
#include "invitation.h"

#define NAME_RANDOM_BYTES 4

struct options {
    char *keys, *role, *kind, *name, *url, *address;
    int64_t ttl_ms, valid_ms;
    bool json;
};
#define OPT(field) offsetof(struct options, field)

static const struct cfg_option rows[] = {
    // clang-format off
    {"keys", CFG_STRING, OPT(keys), NULL, 0, 0, "directory that 'cauced keys' made, with operator.key"},
    {"role", CFG_STRING, OPT(role), "transcode", 0, 0, "transcode, origin, gateway, orchestrator or admin; worker is transcode"},
    {"kind", CFG_STRING, OPT(kind), NULL, 0, 0, "of an origin: video or audio"},
    {"name", CFG_STRING, OPT(name), NULL, 0, 0, "the node's id [made up]"},
    {"url", CFG_STRING, OPT(url), NULL, 0, 0, "where it will listen [the machine says it]"},
    {"address", CFG_STRING, OPT(address), NULL, 0, 0, "where the machine reaches 'cauced enrol' [where that listens]"},
    {"ttl", CFG_DURATION_MS, OPT(ttl_ms), "1h", 1, 30LL * 24 * 3600 * 1000, "how long the invitation is good"},
    {"valid", CFG_DURATION_MS, OPT(valid_ms), KEYRING_VALID, 1000, INT64_MAX, "how long the node's grant lasts"},
    {"json", CFG_BOOL, OPT(json), NULL, 0, 0, "one JSON object on standard output"},
    // clang-format on
};
static const struct cfg_spec spec = {
    .section = "invite",
    .usage =
        "cauced invite --keys DIR [--role worker|origin|...] [--name NODE] [--ttl 1h]\n\n"
        "Prints one line, the invitation: whoever has it may become that node, once. Give it to\n"
        "the machine on a way that nobody else reads; there: cauced join - --keys DIR",
    .options = rows,
    .n_options = N_ELEMENTS(rows),
};

static enum status bad(struct err *err, const char *option, const char *why)
{
    return err_set(err, STATUS_INVALID_ARGUMENT, "--%s: %s", option, why);
}

static enum status take_role(const struct options *o, struct svc_node *n, struct err *err)
{
    n->role = svc_role_from_name(str_eq(o->role, "worker") ? "transcode" : o->role);
    if (n->role == 0)
        return bad(err, "role",
                   "no such role; there are transcode (also called worker), origin, gateway, "
                   "orchestrator and admin");
    if (n->role & (ROLE_NODE_SESSION | ROLE_NODE_STORE))
        return bad(err, "role",
                   "'cauced keys' makes nodes that sign tokens, where operator.key is");
    if (o->kind && !str_copy(n->kind, sizeof(n->kind), o->kind))
        return bad(err, "kind", "too long");
    if (!keyring_is_kind(n))
        return bad(err, "kind", "origins are of the kind video or audio, other roles of none");
    return STATUS_OK;
}

static enum status take_name(const struct options *o, struct keyring *k, struct svc_node *n,
                             struct err *err)
{
    uint8_t random[NAME_RANDOM_BYTES];
    char hex[2 * NAME_RANDOM_BYTES + 1];

    rand_bytes(random, sizeof(random));
    str_hex(hex, random, sizeof(random));
    if (!o->name)
        snprintf(n->id, sizeof(n->id), "%s-%s", svc_role_name(n->role), hex);
    else if (!str_copy(n->id, sizeof(n->id), o->name) || !keyring_is_node_id(n->id))
        return bad(err, "name", "a node id has 1 to 63 characters of a-z 0-9 . _ -");
    if (keyring_find(k, n->id))
        return err_set(err, STATUS_ALREADY_EXISTS,
                       "there is a node '%s'; choose another --name, or 'cauced keys revoke' it",
                       n->id);
    return STATUS_OK;
}

static enum status take_url(const struct options *o, struct svc_node *n, struct err *err)
{
    if (o->url && (!keyring_is_url(o->url) || !str_copy(n->url, sizeof(n->url), o->url)))
        return bad(err, "url", "the address is tcp://HOST:PORT, ipc:///PATH or inproc://NAME");
    return STATUS_OK;
}

// What 'cauced enrol' wrote when it began to listen.
static enum status find_address(const struct options *o, char ret[RPC_URL_SIZE], struct err *err)
{
    AUTO(mem_free_p) char *path = mem_printf("%s/enrol.url", o->keys);
    char line[RPC_URL_SIZE] = "";
    FILE *f = o->address || !path ? NULL : fopen(path, "re");

    if (f) {
        if (!fgets(line, sizeof(line), f))
            line[0] = '\0';
        (void)fclose(f);
        line[strcspn(line, "\n")] = '\0';
    }
    const char *url = o->address ? o->address : line;
    if (!url[0] || strstr(url, "//0.0.0.0:") || strstr(url, "//[::]:"))
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "where will the machine reach 'cauced enrol'? Say --address "
                       "tcp://HOST:PORT, here or when that is started");
    if (!keyring_is_url(url) || !str_copy(ret, RPC_URL_SIZE, url))
        return bad(err, "address", "it is of the form tcp://HOST:PORT");
    return STATUS_OK;
}

static void say(const struct options *o, const struct invitation *i, const char *text)
{
    char expires[TIME_RFC3339_SIZE];

    time_rfc3339(expires, i->expires_s * 1000);
    if (o->json) // base64url, urls and node ids need no escapes
        printf("{\"invitation\":\"%s\",\"node\":\"%s\",\"role\":\"%s\",\"expires\":\"%s\"}\n", text,
               i->node.id, svc_role_name(i->node.role), expires);
    else
        printf("%s\n", text);
    if (!o->json)
        (void)fprintf(stderr, "for the node %s (%s), once, until %s\n", i->node.id,
                      svc_role_name(i->node.role), expires);
}

static enum status invite(const struct options *o, struct err *err)
{
    AUTO(keyring_free_p) struct keyring *k = NULL;
    struct chan_identity server;
    struct invitation i = {.valid_s = o->valid_ms / 1000,
                           .expires_s = (time_wall_ms() + o->ttl_ms) / 1000};
    char address[RPC_URL_SIZE], text[INVITATION_TEXT_SIZE];

    enum status s = keyring_open(o->keys, &k, err);
    if (s == STATUS_OK && !k->has_operator)
        s = err_set(err, STATUS_FAILED_PRECONDITION,
                    "operator.key is not in %s: invite where it is", o->keys);
    if (s == STATUS_OK)
        s = take_role(o, &i.node, err);
    if (s == STATUS_OK)
        s = take_name(o, k, &i.node, err);
    if (s == STATUS_OK)
        s = take_url(o, &i.node, err);
    if (s == STATUS_OK)
        s = find_address(o, address, err);
    if (s == STATUS_OK)
        s = invitation_server_key(o->keys, &server, err);
    if (s != STATUS_OK)
        return s;
    rand_bytes(i.join.id, sizeof(i.join.id));
    rand_bytes(i.join.secret, sizeof(i.join.secret));
    invitation_clean(o->keys);
    s = invitation_save(o->keys, &i, err);
    if (s == STATUS_OK) {
        invitation_text(text, address, server.public_key, &i.join);
        say(o, &i, text);
    }
    crypto_wipe(text, sizeof(text));
    crypto_wipe(&i, sizeof(i));
    crypto_wipe(&server, sizeof(server));
    return s;
}

static enum status run(void *ud, char **words, bool *ret_misused, struct err *err)
{
    const struct options *o = ud;
    (void)words;
    if (!o->keys)
        return command_misused(ret_misused, err, "--keys DIR is");
    enum status s = invite(o, err);
    *ret_misused = s == STATUS_INVALID_ARGUMENT;
    return s;
}

int cauced_invite(int argc, char **argv)
{
    static const struct command_line command = {.name = "invite", .spec = &spec, .run = run};
    struct options o = {0};
    return command_main(&command, &o, &o, argc, argv);
}
