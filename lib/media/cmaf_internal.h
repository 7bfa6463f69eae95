#pragma once
// Boxes, shared by the writer, the reader and the merger.
#include "media/cmaf.h"

#define BOX(a, b, c, d)                                                                            \
    ((uint32_t)(a) << 24 | (uint32_t)(b) << 16 | (uint32_t)(c) << 8 | (uint32_t)(d))

// Sample flags (14496-12, 8.8.3.1): depends on nothing and a sync sample; depends and is none.
#define FLAGS_SYNC 0x02000000U
#define FLAGS_NON_SYNC 0x01010000U

// trun and tfhd fields that we write.
#define TFHD_DEFAULT_DURATION 0x8U
#define TFHD_DEFAULT_FLAGS 0x20U
#define TFHD_BASE_IS_MOOF 0x20000U
#define TRUN_OFFSET 0x1U
#define TRUN_DURATION 0x100U
#define TRUN_SIZE 0x200U
#define TRUN_FLAGS 0x400U
#define TRUN_CTS 0x800U

size_t cmaf_begin(struct buf *b, uint32_t type); // where the box begins, for cmaf_end()
size_t cmaf_begin_full(struct buf *b, uint32_t type, uint8_t version, uint32_t flags);
void cmaf_end(struct buf *b, size_t at);

// A movie header for the tracks, which are given by their configs; edit_time is the edit list's
// media_time of each track, 0 for none.
struct cmaf_track {
    const struct media_track_config *config;
    uint32_t edit_time;
};
void cmaf_put_header(struct buf *b, const struct cmaf_track *tracks, size_t n);
void cmaf_put_zeros(struct buf *b, size_t n);
void cmaf_put_matrix(struct buf *b);
void cmaf_put_hdlr(struct buf *b, bool video);
void cmaf_put_dinf(struct buf *b);
// The body of the box at the end of a path of types, the first of each; borrowed.
bool cmaf_find_path(const void *bytes, size_t n, const uint32_t *path, size_t n_path,
                    struct reader *body);
uint32_t cmaf_track_id(const struct media_track_config *c);
bool cmaf_is_video(const struct media_track_config *c);
// Four-character codes of a video codec's sample entry and of the configuration box in it.
uint32_t cmaf_video_entry(enum media_codec codec);
uint32_t cmaf_video_config(enum media_codec codec);
