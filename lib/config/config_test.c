#include "config/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"

struct opts {
    char *name;
    char **listen;
    bool verbose;
    int64_t threads, idle_ms, max_bytes;
};
#define OPT(f) offsetof(struct opts, f)
static const struct cfg_option rows[] = {
    {"name", CFG_STRING, OPT(name), NULL, 0, 0, "a name"},
    {"listen", CFG_STRING_LIST, OPT(listen), "tcp://127.0.0.1:1", 0, 0, "addresses"},
    {"verbose", CFG_BOOL, OPT(verbose), NULL, 0, 0, "say more"},
    {"threads", CFG_I64, OPT(threads), "4", 1, 64, "threads"},
    {"idle-timeout", CFG_DURATION_MS, OPT(idle_ms), "30s", 100, 600000, "close idle peers"},
    {"max-bytes", CFG_BYTES, OPT(max_bytes), "16M", 0, 0, "quota"},
};
static const struct cfg_spec spec = {"cfgtest", "cfgtest [options]", rows, N_ELEMENTS(rows)};

static void write_file(char path[32], const char *text)
{
    strcpy(path, "/tmp/cauce-cfg-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static enum status load(struct opts *o, const char *file, const char *const *words, char ***rest,
                        struct err *err)
{
    char *argv[16] = {NULL};
    int argc = 0;
    for (; words && words[argc]; argc++)
        argv[argc] = (char *)(uintptr_t)words[argc];
    *o = (struct opts){0};
    return cfg_load(&spec, o, file, argc, argv, rest, err);
}
#define WORDS(...)                                                                                 \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

static void test_cfg_defaults(void **state)
{
    (void)state;
    struct opts o;
    assert_int_equal(load(&o, NULL, NULL, NULL, NULL), STATUS_OK);
    assert_null(o.name);
    assert_string_equal(o.listen[0], "tcp://127.0.0.1:1");
    assert_null(o.listen[1]);
    assert_false(o.verbose);
    assert_int_equal(o.threads, 4);
    assert_int_equal(o.idle_ms, 30000);
    assert_int_equal(o.max_bytes, 16 << 20);
    cfg_done(&spec, &o);
}

static void test_cfg_later_source_wins(void **state)
{
    (void)state;
    char path[32];
    write_file(path, "[other]\nunknown = 1\n[cfgtest]\nthreads = 5\nname = from-file\n"
                     "listen = a, b ,c\nidle-timeout = 1s ; a comment\n");
    setenv("CAUCE_CFGTEST_THREADS", "6", 1);
    setenv("CAUCE_CFGTEST_IDLE_TIMEOUT", "2s", 1);
    setenv("CAUCE_CFGTEST_VERBOSE", "on", 1);
    struct opts o;
    struct err err = ERR_INIT;
    char **rest = NULL;
    enum status s =
        load(&o, path, WORDS("--threads", "7", "x", "--no-verbose", "--max-bytes=2K", "--", "--y"),
             &rest, &err);
    unsetenv("CAUCE_CFGTEST_THREADS");
    unsetenv("CAUCE_CFGTEST_IDLE_TIMEOUT");
    unsetenv("CAUCE_CFGTEST_VERBOSE");
    unlink(path);
    assert_string_equal(err.msg, "");
    assert_int_equal(s, STATUS_OK);
    assert_string_equal(o.name, "from-file");
    assert_int_equal(o.threads, 7);
    assert_int_equal(o.idle_ms, 2000);
    assert_int_equal(o.max_bytes, 2048);
    assert_false(o.verbose);
    assert_string_equal(o.listen[1], "b");
    assert_string_equal(o.listen[2], "c");
    assert_null(o.listen[3]);
    assert_string_equal(rest[0], "x");
    assert_string_equal(rest[1], "--y");
    assert_null(rest[2]);
    mem_free(rest);
    cfg_done(&spec, &o);
}

static void test_cfg_list_on_argv_replaces_then_appends(void **state)
{
    (void)state;
    struct opts o;
    assert_int_equal(load(&o, NULL, WORDS("--listen", "a,b", "--listen=c"), NULL, NULL), STATUS_OK);
    assert_string_equal(o.listen[0], "a,b");
    assert_string_equal(o.listen[1], "c");
    assert_null(o.listen[2]);
    cfg_done(&spec, &o);
}

static void test_cfg_bad_words_name_option_and_limits(void **state)
{
    (void)state;
    static const struct {
        const char *const words[3];
        const char *says;
    } cases[] = {
        {{"--threads", "65"}, "option '--threads': 65 is outside 1..64"},
        {{"--threads", "six"}, "option '--threads': 'six' is not a whole number"},
        {{"--threads", "99999999999999999999"}, "is not a whole number"},
        {{"--threads"}, "option '--threads' needs a value"},
        {{"--idle-timeout", "30"}, "is not a duration"},
        {{"--idle-timeout", "20m"}, "outside 100..600000 ms"},
        {{"--max-bytes", "1Q"}, "is not a size"},
        {{"--verbose=maybe"}, "neither true nor false"},
        {{"--colour", "red"}, "no option '--colour'"},
        {{"--no-threads"}, "no option '--no-threads'"},
        {{"-v"}, "no option '-v'"},
        {{"word"}, "unexpected word 'word'"},
    };
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        struct opts o;
        struct err err = ERR_INIT;
        assert_int_equal(load(&o, NULL, cases[i].words, NULL, &err), STATUS_INVALID_ARGUMENT);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("'%s' does not say '%s'", err.msg, cases[i].says);
        assert_null(o.listen);
    }
}

