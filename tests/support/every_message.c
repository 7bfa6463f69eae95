#include "support/every_message.h"

#include <stdlib.h>

#include "base/mem.h"
#include "cauce/event.pb-c.h"
#include "cauce/services.rpc.h"
#include "cauce/status.pb-c.h"

static bool has(const struct type_list *l, const ProtobufCMessageDescriptor *d)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->d[i] == d)
            return true;
    return false;
}

static bool append(struct type_list *l, const ProtobufCMessageDescriptor *d)
{
    const ProtobufCMessageDescriptor **more = mem_realloc(l->d, l->n + 1, sizeof(*more));
    if (!more)
        return false;
    l->d = more;
    l->d[l->n++] = d;
    return true;
}

// The list is its own queue of types whose fields were not looked at yet.
bool type_list_add(struct type_list *l, const ProtobufCMessageDescriptor *d)
{
    size_t at = l->n;
    if (!has(l, d) && !append(l, d))
        return false;
    for (; at < l->n; at++) {
        const ProtobufCMessageDescriptor *outer = l->d[at];
        for (unsigned i = 0; i < outer->n_fields; i++) {
            const ProtobufCFieldDescriptor *f = &outer->fields[i];
            if (f->type == PROTOBUF_C_TYPE_MESSAGE && !has(l, f->descriptor) &&
                !append(l, f->descriptor))
                return false;
        }
    }
    return true;
}

bool type_list_init(struct type_list *ret)
{
    *ret = (struct type_list){.n = 0};
    for (size_t i = 0; i < cauce_n_services; i++)
        for (size_t k = 0; k < cauce_services[i]->n_methods; k++) {
            const struct rpc_method *m = &cauce_services[i]->methods[k];
            if (!type_list_add(ret, m->request) || !type_list_add(ret, m->reply))
                return false;
        }
    return type_list_add(ret, &status__details__descriptor) &&
           type_list_add(ret, &event__notice__descriptor); // goes by PUB and SUB
}

void type_list_done(struct type_list *l)
{
    mem_free(l->d);
    *l = (struct type_list){.n = 0};
}
