// A server process that is killed amid calls: each of them ends once and soon, and the client goes
// on with the server that takes its place.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/str.h"
#include "rpc/test_util.h"
#include "rpc/transport.h"

#define PATIENCE_MS 30000
#define NOTE_BYTES 5000

extern char **environ;

// ---------------------------------------------------------------- the server's process

static int serve(const char *url)
{
    struct world w;
    char end;
    world_init(&w);
    w.transport = &transport_epoll;
    if (read(STDIN_FILENO, &w.server, sizeof w.server) != sizeof w.server)
        return 1;
    world_serve(&w, url, true);
    printf("%s\n", w.url);
    fflush(stdout);
    while (read(STDIN_FILENO, &end, 1) > 0) { // until the test is over, if it is not killed
    }
    return 0;
}

struct process {
    pid_t pid;
    int in;
    char url[RPC_URL_SIZE];
};

static void process_start(struct process *p, const struct world *w, const char *url)
{
    int in[2], out[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    char self[] = "/proc/self/exe", word[] = "serve", at[RPC_URL_SIZE];
    str_copy(at, sizeof at, url);
    char *argv[] = {self, word, at, NULL};
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&fa, out[1], STDOUT_FILENO);
    assert_int_equal(posix_spawn(&p->pid, self, &fa, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&fa);
    close(in[0]);
    close(out[1]);
    p->in = in[1];
    assert_int_equal(write(p->in, &w->server, sizeof w->server), sizeof w->server);
    FILE *f = fdopen(out[0], "r");
    assert_non_null(f);
    assert_non_null(fgets(p->url, sizeof p->url, f));
    p->url[strcspn(p->url, "\n")] = 0;
    fclose(f);
}

static void process_kill(struct process *p)
{
    int status;
    assert_int_equal(kill(p->pid, SIGKILL), 0);
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    close(p->in);
}

// ---------------------------------------------------------------- calls

struct pending {
    _Atomic int n_done;
    enum status s;
};

static void on_done(void *ud, enum status s, ProtobufCMessage *reply, const struct err *err)
{
    struct pending *p = ud;
    (void)err;
    p->s = s;
    rpc_message_free(reply);
    p->n_done++;
}

static const struct rpc_opts *patient(struct rpc_opts *o)
{
    *o = (struct rpc_opts){.deadline_us = time_deadline_in_ms(PATIENCE_MS)};
    return o;
}

static void call_begin(struct rpc_client *c, struct pending *p, int method)
{
    struct rpc_opts o;
    Note req;
    note_init(&req);
    *p = (struct pending){.s = STATUS_OK};
    rpc_unary_async(c, &test_service.methods[method], patient(&o), &req.base, on_done, p);
}

static struct rpc_stream *notes_begin(struct rpc_client *c)
{
    struct rpc_stream *st = NULL;
    struct rpc_opts o;
    struct err err = ERR_INIT;
    static uint8_t bytes[NOTE_BYTES];
    Note req;
    note_init(&req);
    req.number = INT64_C(1) << 40;
    req.data = (ProtobufCBinaryData){.len = sizeof bytes, .data = bytes};
    assert_int_equal(
        rpc_stream_open(c, &test_service.methods[NUMBERED], patient(&o), &req.base, &st, &err),
        STATUS_OK);
    return st;
}

static enum status note_read(struct rpc_stream *st, int64_t number)
{
    ProtobufCMessage *m = NULL;
    struct err err = ERR_INIT;
    enum status s = rpc_stream_recv(st, &m, &err);
    if (s == STATUS_OK) {
        assert_non_null(m);
        assert_int_equal(((Note *)(void *)m)->number, number);
    }
    rpc_message_free(m);
    return s;
}

static void expect_echo(struct rpc_client *c)
{
    struct rpc_opts o;
    struct err err = ERR_INIT;
    Note req, *ret = NULL;
    note_init(&req);
    patient(&o);
    o.idempotency_key = "key"; // the client may not have noticed yet
    assert_int_equal(call_note(c, ECHO, &o, &req, &ret, &err), STATUS_OK);
    rpc_message_free(ret);
}

static void check_kill(const char *url)
{
    struct world w;
    struct process p;
    world_init(&w);
    process_start(&p, &w, url);
    struct rpc_endpoint e = {.url = p.url};
    memcpy(e.key, w.server.public_key, sizeof e.key);
    struct rpc_client_opts o = {.endpoints = &e,
                                .n_endpoints = 1,
                                .connect_timeout_ms = PATIENCE_MS,
                                .transport = &transport_epoll};
    struct err err = ERR_INIT;
    struct rpc_client *c = rpc_client_new(&o, &err);
    assert_non_null(c);
    for (int round = 0; round < 3; round++) {
        struct pending wait;
        expect_echo(c);
        call_begin(c, &wait, WAIT);
        struct rpc_stream *st = notes_begin(c);
        int64_t n = 0;
        while (n < 100)
            assert_int_equal(note_read(st, n++), STATUS_OK);
        process_kill(&p);
        enum status s;
        while ((s = note_read(st, n++)) == STATUS_OK) { // what had arrived
        }
        assert_int_equal(s, STATUS_UNAVAILABLE);
        assert_true(wait_for_count(&wait.n_done, 1));
        assert_int_equal(wait.s, STATUS_UNAVAILABLE);
        rpc_stream_free(st);
        process_start(&p, &w, url);
        assert_int_equal(rpc_client_set_endpoints(c, &e, 1, &err), STATUS_OK);
        expect_echo(c);
        assert_int_equal(wait.n_done, 1);
    }
    rpc_client_free(c);
    process_kill(&p);
    world_done(&w);
}

static void test_over_tcp(void **state)
{
    (void)state;
    check_kill("tcp://127.0.0.1:0"); // at another port each time
}

static void test_over_ipc(void **state)
{
    (void)state;
    char url[64], *path = url + strlen("ipc://");
    snprintf(url, sizeof url, "ipc:///tmp/cauce-crash-%d", (int)getpid());
    check_kill(url);
    unlink(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_over_tcp),
        cmocka_unit_test(test_over_ipc),
    };
    if (argc == 3 && strcmp(argv[1], "serve") == 0)
        return serve(argv[2]);
    return cmocka_run_group_tests(tests, NULL, group_done);
}
