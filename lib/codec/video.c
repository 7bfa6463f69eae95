// Video chunks: one decode, one scaling chain, a fresh encoder per segment and rung.
//
// The decoder runs from the keyframe that the plan names; each grid frame takes the latest decoded
// frame at or before it. With more than one thread every rung's encoder has a thread of its own
// that is fed through a short queue; the bytes do not depend on it, because an encoder sees the
// same frames in the same order either way.
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "codec/internal.h"

#define QUEUE_FRAMES 6
#define NEAR_MS 250 // before the first wanted frame every picture is decoded
#define BACK_STEP_S                                                                                \
    6 // how much earlier decoding starts when nothing came out before the first frame

struct feed {
    AVFrame *frame;
    uint32_t segment, index, repeated, dropped; // index within the segment
};

struct packet_note {
    size_t offset;
    uint32_t size, shown; // shown: index of presentation in the segment
    bool key;
};

struct video_job;

struct lane {
    struct video_job *job;
    size_t rendition;
    // the segment being made
    AVCodecContext *enc;
    struct buf data;
    struct packet_note *notes;
    uint32_t n_notes, n_frames;
    // the queue, when there is a thread
    bool threaded, closed;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct feed queue[QUEUE_FRAMES];
    size_t n_queued;
};

struct video_job {
    struct codec_input *in;
    const struct media_plan *plan;
    const struct media_task *task;
    const struct codec_sink *sink;
    const struct media_grid *grid;
    int stream;
    AVCodecContext *dec;
    int64_t zero;     // stream ticks of timeline 0
    int64_t expected; // stream ticks of a picture that says no time; unknown: AV_NOPTS_VALUE
    int64_t slack;    // grid ticks by which a frame may be later than the grid frame it shows at
    // Preroll: pictures that no other needs are left out before skip_before; the latest is noted.
    bool may_skip;
    int64_t skip_before, left_out; // stream ticks
    uint32_t first_frame, end_frame, next_frame;
    struct codec_scaler *scalers[MEDIA_MAX_RENDITIONS]; // NULL: not needed
    AVFrame *pictures[MEDIA_MAX_RENDITIONS];            // of the current decoded frame
    struct codec_burner *burners[MEDIA_MAX_RENDITIONS]; // NULL: nothing to burn in
    AVFrame *current;
    bool current_shown, pictures_valid;
    uint32_t segment, repeated, dropped;
    struct lane lanes[MEDIA_MAX_RENDITIONS];
    size_t n_lanes;
    pthread_mutex_t out_lock; // around sink and failure
    enum status failure;
    struct err failure_err;
    atomic_bool failed;
};

static void job_fail(struct video_job *j, enum status s, const struct err *why)
{
    pthread_mutex_lock(&j->out_lock);
    if (j->failure == STATUS_OK) {
        j->failure = s;
        j->failure_err = *why;
    }
    pthread_mutex_unlock(&j->out_lock);
    atomic_store(&j->failed, true);
}

// ---- a lane: frames in, segments out ----

static enum status lane_begin(struct lane *l, uint32_t segment, struct err *err)
{
    const struct media_plan *p = l->job->plan;
    enum status s = codec_encoder_open(&p->renditions[l->rendition], &l->enc, err);
    if (s == STATUS_OK)
        s = codec_encoder_matches(l->enc, p, l->rendition, err);
    if (s != STATUS_OK)
        return s;
    l->n_frames = l->job->grid->segments[segment].n_frames;
    l->n_notes = 0;
    buf_reset(&l->data);
    mem_free(l->notes);
    l->notes = mem_array(l->n_frames, sizeof(*l->notes));
    return l->notes ? STATUS_OK : err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
}

