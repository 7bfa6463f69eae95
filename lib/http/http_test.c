#include "http/http.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "http/internal.h"

// ---------------------------------------------------------------- pure parts

static void test_route_match(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *path;
        bool yes;
        const char *first; // value of the first variable
    } cases[] = {
        {"/", "/", true, NULL},
        {"/", "", false, NULL},
        {"/a", "/a/", false, NULL},
        {"/a/", "/a/", true, NULL},
        {"/a/{x}", "/a/b", true, "b"},
        {"/a/{x}", "/a/", false, NULL},
        {"/a/{x}", "/a/b/c", false, NULL},
        {"/a/{x}.m4s", "/a/12.m4s", true, "12"},
        {"/a/{x}.m4s", "/a/.m4s", false, NULL},
        {"/a/{x}.m4s", "/a/12.mp4", false, NULL},
        {"/a/v{x}.m3u8", "/a/v720.m3u8", true, "720"},
        {"/a/v{x}.m3u8", "/a/a720.m3u8", false, NULL},
        {"/{x}/b", "/a%2Fc/b", true, "a%2Fc"},
        {"/a", "a", false, NULL},
    };
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        struct http_vars v;
        if (http_route_match(cases[i].pattern, cases[i].path, &v) != cases[i].yes)
            fail_msg("%s against %s", cases[i].path, cases[i].pattern);
        if (cases[i].first) {
            assert_int_equal(v.vars[0].value_len, strlen(cases[i].first));
            assert_memory_equal(v.vars[0].value, cases[i].first, v.vars[0].value_len);
        }
    }
}

static void test_unescape(void **state)
{
    (void)state;
    AUTO(arena_free_p) struct arena *a = arena_new(0);
    assert_string_equal(http_unescape(a, "a%2Fb%41+c", 10, false), "a/bA+c");
    assert_string_equal(http_unescape(a, "a+b%2b", 6, true), "a b+");
    static const char *const bad[] = {"%", "%2", "%zz", "a%0", "%00", "%%41"};
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        assert_null(http_unescape(a, bad[i], strlen(bad[i]), false));
}

