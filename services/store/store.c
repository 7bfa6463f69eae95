// The role: options, start, readiness, stop; and the one call that the store makes, to session.
#include "store.h"

#include <stddef.h>

#include "cauce/session.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "internal.h"

#define MAX_CONNS 12
#define FIND_USER_MS 5000

#define OPT(field) offsetof(struct store_options, field)
static const struct cfg_option options[] = {
    {"media-token-life", CFG_DURATION_MS, OPT(media_token_ms), "6h", 60000, 6 * 3600 * 1000,
     "how long a media token lets bytes flow"},
    {"quote-life", CFG_DURATION_MS, OPT(quote_ms), "15m", 1000, 24 * 3600 * 1000,
     "how long a quoted price holds"},
    SVC_EVENT_OPTION_ROWS(struct store_options, events, "90d", "180d"),
};

static unsigned role_bits(const Session__User *u)
{
    static const struct {
        const char *name;
        unsigned bit;
    } names[] = {{"user", ROLE_USER}, {"creator", ROLE_CREATOR}, {"admin", ROLE_ADMIN}};
    unsigned bits = 0;
    for (size_t i = 0; i < u->n_roles; i++)
        for (size_t j = 0; j < N_ELEMENTS(names); j++)
            if (str_eq(u->roles[i], names[j].name))
                bits |= names[j].bit;
    return bits;
}

static enum status find_user(void *ud, const char *id_or_name, struct store_user *ret,
                             struct err *err)
{
    struct store *s = ud;
    struct rpc_client *client = svc_client(s->svc, ROLE_NODE_SESSION, NULL, err);
    if (!client)
        return err ? err->code : STATUS_UNAVAILABLE;
    Session__GetUserRequest req = SESSION__GET_USER_REQUEST__INIT;
    req.user = (char *)(uintptr_t)id_or_name; // protobuf-c's fields lack const; packing only reads
    struct rpc_opts o = {.deadline_us = time_deadline_in_ms(FIND_USER_MS)};
    AUTO(rpc_message_free_p) Session__User *u = NULL;
    enum status st = session_user_admin_get(client, &o, &req, &u, err);
    if (st != STATUS_OK)
        return st;
    *ret = (struct store_user){.roles = role_bits(u), .disabled = u->disabled};
    str_copy(ret->id, sizeof ret->id, u->id);
    if (!uuid_is_valid(ret->id))
        return err_set(err, STATUS_INTERNAL, "the session service named no user id: %s", ret->id);
    return STATUS_OK;
}

static void store_free(struct store *s)
{
    event_log_free(s->events);
    db_free(s->db);
    svc_gauge_done(&s->gauge);
    crypto_wipe(s->token_secret, sizeof s->token_secret);
    mem_free(s);
}
DEFINE_AUTO(struct store, store_free)

static enum status open_database(struct store *s, const struct store_options *o, struct err *err)
{
    static const struct event_topic topics[] = {{STORE_TOPIC, STORE_TOPIC_NODES}};
    struct db_opts db = {
        .conninfo = o->common.database, .name = "cauce-store", .max_conns = MAX_CONNS};
    s->db = db_new(&db, err);
    if (!s->db)
        return err->code;
    return event_log_new(s->db, &db, STORE_SCHEMA, topics, N_ELEMENTS(topics), s->log, &s->events,
                         err);
}

// The database may come later than we: what it must have is looked at until it is there.
static enum status prepare(void *self, struct err *err)
{
    struct store *s = self;
    if (s->is_prepared)
        return db_ping(s->db, err);
    enum status st =
        s->migrations ? db_migrate_check(s->db, s->migrations, err) : db_ping(s->db, err);
    s->is_prepared = st == STATUS_OK;
    return st;
}

static bool ready(void *self, char *reason, size_t reason_size)
{
    struct store *s = self;
    return svc_gauge_read(&s->gauge, prepare, s, reason, reason_size);
}

static enum status start(struct svc *svc, const void *opts, void **ret_self, struct err *err)
{
    const struct store_options *o = opts;
    struct store *fresh = mem_alloc(sizeof *fresh);
    if (!fresh)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "store: out of memory");
    svc_gauge_init(&fresh->gauge);
    AUTO(store_free_p) struct store *s = fresh;
    s->svc = svc;
    s->log = svc->log;
    s->find_user = find_user;
    s->find_user_ud = s;
    s->mint = svc_token_mint_media;
    s->media_token_ms = o->media_token_ms;
    s->quote_ms = o->quote_ms;
    s->migrations = o->common.migrations;
    enum status st = svc_load_token_secret(svc, s->token_secret, err);
    if (st == STATUS_OK)
        st = open_database(s, o, err);
    if (st == STATUS_OK)
        st = svc_publish_events(svc, s->events, &o->events, err);
    if (st == STATUS_OK)
        st = store_serve(s, svc->server, err);
    if (st == STATUS_OK)
        st = event_log_serve(s->events, svc->server, err);
    if (st == STATUS_OK)
        *ret_self = TAKE(s);
    return st;
}

static void drain(void *self)
{
    struct store *s = self;
    event_log_close(s->events);
}

static void stop(void *self)
{
    store_free(self);
}

const struct svc_role store_role = {
    .name = "store",
    .role = ROLE_NODE_STORE,
    .spec = {.section = "store",
             .usage = "cauced store [options]",
             .options = options,
             .n_options = N_ELEMENTS(options)},
    .options_size = sizeof(struct store_options),
    .start = start,
    .ready = ready,
    .drain = drain,
    .stop = stop,
};
