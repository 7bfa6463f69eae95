// Text as it would stand in a .proto file. Names of the same package lose it.
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "reflect/internal.h"

struct printer {
    struct buf *out;
    const char *package;
    unsigned depth;
};

static void line(struct printer *p, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void line(struct printer *p, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    buf_printf(p->out, "%*s%s\n", (int)p->depth * 2, "", text);
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
}

static bool is_member_of(const field_proto *f, size_t oneof)
{
    return f->has_oneof_index && !f->proto3_optional && f->oneof_index >= 0 &&
           (size_t)f->oneof_index == oneof;
}

static void print_oneof(struct printer *p, const message_proto *m, size_t oneof)
{
    line(p, "oneof %s {", m->oneof_decl[oneof]->name ? m->oneof_decl[oneof]->name : "?");
    p->depth++;
    for (size_t i = 0; i < m->n_field; i++)
        if (is_member_of(m->field[i], oneof))
            print_field(p, m, m->field[i]);
    p->depth--;
    line(p, "}");
}

static void print_enum(struct printer *p, const enum_proto *e)
{
    line(p, "enum %s {", e->name);
    p->depth++;
    for (size_t i = 0; i < e->n_value; i++)
        line(p, "%s = %d;", e->value[i]->name, e->value[i]->number);
    p->depth--;
    line(p, "}");
}

static void print_message(struct printer *p, const message_proto *m)
{
    line(p, "message %s {", m->name);
    p->depth++;
    for (size_t i = 0; i < m->n_enum_type; i++)
        print_enum(p, m->enum_type[i]);
    for (size_t i = 0; i < m->n_nested_type; i++)
        if (!m->nested_type[i]->options || !m->nested_type[i]->options->map_entry)
            print_message(p, m->nested_type[i]);
    uint64_t printed = 0; // oneofs: where their first member stands
    for (size_t i = 0; i < m->n_field; i++) {
        const field_proto *f = m->field[i];
        if (!f->has_oneof_index || f->proto3_optional || f->oneof_index < 0 ||
            f->oneof_index >= 64 || (size_t)f->oneof_index >= m->n_oneof_decl) {
            print_field(p, m, f);
        } else if (!(printed & UINT64_C(1) << f->oneof_index)) {
            printed |= UINT64_C(1) << f->oneof_index;
            print_oneof(p, m, (size_t)f->oneof_index);
        }
    }
    p->depth--;
    line(p, "}");
}

// ---------------------------------------------------------------- services

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
    line(p, "rpc %s(%s%s) returns (%s%s)%s", m->name, m->client_streaming ? "stream " : "",
         short_type(p, m->input_type), m->server_streaming ? "stream " : "",
         short_type(p, m->output_type), rule ? " {" : ";");
    if (!rule)
        return;
    buf_printf(p->out, "%*soption (cauce.rule) = {", (int)(p->depth + 1) * 2, "");
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
    line(p, "}");
}

static void print_service(struct printer *p, const struct reflect *r, size_t at)
{
    line(p, "service %s {", r->service_protos[at]->name);
    p->depth++;
    for (size_t i = 0; i < r->service_protos[at]->n_method; i++)
        print_method(p, r->service_protos[at]->method[i], r->services[at].methods[i].http);
    p->depth--;
    line(p, "}");
}

// A method, and the messages that it takes and gives.
static void print_whole_method(struct printer *p, const struct reflect *r, size_t service,
                               size_t at)
{
    const struct rpc_method *m = &r->services[service].methods[at];
    print_method(p, r->service_protos[service]->method[at], m->http);
    buf_putc(p->out, '\n');
    print_message(p, reflect_symbol(r, m->request->name)->message);
    if (m->reply == m->request)
        return;
    buf_putc(p->out, '\n');
    print_message(p, reflect_symbol(r, m->reply->name)->message);
}

// ---------------------------------------------------------------- by name

static bool describe_service(struct printer *p, const struct reflect *r, const char *name)
{
    for (size_t i = 0; i < r->n_services; i++) {
        const struct rpc_service *s = &r->services[i];
        size_t n = strlen(s->name), package = n - strlen(r->service_protos[i]->name);
        char text[256];
        snprintf(text, sizeof(text), "%.*s", (int)(package ? package - 1 : 0), s->name);
        p->package = text;
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
    if (s) {
        p.package = s->file->package ? s->file->package : "";
        if (s->message)
            print_message(&p, s->message);
        else
            print_enum(&p, s->enumeration);
    } else if (!describe_service(&p, r, name)) {
        return err_set(err, STATUS_NOT_FOUND, "no service, method, message or enum is called %s",
                       name);
    }
    return out->failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: its text is too long", name)
                       : STATUS_OK;
}
