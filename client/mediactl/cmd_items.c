// ls, search, show.
#include "cauce/store.rpc.h"
#include "ctl.h"

static void add_item(struct table *t, const Store__Item *i)
{
    char length[CTL_TIME_SIZE], price[CTL_MONEY_SIZE] = "free";
    ctl_duration(length, i->duration_us);
    if (i->price && i->price->minor)
        ctl_money(price, i->price->minor, i->price->currency);
    table_add(t, "%s", i->item_id);
    table_add(t, "%s", i->kind);
    table_add(t, "%s", i->state);
    table_add(t, "%s", length);
    table_add(t, "%s", i->owned ? "mine" : price);
    table_add(t, "%s", i->owner_name);
    table_add(t, "%s", i->title);
}

static enum status print_items(struct ctl *k, const Store__ListItemsReply *r)
{
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    static const char *const heads[] = {"ITEM", "KIND", "STATE", "LENGTH", "PRICE", "BY", "TITLE"};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_items; i++)
        add_item(&t, r->items[i]);
    enum status s = table_print(&t, stdout, &k->err);
    ctl_say_more(r->next_page);
    return s;
}

static enum status cmd_ls(struct ctl *k)
{
    Common__Page page;
    enum status s = ctl_page(k, &page);
    if (s != STATUS_OK)
        return s;
    Store__ListItemsRequest req = STORE__LIST_ITEMS_REQUEST__INIT;
    req.page = &page;
    req.mine = ctl_has(k, OPT_MINE);
    req.kind = client_str(k->opt[OPT_KIND]);
    AUTO(rpc_message_free_p) Store__ListItemsReply *r = NULL;
    s = CTL_CALL(k, store_catalog_list, NULL, &req, &r);
    return s == STATUS_OK ? print_items(k, r) : s;
}

static enum status print_hits(struct ctl *k, const Store__SpokenReply *r)
{
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    static const char *const heads[] = {"ITEM", "AT", "TEXT", "TITLE", "WORDS"};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_hits; i++) {
        const Store__SpokenHit *h = r->hits[i];
        char at[CTL_TIME_SIZE];
        ctl_duration(at, h->start_ms * 1000);
        table_add(&t, "%s", h->item->item_id);
        table_add(&t, "%s", at);
        table_add(&t, "%s", h->subtitle);
        table_add(&t, "%s", h->item->title);
        table_add(&t, "%s", h->words);
    }
    return table_print(&t, stdout, &k->err);
}

static enum status search_spoken(struct ctl *k, Store__SearchRequest *req)
{
    AUTO(rpc_message_free_p) Store__SpokenReply *r = NULL;
    enum status s = CTL_CALL(k, store_catalog_search_spoken, NULL, req, &r);
    return s == STATUS_OK ? print_hits(k, r) : s;
}

static enum status search_titles(struct ctl *k, Store__SearchRequest *req)
{
    AUTO(rpc_message_free_p) Store__ListItemsReply *r = NULL;
    enum status s = CTL_CALL(k, store_catalog_search, NULL, req, &r);
    return s == STATUS_OK ? print_items(k, r) : s;
}

static enum status cmd_search(struct ctl *k)
{
    Common__Page page;
    enum status s = ctl_page(k, &page);
    if (s != STATUS_OK)
        return s;
    struct buf words;
    buf_init(&words, 4096);
    for (size_t i = 0; i < k->n_args; i++)
        buf_printf(&words, "%s%s", i ? " " : "", k->args[i]);
    Store__SearchRequest req = STORE__SEARCH_REQUEST__INIT;
    req.page = &page;
    req.query = client_str(buf_str(&words));
    if (words.failed)
        s = err_set(&k->err, STATUS_INVALID_ARGUMENT, "too many words to search");
    else
        s = ctl_has(k, OPT_SPOKEN) ? search_spoken(k, &req) : search_titles(k, &req);
    buf_done(&words);
    return s;
}

static void print_item(const Store__Item *i)
{
    char length[CTL_TIME_SIZE], price[CTL_MONEY_SIZE] = "free";
    ctl_duration(length, i->duration_us);
    if (i->price && i->price->minor)
        ctl_money(price, i->price->minor, i->price->currency);
    printf("%s\n  title      %s\n  by         %s\n  kind       %s\n  state      %s%s%s\n"
           "  published  %s\n  price      %s%s\n  length     %s\n",
           i->item_id, i->title, i->owner_name, i->kind, i->state, i->reason[0] ? ": " : "",
           i->reason, i->published ? "yes" : "no", price, i->owned ? " (mine)" : "", length);
    if (i->width)
        printf("  picture    %dx%d\n", i->width, i->height);
    if (i->description[0])
        printf("  %s\n", i->description);
}

static enum status cmd_show(struct ctl *k)
{
    Store__GetItemRequest req = STORE__GET_ITEM_REQUEST__INIT;
    req.item_id = k->args[0];
    AUTO(rpc_message_free_p) Store__Item *i = NULL;
    enum status s = CTL_CALL(k, store_catalog_get, NULL, &req, &i);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &i->base);
    if (s == STATUS_OK)
        print_item(i);
    return s;
}

static const struct command commands[] = {
    {"ls", "", 0, 0, ALLOW_PAGE | ALLOW(OPT_MINE) | ALLOW(OPT_KIND), CONNECTED, cmd_ls,
     "list the catalogue"},
    {"search", "WORD..", 1, 32, ALLOW_PAGE | ALLOW(OPT_SPOKEN), CONNECTED, cmd_search,
     "search titles and descriptions, or what is said"},
    {"show", "ITEM", 1, 1, 0, CONNECTED, cmd_show, "show one item"},
};
const struct command_group item_commands = {commands, N_ELEMENTS(commands)};
