// Positions of consumers, kept by name. A name belongs to whoever made it: a user, or the nodes of
// a role, which share it. Committing never moves a position back unless asked, so that a process
// that was slow cannot undo what another one did.
#include <stdio.h>
#include <string.h>

#include "base/arena.h"
#include "base/str.h"
#include "event/internal.h"

#define MAX_NAME 64
#define MAX_PER_OWNER 100 // of one topic
#define MAX_LISTED 1000

static const struct {
    unsigned role;
    const char *name;
} node_owners[] = {
    {ROLE_NODE_SESSION, "session"}, {ROLE_NODE_ORCHESTRATOR, "orchestrator"},
    {ROLE_NODE_STORE, "store"},     {ROLE_NODE_ORIGIN, "origin"},
    {ROLE_NODE_GATEWAY, "gateway"},
};

static bool is_admin(struct rpc_call *call)
{
    const struct rpc_user *u = rpc_call_user(call);
    return u && (u->roles & ROLE_ADMIN);
}

// Who asks: users keep positions of any topic, for they may read some of each.
static enum status find_owner(const struct event_topic *t, struct rpc_call *call, const char **ret,
                              struct err *err)
{
    const struct rpc_user *u = rpc_call_user(call);
    unsigned role = event_node_role(call);
    if (u) {
        *ret = u->id;
        return STATUS_OK;
    }
    for (size_t i = 0; i < N_ELEMENTS(node_owners); i++)
        if (role & t->nodes & node_owners[i].role) {
            *ret = node_owners[i].name;
            return STATUS_OK;
        }
    return err_set(err, STATUS_PERMISSION_DENIED, "topic %s is not for nodes of this role",
                   t->name);
}

struct who {
    const struct event_log *log;
    const struct event_topic *topic;
    const char *owner;
};

static enum status identify(struct rpc_call *call, const char *topic, struct who *ret,
                            struct err *err)
{
    ret->log = rpc_call_self(call);
    enum status s = event_find_topic(ret->log, topic, &ret->topic, err);
    return s == STATUS_OK ? find_owner(ret->topic, call, &ret->owner, err) : s;
}

static enum status check_name(const char *name, struct err *err)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    if (n > 0 && n <= MAX_NAME && !name[n])
        return STATUS_OK;
    return err_set(err, STATUS_INVALID_ARGUMENT,
                   "a consumer's name is 1 to %d letters, digits, dots, dashes or underscores",
                   MAX_NAME);
}

#define CONSUMER_COLUMNS                                                                           \
    "c.name, c.position, (extract(epoch FROM c.updated) * 1000000)::bigint, c.owner"

static bool read_consumer(struct arena *a, const struct who *w, const struct db_result *r, size_t i,
                          Event__Consumer *ret)
{
    ret->topic = arena_strdup(a, w->topic->name);
    ret->name = arena_strdup(a, db_text(r, i, 0));
    ret->position = db_i64(r, i, 1);
    ret->updated = arena_alloc(a, sizeof *ret->updated);
    ret->owner = arena_strdup(a, db_text(r, i, 3));
    if (ret->updated)
        event_timestamp(db_i64(r, i, 2), ret->updated);
    return ret->topic && ret->name && ret->updated && ret->owner;
}

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "consumers: out of memory");
}

// ---------------------------------------------------------------- list

static enum status read_range(const struct who *w, Event__ConsumersReply *ret, struct err *err)
{
    char sql[96];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    snprintf(sql, sizeof sql, "SELECT oldest, seq + 1 FROM %s.event_topic WHERE topic = $1",
             w->log->schema);
    enum status s = db_query(w->log->db, sql, DB_PARAMS(DB_TEXT(w->topic->name)), &r, err);
    bool found = s == STATUS_OK && db_result_n_rows(r) > 0;
    ret->oldest_seq = found ? db_i64(r, 0, 0) : 1;
    ret->next_seq = found ? db_i64(r, 0, 1) : 1;
    return s;
}

