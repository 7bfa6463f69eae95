// Publishing and following over the real wire, a private PostgreSQL and a line that loses, repeats,
// delays and forges what is published: followers see every event once and in order all the same.
#include "event/event.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cauce/event.rpc.h"

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "event/internal.h"
#include "rpc/pubsub.h"
#include "support/pg.h"
#include "support/rig.h"

#define WAIT_MS 60000
#define QUIET_MS 100

static struct test_pg *pg;
static struct db *db;
static struct test_rig rig;
static struct event_log *events;
static unsigned n_topics_used;
static char topic[16]; // another one for each test
static char publish_url[RPC_URL_SIZE], line_url[RPC_URL_SIZE];

static void must(enum status s, const struct err *err)
{
    if (s != STATUS_OK)
        fail_msg("%s: %s", status_name(s), err->msg);
}

// ---------------------------------------------------------------- a line with faults

enum fault { PASS, LOSE, CHAOS };

// Between publisher and followers: subscribes to the one, publishes to the others.
struct line {
    pthread_mutex_t lock;
    enum fault fault;
    struct pubsub_subscriber *in;
    struct pubsub_publisher *out;
    unsigned n;                                            // messages that came
    uint8_t last[PUBSUB_MAX_PAYLOAD + PUBSUB_OVERHEAD];    // the last one
    uint8_t held[2][PUBSUB_MAX_PAYLOAD + PUBSUB_OVERHEAD]; // delayed
    size_t n_last, n_held[2];
};
static struct line line;

static void line_send(const void *msg, size_t n)
{
    struct err err = ERR_INIT;
    must(pubsub_publisher_send(line.out, msg, n, &err), &err);
}

static void line_hold(unsigned slot, const uint8_t *msg, size_t n)
{
    memcpy(line.held[slot], msg, n);
    line.n_held[slot] = n;
}

static void line_release(unsigned slot)
{
    if (line.n_held[slot])
        line_send(line.held[slot], line.n_held[slot]);
    line.n_held[slot] = 0;
}

// By turns: lost, twice, late by one, late by a few, broken and then whole, in order.
static void make_chaos(uint8_t *msg, size_t n)
{
    switch (line.n % 6) {
    case 0:
        return;
    case 1:
        line_send(msg, n);
        line_send(msg, n);
        return;
    case 2:
        line_hold(0, msg, n);
        return;
    case 3:
        line_send(msg, n);
        line_release(0);
        line_release(1);
        return;
    case 4:
        line_hold(1, msg, n);
        return;
    default:
        msg[n / 2] ^= 1;
        line_send(msg, n);
        msg[n / 2] ^= 1;
        line_send(msg, n);
    }
}

static void on_message(void *ud, uint8_t *msg, size_t n)
{
    (void)ud;
    pthread_mutex_lock(&line.lock);
    memcpy(line.last, msg, n);
    line.n_last = n;
    if (line.fault == PASS)
        line_send(msg, n);
    else if (line.fault == CHAOS)
        make_chaos(msg, n);
    line.n++;
    pthread_mutex_unlock(&line.lock);
}

static void on_connected(void *ud, bool is_connected)
{
    (void)ud;
    (void)is_connected;
}

static void set_fault(enum fault fault)
{
    pthread_mutex_lock(&line.lock);
    line.fault = fault;
    pthread_mutex_unlock(&line.lock);
}

static void line_open(void)
{
    static const struct pubsub_events ev = {.message = on_message, .connected = on_connected};
    struct err err = ERR_INIT;
    char url[RPC_URL_SIZE];
    line = (struct line){.fault = PASS};
    pthread_mutex_init(&line.lock, NULL);
    must(pubsub_publisher_new(line_url, url, &line.out, &err), &err);
    must(pubsub_subscriber_new(publish_url, NULL, &ev, NULL, &line.in, &err), &err);
}

static void line_close(void)
{
    pubsub_subscriber_free(line.in);
    pubsub_publisher_free(line.out);
    pthread_mutex_destroy(&line.lock);
}

// ---------------------------------------------------------------- the service

