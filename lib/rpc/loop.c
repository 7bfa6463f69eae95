// Event loops on epoll.
//
// A turn: wait, serve each descriptor that is ready, run the tasks that were posted, fire the
// timers that are due. Descriptors are watched level-triggered, so that one that is not read empty
// comes again next turn, after everybody else's. The eventfd that wakes a loop is watched
// edge-triggered and never read: each write is an edge.
#include "rpc/loop.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/time.h"

#define MAX_LOOPS 4
#define BATCH 64
#define EXPECTED (1U << 20) // bytes: the records and messages of a busy moment

struct loop {
    int epoll, event;
    pthread_t thread;
    pthread_mutex_t lock; // tasks, is_woken, is_ending
    struct list tasks;
    bool is_woken, is_ending;
    struct list timers;
    int64_t next_us; // no timer is due before
    uint8_t scratch[LOOP_SCRATCH];
};

// The one thing of lib/rpc that belongs to the process: threads that wait are worth sharing.
static struct {
    pthread_mutex_t lock;
    unsigned n_users, n_loops, max_loops, turn;
    struct loop *loops[MAX_LOOPS];
} process = {.lock = PTHREAD_MUTEX_INITIALIZER};

// ---------------------------------------------------------------- a turn

static bool run_tasks(struct loop *l)
{
    struct list tasks;
    list_init(&tasks);
    pthread_mutex_lock(&l->lock);
    bool go_on = !l->is_ending;
    l->is_woken = false;
    if (!list_is_empty(&l->tasks)) {
        list_insert_before(&l->tasks, &tasks);
        list_remove(&l->tasks);
    }
    pthread_mutex_unlock(&l->lock);
    for (struct list *it; (it = list_pop_front(&tasks));) {
        struct loop_task *t = list_entry(it, struct loop_task, node);
        t->run(t);
    }
    return go_on;
}

static void fire_timers(struct loop *l)
{
    if (l->next_us == TIME_NEVER)
        return;
    int64_t now_us = time_mono_us();
    if (now_us < l->next_us)
        return;
    struct list due;
    list_init(&due);
    l->next_us = TIME_NEVER;
    list_for_each_safe(it, tmp, &l->timers)
    {
        struct loop_timer *tm = list_entry(it, struct loop_timer, node);
        if (tm->at_us <= now_us) {
            list_remove(it);
            list_push_back(&due, it);
        } else if (tm->at_us < l->next_us) {
            l->next_us = tm->at_us;
        }
    }
    for (struct list *it; (it = list_pop_front(&due));) {
        struct loop_timer *tm = list_entry(it, struct loop_timer, node);
        tm->fire(tm);
    }
}

static int wait_ms(const struct loop *l)
{
    if (l->next_us == TIME_NEVER)
        return -1;
    int64_t left_us = l->next_us - time_mono_us();
    if (left_us <= 0)
        return 0;
    return left_us < 60000000 ? (int)((left_us + 999) / 1000) : 60000;
}

static void *loop_thread(void *ud)
{
    struct loop *l = ud;
    struct epoll_event ev[BATCH];
    pthread_setname_np(pthread_self(), "rpc-loop");
    do {
        int n = epoll_wait(l->epoll, ev, BATCH, wait_ms(l));
        for (int i = 0; i < n; i++) {
            struct loop_io *io = ev[i].data.ptr;
            if (io)
                io->ready(io, ev[i].events);
        }
        fire_timers(l);
    } while (run_tasks(l));
    run_tasks(l); // what was posted just before the end
    return NULL;
}

// ---------------------------------------------------------------- life

static void loop_free(struct loop *l)
{
    if (l->epoll >= 0)
        close(l->epoll);
    if (l->event >= 0)
        close(l->event);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}

// Signals are for the program's main thread.
static int start_thread(struct loop *l)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(&l->thread, NULL, loop_thread, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed;
}

