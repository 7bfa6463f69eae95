// Descriptors are made in three steps: every name is entered in a table, every message gets its
// (still empty) descriptor, then fields are laid out, which may point at any of them.
//
// A message in memory is laid out by our own rules: ProtobufCMessage, then each field in the order
// of its number with what protobuf-c wants beside it (a count, a presence flag); the members of a
// oneof share one place as large as the largest. Nothing else knows the layout: code works through
// the offsets of the descriptor.
#include "reflect/internal.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

enum {
    MAX_ARENA_BYTES = 64 << 20,
    MAX_NESTING = 32,
    MAX_FIELDS_OF_ONE = 4096,
    RULE_EXTENSION = 51001, // cauce.rule in proto/cauce/options.proto
};

#define TYPE(t) GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_##t
#define LABEL(l) GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__LABEL__LABEL_##l

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "descriptors: out of memory or too large");
}

static enum status malformed(struct err *err, const char *what, const char *where)
{
    return err_set(err, STATUS_INVALID_ARGUMENT, "descriptors: %s in %s", what, where);
}

// ---------------------------------------------------------------- names

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct symbol *)a)->name, ((const struct symbol *)b)->name);
}

const struct symbol *reflect_symbol(const struct reflect *r, const char *name)
{
    struct symbol key = {.name = name};
    return bsearch(&key, r->symbols, r->n_symbols, sizeof(key), by_name);
}

// A type as fields name it: ".pkg.Name".
static const struct symbol *find_type(const struct reflect *r, const char *type_name)
{
    return type_name && type_name[0] == '.' ? reflect_symbol(r, type_name + 1) : NULL;
}

static bool count_messages(message_proto *const *m, size_t n, size_t n_enums, unsigned depth,
                           size_t *total)
{
    *total += n + n_enums;
    for (size_t i = 0; i < n; i++)
        if (depth == MAX_NESTING || !count_messages(m[i]->nested_type, m[i]->n_nested_type,
                                                    m[i]->n_enum_type, depth + 1, total))
            return false;
    return true;
}

static const char *join(struct reflect *r, const char *scope, const char *name)
{
    if (!name || !name[0])
        return NULL;
    return scope[0] ? arena_printf(r->arena, "%s.%s", scope, name) : arena_strdup(r->arena, name);
}

static enum status enter_enums(struct reflect *r, const file_proto *f, const char *scope,
                               enum_proto *const *e, size_t n, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        struct symbol *s = &r->symbols[r->n_symbols];
        s->name = join(r, scope, e[i]->name);
        s->file = f;
        s->enumeration = e[i];
        s->e = arena_alloc(r->arena, sizeof(*s->e));
        if (!s->name || !s->e)
            return no_memory(err);
        r->n_symbols++;
    }
    return STATUS_OK;
}

static enum status enter_messages(struct reflect *r, const file_proto *f, const char *scope,
                                  message_proto *const *m, size_t n, struct err *err)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; st == STATUS_OK && i < n; i++) {
        struct symbol *s = &r->symbols[r->n_symbols];
        s->name = join(r, scope, m[i]->name);
        s->file = f;
        s->message = m[i];
        s->d = arena_alloc(r->arena, sizeof(*s->d));
        if (!s->name || !s->d)
            return no_memory(err);
        r->n_symbols++;
        r->messages[r->n_messages++] = s->d;
        const char *name = s->name; // the table moves when it is sorted, the name does not
        st = enter_enums(r, f, name, m[i]->enum_type, m[i]->n_enum_type, err);
        if (st == STATUS_OK)
            st = enter_messages(r, f, name, m[i]->nested_type, m[i]->n_nested_type, err);
    }
    return st;
}

