// nng as transport: raw REQ dials, raw REP listens.
//
// Raw mode leaves the SP header to us: a request carries one word with the high bit set, a reply
// the pipe id in front of it. Raw REP takes a message from the socket's queue, looks the pipe up
// and puts it on that pipe's queue of 64, dropping silently what does not fit; conn.c never hands
// it so much. Raw REQ takes from the socket's queue when its pipe can write, so a message handed
// over just before the pipe broke would go out on the next pipe: quiesce() takes them back.
//
// ADD_PRE comes before any message of a pipe, REM_POST from nng's reaper after the pipe was closed.
// Both run under a lock of the socket: closing sockets or waiting there would deadlock.
#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <nng/protocol/reqrep0/req.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "channel/channel.h"
#include "rpc/nng_guard.h"
#include "rpc/transport.h"

#if defined(__SANITIZE_ADDRESS__)
// nng 1.5 frees closing pipes on a thread that may not get to it before the process ends, and loses
// the message that a pipe was about to write or had just read when it broke. Neither can be cured
// from outside. Messages that lib/rpc itself forgets are found by counting:
// transport_nng_messages().
const char *__lsan_default_suppressions(void);
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void)
{
    return "leak:libnng.so\n";
}
#endif

#define SP_HEADER_MAX 8
#define REQUEST_WORD 0x80000001U

struct slot {
    struct transport *t;
    nng_aio *aio;
    struct slot *next;
    bool busy;
    uint32_t pipe; // what it sends to
};

struct transport {
    nng_socket sock;
    nng_listener listener;
    nng_dialer dialer;
    bool is_dialer, is_closing;
    atomic_bool is_accepting;
    const struct transport_events *ev;
    void *ud;
    nng_aio *recv;
    pthread_mutex_t lock; // slots, is_closing; held while an operation is started
    struct slot *idle;
    struct slot *all[TRANSPORT_DIAL_SLOTS]; // dialling side
    struct slot **more;                     // listening side: as many as were ever in flight
    size_t n_more;
};

// ---------------------------------------------------------------- nng's words in ours

// "what url: why", with the status that the error amounts to.
static enum status nng_error(struct err *err, int rv, const char *what, const char *url)
{
    enum status s = STATUS_UNAVAILABLE;
    switch (rv) {
    case NNG_ENOMEM:
        s = STATUS_RESOURCE_EXHAUSTED;
        break;
    case NNG_EINVAL:
    case NNG_EADDRINVAL:
    case NNG_ENOTSUP:
        s = STATUS_INVALID_ARGUMENT;
        break;
    case NNG_EADDRINUSE:
        s = STATUS_ALREADY_EXISTS;
        break;
    case NNG_EPERM:
        s = STATUS_PERMISSION_DENIED;
        break;
    default:
        break;
    }
    return err_set(err, s, "%s %s: %s", what, url, nng_strerror(rv));
}

static struct transport_addr addr_of(const nng_sockaddr *sa)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    struct transport_addr a = {0};
    if (sa->s_family == NNG_AF_INET) {
        a.family = 4;
        memcpy(a.bytes, &sa->s_in.sa_addr, 4);
    } else if (sa->s_family == NNG_AF_INET6 && memcmp(sa->s_in6.sa_addr, mapped, 12) == 0) {
        a.family = 4; // IPv4 that came to an IPv6 socket
        memcpy(a.bytes, sa->s_in6.sa_addr + 12, 4);
    } else if (sa->s_family == NNG_AF_INET6) {
        a.family = 6;
        memcpy(a.bytes, sa->s_in6.sa_addr, 8);
    }
    return a;
}

// url with the port that sa has, if it names one: port 0 has become a real one there.
static void real_url(const nng_sockaddr *sa, const char *url, char *ret, size_t size)
{
    str_copy(ret, size, url);
    uint16_t raw;
    if (sa->s_family == NNG_AF_INET)
        raw = sa->s_in.sa_port;
    else if (sa->s_family == NNG_AF_INET6)
        raw = sa->s_in6.sa_port;
    else
        return;
    const char *port = strrchr(url, ':');
    uint8_t be[2];
    memcpy(be, &raw, 2);
    if (port)
        snprintf(ret, size, "%.*s:%u", (int)(port - url), url, (unsigned)(be[0] << 8 | be[1]));
}

