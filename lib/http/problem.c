#include <string.h>

#include "http/internal.h"

static const struct {
    unsigned code;
    const char *title;
} table[] = {
    [STATUS_OK] = {200, "OK"},
    [STATUS_CANCELLED] = {503, "Cancelled"},
    [STATUS_UNKNOWN] = {500, "Internal error"},
    [STATUS_INVALID_ARGUMENT] = {400, "Bad request"},
    [STATUS_DEADLINE_EXCEEDED] = {504, "Took too long"},
    [STATUS_NOT_FOUND] = {404, "Not found"},
    [STATUS_ALREADY_EXISTS] = {409, "Exists already"},
    [STATUS_PERMISSION_DENIED] = {403, "Not allowed"},
    [STATUS_RESOURCE_EXHAUSTED] = {429, "Too much"},
    [STATUS_FAILED_PRECONDITION] = {409, "Not possible now"},
    [STATUS_ABORTED] = {409, "Changed meanwhile"},
    [STATUS_OUT_OF_RANGE] = {400, "Out of range"},
    [STATUS_UNIMPLEMENTED] = {501, "Not implemented"},
    [STATUS_INTERNAL] = {500, "Internal error"},
    [STATUS_UNAVAILABLE] = {503, "Not available now"},
    [STATUS_DATA_LOSS] = {500, "Data damaged"},
    [STATUS_UNAUTHENTICATED] = {401, "Not signed in"},
};

unsigned http_code_from_status(enum status s)
{
    return table[status_from_wire((unsigned)s)].code;
}

static void put_member(struct buf *b, const char *name, const char *value)
{
    if (!value || !value[0])
        return;
    buf_printf(b, ",\"%s\":", name);
    buf_put_json_string(b, value, strlen(value));
}

static void put_violations(struct buf *b, const struct http_problem *p)
{
    for (size_t i = 0; i < p->n_violations; i++) {
        const struct http_violation *v = &p->violations[i];
        buf_puts(b, i ? ",{\"field\":" : ",\"violations\":[{\"field\":");
        buf_put_json_string(b, v->field, strlen(v->field));
        put_member(b, "description", v->description);
        buf_putc(b, '}');
    }
    if (p->n_violations)
        buf_putc(b, ']');
}

bool http_problem_body(struct buf *b, unsigned code, const struct http_problem *p)
{
    buf_printf(b, "{\"type\":\"about:blank\",\"title\":\"%s\",\"status\":%u,\"code\":\"%s\"",
               table[status_from_wire((unsigned)p->status)].title, code, status_name(p->status));
    put_member(b, "detail", p->detail);
    put_member(b, "reason", p->reason);
    put_violations(b, p);
    if (p->retry_after_s)
        buf_printf(b, ",\"retry_after\":%u", p->retry_after_s);
    buf_puts(b, "}\n");
    return !b->failed;
}
