// Transports: each speaks to each, breaks without losing a message, and bears peers that claim,
// stall or talk nonsense.
#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <malloc.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/time.h"
#include "rpc/internal.h"
#include "rpc/test_util.h"

#define PATIENCE_MS 50000 // machines may be slow, or busy

static const struct transport_ops *const transports[] = {&transport_nng, &transport_epoll};

static const char *ipc_url(void)
{
    static char url[64];
    snprintf(url, sizeof url, "ipc:///tmp/cauce-transport-%d", (int)getpid());
    return url;
}

// ---------------------------------------------------------------- each with each

static struct rpc_opts patient(void)
{
    return (struct rpc_opts){.deadline_us = time_deadline_in_ms(PATIENCE_MS)};
}

static void echo(struct rpc_client *c, size_t n)
{
    struct err err = ERR_INIT;
    Note req, *ret = NULL;
    note_init(&req);
    req.data.len = n;
    req.data.data = mem_array(n, 1);
    assert_non_null(req.data.data);
    memset(req.data.data, 0x5a, n);
    struct rpc_opts o = patient();
    if (call_note(c, ECHO, &o, &req, &ret, &err) != STATUS_OK)
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
    struct rpc_opts o = patient();
    struct err err = ERR_INIT;
    struct rpc_stream *st = NULL;
    Note req;
    note_init(&req);
    req.number = n;
    req.data.len = size;
    req.data.data = mem_array(size, 1);
    assert_int_equal(rpc_stream_open(c, &test_service.methods[COUNT], &o, &req.base, &st, &err),
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
    struct rpc_opts o = patient();
    struct err err = ERR_INIT;
    struct rpc_stream *st = NULL;
    ProtobufCMessage *m = NULL;
    Note note;
    note_init(&note);
    note.number = 3;
    note.data.len = size;
    note.data.data = mem_array(size, 1);
    assert_int_equal(rpc_stream_open(c, &test_service.methods[SUM], &o, NULL, &st, &err),
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
    print_message("%s calls %s at %s\n", client->name, server->name, url);
    world_init(&w);
    w.transport = server;
    world_serve(&w, url, is_public);
    w.transport = client;
    struct rpc_client *c = world_client(&w);
    for (size_t i = 0; i < N_ELEMENTS(sizes); i++)
        echo(c, sizes[i]);
    count(c, 100, 100);
    count(c, 20, 200000);
    sum(c, 100, 100);
    sum(c, 20, 200000);
    rpc_client_free(c);
    world_done(&w);
}

static void test_each_transport_speaks_to_each(void **state)
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

// ---------------------------------------------------------------- a transport by itself

// What a transport told of. With echo, messages go back to where they came from.
struct seen {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    const struct transport_ops *ops;
    struct transport *t;
    bool echo, refuse;
    unsigned n_attached, n_detached, n_received, n_more, n_sent, n_failed;
    size_t bytes, last_size;
    uint32_t last_pipe;
    char why[128];
};

static bool seen_attach(void *ud, uint32_t pipe)
{
    struct seen *s = ud;
    pthread_mutex_lock(&s->lock);
    s->n_attached++;
    s->last_pipe = pipe;
    bool ok = !s->refuse;
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
    return ok;
}

static void seen_detach(void *ud, uint32_t pipe)
{
    (void)pipe;
    struct seen *s = ud;
    pthread_mutex_lock(&s->lock);
    s->n_detached++;
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
}

static void seen_receive(void *ud, uint32_t pipe, struct transport_msg *m, bool more)
{
    struct seen *s = ud;
    pthread_mutex_lock(&s->lock);
    s->n_received++;
    s->n_more += more;
    s->last_size = s->ops->msg_size(m);
    s->bytes += s->last_size;
    bool echo = s->echo;
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
    if (echo)
        s->ops->send(s->t, pipe, m);
    else
        s->ops->msg_free(m);
}

static void seen_sent(void *ud, uint32_t pipe)
{
    (void)pipe;
    struct seen *s = ud;
    pthread_mutex_lock(&s->lock);
    s->n_sent++;
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
}

static void seen_failed(void *ud, const char *why)
{
    struct seen *s = ud;
    pthread_mutex_lock(&s->lock);
    s->n_failed++;
    snprintf(s->why, sizeof s->why, "%s", why);
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
}

static const struct transport_events seen_server = {
    .attach = seen_attach, .detach = seen_detach, .receive = seen_receive};
static const struct transport_events seen_client = {.attach = seen_attach,
                                                    .detach = seen_detach,
                                                    .receive = seen_receive,
                                                    .sent = seen_sent,
                                                    .failed = seen_failed};

static void seen_init(struct seen *s)
{
    *s = (struct seen){.ops = &transport_epoll};
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->cond, &attr);
    pthread_condattr_destroy(&attr);
}

static void seen_done(struct seen *s)
{
    s->ops->free(s->t);
    pthread_cond_destroy(&s->cond);
    pthread_mutex_destroy(&s->lock);
}

// Until *n reaches at_least.
static void seen_wait(struct seen *s, const unsigned *n, unsigned at_least)
{
    int64_t until_us = time_deadline_in_ms(PATIENCE_MS);
    struct timespec ts = {.tv_sec = until_us / 1000000, .tv_nsec = until_us % 1000000 * 1000};
    pthread_mutex_lock(&s->lock);
    int e = 0;
    while (*n < at_least && e == 0)
        e = pthread_cond_timedwait(&s->cond, &s->lock, &ts);
    unsigned got = *n;
    pthread_mutex_unlock(&s->lock);
    assert_in_range(got, at_least, UINT_MAX);
}

static unsigned seen_get(struct seen *s, const unsigned *n)
{
    pthread_mutex_lock(&s->lock);
    unsigned got = *n;
    pthread_mutex_unlock(&s->lock);
    return got;
}

static const char *const tcp_url = "tcp://127.0.0.1:0";

static void serve(struct seen *s, const char *url, char *ret_url)
{
    struct err err = ERR_INIT;
    seen_init(s);
    if (s->ops->listen(url, &seen_server, s, ret_url, RPC_URL_SIZE, &s->t, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

static void dial(struct seen *s, const char *url)
{
    struct err err = ERR_INIT;
    seen_init(s);
    if (s->ops->dial(url, &seen_client, s, &s->t, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
}

// ---------------------------------------------------------------- peers made by hand

static int raw_connect(const char *url)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    bool is_tcp = strncmp(url, "tcp", 3) == 0;
    int fd = socket(is_tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    if (is_tcp) {
        in.sin_port = htons((uint16_t)atoi(strrchr(url, ':') + 1));
        assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof in), 0);
    } else {
        snprintf(un.sun_path, sizeof un.sun_path, "%s", url + strlen("ipc://"));
        assert_int_equal(connect(fd, (struct sockaddr *)&un, sizeof un), 0);
    }
    return fd;
}

static void raw_send(int fd, const void *data, size_t n)
{
    for (size_t off = 0; off < n;) {
        ssize_t k = send(fd, (const uint8_t *)data + off, n - off, MSG_NOSIGNAL);
        if (k <= 0)
            return; // it was cut off already, which is looked at elsewhere
        off += (size_t)k;
    }
}

#define HELLO "\0SP\0\0\x30\0\0"

static void raw_recv(int fd, void *data, size_t n)
{
    for (size_t off = 0; off < n;) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&pfd, 1, PATIENCE_MS), 1);
        ssize_t k = recv(fd, (uint8_t *)data + off, n - off, 0);
        assert_true(k > 0);
        off += (size_t)k;
    }
}

// Until the other side closes.
static void raw_expect_end(int fd)
{
    uint8_t junk[4096];
    for (;;) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&pfd, 1, PATIENCE_MS), 1);
        if (recv(fd, junk, sizeof junk, 0) <= 0)
            return;
    }
}

