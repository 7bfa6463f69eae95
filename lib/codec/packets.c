// One stream's packets, read once and kept while more than one decoder wants them. What a decoder
// is given depends on times alone and not on where a seek happened to land: reading begins at or
// before the time that is asked for, and what ends before it is left out.
#include <string.h>

#include "base/mem.h"
#include "codec/internal.h"

#define MAX_PACKETS 65536
#define MAX_BYTES (64 << 20)
#define EARLIER_MS 5000 // how much a seek that landed late is repeated sooner

void codec_packets_init(struct codec_packets *q, struct codec_input *in,
                        const struct media_plan *plan, int stream, enum media_seek how,
                        bool goes_on)
{
    *q = (struct codec_packets){
        .in = in, .plan = plan, .stream = stream, .how = how, .goes_on = goes_on};
}

static void clear(struct codec_packets *q)
{
    for (size_t i = 0; i < q->n; i++)
        av_packet_free(&q->p[i]);
    q->n = 0;
    q->bytes = 0;
}

void codec_packets_done(struct codec_packets *q)
{
    clear(q);
    mem_free(q->p);
    *q = (struct codec_packets){0};
}

int64_t codec_packet_time(const AVPacket *pkt)
{
    return pkt->pts != AV_NOPTS_VALUE ? pkt->pts : pkt->dts;
}

int64_t codec_packet_duration_us(const AVPacket *pkt, AVRational tb)
{
    if (pkt->duration <= 0)
        return 0;
    int64_t us = av_rescale_q(pkt->duration, tb, AV_TIME_BASE_Q);
    return us >= 0 && us < MEDIA_MAX_DURATION_US ? us : MEDIA_MAX_DURATION_US;
}

static int64_t end_of(const AVPacket *pkt)
{
    return codec_packet_time(pkt) + (pkt->duration > 0 ? pkt->duration : 0);
}

static enum status keep(struct codec_packets *q, AVPacket *pkt, struct err *err)
{
    if (q->n == q->cap) {
        size_t cap = q->cap ? q->cap * 2 : 256;
        AVPacket **p = mem_realloc(q->p, cap, sizeof(AVPacket *));
        if (!p)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
        q->p = p;
        q->cap = cap;
    }
    AVPacket *own = av_packet_alloc();
    if (!own)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    av_packet_move_ref(own, pkt);
    q->bytes += own->size;
    q->p[q->n++] = own;
    return STATUS_OK;
}

// One more packet of the stream at the end. One without a time follows the one before it.
static enum status read_one(struct codec_packets *q, struct err *err)
{
    AUTO(codec_packet_free_p) AVPacket *pkt = av_packet_alloc();
    if (!pkt)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "sound: out of memory");
    for (;;) {
        int r = codec_input_read(q->in, pkt);
        if (q->in->failed || r == AVERROR(ENOMEM)) {
            av_packet_unref(pkt);
            return codec_error(q->in, r, "sound", err);
        }
        // More than a window can need is not sound.
        if (r < 0 || q->n >= MAX_PACKETS || q->bytes > MAX_BYTES) {
            q->ended = true;
            return STATUS_OK;
        }
        if (pkt->stream_index == q->stream && codec_packet_time(pkt) == AV_NOPTS_VALUE && q->n)
            pkt->pts = end_of(q->p[q->n - 1]);
        if (pkt->stream_index == q->stream && codec_packet_time(pkt) != AV_NOPTS_VALUE)
            return keep(q, pkt, err);
        av_packet_unref(pkt);
    }
}

static void drop_before(struct codec_packets *q, int64_t ticks)
{
    size_t n = 0;
    while (n < q->n && end_of(q->p[n]) <= ticks) {
        q->bytes -= q->p[n]->size;
        av_packet_free(&q->p[n++]);
    }
    q->n -= n;
    if (n && q->n)
        memmove(q->p, q->p + n, q->n * sizeof(AVPacket *));
}

// Until a packet that belongs to `ticks` or later is the first.
static enum status read_up_to(struct codec_packets *q, int64_t ticks, struct err *err)
{
    enum status s = STATUS_OK;
    drop_before(q, ticks);
    while (s == STATUS_OK && q->n == 0 && !q->ended) {
        s = read_one(q, err);
        drop_before(q, ticks);
    }
    q->from = ticks;
    return s;
}

// ret_late: the first packet that can be read from there lies behind `wanted`.
static enum status go_to(struct codec_packets *q, int64_t ticks, int64_t wanted, bool *ret_late,
                         struct err *err)
{
    clear(q);
    q->ended = false;
    enum media_seek how = ticks == MEDIA_TIME_UNKNOWN ? MEDIA_SEEK_NONE : q->how;
    enum status s = codec_input_seek_sound(q->in, q->plan, q->stream, how, ticks, err);
    if (s == STATUS_OK)
        s = read_one(q, err);
    *ret_late = q->n == 0 || codec_packet_time(q->p[0]) > wanted;
    return s;
}

enum status codec_packets_begin(struct codec_packets *q, int64_t ticks, struct err *err)
{
    if (q->placed && q->goes_on && q->from <= ticks)
        return read_up_to(q, ticks, err);
    const AVStream *st = q->in->fmt->streams[q->stream];
    int64_t earlier = av_rescale_q(EARLIER_MS, (AVRational){1, 1000}, st->time_base);
    const int64_t from[] = {ticks, ticks == MEDIA_TIME_UNKNOWN ? ticks : ticks - earlier};
    bool late = true;
    q->placed = false;
    for (size_t i = 0; late && i < N_ELEMENTS(from); i++) {
        if (ticks == MEDIA_TIME_UNKNOWN || q->how != MEDIA_SEEK_TIME)
            break;
        enum status s = go_to(q, from[i], ticks, &late, err);
        if (s != STATUS_OK && s != STATUS_INVALID_ARGUMENT) // that: it cannot seek there
            return s;
        late |= s != STATUS_OK;
    }
    enum status s = late ? go_to(q, MEDIA_TIME_UNKNOWN, ticks, &late, err) : STATUS_OK;
    q->placed = s == STATUS_OK;
    return s == STATUS_OK ? read_up_to(q, ticks, err) : s;
}

enum status codec_packets_get(struct codec_packets *q, size_t i, const AVPacket **ret,
                              struct err *err)
{
    enum status s = STATUS_OK;
    while (s == STATUS_OK && i >= q->n && !q->ended)
        s = read_one(q, err);
    *ret = s == STATUS_OK && i < q->n ? q->p[i] : NULL;
    return s;
}
