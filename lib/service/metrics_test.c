// The page of metrics: what Prometheus' text format asks of it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "service/internal.h"

static const struct rpc_method get = {.name = "cauce.demo.v1.Demo.Get"};
static const struct rpc_method put = {.name = "cauce.demo.v1.Demo.Put"};

static struct rpc_method_stats stats_of(const struct rpc_method *m)
{
    return (struct rpc_method_stats){
        .method = m, .service = m->name, .n_service = strlen("cauce.demo.v1.Demo")};
}

static void expect(const struct buf *b, const char *line)
{
    if (!strstr(buf_str(b), line))
        fail_msg("no line %s in\n%s", line, buf_str(b));
}

static size_t count(const struct buf *b, const char *text)
{
    size_t n = 0;
    for (const char *at = buf_str(b); (at = strstr(at, text)); at++)
        n++;
    return n;
}

static void test_methods_are_written_by_family(void **state)
{
    (void)state;
    struct rpc_method_stats all[2] = {stats_of(&get), stats_of(&put)};
    all[0].n_started = 5;
    all[0].in_flight = 1;
    all[0].by_status[STATUS_OK] = 3;
    all[0].by_status[STATUS_NOT_FOUND] = 1;
    all[0].bytes_in = 77;
    all[0].handling.counts[0] = 1;                         // at most 16 us
    all[0].handling.counts[1] = 1;                         // 32
    all[0].handling.counts[2] = 1;                         // 64
    all[0].handling.counts[RPC_HISTOGRAM_BUCKETS - 1] = 1; // more than all bounds
    all[0].handling.sum_us = 20000100;
    all[1].n_started = 2;
    all[1].n_shed = 2;
    all[1].by_status[STATUS_UNAVAILABLE] = 2;
    struct buf b;
    buf_init(&b, 1 << 20);
    metrics_put_methods(&b, all, 2);
    assert_false(b.failed);
#define GET "{service=\"cauce.demo.v1.Demo\",method=\"Get\""
#define PUT "{service=\"cauce.demo.v1.Demo\",method=\"Put\""
    expect(&b, "# TYPE cauce_rpc_started_total counter\ncauce_rpc_started_total" GET "} 5\n"
               "cauce_rpc_started_total" PUT "} 2\n");
    expect(&b, "\ncauce_rpc_handled_total" GET ",code=\"OK\"} 3\n");
    expect(&b, "\ncauce_rpc_handled_total" GET ",code=\"NOT_FOUND\"} 1\n");
    expect(&b, "\ncauce_rpc_handled_total" PUT ",code=\"UNAVAILABLE\"} 2\n");
    expect(&b, "\ncauce_rpc_shed_total" PUT "} 2\n");
    expect(&b, "\ncauce_rpc_in_flight" GET "} 1\n");
    expect(&b, "\ncauce_rpc_received_bytes_total" GET "} 77\n");
    // Buckets hold all that is at most so long.
    expect(&b, "\ncauce_rpc_handling_seconds_bucket" GET ",le=\"0.000016\"} 1\n"
               "cauce_rpc_handling_seconds_bucket" GET ",le=\"0.000064\"} 3\n");
    expect(&b, ",le=\"16.777216\"} 3\ncauce_rpc_handling_seconds_bucket" GET ",le=\"+Inf\"} 4\n"
               "cauce_rpc_handling_seconds_sum" GET "} 20.000100\n"
               "cauce_rpc_handling_seconds_count" GET "} 4\n");
    assert_int_equal(count(&b, "# TYPE"), count(&b, "# HELP"));
    assert_int_equal(count(&b, "# TYPE cauce_rpc_queue_seconds"), 1);
    buf_done(&b);
}

static void test_a_full_page_is_known(void **state)
{
    (void)state;
    struct rpc_method_stats one = stats_of(&get);
    struct buf b;
    buf_init(&b, 100);
    metrics_put_methods(&b, &one, 1);
    assert_true(b.failed);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_methods_are_written_by_family),
        cmocka_unit_test(test_a_full_page_is_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
