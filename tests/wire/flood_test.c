// A public listener under a flood of connections that come to nothing: an honest client on another
// address connects every time, and soon.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/buf.h"
#include "channel/channel.h"
#include "crypto/crypto.h"
#include "rpc/transport.h"
#include "wire/flood.h"
#include "wire/util.h"

#define PROMISED_P99_MS 1000
#define ATTACK_MS 1500  // the kernel tracks each connection for minutes, 65,536 on small machines
#define MIN_FILES 16384 // of a public listener
#define LEAST_SAMPLES 20
#define MOST_SAMPLES 4096

static struct flood *flood;

// ---------------------------------------------------------------- what the flood says

static const uint8_t hello[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};

static void say(struct flood_order *o, const void *p, size_t n)
{
    struct flood_payload *to = &o->payloads[o->n_payloads++];
    assert_true(n <= sizeof to->bytes);
    memcpy(to->bytes, p, n);
    to->n = n;
}

// A whole first message, framed for the transport.
static void say_init(struct flood_order *o, const uint8_t *init, size_t n)
{
    AUTO(buf_done) struct buf b;
    buf_init(&b, 512);
    uint8_t head[12] = {[7] = (uint8_t)(n + 4), [8] = 0x80, [11] = 1};
    buf_append(&b, hello, sizeof hello);
    buf_append(&b, head, sizeof head);
    buf_append(&b, init, n);
    assert_false(b.failed);
    say(o, b.data, b.len);
}

static void half_open(struct world *w, struct flood_order *o)
{
    (void)w;
    say(o, "", 0);
    say(o, "\0SP\0\0\x30\0\0\0\0\0\0\0\0\0\x93\x80\0\0\1CQ\1\1", 24); // part of a message
    say(o, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 37);
    say(o, "\0SP\0\0\x30\0\0", 8);
}

// mac1 right or not: whoever knows the server's public key can make it.
static void put_mac1(struct world *w, uint8_t *init, size_t n)
{
    uint8_t key[32], seed[10 + 32] = "cauce-mac1";
    memcpy(seed + 10, w->server.public_key, 32);
    crypto_blake2b(key, sizeof key, seed, sizeof seed, NULL, 0, NULL);
    crypto_blake2b(init + n - 16, 16, init, n - 16, key, sizeof key, NULL);
}

static void forged(struct world *w, struct flood_order *o)
{
    struct err err = ERR_INIT;
    AUTO(buf_done) struct buf b;
    buf_init(&b, 512);
    AUTO(chan_free_p)
    struct chan *c = chan_new_initiator(CHAN_LINK_CLIENT, w->server.public_key, NULL, NULL, &err);
    assert_non_null(c);
    assert_int_equal(chan_start(c, &b, &err), STATUS_OK);
    say_init(o, b.data, b.len); // good, again and again
    b.data[40] ^= 1;            // not authentic
    put_mac1(w, b.data, b.len);
    say_init(o, b.data, b.len);
    b.data[b.len - 1] ^= 1; // and a wrong mac1
    say_init(o, b.data, b.len);
}

// ---------------------------------------------------------------- the honest client

struct honest {
    int64_t us[MOST_SAMPLES];
    size_t n;
    unsigned most_half_open;
};

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static void connect_once(struct world *w, struct honest *h)
{
    int64_t began = time_mono_us();
    struct rpc_client *c = wire_client(w, w->url, 0);
    enum status s = wire_call(c, ECHO, 1, NULL, PATIENCE_MS);
    h->us[h->n++] = time_mono_us() - began;
    assert_int_equal(s, STATUS_OK);
    rpc_client_free(c);
    struct rpc_server_stats st;
    rpc_server_get_stats(w->s, &st);
    if (st.half_open > h->most_half_open)
        h->most_half_open = st.half_open;
}

static void check_flood(const char *what, void (*payloads)(struct world *, struct flood_order *),
                        unsigned n_addrs)
{
    struct world w;
    world_init(&w);
    w.transport = &transport_epoll;
    wire_serve(&w, "tcp://127.0.0.1:0", true, 0);
    struct flood_order o = {.port = (uint16_t)atoi(strrchr(w.url, ':') + 1),
                            .per_s = 10000,
                            .most_open = 10000,
                            .n_addrs = n_addrs};
    payloads(&w, &o);
    static struct honest h;
    h.n = h.most_half_open = 0;
    flood_start(flood, &o);
    for (int64_t until = time_deadline_in_ms(ATTACK_MS);
         h.n < MOST_SAMPLES && (h.n < LEAST_SAMPLES || time_mono_us() < until);)
        connect_once(&w, &h);
    struct flood_stats f;
    flood_stop(flood, &f);
    struct rpc_server_stats st;
    rpc_server_get_stats(w.s, &st);
    qsort(h.us, h.n, sizeof h.us[0], by_value);
    int64_t p99_us = h.us[h.n * 99 / 100];
    print_message("%s: %lld connections/s from %u addresses, at most %u open, %llu said their "
                  "piece, %llu closed\n"
                  "  server: %llu turned away, %llu handshakes refused, %llu crowded out, "
                  "at most %u half open\n"
                  "  honest client: %zu connects and calls, p50 %.1f ms, p99 %.1f ms\n",
                  what, (long long)(f.n_begun * 1000000 / (uint64_t)(f.took_us + 1)), n_addrs,
                  f.most_open, (unsigned long long)f.n_said, (unsigned long long)f.n_closed,
                  (unsigned long long)st.n_turned_away, (unsigned long long)st.n_handshakes_refused,
                  (unsigned long long)st.n_crowded_out, h.most_half_open, h.n,
                  (double)h.us[h.n / 2] / 1000, (double)p99_us / 1000);
    assert_true(f.n_said > 0); // on a busy machine it may be slow
    assert_true(h.most_half_open <= 4096 + 16);
    if (n_addrs == 1)
        assert_true(h.most_half_open <= 1024 + 16);
    assert_true(p99_us <= 3 * PROMISED_P99_MS * INT64_C(1000));
    world_done(&w);
}

static bool has_files(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_max >= MIN_FILES)
        return true;
    print_message("skipped: %llu open files are allowed, a public listener needs %d\n",
                  (unsigned long long)r.rlim_max, MIN_FILES);
    return false;
}

static void test_half_open_connections_lock_nobody_out(void **state)
{
    (void)state;
    if (!has_files())
        skip();
    check_flood("half-open", half_open, 1);
}

static void test_half_open_connections_of_many_addresses(void **state)
{
    (void)state;
    if (!has_files())
        skip();
    check_flood("half-open, many addresses", half_open, 20);
}

static void test_forged_first_messages_lock_nobody_out(void **state)
{
    (void)state;
    if (!has_files())
        skip();
    check_flood("forged first messages", forged, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_half_open_connections_lock_nobody_out),
        cmocka_unit_test(test_half_open_connections_of_many_addresses),
        cmocka_unit_test(test_forged_first_messages_lock_nobody_out),
    };
    flood = flood_new(); // before there are threads
    if (!flood)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, group_done);
    flood_free(flood);
    return failed;
}
