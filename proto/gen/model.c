// Parse: descriptors -> model, with every rule that a service must keep. A broken rule is an error
// at its file and line, and all of them are collected before giving up.
#include "model.h"

#include <stdarg.h>
#include <string.h>

#include "cauce/options.pb-c.h"

enum {
    RULE_EXTENSION = 51001, // cauce.rule in proto/cauce/options.proto
    // field numbers of descriptor.proto, which make up a source location's path
    FILE_PACKAGE = 2,
    FILE_MESSAGE = 4,
    FILE_SERVICE = 6,
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    SERVICE_METHOD = 2,
    MAX_PATH = 64,
};

// A place in a descriptor: what source_code_info calls a path.
struct place {
    const file_proto *file;
    int32_t path[MAX_PATH];
    size_t n;
};

// Every message of the request, nested ones too.
struct known_message {
    const char *full; // .cauce.session.v1.LoginRequest
    message_proto *proto;
    struct place place;
    struct msg c;
    bool is_own; // in a file to generate
    enum { UNSEEN, OPEN, CLOSED } visit;
};

struct parser {
    gen_request *req;
    struct known_message *messages;
    size_t n_messages, cap;
    struct gen_text errors;
};

// ---------------------------------------------------------------- errors

static struct place place_in(struct place p, int32_t field, size_t index)
{
    if (p.n + 2 > MAX_PATH)
        gen_die("%s: messages are nested too deeply", p.file->name);
    p.path[p.n++] = field;
    p.path[p.n++] = (int32_t)index;
    return p;
}

static int line_of(const struct place *p)
{
    const Google__Protobuf__SourceCodeInfo *info = p->file->source_code_info;
    for (size_t i = 0; info && i < info->n_location; i++) {
        const location_proto *l = info->location[i];
        if (l->n_path == p->n && l->n_span > 0 &&
            memcmp(l->path, p->path, p->n * sizeof(p->path[0])) == 0)
            return l->span[0] + 1;
    }
    return 1;
}

static void PRINTF_LIKE(3, 4)
    error_at(struct parser *ps, const struct place *p, const char *fmt, ...)
{
    fprintf(ps->errors.f, "%s:%d: ", p->file->name, line_of(p));
    va_list ap;
    va_start(ap, fmt);
    vfprintf(ps->errors.f, fmt, ap);
    va_end(ap);
    fputc('\n', ps->errors.f);
}

// ---------------------------------------------------------------- messages

static struct known_message *find_message(struct parser *ps, const char *full)
{
    for (size_t i = 0; i < ps->n_messages; i++)
        if (strcmp(ps->messages[i].full, full) == 0)
            return &ps->messages[i];
    return NULL;
}

static size_t count_messages(message_proto *const *m, size_t n)
{
    size_t total = n;
    for (size_t i = 0; i < n; i++)
        total += count_messages(m[i]->nested_type, m[i]->n_nested_type);
    return total;
}

static void collect(struct parser *ps, struct place p, const char *scope, struct msg outer,
                    message_proto *m, bool is_own)
{
    struct known_message *k = &ps->messages[ps->n_messages++];
    k->full = gen_printf("%s.%s", scope, m->name);
    k->proto = m;
    k->place = p;
    k->is_own = is_own;
    k->c.type = gen_printf("%s%s", outer.type, gen_pbc_camel(m->name));
    k->c.lower = gen_printf("%s%s", outer.lower, gen_pbc_lower(m->name));
    struct msg inner = {gen_printf("%s__", k->c.type), gen_printf("%s__", k->c.lower)};
    const char *inner_scope = k->full;
    for (size_t i = 0; i < m->n_nested_type; i++)
        collect(ps, place_in(p, MESSAGE_NESTED, i), inner_scope, inner, m->nested_type[i], is_own);
}

static bool is_to_generate(const gen_request *r, const char *name)
{
    for (size_t i = 0; i < r->n_file_to_generate; i++)
        if (strcmp(r->file_to_generate[i], name) == 0)
            return true;
    return false;
}

// C name prefixes of a package: "Session__" and "session__"; every component when it has no
// version.
static struct msg package_prefix(const char *package)
{
    const char *short_name = gen_c_package(package);
    const char *whole = short_name ? short_name : package ? package : "";
    struct gen_text type, lower;
    gen_text_init(&type);
    gen_text_init(&lower);
    while (*whole) {
        size_t n = strcspn(whole, ".");
        const char *part = gen_strndup(whole, n);
        fprintf(type.f, "%s__", gen_pbc_camel(part));
        fprintf(lower.f, "%s__", gen_pbc_lower(part));
        whole += n + (whole[n] == '.');
    }
    return (struct msg){gen_text_take(&type), gen_text_take(&lower)};
}