static enum status lane_collect(struct lane *l, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    if (!pkt)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
    int r;
    while ((r = avcodec_receive_packet(l->enc, pkt)) >= 0) {
        size_t at = l->data.len;
        bool sane = l->n_notes < l->n_frames && pkt->pts >= 0 && pkt->pts < l->n_frames;
        if (!sane || !codec_put_sample(&l->data, l->job->plan->renditions[l->rendition].codec,
                                       pkt->data, (size_t)pkt->size)) {
            av_packet_unref(pkt);
            return err_set(err, sane ? STATUS_RESOURCE_EXHAUSTED : STATUS_INTERNAL,
                           sane ? "encode: out of memory" : "encode: a picture that was not given");
        }
        l->notes[l->n_notes++] =
            (struct packet_note){at, (uint32_t)(l->data.len - at), (uint32_t)pkt->pts,
                                 (pkt->flags & AV_PKT_FLAG_KEY) != 0};
        av_packet_unref(pkt);
    }
    if (r != AVERROR(EAGAIN) && r != AVERROR_EOF)
        return err_set(err, STATUS_INTERNAL, "encode: %s", av_err2str(r));
    return STATUS_OK;
}

static enum status lane_deliver(struct lane *l, const struct feed *f, struct buf *out,
                                struct err *err)
{
    struct video_job *j = l->job;
    struct media_fragment check;
    enum status s =
        media_cmaf_check(j->plan, l->rendition, f->segment, out->data, out->len, &check, err);
    if (s != STATUS_OK)
        return err_wrap(err, STATUS_INTERNAL, "encode");
    struct media_segment_out head = {.rendition = (uint32_t)l->rendition,
                                     .segment = f->segment,
                                     .first_pts = check.first_pts,
                                     .duration = check.duration,
                                     .samples = check.n_samples,
                                     .repeated = f->repeated,
                                     .dropped = f->dropped,
                                     .size = (uint32_t)out->len};
    pthread_mutex_lock(&j->out_lock);
    s = j->sink->segment(j->sink->ud, &head, out->data, out->len, err);
    pthread_mutex_unlock(&j->out_lock);
    return s;
}

// The i-th sample's decode time is the i-th presentation time of the grid.
static enum status lane_finish(struct lane *l, const struct feed *f, struct err *err)
{
    const struct media_grid *g = l->job->grid;
    uint32_t first = g->segments[f->segment].first_frame;
    if (l->n_notes != l->n_frames)
        return err_set(err, STATUS_INTERNAL, "encode: %u pictures in, %u out", l->n_frames,
                       l->n_notes);
    struct media_sample *samples = mem_array(l->n_frames, sizeof(*samples));
    if (!samples)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
    for (uint32_t i = 0; i < l->n_frames; i++) {
        const struct packet_note *n = &l->notes[i];
        int64_t dts = media_grid_frame_time(g, first + i);
        samples[i] = (struct media_sample){
            .data = l->data.data + n->offset,
            .size = n->size,
            .duration = (uint32_t)(media_grid_frame_time(g, first + i + 1) - dts),
            .cts = (int32_t)(media_grid_frame_time(g, first + n->shown) - dts),
            .sync = n->key};
    }
    struct buf out;
    buf_init(&out, MEDIA_MAX_SEGMENT_BYTES);
    enum status s =
        media_cmaf_fragment(f->segment + 1, MEDIA_VIDEO_TRACK, g->segments[f->segment].start,
                            samples, l->n_frames, &out, err);
    if (s == STATUS_OK)
        s = lane_deliver(l, f, &out, err);
    buf_done(&out);
    mem_free(samples);
    codec_context_free_p(&l->enc);
    return s;
}

static enum status lane_encode(struct lane *l, const struct feed *f, struct err *err)
{
    enum status s = STATUS_OK;
    if (f->index == 0)
        s = lane_begin(l, f->segment, err);
    if (s != STATUS_OK)
        return s;
    f->frame->pts = f->index;
    f->frame->pict_type = AV_PICTURE_TYPE_NONE;
    int r = avcodec_send_frame(l->enc, f->frame);
    if (r < 0)
        return err_set(err, r == AVERROR(ENOMEM) ? STATUS_RESOURCE_EXHAUSTED : STATUS_INTERNAL,
                       "encode: %s", av_err2str(r));
    bool last = f->index + 1 == l->n_frames;
    if (last)
        (void)avcodec_send_frame(l->enc, NULL);
    s = lane_collect(l, err);
    return s == STATUS_OK && last ? lane_finish(l, f, err) : s;
}

