#pragma once
// What the files of lib/service share.
#include <pthread.h>
#include <stdatomic.h>

#include "base/buf.h"
#include "service/service.h"

// ---- tokens ----
#define SVC_KEY_ID_SIZE 52 // "k4.pid." and 44 characters
void svc_token_key_id(char out[SVC_KEY_ID_SIZE], const uint8_t token_key[32]);

// ---- one role of one node in this process ----
#define SVC_MAX_URLS 8

struct svc_clients;
struct health;

// nodes.ini; key and grant; those that follow them while a key is rotated.
#define N_KEY_FILES 5
struct file_mark { // changes when a file does; all 0: it is not there
    uint64_t dev, ino;
    int64_t size, changed_ns;
};

struct instance {
    struct svc svc; // first: a struct svc * is an instance
    const struct svc_role *role;
    char section[CHAN_NODE_ID_SIZE]; // of the options file and the environment

    struct cfg_option *rows; // the common ones and the role's
    struct cfg_spec spec;
    void *options;

    struct log *log_role, *log_node; // log_node is svc.log
    struct svc_nodes *nodes;
    struct chan_identity identity; // as it was at the start
    struct chan_trust trust;
    struct svc_clients *clients;
    struct health *health;
    struct svc_revoked *revoked;
    void *self;              // the role's own
    atomic_bool is_started;  // self may be used
    atomic_bool is_draining; // serves no more
    int64_t started_ms;

    // main thread: what was on disk when it was read last, and when it was looked at last
    struct file_mark read[N_KEY_FILES], seen[N_KEY_FILES];
    int64_t checked_ms; // when grants were asked about last

    pthread_mutex_t lock;       // guards what follows
    struct chan_identity shown; // what we show whom we dial: the newest we have
    int64_t shown_until_s;      // when its grant ends, Unix seconds
    char problem[200];          // why what is on disk was not all taken over; "" when it was
    char urls[SVC_MAX_URLS][RPC_URL_SIZE];
    size_t n_urls;
    char http[RPC_URL_SIZE], public_url[2 * RPC_URL_SIZE], events_url[RPC_URL_SIZE];
};

static inline struct instance *instance_of(struct svc *svc)
{
    return (struct instance *)(void *)svc;
}

// A role as written on the command line.
struct role_word {
    const struct svc_role *role;
    char node[CHAN_NODE_ID_SIZE]; // "" when none was named
};

// ---- options.c ----
const struct svc_options *instance_options(const struct instance *in);
enum status instance_load_options(struct instance *in, const struct role_word *w, bool is_only,
                                  const struct svc_role *const *all_roles, size_t n_all_roles,
                                  int argc, char **argv, struct err *err) MUST_CHECK;
void instance_free_options(struct instance *in);
// The value of --name among the words, or NULL.
const char *svc_find_option_word(int argc, char **argv, const char *name);
enum status instance_expand_node(struct instance *in, struct err *err) MUST_CHECK;
// The role's own --kind, where it has one.
const char *instance_kind(const struct instance *in);

// ---- instance.c ----
enum status instance_start(struct instance *in, struct log *log, struct err *err) MUST_CHECK;
enum status instance_listen(struct instance *in, struct err *err) MUST_CHECK;
// reason: why not; or, though it is ready, what should be seen to; else "".
bool instance_is_ready(struct instance *in, char *reason, size_t reason_size);
void instance_drain(struct instance *in);
void instance_stop(struct instance *in, int64_t deadline_us);
void instance_done(struct instance *in); // any state; the memory itself is the caller's

// ---- identity.c ----
// Two at most: the one that nodes.ini names, and during a rotation the one to come.
struct identities {
    struct chan_identity listed, next;
    bool has_listed, has_next;
    int64_t until_s; // Unix seconds: when the grant ends of the one that is shown
};
char *instance_key_path(const struct instance *in, const char *suffix) MUST_CHECK;
// ret     what is good, also when something is wrong; wiped by the caller
// errors  NOT_FOUND, FAILED_PRECONDITION: files that peers would not accept, and what is wrong
enum status instance_load_identities(const struct instance *in, struct identities *ret,
                                     struct err *err) MUST_CHECK;
// What peers see as initiator, and the other key that they may dial; NULL when there is none.
const struct chan_identity *identities_shown(const struct identities *ids);
const struct chan_identity *identities_other(const struct identities *ids);

