// A play as a list of pieces. Direct: windows of the source, checked leaf by leaf. Otherwise one
// fragmented MP4: the merged init segment, then the segments of the chosen video and audio
// renditions in the order in which they are shown, each checked against its digest.
#include <stdio.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"
#include "internal.h"
#include "media/media.h"

enum {
    WINDOW_BYTES = 16 * OBJECT_LEAF_BYTES, // of a direct play: 1 MiB
    LOCATE_AHEAD = 16,                     // segments asked for at once while some are being made
    LOCATE_MAX = 1000,
    LOCATE_WAIT_MS = 30000,
    LOCATE_STALL_MS = 120000, // a segment that is not made by then is an error
};

struct segment_ref {
    bool is_known;
    uint8_t digest[OBJECT_DIGEST_SIZE];
    int64_t size;
    const char *route; // in the play's arena
};
// One fragment of the output.
struct fragment {
    uint32_t rendition, segment; // rendition: index in the plan
    int64_t start_us;
};

struct client_play {
    struct cauce *c;
    Orchestrator__OpenReply *open;
    cauce_stream_info info;
    struct client_piece *layout; // once known
    bool has_begun;              // a piece was given: from now on outages are waited for
    // direct
    struct client_object source;
    struct buf leaves;
    bool has_leaves;
    // fragments
    struct media_plan *plan;
    int video, audio; // renditions; -1: none
    struct buf init;
    struct fragment *fragments;
    size_t n_fragments;
    struct segment_ref *refs[2]; // of video, audio
    struct arena *arena;
};

// ---------------------------------------------------------------- opening

static enum status open_call(struct client_play *p, const char *item_id, bool download,
                             const cauce_play_opts *o, struct err *err)
{
    Orchestrator__DeviceProfile profile = ORCHESTRATOR__DEVICE_PROFILE__INIT;
    profile.max_height = o->max_height;
    profile.max_bitrate = o->max_bitrate_bps;
    profile.never_direct = o->never_direct != 0;
    Orchestrator__OpenRequest req = ORCHESTRATOR__OPEN_REQUEST__INIT;
    req.item_id = client_str(item_id);
    req.purpose = download ? ORCHESTRATOR__PURPOSE__DOWNLOAD : ORCHESTRATOR__PURPOSE__PLAY;
    req.profile = &profile;
    struct client_try t;
    enum status s = client_try_begin(&t, p->c, CLIENT_LOGGED_IN, NULL, 0, NULL, err);
    if (s != STATUS_OK)
        return s;
    return CLIENT_CALL(&t, orchestrator_playback_open(p->c->rpc, &t.opts, &req, &p->open, err),
                       err);
}

static void fill_info(struct client_play *p)
{
    const Orchestrator__OpenReply *o = p->open;
    p->info.direct = o->mode == ORCHESTRATOR__MODE__DIRECT;
    str_copy(p->info.title, sizeof(p->info.title), o->title);
    str_copy(p->info.video_rendition, sizeof(p->info.video_rendition), o->video_rendition);
    str_copy(p->info.audio_rendition, sizeof(p->info.audio_rendition), o->audio_rendition);
    for (size_t i = 0; i < o->n_reasons; i++) {
        size_t n = strlen(p->info.reasons);
        if (n && n + 1 < sizeof(p->info.reasons))
            p->info.reasons[n++] = '\n';
        str_copy(p->info.reasons + n, sizeof(p->info.reasons) - n, o->reasons[i]);
    }
    p->info.duration_us = o->duration_us;
    p->info.size = -1;
}

static enum status fill_object(struct client_play *p, struct client_object *ret,
                               const uint8_t *digest, int64_t size, const char *route,
                               struct err *err)
{
    memset(ret, 0, sizeof(*ret));
    ret->c = p->c;
    ret->cancel = p->c->cancel;
    ret->size = size;
    ret->patient = p->has_begun;
    memcpy(ret->digest, digest, OBJECT_DIGEST_SIZE);
    if (!str_copy(ret->route, sizeof(ret->route), route) ||
        !str_copy(ret->media_token, sizeof(ret->media_token), p->open->media_token))
        return err_set(err, STATUS_INTERNAL, "the server's route or media token is too long");
    return STATUS_OK;
}

