// Subtitle.*: text that is added to an item after its upload. The file is stored at the item's
// origin and converted by a worker's confined process like everything else that comes from
// outside; whoever sent it waits for that and is told what is wrong with it.
#include "orchestrator/internal.h"

#include <stdio.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"
#include "cauce/origin.rpc.h"
#include "cauce/store.rpc.h"

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "media/playlist.h"
#include "media/webvtt.h"
#include "object/object.h"

#define MAX_FILE_BYTES (MEDIA_MAX_TEXT_BYTES - (64U << 10)) // fits into one message
#define PIECE (192U << 10)
#define MAX_WORDS_BYTES (3U << 20) // told to the store of one text
#define MAX_CUE_WORDS 8192
#define STORE_MS 30000
#define WAIT_MS 30000
#define ANSWER_MARGIN_US 300000 // before the caller's own deadline
#define PRIORITY 690            // somebody waits, but nobody's picture stands still

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "subtitles: out of memory");
}

// An item of the caller's, or any for an administrator.
static enum status own_item(struct rpc_call *call, const char *id, struct item *ret,
                            struct err *err)
{
    struct orch *o = rpc_call_self(call);
    const struct rpc_user *user = rpc_call_user(call);
    enum status s = items_get(o->items, id, ret, err);
    if (s != STATUS_OK)
        return s;
    if (!user || (!(user->roles & ROLE_ADMIN) && !str_eq(user->id, ret->owner)))
        return err_set(err, STATUS_NOT_FOUND, "no item %.40s", id);
    return STATUS_OK;
}

// ---------------------------------------------------------------- what there is

static Orchestrator__SubtitleInfo *new_info(struct arena *a, const struct media_text *t,
                                            const char *base)
{
    Orchestrator__SubtitleInfo *i = arena_alloc(a, sizeof *i);
    if (!i)
        return NULL;
    orchestrator__subtitle_info__init(i);
    i->id = orch_str(a, t->id);
    i->language = orch_str(a, t->language);
    i->title = orch_str(a, t->title);
    i->is_default = t->is_default;
    i->forced = t->is_forced;
    i->hearing_impaired = t->is_hearing_impaired;
    i->state = orch_str(a, "ready");
    i->url = base ? arena_printf(a, "%s/%s.vtt", base, t->id) : orch_str(a, "");
    return i->url ? i : NULL;
}

enum status subtitles_fill(struct arena *a, const struct item *it, const char *base,
                           Orchestrator__SubtitleInfo ***ret, size_t *ret_n, struct err *err)
{
    struct media_text own[MEDIA_MAX_TEXT_TRACKS];
    size_t n = media_texts_of_source(it->plan->plan, own);
    *ret_n = 0;
    *ret = arena_array(a, n + it->n_texts + 1, sizeof **ret);
    for (size_t i = 0; *ret && i < n + it->n_texts; i++) {
        const struct media_text *t = i < n ? &own[i] : &it->texts[i - n];
        if (!((*ret)[i] = new_info(a, t, base)))
            return no_memory(err);
        (*ret_n)++;
    }
    return *ret ? STATUS_OK : no_memory(err);
}

enum status subtitles_source(struct orch *o, const char *item, const char *id,
                             uint8_t ret_digest[ORCH_DIGEST_SIZE], int64_t *ret_size,
                             struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(o->db,
                             "SELECT digest, size FROM orchestrator.subtitle "
                             "WHERE item = $1::uuid AND number = $2::int",
                             DB_PARAMS(DB_TEXT(item), DB_I64(media_text_find_added(id))), &r, err);
    if (s != STATUS_OK)
        return s;
    size_t len = 0;
    const uint8_t *digest = db_result_n_rows(r) ? db_bytes(r, 0, 0, &len) : NULL;
    if (!digest || len != ORCH_DIGEST_SIZE)
        return err_set(err, STATUS_NOT_FOUND, "item %s has no text %.8s", item, id);
    memcpy(ret_digest, digest, len);
    *ret_size = db_i64(r, 0, 1);
    return STATUS_OK;
}

// ---------------------------------------------------------------- what is said, for the store

