// Memory that runs out in the libraries we use: the n-th malloc() that nng, the C library or
// another makes while a client connects, calls and streams fails, for a sample of n. Calls may
// fail, and so may the connections of others, whose bytes go through the same library; but nothing
// of ours crashes, hangs or leaks, and afterwards everything works again.
//
// Each n has a process of its own: a library that breaks breaks that one. Two things that nng 1.5.2
// does by itself are told apart and counted, everything else is a failure: it panics or crashes in
// its own code, and once in some hundred times one of its sockets takes no connection any more.
//
// libsodium and protobuf-c ask for no memory in these paths: protobuf-c is given ours, which
// alloc_test.c makes fail. That is checked here.
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <link.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "rpc/transport.h"
#include "wire/place.h"

#define WATCHDOG_S 120 // for one process
#define N_SAMPLES 36   // of each library and transport
#define N_AT_ONCE 6

// ---------------------------------------------------------------- whose malloc() fails

enum owner { OURS, NNG, SODIUM, PROTOBUF, LIBC, OTHERS, N_OWNERS };
static const char *const owner_names[] = {"ours", "nng", "sodium", "protobuf-c", "libc", "others"};

struct range {
    uintptr_t from, to;
    enum owner owner;
};
static struct range ranges[64];
static size_t n_ranges;

static enum owner owner_named(const char *path)
{
    static const struct {
        const char *part;
        enum owner owner;
    } names[] = {{"libnng", NNG},
                 {"libsodium", SODIUM},
                 {"libprotobuf-c", PROTOBUF},
                 {"libc.so", LIBC},
                 {"ld-linux", LIBC}};
    if (!path[0])
        return OURS; // the program
    for (size_t i = 0; i < N_ELEMENTS(names); i++)
        if (strstr(path, names[i].part))
            return names[i].owner;
    return OTHERS;
}

static int add_ranges(struct dl_phdr_info *info, size_t size, void *ud)
{
    (void)size;
    (void)ud;
    for (int i = 0; i < info->dlpi_phnum && n_ranges < N_ELEMENTS(ranges); i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if (h->p_type == PT_LOAD && (h->p_flags & PF_X))
            ranges[n_ranges++] = (struct range){info->dlpi_addr + h->p_vaddr,
                                                info->dlpi_addr + h->p_vaddr + h->p_memsz,
                                                owner_named(info->dlpi_name)};
    }
    return 0;
}

static enum owner owner_of(const void *code)
{
    uintptr_t at = (uintptr_t)code;
    for (size_t i = 0; i < n_ranges; i++)
        if (at >= ranges[i].from && at < ranges[i].to)
            return ranges[i].owner;
    return OTHERS;
}

static _Atomic int64_t n_asked[N_OWNERS], fail_in = -1;
static _Atomic bool is_counting, has_failed;
static enum owner failing;

static bool must_fail(const void *caller)
{
    if (!is_counting)
        return false;
    enum owner owner = owner_of(caller);
    n_asked[owner]++;
    if (owner != failing || fail_in < 0 || atomic_fetch_sub(&fail_in, 1) != 0)
        return false;
    has_failed = true;
    errno = ENOMEM;
    return true;
}

// The C library's own, under the names that it keeps for those who stand in front of it.
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);

__attribute__((visibility("default"))) void *malloc(size_t n)
{
    return must_fail(__builtin_return_address(0)) ? NULL : __libc_malloc(n);
}
__attribute__((visibility("default"))) void *calloc(size_t n, size_t size)
{
    return must_fail(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}
__attribute__((visibility("default"))) void *realloc(void *p, size_t n)
{
    return must_fail(__builtin_return_address(0)) ? NULL : __libc_realloc(p, n);
}

// ---------------------------------------------------------------- one process

enum end { WELL, NOT_WELL, CRASHED_OURS, HANGS, CRASHED_LIBRARY, NOT_BACK, N_ENDS };

struct told { // by the process without a failure, in memory that is shared
    int64_t n_asked[N_OWNERS];
};
static struct told *told;

static void say(const char *text)
{
    if (write(2, text, strlen(text)) < 0)
        _exit(NOT_WELL);
}

// Whoever called the C library's abort(), or ran where it crashed.
static void on_crash(int sig)
{
    void *frames[40];
    is_counting = false;
    int n = backtrace(frames, N_ELEMENTS(frames));
    for (int i = 2; i < n; i++) { // behind this function and the signal's frame
        enum owner owner = owner_of(frames[i]);
        if (owner == LIBC || owner == OTHERS)
            continue;
        if (owner == NNG && failing == NNG && sig != SIGALRM)
            _exit(CRASHED_LIBRARY);
        break;
    }
    say(sig == SIGALRM ? "malloc_test: a round hangs\n" : "malloc_test: a crash of ours\n");
    backtrace_symbols_fd(frames, n, 2);
    _exit(sig == SIGALRM ? HANGS : CRASHED_OURS);
}

static void catch_crashes(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE, SIGALRM};
    void *frame[1];
    backtrace(frame, 1); // loads what it needs, now
    for (size_t i = 0; i < N_ELEMENTS(signals); i++)
        signal(signals[i], on_crash);
}