static void service_start(int64_t epoch_ms)
{
    struct event_topic topics[] = {{topic, ROLE_NODE_ORCHESTRATOR}, {"closed", 0}};
    struct err err = ERR_INIT;
    const struct event_publish_opts o = {
        .url = publish_url, .advertise = line_url, .epoch_ms = epoch_ms, .quiet_ms = QUIET_MS};
    test_rig_init(&rig);
    must(event_log_new(db, &(struct db_opts){.conninfo = test_pg_conninfo(pg)}, "store", topics,
                       N_ELEMENTS(topics), NULL, &events, &err),
         &err);
    must(event_log_publish(events, &o, NULL, &err), &err);
    must(event_log_serve(events, rig.server, &err), &err);
    test_rig_listen(&rig);
    line_open();
}

static void service_stop(void)
{
    line_close();
    event_log_close(events);
    test_rig_stop(&rig);
    event_log_free(TAKE(events));
    test_rig_done(&rig);
}

static int each_setup(void **state)
{
    (void)state;
    snprintf(topic, sizeof topic, "t%u", n_topics_used++);
    snprintf(publish_url, sizeof publish_url, "ipc:///tmp/cauce-follow-test-%ld", (long)getpid());
    snprintf(line_url, sizeof line_url, "ipc:///tmp/cauce-follow-line-%ld", (long)getpid());
    service_start(0);
    return 0;
}

static int each_teardown(void **state)
{
    (void)state;
    if (events)
        service_stop();
    return 0;
}

// ---------------------------------------------------------------- writing

struct entry {
    int64_t n;
    bool fail;
};

static enum status append_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct entry *e = ud;
    char json[64];
    snprintf(json, sizeof json, "{\"n\": %lld}", (long long)e->n);
    enum status s = event_append(c, "store", topic, "kind", "subject", NULL, json, err);
    if (s == STATUS_OK && e->fail)
        return err_set(err, STATUS_CANCELLED, "rolled back on purpose");
    return s;
}

// Event n, which says its own number; now and then after one that is rolled back.
static void append(int64_t n)
{
    struct err err = ERR_INIT;
    struct entry e = {.n = n}, rolled_back = {.n = -n, .fail = true};
    if (n % 7 == 0)
        assert_int_equal(db_tx(db, DB_READ_COMMITTED, append_tx, &rolled_back, NULL),
                         STATUS_CANCELLED);
    must(db_tx(db, DB_READ_COMMITTED, append_tx, &e, &err), &err);
}

static void append_all(int64_t from, int64_t to)
{
    for (int64_t n = from; n <= to; n++)
        append(n);
}

static int64_t query_i64(const char *sql)
{
    struct err err = ERR_INIT;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    must(db_query(db, sql, DB_PARAMS(DB_TEXT(topic)), &r, &err), &err);
    return db_result_n_rows(r) ? db_i64(r, 0, 0) : -1;
}

static void wait_for_position(int64_t want)
{
    int64_t end_us = time_deadline_in_ms(WAIT_MS), at = -1;
    while (at != want && time_left_ms(end_us) > 0)
        at = query_i64("SELECT position FROM store.consumer WHERE topic = $1");
    if (at != want)
        fail_msg("the position is %lld instead of %lld", (long long)at, (long long)want);
}

// ---------------------------------------------------------------- following

struct seen {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int64_t first, last; // 0: none
    char wrong[120];     // "": all is well
    unsigned n_refuse;   // so many events are not handled at first
    struct event_follower *follower;
};

static enum status handle(void *ud, const struct Event__EventRecord *e, struct err *err)
{
    struct seen *seen = ud;
    char want[64];
    enum status s = STATUS_OK;
    snprintf(want, sizeof want, "{\"n\": %lld}", (long long)e->seq);
    pthread_mutex_lock(&seen->lock);
    if (seen->last && e->seq != seen->last + 1)
        snprintf(seen->wrong, sizeof seen->wrong, "event %lld after %lld", (long long)e->seq,
                 (long long)seen->last);
    else if (!str_eq(e->data, want) || !str_eq(e->kind, "kind"))
        snprintf(seen->wrong, sizeof seen->wrong, "event %lld is another", (long long)e->seq);
    if (seen->n_refuse > 0 && e->seq % 3 == 0) {
        seen->n_refuse--;
        s = err_set(err, STATUS_UNAVAILABLE, "not now");
    } else {
        seen->first = seen->first ? seen->first : e->seq;
        seen->last = e->seq;
    }
    pthread_cond_broadcast(&seen->cond);
    pthread_mutex_unlock(&seen->lock);
    return s;
}

static struct rpc_client *node_client(void *ud, unsigned attempt, struct err *err)
{
    (void)ud;
    (void)attempt;
    (void)err;
    return rig.node;
}

