#pragma once
// Transport: whole messages over connections ("pipes") that others make. What a conn needs of the
// network and nothing more, so that another transport is another table of these functions.
//
// Events arrive on the transport's own threads and must not block, nor free the transport.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct transport;
struct transport_msg;

// Where a peer calls from, as far as limits tell peers apart: IPv4 whole, of IPv6 the /64.
struct transport_addr {
    uint8_t family;   // 4, 6; 0: this machine (ipc, inproc)
    uint8_t bytes[8]; // 4 or 8 of them, the others zero
};

struct transport_events {
    // A pipe exists. False refuses it; no further event names it then. A listening transport that
    // is_serial tells before it has heard anything of the peer.
    bool (*attach)(void *ud, uint32_t pipe);
    // The pipe is gone: the last event that names it (sent() excepted), though a message of it may
    // arrive later unless the transport is_serial.
    void (*detach)(void *ud, uint32_t pipe);
    // A message; owned by the callee. In order per pipe. more: another one is at hand and comes at
    // once, so that answers may wait for it.
    void (*receive)(void *ud, uint32_t pipe, struct transport_msg *m, bool more);
    // A message was taken (or given up) after its send() had returned, and its slot is free; never
    // from within send(). NULL: nobody asks.
    void (*sent)(void *ud, uint32_t pipe);
    // Dialling side: an attempt to connect failed. May be NULL; not every transport knows.
    void (*failed)(void *ud, const char *why);
};

struct transport_ops {
    const char *name;
    // Many threads tell of pipes, and of one pipe one at a time: receive() and detach() may work
    // for a while (never wait).
    bool is_serial;
    enum status (*listen)(const char *url, const struct transport_events *ev, void *ud,
                          char *ret_url, size_t ret_url_size, struct transport **ret,
                          struct err *err);
    // Keeps one pipe to url, dialling again with backoff for ever.
    enum status (*dial)(const char *url, const struct transport_events *ev, void *ud,
                        struct transport **ret, struct err *err);
    // Dialling side: after a pipe's end the next attempt comes in about ms (random, half to one and
    // a half). Attempts that fail wait longer and longer of themselves.
    void (*set_backoff)(struct transport *t, int64_t ms);
    // Consumes m. True: it has left already, and no sent() will tell so. At most
    // TRANSPORT_DIAL_SLOTS at a time on a dialling transport.
    bool (*send)(struct transport *t, uint32_t pipe, struct transport_msg *m);
    void (*drop)(struct transport *t, uint32_t pipe); // close a pipe; detach follows later
    // Listening side: who is at the other end. False: the pipe is gone.
    bool (*peer)(struct transport *t, uint32_t pipe, struct transport_addr *ret);
    void (*stop_accepting)(struct transport *t); // listening side
    void (*quiesce)(struct transport *t); // dialling side: nothing sent so far reaches a later pipe
    void (*free)(struct transport *t);    // waits until no event runs; not from an event
    struct transport_msg *(*msg_new)(size_t n);
    uint8_t *(*msg_data)(struct transport_msg *m);
    size_t (*msg_size)(struct transport_msg *m);
    void (*msg_shorten)(struct transport_msg *m, size_t n); // to n bytes
    void (*msg_free)(struct transport_msg *m);
};
#define TRANSPORT_DIAL_SLOTS 8
#define TRANSPORT_BACKOFF_MIN_MS 50
#define TRANSPORT_BACKOFF_MAX_MS 2000

extern const struct transport_ops transport_nng;    // nng's REQ and REP sockets: any nng url
extern const struct transport_ops transport_epoll;  // the same bytes, event loops: tcp and ipc
const struct transport_ops *transport_named(const char *name); // NULL: no such one
// What serves url: wanted if there is one and it can; else epoll for tcp and ipc, nng for inproc.
const struct transport_ops *transport_for(const struct transport_ops *wanted, const char *url);
void transport_nng_fini(void);
// Messages given out or received, and not freed yet; those that nng's sockets hold are not counted.
long transport_nng_messages(void);
long transport_epoll_messages(void);
long transport_messages(void); // of both