static void collect_all(struct parser *ps)
{
    size_t total = 0;
    for (size_t i = 0; i < ps->req->n_proto_file; i++)
        total += count_messages(ps->req->proto_file[i]->message_type,
                                ps->req->proto_file[i]->n_message_type);
    ps->messages = gen_alloc(total, sizeof(ps->messages[0]));
    for (size_t i = 0; i < ps->req->n_proto_file; i++) {
        file_proto *f = ps->req->proto_file[i];
        const char *scope = f->package ? gen_printf(".%s", f->package) : "";
        for (size_t m = 0; m < f->n_message_type; m++)
            collect(ps, place_in((struct place){.file = f}, FILE_MESSAGE, m), scope,
                    package_prefix(f->package), f->message_type[m],
                    is_to_generate(ps->req, f->name));
    }
}

// A message that can hold itself has no bound on its depth: a peer could overflow the unpacker's
// stack, so none is accepted.
static void check_recursion(struct parser *ps, struct known_message *m)
{
    m->visit = OPEN;
    for (size_t i = 0; i < m->proto->n_field; i++) {
        const field_proto *f = m->proto->field[i];
        if (f->type != GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_MESSAGE &&
            f->type != GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_GROUP)
            continue;
        struct known_message *of = f->type_name ? find_message(ps, f->type_name) : NULL;
        if (!of)
            continue;
        if (of->visit == OPEN) {
            struct place p = place_in(m->place, MESSAGE_FIELD, i);
            error_at(ps, &p, "message %s is recursive through %s.%s", of->full + 1, m->proto->name,
                     f->name);
        } else if (of->visit == UNSEEN) {
            check_recursion(ps, of);
        }
    }
    m->visit = CLOSED;
}

// ---------------------------------------------------------------- methods

// The bytes of an extension that the runtime kept as an unknown field; without its length prefix.
static bool find_extension(const ProtobufCMessage *m, uint32_t tag, const uint8_t **ret, size_t *n)
{
    for (size_t i = 0; i < m->n_unknown_fields; i++) {
        const ProtobufCMessageUnknownField *u = &m->unknown_fields[i];
        if (u->tag != tag || u->wire_type != PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED)
            continue;
        size_t skip = 0;
        while (skip < u->len && (u->data[skip] & 0x80))
            skip++;
        *ret = u->data + skip + 1;
        *n = u->len - skip - 1;
        return true;
    }
    return false;
}

static Cauce__Rule *rule_of(const method_proto *m)
{
    const uint8_t *p = NULL;
    size_t n = 0;
    if (!m->options || !find_extension(&m->options->base, RULE_EXTENSION, &p, &n))
        return NULL;
    return cauce__rule__unpack(NULL, n, p);
}

// "ROLE_ANON | ROLE_USER"; what rpc/rpc.h calls the role of that number.
static const char *parse_allow(struct parser *ps, const struct place *p, const method_proto *m,
                               const Cauce__Rule *rule)
{
    if (!rule || rule->n_allow == 0) {
        error_at(ps, p, "method %s says nobody may call it: add option (cauce.rule) with allow",
                 m->name);
        return "0";
    }
    struct gen_text t;
    gen_text_init(&t);
    for (size_t i = 0; i < rule->n_allow; i++) {
        const ProtobufCEnumValue *v =
            protobuf_c_enum_descriptor_get_value(&cauce__role__descriptor, (int)rule->allow[i]);
        if (!v || rule->allow[i] == CAUCE__ROLE__ROLE_UNSPECIFIED)
            error_at(ps, p, "method %s allows role %d, which is not a role", m->name,
                     (int)rule->allow[i]);
        else
            fprintf(t.f, "%sROLE_%s", i ? " | " : "", v->name);
    }
    return gen_text_take(&t);
}

static bool has_field(const message_proto *m, const char *name, size_t n)
{
    for (size_t i = 0; i < m->n_field; i++)
        if (strlen(m->field[i]->name) == n && memcmp(m->field[i]->name, name, n) == 0)
            return true;
    return false;
}

static void check_path(struct parser *ps, const struct place *p, const method_proto *m,
                       const char *path, const message_proto *request)
{
    if (path[0] != '/')
        error_at(ps, p, "method %s: http path \"%s\" must begin with /", m->name, path);
    for (const char *at = path; (at = strchr(at, '{')); at++) {
        size_t n = strcspn(at + 1, "}");
        if (at[1 + n] == '\0')
            error_at(ps, p, "method %s: http path \"%s\" has a { without }", m->name, path);
        else if (request && !has_field(request, at + 1, n))
            error_at(ps, p, "method %s: http path variable {%.*s} is not a field of %s", m->name,
                     (int)n, at + 1, request->name);
    }
}

