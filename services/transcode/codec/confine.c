// Each layer stands alone: a hole in one leaves the others. The seccomp list was made by running
// the whole of the test media; a call that is not on it kills the process, so the parent sees
// SIGSYS and says so. Opening and connecting answer EACCES instead, because libraries try those in
// passing.
#include "confine.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

#define ADDRESS_SPACE (UINT64_C(2) << 30)
#define MAX_DESCRIPTORS 16

// Landlock rights newer than the header that we are built with (ABI 4: TCP; ABI 6: scopes).
#define ACCESS_NET_BIND_TCP (UINT64_C(1) << 0)
#define ACCESS_NET_CONNECT_TCP (UINT64_C(1) << 1)
#define SCOPE_ABSTRACT_UNIX_SOCKET (UINT64_C(1) << 0)
#define SCOPE_SIGNAL (UINT64_C(1) << 1)
struct ruleset {
    uint64_t handled_access_fs, handled_access_net, scoped;
};

static enum status set_limit(__rlimit_resource_t what, rlim_t soft, rlim_t hard, const char *name,
                             struct err *err)
{
    const struct rlimit r = {soft, hard};
    if (setrlimit(what, &r) != 0)
        return err_errno(err, errno, "confine: limit of %s", name);
    return STATUS_OK;
}

static enum status set_limits(unsigned cpu_s, struct err *err)
{
    enum status s = STATUS_OK;
    if (!SANITIZED) // their shadow memory is terabytes of address space
        s = set_limit(RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE, "memory", err);
    if (s == STATUS_OK && cpu_s)
        s = set_limit(RLIMIT_CPU, cpu_s, cpu_s + 5, "CPU seconds", err);
    if (s == STATUS_OK)
        s = set_limit(RLIMIT_FSIZE, 0, 0, "file size", err);
    if (s == STATUS_OK)
        s = set_limit(RLIMIT_NOFILE, MAX_DESCRIPTORS, MAX_DESCRIPTORS, "descriptors", err);
    if (s == STATUS_OK)
        s = set_limit(RLIMIT_CORE, 0, 0, "core size", err);
    return s;
}

enum status confine_memory(uint64_t bytes, struct err *err)
{
    return SANITIZED ? STATUS_OK : set_limit(RLIMIT_DATA, bytes, bytes, "memory", err);
}

// Every file system right of the ABI, none granted.
static uint64_t fs_rights(long abi)
{
    static const unsigned bits[] = {0, 13, 14, 15, 15, 16};
    size_t i = (size_t)abi < N_ELEMENTS(bits) ? (size_t)abi : N_ELEMENTS(bits) - 1;
    return (UINT64_C(1) << bits[i]) - 1;
}

static enum status forbid_files(struct err *err)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < 1)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "confine: this kernel offers no Landlock (%s): use Linux 5.13 or later with "
                       "landlock in its lsm list",
                       strerror(errno));
    struct ruleset r = {.handled_access_fs = fs_rights(abi)};
    size_t size = sizeof(r.handled_access_fs);
    if (abi >= 4) {
        r.handled_access_net = ACCESS_NET_BIND_TCP | ACCESS_NET_CONNECT_TCP;
        size = offsetof(struct ruleset, scoped);
    }
    if (abi >= 6) {
        r.scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL;
        size = sizeof(r);
    }
    int fd = (int)syscall(SYS_landlock_create_ruleset, &r, size, 0);
    if (fd < 0)
        return err_errno(err, errno, "confine: Landlock rules");
    long done = syscall(SYS_landlock_restrict_self, fd, 0);
    int why = errno;
    close(fd);
    return done == 0 ? STATUS_OK : err_errno(err, why, "confine: Landlock");
}

// ---- seccomp ----

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "confine.c: no seccomp list for this architecture"
#endif

static const int allowed[] = {
    SYS_read,
    SYS_pread64,
    SYS_readv,
    SYS_write,
    SYS_writev,
    SYS_lseek,
    SYS_fstat,
    SYS_close,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendto,
    SYS_sendmsg,
    SYS_ppoll,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_futex,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_exit,
    SYS_exit_group,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_gettid,
    SYS_getpid,
    SYS_geteuid, // SVT-AV1 asks whether it may change its priority
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_getcpu,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_getrandom,
    SYS_restart_syscall,
    SYS_getrusage,
    SYS_sysinfo,
    SYS_uname,
    SYS_membarrier,
    SYS_prlimit64,
#if defined(__x86_64__)
    SYS_poll,
    SYS_time,
    SYS_arch_prctl,
#endif
};

