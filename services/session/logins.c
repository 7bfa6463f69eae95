// Logins and their refresh tokens.
//
// A refresh token is 32 random bytes, of which the database knows the BLAKE2b-256. Its successor is
// BLAKE2b-256 keyed with the token over a random salt that is stored when the token is spent: so
// the holder of the token can be told the same successor again (the reply was lost on the way),
// while the database alone does not suffice to make one.
#include "internal.h"

#include <string.h>

#include "base/buf.h"
#include "base/str.h"

#define TOKEN_BYTES 32
#define REFRESH_LIFE "interval '30 days'"
#define LOGIN_LIFE "interval '90 days'"
#define GRACE "interval '10 seconds'"

static const uint8_t person_hash[16] = "cauce-refresh-h";
static const uint8_t person_next[16] = "cauce-refresh-n";

static void hash_token(uint8_t out[32], const uint8_t token[TOKEN_BYTES])
{
    crypto_blake2b(out, 32, token, TOKEN_BYTES, NULL, 0, person_hash);
}

static void derive_successor(uint8_t out[TOKEN_BYTES], const uint8_t token[TOKEN_BYTES],
                             const uint8_t salt[32])
{
    crypto_blake2b(out, TOKEN_BYTES, salt, 32, token, TOKEN_BYTES, person_next);
}

enum status session_audit(struct db_conn *c, const char *kind, const char *account,
                          const struct session_audit_fields *f, struct err *err)
{
    const struct {
        const char *key, *value;
    } fields[] = {{"name", f->name}, {"login", f->login}, {"device", f->device}};
    AUTO(buf_done) struct buf b;
    buf_init(&b, 4096);
    buf_putc(&b, '{');
    for (size_t i = 0; i < N_ELEMENTS(fields); i++) {
        if (!fields[i].value)
            continue;
        buf_printf(&b, "%s\"%s\":", b.len > 1 ? "," : "", fields[i].key);
        buf_put_json_string(&b, fields[i].value, strlen(fields[i].value));
    }
    if (f->epoch)
        buf_printf(&b, "%s\"epoch\":%lld", b.len > 1 ? "," : "", (long long)f->epoch);
    buf_putc(&b, '}');
    if (b.failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "audit row: out of memory");
    return event_append(c, SESSION_SCHEMA, SESSION_TOPIC, kind, account ? account : "", account,
                        buf_str(&b), err);
}

enum status session_login_begin(struct db_conn *c, const struct session_account *a,
                                const char *device, struct session_grant *ret, struct err *err)
{
    uint8_t token[TOKEN_BYTES], hash[32];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    rand_bytes(token, sizeof token);
    hash_token(hash, token);
    ret->account = *a;
    rand_uuid7(ret->login);
    str_b64(ret->refresh, token, sizeof token);
    crypto_wipe(token, sizeof token);
    // Logins that are long over go now: nothing else would ever touch them.
    enum status s =
        db_exec(c,
                "DELETE FROM session.login WHERE id IN (SELECT id FROM session.login"
                " WHERE expires < now() ORDER BY expires LIMIT 20 FOR UPDATE SKIP LOCKED)",
                NULL, 0, NULL, err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "DELETE FROM session.refresh WHERE hash IN (SELECT hash FROM session.refresh"
                    " WHERE expires < now() ORDER BY expires LIMIT 200 FOR UPDATE SKIP LOCKED)",
                    NULL, 0, NULL, err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "WITH l AS (INSERT INTO session.login (id, account, device, expires)"
                    " VALUES ($1, $2, $3, now() + " LOGIN_LIFE ") RETURNING id)"
                    " INSERT INTO session.refresh (hash, login, expires)"
                    " SELECT $4, l.id, now() + " REFRESH_LIFE " FROM l"
                    " RETURNING (extract(epoch FROM expires) * 1000000)::bigint",
                    DB_PARAMS(DB_TEXT(ret->login), DB_TEXT(a->id), DB_TEXT(device),
                              DB_BYTES(hash, sizeof hash)),
                    &r, err);
    if (s == STATUS_OK)
        ret->refresh_expires_us = db_i64(r, 0, 0);
    return s;
}

