#pragma once
// Event loops: a few threads that wait for descriptors, timers and each other's tasks, shared by
// all of the process that uses them. What runs on a loop must not block.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

struct loop;

struct loop_io { // embedded in what owns a descriptor
    // Readable, writable, or broken: bits of <sys/epoll.h>. Runs on the loop. May free its own
    // loop_io and no other: those of the same turn are about to run.
    void (*ready)(struct loop_io *io, uint32_t events);
};
struct loop_task { // embedded; may be freed, or posted again, from run()
    struct list node;
    void (*run)(struct loop_task *t);
};
struct loop_timer { // embedded
    struct list node;
    int64_t at_us;
    void (*fire)(struct loop_timer *t);
};

// Loops run while somebody uses them. The last to leave waits until their threads have ended, so
// not on a loop, and with nothing of its own left there but tasks that are posted already.
void loops_use(void);
void loops_leave(void);
// One of the loops, in turn; its thread is started if need be. NULL: errno says why.
struct loop *loop_next(void);

// Watch a descriptor. False: errno says why. Any thread.
bool loop_add(struct loop *l, int fd, uint32_t events, struct loop_io *io);
bool loop_change(struct loop *l, int fd, uint32_t events, struct loop_io *io);
// Before it is closed: a child that is just being started may hold it open, and the kernel would
// go on telling of it.
void loop_remove(struct loop *l, int fd);
void loop_post(struct loop *l, struct loop_task *t); // any thread, any lock held; not while posted

// On the loop's own thread only:
void loop_timer_init(struct loop_timer *tm, void (*fire)(struct loop_timer *));
void loop_timer_set(struct loop *l, struct loop_timer *tm, int64_t at_us); // again: moves it
void loop_timer_stop(struct loop_timer *tm);
#define LOOP_SCRATCH (64U << 10)
uint8_t *loop_scratch(struct loop *l); // LOOP_SCRATCH bytes for the moment
