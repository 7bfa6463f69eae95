// One connection: asynchronous libpq under poll(), so that no wait outlives its deadline.
//
// The server's statement_timeout ends statements that run too long; the deadline here is a little
// later and ends waits for a server that does not answer at all. Such a connection is closed, never
// used again.
#include "db/internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

#define MAX_CONN_PARAMS 64

enum status db_conf_init(struct db_conf *f, const struct db_opts *o, struct err *err)
{
    *f = (struct db_conf){
        .max_conns = o->max_conns ? o->max_conns : 8,
        .connect_timeout_ms = o->connect_timeout_ms ? o->connect_timeout_ms : 2000,
        .statement_timeout_ms = o->statement_timeout_ms ? o->statement_timeout_ms : 10000,
    };
    char *text = NULL;
    f->params = PQconninfoParse(o->conninfo ? o->conninfo : "", &text);
    if (!f->params) {
        enum status s = err_set(err, STATUS_INVALID_ARGUMENT, "database conninfo: %s",
                                text ? text : "out of memory");
        PQfreemem(text);
        return s;
    }
    f->name = mem_strdup(o->name ? o->name : "cauce");
    if (!f->name) {
        db_conf_done(f);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "database options: out of memory");
    }
    return STATUS_OK;
}

void db_conf_done(struct db_conf *f)
{
    PQconninfoFree(f->params);
    mem_free(f->name);
    *f = (struct db_conf){0};
}

// ---------------------------------------------------------------- waiting

enum wait_result { WAIT_READY, WAIT_TIMEOUT, WAIT_STOPPED };

static enum wait_result wait_socket(PGconn *pg, short events, int stop_fd, int64_t deadline_us)
{
    struct pollfd fds[2] = {{.fd = PQsocket(pg), .events = events},
                            {.fd = stop_fd, .events = POLLIN}};
    for (;;) {
        int64_t left = time_left_ms(deadline_us);
        if (left <= 0)
            return WAIT_TIMEOUT;
        int n = poll(fds, stop_fd >= 0 ? 2 : 1, left > INT32_MAX ? INT32_MAX : (int)left);
        if (n < 0 && errno != EINTR)
            return WAIT_TIMEOUT;
        if (n <= 0)
            continue;
        return fds[1].revents && stop_fd >= 0 ? WAIT_STOPPED : WAIT_READY;
    }
}

// libpq's texts end in a newline and may have several lines.
static enum status connection_error(PGconn *pg, const char *what, struct err *err)
{
    char text[160];
    str_copy(text, sizeof text, PQerrorMessage(pg));
    text[strcspn(text, "\n")] = '\0';
    return err_set(err, STATUS_UNAVAILABLE, "%s: %s", what, text[0] ? text : "connection lost");
}

static enum status lost(struct db_conn *c, struct err *err)
{
    c->broken = true;
    return connection_error(c->pg, "database", err);
}

static enum status no_answer(struct db_conn *c, struct err *err)
{
    c->broken = true;
    return err_set(err, STATUS_UNAVAILABLE, "database did not answer within %lld ms",
                   (long long)c->answer_ms);
}

static enum status flush(struct db_conn *c, int64_t deadline_us, struct err *err)
{
    for (;;) {
        int left = PQflush(c->pg);
        if (left == 0)
            return STATUS_OK;
        if (left < 0)
            return lost(c, err);
        if (wait_socket(c->pg, POLLIN | POLLOUT, -1, deadline_us) != WAIT_READY)
            return no_answer(c, err);
        if (!PQconsumeInput(c->pg))
            return lost(c, err);
    }
}

static enum status wait_not_busy(struct db_conn *c, int64_t deadline_us, struct err *err)
{
    while (PQisBusy(c->pg)) {
        if (wait_socket(c->pg, POLLIN, -1, deadline_us) != WAIT_READY)
            return no_answer(c, err);
        if (!PQconsumeInput(c->pg))
            return lost(c, err);
    }
    return STATUS_OK;
}

