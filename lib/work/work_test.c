#include "work/work.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <time.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/time.h"

// A door that tests wait at, with a deadline.
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int count;
};
#define GATE_INIT                                                                                  \
    {                                                                                              \
        PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0                                     \
    }

static void gate_add(void *ud)
{
    struct gate *g = ud;
    pthread_mutex_lock(&g->lock);
    g->count++;
    pthread_cond_broadcast(&g->cond);
    pthread_mutex_unlock(&g->lock);
}

static void gate_wait(void *ud, int count)
{
    struct gate *g = ud;
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 20;
    pthread_mutex_lock(&g->lock);
    while (g->count < count)
        assert_int_equal(pthread_cond_timedwait(&g->cond, &g->lock, &end), 0);
    pthread_mutex_unlock(&g->lock);
}

struct blocker { // a task that says it began and then waits to be let go
    struct gate began, go;
};
#define BLOCKER_INIT                                                                               \
    {                                                                                              \
        GATE_INIT, GATE_INIT                                                                       \
    }
static void block(void *ud)
{
    struct blocker *b = ud;
    gate_add(&b->began);
    gate_wait(&b->go, 1);
}

// ---------------------------------------------------------------- pool

static void test_pool_runs_everything_before_it_stops(void **state)
{
    (void)state;
    struct gate g = GATE_INIT;
    struct work_pool *p = work_pool_new("test", 3, 1000);
    for (int i = 0; i < 500; i++)
        assert_true(work_pool_submit(p, gate_add, &g));
    work_pool_stop(p);
    assert_int_equal(g.count, 500);
    assert_false(work_pool_submit(p, gate_add, &g));
    work_pool_stop(p);
    work_pool_free(p);
}

static void test_pool_full_queue_refuses(void **state)
{
    (void)state;
    struct blocker b = BLOCKER_INIT;
    struct gate g = GATE_INIT;
    struct work_pool *p = work_pool_new("test", 1, 2);
    assert_true(work_pool_submit(p, block, &b));
    gate_wait(&b.began, 1);
    assert_true(work_pool_submit(p, gate_add, &g));
    assert_true(work_pool_submit(p, gate_add, &g));
    assert_false(work_pool_submit(p, gate_add, &g));
    assert_int_equal(work_pool_n_queued(p), 2);
    gate_add(&b.go);
    gate_wait(&g, 2);
    work_pool_free(p);
    work_pool_free(NULL);
}

static void test_work_out_of_memory_is_said(void **state)
{
    (void)state;
    mem_fail_at(0);
    assert_null(work_pool_new("test", 1, 1));
    mem_fail_at(0);
    assert_null(work_timers_new());
    mem_fail_at(0);
    assert_null(cancel_new(NULL));
    mem_fail_at(1);
    assert_null(cancel_new(NULL));
    mem_fail_at(-1);

    AUTO(work_pool_free_p) struct work_pool *p = work_pool_new("test", 1, 1);
    struct work_timers *t = work_timers_new();
    AUTO(cancel_unref_p) struct cancel *c = cancel_new(NULL);
    struct work_strand *s = work_strand_new(p);
    mem_fail_at(0);
    assert_false(work_pool_submit(p, gate_add, NULL));
    mem_fail_at(0);
    assert_null(work_strand_new(p));
    mem_fail_at(0);
    assert_false(work_strand_submit(s, gate_add, NULL));
    mem_fail_at(0);
    assert_null(cancel_hook(c, gate_add, NULL));
    mem_fail_at(0);
    assert_null(work_timer_start(t, TIME_NEVER, gate_add, NULL));
    mem_fail_at(1);
    assert_null(work_timer_start(t, TIME_NEVER, gate_add, NULL));
    mem_fail_at(-1);
    work_strand_free(s);
    work_timers_free(t);
}

// ---------------------------------------------------------------- strand

