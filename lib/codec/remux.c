// Renditions that are copies: the source's own packets in our boxes.
//
// The probe finds out whether the pictures fit: each lies on the grid at a place of its own, and
// the grid can be cut where groups of pictures are closed. A segment is then the packets from one
// such keyframe to the next, in their order, with the grid's times: the i-th packet's decode time
// is the i-th presentation time, as in every rendition.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "codec/internal.h"

#define MAX_SEGMENT_BYTES (48U << 20) // of packets; leaves room for boxes
#define MAX_RECORD 2048
#define LOOK_KEYS 6 // keyframes whose packets the probe reads, spread over the film
#define LOOK_PACKETS 400
#define BACK_STEP_S 6
#define START_ATTEMPTS 3

static enum media_codec copied_codec(enum AVCodecID id)
{
    return id == AV_CODEC_ID_H264   ? MEDIA_CODEC_H264
           : id == AV_CODEC_ID_HEVC ? MEDIA_CODEC_HEVC
                                    : MEDIA_CODEC_NONE;
}

// ---- does it fit? ----

static bool format_fits(const AVCodecParameters *par)
{
    if (par->codec_id == AV_CODEC_ID_HEVC)
        return (par->format == AV_PIX_FMT_YUV420P || par->format == AV_PIX_FMT_YUV420P10) &&
               par->field_order <= AV_FIELD_PROGRESSIVE;
    return par->codec_id == AV_CODEC_ID_H264 && par->format == AV_PIX_FMT_YUV420P &&
           par->field_order == AV_FIELD_PROGRESSIVE;
}

static bool container_fits(const struct codec_input *in)
{
    const char *f = in->fmt->iformat->name;
    return codec_is_mov(in) || str_starts_with(f, "matroska") || str_eq(f, "mpegts") ||
           str_eq(f, "flv");
}

static bool stream_fits(const struct codec_input *in, int stream)
{
    const AVStream *st = in->fmt->streams[stream];
    const AVCodecParameters *par = st->codecpar;
    AVRational sar =
        st->sample_aspect_ratio.num ? st->sample_aspect_ratio : par->sample_aspect_ratio;
    return container_fits(in) && format_fits(par) && (sar.num == 0 || sar.num == sar.den) &&
           codec_rotation(st) == 0 && par->width % 2 == 0 && par->height % 2 == 0;
}

// The grid frame that a picture of that time is; n_frames when it is none. Half a frame of a
// constant grid is the most that a time may be off.
static uint32_t frame_of(const struct media_grid *g, AVRational tb, int64_t zero, int64_t pts)
{
    int64_t t = av_rescale_q_rnd(pts - zero, tb, (AVRational){1, (int)g->timescale},
                                 AV_ROUND_NEAR_INF | AV_ROUND_PASS_MINMAX);
    if (!g->frame_times) {
        t += g->frame_ticks / 2;
        return t < 0 || t >= g->duration ? g->n_frames : (uint32_t)(t / g->frame_ticks);
    }
    uint32_t lo = 0, hi = g->n_frames;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (g->frame_times[mid] < t)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < g->n_frames && g->frame_times[lo] == t ? lo : g->n_frames;
}

static bool pictures_fill_grid(const struct media_grid *g, AVRational tb, int64_t zero,
                               const struct codec_picture *pics, size_t n)
{
    if (n != g->n_frames)
        return false;
    for (uint32_t i = 0; i < g->n_frames; i++)
        if (frame_of(g, tb, zero, pics[i].pts) != i)
            return false;
    return true;
}

// ret[o]: which picture, by time, is the o-th packet of the source.
static uint32_t *packets_in_order(const struct codec_picture *pics, size_t n)
{
    uint32_t *by_order = mem_array(n, sizeof(*by_order));
    for (size_t i = 0; by_order && i < n; i++)
        by_order[pics[i].order] = (uint32_t)i;
    return by_order;
}

// Closed: no packet after the keyframe's shows before it, none before it shows after. Then the
// packets that came before it are exactly the pictures before it. closed[i] for picture i.
static bool find_closed(const struct codec_picture *pics, size_t n, bool *closed)
{
    AUTO(mem_free_p) uint32_t *by_order = packets_in_order(pics, n);
    if (!by_order)
        return false;
    uint32_t most = 0; // one more than the latest picture so far
    for (size_t o = 0; o < n; o++) {
        uint32_t i = by_order[o];
        closed[i] = pics[i].key && most == o && i == o;
        if (i + 1 > most)
            most = i + 1;
    }
    return true;
}

