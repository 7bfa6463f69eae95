// The session service over the real wire: what clients send and get, with the tokens it mints
// verified as every other service verifies them.
#include "internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cauce/session.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "support/pg.h"
#include "support/rig.h"

static struct test_pg *pg;
static struct test_rig rig;
static struct session s;
static char password_file[] = "/tmp/cauce-admin-XXXXXX";

static void must(enum status st, const struct err *err)
{
    if (st != STATUS_OK)
        fail_msg("%s: %s", status_name(st), err->msg);
}

static int setup(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct crypto_pw_params pw = {.mem_bytes = 64 << 10, .passes = 1};
    pg = test_pg_new();
    s.db = test_pg_db(pg, 8, true);
    s.registration = true;
    s.new_user_roles = ROLE_USER | ROLE_CREATOR;
    s.admin_password_file = password_file;
    close(mkstemp(password_file));
    test_rig_init(&rig);
    memcpy(s.token_secret, rig.session_secret, sizeof s.token_secret);
    must(session_init(&s, &pw, &err), &err);
    must(session_ensure_admin(&s, &err), &err);
    must(session_serve(&s, rig.server, &err), &err);
    test_rig_listen(&rig);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    test_rig_done(&rig);
    session_done(&s);
    db_free(s.db);
    test_pg_free(pg);
    unlink(password_file);
    rpc_fini();
    return 0;
}

static struct rpc_opts with(const char *token)
{
    return (struct rpc_opts){.token = token, .deadline_us = time_deadline_in_ms(20000)};
}

static Session__Tokens *sign_in(const char *name, const char *password, enum status want)
{
    struct err err = ERR_INIT;
    struct rpc_opts o = with(NULL);
    Session__Tokens *t = NULL;
    Session__LoginRequest q = SESSION__LOGIN_REQUEST__INIT;
    q.name = (char *)(uintptr_t)name, q.password = (char *)(uintptr_t)password;
    enum status st = session_session_login(rig.client, &o, &q, &t, &err);
    if (st != want)
        fail_msg("%s: %s", status_name(st), err.msg);
    return t;
}

static Session__Tokens *sign_up(const char *name)
{
    struct err err = ERR_INIT;
    struct rpc_opts o = with(NULL);
    Session__Tokens *t = NULL;
    Session__RegisterRequest q = SESSION__REGISTER_REQUEST__INIT;
    char password[] = "correct horse", email[] = "ana@example.org";
    q.name = (char *)(uintptr_t)name, q.password = password, q.email = email;
    must(session_session_register(rig.client, &o, &q, &t, &err), &err);
    return t;
}

static enum status who_am_i(const char *token, Session__User **ret)
{
    struct err err = ERR_INIT;
    struct rpc_opts o = with(token);
    Session__WhoAmIRequest q = SESSION__WHO_AM_IREQUEST__INIT;
    return session_session_who_am_i(rig.client, &o, &q, ret, &err);
}

static Session__Tokens *admin(void)
{
    char line[128] = "";
    FILE *f = fopen(password_file, "re");
    assert_non_null(fgets(line, sizeof line, f));
    fclose(f);
    line[strcspn(line, "\n")] = '\0';
    return sign_in("admin", line, STATUS_OK);
}

static void test_tokens_say_who_it_is(void **state)
{
    (void)state;
    struct rpc_user u;
    struct err err = ERR_INIT;
    AUTO(rpc_message_free_p) Session__Tokens *t = sign_up("ana");
    AUTO(rpc_message_free_p) Session__User *me = NULL;
    must(svc_tokens_verify_access(rig.tokens, t->access_token, strlen(t->access_token), &u, &err),
         &err);
    assert_string_equal(u.id, t->user->id);
    assert_string_equal(u.name, "ana");
    assert_int_equal(u.roles, ROLE_USER | ROLE_CREATOR);
    assert_true(u.exp_wall_ms - time_wall_ms() <= 600000);
    assert_true(t->access_expires->seconds < t->refresh_expires->seconds);
    assert_int_equal(who_am_i(t->access_token, &me), STATUS_OK);
    assert_string_equal(me->name, "ana");
    assert_string_equal(me->email, "ana@example.org");
    assert_int_equal(me->n_roles, 2);
}

static void test_refresh_and_logout(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct rpc_opts o = with(NULL);
    AUTO(rpc_message_free_p) Session__Tokens *t = sign_up("bea");
    AUTO(rpc_message_free_p) Session__Tokens *next = NULL;
    AUTO(rpc_message_free_p) Session__LogoutReply *bye = NULL;
    AUTO(rpc_message_free_p) Session__User *me = NULL;
    Session__RefreshRequest q = SESSION__REFRESH_REQUEST__INIT;
    q.refresh_token = t->refresh_token;
    must(session_session_refresh(rig.client, &o, &q, &next, &err), &err);
    assert_string_not_equal(next->refresh_token, t->refresh_token);
    Session__LogoutRequest l = SESSION__LOGOUT_REQUEST__INIT;
    o = with(next->access_token);
    must(session_session_logout(rig.client, &o, &l, &bye, &err), &err);
    // The access token would verify for minutes yet; here it is over.
    assert_int_equal(who_am_i(next->access_token, &me), STATUS_UNAUTHENTICATED);
}

