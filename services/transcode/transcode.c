// The worker as a role: it serves nothing but its health.
#include "transcode/transcode.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/dir.h"
#include "base/mem.h"
#include "base/str.h"
#include "transcode/codec_host.h"
#include "transcode/internal.h"

struct role {
    struct svc *svc;
    struct worker *worker;
    struct leaf_cache *leaves;
    struct codec_host *codec;
    char build[96], cpu_class[96];
};

static struct rpc_client *orchestrator_client(void *ud, struct err *err)
{
    struct role *r = ud;
    return svc_client(r->svc, ROLE_NODE_ORCHESTRATOR, NULL, err);
}

static struct rpc_client *origin_client(void *ud, const Common__Endpoint *at, struct err *err)
{
    struct role *r = ud;
    if (at->key.len != 32) {
        (void)err_set(err, STATUS_INVALID_ARGUMENT, "the lease's origin %s has no key",
                      at->node_id);
        return NULL;
    }
    return svc_client_to(r->svc, ROLE_NODE_ORIGIN, at->url, at->key.data, err);
}

// The instruction sets that encoders and scalers choose their code by.
static void describe_cpu(char *dst, size_t size)
{
    const char *level = "";
#if defined(__x86_64__)
    __builtin_cpu_init();
    level = __builtin_cpu_supports("avx512bw") ? "-avx512"
            : __builtin_cpu_supports("avx2")   ? "-avx2"
            : __builtin_cpu_supports("ssse3")  ? "-ssse3"
                                               : "-sse2";
#endif
    struct utsname u;
    snprintf(dst, size, "%s%s", uname(&u) == 0 ? u.machine : "unknown", level);
}

static char *beside_this_program(const char *name)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0)
        return mem_strdup(name);
    path[n] = '\0';
    char *slash = strrchr(path, '/');
    return mem_printf("%.*s/%s", slash ? (int)(slash - path) : 0, path, name);
}

static void stop(void *self)
{
    struct role *r = self;
    worker_free(r->worker);
    leaf_cache_free(r->leaves);
    codec_host_free(r->codec);
    mem_free(r);
}

static enum status start(struct svc *svc, const void *options, void **ret_self, struct err *err)
{
    const struct transcode_options *opt = options;
    struct role *r = mem_alloc(sizeof *r);
    if (!r)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "transcode: out of memory");
    r->svc = svc;
    AUTO(mem_free_p)
    char *codec = opt->codec ? mem_strdup(opt->codec) : beside_this_program("cauce-codec");
    r->codec = codec ? codec_host_new(codec) : NULL;
    snprintf(r->build, sizeof r->build, "cauce %s", CAUCE_VERSION);
    describe_cpu(r->cpu_class, sizeof r->cpu_class);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t slots = opt->slots ? opt->slots : cores > 0 ? cores : 1;
    enum status s = STATUS_OK;
    r->leaves = opt->cache_bytes ? leaf_cache_new((size_t)opt->cache_bytes) : NULL;
    if (!r->codec || (opt->cache_bytes && !r->leaves))
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "transcode: out of memory");
    else if (access(codec, X_OK) != 0)
        s = err_set(err, STATUS_NOT_FOUND,
                    "no codec program at %s: build cauce-codec or say where it is with --codec",
                    codec);
    if (s == STATUS_OK && opt->scratch)
        s = dir_make(opt->scratch, err);
    if (s == STATUS_OK) {
        struct worker_env env = {
            .log = svc->log,
            .slots = slots < WORKER_MAX_SLOTS ? (unsigned)slots : WORKER_MAX_SLOTS,
            .codec = r->codec,
            .scratch = opt->scratch,
            .window_bytes = opt->window_bytes,
            .leaves = r->leaves,
            .build = r->build,
            .cpu_class = r->cpu_class,
            .orchestrator = orchestrator_client,
            .origin = origin_client,
            .ud = r,
        };
        s = worker_new(&env, &r->worker, err);
    }
    if (s != STATUS_OK) {
        stop(r);
        return s;
    }
    *ret_self = r;
    return STATUS_OK;
}

static void drain(void *self)
{
    struct role *r = self;
    worker_drain(r->worker);
}

#define OPT(field) offsetof(struct transcode_options, field)
static const struct cfg_option rows[] = {
    {"slots", CFG_I64, OPT(slots), "0", 0, WORKER_MAX_SLOTS,
     "tasks that are worked on at once; 0: one per core"},
    {"codec", CFG_STRING, OPT(codec), NULL, 0, 0,
     "path of cauce-codec (default: beside this program)"},
    {"scratch", CFG_STRING, OPT(scratch), NULL, 0, 0,
     "folder for what may be lost: the digests of sources, between tasks"},
    {"window", CFG_BYTES, OPT(window_bytes), "256M", INT64_C(4) << 20, INT64_C(64) << 30,
     "how much of a source each task holds in memory"},
    {"cache", CFG_BYTES, OPT(cache_bytes), "64M", 0, INT64_C(64) << 30,
     "how much of sources is kept in memory between tasks"},
};

const struct svc_role transcode_role = {
    .name = "transcode",
    .role = ROLE_NODE_TRANSCODE,
    .spec = {.section = "transcode",
             .usage = "cauced transcode [options]",
             .options = rows,
             .n_options = N_ELEMENTS(rows)},
    .options_size = sizeof(struct transcode_options),
    .start = start,
    .drain = drain,
    .stop = stop,
};
