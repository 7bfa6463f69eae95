// Reflection.List and Describe: what this process serves, and passes on, out of the descriptors it
// was built with.
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/str.h"
#include "cauce/node.rpc.h"
#include "cauce/services.rpc.h"
#include "reflect/reflect.h"
#include "service/internal.h"

#define MAX_SET_BYTES (1U << 20)

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

// ---------------------------------------------------------------- what is served

struct served {
    const struct rpc_method *method;
    const char *service; // n_service characters
    size_t n_service;
    bool is_forwarded;
};
struct all_served {
    struct arena *arena;
    struct served *all;
    size_t n, most;
    bool failed;
};

static void add_served(void *ud, const struct rpc_method_stats *m)
{
    struct all_served *s = ud;
    if (s->n == s->most) {
        size_t most = s->most ? 2 * s->most : 64;
        struct served *all = arena_array(s->arena, most, sizeof(all[0]));
        s->failed |= !all;
        if (!all)
            return;
        if (s->n)
            memcpy(all, s->all, s->n * sizeof(all[0]));
        s->all = all;
        s->most = most;
    }
    s->all[s->n++] = (struct served){m->method, m->service, m->n_service, m->is_forwarded};
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct served *)a)->method->name,
                  ((const struct served *)b)->method->name);
}

// Sorted by name, so that methods of one service stand together.
static enum status find_served(struct rpc_call *call, struct all_served *ret, struct err *err)
{
    struct instance *in = rpc_call_self(call);
    *ret = (struct all_served){.arena = rpc_call_arena(call)};
    rpc_server_methods_each(in->svc.server, add_served, ret);
    if (ret->failed || !ret->n)
        return no_memory(err);
    qsort(ret->all, ret->n, sizeof(ret->all[0]), by_name);
    return STATUS_OK;
}

static bool is_first_of_service(const struct all_served *s, size_t i)
{
    const struct served *m = &s->all[i];
    return i == 0 || m->n_service != m[-1].n_service ||
           memcmp(m->service, m[-1].service, m->n_service) != 0;
}

static size_t count_services(const struct all_served *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        n += is_first_of_service(s, i);
    return n;
}

static size_t count_methods(const struct all_served *s, size_t first)
{
    size_t end = first + 1;
    while (end < s->n && !is_first_of_service(s, end))
        end++;
    return end - first;
}

// ---------------------------------------------------------------- List

static char *constant(const char *s) // protobuf-c wants it writable, and does not write
{
    return (char *)(uintptr_t)s;
}

static bool list_roles(struct arena *a, unsigned allow, Node__MethodInfo *m)
{
    m->allow = arena_array(a, 32, sizeof(m->allow[0]));
    for (unsigned i = 0; m->allow && i < 32; i++)
        if (allow & 1U << i && reflect_role_name(i))
            m->allow[m->n_allow++] = constant(reflect_role_name(i));
    return m->allow;
}

static Node__MethodInfo *list_method(struct arena *a, const struct served *s)
{
    const struct rpc_method *m = s->method;
    Node__MethodInfo *info = arena_alloc(a, sizeof(*info));
    if (!info)
        return NULL;
    node__method_info__init(info);
    info->name = constant(m->name);
    info->kind = (Node__MethodKind)m->kind;
    info->request = constant(m->request->name);
    info->reply = constant(m->reply->name);
    info->idempotent = m->idempotent;
    info->inline_ = m->run_inline;
    info->http = constant(m->http ? m->http : "");
    info->forwarded = s->is_forwarded;
    info->max_attempts = m->max_attempts;
    info->hedge_after_ms = m->hedge_after_ms;
    info->max_concurrent = m->max_concurrent;
    info->max_queue_ms = m->max_queue_ms;
    return list_roles(a, m->allow, info) ? info : NULL;
}

static Node__ServiceInfo *list_service(struct arena *a, const struct served *first, size_t n)
{
    Node__ServiceInfo *info = arena_alloc(a, sizeof(*info));
    if (!info)
        return NULL;
    node__service_info__init(info);
    info->name = arena_strndup(a, first->service, first->n_service);
    info->methods = arena_array(a, n, sizeof(info->methods[0]));
    for (size_t i = 0; info->methods && i < n; i++) {
        info->methods[i] = list_method(a, &first[i]);
        if (!info->methods[i])
            return NULL;
        info->n_methods++;
    }
    return info->name && info->methods ? info : NULL;
}

enum status reflection_list(struct rpc_call *call, const Node__ListRequest *req,
                            Node__ListReply *ret, struct err *err)
{
    const struct instance *in = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    struct all_served s;
    (void)req;
    enum status st = find_served(call, &s, err);
    if (st != STATUS_OK)
        return st;
    ret->node_id = arena_strdup(a, in->svc.self->id);
    ret->services = arena_array(a, count_services(&s), sizeof(ret->services[0]));
    if (!ret->node_id || !ret->services)
        return no_memory(err);
    for (size_t i = 0, n; i < s.n; i += n) {
        n = count_methods(&s, i);
        ret->services[ret->n_services] = list_service(a, &s.all[i], n);
        if (!ret->services[ret->n_services])
            return no_memory(err);
        ret->n_services++;
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- Describe

static const char **service_names(const struct all_served *s, size_t *ret_n)
{
    const char **names = arena_array(s->arena, count_services(s), sizeof(names[0]));
    *ret_n = 0;
    for (size_t i = 0; names && i < s->n; i += count_methods(s, i)) {
        names[*ret_n] = arena_strndup(s->arena, s->all[i].service, s->all[i].n_service);
        if (!names[(*ret_n)++])
            return NULL;
    }
    return names;
}

static enum status describe(struct arena *a, const struct all_served *s, const char *symbol,
                            struct buf *set, Node__DescribeReply *ret, struct err *err)
{
    AUTO(reflect_free_p) struct reflect *r = NULL;
    struct reflect_part part = {.kind = ""};
    size_t n;
    const char **names = service_names(s, &n);
    if (!names)
        return no_memory(err);
    enum status st = reflect_new(cauce_descriptor_set, cauce_descriptor_set_size, &r, err);
    if (st == STATUS_OK)
        st = reflect_subset(r, names, n, symbol, &part, set, err);
    if (st != STATUS_OK)
        return st;
    ret->kind = constant(part.kind);
    ret->file = arena_strdup(a, part.file);
    ret->descriptor_set.data = arena_dup(a, set->data, set->len);
    ret->descriptor_set.len = set->len;
    return ret->file && ret->descriptor_set.data ? STATUS_OK : no_memory(err);
}

// The descriptors are made for the call and freed with it: asked for once in a while, they would
// otherwise be the larger part of an idle process.
enum status reflection_describe(struct rpc_call *call, const Node__DescribeRequest *req,
                                Node__DescribeReply *ret, struct err *err)
{
    struct all_served s;
    struct buf set;
    enum status st = find_served(call, &s, err);
    if (st != STATUS_OK)
        return st;
    buf_init(&set, MAX_SET_BYTES);
    st = describe(rpc_call_arena(call), &s, req->symbol, &set, ret, err);
    buf_done(&set);
    return st;
}