struct ordered {
    atomic_int inside;
    int next; // written by the strand's tasks alone: TSan sees whether they really exclude each
              // other
    bool bad;
};
struct step {
    struct ordered *o;
    int number;
};
static void step(void *ud)
{
    struct step *s = ud;
    if (atomic_fetch_add(&s->o->inside, 1) != 0 || s->o->next != s->number)
        s->o->bad = true;
    s->o->next++;
    atomic_fetch_sub(&s->o->inside, 1);
}

static void test_strand_keeps_order_one_at_a_time(void **state)
{
    (void)state;
    enum { N = 2000 };
    static struct step steps[2][N];
    struct ordered o[2] = {{0}, {0}};
    AUTO(work_pool_free_p) struct work_pool *p = work_pool_new("test", 4, 1);
    struct work_strand *s[2] = {work_strand_new(p), work_strand_new(p)};
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 2; k++) {
            steps[k][i] = (struct step){&o[k], i};
            assert_true(work_strand_submit(s[k], step, &steps[k][i]));
        }
    for (int k = 0; k < 2; k++) {
        work_strand_free(s[k]); // drops none
        assert_false(o[k].bad);
        assert_int_equal(o[k].next, N);
    }
}

struct self_free {
    struct work_strand *s;
    struct gate g;
};
static void free_self(void *ud)
{
    struct self_free *f = ud;
    work_strand_free(f->s);
    gate_add(&f->g);
}

static void test_strand_freed_from_its_task_runs_the_rest(void **state)
{
    (void)state;
    struct self_free f = {.g = GATE_INIT};
    struct blocker b = BLOCKER_INIT;
    AUTO(work_pool_free_p) struct work_pool *p = work_pool_new("test", 2, 8);
    f.s = work_strand_new(p);
    assert_true(work_strand_submit(f.s, block, &b));
    assert_true(work_strand_submit(f.s, free_self, &f));
    assert_true(work_strand_submit(f.s, gate_add, &f.g));
    gate_wait(&b.began, 1);
    assert_int_equal(work_strand_n_queued(f.s), 2);
    gate_add(&b.go);
    gate_wait(&f.g, 2);
}

static void test_strand_stopped_pool_runs_what_was_accepted(void **state)
{
    (void)state;
    struct blocker b = BLOCKER_INIT;
    struct gate g = GATE_INIT;
    struct work_pool *p = work_pool_new("test", 1, 8);
    struct work_strand *s = work_strand_new(p);
    assert_true(work_strand_submit(s, block, &b));
    for (int i = 0; i < 50; i++) // several turns
        assert_true(work_strand_submit(s, gate_add, &g));
    gate_add(&b.go);
    work_pool_stop(p);
    assert_int_equal(g.count, 50);
    assert_false(work_strand_submit(s, gate_add, &g));
    work_strand_free(s);
    work_pool_free(p);
}

// ---------------------------------------------------------------- timers

struct sequence {
    struct gate g;
    int order[3];
};
struct shot {
    struct sequence *seq;
    int id;
};
static void shoot(void *ud)
{
    struct shot *s = ud;
    s->seq->order[s->seq->g.count] = s->id; // timer thread only, until the gate says so
    gate_add(&s->seq->g);
}

static void test_timers_fire_in_order_of_deadlines(void **state)
{
    (void)state;
    struct sequence seq = {.g = GATE_INIT};
    struct shot shots[] = {{&seq, 0}, {&seq, 1}, {&seq, 2}};
    struct work_timers *t = work_timers_new();
    int64_t now = time_mono_us();
    struct work_timer *tm[] = {
        work_timer_start(t, now + 60000, shoot, &shots[0]),
        work_timer_start(t, now + 20000, shoot, &shots[1]),
        work_timer_start(t, now + 40000, shoot, &shots[2]),
    };
    gate_wait(&seq.g, 3);
    assert_true(time_mono_us() >= now + 60000);
    assert_int_equal(seq.order[0], 1);
    assert_int_equal(seq.order[1], 2);
    assert_int_equal(seq.order[2], 0);
    for (int i = 0; i < 3; i++)
        assert_false(work_timer_cancel(tm[i]));
    assert_false(work_timer_cancel(NULL));
    work_timers_free(t);
}

