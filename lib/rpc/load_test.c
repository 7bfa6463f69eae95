// Many calls at once on one connection: all of them end well, and hold a bounded amount of memory.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "rpc/internal.h"
#include "rpc/test_util.h"

#define LONG_MS 120000

struct load {
    struct rpc_client *client;
    int method;
    size_t size;
    uint8_t *data;
    bool is_inline; // answers are told of where they come
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned n_left, n_active, n_failed; // to begin, in flight
    unsigned n_idle;                     // never begun
};

static bool begin_one(struct load *l);

static void on_reply(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    struct load *l = ud;
    const Note *n = (const Note *)(void *)reply;
    bool ok = s == STATUS_OK && n->data.len == l->size &&
              (l->size == 0 || memcmp(n->data.data, l->data, l->size) == 0);
    rpc_message_free(reply);
    if (!ok)
        print_error("%s: %s\n", status_name(s), err->msg);
    if (!ok || !begin_one(l)) {
        pthread_mutex_lock(&l->lock);
        l->n_failed += !ok;
        l->n_active--;
        pthread_cond_signal(&l->cond);
        pthread_mutex_unlock(&l->lock);
    }
}

static bool begin_one(struct load *l)
{
    Note req;
    pthread_mutex_lock(&l->lock);
    bool more = l->n_left > 0;
    l->n_left -= more;
    pthread_mutex_unlock(&l->lock);
    if (!more)
        return false;
    note_init(&req);
    req.data = (ProtobufCBinaryData){.len = l->size, .data = l->data};
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(LONG_MS), .done_inline = l->is_inline};
    rpc_unary_async(l->client, &test_service.methods[l->method], &o, &req.base, on_reply, l);
    return true;
}

// n calls, in_flight of them at a time; none may fail.
static void run_load(struct rpc_client *c, int method, bool is_inline, size_t size, unsigned n,
                     unsigned in_flight)
{
    struct load l = {.client = c,
                     .method = method,
                     .is_inline = is_inline,
                     .size = size,
                     .data = mem_alloc(size),
                     .lock = PTHREAD_MUTEX_INITIALIZER,
                     .cond = PTHREAD_COND_INITIALIZER,
                     .n_left = n,
                     .n_active = in_flight};
    assert_non_null(l.data);
    note_fill(l.data, size, 7);
    for (unsigned i = 0; i < in_flight; i++) {
        if (!begin_one(&l)) // those before have been as quick as that
            l.n_idle++;
    }
    pthread_mutex_lock(&l.lock);
    while (l.n_active > l.n_idle)
        pthread_cond_wait(&l.cond, &l.lock); // every call has a deadline
    pthread_mutex_unlock(&l.lock);
    assert_int_equal(l.n_failed, 0);
    mem_free(l.data);
}

static size_t held(const struct conn *c)
{
    return c->rx_held_most;
}
static size_t answers_room(const struct conn *c)
{
    return c->calls.cap;
}

// The largest of the server's connections.
static size_t most_of(struct world *w, size_t (*get)(const struct conn *c))
{
    size_t n = 0, most = 0;
    struct conn **all = server_conns(w->s, &n);
    for (size_t i = 0; i < n; i++) {
        conn_lock(all[i]);
        most = get(all[i]) > most ? get(all[i]) : most;
        conn_unlock(all[i]);
        conn_unref(all[i]);
    }
    mem_free(all);
    return most;
}

static void test_large_messages_at_once_take_turns_in_bounded_memory(void **state)
{
    (void)state;
    enum { N = 64, SIZE = 512 << 10 };
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    run_load(c, ECHO, false, SIZE, N, N);
    // Parts of all, what waits for handlers, and the one that is being completed meanwhile.
    size_t bound = CONN_HELD_HIGH + (size_t)N * CONN_STREAM_CREDIT + CONN_HELD_WHOLE + 2 * SIZE;
    assert_in_range(most_of(&w, held), SIZE, bound);
    rpc_client_free(c);
    world_done(&w);
}