static void test_conditions(void **state)
{
    (void)state;
    static const struct {
        struct http_conditions c;
        const char *etag;
        int64_t size;
        enum http_outcome want;
        int64_t first, last;
    } cases[] = {
        {{0}, "e", 10, HTTP_FULL, 0, 0},
        {{.if_none_match = "\"e\""}, "e", 10, HTTP_NOT_MODIFIED, 0, 0},
        {{.if_none_match = "W/\"e\""}, "e", 10, HTTP_NOT_MODIFIED, 0, 0},
        {{.if_none_match = "\"x\", \"e\""}, "e", 10, HTTP_NOT_MODIFIED, 0, 0},
        {{.if_none_match = "*"}, "e", 10, HTTP_NOT_MODIFIED, 0, 0},
        {{.if_none_match = "\"x\""}, "e", 10, HTTP_FULL, 0, 0},
        {{.if_none_match = "e"}, "e", 10, HTTP_FULL, 0, 0},
        {{.if_none_match = "\"e"}, "e", 10, HTTP_FULL, 0, 0},
        {{.if_none_match = "*"}, NULL, 10, HTTP_FULL, 0, 0},
        {{.if_match = "\"e\""}, "e", 10, HTTP_FULL, 0, 0},
        {{.if_match = "W/\"e\""}, "e", 10, HTTP_PRECONDITION, 0, 0},
        {{.if_match = "\"x\""}, "e", 10, HTTP_PRECONDITION, 0, 0},
        {{.range = "bytes=0-3"}, "e", 10, HTTP_PARTIAL, 0, 3},
        {{.range = "bytes=4-"}, "e", 10, HTTP_PARTIAL, 4, 9},
        {{.range = "bytes=4-99999999999999999999999"}, "e", 10, HTTP_PARTIAL, 4, 9},
        {{.range = "bytes=-4"}, "e", 10, HTTP_PARTIAL, 6, 9},
        {{.range = "bytes=-40"}, "e", 10, HTTP_PARTIAL, 0, 9},
        {{.range = "bytes=-0"}, "e", 10, HTTP_BAD_RANGE, 0, 0},
        {{.range = "bytes=10-"}, "e", 10, HTTP_BAD_RANGE, 0, 0},
        {{.range = "bytes=-1"}, "e", 0, HTTP_BAD_RANGE, 0, 0},
        {{.range = "bytes=0-"}, "e", 0, HTTP_BAD_RANGE, 0, 0},
        {{.range = "bytes=5-4"}, "e", 10, HTTP_FULL, 0, 0},
        {{.range = "bytes=0-1,4-5"}, "e", 10, HTTP_FULL, 0, 0},
        {{.range = "bytes=-"}, "e", 10, HTTP_FULL, 0, 0},
        {{.range = "bytes=a-b"}, "e", 10, HTTP_FULL, 0, 0},
        {{.range = "lines=0-1"}, "e", 10, HTTP_FULL, 0, 0},
        {{.range = "bytes=0-3"}, "e", -1, HTTP_FULL, 0, 0},
        {{.range = "bytes=0-3", .if_range = "\"e\""}, "e", 10, HTTP_PARTIAL, 0, 3},
        {{.range = "bytes=0-3", .if_range = "\"x\""}, "e", 10, HTTP_FULL, 0, 0},
        {{.range = "bytes=0-3", .if_range = "W/\"e\""}, "e", 10, HTTP_FULL, 0, 0},
        {{.range = "bytes=0-3", .if_range = "Sat, 21 Nov 2026 09:00:00 GMT"},
         "e",
         10,
         HTTP_FULL,
         0,
         0},
        {{.range = "bytes=0-3", .if_none_match = "\"e\""}, "e", 10, HTTP_NOT_MODIFIED, 0, 0},
    };
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        int64_t first = 0, last = 0;
        enum http_outcome got = http_evaluate(&cases[i].c, true, true, cases[i].etag, true,
                                              cases[i].size, &first, &last);
        if (got != cases[i].want ||
            (got == HTTP_PARTIAL && (first != cases[i].first || last != cases[i].last)))
            fail_msg("case %zu: %d %lld-%lld", i, (int)got, (long long)first, (long long)last);
    }
    struct http_conditions c = {.range = "bytes=0-3"};
    int64_t a, b;
    assert_int_equal(http_evaluate(&c, true, false, NULL, true, 10, &a, &b), HTTP_FULL); // HEAD
    c = (struct http_conditions){.if_none_match = "*"};
    assert_int_equal(http_evaluate(&c, false, false, "e", true, 10, &a, &b), HTTP_PRECONDITION);
}

static void test_every_status_has_a_code(void **state)
{
    (void)state;
    for (unsigned i = 1; i <= 16; i++)
        assert_in_range(http_code_from_status((enum status)i), 400, 504);
    assert_int_equal(http_code_from_status(STATUS_UNAUTHENTICATED), 401);
    assert_int_equal(http_code_from_status((enum status)99), 500);
}

// ---------------------------------------------------------------- a server and a raw client

struct world {
    struct http_server *server;
    char url[HTTP_URL_SIZE];
    pthread_t helper;
    atomic_int released, sources_done;
    struct http_request *parked; // by handler `park`
    pthread_mutex_t lock;
    pthread_cond_t cond;
    struct http_request *waiting;
};

static const char text10[] = "0123456789";

static void get_text(struct http_request *r, void *ud)
{
    (void)ud;
    http_respond(r, &(struct http_response){.type = "text/plain",
                                            .etag = "e1",
                                            .ranges = true,
                                            .cache_control = "max-age=60",
                                            .bytes = text10,
                                            .len = 10});
}

static void on_release(void *ud)
{
    struct world *w = ud;
    atomic_fetch_add(&w->released, 1);
}

static void get_borrowed(struct http_request *r, void *ud)
{
    http_respond(r, &(struct http_response){.etag = "e1",
                                            .ranges = true,
                                            .bytes = text10,
                                            .len = 10,
                                            .release = on_release,
                                            .release_ud = ud});
}

