#include "json/json.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "cauce/orchestrator.pb-c.h"
#include "cauce/store.pb-c.h"
#include "cauce/transcode.pb-c.h"
#include "json/proto.h"

static struct json_value *parse(const char *s)
{
    struct json_value *v = NULL;
    struct err err = ERR_INIT;
    if (json_parse(s, strlen(s), 0, &v, &err) != STATUS_OK)
        fail_msg("%s: %s", s, err.msg);
    return v;
}

// ---------------------------------------------------------------- trees

static void test_json_getters(void **state)
{
    (void)state;
    AUTO(json_free_p)
    struct json_value *v = parse("{\"s\":\"h\\u00e9\",\"i\":-9223372036854775808,\"d\":0.5,\"b\":"
                                 "true,\"n\":null,\"a\":[1,2]}");
    const char *s;
    size_t n;
    int64_t i;
    double d;
    bool b;
    assert_true(json_get_string(json_member(v, "s"), &s, &n));
    assert_string_equal(s, "h\xc3\xa9");
    assert_int_equal(n, 3);
    assert_true(json_get_i64(json_member(v, "i"), &i) && i == INT64_MIN);
    assert_true(json_get_double(json_member(v, "d"), &d) && d == 0.5);
    assert_true(json_get_bool(json_member(v, "b"), &b) && b);
    assert_int_equal(json_kind(json_member(v, "n")), JSON_KIND_NULL);
    assert_int_equal(json_size(json_member(v, "a")), 2);
    assert_true(json_get_i64(json_element(json_member(v, "a"), 1), &i) && i == 2);
    assert_true(json_get_double(json_element(json_member(v, "a"), 1), &d) && d == 2.0);

    assert_null(json_member(v, "absent"));
    assert_null(json_element(json_member(v, "a"), 2));
    assert_null(json_member(NULL, "x"));
    assert_int_equal(json_size(NULL), 0);
    assert_false(json_get_string(json_member(v, "i"), &s, &n) || json_get_i64(NULL, &i) ||
                 json_get_i64(json_member(v, "d"), &i) || json_get_bool(json_member(v, "i"), &b));
    assert_string_equal(json_string_or(json_member(v, "absent"), "x"), "x");

    static const char *const keys[] = {"s", "i", "d", "b", "n", "a"};
    void *iter = NULL;
    const struct json_value *value;
    size_t at = 0;
    for (; json_next_member(v, &iter, &s, &value); at++)
        assert_string_equal(s, keys[at]);
    assert_int_equal(at, 6);
}

static void test_json_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t len; // 0: strlen
    } bad[] = {{"", 0},
               {"{", 0},
               {"{} x", 0},
               {"{\"a\":1,\"a\":2}", 0},
               {"[9223372036854775808]", 0},
               {"[\"\xff\"]", 0},
               {"[\"\\u0000\"]", 0},
               {"[\"\\ud800\"]", 0},
               {"{}\0", 3},
               {"[1,]", 0},
               {"nul", 0},
               {"[01]", 0},
               {"[NaN]", 0},
               {"'a'", 0}};
    for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
        struct json_value *v = NULL;
        struct err err = ERR_INIT;
        size_t n = bad[i].len ? bad[i].len : strlen(bad[i].text);
        assert_int_equal(json_parse(bad[i].text, n, 0, &v, &err), STATUS_INVALID_ARGUMENT);
        assert_null(v);
        assert_true(err.msg[0] != '\0');
    }
}

