// media_try: what the confined codec process makes of files, for tests: one line of JSON each.
//
//   media_try [--make DIR] [--all] [--segment N] [--images] [--deadline MS] [--window BLOCKS]
//   FILE...
//
// Each file is probed. With --make the smallest picture and the first sound of its plan are made,
// chunk by chunk as a worker would, each into DIR/RENDITION.mp4 (init segment, then the segments);
// --all makes every rendition that needs no request, --segment N that one segment alone, from
// a process of its own, and --images DIR/poster.jpg and the like.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/time.h"
#include "media/image.h"
#include "transcode/child.h"

struct options {
    const char *dir; // NULL: only probe
    bool all, images;
    int64_t segment; // -1: all
    int64_t deadline_ms;
    uint32_t window;
};

struct run {
    const struct options *o;
    struct codec_host *host;
    int source_fd;
    int64_t size;
    const struct child_result *probe;
    FILE *out; // the rendition's file
    uint32_t repeated, dropped;
    int64_t cpu_us, peak_rss_bytes, fetched_bytes; // of one rendition
    int64_t most_ms;                               // that one task took
};

static enum status fetch(void *ud, int64_t offset, size_t len, void *dst, struct err *err)
{
    struct run *r = ud;
    if (pread(r->source_fd, dst, len, offset) != (ssize_t)len)
        return err_set(err, STATUS_DATA_LOSS, "short read");
    return STATUS_OK;
}

static enum status segment(void *ud, const struct media_segment_out *out, const void *bytes,
                           size_t n, struct err *err)
{
    struct run *r = ud;
    r->repeated += out->repeated;
    r->dropped += out->dropped;
    FILE *f = r->out;
    uint8_t *copy =
        mem_dup(bytes, n); // the file is for FFmpeg, which wants offsets of its own kind
    if (!copy)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s =
        f ? media_cmaf_adapt(r->probe->plan, out->rendition, out->segment + 1, copy, n, err)
          : STATUS_OK;
    if (!f) { // a picture: a file of its own
        char path[4096];
        snprintf(path, sizeof(path), "%s/%s.%s", r->o->dir, media_image_name(out->rendition),
                 out->rendition == MEDIA_IMAGE_PREVIEW    ? "webp"
                 : out->rendition == MEDIA_IMAGE_WAVEFORM ? "json"
                                                          : "jpg");
        f = fopen(path, "we");
    }
    bool ok = f && fwrite(copy, 1, n, f) == n;
    if (f && f != r->out)
        ok = fclose(f) == 0 && ok;
    mem_free(copy);
    if (s != STATUS_OK)
        return s;
    return ok ? STATUS_OK : err_set(err, STATUS_INTERNAL, "cannot write the result");
}

static void put_text(const char *key, const char *s)
{
    printf("\"%s\":\"", key);
    for (; *s; s++)
        if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if ((unsigned char)*s >= 0x20)
            putchar(*s);
    putchar('"');
}

static void run_task(struct run *r, const struct media_task *t, struct child_result *ret)
{
    int64_t begin = time_mono_ms();
    struct child_job job = {.host = r->host,
                            .task = t,
                            .plan = r->probe ? r->probe->plan : NULL,
                            .deadline_us = time_deadline_in_ms(r->o->deadline_ms),
                            .stall_ms = r->o->deadline_ms,
                            .cancel_fd = -1,
                            .ud = r,
                            .fetch = fetch,
                            .segment = segment};
    child_run(&job, ret);
    int64_t took = time_mono_ms() - begin;
    if (took > r->most_ms)
        r->most_ms = took;
    r->cpu_us += ret->cpu_us;
    r->fetched_bytes += ret->fetched_bytes;
    if (ret->peak_rss_bytes > r->peak_rss_bytes)
        r->peak_rss_bytes = ret->peak_rss_bytes;
}

static void put_costs(const struct run *r)
{
    printf("\"cpu_us\":%lld,\"peak_rss_bytes\":%lld,\"fetched_bytes\":%lld,\"most_ms\":%lld",
           (long long)r->cpu_us, (long long)r->peak_rss_bytes, (long long)r->fetched_bytes,
           (long long)r->most_ms);
}

// ---- the plan ----

