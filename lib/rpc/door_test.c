// The door alone, with times and addresses made up.
#include <string.h>

#include "rpc/door.h"
#include "rpc/test_util.h"

#define S 1000000 // a second

static struct transport_addr addr_of(uint32_t n)
{
    struct transport_addr a = {.family = 4};
    memcpy(a.bytes, &n, sizeof n);
    return a;
}

static struct door *door_of(struct rpc_door_limits l)
{
    struct door *d = door_new(&l);
    assert_non_null(d);
    return d;
}

static struct door_caller *enter(struct door *d, uint32_t from, int64_t now_us)
{
    struct transport_addr a = addr_of(from);
    return door_enter(d, &a, now_us);
}

static unsigned enter_until_refused(struct door *d, uint32_t from, int64_t now_us, unsigned most)
{
    unsigned n = 0;
    for (struct door_caller *c; n < most && (c = enter(d, from, now_us)); n++)
        door_leave(d, c, false, DOOR_FAILED);
    return n;
}

static void test_defaults_are_filled_in(void **state)
{
    (void)state;
    struct door *d = door_of((struct rpc_door_limits){.conns_per_s = 7});
    const struct rpc_door_limits *l = door_limits(d);
    assert_int_equal(l->conns_per_s, 7);
    assert_int_equal(l->max_half_open, 4096);
    assert_int_equal(l->max_half_open_per_addr, 1024);
    assert_int_equal(l->handshake_timeout_ms, 5000);
    door_set_files(d, 1200);
    assert_int_equal(l->max_half_open, 300);
    assert_int_equal(l->max_half_open_per_addr, 300);
    assert_int_equal(l->max_conns, 800);
    assert_int_equal(l->max_conns_per_addr, 200);
    door_set_files(d, 5000); // never raised
    assert_int_equal(l->max_half_open, 300);
    assert_int_equal(l->max_conns, 800);
    door_free(d);
}

static void test_an_address_fails_as_often_as_it_may(void **state)
{
    (void)state;
    struct door *d = door_of((struct rpc_door_limits){.conns_per_s = 10, .conns_burst = 30});
    int64_t now = 1000 * (int64_t)S;
    assert_int_equal(enter_until_refused(d, 1, now, 100), 30);
    assert_int_equal(enter_until_refused(d, 2, now, 100), 30); // each for itself
    assert_int_equal(enter_until_refused(d, 1, now + S, 100), 10);
    assert_int_equal(enter_until_refused(d, 1, now + S, 100), 0);
    assert_int_equal(enter_until_refused(d, 1, now + 100 * (int64_t)S, 100), 30);
    door_free(d);
}

static void test_success_costs_nothing(void **state)
{
    (void)state;
    struct door *d = door_of((struct rpc_door_limits){
        .conns_per_s = 1, .conns_burst = 5, .handshakes_per_s = 1, .handshakes_burst = 5});
    for (unsigned i = 0; i < 1000; i++) {
        struct door_caller *c = enter(d, 1, S);
        assert_non_null(c);
        assert_true(door_knock(d, c, S));
        door_leave(d, c, true, DOOR_WITHDRAWN);
    }
    assert_int_equal(enter_until_refused(d, 1, S, 100), 5);
    door_free(d);
}

static void test_handshakes_have_a_bucket_of_their_own(void **state)
{
    (void)state;
    struct door *d =
        door_of((struct rpc_door_limits){.handshakes_per_s = 10, .handshakes_burst = 20});
    unsigned n = 0;
    for (unsigned i = 0; i < 100; i++) {
        struct door_caller *c = enter(d, 1, S);
        assert_non_null(c);
        bool may = door_knock(d, c, S);
        n += may;
        door_leave(d, c, may, DOOR_FAILED);
    }
    assert_int_equal(n, 20);
    door_free(d);
}

static void test_strangers_leave_half_of_all_handshakes_to_others(void **state)
{
    (void)state;
    struct door *d = door_of((struct rpc_door_limits){
        .handshakes_per_s = 1000, .handshakes_burst = 1000, .all_handshakes_per_s = 400});
    struct door_caller *c = enter(d, 1, S);
    unsigned n = 0;
    while (n < 1000 && door_knock(d, c, S))
        n++;
    assert_true(n >= 40 && n <= 60); // half of a quarter of a second's
    struct door_caller *other = enter(d, 2, S);
    assert_true(door_knock(d, other, S));
    assert_false(door_knock(d, c, S));
    assert_true(door_knock(d, c, 2 * S)); // and it comes back
    door_leave(d, c, true, DOOR_FAILED);
    door_leave(d, other, true, DOOR_WITHDRAWN);
    door_free(d);
}