static void test_limits_say_when_to_retry(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    int64_t retry_ms = 0;
    Session__Tokens *none = NULL;
    for (int i = 0; i < 5; i++)
        assert_null(sign_in("somebody", "wrong password", STATUS_UNAUTHENTICATED));
    struct rpc_opts o = with(NULL);
    o.ret_retry_after_ms = &retry_ms;
    Session__LoginRequest q = SESSION__LOGIN_REQUEST__INIT;
    char name[] = "somebody", password[] = "wrong password";
    q.name = name, q.password = password;
    assert_int_equal(session_session_login(rig.client, &o, &q, &none, &err),
                     STATUS_RESOURCE_EXHAUSTED);
    assert_true(retry_ms >= 1000);
}

static void test_user_admin(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    AUTO(rpc_message_free_p) Session__Tokens *user = sign_up("carl");
    AUTO(rpc_message_free_p) Session__Tokens *root = admin();
    AUTO(rpc_message_free_p) Session__User *changed = NULL;
    AUTO(rpc_message_free_p) Session__User *seen = NULL;
    AUTO(rpc_message_free_p) Session__User *gone = NULL;
    Session__ListUsersReply *none = NULL;
    Session__ListUsersRequest l = SESSION__LIST_USERS_REQUEST__INIT;
    struct rpc_opts as_user = with(user->access_token), as_root = with(root->access_token);
    assert_int_equal(session_user_admin_list(rig.client, &as_user, &l, &none, &err),
                     STATUS_PERMISSION_DENIED);
    Session__SetRolesRequest r = SESSION__SET_ROLES_REQUEST__INIT;
    char name[] = "carl", role[] = "user", *roles[] = {role};
    r.user = name, r.n_roles = 1, r.roles = roles;
    must(session_user_admin_set_roles(rig.client, &as_root, &r, &changed, &err), &err);
    assert_int_equal(changed->n_roles, 1);
    Session__GetUserRequest g = SESSION__GET_USER_REQUEST__INIT;
    g.user = name;
    struct rpc_opts as_node = with(NULL);
    must(session_user_admin_get(rig.node, &as_node, &g, &seen, &err), &err);
    assert_string_equal(seen->id, user->user->id);
    Session__SetDisabledRequest d = SESSION__SET_DISABLED_REQUEST__INIT;
    d.user = name, d.disabled = true;
    must(session_user_admin_set_disabled(rig.client, &as_root, &d, &gone, &err), &err);
    assert_true(gone->disabled);
    AUTO(rpc_message_free_p) Session__User *me = NULL;
    assert_int_equal(who_am_i(user->access_token, &me), STATUS_UNAUTHENTICATED);
}

static void test_user_list_pages(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    AUTO(rpc_message_free_p) Session__Tokens *root = admin();
    struct rpc_opts o = with(root->access_token);
    char token[128] = "", last[UUID_SIZE] = "";
    size_t n = 0;
    do {
        AUTO(rpc_message_free_p) Session__ListUsersReply *page = NULL;
        Common__Page p = COMMON__PAGE__INIT;
        Session__ListUsersRequest l = SESSION__LIST_USERS_REQUEST__INIT;
        p.size = 1, p.token = token, l.page = &p;
        must(session_user_admin_list(rig.client, &o, &l, &page, &err), &err);
        assert_int_equal(page->n_users, 1);
        assert_true(strcmp(page->users[0]->id, last) > 0);
        str_copy(last, sizeof last, page->users[0]->id);
        str_copy(token, sizeof token, page->next_page);
        n++;
    } while (token[0] && n < 100);
    assert_true(n >= 2 && n < 100);
    Session__ListUsersReply *none = NULL;
    Common__Page p = COMMON__PAGE__INIT;
    Session__ListUsersRequest l = SESSION__LIST_USERS_REQUEST__INIT;
    char forged[] = "Zm9yZ2Vk";
    p.token = forged, l.page = &p;
    assert_int_equal(session_user_admin_list(rig.client, &o, &l, &none, &err),
                     STATUS_INVALID_ARGUMENT);
}

static void test_a_form_hears_of_every_wrong_field(void **state)
{
    (void)state;
    static const char *const wrong[] = {"password", "email", "name"};
    struct err err = ERR_INIT;
    struct rpc_details d;
    struct rpc_opts o = with(NULL);
    Session__Tokens *none = NULL;
    Session__RegisterRequest q = SESSION__REGISTER_REQUEST__INIT;
    char name[] = "NO", password[] = "short", email[] = "nowhere";
    q.name = name, q.password = password, q.email = email;
    o.ret_details = &d;
    assert_int_equal(session_session_register(rig.client, &o, &q, &none, &err),
                     STATUS_INVALID_ARGUMENT);
    assert_true(str_starts_with(err.msg, "name must have"));
    assert_int_equal(d.n_violations, 3);
    for (size_t i = 0; i < 3; i++)
        assert_string_equal(d.violations[i].field, wrong[i]);
    assert_string_equal(d.violations[1].description, "email is not an address");
    rpc_details_done(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens_say_who_it_is),
        cmocka_unit_test(test_refresh_and_logout),
        cmocka_unit_test(test_limits_say_when_to_retry),
        cmocka_unit_test(test_user_admin),
        cmocka_unit_test(test_user_list_pages),
        cmocka_unit_test(test_a_form_hears_of_every_wrong_field),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
