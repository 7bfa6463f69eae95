// mediactl: command line of a Cauce platform.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"

const struct command_group *const command_groups[] = {
    &auth_commands,  &upload_commands,  &item_commands, &subtitle_commands, &play_commands,
    &shop_commands,  &library_commands, &job_commands,  &worker_commands,   &user_commands,
    &event_commands, &rpc_commands,     &node_commands, &misc_commands,
};
const size_t n_command_groups = N_ELEMENTS(command_groups);

// ---------------------------------------------------------------- interruption

// Signals are taken by one thread, which cancels what runs; a second one ends the program at once.
struct watcher {
    cauce *c;
    pthread_t thread;
    atomic_bool interrupted;
};

static void watched_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGUSR1); // ends the watcher
}

static void *watch(void *ud)
{
    struct watcher *w = ud;
    sigset_t set;
    watched_signals(&set);
    for (int sig = 0; sigwait(&set, &sig) == 0 && sig != SIGUSR1;) {
        if (atomic_exchange(&w->interrupted, true))
            _exit(EXIT_INTERRUPTED);
        cauce_cancel(w->c);
    }
    return NULL;
}

static void print_quoted(const char *word)
{
    bool plain = word[0] && strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                         "0123456789-_./:=@%+,") == strlen(word);
    if (plain) {
        fputs(word, stderr);
        return;
    }
    fputc('\'', stderr);
    for (; *word; word++)
        if (*word == '\'')
            fputs("'\\''", stderr);
        else
            fputc(*word, stderr);
    fputc('\'', stderr);
}

static void print_how_to_continue(const struct ctl *k)
{
    fputs("interrupted; to continue:", stderr);
    for (size_t i = 0; i < k->n_words; i++) {
        fputc(' ', stderr);
        print_quoted(k->words[i]);
    }
    fputc('\n', stderr);
}

// ---------------------------------------------------------------- results

static int exit_code(enum status s)
{
    switch (s) {
    case STATUS_OK:
        return EXIT_OK;
    case STATUS_NOT_FOUND:
        return EXIT_NOT_FOUND;
    case STATUS_PERMISSION_DENIED:
    case STATUS_UNAUTHENTICATED:
        return EXIT_DENIED;
    case STATUS_ALREADY_EXISTS:
    case STATUS_ABORTED:
        return EXIT_CONFLICT;
    case STATUS_UNAVAILABLE:
        return EXIT_UNAVAILABLE;
    case STATUS_DEADLINE_EXCEEDED:
        return EXIT_DEADLINE;
    case STATUS_CANCELLED:
    case STATUS_UNKNOWN:
    case STATUS_INVALID_ARGUMENT:
    case STATUS_RESOURCE_EXHAUSTED:
    case STATUS_FAILED_PRECONDITION:
    case STATUS_OUT_OF_RANGE:
    case STATUS_UNIMPLEMENTED:
    case STATUS_INTERNAL:
    case STATUS_DATA_LOSS:
        return EXIT_FAILED;
    }
    return EXIT_FAILED;
}

// The client library's words, which name no program.
static bool wants_login(const char *msg)
{
    return str_ends_with(msg, "log in first") || str_ends_with(msg, "log in again");
}

static void add_how_to_log_in(struct err *err)
{
    char said[sizeof(err->msg)];
    (void)str_copy(said, sizeof(said), err->msg);
    (void)err_set(err, STATUS_UNAUTHENTICATED, "%s, with mediactl login NAME", said);
}

// A refusal by the dispatcher names its method, which is not what the user typed.
static const char *sentence(struct ctl *k, enum status s)
{
    bool names_method = strncmp(k->err.msg, "cauce.", 6) == 0 && k->command;
    if (names_method && s == STATUS_PERMISSION_DENIED)
        err_set(&k->err, s, "%s: your account does not have the role for it", k->command->name);
    else if (names_method && s == STATUS_UNAUTHENTICATED)
        err_set(&k->err, s, "%s: log in first, with mediactl login NAME", k->command->name);
    else if (s == STATUS_UNAUTHENTICATED && wants_login(k->err.msg))
        add_how_to_log_in(&k->err);
    return k->err.msg[0] ? k->err.msg : status_name(s);
}

