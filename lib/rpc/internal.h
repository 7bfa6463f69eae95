#pragma once
// What the files of lib/rpc share: server and client objects, the clock, tokens.
#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "rpc/conn.h"
#include "rpc/door.h"
#include "rpc/rpc.h"

#define DEFAULT_PING_MS 10000

// ---------------------------------------------------------------- clock.c
// One thread that calls tick() at the times it asks for, or earlier when woken.
struct clock;
typedef int64_t (*clock_fn)(void *ud, int64_t now_us); // returns when to be called next
struct clock *clock_new(clock_fn tick, void *ud) MUST_CHECK;
void clock_wake_at(struct clock *k, int64_t at_us); // any thread, any lock held
void clock_stop(struct clock *k);                   // joins; not from tick()
void clock_free(struct clock *k);

// ---------------------------------------------------------------- token.c
// Access tokens a server has seen: verified once, then found by hash until they expire.
struct token {
    atomic_uint refs;
    uint64_t hash;
    struct token *next; // in the cache
    bool is_cached;
    atomic_bool is_verified;
    struct rpc_user user; // once verified
    atomic_uint round;    // the cache's, when it was verified last
    size_t len;
    char text[];
};
struct token_cache;
struct token_cache *token_cache_new(rpc_verify_fn verify, void *ud) MUST_CHECK;
void token_cache_free(struct token_cache *tc);
void token_cache_doubt(struct token_cache *tc); // all are verified again at their next use
// The cached token of that text, or a new one not verified yet. NULL: out of memory.
struct token *token_get(struct token_cache *tc, const void *text, size_t len);
struct token *token_ref(struct token *t);
void token_unref(struct token *t);
bool token_is_fresh(const struct token *t); // verified and not expired: may be used at once
// May block in the verifier.
enum status token_verify(struct token_cache *tc, struct token *t, struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- server

struct histogram {
    _Atomic uint64_t counts[RPC_HISTOGRAM_BUCKETS], sum_us;
};
struct method_metrics { // relaxed; calls in flight = started - released
    _Atomic uint64_t started, released, shed, bytes_in, bytes_out, by_status[RPC_N_STATUS];
    struct histogram queue, handling;
};
struct method_entry {
    struct method_entry *next;
    const struct rpc_method *m;
    rpc_thunk thunk;       // NULL: known to the router only
    void (*handler)(void); // NULL: UNIMPLEMENTED
    void *self;
    const char *service; // its name is n_service long
    size_t n_service;
    unsigned max_concurrent;
    int64_t max_queue_us;
    struct method_metrics metrics;
};
#define N_METHOD_BUCKETS 256
#define N_CONN_BUCKETS 1024
#define MAX_LISTENERS 16

struct listener {
    struct rpc_server *server;
    const struct transport_ops *ops;
    struct transport *transport;
    bool is_public;         // clients, or newcomers: limits of a client link
    bool is_local;          // only this machine can reach it
    unsigned links;         // which kind of handshake: bits 1U << enum chan_link
    char url[RPC_URL_SIZE]; // the real address; server's lock
};

struct rpc_server {
    struct rpc_server_opts o;
    struct chan_local *local; // who we are in handshakes
    pthread_mutex_t lock;     // taken inside a connection's lock, never around it
    pthread_cond_t cond;      // calls ended, connections went idle
    struct listener listeners[MAX_LISTENERS];
    size_t n_listeners;
    bool is_listening, is_stopped;
    atomic_bool is_closing;
    atomic_bool is_ending; // what is still open is being ended
    struct method_entry *methods[N_METHOD_BUCKETS];
    rpc_route_fn route;
    void *route_ud;
    rpc_elsewhere_fn elsewhere; // NULL: nothing served here is
    void *elsewhere_ud;
    unsigned elsewhere_allow;
    struct conn *table[N_CONN_BUCKETS]; // by pipe
    struct list half_open, conns;       // oldest first
    unsigned n_conns;
    struct door *door;
    struct rpc_server_stats told; // what the log has said of the door
    int64_t told_us, tell_at_us;  // when it did, and will; 0: nothing to tell
    struct token_cache *tokens;
    struct work_pool *io;
    struct clock *clock;
    struct list late_calls; // whose on_writable waits for room in the pool; each a reference
    atomic_uint n_live;     // rpc_call objects
    struct rpc_interceptor interceptors[RPC_INTERCEPTORS_MAX];
    unsigned n_interceptors;
    uint64_t trace_seed[3]; // of the ids of traces and spans that begin here
    _Atomic uint64_t n_spans;
    _Atomic int64_t log_second; // failures that were logged in it
    atomic_uint n_logged;
    struct rpc_server_stats stats;
};
extern const struct conn_owner server_conn_owner;
struct method_entry *server_method(struct rpc_server *s, const char *name);
void server_call_gone(struct rpc_server *s); // a live call object less
// Its call_submit_writable() comes again in a moment; takes over a reference.
void server_call_late(struct rpc_server *s, struct rpc_call *c);
// All connections, referenced; freed with mem_free(). NULL when memory is short.
struct conn **server_conns(struct rpc_server *s, size_t *ret_n);
void server_kill_conn(struct conn *c, const char *why); // takes its lock
unsigned server_max_calls(const struct rpc_server *s, const struct conn *c);
// Logs what the door did, now and then. Returns when it wants to again.
int64_t server_tell_of_door(struct rpc_server *s, int64_t now_us);

// ---------------------------------------------------------------- call.c

struct proxy;
struct call_details;
struct rpc_call {
    struct flow flow;
    atomic_uint refs;
    struct rpc_server *server;
    struct method_entry *entry;
    struct token *token; // or NULL
    bool forwarded, authorised;
    const char *route, *key;       // in data
    struct rpc_metadata *metadata; // in data
    size_t n_metadata;
    unsigned attempt;
    struct rpc_trace trace; // the caller's, with a span of our own
    uint8_t parent_span[8]; // the caller's; zeros when the trace begins here
    struct cancel *cancel;  // made when asked for; conn's lock
    struct arena *arena;
    ProtobufCMessage *req, *read_msg;
    int64_t retry_after_ms, deadline_us;
    _Atomic int64_t limit_us;     // deadline_us, or sooner: rpc_call_limit()
    struct call_details *details; // in the arena; NULL until some are said
    const char *reason;           // of a refusal by lib/rpc itself
    atomic_bool deferred;
    bool finished;
    int64_t revoked_us; // when its token was first seen to count no more; conn's lock
    // chain.c
    int64_t born_us;            // of its OPEN
    _Atomic int64_t arrived_us; // its request was complete; 0: not yet
    _Atomic int64_t started_us; // its handler began; 0: not yet
    unsigned n_ahead;           // calls of its method in flight when it arrived
    unsigned n_before;          // interceptors that let it pass
    // on_writable; conn's lock
    void (*writable)(void *ud);
    void *writable_ud;
    bool writable_queued, writable_running, writable_again;
    struct list late; // server's late_calls
    pthread_t writable_thread;
    struct proxy *proxy; // set for forwarded calls from the start
    _Alignas(struct rpc_metadata) char data[];
};
// A peer opened a call: under conn's lock, from server_conn_owner.
void call_open(struct rpc_server *s, struct conn *c, uint32_t id, const struct frame_open *o);
// The caller may call, having one of the roles in `allow`: node roles, user roles, token. May block
// in the verifier, unless call_is_known().
enum status call_authorise(struct rpc_call *c, unsigned allow, struct err *err) MUST_CHECK;
static inline bool call_is_known(const struct rpc_call *c)
{
    return !c->token || token_is_fresh(c->token) || c->token->is_verified;
}
// Ends the call towards its caller; with a status other than OK there is no reply.
void call_answer(struct rpc_call *c, enum status s, const ProtobufCMessage *reply,
                 const struct err *err);
// The call's end: connection locked, unlocked on return. st and its details are borrowed.
void call_finish_locked(struct rpc_call *c, const struct frame_status *st);
void call_submit_writable(struct rpc_call *c); // consumes a reference
struct rpc_call *call_ref(struct rpc_call *c);
void call_unref(struct rpc_call *c);

// ---------------------------------------------------------------- chain.c: around every handler

// On the I/O strand, once the request is complete (streams: from OPEN on).
enum status chain_arrived(struct rpc_call *c, struct err *err) MUST_CHECK;
void chain_forwarded(struct rpc_call *c); // instead, and before, for calls that are passed on
// On the handler's thread, which may block unless is_inline.
enum status chain_before(struct rpc_call *c, bool is_inline, struct err *err) MUST_CHECK;
void chain_shed(struct rpc_call *c, int64_t retry_after_ms); // it is refused as OVERLOADED
// The connection is locked, and the status about to leave: counts it, makes room for another.
void chain_end(struct rpc_call *c, enum status s, struct rpc_timings *ret);
// Once the status is on its way.
void chain_after(struct rpc_call *c, const struct frame_status *st, const struct rpc_timings *t);

// ---------------------------------------------------------------- context.c

// Trace of a call that was just made: of what its OPEN said.
void call_set_trace(struct rpc_call *c, const struct rpc_trace *from);
struct call_spec;
// What a call made by the current one has from it.
void call_spec_inherit(struct call_spec *spec);

// ---------------------------------------------------------------- proxy.c
struct proxy *proxy_new(struct rpc_call *c) MUST_CHECK;
void proxy_start(struct rpc_call *c);
void proxy_event(struct rpc_call *c, unsigned events);
void proxy_free(struct proxy *p);

// ---------------------------------------------------------------- message.c
// rpc_message_unpack() of a message that was received; m is consumed always, and lives on with the
// result where that is cheaper than to copy.
enum status message_take(const ProtobufCMessageDescriptor *d, struct rx_msg *m,
                         ProtobufCMessage **ret, struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- breaker.c

#define BREAKER_SLOTS 10 // of a second each
struct breaker_slot {
    unsigned n_good, n_bad;
};
struct breaker {            // of one endpoint; the client's lock
    unsigned n_failures;    // in a row
    unsigned n_good, n_bad; // in the window
    unsigned n_opened;
    struct breaker_slot slots[BREAKER_SLOTS];
    int64_t slot;          // the newest
    int64_t open_until_us; // 0 = closed
    int64_t open_us;
    bool is_probing;
};
enum breaker_verdict { BREAKER_GOOD, BREAKER_BAD, BREAKER_NEUTRAL };
bool breaker_allows(const struct breaker *b, int64_t now_us);
// A call that was allowed is about to use the endpoint. True: it is the probe, and its end must say
// so.
bool breaker_begin(struct breaker *b, int64_t now_us);
void breaker_end(struct breaker *b, enum breaker_verdict v, bool was_probe, int64_t now_us);
enum rpc_breaker_state breaker_state(const struct breaker *b, int64_t now_us);

// ---------------------------------------------------------------- retry.c

struct retry_budget { // of one client; the client's lock
    int64_t units, refilled_us;
};
#define RETRY_BUDGET_MAX 10000                            // ten repeats
void retry_earn(struct retry_budget *r);                  // a call succeeded
bool retry_spend(struct retry_budget *r, int64_t now_us); // false: too many repeats already

struct retry_plan {                               // of one call
    unsigned most;                                // attempts
    unsigned most_shed;                           // the same, while no handler has seen the call
    bool never;                                   // not even what never started
    int64_t backoff_us, backoff_max_us, hedge_us; // hedge_us 0: none
    unsigned n_tried;                             // attempts begun
    unsigned n_free;                              // of these, repeats of what never started
    uint64_t free_conn;                           // the last connection such a repeat was for
};
struct attempt_end { // how an attempt went
    enum status code;
    bool not_started; // certainly no handler saw it
    bool was_refused; // the server said that
    bool was_shed;    // because it has too much to do
    bool retryable;   // its details say so
    int64_t retry_after_ms;
    uint64_t conn_serial;
    bool was_silent;                 // nothing was heard of the server since it began
    bool was_lost;                   // with its connection
    bool got_any;                    // messages
    const struct endpoint *endpoint; // where it was, once counted; only compared
    struct rx_msg *reply;            // unary; owned
};
// Worth another attempt, if the rest allows it.
static inline bool retry_is_failure(const struct attempt_end *e)
{
    return e->code == STATUS_UNAVAILABLE || e->retryable;
}
void retry_init(struct retry_plan *r, const struct rpc_method *m, const struct rpc_opts *o);
int64_t retry_backoff_us(const struct retry_plan *r, unsigned nth, int64_t retry_after_ms);
// Shall the call be tried again, and when? Spends the client's budget.
bool retry_next(struct retry_plan *r, const struct attempt_end *e, struct rpc_client *c,
                int64_t deadline_us, int64_t now_us, int64_t *ret_at_us) MUST_CHECK;

// ---------------------------------------------------------------- client

struct link { // a socket and dialer for one endpoint, and the connection it has at the moment
    struct rpc_client *client;
    struct endpoint *endpoint; // which counts it
    struct list all;           // client's links
    const struct transport_ops *ops;
    struct transport *transport;
    pthread_mutex_t lock;
    struct conn *conn;
    uint32_t new_pipe;
    bool lost;         // conn's pipe is gone
    int64_t backoff_ms; // until it is dialled again
    unsigned n_refused; // connections in a row on which no record came
    bool try_next_key; // at the next handshake; its last one failed with the other key. Client's lock
    unsigned n_checks; // client's, when the server's grant was asked about last; clock thread
    int64_t renewed_us, renew_us; // last handshake began; the next one is due. Clock thread
    struct conn *live; // conn while it may be used; client's lock
    bool draining;     // client's lock: no new calls; freed when empty
};

// ---- link.c ----
enum status link_open(struct rpc_client *cl, struct endpoint *e, struct err *err) MUST_CHECK;
void link_free(struct link *l);
struct conn *link_conn(struct link *l);                           // referenced, or NULL
bool link_is_lost(struct link *l); // its connection's pipe is gone, and the clock has not seen it
void link_tick(struct link *l, int64_t now_us, int64_t *next_us); // clock thread only
void link_forget_live(struct link *l, struct conn *c);            // client's lock

// ---- grants.c ----
void link_renewed(struct link *l, int64_t now_us); // its session has keys as new as that
// Renews the session when that is due, ends it when the server's grant has ended. Clock thread.
void link_look_after_session(struct link *l, int64_t now_us, int64_t *next_us);

// ---- endpoint.c: everything needs the client's lock unless it says otherwise ----
struct endpoint {
    char url[RPC_URL_SIZE];
    uint8_t key[32], next_key[32]; // may change; client's lock
    bool has_next_key;
    struct list all;      // client's, removed ones included
    bool removed;         // by rpc_client_set_endpoints(); freed once nothing uses it
    unsigned n_links;     // that name it
    struct link *current; // dialled, and not draining
    size_t ready_at;      // 1 + index in client's ready; 0: not there
    struct breaker breaker;
    unsigned n_open; // calls in flight, on whatever connection
    uint64_t n_calls, n_failed, n_retries, n_hedges, n_connects;
    uint64_t bytes_in, bytes_out; // of connections that are gone
    uint64_t conn_serial;         // of the connection it has
    uint64_t lost_serial;         // the last one whose loss the breaker heard of
    int64_t since_us;             // when it was dialled, got or lost its connection
    int64_t not_before_us;        // when dialling was impossible
    bool was_lost;                // a connection, since it was dialled
    char last_error[120];          // why it has none, or had none
};
enum status endpoints_set(struct rpc_client *c, const struct rpc_endpoint *e, size_t n,
                          struct err *err) MUST_CHECK;
void endpoints_free(struct rpc_client *c);
void endpoint_release(struct rpc_client *c, struct endpoint *e); // frees it if removed and unused
// A link's connection came or went. why: NULL when nothing failed.
void endpoint_connected(struct rpc_client *c, struct link *l);
void endpoint_lost(struct rpc_client *c, struct link *l, const char *why);
// Takes no new calls from here on; its link is freed when it is empty.
void endpoint_drain(struct rpc_client *c, struct endpoint *e);
enum rpc_channel_state endpoint_state(const struct endpoint *e);
// The endpoint for the next call; NULL when none is ready. avoid: only if there is no other.
struct endpoint *endpoint_choose(struct rpc_client *c, int64_t now_us,
                                 const struct endpoint *avoid);
bool endpoints_any_ready(const struct rpc_client *c);
bool endpoints_any_usable(const struct rpc_client *c, int64_t now_us); // by their breakers
// Which to dial and which to give up; takes the client's lock itself, on the clock thread.
void endpoints_tick(struct rpc_client *c, int64_t now_us, int64_t *next_us);
// Says why no call can begin: UNAVAILABLE.
enum status endpoints_explain(const struct rpc_client *c, int64_t now_us, struct err *err);

struct rpc_client {
    struct rpc_client_opts o;
    char name[64];
    struct chan_local *local; // who we are in handshakes
    enum chan_link kind;
    struct chan_join join;  // enrolment
    atomic_uint n_checks;   // times that servers' grants were to be asked about
    struct list registered; // in the process' list of clients
    pthread_mutex_t lock;   // taken inside a connection's lock, never around it
    pthread_cond_t cond;
    struct list all_endpoints;   // struct endpoint
    struct endpoint **endpoints; // as set, those to dial first in front
    struct endpoint **ready;     // those that may be chosen; room for all
    size_t n_endpoints, n_ready, turn;
    uint64_t random, n_serials;
    bool is_wanted; // lazy: the first call has come
    struct list links;
    struct list waiting, due, completed; // struct unary
    struct list waiters;                 // struct client_waiter
    bool completing, is_closing;
    atomic_bool is_started;
    unsigned n_live; // calls and streams
    struct retry_budget budget;
    struct clock *clock;
    struct work_pool *pool, *own_pool;
    struct rpc_client_stats stats;
};

// fn runs once on the clock thread: a connection is there after not_before_us, or until_us came, or
// the client closes.
struct client_waiter {
    struct list node;
    int64_t not_before_us, until_us;
    void (*fn)(struct client_waiter *w);
};
void client_when_ready(struct rpc_client *c, struct client_waiter *w);

// ---- attempt.c: one attempt of a call ----
struct attempt {
    struct flow flow;
    atomic_uint refs;
    struct rpc_client *client;
    struct endpoint *endpoint; // from its start until its end is counted; client's lock
    const struct rpc_method *m;
    int64_t started_us, deadline_us;
    uint64_t conn_serial;
    struct rpc_trace trace;
    unsigned nth;                   // of its call
    bool is_live, is_probe;         // counted in n_live; for the breaker
    bool is_started, cancel_wanted; // unary: client's lock
    struct cancel_hook *cancel_hook[2];
    void (*on_event)(struct attempt *s, unsigned events); // NULL: somebody waits
    void (*on_gone)(struct attempt *s);                   // it is being freed
    void *ud;
};
struct call_spec { // what every attempt needs; strings borrowed
    const struct rpc_method *m;
    const char *token, *route, *key;
    int64_t deadline_us;
    bool forwarded;
    const struct rpc_trace *trace;       // borrowed until the attempt has begun; NULL: none
    const struct rpc_metadata *metadata; // the same
    size_t n_metadata;
    unsigned attempt;         // forwarded: the caller's, if that is not its first
    struct cancel *cancel[2]; // or NULL: the caller's, and that of the call whose handler runs here
    bool fail_fast;
    const void *req; // packed, or NULL for streams without one
    size_t req_len;
    bool req_stays; // as long as an attempt has not ended
};
struct attempt *attempt_new(struct rpc_client *c, const struct call_spec *spec) MUST_CHECK;
struct attempt *attempt_ref(struct attempt *s);
void attempt_unref(struct attempt *s);
// Start on a connection that is ready now. False: none is.
bool attempt_start(struct attempt *s, const struct call_spec *spec) MUST_CHECK;
// The same, but rather not on that endpoint; only_other: not at all. avoid is only compared.
bool attempt_start_avoiding(struct attempt *s, const struct call_spec *spec,
                            const struct endpoint *avoid, bool only_other) MUST_CHECK;
// A new attempt, started; waits for a connection if need be.
enum status attempt_open(struct rpc_client *c, const struct call_spec *spec, struct attempt **ret,
                         struct err *err) MUST_CHECK;
void attempt_hook(struct attempt *s, const struct call_spec *spec); // cancelled with its caller
void attempt_unhook(struct attempt *s);
void attempt_cancel(struct attempt *s); // any thread, once started
// Once ended: how, and a unary call's reply. Takes the connection's lock.
void attempt_get_end(struct attempt *s, struct attempt_end *ret);
void attempt_get_details(const struct attempt *s, struct rpc_details *ret); // once ended, or NULL
void call_spec_init(struct call_spec *spec, const struct rpc_method *m, const struct rpc_opts *o);
enum status call_spec_check(const struct call_spec *spec, struct err *err) MUST_CHECK;
// Copies what spec borrows, but for the request, to `to`, which is aligned and has that much room.
// Returns its end.
size_t call_spec_room(const struct call_spec *spec);
char *call_spec_keep(struct call_spec *spec, char *to);

// ---- client.c ----
// Picks the connection for an attempt and counts it there. Referenced; NULL when none is ready.
struct conn *client_pick(struct attempt *s, const struct endpoint *avoid, bool only_other);
void client_unpick(struct attempt *s); // it could not begin after all
// How it ended, for breaker, budget, statistics; only the first time counts. Fills e->endpoint.
void client_result(struct attempt *s, struct attempt_end *e);
void client_result_locked(struct attempt *s, struct attempt_end *e, int64_t now_us);
void client_result_code(struct attempt *s, enum status code); // the same, ended otherwise
// Wait for a connection, at most until until_us.
enum status client_wait_ready(struct rpc_client *c, const struct call_spec *spec, int64_t until_us,
                              struct err *err) MUST_CHECK;
int64_t client_connect_deadline(const struct rpc_client *c, int64_t deadline_us);
// A retry or hedge; e may be gone. False: the budget is spent.
bool client_may_repeat(struct rpc_client *c, const struct endpoint *e, bool is_hedge,
                       int64_t now_us);
bool client_enter(struct rpc_client *c); // counts a live call; false when closing
void client_leave(struct rpc_client *c);
// No connection is there: dial, if that had to wait for a call.
void client_want(struct rpc_client *c);

// ---- unary.c ----
// Adds those that wait for their next attempt.
struct call_list;
void unary_see_waiting(struct rpc_client *c, int64_t now_us, struct call_list *calls);
void unary_tick(struct rpc_client *c, int64_t now_us, int64_t *next_us); // clock thread
void unary_fail_waiting(struct rpc_client *c);

// ---- channels.c ----
struct rpc_client_call_info *call_list_add(struct call_list *l); // NULL: out of memory
void channels_add(struct rpc_client *c);
void channels_remove(struct rpc_client *c);
enum status err_from_status(struct err *err, const struct frame_status *s);
