// The migration runner: order, checksums, concurrent runners, and this checkout's own files.
#include "db/db.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/auto.h"
#include "support/pg.h"

static struct test_pg *pg;
static struct db *db;
static char dir[] = "/tmp/cauce-migrate-XXXXXX";

static const char *const names[] = {
    "0001_one.up.sql",   "0001_one.down.sql", "0002_two.up.sql",
    "0002_two.down.sql", "0003_bad.up.sql",   "notes.txt",
};

static void put(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void drop(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

static int setup(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir));
    pg = test_pg_new();
    db = test_pg_db(pg, 8, false);
    put("0001_one.up.sql", "CREATE SCHEMA m; CREATE TABLE m.one (id int); -- two statements\n");
    put("0001_one.down.sql", "DROP SCHEMA m CASCADE;");
    put("0002_two.up.sql", "INSERT INTO m.one VALUES (1);");
    put("0002_two.down.sql", "DELETE FROM m.one;");
    put("notes.txt", "not a migration");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(names); i++)
        drop(names[i]);
    rmdir(dir);
    db_free(db);
    test_pg_free(pg);
    return 0;
}

static int64_t rows_of_one(void)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    assert_int_equal(db_query(db, "SELECT count(*) FROM m.one", NULL, 0, &r, NULL), STATUS_OK);
    return db_i64(r, 0, 0);
}

static void *migrate_thread(void *arg)
{
    unsigned *n = arg;
    return db_migrate(db, dir, n, NULL) == STATUS_OK ? arg : NULL;
}

static void test_concurrent_runners_apply_once(void **state)
{
    (void)state;
    pthread_t threads[4];
    unsigned applied[4] = {0}, total = 0;
    struct err err = ERR_INIT;
    assert_int_equal(db_migrate_check(db, dir, &err), STATUS_FAILED_PRECONDITION);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(0, pthread_create(&threads[i], NULL, migrate_thread, &applied[i]));
    for (size_t i = 0; i < 4; i++) {
        void *ok = NULL;
        pthread_join(threads[i], &ok);
        assert_non_null(ok);
        total += applied[i];
    }
    assert_int_equal(total, 2);
    assert_true(rows_of_one() == 1);
    assert_int_equal(db_migrate_check(db, dir, &err), STATUS_OK);
}

static void test_failed_migration_leaves_nothing(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    unsigned n = 9;
    put("0003_bad.up.sql", "INSERT INTO m.one VALUES (2); SELECT nothing_there;");
    assert_int_equal(db_migrate(db, dir, &n, &err), STATUS_INTERNAL);
    assert_non_null(strstr(err.msg, "0003_bad"));
    assert_int_equal(n, 0);
    assert_true(rows_of_one() == 1);
    assert_int_equal(db_migrate_check(db, dir, &err), STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(err.msg, "0003_bad"));
    drop("0003_bad.up.sql");
    assert_int_equal(db_migrate(db, dir, &n, &err), STATUS_OK);
}

static void test_changed_or_missing_file_is_refused(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    unsigned n;
    put("0002_two.up.sql", "INSERT INTO m.one VALUES (3);");
    assert_int_equal(db_migrate(db, dir, &n, &err), STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(err.msg, "0002_two was changed"));
    drop("0002_two.up.sql");
    assert_int_equal(db_migrate(db, dir, &n, &err), STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(err.msg, "missing"));
    put("0002_two.up.sql", "INSERT INTO m.one VALUES (1);");
    assert_int_equal(db_migrate(db, dir, &n, &err), STATUS_OK);
    assert_int_equal(n, 0);
}

static void test_down_and_up_again(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    unsigned n = 0;
    assert_int_equal(db_migrate_down(db, dir, 1, &n, &err), STATUS_OK);
    assert_int_equal(n, 1);
    assert_true(rows_of_one() == 0);
    assert_int_equal(db_migrate_down(db, dir, 0, &n, &err), STATUS_OK);
    assert_int_equal(n, 1);
    assert_int_equal(db_migrate(db, dir, &n, &err), STATUS_OK);
    assert_int_equal(n, 2);
    assert_int_equal(db_migrate_down(db, dir, 0, &n, &err), STATUS_OK);
}

static void test_no_folder_is_not_found(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    assert_int_equal(db_migrate(db, "/nonexistent", NULL, &err), STATUS_NOT_FOUND);
}

// The files that are shipped go up, down and up again.
static void test_shipped_migrations(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    unsigned up = 0, down = 0, again = 0;
    if (db_migrate(db, test_pg_migrations(), &up, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    if (db_migrate_down(db, test_pg_migrations(), 0, &down, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    if (db_migrate(db, test_pg_migrations(), &again, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_true(up > 0);
    assert_int_equal(up, down);
    assert_int_equal(up, again);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_concurrent_runners_apply_once),
        cmocka_unit_test(test_failed_migration_leaves_nothing),
        cmocka_unit_test(test_changed_or_missing_file_is_refused),
        cmocka_unit_test(test_down_and_up_again),
        cmocka_unit_test(test_no_folder_is_not_found),
        cmocka_unit_test(test_shipped_migrations),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
