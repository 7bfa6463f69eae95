// A peer with a valid handshake that then breaks the rules: it is cut off, or its call refused;
// nothing of it stays behind and others go on.
#include <arpa/inet.h>
#include <endian.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "channel/channel.h"
#include "rpc/frame.h"
#include "rpc/test_util.h"

#define RECORD_HEAD (CHAN_RECORD_OVERHEAD - 16)
#define PATIENCE_MS 10000

// ---------------------------------------------------------------- a peer made by hand

struct peer {
    int fd;
    struct chan *chan;
    uint8_t in[CHAN_MAX_RECORD + 64], out[2 * CHAN_MAX_RECORD];
};

static void send_all(struct peer *p, const void *data, size_t n)
{
    for (size_t off = 0; off < n;) {
        ssize_t k = send(p->fd, (const uint8_t *)data + off, n - off, MSG_NOSIGNAL);
        if (k <= 0)
            return; // it was cut off already: tests look at that
        off += (size_t)k;
    }
}

static bool recv_all(struct peer *p, void *data, size_t n)
{
    for (size_t off = 0; off < n;) {
        struct pollfd pfd = {.fd = p->fd, .events = POLLIN};
        assert_int_equal(poll(&pfd, 1, PATIENCE_MS), 1);
        ssize_t k = recv(p->fd, (uint8_t *)data + off, n - off, 0);
        if (k <= 0)
            return false;
        off += (size_t)k;
    }
    return true;
}

static void send_message(struct peer *p, const void *body, size_t n)
{
    uint64_t len = htobe64(n + 4);
    uint32_t request = htobe32(0x80000001U);
    send_all(p, &len, sizeof len);
    send_all(p, &request, sizeof request);
    send_all(p, body, n);
}

// Into p->in. False at the connection's end.
static bool recv_message(struct peer *p, size_t *ret_n)
{
    uint64_t len;
    uint32_t request;
    if (!recv_all(p, &len, sizeof len))
        return false;
    len = be64toh(len);
    assert_true(len >= 4 && len - 4 <= sizeof p->in);
    *ret_n = (size_t)len - 4;
    return recv_all(p, &request, sizeof request) && recv_all(p, p->in, *ret_n);
}

static struct peer *peer_new(struct world *w)
{
    struct peer *p = mem_alloc(sizeof *p);
    assert_non_null(p);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    sa.sin_port = htons((uint16_t)atoi(strrchr(w->url, ':') + 1));
    p->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(p->fd, (struct sockaddr *)&sa, sizeof sa), 0);
    uint8_t sp[8];
    send_all(p, "\0SP\0\0\x30\0\0", 8);
    assert_true(recv_all(p, sp, sizeof sp));
    assert_memory_equal(sp, "\0SP\0\0\x31\0\0", 8);
    struct err err = ERR_INIT;
    p->chan = chan_new_initiator(CHAN_LINK_CLIENT, w->server.public_key, NULL, NULL, &err);
    assert_non_null(p->chan);
    AUTO(buf_done) struct buf b;
    buf_init(&b, 4096);
    assert_int_equal(chan_start(p->chan, &b, &err), STATUS_OK);
    send_message(p, b.data, b.len);
    buf_reset(&b);
    size_t n, len;
    enum chan_event ev;
    uint8_t *data;
    assert_true(recv_message(p, &n));
    assert_int_equal(chan_receive(p->chan, p->in, n, &b, &ev, &data, &len, &err), STATUS_OK);
    assert_true(chan_is_ready(p->chan));
    return p;
}

static void peer_free(struct peer *p)
{
    close(p->fd);
    chan_free(p->chan);
    mem_free(p);
}

static size_t seal(struct peer *p, const void *frames, size_t n)
{
    memcpy(p->out + RECORD_HEAD, frames, n);
    size_t size = chan_seal(p->chan, p->out, n, NULL);
    assert_true(size > 0);
    return size;
}

static void send_frames(struct peer *p, const struct buf *b)
{
    assert_false(b->failed);
    send_message(p, p->out, seal(p, b->data, b->len));
}

// Reads records until that many frames of a type came; returns how many did.
static unsigned recv_frames(struct peer *p, enum frame_type type, unsigned want)
{
    unsigned found = 0;
    while (found < want) {
        size_t n, len;
        enum chan_event ev;
        uint8_t *data;
        struct err err = ERR_INIT;
        AUTO(buf_done) struct buf b;
        buf_init(&b, 4096);
        assert_true(recv_message(p, &n));
        assert_int_equal(chan_receive(p->chan, p->in, n, &b, &ev, &data, &len, &err), STATUS_OK);
        assert_int_equal(ev, CHAN_DATA);
        const uint8_t *at = data, *end = data + len;
        while (at < end) {
            struct frame f;
            assert_true(frame_next(&at, end, &f));
            found += f.type == type;
        }
    }
    return found;
}

