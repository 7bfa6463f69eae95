// What every process serves: cauce.node.v1. Longer answers are in health.c, observe.c,
// reflection.c.
#include <stdio.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/time.h"
#include "cauce/node.rpc.h"
#include "service/internal.h"

static enum status check(struct rpc_call *call, const Node__CheckRequest *req,
                         Node__CheckReply *ret, struct err *err)
{
    char reason[200] = "";

    (void)req;
    (void)err;
    bool ok = instance_is_ready(rpc_call_self(call), reason, sizeof(reason));
    ret->status = ok ? NODE__SERVING__SERVING : NODE__SERVING__NOT_SERVING;
    if (reason[0] && health_may_say_why(call))
        ret->reason = arena_strdup(rpc_call_arena(call), reason);
    return STATUS_OK;
}

static int64_t rss_bytes(void)
{
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");

    if (!f)
        return 0;
    if (fscanf(f, "%*s %lld", &pages) != 1)
        pages = 0;
    (void)fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}

static enum status info(struct rpc_call *call, const Node__InfoRequest *req, Node__InfoReply *ret,
                        struct err *err)
{
    struct instance *in = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    struct rpc_server_stats stats;

    (void)req;
    rpc_server_get_stats(in->svc.server, &stats);
    ret->node_id = arena_strdup(a, in->svc.self->id);
    ret->role = arena_strdup(a, in->role->name);
    ret->kind = arena_strdup(a, in->svc.self->kind);
    ret->version = arena_strdup(a, CAUCE_VERSION);
    if (!ret->node_id || !ret->role || !ret->kind || !ret->version)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    ret->uptime_ms = time_mono_ms() - in->started_ms;
    ret->calls_total = (int64_t)stats.n_calls;
    ret->calls_open = stats.calls_open;
    ret->connections = stats.conns_open;
    ret->bytes_in = (int64_t)stats.bytes_in;
    ret->bytes_out = (int64_t)stats.bytes_out;
    ret->rss_bytes = rss_bytes();
    return STATUS_OK;
}

static enum status cluster(struct rpc_call *call, const Node__ClusterRequest *req,
                           Node__ClusterReply *ret, struct err *err)
{
    struct instance *in = rpc_call_self(call);

    if (!atomic_load(&in->is_started)) // the public listener may open before start() returns
        return err_set(err, STATUS_UNAVAILABLE, "starting");
    return in->role->cluster(in->self, call, req, ret, err);
}

enum status instance_serve_node(struct instance *in, struct err *err)
{
    const struct node_health_handlers health = {.check = check, .watch = health_watch};
    const struct node_node_handlers node = {.info = info,
                                            .cluster = in->role->cluster ? cluster : NULL,
                                            .methods = observe_methods,
                                            .channels = observe_channels,
                                            .calls = observe_calls};
    const struct node_reflection_handlers reflection = {.list = reflection_list,
                                                        .describe = reflection_describe};
    enum status s = node_health_serve(in->svc.server, &health, in, err);

    if (s == STATUS_OK)
        s = node_node_serve(in->svc.server, &node, in, err);
    return s == STATUS_OK ? node_reflection_serve(in->svc.server, &reflection, in, err) : s;
}