static enum status read_text(struct orch *o, const char *origin, const uint8_t *digest, size_t n,
                             uint8_t *dst, struct err *err)
{
    struct rpc_client *c = orch_origin(o, origin, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    uint8_t name[ORCH_DIGEST_SIZE], got[ORCH_DIGEST_SIZE];
    memcpy(name, digest, sizeof name);
    Origin__ReadRequest req;
    origin__read_request__init(&req);
    req.digest = (ProtobufCBinaryData){.data = name, .len = sizeof name};
    req.length = (int64_t)n;
    struct rpc_opts opts = {.deadline_us = time_deadline_in_ms(STORE_MS)};
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    enum status s = origin_object_read_open(c, &opts, &req, &st, err);
    size_t have = 0;
    for (bool end = false; s == STATUS_OK && !end;) {
        AUTO(rpc_message_free_p) Origin__ReadReply *part = NULL;
        s = origin_object_read_recv(st, &part, err);
        end = s == STATUS_OK && !part;
        if (s != STATUS_OK || end)
            continue;
        if (part->data.len > n - have)
            return err_set(err, STATUS_DATA_LOSS, "the origin sent more than was asked for");
        memcpy(dst + have, part->data.data, part->data.len);
        have += part->data.len;
    }
    if (s != STATUS_OK)
        return s;
    object_digest(got, dst, have);
    return have == n && memcmp(got, name, sizeof got) == 0
               ? STATUS_OK
               : err_set(err, STATUS_DATA_LOSS, "origin %s sent other bytes than the text's",
                         origin);
}

// Cues as the store takes them; what does not fit into one message is left out.
static enum status fill_words(struct arena *a, const struct media_webvtt *w,
                              Store__SetWordsRequest *req, struct err *err)
{
    struct buf words;
    buf_init(&words, MEDIA_MAX_TEXT_BYTES);
    size_t all = 0;
    bool ok = (req->cues = arena_array(a, w->n + 1, sizeof req->cues[0])) != NULL;
    for (size_t i = 0; ok && i < w->n && all < MAX_WORDS_BYTES; i++) {
        Store__SpokenWords *c = arena_alloc(a, sizeof *c);
        buf_reset(&words);
        media_webvtt_plain(&w->cues[i], &words);
        all += words.len + 16;
        if (words.len > MAX_CUE_WORDS)
            continue;
        ok = c && !words.failed;
        if (!ok)
            break;
        store__spoken_words__init(c);
        c->start_ms = w->cues[i].start_ms;
        c->words = orch_str(a, buf_str(&words));
        req->cues[req->n_cues++] = c;
    }
    buf_done(&words);
    return ok ? STATUS_OK : no_memory(err);
}

static enum status send_words(struct orch *o, const char *item, const char *id,
                              const struct media_webvtt *w, struct err *err)
{
    AUTO(arena_free_p) struct arena *a = arena_new(16 << 20);
    struct rpc_client *c = o->env.store(o->env.ud, err);
    if (!a || !c)
        return a ? STATUS_UNAVAILABLE : no_memory(err);
    Store__SetWordsRequest req;
    store__set_words_request__init(&req);
    req.item_id = orch_str(a, item);
    req.subtitle = orch_str(a, id);
    enum status s = fill_words(a, w, &req, err);
    struct rpc_opts opts = {.deadline_us = time_deadline_in_ms(STORE_MS)};
    AUTO(rpc_message_free_p) Store__SetWordsReply *reply = NULL;
    return s == STATUS_OK ? store_catalog_set_words(c, &opts, &req, &reply, err) : s;
}

enum status subtitles_tell(struct orch *o, const char *item, const char *id, const char *origin,
                           struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    struct media_webvtt w = {.n = 0};
    enum status s = db_query(o->db,
                             "SELECT digest, size FROM orchestrator.output WHERE item = $1::uuid"
                             "  AND rendition = $2::text AND segment = 0",
                             DB_PARAMS(DB_TEXT(item), DB_TEXT(id)), &r, err);
    if (s != STATUS_OK)
        return s;
    size_t len = 0;
    const uint8_t *digest = db_result_n_rows(r) ? db_bytes(r, 0, 0, &len) : NULL;
    int64_t n = digest ? db_i64(r, 0, 1) : 0;
    if (len != ORCH_DIGEST_SIZE || n > MEDIA_MAX_TEXT_BYTES)
        n = 0; // it is gone
    AUTO(mem_free_p) uint8_t *bytes = mem_alloc((size_t)n + 1);
    if (!bytes)
        return no_memory(err);
    if (n)
        s = read_text(o, origin, digest, (size_t)n, bytes, err);
    if (s == STATUS_OK && n)
        s = media_webvtt_parse(bytes, (size_t)n, &w, err);
    if (s == STATUS_OK)
        s = send_words(o, item, id, &w, err);
    media_webvtt_done(&w);
    return s == STATUS_OK
               ? s
               : err_wrap(err, s, "tell the store what is said in %s of item %s", id, item);
}

// The store is to be told of that text, as it will be then.
static enum status add_chore(struct db_conn *c, const char *item, const char *id, struct err *err)
{
    return db_exec(c,
                   "INSERT INTO orchestrator.chore (kind, origin, item, name) "
                   "SELECT 'words', route, id, $2::text FROM orchestrator.item WHERE id = $1::uuid",
                   DB_PARAMS(DB_TEXT(item), DB_TEXT(id)), NULL, err);
}

static enum status add_chores(struct db_conn *c, const struct queue_task *t, struct err *err)
{
    return db_exec(c,
                   "INSERT INTO orchestrator.chore (kind, origin, item, name) "
                   "SELECT 'words', i.route, i.id, o.rendition FROM orchestrator.item i"
                   "  JOIN orchestrator.output o ON o.item = i.id "
                   "WHERE i.id = $1::uuid AND o.rendition = ANY (string_to_array($2::text, ','))",
                   DB_PARAMS(DB_TEXT(t->item), DB_TEXT(t->renditions)), NULL, err);
}

// ---------------------------------------------------------------- changes, in transactions

static enum status tell(struct db_conn *c, const char *kind, const char *item, const char *id,
                        struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c, "SELECT owner FROM orchestrator.item WHERE id = $1::uuid",
                            DB_PARAMS(DB_TEXT(item)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    char json[64], owner[UUID_SIZE];
    str_copy(owner, sizeof owner, db_text(r, 0, 0));
    snprintf(json, sizeof json, "{\"subtitle\":\"%s\"}", id);
    return event_append(c, ORCH_SCHEMA, "transcode", kind, item, owner, json, err);
}

// Nobody converts any more what is removed.
static enum status end_task(struct db_conn *c, const char *item, int number, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "UPDATE orchestrator.task SET state = 'cancelled', lease_until = NULL,"
                            "  finished = now() WHERE id = (SELECT task FROM orchestrator.subtitle"
                            "    WHERE item = $1::uuid AND number = $2::int)"
                            "  AND state NOT IN ('done', 'dead', 'cancelled')",
                            DB_PARAMS(DB_TEXT(item), DB_I64(number)), &r, err);
    if (s != STATUS_OK || db_result_n_affected(r) == 0)
        return s;
    return queue_notify(c, ORCH_LOST_CHANNEL, "", err);
}

// What was made of it goes, and the file that it was made from, unless something else is the same.
static enum status remove_text(struct db_conn *c, const char *item, int number, bool *ret_removed,
                               struct err *err)
{
    char id[MEDIA_TEXT_ID_SIZE];
    media_text_name_added((unsigned)number, id);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "UPDATE orchestrator.subtitle SET state = 'removed' "
                            "WHERE item = $1::uuid AND number = $2::int AND state <> 'removed'",
                            DB_PARAMS(DB_TEXT(item), DB_I64(number)), &r, err);
    *ret_removed = s == STATUS_OK && db_result_n_affected(r) == 1;
    if (!*ret_removed)
        return s;
    static const char sql[] =
        "WITH made AS (DELETE FROM orchestrator.output"
        "  WHERE item = $1::uuid AND rendition = $3::text RETURNING digest),"
        "gone AS (SELECT digest FROM made UNION SELECT digest FROM orchestrator.subtitle"
        "  WHERE item = $1::uuid AND number = $2::int) "
        "INSERT INTO orchestrator.chore (kind, origin, item, digest) "
        "SELECT 'unpin', i.route, i.id, g.digest FROM gone g, orchestrator.item i "
        "WHERE i.id = $1::uuid AND g.digest <> i.digest"
        "  AND NOT EXISTS (SELECT FROM orchestrator.output o WHERE o.item = i.id"
        "    AND o.digest = g.digest AND o.rendition <> $3::text)"
        "  AND NOT EXISTS (SELECT FROM orchestrator.subtitle s WHERE s.item = i.id"
        "    AND s.digest = g.digest AND s.number <> $2::int AND s.state <> 'removed')";
    s = db_exec(c, sql, DB_PARAMS(DB_TEXT(item), DB_I64(number), DB_TEXT(id)), NULL, err);
    if (s == STATUS_OK)
        s = end_task(c, item, number, err);
    if (s == STATUS_OK)
        s = add_chore(c, item, id, err);
    return s == STATUS_OK ? tell(c, "subtitle.removed", item, id, err) : s;
}

