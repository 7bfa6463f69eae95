// Text as it would stand in a .proto file. Names of the same package lose it.
//
// Comments are found by path, as SourceCodeInfo has them: the numbers of the fields, and the
// indexes, that lead from the file to what is printed.
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "reflect/internal.h"

enum { // fields of descriptors: parts of paths
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    MESSAGE_ONEOF = 8,
    ENUM_VALUE = 2,
    SERVICE_METHOD = 2,
    MAX_PATH = 2 * 40, // reflect_new() refuses deeper nesting
};

struct printer {
    struct buf *out;
    const char *package;
    const file_proto *file;
    unsigned depth;
    int32_t path[MAX_PATH];
    size_t n_path;
};

// ---------------------------------------------------------------- comments

static void enter(struct printer *p, int32_t field, size_t index)
{
    if (p->n_path + 2 <= MAX_PATH) {
        p->path[p->n_path] = field;
        p->path[p->n_path + 1] = (int32_t)index;
    }
    p->n_path += 2;
}

static void leave(struct printer *p)
{
    p->n_path -= 2;
}

// Of what is printed now; NULL when it has none.
static const Google__Protobuf__SourceCodeInfo__Location *comments(const struct printer *p)
{
    const Google__Protobuf__SourceCodeInfo *info = p->file ? p->file->source_code_info : NULL;
    for (size_t i = 0; info && p->n_path <= MAX_PATH && i < info->n_location; i++) {
        const Google__Protobuf__SourceCodeInfo__Location *l = info->location[i];
        if (l->n_path == p->n_path && memcmp(l->path, p->path, l->n_path * sizeof(l->path[0])) == 0)
            return l;
    }
    return NULL;
}

static void print_comment(struct printer *p, const char *text)
{
    while (text && *text) {
        size_t n = strcspn(text, "\n");
        buf_printf(p->out, "%*s//%.*s\n", (int)p->depth * 2, "", (int)n, text);
        text += n + (text[n] != '\0');
    }
}

static void comment_before(struct printer *p)
{
    const Google__Protobuf__SourceCodeInfo__Location *l = comments(p);
    if (l)
        print_comment(p, l->leading_comments);
}

// What stands behind a line and has one itself goes there; else it goes below.
static void comment_after(struct printer *p)
{
    const Google__Protobuf__SourceCodeInfo__Location *l = comments(p);
    const char *text = l ? l->trailing_comments : NULL;
    size_t n = text ? strcspn(text, "\n") : 0;
    if (text && (text[n] == '\0' || text[n + 1] == '\0'))
        buf_printf(p->out, "  //%.*s\n", (int)n, text);
    else
        buf_putc(p->out, '\n');
    if (text && text[n] != '\0' && text[n + 1] != '\0')
        print_comment(p, text);
}

