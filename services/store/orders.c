// Quotes, purchases, refunds, orders.
//
// A quote fixes lines and prices for a while. A purchase charges it: ledger, order, entitlements,
// reply and event in the one SERIALIZABLE transaction of store_once().
#include "internal.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "base/time.h"

#define MAX_LINES 50

static enum status fill_line(const struct store_call *c, const struct db_result *r, size_t row,
                             unsigned col, const char *currency, Store__QuoteLine *ret,
                             struct err *err)
{
    bool ok = true;
    store__quote_line__init(ret);
    ret->item_id = store_dup(c, r, row, col);
    ret->title = store_dup(c, r, row, col + 1);
    ret->price = store_money(c, db_i64(r, row, col + 2), currency, &ok);
    ret->owned = db_bool(r, row, col + 3);
    return ok && ret->item_id && ret->title ? STATUS_OK : store_no_memory(err);
}

// ---------------------------------------------------------------- quote

struct quote {
    struct store_call *call;
    const Store__QuoteRequest *req;
    Store__QuoteReply *ret;
    char id[UUID_SIZE];
    char currency[4];
    int64_t total, expires_ms;
    struct db_result *items; // rows of the wanted items, in any order
};

static enum status check_quote_request(const Store__QuoteRequest *req, struct err *err)
{
    if (req->n_item_ids < 1 || req->n_item_ids > MAX_LINES)
        return rpc_bad_field(err, "item_ids", "a quote has 1 to %d items", MAX_LINES);
    for (size_t i = 0; i < req->n_item_ids; i++) {
        char field[32];
        snprintf(field, sizeof field, "item_ids[%zu]", i);
        enum status s = store_check_id(req->item_ids[i], field, err);
        if (s != STATUS_OK)
            return s;
        for (size_t j = 0; j < i; j++)
            if (str_eq(req->item_ids[i], req->item_ids[j]))
                return rpc_bad_field(err, field, "item %s is listed twice", req->item_ids[i]);
    }
    return STATUS_OK;
}

// Checked ids only, so that the array's text form needs no quoting.
static bool put_id_array(struct buf *b, char *const *ids, size_t n)
{
    buf_putc(b, '{');
    for (size_t i = 0; i < n; i++)
        buf_printf(b, "%s%s", i ? "," : "", ids[i]);
    buf_putc(b, '}');
    return !b->failed;
}

static enum status read_items(struct db_conn *db, struct quote *q, struct err *err)
{
    AUTO(buf_done) struct buf ids;
    buf_init(&ids, MAX_LINES * 40);
    if (!put_id_array(&ids, q->req->item_ids, q->req->n_item_ids))
        return store_no_memory(err);
    db_result_free(q->items);
    q->items = NULL;
    return db_exec(db,
                   "SELECT i.id, i.title, i.price_minor, i.owner = $1 OR EXISTS (SELECT 1"
                   " FROM store.entitlement e WHERE e.item = i.id AND e.buyer = $1::uuid"
                   " AND e.revoked IS NULL), i.currency, i.published AND i.state <> 'failed'"
                   " FROM store.item i WHERE i.id = ANY ($2::uuid[])",
                   DB_PARAMS(DB_TEXT(q->call->user->id), DB_TEXT(buf_str(&ids))), &q->items, err);
}

static enum status find_row(const struct quote *q, const char *id, size_t *ret, struct err *err)
{
    for (size_t i = 0; i < db_result_n_rows(q->items); i++) {
        if (!str_eq(db_text(q->items, i, 0), id))
            continue;
        if (!db_bool(q->items, i, 5) && !db_bool(q->items, i, 3))
            break;
        *ret = i;
        return STATUS_OK;
    }
    return err_set(err, STATUS_NOT_FOUND, "item %s is not for sale", id);
}