static int report(struct ctl *k, enum status s, bool interrupted)
{
    if (s != STATUS_OK && interrupted) {
        print_how_to_continue(k);
        return EXIT_INTERRUPTED;
    }
    if (s != STATUS_OK && !k->is_reported)
        fprintf(stderr, "mediactl: %s\n", sentence(k, s));
    if (fflush(stdout) != 0 && s == STATUS_OK) {
        fprintf(stderr, "mediactl: write to standard output failed\n");
        return EXIT_FAILED;
    }
    return s != STATUS_OK && k->is_misused ? EXIT_USAGE : exit_code(s);
}

// ---------------------------------------------------------------- running

static enum status find_state_dir(struct ctl *k)
{
    const char *given =
        ctl_has(k, OPT_STATE_DIR) ? k->opt[OPT_STATE_DIR] : getenv("CAUCE_STATE_DIR");
    const char *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    if (given && given[0])
        k->state_dir = mem_strdup(given);
    else if (xdg && xdg[0])
        k->state_dir = mem_printf("%s/cauce", xdg);
    else
        k->state_dir = mem_printf("%s/.local/state/cauce", home && home[0] ? home : "/");
    return k->state_dir ? STATUS_OK : err_set(&k->err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

static enum status connect_server(struct ctl *k)
{
    const char *env = getenv("CAUCE_SERVER");
    cauce_opts o;
    cauce_opts_init(&o);
    o.state_dir = k->state_dir;
    o.server = ctl_has(k, OPT_SERVER) ? k->opt[OPT_SERVER] : env && env[0] ? env : NULL;
    o.timeout_ms = (uint32_t)k->timeout_ms;
    // A call is tried three times: a server that is not there is to be named before time runs out.
    o.connect_timeout_ms = k->timeout_ms ? (uint32_t)(k->timeout_ms / 5) + 1 : 3000;
    cauce_error e;
    return ctl_status(k, cauce_connect(&o, &k->c, &e), &e);
}

static int run_connected(struct ctl *k)
{
    enum status s = connect_server(k);
    if (s != STATUS_OK)
        return report(k, s, false) == EXIT_FAILED ? EXIT_USAGE : EXIT_FAILED;
    struct watcher w = {.c = k->c};
    int e = pthread_create(&w.thread, NULL, watch, &w);
    if (e)
        s = err_errno(&k->err, e, "start a thread");
    else
        s = k->command->run(k);
    if (!e) {
        pthread_kill(w.thread, SIGUSR1);
        pthread_join(w.thread, NULL);
    }
    int code = report(k, s, atomic_load(&w.interrupted));
    cauce_close(k->c);
    rpc_fini();
    return code;
}

static int usage(const struct err *e)
{
    fprintf(stderr, "mediactl: %s\n", e->msg);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    struct ctl k = {.err = ERR_INIT};
    enum status s = ctl_parse(&k, argc, argv, &k.err);
    if (s != STATUS_OK)
        return usage(&k.err);
    if (ctl_has(&k, OPT_VERSION)) {
        printf("mediactl %s\n", cauce_version());
        return EXIT_OK;
    }
    if (k.group && !k.command) {
        ctl_help_group(k.group, stdout);
        return EXIT_OK;
    }
    if (!k.command || ctl_has(&k, OPT_HELP)) {
        bool asked = ctl_has(&k, OPT_HELP);
        ctl_help(k.command, asked ? stdout : stderr);
        return asked ? EXIT_OK : EXIT_USAGE;
    }
    if (find_state_dir(&k) != STATUS_OK)
        return report(&k, k.err.code, false);
    int code;
    if (k.command->needs == ALONE || ctl_has(&k, OPT_FROM_LIBRARY)) {
        code = report(&k, k.command->run(&k), false);
    } else {
        sigset_t set; // before any thread, so that all of them leave the signals to the watcher
        watched_signals(&set);
        pthread_sigmask(SIG_BLOCK, &set, NULL);
        code = run_connected(&k);
    }
    mem_free(k.state_dir);
    return code;
}