// ---------------------------------------------------------------- messages and slots

static atomic_long n_messages; // held outside nng

long transport_nng_messages(void)
{
    return n_messages;
}

static nng_msg *to_nng(struct transport_msg *m)
{
    return (nng_msg *)(void *)m;
}

static void slot_sent(void *arg)
{
    struct slot *s = arg;
    struct transport *t = s->t;
    if (nng_aio_result(s->aio) != 0) {
        nng_msg *m = nng_aio_get_msg(s->aio);
        if (m)
            nng_msg_free(m);
        nng_aio_set_msg(s->aio, NULL);
    }
    uint32_t pipe = s->pipe;
    pthread_mutex_lock(&t->lock);
    s->busy = false;
    s->next = t->idle;
    t->idle = s;
    pthread_mutex_unlock(&t->lock);
    if (t->ev->sent)
        t->ev->sent(t->ud, pipe);
}

static struct slot *slot_new(struct transport *t)
{
    struct slot *s = mem_alloc(sizeof *s);
    if (!s)
        return NULL;
    s->t = t;
    if (nng_aio_alloc(&s->aio, slot_sent, s) != 0) {
        mem_free(s);
        return NULL;
    }
    return s;
}

static void slot_stop(struct slot *s)
{
    if (s)
        nng_aio_stop(s->aio);
}

static void slot_free(struct slot *s)
{
    if (!s)
        return;
    nng_aio_free(s->aio);
    mem_free(s);
}

// Called with the lock held.
static struct slot *slot_more(struct transport *t)
{
    if (t->is_dialer)
        return NULL;
    struct slot **more = mem_realloc(t->more, t->n_more + 1, sizeof(struct slot *));
    if (!more)
        return NULL;
    t->more = more;
    struct slot *s = slot_new(t);
    if (s)
        t->more[t->n_more++] = s;
    return s;
}

static bool t_send(struct transport *t, uint32_t pipe, struct transport_msg *m)
{
    nng_msg *msg = to_nng(m);
    n_messages--;
    nng_msg_header_clear(msg);
    if ((!t->is_dialer && nng_msg_header_append_u32(msg, pipe) != 0) ||
        nng_msg_header_append_u32(msg, REQUEST_WORD) != 0) {
        nng_msg_free(msg);
        nng_pipe_close((nng_pipe){.id = pipe}); // a lost record would be a gap
        return true;
    }
    pthread_mutex_lock(&t->lock);
    struct slot *s = NULL;
    if (!t->is_closing) {
        s = t->idle;
        if (s)
            t->idle = s->next;
        else
            s = slot_more(t);
    }
    if (s) {
        s->busy = true;
        s->pipe = pipe;
        nng_aio_set_msg(s->aio, msg);
        nng_send_aio(t->sock, s->aio);
    }
    pthread_mutex_unlock(&t->lock);
    if (!s) {
        nng_msg_free(msg);
        nng_pipe_close((nng_pipe){.id = pipe});
    }
    return !s;
}

// Nothing is started once the socket closes: nng would leave it on the list of a freed queue.
static void start_receiving(struct transport *t)
{
    pthread_mutex_lock(&t->lock);
    if (!t->is_closing)
        nng_recv_aio(t->sock, t->recv);
    pthread_mutex_unlock(&t->lock);
}

static void received(void *arg)
{
    struct transport *t = arg;
    int rv = nng_aio_result(t->recv);
    if (rv == NNG_ECLOSED || rv == NNG_ECANCELED)
        return;
    if (rv == 0) {
        nng_msg *m = nng_aio_get_msg(t->recv);
        nng_aio_set_msg(t->recv, NULL);
        n_messages++;
        t->ev->receive(t->ud, (uint32_t)nng_pipe_id(nng_msg_get_pipe(m)), (void *)m, false);
    }
    start_receiving(t);
}