// What is owned already costs nothing; all that costs something has one currency.
static enum status add_line(struct quote *q, size_t row, Store__QuoteLine *ret, struct err *err)
{
    int64_t price = db_i64(q->items, row, 2);
    const char *currency = db_text(q->items, row, 4);
    enum status s = fill_line(q->call, q->items, row, 0, price ? currency : "", ret, err);
    if (s != STATUS_OK || price == 0)
        return s;
    if (ret->owned) {
        ret->price->minor = 0;
        return STATUS_OK;
    }
    if (q->currency[0] && !str_eq(q->currency, currency))
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "the items have prices in different currencies: buy them apart");
    str_copy(q->currency, sizeof q->currency, currency);
    q->total += price; // at most 50 prices of 10^12
    return STATUS_OK;
}

static enum status add_lines(struct quote *q, struct err *err)
{
    size_t n = q->req->n_item_ids, row = 0;
    Store__QuoteLine *lines = arena_array(q->call->arena, n, sizeof *lines);
    q->total = 0, q->currency[0] = '\0', q->ret->n_lines = 0;
    q->ret->lines = arena_array(q->call->arena, n, sizeof *q->ret->lines);
    if (!lines || !q->ret->lines)
        return store_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        enum status s = find_row(q, q->req->item_ids[i], &row, err);
        if (s == STATUS_OK)
            s = add_line(q, row, &lines[i], err);
        if (s != STATUS_OK)
            return s;
        q->ret->lines[q->ret->n_lines++] = &lines[i];
    }
    return STATUS_OK;
}

static enum status insert_quote(struct db_conn *db, const struct quote *q, struct err *err)
{
    enum status s = db_exec(db,
                            "DELETE FROM store.quote WHERE id IN (SELECT id FROM store.quote WHERE"
                            " expires < now() - interval '1 day' ORDER BY expires LIMIT 20"
                            " FOR UPDATE SKIP LOCKED)",
                            NULL, 0, NULL, err);
    if (s == STATUS_OK)
        s = db_exec(db,
                    "INSERT INTO store.quote (id, buyer, currency, total, expires)"
                    " VALUES ($1, $2, $3, $4, to_timestamp($5::bigint / 1000.0))",
                    DB_PARAMS(DB_TEXT(q->id), DB_TEXT(q->call->user->id), DB_TEXT(q->currency),
                              DB_I64(q->total), DB_I64(q->expires_ms)),
                    NULL, err);
    for (size_t i = 0; s == STATUS_OK && i < q->ret->n_lines; i++) {
        const Store__QuoteLine *l = q->ret->lines[i];
        s = db_exec(db,
                    "INSERT INTO store.quote_line (quote, position, item, title, price_minor,"
                    " owned) VALUES ($1, $2, $3, $4, $5, $6)",
                    DB_PARAMS(DB_TEXT(q->id), DB_I64(i), DB_TEXT(l->item_id), DB_TEXT(l->title),
                              DB_I64(l->price ? l->price->minor : 0), DB_BOOL(l->owned)),
                    NULL, err);
    }
    return s;
}

static enum status quote_tx(struct db_conn *db, void *ud, struct err *err)
{
    struct quote *q = ud;
    enum status s = read_items(db, q, err);
    if (s == STATUS_OK)
        s = add_lines(q, err);
    return s == STATUS_OK ? insert_quote(db, q, err) : s;
}

enum status store_quote(struct store_call *c, const Store__QuoteRequest *req,
                        Store__QuoteReply *ret, struct err *err)
{
    struct quote q = {
        .call = c, .req = req, .ret = ret, .expires_ms = time_wall_ms() + c->store->quote_ms};
    bool ok = true;
    enum status s = store_need_user(c, err);
    if (s == STATUS_OK)
        s = check_quote_request(req, err);
    if (s != STATUS_OK)
        return s;
    rand_uuid7(q.id);
    s = db_tx(c->store->db, DB_REPEATABLE_READ, quote_tx, &q, err);
    db_result_free(q.items);
    if (s != STATUS_OK)
        return s;
    ret->quote_id = arena_strdup(c->arena, q.id);
    ret->total = store_money(c, q.total, q.currency, &ok);
    ret->expires = store_timestamp(c, q.expires_ms * 1000);
    return ok && ret->quote_id && ret->expires ? STATUS_OK : store_no_memory(err);
}

