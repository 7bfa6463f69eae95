// The event log over the real wire and a private PostgreSQL: numbers without gaps whatever happens
// at once, reading and following, who sees what, and a database that goes away.
#include "event/event.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cauce/event.rpc.h"

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "support/pg.h"
#include "support/rig.h"

static struct test_pg *pg;
static struct db *db;
static struct test_rig rig;
static struct event_log *events;
static struct rpc_user ann, bob, root;
static char *ann_token, *bob_token, *root_token;

static void must(enum status s, const struct err *err)
{
    if (s != STATUS_OK)
        fail_msg("%s: %s", status_name(s), err->msg);
}

static char *make_user(struct rpc_user *u, const char *name, unsigned roles)
{
    *u = (struct rpc_user){.roles = roles};
    rand_uuid7(u->id);
    rand_uuid7(u->session);
    str_copy(u->name, sizeof u->name, name);
    return test_rig_token(&rig, u);
}

static int setup(void **state)
{
    static const struct event_topic topics[] = {
        {"store", ROLE_NODE_ORCHESTRATOR}, {"crowd", 0}, {"long", 0}, {"down", 0}, {"empty", 0}};
    struct err err = ERR_INIT;
    (void)state;
    pg = test_pg_new();
    db = test_pg_db(pg, 10, true);
    test_rig_init(&rig);
    ann_token = make_user(&ann, "ann", ROLE_USER);
    bob_token = make_user(&bob, "bob", ROLE_USER);
    root_token = make_user(&root, "root", ROLE_USER | ROLE_ADMIN);
    must(event_log_new(db, &(struct db_opts){.conninfo = test_pg_conninfo(pg)}, "store", topics,
                       N_ELEMENTS(topics), NULL, &events, &err),
         &err);
    must(event_log_serve(events, rig.server, &err), &err);
    test_rig_listen(&rig);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    test_rig_stop(&rig);
    event_log_free(events);
    test_rig_done(&rig);
    db_free(db);
    test_pg_free(pg);
    mem_free(ann_token);
    mem_free(bob_token);
    mem_free(root_token);
    rpc_fini();
    return 0;
}

// ---------------------------------------------------------------- helpers

struct entry {
    const char *topic, *kind, *subject, *owner;
    bool fail;
};

static enum status append_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct entry *e = ud;
    enum status s = event_append(c, "store", e->topic, e->kind, e->subject, e->owner,
                                 "{\"a\": \"\\u00fc\"}", err);
    if (s == STATUS_OK && e->fail)
        return err_set(err, STATUS_CANCELLED, "rolled back on purpose");
    return s;
}

static void append(const char *topic, const char *kind, const char *subject, const char *owner)
{
    struct err err = ERR_INIT;
    struct entry e = {.topic = topic, .kind = kind, .subject = subject, .owner = owner};
    must(db_tx(db, DB_READ_COMMITTED, append_tx, &e, &err), &err);
}

struct want {
    const char *topic, *subject, *token;
    int64_t from;
    bool follow;
    struct rpc_client *client; // NULL: the users'
};

static struct rpc_stream *open_stream(const struct want *w)
{
    struct err err = ERR_INIT;
    struct rpc_stream *s = NULL;
    struct rpc_opts o = {.token = w->token, .deadline_us = time_deadline_in_ms(30000)};
    Event__ReadRequest q = EVENT__READ_REQUEST__INIT;
    q.topic = (char *)(uintptr_t)w->topic;
    q.subject = (char *)(uintptr_t)(w->subject ? w->subject : "");
    q.from_seq = w->from, q.follow = w->follow;
    must(event_event_read_open(w->client ? w->client : rig.client, &o, &q, &s, &err), &err);
    return s;
}

static enum status receive(struct rpc_stream *s, Event__EventRecord **ret, struct err *err)
{
    *ret = NULL;
    return event_event_read_recv(s, ret, err);
}

static void expect_event(struct rpc_stream *s, int64_t seq, const char *kind)
{
    struct err err = ERR_INIT;
    AUTO(rpc_message_free_p) Event__EventRecord *e = NULL;
    must(receive(s, &e, &err), &err);
    if (!e)
        fail_msg("the stream ended before event %lld", (long long)seq);
    if (e->seq != seq)
        fail_msg("event %lld instead of %lld", (long long)e->seq, (long long)seq);
    assert_string_equal(e->kind, kind);
    assert_string_equal(e->data, "{\"a\": \"ü\"}");
    assert_true(llabs((long long)e->time->seconds - time_wall_ms() / 1000) < 60);
}

static void expect_end(struct rpc_stream *s, enum status want)
{
    struct err err = ERR_INIT;
    AUTO(rpc_message_free_p) Event__EventRecord *e = NULL;
    enum status st = receive(s, &e, &err);
    if (st != want || e)
        fail_msg("%s instead of %s: %s", status_name(st), status_name(want), err.msg);
}

