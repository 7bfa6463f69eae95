// Published messages: what opens and what does not, and bursts over real sockets.
#include "rpc/pubsub.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "rpc/rpc.h"

static void must(enum status s, const struct err *err)
{
    if (s != STATUS_OK)
        fail_msg("%s: %s", status_name(s), err->msg);
}

// ---------------------------------------------------------------- sealing

struct pair {
    struct pubsub_writer w;
    struct pubsub_reader r;
};

static void pair_init(struct pair *p)
{
    struct pubsub_grant g;
    pubsub_writer_init(&p->w, "auth");
    pubsub_reader_init(&p->r, "auth");
    pubsub_grant_of(&p->w, &g);
    pubsub_reader_adopt(&p->r, &g, 0);
}

struct message {
    uint8_t bytes[256];
    size_t n;
};

static struct message seal(struct pubsub_writer *w, const char *text)
{
    struct message m = {.n = 0};
    struct err err = ERR_INIT;
    AUTO(buf_done) struct buf b;
    buf_init(&b, sizeof m.bytes);
    must(pubsub_seal(w, text, strlen(text), &b, &err), &err);
    memcpy(m.bytes, b.data, b.len);
    m.n = b.len;
    return m;
}

// Opens a copy, as each subscriber would.
static enum pubsub_result give(struct pubsub_reader *r, const struct message *m, int64_t now_us)
{
    struct message copy = *m;
    const uint8_t *p = NULL;
    size_t n = 0;
    return pubsub_open(r, copy.bytes, copy.n, now_us, &p, &n);
}

static void test_opens_what_was_sealed(void **state)
{
    struct pair p;
    const uint8_t *text = NULL;
    size_t n = 0;
    (void)state;
    pair_init(&p);
    struct message m = seal(&p.w, "hello");
    assert_int_equal(m.n, 5 + PUBSUB_OVERHEAD);
    assert_null(memmem(m.bytes, m.n, "hello", 5));
    assert_null(memmem(m.bytes, m.n, "auth", 4));
    assert_int_equal(pubsub_open(&p.r, m.bytes, m.n, 0, &text, &n), PUBSUB_OPENED);
    assert_int_equal(n, 5);
    assert_memory_equal(text, "hello", 5);
    assert_int_equal(p.r.stats.n_opened, 1);
}

static void test_every_flipped_bit_and_every_cut_is_refused(void **state)
{
    struct pair p;
    (void)state;
    pair_init(&p);
    struct message good = seal(&p.w, "hello");
    for (size_t i = 0; i < good.n * 8; i++) {
        struct message bad = good;
        bad.bytes[i / 8] ^= (uint8_t)(1U << i % 8);
        assert_int_not_equal(give(&p.r, &bad, 0), PUBSUB_OPENED);
    }
    for (size_t n = 0; n < good.n; n++) {
        struct message cut = good;
        cut.n = n;
        assert_int_equal(give(&p.r, &cut, 0), PUBSUB_DROPPED);
    }
    assert_true(p.r.stats.n_forged > good.n);
    assert_int_equal(give(&p.r, &good, 0), PUBSUB_OPENED);
}

static void test_repeated_and_overtaken_are_dropped_and_gaps_counted(void **state)
{
    struct pair p;
    (void)state;
    pair_init(&p);
    struct message a = seal(&p.w, "a"), b = seal(&p.w, "b"), c = seal(&p.w, "c");
    assert_int_equal(give(&p.r, &a, 0), PUBSUB_OPENED);
    assert_int_equal(give(&p.r, &a, 0), PUBSUB_DROPPED);
    assert_int_equal(give(&p.r, &c, 0), PUBSUB_OPENED);
    assert_int_equal(give(&p.r, &b, 0), PUBSUB_DROPPED);
    assert_int_equal(p.r.stats.n_repeated, 2);
    assert_int_equal(p.r.stats.n_missed, 1);
}

