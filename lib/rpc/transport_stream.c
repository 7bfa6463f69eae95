// The bytes of nng's REQ and REP sockets on nng's byte streams, tcp and ipc.
//
// What the sockets cost is their way through queues: a message crosses three threads on its way in
// and two on its way out. Here one thread of nng's reads what there is, splits it and hands it over
// itself, and whoever sends writes at once. On the wire nothing differs: both sides say
// "\0SP\0", their protocol and two zeros; a message is (over ipc a 1 and) a 64-bit length, a
// request id with its top bit set, and the body.
//
// Reading. One read is outstanding per pipe, and its callback is the pipe's only reader, so events
// of a pipe come in order without a lock. A pipe waits with a small buffer of its own. When that
// comes back full there is more, which is read at once into a large one that goes back afterwards:
// idle pipes hold no memory. After some rounds the pipe goes to the end of nng's queue like
// everybody else. A message that is not complete grows with what came of it, not with what its
// length claims; until a listener has answered, a peer may say only as much as a handshake needs.
//
// Writing. The listening side writes from the sender's thread: an aio without a callback completes
// within nng_stream_send(), or is taken back at once and the rest left to one that calls back. The
// dialling side always uses the latter: the moment until it calls is what gathers the small
// messages of many threads (see sent()).
//
// Traps of nng 1.5.2. An operation started on a stream that nng_stream_close() has closed never
// completes: operations are started with the pipe's lock held and only while it is open, and who
// closes aborts those that run. An aio must not be freed from its own callback: nng reaps them.
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "channel/channel.h"
#include "rpc/transport_internal.h"

#define HELLO_SIZE 8
#define PROTOCOL_REQ 0x30
#define PROTOCOL_REP 0x31
#define REQUEST_WORD 0x80000001U
#define REQUEST_SIZE 4
#define PREFIX_MAX 16          // ipc's type, length, request id; padded
#define SMALL_READ 2048        // waiting
#define LARGE_READ (64U << 10) // when there is more
#define TURN_READS 4           // large ones before others have their turn
#define UNANSWERED_MAX 4096    // body of a message before a listener's first answer
#define PART_MIN (16U << 10)   // first piece of a message that is being assembled
#define N_IOV 8                // nng takes no more
#define ACCEPT_PAUSE_MS 20     // when descriptors or memory are short
#define CONNECT_MS 10000       // for TCP and for the other side's hello
#define N_BUCKETS_LISTENER 1024
#define N_BUCKETS_DIALER 1

struct transport_msg {
    struct transport_msg *next;
    size_t size;                // of the body
    uint8_t prefix[PREFIX_MAX]; // the last n_prefix bytes of it go before the body
    uint8_t body[];
};

struct large_read { // a large read that does not wait
    nng_aio *aio;
    uint8_t buf[LARGE_READ];
};

struct pipe {
    struct transport *t;
    struct pipe *next; // in its bucket
    uint32_t id;
    atomic_uint refs; // table, reader, write in progress, whoever looked it up
    nng_stream *stream;
    nng_aio *rx, *tx, *tx_now;

    pthread_mutex_t lock; // what follows, and starting operations
    bool is_closed, is_writing;
    struct transport_msg *tx_head, **tx_tail;
    size_t tx_off; // of the first message, prefix included

    // the reader's
    bool heard_hello, is_attached;
    const char *why; // it ended before it was attached
    size_t rx_asked, n_head;
    uint8_t head[PREFIX_MAX];
    struct transport_msg *part, *held;
    size_t part_size, part_room; // part's size is what came of it
    uint8_t small[SMALL_READ];

    atomic_bool is_answered;
};

struct transport {
    const struct transport_events *ev;
    void *ud;
    bool is_dialer, is_ipc;
    size_t n_prefix;
    nng_stream_listener *listener;
    nng_stream_dialer *dialer;
    nng_aio *opener; // accepts, or dials

    pthread_mutex_t lock;
    pthread_cond_t cond; // n_pipes fell
    bool is_closing, is_accepting, is_pausing;
    int64_t backoff_ms, connect_ms;
    uint32_t last_id;
    unsigned n_pipes;
    struct large_read *spare;
    size_t n_buckets;
    struct pipe **table;
};

// ---------------------------------------------------------------- messages

static atomic_long n_messages;

long transport_stream_messages(void)
{
    return n_messages;
}

