// Quotes, purchases, the prepaid balance.
#include <string.h>

#include "cauce/store.rpc.h"
#include "internal.h"

static void fill_money(cauce_money *ret, const Common__Money *m)
{
    memset(ret, 0, sizeof(*ret));
    if (!m)
        return;
    ret->minor = m->minor;
    str_copy(ret->currency, sizeof(ret->currency), m->currency);
}

static int64_t wall_ms(const Google__Protobuf__Timestamp *t)
{
    return t ? t->seconds * 1000 + t->nanos / 1000000 : 0;
}

cauce_status cauce_get_quote(cauce *c, const char *const *item_ids, size_t n, cauce_quote *ret,
                             cauce_error *err)
{
    struct err e = ERR_INIT;
    enum { MAX_ITEMS = 50 };
    char *ids[MAX_ITEMS];
    if (n == 0 || n > MAX_ITEMS)
        return client_fail(&e,
                           err_set(&e, STATUS_INVALID_ARGUMENT,
                                   "a quote takes 1 to %d items, not %zu", MAX_ITEMS, n),
                           err);
    for (size_t i = 0; i < n; i++)
        ids[i] = client_str(item_ids[i]);
    Store__QuoteRequest req = STORE__QUOTE_REQUEST__INIT;
    req.n_item_ids = n;
    req.item_ids = ids;
    AUTO(rpc_message_free_p) Store__QuoteReply *q = NULL;
    struct client_try t;
    enum status s = client_try_begin(&t, c, CLIENT_LOGGED_IN, NULL, 0, NULL, &e);
    if (s == STATUS_OK)
        s = CLIENT_CALL(&t, store_shop_quote(c->rpc, &t.opts, &req, &q, &e), &e);
    if (s != STATUS_OK)
        return client_fail(&e, s, err);
    memset(ret, 0, sizeof(*ret));
    str_copy(ret->id, sizeof(ret->id), q->quote_id);
    fill_money(&ret->total, q->total);
    ret->expires_ms = wall_ms(q->expires);
    ret->n_lines = q->n_lines;
    for (size_t i = 0; i < q->n_lines; i++)
        ret->n_owned += q->lines[i]->owned ? 1 : 0;
    return client_fail(&e, STATUS_OK, err);
}

cauce_status cauce_purchase(cauce *c, const char *quote_id, const char *idempotency_key,
                            cauce_order *ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    Store__PurchaseRequest req = STORE__PURCHASE_REQUEST__INIT;
    req.quote_id = client_str(quote_id);
    req.idempotency_key = client_str(idempotency_key);
    AUTO(rpc_message_free_p) Store__Order *o = NULL;
    struct client_try t;
    enum status s = client_try_begin(&t, c, CLIENT_LOGGED_IN, NULL, 0, NULL, &e);
    t.opts.idempotency_key = idempotency_key;
    if (s == STATUS_OK)
        s = CLIENT_CALL(&t, store_shop_purchase(c->rpc, &t.opts, &req, &o, &e), &e);
    if (s != STATUS_OK)
        return client_fail(&e, s, err);
    memset(ret, 0, sizeof(*ret));
    str_copy(ret->id, sizeof(ret->id), o->order_id);
    str_copy(ret->state, sizeof(ret->state), o->state);
    fill_money(&ret->total, o->total);
    ret->created_ms = wall_ms(o->created);
    return client_fail(&e, STATUS_OK, err);
}

static void fill_balances(const Store__BalanceReply *r, cauce_money *ret, size_t max, size_t *ret_n)
{
    *ret_n = r->n_balances;
    for (size_t i = 0; i < r->n_balances && i < max; i++)
        fill_money(&ret[i], r->balances[i]);
}

cauce_status cauce_balance(cauce *c, cauce_money *ret, size_t max, size_t *ret_n, cauce_error *err)
{
    struct err e = ERR_INIT;
    Store__BalanceRequest req = STORE__BALANCE_REQUEST__INIT;
    AUTO(rpc_message_free_p) Store__BalanceReply *r = NULL;
    struct client_try t;
    enum status s = client_try_begin(&t, c, CLIENT_LOGGED_IN, NULL, 0, NULL, &e);
    if (s == STATUS_OK)
        s = CLIENT_CALL(&t, store_shop_balance(c->rpc, &t.opts, &req, &r, &e), &e);
    if (s == STATUS_OK)
        fill_balances(r, ret, max, ret_n);
    return client_fail(&e, s, err);
}

cauce_status cauce_redeem(cauce *c, const char *voucher, cauce_money *ret, size_t max,
                          size_t *ret_n, cauce_error *err)
{
    struct err e = ERR_INIT;
    Store__RedeemVoucherRequest req = STORE__REDEEM_VOUCHER_REQUEST__INIT;
    req.code = client_str(voucher);
    AUTO(rpc_message_free_p) Store__BalanceReply *r = NULL;
    struct client_try t;
    enum status s = client_try_begin(&t, c, CLIENT_LOGGED_IN, NULL, 0, NULL, &e);
    if (s == STATUS_OK)
        s = CLIENT_CALL(&t, store_shop_redeem_voucher(c->rpc, &t.opts, &req, &r, &e), &e);
    if (s == STATUS_OK)
        fill_balances(r, ret, max, ret_n);
    return client_fail(&e, s, err);
}
