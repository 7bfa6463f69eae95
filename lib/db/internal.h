#pragma once
// What lib/db's own files share: one connection and the waits on it.
#include <libpq-fe.h>

#include "base/list.h"
#include "db/db.h"

// Statements prepared per connection; what comes after that many runs unprepared.
#define DB_MAX_STATEMENTS 256
#define DB_STATEMENT_SLOTS 512 // open addressing: power of two, twice the maximum
#define DB_MAX_PARAMS 64
// How much longer than the server's own statement timeout we wait for its answer.
#define DB_ANSWER_SLACK_MS 1000

// db_opts with defaults filled in and the conninfo parsed once.
struct db_conf {
    PQconninfoOption *params;
    char *name;
    unsigned max_conns;
    int64_t connect_timeout_ms;
    int64_t statement_timeout_ms;
};
enum status db_conf_init(struct db_conf *f, const struct db_opts *o, struct err *err) MUST_CHECK;
void db_conf_done(struct db_conf *f);

struct db_statement {
    uint64_t hash;
    char *sql; // NULL: free slot
    unsigned number;
};

struct db_conn {
    struct list link; // in the pool's idle list
    PGconn *pg;
    int64_t answer_ms;         // longest wait for the answer to one statement
    bool broken;               // never goes back into the pool
    bool serialization_failed; // since the transaction began: it can be repeated
    char constraint[64];
    unsigned n_statements;
    struct db_statement statements[DB_STATEMENT_SLOTS];
};

// stop_fd  becomes readable when the wait should end early with CANCELLED; -1: none
enum status db_conn_open(const struct db_conf *f, int stop_fd, struct db_conn **ret,
                         struct err *err) MUST_CHECK;
void db_conn_close(struct db_conn *c);
DEFINE_AUTO(struct db_conn, db_conn_close)
bool db_conn_is_alive(struct db_conn *c); // looks at the socket, asks nobody

// Text without parameters, possibly several statements. ret may be NULL.
enum status db_conn_simple(struct db_conn *c, const char *sql, struct db_result **ret,
                           struct err *err) MUST_CHECK;
enum status db_conn_tx(struct db_conn *c, enum db_isolation iso, db_tx_fn fn, void *ud,
                       struct err *err) MUST_CHECK;

// Takes over the result.
enum status db_result_new(PGresult *r, struct db_result **ret, struct err *err) MUST_CHECK;
enum status db_err_from_result(struct db_conn *c, const PGresult *r, struct err *err);

const struct db_conf *db_get_conf(const struct db *d);