enum status event_handle_consumers(struct rpc_call *call, const Event__ConsumersRequest *req,
                                   Event__ConsumersReply *ret, struct err *err)
{
    struct who w;
    char sql[320];
    struct arena *a = rpc_call_arena(call);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = identify(call, req->topic, &w, err);
    if (s == STATUS_OK && req->all && !is_admin(call))
        s = err_set(err, STATUS_PERMISSION_DENIED, "only an admin sees the consumers of others");
    if (s != STATUS_OK)
        return s;
    snprintf(sql, sizeof sql,
             "SELECT " CONSUMER_COLUMNS " FROM %s.consumer c WHERE c.topic = $1"
             " AND ($2::text IS NULL OR c.owner = $2) AND ($3::text = '' OR c.name = $3)"
             " ORDER BY c.owner, c.name LIMIT %d",
             w.log->schema, MAX_LISTED);
    s = db_query(
        w.log->db, sql,
        DB_PARAMS(DB_TEXT(w.topic->name), DB_TEXT(req->all ? NULL : w.owner), DB_TEXT(req->name)),
        &r, err);
    if (s == STATUS_OK)
        s = read_range(&w, ret, err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r);
    Event__Consumer *rows = arena_array(a, n + 1, sizeof *rows);
    ret->consumers = arena_array(a, n + 1, sizeof(Event__Consumer *));
    if (!rows || !ret->consumers)
        return no_memory(err);
    for (; ret->n_consumers < n; ret->n_consumers++) {
        Event__Consumer *c = ret->consumers[ret->n_consumers] = &rows[ret->n_consumers];
        event__consumer__init(c);
        if (!read_consumer(a, &w, r, ret->n_consumers, c))
            return no_memory(err);
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- commit

struct commit {
    const struct who *who;
    const Event__CommitRequest *req;
    struct db_result *row;
};

static enum status check_room(struct db_conn *db, const struct commit *c, struct err *err)
{
    char sql[160];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    snprintf(sql, sizeof sql,
             "SELECT count(*) FROM %s.consumer WHERE topic = $1 AND owner = $2 AND name <> $3",
             c->who->log->schema);
    enum status s = db_exec(
        db, sql,
        DB_PARAMS(DB_TEXT(c->who->topic->name), DB_TEXT(c->who->owner), DB_TEXT(c->req->name)), &r,
        err);
    if (s != STATUS_OK || db_i64(r, 0, 0) < MAX_PER_OWNER)
        return s;
    return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                   "more than %d consumers of topic %s: forget one first", MAX_PER_OWNER,
                   c->who->topic->name);
}

static enum status check_position(struct db_conn *db, const struct commit *c, struct err *err)
{
    char sql[96];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    snprintf(sql, sizeof sql, "SELECT seq FROM %s.event_topic WHERE topic = $1",
             c->who->log->schema);
    enum status s = db_exec(db, sql, DB_PARAMS(DB_TEXT(c->who->topic->name)), &r, err);
    int64_t last = s == STATUS_OK && db_result_n_rows(r) ? db_i64(r, 0, 0) : 0;
    if (s != STATUS_OK || c->req->position <= last)
        return s;
    return err_set(err, STATUS_OUT_OF_RANGE, "position %lld: topic %s ends at %lld",
                   (long long)c->req->position, c->who->topic->name, (long long)last);
}

static enum status refuse_going_back(struct db_conn *db, const struct commit *c, struct err *err)
{
    char sql[128];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    snprintf(sql, sizeof sql,
             "SELECT position FROM %s.consumer WHERE topic = $1 AND owner = $2 AND name = $3",
             c->who->log->schema);
    enum status s = db_exec(
        db, sql,
        DB_PARAMS(DB_TEXT(c->who->topic->name), DB_TEXT(c->who->owner), DB_TEXT(c->req->name)), &r,
        err);
    if (s != STATUS_OK)
        return s;
    return err_set(err, STATUS_ABORTED, "consumer %s is at %lld already, not before %lld",
                   c->req->name, (long long)(db_result_n_rows(r) ? db_i64(r, 0, 0) : 0),
                   (long long)c->req->position);
}

static enum status commit_tx(struct db_conn *db, void *ud, struct err *err)
{
    struct commit *c = ud;
    char sql[512];
    db_result_free(TAKE(c->row)); // of an attempt before
    enum status s = check_position(db, c, err);
    if (s == STATUS_OK)
        s = check_room(db, c, err);
    if (s != STATUS_OK)
        return s;
    snprintf(sql, sizeof sql,
             "INSERT INTO %s.consumer AS c (topic, owner, name, position) VALUES ($1, $2, $3, $4)"
             " ON CONFLICT (topic, owner, name) DO UPDATE SET position = $4, updated = now()"
             " WHERE c.position <= $4 OR $5 RETURNING " CONSUMER_COLUMNS,
             c->who->log->schema);
    s = db_exec(db, sql,
                DB_PARAMS(DB_TEXT(c->who->topic->name), DB_TEXT(c->who->owner),
                          DB_TEXT(c->req->name), DB_I64(c->req->position), DB_BOOL(c->req->rewind)),
                &c->row, err);
    if (s == STATUS_OK && db_result_n_rows(c->row) == 0)
        s = refuse_going_back(db, c, err);
    return s;
}

enum status event_handle_commit(struct rpc_call *call, const Event__CommitRequest *req,
                                Event__Consumer *ret, struct err *err)
{
    struct who w;
    struct commit c = {.who = &w, .req = req};
    enum status s = identify(call, req->topic, &w, err);
    if (s == STATUS_OK)
        s = check_name(req->name, err);
    if (s == STATUS_OK && req->position < 0)
        s = err_set(err, STATUS_INVALID_ARGUMENT, "position must be 0 or more");
    if (s == STATUS_OK)
        s = db_tx(w.log->db, DB_READ_COMMITTED, commit_tx, &c, err);
    if (s == STATUS_OK && !read_consumer(rpc_call_arena(call), &w, c.row, 0, ret))
        s = no_memory(err);
    db_result_free(c.row);
    return s;
}

// ---------------------------------------------------------------- forget

enum status event_handle_forget(struct rpc_call *call, const Event__ForgetRequest *req,
                                Event__ForgetReply *ret, struct err *err)
{
    struct who w;
    char sql[128];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    (void)ret;
    enum status s = identify(call, req->topic, &w, err);
    if (s != STATUS_OK)
        return s;
    const char *owner = req->owner[0] ? req->owner : w.owner;
    if (!str_eq(owner, w.owner) && !is_admin(call))
        return err_set(err, STATUS_PERMISSION_DENIED,
                       "only an admin forgets the consumers of others");
    snprintf(sql, sizeof sql,
             "DELETE FROM %s.consumer WHERE topic = $1 AND owner = $2 AND name = $3",
             w.log->schema);
    s = db_query(w.log->db, sql,
                 DB_PARAMS(DB_TEXT(w.topic->name), DB_TEXT(owner), DB_TEXT(req->name)), &r, err);
    if (s != STATUS_OK || db_result_n_affected(r) > 0)
        return s;
    return err_set(err, STATUS_NOT_FOUND, "topic %s has no consumer \"%.64s\"", w.topic->name,
                   req->name);
}
