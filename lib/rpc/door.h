#pragma once
// The door of a server: who may come in and try a handshake. One address must not take the places
// or the processor time of all others.
//
// Nothing here locks: the owner does.
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "rpc/rpc.h"
#include "rpc/transport.h"

struct door_bucket {  // tokens, told backwards
    int64_t until_us; // when all that were taken have come back
};
struct door_caller { // an address with pipes, or that had some a moment ago
    struct transport_addr addr;
    struct door_caller *hash_next;
    struct list node;      // among those with as many half-open pipes; idle ones oldest first
    struct list half_open; // the owner's, oldest first
    unsigned n_half_open, n_conns;
    struct door_bucket conns, handshakes;
};

struct door;
// NULL: out of memory.
struct door *door_new(const struct rpc_door_limits *l) MUST_CHECK;
void door_free(struct door *d);
const struct rpc_door_limits *door_limits(const struct door *d); // what was given, or the default
// So many descriptors there are: lowers what they do not suffice for.
void door_set_files(struct door *d, unsigned n);

// A pipe from addr exists and is half open from here on. NULL: it must go, too many from there are
// here or came in vain (or memory is short).
struct door_caller *door_enter(struct door *d, const struct transport_addr *addr, int64_t now_us);
// Its first handshake message is here. False: not to be looked at.
bool door_knock(struct door *d, struct door_caller *c, int64_t now_us);
enum door_end {
    DOOR_FAILED,
    DOOR_WITHDRAWN, // for reasons of ours: what it took is given back
    DOOR_WELCOME,   // the same, and it counts as a connection until door_gone()
};
// It is half open no more. knocked: door_knock() said true.
void door_leave(struct door *d, struct door_caller *c, bool knocked, enum door_end end);
void door_gone(struct door *d, struct door_caller *c); // a connection is over
// Whose oldest half-open pipe must go, now that one of c's has come; NULL: nobody's.
struct door_caller *door_crowd(const struct door *d, struct door_caller *c);
unsigned door_n_half_open(const struct door *d);
#define DOOR_CALLERS_MAX 8192
unsigned door_n_callers(const struct door *d); // addresses remembered; without pipes: at most that
