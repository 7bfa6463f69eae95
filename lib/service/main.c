// A process that runs roles: words -> options -> start -> listen -> ready -> signal -> drain ->
// stop.
//
// SIGTERM and SIGINT are blocked in every thread and taken here, synchronously. Whoever starts a
// child process must give it an empty signal mask.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "service/internal.h"

#define MAX_INSTANCES 64
#define READY_CHECK_MS 50 // how often a role that cannot serve yet is asked again
#define LOOK_MS 250       // how often files that may change are looked at
#define STOP_MARGIN_S 2   // after the drain: what stopping itself may take
#define WANTED_FILES 65536
#define PUBLIC_FILES 16384 // a public listener with fewer can be locked out by idle peers

enum { EXIT_OK, EXIT_FAILED, EXIT_USAGE };

struct process {
    const struct svc_role *const *roles;
    size_t n_roles;
    int argc; // the words after the roles
    char **argv;
    struct role_word words[MAX_INSTANCES];
    struct instance *instances[MAX_INSTANCES];
    size_t n;
    struct log *log;
    const char *ready_file;
    sigset_t signals;
    int64_t look_at_ms; // monotonic: when files are looked at again
};

// ---------------------------------------------------------------- which roles

static const struct svc_role *find_role(const struct process *p, const char *name, size_t len)
{
    for (size_t i = 0; i < p->n_roles; i++)
        if (strlen(p->roles[i]->name) == len && memcmp(p->roles[i]->name, name, len) == 0)
            return p->roles[i];
    return NULL;
}

static enum status add_word(struct process *p, const struct svc_role *role, const char *node,
                            struct err *err)
{
    if (p->n == MAX_INSTANCES)
        return err_set(err, STATUS_INVALID_ARGUMENT, "more than %d roles in one process",
                       MAX_INSTANCES);
    struct role_word *w = &p->words[p->n];
    w->role = role;
    if (!str_copy(w->node, sizeof(w->node), node))
        return err_set(err, STATUS_INVALID_ARGUMENT, "'%s' is no node id", node);
    p->n++;
    return STATUS_OK;
}

static bool wants_help(const struct process *p)
{
    for (int i = 0; i < p->argc; i++)
        if (str_eq(p->argv[i], "--help") || str_eq(p->argv[i], "-h"))
            return true;
    return false;
}

// "all": every node of nodes.ini whose role this program has.
static enum status add_all(struct process *p, struct err *err)
{
    const char *keys = svc_find_option_word(p->argc, p->argv, "keys");
    enum status s = STATUS_OK;

    if (wants_help(p)) {
        for (size_t i = 0; i < p->n_roles && s == STATUS_OK; i++)
            s = add_word(p, p->roles[i], "", err);
        return s;
    }
    if (!keys)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "'all' needs --keys DIR, made by 'cauced keys --out DIR'");
    AUTO(mem_free_p) char *path = mem_printf("%s/nodes.ini", keys);
    AUTO(svc_nodes_free_p) struct svc_nodes *nodes = NULL;
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    s = svc_nodes_load(path, &nodes, err);
    for (size_t i = 0; i < p->n_roles && s == STATUS_OK; i++)
        for (const struct svc_node *n = NULL;
             s == STATUS_OK && (n = svc_nodes_next(nodes, p->roles[i]->role, n));)
            s = add_word(p, p->roles[i], n->id, err);
    if (s == STATUS_OK && p->n == 0)
        return err_set(err, STATUS_NOT_FOUND, "%s names no node that could run here", path);
    return s;
}

static enum status parse_words(struct process *p, int argc, char **argv, struct err *err)
{
    int n = 0;
    enum status s = STATUS_OK;

    while (n < argc && argv[n][0] != '-')
        n++;
    p->argc = argc - n;
    p->argv = argv + n;
    for (int i = 0; i < n && s == STATUS_OK; i++) {
        size_t len = strcspn(argv[i], ":");
        const struct svc_role *role = find_role(p, argv[i], len);
        if (str_eq(argv[i], "all"))
            s = add_all(p, err);
        else if (role)
            s = add_word(p, role, argv[i][len] ? argv[i] + len + 1 : "", err);
        else
            s = err_set(err, STATUS_INVALID_ARGUMENT, "no role '%s'; see --help", argv[i]);
    }
    if (s == STATUS_OK && p->n == 0)
        s = err_set(err, STATUS_INVALID_ARGUMENT, "no role was named; see --help");
    return s;
}

