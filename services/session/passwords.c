// Signing in with a password. Whether an account exists must not show: an unknown name costs the
// same hash, the same writes and the same answer as a wrong password, and failures are counted by
// name, account or not.
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

#define PASSWORD_MIN 8
#define PASSWORD_MAX 256
#define ADMIN_NAME "admin"
#define ADMIN_PASSWORD_BYTES 18

static bool is_name(const char *s)
{
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789._-");
    return n >= 2 && n < SESSION_NAME_SIZE && !s[n];
}

static bool is_email(const char *s)
{
    size_t n = strlen(s);
    const char *at = strchr(s, '@');
    if (n == 0)
        return true;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] <= ' ' || s[i] == 0x7f)
            return false;
    return n < SESSION_EMAIL_SIZE && at && at != s && at[1] && !strchr(at + 1, '@');
}

static enum status check_password_form(const char *password, const char *field, struct err *err)
{
    size_t n = strlen(password);
    if (n >= PASSWORD_MIN && n <= PASSWORD_MAX)
        return STATUS_OK;
    return rpc_bad_field(err, field, "password must have %d to %d bytes", PASSWORD_MIN,
                         PASSWORD_MAX);
}

// Who fills in a form wants to hear of all that is wrong: every field is named in the details, and
// the first one in the text.
static enum status check_account_form(const char *name, const char *email, const char *password,
                                      struct err *err)
{
    enum status st = check_password_form(password, "password", err);
    if (!is_email(email))
        st = rpc_bad_field(err, "email", "email is not an address");
    if (!is_name(name))
        st = rpc_bad_field(err, "name", "name must have 2 to 64 characters of a-z 0-9 . _ -");
    return st;
}

static enum status hash_password(struct session *s, const char *password, int64_t deadline_us,
                                 char out[CRYPTO_PW_SIZE], struct err *err)
{
    enum status st = session_gate_enter(&s->gate, deadline_us, err);
    if (st != STATUS_OK)
        return st;
    st = crypto_pw_hash(out, password, strlen(password), &s->pw, err);
    session_gate_leave(&s->gate);
    return st;
}

// ---------------------------------------------------------------- failures

// 5 failures are free, then 1 s, 2 s, 4 s ... 15 min until the next try is looked at. Tries that
// run at the same time are bounded by the hashing gate, not by this.
static enum status check_throttle(struct session *s, const char *name, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status st = db_query(s->db,
                              "SELECT ceil(extract(epoch FROM retry_at - now()))::bigint"
                              " FROM session.throttle WHERE name = $1 AND retry_at > now()",
                              DB_PARAMS(DB_TEXT(name)), &r, err);
    if (st != STATUS_OK || db_result_n_rows(r) == 0)
        return st;
    return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                   "too many failed sign-ins for this name: try again in %lld s",
                   (long long)db_i64(r, 0, 0));
}

struct failure {
    const char *name;
    const char *account; // NULL: no such account
    const char *device;
};

static enum status record_failure_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct failure *f = ud;
    enum status s =
        db_exec(c, "DELETE FROM session.throttle WHERE last < now() - interval '1 hour'", NULL, 0,
                NULL, err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "INSERT INTO session.throttle AS t (name, failures, last, retry_at)"
                    " VALUES ($1, 1, now(), '-infinity') ON CONFLICT (name) DO UPDATE SET"
                    " failures = t.failures + 1, last = now(),"
                    " retry_at = CASE WHEN t.failures < 4 THEN '-infinity' ELSE now() +"
                    " least(interval '15 minutes',"
                    " interval '1 second' * power(2, least(t.failures - 4, 20))) END",
                    DB_PARAMS(DB_TEXT(f->name)), NULL, err);
    if (s != STATUS_OK)
        return s;
    return session_audit(c, "login.failed", f->account,
                         &(struct session_audit_fields){.name = f->name, .device = f->device}, err);
}

static enum status wrong(struct err *err)
{
    return err_set(err, STATUS_UNAUTHENTICATED, "wrong name or password");
}