static void put_grid(const char *key, const struct media_grid *g)
{
    printf(",\"%s\":{\"timescale\":%u,\"duration\":%lld,\"n_frames\":%u,\"frame_ticks\":%u,"
           "\"segments\":[",
           key, g->timescale, (long long)g->duration, g->n_frames, g->frame_ticks);
    for (size_t i = 0; i < g->n_segments; i++)
        printf("%s[%lld,%lld,%u]", i ? "," : "", (long long)g->segments[i].start,
               (long long)g->segments[i].duration, g->segments[i].n_frames);
    printf("]}");
}

static void put_tracks(const struct media_source *s)
{
    static const char *const types[] = {"other", "video", "audio", "subtitle", "picture"};
    printf(",\"tracks\":[");
    for (size_t i = 0; i < s->n_tracks; i++) {
        const struct media_track *t = &s->tracks[i];
        printf("%s{\"type\":\"%s\",\"chosen\":%s,\"width\":%u,\"height\":%u,\"rotation\":%d,",
               i ? "," : "", types[t->type], t->chosen ? "true" : "false", t->width, t->height,
               t->rotation);
        put_text("codec", t->codec);
        printf("}");
    }
    printf("]");
}

static void put_renditions(const struct media_plan *p)
{
    printf(",\"renditions\":[");
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *r = &p->renditions[i];
        printf("%s{\"id\":\"%s\",\"kind\":\"%s\",\"codec\":\"%s\",\"track\":%u,\"lazy\":%s,"
               "\"width\":%u,\"height\":%u,\"priming\":%u,\"color\":[%u,%u,%u]}",
               i ? "," : "", r->id, r->kind == MEDIA_VIDEO ? "video" : "audio",
               media_codec_name(r->codec), r->track, r->lazy ? "true" : "false", r->width,
               r->height, r->priming, r->color[0], r->color[1], r->color[2]);
    }
    printf("]");
}

static void put_plan(const struct media_plan *p, size_t bytes)
{
    printf(",\"plan\":{\"kind\":\"%s\",\"bytes\":%zu,\"duration_us\":%lld,",
           p->kind == MEDIA_VIDEO ? "video" : "audio", bytes, (long long)media_plan_duration_us(p));
    put_text("container", p->source.container_name);
    put_grid("video", &p->video);
    put_grid("audio", &p->audio);
    put_tracks(&p->source);
    put_renditions(p);
    printf("}");
}

// ---- renditions ----

static struct media_task task_for(const struct run *r, enum media_task_kind kind)
{
    return (struct media_task){.kind = kind,
                               .source_size = r->size,
                               .threads = 1,
                               .window_blocks = r->o->window,
                               .plan = r->probe ? r->probe->plan_bytes : NULL,
                               .plan_len = r->probe ? r->probe->plan_len : 0};
}

// False: told what was in the way.
static bool make_segments(struct run *r, uint8_t rendition, uint32_t first, uint32_t n)
{
    struct media_task t = task_for(r, MEDIA_TASK_CHUNK);
    struct child_result ret;
    t.first_segment = first;
    t.n_segments = n;
    t.n_renditions = 1;
    t.renditions[0] = rendition;
    run_task(r, &t, &ret);
    bool ok = ret.outcome == CHILD_OK;
    if (!ok) {
        printf("\"outcome\":\"%s\",", child_outcome_name(ret.outcome));
        put_text("text", ret.text);
        printf(",");
    }
    child_result_done(&ret);
    return ok;
}

static void make_rendition(struct run *r, uint8_t i)
{
    const struct media_plan *p = r->probe->plan;
    const struct media_rendition *v = &p->renditions[i];
    const struct media_grid *g = media_rendition_grid(p, i);
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s.mp4", r->o->dir, v->id);
    r->out = fopen(path, "we");
    r->cpu_us = r->fetched_bytes = r->peak_rss_bytes = r->most_ms = 0;
    r->repeated = r->dropped = 0;
    bool is_video = v->kind == MEDIA_VIDEO;
    struct buf init;
    buf_init(&init, 64 << 10);
    bool ok = r->out && media_cmaf_merge_init(p, is_video ? i : -1, is_video ? -1 : i, &init,
                                              NULL) == STATUS_OK;
    ok = ok && fwrite(init.data, 1, init.len, r->out) == init.len;
    buf_done(&init);
    if (!ok)
        printf("\"outcome\":\"%s\",", strerror(errno));
    if (ok && r->o->segment >= 0)
        ok = make_segments(r, i, (uint32_t)r->o->segment, 1);
    for (size_t c = 0; ok && r->o->segment < 0 && c < g->n_chunks; c++)
        ok = make_segments(r, i, g->chunks[c].first_segment, g->chunks[c].n_segments);
    if (ok)
        printf("\"outcome\":\"ok\",");
    printf("\"repeated\":%u,\"dropped\":%u,", r->repeated, r->dropped);
    put_costs(r);
    if (r->out && fclose(r->out) != 0)
        exit(1);
    r->out = NULL;
}

