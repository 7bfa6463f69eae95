// worker ls, cordon, uncordon, drain, forget.
#include <inttypes.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"
#include "ctl.h"

enum { DRAIN_WAIT_MS = 5000 }; // of one call; another follows until it is idle

static void until_text(const Google__Protobuf__Timestamp *t, char dst[CTL_TIME_SIZE])
{
    dst[0] = '\0';
    int64_t left_ms = t ? t->seconds * 1000 - time_wall_ms() : 0;
    if (left_ms > 0)
        ctl_duration(dst, left_ms * 1000);
}

// Why it gets no work and how long yet, or else what went wrong last.
static void add_remark(struct table *t, const Orchestrator__WorkerInfo *w)
{
    char left[CTL_TIME_SIZE];
    until_text(w->until, left);
    table_add(t, "%s", *w->reason && *left ? left : "");
    table_add(t, "%s", *w->reason ? w->reason : w->last_error);
}

static void add_worker(struct table *t, const Orchestrator__WorkerInfo *w)
{
    table_add(t, "%s", w->worker_id);
    table_add(t, "%s", w->state);
    table_add(t, "%d/%d", w->busy, w->slots);
    table_add(t, "%d", w->threads);
    table_add(t, "%" PRId64, w->done);
    table_add(t, "%" PRId64, w->failed);
    table_add(t, "%s", w->cpu_class);
    table_add(t, "%s", w->build);
    table_add(t, "%s", w->codecs);
    add_remark(t, w);
}

static const char *const heads[] = {"WORKER", "STATE", "BUSY",   "THREADS", "DONE",        "FAILED",
                                    "CPU",    "BUILD", "CODECS", "FREE IN", "LAST TROUBLE"};

static enum status print_worker(struct ctl *k, const Orchestrator__WorkerInfo *w)
{
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &w->base);
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    add_worker(&t, w);
    return table_print(&t, stdout, &k->err);
}

static enum status cmd_worker_ls(struct ctl *k)
{
    Orchestrator__ListWorkersRequest req = ORCHESTRATOR__LIST_WORKERS_REQUEST__INIT;
    AUTO(rpc_message_free_p) Orchestrator__ListWorkersReply *r = NULL;
    enum status s = CTL_CALL(k, orchestrator_worker_admin_list, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    if (s != STATUS_OK)
        return s;
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_workers; i++)
        add_worker(&t, r->workers[i]);
    return table_print(&t, stdout, &k->err);
}

static enum status cmd_worker_cordon(struct ctl *k)
{
    Orchestrator__WorkerRequest req = ORCHESTRATOR__WORKER_REQUEST__INIT;
    req.worker_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__WorkerInfo *w = NULL;
    enum status s = CTL_CALL(k, orchestrator_worker_admin_cordon, NULL, &req, &w);
    return s == STATUS_OK ? print_worker(k, w) : s;
}

static enum status cmd_worker_uncordon(struct ctl *k)
{
    Orchestrator__WorkerRequest req = ORCHESTRATOR__WORKER_REQUEST__INIT;
    req.worker_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__WorkerInfo *w = NULL;
    enum status s = CTL_CALL(k, orchestrator_worker_admin_uncordon, NULL, &req, &w);
    return s == STATUS_OK ? print_worker(k, w) : s;
}

// Each call returns when there is less to wait for, so that people see it shrink.
static enum status cmd_worker_drain(struct ctl *k)
{
    bool wait = ctl_has(k, OPT_WAIT);
    Orchestrator__DrainRequest req = ORCHESTRATOR__DRAIN_REQUEST__INIT;
    req.worker_id = k->args[0];
    req.now = ctl_has(k, OPT_NOW);
    for (int32_t busy = -1;;) {
        AUTO(rpc_message_free_p) Orchestrator__WorkerInfo *w = NULL;
        enum status s = CTL_CALL(k, orchestrator_worker_admin_drain, NULL, &req, &w);
        if (s != STATUS_OK)
            return s;
        bool gone = str_eq(w->state, "gone");
        if (!wait || w->busy == 0 || gone)
            return print_worker(k, w);
        if (w->busy != busy)
            fprintf(stderr, "%s: %d %s left\n", w->worker_id, w->busy,
                    w->busy == 1 ? "task" : "tasks");
        req.busy_below = busy = w->busy;
        req.wait_ms = DRAIN_WAIT_MS;
        req.now = false;
    }
}

static enum status cmd_worker_forget(struct ctl *k)
{
    Orchestrator__WorkerRequest req = ORCHESTRATOR__WORKER_REQUEST__INIT;
    req.worker_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__ForgetWorkerReply *r = NULL;
    enum status s = CTL_CALL(k, orchestrator_worker_admin_forget, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    if (s == STATUS_OK)
        printf("%s is forgotten\n", k->args[0]);
    return s;
}

static const struct command commands[] = {
    {"worker ls", "", 0, 0, 0, CONNECTED, cmd_worker_ls, "workers (admin)"},
    {"worker cordon", "WORKER", 1, 1, 0, CONNECTED, cmd_worker_cordon, "give it no more tasks"},
    {"worker uncordon", "WORKER", 1, 1, 0, CONNECTED, cmd_worker_uncordon,
     "give it tasks again; ends a quarantine"},
    {"worker drain", "WORKER", 1, 1, ALLOW(OPT_WAIT) | ALLOW(OPT_NOW), CONNECTED, cmd_worker_drain,
     "no more tasks; --now gives back those it has"},
    {"worker forget", "WORKER", 1, 1, 0, CONNECTED, cmd_worker_forget, "one that is gone for good"},
};
const struct command_group worker_commands = {commands, N_ELEMENTS(commands)};
