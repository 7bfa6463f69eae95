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

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "cauce/event.pb-c.h"
#include "cauce/event.rpc.h"

#include "base/list.h"
#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "event/internal.h"
#include "work/work.h"

#define PAGE_ROWS 128
#define MAX_READERS 4096
#define SUBJECT_SIZE 128
#define DATABASE_RETRY_MS 1000

struct event_log {
    struct db *db;
    struct log *log;
    char schema[EVENT_SCHEMA_SIZE];
    char **topics;
    size_t n_topics;
    struct work_pool *pool;
    struct work_timers *timers;
    struct db_listener *listener;
    pthread_mutex_t lock;
    struct list readers;
    size_t n_readers;
    bool closed;
};

struct reader_state {
    struct list link;
    struct event_log *log;
    struct rpc_call *call;
    const char *topic;                            // one of the log's
    char owner[UUID_SIZE], subject[SUBJECT_SIZE]; // "": no such filter
    bool follow;
    bool running, again; // under the log's lock
    // The run's alone:
    int64_t next; // first number wanted; -1: what comes next
    int64_t tip;  // the topic's last number when the page was read
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
    enum status s = db_query(r->log->db, sql, DB_PARAMS(DB_TEXT(r->topic)), &res, err);
    if (s == STATUS_OK)
        r->next = db_result_n_rows(res) ? db_i64(res, 0, 0) + 1 : 1;
    return s;
}

// One snapshot gives the rows and the topic's tip: a short page means that all up to the tip was
// seen, so that a filter does not look at the same foreign rows again and again.
static enum status read_page(struct reader_state *r, struct err *err)
{
    char sql[640];
    snprintf(sql, sizeof sql,
             "SELECT t.seq, e.seq, (extract(epoch FROM e.at) * 1000000)::bigint, e.kind, e.subject,"
             " e.owner, e.data FROM %s.event_topic t LEFT JOIN LATERAL (SELECT * FROM %s.event x"
             " WHERE x.topic = t.topic AND x.seq >= $2%s%s ORDER BY x.seq LIMIT %d) e ON true"
             " WHERE t.topic = $1 ORDER BY e.seq",
             r->log->schema, r->log->schema, r->owner[0] ? " AND x.owner = $3" : "",
             !r->subject[0] ? ""
             : r->owner[0]  ? " AND x.subject = $4"
                            : " AND x.subject = $3",
             PAGE_ROWS);
    struct db_param p[4] = {DB_TEXT(r->topic), DB_I64(r->next)};
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
    return STATUS_OK;
}

static size_t page_rows(const struct reader_state *r)
{
    size_t n = db_result_n_rows(r->page);
    return n == 1 && db_is_null(r->page, 0, 1) ? 0 : n; // the tip alone
}

static char *column(const struct reader_state *r, unsigned col)
{
    const char *s = db_text(r->page, r->row, col);
    return (char *)(uintptr_t)(s ? s : ""); // protobuf-c's fields lack const; packing only reads
}

static bool try_write_row(struct reader_state *r)
{
    int64_t at_us = db_i64(r->page, r->row, 2);
    Google__Protobuf__Timestamp at = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
    at.seconds = at_us / 1000000;
    at.nanos = (int32_t)(at_us % 1000000) * 1000;
    Event__EventRecord m = EVENT__EVENT_RECORD__INIT;
    m.topic = (char *)(uintptr_t)r->topic;
    m.seq = db_i64(r->page, r->row, 1);
    m.time = &at;
    m.kind = column(r, 3);
    m.subject = column(r, 4);
    m.owner = column(r, 5);
    m.data = column(r, 6);
    if (!rpc_call_try_write(r->call, &m.base))
        return false;
    r->next = m.seq + 1;
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

static enum status check_end(struct reader_state *r, struct err *err)
{
    pthread_mutex_lock(&r->log->lock);
    bool closed = r->log->closed;
    pthread_mutex_unlock(&r->log->lock);
    if (cancel_is_fired(rpc_call_cancel(r->call)))
        return err_set(err, STATUS_CANCELLED, "event read was cancelled");
    if (closed)
        return err_set(err, STATUS_UNAVAILABLE, "events: the service is stopping");
    return STATUS_OK;
}

static enum status next_page(struct reader_state *r, struct err *err)
{
    enum status s = r->next < 0 ? read_tip(r, err) : STATUS_OK;
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
    log_debug(l->log, "event_read_ended", F_STR("topic", r->topic), F_I64("next", r->next),
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
        if (!payload || str_eq(payload, r->topic))
            wake_locked(r);
    }
    pthread_mutex_unlock(&l->lock);
}

// ---------------------------------------------------------------- the method

static const char *find_topic(const struct event_log *l, const char *topic)
{
    for (size_t i = 0; i < l->n_topics; i++)
        if (str_eq(l->topics[i], topic))
            return l->topics[i];
    return NULL;
}

// Whose events the caller may see: "" for all.
static enum status find_scope(struct rpc_call *call, char owner[UUID_SIZE], struct err *err)
{
    const struct rpc_user *u = rpc_call_user(call);
    owner[0] = '\0';
    if (u) {
        if (!(u->roles & ROLE_ADMIN))
            str_copy(owner, UUID_SIZE, u->id);
        return STATUS_OK;
    }
    const struct chan_peer *peer = rpc_call_peer(call);
    if (peer && peer->has_grant && !rpc_call_is_forwarded(call))
        return STATUS_OK;
    return err_set(err, STATUS_PERMISSION_DENIED, "events are for signed-in users");
}

static enum status reader_new(struct event_log *l, struct rpc_call *call,
                              const Event__ReadRequest *req, struct reader_state **ret,
                              struct err *err)
{
    const char *topic = find_topic(l, req->topic);
    if (!topic)
        return err_set(err, STATUS_NOT_FOUND, "no topic \"%.40s\" here", req->topic);
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
    enum status s = find_scope(call, r->owner, err);
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

// ---------------------------------------------------------------- the log

static enum status copy_topics(struct event_log *l, const char *const *topics, size_t n,
                               struct err *err)
{
    l->topics = mem_array(n, sizeof *l->topics);
    for (; l->topics && l->n_topics < n; l->n_topics++)
        if (!(l->topics[l->n_topics] = mem_strdup(topics[l->n_topics])))
            break;
    if (l->n_topics == n)
        return STATUS_OK;
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "event log: out of memory");
}

enum status event_log_new(struct db *db, const struct db_opts *listen, const char *schema,
                          const char *const *topics, size_t n_topics, struct log *log,
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
    static const struct event_event_handlers handlers = {.read = handle_read};
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
    work_timers_free(l->timers);
    work_pool_free(l->pool);
    for (size_t i = 0; i < l->n_topics; i++)
        mem_free(l->topics[i]);
    mem_free(l->topics);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}
