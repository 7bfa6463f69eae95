// The misbehaving link does what it is asked to, or the tests that lean on it prove nothing.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/time.h"
#include "wire/proxy.h"

#define PATIENCE_MS 10000

struct pipe { // a client and the server's end of its connection
    struct tcp_proxy *p;
    int listener, client, server;
};

static void link_up(struct pipe *l)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    sa.sin_port = htons((uint16_t)atoi(strrchr(tcp_proxy_url(l->p), ':') + 1));
    l->client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(l->client, (struct sockaddr *)&sa, sizeof sa), 0);
    struct pollfd pfd = {.fd = l->listener, .events = POLLIN};
    assert_int_equal(poll(&pfd, 1, PATIENCE_MS), 1);
    l->server = accept(l->listener, NULL, NULL);
    assert_true(l->server >= 0);
}

static void pipe_init(struct pipe *l, uint64_t seed, const struct tcp_proxy_link *link)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof sa;
    char url[64];
    l->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(l->listener, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(l->listener, 8), 0);
    assert_int_equal(getsockname(l->listener, (struct sockaddr *)&sa, &len), 0);
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", (unsigned)ntohs(sa.sin_port));
    l->p = tcp_proxy_new(url, seed);
    assert_non_null(l->p);
    if (link)
        tcp_proxy_set_both(l->p, link);
    link_up(l);
}

static void link_down(struct pipe *l)
{
    close(l->client);
    close(l->server);
}

static void pipe_done(struct pipe *l)
{
    link_down(l);
    close(l->listener);
    tcp_proxy_free(l->p);
}

// Bytes until n came or the end; *ret_errno tells how it ended.
static size_t receive(int fd, uint8_t *dst, size_t n, int *ret_errno)
{
    size_t got = 0;
    *ret_errno = 0;
    while (got < n) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&pfd, 1, PATIENCE_MS), 1);
        ssize_t k = recv(fd, dst + got, n - got, 0);
        if (k < 0)
            *ret_errno = errno;
        if (k <= 0)
            break;
        got += (size_t)k;
    }
    return got;
}

static void *send_zeros(void *ud)
{
    static const uint8_t zeros[1 << 16];
    while (send(*(int *)ud, zeros, sizeof zeros, MSG_NOSIGNAL) > 0) {
    }
    return NULL;
}

static void test_bytes_pass_unchanged_and_ends_too(void **state)
{
    (void)state;
    struct pipe l;
    uint8_t in[6];
    int e;
    pipe_init(&l, 0, NULL);
    assert_int_equal(send(l.client, "up", 2, 0), 2);
    assert_int_equal(send(l.server, "down", 4, 0), 4);
    shutdown(l.client, SHUT_WR);
    assert_int_equal(receive(l.server, in, 6, &e), 2);
    assert_memory_equal(in, "up", 2);
    assert_int_equal(e, 0);
    assert_int_equal(receive(l.client, in, 4, &e), 4); // the other half goes on
    assert_memory_equal(in, "down", 4);
    struct tcp_proxy_stats st;
    tcp_proxy_get_stats(l.p, &st);
    assert_int_equal(st.n_conns, 1);
    assert_int_equal(st.bytes[TCP_PROXY_UP], 2);
    assert_int_equal(st.bytes[TCP_PROXY_DOWN], 4);
    pipe_done(&l);
}

static void test_delay_rate_and_hold_take_their_time(void **state)
{
    (void)state;
    struct pipe l;
    static uint8_t in[200000];
    int e;
    pipe_init(&l, 0, &(struct tcp_proxy_link){.delay_us = 50000, .jitter_us = 1000});
    int64_t began = time_mono_us();
    assert_int_equal(send(l.client, "x", 1, 0), 1);
    assert_int_equal(receive(l.server, in, 1, &e), 1);
    assert_true(time_mono_us() - began >= 50000);
    link_down(&l);
    tcp_proxy_set_both(l.p, &(struct tcp_proxy_link){.rate_bytes_s = 1000000});
    link_up(&l);
    pthread_t t;
    began = time_mono_us();
    assert_int_equal(pthread_create(&t, NULL, send_zeros, &l.client), 0);
    assert_int_equal(receive(l.server, in, sizeof in, &e), sizeof in);
    assert_true(time_mono_us() - began >= 190000);
    shutdown(l.client, SHUT_RDWR);
    pthread_join(t, NULL);
    link_down(&l);
    tcp_proxy_set(l.p, TCP_PROXY_UP, &(struct tcp_proxy_link){.hold = true});
    tcp_proxy_set(l.p, TCP_PROXY_DOWN, &(struct tcp_proxy_link){0});
    link_up(&l);
    assert_int_equal(send(l.client, "x", 1, 0), 1);
    assert_int_equal(send(l.server, "y", 1, 0), 1);
    assert_int_equal(receive(l.client, in, 1, &e), 1); // only one direction is held
    struct pollfd pfd = {.fd = l.server, .events = POLLIN};
    assert_int_equal(poll(&pfd, 1, 0), 0);
    tcp_proxy_set(l.p, TCP_PROXY_UP, &(struct tcp_proxy_link){0});
    assert_int_equal(receive(l.server, in, 1, &e), 1);
    pipe_done(&l);
}