// ---------------------------------------------------------------- reading orders

#define ORDER_COLUMNS                                                                              \
    "o.id, o.state, o.total, o.currency, (extract(epoch FROM o.created) * 1000000)::bigint,"       \
    " o.buyer, o.txn"
enum { O_ID, O_STATE, O_TOTAL, O_CURRENCY, O_CREATED, O_BUYER, O_TXN };

static enum status query(struct store_call *c, struct db_conn *db, const char *sql,
                         const struct db_param *p, size_t n, struct db_result **ret,
                         struct err *err)
{
    return db ? db_exec(db, sql, p, n, ret, err) : db_query(c->store->db, sql, p, n, ret, err);
}

static enum status read_lines(struct store_call *c, struct db_conn *db, Store__Order *o,
                              const char *currency, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = query(c, db,
                          "SELECT item, title, price_minor, owned FROM store.order_line"
                          " WHERE order_id = $1 ORDER BY position",
                          DB_PARAMS(DB_TEXT(o->order_id)), &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r);
    Store__QuoteLine *lines = arena_array(c->arena, n + 1, sizeof *lines);
    o->lines = arena_array(c->arena, n + 1, sizeof *o->lines);
    if (!lines || !o->lines)
        return store_no_memory(err);
    for (size_t i = 0; s == STATUS_OK && i < n; i++) {
        s = fill_line(c, r, i, 0, currency, &lines[i], err);
        o->lines[o->n_lines++] = &lines[i];
    }
    return s;
}

static enum status read_order(struct store_call *c, struct db_conn *db, const struct db_result *r,
                              size_t row, Store__Order *ret, struct err *err)
{
    bool ok = true;
    store__order__init(ret);
    ret->order_id = store_dup(c, r, row, O_ID);
    ret->state = store_dup(c, r, row, O_STATE);
    ret->total = store_money(c, db_i64(r, row, O_TOTAL), db_text(r, row, O_CURRENCY), &ok);
    ret->created = store_timestamp(c, db_i64(r, row, O_CREATED));
    ret->buyer = store_dup(c, r, row, O_BUYER);
    if (!ok || !ret->order_id || !ret->state || !ret->created || !ret->buyer)
        return store_no_memory(err);
    return read_lines(c, db, ret, db_text(r, row, O_CURRENCY), err);
}

