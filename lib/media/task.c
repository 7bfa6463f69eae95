#include "media/task.h"

#include <string.h>

#include "base/str.h"
#include "media/image.h"
#include "media/texts.h"

#define MAX_THREADS 64
#define MAX_GAIN_MDB 60000

enum status media_options_parse(const char *preset, const char *const *codecs, size_t n_codecs,
                                struct media_options *ret, struct err *err)
{
    static const enum media_codec known[] = {MEDIA_CODEC_HEVC, MEDIA_CODEC_AV1, MEDIA_CODEC_VP9};
    struct media_options o = {.preset = MEDIA_PRESET_FAST};
    if (str_eq(preset, "quality"))
        o.preset = MEDIA_PRESET_QUALITY;
    else if (*preset && !str_eq(preset, "fast"))
        return err_set(err, STATUS_INVALID_ARGUMENT, "preset %s: there are fast and quality",
                       preset);
    for (size_t i = 0; i < n_codecs; i++) {
        size_t k = 0;
        while (k < N_ELEMENTS(known) && !str_eq(codecs[i], media_codec_name(known[k])))
            k++;
        if (k == N_ELEMENTS(known))
            return err_set(err, STATUS_INVALID_ARGUMENT,
                           "video codec %s: hevc, av1 and vp9 can be had besides H.264", codecs[i]);
        o.video_codecs |= 1U << known[k];
    }
    *ret = o;
    return STATUS_OK;
}

enum status media_task_encode(const struct media_task *t, struct buf *ret, struct err *err)
{
    buf_put_u8(ret, (uint8_t)t->kind);
    buf_put_be64(ret, (uint64_t)t->source_size);
    buf_put_be32(ret, t->threads);
    buf_put_u8(ret, (uint8_t)t->options.preset);
    buf_put_be32(ret, t->options.video_codecs);
    buf_put_be32(ret, (uint32_t)t->gain_mdb);
    buf_put_be32(ret, t->window_blocks);
    buf_put_be32(ret, t->first_segment);
    buf_put_be32(ret, t->n_segments);
    buf_put_u8(ret, (uint8_t)t->n_renditions);
    buf_append(ret, t->renditions, t->n_renditions);
    buf_put_be32(ret, (uint32_t)t->plan_len);
    buf_append(ret, t->plan, t->plan_len);
    if (ret->failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "task: out of memory");
    return STATUS_OK;
}

static bool images_exist(const struct media_task *t)
{
    for (uint32_t i = 0; i < t->n_renditions; i++) {
        if (t->renditions[i] >= MEDIA_N_IMAGES)
            return false;
    }
    return true;
}

static bool texts_exist(const struct media_task *t)
{
    for (uint32_t i = 0; i < t->n_renditions; i++) {
        bool file = t->renditions[i] == MEDIA_TEXT_FILE && t->n_renditions == 1;
        if (t->renditions[i] >= MEDIA_MAX_TRACKS && !file)
            return false;
    }
    return true;
}

static bool task_is_sound(const struct media_task *t)
{
    if (t->source_size <= 0 || t->threads < 1 || t->threads > MAX_THREADS)
        return false;
    if ((unsigned)t->options.preset >= MEDIA_N_PRESETS || t->gain_mdb < -MAX_GAIN_MDB ||
        t->gain_mdb > MAX_GAIN_MDB)
        return false;
    if (t->window_blocks &&
        (t->window_blocks < MEDIA_MIN_WINDOW_BLOCKS || t->window_blocks > MEDIA_MAX_WINDOW_BLOCKS))
        return false;
    switch (t->kind) {
    case MEDIA_TASK_PROBE:
        return t->n_renditions == 0 && t->n_segments == 0 && t->plan_len == 0;
    case MEDIA_TASK_CHUNK:
    case MEDIA_TASK_VERIFY:
        return t->n_renditions >= 1 && t->n_segments >= 1 && t->n_segments <= MEDIA_MAX_SEGMENTS &&
               t->first_segment <= MEDIA_MAX_SEGMENTS && t->plan_len > 0;
    case MEDIA_TASK_IMAGES:
    case MEDIA_TASK_MEASURE:
        return t->n_renditions >= 1 && t->n_segments == 1 && t->first_segment == 0 &&
               t->plan_len > 0 && images_exist(t);
    case MEDIA_TASK_TEXTS:
        return t->n_renditions >= 1 && t->n_segments == 1 && t->first_segment == 0 &&
               t->plan_len > 0 && texts_exist(t);
    }
    return false;
}

