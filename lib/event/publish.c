// Publishing: what was appended goes out sealed to whoever subscribed.
//
// Every service that has the log publishes all of it: a notification of the database wakes it, it
// reads what is new once, seals each event and sends it. Nothing is read or sent while nobody has
// asked for a topic's key within the last epoch.
//
// Who was given the key of an epoch is remembered while the epoch lasts. Before anything is sealed,
// and every now and then, each of them must still be trusted: a grant that ended, a login that was
// revoked, and the epoch changes at once. Those who may, ask for the next key as soon as they see a
// message that they cannot open.
//
// What is sent is a hint: it may be lost, and the numbers in it and the log make up for that. A
// topic that is quiet says its last number every few seconds, so that a lost last event is noticed,
// and a lost publisher as well.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "event/internal.h"
#include "rpc/pubsub.h"

#define EPOCH_MS (10 * 60 * 1000)
#define QUIET_MS 5000
#define SILENCES 3 // so many quiet times without a message mean that something is wrong
#define MAX_HOLDERS 1024
#define PAGE_ROWS 128

struct holder { // of the key of the present epoch
    bool is_user;
    struct rpc_user user;
    struct chan_peer node;
};

struct publication { // one topic's; what follows `topic` is under the publisher's lock
    struct publisher *publisher;
    const struct event_topic *topic;
    bool running, again; // a task of the pool
    bool is_active;      // somebody asked within this epoch or the last
    bool has_news;       // the log must be read
    int64_t next_seq;    // first event not yet published, while active
    int64_t epoch_until_us, sent_us;
    struct pubsub_writer writer;
    struct holder *holders;
    size_t n_holders, cap;
};

struct publisher {
    struct event_log *log;
    struct pubsub_publisher *socket;
    char url[RPC_URL_SIZE]; // as subscribers are told
    int64_t epoch_ms, quiet_ms;
    struct publication *all;
    pthread_mutex_t lock; // held while sealing and sending, never across a query
    struct work_timer *tick;
    bool is_started;
    uint64_t n_published, n_epochs;
};

// ---------------------------------------------------------------- epochs

static bool is_trusted(const struct publication *p, const struct holder *h)
{
    const struct rpc_server *s = p->publisher->log->server;
    return h->is_user ? rpc_server_trusts_user(s, &h->user) : rpc_server_trusts_peer(s, &h->node);
}

static void begin_epoch(struct publication *p, const char *why)
{
    struct publisher *pub = p->publisher;
    log_debug(pub->log->log, "epoch_changes", F_STR("topic", p->topic->name), F_STR("why", why),
              F_I64("holders", p->n_holders));
    p->is_active = p->n_holders > 0;
    p->n_holders = 0;
    pubsub_writer_change_epoch(&p->writer);
    pub->n_epochs++;
    p->epoch_until_us = time_deadline_in_ms(pub->epoch_ms);
}

static void check_epoch(struct publication *p)
{
    for (size_t i = 0; i < p->n_holders; i++)
        if (!is_trusted(p, &p->holders[i])) {
            begin_epoch(p, "a subscriber was revoked");
            return;
        }
    if (time_mono_us() >= p->epoch_until_us)
        begin_epoch(p, "time");
}

static bool is_same(const struct holder *a, const struct holder *b)
{
    if (a->is_user != b->is_user)
        return false;
    return a->is_user ? str_eq(a->user.session, b->user.session) && a->user.epoch == b->user.epoch
                      : a->node.grant.serial == b->node.grant.serial &&
                            memcmp(a->node.key, b->node.key, sizeof a->node.key) == 0;
}

static enum status remember_holder(struct publication *p, const struct holder *h, struct err *err)
{
    for (size_t i = 0; i < p->n_holders; i++)
        if (is_same(&p->holders[i], h)) {
            p->holders[i] = *h;
            return STATUS_OK;
        }
    if (p->n_holders == MAX_HOLDERS)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "topic %s has more than %d subscribers",
                       p->topic->name, MAX_HOLDERS);
    if (p->n_holders == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 8;
        struct holder *more = mem_realloc(p->holders, cap, sizeof *more);
        if (!more)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "subscribe: out of memory");
        p->holders = more;
        p->cap = cap;
    }
    p->holders[p->n_holders++] = *h;
    return STATUS_OK;
}

// ---------------------------------------------------------------- sending