static enum status enter_all(struct reflect *r, struct err *err)
{
    size_t total = 0;
    for (size_t i = 0; i < r->set->n_file; i++)
        if (!count_messages(r->set->file[i]->message_type, r->set->file[i]->n_message_type,
                            r->set->file[i]->n_enum_type, 0, &total))
            return malformed(err, "messages nested too deeply", r->set->file[i]->name);
    r->symbols = arena_array(r->arena, total, sizeof(r->symbols[0]));
    r->messages = arena_array(r->arena, total, sizeof(r->messages[0]));
    if (!r->symbols || !r->messages)
        return no_memory(err);
    enum status s = STATUS_OK;
    for (size_t i = 0; s == STATUS_OK && i < r->set->n_file; i++) {
        const file_proto *f = r->set->file[i];
        const char *package = f->package ? f->package : "";
        s = enter_enums(r, f, package, f->enum_type, f->n_enum_type, err);
        if (s == STATUS_OK)
            s = enter_messages(r, f, package, f->message_type, f->n_message_type, err);
    }
    if (r->n_symbols)
        qsort(r->symbols, r->n_symbols, sizeof(r->symbols[0]), by_name);
    for (size_t i = 1; s == STATUS_OK && i < r->n_symbols; i++)
        if (strcmp(r->symbols[i - 1].name, r->symbols[i].name) == 0)
            s = malformed(err, "a name given twice", r->symbols[i].name);
    return s;
}

// ---------------------------------------------------------------- lookup tables of protobuf-c

// Runs of consecutive numbers: {first number, index of the first}, and one more with the count.
static ProtobufCIntRange *make_ranges(struct arena *a, const int *sorted, unsigned n,
                                      unsigned *ret_n)
{
    ProtobufCIntRange *ranges = arena_array(a, (size_t)n + 1, sizeof(ranges[0]));
    if (!ranges)
        return NULL;
    unsigned at = 0;
    for (unsigned i = 0; i < n; i++)
        if (i == 0 || sorted[i] != sorted[i - 1] + 1)
            ranges[at++] = (ProtobufCIntRange){sorted[i], i};
    ranges[at] = (ProtobufCIntRange){0, n};
    *ret_n = at;
    return ranges;
}

// ---------------------------------------------------------------- enums

static int by_value(const void *a, const void *b)
{
    int x = ((const ProtobufCEnumValue *)a)->value, y = ((const ProtobufCEnumValue *)b)->value;
    return (x > y) - (x < y);
}

static int by_value_name(const void *a, const void *b)
{
    return strcmp(((const ProtobufCEnumValueIndex *)a)->name,
                  ((const ProtobufCEnumValueIndex *)b)->name);
}

// Of names for one number the first one declared stands for it.
static unsigned take_values(const enum_proto *p, ProtobufCEnumValue *values)
{
    unsigned n = 0;
    for (size_t i = 0; i < p->n_value; i++) {
        bool is_alias = false;
        for (unsigned k = 0; k < n && !is_alias; k++)
            is_alias = values[k].value == p->value[i]->number;
        if (!is_alias)
            values[n++] =
                (ProtobufCEnumValue){p->value[i]->name, p->value[i]->name, p->value[i]->number};
    }
    qsort(values, n, sizeof(values[0]), by_value);
    return n;
}

static enum status make_enum(struct reflect *r, struct symbol *s, struct err *err)
{
    const enum_proto *p = s->enumeration;
    if (p->n_value == 0 || p->n_value > MAX_FIELDS_OF_ONE)
        return malformed(err, "an enum without values", s->name);
    for (size_t i = 0; i < p->n_value; i++)
        if (!p->value[i]->name)
            return malformed(err, "a value without name", s->name);
    ProtobufCEnumValue *values = arena_array(r->arena, p->n_value, sizeof(values[0]));
    ProtobufCEnumValueIndex *names = arena_array(r->arena, p->n_value, sizeof(names[0]));
    int *numbers = arena_array(r->arena, p->n_value, sizeof(numbers[0]));
    if (!values || !names || !numbers)
        return no_memory(err);
    unsigned n = take_values(p, values), n_ranges = 0;
    for (unsigned i = 0; i < n; i++)
        numbers[i] = values[i].value;
    for (size_t i = 0; i < p->n_value; i++) {
        names[i].name = p->value[i]->name;
        for (unsigned k = 0; k < n; k++)
            if (values[k].value == p->value[i]->number)
                names[i].index = k;
    }
    qsort(names, p->n_value, sizeof(names[0]), by_value_name);
    ProtobufCIntRange *ranges = make_ranges(r->arena, numbers, n, &n_ranges);
    if (!ranges)
        return no_memory(err);
    *s->e = (ProtobufCEnumDescriptor){
        .magic = PROTOBUF_C__ENUM_DESCRIPTOR_MAGIC,
        .name = s->name,
        .short_name = p->name,
        .c_name = p->name,
        .package_name = s->file->package ? s->file->package : "",
        .n_values = n,
        .values = values,
        .n_value_names = (unsigned)p->n_value,
        .values_by_name = names,
        .n_value_ranges = n_ranges,
        .value_ranges = ranges,
    };
    return STATUS_OK;
}

