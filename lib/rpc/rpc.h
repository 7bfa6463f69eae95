#pragma once
// Calls and streams over sealed connections: client, server, forwarding. Only user of nng.
//
// Handlers are blocking functions on the server's work pool; nng's callbacks never run them. See
// docs/protocol.md for the bytes and docs/architecture.md for threads.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <protobuf-c/protobuf-c.h>

#include "base/arena.h"
#include "base/err.h"
#include "channel/channel.h"
#include "log/log.h"
#include "work/work.h"

// ---------------------------------------------------------------- methods (generated, static
// const)

enum rpc_kind { RPC_UNARY, RPC_SERVER_STREAM, RPC_CLIENT_STREAM, RPC_BIDI };

// Who may call: bits for user roles (from the access token) and node roles (from the peer's grant).
// Numbers are those of cauce.Role in proto/cauce/options.proto: bit n is role number n.
enum {
    ROLE_ANON = 1U << 1, // no token needed; still only through a sealed connection
    ROLE_USER = 1U << 2, // any signed-in user
    ROLE_CREATOR = 1U << 3,
    ROLE_ADMIN = 1U << 4,  // user role admin; passes wherever USER or CREATOR does
    ROLE_JOINER = 1U << 5, // a newcomer that knows a join secret: enrolment, and nothing else
    ROLE_NODE_SESSION = 1U << 8,
    ROLE_NODE_ORCHESTRATOR = 1U << 9,
    ROLE_NODE_TRANSCODE = 1U << 10,
    ROLE_NODE_STORE = 1U << 11,
    ROLE_NODE_ORIGIN = 1U << 12,
    ROLE_NODE_GATEWAY = 1U << 13,
    ROLE_NODE_ADMIN = 1U << 14,
    ROLE_NODE_ANY = 0x7f00,
};

struct rpc_method {
    const char *name; // "cauce.session.v1.Session.Login"
    enum rpc_kind kind;
    unsigned allow; // ROLE_ bits; empty is refused by the generator
    bool idempotent;
    bool run_inline;  // runs on the I/O strand: never blocks, never waits for credit
    const char *http; // "POST /api/v1/..." or NULL
    const ProtobufCMessageDescriptor *request, *reply;
    // Retry policy; 0 = the client's default. Only with idempotent or an idempotency key.
    uint32_t max_attempts, initial_backoff_ms, max_backoff_ms;
    uint32_t
        hedge_after_ms; // idempotent unary methods: ask a second endpoint after so long; 0 = no
    uint32_t max_concurrent; // calls at once on one server, more are shed; 0 = RPC_MAX_CONCURRENT
    uint32_t max_queue_ms;   // shed what waits longer for a thread; 0 = RPC_MAX_QUEUE_MS
};
#define RPC_MAX_CONCURRENT 4096 // of methods that say nothing else
#define RPC_MAX_QUEUE_MS 10000
struct rpc_service {
    const char *name; // "cauce.session.v1.Session"
    const struct rpc_method *methods;
    size_t n_methods;
};

// ---------------------------------------------------------------- messages

// Unpack untrusted bytes: prescan (depth <= 32, fields, UTF-8), then into one arena within a
// budget. The message and all it holds are freed by rpc_message_free() (never by *_free_unpacked).
// errors  INVALID_ARGUMENT (malformed), RESOURCE_EXHAUSTED (over budget)
enum status rpc_message_unpack(const ProtobufCMessageDescriptor *d, const void *p, size_t n,
                               ProtobufCMessage **ret, struct err *err) MUST_CHECK;
void rpc_message_free(void *msg); // NULL does nothing
static inline void rpc_message_free_p(void *pp)
{
    rpc_message_free(*(void **)pp);
}
#define RPC_MAX_MESSAGE_BYTES (4U << 20) // one application message; larger things are streams

// ---------------------------------------------------------------- what travels beside messages

// W3C trace context, version 00. An all-zero trace_id is none.
struct rpc_trace {
    uint8_t trace_id[16], span_id[8];
    uint8_t flags; // bit 0: sampled
};
static inline bool rpc_trace_is_set(const struct rpc_trace *t) // NULL is not
{
    static const uint8_t none[16];
    return t && memcmp(t->trace_id, none, sizeof none) != 0;
}
void rpc_trace_new(struct rpc_trace *ret); // one that begins here, sampled
// The value of a traceparent header: "00-<32 hex>-<16 hex>-<2 hex>" (W3C Trace Context 3.2). Parse
// also accepts later versions and refuses ids of zeros; *ret changes on success only. dst is
// terminated.
#define RPC_TRACEPARENT_SIZE 56
bool rpc_trace_parse(const char *s, struct rpc_trace *ret) MUST_CHECK;
void rpc_trace_format(char dst[RPC_TRACEPARENT_SIZE], const struct rpc_trace *t);

