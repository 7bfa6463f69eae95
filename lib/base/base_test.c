// One program for the whole layer: the modules are small and share their helpers.
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/dir.h"
#include "base/list.h"
#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"

static void test_status_names_are_grpcs(void **state)
{
    (void)state;
    for (unsigned i = 0; i <= 16; i++) {
        assert_int_equal(status_from_name(status_name((enum status)i)), i);
        assert_int_equal(status_from_wire(i), i);
    }
    assert_string_equal(status_name(STATUS_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_string_equal(status_name((enum status)99), "UNKNOWN");
    assert_int_equal(status_from_name("nonsense"), STATUS_UNKNOWN);
    assert_int_equal(status_from_name(NULL), STATUS_UNKNOWN);
    assert_int_equal(status_from_wire(17), STATUS_UNKNOWN);
    assert_int_equal(status_from_errno(ENOENT), STATUS_NOT_FOUND);
    assert_int_equal(status_from_errno(ENOSPC), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(status_from_errno(-1), STATUS_INTERNAL);
}

static void test_err_wrap_reads_outermost_first(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    assert_int_equal(err_errno(&e, ENOENT, "open %s", "x"), STATUS_NOT_FOUND);
    assert_string_equal(e.msg, "open x: No such file or directory");
    assert_int_equal(err_wrap(&e, STATUS_UNAVAILABLE, "publish a1"), STATUS_UNAVAILABLE);
    assert_string_equal(e.msg, "publish a1: open x: No such file or directory");
    assert_int_equal(e.code, STATUS_UNAVAILABLE);
    err_set(&e, STATUS_ABORTED, "again: %s", e.msg); // an argument may be the message itself
    assert_string_equal(e.msg, "again: publish a1: open x: No such file or directory");
    assert_int_equal(err_set(NULL, STATUS_ABORTED, "x"), STATUS_ABORTED);
    assert_int_equal(err_wrap(NULL, STATUS_ABORTED, "x"), STATUS_ABORTED);
    assert_int_equal(err_errno(NULL, ENOENT, "x"), STATUS_NOT_FOUND);
}

static void test_err_is_cut_between_characters(void **state)
{
    (void)state;
    char text[400];
    for (size_t lead = 0; lead < 4; lead++) {
        memset(text, 'a', lead);
        for (size_t i = lead; i + 4 < sizeof text; i += 3)
            memcpy(text + i, "\xe2\x82\xac", 4);
        struct err e;
        err_set(&e, STATUS_INTERNAL, "%s", text);
        assert_true(strlen(e.msg) >= sizeof e.msg - 4);
        assert_true(str_is_utf8(e.msg, strlen(e.msg)));
        err_wrap(&e, STATUS_INTERNAL, "outer");
        assert_true(str_is_utf8(e.msg, strlen(e.msg)));
    }
}

static void test_mem_fails_when_told(void **state)
{
    (void)state;
    mem_fail_at(1);
    void *a = mem_alloc(8), *b = mem_alloc(8), *c = mem_alloc(8);
    assert_int_equal(mem_n_allocs(), 3);
    mem_fail_at(-1);
    assert_non_null(a);
    assert_null(b);
    assert_non_null(c);
    mem_free(a);
    mem_free(c);
    assert_null(mem_array(SIZE_MAX, 2));
    assert_null(mem_realloc(NULL, SIZE_MAX, 2));
    assert_null(mem_strdup(NULL));
    AUTO(mem_free_p) char *s = mem_printf("%d-%s", 7, "x");
    assert_string_equal(s, "7-x");
}

static void test_arena_limit_alignment_zeroes(void **state)
{
    (void)state;
    AUTO(arena_free_p) struct arena *a = arena_new(100000);
    for (size_t n = 0; n < 300; n += 7) {
        unsigned char *p = arena_alloc(a, n);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % _Alignof(max_align_t), 0);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(p[i], 0);
        memset(p, 0xff, n);
    }
    char *large = arena_alloc(a, 60000); // a chunk of its own
    memset(large, 1, 60000);
    assert_string_equal(arena_printf(a, "%s %d", "x", 1), "x 1");
    assert_string_equal(arena_strndup(a, "abcdef", 3), "abc");
    assert_string_equal(arena_strdup(a, "abc"), "abc");
    assert_null(arena_strdup(a, NULL));
    assert_null(arena_alloc(a, 60000));
    assert_null(arena_alloc(a, SIZE_MAX));
    assert_null(arena_array(a, SIZE_MAX / 2, 3));
    assert_true(arena_used(a) <= 100000);
    mem_fail_at(0);
    assert_null(arena_new(0));
    mem_fail_at(-1);
    arena_free(NULL);
}

static void test_buf_grows_to_its_limit_only(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 100);
    assert_string_equal(buf_str(&b), "");
    for (int i = 0; i < 100; i++)
        assert_true(buf_putc(&b, 'x'));
    assert_false(buf_putc(&b, 'x'));
    assert_true(b.failed);
    assert_int_equal(b.len, 100);
    assert_int_equal(strlen(buf_str(&b)), 100);
    buf_reset(&b);
    assert_true(buf_printf(&b, "%099d", 1) && buf_putc(&b, '.'));
    assert_false(buf_printf(&b, "%d", 1));
    assert_int_equal(b.len, 100);
    size_t n = 0;
    AUTO(mem_free_p) uint8_t *taken = buf_take(&b, &n);
    assert_int_equal(n, 100);
    assert_non_null(taken);
    assert_null(b.data);
    mem_fail_at(0);
    assert_false(buf_puts(&b, "x"));
    mem_fail_at(-1);
    buf_done(&b);
}

static void test_buf_big_endian_round_trip(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 64);
    buf_put_u8(&b, 0xfe);
    buf_put_be16(&b, 0x1234);
    buf_put_be32(&b, 0xdeadbeef);
    buf_put_be64(&b, 0x0123456789abcdef);
    buf_puts(&b, "tail");
    struct reader r;
    reader_init(&r, b.data, b.len);
    assert_int_equal(reader_u8(&r), 0xfe);
    assert_int_equal(reader_be16(&r), 0x1234);
    assert_int_equal(reader_be32(&r), 0xdeadbeef);
    assert_true(reader_be64(&r) == 0x0123456789abcdef);
    assert_int_equal(reader_left(&r), 4);
    assert_memory_equal(reader_bytes(&r, 4), "tail", 4);
    assert_false(r.failed);
    assert_int_equal(reader_be32(&r), 0);
    assert_true(r.failed);
    assert_null(reader_bytes(&r, 0));
    buf_done(&b);
    reader_init(&r, NULL, 0);
    assert_int_equal(reader_left(&r), 0);
    assert_int_equal(reader_u8(&r), 0);
}

