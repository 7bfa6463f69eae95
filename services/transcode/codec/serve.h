#pragma once
// The codec process's forking half, and what its parent (codec_host.c) and it say to each other.
//
// One process loads the codec libraries once and forks for each task: a start costs a few
// milliseconds instead of the 40 that dynamic linking takes. It reads nothing untrusted; what it
// forks confines itself before it does.
#include <stdint.h>

#define SERVE_FD 3 // SOCK_SEQPACKET: requests; at its end the process and all that it forked end

// A request: with it the descriptors source, control socket and report socket (SOCK_SEQPACKET).
enum { SERVE_SOURCE, SERVE_CONTROL, SERVE_REPORT, SERVE_N_FDS };
struct serve_request {
    uint32_t cpu_s; // CPU seconds after which the kernel ends the task; 0: no limit
    int32_t nice;   // what the task gives way to: 0..19
};

// On the report socket: STARTED, with it a pidfd; ENDED; then it is closed.
enum serve_event { SERVE_STARTED = 1, SERVE_ENDED };
struct serve_report {
    uint32_t event;
    int32_t error;   // STARTED: errno when it could not be started; there is no ENDED then
    int32_t wstatus; // ENDED: as wait4() gave it
    int64_t cpu_us;  // user + system
    int64_t peak_rss_bytes;
};

#define SERVE_MAX_TASKS 256
// Serves until the socket's end. task(cpu_s) runs in the forked process, with the source and the
// control socket at the numbers that media/task.h gives them, and nothing else open but standard
// error; its value is the exit status. Single-threaded. Returns an exit status.
int serve(int (*task)(unsigned cpu_s));
