// Upload.*: a place for new bytes, and their way to an item.
#include "orchestrator/internal.h"

#include <stdio.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"
#include "cauce/origin.rpc.h"
#include "cauce/transcode.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "media/sniff.h"
#include "media/task.h"

#define MAX_HEAD 4096
#define MAX_NAME 255
#define MAX_TITLE 200
#define MAX_DESCRIPTION 10000
#define CREATE_MS 5000

static bool is_admin(const struct rpc_user *u)
{
    return (u->roles & ROLE_ADMIN) != 0;
}

// ---------------------------------------------------------------- Open

struct opening {
    struct orch *o;
    const Orchestrator__OpenUploadRequest *req;
    const struct rpc_user *user;
    const char *key, *kind;
    const struct svc_node *place; // for a new one
    bool proven;                  // the caller has an item of these bytes
    // what was found or made
    char id[UUID_SIZE], item[UUID_SIZE], route[CHAN_NODE_ID_SIZE], state[12];
};

static enum status check_open(const struct orch *o, const Orchestrator__OpenUploadRequest *req,
                              const char **ret_kind, struct err *err)
{
    if (req->size == 0)
        return rpc_bad_field(err, "size", "the file is empty");
    if (req->size < 0 || req->size > o->env.options->max_upload_bytes)
        return rpc_bad_field(err, "size", "a file of %lld bytes; at most %lld are taken",
                             (long long)req->size, (long long)o->env.options->max_upload_bytes);
    if (req->digest.len != ORCH_DIGEST_SIZE)
        return rpc_bad_field(err, "digest", "digest of %zu bytes instead of %d", req->digest.len,
                             ORCH_DIGEST_SIZE);
    if (req->head.len > MAX_HEAD || (int64_t)req->head.len > req->size)
        return rpc_bad_field(err, "head", "head of %zu bytes", req->head.len);
    enum media_kind kind = media_sniff(req->head.data, req->head.len);
    if (kind == MEDIA_UNKNOWN)
        return rpc_bad_field(err, "head", "this is no film or sound file of a kind that is taken");
    *ret_kind = media_kind_name(kind);
    return STATUS_OK;
}

static void read_opening(const struct db_result *r, struct opening *p)
{
    str_copy(p->id, sizeof p->id, db_text(r, 0, 0));
    str_copy(p->item, sizeof p->item, db_text(r, 0, 1));
    str_copy(p->route, sizeof p->route, db_text(r, 0, 2));
    str_copy(p->state, sizeof p->state, db_text(r, 0, 3));
}

// The same key, or the same bytes still on their way.
static enum status find_open(struct db_conn *c, struct opening *p, bool *ret_found, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c,
                "SELECT id, item, route, state, digest = $3::bytea AND size = $4::bigint "
                "FROM orchestrator.upload WHERE owner = $1::uuid AND state <> 'aborted' AND"
                "  (($2::text <> '' AND idempotency_key = $2::text)"
                "   OR (digest = $3::bytea AND state IN ('opening', 'open', 'committing'))) "
                "ORDER BY (idempotency_key = $2::text) DESC LIMIT 1",
                DB_PARAMS(DB_TEXT(p->user->id), DB_TEXT(p->key),
                          DB_BYTES(p->req->digest.data, p->req->digest.len), DB_I64(p->req->size)),
                &r, err);
    if (s != STATUS_OK)
        return s;
    *ret_found = db_result_n_rows(r) == 1;
    if (!*ret_found)
        return STATUS_OK;
    if (!db_bool(r, 0, 4))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "the idempotency key was used for another file");
    read_opening(r, p);
    return STATUS_OK;
}

static enum status check_quota(struct db_conn *c, const struct opening *p, struct err *err)
{
    const struct orch_options *opt = p->o->env.options;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(
        c,
        "SELECT count(*) FILTER (WHERE u.state <> 'committed'),"
        "  coalesce(sum(u.size) FILTER (WHERE u.state <> 'committed' OR NOT i.purged), 0)::bigint "
        "FROM orchestrator.upload u LEFT JOIN orchestrator.item i ON i.id = u.item "
        "WHERE u.owner = $1::uuid AND u.state <> 'aborted'",
        DB_PARAMS(DB_TEXT(p->user->id)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_i64(r, 0, 0) >= opt->max_open_uploads)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "%lld uploads are open: commit or abort some first",
                       (long long)db_i64(r, 0, 0));
    if (opt->quota_bytes && db_i64(r, 0, 1) > opt->quota_bytes - p->req->size)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "the quota of %lld bytes does not hold %lld more",
                       (long long)opt->quota_bytes, (long long)p->req->size);
    return STATUS_OK;
}

