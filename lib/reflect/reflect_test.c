// Descriptors made at run time against those that protoc-gen-c wrote: the same bytes and the same
// JSON for every message of the product.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "cauce/services.rpc.h"
#include "reflect/reflect.h"
#include "support/random_message.h"
#include "json/proto.h"

enum { MESSAGES_OF_A_TYPE = 50, MAX_BYTES = 4 << 20 };

static int make(void **state)
{
    struct reflect *r = NULL;
    struct err err = ERR_INIT;
    enum status s = reflect_new(cauce_descriptor_set, cauce_descriptor_set_size, &r, &err);
    if (s != STATUS_OK)
        print_error("%s\n", err.msg);
    *state = r;
    return s == STATUS_OK ? 0 : -1;
}

static int done(void **state)
{
    reflect_free(*state);
    return 0;
}

// Freed by the caller.
static uint8_t *pack(const ProtobufCMessage *m, size_t *ret_n)
{
    *ret_n = protobuf_c_message_get_packed_size(m);
    uint8_t *p = mem_alloc(*ret_n + 1);
    assert_non_null(p);
    assert_int_equal(protobuf_c_message_pack(m, p), *ret_n);
    return p;
}

static void assert_same_json(const ProtobufCMessage *a, const ProtobufCMessage *b)
{
    struct buf one, two;
    buf_init(&one, MAX_BYTES);
    buf_init(&two, MAX_BYTES);
    assert_int_equal(json_print_message(a, JSON_PROTO_DEFAULTS, &one, NULL), STATUS_OK);
    assert_int_equal(json_print_message(b, JSON_PROTO_DEFAULTS, &two, NULL), STATUS_OK);
    assert_string_equal(buf_str(&one), buf_str(&two));
    buf_done(&one);
    buf_done(&two);
}

// Bytes of one kind of descriptor through the other, and back to the same bytes.
static void compare_one(struct random_source *r, const ProtobufCMessageDescriptor *from,
                        const ProtobufCMessageDescriptor *to)
{
    AUTO(arena_free_p) struct arena *a = arena_new(MAX_BYTES);
    assert_non_null(a);
    size_t n, n_got;
    AUTO(mem_free_p) uint8_t *want = pack(random_message(r, from, a), &n);
    AUTO(rpc_message_free_p) ProtobufCMessage *other = NULL;
    assert_int_equal(rpc_message_unpack(to, want, n, &other, NULL), STATUS_OK);
    AUTO(mem_free_p) uint8_t *got = pack(other, &n_got);
    assert_int_equal(n_got, n);
    assert_memory_equal(got, want, n);
    AUTO(rpc_message_free_p) ProtobufCMessage *same = NULL;
    assert_int_equal(rpc_message_unpack(from, want, n, &same, NULL), STATUS_OK);
    assert_same_json(same, other);
}

static void compare_type(const struct reflect *r, const ProtobufCMessageDescriptor *d)
{
    const ProtobufCMessageDescriptor *made = reflect_message(r, d->name);
    assert_non_null(made);
    assert_ptr_not_equal(made, d);
    assert_int_equal(made->n_fields, d->n_fields);
    struct random_source rand = {.state = 1};
    for (unsigned i = 0; i < MESSAGES_OF_A_TYPE; i++) {
        compare_one(&rand, d, made);
        compare_one(&rand, made, d);
    }
}

static void test_messages_of_every_method_are_the_same_as_generated(void **state)
{
    for (size_t i = 0; i < cauce_n_services; i++)
        for (size_t k = 0; k < cauce_services[i]->n_methods; k++) {
            compare_type(*state, cauce_services[i]->methods[k].request);
            compare_type(*state, cauce_services[i]->methods[k].reply);
        }
}

static void assert_same_text(const char *a, const char *b)
{
    assert_string_equal(a ? a : "", b ? b : "");
}

static void test_methods_say_what_the_generated_tables_say(void **state)
{
    for (size_t i = 0; i < cauce_n_services; i++) {
        const struct rpc_service *s = reflect_service(*state, cauce_services[i]->name);
        assert_non_null(s);
        assert_int_equal(s->n_methods, cauce_services[i]->n_methods);
        for (size_t k = 0; k < s->n_methods; k++) {
            const struct rpc_method *want = &cauce_services[i]->methods[k], *got = &s->methods[k];
            assert_string_equal(got->name, want->name);
            assert_ptr_equal(reflect_method(*state, want->name), got);
            assert_int_equal(got->kind, want->kind);
            assert_int_equal(got->allow, want->allow);
            assert_int_equal(got->idempotent, want->idempotent);
            assert_int_equal(got->run_inline, want->run_inline);
            assert_int_equal(got->max_attempts, want->max_attempts);
            assert_int_equal(got->max_concurrent, want->max_concurrent);
            assert_same_text(got->http, want->http);
            assert_string_equal(got->request->name, want->request->name);
            assert_string_equal(got->reply->name, want->reply->name);
        }
    }
}

