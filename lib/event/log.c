// Event.Read: reads from the table, follows on the LISTEN connection, holds no thread per follower.
//
// A reader is a deferred call and a position. It runs on one of the log's own threads when there
// may be something to do: at the start, when its topic grew, when the stream has credit again, when
// it was cancelled. It writes until the table or the credit is exhausted and then rests. `running`
// and `again` make sure that it runs on one thread at a time and that no wake-up is lost.
//
// Numbers are given in the order of commits (append.c), so "all rows above my position" is always
// the next part of the log without holes, and a lost notification delays but never loses an event:
// each (re)connect of the listener wakes all. A follower sits out a database that is away, trying
// again every second.
#include "event/event.h"

#include <stdio.h>
#include <string.h>

#include "cauce/event.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "event/internal.h"

#define PAGE_ROWS 128
#define MAX_READERS 4096
#define SUBJECT_SIZE 128
#define DATABASE_RETRY_MS 1000
#define PRUNE_FIRST_MS (60 * 1000) // a service that starts has other things to do
#define PRUNE_EVERY_MS (10 * 60 * 1000)
#define PRUNE_ROWS 5000

struct reader_state {
    struct list link;
    struct event_log *log;
    struct rpc_call *call;
    const struct event_topic *topic;              // one of the log's
    char owner[UUID_SIZE], subject[SUBJECT_SIZE]; // "": no such filter
    bool follow;
    bool is_user; // else a node
    struct rpc_user user;
    struct chan_peer node;
    bool running, again; // under the log's lock
    // The run's alone:
    int64_t next;     // first number wanted; 0: the oldest; -1: what comes next
    int64_t since_us; // wall clock; with next 0: skip what is older
    int64_t tip;      // the topic's last number when the page was read
    struct db_result *page;
    size_t row;
    struct work_timer *retry; // set while the database is away
};

static void wake(struct reader_state *r);

// ---------------------------------------------------------------- one run of a reader

enum run_result { RUN_REST, RUN_DONE };

static enum status read_tip(struct reader_state *r, struct err *err)
{
    char sql[96];
    AUTO(db_result_free_p) struct db_result *res = NULL;
    snprintf(sql, sizeof sql, "SELECT seq FROM %s.event_topic WHERE topic = $1", r->log->schema);
    enum status s = db_query(r->log->db, sql, DB_PARAMS(DB_TEXT(r->topic->name)), &res, err);
    if (s == STATUS_OK)
        r->next = db_result_n_rows(res) ? db_i64(res, 0, 0) + 1 : 1;
    return s;
}

// From the end backwards: what is asked for is usually recent.
static enum status find_since(struct reader_state *r, struct err *err)
{
    char sql[160];
    AUTO(db_result_free_p) struct db_result *res = NULL;
    snprintf(sql, sizeof sql,
             "SELECT seq FROM %s.event WHERE topic = $1 AND at < to_timestamp($2::bigint / "
             "1000000.0) ORDER BY seq DESC LIMIT 1",
             r->log->schema);
    enum status s = db_query(r->log->db, sql,
                             DB_PARAMS(DB_TEXT(r->topic->name), DB_I64(r->since_us)), &res, err);
    if (s != STATUS_OK)
        return s;
    r->since_us = 0;
    if (db_result_n_rows(res))
        r->next = db_i64(res, 0, 0) + 1;
    return STATUS_OK;
}

static enum status check_not_pruned(struct reader_state *r, int64_t oldest, struct err *err)
{
    if (r->next >= oldest)
        return STATUS_OK;
    if (r->next == 0) {
        r->next = oldest;
        return STATUS_OK;
    }
    return err_set(err, STATUS_OUT_OF_RANGE,
                   "event %lld of topic %s is no longer kept: the oldest is %lld",
                   (long long)r->next, r->topic->name, (long long)oldest);
}

