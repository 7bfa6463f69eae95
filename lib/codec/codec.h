#pragma once
// Probe, decode and encode: the only user of FFmpeg. Linked by cauce-codec and by tests alone;
// input is untrusted, so callers run this confined.
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "media/media.h"

// Where the source's bytes are. Borrowed for the call it is given to.
struct codec_source {
    int fd; // read with pread()
    int64_t size;
    int64_t base; // where its first byte lies in fd; offsets of `need` are fd's
    // Make [offset, offset + len) of fd, of one block, readable; bytes of earlier calls may go.
    // False: cannot be had. NULL: everything is there.
    bool (*need)(void *ud, int64_t offset, int64_t len);
    void *ud;
};

// Where results go; called from one thread at a time.
struct codec_sink {
    enum status (*segment)(void *ud, const struct media_segment_out *out, const void *bytes,
                           size_t n, struct err *err);
    void (*progress)(void *ud, int64_t done, int64_t total);
    void *ud;
};

// errors, of all calls: INVALID_ARGUMENT the input is at fault, the text is for people;
// UNAVAILABLE bytes could not be had; RESOURCE_EXHAUSTED memory; others are ours.

// Load every decoder and encoder that may be wanted. Before confinement; idempotent.
enum status codec_preload(struct err *err) MUST_CHECK;
// Name of this build of the encoders; part of recipes. Static storage.
const char *codec_build(void);
// Which instruction sets shape the encoders' output here ("avx2", "ssse3", ...). Static storage.
const char *codec_cpu_class(void);

// What the source is and the plan for it. Reads an index where there is one, the whole otherwise.
// options  NULL: the usual
enum status codec_probe_as(const struct codec_source *src, const struct media_options *options,
                           const struct codec_sink *progress, struct media_plan **ret,
                           struct err *err) MUST_CHECK;
enum status codec_probe(const struct codec_source *src, const struct codec_sink *progress,
                        struct media_plan **ret, struct err *err) MUST_CHECK;
// Make the segments of a chunk task, in ascending order per rendition. One decode serves all
// renditions; bytes do not depend on which renditions or segments are asked for together, nor on
// task->threads. Each segment agrees with media_cmaf_check().
enum status codec_encode(const struct codec_source *src, const struct media_plan *plan,
                         const struct media_task *task, const struct codec_sink *sink,
                         struct err *err) MUST_CHECK;
// Make the pictures of an images task (media/image.h), each handed to sink->segment as segment 0 of
// "rendition" enum media_image. One that the source has no picture for is left out.
enum status codec_images(const struct codec_source *src, const struct media_plan *plan,
                         const struct media_task *task, const struct codec_sink *sink,
                         struct err *err) MUST_CHECK;
// Measure the default track's sound, by a measure task: MEDIA_IMAGE_LOUDNESS and, of a song,
// MEDIA_IMAGE_WAVEFORM. One pass over all of it.
enum status codec_measure(const struct codec_source *src, const struct media_plan *plan,
                          const struct media_task *task, const struct codec_sink *sink,
                          struct err *err) MUST_CHECK;
// Look at the segments that come with the source of a verify task (media/checks.h): STATUS_OK when
// they decode to what the plan says and show what the source shows.
// errors  INVALID_ARGUMENT: one is wrong, with a sentence that names it; FAILED_PRECONDITION: the
//         source itself cannot be read; UNAVAILABLE
enum status codec_verify(const struct codec_source *src, const struct media_plan *plan,
                         const struct media_task *task, const struct codec_sink *sink,
                         struct err *err) MUST_CHECK;
// Make the WebVTT (media/webvtt.h) of a texts task, each track handed to sink->segment as segment 0
// of "rendition" its number in the source; or, when the task's only rendition is MEDIA_TEXT_FILE,
// of the file of SRT, WebVTT or ASS that the source is. A track that cannot be read is left out.
enum status codec_texts(const struct codec_source *src, const struct media_plan *plan,
                        const struct media_task *task, const struct codec_sink *sink,
                        struct err *err) MUST_CHECK;
