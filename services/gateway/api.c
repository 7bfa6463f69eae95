// JSON over HTTP for every method with an http rule: path variables, query and body become the
// request message, the call goes to the service that owns the method with the caller's own token.
#include <string.h>

#include "base/mem.h"
#include "base/time.h"
#include "gateway/internal.h"
#include "json/json.h"
#include "json/proto.h"

enum { CALL_MS = 15000, MAX_JSON_DEPTH = 32, MAX_REPLY_BYTES = 16 << 20 };

struct api_call {
    struct gateway *g;
    struct http_request *r;
    struct rpc_details details;
};

struct fill {
    ProtobufCMessage *m;
    struct arena *a;
};

static enum status set_query_field(void *ud, const char *name, const char *value, struct err *err)
{
    struct fill *f = ud;
    return json_set_field(f->m, name, value, f->a, err);
}

static enum status read_body(struct http_request *r, const ProtobufCMessageDescriptor *d,
                             ProtobufCMessage **ret, struct err *err)
{
    size_t n;
    const void *body = http_request_body(r, &n);
    AUTO(json_free_p) struct json_value *v = NULL;
    enum status s = n ? json_parse(body, n, MAX_JSON_DEPTH, &v, err) : STATUS_OK;
    if (s != STATUS_OK)
        return s;
    if (n && json_kind(v) != JSON_KIND_OBJECT)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the body must be a JSON object");
    return json_read_message(v, d, http_request_arena(r), ret, err);
}

// Variables of the path come last: what the address names cannot be overruled by the body.
static enum status set_path_fields(struct http_request *r, ProtobufCMessage *m, struct err *err)
{
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const char *name = m->descriptor->fields[i].name;
        const char *value = http_request_var(r, name);
        enum status s =
            value ? json_set_field(m, name, value, http_request_arena(r), err) : STATUS_OK;
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

static enum status read_request(struct http_request *r, const struct rpc_method *m,
                                ProtobufCMessage **ret, struct err *err)
{
    enum status s = read_body(r, m->request, ret, err);
    if (s != STATUS_OK)
        return s;
    struct fill f = {.m = *ret, .a = http_request_arena(r)};
    s = http_request_each_query(r, set_query_field, &f, err);
    return s == STATUS_OK ? set_path_fields(r, *ret, err) : s;
}

static void respond_message(struct http_request *r, const ProtobufCMessage *reply)
{
    struct err err = ERR_INIT;
    struct buf b;
    buf_init(&b, MAX_REPLY_BYTES);
    enum status s = json_print_message(reply, 0, &b, &err);
    if (s == STATUS_OK && !buf_putc(&b, '\n'))
        s = err_set(&err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    if (s == STATUS_OK)
        http_respond(
            r, &(struct http_response){.type = "application/json", .bytes = b.data, .len = b.len});
    else
        gateway_respond_error(r, s, &err);
    buf_done(&b);
}

static void on_reply(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    struct api_call *c = ud;
    struct gateway *g = c->g;
    if (s == STATUS_OK)
        respond_message(c->r, reply);
    else
        gateway_respond_failure(c->r, s, err, &c->details);
    rpc_details_done(&c->details);
    rpc_message_free(reply);
    mem_free(c);
    gateway_op_end(g);
}

// Node.Cluster is the gateway's own.
static enum status find_client(struct gateway *g, const struct rpc_method *m,
                               struct rpc_client **ret, struct err *err)
{
    if (strncmp(m->name, "cauce.node.v1.", strlen("cauce.node.v1.")) != 0)
        return gateway_route(g, m, "", ret, err);
    *ret = svc_client(g->svc, ROLE_NODE_GATEWAY, g->svc->self->id, err);
    return *ret ? STATUS_OK : STATUS_UNAVAILABLE;
}

void gateway_api_handle(struct http_request *r, void *gateway)
{
    struct gateway *g = gateway;
    const struct api_binding *b = http_request_route(r)->data;
    struct err err = ERR_INIT;
    ProtobufCMessage *request = NULL;
    struct rpc_client *client = NULL;
    enum status s = read_request(r, b->method, &request, &err);
    if (s == STATUS_OK)
        s = find_client(g, b->method, &client, &err);
    struct api_call *c = s == STATUS_OK ? mem_alloc(sizeof *c) : NULL;
    if (s == STATUS_OK && !c)
        s = err_set(&err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    if (s != STATUS_OK) {
        gateway_respond_error(r, s, &err);
        return;
    }
    *c = (struct api_call){.g = g, .r = r};
    gateway_op_begin(g);
    const struct rpc_trace trace = gateway_trace_of(r);
    const struct rpc_opts o = {
        .token = http_request_bearer(r),
        .idempotency_key = http_request_header(r, "Idempotency-Key"),
        .deadline_us = time_deadline_in_ms(CALL_MS),
        .cancel = g->stopping,
        .trace = &trace,
        .ret_details = &c->details,
        .on_behalf = true, // a stranger without a token is not the gateway
    };
    rpc_unary_async(client, b->method, &o, request, on_reply, c);
}