// The head of a message of n bytes; returns its size.
static size_t raw_head(uint8_t to[16], bool is_tcp, uint64_t n)
{
    uint64_t len = htobe64(n + 4);
    uint32_t request = htobe32(0x80000001U);
    size_t off = 0;
    if (!is_tcp)
        to[off++] = 1;
    memcpy(to + off, &len, 8);
    memcpy(to + off + 8, &request, 4);
    return off + 12;
}

static void raw_reset(int fd)
{
    struct linger now = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

static void test_bad_bytes_end_their_connection_only(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
    } bad[] = {
#define BYTES(s) {s, sizeof(s) - 1}
        BYTES("GET / HTTP/1.1\r\n\r\n"),
        BYTES("\0SP\1\0\x30\0\0"),                 // another version
        BYTES("\0SP\0\0\x31\0\0"),                 // a server
        BYTES("\0SP\0\0\x20\0\0"),                 // nng's publisher
        BYTES("\0SP\0\0\x30\0\1"),                 // not zero at the end
        BYTES(HELLO "\0\0\0\0\0\0\0\3\x80\0\0\1"), // shorter than its request id
        BYTES(HELLO "\0\0\0\0\0\0\0\0\x80\0\0\1"),
        BYTES(HELLO "\0\0\0\0\0\0\0\x05\0\0\0\1a"),                // a hop, not a request
        BYTES(HELLO "\0\0\0\0\x40\0\0\0\x80\0\0\1"),               // 1 GiB
        BYTES(HELLO "\xff\xff\xff\xff\xff\xff\xff\xff\x80\0\0\1"), // all there is
        BYTES(HELLO "\0\0\0\0\0\0\x20\0\x80\0\0\1"),               // 8 KiB before a first answer
#undef BYTES
    };
    struct seen s;
    char url[RPC_URL_SIZE];
    serve(&s, tcp_url, url);
    int good = raw_connect(url);
    raw_send(good, HELLO, 8);
    for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
        int fd = raw_connect(url);
        raw_send(fd, bad[i].bytes, bad[i].n);
        raw_expect_end(fd);
        close(fd);
        seen_wait(&s, &s.n_detached, (unsigned)i + 1);
    }
    assert_int_equal(seen_get(&s, &s.n_received), 0);
    raw_send(good, "\0\0\0\0\0\0\0\5\x80\0\0\1!", 13);
    seen_wait(&s, &s.n_received, 1);
    assert_int_equal(s.last_size, 1);
    assert_int_equal(seen_get(&s, &s.n_detached), N_ELEMENTS(bad));
    close(good);
    seen_done(&s);
    assert_int_equal(transport_messages(), 0);
}