static void follow_with(struct seen *seen, const struct event_follow_opts *o)
{
    struct err err = ERR_INIT;
    pthread_condattr_t a;
    struct event_follow_opts mine = *o;
    *seen = (struct seen){.n_refuse = seen->n_refuse};
    pthread_mutex_init(&seen->lock, NULL);
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&seen->cond, &a);
    pthread_condattr_destroy(&a);
    mine.topic = topic;
    mine.client = node_client;
    mine.handle = handle;
    mine.ud = seen;
    must(event_follow(&mine, &seen->follower, &err), &err);
}

static void follow(struct seen *seen, const char *consumer, int64_t from)
{
    seen->n_refuse = 0;
    follow_with(seen, &(struct event_follow_opts){.consumer = consumer, .from = from});
}

static void unfollow(struct seen *seen)
{
    event_follower_free(TAKE(seen->follower));
    if (seen->wrong[0])
        fail_msg("%s", seen->wrong);
    pthread_cond_destroy(&seen->cond);
    pthread_mutex_destroy(&seen->lock);
}

static void wait_for(struct seen *seen, int64_t last)
{
    int64_t until_us = time_deadline_in_ms(WAIT_MS);
    struct timespec ts = {.tv_sec = (time_t)(until_us / 1000000),
                          .tv_nsec = (long)(until_us % 1000000) * 1000};
    int e = 0;
    pthread_mutex_lock(&seen->lock);
    while (seen->last < last && !seen->wrong[0] && e == 0)
        e = pthread_cond_timedwait(&seen->cond, &seen->lock, &ts);
    int64_t got = seen->last;
    pthread_mutex_unlock(&seen->lock);
    if (seen->wrong[0])
        fail_msg("%s", seen->wrong);
    if (got < last)
        fail_msg("event %lld came last instead of %lld", (long long)got, (long long)last);
}

static struct event_follower_stats stats(struct seen *seen)
{
    struct event_follower_stats st;
    event_follower_get_stats(seen->follower, &st);
    return st;
}

// Once the follower has counted event `last`, which is a moment after it was handled.
static struct event_follower_stats stats_at(struct seen *seen, int64_t last)
{
    int64_t end_us = time_deadline_in_ms(WAIT_MS);
    while (stats(seen).position < last && time_left_ms(end_us) > 0)
        sched_yield();
    return stats(seen);
}

// Appends until one came as it was published: from then on the line is known to carry. Returns the
// last event's number.
static int64_t append_until_published(struct seen *seen, int64_t last)
{
    uint64_t before = stats_at(seen, last).n_published;
    for (int64_t end_us = time_deadline_in_ms(WAIT_MS); time_left_ms(end_us) > 0;) {
        append(++last);
        wait_for(seen, last);
        if (stats_at(seen, last).n_published > before)
            return last;
    }
    fail_msg("nothing that was published arrived");
    return 0;
}

// ---------------------------------------------------------------- tests: losses

static void test_events_are_taken_from_what_is_published(void **state)
{
    struct seen seen;
    struct event_log_stats st;
    (void)state;
    append_all(1, 3);
    follow(&seen, NULL, 0);
    wait_for(&seen, 3);
    int64_t last = append_until_published(&seen, 3);
    append_all(last + 1, last + 50);
    wait_for(&seen, last + 50);
    assert_int_equal(seen.first, 1);
    event_log_get_stats(events, &st);
    assert_true(st.n_published >= 1);
    assert_int_equal(st.n_holders, 1);
    struct event_follower_stats mine = stats_at(&seen, last + 50);
    assert_int_equal(mine.n_published + mine.n_read, last + 50);
    assert_int_equal(mine.position, last + 50);
    unfollow(&seen);
}

static void test_each_once_in_order_on_a_bad_line(void **state)
{
    enum { N = 300, N_DROPPED = 40 };
    struct seen seen;
    (void)state;
    follow(&seen, NULL, 0);
    int64_t last = append_until_published(&seen, 0);
    set_fault(CHAOS);
    append_all(last + 1, last + N);
    last += N;
    wait_for(&seen, last);
    // Until it has met many that were broken and repeated.
    for (int64_t end_us = time_deadline_in_ms(WAIT_MS);
         stats(&seen).n_dropped < N_DROPPED && time_left_ms(end_us);)
        append(++last);
    assert_true(stats(&seen).n_dropped >= N_DROPPED);
    set_fault(PASS);
    last = append_until_published(&seen, last);
    struct event_follower_stats st = stats_at(&seen, last);
    assert_int_equal(st.n_published + st.n_read, last);
    unfollow(&seen);
}

