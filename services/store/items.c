// The catalogue.
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

#define TITLE_MAX 500         // bytes
#define DESCRIPTION_MAX 20000 // bytes
#define NAME_MAX_BYTES 64

enum status store_item_read(const struct store_call *c, const struct db_result *r, size_t row,
                            Store__Item *ret, struct err *err)
{
    bool ok = true;
    store__item__init(ret);
    char **const texts[] = {&ret->item_id,     &ret->owner, &ret->owner_name, &ret->title,
                            &ret->description, &ret->kind,  &ret->state,      &ret->reason};
    for (unsigned i = 0; i < N_ELEMENTS(texts); i++)
        if (!(*texts[i] = store_dup(c, r, row, i)))
            return store_no_memory(err);
    ret->published = db_bool(r, row, 8);
    if (db_i64(r, row, 9) > 0)
        ret->price = store_money(c, db_i64(r, row, 9), db_text(r, row, 10), &ok);
    ret->duration_us = db_i64(r, row, 11);
    ret->width = (int32_t)db_i64(r, row, 12);
    ret->height = (int32_t)db_i64(r, row, 13);
    ret->created = store_timestamp(c, db_i64(r, row, 14));
    ret->version = db_i64(r, row, 15);
    ret->owned = db_bool(r, row, 16);
    return ok && ret->created ? STATUS_OK : store_no_memory(err);
}

static enum status not_found(struct err *err)
{
    return err_set(err, STATUS_NOT_FOUND, "no such item");
}

enum status store_item_load(const struct store_call *c, const char *item_id, Store__Item *ret,
                            struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = store_check_id(item_id, "item_id", err);
    if (s == STATUS_OK)
        s = db_query(c->store->db,
                     "SELECT " STORE_ITEM_COLUMNS " FROM store.item i WHERE i.id = $2",
                     DB_PARAMS(DB_TEXT(store_caller_id(c)), DB_TEXT(item_id)), &r, err);
    if (s != STATUS_OK)
        return s;
    return db_result_n_rows(r) ? store_item_read(c, r, 0, ret, err) : not_found(err);
}

static bool may_see(const struct store_call *c, const Store__Item *i)
{
    return i->published || i->owned || store_is_admin(c);
}

static bool may_change(const struct store_call *c, const Store__Item *i)
{
    return store_is_admin(c) || str_eq(store_caller_id(c), i->owner);
}

enum status store_item_get(struct store_call *c, const Store__GetItemRequest *req, Store__Item *ret,
                           struct err *err)
{
    Store__Item item;
    enum status s = store_item_load(c, req->item_id, &item, err);
    if (s != STATUS_OK)
        return s;
    if (!may_see(c, &item))
        return not_found(err);
    *ret = item;
    return STATUS_OK;
}

// ---------------------------------------------------------------- lists

// rows were asked for with one more than the page has: that there is one means another page.
static enum status fill_list(const struct store_call *c, const struct db_result *r, int64_t size,
                             Store__ListItemsReply *ret, struct err *err)
{
    size_t n = db_result_n_rows(r), most = (size_t)size;
    Store__Item *items = arena_array(c->arena, n + 1, sizeof *items);
    ret->items = arena_array(c->arena, n + 1, sizeof *ret->items);
    if (!items || !ret->items)
        return store_no_memory(err);
    for (size_t i = 0; i < n && i < most; i++) {
        enum status s = store_item_read(c, r, i, &items[i], err);
        if (s != STATUS_OK)
            return s;
        ret->items[ret->n_items++] = &items[i];
    }
    if (n > most) {
        ret->next_page = store_page_token(c, db_text(r, most - 1, STORE_ITEM_N_COLUMNS));
        if (!ret->next_page)
            return store_no_memory(err);
    }
    return STATUS_OK;
}

// Ids are UUIDv7, so newest first is their descending order.
enum status store_item_list(struct store_call *c, const Store__ListItemsRequest *req,
                            Store__ListItemsReply *ret, struct err *err)
{
    struct store_page page;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = store_page_parse(req->page, &page, err);
    if (s == STATUS_OK && req->mine)
        s = store_need_user(c, err);
    if (s == STATUS_OK && page.after[0])
        s = store_check_id(page.after, "page.token", err);
    if (s == STATUS_OK)
        s = db_query(c->store->db,
                     "SELECT " STORE_ITEM_COLUMNS ", i.id FROM store.item i WHERE"
                     " CASE WHEN $2 THEN i.owner = $1::uuid"
                     " ELSE i.published OR $3 OR i.owner = $1::uuid END"
                     " AND ($4 = '' OR i.kind = $4) AND ($5::uuid IS NULL OR i.id < $5::uuid)"
                     " ORDER BY i.id DESC LIMIT $6",
                     DB_PARAMS(DB_TEXT(store_caller_id(c)), DB_BOOL(req->mine),
                               DB_BOOL(store_is_admin(c)), DB_TEXT(req->kind),
                               DB_TEXT(page.after[0] ? page.after : NULL), DB_I64(page.size + 1)),
                     &r, err);
    return s == STATUS_OK ? fill_list(c, r, page.size, ret, err) : s;
}

