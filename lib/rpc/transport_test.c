// Transports: each speaks to each, breaks without losing a message, and bears peers that claim,
// stall or talk nonsense.
#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <malloc.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "rpc/internal.h"
#include "rpc/test_util.h"

#define PATIENCE_MS 20000

static const struct transport_ops *const transports[] = {&transport_nng, &transport_epoll};

static const char *ipc_url(void)
{
    static char url[64];
    snprintf(url, sizeof url, "ipc:///tmp/cauce-transport-%d", (int)getpid());
    return url;
}

// ---------------------------------------------------------------- each with each

static void echo(struct rpc_client *c, size_t n)
{
    struct err err = ERR_INIT;
    Note req, *ret = NULL;
    note_init(&req);
    req.data.len = n;
    req.data.data = mem_array(n, 1);
    assert_non_null(req.data.data);
    memset(req.data.data, 0x5a, n);
    if (call_note(c, ECHO, NULL, &req, &ret, &err) != STATUS_OK)
        print_error("%s\n", err.msg);
    assert_non_null(ret);
    assert_int_equal(ret->data.len, n);
    assert_memory_equal(ret->data.data, req.data.data, n);
    rpc_message_free(ret);
    mem_free(req.data.data);
}

// A server stream of notes of a size, each in its place.
static void count(struct rpc_client *c, int64_t n, size_t size)
{
    struct err err = ERR_INIT;
    struct rpc_stream *st = NULL;
    Note req;
    note_init(&req);
    req.number = n;
    req.data.len = size;
    req.data.data = mem_array(size, 1);
    assert_int_equal(rpc_stream_open(c, &test_service.methods[COUNT], NULL, &req.base, &st, &err),
                     STATUS_OK);
    for (int64_t i = 0; i <= n; i++) {
        ProtobufCMessage *m = NULL;
        assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
        if (i == n)
            assert_null(m);
        else
            assert_int_equal(((Note *)(void *)m)->number, i);
        rpc_message_free(m);
    }
    rpc_stream_free(st);
    mem_free(req.data.data);
}

// A client stream of notes; the server adds up.
static void sum(struct rpc_client *c, int64_t n, size_t size)
{
    struct err err = ERR_INIT;
    struct rpc_stream *st = NULL;
    ProtobufCMessage *m = NULL;
    Note note;
    note_init(&note);
    note.number = 3;
    note.data.len = size;
    note.data.data = mem_array(size, 1);
    assert_int_equal(rpc_stream_open(c, &test_service.methods[SUM], NULL, NULL, &st, &err),
                     STATUS_OK);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(rpc_stream_send(st, &note.base, &err), STATUS_OK);
    assert_int_equal(rpc_stream_close_send(st, &err), STATUS_OK);
    assert_int_equal(rpc_stream_recv(st, &m, &err), STATUS_OK);
    assert_int_equal(((Note *)(void *)m)->number, 3 * n);
    rpc_message_free(m);
    rpc_stream_free(st);
    mem_free(note.data.data);
}

static void check_pair(const struct transport_ops *server, const struct transport_ops *client,
                       const char *url, bool is_public)
{
    static const size_t sizes[] = {0, 1, 2000, 2048, 65536, 300000, 3000000};
    struct world w;
    world_init(&w);
    w.transport = server;
    world_serve(&w, url, is_public);
    w.transport = client;
    struct rpc_client *c = world_client(&w);
    for (size_t i = 0; i < N_ELEMENTS(sizes); i++)
        echo(c, sizes[i]);
    count(c, 300, 100);
    count(c, 60, 200000);
    sum(c, 300, 100);
    sum(c, 60, 200000);
    rpc_client_free(c);
    world_done(&w);
}

static void test_sockets_and_streams_speak_to_each_other(void **state)
{
    (void)state;
    for (size_t s = 0; s < N_ELEMENTS(transports); s++) {
        for (size_t c = 0; c < N_ELEMENTS(transports); c++) {
            check_pair(transports[s], transports[c], "tcp://127.0.0.1:0", true);
            check_pair(transports[s], transports[c], "tcp://[::1]:0", false);
            check_pair(transports[s], transports[c], ipc_url(), false);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sockets_and_streams_speak_to_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