static void expect_cut(struct peer *p)
{
    size_t n;
    while (recv_message(p, &n)) {
    }
}

static void expect_alive(struct peer *p)
{
    AUTO(buf_done) struct buf b;
    buf_init(&b, 64);
    frame_put_number(&b, FRAME_ACK, 0, chan_received_counter(p->chan));
    frame_put(&b, FRAME_PING, 0, 0, NULL, 0);
    send_frames(p, &b);
    recv_frames(p, FRAME_ACK, 1);
}

// ---------------------------------------------------------------- what it does wrong

static void put_open(struct buf *b, uint32_t id, int method)
{
    frame_put_open(b, id,
                   &(struct frame_call){.deadline_ms = PATIENCE_MS,
                                        .method = test_service.methods[method].name});
}

static void excess_bytes(struct peer *p, struct buf *b)
{
    static const uint8_t bytes[200000];
    put_open(b, 1, ECHO);
    frame_put(b, FRAME_DATA, FRAME_LAST | FRAME_HALF, 1, bytes, sizeof bytes);
    send_frames(p, b);
}
// Every thread is kept busy, so the requests behind keep the connection's credit.
static void excess_bytes_of_many_calls(struct peer *p, struct buf *b)
{
    static uint8_t bytes[60000], packed[sizeof bytes + 16];
    Note n;
    note_init(&n);
    n.data = (ProtobufCBinaryData){.len = sizeof bytes, .data = bytes};
    size_t len = protobuf_c_message_pack(&n.base, packed);
    for (uint32_t id = 1; id <= 16; id++) {
        put_open(b, id, WAIT);
        frame_put(b, FRAME_DATA, FRAME_LAST | FRAME_HALF, id, "", 0);
    }
    send_frames(p, b);
    for (uint32_t id = 17; id <= 40; id++) {
        buf_reset(b);
        put_open(b, id, WAIT);
        frame_put(b, FRAME_DATA, FRAME_LAST | FRAME_HALF, id, packed, len);
        send_frames(p, b);
    }
}
static void excess_credit(struct peer *p, struct buf *b)
{
    put_open(b, 1, WAIT);
    frame_put_number(b, FRAME_WINDOW, 1, 60 << 20);
    frame_put_number(b, FRAME_WINDOW, 1, 60 << 20);
    send_frames(p, b);
}
static void absurd_credit(struct peer *p, struct buf *b)
{
    frame_put_number(b, FRAME_WINDOW, 1, UINT64_MAX);
    send_frames(p, b);
}
static void false_ack(struct peer *p, struct buf *b)
{
    frame_put_number(b, FRAME_ACK, 0, 1000000);
    send_frames(p, b);
}
static void reused_id(struct peer *p, struct buf *b)
{
    put_open(b, 9, WAIT);
    put_open(b, 9, ECHO);
    send_frames(p, b);
}
static void id_zero(struct peer *p, struct buf *b)
{
    put_open(b, 0, WAIT);
    send_frames(p, b);
}
static void garbage(struct peer *p, struct buf *b)
{
    for (int i = 0; i < 100; i++)
        buf_append(b, "\xff\xff\xff\xff", 4);
    send_frames(p, b);
}
static void cut_frame(struct peer *p, struct buf *b)
{
    put_open(b, 1, ECHO);
    b->len -= 3;
    send_frames(p, b);
}
static void status_from_a_client(struct peer *p, struct buf *b)
{
    struct frame_status s = {.code = STATUS_OK};
    put_open(b, 1, WAIT);
    frame_put_status(b, 1, &s);
    send_frames(p, b);
}
static void bytes_after_the_end(struct peer *p, struct buf *b)
{
    put_open(b, 1, SUM);
    frame_put(b, FRAME_END, 0, 1, NULL, 0);
    frame_put(b, FRAME_DATA, FRAME_LAST, 1, "", 0);
    send_frames(p, b);
}
static void slot_out_of_range(struct peer *p, struct buf *b)
{
    frame_put(b, FRAME_AUTH, 0, 17, "user", 4);
    send_frames(p, b);
}
static void repeated_record(struct peer *p, struct buf *b)
{
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    size_t n = seal(p, b->data, b->len);
    send_message(p, p->out, n);
    send_message(p, p->out, n);
}
static void left_out_record(struct peer *p, struct buf *b)
{
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    seal(p, b->data, b->len);
    send_message(p, p->out, seal(p, b->data, b->len));
}
static void altered_record(struct peer *p, struct buf *b)
{
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    size_t n = seal(p, b->data, b->len);
    p->out[n - 1] ^= 1;
    send_message(p, p->out, n);
}
static void long_record(struct peer *p, struct buf *b) // the transport lets it through
{
    (void)b;
    send_message(p, p->out, CHAN_MAX_RECORD + 2);
}
static void huge_record(struct peer *p, struct buf *b) // the transport itself refuses it
{
    (void)b;
    send_message(p, p->out, sizeof p->out);
}
static void endless_records(struct peer *p, struct buf *b) // never reads: ignores our ACKs
{
    static const uint8_t bytes[1000];
    frame_put(b, FRAME_DATA, 0, 77, bytes, sizeof bytes);
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    for (int i = 0; i < 200; i++)
        send_frames(p, b);
    send_message(p, p->out, 40); // and at last something invalid
}