enum status subtitles_made(struct db_conn *c, const struct queue_task *t, bool ready,
                           const char *left_out, struct err *err)
{
    int number = media_text_find_added(t->renditions);
    enum status s = add_chores(c, t, err);
    if (s != STATUS_OK || number < 0)
        return s;
    const char *reason = ready                   ? ""
                         : left_out && *left_out ? left_out
                                                 : "no subtitle can be read from the file";
    AUTO(db_result_free_p) struct db_result *r = NULL;
    s = db_exec(c,
                "UPDATE orchestrator.subtitle SET state = $3::text, reason = $4::text "
                "WHERE item = $1::uuid AND number = $2::int AND state = 'converting' "
                "RETURNING coalesce(replaces, 0)",
                DB_PARAMS(DB_TEXT(t->item), DB_I64(number), DB_TEXT(ready ? "ready" : "failed"),
                          DB_TEXT(reason)),
                &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0 || !ready)
        return s;
    int replaces = (int)db_i64(r, 0, 0);
    bool removed;
    s = tell(c, "subtitle.added", t->item, t->renditions, err);
    return s == STATUS_OK && replaces ? remove_text(c, t->item, replaces, &removed, err) : s;
}

// ---------------------------------------------------------------- Put

struct putting {
    const Orchestrator__PutSubtitleRequest *req;
    uint8_t digest[ORCH_DIGEST_SIZE];
    int replaces, number;
};

