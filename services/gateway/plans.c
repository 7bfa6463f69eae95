// Plans are what playlists are made of: fetched once, then looked at again every now and then in
// the background, and used on while the orchestrator is away.
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/orchestrator.rpc.h"
#include "gateway/internal.h"

enum { CALL_MS = 10000 };

struct plan_fetch {
    struct gateway *g;
    char item[UUID_SIZE];
};

static void plan_destroy(struct edge_object *o)
{
    struct edge_plan *p = (struct edge_plan *)(void *)o;
    media_plan_free(p->plan);
    mem_free(p->texts);
    mem_free(p);
}

// Of the plan, and of the texts that there are.
static void set_version(struct edge_plan *p, const ProtobufCBinaryData *plan)
{
    uint8_t digest[8], texts[8];
    crypto_blake2b(texts, sizeof texts, p->texts, p->n_texts * sizeof *p->texts, NULL, 0, NULL);
    crypto_blake2b(digest, sizeof digest, plan->data, plan->len, texts,
                   p->n_texts ? sizeof texts : 0, NULL);
    str_hex(p->version, digest, sizeof digest);
}

// Players that have a playlist with planned rates are to get the one with measured rates.
static void set_rates(struct edge_plan *p, const Orchestrator__PlanReply *reply)
{
    uint8_t digest[8];
    for (size_t i = 0; i < reply->n_rates; i++) {
        const Orchestrator__RenditionRate *r = reply->rates[i];
        int at = media_plan_find(p->plan, r->rendition);
        if (at >= 0 && r->peak > 0 && r->peak <= UINT32_MAX && r->mean > 0 && r->mean <= r->peak)
            p->rates[at] = (struct media_rate){(uint32_t)r->peak, (uint32_t)r->mean};
    }
    crypto_blake2b(digest, sizeof digest, p->rates, sizeof p->rates, p->version,
                   sizeof p->version - 1, NULL);
    str_hex(p->rated, digest, sizeof digest);
}

static void set_source(struct edge_plan *p, const Orchestrator__PlanReply *reply)
{
    const Common__ObjectRef *s = reply->source;
    (void)str_copy(p->title, sizeof p->title, reply->title);
    (void)str_copy(p->source_type, sizeof p->source_type, reply->source_type);
    if (!s || s->digest.len != OBJECT_DIGEST_SIZE || s->size < 0 || s->size > OBJECT_MAX_BYTES)
        return;
    p->has_source = str_copy(p->source_route, sizeof p->source_route, s->route);
    memcpy(p->source_digest, s->digest.data, OBJECT_DIGEST_SIZE);
    p->source_size = s->size;
}

static enum status plan_new(const Orchestrator__PlanReply *reply, struct edge_object **ret,
                            struct err *err)
{
    struct edge_plan *p = mem_alloc(sizeof *p);
    if (!p)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");
    // decoded it takes a few times the bytes
    edge_object_init(&p->base, sizeof *p + sizeof *p->plan + 8 * reply->plan.len, plan_destroy);
    enum status s = media_plan_decode(reply->plan.data, reply->plan.len, &p->plan, err);
    if (s == STATUS_OK)
        s = gateway_texts_read(reply, p, err);
    if (s != STATUS_OK) {
        edge_object_unref(&p->base);
        return err_wrap(err, STATUS_INTERNAL, "plan");
    }
    set_version(p, &reply->plan);
    set_rates(p, reply);
    set_source(p, reply);
    *ret = &p->base;
    return STATUS_OK;
}

static void on_plan(void *ud, enum status s, Orchestrator__PlanReply *reply, const struct err *err)
{
    struct plan_fetch *f = ud;
    struct gateway *g = f->g;
    struct edge_object *o = NULL;
    struct err e = ERR_INIT;
    if (s == STATUS_OK)
        s = plan_new(reply, &o, &e);
    else if (err)
        e = *err;
    if (s == STATUS_INTERNAL)
        log_warn(g->svc->log, "plan_unusable", F_STR("item", f->item), F_ERR(&e));
    edge_cache_put(g->plans, f->item, s, o, &e);
    rpc_message_free(reply);
    mem_free(f);
    gateway_op_end(g);
}

static void fetch_plan(struct gateway *g, const char *item, const struct rpc_trace *trace)
{
    struct err err = ERR_INIT;
    struct rpc_client *c = svc_client(g->svc, ROLE_NODE_ORCHESTRATOR, NULL, &err);
    struct plan_fetch *f = c ? mem_alloc(sizeof *f) : NULL;
    if (!f) {
        if (c)
            err_set(&err, STATUS_RESOURCE_EXHAUSTED, "plan: out of memory");
        edge_cache_put(g->plans, item, STATUS_UNAVAILABLE, NULL, &err);
        return;
    }
    f->g = g;
    (void)str_copy(f->item, sizeof f->item, item);
    gateway_op_begin(g);
    Orchestrator__PlanRequest req;
    orchestrator__plan_request__init(&req);
    req.item_id = f->item;
    const struct rpc_opts o = {
        .deadline_us = time_deadline_in_ms(CALL_MS), .cancel = g->stopping, .trace = trace};
    orchestrator_playback_plan_async(c, &o, &req, on_plan, f);
}

static void plan_done(void *ud, enum status s, struct edge_object *o, const struct err *err)
{
    struct http_request *r = ud;
    struct media_context *c = http_request_context(r);
    if (s == STATUS_OK)
        c->next(r, c->g, (struct edge_plan *)(void *)o);
    else
        gateway_respond_error(r, s, err);
}

void gateway_with_plan(struct http_request *r, struct gateway *g, gateway_plan_fn next)
{
    struct media_context *c = http_request_context(r);
    struct edge_answer found;
    struct err err = ERR_INIT;
    const char *item = c->claims.item; // what the token says, and so what the address says
    if (!uuid_is_valid(item)) {
        http_respond_problem(r, STATUS_NOT_FOUND, "no such item", 0);
        return;
    }
    c->next = next;
    const struct rpc_trace trace = gateway_trace_of(r);
    enum status s = edge_cache_get(g->plans, item, plan_done, r, &found, &err);
    if (s != STATUS_OK) {
        gateway_respond_error(r, s, &err);
        return;
    }
    // From here on r may be answered and gone at any moment, unless this is a hit.
    char key[UUID_SIZE];
    AUTO(edge_object_unref_p) struct edge_object *hit = found.hit;
    (void)str_copy(key, sizeof key, hit || found.fetch ? item : "");
    if (hit)
        next(r, g, (struct edge_plan *)(void *)hit);
    if (found.fetch)
        fetch_plan(g, key, &trace);
}