static void lane_run(struct lane *l, struct feed *f)
{
    struct err err = ERR_INIT;
    if (!atomic_load(&l->job->failed)) {
        enum status s = lane_encode(l, f, &err);
        if (s != STATUS_OK)
            job_fail(l->job, s, &err);
    }
    av_frame_free(&f->frame);
}

static void *lane_main(void *ud)
{
    struct lane *l = ud;
    for (;;) {
        pthread_mutex_lock(&l->lock);
        while (l->n_queued == 0 && !l->closed)
            pthread_cond_wait(&l->changed, &l->lock);
        if (l->n_queued == 0) {
            pthread_mutex_unlock(&l->lock);
            return NULL;
        }
        struct feed f = l->queue[0];
        memmove(l->queue, l->queue + 1, --l->n_queued * sizeof(f));
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->lock);
        lane_run(l, &f);
    }
}

static void lane_push(struct lane *l, struct feed f)
{
    if (!l->threaded) {
        lane_run(l, &f);
        return;
    }
    pthread_mutex_lock(&l->lock);
    while (l->n_queued == QUEUE_FRAMES)
        pthread_cond_wait(&l->changed, &l->lock);
    l->queue[l->n_queued++] = f;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static void lane_init(struct lane *l, struct video_job *j, size_t rendition)
{
    l->job = j;
    l->rendition = rendition;
    buf_init(&l->data, MEDIA_MAX_SEGMENT_BYTES);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    // Without a thread to be had the caller's does it.
    l->threaded = j->task->threads > 1 && pthread_create(&l->thread, NULL, lane_main, l) == 0;
}

// Waits for what is queued.
static void lane_done(struct lane *l)
{
    if (l->threaded) {
        pthread_mutex_lock(&l->lock);
        l->closed = true;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->lock);
        pthread_join(l->thread, NULL);
    }
    codec_context_free_p(&l->enc);
    buf_done(&l->data);
    mem_free(l->notes);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
}

// ---- from decoded frames to grid frames ----

static void drop_pictures(struct video_job *j)
{
    for (size_t i = 0; i < MEDIA_MAX_RENDITIONS; i++)
        av_frame_free(&j->pictures[i]);
    j->pictures_valid = false;
}

// The current frame at every size that is needed, each from the one above it.
static enum status make_pictures(struct video_job *j, struct err *err)
{
    if (j->pictures_valid)
        return STATUS_OK;
    drop_pictures(j);
    for (size_t i = 0; i < j->plan->n_renditions; i++) {
        if (!j->scalers[i])
            continue;
        uint8_t from = j->plan->renditions[i].scale_from;
        const AVFrame *source = from == MEDIA_FROM_SOURCE ? j->current : j->pictures[from];
        enum status s = codec_scaler_run(j->scalers[i], source, &j->pictures[i], err);
        if (s != STATUS_OK)
            return s;
    }
    j->pictures_valid = true;
    return STATUS_OK;
}

// Grid frame next_frame shows the current picture.
static enum status show(struct video_job *j, struct err *err)
{
    enum status s = make_pictures(j, err);
    if (s != STATUS_OK)
        return s;
    const struct media_segment *seg = &j->grid->segments[j->segment];
    j->repeated += j->current_shown;
    j->current_shown = true;
    uint32_t index = j->next_frame - seg->first_frame;
    for (size_t i = 0; i < j->n_lanes; i++) {
        size_t which = j->lanes[i].rendition;
        AVFrame *f = av_frame_clone(j->pictures[which]);
        if (!f)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
        if (j->burners[which])
            s = codec_burner_run(j->burners[which], f, j->segment, j->next_frame, err);
        if (s != STATUS_OK) {
            av_frame_free(&f);
            return s;
        }
        lane_push(&j->lanes[i], (struct feed){f, j->segment, index, j->repeated, j->dropped});
    }
    if (++j->next_frame == seg->first_frame + seg->n_frames) {
        j->segment++;
        j->repeated = j->dropped = 0;
    }
    if (j->sink->progress && (j->next_frame % 16 == 0 || j->next_frame == j->end_frame)) {
        pthread_mutex_lock(&j->out_lock);
        j->sink->progress(j->sink->ud, j->next_frame - j->first_frame,
                          j->end_frame - j->first_frame);
        pthread_mutex_unlock(&j->out_lock);
    }
    if (atomic_load(&j->failed))
        return err_set(err, STATUS_ABORTED,
                       "encode: stopped"); // the lane's own error is told instead
    return STATUS_OK;
}