static void expect_refused(const struct want *w, enum status want)
{
    AUTO(rpc_stream_free_p) struct rpc_stream *s = open_stream(w);
    expect_end(s, want);
}

// ---------------------------------------------------------------- tests

static void test_read_filters_by_owner_and_subject(void **state)
{
    (void)state;
    append("store", "one", "x", ann.id);
    append("store", "two", "y", bob.id);
    append("store", "three", "x", NULL);
    append("store", "four", "y", ann.id);
    {
        AUTO(rpc_stream_free_p)
        struct rpc_stream *s = open_stream(&(struct want){.topic = "store", .token = root_token});
        expect_event(s, 1, "one");
        expect_event(s, 2, "two");
        expect_event(s, 3, "three");
        expect_event(s, 4, "four");
        expect_end(s, STATUS_OK);
    }
    {
        AUTO(rpc_stream_free_p)
        struct rpc_stream *s = open_stream(&(struct want){.topic = "store", .token = ann_token});
        expect_event(s, 1, "one");
        expect_event(s, 4, "four");
        expect_end(s, STATUS_OK);
    }
    {
        AUTO(rpc_stream_free_p)
        struct rpc_stream *s = open_stream(
            &(struct want){.topic = "store", .token = ann_token, .subject = "y", .from = 2});
        expect_event(s, 4, "four");
        expect_end(s, STATUS_OK);
    }
    AUTO(rpc_stream_free_p)
    struct rpc_stream *s =
        open_stream(&(struct want){.topic = "store", .subject = "x", .client = rig.node});
    expect_event(s, 1, "one");
    expect_event(s, 3, "three");
    expect_end(s, STATUS_OK);
}

static void test_refusals(void **state)
{
    (void)state;
    expect_refused(&(struct want){.topic = "nothing", .token = root_token}, STATUS_NOT_FOUND);
    expect_refused(&(struct want){.topic = "store", .token = root_token, .from = -2},
                   STATUS_INVALID_ARGUMENT);
    expect_refused(&(struct want){.topic = "store"}, STATUS_UNAUTHENTICATED);
    expect_refused(&(struct want){.topic = "empty", .token = root_token}, STATUS_OK);
    expect_refused(&(struct want){.topic = "empty", .client = rig.node}, STATUS_PERMISSION_DENIED);
}

static void test_follow_gets_what_comes(void **state)
{
    (void)state;
    AUTO(rpc_stream_free_p)
    struct rpc_stream *all =
        open_stream(&(struct want){.topic = "store", .token = root_token, .follow = true});
    for (int64_t i = 1; i <= 4; i++)
        expect_event(all, i, i == 1 ? "one" : i == 2 ? "two" : i == 3 ? "three" : "four");
    AUTO(rpc_stream_free_p)
    struct rpc_stream *mine =
        open_stream(&(struct want){.topic = "store", .token = bob_token, .follow = true});
    expect_event(mine, 2, "two");
    append("store", "five", "z", ann.id);
    expect_event(all, 5, "five");
    append("store", "six", "z", bob.id);
    expect_event(all, 6, "six");
    expect_event(mine, 6, "six");
    rpc_stream_cancel(mine);
    expect_end(mine, STATUS_CANCELLED);
    append("store", "seven", "z", NULL);
    expect_event(all, 7, "seven");
}

static void *write_until_told(void *arg)
{
    while (!atomic_load((atomic_bool *)arg))
        append("store", "later", "z", NULL);
    return NULL;
}

// Which event is the first after the open depends on who was faster; none is from before.
static void test_from_minus_one_skips_the_past(void **state)
{
    (void)state;
    pthread_t writer;
    atomic_bool stop = false;
    struct err err = ERR_INIT;
    AUTO(rpc_message_free_p) Event__EventRecord *first = NULL;
    AUTO(rpc_message_free_p) Event__EventRecord *second = NULL;
    expect_refused(&(struct want){.topic = "store", .token = root_token, .from = -1}, STATUS_OK);
    AUTO(rpc_stream_free_p)
    struct rpc_stream *s = open_stream(
        &(struct want){.topic = "store", .token = root_token, .from = -1, .follow = true});
    assert_int_equal(0, pthread_create(&writer, NULL, write_until_told, &stop));
    enum status a = receive(s, &first, &err);
    enum status b = receive(s, &second, &err);
    atomic_store(&stop, true);
    pthread_join(writer, NULL);
    must(a, &err);
    must(b, &err);
    assert_true(first->seq > 7);
    assert_true(second->seq == first->seq + 1);
}

static void test_rolled_back_leaves_no_gap(void **state)
{
    (void)state;
    struct entry e = {.topic = "long", .kind = "no", .subject = "", .fail = true};
    append("long", "yes", "", NULL);
    assert_int_equal(db_tx(db, DB_READ_COMMITTED, append_tx, &e, NULL), STATUS_CANCELLED);
    append("long", "yes", "", NULL);
    AUTO(rpc_stream_free_p)
    struct rpc_stream *s = open_stream(&(struct want){.topic = "long", .token = root_token});
    expect_event(s, 1, "yes");
    expect_event(s, 2, "yes");
    expect_end(s, STATUS_OK);
}

