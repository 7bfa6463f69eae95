#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/mem.h"
#include "base/str.h"
#include "json/internal.h"
#include "json/proto.h"

// The way from the message asked for to the value at hand, for what errors say: a chain from the
// inside outwards that lives on the stack.
struct place {
    const struct place *outer;
    const ProtobufCFieldDescriptor *field; // NULL: an element of the list or map that is around it
    const char *key;                       // element of a map
    size_t index;                          // element of a list
};

struct reading {
    struct arena *a;
    struct err *err;
    unsigned flags;
    const struct place *at;
};

// ---------------------------------------------------------------- what errors say

#define PATH_SIZE 160

// Puts n bytes before *at; what has no room is said to be missing.
static bool prepend(char path[PATH_SIZE], size_t *at, const char *s, size_t n)
{
    if (*at < n + 3) {
        *at -= 3;
        memcpy(path + *at, "...", 3);
        return false;
    }
    *at -= n;
    memcpy(path + *at, s, n);
    return true;
}

static bool prepend_name(char path[PATH_SIZE], size_t *at, const char *proto_name)
{
    char name[PATH_SIZE];
    struct buf b;
    buf_init(&b, sizeof name - 1);
    bool ok = json_put_name(&b, proto_name) && prepend(path, at, buf_str(&b), b.len);
    buf_done(&b);
    return ok;
}

static bool prepend_element(char path[PATH_SIZE], size_t *at, const struct place *p)
{
    if (p->key)
        return prepend(path, at, "\"]", 2) && prepend(path, at, p->key, strlen(p->key)) &&
               prepend(path, at, "[\"", 2);
    char text[24];
    int n = snprintf(text, sizeof text, "[%zu]", p->index);
    return prepend(path, at, text, (size_t)n);
}

// "items[3].name", or the end of it; starts somewhere inside path.
static const char *path_of(const struct place *p, char path[PATH_SIZE])
{
    size_t at = PATH_SIZE - 1;
    path[at] = '\0';
    for (bool ok = true; ok && p; p = p->outer) {
        ok = p->field ? prepend_name(path, &at, p->field->name) : prepend_element(path, &at, p);
        if (ok && p->field && p->outer)
            ok = prepend(path, &at, ".", 1);
    }
    return path + at;
}

static enum status refuse(const struct reading *r, const char *wanted)
{
    char path[PATH_SIZE];
    return err_set(r->err, STATUS_INVALID_ARGUMENT, "field '%s' must be %s", path_of(r->at, path),
                   wanted);
}

static enum status no_memory(const struct reading *r)
{
    return err_set(r->err, STATUS_RESOURCE_EXHAUSTED, "request: out of memory or too large");
}

static enum status read_message(const struct reading *r, const struct scalar *s,
                                const ProtobufCMessageDescriptor *d, ProtobufCMessage **ret);

// ---------------------------------------------------------------- values

static enum status scalar_bytes(const struct reading *r, const struct scalar *s,
                                ProtobufCBinaryData *ret)
{
    size_t len = s->len;
    while (s->text && len > 0 && s->len - len < 2 && s->text[len - 1] == '=')
        len--;
    char *text = s->text ? arena_strndup(r->a, s->text, len) : NULL;
    ret->data = arena_alloc(r->a, len / 4 * 3 + 3);
    if ((s->text && !text) || !ret->data)
        return no_memory(r);
    for (char *p = text; p && *p; p++)
        *p = *p == '+' ? '-' : *p == '/' ? '_' : *p;
    if (!text || !str_unb64(ret->data, len / 4 * 3 + 3, text, len, &ret->len))
        return refuse(r, "base64");
    return STATUS_OK;
}

static enum status scalar_string(const struct reading *r, const struct scalar *s, char **ret)
{
    if (!s->text)
        return refuse(r, "a string");
    if (!str_is_utf8(s->text, s->len))
        return refuse(r, "UTF-8");
    *ret = arena_strndup(r->a, s->text, s->len);
    return *ret ? STATUS_OK : no_memory(r);
}

