// What is said in items, and when: the cues of their subtitles, for searching.
#include "internal.h"

#include <string.h>

#include "base/str.h"

#define MAX_CUES 32768
#define MAX_WORDS 8192             // bytes of one cue
#define MAX_JSON_BYTES (32U << 20) // of all, escaped

// ---------------------------------------------------------------- telling

struct setting {
    const Store__SetWordsRequest *req;
    const char *json;
};

static enum status set_tx(struct db_conn *db, void *ud, struct err *err)
{
    const struct setting *s = ud;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    // Locked, so that two that tell of one text come one after the other.
    enum status st = db_exec(db, "SELECT FROM store.item WHERE id = $1::uuid FOR NO KEY UPDATE",
                             DB_PARAMS(DB_TEXT(s->req->item_id)), &r, err);
    if (st == STATUS_OK && db_result_n_rows(r) == 0)
        st = err_set(err, STATUS_NOT_FOUND, "no such item");
    if (st == STATUS_OK)
        st = db_exec(db, "DELETE FROM store.cue WHERE item = $1::uuid AND subtitle = $2::text",
                     DB_PARAMS(DB_TEXT(s->req->item_id), DB_TEXT(s->req->subtitle)), NULL, err);
    if (st != STATUS_OK || s->req->n_cues == 0)
        return st;
    return db_exec(db,
                   "INSERT INTO store.cue (item, subtitle, start_ms, words)"
                   " SELECT $1::uuid, $2::text, (c->>0)::bigint, c->>1"
                   " FROM jsonb_array_elements($3::jsonb) c",
                   DB_PARAMS(DB_TEXT(s->req->item_id), DB_TEXT(s->req->subtitle), DB_TEXT(s->json)),
                   NULL, err);
}

static enum status put_json(const Store__SetWordsRequest *req, struct buf *b, struct err *err)
{
    buf_putc(b, '[');
    for (size_t i = 0; i < req->n_cues; i++) {
        const Store__SpokenWords *c = req->cues[i];
        size_t n = strlen(c->words);
        if (c->start_ms < 0 || n > MAX_WORDS)
            return rpc_bad_field(err, "cues", "cue %zu begins at %lld ms and has %zu bytes", i,
                                 (long long)c->start_ms, n);
        buf_printf(b, "%s[%lld,", i ? "," : "", (long long)c->start_ms);
        buf_put_json_string(b, c->words, n);
        buf_putc(b, ']');
    }
    buf_putc(b, ']');
    return b->failed ? store_no_memory(err) : STATUS_OK;
}

enum status store_spoken_set(struct store_call *c, const Store__SetWordsRequest *req,
                             Store__SetWordsReply *ret, struct err *err)
{
    (void)ret;
    enum status s = store_check_id(req->item_id, "item_id", err);
    size_t n = strlen(req->subtitle);
    if (s == STATUS_OK && (n == 0 || n > 16))
        s = rpc_bad_field(err, "subtitle", "a subtitle's id has 1 to 16 bytes");
    if (s == STATUS_OK && req->n_cues > MAX_CUES)
        s = rpc_bad_field(err, "cues", "%zu cues; at most %d", req->n_cues, MAX_CUES);
    AUTO(buf_done) struct buf json;
    buf_init(&json, MAX_JSON_BYTES);
    if (s == STATUS_OK)
        s = put_json(req, &json, err);
    struct setting set = {.req = req, .json = buf_str(&json)};
    return s == STATUS_OK ? db_tx(c->store->db, DB_READ_COMMITTED, set_tx, &set, err) : s;
}

// ---------------------------------------------------------------- searching

static enum status fill_hits(const struct store_call *c, const struct db_result *r,
                             Store__SpokenReply *ret, struct err *err)
{
    size_t n = db_result_n_rows(r);
    Store__SpokenHit *hits = arena_array(c->arena, n + 1, sizeof *hits);
    Store__Item *items = arena_array(c->arena, n + 1, sizeof *items);
    ret->hits = arena_array(c->arena, n + 1, sizeof *ret->hits);
    if (!hits || !items || !ret->hits)
        return store_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        enum status s = store_item_read(c, r, i, &items[i], err);
        if (s != STATUS_OK)
            return s;
        store__spoken_hit__init(&hits[i]);
        hits[i].item = &items[i];
        hits[i].subtitle = store_dup(c, r, i, STORE_ITEM_N_COLUMNS);
        hits[i].start_ms = db_i64(r, i, STORE_ITEM_N_COLUMNS + 1);
        // Whoever has not paid for an item does not get its text this way.
        bool readable = !items[i].price || items[i].owned || store_is_admin(c);
        hits[i].words =
            readable ? store_dup(c, r, i, STORE_ITEM_N_COLUMNS + 2) : arena_strdup(c->arena, "");
        if (!hits[i].subtitle || !hits[i].words)
            return store_no_memory(err);
        ret->hits[ret->n_hits++] = &hits[i];
    }
    return STATUS_OK;
}

enum status store_spoken_search(struct store_call *c, const Store__SearchRequest *req,
                                Store__SpokenReply *ret, struct err *err)
{
    struct store_page page;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    if (!req->query[strspn(req->query, " \t\r\n")] || strlen(req->query) > STORE_QUERY_MAX)
        return rpc_bad_field(err, "query", "query must have 1 to %d bytes", STORE_QUERY_MAX);
    enum status s = store_page_parse(req->page, &page, err);
    if (s == STATUS_OK)
        s = db_query(c->store->db,
                     "SELECT " STORE_ITEM_COLUMNS ", c.subtitle, c.start_ms, c.words"
                     " FROM store.cue c JOIN store.item i ON i.id = c.item,"
                     " websearch_to_tsquery('simple', $2) q WHERE c.search @@ q"
                     " AND (i.published OR $3 OR i.owner = $1::uuid)"
                     " ORDER BY ts_rank(c.search, q) DESC, i.id DESC, c.start_ms, c.subtitle"
                     " LIMIT $4",
                     DB_PARAMS(DB_TEXT(store_caller_id(c)), DB_TEXT(req->query),
                               DB_BOOL(store_is_admin(c)), DB_I64(page.size)),
                     &r, err);
    return s == STATUS_OK ? fill_hits(c, r, ret, err) : s;
}
