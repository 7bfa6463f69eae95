// The worker of last resort: while nobody else is up and work waits, this host runs one itself,
// `cauced transcode` as a child with one slot under an identity kept for it. When another worker is
// back it is told to end and gives its lease back.
//
//   NONE --nobody for `after`, work waits--> RUNNING --somebody else serves--> ENDING --gone-->
//   NONE
//
// Looked at by the queue's thread only, whose end is the child's too (PR_SET_PDEATHSIG).
#include "orchestrator/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"

#define END_MS 10000   // from SIGTERM to SIGKILL
#define STOP_MS 3000   // the same, when the orchestrator stops
#define AGAIN_MS 30000 // after one that ended by itself

struct local_worker {
    struct orch *o;
    pid_t pid;              // 0: none
    int pid_fd;             // readable when it has ended; -1: none
    int64_t alone_since_us; // nobody else serves since then; 0: somebody does
    int64_t not_before_us;  // of the next start
    int64_t kill_at_us;     // 0: not asked to end
    char program[PATH_MAX]; // cauced
};

struct local_worker *local_worker_new(struct orch *o)
{
    struct local_worker *w = mem_alloc(sizeof *w);
    if (!w)
        return NULL;
    w->o = o;
    w->pid_fd = -1;
    ssize_t n = readlink("/proc/self/exe", w->program, sizeof w->program - 1);
    w->program[n > 0 ? n : 0] = '\0';
    return w;
}

// ---------------------------------------------------------------- the child

// Only what is safe between fork and exec.
static void become(const char *program, char *const *argv, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    int null = open("/dev/null", O_RDWR);
    if (prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0) != 0 || getppid() != parent || null < 0 ||
        dup2(null, 0) < 0 || dup2(null, 1) < 0 || sigprocmask(SIG_SETMASK, &none, NULL) != 0)
        _exit(126);
    execv(program, argv);
    _exit(127);
}

static void start(struct local_worker *w)
{
    const struct orch_options *opt = w->o->env.options;
    char role[] = "transcode", node[] = "--node", keys[] = "--keys", slots[] = "--slots",
         one[] = "1";
    char *argv[] = {w->program, role, node, opt->local_worker, keys, opt->common.keys,
                    slots,      one,  NULL};
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become(w->program, argv, parent);
    if (pid < 0) {
        log_error(w->o->log, "local_worker_not_started", F_STR("reason", strerror(errno)));
        w->not_before_us = time_deadline_in_ms(AGAIN_MS);
        return;
    }
    w->pid = pid;
    w->pid_fd = (int)syscall(SYS_pidfd_open, pid, 0);
    w->kill_at_us = 0;
    log_warn(w->o->log, "local_worker_started", F_STR("node", opt->local_worker), F_I64("pid", pid),
             F_STR("reason", "no other worker is up and work waits"));
}

static void end(struct local_worker *w)
{
    int64_t now_us = time_mono_us();
    if (!w->kill_at_us) {
        (void)kill(w->pid, SIGTERM);
        w->kill_at_us = time_deadline_in_ms(END_MS);
        log_info(w->o->log, "local_worker_ending", F_I64("pid", w->pid));
    } else if (now_us >= w->kill_at_us) {
        (void)kill(w->pid, SIGKILL);
    }
}

static void forget(struct local_worker *w)
{
    if (w->pid_fd >= 0)
        close(w->pid_fd);
    w->pid_fd = -1;
    w->pid = 0;
    w->kill_at_us = 0;
}

static void reap(struct local_worker *w)
{
    int status = 0;
    if (!w->pid || waitpid(w->pid, &status, WNOHANG) != w->pid)
        return;
    bool asked = w->kill_at_us != 0;
    if (asked)
        log_info(w->o->log, "local_worker_ended", F_I64("pid", w->pid));
    else
        log_error(w->o->log, "local_worker_died", F_I64("pid", w->pid), F_I64("status", status));
    w->not_before_us = asked ? 0 : time_deadline_in_ms(AGAIN_MS);
    forget(w);
}

void local_worker_free(struct local_worker *w)
{
    if (!w)
        return;
    if (w->pid) {
        (void)kill(w->pid, SIGTERM);
        struct pollfd ended = {.fd = w->pid_fd, .events = POLLIN};
        if (w->pid_fd < 0 || poll(&ended, 1, STOP_MS) <= 0)
            (void)kill(w->pid, SIGKILL);
        (void)waitpid(w->pid, NULL, 0);
        forget(w);
    }
    mem_free(w);
}

// ---------------------------------------------------------------- when

struct need {
    bool others, work;
};

static enum status look(struct local_worker *w, struct need *ret, struct err *err)
{
    const struct orch_options *opt = w->o->env.options;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s = db_query(
        w->o->db,
        "SELECT EXISTS (SELECT FROM orchestrator.worker w WHERE w.id <> $1::text"
        "    AND w.last_seen > now() - $2::bigint * interval '1 millisecond'"
        "    AND NOT w.cordoned AND w.quarantined_until <= now()),"
        "  EXISTS (SELECT FROM orchestrator.task t JOIN orchestrator.job j ON j.id = t.job"
        "    WHERE t.state = 'available' AND (t.demand OR NOT j.paused))",
        DB_PARAMS(DB_TEXT(opt->local_worker), DB_I64(opt->local_worker_after_ms)), &r, err);
    if (s == STATUS_OK)
        *ret = (struct need){.others = db_bool(r, 0, 0), .work = db_bool(r, 0, 1)};
    return s;
}

void local_worker_round(struct local_worker *w)
{
    const struct orch_options *opt = w->o->env.options;
    if (!opt->local_worker || str_eq(opt->local_worker, "off"))
        return;
    reap(w);
    struct need need;
    struct err err = ERR_INIT;
    if (look(w, &need, &err) != STATUS_OK)
        return; // the sweep says that the database is away
    int64_t now_us = time_mono_us();
    if (need.others)
        w->alone_since_us = 0;
    else if (!w->alone_since_us)
        w->alone_since_us = now_us;
    if (w->pid && need.others)
        end(w);
    else if (!w->pid && !need.others && need.work && now_us >= w->not_before_us &&
             now_us - w->alone_since_us >= opt->local_worker_after_ms * 1000)
        start(w);
}