static void test_json_depth_is_limited(void **state)
{
    (void)state;
    char deep[200000];
    memset(deep, '[', sizeof deep);
    struct json_value *v = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(json_parse(deep, sizeof deep, 0, &v, &err), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(err.msg, "deeper than 64"));
    assert_int_equal(json_parse("[[1]]", 5, 1, &v, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(json_parse("[[1]]", 5, 2, &v, &err), STATUS_OK);
    json_free(v);
    v = NULL;
    assert_int_equal(json_parse("[\"[[\\\"[[\",[]]", 13, 2, &v, &err), STATUS_OK);
    json_free(v);
    json_free(NULL);
}

// ---------------------------------------------------------------- messages

static const char *print(const void *m, unsigned flags, struct buf *b)
{
    struct err err = ERR_INIT;
    buf_reset(b);
    assert_int_equal(json_print_message(m, flags, b, &err), STATUS_OK);
    return buf_str(b);
}

static void test_proto_print_every_kind(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 4096);
    uint8_t digest[] = {0xfb, 0xff, 0x00, 0x01};
    Google__Protobuf__Timestamp t;
    google__protobuf__timestamp__init(&t);
    t.seconds = 1795251929;
    t.nanos = 123000000;
    Orchestrator__OutputInfo out;
    orchestrator__output_info__init(&out);
    out.rendition = (char *)(uintptr_t) "v720";
    out.digest = (ProtobufCBinaryData){sizeof digest, digest};
    out.size = INT64_C(9007199254740993);
    out.seconds = 0.25;
    Orchestrator__OutputInfo *outs[] = {&out};
    Orchestrator__JobInfo job;
    orchestrator__job_info__init(&job);
    job.title = (char *)(uintptr_t) "a \"b\"\n";
    job.tasks = -2;
    job.created = &t;
    job.n_outputs = 1;
    job.outputs = outs;
    assert_string_equal(
        print(&job, 0, &b),
        "{\"title\":\"a \\\"b\\\"\\n\",\"tasks\":-2,"
        "\"created\":\"2026-11-21T09:05:29.123Z\",\"outputs\":[{\"rendition\":\"v720\","
        "\"digest\":\"+/8AAQ==\",\"size\":\"9007199254740993\",\"seconds\":0.25}]}");
    Store__QuoteRequest q;
    store__quote_request__init(&q);
    assert_string_equal(print(&q, 0, &b), "{}");
    assert_string_equal(print(&q, JSON_PROTO_DEFAULTS, &b), "{\"itemIds\":[]}");
    Transcode__FailRequest f;
    transcode__fail_request__init(&f);
    f.class_ = TRANSCODE__FAIL_CLASS__CRASH;
    assert_string_equal(print(&f, 0, &b), "{\"class\":\"CRASH\"}");
    assert_string_equal(print(&f, JSON_PROTO_DEFAULTS, &b),
                        "{\"taskId\":\"\",\"fence\":\"0\",\"class\":\"CRASH\",\"message\":\"\"}");
    Store__EditItemRequest e;
    store__edit_item_request__init(&e);
    assert_string_equal(print(&e, JSON_PROTO_DEFAULTS, &b), "{\"itemId\":\"\"}");
    e.title = (char *)(uintptr_t) "";
    e.has_version = 1;
    assert_string_equal(print(&e, 0, &b), "{\"title\":\"\",\"version\":\"0\"}");
    t.nanos = 1;
    t.seconds = -1;
    assert_string_equal(print(&t, 0, &b), "\"1969-12-31T23:59:59.000000001Z\"");
    t.nanos = 0;
    assert_string_equal(print(&t, 0, &b), "\"1969-12-31T23:59:59Z\"");
    b.limit = 3;
    buf_reset(&b);
    assert_int_equal(json_print_message(&job.base, 0, &b, NULL), STATUS_RESOURCE_EXHAUSTED);
    buf_done(&b);
}

// What was read and printed again is the same, in canonical form.
static void test_proto_round_trip(void **state)
{
    (void)state;
    static const struct {
        const ProtobufCMessageDescriptor *d;
        const char *in, *out; // NULL: the same
    } cases[] = {
        {&orchestrator__job_info__descriptor,
         "{\"jobId\":\"x\",\"progress\":0.1,\"created\":\"2026-11-21T09:05:29.123Z\","
         "\"taskList\":[{\"attempts\":3},{\"error\":\"\xc3\xa9\"}]}",
         NULL},
        {&orchestrator__job_info__descriptor, "{\"job_id\":\"x\",\"tasks\":\"12\",\"title\":null}",
         "{\"jobId\":\"x\",\"tasks\":12}"},
        {&orchestrator__job_info__descriptor, "{\"tasks\":1e3}", "{\"tasks\":1000}"},
        {&orchestrator__job_info__descriptor, "{\"progress\":\"-Infinity\"}", NULL},
        {&orchestrator__open_request__descriptor, "{\"purpose\":77}", NULL},
        {&orchestrator__job_info__descriptor, "{\"progress\":-0.0}", NULL},
        {&orchestrator__open_upload_request__descriptor, "{\"size\":1e18}",
         "{\"size\":\"1000000000000000000\"}"},
        {&orchestrator__open_upload_request__descriptor,
         "{\"size\":9007199254740993,\"digest\":\"-_8AAQ\",\"head\":\"\"}",
         "{\"size\":\"9007199254740993\",\"digest\":\"+/8AAQ==\"}"},
        {&orchestrator__open_request__descriptor,
         "{\"purpose\":1,\"profile\":{\"containers\":[\"mp4\",\"webm\"],\"neverDirect\":true}}",
         "{\"purpose\":\"DOWNLOAD\",\"profile\":{\"containers\":[\"mp4\",\"webm\"],"
         "\"neverDirect\":true}}"},
        {&store__edit_item_request__descriptor, "{\"title\":\"\",\"version\":\"0\"}", NULL},
        {&store__edit_item_request__descriptor, "{\"price\":{}}", NULL},
        {&store__edit_item_request__descriptor, "null", "{}"},
    };
    struct buf b;
    buf_init(&b, 4096);
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        AUTO(json_free_p) struct json_value *v = parse(cases[i].in);
        AUTO(arena_free_p) struct arena *a = arena_new(65536);
        ProtobufCMessage *m = NULL;
        struct err err = ERR_INIT;
        if (json_read_message(v, cases[i].d, a, &m, &err) != STATUS_OK)
            fail_msg("%s: %s", cases[i].in, err.msg);
        assert_string_equal(print(m, 0, &b), cases[i].out ? cases[i].out : cases[i].in);
    }
    buf_done(&b);
}