static bool is_label(const char *s, size_t max)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f)
            return false;
    return n < max && str_is_utf8(s, n);
}

static enum status check_put(const Orchestrator__PutSubtitleRequest *req, const struct item *it,
                             struct putting *p, struct err *err)
{
    if (req->data.len == 0 || req->data.len > MAX_FILE_BYTES)
        return rpc_bad_field(err, "data", "the file has %zu bytes; 1 to %u are taken",
                             req->data.len, MAX_FILE_BYTES);
    if (*req->language && (strlen(req->language) > 7 || !media_language_is_plain(req->language)))
        return rpc_bad_field(err, "language", "a language is a code like 'en' or 'deu'");
    if (!is_label(req->title, sizeof it->texts[0].title))
        return rpc_bad_field(err, "title", "a title has at most 63 bytes of text");
    p->replaces = *req->replaces ? media_text_find_added(req->replaces) : 0;
    if (p->replaces < 0 || (p->replaces && !item_has_text(it, req->replaces)))
        return rpc_bad_field(err, "replaces", "the item has no added text '%.8s'", req->replaces);
    if (str_eq(it->state, "failed"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "the item cannot be played: %s",
                       it->reason);
    if (!it->plan)
        return err_set(err, STATUS_UNAVAILABLE,
                       "the item is still being looked at: try again soon");
    p->req = req;
    object_digest(p->digest, req->data.data, req->data.len);
    return STATUS_OK;
}

static enum status send_file(struct rpc_stream *st, const char *item, struct putting *p,
                             struct err *err)
{
    const ProtobufCBinaryData *data = &p->req->data;
    Origin__PutObjectRequest m;
    origin__put_object_request__init(&m);
    m.digest = (ProtobufCBinaryData){.data = p->digest, .len = sizeof p->digest};
    m.size = (int64_t)data->len;
    char id[UUID_SIZE];
    str_copy(id, sizeof id, item);
    m.item_id = id;
    enum status s = STATUS_OK;
    for (size_t at = 0; s == STATUS_OK && at < data->len; at += PIECE) {
        size_t n = data->len - at < PIECE ? data->len - at : PIECE;
        m.data = (ProtobufCBinaryData){.data = data->data + at, .len = n};
        s = origin_object_put_send(st, &m, err);
        origin__put_object_request__init(&m); // what follows is data alone
    }
    return s;
}

static enum status store_file(struct rpc_call *call, const struct item *it, struct putting *p,
                              struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct rpc_client *c = orch_origin(o, it->route, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    struct rpc_opts opts = {.deadline_us = time_deadline_in_ms(STORE_MS),
                            .cancel = rpc_call_cancel(call)};
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    AUTO(rpc_message_free_p) Origin__PutObjectReply *reply = NULL;
    enum status s = origin_object_put_open(c, &opts, &st, err);
    if (s == STATUS_OK)
        s = send_file(st, it->id, p, err);
    // An origin that has the object already may answer before all was sent.
    if (s == STATUS_OK || (s == STATUS_CANCELLED && !cancel_is_fired(rpc_call_cancel(call))))
        s = origin_object_put_finish(st, &reply, err);
    return s == STATUS_OK ? s : err_wrap(err, s, "store at %s", it->route);
}

// The job, locked: texts of an item are numbered one after the other.
static enum status lock_job(struct db_conn *c, const char *item, char ret_job[UUID_SIZE],
                            struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "SELECT j.id, EXISTS (SELECT FROM orchestrator.task t"
                            "  WHERE t.job = j.id AND t.kind = 'move' AND t.state <> 'done') "
                            "FROM orchestrator.job j WHERE j.item = $1::uuid FOR NO KEY UPDATE",
                            DB_PARAMS(DB_TEXT(item)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no item %.40s", item);
    if (db_bool(r, 0, 1))
        return err_set(err, STATUS_UNAVAILABLE,
                       "the item is being moved to its origin: try again soon");
    str_copy(ret_job, UUID_SIZE, db_text(r, 0, 0));
    return STATUS_OK;
}

static enum status choose_number(struct db_conn *c, struct putting *p, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "SELECT coalesce(max(number), 0) + 1,"
                            "  count(*) FILTER (WHERE state IN ('ready', 'converting')) "
                            "FROM orchestrator.subtitle WHERE item = $1::uuid",
                            DB_PARAMS(DB_TEXT(p->req->item_id)), &r, err);
    if (s != STATUS_OK)
        return s;
    p->number = (int)db_i64(r, 0, 0);
    if (p->number > MEDIA_MAX_ADDED_TEXTS)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "an item takes %d texts over its life, and this one has had them",
                       MEDIA_MAX_ADDED_TEXTS);
    if (db_i64(r, 0, 1) >= ORCH_MAX_TEXTS)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "the item has %d added texts already: remove one first", ORCH_MAX_TEXTS);
    return STATUS_OK;
}