// ---------------------------------------------------------------- fields

static bool field_type(const field_proto *f, ProtobufCType *ret, size_t *ret_size)
{
    static const struct {
        ProtobufCType type;
        size_t size; // in memory; 0: there is no such type here
    } types[] = {
        [TYPE(DOUBLE)] = {PROTOBUF_C_TYPE_DOUBLE, sizeof(double)},
        [TYPE(FLOAT)] = {PROTOBUF_C_TYPE_FLOAT, sizeof(float)},
        [TYPE(INT64)] = {PROTOBUF_C_TYPE_INT64, 8},
        [TYPE(UINT64)] = {PROTOBUF_C_TYPE_UINT64, 8},
        [TYPE(INT32)] = {PROTOBUF_C_TYPE_INT32, 4},
        [TYPE(FIXED64)] = {PROTOBUF_C_TYPE_FIXED64, 8},
        [TYPE(FIXED32)] = {PROTOBUF_C_TYPE_FIXED32, 4},
        [TYPE(BOOL)] = {PROTOBUF_C_TYPE_BOOL, sizeof(protobuf_c_boolean)},
        [TYPE(STRING)] = {PROTOBUF_C_TYPE_STRING, sizeof(char *)},
        [TYPE(MESSAGE)] = {PROTOBUF_C_TYPE_MESSAGE, sizeof(void *)},
        [TYPE(BYTES)] = {PROTOBUF_C_TYPE_BYTES, sizeof(ProtobufCBinaryData)},
        [TYPE(UINT32)] = {PROTOBUF_C_TYPE_UINT32, 4},
        [TYPE(ENUM)] = {PROTOBUF_C_TYPE_ENUM, sizeof(int)},
        [TYPE(SFIXED32)] = {PROTOBUF_C_TYPE_SFIXED32, 4},
        [TYPE(SFIXED64)] = {PROTOBUF_C_TYPE_SFIXED64, 8},
        [TYPE(SINT32)] = {PROTOBUF_C_TYPE_SINT32, 4},
        [TYPE(SINT64)] = {PROTOBUF_C_TYPE_SINT64, 8},
    };
    if ((size_t)f->type >= N_ELEMENTS(types) || types[f->type].size == 0)
        return false;
    *ret = types[f->type].type;
    *ret_size = types[f->type].size;
    return true;
}

static bool is_proto3(const file_proto *f)
{
    return f->syntax && strcmp(f->syntax, "proto3") == 0;
}

static bool is_packable(ProtobufCType t)
{
    return t != PROTOBUF_C_TYPE_STRING && t != PROTOBUF_C_TYPE_BYTES &&
           t != PROTOBUF_C_TYPE_MESSAGE;
}

static bool in_oneof(const field_proto *f)
{
    return f->has_oneof_index && !f->proto3_optional;
}

// A message has presence by itself: proto3's `optional` says nothing new of it.
static ProtobufCLabel label_of(const field_proto *f, bool proto3)
{
    if (f->label == LABEL(REPEATED))
        return PROTOBUF_C_LABEL_REPEATED;
    if (f->label == LABEL(REQUIRED))
        return PROTOBUF_C_LABEL_REQUIRED;
    bool flagged = !proto3 || (f->proto3_optional && f->type != TYPE(MESSAGE));
    return flagged ? PROTOBUF_C_LABEL_OPTIONAL : PROTOBUF_C_LABEL_NONE;
}

