#pragma once
// The benchmark's driver: what is measured, the same for every system. A system is a table of
// functions; its program is bench_main() with that table.
//
//   PROGRAM server [ARGUMENT]      prints "ready ADDRESS", serves until its input ends
//   PROGRAM client KEY=VALUE...    measures one case, prints one line of JSON
//   PROGRAM smoke [ARGUMENT]       a server and a few hundred calls of every case
//
// Keys: address, case (echo stream connect idle slow mixed), variant (pooled), pid (the server's,
// for its CPU time), size, in_flight, seconds, bytes, count.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct bench_run; // one closed loop of calls

bool bench_next(struct bench_run *r); // may another call begin?
int64_t bench_now_ns(void);
// A call has ended; began_ns is when it was started. Any thread.
void bench_done(struct bench_run *r, int64_t began_ns, bool ok);

struct bench_system {
    // Serve on a free port of 127.0.0.1 until the standard input ends; says bench_ready() once.
    int (*serve)(const char *argument);
    // A connection (of a client of its own) that is ready for calls; NULL: failed, said on stderr.
    void *(*connect)(const char *address, bool pooled);
    void (*disconnect)(void *conn);
    // n connections at once, for counting their memory; NULL: connect() n times.
    void *(*connect_many)(const char *address, size_t n);
    // One call, waiting for it. False: it failed.
    bool (*echo)(void *conn, size_t size);
    // in_flight calls at a time while bench_next(); returns when all have ended.
    void (*echo_many)(void *conn, size_t size, unsigned in_flight, struct bench_run *r);
    // A stream of total bytes in messages of one size.
    void *(*open)(void *conn, size_t message_bytes, uint64_t total_bytes);
    int64_t (*next)(void *stream); // bytes of the next message; 0 at the end, -1 failed
    void (*close)(void *stream);   // also before its end
    bool two_at_once;              // a stream and other calls may share a connection
};
int bench_main(const struct bench_system *s, int argc, char **argv);

void bench_ready(const char *address); // server: where clients find it
void bench_wait_stdin(void);           // server: until its input ends
void *bench_payload(size_t size);      // size bytes that do not change; lives for ever

#ifdef __cplusplus
}
#endif
