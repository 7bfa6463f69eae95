#pragma once
// What the tests of lib/rpc share: a message, a service that does what tests need, keys and grants.
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/auto.h"
#include "base/err.h"
#include "base/time.h"
#include "rpc/rpc.h"
#include "work/work.h"

// message Note { bytes data = 1; string text = 2; int64 number = 3; repeated Note children = 4; }
typedef struct note {
    ProtobufCMessage base;
    ProtobufCBinaryData data;
    char *text;
    int64_t number;
    size_t n_children;
    struct note **children;
} Note;
extern const ProtobufCMessageDescriptor note_descriptor;
void note_init(Note *n);
void note_fill(uint8_t *dst, size_t n,
               int64_t number); // bytes that tell one number's from another's

enum {
    ECHO,        // any role; replies the request
    ECHO_INLINE, // the same on the I/O strand
    FAIL,        // number = status, text = message; or data, which need not be text
    WAIT,        // ends when cancelled; counts
    COUNT,       // server stream: number notes numbered from 0, each with as many bytes as data
    SUM,         // client stream: sum of numbers, n of messages in text
    CHAT,        // bidi: every note comes back with number + 1
    LATER,       // deferred: answered by another thread
    TICKER,      // deferred server stream with try_write: number notes
    ONCE,        // idempotent; fails UNAVAILABLE `number` times first
    WHO,         // ANON: text = user id, or "-"
    FOR_USERS,
    FOR_CREATORS,
    FOR_ADMINS,
    FOR_ORIGINS, // node role origin
    NUMBERED,    // server stream: number notes from 0, each of data.len bytes of note_fill()
    TALLY,       // counts executions, and effects by idempotency key; number < N_TALLIES
    N_METHODS
};
#define N_TALLIES 4096
extern const struct rpc_service test_service;

struct world {
    uint8_t operator_secret[64];
    struct chan_trust trust;
    struct chan_identity server, node; // node: an origin
    struct work_pool *pool;
    const struct transport_ops *transport; // NULL: nng
    struct rpc_server *s;
    char url[RPC_URL_SIZE];
    bool is_public;
    // what handlers saw; atomic
    _Atomic int n_cancelled, n_waiting, n_once, n_effects, n_verified;
    _Atomic int64_t last_left_ms;
    _Atomic size_t max_queued;
    _Atomic int64_t n_written; // of NUMBERED's notes, by all calls that name the text "watched"
    _Atomic uint16_t n_executed[N_TALLIES], n_effective[N_TALLIES];
};

void world_init(struct world *w);
void world_serve(struct world *w, const char *url, bool is_public);
void world_stop(struct world *w); // the server only
void world_done(struct world *w);
struct rpc_client *world_client(struct world *w); // client link when public, else as the node
struct rpc_client *world_client_to(struct world *w, const char *url, bool is_public);
void world_add(struct world *w, struct rpc_server *s);
struct rpc_server_opts world_server_opts(struct world *w);
void make_node(struct world *w, struct chan_identity *id, unsigned role, int64_t life_s);

enum status call_note(struct rpc_client *c, int method, const struct rpc_opts *o, const Note *req,
                      Note **ret, struct err *err);
int group_done(void **state); // cmocka group teardown: nothing of the process stays behind
// Wait until *v >= n, at most ten seconds.
bool wait_for_count(const _Atomic int *v, int n);