// A header of a call: key of [a-z0-9_.-], value any bytes.
struct rpc_metadata {
    const char *key;
    const void *value;
    size_t n_value;
};
#define RPC_METADATA_MAX 32             // entries of one call
#define RPC_METADATA_MAX_BYTES 4096     // keys and values together
#define RPC_METADATA_KEY_MAX 64         // bytes of one key
#define RPC_REASON_MAX 48               // bytes of a reason word
#define RPC_DETAILS_MAX_BYTES (8 << 10) // of a status

// Why a call failed, for programs. Filled by the client when rpc_opts.ret_details is set; released
// with rpc_details_done(), which leaves it empty. All strings live as long as it does.
struct rpc_violation {
    const char *field; // path of the request's field: "items[2].price.minor"
    const char *description;
};
struct rpc_details {
    char reason[RPC_REASON_MAX + 1]; // stable UPPER_SNAKE word; "" when none was given
    bool retryable;                  // the same call may succeed later
    int64_t retry_after_ms;          // 0 = not said
    const struct rpc_violation *violations;
    size_t n_violations;
    const struct rpc_metadata *metadata;
    size_t n_metadata;
    void *mem; // what the pointers above point into
};
void rpc_details_done(struct rpc_details *d);
// Reasons that lib/rpc itself gives.
#define RPC_REASON_NOT_STARTED "NOT_STARTED" // UNAVAILABLE: no handler saw it, repeat it freely
// UNAVAILABLE: no handler saw it, because too much is going on (max_concurrent, max_queue_ms, a
// full queue); may be repeated whatever the method, elsewhere or after retry_after_ms.
#define RPC_REASON_OVERLOADED "OVERLOADED"

// ---------------------------------------------------------------- server

struct rpc_server;
struct rpc_call;
struct transport_ops; // rpc/transport.h

// A token's owner, as a verifier found it.
struct rpc_user {
    char id[37]; // UUID text
    char name[65];
    char session[37]; // login session
    unsigned roles;   // ROLE_USER | ROLE_CREATOR | ROLE_ADMIN
    int64_t epoch;    // of the user's rights when the token was made
    int64_t exp_wall_ms;
};
// Verify an access token; called on a pool thread, results are cached by token hash until they
// expire.
typedef enum status (*rpc_verify_fn)(void *ud, const char *token, size_t len, struct rpc_user *ret,
                                     struct err *err);
// Is this peer's grant still good (expiry, revocation)? Called per call, must not block.
typedef bool (*rpc_grant_ok_fn)(void *ud, const struct chan_peer *peer);
// Does a token that was verified before still count (revocation)? Called per call, must not block.
typedef bool (*rpc_user_ok_fn)(void *ud, const struct rpc_user *user);

// Until its handshake is done a peer is a stranger, known by its address: IPv4 whole, of IPv6 the
// /64. What strangers may take, of each address unless it says `all`; 0 = the default. Peers on
// this machine (ipc, inproc) only count in max_half_open and max_conns, of which they may have all.
struct rpc_door_limits {
    // Connections in their handshake, all; beyond that the oldest one of the address with most
    // goes. 4096, or a quarter of the open files if that is less.
    unsigned max_half_open;
    unsigned max_half_open_per_addr;             // the same for one address; a quarter of it
    unsigned conns_per_s, conns_burst;           // that came to nothing; 200, 1024
    unsigned handshakes_per_s, handshakes_burst; // first messages of those; 50, 512
    unsigned all_handshakes_per_s;               // 5000 for each core, of half of the cores
    int64_t handshake_timeout_ms;                // until a connection is authenticated; 5000
    // And once it is authenticated: connections, all and of one address. Who wants more is closed
    // at once. What open files allow, leaving a third of them; a quarter of that.
    unsigned max_conns, max_conns_per_addr;
};