static void make_renditions(struct run *r)
{
    const struct media_plan *p = r->probe->plan;
    bool first = true;
    bool had_audio = false;
    printf(",\"made\":{");
    for (size_t i = 0; i < p->n_renditions; i++) {
        const struct media_rendition *v = &p->renditions[i];
        bool is_last_rung = v->kind == MEDIA_VIDEO &&
                            (i + 1 == p->n_renditions || p->renditions[i + 1].kind != MEDIA_VIDEO ||
                             p->renditions[i + 1].lazy);
        bool is_first_sound = v->kind == MEDIA_AUDIO && !had_audio;
        if (v->lazy || !(r->o->all || is_last_rung || is_first_sound))
            continue;
        had_audio |= v->kind == MEDIA_AUDIO;
        printf("%s\"%s\":{", first ? "" : ",", v->id);
        make_rendition(r, (uint8_t)i);
        printf("}");
        first = false;
    }
    printf("}");
}

static void make_images(struct run *r)
{
    struct media_task t = task_for(r, MEDIA_TASK_IMAGES);
    struct child_result ret;
    t.n_segments = 1;
    for (int i = 0; i < MEDIA_N_IMAGES; i++)
        if (media_image_is_planned(r->probe->plan, (enum media_image)i))
            t.renditions[t.n_renditions++] = (uint8_t)i;
    if (t.n_renditions == 0)
        return;
    run_task(r, &t, &ret);
    printf(",\"images\":\"%s\"", child_outcome_name(ret.outcome));
    child_result_done(&ret);
}

static void try_file(const struct options *o, struct codec_host *host, const char *path)
{
    struct stat st;
    struct run r = {.o = o, .host = host, .source_fd = open(path, O_RDONLY | O_CLOEXEC)};
    struct child_result probe;
    if (r.source_fd < 0 || fstat(r.source_fd, &st) != 0) {
        fprintf(stderr, "media_try: %s: %s\n", path, strerror(errno));
        exit(2);
    }
    r.size = st.st_size;
    struct media_task t = task_for(&r, MEDIA_TASK_PROBE);
    run_task(&r, &t, &probe);
    printf("{");
    put_text("file", path);
    printf(",\"outcome\":\"%s\",", child_outcome_name(probe.outcome));
    put_text("text", probe.text);
    printf(",");
    put_costs(&r);
    if (probe.outcome == CHILD_OK) {
        r.probe = &probe;
        put_plan(probe.plan, probe.plan_len);
        if (o->dir)
            make_renditions(&r);
        if (o->dir && o->images)
            make_images(&r);
    }
    printf("}\n");
    fflush(stdout);
    child_result_done(&probe);
    close(r.source_fd);
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"make", required_argument, NULL, 'm'},
        {"all", no_argument, NULL, 'a'},
        {"segment", required_argument, NULL, 's'},
        {"images", no_argument, NULL, 'i'},
        {"deadline", required_argument, NULL, 'd'},
        {"window", required_argument, NULL, 'w'},
        {0},
    };
    struct options o = {.segment = -1, .deadline_ms = 120000};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (c) {
        case 'm':
            o.dir = optarg;
            break;
        case 'a':
            o.all = true;
            break;
        case 's':
            o.segment = atoll(optarg);
            break;
        case 'i':
            o.images = true;
            break;
        case 'd':
            o.deadline_ms = atoll(optarg);
            break;
        case 'w':
            o.window = (uint32_t)atoll(optarg);
            break;
        default:
            return 2;
        }
    }
    char program[4096];
    const char *bin = getenv("CAUCE_BIN_DIR");
    snprintf(program, sizeof(program), "%s/cauce-codec", bin ? bin : ".");
    struct codec_host *host = codec_host_new(program);
    if (!host)
        return 1;
    for (int i = optind; i < argc; i++)
        try_file(&o, host, argv[i]);
    codec_host_free(host);
    return 0;
}
