// Grants and keys that change while connections are open.
//
// Each call asks about its caller's grant. What was open before is found here: a server looks
// through its connections when it is told to, ends what belongs to a peer that is no longer good
// and gives the connection a second, so that the peer hears why.
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define FAREWELL_US 1000000

// ---------------------------------------------------------------- servers

void rpc_server_set_identity(struct rpc_server *s, const struct chan_identity *id,
                             const struct chan_identity *other)
{
    chan_local_set_identity(s->local, id, other);
}

static void end_flows(struct conn *c)
{
    list_for_each_safe(it, tmp, &c->flows)
    {
        struct flow *f = list_entry(it, struct flow, all);
        f->status = (struct frame_status){.code = STATUS_PERMISSION_DENIED};
        (void)str_copy(f->status.msg, sizeof f->status.msg,
                       "the node's grant has expired or was revoked");
        flow_post(f, FLOW_ENDED);
    }
}

static void check_caller(struct rpc_server *s, struct conn *c)
{
    conn_lock(c);
    const struct chan_peer *p = chan_peer(c->chan);
    if (!c->dead && c->ready && !c->end_at_us && p->link == CHAN_LINK_SERVICE &&
        !rpc_server_trusts_peer(s, p)) {
        log_warn(s->o.log, "rpc_grant_ended", F_STR("node", p->grant.node_id),
                 F_I64("serial", (int64_t)p->grant.serial), F_I64("calls", c->n_calls));
        end_flows(c);
        conn_goaway(c);
        conn_end_at(c, time_mono_us() + FAREWELL_US, "the peer's grant has ended");
    }
    conn_unlock(c);
}

void rpc_server_check_grants(struct rpc_server *s)
{
    size_t n;
    struct conn **all = server_conns(s, &n);
    for (size_t i = 0; all && i < n; i++) {
        check_caller(s, all[i]);
        conn_unref(all[i]);
    }
    mem_free(all);
}
