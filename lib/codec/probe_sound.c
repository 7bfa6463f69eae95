// The sound of a probe: which tracks can be decoded, when each is heard to the sample, and what is
// made from it. Encoders put samples before and after the music; files say how many (edit lists,
// LAME's and iTunes' tags, Opus' pre-skip) and FFmpeg attaches that to packets, so that the plan
// lasts as long as what was recorded and songs of an album follow one another without a gap.
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "codec/internal.h"

#define TRY_FRAMES 8
#define TRY_PACKETS 600         // of a stream
#define TRY_ALL_PACKETS 20000   // of the file
#define TRY_ENOUGH_PACKETS 2000 // of the file, when all that came have shown that they decode
#define SHORT_US (INT64_C(20) * 60 * 1000000)
#define MAX_RENDITIONS 32 // of sound

// ---- which ----

static bool is_usable(const AVStream *st)
{
    const AVCodecParameters *par = st->codecpar;
    return par->codec_type == AVMEDIA_TYPE_AUDIO && par->sample_rate >= 1000 &&
           par->sample_rate <= 768000 && par->ch_layout.nb_channels > 0 &&
           par->ch_layout.nb_channels <= CODEC_MAX_CHANNELS_IN &&
           avcodec_find_decoder(par->codec_id);
}

void codec_sounds_choose(struct codec_input *in, struct codec_sounds *ret)
{
    *ret = (struct codec_sounds){.n = 0};
    for (unsigned i = 0; i < in->fmt->nb_streams && i < MEDIA_MAX_TRACKS; i++) {
        AVStream *st = in->fmt->streams[i];
        if (!is_usable(st) || ret->n == CODEC_MAX_SOUNDS)
            continue;
        st->discard = AVDISCARD_DEFAULT;
        ret->t[ret->n++] = (struct codec_track_sound){.stream = (int)i};
    }
}

static struct codec_track_sound *find(struct codec_sounds *s, int stream, size_t *ret_at)
{
    for (size_t i = 0; i < s->n; i++) {
        if (s->t[i].stream == stream) {
            *ret_at = i;
            return &s->t[i];
        }
    }
    return NULL;
}

static void leave_out(struct codec_input *in, struct codec_sounds *s, size_t at)
{
    in->fmt->streams[s->t[at].stream]->discard = AVDISCARD_ALL;
    memmove(&s->t[at], &s->t[at + 1], (s->n - at - 1) * sizeof(s->t[0]));
    s->n--;
}

// ---- can they be decoded? ----

struct attempt {
    AVCodecContext *dec;
    int packets, frames, same, length;
};

static bool is_settled(const struct attempt *a)
{
    return a->frames >= TRY_FRAMES || a->packets >= TRY_PACKETS;
}

static void try_packet(struct attempt *a, struct codec_track_sound *t, const AVPacket *pkt,
                       AVFrame *frame)
{
    if (!a->dec || (pkt && is_settled(a)))
        return;
    a->packets += pkt != NULL;
    (void)avcodec_send_packet(a->dec, pkt); // a bad packet is not the end
    while (avcodec_receive_frame(a->dec, frame) >= 0) {
        a->frames++;
        a->same = frame->nb_samples == a->length ? a->same + 1 : 1;
        a->length = frame->nb_samples;
        if (a->same >= 3)
            t->frame_samples = a->length;
    }
}

// Whether more of the file would tell more. Streams that gave nothing yet may begin much later.
static bool goes_on(const struct attempt *a, size_t n, int n_read)
{
    bool all = true, any = false;
    for (size_t i = 0; i < n; i++) {
        all &= !a[i].dec || is_settled(&a[i]);
        any |= a[i].packets > 0 && !is_settled(&a[i]);
    }
    return !all && n_read < TRY_ALL_PACKETS && (any || n_read < TRY_ENOUGH_PACKETS);
}

static enum status try_all(struct codec_input *in, struct codec_sounds *s, struct attempt *a,
                           bool *ret_ended, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    AUTO(codec_frame_free_p) AVFrame *frame = av_frame_alloc();
    if (!pkt || !frame)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "probe: out of memory");
    int r = 0;
    for (int n_read = 0; goes_on(a, s->n, n_read) && (r = av_read_frame(in->fmt, pkt)) >= 0;
         n_read++) {
        size_t at = 0;
        struct codec_track_sound *t = find(s, pkt->stream_index, &at);
        if (t)
            try_packet(&a[at], t, pkt, frame);
        av_packet_unref(pkt);
    }
    *ret_ended = r < 0;
    for (size_t i = 0; i < s->n; i++)
        try_packet(&a[i], &s->t[i], NULL, frame);
    return in->failed ? codec_error(in, r, "probe", err) : STATUS_OK;
}