static struct transport_msg *msg_resize(struct transport_msg *m, size_t n)
{
    return mem_realloc(m, 1, sizeof *m + n);
}

static struct transport_msg *t_msg_new(size_t n)
{
    struct transport_msg *m = msg_resize(NULL, n);
    if (!m)
        return NULL;
    n_messages++;
    m->next = NULL;
    m->size = n;
    return m;
}
static uint8_t *t_msg_data(struct transport_msg *m)
{
    return m->body;
}
static size_t t_msg_size(struct transport_msg *m)
{
    return m->size;
}
static void t_msg_shorten(struct transport_msg *m, size_t n)
{
    m->size = n;
}
static void t_msg_free(struct transport_msg *m)
{
    n_messages -= m != NULL;
    mem_free(m);
}

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

// ---------------------------------------------------------------- pipes

static void pipe_free(struct pipe *p)
{
    while (p->tx_head) {
        struct transport_msg *next = p->tx_head->next;
        t_msg_free(p->tx_head);
        p->tx_head = next;
    }
    nng_aio *aios[] = {p->rx, p->tx, p->tx_now};
    for (size_t i = 0; i < N_ELEMENTS(aios); i++) {
        if (aios[i])
            nng_aio_reap(aios[i]);
    }
    nng_stream_free(p->stream);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}

static void pipe_unref(struct pipe *p)
{
    if (atomic_fetch_sub(&p->refs, 1) != 1)
        return;
    struct transport *t = p->t;
    pipe_free(p);
    pthread_mutex_lock(&t->lock);
    t->n_pipes--;
    pthread_cond_broadcast(&t->cond);
    pthread_mutex_unlock(&t->lock);
}

static struct pipe **table_at(struct transport *t, uint32_t id)
{
    struct pipe **at = &t->table[id % t->n_buckets];
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    return at;
}

static struct pipe *pipe_find(struct transport *t, uint32_t id)
{
    pthread_mutex_lock(&t->lock);
    struct pipe *p = *table_at(t, id);
    if (p)
        atomic_fetch_add(&p->refs, 1);
    pthread_mutex_unlock(&t->lock);
    return p;
}

// Called with the pipe's lock held. The reader notices and ends the pipe.
static void close_locked(struct pipe *p)
{
    if (p->is_closed)
        return;
    p->is_closed = true;
    nng_stream_close(p->stream);
    nng_aio_abort(p->rx, NNG_ECLOSED);
    nng_aio_abort(p->tx, NNG_ECLOSED);
}

static void pipe_close(struct pipe *p)
{
    pthread_mutex_lock(&p->lock);
    close_locked(p);
    pthread_mutex_unlock(&p->lock);
}

static void on_read(void *arg);
static void on_written(void *arg);

// Consumes the stream. The caller becomes the reader.
static struct pipe *pipe_new(struct transport *t, nng_stream *s)
{
    struct pipe *p = mem_alloc(sizeof *p);
    if (!p) {
        nng_stream_free(s);
        return NULL;
    }
    pthread_mutex_init(&p->lock, NULL);
    p->t = t;
    p->stream = s;
    p->tx_tail = &p->tx_head;
    p->refs = 2;
    if (nng_aio_alloc(&p->rx, on_read, p) != 0 || nng_aio_alloc(&p->tx, on_written, p) != 0 ||
        nng_aio_alloc(&p->tx_now, NULL, NULL) != 0) {
        pipe_free(p);
        return NULL;
    }
    pthread_mutex_lock(&t->lock);
    bool late = t->is_closing;
    if (!late) {
        do
            p->id = ++t->last_id;
        while (p->id == 0 || *table_at(t, p->id));
        struct pipe **at = table_at(t, p->id);
        *at = p;
        t->n_pipes++;
    }
    pthread_mutex_unlock(&t->lock);
    if (!late)
        return p;
    pipe_free(p);
    return NULL;
}

// ---------------------------------------------------------------- writing

// Takes n written bytes off the queue; returns the messages that are gone.
static struct transport_msg *advance(struct pipe *p, size_t n)
{
    struct transport_msg *done = p->tx_head, **tail = &done;
    n += p->tx_off;
    while (*tail && n >= p->t->n_prefix + (*tail)->size) {
        n -= p->t->n_prefix + (*tail)->size;
        tail = &(*tail)->next;
    }
    p->tx_head = *tail;
    p->tx_off = n;
    *tail = NULL;
    if (!p->tx_head)
        p->tx_tail = &p->tx_head;
    return done;
}

