// One escape attempt per run, named by the environment: the parent's tests expect each to fail.
// An attempt that succeeds ends the process with status 99.
#include "escape.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/auto.h"
#include "media/task.h"

#define ESCAPED 99

static void try_open(void)
{
    if (open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0)
        _exit(ESCAPED);
}

static void try_socket(int type)
{
    if (socket(AF_INET, type | SOCK_CLOEXEC, 0) >= 0)
        _exit(ESCAPED);
}

static void try_tcp(void)
{
    try_socket(SOCK_STREAM);
}

static void try_udp(void)
{
    try_socket(SOCK_DGRAM);
}

static void try_fork(void)
{
    (void)fork();
    _exit(ESCAPED);
}

static void try_exec(void)
{
    char *const argv[] = {NULL};
    (void)execve("/bin/true", argv, argv);
    _exit(ESCAPED);
}

static void try_ptrace(void)
{
    (void)ptrace(PTRACE_ATTACH, getppid(), NULL, NULL);
    _exit(ESCAPED);
}

static void try_kill_parent(void)
{
    (void)kill(getppid(), SIGTERM);
    _exit(ESCAPED);
}

static void try_memory(void)
{
    if (mmap(NULL, (size_t)3 << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
        MAP_FAILED)
        _exit(ESCAPED);
}

static void try_code(void)
{
    (void)mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    _exit(ESCAPED);
}

static void try_loop(void)
{
    for (volatile unsigned n = 0;; n++)
        ;
}

static void try_write(void)
{
    static const char byte = 0;
    if (write(MEDIA_CHILD_SOURCE_FD, &byte, 1) == 1)
        _exit(ESCAPED);
}

static const struct {
    const char *name;
    void (*go)(void);
} attempts[] = {
    {"open", try_open}, {"tcp", try_tcp},       {"udp", try_udp},          {"fork", try_fork},
    {"exec", try_exec}, {"ptrace", try_ptrace}, {"kill", try_kill_parent}, {"memory", try_memory},
    {"code", try_code}, {"loop", try_loop},     {"write", try_write},
};

void escape_try(void)
{
    const char *name = getenv("CAUCE_TEST_ESCAPE");
    for (size_t i = 0; name && i < N_ELEMENTS(attempts); i++)
        if (strcmp(attempts[i].name, name) == 0)
            attempts[i].go();
}