static void test_timers_many_cancelled_never_fire(void **state)
{
    (void)state;
    struct gate g = GATE_INIT, never = GATE_INIT;
    struct work_timers *t = work_timers_new();
    struct work_timer *tm[200];
    int64_t soon = time_mono_us() + 100000;
    for (int i = 0; i < 200; i++)
        tm[i] = work_timer_start(t, soon + (i * 7919) % 200, gate_add, i % 2 ? &g : &never);
    for (int i = 0; i < 200; i += 2)
        assert_true(work_timer_cancel(tm[(i * 37) % 200]));
    gate_wait(&g, 100);
    assert_int_equal(never.count, 0);
    for (int i = 1; i < 200; i += 2)
        work_timer_cancel(tm[i]);
    assert_non_null(work_timer_start(t, TIME_NEVER, gate_add, &never));
    work_timers_free(t); // also what is still pending
    assert_int_equal(never.count, 0);
}

struct self_cancel {
    struct gate ready, done;
    struct work_timer *tm;
};
static void cancel_self(void *ud)
{
    struct self_cancel *s = ud;
    gate_wait(&s->ready, 1);
    work_timer_cancel(s->tm);
    gate_add(&s->done);
}

static void test_timer_may_cancel_itself(void **state)
{
    (void)state;
    struct self_cancel s = {.ready = GATE_INIT, .done = GATE_INIT};
    struct work_timers *t = work_timers_new();
    s.tm = work_timer_start(t, time_mono_us(), cancel_self, &s);
    gate_add(&s.ready);
    gate_wait(&s.done, 1);
    work_timers_free(t);
}

static void test_timer_cancel_waits_for_a_running_one(void **state)
{
    (void)state;
    struct blocker b = BLOCKER_INIT;
    AUTO(work_pool_free_p) struct work_pool *p = work_pool_new("test", 1, 1);
    struct work_timers *t = work_timers_new();
    struct work_timer *tm = work_timer_start(t, time_mono_us(), block, &b);
    gate_wait(&b.began, 1);
    assert_true(work_pool_submit(p, gate_add, &b.go));
    assert_false(work_timer_cancel(tm));
    assert_int_equal(b.go.count, 1); // it could only return after the callback had seen this
    work_timers_free(t);
}

// ---------------------------------------------------------------- cancel

static void test_cancel_reaches_descendants_not_ancestors(void **state)
{
    (void)state;
    struct gate g = GATE_INIT;
    AUTO(cancel_unref_p) struct cancel *root = cancel_new(NULL);
    AUTO(cancel_unref_p) struct cancel *mid = cancel_new(root);
    AUTO(cancel_unref_p) struct cancel *leaf = cancel_new(mid);
    AUTO(cancel_unref_p) struct cancel *other = cancel_new(root);
    struct cancel_hook *h[] = {
        cancel_hook(root, gate_add, &g),
        cancel_hook(mid, gate_add, &g),
        cancel_hook(leaf, gate_add, &g),
        cancel_hook(other, gate_add, &g),
    };
    assert_false(cancel_is_fired(leaf));
    assert_false(cancel_is_fired(NULL));
    cancel_fire(mid);
    cancel_fire(mid);
    assert_int_equal(g.count, 2);
    assert_true(cancel_is_fired(leaf));
    assert_false(cancel_is_fired(root));
    assert_false(cancel_is_fired(other));

    AUTO(cancel_unref_p) struct cancel *late = cancel_new(leaf);
    assert_true(cancel_is_fired(late));
    struct cancel_hook *at_once = cancel_hook(late, gate_add, &g);
    assert_int_equal(g.count, 3);
    cancel_unhook(at_once);
    for (int i = 0; i < 4; i++)
        cancel_unhook(h[i]);
    cancel_fire(root);
    assert_int_equal(g.count, 3); // nothing is hooked any more
    cancel_unhook(NULL);
}

