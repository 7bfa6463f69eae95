// The one gate: whether bytes of an item may flow to a user, and the token that says so to origins,
// gateways and peers. And the list of what a user has bought.
#include "internal.h"

#include <string.h>

#include "base/str.h"
#include "base/time.h"

#define MEDIA_TOKEN_MAX 2048

static const struct {
    const char *name;
    unsigned bits;
} rights[] = {
    {"stream", SVC_RIGHT_STREAM},
    {"download", SVC_RIGHT_STREAM | SVC_RIGHT_DOWNLOAD},
};

static unsigned parse_right(const char *name)
{
    for (size_t i = 0; i < N_ELEMENTS(rights); i++)
        if (str_eq(rights[i].name, name))
            return rights[i].bits;
    return 0;
}

// First that applies; *ret_allowed says which kind of reason it is.
static const char *decide(const struct store_call *c, const Store__Item *i, bool *ret_allowed)
{
    *ret_allowed = true;
    if (c->user && str_eq(c->user->id, i->owner))
        return "owner";
    if (c->user && (c->user->roles & ROLE_ADMIN))
        return "admin";
    if (c->user && i->owned)
        return "bought";
    if (i->published && !i->price)
        return "free";
    *ret_allowed = false;
    return i->published ? "not_bought" : "not_published";
}

static enum status mint(const struct store_call *c, const char *item, unsigned bits,
                        Store__CheckReply *ret, struct err *err)
{
    struct svc_media_claims claims = {.rights = bits,
                                      .exp_wall_ms = time_wall_ms() + c->store->media_token_ms};
    str_copy(claims.sub, sizeof claims.sub, c->user ? c->user->id : STORE_NIL_UUID);
    str_copy(claims.item, sizeof claims.item, item);
    AUTO(buf_done) struct buf b;
    buf_init(&b, MEDIA_TOKEN_MAX);
    enum status s = c->store->mint(c->store->token_secret, &claims, &b, err);
    if (s != STATUS_OK)
        return s;
    ret->media_token = arena_strndup(c->arena, buf_str(&b), b.len);
    ret->expires = store_timestamp(c, claims.exp_wall_ms * 1000);
    return ret->media_token && ret->expires ? STATUS_OK : store_no_memory(err);
}

enum status store_check(struct store_call *c, const Store__CheckRequest *req,
                        Store__CheckReply *ret, struct err *err)
{
    bool allowed = false;
    unsigned bits = parse_right(req->right);
    Store__Item *item = arena_alloc(c->arena, sizeof *item);
    if (!item)
        return store_no_memory(err);
    if (!bits)
        return rpc_bad_field(err, "right", "right must be stream or download");
    enum status s = store_item_load(c, req->item_id, item, err);
    if (s != STATUS_OK && s != STATUS_NOT_FOUND)
        return s;
    const char *reason = s == STATUS_OK ? decide(c, item, &allowed) : "not_found";
    ret->allowed = allowed;
    ret->reason = arena_strdup(c->arena, reason);
    if (!ret->reason)
        return store_no_memory(err);
    if (s == STATUS_OK && (allowed || item->published))
        ret->item = item;
    return allowed ? mint(c, item->item_id, bits, ret, err) : STATUS_OK;
}

// ---------------------------------------------------------------- library

static enum status fill_entry(const struct store_call *c, const struct db_result *r, size_t row,
                              Store__LibraryEntry *ret, struct err *err)
{
    store__library_entry__init(ret);
    ret->item = arena_alloc(c->arena, sizeof *ret->item);
    if (!ret->item)
        return store_no_memory(err);
    enum status s = store_item_read(c, r, row, ret->item, err);
    if (s != STATUS_OK)
        return s;
    ret->order_id = store_dup(c, r, row, STORE_ITEM_N_COLUMNS);
    ret->since = store_timestamp(c, db_i64(r, row, STORE_ITEM_N_COLUMNS + 1));
    return ret->order_id && ret->since ? STATUS_OK : store_no_memory(err);
}

static enum status fill_library(const struct store_call *c, const struct db_result *r, size_t most,
                                Store__ListLibraryReply *ret, struct err *err)
{
    size_t n = db_result_n_rows(r);
    Store__LibraryEntry *entries = arena_array(c->arena, n + 1, sizeof *entries);
    ret->entries = arena_array(c->arena, n + 1, sizeof *ret->entries);
    if (!entries || !ret->entries)
        return store_no_memory(err);
    for (size_t i = 0; i < n && i < most; i++) {
        enum status s = fill_entry(c, r, i, &entries[i], err);
        if (s != STATUS_OK)
            return s;
        ret->entries[ret->n_entries++] = &entries[i];
    }
    if (n > most) {
        ret->next_page = store_page_token(c, db_text(r, most - 1, STORE_ITEM_N_COLUMNS + 2));
        if (!ret->next_page)
            return store_no_memory(err);
    }
    return STATUS_OK;
}

enum status store_library(struct store_call *c, const Store__ListLibraryRequest *req,
                          Store__ListLibraryReply *ret, struct err *err)
{
    struct store_page page;
    int64_t before = INT64_MAX;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = store_need_user(c, err);
    if (s == STATUS_OK)
        s = store_page_parse(req->page, &page, err);
    if (s == STATUS_OK && page.after[0])
        s = str_parse_i64(page.after, 1, INT64_MAX, &before, err);
    if (s == STATUS_OK)
        s = db_query(c->store->db,
                     "SELECT " STORE_ITEM_COLUMNS ", n.order_id,"
                     " (extract(epoch FROM n.since) * 1000000)::bigint, n.id"
                     " FROM store.entitlement n JOIN store.item i ON i.id = n.item"
                     " WHERE n.buyer = $1::uuid AND n.revoked IS NULL AND n.id < $2"
                     " ORDER BY n.id DESC LIMIT $3",
                     DB_PARAMS(DB_TEXT(c->user->id), DB_I64(before), DB_I64(page.size + 1)), &r,
                     err);
    return s == STATUS_OK ? fill_library(c, r, (size_t)page.size, ret, err) : s;
}
