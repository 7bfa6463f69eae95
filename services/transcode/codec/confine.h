#pragma once
// The codec process gives up everything but memory, threads, and the descriptors that it has.
#include <stdint.h>

#include "base/err.h"

// Irreversible, for the calling process; single-threaded still. In this order: no new privileges,
// not dumpable, limits (address space, CPU seconds, no files written, 16 descriptors, no core),
// Landlock (no file system, TCP or signals out), seccomp (an allow list; anything else kills).
//
// cpu_s  CPU seconds after which the process is killed; 0: no limit
// errors FAILED_PRECONDITION when the kernel cannot confine; the process must end then
enum status confine_self(unsigned cpu_s, struct err *err) MUST_CHECK;
// Less memory than that from now on, in bytes, for what the process itself writes to.
enum status confine_memory(uint64_t bytes, struct err *err) MUST_CHECK;