static void get_file(struct http_request *r, void *ud)
{
    (void)ud;
    char path[] = "/tmp/cauce-http-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, "abcdefghij", 10) == 10);
    unlink(path);
    http_respond(r, &(struct http_response){.ranges = true, .fd = fd, .fd_offset = 2, .size = 8});
}

static void get_echo(struct http_request *r, void *ud)
{
    (void)ud;
    size_t n;
    const void *body = http_request_body(r, &n);
    const char *q = http_request_query(r, "q"), *x = http_request_var(r, "x");
    char *s = arena_printf(http_request_arena(r), "x=%s q=%s n=%zu [%.*s]", x, q ? q : "-", n,
                           (int)n, n ? (const char *)body : "");
    http_respond(r, &(struct http_response){.type = "text/plain", .bytes = s, .len = strlen(s)});
}

static void *answer_later(void *ud)
{
    struct http_request *r = ud;
    http_respond(r, &(struct http_response){.bytes = "later", .len = 5});
    return NULL;
}

static void get_later(struct http_request *r, void *ud)
{
    (void)ud;
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, answer_later, r), 0);
    pthread_detach(t);
}

static void get_parked(struct http_request *r, void *ud)
{
    struct world *w = ud;
    pthread_mutex_lock(&w->lock);
    w->waiting = r;
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->lock);
}

static struct http_request *wait_parked(struct world *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->waiting)
        pthread_cond_wait(&w->cond, &w->lock);
    struct http_request *r = w->waiting;
    w->waiting = NULL;
    pthread_mutex_unlock(&w->lock);
    return r;
}

// 3 MiB of a pattern, in blocks; odd offsets are given from another thread.
enum { STREAM_BYTES = 3 << 20 };
struct block_job {
    struct http_stream *s;
    int64_t offset;
    size_t n;
};
static void *give(void *ud)
{
    struct block_job *j = ud;
    uint8_t *block = mem_alloc(j->n);
    for (size_t i = 0; i < j->n; i++)
        block[i] = (uint8_t)((j->offset + (int64_t)i) * 31 >> 3);
    http_stream_give(j->s, block, j->n);
    mem_free(block);
    mem_free(j);
    return NULL;
}
static void want(void *ud, struct http_stream *s, int64_t offset, size_t max)
{
    (void)ud;
    struct block_job *j = mem_alloc(sizeof *j);
    *j = (struct block_job){s, offset, max > 100000 ? 100000 : max};
    pthread_t t;
    if (offset / 100000 % 2) {
        give(j);
        return;
    }
    assert_int_equal(pthread_create(&t, NULL, give, j), 0);
    pthread_detach(t);
}
static void want_fails(void *ud, struct http_stream *s, int64_t offset, size_t max)
{
    (void)ud;
    if (offset > 0)
        http_stream_give(s, NULL, 0);
    else
        want(ud, s, offset, max);
}
static void source_done(void *ud)
{
    struct world *w = ud;
    atomic_fetch_add(&w->sources_done, 1);
}
static void get_stream(struct http_request *r, void *ud)
{
    struct http_source src = {want, source_done, ud};
    http_respond(r, &(struct http_response){
                        .etag = "s", .ranges = true, .source = &src, .size = STREAM_BYTES});
}
static void get_broken(struct http_request *r, void *ud)
{
    struct http_source src = {want_fails, source_done, ud};
    http_respond(r, &(struct http_response){.source = &src, .size = STREAM_BYTES});
}
static void get_problem(struct http_request *r, void *ud)
{
    (void)ud;
    http_respond_problem(r, STATUS_UNAVAILABLE, "wait \"a bit\"", 7);
}

static void get_failure(struct http_request *r, void *ud)
{
    static const struct http_violation wrong[] = {{"price.minor", "must not be \"negative\""},
                                                  {"title", "is missing"}};
    (void)ud;
    http_respond_failure(r, &(struct http_problem){.status = STATUS_INVALID_ARGUMENT,
                                                   .reason = "BAD_PRICE",
                                                   .violations = wrong,
                                                   .n_violations = N_ELEMENTS(wrong)});
}