static enum status fail_login(struct session *s, const char *name, const char *account,
                              const char *device, struct err *err)
{
    struct failure f = {.name = name, .account = account, .device = device};
    enum status st = db_tx(s->db, DB_READ_COMMITTED, record_failure_tx, &f, err);
    return st == STATUS_OK ? wrong(err) : st;
}

// ---------------------------------------------------------------- login

struct begin {
    const struct session_account *account;
    const char *device;
    const char *kind;     // of the audit row
    const char *new_hash; // NULL: stays
    bool is_new;          // the account is to be inserted
    bool end_others;
    struct session_grant *grant;
};

static enum status store_password(struct db_conn *c, const struct begin *b, struct err *err)
{
    const struct session_account *a = b->account;
    if (b->is_new)
        return db_exec(c,
                       "INSERT INTO session.account (id, name, email, password, roles)"
                       " VALUES ($1, $2, $3, $4, array_remove(ARRAY["
                       "CASE WHEN $5 THEN 'user' END, CASE WHEN $6 THEN 'creator' END,"
                       " CASE WHEN $7 THEN 'admin' END], NULL))",
                       DB_PARAMS(DB_TEXT(a->id), DB_TEXT(a->name), DB_TEXT(a->email),
                                 DB_TEXT(b->new_hash), DB_BOOL(a->roles & ROLE_USER),
                                 DB_BOOL(a->roles & ROLE_CREATOR), DB_BOOL(a->roles & ROLE_ADMIN)),
                       NULL, err);
    if (!b->new_hash)
        return STATUS_OK;
    return db_exec(c, "UPDATE session.account SET password = $2 WHERE id = $1",
                   DB_PARAMS(DB_TEXT(a->id), DB_TEXT(b->new_hash)), NULL, err);
}

// While a password is compared it may be changed, or the account disabled: neither may leave a
// login behind that the old password began. Locks the row, so that they come after us or we see
// them.
static enum status check_unchanged(struct db_conn *c, const struct session_account *a,
                                   struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c, "SELECT 1 FROM session.account WHERE id = $1 AND epoch = $2 FOR NO KEY UPDATE",
                DB_PARAMS(DB_TEXT(a->id), DB_I64(a->epoch)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 1)
        return s;
    return err_set(err, STATUS_ABORTED, "the account was changed meanwhile: sign in again");
}

static enum status begin_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct begin *b = ud;
    struct session_audit_fields f = {.name = b->account->name, .device = b->device};
    enum status s = b->is_new ? STATUS_OK : check_unchanged(c, b->account, err);
    if (s == STATUS_OK)
        s = store_password(c, b, err);
    if (s == STATUS_OK && b->end_others)
        s = session_login_end(c, b->account->id, NULL, "password", err);
    if (s == STATUS_OK && b->end_others)
        s = session_epoch_end(c, b->account->id, &f.epoch, err);
    if (s == STATUS_OK)
        s = db_exec(c, "DELETE FROM session.throttle WHERE name = $1",
                    DB_PARAMS(DB_TEXT(b->account->name)), NULL, err);
    if (s == STATUS_OK)
        s = session_login_begin(c, b->account, b->device, b->grant, err);
    if (s != STATUS_OK)
        return s;
    if (b->end_others)
        b->grant->account.epoch = f.epoch;
    f.login = b->grant->login;
    return session_audit(c, b->kind, b->account->id, &f, err);
}

// Compare in the gate; when the stored hash is weaker than today's parameters, make a new one.
static enum status verify(struct session *s, const char *hash, const char *password,
                          int64_t deadline_us, bool *ret_ok, char new_hash[CRYPTO_PW_SIZE],
                          struct err *err)
{
    new_hash[0] = '\0';
    enum status st = session_gate_enter(&s->gate, deadline_us, err);
    if (st != STATUS_OK)
        return st;
    *ret_ok = crypto_pw_verify(hash, password, strlen(password));
    if (*ret_ok && crypto_pw_needs_rehash(hash, &s->pw))
        st = crypto_pw_hash(new_hash, password, strlen(password), &s->pw, err);
    session_gate_leave(&s->gate);
    return st;
}

