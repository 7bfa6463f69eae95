// lib/db against a private PostgreSQL: types, errors, transactions under contention, and a server
// that goes away.
#include "db/db.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/time.h"
#include "support/pg.h"

static struct test_pg *pg;
static struct db *db;

static void run(const char *sql)
{
    struct err err = ERR_INIT;
    if (db_query(db, sql, NULL, 0, NULL, &err) != STATUS_OK)
        fail_msg("%s: %s", sql, err.msg);
}

static int setup(void **state)
{
    (void)state;
    pg = test_pg_new();
    db = test_pg_db(pg, 8, false);
    run("CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL CHECK (n >= 0))");
    run("CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES counter)");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    db_free(db);
    test_pg_free(pg);
    return 0;
}

static void test_types_round_trip(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    static const uint8_t bytes[] = {0, 1, 0xff, 'x', 0};
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        db, "SELECT $1::text, $2::bigint, $3::boolean, $4::double precision, $5::bytea, $6::text",
        DB_PARAMS(DB_TEXT("grüße"), DB_I64(INT64_MIN), DB_BOOL(true), DB_DOUBLE(0.1),
                  DB_BYTES(bytes, sizeof bytes), DB_NULL),
        &r, &err);
    assert_int_equal(s, STATUS_OK);
    assert_int_equal(db_result_n_rows(r), 1);
    assert_string_equal(db_text(r, 0, 0), "grüße");
    assert_true(db_i64(r, 0, 1) == INT64_MIN);
    assert_true(db_bool(r, 0, 2));
    assert_true(db_double(r, 0, 3) == 0.1);
    size_t n = 0;
    const uint8_t *p = db_bytes(r, 0, 4, &n);
    assert_int_equal(n, sizeof bytes);
    assert_memory_equal(p, bytes, sizeof bytes);
    assert_true(db_is_null(r, 0, 5));
    assert_null(db_text(r, 0, 5));
    assert_true(db_i64(r, 0, 5) == 0);
}

static void test_null_text_and_empty_bytes(void **state)
{
    (void)state;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    const char *none = NULL;
    assert_int_equal(db_query(db, "SELECT $1::text IS NULL, length($2::bytea), $3::text",
                              DB_PARAMS(DB_TEXT(none), DB_BYTES(NULL, 0), DB_TEXT("")), &r, NULL),
                     STATUS_OK);
    assert_true(db_bool(r, 0, 0));
    assert_false(db_is_null(r, 0, 1));
    assert_true(db_i64(r, 0, 1) == 0);
    assert_string_equal(db_text(r, 0, 2), "");
}

static void test_errors_follow_sqlstate(void **state)
{
    (void)state;
    static const struct {
        const char *sql;
        enum status status;
    } rows[] = {
        {"INSERT INTO counter VALUES (100, 1), (100, 2)", STATUS_ALREADY_EXISTS},
        {"INSERT INTO counter VALUES (101, -1)", STATUS_FAILED_PRECONDITION},
        {"INSERT INTO child VALUES (1, 999)", STATUS_FAILED_PRECONDITION},
        {"SELECT 'secret-value'::uuid", STATUS_INVALID_ARGUMENT},
        {"SELECT 1/0", STATUS_INVALID_ARGUMENT},
        {"SELECT nothing_there", STATUS_INTERNAL},
        {"DO $$ BEGIN RAISE serialization_failure; END $$", STATUS_ABORTED},
        {"DO $$ BEGIN RAISE disk_full; END $$", STATUS_RESOURCE_EXHAUSTED},
        {"DO $$ BEGIN RAISE query_canceled; END $$", STATUS_DEADLINE_EXCEEDED},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct err err = ERR_INIT;
        enum status s = db_query(db, rows[i].sql, NULL, 0, NULL, &err);
        if (s != rows[i].status)
            fail_msg("%s: %s %s", rows[i].sql, status_name(s), err.msg);
        assert_int_equal(err.code, s);
        assert_null(strstr(err.msg, "secret-value"));
    }
}

static enum status violate(struct db_conn *c, void *ud, struct err *err)
{
    char *constraint = ud;
    enum status s = db_exec(c, "INSERT INTO counter VALUES ($1, $2)",
                            DB_PARAMS(DB_I64(1), DB_I64(-5)), NULL, err);
    snprintf(constraint, 64, "%s", db_constraint(c));
    return s;
}

static void test_constraint_is_named(void **state)
{
    (void)state;
    char constraint[64] = "";
    assert_int_equal(db_tx(db, DB_READ_COMMITTED, violate, constraint, NULL),
                     STATUS_FAILED_PRECONDITION);
    assert_string_equal(constraint, "counter_n_check");
}

static void test_statement_timeout_is_deadline_exceeded(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    AUTO(db_free_p)
    struct db *d = db_new(
        &(struct db_opts){.conninfo = test_pg_conninfo(pg), .statement_timeout_ms = 100}, &err);
    assert_non_null(d);
    assert_int_equal(db_query(d, "SELECT pg_sleep(60)", NULL, 0, NULL, &err),
                     STATUS_DEADLINE_EXCEEDED);
    assert_int_equal(db_ping(d, &err), STATUS_OK);
}

