#pragma once
// Addresses of tcp and ipc urls: taken apart, looked up, written.
//
//   tcp://HOST:PORT   tcp4, tcp6: of that family only; HOST may be [IPv6], and when listening * or
//                     nothing for every interface
//   ipc:///PATH
#include <stdbool.h>
#include <sys/socket.h>

#include "base/err.h"
#include "rpc/transport.h"

struct address {
    struct sockaddr_storage sa;
    socklen_t len;
};

struct address_name { // a url, taken apart
    bool is_ipc;
    int family; // AF_UNSPEC, AF_INET, AF_INET6
    char host[256], port[8];
    struct address path; // ipc
};

#define ADDRESS_MAX 8 // of one name

bool address_is_ours(const char *url); // tcp or ipc
// errors  INVALID_ARGUMENT
enum status address_parse(const char *url, struct address_name *ret, struct err *err) MUST_CHECK;
// Addresses of a TCP name, at most ADDRESS_MAX. only_numeric: asks nobody and never blocks.
// Returns 0 and sets *ret_n, or a code for gai_strerror(); EAI_NONAME when a lookup is needed.
int address_look_up(const struct address_name *n, bool only_numeric, bool to_listen,
                    struct address *ret, size_t *ret_n);
void address_tune(const struct address_name *n, int fd); // a socket that carries messages
struct transport_addr address_peer(const struct address *a);
// url with the port that a has: port 0 has become a real one there.
void address_real_url(const struct address *a, const char *url, char *ret, size_t size);
