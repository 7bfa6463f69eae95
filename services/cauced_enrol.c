// cauced enrol: lets machines in that have an invitation.
//
// A program of its own, because it needs operator.key: no process that serves users or nodes has
// that. It listens for enrolment handshakes only, and answers nothing to who does not know the
// secret of an invitation. An invitation is used up before its node is made, under the folder's
// lock, and remembers the key it was used with: a machine whose answer was lost asks again, others
// are refused.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/enrol.rpc.h"
#include "cauced.h"
#include "command.h"
#include "config/config.h"
#include "crypto/crypto.h"
#include "invitation.h"
#include "log/log.h"
#include "rpc/rpc.h"
#include "work/work.h"

#define N_THREADS 2
#define MAX_QUEUE 64
#define MAX_INI_BYTES (1U << 20)
#define GRACE_MS 2000

struct options {
    char *keys, *listen, *address, *ready_file, *log_level;
};
#define OPT(field) offsetof(struct options, field)

static const struct cfg_option rows[] = {
    {"keys", CFG_STRING, OPT(keys), NULL, 0, 0,
     "directory that 'cauced keys' made, with operator.key"},
    {"listen", CFG_STRING, OPT(listen), "tcp://0.0.0.0:7390", 0, 0, "address for new machines"},
    {"address", CFG_STRING, OPT(address), NULL, 0, 0,
     "where they reach it, for invitations [--listen]"},
    {"ready-file", CFG_STRING, OPT(ready_file), NULL, 0, 0,
     "written once it listens, removed at the end"},
    {"log-level", CFG_STRING, OPT(log_level), "info", 0, 0, "debug, info, warn, error or off"},
};
static const struct cfg_spec spec = {
    .section = "enrol",
    .usage = "cauced enrol --keys DIR [--listen tcp://HOST:PORT]\n\n"
             "Runs until it is told to stop. Machines come with what 'cauced invite' printed.",
    .options = rows,
    .n_options = N_ELEMENTS(rows),
};

struct enrol {
    const struct options *o;
    struct log *log;
    struct chan_identity id;
    struct work_pool *pool;
    struct rpc_server *server;
    char url[RPC_URL_SIZE];
};

// ---------------------------------------------------------------- the call

// Used ones too: who proves to know the secret is told what became of it.
static bool find_secret(void *ud, const uint8_t id[CHAN_JOIN_ID_SIZE], uint8_t ret_secret[32])
{
    struct enrol *e = ud;
    struct invitation i;

    if (invitation_load(e->o->keys, id, &i, NULL) != STATUS_OK)
        return false;
    memcpy(ret_secret, i.join.secret, sizeof(i.join.secret));
    crypto_wipe(&i, sizeof(i));
    return true;
}

static enum status check(const struct invitation *i, const struct chan_peer *peer, struct err *err)
{
    char when[TIME_RFC3339_SIZE], by[KEYRING_FINGERPRINT_SIZE];

    time_rfc3339(when, i->expires_s * 1000);
    if (i->is_used && !crypto_equal(i->used_by, peer->key, sizeof(i->used_by))) {
        keyring_fingerprint(by, i->used_by);
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "this invitation was used already, by the machine whose key is %s: if that "
                       "is not yours, 'cauced keys revoke %s'",
                       by, i->node.id);
    }
    if (time_wall_ms() / 1000 >= i->expires_s)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "this invitation expired at %s: ask for another", when);
    return STATUS_OK;
}

static enum status complete(struct invitation *i, const struct chan_peer *peer, const char *url,
                            struct err *err)
{
    if (!i->node.url[0] && !str_copy(i->node.url, sizeof(i->node.url), url))
        return err_set(err, STATUS_INVALID_ARGUMENT, "the address is too long");
    if (!i->node.url[0])
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "the invitation says no address: join with --url tcp://HOST:PORT, where "
                       "other nodes reach this one");
    if (!keyring_is_url(i->node.url))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "the address is tcp://HOST:PORT, ipc:///PATH or inproc://NAME");
    memcpy(i->node.key, peer->key, sizeof(i->node.key));
    return STATUS_OK;
}

