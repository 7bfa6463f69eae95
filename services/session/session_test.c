// The session service below its handlers, on a private PostgreSQL: sign-in, rotation, reuse, grace,
// rate limits, roles, the hashing gate.
#include "internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/str.h"
#include "base/time.h"
#include "support/pg.h"

static struct test_pg *pg;
static struct session s;
static char password_file[] = "/tmp/cauce-admin-XXXXXX";

#define PASSWORD "correct horse"
#define SOON time_deadline_in_ms(20000)

static int setup(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct crypto_pw_params pw = {.mem_bytes = 64 << 10, .passes = 1};
    pg = test_pg_new();
    s.db = test_pg_db(pg, 12, true);
    s.registration = true;
    s.new_user_roles = ROLE_USER | ROLE_CREATOR;
    s.admin_password_file = password_file;
    close(mkstemp(password_file));
    if (session_init(&s, &pw, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    session_done(&s);
    db_free(s.db);
    test_pg_free(pg);
    unlink(password_file);
    return 0;
}

static void expect(enum status got, enum status want, const struct err *err)
{
    if (got != want)
        fail_msg("%s instead of %s: %s", status_name(got), status_name(want), err->msg);
}

static void run(const char *sql)
{
    struct err err = ERR_INIT;
    expect(db_query(s.db, sql, NULL, 0, NULL, &err), STATUS_OK, &err);
}

static int64_t count(const char *sql, const char *param)
{
    struct err err = ERR_INIT;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    expect(db_query(s.db, sql, DB_PARAMS(DB_TEXT(param)), &r, &err), STATUS_OK, &err);
    return db_i64(r, 0, 0);
}

static int64_t events(const char *kind)
{
    return count("SELECT count(*) FROM session.event WHERE kind = $1", kind);
}

static struct session_grant registered(const char *name)
{
    struct session_grant g;
    struct err err = ERR_INIT;
    expect(session_register(&s, name, PASSWORD, "", SOON, &g, &err), STATUS_OK, &err);
    return g;
}

static enum status login(const char *name, const char *password, struct session_grant *g,
                         struct err *err)
{
    return session_login(&s, name, password, "test", SOON, g, err);
}

static struct rpc_user user_of(const struct session_grant *g)
{
    struct rpc_user u = {.roles = g->account.roles};
    str_copy(u.id, sizeof u.id, g->account.id);
    str_copy(u.session, sizeof u.session, g->login);
    return u;
}

static void expect_signed_in(const struct session_grant *g, enum status want)
{
    struct session_account a;
    struct err err = ERR_INIT;
    struct rpc_user u = user_of(g);
    expect(session_check_user(&s, &u, 0, &a, &err), want, &err);
}

static void test_register_then_login(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant g = registered("ana"), g2;
    assert_int_equal(g.account.roles, ROLE_USER | ROLE_CREATOR);
    assert_int_equal(strlen(g.refresh), 43);
    expect(login("ana", PASSWORD, &g2, &err), STATUS_OK, &err);
    assert_string_equal(g.account.id, g2.account.id);
    assert_string_not_equal(g.login, g2.login);
    expect_signed_in(&g, STATUS_OK);
    expect_signed_in(&g2, STATUS_OK);
    assert_true(events("user.registered") == 1);
    assert_true(events("login.ok") == 1);
    // Nothing secret in the audit, nothing readable in the tables.
    assert_true(count("SELECT count(*) FROM session.event WHERE position($1 in data::text) > 0",
                      PASSWORD) == 0);
    assert_true(count("SELECT count(*) FROM session.event WHERE position($1 in data::text) > 0",
                      g.refresh) == 0);
}

static void test_register_refuses_bad_input(void **state)
{
    (void)state;
    static const struct {
        const char *name, *password, *email;
        enum status status;
    } rows[] = {
        {"ana2", "short", "", STATUS_INVALID_ARGUMENT},
        {"a", PASSWORD, "", STATUS_INVALID_ARGUMENT},
        {"Ana", PASSWORD, "", STATUS_INVALID_ARGUMENT},
        {"an a", PASSWORD, "", STATUS_INVALID_ARGUMENT},
        {"ana2", PASSWORD, "no address", STATUS_INVALID_ARGUMENT},
        {"taken", PASSWORD, "", STATUS_ALREADY_EXISTS},
    };
    registered("taken");
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct session_grant g;
        struct err err = ERR_INIT;
        expect(session_register(&s, rows[i].name, rows[i].password, rows[i].email, SOON, &g, &err),
               rows[i].status, &err);
    }
    s.registration = false;
    struct session_grant g;
    struct err err = ERR_INIT;
    expect(session_register(&s, "closed", PASSWORD, "", SOON, &g, &err), STATUS_PERMISSION_DENIED,
           &err);
    s.registration = true;
}

static void test_unknown_and_wrong_look_the_same(void **state)
{
    (void)state;
    struct session_grant g;
    struct err a = ERR_INIT, b = ERR_INIT;
    registered("bea");
    expect(login("bea", "wrong password", &g, &a), STATUS_UNAUTHENTICATED, &a);
    expect(login("nobody-here", "wrong password", &g, &b), STATUS_UNAUTHENTICATED, &b);
    assert_string_equal(a.msg, b.msg);
}

static void test_failures_are_rate_limited(void **state)
{
    (void)state;
    static const char *const names[] = {"carl", "carl-does-not-exist"};
    struct session_grant g;
    registered("carl");
    for (size_t n = 0; n < 2; n++) {
        struct err err = ERR_INIT;
        for (int i = 0; i < 5; i++)
            expect(login(names[n], "wrong password", &g, &err), STATUS_UNAUTHENTICATED, &err);
        // Even the right password must wait now.
        expect(login(names[n], PASSWORD, &g, &err), STATUS_RESOURCE_EXHAUSTED, &err);
    }
    struct err err = ERR_INIT;
    run("UPDATE session.throttle SET retry_at = now(), failures = 14");
    expect(login("carl", "wrong password", &g, &err), STATUS_UNAUTHENTICATED, &err);
    int64_t wait_s = count("SELECT extract(epoch FROM retry_at - last)::bigint"
                           " FROM session.throttle WHERE name = $1",
                           "carl");
    assert_true(wait_s == 900);
    run("UPDATE session.throttle SET retry_at = now()");
    expect(login("carl", PASSWORD, &g, &err), STATUS_OK, &err);
    assert_true(count("SELECT count(*) FROM session.throttle WHERE name = $1", "carl") == 0);
}

static void test_rotation_and_reuse(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant first = registered("dora"), second, third, none;
    expect(session_refresh(&s, first.refresh, &second, &err), STATUS_OK, &err);
    assert_string_equal(first.login, second.login);
    assert_string_not_equal(first.refresh, second.refresh);
    expect(session_refresh(&s, second.refresh, &third, &err), STATUS_OK, &err);
    // The first is not the last rotation any more: stolen, and the whole login ends.
    int64_t before = events("token.reused");
    expect(session_refresh(&s, first.refresh, &none, &err), STATUS_UNAUTHENTICATED, &err);
    assert_true(events("token.reused") == before + 1);
    expect(session_refresh(&s, third.refresh, &none, &err), STATUS_UNAUTHENTICATED, &err);
    expect_signed_in(&third, STATUS_UNAUTHENTICATED);
}

static void test_same_rotation_repeated_gives_same_successor(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant first = registered("eva"), a, b, none;
    expect(session_refresh(&s, first.refresh, &a, &err), STATUS_OK, &err);
    expect(session_refresh(&s, first.refresh, &b, &err), STATUS_OK, &err);
    assert_string_equal(a.refresh, b.refresh);
    assert_true(a.refresh_expires_us == b.refresh_expires_us);
    expect_signed_in(&a, STATUS_OK);
    run("UPDATE session.refresh SET spent = spent - interval '11 seconds' WHERE spent IS NOT NULL");
    expect(session_refresh(&s, first.refresh, &none, &err), STATUS_UNAUTHENTICATED, &err);
    expect_signed_in(&a, STATUS_UNAUTHENTICATED);
}

static void test_expired_and_foreign_tokens_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                                      "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"};
    struct err err = ERR_INIT;
    struct session_grant g = registered("fay"), none;
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        expect(session_refresh(&s, bad[i], &none, &err), STATUS_UNAUTHENTICATED, &err);
    run("UPDATE session.refresh SET expires = now() - interval '1 second'");
    expect(session_refresh(&s, g.refresh, &none, &err), STATUS_UNAUTHENTICATED, &err);
    expect_signed_in(&g, STATUS_OK); // expiry is no theft
}

