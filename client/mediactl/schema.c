#include "schema.h"

#include <string.h>

#include "cauce/services.rpc.h"

enum { MAX_LIST_BYTES = 4 << 20 };

// ---------------------------------------------------------------- built in

static bool list_roles(struct arena *a, unsigned allow, Node__MethodInfo *m)
{
    m->allow = arena_array(a, 32, sizeof(m->allow[0]));
    for (unsigned i = 0; m->allow && i < 32; i++)
        if (allow & 1U << i && reflect_role_name(i))
            m->allow[m->n_allow++] = client_str(reflect_role_name(i));
    return m->allow;
}

static Node__MethodInfo *list_method(struct arena *a, const struct rpc_method *m)
{
    Node__MethodInfo *info = arena_alloc(a, sizeof(*info));
    if (!info)
        return NULL;
    node__method_info__init(info);
    info->name = client_str(m->name);
    info->kind = (Node__MethodKind)m->kind;
    info->request = client_str(m->request->name);
    info->reply = client_str(m->reply->name);
    info->idempotent = m->idempotent;
    info->inline_ = m->run_inline;
    info->http = client_str(m->http);
    info->max_attempts = m->max_attempts;
    info->hedge_after_ms = m->hedge_after_ms;
    info->max_concurrent = m->max_concurrent;
    info->max_queue_ms = m->max_queue_ms;
    return list_roles(a, m->allow, info) ? info : NULL;
}

static Node__ServiceInfo *list_service(struct arena *a, const struct rpc_service *s)
{
    Node__ServiceInfo *info = arena_alloc(a, sizeof(*info));
    if (!info)
        return NULL;
    node__service_info__init(info);
    info->name = client_str(s->name);
    info->methods = arena_array(a, s->n_methods, sizeof(info->methods[0]));
    for (size_t i = 0; info->methods && i < s->n_methods; i++) {
        info->methods[info->n_methods] = list_method(a, &s->methods[i]);
        if (!info->methods[info->n_methods++])
            return NULL;
    }
    return info->methods ? info : NULL;
}

static enum status open_builtin(struct schema *s)
{
    struct err *err = &s->k->err;
    s->arena = arena_new(MAX_LIST_BYTES);
    Node__ListReply *list = s->arena ? arena_alloc(s->arena, sizeof(*list)) : NULL;
    bool ok = list;
    if (ok) {
        node__list_reply__init(list);
        list->services = arena_array(s->arena, cauce_n_services, sizeof(list->services[0]));
        ok = list->services;
    }
    for (size_t i = 0; ok && i < cauce_n_services; i++) {
        list->services[list->n_services] = list_service(s->arena, cauce_services[i]);
        ok = list->services[list->n_services++];
    }
    s->list = list;
    if (!ok)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    return reflect_new(cauce_descriptor_set, cauce_descriptor_set_size, &s->builtin, err);
}

// ---------------------------------------------------------------- of the server

static enum status ask_list(struct schema *s)
{
    struct ctl *k = s->k;
    Node__ListRequest req = NODE__LIST_REQUEST__INIT;
    enum status st = CTL_CALL(k, node_reflection_list, s->node, &req, &s->reply);
    s->list = s->reply;
    return st;
}

enum status schema_open(struct schema *s, struct ctl *k)
{
    *s = (struct schema){.k = k, .node = k->opt[OPT_NODE]};
    enum status st = ask_list(s);
    // Somebody who has not logged in yet, or an older server: the methods known here.
    if ((st != STATUS_UNAUTHENTICATED && st != STATUS_UNIMPLEMENTED) || s->node)
        return st;
    fprintf(stderr, "mediactl: these are built-in descriptions: %s\n",
            st == STATUS_UNAUTHENTICATED ? "the server tells its own to who has logged in"
                                         : "the server tells none");
    return open_builtin(s);
}

void schema_done(struct schema *s)
{
    rpc_message_free(s->reply);
    reflect_free(s->builtin);
    arena_free(s->arena);
}

// "Session.Login" is the end of "cauce.session.v1.Session.Login"; parts are never cut.
static bool is_end_of(const char *full, const char *end)
{
    size_t n = strlen(full), m = strlen(end);
    return m <= n && strcmp(full + n - m, end) == 0 && (m == n || full[n - m - 1] == '.');
}

const Node__ServiceInfo *schema_service(const struct schema *s, const char *name, bool *ret_many)
{
    const Node__ServiceInfo *found = NULL;
    *ret_many = false;
    for (size_t i = 0; i < s->list->n_services; i++) {
        const Node__ServiceInfo *at = s->list->services[i];
        if (strcmp(at->name, name) == 0)
            return at;
        if (!is_end_of(at->name, name))
            continue;
        *ret_many = found != NULL;
        found = at;
    }
    return *ret_many ? NULL : found;
}

const Node__MethodInfo *schema_method(const struct schema *s, const char *name, bool *ret_many)
{
    const Node__MethodInfo *found = NULL;
    bool many = false;
    for (size_t i = 0; i < s->list->n_services; i++)
        for (size_t m = 0; m < s->list->services[i]->n_methods; m++) {
            const Node__MethodInfo *at = s->list->services[i]->methods[m];
            if (!is_end_of(at->name, name))
                continue;
            many = many || found;
            found = at;
            if (strcmp(at->name, name) == 0) {
                *ret_many = false;
                return at;
            }
        }
    *ret_many = many;
    return many ? NULL : found;
}

enum status schema_reflect(struct schema *s, const char *symbol, struct reflect **ret,
                           bool *ret_own)
{
    *ret_own = !s->builtin;
    *ret = s->builtin;
    if (s->builtin)
        return STATUS_OK;
    struct ctl *k = s->k;
    Node__DescribeRequest req = NODE__DESCRIBE_REQUEST__INIT;
    req.symbol = client_str(symbol);
    AUTO(rpc_message_free_p) Node__DescribeReply *r = NULL;
    enum status st = CTL_CALL(k, node_reflection_describe, s->node, &req, &r);
    if (st != STATUS_OK)
        return st;
    st = reflect_new(r->descriptor_set.data, r->descriptor_set.len, ret, &k->err);
    return st == STATUS_OK ? st : err_wrap(&k->err, st, "what the server says of %s", symbol);
}
