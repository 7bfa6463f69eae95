// A server that breaks the rules, in its handshake or after it: every call of an honest client ends
// exactly once and in time, memory stays bounded, and the client goes on with the next connection.
#include <malloc.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "rpc/test_peer.h"
#include "rpc/transport.h"

#define LONG_MS 30000 // for calls that something else must end
#define SHORT_MS 300  // for those that only their deadline can
#define HELD_MAX (4U << 20)

// ---------------------------------------------------------------- the honest side

struct pending {
    _Atomic int n_done;
    enum status s;
    bool has_reply;
    char why[240];
};

static void on_done(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    struct pending *p = ud;
    p->s = s;
    p->has_reply = reply != NULL;
    str_copy(p->why, sizeof p->why, err ? err->msg : "");
    rpc_message_free(reply);
    p->n_done++;
}

static struct rpc_client *client_that_pings(struct world *w, const char *url, int64_t connect_ms,
                                            int64_t ping_after_ms)
{
    struct rpc_endpoint e = {.url = url};
    memcpy(e.key, w->server.public_key, sizeof e.key);
    struct rpc_client_opts o = {.endpoints = &e,
                                .n_endpoints = 1,
                                .connect_timeout_ms = connect_ms,
                                .ping_after_ms = ping_after_ms,
                                .pool = w->pool,
                                .transport = w->transport};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    return c;
}

static struct rpc_client *client_to(struct world *w, const char *url, int64_t connect_ms)
{
    return client_that_pings(w, url, connect_ms, 0);
}

// key: NULL, or it may be repeated.
static void call_begin(struct rpc_client *c, struct pending *p, int64_t deadline_ms,
                       const char *key)
{
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(deadline_ms), .idempotency_key = key};
    Note req;
    note_init(&req);
    *p = (struct pending){.s = STATUS_OK};
    rpc_unary_async(c, &test_service.methods[ECHO], &o, &req.base, on_done, p);
}

