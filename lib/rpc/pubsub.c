// PUB and SUB sockets. nng drops what a slow peer does not take, the oldest first, on both sides;
// its queues of 16 and 128 messages lose most of a burst and are raised to hold 2,048.
#include <nng/nng.h>
#include <nng/protocol/pubsub0/pub.h>
#include <nng/protocol/pubsub0/sub.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "rpc/nng_guard.h"
#include "rpc/pubsub.h"
#include "rpc/rpc.h"

#define QUEUE_MESSAGES 2048
#define MAX_PEERS 1024
#define RECONNECT_MIN_MS 50
#define RECONNECT_MAX_MS 2000

static enum status failed(struct err *err, int rv, const char *what, const char *url)
{
    enum status s = rv == NNG_ENOMEM       ? STATUS_RESOURCE_EXHAUSTED
                    : rv == NNG_EADDRINUSE ? STATUS_ALREADY_EXISTS
                    : rv == NNG_EINVAL || rv == NNG_EADDRINVAL || rv == NNG_ENOTSUP
                        ? STATUS_INVALID_ARGUMENT
                    : rv == NNG_EPERM ? STATUS_PERMISSION_DENIED
                                      : STATUS_UNAVAILABLE;
    return err_set(err, s, "%s %s: %s", what, url, nng_strerror(rv));
}

// ---------------------------------------------------------------- publisher

struct pubsub_publisher {
    nng_socket sock;
    nng_listener listener;
    atomic_uint n_peers;
};

// Bytes are all that a peer can take from us, and it costs a queue: so their number is limited.
static void on_peer(nng_pipe pipe, nng_pipe_ev ev, void *ud)
{
    struct pubsub_publisher *p = ud;
    if (ev == NNG_PIPE_EV_REM_POST)
        atomic_fetch_sub(&p->n_peers, 1);
    else if (atomic_fetch_add(&p->n_peers, 1) >= MAX_PEERS)
        nng_pipe_close(pipe);
}

// Port 0 has become a real one, which nng tells as an address in network order.
static void real_url(const struct pubsub_publisher *p, const char *url, char *ret)
{
    nng_sockaddr sa;
    const char *colon = strrchr(url, ':');
    str_copy(ret, RPC_URL_SIZE, url);
    if (!str_starts_with(url, "tcp://") || !colon ||
        nng_listener_get_addr(p->listener, NNG_OPT_LOCADDR, &sa) != 0)
        return;
    uint16_t port = sa.s_family == NNG_AF_INET6 ? sa.s_in6.sa_port : sa.s_in.sa_port;
    uint8_t be[2];
    memcpy(be, &port, sizeof be);
    snprintf(ret, RPC_URL_SIZE, "%.*s:%u", (int)(colon - url), url, (unsigned)(be[0] << 8 | be[1]));
}

static int publisher_setup(struct pubsub_publisher *p)
{
    int rv = nng_socket_set_int(p->sock, NNG_OPT_SENDBUF, QUEUE_MESSAGES);
    if (rv == 0)
        rv = nng_pipe_notify(p->sock, NNG_PIPE_EV_ADD_PRE, on_peer, p);
    if (rv == 0)
        rv = nng_pipe_notify(p->sock, NNG_PIPE_EV_REM_POST, on_peer, p);
    return rv;
}

enum status pubsub_publisher_new(const char *url, char *ret_url, struct pubsub_publisher **ret,
                                 struct err *err)
{
    if (!str_starts_with(url, "inproc:") && !nng_guard_is_active())
        return err_set(err, STATUS_INTERNAL,
                       "publish on %s: nng does not reach this program's sendmsg(); see "
                       "nng_guard.c",
                       url);
    AUTO(pubsub_publisher_free_p) struct pubsub_publisher *p = mem_alloc(sizeof *p);
    if (!p)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "publish on %s: out of memory", url);
    p->sock = (nng_socket)NNG_SOCKET_INITIALIZER;
    nng_guard_start();
    int rv = nng_pub0_open(&p->sock);
    if (rv == 0)
        rv = publisher_setup(p);
    if (rv == 0)
        rv = nng_listen(p->sock, url, &p->listener, 0);
    if (rv != 0)
        return failed(err, rv, "publish on", url);
    real_url(p, url, ret_url);
    *ret = TAKE(p);
    return STATUS_OK;
}

void pubsub_publisher_free(struct pubsub_publisher *p)
{
    if (!p)
        return;
    if (nng_socket_id(p->sock) > 0)
        nng_close(p->sock);
    mem_free(p);
}

// A function of its own, so that stacks name the one below: see tests/support/tsan.supp.
static __attribute__((noinline)) int hand_over(struct pubsub_publisher *p, nng_msg *m)
{
    return nng_sendmsg(p->sock, m, NNG_FLAG_NONBLOCK);
}

