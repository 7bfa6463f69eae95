// The keeper is a forked, single-threaded process between test and server: it starts and stops the
// server on command, and when the pipe from the test closes (the test ended or died) it kills the
// server and removes the folder. The server tells that it is ready by sd_notify's protocol, so
// nobody polls.
#include "support/pg.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/time.h"

#define PG_BIN "/usr/lib/postgresql/15/bin"
#define START_MS 60000

struct test_pg {
    char dir[64];
    char conninfo[128];
    pid_t keeper;
    int fd; // commands out, one byte of answer back
};

struct keeper {
    const char *dir;
    uid_t uid; // 0: stay who we are
    gid_t gid;
    pid_t postgres; // 0: not running
    int ready_fd;
};

// ---------------------------------------------------------------- the keeper

static void become_user(const struct keeper *k)
{
    if (!k->uid)
        return;
    if (setgid(k->gid) != 0 || setuid(k->uid) != 0)
        _exit(126);
}

static pid_t spawn(const struct keeper *k, const char *const *argv)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    become_user(k);
    prctl(PR_SET_PDEATHSIG, SIGQUIT);
    int log = open("log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
        _exit(126);
    execv(argv[0], (char *const *)(uintptr_t)argv);
    _exit(127);
}

static bool run_to_end(const struct keeper *k, const char *const *argv)
{
    int status = -1;
    pid_t pid = spawn(k, argv);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status == 0;
}

static bool init_db(const struct keeper *k)
{
    static const char *const argv[] = {PG_BIN "/initdb",
                                       "-D",
                                       "data",
                                       "-U",
                                       "cauce",
                                       "-A",
                                       "peer",
                                       "--auth-local=trust",
                                       "--data-checksums",
                                       "--no-sync",
                                       "-E",
                                       "UTF8",
                                       "--locale=C.UTF-8",
                                       NULL};
    return run_to_end(k, argv);
}

static int open_ready_socket(const struct keeper *k)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "ready"};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 ||
        (k->uid && chown("ready", k->uid, k->gid) != 0))
        return -1;
    return fd;
}

static bool wait_ready(const struct keeper *k)
{
    int64_t deadline_us = time_deadline_in_ms(START_MS);
    char text[256];
    for (;;) {
        struct pollfd p = {.fd = k->ready_fd, .events = POLLIN};
        int n = poll(&p, 1, (int)time_left_ms(deadline_us));
        if (n == 0)
            return false;
        ssize_t len = n > 0 ? recv(k->ready_fd, text, sizeof text - 1, 0) : 0;
        text[len > 0 ? len : 0] = '\0';
        if (strstr(text, "READY=1"))
            return true;
    }
}

static bool start_server(struct keeper *k)
{
    static const char *const argv[] = {PG_BIN "/postgres",
                                       "-D",
                                       "data",
                                       "-k",
                                       "..",
                                       "-h",
                                       "",
                                       "-F",
                                       "-c",
                                       "full_page_writes=off",
                                       "-c",
                                       "shared_buffers=16MB",
                                       "-c",
                                       "max_connections=60",
                                       "-c",
                                       "unix_socket_permissions=0777",
                                       "-c",
                                       "jit=off",
                                       NULL};
    if (k->postgres)
        return true;
    k->postgres = spawn(k, argv);
    return k->postgres > 0 && wait_ready(k);
}

static void stop_server(struct keeper *k, int sig)
{
    if (k->postgres <= 0)
        return;
    kill(k->postgres, sig);
    while (waitpid(k->postgres, NULL, 0) < 0 && errno == EINTR)
        ;
    k->postgres = 0;
}

// Every process of the server at once: backends have sessions of their own and would otherwise
// finish what they are at.
static void kill_server(struct keeper *k)
{
    char path[64];
    long pid;
    if (k->postgres <= 0)
        return;
    kill(k->postgres, SIGSTOP); // no new children while we count them
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)k->postgres, (int)k->postgres);
    FILE *f = fopen(path, "re");
    while (f && fscanf(f, "%ld", &pid) == 1)
        kill((pid_t)pid, SIGKILL);
    if (f)
        fclose(f);
    kill(k->postgres, SIGKILL);
    // The keeper inherits the orphans; the data are free once all are gone.
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
    k->postgres = 0;
}