// "rank id", both checked by the database's own casts.
static enum status split_key(char *after, const char **ret_rank, const char **ret_id,
                             struct err *err)
{
    *ret_rank = *ret_id = NULL;
    if (!after[0])
        return STATUS_OK;
    char *space = strchr(after, ' ');
    if (!space || strspn(after, "0123456789.e+-") != (size_t)(space - after))
        return rpc_bad_field(err, "page.token", "page token is not one of ours");
    *space = '\0';
    *ret_rank = after;
    *ret_id = space + 1;
    return store_check_id(*ret_id, "page.token", err);
}

enum status store_item_search(struct store_call *c, const Store__SearchRequest *req,
                              Store__ListItemsReply *ret, struct err *err)
{
    struct store_page page;
    const char *rank, *id;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    if (!req->query[strspn(req->query, " \t\r\n")] || strlen(req->query) > STORE_QUERY_MAX)
        return rpc_bad_field(err, "query", "query must have 1 to %d bytes", STORE_QUERY_MAX);
    enum status s = store_page_parse(req->page, &page, err);
    if (s == STATUS_OK)
        s = split_key(page.after, &rank, &id, err);
    if (s == STATUS_OK)
        s = db_query(c->store->db,
                     "SELECT " STORE_ITEM_COLUMNS ", i.rank || ' ' || i.id FROM"
                     " (SELECT x.*, ts_rank(x.search, q) AS rank FROM store.item x,"
                     " websearch_to_tsquery('simple', $2) q WHERE x.search @@ q"
                     " AND (x.published OR $3 OR x.owner = $1::uuid)) i"
                     " WHERE $4::real IS NULL OR (i.rank, i.id) < ($4::real, $5::uuid)"
                     " ORDER BY i.rank DESC, i.id DESC LIMIT $6",
                     DB_PARAMS(DB_TEXT(store_caller_id(c)), DB_TEXT(req->query),
                               DB_BOOL(store_is_admin(c)), DB_TEXT(rank), DB_TEXT(id),
                               DB_I64(page.size + 1)),
                     &r, err);
    return s == STATUS_OK ? fill_list(c, r, page.size, ret, err) : s;
}

// ---------------------------------------------------------------- changes

static enum status check_texts(const char *title, const char *description, struct err *err)
{
    if (title && (!title[strspn(title, " \t\r\n")] || strlen(title) > TITLE_MAX))
        return rpc_bad_field(err, "title", "title must have 1 to %d bytes", TITLE_MAX);
    if (description && strlen(description) > DESCRIPTION_MAX)
        return rpc_bad_field(err, "description", "description is longer than %d bytes",
                             DESCRIPTION_MAX);
    return STATUS_OK;
}

static enum status append(struct db_conn *db, const char *kind, const Store__Item *i,
                          struct err *err)
{
    AUTO(buf_done) struct buf b;
    buf_init(&b, 8192);
    buf_puts(&b, "{\"title\":");
    buf_put_json_string(&b, i->title, strlen(i->title));
    buf_printf(&b, ",\"state\":\"%s\",\"version\":%lld", i->state, (long long)i->version);
    if (i->reason[0]) {
        buf_puts(&b, ",\"reason\":");
        buf_put_json_string(&b, i->reason, strlen(i->reason));
    }
    buf_putc(&b, '}');
    if (b.failed)
        return store_no_memory(err);
    return event_append(db, STORE_SCHEMA, STORE_TOPIC, kind, i->item_id, i->owner, buf_str(&b),
                        err);
}

struct change {
    struct store_call *call;
    const void *req;
    Store__Item *ret;
};

// Inside a transaction; locked so that what was read is what gets changed.
static enum status lock_item(const struct change *ch, struct db_conn *db, const char *id,
                             Store__Item *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(db, "SELECT " STORE_ITEM_COLUMNS " FROM store.item i WHERE i.id = $2 FOR UPDATE",
                DB_PARAMS(DB_TEXT(store_caller_id(ch->call)), DB_TEXT(id)), &r, err);
    if (s != STATUS_OK)
        return s;
    return db_result_n_rows(r) ? store_item_read(ch->call, r, 0, ret, err) : not_found(err);
}

