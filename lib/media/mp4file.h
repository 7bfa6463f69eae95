#pragma once
// An ordinary MP4 file, its index first, of a video and an audio rendition: made of their segments
// without encoding anything again. The file is a header and then the bodies of the segments' mdats
// as they are, so whoever sends it needs the heads of all segments once and after that only ranges
// of them. Memory: 4 to 16 bytes for each frame or packet.
//
// Not thread safe until media_mp4_finish(); after it, read from any thread.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "media/plan.h"

struct media_mp4;
struct media_mp4_part { // a segment; parts are in the order of the file
    uint32_t rendition, segment;
};
struct media_mp4_span { // where a byte of the file comes from
    bool in_header;
    size_t part;    // not in the header
    int64_t offset; // in the header, or in the whole segment
    int64_t len;    // until the end of what is there in one piece
};

// p must live as long. Either rendition may be -1.
// errors: INVALID_ARGUMENT, RESOURCE_EXHAUSTED
enum status media_mp4_new(const struct media_plan *p, int video_rendition, int audio_rendition,
                          struct media_mp4 **ret, struct err *err) MUST_CHECK;
void media_mp4_free(struct media_mp4 *m); // NULL does nothing
DEFINE_AUTO(struct media_mp4, media_mp4_free)

size_t media_mp4_n_parts(const struct media_mp4 *m);
struct media_mp4_part media_mp4_part(const struct media_mp4 *m, size_t part);
// How much of the segment's beginning describes it, at most.
size_t media_mp4_head_bytes(const struct media_mp4 *m, size_t part);
// The next part: its first n bytes, of `size`. errors: INVALID_ARGUMENT: not the plan's segment
enum status media_mp4_add(struct media_mp4 *m, const void *head, size_t n, int64_t size,
                          struct err *err) MUST_CHECK;
size_t media_mp4_n_added(const struct media_mp4 *m);
// Once all parts are added. errors: FAILED_PRECONDITION, RESOURCE_EXHAUSTED
enum status media_mp4_finish(struct media_mp4 *m, struct err *err) MUST_CHECK;

// After media_mp4_finish().
int64_t media_mp4_size(const struct media_mp4 *m);
const uint8_t *media_mp4_header(const struct media_mp4 *m, size_t *ret_len); // borrowed
// 0 <= offset < size.
void media_mp4_at(const struct media_mp4 *m, int64_t offset, struct media_mp4_span *ret);
size_t media_mp4_memory(const struct media_mp4 *m); // bytes
