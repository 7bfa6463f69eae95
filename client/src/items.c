// Catalogue and library lists.
#include "items.h"

#include "cauce/store.rpc.h"

// The public list is the first member, so that freeing finds the arena.
struct item_list {
    cauce_items pub;
    struct arena *arena;
};

static const char *keep(struct arena *a, const char *s)
{
    return arena_strdup(a, s ? s : "");
}

static int64_t wall_ms(const Google__Protobuf__Timestamp *t)
{
    return t ? t->seconds * 1000 + t->nanos / 1000000 : 0;
}

static void fill_item(struct arena *a, cauce_item *ret, const Store__Item *i)
{
    *ret = (cauce_item){
        .id = keep(a, i->item_id),
        .title = keep(a, i->title),
        .description = keep(a, i->description),
        .kind = keep(a, i->kind),
        .state = keep(a, i->state),
        .reason = keep(a, i->reason),
        .owner = keep(a, i->owner),
        .owner_name = keep(a, i->owner_name),
        .published = i->published,
        .owned = i->owned,
        .price_minor = i->price ? i->price->minor : 0,
        .currency = keep(a, i->price ? i->price->currency : ""),
        .duration_us = i->duration_us,
        .created_ms = wall_ms(i->created),
        .version = i->version,
        .width = i->width,
        .height = i->height,
    };
}

enum status client_items_new(const Store__Item *(*more)(const void *ud, size_t i), const void *ud,
                             size_t n, const char *next_page, cauce_items **ret, struct err *err)
{
    struct item_list *l = mem_alloc(sizeof(*l));
    if (l)
        l->arena = arena_new(RPC_MAX_MESSAGE_BYTES * 2);
    cauce_item *items = l && l->arena ? arena_array(l->arena, n + 1, sizeof(items[0])) : NULL;
    if (!items) {
        if (l)
            arena_free(l->arena);
        mem_free(l);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    }
    for (size_t i = 0; i < n; i++)
        fill_item(l->arena, &items[i], more(ud, i));
    l->pub = (cauce_items){.n = n, .item = items, .next_page = keep(l->arena, next_page)};
    *ret = &l->pub;
    return STATUS_OK;
}

void cauce_items_free(cauce_items *items)
{
    struct item_list *l = (struct item_list *)(void *)items;
    if (l)
        arena_free(l->arena);
    mem_free(l);
}

void cauce_query_init(cauce_query *query)
{
    *query = (cauce_query){.size = sizeof(*query)};
}

static const Store__Item *listed(const void *ud, size_t i)
{
    return ((const Store__ListItemsReply *)ud)->items[i];
}

static enum status list_items(struct cauce *c, const cauce_query *q, Store__ListItemsReply **ret,
                              struct err *err)
{
    Common__Page page = COMMON__PAGE__INIT;
    page.size = q->page_size;
    page.token = client_str(q->page);
    Store__ListItemsRequest list = STORE__LIST_ITEMS_REQUEST__INIT;
    list.page = &page;
    list.mine = q->mine != 0;
    list.kind = client_str(q->kind);
    Store__SearchRequest search = STORE__SEARCH_REQUEST__INIT;
    search.page = &page;
    search.query = client_str(q->text);
    struct client_try t;
    enum status s = client_try_begin(&t, c, q->mine ? CLIENT_LOGGED_IN : CLIENT_IF_LOGGED_IN, NULL,
                                     0, NULL, err);
    if (s != STATUS_OK)
        return s;
    if (q->text)
        return CLIENT_CALL(&t, store_catalog_search(c->rpc, &t.opts, &search, ret, err), err);
    return CLIENT_CALL(&t, store_catalog_list(c->rpc, &t.opts, &list, ret, err), err);
}

cauce_status cauce_items_list(cauce *c, const cauce_query *query, cauce_items **ret,
                              cauce_error *err)
{
    struct err e = ERR_INIT;
    AUTO(rpc_message_free_p) Store__ListItemsReply *r = NULL;
    enum status s = list_items(c, query, &r, &e);
    if (s == STATUS_OK)
        s = client_items_new(listed, r, r->n_items, r->next_page, ret, &e);
    return client_fail(&e, s, err);
}

static const Store__Item *the_one(const void *ud, size_t i)
{
    (void)i;
    return ud;
}

cauce_status cauce_item_get(cauce *c, const char *item_id, cauce_items **ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    Store__GetItemRequest req = STORE__GET_ITEM_REQUEST__INIT;
    req.item_id = client_str(item_id);
    AUTO(rpc_message_free_p) Store__Item *item = NULL;
    struct client_try t;
    enum status s = client_try_begin(&t, c, CLIENT_IF_LOGGED_IN, NULL, 0, NULL, &e);
    if (s == STATUS_OK)
        s = CLIENT_CALL(&t, store_catalog_get(c->rpc, &t.opts, &req, &item, &e), &e);
    if (s == STATUS_OK)
        s = client_items_new(the_one, item, 1, "", ret, &e);
    return client_fail(&e, s, err);
}

static const Store__Item *entry_item(const void *ud, size_t i)
{
    static const Store__Item none = STORE__ITEM__INIT;
    const Store__Item *item = ((const Store__ListLibraryReply *)ud)->entries[i]->item;
    return item ? item : &none;
}

cauce_status cauce_library_list(cauce *c, const char *page_token, cauce_items **ret,
                                cauce_error *err)
{
    struct err e = ERR_INIT;
    Common__Page page = COMMON__PAGE__INIT;
    page.token = client_str(page_token);
    Store__ListLibraryRequest req = STORE__LIST_LIBRARY_REQUEST__INIT;
    req.page = &page;
    AUTO(rpc_message_free_p) Store__ListLibraryReply *r = NULL;
    struct client_try t;
    enum status s = client_try_begin(&t, c, CLIENT_LOGGED_IN, NULL, 0, NULL, &e);
    if (s == STATUS_OK)
        s = CLIENT_CALL(&t, store_library_list(c->rpc, &t.opts, &req, &r, &e), &e);
    if (s == STATUS_OK)
        s = client_items_new(entry_item, r, r->n_entries, r->next_page, ret, &e);
    return client_fail(&e, s, err);
}