static int64_t frame_time(const struct video_job *j, const AVFrame *f)
{
    const AVStream *st = j->in->fmt->streams[j->stream];
    int64_t t = f->best_effort_timestamp;
    if (t == AV_NOPTS_VALUE)
        t = j->expected;
    if (t == AV_NOPTS_VALUE)
        return MEDIA_TIME_UNKNOWN;
    return av_rescale_q_rnd(t - j->zero, st->time_base, (AVRational){1, (int)j->grid->timescale},
                            AV_ROUND_NEAR_INF | AV_ROUND_PASS_MINMAX);
}

// The last pictures of a film whose packets say only when they are decoded come out without a time.
static void note_expected(struct video_job *j, const AVFrame *f)
{
    int64_t t = f->best_effort_timestamp != AV_NOPTS_VALUE ? f->best_effort_timestamp : j->expected;
    bool known = t != AV_NOPTS_VALUE && f->pkt_duration > 0;
    j->expected = known ? t + f->pkt_duration : AV_NOPTS_VALUE;
}

// A decoded frame has come: everything on the grid before it shows the one we have.
static enum status take_frame(struct video_job *j, AVFrame *frame, struct err *err)
{
    int64_t t = frame_time(j, frame);
    note_expected(j, frame);
    while (t != MEDIA_TIME_UNKNOWN && j->current && j->next_frame < j->end_frame &&
           media_grid_frame_time(j->grid, j->next_frame) + j->slack < t) {
        enum status s = show(j, err);
        if (s != STATUS_OK)
            return s;
    }
    if (j->current && !j->current_shown && j->next_frame > j->first_frame)
        j->dropped++;
    av_frame_free(&j->current);
    j->current = av_frame_clone(frame);
    j->current_shown = false;
    drop_pictures(j);
    return j->current ? STATUS_OK
                      : err_set(err, STATUS_RESOURCE_EXHAUSTED, "decode: out of memory");
}

// ---- decoding ----

// START_WANTING: a picture was left out that is wanted after all.
enum start_state { START_UNKNOWN, START_FINE, START_TOO_LATE, START_WANTING };

// Did decoding start early enough? Told by the first frame that comes out.
static enum start_state judge_start(const struct video_job *j, const AVFrame *f)
{
    int64_t t = frame_time(j, f);
    if (t == MEDIA_TIME_UNKNOWN)
        return START_UNKNOWN;
    return t <= media_grid_frame_time(j->grid, j->first_frame) + j->slack ? START_FINE
                                                                          : START_TOO_LATE;
}

// Leaving out pictures that are no reference changes none of the others: by H.264's nal_ref_idc
// alone, so for whole frames of that codec only, and where packets tell their time.
static void set_up_preroll(struct video_job *j, const struct media_track *t)
{
    const AVStream *st = j->in->fmt->streams[j->stream];
    int64_t wanted = media_grid_frame_time(j->grid, j->first_frame);
    j->may_skip = st->codecpar->codec_id == AV_CODEC_ID_H264 && !t->interlaced;
    j->skip_before = j->zero +
                     av_rescale_q(wanted, (AVRational){1, (int)j->grid->timescale}, st->time_base) -
                     av_rescale_q(NEAR_MS, (AVRational){1, 1000}, st->time_base);
    j->left_out = AV_NOPTS_VALUE;
}

static void set_skip(struct video_job *j, const AVPacket *pkt)
{
    bool skip = j->may_skip && pkt->pts != AV_NOPTS_VALUE && pkt->pts < j->skip_before;
    j->dec->skip_frame = skip ? AVDISCARD_NONREF : AVDISCARD_DEFAULT;
    if (skip && (j->left_out == AV_NOPTS_VALUE || pkt->pts > j->left_out))
        j->left_out = pkt->pts;
}