// One snapshot gives the rows and the topic's tip: a short page means that all up to the tip was
// seen, so that a filter does not look at the same foreign rows again and again.
static enum status read_page(struct reader_state *r, struct err *err)
{
    char sql[640];
    snprintf(sql, sizeof sql,
             "SELECT t.seq, t.oldest, " EVENT_COLUMNS
             " FROM %s.event_topic t LEFT JOIN LATERAL (SELECT * FROM %s.event x"
             " WHERE x.topic = t.topic AND x.seq >= $2%s%s ORDER BY x.seq LIMIT %d) e ON true"
             " WHERE t.topic = $1 ORDER BY e.seq",
             r->log->schema, r->log->schema, r->owner[0] ? " AND x.owner = $3" : "",
             !r->subject[0] ? ""
             : r->owner[0]  ? " AND x.subject = $4"
                            : " AND x.subject = $3",
             PAGE_ROWS);
    struct db_param p[4] = {DB_TEXT(r->topic->name), DB_I64(r->next)};
    size_t n = 2;
    if (r->owner[0])
        p[n++] = DB_TEXT(r->owner);
    if (r->subject[0])
        p[n++] = DB_TEXT(r->subject);
    enum status s = db_query(r->log->db, sql, p, n, &r->page, err);
    if (s != STATUS_OK)
        return s;
    r->row = 0;
    r->tip = db_result_n_rows(r->page) ? db_i64(r->page, 0, 0) : 0;
    return check_not_pruned(r, db_result_n_rows(r->page) ? db_i64(r->page, 0, 1) : 1, err);
}

static size_t page_rows(const struct reader_state *r)
{
    size_t n = db_result_n_rows(r->page);
    return n == 1 && db_is_null(r->page, 0, 2) ? 0 : n; // the tip alone
}

static bool try_write_row(struct reader_state *r)
{
    struct event_row e;
    event_row_read(r->page, r->row, 2, r->topic->name, &e);
    if (!rpc_call_try_write(r->call, &e.record.base))
        return false;
    r->next = e.record.seq + 1;
    r->row++;
    return true;
}

static void drop_page(struct reader_state *r)
{
    db_result_free(r->page);
    r->page = NULL;
}

// False: no credit, rest. True: the page is written.
static bool write_page(struct reader_state *r, size_t n)
{
    while (r->row < n)
        if (!try_write_row(r))
            return false;
    return true;
}

// A reader may outlive the rights that it began with.
static enum status check_rights(const struct reader_state *r, struct err *err)
{
    if (!r->is_user && !rpc_server_trusts_peer(r->log->server, &r->node))
        return err_set(err, STATUS_PERMISSION_DENIED,
                       "the node's grant has expired or was revoked");
    if (r->is_user && !rpc_server_trusts_user(r->log->server, &r->user))
        return err_set(err, STATUS_UNAUTHENTICATED,
                       "the login has ended or its rights have changed: renew the token");
    return STATUS_OK;
}

static enum status check_end(struct reader_state *r, struct err *err)
{
    pthread_mutex_lock(&r->log->lock);
    bool closed = r->log->closed;
    pthread_mutex_unlock(&r->log->lock);
    if (cancel_is_fired(rpc_call_cancel(r->call)))
        return err_set(err, STATUS_CANCELLED, "event read was cancelled");
    if (closed)
        return err_set(err, STATUS_UNAVAILABLE, "events: the service is stopping");
    return check_rights(r, err);
}

static enum status next_page(struct reader_state *r, struct err *err)
{
    enum status s = STATUS_OK;
    if (r->next < 0)
        s = read_tip(r, err);
    else if (r->since_us > 0)
        s = find_since(r, err);
    return s == STATUS_OK && !r->page ? read_page(r, err) : s;
}

static void on_retry(void *ud)
{
    wake(ud);
}

// The database is away: a follower rests and comes back, others are told.
static enum run_result sit_out(struct reader_state *r, enum status s)
{
    if (s != STATUS_UNAVAILABLE || !r->follow)
        return RUN_DONE;
    work_timer_cancel(r->retry);
    r->retry =
        work_timer_start(r->log->timers, time_deadline_in_ms(DATABASE_RETRY_MS), on_retry, r);
    return r->retry ? RUN_REST : RUN_DONE;
}