static void test_the_address_with_most_makes_room(void **state)
{
    (void)state;
    struct door *d =
        door_of((struct rpc_door_limits){.max_half_open = 10, .max_half_open_per_addr = 8});
    struct door_caller *a = NULL, *b = NULL;
    for (unsigned i = 0; i < 7; i++)
        a = enter(d, 1, S);
    for (unsigned i = 0; i < 3; i++)
        b = enter(d, 2, S);
    assert_null(door_crowd(d, b));
    b = enter(d, 2, S); // one too many in all
    assert_ptr_equal(door_crowd(d, b), a);
    door_leave(d, a, false, DOOR_FAILED);
    assert_null(door_crowd(d, b));
    door_leave(d, b, false, DOOR_FAILED);
    door_leave(d, b, false, DOOR_FAILED);
    for (unsigned i = 0; i < 3; i++)
        a = enter(d, 1, S); // and too many of one address
    assert_int_equal(door_n_half_open(d), 11);
    assert_ptr_equal(door_crowd(d, a), a);
    for (unsigned i = 0; i < 2; i++)
        door_leave(d, b, false, DOOR_WITHDRAWN);
    for (unsigned i = 0; i < 9; i++)
        door_leave(d, a, false, DOOR_WITHDRAWN);
    assert_int_equal(door_n_half_open(d), 0);
    door_free(d);
}

static void test_this_machine_is_no_stranger(void **state)
{
    (void)state;
    struct door *d = door_of((struct rpc_door_limits){
        .max_half_open = 10, .max_half_open_per_addr = 2, .conns_burst = 2, .handshakes_burst = 2});
    struct transport_addr local = {0};
    struct door_caller *c = NULL;
    for (unsigned i = 0; i < 10; i++) {
        c = door_enter(d, &local, S);
        assert_non_null(c);
        assert_true(door_knock(d, c, S));
        assert_null(door_crowd(d, c));
    }
    assert_non_null(door_enter(d, &local, S));
    assert_ptr_equal(door_crowd(d, c), c);
    assert_null(door_enter(d, &local, S)); // nobody made room
    for (unsigned i = 0; i < 11; i++)
        door_leave(d, c, true, DOOR_FAILED);
    door_free(d);
}

static void test_connections_are_limited_too(void **state)
{
    (void)state;
    struct door *d = door_of(
        (struct rpc_door_limits){.max_conns = 5, .max_conns_per_addr = 3, .conns_burst = 2});
    struct door_caller *a = NULL, *b = NULL;
    for (unsigned i = 0; i < 3; i++) {
        a = enter(d, 1, S);
        door_leave(d, a, false, DOOR_WELCOME);
    }
    assert_null(enter(d, 1, S));
    for (unsigned i = 0; i < 2; i++) {
        b = enter(d, 2, S);
        door_leave(d, b, false, DOOR_WELCOME);
    }
    assert_null(enter(d, 3, S)); // all places are taken
    door_gone(d, a);
    assert_ptr_equal(enter(d, 1, S), a); // it was not forgotten
    door_leave(d, a, false, DOOR_WELCOME);
    for (unsigned i = 0; i < 3; i++)
        door_gone(d, a);
    for (unsigned i = 0; i < 2; i++)
        door_gone(d, b);
    for (uint32_t i = 10; i < 20; i++) // and now they are
        door_leave(d, enter(d, i, 100 * (int64_t)S), false, DOOR_WITHDRAWN);
    assert_true(door_n_callers(d) < 10);
    door_free(d);
}

// Each address comes once, and with enough of them none is remembered for long.
static void test_many_addresses_are_not_all_remembered(void **state)
{
    (void)state;
    struct door *d = door_of((struct rpc_door_limits){.max_half_open = 100});
    for (uint32_t i = 1; i <= 100000; i++) {
        struct door_caller *c = enter(d, i, S);
        assert_non_null(c);
        door_leave(d, c, door_knock(d, c, S), DOOR_FAILED);
    }
    assert_true(door_n_callers(d) <= DOOR_CALLERS_MAX);
    for (uint32_t i = 1; door_n_callers(d) > 10; i++) { // and after a while none
        assert_true(i < 100000);
        door_leave(d, enter(d, i, 100 * (int64_t)S), false, DOOR_WITHDRAWN);
    }
    door_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_are_filled_in),
        cmocka_unit_test(test_an_address_fails_as_often_as_it_may),
        cmocka_unit_test(test_success_costs_nothing),
        cmocka_unit_test(test_handshakes_have_a_bucket_of_their_own),
        cmocka_unit_test(test_strangers_leave_half_of_all_handshakes_to_others),
        cmocka_unit_test(test_the_address_with_most_makes_room),
        cmocka_unit_test(test_this_machine_is_no_stranger),
        cmocka_unit_test(test_connections_are_limited_too),
        cmocka_unit_test(test_many_addresses_are_not_all_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