// Violations without end: too much for an answer.
static void get_flood(struct http_request *r, void *ud)
{
    struct http_violation *all = arena_array(http_request_arena(r), 4000, sizeof *all);
    (void)ud;
    for (size_t i = 0; i < 4000; i++)
        all[i] = (struct http_violation){"some.field", "wrong"};
    http_respond_failure(r, &(struct http_problem){.status = STATUS_INVALID_ARGUMENT,
                                                   .detail = "much",
                                                   .violations = all,
                                                   .n_violations = 4000,
                                                   .retry_after_s = 3});
}

// The header itself, when it was given once, is the trace.
static void take_trace(void *ud, struct http_request *r, struct http_trace *ret)
{
    const char *h = http_request_single_header(r, "traceparent");
    (void)ud;
    memset(ret->id, 0xab, sizeof ret->id);
    snprintf(ret->parent, sizeof ret->parent, "%s", h ? h : "none");
}

static enum status authorize(void *ud, struct http_request *r, struct err *err)
{
    (void)ud;
    const char *token = http_request_route(r)->scope == HTTP_BEARER ? http_request_bearer(r)
                                                                    : http_request_var(r, "token");
    if (!token || !str_eq(token, "good"))
        return err_set(err, STATUS_UNAUTHENTICATED, "no good token");
    return STATUS_OK;
}

static const struct http_route routes[] = {
    {"GET", "/text", HTTP_PUBLIC, HTTP_CORS, get_text, NULL},
    {"GET", "/borrowed", HTTP_PUBLIC, 0, get_borrowed, NULL},
    {"GET", "/file", HTTP_PUBLIC, 0, get_file, NULL},
    {"GET", "/echo/{x}", HTTP_PUBLIC, 0, get_echo, NULL},
    {"POST", "/echo/{x}", HTTP_PUBLIC, 0, get_echo, NULL},
    {"GET", "/later", HTTP_PUBLIC, 0, get_later, NULL},
    {"GET", "/parked", HTTP_PUBLIC, 0, get_parked, NULL},
    {"GET", "/stream", HTTP_PUBLIC, 0, get_stream, NULL},
    {"GET", "/broken", HTTP_PUBLIC, 0, get_broken, NULL},
    {"GET", "/problem", HTTP_PUBLIC, 0, get_problem, NULL},
    {"GET", "/failure", HTTP_PUBLIC, 0, get_failure, NULL},
    {"GET", "/flood", HTTP_PUBLIC, 0, get_flood, NULL},
    {"GET", "/bearer", HTTP_BEARER, 0, get_text, NULL},
    {"POST", "/bearer", HTTP_BEARER, 0, get_echo, NULL},
    {"GET", "/media/{token}/x", HTTP_MEDIA_TOKEN, 0, get_text, NULL},
};

static int setup(void **state)
{
    struct world *w = mem_alloc(sizeof *w);
    struct err err = ERR_INIT;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->cond, NULL);
    struct http_opts o = {.routes = routes,
                          .n_routes = N_ELEMENTS(routes),
                          .ud = w,
                          .authorize = authorize,
                          .max_body_bytes = 1000,
                          .max_conns_per_addr = 4,
                          .header_timeout_ms = 1000,
                          .body_timeout_ms = 1000};
    w->server = http_server_new(&o, &err);
    assert_non_null(w->server);
    if (http_server_listen(w->server, "127.0.0.1:0", w->url, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    http_server_free(w->server);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->cond);
    mem_free(w);
    return 0;
}

static int dial(const char *url)
{
    struct sockaddr_in a4 = {.sin_family = AF_INET};
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6};
    bool v6 = strchr(url, '[') != NULL;
    uint16_t port = htons((uint16_t)atoi(strrchr(url, ':') + 1));
    a4.sin_port = a6.sin6_port = port;
    inet_pton(AF_INET, "127.0.0.1", &a4.sin_addr);
    inet_pton(AF_INET6, "::1", &a6.sin6_addr);
    int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    struct timeval patience = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    struct sockaddr *a = v6 ? (struct sockaddr *)&a6 : (struct sockaddr *)&a4;
    assert_int_equal(connect(fd, a, v6 ? sizeof a6 : sizeof a4), 0);
    return fd;
}

