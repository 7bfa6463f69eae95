#pragma once
// Messages with random contents, by descriptor.
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/arena.h"

struct random_source {
    uint64_t state; // any seed; the same seed gives the same messages
};
uint64_t random_next(struct random_source *r);

// A message of type d with its fields set, or left out, at random: small and extreme numbers, text
// of several scripts, nested messages, lists. From the arena; never NULL but when the arena is
// full.
ProtobufCMessage *random_message(struct random_source *r, const ProtobufCMessageDescriptor *d,
                                 struct arena *a);
