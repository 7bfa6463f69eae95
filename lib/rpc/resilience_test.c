// What goes wrong: servers that come and go, strangers, peers that say nonsense or nothing.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rand.h"
#include "rpc/frame.h"
#include "rpc/internal.h"
#include "rpc/test_util.h"

static enum status echo(struct rpc_client *c, int method, const struct rpc_opts *o)
{
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    note_init(&req);
    enum status s = call_note(c, method, o, &req, &ret, &err);
    rpc_message_free(ret);
    return s;
}

// ---------------------------------------------------------------- servers that come and go

static void test_client_finds_a_restarted_server(void **state)
{
    (void)state;
    struct world w;
    char url[RPC_URL_SIZE];
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    snprintf(url, sizeof url, "%s", w.url);
    struct rpc_client *c = world_client(&w);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
        world_stop(&w);
        struct rpc_opts o = {.deadline_us = time_deadline_in_ms(100), .fail_fast = true};
        assert_int_equal(echo(c, ECHO, &o), STATUS_UNAVAILABLE);
        world_serve(&w, url, true);
    }
    assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    struct rpc_client_stats st;
    rpc_client_get_stats(c, &st);
    assert_int_equal(st.n_connects, 4);
    rpc_client_free(c);
    world_done(&w);
}

struct restart {
    struct world *w;
    char url[RPC_URL_SIZE];
};

static void *restart_when_waiting(void *ud)
{
    struct restart *r = ud;
    wait_for_count(&r->w->n_waiting, 1);
    world_stop(r->w);
    world_serve(r->w, r->url, true);
    return NULL;
}

static void test_calls_in_flight_fail_when_the_server_dies(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    struct restart r = {.w = &w};
    snprintf(r.url, sizeof r.url, "%s", w.url);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, restart_when_waiting, &r), 0);
    enum status s = echo(c, WAIT, NULL);
    assert_true(s == STATUS_UNAVAILABLE || s == STATUS_CANCELLED);
    pthread_join(t, NULL);
    assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    rpc_client_free(c);
    world_done(&w);
}

static void test_only_repeatable_calls_are_retried(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "inproc://rpc-retry", true);
    struct rpc_client *c = world_client(&w);
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    note_init(&req);
    req.number = 2; // fails twice, then works: one effect
    assert_int_equal(call_note(c, ONCE, NULL, &req, &ret, &err), STATUS_OK);
    assert_int_equal(w.n_once, 3);
    assert_int_equal(w.n_effects, 1);
    rpc_message_free(ret);
    ret = NULL;
    w.n_once = 0;
    struct rpc_opts one = {.max_attempts = 1};
    assert_int_equal(call_note(c, ONCE, &one, &req, &ret, &err), STATUS_UNAVAILABLE);
    assert_int_equal(w.n_once, 1);
    struct rpc_client_stats st;
    req.number = STATUS_UNAVAILABLE;
    assert_int_equal(call_note(c, FAIL, NULL, &req, &ret, &err), STATUS_UNAVAILABLE);
    rpc_client_get_stats(c, &st);
    assert_int_equal(st.n_retries, 2);
    struct rpc_opts keyed = {.idempotency_key = "k", .max_attempts = 2};
    assert_int_equal(call_note(c, FAIL, &keyed, &req, &ret, &err), STATUS_UNAVAILABLE);
    rpc_client_get_stats(c, &st);
    assert_int_equal(st.n_retries, 3);
    rpc_client_free(c);
    world_done(&w);
}

static void *finish_soon(void *ud)
{
    struct world *w = ud;
    wait_for_count(&w->n_waiting, 1);
    rpc_server_close(w->s);
    return NULL;
}

