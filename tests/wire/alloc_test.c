// Memory that runs out: every allocation made while clients connect, call and stream, on whichever
// thread of either side, fails once in turn. The call it belongs to may fail; nothing crashes,
// hangs or leaks, and a client beside goes on undisturbed.
//
// A round mostly waits, for connections that come again. So the rounds are dealt out to processes.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "wire/place.h"

#define WATCHDOG_S (IS_SANITIZED ? 240 : 60) // for one round
#define MANY 3000                            // rounds, at most
#define N_PROCESSES 6

static int first_round; // of this process, which makes every N_PROCESSES-th

static volatile sig_atomic_t at_round;

static void watchdog(int sig)
{
    (void)sig;
    char text[80];
    int n = snprintf(text, sizeof text, "alloc_test: round %d hangs\n", (int)at_round);
    if (write(2, text, (size_t)n) < 0)
        _exit(2);
    abort(); // with the threads' stacks in the core
}

static void sweep(void (*fail_at)(int64_t n), bool (*failed)(void), bool through_gateway)
{
    struct place p;
    struct verdict v;
    struct err err = ERR_INIT;
    unsigned told = 0, n_bad = 0;
    const char *only = getenv("CAUCE_TEST_ROUND");
    signal(SIGALRM, watchdog);
    place_init(&p, NULL);
    place_round(&p, through_gateway, &v); // what is made once is made now
    assert_int_equal(v.n_failed, 0);
    int n = only ? atoi(only) : first_round;
    for (; n < MANY; n += N_PROCESSES) {
        at_round = n;
        alarm(WATCHDOG_S);
        fail_at(n);
        place_round(&p, through_gateway, &v);
        bool happened = failed();
        fail_at(-1);
        alarm(0);
        if (v.n_failed)
            told++;
        if (!place_may_tell(v.s))
            print_error("round %d: %s: %s: %s\n", n, v.step, status_name(v.s), v.msg);
        bool well = place_is_well(&p, &err);
        if (!well)
            print_error("round %d: the bystander: %s\n", n, err.msg);
        n_bad += !well || !place_may_tell(v.s);
        if (!happened || only)
            break;
        // A gateway's own link may have been lost; a caller is told so and can come again.
        if (through_gateway) {
            assert_int_equal(wire_call(p.up, ECHO, 0, "k", PATIENCE_MS), STATUS_OK);
        }
    }
    print_message("no allocation %d any more; %u rounds showed it to the caller\n", n, told);
    assert_int_equal(n_bad, 0);
    assert_true(only || (n > 100 && n < MANY)); // it ended because no allocation was left
    rpc_stream_free(TAKE(p.chat));
    assert_true(wire_wait_quiet(&p.w, 2)); // the bystander's and the gateway's
    place_done(&p);
}

static void test_ours_direct(void **state)
{
    (void)state;
    sweep(mem_fail_any_at, mem_any_failed, false);
}

static void test_ours_forwarded(void **state)
{
    (void)state;
    sweep(mem_fail_any_at, mem_any_failed, true);
}

static int sweep_all(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ours_direct),
        cmocka_unit_test(test_ours_forwarded),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}

// Before anything has a thread. What fails says so on stderr; what passes is told by the first.
static pid_t start_process(int number)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    first_round = number;
    if (number > 0 && !freopen("/dev/null", "w", stdout))
        exit(1);
    exit(sweep_all() == 0 ? 0 : 1);
}

int main(void)
{
    int n_failed = 0, status;
    pid_t pids[N_PROCESSES];
    if (getenv("CAUCE_TEST_ROUND"))
        return sweep_all();
    for (int i = 0; i < N_PROCESSES; i++)
        pids[i] = start_process(i);
    for (int i = 0; i < N_PROCESSES; i++) {
        if (pids[i] > 0 && waitpid(pids[i], &status, 0) == pids[i] && status == 0)
            continue;
        fprintf(stderr, "alloc_test: process %d of %d failed\n", i, N_PROCESSES);
        n_failed++;
    }
    return n_failed;
}
