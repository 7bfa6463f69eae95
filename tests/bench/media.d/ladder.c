// Runs an item's ladder as a worker does: a probe, then chunk tasks, each in a confined cauce-codec
// (services/transcode/child.h). Options as KEY=VALUE, one line of JSON as result:
//
//   codec=PATH source=PATH   cauce-codec and the film; both needed
//   out=DIR                  where each rendition goes, as DIR/ID.mp4
//   threads=N parallel=N     that a task may use; tasks at a time (1)
//   cut=tasks|all|one|none   as the orchestrator cuts; one task per kind; one segment in one task;
//                            the plan alone
//   only=ID                  this rendition alone
//   preset=fast|quality      of the ladder
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "media/plan.h"
#include "media/task.h"
#include "transcode/child.h"

#define LIMIT_MS (INT64_C(30) * 60 * 1000)
#define MAX_TASKS 4096
#define TASK_VIDEO_US 8000000 // as the orchestrator cuts (publish.c)

struct options {
    const char *codec, *source, *out, *cut, *only, *preset;
    unsigned threads, parallel;
};

struct piece {
    uint8_t *bytes;
    size_t n;
};

struct job {
    enum media_kind kind;
    uint32_t first, n;
};

struct bench {
    struct options o;
    struct codec_host *host;
    int fd;
    int64_t size;
    struct media_plan *plan;
    uint8_t *plan_bytes;
    size_t plan_len;
    struct job jobs[MAX_TASKS];
    size_t n_jobs;
    pthread_mutex_t lock; // around what follows
    size_t next_job;
    struct piece *pieces[MEDIA_MAX_RENDITIONS]; // by segment
    int64_t task_cpu_us;
    char failed[300];
};

static void die(const char *what)
{
    fprintf(stderr, "bench_media: %s\n", what);
    exit(1);
}

// ---- callbacks ----

static enum status fetch(void *ud, int64_t offset, size_t len, void *dst, struct err *err)
{
    struct bench *b = ud;
    if (pread(b->fd, dst, len, offset) != (ssize_t)len)
        return err_set(err, STATUS_DATA_LOSS, "short read");
    return STATUS_OK;
}

static enum status keep(void *ud, const struct media_segment_out *out, const void *bytes, size_t n,
                        struct err *err)
{
    struct bench *b = ud;
    uint8_t *copy = mem_alloc(n);
    if (!copy)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    memcpy(copy, bytes, n);
    pthread_mutex_lock(&b->lock);
    b->pieces[out->rendition][out->segment] = (struct piece){copy, n};
    pthread_mutex_unlock(&b->lock);
    return STATUS_OK;
}

static struct child_job child_job(struct bench *b, const struct media_task *t)
{
    return (struct child_job){.host = b->host,
                              .task = t,
                              .plan = b->plan,
                              .deadline_us = time_deadline_in_ms(LIMIT_MS),
                              .stall_ms = LIMIT_MS,
                              .cancel_fd = -1,
                              .ud = b,
                              .fetch = fetch,
                              .segment = keep};
}

// ---- the plan ----

static void encode_plan(struct bench *b)
{
    struct buf bytes;
    struct err err = ERR_INIT;
    buf_init(&bytes, MEDIA_PLAN_MAX_BYTES);
    if (media_plan_encode(b->plan, &bytes, &err) != STATUS_OK)
        die(err.msg);
    mem_free(b->plan_bytes);
    b->plan_bytes = buf_take(&bytes, &b->plan_len);
    buf_done(&bytes);
}

static void join_segments(struct media_grid *g)
{
    if (!g->n_segments)
        return;
    g->segments[0].duration = g->duration;
    g->segments[0].n_frames = g->n_frames;
    g->n_segments = g->n_chunks = 1;
    g->chunks[0] = (struct media_chunk){0, 1};
}

