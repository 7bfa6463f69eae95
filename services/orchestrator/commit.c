// From uploaded bytes to an item: steps that may each be repeated, recorded by the upload's state,
// so that whoever comes next (the client again, the sweeper after a crash) finishes what was begun.
//
//   origin Finish  the bytes are one durable object, pinned for the item     idempotent by upload
//   store Create   the catalogue knows the item                              idempotent by item
//   transaction    upload committed; item, job and probe task exist          guarded by the state
#include "orchestrator/internal.h"

#include <string.h>

#include "cauce/origin.rpc.h"
#include "cauce/store.rpc.h"

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

#define FINISH_MS 60000
#define CREATE_MS 10000

struct upload {
    struct db_result *row; // holds the strings below
    const char *id, *item, *owner, *owner_name, *state, *kind, *route, *title, *description,
        *currency;
    const uint8_t *digest;
    int64_t size, price_minor;
    bool publish;
};

static enum status load(struct orch *o, const char *id, struct upload *u, struct err *err)
{
    enum status s =
        db_query(o->db,
                 "SELECT id, item, owner, owner_name, state, kind, route, title, description,"
                 "  price_currency, digest, size, price_minor, publish "
                 "FROM orchestrator.upload WHERE id = $1::uuid",
                 DB_PARAMS(DB_TEXT(id)), &u->row, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "upload %s", id);
    if (db_result_n_rows(u->row) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no upload %s", id);
    const char **const texts[] = {&u->id,   &u->item,  &u->owner, &u->owner_name,  &u->state,
                                  &u->kind, &u->route, &u->title, &u->description, &u->currency};
    for (unsigned i = 0; i < N_ELEMENTS(texts); i++)
        *texts[i] = db_text(u->row, 0, i);
    size_t len = 0;
    u->digest = db_bytes(u->row, 0, 10, &len);
    u->size = db_i64(u->row, 0, 11);
    u->price_minor = db_i64(u->row, 0, 12);
    u->publish = db_bool(u->row, 0, 13);
    if (!u->digest || len != ORCH_DIGEST_SIZE)
        return err_set(err, STATUS_INTERNAL, "upload %s: bad digest in the database", id);
    return STATUS_OK;
}

static int64_t sooner(int64_t deadline_us, int64_t ms)
{
    int64_t own = time_deadline_in_ms(ms);
    return own < deadline_us ? own : deadline_us;
}

// Protobuf-c messages hold plain char * that packing never writes to.
static char *mut(const char *s)
{
    return (char *)(uintptr_t)s;
}

// ---------------------------------------------------------------- steps

static enum status reopen(struct orch *o, const struct upload *u, struct err *err)
{
    return db_query(o->db,
                    "UPDATE orchestrator.upload SET state = 'open', updated = now() "
                    "WHERE id = $1::uuid AND state = 'committing'",
                    DB_PARAMS(DB_TEXT(u->id)), NULL, err);
}

static enum status finish(struct orch *o, const struct upload *u, int64_t deadline_us,
                          struct err *err)
{
    struct rpc_client *c = orch_origin(o, u->route, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    Origin__FinishRequest req;
    origin__finish_request__init(&req);
    req.upload_id = mut(u->id);
    struct rpc_opts opts = {.deadline_us = sooner(deadline_us, FINISH_MS)};
    AUTO(rpc_message_free_p) Origin__FinishReply *reply = NULL;
    enum status s = origin_upload_finish(c, &opts, &req, &reply, err);
    if (s == STATUS_FAILED_PRECONDITION || s == STATUS_NOT_FOUND) {
        struct err ignored = ERR_INIT; // what the origin says is what the client must hear
        (void)!reopen(o, u, &ignored);
        return err_wrap(err, STATUS_FAILED_PRECONDITION, "the upload is not complete");
    }
    if (s != STATUS_OK)
        return err_wrap(err, s, "finish upload %s at %s", u->id, u->route);
    if (reply->digest.len != ORCH_DIGEST_SIZE || reply->size != u->size ||
        memcmp(reply->digest.data, u->digest, ORCH_DIGEST_SIZE) != 0)
        return err_set(err, STATUS_DATA_LOSS, "origin %s finished another object than upload %s",
                       u->route, u->id);
    return STATUS_OK;
}

static enum status create(struct orch *o, const struct upload *u, int64_t deadline_us,
                          struct err *err)
{
    struct rpc_client *c = o->env.store(o->env.ud, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    Store__CreateItemRequest req;
    store__create_item_request__init(&req);
    Common__Money price;
    common__money__init(&price);
    req.item_id = mut(u->item);
    req.owner = mut(u->owner);
    req.owner_name = mut(u->owner_name);
    req.title = mut(u->title);
    req.description = mut(u->description);
    req.kind = mut(u->kind);
    req.publish = u->publish;
    if (u->price_minor > 0) {
        price.minor = u->price_minor;
        price.currency = mut(u->currency);
        req.price = &price;
    }
    struct rpc_opts opts = {.deadline_us = sooner(deadline_us, CREATE_MS)};
    AUTO(rpc_message_free_p) Store__Item *reply = NULL;
    enum status s = store_catalog_create(c, &opts, &req, &reply, err);
    if (s == STATUS_INVALID_ARGUMENT) {
        struct err ignored = ERR_INIT; // title or price: another commit may do better
        (void)!reopen(o, u, &ignored);
    }
    return s == STATUS_OK ? s : err_wrap(err, s, "enter item %s into the catalogue", u->item);
}

static enum status tell_committed(struct db_conn *c, const struct upload *u, const char *job,
                                  struct err *err)
{
    struct buf json;
    buf_init(&json, 2048);
    buf_printf(&json,
               "{\"upload\":\"%s\",\"job\":\"%s\",\"kind\":\"%s\",\"size\":%lld,\"title\":", u->id,
               job, u->kind, (long long)u->size);
    buf_put_json_string(&json, u->title, strlen(u->title));
    buf_puts(&json, "}");
    enum status s = json.failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "event: out of memory")
                                : event_append(c, ORCH_SCHEMA, "upload", "upload.committed",
                                               u->item, u->owner, buf_str(&json), err);
    buf_done(&json);
    return s;
}

static enum status insert_item(struct db_conn *c, const struct upload *u, const char *job,
                               struct err *err)
{
    char probe[UUID_SIZE];
    rand_uuid7(probe);
    enum status s = db_exec(c,
                            "INSERT INTO orchestrator.item (id, upload, owner, title, kind, route,"
                            "  digest, size) VALUES ($1::uuid, $2::uuid, $3::uuid, $4::text,"
                            "  $5::text, $6::text, $7::bytea, $8::bigint)",
                            DB_PARAMS(DB_TEXT(u->item), DB_TEXT(u->id), DB_TEXT(u->owner),
                                      DB_TEXT(u->title), DB_TEXT(u->kind), DB_TEXT(u->route),
                                      DB_BYTES(u->digest, ORCH_DIGEST_SIZE), DB_I64(u->size)),
                            NULL, err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "INSERT INTO orchestrator.job (id, item, owner) "
                    "VALUES ($1::uuid, $2::uuid, $3::uuid)",
                    DB_PARAMS(DB_TEXT(job), DB_TEXT(u->item), DB_TEXT(u->owner)), NULL, err);
    if (s == STATUS_OK)
        s = db_exec(
            c,
            "INSERT INTO orchestrator.task (id, job, item, kind, priority) "
            "VALUES ($1::uuid, $2::uuid, $3::uuid, 'probe', $4::int)",
            DB_PARAMS(DB_TEXT(probe), DB_TEXT(job), DB_TEXT(u->item), DB_I64(ORCH_PRIO_PROBE)),
            NULL, err);
    return s;
}

static enum status enter_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct upload *u = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "UPDATE orchestrator.upload SET state = 'committed', updated = now() "
                            "WHERE id = $1::uuid AND state = 'committing'",
                            DB_PARAMS(DB_TEXT(u->id)), &r, err);
    if (s != STATUS_OK || db_result_n_affected(r) == 0)
        return s; // somebody else was quicker
    char job[UUID_SIZE];
    rand_uuid7(job);
    s = insert_item(c, u, job, err);
    if (s == STATUS_OK)
        s = queue_notify(c, ORCH_TASK_CHANNEL, "", err);
    if (s == STATUS_OK)
        s = queue_notify(c, ORCH_ITEM_CHANNEL, u->item, err);
    return s == STATUS_OK ? tell_committed(c, u, job, err) : s;
}

