#pragma once
// A peer made by hand on a plain socket, for tests: an honest handshake, and then whatever the test
// wants it to say. Failures are cmocka's, so only the test's own thread may use it.
#include "base/buf.h"
#include "channel/channel.h"
#include "rpc/frame.h"
#include "rpc/test_util.h"

#define PEER_PATIENCE_MS 20000
#define PEER_RECORD_HEAD (CHAN_RECORD_OVERHEAD - 16)

struct peer {
    int fd;
    struct chan *chan;
    uint8_t in[CHAN_MAX_RECORD + 64], out[2 * CHAN_MAX_RECORD];
};

struct peer *peer_dial(struct world *w); // a client, ready
// A socket that listens on 127.0.0.1; its url to ret_url.
int peer_listen(char *ret_url, size_t size);
// A server's side of the next connection there: the hellos are said and the first message is in
// `in`, *ret_n bytes of it. NULL: the client left before.
struct peer *peer_accept(struct world *w, int listen_fd, size_t *ret_n);
void peer_answer(struct peer *p, size_t n, struct buf *out); // what answers that message
void peer_finish(struct peer *p, size_t n);                  // and sends it
void peer_free(struct peer *p);

void peer_send(struct peer *p, const void *data, size_t n); // quietly nothing once it was cut off
bool peer_recv(struct peer *p, void *data, size_t n);       // false at the connection's end
void peer_frame_head(uint8_t head[12], uint64_t n);         // the transport's, for n bytes
void peer_send_message(struct peer *p, const void *body, size_t n);
bool peer_recv_message(struct peer *p, size_t *ret_n);          // into p->in
size_t peer_seal(struct peer *p, const void *frames, size_t n); // into p->out
void peer_send_frames(struct peer *p, const struct buf *b);
// Reads records until that many frames of a type came; returns how many did. ret_id: the last
// one's.
unsigned peer_recv_frames(struct peer *p, enum frame_type type, unsigned want, uint32_t *ret_id);
void peer_expect_cut(struct peer *p);
