#pragma once
// The gateway's state, and what its files lend each other.
//
// Whatever the gateway has under way on behalf of a request (a call, a job on the pool, a stream)
// is an "operation": stopping cancels them all and waits until none is left.
#include <pthread.h>
#include <stdatomic.h>

#include "gateway/cache.h"
#include "gateway/gateway.h"
#include "http/http.h"
#include "media/plan.h"
#include "media/playlist.h"
#include "media/texts.h"
#include "object/object.h"

struct gateway_options {
    struct svc_options common;
    char **listen_rpc, **listen_http;
    int64_t cache_bytes, max_conns, max_conns_per_addr, segment_wait_ms;
};

struct gateway {
    struct svc *svc;
    const struct gateway_options *options;
    struct http_server *http;
    struct http_route *routes;
    size_t n_routes;
    struct api_binding *bindings; // of the API routes
    struct edge_cache *segments, *plans, *files;
    struct cancel *stopping;
    char asset_etags[8][33];
    pthread_mutex_t lock;
    pthread_cond_t idle;
    unsigned n_ops;
    atomic_uint n_making; // indices of files
};

void gateway_op_begin(struct gateway *g);
void gateway_op_end(struct gateway *g);

// ---- router.c ----
// The client of the service that owns a method; an rpc_route_fn.
enum status gateway_route(void *gateway, const struct rpc_method *m, const char *route,
                          struct rpc_client **ret, struct err *err);
// Is a call of cauce.node.v1 about another node than this one? An rpc_elsewhere_fn.
bool gateway_is_elsewhere(void *gateway, const struct rpc_method *m, const char *route);

// ---- cluster.c ----
enum status gateway_cluster(void *gateway, struct rpc_call *call,
                            const struct Node__ClusterRequest *req, struct Node__ClusterReply *ret,
                            struct err *err);

// ---- routes.c ----
enum status gateway_routes_new(struct gateway *g, struct err *err);
void gateway_routes_free(struct gateway *g);
enum status gateway_authorize(void *gateway, struct http_request *r, struct err *err);

// ---- answer.c ----
// Which trace a request is of: for http_opts.
void gateway_trace(void *gateway, struct http_request *r, struct http_trace *ret);
// For calls made on behalf of a request. Copy it before the request can be answered.
struct rpc_trace gateway_trace_of(const struct http_request *r);
// Answer with what went wrong; unavailable things say when to come again. d: of the call that
// failed; zeros when there is none. Everything is borrowed for the call.
void gateway_respond_failure(struct http_request *r, enum status s, const struct err *err,
                             const struct rpc_details *d);
void gateway_respond_error(struct http_request *r, enum status s, const struct err *err);

// ---- api.c ----
struct api_binding { // one method with an http rule
    const struct rpc_method *method;
    char verb[8];
};
void gateway_api_handle(struct http_request *r, void *gateway);

// ---- plans.c ----
struct edge_plan { // an item's plan, as cached
    struct edge_object base;
    struct media_plan *plan;
    char version[17];                              // of the plan's bytes: part of etags and keys
    char rated[17];                                // of those and the rates: of playlists
    struct media_rate rates[MEDIA_MAX_RENDITIONS]; // of those that are finished
    bool has_source;
    uint8_t source_digest[OBJECT_DIGEST_SIZE];
    int64_t source_size;
    char source_route[CHAN_NODE_ID_SIZE], source_type[64], title[256];
    struct media_text *texts; // that a player may choose
    size_t n_texts;
};
// Call next(r, gateway, plan) when the plan of the item that the request's token is for is there;
// answers the request otherwise. The plan is borrowed for the call.
typedef void (*gateway_plan_fn)(struct http_request *r, struct gateway *g, struct edge_plan *p);
void gateway_with_plan(struct http_request *r, struct gateway *g, gateway_plan_fn next);

// ---- segments.c, hls.c, file.c, pages.c: handlers ----
struct media_context { // what authorize leaves for media routes
    struct svc_media_claims claims;
    struct gateway *g;
    gateway_plan_fn next;
    bool is_key;   // the segment's first picture is wanted
    bool is_piece; // of a text, for HLS
    int64_t piece;
};
void gateway_segment(struct http_request *r, struct gateway *g, struct edge_plan *p);
void gateway_image(struct http_request *r, struct gateway *g, struct edge_plan *p);
void gateway_text(struct http_request *r, void *gateway); // route's data: not NULL for a piece
void gateway_hls_master(struct http_request *r, void *gateway);
void gateway_dash_manifest(struct http_request *r, void *gateway);
void gateway_hls_rendition(struct http_request *r, void *gateway);
void gateway_hls_init(struct http_request *r, void *gateway);
void gateway_hls_segment(struct http_request *r, void *gateway);
void gateway_picture(struct http_request *r, void *gateway); // route's data: its name
void gateway_tiles_index(struct http_request *r, void *gateway);
void gateway_file(struct http_request *r, void *gateway);
void gateway_mp4(struct http_request *r, void *gateway);
// A Content-Disposition by the item's title.
void gateway_saved_as(char *dst, size_t size, const struct edge_plan *p, const char *suffix);
void gateway_page(struct http_request *r, void *gateway);
void gateway_asset(struct http_request *r, void *gateway);
void gateway_livez(struct http_request *r, void *gateway);
void gateway_readyz(struct http_request *r, void *gateway);
void gateway_metrics(struct http_request *r, void *gateway);
void gateway_pages_init(struct gateway *g);

// ---- texts.c ----
struct Orchestrator__PlanReply;
enum status gateway_texts_read(const struct Orchestrator__PlanReply *reply, struct edge_plan *p,
                               struct err *err);
// The item's texts into a master playlist or a manifest; other playlists stay as they are.
enum status gateway_texts_list(const struct edge_plan *p, struct buf *b, struct err *err);
// Answers when the rendition of the address is a text.
bool gateway_text_playlist(struct http_request *r, const struct edge_plan *p);
// Is it a request for a text, or a piece of one, that the item has? Answers 404 otherwise.
bool gateway_text_request(struct http_request *r, const struct edge_plan *p);
void gateway_respond_piece(struct http_request *r, const void *text, size_t n, const char *etag);

// Bytes [offset, offset + n) of an object from the origin of that name, on behalf of the request of
// that trace; blocks. ret_bytes holds n.
enum status gateway_read_object(struct gateway *g, const char *route,
                                const uint8_t digest[OBJECT_DIGEST_SIZE], int64_t offset, size_t n,
                                const struct rpc_trace *trace, uint8_t *ret_bytes, struct err *err);
