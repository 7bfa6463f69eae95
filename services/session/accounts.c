// Accounts as rows: reading, listing, roles, disabling.
#include "internal.h"

#include <string.h>

#include "base/buf.h"
#include "base/str.h"

static const struct {
    const char *name;
    unsigned bit;
} role_names[] = {
    {"user", ROLE_USER},
    {"creator", ROLE_CREATOR},
    {"admin", ROLE_ADMIN},
};

static unsigned role_bit(const char *name)
{
    for (size_t i = 0; i < N_ELEMENTS(role_names); i++)
        if (str_eq(role_names[i].name, name))
            return role_names[i].bit;
    return 0;
}

bool session_roles_parse(const char *const *names, size_t n, unsigned *ret)
{
    unsigned roles = 0;
    for (size_t i = 0; i < n; i++) {
        if (!role_bit(names[i]))
            return false;
        roles |= role_bit(names[i]);
    }
    *ret = roles;
    return true;
}

size_t session_roles_names(unsigned roles, const char *ret[3])
{
    size_t n = 0;
    for (size_t i = 0; i < N_ELEMENTS(role_names); i++)
        if (roles & role_names[i].bit)
            ret[n++] = role_names[i].name;
    return n;
}

// The database's text form of an array: {user,creator}
static unsigned roles_from_array(const char *text)
{
    unsigned roles = 0;
    char name[16];
    for (text += strcspn(text, "{") + 1; *text && *text != '}'; text += strspn(text, ",")) {
        size_t n = strcspn(text, ",}");
        if (n < sizeof name) {
            memcpy(name, text, n);
            name[n] = '\0';
            roles |= role_bit(name);
        }
        text += n;
    }
    return roles;
}

void session_account_read(const struct db_result *r, size_t row, struct session_account *ret)
{
    str_copy(ret->id, sizeof ret->id, db_text(r, row, 0));
    str_copy(ret->name, sizeof ret->name, db_text(r, row, 1));
    str_copy(ret->email, sizeof ret->email, db_text(r, row, 2));
    ret->roles = roles_from_array(db_text(r, row, 3));
    ret->disabled = db_bool(r, row, 4);
    ret->created_us = db_i64(r, row, 5);
    ret->epoch = db_i64(r, row, 6);
}

enum status session_check_user(struct session *s, const struct rpc_user *u, unsigned roles,
                               struct session_account *ret, struct err *err)
{
    if (!u)
        return err_set(err, STATUS_UNAUTHENTICATED, "sign in first");
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status st =
        db_query(s->db,
                 "SELECT " SESSION_ACCOUNT_COLUMNS
                 " FROM session.login l JOIN session.account a ON a.id = l.account"
                 " WHERE l.id = $1 AND a.id = $2 AND l.ended IS NULL AND l.expires > now()"
                 " AND NOT a.disabled",
                 DB_PARAMS(DB_TEXT(u->session), DB_TEXT(u->id)), &r, err);
    if (st != STATUS_OK)
        return st;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_UNAUTHENTICATED, "this login has ended: sign in again");
    session_account_read(r, 0, ret);
    if ((ret->roles & roles) != roles)
        return err_set(err, STATUS_PERMISSION_DENIED, "your account does not have the role");
    return STATUS_OK;
}

enum status session_account_get(struct session *s, const char *id_or_name,
                                struct session_account *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    const char *sql = uuid_is_valid(id_or_name) ? "SELECT " SESSION_ACCOUNT_COLUMNS
                                                  " FROM session.account a WHERE a.id = $1"
                                                : "SELECT " SESSION_ACCOUNT_COLUMNS
                                                  " FROM session.account a WHERE a.name = $1";
    enum status st = db_query(s->db, sql, DB_PARAMS(DB_TEXT(id_or_name)), &r, err);
    if (st != STATUS_OK)
        return st;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no user \"%.64s\"", id_or_name);
    session_account_read(r, 0, ret);
    return STATUS_OK;
}

enum status session_account_list(struct session *s, const char *after, size_t max,
                                 struct session_account *ret, size_t *ret_n, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status st = db_query(s->db,
                              "SELECT " SESSION_ACCOUNT_COLUMNS " FROM session.account a"
                              " WHERE $1::uuid IS NULL OR a.id > $1::uuid ORDER BY a.id LIMIT $2",
                              DB_PARAMS(DB_TEXT(after), DB_I64(max)), &r, err);
    if (st != STATUS_OK)
        return st;
    *ret_n = db_result_n_rows(r);
    for (size_t i = 0; i < *ret_n; i++)
        session_account_read(r, i, &ret[i]);
    return STATUS_OK;
}

// ---------------------------------------------------------------- changes by an admin

struct change {
    const char *actor;
    struct session_account *before;
    struct session_account *after;
    unsigned roles;
    bool disabled;
    bool ends_epoch; // access tokens made before must not count any more
};

// With the rows of all admins locked: somebody must be left who can administer.
static enum status check_admin_left(struct db_conn *c, const char *except, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "SELECT id FROM session.account WHERE 'admin' = ANY (roles)"
                            " AND NOT disabled ORDER BY id FOR UPDATE",
                            NULL, 0, &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++)
        if (!str_eq(db_text(r, i, 0), except))
            return STATUS_OK;
    if (s != STATUS_OK)
        return s;
    return err_set(err, STATUS_FAILED_PRECONDITION,
                   "this is the last admin: make somebody else admin first");
}