// Without its end, which comment_after() makes.
static void line(struct printer *p, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void line(struct printer *p, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    buf_printf(p->out, "%*s%s", (int)p->depth * 2, "", text);
}

static void open_block(struct printer *p)
{
    comment_after(p);
    p->depth++;
}

static void close_block(struct printer *p)
{
    p->depth--;
    buf_printf(p->out, "%*s}\n", (int)p->depth * 2, "");
}

static const char *short_type(const struct printer *p, const char *type_name)
{
    const char *name = type_name && type_name[0] == '.' ? type_name + 1 : "?";
    size_t n = strlen(p->package);
    return n && strncmp(name, p->package, n) == 0 && name[n] == '.' ? name + n + 1 : name;
}

// ---------------------------------------------------------------- messages and enums

static const char *scalar_name(int32_t type)
{
    static const char *const names[] = {
        "?",       "double",   "float",    "int64",  "uint64",  "int32", "fixed64",
        "fixed32", "bool",     "string",   "group",  "message", "bytes", "uint32",
        "enum",    "sfixed32", "sfixed64", "sint32", "sint64",
    };
    return type > 0 && (size_t)type < N_ELEMENTS(names) ? names[type] : "?";
}

static const char *type_text(const struct printer *p, const field_proto *f)
{
    return f->type_name && f->type_name[0] ? short_type(p, f->type_name)
                                           : scalar_name((int32_t)f->type);
}

// The entry type of a map field, which the compiler made up; NULL for any other field.
static const message_proto *map_entry(const message_proto *m, const field_proto *f)
{
    const char *name = f->type_name ? strrchr(f->type_name, '.') : NULL;
    for (size_t i = 0; name && i < m->n_nested_type; i++) {
        const message_proto *nested = m->nested_type[i];
        if (nested->options && nested->options->map_entry && nested->n_field == 2 &&
            strcmp(nested->name, name + 1) == 0)
            return nested;
    }
    return NULL;
}

static void print_field(struct printer *p, const message_proto *m, const field_proto *f)
{
    const message_proto *entry = map_entry(m, f);
    if (entry) {
        line(p, "map<%s, %s> %s = %d;", type_text(p, entry->field[0]),
             type_text(p, entry->field[1]), f->name, f->number);
        comment_after(p);
        return;
    }
    bool repeated = f->label == GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__LABEL__LABEL_REPEATED;
    bool required = f->label == GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__LABEL__LABEL_REQUIRED;
    line(p, "%s%s %s = %d;",
         repeated             ? "repeated "
         : required           ? "required "
         : f->proto3_optional ? "optional "
                              : "",
         type_text(p, f), f->name, f->number);
    comment_after(p);
}

static void print_field_at(struct printer *p, const message_proto *m, size_t i)
{
    enter(p, MESSAGE_FIELD, i);
    comment_before(p);
    print_field(p, m, m->field[i]);
    leave(p);
}

static bool is_member_of(const field_proto *f, size_t oneof)
{
    return f->has_oneof_index && !f->proto3_optional && f->oneof_index >= 0 &&
           (size_t)f->oneof_index == oneof;
}

static void print_oneof(struct printer *p, const message_proto *m, size_t oneof)
{
    enter(p, MESSAGE_ONEOF, oneof);
    comment_before(p);
    line(p, "oneof %s {", m->oneof_decl[oneof]->name ? m->oneof_decl[oneof]->name : "?");
    open_block(p);
    leave(p);
    for (size_t i = 0; i < m->n_field; i++)
        if (is_member_of(m->field[i], oneof))
            print_field_at(p, m, i);
    close_block(p);
}

static void print_enum(struct printer *p, const enum_proto *e)
{
    comment_before(p);
    line(p, "enum %s {", e->name);
    open_block(p);
    for (size_t i = 0; i < e->n_value; i++) {
        enter(p, ENUM_VALUE, i);
        comment_before(p);
        line(p, "%s = %d;", e->value[i]->name, e->value[i]->number);
        comment_after(p);
        leave(p);
    }
    close_block(p);
}

static void print_message(struct printer *p, const message_proto *m);

static void print_nested(struct printer *p, const message_proto *m)
{
    for (size_t i = 0; i < m->n_enum_type; i++) {
        enter(p, MESSAGE_ENUM, i);
        print_enum(p, m->enum_type[i]);
        leave(p);
    }
    for (size_t i = 0; i < m->n_nested_type; i++) {
        if (m->nested_type[i]->options && m->nested_type[i]->options->map_entry)
            continue;
        enter(p, MESSAGE_NESTED, i);
        print_message(p, m->nested_type[i]);
        leave(p);
    }
}

static void print_message(struct printer *p, const message_proto *m)
{
    comment_before(p);
    line(p, "message %s {", m->name);
    open_block(p);
    print_nested(p, m);
    uint64_t printed = 0; // oneofs: where their first member stands
    for (size_t i = 0; i < m->n_field; i++) {
        const field_proto *f = m->field[i];
        if (!f->has_oneof_index || f->proto3_optional || f->oneof_index < 0 ||
            f->oneof_index >= 64 || (size_t)f->oneof_index >= m->n_oneof_decl) {
            print_field_at(p, m, i);
        } else if (!(printed & UINT64_C(1) << f->oneof_index)) {
            printed |= UINT64_C(1) << f->oneof_index;
            print_oneof(p, m, (size_t)f->oneof_index);
        }
    }
    close_block(p);
}

// ---------------------------------------------------------------- services

const char *reflect_role_name(unsigned bit)
{
    const ProtobufCEnumValue *v =
        bit && bit < 32 ? protobuf_c_enum_descriptor_get_value(&cauce__role__descriptor, (int)bit)
                        : NULL;
    return v ? v->name : NULL;
}

static void print_roles(struct buf *out, const Cauce__Rule *r)
{
    buf_printf(out, "allow: %s", r->n_allow == 1 ? "" : "[");
    for (size_t i = 0; i < r->n_allow; i++) {
        const ProtobufCEnumValue *v =
            protobuf_c_enum_descriptor_get_value(&cauce__role__descriptor, (int)r->allow[i]);
        if (v)
            buf_printf(out, "%s%s", i ? ", " : "", v->name);
        else
            buf_printf(out, "%s%d", i ? ", " : "", (int)r->allow[i]);
    }
    buf_puts(out, r->n_allow == 1 ? "" : "]");
}

static void print_number(struct buf *out, const char *name, uint32_t v)
{
    if (v)
        buf_printf(out, " %s: %u", name, (unsigned)v);
}

static void print_retry(struct buf *out, const Cauce__RetryPolicy *r)
{
    if (!r)
        return;
    buf_puts(out, " retry: {");
    print_number(out, "max_attempts", r->max_attempts);
    print_number(out, "initial_backoff_ms", r->initial_backoff_ms);
    print_number(out, "max_backoff_ms", r->max_backoff_ms);
    buf_puts(out, " }");
}

static void print_http(struct buf *out, const char *http)
{
    static const struct {
        const char *verb, *field;
    } verbs[] = {{"GET ", "get"},
                 {"POST ", "post"},
                 {"PUT ", "put"},
                 {"DELETE ", "delete"},
                 {"PATCH ", "patch"}};
    for (size_t i = 0; http && i < N_ELEMENTS(verbs); i++)
        if (strncmp(http, verbs[i].verb, strlen(verbs[i].verb)) == 0)
            buf_printf(out, " http: {%s: \"%s\"}", verbs[i].field, http + strlen(verbs[i].verb));
}

static void print_method(struct printer *p, const method_proto *m, const char *http)
{
    AUTO(rpc_message_free_p) Cauce__Rule *rule = reflect_rule(m);
    comment_before(p);
    line(p, "rpc %s(%s%s) returns (%s%s)%s", m->name, m->client_streaming ? "stream " : "",
         short_type(p, m->input_type), m->server_streaming ? "stream " : "",
         short_type(p, m->output_type), rule ? " {" : ";");
    if (!rule) {
        comment_after(p);
        return;
    }
    open_block(p);
    line(p, "option (cauce.rule) = {");
    print_roles(p->out, rule);
    if (rule->idempotent)
        buf_puts(p->out, " idempotent: true");
    if (rule->inline_)
        buf_puts(p->out, " inline: true");
    print_http(p->out, http);
    print_retry(p->out, rule->retry);
    print_number(p->out, "hedge_after_ms", rule->hedge_after_ms);
    print_number(p->out, "max_concurrent", rule->max_concurrent);
    print_number(p->out, "max_queue_ms", rule->max_queue_ms);
    buf_puts(p->out, "};\n");
    close_block(p);
}

static void print_method_at(struct printer *p, const struct reflect *r, size_t service, size_t i)
{
    enter(p, SERVICE_METHOD, i);
    print_method(p, r->service_protos[service]->method[i], r->services[service].methods[i].http);
    leave(p);
}

static void print_service(struct printer *p, const struct reflect *r, size_t at)
{
    comment_before(p);
    line(p, "service %s {", r->service_protos[at]->name);
    open_block(p);
    for (size_t i = 0; i < r->service_protos[at]->n_method; i++)
        print_method_at(p, r, at, i);
    close_block(p);
}

// ---------------------------------------------------------------- where a symbol stands

static bool enter_symbol_in(struct printer *p, const message_proto *m, const struct symbol *s);

static bool enter_message(struct printer *p, int32_t field, message_proto *const *list, size_t n,
                          const struct symbol *s)
{
    for (size_t i = 0; i < n; i++) {
        enter(p, field, i);
        if (list[i] == s->message || enter_symbol_in(p, list[i], s))
            return true;
        leave(p);
    }
    return false;
}

static bool enter_enum(struct printer *p, int32_t field, enum_proto *const *list, size_t n,
                       const struct symbol *s)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == s->enumeration) {
            enter(p, field, i);
            return true;
        }
    return false;
}

