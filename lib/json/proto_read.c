#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "json/internal.h"
#include "json/proto.h"

// Where values come from: JSON, or text of a URL that stands for any scalar.
struct scalar {
    const struct json_value *json; // NULL: text
    const char *text;              // the string's text when json is a string
    size_t len;
};

static enum status refuse(const ProtobufCFieldDescriptor *f, const char *wanted, struct err *err)
{
    return err_set(err, STATUS_INVALID_ARGUMENT, "field '%s' must be %s", f->name, wanted);
}

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "request: out of memory or too large");
}

static enum status read_message(const struct json_value *v, const ProtobufCMessageDescriptor *d,
                                struct arena *a, ProtobufCMessage **ret, struct err *err);

static bool scalar_i64(const struct scalar *s, int64_t min, int64_t max, int64_t *ret)
{
    int64_t v;
    double d;
    if (s->text) {
        if (str_parse_i64(s->text, min, max, &v, NULL) != STATUS_OK)
            return false;
    } else if (!json_get_i64(s->json, &v)) {
        // 1.0 and 1e3 are whole numbers as well
        if (!json_get_double(s->json, &d) || d > 9007199254740992.0 || d < -9007199254740992.0)
            return false;
        v = (int64_t)d;
        if ((double)v != d)
            return false;
    }
    if (v < min || v > max)
        return false;
    *ret = v;
    return true;
}

static bool scalar_u64(const struct scalar *s, uint64_t *ret)
{
    int64_t v;
    if (scalar_i64(s, 0, INT64_MAX, &v)) {
        *ret = (uint64_t)v;
        return true;
    }
    if (!s->text || s->len > 20 || s->len == 0 || strspn(s->text, "0123456789") != s->len)
        return false;
    uint64_t u = 0;
    for (const char *p = s->text; *p; p++)
        if (__builtin_mul_overflow(u, 10, &u) ||
            __builtin_add_overflow(u, (uint64_t)(*p - '0'), &u))
            return false;
    *ret = u;
    return true;
}

static bool scalar_double(const struct scalar *s, double *ret)
{
    static const struct {
        const char *name;
        double value;
    } special[] = {{"NaN", (double)NAN}, {"Infinity", HUGE_VAL}, {"-Infinity", -HUGE_VAL}};
    if (!s->text)
        return json_get_double(s->json, ret);
    for (size_t i = 0; i < N_ELEMENTS(special); i++)
        if (str_eq(s->text, special[i].name)) {
            *ret = special[i].value;
            return true;
        }
    if (s->len == 0 || strspn(s->text, "0123456789+-.eE") != s->len)
        return false;
    char *end;
    *ret = strtod(s->text, &end);
    return *end == '\0' && isfinite(*ret);
}

static bool scalar_bool(const struct scalar *s, protobuf_c_boolean *ret)
{
    bool b;
    if (!s->json && (str_eq(s->text, "true") || str_eq(s->text, "false"))) {
        *ret = s->text[0] == 't';
        return true;
    }
    if (!json_get_bool(s->json, &b))
        return false;
    *ret = b;
    return true;
}

static bool scalar_enum(const struct scalar *s, const ProtobufCEnumDescriptor *d, int *ret)
{
    int64_t v;
    const ProtobufCEnumValue *e =
        s->text ? protobuf_c_enum_descriptor_get_value_by_name(d, s->text) : NULL;
    if (!e && scalar_i64(s, INT32_MIN, INT32_MAX, &v))
        e = protobuf_c_enum_descriptor_get_value(d, (int)v);
    if (!e)
        return false;
    *ret = e->value;
    return true;
}

static enum status scalar_bytes(const struct scalar *s, const ProtobufCFieldDescriptor *f,
                                struct arena *a, ProtobufCBinaryData *ret, struct err *err)
{
    size_t len = s->len;
    while (s->text && len > 0 && s->len - len < 2 && s->text[len - 1] == '=')
        len--;
    char *text = s->text ? arena_strndup(a, s->text, len) : NULL;
    ret->data = arena_alloc(a, len / 4 * 3 + 3);
    if ((s->text && !text) || !ret->data)
        return no_memory(err);
    for (char *p = text; p && *p; p++)
        *p = *p == '+' ? '-' : *p == '/' ? '_' : *p;
    if (!text || !str_unb64(ret->data, len / 4 * 3 + 3, text, len, &ret->len))
        return refuse(f, "base64", err);
    return STATUS_OK;
}

