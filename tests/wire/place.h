#pragma once
// Where memory runs out: a service, a gateway before it, a client that does all that clients do,
// and somebody beside it who must not notice anything.
#include "wire/util.h"

#define CALL_MS (IS_SANITIZED ? 30000 : 10000) // a call that needs so long hangs

struct place {
    struct world w;
    struct rpc_server *gateway;
    struct rpc_client *up;
    char url[RPC_URL_SIZE]; // the gateway's
    struct rpc_client *bystander;
    struct rpc_stream *chat;
    int64_t n_chat;
};

void place_init(struct place *p, const struct transport_ops *transport); // NULL: any
void place_done(struct place *p);
// A new client is answered through the gateway.
bool place_takes_clients(struct place *p, struct err *err);
// The stream that was open all the time goes on, and so do calls.
bool place_is_well(struct place *p, struct err *err);

struct verdict {
    unsigned n_failed; // steps
    const char *step;  // the first that failed
    enum status s;
    char msg[120];
};

// What somebody without memory may be told. Not: that time is up (it hung), that data were lost.
bool place_may_tell(enum status s);
// A new client connects and does everything once.
void place_round(struct place *p, bool through_gateway, struct verdict *v);
