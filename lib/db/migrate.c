// The migration runner. One connection of its own holds an advisory lock for the whole run, so
// that several starting services apply each file once. Checksums are computed by the server.
#include "db/internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"

#define LOCK_SQL "SELECT pg_advisory_lock(4855160177)" // any constant, the same in every runner
#define RUN_TIMEOUT_MS 600000
#define MAX_FILES 10000
#define MAX_FILE_BYTES (1U << 20)
#define UP ".up.sql"
#define DOWN ".down.sql"

static const char create_sql[] = "CREATE TABLE IF NOT EXISTS public.cauce_migration ("
                                 " version integer PRIMARY KEY,"
                                 " name text NOT NULL,"
                                 " checksum text NOT NULL,"
                                 " applied_at timestamptz NOT NULL DEFAULT now())";

struct files {
    char **names; // "0001_session", ascending
    size_t n, cap;
};

static void files_done(struct files *f)
{
    for (size_t i = 0; i < f->n; i++)
        mem_free(f->names[i]);
    mem_free(f->names);
}

static int version_of(const char *name)
{
    return (int)strtol(name, NULL, 10);
}

// NNNN_words.up.sql
static bool is_migration(const char *name)
{
    return strspn(name, "0123456789") == 4 && name[4] == '_' && str_ends_with(name, UP) &&
           strspn(name, "0123456789_abcdefghijklmnopqrstuvwxyz") == strlen(name) - strlen(UP);
}

static enum status add_file(struct files *f, const char *name, struct err *err)
{
    if (f->n == MAX_FILES)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d migrations", MAX_FILES);
    if (f->n == f->cap) {
        size_t cap = f->cap ? f->cap * 2 : 16;
        char **names = mem_realloc(f->names, cap, sizeof *names);
        if (!names)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "migrations: out of memory");
        f->names = names, f->cap = cap;
    }
    char *stem = mem_strdup(name);
    if (!stem)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "migrations: out of memory");
    stem[strlen(stem) - strlen(UP)] = '\0';
    f->names[f->n++] = stem;
    return STATUS_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void close_dir(DIR **d)
{
    if (*d)
        closedir(*d);
}

static enum status list_files(const char *dir, struct files *ret, struct err *err)
{
    AUTO(close_dir) DIR *d = opendir(dir);
    if (!d)
        return err_errno(err, errno, "open migrations folder %s", dir);
    for (struct dirent *e; (e = readdir(d));) {
        if (!is_migration(e->d_name))
            continue;
        enum status s = add_file(ret, e->d_name, err);
        if (s != STATUS_OK)
            return s;
    }
    if (ret->n)
        qsort(ret->names, ret->n, sizeof *ret->names, by_name);
    for (size_t i = 1; i < ret->n; i++)
        if (version_of(ret->names[i]) == version_of(ret->names[i - 1]))
            return err_set(err, STATUS_FAILED_PRECONDITION,
                           "migrations %s and %s have the same number", ret->names[i - 1],
                           ret->names[i]);
    return STATUS_OK;
}

static enum status read_all(int fd, const char *path, struct buf *out, struct err *err)
{
    for (;;) {
        uint8_t *p = buf_reserve(out, 16384);
        if (!p)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s is larger than %u bytes", path,
                           MAX_FILE_BYTES);
        ssize_t n = read(fd, p, 16384);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "read %s", path);
        if (n == 0)
            return buf_append(out, "", 0)
                       ? STATUS_OK
                       : err_set(err, STATUS_RESOURCE_EXHAUSTED, "read %s: out of memory", path);
        buf_commit(out, (size_t)n);
    }
}

static enum status read_file(const char *dir, const char *name, const char *suffix, struct buf *out,
                             struct err *err)
{
    AUTO(mem_free_p) char *path = mem_printf("%s/%s%s", dir, name, suffix);
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "migrations: out of memory");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "open %s", path);
    enum status s = read_all(fd, path, out, err);
    close(fd);
    if (s == STATUS_OK && memchr(out->data ? out->data : (const uint8_t *)"", 0, out->len))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s holds a NUL byte", path);
    return s;
}

// ---------------------------------------------------------------- one file against the database

enum file_state { FILE_NEW, FILE_APPLIED };

static enum status compare(struct db_conn *c, const char *name, const struct buf *sql,
                           enum file_state *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(
        c,
        "SELECT name = $2, checksum = encode(sha256($3), 'hex')"
        " FROM public.cauce_migration WHERE version = $1",
        DB_PARAMS(DB_I64(version_of(name)), DB_TEXT(name), DB_BYTES(sql->data, sql->len)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0) {
        *ret = FILE_NEW;
        return STATUS_OK;
    }
    if (!db_bool(r, 0, 0) || !db_bool(r, 0, 1))
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "migration %s was changed after it was applied: restore the file", name);
    *ret = FILE_APPLIED;
    return STATUS_OK;
}

struct step {
    const char *name;
    const struct buf *sql;
};

static enum status apply_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct step *st = ud;
    enum status s = db_conn_simple(c, buf_str(st->sql), NULL, err);
    if (s != STATUS_OK)
        return s;
    return db_exec(c,
                   "INSERT INTO public.cauce_migration (version, name, checksum)"
                   " VALUES ($1, $2, encode(sha256($3), 'hex'))",
                   DB_PARAMS(DB_I64(version_of(st->name)), DB_TEXT(st->name),
                             DB_BYTES(st->sql->data, st->sql->len)),
                   NULL, err);
}