static enum status send_notice(struct publication *p, const Event__Notice *n, struct err *err)
{
    uint8_t payload[PUBSUB_MAX_PAYLOAD];
    AUTO(buf_done) struct buf msg;
    size_t size = event__notice__get_packed_size(n);
    buf_init(&msg, PUBSUB_MAX_PAYLOAD + PUBSUB_OVERHEAD);
    if (size > sizeof payload)
        return err_set(err, STATUS_INTERNAL, "a notice has %zu bytes", size);
    event__notice__pack(n, payload);
    enum status s = pubsub_seal(&p->writer, payload, size, &msg, err);
    if (s == STATUS_OK)
        s = pubsub_publisher_send(p->publisher->socket, msg.data, msg.len, err);
    p->sent_us = time_mono_us();
    return s;
}

// An event that is too large for a message is only told of.
static enum status send_event(struct publication *p, const Event__EventRecord *e, struct err *err)
{
    Event__Notice n = EVENT__NOTICE__INIT;
    Event__EventRecord number = EVENT__EVENT_RECORD__INIT;
    n.last_seq = e->seq;
    n.event = (Event__EventRecord *)(uintptr_t)e; // packing only reads
    if (event__notice__get_packed_size(&n) > PUBSUB_MAX_PAYLOAD) {
        number.seq = e->seq;
        n.event = &number;
    }
    return send_notice(p, &n, err);
}

static void send_last_number(struct publication *p)
{
    Event__Notice n = EVENT__NOTICE__INIT;
    struct err err = ERR_INIT;
    n.last_seq = p->next_seq - 1;
    if (send_notice(p, &n, &err) != STATUS_OK)
        log_warn(p->publisher->log->log, "publish_failed", F_STR("topic", p->topic->name),
                 F_ERR(&err));
}

static enum status read_rows(const struct publication *p, int64_t from, struct db_result **ret,
                             struct err *err)
{
    char sql[320];
    const struct event_log *l = p->publisher->log;
    snprintf(sql, sizeof sql,
             "SELECT " EVENT_COLUMNS " FROM %s.event e WHERE e.topic = $1 AND e.seq >= $2"
             " ORDER BY e.seq LIMIT %d",
             l->schema, PAGE_ROWS);
    return db_query(l->db, sql, DB_PARAMS(DB_TEXT(p->topic->name), DB_I64(from)), ret, err);
}

// Subscribers who miss one of these read it: a failure here is told and no more.
static void send_rows(struct publication *p, const struct db_result *rows)
{
    struct publisher *pub = p->publisher;
    enum status s = STATUS_OK;
    struct err err = ERR_INIT;
    check_epoch(p);
    for (size_t i = 0; i < db_result_n_rows(rows) && s == STATUS_OK; i++) {
        struct event_row e;
        event_row_read(rows, i, 0, p->topic->name, &e);
        p->next_seq = e.record.seq + 1;
        s = send_event(p, &e.record, &err);
        pub->n_published++;
    }
    if (s == STATUS_OK)
        return;
    p->has_news = true; // those behind the one that failed
    log_warn(pub->log->log, "publish_failed", F_STR("topic", p->topic->name), F_ERR(&err));
}

// True: there may be more to read at once.
static bool publish_page(struct publication *p)
{
    struct publisher *pub = p->publisher;
    struct err err = ERR_INIT;
    AUTO(db_result_free_p) struct db_result *rows = NULL;
    pthread_mutex_lock(&pub->lock);
    bool wanted = p->is_active && p->has_news;
    int64_t from = p->next_seq;
    p->has_news = false;
    pthread_mutex_unlock(&pub->lock);
    if (!wanted)
        return false;
    enum status s = read_rows(p, from, &rows, &err);
    if (s != STATUS_OK)
        log_debug(pub->log->log, "publish_waits", F_STR("topic", p->topic->name), F_ERR(&err));
    pthread_mutex_lock(&pub->lock);
    bool more = s == STATUS_OK && db_result_n_rows(rows) == PAGE_ROWS;
    p->has_news = p->has_news || s != STATUS_OK || more; // after a failure: at the next tick
    if (s == STATUS_OK && p->is_active)
        send_rows(p, rows);
    pthread_mutex_unlock(&pub->lock);
    return more;
}

static void check_quiet(struct publication *p)
{
    pthread_mutex_lock(&p->publisher->lock);
    if (p->is_active)
        check_epoch(p);
    if (p->is_active && time_mono_us() - p->sent_us >= p->publisher->quiet_ms * 1000)
        send_last_number(p);
    pthread_mutex_unlock(&p->publisher->lock);
}

