// Pipes of the epoll transport: bytes to messages and back.
//
// On the wire they are nng's REQ and REP sockets over tcp and ipc. Both sides say "\0SP\0", their
// protocol and two zeros; a message is (over ipc a 1 and) a 64-bit length, a request id with its
// top bit set, and the body.
//
// Reading. The pipe's loop reads what there is into memory of the loop's own, so that an idle pipe
// holds none, and hands over the messages in it. One that is not complete becomes the pipe's part,
// and what is missing of it is read straight into it, with a little of what follows. A part grows
// with what came of it, not with what its length claims, until the pipe has once brought a message
// of that size. Before a listener has answered, a peer may say only as much as a handshake needs.
//
// Writing. Whoever sends writes at once, on its own thread. What the socket does not take waits for
// the loop. On the dialling side a second small message, while nothing has come from the peer since
// the first, goes by way of the loop: the moment until it runs gathers what many threads send into
// few records (conn_send.c holds back while something is on its way). A lone call in flight never
// pays for that.
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/mem.h"
#include "channel/channel.h"
#include "rpc/transport_epoll.h"

#define HELLO_SIZE 8
#define PROTOCOL_REQ 0x30
#define PROTOCOL_REP 0x31
#define REQUEST_WORD 0x80000001U
#define REQUEST_SIZE 4
#define UNANSWERED_MAX 4096      // body of a message before a listener's first answer
#define PART_MIN (16U << 10)     // first piece of a message that is being assembled
#define READ_AHEAD (16U << 10)   // beyond a part that misses much: as little copying as possible
#define TURN_READS 4             // before others have their turn
#define N_IOV 64                 // messages per write
#define QUEUE_MAX 64             // messages that wait; nobody has so many unacknowledged
#define GATHER_AFTER 1           // small messages that leave at once while nothing comes
#define GATHER_BELOW (16U << 10) // bytes; larger ones gain nothing from company

// ---------------------------------------------------------------- bytes

static void put_be(uint8_t *p, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * (n - 1 - i)));
}

static uint64_t get_be(const uint8_t *p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v = v << 8 | p[i];
    return v;
}

static void put_prefix(struct transport_msg *m)
{
    uint8_t *end = m->prefix + PREFIX_MAX;
    put_be(end - REQUEST_SIZE, REQUEST_WORD, REQUEST_SIZE);
    put_be(end - REQUEST_SIZE - 8, m->size + REQUEST_SIZE, 8);
    end[-REQUEST_SIZE - 9] = 1;
}

static void hello(uint8_t dst[HELLO_SIZE], uint8_t protocol)
{
    memcpy(dst, (uint8_t[]){0, 'S', 'P', 0, 0, protocol, 0, 0}, HELLO_SIZE);
}

// ---------------------------------------------------------------- the end

// Called with the lock held. A socket that is shut down is ready for ever: its loop sees it.
static void close_locked(struct pipe *p)
{
    if (p->is_closed)
        return;
    p->is_closed = true;
    shutdown(p->fd, SHUT_RDWR);
}

void pipe_close(struct pipe *p)
{
    pthread_mutex_lock(&p->lock);
    close_locked(p);
    pthread_mutex_unlock(&p->lock);
}

void pipe_over(struct pipe *p)
{
    struct transport *t = p->t;
    pthread_mutex_lock(&p->lock);
    close_locked(p);
    loop_remove(p->loop, p->fd);
    close(p->fd);
    p->fd = -1;
    pthread_mutex_unlock(&p->lock);
    pipe_forget(p);
    msg_free(TAKE(p->part));
    msg_free(TAKE(p->held));
    if (p->is_attached)
        t->ev->detach(t->ud, p->id);
    if (t->is_dialer)
        dial_again(t, p->is_attached ? NULL : p->why);
    pipe_unref(p);
}

// ---------------------------------------------------------------- writing

static void want_writable(struct pipe *p, bool on)
{
    if (p->is_blocked == on)
        return;
    p->is_blocked = on;
    if (!loop_change(p->loop, p->fd, EPOLLIN | (on ? EPOLLOUT : 0U), &p->io))
        close_locked(p);
}

// Takes n written bytes off the queue; returns how many messages are gone.
static unsigned advance(struct pipe *p, size_t n)
{
    unsigned n_gone = 0;
    n += p->tx_off;
    while (p->tx_head && n >= p->t->n_prefix + p->tx_head->size) {
        struct transport_msg *m = p->tx_head;
        n -= p->t->n_prefix + m->size;
        p->tx_head = m->next;
        msg_free(m);
        n_gone++;
    }
    p->tx_off = n;
    p->n_queued -= n_gone;
    if (!p->tx_head)
        p->tx_tail = &p->tx_head;
    return n_gone;
}

