#pragma once
// What the transports share: nng's errors and addresses in our words.
#include <nng/nng.h>

#include "rpc/transport.h"

// "what url: why", with the status that the error amounts to.
enum status transport_err(struct err *err, int rv, const char *what, const char *url);
struct transport_addr transport_addr_of(const nng_sockaddr *sa);
// url with the port that sa has, if it names one: port 0 has become a real one there.
void transport_real_url(const nng_sockaddr *sa, const char *url, char *ret, size_t size);
