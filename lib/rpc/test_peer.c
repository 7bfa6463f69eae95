#include "rpc/test_peer.h"

#include <arpa/inet.h>
#include <endian.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"

static const uint8_t hello_client[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};
static const uint8_t hello_server[8] = {0, 'S', 'P', 0, 0, 0x31, 0, 0};

void peer_send(struct peer *p, const void *data, size_t n)
{
    for (size_t off = 0; off < n;) {
        ssize_t k = send(p->fd, (const uint8_t *)data + off, n - off, MSG_NOSIGNAL);
        if (k <= 0)
            return; // it was cut off already: tests look at that
        off += (size_t)k;
    }
}

bool peer_recv(struct peer *p, void *data, size_t n)
{
    for (size_t off = 0; off < n;) {
        struct pollfd pfd = {.fd = p->fd, .events = POLLIN};
        assert_int_equal(poll(&pfd, 1, PEER_PATIENCE_MS), 1);
        ssize_t k = recv(p->fd, (uint8_t *)data + off, n - off, 0);
        if (k <= 0)
            return false;
        off += (size_t)k;
    }
    return true;
}

void peer_frame_head(uint8_t head[12], uint64_t n)
{
    uint64_t len = htobe64(n + 4);
    uint32_t request = htobe32(0x80000001U);
    memcpy(head, &len, sizeof len);
    memcpy(head + 8, &request, sizeof request);
}

void peer_send_message(struct peer *p, const void *body, size_t n)
{
    uint8_t head[12];
    peer_frame_head(head, n);
    peer_send(p, head, sizeof head);
    peer_send(p, body, n);
}

bool peer_recv_message(struct peer *p, size_t *ret_n)
{
    uint64_t len;
    uint32_t request;
    if (!peer_recv(p, &len, sizeof len))
        return false;
    len = be64toh(len);
    assert_true(len >= 4 && len - 4 <= sizeof p->in);
    *ret_n = (size_t)len - 4;
    return peer_recv(p, &request, sizeof request) && peer_recv(p, p->in, *ret_n);
}

static struct peer *peer_new(int fd)
{
    struct peer *p = mem_alloc(sizeof *p);
    assert_non_null(p);
    struct timeval most = {.tv_sec = PEER_PATIENCE_MS / 1000};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    p->fd = fd;
    return p;
}

struct peer *peer_dial(struct world *w)
{
    struct peer *p = peer_new(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    sa.sin_port = htons((uint16_t)atoi(strrchr(w->url, ':') + 1));
    assert_int_equal(connect(p->fd, (struct sockaddr *)&sa, sizeof sa), 0);
    uint8_t hello[8];
    peer_send(p, hello_client, sizeof hello_client);
    assert_true(peer_recv(p, hello, sizeof hello));
    assert_memory_equal(hello, hello_server, sizeof hello);
    struct err err = ERR_INIT;
    p->chan = chan_new_initiator(CHAN_LINK_CLIENT, w->server.public_key, NULL, NULL, &err);
    assert_non_null(p->chan);
    AUTO(buf_done) struct buf b;
    buf_init(&b, 4096);
    assert_int_equal(chan_start(p->chan, &b, &err), STATUS_OK);
    peer_send_message(p, b.data, b.len);
    buf_reset(&b);
    size_t n, len;
    enum chan_event ev;
    uint8_t *data;
    assert_true(peer_recv_message(p, &n));
    assert_int_equal(chan_receive(p->chan, p->in, n, &b, &ev, &data, &len, &err), STATUS_OK);
    assert_true(chan_is_ready(p->chan));
    return p;
}

int peer_listen(char *ret_url, size_t size)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof sa;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(fd, 1024), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
    snprintf(ret_url, size, "tcp://127.0.0.1:%u", (unsigned)ntohs(sa.sin_port));
    return fd;
}

struct peer *peer_accept(struct world *w, int listen_fd, size_t *ret_n)
{
    struct pollfd pfd = {.fd = listen_fd, .events = POLLIN};
    assert_int_equal(poll(&pfd, 1, PEER_PATIENCE_MS), 1);
    struct peer *p = peer_new(accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC));
    struct err err = ERR_INIT;
    p->chan = chan_new_responder(1U << CHAN_LINK_CLIENT, &w->server, NULL, &err);
    assert_non_null(p->chan);
    uint8_t hello[8];
    if (p->fd >= 0 && peer_recv(p, hello, sizeof hello)) {
        assert_memory_equal(hello, hello_client, sizeof hello);
        peer_send(p, hello_server, sizeof hello_server);
        if (peer_recv_message(p, ret_n))
            return p;
    }
    peer_free(p);
    return NULL;
}

void peer_answer(struct peer *p, size_t n, struct buf *out)
{
    enum chan_event ev;
    uint8_t *data;
    size_t len;
    struct err err = ERR_INIT;
    assert_int_equal(chan_receive(p->chan, p->in, n, out, &ev, &data, &len, &err), STATUS_OK);
    assert_true(chan_is_ready(p->chan));
}

void peer_finish(struct peer *p, size_t n)
{
    AUTO(buf_done) struct buf b;
    buf_init(&b, 4096);
    peer_answer(p, n, &b);
    peer_send_message(p, b.data, b.len);
}

void peer_free(struct peer *p)
{
    if (!p)
        return;
    if (p->fd >= 0)
        close(p->fd);
    chan_free(p->chan);
    mem_free(p);
}

size_t peer_seal(struct peer *p, const void *frames, size_t n)
{
    memcpy(p->out + PEER_RECORD_HEAD, frames, n);
    size_t size = chan_seal(p->chan, p->out, n, NULL);
    assert_true(size > 0);
    return size;
}

void peer_send_frames(struct peer *p, const struct buf *b)
{
    assert_false(b->failed);
    peer_send_message(p, p->out, peer_seal(p, b->data, b->len));
}

unsigned peer_recv_frames(struct peer *p, enum frame_type type, unsigned want, uint32_t *ret_id)
{
    unsigned found = 0;
    while (found < want) {
        size_t n, len;
        enum chan_event ev;
        uint8_t *data;
        struct err err = ERR_INIT;
        AUTO(buf_done) struct buf b;
        buf_init(&b, 4096);
        if (!peer_recv_message(p, &n))
            return found;
        assert_int_equal(chan_receive(p->chan, p->in, n, &b, &ev, &data, &len, &err), STATUS_OK);
        assert_int_equal(ev, CHAN_DATA);
        const uint8_t *at = data, *end = data + len;
        while (at < end) {
            struct frame f;
            assert_true(frame_next(&at, end, &f));
            found += f.type == type;
            if (f.type == type && ret_id)
                *ret_id = f.id;
        }
    }
    return found;
}

void peer_expect_cut(struct peer *p)
{
    size_t n;
    while (peer_recv_message(p, &n)) {
    }
}