// The answer to what was sent: the last result, or the first error. All results are read, as libpq
// demands before the next statement.
static enum status collect(struct db_conn *c, struct db_result **ret, struct err *err)
{
    int64_t deadline_us = time_deadline_in_ms(c->answer_ms);
    enum status s = flush(c, deadline_us, err);
    PGresult *last = NULL;
    while (s == STATUS_OK) {
        s = wait_not_busy(c, deadline_us, err);
        PGresult *r = s == STATUS_OK ? PQgetResult(c->pg) : NULL;
        if (!r)
            break;
        if (last && PQresultStatus(last) == PGRES_FATAL_ERROR) {
            PQclear(r);
        } else {
            PQclear(last);
            last = r;
        }
    }
    if (s == STATUS_OK && !last)
        s = lost(c, err);
    else if (s == STATUS_OK && PQresultStatus(last) != PGRES_TUPLES_OK &&
             PQresultStatus(last) != PGRES_COMMAND_OK)
        s = db_err_from_result(c, last, err);
    if (s != STATUS_OK || !ret) {
        PQclear(last);
        return s;
    }
    return db_result_new(last, ret, err);
}

// ---------------------------------------------------------------- opening and closing

// The caller's parameters, then ours: libpq takes the last of several.
static enum status start_connect(const struct db_conf *f, PGconn **ret, struct err *err)
{
    const char *keys[MAX_CONN_PARAMS], *values[MAX_CONN_PARAMS];
    const char *options = "";
    size_t n = 0;
    for (const PQconninfoOption *p = f->params; p->keyword && n < MAX_CONN_PARAMS - 5; p++) {
        if (!p->val)
            continue;
        if (str_eq(p->keyword, "options"))
            options = p->val;
        keys[n] = p->keyword;
        values[n++] = p->val;
    }
    AUTO(mem_free_p)
    char *all = mem_printf("%s -c statement_timeout=%lld -c idle_in_transaction_session_timeout=60s"
                           " -c TimeZone=UTC -c DateStyle=ISO -c client_min_messages=warning",
                           options, (long long)f->statement_timeout_ms);
    if (!all)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "database connection: out of memory");
    keys[n] = "options", values[n++] = all;
    keys[n] = "application_name", values[n++] = f->name;
    keys[n] = "client_encoding", values[n++] = "UTF8";
    keys[n] = NULL, values[n] = NULL;
    PGconn *pg = PQconnectStartParams(keys, values, 0);
    if (!pg)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "database connection: out of memory");
    *ret = pg;
    return STATUS_OK;
}

static enum status finish_connect(PGconn *pg, int stop_fd, int64_t deadline_us, struct err *err)
{
    PostgresPollingStatusType next = PGRES_POLLING_WRITING;
    if (PQstatus(pg) == CONNECTION_BAD)
        return connection_error(pg, "connect to the database", err);
    while (next != PGRES_POLLING_OK) {
        short events = next == PGRES_POLLING_READING ? POLLIN : POLLOUT;
        switch (wait_socket(pg, events, stop_fd, deadline_us)) {
        case WAIT_TIMEOUT:
            return err_set(err, STATUS_UNAVAILABLE, "connect to the database: timed out");
        case WAIT_STOPPED:
            return err_set(err, STATUS_CANCELLED, "connect to the database: stopped");
        case WAIT_READY:
            break;
        }
        next = PQconnectPoll(pg);
        if (next == PGRES_POLLING_FAILED)
            return connection_error(pg, "connect to the database", err);
    }
    return STATUS_OK;
}

static void drop_notice(void *ud, const PGresult *r)
{
    (void)ud, (void)r;
}