static void test_proto_read_names_the_bad_field(void **state)
{
    (void)state;
    static const struct {
        const ProtobufCMessageDescriptor *d;
        const char *in, *says;
    } cases[] = {
        {&store__quote_request__descriptor, "{\"items\":[]}", "no field 'items'"},
        {&store__quote_request__descriptor, "{\"itemIds\":\"x\"}", "'itemIds' must be an array"},
        {&store__quote_request__descriptor, "{\"itemIds\":[1]}", "'itemIds[0]' must be a string"},
        {&store__quote_request__descriptor, "{\"itemIds\":[],\"item_ids\":[]}", "given twice"},
        {&store__quote_request__descriptor, "[]", "QuoteRequest must be a JSON object"},
        {&orchestrator__job_info__descriptor, "{\"tasks\":2147483648}", "'tasks' must be a whole"},
        {&orchestrator__job_info__descriptor, "{\"tasks\":1.5}", "'tasks' must be a whole"},
        {&orchestrator__job_info__descriptor, "{\"tasks\":true}", "'tasks' must be a whole"},
        {&orchestrator__job_info__descriptor, "{\"progress\":\"1e999\"}", "must be a number"},
        {&orchestrator__job_info__descriptor, "{\"created\":\"today\"}",
         "'created' must be a time"},
        {&orchestrator__open_request__descriptor, "{\"purpose\":\"EAT\"}", "one of its enum's"},
        {&orchestrator__open_request__descriptor, "{\"purpose\":2147483648}", "one of its enum's"},
        {&orchestrator__open_request__descriptor, "{\"profile\":{\"neverDirect\":\"true\"}}",
         "field 'profile.neverDirect' must be true or false"},
        {&orchestrator__open_upload_request__descriptor, "{\"digest\":\"a*\"}", "must be base64"},
        {&orchestrator__open_upload_request__descriptor, "{\"digest\":\"Zh==\"}", "must be base64"},
        {&orchestrator__open_upload_request__descriptor, "{\"digest\":7}", "must be base64"},
        {&orchestrator__job_info__descriptor, "{\"outputs\":[{},{\"size\":\"x\"}]}",
         "field 'outputs[1].size' must be a whole number"},
        {&orchestrator__job_info__descriptor, "{\"outputs\":[{},{\"sise\":1}]}",
         "no field 'outputs[1].sise' in OutputInfo"},
        {&orchestrator__job_info__descriptor, "{\"outputs\":[{},null]}",
         "field 'outputs[1]' must be an object"},
    };
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        AUTO(json_free_p) struct json_value *v = parse(cases[i].in);
        AUTO(arena_free_p) struct arena *a = arena_new(65536);
        ProtobufCMessage *m = NULL;
        struct err err = ERR_INIT;
        assert_int_equal(json_read_message(v, cases[i].d, a, &m, &err), STATUS_INVALID_ARGUMENT);
        assert_null(m);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("%s: '%s' does not say '%s'", cases[i].in, err.msg, cases[i].says);
    }
}

