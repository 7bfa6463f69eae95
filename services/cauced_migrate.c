// cauced migrate: apply what is missing of the numbered SQL files.
#include <stdio.h>

#include "base/err.h"
#include "cauced.h"
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

int cauced_migrate(int argc, char **argv)
{
    struct options o = {0};
    struct err err = ERR_INIT;
    enum status s = cfg_load(&spec, &o, NULL, argc, argv, NULL, &err);

    if (s == STATUS_CANCELLED)
        return 0; // help was asked for
    int code = s == STATUS_OK ? 1 : 2;
    if (s == STATUS_OK)
        s = migrate(&o, &err);
    if (s != STATUS_OK)
        (void)fprintf(stderr, "cauced migrate: %s\n", err.msg);
    cfg_done(&spec, &o);
    return s == STATUS_OK ? 0 : code;
}
