// JSON to a message and back: what was read prints into JSON that reads into the same.
#include <string.h>

#include "everything.pb-c.h"
#include "fuzz.h"
#include "support/every_message.h"
#include "json/proto.h"

enum { MAX_BYTES = 16 << 20, IGNORE_UNKNOWN = 1, SET_FIELD = 2 };

static ProtobufCMessage *read_text(const void *text, size_t n, const ProtobufCMessageDescriptor *d,
                                   unsigned flags, struct arena *a)
{
    AUTO(json_free_p) struct json_value *v = NULL;
    ProtobufCMessage *m = NULL;
    struct err err = ERR_INIT;
    enum status s = json_parse(text, n, 0, &v, &err);
    if (s == STATUS_OK)
        s = json_read_message_with(v, d, flags, a, &m, &err);
    FUZZ_CHECK((s == STATUS_OK) == (m != NULL));
    FUZZ_CHECK(m || err.msg[0]);
    return m;
}

static void check_round_trip(const ProtobufCMessage *m, struct arena *a)
{
    struct buf one, two;
    struct err err = ERR_INIT;
    buf_init(&one, MAX_BYTES);
    buf_init(&two, MAX_BYTES);
    FUZZ_CHECK(json_print_message(m, 0, &one, &err) == STATUS_OK);
    ProtobufCMessage *again = read_text(one.data, one.len, m->descriptor, 0, a);
    FUZZ_CHECK(again);
    FUZZ_CHECK(json_print_message(again, 0, &two, &err) == STATUS_OK);
    FUZZ_CHECK(one.len == two.len && memcmp(one.data, two.data, one.len) == 0);
    buf_done(&one);
    buf_done(&two);
}

// "a.b=text" as in a URL.
static void set_field(ProtobufCMessage *m, struct fuzz_input in, struct arena *a)
{
    const uint8_t *eq = in.n ? memchr(in.p, '=', in.n) : NULL;
    size_t n = eq ? (size_t)(eq - in.p) : in.n;
    char *path = arena_strndup(a, (const char *)in.p, n);
    char *text = arena_strndup(a, eq ? (const char *)eq + 1 : "", eq ? in.n - n - 1 : 0);
    struct err err = ERR_INIT;
    if (path && text && json_set_field(m, path, text, a, &err) == STATUS_OK)
        check_round_trip(m, a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct type_list types;
    struct fuzz_input in = {data, size};
    if (!types.n)
        FUZZ_CHECK(type_list_init(&types) && type_list_add(&types, &test__everything__descriptor));
    // A byte of flags and a type; the type with every kind of field is the last but for what it
    // holds, and is asked for most.
    unsigned flags = fuzz_u8(&in), which = fuzz_u8(&in);
    const ProtobufCMessageDescriptor *d =
        which < 128 ? &test__everything__descriptor : types.d[(which - 128) % types.n];
    AUTO(arena_free_p) struct arena *a = arena_new(MAX_BYTES * 4);
    FUZZ_CHECK(a);
    struct fuzz_input set = {0};
    if (flags & SET_FIELD)
        set = fuzz_part(&in);
    ProtobufCMessage *m =
        read_text(in.p, in.n, d, flags & IGNORE_UNKNOWN ? JSON_PROTO_IGNORE_UNKNOWN : 0, a);
    if (m && in.n < MAX_BYTES / 64)
        check_round_trip(m, a);
    if (m && set.n)
        set_field(m, set, a);
    return 0;
}
