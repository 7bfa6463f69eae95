// job ls, show, retry, cancel, pause, resume, priority, why, queue.
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
    static const char *const heads[] = {"JOB", "STATE", "PRIORITY", "DONE", "ITEM", "TITLE"};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_jobs; i++) {
        const Orchestrator__JobInfo *j = r->jobs[i];
        table_add(&t, "%s", j->job_id);
        table_add(&t, "%s", j->paused ? "paused" : j->state);
        table_add(&t, "%d", j->priority);
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
    printf("job %s of item %s \"%s\"\n%s%s%s%s, %d of %d tasks done (%d %%)\n", j->job_id,
           j->item_id, j->title, j->state, j->paused ? " (paused)" : "", j->reason[0] ? ": " : "",
           j->reason, j->tasks_done, j->tasks, (int)(j->progress * 100));
    if (j->priority)
        printf("priority %d\n", j->priority);
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

static enum status cmd_job_cancel(struct ctl *k)
{
    Orchestrator__CancelJobRequest req = ORCHESTRATOR__CANCEL_JOB_REQUEST__INIT;
    req.job_id = k->args[0];
    req.reason = client_str(k->opt[OPT_REASON]);
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *j = NULL;
    enum status s = CTL_CALL(k, orchestrator_job_cancel, NULL, &req, &j);
    return s == STATUS_OK ? print_job(k, j) : s;
}

static enum status cmd_job_pause(struct ctl *k)
{
    Orchestrator__GetJobRequest req = ORCHESTRATOR__GET_JOB_REQUEST__INIT;
    req.job_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *j = NULL;
    enum status s = CTL_CALL(k, orchestrator_job_pause, NULL, &req, &j);
    return s == STATUS_OK ? print_job(k, j) : s;
}

static enum status cmd_job_resume(struct ctl *k)
{
    Orchestrator__GetJobRequest req = ORCHESTRATOR__GET_JOB_REQUEST__INIT;
    req.job_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *j = NULL;
    enum status s = CTL_CALL(k, orchestrator_job_resume, NULL, &req, &j);
    return s == STATUS_OK ? print_job(k, j) : s;
}

static enum status parse_priority(struct ctl *k, const char *text, int32_t *ret)
{
    static const struct {
        const char *name;
        int32_t priority;
    } names[] = {{"low", -800}, {"normal", 0}, {"high", 800}};
    for (size_t i = 0; i < N_ELEMENTS(names); i++) {
        if (str_eq(text, names[i].name)) {
            *ret = names[i].priority;
            return STATUS_OK;
        }
    }
    int64_t n = 0;
    struct err ignored = ERR_INIT;
    if (str_parse_i64(text, -1000, 1000, &n, &ignored) != STATUS_OK)
        return ctl_misused(k, "%.40s is no priority: low, normal, high or -1000 to 1000", text);
    *ret = (int32_t)n;
    return STATUS_OK;
}

static enum status cmd_job_priority(struct ctl *k)
{
    Orchestrator__SetPriorityRequest req = ORCHESTRATOR__SET_PRIORITY_REQUEST__INIT;
    req.job_id = k->args[0];
    enum status s = parse_priority(k, k->args[1], &req.priority);
    if (s != STATUS_OK)
        return s;
    AUTO(rpc_message_free_p) Orchestrator__JobInfo *j = NULL;
    s = CTL_CALL(k, orchestrator_job_set_priority, NULL, &req, &j);
    return s == STATUS_OK ? print_job(k, j) : s;
}

static enum status cmd_job_why(struct ctl *k)
{
    Orchestrator__GetJobRequest req = ORCHESTRATOR__GET_JOB_REQUEST__INIT;
    req.job_id = k->args[0];
    AUTO(rpc_message_free_p) Orchestrator__WhyReply *r = NULL;
    enum status s = CTL_CALL(k, orchestrator_job_why, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    if (s != STATUS_OK)
        return s;
    for (size_t i = 0; i < r->n_lines; i++)
        printf("%s\n", r->lines[i]);
    for (size_t i = 0; i < r->n_advice; i++)
        printf("-> %s\n", r->advice[i]);
    return STATUS_OK;
}

static enum status cmd_job_queue(struct ctl *k)
{
    Orchestrator__QueueRequest req = ORCHESTRATOR__QUEUE_REQUEST__INIT;
    AUTO(rpc_message_free_p) Orchestrator__QueueReply *r = NULL;
    enum status s = CTL_CALL(k, orchestrator_job_queue, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    if (s != STATUS_OK)
        return s;
    static const char *const heads[] = {"CLASS",      "WAITING", "PAUSED", "BLOCKED",
                                        "RETRY WAIT", "LEASED",  "OLDEST"};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_classes; i++) {
        const Orchestrator__QueueClass *c = r->classes[i];
        char oldest[CTL_TIME_SIZE];
        ctl_duration(oldest, c->oldest_wait_ms * 1000);
        table_add(&t, "%s", c->class_);
        table_add(&t, "%" PRId64, c->waiting);
        table_add(&t, "%" PRId64, c->paused);
        table_add(&t, "%" PRId64, c->blocked);
        table_add(&t, "%" PRId64, c->retry_wait);
        table_add(&t, "%" PRId64, c->leased);
        table_add(&t, "%s", oldest);
    }
    return table_print(&t, stdout, &k->err);
}

static const struct command commands[] = {
    {"job ls", "", 0, 0, ALLOW_PAGE | ALLOW(OPT_STATE), CONNECTED, cmd_job_ls, "transcoding jobs"},
    {"job show", "JOB|ITEM", 1, 1, 0, CONNECTED, cmd_job_show, "tasks and outputs of one job"},
    {"job watch", "JOB|ITEM", 1, 1, 0, CONNECTED, cmd_job_watch, "follow a job to its end"},
    {"job retry", "JOB|ITEM", 1, 1, 0, CONNECTED, cmd_job_retry,
     "try dead or cancelled tasks again"},
    {"job cancel", "JOB|ITEM", 1, 1, ALLOW(OPT_REASON), CONNECTED, cmd_job_cancel,
     "stop it; retry goes on with it"},
    {"job pause", "JOB|ITEM", 1, 1, 0, CONNECTED, cmd_job_pause, "begin nothing more of it"},
    {"job resume", "JOB|ITEM", 1, 1, 0, CONNECTED, cmd_job_resume, "go on with a paused job"},
    {"job priority", "JOB|ITEM PRIORITY", 2, 2, 0, CONNECTED, cmd_job_priority,
     "low, normal, high or a number"},
    {"job why", "JOB|ITEM", 1, 1, 0, CONNECTED, cmd_job_why, "why it is not finished; what to do"},
    {"job queue", "", 0, 0, 0, CONNECTED, cmd_job_queue, "what waits, by class (admin)"},
};
const struct command_group job_commands = {commands, N_ELEMENTS(commands)};