static enum status find_account(struct session *s, const char *name, struct session_account *ret,
                                char hash[CRYPTO_PW_SIZE], bool *ret_found, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status st = db_query(s->db,
                              "SELECT " SESSION_ACCOUNT_COLUMNS
                              ", a.password FROM session.account a WHERE a.name = $1",
                              DB_PARAMS(DB_TEXT(name)), &r, err);
    if (st != STATUS_OK)
        return st;
    *ret_found = db_result_n_rows(r) == 1;
    if (*ret_found)
        session_account_read(r, 0, ret);
    str_copy(hash, CRYPTO_PW_SIZE,
             *ret_found ? db_text(r, 0, SESSION_ACCOUNT_N_COLUMNS) : s->dummy_hash);
    return STATUS_OK;
}

enum status session_login(struct session *s, const char *name, const char *password,
                          const char *device, int64_t deadline_us, struct session_grant *ret,
                          struct err *err)
{
    struct session_account a;
    char hash[CRYPTO_PW_SIZE], new_hash[CRYPTO_PW_SIZE];
    bool found = false, ok = false;
    // Public knowledge that no such account, or password, can exist.
    if (!is_name(name) || strlen(password) > PASSWORD_MAX)
        return wrong(err);
    if (strlen(device) > SESSION_DEVICE_MAX)
        return rpc_bad_field(err, "device", "device name is longer than %d bytes",
                             SESSION_DEVICE_MAX);
    enum status st = check_throttle(s, name, err);
    if (st == STATUS_OK)
        st = find_account(s, name, &a, hash, &found, err);
    if (st == STATUS_OK)
        st = verify(s, hash, password, deadline_us, &ok, new_hash, err);
    if (st != STATUS_OK)
        return st;
    if (!ok || !found)
        return fail_login(s, name, found ? a.id : NULL, device, err);
    if (a.disabled)
        return err_set(err, STATUS_PERMISSION_DENIED, "this account is disabled");
    struct begin b = {.account = &a,
                      .device = device,
                      .kind = "login.ok",
                      .new_hash = new_hash[0] ? new_hash : NULL,
                      .grant = ret};
    return db_tx(s->db, DB_READ_COMMITTED, begin_tx, &b, err);
}

enum status session_register(struct session *s, const char *name, const char *password,
                             const char *email, int64_t deadline_us, struct session_grant *ret,
                             struct err *err)
{
    char hash[CRYPTO_PW_SIZE];
    struct session_account a = {.roles = s->new_user_roles, .created_us = time_wall_ms() * 1000};
    if (!s->registration)
        return err_set(err, STATUS_PERMISSION_DENIED,
                       "registration is closed here: ask an admin for an account");
    enum status st = check_account_form(name, email, password, err);
    if (st == STATUS_OK)
        st = hash_password(s, password, deadline_us, hash, err);
    if (st != STATUS_OK)
        return st;
    rand_uuid7(a.id);
    str_copy(a.name, sizeof a.name, name);
    str_copy(a.email, sizeof a.email, email);
    struct begin b = {.account = &a,
                      .device = "",
                      .kind = "user.registered",
                      .new_hash = hash,
                      .is_new = true,
                      .grant = ret};
    st = db_tx(s->db, DB_READ_COMMITTED, begin_tx, &b, err);
    if (st == STATUS_ALREADY_EXISTS)
        return err_set(err, st, "the name \"%s\" is taken", name);
    return st;
}

enum status session_change_password(struct session *s, const struct session_account *a,
                                    const char *old_password, const char *new_password,
                                    int64_t deadline_us, struct session_grant *ret, struct err *err)
{
    struct session_account now;
    char hash[CRYPTO_PW_SIZE], new_hash[CRYPTO_PW_SIZE];
    bool found = false, ok = false;
    enum status st = check_password_form(new_password, "new_password", err);
    if (st == STATUS_OK && strlen(old_password) > PASSWORD_MAX)
        st = wrong(err);
    if (st == STATUS_OK)
        st = check_throttle(s, a->name, err);
    if (st == STATUS_OK)
        st = find_account(s, a->name, &now, hash, &found, err);
    if (st == STATUS_OK)
        st = verify(s, hash, old_password, deadline_us, &ok, new_hash, err);
    if (st != STATUS_OK)
        return st;
    if (!ok || !found)
        return fail_login(s, a->name, a->id, "", err);
    st = hash_password(s, new_password, deadline_us, new_hash, err);
    if (st != STATUS_OK)
        return st;
    struct begin b = {.account = &now,
                      .device = "",
                      .kind = "password.changed",
                      .new_hash = new_hash,
                      .end_others = true,
                      .grant = ret};
    return db_tx(s->db, DB_READ_COMMITTED, begin_tx, &b, err);
}