// For the owner or an admin; others learn no more than they can see.
static enum status lock_own_item(const struct change *ch, struct db_conn *db, const char *id,
                                 Store__Item *ret, struct err *err)
{
    enum status s = lock_item(ch, db, id, ret, err);
    if (s != STATUS_OK || may_change(ch->call, ret))
        return s;
    if (!may_see(ch->call, ret))
        return not_found(err);
    return err_set(err, STATUS_PERMISSION_DENIED, "this item is somebody else's");
}

static enum status create_tx(struct db_conn *db, void *ud, struct err *err)
{
    const struct change *ch = ud;
    const Store__CreateItemRequest *q = ch->req;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    const Common__Money *price = q->price && q->price->minor ? q->price : NULL;
    enum status s = db_exec(
        db,
        "INSERT INTO store.item (id, owner, owner_name, title, description, kind, price_minor,"
        " currency, published) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        " ON CONFLICT (id) DO NOTHING",
        DB_PARAMS(DB_TEXT(q->item_id), DB_TEXT(q->owner), DB_TEXT(q->owner_name),
                  DB_TEXT(q->title[0] ? q->title : "Untitled"), DB_TEXT(q->description),
                  DB_TEXT(q->kind), DB_I64(price ? price->minor : 0),
                  DB_TEXT(price ? price->currency : ""), DB_BOOL(q->publish)),
        &r, err);
    if (s == STATUS_OK)
        s = lock_item(ch, db, q->item_id, ch->ret, err);
    if (s != STATUS_OK)
        return s;
    if (!str_eq(ch->ret->owner, q->owner))
        return err_set(err, STATUS_ALREADY_EXISTS, "an item with this id has another owner");
    return db_result_n_affected(r) ? append(db, "item.created", ch->ret, err) : STATUS_OK;
}

enum status store_item_create(struct store_call *c, const Store__CreateItemRequest *req,
                              Store__Item *ret, struct err *err)
{
    struct change ch = {.call = c, .req = req, .ret = ret};
    enum status s = store_check_id(req->item_id, "item_id", err);
    if (s == STATUS_OK)
        s = store_check_id(req->owner, "owner", err);
    if (s == STATUS_OK)
        s = check_texts(req->title[0] ? req->title : NULL, req->description, err);
    if (s == STATUS_OK && req->price)
        s = store_check_money(req->price, "price", true, err);
    if (s == STATUS_OK && !str_eq(req->kind, "video") && !str_eq(req->kind, "audio"))
        s = rpc_bad_field(err, "kind", "kind must be video or audio");
    if (s == STATUS_OK && strlen(req->owner_name) > NAME_MAX_BYTES)
        s = rpc_bad_field(err, "owner_name", "owner_name is too long");
    return s == STATUS_OK ? db_tx(c->store->db, DB_READ_COMMITTED, create_tx, &ch, err) : s;
}

// processing -> playable -> ready; failed from any. A late repetition never leads back.
static const struct {
    const char *name, *event;
    int order;
} media_states[] = {
    {"processing", NULL, 0},
    {"playable", "item.playable", 1},
    {"ready", "item.ready", 2},
    {"failed", "item.failed", 3},
};

static int find_state(const char *name)
{
    for (size_t i = 0; i < N_ELEMENTS(media_states); i++)
        if (str_eq(media_states[i].name, name))
            return (int)i;
    return -1;
}

static enum status set_media_tx(struct db_conn *db, void *ud, struct err *err)
{
    const struct change *ch = ud;
    const Store__SetMediaRequest *q = ch->req;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    Store__Item old;
    enum status s = lock_item(ch, db, q->item_id, &old, err);
    if (s != STATUS_OK)
        return s;
    int from = find_state(old.state), to = find_state(q->state);
    const char *state = to < from ? old.state : q->state;
    s = db_exec(db,
                "UPDATE store.item i SET state = $3, reason = $4,"
                " duration_us = CASE WHEN $5::bigint > 0 THEN $5::bigint ELSE duration_us END,"
                " width = CASE WHEN $6::int > 0 THEN $6::int ELSE width END,"
                " height = CASE WHEN $7::int > 0 THEN $7::int ELSE height END,"
                " kind = CASE WHEN $8::text <> '' THEN $8::text ELSE kind END"
                " WHERE i.id = $2 RETURNING " STORE_ITEM_COLUMNS,
                DB_PARAMS(DB_TEXT(store_caller_id(ch->call)), DB_TEXT(q->item_id), DB_TEXT(state),
                          DB_TEXT(to < from ? old.reason : q->reason), DB_I64(q->duration_us),
                          DB_I64(q->width), DB_I64(q->height), DB_TEXT(q->kind)),
                &r, err);
    if (s == STATUS_OK)
        s = store_item_read(ch->call, r, 0, ch->ret, err);
    if (s != STATUS_OK || to <= from)
        return s;
    return append(db, media_states[to].event, ch->ret, err);
}

