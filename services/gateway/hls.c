// Playlists, the DASH manifest, the index of tiles and init segments: pure functions of the plan.
#include <stdio.h>

#include "gateway/internal.h"
#include "media/dash.h"
#include "media/image.h"
#include "media/playlist.h"

#define PLAYLIST_TYPE "application/vnd.apple.mpegurl"
#define MANIFEST_TYPE "application/dash+xml"
enum { MAX_PLAYLIST_BYTES = 16 << 20 };

static void respond_playlist(struct http_request *r, struct edge_plan *p, const char *type,
                             enum status s, struct buf *b, const struct err *err)
{
    struct err own = ERR_INIT;
    if (s == STATUS_OK && (s = gateway_texts_list(p, b, &own)) != STATUS_OK)
        err = &own;
    if (s != STATUS_OK)
        gateway_respond_error(r, s, err);
    else
        http_respond(r, &(struct http_response){.type = type,
                                                .etag = p->version,
                                                .cache_control = "private, max-age=60",
                                                .bytes = b->data,
                                                .len = b->len});
    buf_done(b);
}

// A text of the whole plan.
static void respond_made(struct http_request *r, struct edge_plan *p, const char *type,
                         enum status (*make)(const struct media_plan *, struct buf *, struct err *))
{
    struct err err = ERR_INIT;
    struct buf b;
    buf_init(&b, MAX_PLAYLIST_BYTES);
    enum status s = make(p->plan, &b, &err);
    respond_playlist(r, p, type, s, &b, &err);
}

static enum status make_master(const struct media_plan *p, struct buf *b, struct err *err)
{
    return media_playlist_master(p, 0, 0, b, err);
}

static enum status make_manifest(const struct media_plan *p, struct buf *b, struct err *err)
{
    return media_dash_manifest(p, 0, 0, b, err);
}

static enum status make_tiles_index(const struct media_plan *p, struct buf *b, struct err *err)
{
    return media_tiles_index(p, "tiles.jpg", b, err);
}

static void master(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    (void)g;
    respond_made(r, p, PLAYLIST_TYPE, make_master);
}

static void manifest(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    (void)g;
    respond_made(r, p, MANIFEST_TYPE, make_manifest);
}

static void tiles_index(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    (void)g;
    if (media_image_is_planned(p->plan, MEDIA_IMAGE_TILES))
        respond_made(r, p, "text/vtt", make_tiles_index);
    else
        http_respond_problem(r, STATUS_NOT_FOUND, "the item has no tiles", 0);
}

// The rendition that the address names; answers 404 and gives -1 when there is none.
static int find_rendition(struct http_request *r, struct edge_plan *p)
{
    int i = media_plan_find(p->plan, http_request_var(r, "rendition"));
    if (i < 0)
        http_respond_problem(r, STATUS_NOT_FOUND, "no such rendition", 0);
    return i;
}

static void rendition(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    struct err err = ERR_INIT;
    struct buf b;
    (void)g;
    if (gateway_text_playlist(r, p))
        return;
    int i = find_rendition(r, p);
    if (i < 0)
        return;
    buf_init(&b, MAX_PLAYLIST_BYTES);
    enum status s = media_playlist_rendition(p->plan, (size_t)i, &b, &err);
    respond_playlist(r, p, PLAYLIST_TYPE, s, &b, &err);
}

static void init(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    char etag[64];
    (void)g;
    int i = find_rendition(r, p);
    if (i < 0)
        return;
    const struct media_rendition *m = &p->plan->renditions[i];
    snprintf(etag, sizeof etag, "%s-%s", p->version, m->id);
    http_respond(r,
                 &(struct http_response){.type = m->kind == MEDIA_AUDIO ? "audio/mp4" : "video/mp4",
                                         .etag = etag,
                                         .cache_control = "private, max-age=86400, immutable",
                                         .ranges = true,
                                         .bytes = m->init,
                                         .len = m->init_len});
}

void gateway_hls_master(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, master);
}

void gateway_dash_manifest(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, manifest);
}

void gateway_hls_rendition(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, rendition);
}

void gateway_hls_init(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, init);
}

void gateway_hls_segment(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, gateway_segment);
}

void gateway_picture(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, gateway_image);
}

void gateway_tiles_index(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, tiles_index);
}