static uint32_t flags_of(const field_proto *f, ProtobufCType t, bool proto3)
{
    uint32_t flags = in_oneof(f) ? PROTOBUF_C_FIELD_FLAG_ONEOF : 0;
    bool packed = f->options && f->options->has_packed ? f->options->packed : proto3;
    if (f->label == LABEL(REPEATED) && is_packable(t) && packed)
        flags |= PROTOBUF_C_FIELD_FLAG_PACKED;
    return flags;
}

// Everything but the place in memory.
static enum status make_field(struct reflect *r, const struct symbol *s, const field_proto *f,
                              ProtobufCFieldDescriptor *d, size_t *ret_size, struct err *err)
{
    ProtobufCType type;
    bool proto3 = is_proto3(s->file);
    if (!f->name || !f->name[0] || f->number <= 0 || !field_type(f, &type, ret_size))
        return malformed(err, "a field without name, number or known type", s->name);
    *d = (ProtobufCFieldDescriptor){
        .name = f->name,
        .id = (uint32_t)f->number,
        .label = label_of(f, proto3),
        .type = type,
        .flags = flags_of(f, type, proto3),
    };
    if (type == PROTOBUF_C_TYPE_STRING && d->label == PROTOBUF_C_LABEL_NONE)
        d->default_value = &protobuf_c_empty_string;
    if (type == PROTOBUF_C_TYPE_MESSAGE || type == PROTOBUF_C_TYPE_ENUM) {
        const struct symbol *t = find_type(r, f->type_name);
        d->descriptor = !t                                ? NULL
                        : type == PROTOBUF_C_TYPE_MESSAGE ? (const void *)t->d
                                                          : (const void *)t->e;
        if (!d->descriptor)
            return err_set(err, STATUS_INVALID_ARGUMENT, "descriptors: no type %s of %s.%s",
                           f->type_name ? f->type_name : "\"\"", s->name, f->name);
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- layout

struct layout {
    size_t size;
    unsigned *oneof_case, *oneof_value; // offsets by oneof; 0: not placed yet
};

static unsigned place(struct layout *l, size_t size)
{
    size_t align = size >= 8 ? 8 : 4;
    size_t at = (l->size + align - 1) / align * align;
    l->size = at + size;
    return (unsigned)at;
}

static enum status place_field(struct layout *l, const struct symbol *s, const field_proto *f,
                               ProtobufCFieldDescriptor *d, size_t size, struct err *err)
{
    if (d->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
        if (f->oneof_index < 0 || (size_t)f->oneof_index >= s->message->n_oneof_decl)
            return malformed(err, "a field of no oneof", s->name);
        unsigned *kase = &l->oneof_case[f->oneof_index], *value = &l->oneof_value[f->oneof_index];
        if (!*kase) {
            *kase = place(l, sizeof(uint32_t));
            *value = place(l, sizeof(ProtobufCBinaryData)); // the largest of all members
        }
        d->quantifier_offset = *kase;
        d->offset = *value;
        return STATUS_OK;
    }
    if (d->label == PROTOBUF_C_LABEL_REPEATED) {
        d->quantifier_offset = place(l, sizeof(size_t));
        d->offset = place(l, sizeof(void *));
        return STATUS_OK;
    }
    if (d->label == PROTOBUF_C_LABEL_OPTIONAL && d->type != PROTOBUF_C_TYPE_STRING &&
        d->type != PROTOBUF_C_TYPE_MESSAGE)
        d->quantifier_offset = place(l, sizeof(protobuf_c_boolean));
    d->offset = place(l, size);
    return STATUS_OK;
}

static int by_number(const void *a, const void *b)
{
    int32_t x = (*(field_proto *const *)a)->number, y = (*(field_proto *const *)b)->number;
    return (x > y) - (x < y);
}

struct named_index {
    const char *name;
    unsigned index;
};

static int by_field_name(const void *a, const void *b)
{
    return strcmp(((const struct named_index *)a)->name, ((const struct named_index *)b)->name);
}

static unsigned *sort_names(struct arena *a, const ProtobufCFieldDescriptor *fields, unsigned n)
{
    struct named_index *names = arena_array(a, n, sizeof(names[0]));
    unsigned *sorted = arena_array(a, n, sizeof(sorted[0]));
    if (!names || !sorted)
        return NULL;
    for (unsigned i = 0; i < n; i++)
        names[i] = (struct named_index){fields[i].name, i};
    qsort(names, n, sizeof(names[0]), by_field_name);
    for (unsigned i = 0; i < n; i++)
        sorted[i] = names[i].index;
    return sorted;
}

static enum status make_fields(struct reflect *r, const struct symbol *s,
                               ProtobufCFieldDescriptor *fields, int *numbers, size_t *ret_size,
                               struct err *err)
{
    const message_proto *p = s->message;
    unsigned n = (unsigned)p->n_field;
    field_proto **sorted = arena_dup(r->arena, p->field, n * sizeof(sorted[0]));
    struct layout l = {.size = sizeof(ProtobufCMessage)};
    l.oneof_case = arena_array(r->arena, p->n_oneof_decl, sizeof(unsigned));
    l.oneof_value = arena_array(r->arena, p->n_oneof_decl, sizeof(unsigned));
    if (!sorted || !l.oneof_case || !l.oneof_value)
        return no_memory(err);
    qsort(sorted, n, sizeof(sorted[0]), by_number);
    for (unsigned i = 0; i < n; i++) {
        size_t size = 0;
        enum status st = make_field(r, s, sorted[i], &fields[i], &size, err);
        if (st == STATUS_OK)
            st = place_field(&l, s, sorted[i], &fields[i], size, err);
        if (st != STATUS_OK)
            return st;
        numbers[i] = sorted[i]->number;
        if (i > 0 && numbers[i] == numbers[i - 1])
            return malformed(err, "a field number given twice", s->name);
    }
    *ret_size = (l.size + 7) / 8 * 8;
    return STATUS_OK;
}

static enum status make_message(struct reflect *r, struct symbol *s, struct err *err)
{
    const message_proto *p = s->message;
    if (p->n_field > MAX_FIELDS_OF_ONE)
        return malformed(err, "too many fields", s->name);
    unsigned n = (unsigned)p->n_field, n_ranges = 0;
    *s->d = (ProtobufCMessageDescriptor){
        .magic = PROTOBUF_C__MESSAGE_DESCRIPTOR_MAGIC,
        .name = s->name,
        .short_name = p->name,
        .c_name = p->name,
        .package_name = s->file->package ? s->file->package : "",
        .sizeof_message = sizeof(ProtobufCMessage),
    };
    if (n == 0)
        return STATUS_OK;
    ProtobufCFieldDescriptor *fields = arena_array(r->arena, n, sizeof(fields[0]));
    int *numbers = arena_array(r->arena, n, sizeof(numbers[0]));
    if (!fields || !numbers)
        return no_memory(err);
    enum status st = make_fields(r, s, fields, numbers, &s->d->sizeof_message, err);
    if (st != STATUS_OK)
        return st;
    s->d->n_fields = n;
    s->d->fields = fields;
    s->d->fields_sorted_by_name = sort_names(r->arena, fields, n);
    s->d->field_ranges = make_ranges(r->arena, numbers, n, &n_ranges);
    s->d->n_field_ranges = n_ranges;
    return s->d->fields_sorted_by_name && s->d->field_ranges ? STATUS_OK : no_memory(err);
}

// ---------------------------------------------------------------- services

static Cauce__Rule *unpack_rule(const uint8_t *p, size_t n)
{
    ProtobufCMessage *m = NULL;
    if (rpc_message_unpack(&cauce__rule__descriptor, p, n, &m, NULL) != STATUS_OK)
        return NULL;
    return (Cauce__Rule *)(void *)m;
}

Cauce__Rule *reflect_rule(const method_proto *m)
{
    for (unsigned i = 0; m->options && i < m->options->base.n_unknown_fields; i++) {
        const ProtobufCMessageUnknownField *u = &m->options->base.unknown_fields[i];
        // data begins with the length, as it was on the wire
        size_t skip = 0;
        while (skip < u->len && skip < 10 && u->data[skip] & 0x80)
            skip++;
        if (u->tag == RULE_EXTENSION && u->wire_type == PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED &&
            skip < u->len)
            return unpack_rule(u->data + skip + 1, u->len - skip - 1);
    }
    return NULL;
}

static const char *http_of(struct reflect *r, const Cauce__HttpRule *h)
{
    if (!h)
        return NULL;
    switch (h->pattern_case) {
    case CAUCE__HTTP_RULE__PATTERN_GET:
        return arena_printf(r->arena, "GET %s", h->get);
    case CAUCE__HTTP_RULE__PATTERN_POST:
        return arena_printf(r->arena, "POST %s", h->post);
    case CAUCE__HTTP_RULE__PATTERN_PUT:
        return arena_printf(r->arena, "PUT %s", h->put);
    case CAUCE__HTTP_RULE__PATTERN_DELETE:
        return arena_printf(r->arena, "DELETE %s", h->delete_);
    case CAUCE__HTTP_RULE__PATTERN_PATCH:
        return arena_printf(r->arena, "PATCH %s", h->patch);
    case CAUCE__HTTP_RULE__PATTERN__NOT_SET:
    case _CAUCE__HTTP_RULE__PATTERN__CASE_IS_INT_SIZE:
        return NULL;
    }
    return NULL;
}

static void take_rule(struct reflect *r, const method_proto *p, struct rpc_method *m)
{
    AUTO(rpc_message_free_p) Cauce__Rule *rule = reflect_rule(p);
    if (!rule)
        return;
    for (size_t i = 0; i < rule->n_allow; i++)
        if (rule->allow[i] > 0 && (unsigned)rule->allow[i] < 32)
            m->allow |= 1U << rule->allow[i];
    m->idempotent = rule->idempotent;
    m->run_inline = rule->inline_;
    m->http = http_of(r, rule->http);
    if (rule->retry) {
        m->max_attempts = rule->retry->max_attempts;
        m->initial_backoff_ms = rule->retry->initial_backoff_ms;
        m->max_backoff_ms = rule->retry->max_backoff_ms;
    }
    m->hedge_after_ms = rule->hedge_after_ms;
    m->max_concurrent = rule->max_concurrent;
    m->max_queue_ms = rule->max_queue_ms;
}

static enum status make_method(struct reflect *r, const char *service, const method_proto *p,
                               struct rpc_method *m, struct err *err)
{
    const struct symbol *in = find_type(r, p->input_type), *out = find_type(r, p->output_type);
    if (!p->name || !in || !out || !in->d || !out->d)
        return malformed(err, "a method without its messages", service);
    m->name = join(r, service, p->name);
    if (!m->name)
        return no_memory(err);
    m->kind = p->client_streaming   ? p->server_streaming ? RPC_BIDI : RPC_CLIENT_STREAM
              : p->server_streaming ? RPC_SERVER_STREAM
                                    : RPC_UNARY;
    m->request = in->d;
    m->reply = out->d;
    take_rule(r, p, m);
    return STATUS_OK;
}

static enum status make_service(struct reflect *r, const file_proto *f, const service_proto *p,
                                struct rpc_service *s, struct err *err)
{
    s->name = join(r, f->package ? f->package : "", p->name);
    struct rpc_method *methods = arena_array(r->arena, p->n_method, sizeof(methods[0]));
    if (!s->name || !methods)
        return no_memory(err);
    enum status st = STATUS_OK;
    for (size_t i = 0; st == STATUS_OK && i < p->n_method; i++)
        st = make_method(r, s->name, p->method[i], &methods[i], err);
    s->methods = methods;
    s->n_methods = p->n_method;
    return st;
}

static enum status make_services(struct reflect *r, struct err *err)
{
    size_t total = 0;
    for (size_t i = 0; i < r->set->n_file; i++)
        total += r->set->file[i]->n_service;
    r->services = arena_array(r->arena, total, sizeof(r->services[0]));
    r->service_protos = arena_array(r->arena, total, sizeof(r->service_protos[0]));
    r->service_files = arena_array(r->arena, total, sizeof(r->service_files[0]));
    if (!r->services || !r->service_protos || !r->service_files)
        return no_memory(err);
    enum status s = STATUS_OK;
    for (size_t i = 0; i < r->set->n_file; i++)
        for (size_t k = 0; s == STATUS_OK && k < r->set->file[i]->n_service; k++) {
            const service_proto *p = r->set->file[i]->service[k];
            r->service_protos[r->n_services] = p;
            r->service_files[r->n_services] = r->set->file[i];
            s = make_service(r, r->set->file[i], p, &r->services[r->n_services++], err);
        }
    return s;
}

// ---------------------------------------------------------------- all of it

static enum status make_all(struct reflect *r, struct err *err)
{
    enum status s = enter_all(r, err);
    for (size_t i = 0; s == STATUS_OK && i < r->n_symbols; i++)
        s = r->symbols[i].e ? make_enum(r, &r->symbols[i], err)
                            : make_message(r, &r->symbols[i], err);
    return s == STATUS_OK ? make_services(r, err) : s;
}

enum status reflect_new(const void *set, size_t n, struct reflect **ret, struct err *err)
{
    AUTO(reflect_free_p) struct reflect *r = mem_alloc(sizeof(*r));
    if (!r)
        return no_memory(err);
    r->arena = arena_new(MAX_ARENA_BYTES);
    if (!r->arena)
        return no_memory(err);
    ProtobufCMessage *m = NULL;
    enum status s =
        rpc_message_unpack(&google__protobuf__file_descriptor_set__descriptor, set, n, &m, err);
    if (s != STATUS_OK)
        return s;
    r->set = (Google__Protobuf__FileDescriptorSet *)(void *)m;
    s = make_all(r, err);
    if (s == STATUS_OK)
        *ret = TAKE(r);
    return s;
}

void reflect_free(struct reflect *r)
{
    if (!r)
        return;
    rpc_message_free(r->set);
    arena_free(r->arena);
    mem_free(r);
}

const ProtobufCMessageDescriptor *reflect_message(const struct reflect *r, const char *name)
{
    const struct symbol *s = reflect_symbol(r, name);
    return s ? s->d : NULL;
}

const ProtobufCEnumDescriptor *reflect_enum(const struct reflect *r, const char *name)
{
    const struct symbol *s = reflect_symbol(r, name);
    return s ? s->e : NULL;
}

const struct rpc_service *reflect_service(const struct reflect *r, const char *name)
{
    for (size_t i = 0; i < r->n_services; i++)
        if (strcmp(r->services[i].name, name) == 0)
            return &r->services[i];
    return NULL;
}

const struct rpc_method *reflect_method(const struct reflect *r, const char *name)
{
    for (size_t i = 0; i < r->n_services; i++)
        for (size_t k = 0; k < r->services[i].n_methods; k++)
            if (strcmp(r->services[i].methods[k].name, name) == 0)
                return &r->services[i].methods[k];
    return NULL;
}

size_t reflect_n_services(const struct reflect *r)
{
    return r->n_services;
}

const struct rpc_service *reflect_service_at(const struct reflect *r, size_t i)
{
    return &r->services[i];
}

size_t reflect_n_messages(const struct reflect *r)
{
    return r->n_messages;
}

const ProtobufCMessageDescriptor *reflect_message_at(const struct reflect *r, size_t i)
{
    return r->messages[i];
}