static void test_a_line_that_loses_all_only_delays(void **state)
{
    struct seen seen;
    (void)state;
    set_fault(LOSE);
    follow(&seen, NULL, 0);
    append_all(1, 20);
    wait_for(&seen, 20);
    append_all(21, 40);
    wait_for(&seen, 40);
    assert_int_equal(stats_at(&seen, 40).n_published, 0);
    assert_int_equal(stats_at(&seen, 40).n_read, 40);
    unfollow(&seen);
}

static void test_what_is_not_handled_comes_again(void **state)
{
    struct seen seen = {.n_refuse = 4};
    (void)state;
    follow_with(&seen, &(struct event_follow_opts){.from = 0});
    append_all(1, 12);
    wait_for(&seen, 12);
    assert_int_equal(seen.n_refuse, 0);
    unfollow(&seen);
}

// ---------------------------------------------------------------- tests: positions

static void test_positions_are_kept_by_name(void **state)
{
    struct seen seen, other;
    (void)state;
    append_all(1, 10);
    follow(&seen, "mine", 0);
    wait_for(&seen, 10);
    unfollow(&seen);
    append_all(11, 15);
    follow(&seen, "mine", 0);
    wait_for(&seen, 15);
    assert_int_equal(seen.first, 11);
    unfollow(&seen);
    service_stop();
    append_all(16, 20);
    service_start(0);
    follow(&seen, "mine", -1);
    follow(&other, "another", 0);
    wait_for(&seen, 20);
    wait_for(&other, 20);
    assert_int_equal(seen.first, 16);
    assert_int_equal(other.first, 1);
    unfollow(&seen);
    unfollow(&other);
}

// Its position is there before its first event: nothing is lost when it ends without having any.
static void test_a_consumer_that_starts_at_the_tail_keeps_its_place(void **state)
{
    struct seen seen;
    (void)state;
    append_all(1, 5);
    follow(&seen, "tail", -1);
    wait_for_position(5);
    unfollow(&seen);
    assert_int_equal(seen.first, 0);
    append_all(6, 8);
    follow(&seen, "tail", -1);
    wait_for(&seen, 8);
    assert_int_equal(seen.first, 6);
    unfollow(&seen);
}

// ---------------------------------------------------------------- tests: the calls

static struct rpc_opts opts(const char *token)
{
    return (struct rpc_opts){.token = token, .deadline_us = time_deadline_in_ms(WAIT_MS)};
}

static char *text(const char *s)
{
    return (char *)(uintptr_t)s;
}

static enum status commit(const char *name, int64_t position, bool rewind)
{
    struct rpc_opts o = opts(NULL);
    Event__CommitRequest req = EVENT__COMMIT_REQUEST__INIT;
    AUTO(rpc_message_free_p) Event__Consumer *c = NULL;
    req.topic = topic;
    req.name = text(name);
    req.position = position;
    req.rewind = rewind;
    enum status s = event_event_commit(rig.node, &o, &req, &c, NULL);
    if (s == STATUS_OK) {
        assert_string_equal(c->name, name);
        assert_string_equal(c->owner, "orchestrator");
        assert_int_equal(c->position, position);
    }
    return s;
}

static enum status forget(const char *name)
{
    struct rpc_opts o = opts(NULL);
    Event__ForgetRequest req = EVENT__FORGET_REQUEST__INIT;
    AUTO(rpc_message_free_p) Event__ForgetReply *r = NULL;
    req.topic = topic;
    req.name = text(name);
    req.owner = text("");
    return event_event_forget(rig.node, &o, &req, &r, NULL);
}

