#pragma once
// What the files of the epoll transport share: transport_epoll.c listens and keeps the table of
// pipes, dial.c dials, pipe.c reads and writes.
#include <pthread.h>
#include <stdatomic.h>

#include "rpc/address.h"
#include "rpc/loop.h"
#include "rpc/transport.h"

#define PREFIX_MAX 16 // ipc's type, length, request id; padded

struct transport_msg {
    struct transport_msg *next;
    size_t size;                // of the body
    uint8_t prefix[PREFIX_MAX]; // the last bytes of it go before the body
    uint8_t body[];
};
struct transport_msg *msg_resize(struct transport_msg *m, size_t n); // its bytes, not its size
struct transport_msg *msg_new(size_t n);
void msg_free(struct transport_msg *m);

struct pipe { // a connection
    struct loop_io io;
    struct transport *t;
    struct loop *loop;
    struct pipe *next; // in its bucket
    uint32_t id;
    atomic_uint refs; // its loop's, who looked it up, a posted gather
    struct transport_addr peer;

    pthread_mutex_t lock;  // what follows, and writing to fd
    int fd;                // closed by the loop alone
    atomic_bool is_closed; // set under the lock; the loop ends the pipe
    bool is_blocked;       // the socket is full: the loop writes on
    bool is_posted;        // gather is
    struct transport_msg *tx_head, **tx_tail;
    size_t tx_off; // of the first message, prefix included
    unsigned n_queued;
    struct loop_task gather;
    atomic_uint n_unseen; // written by senders since the loop last looked here
    atomic_bool is_answered;

    // the loop's
    bool heard_hello, is_attached;
    const char *why; // dialling: it ended before it was attached
    size_t n_head;
    uint8_t head[PREFIX_MAX];
    struct transport_msg *part, *held;
    size_t part_size, part_room; // part's size is what came of it
    size_t part_most;            // the largest message so far
};

struct look_up;
struct transport {
    const struct transport_events *ev;
    void *ud;
    struct address_name name;
    bool is_dialer;
    size_t n_prefix;
    struct loop *loop; // the opener's, who accepts or dials

    // the opener's: on its loop
    struct loop_io io;
    int fd; // listens, or is being connected; -1: none
    struct loop_timer timer;
    struct loop_task start, stop;
    // the dialling one's
    struct look_up *look_up;
    struct address addresses[ADDRESS_MAX];
    size_t n_addresses, next_address;
    struct pipe *unheard; // connected, but it has not said hello
    int64_t connect_ms;   // what attempts that fail wait

    pthread_mutex_t lock;
    pthread_cond_t cond; // n_pipes fell, is_stopped
    bool is_closing, is_accepting, is_stopped;
    int64_t backoff_ms;
    uint32_t last_id;
    unsigned n_pipes;
    size_t n_buckets;
    struct pipe **table;
};

// ---------------------------------------------------------------- transport_epoll.c
// Consumes fd. In the table, attached to nothing, watched by nobody yet. NULL: no memory, or the
// transport is being freed.
struct pipe *pipe_new(struct transport *t, int fd, struct loop *l,
                      const struct address *remote) MUST_CHECK;
void pipe_unref(struct pipe *p);
void pipe_forget(struct pipe *p); // out of the table

// ---------------------------------------------------------------- dial.c
void dial_start(struct transport *t); // on its loop
void dial_stop(struct transport *t);  // the same
void dial_heard(struct transport *t); // the pipe's hello came
// The connection is over. why: it never was one.
void dial_again(struct transport *t, const char *why);

// ---------------------------------------------------------------- pipe.c
void pipe_ready(struct loop_io *io, uint32_t events);
void pipe_gather(struct loop_task *task);
bool pipe_say_hello(struct pipe *p); // false: the peer is gone
// Consumes m. True: nothing of it is left here.
bool pipe_send(struct pipe *p, struct transport_msg *m);
void pipe_close(struct pipe *p); // the loop notices and ends the pipe
// On its loop, or before that watches it: nothing is told of the pipe after this.
void pipe_over(struct pipe *p);