static void test_draining_server_finishes_its_calls(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    struct rpc_stream *st = NULL;
    struct err err = ERR_INIT;
    Note n;
    note_init(&n);
    assert_int_equal(rpc_stream_open(c, &test_service.methods[CHAT], NULL, NULL, &st, &err),
                     STATUS_OK);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, finish_soon, &w), 0);
    ProtobufCMessage *m = NULL;
    assert_int_equal(rpc_stream_send(st, &n.base, &err), STATUS_OK);
    assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
    rpc_message_free(m);
    w.n_waiting = 1; // now it drains
    pthread_join(t, NULL);
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(200)};
    enum status s = echo(c, ECHO, &o);
    assert_true(s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED);
    for (int i = 0; i < 10; i++) { // what was open goes on
        assert_int_equal(rpc_stream_send(st, &n.base, &err), STATUS_OK);
        assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
        assert_non_null(m);
        rpc_message_free(m);
    }
    assert_int_equal(rpc_stream_close_send(st, &err), STATUS_OK);
    assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
    assert_null(m);
    rpc_stream_free(st);
    int64_t before = time_mono_us();
    rpc_server_stop(w.s, 5000);
    assert_true(time_mono_us() - before < 4000000);
    rpc_client_free(c);
    world_done(&w);
}

static void test_load_is_spread_and_a_lost_endpoint_left_out(void **state)
{
    (void)state;
    struct world a, b;
    world_init(&a);
    world_init(&b);
    b.server = a.server;
    world_serve(&a, "tcp://127.0.0.1:0", true);
    world_serve(&b, "tcp://127.0.0.1:0", true);
    struct rpc_endpoint e[2] = {{.url = a.url}, {.url = b.url}};
    memcpy(e[0].key, a.server.public_key, 32);
    memcpy(e[1].key, a.server.public_key, 32);
    struct rpc_client_opts o = {.endpoints = e, .n_endpoints = 2};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    struct rpc_client_stats st = {.n_connects = 0};
    for (int64_t until = time_mono_us() + 5000000; st.n_connects < 2 && time_mono_us() < until;)
        rpc_client_get_stats(c, &st);
    for (int i = 0; i < 20; i++)
        assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    struct rpc_server_stats sa, sb;
    rpc_server_get_stats(a.s, &sa);
    rpc_server_get_stats(b.s, &sb);
    assert_true(sa.n_calls >= 5 && sb.n_calls >= 5);
    world_stop(&a);
    for (int i = 0; i < 20; i++)
        assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    rpc_client_free(c);
    world_done(&a);
    world_done(&b);
}

// ---------------------------------------------------------------- strangers

static void test_wrong_key_never_connects(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_endpoint e = {.url = w.url};
    memcpy(e.key, w.node.public_key, 32);
    struct rpc_client_opts co = {.endpoints = &e, .n_endpoints = 1, .connect_timeout_ms = 300};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&co, &err);
    assert_int_equal(echo(c, ECHO, NULL), STATUS_UNAVAILABLE);
    assert_false(rpc_client_is_connected(c));
    rpc_client_free(c);
    world_done(&w);
}

static void test_links_and_grants_must_fit(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "inproc://rpc-links", false);
    struct rpc_opts hurry = {.deadline_us = time_deadline_in_ms(300)};
    struct rpc_client *c = world_client_to(&w, w.url, true); // a client link to services' port
    assert_true(echo(c, ECHO, &hurry) != STATUS_OK);
    rpc_client_free(c);
    struct world other; // a node of another operator
    world_init(&other);
    w.node = other.node;
    hurry.deadline_us = time_deadline_in_ms(300);
    c = world_client(&w);
    assert_true(echo(c, ECHO, &hurry) != STATUS_OK);
    rpc_client_free(c);
    world_done(&other);
    world_done(&w);
}

static int raw_connect(const struct world *w)
{
    struct sockaddr_in sa = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)atoi(strrchr(w->url, ':') + 1))};
    inet_pton(AF_INET, "127.0.0.1", &sa.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    return fd;
}

// Reads until the server closes; false when it does not within the time.
static bool is_closed_within(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char junk[512];
    int64_t until = time_mono_us() + (int64_t)ms * 1000;
    while (time_mono_us() < until) {
        if (poll(&p, 1, ms) > 0 && read(fd, junk, sizeof junk) <= 0)
            return true;
    }
    return false;
}