static bool enter_symbol_in(struct printer *p, const message_proto *m, const struct symbol *s)
{
    return enter_enum(p, MESSAGE_ENUM, m->enum_type, m->n_enum_type, s) ||
           enter_message(p, MESSAGE_NESTED, m->nested_type, m->n_nested_type, s);
}

// Sets package, file and path. What is not found has no comments.
static void enter_symbol(struct printer *p, const struct symbol *s)
{
    const file_proto *f = s->file;
    p->package = f->package ? f->package : "";
    p->file = f;
    p->n_path = 0;
    if (!enter_enum(p, FILE_ENUM, f->enum_type, f->n_enum_type, s) &&
        !enter_message(p, FILE_MESSAGE, f->message_type, f->n_message_type, s))
        p->file = NULL;
}

static void enter_service(struct printer *p, const struct reflect *r, size_t at)
{
    const file_proto *f = r->service_files[at];
    p->package = f->package ? f->package : "";
    p->file = f;
    p->n_path = 0;
    for (size_t i = 0; i < f->n_service; i++)
        if (f->service[i] == r->service_protos[at])
            enter(p, FILE_SERVICE, i);
}

// ---------------------------------------------------------------- by name

static void print_symbol(struct printer *p, const struct symbol *s)
{
    enter_symbol(p, s);
    if (s->message)
        print_message(p, s->message);
    else
        print_enum(p, s->enumeration);
}

