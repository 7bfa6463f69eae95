// Echo calls of 128 bytes, 64 in flight, over TCP loopback: sealed channel, token, role check,
// dispatcher, protobuf on both sides, all in one process so that its CPU time is client + server.
//
// rpc_echo [--calls N] [--json FILE]
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "rpc/test_util.h"

#define IN_FLIGHT 64
#define PAYLOAD 128

struct run {
    struct rpc_client *client;
    int method;
    Note req;
    struct rpc_opts opts;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    long started, done, total, failed;
};

static double cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void on_reply(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    (void)err;
    struct run *r = ud;
    rpc_message_free(reply);
    pthread_mutex_lock(&r->lock);
    r->failed += s != STATUS_OK;
    bool more = r->started < r->total;
    r->started += more;
    if (++r->done == r->total)
        pthread_cond_signal(&r->cond);
    pthread_mutex_unlock(&r->lock);
    if (more)
        rpc_unary_async(r->client, &test_service.methods[r->method], &r->opts, &r->req.base,
                        on_reply, r);
}

static void run_calls(struct run *r, long total)
{
    r->started = IN_FLIGHT;
    r->done = r->failed = 0;
    r->total = total;
    for (int i = 0; i < IN_FLIGHT; i++)
        rpc_unary_async(r->client, &test_service.methods[r->method], &r->opts, &r->req.base,
                        on_reply, r);
    pthread_mutex_lock(&r->lock);
    while (r->done < total)
        pthread_cond_wait(&r->cond, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

struct row {
    const char *name;
    int method;
    double calls_per_s, cpu_per_100k, calls_per_record;
    long failed;
};

static void measure(struct row *row, long calls)
{
    static uint8_t payload[PAYLOAD];
    struct world w;
    world_init(&w);
    world_serve(&w, "tcp://127.0.0.1:0", true);
    struct run r = {.client = world_client(&w),
                    .method = row->method,
                    .opts = {.token = "user"},
                    .lock = PTHREAD_MUTEX_INITIALIZER,
                    .cond = PTHREAD_COND_INITIALIZER};
    note_init(&r.req);
    r.req.data = (ProtobufCBinaryData){.len = sizeof payload, .data = payload};
    run_calls(&r, calls / 10 + IN_FLIGHT); // warm up
    struct rpc_client_stats before, after;
    rpc_client_get_stats(r.client, &before);
    double cpu = cpu_s();
    int64_t start = time_mono_us();
    run_calls(&r, calls);
    double wall = (double)(time_mono_us() - start) / 1e6;
    row->cpu_per_100k = (cpu_s() - cpu) * 1e5 / (double)calls;
    row->calls_per_s = (double)calls / wall;
    row->failed = r.failed;
    rpc_client_get_stats(r.client, &after);
    row->calls_per_record = (double)calls / (double)(after.records_out - before.records_out);
    rpc_client_free(r.client);
    world_done(&w);
}

static int write_json(const char *path, const struct row *rows, size_t n)
{
    FILE *f = fopen(path, "we");
    if (!f) {
        perror(path);
        return 1;
    }
    time_t now = time(NULL);
    struct tm tm;
    char date[32];
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
    fprintf(f, "{\"bench\": \"rpc_echo\", \"date\": \"%s\", \"rows\": [", date);
    for (size_t i = 0; i < n; i++)
        fprintf(
            f,
            "%s\n  {\"case\": \"%s\", \"system\": \"cauce\", \"metrics\": {\"calls_per_s\": %.0f, "
            "\"cpu_s_per_100k\": %.3f, \"calls_per_record\": %.2f}, \"ratio\": null}",
            i ? "," : "", rows[i].name, rows[i].calls_per_s, rows[i].cpu_per_100k,
            rows[i].calls_per_record);
    fprintf(f, "\n], \"targets\": []}\n");
    return fclose(f) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    long calls = 200000;
    const char *json = NULL;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--calls") == 0)
            calls = strtol(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--json") == 0)
            json = argv[i + 1];
    }
    if (calls < IN_FLIGHT) {
        fprintf(stderr, "usage: rpc_echo [--calls N] [--json FILE]; N at least %d\n", IN_FLIGHT);
        return 2;
    }
    struct row rows[] = {{.name = "inline handler, 128 B, 64 in flight", .method = ECHO_INLINE},
                         {.name = "blocking handler, 128 B, 64 in flight", .method = ECHO}};
    long failed = 0;
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        measure(&rows[i], calls);
        printf("%-40s %8.0f calls/s  %.2f CPU-s per 100k calls  %.1f calls per record\n",
               rows[i].name, rows[i].calls_per_s, rows[i].cpu_per_100k, rows[i].calls_per_record);
        failed += rows[i].failed;
    }
    rpc_fini();
    if (failed)
        fprintf(stderr, "%ld calls failed\n", failed);
    return failed ? 1 : json ? write_json(json, rows, N_ELEMENTS(rows)) : 0;
}