enum status session_epoch_end(struct db_conn *c, const char *account, int64_t *ret_epoch,
                              struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c, "UPDATE session.account SET epoch = epoch + 1 WHERE id = $1 RETURNING epoch",
                DB_PARAMS(DB_TEXT(account)), &r, err);
    if (s == STATUS_OK && db_result_n_rows(r) == 0)
        s = err_set(err, STATUS_NOT_FOUND, "the account is gone");
    if (s == STATUS_OK)
        *ret_epoch = db_i64(r, 0, 0);
    return s;
}

enum status session_login_end(struct db_conn *c, const char *account, const char *login,
                              const char *reason, struct err *err)
{
    return db_exec(c,
                   "UPDATE session.login SET ended = now(), reason = $3 WHERE account = $1"
                   " AND ended IS NULL AND ($2::uuid IS NULL OR id = $2::uuid)",
                   DB_PARAMS(DB_TEXT(account), DB_TEXT(login), DB_TEXT(reason)), NULL, err);
}

// ---------------------------------------------------------------- rotation

struct rotation {
    uint8_t token[TOKEN_BYTES], hash[32];
    uint8_t next[TOKEN_BYTES], next_hash[32];
    struct session_grant *grant;
};

static enum status refused(struct err *err)
{
    return err_set(err, STATUS_UNAUTHENTICATED, "refresh token is not valid: sign in again");
}

// Compare and set in one statement: of two that spend the same token, one finds it spent.
static enum status rotate(struct session *s, struct rotation *ro, bool *ret_done, struct err *err)
{
    uint8_t salt[32];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    rand_bytes(salt, sizeof salt);
    derive_successor(ro->next, ro->token, salt);
    hash_token(ro->next_hash, ro->next);
    enum status st =
        db_query(s->db,
                 "WITH spent AS (UPDATE session.refresh r SET spent = now(), salt = $2"
                 " FROM session.login l JOIN session.account a ON a.id = l.account"
                 " WHERE r.hash = $1 AND r.spent IS NULL AND r.expires > now() AND l.id = r.login"
                 " AND l.ended IS NULL AND l.expires > now() AND NOT a.disabled"
                 " RETURNING a.*, l.id AS login, l.expires AS login_expires),"
                 " next AS (INSERT INTO session.refresh (hash, login, expires)"
                 " SELECT $3, login, least(now() + " REFRESH_LIFE ", login_expires) FROM spent"
                 " RETURNING expires)"
                 " SELECT " SESSION_ACCOUNT_COLUMNS
                 ", a.login, (extract(epoch FROM n.expires) * 1000000)::bigint"
                 " FROM spent a, next n",
                 DB_PARAMS(DB_BYTES(ro->hash, 32), DB_BYTES(salt, 32), DB_BYTES(ro->next_hash, 32)),
                 &r, err);
    *ret_done = st == STATUS_OK && db_result_n_rows(r) == 1;
    if (!*ret_done)
        return st;
    session_account_read(r, 0, &ro->grant->account);
    str_copy(ro->grant->login, UUID_SIZE, db_text(r, 0, SESSION_ACCOUNT_N_COLUMNS));
    ro->grant->refresh_expires_us = db_i64(r, 0, SESSION_ACCOUNT_N_COLUMNS + 1);
    return STATUS_OK;
}

enum spent_state { SPENT_UNKNOWN, SPENT_REPEAT, SPENT_REUSED };