static int64_t probe(struct bench *b)
{
    struct media_task t = {.kind = MEDIA_TASK_PROBE,
                           .source_size = b->size,
                           .threads = 1,
                           .options.preset = str_eq(b->o.preset, "quality") ? MEDIA_PRESET_QUALITY
                                                                            : MEDIA_PRESET_FAST};
    struct child_job job = child_job(b, &t);
    struct child_result r;
    job.segment = NULL;
    child_run(&job, &r);
    if (r.outcome != CHILD_OK)
        die(r.text);
    b->plan = TAKE(r.plan);
    if (str_eq(b->o.cut, "one")) {
        join_segments(&b->plan->video);
        join_segments(&b->plan->audio);
    }
    encode_plan(b);
    int64_t cpu_us = r.cpu_us;
    child_result_done(&r);
    for (size_t i = 0; i < b->plan->n_renditions; i++) {
        b->pieces[i] =
            mem_array(media_rendition_grid(b->plan, i)->n_segments, sizeof(struct piece));
        if (!b->pieces[i])
            die("out of memory");
    }
    return cpu_us;
}

// ---- tasks ----

static bool is_wanted(const struct bench *b, size_t i)
{
    const struct media_rendition *r = &b->plan->renditions[i];
    return !r->lazy &&
           (b->o.only ? str_eq(r->id, b->o.only) : r->kind == MEDIA_VIDEO || str_eq(r->id, "a128"));
}

static void add_jobs(struct bench *b, enum media_kind kind)
{
    const struct media_grid *g = media_plan_grid(b->plan, kind);
    if (str_eq(b->o.cut, "none"))
        return;
    for (uint32_t at = 0; g && at < g->n_segments && b->n_jobs < MAX_TASKS;) {
        uint32_t left = (uint32_t)g->n_segments - at, n = left;
        if (str_eq(b->o.cut, "tasks")) {
            size_t chunk = media_grid_chunk_of(g, at);
            uint32_t end = g->chunks[chunk].first_segment + g->chunks[chunk].n_segments;
            int64_t us = media_segment_duration_us(g, at);
            n = kind == MEDIA_VIDEO ? 1 : end - at;
            while (at + n < end && (us += media_segment_duration_us(g, at + n)) <= TASK_VIDEO_US)
                n++;
        }
        b->jobs[b->n_jobs++] = (struct job){kind, at, n};
        at += n;
    }
}

static bool next_job(struct bench *b, struct job *ret)
{
    pthread_mutex_lock(&b->lock);
    bool there = b->next_job < b->n_jobs && !*b->failed;
    if (there)
        *ret = b->jobs[b->next_job++];
    pthread_mutex_unlock(&b->lock);
    return there;
}

static void run_job(struct bench *b, const struct job *j)
{
    struct media_task t = {.kind = MEDIA_TASK_CHUNK,
                           .source_size = b->size,
                           .threads = b->o.threads,
                           .first_segment = j->first,
                           .n_segments = j->n,
                           .plan = b->plan_bytes,
                           .plan_len = b->plan_len};
    for (size_t i = 0; i < b->plan->n_renditions; i++)
        if (b->plan->renditions[i].kind == j->kind && is_wanted(b, i))
            t.renditions[t.n_renditions++] = (uint8_t)i;
    if (t.n_renditions == 0)
        return;
    struct child_job job = child_job(b, &t);
    struct child_result r;
    child_run(&job, &r);
    pthread_mutex_lock(&b->lock);
    b->task_cpu_us += r.cpu_us;
    if (r.outcome != CHILD_OK)
        str_copy(b->failed, sizeof(b->failed), r.text);
    pthread_mutex_unlock(&b->lock);
    child_result_done(&r);
}

static void *work(void *ud)
{
    struct job j;
    while (next_job(ud, &j))
        run_job(ud, &j);
    return NULL;
}

static void run_jobs(struct bench *b)
{
    pthread_t others[64];
    unsigned n = 0;
    while (n + 1 < b->o.parallel && n < N_ELEMENTS(others) &&
           pthread_create(&others[n], NULL, work, b) == 0)
        n++;
    (void)work(b);
    while (n > 0)
        pthread_join(others[--n], NULL);
    if (*b->failed)
        die(b->failed);
}

// ---- results ----