// All who may read have the key; only the publisher has what signs.
static void test_another_reader_cannot_speak_for_the_publisher(void **state)
{
    struct pair p;
    uint8_t unused[32];
    (void)state;
    pair_init(&p);
    struct pubsub_writer liar = p.w;
    crypto_ed25519_keypair(unused, liar.sign_secret);
    struct message forged = seal(&liar, "lies"), honest = seal(&p.w, "truth");
    assert_int_equal(give(&p.r, &forged, 0), PUBSUB_DROPPED);
    assert_int_equal(p.r.stats.n_forged, 1);
    assert_int_equal(give(&p.r, &honest, 0), PUBSUB_OPENED);
}

static void test_messages_of_another_topic_are_refused(void **state)
{
    struct pair p;
    (void)state;
    pair_init(&p);
    struct pubsub_writer other = p.w;
    other.topic = pubsub_topic_of("store");
    struct message m = seal(&other, "x");
    assert_int_equal(give(&p.r, &m, 0), PUBSUB_DROPPED);
}

static void test_last_epoch_opens_until_the_next_is_seen(void **state)
{
    struct pair p;
    struct pubsub_grant g;
    (void)state;
    pair_init(&p);
    struct message old1 = seal(&p.w, "1"), old2 = seal(&p.w, "2"), old3 = seal(&p.w, "3");
    pubsub_writer_change_epoch(&p.w);
    struct message new1 = seal(&p.w, "4"), new2 = seal(&p.w, "5");
    assert_int_equal(give(&p.r, &new1, 0), PUBSUB_ASK);
    assert_int_equal(p.r.stats.n_unknown, 1);
    pubsub_grant_of(&p.w, &g);
    pubsub_reader_adopt(&p.r, &g, 0);
    assert_int_equal(give(&p.r, &old1, 1000), PUBSUB_OPENED); // was under way
    assert_int_equal(give(&p.r, &old2, 1000LL * PUBSUB_OVERLAP_MS), PUBSUB_DROPPED);
    assert_int_equal(p.r.stats.n_stale, 1);
    assert_int_equal(give(&p.r, &new1, 2000), PUBSUB_OPENED);
    assert_int_equal(give(&p.r, &old3, 2000), PUBSUB_DROPPED);
    assert_int_equal(give(&p.r, &new2, 2000), PUBSUB_OPENED);
}

// Who was revoked keeps the old key: nothing sealed after the change opens with it, and nothing
// that is sealed with it is taken by those who have the new one.
static void test_old_key_opens_nothing_new(void **state)
{
    struct pair p;
    struct pubsub_grant g;
    (void)state;
    pair_init(&p);
    struct pubsub_reader revoked = p.r;
    struct pubsub_writer with_old_key = p.w;
    pubsub_writer_change_epoch(&p.w);
    pubsub_grant_of(&p.w, &g);
    pubsub_reader_adopt(&p.r, &g, 0);
    struct message fresh = seal(&p.w, "secret");
    assert_int_equal(give(&revoked, &fresh, 0), PUBSUB_ASK);
    revoked.now.epoch = p.w.epoch; // its key under the new number
    assert_int_equal(give(&revoked, &fresh, 0), PUBSUB_DROPPED);
    assert_int_equal(give(&p.r, &fresh, 0), PUBSUB_OPENED);
    with_old_key.number = p.w.number;
    struct message late = seal(&with_old_key, "late");
    assert_int_equal(give(&p.r, &late, 0), PUBSUB_DROPPED);
}

static void test_old_answers_change_nothing(void **state)
{
    struct pair p;
    struct pubsub_grant old, now;
    (void)state;
    pair_init(&p);
    pubsub_grant_of(&p.w, &old);
    pubsub_writer_change_epoch(&p.w);
    pubsub_grant_of(&p.w, &now);
    pubsub_reader_adopt(&p.r, &now, 0);
    pubsub_reader_adopt(&p.r, &old, 0);
    struct message m = seal(&p.w, "x");
    assert_int_equal(give(&p.r, &m, 0), PUBSUB_OPENED);
}

