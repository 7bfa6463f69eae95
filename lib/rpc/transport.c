#include "rpc/transport.h"

#include <string.h>

#include "base/str.h"

const struct transport_ops *transport_named(const char *name)
{
    static const struct transport_ops *const all[] = {&transport_epoll, &transport_nng};
    for (size_t i = 0; i < N_ELEMENTS(all); i++) {
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
    }
    return NULL;
}

const struct transport_ops *transport_for(const struct transport_ops *wanted, const char *url)
{
    if (!str_starts_with(url, "tcp") && !str_starts_with(url, "ipc://"))
        return &transport_nng;
    return wanted ? wanted : &transport_epoll;
}

long transport_messages(void)
{
    return transport_nng_messages() + transport_epoll_messages();
}
