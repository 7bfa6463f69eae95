// buy, balance, voucher create and redeem, orders.
#include "base/rand.h"
#include "cauce/store.rpc.h"
#include "ctl.h"

static enum status cmd_buy(struct ctl *k)
{
    Store__QuoteRequest qr = STORE__QUOTE_REQUEST__INIT;
    qr.n_item_ids = k->n_args;
    qr.item_ids = k->args;
    AUTO(rpc_message_free_p) Store__QuoteReply *q = NULL;
    enum status s = CTL_CALL(k, store_shop_quote, NULL, &qr, &q);
    if (s != STATUS_OK)
        return s;
    char made[UUID_SIZE];
    rand_uuid7(made);
    Store__PurchaseRequest pr = STORE__PURCHASE_REQUEST__INIT;
    pr.quote_id = q->quote_id;
    pr.idempotency_key =
        ctl_has(k, OPT_IDEMPOTENCY_KEY) ? client_str(k->opt[OPT_IDEMPOTENCY_KEY]) : made;
    AUTO(rpc_message_free_p) Store__Order *o = NULL;
    s = CTL_CALL(k, store_shop_purchase, NULL, &pr, &o);
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
    enum status s = ctl_parse_money(k->args[0], &amount.minor, currency, &k->err);
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
    int64_t limit;
    enum status s = ctl_number(k, OPT_LIMIT, 1, 200, 0, &limit, &k->err);
    if (s != STATUS_OK)
        return s;
    Common__Page page = COMMON__PAGE__INIT;
    page.size = (int32_t)limit;
    page.token = client_str(k->opt[OPT_PAGE]);
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
