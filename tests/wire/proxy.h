#pragma once
// A TCP link that misbehaves on request, between a client and a server of the same test: it delays,
// limits the rate, holds, corrupts, cuts, and counts. All chance comes from one seed, so that a run
// can be repeated; a test that fails prints it.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/auto.h"

enum tcp_proxy_dir { TCP_PROXY_UP, TCP_PROXY_DOWN }; // towards the server, towards the client
enum tcp_proxy_cut {
    TCP_PROXY_FIN, // both sides see an orderly end; what was on its way is lost
    TCP_PROXY_RST, // both sides see a reset
};

// One direction. All zero: bytes pass at once and unchanged.
struct tcp_proxy_link {
    int64_t delay_us, jitter_us; // every byte arrives delay + [0, jitter) later, never reordered
    int64_t rate_bytes_s;        // of all connections together; 0: unlimited
    size_t buffer_bytes;         // sockets' buffers, and the queue before the rate limit. 0: 64 KiB
                                 // with a rate, else the kernel's own
    bool hold;                   // nothing passes, not even the end of the stream
    // The connection is cut after a number of bytes drawn from [cut_min, cut_max]; max 0: never.
    int64_t cut_min_bytes, cut_max_bytes;
    enum tcp_proxy_cut cut;
    int64_t flip_mean_bytes; // a bit flips after that many bytes on average; 0: never
};

struct tcp_proxy_stats {
    uint64_t n_conns, n_cuts, n_flips, bytes[2]; // bytes passed on, by direction
    unsigned conns_open;
};

struct tcp_proxy;
// Listens on 127.0.0.1 and connects each client to the target.
//
// target_url  tcp://127.0.0.1:PORT, copied
// seed        0 draws one; tcp_proxy_seed() tells it
// Both links start as all zero. NULL when descriptors or memory are short.
struct tcp_proxy *tcp_proxy_new(const char *target_url, uint64_t seed) MUST_CHECK;
// Cuts what is open (RST) and joins the proxy's thread.
void tcp_proxy_free(struct tcp_proxy *p);
DEFINE_AUTO(struct tcp_proxy, tcp_proxy_free)

const char *tcp_proxy_url(const struct tcp_proxy *p); // tcp://127.0.0.1:PORT, borrowed
uint64_t tcp_proxy_seed(const struct tcp_proxy *p);
void tcp_proxy_set_target(struct tcp_proxy *p, const char *target_url); // for new connections

// From now on. Open connections follow too, but for buffer_bytes and the drawn numbers of bytes,
// which are drawn when a connection is made (cut) or at the call (both, when newly asked for).
void tcp_proxy_set(struct tcp_proxy *p, enum tcp_proxy_dir dir, const struct tcp_proxy_link *l);
void tcp_proxy_set_both(struct tcp_proxy *p, const struct tcp_proxy_link *l);
void tcp_proxy_refuse(struct tcp_proxy *p, bool refuse); // reset new connections at once
// Cut every open connection when it is between min and max old, drawn for each; max 0: never.
void tcp_proxy_set_life(struct tcp_proxy *p, int64_t min_us, int64_t max_us,
                        enum tcp_proxy_cut how);
void tcp_proxy_cut(struct tcp_proxy *p, enum tcp_proxy_cut how); // all that are open, now
void tcp_proxy_get_stats(struct tcp_proxy *p, struct tcp_proxy_stats *ret);