// One value of the type of field f, which need not be the field that errors name.
static enum status read_value(const struct reading *r, const ProtobufCFieldDescriptor *f,
                              const struct scalar *s, void *at)
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
        ok = json_scalar_i64(s, INT32_MIN, INT32_MAX, &n);
        v.i32 = (int32_t)n;
        wanted = "a whole number of 32 bits";
        break;
    }
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32: {
        int64_t n = 0;
        ok = json_scalar_i64(s, 0, UINT32_MAX, &n);
        v.u32 = (uint32_t)n;
        wanted = "a whole number from 0 to 4294967295";
        break;
    }
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        ok = json_scalar_i64(s, INT64_MIN, INT64_MAX, &v.i64);
        wanted = "a whole number";
        break;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        ok = json_scalar_u64(s, &v.u64);
        wanted = "a whole number from 0";
        break;
    case PROTOBUF_C_TYPE_FLOAT:
        ok = json_scalar_float(s, &v.f);
        wanted = "a number that fits into a float";
        break;
    case PROTOBUF_C_TYPE_DOUBLE:
        ok = json_scalar_double(s, &v.d);
        wanted = "a number";
        break;
    case PROTOBUF_C_TYPE_BOOL:
        ok = json_scalar_bool(s, &v.b);
        wanted = "true or false";
        break;
    case PROTOBUF_C_TYPE_ENUM:
        ok = json_scalar_enum(s, f->descriptor, &v.e);
        wanted = "one of its enum's names";
        break;
    case PROTOBUF_C_TYPE_STRING:
        st = scalar_string(r, s, &v.s);
        break;
    case PROTOBUF_C_TYPE_BYTES:
        st = scalar_bytes(r, s, &v.bytes);
        break;
    case PROTOBUF_C_TYPE_MESSAGE:
        st = read_message(r, s, field_message(f), &v.m);
        break;
    }
    if (st != STATUS_OK)
        return st;
    if (!ok)
        return refuse(r, wanted);
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

// ---------------------------------------------------------------- fields

static ProtobufCMessage *message_new(const ProtobufCMessageDescriptor *d, struct arena *a);

static void set_list(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, size_t n,
                     const void *items)
{
    memcpy(member_at_mutable(m, f->quantifier_offset), &n, sizeof n);
    memcpy(member_at_mutable(m, f->offset), &items, sizeof items);
}

static enum status read_list(const struct reading *outer, const ProtobufCFieldDescriptor *f,
                             const struct json_value *v, ProtobufCMessage *m)
{
    if (json_kind(v) != JSON_KIND_ARRAY)
        return refuse(outer, "an array");
    size_t n = json_size(v), size = json_field_size(f);
    char *items = arena_array(outer->a, n, size);
    if (!items)
        return no_memory(outer);
    struct place at = {.outer = outer->at};
    struct reading r = *outer;
    r.at = &at;
    for (; at.index < n; at.index++) {
        struct scalar s = scalar_of(json_element(v, at.index));
        enum status st = read_value(&r, f, &s, items + at.index * size);
        if (st != STATUS_OK)
            return st;
    }
    set_list(m, f, n, items);
    return STATUS_OK;
}

static enum status read_entry(const struct reading *r, const ProtobufCFieldDescriptor *f,
                              const char *key, const struct json_value *v, ProtobufCMessage **ret)
{
    const ProtobufCFieldDescriptor *value = map_value(f);
    ProtobufCMessage *m = message_new(field_message(f), r->a);
    if (!m)
        return no_memory(r);
    struct scalar k = {.text = key, .len = strlen(key)}, s = scalar_of(v);
    enum status st = read_value(r, map_key(f), &k, member_at_mutable(m, map_key(f)->offset));
    if (st == STATUS_OK)
        st = read_value(r, value, &s, member_at_mutable(m, value->offset));
    *ret = m;
    return st;
}

static enum status read_map(const struct reading *outer, const ProtobufCFieldDescriptor *f,
                            const struct json_value *v, ProtobufCMessage *m)
{
    if (json_kind(v) != JSON_KIND_OBJECT)
        return refuse(outer, "an object");
    size_t n = json_size(v), i = 0;
    ProtobufCMessage **items = arena_array(outer->a, n, sizeof(*items));
    if (!items)
        return no_memory(outer);
    struct place at = {.outer = outer->at};
    struct reading r = *outer;
    r.at = &at;
    const struct json_value *value;
    for (void *iter = NULL; i < n && json_next_member(v, &iter, &at.key, &value); i++) {
        enum status st = read_entry(&r, f, at.key, value, &items[i]);
        if (st != STATUS_OK)
            return st;
    }
    set_list(m, f, i, items);
    return STATUS_OK;
}

static enum status read_field(const struct reading *r, const ProtobufCFieldDescriptor *f,
                              const struct json_value *v, ProtobufCMessage *m)
{
    if (json_is_map(m->descriptor, f))
        return read_map(r, f, v, m);
    if (f->label == PROTOBUF_C_LABEL_REPEATED)
        return read_list(r, f, v, m);
    struct scalar s = scalar_of(v);
    enum status st = read_value(r, f, &s, member_at_mutable(m, f->offset));
    if (st == STATUS_OK)
        mark_present(f, m);
    return st;
}