static void test_text_names_fields_types_and_rules(void **state)
{
    static const struct {
        const char *name, *part;
    } rows[] = {
        {"cauce.session.v1.Session",
         "rpc Login(LoginRequest) returns (Tokens) {\n    option "
         "(cauce.rule) = {allow: ANON http: {post: \"/api/v1/login\"}};"},
        {"cauce.origin.v1.Object.Read", "rpc Read(ReadRequest) returns (stream ReadReply) {"},
        {"cauce.origin.v1.Object.Read", "  string media_token = 4;  // users only\n"},
        {"cauce.session.v1.Tokens", "  google.protobuf.Timestamp access_expires = 3;\n"},
        {"cauce.session.v1.ListUsersReply", "  repeated User users = 1;\n"},
        {"cauce.node.v1.Serving", "  NOT_SERVING = 2;\n"},
        {"cauce.HttpRule", "  oneof pattern {\n    string get = 1;\n"},
        {"cauce.node.v1.Health",
         "  // The state at once, then again whenever it changes, until the caller leaves.\n"
         "  rpc Watch("},
        {"cauce.node.v1.Health.Watch", "// The state at once, then again whenever it changes"},
        {"cauce.node.v1.Channel",
         "message Channel {  // one endpoint of a client in this process\n"},
        {"cauce.node.v1.Channel", "  string peer_role = 3;  // \"\" when any\n"},
        {"cauce.node.v1.ChannelState", "  CHANNEL_FAILING = 4;  // the last attempts to connect"},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct buf b;
        buf_init(&b, MAX_BYTES);
        assert_int_equal(reflect_describe(*state, rows[i].name, &b, NULL), STATUS_OK);
        if (!strstr(buf_str(&b), rows[i].part))
            fail_msg("%s is not in:\n%s", rows[i].part, buf_str(&b));
        buf_done(&b);
    }
    struct buf b;
    buf_init(&b, MAX_BYTES);
    assert_int_equal(reflect_describe(*state, "cauce.session.v1.None", &b, NULL), STATUS_NOT_FOUND);
    buf_done(&b);
}

static void expect_part(const struct reflect *r, const char *name, const char *kind,
                        const char *file)
{
    static const char *const services[] = {"cauce.node.v1.Node", "cauce.store.v1.Catalog"};
    struct reflect_part part;
    struct buf b;
    AUTO(reflect_free_p) struct reflect *made = NULL;
    struct err err = ERR_INIT;
    buf_init(&b, MAX_BYTES);
    if (reflect_subset(r, services, N_ELEMENTS(services), name, &part, &b, &err) != STATUS_OK ||
        reflect_new(b.data, b.len, &made, &err) != STATUS_OK)
        fail_msg("%s: %s", name, err.msg);
    buf_done(&b);
    assert_string_equal(part.kind, kind);
    assert_string_equal(part.file, file);
    assert_true(strcmp(kind, "service") != 0 || reflect_service(made, name));
    assert_true(strcmp(kind, "method") != 0 || reflect_method(made, name));
    assert_true(strcmp(kind, "message") != 0 || reflect_message(made, name));
    assert_true(strcmp(kind, "enum") != 0 || reflect_enum(made, name));
    assert_null(reflect_service(made, "cauce.session.v1.Session"));
}

static void test_part_of_a_set_is_the_file_and_what_it_needs(void **state)
{
    expect_part(*state, "cauce.node.v1.Node", "service", "cauce/node.proto");
    expect_part(*state, "cauce.node.v1.Reflection", "service", "cauce/node.proto");
    expect_part(*state, "cauce.node.v1.Node.Calls", "method", "cauce/node.proto");
    expect_part(*state, "cauce.node.v1.CallStatus", "message", "cauce/node.proto");
    expect_part(*state, "cauce.node.v1.CallState", "enum", "cauce/node.proto");
    expect_part(*state, "cauce/node.proto", "file", "cauce/node.proto");
    expect_part(*state, "cauce.store.v1.Catalog.List", "method", "cauce/store.proto");
    expect_part(*state, "google.protobuf.Timestamp", "message", "google/protobuf/timestamp.proto");
    static const char *const unknown[] = {"cauce.session.v1.Session", "cauce.session.v1.Tokens",
                                          "cauce/session.proto", "", "cauce"};
    static const char *const services[] = {"cauce.node.v1.Node", "cauce.nothing.v1.Nothing"};
    for (size_t i = 0; i < N_ELEMENTS(unknown); i++) {
        struct reflect_part part;
        struct buf b;
        buf_init(&b, MAX_BYTES);
        assert_int_equal(
            reflect_subset(*state, services, N_ELEMENTS(services), unknown[i], &part, &b, NULL),
            STATUS_NOT_FOUND);
        assert_int_equal(b.len, 0);
        buf_done(&b);
    }
}

static void test_broken_sets_are_refused(void **state)
{
    (void)state;
    struct reflect *r = NULL;
    // Cut anywhere, and with any one byte changed: refused or made, never a crash.
    AUTO(mem_free_p) uint8_t *set = mem_alloc(cauce_descriptor_set_size);
    assert_non_null(set);
    assert_int_equal(reflect_new("\xff", 1, &r, NULL), STATUS_INVALID_ARGUMENT);
    for (size_t at = 0; at < cauce_descriptor_set_size; at += 331) {
        memcpy(set, cauce_descriptor_set, cauce_descriptor_set_size);
        if (reflect_new(set, at, &r, NULL) == STATUS_OK)
            reflect_free(r);
        set[at] ^= 0x55;
        if (reflect_new(set, cauce_descriptor_set_size, &r, NULL) == STATUS_OK)
            reflect_free(r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_messages_of_every_method_are_the_same_as_generated,
                                        make, done),
        cmocka_unit_test_setup_teardown(test_methods_say_what_the_generated_tables_say, make, done),
        cmocka_unit_test_setup_teardown(test_text_names_fields_types_and_rules, make, done),
        cmocka_unit_test_setup_teardown(test_part_of_a_set_is_the_file_and_what_it_needs, make,
                                        done),
        cmocka_unit_test(test_broken_sets_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