// A method, and the messages that it takes and gives.
static void print_whole_method(struct printer *p, const struct reflect *r, size_t service,
                               size_t at)
{
    const struct rpc_method *m = &r->services[service].methods[at];
    print_method_at(p, r, service, at);
    buf_putc(p->out, '\n');
    print_symbol(p, reflect_symbol(r, m->request->name));
    if (m->reply == m->request)
        return;
    buf_putc(p->out, '\n');
    print_symbol(p, reflect_symbol(r, m->reply->name));
}

static bool describe_service(struct printer *p, const struct reflect *r, const char *name)
{
    for (size_t i = 0; i < r->n_services; i++) {
        const struct rpc_service *s = &r->services[i];
        enter_service(p, r, i);
        if (strcmp(s->name, name) == 0) {
            print_service(p, r, i);
            return true;
        }
        for (size_t k = 0; k < s->n_methods; k++)
            if (strcmp(s->methods[k].name, name) == 0) {
                print_whole_method(p, r, i, k);
                return true;
            }
    }
    return false;
}

enum status reflect_describe(const struct reflect *r, const char *name, struct buf *out,
                             struct err *err)
{
    struct printer p = {.out = out};
    const struct symbol *s = reflect_symbol(r, name);
    if (s)
        print_symbol(&p, s);
    else if (!describe_service(&p, r, name))
        return err_set(err, STATUS_NOT_FOUND, "no service, method, message or enum is called %s",
                       name);
    return out->failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: its text is too long", name)
                       : STATUS_OK;
}
