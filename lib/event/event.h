#pragma once
// The durable event log: rows of <schema>.event, numbered without gaps per topic, written in the
// transaction that they tell of; read, published and followed through cauce.event.v1.Event.
#include "base/err.h"
#include "db/db.h"
#include "log/log.h"
#include "rpc/rpc.h"

// ---------------------------------------------------------------- writing

// Append inside the caller's transaction (holds the topic's row lock until commit, so order of
// numbers is order of commits: append last). json is one JSON object. owner NULL: concerns nobody
// in particular.
enum status event_append(struct db_conn *c, const char *schema, const char *topic, const char *kind,
                         const char *subject, const char *owner, const char *json,
                         struct err *err) MUST_CHECK;
// First statement of a REPEATABLE READ or SERIALIZABLE transaction that will append: takes the
// place in line before the snapshot is taken, where appending later would fail with a serialization
// failure against every other transaction that appends.
enum status event_lock(struct db_conn *c, const char *schema, struct err *err) MUST_CHECK;
// Delete a topic's oldest events, those from before that time, at most `max` of them. What a
// registered consumer has not read yet stays until it is from before unread_before_wall_ms; then
// the consumer is told so when it reads on.
enum status event_prune(struct db *db, const char *schema, const char *topic,
                        int64_t before_wall_ms, int64_t unread_before_wall_ms, unsigned max,
                        unsigned *ret_n, struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- serving

struct event_topic {
    const char *name;
    unsigned nodes; // ROLE_NODE_ bits: who may read and subscribe to all of it; admins always may
};
struct event_log; // serves the schema's topics; one LISTEN connection wakes followers
enum status event_log_new(struct db *db, const struct db_opts *listen, const char *schema,
                          const struct event_topic *topics, size_t n_topics, struct log *log,
                          struct event_log **ret, struct err *err) MUST_CHECK;

struct event_publish_opts {
    const char *url; // where to publish: tcp://, ipc://, inproc://
    // What subscribers are told; NULL: the real address of url. A port of 0 becomes url's real one.
    const char *advertise;
    int64_t epoch_ms; // how long a key is used; 0 = 10 minutes
    int64_t quiet_ms; // without events for this long, a topic's last number is said; 0 = 5000
};
// Publish the topics, too; at most once, before event_log_serve(). ret_url: the address that
// subscribers are told, RPC_URL_SIZE bytes; may be NULL.
enum status event_log_publish(struct event_log *l, const struct event_publish_opts *o,
                              char *ret_url, struct err *err) MUST_CHECK;
// Delete events that are older, now and then; 0 keeps all. What a registered consumer has not read
// yet is kept for unread_ms, the longer of the two. At most once, before event_log_serve().
void event_log_retain(struct event_log *l, int64_t retention_ms, int64_t unread_ms);
enum status event_log_serve(struct event_log *l, struct rpc_server *s, struct err *err) MUST_CHECK;
// At drain: readers end with UNAVAILABLE and new ones are refused, so that followers do not hold up
// the server's stop. Never blocks.
void event_log_close(struct event_log *l);
void event_log_free(struct event_log *l); // when the server has stopped, before it is freed
DEFINE_AUTO(struct event_log, event_log_free)

struct event_log_stats {
    uint64_t n_published; // events that were sent sealed
    uint64_t n_epochs;    // keys used so far, of all topics
    unsigned n_holders;   // who were given a key that is in use
};
void event_log_get_stats(struct event_log *l, struct event_log_stats *ret);

// ---------------------------------------------------------------- following

struct Event__EventRecord; // cauce/event.pb-c.h

struct event_follow_opts {
    const char *topic;
    const char
        *consumer; // its position is kept by the topic's owner under this name; NULL: it is not
    // Where to begin without a position: 0 = the oldest event, n = that one, -1 = what comes next.
    int64_t from;
    int64_t since_wall_ms; // with from 0: skip what is older; 0 = nothing
    // When what comes next was pruned: go on with the oldest that is there; false: the follower
    // ends.
    bool skip_pruned;
    // A client to one node that owns the topic, borrowed until the follower is freed; another one
    // for another attempt where there are several. NULL with err set: none now.
    struct rpc_client *(*client)(void *ud, unsigned attempt, struct err *err);
    // Called with every event, in order, without gaps or repeats (but for one that was handled and
    // not committed when the process ended). May block. Not OK: the same event comes again, later.
    enum status (*handle)(void *ud, const struct Event__EventRecord *e, struct err *err);
    void *ud;
    struct log *log;
};
// Follows on a thread of its own, across lost messages, restarts and changes of keys, until freed.
// The strings of o are copied.
struct event_follower;
enum status event_follow(const struct event_follow_opts *o, struct event_follower **ret,
                         struct err *err) MUST_CHECK;
void event_follower_close(struct event_follower *f); // never blocks
void event_follower_free(struct event_follower *f);  // waits for handle(), commits the position
DEFINE_AUTO(struct event_follower, event_follower_free)

struct event_follower_stats {
    int64_t position;     // the last event handled; 0 = none
    uint64_t n_published; // events taken from what is published
    uint64_t n_read;      // events read, to begin with and to fill gaps
    uint64_t n_dropped;   // messages that were forged, repeated or of another epoch
    uint64_t n_asked;     // calls of Subscribe
    bool is_connected;    // to the publisher
    bool has_ended;       // what comes next was pruned
};
void event_follower_get_stats(struct event_follower *f, struct event_follower_stats *ret);