struct racer {
    const char *token;
    struct session_grant grant;
    enum status status;
};

static void *race(void *arg)
{
    struct racer *r = arg;
    r->status = session_refresh(&s, r->token, &r->grant, NULL);
    return NULL;
}

static void test_concurrent_rotations_make_one_branch(void **state)
{
    (void)state;
    enum { N = 8 };
    struct session_grant g = registered("gus");
    struct racer racers[N];
    pthread_t threads[N];
    for (int i = 0; i < N; i++) {
        racers[i] = (struct racer){.token = g.refresh};
        assert_int_equal(0, pthread_create(&threads[i], NULL, race, &racers[i]));
    }
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(racers[i].status, STATUS_OK);
        assert_string_equal(racers[i].grant.refresh, racers[0].grant.refresh);
    }
    assert_true(count("SELECT count(*) FROM session.refresh WHERE login = $1", g.login) == 2);
}

static void test_logout_one_and_everywhere(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant a = registered("hal"), b, c, none;
    expect(login("hal", PASSWORD, &b, &err), STATUS_OK, &err);
    expect(login("hal", PASSWORD, &c, &err), STATUS_OK, &err);
    expect(session_logout(&s, &a.account, a.login, false, &err), STATUS_OK, &err);
    expect_signed_in(&a, STATUS_UNAUTHENTICATED);
    expect_signed_in(&b, STATUS_OK);
    expect(session_refresh(&s, a.refresh, &none, &err), STATUS_UNAUTHENTICATED, &err);
    expect(session_logout(&s, &b.account, b.login, true, &err), STATUS_OK, &err);
    expect_signed_in(&b, STATUS_UNAUTHENTICATED);
    expect_signed_in(&c, STATUS_UNAUTHENTICATED);
}

