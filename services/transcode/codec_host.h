#pragma once
// Starts confined codec processes fast: keeps one cauce-codec that has its libraries loaded and
// forks for each task (codec/serve.h).
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

struct codec_host;
// program  path of cauce-codec; it is started with the first task, and again should it ever end
struct codec_host *codec_host_new(const char *program) MUST_CHECK; // NULL: out of memory
void codec_host_free(struct codec_host *h); // tasks that still run are killed

struct codec_process {
    int pid_fd;    // readable once it has ended; for signals
    int report_fd; // internal
};
// Thread-safe. Descriptors are borrowed. cpu_s as in confine_self().
// errors  what posix_spawn() or fork() said; UNAVAILABLE: the program does not serve
// nice  what it gives way to: 0..19, as of setpriority()
enum status codec_host_start(struct codec_host *h, int source_fd, int control_fd, unsigned cpu_s,
                             int nice, struct codec_process *ret, struct err *err) MUST_CHECK;

struct codec_end {
    int wstatus; // as wait4() gives it
    int64_t cpu_us, peak_rss_bytes;
};
// Waits at most ms; false: it still runs, or its host is gone and it with it (then lost is set).
bool codec_process_wait(struct codec_process *p, int ms, struct codec_end *ret, bool *ret_lost);
void codec_process_kill(struct codec_process *p);
void codec_process_done(struct codec_process *p); // closes; the process must have ended