// ---------------------------------------------------------------- the process

static enum status raise_file_limit(const struct process *p, struct err *err)
{
    struct rlimit lim;
    bool is_public = false;

    if (getrlimit(RLIMIT_NOFILE, &lim) != 0)
        return err_errno(err, errno, "read the limit of open files");
    if (lim.rlim_cur < WANTED_FILES) {
        lim.rlim_cur = lim.rlim_max < WANTED_FILES ? lim.rlim_max : WANTED_FILES;
        if (setrlimit(RLIMIT_NOFILE, &lim) != 0)
            return err_errno(err, errno, "raise the limit of open files");
    }
    for (size_t i = 0; i < p->n; i++)
        is_public |= p->words[i].role->role == ROLE_NODE_GATEWAY;
    if (is_public && lim.rlim_cur < PUBLIC_FILES)
        return err_set(
            err, STATUS_FAILED_PRECONDITION,
            "only %llu open files are allowed and a public gateway needs %d; raise 'ulimit -n'",
            (unsigned long long)lim.rlim_cur, PUBLIC_FILES);
    return STATUS_OK;
}

static enum status load_options(struct process *p, struct err *err)
{
    char help[] = "--help";
    char *only_help[] = {help};
    bool helping = wants_help(p);
    enum status s = STATUS_OK;

    for (size_t i = 0; i < p->n; i++) {
        struct instance *in = p->instances[i] = mem_alloc(sizeof(*in));
        if (!in)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        s = instance_load_options(in, &p->words[i], helping || p->n == 1, p->roles, p->n_roles,
                                  helping ? 1 : p->argc, helping ? only_help : p->argv, err);
        if (s != STATUS_OK && !(helping && s == STATUS_CANCELLED))
            return err_wrap(err, s, "%s", p->words[i].role->name);
    }
    if (s == STATUS_OK && p->n > 1 && svc_find_option_word(p->argc, p->argv, "node"))
        return err_set(err, STATUS_INVALID_ARGUMENT, "--node is for one role; write role:node");
    return s;
}

static enum status make_log(struct process *p, struct err *err)
{
    enum log_level level = LOG_INFO;
    const struct svc_options *o = instance_options(p->instances[0]);

    if (!log_level_parse(o->log_level, &level))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "--log-level '%s': not debug, info, warn, error or off", o->log_level);
    p->ready_file = o->ready_file;
    p->log = log_new(STDERR_FILENO, level, !isatty(STDERR_FILENO));
    return p->log ? STATUS_OK : err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