// What tells verifiers which access tokens count no more.
static void test_epoch_goes_up_when_tokens_must_not_count_any_more(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant a = registered("wanda"), b, c;
    struct session_account after;
    static const char told[] =
        "SELECT coalesce(max((data->>'epoch')::bigint), 0) FROM session.event WHERE owner = $1";
    assert_int_equal(a.account.epoch, 0);
    expect(session_logout(&s, &a.account, a.login, false, &err), STATUS_OK, &err);
    expect(login("wanda", PASSWORD, &b, &err), STATUS_OK, &err);
    assert_int_equal(b.account.epoch, 0);
    assert_int_equal(count(told, a.account.id), 0);
    expect(session_logout(&s, &b.account, b.login, true, &err), STATUS_OK, &err);
    assert_int_equal(count(told, a.account.id), 1);
    expect(login("wanda", PASSWORD, &b, &err), STATUS_OK, &err);
    assert_int_equal(b.account.epoch, 1);
    expect(session_change_password(&s, &b.account, PASSWORD, "another one", SOON, &c, &err),
           STATUS_OK, &err);
    assert_int_equal(c.account.epoch, 2);
    assert_int_equal(count(told, a.account.id), 2);
    expect(session_set_roles(&s, "x", "wanda", ROLE_USER, &after, &err), STATUS_OK, &err);
    assert_int_equal(after.epoch, 3);
    expect(session_set_roles(&s, "x", "wanda", ROLE_USER, &after, &err), STATUS_OK, &err);
    assert_int_equal(after.epoch, 3); // nothing changed
    expect(session_set_disabled(&s, "x", "wanda", true, &after, &err), STATUS_OK, &err);
    assert_int_equal(after.epoch, 4);
    expect(session_set_disabled(&s, "x", "wanda", false, &after, &err), STATUS_OK, &err);
    assert_int_equal(after.epoch, 4); // nobody is logged in
    assert_int_equal(count(told, a.account.id), 4);
}

