// A bare TCP loop: the floor. A frame is a kind, a length and so many bytes; the server has a
// thread per connection, which answers all complete frames of a read with one write. Nothing is
// encrypted, routed or limited.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bench.h"

#define READ_BYTES (256U << 10)
#define MAX_FRAME (8U << 20)

struct head {
    uint32_t n;    // bytes that follow
    uint32_t kind; // 0 echo, else message size of a stream; then n is 8: its total
};

static bool write_all(int fd, const void *p, size_t n)
{
    const char *at = p;
    while (n) {
        ssize_t k = write(fd, at, n);
        if (k <= 0)
            return false;
        at += k;
        n -= (size_t)k;
    }
    return true;
}

static bool write_frame(int fd, const struct head *h, const void *p)
{
    struct head copy = *h;
    struct iovec v[2] = {{&copy, sizeof copy}, {bench_payload(h->n), h->n}};
    if (p)
        return write_all(fd, h, sizeof *h) && write_all(fd, p, h->n);
    ssize_t k = writev(fd, v, 2);
    if (k < (ssize_t)sizeof copy)
        return false;
    size_t sent = (size_t)k - sizeof copy;
    return write_all(fd, (const char *)v[1].iov_base + sent, h->n - sent);
}

// Bytes read and not used yet.
struct input {
    int fd;
    char *data;
    size_t from, to, cap;
};

static bool input_init(struct input *in, int fd)
{
    *in = (struct input){.fd = fd, .data = malloc(READ_BYTES), .cap = READ_BYTES};
    return in->data != NULL;
}

// Until n bytes are there.
static bool input_need(struct input *in, size_t n)
{
    if (in->to - in->from >= n)
        return true;
    memmove(in->data, in->data + in->from, in->to - in->from);
    in->to -= in->from;
    in->from = 0;
    if (in->cap < n) {
        char *p = n > MAX_FRAME + sizeof(struct head) ? NULL : realloc(in->data, n);
        if (!p)
            return false;
        in->data = p;
        in->cap = n;
    }
    while (in->to < n) {
        ssize_t k = read(in->fd, in->data + in->to, in->cap - in->to);
        if (k <= 0)
            return false;
        in->to += (size_t)k;
    }
    return true;
}

static bool input_frame(struct input *in, struct head *ret)
{
    if (!input_need(in, sizeof *ret))
        return false;
    memcpy(ret, in->data + in->from, sizeof *ret);
    return input_need(in, sizeof *ret + ret->n);
}

// ---------------------------------------------------------------- server

static bool send_stream(int fd, const struct head *h, const char *p)
{
    uint64_t left;
    memcpy(&left, p, sizeof left);
    for (struct head out; left; left -= out.n) {
        out = (struct head){.n = left < h->kind ? (uint32_t)left : h->kind};
        if (!write_frame(fd, &out, NULL))
            return false;
    }
    return true;
}

static void *serve_one(void *ud)
{
    int fd = (int)(intptr_t)ud;
    struct input in;
    struct head h;
    bool ok = input_init(&in, fd);
    while (ok && input_frame(&in, &h)) {
        const char *begin = in.data + in.from;
        if (h.kind) {
            in.from += sizeof h + h.n;
            ok = send_stream(fd, &h, begin + sizeof h);
            continue;
        }
        size_t n = 0; // every complete echo that is here
        while (in.to - in.from >= sizeof h) {
            memcpy(&h, in.data + in.from, sizeof h);
            if (h.kind || in.to - in.from < sizeof h + h.n)
                break;
            in.from += sizeof h + h.n;
            n += sizeof h + h.n;
        }
        ok = write_all(fd, begin, n);
    }
    free(in.data);
    close(fd);
    return NULL;
}

static void *accept_all(void *ud)
{
    int one = 1, l = (int)(intptr_t)ud;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 64U << 10);
    for (int fd; (fd = accept4(l, NULL, NULL, SOCK_CLOEXEC)) >= 0;) {
        pthread_t t;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (pthread_create(&t, &attr, serve_one, (void *)(intptr_t)fd) != 0)
            close(fd);
    }
    return NULL;
}

static int serve(const char *argument)
{
    (void)argument;
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    pthread_t t;
    if (bind(l, (struct sockaddr *)&sa, sizeof sa) != 0 || listen(l, 1024) != 0 ||
        getsockname(l, (struct sockaddr *)&sa, &len) != 0 ||
        pthread_create(&t, NULL, accept_all, (void *)(intptr_t)l) != 0) {
        perror("server");
        return 1;
    }
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(sa.sin_port));
    bench_ready(address);
    bench_wait_stdin();
    return 0;
}

// ---------------------------------------------------------------- client

struct conn {
    int fd;
    struct input in;
};