static void test_positions_only_grow_unless_asked(void **state)
{
    struct rpc_opts o = opts(NULL);
    struct err err = ERR_INIT;
    Event__ConsumersRequest req = EVENT__CONSUMERS_REQUEST__INIT;
    AUTO(rpc_message_free_p) Event__ConsumersReply *r = NULL;
    (void)state;
    append_all(1, 5);
    assert_int_equal(commit("a", 4, false), STATUS_OK);
    assert_int_equal(commit("a", 4, false), STATUS_OK);
    assert_int_equal(commit("a", 3, false), STATUS_ABORTED);
    assert_int_equal(commit("a", 3, true), STATUS_OK);
    assert_int_equal(commit("a", 6, false), STATUS_OUT_OF_RANGE);
    assert_int_equal(commit("a", -1, false), STATUS_INVALID_ARGUMENT);
    assert_int_equal(commit("no spaces", 1, false), STATUS_INVALID_ARGUMENT);
    assert_int_equal(commit("b", 0, false), STATUS_OK);
    req.topic = topic;
    req.name = text("");
    must(event_event_consumers(rig.node, &o, &req, &r, &err), &err);
    assert_int_equal(r->oldest_seq, 1);
    assert_int_equal(r->next_seq, 6);
    assert_int_equal(r->n_consumers, 2);
    assert_string_equal(r->consumers[0]->name, "a");
    assert_int_equal(r->consumers[0]->position, 3);
    assert_int_equal(r->consumers[1]->position, 0);
    assert_int_equal(forget("a"), STATUS_OK);
    assert_int_equal(forget("a"), STATUS_NOT_FOUND);
}

static enum status subscribe(const char *name, const char *token, struct rpc_client *c,
                             Event__SubscribeReply **ret)
{
    struct rpc_opts o = opts(token);
    Event__SubscribeRequest req = EVENT__SUBSCRIBE_REQUEST__INIT;
    *ret = NULL;
    req.topic = text(name);
    return event_event_subscribe(c, &o, &req, ret, NULL);
}

static void expect_subscribe(const char *name, const char *token, struct rpc_client *c,
                             enum status want)
{
    AUTO(rpc_message_free_p) Event__SubscribeReply *r = NULL;
    assert_int_equal(subscribe(name, token, c, &r), want);
}

static enum status read_once(const char *name, int64_t from, const char *token,
                             struct rpc_client *c)
{
    struct rpc_opts o = opts(token);
    Event__ReadRequest req = EVENT__READ_REQUEST__INIT;
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    AUTO(rpc_message_free_p) Event__EventRecord *e = NULL;
    req.topic = text(name);
    req.subject = text("");
    req.from_seq = from;
    enum status s = event_event_read_open(c, &o, &req, &st, NULL);
    return s == STATUS_OK ? event_event_read_recv(st, &e, NULL) : s;
}

static char *make_token(unsigned roles)
{
    struct rpc_user u = {.roles = roles};
    rand_uuid7(u.id);
    rand_uuid7(u.session);
    str_copy(u.name, sizeof u.name, "somebody");
    return test_rig_token(&rig, &u);
}

static void test_wrong_roles_are_refused(void **state)
{
    AUTO(mem_free_p) char *user = make_token(ROLE_USER | ROLE_CREATOR);
    AUTO(mem_free_p) char *admin = make_token(ROLE_USER | ROLE_ADMIN);
    (void)state;
    append(1);
    expect_subscribe(topic, NULL, rig.node, STATUS_OK);
    expect_subscribe(topic, admin, rig.client, STATUS_OK);
    expect_subscribe(topic, user, rig.client, STATUS_PERMISSION_DENIED);
    expect_subscribe(topic, NULL, rig.client, STATUS_UNAUTHENTICATED);
    expect_subscribe("closed", NULL, rig.node, STATUS_PERMISSION_DENIED);
    expect_subscribe("closed", admin, rig.client, STATUS_OK);
    expect_subscribe("nothing", NULL, rig.node, STATUS_NOT_FOUND);
    // A node that shows a user's token asks as that user.
    expect_subscribe(topic, user, rig.node, STATUS_PERMISSION_DENIED);
    assert_int_equal(read_once(topic, 1, NULL, rig.node), STATUS_OK);
    assert_int_equal(read_once(topic, 1, user, rig.client), STATUS_OK); // none is theirs
    assert_int_equal(read_once(topic, 1, NULL, rig.client), STATUS_UNAUTHENTICATED);
    assert_int_equal(read_once("closed", 0, NULL, rig.node), STATUS_PERMISSION_DENIED);
}

// ---------------------------------------------------------------- tests: forgeries

// Like the last message but for `change`; sealed with a key of our own.
struct forgery {
    const char *what;
    int64_t epoch_by, number_by, publisher_by;
    bool other_topic;
};

static uint64_t get_be64(const uint8_t *p)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < 8; i++)
        v = v << 8 | p[i];
    return v;
}