static size_t gather(const struct pipe *p, struct iovec iov[N_IOV], size_t *ret_bytes)
{
    size_t n = 0, bytes = 0, n_prefix = p->t->n_prefix, off = p->tx_off;
    for (struct transport_msg *m = p->tx_head; m && n < N_IOV; m = m->next) {
        iov[n] = (struct iovec){.iov_base = m->prefix + PREFIX_MAX - n_prefix + off,
                                .iov_len = n_prefix + m->size - off};
        bytes += iov[n++].iov_len;
        off = 0;
    }
    *ret_bytes = bytes;
    return n;
}

// Write what the socket takes now; returns how many messages left. Called with the lock held.
static unsigned write_locked(struct pipe *p)
{
    unsigned n_left = 0;
    while (p->tx_head && !p->is_closed) {
        struct iovec iov[N_IOV];
        size_t bytes;
        struct msghdr h = {.msg_iov = iov, .msg_iovlen = gather(p, iov, &bytes)};
        ssize_t n = sendmsg(p->fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN) {
            close_locked(p);
            return n_left;
        }
        if (n > 0)
            n_left += advance(p, (size_t)n);
        if (n < 0 || (size_t)n < bytes) {
            want_writable(p, true);
            return n_left;
        }
    }
    if (!p->is_closed)
        want_writable(p, false);
    return n_left;
}

static void tell_sent(struct pipe *p, unsigned n)
{
    struct transport *t = p->t;
    for (; n && t->ev->sent; n--)
        t->ev->sent(t->ud, p->id);
}

static void write_on(struct pipe *p)
{
    pthread_mutex_lock(&p->lock);
    unsigned n = write_locked(p);
    pthread_mutex_unlock(&p->lock);
    tell_sent(p, n);
}

static void looked(struct pipe *p)
{
    atomic_store_explicit(&p->n_unseen, 0, memory_order_relaxed);
}

void pipe_gather(struct loop_task *task)
{
    struct pipe *p = list_entry(task, struct pipe, gather);
    pthread_mutex_lock(&p->lock);
    p->is_posted = false;
    unsigned n = write_locked(p);
    pthread_mutex_unlock(&p->lock);
    looked(p);
    tell_sent(p, n);
    pipe_unref(p);
}

// Called with the lock held.
static void send_locked(struct pipe *p, struct transport_msg *m)
{
    *p->tx_tail = m;
    p->tx_tail = &m->next;
    p->n_queued++;
    if (p->is_blocked || p->is_posted)
        return;
    bool alone = !p->t->ev->sent || m->size >= GATHER_BELOW ||
                 atomic_fetch_add_explicit(&p->n_unseen, 1, memory_order_relaxed) < GATHER_AFTER;
    if (alone) {
        write_locked(p);
        return;
    }
    p->is_posted = true;
    atomic_fetch_add(&p->refs, 1);
    loop_post(p->loop, &p->gather);
}

bool pipe_send(struct pipe *p, struct transport_msg *m)
{
    put_prefix(m);
    m->next = NULL;
    p->is_answered = true;
    pthread_mutex_lock(&p->lock);
    if (p->n_queued == QUEUE_MAX)
        close_locked(p); // it reads nothing; a lost record would be a gap
    if (p->is_closed)
        msg_free(m);
    else
        send_locked(p, m);
    bool left = !p->tx_head || p->is_closed;
    pthread_mutex_unlock(&p->lock);
    return left;
}