static unsigned gather(const struct pipe *p, nng_iov iov[N_IOV])
{
    unsigned n = 0;
    size_t n_prefix = p->t->n_prefix, off = p->tx_off;
    for (struct transport_msg *m = p->tx_head; m && n < N_IOV; m = m->next) {
        iov[n++] = (nng_iov){.iov_buf = m->prefix + PREFIX_MAX - n_prefix + off,
                             .iov_len = n_prefix + m->size - off};
        off = 0;
    }
    return n;
}

// Called with the lock held.
static void write_later(struct pipe *p)
{
    nng_iov iov[N_IOV];
    nng_aio_set_iov(p->tx, gather(p, iov), iov);
    p->is_writing = true;
    atomic_fetch_add(&p->refs, 1);
    nng_stream_send(p->stream, p->tx);
}

// Write what the kernel takes now. False: it is full. Called with the lock held.
static bool write_now(struct pipe *p)
{
    while (p->tx_head) {
        nng_iov iov[N_IOV];
        nng_aio_set_iov(p->tx_now, gather(p, iov), iov);
        nng_stream_send(p->stream, p->tx_now);
        nng_aio_cancel(p->tx_now); // does nothing unless it waits
        nng_aio_wait(p->tx_now);
        int rv = nng_aio_result(p->tx_now);
        if (rv == NNG_ECANCELED)
            return false;
        if (rv != 0) {
            close_locked(p);
            return true;
        }
        struct transport_msg *done = advance(p, nng_aio_count(p->tx_now));
        while (done) {
            struct transport_msg *next = done->next;
            t_msg_free(done);
            done = next;
        }
    }
    return true;
}

// Called with the lock held.
static void start_writing(struct pipe *p)
{
    if (p->is_closed || p->is_writing || !p->tx_head)
        return;
    if (p->t->ev->sent || !write_now(p))
        write_later(p);
}

static void on_written(void *arg)
{
    struct pipe *p = arg;
    struct transport *t = p->t;
    struct transport_msg *done = NULL;
    pthread_mutex_lock(&p->lock);
    p->is_writing = false;
    if (nng_aio_result(p->tx) == 0)
        done = advance(p, nng_aio_count(p->tx));
    else
        close_locked(p);
    start_writing(p);
    pthread_mutex_unlock(&p->lock);
    while (done) {
        struct transport_msg *next = done->next;
        t_msg_free(done);
        done = next;
        if (t->ev->sent)
            t->ev->sent(t->ud, p->id);
    }
    pipe_unref(p);
}

static bool t_send(struct transport *t, uint32_t id, struct transport_msg *m)
{
    struct pipe *p = pipe_find(t, id);
    if (!p) {
        t_msg_free(m);
        return true;
    }
    put_prefix(m);
    m->next = NULL;
    p->is_answered = true;
    pthread_mutex_lock(&p->lock);
    *p->tx_tail = m;
    p->tx_tail = &m->next;
    start_writing(p);
    pthread_mutex_unlock(&p->lock);
    pipe_unref(p);
    return false;
}

// ---------------------------------------------------------------- reading

static void hand_over(struct pipe *p, bool more)
{
    struct transport_msg *m = p->held;
    p->held = NULL;
    if (m)
        p->t->ev->receive(p->t->ud, p->id, m, more);
}

