#pragma once
// What a worker and its confined codec process say to each other.
//
// Descriptors of the child: 3 the source, a sparse memfd of the source's size that holds the blocks
// of the window (media/window.h); 4 the control socket (AF_UNIX, SOCK_SEQPACKET). One packet is one
// record: type byte, then its fields, big-endian; at most MEDIA_RECORD_MAX bytes. Larger things (a
// plan, a segment) are announced with their size and follow as DATA records in order, with nothing
// but READ and AVAILABLE in between.
//
//   parent: TASK, DATA..                     child: READY (confined), then
//           AVAILABLE for each READ                 READ, PROGRESS, SEGMENT + DATA.., PLAN + DATA..
//           (closing the socket stops it)           VERDICT, once, last
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "media/cmaf.h"
#include "media/plan.h"
#include "media/window.h"

#define MEDIA_RECORD_MAX (64 << 10)
#define MEDIA_CHILD_SOURCE_FD 3
#define MEDIA_CHILD_CONTROL_FD 4

// IMAGES: "renditions" are enum media_image, each of one "segment" of number 0, a JPEG.
// TEXTS: "renditions" are tracks of the source (or one MEDIA_TEXT_FILE), each of one "segment" of
// number 0, a whole track of WebVTT.
// MEASURE: as IMAGES, of those that media_image_is_measured().
// VERIFY: as CHUNK, but the segments come with the source (media/checks.h) and nothing is made: the
// verdict says whether they are right (REJECTED: they are not).
enum media_task_kind {
    MEDIA_TASK_PROBE = 1,
    MEDIA_TASK_CHUNK = 2,
    MEDIA_TASK_IMAGES = 3,
    MEDIA_TASK_TEXTS = 4,
    MEDIA_TASK_MEASURE = 5,
    MEDIA_TASK_VERIFY = 6,
};
// What an uploader may choose; all zero: the usual.
struct media_options {
    enum media_preset preset;
    uint32_t video_codecs; // probe: lazy renditions in these besides H.264; bits 1 << media_codec
};

// From how people and protocols say it: preset "" (fast), "fast" or "quality"; codecs by their
// names, "hevc", "av1", "vp9".
// errors: INVALID_ARGUMENT says what is not known
enum status media_options_parse(const char *preset, const char *const *codecs, size_t n_codecs,
                                struct media_options *ret, struct err *err) MUST_CHECK;

struct media_task {
    enum media_task_kind kind;
    int64_t source_size;
    uint32_t threads; // 1..64 that the child may keep busy
    struct media_options options;
    int32_t gain_mdb;       // chunk: of normalised renditions, thousandths of a decibel
    uint32_t window_blocks; // of the source that are at hand at once; 0: MEDIA_WINDOW_BLOCKS
    uint32_t first_segment; // chunk; on the grid of its renditions, which are of one kind
    uint32_t n_segments;
    uint32_t n_renditions;
    uint8_t renditions[MEDIA_MAX_RENDITIONS]; // indices into the plan
    const uint8_t *plan;                      // chunk, images: encoded plan, borrowed
    size_t plan_len;
};
enum status media_task_encode(const struct media_task *t, struct buf *ret,
                              struct err *err) MUST_CHECK;
// ret->plan points into bytes.
enum status media_task_decode(const void *bytes, size_t n, struct media_task *ret,
                              struct err *err) MUST_CHECK;

enum media_record_type {
    MEDIA_REC_TASK = 1, // size
    MEDIA_REC_DATA = 2, // bytes
    MEDIA_REC_READY = 3,
    MEDIA_REC_READ = 4,      // offset, len
    MEDIA_REC_AVAILABLE = 5, // offset, len; len 0: cannot be had
    MEDIA_REC_PROGRESS = 6,  // done, total
    MEDIA_REC_SEGMENT = 7,   // header
    MEDIA_REC_PLAN = 8,      // size
    MEDIA_REC_VERDICT = 9,   // verdict, text
};
enum media_verdict {
    MEDIA_VERDICT_OK = 0,
    MEDIA_VERDICT_REJECTED = 1, // the input is at fault; text is for people
    MEDIA_VERDICT_SOURCE = 2,   // a READ was refused
    MEDIA_VERDICT_LIMIT = 3,    // memory, time or size ran out
    MEDIA_VERDICT_FAILED = 4,   // ours: an encoder would not open, plan and build disagree, ...
};
struct media_segment_out {
    uint32_t rendition; // index into the plan
    uint32_t segment;
    int64_t first_pts, duration;
    uint32_t samples, repeated, dropped;
    uint32_t size; // bytes that follow
};
struct media_record {
    enum media_record_type type;
    int64_t a, b;                 // offset/len, done/total, size in a
    struct media_segment_out out; // SEGMENT
    enum media_verdict verdict;   // VERDICT
    char text[240];               // VERDICT; UTF-8
    const uint8_t *data;          // DATA: borrowed from the packet
    size_t data_len;
};
// One packet from one record; never more than MEDIA_RECORD_MAX.
enum status media_record_encode(const struct media_record *r, struct buf *ret,
                                struct err *err) MUST_CHECK;
enum status media_record_decode(const void *packet, size_t n, struct media_record *ret,
                                struct err *err) MUST_CHECK;