// ---------------------------------------------------------------- the first admin

struct admin {
    struct session *session;
    const char *password, *hash;
    bool created;
};

static enum status write_all(int fd, const char *path, const char *text, struct err *err)
{
    for (size_t n = strlen(text); n;) {
        ssize_t w = write(fd, text, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return err_errno(err, errno, "write %s", path);
        text += w;
        n -= (size_t)w;
    }
    return STATUS_OK;
}

static enum status tell_in_file(const char *path, const char *line, struct err *err)
{
    AUTO(mem_free_p) char *tmp = mem_printf("%s.new", path);
    if (!tmp)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "admin password: out of memory");
    unlink(tmp);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_errno(err, errno, "create %s", tmp);
    enum status s = write_all(fd, tmp, line, err);
    if (s == STATUS_OK && fsync(fd) != 0)
        s = err_errno(err, errno, "sync %s", tmp);
    close(fd);
    if (s == STATUS_OK && rename(tmp, path) != 0)
        s = err_errno(err, errno, "rename %s to %s", tmp, path);
    if (s != STATUS_OK)
        unlink(tmp);
    return s;
}

static enum status tell_password(const struct admin *ad, struct err *err)
{
    char line[128];
    const char *path = ad->session->admin_password_file;
    snprintf(line, sizeof line, path ? "%s\n" : "admin password, shown once: %s\n", ad->password);
    enum status s = path ? tell_in_file(path, line, err)
                         : write_all(STDOUT_FILENO, "standard output", line, err);
    crypto_wipe(line, sizeof line);
    return s;
}

static enum status ensure_admin_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct admin *ad = ud;
    char id[UUID_SIZE];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    rand_uuid7(id);
    enum status s =
        db_exec(c,
                "INSERT INTO session.account (id, name, password, roles)"
                " VALUES ($1, $2, $3, ARRAY['user', 'creator', 'admin'])"
                " ON CONFLICT (name) DO NOTHING",
                DB_PARAMS(DB_TEXT(id), DB_TEXT(ADMIN_NAME), DB_TEXT(ad->hash)), &r, err);
    ad->created = s == STATUS_OK && db_result_n_affected(r) == 1;
    if (!ad->created)
        return s;
    s = session_audit(c, "user.registered", id, &(struct session_audit_fields){.name = ADMIN_NAME},
                      err);
    // Told before the commit: an admin whose password nobody knows would be worse than a password
    // without its admin, which the next start replaces.
    return s == STATUS_OK ? tell_password(ad, err) : s;
}

enum status session_ensure_admin(struct session *s, struct err *err)
{
    struct session_account there;
    uint8_t random[ADMIN_PASSWORD_BYTES];
    char password[2 * ADMIN_PASSWORD_BYTES], hash[CRYPTO_PW_SIZE];
    enum status st = session_account_get(s, ADMIN_NAME, &there, NULL);
    if (st == STATUS_OK)
        return st;
    rand_bytes(random, sizeof random);
    str_b64(password, random, sizeof random);
    struct admin ad = {.session = s, .password = password, .hash = hash};
    st = hash_password(s, password, time_deadline_in_ms(60000), hash, err);
    if (st == STATUS_OK)
        st = db_tx(s->db, DB_READ_COMMITTED, ensure_admin_tx, &ad, err);
    crypto_wipe(random, sizeof random);
    crypto_wipe(password, sizeof password);
    if (st == STATUS_OK && ad.created)
        log_info(s->log, "admin_created",
                 F_STR("password_in", s->admin_password_file ? s->admin_password_file : "stdout"));
    return st;
}
