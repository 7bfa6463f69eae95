#include <string.h>

#include "base/str.h"
#include "gateway/internal.h"

// Who owns a proto package. The event service is every service's: its calls name the topic.
static const struct {
    const char *prefix;
    unsigned role;
} packages[] = {
    {"cauce.session.v1.", ROLE_NODE_SESSION},
    {"cauce.orchestrator.v1.", ROLE_NODE_ORCHESTRATOR},
    {"cauce.transcode.v1.", ROLE_NODE_ORCHESTRATOR},
    {"cauce.store.v1.", ROLE_NODE_STORE},
    {"cauce.origin.v1.", ROLE_NODE_ORIGIN},
};
static const struct {
    const char *topic;
    unsigned role;
} topics[] = {
    {"auth", ROLE_NODE_SESSION},           {"upload", ROLE_NODE_ORCHESTRATOR},
    {"transcode", ROLE_NODE_ORCHESTRATOR}, {"store", ROLE_NODE_STORE},
    {"swarm", ROLE_NODE_ORCHESTRATOR},
};

static unsigned owner(const char *method, const char *route)
{
    for (size_t i = 0; i < N_ELEMENTS(packages); i++)
        if (str_starts_with(method, packages[i].prefix))
            return packages[i].role;
    for (size_t i = 0; str_starts_with(method, "cauce.event.v1.") && i < N_ELEMENTS(topics); i++)
        if (str_eq(route, topics[i].topic))
            return topics[i].role;
    return 0;
}

// ---------------------------------------------------------------- other nodes

#define NODE_PACKAGE "cauce.node.v1."

bool gateway_is_elsewhere(void *gateway, const struct rpc_method *m, const char *route)
{
    const struct gateway *g = gateway;
    return str_starts_with(m->name, NODE_PACKAGE) && !str_eq(route, g->svc->self->id);
}

static enum status unknown_node(struct gateway *g, const char *id, struct err *err)
{
    struct buf known;
    buf_init(&known, sizeof err->msg);
    for (unsigned bit = ROLE_NODE_SESSION; bit <= ROLE_NODE_ADMIN; bit <<= 1)
        for (const struct svc_node *n = NULL; (n = svc_nodes_next(g->svc->nodes, bit, n));)
            buf_printf(&known, "%s%s", known.len ? ", " : "", n->id);
    enum status s = err_set(err, STATUS_NOT_FOUND, "no node is called %.64s; there are %s%s", id,
                            buf_str(&known), known.failed ? ", ..." : "");
    buf_done(&known);
    return s;
}

static enum status route_to_node(struct gateway *g, const char *id, struct rpc_client **ret,
                                 struct err *err)
{
    const struct svc_node *n = svc_nodes_find(g->svc->nodes, id);
    if (!n)
        return unknown_node(g, id, err);
    *ret = svc_client(g->svc, n->role, n->id, err);
    return *ret ? STATUS_OK : STATUS_UNAVAILABLE;
}

// ---------------------------------------------------------------- by method

enum status gateway_route(void *gateway, const struct rpc_method *m, const char *route,
                          struct rpc_client **ret, struct err *err)
{
    struct gateway *g = gateway;
    if (str_starts_with(m->name, NODE_PACKAGE))
        return route_to_node(g, route, ret, err);
    unsigned role = owner(m->name, route);
    const char *node = NULL;
    if (role == 0 && str_starts_with(m->name, "cauce.event.v1."))
        return err_set(err, STATUS_NOT_FOUND,
                       "no topic is called \"%.64s\": there are auth, upload, transcode, store and "
                       "swarm; the call's route names one",
                       route ? route : "");
    if (role == 0)
        return err_set(err, STATUS_UNIMPLEMENTED, "no service owns %s", m->name);
    if (role == ROLE_NODE_ORIGIN) {
        const struct svc_node *origin = svc_nodes_find(g->svc->nodes, route);
        if (!origin || origin->role != ROLE_NODE_ORIGIN)
            return err_set(err, STATUS_NOT_FOUND, "the call's route names no origin");
        node = origin->id;
    }
    *ret = svc_client(g->svc, role, node, err);
    return *ret ? STATUS_OK : STATUS_UNAVAILABLE;
}