static char *read_to_end(int fd, size_t *ret_len)
{
    struct buf b;
    buf_init(&b, 64 << 20);
    for (;;) {
        uint8_t *at = buf_reserve(&b, 65536);
        ssize_t n = recv(fd, at, 65536, 0);
        if (n <= 0)
            break;
        buf_commit(&b, (size_t)n);
    }
    close(fd);
    buf_putc(&b, '\0');
    if (ret_len)
        *ret_len = b.len - 1;
    return (char *)buf_take(&b, NULL);
}

static char *ask_raw(struct world *w, const char *request, size_t *ret_len)
{
    int fd = dial(w->url);
    assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
    return read_to_end(fd, ret_len);
}

// method, path, extra header lines; the whole answer. The caller frees.
static char *ask(struct world *w, const char *line, const char *headers)
{
    AUTO(mem_free_p)
    char *request =
        mem_printf("%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n", line, headers);
    return ask_raw(w, request, NULL);
}

static void expect(struct world *w, const char *line, const char *headers, unsigned code,
                   const char *contains, const char *ends)
{
    AUTO(mem_free_p) char *answer = ask(w, line, headers);
    char start[32];
    snprintf(start, sizeof start, "HTTP/1.1 %u ", code);
    if (!str_starts_with(answer, start) || (contains && !strstr(answer, contains)) ||
        (ends && !str_ends_with(answer, ends)))
        fail_msg("%s %s: wanted %u '%s' '%s', got\n%s", line, headers, code,
                 contains ? contains : "", ends ? ends : "", answer);
}

static void test_http_get_head_and_conditions(void **state)
{
    struct world *w = *state;
    expect(w, "GET /text", "", 200, "X-Content-Type-Options: nosniff", "\r\n\r\n0123456789");
    expect(w, "GET /text", "", 200, "ETag: \"e1\"\r\n", NULL);
    expect(w, "GET /text", "", 200, "Cache-Control: max-age=60\r\n", NULL);
    expect(w, "GET /text", "", 200, "Access-Control-Allow-Origin: *\r\n", NULL);
    expect(w, "HEAD /text", "", 200, "Content-Length: 10", "\r\n\r\n");
    expect(w, "GET /text", "Range: bytes=2-4\r\n", 206, "Content-Range: bytes 2-4/10\r\n",
           "\r\n\r\n234");
    expect(w, "GET /text", "Range: bytes=10-\r\n", 416, "Content-Range: bytes */10\r\n", NULL);
    expect(w, "GET /text", "If-None-Match: \"e1\"\r\n", 304, "ETag: \"e1\"", "\r\n\r\n");
    expect(w, "GET /text", "If-Match: \"e2\"\r\n", 412, "application/problem+json", NULL);
    expect(w, "GET /file", "", 200, "Accept-Ranges: bytes", "\r\n\r\ncdefghij");
    expect(w, "GET /file", "Range: bytes=-3\r\n", 206, "bytes 5-7/8", "\r\n\r\nhij");
    expect(w, "GET /borrowed", "Range: bytes=1-1\r\n", 206, NULL, "\r\n\r\n1");
    expect(w, "GET /borrowed", "If-None-Match: \"e1\"\r\n", 304, NULL, NULL);
    expect(w, "GET /borrowed", "Range: bytes=99-\r\n", 416, NULL, NULL);
    expect(w, "GET /later", "", 200, "no-store", "\r\n\r\nlater");
    http_server_stop(w->server);
    assert_int_equal(atomic_load(&w->released), 3);
}

