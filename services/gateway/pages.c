// The pages and what they need, built into the program, and what operators ask: alive, ready,
// metrics.
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "gateway/internal.h"
#include "gateway/web.h"

#define CSP                                                                                        \
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "                \
    "media-src 'self' blob:; worker-src 'self' blob:; img-src 'self' data:; base-uri 'none'; "     \
    "form-action 'none'; frame-ancestors 'none'"

void gateway_pages_init(struct gateway *g)
{
    uint8_t digest[16];
    for (size_t i = 0; i < gateway_n_web_files && i < N_ELEMENTS(g->asset_etags); i++) {
        const struct gateway_web_file *f = &gateway_web_files[i];
        crypto_blake2b(digest, sizeof digest, f->start, (size_t)(f->end - f->start), NULL, 0, NULL);
        str_hex(g->asset_etags[i], digest, sizeof digest);
    }
}

static bool respond_file(struct http_request *r, struct gateway *g, const char *name)
{
    static const struct http_header headers[] = {{"Content-Security-Policy", CSP}};
    for (size_t i = 0; i < gateway_n_web_files; i++) {
        const struct gateway_web_file *f = &gateway_web_files[i];
        if (!str_eq(f->name, name))
            continue;
        http_respond(r, &(struct http_response){.type = f->type,
                                                .etag = g->asset_etags[i],
                                                .cache_control = "no-cache",
                                                .headers = headers,
                                                .n_headers = N_ELEMENTS(headers),
                                                .bytes = f->start,
                                                .len = (size_t)(f->end - f->start)});
        return true;
    }
    return false;
}

void gateway_page(struct http_request *r, void *gateway)
{
    if (!respond_file(r, gateway, http_request_route(r)->data))
        http_respond_problem(r, STATUS_NOT_FOUND, "no such page", 0);
}

void gateway_asset(struct http_request *r, void *gateway)
{
    const char *name = http_request_var(r, "name");
    if (str_ends_with(name, ".html") || !respond_file(r, gateway, name))
        http_respond_problem(r, STATUS_NOT_FOUND, "no such file", 0);
}

static void respond_text(struct http_request *r, const char *text)
{
    http_respond(r, &(struct http_response){
                        .type = "text/plain; charset=utf-8", .bytes = text, .len = strlen(text)});
}

void gateway_livez(struct http_request *r, void *gateway)
{
    (void)gateway;
    respond_text(r, "alive\n");
}

// Ready means that asking makes sense. It does while services behind are away: what is cached plays
// on, and the rest is answered with 503; taking every gateway out of a load balancer at once,
// because one database is down, would help nobody.
void gateway_readyz(struct http_request *r, void *gateway)
{
    struct gateway *g = gateway;
    if (cancel_is_fired(g->stopping))
        http_respond_problem(r, STATUS_UNAVAILABLE, "shutting down", 1);
    else
        respond_text(r, "ready\n");
}

static void metric(struct buf *b, const char *name, const char *type, const char *labels,
                   uint64_t value)
{
    if (type)
        buf_printf(b, "# TYPE cauce_gateway_%s %s\n", name, type);
    buf_printf(b, "cauce_gateway_%s%s %llu\n", name, labels, (unsigned long long)value);
}

static void http_metrics(struct buf *b, struct gateway *g)
{
    struct http_stats h;
    char label[32];
    http_server_get_stats(g->http, &h);
    for (unsigned i = 1; i < N_ELEMENTS(h.n_by_class); i++) {
        snprintf(label, sizeof label, "{code=\"%uxx\"}", i);
        metric(b, "http_requests_total", i == 1 ? "counter" : NULL, label, h.n_by_class[i]);
    }
    metric(b, "http_connections", "gauge", "", h.conns_open);
    metric(b, "http_connections_total", "counter", "", h.conns_total);
    metric(b, "http_connections_timed_out_total", "counter", "", h.conns_timed_out);
    metric(b, "http_body_bytes_total", "counter", "", h.body_bytes_in);
}

static void cache_metrics(struct buf *b, struct edge_cache *c, const char *label, bool first)
{
    struct edge_stats e;
    edge_cache_get_stats(c, &e);
    const struct {
        const char *name, *type;
        uint64_t value;
    } rows[] = {
        {"cache_hits_total", "counter", e.hits},     {"cache_misses_total", "counter", e.misses},
        {"cache_joined_total", "counter", e.joined}, {"cache_evicted_total", "counter", e.evicted},
        {"cache_bytes", "gauge", e.bytes},           {"cache_objects", "gauge", e.objects},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++)
        metric(b, rows[i].name, first ? rows[i].type : NULL, label, rows[i].value);
}

static void rpc_metrics(struct buf *b, struct gateway *g)
{
    struct rpc_server_stats s;
    rpc_server_get_stats(g->svc->server, &s);
    metric(b, "rpc_calls_total", "counter", "", s.n_calls);
    metric(b, "rpc_calls_failed_total", "counter", "", s.n_failed);
    metric(b, "rpc_calls_open", "gauge", "", s.calls_open);
    metric(b, "rpc_connections", "gauge", "", s.conns_open);
    metric(b, "rpc_connections_refused_total", "counter", "", s.n_conns_refused);
    metric(b, "rpc_bad_records_total", "counter", "", s.bad_records);
    metric(b, "rpc_half_open", "gauge", "", s.half_open);
    metric(b, "rpc_strangers_turned_away_total", "counter", "", s.n_turned_away);
    metric(b, "rpc_handshakes_refused_total", "counter", "", s.n_handshakes_refused);
    metric(b, "rpc_half_open_crowded_out_total", "counter", "", s.n_crowded_out);
    metric(b, "rpc_received_bytes_total", "counter", "", s.bytes_in);
    metric(b, "rpc_sent_bytes_total", "counter", "", s.bytes_out);
}

void gateway_metrics(struct http_request *r, void *gateway)
{
    struct gateway *g = gateway;
    struct buf b;
    buf_init(&b, 4 << 20);
    http_metrics(&b, g);
    cache_metrics(&b, g->segments, "{of=\"segments\"}", true);
    cache_metrics(&b, g->plans, "{of=\"plans\"}", false);
    cache_metrics(&b, g->files, "{of=\"files\"}", false);
    rpc_metrics(&b, g);
    svc_metrics_put(g->svc, &b);
    if (b.failed)
        http_respond_problem(r, STATUS_RESOURCE_EXHAUSTED, "out of memory", 1);
    else
        http_respond(r, &(struct http_response){.type = "text/plain; version=0.0.4; charset=utf-8",
                                                .bytes = b.data,
                                                .len = b.len});
    buf_done(&b);
}
