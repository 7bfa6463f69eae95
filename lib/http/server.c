// libmicrohttpd and our requests.
//
//   reading -> handling -> answered                       (answered before the handler returned)
//                       -> waiting (suspended) -> answered (resumed; the answer goes out)
//
// libmicrohttpd must be called from its own threads but for MHD_resume_connection(), so an answer
// is prepared where it comes from and queued by the access handler, which runs again after a
// resume. A request is held by libmicrohttpd and by whoever is to answer it; stopping takes the
// former away
// ("abandoned") and lets late answers fall into nothing. Locks: server, then request, then stream.
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "http/internal.h"
#include "work/work.h"

enum {
    MAX_LISTENERS = 16,
    REQUEST_ARENA_BYTES = 8 << 20,
    CONNECTION_MEMORY_BYTES = 32 << 10, // headers and send buffer
    PROBLEM_BYTES = 64 << 10,           // of JSON; what violations a service names is 8 KiB
    SWEEP_MS = 500,
};

struct listener {
    struct MHD_Daemon *daemon;
    int quiesced_fd; // -1: none
};

struct http_server {
    struct http_opts o;
    struct work_timers *timers;
    pthread_mutex_t lock;
    struct list conns, requests;
    struct work_timer *sweep;
    size_t n_listeners;
    struct listener listeners[MAX_LISTENERS];
    atomic_bool closing, stopping;
    atomic_uint n_conns_open;
    atomic_ullong n_requests, n_by_class[6], body_bytes_in, conns_total, conns_timed_out;
};

struct conn {
    struct http_server *server;
    struct list link;
    int fd;
    int64_t deadline_us; // TIME_NEVER while it is our turn
};

enum state { READING, HANDLING, WAITING, ANSWERED };

struct http_request {
    atomic_uint n_refs;
    struct http_server *server; // not to be touched once abandoned
    struct list link;
    struct MHD_Connection *mhd;
    struct conn *conn;
    const struct http_route *route;
    struct http_vars vars;
    const char *values[HTTP_MAX_VARS]; // decoded
    struct arena *arena;
    struct buf body;
    void *context;
    struct http_trace trace;
    bool is_get, is_head;
    int64_t started_us;
    pthread_mutex_t lock; // guards what follows
    enum state state;
    bool abandoned, queued;
    unsigned code;
    struct MHD_Response *response;
    struct http_stream *stream;
};

// ---------------------------------------------------------------- request objects

static struct http_request *request_new(struct http_server *s, struct MHD_Connection *mhd,
                                        struct conn *conn)
{
    struct http_request *r = mem_alloc(sizeof *r);
    struct arena *arena = arena_new(REQUEST_ARENA_BYTES);
    if (!r || !arena) {
        mem_free(r);
        arena_free(arena);
        return NULL;
    }
    atomic_init(&r->n_refs, 1);
    pthread_mutex_init(&r->lock, NULL);
    r->server = s;
    r->mhd = mhd;
    r->conn = conn;
    r->arena = arena;
    r->started_us = time_mono_us();
    buf_init(&r->body, s->o.max_body_bytes);
    pthread_mutex_lock(&s->lock);
    list_push_back(&s->requests, &r->link);
    pthread_mutex_unlock(&s->lock);
    return r;
}

static void request_unref(struct http_request *r)
{
    if (atomic_fetch_sub(&r->n_refs, 1) != 1)
        return;
    http_stream_unref(r->stream);
    if (r->response)
        MHD_destroy_response(r->response);
    buf_done(&r->body);
    arena_free(r->arena);
    pthread_mutex_destroy(&r->lock);
    mem_free(r);
}

static void conn_set_deadline(struct conn *c, int64_t deadline_us)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->server->lock);
    c->deadline_us = deadline_us;
    pthread_mutex_unlock(&c->server->lock);
}

// ---------------------------------------------------------------- getters

const struct http_route *http_request_route(const struct http_request *r)
{
    return r->route;
}

const char *http_request_var(const struct http_request *r, const char *name)
{
    size_t len = strlen(name);
    for (size_t i = 0; i < r->vars.n; i++)
        if (r->vars.vars[i].name_len == len && memcmp(r->vars.vars[i].name, name, len) == 0)
            return r->values[i];
    return NULL;
}