// The packet begins a stream by itself, and brings no other parameter sets than the record's.
static bool entry_fits(const AVPacket *pkt, enum media_codec codec, unsigned length_size,
                       const uint8_t *record, size_t record_len)
{
    struct codec_nals w;
    struct codec_nal nal;
    bool entry = false, coded = false;
    codec_nals_init(&w, codec, length_size, pkt->data, (size_t)pkt->size);
    while (codec_nals_next(&w, &nal)) {
        if (codec_nal_is_set(codec, nal.type) && !codec_record_has(record, record_len, codec, &nal))
            return false;
        bool slice = codec == MEDIA_CODEC_HEVC ? nal.type < 32 : nal.type >= 1 && nal.type <= 5;
        if (slice && !coded) {
            coded = true;
            entry = codec_nal_is_entry(codec, nal.type);
        }
    }
    return entry && !w.damaged && !av_packet_get_side_data(pkt, AV_PKT_DATA_NEW_EXTRADATA, NULL);
}

// Read on to the packet of that time; false when it does not come soon.
static bool read_to(struct codec_input *in, int stream, int64_t pts, AVPacket *pkt)
{
    for (int n = 0; n < LOOK_PACKETS && av_read_frame(in->fmt, pkt) >= 0; n++) {
        if (pkt->stream_index == stream && pkt->pts == pts)
            return true;
        av_packet_unref(pkt);
    }
    return false;
}

// A few keyframes are read: that they are what the index says, that one record serves them all.
static enum status look_at_keys(struct codec_input *in, int stream, const struct media_plan *plan,
                                const struct media_grid *g, const struct buf *record,
                                unsigned length_size, bool *ret_fit, struct err *err)
{
    enum media_codec codec = copied_codec(in->fmt->streams[stream]->codecpar->codec_id);
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    if (!pkt)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    *ret_fit = true;
    size_t looks = g->n_segments < LOOK_KEYS ? g->n_segments : LOOK_KEYS;
    for (size_t k = 0; k < looks && *ret_fit; k++) {
        const struct media_segment *seg = &g->segments[k * g->n_segments / looks];
        enum status s =
            codec_input_seek(in, stream, plan->source.seek, seg->seek_ticks, seg->seek_offset, err);
        *ret_fit = s == STATUS_OK && read_to(in, stream, seg->seek_ticks, pkt) &&
                   entry_fits(pkt, codec, length_size, record->data, record->len);
        av_packet_unref(pkt);
        if (in->failed)
            return codec_error(in, AVERROR(EIO), "probe", err);
    }
    return STATUS_OK;
}

static bool sizes_fit(const struct media_grid *g, const struct codec_picture *pics)
{
    for (size_t i = 0; i < g->n_segments; i++) {
        uint64_t bytes = 0;
        for (uint32_t f = 0; f < g->segments[i].n_frames; f++)
            bytes += pics[g->segments[i].first_frame + f].size;
        if (bytes > MAX_SEGMENT_BYTES)
            return false;
    }
    return true;
}

static void drop_cuts(struct media_grid *g)
{
    mem_free(g->segments);
    mem_free(g->chunks);
    *g = (struct media_grid){0};
}

static enum status cut_at_closed(struct media_grid *g, const struct codec_picture *pics, size_t n,
                                 bool *ret_cut, struct err *err)
{
    AUTO(mem_free_p) bool *closed = mem_array(n, sizeof(*closed));
    AUTO(mem_free_p) struct media_keyframe *keys = mem_array(n, sizeof(*keys));
    if (!closed || !keys || !find_closed(pics, n, closed))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    size_t n_keys = 0;
    for (uint32_t i = 0; i < n; i++)
        if (closed[i])
            keys[n_keys++] =
                (struct media_keyframe){media_grid_frame_time(g, i), pics[i].pts, pics[i].pos};
    return media_plan_cut_at_keys(g, keys, n_keys, ret_cut, err);
}