// Tried in passing by libraries: refused, not fatal.
static const struct {
    int nr, errnum;
} refused[] = {
    {SYS_openat, EACCES},
    {SYS_socket, EACCES},
    {SYS_clone3, ENOSYS},
    {SYS_readlinkat, EACCES},
    {SYS_newfstatat, EACCES},
    {SYS_faccessat, EACCES},
    {SYS_ioctl, ENOTTY},
    {SYS_mbind, EPERM},
    {SYS_set_mempolicy, EPERM},
    {SYS_get_mempolicy, EPERM},
    {SYS_sched_setscheduler, EPERM},
    {SYS_sched_setaffinity, EPERM},
    {SYS_setpriority, EPERM},
    {SYS_statx, EACCES},
#if defined(__x86_64__)
    {SYS_open, EACCES},
    {SYS_readlink, EACCES},
    {SYS_stat, EACCES},
    {SYS_access, EACCES},
    {SYS_lstat, EACCES},
#endif
};

#define MAX_FILTER 256
struct program {
    struct sock_filter code[MAX_FILTER];
    unsigned short n;
};

static void emit(struct program *p, uint16_t code, uint8_t jt, uint8_t jf, uint32_t k)
{
    if (p->n < MAX_FILTER)
        p->code[p->n++] = (struct sock_filter){code, jt, jf, k};
}

static void load(struct program *p, size_t offset)
{
    emit(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)offset);
}

static void ret(struct program *p, uint32_t action)
{
    emit(p, BPF_RET | BPF_K, 0, 0, action);
}

// If the accumulator is k: do `action`; else go on.
static void on_equal(struct program *p, uint32_t k, uint32_t action)
{
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, k);
    ret(p, action);
}

static size_t arg_low(unsigned i) // the low half; little-endian on both architectures
{
    return offsetof(struct seccomp_data, args) + i * sizeof(uint64_t);
}

// Call `nr` is allowed when (args[arg] & mask) == want, else killed. Leaves the accumulator
// reloaded for what follows.
static void allow_if(struct program *p, int nr, unsigned arg, uint32_t mask, uint32_t want)
{
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 5, (uint32_t)nr);
    load(p, arg_low(arg));
    emit(p, BPF_ALU | BPF_AND | BPF_K, 0, 0, mask);
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, want);
    ret(p, SECCOMP_RET_ALLOW);
    ret(p, SECCOMP_RET_KILL_PROCESS);
}

static void build(struct program *p, pid_t self)
{
    load(p, offsetof(struct seccomp_data, arch));
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, ARCH);
    ret(p, SECCOMP_RET_KILL_PROCESS);
    load(p, offsetof(struct seccomp_data, nr)); // x32 numbers carry bit 30 and match nothing
    for (size_t i = 0; i < N_ELEMENTS(allowed); i++)
        on_equal(p, (uint32_t)allowed[i], SECCOMP_RET_ALLOW);
    for (size_t i = 0; i < N_ELEMENTS(refused); i++)
        on_equal(p, (uint32_t)refused[i].nr,
                 SECCOMP_RET_ERRNO | ((uint32_t)refused[i].errnum & SECCOMP_RET_DATA));
    // Memory, but never executable; threads, but never processes; names and signals of its own.
    allow_if(p, SYS_mmap, 2, PROT_EXEC, 0);
    allow_if(p, SYS_mprotect, 2, PROT_EXEC, 0);
    allow_if(p, SYS_clone, 0, CLONE_VM | CLONE_THREAD | CLONE_NEWUSER | CLONE_NEWNS,
             CLONE_VM | CLONE_THREAD);
    allow_if(p, SYS_prctl, 0, UINT32_MAX, PR_SET_NAME);
    allow_if(p, SYS_tgkill, 0, UINT32_MAX, (uint32_t)self);
    ret(p, SECCOMP_RET_KILL_PROCESS);
}

static enum status filter_calls(struct err *err)
{
    struct program p = {.n = 0};
    build(&p, getpid());
    const struct sock_fprog prog = {p.n, p.code};
    if (p.n == MAX_FILTER || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) != 0)
        return err_errno(err, errno, "confine: seccomp filter of %u instructions", (unsigned)p.n);
    return STATUS_OK;
}

enum status confine_self(unsigned cpu_s, struct err *err)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        return err_errno(err, errno, "confine: giving up privileges");
    enum status s = set_limits(cpu_s, err);
    if (s == STATUS_OK)
        s = forbid_files(err);
    return s == STATUS_OK ? filter_calls(err) : s;
}