static void test_change_password_ends_other_logins(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant old = registered("ida"), g, none;
    expect(
        session_change_password(&s, &old.account, "wrong password", "another one", SOON, &g, &err),
        STATUS_UNAUTHENTICATED, &err);
    expect(session_change_password(&s, &old.account, PASSWORD, "another one", SOON, &g, &err),
           STATUS_OK, &err);
    expect_signed_in(&old, STATUS_UNAUTHENTICATED);
    expect_signed_in(&g, STATUS_OK);
    expect(login("ida", PASSWORD, &none, &err), STATUS_UNAUTHENTICATED, &err);
    expect(login("ida", "another one", &none, &err), STATUS_OK, &err);
}

struct changer {
    const struct session_account *account;
    char password[24];
    enum status status;
};

static void *change(void *arg)
{
    struct changer *c = arg;
    struct session_grant g;
    c->status = session_change_password(&s, c->account, PASSWORD, c->password, SOON, &g, NULL);
    return NULL;
}

static void test_old_password_begins_nothing_once_it_was_changed(void **state)
{
    (void)state;
    enum { N = 4 };
    struct session_grant g = registered("quin");
    struct changer changers[N];
    pthread_t threads[N];
    unsigned n_done = 0;
    for (int i = 0; i < N; i++) {
        changers[i] = (struct changer){.account = &g.account};
        snprintf(changers[i].password, sizeof changers[i].password, "another one %d", i);
        assert_int_equal(0, pthread_create(&threads[i], NULL, change, &changers[i]));
    }
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        n_done += changers[i].status == STATUS_OK;
    }
    assert_int_equal(n_done, 1);
    assert_int_equal(
        count("SELECT count(*) FROM session.login WHERE account = $1 AND ended IS NULL",
              g.account.id),
        1);
    assert_int_equal(count("SELECT epoch FROM session.account WHERE id = $1", g.account.id), 1);
}

static void test_weak_hash_is_renewed_at_login(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant g = registered("jan");
    s.pw.mem_bytes = 128 << 10;
    expect(login("jan", PASSWORD, &g, &err), STATUS_OK, &err);
    assert_true(count("SELECT count(*) FROM session.account WHERE name = $1"
                      " AND password LIKE '%m=128,%'",
                      "jan") == 1);
    s.pw.mem_bytes = 64 << 10;
}

