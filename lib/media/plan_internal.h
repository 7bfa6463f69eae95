#pragma once
// Shared by the files of plan_*.c.
#include "media/plan.h"

// Fill start, duration and first_frame of every segment from n_frames (video) or from the durations
// (audio), which are set. False when they do not add up to the grid's length.
bool media_grid_lay_out(struct media_grid *g, bool is_video);

// H.264's least level_idc for the rendition's size, frame rate and maxrate.
uint8_t media_h264_level(const struct media_rendition *r);