static const char *parse_http(struct parser *ps, const struct place *p, const method_proto *m,
                              const Cauce__Rule *rule, const message_proto *request)
{
    const Cauce__HttpRule *h = rule ? rule->http : NULL;
    if (!h)
        return NULL;
    const char *verb = NULL, *path = NULL;
    switch (h->pattern_case) {
    case CAUCE__HTTP_RULE__PATTERN_GET:
        verb = "GET", path = h->get;
        break;
    case CAUCE__HTTP_RULE__PATTERN_POST:
        verb = "POST", path = h->post;
        break;
    case CAUCE__HTTP_RULE__PATTERN_PUT:
        verb = "PUT", path = h->put;
        break;
    case CAUCE__HTTP_RULE__PATTERN_DELETE:
        verb = "DELETE", path = h->delete_;
        break;
    case CAUCE__HTTP_RULE__PATTERN_PATCH:
        verb = "PATCH", path = h->patch;
        break;
    case CAUCE__HTTP_RULE__PATTERN__NOT_SET:
    case _CAUCE__HTTP_RULE__PATTERN__CASE_IS_INT_SIZE:
        error_at(ps, p, "method %s: http rule without a path", m->name);
        return NULL;
    }
    check_path(ps, p, m, path, request);
    return gen_printf("%s %s", verb, path);
}

static enum kind kind_of(const method_proto *m)
{
    if (m->client_streaming)
        return m->server_streaming ? KIND_BIDI : KIND_CLIENT_STREAM;
    return m->server_streaming ? KIND_SERVER_STREAM : KIND_UNARY;
}

enum { MAX_ATTEMPTS = 10 };

static void parse_retry(struct parser *ps, const struct place *p, const method_proto *m,
                        const Cauce__RetryPolicy *r, struct method *ret)
{
    if (!r)
        return;
    if (r->max_attempts > MAX_ATTEMPTS)
        error_at(ps, p, "method %s: retry with %u attempts: at most %d", m->name,
                 (unsigned)r->max_attempts, (int)MAX_ATTEMPTS);
    if (r->max_backoff_ms && r->initial_backoff_ms > r->max_backoff_ms)
        error_at(ps, p, "method %s: retry begins with %u ms, above its max_backoff_ms", m->name,
                 (unsigned)r->initial_backoff_ms);
    ret->max_attempts = r->max_attempts;
    ret->initial_backoff_ms = r->initial_backoff_ms;
    ret->max_backoff_ms = r->max_backoff_ms;
}

// Limits and hedging. A hedged call runs twice, so nothing may change by that.
static void parse_limits(struct parser *ps, const struct place *p, const method_proto *m,
                         const Cauce__Rule *rule, struct method *ret)
{
    if (!rule)
        return;
    if (rule->hedge_after_ms && (!rule->idempotent || ret->kind != KIND_UNARY))
        error_at(ps, p, "method %s: hedge_after_ms needs an idempotent unary method", m->name);
    if (rule->max_queue_ms && rule->inline_)
        error_at(ps, p, "method %s: max_queue_ms has no meaning inline: it never queues", m->name);
    ret->hedge_after_ms = rule->hedge_after_ms;
    ret->max_concurrent = rule->max_concurrent;
    ret->max_queue_ms = rule->max_queue_ms;
}

static void add_include(struct unit *u, const char *proto)
{
    size_t n = strlen(proto);
    const char *h = gen_printf("%.*s.pb-c.h", (int)(n - strlen(".proto")), proto);
    for (size_t i = 0; i < u->n_includes; i++)
        if (strcmp(u->includes[i], h) == 0)
            return;
    u->includes[u->n_includes++] = h;
}

static void parse_method(struct parser *ps, struct unit *u, const struct service *s,
                         const struct place *p, const method_proto *m, struct method *ret)
{
    struct known_message *in = find_message(ps, m->input_type);
    struct known_message *out = find_message(ps, m->output_type);
    if (!in || !out)
        gen_die("%s: method %s names a message that protoc did not pass on", p->file->name,
                m->name);
    add_include(u, in->place.file->name);
    add_include(u, out->place.file->name);
    Cauce__Rule *rule = rule_of(m);
    ret->name = m->name;
    ret->full = gen_printf("%s.%s", s->full, m->name);
    ret->snake = gen_snake(m->name);
    ret->member = gen_is_c_keyword(ret->snake) ? gen_printf("%s_", ret->snake) : ret->snake;
    ret->kind = kind_of(m);
    ret->request = in->c;
    ret->reply = out->c;
    ret->allow = parse_allow(ps, p, m, rule);
    ret->idempotent = rule && rule->idempotent;
    ret->run_inline = rule && rule->inline_;
    ret->http = parse_http(ps, p, m, rule, in->proto);
    parse_retry(ps, p, m, rule ? rule->retry : NULL, ret);
    parse_limits(ps, p, m, rule, ret);
}