enum status codec_copy_cut(struct codec_input *in, int stream, struct media_plan *plan,
                           const struct codec_picture *pics, size_t n, bool *ret_fits,
                           struct err *err)
{
    const AVStream *st = in->fmt->streams[stream];
    struct media_grid *g = &plan->video_copy;
    *ret_fits = false;
    if (n == 0 || !stream_fits(in, stream) ||
        !pictures_fill_grid(&plan->video, st->time_base, plan->source.video_zero, pics, n))
        return STATUS_OK;
    *g = plan->video; // its frames
    g->segments = NULL;
    g->chunks = NULL;
    g->n_segments = g->n_chunks = 0;
    struct buf record;
    unsigned length_size;
    buf_init(&record, MAX_RECORD);
    enum status s = codec_put_record(&record, copied_codec(st->codecpar->codec_id),
                                     st->codecpar->format == AV_PIX_FMT_YUV420P10 ? 10 : 8,
                                     st->codecpar->extradata, (size_t)st->codecpar->extradata_size,
                                     &length_size, NULL);
    bool cut = false;
    if (s == STATUS_OK)
        s = cut_at_closed(g, pics, n, &cut, err);
    else if (s == STATUS_INVALID_ARGUMENT || record.failed)
        s = STATUS_OK; // sets that are missing or too large: no copy
    bool fits = cut && sizes_fit(g, pics);
    in->sparse = false; // the keyframes are looked at themselves
    if (s == STATUS_OK && fits)
        s = look_at_keys(in, stream, plan, g, &record, length_size, &fits, err);
    buf_done(&record);
    if (!fits)
        drop_cuts(g);
    *ret_fits = fits;
    return s;
}

// ---- the rendition ----

static uint32_t clamp_rate(double v)
{
    return v < UINT32_MAX ? (uint32_t)v : UINT32_MAX;
}

// Mean and peak: the segments' own rates, which are known.
static void set_rates(struct media_rendition *r, const struct media_grid *g,
                      const struct codec_picture *pics)
{
    double all = 0, most = 1;
    for (size_t i = 0; i < g->n_segments; i++) {
        const struct media_segment *s = &g->segments[i];
        double bits = 0;
        for (uint32_t f = 0; f < s->n_frames; f++)
            bits += 8.0 * pics[s->first_frame + f].size;
        double rate = bits * g->timescale / (double)s->duration;
        most = rate > most ? rate : most;
        all += bits;
    }
    r->bitrate_bps = clamp_rate(all * g->timescale / (double)g->duration);
    r->maxrate_bps = clamp_rate(most);
}

// How far a picture's presentation lies before its packet's place in the order, at most.
static uint32_t order_shift(const struct media_grid *g, const struct codec_picture *pics, size_t n)
{
    int64_t most = 0;
    for (uint32_t i = 0; i < n; i++) {
        int64_t d = media_grid_frame_time(g, pics[i].order) - media_grid_frame_time(g, i);
        most = d > most ? d : most;
    }
    return (uint32_t)most;
}

enum status codec_copy_add(const struct codec_input *in, int stream, struct media_plan *plan,
                           const struct codec_picture *pics, size_t n, struct err *err)
{
    const AVCodecParameters *par = in->fmt->streams[stream]->codecpar;
    const struct media_grid *g = &plan->video_copy;
    if (plan->n_renditions == MEDIA_MAX_RENDITIONS)
        return STATUS_OK;
    struct media_rendition *r = &plan->renditions[plan->n_renditions];
    *r = (struct media_rendition){.id = "vcopy",
                                  .kind = MEDIA_VIDEO,
                                  .codec = copied_codec(par->codec_id),
                                  .track = (uint8_t)stream,
                                  .copy = true,
                                  .lazy = true,
                                  .width = (uint32_t)par->width,
                                  .height = (uint32_t)par->height,
                                  .frame_rate = plan->renditions[0].frame_rate,
                                  .timescale = g->timescale,
                                  .cts_shift = order_shift(g, pics, n),
                                  .scale_from = MEDIA_FROM_SOURCE};
    set_rates(r, g, pics);
    memcpy(r->color, plan->source.tracks[stream].color, sizeof(r->color));
    struct buf record;
    buf_init(&record, MAX_RECORD);
    enum status s =
        codec_put_record(&record, r->codec, par->format == AV_PIX_FMT_YUV420P10 ? 10 : 8,
                         par->extradata, (size_t)par->extradata_size, NULL, err);
    if (s == STATUS_OK) {
        bool hevc = r->codec == MEDIA_CODEC_HEVC;
        r->profile = hevc ? record.data[1] & 31 : record.data[1];
        r->level = hevc ? record.data[12] : record.data[3];
        s = codec_rendition_describe(r, &record, err);
    }
    buf_done(&record);
    if (s == STATUS_OK)
        plan->n_renditions++;
    return s;
}

// ---- the segments ----

struct note {
    size_t offset;
    uint32_t size, shown; // shown: index of presentation in the segment
    bool entry;
};

