// One lock per tree, held by its root: firing marks a whole subtree at once, then runs the hooks
// one by one with the lock released. A hook holds a reference on its token and a child one on its
// parent, so the root, and with it the lock, outlives everybody who could need it.
//
//   hook: waiting -> queued (its token was fired) -> running -> done
#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "base/mem.h"
#include "work/work.h"

struct tree {
    pthread_mutex_t lock;
    pthread_cond_t ran; // some hook finished
};

struct cancel {
    atomic_uint n_refs;
    atomic_bool fired;
    struct cancel *parent;
    struct tree *tree;
    struct list sibling; // in parent->children
    struct list children, hooks;
};

struct cancel_hook {
    struct cancel *token;
    struct list link; // in token->hooks, then in the firing thread's list
    work_fn fn;
    void *ud;
    bool running, unhooked;
    pthread_t runner;
};

static struct tree *tree_new(void)
{
    struct tree *t = mem_alloc(sizeof *t);
    if (!t)
        return NULL;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->ran, NULL);
    return t;
}

static void tree_free(struct tree *t)
{
    pthread_cond_destroy(&t->ran);
    pthread_mutex_destroy(&t->lock);
    mem_free(t);
}

struct cancel *cancel_new(struct cancel *parent)
{
    struct cancel *c = mem_alloc(sizeof *c);
    if (!c)
        return NULL;
    atomic_init(&c->n_refs, 1);
    list_init(&c->sibling);
    list_init(&c->children);
    list_init(&c->hooks);
    c->tree = parent ? parent->tree : tree_new();
    if (!c->tree) {
        mem_free(c);
        return NULL;
    }
    if (parent) {
        c->parent = cancel_ref(parent);
        pthread_mutex_lock(&c->tree->lock);
        list_push_back(&parent->children, &c->sibling);
        atomic_init(&c->fired, atomic_load(&parent->fired));
        pthread_mutex_unlock(&c->tree->lock);
    }
    return c;
}

struct cancel *cancel_ref(struct cancel *c)
{
    if (c)
        atomic_fetch_add(&c->n_refs, 1);
    return c;
}

void cancel_unref(struct cancel *c)
{
    while (c && atomic_fetch_sub(&c->n_refs, 1) == 1) {
        struct cancel *parent = c->parent;
        if (parent) {
            pthread_mutex_lock(&c->tree->lock);
            list_remove(&c->sibling);
            pthread_mutex_unlock(&c->tree->lock);
        } else {
            tree_free(c->tree);
        }
        mem_free(c);
        c = parent;
    }
}

// Lock held. Trees are as deep as calls nest: a handful.
static void mark(struct cancel *c, struct list *queue)
{
    if (atomic_exchange(&c->fired, true))
        return;
    for (struct list *l; (l = list_pop_front(&c->hooks));)
        list_push_back(queue, l);
    list_for_each(l, &c->children) mark(list_entry(l, struct cancel, sibling), queue);
}

static void hook_free(struct cancel_hook *h)
{
    struct cancel *token = h->token;
    mem_free(h);
    cancel_unref(token);
}

// Lock not held; h is marked running.
static void run(struct tree *t, struct cancel_hook *h)
{
    h->fn(h->ud);
    pthread_mutex_lock(&t->lock);
    h->running = false;
    bool unhooked = h->unhooked;
    pthread_cond_broadcast(&t->ran);
    pthread_mutex_unlock(&t->lock);
    if (unhooked)
        hook_free(h);
}

void cancel_fire(struct cancel *c)
{
    struct tree *t = c->tree;
    struct list queue;
    list_init(&queue);
    cancel_ref(c); // a hook may drop the caller's reference
    pthread_mutex_lock(&t->lock);
    mark(c, &queue);
    for (struct list *l; (l = list_pop_front(&queue));) {
        struct cancel_hook *h = list_entry(l, struct cancel_hook, link);
        h->running = true;
        h->runner = pthread_self();
        pthread_mutex_unlock(&t->lock);
        run(t, h);
        pthread_mutex_lock(&t->lock);
    }
    pthread_mutex_unlock(&t->lock);
    cancel_unref(c);
}

bool cancel_is_fired(const struct cancel *c)
{
    return c && atomic_load(&c->fired);
}

struct cancel_hook *cancel_hook(struct cancel *c, work_fn fn, void *ud)
{
    struct cancel_hook *h = mem_alloc(sizeof *h);
    if (!h)
        return NULL;
    *h = (struct cancel_hook){.token = cancel_ref(c), .fn = fn, .ud = ud};
    list_init(&h->link);
    pthread_mutex_lock(&c->tree->lock);
    bool fired = atomic_load(&c->fired);
    if (!fired)
        list_push_back(&c->hooks, &h->link);
    pthread_mutex_unlock(&c->tree->lock);
    if (fired)
        fn(ud);
    return h;
}

void cancel_unhook(struct cancel_hook *h)
{
    if (!h)
        return;
    struct tree *t = h->token->tree;
    pthread_mutex_lock(&t->lock);
    list_remove(&h->link);
    if (h->running && pthread_equal(h->runner, pthread_self())) {
        h->unhooked = true; // from inside its own fn: freed when that returns
        pthread_mutex_unlock(&t->lock);
        return;
    }
    while (h->running)
        pthread_cond_wait(&t->ran, &t->lock);
    pthread_mutex_unlock(&t->lock);
    hook_free(h);
}
