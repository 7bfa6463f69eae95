#pragma once
// For the test build cauce-codec-lie: pictures that are not the film's, in segments that look right
// from outside. Nothing in the real program.
#include "media/plan.h"

static inline void lie_about(struct media_plan *plan)
{
#ifdef CAUCE_TEST_LIE
    for (size_t i = 0; i < plan->source.n_tracks; i++)
        plan->source.tracks[i].rotation = (plan->source.tracks[i].rotation + 180) % 360;
#else
    (void)plan;
#endif
}