static enum status open_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct opening *p = ud;
    bool found = false;
    enum status s = find_open(c, p, &found, err);
    if (s == STATUS_OK && !found)
        s = check_quota(c, p, err);
    if (s != STATUS_OK || found)
        return s;
    if (!p->place)
        return err_set(err, STATUS_UNAVAILABLE,
                       "no origin for %s takes uploads now: try again soon", p->kind);
    char name[MAX_NAME + 1];
    str_copy(name, sizeof name, p->req->filename);
    rand_uuid7(p->id);
    rand_uuid7(p->item);
    str_copy(p->route, sizeof p->route, p->place->id);
    str_copy(p->state, sizeof p->state, "opening");
    return db_exec(c,
                   "INSERT INTO orchestrator.upload (id, item, owner, owner_name, idempotency_key,"
                   "  filename, digest, size, kind, route) VALUES ($1::uuid, $2::uuid, $3::uuid,"
                   "  $4::text, $5::text, $6::text, $7::bytea, $8::bigint, $9::text, $10::text)",
                   DB_PARAMS(DB_TEXT(p->id), DB_TEXT(p->item), DB_TEXT(p->user->id),
                             DB_TEXT(p->user->name), DB_TEXT(p->key), DB_TEXT(name),
                             DB_BYTES(p->req->digest.data, p->req->digest.len),
                             DB_I64(p->req->size), DB_TEXT(p->kind), DB_TEXT(p->route)),
                   NULL, err);
}

// Record where it goes. Two callers at once: the second finds what the first has made.
static enum status record(struct opening *p, struct err *err)
{
    enum status s = db_tx(p->o->db, DB_READ_COMMITTED, open_tx, p, err);
    if (s == STATUS_ALREADY_EXISTS)
        s = db_tx(p->o->db, DB_READ_COMMITTED, open_tx, p, err);
    return s;
}

// The origin that has these bytes already, if any; else the best one.
static enum status choose(struct opening *p, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        p->o->db,
        "SELECT route, bool_or(owner = $2::uuid AND size = $3::bigint) FROM orchestrator.item "
        "WHERE digest = $1::bytea AND NOT purged GROUP BY route",
        DB_PARAMS(DB_BYTES(p->req->digest.data, p->req->digest.len), DB_TEXT(p->user->id),
                  DB_I64(p->req->size)),
        &r, err);
    if (s != STATUS_OK)
        return s;
    for (size_t i = 0; i < db_result_n_rows(r); i++) {
        p->proven |= db_bool(r, i, 1);
        if (!p->place && !backends_is_open(p->o->backends, db_text(r, i, 0)))
            p->place = orch_origin_node(p->o, db_text(r, i, 0));
    }
    if (!p->place)
        p->place = backends_pick(p->o->backends, p->kind, p->req->size, NULL, 0);
    return STATUS_OK;
}