struct copy_job {
    struct codec_input *in;
    const struct media_plan *plan;
    const struct codec_sink *sink;
    const struct media_grid *grid;
    size_t rendition;
    int stream;
    enum media_codec codec;
    unsigned length_size;
    struct media_track_config config; // of the plan: the parameter sets that packets may bring
    uint32_t segment, end;
    struct buf data;
    struct note *notes;
    uint32_t n_notes;
};

static enum status disagrees(struct err *err, const char *how)
{
    return err_set(err, STATUS_INVALID_ARGUMENT, "the film cannot be copied: %s", how);
}

static enum status deliver(struct copy_job *j, struct buf *out, struct err *err)
{
    struct media_fragment check;
    enum status s =
        media_cmaf_check(j->plan, j->rendition, j->segment, out->data, out->len, &check, err);
    if (s != STATUS_OK)
        return err_wrap(err, STATUS_INTERNAL, "copy");
    struct media_segment_out head = {.rendition = (uint32_t)j->rendition,
                                     .segment = j->segment,
                                     .first_pts = check.first_pts,
                                     .duration = check.duration,
                                     .samples = check.n_samples,
                                     .size = (uint32_t)out->len};
    return j->sink->segment(j->sink->ud, &head, out->data, out->len, err);
}

static enum status finish_segment(struct copy_job *j, struct err *err)
{
    const struct media_grid *g = j->grid;
    const struct media_segment *seg = &g->segments[j->segment];
    struct media_sample *samples = mem_array(j->n_notes, sizeof(*samples));
    if (!samples)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "copy: out of memory");
    for (uint32_t i = 0; i < j->n_notes; i++) {
        const struct note *n = &j->notes[i];
        int64_t dts = media_grid_frame_time(g, seg->first_frame + i);
        samples[i] = (struct media_sample){
            .data = j->data.data + n->offset,
            .size = n->size,
            .duration = (uint32_t)(media_grid_frame_time(g, seg->first_frame + i + 1) - dts),
            .cts = (int32_t)(media_grid_frame_time(g, seg->first_frame + n->shown) - dts),
            .sync = n->entry};
    }
    struct buf out;
    buf_init(&out, MEDIA_MAX_SEGMENT_BYTES);
    enum status s = media_cmaf_fragment(j->segment + 1, MEDIA_VIDEO_TRACK, seg->start, samples,
                                        j->n_notes, &out, err);
    if (s == STATUS_OK)
        s = deliver(j, &out, err);
    buf_done(&out);
    mem_free(samples);
    j->segment++;
    j->n_notes = 0;
    buf_reset(&j->data);
    return s;
}

static enum status begin_segment(struct copy_job *j, struct err *err)
{
    mem_free(j->notes);
    j->notes = mem_array(j->grid->segments[j->segment].n_frames, sizeof(*j->notes));
    return j->notes ? STATUS_OK : err_set(err, STATUS_RESOURCE_EXHAUSTED, "copy: out of memory");
}

static enum status take(struct copy_job *j, const AVPacket *pkt, uint32_t frame, struct err *err)
{
    const struct media_segment *seg = &j->grid->segments[j->segment];
    if (frame < seg->first_frame || frame - seg->first_frame >= seg->n_frames)
        return disagrees(err, "its pictures come in another order than the probe saw");
    bool entry = entry_fits(pkt, j->codec, j->length_size, j->config.config, j->config.config_len);
    if (j->n_notes == 0 && !entry)
        return disagrees(err, "a keyframe of it cannot be decoded from, or settings change there");
    size_t at = j->data.len;
    struct codec_nals w;
    codec_nals_init(&w, j->codec, j->length_size, pkt->data, (size_t)pkt->size);
    if (!codec_put_nals(&j->data, &w, true))
        return w.damaged ? disagrees(err, "a packet is damaged")
                         : err_set(err, STATUS_RESOURCE_EXHAUSTED, "copy: out of memory");
    j->notes[j->n_notes++] =
        (struct note){at, (uint32_t)(j->data.len - at), frame - seg->first_frame,
                      entry && (pkt->flags & AV_PKT_FLAG_KEY)};
    return j->n_notes == seg->n_frames ? finish_segment(j, err) : STATUS_OK;
}