static void test_long_log_is_read_in_pages(void **state)
{
    (void)state;
    enum { N = 1500 };
    struct err err = ERR_INIT;
    must(db_query(db,
                  "INSERT INTO store.event SELECT 'long', g, now(), 'bulk', '', NULL,"
                  " '{\"a\": \"ü\"}' FROM generate_series(3, 1500) g",
                  NULL, 0, NULL, &err),
         &err);
    must(db_query(db, "UPDATE store.event_topic SET seq = 1500 WHERE topic = 'long'", NULL, 0, NULL,
                  &err),
         &err);
    AUTO(rpc_stream_free_p)
    struct rpc_stream *s = open_stream(&(struct want){.topic = "long", .token = root_token});
    for (int64_t i = 1; i <= N; i++)
        expect_event(s, i, i < 3 ? "yes" : "bulk");
    expect_end(s, STATUS_OK);
}

enum { N_WRITERS = 5, N_EACH = 30 };

static void *write_crowd(void *arg)
{
    for (int i = 0; i < N_EACH; i++) {
        struct entry e = {.topic = "crowd", .kind = "crowd", .subject = "", .fail = i % 5 == 4};
        enum status s = db_tx(db, DB_READ_COMMITTED, append_tx, &e, NULL);
        if (s != (e.fail ? STATUS_CANCELLED : STATUS_OK))
            return NULL;
    }
    return arg;
}

static void test_concurrent_writers_have_no_gaps(void **state)
{
    (void)state;
    pthread_t threads[N_WRITERS];
    AUTO(rpc_stream_free_p)
    struct rpc_stream *s =
        open_stream(&(struct want){.topic = "crowd", .token = root_token, .follow = true});
    for (size_t i = 0; i < N_WRITERS; i++)
        assert_int_equal(0, pthread_create(&threads[i], NULL, write_crowd, db));
    for (int64_t seq = 1; seq <= N_WRITERS * N_EACH * 4 / 5; seq++)
        expect_event(s, seq, "crowd");
    for (size_t i = 0; i < N_WRITERS; i++) {
        void *ok = NULL;
        pthread_join(threads[i], &ok);
        assert_non_null(ok);
    }
}

static enum status locked_tx(struct db_conn *c, void *ud, struct err *err)
{
    enum status s = event_lock(c, "store", err);
    return s == STATUS_OK ? append_tx(c, ud, err) : s;
}

static void *write_serializable(void *arg)
{
    struct entry e = {.topic = "crowd", .kind = "crowd", .subject = ""};
    for (int i = 0; i < N_EACH; i++)
        if (db_tx(db, DB_SERIALIZABLE, locked_tx, &e, NULL) != STATUS_OK)
            return NULL;
    return arg;
}

static void test_serializable_writers_wait_instead_of_failing(void **state)
{
    (void)state;
    pthread_t threads[N_WRITERS];
    for (size_t i = 0; i < N_WRITERS; i++)
        assert_int_equal(0, pthread_create(&threads[i], NULL, write_serializable, db));
    for (size_t i = 0; i < N_WRITERS; i++) {
        void *ok = NULL;
        pthread_join(threads[i], &ok);
        assert_non_null(ok);
    }
}

// A follower neither ends nor misses anything when the database restarts under it.
static void test_follower_survives_a_restart(void **state)
{
    (void)state;
    AUTO(rpc_stream_free_p)
    struct rpc_stream *s =
        open_stream(&(struct want){.topic = "down", .token = root_token, .follow = true});
    append("down", "before", "", NULL);
    expect_event(s, 1, "before");
    test_pg_stop(pg);
    test_pg_start(pg);
    append("down", "after", "", NULL);
    expect_event(s, 2, "after");
}

// Last: the log is closed afterwards.
static void test_close_ends_followers(void **state)
{
    (void)state;
    AUTO(rpc_stream_free_p)
    struct rpc_stream *s =
        open_stream(&(struct want){.topic = "down", .token = root_token, .follow = true});
    expect_event(s, 1, "before");
    event_log_close(events);
    expect_event(s, 2, "after");
    expect_end(s, STATUS_UNAVAILABLE);
    expect_refused(&(struct want){.topic = "down", .token = root_token}, STATUS_UNAVAILABLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_filters_by_owner_and_subject),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_follow_gets_what_comes),
        cmocka_unit_test(test_from_minus_one_skips_the_past),
        cmocka_unit_test(test_rolled_back_leaves_no_gap),
        cmocka_unit_test(test_long_log_is_read_in_pages),
        cmocka_unit_test(test_concurrent_writers_have_no_gaps),
        cmocka_unit_test(test_serializable_writers_wait_instead_of_failing),
        cmocka_unit_test(test_follower_survives_a_restart),
        cmocka_unit_test(test_close_ends_followers),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
