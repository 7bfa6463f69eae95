// Vouchers: 100 random bits on paper, of which the database knows the digest.
#include "internal.h"

#include <ctype.h>
#include <string.h>

#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"

#define CODE_CHARS 20
#define LIFE_MS (365LL * 24 * 3600 * 1000)

static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"; // no I, L, O, U

static void hash_code(uint8_t out[32], const char code[CODE_CHARS])
{
    static const uint8_t person[16] = "cauce-voucher";
    crypto_blake2b(out, 32, code, CODE_CHARS, NULL, 0, person);
}

// ABCDE-FGHJK-...: shown once.
static char *show_code(const struct store_call *c, const char code[CODE_CHARS])
{
    return arena_printf(c->arena, "%.5s-%.5s-%.5s-%.5s", code, code + 5, code + 10, code + 15);
}

// People type lower case, leave dashes out, and read 0 for O, 1 for I and L.
static bool normalise(const char *typed, char code[CODE_CHARS])
{
    size_t n = 0;
    for (; *typed; typed++) {
        char ch = (char)toupper((unsigned char)*typed);
        if (ch == '-' || ch == ' ')
            continue;
        ch = ch == 'O' ? '0' : ch == 'I' || ch == 'L' ? '1' : ch;
        if (n == CODE_CHARS || !strchr(alphabet, ch))
            return false;
        code[n++] = ch;
    }
    return n == CODE_CHARS;
}

static enum status find_expiry(const Google__Protobuf__Timestamp *t, int64_t *ret_s,
                               struct err *err)
{
    int64_t now_s = time_wall_ms() / 1000;
    *ret_s = t ? t->seconds : now_s + LIFE_MS / 1000;
    if (*ret_s > now_s && *ret_s <= now_s + 10 * LIFE_MS / 1000)
        return STATUS_OK;
    return rpc_bad_field(err, "expires", "expires must be in the next ten years");
}

enum status store_create_voucher(struct store_call *c, const Store__CreateVoucherRequest *req,
                                 Store__Voucher *ret, struct err *err)
{
    char code[CODE_CHARS];
    uint8_t hash[32];
    int64_t expires_s = 0;
    bool ok = true;
    enum status s = store_need_admin(c, err);
    if (s == STATUS_OK)
        s = store_check_money(req->amount, "amount", false, err);
    if (s == STATUS_OK)
        s = find_expiry(req->expires, &expires_s, err);
    if (s != STATUS_OK)
        return s;
    for (size_t i = 0; i < CODE_CHARS; i++)
        code[i] = alphabet[rand_below(sizeof alphabet - 1)];
    hash_code(hash, code);
    s = db_query(c->store->db,
                 "INSERT INTO store.voucher (hash, amount, currency, expires, creator)"
                 " VALUES ($1, $2, $3, to_timestamp($4::bigint), $5)",
                 DB_PARAMS(DB_BYTES(hash, 32), DB_I64(req->amount->minor),
                           DB_TEXT(req->amount->currency), DB_I64(expires_s), DB_TEXT(c->user->id)),
                 NULL, err);
    if (s != STATUS_OK)
        return s;
    ret->code = show_code(c, code);
    ret->amount = store_money(c, req->amount->minor, req->amount->currency, &ok);
    return ret->code && ok ? STATUS_OK : store_no_memory(err);
}

struct redemption {
    struct store_call *call;
    uint8_t hash[32];
    Store__BalanceReply *ret;
};

static enum status append_redeemed(struct db_conn *db, const struct redemption *re, const char *txn,
                                   int64_t minor, const char *currency, struct err *err)
{
    AUTO(buf_done) struct buf b;
    buf_init(&b, 512);
    buf_printf(&b, "{\"txn\":\"%s\",\"minor\":%lld,\"currency\":\"%s\"}", txn, (long long)minor,
               currency);
    if (b.failed)
        return store_no_memory(err);
    const char *user = re->call->user->id;
    return event_append(db, STORE_SCHEMA, STORE_TOPIC, "voucher.redeemed", user, user, buf_str(&b),
                        err);
}

static enum status pay_out(struct db_conn *db, const struct redemption *re, int64_t minor,
                           const char *currency, struct err *err)
{
    char txn[UUID_SIZE];
    const char *user = re->call->user->id;
    rand_uuid7(txn);
    enum status s = store_deposit(db, txn, "voucher", user, user, minor, currency, err);
    if (s == STATUS_OK)
        s = db_exec(db, "UPDATE store.voucher SET txn = $2 WHERE hash = $1",
                    DB_PARAMS(DB_BYTES(re->hash, 32), DB_TEXT(txn)), NULL, err);
    return s == STATUS_OK ? append_redeemed(db, re, txn, minor, currency, err) : s;
}

static enum status redeem_tx(struct db_conn *db, void *ud, struct err *err)
{
    const struct redemption *re = ud;
    const char *user = re->call->user->id;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = event_lock(db, STORE_SCHEMA, err);
    if (s == STATUS_OK)
        s = db_exec(db,
                    "SELECT v.amount, v.currency, v.expires <= now(), v.txn IS NOT NULL,"
                    " t.actor = $2 FROM store.voucher v LEFT JOIN store.txn t ON t.id = v.txn"
                    " WHERE v.hash = $1",
                    DB_PARAMS(DB_BYTES(re->hash, 32), DB_TEXT(user)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no such voucher");
    bool used = db_bool(r, 0, 3);
    // The same user again: the first reply was lost. The voucher itself is the idempotency key.
    if (used && !db_bool(r, 0, 4))
        return err_set(err, STATUS_FAILED_PRECONDITION, "this voucher was used already");
    if (!used && db_bool(r, 0, 2))
        return err_set(err, STATUS_FAILED_PRECONDITION, "this voucher has expired");
    if (!used)
        s = pay_out(db, re, db_i64(r, 0, 0), db_text(r, 0, 1), err);
    return s == STATUS_OK ? store_read_balances(re->call, db, user, "", re->ret, err) : s;
}

enum status store_redeem_voucher(struct store_call *c, const Store__RedeemVoucherRequest *req,
                                 Store__BalanceReply *ret, struct err *err)
{
    char code[CODE_CHARS];
    struct redemption re = {.call = c, .ret = ret};
    enum status s = store_need_user(c, err);
    if (s != STATUS_OK)
        return s;
    if (!normalise(req->code, code))
        return err_set(err, STATUS_NOT_FOUND, "no such voucher");
    hash_code(re.hash, code);
    return db_tx(c->store->db, DB_SERIALIZABLE, redeem_tx, &re, err);
}
