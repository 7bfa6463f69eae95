// One role of one node, from its keys to its last call.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "service/internal.h"

#define QUEUE_MAX 65536
#define GRANT_ENDS_SOON_S (7 * 24 * 3600)

// ---------------------------------------------------------------- who we are

static enum status load_nodes(struct instance *in, struct err *err)
{
    const char *keys = instance_options(in)->keys;
    if (!keys)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "no keys: give --keys DIR; 'cauced keys --out DIR' makes it");
    AUTO(mem_free_p) char *path = instance_nodes_path(in);
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = svc_nodes_load(path, &in->nodes, err);
    if (s == STATUS_NOT_FOUND)
        return err_set(
            err, s, "%s is not there; 'cauced keys --out %s --node ...' or 'cauced join' makes it",
            path, keys);
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

static bool is_revoked(void *ud, const struct chan_grant *g)
{
    return svc_nodes_is_revoked(ud, g);
}

static bool is_good_peer(void *ud, const struct chan_peer *peer)
{
    return !peer->has_grant || !svc_nodes_is_revoked(ud, &peer->grant);
}

// One usable key is enough to start; what is wrong with another is said once there is a log.
static enum status load_keys(struct instance *in, struct identities *ids, struct err *err)
{
    enum status s = load_nodes(in, err);

    if (s == STATUS_OK)
        s = choose_self(in, err);
    if (s != STATUS_OK)
        return s;
    instance_mark_files(in);
    s = instance_load_identities(in, ids, err);
    if (s != STATUS_OK && !ids->has_listed && !ids->has_next)
        return s;
    if (s != STATUS_OK)
        (void)str_copy(in->problem, sizeof(in->problem), err->msg);
    in->identity = ids->has_listed ? ids->listed : ids->next;
    in->shown = *identities_shown(ids);
    in->shown_until_s = ids->until_s;
    memcpy(in->trust.operator_public, svc_nodes_operator(in->nodes), 32);
    in->trust.is_revoked = is_revoked;
    in->trust.ud = in->nodes;
    return instance_expand_node(in, err);
}

enum status svc_load_token_secret(struct svc *svc, uint8_t ret_secret[64], struct err *err)
{
    struct instance *in = instance_of(svc);
    uint8_t secret[64];
    AUTO(mem_free_p) char *path = instance_key_path(in, ".token.key");
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
    in->health = health_new(in);
    in->revoked = svc_revoked_new(SVC_MAX_REVOKED);
    if (!in->log_node || !svc->tokens || !svc->pool || !svc->timers || !in->clients ||
        !in->health || !in->revoked)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory or threads");
    struct rpc_server_opts o = {
        .log = svc->log,
        .identity = svc->identity,
        .trust = svc->trust,
        .pool = svc->pool,
        .verify = svc_tokens_verify_access,
        .verify_ud = svc->tokens,
        .grant_ok = is_good_peer,
        .grant_ok_ud = in->nodes,
        .user_ok = svc_revoked_user_ok,
        .user_ok_ud = in->revoked,
        .door = {.max_conns = (unsigned)svc->options->max_conns,
                 .max_conns_per_addr = (unsigned)svc->options->max_conns_per_addr},
    };
    svc->server = rpc_server_new(&o, err);
    return svc->server ? STATUS_OK : err ? err->code : STATUS_UNAVAILABLE;
}

static enum status make_all(struct instance *in, struct log *log, struct err *err)
{
    struct identities ids;
    enum status s = load_keys(in, &ids, err);

    if (s == STATUS_OK)
        s = make_parts(in, log, err);
    if (s == STATUS_OK)
        rpc_server_set_identity(in->svc.server, identities_shown(&ids), identities_other(&ids));
    if (s == STATUS_OK && in->problem[0])
        log_warn(in->svc.log, "key_not_loaded", F_STR("reason", in->problem));
    crypto_wipe(&ids, sizeof(ids));
    return s;
}

// A worker knows the orchestrator alone, and serves no users but admins.
static enum status follow_revocations(struct instance *in, struct err *err)
{
    return in->role->role == ROLE_NODE_TRANSCODE ? STATUS_OK
                                                 : svc_revoked_follow(in->revoked, &in->svc, err);
}

enum status instance_start(struct instance *in, struct log *log, struct err *err)
{
    enum status s = make_all(in, log, err);

    if (s == STATUS_OK)
        s = instance_serve_node(in, err);
    if (s == STATUS_OK)
        s = follow_revocations(in, err);
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

// What somebody should see to though we serve; "" when there is nothing.
static void tell_concern(struct instance *in, char *reason, size_t reason_size)
{
    int64_t now_s = time_wall_ms() / 1000;

    pthread_mutex_lock(&in->lock);
    (void)str_copy(reason, reason_size, in->problem);
    if (!in->problem[0] && in->shown_until_s < now_s + GRANT_ENDS_SOON_S)
        snprintf(reason, reason_size,
                 "our grant ends in %lld h; 'cauced keys renew %s' makes another",
                 (long long)(in->shown_until_s - now_s) / 3600, in->svc.self->id);
    pthread_mutex_unlock(&in->lock);
}

bool instance_is_ready(struct instance *in, char *reason, size_t reason_size)
{
    if (!atomic_load(&in->is_started) || atomic_load(&in->is_draining)) {
        (void)str_copy(reason, reason_size,
                       atomic_load(&in->is_draining) ? SVC_STOPPING : "starting");
        return false;
    }
    if (in->role->ready && !in->role->ready(in->self, reason, reason_size))
        return false;
    tell_concern(in, reason, reason_size);
    return true;
}

void instance_drain(struct instance *in)
{
    if (!atomic_load(&in->is_started))
        return;
    atomic_store(&in->is_draining, true);
    health_drain(in->health);
    if (in->role->drain)
        in->role->drain(in->self);
    svc_revoked_close(in->revoked);
    rpc_server_close(in->svc.server);
}

void instance_stop(struct instance *in, int64_t deadline_us)
{
    if (!atomic_load(&in->is_started))
        return;
    rpc_server_stop(in->svc.server, time_left_ms(deadline_us));
    health_stop(in->health);
    svc_revoked_stop(
        in->revoked); // before what may never end: its thread is done, and to be joined
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

    svc_revoked_stop(in->revoked);
    svc_clients_free(in->clients);
    rpc_server_free(svc->server);
    if (in->health)
        health_drain(in->health); // it starts no more jobs
    work_pool_free(svc->pool);
    health_free(in->health);
    work_timers_free(svc->timers);
    svc_tokens_free(svc->tokens);
    svc_revoked_free(in->revoked);
    log_free(in->log_node);
    log_free(in->log_role);
    svc_nodes_free(in->nodes);
    instance_free_options(in);
    crypto_wipe(&in->identity, sizeof(in->identity));
    crypto_wipe(&in->shown, sizeof(in->shown));
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

void svc_set_events_url(struct svc *svc, const char *url)
{
    struct instance *in = instance_of(svc);

    pthread_mutex_lock(&in->lock);
    (void)str_copy(in->events_url, sizeof(in->events_url), url);
    pthread_mutex_unlock(&in->lock);
}