static enum status audit_change(struct db_conn *c, const struct change *ch, const char *kind,
                                struct err *err)
{
    const char *names[3];
    AUTO(buf_done) struct buf b;
    buf_init(&b, 1024);
    buf_puts(&b, "{\"by\":");
    buf_put_json_string(&b, ch->actor, strlen(ch->actor));
    buf_puts(&b, ",\"roles\":[");
    size_t n = session_roles_names(ch->after->roles, names);
    for (size_t i = 0; i < n; i++)
        buf_printf(&b, "%s\"%s\"", i ? "," : "", names[i]);
    buf_putc(&b, ']');
    if (ch->ends_epoch)
        buf_printf(&b, ",\"epoch\":%lld", (long long)ch->after->epoch);
    buf_putc(&b, '}');
    if (b.failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "audit row: out of memory");
    return event_append(c, SESSION_SCHEMA, SESSION_TOPIC, kind, ch->after->id, ch->after->id,
                        buf_str(&b), err);
}

// What it was may have changed since it was looked up; from here on it does not.
static enum status lock_account(struct db_conn *c, struct change *ch, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "SELECT " SESSION_ACCOUNT_COLUMNS
                            " FROM session.account a WHERE a.id = $1 FOR NO KEY UPDATE",
                            DB_PARAMS(DB_TEXT(ch->before->id)), &r, err);
    if (s == STATUS_OK && db_result_n_rows(r) == 0)
        s = err_set(err, STATUS_NOT_FOUND, "the account is gone");
    if (s == STATUS_OK)
        session_account_read(r, 0, ch->before);
    return s;
}

static enum status end_epoch(struct db_conn *c, const struct change *ch, struct err *err)
{
    int64_t epoch;
    return ch->ends_epoch ? session_epoch_end(c, ch->before->id, &epoch, err) : STATUS_OK;
}

static enum status set_roles_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct change *ch = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = STATUS_OK;
    if (!(ch->roles & ROLE_ADMIN))
        s = check_admin_left(c, ch->before->id, err);
    if (s == STATUS_OK)
        s = lock_account(c, ch, err);
    ch->ends_epoch = ch->before->roles != ch->roles;
    if (s == STATUS_OK)
        s = end_epoch(c, ch, err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "UPDATE session.account a SET roles = array_remove(ARRAY["
                    "CASE WHEN $2 THEN 'user' END, CASE WHEN $3 THEN 'creator' END,"
                    " CASE WHEN $4 THEN 'admin' END], NULL)"
                    " WHERE id = $1 RETURNING " SESSION_ACCOUNT_COLUMNS,
                    DB_PARAMS(DB_TEXT(ch->before->id), DB_BOOL(ch->roles & ROLE_USER),
                              DB_BOOL(ch->roles & ROLE_CREATOR), DB_BOOL(ch->roles & ROLE_ADMIN)),
                    &r, err);
    if (s != STATUS_OK)
        return s;
    session_account_read(r, 0, ch->after);
    if (ch->before->roles == ch->roles)
        return STATUS_OK;
    return audit_change(c, ch, "user.roles", err);
}

static enum status set_disabled_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct change *ch = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = STATUS_OK;
    if (ch->disabled)
        s = check_admin_left(c, ch->before->id, err);
    if (s == STATUS_OK)
        s = lock_account(c, ch, err);
    ch->ends_epoch = ch->disabled && !ch->before->disabled;
    if (s == STATUS_OK)
        s = end_epoch(c, ch, err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "UPDATE session.account a SET disabled = $2 WHERE id = $1"
                    " RETURNING " SESSION_ACCOUNT_COLUMNS,
                    DB_PARAMS(DB_TEXT(ch->before->id), DB_BOOL(ch->disabled)), &r, err);
    if (s == STATUS_OK && ch->disabled)
        s = session_login_end(c, ch->before->id, NULL, "disabled", err);
    if (s != STATUS_OK)
        return s;
    session_account_read(r, 0, ch->after);
    if (ch->before->disabled == ch->disabled)
        return STATUS_OK;
    return audit_change(c, ch, ch->disabled ? "user.disabled" : "user.enabled", err);
}

enum status session_set_roles(struct session *s, const char *actor, const char *id_or_name,
                              unsigned roles, struct session_account *ret, struct err *err)
{
    struct session_account before, after;
    enum status st = session_account_get(s, id_or_name, &before, err);
    struct change ch = {.actor = actor, .before = &before, .after = &after, .roles = roles};
    if (st == STATUS_OK)
        st = db_tx(s->db, DB_READ_COMMITTED, set_roles_tx, &ch, err);
    if (st == STATUS_OK)
        *ret = after;
    return st;
}

enum status session_set_disabled(struct session *s, const char *actor, const char *id_or_name,
                                 bool disabled, struct session_account *ret, struct err *err)
{
    struct session_account before, after;
    enum status st = session_account_get(s, id_or_name, &before, err);
    struct change ch = {.actor = actor, .before = &before, .after = &after, .disabled = disabled};
    if (st == STATUS_OK)
        st = db_tx(s->db, DB_READ_COMMITTED, set_disabled_tx, &ch, err);
    if (st == STATUS_OK)
        *ret = after;
    return st;
}