static void pipe_event(nng_pipe p, nng_pipe_ev ev, void *arg)
{
    struct transport *t = arg;
    if (ev == NNG_PIPE_EV_ADD_PRE) {
        if (!t->is_accepting || !t->ev->attach(t->ud, (uint32_t)nng_pipe_id(p)))
            nng_pipe_close(p);
    } else if (ev == NNG_PIPE_EV_REM_POST) {
        t->ev->detach(t->ud, (uint32_t)nng_pipe_id(p));
    }
}

static void t_free(struct transport *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->is_closing = true;
    pthread_mutex_unlock(&t->lock);
    if (nng_socket_id(t->sock) > 0)
        nng_close(t->sock);
    if (t->recv)
        nng_aio_stop(t->recv);
    for (size_t i = 0; i < N_ELEMENTS(t->all); i++)
        slot_stop(t->all[i]);
    for (size_t i = 0; i < t->n_more; i++)
        slot_stop(t->more[i]);
    nng_aio_free(t->recv);
    for (size_t i = 0; i < N_ELEMENTS(t->all); i++)
        slot_free(t->all[i]);
    for (size_t i = 0; i < t->n_more; i++)
        slot_free(t->more[i]);
    mem_free(t->more);
    pthread_mutex_destroy(&t->lock);
    mem_free(t);
}

static struct transport *t_new(const struct transport_events *ev, void *ud)
{
    nng_guard_start();
    struct transport *t = mem_alloc(sizeof *t);
    if (!t)
        return NULL;
    pthread_mutex_init(&t->lock, NULL);
    t->sock = (nng_socket)NNG_SOCKET_INITIALIZER;
    t->listener = (nng_listener)NNG_LISTENER_INITIALIZER;
    t->dialer = (nng_dialer)NNG_DIALER_INITIALIZER;
    t->ev = ev;
    t->ud = ud;
    t->is_accepting = true;
    if (nng_aio_alloc(&t->recv, received, t) != 0) {
        t->recv = NULL;
        t_free(t);
        return NULL;
    }
    return t;
}

static int t_setup(struct transport *t)
{
    int rv = nng_socket_set_size(t->sock, NNG_OPT_RECVMAXSZ, CHAN_MAX_RECORD + SP_HEADER_MAX);
    if (rv == 0)
        rv = nng_pipe_notify(t->sock, NNG_PIPE_EV_ADD_PRE, pipe_event, t);
    if (rv == 0)
        rv = nng_pipe_notify(t->sock, NNG_PIPE_EV_REM_POST, pipe_event, t);
    return rv;
}

static enum status t_listen(const char *url, const struct transport_events *ev, void *ud,
                            char *ret_url, size_t ret_url_size, struct transport **ret,
                            struct err *err)
{
    if (!str_starts_with(url, "inproc:") && !nng_guard_is_active())
        return err_set(
            err, STATUS_INTERNAL,
            "listen on %s: nng does not reach this program's sendmsg() and nng_stream_recv(); "
            "see nng_guard.c",
            url);
    struct transport *t = t_new(ev, ud);
    if (!t)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "listen on %s: out of memory", url);
    int rv = nng_rep0_open_raw(&t->sock);
    if (rv == 0)
        rv = t_setup(t);
    // The queue towards the pipes is emptied at once; room there saves a wake-up per record.
    if (rv == 0)
        rv = nng_socket_set_int(t->sock, NNG_OPT_SENDBUF, 64);
    if (rv == 0)
        rv = nng_socket_set_int(t->sock, NNG_OPT_RECVBUF, 16);
    *ret = t; // events may name it from here on
    if (rv == 0)
        nng_recv_aio(t->sock, t->recv);
    if (rv == 0)
        rv = nng_listen(t->sock, url, &t->listener, 0);
    if (rv != 0) {
        *ret = NULL;
        t_free(t);
        return nng_error(err, rv, "listen on", url);
    }
    nng_sockaddr sa = {0};
    if (ret_url && nng_listener_get_addr(t->listener, NNG_OPT_LOCADDR, &sa) != 0)
        sa.s_family = NNG_AF_UNSPEC;
    if (ret_url)
        real_url(&sa, url, ret_url, ret_url_size);
    return STATUS_OK;
}

