#pragma once
// A process that floods a listener on this machine with connections from addresses of its own
// (127.0.0.2 and up) which come to nothing.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/auto.h"

#define FLOOD_PAYLOADS_MAX 4
struct flood_order {
    uint16_t port;      // on 127.0.0.1
    unsigned per_s;     // connections begun
    unsigned most_open; // at the same time
    unsigned n_addrs;   // taken in turn
    size_t n_payloads;  // taken in turn: what a connection says, and then no more
    struct flood_payload {
        size_t n;
        uint8_t bytes[256];
    } payloads[FLOOD_PAYLOADS_MAX];
};
struct flood_stats {
    uint64_t n_begun, n_said, n_closed; // closed: by the server
    unsigned most_open;
    int64_t took_us;
};

struct flood;
// Forks: no thread may have been started yet. NULL: out of descriptors, processes or memory.
struct flood *flood_new(void) MUST_CHECK;
void flood_start(struct flood *f, const struct flood_order *o);
void flood_stop(struct flood *f, struct flood_stats *ret); // all its connections are closed then
void flood_free(struct flood *f);
