// Every address that the gateway answers, each with its scope: the table below, and one row for
// every method whose .proto gives it an http rule.
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "cauce/services.rpc.h"
#include "gateway/internal.h"

static const struct http_route fixed[] = {
    {"GET", "/", HTTP_PUBLIC, 0, gateway_page, "index.html"},
    {"GET", "/item/{id}", HTTP_PUBLIC, 0, gateway_page, "item.html"},
    {"GET", "/static/{name}", HTTP_PUBLIC, 0, gateway_asset, NULL},
    {"GET", "/livez", HTTP_PUBLIC, 0, gateway_livez, NULL},
    {"GET", "/readyz", HTTP_PUBLIC, 0, gateway_readyz, NULL},
    {"GET", "/metrics", HTTP_PUBLIC, 0, gateway_metrics, NULL},
    {"GET", "/hls/{token}/{item}/master.m3u8", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_hls_master,
     NULL},
    {"GET", "/hls/{token}/{item}/master-{offer}.m3u8", HTTP_MEDIA_TOKEN, HTTP_CORS,
     gateway_hls_master, NULL},
    {"GET", "/hls/{token}/{item}/manifest.mpd", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_dash_manifest,
     NULL},
    {"GET", "/hls/{token}/{item}/manifest-{offer}.mpd", HTTP_MEDIA_TOKEN, HTTP_CORS,
     gateway_dash_manifest, NULL},
    {"GET", "/hls/{token}/{item}/poster.jpg", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_picture,
     "poster"},
    {"GET", "/hls/{token}/{item}/tiles.jpg", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_picture, "tiles"},
    {"GET", "/hls/{token}/{item}/preview.webp", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_picture,
     "preview"},
    {"GET", "/hls/{token}/{item}/waveform.json", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_picture,
     "waveform"},
    {"GET", "/hls/{token}/{item}/tiles.vtt", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_tiles_index,
     NULL},
    {"GET", "/hls/{token}/{item}/{rendition}.m3u8", HTTP_MEDIA_TOKEN, HTTP_CORS,
     gateway_hls_rendition, NULL},
    {"GET", "/hls/{token}/{item}/{rendition}.vtt", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_text, NULL},
    {"GET", "/hls/{token}/{item}/{rendition}/{n}.vtt", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_text,
     "piece"},
    {"GET", "/hls/{token}/{item}/{rendition}/init.mp4", HTTP_MEDIA_TOKEN, HTTP_CORS,
     gateway_hls_init, NULL},
    {"GET", "/hls/{token}/{item}/{rendition}/{n}.m4s", HTTP_MEDIA_TOKEN, HTTP_CORS,
     gateway_hls_segment, NULL},
    {"GET", "/hls/{token}/{item}/{renditions}.mp4", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_mp4, NULL},
    {"GET", "/file/{token}/{item}", HTTP_MEDIA_TOKEN, HTTP_CORS, gateway_file, NULL},
};

static size_t count_rules(void)
{
    size_t n = 0;
    for (size_t i = 0; i < cauce_n_services; i++)
        for (size_t k = 0; k < cauce_services[i]->n_methods; k++)
            n += cauce_services[i]->methods[k].http != NULL;
    return n;
}

// "POST /api/v1/items/{item_id}/play"
static bool bind_method(const struct rpc_method *m, struct api_binding *b, struct http_route *route)
{
    const char *space = strchr(m->http, ' ');
    size_t len = space ? (size_t)(space - m->http) : sizeof b->verb;
    if (len >= sizeof b->verb || m->kind != RPC_UNARY)
        return false;
    memcpy(b->verb, m->http, len);
    b->verb[len] = '\0';
    b->method = m;
    *route = (struct http_route){
        .method = b->verb,
        .path = space + 1,
        .scope = m->allow & ROLE_ANON ? HTTP_PUBLIC : HTTP_BEARER,
        .handle = gateway_api_handle,
        .data = b,
    };
    return true;
}

enum status gateway_routes_new(struct gateway *g, struct err *err)
{
    size_t n = N_ELEMENTS(fixed);
    g->routes = mem_array(n + count_rules(), sizeof *g->routes);
    g->bindings = mem_array(count_rules(), sizeof *g->bindings);
    if (!g->routes || !g->bindings)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "gateway: out of memory");
    memcpy(g->routes, fixed, sizeof fixed);
    for (size_t i = 0; i < cauce_n_services; i++)
        for (size_t k = 0; k < cauce_services[i]->n_methods; k++) {
            const struct rpc_method *m = &cauce_services[i]->methods[k];
            if (!m->http)
                continue;
            if (!bind_method(m, &g->bindings[n - N_ELEMENTS(fixed)], &g->routes[n]))
                return err_set(err, STATUS_INTERNAL, "%s: '%s' cannot be an HTTP route", m->name,
                               m->http);
            n++;
        }
    g->n_routes = n;
    return STATUS_OK;
}

void gateway_routes_free(struct gateway *g)
{
    mem_free(g->routes);
    mem_free(g->bindings);
}

static enum status authorize_media(struct gateway *g, struct http_request *r, struct err *err)
{
    struct media_context *c = arena_alloc(http_request_arena(r), sizeof *c);
    if (!c)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s =
        svc_tokens_verify_media(g->svc->tokens, http_request_var(r, "token"), &c->claims, err);
    if (s != STATUS_OK)
        return s;
    if (!str_eq(c->claims.item, http_request_var(r, "item")))
        return err_set(err, STATUS_PERMISSION_DENIED, "the token is for another item");
    if (!(c->claims.rights & (SVC_RIGHT_STREAM | SVC_RIGHT_DOWNLOAD)))
        return err_set(err, STATUS_PERMISSION_DENIED, "the token does not allow playing");
    c->g = g;
    http_request_set_context(r, c);
    return STATUS_OK;
}

// The service that owns the method looks at the token again, and at the user's roles.
static enum status authorize_bearer(struct gateway *g, struct http_request *r, struct err *err)
{
    struct rpc_user user;
    const char *token = http_request_bearer(r);
    if (!token)
        return err_set(err, STATUS_UNAUTHENTICATED,
                       "this needs 'Authorization: Bearer <access token>'; POST /api/v1/login");
    enum status s = svc_tokens_verify_access(g->svc->tokens, token, strlen(token), &user, err);
    if (s == STATUS_OK && !rpc_server_trusts_user(g->svc->server, &user))
        return err_set(err, STATUS_UNAUTHENTICATED,
                       "the login has ended or its rights have changed: renew the token");
    return s;
}

enum status gateway_authorize(void *gateway, struct http_request *r, struct err *err)
{
    switch (http_request_route(r)->scope) {
    case HTTP_PUBLIC:
        return STATUS_OK;
    case HTTP_MEDIA_TOKEN:
        return authorize_media(gateway, r, err);
    case HTTP_BEARER:
        return authorize_bearer(gateway, r, err);
    }
    return err_set(err, STATUS_PERMISSION_DENIED, "this route has no scope");
}
