// rpc ls, rpc describe, rpc call: any method of the server, with JSON, by its reflection.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "schema.h"
#include "json/proto.h"

enum {
    MAX_TEXT_BYTES = 4 << 20,
    MAX_REQUEST_BYTES = 16 << 20, // of JSON
    DEFAULT_MS = 15000,
    DEFAULT_STREAM_MS = 24 * 3600 * 1000,
};

// ---------------------------------------------------------------- ls

static const char *kind_name(Node__MethodKind kind)
{
    const ProtobufCEnumValue *v =
        protobuf_c_enum_descriptor_get_value(&node__method_kind__descriptor, (int)kind);
    return v ? v->name : "?";
}

static enum status print_methods(struct ctl *k, const Node__ServiceInfo *s)
{
    static const char *const heads[] = {"METHOD", "KIND", "ALLOW", "REPEATABLE", "HTTP"};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < s->n_methods; i++) {
        const Node__MethodInfo *m = s->methods[i];
        struct buf roles;
        buf_init(&roles, 4096);
        for (size_t r = 0; r < m->n_allow; r++)
            buf_printf(&roles, "%s%s", r ? "," : "", m->allow[r]);
        table_add(&t, "%s", m->name);
        table_add(&t, "%s", kind_name(m->kind));
        table_add(&t, "%s", buf_str(&roles));
        table_add(&t, "%s", m->idempotent ? "yes" : "with a key");
        table_add(&t, "%s", m->http);
        buf_done(&roles);
    }
    return table_print(&t, stdout, &k->err);
}

static enum status no_such(struct ctl *k, const char *what, const char *name, bool many)
{
    if (many)
        return ctl_misused(k, "several %ss end with %s: see mediactl rpc ls", what, name);
    return err_set(&k->err, STATUS_NOT_FOUND, "no %s is called %s: see mediactl rpc ls", what,
                   name);
}

static enum status list(struct ctl *k, struct schema *s)
{
    if (k->n_args) {
        bool many;
        const Node__ServiceInfo *one = schema_service(s, k->args[0], &many);
        if (!one)
            return no_such(k, "service", k->args[0], many);
        return ctl_has(k, OPT_JSON) ? ctl_print_message(k, &one->base) : print_methods(k, one);
    }
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &s->list->base);
    for (size_t i = 0; i < s->list->n_services; i++)
        printf("%s\n", s->list->services[i]->name);
    return STATUS_OK;
}

static enum status cmd_ls(struct ctl *k)
{
    struct schema s;
    enum status st = schema_open(&s, k);
    if (st == STATUS_OK)
        st = list(k, &s);
    schema_done(&s);
    return st;
}

// ---------------------------------------------------------------- describe

static enum status print_description(struct ctl *k, const char *symbol, const struct reflect *r)
{
    struct buf text;
    buf_init(&text, MAX_TEXT_BYTES);
    enum status s = reflect_describe(r, symbol, &text, &k->err);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON)) {
        struct buf json;
        buf_init(&json, 2 * MAX_TEXT_BYTES);
        buf_puts(&json, "{\"name\":");
        buf_put_json_string(&json, symbol, strlen(symbol));
        buf_puts(&json, ",\"text\":");
        buf_put_json_string(&json, buf_str(&text), text.len);
        printf("%s}\n", buf_str(&json));
        buf_done(&json);
    } else if (s == STATUS_OK) {
        ctl_tidy_text((char *)text.data); // names and comments are the server's
        printf("// %s\n%s", symbol, buf_str(&text));
    }
    buf_done(&text);
    return s;
}

static enum status describe_full(struct ctl *k, struct schema *s, const char *symbol)
{
    struct reflect *r = NULL;
    bool own = false;
    enum status st = schema_reflect(s, symbol, &r, &own);
    if (st == STATUS_OK)
        st = print_description(k, symbol, r);
    if (own)
        reflect_free(r);
    return st;
}

// A message's name without its package is looked for in the packages of all services.
static enum status describe_message(struct ctl *k, struct schema *s, const char *name)
{
    enum status st = describe_full(k, s, name);
    char before[128] = "";
    for (size_t i = 0; st == STATUS_NOT_FOUND && i < s->list->n_services; i++) {
        const char *service = s->list->services[i]->name, *dot = strrchr(service, '.');
        char full[256], package[128];
        snprintf(package, sizeof(package), "%.*s", dot ? (int)(dot - service) : 0, service);
        if (strcmp(package, before) == 0)
            continue;
        str_copy(before, sizeof(before), package);
        snprintf(full, sizeof(full), "%s.%s", package, name);
        st = describe_full(k, s, full);
    }
    return st != STATUS_NOT_FOUND
               ? st
               : err_set(&k->err, st, "no service, method, message or enum is called %s", name);
}

