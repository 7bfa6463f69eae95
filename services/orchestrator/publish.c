// What a finished task changes, in one transaction: a probe's plan becomes tasks, a chunk's
// segments become visible, a moved source its item's new place. The ledger (which segments, when,
// how long, how many frames, for which init segment) must agree with the plan to the tick.
#include "orchestrator/internal.h"

#include <stdio.h>
#include <string.h>

#include "cauce/origin.rpc.h"

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "media/image.h"
#include "media/texts.h"
#include "media/webvtt.h"

// The longest run of video that one task makes, so that the workers share a short film. A long one
// has enough for all of them: its tasks are whole chunks, of which there are fewer.
#define TASK_VIDEO_US (INT64_C(8) * 1000000)
#define LONG_VIDEO_US (INT64_C(20) * 60 * 1000000)
#define MAX_TASKS_TEXT (16U << 20) // one column of all tasks of a plan
#define STAT_DEADLINE_MS 5000

// ---------------------------------------------------------------- ledger

// Position of a rendition in the task's list; -1 when it was not asked for.
static int place_of(const char *list, const char *rendition)
{
    size_t len = strlen(rendition);
    int at = 0;
    for (const char *p = list; *p; at++) {
        size_t n = strcspn(p, ",");
        if (n == len && memcmp(p, rendition, n) == 0)
            return at;
        p += n + (p[n] == ',');
    }
    return -1;
}

static size_t list_len(const char *list)
{
    size_t n = *list != '\0';
    for (const char *p = list; *p; p++)
        n += *p == ',';
    return n;
}

static enum status check_one(const struct media_plan *plan, const struct publish_output *o,
                             struct err *err)
{
    int which = media_plan_find(plan, o->rendition);
    const struct media_grid *g = which < 0 ? NULL : media_rendition_grid(plan, (size_t)which);
    if (!g || (size_t)o->segment >= g->n_segments)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%.12s/%d is not in the plan", o->rendition,
                       o->segment);
    const struct media_segment *seg = &g->segments[o->segment];
    const struct media_rendition *r = &plan->renditions[which];
    uint32_t samples = media_rendition_samples(plan, (size_t)which, (size_t)o->segment);
    // Sound lasts whole packets, so the last segment may reach beyond the grid's end.
    int64_t duration = media_rendition_duration(plan, (size_t)which, (size_t)o->segment);
    if (o->first_pts != seg->start || o->duration != duration || o->samples != (int64_t)samples)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "%s/%d does not match the plan: starts %lld, lasts %lld, %d samples; "
                       "planned %lld, %lld, %u",
                       o->rendition, o->segment, (long long)o->first_pts, (long long)o->duration,
                       o->samples, (long long)seg->start, (long long)duration, samples);
    uint8_t init[ORCH_DIGEST_SIZE];
    crypto_blake2b(init, sizeof init, r->init, r->init_len, NULL, 0, NULL);
    if (memcmp(init, o->init_digest, sizeof init) != 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s/%d was made for another init segment",
                       o->rendition, o->segment);
    if (o->size <= 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s/%d is empty", o->rendition, o->segment);
    return STATUS_OK;
}

static enum status check_images(const struct queue_task *t, const struct publish_output *outputs,
                                size_t n, struct err *err)
{
    bool seen[MEDIA_N_IMAGES] = {false};
    for (size_t i = 0; i < n; i++) {
        const struct publish_output *o = &outputs[i];
        int which = media_image_find(o->rendition);
        if (which < 0 || place_of(t->renditions, o->rendition) < 0 || o->segment != 0)
            return err_set(err, STATUS_INVALID_ARGUMENT, "%.12s/%d is not of this task",
                           o->rendition, o->segment);
        if (seen[which] || o->size <= 0 || o->size > MEDIA_MAX_IMAGE_BYTES)
            return err_set(err, STATUS_INVALID_ARGUMENT, "%s comes twice, or has %lld bytes",
                           o->rendition, (long long)o->size);
        seen[which] = true;
    }
    return STATUS_OK;
}

static enum status check_texts(const struct queue_task *t, const struct publish_output *outputs,
                               size_t n, struct err *err)
{
    uint64_t seen = 0;
    for (size_t i = 0; i < n; i++) {
        const struct publish_output *o = &outputs[i];
        int place = place_of(t->renditions, o->rendition);
        if (place < 0 || place >= MEDIA_MAX_TEXT_TRACKS || o->segment != 0)
            return err_set(err, STATUS_INVALID_ARGUMENT, "%.12s/%d is not of this task",
                           o->rendition, o->segment);
        if (seen >> place & 1 || o->size <= 0 || o->size > MEDIA_MAX_TEXT_BYTES)
            return err_set(err, STATUS_INVALID_ARGUMENT, "%s comes twice, or has %lld bytes",
                           o->rendition, (long long)o->size);
        seen |= UINT64_C(1) << place;
    }
    return STATUS_OK;
}

