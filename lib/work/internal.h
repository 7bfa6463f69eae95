#pragma once
// What pool.c lends to strand.c.
#include "base/list.h"
#include "work/work.h"

struct work_task { // embedded in whatever wants to run
    struct list link;
    work_fn fn;
    void *ud;
    bool owned; // allocated by the pool, freed once it has run
};

// Queue a task that the caller owns, beyond queue_max. again: the task runs on a pool thread right
// now and asks for another turn, which is granted even while the pool stops.
bool work_pool_push(struct work_pool *p, struct work_task *t, bool again);
bool work_pool_is_stopping(struct work_pool *p);