static void parse_service(struct parser *ps, struct unit *u, struct place p,
                          const service_proto *sp, struct service *ret)
{
    const char *package = p.file->package;
    const char *c_package = gen_c_package(package);
    if (!c_package) {
        struct place at = {.file = p.file, .path = {FILE_PACKAGE}, .n = 1};
        error_at(ps, &at, "package of a service must end in a version, as cauce.session.v1 does");
        return;
    }
    ret->name = sp->name;
    ret->full = gen_printf("%s.%s", package, sp->name);
    ret->prefix = gen_printf("%s_%s", c_package, gen_snake(sp->name));
    ret->n_methods = sp->n_method;
    ret->methods = gen_alloc(sp->n_method, sizeof(ret->methods[0]));
    for (size_t i = 0; i < sp->n_method; i++) {
        struct place mp = place_in(p, SERVICE_METHOD, i);
        parse_method(ps, u, ret, &mp, sp->method[i], &ret->methods[i]);
    }
}

static void parse_unit(struct parser *ps, const file_proto *f, struct unit *ret)
{
    size_t n_methods = 0;
    for (size_t i = 0; i < f->n_service; i++)
        n_methods += f->service[i]->n_method;
    ret->proto = f->name;
    ret->base = gen_strndup(f->name, strlen(f->name) - strlen(".proto"));
    ret->includes = gen_alloc(2 * n_methods, sizeof(ret->includes[0]));
    ret->n_services = f->n_service;
    ret->services = gen_alloc(f->n_service, sizeof(ret->services[0]));
    for (size_t i = 0; i < f->n_service; i++)
        parse_service(ps, ret, place_in((struct place){.file = f}, FILE_SERVICE, i), f->service[i],
                      &ret->services[i]);
}

// ---------------------------------------------------------------- all

// What is kept of the source are the comments of our own files, which people read by reflection;
// where things stand would be most of the bytes.
static void keep_comments(gen_request *r, file_proto *f)
{
    Google__Protobuf__SourceCodeInfo *info = f->source_code_info;
    if (!info || !is_to_generate(r, f->name) || strncmp(f->name, "google/", 7) == 0) {
        f->source_code_info = NULL;
        return;
    }
    size_t n = 0;
    for (size_t i = 0; i < info->n_location; i++) {
        Google__Protobuf__SourceCodeInfo__Location *l = info->location[i];
        l->n_span = l->n_leading_detached_comments = 0;
        if (l->leading_comments || l->trailing_comments)
            info->location[n++] = l;
    }
    info->n_location = n;
}

static struct gen_bytes pack_descriptors(gen_request *r)
{
    for (size_t i = 0; i < r->n_proto_file; i++)
        keep_comments(r, r->proto_file[i]);
    Google__Protobuf__FileDescriptorSet set;
    google__protobuf__file_descriptor_set__init(&set);
    set.n_file = r->n_proto_file;
    set.file = r->proto_file;
    struct gen_bytes b = {.len = google__protobuf__file_descriptor_set__get_packed_size(&set)};
    b.data = gen_alloc(b.len, 1);
    google__protobuf__file_descriptor_set__pack(&set, b.data);
    return b;
}

struct model *model_new(gen_request *r)
{
    struct model *m = gen_alloc(1, sizeof(*m));
    struct parser ps = {.req = r};
    gen_text_init(&ps.errors);
    collect_all(&ps);
    for (size_t i = 0; i < ps.n_messages; i++)
        if (ps.messages[i].is_own && ps.messages[i].visit == UNSEEN)
            check_recursion(&ps, &ps.messages[i]);
    m->units = gen_alloc(r->n_proto_file, sizeof(m->units[0]));
    for (size_t i = 0; i < r->n_proto_file; i++)
        if (is_to_generate(r, r->proto_file[i]->name) && r->proto_file[i]->n_service)
            parse_unit(&ps, r->proto_file[i], &m->units[m->n_units++]);
    m->errors = gen_text_take(&ps.errors);
    m->descriptor_set = pack_descriptors(r);
    return m;
}
