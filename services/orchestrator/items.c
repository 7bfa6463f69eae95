// What playing needs to know of an item, kept in memory so that it goes on while the database is
// away. An entry is read again when it may have changed; a read that fails for want of a database
// leaves what is there.
//
// Segments of one item are committed in the order of their output ids (the job's row lock), so they
// are followed with id > last and never read twice.
#include "orchestrator/internal.h"

#include <pthread.h>
#include <string.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "media/image.h"
#include "media/texts.h"

#define MAX_ITEMS 128
#define AWAY_US                                                                                    \
    1000000 // after a failed read: how long it is not tried again for what is remembered

struct item_plan *item_plan_new(const void *bytes, size_t n, struct err *err)
{
    struct item_plan *p = mem_alloc(sizeof *p);
    uint8_t *copy = mem_dup(bytes, n);
    if (!p || !copy) {
        mem_free(p);
        mem_free(copy);
        (void)err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");
        return NULL;
    }
    *p = (struct item_plan){.n_refs = 1, .bytes = copy, .len = n};
    if (media_plan_decode(copy, n, &p->plan, err) != STATUS_OK) {
        item_plan_unref(p);
        return NULL;
    }
    return p;
}

struct item_plan *item_plan_ref(struct item_plan *p)
{
    if (p)
        __atomic_add_fetch(&p->n_refs, 1, __ATOMIC_RELAXED);
    return p;
}