// Before the file is stored: what is refused later would stay at the origin.
static enum status room_tx(struct db_conn *c, void *ud, struct err *err)
{
    return choose_number(c, ud, err);
}

static enum status put_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct putting *p = ud;
    const Orchestrator__PutSubtitleRequest *req = p->req;
    char job[UUID_SIZE], task[UUID_SIZE], id[MEDIA_TEXT_ID_SIZE];
    enum status s = lock_job(c, req->item_id, job, err);
    if (s == STATUS_OK)
        s = choose_number(c, p, err);
    if (s != STATUS_OK)
        return s;
    rand_uuid7(task);
    media_text_name_added((unsigned)p->number, id);
    s = db_exec(c,
                "INSERT INTO orchestrator.subtitle (item, number, language, title, is_default,"
                "  is_forced, hearing_impaired, digest, size, replaces, task) VALUES ($1::uuid,"
                "  $2::int, $3::text, $4::text, $5::bool, $6::bool, $7::bool, $8::bytea,"
                "  $9::bigint, nullif($10::int, 0), $11::uuid)",
                DB_PARAMS(DB_TEXT(req->item_id), DB_I64(p->number), DB_TEXT(req->language),
                          DB_TEXT(req->title), DB_BOOL(req->is_default), DB_BOOL(req->forced),
                          DB_BOOL(req->hearing_impaired), DB_BYTES(p->digest, sizeof p->digest),
                          DB_I64(req->data.len), DB_I64(p->replaces), DB_TEXT(task)),
                NULL, err);
    // A demand task: it is no part of the job's progress and cannot fail it.
    if (s == STATUS_OK)
        s = db_exec(
            c,
            "INSERT INTO orchestrator.task (id, job, item, kind, demand, position, priority,"
            "  renditions, n_segments) VALUES ($1::uuid, $2::uuid, $3::uuid, 'texts', true,"
            "  0, $4::int, $5::text, 1)",
            DB_PARAMS(DB_TEXT(task), DB_TEXT(job), DB_TEXT(req->item_id), DB_I64(PRIORITY),
                      DB_TEXT(id)),
            NULL, err);
    return s == STATUS_OK ? queue_notify(c, ORCH_TASK_CHANNEL, "", err) : s;
}