static enum status set_up_direct(struct client_play *p, struct err *err)
{
    const Common__ObjectRef *o = p->open->source;
    if (!o || o->digest.len != OBJECT_DIGEST_SIZE || o->size < 0 || o->size > OBJECT_MAX_BYTES)
        return err_set(err, STATUS_INTERNAL, "the server names no source for direct play");
    str_copy(p->info.mime, sizeof(p->info.mime), p->open->source_type);
    p->info.size = o->size;
    buf_init(&p->leaves, (size_t)(object_n_leaves(o->size) + 1) * OBJECT_DIGEST_SIZE);
    return fill_object(p, &p->source, o->digest.data, o->size, o->route, err);
}

// ---------------------------------------------------------------- fragments

static size_t n_segments_of(const struct client_play *p, int rendition)
{
    return rendition < 0 ? 0 : media_rendition_grid(p->plan, (size_t)rendition)->n_segments;
}

static struct fragment fragment_of(const struct client_play *p, int rendition, size_t segment)
{
    const struct media_grid *g = media_rendition_grid(p->plan, (size_t)rendition);
    return (struct fragment){(uint32_t)rendition, (uint32_t)segment,
                             media_segment_start_us(g, segment)};
}

// Merge both grids by time; video goes first where they begin together.
static enum status list_fragments(struct client_play *p, struct err *err)
{
    size_t nv = n_segments_of(p, p->video), na = n_segments_of(p, p->audio), v = 0, a = 0;
    p->fragments = mem_array(nv + na + 1, sizeof(p->fragments[0]));
    p->refs[0] = mem_array(nv + 1, sizeof(p->refs[0][0]));
    p->refs[1] = mem_array(na + 1, sizeof(p->refs[1][0]));
    p->arena = arena_new(64U << 20);
    if (!p->fragments || !p->refs[0] || !p->refs[1] || !p->arena)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    while (v < nv || a < na) {
        bool take_video = v < nv && (a == na || fragment_of(p, p->video, v).start_us <=
                                                    fragment_of(p, p->audio, a).start_us);
        p->fragments[p->n_fragments++] =
            take_video ? fragment_of(p, p->video, v++) : fragment_of(p, p->audio, a++);
    }
    return STATUS_OK;
}

static enum status find_rendition(const struct client_play *p, const char *id, int *ret,
                                  struct err *err)
{
    *ret = id[0] ? media_plan_find(p->plan, id) : -1;
    return id[0] && *ret < 0 ? err_set(err, STATUS_INTERNAL, "the plan has no rendition %s", id)
                             : STATUS_OK;
}

static enum status set_up_fragments(struct client_play *p, struct err *err)
{
    str_copy(p->info.mime, sizeof(p->info.mime),
             p->open->video_rendition[0] ? "video/mp4" : "audio/mp4");
    enum status s = media_plan_decode(p->open->plan.data, p->open->plan.len, &p->plan, err);
    if (s == STATUS_OK)
        s = find_rendition(p, p->open->video_rendition, &p->video, err);
    if (s == STATUS_OK)
        s = find_rendition(p, p->open->audio_rendition, &p->audio, err);
    if (s == STATUS_OK && p->video < 0 && p->audio < 0)
        s = err_set(err, STATUS_INTERNAL, "the server chose no rendition");
    buf_init(&p->init, 4 * MEDIA_MAX_INIT_BYTES);
    if (s == STATUS_OK)
        s = media_cmaf_merge_init(p->plan, p->video, p->audio, &p->init, err);
    return s == STATUS_OK ? list_fragments(p, err) : s;
}

static enum status set_up(struct client_play *p, const char *item_id, bool download,
                          const cauce_play_opts *o, struct err *err)
{
    enum status s = open_call(p, item_id, download, o, err);
    if (s != STATUS_OK)
        return s;
    fill_info(p);
    return p->info.direct ? set_up_direct(p, err) : set_up_fragments(p, err);
}

enum status client_play_new(struct cauce *c, const char *item_id, bool download,
                            const cauce_play_opts *o, struct client_play **ret, struct err *err)
{
    AUTO(client_play_free_p) struct client_play *p = mem_alloc(sizeof(*p));
    if (!p)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    p->c = c;
    p->video = p->audio = -1;
    cauce_play_opts plain;
    cauce_play_opts_init(&plain);
    enum status s = set_up(p, item_id, download, o ? o : &plain, err);
    if (s == STATUS_OK)
        *ret = TAKE(p);
    return s;
}