enum status publish_check(const struct media_plan *plan, const struct queue_task *t,
                          const struct publish_output *outputs, size_t n, struct err *err)
{
    if (str_eq(t->kind, "images") || str_eq(t->kind, "measure"))
        return check_images(t, outputs, n, err);
    if (str_eq(t->kind, "texts"))
        return check_texts(t, outputs, n, err);
    size_t n_segments = (size_t)t->n_segments, n_all = n_segments * list_len(t->renditions);
    AUTO(mem_free_p) bool *seen = mem_array(n_all ? n_all : 1, sizeof *seen);
    if (!seen)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "ledger: out of memory");
    for (size_t i = 0; i < n; i++) {
        const struct publish_output *o = &outputs[i];
        int place = place_of(t->renditions, o->rendition);
        if (place < 0 || o->segment < t->first_segment ||
            o->segment - t->first_segment >= t->n_segments)
            return err_set(err, STATUS_INVALID_ARGUMENT, "%.12s/%d is not of this task",
                           o->rendition, o->segment);
        size_t at = (size_t)place * n_segments + (size_t)(o->segment - t->first_segment);
        if (seen[at])
            return err_set(err, STATUS_INVALID_ARGUMENT, "%s/%d comes twice", o->rendition,
                           o->segment);
        seen[at] = true;
        enum status s = check_one(plan, o, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- tasks of a plan

struct task_list {
    struct publish_task *tasks;
    size_t n, cap;
    bool failed;
};

static void add_task(struct task_list *l, const char *renditions, uint32_t first, uint32_t n,
                     int32_t priority)
{
    if (!*renditions || l->failed)
        return;
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 64;
        struct publish_task *p = mem_realloc(l->tasks, cap, sizeof *p);
        if (!p) {
            l->failed = true;
            return;
        }
        l->tasks = p;
        l->cap = cap;
    }
    struct publish_task *t = &l->tasks[l->n++];
    *t = (struct publish_task){
        .first_segment = (int32_t)first, .n_segments = (int32_t)n, .priority = priority};
    str_copy(t->renditions, sizeof t->renditions, renditions);
}

// "v720,v480": the renditions of one kind that are not lazy, without the first `skip`, at most
// `max`.
static void join_renditions(const struct media_plan *p, enum media_kind kind, size_t skip,
                            size_t max, char *dst, size_t size)
{
    dst[0] = '\0';
    for (size_t i = 0, n = 0; i < p->n_renditions; i++) {
        if (p->renditions[i].kind != kind || p->renditions[i].lazy || n++ < skip || n > skip + max)
            continue;
        size_t len = strlen(dst);
        snprintf(dst + len, size - len, "%s%s", len ? "," : "", p->renditions[i].id);
    }
}

static void add_video(struct task_list *l, const struct media_plan *p)
{
    const struct media_grid *g = &p->video;
    char all[ORCH_MAX_RENDITIONS_TEXT], top[ORCH_MAX_RENDITIONS_TEXT],
        rest[ORCH_MAX_RENDITIONS_TEXT];
    join_renditions(p, MEDIA_VIDEO, 0, SIZE_MAX / 2, all, sizeof all);
    join_renditions(p, MEDIA_VIDEO, 0, 1, top, sizeof top);
    join_renditions(p, MEDIA_VIDEO, 1, SIZE_MAX / 2, rest, sizeof rest);
    for (size_t c = 0; c < g->n_chunks; c++) {
        uint32_t first = g->chunks[c].first_segment, end = first + g->chunks[c].n_segments;
        if (c == 0) { // two workers make the first picture; the smaller rungs are there first
            add_task(l, *rest ? rest : top, first, end - first, ORCH_PRIO_FIRST);
            add_task(l, *rest ? top : "", first, end - first, ORCH_PRIO_FIRST_TOP);
            continue;
        }
        int64_t most_us = media_plan_duration_us(p) > LONG_VIDEO_US ? INT64_MAX : TASK_VIDEO_US;
        while (first < end) { // one decode for all rungs
            int64_t us = 0;
            uint32_t n = 0;
            do
                us += media_segment_duration_us(g, first + n++);
            while (first + n < end && us + media_segment_duration_us(g, first + n) <= most_us);
            add_task(l, all, first, n, c == 1 ? 2 * ORCH_PRIO_REST : ORCH_PRIO_REST);
            first += n;
        }
    }
}

static void add_audio(struct task_list *l, const struct media_plan *p)
{
    const struct media_grid *g = &p->audio;
    char all[ORCH_MAX_RENDITIONS_TEXT];
    join_renditions(p, MEDIA_AUDIO, 0, SIZE_MAX / 2, all, sizeof all);
    for (size_t c = 0; c < g->n_chunks; c++)
        add_task(l, all, g->chunks[c].first_segment, g->chunks[c].n_segments,
                 c == 0 ? ORCH_PRIO_FIRST_AUDIO : ORCH_PRIO_AUDIO);
}

enum status publish_tasks(const struct media_plan *plan, struct publish_task **ret, size_t *ret_n,
                          struct err *err)
{
    struct task_list l = {0};
    add_audio(&l, plan);
    add_video(&l, plan);
    if (l.failed) {
        mem_free(l.tasks);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "tasks of a plan: out of memory");
    }
    *ret = l.tasks;
    *ret_n = l.n;
    return STATUS_OK;
}