// ---------------------------------------------------------------- waiting for the worker

struct put_wait {
    struct orch *o;
    struct rpc_call *call;
    char item[UUID_SIZE];
    int number;
};

#define INFO_COLUMNS                                                                               \
    "s.number, s.language, s.title, s.is_default, s.is_forced, s.hearing_impaired,"                \
    "  CASE WHEN s.state = 'converting' AND coalesce(t.state, 'dead') IN ('dead', 'cancelled')"    \
    "    THEN 'failed' ELSE s.state END,"                                                          \
    "  CASE WHEN s.reason = '' AND s.state = 'converting'"                                         \
    "    THEN coalesce(nullif(t.error, ''), 'it could not be converted: send it again')"           \
    "    ELSE s.reason END "                                                                       \
    "FROM orchestrator.subtitle s LEFT JOIN orchestrator.task t ON t.id = s.task "

static Orchestrator__SubtitleInfo *read_info(struct arena *a, const struct db_result *r, size_t i)
{
    struct media_text t = {.is_default = db_bool(r, i, 3),
                           .is_forced = db_bool(r, i, 4),
                           .is_hearing_impaired = db_bool(r, i, 5)};
    media_text_name_added((unsigned)db_i64(r, i, 0), t.id);
    str_copy(t.language, sizeof t.language, db_text(r, i, 1));
    str_copy(t.title, sizeof t.title, db_text(r, i, 2));
    Orchestrator__SubtitleInfo *info = new_info(a, &t, NULL);
    if (!info)
        return NULL;
    info->state = orch_str(a, db_text(r, i, 6));
    info->reason = orch_str(a, str_eq(info->state, "failed") ? db_text(r, i, 7) : "");
    return info;
}

static enum status look(struct put_wait *w, Orchestrator__SubtitleInfo **ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_query(w->o->db, "SELECT " INFO_COLUMNS "WHERE s.item = $1::uuid AND s.number = $2::int",
                 DB_PARAMS(DB_TEXT(w->item), DB_I64(w->number)), &r, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(r) == 0)
        return err_set(err, STATUS_NOT_FOUND, "the text is gone");
    *ret = read_info(rpc_call_arena(w->call), r, 0);
    return *ret ? STATUS_OK : no_memory(err);
}

static bool try_put(void *ud, enum hub_why why)
{
    struct put_wait *w = ud;
    struct err err = ERR_INIT;
    Orchestrator__SubtitleInfo *info = NULL;
    enum status s = look(w, &info, &err);
    if (why == HUB_EVENT && s == STATUS_OK && str_eq(info->state, "converting"))
        return false;
    if (why == HUB_CANCELLED)
        s = err_set(&err, STATUS_CANCELLED, "subtitles: cancelled");
    else if (s == STATUS_OK && str_eq(info->state, "failed"))
        s = err_set(&err, STATUS_INVALID_ARGUMENT, "%s", info->reason);
    if (s == STATUS_OK)
        items_changed(w->o->items, w->item);
    rpc_call_finish(w->call, s, info ? &info->base : NULL, &err);
    mem_free(w);
    return true;
}

static enum status park(struct rpc_call *call, const struct putting *p, struct err *err)
{
    struct put_wait *w = mem_alloc(sizeof *w);
    if (!w)
        return no_memory(err);
    *w = (struct put_wait){.o = rpc_call_self(call), .call = call, .number = p->number};
    str_copy(w->item, sizeof w->item, p->req->item_id);
    int64_t deadline_us = time_deadline_in_ms(WAIT_MS), last_us = rpc_call_deadline_us(call);
    if (last_us != TIME_NEVER && last_us - ANSWER_MARGIN_US < deadline_us)
        deadline_us = last_us - ANSWER_MARGIN_US;
    rpc_call_defer(call);
    hub_wake(w->o->hub, HUB_TASKS, NULL);
    enum status s =
        hub_park(w->o->hub, HUB_ITEM, w->item, deadline_us, rpc_call_cancel(call), try_put, w, err);
    if (s != STATUS_OK) {
        rpc_call_finish(call, s, NULL, err);
        mem_free(w);
    }
    return STATUS_OK;
}

