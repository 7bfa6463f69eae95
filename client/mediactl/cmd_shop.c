// buy, balance, voucher create and redeem, orders.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/rand.h"
#include "cauce/store.rpc.h"
#include "ctl.h"

// ---------------------------------------------------------------- buying

// A key stands for one request, and the quote is part of it. So with a key of the user's own the
// quote is noted in the state folder before it is bought: the same command again, also after a
// crash, names the same quote and gets the same order.
struct note {
    char *path;
    char items[50 * UUID_SIZE]; // as they were given
    char quote[64];
};

static enum status note_init(struct ctl *k, struct note *n)
{
    const char *key = k->opt[OPT_IDEMPOTENCY_KEY];
    char hex[2 * 64 + 1];
    *n = (struct note){0};
    if (strlen(key) == 0 || strlen(key) > 64)
        return err_set(&k->err, STATUS_INVALID_ARGUMENT,
                       "--idempotency-key takes 1 to 64 characters");
    str_hex(hex, key, strlen(key));
    n->path = mem_printf("%s/buy-%s", k->state_dir, hex);
    if (!n->path)
        return err_set(&k->err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    for (size_t i = 0, at = 0; i < k->n_args; i++, at = strlen(n->items))
        snprintf(n->items + at, sizeof(n->items) - at, "%s%s", i ? " " : "", k->args[i]);
    return STATUS_OK;
}

// Fills quote when these items were quoted under this key before.
static void note_read(struct note *n)
{
    char items[sizeof(n->items) + 2] = "", quote[sizeof(n->quote) + 2] = "";
    FILE *f = fopen(n->path, "re");
    if (!f)
        return;
    bool whole =
        fgets(items, sizeof(items), f) && fgets(quote, sizeof(quote), f) && strchr(quote, '\n');
    fclose(f);
    items[strcspn(items, "\n")] = quote[strcspn(quote, "\n")] = '\0';
    if (whole && strcmp(items, n->items) == 0)
        str_copy(n->quote, sizeof(n->quote), quote);
}

static enum status note_write(struct ctl *k, const struct note *n)
{
    FILE *f = fopen(n->path, "we");
    bool ok = f && fprintf(f, "%s\n%s\n", n->items, n->quote) > 0 && fflush(f) == 0 &&
              fsync(fileno(f)) == 0;
    if (f && fclose(f) != 0)
        ok = false;
    return ok ? STATUS_OK : err_errno(&k->err, errno, "write %s", n->path);
}

static enum status get_quote(struct ctl *k, char *dst, size_t size)
{
    Store__QuoteRequest req = STORE__QUOTE_REQUEST__INIT;
    req.n_item_ids = k->n_args;
    req.item_ids = k->args;
    AUTO(rpc_message_free_p) Store__QuoteReply *q = NULL;
    enum status s = CTL_CALL(k, store_shop_quote, NULL, &req, &q);
    if (s == STATUS_OK && !str_copy(dst, size, q->quote_id))
        s = err_set(&k->err, STATUS_INTERNAL, "the quote's id is too long");
    return s;
}

static enum status purchase(struct ctl *k, const char *quote, const char *key, Store__Order **ret)
{
    Store__PurchaseRequest req = STORE__PURCHASE_REQUEST__INIT;
    req.quote_id = client_str(quote);
    req.idempotency_key = client_str(key);
    struct client_try t;
    enum status s = client_try_begin(&t, k->c, CLIENT_LOGGED_IN, NULL, 0, NULL, &k->err);
    t.opts.idempotency_key = key; // a lost answer is asked for again
    if (s != STATUS_OK)
        return s;
    return CLIENT_CALL(&t, store_shop_purchase(client_rpc(k->c), &t.opts, &req, ret, &k->err),
                       &k->err);
}

static enum status buy_with_key(struct ctl *k, Store__Order **ret)
{
    struct note n;
    enum status s = note_init(k, &n);
    if (s != STATUS_OK)
        return s;
    note_read(&n);
    bool again = n.quote[0];
    if (again)
        s = purchase(k, n.quote, k->opt[OPT_IDEMPOTENCY_KEY], ret);
    // not bought then and expired meanwhile: a new quote
    if (!again || s == STATUS_NOT_FOUND || s == STATUS_FAILED_PRECONDITION) {
        s = get_quote(k, n.quote, sizeof(n.quote));
        if (s == STATUS_OK)
            s = note_write(k, &n);
        if (s == STATUS_OK)
            s = purchase(k, n.quote, k->opt[OPT_IDEMPOTENCY_KEY], ret);
    }
    mem_free(n.path);
    return s;
}

static enum status buy_once(struct ctl *k, Store__Order **ret)
{
    char quote[64], key[UUID_SIZE];
    rand_uuid7(key);
    enum status s = get_quote(k, quote, sizeof(quote));
    return s == STATUS_OK ? purchase(k, quote, key, ret) : s;
}

static enum status cmd_buy(struct ctl *k)
{
    AUTO(rpc_message_free_p) Store__Order *o = NULL;
    enum status s = ctl_has(k, OPT_IDEMPOTENCY_KEY) ? buy_with_key(k, &o) : buy_once(k, &o);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &o->base);
    if (s == STATUS_OK) {
        char total[CTL_MONEY_SIZE] = "nothing";
        if (o->total)
            ctl_money(total, o->total->minor, o->total->currency);
        printf("order %s %s: %s\n", o->order_id, o->state, total);
    }
    return s;
}

