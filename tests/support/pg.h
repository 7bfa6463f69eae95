#pragma once
// A PostgreSQL server of a test program's own: unix socket only, in a private folder under /tmp,
// gone when the program ends, however it ends.
#include <stdbool.h>

#include "db/db.h"

struct test_pg;

// Starts one (about 1.5 s). Call it from the main thread while that is the only one: it forks a
// keeper process. Fails the running cmocka test, with the server's log, when it cannot.
struct test_pg *test_pg_new(void);
void test_pg_free(struct test_pg *p);
DEFINE_AUTO(struct test_pg, test_pg_free)

const char *test_pg_conninfo(const struct test_pg *p);

// In the middle of a test: open connections break, data stay.
void test_pg_stop(struct test_pg *p); // fast shutdown; returns when the server is gone
void test_pg_kill(struct test_pg *p); // SIGKILL to the whole server
void test_pg_start(struct test_pg *p);

// A pool on it (max_conns 0: 8), with all of this checkout's migrations applied when asked.
struct db *test_pg_db(struct test_pg *p, unsigned max_conns, bool migrate);
// The folder of the migrations: $CAUCE_SOURCE_DIR/migrations.
const char *test_pg_migrations(void);