static const ProtobufCFieldDescriptor *find_field(const ProtobufCMessageDescriptor *d,
                                                  const char *name)
{
    for (unsigned i = 0; i < d->n_fields; i++)
        if (json_name_is(d->fields[i].name, name) || strcmp(d->fields[i].name, name) == 0)
            return &d->fields[i];
    return NULL;
}

// ---------------------------------------------------------------- messages

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

void json_init_message(ProtobufCMessage *m, const ProtobufCMessageDescriptor *d)
{
    if (d->message_init)
        d->message_init(m);
    else
        init_fields(m, d);
}

static ProtobufCMessage *message_new(const ProtobufCMessageDescriptor *d, struct arena *a)
{
    ProtobufCMessage *m = arena_alloc(a, d->sizeof_message);
    if (m)
        json_init_message(m, d);
    return m;
}

static enum status no_field(const struct reading *r, const char *name,
                            const ProtobufCMessageDescriptor *d)
{
    char path[PATH_SIZE];
    return err_set(r->err, STATUS_INVALID_ARGUMENT, "no field '%s%s%.80s' in %s",
                   path_of(r->at, path), r->at ? "." : "", name, d->short_name);
}

// Each field once, be it as itemId or as item_id, and one of a oneof.
static enum status check_first(const struct reading *r, const ProtobufCFieldDescriptor *f,
                               const ProtobufCMessage *m, bool *seen)
{
    char path[PATH_SIZE];
    uint32_t other = 0;
    if (*seen)
        return err_set(r->err, STATUS_INVALID_ARGUMENT, "field '%s' is given twice",
                       path_of(r->at, path));
    *seen = true;
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
        memcpy(&other, member_at(m, f->quantifier_offset), sizeof other);
    if (!other)
        return STATUS_OK;
    return err_set(r->err, STATUS_INVALID_ARGUMENT, "field '%s' cannot be given beside '%s'",
                   path_of(r->at, path),
                   protobuf_c_message_descriptor_get_field(m->descriptor, other)->name);
}

static enum status read_member(const struct reading *outer, const ProtobufCFieldDescriptor *f,
                               const struct json_value *v, ProtobufCMessage *m, bool *seen)
{
    struct place at = {.outer = outer->at, .field = f};
    struct reading r = *outer;
    r.at = &at;
    if (json_kind(v) == JSON_KIND_NULL) // as if it were not there
        return STATUS_OK;
    enum status s = check_first(&r, f, m, seen);
    return s == STATUS_OK ? read_field(&r, f, v, m) : s;
}