static void keep(struct keeper *k, int fd)
{
    for (char cmd; read(fd, &cmd, 1) == 1;) {
        char ok = 1;
        switch (cmd) {
        case 'i':
            ok = init_db(k) && start_server(k);
            break;
        case 's':
            ok = start_server(k);
            break;
        case 't':
            stop_server(k, SIGINT);
            break;
        case 'k':
            kill_server(k);
            break;
        }
        if (write(fd, &ok, 1) != 1)
            break;
    }
    stop_server(k, SIGQUIT);
}

static _Noreturn void keeper_main(const char *dir, int fd)
{
    struct keeper k = {.dir = dir, .ready_fd = -1};
    static const char *const remove[] = {"/bin/rm", "-rf", NULL, NULL};
    const char *argv[N_ELEMENTS(remove)];
    memcpy(argv, remove, sizeof remove);
    argv[2] = dir;
    // Signals to the test's group are for the test: we notice its end, and clean up after it.
    setsid();
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    struct passwd *pw = geteuid() == 0 ? getpwnam("postgres") : NULL;
    if (geteuid() == 0 && !pw)
        pw = getpwnam("nobody");
    if (pw)
        k.uid = pw->pw_uid, k.gid = pw->pw_gid;
    char notify[96];
    snprintf(notify, sizeof notify, "%s/ready", dir);
    if ((!k.uid || chown(dir, k.uid, k.gid) == 0) && chdir(dir) == 0 &&
        setenv("NOTIFY_SOCKET", notify, 1) == 0 && (k.ready_fd = open_ready_socket(&k)) >= 0)
        keep(&k, fd);
    k.uid = 0; // the folder's parent is not the server's user's
    _exit(chdir("/") == 0 && execv(argv[0], (char *const *)(uintptr_t)argv) == 0 ? 0 : 1);
}

// ---------------------------------------------------------------- the test's side

static void print_log(const struct test_pg *p)
{
    char path[96], line[512];
    snprintf(path, sizeof path, "%s/log", p->dir);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        print_error("postgres: %s", line);
    if (f)
        fclose(f);
}

static void command(struct test_pg *p, char cmd)
{
    char ok = 0;
    if (write(p->fd, &cmd, 1) == 1 && read(p->fd, &ok, 1) == 1 && ok)
        return;
    print_log(p);
    fail_msg("the test's PostgreSQL refused command '%c'", cmd);
}

struct test_pg *test_pg_new(void)
{
    struct test_pg *p = mem_alloc(sizeof *p);
    assert_non_null(p);
    snprintf(p->dir, sizeof p->dir, "/tmp/cauce-pg-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->conninfo, sizeof p->conninfo, "host=%s user=cauce dbname=postgres", p->dir);
    int fds[2];
    assert_int_equal(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
    p->keeper = fork();
    assert_true(p->keeper >= 0);
    if (p->keeper == 0) {
        close(fds[0]);
        keeper_main(p->dir, fds[1]);
    }
    close(fds[1]);
    p->fd = fds[0];
    command(p, 'i');
    return p;
}

void test_pg_free(struct test_pg *p)
{
    if (!p)
        return;
    close(p->fd);
    while (waitpid(p->keeper, NULL, 0) < 0 && errno == EINTR)
        ;
    mem_free(p);
}

const char *test_pg_conninfo(const struct test_pg *p)
{
    return p->conninfo;
}

void test_pg_stop(struct test_pg *p)
{
    command(p, 't');
}

void test_pg_kill(struct test_pg *p)
{
    command(p, 'k');
}

void test_pg_start(struct test_pg *p)
{
    command(p, 's');
}

const char *test_pg_migrations(void)
{
    static char dir[4096];
    const char *source = getenv("CAUCE_SOURCE_DIR");
    snprintf(dir, sizeof dir, "%s/migrations", source ? source : ".");
    return dir;
}

struct db *test_pg_db(struct test_pg *p, unsigned max_conns, bool migrate)
{
    struct err err = ERR_INIT;
    struct db *d = db_new(
        &(struct db_opts){.conninfo = p->conninfo, .name = "test", .max_conns = max_conns}, &err);
    if (!d)
        fail_msg("%s", err.msg);
    if (migrate && db_migrate(d, test_pg_migrations(), NULL, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    return d;
}