struct rpc_server_opts {
    struct log *log;
    const struct chan_identity *identity; // our static key and grant; copied
    const struct chan_trust *trust;       // operator key: whose grants we accept on IK; copied
    chan_join_fn join;                    // rpc_server_listen_enrol(): the secrets that open it
    void *join_ud;
    struct work_pool *pool; // runs handlers; borrowed
    rpc_verify_fn verify;   // NULL: every token is refused
    void *verify_ud;
    rpc_grant_ok_fn grant_ok; // NULL: expiry only
    void *grant_ok_ud;
    rpc_user_ok_fn user_ok; // NULL: expiry only
    void *user_ok_ud;
    unsigned max_calls_per_conn; // 0 = 128 on client links, 4096 between services
    unsigned n_io_threads;       // 0 = 2
    int64_t ping_after_ms;       // silence before a PING, twice that ends the connection; 0 = 10000
    struct rpc_door_limits door;
    const struct transport_ops *transport; // NULL: by address
};
struct rpc_server *rpc_server_new(const struct rpc_server_opts *o, struct err *err) MUST_CHECK;

// url     tcp://127.0.0.1:0, tcp://[::1]:0, ipc:///path, inproc://name
// public  true: clients (NK) only, no node link; false: services (IK) only
// ret_url receives the real address ("tcp://127.0.0.1:40123"), RPC_URL_SIZE bytes; may be NULL
#define RPC_URL_SIZE 160
enum status rpc_server_listen(struct rpc_server *s, const char *url, bool is_public, char *ret_url,
                              struct err *err) MUST_CHECK;
// For newcomers (XXpsk3) that know a secret of opts.join; they may call methods that allow
// ROLE_JOINER and no others.
enum status rpc_server_listen_enrol(struct rpc_server *s, const char *url, char *ret_url,
                                    struct err *err) MUST_CHECK;
// We have another grant, or another key. From the next handshake on, also inside open sessions.
// other: NULL, or the one besides it that clients may still, or already, dial.
void rpc_server_set_identity(struct rpc_server *s, const struct chan_identity *id,
                             const struct chan_identity *other);
// Ask about each peer's grant again: when some may have been revoked, and once a second or so for
// those that expire. What is open of a peer that is no longer good ends with PERMISSION_DENIED, and
// its connection a second later. Does not block.
void rpc_server_check_grants(struct rpc_server *s);
// The same for users: ask user_ok about each call's token again, when some may have been revoked
// and once a second or so. Streams with one that counts no more end with UNAUTHENTICATED at once;
// unary calls five seconds later, for they end by themselves, and the call that revoked the token
// may be among them. Does not block.
void rpc_server_check_users(struct rpc_server *s);
// Keys of tokens have changed: each token that was verified is verified again at its next use.
void rpc_server_doubt_tokens(struct rpc_server *s);

// Untyped core of the generated x_serve(): handlers[i] serves methods[i] through thunks[i]. Must
// precede listen.
typedef enum status (*rpc_thunk)(struct rpc_call *c, void (*handler)(void),
                                 const ProtobufCMessage *req, ProtobufCMessage *ret,
                                 struct err *err);
enum status rpc_server_add(struct rpc_server *s, const struct rpc_service *svc,
                           const rpc_thunk *thunks, void (*const *handlers)(void), void *self,
                           struct err *err) MUST_CHECK;

// What is done around every handler served here. Ours come first: metrics, authorisation, limits
// (max_concurrent, max_queue_ms), deadline; then these, in the order they were added.
struct rpc_timings {
    int64_t queue_us;             // from the complete request to the handler's start
    int64_t handling_us;          // from there to the call's end
    uint64_t bytes_in, bytes_out; // of messages
};
struct rpc_interceptor {
    const char *name; // static
    void *ud;
    // Where the handler runs, just before it: may block unless the method is inline. A status other
    // than OK ends the call with it, and neither the handler nor a later interceptor sees it. May
    // be NULL.
    enum status (*before)(void *ud, struct rpc_call *c, struct err *err);
    // Once the status is on its way, the last interceptor first; for each whose before() let the
    // call pass. On whichever thread ended the call; must not block. May be NULL.
    void (*after)(void *ud, struct rpc_call *c, enum status s, const struct rpc_timings *t);
};
#define RPC_INTERCEPTORS_MAX 8
// i       copied
// errors  FAILED_PRECONDITION: it listens already; RESOURCE_EXHAUSTED: RPC_INTERCEPTORS_MAX
enum status rpc_server_intercept(struct rpc_server *s, const struct rpc_interceptor *i,
                                 struct err *err) MUST_CHECK;

// Forwarding: asked for every method that is not served here and that clients may call; names the
// client to send it on with. ret_client borrowed until the call ends. `route` is the OPEN's route,
// "" when none. The forwarded call carries the user's token, what is left of the deadline, and a
// mark that makes node roles not count. Frames are passed on without being decoded; credit is
// coupled (WIRE.md Forwarding).
struct rpc_client;
// Runs on the I/O strand: must not block.
typedef enum status (*rpc_route_fn)(void *ud, const struct rpc_method *m, const char *route,
                                    struct rpc_client **ret_client, struct err *err);