static size_t held_bytes(void) // nothing under sanitizers, which have an allocator of their own
{
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

// ---------------------------------------------------------------- what it does wrong

static void answer(struct peer *p, struct buf *b, uint32_t id)
{
    struct frame_status ok = {.code = STATUS_OK};
    buf_reset(b);
    frame_put(b, FRAME_DATA, FRAME_LAST | FRAME_HALF, id, "", 0);
    frame_put_status(b, id, &ok);
    peer_send_frames(p, b);
}

static void garbage(struct peer *p, struct buf *b, uint32_t id)
{
    (void)id;
    for (int i = 0; i < 100; i++)
        buf_append(b, "\xff\xff\xff\xff", 4);
    peer_send_frames(p, b);
}
static void raw_garbage(struct peer *p, struct buf *b, uint32_t id)
{
    static const uint8_t bytes[500] = {1, 2, 3, 4, 5, 6, 7};
    (void)b;
    (void)id;
    peer_send(p, bytes, sizeof bytes);
}
static void other_magic(struct peer *p, struct buf *b, uint32_t id)
{
    static const char bytes[] = "XX\1\5session number of a record, and so on";
    (void)b;
    (void)id;
    peer_send_message(p, bytes, sizeof bytes);
}
static void repeated_record(struct peer *p, struct buf *b, uint32_t id)
{
    (void)id;
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    size_t n = peer_seal(p, b->data, b->len);
    peer_send_message(p, p->out, n);
    peer_send_message(p, p->out, n);
}
static void left_out_record(struct peer *p, struct buf *b, uint32_t id)
{
    (void)id;
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    peer_seal(p, b->data, b->len);
    peer_send_frames(p, b);
}
static void altered_record(struct peer *p, struct buf *b, uint32_t id)
{
    (void)id;
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    size_t n = peer_seal(p, b->data, b->len);
    p->out[n - 1] ^= 1;
    peer_send_message(p, p->out, n);
}
static void long_record(struct peer *p, struct buf *b, uint32_t id)
{
    (void)b;
    (void)id;
    peer_send_message(p, p->out, CHAN_MAX_RECORD + 2);
}
static void absurd_length(struct peer *p, struct buf *b, uint32_t id)
{
    uint8_t head[12];
    (void)b;
    (void)id;
    peer_frame_head(head, UINT64_C(1) << 40);
    peer_send(p, head, sizeof head);
}
static void half_a_record(struct peer *p, struct buf *b, uint32_t id) // and never the rest
{
    uint8_t head[12];
    (void)b;
    (void)id;
    peer_frame_head(head, CHAN_MAX_RECORD);
    peer_send(p, head, sizeof head);
    peer_send(p, p->out, 1000);
}
static void silence(struct peer *p, struct buf *b, uint32_t id)
{
    (void)p;
    (void)b;
    (void)id;
}
static void excess_bytes(struct peer *p, struct buf *b, uint32_t id)
{
    static const uint8_t bytes[200000];
    frame_put(b, FRAME_DATA, 0, id, bytes, sizeof bytes);
    peer_send_frames(p, b);
}
static void excess_credit(struct peer *p, struct buf *b, uint32_t id)
{
    frame_put_number(b, FRAME_WINDOW, id, 60 << 20);
    frame_put_number(b, FRAME_WINDOW, id, 60 << 20);
    peer_send_frames(p, b);
}
static void absurd_credit(struct peer *p, struct buf *b, uint32_t id)
{
    frame_put_number(b, FRAME_WINDOW, id, UINT64_MAX);
    peer_send_frames(p, b);
}
static void false_ack(struct peer *p, struct buf *b, uint32_t id)
{
    (void)id;
    frame_put_number(b, FRAME_ACK, 0, 1000000);
    peer_send_frames(p, b);
}
static void opens_a_call(struct peer *p, struct buf *b, uint32_t id)
{
    frame_put_open(b, id + 2, &(struct frame_call){.method = test_service.methods[ECHO].name});
    peer_send_frames(p, b);
}
static void shows_a_token(struct peer *p, struct buf *b, uint32_t id)
{
    (void)id;
    frame_put(b, FRAME_AUTH, 0, 1, "user", 4);
    peer_send_frames(p, b);
}
static void cancels_a_call(struct peer *p, struct buf *b, uint32_t id)
{
    frame_put(b, FRAME_CANCEL, 0, id, NULL, 0);
    peer_send_frames(p, b);
}
static void malformed_status(struct peer *p, struct buf *b, uint32_t id)
{
    frame_put(b, FRAME_STATUS, 0, id, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    peer_send_frames(p, b);
}
static void two_replies(struct peer *p, struct buf *b, uint32_t id)
{
    frame_put(b, FRAME_DATA, FRAME_LAST, id, "", 0);
    frame_put(b, FRAME_DATA, FRAME_LAST, id, "", 0);
    peer_send_frames(p, b);
}
static void malformed_reply(struct peer *p, struct buf *b, uint32_t id)
{
    struct frame_status ok = {.code = STATUS_OK};
    frame_put(b, FRAME_DATA, FRAME_LAST | FRAME_HALF, id, "\xff\xff\xff", 3);
    frame_put_status(b, id, &ok);
    peer_send_frames(p, b);
}
static void ok_without_a_reply(struct peer *p, struct buf *b, uint32_t id)
{
    struct frame_status ok = {.code = STATUS_OK};
    frame_put_status(b, id, &ok);
    peer_send_frames(p, b);
}
static void many_ends(struct peer *p, struct buf *b, uint32_t id) // and the first one counts
{
    struct frame_status ok = {.code = STATUS_OK}, no = {.code = STATUS_INTERNAL};
    frame_put(b, FRAME_DATA, FRAME_LAST | FRAME_HALF, id, "", 0);
    frame_put_status(b, id, &ok);
    for (int i = 0; i < 100; i++)
        frame_put_status(b, id, &no);
    frame_put(b, FRAME_DATA, FRAME_LAST | FRAME_HALF, id, "", 0);
    peer_send_frames(p, b);
}
static void answers_nobody_asked_for(struct peer *p, struct buf *b, uint32_t id)
{
    struct frame_status no = {.code = STATUS_INTERNAL};
    static const uint8_t bytes[1000];
    for (uint32_t i = 2; i < 200; i++) {
        frame_put(b, FRAME_DATA, FRAME_LAST, id + i, bytes, sizeof bytes);
        frame_put(b, FRAME_END, 0, id + i, NULL, 0);
        frame_put_number(b, FRAME_WINDOW, id + i, 1000);
        frame_put_status(b, id + i, &no);
    }
    peer_send_frames(p, b);
    answer(p, b, id);
}
static void endless_answers(struct peer *p, struct buf *b, uint32_t id)
{
    static const uint8_t bytes[200000];
    frame_put(b, FRAME_DATA, 0, id + 2, bytes, sizeof bytes);
    for (int i = 0; i < 100; i++)
        peer_send_frames(p, b);
    answer(p, b, id);
}
static void leaves_again_and_again(struct peer *p, struct buf *b, uint32_t id)
{
    for (int i = 0; i < 1000; i++)
        frame_put(b, FRAME_GOAWAY, 0, 0, NULL, 0);
    peer_send_frames(p, b);
    answer(p, b, id);
}
static void flood(struct peer *p, struct buf *b) // and never reads what comes back
{
    for (int i = 0; i < 200; i++)
        peer_send_frames(p, b);
}
static void flood_of_pings(struct peer *p, struct buf *b, uint32_t id)
{
    for (int i = 0; i < 1000; i++)
        frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    flood(p, b);
    answer(p, b, id);
}
static void flood_of_credit(struct peer *p, struct buf *b, uint32_t id)
{
    for (int i = 0; i < 1000; i++)
        frame_put_number(b, FRAME_WINDOW, 0, 1);
    flood(p, b);
    answer(p, b, id);
}
static void closes(struct peer *p, struct buf *b, uint32_t id)
{
    uint8_t last[CHAN_RECORD_OVERHEAD];
    (void)b;
    (void)id;
    peer_send_message(p, last, chan_seal_close(p->chan, last));
}
static void hangs_up(struct peer *p, struct buf *b, uint32_t id)
{
    (void)b;
    (void)id;
    close(p->fd);
    p->fd = -1;
}

#define ANY_FAILURE (-1)
static const struct {
    void (*fn)(struct peer *, struct buf *, uint32_t id);
    int status;
    int64_t deadline_ms;
} misdeeds[] = {
    {garbage, STATUS_UNAVAILABLE, LONG_MS},
    {raw_garbage, STATUS_UNAVAILABLE, LONG_MS},
    {other_magic, STATUS_UNAVAILABLE, LONG_MS},
    {repeated_record, STATUS_UNAVAILABLE, LONG_MS},
    {left_out_record, STATUS_UNAVAILABLE, LONG_MS},
    {altered_record, STATUS_UNAVAILABLE, LONG_MS},
    {long_record, STATUS_UNAVAILABLE, LONG_MS},
    {absurd_length, STATUS_UNAVAILABLE, LONG_MS},
    {excess_bytes, STATUS_UNAVAILABLE, LONG_MS},
    {excess_credit, STATUS_UNAVAILABLE, LONG_MS},
    {absurd_credit, STATUS_UNAVAILABLE, LONG_MS},
    {false_ack, STATUS_UNAVAILABLE, LONG_MS},
    {opens_a_call, STATUS_UNAVAILABLE, LONG_MS},
    {shows_a_token, STATUS_UNAVAILABLE, LONG_MS},
    {cancels_a_call, STATUS_UNAVAILABLE, LONG_MS},
    {malformed_status, STATUS_UNAVAILABLE, LONG_MS},
    {closes, STATUS_UNAVAILABLE, LONG_MS},
    {hangs_up, STATUS_UNAVAILABLE, LONG_MS},
    {two_replies, ANY_FAILURE, LONG_MS},
    {malformed_reply, ANY_FAILURE, LONG_MS},
    {ok_without_a_reply, ANY_FAILURE, LONG_MS},
    {half_a_record, STATUS_DEADLINE_EXCEEDED, SHORT_MS},
    {silence, STATUS_DEADLINE_EXCEEDED, SHORT_MS},
    {many_ends, STATUS_OK, LONG_MS},
    {answers_nobody_asked_for, STATUS_OK, LONG_MS},
    {endless_answers, STATUS_OK, LONG_MS},
    {leaves_again_and_again, STATUS_OK, LONG_MS},
    {flood_of_pings, STATUS_OK, LONG_MS},
    {flood_of_credit, STATUS_OK, LONG_MS},
};

// ---------------------------------------------------------------- tests

// The next connection. ret_id: its call has come; NULL: it may, its deadline does not wait for us.
static struct peer *serve_next(struct world *w, int listen_fd, uint32_t *ret_id)
{
    for (;;) {
        size_t n;
        struct peer *p = peer_accept(w, listen_fd, &n);
        if (!p)
            continue;
        peer_finish(p, n);
        if (!ret_id || peer_recv_frames(p, FRAME_OPEN, 1, ret_id) == 1)
            return p;
        peer_free(p);
    }
}

static void expect_end(const struct pending *call, size_t row)
{
    assert_true(wait_for_count(&call->n_done, 1));
    int want = misdeeds[row].status;
    bool ok = want == ANY_FAILURE ? call->s != STATUS_OK : (int)call->s == want;
    if (!ok || call->has_reply != (call->s == STATUS_OK))
        fail_msg("misdeed %zu: status %d, %s", row, (int)call->s, call->why);
}

static void test_a_server_after_its_handshake(void **state)
{
    (void)state;
    struct world w;
    char url[64];
    world_init(&w);
    w.transport = &transport_epoll;
    int fd = peer_listen(url, sizeof url);
    for (size_t i = 0; i < N_ELEMENTS(misdeeds); i++) {
        AUTO(buf_done) struct buf b;
        buf_init(&b, 1 << 20);
        uint32_t id = 0;
        bool is_late = misdeeds[i].status == STATUS_DEADLINE_EXCEEDED;
        struct pending bad, good;
        struct rpc_client *c = client_to(&w, url, LONG_MS);
        call_begin(c, &bad, misdeeds[i].deadline_ms, NULL);
        struct peer *p = serve_next(&w, fd, is_late ? NULL : &id);
        size_t before = held_bytes();
        misdeeds[i].fn(p, &b, id);
        expect_end(&bad, i);
        size_t after = held_bytes();
        assert_true(after < before + HELD_MAX);
        peer_free(p);                         // if it is not over, it is now
        call_begin(c, &good, LONG_MS, "key"); // it may not know yet that this connection is gone
        p = serve_next(&w, fd, &id);
        answer(p, &b, id);
        assert_true(wait_for_count(&good.n_done, 1));
        assert_int_equal(good.s, STATUS_OK);
        peer_free(p); // first: it would not answer a goodbye
        rpc_client_free(c);
        assert_int_equal(bad.n_done, 1);
        assert_int_equal(good.n_done, 1);
    }
    close(fd);
    world_done(&w);
}

// The response with its transport's head: cut after n bytes, or with a bit of the body flipped.
static bool spoil(struct peer *p, const struct buf *response, size_t step)
{
    uint8_t bytes[1100];
    size_t n = 12 + response->len;
    peer_frame_head(bytes, response->len);
    memcpy(bytes + 12, response->data, response->len);
    if (step < n) {
        peer_send(p, bytes, step);
        return true;
    }
    size_t bit = (step - n) * 5; // and 8: each bit of a byte has its turn
    if (bit >= 8 * response->len)
        return false;
    bytes[12 + bit / 8] ^= (uint8_t)(1U << bit % 8);
    peer_send(p, bytes, n);
    return true;
}

static bool spoil_next(struct world *w, int listen_fd, const char *url, size_t step)
{
    struct pending call;
    struct rpc_client *c = client_to(w, url, LONG_MS);
    call_begin(c, &call, LONG_MS, NULL);
    struct peer *p = NULL;
    size_t n;
    while (!p)
        p = peer_accept(w, listen_fd, &n);
    AUTO(buf_done) struct buf b;
    buf_init(&b, 1024);
    peer_answer(p, n, &b);
    bool more = spoil(p, &b, step);
    if (more) {
        shutdown(p->fd, SHUT_WR);
        peer_expect_cut(p);
    }
    struct rpc_client_stats st;
    rpc_client_get_stats(c, &st);
    assert_int_equal(st.n_connects, 0);
    peer_free(p);
    rpc_client_free(c);
    assert_int_equal(call.n_done, 1);
    assert_int_not_equal(call.s, STATUS_OK);
    return more;
}

static void test_a_server_in_its_handshake(void **state)
{
    (void)state;
    struct world w;
    char url[64];
    world_init(&w);
    w.transport = &transport_epoll;
    int fd = peer_listen(url, sizeof url);
    size_t n = 0;
    while (spoil_next(&w, fd, url, n))
        n++;
    assert_true(n > 300);
    close(fd);
    world_done(&w);
}

// Calls that wait while every connection ends in its handshake are told why, in time.
static void test_calls_of_who_is_never_let_in(void **state)
{
    (void)state;
    struct world w;
    char url[64];
    world_init(&w);
    w.transport = &transport_epoll;
    int fd = peer_listen(url, sizeof url);
    struct pending calls[8];
    struct rpc_client *c = client_to(&w, url, SHORT_MS);
    for (size_t i = 0; i < N_ELEMENTS(calls); i++)
        call_begin(c, &calls[i], LONG_MS, NULL);
    size_t n;
    peer_free(peer_accept(&w, fd, &n));
    for (size_t i = 0; i < N_ELEMENTS(calls); i++) {
        assert_true(wait_for_count(&calls[i].n_done, 1));
        assert_int_equal(calls[i].s, STATUS_UNAVAILABLE);
        assert_non_null(strstr(calls[i].why, url));
    }
    rpc_client_free(c);
    close(fd);
    world_done(&w);
}

// ---------------------------------------------------------------- records that are not
// acknowledged

#define N_CALLS 40
#define N_CANCELS 8
#define WINDOW_RECORDS 32
#define CONTROL_RECORDS 8 // beyond those, some of them for acknowledgements alone

static unsigned n_records(struct rpc_client *c)
{
    struct rpc_client_stats st;
    rpc_client_get_stats(c, &st);
    return (unsigned)st.records_out;
}

static bool is_readable(const struct peer *p, int wait_ms)
{
    struct pollfd pfd = {.fd = p->fd, .events = POLLIN};
    return poll(&pfd, 1, wait_ms) == 1;
}

static void send_ping(struct peer *p)
{
    AUTO(buf_done) struct buf b;
    buf_init(&b, 1024);
    frame_put(&b, FRAME_PING, 0, 0, NULL, 0);
    peer_send_frames(p, &b);
}

// However much it has to say, it can still acknowledge: the peer may be as full of records.
static void test_acknowledgements_find_a_place(void **state)
{
    (void)state;
    struct world w;
    char url[64];
    world_init(&w);
    w.transport = &transport_epoll;
    int fd = peer_listen(url, sizeof url);
    struct rpc_client *c = client_that_pings(&w, url, LONG_MS, 4 * LONG_MS);
    struct peer *p = NULL;
    struct pending calls[N_CALLS];
    struct cancel *cancels[N_CALLS];
    Note req;
    note_init(&req);
    unsigned n = 0;
    while (n < N_CALLS && (!p || n_records(c) < WINDOW_RECORDS)) {
        struct rpc_opts o = {.deadline_us = time_deadline_in_ms(4 * LONG_MS)};
        o.cancel = cancels[n] = cancel_new(NULL);
        calls[n] = (struct pending){.s = STATUS_OK};
        rpc_unary_async(c, &test_service.methods[ECHO], &o, &req.base, on_done, &calls[n++]);
        uint32_t id;
        if (!p)
            p = serve_next(&w, fd, &id);
        else // one record each
            assert_int_equal(peer_recv_frames(p, FRAME_OPEN, 1, &id), 1);
    }
    assert_int_equal(n_records(c), WINDOW_RECORDS);
    for (unsigned i = 0; i < N_CANCELS; i++) {
        cancel_fire(cancels[i]);
        if (is_readable(p, 50)) // else it waits for room
            assert_int_equal(peer_recv_frames(p, FRAME_CANCEL, 1, NULL), 1);
    }
    assert_in_range(n_records(c), WINDOW_RECORDS, WINDOW_RECORDS + CONTROL_RECORDS - 1);
    send_ping(p);
    assert_int_equal(peer_recv_frames(p, FRAME_ACK, 1, NULL), 1);
    peer_free(p);
    for (unsigned i = 0; i < n; i++) {
        assert_true(wait_for_count(&calls[i].n_done, 1));
        cancel_unref(cancels[i]);
    }
    rpc_client_free(c);
    close(fd);
    world_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_server_after_its_handshake),
        cmocka_unit_test(test_a_server_in_its_handshake),
        cmocka_unit_test(test_calls_of_who_is_never_let_in),
        cmocka_unit_test(test_acknowledgements_find_a_place),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
