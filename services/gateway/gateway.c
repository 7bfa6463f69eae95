// The role: options, start, drain, stop.
#include "gateway/gateway.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "cauce/services.rpc.h"
#include "gateway/internal.h"

#define PLAN_CACHE_BYTES (64U << 20)
#define FILE_CACHE_BYTES (64U << 20) // indices of files to keep; of three hours: 10 MiB
#define PLAN_REFRESH_MS 30000

#define OPT(field) offsetof(struct gateway_options, field)
static const struct cfg_option options[] = {
    {"listen-rpc", CFG_STRING_LIST, OPT(listen_rpc), "tcp://127.0.0.1:7400", 0, 0,
     "public addresses for apps; tcp://[::1]:7400 for IPv6"},
    {"listen-http", CFG_STRING_LIST, OPT(listen_http), "127.0.0.1:7480", 0, 0,
     "public addresses for browsers; [::1]:7480 for IPv6"},
    {"cache", CFG_BYTES, OPT(cache_bytes), "256M", 0, INT64_C(1) << 40,
     "memory for segments that are asked for again"},
    {"max-connections", CFG_I64, OPT(max_conns), "1024", 8, 65536, "open HTTP connections"},
    {"max-connections-per-address", CFG_I64, OPT(max_conns_per_addr), "64", 1, 65536,
     "open HTTP connections of one client address"},
    {"segment-wait", CFG_DURATION_MS, OPT(segment_wait_ms), "30s", 0, 30000,
     "how long a request waits for a segment that is not made yet"},
};

void gateway_op_begin(struct gateway *g)
{
    pthread_mutex_lock(&g->lock);
    g->n_ops++;
    pthread_mutex_unlock(&g->lock);
}

void gateway_op_end(struct gateway *g)
{
    pthread_mutex_lock(&g->lock);
    if (--g->n_ops == 0)
        pthread_cond_broadcast(&g->idle);
    pthread_mutex_unlock(&g->lock);
}

static void gateway_free(struct gateway *g)
{
    http_server_free(g->http);
    edge_cache_free(g->segments);
    edge_cache_free(g->plans);
    edge_cache_free(g->files);
    cancel_unref(g->stopping);
    gateway_routes_free(g);
    pthread_cond_destroy(&g->idle);
    pthread_mutex_destroy(&g->lock);
    mem_free(g);
}
DEFINE_AUTO(struct gateway, gateway_free)

static struct gateway *gateway_new(struct svc *svc, const struct gateway_options *o)
{
    struct gateway *g = mem_alloc(sizeof *g);
    if (!g)
        return NULL;
    g->svc = svc;
    g->options = o;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->idle, NULL);
    g->stopping = cancel_new(NULL);
    g->segments = edge_cache_new((size_t)o->cache_bytes, 0);
    g->plans = edge_cache_new(PLAN_CACHE_BYTES, PLAN_REFRESH_MS);
    g->files = edge_cache_new(FILE_CACHE_BYTES, 0);
    gateway_pages_init(g);
    return g;
}

static enum status listen_http(struct gateway *g, struct err *err)
{
    const struct gateway_options *o = g->options;
    const struct http_opts opts = {
        .log = g->svc->log,
        .routes = g->routes,
        .n_routes = g->n_routes,
        .ud = g,
        .authorize = gateway_authorize,
        .trace = gateway_trace,
        .max_conns = (unsigned)o->max_conns,
        .max_conns_per_addr = (unsigned)o->max_conns_per_addr,
    };
    g->http = http_server_new(&opts, err);
    if (!g->http)
        return STATUS_RESOURCE_EXHAUSTED;
    for (size_t i = 0; o->listen_http && o->listen_http[i]; i++) {
        char url[HTTP_URL_SIZE];
        enum status s = http_server_listen(g->http, o->listen_http[i], url, err);
        if (s != STATUS_OK)
            return s;
        if (i == 0)
            svc_set_http_address(g->svc, url);
        log_info(g->svc->log, "listening", F_STR("http", url));
    }
    return STATUS_OK;
}

// cauce://host:port#key, what an app needs to connect.
static void announce(struct gateway *g, const char *url)
{
    char key[64], public_url[RPC_URL_SIZE + 80];
    str_b64(key, g->svc->identity->public_key, 32);
    snprintf(public_url, sizeof public_url, "cauce://%s#%s",
             str_starts_with(url, "tcp://") ? url + strlen("tcp://") : url, key);
    svc_set_public_url(g->svc, public_url);
}

static enum status listen_rpc(struct gateway *g, struct err *err)
{
    const struct gateway_options *o = g->options;
    rpc_server_set_router(g->svc->server, cauce_services, cauce_n_services, gateway_route, g);
    // Whoever is no admin must not even learn which nodes there are.
    rpc_server_set_elsewhere(g->svc->server, gateway_is_elsewhere, g, ROLE_ADMIN);
    for (size_t i = 0; o->listen_rpc && o->listen_rpc[i]; i++) {
        char url[RPC_URL_SIZE];
        enum status s = rpc_server_listen(g->svc->server, o->listen_rpc[i], true, url, err);
        if (s != STATUS_OK)
            return err_wrap(err, s, "listen on %s", o->listen_rpc[i]);
        if (i == 0)
            announce(g, url);
        log_info(g->svc->log, "listening", F_STR("rpc", url));
    }
    return STATUS_OK;
}

static enum status start(struct svc *svc, const void *opts, void **ret_self, struct err *err)
{
    enum status s = crypto_init(err);
    if (s != STATUS_OK)
        return s;
    AUTO(gateway_free_p) struct gateway *g = gateway_new(svc, opts);
    if (!g || !g->stopping || !g->segments || !g->plans || !g->files)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "gateway: out of memory");
    s = gateway_routes_new(g, err);
    if (s == STATUS_OK)
        s = listen_http(g, err);
    if (s == STATUS_OK)
        s = listen_rpc(g, err);
    if (s != STATUS_OK)
        return s;
    *ret_self = TAKE(g);
    return STATUS_OK;
}

static void drain(void *self)
{
    struct gateway *g = self;
    http_server_close(g->http);
}

static void stop(void *self)
{
    struct gateway *g = self;
    cancel_fire(g->stopping);
    http_server_stop(g->http);
    pthread_mutex_lock(&g->lock);
    while (g->n_ops > 0) // each is cancelled, and has a deadline besides
        pthread_cond_wait(&g->idle, &g->lock);
    pthread_mutex_unlock(&g->lock);
    gateway_free(g);
}

const struct svc_role gateway_role = {
    .name = "gateway",
    .role = ROLE_NODE_GATEWAY,
    .spec = {.section = "gateway",
             .usage = "cauced gateway [options]",
             .options = options,
             .n_options = N_ELEMENTS(options)},
    .options_size = sizeof(struct gateway_options),
    .start = start,
    .drain = drain,
    .stop = stop,
    .cluster = gateway_cluster,
};