// The node among the others; the same one when it asks again, unless it was removed meanwhile.
static enum status add_node(struct keyring *k, struct invitation *i, struct err *err)
{
    const struct svc_node *n = &i->node, *there = keyring_find(k, n->id);

    if (there && !crypto_equal(there->key, n->key, sizeof(n->key)))
        return err_set(err, STATUS_ALREADY_EXISTS,
                       "there is a node '%s' by now: ask for another invitation", n->id);
    if (there)
        return STATUS_OK;
    if (i->is_done)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "the node %s was removed since: ask for another invitation", n->id);
    if (!keyring_add(k, n))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "nodes.ini has no room for more nodes");
    enum status s = keyring_write_nodes(k, err);
    if (s != STATUS_OK)
        return s;
    i->is_done = true;
    return invitation_save(k->dir, i, err);
}

static enum status answer(struct arena *a, const struct keyring *k, const struct invitation *i,
                          Enrol__JoinReply *ret, struct err *err)
{
    AUTO(buf_done) struct buf b = {0};
    uint8_t *grant = arena_alloc(a, CHAN_GRANT_SIZE);

    buf_init(&b, MAX_INI_BYTES);
    if (!grant || !keyring_put_nodes(k, &b))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = keyring_sign(k, &i->node, i->node.key, i->valid_s, grant, err);
    // Its number has to be known to who revokes it, whatever clocks say by then.
    if (s == STATUS_OK)
        s = keyring_save_grant(k, i->node.id, ".grant", grant, err);
    if (s != STATUS_OK)
        return s;
    ret->grant = (ProtobufCBinaryData){.len = CHAN_GRANT_SIZE, .data = grant};
    ret->nodes_ini = (ProtobufCBinaryData){.len = b.len, .data = arena_dup(a, b.data, b.len)};
    ret->node_id = arena_strdup(a, i->node.id);
    ret->role = arena_strdup(a, svc_role_name(i->node.role));
    ret->kind = arena_strdup(a, i->node.kind);
    if (!ret->nodes_ini.data || !ret->node_id || !ret->role || !ret->kind)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    return STATUS_OK;
}

static enum status use(struct rpc_call *call, struct keyring *k, struct invitation *i,
                       const char *url, Enrol__JoinReply *ret, struct err *err)
{
    const struct chan_peer *peer = rpc_call_peer(call);

    enum status s = invitation_load(k->dir, peer->join_id, i, err);
    if (s == STATUS_OK)
        s = check(i, peer, err);
    if (s == STATUS_OK)
        s = complete(i, peer, url, err);
    if (s == STATUS_OK && !i->is_used) {
        i->is_used = true;
        memcpy(i->used_by, peer->key, sizeof(i->used_by));
        s = invitation_save(k->dir, i, err);
    }
    if (s == STATUS_OK)
        s = add_node(k, i, err);
    return s == STATUS_OK ? answer(rpc_call_arena(call), k, i, ret, err) : s;
}

static enum status join(struct rpc_call *call, const Enrol__JoinRequest *req, Enrol__JoinReply *ret,
                        struct err *err)
{
    struct enrol *e = rpc_call_self(call);
    AUTO(keyring_free_p) struct keyring *k = NULL;
    struct invitation i = {0};
    char key[KEYRING_FINGERPRINT_SIZE];

    enum status s = keyring_open(e->o->keys, &k, err);
    if (s == STATUS_OK)
        s = use(call, k, &i, req->url, ret, err);
    keyring_fingerprint(key, rpc_call_peer(call)->key);
    if (s == STATUS_OK)
        log_info(e->log, "node_joined", F_STR("node", i.node.id),
                 F_STR("role", svc_role_name(i.node.role)), F_STR("key", key));
    else
        log_warn(e->log, "join_refused", F_STR("node", i.node.id), F_STR("key", key), F_ERR(err));
    crypto_wipe(&i, sizeof(i));
    return s;
}

// ---------------------------------------------------------------- the process