// ---------------------------------------------------------------- the transaction

struct publication {
    const struct publish_result *r;
    const struct orch_options *options;
    const struct media_plan *plan; // of the item (chunk), or that was found (probe)
    const struct svc_node *move_to;
    struct publish_task *tasks;
    size_t n_tasks;
    bool duplicate, yield;
    const char *away;
    const char *expect_kind; // what the task was when it was looked at
    const char *owner;
};

static enum status tell(struct db_conn *c, const struct queue_task *t, const char *kind,
                        const char *owner, struct buf *json, struct err *err)
{
    enum status s = json->failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "event: out of memory")
                                 : event_append(c, ORCH_SCHEMA, "transcode", kind, t->item, owner,
                                                buf_str(json), err);
    buf_done(json);
    return s;
}

static enum status insert_task(struct db_conn *c, const struct queue_task *probe, const char *kind,
                               const char *state, size_t position, const char *target,
                               const struct publish_task *t, struct err *err)
{
    char id[UUID_SIZE];
    rand_uuid7(id);
    return db_exec(c,
                   "INSERT INTO orchestrator.task (id, job, item, kind, state, position, priority,"
                   "  target, renditions, first_segment, n_segments) VALUES ($1::uuid, $2::uuid,"
                   "  $3::uuid, $4::text, $5::text, $6::int, $7::int, $8::text, $9::text,"
                   "  $10::int, $11::int)",
                   DB_PARAMS(DB_TEXT(id), DB_TEXT(probe->job), DB_TEXT(probe->item), DB_TEXT(kind),
                             DB_TEXT(state), DB_I64(position), DB_I64(t->priority), DB_TEXT(target),
                             DB_TEXT(t->renditions), DB_I64(t->first_segment),
                             DB_I64(t->n_segments)),
                   NULL, err);
}

static enum status store_plan(struct db_conn *c, const struct publication *p,
                              const struct queue_task *t, struct err *err)
{
    const struct media_rendition *top = &p->plan->renditions[0];
    bool is_video = p->plan->kind == MEDIA_VIDEO;
    enum status s = db_exec(
        c,
        "UPDATE orchestrator.item SET plan = $2::bytea, duration_us = $3::bigint, kind = $4::text,"
        "  width = $5::int, height = $6::int, media_version = media_version + 1 "
        "WHERE id = $1::uuid",
        DB_PARAMS(DB_TEXT(t->item), DB_BYTES(p->r->plan, p->r->plan_len),
                  DB_I64(media_plan_duration_us(p->plan)), DB_TEXT(media_kind_name(p->plan->kind)),
                  DB_I64(is_video ? top->width : 0), DB_I64(is_video ? top->height : 0)),
        NULL, err);
    if (s == STATUS_OK)
        s = db_exec(c, "UPDATE orchestrator.job SET state = 'running' WHERE id = $1::uuid",
                    DB_PARAMS(DB_TEXT(t->job)), NULL, err);
    return s;
}

