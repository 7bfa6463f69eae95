#pragma once
// Servers for tests that look at more than an answer: a service that notes what its calls say of
// themselves, or holds them; and how to look at such a server.
#include <pthread.h>
#include <stdatomic.h>

#include "rpc/test_util.h"

enum {
    SEE,        // notes what its call says of itself
    SEE_INLINE, // the same on the I/O strand
    RELAY,      // calls the next site's method that text names; number 1: detached
    HOLD,       // until released or cancelled
    HOLD_TWO,   // the same, at most two at once
    HASTY,      // as SEE, but waits at most a millisecond for a thread
    REFUSE,     // with details
    POSTPONE,   // deferred; answered where it is told that it may write
    DRIP,       // server stream: number notes, each with the request's data
    MIRROR,     // bidi: every note comes back
    N_OWN
};
extern const struct rpc_method own_methods[N_OWN];
extern const struct rpc_service own_service;

struct seen { // of a call, by its handler
    struct rpc_trace trace;
    uint8_t parent[8];
    unsigned attempt;
    int64_t left_ms;
    char flavour[32]; // metadata
    size_t n_metadata;
    char node[CHAN_NODE_ID_SIZE];
    bool is_current, is_forwarded;
};
struct site { // a server and what it saw
    struct world w;
    struct work_pool *narrow; // of its handlers, or NULL: the world's
    struct log *log;          // or NULL
    struct rpc_server *s;
    char url[RPC_URL_SIZE];
    struct rpc_client *next; // where RELAY goes; the site's
    pthread_mutex_t lock;    // of what follows, but for the counts
    pthread_cond_t cond;
    bool released;
    struct seen seen;
    _Atomic int n_seen, n_holding, n_cancelled, n_after;
    char order[64]; // which interceptors ran, in turn
    enum status after;
    struct rpc_timings timings;
};

// ---- its life ----
void site_serve(struct site *t, bool is_public); // the three below
void site_init(struct site *t);
void site_new_server(struct site *t);
void site_listen(struct site *t, bool is_public);
void site_done(struct site *t);
void site_release(struct site *t); // what is held, and what would be held from now on

// ---- calling it ----
// Of those sites, by their public listeners, in turn.
struct rpc_client *site_client(struct site *const *sites, size_t n);
enum status site_call(struct rpc_client *c, int method, const struct rpc_opts *o, int64_t number,
                      const char *text, struct err *err);
void site_call_ok(struct rpc_client *c, int method, const struct rpc_opts *o, int64_t number,
                  const char *text);

struct pending { // a call that somebody waits for
    _Atomic int n_done;
    enum status s;
    struct rpc_details details;
    char msg[240];
};
void pending_begin(struct rpc_client *c, int method, const char *text, const struct rpc_opts *o,
                   struct pending *p);
enum status pending_end(struct pending *p); // waits; the details are the caller's
// A rpc_route_fn: to the client that ud is.
enum status site_route(void *ud, const struct rpc_method *m, const char *to,
                       struct rpc_client **ret_client, struct err *err);

// ---- looking at it ----
struct seen site_seen(struct site *t); // the last call of SEE or RELAY
struct rpc_method_stats site_stats(struct site *t, int method);
// Look again and again, at most ten seconds, until what is looked for is there.
bool eventually(bool (*is_so)(void *ud), void *ud);
struct looked { // for an open call of a method
    struct site *site;
    int method;
    enum rpc_call_state state;
    int64_t age_ms;
    int n_found, n_wanted;
    struct rpc_call_info info; // the last of those found
};
bool site_has_call(void *ud); // ud: a struct looked
