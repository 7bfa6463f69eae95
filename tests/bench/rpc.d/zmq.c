// libzmq with CURVE: ROUTER serves, DEALER asks; one I/O thread on each side, which is libzmq's
// default. There are no calls in libzmq: a message is a payload, which comes back, or says how many
// messages of which size are wanted. The reader of a stream asks for some messages ahead and for
// one more with each that it takes, because a ROUTER drops what its queue cannot hold.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "bench.h"

#define KEY_TEXT 41
#define STREAM_AHEAD_BYTES (4U << 20)
#define STREAM_AHEAD_MAX 500 // half of a socket's default high-water mark
#define TIMEOUT_MS 30000
#define MAX_MESSAGE (8U << 20)

struct wanted {
    char kind; // 'S'
    uint32_t message_bytes, n;
};

// ---------------------------------------------------------------- server

static bool answer(void *sock, zmq_msg_t *id, zmq_msg_t *m)
{
    struct wanted w;
    if (zmq_msg_size(m) == sizeof w && *(char *)zmq_msg_data(m) == 'S') {
        memcpy(&w, zmq_msg_data(m), sizeof w);
        bool ok = w.message_bytes <= MAX_MESSAGE;
        for (uint32_t i = 0; ok && i < w.n; i++) {
            zmq_msg_t to;
            zmq_msg_init(&to);
            zmq_msg_copy(&to, id);
            ok = zmq_msg_send(&to, sock, ZMQ_SNDMORE) >= 0 &&
                 zmq_send(sock, bench_payload(w.message_bytes), w.message_bytes, 0) >= 0;
            zmq_msg_close(&to);
        }
        return ok;
    }
    return zmq_msg_send(id, sock, ZMQ_SNDMORE) >= 0 && zmq_msg_send(m, sock, 0) >= 0;
}

static void serve_socket(void *sock)
{
    zmq_pollitem_t items[] = {{.socket = sock, .events = ZMQ_POLLIN},
                              {.fd = STDIN_FILENO, .events = ZMQ_POLLIN}};
    while (zmq_poll(items, 2, -1) >= 0 && !items[1].revents) {
        for (;;) {
            zmq_msg_t id, m;
            zmq_msg_init(&id);
            zmq_msg_init(&m);
            bool got = zmq_msg_recv(&id, sock, ZMQ_DONTWAIT) >= 0 && zmq_msg_recv(&m, sock, 0) >= 0;
            if (got && !answer(sock, &id, &m))
                fprintf(stderr, "answer: %s\n", zmq_strerror(zmq_errno()));
            zmq_msg_close(&m);
            zmq_msg_close(&id);
            if (!got)
                break;
        }
    }
}

static int serve(const char *argument)
{
    (void)argument;
    void *ctx = zmq_ctx_new();
    void *sock = zmq_socket(ctx, ZMQ_ROUTER);
    char public_key[KEY_TEXT], secret_key[KEY_TEXT], endpoint[128], address[256];
    int one = 1, none = 0;
    size_t size = sizeof endpoint;
    if (zmq_curve_keypair(public_key, secret_key) != 0 ||
        zmq_setsockopt(sock, ZMQ_CURVE_SERVER, &one, sizeof one) != 0 ||
        zmq_setsockopt(sock, ZMQ_CURVE_SECRETKEY, secret_key, KEY_TEXT) != 0 ||
        zmq_setsockopt(sock, ZMQ_LINGER, &none, sizeof none) != 0 ||
        zmq_bind(sock, "tcp://127.0.0.1:*") != 0 ||
        zmq_getsockopt(sock, ZMQ_LAST_ENDPOINT, endpoint, &size) != 0) {
        fprintf(stderr, "server: %s\n", zmq_strerror(zmq_errno()));
        return 1;
    }
    snprintf(address, sizeof address, "%s,%s", endpoint, public_key);
    bench_ready(address);
    serve_socket(sock);
    zmq_close(sock);
    zmq_ctx_term(ctx);
    return 0;
}

// ---------------------------------------------------------------- client

struct conn {
    void *sock;
};
struct stream {
    struct conn *conn;
    uint32_t message_bytes;
    uint64_t left, unasked; // messages
};

static void *context(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static void *ctx;
    pthread_mutex_lock(&lock);
    if (!ctx) {
        ctx = zmq_ctx_new();
        zmq_ctx_set(ctx, ZMQ_MAX_SOCKETS, 4096);
    }
    void *c = ctx;
    pthread_mutex_unlock(&lock);
    return c;
}

static bool bench_echo(void *conn, size_t size)
{
    struct conn *c = conn;
    zmq_msg_t m;
    zmq_msg_init(&m);
    bool ok = zmq_send(c->sock, bench_payload(size), size, 0) >= 0 &&
              zmq_msg_recv(&m, c->sock, 0) >= 0 && zmq_msg_size(&m) == size;
    zmq_msg_close(&m);
    return ok;
}