// Before the first thread, which inherit the mask.
static void take_signals(struct process *p)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};

    sigemptyset(&p->signals);
    sigaddset(&p->signals, SIGTERM);
    sigaddset(&p->signals, SIGINT);
    sigaddset(&p->signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &p->signals, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

static enum status start_all(struct process *p, struct err *err)
{
    for (size_t i = 0; i < p->n; i++) {
        enum status s = instance_start(p->instances[i], p->log, err);
        if (s != STATUS_OK)
            return err_wrap(err, s, "%s", p->words[i].role->name);
    }
    for (size_t i = 0; i < p->n; i++) {
        enum status s = instance_listen(p->instances[i], err);
        if (s != STATUS_OK)
            return err_wrap(err, s, "%s", p->words[i].role->name);
    }
    return STATUS_OK;
}

// The first that cannot serve yet, with its reason; NULL when all can.
static struct instance *first_not_ready(struct process *p, char *reason, size_t size)
{
    for (size_t i = 0; i < p->n; i++)
        if (!instance_is_ready(p->instances[i], reason, size))
            return p->instances[i];
    return NULL;
}

static void look_for_changes(struct process *p, bool force)
{
    for (size_t i = 0; i < p->n; i++)
        instance_look_for_changes(p->instances[i], force);
    p->look_at_ms = time_mono_ms() + LOOK_MS;
}

// At most that long. Returns the signal that ends us; 0 when none came. Meanwhile we look after the
// files that may change, at once when SIGHUP says so.
static int wait_signal(struct process *p, int64_t ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    int sig = sigtimedwait(&p->signals, NULL, &t);

    if (sig == SIGHUP || time_mono_ms() >= p->look_at_ms)
        look_for_changes(p, sig == SIGHUP);
    return sig > 0 && sig != SIGHUP ? sig : 0;
}

// Returns the signal that came first, or 0 once ready.
static int wait_ready(struct process *p)
{
    char reason[200] = "";
    struct instance *waits = first_not_ready(p, reason, sizeof(reason));

    if (waits)
        log_warn(p->log, "waiting", F_STR("node", waits->svc.self->id), F_STR("reason", reason));
    while (waits) {
        int sig = wait_signal(p, READY_CHECK_MS);
        if (sig)
            return sig;
        waits = first_not_ready(p, reason, sizeof(reason));
    }
    return 0;
}

static enum status serve(struct process *p, struct err *err)
{
    int sig = wait_ready(p);

    if (!sig && p->ready_file) {
        enum status s = svc_write_ready(p->ready_file, p->instances, p->n, err);
        if (s != STATUS_OK)
            return s;
    }
    if (!sig)
        log_info(p->log, "ready", F_I64("pid", getpid()));
    while (!sig)
        sig = wait_signal(p, LOOK_MS);
    log_info(p->log, "stopping", F_STR("signal", sig == SIGINT ? "SIGINT" : "SIGTERM"));
    return STATUS_OK;
}

static void too_late(int sig)
{
    static const char text[] = "cauced: did not stop in time\n";

    (void)sig;
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    _exit(EXIT_FAILED);
}

static void stop_all(struct process *p)
{
    struct sigaction late = {.sa_handler = too_late};
    int64_t drain_ms = 0;

    for (size_t i = 0; i < p->n; i++)
        if (instance_options(p->instances[i])->drain_ms > drain_ms)
            drain_ms = instance_options(p->instances[i])->drain_ms;
    sigaction(SIGALRM, &late, NULL);
    alarm((unsigned)((drain_ms + 999) / 1000) + STOP_MARGIN_S);
    pthread_sigmask(SIG_UNBLOCK, &p->signals, NULL); // a second signal ends us at once
    if (p->ready_file)
        unlink(p->ready_file);
    int64_t deadline_us = time_deadline_in_ms(drain_ms);
    for (size_t i = 0; i < p->n; i++)
        instance_drain(p->instances[i]);
    for (size_t i = p->n; i-- > 0;)
        instance_stop(p->instances[i], deadline_us);
}

static void free_all(struct process *p)
{
    for (size_t i = p->n; i-- > 0;) {
        if (p->instances[i])
            instance_done(p->instances[i]);
        mem_free(p->instances[i]);
    }
    log_free(p->log);
    rpc_fini();
    alarm(0);
}

static enum status run(struct process *p, struct err *err)
{
    enum status s = crypto_init(err);

    if (s == STATUS_OK)
        s = raise_file_limit(p, err);
    if (s == STATUS_OK)
        s = make_log(p, err);
    if (s != STATUS_OK)
        return s;
    if (p->ready_file)
        unlink(p->ready_file); // of an earlier run that was killed
    take_signals(p);
    s = start_all(p, err);
    if (s == STATUS_OK)
        s = serve(p, err);
    stop_all(p);
    return s;
}

int svc_main(const struct svc_role *const *roles, size_t n_roles, int argc, char **argv)
{
    AUTO(mem_free_p) struct process *p = mem_alloc(sizeof(*p));
    struct err err = ERR_INIT;
    int code = EXIT_USAGE;

    if (!p)
        return EXIT_FAILED;
    p->roles = roles;
    p->n_roles = n_roles;
    enum status s = parse_words(p, argc, argv, &err);
    if (s == STATUS_OK)
        s = load_options(p, &err);
    if (s == STATUS_OK) {
        code = EXIT_FAILED;
        s = run(p, &err);
    }
    if (s != STATUS_OK && s != STATUS_CANCELLED)
        (void)fprintf(stderr, "cauced: %s\n", err.msg);
    free_all(p);
    return s == STATUS_OK || s == STATUS_CANCELLED ? EXIT_OK : code;
}
