#pragma once
// PostgreSQL: pool of connections, statements with typed parameters, transactions with retry, and
// the migration runner. Only user of libpq. Any thread; every wait has a deadline.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"

struct db;      // a pool, shared between threads
struct db_conn; // one connection, borrowed from the pool by one thread
struct db_result;

struct db_opts {
    const char *conninfo;         // libpq's string; "" = PGHOST etc. from the environment
    const char *name;             // application_name
    unsigned max_conns;           // 0 = 8
    int64_t connect_timeout_ms;   // 0 = 2000
    int64_t statement_timeout_ms; // 0 = 10000; also bounds waiting for a free connection
};

// Does not connect: a database that is down makes calls fail with UNAVAILABLE and they recover by
// themselves.
struct db *db_new(const struct db_opts *o, struct err *err) MUST_CHECK;
void db_free(struct db *d);
DEFINE_AUTO(struct db, db_free)
enum status db_ping(struct db *d, struct err *err) MUST_CHECK;

// ---- parameters and results ----
struct db_param {
    enum { DB_P_NULL, DB_P_TEXT, DB_P_I64, DB_P_BOOL, DB_P_BYTES, DB_P_DOUBLE } type;
    const void *ptr;
    size_t len;
    int64_t i64;
    double dbl;
};
#define DB_NULL ((struct db_param){.type = DB_P_NULL})
#define DB_TEXT(s) ((struct db_param){.type = DB_P_TEXT, .ptr = (s)}) // NULL is SQL NULL
#define DB_I64(v) ((struct db_param){.type = DB_P_I64, .i64 = (int64_t)(v)})
#define DB_BOOL(v) ((struct db_param){.type = DB_P_BOOL, .i64 = (v) ? 1 : 0})
#define DB_DOUBLE(v) ((struct db_param){.type = DB_P_DOUBLE, .dbl = (v)})
#define DB_BYTES(p, n) ((struct db_param){.type = DB_P_BYTES, .ptr = (p), .len = (n)})
#define DB_PARAMS(...)                                                                             \
    (const struct db_param[]){__VA_ARGS__},                                                        \
        (sizeof((const struct db_param[]){__VA_ARGS__}) / sizeof(struct db_param))

size_t db_result_n_rows(const struct db_result *r);
int64_t db_result_n_affected(const struct db_result *r);
bool db_is_null(const struct db_result *r, size_t row, unsigned col);
const char *db_text(const struct db_result *r, size_t row,
                    unsigned col); // borrowed; NULL for SQL NULL; any type in its text form
int64_t db_i64(const struct db_result *r, size_t row, unsigned col); // 0 for NULL
double db_double(const struct db_result *r, size_t row, unsigned col);
bool db_bool(const struct db_result *r, size_t row, unsigned col);
const uint8_t *db_bytes(const struct db_result *r, size_t row, unsigned col,
                        size_t *ret_len); // bytea, decoded; borrowed
void db_result_free(struct db_result *r);
DEFINE_AUTO(struct db_result, db_result_free)

// ---- statements: text with $1.., prepared once per connection and cached by its address or text
// ---- ret may be NULL when no result is wanted. errors  by SQLSTATE class: UNAVAILABLE (08, 57P),
// ALREADY_EXISTS (23505), FAILED_PRECONDITION
//         (23503, 23514), INVALID_ARGUMENT (22), ABORTED (40001, 40P01), DEADLINE_EXCEEDED (57014),
//         RESOURCE_EXHAUSTED (53), INTERNAL otherwise. The text never holds parameter values.
enum status db_exec(struct db_conn *c, const char *sql, const struct db_param *params, size_t n,
                    struct db_result **ret, struct err *err) MUST_CHECK;
// The same on a connection borrowed for this one statement (its own transaction).
enum status db_query(struct db *d, const char *sql, const struct db_param *params, size_t n,
                     struct db_result **ret, struct err *err) MUST_CHECK;
const char *
db_constraint(const struct db_conn *c); // constraint that the last failed statement violated, or ""

// ---- transactions ----
enum db_isolation { DB_READ_COMMITTED, DB_REPEATABLE_READ, DB_SERIALIZABLE };
// Run fn inside one transaction: commit when it returns OK, roll back otherwise. ABORTED
// (serialization failure, deadlock) is retried up to 8 times with jitter: fn must be repeatable and
// keep its effects inside the transaction. A commit whose outcome is unknown is UNAVAILABLE:
// callers use idempotency keys.
typedef enum status (*db_tx_fn)(struct db_conn *c, void *ud, struct err *err);
enum status db_tx(struct db *d, enum db_isolation iso, db_tx_fn fn, void *ud,
                  struct err *err) MUST_CHECK;

// ---- notifications: LISTEN on a connection of its own, reconnecting by itself ----
struct db_listener;
typedef void (*db_notify_fn)(void *ud, const char *channel,
                             const char *payload); // listener's thread; also called once with
                                                   // payload NULL after each (re)connect
struct db_listener *db_listen(const struct db_opts *o, const char *const *channels, size_t n,
                              db_notify_fn fn, void *ud, struct err *err) MUST_CHECK;
void db_listener_free(struct db_listener *l); // joins

// ---- migrations: NNNN_name.up.sql in dir, ascending, each in a transaction, under an advisory
// lock; recorded with a checksum in public.cauce_migration; a changed or missing applied file is
// refused ----
enum status db_migrate(struct db *d, const char *dir, unsigned *ret_n_applied,
                       struct err *err) MUST_CHECK;
// Undo what is above `version`, newest first, with NNNN_name.down.sql. The data go too.
enum status db_migrate_down(struct db *d, const char *dir, int version, unsigned *ret_n_reverted,
                            struct err *err) MUST_CHECK;
// OK when every file of dir is applied; FAILED_PRECONDITION naming the first that is not.
enum status db_migrate_check(struct db *d, const char *dir, struct err *err) MUST_CHECK;