enum status db_conn_open(const struct db_conf *f, int stop_fd, struct db_conn **ret,
                         struct err *err)
{
    AUTO(db_conn_close_p) struct db_conn *c = mem_alloc(sizeof *c);
    if (!c)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "database connection: out of memory");
    list_init(&c->link);
    c->answer_ms = f->statement_timeout_ms + DB_ANSWER_SLACK_MS;
    int64_t deadline_us = time_deadline_in_ms(f->connect_timeout_ms);
    enum status s = start_connect(f, &c->pg, err);
    if (s == STATUS_OK)
        s = finish_connect(c->pg, stop_fd, deadline_us, err);
    if (s != STATUS_OK)
        return s;
    PQsetNoticeReceiver(c->pg, drop_notice, NULL);
    if (PQsetnonblocking(c->pg, 1) != 0)
        return lost(c, err);
    *ret = TAKE(c);
    return STATUS_OK;
}

void db_conn_close(struct db_conn *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < DB_STATEMENT_SLOTS; i++)
        mem_free(c->statements[i].sql);
    PQfinish(c->pg);
    mem_free(c);
}

bool db_conn_is_alive(struct db_conn *c)
{
    struct pollfd p = {.fd = PQsocket(c->pg), .events = POLLIN};
    // An idle connection has nothing to say but goodbye (or a change of a setting): read until
    // there is no more, so that the end behind a last message is seen.
    while (poll(&p, 1, 0) > 0)
        if (!PQconsumeInput(c->pg))
            return false;
    return PQstatus(c->pg) == CONNECTION_OK && PQtransactionStatus(c->pg) == PQTRANS_IDLE;
}

// ---------------------------------------------------------------- statements

enum status db_conn_simple(struct db_conn *c, const char *sql, struct db_result **ret,
                           struct err *err)
{
    if (!PQsendQuery(c->pg, sql))
        return lost(c, err);
    return collect(c, ret, err);
}

static uint64_t hash_text(const char *s)
{
    uint64_t h = 14695981039346656037ULL; // FNV-1a
    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 1099511628211ULL;
    return h;
}

static struct db_statement *find_slot(struct db_conn *c, const char *sql, uint64_t hash)
{
    size_t i = (size_t)hash & (DB_STATEMENT_SLOTS - 1);
    while (c->statements[i].sql &&
           (c->statements[i].hash != hash || !str_eq(c->statements[i].sql, sql)))
        i = (i + 1) & (DB_STATEMENT_SLOTS - 1);
    return &c->statements[i];
}

static void statement_name(char name[16], unsigned number)
{
    snprintf(name, 16, "s%u", number);
}

// ret_name: "" when the statement is to run unprepared.
static enum status prepare(struct db_conn *c, const char *sql, char ret_name[16], struct err *err)
{
    uint64_t hash = hash_text(sql);
    struct db_statement *slot = find_slot(c, sql, hash);
    ret_name[0] = '\0';
    if (slot->sql) {
        statement_name(ret_name, slot->number);
        return STATUS_OK;
    }
    if (c->n_statements == DB_MAX_STATEMENTS)
        return STATUS_OK;
    AUTO(mem_free_p) char *copy = mem_strdup(sql);
    if (!copy)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "database statement: out of memory");
    char name[16];
    statement_name(name, c->n_statements);
    if (!PQsendPrepare(c->pg, name, sql, 0, NULL))
        return lost(c, err);
    enum status s = collect(c, NULL, err);
    if (s != STATUS_OK)
        return s;
    *slot = (struct db_statement){.hash = hash, .sql = TAKE(copy), .number = c->n_statements++};
    memcpy(ret_name, name, sizeof name);
    return STATUS_OK;
}

// Parameters as libpq wants them: text, but bytes in binary.
struct wire_params {
    const char *values[DB_MAX_PARAMS];
    int lengths[DB_MAX_PARAMS];
    int formats[DB_MAX_PARAMS];
    char numbers[DB_MAX_PARAMS][32];
};