void client_play_free(struct client_play *p)
{
    if (!p)
        return;
    rpc_message_free(p->open);
    media_plan_free(p->plan);
    buf_done(&p->leaves);
    buf_done(&p->init);
    mem_free(p->layout);
    mem_free(p->fragments);
    mem_free(p->refs[0]);
    mem_free(p->refs[1]);
    arena_free(p->arena);
    mem_free(p);
}

const cauce_stream_info *client_play_info(const struct client_play *p)
{
    return &p->info;
}

size_t client_play_n_pieces(const struct client_play *p)
{
    if (p->info.direct)
        return (size_t)((p->source.size + WINDOW_BYTES - 1) / WINDOW_BYTES);
    return p->n_fragments + 1;
}

const char *client_play_extension(const struct client_play *p)
{
    static const struct {
        const char *mime, *extension;
    } known[] = {
        {"video/mp4", "mp4"},       {"audio/mp4", "m4a"},  {"video/webm", "webm"},
        {"audio/webm", "webm"},     {"audio/mpeg", "mp3"}, {"audio/ogg", "ogg"},
        {"audio/flac", "flac"},     {"audio/wav", "wav"},  {"video/x-matroska", "mkv"},
        {"video/quicktime", "mov"}, {"video/mp2t", "ts"},  {"audio/aac", "aac"},
    };
    for (size_t i = 0; i < N_ELEMENTS(known); i++)
        if (str_eq(known[i].mime, p->info.mime))
            return known[i].extension;
    return "bin";
}

// ---------------------------------------------------------------- where segments are

static struct segment_ref *ref_of(const struct client_play *p, const struct fragment *f)
{
    return &p->refs[(int)f->rendition == p->video ? 0 : 1][f->segment];
}

static enum status keep_refs(struct client_play *p, const struct fragment *at,
                             const Orchestrator__LocateReply *r, struct err *err)
{
    size_t n = n_segments_of(p, (int)at->rendition);
    for (size_t i = 0; i < r->n_segments; i++) {
        const Orchestrator__SegmentRef *s = r->segments[i];
        const Common__ObjectRef *o = s->object;
        if (s->number < 0 || (size_t)s->number >= n || !o || o->digest.len != OBJECT_DIGEST_SIZE ||
            o->size <= 0 || o->size > MEDIA_MAX_SEGMENT_BYTES)
            return err_set(err, STATUS_INTERNAL, "the server names a segment that cannot be");
        struct fragment f = {at->rendition, (uint32_t)s->number, 0};
        struct segment_ref *ref = ref_of(p, &f);
        if (ref->is_known)
            continue;
        ref->route = arena_strdup(p->arena, o->route);
        if (!ref->route)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        memcpy(ref->digest, o->digest.data, OBJECT_DIGEST_SIZE);
        ref->size = o->size;
        ref->is_known = true;
    }
    return STATUS_OK;
}

static enum status locate(struct client_play *p, const struct fragment *f, int32_t count,
                          int64_t wait_ms, struct err *err)
{
    Orchestrator__LocateRequest req = ORCHESTRATOR__LOCATE_REQUEST__INIT;
    req.item_id = p->open->item_id;
    req.rendition = p->plan->renditions[f->rendition].id;
    req.first = (int32_t)f->segment;
    req.count = count;
    req.wait_ms = wait_ms;
    req.media_token = p->open->media_token;
    AUTO(rpc_message_free_p) Orchestrator__LocateReply *r = NULL;
    struct client_try t;
    enum status s =
        client_try_begin(&t, p->c, CLIENT_LOGGED_IN, NULL, wait_ms + p->c->timeout_ms, NULL, err);
    if (s == STATUS_OK)
        s = CLIENT_CALL(&t, orchestrator_playback_locate(p->c->rpc, &t.opts, &req, &r, err), err);
    return s == STATUS_OK ? keep_refs(p, f, r, err) : s;
}