// Strangers have 1.5 s instead of 5.
static void serve_impatiently(struct world *w)
{
    struct rpc_server_opts o = world_server_opts(w);
    struct err err = ERR_INIT;
    o.door.handshake_timeout_ms = 1500;
    w->s = rpc_server_new(&o, &err);
    assert_non_null(w->s);
    world_add(w, w->s);
    w->is_public = true;
    assert_int_equal(rpc_server_listen(w->s, "tcp://127.0.0.1:0", true, w->url, &err), STATUS_OK);
}

static void test_garbage_and_silence_are_cut_off(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    serve_impatiently(&w);
    struct rpc_client *c = world_client(&w);
    assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    static const uint8_t hello[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0}; // an SP requester
    int silent = raw_connect(&w), garbage = raw_connect(&w), plain = raw_connect(&w);
    assert_int_equal(write(silent, hello, 8), 8);
    assert_int_equal(write(garbage, hello, 8), 8);
    static const uint8_t frame[8 + 4 + 20] = {0, 0, 0, 0, 0, 0, 0, 24, 0x80, 0, 0, 1, 'C', 'Q', 9};
    assert_int_equal(write(garbage, frame, sizeof frame), sizeof frame);
    assert_int_equal(write(plain, "GET / HTTP/1.1\r\n\r\n", 18), 18);
    assert_true(is_closed_within(plain, 20000));
    assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    assert_true(is_closed_within(garbage, 20000));
    assert_true(is_closed_within(silent, 20000));
    close(silent);
    close(garbage);
    close(plain);
    assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    struct rpc_client_stats st;
    rpc_client_get_stats(c, &st);
    assert_int_equal(st.n_connects, 1);
    rpc_client_free(c);
    world_done(&w);
}

// A stranger that leaves before nng's header was written once ended the listener for good.
static void test_strangers_who_leave_at_once_do_not_end_the_listener(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    for (int i = 0; i < 200; i++) {
        int fd = raw_connect(&w);
        if (i % 2) { // with a reset
            struct linger l = {.l_onoff = 1};
            assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l), 0);
        }
        close(fd);
    }
    struct rpc_client *c = world_client(&w);
    assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    rpc_client_free(c);
    world_done(&w);

    char path[] = "/tmp/rpc-strangers-XXXXXX", url[RPC_URL_SIZE];
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    assert_non_null(mkdtemp(path));
    snprintf(sa.sun_path, sizeof sa.sun_path, "%s/s", path);
    snprintf(url, sizeof url, "ipc://%s", sa.sun_path);
    world_init(&w);
    world_serve(&w, url, false);
    for (int i = 0; i < 200; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof sa), 0);
        close(fd);
    }
    c = world_client(&w);
    assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    rpc_client_free(c);
    world_done(&w);
    rmdir(path);
}

static void test_idle_connections_are_kept_alive(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_endpoint e = {.url = w.url};
    memcpy(e.key, w.server.public_key, 32);
    struct rpc_client_opts o = {.endpoints = &e, .n_endpoints = 1, .ping_after_ms = 500};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    struct rpc_client_stats st, first;
    rpc_client_get_stats(c, &first);
    do {
        poll(NULL, 0, 20); // nothing else tells of a ping
        rpc_client_get_stats(c, &st);
    } while (st.records_in < first.records_in + 3); // acknowledged pings
    assert_int_equal(st.n_connects, 1);
    assert_int_equal(echo(c, ECHO, NULL), STATUS_OK);
    rpc_client_free(c);
    world_done(&w);
}

// ---------------------------------------------------------------- bytes

static enum status unpack(const void *p, size_t n)
{
    ProtobufCMessage *m = NULL;
    struct err err = ERR_INIT;
    enum status s = rpc_message_unpack(&note_descriptor, p, n, &m, &err);
    assert_true((s == STATUS_OK) == (m != NULL));
    rpc_message_free(m);
    return s;
}