static void test_cuts_come_after_the_bytes_asked_for(void **state)
{
    (void)state;
    static const int errors[] = {[TCP_PROXY_FIN] = 0, [TCP_PROXY_RST] = ECONNRESET};
    for (unsigned how = TCP_PROXY_FIN; how <= TCP_PROXY_RST; how++) {
        struct pipe l;
        static uint8_t in[100000];
        int e;
        pthread_t t;
        pipe_init(&l, 0,
                  &(struct tcp_proxy_link){.cut_min_bytes = 50000,
                                           .cut_max_bytes = 50000,
                                           .cut = (enum tcp_proxy_cut)how});
        assert_int_equal(pthread_create(&t, NULL, send_zeros, &l.client), 0);
        size_t n = receive(l.server, in, sizeof in, &e);
        assert_true(how == TCP_PROXY_FIN ? n == 50000 : n <= 50000);
        assert_int_equal(e, errors[how]);
        shutdown(l.client, SHUT_RDWR);
        pthread_join(t, NULL);
        link_down(&l);
        link_up(&l); // others can come
        tcp_proxy_cut(l.p, (enum tcp_proxy_cut)how);
        assert_int_equal(receive(l.client, in, 1, &e), 0);
        assert_int_equal(e, errors[how]);
        struct tcp_proxy_stats st;
        tcp_proxy_get_stats(l.p, &st);
        assert_int_equal(st.n_cuts, 2);
        pipe_done(&l);
    }
}

static size_t flips(uint64_t seed, size_t *ret_first)
{
    struct pipe l;
    static uint8_t in[100000];
    int e;
    pthread_t t;
    pipe_init(&l, seed, &(struct tcp_proxy_link){.flip_mean_bytes = 1000});
    assert_int_equal(pthread_create(&t, NULL, send_zeros, &l.client), 0);
    assert_int_equal(receive(l.server, in, sizeof in, &e), sizeof in);
    shutdown(l.client, SHUT_RDWR);
    pthread_join(t, NULL);
    pipe_done(&l);
    size_t n = 0;
    for (size_t i = sizeof in; i-- > 0;) {
        n += in[i] != 0;
        if (in[i])
            *ret_first = i * 256 + in[i];
    }
    return n;
}

static void test_flips_repeat_with_the_seed(void **state)
{
    (void)state;
    size_t first[3] = {0}, n = flips(7, &first[0]);
    assert_true(n > 50 && n < 200);
    assert_int_equal(flips(7, &first[1]), n);
    assert_int_equal(first[0], first[1]);
    flips(8, &first[2]);
    assert_int_not_equal(first[0], first[2]);
}

static void test_old_connections_die_and_new_ones_are_refused(void **state)
{
    (void)state;
    struct pipe l;
    uint8_t in[1];
    int e;
    pipe_init(&l, 0, NULL);
    tcp_proxy_set_life(l.p, 20000, 40000, TCP_PROXY_RST);
    assert_int_equal(receive(l.client, in, 1, &e), 0);
    assert_int_equal(e, ECONNRESET);
    tcp_proxy_refuse(l.p, true);
    close(l.client);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    sa.sin_port = htons((uint16_t)atoi(strrchr(tcp_proxy_url(l.p), ':') + 1));
    l.client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(l.client, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(receive(l.client, in, 1, &e), 0);
    assert_int_equal(e, ECONNRESET);
    pipe_done(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_pass_unchanged_and_ends_too),
        cmocka_unit_test(test_delay_rate_and_hold_take_their_time),
        cmocka_unit_test(test_cuts_come_after_the_bytes_asked_for),
        cmocka_unit_test(test_flips_repeat_with_the_seed),
        cmocka_unit_test(test_old_connections_die_and_new_ones_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
