// protoc-gen-c 1.4.1 knows presence only in proto2 files; the runtime knows it per field. So the
// optional fields of a proto3 file are shown to protoc-gen-c as plain ones, and four places of its
// output are then made what it writes for an optional field of a proto2 file:
//
//   struct member    protobuf_c_boolean has_x;   before the member (not for strings)
//   init macro       0,  before the member's value; NULL instead of the empty string
//   descriptor       PROTOBUF_C_LABEL_OPTIONAL, offsetof(M, has_x); default NULL for strings
//
// Every place is searched inside the one message and must be found, so a protoc-gen-c that writes
// differently fails the build instead of changing the wire.
#include "presence.h"

#include <stdlib.h>
#include <string.h>

// ---------------------------------------------------------------- the request

static struct presence_field *add(struct presence *p)
{
    if (p->n_fields == p->cap) {
        p->cap = p->cap ? p->cap * 2 : 16;
        p->fields = realloc(p->fields, p->cap * sizeof(p->fields[0]));
        if (!p->fields)
            gen_die("out of memory");
    }
    return &p->fields[p->n_fields++];
}

static bool in_real_oneof(const field_proto *f)
{
    return f->has_oneof_index && !f->proto3_optional;
}

static void strip_message(struct presence *p, const char *base, const char *c_prefix,
                          const char *lower_prefix, message_proto *m)
{
    const char *message = gen_printf("%s__%s", c_prefix, gen_pbc_camel(m->name));
    const char *lower = gen_printf("%s__%s", lower_prefix, gen_pbc_lower(m->name));
    size_t index = 0, n_synthetic = 0;
    for (size_t i = 0; i < m->n_field; i++) {
        field_proto *f = m->field[i];
        if (f->proto3_optional) {
            bool is_string = f->type == GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_STRING;
            bool is_message =
                f->type == GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_MESSAGE;
            char *member = gen_lower(f->name);
            if (gen_is_c_keyword(member))
                member = gen_printf("%s_", member);
            if (!is_message) // message fields have presence anyway
                *add(p) = (struct presence_field){base,    message, lower, gen_upper(lower),
                                                  f->name, member,  index, is_string};
            f->has_proto3_optional = f->proto3_optional = 0;
            f->has_oneof_index = 0;
            n_synthetic++;
        }
        if (!in_real_oneof(f))
            index++;
    }
    m->n_oneof_decl -= n_synthetic; // synthetic oneofs come last
    for (size_t i = 0; i < m->n_nested_type; i++)
        strip_message(p, base, message, lower, m->nested_type[i]);
}

static char *join_package(const char *package, char *(*part)(const char *))
{
    struct gen_text t;
    gen_text_init(&t);
    for (const char *at = package; *at;) {
        size_t n = strcspn(at, ".");
        fprintf(t.f, "%s%s", at > package ? "__" : "", part(gen_strndup(at, n)));
        at += n + (at[n] == '.');
    }
    return gen_text_take(&t);
}

void presence_strip(struct presence *p, file_proto *f)
{
    const char *package = gen_c_package(f->package);
    if (!package)
        package = f->package ? f->package : "";
    size_t base_len = strlen(f->name);
    if (base_len > 6 && strcmp(f->name + base_len - 6, ".proto") == 0)
        base_len -= 6;
    const char *base = gen_strndup(f->name, base_len);
    for (size_t i = 0; i < f->n_message_type; i++)
        strip_message(p, base, join_package(package, gen_pbc_camel),
                      join_package(package, gen_pbc_lower), f->message_type[i]);
}

// ---------------------------------------------------------------- the answer

static const char *need(const char *hay, const char *needle, const struct presence_field *f)
{
    const char *at = hay ? strstr(hay, needle) : NULL;
    if (!at)
        gen_die("%s.pb-c: no \"%s\" for optional field %s.%s: protoc-gen-c writes another form "
                "than 1.4 does",
                f->base, needle, f->message, f->name);
    return at;
}

// text with [at, at + cut) replaced.
static char *splice(const char *text, const char *at, size_t cut, const char *put)
{
    return gen_printf("%.*s%s%s", (int)(at - text), text, put, at + cut);
}

static char *restore_member(const char *text, const struct presence_field *f)
{
    if (f->is_string)
        return gen_strndup(text, strlen(text));
    const char *s = need(text, gen_printf("struct  %s\n{", f->message), f);
    const char *member = need(s, gen_printf(" %s;\n", f->member), f);
    if (member > need(s, "\n};", f))
        gen_die("%s.pb-c.h: %s has no member %s", f->base, f->message, f->member);
    while (member[-1] != '\n')
        member--;
    return splice(text, member, 0, gen_printf("  protobuf_c_boolean has_%s;\n", f->member));
}

static char *restore_init(const char *text, const struct presence_field *f)
{
    const char *s = need(text, gen_printf("#define %s__INIT ", f->upper), f);
    const char *at = need(s, "\n    , ", f) + strlen("\n    , ");
    for (size_t i = 0; i < f->index; i++)
        at = need(at, ", ", f) + strlen(", ");
    static const char empty[] = "(char *)protobuf_c_empty_string";
    if (!f->is_string)
        return splice(text, at, 0, "0, ");
    if (strncmp(at, empty, strlen(empty)) != 0)
        gen_die("%s.pb-c.h: the init value of %s.%s is not the empty string", f->base, f->message,
                f->name);
    return splice(text, at, strlen(empty), "NULL");
}

static char *replace_first(const char *text, const char *from, const char *what, const char *put,
                           const struct presence_field *f)
{
    return splice(text, need(from, what, f), strlen(what), put);
}

static char *restore_descriptor(char *text, const struct presence_field *f)
{
    const char *table = gen_printf(" %s__field_descriptors[", f->lower);
    const char *name = gen_printf("\n    \"%s\",\n", f->name);
    text = replace_first(text, need(need(text, table, f), name, f), "PROTOBUF_C_LABEL_NONE",
                         "PROTOBUF_C_LABEL_OPTIONAL", f);
    const char *entry = need(need(text, table, f), name, f);
    if (f->is_string)
        return replace_first(text, entry, "&protobuf_c_empty_string", "NULL", f);
    return replace_first(text, entry, "0,   /* quantifier_offset */",
                         gen_printf("offsetof(%s, has_%s),", f->message, f->member), f);
}

static gen_file *find_file(gen_response *r, const char *base, const char *suffix)
{
    const char *name = gen_printf("%s%s", base, suffix);
    for (size_t i = 0; i < r->n_file; i++)
        if (gen_str_eq(r->file[i]->name, name))
            return r->file[i];
    return NULL;
}

void presence_restore(const struct presence *p, gen_response *r)
{
    // From the last field of a message to the first, so that positions stay right.
    for (size_t i = p->n_fields; i-- > 0;) {
        const struct presence_field *f = &p->fields[i];
        gen_file *h = find_file(r, f->base, ".pb-c.h"), *c = find_file(r, f->base, ".pb-c.c");
        if (!h || !c)
            continue; // imported only: not generated in this run
        h->content = restore_init(restore_member(h->content, f), f);
        c->content = restore_descriptor(c->content, f);
    }
}