static void test_cancel_child_keeps_the_tree_alive(void **state)
{
    (void)state;
    struct gate g = GATE_INIT;
    struct cancel *root = cancel_new(NULL);
    struct cancel *child = cancel_new(root);
    struct cancel_hook *h = cancel_hook(child, gate_add, &g);
    cancel_unref(root);
    cancel_unref(child); // the hook still holds it
    cancel_unhook(h);
    assert_int_equal(g.count, 0);
}

struct self_unhook {
    struct cancel_hook *h;
    int n;
};
static void unhook_self(void *ud)
{
    struct self_unhook *s = ud;
    s->n++;
    cancel_unhook(s->h);
}

static void test_cancel_hook_may_remove_itself(void **state)
{
    (void)state;
    struct self_unhook s = {0};
    AUTO(cancel_unref_p) struct cancel *c = cancel_new(NULL);
    s.h = cancel_hook(c, unhook_self, &s);
    cancel_fire(c);
    assert_int_equal(s.n, 1);
}

static void fire(void *ud)
{
    cancel_fire(ud);
}

static void test_cancel_unhook_waits_for_a_running_hook(void **state)
{
    (void)state;
    struct blocker b = BLOCKER_INIT;
    AUTO(work_pool_free_p) struct work_pool *p = work_pool_new("test", 2, 4);
    AUTO(cancel_unref_p) struct cancel *c = cancel_new(NULL);
    struct cancel_hook *h = cancel_hook(c, block, &b);
    assert_true(work_pool_submit(p, fire, c));
    gate_wait(&b.began, 1);
    assert_true(work_pool_submit(p, gate_add, &b.go));
    cancel_unhook(h);
    assert_int_equal(b.go.count, 1);
    work_pool_stop(p);
}

// Requests come and go while the server's token is fired: nothing is lost, nothing runs twice.
struct storm {
    struct cancel *root;
    atomic_int ran, seen_fired;
};
static void ran(void *ud)
{
    struct storm *s = ud;
    atomic_fetch_add(&s->ran, 1);
}
static void request(void *ud)
{
    struct storm *s = ud;
    AUTO(cancel_unref_p) struct cancel *c = cancel_new(s->root);
    struct cancel_hook *h = cancel_hook(c, ran, s);
    cancel_unhook(h);
    if (cancel_is_fired(c))
        atomic_fetch_add(&s->seen_fired, 1);
}

static void test_cancel_storm(void **state)
{
    (void)state;
    struct storm s = {.root = cancel_new(NULL)};
    struct work_pool *p = work_pool_new("test", 4, 5000);
    for (int i = 0; i < 2000; i++) {
        assert_true(work_pool_submit(p, request, &s));
        if (i == 1000)
            cancel_fire(s.root);
    }
    work_pool_free(p);
    assert_true(atomic_load(&s.ran) <= atomic_load(&s.seen_fired));
    assert_true(atomic_load(&s.ran) >= 999); // all that began after the fire
    cancel_unref(s.root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_runs_everything_before_it_stops),
        cmocka_unit_test(test_pool_full_queue_refuses),
        cmocka_unit_test(test_work_out_of_memory_is_said),
        cmocka_unit_test(test_strand_keeps_order_one_at_a_time),
        cmocka_unit_test(test_strand_freed_from_its_task_runs_the_rest),
        cmocka_unit_test(test_strand_stopped_pool_runs_what_was_accepted),
        cmocka_unit_test(test_timers_fire_in_order_of_deadlines),
        cmocka_unit_test(test_timers_many_cancelled_never_fire),
        cmocka_unit_test(test_timer_may_cancel_itself),
        cmocka_unit_test(test_timer_cancel_waits_for_a_running_one),
        cmocka_unit_test(test_cancel_reaches_descendants_not_ancestors),
        cmocka_unit_test(test_cancel_child_keeps_the_tree_alive),
        cmocka_unit_test(test_cancel_hook_may_remove_itself),
        cmocka_unit_test(test_cancel_unhook_waits_for_a_running_hook),
        cmocka_unit_test(test_cancel_storm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
