// Clients to other nodes: made on first use, kept until the end.
#include <stdio.h>
#include <string.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/str.h"
#include "crypto/crypto.h"
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
    unsigned n_updates;      // made or brought up to date after so many
};

struct svc_clients {
    struct svc *svc;
    // Completions of asynchronous calls run here, not on the handlers' pool, whose threads may all
    // be waiting for them.
    struct work_pool *pool;
    pthread_mutex_t lock;
    struct list entries;
    size_t n;
    unsigned n_updates; // changes of nodes.ini and of our identity
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

// ---------------------------------------------------------------- where they lead

static const uint8_t no_key[32];

static void add_endpoint(struct rpc_endpoint *list, size_t *n, const struct svc_node *node)
{
    if (*n == MAX_ENDPOINTS)
        return;
    struct rpc_endpoint *e = &list[(*n)++];
    e->url = node->url;
    memcpy(e->key, node->key, 32);
    e->has_next_key = node->has_next_key;
    memcpy(e->next_key, node->next_key, 32);
}

// An address that a lease named: our list may know that its node's key is being changed.
static void add_address(const struct svc_clients *c, struct rpc_endpoint *list, size_t *n,
                        const struct entry *e)
{
    for (const struct svc_node *node = NULL;
         (node = svc_nodes_next(c->svc->nodes, e->role, node));) {
        if (str_eq(node->url, e->name)) {
            add_endpoint(list, n, node);
            return;
        }
    }
    list[*n].url = e->name;
    memcpy(list[(*n)++].key, e->key, 32);
}

static size_t find_endpoints(const struct svc_clients *c, struct rpc_endpoint list[MAX_ENDPOINTS],
                             const struct entry *e)
{
    size_t n = 0;

    memset(list, 0, MAX_ENDPOINTS * sizeof(*list));
    if (memcmp(e->key, no_key, sizeof(no_key)) != 0) {
        add_address(c, list, &n, e);
        return n;
    }
    for (const struct svc_node *node = NULL; (node = svc_nodes_next(c->svc->nodes, e->role, node));)
        if (!e->name[0] || str_eq(node->id, e->name))
            add_endpoint(list, &n, node);
    return n;
}

static void update(struct svc_clients *c, struct entry *e, const struct chan_identity *id)
{
    struct rpc_endpoint endpoints[MAX_ENDPOINTS];
    struct err err = ERR_INIT;
    size_t n = find_endpoints(c, endpoints, e);

    if (rpc_client_set_endpoints(e->client, endpoints, n, &err) != STATUS_OK)
        log_error(c->svc->log, "client_not_updated", F_STR("client", e->name), F_ERR(&err));
    rpc_client_set_identity(e->client, id);
    rpc_client_check_grants(e->client);
    e->n_updates = c->n_updates;
}

void svc_clients_update(struct svc_clients *c)
{
    struct chan_identity id;

    instance_get_shown(instance_of(c->svc), &id);
    pthread_mutex_lock(&c->lock);
    c->n_updates++;
    list_for_each(l, &c->entries)
    {
        update(c, list_entry(l, struct entry, link), &id);
    }
    pthread_mutex_unlock(&c->lock);
    crypto_wipe(&id, sizeof(id));
}

void svc_clients_check(struct svc_clients *c)
{
    pthread_mutex_lock(&c->lock);
    list_for_each(l, &c->entries)
    {
        rpc_client_check_grants(list_entry(l, struct entry, link)->client);
    }
    pthread_mutex_unlock(&c->lock);
}

// ---------------------------------------------------------------- making them

static struct rpc_client *dial(struct svc_clients *c, const struct entry *e,
                               const struct rpc_endpoint *endpoints, size_t n, struct err *err)
{
    struct chan_identity id;
    // "gateway-1>video-1": one process may be several nodes.
    char name[CHAN_NODE_ID_SIZE + RPC_URL_SIZE + 2];

    (void)snprintf(name, sizeof(name), "%s>%s", c->svc->self->id,
                   e->name[0] ? e->name : svc_role_name(e->role));
    instance_get_shown(instance_of(c->svc), &id);
    struct rpc_client_opts o = {
        .name = name,
        .log = c->svc->log,
        .identity = &id,
        .trust = c->svc->trust,
        .expect_role = e->role,
        .endpoints = endpoints,
        .n_endpoints = n,
        .pool = c->pool,
        .connect_timeout_ms =
            c->svc->self && c->svc->self->role == ROLE_NODE_GATEWAY ? GATEWAY_CONNECT_MS : 0,
    };
    struct rpc_client *client = rpc_client_new(&o, err);
    crypto_wipe(&id, sizeof(id));
    return client;
}

static struct entry *entry_new(struct svc_clients *c, unsigned role, const char *name,
                               const uint8_t key[32], struct err *err)
{
    struct rpc_endpoint endpoints[MAX_ENDPOINTS];
    struct entry *e = mem_alloc(sizeof(*e));
    if (!e) {
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "client: out of memory");
        return NULL;
    }
    list_init(&e->link);
    e->role = role;
    (void)str_copy(e->name, sizeof(e->name), name);
    memcpy(e->key, key, 32);
    pthread_mutex_lock(&c->lock);
    e->n_updates = c->n_updates;
    pthread_mutex_unlock(&c->lock);
    size_t n = find_endpoints(c, endpoints, e);
    if (n > 0)
        e->client = dial(c, e, endpoints, n, err);
    else
        (void)err_set(err, STATUS_NOT_FOUND, "nodes.ini has no %s%s%s", svc_role_name(role),
                      name[0] ? " " : "", name);
    if (!e->client) {
        mem_free(e);
        return NULL;
    }
    return e;
}

// Made without the lock; who comes second uses the first one's.
static struct rpc_client *keep(struct svc_clients *c, struct entry *e, struct err *err)
{
    struct chan_identity id;

    pthread_mutex_lock(&c->lock);
    // With the lock: another one shown later is brought to all that are in the list by then.
    instance_get_shown(instance_of(c->svc), &id);
    struct entry *there = find(c, e->role, e->name, e->key);
    struct entry *extra = there || c->n == MAX_CLIENTS ? e : NULL;
    if (!extra) {
        list_push_back(&c->entries, &e->link);
        c->n++;
        there = e;
        if (e->n_updates != c->n_updates)
            update(c, e, &id);
    }
    pthread_mutex_unlock(&c->lock);
    crypto_wipe(&id, sizeof(id));
    if (extra)
        entry_free(extra);
    if (!there)
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "client: more than %d other nodes",
                      MAX_CLIENTS);
    return there ? there->client : NULL;
}

struct rpc_client *svc_client(struct svc *svc, unsigned role, const char *node_id, struct err *err)
{
    struct svc_clients *c = instance_of(svc)->clients;
    const char *name = node_id ? node_id : "";
    struct rpc_client *client = find_client(c, role, name, no_key);

    if (client)
        return client;
    struct entry *e = entry_new(c, role, name, no_key, err);
    return e ? keep(c, e, err) : NULL;
}

struct rpc_client *svc_client_to(struct svc *svc, unsigned role, const char *url,
                                 const uint8_t key[32], struct err *err)
{
    struct svc_clients *c = instance_of(svc)->clients;
    struct rpc_client *client = find_client(c, role, url, key);

    if (client)
        return client;
    if (strlen(url) >= RPC_URL_SIZE) {
        (void)err_set(err, STATUS_INVALID_ARGUMENT, "client: the address is too long");
        return NULL;
    }
    struct entry *e = entry_new(c, role, url, key, err);
    return e ? keep(c, e, err) : NULL;
}