static enum status scalar_string(const struct scalar *s, const ProtobufCFieldDescriptor *f,
                                 struct arena *a, char **ret, struct err *err)
{
    if (!s->text)
        return refuse(f, "a string", err);
    if (!str_is_utf8(s->text, s->len))
        return refuse(f, "UTF-8", err);
    *ret = arena_strndup(a, s->text, s->len);
    return *ret ? STATUS_OK : no_memory(err);
}

static enum status read_value(const ProtobufCFieldDescriptor *f, const struct scalar *s, void *at,
                              struct arena *a, struct err *err)
{
    union {
        int64_t i64;
        uint64_t u64;
        int32_t i32;
        uint32_t u32;
        double d;
        float f;
        protobuf_c_boolean b;
        int e;
        char *s;
        ProtobufCBinaryData bytes;
        ProtobufCMessage *m;
    } v = {0};
    enum status st = STATUS_OK;
    bool ok = true;
    const char *wanted = "";
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32: {
        int64_t n = 0;
        ok = scalar_i64(s, INT32_MIN, INT32_MAX, &n);
        v.i32 = (int32_t)n;
        wanted = "a whole number of 32 bits";
        break;
    }
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32: {
        int64_t n = 0;
        ok = scalar_i64(s, 0, UINT32_MAX, &n);
        v.u32 = (uint32_t)n;
        wanted = "a whole number from 0 to 4294967295";
        break;
    }
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        ok = scalar_i64(s, INT64_MIN, INT64_MAX, &v.i64);
        wanted = "a whole number";
        break;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        ok = scalar_u64(s, &v.u64);
        wanted = "a whole number from 0";
        break;
    case PROTOBUF_C_TYPE_FLOAT: {
        double d = 0;
        ok = scalar_double(s, &d);
        v.f = (float)d;
        wanted = "a number";
        break;
    }
    case PROTOBUF_C_TYPE_DOUBLE:
        ok = scalar_double(s, &v.d);
        wanted = "a number";
        break;
    case PROTOBUF_C_TYPE_BOOL:
        ok = scalar_bool(s, &v.b);
        wanted = "true or false";
        break;
    case PROTOBUF_C_TYPE_ENUM:
        ok = scalar_enum(s, f->descriptor, &v.e);
        wanted = "one of its enum's names";
        break;
    case PROTOBUF_C_TYPE_STRING:
        st = scalar_string(s, f, a, &v.s, err);
        break;
    case PROTOBUF_C_TYPE_BYTES:
        st = scalar_bytes(s, f, a, &v.bytes, err);
        break;
    case PROTOBUF_C_TYPE_MESSAGE:
        if (!s->json)
            return refuse(f, "an object", err);
        st = read_message(s->json, field_message(f), a, &v.m, err);
        if (st != STATUS_OK)
            return err_wrap(err, st, "%s", f->name);
        break;
    }
    if (st != STATUS_OK)
        return st;
    if (!ok)
        return refuse(f, wanted, err);
    memcpy(at, &v, json_field_size(f));
    return STATUS_OK;
}

static struct scalar scalar_of(const struct json_value *v)
{
    struct scalar s = {.json = v};
    json_get_string(v, &s.text, &s.len);
    return s;
}

static void mark_present(const ProtobufCFieldDescriptor *f, ProtobufCMessage *m)
{
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
        uint32_t id = f->id;
        memcpy(member_at_mutable(m, f->quantifier_offset), &id, sizeof id);
    } else if (f->label == PROTOBUF_C_LABEL_OPTIONAL && f->type != PROTOBUF_C_TYPE_STRING &&
               f->type != PROTOBUF_C_TYPE_MESSAGE) {
        protobuf_c_boolean yes = 1;
        memcpy(member_at_mutable(m, f->quantifier_offset), &yes, sizeof yes);
    }
}