const char *http_request_header(struct http_request *r, const char *name)
{
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

struct header_count {
    const char *name;
    unsigned n;
};

static enum MHD_Result count_header(void *cls, enum MHD_ValueKind kind, const char *key,
                                    const char *value)
{
    struct header_count *c = cls;
    (void)kind;
    (void)value;
    c->n += strcasecmp(key, c->name) == 0;
    return MHD_YES;
}

const char *http_request_single_header(struct http_request *r, const char *name)
{
    struct header_count c = {.name = name};
    MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, count_header, &c);
    return c.n == 1 ? http_request_header(r, name) : NULL;
}

const struct http_trace *http_request_trace(const struct http_request *r)
{
    return &r->trace;
}

const char *http_request_bearer(struct http_request *r)
{
    const char *h = http_request_header(r, "Authorization");
    if (!h || strncasecmp(h, "Bearer ", 7) != 0)
        return NULL;
    h += 7 + strspn(h + 7, " ");
    return *h ? h : NULL;
}

const void *http_request_body(const struct http_request *r, size_t *ret_len)
{
    *ret_len = r->body.len;
    return r->body.data;
}

struct arena *http_request_arena(struct http_request *r)
{
    return r->arena;
}

void http_request_set_context(struct http_request *r, void *context)
{
    r->context = context;
}

void *http_request_context(const struct http_request *r)
{
    return r->context;
}

struct query_walk {
    struct http_request *r;
    enum status (*fn)(void *ud, const char *name, const char *value, struct err *err);
    void *ud;
    enum status status;
    struct err *err;
};

static enum MHD_Result query_pair(void *cls, enum MHD_ValueKind kind, const char *key,
                                  const char *value)
{
    struct query_walk *w = cls;
    (void)kind;
    const char *name = http_unescape(w->r->arena, key, strlen(key), true);
    const char *text = value ? http_unescape(w->r->arena, value, strlen(value), true) : "";
    w->status = name && text ? w->fn(w->ud, name, text, w->err)
                             : err_set(w->err, STATUS_INVALID_ARGUMENT, "query: bad escape");
    return w->status == STATUS_OK ? MHD_YES : MHD_NO;
}

enum status http_request_each_query(struct http_request *r,
                                    enum status (*fn)(void *ud, const char *name, const char *value,
                                                      struct err *err),
                                    void *ud, struct err *err)
{
    struct query_walk w = {.r = r, .fn = fn, .ud = ud, .err = err};
    MHD_get_connection_values(r->mhd, MHD_GET_ARGUMENT_KIND, query_pair, &w);
    return w.status;
}

const char *http_request_query(struct http_request *r, const char *name)
{
    const char *v = MHD_lookup_connection_value(r->mhd, MHD_GET_ARGUMENT_KIND, name);
    return v ? http_unescape(r->arena, v, strlen(v), true) : NULL;
}

// ---------------------------------------------------------------- answers

static void add_header(struct MHD_Response *m, const char *name, const char *value)
{
    // A value with a line end would end the header: libmicrohttpd refuses it, and so it is dropped.
    (void)MHD_add_response_header(m, name, value);
}

static void add_common_headers(struct http_request *r, struct MHD_Response *m,
                               const struct http_response *resp)
{
    if (resp->type)
        add_header(m, "Content-Type", resp->type);
    add_header(m, "Cache-Control", resp->cache_control ? resp->cache_control : "no-store");
    add_header(m, "X-Content-Type-Options", "nosniff");
    add_header(m, "Referrer-Policy", "no-referrer"); // addresses hold tokens
    if (r->trace.parent[0])
        add_header(m, "traceresponse", r->trace.parent);
    if (resp->ranges)
        add_header(m, "Accept-Ranges", "bytes");
    if (resp->etag) {
        char quoted[160];
        if (snprintf(quoted, sizeof quoted, "\"%s\"", resp->etag) < (int)sizeof quoted)
            add_header(m, "ETag", quoted);
    }
    if (r->route && (r->route->flags & HTTP_CORS)) {
        add_header(m, "Access-Control-Allow-Origin", "*");
        add_header(m, "Access-Control-Expose-Headers",
                   "Accept-Ranges, Content-Length, Content-Range, ETag, Retry-After, "
                   "traceresponse");
    }
    for (size_t i = 0; i < resp->n_headers; i++)
        add_header(m, resp->headers[i].name, resp->headers[i].value);
}