static void test_buf_json_string_escapes(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"", "\"\""},
        {"a\"\\\b\f\n\r\t/", "\"a\\\"\\\\\\b\\f\\n\\r\\t/\""},
        {"\x01\x1f\x7f", "\"\\u0001\\u001f\\u007f\""},
        {"h\xc3\xa9 \xf0\x9f\x8e\xac", "\"h\xc3\xa9 \xf0\x9f\x8e\xac\""},
        {"\xff"
         "a\xc3",
         "\"\xef\xbf\xbd"
         "a\xef\xbf\xbd\""},
    };
    struct buf b;
    buf_init(&b, 1000);
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        buf_reset(&b);
        assert_true(buf_put_json_string(&b, cases[i].in, strlen(cases[i].in)));
        assert_string_equal(buf_str(&b), cases[i].out);
    }
    buf_reset(&b);
    b.limit = 6;
    assert_true(buf_puts(&b, "ab"));
    assert_false(buf_put_json_string(&b, "cdef", 4));
    assert_string_equal(buf_str(&b), "ab"); // all or nothing
    buf_done(&b);
}

static void test_str_numbers(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      " 1",
                                      "1 ",
                                      "+1",
                                      "0x1",
                                      "1.0",
                                      "--1",
                                      "-",
                                      "9223372036854775808",
                                      "-9223372036854775809"};
    int64_t v = 77;
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        assert_int_equal(str_parse_i64(bad[i], INT64_MIN, INT64_MAX, &v, NULL),
                         STATUS_INVALID_ARGUMENT);
    assert_int_equal(str_parse_i64(NULL, 0, 1, &v, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(v, 77);
    assert_int_equal(str_parse_i64("-9223372036854775808", INT64_MIN, 0, &v, NULL), STATUS_OK);
    assert_true(v == INT64_MIN);
    assert_int_equal(str_parse_i64("5", 6, 7, &v, NULL), STATUS_OUT_OF_RANGE);
    static const struct {
        const char *s;
        int64_t ms;
    } durations[] = {{"250ms", 250},      {"30s", 30000},
                     {"15m", 900000},     {"6h", 21600000},
                     {"30d", 2592000000}, {"30", -1},
                     {"s", -1},           {"1w", -1},
                     {"-1s", -1},         {"9223372036854775807d", -1}};
    for (size_t i = 0; i < N_ELEMENTS(durations); i++) {
        v = -1;
        enum status s = str_parse_duration_ms(durations[i].s, &v, NULL);
        assert_int_equal(s, durations[i].ms < 0 ? STATUS_INVALID_ARGUMENT : STATUS_OK);
        assert_true(v == durations[i].ms);
    }
    assert_int_equal(str_parse_bytes("64K", &v, NULL), STATUS_OK);
    assert_int_equal(v, 65536);
    assert_int_equal(str_parse_bytes("2G", &v, NULL), STATUS_OK);
    assert_true(v == 2LL << 30);
    assert_int_equal(str_parse_bytes("2GB", &v, NULL), STATUS_INVALID_ARGUMENT);
}

static void test_str_comparisons_and_copies(void **state)
{
    (void)state;
    assert_true(str_eq(NULL, NULL));
    assert_false(str_eq(NULL, ""));
    assert_true(str_starts_with("abc", "ab") && !str_starts_with("a", "ab"));
    assert_true(str_ends_with("abc", "bc") && !str_ends_with("c", "bc"));
    assert_false(str_starts_with(NULL, "") || str_ends_with(NULL, ""));
    char dst[5];
    assert_true(str_copy(dst, sizeof dst, "abcd"));
    assert_false(str_copy(dst, sizeof dst, "abc\xc3\xa9"));
    assert_string_equal(dst, "abc");
    assert_false(str_copy(dst, 0, "x"));
}

static void test_str_utf8_is_strict(void **state)
{
    (void)state;
    static const char *const good[] = {"",
                                       "abc",
                                       "\xc2\x80",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xef\xbf\xbf",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xc2",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80", // overlong, surrogate
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xe2\x82",
                                      "\xff"};
    for (size_t i = 0; i < N_ELEMENTS(good); i++)
        assert_true(str_is_utf8(good[i], strlen(good[i])));
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        assert_false(str_is_utf8(bad[i], strlen(bad[i])));
}

static void test_str_hex_and_base64(void **state)
{
    (void)state;
    // RFC 4648 section 10, in the URL alphabet without padding
    static const struct {
        const char *plain, *b64;
    } cases[] = {
        {"", ""},           {"f", "Zg"},          {"fo", "Zm8"},          {"foo", "Zm9v"},
        {"foob", "Zm9vYg"}, {"fooba", "Zm9vYmE"}, {"foobar", "Zm9vYmFy"}, {"\xff\xfe\xfd", "__79"}};
    char text[32], back[32];
    size_t n;
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        size_t len = strlen(cases[i].plain);
        str_b64(text, cases[i].plain, len);
        assert_string_equal(text, cases[i].b64);
        assert_int_equal(str_b64_len(len), strlen(text));
        assert_true(str_unb64(back, len, text, strlen(text), &n));
        assert_int_equal(n, len);
        assert_memory_equal(back, cases[i].plain, len);
        if (len)
            assert_false(str_unb64(back, len - 1, text, strlen(text), &n));
    }
    static const char *const bad[] = {"Z", "Zg==", "Zh", "Zm9=", "Zm 8", "Zm+v", "Zm/v", "ZmA1B"};
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        assert_false(str_unb64(back, sizeof back, bad[i], strlen(bad[i]), &n));

    str_hex(text, "\x00\xab\xff", 3);
    assert_string_equal(text, "00abff");
    assert_true(str_unhex(back, 3, "00aBFf"));
    assert_memory_equal(back, "\x00\xab\xff", 3);
    assert_false(str_unhex(back, 3, "00abf") || str_unhex(back, 3, "00abfff") ||
                 str_unhex(back, 3, "00abfg") || str_unhex(back, 3, NULL));
}

