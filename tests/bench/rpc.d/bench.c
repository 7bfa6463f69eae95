// The driver. CPU time is that of both processes, user and system, between two points when nothing
// is in flight; latencies go to a histogram whose buckets are 1.6 % wide.
#include "bench.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SUB_BITS 6 // buckets per power of two: 64
#define N_BUCKETS ((64 - SUB_BITS) << SUB_BITS)
#define WARM_SHARE 0.25 // of the measured time
#define MIB (1024.0 * 1024.0)
#define SLOW_READ_MS 20 // the slow reader takes a message this often

extern char **environ;

struct bench_run {
    int64_t until_ns;
    atomic_long n_started, n_done, n_failed;
    atomic_uint buckets[N_BUCKETS];
};

struct opts {
    const char *address, *name;
    pid_t pid;
    size_t size;
    unsigned in_flight, count;
    double seconds;
    uint64_t bytes;
    bool pooled;
};

static void die(const char *what)
{
    fprintf(stderr, "%s failed\n", what);
    exit(1);
}

// ---------------------------------------------------------------- measuring

static int64_t clock_ns(clockid_t id)
{
    struct timespec ts;
    if (clock_gettime(id, &ts) != 0)
        return 0;
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t bench_now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

// CPU seconds of this process and the server, user and system.
static double cpu_s(const struct opts *o)
{
    clockid_t server;
    int64_t ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    if (o->pid && clock_getcpuclockid(o->pid, &server) == 0)
        ns += clock_ns(server);
    return (double)ns / 1e9;
}

static double rss_kib(pid_t pid)
{
    char path[64];
    long pages = 0;
    if (pid)
        snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    else
        snprintf(path, sizeof path, "/proc/self/statm");
    FILE *f = fopen(path, "re");
    if (!f || fscanf(f, "%*d %ld", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1024;
}

static unsigned bucket_of(uint64_t ns)
{
    if (ns < 1U << SUB_BITS)
        return (unsigned)ns;
    unsigned top = 63U - (unsigned)__builtin_clzll(ns);
    unsigned shift = top - SUB_BITS;
    return ((shift + 1) << SUB_BITS) + (unsigned)((ns >> shift) & ((1U << SUB_BITS) - 1));
}

static double bucket_us(unsigned b)
{
    unsigned shift = b >> SUB_BITS;
    uint64_t low = b & ((1U << SUB_BITS) - 1);
    if (shift == 0)
        return (double)low / 1e3;
    uint64_t from = (low | 1U << SUB_BITS) << (shift - 1);
    return (double)(from + (1ULL << (shift - 1)) / 2) / 1e3;
}

static double percentile_us(const struct bench_run *r, double share)
{
    long want = (long)(share * (double)r->n_done), seen = 0;
    for (unsigned b = 0; b < N_BUCKETS; b++) {
        seen += (long)r->buckets[b];
        if (seen > want)
            return bucket_us(b);
    }
    return 0;
}

static struct bench_run *run_new(double seconds)
{
    struct bench_run *r = calloc(1, sizeof *r);
    if (!r)
        die("allocating");
    r->until_ns = bench_now_ns() + (int64_t)(seconds * 1e9);
    return r;
}

bool bench_next(struct bench_run *r)
{
    if (bench_now_ns() >= r->until_ns)
        return false;
    r->n_started++;
    return true;
}

void bench_done(struct bench_run *r, int64_t began_ns, bool ok)
{
    int64_t took = bench_now_ns() - began_ns;
    r->buckets[bucket_of(took > 0 ? (uint64_t)took : 0)]++;
    r->n_done++;
    r->n_failed += !ok;
}

void *bench_payload(size_t size)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct payload {
        struct payload *smaller; // somebody may be sending from it
        size_t size;
        uint8_t data[];
    } * largest;
    pthread_mutex_lock(&lock);
    if (!largest || largest->size < size) {
        struct payload *p = malloc(sizeof *p + size);
        if (!p)
            die("allocating");
        *p = (struct payload){.smaller = largest, .size = size};
        for (size_t i = 0; i < size; i++)
            p->data[i] = (uint8_t)(i * 131 + (i >> 8));
        largest = p;
    }
    void *data = largest->data;
    pthread_mutex_unlock(&lock);
    return data;
}

// ---------------------------------------------------------------- cases

// One call after another in this thread, or in_flight of them.
static void loop(const struct bench_system *s, void *conn, const struct opts *o,
                 struct bench_run *r)
{
    if (o->in_flight > 1) {
        s->echo_many(conn, o->size, o->in_flight, r);
        return;
    }
    while (bench_next(r)) {
        int64_t began = bench_now_ns();
        bench_done(r, began, s->echo(conn, o->size));
    }
}

static void *connect_or_die(const struct bench_system *s, const struct opts *o)
{
    void *conn = s->connect(o->address, o->pooled);
    if (!conn)
        die("connecting");
    return conn;
}

static void warm(const struct bench_system *s, void *conn, const struct opts *o)
{
    struct bench_run *r = run_new(o->seconds * WARM_SHARE);
    loop(s, conn, o, r);
    free(r);
}

static long case_echo(const struct bench_system *s, const struct opts *o)
{
    void *conn = connect_or_die(s, o);
    warm(s, conn, o);
    double cpu = cpu_s(o);
    int64_t began = bench_now_ns();
    struct bench_run *r = run_new(o->seconds);
    loop(s, conn, o, r);
    double wall = (double)(bench_now_ns() - began) / 1e9;
    cpu = cpu_s(o) - cpu;
    double n = (double)r->n_done;
    printf("{\"calls_per_s\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"mb_per_s\": %.2f, "
           "\"cpu_s_per_100k\": %.4f, \"cores\": %.2f, \"calls\": %.0f, \"failed\": %ld}\n",
           n / wall, percentile_us(r, 0.5), percentile_us(r, 0.99),
           n * (double)o->size / wall / 1e6, cpu * 1e5 / n, cpu / wall, n, (long)r->n_failed);
    long failed = r->n_failed;
    free(r);
    s->disconnect(conn);
    return failed;
}

// Reads a stream to its end. Returns its bytes, or -1.
static int64_t drain(const struct bench_system *s, void *stream)
{
    int64_t total = 0, n;
    while (stream && (n = s->next(stream)) > 0)
        total += n;
    return stream && n == 0 ? total : -1;
}

static long stream_once(const struct bench_system *s, void *conn, size_t size, uint64_t bytes)
{
    void *stream = s->open(conn, size, bytes);
    int64_t got = drain(s, stream);
    if (stream)
        s->close(stream);
    return got != (int64_t)bytes;
}

static long case_stream(const struct bench_system *s, const struct opts *o)
{
    void *conn = connect_or_die(s, o);
    long failed = stream_once(s, conn, o->size, o->bytes / 16);
    double cpu = cpu_s(o);
    int64_t began = bench_now_ns();
    failed += stream_once(s, conn, o->size, o->bytes);
    double wall = (double)(bench_now_ns() - began) / 1e9;
    cpu = cpu_s(o) - cpu;
    printf("{\"mb_per_s\": %.1f, \"cpu_s_per_gib\": %.3f, \"cores\": %.2f, \"failed\": %ld}\n",
           (double)o->bytes / wall / 1e6, cpu * 1024 * MIB / (double)o->bytes, cpu / wall, failed);
    s->disconnect(conn);
    return failed;
}

static long case_connect(const struct bench_system *s, const struct opts *o)
{
    struct bench_run *r = NULL;
    double cpu = 0, wall = 0;
    for (int pass = 0; pass < 2; pass++) { // the first warms up
        free(r);
        r = run_new(pass ? o->seconds : o->seconds * WARM_SHARE);
        cpu = cpu_s(o);
        wall = (double)bench_now_ns() / 1e9;
        while (bench_next(r)) {
            int64_t began = bench_now_ns();
            void *conn = s->connect(o->address, o->pooled);
            bench_done(r, began, conn && s->echo(conn, o->size));
            if (conn)
                s->disconnect(conn);
        }
        cpu = cpu_s(o) - cpu;
        wall = (double)bench_now_ns() / 1e9 - wall;
    }
    double n = (double)r->n_done;
    printf("{\"calls_per_s\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"cpu_s_per_100k\": %.3f, "
           "\"calls\": %.0f, "
           "\"failed\": %ld}\n",
           n / wall, percentile_us(r, 0.5), percentile_us(r, 0.99), cpu * 1e5 / n, n,
           (long)r->n_failed);
    long failed = r->n_failed;
    free(r);
    return failed;
}

static long case_idle(const struct bench_system *s, const struct opts *o)
{
    void *first = connect_or_die(s, o); // what the first one loads is not the others' price
    long failed = !s->echo(first, o->size);
    double client = rss_kib(0), server = rss_kib(o->pid);
    void **conns = calloc(o->count, sizeof *conns);
    if (!conns)
        die("allocating");
    if (s->connect_many) {
        conns[0] = s->connect_many(o->address, o->count);
        failed += !conns[0];
    }
    for (unsigned i = 0; !s->connect_many && i < o->count; i++) {
        conns[i] = s->connect(o->address, o->pooled);
        failed += !conns[i];
    }
    printf("{\"client_kib\": %.2f, \"server_kib\": %.2f, \"connections\": %u, \"failed\": %ld}\n",
           (rss_kib(0) - client) / o->count, (rss_kib(o->pid) - server) / o->count, o->count,
           failed);
    for (unsigned i = 0; i < o->count; i++)
        if (conns[i])
            s->disconnect(conns[i]);
    free(conns);
    s->disconnect(first);
    return failed;
}

// ---------------------------------------------------------------- beside a stream

struct reader { // reads an endless stream until told to stop
    const struct bench_system *s;
    void *stream;
    int pause_ms;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool stop;
    atomic_llong bytes;
    atomic_bool failed;
    pthread_t thread;
};

static bool pause_or_stop(struct reader *rd)
{
    int64_t until = bench_now_ns() + (int64_t)rd->pause_ms * 1000000;
    struct timespec ts = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    pthread_mutex_lock(&rd->lock);
    while (rd->pause_ms && !rd->stop &&
           pthread_cond_timedwait(&rd->cond, &rd->lock, &ts) != ETIMEDOUT)
        ;
    bool stop = rd->stop;
    pthread_mutex_unlock(&rd->lock);
    return stop;
}

static void *read_stream(void *ud)
{
    struct reader *rd = ud;
    while (!pause_or_stop(rd)) {
        int64_t n = rd->s->next(rd->stream);
        if (n <= 0) {
            rd->failed = true;
            break;
        }
        rd->bytes += n;
    }
    return NULL;
}

static void reader_start(struct reader *rd, const struct bench_system *s, void *conn, size_t size,
                         int pause_ms)
{
    *rd = (struct reader){.s = s, .pause_ms = pause_ms};
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&rd->cond, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&rd->lock, NULL);
    rd->stream = s->open(conn, size, UINT64_MAX >> 8);
    if (!rd->stream || pthread_create(&rd->thread, NULL, read_stream, rd) != 0)
        die("opening a stream");
}

static long reader_stop(struct reader *rd)
{
    pthread_mutex_lock(&rd->lock);
    rd->stop = true;
    pthread_cond_signal(&rd->cond);
    pthread_mutex_unlock(&rd->lock);
    pthread_join(rd->thread, NULL);
    rd->s->close(rd->stream);
    pthread_cond_destroy(&rd->cond);
    pthread_mutex_destroy(&rd->lock);
    return rd->failed;
}

static void let_run(struct reader *rd, double seconds)
{
    int64_t until = bench_now_ns() + (int64_t)(seconds * 1e9);
    struct timespec ts = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    pthread_mutex_lock(&rd->lock);
    while (pthread_cond_timedwait(&rd->cond, &rd->lock, &ts) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&rd->lock);
}

static long case_slow(const struct bench_system *s, const struct opts *o)
{
    void *conn = connect_or_die(s, o);
    void *other = s->two_at_once ? conn : connect_or_die(s, o);
    long failed = !s->echo(conn, 128);
    struct reader slow, fast;
    double before = rss_kib(o->pid), cpu = cpu_s(o);
    reader_start(&slow, s, conn, o->size, SLOW_READ_MS);
    reader_start(&fast, s, other, o->size, 0);
    let_run(&fast, o->seconds);
    double mb = (double)fast.bytes / o->seconds / 1e6, slow_mb = (double)slow.bytes / 1e6;
    double grown = rss_kib(o->pid) - before;
    cpu = cpu_s(o) - cpu;
    failed += reader_stop(&fast) + reader_stop(&slow);
    printf("{\"mb_per_s\": %.1f, \"slow_mb_per_s\": %.2f, \"cpu_s_per_gib\": %.3f, "
           "\"server_growth_kib\": %.0f, \"one_connection\": %s, \"failed\": %ld}\n",
           mb, slow_mb / o->seconds, cpu * 1024 * MIB / (mb * o->seconds * 1e6 + slow_mb * 1e6),
           grown, s->two_at_once ? "true" : "false", failed);
    if (other != conn)
        s->disconnect(other);
    s->disconnect(conn);
    return failed;
}

static long case_mixed(const struct bench_system *s, const struct opts *o)
{
    if (!s->two_at_once) {
        printf("{\"note\": \"one thing at a time on a connection\"}\n");
        return 0;
    }
    struct opts small = *o;
    small.size = 128;
    small.in_flight = 1;
    void *conn = connect_or_die(s, o);
    warm(s, conn, &small);
    struct bench_run *idle = run_new(o->seconds / 2);
    loop(s, conn, &small, idle);
    struct reader bulk;
    reader_start(&bulk, s, conn, o->size, 0);
    warm(s, conn, &small);
    int64_t began = bench_now_ns();
    double cpu = cpu_s(o);
    long long bytes = bulk.bytes;
    struct bench_run *busy = run_new(o->seconds);
    loop(s, conn, &small, busy);
    double wall = (double)(bench_now_ns() - began) / 1e9;
    double mb = (double)(bulk.bytes - bytes) / wall / 1e6;
    cpu = cpu_s(o) - cpu;
    long failed = reader_stop(&bulk) + idle->n_failed + busy->n_failed;
    printf("{\"idle_p50_us\": %.1f, \"idle_p99_us\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"p99_to_idle\": %.3f, \"mb_per_s\": %.2f, \"cpu_s_per_gib\": %.3f, "
           "\"calls_per_s\": %.1f, \"calls\": %ld, \"failed\": %ld}\n",
           percentile_us(idle, 0.5), percentile_us(idle, 0.99), percentile_us(busy, 0.5),
           percentile_us(busy, 0.99), percentile_us(busy, 0.99) / percentile_us(idle, 0.99), mb,
           cpu * 1024 * MIB / (mb * wall * 1e6), (double)busy->n_done / wall, (long)busy->n_done,
           failed);
    free(idle);
    free(busy);
    s->disconnect(conn);
    return failed;
}

static const struct {
    const char *name;
    long (*run)(const struct bench_system *s, const struct opts *o);
} cases[] = {
    {"echo", case_echo}, {"stream", case_stream}, {"connect", case_connect},
    {"idle", case_idle}, {"slow", case_slow},     {"mixed", case_mixed},
};
#define N_CASES (sizeof cases / sizeof cases[0])

static long run_case(const struct bench_system *s, const struct opts *o)
{
    for (size_t i = 0; i < N_CASES; i++) {
        if (strcmp(cases[i].name, o->name) != 0)
            continue;
        long failed = cases[i].run(s, o);
        if (failed)
            fprintf(stderr, "%s: %ld failed\n", o->name, failed);
        return failed;
    }
    fprintf(stderr, "no case called '%s'\n", o->name);
    return -1;
}

// ---------------------------------------------------------------- the program

void bench_ready(const char *address)
{
    printf("ready %s\n", address);
    fflush(stdout);
}

void bench_wait_stdin(void)
{
    char c;
    while (read(STDIN_FILENO, &c, 1) > 0)
        ;
}

static struct opts read_opts(char **arg)
{
    struct opts o = {
        .name = "", .size = 128, .in_flight = 1, .seconds = 1, .count = 100, .bytes = 64ULL << 20};
    for (; *arg; arg++) {
        const char *eq = strchr(*arg, '=');
        size_t n = eq ? (size_t)(eq - *arg) : 0;
        const char *v = eq ? eq + 1 : "";
#define IS(key) (n == sizeof key - 1 && memcmp(*arg, key, n) == 0)
        if (IS("address"))
            o.address = v;
        else if (IS("case"))
            o.name = v;
        else if (IS("variant"))
            o.pooled = strcmp(v, "pooled") == 0;
        else if (IS("pid"))
            o.pid = (pid_t)strtol(v, NULL, 10);
        else if (IS("size"))
            o.size = strtoul(v, NULL, 10);
        else if (IS("in_flight"))
            o.in_flight = (unsigned)strtoul(v, NULL, 10);
        else if (IS("seconds"))
            o.seconds = strtod(v, NULL);
        else if (IS("bytes"))
            o.bytes = strtoull(v, NULL, 10);
        else if (IS("count"))
            o.count = (unsigned)strtoul(v, NULL, 10);
        else
            die(*arg);
#undef IS
    }
    if (!o.address || o.count == 0 || o.size == 0)
        die("reading the arguments");
    return o;
}

// Every case, briefly, against a server of its own.
static int smoke(const struct bench_system *s, const char *self, char *argument)
{
    int in[2], out[2];
    if (pipe(in) != 0 || pipe(out) != 0)
        die("pipe");
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&fa, out[1], STDOUT_FILENO);
    for (int i = 0; i < 2; i++) {
        posix_spawn_file_actions_addclose(&fa, in[i]);
        posix_spawn_file_actions_addclose(&fa, out[i]);
    }
    char server[] = "server", program[] = "bench";
    char *args[] = {program, server, argument, NULL};
    pid_t pid;
    if (posix_spawn(&pid, self, &fa, NULL, args, environ) != 0)
        die("starting the server");
    posix_spawn_file_actions_destroy(&fa);
    close(in[0]);
    close(out[1]);
    char address[1024] = "";
    FILE *f = fdopen(out[0], "r");
    if (!f || fscanf(f, "ready %1023s", address) != 1)
        die("waiting for the server");
    long failed = 0;
    struct opts o = {.address = address, .pid = pid, .seconds = 0.05, .count = 5};
    for (size_t i = 0; i < N_CASES; i++) {
        for (unsigned pass = 0; pass < 2; pass++) {
            o.name = cases[i].name;
            o.size = pass ? 100000 : 128;
            o.in_flight = pass ? 1 : 8;
            o.bytes = 64 * o.size;
            o.pooled = pass;
            failed += run_case(s, &o) != 0;
        }
    }
    close(in[1]);
    int status = 0;
    if (waitpid(pid, &status, 0) != pid || status != 0)
        die("the server's end");
    fclose(f);
    return failed != 0;
}

int bench_main(const struct bench_system *s, int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    const char *role = argc > 1 ? argv[1] : "";
    if (strcmp(role, "server") == 0)
        return s->serve(argc > 2 ? argv[2] : "");
    if (strcmp(role, "smoke") == 0)
        return smoke(s, "/proc/self/exe", argc > 2 ? argv[2] : NULL);
    if (strcmp(role, "client") == 0) {
        struct opts o = read_opts(argv + 2);
        return run_case(s, &o) == 0 ? 0 : 1;
    }
    fprintf(stderr, "usage: %s server [ARGUMENT] | client KEY=VALUE... | smoke [ARGUMENT]\n",
            argv[0]);
    return 2;
}