static void (*const misdeeds[])(struct peer *, struct buf *) = {
    excess_bytes,      excess_bytes_of_many_calls,
    excess_credit,     absurd_credit,
    false_ack,         reused_id,
    id_zero,           garbage,
    cut_frame,         status_from_a_client,
    slot_out_of_range, bytes_after_the_end,
    repeated_record,   left_out_record,
    altered_record,    long_record,
    huge_record,       endless_records,
};

static void expect_echo(struct rpc_client *c)
{
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    note_init(&req);
    assert_int_equal(call_note(c, ECHO, NULL, &req, &ret, &err), STATUS_OK);
    rpc_message_free(ret);
}

// The honest client's connection is the only one left, with at most its last call, which counts as
// open until the answer is acknowledged.
static void expect_nothing_left(struct world *w)
{
    struct rpc_server_stats st;
    int64_t until = time_deadline_in_ms(PATIENCE_MS);
    do
        rpc_server_get_stats(w->s, &st);
    while ((st.conns_open != 1 || st.calls_open > 1) && time_mono_us() < until);
    assert_int_equal(st.conns_open, 1);
    assert_true(st.calls_open <= 1);
}

static void test_breaking_the_rules_ends_only_ones_own_connection(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    expect_echo(c);
    for (size_t i = 0; i < N_ELEMENTS(misdeeds); i++) {
        AUTO(buf_done) struct buf b;
        buf_init(&b, 1 << 20);
        struct peer *p = peer_new(&w);
        expect_alive(p);
        misdeeds[i](p, &b);
        expect_cut(p);
        peer_free(p);
        expect_echo(c);
    }
    expect_nothing_left(&w);
    struct rpc_client_stats st;
    rpc_client_get_stats(c, &st);
    assert_int_equal(st.n_connects, 1);
    rpc_client_free(c);
    world_done(&w);
}

static void test_too_many_calls_are_refused_one_by_one(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    expect_echo(c);
    AUTO(buf_done) struct buf b;
    buf_init(&b, 1 << 20);
    for (uint32_t id = 1; id <= 300; id++)
        put_open(&b, id, WAIT);
    struct peer *p = peer_new(&w);
    send_frames(p, &b);
    assert_int_equal(recv_frames(p, FRAME_STATUS, 300 - 128), 300 - 128);
    expect_alive(p);
    expect_echo(c);
    peer_free(p);
    expect_nothing_left(&w);
    rpc_client_free(c);
    world_done(&w);
}

static void test_frames_of_unknown_calls_are_ignored(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    expect_echo(c);
    AUTO(buf_done) struct buf b;
    buf_init(&b, 1 << 20);
    static const uint8_t bytes[50000];
    frame_put(&b, FRAME_DATA, FRAME_LAST, 77, bytes, sizeof bytes);
    frame_put(&b, FRAME_END, 0, 78, NULL, 0);
    frame_put(&b, FRAME_CANCEL, 0, 79, NULL, 0);
    frame_put_number(&b, FRAME_WINDOW, 80, 100);
    struct peer *p = peer_new(&w);
    for (int i = 0; i < 60; i++) { // three times the connection's credit: it must come back
        send_frames(p, &b);
        expect_alive(p);
    }
    peer_free(p);
    expect_nothing_left(&w);
    rpc_client_free(c);
    world_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_breaking_the_rules_ends_only_ones_own_connection),
        cmocka_unit_test(test_too_many_calls_are_refused_one_by_one),
        cmocka_unit_test(test_frames_of_unknown_calls_are_ignored),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