static void bench_disconnect(void *conn)
{
    struct conn *c = conn;
    close(c->fd);
    free(c->in.data);
    free(c);
}

static void *bench_connect(const char *address, bool pooled)
{
    (void)pooled;
    struct conn *c = calloc(1, sizeof *c);
    const char *colon = strchr(address, ':');
    if (!c || !colon)
        return NULL;
    struct sockaddr_in sa = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                             .sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10))};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (input_init(&c->in, c->fd) && connect(c->fd, (struct sockaddr *)&sa, sizeof sa) == 0)
        return c;
    perror("connect");
    bench_disconnect(c);
    return NULL;
}

static bool take_echo(struct conn *c, size_t size)
{
    struct head h;
    if (!input_frame(&c->in, &h) || h.n != size)
        return false;
    c->in.from += sizeof h + h.n;
    return true;
}

static bool bench_echo(void *conn, size_t size)
{
    struct conn *c = conn;
    struct head h = {.n = (uint32_t)size};
    return write_frame(c->fd, &h, NULL) && take_echo(c, size);
}

// Large frames need a thread that writes: both sides would wait with full buffers.
struct writer {
    struct conn *c;
    size_t size;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned wanted;
    bool over;
};

static void *write_frames(void *ud)
{
    struct writer *w = ud;
    size_t each = sizeof(struct head) + w->size;
    unsigned most = (unsigned)(each > READ_BYTES ? 1 : READ_BYTES / each);
    char *block = calloc(most, each);
    struct head h = {.n = (uint32_t)w->size};
    for (unsigned i = 0; block && i < most; i++)
        memcpy(block + i * each, &h, sizeof h);
    pthread_mutex_lock(&w->lock);
    for (bool ok = block != NULL; ok;) {
        while (!w->wanted && !w->over)
            pthread_cond_wait(&w->cond, &w->lock);
        unsigned n = w->wanted < most ? w->wanted : most;
        if (n == 0)
            break;
        w->wanted -= n;
        pthread_mutex_unlock(&w->lock);
        ok = write_all(w->c->fd, block, n * each);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    free(block);
    return NULL;
}

static void want(struct writer *w, unsigned n, bool over)
{
    pthread_mutex_lock(&w->lock);
    w->wanted += n;
    w->over = over;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->lock);
}

static void bench_echo_many(void *conn, size_t size, unsigned in_flight, struct bench_run *r)
{
    struct conn *c = conn;
    struct writer w = {
        .c = c, .size = size, .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    int64_t *began = calloc(in_flight, sizeof *began);
    pthread_t t;
    if (!began || pthread_create(&t, NULL, write_frames, &w) != 0) {
        free(began);
        return;
    }
    unsigned head = 0, active = 0;
    while (active < in_flight && bench_next(r))
        began[active++] = bench_now_ns();
    want(&w, active, false);
    for (unsigned fresh = 0; active; head = (head + 1) % in_flight) {
        bool ok = take_echo(c, size);
        bench_done(r, began[head], ok);
        if (ok && bench_next(r)) {
            began[head] = bench_now_ns();
            fresh++;
        } else {
            active--;
        }
        bool more_here = c->in.to - c->in.from >= sizeof(struct head) + size;
        if (fresh && !more_here) {
            want(&w, fresh, false);
            fresh = 0;
        }
    }
    want(&w, 0, true);
    pthread_join(t, NULL);
    free(began);
}

struct stream {
    struct conn *conn;
    uint64_t left;
};

static void *bench_open(void *conn, size_t message_bytes, uint64_t total_bytes)
{
    struct stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->conn = conn;
    s->left = total_bytes;
    struct head h = {.n = sizeof total_bytes, .kind = (uint32_t)message_bytes};
    if (write_frame(s->conn->fd, &h, &total_bytes))
        return s;
    free(s);
    return NULL;
}

static int64_t bench_next_message(void *stream)
{
    struct stream *s = stream;
    struct head h;
    if (s->left == 0)
        return 0;
    if (!input_frame(&s->conn->in, &h) || h.n > s->left)
        return -1;
    s->conn->in.from += sizeof h + h.n;
    s->left -= h.n;
    return h.n;
}

static void bench_close(void *stream)
{
    struct stream *s = stream;
    if (s->left) // there is no way to say stop
        shutdown(s->conn->fd, SHUT_RDWR);
    free(s);
}

int main(int argc, char **argv)
{
    static const struct bench_system tcp = {
        .serve = serve,
        .connect = bench_connect,
        .disconnect = bench_disconnect,
        .echo = bench_echo,
        .echo_many = bench_echo_many,
        .open = bench_open,
        .next = bench_next_message,
        .close = bench_close,
    };
    return bench_main(&tcp, argc, argv);
}
