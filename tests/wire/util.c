#include "wire/util.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/rand.h"

uint64_t wire_seed(const char *test)
{
    const char *e = getenv("CAUCE_TEST_SEED");
    uint64_t seed = e ? strtoull(e, NULL, 10) : rand_u64() >> 1 | 1;
    print_message("%s: CAUCE_TEST_SEED=%llu\n", test, (unsigned long long)seed);
    return seed;
}

#if IS_SANITIZED
size_t __sanitizer_get_current_allocated_bytes(void);
size_t wire_held_bytes(void)
{
    return __sanitizer_get_current_allocated_bytes();
}
#else
size_t wire_held_bytes(void)
{
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}
#endif

void wire_serve(struct world *w, const char *url, bool is_public, int64_t ping_ms)
{
    struct err err = ERR_INIT;
    struct rpc_server_opts o = world_server_opts(w);
    o.ping_after_ms = ping_ms;
    w->s = rpc_server_new(&o, &err);
    assert_non_null(w->s);
    world_add(w, w->s);
    w->is_public = is_public;
    enum status s = rpc_server_listen(w->s, url, is_public, w->url, &err);
    if (s != STATUS_OK)
        print_error("%s\n", err.msg);
    assert_int_equal(s, STATUS_OK);
}

struct rpc_client *wire_client(struct world *w, const char *url, int64_t ping_ms)
{
    struct rpc_endpoint e = {.url = url};
    memcpy(e.key, w->server.public_key, sizeof e.key);
    struct rpc_client_opts o = {.endpoints = &e, .n_endpoints = 1, .ping_after_ms = ping_ms};
    if (!w->is_public) {
        o.identity = &w->node;
        o.trust = &w->trust;
        o.expect_role = ROLE_NODE_ORCHESTRATOR;
    }
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    return c;
}

enum status wire_call(struct rpc_client *c, int method, int64_t number, const char *key,
                      int64_t deadline_ms)
{
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(deadline_ms), .idempotency_key = key};
    Note req, *ret = NULL;
    struct err err = ERR_INIT;
    note_init(&req);
    req.number = number;
    enum status s = call_note(c, method, &o, &req, &ret, &err);
    rpc_message_free(ret);
    return s;
}

void wire_pause(int64_t ms)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&cond, &attr);
    pthread_condattr_destroy(&attr);
    int64_t until = time_deadline_in_ms(ms < 1 ? 1 : ms);
    struct timespec ts = {.tv_sec = until / 1000000, .tv_nsec = until % 1000000 * 1000};
    pthread_mutex_lock(&lock);
    while (pthread_cond_timedwait(&cond, &lock, &ts) != ETIMEDOUT) {
    }
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&cond);
}

bool wire_wait(bool (*is_so)(void *ud), void *ud)
{
    int64_t until = time_deadline_in_ms(PATIENCE_MS);
    while (!is_so(ud)) {
        if (time_mono_us() >= until)
            return false;
        wire_pause(2);
    }
    return true;
}

struct quiet {
    struct rpc_server *s;
    unsigned conns_open;
};

static bool is_quiet(void *ud)
{
    struct quiet *q = ud;
    struct rpc_server_stats st;
    rpc_server_get_stats(q->s, &st);
    return st.calls_open == 0 && st.conns_open <= q->conns_open;
}

bool wire_wait_quiet(struct world *w, unsigned conns_open)
{
    struct quiet q = {w->s, conns_open};
    return wire_wait(is_quiet, &q);
}