// Clients connect again, and all that they do works.
static enum end recovery(struct place *p)
{
    int64_t until = time_deadline_in_ms(PATIENCE_MS);
    struct err err = ERR_INIT;
    struct verdict v;
    while (!place_takes_clients(p, &err)) {
        if (time_mono_us() >= until)
            return NOT_BACK;
        wire_pause(20);
    }
    place_round(p, true, &v);
    if (v.n_failed)
        fprintf(stderr, "afterwards %s: %s: %s\n", v.step, status_name(v.s), v.msg);
    return v.n_failed ? NOT_WELL : WELL;
}

// n < 0: nothing fails, and what was asked for is told.
static enum end live(const struct transport_ops *transport, enum owner who, int64_t n)
{
    struct place p;
    struct verdict v;
    place_init(&p, transport);
    place_round(&p, true, &v);
    assert_int_equal(v.n_failed, 0);
    failing = who;
    fail_in = n;
    is_counting = true;
    place_round(&p, true, &v);
    is_counting = false;
    bool well = place_may_tell(v.s) || v.s == STATUS_DEADLINE_EXCEEDED;
    if (!well)
        fprintf(stderr, "%s: %s: %s\n", v.step, status_name(v.s), v.msg);
    enum end end = recovery(&p);
    place_done(&p);
    well = group_done(NULL) == 0 && well; // no message is left
    if (n < 0)
        for (int i = 0; i < N_OWNERS; i++)
            told->n_asked[i] = n_asked[i];
    return well ? end : NOT_WELL;
}

static pid_t start(const struct transport_ops *transport, enum owner who, int64_t n)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    catch_crashes();
    alarm(WATCHDOG_S);
    _exit((int)live(transport, who, n));
}

static enum end end_of(pid_t pid)
{
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return NOT_WELL;
    return (enum end)WEXITSTATUS(status);
}

// ---------------------------------------------------------------- the sample

static bool is_nngs_own(enum end e, enum owner who)
{
    return who == NNG && (e == CRASHED_LIBRARY || e == NOT_BACK);
}

static void sample(const struct transport_ops *transport, enum owner who)
{
    int64_t total = told->n_asked[who], step = total / N_SAMPLES + 1;
    unsigned n_all = 0, n_well = 0, n_broke = 0;
    for (int64_t n = 0; n < total;) {
        pid_t pids[N_AT_ONCE];
        int64_t at[N_AT_ONCE];
        size_t k = 0;
        for (; k < N_AT_ONCE && n < total; k++, n += step) {
            at[k] = n;
            pids[k] = start(transport, who, n);
        }
        for (size_t i = 0; i < k; i++, n_all++) {
            enum end e = end_of(pids[i]);
            n_well += e == WELL;
            n_broke += is_nngs_own(e, who);
            if (e != WELL && !is_nngs_own(e, who))
                print_error("%s, malloc %lld of %s: ended %d\n", transport->name, (long long)at[i],
                            owner_names[who], (int)e);
        }
    }
    print_message("%s: %u of %lld allocations of %s failed, one a process; %u broke it\n",
                  transport->name, n_all, (long long)total, owner_names[who], n_broke);
    assert_int_equal(n_well + n_broke, n_all);
}

static void try_transport(const struct transport_ops *transport)
{
    memset(told, 0, sizeof *told);
    assert_int_equal(end_of(start(transport, OURS, -1)), WELL);
    assert_int_equal(told->n_asked[SODIUM], 0);
    assert_int_equal(told->n_asked[PROTOBUF], 0);
    sample(transport, OURS);
    sample(transport, NNG);
    sample(transport, LIBC);
}

static void test_of_the_event_loops(void **state)
{
    (void)state;
    try_transport(&transport_epoll);
}

static void test_of_nng(void **state)
{
    (void)state;
    try_transport(&transport_nng);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_of_the_event_loops),
        cmocka_unit_test(test_of_nng),
    };
    told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (told == MAP_FAILED)
        return 1;
    dl_iterate_phdr(add_ranges, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
