#include "log/log.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"

struct capture {
    int fd;
    char text[65536];
};

static int setup(void **state)
{
    struct capture *c = mem_alloc(sizeof *c);
    char path[] = "/tmp/cauce-log-XXXXXX";
    assert_non_null(c);
    c->fd = mkstemp(path);
    assert_true(c->fd >= 0);
    unlink(path);
    *state = c;
    return 0;
}

static int teardown(void **state)
{
    struct capture *c = *state;
    close(c->fd);
    mem_free(c);
    return 0;
}

// What was logged since the last time.
static const char *text(struct capture *c)
{
    ssize_t n = pread(c->fd, c->text, sizeof c->text - 1, 0);
    assert_true(n >= 0);
    c->text[n] = '\0';
    assert_int_equal(ftruncate(c->fd, 0), 0);
    lseek(c->fd, 0, SEEK_SET);
    return c->text;
}

static void test_log_json_has_every_field_kind(void **state)
{
    struct capture *c = *state;
    AUTO(log_free_p) struct log *l = log_new(c->fd, LOG_DEBUG, true);
    struct err e;
    err_set(&e, STATUS_NOT_FOUND, "open \"x\"");
    log_warn(l, "publish_failed", F_STR("asset", "a\n1"), F_STR("none", NULL), F_I64("took_ms", -3),
             F_DBL("rate", 0.5), F_BOOL("again", true), F_ERR(&e), F_SECRET("token", "hunter2", 7));
    const char *s = text(c);
    assert_non_null(strstr(s, "\"level\":\"warn\",\"event\":\"publish_failed\",\"asset\":\"a\\n1\","
                              "\"none\":null,\"took_ms\":-3,\"rate\":0.5,\"again\":true,"
                              "\"error\":\"open \\\"x\\\"\",\"code\":\"NOT_FOUND\","
                              "\"token\":\"[7 secret bytes]\"}\n"));
    assert_null(strstr(s, "hunter2"));
}

static void test_log_text_value_cannot_forge_a_line(void **state)
{
    struct capture *c = *state;
    AUTO(log_free_p) struct log *l = log_new(c->fd, LOG_INFO, false);
    log_info(l, "login", F_STR("user", "eve\n2026 INFO login user=admin"), F_STR("ip", "::1"));
    const char *s = text(c);
    assert_ptr_equal(strchr(s, '\n'), s + strlen(s) - 1);
    assert_non_null(strstr(s, "user=\"eve\\n2026 INFO login user=admin\" ip=::1\n"));
}

static void test_log_child_adds_its_fields_and_shares_the_level(void **state)
{
    struct capture *c = *state;
    AUTO(log_free_p) struct log *root = log_new(c->fd, LOG_INFO, false);
    AUTO(log_free_p) struct log *role = log_with(root, "role", "origin");
    AUTO(log_free_p) struct log *node = log_with(role, "node", "video-1");
    log_info(node, "start", F_I64("pid", 1));
    assert_non_null(strstr(text(c), " start role=origin node=video-1 pid=1\n"));
    log_debug(node, "hidden", F_I64("x", 1));
    assert_string_equal(text(c), "");
    log_set_level(root, LOG_DEBUG);
    log_debug(node, "shown", F_I64("x", 1));
    assert_non_null(strstr(text(c), "shown"));
    log_set_level(node, LOG_OFF);
    log_error(root, "hidden", F_I64("x", 1));
    assert_string_equal(text(c), "");
}

static void test_log_too_long_is_cut_and_says_so(void **state)
{
    struct capture *c = *state;
    AUTO(log_free_p) struct log *l = log_new(c->fd, LOG_INFO, true);
    char big[4000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    memcpy(big + 2047, "\xc3\xa9", 2); // a character across the cut
    log_info(l, "big", F_STR("a", big), F_STR("b", big), F_STR("c", big), F_STR("d", big),
             F_I64("last", 1));
    const char *s = text(c);
    assert_true(strlen(s) <= 8192);
    assert_non_null(strstr(s, "x\",\"b\":"));
    assert_null(strstr(s, "\"d\":"));
    assert_non_null(strstr(s, "\"last\":1,\"cut\":true}\n"));
}

static void test_log_null_and_failed_memory_drop_lines(void **state)
{
    struct capture *c = *state;
    log_info(NULL, "nothing", F_I64("x", 1));
    AUTO(log_free_p) struct log *orphan = log_with(NULL, "role", "x");
    log_info(orphan, "nothing", F_I64("x", 1));
    for (int64_t n = 0; n < 2; n++) {
        mem_fail_at(n);
        assert_null(log_new(c->fd, LOG_INFO, true));
    }
    mem_fail_at(-1);
    AUTO(log_free_p) struct log *l = log_new(c->fd, LOG_INFO, true);
    mem_fail_at(0); // writing needs no memory
    log_info(l, "works", F_STR("a", "b"));
    assert_int_equal(mem_n_allocs(), 0);
    mem_fail_at(-1);
    assert_non_null(strstr(text(c), "works"));
}

static void *writer(void *ud)
{
    for (int i = 0; i < 200; i++)
        log_info(ud, "tick", F_I64("i", i), F_STR("pad", "0123456789012345678901234567890123456"));
    return NULL;
}

static void test_log_lines_of_threads_do_not_mix(void **state)
{
    struct capture *c = *state;
    AUTO(log_free_p) struct log *l = log_new(c->fd, LOG_INFO, false);
    pthread_t t[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&t[i], NULL, writer, l), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    int lines = 0;
    for (const char *s = text(c); *s; s = strchr(s, '\n') + 1, lines++)
        assert_true(strncmp(s + 25, "info  tick i=", 13) == 0);
    assert_int_equal(lines, 400);
}

static void test_log_lines_of_a_thread_carry_its_trace(void **state)
{
    struct capture *c = *state;
    static const uint8_t id[16] = {0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6,
                                   0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36};
    AUTO(log_free_p) struct log *root = log_new(c->fd, LOG_INFO, false);
    AUTO(log_free_p) struct log *role = log_with(root, "role", "origin");
    assert_null(log_set_trace(id));
    log_info(role, "ready", F_I64("n", 1));
    assert_ptr_equal(log_set_trace(NULL), id);
    log_info(role, "over", F_I64("n", 2));
    const char *s = text(c);
    assert_non_null(strstr(s, "ready role=origin trace=4bf92f3577b34da6a3ce929d0e0e4736 n=1\n"));
    assert_non_null(strstr(s, "over role=origin n=2\n"));
}

static void test_log_level_names(void **state)
{
    (void)state;
    enum log_level level = LOG_DEBUG;
    assert_true(log_level_parse("error", &level));
    assert_int_equal(level, LOG_ERROR);
    assert_false(log_level_parse("loud", &level));
    assert_false(log_level_parse(NULL, &level));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_log_json_has_every_field_kind, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_text_value_cannot_forge_a_line, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_child_adds_its_fields_and_shares_the_level, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_log_too_long_is_cut_and_says_so, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_null_and_failed_memory_drop_lines, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_log_lines_of_threads_do_not_mix, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_lines_of_a_thread_carry_its_trace, setup,
                                        teardown),
        cmocka_unit_test(test_log_level_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
