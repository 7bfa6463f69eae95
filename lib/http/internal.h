#pragma once
#include "base/buf.h"
#include "http/http.h"

// ---- conditional.c: pure ----
struct http_conditions { // request headers, NULL when absent
    const char *if_match, *if_none_match, *if_range, *range;
};
enum http_outcome { HTTP_FULL, HTTP_PARTIAL, HTTP_NOT_MODIFIED, HTTP_PRECONDITION, HTTP_BAD_RANGE };
// etag without quotes, NULL when none. size < 0: unknown. PARTIAL sets first and last (inclusive).
enum http_outcome http_evaluate(const struct http_conditions *c, bool is_get_or_head, bool is_get,
                                const char *etag, bool ranges, int64_t size, int64_t *ret_first,
                                int64_t *ret_last);

// ---- problem.c ----
// False: it does not fit.
bool http_problem_body(struct buf *b, unsigned code, const struct http_problem *p) MUST_CHECK;

// ---- stream.c ----
struct MHD_Connection;
struct MHD_Response;
// offset, length: the part of the representation to be sent. Calls source->done on failure too.
struct http_stream *http_stream_new(const struct http_source *source, int64_t offset,
                                    int64_t length);
// The response owns one reference, the caller keeps its own. NULL when out of memory.
struct MHD_Response *http_stream_response(struct http_stream *s);
void http_stream_attach(struct http_stream *s, struct MHD_Connection *conn); // before it is queued
void http_stream_abort(struct http_stream *s); // a suspended connection is resumed and ends
void http_stream_unref(struct http_stream *s);
