// Playback.*: may it be played, how, and where the bytes are.
#include "orchestrator/internal.h"

#include <string.h>

#include "cauce/orchestrator.rpc.h"
#include "cauce/store.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "media/image.h"
#include "orchestrator/decision.h"

#define CHECK_MS 5000
#define MAX_LOCATE 1000
#define N_AHEAD 3               // segments that are looked for beyond those that were asked for
#define ASK_AGAIN_US 1000000    // while waiting
#define ANSWER_MARGIN_US 300000 // before the caller's own deadline, so that our reason arrives

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "playback: out of memory");
}

static Common__ObjectRef *object_ref(struct arena *a, const uint8_t *digest, int64_t size,
                                     const char *route)
{
    Common__ObjectRef *r = arena_alloc(a, sizeof *r);
    if (!r)
        return NULL;
    common__object_ref__init(r);
    r->digest = orch_bytes(a, digest, ORCH_DIGEST_SIZE);
    r->size = size;
    r->route = orch_str(a, route);
    return r->digest.data ? r : NULL;
}

// An item that can be played, or why not.
static enum status playable_item(struct orch *o, const char *id, struct item *ret, struct err *err)
{
    enum status s = items_get(o->items, id, ret, err);
    if (s != STATUS_OK)
        return s;
    if (str_eq(ret->state, "failed"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "the item cannot be played: %s",
                       ret->reason);
    if (!ret->plan)
        return err_set(err, STATUS_UNAVAILABLE,
                       "the item is still being looked at: try again soon");
    return STATUS_OK;
}

// ---------------------------------------------------------------- Open

static enum status check_right(struct orch *o, struct rpc_call *call,
                               const Orchestrator__OpenRequest *req, Store__CheckReply **ret,
                               struct err *err)
{
    struct rpc_client *c = o->env.store(o->env.ud, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    char right[] = "download";
    if (req->purpose != ORCHESTRATOR__PURPOSE__DOWNLOAD)
        memcpy(right, "stream", sizeof "stream");
    Store__CheckRequest check;
    store__check_request__init(&check);
    check.item_id = req->item_id;
    check.right = right;
    int64_t deadline_us = time_deadline_in_ms(CHECK_MS);
    if (rpc_call_deadline_us(call) < deadline_us)
        deadline_us = rpc_call_deadline_us(call);
    struct rpc_opts opts = {
        .token = rpc_call_token(call), .deadline_us = deadline_us, .cancel = rpc_call_cancel(call)};
    enum status s = store_entitlement_check(c, &opts, &check, ret, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "entitlement");
    if ((*ret)->allowed)
        return STATUS_OK;
    const char *why = (*ret)->reason;
    if (str_eq(why, "not_found") || str_eq(why, "not_published"))
        return err_set(err, STATUS_NOT_FOUND, "no item %.40s", req->item_id);
    return err_set(err, STATUS_PERMISSION_DENIED, "%s",
                   str_eq(why, "not_bought") ? "the item is not bought" : why);
}

static enum status fill_decision(struct arena *a, const struct item *it, const struct decision *d,
                                 Orchestrator__OpenReply *ret, struct err *err)
{
    const Orchestrator__Decision *m = ret->decision;
    bool direct = d->d.mode == MEDIA_MODE_DIRECT;
    ret->mode = direct ? ORCHESTRATOR__MODE__DIRECT : ORCHESTRATOR__MODE__STREAM;
    ret->reasons = arena_array(a, MEDIA_MAX_NOTES, sizeof ret->reasons[0]);
    if (!ret->reasons)
        return no_memory(err);
    for (size_t i = 0; i < m->n_reasons; i++)
        ret->reasons[ret->n_reasons++] = m->reasons[i]->text;
    ret->video_rendition = m->video_rendition;
    ret->audio_rendition = m->audio_rendition;
    if (direct) {
        ret->source = object_ref(a, it->digest, it->size, it->route);
        ret->source_type = orch_str(a, it->plan->plan->source.mime);
        if (!ret->source)
            return no_memory(err);
    }
    return STATUS_OK;
}

static enum status fill_renditions(struct orch *o, struct arena *a, const struct item *it,
                                   Orchestrator__Rendition ***ret, size_t *ret_n, struct err *err)
{
    const struct media_plan *plan = it->plan->plan;
    *ret = arena_array(a, plan->n_renditions, sizeof **ret);
    for (size_t i = 0; i < plan->n_renditions; i++) {
        const struct media_rendition *m = &plan->renditions[i];
        Orchestrator__Rendition *r = arena_alloc(a, sizeof *r);
        if (!*ret || !r)
            return no_memory(err);
        orchestrator__rendition__init(r);
        r->id = orch_str(a, m->id);
        r->kind = orch_str(a, media_kind_name(m->kind));
        r->codecs = orch_str(a, m->codecs);
        r->width = (int32_t)m->width;
        r->height = (int32_t)m->height;
        r->bandwidth = m->bandwidth_bps;
        r->segments = (int32_t)media_rendition_grid(plan, i)->n_segments;
        r->segments_ready = items_n_ready(o->items, it->id, m->id);
        (*ret)[(*ret_n)++] = r;
    }
    return STATUS_OK;
}

// Where things are on the gateway.
static bool fill_addresses(struct arena *a, const struct item *it, const char *token,
                           const char *offer, Orchestrator__OpenReply *ret)
{
    const struct media_plan *plan = it->plan->plan;
    const char *dash = *offer ? "-" : "";
    const char *base = arena_printf(a, "/hls/%s/%s", token, it->id);
    if (!base)
        return false;
    ret->master_url = arena_printf(a, "%s/master%s%s.m3u8", base, dash, offer);
    ret->dash_url = arena_printf(a, "%s/manifest%s%s.mpd", base, dash, offer);
    if (media_image_is_planned(plan, MEDIA_IMAGE_POSTER))
        ret->poster_url = arena_printf(a, "%s/poster.jpg", base);
    if (media_image_is_planned(plan, MEDIA_IMAGE_TILES))
        ret->tiles_url = arena_printf(a, "%s/tiles.vtt", base);
    if (media_image_is_planned(plan, MEDIA_IMAGE_PREVIEW))
        ret->preview_url = arena_printf(a, "%s/preview.webp", base);
    if (media_image_is_planned(plan, MEDIA_IMAGE_WAVEFORM))
        ret->waveform_url = arena_printf(a, "%s/waveform.json", base);
    struct err none = ERR_INIT;
    return subtitles_fill(a, it, base, &ret->subtitles, &ret->n_subtitles, &none) == STATUS_OK &&
           ret->master_url && ret->dash_url && ret->poster_url && ret->tiles_url &&
           ret->preview_url && ret->waveform_url;
}

static enum status open_(struct rpc_call *call, const Orchestrator__OpenRequest *req,
                         Orchestrator__OpenReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    if (!uuid_is_valid(req->item_id))
        return err_set(err, STATUS_NOT_FOUND, "no item %.40s", req->item_id);
    AUTO(rpc_message_free_p) Store__CheckReply *right = NULL;
    AUTO(item_done) struct item it = {0};
    enum status s = check_right(o, call, req, &right, err);
    if (s == STATUS_OK)
        s = playable_item(o, req->item_id, &it, err);
    if (s == STATUS_OK)
        s = backends_check(o->backends, it.route, err);
    if (s != STATUS_OK)
        return s;
    struct decision d;
    s = decision_make(a, it.plan->plan, req, &d, err);
    if (s == STATUS_OK)
        s = decision_tell(a, it.plan->plan, &d, &ret->decision, err);
    if (s == STATUS_OK)
        s = fill_decision(a, &it, &d, ret, err);
    if (s == STATUS_OK)
        s = fill_renditions(o, a, &it, &ret->renditions, &ret->n_renditions, err);
    if (s != STATUS_OK)
        return s;
    ret->item_id = orch_str(a, it.id);
    ret->media_token = orch_str(a, right->media_token);
    if (right->expires)
        ret->token_expires = orch_timestamp(a, right->expires->seconds * 1000000);
    ret->plan = orch_bytes(a, it.plan->bytes, it.plan->len);
    ret->title = orch_str(a, right->item && *right->item->title ? right->item->title : it.title);
    ret->duration_us = it.duration_us;
    ret->complete = str_eq(it.state, "ready");
    if (it.is_measured && !(ret->loudness = orch_loudness(a, &it.loudness)))
        return no_memory(err);
    if (req->purpose == ORCHESTRATOR__PURPOSE__DOWNLOAD) {
        const char *plus = *ret->video_rendition && *ret->audio_rendition ? "+" : "";
        ret->file_url = arena_printf(a, "/hls/%s/%s/%s%s%s.mp4", ret->media_token, it.id,
                                     ret->video_rendition, plus, ret->audio_rendition);
        if (!ret->file_url)
            return no_memory(err);
    }
    return fill_addresses(a, &it, ret->media_token, d.offer, ret) && ret->plan.data
               ? STATUS_OK
               : no_memory(err);
}

// ---------------------------------------------------------------- Decide

static enum status decide(struct rpc_call *call, const Orchestrator__OpenRequest *req,
                          Orchestrator__DecideReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    if (!uuid_is_valid(req->item_id))
        return err_set(err, STATUS_NOT_FOUND, "no item %.40s", req->item_id);
    AUTO(rpc_message_free_p) Store__CheckReply *right = NULL;
    AUTO(item_done) struct item it = {0};
    struct decision d;
    enum status s = check_right(o, call, req, &right, err);
    if (s == STATUS_OK)
        s = playable_item(o, req->item_id, &it, err);
    if (s == STATUS_OK)
        s = decision_make(a, it.plan->plan, req, &d, err);
    if (s == STATUS_OK)
        s = decision_tell(a, it.plan->plan, &d, &ret->decision, err);
    if (s == STATUS_OK)
        s = fill_renditions(o, a, &it, &ret->renditions, &ret->n_renditions, err);
    if (s != STATUS_OK)
        return s;
    const struct media_source *source = &it.plan->plan->source;
    ret->item_id = orch_str(a, it.id);
    ret->title = orch_str(a, right->item && *right->item->title ? right->item->title : it.title);
    ret->container = orch_str(a, source->container == MEDIA_CONTAINER_OTHER
                                     ? source->container_name
                                     : media_container_name(source->container));
    ret->bitrate = source->bitrate_bps;
    ret->duration_us = it.duration_us;
    if (it.is_measured && !(ret->loudness = orch_loudness(a, &it.loudness)))
        return no_memory(err);
    return STATUS_OK;
}

// ---------------------------------------------------------------- Plan

static enum status plan_(struct rpc_call *call, const Orchestrator__PlanRequest *req,
                         Orchestrator__PlanReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct arena *a = rpc_call_arena(call);
    AUTO(item_done) struct item it = {0};
    enum status s = playable_item(o, req->item_id, &it, err);
    if (s != STATUS_OK)
        return s;
    ret->item_id = orch_str(a, it.id);
    ret->plan = orch_bytes(a, it.plan->bytes, it.plan->len);
    ret->state = orch_str(a, it.state);
    ret->title = orch_str(a, it.title);
    ret->source = object_ref(a, it.digest, it.size, it.route);
    ret->source_type = orch_str(a, it.plan->plan->source.mime);
    ret->complete = str_eq(it.state, "ready");
    s = subtitles_fill(a, &it, NULL, &ret->subtitles, &ret->n_subtitles, err);
    if (s != STATUS_OK)
        return s;
    s = rates_fill(o, a, &it, ret, err);
    if (s != STATUS_OK)
        return s;
    return ret->source && ret->plan.data ? STATUS_OK : no_memory(err);
}

// ---------------------------------------------------------------- Locate

struct locate_wait {
    struct orch *o;
    struct rpc_call *call;
    char item[UUID_SIZE], rendition[16], route[CHAN_NODE_ID_SIZE];
    int32_t first, count;
    int64_t raised_us; // when it was asked for last; 0: not yet
};

// Those of the range that exist. ret_first: the first one does.
static enum status look(struct locate_wait *w, Orchestrator__LocateReply *ret, bool *ret_first,
                        struct err *err)
{
    struct arena *a = rpc_call_arena(w->call);
    AUTO(mem_free_p) struct item_segment *segs = mem_array((size_t)w->count, sizeof *segs);
    if (!segs)
        return no_memory(err);
    enum status s =
        items_segments(w->o->items, w->item, w->rendition, w->first, w->count, segs, err);
    if (s != STATUS_OK)
        return s;
    *ret_first = segs[0].size > 0;
    ret->n_segments = 0;
    ret->segments = arena_array(a, (size_t)w->count, sizeof ret->segments[0]);
    for (int32_t i = 0; i < w->count; i++) {
        if (segs[i].size == 0)
            continue;
        Orchestrator__SegmentRef *ref = arena_alloc(a, sizeof *ref);
        if (!ret->segments || !ref)
            return no_memory(err);
        orchestrator__segment_ref__init(ref);
        ref->number = w->first + i;
        ref->object = object_ref(a, segs[i].digest, segs[i].size, w->route);
        if (!ref->object)
            return no_memory(err);
        ret->segments[ret->n_segments++] = ref;
    }
    return STATUS_OK;
}

static enum status not_there(const struct locate_wait *w, enum status s, struct err *err)
{
    return err_set(err, s, "segment %d of %s is not made yet: try again in 2 seconds", w->first,
                   w->rendition);
}

// Nobody makes segments while their origin is away, and an item that failed makes nothing any more:
// say so at once instead of after the wait. Woken in vain, who waits asks again: what was to make
// it may have gone.
static enum status raise_it(struct locate_wait *w, struct err *err)
{
    AUTO(item_done) struct item it = {0};
    enum status s = playable_item(w->o, w->item, &it, err);
    if (s == STATUS_OK)
        s = backends_check(w->o->backends, w->route, err);
    if (s == STATUS_OK)
        s = demand_expected(w->o, &it, w->rendition, err);
    int64_t now_us = time_mono_us();
    if (s != STATUS_OK || (w->raised_us && now_us - w->raised_us < ASK_AGAIN_US))
        return s;
    w->raised_us = now_us;
    s = demand_want(w->o, &it, w->rendition, w->first, false, err);
    // Too many others of the item wait as well: asked for again when one of them is made.
    return s == STATUS_RESOURCE_EXHAUSTED ? STATUS_OK : s;
}

// Who was given segments comes for the next ones: what is missing there is made before all that
// nobody watches.
static void look_ahead(struct orch *o, const char *item, const char *rendition, int32_t next)
{
    struct item_segment segs[N_AHEAD];
    struct err err = ERR_INIT;
    AUTO(item_done) struct item it = {0};
    size_t n_segments = 0;
    if (items_get(o->items, item, &it, &err) != STATUS_OK || !it.plan ||
        items_place(it.plan->plan, rendition, &n_segments) < 0 || (size_t)next >= n_segments)
        return;
    int32_t left = (int32_t)n_segments - next, n = left < N_AHEAD ? left : N_AHEAD;
    if (items_segments(o->items, item, rendition, next, n, segs, &err) != STATUS_OK)
        return;
    for (int32_t i = 0; i < n; i++) {
        if (segs[i].size)
            continue;
        if (demand_want(o, &it, rendition, next + i, true, &err) != STATUS_OK)
            log_debug(o->log, "not_made_ahead", F_STR("item", item), F_ERR(&err));
        return;
    }
}

static bool try_locate(void *ud, enum hub_why why)
{
    struct locate_wait *w = ud;
    struct err err = ERR_INIT;
    Orchestrator__LocateReply reply;
    orchestrator__locate_reply__init(&reply);
    bool first = false;
    enum status s = why == HUB_CANCELLED ? err_set(&err, STATUS_CANCELLED, "locate: cancelled")
                                         : look(w, &reply, &first, &err);
    if (s == STATUS_OK && !first) {
        s = raise_it(w, &err);
        if (s == STATUS_OK && why == HUB_EVENT)
            return false;
        if (s == STATUS_OK && reply.n_segments == 0)
            s = not_there(w, why == HUB_STOPPING ? STATUS_UNAVAILABLE : STATUS_DEADLINE_EXCEEDED,
                          &err);
    }
    int32_t next = w->first + (int32_t)reply.n_segments;
    rpc_call_finish(w->call, s, &reply.base, &err);
    if (s == STATUS_OK && first)
        look_ahead(w->o, w->item, w->rendition, next);
    mem_free(w);
    return true;
}

static enum status check_token(struct orch *o, struct rpc_call *call,
                               const Orchestrator__LocateRequest *req, struct err *err)
{
    const struct chan_peer *peer = rpc_call_peer(call);
    bool gateway = peer->has_grant && !rpc_call_is_forwarded(call) &&
                   (1U << peer->grant.role) == ROLE_NODE_GATEWAY;
    if (gateway)
        return STATUS_OK;
    struct svc_media_claims claims;
    enum status s = o->env.verify_media(o->env.ud, req->media_token, &claims, err);
    if (s != STATUS_OK)
        return s;
    const struct rpc_user *user = rpc_call_user(call);
    bool rights = (claims.rights & (SVC_RIGHT_STREAM | SVC_RIGHT_DOWNLOAD)) != 0;
    if (!user || !str_eq(claims.item, req->item_id) || !str_eq(claims.sub, user->id) || !rights)
        return err_set(err, STATUS_PERMISSION_DENIED,
                       "the media token is for somebody or something"
                       " else");
    return STATUS_OK;
}

static enum status check_range(const struct item *it, const Orchestrator__LocateRequest *req,
                               int32_t *ret_count, struct err *err)
{
    const struct media_plan *plan = it->plan->plan;
    size_t n_segments;
    bool gone = media_text_find_added(req->rendition) >= 0 && !item_has_text(it, req->rendition);
    if (gone || items_place(plan, req->rendition, &n_segments) < 0)
        return err_set(err, STATUS_NOT_FOUND, "item %s has no rendition %.12s", it->id,
                       req->rendition);
    int64_t n = (int64_t)n_segments;
    if (req->first < 0 || req->first >= n || req->count < 1 || req->count > MAX_LOCATE)
        return err_set(err, STATUS_OUT_OF_RANGE, "segments %d + %d of %lld", req->first, req->count,
                       (long long)n);
    if (req->wait_ms < 0 || req->wait_ms > ORCH_MAX_WAIT_MS)
        return rpc_bad_field(err, "wait_ms", "wait of %lld ms; at most %d", (long long)req->wait_ms,
                             ORCH_MAX_WAIT_MS);
    *ret_count = req->count < n - req->first ? req->count : (int32_t)(n - req->first);
    return STATUS_OK;
}

static enum status park(struct locate_wait *w, int64_t wait_ms, struct err *err)
{
    struct locate_wait *copy = mem_dup(w, sizeof *w);
    if (!copy)
        return no_memory(err);
    struct rpc_call *call = w->call;
    int64_t deadline_us = time_deadline_in_ms(wait_ms), last_us = rpc_call_deadline_us(call);
    if (last_us != TIME_NEVER && last_us - ANSWER_MARGIN_US < deadline_us)
        deadline_us = last_us - ANSWER_MARGIN_US;
    rpc_call_defer(call);
    enum status s = hub_park(w->o->hub, HUB_ITEM, w->item, deadline_us, rpc_call_cancel(call),
                             try_locate, copy, err);
    if (s != STATUS_OK) {
        rpc_call_finish(call, s, NULL, err);
        mem_free(copy);
    }
    return STATUS_OK;
}

static enum status locate(struct rpc_call *call, const Orchestrator__LocateRequest *req,
                          Orchestrator__LocateReply *ret, struct err *err)
{
    struct orch *o = rpc_call_self(call);
    struct locate_wait w = {.o = o, .call = call, .first = req->first};
    AUTO(item_done) struct item it = {0};
    enum status s = check_token(o, call, req, err);
    if (s == STATUS_OK)
        s = playable_item(o, req->item_id, &it, err);
    if (s == STATUS_OK)
        s = check_range(&it, req, &w.count, err);
    if (s != STATUS_OK)
        return s;
    str_copy(w.item, sizeof w.item, it.id);
    str_copy(w.rendition, sizeof w.rendition, req->rendition);
    str_copy(w.route, sizeof w.route, it.route);
    bool first = false;
    s = look(&w, ret, &first, err);
    if (s == STATUS_OK && first)
        look_ahead(o, w.item, w.rendition, w.first + (int32_t)ret->n_segments);
    if (s != STATUS_OK || first)
        return s;
    s = raise_it(&w, err);
    if (s != STATUS_OK)
        return s;
    if (req->wait_ms > 0)
        return park(&w, req->wait_ms, err);
    return ret->n_segments ? STATUS_OK : not_there(&w, STATUS_DEADLINE_EXCEEDED, err);
}

enum status playback_serve(struct orch *o, struct rpc_server *s, struct err *err)
{
    static const struct orchestrator_playback_handlers handlers = {
        .open = open_, .decide = decide, .plan = plan_, .locate = locate};
    return orchestrator_playback_serve(s, &handlers, o, err);
}