static void test_ipc_wants_its_type_byte(void **state)
{
    (void)state;
    struct seen s;
    serve(&s, ipc_url(), NULL);
    int fd = raw_connect(ipc_url());
    raw_send(fd, HELLO "\2\0\0\0\0\0\0\0\5\x80\0\0\1!", 8 + 14);
    raw_expect_end(fd);
    close(fd);
    fd = raw_connect(ipc_url());
    raw_send(fd, HELLO "\1\0\0\0\0\0\0\0\5\x80\0\0\1!", 8 + 14);
    seen_wait(&s, &s.n_received, 1);
    close(fd);
    seen_done(&s);
}

// However the bytes are cut, the messages are the same.
static void test_messages_arrive_from_any_pieces(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 5, 100, 4000, 0};
    static const size_t pieces[] = {1, 3, 13, 1000, 100000};
    struct seen s;
    char url[RPC_URL_SIZE];
    serve(&s, tcp_url, url);
    uint8_t all[8 + 6 * 16 + 5000];
    memcpy(all, HELLO, 8);
    size_t n = 8;
    unsigned n_want = 0;
    for (size_t i = 0; i < N_ELEMENTS(sizes); i++) {
        n += raw_head(all + n, true, sizes[i]);
        memset(all + n, 'x', sizes[i]);
        n += sizes[i];
    }
    for (size_t i = 0; i < N_ELEMENTS(pieces); i++) {
        int fd = raw_connect(url);
        for (size_t off = 0; off < n; off += pieces[i])
            raw_send(fd, all + off, n - off < pieces[i] ? n - off : pieces[i]);
        n_want += N_ELEMENTS(sizes);
        seen_wait(&s, &s.n_received, n_want);
        close(fd);
    }
    assert_int_equal(s.bytes, 4106 * N_ELEMENTS(pieces));
    assert_true(s.n_more <= (N_ELEMENTS(sizes) - 1) * N_ELEMENTS(pieces));
    seen_done(&s);
    assert_int_equal(transport_messages(), 0);
}