// The first grid frame is about to show the current picture (`next` comes after it, or nothing
// does), but a later one may have been left out: a picture that is shown for long.
static bool is_wanting(const struct video_job *j, const AVFrame *next)
{
    if (!j->may_skip || j->next_frame > j->first_frame || j->left_out == AV_NOPTS_VALUE ||
        (j->current && j->current->best_effort_timestamp >= j->left_out))
        return false;
    int64_t t = next ? frame_time(j, next) : INT64_MAX;
    return t != MEDIA_TIME_UNKNOWN && media_grid_frame_time(j->grid, j->first_frame) + j->slack < t;
}

static enum status receive(struct video_job *j, AVFrame *frame, bool last_try,
                           enum start_state *start, struct err *err)
{
    while (avcodec_receive_frame(j->dec, frame) >= 0) {
        codec_frame_fill_colors(frame, j->in->fmt->streams[j->stream]->codecpar);
        if (*start != START_FINE) {
            *start = judge_start(j, frame);
            if (*start == START_TOO_LATE && !last_try) {
                av_frame_unref(frame);
                return STATUS_OK;
            }
            if (*start == START_TOO_LATE)
                *start = START_FINE; // nothing earlier exists: the first one stands for it
        }
        if (is_wanting(j, frame)) {
            *start = START_WANTING;
            av_frame_unref(frame);
            return STATUS_OK;
        }
        enum status s = take_frame(j, frame, err);
        av_frame_unref(frame);
        if (s != STATUS_OK || j->next_frame == j->end_frame)
            return s;
    }
    return STATUS_OK;
}

static enum status decode(struct video_job *j, bool last_try, enum start_state *start,
                          struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AUTO(codec_frame_free_p) AVFrame *frame = av_frame_alloc();
    if (!pkt || !frame)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "decode: out of memory");
    *start = START_UNKNOWN;
    for (bool end = false; !end && j->next_frame < j->end_frame;) {
        int r = codec_input_read(j->in, pkt);
        end = r < 0;
        if (j->in->failed || r == AVERROR(ENOMEM)) {
            av_packet_unref(pkt);
            return codec_error(j->in, r, "decode", err);
        }
        if (!end && pkt->stream_index != j->stream) {
            av_packet_unref(pkt);
            continue;
        }
        if (!end)
            set_skip(j, pkt);
        int sent = avcodec_send_packet(j->dec, end ? NULL : pkt); // damage is passed over
        av_packet_unref(pkt);
        if (sent == AVERROR(ENOMEM))
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "decode: out of memory");
        enum status s = receive(j, frame, last_try, start, err);
        if (s != STATUS_OK || *start == START_TOO_LATE || *start == START_WANTING)
            return s;
    }
    if (is_wanting(j, NULL))
        *start = START_WANTING;
    return STATUS_OK;
}

