// What is here, and which item keeps it: all in memory, rebuilt from the disk at the start. About
// 200 bytes for an object with one pin.
#include "object/internal.h"

#include <string.h>

#include "base/mem.h"
#include "base/rand.h"

bool index_init(struct index *ix)
{
    *ix = (struct index){.seed = rand_u64()};
    return htab_init(&ix->entries) && htab_init(&ix->items) && htab_init(&ix->pins);
}

static void free_nodes(struct htab *t)
{
    for (size_t i = 0; i < t->n_slots; i++)
        for (struct hnode *n = t->slots[i], *next; n; n = next) {
            next = n->next;
            mem_free(n); // every node is the first member of its struct
        }
    htab_done(t);
}

void index_done(struct index *ix)
{
    free_nodes(&ix->pins);
    free_nodes(&ix->items);
    free_nodes(&ix->entries);
}

static uint64_t mix(uint64_t h)
{
    h ^= h >> 32;
    h *= UINT64_C(0xd6e8feb86659fd93);
    h ^= h >> 32;
    h *= UINT64_C(0xd6e8feb86659fd93);
    return h ^ h >> 32;
}

// Keys are digests and UUIDs, of which the first and last eight bytes hold enough chance.
static uint64_t hash_of(const struct index *ix, const uint8_t *p, size_t n)
{
    uint64_t a, b;
    memcpy(&a, p, sizeof a);
    memcpy(&b, p + n - sizeof b, sizeof b);
    return mix(mix(a ^ ix->seed) ^ b);
}

struct entry *index_find(const struct index *ix, const uint8_t *digest)
{
    struct hnode *n = htab_first(&ix->entries, hash_of(ix, digest, OBJECT_DIGEST_SIZE));
    for (; n; n = htab_next(n)) {
        struct entry *e = list_entry(n, struct entry, node);
        if (memcmp(e->digest, digest, OBJECT_DIGEST_SIZE) == 0)
            return e;
    }
    return NULL;
}

struct entry *index_get(struct index *ix, const uint8_t *digest)
{
    struct entry *e = index_find(ix, digest);
    if (e)
        return e;
    e = mem_alloc(sizeof *e);
    if (!e)
        return NULL;
    memcpy(e->digest, digest, OBJECT_DIGEST_SIZE);
    e->node.hash = hash_of(ix, digest, OBJECT_DIGEST_SIZE);
    htab_insert(&ix->entries, &e->node);
    return e;
}

void index_release(struct index *ix, struct entry *e)
{
    if (e->state != ENTRY_ABSENT || e->n_pins > 0 || e->n_holds > 0)
        return;
    htab_remove(&ix->entries, &e->node);
    mem_free(e);
}

struct item *index_find_item(const struct index *ix, const uint8_t *item)
{
    struct hnode *n = htab_first(&ix->items, hash_of(ix, item, ITEM_SIZE));
    for (; n; n = htab_next(n)) {
        struct item *i = list_entry(n, struct item, node);
        if (memcmp(i->id, item, ITEM_SIZE) == 0)
            return i;
    }
    return NULL;
}

static uint64_t pin_hash(const struct index *ix, const uint8_t *item, const uint8_t *digest)
{
    return mix(hash_of(ix, item, ITEM_SIZE) + hash_of(ix, digest, OBJECT_DIGEST_SIZE));
}

struct pin *index_find_pin(const struct index *ix, const uint8_t *item, const uint8_t *digest)
{
    struct hnode *n = htab_first(&ix->pins, pin_hash(ix, item, digest));
    for (; n; n = htab_next(n)) {
        struct pin *p = list_entry(n, struct pin, node);
        if (memcmp(p->item->id, item, ITEM_SIZE) == 0 &&
            memcmp(p->entry->digest, digest, OBJECT_DIGEST_SIZE) == 0)
            return p;
    }
    return NULL;
}

static struct item *get_item(struct index *ix, const uint8_t *id)
{
    struct item *i = index_find_item(ix, id);
    if (i)
        return i;
    i = mem_alloc(sizeof *i);
    if (!i)
        return NULL;
    memcpy(i->id, id, ITEM_SIZE);
    list_init(&i->pins);
    i->node.hash = hash_of(ix, id, ITEM_SIZE);
    htab_insert(&ix->items, &i->node);
    return i;
}

static void release_item(struct index *ix, struct item *i)
{
    if (!list_is_empty(&i->pins))
        return;
    htab_remove(&ix->items, &i->node);
    mem_free(i);
}

bool index_add_pin(struct index *ix, const uint8_t *item, struct entry *e)
{
    struct item *i = get_item(ix, item);
    if (!i)
        return false;
    struct pin *p = mem_alloc(sizeof *p);
    if (!p) {
        release_item(ix, i);
        return false;
    }
    p->entry = e;
    p->item = i;
    p->node.hash = pin_hash(ix, item, e->digest);
    htab_insert(&ix->pins, &p->node);
    list_push_back(&i->pins, &p->of_item);
    e->n_pins++;
    return true;
}

void index_remove_pin(struct index *ix, struct pin *p, int64_t now_us)
{
    struct entry *e = p->entry;
    struct item *i = p->item;
    htab_remove(&ix->pins, &p->node);
    list_remove(&p->of_item);
    mem_free(p);
    release_item(ix, i);
    e->n_pins--;
    e->idle_since_us = now_us;
    index_release(ix, e);
}