static struct MHD_Response *empty_body(void)
{
    static char nothing[1];
    return MHD_create_response_from_buffer(0, nothing, MHD_RESPMEM_PERSISTENT);
}

// Let go of a body that will not be sent.
static void drop_body(const struct http_response *resp)
{
    if (resp->source)
        resp->source->done(resp->source->ud);
    if (resp->fd > 0)
        close(resp->fd);
    if (resp->release)
        resp->release(resp->release_ud);
}

// Bytes first..first+n of the body; takes it over whatever happens.
static struct MHD_Response *part_of_body(struct http_request *r, const struct http_response *resp,
                                         int64_t first, int64_t n)
{
    struct MHD_Response *m;
    if (resp->source) {
        r->stream = http_stream_new(resp->source, first, n);
        return r->stream ? http_stream_response(r->stream) : NULL;
    }
    if (resp->fd > 0) {
        m = MHD_create_response_from_fd_at_offset64((uint64_t)n, resp->fd,
                                                    (uint64_t)(resp->fd_offset + first));
        if (!m)
            close(resp->fd);
        return m;
    }
    // libmicrohttpd only reads it
    char *at = n ? (char *)(uintptr_t)resp->bytes + first : NULL;
    if (!resp->release)
        return n ? MHD_create_response_from_buffer((size_t)n, at, MHD_RESPMEM_MUST_COPY)
                 : empty_body();
    static char nothing[1];
    m = MHD_create_response_from_buffer_with_free_callback_cls((size_t)n, n ? at : nothing,
                                                               resp->release, resp->release_ud);
    if (!m)
        resp->release(resp->release_ud);
    return m;
}

static void set_failure(struct http_request *r, unsigned code, const struct http_problem *p,
                        const struct http_header *headers, size_t n_headers)
{
    const struct http_problem bare = {.status = p->status, .retry_after_s = p->retry_after_s};
    struct buf b;
    buf_init(&b, PROBLEM_BYTES);
    bool whole = http_problem_body(&b, code, p);
    if (!whole) {
        buf_reset(&b);
        whole = http_problem_body(&b, code, &bare);
    }
    struct MHD_Response *m =
        whole ? MHD_create_response_from_buffer(b.len, b.data, MHD_RESPMEM_MUST_COPY)
              : empty_body();
    buf_done(&b);
    struct http_response resp = {
        .type = "application/problem+json", .headers = headers, .n_headers = n_headers};
    if (m)
        add_common_headers(r, m, &resp);
    r->response = m;
    r->code = code;
}

static void set_problem(struct http_request *r, unsigned code, enum status s, const char *detail,
                        const struct http_header *headers, size_t n_headers)
{
    const struct http_problem p = {.status = s, .detail = detail};
    set_failure(r, code, &p, headers, n_headers);
}

static void set_answer(struct http_request *r, const struct http_response *resp)
{
    int64_t size = resp->source || resp->fd > 0 ? resp->size : (int64_t)resp->len;
    int64_t first = 0, last = size - 1;
    struct http_conditions c = {
        .if_match = http_request_header(r, "If-Match"),
        .if_none_match = http_request_header(r, "If-None-Match"),
        .if_range = http_request_header(r, "If-Range"),
        .range = http_request_header(r, "Range"),
    };
    unsigned code = resp->code ? resp->code : 200;
    enum http_outcome outcome = code == 200
                                    ? http_evaluate(&c, r->is_get || r->is_head, r->is_get,
                                                    resp->etag, resp->ranges, size, &first, &last)
                                    : HTTP_FULL;
    char range[80];
    struct http_header content_range = {"Content-Range", range};
    switch (outcome) {
    case HTTP_FULL:
        r->code = code;
        r->response = part_of_body(r, resp, 0, size);
        break;
    case HTTP_PARTIAL:
        r->code = 206;
        snprintf(range, sizeof range, "bytes %lld-%lld/%lld", (long long)first, (long long)last,
                 (long long)size);
        r->response = part_of_body(r, resp, first, last - first + 1);
        if (r->response)
            add_header(r->response, content_range.name, range);
        break;
    case HTTP_NOT_MODIFIED:
        drop_body(resp);
        r->code = 304;
        r->response = empty_body();
        break;
    case HTTP_PRECONDITION:
        drop_body(resp);
        set_problem(r, 412, STATUS_FAILED_PRECONDITION, "it has changed", NULL, 0);
        return;
    case HTTP_BAD_RANGE:
        drop_body(resp);
        snprintf(range, sizeof range, "bytes */%lld", (long long)size);
        set_problem(r, 416, STATUS_OUT_OF_RANGE, "the range lies outside", &content_range, 1);
        return;
    }
    if (r->response)
        add_common_headers(r, r->response, resp);
    else
        set_problem(r, 500, STATUS_RESOURCE_EXHAUSTED, "out of memory", NULL, 0);
}

