#pragma once
// Objects: how stored bytes are named and how a piece of them is verified.
//
// An object's name is the root of a binary BLAKE2b-256 tree over leaves of 64 KiB:
//
//   n      = ceil(size / 65536) leaves; the last one may be short; an empty object has none
//   leaf   = BLAKE2b-256(personal "cauce-object-lf" 0x00, the leaf's bytes)
//   node   = BLAKE2b-256(personal "cauce-object-nd" 0x00, left 32 || right 32)
//   top    = the one digest left after pairing neighbours level by level; an odd last digest goes
//   up
//            unchanged (so the left half always has the largest power of two of leaves that is
//            smaller than n, as in RFC 6962 section 2.1); one leaf: that leaf; no leaf: 32 zeros
//   digest = BLAKE2b-256(personal "cauce-object-rt" 0x00, size as big-endian 64 bits || top 32)
//
// The digest binds the size, the size fixes the shape, the personalisation keeps the three levels
// apart. So whoever knows a digest can check the list of leaf digests (0.05 % of the object), and
// with it any aligned range, whoever sent it. source: docs/protocol.md "Objects"
//
// Stateless but for the structs shown; any thread. crypto_init() must have been called. The store
// on disk is in object/store.h, uploads in object/upload.h: clients need this page alone.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "crypto/crypto.h"
#include "work/work.h"

#define OBJECT_LEAF_BYTES 65536
#define OBJECT_DIGEST_SIZE 32
#define OBJECT_HEX_SIZE (2 * OBJECT_DIGEST_SIZE + 1) // lower-case hex, as in paths and logs
#define OBJECT_MAX_BYTES (INT64_C(1) << 40)          // 1 TiB: 2^24 leaves

// size in [0, OBJECT_MAX_BYTES]
int64_t object_n_leaves(int64_t size);
// Bytes of one leaf: 65536 but for a short last one; 0 for a leaf that the object does not have.
size_t object_leaf_len(int64_t size, int64_t leaf);

void object_leaf_digest(uint8_t ret[OBJECT_DIGEST_SIZE], const void *bytes, size_t n);
// Digest of a whole object in memory.
void object_digest(uint8_t ret[OBJECT_DIGEST_SIZE], const void *bytes, size_t n);

// ---- from leaf digests to the root: 800 bytes however large the object ----
struct object_tree {
    int64_t n_leaves;                        // added so far
    uint8_t pending[25][OBJECT_DIGEST_SIZE]; // [i]: subtree of 2^i leaves, where bit i of n is set
};
void object_tree_init(struct object_tree *t);
// False once the object would exceed OBJECT_MAX_BYTES; nothing is added then.
bool object_tree_add(struct object_tree *t, const uint8_t leaf[OBJECT_DIGEST_SIZE]) MUST_CHECK;
// May be asked at any time; the tree can grow on afterwards. size must need exactly the leaves
// added: false otherwise, ret untouched.
bool object_tree_root(const struct object_tree *t, int64_t size,
                      uint8_t ret[OBJECT_DIGEST_SIZE]) MUST_CHECK;

// ---- from bytes in order to the root ----
struct object_hasher {
    struct object_tree tree;
    struct crypto_blake2b leaf;
    size_t leaf_fill;   // bytes in `leaf`
    int64_t size;       // bytes so far
    struct buf *leaves; // borrowed; may be NULL
};
// leaves  receives 32 bytes per finished leaf, the last one at object_hasher_final(); may be NULL
void object_hasher_init(struct object_hasher *h, struct buf *leaves);
// errors  OUT_OF_RANGE beyond OBJECT_MAX_BYTES; RESOURCE_EXHAUSTED when `leaves` cannot take more
enum status object_hasher_update(struct object_hasher *h, const void *p, size_t n,
                                 struct err *err) MUST_CHECK;
// The hasher is spent afterwards.
enum status object_hasher_final(struct object_hasher *h, uint8_t ret[OBJECT_DIGEST_SIZE],
                                struct err *err) MUST_CHECK;

// ---- verification ----
// Do these leaf digests (n x 32 bytes, in order) belong to the object of that digest and size?
// errors  DATA_LOSS: wrong number of them or another root
enum status object_verify_leaves(const uint8_t digest[OBJECT_DIGEST_SIZE], int64_t size,
                                 const void *leaves, size_t leaves_bytes,
                                 struct err *err) MUST_CHECK;
// Do these bytes belong at `offset` of an object of `size` bytes?
//
// leaves  all leaf digests of the object, verified before
// offset  multiple of OBJECT_LEAF_BYTES
// n       whole leaves; only the object's last one may be short, and then exactly as long as it is
// errors  INVALID_ARGUMENT: not aligned or outside the object; DATA_LOSS: names the bad leaf
enum status object_verify_range(const uint8_t *leaves, int64_t size, int64_t offset,
                                const void *bytes, size_t n, struct err *err) MUST_CHECK;
// One leaf against its digest.
bool object_leaf_is_good(const uint8_t leaf[OBJECT_DIGEST_SIZE], const void *bytes,
                         size_t n) MUST_CHECK;

// ---- files ----
struct object_file_opts {
    void (*progress)(void *ud, int64_t done_bytes,
                     int64_t total_bytes); // at most once per MiB; or NULL
    void *ud;
    struct cancel *cancel; // or NULL
};
// Digest of a regular file from its first byte to its end, whatever the descriptor's position is
// (pread; the position does not change).
//
// o         may be NULL
// leaves    receives all leaf digests; initialised by the caller with a limit; may be NULL
// errors    CANCELLED; OUT_OF_RANGE; ABORTED when the file's size changed meanwhile;
//           RESOURCE_EXHAUSTED; what reading said
// threads   any; blocks on disk
enum status object_hash_fd(int fd, const struct object_file_opts *o,
                           uint8_t ret_digest[OBJECT_DIGEST_SIZE], int64_t *ret_size,
                           struct buf *leaves, struct err *err) MUST_CHECK;
