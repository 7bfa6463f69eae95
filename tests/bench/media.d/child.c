// bench_child PROGRAM ROUNDS: what a confined process costs by itself. Probes of a few words, which
// are looked at and refused, one after the other: CPU of everything that takes part (this process,
// the host that forks, the children), and the children's alone. One line of JSON.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/time.h"
#include "transcode/child.h"

static const char words[] = "no film at all, just enough words to look at";

static enum status fetch(void *ud, int64_t offset, size_t len, void *dst, struct err *err)
{
    (void)ud, (void)err;
    memcpy(dst, words + offset, len);
    return STATUS_OK;
}

static int64_t cpu_us(int who)
{
    struct rusage u;
    getrusage(who, &u);
    return (int64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000 + u.ru_utime.tv_usec +
           u.ru_stime.tv_usec;
}

struct cost {
    int64_t all_us, children_us, wall_us;
};

// A host of its own for `rounds` tasks.
static struct cost measure(const char *program, int rounds)
{
    struct cost c = {0};
    int64_t before = cpu_us(RUSAGE_SELF) + cpu_us(RUSAGE_CHILDREN), begin = time_mono_us();
    struct codec_host *host = codec_host_new(program);
    for (int i = 0; host && i < rounds; i++) {
        struct media_task t = {
            .kind = MEDIA_TASK_PROBE, .source_size = sizeof(words), .threads = 1};
        struct child_job job = {.host = host,
                                .task = &t,
                                .deadline_us = time_deadline_in_ms(60000),
                                .cancel_fd = -1,
                                .fetch = fetch};
        struct child_result r;
        child_run(&job, &r);
        if (r.outcome != CHILD_REJECTED) {
            fprintf(stderr, "bench_child: %s: %s\n", child_outcome_name(r.outcome), r.text);
            exit(1);
        }
        c.children_us += r.cpu_us;
        child_result_done(&r);
    }
    c.wall_us = time_mono_us() - begin;
    codec_host_free(host);
    c.all_us = cpu_us(RUSAGE_SELF) + cpu_us(RUSAGE_CHILDREN) - before;
    return c;
}

int main(int argc, char **argv)
{
    int rounds = argc == 3 ? atoi(argv[2]) : 0;
    if (rounds < 2)
        return 2;
    struct cost one = measure(argv[1], 1), many = measure(argv[1], rounds);
    printf("{\"first_ms\":%.3f,\"task_ms\":%.3f,\"child_ms\":%.3f,\"wall_ms\":%.3f}\n",
           (double)one.all_us / 1e3, (double)(many.all_us - one.all_us) / (rounds - 1) / 1e3,
           (double)many.children_us / rounds / 1e3,
           (double)(many.wall_us - one.wall_us) / (rounds - 1) / 1e3);
    return 0;
}