static void test_http_errors_are_problems(void **state)
{
    struct world *w = *state;
    expect(w, "GET /nothing", "", 404, "application/problem+json", NULL);
    expect(w, "DELETE /echo/a", "", 405, "Allow: GET, HEAD, POST\r\n", NULL);
    expect(w, "OPTIONS /text", "", 204, "Access-Control-Allow-Methods: GET, HEAD\r\n", NULL);
    expect(w, "OPTIONS /file", "", 405, "Allow: GET, HEAD\r\n", NULL);
    expect(w, "GET /problem", "", 503, "Retry-After: 7\r\n",
           "\"status\":503,\"code\":\"UNAVAILABLE\",\"detail\":\"wait \\\"a "
           "bit\\\"\",\"retry_after\":7}\n");
    expect(w, "GET /failure", "", 400, "application/problem+json",
           "\"reason\":\"BAD_PRICE\",\"violations\":[{\"field\":\"price.minor\","
           "\"description\":\"must not be \\\"negative\\\"\"},"
           "{\"field\":\"title\",\"description\":\"is missing\"}]}\n");
    expect(w, "GET /flood", "", 400, "Retry-After: 3\r\n",
           "\"code\":\"INVALID_ARGUMENT\",\"retry_after\":3}\n");
    expect(w, "GET /echo/%zz", "", 400, NULL, NULL);
    expect(w, "GET /echo/%00", "", 400, NULL, NULL);
}

static void test_http_answers_and_log_lines_name_the_trace(void **state)
{
    (void)state;
    struct world w = {0};
    char path[] = "/tmp/cauce-http-XXXXXX", line[16384] = "";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    AUTO(log_free_p) struct log *log = log_new(fd, LOG_DEBUG, true);
    struct http_opts o = {
        .log = log, .routes = routes, .n_routes = N_ELEMENTS(routes), .trace = take_trace};
    w.server = http_server_new(&o, NULL);
    assert_int_equal(http_server_listen(w.server, "127.0.0.1:0", w.url, NULL), STATUS_OK);
    expect(&w, "GET /text", "traceparent: one\r\n", 200, "traceresponse: one\r\n", NULL);
    expect(&w, "GET /later", "Traceparent: two\r\n", 200, "traceresponse: two\r\n", NULL);
    expect(&w, "GET /text", "traceparent: a\r\nTraceParent: b\r\n", 200, "traceresponse: none\r\n",
           NULL);
    expect(&w, "GET /nothing", "", 404, "traceresponse: none\r\n", NULL);
    expect(&w, "GET /bearer", "", 401, "traceresponse: none\r\n", NULL);
    http_server_free(w.server); // every request is in the log
    assert_true(pread(fd, line, sizeof line - 1, 0) > 0);
    close(fd);
    size_t n = 0;
    for (const char *at = line; (at = strstr(at, "\"http_request\"")); at++) {
        const char *end = strchr(at, '\n'), *id = strstr(at, "abababababababababababababababab");
        n++;
        assert_true(id && id < end);
    }
    assert_int_equal(n, 5);
}

static void test_http_scopes(void **state)
{
    struct world *w = *state;
    expect(w, "GET /bearer", "", 401, "WWW-Authenticate: Bearer\r\n", NULL);
    expect(w, "GET /bearer", "Authorization: Basic good\r\n", 401, NULL, NULL);
    expect(w, "GET /bearer", "Authorization: Bearer bad\r\n", 401, NULL, NULL);
    expect(w, "GET /bearer", "Authorization: Bearer\r\n", 401, NULL, NULL);
    expect(w, "GET /bearer", "authorization: bearer good\r\n", 200, NULL, NULL);
    expect(w, "HEAD /bearer", "", 401, NULL, NULL);
    expect(w, "GET /media/bad/x", "", 401, NULL, NULL);
    expect(w, "GET /media/good/x", "", 200, NULL, NULL);
    expect(w, "POST /bearer", "Content-Length: 900\r\n", 401, NULL, NULL); // before the body
}