static enum status put(struct rpc_call *call, const Orchestrator__PutSubtitleRequest *req,
                       Orchestrator__SubtitleInfo *ret, struct err *err)
{
    (void)ret;
    struct orch *o = rpc_call_self(call);
    struct putting p = {.req = req};
    AUTO(item_done) struct item it = {0};
    enum status s = own_item(call, req->item_id, &it, err);
    if (s == STATUS_OK)
        s = check_put(req, &it, &p, err);
    if (s == STATUS_OK)
        s = db_tx(o->db, DB_READ_COMMITTED, room_tx, &p, err);
    if (s == STATUS_OK)
        s = store_file(call, &it, &p, err);
    if (s == STATUS_OK)
        s = db_tx(o->db, DB_READ_COMMITTED, put_tx, &p, err);
    return s == STATUS_OK ? park(call, &p, err) : s;
}

// ---------------------------------------------------------------- Delete, List

struct deletion {
    const char *item;
    int number;
};

static enum status delete_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct deletion *d = ud;
    char job[UUID_SIZE];
    bool removed = false;
    enum status s = lock_job(c, d->item, job, err);
    if (s == STATUS_OK)
        s = remove_text(c, d->item, d->number, &removed, err);
    return s == STATUS_OK && removed ? queue_notify(c, ORCH_ITEM_CHANNEL, d->item, err) : s;
}

static enum status delete_(struct rpc_call *call, const Orchestrator__DeleteSubtitleRequest *req,
                           Orchestrator__DeleteSubtitleReply *ret, struct err *err)
{
    (void)ret;
    struct orch *o = rpc_call_self(call);
    AUTO(item_done) struct item it = {0};
    struct deletion d = {.item = req->item_id, .number = media_text_find_added(req->id)};
    enum status s = own_item(call, req->item_id, &it, err);
    if (s != STATUS_OK)
        return s;
    if (d.number < 0)
        return rpc_bad_field(err, "id", "only what was added ('x1') can be removed, not '%.8s'",
                             req->id);
    s = db_tx(o->db, DB_READ_COMMITTED, delete_tx, &d, err);
    if (s == STATUS_OK) {
        items_changed(o->items, req->item_id);
        sweeper_kick(o->sweeper);
    }
    return s;
}

static enum status list(struct rpc_call *call, const Orchestrator__ListSubtitlesRequest *req,
                        Orchestrator__ListSubtitlesReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    AUTO(item_done) struct item it = {0};
    struct media_text own[MEDIA_MAX_TEXT_TRACKS];
    enum status s = own_item(call, req->item_id, &it, err);
    if (s != STATUS_OK)
        return s;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    s = db_query(o->db,
                 "SELECT " INFO_COLUMNS "WHERE s.item = $1::uuid AND s.state <> 'removed' "
                 "ORDER BY s.number",
                 DB_PARAMS(DB_TEXT(req->item_id)), &r, err);
    if (s != STATUS_OK)
        return s;
    size_t n = it.plan ? media_texts_of_source(it.plan->plan, own) : 0, all = db_result_n_rows(r);
    ret->subtitles = arena_array(a, n + all + 1, sizeof ret->subtitles[0]);
    for (size_t i = 0; ret->subtitles && i < n + all; i++) {
        Orchestrator__SubtitleInfo *info =
            i < n ? new_info(a, &own[i], NULL) : read_info(a, r, i - n);
        if (!info)
            return no_memory(err);
        ret->subtitles[ret->n_subtitles++] = info;
    }
    return ret->subtitles ? STATUS_OK : no_memory(err);
}

enum status subtitles_serve(struct orch *o, struct rpc_server *s, struct err *err)
{
    static const struct orchestrator_subtitle_handlers handlers = {
        .put = put, .delete = delete_, .list = list};
    return orchestrator_subtitle_serve(s, &handlers, o, err);
}
