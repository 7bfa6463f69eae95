// One role of one node, from its keys to its last call.
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "service/internal.h"

#define QUEUE_MAX 65536

// ---------------------------------------------------------------- who we are

static enum status load_nodes(struct instance *in, struct err *err)
{
    const char *keys = instance_options(in)->keys;
    if (!keys)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "no keys: give --keys DIR; 'cauced keys --out DIR' makes it");
    AUTO(mem_free_p) char *path = mem_printf("%s/nodes.ini", keys);
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = svc_nodes_load(path, &in->nodes, err);
    if (s == STATUS_NOT_FOUND)
        return err_set(err, s, "%s is not there; 'cauced keys --out %s --node ...' makes it", path,
                       keys);
    in->svc.nodes = in->nodes;
    return s;
}

static enum status choose_self(struct instance *in, struct err *err)
{
    const char *wanted = instance_options(in)->node, *kind = instance_kind(in);
    const struct svc_node *node = NULL;

    while ((node = svc_nodes_next(in->nodes, in->role->role, node)))
        if (wanted ? str_eq(node->id, wanted) : !kind || !kind[0] || str_eq(node->kind, kind))
            break;
    if (!node && wanted)
        return err_set(err, STATUS_NOT_FOUND, "nodes.ini has no %s '%s'; add it with 'cauced keys'",
                       in->role->name, wanted);
    if (!node)
        return err_set(err, STATUS_NOT_FOUND, "nodes.ini has no %s%s%s; add one with 'cauced keys'",
                       in->role->name, kind && kind[0] ? " of kind " : "", kind ? kind : "");
    if (kind && kind[0] && !str_eq(kind, node->kind))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "%s is of kind '%s' in nodes.ini, but --kind says '%s'", node->id,
                       node->kind, kind);
    in->svc.self = node;
    return STATUS_OK;
}

static char *key_path(const struct instance *in, const char *suffix)
{
    return mem_printf("%s/%s%s", instance_options(in)->keys, in->svc.self->id, suffix);
}

static enum status load_secret(struct instance *in, struct err *err)
{
    AUTO(mem_free_p) char *path = key_path(in, ".key");
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = crypto_key_load(path, "cauce-x25519-secret", in->identity.secret, 32, err);
    if (s == STATUS_NOT_FOUND)
        return err_wrap(err, s, "our key is missing; 'cauced keys' makes it");
    if (s != STATUS_OK)
        return s;
    crypto_dh_public(in->identity.public_key, in->identity.secret);
    if (!crypto_equal(in->identity.public_key, in->svc.self->key, 32))
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "%s is not the key that nodes.ini has for %s; run 'cauced keys' again", path,
                       in->svc.self->id);
    return STATUS_OK;
}

// Peers will judge the grant; saying now what they will dislike saves a long search.
static enum status load_grant(struct instance *in, struct err *err)
{
    struct chan_grant g;
    AUTO(mem_free_p) char *path = key_path(in, ".grant");
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = crypto_key_load(path, "cauce-grant", in->identity.grant, CHAN_GRANT_SIZE, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "our grant is missing or broken; 'cauced keys' makes it");
    in->identity.grant_len = CHAN_GRANT_SIZE;
    s = chan_grant_verify(&g, in->identity.grant, in->identity.grant_len,
                          svc_nodes_operator(in->nodes), time_wall_ms() / 1000, err);
    if (s != STATUS_OK)
        return err_wrap(err, STATUS_FAILED_PRECONDITION, "%s; 'cauced keys' renews it", path);
    if (1U << g.role != in->role->role || !str_eq(g.node_id, in->svc.self->id) ||
        !crypto_equal(g.key, in->identity.public_key, 32) ||
        g.serial < svc_nodes_serial_floor(in->nodes))
        return err_set(
            err, STATUS_FAILED_PRECONDITION,
            "%s is another node's, another role's or revoked; 'cauced keys' makes a new one", path);
    return STATUS_OK;
}

static enum status load_identity(struct instance *in, struct err *err)
{
    enum status s = load_nodes(in, err);

    if (s == STATUS_OK)
        s = choose_self(in, err);
    if (s == STATUS_OK)
        s = load_secret(in, err);
    if (s == STATUS_OK)
        s = load_grant(in, err);
    if (s == STATUS_OK)
        s = instance_expand_node(in, err);
    if (s != STATUS_OK)
        return s;
    memcpy(in->trust.operator_public, svc_nodes_operator(in->nodes), 32);
    in->trust.serial_floor = svc_nodes_serial_floor(in->nodes);
    return STATUS_OK;
}

enum status svc_load_token_secret(struct svc *svc, uint8_t ret_secret[64], struct err *err)
{
    struct instance *in = instance_of(svc);
    uint8_t secret[64];
    AUTO(mem_free_p) char *path = key_path(in, ".token.key");
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = crypto_key_load(path, "cauce-ed25519-secret", secret, sizeof(secret), err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "our token key is missing or broken; 'cauced keys' makes it");
    if (!svc->self->has_token_key || !crypto_equal(secret + 32, svc->self->token_key, 32))
        s = err_set(err, STATUS_FAILED_PRECONDITION,
                    "%s is not the token key that nodes.ini has for %s; run 'cauced keys' again",
                    path, svc->self->id);
    else
        memcpy(ret_secret, secret, sizeof(secret));
    crypto_wipe(secret, sizeof(secret));
    return s;
}

