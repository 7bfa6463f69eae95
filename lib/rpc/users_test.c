// Tokens that are revoked while calls with them are open.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "rpc/test_util.h"

#define LONG_MS 30000

struct place {
    struct world w;
    struct rpc_client *c;
    atomic_bool is_revoked; // what was given to "user"
};

static bool user_ok(void *ud, const struct rpc_user *user)
{
    struct place *p = ud;
    return strcmp(user->id, "user-id") != 0 || !atomic_load(&p->is_revoked);
}

static int setup(void **state)
{
    struct place *p = mem_alloc(sizeof *p);
    struct err err = ERR_INIT;
    world_init(&p->w);
    struct rpc_server_opts o = world_server_opts(&p->w);
    o.user_ok = user_ok;
    o.user_ok_ud = p;
    p->w.s = rpc_server_new(&o, &err);
    if (!p->w.s)
        fail_msg("%s", err.msg);
    world_add(&p->w, p->w.s);
    assert_int_equal(rpc_server_listen(p->w.s, "tcp://127.0.0.1:0", true, p->w.url, &err),
                     STATUS_OK);
    p->c = world_client_to(&p->w, p->w.url, true);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;
    rpc_client_free(p->c);
    world_done(&p->w);
    mem_free(p);
    return 0;
}

static enum status who(struct place *p, const char *token)
{
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    struct rpc_opts o = {.token = token, .deadline_us = time_deadline_in_ms(LONG_MS)};
    note_init(&req);
    enum status s = call_note(p->c, WHO, &o, &req, &ret, &err);
    rpc_message_free(ret);
    return s;
}

static void test_a_revoked_token_opens_no_call(void **state)
{
    struct place *p = *state;
    assert_int_equal(who(p, "user"), STATUS_OK);
    atomic_store(&p->is_revoked, true);
    assert_int_equal(who(p, "user"), STATUS_UNAUTHENTICATED);
    assert_int_equal(who(p, "admin"), STATUS_OK);
    assert_int_equal(who(p, NULL), STATUS_OK);
}

// A stream that goes on for as long as its client wants.
static struct rpc_stream *open_chat(struct place *p, const char *token)
{
    struct err err = ERR_INIT;
    struct rpc_stream *st = NULL;
    struct rpc_opts o = {.token = token, .deadline_us = time_deadline_in_ms(LONG_MS)};
    assert_int_equal(rpc_stream_open(p->c, &test_service.methods[CHAT], &o, NULL, &st, &err),
                     STATUS_OK);
    return st;
}

static enum status chat_once(struct rpc_stream *st)
{
    Note req;
    struct err err = ERR_INIT;
    ProtobufCMessage *m = NULL;
    note_init(&req);
    enum status s = rpc_stream_send(st, &req.base, &err);
    if (s == STATUS_OK)
        s = rpc_stream_recv(st, &m, &err);
    rpc_message_free(m);
    return s;
}

static void test_open_streams_of_a_revoked_token_end(void **state)
{
    struct place *p = *state;
    struct err err = ERR_INIT;
    ProtobufCMessage *m = NULL;
    struct rpc_stream *user = open_chat(p, "user"), *admin = open_chat(p, "admin");
    struct rpc_stream *nobody = open_chat(p, NULL);
    assert_int_equal(chat_once(user), STATUS_OK);
    assert_int_equal(chat_once(admin), STATUS_OK);
    assert_int_equal(chat_once(nobody), STATUS_OK);
    rpc_server_check_users(p->w.s);
    assert_int_equal(chat_once(user), STATUS_OK);
    atomic_store(&p->is_revoked, true);
    rpc_server_check_users(p->w.s);
    assert_int_equal(rpc_stream_recv(user, &m, &err), STATUS_UNAUTHENTICATED);
    assert_non_null(strstr(err.msg, "login"));
    assert_int_equal(chat_once(admin), STATUS_OK);
    assert_int_equal(chat_once(nobody), STATUS_OK);
    rpc_stream_free(user);
    rpc_stream_free(admin);
    rpc_stream_free(nobody);
}

static void *wait_as_user(void *ud)
{
    struct place *p = ud;
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    struct rpc_opts o = {.token = "user", .deadline_us = time_deadline_in_ms(1500)};
    note_init(&req);
    enum status s = call_note(p->c, WAIT, &o, &req, &ret, &err);
    rpc_message_free(ret);
    return s == STATUS_DEADLINE_EXCEEDED ? ud : NULL;
}

// It might be the one that ended the login: its answer must arrive.
static void test_a_young_unary_call_ends_by_itself(void **state)
{
    struct place *p = *state;
    pthread_t t;
    void *ok = NULL;
    assert_int_equal(pthread_create(&t, NULL, wait_as_user, p), 0);
    assert_true(wait_for_count(&p->w.n_waiting, 1));
    atomic_store(&p->is_revoked, true);
    rpc_server_check_users(p->w.s);
    pthread_join(t, &ok);
    assert_non_null(ok);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_revoked_token_opens_no_call),
        TEST(test_open_streams_of_a_revoked_token_end),
        TEST(test_a_young_unary_call_ends_by_itself),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
