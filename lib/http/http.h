#pragma once
// HTTP/1.1 server: routes from tables, ranges, conditional requests, problem+json, limits.
// Only user of libmicrohttpd.
//
// A handler runs on an I/O thread with the whole body in memory and must not block: it answers at
// once, or hands the request on and whoever has the answer calls http_respond() later, from any
// thread. Meanwhile the connection is suspended, so that waiting costs no thread.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "log/log.h"

struct http_server;
struct http_request;

// ---------------------------------------------------------------- routes

enum http_scope { // who may call; the server asks http_opts.authorize for all but HTTP_PUBLIC
    HTTP_PUBLIC,
    HTTP_MEDIA_TOKEN, // a media token in the path variable {token}
    HTTP_BEARER,      // Authorization: Bearer ...
};
enum { HTTP_CORS = 1U << 0 }; // any web page may read the answers; OPTIONS is answered

struct http_route {
    const char *method; // "GET" serves HEAD as well
    const char *path;   // "/hls/{token}/{item}/{n}.m4s": a {variable} is one segment or a part of
                        // one with literal text around it; it is never empty and never holds a '/'
                        // that was not percent-encoded
    enum http_scope scope;
    unsigned flags;
    void (*handle)(struct http_request *r, void *ud);
    const void *data; // the handler's own, http_request_route(r)->data
};
#define HTTP_MAX_VARS 8
struct http_vars { // found in a path; values are not yet percent-decoded
    size_t n;
    struct http_var {
        const char *name, *value;
        size_t name_len, value_len;
    } vars[HTTP_MAX_VARS];
};
// Does the path match the pattern? Earlier rows of a table win.
bool http_route_match(const char *pattern, const char *path, struct http_vars *ret);
// Percent-decode; '+' becomes a space when plus_is_space (queries). NULL: a bad escape, %00, or out
// of memory.
char *http_unescape(struct arena *a, const char *s, size_t n, bool plus_is_space);

// ---------------------------------------------------------------- server

struct http_trace { // W3C Trace Context
    uint8_t id[16];
    char parent[56]; // our own span: header traceresponse of the answer; "": none
};

struct http_opts {
    struct log *log;
    const struct http_route *routes; // borrowed
    size_t n_routes;
    void *ud; // given to handlers and authorize
    // May this request call this route? Called before the body is read; must not block. What it
    // finds out it leaves with http_request_set_context(). errors  UNAUTHENTICATED,
    // PERMISSION_DENIED, NOT_FOUND, ... answered as problem+json
    enum status (*authorize)(void *ud, struct http_request *r, struct err *err);
    // Which trace is this request of? Asked first of all for every request; must not block. NULL:
    // answers and log lines name none.
    void (*trace)(void *ud, struct http_request *r, struct http_trace *ret);
    size_t max_body_bytes;       // 0 = 1 MiB
    unsigned max_conns;          // 0 = 1024
    unsigned max_conns_per_addr; // 0 = 64
    int64_t header_timeout_ms; // from connecting, or from the answer before, to a whole header; 0 =
                               // 15 s
    int64_t body_timeout_ms;   // for the rest of the request; 0 = 30 s
    unsigned idle_timeout_s;   // a client that takes nothing of its answer; 0 = 30
    unsigned n_threads;        // I/O threads per address; 0 = 2
};
struct http_server *http_server_new(const struct http_opts *o, struct err *err) MUST_CHECK;
// address  "127.0.0.1:7480", "[::1]:0", "0.0.0.0:80"; numeric
// ret_url  "http://127.0.0.1:40123", HTTP_URL_SIZE bytes; may be NULL
#define HTTP_URL_SIZE 96
enum status http_server_listen(struct http_server *s, const char *address, char *ret_url,
                               struct err *err) MUST_CHECK;
// Stop accepting; open requests go on. Never blocks.
void http_server_close(struct http_server *s);
// Ends every connection: those that wait for an answer get 503. Answers given afterwards are
// dropped. Returns when no handler runs any more.
void http_server_stop(struct http_server *s);
// All requests must have been answered, else their memory outlives this call (and is freed by the
// answer).
void http_server_free(struct http_server *s);
DEFINE_AUTO(struct http_server, http_server_free)