static enum status create_at(struct opening *p, Origin__CreateReply **ret, int64_t deadline_us,
                             struct err *err)
{
    struct rpc_client *c = orch_origin(p->o, p->route, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    Origin__CreateRequest req;
    origin__create_request__init(&req);
    char owner[UUID_SIZE];
    str_copy(owner, sizeof owner, p->user->id);
    req.upload_id = p->id;
    req.item_id = p->item;
    req.owner = owner;
    req.digest = p->req->digest;
    req.size = p->req->size;
    req.proven = p->proven;
    int64_t own_us = time_deadline_in_ms(CREATE_MS);
    struct rpc_opts opts = {.deadline_us = own_us < deadline_us ? own_us : deadline_us};
    enum status s = origin_upload_create(c, &opts, &req, ret, err);
    if (own_us <= deadline_us || s == STATUS_OK)
        backends_report(p->o->backends, p->route, s);
    return s == STATUS_OK ? s : err_wrap(err, s, "origin %s", p->route);
}

static bool is_elsewhere_better(enum status s)
{
    return s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED ||
           s == STATUS_RESOURCE_EXHAUSTED;
}

// Nothing is there yet, so another origin does as well. False: there is none, or it is decided.
static bool go_elsewhere(struct opening *p, const struct svc_node **tried, size_t *n_tried)
{
    struct err err = ERR_INIT;
    const struct svc_node *to =
        backends_pick(p->o->backends, p->kind, p->req->size, tried, *n_tried);
    if (!to)
        return false;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    // What the first origin may have begun is dropped there.
    enum status s = db_query(
        p->o->db,
        "WITH moved AS (UPDATE orchestrator.upload SET route = $3::text, updated = now() "
        "  WHERE id = $1::uuid AND state = 'opening' AND route = $2::text RETURNING id, item),"
        "dropped AS (INSERT INTO orchestrator.chore (kind, origin, item, upload) "
        "  SELECT 'drop', $2::text, item, id FROM moved)"
        "SELECT id FROM moved",
        DB_PARAMS(DB_TEXT(p->id), DB_TEXT(p->route), DB_TEXT(to->id)), &r, &err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return false;
    str_copy(p->route, sizeof p->route, to->id);
    tried[(*n_tried)++] = to;
    return true;
}

static enum status place(struct opening *p, int64_t deadline_us, Origin__CreateReply **ret,
                         struct err *err)
{
    const struct svc_node *tried[16];
    size_t n_tried = 0;
    tried[n_tried++] = orch_origin_node(p->o, p->route);
    for (;;) {
        enum status s = create_at(p, ret, deadline_us, err);
        bool again = is_elsewhere_better(s) && str_eq(p->state, "opening") &&
                     n_tried < N_ELEMENTS(tried) && go_elsewhere(p, tried, &n_tried);
        if (!again)
            return s;
    }
}

static enum status open_(struct rpc_call *call, const Orchestrator__OpenUploadRequest *req,
                         Orchestrator__OpenUploadReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct opening p = {
        .o = o, .req = req, .user = rpc_call_user(call), .key = rpc_call_idempotency_key(call)};
    enum status s = check_open(o, req, &p.kind, err);
    if (s == STATUS_OK)
        s = choose(&p, err);
    if (s == STATUS_OK)
        s = record(&p, err);
    if (s != STATUS_OK)
        return s;
    struct arena *a = rpc_call_arena(call);
    AUTO(rpc_message_free_p) Origin__CreateReply *made = NULL;
    bool sent = str_eq(p.state, "committing") || str_eq(p.state, "committed");
    if (!sent)
        s = place(&p, rpc_call_deadline_us(call), &made, err);
    if (s == STATUS_OK && str_eq(p.state, "opening"))
        s = db_query(o->db,
                     "UPDATE orchestrator.upload SET state = 'open', updated = now() "
                     "WHERE id = $1::uuid AND state = 'opening'",
                     DB_PARAMS(DB_TEXT(p.id)), NULL, err);
    if (s != STATUS_OK)
        return s;
    ret->upload_id = orch_str(a, p.id);
    ret->item_id = orch_str(a, p.item);
    ret->route = orch_str(a, p.route);
    ret->existed = !made || made->existed;
    ret->missing_bytes = made ? made->missing_bytes : 0;
    return STATUS_OK;
}

// ---------------------------------------------------------------- reading

#define INFO_SQL                                                                                   \
    "SELECT u.id, u.item, u.filename, u.size, u.digest, u.route,"                                  \
    "  CASE u.state WHEN 'opening' THEN 'open' WHEN 'committing' THEN 'processing'"                \
    "    WHEN 'committed' THEN coalesce(i.state, 'processing') ELSE u.state END,"                  \
    "  i.reason, j.id, " ORCH_US(                                                                  \
        "u.created") ", u.owner, i.duration_us, i.plan IS NOT NULL "                               \
                     "FROM orchestrator.upload u LEFT JOIN orchestrator.item i ON i.id = u.item"   \
                     "  LEFT JOIN orchestrator.job j ON j.item = u.item "

static enum status fill_info(struct arena *a, const struct db_result *r, size_t row,
                             Orchestrator__UploadInfo *ret, struct err *err)
{
    size_t len = 0;
    const uint8_t *digest = db_bytes(r, row, 4, &len);
    ret->upload_id = orch_str(a, db_text(r, row, 0));
    ret->item_id = orch_str(a, db_text(r, row, 1));
    ret->filename = orch_str(a, db_text(r, row, 2));
    ret->size = db_i64(r, row, 3);
    ret->digest = orch_bytes(a, digest, len);
    ret->route = orch_str(a, db_text(r, row, 5));
    ret->state = orch_str(a, db_text(r, row, 6));
    ret->reason = orch_str(a, db_text(r, row, 7));
    ret->job_id = orch_str(a, db_text(r, row, 8));
    ret->created = orch_timestamp(a, db_i64(r, row, 9));
    return ret->created ? STATUS_OK
                        : err_set(err, STATUS_RESOURCE_EXHAUSTED, "upload: out of memory");
}

// One upload that the caller may see.
static enum status load(struct orch *o, const char *id, const struct rpc_user *user,
                        struct db_result **ret, struct err *err)
{
    if (!uuid_is_valid(id))
        return err_set(err, STATUS_NOT_FOUND, "no upload %.40s", id);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(o->db, INFO_SQL "WHERE u.id = $1::uuid", DB_PARAMS(DB_TEXT(id)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0 || (!str_eq(db_text(r, 0, 10), user->id) && !is_admin(user)))
        return err_set(err, STATUS_NOT_FOUND, "no upload %s", id);
    *ret = TAKE(r);
    return STATUS_OK;
}

static enum status get(struct rpc_call *call, const Orchestrator__GetUploadRequest *req,
                       Orchestrator__UploadInfo *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = load(o, req->upload_id, rpc_call_user(call), &r, err);
    return s == STATUS_OK ? fill_info(rpc_call_arena(call), r, 0, ret, err) : s;
}

static enum status list(struct rpc_call *call, const Orchestrator__ListUploadsRequest *req,
                        Orchestrator__ListUploadsReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    int64_t size = orch_page_size(req->page);
    const char *after = orch_page_after(req->page);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        o->db,
        INFO_SQL
        "WHERE u.owner = $1::uuid AND ($2::text = '' OR u.id < nullif($2::text, '')::uuid) "
        "ORDER BY u.id DESC LIMIT $3::bigint",
        DB_PARAMS(DB_TEXT(rpc_call_user(call)->id), DB_TEXT(after), DB_I64(size + 1)), &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = db_result_n_rows(r);
    bool more = n > (size_t)size;
    n -= more;
    ret->uploads = arena_array(a, n + 1, sizeof ret->uploads[0]);
    for (size_t i = 0; s == STATUS_OK && i < n; i++) {
        Orchestrator__UploadInfo *info = arena_alloc(a, sizeof *info);
        if (!ret->uploads || !info)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "list uploads: out of memory");
        orchestrator__upload_info__init(info);
        s = fill_info(a, r, i, info, err);
        ret->uploads[ret->n_uploads++] = info;
    }
    if (more)
        ret->next_page = orch_str(a, db_text(r, n - 1, 0));
    return s;
}

// ---------------------------------------------------------------- Commit

static void default_title(char *dst, size_t size, const char *filename)
{
    str_copy(dst, size, *filename ? filename : "Untitled");
    char *dot = strrchr(dst, '.');
    if (dot && dot != dst)
        *dot = '\0';
}

static enum status check_commit(const Orchestrator__CommitRequest *req, struct err *err)
{
    struct media_options chosen;
    struct err why = ERR_INIT;
    if (media_options_parse(req->preset, NULL, 0, &chosen, &why) != STATUS_OK)
        return rpc_bad_field(err, "preset", "%s", why.msg);
    if (req->n_video_codecs > MEDIA_N_CODECS ||
        media_options_parse("", (const char *const *)req->video_codecs, req->n_video_codecs,
                            &chosen, &why) != STATUS_OK)
        return rpc_bad_field(err, "video_codecs", "%s", why.msg);
    if (strlen(req->title) > MAX_TITLE)
        return rpc_bad_field(err, "title", "a title has at most %d bytes", MAX_TITLE);
    if (strlen(req->description) > MAX_DESCRIPTION)
        return rpc_bad_field(err, "description", "a description has at most %d bytes",
                             MAX_DESCRIPTION);
    if (!req->price || req->price->minor == 0)
        return STATUS_OK;
    const char *cur = req->price->currency;
    bool iso = strlen(cur) == 3 && strspn(cur, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 3;
    if (req->price->minor < 0 || !iso)
        return rpc_bad_field(err, iso ? "price.minor" : "price.currency",
                             "a price is not negative and has a currency like EUR");
    return STATUS_OK;
}

// "hevc,av1"
static void join_codecs(const Orchestrator__CommitRequest *req, char *ret, size_t size)
{
    size_t n = 0;
    ret[0] = '\0';
    for (size_t i = 0; i < req->n_video_codecs && n < size; i++)
        n += (size_t)snprintf(ret + n, size - n, "%s%s", i ? "," : "", req->video_codecs[i]);
}

enum status upload_options(struct orch *o, struct arena *a, const char *item, Transcode__Task *t,
                           struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(o->db,
                             "SELECT u.preset, u.video_codecs FROM orchestrator.upload u "
                             "JOIN orchestrator.item i ON i.upload = u.id WHERE i.id = $1::uuid",
                             DB_PARAMS(DB_TEXT(item)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    t->preset = orch_str(a, db_text(r, 0, 0));
    char *list = arena_strdup(a, db_text(r, 0, 1));
    t->video_codecs = arena_array(a, MEDIA_N_CODECS, sizeof t->video_codecs[0]);
    if (!list || !t->video_codecs)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "lease: out of memory");
    for (char *word; (word = strsep(&list, ",")) && t->n_video_codecs < MEDIA_N_CODECS;)
        if (*word)
            t->video_codecs[t->n_video_codecs++] = word;
    return STATUS_OK;
}

static enum status begin_commit(struct orch *o, const Orchestrator__CommitRequest *req,
                                const char *filename, struct err *err)
{
    char codecs[64];
    join_codecs(req, codecs, sizeof codecs);
    char title[MAX_TITLE + 1];
    if (*req->title)
        str_copy(title, sizeof title, req->title);
    else
        default_title(title, sizeof title, filename);
    bool priced = req->price && req->price->minor > 0;
    return db_query(o->db,
                    "UPDATE orchestrator.upload SET state = 'committing', updated = now(),"
                    "  title = $2::text, description = $3::text, price_minor = $4::bigint,"
                    "  price_currency = $5::text, publish = $6::bool, preset = $7::text,"
                    "  video_codecs = $8::text "
                    "WHERE id = $1::uuid AND state IN ('opening', 'open')",
                    DB_PARAMS(DB_TEXT(req->upload_id), DB_TEXT(title), DB_TEXT(req->description),
                              DB_I64(priced ? req->price->minor : 0),
                              DB_TEXT(priced ? req->price->currency : ""), DB_BOOL(req->public_),
                              DB_TEXT(req->preset), DB_TEXT(codecs)),
                    NULL, err);
}

static enum status fill_commit(struct arena *a, const struct db_result *r,
                               Orchestrator__CommitReply *ret, struct err *err)
{
    ret->item_id = orch_str(a, db_text(r, 0, 1));
    ret->job_id = orch_str(a, db_text(r, 0, 8));
    ret->url = arena_printf(a, "/item/%s", db_text(r, 0, 1));
    ret->state = orch_str(a, db_text(r, 0, 6));
    ret->reason = orch_str(a, db_text(r, 0, 7));
    return ret->url ? STATUS_OK : err_set(err, STATUS_RESOURCE_EXHAUSTED, "commit: out of memory");
}

// A caller that waits for a short input to be finished.
struct sync {
    struct orch *o;
    struct rpc_call *call;
    char upload[UUID_SIZE];
};

// Finished, failed, or found to be longer than what is waited for.
static bool is_settled(const struct db_result *r)
{
    const char *state = db_text(r, 0, 6);
    bool planned = db_bool(r, 0, 12);
    return str_eq(state, "ready") || str_eq(state, "failed") || str_eq(state, "aborted") ||
           (planned && db_i64(r, 0, 11) > ORCH_SYNC_MAX_US);
}

static bool try_sync(void *ud, enum hub_why why)
{
    struct sync *w = ud;
    struct err err = ERR_INIT;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    Orchestrator__CommitReply reply;
    orchestrator__commit_reply__init(&reply);
    enum status s = STATUS_CANCELLED;
    if (why != HUB_CANCELLED) {
        s = db_query(w->o->db, INFO_SQL "WHERE u.id = $1::uuid", DB_PARAMS(DB_TEXT(w->upload)), &r,
                     &err);
        if (why == HUB_EVENT && s == STATUS_OK && !is_settled(r))
            return false;
        if (s == STATUS_OK)
            s = fill_commit(rpc_call_arena(w->call), r, &reply, &err);
    }
    rpc_call_finish(w->call, s, &reply.base, &err);
    mem_free(w);
    return true;
}

static enum status wait_sync(struct orch *o, struct rpc_call *call, const char *upload,
                             const char *item, struct err *err)
{
    struct sync *w = mem_alloc(sizeof *w);
    if (!w)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "commit: out of memory");
    *w = (struct sync){.o = o, .call = call};
    str_copy(w->upload, sizeof w->upload, upload);
    // The answer must be out before the caller stops to listen.
    int64_t last_us = rpc_call_deadline_us(call);
    int64_t deadline_us = time_deadline_in_ms(ORCH_SYNC_WAIT_MS);
    if (last_us != TIME_NEVER && last_us - 500000 < deadline_us)
        deadline_us = last_us - 500000;
    rpc_call_defer(call);
    enum status s =
        hub_park(o->hub, HUB_ITEM, item, deadline_us, rpc_call_cancel(call), try_sync, w, err);
    if (s != STATUS_OK) {
        rpc_call_finish(call, s, NULL, err);
        mem_free(w);
    }
    return STATUS_OK;
}

static enum status commit(struct rpc_call *call, const Orchestrator__CommitRequest *req,
                          Orchestrator__CommitReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = load(o, req->upload_id, rpc_call_user(call), &r, err);
    if (s == STATUS_OK)
        s = check_commit(req, err);
    if (s != STATUS_OK)
        return s;
    if (str_eq(db_text(r, 0, 6), "aborted"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "upload %s was aborted", req->upload_id);
    if (str_eq(db_text(r, 0, 6), "open"))
        s = begin_commit(o, req, db_text(r, 0, 2), err);
    if (s == STATUS_OK)
        s = commit_run(o, req->upload_id, rpc_call_deadline_us(call), err);
    if (s != STATUS_OK)
        return s;
    AUTO(db_result_free_p) struct db_result *now = NULL;
    s = load(o, req->upload_id, rpc_call_user(call), &now, err);
    if (s != STATUS_OK)
        return s;
    if (req->sync && !is_settled(now))
        return wait_sync(o, call, req->upload_id, db_text(now, 0, 1), err);
    return fill_commit(rpc_call_arena(call), now, ret, err);
}

// ---------------------------------------------------------------- Abort

static enum status abort_(struct rpc_call *call, const Orchestrator__AbortRequest *req,
                          Orchestrator__AbortReply *ret, struct err *err)
{
    (void)ret;
    struct orch *o = rpc_call_self(call);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = load(o, req->upload_id, rpc_call_user(call), &r, err);
    if (s != STATUS_OK)
        return s;
    const char *state = db_text(r, 0, 6);
    if (str_eq(state, "aborted"))
        return STATUS_OK;
    if (!str_eq(state, "open"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "upload %s is committed already",
                       req->upload_id);
    return commit_abort(o, req->upload_id, err);
}

enum status uploads_serve(struct orch *o, struct rpc_server *s, struct err *err)
{
    static const struct orchestrator_upload_handlers handlers = {
        .open = open_, .commit = commit, .get = get, .list = list, .abort = abort_};
    return orchestrator_upload_serve(s, &handlers, o, err);
}