enum status codec_sounds_try(struct codec_input *in, struct codec_sounds *s, struct err *err)
{
    struct attempt a[CODEC_MAX_SOUNDS] = {{0}};
    enum status st = STATUS_OK;
    bool ended = false;
    for (size_t i = 0; i < s->n && st != STATUS_RESOURCE_EXHAUSTED; i++)
        st = codec_decoder_open(in, s->t[i].stream, 1, &a[i].dec, err);
    if (st != STATUS_RESOURCE_EXHAUSTED)
        st = try_all(in, s, a, &ended, err);
    for (size_t i = s->n; i > 0; i--) {
        const struct attempt *t = &a[i - 1];
        bool fails = !t->dec || (t->frames == 0 && (ended || t->packets >= TRY_FRAMES));
        avcodec_free_context(&a[i - 1].dec);
        if (fails)
            leave_out(in, s, i - 1);
    }
    if (st == STATUS_OK && s->n == 0)
        st = err_set(err, STATUS_INVALID_ARGUMENT, "no sound can be decoded from the file");
    return st;
}

// ---- when ----

static uint32_t get_le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static AVRational sample_of(const AVStream *st)
{
    return (AVRational){1, st->codecpar->sample_rate};
}

// Samples before the first that is heard, when the packet does not say it itself.
static int64_t unheard(const AVStream *st, const AVPacket *first)
{
    if (st->codecpar->codec_id == AV_CODEC_ID_VORBIS) // half of a window
        return av_rescale_q(first->duration, st->time_base, sample_of(st));
    return st->codecpar->codec_id == AV_CODEC_ID_OPUS ? st->codecpar->initial_padding : 0;
}

void codec_sounds_note(struct codec_input *in, struct codec_sounds *s, const AVPacket *pkt)
{
    size_t at = 0;
    struct codec_track_sound *t = find(s, pkt->stream_index, &at);
    int64_t time = codec_packet_time(pkt);
    if (!t || time == AV_NOPTS_VALUE || (pkt->flags & AV_PKT_FLAG_DISCARD))
        return;
    const AVStream *st = in->fmt->streams[t->stream];
    int64_t duration = pkt->duration > 0 ? pkt->duration : 0, skip = 0, trim = 0;
    size_t size = 0;
    const uint8_t *side = av_packet_get_side_data(pkt, AV_PKT_DATA_SKIP_SAMPLES, &size);
    if (side && size >= 8) {
        skip = get_le32(side);
        // Ogg's durations are without it already.
        trim = str_eq(in->fmt->iformat->name, "ogg") ? 0 : get_le32(side + 4);
    }
    if (t->n == 0 && skip == 0)
        skip = unheard(st, pkt);
    if (t->n++ == 0 || time < t->first_packet) {
        t->first_packet = time;
        t->first = time + av_rescale_q(skip, sample_of(st), st->time_base);
        t->skip = skip;
    }
    // A packet that is dropped as a whole is not heard.
    bool heard = trim == 0 || trim < av_rescale_q(duration, st->time_base, sample_of(st));
    if (t->n == 1 || (heard && time + duration > t->end)) {
        t->last_packet = time;
        t->end = time + duration;
        t->trim = trim;
    }
}

// Where a track's packets begin and its sound ends, in its own samples from `zero` (ticks).
struct place {
    int64_t origin, end;
    uint32_t comb; // packets' distance, when time stamps are coarser than a sample; 0 none
};

static struct place find_place(const AVStream *st, const struct codec_track_sound *t, int64_t zero)
{
    int64_t origin = av_rescale_q(t->first_packet - zero, st->time_base, sample_of(st));
    int64_t end = av_rescale_q(t->end - zero, st->time_base, sample_of(st)) - t->trim;
    bool coarse = (int64_t)st->time_base.num * st->codecpar->sample_rate > st->time_base.den;
    if (!coarse || t->frame_samples < 64 || t->frame_samples > 1 << 16)
        return (struct place){origin, end, 0};
    int64_t tick = av_rescale_q(1, st->time_base, sample_of(st)), frame = t->frame_samples;
    // What is cut off at the start ends at 0 exactly.
    if (t->skip && origin + t->skip >= -tick && origin + t->skip <= tick)
        origin = -t->skip;
    int64_t last = av_rescale_q(t->last_packet - zero, st->time_base, sample_of(st));
    int64_t k = media_scale_near(last - origin, 1, frame), off = last - origin - k * frame;
    if (off >= -2 * tick && off <= 2 * tick && last + frame - t->trim - end <= 2 * tick &&
        end - (last + frame - t->trim) <= 2 * tick)
        end = origin + (k + 1) * frame - t->trim;
    return (struct place){origin, end, (uint32_t)frame};
}