// With the answer set: let it go out. Lock held.
static void answered(struct http_request *r)
{
    bool resume = r->state == WAITING;
    r->state = ANSWERED;
    if (resume)
        MHD_resume_connection(r->mhd);
}

void http_respond(struct http_request *r, const struct http_response *resp)
{
    pthread_mutex_lock(&r->lock);
    if (r->abandoned) {
        drop_body(resp);
    } else {
        set_answer(r, resp);
        answered(r);
    }
    pthread_mutex_unlock(&r->lock);
    request_unref(r);
}

void http_respond_problem(struct http_request *r, enum status s, const char *detail,
                          unsigned retry_after_s)
{
    http_respond_failure(
        r, &(struct http_problem){.status = s, .detail = detail, .retry_after_s = retry_after_s});
}

void http_respond_failure(struct http_request *r, const struct http_problem *p)
{
    char after[16];
    struct http_header headers[2];
    size_t n = 0;
    unsigned code = http_code_from_status(p->status);
    if (code == 401)
        headers[n++] = (struct http_header){"WWW-Authenticate", "Bearer"};
    if (p->retry_after_s) {
        snprintf(after, sizeof after, "%u", p->retry_after_s);
        headers[n++] = (struct http_header){"Retry-After", after};
    }
    pthread_mutex_lock(&r->lock);
    if (!r->abandoned) {
        set_failure(r, code, p, headers, n);
        answered(r);
    }
    pthread_mutex_unlock(&r->lock);
    request_unref(r);
}

// ---------------------------------------------------------------- libmicrohttpd's callbacks

// On a libmicrohttpd thread: hand the prepared answer over.
static enum MHD_Result queue_answer(struct http_request *r)
{
    pthread_mutex_lock(&r->lock);
    struct MHD_Response *m = r->response;
    unsigned code = r->code;
    r->response = NULL;
    r->queued = true;
    if (r->stream) {
        http_stream_attach(r->stream, r->mhd);
        if (atomic_load(&r->server->stopping))
            http_stream_abort(r->stream);
    }
    pthread_mutex_unlock(&r->lock);
    if (!m)
        return MHD_NO; // no memory for even a problem: the connection is closed
    if (atomic_load(&r->server->closing))
        add_header(m, "Connection", "close");
    enum MHD_Result ok = MHD_queue_response(r->mhd, code, m);
    MHD_destroy_response(m);
    return ok;
}

static enum MHD_Result refuse(struct http_request *r, unsigned code, enum status s,
                              const char *detail, const struct http_header *headers, size_t n)
{
    pthread_mutex_lock(&r->lock);
    set_problem(r, code, s, detail, headers, n);
    r->state = ANSWERED;
    pthread_mutex_unlock(&r->lock);
    return queue_answer(r);
}

static bool method_matches(const struct http_route *route, const char *method)
{
    return str_eq(route->method, method) ||
           (str_eq(method, "HEAD") && str_eq(route->method, "GET"));
}