// ---------------------------------------------------------------- many, and broken

#define N_CLAIMS 8
#define RECORD_MAX (256U << 10)

static void test_claims_cost_what_was_sent(void **state)
{
    (void)state;
    struct seen s;
    char url[RPC_URL_SIZE];
    serve(&s, tcp_url, url);
    s.echo = true;
    uint8_t head[16];
    int fds[N_CLAIMS];
    for (unsigned i = 0; i < N_CLAIMS; i++) { // 1 GiB: refused outright
        fds[i] = raw_connect(url);
        raw_send(fds[i], HELLO, 8);
        raw_send(fds[i], head, raw_head(head, true, 1U << 30));
        raw_expect_end(fds[i]);
        close(fds[i]);
    }
    seen_wait(&s, &s.n_detached, N_CLAIMS);
    assert_int_equal(transport_messages(), 0);
    // As much as a record may have, of a peer that was answered: memory for what came of it.
    struct mallinfo2 before = mallinfo2();
    for (unsigned i = 0; i < N_CLAIMS; i++) {
        fds[i] = raw_connect(url);
        raw_send(fds[i], HELLO, 8);
        raw_send(fds[i], head, raw_head(head, true, 1));
        raw_send(fds[i], "a", 1);
        uint8_t answer[8 + 12 + 1];
        raw_recv(fds[i], answer, sizeof answer);
        raw_send(fds[i], head, raw_head(head, true, RECORD_MAX));
        raw_send(fds[i], "b", 1);
        raw_send(fds[i], "c", 1);
    }
    for (int64_t until_us = time_deadline_in_ms(PATIENCE_MS);
         transport_messages() < N_CLAIMS && time_mono_us() < until_us;)
        poll(NULL, 0, 1);
    assert_int_equal(transport_messages(), N_CLAIMS);
    int64_t grown = (int64_t)mallinfo2().uordblks - (int64_t)before.uordblks;
    assert_true(grown < N_CLAIMS * 40000); // sanitizers count nothing
    for (unsigned i = 0; i < N_CLAIMS; i++)
        close(fds[i]);
    seen_wait(&s, &s.n_detached, 2 * N_CLAIMS);
    assert_int_equal(transport_messages(), 0);
    seen_done(&s);
}

static unsigned n_open_files(void)
{
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    unsigned n = 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void test_connections_broken_amid_messages_leave_nothing(void **state)
{
    (void)state;
    enum { N = 200 };
    struct seen s;
    char url[RPC_URL_SIZE];
    unsigned n_files = n_open_files();
    serve(&s, tcp_url, url);
    for (unsigned i = 0; i < N; i++) {
        uint8_t bytes[8 + 16 + 2000] = HELLO;
        size_t n = 8 + raw_head(bytes + 8, true, 3000);
        int fd = raw_connect(url);
        raw_send(fd, bytes, i % 4 == 0 ? i % 24 : n + 10 * i); // in the hello, the head, the body
        if (i % 2)
            raw_reset(fd);
        else
            close(fd);
    }
    seen_wait(&s, &s.n_detached, seen_get(&s, &s.n_attached));
    int fd = raw_connect(url);
    raw_send(fd, HELLO "\0\0\0\0\0\0\0\5\x80\0\0\1!", 21);
    seen_wait(&s, &s.n_received, 1);
    close(fd);
    seen_done(&s);
    assert_int_equal(s.n_received, 1);
    assert_int_equal(s.n_attached, s.n_detached);
    assert_int_equal(transport_messages(), 0);
    assert_in_range(n_open_files(), 0, n_files);
}

static rlim_t raise_files(rlim_t want)
{
    struct rlimit r;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &r), 0);
    if (r.rlim_cur < want) {
        r.rlim_cur = want < r.rlim_max ? want : r.rlim_max;
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &r), 0);
    }
    return r.rlim_cur;
}