static enum status describe(struct ctl *k, struct schema *s)
{
    bool many_methods, many_services;
    const Node__MethodInfo *m = schema_method(s, k->args[0], &many_methods);
    const Node__ServiceInfo *svc = schema_service(s, k->args[0], &many_services);
    if (m || svc)
        return describe_full(k, s, m ? m->name : svc->name);
    if (many_methods || many_services)
        return no_such(k, many_methods ? "method" : "service", k->args[0], true);
    return describe_message(k, s, k->args[0]);
}

static enum status cmd_describe(struct ctl *k)
{
    struct schema s;
    enum status st = schema_open(&s, k);
    if (st == STATUS_OK)
        st = describe(k, &s);
    schema_done(&s);
    return st;
}

// ---------------------------------------------------------------- requests

// Where requests come from: text of the command line, a file, standard input.
struct source {
    int fd;   // -1: all is in `bytes`
    int stop; // an eventfd: readable when nobody wants more
    bool is_file, at_end;
    struct buf bytes; // read, from `at` on not used yet
    size_t at;
};

static void source_done(struct source *s)
{
    if (s->is_file)
        close(s->fd);
    if (s->stop >= 0)
        close(s->stop);
    buf_done(&s->bytes);
}

static enum status source_open(struct source *s, struct ctl *k)
{
    const char *given = ctl_has(k, OPT_DATA) ? k->opt[OPT_DATA] : "{}";
    *s = (struct source){.fd = -1, .stop = eventfd(0, EFD_CLOEXEC)};
    buf_init(&s->bytes, MAX_REQUEST_BYTES);
    if (s->stop < 0)
        return err_errno(&k->err, errno, "eventfd");
    if (strcmp(given, "-") == 0) {
        s->fd = STDIN_FILENO;
    } else if (given[0] == '@') {
        s->fd = open(given + 1, O_RDONLY | O_CLOEXEC);
        s->is_file = s->fd >= 0;
        if (s->fd < 0)
            return err_errno(&k->err, errno, "open %s", given + 1);
    } else if (!buf_puts(&s->bytes, given)) {
        return ctl_misused(k, "-d: more than %d bytes", MAX_REQUEST_BYTES);
    }
    s->at_end = s->fd < 0;
    return STATUS_OK;
}

// More bytes of the source; sets at_end at its end and when it was stopped.
static enum status source_fill(struct source *s, struct err *err)
{
    struct pollfd p[] = {{.fd = s->fd, .events = POLLIN}, {.fd = s->stop, .events = POLLIN}};
    while (poll(p, N_ELEMENTS(p), -1) < 0)
        if (errno != EINTR)
            return err_errno(err, errno, "wait for input");
    char chunk[65536];
    ssize_t n = p[1].revents ? 0 : read(s->fd, chunk, sizeof(chunk));
    if (n < 0)
        return err_errno(err, errno, "read the request");
    s->at_end = n == 0;
    if (n > 0 && !buf_append(&s->bytes, chunk, (size_t)n))
        return err_set(err, STATUS_INVALID_ARGUMENT, "the request is longer than %d bytes",
                       MAX_REQUEST_BYTES);
    return STATUS_OK;
}

// All of it, for calls with one request.
static enum status source_all(struct source *s, const char **ret, size_t *ret_n, struct err *err)
{
    while (!s->at_end) {
        enum status st = source_fill(s, err);
        if (st != STATUS_OK)
            return st;
    }
    *ret = buf_str(&s->bytes);
    *ret_n = s->bytes.len;
    return STATUS_OK;
}

static bool is_blank(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != ' ' && p[i] != '\t' && p[i] != '\r' && p[i] != '\n')
            return false;
    return true;
}

// The next line that is not blank; *ret NULL at the end. Valid until the next call.
static enum status source_line(struct source *s, const char **ret, size_t *ret_n, struct err *err)
{
    for (;;) {
        const char *from = buf_str(&s->bytes) + s->at;
        size_t left = s->bytes.len - s->at;
        const char *end = left ? memchr(from, '\n', left) : NULL;
        if (end || (s->at_end && left)) {
            size_t n = end ? (size_t)(end - from) : left;
            s->at += n + (end ? 1 : 0);
            if (is_blank(from, n))
                continue;
            *ret = from;
            *ret_n = n;
            return STATUS_OK;
        }
        *ret = NULL;
        if (s->at_end)
            return STATUS_OK;
        if (s->at) { // what was used makes room
            memmove(s->bytes.data, s->bytes.data + s->at, left);
            s->bytes.len = left;
            s->at = 0;
        }
        enum status st = source_fill(s, err);
        if (st != STATUS_OK)
            return st;
    }
}