static enum status revert_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct step *st = ud;
    enum status s = db_conn_simple(c, buf_str(st->sql), NULL, err);
    if (s != STATUS_OK)
        return s;
    return db_exec(c, "DELETE FROM public.cauce_migration WHERE version = $1",
                   DB_PARAMS(DB_I64(version_of(st->name))), NULL, err);
}

static enum status run_step(struct db_conn *c, const char *dir, const char *name,
                            const char *suffix, db_tx_fn fn, struct err *err)
{
    AUTO(buf_done) struct buf sql;
    buf_init(&sql, MAX_FILE_BYTES);
    enum status s = read_file(dir, name, suffix, &sql, err);
    if (s != STATUS_OK)
        return s;
    struct step st = {.name = name, .sql = &sql};
    s = db_conn_tx(c, DB_READ_COMMITTED, fn, &st, err);
    return s == STATUS_OK ? s : err_wrap(err, s, "migration %s%s", name, suffix);
}

static enum status check_file(struct db_conn *c, const char *dir, const char *name,
                              enum file_state *ret, struct err *err)
{
    AUTO(buf_done) struct buf sql;
    buf_init(&sql, MAX_FILE_BYTES);
    enum status s = read_file(dir, name, UP, &sql, err);
    return s == STATUS_OK ? compare(c, name, &sql, ret, err) : s;
}

// Each applied migration must still be in the folder.
static enum status check_none_missing(struct db_conn *c, const struct files *f, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c, "SELECT name FROM public.cauce_migration ORDER BY version", NULL, 0, &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++) {
        const char *name = db_text(r, i, 0);
        if (!f->n || !bsearch(&name, f->names, f->n, sizeof *f->names, by_name))
            return err_set(err, STATUS_FAILED_PRECONDITION,
                           "migration %s was applied, but its file is missing", name);
    }
    return s;
}

// ---------------------------------------------------------------- runs

static enum status open_runner(struct db *d, struct db_conn **ret, struct err *err)
{
    struct db_conf f = *db_get_conf(d);
    f.statement_timeout_ms = RUN_TIMEOUT_MS;
    AUTO(db_conn_close_p) struct db_conn *c = NULL;
    enum status s = db_conn_open(&f, -1, &c, err);
    if (s == STATUS_OK)
        s = db_conn_simple(c, LOCK_SQL, NULL, err);
    if (s == STATUS_OK)
        s = db_conn_simple(c, create_sql, NULL, err);
    if (s == STATUS_OK)
        *ret = TAKE(c);
    return s;
}

enum status db_migrate(struct db *d, const char *dir, unsigned *ret_n_applied, struct err *err)
{
    AUTO(files_done) struct files f = {0};
    AUTO(db_conn_close_p) struct db_conn *c = NULL; // its end releases the lock
    unsigned n = 0;
    enum status s = list_files(dir, &f, err);
    if (s == STATUS_OK)
        s = open_runner(d, &c, err);
    if (s == STATUS_OK)
        s = check_none_missing(c, &f, err);
    for (size_t i = 0; s == STATUS_OK && i < f.n; i++) {
        enum file_state state;
        s = check_file(c, dir, f.names[i], &state, err);
        if (s == STATUS_OK && state == FILE_NEW) {
            s = run_step(c, dir, f.names[i], UP, apply_tx, err);
            n += s == STATUS_OK;
        }
    }
    if (ret_n_applied)
        *ret_n_applied = n;
    return s;
}

enum status db_migrate_down(struct db *d, const char *dir, int version, unsigned *ret_n_reverted,
                            struct err *err)
{
    AUTO(db_conn_close_p) struct db_conn *c = NULL;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    unsigned n = 0;
    enum status s = open_runner(d, &c, err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "SELECT name FROM public.cauce_migration WHERE version > $1"
                    " ORDER BY version DESC",
                    DB_PARAMS(DB_I64(version)), &r, err);
    for (size_t i = 0; s == STATUS_OK && i < db_result_n_rows(r); i++) {
        s = run_step(c, dir, db_text(r, i, 0), DOWN, revert_tx, err);
        n += s == STATUS_OK;
    }
    if (ret_n_reverted)
        *ret_n_reverted = n;
    return s;
}

static enum status check_table(struct db *d, bool *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(d, "SELECT to_regclass('public.cauce_migration') IS NOT NULL", NULL, 0, &r, err);
    if (s == STATUS_OK)
        *ret = db_bool(r, 0, 0);
    return s;
}

static enum status check_tx(struct db_conn *c, void *ud, struct err *err)
{
    const char *dir = ud;
    AUTO(files_done) struct files f = {0};
    enum status s = list_files(dir, &f, err);
    if (s == STATUS_OK)
        s = check_none_missing(c, &f, err);
    for (size_t i = 0; s == STATUS_OK && i < f.n; i++) {
        enum file_state state;
        s = check_file(c, dir, f.names[i], &state, err);
        if (s == STATUS_OK && state == FILE_NEW)
            return err_set(err, STATUS_FAILED_PRECONDITION,
                           "migration %s is not applied: run `cauced migrate`", f.names[i]);
    }
    return s;
}

enum status db_migrate_check(struct db *d, const char *dir, struct err *err)
{
    bool exists = false;
    enum status s = check_table(d, &exists, err);
    if (s != STATUS_OK)
        return s;
    if (!exists)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "no migration is applied yet: run `cauced migrate`");
    AUTO(mem_free_p) char *copy = mem_strdup(dir);
    if (!copy)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "migrations: out of memory");
    return db_tx(d, DB_READ_COMMITTED, check_tx, copy, err);
}