enum status pubsub_publisher_send(struct pubsub_publisher *p, const void *msg, size_t n,
                                  struct err *err)
{
    nng_msg *m = NULL;
    int rv = nng_msg_alloc(&m, n);
    if (rv == 0) {
        memcpy(nng_msg_body(m), msg, n);
        rv = hand_over(p, m);
    }
    if (rv == 0)
        return STATUS_OK;
    if (m)
        nng_msg_free(m);
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "publish: %s", nng_strerror(rv));
}

unsigned pubsub_publisher_n_peers(const struct pubsub_publisher *p)
{
    return atomic_load(&p->n_peers);
}

// ---------------------------------------------------------------- subscriber

struct pubsub_subscriber {
    nng_socket sock;
    nng_aio *aio;
    const struct pubsub_events *ev;
    void *ud;
    pthread_mutex_t lock; // held while an operation is started
    bool is_closing;
};

// Nothing is started once the socket closes: nng would leave it on the list of a freed queue.
static void start_receiving(struct pubsub_subscriber *s)
{
    pthread_mutex_lock(&s->lock);
    if (!s->is_closing)
        nng_recv_aio(s->sock, s->aio);
    pthread_mutex_unlock(&s->lock);
}

static void received(void *ud)
{
    struct pubsub_subscriber *s = ud;
    int rv = nng_aio_result(s->aio);
    if (rv == NNG_ECLOSED || rv == NNG_ECANCELED)
        return;
    nng_msg *m = rv == 0 ? nng_aio_get_msg(s->aio) : NULL;
    if (m) {
        nng_aio_set_msg(s->aio, NULL);
        s->ev->message(s->ud, nng_msg_body(m), nng_msg_len(m));
        nng_msg_free(m);
    }
    start_receiving(s);
}

static void on_pipe(nng_pipe pipe, nng_pipe_ev ev, void *ud)
{
    struct pubsub_subscriber *s = ud;
    (void)pipe;
    s->ev->connected(s->ud, ev == NNG_PIPE_EV_ADD_POST);
}

static int subscriber_setup(struct pubsub_subscriber *s, const struct pubsub_topic *topic)
{
    int rv = nng_socket_set_int(s->sock, NNG_OPT_RECVBUF, QUEUE_MESSAGES);
    if (rv == 0)
        rv = nng_socket_set(s->sock, NNG_OPT_SUB_SUBSCRIBE, topic ? topic->id : (const void *)"",
                            topic ? sizeof topic->id : 0);
    if (rv == 0)
        rv = nng_socket_set_size(s->sock, NNG_OPT_RECVMAXSZ, PUBSUB_MAX_PAYLOAD + PUBSUB_OVERHEAD);
    if (rv == 0)
        rv = nng_socket_set_ms(s->sock, NNG_OPT_RECONNMINT, RECONNECT_MIN_MS);
    if (rv == 0)
        rv = nng_socket_set_ms(s->sock, NNG_OPT_RECONNMAXT, RECONNECT_MAX_MS);
    if (rv == 0)
        rv = nng_pipe_notify(s->sock, NNG_PIPE_EV_ADD_POST, on_pipe, s);
    if (rv == 0)
        rv = nng_pipe_notify(s->sock, NNG_PIPE_EV_REM_POST, on_pipe, s);
    return rv;
}

enum status pubsub_subscriber_new(const char *url, const struct pubsub_topic *topic,
                                  const struct pubsub_events *ev, void *ud,
                                  struct pubsub_subscriber **ret, struct err *err)
{
    struct pubsub_subscriber *fresh = mem_alloc(sizeof *fresh);
    if (!fresh)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "subscribe at %s: out of memory", url);
    pthread_mutex_init(&fresh->lock, NULL);
    AUTO(pubsub_subscriber_free_p) struct pubsub_subscriber *s = fresh;
    s->sock = (nng_socket)NNG_SOCKET_INITIALIZER;
    s->ev = ev;
    s->ud = ud;
    nng_guard_start();
    int rv = nng_aio_alloc(&s->aio, received, s);
    if (rv != 0)
        s->aio = NULL;
    if (rv == 0)
        rv = nng_sub0_open(&s->sock);
    if (rv == 0)
        rv = subscriber_setup(s, topic);
    if (rv == 0) {
        start_receiving(s);
        rv = nng_dial(s->sock, url, NULL, NNG_FLAG_NONBLOCK);
    }
    if (rv != 0)
        return failed(err, rv, "subscribe at", url);
    *ret = TAKE(s);
    return STATUS_OK;
}

void pubsub_subscriber_free(struct pubsub_subscriber *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->is_closing = true;
    pthread_mutex_unlock(&s->lock);
    if (nng_socket_id(s->sock) > 0)
        nng_close(s->sock);
    if (s->aio) {
        nng_aio_stop(s->aio);
        nng_aio_free(s->aio);
    }
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}