// iTunSMPB: what was put before, after, and the number of samples between, in hexadecimal. Where an
// edit list says the same, it has been applied already.
static void apply_itunes(const struct codec_input *in, struct codec_track_sound *t)
{
    const AVDictionaryEntry *e = av_dict_get(in->fmt->metadata, "iTunSMPB", NULL, 0);
    const AVStream *st = in->fmt->streams[t->stream];
    unsigned before, after;
    unsigned long long samples;
    if (!e || !codec_is_mov(in) || st->time_base.num != 1 ||
        st->time_base.den != st->codecpar->sample_rate ||
        sscanf(e->value, "%*x %x %x %llx", &before, &after, &samples) != 3)
        return;
    int64_t all = t->end - t->first_packet - t->trim;
    if (before > 16384 || after > 16384 || samples == 0 || samples > INT32_MAX * 16ULL ||
        all != (int64_t)(before + after + samples))
        return;
    t->skip = before;
    t->first = t->first_packet + before;
    t->end = t->first + (int64_t)samples;
    t->trim = 0;
}

void codec_sounds_end(struct codec_input *in, struct codec_sounds *s)
{
    for (size_t i = s->n; i > 0; i--) {
        struct codec_track_sound *t = &s->t[i - 1];
        if (t->n == 0 || t->end <= t->first_packet)
            leave_out(in, s, i - 1);
    }
    if (s->n == 1)
        apply_itunes(in, &s->t[0]);
}

int64_t codec_sounds_first_us(const struct codec_input *in, const struct codec_sounds *s)
{
    int64_t first = INT64_MAX;
    for (size_t i = 0; i < s->n; i++) {
        int64_t us = av_rescale_q(s->t[i].first, in->fmt->streams[s->t[i].stream]->time_base,
                                  AV_TIME_BASE_Q);
        first = us < first ? us : first;
    }
    return first;
}

// ---- the plan ----

static enum media_seek seek_mode(const struct codec_input *in, int64_t duration_us)
{
    static const char *const bare[] = {"mp3", "aac", "ac3", "eac3"}; // no index: read through
    for (size_t i = 0; i < N_ELEMENTS(bare); i++)
        if (str_eq(in->fmt->iformat->name, bare[i]))
            return MEDIA_SEEK_NONE;
    // Others are short enough to be read from the beginning, or long enough for a small error to be
    // the lesser evil.
    return codec_seek_is_exact(in) || duration_us > SHORT_US ? MEDIA_SEEK_TIME : MEDIA_SEEK_NONE;
}

static void describe_track(const struct codec_input *in, const struct place *place, int rate,
                           int64_t all_us, struct media_track *t)
{
    t->chosen = place->end > 0; // else it ends before the timeline begins
    t->seek = seek_mode(in, all_us);
    t->origin = place->origin;
    t->duration_us = av_rescale(place->end - place->origin, 1000000, rate);
    t->duration_us = t->duration_us > 0 ? t->duration_us : 0;
    t->frame_samples = place->comb;
}

struct kind {
    const char *id;
    enum media_codec codec;
    uint32_t bitrate_bps; // 0: lossless
    uint8_t channels;
    bool normalised;
};
static const struct kind a64 = {"a64", MEDIA_CODEC_AAC, 64000, 2, false},
                         a128 = {"a128", MEDIA_CODEC_AAC, 128000, 2, false},
                         a128n = {"a128n", MEDIA_CODEC_AAC, 128000, 2, true},
                         a256 = {"a256", MEDIA_CODEC_AAC, 256000, 2, false},
                         a384 = {"a384", MEDIA_CODEC_AAC, 384000, 6, false},
                         o128 = {"o128", MEDIA_CODEC_OPUS, 128000, 2, false},
                         flac2 = {"flac", MEDIA_CODEC_FLAC, 0, 2, false},
                         flac6 = {"flac", MEDIA_CODEC_FLAC, 0, 6, false};

struct planner {
    struct media_plan *plan;
    size_t main; // index of the default track
    size_t n;
};

