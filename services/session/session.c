// The role: options, start, readiness, stop.
#include "session.h"

#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "internal.h"

#define MAX_CONNS 8

#define OPT(field) offsetof(struct session_options, field)
static const struct cfg_option options[] = {
    {"registration", CFG_BOOL, OPT(registration), "true", 0, 0,
     "let anybody register; off: accounts come from an admin only"},
    {"new-user-roles", CFG_STRING_LIST, OPT(new_user_roles), "user,creator", 0, 0,
     "roles of a newly registered user"},
    {"admin-password-file", CFG_STRING, OPT(admin_password_file), NULL, 0, 0,
     "where the first start writes admin's password (mode 0600); default: standard output"},
    {"password-memory", CFG_BYTES, OPT(password_memory), "64M", 19 << 20, 1 << 30,
     "memory of one Argon2id hash"},
    SVC_EVENT_OPTION_ROWS(struct session_options, events, "365d", "365d"),
};

enum status session_init(struct session *s, const struct crypto_pw_params *pw, struct err *err)
{
    static const char any[] = "no account has this one";
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    session_gate_init(&s->gate, cores > 0 ? (unsigned)cores : 1, SESSION_HASH_QUEUE);
    svc_gauge_init(&s->gauge);
    s->pw = *pw;
    enum status st = crypto_init(err);
    return st == STATUS_OK ? crypto_pw_hash(s->dummy_hash, any, strlen(any), pw, err) : st;
}

void session_done(struct session *s)
{
    session_gate_done(&s->gate);
    svc_gauge_done(&s->gauge);
    crypto_wipe(s->token_secret, sizeof s->token_secret);
}

static void session_free(struct session *s)
{
    event_log_free(s->events);
    db_free(s->db);
    session_done(s);
    mem_free(s);
}
DEFINE_AUTO(struct session, session_free)

static enum status parse_roles(struct session *s, char *const *names, struct err *err)
{
    size_t n = 0;
    while (names && names[n])
        n++;
    if (n && session_roles_parse((const char *const *)names, n, &s->new_user_roles))
        return STATUS_OK;
    return err_set(err, STATUS_INVALID_ARGUMENT,
                   "--new-user-roles: give some of user, creator, admin");
}

static enum status open_database(struct session *s, const struct session_options *o,
                                 struct err *err)
{
    static const struct event_topic topics[] = {{SESSION_TOPIC, SESSION_TOPIC_NODES}};
    struct db_opts db = {
        .conninfo = o->common.database, .name = "cauce-session", .max_conns = MAX_CONNS};
    s->db = db_new(&db, err);
    if (!s->db)
        return err->code;
    return event_log_new(s->db, &db, SESSION_SCHEMA, topics, N_ELEMENTS(topics), s->log, &s->events,
                         err);
}

// The database may come later than we: what it must have is looked at until it is there.
static enum status prepare(void *self, struct err *err)
{
    struct session *s = self;
    enum status st = STATUS_OK;
    if (s->is_prepared)
        return db_ping(s->db, err);
    if (s->migrations)
        st = db_migrate_check(s->db, s->migrations, err);
    if (st == STATUS_OK)
        st = session_ensure_admin(s, err);
    s->is_prepared = st == STATUS_OK;
    return st;
}

static bool ready(void *self, char *reason, size_t reason_size)
{
    struct session *s = self;
    return svc_gauge_read(&s->gauge, prepare, s, reason, reason_size);
}

static enum status start(struct svc *svc, const void *opts, void **ret_self, struct err *err)
{
    const struct session_options *o = opts;
    struct crypto_pw_params pw = {.mem_bytes = (size_t)o->password_memory};
    char reason[240];
    struct session *fresh = mem_alloc(sizeof *fresh);
    if (!fresh)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "session: out of memory");
    enum status st = session_init(fresh, &pw, err);
    AUTO(session_free_p) struct session *s = fresh;
    s->log = svc->log;
    s->registration = o->registration;
    s->admin_password_file = o->admin_password_file;
    s->migrations = o->common.migrations;
    if (st == STATUS_OK)
        st = parse_roles(s, o->new_user_roles, err);
    if (st == STATUS_OK)
        st = svc_load_token_secret(svc, s->token_secret, err);
    if (st == STATUS_OK)
        st = open_database(s, o, err);
    if (st == STATUS_OK)
        st = svc_publish_events(svc, s->events, &o->events, err);
    if (st == STATUS_OK)
        st = session_serve(s, svc->server, err);
    if (st == STATUS_OK)
        st = event_log_serve(s->events, svc->server, err);
    if (st != STATUS_OK)
        return st;
    if (!ready(s, reason, sizeof reason))
        log_warn(s->log, "not_ready", F_STR("reason", reason));
    *ret_self = TAKE(s);
    return STATUS_OK;
}

static void drain(void *self)
{
    struct session *s = self;
    event_log_close(s->events);
}

static void stop(void *self)
{
    session_free(self);
}

const struct svc_role session_role = {
    .name = "session",
    .role = ROLE_NODE_SESSION,
    .spec = {.section = "session",
             .usage = "cauced session [options]",
             .options = options,
             .n_options = N_ELEMENTS(options)},
    .options_size = sizeof(struct session_options),
    .start = start,
    .ready = ready,
    .drain = drain,
    .stop = stop,
};
