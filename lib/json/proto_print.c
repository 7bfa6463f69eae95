#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "json/internal.h"
#include "json/proto.h"

struct printer {
    struct buf *out;
    unsigned flags;
};

void json_field_name(char *dst, const char *proto_name)
{
    size_t n = 0;
    bool upper = false;
    for (const char *p = proto_name; *p && n + 1 < JSON_NAME_SIZE; p++) {
        if (*p == '_') {
            upper = true;
            continue;
        }
        dst[n++] = upper && *p >= 'a' && *p <= 'z' ? (char)(*p - 'a' + 'A') : *p;
        upper = false;
    }
    dst[n] = '\0';
}

size_t json_field_size(const ProtobufCFieldDescriptor *f)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return sizeof(int32_t);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return sizeof(int64_t);
    case PROTOBUF_C_TYPE_FLOAT:
        return sizeof(float);
    case PROTOBUF_C_TYPE_DOUBLE:
        return sizeof(double);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_ENUM:
        return sizeof(int);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    }
    return 0;
}

static bool print_message(struct printer *p, const ProtobufCMessage *m);

static bool print_base64(struct buf *out, const ProtobufCBinaryData *b)
{
    size_t n = str_b64_len(b->len);
    AUTO(mem_free_p) char *text = mem_alloc(n + 1);
    if (!text)
        return false;
    str_b64(text, b->data, b->len);
    for (char *c = text; *c; c++) // JSON wants the standard alphabet
        *c = *c == '-' ? '+' : *c == '_' ? '/' : *c;
    return buf_putc(out, '"') && buf_append(out, text, n) &&
           buf_append(out, "==", (4 - n % 4) % 4) && buf_putc(out, '"');
}

// As few digits as give the same number back; a float's digits are those of a float.
static bool print_double(struct buf *out, double v, bool is_float)
{
    if (isnan(v))
        return buf_puts(out, "\"NaN\"");
    if (isinf(v))
        return buf_puts(out, v > 0 ? "\"Infinity\"" : "\"-Infinity\"");
    char text[40];
    for (int digits = is_float ? 6 : 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (is_float ? strtof(text, NULL) == (float)v : strtod(text, NULL) == v)
            break;
    }
    return buf_puts(out, text);
}

static bool print_enum(struct buf *out, const ProtobufCFieldDescriptor *f, int v)
{
    const ProtobufCEnumValue *e = protobuf_c_enum_descriptor_get_value(f->descriptor, v);
    return e ? buf_printf(out, "\"%s\"", e->name) : buf_printf(out, "%d", v);
}

// Fraction of 0, 3, 6 or 9 digits, as the mapping says.
static bool print_timestamp(struct buf *out, const ProtobufCMessage *m)
{
    const ProtobufCMessageDescriptor *d = m->descriptor;
    const ProtobufCFieldDescriptor *fs =
        protobuf_c_message_descriptor_get_field(d, TIMESTAMP_SECONDS);
    const ProtobufCFieldDescriptor *fn =
        protobuf_c_message_descriptor_get_field(d, TIMESTAMP_NANOS);
    int64_t seconds, ms;
    int32_t nanos;
    memcpy(&seconds, member_at(m, fs->offset), sizeof seconds);
    memcpy(&nanos, member_at(m, fn->offset), sizeof nanos);
    if (__builtin_mul_overflow(seconds, 1000, &ms))
        ms = seconds < 0 ? INT64_MIN / 1000 * 1000 : INT64_MAX / 1000 * 1000;
    char text[TIME_RFC3339_SIZE];
    time_rfc3339(text, ms);
    bool ok = buf_printf(out, "\"%.19s", text);
    if (nanos > 0 && nanos < 1000000000) {
        int digits = nanos % 1000000 == 0 ? 3 : nanos % 1000 == 0 ? 6 : 9;
        int32_t shown = digits == 3 ? nanos / 1000000 : digits == 6 ? nanos / 1000 : nanos;
        ok = ok && buf_printf(out, ".%0*d", digits, shown);
    }
    return ok && buf_puts(out, "Z\"");
}

static bool print_string(struct buf *out, const char *s)
{
    return buf_put_json_string(out, s ? s : "", s ? strlen(s) : 0);
}

