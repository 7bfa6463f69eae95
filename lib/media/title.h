#pragma once
// A ladder for one title: how hard the film is to encode decides the quality and the caps of its
// rungs, and which of them bring something. Pure; the probe supplies the samples.
#include "media/plan.h"

// What a few short samples took at a small size, at MEDIA_TITLE_CRF without a cap.
#define MEDIA_TITLE_CRF 23
struct media_title {
    uint32_t pixels;      // of a sample's picture; 0: nothing is known
    uint32_t key_bytes;   // mean of a keyframe
    uint32_t other_bytes; // mean of the pictures between them
};

// Bits per second that an H.264 rendition is expected to take at MEDIA_TITLE_CRF, on average and
// without a cap; 0: not known.
uint32_t media_title_rate(const struct media_title *t, const struct media_rendition *r);

// Fit a ladder, high to low, as media_plan_ladder() made it: CRF, cap, mean rate and level of each
// rung, without those that bring nothing.
//
// source_pixels  of the picture that the ladder is made from
// source_bps     its rate, of the picture alone where that is known; 0: not known
// returns        how many rungs are left: the first ones, at least 1
size_t media_title_fit(const struct media_title *t, uint64_t source_pixels, int64_t source_bps,
                       struct media_rendition *ladder, size_t n);
