#include "support/random_message.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"

enum { MAX_DEPTH = 5 };

// xorshift64*, which is random enough to find what fixed examples do not.
uint64_t random_next(struct random_source *r)
{
    uint64_t x = r->state ? r->state : 0x9e3779b97f4a7c15;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    r->state = x;
    return x * 0x2545f4914f6cdd1d;
}

static unsigned below(struct random_source *r, unsigned n)
{
    return (unsigned)(random_next(r) >> 33) % n;
}

static uint64_t random_bits(struct random_source *r)
{
    static const uint64_t edges[] = {
        0,          1,          0x7f,      0x80,       0x7fffffff, 0x80000000,
        0xffffffff, 1ULL << 53, INT64_MAX, 1ULL << 63, UINT64_MAX,
    };
    switch (below(r, 3)) {
    case 0:
        return edges[below(r, N_ELEMENTS(edges))];
    case 1:
        return below(r, 300);
    default:
        return random_next(r);
    }
}

static double random_double(struct random_source *r)
{
    static const double edges[] = {0,     -0.0,   1,           -1.5,     0.1,
                                   1e300, 5e-324, (double)NAN, HUGE_VAL, -HUGE_VAL};
    if (below(r, 2))
        return edges[below(r, N_ELEMENTS(edges))];
    return (double)(int64_t)random_next(r) / (double)(1 + below(r, 1U << 30));
}

static char *random_text(struct random_source *r, struct arena *a)
{
    static const char *const words[] = {
        "a",
        "Zwölf",
        "\"",
        "\\",
        "/",
        "\n\t\r",
        "\x01\x1f\x7f",
        "é",
        "日本語",
        "\xf0\x9f\x8e\xac",
        "{}[]",
        "null",
        "%s",
        "<>&'",
        "\xe2\x80\xa8",
        "\xef\xbf\xbd",
        "\xf4\x8f\xbf\xbf",
    };
    char text[160] = "";
    for (unsigned n = below(r, 6); n > 0; n--)
        strcat(text, words[below(r, N_ELEMENTS(words))]);
    return arena_strdup(a, text);
}

static ProtobufCBinaryData random_bytes(struct random_source *r, struct arena *a)
{
    ProtobufCBinaryData b = {.len = below(r, 40)};
    b.data = arena_alloc(a, b.len + 1);
    for (size_t i = 0; b.data && i < b.len; i++)
        b.data[i] = (uint8_t)random_next(r);
    return b;
}

static ProtobufCMessage *make(struct random_source *r, const ProtobufCMessageDescriptor *d,
                              struct arena *a, unsigned depth);

// Now and then a number without a name, as a newer sender may use.
static int random_enum(struct random_source *r, const ProtobufCEnumDescriptor *e)
{
    if (below(r, 8) == 0)
        return (int)(int32_t)random_bits(r);
    return e->values[below(r, e->n_values)].value;
}

// One value of the field's type at `at`.
static void put_value(struct random_source *r, const ProtobufCFieldDescriptor *f, void *at,
                      struct arena *a, unsigned depth)
{
    uint64_t bits = random_bits(r);
    uint32_t bits32 = (uint32_t)bits;
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        memcpy(at, &bits32, sizeof(bits32));
        break;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        memcpy(at, &bits, sizeof(bits));
        break;
    case PROTOBUF_C_TYPE_FLOAT: {
        float v = (float)random_double(r);
        memcpy(at, &v, sizeof(v));
        break;
    }
    case PROTOBUF_C_TYPE_DOUBLE: {
        double v = random_double(r);
        memcpy(at, &v, sizeof(v));
        break;
    }
    case PROTOBUF_C_TYPE_BOOL: {
        protobuf_c_boolean v = bits & 1;
        memcpy(at, &v, sizeof(v));
        break;
    }
    case PROTOBUF_C_TYPE_ENUM: {
        int v = random_enum(r, f->descriptor);
        memcpy(at, &v, sizeof(v));
        break;
    }
    case PROTOBUF_C_TYPE_STRING: {
        char *v = random_text(r, a);
        memcpy(at, &v, sizeof(v));
        break;
    }
    case PROTOBUF_C_TYPE_BYTES: {
        ProtobufCBinaryData v = random_bytes(r, a);
        memcpy(at, &v, sizeof(v));
        break;
    }
    case PROTOBUF_C_TYPE_MESSAGE: {
        ProtobufCMessage *v = make(r, f->descriptor, a, depth + 1);
        memcpy(at, &v, sizeof(v));
        break;
    }
    }
}