// The value at `at`, of the field's type.
static bool print_value(struct printer *p, const ProtobufCFieldDescriptor *f, const void *at)
{
    union {
        int32_t i32;
        uint32_t u32;
        int64_t i64;
        uint64_t u64;
        float f;
        double d;
        protobuf_c_boolean b;
        int e;
        const char *s;
        ProtobufCBinaryData bytes;
        const ProtobufCMessage *m;
    } v;
    memcpy(&v, at, json_field_size(f));
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        return buf_printf(p->out, "%d", (int)v.i32);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return buf_printf(p->out, "%u", (unsigned)v.u32);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return buf_printf(p->out, "\"%lld\"", (long long)v.i64);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return buf_printf(p->out, "\"%llu\"", (unsigned long long)v.u64);
    case PROTOBUF_C_TYPE_FLOAT:
        return print_double(p->out, (double)v.f, true);
    case PROTOBUF_C_TYPE_DOUBLE:
        return print_double(p->out, v.d, false);
    case PROTOBUF_C_TYPE_BOOL:
        return buf_puts(p->out, v.b ? "true" : "false");
    case PROTOBUF_C_TYPE_ENUM:
        return print_enum(p->out, f, v.e);
    case PROTOBUF_C_TYPE_STRING:
        return print_string(p->out, v.s);
    case PROTOBUF_C_TYPE_BYTES:
        return print_base64(p->out, &v.bytes);
    case PROTOBUF_C_TYPE_MESSAGE:
        return print_message(p, v.m);
    }
    return false;
}

static bool print_list(struct printer *p, const ProtobufCFieldDescriptor *f,
                       const ProtobufCMessage *m)
{
    size_t n, size = json_field_size(f);
    const char *items;
    memcpy(&n, member_at(m, f->quantifier_offset), sizeof n);
    memcpy(&items, member_at(m, f->offset), sizeof items);
    bool ok = buf_putc(p->out, '[');
    for (size_t i = 0; ok && i < n; i++)
        ok = (i == 0 || buf_putc(p->out, ',')) && print_value(p, f, items + i * size);
    return ok && buf_putc(p->out, ']');
}

static bool is_zero(const void *p, size_t n)
{
    const unsigned char *b = p;
    for (size_t i = 0; i < n; i++)
        if (b[i])
            return false;
    return true;
}

static bool is_present(const struct printer *p, const ProtobufCFieldDescriptor *f,
                       const ProtobufCMessage *m)
{
    const void *at = member_at(m, f->offset);
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
        uint32_t set;
        memcpy(&set, member_at(m, f->quantifier_offset), sizeof set);
        return set == f->id;
    }
    if (f->label == PROTOBUF_C_LABEL_REPEATED)
        return (p->flags & JSON_PROTO_DEFAULTS) ||
               !is_zero(member_at(m, f->quantifier_offset), sizeof(size_t));
    if (f->type == PROTOBUF_C_TYPE_MESSAGE ||
        (f->type == PROTOBUF_C_TYPE_STRING && f->label == PROTOBUF_C_LABEL_OPTIONAL))
        return !is_zero(at, sizeof(void *));
    if (f->label == PROTOBUF_C_LABEL_OPTIONAL)
        return !is_zero(member_at(m, f->quantifier_offset), sizeof(protobuf_c_boolean));
    if (p->flags & JSON_PROTO_DEFAULTS)
        return true;
    if (f->type == PROTOBUF_C_TYPE_STRING) {
        const char *s;
        memcpy(&s, at, sizeof s);
        return s && s[0];
    }
    if (f->type == PROTOBUF_C_TYPE_BYTES)
        return !is_zero(at, sizeof(size_t)); // ProtobufCBinaryData begins with its length
    return !is_zero(at, json_field_size(f));
}

static bool print_message(struct printer *p, const ProtobufCMessage *m)
{
    if (!m)
        return buf_puts(p->out, "null");
    if (is_timestamp(m->descriptor))
        return print_timestamp(p->out, m);
    bool ok = buf_putc(p->out, '{'), first = true;
    for (unsigned i = 0; ok && i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        if (!is_present(p, f, m))
            continue;
        char name[JSON_NAME_SIZE];
        json_field_name(name, f->name);
        ok = buf_printf(p->out, "%s\"%s\":", first ? "" : ",", name) &&
             (f->label == PROTOBUF_C_LABEL_REPEATED ? print_list(p, f, m)
                                                    : print_value(p, f, member_at(m, f->offset)));
        first = false;
    }
    return ok && buf_putc(p->out, '}');
}

enum status json_print_message(const ProtobufCMessage *m, unsigned flags, struct buf *out,
                               struct err *err)
{
    struct printer p = {.out = out, .flags = flags};
    if (!print_message(&p, m))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "%s as JSON: out of memory or more than %zu bytes", m->descriptor->name,
                       out->limit);
    return STATUS_OK;
}
