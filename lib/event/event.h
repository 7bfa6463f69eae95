#pragma once
// The durable event log: rows of <schema>.event, numbered without gaps per topic, written in the
// transaction that they tell of; read and followed through cauce.event.v1.Event.Read.
#include "base/err.h"
#include "db/db.h"
#include "log/log.h"
#include "rpc/rpc.h"

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

struct event_log; // serves the schema's topics; one LISTEN connection wakes followers
enum status event_log_new(struct db *db, const struct db_opts *listen, const char *schema,
                          const char *const *topics, size_t n_topics, struct log *log,
                          struct event_log **ret, struct err *err) MUST_CHECK;
enum status event_log_serve(struct event_log *l, struct rpc_server *s, struct err *err) MUST_CHECK;
// At drain: readers end with UNAVAILABLE and new ones are refused, so that followers do not hold up
// the server's stop. Never blocks.
void event_log_close(struct event_log *l);
void event_log_free(struct event_log *l); // after the server has stopped
DEFINE_AUTO(struct event_log, event_log_free)