// No route of that method: who asks OPTIONS of a CORS route is told, anybody else gets 404 or 405.
static enum MHD_Result no_route(struct http_request *r, const char *path, const char *method)
{
    char allow[128] = "";
    bool cors = false;
    struct http_vars vars;
    for (size_t i = 0; i < r->server->o.n_routes; i++) {
        const struct http_route *route = &r->server->o.routes[i];
        if (!http_route_match(route->path, path, &vars))
            continue;
        size_t n = strlen(allow);
        if (!strstr(allow, route->method))
            snprintf(allow + n, sizeof allow - n, "%s%s%s", n ? ", " : "", route->method,
                     str_eq(route->method, "GET") ? ", HEAD" : "");
        cors |= (route->flags & HTTP_CORS) != 0;
    }
    if (!allow[0])
        return refuse(r, 404, STATUS_NOT_FOUND, "no such address", NULL, 0);
    const struct http_header headers[] = {
        {"Allow", allow},
        {"Access-Control-Allow-Origin", "*"},
        {"Access-Control-Allow-Methods", allow},
        {"Access-Control-Allow-Headers", "Range, If-Range, If-None-Match, traceparent"},
        {"Access-Control-Max-Age", "86400"},
    };
    if (!str_eq(method, "OPTIONS") || !cors)
        return refuse(r, 405, STATUS_UNIMPLEMENTED, "not with this method", headers, 1);
    struct http_response resp = {.code = 204, .headers = headers, .n_headers = N_ELEMENTS(headers)};
    pthread_mutex_lock(&r->lock);
    set_answer(r, &resp);
    r->state = ANSWERED;
    pthread_mutex_unlock(&r->lock);
    return queue_answer(r);
}

static bool find_route(struct http_request *r, const char *path, const char *method)
{
    for (size_t i = 0; i < r->server->o.n_routes && !r->route; i++) {
        const struct http_route *route = &r->server->o.routes[i];
        if (method_matches(route, method) && http_route_match(route->path, path, &r->vars))
            r->route = route;
    }
    return r->route != NULL;
}

static bool decode_vars(struct http_request *r)
{
    for (size_t i = 0; i < r->vars.n; i++) {
        const struct http_var *v = &r->vars.vars[i];
        r->values[i] = http_unescape(r->arena, v->value, v->value_len, false);
        if (!r->values[i] || r->values[i][0] == '\0')
            return false;
    }
    return true;
}

static bool says_too_large(struct http_request *r)
{
    const char *h = http_request_header(r, "Content-Length");
    int64_t n;
    return h && (str_parse_i64(h, 0, INT64_MAX, &n, NULL) != STATUS_OK ||
                 (uint64_t)n > r->server->o.max_body_bytes);
}

// The header has arrived: everything that can be refused without the body is.
static enum MHD_Result begin(struct http_request *r, const char *path, const char *method)
{
    struct http_server *s = r->server;
    struct err err = ERR_INIT;
    r->is_get = str_eq(method, "GET");
    r->is_head = str_eq(method, "HEAD");
    if (s->o.trace)
        s->o.trace(s->o.ud, r, &r->trace);
    conn_set_deadline(r->conn, time_deadline_in_ms(s->o.body_timeout_ms));
    if (atomic_load(&s->closing))
        return refuse(r, 503, STATUS_UNAVAILABLE, "shutting down", NULL, 0);
    if (!find_route(r, path, method))
        return no_route(r, path, method);
    if (!decode_vars(r))
        return refuse(r, 400, STATUS_INVALID_ARGUMENT, "bad escape in the address", NULL, 0);
    enum status st = r->route->scope == HTTP_PUBLIC ? STATUS_OK
                     : s->o.authorize
                         ? s->o.authorize(s->o.ud, r, &err)
                         : err_set(&err, STATUS_UNAUTHENTICATED, "nobody is let in here");
    if (st != STATUS_OK) {
        const struct http_header bearer = {"WWW-Authenticate", "Bearer"};
        return refuse(r, http_code_from_status(st), st, err.msg, &bearer,
                      st == STATUS_UNAUTHENTICATED);
    }
    if (says_too_large(r))
        return refuse(r, 413, STATUS_RESOURCE_EXHAUSTED, "the body is too large", NULL, 0);
    return MHD_YES;
}

// Log lines of this thread name the request's trace. Returns what log_set_trace() did.
static const uint8_t *set_trace(const struct http_request *r)
{
    return log_set_trace(r->trace.parent[0] ? r->trace.id : NULL);
}

