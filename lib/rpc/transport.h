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

struct transport_events {
    // A pipe exists. False refuses it; no further event names it then.
    bool (*attach)(void *ud, uint32_t pipe);
    // The pipe is gone: the last event that names it, though a message of it may arrive later.
    void (*detach)(void *ud, uint32_t pipe);
    // A message; owned by the callee. In order per pipe.
    void (*receive)(void *ud, uint32_t pipe, struct transport_msg *m);
    // Dialling side: a message was taken (or given up) and its send slot is free. May be NULL.
    void (*sent)(void *ud);
};

struct transport_ops {
    enum status (*listen)(const char *url, const struct transport_events *ev, void *ud,
                          char *ret_url, size_t ret_url_size, struct transport **ret,
                          struct err *err);
    // Keeps one pipe to url, dialling again with backoff for ever.
    enum status (*dial)(const char *url, const struct transport_events *ev, void *ud,
                        struct transport **ret, struct err *err);
    // Consumes m. At most TRANSPORT_DIAL_SLOTS at a time on a dialling transport.
    void (*send)(struct transport *t, uint32_t pipe, struct transport_msg *m);
    void (*drop)(struct transport *t, uint32_t pipe); // close a pipe; detach follows later
    void (*stop_accepting)(struct transport *t);      // listening side
    void (*quiesce)(struct transport *t); // dialling side: cancel and wait for every send
    void (*free)(struct transport *t);    // waits until no event runs; not from an event
    struct transport_msg *(*msg_new)(size_t n);
    uint8_t *(*msg_data)(struct transport_msg *m);
    size_t (*msg_size)(struct transport_msg *m);
    void (*msg_shorten)(struct transport_msg *m, size_t n); // to n bytes
    void (*msg_free)(struct transport_msg *m);
};
#define TRANSPORT_DIAL_SLOTS 8

extern const struct transport_ops transport_nng;
void transport_nng_fini(void);
long transport_nng_messages(void); // given out or received and neither sent nor freed yet