static void test_cfg_bad_file_names_the_line(void **state)
{
    (void)state;
    char text[600];
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"[cfgtest]\nthreads = 0\n", "line 2: option 'threads': 0 is outside 1..64"},
        {"[cfgtest]\n\ncolour = red\n", "line 3: no option 'colour' in section [cfgtest]"},
        {"[cfgtest]\nthreads\n", "line 2: neither [section] nor name = value"},
        {"[cfgtest]\nname = %300d\n", "line 2: longer than"},
        {"[%060d]\nname = 1\n", "line 2: a name is longer than 48"},
    };
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        char path[32];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(text, sizeof text, cases[i].text, 1);
#pragma GCC diagnostic pop
        write_file(path, text);
        struct opts o;
        struct err err = ERR_INIT;
        assert_int_equal(load(&o, path, NULL, NULL, &err), STATUS_INVALID_ARGUMENT);
        unlink(path);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("'%s' does not say '%s'", err.msg, cases[i].says);
    }
    struct opts o;
    assert_int_equal(load(&o, "/nonexistent/cauce.ini", NULL, NULL, NULL), STATUS_NOT_FOUND);
}

static void test_cfg_bad_environment_names_the_variable(void **state)
{
    (void)state;
    struct opts o;
    struct err err = ERR_INIT;
    setenv("CAUCE_CFGTEST_MAX_BYTES", "many", 1);
    assert_int_equal(load(&o, NULL, NULL, NULL, &err), STATUS_INVALID_ARGUMENT);
    unsetenv("CAUCE_CFGTEST_MAX_BYTES");
    assert_non_null(strstr(err.msg, "CAUCE_CFGTEST_MAX_BYTES"));
}

static void test_cfg_every_failed_allocation_is_reported(void **state)
{
    (void)state;
    struct opts o;
    enum status s = STATUS_INTERNAL;
    for (int64_t n = 0; s != STATUS_OK; n++) {
        mem_fail_at(n);
        s = load(&o, NULL, WORDS("--name=x", "--listen=a", "--listen=b"), NULL, NULL);
        mem_fail_at(-1);
        assert_true(s == STATUS_OK || s == STATUS_RESOURCE_EXHAUSTED);
        assert_true(n < 100);
    }
    cfg_done(&spec, &o);
}

static void test_cfg_help_lists_every_option(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    cfg_print_help(&spec, f);
    fclose(f);
    for (size_t i = 0; i < N_ELEMENTS(rows); i++)
        assert_non_null(strstr(text, rows[i].name));
    assert_non_null(strstr(text, "[30s]"));
    assert_non_null(strstr(text, "CAUCE_CFGTEST_<OPTION>"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cfg_defaults),
        cmocka_unit_test(test_cfg_later_source_wins),
        cmocka_unit_test(test_cfg_list_on_argv_replaces_then_appends),
        cmocka_unit_test(test_cfg_bad_words_name_option_and_limits),
        cmocka_unit_test(test_cfg_bad_file_names_the_line),
        cmocka_unit_test(test_cfg_bad_environment_names_the_variable),
        cmocka_unit_test(test_cfg_every_failed_allocation_is_reported),
        cmocka_unit_test(test_cfg_help_lists_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