static void test_idle_connections_are_small(void **state)
{
    (void)state;
    enum { N = 1000 };
    unsigned n = raise_files(2 * N + 100) >= 2 * N + 100 ? N : 400;
    static int fds[N];
    struct seen s;
    char url[RPC_URL_SIZE];
    serve(&s, tcp_url, url);
    struct mallinfo2 before = mallinfo2();
    for (unsigned i = 0; i < n; i++) {
        fds[i] = raw_connect(url);
        raw_send(fds[i], HELLO, 8);
    }
    seen_wait(&s, &s.n_attached, n);
    int64_t each = ((int64_t)mallinfo2().uordblks - (int64_t)before.uordblks) / n;
    print_message("%u idle connections: %lld bytes each in the transport\n", n, (long long)each);
    assert_true(each < 1024);
    for (unsigned i = 0; i < n; i++)
        raw_send(fds[i], "\0\0\0\0\0\0\0\5\x80\0\0\1!", 13);
    seen_wait(&s, &s.n_received, n);
    assert_int_equal(seen_get(&s, &s.n_detached), 0);
    seen_done(&s); // ends them
    for (unsigned i = 0; i < n; i++)
        close(fds[i]);
    assert_int_equal(s.n_detached, n);
}

// What a peer does not read waits in a queue that has an end.
static void test_peer_that_reads_nothing_is_cut_off(void **state)
{
    (void)state;
    struct seen s;
    char url[RPC_URL_SIZE];
    serve(&s, tcp_url, url);
    int fd = raw_connect(url);
    raw_send(fd, HELLO, 8);
    seen_wait(&s, &s.n_attached, 1);
    long most = 0;
    for (unsigned i = 0; i < 1000 && !seen_get(&s, &s.n_detached); i++) {
        struct transport_msg *m = s.ops->msg_new(100000);
        assert_non_null(m);
        memset(s.ops->msg_data(m), 0, 100000);
        s.ops->send(s.t, s.last_pipe, m);
        most = transport_messages() > most ? transport_messages() : most;
    }
    seen_wait(&s, &s.n_detached, 1);
    assert_in_range(most, 1, 65);
    close(fd);
    seen_done(&s);
    assert_int_equal(transport_messages(), 0);
}

static void test_accepting_goes_on_when_descriptors_are_back(void **state)
{
    (void)state;
    enum { N = 20 };
    int fds[N];
    struct seen s;
    struct rlimit had, none;
    char url[RPC_URL_SIZE];
    serve(&s, tcp_url, url);
    for (unsigned i = 0; i < N; i++) // the loops are all there, and so is what they need
        close(raw_connect(url));
    seen_wait(&s, &s.n_detached, N);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    in.sin_port = htons((uint16_t)atoi(strrchr(url, ':') + 1));
    for (unsigned i = 0; i < N; i++)
        assert_true((fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &had), 0);
    none = had;
    none.rlim_cur = 3; // what is open stays open
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(connect(fds[i], (struct sockaddr *)&in, sizeof in), 0); // the kernel's
        raw_send(fds[i], HELLO, 8);
    }
    assert_int_equal(seen_get(&s, &s.n_attached), N);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &had), 0);
    seen_wait(&s, &s.n_attached, 2 * N);
    for (unsigned i = 0; i < N; i++)
        close(fds[i]);
    seen_done(&s);
}

