// Chained hash table of intrusive nodes. Growing is an optimisation: when there is no memory for it
// the chains get longer and nothing fails.
#include "object/internal.h"

#include <assert.h>

#include "base/mem.h"

#define FIRST_SLOTS 256

bool htab_init(struct htab *t)
{
    *t = (struct htab){0};
    t->slots = mem_array(FIRST_SLOTS, sizeof *t->slots);
    t->n_slots = t->slots ? FIRST_SLOTS : 0;
    return t->slots != NULL;
}

void htab_done(struct htab *t)
{
    mem_free(t->slots);
    *t = (struct htab){0};
}

static struct hnode **slot_of(const struct htab *t, uint64_t hash)
{
    return &t->slots[hash & (t->n_slots - 1)];
}

static struct hnode *with_hash(struct hnode *n, uint64_t hash)
{
    while (n && n->hash != hash)
        n = n->next;
    return n;
}

struct hnode *htab_first(const struct htab *t, uint64_t hash)
{
    return with_hash(*slot_of(t, hash), hash);
}

struct hnode *htab_next(const struct hnode *n)
{
    return with_hash(n->next, n->hash);
}

static void grow(struct htab *t)
{
    struct htab bigger = {.n_slots = t->n_slots * 2, .n = t->n};
    bigger.slots = mem_array(bigger.n_slots, sizeof *bigger.slots);
    if (!bigger.slots)
        return;
    for (size_t i = 0; i < t->n_slots; i++)
        for (struct hnode *n = t->slots[i], *next; n; n = next) {
            next = n->next;
            struct hnode **slot = slot_of(&bigger, n->hash);
            n->next = *slot;
            *slot = n;
        }
    mem_free(t->slots);
    *t = bigger;
}

void htab_insert(struct htab *t, struct hnode *n)
{
    if (t->n >= t->n_slots)
        grow(t);
    struct hnode **slot = slot_of(t, n->hash);
    n->next = *slot;
    *slot = n;
    t->n++;
}

void htab_remove(struct htab *t, struct hnode *n)
{
    struct hnode **at = slot_of(t, n->hash);
    while (*at != n) {
        assert(*at);
        at = &(*at)->next;
    }
    *at = n->next;
    n->next = NULL;
    t->n--;
}