// From the keyframe that the plan names; from earlier, then from the beginning, when nothing comes
// out before the first grid frame.
static enum status decode_from_somewhere(struct video_job *j, struct err *err)
{
    const struct media_segment *seg = &j->grid->segments[j->segment];
    const AVStream *st = j->in->fmt->streams[j->stream];
    for (int attempt = 0; attempt < 3; attempt++) {
        int64_t ticks = seg->seek_ticks, offset = seg->seek_offset;
        bool last =
            attempt == 2 || ticks == MEDIA_TIME_UNKNOWN || j->plan->source.seek == MEDIA_SEEK_NONE;
        if (attempt == 1) {
            ticks -= av_rescale_q(BACK_STEP_S, (AVRational){1, 1}, st->time_base);
            offset = offset > 8 << 20 ? offset - (8 << 20) : 0;
        }
        if (last)
            ticks = MEDIA_TIME_UNKNOWN;
        enum status s =
            codec_input_seek(j->in, j->stream, j->plan->source.seek, ticks, offset, err);
        if (s == STATUS_INVALID_ARGUMENT && !last)
            continue; // cannot go there: try from earlier
        if (s != STATUS_OK)
            return s;
        avcodec_flush_buffers(j->dec);
        j->expected = AV_NOPTS_VALUE;
        enum start_state start = START_FINE;
        s = decode(j, last, &start, err);
        if (s != STATUS_OK)
            return s;
        if (start == START_WANTING) {
            av_frame_free(&j->current);
            drop_pictures(j);
            j->may_skip = false;
            attempt--;
            continue;
        }
        if (start == START_FINE || last)
            break;
    }
    if (!j->current)
        return err_set(err, STATUS_INVALID_ARGUMENT, "no picture can be decoded from the film");
    while (j->next_frame < j->end_frame) { // the source ended early: its last picture stays
        enum status s = show(j, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

// ---- the job ----

static enum status set_up(struct video_job *j, struct err *err)
{
    const struct media_plan *p = j->plan;
    const struct media_track *t = media_plan_track(p, MEDIA_TRACK_VIDEO);
    if (!t || t->index >= j->in->fmt->nb_streams)
        return err_set(err, STATUS_FAILED_PRECONDITION, "the plan is not this source's");
    j->stream = t->index;
    j->zero = p->source.video_zero;
    j->slack = j->grid->frame_ticks ? j->grid->frame_ticks / 2 : j->grid->timescale / 1000;
    for (unsigned i = 0; i < j->in->fmt->nb_streams; i++)
        j->in->fmt->streams[i]->discard = (int)i == j->stream ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    for (uint32_t i = 0; i < j->task->n_renditions; i++) {
        // A rung needs every rung that it is scaled through.
        for (uint8_t r = j->task->renditions[i]; r != MEDIA_FROM_SOURCE;
             r = p->renditions[r].scale_from) {
            const struct media_rendition *v = &p->renditions[r];
            bool top = v->scale_from == MEDIA_FROM_SOURCE;
            if (!j->scalers[r])
                j->scalers[r] = codec_scaler_new(v->width, v->height, top ? t->rotation : 0);
            if (!j->scalers[r])
                return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
        }
    }
    enum status s = codec_decoder_open(j->in, j->stream, j->task->threads, &j->dec, err);
    if (s != STATUS_OK)
        return s;
    for (uint32_t i = 0; s == STATUS_OK && i < j->task->n_renditions; i++) {
        uint8_t r = j->task->renditions[i];
        if (p->renditions[r].burn)
            s = codec_burner_new(j->in->src, p, r, j->task->first_segment, j->task->n_segments,
                                 &j->burners[r], err);
    }
    if (s != STATUS_OK)
        return s;
    set_up_preroll(j, t);
    for (uint32_t i = 0; i < j->task->n_renditions; i++)
        lane_init(&j->lanes[j->n_lanes++], j, j->task->renditions[i]);
    return STATUS_OK;
}

enum status codec_encode_video(struct codec_input *in, const struct media_plan *plan,
                               const struct media_task *task, const struct codec_sink *sink,
                               struct err *err)
{
    struct video_job *j = mem_alloc(sizeof(*j));
    if (!j)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "encode: out of memory");
    *j = (struct video_job){
        .in = in, .plan = plan, .task = task, .sink = sink, .grid = &plan->video};
    pthread_mutex_init(&j->out_lock, NULL);
    atomic_init(&j->failed, false);
    const struct media_segment *first = &plan->video.segments[task->first_segment];
    const struct media_segment *last =
        &plan->video.segments[task->first_segment + task->n_segments - 1];
    j->segment = task->first_segment;
    j->first_frame = j->next_frame = first->first_frame;
    j->end_frame = last->first_frame + last->n_frames;
    enum status s = set_up(j, err);
    if (s == STATUS_OK)
        s = decode_from_somewhere(j, err);
    for (size_t i = 0; i < j->n_lanes; i++)
        lane_done(&j->lanes[i]);
    if (j->failure != STATUS_OK)
        s = err_set(err, j->failure, "%s", j->failure_err.msg);
    drop_pictures(j);
    av_frame_free(&j->current);
    avcodec_free_context(&j->dec);
    for (size_t i = 0; i < MEDIA_MAX_RENDITIONS; i++)
        codec_scaler_free(j->scalers[i]);
    for (size_t i = 0; i < MEDIA_MAX_RENDITIONS; i++)
        codec_burner_free(j->burners[i]);
    pthread_mutex_destroy(&j->out_lock);
    mem_free(j);
    return s;
}