static enum status read_list(const ProtobufCFieldDescriptor *f, const struct json_value *v,
                             ProtobufCMessage *m, struct arena *a, struct err *err)
{
    if (json_kind(v) != JSON_KIND_ARRAY)
        return refuse(f, "an array", err);
    size_t n = json_size(v), size = json_field_size(f);
    char *items = arena_array(a, n, size);
    if (!items)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        struct scalar s = scalar_of(json_element(v, i));
        enum status st = read_value(f, &s, items + i * size, a, err);
        if (st != STATUS_OK)
            return st;
    }
    memcpy(member_at_mutable(m, f->quantifier_offset), &n, sizeof n);
    memcpy(member_at_mutable(m, f->offset), &items, sizeof items);
    return STATUS_OK;
}

static enum status read_field(const ProtobufCFieldDescriptor *f, const struct json_value *v,
                              ProtobufCMessage *m, struct arena *a, struct err *err)
{
    if (json_kind(v) == JSON_KIND_NULL)
        return STATUS_OK;
    if (f->label == PROTOBUF_C_LABEL_REPEATED)
        return read_list(f, v, m, a, err);
    struct scalar s = scalar_of(v);
    enum status st = read_value(f, &s, member_at_mutable(m, f->offset), a, err);
    if (st == STATUS_OK)
        mark_present(f, m);
    return st;
}

static const ProtobufCFieldDescriptor *find_field(const ProtobufCMessageDescriptor *d,
                                                  const char *name)
{
    for (unsigned i = 0; i < d->n_fields; i++) {
        char json_name[JSON_NAME_SIZE];
        json_field_name(json_name, d->fields[i].name);
        if (strcmp(json_name, name) == 0 || strcmp(d->fields[i].name, name) == 0)
            return &d->fields[i];
    }
    return NULL;
}