static enum status check_folder(const struct options *o, struct err *err)
{
    AUTO(keyring_free_p) struct keyring *k = NULL;

    enum status s = keyring_open(o->keys, &k, err);
    if (s != STATUS_OK)
        return s;
    if (!k->before || !k->has_operator)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "%s needs nodes.ini and operator.key, which 'cauced keys' makes", o->keys);
    invitation_clean(o->keys);
    return STATUS_OK;
}

static enum status make_server(struct enrol *e, struct err *err)
{
    const struct enrol_enrol_handlers handlers = {.join = join};

    e->pool = work_pool_new("enrol", N_THREADS, MAX_QUEUE);
    if (!e->pool)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory or threads");
    struct rpc_server_opts o = {
        .log = e->log, .identity = &e->id, .join = find_secret, .join_ud = e, .pool = e->pool};
    e->server = rpc_server_new(&o, err);
    if (!e->server)
        return STATUS_RESOURCE_EXHAUSTED;
    enum status s = enrol_enrol_serve(e->server, &handlers, e, err);
    if (s == STATUS_OK)
        s = rpc_server_listen_enrol(e->server, e->o->listen, e->url, err);
    return s == STATUS_OK ? s : err_wrap(err, s, "listen on %s", e->o->listen);
}

// Where invitations send machines; and the ready file, for whoever started us.
static enum status announce(const struct enrol *e, struct err *err)
{
    const char *url = e->o->address ? e->o->address : e->url;
    AUTO(mem_free_p) char *path = mem_printf("%s/enrol.url", e->o->keys);
    AUTO(mem_free_p) char *line = mem_printf("%s\n", url);
    AUTO(mem_free_p)
    char *ready = mem_printf("{\"pid\":%ld,\"urls\":[\"%s\"]}\n", (long)getpid(), e->url);

    if (!path || !line || !ready)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = keyring_replace_file(path, 0644, line, strlen(line), err);
    if (s == STATUS_OK && e->o->ready_file)
        s = keyring_replace_file(e->o->ready_file, 0644, ready, strlen(ready), err);
    if (s == STATUS_OK)
        log_info(e->log, "listening", F_STR("url", e->url));
    return s;
}

// Before the first thread, which inherit the mask.
static void take_signals(sigset_t *signals)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};

    sigemptyset(signals);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, signals, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

static enum status make_log(struct enrol *e, struct err *err)
{
    enum log_level level = LOG_INFO;

    if (!log_level_parse(e->o->log_level, &level))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "--log-level '%s': not debug, info, warn, error or off", e->o->log_level);
    e->log = log_new(STDERR_FILENO, level, !isatty(STDERR_FILENO));
    return e->log ? STATUS_OK : err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

static enum status serve(struct enrol *e, struct err *err)
{
    sigset_t signals;
    int sig = 0;

    take_signals(&signals);
    enum status s = make_log(e, err);
    if (s == STATUS_OK)
        s = check_folder(e->o, err);
    if (s == STATUS_OK)
        s = invitation_server_key(e->o->keys, &e->id, err);
    if (s == STATUS_OK)
        s = make_server(e, err);
    if (s == STATUS_OK)
        s = announce(e, err);
    if (s == STATUS_OK)
        (void)sigwait(&signals, &sig);
    if (e->o->ready_file)
        (void)unlink(e->o->ready_file);
    if (e->server)
        rpc_server_stop(e->server, GRACE_MS);
    rpc_server_free(e->server);
    work_pool_free(e->pool);
    log_free(e->log);
    rpc_fini();
    crypto_wipe(&e->id, sizeof(e->id));
    return s;
}

static enum status run(void *ud, char **words, bool *ret_misused, struct err *err)
{
    struct enrol *e = ud;
    (void)words;
    return e->o->keys ? serve(e, err) : command_misused(ret_misused, err, "--keys DIR is");
}

int cauced_enrol(int argc, char **argv)
{
    static const struct command_line command = {.name = "enrol", .spec = &spec, .run = run};
    struct options o = {0};
    struct enrol e = {.o = &o};
    return command_main(&command, &o, &e, argc, argv);
}
