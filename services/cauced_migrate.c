// cauced migrate: apply what is missing of the numbered SQL files.
#include <stdio.h>

#include "base/err.h"
#include "cauced.h"
#include "command.h"
#include "config/config.h"
#include "db/db.h"

struct options {
    char *database, *migrations;
};
#define OPT(field) offsetof(struct options, field)

static const struct cfg_option rows[] = {
    {"database", CFG_STRING, OPT(database), NULL, 0, 0, "PostgreSQL, as libpq's connection string"},
    {"migrations", CFG_STRING, OPT(migrations), NULL, 0, 0, "directory of the SQL files"},
};
static const struct cfg_spec spec = {
    .section = "migrate",
    .usage = "cauced migrate --database CONNINFO --migrations DIR",
    .options = rows,
    .n_options = N_ELEMENTS(rows),
};

static enum status migrate(const struct options *o, struct err *err)
{
    unsigned n = 0;

    if (!o->database || !o->migrations)
        return err_set(err, STATUS_INVALID_ARGUMENT, "--database and --migrations are both needed");
    struct db_opts d = {.conninfo = o->database, .name = "cauced migrate", .max_conns = 1};
    AUTO(db_free_p) struct db *db = db_new(&d, err);
    if (!db)
        return STATUS_UNAVAILABLE;
    enum status s = db_migrate(db, o->migrations, &n, err);
    if (s == STATUS_OK)
        printf("%u migrations applied\n", n);
    return s;
}

static enum status run(void *ud, char **words, bool *ret_misused, struct err *err)
{
    (void)words;
    (void)ret_misused;
    return migrate(ud, err);
}

int cauced_migrate(int argc, char **argv)
{
    static const struct command_line command = {.name = "migrate", .spec = &spec, .run = run};
    struct options o = {0};
    return command_main(&command, &o, &o, argc, argv);
}