static enum MHD_Result handle(struct http_request *r)
{
    conn_set_deadline(r->conn, TIME_NEVER);
    if (r->body.failed)
        return refuse(r, 413, STATUS_RESOURCE_EXHAUSTED, "the body is too large", NULL, 0);
    pthread_mutex_lock(&r->lock);
    r->state = HANDLING;
    pthread_mutex_unlock(&r->lock);
    atomic_fetch_add(&r->n_refs, 1); // whoever answers
    const uint8_t *before = set_trace(r);
    r->route->handle(r, r->server->o.ud);
    log_set_trace(before);

    pthread_mutex_lock(&r->lock);
    bool now = r->state == ANSWERED;
    if (!now && atomic_load(&r->server->stopping)) {
        r->abandoned = now = true;
        set_problem(r, 503, STATUS_UNAVAILABLE, "shutting down", NULL, 0);
        r->state = ANSWERED;
    } else if (!now) {
        r->state = WAITING;
        MHD_suspend_connection(r->mhd);
    }
    pthread_mutex_unlock(&r->lock);
    return now ? queue_answer(r) : MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **req_cls)
{
    (void)version;
    struct http_server *s = cls;
    struct http_request *r = *req_cls;
    if (!r) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        r = request_new(s, mhd, info ? info->socket_context : NULL);
        *req_cls = r;
        return r ? begin(r, url, method) : MHD_NO;
    }
    if (*upload_size > 0) {
        if (!r->body.failed)
            buf_append(&r->body, upload, *upload_size);
        atomic_fetch_add(&s->body_bytes_in, *upload_size);
        *upload_size = 0;
        return MHD_YES;
    }
    pthread_mutex_lock(&r->lock);
    enum state state = r->state;
    bool queued = r->queued;
    pthread_mutex_unlock(&r->lock);
    if (queued)
        return MHD_YES;
    return state == ANSWERED ? queue_answer(r) : handle(r);
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **req_cls,
                         enum MHD_RequestTerminationCode why)
{
    (void)mhd;
    struct http_server *s = cls;
    struct http_request *r = *req_cls;
    if (!r)
        return;
    *req_cls = NULL;
    conn_set_deadline(r->conn, time_deadline_in_ms(s->o.header_timeout_ms));
    pthread_mutex_lock(&s->lock);
    list_remove(&r->link);
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_lock(&r->lock);
    r->abandoned = true;
    unsigned code = r->code;
    if (r->stream)
        http_stream_abort(r->stream);
    pthread_mutex_unlock(&r->lock);
    atomic_fetch_add(&s->n_requests, 1);
    atomic_fetch_add(&s->n_by_class[code / 100 < 6 ? code / 100 : 0], 1);
    const uint8_t *before = set_trace(r);
    // The pattern, never the address itself: that holds tokens.
    log_debug(s->o.log, "http_request", F_STR("route", r->route ? r->route->path : NULL),
              F_I64("code", code), F_BOOL("whole", why == MHD_REQUEST_TERMINATED_COMPLETED_OK),
              F_I64("took_us", time_mono_us() - r->started_us));
    log_set_trace(before);
    request_unref(r);
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct http_server *s = cls;
    struct conn *c = *socket_context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        atomic_fetch_add(&s->conns_total, 1);
        atomic_fetch_add(&s->n_conns_open, 1);
        c = info ? mem_alloc(sizeof *c) : NULL;
        *socket_context = c;
        if (!c)
            return;
        int yes = 1;
        setsockopt(info->connect_fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        c->server = s;
        c->fd = info->connect_fd;
        c->deadline_us = time_deadline_in_ms(s->o.header_timeout_ms);
        pthread_mutex_lock(&s->lock);
        list_push_back(&s->conns, &c->link);
        pthread_mutex_unlock(&s->lock);
        return;
    }
    atomic_fetch_sub(&s->n_conns_open, 1);
    if (!c)
        return;
    pthread_mutex_lock(&s->lock);
    list_remove(&c->link);
    pthread_mutex_unlock(&s->lock);
    mem_free(c);
}

// We split and decode ourselves: an encoded '/' must not become one that separates.
static size_t leave_escaped(void *cls, struct MHD_Connection *mhd, char *s)
{
    (void)cls;
    (void)mhd;
    return strlen(s);
}