static enum run_result run(struct reader_state *r, enum status *ret, struct err *err)
{
    for (;;) {
        *ret = check_end(r, err);
        if (*ret != STATUS_OK)
            return RUN_DONE;
        *ret = next_page(r, err);
        if (*ret != STATUS_OK)
            return sit_out(r, *ret);
        size_t n = page_rows(r);
        if (!write_page(r, n))
            return RUN_REST;
        drop_page(r);
        if (n == PAGE_ROWS)
            continue;
        if (r->next <= r->tip)
            r->next = r->tip + 1;
        return r->follow ? RUN_REST : RUN_DONE;
    }
}

static void reader_end(struct reader_state *r, enum status s, const struct err *err)
{
    struct event_log *l = r->log;
    log_debug(l->log, "event_read_ended", F_STR("topic", r->topic->name), F_I64("next", r->next),
              F_ERR(err));
    rpc_call_finish(r->call, s, NULL, err); // no on_writable after this
    work_timer_cancel(r->retry);            // nor on_retry
    pthread_mutex_lock(&l->lock);
    list_remove(&r->link);
    l->n_readers--;
    pthread_mutex_unlock(&l->lock);
    drop_page(r);
    mem_free(r);
}

static void reader_task(void *ud)
{
    struct reader_state *r = ud;
    struct event_log *l = r->log;
    for (bool again = true; again;) {
        struct err err = ERR_INIT;
        enum status s;
        if (run(r, &s, &err) == RUN_DONE) {
            reader_end(r, s, &err);
            return;
        }
        pthread_mutex_lock(&l->lock);
        again = r->again;
        r->again = false;
        r->running = again;
        pthread_mutex_unlock(&l->lock);
    }
}

// With the log's lock held.
static void wake_locked(struct reader_state *r)
{
    if (r->running) {
        r->again = true;
        return;
    }
    // The queue holds all readers; a pool that is stopping has none left.
    r->running = work_pool_submit(r->log->pool, reader_task, r);
}

static void wake(struct reader_state *r)
{
    pthread_mutex_lock(&r->log->lock);
    wake_locked(r);
    pthread_mutex_unlock(&r->log->lock);
}

static void on_writable(void *ud)
{
    wake(ud);
}

// payload is the topic; NULL after a (re)connect: anything may have been missed.
static void on_notify(void *ud, const char *channel, const char *payload)
{
    struct event_log *l = ud;
    (void)channel;
    pthread_mutex_lock(&l->lock);
    list_for_each(it, &l->readers)
    {
        struct reader_state *r = list_entry(it, struct reader_state, link);
        if (!payload || str_eq(payload, r->topic->name))
            wake_locked(r);
    }
    struct publisher *publisher = l->publisher;
    pthread_mutex_unlock(&l->lock);
    if (publisher)
        publisher_notify(publisher, payload);
}

// ---------------------------------------------------------------- the method

enum status event_find_topic(const struct event_log *l, const char *name,
                             const struct event_topic **ret, struct err *err)
{
    for (size_t i = 0; i < l->n_topics; i++)
        if (str_eq(l->topics[i].name, name)) {
            *ret = &l->topics[i];
            return STATUS_OK;
        }
    return err_set(err, STATUS_NOT_FOUND, "no topic \"%.40s\" here", name);
}

unsigned event_node_role(struct rpc_call *call)
{
    const struct chan_peer *peer = rpc_call_peer(call);
    if (rpc_call_user(call) || rpc_call_is_forwarded(call) || !peer || !peer->has_grant ||
        peer->grant.role > 30)
        return 0;
    return 1U << peer->grant.role;
}

enum status event_check_all(const struct event_topic *t, struct rpc_call *call, struct err *err)
{
    const struct rpc_user *u = rpc_call_user(call);
    if (u && (u->roles & ROLE_ADMIN))
        return STATUS_OK;
    if (event_node_role(call) & t->nodes)
        return STATUS_OK;
    return err_set(err, STATUS_PERMISSION_DENIED, "topic %s is for admins and some nodes", t->name);
}

// Whose events the caller may see: a node or an admin all, a user those that are about it.
static enum status find_scope(struct reader_state *r, struct err *err)
{
    const struct rpc_user *u = rpc_call_user(r->call);
    const struct chan_peer *peer = rpc_call_peer(r->call);
    r->is_user = u;
    if (u)
        r->user = *u;
    if (u)
        r->user.exp_wall_ms = INT64_MAX; // a reader may stay for longer than its token lasts
    else if (peer)
        r->node = *peer;
    if (!u || (u->roles & ROLE_ADMIN))
        return event_check_all(r->topic, r->call, err);
    str_copy(r->owner, UUID_SIZE, u->id);
    return STATUS_OK;
}