static bool put_arrays(const struct publication *p, struct buf arrays[5])
{
    bool ok = true;
    for (size_t i = 0; i < p->n_tasks; i++) {
        const struct publish_task *t = &p->tasks[i];
        char id[UUID_SIZE];
        rand_uuid7(id);
        char before = i ? ',' : '{';
        buf_printf(&arrays[0], "%c%s", before, id);
        buf_printf(&arrays[1], "%c%d", before, t->priority);
        buf_printf(&arrays[2], "%c\"%s\"", before, t->renditions);
        buf_printf(&arrays[3], "%c%d", before, t->first_segment);
        buf_printf(&arrays[4], "%c%d", before, t->n_segments);
    }
    for (size_t i = 0; i < 5; i++) {
        buf_puts(&arrays[i], p->n_tasks ? "}" : "{}");
        ok = ok && !arrays[i].failed;
    }
    return ok;
}

// All of a film at once: a statement for each of a long one's tasks would take seconds.
static enum status insert_chunks(struct db_conn *c, const struct publication *p,
                                 const struct queue_task *probe, size_t position, struct err *err)
{
    static const char sql[] =
        "INSERT INTO orchestrator.task (id, job, item, kind, state, position, priority,"
        "  renditions, first_segment, n_segments) "
        "SELECT x.id, $1::uuid, $2::uuid, 'chunk', $3::text, $4::int + x.n::int - 1, x.priority,"
        "  x.renditions, x.first, x.count FROM unnest($5::uuid[], $6::int[], $7::text[],"
        "  $8::int[], $9::int[]) WITH ORDINALITY AS x (id, priority, renditions, first, count, n)";
    struct buf arrays[5];
    for (size_t i = 0; i < 5; i++)
        buf_init(&arrays[i], MAX_TASKS_TEXT);
    enum status s =
        put_arrays(p, arrays)
            ? db_exec(c, sql,
                      DB_PARAMS(DB_TEXT(probe->job), DB_TEXT(probe->item),
                                DB_TEXT(p->move_to ? "blocked" : "available"), DB_I64(position),
                                DB_TEXT(buf_str(&arrays[0])), DB_TEXT(buf_str(&arrays[1])),
                                DB_TEXT(buf_str(&arrays[2])), DB_TEXT(buf_str(&arrays[3])),
                                DB_TEXT(buf_str(&arrays[4]))),
                      NULL, err)
            : err_set(err, STATUS_RESOURCE_EXHAUSTED, "tasks of a plan: out of memory");
    for (size_t i = 0; i < 5; i++)
        buf_done(&arrays[i]);
    return s;
}

// Poster and tiles, when the item has any: one task, after what play begins with. And what is
// measured of its sound: another one, after everything, so that it keeps nobody waiting.
static enum status insert_pictures(struct db_conn *c, const struct publication *p,
                                   const struct queue_task *t, bool measured, size_t position,
                                   struct err *err)
{
    struct publish_task images = {.n_segments = 1,
                                  .priority = measured ? ORCH_PRIO_MEASURE : ORCH_PRIO_IMAGES};
    for (int i = 0; i < MEDIA_N_IMAGES; i++) {
        size_t len = strlen(images.renditions);
        if (media_image_is_planned(p->plan, (enum media_image)i) &&
            media_image_is_measured((enum media_image)i) == measured)
            snprintf(images.renditions + len, sizeof images.renditions - len, "%s%s",
                     len ? "," : "", media_image_name((enum media_image)i));
    }
    if (!*images.renditions)
        return STATUS_OK;
    return insert_task(c, t, measured ? "measure" : "images", p->move_to ? "blocked" : "available",
                       position, "", &images, err);
}

// All tracks of text that the source has: one task, which reads the source once.
static enum status insert_texts(struct db_conn *c, const struct publication *p,
                                const struct queue_task *t, size_t position, struct err *err)
{
    struct publish_task task = {.n_segments = 1, .priority = ORCH_PRIO_TEXTS};
    struct media_text texts[MEDIA_MAX_TEXT_TRACKS];
    size_t n = media_texts_of_source(p->plan, texts);
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(task.renditions);
        snprintf(task.renditions + len, sizeof task.renditions - len, "%s%s", len ? "," : "",
                 texts[i].id);
    }
    if (n == 0)
        return STATUS_OK;
    return insert_task(c, t, "texts", p->move_to ? "blocked" : "available", position, "", &task,
                       err);
}

