// Transport and program streams that were joined, or that lost a part, have clocks that jump. The
// probe finds where, by bytes; from then on every packet from there on is moved so that the film
// goes on without a gap. A jump is one place for all streams: sound stays with its picture.
#include "codec/internal.h"

#include <string.h>

#define JUMP_AHEAD_US 10000000 // a shorter gap may be one of the film's own
#define JUMP_BACK_US (-1000000)
#define REFINE_US 200000

bool codec_may_jump(const struct codec_input *in)
{
    return strcmp(in->fmt->iformat->name, "mpegts") == 0 ||
           strcmp(in->fmt->iformat->name, "mpeg") == 0;
}

static int64_t shift_at(const struct codec_jumps *j, int64_t pos)
{
    int64_t shift = 0;
    for (size_t i = 0; i < j->n && j->list[i].offset <= pos; i++)
        shift = j->list[i].shift_us;
    return shift;
}

// From `pos` on another clock counts, which is `by` us ahead.
static void add(struct codec_jumps *j, int64_t pos, int64_t by, bool picture)
{
    if (j->n &&
        pos < j->list[j->n - 1].offset) { // the same, seen by a stream that came to it first
        j->list[j->n - 1].offset = pos;
        return;
    }
    if (j->n == MEDIA_MAX_JUMPS) {
        j->too_many = true;
        return;
    }
    int64_t had = j->n ? j->list[j->n - 1].shift_us : 0;
    j->list[j->n++] = (struct media_jump){.offset = pos, .shift_us = had - by};
    j->is_exact = picture;
}

static void find(struct codec_input *in, const AVPacket *pkt, int64_t pos)
{
    struct codec_jumps *j = &in->jumps;
    const AVStream *st = in->fmt->streams[pkt->stream_index];
    bool picture = st->codecpar->codec_type == AVMEDIA_TYPE_VIDEO;
    int64_t ticks = pkt->dts != AV_NOPTS_VALUE ? pkt->dts : pkt->pts;
    if (ticks == AV_NOPTS_VALUE || pos < 0 ||
        (!picture && st->codecpar->codec_type != AVMEDIA_TYPE_AUDIO))
        return;
    int64_t *next = &j->next_us[pkt->stream_index];
    int64_t t = av_rescale_q(ticks, st->time_base, AV_TIME_BASE_Q);
    int64_t off = t + shift_at(j, pos) - *next;
    bool known = j->seen[pkt->stream_index];
    if (known && (off > JUMP_AHEAD_US || off < JUMP_BACK_US)) {
        add(j, pos, off, picture);
    } else if (known && picture && j->n && !j->is_exact && pos >= j->list[j->n - 1].offset) {
        // Pictures follow each other exactly; the sound that told of the jump may have ended early.
        if (off > -REFINE_US && off < REFINE_US)
            j->list[j->n - 1].shift_us -= off;
        j->is_exact = true;
    }
    j->seen[pkt->stream_index] = true;
    *next = t + shift_at(j, pos) + av_rescale_q(pkt->duration, st->time_base, AV_TIME_BASE_Q);
}

int codec_input_read(struct codec_input *in, AVPacket *pkt)
{
    int r = av_read_frame(in->fmt, pkt);
    if (r < 0 || (!in->jumps.finding && in->jumps.n == 0) || pkt->stream_index >= MEDIA_MAX_TRACKS)
        return r;
    // What a parser cut out of the middle of a packet lies where that began.
    int64_t *last = &in->jumps.pos[pkt->stream_index];
    int64_t pos = *last = pkt->pos >= 0 ? pkt->pos : *last;
    if (in->jumps.finding)
        find(in, pkt, pos);
    int64_t shift = av_rescale_q(shift_at(&in->jumps, pos), AV_TIME_BASE_Q,
                                 in->fmt->streams[pkt->stream_index]->time_base);
    if (pkt->pts != AV_NOPTS_VALUE)
        pkt->pts += shift;
    if (pkt->dts != AV_NOPTS_VALUE)
        pkt->dts += shift;
    return r;
}

void codec_input_use_plan(struct codec_input *in, const struct media_plan *plan)
{
    in->jumps.n = plan->source.n_jumps;
    memcpy(in->jumps.list, plan->source.jumps, sizeof(in->jumps.list));
}