// One at a time for each topic; a wake-up meanwhile makes it run again.
static void publish_task(void *ud)
{
    struct publication *p = ud;
    for (bool again = true; again;) {
        while (publish_page(p))
            ;
        check_quiet(p);
        pthread_mutex_lock(&p->publisher->lock);
        again = p->again;
        p->again = false;
        p->running = again;
        pthread_mutex_unlock(&p->publisher->lock);
    }
}

// With the lock held.
static void wake_locked(struct publication *p)
{
    if (p->running)
        p->again = true;
    else
        p->running = work_pool_submit(p->publisher->log->pool, publish_task, p);
}

void publisher_notify(struct publisher *pub, const char *topic)
{
    pthread_mutex_lock(&pub->lock);
    for (size_t i = 0; i < pub->log->n_topics; i++) {
        struct publication *p = &pub->all[i];
        if (topic && !str_eq(topic, p->topic->name))
            continue;
        p->has_news = true;
        if (p->is_active)
            wake_locked(p);
    }
    pthread_mutex_unlock(&pub->lock);
}

static void on_tick(void *ud)
{
    struct publisher *pub = ud;
    pthread_mutex_lock(&pub->lock);
    for (size_t i = 0; i < pub->log->n_topics; i++)
        if (pub->all[i].is_active)
            wake_locked(&pub->all[i]);
    struct work_timer *old = pub->tick;
    pub->tick =
        work_timer_start(pub->log->timers, time_deadline_in_ms(pub->quiet_ms / 2), on_tick, pub);
    pthread_mutex_unlock(&pub->lock);
    work_timer_cancel(old);
}

void publisher_start(struct publisher *pub)
{
    if (!pub->is_started)
        on_tick(pub);
    pub->is_started = true;
}

// ---------------------------------------------------------------- the call

static enum status read_next_seq(const struct event_log *l, const char *topic, int64_t *ret,
                                 struct err *err)
{
    char sql[96];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    snprintf(sql, sizeof sql, "SELECT seq + 1 FROM %s.event_topic WHERE topic = $1", l->schema);
    enum status s = db_query(l->db, sql, DB_PARAMS(DB_TEXT(topic)), &r, err);
    if (s == STATUS_OK)
        *ret = db_result_n_rows(r) ? db_i64(r, 0, 0) : 1;
    return s;
}

static enum status answer(struct publication *p, struct arena *a, Event__SubscribeReply *ret,
                          struct err *err)
{
    struct pubsub_grant g;
    pubsub_grant_of(&p->writer, &g);
    ret->url = arena_strdup(a, p->publisher->url);
    ret->key.data = arena_dup(a, g.key, sizeof g.key);
    ret->verify_key.data = arena_dup(a, g.verify_key, sizeof g.verify_key);
    if (!ret->url || !ret->key.data || !ret->verify_key.data)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "subscribe: out of memory");
    ret->key.len = sizeof g.key;
    ret->verify_key.len = sizeof g.verify_key;
    ret->publisher = g.publisher;
    ret->epoch = g.epoch;
    ret->number = g.number;
    ret->next_seq = p->next_seq;
    ret->epoch_ends_ms = time_left_ms(p->epoch_until_us);
    ret->silence_ms = p->publisher->quiet_ms * SILENCES;
    return STATUS_OK;
}

static enum status subscribe(struct publication *p, const struct holder *h, struct rpc_call *call,
                             Event__SubscribeReply *ret, struct err *err)
{
    int64_t next_seq = 1;
    enum status s = read_next_seq(p->publisher->log, p->topic->name, &next_seq, err);
    if (s != STATUS_OK)
        return s;
    pthread_mutex_lock(&p->publisher->lock);
    if (!p->is_active) {
        p->next_seq = next_seq;
        p->epoch_until_us = time_deadline_in_ms(p->publisher->epoch_ms);
        pubsub_writer_change_epoch(&p->writer);
        p->publisher->n_epochs++;
    }
    check_epoch(p);
    s = remember_holder(p, h, err);
    if (s == STATUS_OK)
        s = answer(p, rpc_call_arena(call), ret, err);
    if (s == STATUS_OK && !p->is_active) {
        p->is_active = true;
        p->has_news = true; // what was appended since the number was read
        wake_locked(p);
    }
    pthread_mutex_unlock(&p->publisher->lock);
    return s;
}