static enum status publish_plan(struct db_conn *c, const struct publication *p,
                                const struct queue_task *t, struct err *err)
{
    enum status s = store_plan(c, p, t, err);
    size_t position = 1;
    if (s == STATUS_OK && p->move_to) {
        struct publish_task move = {.priority = ORCH_PRIO_MOVE};
        s = insert_task(c, t, "move", "available", position++, p->move_to->id, &move, err);
    }
    if (s == STATUS_OK)
        s = insert_chunks(c, p, t, position, err);
    position += p->n_tasks;
    if (s == STATUS_OK)
        s = insert_pictures(c, p, t, false, position++, err);
    if (s == STATUS_OK)
        s = insert_texts(c, p, t, position++, err);
    if (s == STATUS_OK)
        s = insert_pictures(c, p, t, true, position, err);
    if (s != STATUS_OK)
        return s;
    struct buf json;
    buf_init(&json, 4096);
    buf_printf(&json, "{\"job\":\"%s\",\"kind\":\"%s\",\"duration_us\":%lld,\"tasks\":%zu,", t->job,
               media_kind_name(p->plan->kind), (long long)media_plan_duration_us(p->plan),
               p->n_tasks);
    buf_puts(&json, "\"renditions\":[");
    for (size_t i = 0; i < p->plan->n_renditions; i++)
        buf_printf(&json, "%s\"%s\"", i ? "," : "", p->plan->renditions[i].id);
    buf_puts(&json, "]}");
    return tell(c, t, "item.planned", p->owner, &json, err);
}

// A segment that somebody else published first: what this task stored is not wanted any more.
static enum status forget_object(struct db_conn *c, const char *item,
                                 const struct publish_output *o, struct err *err)
{
    return db_exec(c,
                   "INSERT INTO orchestrator.chore (kind, origin, item, digest) "
                   "SELECT 'unpin', i.route, i.id, $2::bytea FROM orchestrator.item i "
                   "WHERE i.id = $1::uuid AND NOT EXISTS (SELECT FROM orchestrator.output"
                   "  WHERE item = $1::uuid AND digest = $2::bytea)",
                   DB_PARAMS(DB_TEXT(item), DB_BYTES(o->digest, ORCH_DIGEST_SIZE)), NULL, err);
}

static enum status insert_output(struct db_conn *c, const struct publication *p,
                                 const struct queue_hold *h, const struct publish_output *o,
                                 struct err *err)
{
    const struct queue_seconds *sec = &p->r->seconds;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(
        c,
        "INSERT INTO orchestrator.output (item, rendition, segment, digest, size, first_pts,"
        "  duration, samples, init_digest, repeated, dropped, task, worker, attempts, seconds) "
        "VALUES ($1::uuid, $2::text, $3::int, $4::bytea, $5::bigint, $6::bigint, $7::bigint,"
        "  $8::int, $9::bytea, $10::int, $11::int, $12::uuid, $13::text, $14::int, $15::float8) "
        "ON CONFLICT (item, rendition, segment) DO NOTHING",
        DB_PARAMS(DB_TEXT(h->task.item), DB_TEXT(o->rendition), DB_I64(o->segment),
                  DB_BYTES(o->digest, ORCH_DIGEST_SIZE), DB_I64(o->size), DB_I64(o->first_pts),
                  DB_I64(o->duration), DB_I64(o->samples),
                  DB_BYTES(o->init_digest, ORCH_DIGEST_SIZE), DB_I64(o->repeated),
                  DB_I64(o->dropped), DB_TEXT(h->task.id), DB_TEXT(p->r->worker),
                  DB_I64(h->attempts), DB_DOUBLE(sec->fetch + sec->encode + sec->store)),
        &r, err);
    if (s == STATUS_OK && db_result_n_affected(r) == 0)
        s = forget_object(c, h->task.item, o, err);
    return s;
}

// First segments of one video rendition and of one audio rendition, as far as the item has them.
static enum status is_playable(struct db_conn *c, const struct media_plan *plan, const char *item,
                               bool *ret, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(
        c, "SELECT rendition FROM orchestrator.output WHERE item = $1::uuid AND segment = 0",
        DB_PARAMS(DB_TEXT(item)), &r, err);
    if (s != STATUS_OK)
        return s;
    bool video = plan->video.n_segments == 0, audio = plan->audio.n_segments == 0;
    for (size_t i = 0; i < db_result_n_rows(r); i++) {
        int which = media_plan_find(plan, db_text(r, i, 0));
        video |= which >= 0 && plan->renditions[which].kind == MEDIA_VIDEO;
        audio |= which >= 0 && plan->renditions[which].kind == MEDIA_AUDIO;
    }
    *ret = video && audio;
    return STATUS_OK;
}

