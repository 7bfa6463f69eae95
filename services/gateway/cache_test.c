#include "gateway/cache.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/time.h"

static atomic_int n_alive; // objects not destroyed yet

struct thing {
    struct edge_object base;
    int value;
};
static void destroy(struct edge_object *o)
{
    atomic_fetch_sub(&n_alive, 1);
    mem_free(o);
}
static struct edge_object *thing(int value, size_t bytes)
{
    struct thing *t = mem_alloc(sizeof *t);
    edge_object_init(&t->base, bytes, destroy);
    t->value = value;
    atomic_fetch_add(&n_alive, 1);
    return &t->base;
}

struct result {
    int n, value;
    enum status status;
    char msg[240];
};
static void done(void *ud, enum status s, struct edge_object *o, const struct err *err)
{
    struct result *r = ud;
    r->n++;
    r->status = s;
    r->value = o ? ((struct thing *)(void *)o)->value : -1;
    snprintf(r->msg, sizeof r->msg, "%s", err ? err->msg : "");
}

static struct edge_answer get(struct edge_cache *c, const char *key, struct result *r)
{
    struct edge_answer a;
    assert_int_equal(edge_cache_get(c, key, done, r, &a, NULL), STATUS_OK);
    return a;
}

static int hit_value(struct edge_cache *c, const char *key)
{
    struct result r = {0};
    struct edge_answer a = get(c, key, &r);
    int v = a.hit ? ((struct thing *)(void *)a.hit)->value : -1;
    edge_object_unref(a.hit);
    if (a.fetch && !a.hit)
        edge_cache_put(c, key, STATUS_UNAVAILABLE, NULL, NULL);
    return v;
}

static void put(struct edge_cache *c, const char *key, int value, size_t bytes)
{
    struct result r = {0};
    struct edge_answer a = get(c, key, &r);
    assert_true(a.fetch);
    edge_cache_put(c, key, STATUS_OK, thing(value, bytes), NULL);
    assert_int_equal(r.value, value);
}

static void test_one_fetch_serves_all_who_wait(void **state)
{
    (void)state;
    AUTO(edge_cache_free_p) struct edge_cache *c = edge_cache_new(100, 0);
    struct result r[3] = {{0}};
    assert_true(get(c, "k", &r[0]).fetch);
    assert_false(get(c, "k", &r[1]).fetch);
    assert_false(get(c, "k", &r[2]).fetch);
    edge_cache_put(c, "k", STATUS_OK, thing(7, 10), NULL);
    for (int i = 0; i < 3; i++)
        assert_true(r[i].n == 1 && r[i].status == STATUS_OK && r[i].value == 7);
    assert_int_equal(hit_value(c, "k"), 7);
    struct edge_stats s;
    edge_cache_get_stats(c, &s);
    assert_true(s.hits == 1 && s.misses == 1 && s.joined == 2 && s.bytes == 10 && s.objects == 1);
}

static void test_failure_reaches_all_and_is_not_kept(void **state)
{
    (void)state;
    AUTO(edge_cache_free_p) struct edge_cache *c = edge_cache_new(100, 0);
    struct result r[2] = {{0}};
    struct err err;
    err_set(&err, STATUS_UNAVAILABLE, "origin away");
    assert_true(get(c, "k", &r[0]).fetch);
    get(c, "k", &r[1]);
    edge_cache_put(c, "k", STATUS_UNAVAILABLE, NULL, &err);
    for (int i = 0; i < 2; i++)
        assert_true(r[i].n == 1 && r[i].status == STATUS_UNAVAILABLE &&
                    strcmp(r[i].msg, "origin away") == 0);
    assert_true(get(c, "k", &r[0]).fetch); // tried again
    edge_cache_put(c, "k", STATUS_OK, thing(1, 1), NULL);
}

static void test_quota_holds_and_oldest_use_goes_first(void **state)
{
    (void)state;
    AUTO(edge_cache_free_p) struct edge_cache *c = edge_cache_new(30, 0);
    put(c, "a", 1, 10);
    put(c, "b", 2, 10);
    put(c, "c", 3, 10);
    assert_int_equal(hit_value(c, "a"), 1); // now b is the oldest
    put(c, "d", 4, 10);
    assert_int_equal(hit_value(c, "b"), -1);
    assert_int_equal(hit_value(c, "a"), 1);
    put(c, "big", 5, 31); // served, never kept
    assert_int_equal(hit_value(c, "big"), -1);
    char key[16];
    for (int i = 0; i < 500; i++) {
        struct edge_stats s;
        snprintf(key, sizeof key, "k%d", i);
        put(c, key, i, (size_t)(i % 13));
        edge_cache_get_stats(c, &s);
        assert_true(s.bytes <= 30);
    }
}

