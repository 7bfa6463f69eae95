// Text beside the film: its place in playlists and manifests, its own playlists, and pieces of it.
#include "media/texts.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "cauce/orchestrator.rpc.h"
#include "gateway/internal.h"
#include "media/webvtt.h"

enum {
    MAX_TEXTS = 256,
    MAX_PLAYLIST_BYTES = 1 << 20,
    MAX_PIECE_BYTES = MEDIA_MAX_TEXT_BYTES + 256
};

enum status gateway_texts_read(const Orchestrator__PlanReply *reply, struct edge_plan *p,
                               struct err *err)
{
    size_t n = reply->n_subtitles < MAX_TEXTS ? reply->n_subtitles : MAX_TEXTS;
    p->texts = mem_array(n ? n : 1, sizeof *p->texts);
    if (!p->texts)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");
    for (size_t i = 0; i < n; i++) {
        const Orchestrator__SubtitleInfo *s = reply->subtitles[i];
        struct media_text *t = &p->texts[p->n_texts];
        *t = (struct media_text){.is_default = s->is_default,
                                 .is_forced = s->forced,
                                 .is_hearing_impaired = s->hearing_impaired};
        (void)str_copy(t->language, sizeof t->language, s->language);
        (void)str_copy(t->title, sizeof t->title, s->title);
        bool known = str_copy(t->id, sizeof t->id, s->id) &&
                     (media_text_find(p->plan, t->id) >= 0 || media_text_find_added(t->id) >= 0);
        p->n_texts += known;
    }
    return STATUS_OK;
}

// One that was added a moment ago is not known here yet: whether it exists is said by whoever
// locates it.
static bool may_have_text(const struct edge_plan *p, const char *id)
{
    if (media_text_find_added(id) >= 0)
        return true;
    for (size_t i = 0; i < p->n_texts; i++)
        if (str_eq(p->texts[i].id, id))
            return true;
    return false;
}

enum status gateway_texts_list(const struct edge_plan *p, struct buf *b, struct err *err)
{
    if (p->n_texts == 0)
        return STATUS_OK;
    if (str_starts_with(buf_str(b), "#EXTM3U"))
        return media_texts_into_master(p->texts, p->n_texts, b, err);
    if (str_starts_with(buf_str(b), "<?xml"))
        return media_texts_into_manifest(p->texts, p->n_texts, b, err);
    return STATUS_OK;
}

bool gateway_text_playlist(struct http_request *r, const struct edge_plan *p)
{
    const char *id = http_request_var(r, "rendition");
    struct err err = ERR_INIT;
    struct buf b;
    if (!may_have_text(p, id))
        return false;
    buf_init(&b, MAX_PLAYLIST_BYTES);
    enum status s = media_text_playlist(p->plan, id, &b, &err);
    if (s != STATUS_OK)
        gateway_respond_error(r, s, &err);
    else
        http_respond(r, &(struct http_response){.type = "application/vnd.apple.mpegurl",
                                                .etag = p->version,
                                                .cache_control = "private, max-age=60",
                                                .bytes = b.data,
                                                .len = b.len});
    buf_done(&b);
    return true;
}

bool gateway_text_request(struct http_request *r, const struct edge_plan *p)
{
    struct media_context *c = http_request_context(r);
    int64_t n = -1, last = (int64_t)media_text_n_pieces(p->plan) - 1;
    bool piece = http_request_route(r)->data != NULL;
    if (!may_have_text(p, http_request_var(r, "rendition")) ||
        (piece && str_parse_i64(http_request_var(r, "n"), 0, last, &n, NULL) != STATUS_OK)) {
        http_respond_problem(r, STATUS_NOT_FOUND, "the item has no such text", 0);
        return false;
    }
    c->is_piece = piece;
    c->piece = n;
    return true;
}

void gateway_respond_piece(struct http_request *r, const void *text, size_t n, const char *etag)
{
    const struct media_context *c = http_request_context(r);
    char own_etag[96];
    struct media_webvtt w = {.n = 0};
    struct err err = ERR_INIT;
    struct buf b;
    buf_init(&b, MAX_PIECE_BYTES);
    enum status s = media_webvtt_parse(text, n, &w, &err);
    if (s == STATUS_OK)
        s = media_webvtt_slice(&w, c->piece * MEDIA_TEXT_PIECE_US,
                               (c->piece + 1) * MEDIA_TEXT_PIECE_US, &b, &err);
    snprintf(own_etag, sizeof own_etag, "%s-%lld", etag, (long long)c->piece);
    if (s != STATUS_OK)
        gateway_respond_error(r, STATUS_DATA_LOSS, &err);
    else
        http_respond(r,
                     &(struct http_response){.type = "text/vtt",
                                             .etag = own_etag,
                                             .cache_control = "private, max-age=86400, immutable",
                                             .bytes = b.data,
                                             .len = b.len});
    media_webvtt_done(&w);
    buf_done(&b);
}