// ---------------------------------------------------------------- life

static enum status make_parts(struct instance *in, struct log *log, struct err *err)
{
    struct svc *svc = &in->svc;

    pthread_mutex_init(&in->lock, NULL);
    in->started_ms = time_mono_ms();
    svc->options = instance_options(in);
    svc->identity = &in->identity;
    svc->trust = &in->trust;
    in->log_role = log_with(log, "role", in->role->name);
    in->log_node = in->log_role ? log_with(in->log_role, "node", svc->self->id) : NULL;
    svc->log = in->log_node;
    svc->tokens = svc_tokens_new(in->nodes);
    svc->pool = work_pool_new(in->role->name, (unsigned)svc->options->threads, QUEUE_MAX);
    svc->timers = work_timers_new();
    in->clients = svc_clients_new(svc);
    if (!in->log_node || !svc->tokens || !svc->pool || !svc->timers || !in->clients)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory or threads");
    struct rpc_server_opts o = {
        .log = svc->log,
        .identity = svc->identity,
        .trust = svc->trust,
        .pool = svc->pool,
        .verify = svc_tokens_verify_access,
        .verify_ud = svc->tokens,
    };
    svc->server = rpc_server_new(&o, err);
    return svc->server ? STATUS_OK : err ? err->code : STATUS_UNAVAILABLE;
}

enum status instance_start(struct instance *in, struct log *log, struct err *err)
{
    enum status s = load_identity(in, err);

    if (s == STATUS_OK)
        s = make_parts(in, log, err);
    if (s == STATUS_OK)
        s = instance_serve_node(in, err);
    if (s == STATUS_OK)
        s = in->role->start(&in->svc, in->options, &in->self, err);
    atomic_store(&in->is_started, s == STATUS_OK);
    return s;
}

static enum status listen_on(struct instance *in, const char *url, struct err *err)
{
    char real[RPC_URL_SIZE];

    if (in->n_urls == SVC_MAX_URLS)
        return err_set(err, STATUS_INVALID_ARGUMENT, "more than %d addresses to listen on",
                       SVC_MAX_URLS);
    enum status s = rpc_server_listen(in->svc.server, url, false, real, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "listen on %s", url);
    pthread_mutex_lock(&in->lock);
    (void)str_copy(in->urls[in->n_urls++], RPC_URL_SIZE, real);
    pthread_mutex_unlock(&in->lock);
    log_info(in->svc.log, "listening", F_STR("url", real));
    return STATUS_OK;
}

enum status instance_listen(struct instance *in, struct err *err)
{
    char *const *list = instance_options(in)->listen;

    if (!list || !list[0])
        return listen_on(in, in->svc.self->url, err);
    for (; *list; list++) {
        enum status s = listen_on(in, *list, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

bool instance_is_ready(struct instance *in, char *reason, size_t reason_size)
{
    if (!atomic_load(&in->is_started)) {
        (void)str_copy(reason, reason_size, "starting");
        return false;
    }
    return !in->role->ready || in->role->ready(in->self, reason, reason_size);
}

void instance_drain(struct instance *in)
{
    if (!atomic_load(&in->is_started))
        return;
    if (in->role->drain)
        in->role->drain(in->self);
    rpc_server_close(in->svc.server);
}

void instance_stop(struct instance *in, int64_t deadline_us)
{
    if (!atomic_load(&in->is_started))
        return;
    rpc_server_stop(in->svc.server, time_left_ms(deadline_us));
    atomic_store(&in->is_started, false);
    if (in->role->stop)
        in->role->stop(in->self);
    in->self = NULL;
    // Now, and not with the rest: other nodes of this process still serve what these clients hold.
    svc_clients_free(TAKE(in->clients));
    log_info(in->svc.log, "stopped", F_I64("up_ms", time_mono_ms() - in->started_ms));
}

void instance_done(struct instance *in)
{
    struct svc *svc = &in->svc;

    svc_clients_free(in->clients);
    rpc_server_free(svc->server);
    work_pool_free(svc->pool);
    work_timers_free(svc->timers);
    svc_tokens_free(svc->tokens);
    log_free(in->log_node);
    log_free(in->log_role);
    svc_nodes_free(in->nodes);
    instance_free_options(in);
    crypto_wipe(&in->identity, sizeof(in->identity));
    if (in->started_ms != 0)
        pthread_mutex_destroy(&in->lock);
}

void svc_set_http_address(struct svc *svc, const char *url)
{
    struct instance *in = instance_of(svc);

    pthread_mutex_lock(&in->lock);
    (void)str_copy(in->http, sizeof(in->http), url);
    pthread_mutex_unlock(&in->lock);
}

void svc_set_public_url(struct svc *svc, const char *url)
{
    struct instance *in = instance_of(svc);

    pthread_mutex_lock(&in->lock);
    (void)str_copy(in->public_url, sizeof(in->public_url), url);
    pthread_mutex_unlock(&in->lock);
}
