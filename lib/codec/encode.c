// A chunk task: check that it fits the plan, open the source, hand over to video or sound.
#include "codec/internal.h"

static enum status check_task(const struct media_plan *p, const struct media_task *t,
                              struct err *err)
{
    const struct media_grid *g = NULL;
    for (uint32_t i = 0; i < t->n_renditions; i++) {
        if (t->renditions[i] >= p->n_renditions)
            return err_set(err, STATUS_FAILED_PRECONDITION, "task: no rendition %u in the plan",
                           (unsigned)t->renditions[i]);
        const struct media_grid *its = media_rendition_grid(p, t->renditions[i]);
        if (i > 0 && its != g)
            return err_set(err, STATUS_FAILED_PRECONDITION, "task: renditions of two grids");
        for (uint32_t before = 0; before < i; before++)
            if (t->renditions[before] == t->renditions[i])
                return err_set(err, STATUS_FAILED_PRECONDITION, "task: a rendition twice");
        g = its;
    }
    if (!g || t->n_segments == 0 || t->first_segment >= g->n_segments ||
        t->n_segments > g->n_segments - t->first_segment)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "task: segments that the plan does not have");
    return STATUS_OK;
}

// The stream that is copied and nothing else; -1: something is decoded.
static int copied_stream(const struct media_plan *p, const struct media_task *t)
{
    const struct media_rendition *r = &p->renditions[t->renditions[0]];
    return t->n_renditions == 1 && r->copy ? p->source.tracks[r->track].index : -1;
}

enum status codec_encode(const struct codec_source *src, const struct media_plan *plan,
                         const struct media_task *task, const struct codec_sink *sink,
                         struct err *err)
{
    enum status s = check_task(plan, task, err);
    if (s != STATUS_OK)
        return s;
    AUTO(codec_input_close_p) struct codec_input *in = NULL;
    s = codec_input_open_to_copy(src, copied_stream(plan, task), &in, err);
    if (s != STATUS_OK)
        return s;
    codec_input_use_plan(in, plan);
    struct media_task encoded = *task;
    encoded.n_renditions = 0;
    for (uint32_t i = 0; s == STATUS_OK && i < task->n_renditions; i++) {
        uint8_t r = task->renditions[i];
        if (plan->renditions[r].copy)
            s = codec_copy_video(in, plan, task, r, sink, err);
        else
            encoded.renditions[encoded.n_renditions++] = r;
    }
    if (s != STATUS_OK || encoded.n_renditions == 0)
        return s;
    if (plan->renditions[encoded.renditions[0]].kind == MEDIA_VIDEO)
        return codec_encode_video(in, plan, &encoded, sink, err);
    return codec_encode_audio(in, plan, &encoded, sink, err);
}
