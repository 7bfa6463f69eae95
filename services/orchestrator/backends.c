// How the origins are: each is asked for its usage every two seconds, and what other calls learn is
// reported here too. Two failures in a row open its breaker; then only the polls go to it, one at a
// time, until one is answered.
#include "orchestrator/internal.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "cauce/origin.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

#define POLL_DEADLINE_MS 1500
#define FRESH_US (INT64_C(4) * 1000000) // an answer this young needs no other
#define FAILURES_TO_OPEN 2

struct backend {
    struct backends *all;
    const struct svc_node *node;
    bool open, asking;
    unsigned failures_in_row;
    int64_t calls, failures, free_bytes, used_bytes;
    int64_t answered_us; // last good answer; 0: never
};

struct backends {
    struct orch *o;
    pthread_mutex_t lock;
    pthread_cond_t quiet;
    struct cancel *stop;
    size_t n, n_asking;
    struct backend b[];
};

struct backends *backends_new(struct orch *o)
{
    struct backends *bs = mem_alloc(sizeof *bs + o->env.n_origins * sizeof bs->b[0]);
    struct cancel *stop = cancel_new(NULL);
    if (!bs || !stop) {
        mem_free(bs);
        cancel_unref(stop);
        return NULL;
    }
    bs->o = o;
    bs->stop = stop;
    bs->n = o->env.n_origins;
    for (size_t i = 0; i < bs->n; i++)
        bs->b[i] = (struct backend){.all = bs, .node = o->env.origins[i]};
    pthread_mutex_init(&bs->lock, NULL);
    pthread_cond_init(&bs->quiet, NULL);
    return bs;
}

void backends_free(struct backends *bs)
{
    if (!bs)
        return;
    cancel_fire(bs->stop);
    pthread_mutex_lock(&bs->lock);
    while (bs->n_asking)
        pthread_cond_wait(&bs->quiet, &bs->lock);
    pthread_mutex_unlock(&bs->lock);
    cancel_unref(bs->stop);
    pthread_cond_destroy(&bs->quiet);
    pthread_mutex_destroy(&bs->lock);
    mem_free(bs);
}

static bool is_away(enum status s)
{
    return s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED;
}

// Called locked. True: it is back.
static bool learn(struct backend *b, enum status s)
{
    bool was_open = b->open;
    b->calls++;
    if (!is_away(s)) {
        b->failures_in_row = 0;
        b->open = false;
        b->answered_us = time_mono_us();
        return was_open;
    }
    b->failures++;
    if (++b->failures_in_row >= FAILURES_TO_OPEN)
        b->open = true;
    return false;
}

static struct backend *find(struct backends *bs, const char *node_id)
{
    for (size_t i = 0; i < bs->n; i++)
        if (str_eq(bs->b[i].node->id, node_id))
            return &bs->b[i];
    return NULL;
}

void backends_report(struct backends *bs, const char *node_id, enum status s)
{
    if (s == STATUS_CANCELLED)
        return; // says nothing about the origin
    pthread_mutex_lock(&bs->lock);
    struct backend *b = find(bs, node_id);
    bool back = b && learn(b, s);
    pthread_mutex_unlock(&bs->lock);
    if (back)
        hub_wake(bs->o->hub, HUB_TASKS, NULL); // its tasks may be leased again
}

static void on_usage(void *ud, enum status s, Origin__UsageReply *reply, const struct err *err)
{
    (void)err;
    struct backend *b = ud;
    struct backends *bs = b->all;
    pthread_mutex_lock(&bs->lock);
    bool back = s != STATUS_CANCELLED && learn(b, s);
    if (s == STATUS_OK) {
        b->free_bytes = reply->free_bytes;
        b->used_bytes = reply->bytes;
    }
    pthread_mutex_unlock(&bs->lock);
    rpc_message_free(reply);
    if (back)
        hub_wake(bs->o->hub, HUB_TASKS, NULL);
    // Only now may backends_free() go on.
    pthread_mutex_lock(&bs->lock);
    b->asking = false;
    bs->n_asking--;
    pthread_cond_broadcast(&bs->quiet);
    pthread_mutex_unlock(&bs->lock);
}

static bool begin_asking(struct backend *b)
{
    struct backends *bs = b->all;
    pthread_mutex_lock(&bs->lock);
    bool mine = !b->asking;
    if (mine) {
        b->asking = true;
        bs->n_asking++;
    }
    pthread_mutex_unlock(&bs->lock);
    return mine;
}

