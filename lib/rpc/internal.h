#pragma once
// What the files of lib/rpc share: server and client objects, the clock, tokens.
#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "rpc/conn.h"
#include "rpc/rpc.h"

#define DEFAULT_PING_MS 10000
#define HALF_OPEN_MAX 4096

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
    size_t len;
    char text[];
};
struct token_cache;
struct token_cache *token_cache_new(rpc_verify_fn verify, void *ud) MUST_CHECK;
void token_cache_free(struct token_cache *tc);
// The cached token of that text, or a new one not verified yet. NULL: out of memory.
struct token *token_get(struct token_cache *tc, const void *text, size_t len);
struct token *token_ref(struct token *t);
void token_unref(struct token *t);
bool token_is_fresh(const struct token *t); // verified and not expired: may be used at once
// May block in the verifier.
enum status token_verify(struct token_cache *tc, struct token *t, struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- server

struct method_entry {
    struct method_entry *next;
    const struct rpc_method *m;
    rpc_thunk thunk;       // NULL: known to the router only
    void (*handler)(void); // NULL: UNIMPLEMENTED
    void *self;
};
#define N_METHOD_BUCKETS 256
#define N_CONN_BUCKETS 1024
#define MAX_LISTENERS 16

struct listener {
    struct rpc_server *server;
    const struct transport_ops *ops;
    struct transport *transport;
    bool is_public; // clients, or newcomers: limits of a client link
    unsigned links; // which kind of handshake: bits 1U << enum chan_link
};

struct rpc_server {
    struct rpc_server_opts o;
    struct chan_local *local; // who we are in handshakes
    pthread_mutex_t lock; // taken inside a connection's lock, never around it
    pthread_cond_t cond;  // calls ended, connections went idle
    struct listener listeners[MAX_LISTENERS];
    size_t n_listeners;
    bool is_listening, is_stopped;
    atomic_bool is_closing;
    struct method_entry *methods[N_METHOD_BUCKETS];
    rpc_route_fn route;
    void *route_ud;
    struct conn *table[N_CONN_BUCKETS]; // by pipe
    struct list half_open, conns;       // oldest first
    unsigned n_half_open, max_half_open, n_conns;
    struct token_cache *tokens;
    struct work_pool *io;
    struct clock *clock;
    struct list late_calls; // whose on_writable waits for room in the pool; each a reference
    unsigned n_live;        // rpc_call objects
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

// ---------------------------------------------------------------- call.c

struct proxy;
struct rpc_call {
    struct flow flow;
    atomic_uint refs;
    struct rpc_server *server;
    const struct method_entry *entry;
    struct token *token; // or NULL
    bool forwarded, authorised;
    char route[FRAME_ROUTE_MAX + 1], key[FRAME_KEY_MAX + 1];
    struct cancel *cancel; // made when asked for; conn's lock
    struct arena *arena;
    ProtobufCMessage *req, *read_msg;
    int64_t retry_after_ms, deadline_us;
    atomic_bool deferred;
    bool finished;
    // on_writable; conn's lock
    void (*writable)(void *ud);
    void *writable_ud;
    bool writable_queued, writable_running, writable_again;
    struct list late; // server's late_calls
    pthread_t writable_thread;
    struct proxy *proxy; // set for forwarded calls from the start
};
// A peer opened a call: under conn's lock, from server_conn_owner.
void call_open(struct rpc_server *s, struct conn *c, uint32_t id, const struct frame_open *o);
// The caller may call: node roles, user roles, token. May block in the verifier.
enum status call_authorise(struct rpc_call *c, struct err *err) MUST_CHECK;
// Ends the call towards its caller; with a status other than OK there is no reply.
void call_answer(struct rpc_call *c, enum status s, const ProtobufCMessage *reply,
                 const struct err *err);
void call_submit_writable(struct rpc_call *c); // consumes a reference
struct rpc_call *call_ref(struct rpc_call *c);
void call_unref(struct rpc_call *c);

// ---------------------------------------------------------------- proxy.c
struct proxy *proxy_new(struct rpc_call *c) MUST_CHECK;
void proxy_start(struct rpc_call *c);
void proxy_event(struct rpc_call *c, unsigned events);
void proxy_free(struct proxy *p);

// ---------------------------------------------------------------- breaker.c

struct breaker { // of one endpoint; the client's lock
    unsigned n_failures;
    int64_t open_until_us, open_us;
    bool is_probing;
};
bool breaker_allows(const struct breaker *b, int64_t now_us);
void breaker_begin(struct breaker *b, int64_t now_us); // a call is about to use the endpoint
void breaker_result(struct breaker *b, bool ok, int64_t now_us);

struct retry_budget { // of one client; the client's lock
    int64_t tenths;
};
#define RETRY_BUDGET_MAX 100
void retry_earn(struct retry_budget *r);  // a call succeeded
bool retry_spend(struct retry_budget *r); // false: too many retries already
int64_t retry_backoff_us(unsigned attempt, int64_t retry_after_ms); // attempt 1 = the first retry

// ---------------------------------------------------------------- client

struct endpoint;
struct link { // a socket and dialer for one endpoint, and the connection it has at the moment
    struct rpc_client *client;
    struct endpoint *endpoint;
    struct list all; // client's links
    const struct transport_ops *ops;
    struct transport *transport;
    pthread_mutex_t lock;
    struct conn *conn;
    uint32_t new_pipe;
    bool lost;         // conn's pipe is gone
    struct conn *live; // conn while it may be used; client's lock
    bool draining;     // client's lock: no new calls; freed when empty
};
struct endpoint {
    char url[RPC_URL_SIZE];
    uint8_t key[32];
    struct breaker breaker;
    struct link *current;
};

enum status link_open(struct rpc_client *cl, struct endpoint *e, struct err *err) MUST_CHECK;
void link_free(struct link *l);
struct conn *link_conn(struct link *l);                           // referenced, or NULL
void link_tick(struct link *l, int64_t now_us, int64_t *next_us); // clock thread only

struct rpc_client {
    struct rpc_client_opts o;
    struct chan_identity identity;
    struct chan_trust trust;
    struct endpoint *endpoints;
    size_t n_endpoints, turn;
    pthread_mutex_t lock; // taken inside a connection's lock, never around it
    pthread_cond_t cond;
    struct list links;
    struct list waiting, completed; // struct async
    struct list waiters;            // struct client_waiter
    bool completing, is_closing;
    atomic_bool is_started;
    unsigned n_live; // calls and streams
    struct retry_budget budget;
    struct clock *clock;
    struct work_pool *pool, *own_pool;
    struct rpc_client_stats stats;
};

// fn runs once on the clock thread: a connection is there, or until_us came, or the client closes.
struct client_waiter {
    struct list node;
    int64_t until_us;
    void (*fn)(struct client_waiter *w);
};
void client_when_ready(struct rpc_client *c, struct client_waiter *w);

// One attempt of a call.
struct attempt {
    struct flow flow;
    atomic_uint refs;
    struct rpc_client *client;
    struct endpoint *endpoint; // NULL until started
    const struct rpc_method *m;
    int64_t deadline_us;
    bool counted;                   // its outcome has been told to the breaker
    bool is_started, cancel_wanted; // async: client's lock
    struct cancel_hook *cancel_hook;
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
    const void *req; // packed, or NULL for streams without one
    size_t req_len;
};
struct attempt *attempt_new(struct rpc_client *c, const struct call_spec *spec) MUST_CHECK;
struct attempt *attempt_ref(struct attempt *s);
void attempt_unref(struct attempt *s);
// Start on a connection that is ready now. False: none is.
bool attempt_start(struct attempt *s, const struct call_spec *spec) MUST_CHECK;
// A new attempt, started; waits for a connection if need be.
enum status attempt_open(struct rpc_client *c, const struct call_spec *spec,
                         const struct rpc_opts *o, struct attempt **ret,
                         struct err *err) MUST_CHECK;
void attempt_cancel(struct attempt *s); // any thread, once started
void attempt_free(struct attempt *s);   // the caller's own: cancels if unfinished
// The connection the next call shall use, referenced; NULL when none is ready.
struct conn *client_pick(struct rpc_client *c, struct endpoint **ret_endpoint);
// Wait for a connection, at most until until_us.
enum status client_wait_ready(struct rpc_client *c, int64_t until_us, struct cancel *cancel,
                              struct err *err) MUST_CHECK;
// Wait until until_us, unless cancelled or closing: then CANCELLED.
enum status client_pause(struct rpc_client *c, int64_t until_us, struct cancel *cancel,
                         struct err *err) MUST_CHECK;
bool client_has_live(struct rpc_client *c); // a connection that may be used; client's lock
unsigned retry_attempts(const struct rpc_method *m, const struct rpc_opts *o);
bool client_may_retry(struct rpc_client *c); // spends budget
void call_spec_init(struct call_spec *spec, const struct rpc_method *m, const struct rpc_opts *o);
enum status call_spec_check(const struct call_spec *spec, struct err *err) MUST_CHECK;
int64_t client_connect_deadline(const struct rpc_client *c, int64_t deadline_us);
void client_result(struct attempt *s, enum status code); // for breaker, budget, statistics
bool client_enter(struct rpc_client *c); // counts a live call; false when closing
void client_leave(struct rpc_client *c);
void async_tick(struct rpc_client *c, int64_t now_us, int64_t *next_us);
void async_fail_waiting(struct rpc_client *c);
enum status err_from_status(struct err *err, const struct frame_status *s);
