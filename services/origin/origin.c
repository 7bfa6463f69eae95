// The role: options, start, readiness, stop.
#include "origin.h"

#include <stddef.h>

#include "base/mem.h"
#include "base/str.h"
#include "internal.h"

#define OPT(field) offsetof(struct origin_options, field)
#define DAY_MS INT64_C(86400000)
static const struct cfg_option options[] = {
    {"kind", CFG_STRING, OPT(kind), NULL, 0, 0,
     "video or audio: which items' bytes live here; must agree with nodes.ini"},
    {"data", CFG_STRING, OPT(data), NULL, 0, 0, "directory of the objects (required)"},
    {"max-bytes", CFG_BYTES, OPT(max_bytes), "0", 0, INT64_MAX,
     "quota for objects and open uploads; 0: what the disk has"},
    {"min-free", CFG_BYTES, OPT(min_free), "64M", 0, INT64_MAX,
     "refuse new bytes when the disk would have less left"},
    {"grace", CFG_DURATION_MS, OPT(grace_ms), "1h", 0, 365 * DAY_MS,
     "keep an object that no item pins at least this long"},
    {"upload-ttl", CFG_DURATION_MS, OPT(upload_ttl_ms), "7d", 1000, 365 * DAY_MS,
     "drop an upload that nobody touched for so long"},
    {"collect-every", CFG_DURATION_MS, OPT(collect_every_ms), "5m", 100, DAY_MS,
     "how often garbage and abandoned uploads are looked for"},
};

enum status origin_check_digest(const ProtobufCBinaryData *d, struct err *err)
{
    return d->len == OBJECT_DIGEST_SIZE
               ? STATUS_OK
               : err_set(err, STATUS_INVALID_ARGUMENT, "a digest has %d bytes, not %zu",
                         OBJECT_DIGEST_SIZE, d->len);
}

static void origin_free(struct origin *o)
{
    origin_upkeep_stop(o);
    object_store_free(o->store);
    pthread_mutex_destroy(&o->mu);
    mem_free(o);
}
DEFINE_AUTO(struct origin, origin_free)

static enum status check_options(const struct svc *svc, const struct origin_options *o,
                                 struct err *err)
{
    if (!o->data || !o->data[0])
        return err_set(err, STATUS_INVALID_ARGUMENT, "--data: name the directory of the objects");
    if (o->kind && !str_eq(o->kind, "video") && !str_eq(o->kind, "audio"))
        return err_set(err, STATUS_INVALID_ARGUMENT, "--kind: %s is neither video nor audio",
                       o->kind);
    if (o->kind && svc->self && !str_eq(o->kind, svc->self->kind))
        return err_set(err, STATUS_INVALID_ARGUMENT, "--kind: %s, but nodes.ini says that %s is %s",
                       o->kind, svc->self->id, svc->self->kind);
    return STATUS_OK;
}

static enum status open_store(struct origin *o, const struct origin_options *opts, struct err *err)
{
    struct object_store_opts so = {
        .dir = opts->data,
        .max_bytes = opts->max_bytes,
        .min_free_bytes = opts->min_free,
        .grace_ms = opts->grace_ms,
        .upload_ttl_ms = opts->upload_ttl_ms,
    };
    enum status st = object_store_open(&so, &o->store, err);
    if (st != STATUS_OK)
        return st;
    struct object_store_usage u;
    object_store_usage(o->store, &u);
    log_info(o->log, "store_opened", F_STR("data", opts->data), F_I64("objects", u.objects),
             F_I64("bytes", u.bytes), F_I64("pins", u.pins), F_I64("uploads_open", u.uploads_open),
             F_I64("free_bytes", u.free_bytes));
    if (u.damaged > 0 || u.pins_damaged > 0)
        log_error(o->log, "store_damaged", F_I64("objects_set_aside", u.damaged),
                  F_I64("pin_records_unreadable", u.pins_damaged));
    return STATUS_OK;
}

static enum status start(struct svc *svc, const void *opts, void **ret_self, struct err *err)
{
    const struct origin_options *oo = opts;
    enum status st = check_options(svc, oo, err);
    if (st != STATUS_OK)
        return st;
    struct origin *fresh = mem_alloc(sizeof *fresh);
    if (!fresh)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "origin: out of memory");
    if (pthread_mutex_init(&fresh->mu, NULL) != 0) {
        mem_free(fresh);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "origin: no lock");
    }
    AUTO(origin_free_p) struct origin *o = fresh;
    o->log = svc->log;
    o->tokens = svc->tokens;
    o->timers = svc->timers;
    o->pool = svc->pool;
    o->collect_every_ms = oo->collect_every_ms;
    origin_feeds_init(&o->feeds, (unsigned)svc->options->threads);
    st = crypto_init(err);
    if (st == STATUS_OK)
        st = open_store(o, oo, err);
    if (st == STATUS_OK)
        st = origin_serve_uploads(o, svc->server, err);
    if (st == STATUS_OK)
        st = origin_serve_objects(o, svc->server, err);
    if (st == STATUS_OK)
        st = origin_upkeep_start(o, err);
    if (st == STATUS_OK)
        *ret_self = TAKE(o);
    return st;
}

static bool ready(void *self, char *reason, size_t reason_size)
{
    struct origin *o = self;
    return object_store_is_healthy(o->store, reason, reason_size);
}

static void drain(void *self)
{
    struct origin *o = self;
    cancel_fire(o->stopping); // upkeep ends at its next step
}

static void stop(void *self)
{
    origin_free(self);
}

const struct svc_role origin_role = {
    .name = "origin",
    .role = ROLE_NODE_ORIGIN,
    .spec = {.section = "origin",
             .usage = "cauced origin [options]",
             .options = options,
             .n_options = N_ELEMENTS(options)},
    .options_size = sizeof(struct origin_options),
    .start = start,
    .ready = ready,
    .drain = drain,
    .stop = stop,
};