// ---- reload.c ----
char *instance_nodes_path(const struct instance *in) MUST_CHECK;
void instance_mark_files(struct instance *in); // before they are read for the first time
// Read again what changed and has rested since the last look. force: whatever it looks like. Once a
// second also whether grants of peers have expired.
void instance_look_for_changes(struct instance *in, bool force);
void instance_set_problem(struct instance *in, const char *text);
void instance_get_shown(struct instance *in, struct chan_identity *ret);

// ---- clients.c ----
struct svc_clients *svc_clients_new(struct svc *svc) MUST_CHECK;
// Nodes or our identity have changed.
void svc_clients_update(struct svc_clients *c);
void svc_clients_check(struct svc_clients *c); // grants that may have ended meanwhile
void svc_clients_free(struct svc_clients *c);

// ---- revoked.c: access tokens that count no more before they expire ----
#define SVC_MAX_REVOKED 65536
struct svc_revoked;
struct Event__EventRecord;
struct svc_revoked *svc_revoked_new(size_t max) MUST_CHECK; // max: entries, about 100 bytes each
void svc_revoked_free(struct svc_revoked *r);               // stops it first
bool svc_revoked_user_ok(void *revoked, const struct rpc_user *u); // an rpc_user_ok_fn
// Take over what an event of topic auth ends. False: nothing.
bool svc_revoked_apply(struct svc_revoked *r, const struct Event__EventRecord *e,
                       int64_t now_wall_ms);
// Forget what no token can be about any more. False: there is nothing left.
bool svc_revoked_tidy(struct svc_revoked *r, int64_t now_wall_ms);
// Follow topic auth until closed, and end calls whose tokens count no more.
enum status svc_revoked_follow(struct svc_revoked *r, struct svc *svc, struct err *err) MUST_CHECK;
void svc_revoked_close(struct svc_revoked *r); // never blocks; NULL does nothing
void svc_revoked_stop(struct svc_revoked *r);  // nobody follows any more

// ---- publish.c ----
// The address beside that one; and how others reach it, "" when by its own name.
enum status svc_publish_url(const char *listen, char ret[RPC_URL_SIZE], struct err *err) MUST_CHECK;
enum status svc_publish_as(const char *url, const char *known_as, char ret[RPC_URL_SIZE],
                           struct err *err) MUST_CHECK;

// ---- health.c ----
#define SVC_STOPPING "stopping"
struct Node__WatchRequest;
struct health *health_new(struct instance *in) MUST_CHECK;
enum status health_watch(struct rpc_call *call, const struct Node__WatchRequest *req,
                         struct err *err) MUST_CHECK;
// Reasons name machines, files and databases: they are for nodes and admins.
bool health_may_say_why(const struct rpc_call *call);
void health_drain(struct health *h); // tells and ends all; twice is fine
void health_stop(struct health *h);  // drained: returns when the role is not being asked any more
void health_free(struct health *h);  // stopped, or nobody ever watched; NULL does nothing

// ---- observe.c: what this process is doing just now ----
struct Node__MethodsRequest;
struct Node__MethodsReply;
struct Node__ChannelsRequest;
struct Node__ChannelsReply;
struct Node__CallsRequest;
struct Node__CallsReply;
enum status observe_methods(struct rpc_call *call, const struct Node__MethodsRequest *req,
                            struct Node__MethodsReply *ret, struct err *err) MUST_CHECK;
enum status observe_channels(struct rpc_call *call, const struct Node__ChannelsRequest *req,
                             struct Node__ChannelsReply *ret, struct err *err) MUST_CHECK;
enum status observe_calls(struct rpc_call *call, const struct Node__CallsRequest *req,
                          struct Node__CallsReply *ret, struct err *err) MUST_CHECK;

// ---- reflection.c: what this process serves ----
struct Node__ListRequest;
struct Node__ListReply;
struct Node__DescribeRequest;
struct Node__DescribeReply;
enum status reflection_list(struct rpc_call *call, const struct Node__ListRequest *req,
                            struct Node__ListReply *ret, struct err *err) MUST_CHECK;
enum status reflection_describe(struct rpc_call *call, const struct Node__DescribeRequest *req,
                                struct Node__DescribeReply *ret, struct err *err) MUST_CHECK;

// ---- node_service.c ----
enum status instance_serve_node(struct instance *in, struct err *err) MUST_CHECK;

// ---- metrics.c ----
void metrics_put_methods(struct buf *b, const struct rpc_method_stats *all, size_t n);

// ---- ready.c ----
enum status svc_write_ready(const char *path, struct instance *const *in, size_t n,
                            struct err *err) MUST_CHECK;
