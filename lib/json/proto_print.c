#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/str.h"
#include "json/internal.h"
#include "json/proto.h"

struct printer {
    struct buf *out;
    unsigned flags;
    unsigned depth; // messages around the one at hand
    bool too_deep;
};

// The next character of a field's name in JSON, moving *p on; 0 at its end.
static char next_of_name(const char **p)
{
    bool upper = false;
    for (; **p == '_'; (*p)++)
        upper = true;
    if (**p == '\0')
        return '\0';
    char c = *(*p)++;
    return upper && c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
}

bool json_put_name(struct buf *out, const char *proto_name)
{
    char c;
    while ((c = next_of_name(&proto_name)) != '\0')
        if (!buf_putc(out, c))
            return false;
    return true;
}

bool json_name_is(const char *proto_name, const char *json_name)
{
    char c;
    while ((c = next_of_name(&proto_name)) != '\0')
        if (*json_name++ != c)
            return false;
    return *json_name == '\0';
}

// protoc calls the entries of map<,> item_counts in Thing "Thing.ItemCountsEntry".
bool json_is_map(const ProtobufCMessageDescriptor *owner, const ProtobufCFieldDescriptor *f)
{
    if (f->label != PROTOBUF_C_LABEL_REPEATED || f->type != PROTOBUF_C_TYPE_MESSAGE)
        return false;
    const ProtobufCMessageDescriptor *entry = field_message(f);
    size_t n = strlen(owner->name), n_entry = strlen(entry->name);
    if (entry->n_fields != 2 || n_entry < n + 7 || strncmp(entry->name, owner->name, n) != 0 ||
        entry->name[n] != '.' || strcmp(entry->name + n_entry - 5, "Entry") != 0)
        return false;
    const char *name = f->name, *at = entry->name + n + 1, *end = entry->name + n_entry - 5;
    char c = next_of_name(&name), first = c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
    if (*at != first)
        return false;
    while ((c = next_of_name(&name)) != '\0')
        if (++at == end || *at != c)
            return false;
    return at + 1 == end && strcmp(entry->fields[0].name, "key") == 0 && entry->fields[0].id == 1 &&
           strcmp(entry->fields[1].name, "value") == 0 && entry->fields[1].id == 2;
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
    if (v == 0 && signbit(v)) // "-0" would be read as a whole number, which has no such sign
        return buf_puts(out, "-0.0");
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

// ---------------------------------------------------------------- maps

static const void *entry_value(const ProtobufCMessage *entry, const ProtobufCFieldDescriptor *f)
{
    return member_at(entry, f->offset);
}

// Orders entries by key; those of one key by their place in the list.
struct entry {
    const ProtobufCMessage *m;
    const ProtobufCFieldDescriptor *key;
    size_t at;
};

static int compare_keys(const struct entry *a, const struct entry *b)
{
    const void *x = entry_value(a->m, a->key), *y = entry_value(b->m, b->key);
    if (a->key->type != PROTOBUF_C_TYPE_STRING)
        return memcmp(x, y, json_field_size(a->key)); // any order will do
    const char *s, *t;
    memcpy(&s, x, sizeof s);
    memcpy(&t, y, sizeof t);
    return strcmp(s ? s : "", t ? t : "");
}

static int compare_entries(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int by_key = compare_keys(x, y);
    return by_key ? by_key : x->at < y->at ? -1 : 1;
}

static bool print_key(struct printer *p, const struct entry *e)
{
    // Numbers of 64 bits and text have their quotes already.
    bool quoted = e->key->type == PROTOBUF_C_TYPE_STRING || json_field_size(e->key) == 8;
    return (quoted || buf_putc(p->out, '"')) && print_value(p, e->key, entry_value(e->m, e->key)) &&
           (quoted || buf_putc(p->out, '"')) && buf_putc(p->out, ':');
}

// An entry that says no message means an empty one.
static bool print_absent(struct printer *p, const ProtobufCMessageDescriptor *d)
{
    AUTO(mem_free_p) ProtobufCMessage *m = mem_alloc(d->sizeof_message);
    if (!m)
        return false;
    json_init_message(m, d);
    return print_message(p, m);
}

static bool print_entry(struct printer *p, const struct entry *e,
                        const ProtobufCFieldDescriptor *value)
{
    const void *at = entry_value(e->m, value);
    if (!print_key(p, e))
        return false;
    if (value->type == PROTOBUF_C_TYPE_MESSAGE && is_zero(at, sizeof(void *)))
        return print_absent(p, field_message(value));
    return print_value(p, value, at);
}

// As on the wire, the last entry of a key counts.
static bool print_map(struct printer *p, const ProtobufCFieldDescriptor *f,
                      const ProtobufCMessage *m)
{
    size_t n;
    const ProtobufCMessage *const *items;
    memcpy(&n, member_at(m, f->quantifier_offset), sizeof n);
    memcpy(&items, member_at(m, f->offset), sizeof items);
    AUTO(mem_free_p) struct entry *all = mem_array(n, sizeof *all);
    if (!all)
        return false;
    for (size_t i = 0; i < n; i++)
        all[i] = (struct entry){items[i], map_key(f), i};
    qsort(all, n, sizeof *all, compare_entries);
    bool ok = buf_putc(p->out, '{'), first = true;
    for (size_t i = 0; ok && i < n; i++) {
        if (i + 1 < n && compare_keys(&all[i], &all[i + 1]) == 0)
            continue;
        ok = (first || buf_putc(p->out, ',')) && print_entry(p, &all[i], map_value(f));
        first = false;
    }
    return ok && buf_putc(p->out, '}');
}

// ---------------------------------------------------------------- messages

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

static bool print_field(struct printer *p, const ProtobufCFieldDescriptor *f,
                        const ProtobufCMessage *m)
{
    if (!buf_putc(p->out, '"') || !json_put_name(p->out, f->name) || !buf_puts(p->out, "\":"))
        return false;
    if (json_is_map(m->descriptor, f))
        return print_map(p, f, m);
    if (f->label == PROTOBUF_C_LABEL_REPEATED)
        return print_list(p, f, m);
    return print_value(p, f, member_at(m, f->offset));
}

static bool print_fields(struct printer *p, const ProtobufCMessage *m)
{
    bool ok = buf_putc(p->out, '{'), first = true;
    for (unsigned i = 0; ok && i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        if (!is_present(p, f, m))
            continue;
        ok = (first || buf_putc(p->out, ',')) && print_field(p, f, m);
        first = false;
    }
    return ok && buf_putc(p->out, '}');
}

static bool print_message(struct printer *p, const ProtobufCMessage *m)
{
    if (!m)
        return buf_puts(p->out, "null");
    enum json_text_kind kind = json_text_kind(m->descriptor);
    if (kind != JSON_TEXT_NONE)
        return json_print_text(kind, m, p->out);
    if (p->depth == JSON_MAX_DEPTH) {
        p->too_deep = true;
        return false;
    }
    p->depth++;
    bool ok = print_fields(p, m);
    p->depth--;
    return ok;
}

enum status json_print_message(const ProtobufCMessage *m, unsigned flags, struct buf *out,
                               struct err *err)
{
    struct printer p = {.out = out, .flags = flags};
    if (print_message(&p, m))
        return STATUS_OK;
    if (p.too_deep)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "%s as JSON: messages inside messages, more than %d levels",
                       m->descriptor->name, JSON_MAX_DEPTH);
    return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                   "%s as JSON: out of memory or more than %zu bytes", m->descriptor->name,
                   out->limit);
}
