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
    {"auth", ROLE_NODE_SESSION},
    {"upload", ROLE_NODE_ORCHESTRATOR},
    {"transcode", ROLE_NODE_ORCHESTRATOR},
    {"store", ROLE_NODE_STORE},
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

enum status gateway_route(void *gateway, const struct rpc_method *m, const char *route,
                          struct rpc_client **ret, struct err *err)
{
    struct gateway *g = gateway;
    unsigned role = owner(m->name, route);
    const char *node = NULL;
    if (role == 0 && str_starts_with(m->name, "cauce.event.v1."))
        return err_set(err, STATUS_NOT_FOUND,
                       "the call's route must name a topic: auth, upload, transcode or store");
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