static enum status hold(struct db_conn *c, void *ud, struct err *err)
{
    struct db *d = ud;
    (void)c;
    return db_ping(d, err);
}

static void test_no_free_connection_is_unavailable(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    AUTO(db_free_p)
    struct db *d = db_new(&(struct db_opts){.conninfo = test_pg_conninfo(pg),
                                            .statement_timeout_ms = 100,
                                            .max_conns = 1},
                          &err);
    assert_non_null(d);
    assert_int_equal(db_tx(d, DB_READ_COMMITTED, hold, d, &err), STATUS_UNAVAILABLE);
    assert_int_equal(db_ping(d, &err), STATUS_OK);
}

static enum status insert_and_fail(struct db_conn *c, void *ud, struct err *err)
{
    (void)ud;
    enum status s = db_exec(c, "INSERT INTO counter VALUES (7, 7)", NULL, 0, NULL, err);
    return s == STATUS_OK ? err_set(err, STATUS_NOT_FOUND, "changed my mind") : s;
}

static enum status swallow_error(struct db_conn *c, void *ud, struct err *err)
{
    (void)ud, (void)err;
    enum status s = db_exec(c, "SELECT 1/0", NULL, 0, NULL, NULL);
    return s == STATUS_INVALID_ARGUMENT ? STATUS_OK : STATUS_INTERNAL;
}

static int64_t count(const char *sql)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    struct err err = ERR_INIT;
    if (db_query(db, sql, NULL, 0, &r, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return db_i64(r, 0, 0);
}

static void test_tx_rolls_back(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    assert_int_equal(db_tx(db, DB_SERIALIZABLE, insert_and_fail, NULL, &err), STATUS_NOT_FOUND);
    assert_true(count("SELECT count(*) FROM counter WHERE id = 7") == 0);
    // An error that the function hid must not look like a commit.
    assert_int_equal(db_tx(db, DB_READ_COMMITTED, swallow_error, NULL, &err), STATUS_INTERNAL);
    assert_int_equal(db_ping(db, &err), STATUS_OK);
}

// ---------------------------------------------------------------- contention

enum { N_THREADS = 6, N_ADDS = 25 };

static enum status add_one(struct db_conn *c, void *ud, struct err *err)
{
    (void)ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c, "SELECT n FROM counter WHERE id = 50", NULL, 0, &r, err);
    if (s != STATUS_OK)
        return s;
    return db_exec(c, "UPDATE counter SET n = $1 WHERE id = 50",
                   DB_PARAMS(DB_I64(db_i64(r, 0, 0) + 1)), NULL, err);
}

static void *add_many(void *arg)
{
    int *n_ok = arg;
    for (int i = 0; i < N_ADDS; i++) {
        enum status s = db_tx(db, DB_SERIALIZABLE, add_one, NULL, NULL);
        if (s == STATUS_OK)
            ++*n_ok;
        else if (s != STATUS_ABORTED)
            *n_ok = -1000000;
    }
    return NULL;
}

// Read, add, write back loses updates unless failed serializations are noticed and repeated.
static void test_serialization_failures_are_retried(void **state)
{
    (void)state;
    pthread_t threads[N_THREADS];
    int n_ok[N_THREADS] = {0}, total = 0;
    run("INSERT INTO counter VALUES (50, 0)");
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(0, pthread_create(&threads[i], NULL, add_many, &n_ok[i]));
    for (int i = 0; i < N_THREADS; i++) {
        pthread_join(threads[i], NULL);
        total += n_ok[i];
    }
    assert_true(count("SELECT n FROM counter WHERE id = 50") == total);
    assert_true(total >= N_THREADS * N_ADDS * 9 / 10);
}

static enum status always_conflicts(struct db_conn *c, void *ud, struct err *err)
{
    ++*(int *)ud;
    return db_exec(c, "DO $$ BEGIN RAISE serialization_failure; END $$", NULL, 0, NULL, err);
}

static enum status own_abort(struct db_conn *c, void *ud, struct err *err)
{
    (void)c;
    ++*(int *)ud;
    return err_set(err, STATUS_ABORTED, "version changed");
}

static void test_retries_are_bounded_and_only_for_the_database(void **state)
{
    (void)state;
    int n = 0;
    assert_int_equal(db_tx(db, DB_SERIALIZABLE, always_conflicts, &n, NULL), STATUS_ABORTED);
    assert_int_equal(n, 9);
    n = 0;
    assert_int_equal(db_tx(db, DB_SERIALIZABLE, own_abort, &n, NULL), STATUS_ABORTED);
    assert_int_equal(n, 1);
}

