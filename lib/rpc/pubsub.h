#pragma once
// Publish/subscribe: sealed, numbered messages on nng's PUB and SUB sockets.
//
// A PUB socket sends the same bytes to whoever connects, so a message is sealed with a key of its
// topic and epoch, which those who may read the topic are given by a call on a sealed connection.
// All of them hold that key; so that none of them can speak for the publisher, each message is also
// signed with a key that the publisher alone has. docs/protocol.md "Events" has the bytes.
//
// Messages may be lost: subscribers that are slow, or come late, miss some. Numbers say so.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

#define PUBSUB_MAX_PAYLOAD 16384U
#define PUBSUB_HEADER_SIZE 36U                           // topic, magic, publisher, epoch, number
#define PUBSUB_OVERHEAD (PUBSUB_HEADER_SIZE + 16U + 64U) // with tag and signature
#define PUBSUB_OVERLAP_MS 10000                          // an epoch's key opens on, after the next

// What SUB sockets filter by: a hash, so that names of topics are not on the wire.
struct pubsub_topic {
    uint8_t id[8];
};
struct pubsub_topic pubsub_topic_of(const char *name);

// ---------------------------------------------------------------- sealing

// One topic's publishing side. In the caller's storage, guarded by the caller.
struct pubsub_writer {
    struct pubsub_topic topic;
    uint64_t publisher;      // random: another one after each start
    uint64_t epoch;          // 1, 2, ...
    uint64_t number;         // of the last message; never starts again
    uint8_t key[32];         // of this epoch
    uint8_t sign_secret[64]; // Ed25519, its public key at the end
};
void pubsub_writer_init(struct pubsub_writer *w, const char *topic);
void pubsub_writer_done(struct pubsub_writer *w);         // wipes the keys
void pubsub_writer_change_epoch(struct pubsub_writer *w); // a new random key
// Append one message to out. errors  INVALID_ARGUMENT: payload too long; RESOURCE_EXHAUSTED
enum status pubsub_seal(struct pubsub_writer *w, const void *payload, size_t n, struct buf *out,
                        struct err *err) MUST_CHECK;

// ---------------------------------------------------------------- opening

// What a subscriber is told by the call.
struct pubsub_grant {
    uint64_t publisher, epoch, number; // number: of the last message so far
    uint8_t key[32];
    uint8_t verify_key[32]; // Ed25519
};
void pubsub_grant_of(const struct pubsub_writer *w, struct pubsub_grant *ret);

struct pubsub_reader_stats {
    uint64_t n_opened;
    uint64_t n_missed;   // numbers that never came
    uint64_t n_repeated; // replayed, or overtaken by a later one
    uint64_t n_forged;   // bad tag or signature, malformed, another topic
    uint64_t n_stale;    // of an epoch whose time is over
    uint64_t n_unknown;  // of an epoch or a publisher whose key we do not have
};
struct pubsub_epoch {
    uint64_t epoch; // 0: none
    uint8_t key[32];
};
// One topic's subscribing side. In the caller's storage, guarded by the caller.
struct pubsub_reader {
    struct pubsub_topic topic;
    uint64_t publisher, number;
    uint8_t verify_key[32];
    struct pubsub_epoch now, before;
    int64_t before_until_us; // monotonic
    struct pubsub_reader_stats stats;
};
void pubsub_reader_init(struct pubsub_reader *r, const char *topic);
void pubsub_reader_done(struct pubsub_reader *r); // wipes the keys
// Use what the call told. An answer older than what we have changes nothing; the epoch before stays
// good for messages that are under way.
void pubsub_reader_adopt(struct pubsub_reader *r, const struct pubsub_grant *g, int64_t now_us);

enum pubsub_result {
    PUBSUB_OPENED,
    PUBSUB_DROPPED, // counted in the reader's stats
    PUBSUB_ASK,     // dropped as well: its key must be asked for
};
// Opens in place: *ret_payload points into msg.
enum pubsub_result pubsub_open(struct pubsub_reader *r, uint8_t *msg, size_t n, int64_t now_us,
                               const uint8_t **ret_payload, size_t *ret_n) MUST_CHECK;

// ---------------------------------------------------------------- sockets

// Any thread. A subscriber that does not take messages keeps the newest 2,048 of them.
struct pubsub_publisher;
// url      tcp://127.0.0.1:0, ipc:///path, inproc://name
// ret_url  the real address, RPC_URL_SIZE bytes
enum status pubsub_publisher_new(const char *url, char *ret_url, struct pubsub_publisher **ret,
                                 struct err *err) MUST_CHECK;
void pubsub_publisher_free(struct pubsub_publisher *p);
DEFINE_AUTO(struct pubsub_publisher, pubsub_publisher_free)
// Never blocks. errors  RESOURCE_EXHAUSTED
enum status pubsub_publisher_send(struct pubsub_publisher *p, const void *msg, size_t n,
                                  struct err *err) MUST_CHECK;
unsigned pubsub_publisher_n_peers(const struct pubsub_publisher *p);

// Both run on nng's threads, and must neither block nor free the subscriber.
struct pubsub_events {
    void (*message)(void *ud, uint8_t *msg, size_t n); // msg may be changed; borrowed
    void (*connected)(void *ud, bool is_connected);
};
struct pubsub_subscriber;
// Dials in the background, again and again. topic NULL: all messages. ev is borrowed.
enum status pubsub_subscriber_new(const char *url, const struct pubsub_topic *topic,
                                  const struct pubsub_events *ev, void *ud,
                                  struct pubsub_subscriber **ret, struct err *err) MUST_CHECK;
void pubsub_subscriber_free(struct pubsub_subscriber *s); // no callback runs afterwards
DEFINE_AUTO(struct pubsub_subscriber, pubsub_subscriber_free)