static enum status become_playable(struct db_conn *c, const struct publication *p,
                                   const struct queue_task *t, struct err *err)
{
    bool playable = false;
    enum status s = is_playable(c, p->plan, t->item, &playable, err);
    if (s != STATUS_OK || !playable)
        return s;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    s = db_exec(c,
                "UPDATE orchestrator.job SET playable = now() "
                "WHERE id = $1::uuid AND playable IS NULL "
                "RETURNING (extract(epoch FROM now() - created) * 1000)::bigint",
                DB_PARAMS(DB_TEXT(t->job)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    s = db_exec(
        c,
        "UPDATE orchestrator.item SET state = 'playable', media_version = media_version + 1 "
        "WHERE id = $1::uuid AND state = 'processing'",
        DB_PARAMS(DB_TEXT(t->item)), NULL, err);
    if (s != STATUS_OK)
        return s;
    struct buf json;
    buf_init(&json, 512);
    buf_printf(&json, "{\"job\":\"%s\",\"ms\":%lld}", t->job, (long long)db_i64(r, 0, 0));
    return tell(c, t, "item.playable", p->owner, &json, err);
}

static enum status become_done(struct db_conn *c, const struct publication *p,
                               const struct queue_task *t, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(c,
                "UPDATE orchestrator.job j SET state = 'done', finished = now() "
                "WHERE id = $1::uuid AND state = 'running' AND NOT EXISTS ("
                "  SELECT FROM orchestrator.task WHERE job = j.id AND NOT demand"
                "    AND state <> 'done' AND NOT (state = 'dead' AND " QUEUE_BESIDE ")) "
                "RETURNING (extract(epoch FROM now() - created) * 1000)::bigint,"
                "  (SELECT count(*) FROM orchestrator.output WHERE item = j.item)",
                DB_PARAMS(DB_TEXT(t->job)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    s = db_exec(c,
                "UPDATE orchestrator.item SET state = 'ready', media_version = media_version + 1 "
                "WHERE id = $1::uuid",
                DB_PARAMS(DB_TEXT(t->item)), NULL, err);
    if (s != STATUS_OK)
        return s;
    struct buf json;
    buf_init(&json, 512);
    buf_printf(&json, "{\"job\":\"%s\",\"ms\":%lld,\"segments\":%lld}", t->job,
               (long long)db_i64(r, 0, 0), (long long)db_i64(r, 0, 1));
    return tell(c, t, "job.done", p->owner, &json, err);
}

enum status publish_end(struct db_conn *c, const struct queue_task *t, struct err *err)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c, "SELECT owner FROM orchestrator.job WHERE id = $1::uuid",
                            DB_PARAMS(DB_TEXT(t->job)), &r, err);
    if (s != STATUS_OK || db_result_n_rows(r) == 0)
        return s;
    struct publication p = {.owner = db_text(r, 0, 0)};
    return become_done(c, &p, t, err);
}

// Whoever waits for a normalised rendition goes on from here.
static enum status publish_loudness(struct db_conn *c, const struct publication *p,
                                    const struct queue_task *t, struct err *err)
{
    const struct media_loudness *l = p->r->loudness;
    if (!str_eq(t->kind, "measure"))
        return STATUS_OK;
    if (!l || !media_loudness_is_sane(l))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "a measurement without its numbers, or with impossible ones");
    enum status s = db_exec(c,
                            "UPDATE orchestrator.item SET loudness_mlufs = $2::int,"
                            "  loudness_range_mlu = $3::int, true_peak_mdb = $4::int "
                            "WHERE id = $1::uuid",
                            DB_PARAMS(DB_TEXT(t->item), DB_I64(l->integrated_mlufs),
                                      DB_I64(l->range_mlu), DB_I64(l->true_peak_mdb)),
                            NULL, err);
    if (s == STATUS_OK)
        s = db_exec(c,
                    "UPDATE orchestrator.task SET unmeasured = false,"
                    "  state = CASE WHEN state = 'blocked' THEN 'available' ELSE state END "
                    "WHERE item = $1::uuid AND unmeasured",
                    DB_PARAMS(DB_TEXT(t->item)), NULL, err);
    return s == STATUS_OK ? queue_notify(c, ORCH_TASK_CHANNEL, "", err) : s;
}

static enum status publish_made(struct db_conn *c, const struct publication *p,
                                const struct queue_hold *h, struct err *err)
{
    enum status s = publish_check(p->plan, &h->task, p->r->outputs, p->r->n_outputs, err);
    for (size_t i = 0; s == STATUS_OK && i < p->r->n_outputs; i++)
        s = insert_output(c, p, h, &p->r->outputs[i], err);
    if (s == STATUS_OK && str_eq(h->task.kind, "texts"))
        s = subtitles_made(c, &h->task, p->r->n_outputs > 0, p->r->left_out, err);
    if (s == STATUS_OK)
        s = publish_loudness(c, p, &h->task, err);
    return s;
}

// Whoever says that a chunk is done has published, now or before, all that it consists of.
static enum status check_all_made(struct db_conn *c, const struct queue_task *t, struct err *err)
{
    if (!str_eq(t->kind, "chunk"))
        return STATUS_OK;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_exec(c,
                            "SELECT count(*) FROM orchestrator.output WHERE item = $1::uuid"
                            "  AND rendition = ANY (string_to_array($2::text, ','))"
                            "  AND segment >= $3::int AND segment < $3::int + $4::int",
                            DB_PARAMS(DB_TEXT(t->item), DB_TEXT(t->renditions),
                                      DB_I64(t->first_segment), DB_I64(t->n_segments)),
                            &r, err);
    if (s != STATUS_OK)
        return s;
    int64_t n = db_i64(r, 0, 0), n_all = (int64_t)list_len(t->renditions) * t->n_segments;
    return n == n_all ? STATUS_OK
                      : err_set(err, STATUS_INVALID_ARGUMENT,
                                "%lld segments are published where the task has %lld", (long long)n,
                                (long long)n_all);
}

static enum status publish_move(struct db_conn *c, const struct queue_task *t, struct err *err)
{
    static const char *const steps[] = {
        // Whoever reads from the old place may finish.
        ("INSERT INTO orchestrator.chore (kind, origin, item, not_before) "
         "SELECT 'unpin', route, id, now() + interval '60 seconds' FROM orchestrator.item "
         "WHERE id = $1::uuid AND route <> $2::text"),
        "UPDATE orchestrator.item SET route = $2::text WHERE id = $1::uuid",
        ("UPDATE orchestrator.task SET state = 'available' "
         "WHERE item = $1::uuid AND state = 'blocked' AND NOT unmeasured AND $2::text <> ''"),
    };
    enum status s = STATUS_OK;
    for (size_t i = 0; s == STATUS_OK && i < N_ELEMENTS(steps); i++)
        s = db_exec(c, steps[i], DB_PARAMS(DB_TEXT(t->item), DB_TEXT(t->target)), NULL, err);
    return s;
}

// A part of a task that goes on.
static enum status publish_part(struct db_conn *c, struct publication *p,
                                const struct queue_hold *h, struct err *err)
{
    if (!str_eq(h->task.kind, "chunk"))
        return err_set(err, STATUS_FAILED_PRECONDITION, "a task of %s is published as a whole",
                       h->task.kind);
    enum status s = publish_made(c, p, h, err);
    if (s == STATUS_OK)
        s = demand_published(c, &h->task, p->away, &p->yield, err);
    if (s == STATUS_OK)
        s = become_playable(c, p, &h->task, err);
    return s == STATUS_OK ? queue_notify(c, ORCH_ITEM_CHANNEL, h->task.item, err) : s;
}

static enum status publish_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct publication *p = ud;
    struct queue_hold h = {.duplicate = false};
    enum status s = queue_hold(c, p->r->worker, p->r->task, p->r->fence, &h, err);
    p->duplicate = h.duplicate;
    if (s != STATUS_OK || h.duplicate)
        return s;
    const struct queue_task *t = &h.task;
    if (p->r->part)
        return publish_part(c, p, &h, err);
    // queue_done() locks the worker's row, which comes before the event topic's.
    bool made = queue_is_planned(t->kind);
    if (made)
        s = publish_made(c, p, &h, err);
    if (s == STATUS_OK && made)
        s = check_all_made(c, t, err);
    if (s == STATUS_OK)
        s = queue_done(c, p->r->worker, &h, &p->r->seconds, err);
    if (s == STATUS_OK && str_eq(t->kind, "move"))
        s = publish_move(c, t, err);
    if (s == STATUS_OK && str_eq(t->kind, "probe"))
        s = publish_plan(c, p, t, err);
    if (s == STATUS_OK)
        s = verify_order(c, p->options, p->r->worker, t, err);
    if (s == STATUS_OK && !made)
        s = queue_notify(c, ORCH_TASK_CHANNEL, "", err);
    if (s == STATUS_OK && made)
        s = become_playable(c, p, t, err);
    if (s == STATUS_OK)
        s = become_done(c, p, t, err);
    return s == STATUS_OK ? queue_notify(c, ORCH_ITEM_CHANNEL, t->item, err) : s;
}