// ---------------------------------------------------------------- dialling

static int raw_listen(uint16_t *ret_port)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof in;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &len), 0);
    *ret_port = ntohs(in.sin_port);
    return fd;
}

static void expect_failure(struct seen *s, const char *why)
{
    seen_wait(s, &s->n_failed, 1);
    pthread_mutex_lock(&s->lock);
    if (!strstr(s->why, why))
        fail_msg("it said: %s", s->why);
    pthread_mutex_unlock(&s->lock);
    assert_int_equal(s->n_attached, 0);
    seen_done(s);
}

static void test_failures_to_dial_say_why(void **state)
{
    (void)state;
    uint16_t port;
    char url[RPC_URL_SIZE];
    struct seen s;
    int fd = raw_listen(&port);
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", port);
    dial(&s, url);
    int peer = accept(fd, NULL, NULL);
    raw_send(peer, "220 smtp\r\n", 10);
    expect_failure(&s, "not a server of ours");
    close(peer);
    close(fd);
    fd = raw_listen(&port); // another: it dialled the first again
    snprintf(url, sizeof url, "tcp://127.0.0.1:%u", port);
    dial(&s, url);
    close(accept(fd, NULL, NULL));
    expect_failure(&s, "closed the connection at once");
    close(fd);
    dial(&s, "ipc:///tmp/cauce-no-such-socket/a");
    expect_failure(&s, "No such file");
    dial(&s, "tcp://127.0.0.1:1"); // nobody's: it needs root
    expect_failure(&s, "refused");
}

static void test_names_are_looked_up(void **state)
{
    (void)state;
    struct seen server, s;
    char url[RPC_URL_SIZE], named[RPC_URL_SIZE];
    serve(&server, tcp_url, url);
    snprintf(named, sizeof named, "tcp4://localhost%s", strrchr(url, ':'));
    dial(&s, named);
    seen_wait(&s, &s.n_attached, 1);
    seen_done(&s);
    // Freed while the name is being looked up.
    for (int i = 0; i < 20; i++) {
        dial(&s, named);
        seen_done(&s);
    }
    seen_done(&server);
}

static void test_dials_again_after_a_while(void **state)
{
    (void)state;
    struct seen server, s;
    char url[RPC_URL_SIZE];
    serve(&server, tcp_url, url);
    dial(&s, url);
    s.ops->set_backoff(s.t, 200);
    seen_wait(&s, &s.n_attached, 1);
    seen_wait(&server, &server.n_attached, 1);
    int64_t dropped_us = time_mono_us();
    server.ops->drop(server.t, server.last_pipe);
    seen_wait(&s, &s.n_attached, 2);
    assert_true(time_mono_us() - dropped_us >= 100000); // at least half
    assert_int_equal(seen_get(&s, &s.n_failed), 0);
    seen_done(&s);
    seen_done(&server);
}

static void test_addresses(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "tcp://", "tcp://127.0.0.1",      "tcp://127.0.0.1:", "tcp://127.0.0.1:65536", "tcp://[::1",
        "ipc://", "tcp://127.0.0.1:80/x", "udp://1.2.3.4:5",  "tcp://[::1]7",
    };
    struct err err = ERR_INIT;
    struct transport *t = NULL;
    for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
        assert_int_equal(transport_epoll.dial(bad[i], &seen_client, NULL, &t, &err),
                         STATUS_INVALID_ARGUMENT);
        assert_int_equal(transport_epoll.listen(bad[i], &seen_server, NULL, NULL, 0, &t, &err),
                         STATUS_INVALID_ARGUMENT);
    }
    struct seen s, c;
    char url[RPC_URL_SIZE], again[RPC_URL_SIZE];
    serve(&s, "tcp://*:0", url);
    assert_non_null(strstr(url, "tcp://*:"));
    assert_int_equal(transport_epoll.listen(url, &seen_server, NULL, NULL, 0, &t, &err),
                     STATUS_ALREADY_EXISTS);
    snprintf(again, sizeof again, "tcp://127.0.0.1%s", strrchr(url, ':'));
    dial(&c, again);
    seen_wait(&s, &s.n_attached, 1);
    struct transport_addr a = {0};
    assert_true(s.ops->peer(s.t, s.last_pipe, &a));
    assert_int_equal(a.family, 4);
    assert_memory_equal(a.bytes, "\x7f\0\0\1", 4);
    assert_false(s.ops->peer(s.t, s.last_pipe + 1, &a));
    seen_done(&c);
    seen_done(&s);
}