static void forge(const struct forgery *f)
{
    struct pubsub_writer w;
    struct err err = ERR_INIT;
    AUTO(buf_done) struct buf out;
    static const uint8_t false_notice[] = {0x08, 0x7f}; // last_seq = 127
    pubsub_writer_init(&w, f->other_topic ? "other" : topic);
    pthread_mutex_lock(&line.lock);
    w.publisher = get_be64(line.last + 12) + (uint64_t)f->publisher_by;
    w.epoch = get_be64(line.last + 20) + (uint64_t)f->epoch_by;
    w.number = get_be64(line.last + 28) + (uint64_t)f->number_by - 1;
    pthread_mutex_unlock(&line.lock);
    buf_init(&out, 256);
    must(pubsub_seal(&w, false_notice, sizeof false_notice, &out, &err), &err);
    if (f->other_topic) // so that the SUB filter lets it pass
        memcpy(out.data, line.last, 8);
    line_send(out.data, out.len);
    pubsub_writer_done(&w);
}

static void test_forged_and_replayed_messages_change_nothing(void **state)
{
    static const struct forgery rows[] = {
        {"the next number", 0, 1, 0, false},    {"far ahead", 0, 1000000, 0, false},
        {"an epoch to come", 1, 1, 0, false},   {"an epoch before", -1, 1, 0, false},
        {"another publisher", 0, 1, 1, false},  {"another topic's", 0, 1, 0, true},
        {"a number that was", 0, -1, 0, false},
    };
    enum { N_DROPPED = 500 };
    struct seen seen;
    (void)state;
    follow(&seen, NULL, 0);
    int64_t last = append_until_published(&seen, 0);
    int64_t began_us = time_mono_us(), end_us = time_deadline_in_ms(WAIT_MS);
    while (stats(&seen).n_dropped < N_DROPPED && time_left_ms(end_us)) {
        for (size_t i = 0; i < N_ELEMENTS(rows); i++)
            forge(&rows[i]);
        pthread_mutex_lock(&line.lock);
        line_send(line.last, line.n_last);
        line_send(line.last, 7); // no message at all
        line_send(line.last, PUBSUB_HEADER_SIZE);
        pthread_mutex_unlock(&line.lock);
    }
    assert_true(stats(&seen).n_dropped >= N_DROPPED);
    last = append_until_published(&seen, last);
    append_all(last + 1, last + 10);
    wait_for(&seen, last + 10);
    // Forgeries of unknown epochs make it ask, but not without end: four times, then each second.
    int64_t seconds = (time_mono_us() - began_us) / 1000000;
    assert_in_range(stats(&seen).n_asked, 1, 40 + 5 * seconds); // and once for each session
    unfollow(&seen);
}

// ---------------------------------------------------------------- tests: epochs

static void test_epochs_change_on_time(void **state)
{
    struct seen seen;
    struct event_log_stats st = {0};
    int64_t last = 0;
    (void)state;
    service_stop();
    service_start(300);
    follow(&seen, NULL, 0);
    for (int64_t end_us = time_deadline_in_ms(WAIT_MS); st.n_epochs < 4 && time_left_ms(end_us);) {
        append(++last);
        wait_for(&seen, last);
        event_log_get_stats(events, &st);
    }
    assert_true(st.n_epochs >= 4);
    last = append_until_published(&seen, last); // with the key of a later one
    unfollow(&seen);
}

// One that was let in: opens what it was given the key of.
struct spy {
    pthread_mutex_t lock;
    struct pubsub_reader reader;
    struct pubsub_subscriber *socket;
    int64_t last_seq; // the newest that it learned of
    uint64_t n_sealed;
};

static void spy_message(void *ud, uint8_t *msg, size_t n)
{
    struct spy *spy = ud;
    const uint8_t *payload = NULL;
    size_t size = 0;
    ProtobufCMessage *m = NULL;
    pthread_mutex_lock(&spy->lock);
    if (pubsub_open(&spy->reader, msg, n, time_mono_us(), &payload, &size) != PUBSUB_OPENED)
        spy->n_sealed++;
    else if (rpc_message_unpack(&event__notice__descriptor, payload, size, &m, NULL) == STATUS_OK)
        spy->last_seq = ((Event__Notice *)(void *)m)->last_seq;
    pthread_mutex_unlock(&spy->lock);
    rpc_message_free(m);
}

