#pragma once
// One confined codec process: start it, feed it the source, take its results, see it end.
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "codec_host.h"
#include "media/plan.h"
#include "media/task.h"

struct child_job {
    struct codec_host *host;       // starts it; borrowed, may serve several threads
    const struct media_task *task; // borrowed; plan bytes in it for chunks
    const struct media_plan *plan; // chunk: the same plan, decoded; segments are checked against it
    int64_t deadline_us;           // monotonic; the child is killed then
    int64_t stall_ms;              // killed after this long without a record from it; 0: 10 s
    int nice;                      // what its process gives way to: 0..19
    int cancel_fd;                 // readable: stop; -1: none. Not read from, not closed.
    void *ud;                      // for the callbacks, which run on the caller's thread

    // Exactly len bytes of the source at offset into dst. May block; its time does not count as a
    // stall. A failure ends the job with CHILD_SOURCE and this status.
    enum status (*fetch)(void *ud, int64_t offset, size_t len, void *dst, struct err *err);
    // A finished segment that agrees with the plan, or a picture (rendition: enum media_image).
    // Bytes are borrowed for the call. A failure ends the job with CHILD_SINK and this status. NULL
    // for probes.
    enum status (*segment)(void *ud, const struct media_segment_out *out, const void *bytes,
                           size_t n, struct err *err);
    void (*progress)(void *ud, int64_t done, int64_t total); // may be NULL
};

enum child_outcome {
    CHILD_OK = 0,
    CHILD_REJECTED,  // the input is at fault; text for people
    CHILD_CRASH,     // killed by a signal of its own, or ended without a verdict, or spoke nonsense
    CHILD_TIMEOUT,   // deadline or stall
    CHILD_LIMIT,     // ran into its memory, CPU or size limit
    CHILD_SOURCE,    // fetch failed
    CHILD_SINK,      // segment failed
    CHILD_CANCELLED, // cancel_fd
    CHILD_FAILED,    // it could not be started or confined, or plan and build disagree: ours
};
const char *child_outcome_name(enum child_outcome o);

struct child_result {
    enum child_outcome outcome;
    enum status status;      // of fetch or segment when those failed
    char text[240];          // why; for people when rejected
    struct media_plan *plan; // probe, CHILD_OK: decoded and checked; media_plan_free()
    uint8_t *plan_bytes;     // the same, encoded; mem_free()
    size_t plan_len;
    int64_t cpu_us;        // user + system of the process
    int64_t fetched_bytes; // asked of fetch
    int64_t peak_rss_bytes;
};

// Runs the job to its end: blocks. Always fills ret (child_result_done() it); the process is gone
// when it returns. Needs no signal handling; any number of threads may each run one.
void child_run(const struct child_job *job, struct child_result *ret);
void child_result_done(struct child_result *r);