// Packets from the keyframe of the first segment on. *ret_begun false: it did not come.
static enum status copy_from_here(struct copy_job *j, bool *ret_begun, struct err *err)
{
    const struct media_grid *g = j->grid;
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    if (!pkt)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "copy: out of memory");
    AVRational tb = j->in->fmt->streams[j->stream]->time_base;
    uint32_t first = g->segments[j->segment].first_frame;
    *ret_begun = false;
    while (j->segment < j->end) {
        int r = codec_input_read(j->in, pkt);
        if (r < 0)
            return j->in->failed || r == AVERROR(ENOMEM) ? codec_error(j->in, r, "copy", err)
                   : *ret_begun ? disagrees(err, "it ends before the probe's did")
                                : STATUS_OK;
        uint32_t frame = pkt->stream_index == j->stream && pkt->pts != AV_NOPTS_VALUE
                             ? frame_of(g, tb, j->plan->source.video_zero, pkt->pts)
                             : g->n_frames;
        enum status s = STATUS_OK;
        if (frame < g->n_frames && !*ret_begun && frame > first) {
            av_packet_unref(pkt);
            return STATUS_OK; // went too far
        }
        *ret_begun |= frame == first;
        if (frame < g->n_frames && *ret_begun) {
            if (j->n_notes == 0)
                s = begin_segment(j, err);
            if (s == STATUS_OK)
                s = take(j, pkt, frame, err);
        }
        av_packet_unref(pkt);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

// From the keyframe that the plan names, from earlier, from the beginning.
static enum status copy(struct copy_job *j, struct err *err)
{
    const struct media_segment *seg = &j->grid->segments[j->segment];
    AVRational tb = j->in->fmt->streams[j->stream]->time_base;
    for (int attempt = 0; attempt < START_ATTEMPTS; attempt++) {
        int64_t ticks = seg->seek_ticks, offset = seg->seek_offset;
        bool begun = false;
        if (attempt == 1) {
            ticks -= av_rescale_q(BACK_STEP_S, (AVRational){1, 1}, tb);
            offset = offset > 8 << 20 ? offset - (8 << 20) : 0;
        } else if (attempt == 2) {
            ticks = MEDIA_TIME_UNKNOWN;
        }
        enum status s =
            codec_input_seek(j->in, j->stream, j->plan->source.seek, ticks, offset, err);
        if (s == STATUS_INVALID_ARGUMENT && attempt + 1 < START_ATTEMPTS)
            continue;
        if (s == STATUS_OK)
            s = copy_from_here(j, &begun, err);
        if (s != STATUS_OK || begun)
            return s;
    }
    return disagrees(err, "a keyframe is not where the probe saw it");
}

static enum status set_up(struct copy_job *j, struct err *err)
{
    const struct media_rendition *r = &j->plan->renditions[j->rendition];
    const struct media_track *t = &j->plan->source.tracks[r->track];
    if (t->index >= j->in->fmt->nb_streams)
        return err_set(err, STATUS_FAILED_PRECONDITION, "the plan is not this source's");
    j->stream = t->index;
    j->codec = r->codec;
    const AVCodecParameters *par = j->in->fmt->streams[j->stream]->codecpar;
    if (copied_codec(par->codec_id) != r->codec || par->extradata_size <= 0)
        return err_set(err, STATUS_FAILED_PRECONDITION, "the plan is not this source's");
    for (unsigned i = 0; i < j->in->fmt->nb_streams; i++)
        j->in->fmt->streams[i]->discard = (int)i == j->stream ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    enum status s = media_cmaf_init_config(j->plan, j->rendition, &j->config, err);
    struct buf record;
    buf_init(&record, MAX_RECORD);
    if (s == STATUS_OK)
        s = codec_put_record(&record, j->codec, par->format == AV_PIX_FMT_YUV420P10 ? 10 : 8,
                             par->extradata, (size_t)par->extradata_size, &j->length_size, err);
    if (s == STATUS_OK && (record.len != j->config.config_len ||
                           memcmp(record.data, j->config.config, record.len) != 0))
        s = err_set(err, STATUS_FAILED_PRECONDITION,
                    "the source's parameter sets are not the plan's");
    buf_done(&record);
    return s;
}

enum status codec_copy_video(struct codec_input *in, const struct media_plan *plan,
                             const struct media_task *task, size_t rendition,
                             const struct codec_sink *sink, struct err *err)
{
    struct copy_job j = {.in = in,
                         .plan = plan,
                         .sink = sink,
                         .grid = media_rendition_grid(plan, rendition),
                         .rendition = rendition,
                         .segment = task->first_segment,
                         .end = task->first_segment + task->n_segments};
    buf_init(&j.data, MEDIA_MAX_SEGMENT_BYTES);
    enum status s = set_up(&j, err);
    if (s == STATUS_OK)
        s = copy(&j, err);
    buf_done(&j.data);
    mem_free(j.notes);
    return s;
}