__attribute__((format(printf, 2, 0))) static void on_mhd_log(void *cls, const char *fmt, va_list ap)
{
    struct http_server *s = cls;
    char text[256];
    vsnprintf(text, sizeof text, fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    log_debug(s->o.log, "http_library", F_STR("text", text));
}

// ---------------------------------------------------------------- slow clients

// libmicrohttpd's timeout is for silence; a client that sends a byte now and then would never meet
// it. The descriptor is valid while the connection is in the list: it leaves that before it closes.
static void on_sweep(void *ud)
{
    struct http_server *s = ud;
    int64_t now = time_mono_us();
    pthread_mutex_lock(&s->lock);
    list_for_each(l, &s->conns)
    {
        struct conn *c = list_entry(l, struct conn, link);
        if (c->deadline_us <= now) {
            c->deadline_us = TIME_NEVER;
            atomic_fetch_add(&s->conns_timed_out, 1); // before the client can know
            shutdown(c->fd, SHUT_RDWR);
        }
    }
    if (s->sweep) { // NULL: stopping
        struct work_timer *next =
            work_timer_start(s->timers, time_deadline_in_ms(SWEEP_MS), on_sweep, s);
        if (next) {
            work_timer_cancel(s->sweep); // this one
            s->sweep = next;
        }
    }
    pthread_mutex_unlock(&s->lock);
}

// ---------------------------------------------------------------- the server

struct http_server *http_server_new(const struct http_opts *o, struct err *err)
{
    struct http_server *s = mem_alloc(sizeof *s);
    struct work_timers *timers = work_timers_new();
    if (!s || !timers) {
        mem_free(s);
        work_timers_free(timers);
        err_set(err, STATUS_RESOURCE_EXHAUSTED, "http server: out of memory or threads");
        return NULL;
    }
    s->o = *o;
    s->o.max_body_bytes = o->max_body_bytes ? o->max_body_bytes : 1 << 20;
    s->o.max_conns = o->max_conns ? o->max_conns : 1024;
    s->o.max_conns_per_addr = o->max_conns_per_addr ? o->max_conns_per_addr : 64;
    s->o.header_timeout_ms = o->header_timeout_ms ? o->header_timeout_ms : 15000;
    s->o.body_timeout_ms = o->body_timeout_ms ? o->body_timeout_ms : 30000;
    s->o.idle_timeout_s = o->idle_timeout_s ? o->idle_timeout_s : 30;
    s->o.n_threads = o->n_threads ? o->n_threads : 2;
    s->timers = timers;
    pthread_mutex_init(&s->lock, NULL);
    list_init(&s->conns);
    list_init(&s->requests);
    pthread_mutex_lock(&s->lock); // the timer may fire before it is known here
    s->sweep = work_timer_start(timers, time_deadline_in_ms(SWEEP_MS), on_sweep, s);
    bool sweeps = s->sweep != NULL;
    pthread_mutex_unlock(&s->lock);
    if (!sweeps) {
        err_set(err, STATUS_RESOURCE_EXHAUSTED, "http server: out of memory");
        http_server_free(s);
        return NULL;
    }
    return s;
}

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_storage storage;
};

static bool parse_address(const char *text, union address *ret, socklen_t *ret_len)
{
    const char *colon = strrchr(text, ':');
    char host[64];
    int64_t port;
    if (!colon || (size_t)(colon - text) >= sizeof host ||
        str_parse_i64(colon + 1, 0, 65535, &port, NULL) != STATUS_OK)
        return false;
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = '\0';
    *ret = (union address){0};
    size_t n = strlen(host);
    if (n > 2 && host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        ret->v6.sin6_family = AF_INET6;
        ret->v6.sin6_port = htons((uint16_t)port);
        *ret_len = sizeof ret->v6;
        return inet_pton(AF_INET6, host + 1, &ret->v6.sin6_addr) == 1;
    }
    ret->v4.sin_family = AF_INET;
    ret->v4.sin_port = htons((uint16_t)port);
    *ret_len = sizeof ret->v4;
    return inet_pton(AF_INET, host, &ret->v4.sin_addr) == 1;
}