static enum status encode(struct wire_params *w, const struct db_param *p, size_t n,
                          struct err *err)
{
    if (n > DB_MAX_PARAMS)
        return err_set(err, STATUS_INTERNAL, "database statement has more than %d parameters",
                       DB_MAX_PARAMS);
    for (size_t i = 0; i < n; i++) {
        w->values[i] = NULL, w->lengths[i] = 0, w->formats[i] = 0;
        switch (p[i].type) {
        case DB_P_NULL:
            break;
        case DB_P_TEXT:
            w->values[i] = p[i].ptr;
            break;
        case DB_P_I64:
            snprintf(w->numbers[i], sizeof w->numbers[i], "%lld", (long long)p[i].i64);
            w->values[i] = w->numbers[i];
            break;
        case DB_P_BOOL:
            w->values[i] = p[i].i64 ? "t" : "f";
            break;
        case DB_P_DOUBLE:
            snprintf(w->numbers[i], sizeof w->numbers[i], "%.17g", p[i].dbl);
            w->values[i] = w->numbers[i];
            break;
        case DB_P_BYTES:
            if (p[i].len > INT32_MAX)
                return err_set(err, STATUS_INVALID_ARGUMENT, "database value too large");
            // An empty value is not NULL.
            w->values[i] = p[i].ptr ? p[i].ptr : "";
            w->lengths[i] = (int)p[i].len;
            w->formats[i] = 1;
            break;
        }
    }
    return STATUS_OK;
}

enum status db_exec(struct db_conn *c, const char *sql, const struct db_param *params, size_t n,
                    struct db_result **ret, struct err *err)
{
    struct wire_params w;
    char name[16];
    c->constraint[0] = '\0';
    if (c->broken)
        return err_set(err, STATUS_UNAVAILABLE, "database connection lost");
    enum status s = encode(&w, params, n, err);
    if (s == STATUS_OK)
        s = prepare(c, sql, name, err);
    if (s != STATUS_OK)
        return s;
    int sent = name[0]
                   ? PQsendQueryPrepared(c->pg, name, (int)n, w.values, w.lengths, w.formats, 0)
                   : PQsendQueryParams(c->pg, sql, (int)n, NULL, w.values, w.lengths, w.formats, 0);
    if (!sent)
        return lost(c, err);
    return collect(c, ret, err);
}

const char *db_constraint(const struct db_conn *c)
{
    return c->constraint;
}

// ---------------------------------------------------------------- transactions

static const char *const begin_sql[] = {
    [DB_READ_COMMITTED] = "BEGIN ISOLATION LEVEL READ COMMITTED",
    [DB_REPEATABLE_READ] = "BEGIN ISOLATION LEVEL REPEATABLE READ",
    [DB_SERIALIZABLE] = "BEGIN ISOLATION LEVEL SERIALIZABLE",
};

static enum status commit(struct db_conn *c, struct err *err)
{
    // A failed transaction answers COMMIT with ROLLBACK and no error.
    if (PQtransactionStatus(c->pg) != PQTRANS_INTRANS)
        return err_set(err, STATUS_INTERNAL, "database transaction has failed, cannot commit");
    enum status s = db_conn_simple(c, "COMMIT", NULL, err);
    if (s == STATUS_UNAVAILABLE)
        return err_wrap(err, s, "commit, outcome unknown");
    return s;
}

enum status db_conn_tx(struct db_conn *c, enum db_isolation iso, db_tx_fn fn, void *ud,
                       struct err *err)
{
    c->serialization_failed = false;
    c->constraint[0] = '\0';
    enum status s = db_conn_simple(c, begin_sql[iso], NULL, err);
    if (s != STATUS_OK)
        return s;
    s = fn(c, ud, err);
    if (s == STATUS_OK)
        s = commit(c, err);
    if (s != STATUS_OK && !c->broken && PQtransactionStatus(c->pg) != PQTRANS_IDLE) {
        struct err ignored = ERR_INIT; // the first error is the one worth telling
        if (db_conn_simple(c, "ROLLBACK", NULL, &ignored) != STATUS_OK)
            c->broken = true;
    }
    return s;
}
