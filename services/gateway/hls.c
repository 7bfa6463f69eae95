// Playlists, the DASH manifest, the index of tiles and init segments: pure functions of the plan.
#include <stdio.h>

#include "gateway/internal.h"
#include "media/cmaf.h"
#include "media/dash.h"
#include "media/image.h"
#include "media/playlist.h"

#define PLAYLIST_TYPE "application/vnd.apple.mpegurl"
#define MANIFEST_TYPE "application/dash+xml"
enum { MAX_PLAYLIST_BYTES = 16 << 20 };

// etag: of everything that shaped it.
static void respond_playlist(struct http_request *r, struct edge_plan *p, const char *type,
                             const char *etag, enum status s, struct buf *b, const struct err *err)
{
    struct err own = ERR_INIT;
    if (s == STATUS_OK && (s = gateway_texts_list(p, b, &own)) != STATUS_OK)
        err = &own;
    if (s != STATUS_OK)
        gateway_respond_error(r, s, err);
    else
        http_respond(r, &(struct http_response){.type = type,
                                                .etag = etag,
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
    respond_playlist(r, p, type, p->version, s, &b, &err);
}

// What the address offers: "master-hevc-p720.m3u8". Answers 404 and gives false when it is no
// offer.
static bool find_offer(struct http_request *r, struct media_offer *ret)
{
    struct err err = ERR_INIT;
    const char *name = http_request_var(r, "offer");
    if (media_offer_parse(name ? name : "", ret, &err) == STATUS_OK)
        return true;
    http_respond_problem(r, STATUS_NOT_FOUND, err.msg, 0);
    return false;
}

static enum status make_tiles_index(const struct media_plan *p, struct buf *b, struct err *err)
{
    return media_tiles_index(p, "tiles.jpg", b, err);
}

static void master(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    struct media_offer offer;
    struct err err = ERR_INIT;
    struct buf b;
    (void)g;
    if (!find_offer(r, &offer))
        return;
    buf_init(&b, MAX_PLAYLIST_BYTES);
    enum status s = media_playlist_master(p->plan, &offer, p->rates, &b, &err);
    respond_playlist(r, p, PLAYLIST_TYPE, p->rated, s, &b, &err);
}

static void manifest(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    struct media_offer offer;
    struct err err = ERR_INIT;
    struct buf b;
    (void)g;
    if (!find_offer(r, &offer))
        return;
    buf_init(&b, MAX_PLAYLIST_BYTES);
    enum status s = media_dash_manifest(p->plan, &offer, p->rates, &b, &err);
    respond_playlist(r, p, MANIFEST_TYPE, p->rated, s, &b, &err);
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
    char name[16];
    bool keys = media_playlist_keys_of(http_request_var(r, "rendition"), name, sizeof name);
    int i = keys ? media_plan_find(p->plan, name) : find_rendition(r, p);
    if (i < 0) {
        if (keys)
            http_respond_problem(r, STATUS_NOT_FOUND, "no such rendition", 0);
        return;
    }
    buf_init(&b, MAX_PLAYLIST_BYTES);
    enum status s = keys ? media_playlist_keys(p->plan, (size_t)i, &b, &err)
                         : media_playlist_rendition(p->plan, (size_t)i, &b, &err);
    respond_playlist(r, p, PLAYLIST_TYPE, p->version, s, &b, &err);
}

static void init(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    char etag[64];
    (void)g;
    int i = find_rendition(r, p);
    if (i < 0)
        return;
    // With an edit list that takes off what segments.c adds to the offsets of pictures.
    const struct media_rendition *m = &p->plan->renditions[i];
    bool video = m->kind == MEDIA_VIDEO;
    struct err err = ERR_INIT;
    struct buf b;
    buf_init(&b, 2 * MEDIA_MAX_INIT_BYTES);
    enum status s = media_cmaf_merge_init(p->plan, video ? i : -1, video ? -1 : i, &b, &err);
    snprintf(etag, sizeof etag, "%s-%s-s", p->version, m->id);
    if (s != STATUS_OK)
        gateway_respond_error(r, s, &err);
    else
        http_respond(r,
                     &(struct http_response){.type = video ? "video/mp4" : "audio/mp4",
                                             .etag = etag,
                                             .cache_control = "private, max-age=86400, immutable",
                                             .ranges = true,
                                             .bytes = b.data,
                                             .len = b.len});
    buf_done(&b);
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
