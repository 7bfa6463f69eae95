// Clients to other nodes: made on first use, kept until the end.
#include <string.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/str.h"
#include "service/internal.h"

#define MAX_CLIENTS 1024 // leases name origins: a confused peer must not fill memory with them
#define MAX_ENDPOINTS 64
#define N_CALLBACK_THREADS 2
#define GATEWAY_CONNECT_MS 1000 // people wait: a service that is away is said to be so soon

struct entry {
    struct list link;
    struct rpc_client *client;
    unsigned role;
    char name[RPC_URL_SIZE]; // node id, "" for any, or url
    uint8_t key[32];         // zero unless by url
};

struct svc_clients {
    struct svc *svc;
    // Completions of asynchronous calls run here, not on the handlers' pool, whose threads may all
    // be waiting for them.
    struct work_pool *pool;
    pthread_mutex_t lock;
    struct list entries;
    size_t n;
};

struct svc_clients *svc_clients_new(struct svc *svc)
{
    struct svc_clients *c = mem_alloc(sizeof(*c));
    struct work_pool *pool = work_pool_new("client", N_CALLBACK_THREADS, MAX_CLIENTS * 64);

    if (!c || !pool) {
        work_pool_free(pool);
        mem_free(c);
        return NULL;
    }
    c->svc = svc;
    c->pool = pool;
    list_init(&c->entries);
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

static void entry_free(struct entry *e)
{
    rpc_client_free(e->client);
    mem_free(e);
}

void svc_clients_free(struct svc_clients *c)
{
    if (!c)
        return;
    for (struct list *l; (l = list_pop_front(&c->entries));)
        entry_free(list_entry(l, struct entry, link));
    work_pool_free(c->pool);
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

static struct entry *find(struct svc_clients *c, unsigned role, const char *name,
                          const uint8_t key[32])
{
    list_for_each(l, &c->entries)
    {
        struct entry *e = list_entry(l, struct entry, link);
        if (e->role == role && str_eq(e->name, name) && memcmp(e->key, key, 32) == 0)
            return e;
    }
    return NULL;
}

static struct rpc_client *find_client(struct svc_clients *c, unsigned role, const char *name,
                                      const uint8_t key[32])
{
    pthread_mutex_lock(&c->lock);
    struct entry *e = find(c, role, name, key);
    pthread_mutex_unlock(&c->lock);
    return e ? e->client : NULL;
}

static struct entry *entry_new(struct svc_clients *c, unsigned role, const char *name,
                               const uint8_t key[32], const struct rpc_endpoint *endpoints,
                               size_t n, struct err *err)
{
    struct entry *e = mem_alloc(sizeof(*e));
    if (!e) {
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "client: out of memory");
        return NULL;
    }
    struct rpc_client_opts o = {
        .log = c->svc->log,
        .identity = c->svc->identity,
        .trust = c->svc->trust,
        .expect_role = role,
        .endpoints = endpoints,
        .n_endpoints = n,
        .pool = c->pool,
        .connect_timeout_ms = c->svc->self && c->svc->self->role == ROLE_NODE_GATEWAY
                                  ? GATEWAY_CONNECT_MS
                                  : 0,
    };
    list_init(&e->link);
    e->role = role;
    (void)str_copy(e->name, sizeof(e->name), name);
    memcpy(e->key, key, 32);
    e->client = rpc_client_new(&o, err);
    if (!e->client) {
        mem_free(e);
        return NULL;
    }
    return e;
}

// Made without the lock; who comes second uses the first one's.
static struct rpc_client *keep(struct svc_clients *c, struct entry *e, struct err *err)
{
    pthread_mutex_lock(&c->lock);
    struct entry *there = find(c, e->role, e->name, e->key);
    struct entry *extra = there || c->n == MAX_CLIENTS ? e : NULL;
    if (!extra) {
        list_push_back(&c->entries, &e->link);
        c->n++;
        there = e;
    }
    pthread_mutex_unlock(&c->lock);
    if (extra)
        entry_free(extra);
    if (!there)
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "client: more than %d other nodes",
                      MAX_CLIENTS);
    return there ? there->client : NULL;
}

static const uint8_t no_key[32];

static void add_endpoint(struct rpc_endpoint *list, size_t *n, const struct svc_node *node)
{
    if (!node || *n == MAX_ENDPOINTS)
        return;
    list[*n].url = node->url;
    memcpy(list[*n].key, node->key, 32);
    (*n)++;
}

struct rpc_client *svc_client(struct svc *svc, unsigned role, const char *node_id, struct err *err)
{
    struct svc_clients *c = instance_of(svc)->clients;
    const char *name = node_id ? node_id : "";
    struct rpc_client *client = find_client(c, role, name, no_key);
    struct rpc_endpoint endpoints[MAX_ENDPOINTS];
    size_t n = 0;

    if (client)
        return client;
    for (const struct svc_node *node = NULL; (node = svc_nodes_next(svc->nodes, role, node));)
        if (!node_id || str_eq(node->id, node_id))
            add_endpoint(endpoints, &n, node);
    if (n == 0) {
        (void)err_set(err, STATUS_NOT_FOUND, "nodes.ini has no %s%s%s", svc_role_name(role),
                      node_id ? " " : "", name);
        return NULL;
    }
    struct entry *e = entry_new(c, role, name, no_key, endpoints, n, err);
    return e ? keep(c, e, err) : NULL;
}

struct rpc_client *svc_client_to(struct svc *svc, unsigned role, const char *url,
                                 const uint8_t key[32], struct err *err)
{
    struct svc_clients *c = instance_of(svc)->clients;
    struct rpc_client *client = find_client(c, role, url, key);
    struct rpc_endpoint endpoint = {.url = url};

    if (client)
        return client;
    if (strlen(url) >= RPC_URL_SIZE) {
        (void)err_set(err, STATUS_INVALID_ARGUMENT, "client: the address is too long");
        return NULL;
    }
    memcpy(endpoint.key, key, 32);
    struct entry *e = entry_new(c, role, url, key, &endpoint, 1, err);
    return e ? keep(c, e, err) : NULL;
}