static int64_t since_us(const Google__Protobuf__Timestamp *t)
{
    if (t->seconds <= 0 || t->seconds > INT64_MAX / 2000000)
        return 0;
    return t->seconds * 1000000 + t->nanos / 1000;
}

static enum status reader_new(struct event_log *l, struct rpc_call *call,
                              const Event__ReadRequest *req, struct reader_state **ret,
                              struct err *err)
{
    const struct event_topic *topic = NULL;
    enum status s = event_find_topic(l, req->topic, &topic, err);
    if (s != STATUS_OK)
        return s;
    if (req->from_seq < -1)
        return err_set(err, STATUS_INVALID_ARGUMENT, "from_seq must be -1 or more");
    if (strlen(req->subject) >= SUBJECT_SIZE)
        return err_set(err, STATUS_INVALID_ARGUMENT, "subject is longer than %d bytes",
                       SUBJECT_SIZE - 1);
    AUTO(mem_free_p) struct reader_state *r = mem_alloc(sizeof *r);
    if (!r)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "event read: out of memory");
    *r = (struct reader_state){
        .log = l, .call = call, .topic = topic, .next = req->from_seq, .follow = req->follow};
    str_copy(r->subject, sizeof r->subject, req->subject);
    if (req->since && req->from_seq == 0)
        r->since_us = since_us(req->since);
    s = find_scope(r, err);
    if (s == STATUS_OK)
        *ret = TAKE(r);
    return s;
}

// A place among the readers, already marked as running so that nobody starts it too early.
static enum status enlist(struct event_log *l, struct reader_state *r, struct err *err)
{
    enum status s = STATUS_OK;
    pthread_mutex_lock(&l->lock);
    if (l->closed) {
        s = err_set(err, STATUS_UNAVAILABLE, "events: the service is stopping");
    } else if (l->n_readers == MAX_READERS) {
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d event readers", MAX_READERS);
    } else {
        r->running = true;
        list_push_back(&l->readers, &r->link);
        l->n_readers++;
    }
    pthread_mutex_unlock(&l->lock);
    return s;
}

