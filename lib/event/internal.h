#pragma once
// What lib/event's own files share.
#include <pthread.h>
#include <stdatomic.h>

#include "cauce/event.pb-c.h"

#include "base/list.h"
#include "base/rand.h"
#include "event/event.h"
#include "work/work.h"

#define EVENT_SCHEMA_SIZE 32
#define EVENT_TOPIC_SIZE 32

// Schema names go into SQL text: nothing but lower-case letters and underscores.
enum status event_check_schema(const char *schema, struct err *err) MUST_CHECK;

struct publisher;

struct event_log {
    struct db *db;
    struct log *log;
    char schema[EVENT_SCHEMA_SIZE];
    struct event_topic *topics; // with names of their own
    size_t n_topics;
    struct work_pool *pool;
    struct work_timers *timers;
    struct db_listener *listener;
    struct rpc_server *server;   // once serving
    struct publisher *publisher; // NULL: nothing is published
    struct work_timer *prune_timer;
    int64_t retention_ms, unread_ms;
    pthread_mutex_t lock;
    struct list readers;
    size_t n_readers;
    atomic_bool closed;
};
// The log's own row of that topic. errors  NOT_FOUND
enum status event_find_topic(const struct event_log *l, const char *name,
                             const struct event_topic **ret, struct err *err) MUST_CHECK;
// OK when the caller may see all of the topic's events: an admin, or a node whose role may.
enum status event_check_all(const struct event_topic *t, struct rpc_call *call,
                            struct err *err) MUST_CHECK;
// The role of a node that calls for itself; 0 when it is not one.
unsigned event_node_role(struct rpc_call *call);

// ---- record.c: a row of EVENT_COLUMNS, of a table or row named e, as a message ----
#define EVENT_COLUMNS                                                                              \
    "e.seq, (extract(epoch FROM e.at) * 1000000)::bigint, e.kind, e.subject, e.owner, e.data"
#define EVENT_N_COLUMNS 6
struct event_row {
    Event__EventRecord record;
    Google__Protobuf__Timestamp time;
};
// Fills ret from the columns that begin at `col`; its strings are the result's and the topic's.
void event_row_read(const struct db_result *r, size_t row, unsigned col, const char *topic,
                    struct event_row *ret);
void event_timestamp(int64_t us, Google__Protobuf__Timestamp *ret);

// ---- publish.c ----
void publisher_start(struct publisher *p); // once the log knows its server
void publisher_free(struct publisher *p);
void publisher_notify(struct publisher *p, const char *topic); // NULL: all
enum status event_handle_subscribe(struct rpc_call *call, const Event__SubscribeRequest *req,
                                   Event__SubscribeReply *ret, struct err *err);
// ---- consumer.c ----
enum status event_handle_consumers(struct rpc_call *call, const Event__ConsumersRequest *req,
                                   Event__ConsumersReply *ret, struct err *err);
enum status event_handle_commit(struct rpc_call *call, const Event__CommitRequest *req,
                                Event__Consumer *ret, struct err *err);
enum status event_handle_forget(struct rpc_call *call, const Event__ForgetRequest *req,
                                Event__ForgetReply *ret, struct err *err);
