#pragma once
// A plan made by hand, for tests: 25 frames per second, two rungs, AAC.
#include "media/plan.h"

// n_frames 0: sound alone (AAC and Opus, 20 s).
struct media_plan *test_plan(uint32_t n_frames, int64_t source_size);