// Descriptors made at run time have no message_init.
static void init_fields(ProtobufCMessage *m, const ProtobufCMessageDescriptor *d)
{
    m->descriptor = d;
    for (unsigned i = 0; i < d->n_fields; i++)
        if (d->fields[i].default_value && d->fields[i].type == PROTOBUF_C_TYPE_STRING &&
            d->fields[i].label != PROTOBUF_C_LABEL_REPEATED &&
            !(d->fields[i].flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
            memcpy(member_at_mutable(m, d->fields[i].offset), &d->fields[i].default_value,
                   sizeof(void *));
}

static ProtobufCMessage *message_new(const ProtobufCMessageDescriptor *d, struct arena *a)
{
    ProtobufCMessage *m = arena_alloc(a, d->sizeof_message);
    if (m && d->message_init)
        d->message_init(m);
    else if (m)
        init_fields(m, d);
    return m;
}

static enum status read_timestamp(const struct json_value *v, ProtobufCMessage *m, struct err *err)
{
    const char *text;
    int64_t ms;
    if (!json_get_string(v, &text, NULL) || !time_parse_rfc3339(text, &ms))
        return err_set(err, STATUS_INVALID_ARGUMENT, "must be a time such as 2026-11-21T09:05:29Z");
    int64_t seconds = ms / 1000 - (ms % 1000 < 0);
    int32_t nanos = (int32_t)(ms - seconds * 1000) * 1000000;
    const ProtobufCMessageDescriptor *d = m->descriptor;
    memcpy(
        member_at_mutable(m, protobuf_c_message_descriptor_get_field(d, TIMESTAMP_SECONDS)->offset),
        &seconds, sizeof seconds);
    memcpy(
        member_at_mutable(m, protobuf_c_message_descriptor_get_field(d, TIMESTAMP_NANOS)->offset),
        &nanos, sizeof nanos);
    return STATUS_OK;
}

static enum status read_members(const struct json_value *v, ProtobufCMessage *m, struct arena *a,
                                struct err *err)
{
    const ProtobufCMessageDescriptor *d = m->descriptor;
    bool *seen = arena_array(a, d->n_fields, sizeof *seen);
    if (!seen)
        return no_memory(err);
    void *iter = NULL;
    const char *key;
    const struct json_value *value;
    while (json_next_member(v, &iter, &key, &value)) {
        const ProtobufCFieldDescriptor *f = find_field(d, key);
        if (!f)
            return err_set(err, STATUS_INVALID_ARGUMENT, "no field '%s' in %s", key, d->short_name);
        if (seen[f - d->fields]) // once as itemId and once as item_id
            return err_set(err, STATUS_INVALID_ARGUMENT, "field '%s' is given twice", f->name);
        seen[f - d->fields] = true;
        enum status s = read_field(f, value, m, a, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

// As deep as the JSON, which json_parse() has limited.
static enum status read_message(const struct json_value *v, const ProtobufCMessageDescriptor *d,
                                struct arena *a, ProtobufCMessage **ret, struct err *err)
{
    ProtobufCMessage *m = message_new(d, a);
    if (!m)
        return no_memory(err);
    enum status s = STATUS_OK;
    if (is_timestamp(d))
        s = read_timestamp(v, m, err);
    else if (json_kind(v) == JSON_KIND_OBJECT)
        s = read_members(v, m, a, err);
    else
        s = err_set(err, STATUS_INVALID_ARGUMENT, "%s must be a JSON object", d->short_name);
    if (s == STATUS_OK)
        *ret = m;
    return s;
}

enum status json_read_message(const struct json_value *v, const ProtobufCMessageDescriptor *d,
                              struct arena *a, ProtobufCMessage **ret, struct err *err)
{
    if (json_kind(v) != JSON_KIND_NULL)
        return read_message(v, d, a, ret, err);
    ProtobufCMessage *m = message_new(d, a);
    if (!m)
        return no_memory(err);
    *ret = m;
    return STATUS_OK;
}

// ---------------------------------------------------------------- single fields

// The message in field f of m, made when it is not there yet.
static enum status descend(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, struct arena *a,
                           ProtobufCMessage **ret, struct err *err)
{
    if (f->type != PROTOBUF_C_TYPE_MESSAGE || f->label == PROTOBUF_C_LABEL_REPEATED ||
        is_timestamp(field_message(f)))
        return err_set(err, STATUS_INVALID_ARGUMENT, "field '%s' has no fields", f->name);
    memcpy(ret, member_at(m, f->offset), sizeof(void *));
    if (*ret)
        return STATUS_OK;
    *ret = message_new(field_message(f), a);
    if (!*ret)
        return no_memory(err);
    memcpy(member_at_mutable(m, f->offset), ret, sizeof(void *));
    return STATUS_OK;
}

static enum status append_text(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
                               const struct scalar *text, struct arena *a, struct err *err)
{
    size_t n, size = json_field_size(f);
    char *old;
    memcpy(&n, member_at(m, f->quantifier_offset), sizeof n);
    memcpy(&old, member_at(m, f->offset), sizeof old);
    char *items = arena_array(a, n + 1, size);
    if (!items)
        return no_memory(err);
    if (n)
        memcpy(items, old, n * size);
    enum status s = read_value(f, text, items + n * size, a, err);
    if (s != STATUS_OK)
        return s;
    n++;
    memcpy(member_at_mutable(m, f->quantifier_offset), &n, sizeof n);
    memcpy(member_at_mutable(m, f->offset), &items, sizeof items);
    return STATUS_OK;
}

enum status json_set_field(ProtobufCMessage *m, const char *path, const char *text, struct arena *a,
                           struct err *err)
{
    for (;;) {
        char name[JSON_NAME_SIZE];
        size_t len = strcspn(path, ".");
        bool fits = len < sizeof name;
        memcpy(name, path, fits ? len : 0);
        name[fits ? len : 0] = '\0';
        const ProtobufCFieldDescriptor *f = find_field(m->descriptor, name);
        if (!f)
            return err_set(err, STATUS_INVALID_ARGUMENT, "no field '%s' in %s", path,
                           m->descriptor->short_name);
        if (path[len] == '.') {
            enum status s = descend(m, f, a, &m, err);
            if (s != STATUS_OK)
                return s;
            path += len + 1;
            continue;
        }
        struct scalar s = {.text = text, .len = strlen(text)};
        if (f->label == PROTOBUF_C_LABEL_REPEATED)
            return append_text(m, f, &s, a, err);
        enum status st = read_value(f, &s, member_at_mutable(m, f->offset), a, err);
        if (st == STATUS_OK)
            mark_present(f, m);
        return st;
    }
}
