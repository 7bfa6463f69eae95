// A client that is not let in: it does not hammer at the door, and its calls say why.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "rpc/test_util.h"
#include "rpc/transport.h"

#define PATIENCE_MS 30000

// ---------------------------------------------------------------- what the link tells its
// transport

static struct transport_ops tapped;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t backoffs[64]; // in order
static size_t n_backoffs;

static void tap_set_backoff(struct transport *t, int64_t ms)
{
    pthread_mutex_lock(&lock);
    if (n_backoffs < N_ELEMENTS(backoffs))
        backoffs[n_backoffs++] = ms;
    pthread_mutex_unlock(&lock);
    transport_epoll.set_backoff(t, ms);
}

static bool has_backoffs(size_t n)
{
    pthread_mutex_lock(&lock);
    bool has = n_backoffs >= n;
    pthread_mutex_unlock(&lock);
    return has;
}

static void begin(struct world *w)
{
    world_init(w);
    tapped = transport_epoll;
    tapped.set_backoff = tap_set_backoff;
    w->transport = &tapped;
    pthread_mutex_lock(&lock);
    n_backoffs = 0;
    pthread_mutex_unlock(&lock);
}

// ---------------------------------------------------------------- clients and their calls

static int64_t handshake_ms; // 0: the default

static struct rpc_client *client_to(struct world *w, const char *url, const uint8_t key[32],
                                    const struct chan_identity *as)
{
    struct rpc_endpoint e = {.url = url};
    memcpy(e.key, key, sizeof e.key);
    struct rpc_client_opts o = {.endpoints = &e,
                                .n_endpoints = 1,
                                .connect_timeout_ms = PATIENCE_MS,
                                .handshake_timeout_ms = handshake_ms,
                                .identity = as,
                                .trust = as ? &w->trust : NULL,
                                .transport = &tapped};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    return c;
}

static enum status call(struct rpc_client *c, bool fail_fast, struct err *err)
{
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(PATIENCE_MS), .fail_fast = fail_fast};
    Note req, *ret = NULL;
    note_init(&req);
    enum status s = call_note(c, ECHO, &o, &req, &ret, err);
    rpc_message_free(ret);
    return s;
}

// Fail-fast calls do not wait, so the first ones may know nothing yet.
static void expect_reason(struct rpc_client *c, const char *url, const char *reason)
{
    int64_t until = time_deadline_in_ms(PATIENCE_MS);
    struct err err = ERR_INIT;
    do {
        poll(NULL, 0, 5); // nothing tells of an attempt that fails
        err = (struct err)ERR_INIT;
        assert_int_equal(call(c, true, &err), STATUS_UNAVAILABLE);
    } while (!strstr(err.msg, reason) && time_mono_us() < until);
    if (!strstr(err.msg, reason) || !strstr(err.msg, url))
        fail_msg("'%s' says neither %s nor %s", err.msg, url, reason);
}

static void wait_for_backoffs(size_t n)
{
    int64_t until = time_deadline_in_ms(PATIENCE_MS);
    while (!has_backoffs(n) && time_mono_us() < until)
        poll(NULL, 0, 5);
    assert_true(has_backoffs(n));
}

static void expect_growth(size_t n)
{
    wait_for_backoffs(n);
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(backoffs[i], (int64_t)TRANSPORT_BACKOFF_MIN_MS << (i + 1));
    pthread_mutex_unlock(&lock);
}

// ---------------------------------------------------------------- listeners that are no servers

struct mute {
    int fd;
    bool says_hello;
    char url[64];
    pthread_t thread;
    int stop[2];
};