static void test_many_statements_run_unprepared(void **state)
{
    (void)state;
    AUTO(db_free_p) struct db *one = test_pg_db(pg, 1, false);
    for (int i = 0; i < 600; i++) {
        AUTO(mem_free_p) char *sql = mem_printf("SELECT %d + $1::int", i);
        AUTO(db_result_free_p) struct db_result *r = NULL;
        assert_int_equal(db_query(one, sql, DB_PARAMS(DB_I64(1)), &r, NULL), STATUS_OK);
        assert_true(db_i64(r, 0, 0) == i + 1);
    }
}

// ---------------------------------------------------------------- LISTEN, and a server that stops

struct heard {
    int fd; // counts calls
    pthread_mutex_t lock;
    char last[64];
    int n_connects;
};

static void on_notify(void *ud, const char *channel, const char *payload)
{
    struct heard *h = ud;
    pthread_mutex_lock(&h->lock);
    if (payload)
        snprintf(h->last, sizeof h->last, "%s:%s", channel, payload);
    else
        h->n_connects++;
    pthread_mutex_unlock(&h->lock);
    eventfd_write(h->fd, 1);
}

static void wait_call(struct heard *h)
{
    struct pollfd p = {.fd = h->fd, .events = POLLIN};
    eventfd_t n;
    assert_int_equal(poll(&p, 1, 20000), 1);
    assert_int_equal(eventfd_read(h->fd, &n), 0);
}

static void expect_notification(struct heard *h)
{
    run("SELECT pg_notify('tidings', 'hello')");
    wait_call(h);
    pthread_mutex_lock(&h->lock);
    assert_string_equal(h->last, "tidings:hello");
    h->last[0] = '\0';
    pthread_mutex_unlock(&h->lock);
}

static void test_server_stops_and_comes_back(void **state)
{
    (void)state;
    struct heard h = {.fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC),
                      .lock = PTHREAD_MUTEX_INITIALIZER};
    struct err err = ERR_INIT;
    struct db_listener *l = db_listen(&(struct db_opts){.conninfo = test_pg_conninfo(pg)},
                                      (const char *const[]){"tidings"}, 1, on_notify, &h, &err);
    assert_non_null(l);
    wait_call(&h);
    expect_notification(&h);

    test_pg_stop(pg);
    int64_t start_ms = time_mono_ms();
    for (int i = 0; i < 20; i++)
        assert_int_equal(db_ping(db, &err), STATUS_UNAVAILABLE);
    assert_true(time_mono_ms() - start_ms < 2000);

    test_pg_start(pg);
    assert_int_equal(db_ping(db, &err), STATUS_OK);
    wait_call(&h);
    expect_notification(&h);
    pthread_mutex_lock(&h.lock);
    assert_int_equal(h.n_connects, 2);
    pthread_mutex_unlock(&h.lock);

    // Idle connections that died with the server are noticed before they are used.
    assert_int_equal(db_tx(db, DB_READ_COMMITTED, hold, db, &err), STATUS_OK);
    test_pg_stop(pg);
    test_pg_start(pg);
    assert_int_equal(db_tx(db, DB_READ_COMMITTED, hold, db, &err), STATUS_OK);
    wait_call(&h);
    db_listener_free(l);
    close(h.fd);
}

static enum status kill_server_inside(struct db_conn *c, void *ud, struct err *err)
{
    (void)ud;
    enum status s = db_exec(c, "INSERT INTO counter VALUES (60, 1)", NULL, 0, NULL, err);
    if (s != STATUS_OK)
        return s;
    test_pg_kill(pg);
    return STATUS_OK;
}

static void test_killed_inside_transaction_is_unavailable(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    assert_int_equal(db_tx(db, DB_READ_COMMITTED, kill_server_inside, NULL, &err),
                     STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.msg, "outcome unknown"));
    test_pg_start(pg);
    assert_true(count("SELECT count(*) FROM counter WHERE id = 60") == 0);
}

static void test_bad_conninfo_and_nobody_there(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    assert_null(db_new(&(struct db_opts){.conninfo = "nonsense=1"}, &err));
    assert_int_equal(err.code, STATUS_INVALID_ARGUMENT);
    AUTO(db_free_p)
    struct db *d = db_new(&(struct db_opts){.conninfo = "host=/nonexistent user=x"}, &err);
    assert_non_null(d);
    assert_int_equal(db_ping(d, &err), STATUS_UNAVAILABLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types_round_trip),
        cmocka_unit_test(test_null_text_and_empty_bytes),
        cmocka_unit_test(test_errors_follow_sqlstate),
        cmocka_unit_test(test_constraint_is_named),
        cmocka_unit_test(test_statement_timeout_is_deadline_exceeded),
        cmocka_unit_test(test_no_free_connection_is_unavailable),
        cmocka_unit_test(test_tx_rolls_back),
        cmocka_unit_test(test_serialization_failures_are_retried),
        cmocka_unit_test(test_retries_are_bounded_and_only_for_the_database),
        cmocka_unit_test(test_many_statements_run_unprepared),
        cmocka_unit_test(test_server_stops_and_comes_back),
        cmocka_unit_test(test_killed_inside_transaction_is_unavailable),
        cmocka_unit_test(test_bad_conninfo_and_nobody_there),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