// known  table of all methods that may be forwarded (the gateway's view of every proto)
void rpc_server_set_router(struct rpc_server *s, const struct rpc_service *const *known,
                           size_t n_known, rpc_route_fn fn, void *ud);
// A call of a method that is served here as well may be meant for another server, which its route
// names: fn says so (on the I/O strand: must not block), and such a call is forwarded. Its caller
// must have one of the roles in `allow` before the router is asked; what the method itself allows is
// for the server that gets it to find. Must precede listen.
typedef bool (*rpc_elsewhere_fn)(void *ud, const struct rpc_method *m, const char *route);
void rpc_server_set_elsewhere(struct rpc_server *s, rpc_elsewhere_fn fn, void *ud, unsigned allow);

// For what outlives a call, such as a subscription: would its caller still be let in?
bool rpc_server_trusts_peer(const struct rpc_server *s, const struct chan_peer *peer);
bool rpc_server_trusts_user(const struct rpc_server *s, const struct rpc_user *user);

void rpc_server_close(struct rpc_server *s); // no new calls (GOAWAY), never blocks
void rpc_server_stop(struct rpc_server *s,
                     int64_t grace_ms); // waits for calls, cancels them after grace
void rpc_server_free(struct rpc_server *s);
DEFINE_AUTO(struct rpc_server, rpc_server_free)

struct rpc_server_stats {
    uint64_t n_calls, n_failed, n_conns, n_conns_refused, bytes_in, bytes_out, records_in,
        records_out, bad_records;
    // At the door; each connection is counted once. n_conns_refused is all that ended before they
    // were authenticated, but for n_turned_away.
    uint64_t n_turned_away; // closed at once: too many from its address are here, or came in vain
    uint64_t n_handshakes_refused; // too many first messages from its address, or in all
    uint64_t n_crowded_out;        // to make room for newer half-open ones
    unsigned calls_open, conns_open, half_open;
};
void rpc_server_get_stats(struct rpc_server *s, struct rpc_server_stats *ret);

// ---- what a server is doing: for those who watch it ----
// Each calls fn on this thread with no lock held; infos are valid during fn only. Any thread, until
// rpc_server_free(). When memory is short, some are left out.
enum rpc_conn_state {
    RPC_CONN_HALF_OPEN, // its handshake is not over
    RPC_CONN_READY,
    RPC_CONN_DRAINING, // takes no new calls; those in flight go on
};
struct rpc_conn_info {            // a connection that was accepted
    char peer[CHAN_NODE_ID_SIZE]; // node id; "" for clients
    unsigned peer_role;           // ROLE_NODE_ bit; 0 for clients
    char remote[48];              // the peer's network address; "" when it is this machine
    char url[RPC_URL_SIZE];       // of the listener it came through
    enum rpc_conn_state state;
    int64_t age_ms, rtt_us; // rtt: smoothed time to an acknowledgement; 0 = not known yet
    unsigned calls_open;
    uint64_t bytes_in, bytes_out, records_in, records_out;
};
void rpc_server_conns_each(struct rpc_server *s,
                           void (*fn)(void *ud, const struct rpc_conn_info *info), void *ud);

enum rpc_call_state {
    RPC_CALL_QUEUED,             // its handler has not begun
    RPC_CALL_RUNNING,            // unary
    RPC_CALL_STREAMING,          // the same, of a stream
    RPC_CALL_WAITING_FOR_CREDIT, // messages wait until the peer takes some
};
struct rpc_call_info { // a call that is open
    const struct rpc_method *method;
    char user[37];                // id; "" when no token was given, or not verified yet
    char peer[CHAN_NODE_ID_SIZE]; // as in rpc_conn_info
    unsigned peer_role;
    char remote[48];
    bool is_forwarded; // this server passes it on; else it runs here
    enum rpc_call_state state;
    int64_t age_ms, deadline_ms;  // deadline: left; -1 = none
    uint64_t bytes_in, bytes_out; // of messages
    struct rpc_trace trace;
};
void rpc_server_calls_each(struct rpc_server *s,
                           void (*fn)(void *ud, const struct rpc_call_info *info), void *ud);

