// Appending: the topic's counter row is locked until the caller's transaction ends, so numbers are
// given in the order of commits and a rolled back append leaves no gap.
#include "event/event.h"

#include <stdio.h>
#include <string.h>

#include "event/internal.h"

static bool is_schema_name(const char *s)
{
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyz_");
    return n > 0 && n < EVENT_SCHEMA_SIZE && !s[n];
}

enum status event_check_schema(const char *schema, struct err *err)
{
    if (is_schema_name(schema))
        return STATUS_OK;
    return err_set(err, STATUS_INTERNAL, "event: \"%s\" is no schema name", schema);
}

enum status event_append(struct db_conn *c, const char *schema, const char *topic, const char *kind,
                         const char *subject, const char *owner, const char *json, struct err *err)
{
    char sql[640];
    enum status s = event_check_schema(schema, err);
    if (s != STATUS_OK)
        return s;
    snprintf(sql, sizeof sql,
             "WITH n AS (INSERT INTO %s.event_topic AS t (topic, seq) VALUES ($1, 1)"
             " ON CONFLICT (topic) DO UPDATE SET seq = t.seq + 1 RETURNING seq),"
             " e AS (INSERT INTO %s.event (topic, seq, at, kind, subject, owner, data)"
             " SELECT $1, n.seq, clock_timestamp(), $2, $3, $4::uuid, $5::jsonb FROM n"
             " RETURNING topic)"
             " SELECT pg_notify('%s_event', topic) FROM e",
             schema, schema, schema);
    return db_exec(
        c, sql,
        DB_PARAMS(DB_TEXT(topic), DB_TEXT(kind), DB_TEXT(subject), DB_TEXT(owner), DB_TEXT(json)),
        NULL, err);
}

enum status event_lock(struct db_conn *c, const char *schema, struct err *err)
{
    char sql[96];
    enum status s = event_check_schema(schema, err);
    if (s != STATUS_OK)
        return s;
    snprintf(sql, sizeof sql, "LOCK TABLE %s.event_topic IN SHARE ROW EXCLUSIVE MODE", schema);
    return db_exec(c, sql, NULL, 0, NULL, err);
}

// The oldest rows go, up to the last one that is too old; what a consumer has yet to read counts as
// too old only later.
enum status event_prune(struct db *db, const char *schema, const char *topic,
                        int64_t before_wall_ms, int64_t unread_before_wall_ms, unsigned max,
                        unsigned *ret_n, struct err *err)
{
    char sql[896];
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = event_check_schema(schema, err);
    if (s != STATUS_OK)
        return s;
    snprintf(sql, sizeof sql,
             "WITH unread AS (SELECT min(position) AS seq FROM %s.consumer WHERE topic = $1),"
             " head AS (SELECT seq, at FROM %s.event WHERE topic = $1 ORDER BY seq LIMIT $4),"
             " cut AS (SELECT max(head.seq) AS seq FROM head, unread"
             "  WHERE head.at < to_timestamp($2::bigint / 1000.0)"
             "  AND (unread.seq IS NULL OR head.seq <= unread.seq"
             "   OR head.at < to_timestamp($3::bigint / 1000.0))),"
             " told AS (UPDATE %s.event_topic t SET oldest = cut.seq + 1 FROM cut"
             "  WHERE t.topic = $1 AND cut.seq >= t.oldest RETURNING cut.seq)"
             " DELETE FROM %s.event e USING told WHERE e.topic = $1 AND e.seq <= told.seq",
             schema, schema, schema, schema);
    s = db_query(db, sql,
                 DB_PARAMS(DB_TEXT(topic), DB_I64(before_wall_ms), DB_I64(unread_before_wall_ms),
                           DB_I64(max)),
                 &r, err);
    if (s == STATUS_OK)
        *ret_n = (unsigned)db_result_n_affected(r);
    return s;
}