static void test_http_bodies_are_limited(void **state)
{
    struct world *w = *state;
    expect(w, "GET /echo/a%2Fb?q=x+y%21&z", "", 200, NULL, "x=a/b q=x y! n=0 []");
    AUTO(mem_free_p)
    char *a = ask_raw(w,
                      "POST /echo/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                      "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
                      NULL);
    assert_true(str_ends_with(a, "n=5 [abcde]"));
    expect(w, "POST /echo/a", "Content-Length: 1001\r\n", 413, NULL, NULL);
    expect(w, "POST /echo/a", "Content-Length: 99999999999999999999\r\n", 413, NULL, NULL);

    struct buf b;
    buf_init(&b, 1 << 20);
    buf_puts(&b, "POST /echo/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                 "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 20; i++)
        buf_printf(&b, "64\r\n%0100d\r\n", 1);
    buf_puts(&b, "0\r\n\r\n");
    AUTO(mem_free_p) char *too_large = ask_raw(w, buf_str(&b), NULL);
    assert_true(str_starts_with(too_large, "HTTP/1.1 413 "));
    buf_reset(&b);
    buf_printf(&b, "GET /%0100000d HTTP/1.1\r\nHost: x\r\n\r\n", 1);
    AUTO(mem_free_p) char *long_uri = ask_raw(w, buf_str(&b), NULL);
    assert_true(str_starts_with(long_uri, "HTTP/1.1 4"));
    buf_done(&b);
}