static enum status read_request(const char *text, size_t n, const ProtobufCMessageDescriptor *d,
                                struct arena *a, ProtobufCMessage **ret, struct err *err)
{
    AUTO(json_free_p) struct json_value *v = NULL;
    enum status s = json_parse(text, n, 0, &v, err);
    if (s == STATUS_OK)
        s = json_read_message(v, d, a, ret, err);
    return s == STATUS_OK ? s : err_wrap(err, s, "the request");
}

// ---------------------------------------------------------------- failures

static void put_text(struct buf *b, const char *name, const char *text)
{
    buf_printf(b, "%s\"%s\":", b->len > 1 ? "," : "", name);
    buf_put_json_string(b, text, strlen(text));
}

static void report_json(const struct rpc_details *d, enum status s, const char *msg)
{
    struct buf b;
    buf_init(&b, MAX_TEXT_BYTES);
    buf_putc(&b, '{');
    put_text(&b, "status", status_name(s));
    buf_printf(&b, ",\"code\":%d", (int)s);
    put_text(&b, "message", msg);
    if (d->reason[0])
        put_text(&b, "reason", d->reason);
    buf_printf(&b, ",\"retryable\":%s", d->retryable ? "true" : "false");
    if (d->retry_after_ms > 0)
        buf_printf(&b, ",\"retryAfterMs\":%" PRId64, d->retry_after_ms);
    for (size_t i = 0; i < d->n_violations; i++) {
        buf_puts(&b, i ? ",{\"field\":" : ",\"violations\":[{\"field\":");
        buf_put_json_string(&b, d->violations[i].field, strlen(d->violations[i].field));
        put_text(&b, "description", d->violations[i].description);
        buf_puts(&b, i + 1 < d->n_violations ? "}" : "}]");
    }
    for (size_t i = 0; i < d->n_metadata; i++) {
        buf_puts(&b, i ? "," : ",\"metadata\":{");
        buf_put_json_string(&b, d->metadata[i].key, strlen(d->metadata[i].key));
        buf_putc(&b, ':');
        buf_put_json_string(&b, d->metadata[i].value, d->metadata[i].n_value);
        buf_puts(&b, i + 1 < d->n_metadata ? "" : "}");
    }
    fprintf(stderr, "%s}\n", buf_str(&b));
    buf_done(&b);
}

// Texts of the server must not command the terminal.
static void print_tidy(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        fputc((unsigned char)p[i] < 0x20 || p[i] == 0x7f ? '?' : p[i], stderr);
}

static void report_text(const struct rpc_details *d, enum status s, const char *msg)
{
    fprintf(stderr, "mediactl: %s: ", status_name(s));
    print_tidy(msg, strlen(msg));
    fputc('\n', stderr);
    if (d->reason[0])
        fprintf(stderr, "  reason: %s\n", d->reason);
    if (d->retry_after_ms > 0)
        fprintf(stderr, "  may be repeated after %" PRId64 " ms\n", d->retry_after_ms);
    else if (d->retryable)
        fprintf(stderr, "  may be repeated\n");
    for (size_t i = 0; i < d->n_violations; i++) {
        fputs("  field ", stderr);
        print_tidy(d->violations[i].field, strlen(d->violations[i].field));
        fputs(": ", stderr);
        print_tidy(d->violations[i].description, strlen(d->violations[i].description));
        fputc('\n', stderr);
    }
    for (size_t i = 0; i < d->n_metadata; i++) {
        fprintf(stderr, "  %s: ", d->metadata[i].key);
        print_tidy(d->metadata[i].value, d->metadata[i].n_value);
        fputc('\n', stderr);
    }
}

static void report_failure(struct ctl *k, const struct rpc_details *d, enum status s)
{
    const char *msg = k->err.msg[0] ? k->err.msg : status_name(s);
    k->is_reported = s != STATUS_CANCELLED;
    if (!k->is_reported)
        return;
    if (ctl_has(k, OPT_JSON))
        report_json(d, s, msg);
    else
        report_text(d, s, msg);
}

// ---------------------------------------------------------------- call

