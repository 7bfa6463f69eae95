// proto3 `optional` through the rewriter: presence in C and the bytes on the wire, which are
// compared with hand-made ones (https://protobuf.dev/programming-guides/encoding/).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "demo.pb-c.h"

static void assert_packs_to(const Demo__Optional *m, const void *want, size_t n)
{
    uint8_t got[128];
    assert_int_equal(demo__optional__get_packed_size(m), n);
    assert_int_equal(demo__optional__pack(m, got), n);
    assert_memory_equal(got, want, n);
}

static void test_optional_absent_fields_are_not_on_the_wire(void **state)
{
    (void)state;
    Demo__Optional m = DEMO__OPTIONAL__INIT;
    assert_false(m.has_version || m.has_blob || m.has_flag || m.has_colour || m.has_register_);
    assert_null(m.title);
    assert_string_equal(m.last, "");
    assert_packs_to(&m, "", 0);

    Demo__Optional *u = demo__optional__unpack(NULL, 0, (const uint8_t *)"");
    assert_non_null(u);
    assert_false(u->has_version || u->has_blob || u->has_flag || u->has_colour || u->has_register_);
    assert_null(u->title);
    demo__optional__free_unpacked(u, NULL);
}

static void test_optional_zero_values_are_on_the_wire(void **state)
{
    (void)state;
    Demo__Optional m = DEMO__OPTIONAL__INIT;
    char empty[] = "";
    m.has_version = m.has_blob = m.has_flag = m.has_colour = m.has_register_ = 1;
    m.title = empty;
    static const uint8_t wire[] = {
        2 << 3,      0,                      // version: 0
        3 << 3 | 2,  0,                      // title: ""
        5 << 3 | 2,  0,                      // blob: ""
        8 << 3,      0,                      // flag: false
        9 << 3,      0,                      // colour: 0
        11 << 3 | 1, 0, 0, 0, 0, 0, 0, 0, 0, // register: 0.0
    };
    assert_packs_to(&m, wire, sizeof(wire));

    Demo__Optional *u = demo__optional__unpack(NULL, sizeof(wire), wire);
    assert_non_null(u);
    assert_true(u->has_version && u->has_blob && u->has_flag && u->has_colour && u->has_register_);
    assert_non_null(u->title);
    assert_string_equal(u->title, "");
    demo__optional__free_unpacked(u, NULL);
}

static void test_optional_values_beside_plain_and_oneof_fields_survive(void **state)
{
    (void)state;
    Demo__Optional m = DEMO__OPTIONAL__INIT;
    Demo__Optional__Inner inner = DEMO__OPTIONAL__INNER__INIT;
    int32_t list[] = {1, 2, 3};
    char title[] = "t", last[] = "l";
    m.plain = 7;
    m.has_version = 1;
    m.version = -1;
    m.title = title;
    m.n_list = 3;
    m.list = list;
    m.choice_case = DEMO__OPTIONAL__CHOICE_NUMBER;
    m.number = 5;
    inner.has_depth = 1;
    m.inner = &inner;
    m.last = last;
    uint8_t wire[128];
    size_t n = demo__optional__pack(&m, wire);

    Demo__Optional *u = demo__optional__unpack(NULL, n, wire);
    assert_non_null(u);
    assert_int_equal(u->plain, 7);
    assert_true(u->has_version && u->version == -1);
    assert_string_equal(u->title, "t");
    assert_int_equal(u->n_list, 3);
    assert_int_equal(u->choice_case, DEMO__OPTIONAL__CHOICE_NUMBER);
    assert_int_equal(u->number, 5);
    assert_true(u->inner && u->inner->has_depth && u->inner->depth == 0);
    assert_string_equal(u->last, "l");
    assert_false(u->has_flag || u->has_blob || u->has_colour || u->has_register_);
    demo__optional__free_unpacked(u, NULL);
}

static void test_optional_fields_are_found_by_name(void **state)
{
    (void)state;
    static const char *const names[] = {"plain",  "version", "title",  "list",  "blob",     "text",
                                        "number", "flag",    "colour", "inner", "register", "last"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const ProtobufCFieldDescriptor *f =
            protobuf_c_message_descriptor_get_field_by_name(&demo__optional__descriptor, names[i]);
        assert_non_null(f);
        assert_string_equal(f->name, names[i]);
        assert_int_equal(f->id, i + 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optional_absent_fields_are_not_on_the_wire),
        cmocka_unit_test(test_optional_zero_values_are_on_the_wire),
        cmocka_unit_test(test_optional_values_beside_plain_and_oneof_fields_survive),
        cmocka_unit_test(test_optional_fields_are_found_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
