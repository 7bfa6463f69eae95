// The source as it was uploaded, with ranges. It goes through in blocks, each fetched when the
// client has taken the one before: a slow client costs memory for two blocks and no thread.
#include <stdio.h>

#include "base/mem.h"
#include "base/str.h"
#include "gateway/internal.h"

struct file {
    struct gateway *g;
    struct edge_plan *plan;
    struct rpc_trace trace;
};

struct block {
    struct file *file;
    struct http_stream *stream;
    int64_t offset;
    size_t n;
};

static void block_job(void *ud)
{
    struct block *b = ud;
    struct edge_plan *p = b->file->plan;
    struct gateway *g = b->file->g;
    struct err err = ERR_INIT;
    const uint8_t *before = log_set_trace(b->file->trace.trace_id);
    AUTO(mem_free_p) uint8_t *bytes = mem_alloc(b->n);
    enum status s = bytes ? gateway_read_object(g, p->source_route, p->source_digest, b->offset,
                                                b->n, &b->file->trace, bytes, &err)
                          : err_set(&err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    if (s != STATUS_OK)
        log_warn(g->svc->log, "file_cut_off", F_STR("origin", p->source_route),
                 F_I64("offset", b->offset), F_ERR(&err));
    log_set_trace(before);
    http_stream_give(b->stream, bytes, s == STATUS_OK ? b->n : 0);
    mem_free(b);
    gateway_op_end(g);
}

static void want(void *ud, struct http_stream *s, int64_t offset, size_t max)
{
    struct file *f = ud;
    struct block *b = mem_alloc(sizeof *b);
    if (b)
        *b = (struct block){.file = f, .stream = s, .offset = offset, .n = max};
    gateway_op_begin(f->g);
    if (b && work_pool_submit(f->g->svc->pool, block_job, b))
        return;
    mem_free(b);
    gateway_op_end(f->g);
    http_stream_give(s, NULL, 0);
}

static void done(void *ud)
{
    struct file *f = ud;
    struct gateway *g = f->g;
    edge_object_unref(&f->plan->base);
    mem_free(f);
    gateway_op_end(g);
}

// A file name of the title: nothing that a header or a file system takes for more than a letter.
void gateway_saved_as(char *dst, size_t size, const struct edge_plan *p, const char *suffix)
{
    char name[80];
    size_t n = 0;
    for (const char *c = p->title; *c && n + 1 < sizeof name; c++) {
        bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
                     (*c >= '0' && *c <= '9') || *c == '-' || *c == ' ';
        name[n++] = plain ? *c : '_';
    }
    name[n] = '\0';
    snprintf(dst, size, "attachment; filename=\"%s%s\"", n ? name : "download", suffix);
}

static void respond(struct http_request *r, struct gateway *g, struct edge_plan *p)
{
    const struct media_context *c = http_request_context(r);
    const char *download = c->claims.rights & SVC_RIGHT_STREAM ? NULL : "1";
    char etag[OBJECT_HEX_SIZE], saved_as[160] = "inline";
    if (!p->has_source) {
        http_respond_problem(r, STATUS_NOT_FOUND, "the source is not kept", 0);
        return;
    }
    struct file *f = mem_alloc(sizeof *f);
    if (!f) {
        http_respond_problem(r, STATUS_RESOURCE_EXHAUSTED, "out of memory", 2);
        return;
    }
    if (download)
        gateway_saved_as(saved_as, sizeof saved_as, p, "");
    *f = (struct file){.g = g, .plan = p, .trace = gateway_trace_of(r)};
    edge_object_ref(&p->base);
    gateway_op_begin(g);
    str_hex(etag, p->source_digest, sizeof p->source_digest);
    // Somebody else uploaded this: a browser must not take it for a page of ours.
    const struct http_header headers[] = {
        {"Content-Disposition", saved_as},
        {"Content-Security-Policy", "default-src 'none'; media-src 'self'; sandbox"},
    };
    const struct http_source source = {.want = want, .done = done, .ud = f};
    bool is_media =
        str_starts_with(p->source_type, "video/") || str_starts_with(p->source_type, "audio/");
    http_respond(
        r, &(struct http_response){.type = is_media ? p->source_type : "application/octet-stream",
                                   .etag = etag,
                                   .cache_control = "private, max-age=86400, immutable",
                                   .ranges = true,
                                   .headers = headers,
                                   .n_headers = N_ELEMENTS(headers),
                                   .source = &source,
                                   .size = p->source_size});
}

void gateway_file(struct http_request *r, void *gateway)
{
    gateway_with_plan(r, gateway, respond);
}