static void test_evicted_object_lives_while_used(void **state)
{
    (void)state;
    int before = atomic_load(&n_alive);
    AUTO(edge_cache_free_p) struct edge_cache *c = edge_cache_new(10, 0);
    struct result r = {0};
    put(c, "a", 1, 10);
    struct edge_answer a = get(c, "a", &r);
    put(c, "b", 2, 10);
    assert_int_equal(((struct thing *)(void *)a.hit)->value, 1);
    assert_int_equal(atomic_load(&n_alive), before + 2);
    edge_object_unref(a.hit);
    assert_int_equal(atomic_load(&n_alive), before + 1);
}

static void test_refresh_in_the_background(void **state)
{
    (void)state;
    AUTO(edge_cache_free_p) struct edge_cache *c = edge_cache_new(100, 1);
    struct result r = {0};
    put(c, "k", 1, 10);
    struct edge_answer a = {0};
    for (int64_t end = time_deadline_in_ms(5000); !a.fetch && time_left_ms(end) > 0;) {
        edge_object_unref(a.hit);
        a = get(c, "k", &r);
    }
    assert_true(a.hit && a.fetch); // old enough: served, and somebody shall look
    edge_object_unref(a.hit);
    a = get(c, "k", &r);
    assert_true(a.hit && !a.fetch); // one at a time
    edge_object_unref(a.hit);
    edge_cache_put(c, "k", STATUS_UNAVAILABLE, NULL, NULL);
    struct edge_stats s;
    edge_cache_get_stats(c, &s);
    assert_int_equal(s.objects, 1); // away: what we have stays
    for (a = get(c, "k", &r); !a.fetch; a = get(c, "k", &r))
        edge_object_unref(a.hit);
    edge_object_unref(a.hit);
    edge_cache_put(c, "k", STATUS_NOT_FOUND, NULL, NULL);
    edge_cache_get_stats(c, &s);
    assert_int_equal(s.objects, 0); // deleted: it goes
    assert_int_equal(r.n, 0);
}

static void test_out_of_memory_and_long_keys_are_said(void **state)
{
    (void)state;
    AUTO(edge_cache_free_p) struct edge_cache *c = edge_cache_new(100, 0);
    struct edge_answer a;
    struct result r = {0};
    for (int i = 0; i < 2; i++) {
        mem_fail_at(i);
        assert_int_equal(edge_cache_get(c, "k", done, &r, &a, NULL), STATUS_RESOURCE_EXHAUSTED);
    }
    mem_fail_at(-1);
    char key[EDGE_KEY_SIZE + 1];
    memset(key, 'k', sizeof key - 1);
    key[sizeof key - 1] = '\0';
    assert_int_equal(edge_cache_get(c, key, done, &r, &a, NULL), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(r.n, 0);
}

struct racer {
    struct edge_cache *c;
    atomic_int *n_answers;
};
static void count(void *ud, enum status s, struct edge_object *o, const struct err *err)
{
    (void)err;
    assert_true(s == STATUS_OK && o);
    atomic_fetch_add((atomic_int *)ud, 1);
}
static void *race(void *ud)
{
    struct racer *r = ud;
    for (int i = 0; i < 3000; i++) {
        char key[16];
        struct edge_answer a;
        snprintf(key, sizeof key, "k%d", i % 17);
        assert_int_equal(edge_cache_get(r->c, key, count, r->n_answers, &a, NULL), STATUS_OK);
        if (a.hit)
            atomic_fetch_add(r->n_answers, 1);
        edge_object_unref(a.hit);
        if (a.fetch)
            edge_cache_put(r->c, key, STATUS_OK, thing(i, 10), NULL);
    }
    return NULL;
}

static void test_threads_each_get_one_answer_per_question(void **state)
{
    (void)state;
    int before = atomic_load(&n_alive);
    atomic_int n_answers = 0;
    struct racer r = {edge_cache_new(100, 0), &n_answers};
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, race, &r), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(atomic_load(&n_answers), 4 * 3000);
    edge_cache_free(r.c);
    assert_int_equal(atomic_load(&n_alive), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_fetch_serves_all_who_wait),
        cmocka_unit_test(test_failure_reaches_all_and_is_not_kept),
        cmocka_unit_test(test_quota_holds_and_oldest_use_goes_first),
        cmocka_unit_test(test_evicted_object_lives_while_used),
        cmocka_unit_test(test_refresh_in_the_background),
        cmocka_unit_test(test_out_of_memory_and_long_keys_are_said),
        cmocka_unit_test(test_threads_each_get_one_answer_per_question),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