struct http_stats {
    uint64_t n_requests, n_by_class[6]; // [2]: 2xx, ...
    uint64_t body_bytes_in, conns_total, conns_timed_out;
    unsigned conns_open;
};
void http_server_get_stats(struct http_server *s, struct http_stats *ret);

// ---------------------------------------------------------------- requests
// What getters give lives as long as the request. Those marked (H) may be called in the handler
// and in authorize only.

const struct http_route *http_request_route(const struct http_request *r);
const char *http_request_var(const struct http_request *r,
                             const char *name); // decoded; NULL when none
const char *http_request_query(struct http_request *r,
                               const char *name); // decoded; NULL when none (H)
// Every query pair, decoded; stops at the first status that is not OK. (H)
enum status http_request_each_query(struct http_request *r,
                                    enum status (*fn)(void *ud, const char *name, const char *value,
                                                      struct err *err),
                                    void *ud, struct err *err) MUST_CHECK;
const char *http_request_header(struct http_request *r, const char *name); // NULL when none (H)
// The same, but NULL also when it was given more than once. (H)
const char *http_request_single_header(struct http_request *r, const char *name);
const char *http_request_bearer(struct http_request *r); // the token; NULL when none (H)
const struct http_trace *http_request_trace(const struct http_request *r); // what opts.trace said
const void *http_request_body(const struct http_request *r, size_t *ret_len);
struct arena *http_request_arena(struct http_request *r); // one thread at a time
void http_request_set_context(struct http_request *r, void *context);
void *http_request_context(const struct http_request *r);

struct http_header {
    const char *name, *value;
};

// A body that is fetched while it is sent: the server asks for a block, from any I/O thread and not
// blocking, and is given it from any thread. The next block is asked for while one is being sent.
struct http_stream;
struct http_source {
    // Bytes from `offset` (of the whole representation) on are wanted, at most max of them. Exactly
    // one http_stream_give() must follow.
    void (*want)(void *ud, struct http_stream *s, int64_t offset, size_t max);
    void (*done)(void *ud); // once, last
    void *ud;
};
// bytes are copied; n 0: it failed, the connection is cut so that the client cannot take a part for
// the whole.
void http_stream_give(struct http_stream *s, const void *bytes, size_t n);
#define HTTP_STREAM_BLOCK (512U << 10)

struct http_response {
    unsigned code;             // 0 = 200
    const char *type;          // Content-Type
    const char *etag;          // opaque text without quotes: makes conditional requests work
    const char *cache_control; // NULL = "no-store"
    bool ranges;               // honour Range
    const struct http_header *headers;
    size_t n_headers;
    // The body, one of:
    const void *bytes; // copied, unless release is given: then borrowed until release(release_ud)
    size_t len;
    void (*release)(void *ud);
    void *release_ud;
    int fd;       // used when > 0: a regular file, consumed always
    int64_t size; // of the file from fd_offset on, or of the source
    int64_t fd_offset;
    const struct http_source *source; // copied; source->done is called whatever happens
};
// Answer; exactly once per request, from any thread. The request must not be touched afterwards.
// Handles HEAD, If-Match, If-None-Match, If-Range and Range (RFC 9110 sections 13 and 14; one
// range).
void http_respond(struct http_request *r, const struct http_response *resp);

struct http_violation { // a field of the request that is wrong
    const char *field, *description;
};
struct http_problem { // everything borrowed for the call
    enum status status;
    const char *detail; // for people; "" or NULL: none
    const char *reason; // stable UPPER_SNAKE word for programs; "" or NULL: none
    const struct http_violation *violations;
    size_t n_violations;
    unsigned retry_after_s; // 0: none; also header Retry-After
};
// application/problem+json (RFC 9457) with our status name as "code", and members "reason",
// "violations" and "retry_after" when there are any. 401 says WWW-Authenticate.
void http_respond_failure(struct http_request *r, const struct http_problem *p);
// The same with nothing but a sentence. retry_after_s  0: none
void http_respond_problem(struct http_request *r, enum status s, const char *detail,
                          unsigned retry_after_s);
unsigned http_code_from_status(enum status s);