// The file of a process that is gone is no obstacle; that of one that lives is.
static void test_ipc_paths_are_taken_over_from_the_dead(void **state)
{
    (void)state;
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    snprintf(un.sun_path, sizeof un.sun_path, "%s", ipc_url() + strlen("ipc://"));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof un), 0);
    close(fd);
    struct seen s;
    struct err err = ERR_INIT;
    struct transport *t = NULL;
    serve(&s, ipc_url(), NULL);
    assert_int_equal(transport_epoll.listen(ipc_url(), &seen_server, NULL, NULL, 0, &t, &err),
                     STATUS_ALREADY_EXISTS);
    struct seen c;
    dial(&c, ipc_url());
    seen_wait(&s, &s.n_attached, 1);
    seen_done(&c);
    seen_done(&s);
    assert_int_equal(access(un.sun_path, F_OK), -1);
}

// ---------------------------------------------------------------- stopping while busy

static void push(struct seen *s, size_t n)
{
    struct transport_msg *m = s->ops->msg_new(n);
    assert_non_null(m);
    memset(s->ops->msg_data(m), 0, n);
    s->ops->send(s->t, s->last_pipe, m);
}

// Messages that go to and fro for ever, until either side is freed.
static void test_stops_while_busy(void **state)
{
    (void)state;
    enum { N = 3, ROUNDS = 6 };
    for (int round = 0; round < ROUNDS; round++) {
        struct seen s, c[N];
        char url[RPC_URL_SIZE];
        serve(&s, round % 2 ? ipc_url() : tcp_url, url);
        s.echo = true;
        for (unsigned i = 0; i < N; i++) {
            dial(&c[i], url);
            seen_wait(&c[i], &c[i].n_attached, 1);
            push(&c[i], 10);
            seen_wait(&c[i], &c[i].n_received, 1);
            pthread_mutex_lock(&c[i].lock);
            c[i].echo = true;
            pthread_mutex_unlock(&c[i].lock);
            push(&c[i], 100);
            push(&c[i], 100000);
        }
        for (unsigned i = 0; i < N; i++)
            seen_wait(&c[i], &c[i].n_received, 10);
        if (round % 3)
            seen_done(&s);
        for (unsigned i = 0; i < N; i++)
            seen_done(&c[i]);
        if (round % 3 == 0)
            seen_done(&s);
    }
    assert_int_equal(transport_messages(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_transport_speaks_to_each),
        cmocka_unit_test(test_bad_bytes_end_their_connection_only),
        cmocka_unit_test(test_ipc_wants_its_type_byte),
        cmocka_unit_test(test_messages_arrive_from_any_pieces),
        cmocka_unit_test(test_claims_cost_what_was_sent),
        cmocka_unit_test(test_connections_broken_amid_messages_leave_nothing),
        cmocka_unit_test(test_idle_connections_are_small),
        cmocka_unit_test(test_peer_that_reads_nothing_is_cut_off),
        cmocka_unit_test(test_accepting_goes_on_when_descriptors_are_back),
        cmocka_unit_test(test_failures_to_dial_say_why),
        cmocka_unit_test(test_names_are_looked_up),
        cmocka_unit_test(test_dials_again_after_a_while),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_ipc_paths_are_taken_over_from_the_dead),
        cmocka_unit_test(test_stops_while_busy),
    };
    return cmocka_run_group_tests(tests, NULL, group_done);
}