static void close_p(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static enum status open_listener(const char *text, int *ret_fd, char *ret_url, struct err *err)
{
    union address a;
    socklen_t len;
    int yes = 1;
    if (!parse_address(text, &a, &len))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "'%s' is not an address such as 127.0.0.1:7480 or [::1]:7480", text);
    AUTO(close_p) int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(err, errno, "listen on %s", text);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (a.any.sa_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes);
    if (bind(fd, &a.any, len) != 0 || listen(fd, 256) != 0 || getsockname(fd, &a.any, &len) != 0)
        return err_errno(err, errno, "listen on %s", text);
    char host[INET6_ADDRSTRLEN] = "";
    bool v6 = a.any.sa_family == AF_INET6;
    inet_ntop(a.any.sa_family, v6 ? (void *)&a.v6.sin6_addr : (void *)&a.v4.sin_addr, host,
              sizeof host);
    if (ret_url)
        snprintf(ret_url, HTTP_URL_SIZE, v6 ? "http://[%s]:%u" : "http://%s:%u", host,
                 ntohs(v6 ? a.v6.sin6_port : a.v4.sin_port));
    *ret_fd = fd;
    fd = -1;
    return STATUS_OK;
}

enum status http_server_listen(struct http_server *s, const char *address, char *ret_url,
                               struct err *err)
{
    if (s->n_listeners == MAX_LISTENERS)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d addresses", MAX_LISTENERS);
    int fd = -1;
    enum status st = open_listener(address, &fd, ret_url, err);
    if (st != STATUS_OK)
        return st;
    unsigned flags =
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG;
    struct MHD_Daemon *d = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, s, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, s,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_NOTIFY_COMPLETED, on_completed, s,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, s, MHD_OPTION_UNESCAPE_CALLBACK, leave_escaped,
        s, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY_BYTES,
        MHD_OPTION_CONNECTION_LIMIT, s->o.max_conns, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
        s->o.max_conns_per_addr, MHD_OPTION_CONNECTION_TIMEOUT, s->o.idle_timeout_s,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_THREAD_POOL_SIZE, s->o.n_threads,
        MHD_OPTION_END);
    if (!d) {
        close(fd);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "listen on %s: the HTTP library did not start", address);
    }
    s->listeners[s->n_listeners++] = (struct listener){.daemon = d, .quiesced_fd = -1};
    return STATUS_OK;
}

void http_server_close(struct http_server *s)
{
    if (atomic_exchange(&s->closing, true))
        return;
    for (size_t i = 0; i < s->n_listeners; i++)
        s->listeners[i].quiesced_fd = MHD_quiesce_daemon(s->listeners[i].daemon);
}

// Answer for whoever has not: the library may not be stopped while connections are suspended.
static void abandon(struct http_request *r)
{
    pthread_mutex_lock(&r->lock);
    if (r->state == WAITING) {
        r->abandoned = true;
        set_problem(r, 503, STATUS_UNAVAILABLE, "shutting down", NULL, 0);
        answered(r);
    }
    if (r->stream)
        http_stream_abort(r->stream);
    pthread_mutex_unlock(&r->lock);
}

void http_server_stop(struct http_server *s)
{
    http_server_close(s);
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->stopping, true);
    struct work_timer *sweep = s->sweep;
    s->sweep = NULL;
    list_for_each(l, &s->requests) abandon(list_entry(l, struct http_request, link));
    pthread_mutex_unlock(&s->lock);
    work_timer_cancel(sweep);
    for (size_t i = 0; i < s->n_listeners; i++) {
        MHD_stop_daemon(s->listeners[i].daemon);
        if (s->listeners[i].quiesced_fd >= 0)
            close(s->listeners[i].quiesced_fd);
    }
    s->n_listeners = 0;
}

void http_server_free(struct http_server *s)
{
    if (!s)
        return;
    http_server_stop(s);
    work_timers_free(s->timers);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

void http_server_get_stats(struct http_server *s, struct http_stats *ret)
{
    *ret = (struct http_stats){
        .n_requests = atomic_load(&s->n_requests),
        .body_bytes_in = atomic_load(&s->body_bytes_in),
        .conns_total = atomic_load(&s->conns_total),
        .conns_timed_out = atomic_load(&s->conns_timed_out),
        .conns_open = atomic_load(&s->n_conns_open),
    };
    for (size_t i = 0; i < N_ELEMENTS(ret->n_by_class); i++)
        ret->n_by_class[i] = atomic_load(&s->n_by_class[i]);
}
