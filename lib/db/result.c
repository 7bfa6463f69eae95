// Results: rows in PostgreSQL's text format, decoded when asked for.
#include "db/internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

struct db_result {
    PGresult *pg;
    struct arena *decoded; // bytea values that were asked for; NULL until the first
};

enum status db_result_new(PGresult *r, struct db_result **ret, struct err *err)
{
    struct db_result *o = mem_alloc(sizeof *o);
    if (!o) {
        PQclear(r);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "database result: out of memory");
    }
    o->pg = r;
    *ret = o;
    return STATUS_OK;
}

void db_result_free(struct db_result *r)
{
    if (!r)
        return;
    PQclear(r->pg);
    arena_free(r->decoded);
    mem_free(r);
}

size_t db_result_n_rows(const struct db_result *r)
{
    return (size_t)PQntuples(r->pg);
}

int64_t db_result_n_affected(const struct db_result *r)
{
    // PQcmdTuples lacks const, but only reads.
    const char *n = PQcmdTuples(r->pg);
    return *n ? strtoll(n, NULL, 10) : 0;
}

bool db_is_null(const struct db_result *r, size_t row, unsigned col)
{
    return PQgetisnull(r->pg, (int)row, (int)col) != 0;
}

const char *db_text(const struct db_result *r, size_t row, unsigned col)
{
    return db_is_null(r, row, col) ? NULL : PQgetvalue(r->pg, (int)row, (int)col);
}

int64_t db_i64(const struct db_result *r, size_t row, unsigned col)
{
    const char *s = db_text(r, row, col);
    return s ? strtoll(s, NULL, 10) : 0;
}

double db_double(const struct db_result *r, size_t row, unsigned col)
{
    const char *s = db_text(r, row, col);
    return s ? strtod(s, NULL) : 0.0;
}

bool db_bool(const struct db_result *r, size_t row, unsigned col)
{
    const char *s = db_text(r, row, col);
    return s && *s == 't';
}

const uint8_t *db_bytes(const struct db_result *r, size_t row, unsigned col, size_t *ret_len)
{
    *ret_len = 0;
    const char *s = db_text(r, row, col);
    if (!s || s[0] != '\\' || s[1] != 'x')
        return NULL;
    size_t n = strlen(s + 2) / 2;
    // The cache of decoded values is no part of the result's meaning: const for the caller.
    struct db_result *w = (struct db_result *)(uintptr_t)r;
    if (!w->decoded)
        w->decoded = arena_new(0);
    uint8_t *p = w->decoded ? arena_alloc(w->decoded, n + 1) : NULL;
    if (!p || !str_unhex(p, n, s + 2))
        return NULL;
    *ret_len = n;
    return p;
}