// The whole part is there: the message before it goes out now, knowing that this one follows.
static void part_done(struct pipe *p)
{
    hand_over(p, true);
    p->held = p->part;
    p->part = NULL;
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
    if (room > p->part_size)
        room = p->part_size;
    struct transport_msg *m = msg_resize(p->part, room);
    if (!m)
        return false;
    if (!p->part) {
        n_messages++;
        m->size = 0;
        m->next = NULL;
    }
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
    nng_aio_set_timeout(p->rx, NNG_DURATION_INFINITE);
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
    if ((t->is_ipc && p->head[0] != 1) || !(end[-REQUEST_SIZE] & 0x80) || n < REQUEST_SIZE ||
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

// Split what was read. False: it is not what a peer may send.
static bool split(struct pipe *p, const uint8_t *b, size_t n)
{
    while (n) {
        size_t k;
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

// What a read brought: the part's own bytes first, then those in buf.
static bool took(struct pipe *p, const uint8_t *buf, size_t n)
{
    size_t k = part_missing(p) < n ? part_missing(p) : n;
    if (k && !part_came(p, k, n - k))
        return false;
    return split(p, buf, n - k);
}

// False: the pipe is closed and nothing was started.
static bool start_reading(struct pipe *p, nng_aio *aio, void *buf, size_t size)
{
    size_t missing = part_missing(p);
    nng_iov iov[2] = {
        {.iov_buf = missing ? p->part->body + p->part->size : NULL, .iov_len = missing},
        {.iov_buf = buf, .iov_len = size}};
    pthread_mutex_lock(&p->lock);
    bool open = !p->is_closed;
    if (open) {
        p->rx_asked = missing + size;
        nng_aio_set_iov(aio, missing ? 2 : 1, missing ? iov : iov + 1);
        nng_stream_recv(p->stream, aio);
    }
    pthread_mutex_unlock(&p->lock);
    return open;
}

static struct large_read *large_get(struct transport *t)
{
    pthread_mutex_lock(&t->lock);
    struct large_read *r = TAKE(t->spare);
    pthread_mutex_unlock(&t->lock);
    if (r)
        return r;
    r = mem_realloc(NULL, 1, sizeof *r);
    if (r && nng_aio_alloc(&r->aio, NULL, NULL) != 0) {
        mem_free(r);
        return NULL;
    }
    return r;
}

static void large_free(struct large_read *r)
{
    if (r)
        nng_aio_free(r->aio);
    mem_free(r);
}

static void large_put(struct transport *t, struct large_read *r)
{
    pthread_mutex_lock(&t->lock);
    if (!t->spare)
        t->spare = TAKE(r);
    pthread_mutex_unlock(&t->lock);
    large_free(r);
}

// Read on while there is something, without waiting. False: the pipe is over.
static bool read_more(struct pipe *p)
{
    struct large_read *r = large_get(p->t);
    bool ok = true;
    for (unsigned i = 0; r && ok && i < TURN_READS; i++) {
        ok = start_reading(p, r->aio, r->buf, sizeof r->buf);
        if (!ok)
            break;
        nng_aio_cancel(r->aio); // does nothing unless it waits
        nng_aio_wait(r->aio);
        int rv = nng_aio_result(r->aio);
        if (rv == NNG_ECANCELED)
            break;
        size_t n = nng_aio_count(r->aio), asked = p->rx_asked;
        ok = rv == 0 && took(p, r->buf, n);
        if (n < asked)
            break;
    }
    if (r)
        large_put(p->t, r);
    return ok;
}

static void dial_again(struct transport *t, const char *why);

// The reader leaves: nothing is told of the pipe after this.
static void pipe_over(struct pipe *p)
{
    struct transport *t = p->t;
    pipe_close(p);
    pthread_mutex_lock(&t->lock);
    struct pipe **at = table_at(t, p->id);
    *at = p->next;
    pthread_mutex_unlock(&t->lock);
    t_msg_free(TAKE(p->part));
    t_msg_free(TAKE(p->held));
    if (p->is_attached)
        t->ev->detach(t->ud, p->id);
    if (t->is_dialer)
        dial_again(t, p->is_attached ? NULL : p->why);
    pipe_unref(p); // the table's
    pipe_unref(p); // the reader's
}

static void on_read(void *arg)
{
    struct pipe *p = arg;
    size_t n = nng_aio_count(p->rx), asked = p->rx_asked;
    bool ok = nng_aio_result(p->rx) == 0 && took(p, p->small, n);
    if (ok && n == asked)
        ok = read_more(p);
    hand_over(p, false);
    if (!ok || !start_reading(p, p->rx, p->small, sizeof p->small))
        pipe_over(p);
}

static void start_pipe(struct pipe *p)
{
    // A hello is eight bytes into an empty socket buffer: it goes out at once or the peer is gone.
    struct transport *t = p->t;
    uint8_t own[HELLO_SIZE];
    hello(own, t->is_dialer ? PROTOCOL_REQ : PROTOCOL_REP);
    nng_iov iov = {.iov_buf = own, .iov_len = sizeof own};
    nng_aio_set_iov(p->tx_now, 1, &iov);
    pthread_mutex_lock(&p->lock);
    if (!p->is_closed) {
        nng_stream_send(p->stream, p->tx_now);
        nng_aio_cancel(p->tx_now);
        nng_aio_wait(p->tx_now);
        if (nng_aio_result(p->tx_now) != 0 || nng_aio_count(p->tx_now) != sizeof own)
            close_locked(p);
    }
    pthread_mutex_unlock(&p->lock);
    if (!start_reading(p, p->rx, p->small, sizeof p->small))
        pipe_over(p);
}

// ---------------------------------------------------------------- accepting

static void accept_next(struct transport *t)
{
    pthread_mutex_lock(&t->lock);
    if (t->is_accepting && !t->is_closing)
        nng_stream_listener_accept(t->listener, t->opener);
    pthread_mutex_unlock(&t->lock);
}

static void pause_accepting(struct transport *t)
{
    pthread_mutex_lock(&t->lock);
    t->is_pausing = t->is_accepting && !t->is_closing;
    if (t->is_pausing)
        nng_sleep_aio(ACCEPT_PAUSE_MS, t->opener);
    pthread_mutex_unlock(&t->lock);
}

static void on_accept(void *arg)
{
    struct transport *t = arg;
    if (t->is_pausing) {
        t->is_pausing = false;
    } else if (nng_aio_result(t->opener) == 0) {
        struct pipe *p = pipe_new(t, nng_aio_get_output(t->opener, 0));
        if (p) {
            p->is_attached = t->ev->attach(t->ud, p->id);
            if (p->is_attached)
                start_pipe(p);
            else
                pipe_over(p);
        }
    } else {
        pause_accepting(t); // short of something, or closed
        return;
    }
    accept_next(t);
}

// ---------------------------------------------------------------- dialling

static void dial_now(struct transport *t)
{
    pthread_mutex_lock(&t->lock);
    if (!t->is_closing)
        nng_stream_dialer_dial(t->dialer, t->opener);
    pthread_mutex_unlock(&t->lock);
}

// why: the attempt failed; NULL: there was a connection.
static void dial_again(struct transport *t, const char *why)
{
    if (why && t->ev->failed)
        t->ev->failed(t->ud, why);
    pthread_mutex_lock(&t->lock);
    if (!why)
        t->connect_ms = TRANSPORT_BACKOFF_MIN_MS / 2;
    else if ((t->connect_ms *= 2) > TRANSPORT_BACKOFF_MAX_MS)
        t->connect_ms = TRANSPORT_BACKOFF_MAX_MS;
    int64_t ms = t->connect_ms > t->backoff_ms ? t->connect_ms : t->backoff_ms;
    ms = ms / 2 + (int64_t)rand_below((uint64_t)ms + 1);
    if (!t->is_closing) {
        t->is_pausing = true;
        nng_sleep_aio((nng_duration)ms, t->opener);
    }
    pthread_mutex_unlock(&t->lock);
}

static void on_dial(void *arg)
{
    struct transport *t = arg;
    pthread_mutex_lock(&t->lock);
    bool paused = t->is_pausing;
    t->is_pausing = false;
    pthread_mutex_unlock(&t->lock);
    if (paused) {
        dial_now(t);
        return;
    }
    int rv = nng_aio_result(t->opener);
    if (rv != 0) {
        dial_again(t, nng_strerror(rv));
        return;
    }
    struct pipe *p = pipe_new(t, nng_aio_get_output(t->opener, 0));
    if (!p) {
        dial_again(t, "out of memory");
        return;
    }
    p->why = "the server closed the connection at once: it is full, or had too many failed "
             "attempts from here";
    nng_aio_set_timeout(p->rx, CONNECT_MS);
    start_pipe(p);
}

// ---------------------------------------------------------------- life

static void t_free(struct transport *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->is_closing = true;
    pthread_mutex_unlock(&t->lock);
    if (t->listener)
        nng_stream_listener_close(t->listener);
    if (t->dialer)
        nng_stream_dialer_close(t->dialer);
    if (t->opener)
        nng_aio_stop(t->opener);
    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->n_buckets; i++) {
        for (struct pipe *p = t->table[i]; p; p = p->next)
            pipe_close(p); // ends later, on its reader's thread
    }
    while (t->n_pipes)
        pthread_cond_wait(&t->cond, &t->lock);
    pthread_mutex_unlock(&t->lock);
    if (t->listener)
        nng_stream_listener_free(t->listener);
    if (t->dialer)
        nng_stream_dialer_free(t->dialer);
    nng_aio_free(t->opener);
    large_free(t->spare);
    pthread_cond_destroy(&t->cond);
    pthread_mutex_destroy(&t->lock);
    mem_free(t->table);
    mem_free(t);
}

static struct transport *t_new(const char *url, bool is_dialer, const struct transport_events *ev,
                               void *ud)
{
    struct transport *t = mem_alloc(sizeof *t);
    size_t n_buckets = is_dialer ? N_BUCKETS_DIALER : N_BUCKETS_LISTENER;
    struct pipe **table = mem_array(n_buckets, sizeof(struct pipe *));
    if (!t || !table) {
        mem_free(t);
        mem_free(table);
        return NULL;
    }
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->cond, NULL);
    t->table = table;
    t->n_buckets = n_buckets;
    t->is_dialer = is_dialer;
    t->is_ipc = !str_starts_with(url, "tcp");
    t->n_prefix = REQUEST_SIZE + 8 + (t->is_ipc ? 1 : 0);
    t->is_accepting = true;
    t->connect_ms = t->backoff_ms = TRANSPORT_BACKOFF_MIN_MS;
    t->ev = ev;
    t->ud = ud;
    if (nng_aio_alloc(&t->opener, is_dialer ? on_dial : on_accept, t) == 0)
        return t;
    t->opener = NULL;
    t_free(t);
    return NULL;
}

static bool is_ours(const char *url)
{
    return str_starts_with(url, "tcp") || str_starts_with(url, "ipc://");
}

static enum status t_listen(const char *url, const struct transport_events *ev, void *ud,
                            char *ret_url, size_t ret_url_size, struct transport **ret,
                            struct err *err)
{
    if (!is_ours(url))
        return err_set(err, STATUS_INVALID_ARGUMENT, "listen on %s: tcp and ipc only", url);
    struct transport *t = t_new(url, false, ev, ud);
    if (!t)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "listen on %s: out of memory", url);
    int rv = nng_stream_listener_alloc(&t->listener, url);
    if (rv == 0)
        rv = nng_stream_listener_listen(t->listener);
    if (rv != 0) {
        t_free(t);
        return transport_err(err, rv, "listen on", url);
    }
    nng_sockaddr sa = {0};
    if (ret_url && nng_stream_listener_get_addr(t->listener, NNG_OPT_LOCADDR, &sa) != 0)
        sa.s_family = NNG_AF_UNSPEC;
    if (ret_url)
        transport_real_url(&sa, url, ret_url, ret_url_size);
    *ret = t; // events may name it from here on
    accept_next(t);
    return STATUS_OK;
}

static enum status t_dial(const char *url, const struct transport_events *ev, void *ud,
                          struct transport **ret, struct err *err)
{
    if (!is_ours(url))
        return err_set(err, STATUS_INVALID_ARGUMENT, "dial %s: tcp and ipc only", url);
    struct transport *t = t_new(url, true, ev, ud);
    if (!t)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "dial %s: out of memory", url);
    int rv = nng_stream_dialer_alloc(&t->dialer, url);
    if (rv != 0) {
        t_free(t);
        return transport_err(err, rv, "dial", url);
    }
    nng_aio_set_timeout(t->opener, CONNECT_MS);
    *ret = t; // events may name it from here on
    dial_now(t);
    return STATUS_OK;
}

