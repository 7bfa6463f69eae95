// One fragmented MP4 out of segments of two renditions.
#include <string.h>

#include "media/cmaf.h"
#include "media/cmaf_internal.h"

enum status media_cmaf_merge_init(const struct media_plan *p, int video_rendition,
                                  int audio_rendition, struct buf *ret, struct err *err)
{
    const int chosen[2] = {video_rendition, audio_rendition};
    struct media_track_config configs[2];
    struct cmaf_track tracks[2];
    size_t n = 0;
    for (size_t i = 0; i < N_ELEMENTS(chosen); i++) {
        if (chosen[i] < 0)
            continue;
        enum media_kind want = i == 0 ? MEDIA_VIDEO : MEDIA_AUDIO;
        if ((size_t)chosen[i] >= p->n_renditions || p->renditions[chosen[i]].kind != want)
            return err_set(err, STATUS_INVALID_ARGUMENT, "merge: no such rendition");
        enum status s = media_cmaf_init_config(p, (size_t)chosen[i], &configs[n], err);
        if (s != STATUS_OK)
            return s;
        const struct media_rendition *r = &p->renditions[chosen[i]];
        tracks[n] =
            (struct cmaf_track){&configs[n], want == MEDIA_VIDEO ? r->cts_shift : r->priming};
        n++;
    }
    if (n == 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "merge: nothing to merge");
    cmaf_put_header(ret, tracks, n);
    if (ret->failed)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "merge: buffer is full");
    return STATUS_OK;
}

static uint32_t get_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void set_be32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

enum status media_cmaf_adapt(const struct media_plan *p, size_t rendition, uint32_t sequence,
                             void *bytes, size_t n, struct err *err)
{
    struct media_fragment f;
    enum status s = media_cmaf_parse(bytes, n, &f, err);
    if (s != STATUS_OK)
        return s;
    if (rendition >= p->n_renditions)
        return err_set(err, STATUS_INVALID_ARGUMENT, "adapt: no such rendition");
    // The parser has accepted the one layout that we write, so places follow from sizes.
    uint8_t *moof = (uint8_t *)bytes + get_be32(bytes);
    set_be32(moof + 8 + 12, sequence);
    const struct media_rendition *r = &p->renditions[rendition];
    if (r->kind != MEDIA_VIDEO)
        return STATUS_OK;
    uint8_t *tfhd = moof + 8 + 16 + 8, *tfdt = tfhd + get_be32(tfhd), *trun = tfdt + get_be32(tfdt);
    if (!(get_be32(trun + 8) & TRUN_CTS))
        return err_set(err, STATUS_INVALID_ARGUMENT, "adapt: video without composition offsets");
    uint8_t *cts = trun + 20 + 12;
    for (uint32_t i = 0; i < f.n_samples; i++, cts += 16)
        set_be32(cts, get_be32(cts) + r->cts_shift);
    return STATUS_OK;
}