void item_plan_unref(struct item_plan *p)
{
    if (!p || __atomic_sub_fetch(&p->n_refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    media_plan_free(p->plan);
    mem_free(p->bytes);
    mem_free(p);
}

void item_done(struct item *it)
{
    item_plan_unref(it->plan);
    it->plan = NULL;
}

// Places: renditions in the plan's order, then what is one object each: pictures, the source's
// tracks of text, texts that were added.
enum {
    FIRST_IMAGE = MEDIA_MAX_RENDITIONS,
    FIRST_TEXT = FIRST_IMAGE + MEDIA_N_IMAGES,
    FIRST_ADDED = FIRST_TEXT + MEDIA_MAX_TRACKS,
    N_MADE = FIRST_ADDED + MEDIA_MAX_ADDED_TEXTS,
};
struct made { // segments of one rendition, or one object
    struct item_segment *segments, one;
    size_t n;
    int32_t n_ready;
};

struct entry {
    struct list link; // items.entries, most recently used first
    char id[UUID_SIZE];
    struct item item;
    struct made made[N_MADE]; // allocated with the plan
    int64_t last_output;
    uint64_t changes;   // counted by items_changed()
    uint64_t read_at;   // `changes` when it was read; fresh while both are equal
    bool known;         // was read at least once
    unsigned n_readers; // threads that read it from the database just now
};

struct items {
    pthread_mutex_t lock;
    struct db *db;
    struct list entries;
    size_t n_entries;
    int64_t away_until_us;
};

struct items *items_new(struct db *db)
{
    struct items *c = mem_alloc(sizeof *c);
    if (!c)
        return NULL;
    c->db = db;
    list_init(&c->entries);
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

static void made_done(struct made *m)
{
    if (m->segments != &m->one)
        mem_free(m->segments);
    *m = (struct made){.n = 0};
}

static void entry_free(struct entry *e)
{
    if (!e)
        return;
    item_done(&e->item);
    for (size_t i = 0; i < N_MADE; i++)
        made_done(&e->made[i]);
    mem_free(e);
}

void items_free(struct items *c)
{
    if (!c)
        return;
    for (struct list *it; (it = list_pop_front(&c->entries));)
        entry_free(list_entry(it, struct entry, link));
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

// ---------------------------------------------------------------- under the lock

static struct entry *find(struct items *c, const char *id)
{
    list_for_each(it, &c->entries)
    {
        struct entry *e = list_entry(it, struct entry, link);
        if (strcmp(e->id, id) == 0)
            return e;
    }
    return NULL;
}

static void drop(struct items *c, struct entry *e)
{
    list_remove(&e->link);
    c->n_entries--;
    entry_free(e);
}

static void make_room(struct items *c)
{
    for (struct list *it = c->entries.prev; it != &c->entries && c->n_entries > MAX_ITEMS;) {
        struct entry *e = list_entry(it, struct entry, link);
        it = it->prev;
        if (e->n_readers == 0)
            drop(c, e);
    }
}

static struct entry *use(struct items *c, const char *id)
{
    struct entry *e = find(c, id);
    if (e) {
        list_remove(&e->link);
    } else {
        e = mem_alloc(sizeof *e);
        if (!e)
            return NULL;
        str_copy(e->id, sizeof e->id, id);
        e->changes = 1;
        c->n_entries++;
    }
    list_push_front(&c->entries, &e->link);
    return e;
}

static void forget_segments(struct entry *e)
{
    for (size_t i = 0; i < N_MADE; i++)
        made_done(&e->made[i]);
    e->last_output = 0;
}

int items_place(const struct media_plan *p, const char *rendition, size_t *ret_n_segments)
{
    int which = media_plan_find(p, rendition), image = media_image_find(rendition);
    if (which >= 0) {
        *ret_n_segments = media_rendition_grid(p, (size_t)which)->n_segments;
        return which;
    }
    *ret_n_segments = 1;
    if (image >= 0)
        return media_image_is_planned(p, (enum media_image)image) ? FIRST_IMAGE + image : -1;
    int track = media_text_find(p, rendition), added = media_text_find_added(rendition);
    return track >= 0 ? FIRST_TEXT + track : added >= 0 ? FIRST_ADDED + added - 1 : -1;
}

static bool allocate_segments(struct entry *e)
{
    const struct media_plan *p = e->item.plan->plan;
    for (size_t i = 0; i < N_MADE; i++) {
        struct made *m = &e->made[i];
        bool single = i >= MEDIA_MAX_RENDITIONS;
        if (!single && i >= p->n_renditions)
            continue;
        m->n = single ? 1 : media_rendition_grid(p, i)->n_segments;
        m->segments = single ? &m->one : mem_array(m->n ? m->n : 1, sizeof(struct item_segment));
        if (!m->segments)
            return false;
    }
    return true;
}

// Take over what was read; fresh->plan is NULL when the plan that is there is still the one.
static enum status merge_item(struct entry *e, struct item *fresh, struct err *err)
{
    bool gone = str_eq(fresh->state, "failed");
    if (!fresh->plan)
        fresh->plan = TAKE(e->item.plan);
    bool same_plan = e->known && !e->item.plan; // it was just moved over
    item_done(&e->item);
    e->item = *fresh;
    fresh->plan = NULL;
    if (!same_plan || gone)
        forget_segments(e);
    if (e->item.plan && !e->made[0].segments && !allocate_segments(e)) {
        forget_segments(e);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "item %s: out of memory", e->id);
    }
    return STATUS_OK;
}

static void merge_outputs(struct entry *e, const struct db_result *r)
{
    for (size_t i = 0; i < db_result_n_rows(r); i++) {
        int64_t id = db_i64(r, i, 0);
        size_t segment = (size_t)db_i64(r, i, 2), len = 0, n_segments;
        int which = items_place(e->item.plan->plan, db_text(r, i, 1), &n_segments);
        const uint8_t *digest = db_bytes(r, i, 3, &len);
        if (id > e->last_output)
            e->last_output = id;
        if (which < 0 || segment >= e->made[which].n || len != ORCH_DIGEST_SIZE)
            continue;
        struct item_segment *s = &e->made[which].segments[segment];
        e->made[which].n_ready += s->size == 0;
        memcpy(s->digest, digest, len);
        s->size = db_i64(r, i, 4);
    }
}

// ---------------------------------------------------------------- reading

static enum status read_item(struct items *c, const char *id, bool want_plan, struct item *ret,
                             struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(c->db,
                             "SELECT owner, kind, state, route, title, reason, digest, size,"
                             "  duration_us, CASE WHEN $2::bool THEN plan END,"
                             "  loudness_mlufs IS NOT NULL, coalesce(loudness_mlufs, 0),"
                             "  coalesce(loudness_range_mlu, 0), coalesce(true_peak_mdb, 0) "
                             "FROM orchestrator.item WHERE id = $1::uuid",
                             DB_PARAMS(DB_TEXT(id), DB_BOOL(want_plan)), &r, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "item %s", id);
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no item %s", id);
    *ret = (struct item){.size = db_i64(r, 0, 7),
                         .duration_us = db_i64(r, 0, 8),
                         .is_measured = db_bool(r, 0, 10),
                         .loudness = {.integrated_mlufs = (int32_t)db_i64(r, 0, 11),
                                      .range_mlu = (int32_t)db_i64(r, 0, 12),
                                      .true_peak_mdb = (int32_t)db_i64(r, 0, 13)}};
    str_copy(ret->id, sizeof ret->id, id);
    str_copy(ret->owner, sizeof ret->owner, db_text(r, 0, 0));
    str_copy(ret->kind, sizeof ret->kind, db_text(r, 0, 1));
    str_copy(ret->state, sizeof ret->state, db_text(r, 0, 2));
    str_copy(ret->route, sizeof ret->route, db_text(r, 0, 3));
    str_copy(ret->title, sizeof ret->title, db_text(r, 0, 4));
    str_copy(ret->reason, sizeof ret->reason, db_text(r, 0, 5));
    size_t len = 0;
    const uint8_t *digest = db_bytes(r, 0, 6, &len);
    if (!digest || len != ORCH_DIGEST_SIZE)
        return err_set(err, STATUS_INTERNAL, "item %s: bad digest in the database", id);
    memcpy(ret->digest, digest, len);
    const uint8_t *plan = db_bytes(r, 0, 9, &len);
    if (plan && !(ret->plan = item_plan_new(plan, len, err)))
        return err_wrap(err, STATUS_INTERNAL, "item %s", id);
    return STATUS_OK;
}

static enum status read_texts(struct items *c, struct item *it, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(c->db,
                             "SELECT number, language, title, is_default, is_forced,"
                             "  hearing_impaired FROM orchestrator.subtitle "
                             "WHERE item = $1::uuid AND state = 'ready' ORDER BY number",
                             DB_PARAMS(DB_TEXT(it->id)), &r, err);
    size_t n = s == STATUS_OK ? db_result_n_rows(r) : 0;
    for (it->n_texts = 0; it->n_texts < n && it->n_texts < ORCH_MAX_TEXTS; it->n_texts++) {
        size_t i = it->n_texts;
        struct media_text *t = &it->texts[i];
        *t = (struct media_text){.is_default = db_bool(r, i, 3),
                                 .is_forced = db_bool(r, i, 4),
                                 .is_hearing_impaired = db_bool(r, i, 5)};
        media_text_name_added((unsigned)db_i64(r, i, 0), t->id);
        str_copy(t->language, sizeof t->language, db_text(r, i, 1));
        str_copy(t->title, sizeof t->title, db_text(r, i, 2));
    }
    return s;
}

bool item_has_text(const struct item *it, const char *id)
{
    for (size_t i = 0; i < it->n_texts; i++)
        if (str_eq(it->texts[i].id, id))
            return true;
    return false;
}

static enum status read_outputs(struct items *c, const char *id, int64_t after,
                                struct db_result **ret, struct err *err)
{
    return db_query(c->db,
                    "SELECT id, rendition, segment, digest, size FROM orchestrator.output "
                    "WHERE item = $1::uuid AND id > $2::bigint ORDER BY id",
                    DB_PARAMS(DB_TEXT(id), DB_I64(after)), ret, err);
}

// Two statements, the item first: what is published between them only comes early.
static enum status read_all(struct items *c, const char *id, bool have_plan, int64_t after,
                            struct item *ret, struct db_result **ret_outputs, struct err *err)
{
    AUTO(item_done) struct item it = {0};
    enum status s = read_item(c, id, !have_plan, &it, err);
    if (s == STATUS_OK && (have_plan || it.plan))
        s = read_texts(c, &it, err);
    if (s == STATUS_OK && (have_plan || it.plan))
        s = read_outputs(c, id, after, ret_outputs, err);
    if (s != STATUS_OK)
        return s;
    *ret = it;
    it.plan = NULL;
    return STATUS_OK;
}

// Bring an entry up to date. Called and returns locked; the entry stays (n_readers).
static enum status refresh(struct items *c, struct entry *e, struct err *err)
{
    uint64_t seen = e->changes;
    bool have_plan = e->item.plan != NULL;
    int64_t after = e->last_output;
    e->n_readers++;
    pthread_mutex_unlock(&c->lock);

    struct item it = {0};
    AUTO(db_result_free_p) struct db_result *outputs = NULL;
    enum status s = read_all(c, e->id, have_plan, after, &it, &outputs, err);

    pthread_mutex_lock(&c->lock);
    e->n_readers--;
    if (s == STATUS_OK) {
        // A plan does not change: with the one that is there now, its segments stay too.
        if (it.plan && e->item.plan)
            item_done(&it);
        // Somebody else may have dropped what this read was based on.
        if (have_plan && (!e->item.plan || e->last_output < after))
            s = err_set(err, STATUS_UNAVAILABLE, "item %s is changing: try again", e->id);
        else
            s = merge_item(e, &it, err);
        if (s == STATUS_OK && outputs && e->item.plan && !str_eq(e->item.state, "failed"))
            merge_outputs(e, outputs);
        if (s == STATUS_OK) {
            e->known = true;
            if (seen > e->read_at)
                e->read_at = seen;
        }
    } else if (s != STATUS_NOT_FOUND) {
        c->away_until_us = time_mono_us() + AWAY_US;
    }
    item_done(&it);
    return s;
}

// The entry, as fresh as can be had. Called and returns locked.
static enum status get(struct items *c, const char *id, struct entry **ret, struct err *err)
{
    if (!uuid_is_valid(id))
        return err_set(err, STATUS_NOT_FOUND, "no item %.40s", id);
    struct entry *e = use(c, id);
    if (!e)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "item %s: out of memory", id);
    enum status s = STATUS_OK;
    bool fresh = e->known && e->read_at == e->changes;
    if (!fresh && !(e->known && time_mono_us() < c->away_until_us))
        s = refresh(c, e, err);
    if (s == STATUS_NOT_FOUND || !e->known) {
        if (e->n_readers == 0)
            drop(c, e);
        return s;
    }
    make_room(c);
    *ret = e; // what is remembered is better than nothing
    return STATUS_OK;
}

enum status items_get(struct items *c, const char *id, struct item *ret, struct err *err)
{
    pthread_mutex_lock(&c->lock);
    struct entry *e = NULL;
    enum status s = get(c, id, &e, err);
    if (s == STATUS_OK) {
        *ret = e->item;
        ret->plan = item_plan_ref(e->item.plan);
    }
    pthread_mutex_unlock(&c->lock);
    return s;
}

enum status items_get_planned(struct items *c, const char *id, struct item *ret, struct err *err)
{
    enum status s = items_get(c, id, ret, err);
    if (s == STATUS_OK && !ret->plan) {
        items_changed(c, id);
        s = items_get(c, id, ret, err);
    }
    if (s == STATUS_OK && !ret->plan)
        s = err_set(err, STATUS_FAILED_PRECONDITION, "item %s has no plan yet", id);
    return s;
}

enum status items_segments(struct items *c, const char *id, const char *rendition, int32_t first,
                           int32_t n, struct item_segment *ret, struct err *err)
{
    pthread_mutex_lock(&c->lock);
    struct entry *e = NULL;
    size_t n_segments;
    enum status s = get(c, id, &e, err);
    int which = s == STATUS_OK && e->item.plan
                    ? items_place(e->item.plan->plan, rendition, &n_segments)
                    : -1;
    if (s == STATUS_OK && which < 0)
        s = err_set(err, STATUS_NOT_FOUND, "item %s has no rendition %.12s", id, rendition);
    for (int32_t i = 0; s == STATUS_OK && i < n; i++) {
        size_t at = (size_t)first + (size_t)i;
        const struct made *m = &e->made[which];
        ret[i] = at < m->n ? m->segments[at] : (struct item_segment){.size = 0};
    }
    pthread_mutex_unlock(&c->lock);
    return s;
}

int32_t items_n_ready(struct items *c, const char *id, const char *rendition)
{
    pthread_mutex_lock(&c->lock);
    struct entry *e = find(c, id);
    size_t n_segments;
    int which = e && e->item.plan ? items_place(e->item.plan->plan, rendition, &n_segments) : -1;
    int32_t n = which < 0 ? 0 : e->made[which].n_ready;
    pthread_mutex_unlock(&c->lock);
    return n;
}

void items_unpublished(struct items *c, const char *id)
{
    pthread_mutex_lock(&c->lock);
    struct entry *e = find(c, id);
    if (e) {
        forget_segments(e);
        e->changes++;
    }
    pthread_mutex_unlock(&c->lock);
}

void items_changed(struct items *c, const char *id)
{
    pthread_mutex_lock(&c->lock);
    list_for_each(it, &c->entries)
    {
        struct entry *e = list_entry(it, struct entry, link);
        if (!id || strcmp(e->id, id) == 0)
            e->changes++;
    }
    pthread_mutex_unlock(&c->lock);
}
