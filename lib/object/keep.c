// Pins as callers see them: which item keeps which object.
#include "object/internal.h"

#include "base/str.h"

static enum status pin_all(struct object_store *s, const uint8_t *item, const uint8_t *digests,
                           size_t n, int64_t *ret_changed, struct err *err)
{
    struct entry *e;
    enum status st = STATUS_OK;
    for (size_t i = 0; i < n; i++) { // first: are they all here?
        const uint8_t *d = digests + i * OBJECT_DIGEST_SIZE;
        st = store_settled(s, d, &e, err);
        if (st != STATUS_OK)
            return st;
        if (!e || e->state != ENTRY_LIVE) {
            char hex[OBJECT_HEX_SIZE];
            str_hex(hex, d, OBJECT_DIGEST_SIZE);
            return err_set(err, STATUS_NOT_FOUND, "pin: object %s is not here", hex);
        }
        e->idle_since_us = store_now_us(s); // nobody collects it before we are done
    }
    for (size_t i = 0; st == STATUS_OK && i < n; i++) {
        e = index_find(&s->ix, digests + i * OBJECT_DIGEST_SIZE);
        if (!e || e->state != ENTRY_LIVE) // went while another one settled
            return err_set(err, STATUS_ABORTED, "pin: an object was just deleted");
        size_t before = s->ix.pins.n;
        st = store_pin_live(s, item, e, err);
        *ret_changed += s->ix.pins.n > before;
    }
    return st;
}

enum status object_store_pin(struct object_store *s, const char *item, const uint8_t *digests,
                             size_t n, int64_t *ret_changed, struct err *err)
{
    uint8_t id[ITEM_SIZE];
    if (!item_parse(item, id) || n > OBJECT_MAX_PINS_PER_CALL)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "pin: not an item's id, or more than %d objects", OBJECT_MAX_PINS_PER_CALL);
    int64_t changed = 0;
    pthread_mutex_lock(&s->mu);
    enum status st = pin_all(s, id, digests, n, &changed, err);
    if (st == STATUS_OK)
        st = pin_log_commit(&s->log, &s->mu, &s->cond, err);
    pthread_mutex_unlock(&s->mu);
    if (st == STATUS_OK && ret_changed)
        *ret_changed = changed;
    return st;
}

static enum status unpin_some(struct object_store *s, const uint8_t *item, const uint8_t *digests,
                              size_t n, int64_t *ret_changed, struct err *err)
{
    int64_t now = store_now_us(s);
    enum status st = pin_log_reserve(&s->log, n, err);
    if (st != STATUS_OK)
        return st;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *d = digests + i * OBJECT_DIGEST_SIZE;
        struct pin *p = index_find_pin(&s->ix, item, d);
        if (!p)
            continue;
        pin_log_queue(&s->log, PIN_REMOVE, item, d);
        index_remove_pin(&s->ix, p, now);
        (*ret_changed)++;
    }
    return STATUS_OK;
}

static enum status unpin_item(struct object_store *s, const uint8_t *item, int64_t *ret_changed,
                              struct err *err)
{
    int64_t now = store_now_us(s);
    if (!index_find_item(&s->ix, item))
        return STATUS_OK;
    enum status st = pin_log_reserve(&s->log, 1, err);
    if (st != STATUS_OK)
        return st;
    pin_log_queue(&s->log, PIN_REMOVE_ITEM, item, NULL);
    for (struct item *i; (i = index_find_item(&s->ix, item)); (*ret_changed)++)
        index_remove_pin(&s->ix, list_entry(i->pins.next, struct pin, of_item), now);
    return STATUS_OK;
}

enum status object_store_unpin(struct object_store *s, const char *item, const uint8_t *digests,
                               size_t n, int64_t *ret_changed, struct err *err)
{
    uint8_t id[ITEM_SIZE];
    if (!item_parse(item, id) || n > OBJECT_MAX_PINS_PER_CALL)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "unpin: not an item's id, or more than %d objects",
                       OBJECT_MAX_PINS_PER_CALL);
    int64_t changed = 0;
    pthread_mutex_lock(&s->mu);
    enum status st =
        n > 0 ? unpin_some(s, id, digests, n, &changed, err) : unpin_item(s, id, &changed, err);
    if (st == STATUS_OK)
        st = pin_log_commit(&s->log, &s->mu, &s->cond, err);
    pthread_mutex_unlock(&s->mu);
    if (st == STATUS_OK && ret_changed)
        *ret_changed = changed;
    return st;
}

bool object_store_is_pinned(struct object_store *s, const char *item,
                            const uint8_t digest[OBJECT_DIGEST_SIZE])
{
    uint8_t id[ITEM_SIZE];
    if (!item_parse(item, id))
        return false;
    pthread_mutex_lock(&s->mu);
    bool pinned = index_find_pin(&s->ix, id, digest) != NULL;
    pthread_mutex_unlock(&s->mu);
    return pinned;
}
