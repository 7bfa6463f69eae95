#pragma once
// Calls of generated stubs with the handle's connection and login. For this library, and for
// mediactl's admin commands, which have no public function.
#include <stdbool.h>
#include <stdint.h>

#include "cauce/cauce.h"
#include "rpc/rpc.h"

#define CLIENT_MAX_TOKEN 4096

struct rpc_client *client_rpc(cauce *c); // borrowed

// A string for a request's field, which stubs only read though protobuf-c's structs lack const.
static inline char *client_str(const char *s)
{
    return (char *)(uintptr_t)(s ? s : "");
}

enum client_auth { CLIENT_ANON, CLIENT_IF_LOGGED_IN, CLIENT_LOGGED_IN };

// One call that may be repeated once after its token was refused.
struct client_try {
    struct cauce *c;
    struct rpc_opts opts;
    enum client_auth auth;
    unsigned n_tries;
    char token[CLIENT_MAX_TOKEN];
};
// route may be NULL; timeout_ms 0: the handle's; cancel NULL: the handle's
enum status client_try_begin(struct client_try *t, struct cauce *c, enum client_auth auth,
                             const char *route, int64_t timeout_ms, struct cancel *cancel,
                             struct err *err) MUST_CHECK;
// True when the token was refused and another one has been fetched: call again.
bool client_try_again(struct client_try *t, enum status *s, struct err *err);

// s = CLIENT_CALL(&try, stub(c->rpc, &try.opts, &req, &reply, err), err)
#define CLIENT_CALL(t, expression, err)                                                            \
    __extension__({                                                                                \
        enum status call_s_;                                                                       \
        do                                                                                         \
            call_s_ = (expression);                                                                \
        while (client_try_again((t), &call_s_, (err)));                                            \
        call_s_;                                                                                   \
    })

// Wait before the n-th new attempt: 100 ms doubling to 2 s, with jitter. CANCELLED at once when the
// handle is cancelled.
// Wait so long; CANCELLED at once when the handle is cancelled.
enum status client_wait_ms(struct cauce *c, int64_t ms, struct err *err) MUST_CHECK;
enum status client_backoff_default(struct cauce *c, unsigned n, struct err *err) MUST_CHECK;