static void *mute_run(void *ud)
{
    struct mute *m = ud;
    int fds[64];
    size_t n = 0;
    for (;;) {
        struct pollfd p[] = {{.fd = m->fd, .events = POLLIN}, {.fd = m->stop[0], .events = POLLIN}};
        poll(p, 2, -1);
        if (p[1].revents)
            break;
        int fd = accept4(m->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        if (m->says_hello && send(fd, "\0SP\0\0\x31\0\0", 8, MSG_NOSIGNAL) != 8)
            print_error("a client left before the hello\n");
        if (n < N_ELEMENTS(fds))
            fds[n++] = fd;
        else
            close(fd);
    }
    while (n)
        close(fds[--n]);
    return NULL;
}

static uint16_t bind_any(int *ret_fd)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof sa;
    *ret_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(*ret_fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(getsockname(*ret_fd, (struct sockaddr *)&sa, &len), 0);
    return ntohs(sa.sin_port);
}

static void mute_start(struct mute *m, bool says_hello)
{
    *m = (struct mute){.says_hello = says_hello};
    snprintf(m->url, sizeof m->url, "tcp://127.0.0.1:%u", (unsigned)bind_any(&m->fd));
    assert_int_equal(listen(m->fd, 64), 0);
    assert_int_equal(pipe(m->stop), 0);
    assert_int_equal(pthread_create(&m->thread, NULL, mute_run, m), 0);
}

static void mute_stop(struct mute *m)
{
    assert_int_equal(write(m->stop[1], "", 1), 1);
    pthread_join(m->thread, NULL);
    close(m->fd);
    close(m->stop[0]);
    close(m->stop[1]);
}

// ---------------------------------------------------------------- tests

static void test_another_key_is_refused_and_said(void **state)
{
    (void)state;
    struct world w;
    begin(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = client_to(&w, w.url, w.node.public_key, NULL);
    expect_reason(c, w.url, "it has another key");
    expect_growth(4);
    rpc_client_free(c);
    c = client_to(&w, w.url, w.node.public_key, &w.node); // a service link at a public listener
    expect_reason(c, w.url, "it has another key");
    rpc_client_free(c);
    world_done(&w);
}

static void test_a_refused_grant_is_said(void **state)
{
    (void)state;
    struct world w;
    begin(&w);
    world_serve(&w, "tcp://127.0.0.1:0", false);
    struct chan_identity expired;
    make_node(&w, &expired, 12, -60);
    struct rpc_client *c = client_to(&w, w.url, w.server.public_key, &expired);
    expect_reason(c, w.url, "does not accept this node's grant");
    expect_growth(3);
    rpc_client_free(c);
    world_done(&w);
}

static void test_a_closed_port_is_said(void **state)
{
    (void)state;
    struct world w;
    begin(&w);
    int fd;
    char url[64];
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", (unsigned)bind_any(&fd)); // and not listening
    struct rpc_client *c = client_to(&w, url, w.server.public_key, NULL);
    expect_reason(c, url, "Connection refused");
    rpc_client_free(c);
    close(fd);
    world_done(&w);
}

static void test_a_server_that_never_answers_is_said(void **state)
{
    (void)state;
    struct world w;
    struct mute m;
    begin(&w);
    mute_start(&m, true);
    handshake_ms = 200;
    struct rpc_client *c = client_to(&w, m.url, w.server.public_key, NULL);
    expect_reason(c, m.url, "timed out in the handshake");
    expect_growth(2);
    rpc_client_free(c);
    mute_stop(&m);
    handshake_ms = 0;
    mute_start(&m, false); // not even the transport's hello
    c = client_to(&w, m.url, w.server.public_key, NULL);
    expect_reason(c, m.url, "it does not answer");
    rpc_client_free(c);
    mute_stop(&m);
    world_done(&w);
}

// A call that waits is served once the right one is there, and the pause is short again.
static void test_pauses_are_short_again_after_success(void **state)
{
    (void)state;
    struct world w;
    begin(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct chan_identity right = w.server;
    char url[RPC_URL_SIZE];
    snprintf(url, sizeof url, "%s", w.url);
    struct rpc_client *c = client_to(&w, url, w.node.public_key, NULL);
    expect_growth(2);
    rpc_server_set_identity(w.s, &w.node, NULL);
    struct err err = ERR_INIT;
    assert_int_equal(call(c, false, &err), STATUS_OK);
    pthread_mutex_lock(&lock);
    assert_int_equal(backoffs[n_backoffs - 1], TRANSPORT_BACKOFF_MIN_MS);
    pthread_mutex_unlock(&lock);
    rpc_server_set_identity(w.s, &right, NULL);
    rpc_client_free(c);
    world_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_another_key_is_refused_and_said),
        cmocka_unit_test(test_a_refused_grant_is_said),
        cmocka_unit_test(test_a_closed_port_is_said),
        cmocka_unit_test(test_a_server_that_never_answers_is_said),
        cmocka_unit_test(test_pauses_are_short_again_after_success),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