static enum status read_members(const struct reading *r, const struct json_value *v,
                                ProtobufCMessage *m)
{
    const ProtobufCMessageDescriptor *d = m->descriptor;
    bool *seen = arena_array(r->a, d->n_fields, sizeof *seen);
    if (!seen)
        return no_memory(r);
    void *iter = NULL;
    const char *key;
    const struct json_value *value;
    while (json_next_member(v, &iter, &key, &value)) {
        const ProtobufCFieldDescriptor *f = find_field(d, key);
        if (!f && (r->flags & JSON_PROTO_IGNORE_UNKNOWN))
            continue;
        enum status s = f ? read_member(r, f, value, m, &seen[f - d->fields]) : no_field(r, key, d);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

// As deep as the JSON, which json_parse() has limited.
static enum status read_message(const struct reading *r, const struct scalar *s,
                                const ProtobufCMessageDescriptor *d, ProtobufCMessage **ret)
{
    enum json_text_kind text = json_text_kind(d);
    ProtobufCMessage *m = message_new(d, r->a);
    if (!m)
        return no_memory(r);
    if (text != JSON_TEXT_NONE) {
        if (!s->text || strlen(s->text) != s->len || !json_read_text(text, s->text, m))
            return refuse(r, json_text_wanted(text));
    } else if (json_kind(s->json) != JSON_KIND_OBJECT) {
        return r->at ? refuse(r, "an object")
                     : err_set(r->err, STATUS_INVALID_ARGUMENT, "%s must be a JSON object",
                               d->short_name);
    } else {
        enum status st = read_members(r, s->json, m);
        if (st != STATUS_OK)
            return st;
    }
    *ret = m;
    return STATUS_OK;
}

enum status json_read_message_with(const struct json_value *v, const ProtobufCMessageDescriptor *d,
                                   unsigned flags, struct arena *a, ProtobufCMessage **ret,
                                   struct err *err)
{
    struct reading r = {.a = a, .err = err, .flags = flags};
    struct scalar s = scalar_of(v);
    if (json_kind(v) != JSON_KIND_NULL)
        return read_message(&r, &s, d, ret);
    ProtobufCMessage *m = message_new(d, a);
    if (!m)
        return no_memory(&r);
    *ret = m;
    return STATUS_OK;
}

enum status json_read_message(const struct json_value *v, const ProtobufCMessageDescriptor *d,
                              struct arena *a, ProtobufCMessage **ret, struct err *err)
{
    return json_read_message_with(v, d, 0, a, ret, err);
}

// ---------------------------------------------------------------- single fields

// Members of a oneof share their place: what another one left there is not a message.
static void choose(const ProtobufCFieldDescriptor *f, ProtobufCMessage *m)
{
    uint32_t set;
    const void *none = NULL;
    if (!(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
        return;
    memcpy(&set, member_at(m, f->quantifier_offset), sizeof set);
    if (set != f->id)
        memcpy(member_at_mutable(m, f->offset), &none, sizeof none);
    mark_present(f, m);
}

// The message in field f of m, made when it is not there yet.
static enum status descend(const struct reading *r, ProtobufCMessage *m,
                           const ProtobufCFieldDescriptor *f, ProtobufCMessage **ret)
{
    if (f->type != PROTOBUF_C_TYPE_MESSAGE || f->label == PROTOBUF_C_LABEL_REPEATED ||
        json_text_kind(field_message(f)) != JSON_TEXT_NONE)
        return err_set(r->err, STATUS_INVALID_ARGUMENT, "field '%s' has no fields", f->name);
    choose(f, m);
    memcpy(ret, member_at(m, f->offset), sizeof(void *));
    if (*ret)
        return STATUS_OK;
    *ret = message_new(field_message(f), r->a);
    if (!*ret)
        return no_memory(r);
    memcpy(member_at_mutable(m, f->offset), ret, sizeof(void *));
    return STATUS_OK;
}

static enum status append_text(const struct reading *r, ProtobufCMessage *m,
                               const ProtobufCFieldDescriptor *f, const struct scalar *text)
{
    size_t n, size = json_field_size(f);
    char *old;
    memcpy(&n, member_at(m, f->quantifier_offset), sizeof n);
    memcpy(&old, member_at(m, f->offset), sizeof old);
    char *items = arena_array(r->a, n + 1, size);
    if (!items)
        return no_memory(r);
    if (n)
        memcpy(items, old, n * size);
    enum status s = read_value(r, f, text, items + n * size);
    if (s == STATUS_OK)
        set_list(m, f, n + 1, items);
    return s;
}

static enum status set_last(const struct reading *outer, ProtobufCMessage *m,
                            const ProtobufCFieldDescriptor *f, const char *text)
{
    struct place at = {.outer = outer->at, .field = f};
    struct reading r = *outer;
    r.at = &at;
    struct scalar s = {.text = text, .len = strlen(text)};
    if (f->label == PROTOBUF_C_LABEL_REPEATED)
        return append_text(&r, m, f, &s);
    enum status st = read_value(&r, f, &s, member_at_mutable(m, f->offset));
    if (st == STATUS_OK)
        mark_present(f, m);
    return st;
}

static enum status set_at(const struct reading *outer, ProtobufCMessage *m, const char *path,
                          const char *text, unsigned depth)
{
    char name[128];
    size_t len = strcspn(path, ".");
    bool fits = len < sizeof name;
    memcpy(name, path, fits ? len : 0);
    name[fits ? len : 0] = '\0';
    const ProtobufCFieldDescriptor *f = find_field(m->descriptor, name);
    if (!f || depth == JSON_MAX_DEPTH)
        return no_field(outer, path, m->descriptor);
    if (path[len] == '\0')
        return set_last(outer, m, f, text);
    struct place at = {.outer = outer->at, .field = f};
    struct reading r = *outer;
    r.at = &at;
    enum status s = descend(&r, m, f, &m);
    return s == STATUS_OK ? set_at(&r, m, path + len + 1, text, depth + 1) : s;
}

enum status json_set_field(ProtobufCMessage *m, const char *path, const char *text, struct arena *a,
                           struct err *err)
{
    struct reading r = {.a = a, .err = err};
    return set_at(&r, m, path, text, 0);
}
