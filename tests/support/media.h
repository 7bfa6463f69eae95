#pragma once
// Media for tests: the real file from CAUCE_TEST_DATA/media (default ../shared/media), or, when
// that is not there, a stand-in of the same kind and length made by the ffmpeg program.

// name  "video/dog_1080p_vfr_h264_aac.mp4"
// Returns a descriptor at the start of the file, the caller's; -1, with a note printed, when there
// is neither the file nor a stand-in for it.
int test_media_open(const char *name);

// What the ffmpeg program makes of those arguments (single spaces between them), in a file that is
// gone with the descriptor. suffix  ".wav". -1: it made nothing.
int test_media_make(const char *args, const char *suffix);
