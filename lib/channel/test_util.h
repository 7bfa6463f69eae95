#pragma once
// What the tests of this folder share: a small platform, connections in memory.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/time.h"
#include "channel/internal.h"
#include "crypto/crypto.h"

#define ROLE_ORCHESTRATOR 9
#define ROLE_ORIGIN 12
#define BOTH_LINKS (1U << CHAN_LINK_CLIENT | 1U << CHAN_LINK_SERVICE)

struct world {
    uint8_t operator_secret[64];
    struct chan_trust trust;
    struct chan_identity client, server; // nodes: orchestrator and origin
};
void make_world(struct world *w);
int64_t now_s(void);
struct chan_grant grant_for(const struct chan_identity *id, unsigned role, const char *name);
void set_grant(struct chan_identity *id, const struct chan_grant *g,
               const uint8_t operator_secret[64]);

struct result {
    enum status status;
    enum chan_event event;
    uint8_t *data;
    size_t len;
};
// Feed one message; who refuses it must stay silent.
struct result feed(struct chan *c, void *in, size_t n, struct buf *out);

struct pair {
    struct chan *client, *server;
    struct buf init, response, scratch;
};
void pair_new(struct pair *p, struct world *w, enum chan_link link); // the init is made
void pair_done(struct pair *p);
void pair_connect(struct pair *p, struct world *w, enum chan_link link);

extern uint8_t record[CHAN_MAX_RECORD]; // what seal_text() made
size_t seal_text(struct chan *from, const char *text);
void send_text(struct pair *p, struct chan *from, struct chan *to, const char *text);

// Put a right mac1 on a changed frame, as somebody can who knows the responder's public key.
void fix_mac1(const struct world *w, uint8_t *frame, size_t n);
bool in_session_field(size_t byte);