static void test_first_start_makes_one_admin(void **state)
{
    (void)state;
    char line[128] = "";
    struct stat st;
    struct err err = ERR_INIT;
    struct session_grant g;
    expect(session_ensure_admin(&s, &err), STATUS_OK, &err);
    FILE *f = fopen(password_file, "re");
    assert_non_null(fgets(line, sizeof line, f));
    fclose(f);
    assert_int_equal(stat(password_file, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    line[strcspn(line, "\n")] = '\0';
    expect(login("admin", line, &g, &err), STATUS_OK, &err);
    assert_true(g.account.roles & ROLE_ADMIN);
    unlink(password_file);
    expect(session_ensure_admin(&s, &err), STATUS_OK, &err);
    assert_int_equal(access(password_file, F_OK), -1);
}

static void test_roles_and_disabling(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant g = registered("kim"), none;
    struct session_account a;
    expect(session_set_roles(&s, "x", "kim", ROLE_USER, &a, &err), STATUS_OK, &err);
    assert_int_equal(a.roles, ROLE_USER);
    expect(session_set_roles(&s, "x", "nobody", ROLE_USER, &a, &err), STATUS_NOT_FOUND, &err);
    expect(session_set_disabled(&s, "x", a.id, true, &a, &err), STATUS_OK, &err);
    expect_signed_in(&g, STATUS_UNAUTHENTICATED);
    expect(session_refresh(&s, g.refresh, &none, &err), STATUS_UNAUTHENTICATED, &err);
    expect(login("kim", PASSWORD, &none, &err), STATUS_PERMISSION_DENIED, &err);
    expect(session_set_disabled(&s, "x", "kim", false, &a, &err), STATUS_OK, &err);
    expect(login("kim", PASSWORD, &none, &err), STATUS_OK, &err);
    // The only admin must stay one.
    expect(session_set_roles(&s, "x", "admin", ROLE_USER, &a, &err), STATUS_FAILED_PRECONDITION,
           &err);
    expect(session_set_disabled(&s, "x", "admin", true, &a, &err), STATUS_FAILED_PRECONDITION,
           &err);
}

static void *change_roles(void *arg)
{
    enum { TIMES = 20 };
    struct session_account a;
    for (int i = 0; i < TIMES; i++)
        if (session_set_roles(&s, "ops", arg, i % 2 ? ROLE_USER : ROLE_USER | ROLE_CREATOR, &a,
                              NULL) != STATUS_OK)
            return NULL;
    return arg;
}

static void test_each_change_of_roles_is_told_whoever_else_makes_one(void **state)
{
    (void)state;
    enum { N = 4 };
    struct session_grant g = registered("rosa");
    pthread_t threads[N];
    void *ok;
    for (int i = 0; i < N; i++)
        assert_int_equal(0, pthread_create(&threads[i], NULL, change_roles, g.account.id));
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], &ok);
        assert_non_null(ok);
    }
    // As they are by the last that was told, and no two in a row tell the same.
    assert_int_equal(
        count("SELECT count(*) FROM (SELECT data->'roles' AS roles, lag(data->'roles') OVER"
              " (ORDER BY seq) AS before FROM session.event WHERE kind = 'user.roles'"
              " AND subject = $1) e WHERE roles = before",
              g.account.id),
        0);
    assert_int_equal(
        count("SELECT count(*) FROM session.account a WHERE id = $1 AND epoch = (SELECT"
              " count(*) FROM session.event WHERE kind = 'user.roles'"
              " AND subject = a.id::text)",
              g.account.id),
        1);
}

static void test_admin_methods_look_at_the_table(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant g = registered("lea");
    struct session_account a;
    struct rpc_user u = user_of(&g);
    u.roles |= ROLE_ADMIN; // what an old token may still say
    expect(session_check_user(&s, &u, ROLE_ADMIN, &a, &err), STATUS_PERMISSION_DENIED, &err);
}

static void test_list_pages_in_order(void **state)
{
    (void)state;
    struct session_account rows[3], next[1];
    size_t n = 0;
    struct err err = ERR_INIT;
    expect(session_account_list(&s, NULL, 3, rows, &n, &err), STATUS_OK, &err);
    assert_int_equal(n, 3);
    expect(session_account_list(&s, rows[0].id, 1, next, &n, &err), STATUS_OK, &err);
    assert_int_equal(n, 1);
    assert_string_equal(next[0].id, rows[1].id);
}

static void test_audit_numbers_have_no_gaps(void **state)
{
    (void)state;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    struct err err = ERR_INIT;
    expect(db_query(s.db,
                    "SELECT count(*), min(seq), max(seq), (SELECT seq FROM session.event_topic)"
                    " FROM session.event",
                    NULL, 0, &r, &err),
           STATUS_OK, &err);
    assert_true(db_i64(r, 0, 0) > 10);
    assert_true(db_i64(r, 0, 1) == 1);
    assert_true(db_i64(r, 0, 2) == db_i64(r, 0, 0));
    assert_true(db_i64(r, 0, 3) == db_i64(r, 0, 0));
}

