#include "rpc/transport_internal.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

enum status transport_err(struct err *err, int rv, const char *what, const char *url)
{
    enum status s = STATUS_UNAVAILABLE;
    switch (rv) {
    case NNG_ENOMEM:
        s = STATUS_RESOURCE_EXHAUSTED;
        break;
    case NNG_EINVAL:
    case NNG_EADDRINVAL:
    case NNG_ENOTSUP:
        s = STATUS_INVALID_ARGUMENT;
        break;
    case NNG_EADDRINUSE:
        s = STATUS_ALREADY_EXISTS;
        break;
    case NNG_EPERM:
        s = STATUS_PERMISSION_DENIED;
        break;
    default:
        break;
    }
    return err_set(err, s, "%s %s: %s", what, url, nng_strerror(rv));
}

struct transport_addr transport_addr_of(const nng_sockaddr *sa)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    struct transport_addr a = {0};
    if (sa->s_family == NNG_AF_INET) {
        a.family = 4;
        memcpy(a.bytes, &sa->s_in.sa_addr, 4);
    } else if (sa->s_family == NNG_AF_INET6 && memcmp(sa->s_in6.sa_addr, mapped, 12) == 0) {
        a.family = 4; // IPv4 that came to an IPv6 socket
        memcpy(a.bytes, sa->s_in6.sa_addr + 12, 4);
    } else if (sa->s_family == NNG_AF_INET6) {
        a.family = 6;
        memcpy(a.bytes, sa->s_in6.sa_addr, 8);
    }
    return a;
}

void transport_real_url(const nng_sockaddr *sa, const char *url, char *ret, size_t size)
{
    str_copy(ret, size, url);
    uint16_t raw;
    if (sa->s_family == NNG_AF_INET)
        raw = sa->s_in.sa_port;
    else if (sa->s_family == NNG_AF_INET6)
        raw = sa->s_in6.sa_port;
    else
        return;
    const char *port = strrchr(url, ':');
    uint8_t be[2];
    memcpy(be, &raw, 2);
    if (port)
        snprintf(ret, size, "%.*s:%u", (int)(port - url), url, (unsigned)(be[0] << 8 | be[1]));
}

const struct transport_ops *transport_named(const char *name)
{
    static const struct transport_ops *const all[] = {&transport_epoll, &transport_nng,
                                                      &transport_stream};
    for (size_t i = 0; i < N_ELEMENTS(all); i++) {
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
    }
    return NULL;
}

const struct transport_ops *transport_for(const struct transport_ops *wanted, const char *url)
{
    bool is_socket = str_starts_with(url, "tcp") || str_starts_with(url, "ipc://");
    return wanted && is_socket ? wanted : &transport_nng;
}

long transport_messages(void)
{
    return transport_nng_messages() + transport_stream_messages() + transport_epoll_messages();
}