// Buckets double: bucket i holds what took at most rpc_histogram_bound_us(i), the last all else.
#define RPC_HISTOGRAM_BUCKETS 22
static inline int64_t rpc_histogram_bound_us(unsigned bucket) // TIME_NEVER for the last
{
    return bucket < RPC_HISTOGRAM_BUCKETS - 1 ? INT64_C(16) << bucket : INT64_MAX;
}
struct rpc_histogram {
    uint64_t counts[RPC_HISTOGRAM_BUCKETS]; // each its own, not cumulative
    uint64_t sum_us;
};
#define RPC_N_STATUS 17
struct rpc_method_stats { // since the server began; each number is right, together a moment apart
    const struct rpc_method *method;
    const char *service; // its name's length is n_service: "cauce.node.v1.Node"
    size_t n_service;
    bool is_forwarded; // passed on; limits are those of the server that gets it
    unsigned in_flight;
    uint64_t n_started; // came, whole, and were let in or not
    uint64_t n_shed;    // of them: refused as OVERLOADED
    uint64_t by_status[RPC_N_STATUS];
    uint64_t bytes_in, bytes_out;  // of messages
    struct rpc_histogram queue;    // from the complete request to the handler
    struct rpc_histogram handling; // from there to the status
};
// Every method that has a handler here, or is forwarded.
void rpc_server_methods_each(struct rpc_server *s,
                             void (*fn)(void *ud, const struct rpc_method_stats *m), void *ud);

// ---- inside a handler ----
void *rpc_call_self(struct rpc_call *c); // what was given to x_serve()
struct arena *
rpc_call_arena(struct rpc_call *c); // dies after the reply is packed: reply fields point into it
int64_t rpc_call_deadline_us(const struct rpc_call *c); // monotonic; TIME_NEVER when none
struct cancel *rpc_call_cancel(struct rpc_call *c); // fires on CANCEL, deadline, lost connection
struct log *rpc_call_log(struct rpc_call *c);
const struct rpc_method *rpc_call_method(const struct rpc_call *c);
const struct rpc_user *rpc_call_user(const struct rpc_call *c); // NULL when no token was given
const char *rpc_call_token(const struct rpc_call *c); // the user's token to pass on; NULL when none
const struct chan_peer *
rpc_call_peer(const struct rpc_call *c); // node role and id, or an anonymous client
const char *rpc_call_idempotency_key(const struct rpc_call *c); // "" when none
const char *rpc_call_route(const struct rpc_call *c);
bool rpc_call_is_forwarded(const struct rpc_call *c);
unsigned rpc_call_attempt(const struct rpc_call *c); // 1: the caller's first; 2: its first repeat
// The caller's trace (a new one when it gave none) with a span of our own, which is the parent of
// the calls made here. Valid while the call is.
const struct rpc_trace *rpc_call_trace(const struct rpc_call *c);
// The caller's span, 8 bytes; zeros when the trace begins here.
const uint8_t *rpc_call_parent_span(const struct rpc_call *c);
// What came beside the request; NULL when there is no such key. Valid while the call is.
const struct rpc_metadata *rpc_call_metadata(const struct rpc_call *c, const char *key);
const struct rpc_metadata *rpc_call_metadata_all(const struct rpc_call *c, size_t *ret_n);
// The call whose handler, on_writable function or interceptor runs on this thread; NULL elsewhere.
// Calls made meanwhile inherit its deadline, cancellation and trace (rpc_opts.detached: not), and
// log lines name its trace.
struct rpc_call *rpc_call_current(void);
// Make c (or NULL) the current call of this thread, for work done elsewhere on behalf of a deferred
// call, which must stay until then. Returns the one before, to be set again at the end.
struct rpc_call *rpc_call_enter(struct rpc_call *c);