void backends_poll(struct backends *bs)
{
    for (size_t i = 0; i < bs->n; i++) {
        struct backend *b = &bs->b[i];
        struct err err = ERR_INIT;
        if (!begin_asking(b))
            continue;
        struct rpc_client *c = orch_origin(bs->o, b->node->id, &err);
        if (!c) {
            on_usage(b, STATUS_UNAVAILABLE, NULL, &err);
            continue;
        }
        Origin__UsageRequest req;
        origin__usage_request__init(&req);
        struct rpc_opts opts = {.deadline_us = time_deadline_in_ms(POLL_DEADLINE_MS),
                                .cancel = bs->stop,
                                .max_attempts = 1};
        origin_object_usage_async(c, &opts, &req, on_usage, b);
    }
}

size_t backends_list(struct backends *bs, struct backend_info *ret, size_t max)
{
    pthread_mutex_lock(&bs->lock);
    size_t n = bs->n < max ? bs->n : max;
    for (size_t i = 0; i < n; i++) {
        const struct backend *b = &bs->b[i];
        ret[i] = (struct backend_info){
            .node = b->node,
            .state = !b->open    ? "closed"
                     : b->asking ? "half_open"
                                 : "open",
            .calls = b->calls,
            .failures = b->failures,
            .free_bytes = b->free_bytes,
            .used_bytes = b->used_bytes,
        };
    }
    pthread_mutex_unlock(&bs->lock);
    return n;
}

static bool was_tried(const struct svc_node *node, const struct svc_node *const *tried, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (tried[i] == node)
            return true;
    return false;
}

const struct svc_node *backends_pick(struct backends *bs, const char *kind, int64_t size,
                                     const struct svc_node *const *tried, size_t n_tried)
{
    struct backend *best = NULL;
    pthread_mutex_lock(&bs->lock);
    for (size_t i = 0; i < bs->n; i++) {
        struct backend *b = &bs->b[i];
        bool full = b->answered_us && b->free_bytes < size;
        if (!str_eq(b->node->kind, kind) || b->open || full || was_tried(b->node, tried, n_tried))
            continue;
        // One that has answered before one that has not been asked yet.
        bool better = !best || (b->answered_us && !best->answered_us) ||
                      (!b->answered_us == !best->answered_us && b->used_bytes < best->used_bytes);
        if (better)
            best = b;
    }
    if (best) // until the next poll says better, so that a burst of uploads is spread
        best->used_bytes += size, best->free_bytes -= size;
    pthread_mutex_unlock(&bs->lock);
    return best ? best->node : NULL;
}

bool backends_is_open(struct backends *bs, const char *node_id)
{
    pthread_mutex_lock(&bs->lock);
    struct backend *b = find(bs, node_id);
    bool open = b && b->open;
    pthread_mutex_unlock(&bs->lock);
    return open;
}

void backends_away(struct backends *bs, char *dst, size_t size)
{
    dst[0] = '\0';
    size_t len = 0;
    pthread_mutex_lock(&bs->lock);
    for (size_t i = 0; i < bs->n; i++) {
        const struct backend *b = &bs->b[i];
        if (b->open && len + strlen(b->node->id) + 2 < size)
            len += (size_t)snprintf(dst + len, size - len, "%s%s", len ? "," : "", b->node->id);
    }
    pthread_mutex_unlock(&bs->lock);
}

static enum status ask(struct backends *bs, const char *node_id, struct err *err)
{
    struct rpc_client *c = orch_origin(bs->o, node_id, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    Origin__UsageRequest req;
    origin__usage_request__init(&req);
    // All calls for that origin go by the answer, so no single one's deadline may shape it.
    struct rpc_opts opts = {
        .deadline_us = time_deadline_in_ms(POLL_DEADLINE_MS), .max_attempts = 1, .detached = true};
    AUTO(rpc_message_free_p) Origin__UsageReply *reply = NULL;
    enum status s = origin_object_usage(c, &opts, &req, &reply, err);
    backends_report(bs, node_id, s);
    return s;
}

enum status backends_check(struct backends *bs, const char *node_id, struct err *err)
{
    pthread_mutex_lock(&bs->lock);
    struct backend *b = find(bs, node_id);
    bool known = b != NULL, open = b && b->open;
    bool fresh = b && b->answered_us && time_mono_us() - b->answered_us < FRESH_US;
    fresh = fresh && b->failures_in_row == 0;
    pthread_mutex_unlock(&bs->lock);
    if (!known)
        return err_set(err, STATUS_UNAVAILABLE, "origin %s is not in nodes.ini", node_id);
    if (fresh)
        return STATUS_OK;
    if (!open && !is_away(ask(bs, node_id, err)))
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE, "origin %s does not answer: try again soon", node_id);
}