static enum status add(struct planner *p, const struct kind *k, size_t track, bool lazy,
                       struct err *err)
{
    if (p->n == MAX_RENDITIONS || p->plan->n_renditions == MEDIA_MAX_RENDITIONS)
        return STATUS_OK;
    struct media_rendition *r = &p->plan->renditions[p->plan->n_renditions++];
    p->n++;
    if (track == p->main)
        str_copy(r->id, sizeof(r->id), k->id);
    else
        snprintf(r->id, sizeof(r->id), "%s-%u", k->id, (unsigned)track);
    r->kind = MEDIA_AUDIO;
    r->codec = k->codec;
    r->track = (uint8_t)track;
    r->lazy = lazy;
    r->channels = k->channels;
    r->normalised = k->normalised;
    r->frame_rate = (struct media_rational){0, 1};
    r->timescale = MEDIA_AUDIO_RATE;
    r->frame_samples = k->codec == MEDIA_CODEC_AAC    ? 1024
                       : k->codec == MEDIA_CODEC_OPUS ? 960
                                                      : MEDIA_FLAC_FRAME;
    r->bitrate_bps = k->bitrate_bps;
    if (k->codec == MEDIA_CODEC_FLAC) { // at most what the samples have, with a margin of a fifth
        r->profile = p->plan->source.tracks[track].bit_depth > 16 ? 24 : 16;
        r->bitrate_bps = MEDIA_AUDIO_RATE * (uint32_t)k->channels * r->profile / 6 * 5;
    }
    return codec_rendition_finish(r, err);
}

// First what is made in the background: the default track, then each other one.
static enum status add_renditions(struct planner *p, const struct codec_sounds *sounds,
                                  struct err *err)
{
    const struct media_track *tracks = p->plan->source.tracks;
    bool alone = p->plan->kind == MEDIA_AUDIO, surround = tracks[p->main].channels >= 6;
    enum status s = add(p, &a128, p->main, false, err);
    if (s == STATUS_OK && alone)
        s = add(p, &o128, p->main, false, err);
    for (size_t i = 0; i < sounds->n && s == STATUS_OK; i++)
        if ((size_t)sounds->t[i].stream != p->main && tracks[sounds->t[i].stream].chosen)
            s = add(p, &a128, (size_t)sounds->t[i].stream, false, err);
    const struct kind *const on_request[] = {&a128n,
                                             &a64,
                                             &a256,
                                             alone ? NULL : &o128,
                                             surround ? &flac6 : &flac2,
                                             surround ? &a384 : NULL};
    for (size_t i = 0; i < N_ELEMENTS(on_request) && s == STATUS_OK; i++)
        if (on_request[i])
            s = add(p, on_request[i], p->main, true, err);
    for (size_t i = 0; i < sounds->n && s == STATUS_OK; i++) {
        size_t track = (size_t)sounds->t[i].stream;
        if (track != p->main && tracks[track].chosen && tracks[track].channels >= 6)
            s = add(p, &a384, track, true, err);
    }
    return s;
}

enum status codec_sounds_plan(const struct codec_input *in, const struct codec_sounds *sounds,
                              struct media_plan *plan, struct err *err)
{
    struct place places[CODEC_MAX_SOUNDS];
    int64_t n = 0;
    for (size_t i = 0; i < sounds->n; i++) {
        const AVStream *st = in->fmt->streams[sounds->t[i].stream];
        int64_t zero = av_rescale_q(plan->source.timeline_zero_us, AV_TIME_BASE_Q, st->time_base);
        places[i] = find_place(st, &sounds->t[i], zero);
        int64_t end =
            av_rescale_rnd(places[i].end, MEDIA_AUDIO_RATE, st->codecpar->sample_rate, AV_ROUND_UP);
        n = end > n ? end : n;
    }
    if (n / MEDIA_AUDIO_RATE > MEDIA_MAX_DURATION_US / 1000000)
        return err_set(err, STATUS_INVALID_ARGUMENT, "the sound is longer than 8 hours");
    for (size_t i = 0; i < sounds->n; i++) {
        int stream = sounds->t[i].stream;
        describe_track(in, &places[i], in->fmt->streams[stream]->codecpar->sample_rate,
                       media_ticks_to_us(n, MEDIA_AUDIO_RATE), &plan->source.tracks[stream]);
    }
    if (n <= 0)
        return plan->kind == MEDIA_VIDEO ? STATUS_OK
                                         : err_set(err, STATUS_INVALID_ARGUMENT,
                                                   "the file holds no sound: damaged or cut off");
    struct planner p = {.plan = plan};
    const struct media_track *main = media_plan_track(plan, MEDIA_TRACK_AUDIO);
    if (!main)
        return err_set(err, STATUS_INTERNAL, "probe: no track of sound was chosen");
    p.main = main->index;
    size_t first = plan->n_renditions;
    enum status s = add_renditions(&p, sounds, err);
    uint32_t priming = 0;
    for (size_t i = first; i < plan->n_renditions; i++)
        if (plan->renditions[i].priming > priming)
            priming = plan->renditions[i].priming;
    return s == STATUS_OK ? media_plan_cut_audio(&plan->audio, n, priming, err) : s;
}