static int64_t cpu_of(int who)
{
    struct rusage u;
    getrusage(who, &u);
    return (int64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000 + u.ru_utime.tv_usec +
           u.ru_stime.tv_usec;
}

static int64_t write_rendition(const struct bench *b, size_t i)
{
    const struct media_rendition *r = &b->plan->renditions[i];
    char path[512];
    int64_t bytes = 0;
    snprintf(path, sizeof(path), "%s/%s.mp4", b->o.out ? b->o.out : "", r->id);
    FILE *f = b->o.out ? fopen(path, "wbe") : NULL;
    if (b->o.out && (!f || fwrite(r->init, 1, r->init_len, f) != r->init_len))
        die("a result cannot be written");
    for (size_t k = 0; k < media_rendition_grid(b->plan, i)->n_segments; k++) {
        const struct piece *p = &b->pieces[i][k];
        bytes += (int64_t)p->n;
        if (f && fwrite(p->bytes, 1, p->n, f) != p->n)
            die("a result cannot be written");
    }
    if (f && fclose(f) != 0)
        die("a result cannot be written");
    return bytes;
}

static void print_rendition(const struct bench *b, size_t i, bool first)
{
    const struct media_rendition *r = &b->plan->renditions[i];
    printf("%s{\"id\": \"%s\", \"width\": %u, \"height\": %u, \"fps\": \"%d/%d\", \"crf\": %u, "
           "\"maxrate\": %u, \"level\": %u, \"bytes\": %lld, \"recipe\": \"%s\"}",
           first ? "" : ", ", r->id, r->width, r->height, r->frame_rate.num, r->frame_rate.den,
           (unsigned)r->crf, r->maxrate_bps, (unsigned)r->level, (long long)write_rendition(b, i),
           r->recipe);
}

static void read_options(struct options *o, int argc, char **argv)
{
    *o = (struct options){.cut = "tasks", .preset = "fast", .threads = 1, .parallel = 1};
    const struct {
        const char *key;
        const char **text;
        unsigned *number;
    } known[] = {{"codec", &o->codec, NULL},     {"source", &o->source, NULL},
                 {"out", &o->out, NULL},         {"cut", &o->cut, NULL},
                 {"only", &o->only, NULL},       {"preset", &o->preset, NULL},
                 {"threads", NULL, &o->threads}, {"parallel", NULL, &o->parallel}};
    for (int i = 1; i < argc; i++) {
        bool found = false;
        for (size_t k = 0; k < N_ELEMENTS(known); k++) {
            size_t n = strlen(known[k].key);
            if (strncmp(argv[i], known[k].key, n) != 0 || argv[i][n] != '=')
                continue;
            found = true;
            if (known[k].text)
                *known[k].text = argv[i] + n + 1;
            else
                *known[k].number = (unsigned)strtoul(argv[i] + n + 1, NULL, 10);
        }
        if (!found)
            die("an option that is none; see the top of ladder.c");
    }
    if (!o->codec || !o->source)
        die("codec= and source= are needed");
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct stat st;
    read_options(&b.o, argc, argv);
    pthread_mutex_init(&b.lock, NULL);
    b.fd = open(b.o.source, O_RDONLY | O_CLOEXEC);
    b.host = codec_host_new(b.o.codec);
    if (b.fd < 0 || fstat(b.fd, &st) != 0 || !b.host)
        die("the source cannot be opened");
    b.size = st.st_size;
    int64_t probe_us = probe(&b);
    add_jobs(&b, MEDIA_VIDEO);
    add_jobs(&b, MEDIA_AUDIO);
    int64_t begin_us = time_mono_us();
    run_jobs(&b);
    int64_t wall_us = time_mono_us() - begin_us;
    codec_host_free(b.host); // collects the CPU time of all that it started
    // The whole but the probe: this process, the codec host and every task.
    int64_t all_us = cpu_of(RUSAGE_SELF) + cpu_of(RUSAGE_CHILDREN) - probe_us;
    printf("{\"cpu_s\": %.4f, \"codec_cpu_s\": %.4f, \"probe_cpu_s\": %.4f, \"wall_s\": %.4f, "
           "\"tasks\": %zu, \"renditions\": [",
           (double)all_us / 1e6, (double)b.task_cpu_us / 1e6, (double)probe_us / 1e6,
           (double)wall_us / 1e6, b.n_jobs);
    bool first = true;
    for (size_t i = 0; i < b.plan->n_renditions; i++) {
        if (is_wanted(&b, i)) {
            print_rendition(&b, i, first);
            first = false;
        }
    }
    printf("], \"starts\": [");
    const struct media_grid *g = &b.plan->video;
    for (size_t i = 0; i < g->n_segments; i++)
        printf("%s%.6f", i ? ", " : "", (double)media_segment_start_us(g, i) / 1e6);
    puts("]}");
    return 0;
}