static struct loop *loop_new(void)
{
    struct loop *l = mem_alloc(sizeof *l);
    if (!l) {
        errno = ENOMEM;
        return NULL;
    }
    pthread_mutex_init(&l->lock, NULL);
    list_init(&l->tasks);
    list_init(&l->timers);
    l->next_us = TIME_NEVER;
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET};
    int failed = 0;
    if (l->epoll < 0 || l->event < 0 || epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->event, &ev) != 0)
        failed = errno;
    if (!failed)
        failed = start_thread(l);
    if (!failed)
        return l;
    loop_free(l);
    errno = failed;
    return NULL;
}

static void wake(struct loop *l)
{
    uint64_t one = 1;
    // Full is impossible: that takes 2^64 writes.
    while (write(l->event, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

static void loop_end(struct loop *l)
{
    pthread_mutex_lock(&l->lock);
    l->is_ending = true;
    pthread_mutex_unlock(&l->lock);
    wake(l);
    pthread_join(l->thread, NULL);
    loop_free(l);
}

static unsigned max_loops(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n < MAX_LOOPS ? (unsigned)n : MAX_LOOPS;
}

void loops_use(void)
{
    pthread_mutex_lock(&process.lock);
    if (process.n_users++ == 0) {
        process.max_loops = max_loops();
        mem_expect_blocks(EXPECTED);
    }
    pthread_mutex_unlock(&process.lock);
}

void loops_leave(void)
{
    pthread_mutex_lock(&process.lock);
    if (--process.n_users == 0) {
        for (unsigned i = 0; i < process.n_loops; i++)
            loop_end(process.loops[i]);
        process.n_loops = 0;
    }
    pthread_mutex_unlock(&process.lock);
}

struct loop *loop_next(void)
{
    pthread_mutex_lock(&process.lock);
    unsigned i = process.turn++ % process.max_loops;
    struct loop *l = i < process.n_loops ? process.loops[i] : loop_new();
    if (l && i >= process.n_loops)
        process.loops[process.n_loops++] = l;
    else if (!l && process.n_loops)
        l = process.loops[0]; // a loop that is shared more is better than none
    pthread_mutex_unlock(&process.lock);
    return l;
}

// ---------------------------------------------------------------- descriptors, tasks, timers

static bool control(struct loop *l, int op, int fd, uint32_t events, struct loop_io *io)
{
    struct epoll_event ev = {.events = events, .data.ptr = io};
    return epoll_ctl(l->epoll, op, fd, &ev) == 0;
}

bool loop_add(struct loop *l, int fd, uint32_t events, struct loop_io *io)
{
    return control(l, EPOLL_CTL_ADD, fd, events, io);
}

bool loop_change(struct loop *l, int fd, uint32_t events, struct loop_io *io)
{
    return control(l, EPOLL_CTL_MOD, fd, events, io);
}

void loop_remove(struct loop *l, int fd)
{
    control(l, EPOLL_CTL_DEL, fd, 0, NULL);
}

void loop_post(struct loop *l, struct loop_task *t)
{
    pthread_mutex_lock(&l->lock);
    list_push_back(&l->tasks, &t->node);
    bool was_woken = l->is_woken;
    l->is_woken = true;
    pthread_mutex_unlock(&l->lock);
    if (!was_woken)
        wake(l);
}

void loop_timer_init(struct loop_timer *tm, void (*fire)(struct loop_timer *))
{
    *tm = (struct loop_timer){.fire = fire};
    list_init(&tm->node);
}

void loop_timer_set(struct loop *l, struct loop_timer *tm, int64_t at_us)
{
    list_remove(&tm->node);
    tm->at_us = at_us;
    list_push_back(&l->timers, &tm->node);
    if (at_us < l->next_us)
        l->next_us = at_us;
}

void loop_timer_stop(struct loop_timer *tm)
{
    list_remove(&tm->node); // at worst the loop wakes once for nothing
}

uint8_t *loop_scratch(struct loop *l)
{
    return l->scratch;
}