static void test_time_deadlines_saturate(void **state)
{
    (void)state;
    assert_true(time_left_ms(TIME_NEVER) == INT64_MAX);
    assert_int_equal(time_left_ms(0), 0);
    assert_true(time_deadline_in_ms(INT64_MAX) == TIME_NEVER);
    assert_true(time_deadline_in_ms(INT64_MAX / 10) == TIME_NEVER);
    int64_t left = time_left_ms(time_deadline_in_ms(5000));
    assert_in_range(left, 1, 5000);
    assert_true(time_mono_ms() > 0 && time_wall_ms() > 1700000000000);
}

static void test_time_rfc3339(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        int64_t ms;
        bool canonical;
    } good[] = {
        {"1970-01-01T00:00:00.000Z", 0, true},
        {"2026-11-21T09:05:29.123Z", 1795251929123, true},
        {"1969-12-31T23:59:59.999Z", -1, true},
        {"0001-01-01T00:00:00.000Z", -62135596800000, true},
        {"9999-12-31T23:59:59.999Z", 253402300799999, true},
        {"2024-02-29T00:00:00.000Z", 1709164800000, true},
        {"2026-11-21T10:05:29.123456+01:00", 1795251929123, false},
        {"2026-11-21t09:05:29.1z", 1795251929100, false},
        {"2016-12-31T23:59:60Z", 1483228800000, false},
    };
    char text[TIME_RFC3339_SIZE];
    for (size_t i = 0; i < N_ELEMENTS(good); i++) {
        int64_t ms = 0;
        assert_true(time_parse_rfc3339(good[i].s, &ms));
        assert_true(ms == good[i].ms);
        time_rfc3339(text, ms);
        assert_true(!good[i].canonical || strcmp(text, good[i].s) == 0);
    }
    static const char *const bad[] = {"",
                                      "2026-11-21",
                                      "2026-13-01T00:00:00Z",
                                      "2023-02-29T00:00:00Z",
                                      "2026-11-21T24:00:00Z",
                                      "2026-11-21T09:60:00Z",
                                      "2026-11-21T09:05:61Z",
                                      "2026-11-21T09:05:29",
                                      "0000-01-01T00:00:00Z",
                                      "2026-11-21T09:05:29.Z",
                                      "2026-11-21T09:05:29Zx",
                                      "2026-11-21T09:05:29+1:00"};
    int64_t ms;
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        assert_false(time_parse_rfc3339(bad[i], &ms));
    assert_false(time_parse_rfc3339(NULL, &ms));

    int64_t sec;
    int32_t ns;
    assert_true(time_parse_rfc3339_ns("1969-12-31T23:59:59.000000001Z", &sec, &ns));
    assert_true(sec == -1 && ns == 1);
    assert_true(time_parse_rfc3339_ns("2026-11-21T10:05:29.123456789+01:00", &sec, &ns));
    assert_true(sec == 1795251929 && ns == 123456789);
    assert_true(time_parse_rfc3339_ns("9999-12-31T23:59:59.999999999Z", &sec, &ns));
    assert_true(sec == TIME_RFC3339_MAX_S && ns == 999999999);
    assert_true(time_parse_rfc3339_ns("0001-01-01T00:00:00Z", &sec, &ns));
    assert_int_equal(sec, TIME_RFC3339_MIN_S);
    assert_false(time_parse_rfc3339_ns("0001-01-01T00:00:00+00:01", &sec, &ns));
    assert_false(time_parse_rfc3339_ns("9999-12-31T23:59:59-00:01", &sec, &ns));
    assert_false(time_parse_rfc3339_ns("2026-11-21T10:05:29.1234567890Z", &sec, &ns));
    time_rfc3339(text, INT64_MAX); // clamped to what the format can say
    assert_string_equal(text, "9999-12-31T23:59:59.999Z");
}