static size_t value_size(ProtobufCType t)
{
    switch (t) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_BOOL:
    case PROTOBUF_C_TYPE_ENUM:
        return 4;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return 8;
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    }
    return 8;
}

static void put_list(struct random_source *r, const ProtobufCFieldDescriptor *f, char *m,
                     struct arena *a, unsigned depth)
{
    size_t n = below(r, 4), size = value_size(f->type);
    char *items = arena_array(a, n + 1, size);
    for (size_t i = 0; items && i < n; i++)
        put_value(r, f, items + i * size, a, depth);
    memcpy(m + f->quantifier_offset, &n, sizeof(n));
    memcpy(m + f->offset, &items, sizeof(items));
}

static void put_field(struct random_source *r, const ProtobufCFieldDescriptor *f, char *m,
                      struct arena *a, unsigned depth)
{
    bool is_message = f->type == PROTOBUF_C_TYPE_MESSAGE;
    if (below(r, 4) == 0 || (is_message && depth >= MAX_DEPTH))
        return;
    if (f->label == PROTOBUF_C_LABEL_REPEATED) {
        put_list(r, f, m, a, depth);
        return;
    }
    uint32_t id = f->id;
    protobuf_c_boolean yes = 1;
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
        uint32_t set;
        memcpy(&set, m + f->quantifier_offset, sizeof(set));
        if (set)
            return;
        memcpy(m + f->quantifier_offset, &id, sizeof(id));
    } else if (f->label == PROTOBUF_C_LABEL_OPTIONAL && !is_message &&
               f->type != PROTOBUF_C_TYPE_STRING) {
        memcpy(m + f->quantifier_offset, &yes, sizeof(yes));
    }
    put_value(r, f, m + f->offset, a, depth);
}

// A timestamp holds times that RFC 3339 can write.
static void put_timestamp(struct random_source *r, const ProtobufCMessageDescriptor *d, char *m)
{
    static const int32_t nanos[] = {0, 1, 999999999, 500000000, 123000000, 123456000, 123456789};
    int64_t seconds = (int64_t)(random_next(r) % 315537897600ULL) - 62135596800LL;
    memcpy(m + d->fields[0].offset, &seconds, sizeof(seconds));
    memcpy(m + d->fields[1].offset, &nanos[below(r, N_ELEMENTS(nanos))], sizeof(nanos[0]));
}

// Both parts of a duration have its sign.
static void put_duration(struct random_source *r, const ProtobufCMessageDescriptor *d, char *m)
{
    static const int32_t nanos[] = {0, 1, 999999999, 500000000, 123000000, 123456000, 123456789};
    int64_t seconds = below(r, 2) ? below(r, 3) : (int64_t)(random_next(r) % 315576000000ULL);
    int32_t part = nanos[below(r, N_ELEMENTS(nanos))];
    if (below(r, 2)) {
        seconds = -seconds;
        part = -part;
    }
    memcpy(m + d->fields[0].offset, &seconds, sizeof(seconds));
    memcpy(m + d->fields[1].offset, &part, sizeof(part));
}

static ProtobufCMessage *make(struct random_source *r, const ProtobufCMessageDescriptor *d,
                              struct arena *a, unsigned depth)
{
    ProtobufCMessage *empty = protobuf_c_message_unpack(d, NULL, 0, NULL);
    char *m = empty ? arena_dup(a, empty, d->sizeof_message) : NULL;
    protobuf_c_message_free_unpacked(empty, NULL);
    if (m && strcmp(d->name, "google.protobuf.Timestamp") == 0)
        put_timestamp(r, d, m);
    else if (m && strcmp(d->name, "google.protobuf.Duration") == 0)
        put_duration(r, d, m);
    else
        for (unsigned i = 0; m && i < d->n_fields; i++)
            put_field(r, &d->fields[i], m, a, depth);
    return (ProtobufCMessage *)(void *)m;
}

ProtobufCMessage *random_message(struct random_source *r, const ProtobufCMessageDescriptor *d,
                                 struct arena *a)
{
    return make(r, d, a, 0);
}
