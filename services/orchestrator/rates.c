// What renditions came to, once all of their segments are made: for playlists, which tell players
// how fast a line has to be.
#include "base/mem.h"
#include "media/playlist.h"
#include "orchestrator/decision.h"
#include "orchestrator/internal.h"

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "rates: out of memory");
}

// *ret zeros: something of it is not made yet.
static enum status measure(struct orch *o, const struct item *it, size_t rendition,
                           struct media_rate *ret, struct err *err)
{
    const struct media_plan *plan = it->plan->plan;
    const char *id = plan->renditions[rendition].id;
    size_t n = media_rendition_grid(plan, rendition)->n_segments;
    *ret = (struct media_rate){0};
    if (items_n_ready(o->items, it->id, id) < (int32_t)n)
        return STATUS_OK;
    AUTO(mem_free_p) struct item_segment *segments = mem_array(n, sizeof *segments);
    AUTO(mem_free_p) int64_t *sizes = mem_array(n, sizeof *sizes);
    if (!segments || !sizes)
        return no_memory(err);
    enum status s = items_segments(o->items, it->id, id, 0, (int32_t)n, segments, err);
    for (size_t i = 0; s == STATUS_OK && i < n; i++) {
        if (segments[i].size <= 0)
            return STATUS_OK;
        sizes[i] = segments[i].size;
    }
    if (s == STATUS_OK)
        *ret = media_rate_of(plan, rendition, sizes);
    return s;
}

enum status rates_fill(struct orch *o, struct arena *a, const struct item *it,
                       Orchestrator__PlanReply *ret, struct err *err)
{
    const struct media_plan *plan = it->plan->plan;
    ret->rates = arena_array(a, plan->n_renditions, sizeof ret->rates[0]);
    if (!ret->rates)
        return no_memory(err);
    for (size_t i = 0; i < plan->n_renditions; i++) {
        struct media_rate rate;
        enum status s = measure(o, it, i, &rate, err);
        if (s != STATUS_OK)
            return s;
        if (!rate.peak_bps)
            continue;
        Orchestrator__RenditionRate *r = arena_alloc(a, sizeof *r);
        if (!r)
            return no_memory(err);
        orchestrator__rendition_rate__init(r);
        r->rendition = orch_str(a, plan->renditions[i].id);
        r->peak = rate.peak_bps;
        r->mean = rate.mean_bps;
        ret->rates[ret->n_rates++] = r;
    }
    return STATUS_OK;
}