static void test_another_publisher_is_asked_for(void **state)
{
    struct pair p, again;
    struct pubsub_grant g;
    (void)state;
    pair_init(&p);
    pair_init(&again);
    struct message before = seal(&again.w, "seen by the answer"), m = seal(&again.w, "x");
    assert_int_equal(give(&p.r, &before, 0), PUBSUB_ASK);
    again.w.number--;
    pubsub_grant_of(&again.w, &g);
    pubsub_reader_adopt(&p.r, &g, 0);
    assert_int_equal(give(&p.r, &before, 0), PUBSUB_DROPPED);
    assert_int_equal(give(&p.r, &m, 0), PUBSUB_OPENED);
}

static void test_too_long_is_refused(void **state)
{
    static uint8_t big[PUBSUB_MAX_PAYLOAD + 1];
    struct pair p;
    AUTO(buf_done) struct buf b;
    (void)state;
    pair_init(&p);
    buf_init(&b, sizeof big * 2);
    assert_int_equal(pubsub_seal(&p.w, big, sizeof big, &b, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(pubsub_seal(&p.w, big, PUBSUB_MAX_PAYLOAD, &b, NULL), STATUS_OK);
}

// ---------------------------------------------------------------- sockets

struct inbox {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned n, n_connects, n_losses;
    bool held; // the subscriber does not take what comes
    uint8_t last;
};

static void on_message(void *ud, uint8_t *msg, size_t n)
{
    struct inbox *in = ud;
    pthread_mutex_lock(&in->lock);
    while (in->held)
        pthread_cond_wait(&in->cond, &in->lock);
    in->n++;
    in->last = msg[n - 1];
    pthread_cond_broadcast(&in->cond);
    pthread_mutex_unlock(&in->lock);
}

static void on_connected(void *ud, bool is_connected)
{
    struct inbox *in = ud;
    pthread_mutex_lock(&in->lock);
    in->n_connects += is_connected;
    in->n_losses += !is_connected;
    pthread_cond_broadcast(&in->cond);
    pthread_mutex_unlock(&in->lock);
}

static const struct pubsub_events events = {.message = on_message, .connected = on_connected};

static void inbox_init(struct inbox *in)
{
    pthread_condattr_t a;
    *in = (struct inbox){.n = 0};
    pthread_mutex_init(&in->lock, NULL);
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&in->cond, &a);
    pthread_condattr_destroy(&a);
}

static void inbox_done(struct inbox *in)
{
    pthread_cond_destroy(&in->cond);
    pthread_mutex_destroy(&in->lock);
}

static void wait_for(struct inbox *in, const unsigned *what, unsigned n)
{
    int64_t until_us = time_deadline_in_ms(10000);
    struct timespec ts = {.tv_sec = until_us / 1000000, .tv_nsec = until_us % 1000000 * 1000};
    pthread_mutex_lock(&in->lock);
    int e = 0;
    while (*what < n && e != ETIMEDOUT)
        e = pthread_cond_timedwait(&in->cond, &in->lock, &ts);
    unsigned got = *what;
    pthread_mutex_unlock(&in->lock);
    if (got < n)
        fail_msg("%u instead of %u", got, n);
}

static void hold(struct inbox *in, bool held)
{
    pthread_mutex_lock(&in->lock);
    in->held = held;
    pthread_cond_broadcast(&in->cond);
    pthread_mutex_unlock(&in->lock);
}

static void send_to(struct pubsub_publisher *p, const struct pubsub_topic *t, uint8_t last)
{
    struct err err = ERR_INIT;
    uint8_t msg[64] = {0};
    memcpy(msg, t->id, sizeof t->id);
    msg[sizeof msg - 1] = last;
    must(pubsub_publisher_send(p, msg, sizeof msg, &err), &err);
}

// nng's defaults lose most of such a burst.
static void burst(const char *url)
{
    enum { N = 2000 };
    struct inbox in;
    struct err err = ERR_INIT;
    char real[RPC_URL_SIZE];
    struct pubsub_topic topic = pubsub_topic_of("auth"), other = pubsub_topic_of("store");
    inbox_init(&in);
    {
        AUTO(pubsub_publisher_free_p) struct pubsub_publisher *p = NULL;
        AUTO(pubsub_subscriber_free_p) struct pubsub_subscriber *s = NULL;
        must(pubsub_publisher_new(url, real, &p, &err), &err);
        must(pubsub_subscriber_new(real, &topic, &events, &in, &s, &err), &err);
        wait_for(&in, &in.n_connects, 1);
        // The publisher's side of the connection is there a moment later.
        for (int64_t end_us = time_deadline_in_ms(10000);
             !pubsub_publisher_n_peers(p) && time_left_ms(end_us);)
            sched_yield();
        hold(&in, true);
        for (unsigned i = 0; i < N; i++) {
            send_to(p, &topic, (uint8_t)(i + 1));
            if (i % 100 == 0)
                send_to(p, &other, 0); // filtered out
        }
        hold(&in, false);
        wait_for(&in, &in.n, N);
        assert_int_equal(in.n, N);
        assert_int_equal(in.last, (uint8_t)N);
    }
    inbox_done(&in);
}

static void test_a_burst_arrives_over_tcp(void **state)
{
    (void)state;
    burst("tcp://127.0.0.1:0");
}

static void test_a_burst_arrives_over_inproc(void **state)
{
    (void)state;
    burst("inproc://pubsub-test");
}

static void test_subscriber_comes_back_to_a_new_publisher(void **state)
{
    struct inbox in;
    struct err err = ERR_INIT;
    char url[RPC_URL_SIZE], real[RPC_URL_SIZE];
    (void)state;
    snprintf(url, sizeof url, "ipc:///tmp/cauce-pubsub-test-%ld", (long)getpid());
    inbox_init(&in);
    {
        AUTO(pubsub_subscriber_free_p) struct pubsub_subscriber *s = NULL;
        AUTO(pubsub_publisher_free_p) struct pubsub_publisher *p = NULL;
        must(pubsub_subscriber_new(url, NULL, &events, &in, &s, &err), &err);
        must(pubsub_publisher_new(url, real, &p, &err), &err);
        assert_string_equal(real, url);
        wait_for(&in, &in.n_connects, 1);
        pubsub_publisher_free(TAKE(p));
        wait_for(&in, &in.n_losses, 1);
        must(pubsub_publisher_new(url, real, &p, &err), &err);
        wait_for(&in, &in.n_connects, 2);
    }
    inbox_done(&in);
}

static void test_address_in_use_is_said(void **state)
{
    struct err err = ERR_INIT;
    char real[RPC_URL_SIZE], other[RPC_URL_SIZE];
    AUTO(pubsub_publisher_free_p) struct pubsub_publisher *p = NULL;
    AUTO(pubsub_publisher_free_p) struct pubsub_publisher *second = NULL;
    (void)state;
    must(pubsub_publisher_new("tcp://127.0.0.1:0", real, &p, &err), &err);
    assert_int_equal(pubsub_publisher_new(real, other, &second, &err), STATUS_ALREADY_EXISTS);
    assert_non_null(strstr(err.msg, real));
}

static int setup(void **state)
{
    (void)state;
    return crypto_init(NULL) == STATUS_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    rpc_fini();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opens_what_was_sealed),
        cmocka_unit_test(test_every_flipped_bit_and_every_cut_is_refused),
        cmocka_unit_test(test_repeated_and_overtaken_are_dropped_and_gaps_counted),
        cmocka_unit_test(test_another_reader_cannot_speak_for_the_publisher),
        cmocka_unit_test(test_messages_of_another_topic_are_refused),
        cmocka_unit_test(test_last_epoch_opens_until_the_next_is_seen),
        cmocka_unit_test(test_old_key_opens_nothing_new),
        cmocka_unit_test(test_old_answers_change_nothing),
        cmocka_unit_test(test_another_publisher_is_asked_for),
        cmocka_unit_test(test_too_long_is_refused),
        cmocka_unit_test(test_a_burst_arrives_over_tcp),
        cmocka_unit_test(test_a_burst_arrives_over_inproc),
        cmocka_unit_test(test_subscriber_comes_back_to_a_new_publisher),
        cmocka_unit_test(test_address_in_use_is_said),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