enum status event_handle_subscribe(struct rpc_call *call, const Event__SubscribeRequest *req,
                                   Event__SubscribeReply *ret, struct err *err)
{
    struct event_log *l = rpc_call_self(call);
    const struct event_topic *t = NULL;
    enum status s = event_find_topic(l, req->topic, &t, err);
    if (s == STATUS_OK)
        s = event_check_all(t, call, err);
    if (s == STATUS_OK && l->closed)
        s = err_set(err, STATUS_UNAVAILABLE, "events: the service is stopping");
    if (s == STATUS_OK && !l->publisher)
        s = err_set(err, STATUS_FAILED_PRECONDITION, "topic %s is not published here", t->name);
    if (s != STATUS_OK)
        return s;
    const struct rpc_user *u = rpc_call_user(call);
    struct holder h = {.is_user = u};
    if (u)
        h.user = *u;
    else
        h.node = *rpc_call_peer(call);
    return subscribe(&l->publisher->all[t - l->topics], &h, call, ret, err);
}

// ---------------------------------------------------------------- start and end

// What subscribers are told: `advertise`, with the port that `real` was given in place of port 0.
static enum status tell_address(struct publisher *p, const char *advertise, struct err *err)
{
    char real[RPC_URL_SIZE];
    const char *colon = strrchr(advertise, ':'), *port = strrchr(p->url, ':');
    bool is_any = str_starts_with(advertise, "tcp://") && str_eq(colon, ":0");
    (void)str_copy(real, sizeof real, is_any && port ? port : "");
    int n = snprintf(p->url, sizeof p->url, "%.*s%s",
                     is_any ? (int)(colon - advertise) : (int)strlen(advertise), advertise, real);
    if (n > 0 && (size_t)n < sizeof p->url)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID_ARGUMENT, "publisher: %s is too long", advertise);
}

static enum status publisher_new(struct event_log *l, const struct event_publish_opts *o,
                                 struct publisher **ret, struct err *err)
{
    struct publisher *p = mem_alloc(sizeof *p);
    if (!p)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "publisher: out of memory");
    p->log = l;
    p->epoch_ms = o->epoch_ms ? o->epoch_ms : EPOCH_MS;
    p->quiet_ms = o->quiet_ms ? o->quiet_ms : QUIET_MS;
    pthread_mutex_init(&p->lock, NULL);
    p->all = mem_array(l->n_topics, sizeof *p->all);
    enum status s = p->all ? pubsub_publisher_new(o->url, p->url, &p->socket, err)
                           : err_set(err, STATUS_RESOURCE_EXHAUSTED, "publisher: out of memory");
    if (s == STATUS_OK && o->advertise)
        s = tell_address(p, o->advertise, err);
    for (size_t i = 0; p->all && i < l->n_topics; i++) {
        p->all[i].publisher = p;
        p->all[i].topic = &l->topics[i];
        pubsub_writer_init(&p->all[i].writer, l->topics[i].name);
    }
    if (s != STATUS_OK) {
        publisher_free(p);
        return s;
    }
    *ret = p;
    return STATUS_OK;
}

enum status event_log_publish(struct event_log *l, const struct event_publish_opts *o,
                              char *ret_url, struct err *err)
{
    struct publisher *p = NULL;
    enum status s = publisher_new(l, o, &p, err);
    if (s != STATUS_OK)
        return s;
    if (ret_url)
        str_copy(ret_url, RPC_URL_SIZE, p->url);
    pthread_mutex_lock(&l->lock);
    l->publisher = p;
    pthread_mutex_unlock(&l->lock);
    return STATUS_OK;
}

void publisher_free(struct publisher *p)
{
    if (!p)
        return;
    pubsub_publisher_free(p->socket);
    for (size_t i = 0; p->all && i < p->log->n_topics; i++) {
        pubsub_writer_done(&p->all[i].writer);
        mem_free(p->all[i].holders);
    }
    mem_free(p->all);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}

void event_log_get_stats(struct event_log *l, struct event_log_stats *ret)
{
    struct publisher *p = l->publisher;
    *ret = (struct event_log_stats){0};
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    ret->n_published = p->n_published;
    ret->n_epochs = p->n_epochs;
    for (size_t i = 0; i < l->n_topics; i++)
        ret->n_holders += (unsigned)p->all[i].n_holders;
    pthread_mutex_unlock(&p->lock);
}