// Why the call fails, for programs; goes with a status other than OK. On the handler's thread, or
// on that which finishes a deferred call. What exceeds RPC_DETAILS_MAX_BYTES is left out.
void rpc_call_retry_after(struct rpc_call *c, int64_t ms);
void rpc_call_retryable(struct rpc_call *c);                // the same call may succeed later
void rpc_call_reason(struct rpc_call *c, const char *word); // UPPER_SNAKE, stable, documented
// A wrong field of the request. field: its path, "items[2].price.minor". Text: what it must be.
void rpc_call_violation(struct rpc_call *c, const char *field, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
// The same, and the error to return: INVALID_ARGUMENT "field: text".
enum status rpc_call_bad_field(struct rpc_call *c, struct err *err, const char *field,
                               const char *fmt, ...) PRINTF_LIKE(4, 5);
// The same of the current call, if there is one, for checks far below its handler; the text is the
// whole message and names the field itself.
enum status rpc_bad_field(struct err *err, const char *field, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
// An entry of rpc_details.metadata; key and value copied.
void rpc_call_trailer(struct rpc_call *c, const char *key, const void *value, size_t n);
// End the call as its deadline would, at the sooner of its deadline and deadline_us: for handlers
// that wait for a client which names no deadline, or a far one. Asking again replaces deadline_us.
void rpc_call_limit(struct rpc_call *c, int64_t deadline_us);

// Streams. The handler's return value is the call's status; a written message is packed at once.
// write blocks for credit; errors: CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE (connection gone)
enum status rpc_call_write(struct rpc_call *c, const ProtobufCMessage *msg,
                           struct err *err) MUST_CHECK;
// read: *ret is NULL at the client's half-close; otherwise valid until the next read
enum status rpc_call_read(struct rpc_call *c, ProtobufCMessage **ret, struct err *err) MUST_CHECK;

// Answer later from another thread: call before returning STATUS_OK from the handler, whose `ret`
// is then ignored. Exactly one rpc_call_finish() must follow, also after cancellation.
void rpc_call_defer(struct rpc_call *c);
void rpc_call_finish(struct rpc_call *c, enum status s, const ProtobufCMessage *reply,
                     const struct err *err);
// Deferred streams: write without blocking; false when there is no credit just now (nothing is
// written).
bool rpc_call_try_write(struct rpc_call *c, const ProtobufCMessage *msg);
// fn(ud) on a pool thread whenever credit grew or the call was cancelled; at most one at a time;
// none after rpc_call_finish() returns. Only for deferred calls.
void rpc_call_on_writable(struct rpc_call *c, void (*fn)(void *ud), void *ud);

// ---------------------------------------------------------------- client

struct rpc_endpoint {
    const char *url;
    uint8_t key[32]; // the server's static public key, pinned
    // While the server changes keys: the other one that is right too. Both are tried.
    bool has_next_key;
    uint8_t next_key[32];
};
enum rpc_policy {
    RPC_LEAST_LOADED, // the backend with the fewest of this client's calls in flight; among many,
                      // the better of two taken at random
    RPC_ROUND_ROBIN,  // one after another, those that are ready
};
struct rpc_client_opts {
    struct log *log;
    const struct chan_identity
        *identity;                  // NULL: anonymous client link (NK); otherwise IK with our grant
    const struct chan_trust *trust; // with identity: what grant the responder must show
    const struct chan_join *join;   // with identity: enrolment with that secret; copied
    unsigned expect_role;           // ROLE_NODE_ bit the responder's grant must have; 0 = any
    const struct rpc_endpoint *endpoints; // copied; several: see policy
    size_t n_endpoints;                   // at least 1
    int64_t connect_timeout_ms;           // of a call that waits for a connection; 0 = 5000
    int64_t handshake_timeout_ms;         // of a connection; 0 = 5000
    struct work_pool *pool;               // runs completion callbacks; NULL: a small one of its own
    int64_t ping_after_ms;                // as in rpc_server_opts
    const struct transport_ops *transport; // NULL: by address
    const char *name;                      // for rpc_channels_each(); copied, cut to fit
    enum rpc_policy policy;
    // Endpoints connected to at the same time; 0 = all. Which ones is drawn at random, so that
    // clients spread; one that fails makes room for another.
    unsigned max_connections;
    bool lazy; // nothing is dialled before the first call
    int64_t renew_after_ms; // between services: age of a session's keys before new ones; 0 = 1 hour
};
// Dials in the background and reconnects with backoff and jitter for ever. A call waits for a
// connection until its deadline, but at most connect_timeout_ms, then fails UNAVAILABLE with a text
// that names the endpoint, since when it is away and why. With rpc_opts.fail_fast it fails at once.
//
// Each endpoint has a circuit breaker: calls that fail UNAVAILABLE, or meet a silent server, open
// it (five in a row, or half of at least twenty within ten seconds), and it is left alone for a
// second, then twice as long each time, up to thirty; one call at a time probes it. What a service
// answers otherwise counts as success, OVERLOADED included, what the caller cancels as nothing.
//
// threads  any, except rpc_client_free(), which must come after everybody else's last use
struct rpc_client *rpc_client_new(const struct rpc_client_opts *o, struct err *err) MUST_CHECK;
void rpc_client_free(struct rpc_client *c); // fails what is in flight with CANCELLED
DEFINE_AUTO(struct rpc_client, rpc_client_free)
bool rpc_client_is_connected(struct rpc_client *c);
// Replace the endpoints. Those that stay keep their connections, new ones are dialled, calls in
// flight on removed ones go on until they end. n may be 0: calls then wait or fail UNAVAILABLE. An
// endpoint whose key became what was its next_key is the same one: its session gets new keys.
//
// e       copied
// errors  INVALID_ARGUMENT (an address too long), RESOURCE_EXHAUSTED; then nothing has changed
enum status rpc_client_set_endpoints(struct rpc_client *c, const struct rpc_endpoint *e, size_t n,
                                     struct err *err) MUST_CHECK;

// We have another key or grant: open sessions make new keys with it at once, calls notice nothing.
// Only for a client that was made with an identity.
void rpc_client_set_identity(struct rpc_client *c, const struct chan_identity *id);
// Ask about each server's grant again: when some may have been revoked, and now and then for those
// that expire. Connections to a server that is no longer good end, and calls on them with
// UNAVAILABLE. Does not block.
void rpc_client_check_grants(struct rpc_client *c);

struct rpc_client_stats {
    uint64_t n_calls, n_failed, n_retries, n_hedges, n_connects, bytes_in, bytes_out, records_in,
        records_out;
    unsigned calls_open;
    bool breaker_open; // of every endpoint
};
void rpc_client_get_stats(struct rpc_client *c, struct rpc_client_stats *ret);

// ---- what clients of this process are doing ----
enum rpc_channel_state {
    RPC_CHANNEL_IDLE,       // not dialled: lazy, or beyond max_connections
    RPC_CHANNEL_CONNECTING, // and no attempt has failed since
    RPC_CHANNEL_READY,
    RPC_CHANNEL_FAILING,  // the last attempt to connect failed, or the connection was lost
    RPC_CHANNEL_DRAINING, // takes no new calls; those in flight go on
};
enum rpc_breaker_state { RPC_BREAKER_CLOSED, RPC_BREAKER_OPEN, RPC_BREAKER_HALF_OPEN };
struct rpc_channel_info { // one endpoint of one client
    char name[64];        // of the client
    char url[RPC_URL_SIZE];
    unsigned expect_role; // ROLE_NODE_ bits; 0 = any
    enum rpc_channel_state state;
    enum rpc_breaker_state breaker;
    unsigned calls_open;
    uint64_t n_calls, n_failed, n_retries, n_hedges, n_connects, bytes_in, bytes_out;
    int64_t age_ms;      // of the connection; 0 when there is none
    int64_t rtt_us;      // smoothed time to an acknowledgement; 0 = not known yet
    char last_error[120]; // "" when none
};
struct rpc_client_call_info { // one call in flight, or waiting for its next attempt
    const char *method;
    char url[RPC_URL_SIZE]; // "" while it waits for a connection
    int64_t age_ms;
    int64_t deadline_ms; // left; -1 = none
    uint64_t bytes_in, bytes_out;
    unsigned attempts; // begun so far, hedges included
    struct rpc_trace trace;
};
// Every client of this process, also while calls run. fn runs on this thread with no lock held, and
// may make calls, but must not free a client that the caller does not own. Infos are valid during
// fn only. When memory is short, some are left out.
void rpc_channels_each(void (*fn)(void *ud, const struct rpc_channel_info *info), void *ud);
void rpc_client_calls_each(void (*fn)(void *ud, const struct rpc_client_call_info *info), void *ud);

struct rpc_opts {
    const char *token;           // access token, or NULL
    const char *route;           // opaque backend name for the gateway, or NULL
    const char *idempotency_key; // makes any method retryable
    int64_t deadline_us;         // monotonic; 0 = 15 s from now
    struct cancel *cancel;       // or NULL
    bool fail_fast;              // do not wait for a connection
    unsigned max_attempts;       // 0 = the method's, or 3; 1 = never repeat. See rpc_unary()
    int64_t *ret_retry_after_ms; // rpc_unary(): set when it fails and the server said when to retry
    const struct rpc_metadata *metadata; // borrowed until the call has begun
    size_t n_metadata;
    const struct rpc_trace *trace;   // NULL: of the call whose handler runs here, or none
    struct rpc_details *ret_details; // rpc_unary(): set in any case; see rpc_details_done()
    // A call made while a handler runs on this thread ends with that call: its deadline, its
    // cancellation and its trace are inherited. True: not this one, it shall outlive the handler.
    bool detached;
    // A service asks for somebody else (whose token it shows, if any): its own role must not count,
    // as with a forwarded call.
    bool on_behalf;
    // rpc_unary_async(): done never waits for anything, so an answer may be told of on the thread
    // that it came with, on several at once if the client has several connections. Calls that done
    // makes leave together.
    bool done_inline;
};

// Untyped calls: the generated stubs are thin wrappers of these. *ret is freed with
// rpc_message_free().
//
// Repeats. A call that failed UNAVAILABLE (or whose details say `retryable`) is tried again when
// its method is idempotent or it has an idempotency key: at most max_attempts times in all, on
// another endpoint if there is one, after a pause that doubles from the method's initial to its
// maximal backoff, with jitter, and not before the server's retry-after. Retries spend a budget
// that successes and time refill, so that a failing backend sees little more than its usual load. A
// call that certainly never reached a handler (it was still in our queue when the connection went,
// or the server says NOT_STARTED) is repeated whatever its method, once per connection lost, for
// free; one that the server shed as OVERLOADED is repeated whatever its method too, but like any
// other.
//
// Hedges. A method with hedge_after_ms is asked of a second endpoint when no answer came in that
// time: the first answer wins and the other call is cancelled. Hedges spend the same budget.
enum status rpc_unary(struct rpc_client *c, const struct rpc_method *m, const struct rpc_opts *o,
                      const ProtobufCMessage *req, ProtobufCMessage **ret,
                      struct err *err) MUST_CHECK;
// The same without waiting. done runs exactly once, on a pool thread unless it is done_inline; reply
// is owned by the callee (NULL unless OK). Completions of one client run one after another: they must not wait for each
// other. What o points to is copied, but ret_retry_after_ms and ret_details must stay until then.
typedef void (*rpc_done_fn)(void *ud, enum status s, ProtobufCMessage *reply,
                            const struct err *err);
void rpc_unary_async(struct rpc_client *c, const struct rpc_method *m, const struct rpc_opts *o,
                     const ProtobufCMessage *req, rpc_done_fn done, void *ud);

// One thread reads and one may write at the same time; anybody may cancel. A server stream is
// repeated like a unary call as long as no message of it has arrived.
struct rpc_stream;
// req: the request for server streams, NULL for client and bidi streams. Waits for a connection as
// rpc_unary() does, so with fail_fast it never blocks.
enum status rpc_stream_open(struct rpc_client *c, const struct rpc_method *m,
                            const struct rpc_opts *o, const ProtobufCMessage *req,
                            struct rpc_stream **ret, struct err *err) MUST_CHECK;
enum status rpc_stream_send(struct rpc_stream *s, const ProtobufCMessage *msg, struct err *err)
    MUST_CHECK; // blocks for credit; a failed call says its status here
enum status rpc_stream_close_send(struct rpc_stream *s, struct err *err) MUST_CHECK; // half-close
// Next message, owned by the caller; NULL with STATUS_OK when the stream ended well; else its
// status.
enum status rpc_stream_recv(struct rpc_stream *s, ProtobufCMessage **ret,
                            struct err *err) MUST_CHECK;
void rpc_stream_cancel(struct rpc_stream *s); // any thread
// Cancels if unfinished. Waits for a running on_event callback, unless called from it.
void rpc_stream_free(struct rpc_stream *s);
DEFINE_AUTO(struct rpc_stream, rpc_stream_free)
// Why the stream failed, once send or recv said that it did; else empty. Released with
// rpc_details_done().
void rpc_stream_details(struct rpc_stream *s, struct rpc_details *ret);

// ---- streams without a thread each ----
// fn(ud) whenever a message, credit or the end may have come: at most one at a time, none after
// rpc_stream_free() returns. It runs on a thread of the transport, or on the caller's before a
// function of the stream returns, so it must not block; it may use try_recv, try_send, close_send,
// cancel and free. What is here already counts as an event. Once per stream; the blocking functions
// are not used then.
void rpc_stream_on_event(struct rpc_stream *s, void (*fn)(void *ud), void *ud);
// As rpc_stream_recv(), but *ret NULL, STATUS_OK and *ret_ended false: nothing now, an event will
// follow. Take until then.
enum status rpc_stream_try_recv(struct rpc_stream *s, ProtobufCMessage **ret, bool *ret_ended,
                                struct err *err) MUST_CHECK;
// As rpc_stream_send(), but *ret_sent false with STATUS_OK: no credit now, an event will follow.
enum status rpc_stream_try_send(struct rpc_stream *s, const ProtobufCMessage *msg, bool *ret_sent,
                                struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- process
void rpc_fini(void); // at exit, after all clients and servers are freed: nng_fini, so leak checkers
                     // see nothing