// ---------------------------------------------------------------- the gate

static void test_gate_bounds_running_and_waiting(void **state)
{
    (void)state;
    struct session_gate g;
    struct err err = ERR_INIT;
    session_gate_init(&g, 1, 0);
    expect(session_gate_enter(&g, SOON, &err), STATUS_OK, &err);
    expect(session_gate_enter(&g, SOON, &err), STATUS_RESOURCE_EXHAUSTED, &err);
    g.max_waiting = 1;
    expect(session_gate_enter(&g, time_deadline_in_ms(10), &err), STATUS_DEADLINE_EXCEEDED, &err);
    session_gate_leave(&g);
    expect(session_gate_enter(&g, SOON, &err), STATUS_OK, &err);
    session_gate_leave(&g);
    session_gate_done(&g);
}

struct crowd {
    struct session_gate gate;
    atomic_int inside, most;
};

static void *push_in(void *arg)
{
    struct crowd *c = arg;
    for (int i = 0; i < 200; i++) {
        if (session_gate_enter(&c->gate, SOON, NULL) != STATUS_OK)
            return NULL;
        int n = atomic_fetch_add(&c->inside, 1) + 1;
        if (n > atomic_load(&c->most))
            atomic_store(&c->most, n);
        atomic_fetch_sub(&c->inside, 1);
        session_gate_leave(&c->gate);
    }
    return arg;
}

static void test_gate_never_lets_more_in(void **state)
{
    (void)state;
    struct crowd c = {0};
    pthread_t threads[6];
    session_gate_init(&c.gate, 2, 10);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(0, pthread_create(&threads[i], NULL, push_in, &c));
    for (size_t i = 0; i < 6; i++) {
        void *ok = NULL;
        pthread_join(threads[i], &ok);
        assert_non_null(ok);
    }
    assert_true(atomic_load(&c.most) <= 2);
    assert_int_equal(c.gate.n_running, 0);
    session_gate_done(&c.gate);
}

static void test_database_down_is_unavailable(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct session_grant g = registered("max"), next;
    test_pg_stop(pg);
    expect(login("max", PASSWORD, &next, &err), STATUS_UNAVAILABLE, &err);
    expect(session_refresh(&s, g.refresh, &next, &err), STATUS_UNAVAILABLE, &err);
    test_pg_start(pg);
    expect(session_refresh(&s, g.refresh, &next, &err), STATUS_OK, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_register_then_login),
        cmocka_unit_test(test_register_refuses_bad_input),
        cmocka_unit_test(test_unknown_and_wrong_look_the_same),
        cmocka_unit_test(test_failures_are_rate_limited),
        cmocka_unit_test(test_rotation_and_reuse),
        cmocka_unit_test(test_same_rotation_repeated_gives_same_successor),
        cmocka_unit_test(test_expired_and_foreign_tokens_are_refused),
        cmocka_unit_test(test_concurrent_rotations_make_one_branch),
        cmocka_unit_test(test_logout_one_and_everywhere),
        cmocka_unit_test(test_change_password_ends_other_logins),
        cmocka_unit_test(test_old_password_begins_nothing_once_it_was_changed),
        cmocka_unit_test(test_weak_hash_is_renewed_at_login),
        cmocka_unit_test(test_first_start_makes_one_admin),
        cmocka_unit_test(test_roles_and_disabling),
        cmocka_unit_test(test_each_change_of_roles_is_told_whoever_else_makes_one),
        cmocka_unit_test(test_admin_methods_look_at_the_table),
        cmocka_unit_test(test_list_pages_in_order),
        cmocka_unit_test(test_epoch_goes_up_when_tokens_must_not_count_any_more),
        cmocka_unit_test(test_audit_numbers_have_no_gaps),
        cmocka_unit_test(test_gate_bounds_running_and_waiting),
        cmocka_unit_test(test_gate_never_lets_more_in),
        cmocka_unit_test(test_database_down_is_unavailable),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