static void spy_begin(struct spy *spy, const Event__SubscribeReply *r)
{
    static const struct pubsub_events ev = {.message = spy_message, .connected = on_connected};
    struct err err = ERR_INIT;
    struct pubsub_topic t = pubsub_topic_of(topic);
    struct pubsub_grant g = {.publisher = r->publisher, .epoch = r->epoch, .number = r->number};
    *spy = (struct spy){.last_seq = 0};
    assert_int_equal(r->key.len, sizeof g.key);
    memcpy(g.key, r->key.data, sizeof g.key);
    memcpy(g.verify_key, r->verify_key.data, sizeof g.verify_key);
    pthread_mutex_init(&spy->lock, NULL);
    pubsub_reader_init(&spy->reader, topic);
    pubsub_reader_adopt(&spy->reader, &g, time_mono_us());
    must(pubsub_subscriber_new(line_url, &t, &ev, spy, &spy->socket, &err), &err);
}

static void spy_end(struct spy *spy)
{
    pubsub_subscriber_free(spy->socket);
    pthread_mutex_destroy(&spy->lock);
}

static void spy_look(struct spy *spy, int64_t *ret_last, uint64_t *ret_sealed)
{
    pthread_mutex_lock(&spy->lock);
    *ret_last = spy->last_seq;
    *ret_sealed = spy->n_sealed;
    pthread_mutex_unlock(&spy->lock);
}

// revoke: how. The follower, whom nobody revokes, goes on without a gap.
static void check_revoked(const char *token, struct rpc_client *client, atomic_bool *revoke,
                          enum status want)
{
    struct spy spy;
    uint64_t sealed = 0, before = 0;
    int64_t last = 0, known = 0;
    AUTO(rpc_message_free_p) Event__SubscribeReply *r = NULL;
    append(++last);
    assert_int_equal(subscribe(topic, token, client, &r), STATUS_OK);
    spy_begin(&spy, r);
    int64_t end_us = time_deadline_in_ms(WAIT_MS);
    for (; known == 0 && time_left_ms(end_us); spy_look(&spy, &known, &before))
        append(++last);
    assert_true(known > 0);
    atomic_store(revoke, true);
    int64_t secret = last + 1;
    for (; sealed <= before && time_left_ms(end_us); spy_look(&spy, &known, &sealed))
        append(++last);
    assert_true(sealed > before);
    assert_true(known < secret);
    expect_subscribe(topic, token, client, want);
    spy_end(&spy);
}

static void test_a_revoked_login_opens_nothing_that_comes_after(void **state)
{
    struct seen seen;
    AUTO(mem_free_p) char *admin = make_token(ROLE_USER | ROLE_ADMIN);
    (void)state;
    follow(&seen, NULL, 0);
    check_revoked(admin, rig.client, &rig.is_user_revoked, STATUS_UNAUTHENTICATED);
    int64_t last = query_i64("SELECT seq FROM store.event_topic WHERE topic = $1");
    wait_for(&seen, last);
    (void)append_until_published(&seen, last);
    unfollow(&seen);
}

static void test_a_revoked_node_opens_nothing_that_comes_after(void **state)
{
    AUTO(mem_free_p) char *admin = make_token(ROLE_USER | ROLE_ADMIN);
    (void)state;
    expect_subscribe(topic, admin, rig.client, STATUS_OK); // somebody is left to publish for
    check_revoked(NULL, rig.node, &rig.is_node_revoked, STATUS_PERMISSION_DENIED);
}

// ---------------------------------------------------------------- tests: pruning

static unsigned prune(int64_t unread_before_ms, unsigned max)
{
    unsigned n = 0;
    struct err err = ERR_INIT;
    int64_t all_ms = time_wall_ms() + 3600000;
    must(event_prune(db, "store", topic, all_ms, unread_before_ms, max, &n, &err), &err);
    return n;
}