enum status store_item_set_media(struct store_call *c, const Store__SetMediaRequest *req,
                                 Store__Item *ret, struct err *err)
{
    struct change ch = {.call = c, .req = req, .ret = ret};
    enum status s = store_check_id(req->item_id, "item_id", err);
    if (s == STATUS_OK && find_state(req->state) < 0)
        s = rpc_bad_field(err, "state", "state must be processing, playable, ready or failed");
    if (s == STATUS_OK && req->kind[0] && !str_eq(req->kind, "video") &&
        !str_eq(req->kind, "audio"))
        s = rpc_bad_field(err, "kind", "kind must be video or audio");
    return s == STATUS_OK ? db_tx(c->store->db, DB_READ_COMMITTED, set_media_tx, &ch, err) : s;
}

static enum status edit_tx(struct db_conn *db, void *ud, struct err *err)
{
    const struct change *ch = ud;
    const Store__EditItemRequest *q = ch->req;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    Store__Item old;
    enum status s = lock_own_item(ch, db, q->item_id, &old, err);
    if (s != STATUS_OK)
        return s;
    if (q->has_version && q->version != old.version)
        return err_set(err, STATUS_ABORTED, "the item has changed: it is at version %lld now",
                       (long long)old.version);
    s = db_exec(db,
                "UPDATE store.item i SET title = coalesce($3, title),"
                " description = coalesce($4, description),"
                " price_minor = coalesce($5, price_minor), currency = coalesce($6, currency),"
                " version = version + 1 WHERE i.id = $2 RETURNING " STORE_ITEM_COLUMNS,
                DB_PARAMS(DB_TEXT(store_caller_id(ch->call)), DB_TEXT(q->item_id),
                          DB_TEXT(q->title), DB_TEXT(q->description),
                          q->price ? DB_I64(q->price->minor) : DB_NULL,
                          DB_TEXT(!q->price         ? NULL
                                  : q->price->minor ? q->price->currency
                                                    : "")),
                &r, err);
    if (s == STATUS_OK)
        s = store_item_read(ch->call, r, 0, ch->ret, err);
    return s == STATUS_OK ? append(db, "item.edited", ch->ret, err) : s;
}

enum status store_item_edit(struct store_call *c, const Store__EditItemRequest *req,
                            Store__Item *ret, struct err *err)
{
    struct change ch = {.call = c, .req = req, .ret = ret};
    enum status s = store_need_user(c, err);
    if (s == STATUS_OK)
        s = store_check_id(req->item_id, "item_id", err);
    if (s == STATUS_OK)
        s = check_texts(req->title, req->description, err);
    if (s == STATUS_OK && req->price)
        s = store_check_money(req->price, "price", true, err);
    return s == STATUS_OK ? db_tx(c->store->db, DB_READ_COMMITTED, edit_tx, &ch, err) : s;
}

static enum status publish_tx(struct db_conn *db, void *ud, struct err *err)
{
    const struct change *ch = ud;
    const Store__PublishRequest *q = ch->req;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = lock_own_item(ch, db, q->item_id, ch->ret, err);
    if (s != STATUS_OK || !!ch->ret->published == !!q->published)
        return s;
    s = db_exec(
        db,
        "UPDATE store.item i SET published = $3, version = version + 1"
        " WHERE i.id = $2 RETURNING " STORE_ITEM_COLUMNS,
        DB_PARAMS(DB_TEXT(store_caller_id(ch->call)), DB_TEXT(q->item_id), DB_BOOL(q->published)),
        &r, err);
    if (s == STATUS_OK)
        s = store_item_read(ch->call, r, 0, ch->ret, err);
    if (s != STATUS_OK)
        return s;
    return append(db, q->published ? "item.published" : "item.unpublished", ch->ret, err);
}

enum status store_item_publish(struct store_call *c, const Store__PublishRequest *req,
                               Store__Item *ret, struct err *err)
{
    struct change ch = {.call = c, .req = req, .ret = ret};
    enum status s = store_need_user(c, err);
    if (s == STATUS_OK)
        s = store_check_id(req->item_id, "item_id", err);
    return s == STATUS_OK ? db_tx(c->store->db, DB_READ_COMMITTED, publish_tx, &ch, err) : s;
}