// ---------------------------------------------------------------- money

static enum status print_balances(struct ctl *k, const Store__BalanceReply *r)
{
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    for (size_t i = 0; i < r->n_balances; i++) {
        char text[CTL_MONEY_SIZE];
        ctl_money(text, r->balances[i]->minor, r->balances[i]->currency);
        puts(text);
    }
    if (r->n_balances == 0)
        puts("nothing");
    return STATUS_OK;
}

static enum status cmd_balance(struct ctl *k)
{
    Store__BalanceRequest req = STORE__BALANCE_REQUEST__INIT;
    AUTO(rpc_message_free_p) Store__BalanceReply *r = NULL;
    enum status s = CTL_CALL(k, store_shop_balance, NULL, &req, &r);
    return s == STATUS_OK ? print_balances(k, r) : s;
}

static enum status cmd_redeem(struct ctl *k)
{
    Store__RedeemVoucherRequest req = STORE__REDEEM_VOUCHER_REQUEST__INIT;
    req.code = k->args[0];
    AUTO(rpc_message_free_p) Store__BalanceReply *r = NULL;
    enum status s = CTL_CALL(k, store_shop_redeem_voucher, NULL, &req, &r);
    return s == STATUS_OK ? print_balances(k, r) : s;
}

static enum status cmd_voucher_create(struct ctl *k)
{
    Common__Money amount = COMMON__MONEY__INIT;
    char currency[4];
    enum status s = ctl_parse_money(k, k->args[0], &amount.minor, currency);
    if (s != STATUS_OK)
        return s;
    amount.currency = currency;
    Store__CreateVoucherRequest req = STORE__CREATE_VOUCHER_REQUEST__INIT;
    req.amount = &amount;
    AUTO(rpc_message_free_p) Store__Voucher *v = NULL;
    s = CTL_CALL(k, store_shop_create_voucher, NULL, &req, &v);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &v->base);
    if (s == STATUS_OK)
        puts(v->code);
    return s;
}

static enum status cmd_orders(struct ctl *k)
{
    Common__Page page;
    enum status s = ctl_page(k, &page);
    if (s != STATUS_OK)
        return s;
    Store__ListOrdersRequest req = STORE__LIST_ORDERS_REQUEST__INIT;
    req.page = &page;
    AUTO(rpc_message_free_p) Store__ListOrdersReply *r = NULL;
    s = CTL_CALL(k, store_shop_list_orders, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    for (size_t i = 0; s == STATUS_OK && i < r->n_orders; i++) {
        const Store__Order *o = r->orders[i];
        char total[CTL_MONEY_SIZE] = "";
        if (o->total)
            ctl_money(total, o->total->minor, o->total->currency);
        printf("%s  %-8s  %12s  %s\n", o->order_id, o->state, total,
               o->n_lines ? o->lines[0]->title : "");
    }
    if (s == STATUS_OK)
        ctl_say_more(r->next_page);
    return s;
}

static const struct command commands[] = {
    {"buy", "ITEM..", 1, 50, ALLOW(OPT_IDEMPOTENCY_KEY), CONNECTED, cmd_buy,
     "buy items from the balance"},
    {"balance", "", 0, 0, 0, CONNECTED, cmd_balance, "money on my account"},
    {"orders", "", 0, 0, ALLOW_PAGE, CONNECTED, cmd_orders, "what I bought"},
    {"voucher create", "AMOUNT", 1, 1, 0, CONNECTED, cmd_voucher_create,
     "make a voucher (admin); its code is shown once"},
    {"voucher redeem", "CODE", 1, 1, 0, CONNECTED, cmd_redeem, "put a voucher on my balance"},
};
const struct command_group shop_commands = {commands, N_ELEMENTS(commands)};