static void test_hostile_messages_are_refused(void **state)
{
    (void)state;
    assert_int_equal(unpack(NULL, 0), STATUS_OK);
    assert_int_equal(unpack("\x12\x02\xc3\xb1", 4), STATUS_OK);
    assert_int_equal(unpack("\x12\x02\xc3\x28", 4), STATUS_INVALID_ARGUMENT); // not UTF-8
    assert_int_equal(unpack("\x12\x01\0", 3), STATUS_INVALID_ARGUMENT);       // a zero inside
    assert_int_equal(unpack("\x12\x05xy", 4), STATUS_INVALID_ARGUMENT);       // cut short
    assert_int_equal(unpack("\x0b", 1), STATUS_INVALID_ARGUMENT);             // a group
    assert_int_equal(unpack("\0\0", 2), STATUS_INVALID_ARGUMENT);             // field 0

    // Nested 20,000 deep: lengths grow from the inside out.
    size_t cap = 200000, at = cap;
    uint8_t *deep = malloc(cap);
    for (int i = 0; i < 20000; i++) {
        size_t n = cap - at;
        uint8_t len[5];
        size_t k = 0;
        for (size_t v = n; k == 0 || v; v >>= 7)
            len[k++] = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        at -= k;
        memcpy(deep + at, len, k);
        deep[--at] = 0x22;
        if (i == 20)
            assert_int_equal(unpack(deep + at, cap - at), STATUS_OK);
        if (i == 40)
            assert_int_equal(unpack(deep + at, cap - at), STATUS_INVALID_ARGUMENT);
    }
    assert_int_equal(unpack(deep + at, cap - at), STATUS_INVALID_ARGUMENT);
    free(deep);

    // Two bytes each that cost a struct each.
    size_t n = 1U << 20;
    uint8_t *bomb = malloc(n);
    for (size_t i = 0; i < n; i += 2) {
        bomb[i] = 0x22;
        bomb[i + 1] = 0;
    }
    assert_int_equal(unpack(bomb, n), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(unpack(bomb, 2000), STATUS_OK);
    assert_int_equal(unpack(bomb, RPC_MAX_MESSAGE_BYTES + 1), STATUS_RESOURCE_EXHAUSTED);
    for (int i = 0; i < 20000; i++) {
        size_t len = (size_t)rand_below(40);
        rand_bytes(bomb, len);
        (void)unpack(bomb, len);
    }
    free(bomb);
}

static void test_every_failed_allocation_of_unpack_is_reported(void **state)
{
    (void)state;
    static const uint8_t msg[] = "\x0a\x03"
                                 "abc"
                                 "\x12\x02"
                                 "xy"
                                 "\x22\x02\x18\x07";
    for (int64_t i = 0;; i++) {
        mem_fail_at(i);
        enum status s = unpack(msg, sizeof msg - 1);
        mem_fail_at(-1);
        if (s == STATUS_OK) {
            assert_true(i > 0);
            break;
        }
        assert_int_equal(s, STATUS_RESOURCE_EXHAUSTED);
    }
}

static void test_frames_round_trip_and_refuse_damage(void **state)
{
    (void)state;
    AUTO(buf_done) struct buf b;
    buf_init(&b, 4096);
    struct rpc_trace trace = {.trace_id = {1, 2, 3}, .span_id = {4}, .flags = 1};
    struct rpc_metadata meta[] = {{"client", "cli/1", 5}, {"x-empty", NULL, 0}};
    struct frame_call call = {.flags = FRAME_OPEN_FORWARDED,
                              .slot = 7,
                              .deadline_ms = 15000,
                              .method = "a.B.C",
                              .route = "video-1",
                              .key = "key",
                              .trace = &trace,
                              .metadata = meta,
                              .n_metadata = 2};
    frame_put_open(&b, 300, &call);
    struct frame_status st = {.code = STATUS_NOT_FOUND,
                              .retry_after_ms = 9,
                              .msg = "no hay",
                              .details = (const uint8_t *)"\x0a\x01X",
                              .n_details = 3};
    frame_put_status(&b, 5, &st);
    frame_put_number(&b, FRAME_ACK, 0, UINT64_MAX);
    frame_put(&b, FRAME_DATA, FRAME_LAST | FRAME_HALF, UINT32_MAX, "xyz", 3);
    const uint8_t *p = b.data, *end = b.data + b.len;
    struct frame f;
    struct frame_open o;
    struct frame_status got;
    uint64_t v;
    assert_true(frame_next(&p, end, &f) && f.type == FRAME_OPEN && f.id == 300);
    assert_true(frame_open(&f, &o));
    assert_string_equal(o.method, "a.B.C");
    assert_string_equal(o.route, "video-1");
    assert_string_equal(o.key, "key");
    assert_int_equal(o.deadline_ms, 15000);
    assert_int_equal(o.slot, 7);
    assert_memory_equal(&o.trace, &trace, sizeof trace);
    assert_int_equal(o.n_metadata, 2);
    const uint8_t *at = o.metadata;
    struct rpc_metadata entry;
    size_t key_len = 0;
    assert_true(frame_metadata_next(&at, o.metadata + o.n_metadata_bytes, &entry, &key_len));
    assert_true(key_len == 6 && memcmp(entry.key, "client", 6) == 0);
    assert_true(entry.n_value == 5 && memcmp(entry.value, "cli/1", 5) == 0);
    assert_true(frame_metadata_next(&at, o.metadata + o.n_metadata_bytes, &entry, &key_len));
    assert_int_equal(entry.n_value, 0);
    assert_false(frame_metadata_next(&at, o.metadata + o.n_metadata_bytes, &entry, &key_len));
    struct frame cut = f;
    for (cut.n = 0; cut.n < f.n; cut.n++)
        assert_false(frame_open(&cut, &o));
    assert_true(frame_next(&p, end, &f) && frame_status(&f, &got));
    assert_int_equal(got.code, STATUS_NOT_FOUND);
    assert_int_equal(got.retry_after_ms, 9);
    assert_string_equal(got.msg, "no hay");
    assert_int_equal(got.n_details, 3);
    assert_memory_equal(got.details, "\x0a\x01X", 3);
    assert_true(frame_next(&p, end, &f) && frame_number(&f, &v) && v == UINT64_MAX);
    assert_true(frame_next(&p, end, &f) && f.n == 3 && f.id == UINT32_MAX);
    assert_int_equal(f.flags, FRAME_LAST | FRAME_HALF);
    assert_false(frame_next(&p, end, &f));
    unsigned n_status = 0;
    size_t run = frame_run(b.data, b.len, b.len - 1, &n_status);
    assert_true(run < b.len && run > 0);
    assert_int_equal(n_status, 1);
    for (size_t n = 0; n < b.len; n++) { // no cut reads past its end
        uint8_t *copy = malloc(n + 1);
        memcpy(copy, b.data, n);
        const uint8_t *left = copy;
        while (frame_next(&left, copy + n, &f)) {
            int any = frame_open(&f, &o) + frame_status(&f, &got) + frame_number(&f, &v);
            assert_true(any <= 3);
        }
        free(copy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_client_finds_a_restarted_server),
        cmocka_unit_test(test_calls_in_flight_fail_when_the_server_dies),
        cmocka_unit_test(test_only_repeatable_calls_are_retried),
        cmocka_unit_test(test_draining_server_finishes_its_calls),
        cmocka_unit_test(test_load_is_spread_and_a_lost_endpoint_left_out),
        cmocka_unit_test(test_wrong_key_never_connects),
        cmocka_unit_test(test_links_and_grants_must_fit),
        cmocka_unit_test(test_garbage_and_silence_are_cut_off),
        cmocka_unit_test(test_strangers_who_leave_at_once_do_not_end_the_listener),
        cmocka_unit_test(test_idle_connections_are_kept_alive),
        cmocka_unit_test(test_hostile_messages_are_refused),
        cmocka_unit_test(test_every_failed_allocation_of_unpack_is_reported),
        cmocka_unit_test(test_frames_round_trip_and_refuse_damage),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