static void t_set_backoff(struct transport *t, int64_t ms)
{
    pthread_mutex_lock(&t->lock);
    t->backoff_ms = ms;
    pthread_mutex_unlock(&t->lock);
}

static void t_drop(struct transport *t, uint32_t id)
{
    struct pipe *p = pipe_find(t, id);
    if (!p)
        return;
    pipe_close(p);
    pipe_unref(p);
}

static bool t_peer(struct transport *t, uint32_t id, struct transport_addr *ret)
{
    struct pipe *p = pipe_find(t, id);
    if (!p)
        return false;
    nng_sockaddr sa;
    bool ok = nng_stream_get_addr(p->stream, NNG_OPT_REMADDR, &sa) == 0;
    if (ok)
        *ret = transport_addr_of(&sa);
    pipe_unref(p);
    return ok;
}

static void t_stop_accepting(struct transport *t)
{
    pthread_mutex_lock(&t->lock);
    t->is_accepting = false;
    pthread_mutex_unlock(&t->lock);
    nng_stream_listener_close(t->listener);
}

static void t_quiesce(struct transport *t)
{
    (void)t; // messages belong to their pipe
}

const struct transport_ops transport_stream = {
    .name = "stream",
    .is_serial = true,
    .listen = t_listen,
    .dial = t_dial,
    .set_backoff = t_set_backoff,
    .send = t_send,
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