static void test_pruning_spares_what_a_consumer_has_not_read(void **state)
{
    struct seen seen;
    (void)state;
    append_all(1, 10);
    assert_int_equal(commit("slow", 4, false), STATUS_OK);
    assert_int_equal(commit("fast", 9, false), STATUS_OK);
    assert_int_equal(prune(0, 3), 3); // a part at a time
    assert_int_equal(prune(0, 3), 1);
    assert_int_equal(prune(0, 100), 0);
    assert_int_equal(read_once(topic, 4, NULL, rig.node), STATUS_OUT_OF_RANGE);
    follow(&seen, "slow", 0);
    wait_for(&seen, 10);
    assert_int_equal(seen.first, 5);
    unfollow(&seen);
    assert_int_equal(prune(0, 100), 5); // up to 9, where the other one is
    assert_int_equal(forget("fast"), STATUS_OK);
    assert_int_equal(prune(0, 100), 1);
    append(11);
    follow(&seen, "slow", 0);
    wait_for(&seen, 11); // numbers go on
    unfollow(&seen);
}

static void test_what_stays_unread_for_too_long_is_pruned(void **state)
{
    struct seen seen;
    int64_t all_ms = time_wall_ms() + 3600000;
    (void)state;
    append_all(1, 10);
    assert_int_equal(commit("slow", 4, false), STATUS_OK);
    assert_int_equal(prune(all_ms, 8), 8);
    follow(&seen, "slow", 0); // is told, and ends
    for (int64_t end_us = time_deadline_in_ms(WAIT_MS);
         !stats(&seen).has_ended && time_left_ms(end_us);)
        (void)query_i64("SELECT 1 WHERE $1 <> ''");
    assert_true(stats(&seen).has_ended);
    unfollow(&seen);
    assert_int_equal(seen.first, 0);
    seen.n_refuse = 0;
    follow_with(&seen, &(struct event_follow_opts){.consumer = "slow", .skip_pruned = true});
    wait_for(&seen, 10);
    assert_int_equal(seen.first, 9);
    unfollow(&seen);
}

// ---------------------------------------------------------------- tests: addresses

static void test_the_address_told_has_the_real_port(void **state)
{
    static const struct {
        const char *url, *advertise, *want;
    } rows[] = {
        {"tcp://127.0.0.1:0", "tcp://node-a.example:0", "tcp://node-a.example:%s"},
        {"tcp://127.0.0.1:0", "tcp://node-a.example:7001", "tcp://node-a.example:7001"},
        {"tcp://127.0.0.1:0", NULL, "tcp://127.0.0.1:%s"},
        {"inproc://follow-test-address", "ipc:///run/a", "ipc:///run/a"},
    };
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct err err = ERR_INIT;
        const struct event_topic t = {"auth", 0};
        AUTO(event_log_free_p) struct event_log *l = NULL;
        char url[RPC_URL_SIZE], want[RPC_URL_SIZE];
        must(event_log_new(db, &(struct db_opts){.conninfo = test_pg_conninfo(pg)}, "store", &t, 1,
                           NULL, &l, &err),
             &err);
        must(event_log_publish(
                 l,
                 &(struct event_publish_opts){.url = rows[i].url, .advertise = rows[i].advertise},
                 url, &err),
             &err);
        const char *part = strstr(rows[i].want, "%s");
        snprintf(want, sizeof want, "%.*s%s",
                 part ? (int)(part - rows[i].want) : (int)strlen(rows[i].want), rows[i].want,
                 part ? strrchr(url, ':') + 1 : "");
        assert_string_equal(url, want);
        assert_false(part && strcmp(strrchr(url, ':'), ":0") == 0);
    }
}

// ---------------------------------------------------------------- all

static int setup(void **state)
{
    (void)state;
    pg = test_pg_new();
    db = test_pg_db(pg, 10, true);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    db_free(db);
    test_pg_free(pg);
    rpc_fini();
    return 0;
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, each_setup, each_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_events_are_taken_from_what_is_published),
        TEST(test_each_once_in_order_on_a_bad_line),
        TEST(test_a_line_that_loses_all_only_delays),
        TEST(test_what_is_not_handled_comes_again),
        TEST(test_positions_are_kept_by_name),
        TEST(test_a_consumer_that_starts_at_the_tail_keeps_its_place),
        TEST(test_positions_only_grow_unless_asked),
        TEST(test_wrong_roles_are_refused),
        TEST(test_forged_and_replayed_messages_change_nothing),
        TEST(test_epochs_change_on_time),
        TEST(test_a_revoked_login_opens_nothing_that_comes_after),
        TEST(test_a_revoked_node_opens_nothing_that_comes_after),
        TEST(test_pruning_spares_what_a_consumer_has_not_read),
        TEST(test_what_stays_unread_for_too_long_is_pruned),
        TEST(test_the_address_told_has_the_real_port),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
