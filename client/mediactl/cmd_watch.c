// job watch: bars that live on a terminal, lines elsewhere, JSON lines with --json.
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "cauce/orchestrator.rpc.h"
#include "ctl.h"

enum {
    BAR_WIDTH = 30,
    WATCH_MS = 24 * 3600 * 1000, // of one stream
    MAX_TRIES = 8,               // without a word
    MAX_REFUSALS = 3,
};

struct view {
    struct ctl *k;
    const char *job;
    bool live;    // a terminal
    int n_drawn;  // lines of the last drawing
    int32_t done; // tasks, as told last; -1: nothing yet
    char state[16];
    bool heard, ended;
};

static void put_bar(double part)
{
    int full = (int)(part * BAR_WIDTH + 0.5);
    full = full < 0 ? 0 : full > BAR_WIDTH ? BAR_WIDTH : full;
    putchar('[');
    for (int i = 0; i < BAR_WIDTH; i++)
        putchar(i < full ? '#' : '.');
    printf("] %3d %%", (int)(part * 100));
}

static const char *state_of(const Orchestrator__JobInfo *j)
{
    return j->paused ? "paused" : j->state;
}

static void put_numbers(const Orchestrator__JobUpdate *u)
{
    char left[CTL_TIME_SIZE];
    printf("%d of %d tasks", u->job->tasks_done, u->job->tasks);
    if (u->cpu_seconds > 0)
        printf(", %.1f s of CPU", u->cpu_seconds);
    if (u->cpu_per_media_second > 0)
        printf(" (%.2f per second of film)", u->cpu_per_media_second);
    if (!u->ended && u->eta_ms >= 0) {
        ctl_duration(left, u->eta_ms * 1000);
        printf(", %s left", left);
    }
}

static int draw_tasks(const Orchestrator__JobInfo *j)
{
    for (size_t i = 0; i < j->n_task_list; i++) {
        const Orchestrator__TaskInfo *t = j->task_list[i];
        printf("\033[K  %-12s ", *t->worker ? t->worker : t->state);
        put_bar(t->progress);
        printf("  %s %s %.32s/%d%s%.60s\n", *t->stage ? t->stage : "begun", t->kind, t->renditions,
               t->first_segment, *t->error ? "  " : "", t->error);
    }
    return (int)j->n_task_list;
}

// Over what was drawn last. A line stays one line on a narrow terminal: it is cut, not wrapped.
static void draw(struct view *v, const Orchestrator__JobUpdate *u)
{
    if (v->n_drawn)
        printf("\033[%dA", v->n_drawn);
    printf("\033[?7l\033[K%.60s: %s\n\033[K", u->job->title, state_of(u->job));
    put_bar(u->job->progress);
    printf("  ");
    put_numbers(u);
    printf("\n");
    int n = 2;
    for (size_t i = 0; i < u->n_kinds; i++, n++) {
        const Orchestrator__KindProgress *p = u->kinds[i];
        printf("\033[K  %-12s ", p->kind);
        put_bar(p->progress);
        printf("  %d of %d, %d running\n", p->done, p->tasks, p->running);
    }
    n += draw_tasks(u->job);
    printf("\033[?7h\033[J"); // what the last drawing had more
    v->n_drawn = n;
}

// One line for each task that is done and each change of state.
static void say(struct view *v, const Orchestrator__JobUpdate *u)
{
    const char *state = state_of(u->job);
    if (u->job->tasks_done == v->done && str_eq(state, v->state))
        return;
    v->done = u->job->tasks_done;
    str_copy(v->state, sizeof(v->state), state);
    printf("%s %d %%: ", state, (int)(u->job->progress * 100));
    put_numbers(u);
    printf("\n");
}

static enum status show(struct view *v, Orchestrator__JobUpdate *u)
{
    struct ctl *k = v->k;
    enum status s = STATUS_OK;
    if (ctl_has(k, OPT_JSON)) {
        s = ctl_print_message(k, &u->base);
    } else {
        ctl_tidy(&u->base);
        if (v->live)
            draw(v, u);
        else
            say(v, u);
    }
    fflush(stdout);
    if (s == STATUS_OK && u->ended && !str_eq(u->job->state, "done"))
        return err_set(&k->err, STATUS_FAILED_PRECONDITION, "job %s %s: %s", u->job->job_id,
                       u->job->state, u->job->reason);
    return s;
}

// One stream, until it ends.
static enum status follow(struct view *v, struct client_try *t)
{
    struct ctl *k = v->k;
    Orchestrator__GetJobRequest req = ORCHESTRATOR__GET_JOB_REQUEST__INIT;
    req.job_id = client_str(v->job);
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    enum status s = orchestrator_job_watch_open(client_rpc(k->c), &t->opts, &req, &st, &k->err);
    while (s == STATUS_OK && !v->ended) {
        AUTO(rpc_message_free_p) Orchestrator__JobUpdate *u = NULL;
        s = orchestrator_job_watch_recv(st, &u, &k->err);
        if (s == STATUS_OK && !u)
            s = err_set(&k->err, STATUS_UNAVAILABLE, "the watch of job %s ended", v->job);
        if (s != STATUS_OK)
            break;
        v->heard = true;
        v->ended = u->ended;
        s = show(v, u);
    }
    return s;
}

enum status cmd_job_watch(struct ctl *k)
{
    struct view v = {.k = k, .job = k->args[0], .done = -1};
    v.live = isatty(STDOUT_FILENO) == 1 && !ctl_has(k, OPT_JSON);
    unsigned n_refused = 0;
    for (unsigned n = 0;; n++) {
        struct client_try t;
        enum status s =
            client_try_begin(&t, k->c, CLIENT_IF_LOGGED_IN, NULL, WATCH_MS, NULL, &k->err);
        v.heard = false;
        if (s == STATUS_OK)
            s = follow(&v, &t);
        if (s == STATUS_OK || v.ended)
            return s;
        n = v.heard ? 0 : n;
        bool again = s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED ||
                     (s == STATUS_UNAUTHENTICATED && n_refused++ < MAX_REFUSALS &&
                      client_try_again(&t, &s, &k->err));
        if (!again || n == MAX_TRIES)
            return s;
        v.n_drawn = 0; // what was said meanwhile stays
        s = client_backoff_default(k->c, n, &k->err);
        if (s != STATUS_OK)
            return s;
    }
}
