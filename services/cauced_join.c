// cauced join: this machine becomes a node, with an invitation.
//
// The key is made here and never leaves. Until the platform has answered it waits as joining.key,
// so that a run whose answer was lost is repeated with the same key, which the other side knows
// again.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/dir.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/enrol.rpc.h"
#include "cauced.h"
#include "command.h"
#include "config/config.h"
#include "crypto/crypto.h"
#include "invitation.h"
#include "rpc/rpc.h"

struct options {
    char *keys, *url;
    int64_t timeout_ms;
    bool json;
};
#define OPT(field) offsetof(struct options, field)

static const struct cfg_option rows[] = {
    {"keys", CFG_STRING, OPT(keys), NULL, 0, 0, "directory for the node's keys, made if need be"},
    {"url", CFG_STRING, OPT(url), NULL, 0, 0,
     "where other nodes reach this one: tcp://HOST:PORT [as the invitation says]"},
    {"timeout", CFG_DURATION_MS, OPT(timeout_ms), "15s", 1, 600000,
     "how long to wait for an answer"},
    {"json", CFG_BOOL, OPT(json), NULL, 0, 0, "one JSON object on standard output"},
};
static const struct cfg_spec spec = {
    .section = "join",
    .usage =
        "cauced join INVITATION|- --keys DIR [--url tcp://HOST:PORT]\n\n"
        "INVITATION is the line that 'cauced invite' printed. It is a secret: with - it is read\n"
        "from standard input, where other users of this machine do not see it.",
    .options = rows,
    .n_options = N_ELEMENTS(rows),
};

struct newcomer {
    const struct options *o;
    char url[RPC_URL_SIZE];
    uint8_t server_key[32];
    struct chan_join join;
    struct chan_identity id;
};

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

// ---------------------------------------------------------------- the invitation

static enum status read_invitation(char *word, struct newcomer *j, struct err *err)
{
    char line[INVITATION_TEXT_SIZE] = "";
    const char *text = word;

    if (str_eq(word, "-")) {
        if (!fgets(line, sizeof(line), stdin))
            return err_set(err, STATUS_INVALID_ARGUMENT, "standard input has no invitation");
        line[strcspn(line, "\r\n")] = '\0';
        text = line;
    }
    enum status s = invitation_parse(text, j->url, j->server_key, &j->join, err);
    if (text == word)
        crypto_wipe(word, strlen(word)); // out of what ps shows
    crypto_wipe(line, sizeof(line));
    return s;
}

static char *path_of(const struct newcomer *j, const char *name, const char *suffix)
{
    return mem_printf("%s/%s%s", j->o->keys, name, suffix);
}

static enum status make_key(struct newcomer *j, struct err *err)
{
    AUTO(mem_free_p) char *path = path_of(j, "joining", ".key");
    if (!path)
        return no_memory(err);
    enum status s = dir_make(j->o->keys, err);
    if (s != STATUS_OK)
        return s;
    s = crypto_key_load(path, "cauce-x25519-secret", j->id.secret, 32, err);
    if (s == STATUS_NOT_FOUND) {
        crypto_dh_keypair(j->id.public_key, j->id.secret);
        s = crypto_key_save(path, "cauce-x25519-secret", j->id.secret, 32, err);
    }
    if (s == STATUS_OK)
        crypto_dh_public(j->id.public_key, j->id.secret);
    return s;
}

// ---------------------------------------------------------------- the call

static enum status ask(const struct newcomer *j, Enrol__JoinReply **ret, struct err *err)
{
    Enrol__JoinRequest req = ENROL__JOIN_REQUEST__INIT;
    struct rpc_endpoint e = {.url = j->url};
    memcpy(e.key, j->server_key, sizeof(e.key));
    struct rpc_client_opts o = {.identity = &j->id,
                                .join = &j->join,
                                .endpoints = &e,
                                .n_endpoints = 1,
                                .connect_timeout_ms = j->o->timeout_ms};
    struct rpc_opts call = {.deadline_us = time_deadline_in_ms(j->o->timeout_ms)};
    AUTO(rpc_client_free_p) struct rpc_client *c = rpc_client_new(&o, err);
    if (!c)
        return err->code;
    if (j->o->url)
        req.url = j->o->url;
    enum status s = enrol_enrol_join(c, &call, &req, ret, err);
    if (s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED)
        return err_set(err, s,
                       "%s does not answer: either 'cauced enrol' is not reached there, or it does "
                       "not know this invitation (a wrong secret is met with silence)",
                       j->url);
    return s;
}

// ---------------------------------------------------------------- what came back