static void test_rand_uuids_sort_as_made(void **state)
{
    (void)state;
    char last[UUID_SIZE] = "", id[UUID_SIZE];
    for (int i = 0; i < 20000; i++) { // more than one millisecond's counter holds
        rand_uuid7(id);
        assert_true(uuid_is_valid(id));
        assert_int_equal(id[14], '7');
        assert_non_null(strchr("89ab", id[19]));
        assert_true(strcmp(last, id) < 0);
        memcpy(last, id, sizeof last);
    }
    assert_false(uuid_is_valid("0193-x") || uuid_is_valid(NULL));
    assert_false(uuid_is_valid("019346AF-0000-7000-8000-000000000000"));
    assert_false(uuid_is_valid("019346af-0000-7000-8000-0000000000000"));
    assert_false(uuid_is_valid("019346af.0000-7000-8000-000000000000"));
}

static void test_rand_below_stays_below(void **state)
{
    (void)state;
    unsigned seen = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t v = rand_below(5);
        assert_true(v < 5);
        seen |= 1U << v;
    }
    assert_int_equal(seen, 0x1f);
    assert_int_equal(rand_below(1), 0);
}

struct node {
    int id;
    struct list link;
};

static void test_list_order_and_removal(void **state)
{
    (void)state;
    struct list head;
    struct node n[4] = {{.id = 0}, {.id = 1}, {.id = 2}, {.id = 3}};
    list_init(&head);
    assert_true(list_is_empty(&head));
    assert_null(list_pop_front(&head));
    list_push_back(&head, &n[1].link);
    list_push_back(&head, &n[2].link);
    list_push_front(&head, &n[0].link);
    list_insert_before(&n[2].link, &n[3].link);
    static const int order[] = {0, 1, 3, 2};
    int at = 0;
    list_for_each(l, &head) assert_int_equal(list_entry(l, struct node, link)->id, order[at++]);
    assert_int_equal(at, 4);
    list_for_each_safe(l, tmp, &head) if (list_entry(l, struct node, link)->id % 2) list_remove(l);
    list_remove(&n[1].link); // twice is harmless
    assert_int_equal(list_entry(list_pop_front(&head), struct node, link)->id, 0);
    assert_int_equal(list_entry(list_pop_front(&head), struct node, link)->id, 2);
    assert_true(list_is_empty(&head));
}

