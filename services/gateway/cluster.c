// Everybody is asked at once; whoever does not answer within a second is down.
#include <stdio.h>
#include <string.h>

#include "base/time.h"
#include "cauce/node.rpc.h"
#include "gateway/internal.h"

enum { ASK_MS = 1000, MAX_NODES = 1024 };

struct survey {
    pthread_mutex_t lock;
    pthread_cond_t answered;
    unsigned n_open; // answers still to come
    int64_t started_us;
};

struct question { // about one node
    struct survey *survey;
    const struct svc_node *node;
    enum status status;
    struct err err;
    int64_t latency_us;
    Node__CheckReply *check;
    Node__InfoReply *info;
};

static void one_answered(struct survey *s)
{
    s->n_open--;
    pthread_cond_signal(&s->answered);
}

static void on_check(void *ud, enum status st, Node__CheckReply *reply, const struct err *err)
{
    struct question *q = ud;
    pthread_mutex_lock(&q->survey->lock);
    q->status = st;
    q->check = reply;
    if (st == STATUS_OK)
        q->latency_us = time_mono_us() - q->survey->started_us;
    else if (err)
        q->err = *err;
    one_answered(q->survey);
    pthread_mutex_unlock(&q->survey->lock);
}

static void on_info(void *ud, enum status st, Node__InfoReply *reply, const struct err *err)
{
    struct question *q = ud;
    (void)st;
    (void)err;
    pthread_mutex_lock(&q->survey->lock);
    q->info = reply;
    one_answered(q->survey);
    pthread_mutex_unlock(&q->survey->lock);
}

static void ask(struct gateway *g, struct question *q, const struct rpc_opts *o)
{
    struct err err = ERR_INIT;
    struct rpc_client *c = svc_client(g->svc, q->node->role, q->node->id, &err);
    if (!c) {
        on_check(q, STATUS_UNAVAILABLE, NULL, &err);
        on_info(q, STATUS_UNAVAILABLE, NULL, &err);
        return;
    }
    Node__CheckRequest check;
    Node__InfoRequest info;
    node__check_request__init(&check);
    node__info_request__init(&info);
    node_health_check_async(c, o, &check, on_check, q);
    node_node_info_async(c, o, &info, on_info, q);
}

static char *dup(struct arena *a, const char *s, bool *ok)
{
    char *copy = arena_strdup(a, s);
    *ok = *ok && copy;
    return copy;
}

static Node__InfoReply *copy_info(struct arena *a, const Node__InfoReply *from, bool *ok)
{
    Node__InfoReply *to = arena_dup(a, from, sizeof *from);
    *ok = *ok && to;
    if (!to)
        return NULL;
    to->base.n_unknown_fields = 0;
    to->base.unknown_fields = NULL;
    to->node_id = dup(a, from->node_id, ok);
    to->role = dup(a, from->role, ok);
    to->kind = dup(a, from->kind, ok);
    to->version = dup(a, from->version, ok);
    return to;
}

static Node__NodeStatus *describe(struct arena *a, const struct question *q, bool *ok)
{
    Node__NodeStatus *n = arena_alloc(a, sizeof *n);
    *ok = *ok && n;
    if (!n)
        return NULL;
    node__node_status__init(n);
    n->node_id = dup(a, q->node->id, ok);
    n->role = dup(a, svc_role_name(q->node->role), ok);
    n->kind = dup(a, q->node->kind, ok);
    n->status = q->check ? q->check->status : NODE__SERVING__SERVING_UNKNOWN;
    n->reason = dup(a, q->check ? q->check->reason : q->err.msg, ok);
    n->latency_us = q->latency_us;
    n->info = q->info ? copy_info(a, q->info, ok) : NULL;
    return n;
}

static size_t list_nodes(struct gateway *g, struct survey *s, struct question *qs, size_t max)
{
    static const unsigned roles[] = {ROLE_NODE_GATEWAY, ROLE_NODE_SESSION, ROLE_NODE_ORCHESTRATOR,
                                     ROLE_NODE_STORE,   ROLE_NODE_ORIGIN,  ROLE_NODE_TRANSCODE};
    size_t n = 0;
    for (size_t i = 0; i < N_ELEMENTS(roles); i++)
        for (const struct svc_node *node = NULL;
             (node = svc_nodes_next(g->svc->nodes, roles[i], node)) && n < max; n++)
            if (qs)
                qs[n] = (struct question){.survey = s, .node = node};
    return n;
}

enum status gateway_cluster(void *gateway, struct rpc_call *call,
                            const struct Node__ClusterRequest *req, struct Node__ClusterReply *ret,
                            struct err *err)
{
    struct gateway *g = gateway;
    struct arena *a = rpc_call_arena(call);
    struct survey survey = {.started_us = time_mono_us()};
    size_t n = list_nodes(g, NULL, NULL, MAX_NODES);
    struct question *qs = arena_array(a, n, sizeof *qs);
    ret->nodes = arena_array(a, n, sizeof(Node__NodeStatus *));
    bool ok = qs && ret->nodes;
    (void)req;
    if (!ok)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "cluster: out of memory");
    list_nodes(g, &survey, qs, n);
    pthread_mutex_init(&survey.lock, NULL);
    pthread_cond_init(&survey.answered, NULL);
    survey.n_open = (unsigned)(2 * n);
    const struct rpc_opts o = {
        .deadline_us = time_deadline_in_ms(ASK_MS), .max_attempts = 1, .cancel = g->stopping};
    for (size_t i = 0; i < n; i++)
        ask(g, &qs[i], &o);

    // Every call ends by its deadline, and answers exactly once.
    pthread_mutex_lock(&survey.lock);
    while (survey.n_open > 0)
        pthread_cond_wait(&survey.answered, &survey.lock);
    pthread_mutex_unlock(&survey.lock);
    pthread_cond_destroy(&survey.answered);
    pthread_mutex_destroy(&survey.lock);
    for (size_t i = 0; i < n; i++) {
        ret->nodes[i] = describe(a, &qs[i], &ok);
        rpc_message_free(qs[i].check);
        rpc_message_free(qs[i].info);
    }
    ret->n_nodes = ok ? n : 0;
    return ok ? STATUS_OK : err_set(err, STATUS_RESOURCE_EXHAUSTED, "cluster: out of memory");
}
