#include "rpc/address.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "base/str.h"

#define IPC_BUFFER (1 << 20) // as much of it as the system allows

static const struct {
    const char *scheme;
    int family;
} schemes[] = {
    {"tcp://", AF_UNSPEC},
    {"tcp4://", AF_INET},
    {"tcp6://", AF_INET6},
};

bool address_is_ours(const char *url)
{
    for (size_t i = 0; i < N_ELEMENTS(schemes); i++) {
        if (str_starts_with(url, schemes[i].scheme))
            return true;
    }
    return str_starts_with(url, "ipc://");
}

static bool parse_path(const char *path, struct address *ret)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    if (!*path || !str_copy(un.sun_path, sizeof un.sun_path, path))
        return false;
    memcpy(&ret->sa, &un, sizeof un);
    ret->len = sizeof un;
    return true;
}

static bool parse_host(const char *s, struct address_name *ret)
{
    const char *end = *s == '[' ? strchr(s, ']') : strrchr(s, ':');
    const char *port = end && *s == '[' ? end + 1 : end;
    if (!end || *port != ':')
        return false;
    s += *s == '[';
    size_t n = (size_t)(end - s);
    int64_t number;
    if (n >= sizeof ret->host || memchr(s, '/', n) ||
        str_parse_i64(port + 1, 0, 65535, &number, NULL) != STATUS_OK)
        return false;
    memcpy(ret->host, s, n);
    ret->host[n] = 0;
    if (strcmp(ret->host, "*") == 0)
        ret->host[0] = 0;
    snprintf(ret->port, sizeof ret->port, "%u", (unsigned)number);
    return true;
}

enum status address_parse(const char *url, struct address_name *ret, struct err *err)
{
    *ret = (struct address_name){.family = AF_UNSPEC};
    if (str_starts_with(url, "ipc://")) {
        ret->is_ipc = true;
        if (parse_path(url + strlen("ipc://"), &ret->path))
            return STATUS_OK;
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "%s: not the path of a socket (1 to %zu bytes)", url,
                       sizeof((struct sockaddr_un *)NULL)->sun_path - 1);
    }
    for (size_t i = 0; i < N_ELEMENTS(schemes); i++) {
        if (!str_starts_with(url, schemes[i].scheme))
            continue;
        ret->family = schemes[i].family;
        if (parse_host(url + strlen(schemes[i].scheme), ret))
            return STATUS_OK;
    }
    return err_set(err, STATUS_INVALID_ARGUMENT, "%s: not tcp://HOST:PORT or ipc:///PATH", url);
}

int address_look_up(const struct address_name *n, bool only_numeric, bool to_listen,
                    struct address *ret, size_t *ret_n)
{
    struct addrinfo want = {.ai_family = n->family,
                            .ai_socktype = SOCK_STREAM,
                            .ai_flags = AI_NUMERICSERV | (only_numeric ? AI_NUMERICHOST : 0) |
                                        (to_listen ? AI_PASSIVE : 0)};
    struct addrinfo *found = NULL;
    int rv = getaddrinfo(n->host[0] ? n->host : NULL, n->port, &want, &found);
    if (rv != 0)
        return rv;
    *ret_n = 0;
    for (struct addrinfo *a = found; a && *ret_n < ADDRESS_MAX; a = a->ai_next) {
        if (a->ai_addrlen > sizeof ret->sa)
            continue;
        memcpy(&ret[*ret_n].sa, a->ai_addr, a->ai_addrlen);
        ret[(*ret_n)++].len = a->ai_addrlen;
    }
    freeaddrinfo(found);
    return 0;
}

void address_tune(const struct address_name *n, int fd)
{
    // Messages are whole when they are written: nothing is gained by waiting for more. The kernel
    // grows TCP's buffers by itself, a local socket's hold less than one record.
    if (n->is_ipc)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){IPC_BUFFER}, sizeof(int));
    else
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
}

struct transport_addr address_peer(const struct address *a)
{
    struct transport_addr ret = {0};
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    if (a->sa.ss_family == AF_INET) {
        memcpy(&in, &a->sa, sizeof in);
        ret.family = 4;
        memcpy(ret.bytes, &in.sin_addr, 4);
    } else if (a->sa.ss_family == AF_INET6) {
        memcpy(&in6, &a->sa, sizeof in6);
        bool is_mapped = IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr); // IPv4 that came to an IPv6 socket
        ret.family = is_mapped ? 4 : 6;
        memcpy(ret.bytes, in6.sin6_addr.s6_addr + (is_mapped ? 12 : 0), is_mapped ? 4 : 8);
    }
    return ret;
}

void address_real_url(const struct address *a, const char *url, char *ret, size_t size)
{
    char port[8];
    const char *colon = strrchr(url, ':');
    if (a->len == 0 || a->sa.ss_family == AF_UNIX || !colon ||
        getnameinfo((const struct sockaddr *)&a->sa, a->len, NULL, 0, port, sizeof port,
                    NI_NUMERICSERV) != 0) {
        str_copy(ret, size, url);
        return;
    }
    snprintf(ret, size, "%.*s:%s", (int)(colon - url), url, port);
}