// The server counts a call until its STATUS is acknowledged: with answers that fill more than a
// record, too.
static void test_as_many_calls_as_allowed_are_never_too_many(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct rpc_client *c = world_client(&w);
    for (int is_inline = 0; is_inline < 2; is_inline++) {
        run_load(c, ECHO_INLINE, is_inline, 4096, 1000, 128);
        run_load(c, ECHO, is_inline, 4096, 1000, 128);
    }
    // Some of them always wait, so their buffer never runs empty; it must not grow with all it
    // held.
    assert_in_range(most_of(&w, answers_room), 1, 4U << 20);
    rpc_client_free(c);
    world_done(&w);
}

// ---------------------------------------------------------------- messages that are not copied

static struct rx_msg *received(const uint8_t *p, size_t n)
{
    struct rx_msg *m = mem_alloc(sizeof *m + n);
    assert_non_null(m);
    m->n = n;
    memcpy(m->data, p, n);
    return m;
}

// Field 1 is `data`, 2 `text`: tag, length in three bytes of varint, so many bytes.
static size_t put_field(uint8_t *dst, unsigned number, size_t n, int fill)
{
    dst[0] = (uint8_t)(number << 3 | 2);
    dst[1] = (uint8_t)((n & 0x7f) | 0x80);
    dst[2] = (uint8_t)((n >> 7 & 0x7f) | 0x80);
    dst[3] = (uint8_t)(n >> 14);
    memset(dst + 4, fill, n);
    return n + 4;
}

static void assert_taken_like_unpacked(const uint8_t *p, size_t n)
{
    struct err err = ERR_INIT;
    ProtobufCMessage *plain = NULL, *taken = NULL;
    enum status want = rpc_message_unpack(&note_descriptor, p, n, &plain, &err);
    assert_int_equal(message_take(&note_descriptor, received(p, n), &taken, &err), want);
    if (want != STATUS_OK)
        return;
    const Note *a = (const Note *)(void *)plain, *b = (const Note *)(void *)taken;
    assert_int_equal(a->data.len, b->data.len);
    assert_int_equal(a->number, b->number);
    assert_string_equal(a->text, b->text);
    if (a->data.len)
        assert_memory_equal(a->data.data, b->data.data, a->data.len);
    rpc_message_free(plain);
    rpc_message_free(taken);
}

static void test_a_large_field_is_read_where_it_lies(void **state)
{
    (void)state;
    enum { SMALL = 100, LARGE = 60000 };
    static const struct {
        unsigned number;
        size_t n;
    } rows[][4] = {
        {{1, LARGE}},
        {{1, SMALL}},
        {{2, SMALL}, {1, LARGE}},
        {{1, LARGE}, {2, LARGE}},
        {{1, SMALL}, {1, LARGE}, {2, SMALL}},
        {{1, LARGE}, {1, SMALL}, {2, SMALL}},
        {{1, LARGE}, {1, LARGE}},
        {{2, LARGE}, {1, LARGE}, {2, SMALL}, {9, LARGE}}, // 9: not known
    };
    static uint8_t p[4 * (LARGE + 4) + 2];
    for (size_t r = 0; r < N_ELEMENTS(rows); r++) {
        size_t n = 0;
        for (size_t i = 0; i < 4 && rows[r][i].number; i++)
            n += put_field(p + n, rows[r][i].number, rows[r][i].n, (int)('a' + i));
        p[n++] = 3 << 3; // number
        p[n++] = 42;
        assert_taken_like_unpacked(p, n);
        assert_taken_like_unpacked(p, n - 1); // cut short
        for (int64_t at = 0;; at++) {         // memory runs out
            struct err err = ERR_INIT;
            ProtobufCMessage *m = NULL;
            struct rx_msg *rx = received(p, n);
            mem_fail_at(at);
            enum status s = message_take(&note_descriptor, rx, &m, &err);
            bool was_all = mem_n_allocs() <= at;
            mem_fail_at(-1);
            assert_int_equal(s, was_all ? STATUS_OK : STATUS_RESOURCE_EXHAUSTED);
            rpc_message_free(m);
            if (was_all)
                break;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_large_messages_at_once_take_turns_in_bounded_memory),
        cmocka_unit_test(test_as_many_calls_as_allowed_are_never_too_many),
        cmocka_unit_test(test_a_large_field_is_read_where_it_lies),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