bool pipe_say_hello(struct pipe *p)
{
    uint8_t own[HELLO_SIZE];
    hello(own, p->t->is_dialer ? PROTOCOL_REQ : PROTOCOL_REP);
    // Eight bytes into an empty buffer: they go at once or the peer is gone.
    return send(p->fd, own, sizeof own, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof own;
}

// ---------------------------------------------------------------- reading

static void hand_over(struct pipe *p, bool more)
{
    struct transport_msg *m = TAKE(p->held);
    if (m)
        p->t->ev->receive(p->t->ud, p->id, m, more);
}

// The whole part is there: the message before it goes out now, knowing that this one follows.
static void part_done(struct pipe *p)
{
    hand_over(p, true);
    if (p->part_size > p->part_most)
        p->part_most = p->part_size;
    p->held = TAKE(p->part);
}

static size_t part_missing(const struct pipe *p)
{
    return p->part ? p->part_room - p->part->size : 0;
}

static bool part_grow(struct pipe *p, size_t at_hand)
{
    size_t room = 4 * p->part_room > PART_MIN ? 4 * p->part_room : PART_MIN;
    if (room < at_hand)
        room = at_hand;
    if (room < p->part_most)
        room = p->part_most;
    if (room > p->part_size)
        room = p->part_size;
    struct transport_msg *m = p->part ? msg_resize(p->part, room) : msg_new(room);
    if (!m)
        return false;
    if (!p->part)
        m->size = 0;
    p->part = m;
    p->part_room = room;
    return true;
}

// n bytes of the part came. False: no memory for more.
static bool part_came(struct pipe *p, size_t n, size_t at_hand)
{
    p->part->size += n;
    if (p->part->size == p->part_size)
        part_done(p);
    else if (p->part->size == p->part_room)
        return part_grow(p, p->part->size + at_hand);
    return true;
}

static bool on_hello(struct pipe *p)
{
    struct transport *t = p->t;
    uint8_t want[HELLO_SIZE];
    hello(want, t->is_dialer ? PROTOCOL_REP : PROTOCOL_REQ);
    if (memcmp(p->head, want, HELLO_SIZE) != 0) {
        p->why = "what answers there is not a server of ours";
        return false;
    }
    p->heard_hello = true;
    if (!t->is_dialer)
        return true;
    dial_heard(t);
    p->is_attached = t->ev->attach(t->ud, p->id);
    return p->is_attached;
}

// The prefix of a message, at_hand bytes of the body behind it.
static bool on_prefix(struct pipe *p, size_t at_hand)
{
    struct transport *t = p->t;
    const uint8_t *end = p->head + t->n_prefix;
    uint64_t n = get_be(end - REQUEST_SIZE - 8, 8);
    size_t most = t->is_dialer || p->is_answered ? CHAN_MAX_RECORD : UNANSWERED_MAX;
    if ((t->name.is_ipc && p->head[0] != 1) || !(end[-REQUEST_SIZE] & 0x80) || n < REQUEST_SIZE ||
        n - REQUEST_SIZE > most)
        return false;
    p->part_size = (size_t)n - REQUEST_SIZE;
    p->part_room = 0;
    if (!part_grow(p, at_hand))
        return false;
    if (p->part_size == 0)
        part_done(p);
    return true;
}

static bool on_head(struct pipe *p, size_t at_hand)
{
    p->n_head = 0;
    return p->heard_hello ? on_prefix(p, at_hand) : on_hello(p);
}

// Split what was read. False: it is not what a peer may send, or nobody listens any more.
static bool split(struct pipe *p, const uint8_t *b, size_t n)
{
    while (n) {
        size_t k;
        if (p->is_closed)
            return false;
        if (p->part) {
            k = part_missing(p) < n ? part_missing(p) : n;
            memcpy(p->part->body + p->part->size, b, k);
            if (!part_came(p, k, n - k))
                return false;
        } else {
            size_t want = (p->heard_hello ? p->t->n_prefix : HELLO_SIZE) - p->n_head;
            k = want < n ? want : n;
            memcpy(p->head + p->n_head, b, k);
            p->n_head += k;
            if (k == want && !on_head(p, n - k))
                return false;
        }
        b += k;
        n -= k;
    }
    return true;
}

enum read { READ_ALL, READ_MORE, READ_END };

static enum read read_once(struct pipe *p)
{
    uint8_t *scratch = loop_scratch(p->loop);
    size_t missing = part_missing(p), ahead = missing > READ_AHEAD ? READ_AHEAD : LOOP_SCRATCH;
    struct iovec iov[2] = {
        {.iov_base = missing ? p->part->body + p->part->size : NULL, .iov_len = missing},
        {.iov_base = scratch, .iov_len = ahead}};
    ssize_t n = missing ? readv(p->fd, iov, 2) : recv(p->fd, scratch, ahead, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR)
        return READ_MORE;
    if (n < 0 && errno == EAGAIN)
        return READ_ALL;
    if (n <= 0)
        return READ_END;
    size_t got = (size_t)n, own = missing < got ? missing : got;
    if (own && !part_came(p, own, got - own))
        return READ_END;
    if (!split(p, scratch, got - own))
        return READ_END;
    return got < missing + ahead ? READ_ALL : READ_MORE;
}

void pipe_ready(struct loop_io *io, uint32_t events)
{
    struct pipe *p = list_entry(io, struct pipe, io);
    looked(p);
    if (events & EPOLLOUT)
        write_on(p);
    enum read r = events & ~(uint32_t)EPOLLOUT ? READ_MORE : READ_ALL;
    for (unsigned i = 0; i < TURN_READS && r == READ_MORE; i++)
        r = read_once(p);
    hand_over(p, false);
    if (r == READ_END || p->is_closed)
        pipe_over(p);
}
