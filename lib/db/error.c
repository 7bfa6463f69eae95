// SQLSTATE to status. Only the primary message is passed on: values are in DETAIL, except for
// class 22, whose primary text quotes the refused value and is therefore replaced.
#include "db/internal.h"

#include <string.h>

#include "base/str.h"

// First match wins: exact codes come before their class.
static const struct {
    const char *prefix;
    enum status status;
} states[] = {
    {"08", STATUS_UNAVAILABLE},            // connection
    {"22", STATUS_INVALID_ARGUMENT},       // data
    {"23001", STATUS_FAILED_PRECONDITION}, // restrict: our triggers
    {"23503", STATUS_FAILED_PRECONDITION}, // foreign key
    {"23505", STATUS_ALREADY_EXISTS},      // unique
    {"23514", STATUS_FAILED_PRECONDITION}, // check
    {"23P01", STATUS_FAILED_PRECONDITION}, // exclusion
    {"40001", STATUS_ABORTED},             // serialization
    {"40P01", STATUS_ABORTED},             // deadlock
    {"53", STATUS_RESOURCE_EXHAUSTED},     // memory, disk, connections
    {"55P03", STATUS_ABORTED},             // lock not available
    {"57014", STATUS_DEADLINE_EXCEEDED},   // statement timeout
    {"57P", STATUS_UNAVAILABLE},           // server stops or starts
};

static enum status status_from_sqlstate(const char *state)
{
    for (size_t i = 0; i < N_ELEMENTS(states); i++)
        if (str_starts_with(state, states[i].prefix))
            return states[i].status;
    return STATUS_INTERNAL;
}

// After these the connection is of no use: the server ends it, or forgot or outgrew a prepared
// statement.
static bool is_fatal(const char *state)
{
    return str_starts_with(state, "08") || str_starts_with(state, "57P") ||
           str_eq(state, "0A000") || str_eq(state, "26000");
}

enum status db_err_from_result(struct db_conn *c, const PGresult *r, struct err *err)
{
    const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    if (!state) {
        c->broken = true;
        return err_set(err, STATUS_UNAVAILABLE, "database connection lost");
    }
    enum status s = status_from_sqlstate(state);
    if (is_fatal(state))
        c->broken = true;
    if (str_eq(state, "40001") || str_eq(state, "40P01"))
        c->serialization_failed = true;
    const char *constraint = PQresultErrorField(r, PG_DIAG_CONSTRAINT_NAME);
    if (constraint)
        str_copy(c->constraint, sizeof c->constraint, constraint);
    if (str_starts_with(state, "22"))
        return err_set(err, s, "database refused a value (SQLSTATE %s)", state);
    const char *text = PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY);
    return err_set(err, s, "database: %s (SQLSTATE %s)", text ? text : "error", state);
}
