// job ls, job show, job watch, job retry, worker ls.
#include <inttypes.h>
#include <string.h>

#include "cauce/orchestrator.rpc.h"
#include "ctl.h"

static enum status cmd_job_ls(struct ctl *k)
{
    Common__Page page;
    enum status s = ctl_page(k, &page);
    if (s != STATUS_OK)
        return s;
    Orchestrator__ListJobsRequest req = ORCHESTRATOR__LIST_JOBS_REQUEST__INIT;
    req.page = &page;
    req.state = client_str(k->opt[OPT_STATE]);
    AUTO(rpc_message_free_p) Orchestrator__ListJobsReply *r = NULL;
    s = CTL_CALL(k, orchestrator_job_list, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    if (s != STATUS_OK)
        return s;
    static const char *const heads[] = {"JOB", "STATE", "DONE", "ITEM", "TITLE"};
    struct table t;
    table_init(&t, N_ELEMENTS(heads));
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_jobs; i++) {
        const Orchestrator__JobInfo *j = r->jobs[i];
        table_add(&t, "%s", j->job_id);
        table_add(&t, "%s", j->state);
        table_add(&t, "%d %%", (int)(j->progress * 100));
        table_add(&t, "%s", j->item_id);
        table_add(&t, "%s", j->title);
    }
    s = table_print(&t, stdout, &k->err);
    ctl_say_more(r->next_page);
    return s;
}

static enum status print_tasks(struct ctl *k, const Orchestrator__JobInfo *j)
{
    static const char *const heads[] = {"KIND",     "STATE", "TRIES",  "WORKER", "RENDITIONS",
                                        "SEGMENTS", "FETCH", "ENCODE", "STORE",  "ERROR"};
    struct table t;
    table_init(&t, N_ELEMENTS(heads));
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < j->n_task_list; i++) {
        const Orchestrator__TaskInfo *w = j->task_list[i];
        table_add(&t, "%s", w->kind);
        table_add(&t, "%s", w->state);
        table_add(&t, "%d", w->attempts);
        table_add(&t, "%s", w->worker);
        table_add(&t, "%s", w->renditions);
        if (w->n_segments)
            table_add(&t, "%d+%d", w->first_segment, w->n_segments);
        else
            table_add(&t, "-");
        table_add(&t, "%.2f", w->seconds_fetch);
        table_add(&t, "%.2f", w->seconds_encode);
        table_add(&t, "%.2f", w->seconds_store);
        table_add(&t, "%s", w->error);
    }
    return table_print(&t, stdout, &k->err);
}

static enum status print_outputs(struct ctl *k, const Orchestrator__JobInfo *j)
{
    static const char *const heads[] = {"OUTPUT", "BYTES", "WORKER", "TRIES", "SECONDS", "DIGEST"};
    struct table t;
    table_init(&t, N_ELEMENTS(heads));
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < j->n_outputs; i++) {
        const Orchestrator__OutputInfo *o = j->outputs[i];
        char hex[65] = "";
        if (o->digest.len == 32)
            str_hex(hex, o->digest.data, 32);
        table_add(&t, "%s/%d", o->rendition, o->segment);
        table_add(&t, "%" PRId64, o->size);
        table_add(&t, "%s", o->worker);
        table_add(&t, "%d", o->attempts);
        table_add(&t, "%.2f", o->seconds);
        table_add(&t, "%s", hex);
    }
    return table_print(&t, stdout, &k->err);
}

static enum status print_job(struct ctl *k, const Orchestrator__JobInfo *j)
{
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &j->base);
    printf("job %s of item %s \"%s\"\n%s%s%s, %d of %d tasks done (%d %%)\n", j->job_id, j->item_id,
           j->title, j->state, j->reason[0] ? ": " : "", j->reason, j->tasks_done, j->tasks,
           (int)(j->progress * 100));
    enum status s = j->n_task_list ? print_tasks(k, j) : STATUS_OK;
    return s == STATUS_OK && j->n_outputs ? print_outputs(k, j) : s;
}

static enum status cmd_job_show(struct ctl *k)
{
    Orchestrator__GetJobRequest req = ORCHESTRATOR__GET_JOB_REQUEST__INIT;
    req.job_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *j = NULL;
    enum status s = CTL_CALL(k, orchestrator_job_get, NULL, &req, &j);
    return s == STATUS_OK ? print_job(k, j) : s;
}

static enum status cmd_job_retry(struct ctl *k)
{
    Orchestrator__GetJobRequest req = ORCHESTRATOR__GET_JOB_REQUEST__INIT;
    req.job_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *j = NULL;
    enum status s = CTL_CALL(k, orchestrator_job_retry, NULL, &req, &j);
    return s == STATUS_OK ? print_job(k, j) : s;
}

// Waiting is by item; a job's id is looked up first.
static enum status cmd_job_watch(struct ctl *k)
{
    Orchestrator__GetJobRequest req = ORCHESTRATOR__GET_JOB_REQUEST__INIT;
    req.job_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *j = NULL;
    enum status s = CTL_CALL(k, orchestrator_job_get, NULL, &req, &j);
    if (s != STATUS_OK)
        return s;
    struct progress p;
    progress_init(&p, k, j->title);
    cauce_error e;
    s = ctl_status(
        k, cauce_wait_ready(k->c, j->item_id, CAUCE_UNTIL_READY, 0, progress_update, &p, &e), &e);
    progress_end(&p);
    return s == STATUS_OK ? cmd_job_show(k) : s;
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
    static const char *const heads[] = {"WORKER", "STATE", "BUSY", "DONE",
                                        "FAILED", "CPU",   "BUILD"};
    struct table t;
    table_init(&t, N_ELEMENTS(heads));
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_workers; i++) {
        const Orchestrator__WorkerInfo *w = r->workers[i];
        table_add(&t, "%s", w->worker_id);
        table_add(&t, "%s", w->state);
        table_add(&t, "%d/%d", w->busy, w->slots);
        table_add(&t, "%" PRId64, w->done);
        table_add(&t, "%" PRId64, w->failed);
        table_add(&t, "%s", w->cpu_class);
        table_add(&t, "%s", w->build);
    }
    return table_print(&t, stdout, &k->err);
}

static const struct command commands[] = {
    {"job ls", "", 0, 0, ALLOW_PAGE | ALLOW(OPT_STATE), CONNECTED, cmd_job_ls, "transcoding jobs"},
    {"job show", "JOB|ITEM", 1, 1, 0, CONNECTED, cmd_job_show, "tasks and outputs of one job"},
    {"job watch", "JOB|ITEM", 1, 1, 0, CONNECTED, cmd_job_watch, "follow a job to its end"},
    {"job retry", "JOB|ITEM", 1, 1, 0, CONNECTED, cmd_job_retry, "try dead tasks again (admin)"},
    {"worker ls", "", 0, 0, 0, CONNECTED, cmd_worker_ls, "workers (admin)"},
};
const struct command_group job_commands = {commands, N_ELEMENTS(commands)};
