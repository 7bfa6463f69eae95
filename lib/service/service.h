#pragma once
// What every role's start-up and shutdown share: options, node keys, the list of nodes, clients to
// other roles, the RPC server, health, tokens.
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "channel/channel.h"
#include "config/config.h"
#include "log/log.h"
#include "rpc/rpc.h"
#include "work/work.h"

// ---------------------------------------------------------------- nodes.ini
// [video-1]                one section a node; the section's name is the node id
// role = origin            session orchestrator transcode store origin gateway admin
// kind = video             origins only
// url = ipc:///run/cauce/video-1.sock
// key = <base64url X25519 public key>
// next-key = <...>         while its key is rotated: the node answers to both
// token-key = <base64url Ed25519 public key>   session (access tokens) and store (media tokens)
// next-token-key = <...>   while that is rotated: tokens of both are good
// [operator]
// key = <base64url Ed25519 public key>
// serial-floor = 0         grants with a lower serial are revoked
// revoked = worker-3:1763730000, worker-4     grants of that node, up to that serial, are revoked
struct svc_node {
    char id[CHAN_NODE_ID_SIZE];
    unsigned role; // ROLE_NODE_ bit
    char kind[16];
    char url[RPC_URL_SIZE];
    uint8_t key[32];
    bool has_next_key;
    uint8_t next_key[32];
    bool has_token_key, has_next_token_key;
    uint8_t token_key[32], next_token_key[32];
};
struct svc_revocation {
    char id[CHAN_NODE_ID_SIZE];
    uint64_t serial; // this one and those before; UINT64_MAX: all
};
// The list may change while it is used; any thread. A node that was returned stays as it was, and
// valid, until the list is freed; whoever asks again gets what is written by then.
struct buf;
struct svc_nodes;
enum status svc_nodes_load(const char *path, struct svc_nodes **ret, struct err *err) MUST_CHECK;
// Read the file again; on any error nothing changes.
// errors  those of loading; FAILED_PRECONDITION: it is another operator's
enum status svc_nodes_reload(struct svc_nodes *n, const char *path, struct err *err) MUST_CHECK;
void svc_nodes_free(struct svc_nodes *n);
DEFINE_AUTO(struct svc_nodes, svc_nodes_free)
// Nodes with that role bit, one after another: prev NULL for the first; NULL after the last.
const struct svc_node *svc_nodes_next(struct svc_nodes *n, unsigned role,
                                      const struct svc_node *prev);
const struct svc_node *svc_nodes_find(struct svc_nodes *n, const char *id); // NULL when unknown
const uint8_t *svc_nodes_operator(const struct svc_nodes *n);               // Ed25519 public key
uint64_t svc_nodes_serial_floor(struct svc_nodes *n);
// By the floor, by name, or because its node was in the file and is there no more.
bool svc_nodes_is_revoked(struct svc_nodes *n, const struct chan_grant *g);
// The i-th node that the last reload removed or revoked; false after the last.
bool svc_nodes_shut_out(struct svc_nodes *n, size_t i, char ret_id[CHAN_NODE_ID_SIZE]);
// The i-th revocation; false after the last.
bool svc_nodes_revocation(struct svc_nodes *n, size_t i, struct svc_revocation *ret);
unsigned svc_role_from_name(const char *name); // "origin" -> ROLE_NODE_ORIGIN; 0 when unknown
const char *svc_role_name(unsigned role_bit);

// ---------------------------------------------------------------- tokens
// Access tokens are minted by session, media tokens by store; anybody verifies them with the public
// key in nodes.ini, without a call. Verified tokens are cached by hash until they expire.
// docs/protocol.md "Tokens":
//   access  {"sub","name","sid","roles":["user",..],"epoch","iat","exp"}
//                                                                  implicit "cauce-access/1"
//   media   {"sub","item","rights":["stream","download"],"exp"}    implicit "cauce-media/1"
// Times are RFC 3339. The footer is {"kid":"k4.pid..."}: the PASERK id of the signing key.
#define SVC_ACCESS_TOKEN_MS (10 * 60 * 1000) // the longest life of an access token
struct svc_tokens;
struct svc_tokens *svc_tokens_new(struct svc_nodes *nodes) MUST_CHECK;
void svc_tokens_free(struct svc_tokens *t);
// The keys as nodes has them by now. Tokens of a key that is gone are good no longer.
// errors  RESOURCE_EXHAUSTED: nothing changed
enum status svc_tokens_update(struct svc_tokens *t, struct svc_nodes *nodes,
                              struct err *err) MUST_CHECK;
