#pragma once
// What the tests of the wire share: seeds, patience, memory in use, clients and servers that notice
// a dead link soon. See docs/testing.md.
#include "rpc/test_util.h"

// Sanitizers slow everything down, and many instances run beside each other.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_SANITIZED 1
#endif
#endif
#ifndef IS_SANITIZED
#define IS_SANITIZED 0
#endif

#define PATIENCE_MS (IS_SANITIZED ? 60000 : 20000) // for what must happen, but has no deadline

// $CAUCE_TEST_SEED, or a new one; printed, so that a failure can be repeated.
uint64_t wire_seed(const char *test);

size_t wire_held_bytes(void); // of the heap, by everybody in this process

// A server and its client that ping after ping_ms of silence and give up after twice that.
void wire_serve(struct world *w, const char *url, bool is_public, int64_t ping_ms);
struct rpc_client *wire_client(struct world *w, const char *url, int64_t ping_ms);

// One unary call with a deadline; err and reply are of no interest.
enum status wire_call(struct rpc_client *c, int method, int64_t number, const char *key,
                      int64_t deadline_ms);

// Wait a moment before the next look; at least 1 ms, so that loops around it do not spin.
void wire_pause(int64_t ms);
// Until is_so(ud), at most PATIENCE_MS.
bool wire_wait(bool (*is_so)(void *ud), void *ud);
// Until the server has no call and at most that many connections.
bool wire_wait_quiet(struct world *w, unsigned conns_open);