static void test_dir_makes_what_is_missing(void **state)
{
    (void)state;
    char top[] = "/tmp/cauce-base-XXXXXX", path[64];
    struct err err = ERR_INIT;
    struct stat st;

    assert_non_null(mkdtemp(top));
    assert_int_equal(chmod(top, 0750), 0);
    snprintf(path, sizeof(path), "%s/a//b/", top);
    for (int i = 0; i < 2; i++) { // the second time there is nothing to make
        assert_int_equal(dir_make(path, &err), STATUS_OK);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & (mode_t)~S_IFMT, 0700);
    }
    assert_int_equal(stat(top, &st), 0);
    assert_int_equal(st.st_mode & (mode_t)~S_IFMT, 0750); // as it was
    assert_int_equal(dir_make("", &err), STATUS_OK);

    snprintf(path, sizeof(path), "%s/a/b", top);
    assert_int_equal(rmdir(path), 0);
    snprintf(path, sizeof(path), "%s/a", top);
    assert_int_equal(rmdir(path), 0);
    snprintf(path, sizeof(path), "/dev/null/b");
    assert_int_not_equal(dir_make(path, &err), STATUS_OK);
    assert_non_null(strstr(err.msg, "/dev/null/b"));
    assert_int_equal(rmdir(top), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status_names_are_grpcs),
        cmocka_unit_test(test_err_wrap_reads_outermost_first),
        cmocka_unit_test(test_err_is_cut_between_characters),
        cmocka_unit_test(test_mem_fails_when_told),
        cmocka_unit_test(test_arena_limit_alignment_zeroes),
        cmocka_unit_test(test_buf_grows_to_its_limit_only),
        cmocka_unit_test(test_buf_big_endian_round_trip),
        cmocka_unit_test(test_buf_json_string_escapes),
        cmocka_unit_test(test_str_numbers),
        cmocka_unit_test(test_str_comparisons_and_copies),
        cmocka_unit_test(test_str_utf8_is_strict),
        cmocka_unit_test(test_str_hex_and_base64),
        cmocka_unit_test(test_dir_makes_what_is_missing),
        cmocka_unit_test(test_time_deadlines_saturate),
        cmocka_unit_test(test_time_rfc3339),
        cmocka_unit_test(test_rand_uuids_sort_as_made),
        cmocka_unit_test(test_rand_below_stays_below),
        cmocka_unit_test(test_list_order_and_removal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
