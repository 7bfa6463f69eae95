#pragma once
// The session service below its RPC handlers: accounts, logins and the hashing gate.
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/rand.h"
#include "crypto/crypto.h"
#include "db/db.h"
#include "event/event.h"
#include "log/log.h"
#include "rpc/rpc.h"
#include "service/service.h"

#define SESSION_SCHEMA "session"
#define SESSION_TOPIC "auth"
// Whoever verifies access tokens hears of logins that end.
#define SESSION_TOPIC_NODES                                                                        \
    (ROLE_NODE_SESSION | ROLE_NODE_ORCHESTRATOR | ROLE_NODE_STORE | ROLE_NODE_ORIGIN |             \
     ROLE_NODE_GATEWAY)
#define SESSION_ACCESS_MS SVC_ACCESS_TOKEN_MS
#define SESSION_REFRESH_TEXT 44 // 32 bytes in base64url and a NUL
#define SESSION_NAME_SIZE 65
#define SESSION_EMAIL_SIZE 255
#define SESSION_DEVICE_MAX 100
#define SESSION_HASH_QUEUE 32

struct session_options {
    struct svc_options common;
    bool registration;
    char **new_user_roles;
    char *admin_password_file;
    int64_t password_memory;
    struct svc_event_options events;
};

// ---- gate: so many password hashes at once, so many waiting, the rest is told to come back ----
struct session_gate {
    pthread_mutex_t lock;
    pthread_cond_t left;
    unsigned n_running, n_waiting, max_running, max_waiting;
};
void session_gate_init(struct session_gate *g, unsigned max_running, unsigned max_waiting);
void session_gate_done(struct session_gate *g);
// errors  RESOURCE_EXHAUSTED: the queue is full; DEADLINE_EXCEEDED
enum status session_gate_enter(struct session_gate *g, int64_t deadline_us,
                               struct err *err) MUST_CHECK;
void session_gate_leave(struct session_gate *g);

struct session {
    struct db *db;
    struct log *log;
    struct event_log *events;
    struct session_gate gate;
    struct crypto_pw_params pw;
    char dummy_hash[CRYPTO_PW_SIZE]; // what unknown users' passwords are compared with
    bool registration;
    unsigned new_user_roles;
    const char *admin_password_file; // NULL: stdout
    const char *migrations;
    uint8_t token_secret[64];
    struct svc_gauge gauge;
    bool is_prepared; // of who asks the gauge
};
// Everything but the database pool and the events, which the caller sets.
enum status session_init(struct session *s, const struct crypto_pw_params *pw,
                         struct err *err) MUST_CHECK;
void session_done(struct session *s);

struct session_account {
    char id[UUID_SIZE];
    char name[SESSION_NAME_SIZE];
    char email[SESSION_EMAIL_SIZE];
    unsigned roles; // ROLE_USER | ROLE_CREATOR | ROLE_ADMIN
    bool disabled;
    int64_t created_us;
    int64_t epoch; // of its rights: older access tokens do not count any more
};
struct session_grant { // what a successful sign-in gives
    struct session_account account;
    char login[UUID_SIZE];
    char refresh[SESSION_REFRESH_TEXT];
    int64_t refresh_expires_us;
};

// ---- accounts (accounts.c); roles by name: false when one is unknown ----
bool session_roles_parse(const char *const *names, size_t n, unsigned *ret);
size_t session_roles_names(unsigned roles, const char *ret[3]);

// Columns that session_account_read() expects first, of a table or row named a.
#define SESSION_ACCOUNT_COLUMNS                                                                    \
    "a.id, a.name, a.email, a.roles, a.disabled, (extract(epoch FROM a.created) * "                \
    "1000000)::bigint, a.epoch"
#define SESSION_ACCOUNT_N_COLUMNS 7
void session_account_read(const struct db_result *r, size_t row, struct session_account *ret);

// The user behind a call, from the table: UNAUTHENTICATED when the login has ended or the account
// is disabled, PERMISSION_DENIED when it lacks the roles.
enum status session_check_user(struct session *s, const struct rpc_user *u, unsigned roles,
                               struct session_account *ret, struct err *err) MUST_CHECK;
enum status session_account_get(struct session *s, const char *id_or_name,
                                struct session_account *ret, struct err *err) MUST_CHECK;
// after: id of the last one seen, or NULL. Up to max accounts in order of id.
enum status session_account_list(struct session *s, const char *after, size_t max,
                                 struct session_account *ret, size_t *ret_n,
                                 struct err *err) MUST_CHECK;
enum status session_set_roles(struct session *s, const char *actor, const char *id_or_name,
                              unsigned roles, struct session_account *ret,
                              struct err *err) MUST_CHECK;
enum status session_set_disabled(struct session *s, const char *actor, const char *id_or_name,
                                 bool disabled, struct session_account *ret,
                                 struct err *err) MUST_CHECK;

// ---- sign-in with a password (passwords.c) ----
enum status session_register(struct session *s, const char *name, const char *password,
                             const char *email, int64_t deadline_us, struct session_grant *ret,
                             struct err *err) MUST_CHECK;
enum status session_login(struct session *s, const char *name, const char *password,
                          const char *device, int64_t deadline_us, struct session_grant *ret,
                          struct err *err) MUST_CHECK;
// Ends all logins and begins a new one.
enum status session_change_password(struct session *s, const struct session_account *a,
                                    const char *old_password, const char *new_password,
                                    int64_t deadline_us, struct session_grant *ret,
                                    struct err *err) MUST_CHECK;
// Creates `admin` with a random password unless there is one.
enum status session_ensure_admin(struct session *s, struct err *err) MUST_CHECK;

// ---- logins and refresh tokens (logins.c) ----
// Inside a transaction: a new family with its first token.
enum status session_login_begin(struct db_conn *c, const struct session_account *a,
                                const char *device, struct session_grant *ret,
                                struct err *err) MUST_CHECK;
// Access tokens made so far count no more, once the audit row that says so is read. errors
// NOT_FOUND
enum status session_epoch_end(struct db_conn *c, const char *account, int64_t *ret_epoch,
                              struct err *err) MUST_CHECK;
// login NULL: all of the account's.
enum status session_login_end(struct db_conn *c, const char *account, const char *login,
                              const char *reason, struct err *err) MUST_CHECK;
enum status session_refresh(struct session *s, const char *token, struct session_grant *ret,
                            struct err *err) MUST_CHECK;
enum status session_logout(struct session *s, const struct session_account *a, const char *login,
                           bool everywhere, struct err *err) MUST_CHECK;

// One audit row about an account. Each of the fields may be NULL, or 0.
struct session_audit_fields {
    const char *name, *login, *device;
    int64_t epoch; // the account's new one
};
enum status session_audit(struct db_conn *c, const char *kind, const char *account,
                          const struct session_audit_fields *f, struct err *err) MUST_CHECK;

// ---- handlers.c ----
enum status session_serve(struct session *s, struct rpc_server *server, struct err *err) MUST_CHECK;