enum status media_task_decode(const void *bytes, size_t n, struct media_task *ret, struct err *err)
{
    struct reader r;
    struct media_task t = {0};
    reader_init(&r, bytes, n);
    t.kind = reader_u8(&r);
    t.source_size = (int64_t)(reader_be64(&r) & INT64_MAX);
    t.threads = reader_be32(&r);
    t.options.preset = reader_u8(&r);
    t.options.video_codecs = reader_be32(&r);
    t.gain_mdb = (int32_t)reader_be32(&r);
    t.window_blocks = reader_be32(&r);
    t.first_segment = reader_be32(&r);
    t.n_segments = reader_be32(&r);
    t.n_renditions = reader_u8(&r);
    if (t.n_renditions > MEDIA_MAX_RENDITIONS)
        return err_set(err, STATUS_INVALID_ARGUMENT, "task: %u renditions", t.n_renditions);
    const uint8_t *ids = reader_bytes(&r, t.n_renditions);
    if (ids)
        memcpy(t.renditions, ids, t.n_renditions);
    t.plan_len = reader_be32(&r);
    t.plan = reader_bytes(&r, t.plan_len);
    if (r.failed || reader_left(&r) != 0 || !task_is_sound(&t))
        return err_set(err, STATUS_INVALID_ARGUMENT, "task: damaged");
    *ret = t;
    return STATUS_OK;
}

static void put_out(struct buf *b, const struct media_segment_out *o)
{
    buf_put_be32(b, o->rendition);
    buf_put_be32(b, o->segment);
    buf_put_be64(b, (uint64_t)o->first_pts);
    buf_put_be64(b, (uint64_t)o->duration);
    buf_put_be32(b, o->samples);
    buf_put_be32(b, o->repeated);
    buf_put_be32(b, o->dropped);
    buf_put_be32(b, o->size);
}

static void get_out(struct reader *r, struct media_segment_out *o)
{
    o->rendition = reader_be32(r);
    o->segment = reader_be32(r);
    o->first_pts = (int64_t)reader_be64(r);
    o->duration = (int64_t)reader_be64(r);
    o->samples = reader_be32(r);
    o->repeated = reader_be32(r);
    o->dropped = reader_be32(r);
    o->size = reader_be32(r);
}

enum status media_record_encode(const struct media_record *r, struct buf *ret, struct err *err)
{
    size_t from = ret->len;
    buf_put_u8(ret, (uint8_t)r->type);
    switch (r->type) {
    case MEDIA_REC_READY:
        break;
    case MEDIA_REC_TASK:
    case MEDIA_REC_PLAN:
        buf_put_be64(ret, (uint64_t)r->a);
        break;
    case MEDIA_REC_READ:
    case MEDIA_REC_AVAILABLE:
    case MEDIA_REC_PROGRESS:
        buf_put_be64(ret, (uint64_t)r->a);
        buf_put_be64(ret, (uint64_t)r->b);
        break;
    case MEDIA_REC_DATA:
        buf_append(ret, r->data, r->data_len);
        break;
    case MEDIA_REC_SEGMENT:
        put_out(ret, &r->out);
        break;
    case MEDIA_REC_VERDICT:
        buf_put_u8(ret, (uint8_t)r->verdict);
        buf_append(ret, r->text, strnlen(r->text, sizeof(r->text) - 1));
        break;
    }
    if (ret->failed || ret->len - from > MEDIA_RECORD_MAX)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "record: too large or out of memory");
    return STATUS_OK;
}

// Text from the confined process reaches people and logs: printable UTF-8 or nothing.
static bool get_text(struct reader *r, char *dst, size_t size)
{
    size_t n = reader_left(r);
    const uint8_t *p = reader_bytes(r, n);
    if (n >= size || (n && !str_is_utf8(p, n)))
        return false;
    for (size_t i = 0; i < n; i++)
        dst[i] = p[i] < 0x20 || p[i] == 0x7f ? ' ' : (char)p[i];
    dst[n] = '\0';
    return true;
}

static bool get_body(struct reader *r, struct media_record *rec)
{
    switch (rec->type) {
    case MEDIA_REC_READY:
        return true;
    case MEDIA_REC_TASK:
    case MEDIA_REC_PLAN:
        rec->a = (int64_t)reader_be64(r);
        return rec->a >= 0;
    case MEDIA_REC_READ:
    case MEDIA_REC_AVAILABLE:
    case MEDIA_REC_PROGRESS:
        rec->a = (int64_t)reader_be64(r);
        rec->b = (int64_t)reader_be64(r);
        return rec->a >= 0 && rec->b >= 0;
    case MEDIA_REC_DATA:
        rec->data_len = reader_left(r);
        rec->data = reader_bytes(r, rec->data_len);
        return rec->data_len > 0;
    case MEDIA_REC_SEGMENT:
        get_out(r, &rec->out);
        return rec->out.size > 0 && rec->out.size <= MEDIA_MAX_SEGMENT_BYTES;
    case MEDIA_REC_VERDICT:
        rec->verdict = reader_u8(r);
        return rec->verdict <= MEDIA_VERDICT_FAILED && get_text(r, rec->text, sizeof(rec->text));
    }
    return false;
}

enum status media_record_decode(const void *packet, size_t n, struct media_record *ret,
                                struct err *err)
{
    struct reader r;
    struct media_record rec = {0};
    reader_init(&r, packet, n);
    rec.type = reader_u8(&r);
    if (n > MEDIA_RECORD_MAX || !get_body(&r, &rec) || r.failed || reader_left(&r) != 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "record: damaged, type %u",
                       (unsigned)rec.type);
    *ret = rec;
    return STATUS_OK;
}