static enum status load_order(struct store_call *c, struct db_conn *db, const char *id,
                              Store__Order *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = query(c, db, "SELECT " ORDER_COLUMNS " FROM store.orders o WHERE o.id = $1",
                          DB_PARAMS(DB_TEXT(id)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no such order");
    return read_order(c, db, r, 0, ret, err);
}

enum status store_get_order(struct store_call *c, const Store__GetOrderRequest *req,
                            Store__Order *ret, struct err *err)
{
    Store__Order o;
    enum status s = store_need_user(c, err);
    if (s == STATUS_OK)
        s = store_check_id(req->order_id, "order_id", err);
    if (s == STATUS_OK)
        s = load_order(c, NULL, req->order_id, &o, err);
    if (s != STATUS_OK)
        return s;
    if (!str_eq(o.buyer, c->user->id) && !store_is_admin(c))
        return err_set(err, STATUS_NOT_FOUND, "no such order");
    *ret = o;
    return STATUS_OK;
}

enum status store_list_orders(struct store_call *c, const Store__ListOrdersRequest *req,
                              Store__ListOrdersReply *ret, struct err *err)
{
    struct store_page page;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = store_need_user(c, err);
    if (s == STATUS_OK)
        s = store_page_parse(req->page, &page, err);
    if (s == STATUS_OK && page.after[0])
        s = store_check_id(page.after, "page.token", err);
    if (s == STATUS_OK)
        s = db_query(c->store->db,
                     "SELECT " ORDER_COLUMNS " FROM store.orders o WHERE o.buyer = $1"
                     " AND ($2::uuid IS NULL OR o.id < $2::uuid) ORDER BY o.id DESC LIMIT $3",
                     DB_PARAMS(DB_TEXT(c->user->id), DB_TEXT(page.after[0] ? page.after : NULL),
                               DB_I64(page.size + 1)),
                     &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r), most = (size_t)page.size;
    Store__Order *orders = arena_array(c->arena, n + 1, sizeof *orders);
    ret->orders = arena_array(c->arena, n + 1, sizeof *ret->orders);
    if (!orders || !ret->orders)
        return store_no_memory(err);
    for (size_t i = 0; s == STATUS_OK && i < n && i < most; i++) {
        s = read_order(c, NULL, r, i, &orders[i], err);
        ret->orders[ret->n_orders++] = &orders[i];
    }
    if (s == STATUS_OK && n > most &&
        !(ret->next_page = store_page_token(c, db_text(r, most - 1, O_ID))))
        s = store_no_memory(err);
    return s;
}

// ---------------------------------------------------------------- purchase

struct purchase {
    struct store_call *call;
    const Store__PurchaseRequest *req;
    Store__Order *ret;
    char order[UUID_SIZE], txn[UUID_SIZE];
    char currency[4];
    int64_t total;
};

static enum status read_quote(struct db_conn *db, struct purchase *p, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(db,
                "SELECT q.currency, q.total, q.expires <= now(),"
                " (SELECT o.id FROM store.orders o WHERE o.quote = q.id)"
                " FROM store.quote q WHERE q.id = $1 AND q.buyer = $2",
                DB_PARAMS(DB_TEXT(p->req->quote_id), DB_TEXT(p->call->user->id)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no such quote");
    if (!db_is_null(r, 0, 3))
        return err_set(err, STATUS_FAILED_PRECONDITION, "this quote was bought as order %s",
                       db_text(r, 0, 3));
    if (db_bool(r, 0, 2))
        return err_set(err, STATUS_FAILED_PRECONDITION, "the quote has expired: ask for a new one");
    str_copy(p->currency, sizeof p->currency, db_text(r, 0, 0));
    p->total = db_i64(r, 0, 1);
    return STATUS_OK;
}

// Bought meanwhile through another quote: paying twice for it must not happen.
static enum status check_still_new(struct db_conn *db, const struct purchase *p, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(
        db,
        "SELECT l.item FROM store.quote_line l JOIN store.entitlement e ON e.item = l.item"
        " WHERE l.quote = $1 AND NOT l.owned AND e.buyer = $2 AND e.revoked IS NULL LIMIT 1",
        DB_PARAMS(DB_TEXT(p->req->quote_id), DB_TEXT(p->call->user->id)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    return err_set(err, STATUS_FAILED_PRECONDITION, "item %s is yours already: ask for a new quote",
                   db_text(r, 0, 0));
}

// One entry takes the total from the buyer, one per seller gives what was sold of theirs.
static enum status pay_sellers(struct db_conn *db, const struct purchase *p, struct err *err)
{
    static const char sellers[] =
        "INSERT INTO store.account (id, kind, owner, currency)"
        " SELECT gen_random_uuid(), 'earnings', i.owner, $2 FROM store.quote_line l"
        " JOIN store.item i ON i.id = l.item WHERE l.quote = $1 AND l.price_minor > 0"
        " GROUP BY i.owner ON CONFLICT DO NOTHING";
    enum status s =
        db_exec(db, sellers, DB_PARAMS(DB_TEXT(p->req->quote_id), DB_TEXT(p->currency)), NULL, err);
    if (s != STATUS_OK)
        return s;
    return db_exec(db,
                   "INSERT INTO store.entry (txn, position, account, amount, currency)"
                   " SELECT $1, row_number() OVER (ORDER BY a.id), a.id, s.amount, a.currency FROM"
                   " (SELECT i.owner, sum(l.price_minor)::bigint AS amount FROM store.quote_line l"
                   " JOIN store.item i ON i.id = l.item WHERE l.quote = $2 AND l.price_minor > 0"
                   " GROUP BY i.owner) s JOIN store.account a ON a.owner = s.owner"
                   " AND a.kind = 'earnings' AND a.currency = $3",
                   DB_PARAMS(DB_TEXT(p->txn), DB_TEXT(p->req->quote_id), DB_TEXT(p->currency)),
                   NULL, err);
}

static enum status charge(struct db_conn *db, const struct purchase *p, struct err *err)
{
    char account[UUID_SIZE];
    int64_t balance = 0;
    const char *buyer = p->call->user->id;
    enum status s = store_account(db, STORE_PREPAID, buyer, p->currency, account, &balance, err);
    if (s != STATUS_OK)
        return s;
    if (balance < p->total)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "balance too low: %lld of %lld %s minor units are there", (long long)balance,
                       (long long)p->total, p->currency);
    s = store_txn(db, p->txn, "purchase", NULL, buyer, err);
    if (s == STATUS_OK)
        s = store_entry(db, p->txn, 0, account, -p->total, p->currency, err);
    return s == STATUS_OK ? pay_sellers(db, p, err) : s;
}

static enum status deliver(struct db_conn *db, const struct purchase *p, struct err *err)
{
    const struct rpc_user *u = p->call->user;
    enum status s = db_exec(db,
                            "INSERT INTO store.orders (id, buyer, buyer_name, quote, state,"
                            " currency, total, txn) VALUES ($1, $2, $3, $4, 'paid', $5, $6, $7)",
                            DB_PARAMS(DB_TEXT(p->order), DB_TEXT(u->id), DB_TEXT(u->name),
                                      DB_TEXT(p->req->quote_id), DB_TEXT(p->currency),
                                      DB_I64(p->total), DB_TEXT(p->total ? p->txn : NULL)),
                            NULL, err);
    if (s == STATUS_OK)
        s = db_exec(db,
                    "INSERT INTO store.order_line (order_id, position, item, title, price_minor,"
                    " owned) SELECT $1, position, item, title, price_minor, owned"
                    " FROM store.quote_line WHERE quote = $2",
                    DB_PARAMS(DB_TEXT(p->order), DB_TEXT(p->req->quote_id)), NULL, err);
    if (s == STATUS_OK)
        s = db_exec(db,
                    "INSERT INTO store.entitlement (buyer, item, order_id) SELECT $1, item, $2"
                    " FROM store.quote_line WHERE quote = $3 AND NOT owned ORDER BY position",
                    DB_PARAMS(DB_TEXT(u->id), DB_TEXT(p->order), DB_TEXT(p->req->quote_id)), NULL,
                    err);
    return s;
}

static enum status append_order(struct db_conn *db, const char *kind, const Store__Order *o,
                                struct err *err)
{
    AUTO(buf_done) struct buf b;
    buf_init(&b, 8192);
    buf_printf(&b, "{\"minor\":%lld,\"currency\":\"%s\",\"items\":[",
               o->total ? (long long)o->total->minor : 0LL, o->total ? o->total->currency : "");
    for (size_t i = 0; i < o->n_lines; i++)
        buf_printf(&b, "%s\"%s\"", i ? "," : "", o->lines[i]->item_id);
    buf_puts(&b, "]}");
    if (b.failed)
        return store_no_memory(err);
    return event_append(db, STORE_SCHEMA, STORE_TOPIC, kind, o->order_id, o->buyer, buf_str(&b),
                        err);
}

static enum status purchase_effect(struct db_conn *db, void *ud, struct err *err)
{
    struct purchase *p = ud;
    enum status s = read_quote(db, p, err);
    if (s == STATUS_OK)
        s = check_still_new(db, p, err);
    if (s == STATUS_OK && p->total)
        s = charge(db, p, err);
    if (s == STATUS_OK)
        s = deliver(db, p, err);
    if (s == STATUS_OK)
        s = load_order(p->call, db, p->order, p->ret, err);
    return s == STATUS_OK ? append_order(db, "order.paid", p->ret, err) : s;
}

enum status store_purchase(struct store_call *c, const Store__PurchaseRequest *req,
                           Store__Order *ret, struct err *err)
{
    struct purchase p = {.call = c, .req = req, .ret = ret};
    enum status s = store_need_user(c, err);
    if (s == STATUS_OK)
        s = store_check_id(req->quote_id, "quote_id", err);
    if (s != STATUS_OK)
        return s;
    rand_uuid7(p.order);
    rand_uuid7(p.txn);
    struct store_once o = {.account = c->user->id,
                           .key = req->idempotency_key,
                           .method = "Shop.Purchase",
                           .request = &req->base,
                           .reply = &ret->base,
                           .effect = purchase_effect,
                           .ud = &p};
    return store_once(c, &o, err);
}

// ---------------------------------------------------------------- refund

struct refund {
    struct store_call *call;
    const Store__RefundRequest *req;
    Store__Order *ret;
    char txn[UUID_SIZE];
};

// The original's entries with the other sign.
static enum status give_back(struct db_conn *db, const struct refund *re, const char *original,
                             struct err *err)
{
    enum status s = store_txn(db, re->txn, "refund", original, re->call->user->id, err);
    if (s != STATUS_OK)
        return s;
    s = db_exec(db,
                "INSERT INTO store.entry (txn, position, account, amount, currency)"
                " SELECT $1, position, account, -amount, currency FROM store.entry WHERE txn = $2",
                DB_PARAMS(DB_TEXT(re->txn), DB_TEXT(original)), NULL, err);
    if (s == STATUS_FAILED_PRECONDITION && str_eq(db_constraint(db), "account_not_negative"))
        return err_set(err, s, "a seller no longer has the money of this order");
    return s;
}

static enum status take_back(struct db_conn *db, const char *order, struct err *err)
{
    enum status s = db_exec(db,
                            "UPDATE store.entitlement SET revoked = now() WHERE order_id = $1"
                            " AND revoked IS NULL",
                            DB_PARAMS(DB_TEXT(order)), NULL, err);
    if (s != STATUS_OK)
        return s;
    return db_exec(db, "UPDATE store.orders SET state = 'refunded', refunded = total WHERE id = $1",
                   DB_PARAMS(DB_TEXT(order)), NULL, err);
}

static enum status refund_effect(struct db_conn *db, void *ud, struct err *err)
{
    const struct refund *re = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(db, "SELECT " ORDER_COLUMNS " FROM store.orders o WHERE o.id = $1",
                            DB_PARAMS(DB_TEXT(re->req->order_id)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no such order");
    if (!str_eq(db_text(r, 0, O_STATE), "paid"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "this order was refunded already");
    if (!db_is_null(r, 0, O_TXN))
        s = give_back(db, re, db_text(r, 0, O_TXN), err);
    if (s == STATUS_OK)
        s = take_back(db, re->req->order_id, err);
    if (s == STATUS_OK)
        s = load_order(re->call, db, re->req->order_id, re->ret, err);
    return s == STATUS_OK ? append_order(db, "order.refunded", re->ret, err) : s;
}

enum status store_refund(struct store_call *c, const Store__RefundRequest *req, Store__Order *ret,
                         struct err *err)
{
    struct refund re = {.call = c, .req = req, .ret = ret};
    enum status s = store_need_admin(c, err);
    if (s == STATUS_OK)
        s = store_check_id(req->order_id, "order_id", err);
    if (s != STATUS_OK)
        return s;
    rand_uuid7(re.txn);
    struct store_once o = {.account = c->user->id,
                           .key = req->idempotency_key,
                           .method = "Shop.Refund",
                           .request = &req->base,
                           .reply = &ret->base,
                           .effect = refund_effect,
                           .ud = &re};
    return store_once(c, &o, err);
}
