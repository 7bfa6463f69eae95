// A peer with a valid handshake that then breaks the rules: it is cut off, or its call refused;
// nothing of it stays behind and others go on.
#include <stdlib.h>
#include <string.h>

#include "rpc/test_peer.h"

#define PATIENCE_MS 10000

// ---------------------------------------------------------------- what it does wrong

static void expect_alive(struct peer *p)
{
    AUTO(buf_done) struct buf b;
    buf_init(&b, 64);
    frame_put_number(&b, FRAME_ACK, 0, chan_received_counter(p->chan));
    frame_put(&b, FRAME_PING, 0, 0, NULL, 0);
    peer_send_frames(p, &b);
    assert_true(peer_recv_frames(p, FRAME_ACK, 1, NULL) >= 1);
}

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
    peer_send_frames(p, b);
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
    peer_send_frames(p, b);
    for (uint32_t id = 17; id <= 40; id++) {
        buf_reset(b);
        put_open(b, id, WAIT);
        frame_put(b, FRAME_DATA, FRAME_LAST | FRAME_HALF, id, packed, len);
        peer_send_frames(p, b);
    }
}
static void excess_credit(struct peer *p, struct buf *b)
{
    put_open(b, 1, WAIT);
    frame_put_number(b, FRAME_WINDOW, 1, 60 << 20);
    frame_put_number(b, FRAME_WINDOW, 1, 60 << 20);
    peer_send_frames(p, b);
}
static void absurd_credit(struct peer *p, struct buf *b)
{
    frame_put_number(b, FRAME_WINDOW, 1, UINT64_MAX);
    peer_send_frames(p, b);
}
static void false_ack(struct peer *p, struct buf *b)
{
    frame_put_number(b, FRAME_ACK, 0, 1000000);
    peer_send_frames(p, b);
}
static void reused_id(struct peer *p, struct buf *b)
{
    put_open(b, 9, WAIT);
    put_open(b, 9, ECHO);
    peer_send_frames(p, b);
}
static void id_zero(struct peer *p, struct buf *b)
{
    put_open(b, 0, WAIT);
    peer_send_frames(p, b);
}
static void garbage(struct peer *p, struct buf *b)
{
    for (int i = 0; i < 100; i++)
        buf_append(b, "\xff\xff\xff\xff", 4);
    peer_send_frames(p, b);
}
static void cut_frame(struct peer *p, struct buf *b)
{
    put_open(b, 1, ECHO);
    b->len -= 3;
    peer_send_frames(p, b);
}
static void status_from_a_client(struct peer *p, struct buf *b)
{
    struct frame_status s = {.code = STATUS_OK};
    put_open(b, 1, WAIT);
    frame_put_status(b, 1, &s);
    peer_send_frames(p, b);
}
static void bytes_after_the_end(struct peer *p, struct buf *b)
{
    put_open(b, 1, SUM);
    frame_put(b, FRAME_END, 0, 1, NULL, 0);
    frame_put(b, FRAME_DATA, FRAME_LAST, 1, "", 0);
    peer_send_frames(p, b);
}
static void slot_out_of_range(struct peer *p, struct buf *b)
{
    frame_put(b, FRAME_AUTH, 0, 17, "user", 4);
    peer_send_frames(p, b);
}
static void repeated_record(struct peer *p, struct buf *b)
{
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    size_t n = peer_seal(p, b->data, b->len);
    peer_send_message(p, p->out, n);
    peer_send_message(p, p->out, n);
}
static void left_out_record(struct peer *p, struct buf *b)
{
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    peer_seal(p, b->data, b->len);
    peer_send_message(p, p->out, peer_seal(p, b->data, b->len));
}
static void altered_record(struct peer *p, struct buf *b)
{
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    size_t n = peer_seal(p, b->data, b->len);
    p->out[n - 1] ^= 1;
    peer_send_message(p, p->out, n);
}
static void long_record(struct peer *p, struct buf *b) // the transport lets it through
{
    (void)b;
    peer_send_message(p, p->out, CHAN_MAX_RECORD + 2);
}
static void huge_record(struct peer *p, struct buf *b) // the transport itself refuses it
{
    (void)b;
    peer_send_message(p, p->out, sizeof p->out);
}
static void endless_records(struct peer *p, struct buf *b) // never reads: ignores our ACKs
{
    static const uint8_t bytes[1000];
    frame_put(b, FRAME_DATA, 0, 77, bytes, sizeof bytes);
    frame_put(b, FRAME_PING, 0, 0, NULL, 0);
    for (int i = 0; i < 200; i++)
        peer_send_frames(p, b);
    peer_send_message(p, p->out, 40); // and at last something invalid
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
        struct peer *p = peer_dial(&w);
        expect_alive(p);
        misdeeds[i](p, &b);
        peer_expect_cut(p);
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
    struct peer *p = peer_dial(&w);
    peer_send_frames(p, &b);
    assert_int_equal(peer_recv_frames(p, FRAME_STATUS, 300 - 128, NULL), 300 - 128);
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
    struct peer *p = peer_dial(&w);
    for (int i = 0; i < 60; i++) { // three times the connection's credit: it must come back
        peer_send_frames(p, &b);
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