static enum status handle_read(struct rpc_call *call, const Event__ReadRequest *req,
                               struct err *err)
{
    struct event_log *l = rpc_call_self(call);
    struct reader_state *r = NULL;
    enum status s = reader_new(l, call, req, &r, err);
    if (s != STATUS_OK)
        return s;
    s = enlist(l, r, err);
    if (s != STATUS_OK) {
        mem_free(r);
        return s;
    }
    rpc_call_defer(call);
    rpc_call_on_writable(call, on_writable, r);
    if (!work_pool_submit(l->pool, reader_task, r)) {
        struct err stopping = ERR_INIT;
        err_set(&stopping, STATUS_UNAVAILABLE, "events: the service is stopping");
        reader_end(r, STATUS_UNAVAILABLE, &stopping);
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- pruning

static void start_prune_timer(struct event_log *l, int64_t ms);

static void prune(void *ud)
{
    struct event_log *l = ud;
    int64_t now_ms = time_wall_ms();
    for (size_t i = 0; i < l->n_topics; i++) {
        struct err err = ERR_INIT;
        unsigned n = 0, sum = 0;
        enum status s = STATUS_OK;
        do {
            s = event_prune(l->db, l->schema, l->topics[i].name, now_ms - l->retention_ms,
                            now_ms - l->unread_ms, PRUNE_ROWS, &n, &err);
            sum += n;
        } while (s == STATUS_OK && n == PRUNE_ROWS && !l->closed);
        if (s != STATUS_OK)
            log_warn(l->log, "events_not_pruned", F_STR("topic", l->topics[i].name), F_ERR(&err));
        else if (sum > 0)
            log_info(l->log, "events_pruned", F_STR("topic", l->topics[i].name), F_I64("n", sum));
    }
    start_prune_timer(l, PRUNE_EVERY_MS);
}

static void on_prune_timer(void *ud)
{
    struct event_log *l = ud;
    if (!work_pool_submit(l->pool, prune, l))
        log_debug(l->log, "events_not_pruned", F_STR("reason", "stopping"));
}

// Only one is there at a time: it fires, prune() runs, and starts the next.
static void start_prune_timer(struct event_log *l, int64_t ms)
{
    pthread_mutex_lock(&l->lock);
    struct work_timer *old = TAKE(l->prune_timer);
    if (!l->closed)
        l->prune_timer = work_timer_start(l->timers, time_deadline_in_ms(ms), on_prune_timer, l);
    pthread_mutex_unlock(&l->lock);
    work_timer_cancel(old);
}

void event_log_retain(struct event_log *l, int64_t retention_ms, int64_t unread_ms)
{
    l->retention_ms = retention_ms;
    l->unread_ms = unread_ms > retention_ms ? unread_ms : retention_ms;
    if (retention_ms > 0)
        start_prune_timer(l, PRUNE_FIRST_MS);
}

// ---------------------------------------------------------------- the log

static enum status copy_topics(struct event_log *l, const struct event_topic *topics, size_t n,
                               struct err *err)
{
    l->topics = mem_array(n, sizeof *l->topics);
    for (; l->topics && l->n_topics < n; l->n_topics++) {
        l->topics[l->n_topics] = topics[l->n_topics];
        if (!(l->topics[l->n_topics].name = mem_strdup(topics[l->n_topics].name)))
            break;
    }
    if (l->n_topics == n)
        return STATUS_OK;
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "event log: out of memory");
}

enum status event_log_new(struct db *db, const struct db_opts *listen, const char *schema,
                          const struct event_topic *topics, size_t n_topics, struct log *log,
                          struct event_log **ret, struct err *err)
{
    char channel[EVENT_SCHEMA_SIZE + 8];
    enum status s = event_check_schema(schema, err);
    if (s != STATUS_OK)
        return s;
    AUTO(event_log_free_p) struct event_log *l = mem_alloc(sizeof *l);
    if (!l)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "event log: out of memory");
    pthread_mutex_init(&l->lock, NULL);
    list_init(&l->readers);
    l->db = db, l->log = log;
    str_copy(l->schema, sizeof l->schema, schema);
    s = copy_topics(l, topics, n_topics, err);
    if (s != STATUS_OK)
        return s;
    l->pool = work_pool_new("event", 2, MAX_READERS * 2);
    l->timers = work_timers_new();
    if (!l->pool || !l->timers)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "event log: cannot start threads");
    snprintf(channel, sizeof channel, "%s_event", schema);
    l->listener = db_listen(listen, (const char *const[]){channel}, 1, on_notify, l, err);
    if (!l->listener)
        return err ? err->code : STATUS_RESOURCE_EXHAUSTED;
    *ret = TAKE(l);
    return STATUS_OK;
}

enum status event_log_serve(struct event_log *l, struct rpc_server *s, struct err *err)
{
    static const struct event_event_handlers handlers = {
        .read = handle_read,
        .subscribe = event_handle_subscribe,
        .consumers = event_handle_consumers,
        .commit = event_handle_commit,
        .forget = event_handle_forget,
    };
    l->server = s;
    if (l->publisher)
        publisher_start(l->publisher);
    return event_event_serve(s, &handlers, l, err);
}

void event_log_close(struct event_log *l)
{
    pthread_mutex_lock(&l->lock);
    l->closed = true;
    list_for_each(it, &l->readers) wake_locked(list_entry(it, struct reader_state, link));
    pthread_mutex_unlock(&l->lock);
}

void event_log_free(struct event_log *l)
{
    if (!l)
        return;
    db_listener_free(l->listener);
    if (l->pool)
        work_pool_stop(l->pool); // its last tasks may start timers, and timers submit tasks
    work_timers_free(l->timers);
    work_pool_free(l->pool);
    publisher_free(l->publisher);
    for (size_t i = 0; i < l->n_topics; i++)
        mem_free((void *)(uintptr_t)l->topics[i].name);
    mem_free(l->topics);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}
