// Which access tokens count no more after what topic auth told, and for how long that is
// remembered.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cauce/event.pb-c.h"

#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "service/internal.h"

static void make_user(struct rpc_user *u, int64_t epoch)
{
    *u = (struct rpc_user){.epoch = epoch, .exp_wall_ms = time_wall_ms() + SVC_ACCESS_TOKEN_MS};
    rand_uuid7(u->id);
    rand_uuid7(u->session);
}

static char *text(const char *s)
{
    return (char *)(uintptr_t)s;
}

static bool tell(struct svc_revoked *r, const char *kind, const char *subject, const char *data,
                 int64_t age_ms)
{
    Event__EventRecord e = EVENT__EVENT_RECORD__INIT;
    Google__Protobuf__Timestamp at = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
    at.seconds = (time_wall_ms() - age_ms) / 1000;
    e.time = &at;
    e.kind = text(kind);
    e.subject = text(subject);
    e.data = text(data);
    return svc_revoked_apply(r, &e, time_wall_ms());
}

static bool tell_logout(struct svc_revoked *r, const struct rpc_user *u)
{
    char data[80];
    snprintf(data, sizeof data, "{\"login\": \"%s\"}", u->session);
    return tell(r, "logout", u->id, data, 0);
}

static void test_a_logout_ends_that_login_alone(void **state)
{
    struct rpc_user phone, laptop;
    struct svc_revoked *r = svc_revoked_new(10);
    (void)state;
    make_user(&phone, 0);
    laptop = phone;
    rand_uuid7(laptop.session);
    assert_true(svc_revoked_user_ok(r, &phone));
    assert_true(tell_logout(r, &phone));
    assert_false(svc_revoked_user_ok(r, &phone));
    assert_true(svc_revoked_user_ok(r, &laptop));
    svc_revoked_free(r);
}

static void test_a_new_epoch_ends_all_tokens_before_it(void **state)
{
    static const char *const kinds[] = {"logout.everywhere", "password.changed", "user.roles",
                                        "user.disabled"};
    (void)state;
    for (size_t i = 0; i < N_ELEMENTS(kinds); i++) {
        struct rpc_user before, after, other;
        struct svc_revoked *r = svc_revoked_new(10);
        make_user(&before, 3);
        make_user(&other, 0);
        after = before;
        after.epoch = 4;
        assert_true(tell(r, kinds[i], before.id, "{\"epoch\": 4}", 0));
        assert_false(svc_revoked_user_ok(r, &before));
        assert_true(svc_revoked_user_ok(r, &after));
        assert_true(svc_revoked_user_ok(r, &other));
        assert_true(tell(r, kinds[i], before.id, "{\"epoch\": 2}", 0)); // late: changes nothing
        assert_false(svc_revoked_user_ok(r, &before));
        svc_revoked_free(r);
    }
}

static void test_other_events_end_nothing(void **state)
{
    static const struct {
        const char *kind, *data;
    } rows[] = {
        {"login.ok", "{\"login\": \"%s\"}"},
        {"user.enabled", "{\"epoch\": 9}"},
        {"logout", "{}"},
        {"logout", "{\"login\": \"nonsense\"}"},
        {"logout", "no json"},
        {"user.roles", "{\"roles\": []}"}, // of before there were epochs
    };
    struct rpc_user u;
    struct svc_revoked *r = svc_revoked_new(10);
    (void)state;
    make_user(&u, 0);
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        char data[80];
        const char *mark = strstr(rows[i].data, "%s");
        snprintf(data, sizeof data, "%.*s%s%s",
                 mark ? (int)(mark - rows[i].data) : (int)strlen(rows[i].data), rows[i].data,
                 mark ? u.session : "", mark ? mark + 2 : "");
        assert_false(tell(r, rows[i].kind, u.id, data, 0));
        assert_true(svc_revoked_user_ok(r, &u));
    }
    assert_false(tell(r, "logout.everywhere", "nobody", "{\"epoch\": 1}", 0));
    svc_revoked_free(r);
}

// No token of before can be left, but a stream may be that began with one.
static void test_what_is_heard_of_late_still_ends_streams(void **state)
{
    struct rpc_user u;
    struct svc_revoked *r = svc_revoked_new(10);
    (void)state;
    make_user(&u, 0);
    assert_true(tell(r, "logout.everywhere", u.id, "{\"epoch\": 1}", 3 * SVC_ACCESS_TOKEN_MS));
    assert_false(svc_revoked_user_ok(r, &u));
    assert_false(svc_revoked_tidy(r, time_wall_ms() + SVC_ACCESS_TOKEN_MS));
    assert_true(svc_revoked_user_ok(r, &u));
    svc_revoked_free(r);
}

static void test_it_is_forgotten_when_no_token_can_be_left(void **state)
{
    struct rpc_user u;
    struct svc_revoked *r = svc_revoked_new(10);
    (void)state;
    make_user(&u, 0);
    assert_true(tell_logout(r, &u));
    assert_true(svc_revoked_tidy(r, time_wall_ms() + SVC_ACCESS_TOKEN_MS));
    assert_false(svc_revoked_user_ok(r, &u));
    assert_false(svc_revoked_tidy(r, time_wall_ms() + 2 * SVC_ACCESS_TOKEN_MS));
    assert_true(svc_revoked_user_ok(r, &u));
    svc_revoked_free(r);
}

static void test_too_many_refuse_every_token_made_so_far(void **state)
{
    enum { MAX = 8 };
    struct rpc_user u, bystander, later;
    struct svc_revoked *r = svc_revoked_new(MAX);
    (void)state;
    make_user(&bystander, 0);
    for (unsigned i = 0; i < MAX; i++) {
        make_user(&u, 0);
        assert_true(tell_logout(r, &u));
    }
    assert_true(svc_revoked_user_ok(r, &bystander));
    make_user(&u, 0);
    assert_true(tell_logout(r, &u));
    assert_false(svc_revoked_user_ok(r, &u));
    assert_false(svc_revoked_user_ok(r, &bystander));
    make_user(&later, 0);
    later.exp_wall_ms += 60000; // made a minute from now
    assert_true(svc_revoked_user_ok(r, &later));
    svc_revoked_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_logout_ends_that_login_alone),
        cmocka_unit_test(test_a_new_epoch_ends_all_tokens_before_it),
        cmocka_unit_test(test_other_events_end_nothing),
        cmocka_unit_test(test_what_is_heard_of_late_still_ends_streams),
        cmocka_unit_test(test_it_is_forgotten_when_no_token_can_be_left),
        cmocka_unit_test(test_too_many_refuse_every_token_made_so_far),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
