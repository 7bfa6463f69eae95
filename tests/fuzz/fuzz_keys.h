#pragma once
// Keys that never change, so that committed inputs stay valid. They protect nothing.
#include "channel/channel.h"
#include "rpc/pubsub.h"

#define FUZZ_TOPIC "fuzz"
#define FUZZ_JOIN_ID "sixteen bytes..."

struct fuzz_world {
    struct chan_trust trust;
    struct chan_identity client, server; // an orchestrator and an origin
    struct chan_join join;
};
void fuzz_keys_init(void); // starts the cipher library, once
void fuzz_world_init(struct fuzz_world *w);
// A responder that takes every link.
struct chan *fuzz_responder(const struct fuzz_world *w);
struct chan *fuzz_initiator(const struct fuzz_world *w, enum chan_link link);
void fuzz_writer(struct pubsub_writer *ret);