static enum status t_dial(const char *url, const struct transport_events *ev, void *ud,
                          struct transport **ret, struct err *err)
{
    struct transport *t = t_new(ev, ud);
    if (!t)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "dial %s: out of memory", url);
    t->is_dialer = true;
    int rv = nng_req0_open_raw(&t->sock);
    if (rv == 0)
        rv = t_setup(t);
    if (rv == 0)
        rv = nng_socket_set_int(t->sock, NNG_OPT_RECVBUF, 16);
    if (rv == 0)
        rv = nng_socket_set_ms(t->sock, NNG_OPT_RECONNMINT, TRANSPORT_BACKOFF_MIN_MS);
    if (rv == 0)
        rv = nng_socket_set_ms(t->sock, NNG_OPT_RECONNMAXT, TRANSPORT_BACKOFF_MAX_MS);
    for (size_t i = 0; rv == 0 && i < TRANSPORT_DIAL_SLOTS; i++) {
        struct slot *s = t->all[i] = slot_new(t);
        if (!s) {
            rv = NNG_ENOMEM;
            break;
        }
        s->next = t->idle;
        t->idle = s;
    }
    *ret = t; // events may name it from here on
    if (rv == 0)
        nng_recv_aio(t->sock, t->recv);
    if (rv == 0)
        rv = nng_dialer_create(&t->dialer, t->sock, url);
    if (rv == 0)
        rv = nng_dialer_start(t->dialer, NNG_FLAG_NONBLOCK);
    if (rv != 0) {
        *ret = NULL;
        t_free(t);
        return nng_error(err, rv, "dial", url);
    }
    return STATUS_OK;
}

static void t_drop(struct transport *t, uint32_t pipe)
{
    (void)t;
    nng_pipe_close((nng_pipe){.id = pipe});
}

static bool t_peer(struct transport *t, uint32_t pipe, struct transport_addr *ret)
{
    (void)t;
    nng_sockaddr sa;
    if (nng_pipe_get_addr((nng_pipe){.id = pipe}, NNG_OPT_REMADDR, &sa) != 0)
        return false;
    *ret = addr_of(&sa);
    return true;
}

// nng waits a random time below what it was told, and forgets what it had doubled.
static void t_set_backoff(struct transport *t, int64_t ms)
{
    nng_dialer_set_ms(t->dialer, NNG_OPT_RECONNMINT, (nng_duration)(2 * ms));
}

// Closing nng's listener would close every pipe it made, so new ones are refused instead.
static void t_stop_accepting(struct transport *t)
{
    t->is_accepting = false;
}

static void t_quiesce(struct transport *t)
{
    for (size_t i = 0; i < TRANSPORT_DIAL_SLOTS; i++) {
        pthread_mutex_lock(&t->lock);
        bool busy = t->all[i]->busy;
        pthread_mutex_unlock(&t->lock);
        if (!busy)
            continue;
        nng_aio_cancel(t->all[i]->aio);
        nng_aio_wait(t->all[i]->aio);
    }
}

static struct transport_msg *t_msg_new(size_t n)
{
    nng_msg *m;
    if (nng_msg_alloc(&m, n) != 0)
        return NULL;
    n_messages++;
    return (void *)m;
}
static uint8_t *t_msg_data(struct transport_msg *m)
{
    return nng_msg_body(to_nng(m));
}
static size_t t_msg_size(struct transport_msg *m)
{
    return nng_msg_len(to_nng(m));
}
static void t_msg_shorten(struct transport_msg *m, size_t n)
{
    nng_msg_chop(to_nng(m), nng_msg_len(to_nng(m)) - n);
}
static void t_msg_free(struct transport_msg *m)
{
    if (!m)
        return;
    n_messages--;
    nng_msg_free(to_nng(m));
}

const struct transport_ops transport_nng = {
    .name = "socket",
    .listen = t_listen,
    .dial = t_dial,
    .send = t_send,
    .set_backoff = t_set_backoff,
    .drop = t_drop,
    .peer = t_peer,
    .stop_accepting = t_stop_accepting,
    .quiesce = t_quiesce,
    .free = t_free,
    .msg_new = t_msg_new,
    .msg_data = t_msg_data,
    .msg_size = t_msg_size,
    .msg_shorten = t_msg_shorten,
    .msg_free = t_msg_free,
};

void transport_nng_fini(void)
{
    nng_guard_fini();
}