struct call {
    struct ctl *k;
    const struct rpc_method *m;
    struct source in;
    struct client_try t;
    struct rpc_metadata metadata[RPC_METADATA_MAX];
    char keys[RPC_METADATA_MAX][RPC_METADATA_KEY_MAX + 1];
    struct rpc_details details;
};

static enum status take_headers(struct call *c)
{
    struct ctl *k = c->k;
    for (size_t i = 0; i < k->n_headers; i++) {
        const char *text = k->headers[i].text;
        char separator = k->headers[i].separator;
        const char *at = strchr(text, separator);
        size_t n = at ? (size_t)(at - text) : 0;
        if (n == 0 || n > RPC_METADATA_KEY_MAX ||
            strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_.-") < n)
            return ctl_misused(k, "\"%s\" is not KEY%cVALUE with a key of a-z 0-9 _ . -", text,
                               separator);
        const char *value = at + 1 + (separator == ':' ? strspn(at + 1, " ") : 0);
        snprintf(c->keys[i], sizeof(c->keys[i]), "%.*s", (int)n, text);
        c->metadata[i] = (struct rpc_metadata){c->keys[i], value, strlen(value)};
    }
    return STATUS_OK;
}

static enum status begin(struct call *c)
{
    struct ctl *k = c->k;
    int64_t ms = c->m->kind == RPC_UNARY ? DEFAULT_MS : DEFAULT_STREAM_MS;
    ms = k->timeout_ms ? k->timeout_ms : ms;
    enum status s = ctl_span(k, OPT_DEADLINE, &ms);
    if (s == STATUS_OK)
        s = take_headers(c);
    const char *route = ctl_has(k, OPT_ROUTE) ? k->opt[OPT_ROUTE] : k->opt[OPT_NODE];
    if (s == STATUS_OK)
        s = client_try_begin(&c->t, k->c, CLIENT_IF_LOGGED_IN, route, ms, NULL, &k->err);
    c->t.opts.idempotency_key = k->opt[OPT_KEY];
    c->t.opts.metadata = c->metadata;
    c->t.opts.n_metadata = k->n_headers;
    return s;
}

static enum status take_single(struct call *c, struct arena *a, ProtobufCMessage **ret)
{
    struct ctl *k = c->k;
    const char *text;
    size_t n;
    enum status s = source_all(&c->in, &text, &n, &k->err);
    if (s == STATUS_OK)
        s = is_blank(text, n) ? read_request("{}", 2, c->m->request, a, ret, &k->err)
                              : read_request(text, n, c->m->request, a, ret, &k->err);
    if (s == STATUS_INVALID_ARGUMENT)
        k->is_misused = true;
    return s;
}

static enum status call_unary(struct call *c, const ProtobufCMessage *req)
{
    struct ctl *k = c->k;
    AUTO(rpc_message_free_p) ProtobufCMessage *reply = NULL;
    c->t.opts.ret_details = &c->details;
    enum status s =
        CLIENT_CALL(&c->t,
                    (rpc_details_done(&c->details),
                     rpc_unary(client_rpc(k->c), c->m, &c->t.opts, req, &reply, &k->err)),
                    &k->err);
    if (s == STATUS_OK)
        return ctl_print_message(k, reply);
    report_failure(k, &c->details, s);
    return s;
}

struct writer {
    struct call *c;
    struct rpc_stream *st;
    struct err err; // of the input; what the server says is seen by the reader
};

static enum status write_line(struct writer *w, const char *text, size_t n)
{
    AUTO(arena_free_p) struct arena *a = arena_new(0);
    ProtobufCMessage *m = NULL;
    if (!a)
        return err_set(&w->err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = read_request(text, n, w->c->m->request, a, &m, &w->err);
    if (s != STATUS_OK)
        return s;
    struct err ignored = ERR_INIT;
    return rpc_stream_send(w->st, m, &ignored);
}

static void *write_all(void *ud)
{
    struct writer *w = ud;
    const char *text = NULL;
    size_t n;
    enum status s;
    do {
        s = source_line(&w->c->in, &text, &n, &w->err);
        if (s == STATUS_OK && text)
            s = write_line(w, text, n);
    } while (s == STATUS_OK && text);
    struct err ignored = ERR_INIT;
    if (s == STATUS_OK)
        s = rpc_stream_close_send(w->st, &ignored);
    if (w->err.msg[0])
        rpc_stream_cancel(w->st);
    return NULL;
}

static enum status print_replies(struct call *c, struct rpc_stream *st)
{
    struct ctl *k = c->k;
    for (;;) {
        AUTO(rpc_message_free_p) ProtobufCMessage *m = NULL;
        enum status s = rpc_stream_recv(st, &m, &k->err);
        if (s == STATUS_OK && m)
            s = ctl_print_message(k, m);
        if (s != STATUS_OK || !m)
            return s;
        fflush(stdout);
    }
}

static enum status run_stream(struct call *c, struct rpc_stream *st)
{
    struct ctl *k = c->k;
    struct writer w = {.c = c, .st = st, .err = ERR_INIT};
    bool writes = c->m->kind == RPC_CLIENT_STREAM || c->m->kind == RPC_BIDI;
    pthread_t thread;
    int e = writes ? pthread_create(&thread, NULL, write_all, &w) : 0;
    if (e)
        return err_errno(&k->err, e, "start a thread");
    enum status s = print_replies(c, st);
    if (writes) {
        uint64_t one = 1;
        if (write(c->in.stop, &one, sizeof(one)) < 0)
            rpc_stream_cancel(st);
        pthread_join(thread, NULL);
    }
    if (w.err.msg[0]) {
        k->err = w.err;
        k->is_misused = w.err.code == STATUS_INVALID_ARGUMENT;
        return w.err.code;
    }
    if (s != STATUS_OK)
        report_failure(k, &c->details, s);
    return s;
}

static enum status call_stream(struct call *c, const ProtobufCMessage *req)
{
    struct ctl *k = c->k;
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    enum status s = rpc_stream_open(client_rpc(k->c), c->m, &c->t.opts, req, &st, &k->err);
    if (s == STATUS_OK)
        return run_stream(c, st);
    report_failure(k, &c->details, s);
    return s;
}

static enum status call_with(struct call *c, const struct rpc_method *m)
{
    c->m = m;
    bool single = m->kind == RPC_UNARY || m->kind == RPC_SERVER_STREAM;
    AUTO(arena_free_p) struct arena *a = arena_new(0);
    if (!a)
        return err_set(&c->k->err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    ProtobufCMessage *req = NULL;
    enum status s = single ? take_single(c, a, &req) : STATUS_OK;
    if (s == STATUS_OK)
        s = begin(c);
    if (s == STATUS_OK)
        s = m->kind == RPC_UNARY ? call_unary(c, req) : call_stream(c, req);
    rpc_details_done(&c->details);
    return s;
}

static enum status call_method(struct ctl *k, const struct rpc_method *m)
{
    struct call c = {.k = k};
    enum status s = source_open(&c.in, k);
    if (s == STATUS_OK)
        s = call_with(&c, m);
    source_done(&c.in);
    return s;
}

static enum status find_and_call(struct ctl *k, struct schema *s)
{
    bool many, own = false;
    const Node__MethodInfo *info = schema_method(s, k->args[0], &many);
    if (!info)
        return no_such(k, "method", k->args[0], many);
    struct reflect *r = NULL;
    enum status st = schema_reflect(s, info->name, &r, &own);
    const struct rpc_method *m = st == STATUS_OK ? reflect_method(r, info->name) : NULL;
    if (st == STATUS_OK && !m)
        st = err_set(&k->err, STATUS_INTERNAL, "the server's description of %s lacks it",
                     info->name);
    if (st == STATUS_OK)
        st = call_method(k, m);
    if (own)
        reflect_free(r);
    return st;
}

static enum status cmd_call(struct ctl *k)
{
    struct schema s;
    enum status st = schema_open(&s, k);
    if (st == STATUS_OK)
        st = find_and_call(k, &s);
    schema_done(&s);
    return st;
}

#define ALLOW_CALL                                                                                 \
    (ALLOW(OPT_DATA) | ALLOW(OPT_HEADER) | ALLOW(OPT_METADATA) | ALLOW(OPT_ROUTE) |                \
     ALLOW(OPT_NODE) | ALLOW(OPT_DEADLINE) | ALLOW(OPT_KEY))
static const struct command commands[] = {
    {"rpc ls", "[SERVICE]", 0, 1, ALLOW(OPT_NODE), CONNECTED, cmd_ls,
     "services, or the methods of one"},
    {"rpc describe", "NAME", 1, 1, ALLOW(OPT_NODE), CONNECTED, cmd_describe,
     "a service, method, message or enum as its .proto file says it"},
    {"rpc call", "SERVICE.METHOD", 1, 1, ALLOW_CALL, CONNECTED, cmd_call,
     "any method, with JSON in and out; streams one message a line"},
};
const struct command_group rpc_commands = {commands, N_ELEMENTS(commands)};