// Until the fragment's segment exists.
static enum status locate_one(struct client_play *p, const struct fragment *f, struct err *err)
{
    int64_t give_up = time_deadline_in_ms(LOCATE_STALL_MS);
    size_t left = n_segments_of(p, (int)f->rendition) - f->segment;
    int32_t ahead = p->open->complete ? LOCATE_MAX : LOCATE_AHEAD;
    for (unsigned n = 0; !ref_of(p, f)->is_known; n++) {
        enum status s =
            locate(p, f, left < (size_t)ahead ? (int32_t)left : ahead, LOCATE_WAIT_MS, err);
        if (s == STATUS_OK && !ref_of(p, f)->is_known)
            s = err_set(err, STATUS_UNAVAILABLE, "segment %u of %s is not made yet", f->segment,
                        p->plan->renditions[f->rendition].id);
        if (s == STATUS_OK)
            return s;
        if (!client_is_transient(s) || time_left_ms(give_up) == 0)
            return s;
        s = client_backoff(p->c->cancel, n, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- a file to keep

static void drop_fragments(struct client_play *p)
{
    mem_free(TAKE(p->fragments));
    mem_free(TAKE(p->refs[0]));
    mem_free(TAKE(p->refs[1]));
    arena_free(TAKE(p->arena));
    p->n_fragments = 0;
}

static enum status find_named(const struct client_play *p, const char *name, size_t n, int *ret,
                              struct err *err)
{
    char id[sizeof(p->plan->renditions[0].id)];
    snprintf(id, sizeof(id), "%.*s", (int)n, name);
    *ret = n && n < sizeof(id) ? media_plan_find(p->plan, id) : -1;
    return *ret >= 0 ? STATUS_OK
                     : err_set(err, STATUS_NOT_FOUND, "the item has no rendition %.*s",
                               (int)(n < 40 ? n : 40), name);
}

static enum status take_names(struct client_play *p, const char *names, struct err *err)
{
    const char *plus = strchr(names, '+');
    int first = -1, second = -1;
    enum status s =
        find_named(p, names, plus ? (size_t)(plus - names) : strlen(names), &first, err);
    if (s == STATUS_OK && plus)
        s = find_named(p, plus + 1, strlen(plus + 1), &second, err);
    if (s != STATUS_OK)
        return s;
    bool is_sound = p->plan->renditions[first].kind == MEDIA_AUDIO;
    if (plus && (is_sound || p->plan->renditions[second].kind != MEDIA_AUDIO))
        return err_set(err, STATUS_NOT_FOUND, "%.40s: a picture, then a sound", names);
    if (is_sound)
        p->video = -1;
    else
        p->video = first;
    if (is_sound || plus)
        p->audio = is_sound ? first : second;
    return STATUS_OK;
}

enum status client_play_choose(struct client_play *p, const char *names, int *ret_video,
                               int *ret_audio, struct err *err)
{
    if (p->info.direct)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the source itself has no renditions");
    if (names && *names) {
        enum status s = take_names(p, names, err);
        drop_fragments(p);
        if (s == STATUS_OK)
            s = list_fragments(p, err);
        if (s != STATUS_OK)
            return s;
    }
    *ret_video = p->video;
    *ret_audio = p->audio;
    return STATUS_OK;
}

const struct media_plan *client_play_plan(const struct client_play *p)
{
    return p->plan;
}

enum status client_play_segment(struct client_play *p, uint32_t rendition, uint32_t segment,
                                struct client_object *ret, struct err *err)
{
    const struct fragment f = {rendition, segment, 0};
    enum status s = locate_one(p, &f, err);
    if (s != STATUS_OK)
        return s;
    const struct segment_ref *ref = ref_of(p, &f);
    p->has_begun = true; // from now on outages are waited for
    return fill_object(p, ret, ref->digest, ref->size, ref->route, err);
}

// ---------------------------------------------------------------- pieces

static enum status direct_piece(struct client_play *p, size_t i, struct buf *ret, struct err *err)
{
    if (!p->has_leaves) {
        enum status s = client_object_leaves(&p->source, &p->leaves, err);
        if (s != STATUS_OK)
            return s;
        p->has_leaves = true;
    }
    int64_t offset = (int64_t)i * WINDOW_BYTES, n = p->source.size - offset;
    if (n > WINDOW_BYTES)
        n = WINDOW_BYTES;
    size_t start = ret->len;
    enum status s = client_object_read(&p->source, offset, n, ret, err);
    return s == STATUS_OK ? object_verify_range(p->leaves.data, p->source.size, offset,
                                                ret->data + start, (size_t)n, err)
                          : s;
}

static enum status fragment_piece(struct client_play *p, size_t i, struct buf *ret, struct err *err)
{
    if (i == 0)
        return buf_append(ret, p->init.data, p->init.len)
                   ? STATUS_OK
                   : err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    const struct fragment *f = &p->fragments[i - 1];
    enum status s = locate_one(p, f, err);
    if (s != STATUS_OK)
        return s;
    const struct segment_ref *ref = ref_of(p, f);
    struct client_object o;
    s = fill_object(p, &o, ref->digest, ref->size, ref->route, err);
    size_t start = ret->len;
    if (s == STATUS_OK)
        s = client_object_get(&o, ret, err);
    if (s == STATUS_OK)
        s = media_cmaf_adapt(p->plan, f->rendition, (uint32_t)i, ret->data + start,
                             ret->len - start, err);
    return s == STATUS_OK ? s
                          : err_wrap(err, s, "segment %u of %s", f->segment,
                                     p->plan->renditions[f->rendition].id);
}

enum status client_play_piece(struct client_play *p, size_t i, struct buf *ret, struct err *err)
{
    enum status s = p->info.direct ? direct_piece(p, i, ret, err) : fragment_piece(p, i, ret, err);
    // the init segment comes with the plan: it says nothing about the origins
    if (s == STATUS_OK && (p->info.direct || i > 0))
        p->has_begun = p->source.patient = true;
    return s;
}

// ---------------------------------------------------------------- layout

static enum status fragment_layout(struct client_play *p, struct err *err)
{
    if (!p->open->complete)
        return err_set(err, STATUS_UNIMPLEMENTED,
                       "the size is known only when all of the item is made; seek by time");
    int64_t at = (int64_t)p->init.len;
    p->layout[0] = (struct client_piece){0, at};
    for (size_t i = 0; i < p->n_fragments; i++) {
        enum status s = locate_one(p, &p->fragments[i], err);
        if (s != STATUS_OK)
            return s;
        p->layout[i + 1] = (struct client_piece){at, ref_of(p, &p->fragments[i])->size};
        at += p->layout[i + 1].len;
    }
    p->info.size = at;
    return STATUS_OK;
}

static void direct_layout(struct client_play *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int64_t offset = (int64_t)i * WINDOW_BYTES, len = p->source.size - offset;
        p->layout[i] = (struct client_piece){offset, len < WINDOW_BYTES ? len : WINDOW_BYTES};
    }
}

enum status client_play_layout(struct client_play *p, const struct client_piece **ret,
                               struct err *err)
{
    if (!p->layout) {
        size_t n = client_play_n_pieces(p);
        p->layout = mem_array(n + 1, sizeof(p->layout[0]));
        if (!p->layout)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        enum status s = STATUS_OK;
        if (p->info.direct)
            direct_layout(p, n);
        else
            s = fragment_layout(p, err);
        if (s != STATUS_OK) {
            mem_free(TAKE(p->layout));
            return s;
        }
    }
    *ret = p->layout;
    return STATUS_OK;
}

enum status client_play_piece_at(struct client_play *p, int64_t time_us, size_t *ret,
                                 struct err *err)
{
    if (p->info.direct)
        return err_set(err, STATUS_UNIMPLEMENTED, "a direct play seeks by offset");
    int by = p->video >= 0 ? p->video : p->audio;
    const struct media_grid *g = media_rendition_grid(p->plan, (size_t)by);
    size_t segment = media_grid_segment_at(g, time_us < 0 ? 0 : time_us);
    int64_t start_us = media_segment_start_us(g, segment);
    size_t i = 0;
    // the audio that is heard at that moment began earlier: take it along
    int64_t from_us = start_us;
    if (by == p->video && p->audio >= 0) {
        const struct media_grid *ag = media_rendition_grid(p->plan, (size_t)p->audio);
        from_us = media_segment_start_us(ag, media_grid_segment_at(ag, start_us));
    }
    while (i < p->n_fragments && p->fragments[i].start_us < from_us)
        i++;
    *ret = i + 1;
    return STATUS_OK;
}
