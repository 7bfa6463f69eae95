// Accounts, entries, balances and credits. The database keeps the rules (entries sum to zero per
// transaction, are never changed, and leave no balance below zero); this file only posts.
#include "internal.h"

#include <string.h>

#include "base/str.h"

static const char *const kind_names[] = {
    [STORE_PREPAID] = "prepaid",
    [STORE_EARNINGS] = "earnings",
    [STORE_EXTERNAL] = "external",
};

enum status store_account(struct db_conn *db, enum store_account_kind kind, const char *owner,
                          const char *currency, char ret_id[UUID_SIZE], int64_t *ret_balance,
                          struct err *err)
{
    char id[UUID_SIZE];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    rand_uuid7(id);
    enum status s = db_exec(
        db,
        "INSERT INTO store.account (id, kind, owner, currency)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        DB_PARAMS(DB_TEXT(id), DB_TEXT(kind_names[kind]), DB_TEXT(owner), DB_TEXT(currency)), NULL,
        err);
    if (s == STATUS_OK)
        s = db_exec(db,
                    "SELECT id, balance FROM store.account"
                    " WHERE kind = $1 AND owner = $2 AND currency = $3",
                    DB_PARAMS(DB_TEXT(kind_names[kind]), DB_TEXT(owner), DB_TEXT(currency)), &r,
                    err);
    if (s != STATUS_OK)
        return s;
    str_copy(ret_id, UUID_SIZE, db_text(r, 0, 0));
    if (ret_balance)
        *ret_balance = db_i64(r, 0, 1);
    return STATUS_OK;
}

enum status store_txn(struct db_conn *db, const char *id, const char *kind, const char *reverses,
                      const char *actor, struct err *err)
{
    return db_exec(db, "INSERT INTO store.txn (id, kind, reverses, actor) VALUES ($1, $2, $3, $4)",
                   DB_PARAMS(DB_TEXT(id), DB_TEXT(kind), DB_TEXT(reverses), DB_TEXT(actor)), NULL,
                   err);
}

enum status store_entry(struct db_conn *db, const char *txn, int position, const char *account,
                        int64_t amount, const char *currency, struct err *err)
{
    return db_exec(db,
                   "INSERT INTO store.entry (txn, position, account, amount, currency)"
                   " VALUES ($1, $2, $3, $4, $5)",
                   DB_PARAMS(DB_TEXT(txn), DB_I64(position), DB_TEXT(account), DB_I64(amount),
                             DB_TEXT(currency)),
                   NULL, err);
}

enum status store_deposit(struct db_conn *db, const char *txn, const char *kind, const char *actor,
                          const char *user, int64_t minor, const char *currency, struct err *err)
{
    char outside[UUID_SIZE], prepaid[UUID_SIZE];
    enum status s = store_account(db, STORE_EXTERNAL, STORE_NIL_UUID, currency, outside, NULL, err);
    if (s == STATUS_OK)
        s = store_account(db, STORE_PREPAID, user, currency, prepaid, NULL, err);
    if (s == STATUS_OK)
        s = store_txn(db, txn, kind, NULL, actor, err);
    if (s == STATUS_OK)
        s = store_entry(db, txn, 0, outside, -minor, currency, err);
    return s == STATUS_OK ? store_entry(db, txn, 1, prepaid, minor, currency, err) : s;
}

// ---------------------------------------------------------------- balances

static enum status fill_balances(struct store_call *c, const struct db_result *r,
                                 const char *currency, Store__BalanceReply *ret, struct err *err)
{
    size_t n = db_result_n_rows(r);
    bool ok = true;
    ret->n_balances = 0;
    ret->balances = arena_array(c->arena, n + 1, sizeof *ret->balances);
    if (!ret->balances)
        return store_no_memory(err);
    for (size_t i = 0; i < n; i++)
        ret->balances[ret->n_balances++] = store_money(c, db_i64(r, i, 1), db_text(r, i, 0), &ok);
    if (n == 0 && currency[0])
        ret->balances[ret->n_balances++] = store_money(c, 0, currency, &ok);
    return ok ? STATUS_OK : store_no_memory(err);
}

enum status store_read_balances(struct store_call *c, struct db_conn *db, const char *user,
                                const char *currency, Store__BalanceReply *ret, struct err *err)
{
    static const char sql[] = "SELECT currency, balance FROM store.account WHERE owner = $1"
                              " AND kind = 'prepaid' AND ($2 = '' OR currency = $2)"
                              " ORDER BY currency";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    const struct db_param p[] = {DB_TEXT(user), DB_TEXT(currency)};
    enum status s =
        db ? db_exec(db, sql, p, 2, &r, err) : db_query(c->store->db, sql, p, 2, &r, err);
    return s == STATUS_OK ? fill_balances(c, r, currency, ret, err) : s;
}

enum status store_balance(struct store_call *c, const Store__BalanceRequest *req,
                          Store__BalanceReply *ret, struct err *err)
{
    enum status s = store_need_user(c, err);
    if (s == STATUS_OK && req->currency[0])
        s = store_check_currency(req->currency, "currency", err);
    if (s != STATUS_OK)
        return s;
    return store_read_balances(c, NULL, c->user->id, req->currency, ret, err);
}

// ---------------------------------------------------------------- credit

struct credit {
    struct store_call *call;
    const Store__CreditRequest *req;
    Store__BalanceReply *ret;
    char user[UUID_SIZE];
};

static enum status append_credit(struct db_conn *db, const struct credit *cr, const char *txn,
                                 struct err *err)
{
    AUTO(buf_done) struct buf b;
    buf_init(&b, 512);
    buf_printf(&b, "{\"txn\":\"%s\",\"minor\":%lld,\"currency\":\"%s\",\"by\":\"%s\"}", txn,
               (long long)cr->req->amount->minor, cr->req->amount->currency, cr->call->user->id);
    if (b.failed)
        return store_no_memory(err);
    return event_append(db, STORE_SCHEMA, STORE_TOPIC, "balance.credited", cr->user, cr->user,
                        buf_str(&b), err);
}

static enum status credit_effect(struct db_conn *db, void *ud, struct err *err)
{
    const struct credit *cr = ud;
    const Common__Money *m = cr->req->amount;
    char txn[UUID_SIZE];
    rand_uuid7(txn);
    enum status s =
        store_deposit(db, txn, "credit", cr->call->user->id, cr->user, m->minor, m->currency, err);
    if (s == STATUS_OK)
        s = store_read_balances(cr->call, db, cr->user, "", cr->ret, err);
    return s == STATUS_OK ? append_credit(db, cr, txn, err) : s;
}

enum status store_credit(struct store_call *c, const Store__CreditRequest *req,
                         Store__BalanceReply *ret, struct err *err)
{
    struct store_user user;
    struct credit cr = {.call = c, .req = req, .ret = ret};
    enum status s = store_need_admin(c, err);
    if (s == STATUS_OK)
        s = store_check_money(req->amount, "amount", false, err);
    if (s == STATUS_OK)
        s = c->store->find_user(c->store->find_user_ud, req->user, &user, err);
    if (s != STATUS_OK)
        return s;
    str_copy(cr.user, sizeof cr.user, user.id);
    struct store_once o = {.account = c->user->id,
                           .key = req->idempotency_key,
                           .method = "Shop.Credit",
                           .request = &req->base,
                           .reply = &ret->base,
                           .effect = credit_effect,
                           .ud = &cr};
    return store_once(c, &o, err);
}