// ---------------------------------------------------------------- before it

// The origin that a source of this kind belongs to; NULL when it lies on one already, or there is
// none.
static const struct svc_node *find_move(struct orch *o, const struct item *it, const char *kind)
{
    const struct svc_node *here = orch_origin_node(o, it->route);
    if (here && str_eq(here->kind, kind))
        return NULL;
    const struct svc_node *to = backends_pick(o->backends, kind, it->size, NULL, 0);
    for (size_t i = 0; !to && i < o->env.n_origins; i++)
        if (str_eq(o->env.origins[i]->kind, kind))
            to = o->env.origins[i]; // away just now: the task is tried again
    return to;
}

// A worker says that the source lies there: so must the origin.
static enum status check_moved(struct orch *o, const struct item *it, const char *target,
                               struct err *err)
{
    struct rpc_client *c = orch_origin(o, target, err);
    if (!c)
        return STATUS_UNAVAILABLE;
    Origin__StatRequest req;
    origin__stat_request__init(&req);
    uint8_t digest[ORCH_DIGEST_SIZE];
    memcpy(digest, it->digest, sizeof digest);
    req.digest = (ProtobufCBinaryData){.data = digest, .len = sizeof digest};
    struct rpc_opts opts = {.deadline_us = time_deadline_in_ms(STAT_DEADLINE_MS)};
    AUTO(rpc_message_free_p) Origin__StatReply *reply = NULL;
    enum status s = origin_object_stat(c, &opts, &req, &reply, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "origin %s", target);
    if (!reply->exists || reply->size != it->size)
        return err_set(err, STATUS_INVALID_ARGUMENT, "origin %s does not have the moved source",
                       target);
    return STATUS_OK;
}