enum status svc_tokens_verify_access(void *tokens, const char *token, size_t len,
                                     struct rpc_user *ret,
                                     struct err *err) MUST_CHECK; // an rpc_verify_fn

enum { SVC_RIGHT_STREAM = 1, SVC_RIGHT_DOWNLOAD = 2 };
struct svc_media_claims {
    char sub[37];  // user id
    char item[37]; // item id
    unsigned rights;
    int64_t exp_wall_ms;
};
// errors  UNAUTHENTICATED: malformed, forged, expired
enum status svc_tokens_verify_media(struct svc_tokens *t, const char *token,
                                    struct svc_media_claims *ret, struct err *err) MUST_CHECK;
// Minting: only roles that hold the secret key can.
enum status svc_token_mint_access(const uint8_t secret[64], const struct rpc_user *user,
                                  struct buf *out, struct err *err) MUST_CHECK;
enum status svc_token_mint_media(const uint8_t secret[64], const struct svc_media_claims *claims,
                                 struct buf *out, struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- a running role

// First member, named `common`, of every role's options struct; rows come from SVC_OPTION_ROWS.
struct svc_options {
    char *config; // --config: INI file with a section per role, or per node for `role:node`
    char *node; // --node: our node id; default: the first node of our role (and kind) in nodes.ini
    char *keys; // --keys: directory made by `cauced keys`
    char **listen;    // --listen: internal addresses; default: the url of our node in nodes.ini
    char *ready_file; // --ready-file: written (atomically) once ready, removed at the end: JSON
                      // {node, role, kind, pid, urls: [...], events, http, public}
    char *log_level;
    char *database;   // --database: libpq conninfo
    char *migrations; // --migrations: directory of the SQL files, for the check at start
    int64_t threads;  // --threads: work pool
    int64_t max_conns, max_conns_per_addr; // --max-peers[-per-address]; 0: the default
    int64_t drain_ms; // --drain: how long a stop waits for open calls, default 3s
};
extern const struct cfg_option
    svc_option_rows[]; // offsets into svc_options; lib/service merges them
extern const size_t svc_n_option_rows;

struct svc {
    const struct svc_options *options;
    struct log *log;
    const struct svc_node *self; // as it was at the start
    struct svc_nodes *nodes;
    struct svc_tokens *tokens;
    const struct chan_identity *identity; // as it was at the start
    const struct chan_trust *trust;
    struct work_pool *pool;
    struct work_timers *timers;
    struct rpc_server *server; // handlers are added to it in start()
};

// Whether a role can serve, when finding out takes a while (gauge.c).
struct svc_gauge {
    pthread_mutex_t lock;
    int64_t asked_ms;
    bool is_ready, is_asking;
    struct err err;
};
void svc_gauge_init(struct svc_gauge *g);
void svc_gauge_done(struct svc_gauge *g);
// fn(ud) answers at most once a second, and on one thread at a time; others get the last answer.
bool svc_gauge_read(struct svc_gauge *g, enum status (*fn)(void *ud, struct err *err), void *ud,
                    char *reason, size_t reason_size);

struct Node__ClusterRequest; // cauce/node.pb-c.h
struct Node__ClusterReply;

// In string options "{node}" stands for the node's id, so that one command line can serve several
// nodes: --data /srv/{node}.
struct svc_role {
    const char *name;
    unsigned role;        // ROLE_NODE_ bit
    struct cfg_spec spec; // the role's own options (without the common rows)
    size_t
        options_size; // sizeof its options struct, whose first member is struct svc_options common
    // Open what the role owns and add its handlers; nothing listens yet. Must not wait for other
    // processes: they may start later.
    enum status (*start)(struct svc *svc, const void *options, void **ret_self, struct err *err);
    // Optional: false, with a reason, while the role cannot serve (database away, ...). On a thread
    // of the pool; what takes a while goes through a svc_gauge.
    bool (*ready)(void *self, char *reason, size_t reason_size);
    // Optional: begin to stop (give leases back, close public listeners); must not block.
    void (*drain)(void *self);
    void (*stop)(void *self); // after the server has stopped; frees self
    // Optional: that node was revoked or removed and has no connection any more; what it held may
    // be given to others. Must not block.
    void (*shut_out)(void *self, const char *node_id);
    // Optional, gateway: cauce.node.v1.Node.Cluster, which lib/service serves with Health.Check and
    // Node.Info. rpc_call_self() is not the role's there: self is given.
    enum status (*cluster)(void *self, struct rpc_call *call, const struct Node__ClusterRequest *,
                           struct Node__ClusterReply *ret, struct err *err);
};

// A client to another role, made on first use and kept: node_id NULL means "any node of the role".
// Borrowed; never NULL-safe to free. Thread-safe.
struct rpc_client *svc_client(struct svc *svc, unsigned role, const char *node_id, struct err *err);
// A client to an endpoint that a lease named (worker -> origin). Cached by url and key.
struct rpc_client *svc_client_to(struct svc *svc, unsigned role, const char *url,
                                 const uint8_t key[32], struct err *err);
// The secret token key of session and store: keys/<node>.token.key.
enum status svc_load_token_secret(struct svc *svc, uint8_t ret_secret[64],
                                  struct err *err) MUST_CHECK;
// Append what the server's methods have done, in Prometheus' text format: cauce_rpc_*, labelled by
// service and method. b->failed tells when memory or the buffer's limit were short.
void svc_metrics_put(struct svc *svc, struct buf *b);
// An additional HTTP (or other) address to be shown in the ready file.
void svc_set_http_address(struct svc *svc, const char *url);
void svc_set_public_url(struct svc *svc, const char *url); // gateway: the cauce://host:port#key URL
void svc_set_events_url(struct svc *svc, const char *url); // where its events are published

// ---------------------------------------------------------------- events

struct event_log; // event/event.h

// Member of the options struct of a role that has an event log.
struct svc_event_options {
    char *url, *as;                  // --publish, --publish-as
    int64_t retention_ms, unread_ms; // --event-retention, --event-retention-unread
};
// keep, keep_unread: the defaults, as they would be typed
#define SVC_EVENT_OPTION_ROWS(type, member, keep, keep_unread)                                     \
    {"publish",                                                                                    \
     CFG_STRING,                                                                                   \
     offsetof(type, member.url),                                                                   \
     NULL,                                                                                         \
     0,                                                                                            \
     0,                                                                                            \
     "where events are published [beside our first address]"},                                     \
        {"publish-as",                                                                             \
         CFG_STRING,                                                                               \
         offsetof(type, member.as),                                                                \
         NULL,                                                                                     \
         0,                                                                                        \
         0,                                                                                        \
         "the same as others reach it; port 0: the real one [our host in nodes.ini]"},             \
        {"event-retention",                                                                        \
         CFG_DURATION_MS,                                                                          \
         offsetof(type, member.retention_ms),                                                      \
         keep,                                                                                     \
         0,                                                                                        \
         INT64_MAX,                                                                                \
         "events that are older are deleted; 0: never"},                                           \
    {                                                                                              \
        "event-retention-unread", CFG_DURATION_MS, offsetof(type, member.unread_ms), keep_unread,  \
            0, INT64_MAX, "the same for those that a registered consumer has not read yet"         \
    }
// Publish and prune the role's events as the options say; before event_log_serve().
enum status svc_publish_events(struct svc *svc, struct event_log *l,
                               const struct svc_event_options *o, struct err *err) MUST_CHECK;

// Run roles until SIGTERM/SIGINT: load options, keys, nodes; start; listen; write ready file; wait;
// drain; stop. Meanwhile what changes of nodes.ini, our keys and our grant is taken over, SIGHUP:
// at once; a file that makes no sense changes nothing, which log and health say. argv: the words
// after the program name, beginning with the role names: "origin", "origin:video-1" (that node), or
// "all" (every node of nodes.ini). Exit status: 0 after a signal, 1 when a role cannot start, 2 for
// wrong options.
int svc_main(const struct svc_role *const *roles, size_t n_roles, int argc, char **argv);