// What a token is that could not be spent. SPENT_REPEAT fills the grant with the same successor.
static enum status examine(struct session *s, struct rotation *ro, enum spent_state *ret,
                           struct err *err)
{
    size_t n = 0;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    AUTO(db_result_free_p) struct db_result *next = NULL;
    *ret = SPENT_UNKNOWN;
    enum status st = db_query(
        s->db,
        "SELECT " SESSION_ACCOUNT_COLUMNS ", l.id, r.salt, r.spent > now() - " GRACE
        " FROM session.refresh r JOIN session.login l ON l.id = r.login"
        " JOIN session.account a ON a.id = l.account WHERE r.hash = $1 AND r.spent IS NOT NULL"
        " AND l.ended IS NULL AND l.expires > now() AND NOT a.disabled",
        DB_PARAMS(DB_BYTES(ro->hash, 32)), &r, err);
    if (st != STATUS_OK || db_result_n_rows(r) == 0)
        return st;
    session_account_read(r, 0, &ro->grant->account);
    str_copy(ro->grant->login, UUID_SIZE, db_text(r, 0, SESSION_ACCOUNT_N_COLUMNS));
    const uint8_t *salt = db_bytes(r, 0, SESSION_ACCOUNT_N_COLUMNS + 1, &n);
    *ret = SPENT_REUSED;
    if (!salt || n != 32 || !db_bool(r, 0, SESSION_ACCOUNT_N_COLUMNS + 2))
        return STATUS_OK;
    derive_successor(ro->next, ro->token, salt);
    hash_token(ro->next_hash, ro->next);
    st = db_query(s->db,
                  "SELECT (extract(epoch FROM expires) * 1000000)::bigint FROM session.refresh"
                  " WHERE hash = $1 AND spent IS NULL",
                  DB_PARAMS(DB_BYTES(ro->next_hash, 32)), &next, err);
    if (st == STATUS_OK && db_result_n_rows(next) == 1) {
        ro->grant->refresh_expires_us = db_i64(next, 0, 0);
        *ret = SPENT_REPEAT;
    }
    return st;
}

static enum status end_reused_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct session_grant *g = ud;
    enum status s = session_login_end(c, g->account.id, g->login, "reuse", err);
    if (s != STATUS_OK)
        return s;
    return session_audit(c, "token.reused", g->account.id,
                         &(struct session_audit_fields){.login = g->login}, err);
}

static enum status rotate_or_repeat(struct session *s, struct rotation *ro, struct err *err)
{
    bool done = false;
    enum spent_state state;
    enum status st = rotate(s, ro, &done, err);
    if (st != STATUS_OK || done)
        return st;
    st = examine(s, ro, &state, err);
    if (st != STATUS_OK || state == SPENT_REPEAT)
        return st;
    if (state == SPENT_REUSED)
        st = db_tx(s->db, DB_READ_COMMITTED, end_reused_tx, ro->grant, err);
    return st == STATUS_OK ? refused(err) : st;
}

enum status session_refresh(struct session *s, const char *token, struct session_grant *ret,
                            struct err *err)
{
    struct rotation ro;
    struct session_grant grant;
    size_t n = 0;
    ro.grant = &grant;
    if (!str_unb64(ro.token, sizeof ro.token, token, strlen(token), &n) || n != TOKEN_BYTES)
        return refused(err);
    hash_token(ro.hash, ro.token);
    enum status st = rotate_or_repeat(s, &ro, err);
    if (st == STATUS_OK) {
        str_b64(grant.refresh, ro.next, sizeof ro.next);
        *ret = grant;
    }
    crypto_wipe(&ro, sizeof ro);
    crypto_wipe(&grant, sizeof grant);
    return st;
}

// ---------------------------------------------------------------- logout

struct logout {
    const struct session_account *account;
    const char *login;
    bool everywhere;
};

static enum status logout_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct logout *l = ud;
    struct session_audit_fields f = {.login = l->login};
    enum status s =
        session_login_end(c, l->account->id, l->everywhere ? NULL : l->login, "logout", err);
    if (s == STATUS_OK && l->everywhere)
        s = session_epoch_end(c, l->account->id, &f.epoch, err);
    if (s != STATUS_OK)
        return s;
    return session_audit(c, l->everywhere ? "logout.everywhere" : "logout", l->account->id, &f,
                         err);
}

enum status session_logout(struct session *s, const struct session_account *a, const char *login,
                           bool everywhere, struct err *err)
{
    struct logout l = {.account = a, .login = login, .everywhere = everywhere};
    return db_tx(s->db, DB_READ_COMMITTED, logout_tx, &l, err);
}