static enum status prepare(struct orch *o, struct publication *p, const struct item *it,
                           const char *target, struct item_plan **ret_plan, struct err *err)
{
    if (verify_is(p->expect_kind))
        return STATUS_OK;
    if (str_eq(p->expect_kind, "move"))
        return check_moved(o, it, target, err);
    if (queue_is_planned(p->expect_kind)) {
        p->plan = it->plan->plan;
        return STATUS_OK;
    }
    struct item_plan *plan = item_plan_new(p->r->plan, p->r->plan_len, err);
    if (!plan)
        return err->code;
    *ret_plan = plan;
    p->plan = plan->plan;
    if (p->plan->source.size_bytes != it->size)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the plan is of another source");
    p->move_to = find_move(o, it, media_kind_name(p->plan->kind));
    return publish_tasks(p->plan, &p->tasks, &p->n_tasks, err);
}

enum status publish(struct orch *o, const struct publish_result *r, struct publish_verdict *ret,
                    struct err *err)
{
    struct err own = ERR_INIT;
    if (!err)
        err = &own;
    AUTO(db_result_free_p) struct db_result *row = NULL;
    enum status s =
        db_query(o->db, "SELECT item, kind, target FROM orchestrator.task WHERE id = $1::uuid",
                 DB_PARAMS(DB_TEXT(r->task)), &row, err);
    if (s != STATUS_OK)
        return s;
    if (db_result_n_rows(row) == 0)
        return err_set(err, STATUS_NOT_FOUND, "no task %s", r->task);
    AUTO(item_done) struct item it = {0};
    bool planned = queue_is_planned(db_text(row, 0, 1));
    s = planned ? items_get_planned(o->items, db_text(row, 0, 0), &it, err)
                : items_get(o->items, db_text(row, 0, 0), &it, err);
    if (s != STATUS_OK)
        return s;
    char away[ORCH_AWAY_TEXT];
    backends_away(o->backends, away, sizeof away);
    struct publication p = {.r = r,
                            .options = o->env.options,
                            .away = away,
                            .expect_kind = db_text(row, 0, 1),
                            .owner = it.owner};
    AUTO(item_plan_unref_p) struct item_plan *plan = NULL;
    s = prepare(o, &p, &it, db_text(row, 0, 2), &plan, err);
    if (s == STATUS_OK)
        s = db_tx(o->db, DB_READ_COMMITTED, publish_tx, &p, err);
    mem_free(p.tasks);
    if (s != STATUS_OK)
        return err_wrap(err, s, "publish task %s", r->task);
    items_changed(o->items, it.id); // the notification may come later
    hub_wake(o->hub, HUB_ITEM, it.id);
    *ret = (struct publish_verdict){.duplicate = p.duplicate, .yield = p.yield};
    return STATUS_OK;
}