static void bench_disconnect(void *conn)
{
    struct conn *c = conn;
    zmq_close(c->sock);
    free(c);
}

static void *bench_connect(const char *address, bool pooled)
{
    (void)pooled;
    struct conn *c = calloc(1, sizeof *c);
    char endpoint[128], public_key[KEY_TEXT], secret_key[KEY_TEXT];
    const char *key = strchr(address, ',');
    if (!c || !key)
        return NULL;
    snprintf(endpoint, sizeof endpoint, "%.*s", (int)(key - address), address);
    int none = 0, timeout = TIMEOUT_MS;
    c->sock = zmq_socket(context(), ZMQ_DEALER);
    if (c->sock && zmq_curve_keypair(public_key, secret_key) == 0 &&
        zmq_setsockopt(c->sock, ZMQ_CURVE_SERVERKEY, key + 1, KEY_TEXT) == 0 &&
        zmq_setsockopt(c->sock, ZMQ_CURVE_PUBLICKEY, public_key, KEY_TEXT) == 0 &&
        zmq_setsockopt(c->sock, ZMQ_CURVE_SECRETKEY, secret_key, KEY_TEXT) == 0 &&
        zmq_setsockopt(c->sock, ZMQ_LINGER, &none, sizeof none) == 0 &&
        zmq_setsockopt(c->sock, ZMQ_RCVTIMEO, &timeout, sizeof timeout) == 0 &&
        zmq_connect(c->sock, endpoint) == 0 && bench_echo(c, 16))
        return c;
    fprintf(stderr, "connect to %s: %s\n", endpoint, zmq_strerror(zmq_errno()));
    bench_disconnect(c);
    return NULL;
}

// Replies come in order: the oldest call is the one that ended.
static void bench_echo_many(void *conn, size_t size, unsigned in_flight, struct bench_run *r)
{
    struct conn *c = conn;
    int64_t *began = calloc(in_flight, sizeof *began);
    unsigned head = 0, active = 0;
    const void *payload = bench_payload(size);
    while (began && active < in_flight && bench_next(r)) {
        began[active++] = bench_now_ns();
        zmq_send(c->sock, payload, size, 0);
    }
    while (active) {
        zmq_msg_t m;
        zmq_msg_init(&m);
        bool ok = zmq_msg_recv(&m, c->sock, 0) >= 0 && zmq_msg_size(&m) == size;
        zmq_msg_close(&m);
        bench_done(r, began[head], ok);
        if (bench_next(r)) {
            began[head] = bench_now_ns();
            zmq_send(c->sock, payload, size, 0);
        } else {
            active--;
        }
        head = (head + 1) % in_flight;
    }
    free(began);
}

static bool ask(struct stream *s, uint64_t n)
{
    if (n > s->unasked)
        n = s->unasked;
    s->unasked -= n;
    struct wanted w;
    memset(&w, 0, sizeof w);
    w = (struct wanted){.kind = 'S', .message_bytes = s->message_bytes, .n = (uint32_t)n};
    return n == 0 || zmq_send(s->conn->sock, &w, sizeof w, 0) >= 0;
}

static void *bench_open(void *conn, size_t message_bytes, uint64_t total_bytes)
{
    struct stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->conn = conn;
    s->message_bytes = (uint32_t)message_bytes;
    s->left = s->unasked = total_bytes / message_bytes;
    unsigned ahead = (unsigned)(STREAM_AHEAD_BYTES / message_bytes) + 1;
    if (ask(s, ahead < STREAM_AHEAD_MAX ? ahead : STREAM_AHEAD_MAX))
        return s;
    free(s);
    return NULL;
}

static int64_t bench_next_message(void *stream)
{
    struct stream *s = stream;
    if (s->left == 0)
        return 0;
    zmq_msg_t m;
    zmq_msg_init(&m);
    int64_t n = zmq_msg_recv(&m, s->conn->sock, 0) >= 0 ? (int64_t)zmq_msg_size(&m) : -1;
    zmq_msg_close(&m);
    s->left--;
    return ask(s, 1) ? n : -1;
}

static void bench_close(void *stream)
{
    struct stream *s = stream;
    for (s->unasked = s->unasked < s->left ? s->left - s->unasked : 0; s->unasked; s->unasked--) {
        zmq_msg_t m; // what was asked for and not taken
        zmq_msg_init(&m);
        bool ok = zmq_msg_recv(&m, s->conn->sock, 0) >= 0;
        zmq_msg_close(&m);
        if (!ok)
            break;
    }
    free(s);
}

int main(int argc, char **argv)
{
    static const struct bench_system zmq = {
        .serve = serve,
        .connect = bench_connect,
        .disconnect = bench_disconnect,
        .echo = bench_echo,
        .echo_many = bench_echo_many,
        .open = bench_open,
        .next = bench_next_message,
        .close = bench_close,
    };
    return bench_main(&zmq, argc, argv);
}