static void test_proto_read_stays_within_the_arena(void **state)
{
    (void)state;
    AUTO(json_free_p) struct json_value *v = parse("{\"itemIds\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}");
    enum status s = STATUS_INTERNAL;
    for (size_t limit = 1; s != STATUS_OK && limit < 4096; limit += 16) {
        AUTO(arena_free_p) struct arena *a = arena_new(limit);
        ProtobufCMessage *m = NULL;
        s = json_read_message(v, &store__quote_request__descriptor, a, &m, NULL);
        assert_true(s == STATUS_OK || s == STATUS_RESOURCE_EXHAUSTED);
    }
    assert_int_equal(s, STATUS_OK);
}

static void test_proto_set_field_from_text(void **state)
{
    (void)state;
    AUTO(arena_free_p) struct arena *a = arena_new(65536);
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, 4096);
    ProtobufCMessage *m = NULL;
    assert_int_equal(json_read_message(NULL, &store__search_request__descriptor, a, &m, &err), 0);
    assert_int_equal(json_set_field(m, "query", "a b", a, &err), STATUS_OK);
    assert_int_equal(json_set_field(m, "page.size", "20", a, &err), STATUS_OK);
    assert_int_equal(json_set_field(m, "page.token", "t", a, &err), STATUS_OK);
    assert_string_equal(print(m, 0, &b),
                        "{\"query\":\"a b\",\"page\":{\"size\":20,\"token\":\"t\"}}");
    assert_int_equal(json_set_field(m, "page.size", "x", a, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(json_set_field(m, "page", "x", a, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(json_set_field(m, "query.x", "x", a, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(json_set_field(m, "nothing", "x", a, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(json_set_field(m, "query", "\xff", a, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(json_read_message(NULL, &store__quote_request__descriptor, a, &m, &err), 0);
    assert_int_equal(json_set_field(m, "itemIds", "a", a, &err), STATUS_OK);
    assert_int_equal(json_set_field(m, "item_ids", "b", a, &err), STATUS_OK);
    assert_string_equal(print(m, 0, &b), "{\"itemIds\":[\"a\",\"b\"]}");
    assert_int_equal(json_read_message(NULL, &store__list_items_request__descriptor, a, &m, &err),
                     0);
    assert_int_equal(json_set_field(m, "mine", "true", a, &err), STATUS_OK);
    assert_string_equal(print(m, 0, &b), "{\"mine\":true}");
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_getters),
        cmocka_unit_test(test_json_refuses),
        cmocka_unit_test(test_json_depth_is_limited),
        cmocka_unit_test(test_proto_print_every_kind),
        cmocka_unit_test(test_proto_round_trip),
        cmocka_unit_test(test_proto_read_names_the_bad_field),
        cmocka_unit_test(test_proto_read_stays_within_the_arena),
        cmocka_unit_test(test_proto_set_field_from_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