static enum status write_nodes(const struct newcomer *j, const Enrol__JoinReply *r,
                               struct svc_nodes **ret, struct err *err)
{
    AUTO(mem_free_p) char *path = path_of(j, "nodes.ini", "");
    AUTO(mem_free_p) char *fresh = path_of(j, "nodes.ini", ".joined");
    AUTO(svc_nodes_free_p) struct svc_nodes *before = NULL;
    if (!path || !fresh)
        return no_memory(err);
    enum status s = keyring_replace_file(fresh, 0644, r->nodes_ini.data, r->nodes_ini.len, err);
    if (s == STATUS_OK)
        s = svc_nodes_load(fresh, ret, err);
    if (s == STATUS_OK && svc_nodes_load(path, &before, NULL) == STATUS_OK &&
        !crypto_equal(svc_nodes_operator(before), svc_nodes_operator(*ret), 32))
        s = err_set(err, STATUS_ALREADY_EXISTS,
                    "%s has the keys of another platform; choose another directory", j->o->keys);
    if (s == STATUS_OK && rename(fresh, path) != 0)
        s = err_errno(err, errno, "write %s", path);
    if (s != STATUS_OK)
        (void)unlink(fresh);
    return s;
}

// The platform's word is checked like any other: a node must not start with what peers refuse.
static enum status check_grant(const struct newcomer *j, const Enrol__JoinReply *r,
                               const struct svc_nodes *nodes, struct err *err)
{
    struct chan_grant g;

    enum status s = chan_grant_verify(&g, r->grant.data, r->grant.len, svc_nodes_operator(nodes),
                                      time_wall_ms() / 1000, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "the grant that came is not good; compare clocks");
    if (!str_eq(g.node_id, r->node_id) || 1U << g.role != svc_role_from_name(r->role) ||
        !crypto_equal(g.key, j->id.public_key, 32) || !keyring_is_node_id(r->node_id))
        return err_set(err, STATUS_DATA_LOSS, "the grant that came is not ours");
    return STATUS_OK;
}

static enum status write_keys(const struct newcomer *j, const Enrol__JoinReply *r, struct err *err)
{
    AUTO(mem_free_p) char *joining = path_of(j, "joining", ".key");
    AUTO(mem_free_p) char *key = path_of(j, r->node_id, ".key");
    AUTO(mem_free_p) char *grant = path_of(j, r->node_id, ".grant");
    AUTO(mem_free_p) char *temp = path_of(j, r->node_id, ".grant.new");
    if (!joining || !key || !grant || !temp)
        return no_memory(err);
    if (access(key, F_OK) == 0)
        return err_set(err, STATUS_ALREADY_EXISTS, "%s is there; choose another directory", key);
    (void)unlink(temp); // of a run that was cut off
    enum status s = crypto_key_save(temp, "cauce-grant", r->grant.data, r->grant.len, err);
    if (s == STATUS_OK && rename(temp, grant) != 0)
        s = err_errno(err, errno, "write %s", grant);
    if (s == STATUS_OK && rename(joining, key) != 0) // last: before it the run can be repeated
        s = err_errno(err, errno, "write %s", key);
    return s;
}

static enum status take(const struct newcomer *j, const Enrol__JoinReply *r, struct err *err)
{
    AUTO(svc_nodes_free_p) struct svc_nodes *nodes = NULL;

    enum status s = write_nodes(j, r, &nodes, err);
    if (s == STATUS_OK)
        s = check_grant(j, r, nodes, err);
    return s == STATUS_OK ? write_keys(j, r, err) : s;
}

// ---------------------------------------------------------------- the command

static void say(const struct newcomer *j, const Enrol__JoinReply *r)
{
    if (j->o->json)
        printf("{\"node\":\"%s\",\"role\":\"%s\",\"kind\":\"%s\"}\n", r->node_id, r->role, r->kind);
    else
        printf("this machine is the node %s; start it with\n"
               "  cauced %s --node %s --keys %s\n",
               r->node_id, r->role, r->node_id, j->o->keys);
}

static enum status join(struct newcomer *j, struct err *err)
{
    AUTO(rpc_message_free_p) Enrol__JoinReply *reply = NULL;
    enum status s = crypto_init(err);

    if (s == STATUS_OK)
        s = make_key(j, err);
    if (s == STATUS_OK)
        s = ask(j, &reply, err);
    if (s == STATUS_OK)
        s = take(j, reply, err);
    if (s == STATUS_OK)
        say(j, reply);
    return s;
}

static enum status run(void *ud, char **words, bool *ret_misused, struct err *err)
{
    struct newcomer *j = ud;
    if (!j->o->keys || !words[0] || words[1])
        return command_misused(ret_misused, err, "one INVITATION (or -) and --keys DIR are");
    enum status s = read_invitation(words[0], j, err);
    *ret_misused = s != STATUS_OK;
    if (s != STATUS_OK)
        return s;
    s = join(j, err);
    rpc_fini();
    return s;
}

int cauced_join(int argc, char **argv)
{
    static const struct command_line command = {
        .name = "join", .spec = &spec, .takes_words = true, .run = run};
    struct options o = {0};
    struct newcomer j = {.o = &o};
    int code = command_main(&command, &o, &j, argc, argv);
    crypto_wipe(&j, sizeof(j));
    return code;
}