enum status commit_run(struct orch *o, const char *upload_id, int64_t deadline_us, struct err *err)
{
    struct upload u = {0};
    enum status s = load(o, upload_id, &u, err);
    if (s == STATUS_OK && !str_eq(u.state, "committing")) {
        if (!str_eq(u.state, "committed"))
            s = err_set(err, STATUS_FAILED_PRECONDITION, "upload %s is %s", upload_id, u.state);
        db_result_free(u.row);
        return s;
    }
    if (s == STATUS_OK)
        s = finish(o, &u, deadline_us, err);
    if (s == STATUS_OK)
        s = create(o, &u, deadline_us, err);
    if (s == STATUS_OK)
        s = db_tx(o->db, DB_READ_COMMITTED, enter_tx, &u, err);
    db_result_free(u.row);
    return s;
}

// ---------------------------------------------------------------- the other end

static enum status abort_tx(struct db_conn *c, void *ud, struct err *err)
{
    const char *id = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "UPDATE orchestrator.upload SET state = 'aborted', updated = now() "
                            "WHERE id = $1::uuid AND state IN ('opening', 'open') "
                            "RETURNING id",
                            DB_PARAMS(DB_TEXT(id)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    return db_exec(c,
                   "INSERT INTO orchestrator.chore (kind, origin, item, upload) "
                   "SELECT 'drop', route, item, id FROM orchestrator.upload WHERE id = $1::uuid",
                   DB_PARAMS(DB_TEXT(id)), NULL, err);
}

enum status commit_abort(struct orch *o, const char *upload_id, struct err *err)
{
    char id[UUID_SIZE];
    str_copy(id, sizeof id, upload_id);
    enum status s = db_tx(o->db, DB_READ_COMMITTED, abort_tx, id, err);
    if (s == STATUS_OK)
        sweeper_kick(o->sweeper);
    return s;
}