static void test_http_stream_is_whole_and_in_order(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *headers;
        int64_t first, n;
    } cases[] = {{"", 0, STREAM_BYTES}, {"Range: bytes=1000001-1500000\r\n", 1000001, 500000}};
    for (size_t i = 0; i < N_ELEMENTS(cases); i++) {
        AUTO(mem_free_p)
        char *request = mem_printf("GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n",
                                   cases[i].headers);
        size_t len = 0;
        AUTO(mem_free_p) char *answer = ask_raw(w, request, &len);
        const char *body = strstr(answer, "\r\n\r\n") + 4;
        assert_int_equal(len - (size_t)(body - answer), cases[i].n);
        for (int64_t k = 0; k < cases[i].n; k++)
            if ((uint8_t)body[k] != (uint8_t)((cases[i].first + k) * 31 >> 3))
                fail_msg("byte %lld differs", (long long)k);
    }
    size_t len = 0;
    AUTO(mem_free_p) char *broken = ask_raw(w, "GET /broken HTTP/1.1\r\nHost: x\r\n\r\n", &len);
    assert_non_null(broken);
    assert_true(len < STREAM_BYTES); // cut, not padded
    expect(w, "HEAD /stream", "", 200, "Content-Length: 3145728", NULL);
    int fd = dial(w->url); // a client that leaves in the middle
    assert_true(send(fd, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n", 33, MSG_NOSIGNAL) == 33);
    char some[1000];
    assert_true(recv(fd, some, sizeof some, 0) > 0);
    close(fd);
    http_server_stop(w->server);
    // whoever still has a block to give ends with it
    for (int64_t end = time_deadline_in_ms(20000); atomic_load(&w->sources_done) < 5;)
        assert_true(time_left_ms(end) > 0 && poll(NULL, 0, 1) == 0);
}

static void test_http_slow_header_is_cut_off(void **state)
{
    struct world *w = *state;
    int fd = dial(w->url);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    bool cut = false;
    // one byte now and then, so that there is never silence
    for (int i = 0; i < 100 && !cut; i++) {
        (void)!send(fd, "G", 1, MSG_NOSIGNAL);
        cut = poll(&p, 1, 100) > 0;
    }
    assert_true(cut);
    close(fd);
    struct http_stats stats;
    http_server_get_stats(w->server, &stats);
    assert_int_equal(stats.conns_timed_out, 1);
}

static void test_http_connections_per_address_are_limited(void **state)
{
    struct world *w = *state;
    int fds[8];
    struct pollfd p[8];
    for (int i = 0; i < 8; i++) {
        fds[i] = dial(w->url);
        p[i] = (struct pollfd){.fd = fds[i], .events = POLLIN | POLLRDHUP};
    }
    // those beyond the limit are closed at once, the others only by the header's deadline
    int closed = 0;
    for (int64_t end = time_deadline_in_ms(800); closed < 4 && time_left_ms(end) > 0;) {
        poll(p, 8, (int)time_left_ms(end));
        closed = 0;
        for (int i = 0; i < 8; i++)
            closed += (p[i].revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
    }
    assert_int_equal(closed, 4);
    for (int i = 0; i < 8; i++)
        close(fds[i]);
}

static void test_http_stop_answers_who_waits(void **state)
{
    struct world *w = *state;
    static const char request[] = "GET /parked HTTP/1.1\r\nHost: x\r\n\r\n";
    int a = dial(w->url), b = dial(w->url);
    assert_true(send(a, request, sizeof request - 1, MSG_NOSIGNAL) > 0);
    struct http_request *first = wait_parked(w);
    assert_true(send(b, request, sizeof request - 1, MSG_NOSIGNAL) > 0);
    struct http_request *second = wait_parked(w);
    http_respond(first, &(struct http_response){.bytes = "in time", .len = 7});
    char answer[512];
    ssize_t n = recv(a, answer, sizeof answer - 1, 0);
    assert_true(n > 0);
    answer[n] = '\0';
    assert_true(str_starts_with(answer, "HTTP/1.1 200 "));
    http_server_stop(w->server);
    AUTO(mem_free_p) char *late = read_to_end(b, NULL);
    assert_true(late[0] == '\0' || str_starts_with(late, "HTTP/1.1 503 "));
    http_respond(second, &(struct http_response){
                             .bytes = "x", .len = 1, .release = on_release, .release_ud = w});
    assert_int_equal(atomic_load(&w->released), 1); // dropped, but let go of
    close(a);
}

static void test_http_keeps_connections_and_counts(void **state)
{
    struct world *w = *state;
    int fd = dial(w->url);
    char answer[2048];
    for (int i = 0; i < 3; i++) {
        static const char request[] = "GET /text HTTP/1.1\r\nHost: x\r\n\r\n";
        size_t n = 0;
        assert_true(send(fd, request, sizeof request - 1, MSG_NOSIGNAL) > 0);
        for (answer[0] = '\0'; !strstr(answer, "0123456789"); answer[n] = '\0') {
            ssize_t got = recv(fd, answer + n, sizeof answer - 1 - n, 0);
            assert_true(got > 0);
            n += (size_t)got;
        }
    }
    close(fd);
    expect(w, "GET /nothing", "", 404, NULL, NULL);
    http_server_stop(w->server);
    struct http_stats stats;
    http_server_get_stats(w->server, &stats);
    assert_int_equal(stats.n_requests, 4);
    assert_int_equal(stats.n_by_class[2], 3);
    assert_int_equal(stats.n_by_class[4], 1);
    assert_int_equal(stats.conns_total, 2);
    assert_int_equal(stats.conns_open, 0);
}

static void test_http_listens_on_ipv6_and_names_bad_addresses(void **state)
{
    struct world *w = *state;
    struct err err = ERR_INIT;
    static const char *const bad[] = {"",      "127.0.0.1",       "localhost:80",
                                      "[::1]", "127.0.0.1:65536", "::1:80"};
    for (size_t i = 0; i < N_ELEMENTS(bad); i++)
        assert_int_equal(http_server_listen(w->server, bad[i], NULL, &err),
                         STATUS_INVALID_ARGUMENT);
    assert_int_equal(http_server_listen(w->server, w->url + strlen("http://"), NULL, &err),
                     STATUS_ALREADY_EXISTS);
    if (http_server_listen(w->server, "[::1]:0", w->url, &err) != STATUS_OK) {
        print_message("no IPv6 on this machine: %s\n", err.msg);
        skip();
    }
    assert_true(str_starts_with(w->url, "http://[::1]:"));
    expect(w, "GET /text", "", 200, NULL, "0123456789");
}

int main(void)
{
#define SERVED(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_route_match),
        cmocka_unit_test(test_unescape),
        cmocka_unit_test(test_conditions),
        cmocka_unit_test(test_every_status_has_a_code),
        SERVED(test_http_get_head_and_conditions),
        SERVED(test_http_errors_are_problems),
        cmocka_unit_test(test_http_answers_and_log_lines_name_the_trace),
        SERVED(test_http_scopes),
        SERVED(test_http_bodies_are_limited),
        SERVED(test_http_stream_is_whole_and_in_order),
        SERVED(test_http_slow_header_is_cut_off),
        SERVED(test_http_connections_per_address_are_limited),
        SERVED(test_http_stop_answers_who_waits),
        SERVED(test_http_keeps_connections_and_counts),
        SERVED(test_http_listens_on_ipv6_and_names_bad_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
