// The tree over leaves: object.h says how it is built. A list of leaf digests is folded like a
// binary counter: pending[i] holds a finished subtree of 2^i leaves, so n leaves need log2(n)
// digests.
#include "object/object.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

static const uint8_t person_leaf[16] = "cauce-object-lf";
static const uint8_t person_node[16] = "cauce-object-nd";
static const uint8_t person_root[16] = "cauce-object-rt";

#define MAX_LEAVES (OBJECT_MAX_BYTES / OBJECT_LEAF_BYTES)

int64_t object_n_leaves(int64_t size)
{
    assert(size >= 0 && size <= OBJECT_MAX_BYTES);
    return (size + OBJECT_LEAF_BYTES - 1) / OBJECT_LEAF_BYTES;
}

size_t object_leaf_len(int64_t size, int64_t leaf)
{
    if (leaf < 0 || leaf >= object_n_leaves(size))
        return 0;
    int64_t left = size - leaf * OBJECT_LEAF_BYTES;
    return left < OBJECT_LEAF_BYTES ? (size_t)left : OBJECT_LEAF_BYTES;
}

void object_leaf_digest(uint8_t ret[OBJECT_DIGEST_SIZE], const void *bytes, size_t n)
{
    crypto_blake2b(ret, OBJECT_DIGEST_SIZE, bytes, n, NULL, 0, person_leaf);
}

// out may be one of the two
static void node_digest(uint8_t out[OBJECT_DIGEST_SIZE], const uint8_t *left, const uint8_t *right)
{
    uint8_t both[2 * OBJECT_DIGEST_SIZE];
    memcpy(both, left, OBJECT_DIGEST_SIZE);
    memcpy(both + OBJECT_DIGEST_SIZE, right, OBJECT_DIGEST_SIZE);
    crypto_blake2b(out, OBJECT_DIGEST_SIZE, both, sizeof both, NULL, 0, person_node);
}

void object_tree_init(struct object_tree *t)
{
    t->n_leaves = 0;
}

bool object_tree_add(struct object_tree *t, const uint8_t leaf[OBJECT_DIGEST_SIZE])
{
    if (t->n_leaves >= MAX_LEAVES)
        return false;
    uint8_t carry[OBJECT_DIGEST_SIZE];
    memcpy(carry, leaf, sizeof carry);
    int level = 0;
    for (; t->n_leaves >> level & 1; level++)
        node_digest(carry, t->pending[level], carry);
    memcpy(t->pending[level], carry, sizeof carry);
    t->n_leaves++;
    return true;
}

bool object_tree_root(const struct object_tree *t, int64_t size, uint8_t ret[OBJECT_DIGEST_SIZE])
{
    if (size < 0 || size > OBJECT_MAX_BYTES || object_n_leaves(size) != t->n_leaves)
        return false;
    uint8_t top[OBJECT_DIGEST_SIZE] = {0};
    bool any = false;
    for (int level = 0; t->n_leaves >> level; level++) { // smallest, that is rightmost, first
        if (!(t->n_leaves >> level & 1))
            continue;
        if (any)
            node_digest(top, t->pending[level], top);
        else
            memcpy(top, t->pending[level], sizeof top);
        any = true;
    }

    uint8_t in[8 + OBJECT_DIGEST_SIZE];
    for (int i = 0; i < 8; i++)
        in[i] = (uint8_t)((uint64_t)size >> (56 - 8 * i));
    memcpy(in + 8, top, sizeof top);
    crypto_blake2b(ret, OBJECT_DIGEST_SIZE, in, sizeof in, NULL, 0, person_root);
    return true;
}

// ---------------------------------------------------------------- hasher

static void leaf_begin(struct object_hasher *h)
{
    crypto_blake2b_init(&h->leaf, OBJECT_DIGEST_SIZE, NULL, 0, person_leaf);
    h->leaf_fill = 0;
}

void object_hasher_init(struct object_hasher *h, struct buf *leaves)
{
    object_tree_init(&h->tree);
    h->size = 0;
    h->leaves = leaves;
    leaf_begin(h);
}

static enum status leaf_end(struct object_hasher *h, struct err *err)
{
    uint8_t d[OBJECT_DIGEST_SIZE];
    crypto_blake2b_final(&h->leaf, d, sizeof d);
    if (!object_tree_add(&h->tree, d))
        return err_set(err, STATUS_OUT_OF_RANGE, "object: larger than %lld bytes",
                       (long long)OBJECT_MAX_BYTES);
    if (h->leaves && !buf_append(h->leaves, d, sizeof d))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "object: no room for its leaf digests");
    return STATUS_OK;
}

enum status object_hasher_update(struct object_hasher *h, const void *p, size_t n, struct err *err)
{
    if (n > (uint64_t)(OBJECT_MAX_BYTES - h->size))
        return err_set(err, STATUS_OUT_OF_RANGE, "object: larger than %lld bytes",
                       (long long)OBJECT_MAX_BYTES);
    const uint8_t *at = p;
    while (n > 0) {
        size_t take = OBJECT_LEAF_BYTES - h->leaf_fill;
        if (take > n)
            take = n;
        crypto_blake2b_update(&h->leaf, at, take);
        h->leaf_fill += take;
        h->size += (int64_t)take;
        at += take;
        n -= take;
        if (h->leaf_fill < OBJECT_LEAF_BYTES)
            break;
        enum status s = leaf_end(h, err);
        if (s != STATUS_OK)
            return s;
        leaf_begin(h);
    }
    return STATUS_OK;
}

enum status object_hasher_final(struct object_hasher *h, uint8_t ret[OBJECT_DIGEST_SIZE],
                                struct err *err)
{
    if (h->leaf_fill > 0) {
        enum status s = leaf_end(h, err);
        if (s != STATUS_OK)
            return s;
    }
    if (!object_tree_root(&h->tree, h->size, ret))
        return err_set(err, STATUS_INTERNAL, "object: hasher used after it failed");
    return STATUS_OK;
}

void object_digest(uint8_t ret[OBJECT_DIGEST_SIZE], const void *bytes, size_t n)
{
    struct object_hasher h;
    object_hasher_init(&h, NULL);
    enum status s = object_hasher_update(&h, bytes, n, NULL);
    if (s == STATUS_OK)
        s = object_hasher_final(&h, ret, NULL);
    assert(s == STATUS_OK); // fails for more than OBJECT_MAX_BYTES of memory only
    (void)s;
}

// ---------------------------------------------------------------- verification

enum status object_verify_leaves(const uint8_t digest[OBJECT_DIGEST_SIZE], int64_t size,
                                 const void *leaves, size_t leaves_bytes, struct err *err)
{
    if (size < 0 || size > OBJECT_MAX_BYTES ||
        leaves_bytes != (uint64_t)object_n_leaves(size) * OBJECT_DIGEST_SIZE)
        return err_set(err, STATUS_DATA_LOSS, "object: %zu bytes of leaf digests for %lld bytes",
                       leaves_bytes, (long long)size);
    struct object_tree t;
    object_tree_init(&t);
    const uint8_t *p = leaves;
    for (size_t at = 0; at < leaves_bytes; at += OBJECT_DIGEST_SIZE)
        if (!object_tree_add(&t, p + at))
            return err_set(err, STATUS_DATA_LOSS, "object: too many leaf digests");
    uint8_t root[OBJECT_DIGEST_SIZE];
    if (!object_tree_root(&t, size, root) || memcmp(root, digest, sizeof root) != 0)
        return err_set(err, STATUS_DATA_LOSS, "object: the leaf digests are not this object's");
    return STATUS_OK;
}

bool object_leaf_is_good(const uint8_t leaf[OBJECT_DIGEST_SIZE], const void *bytes, size_t n)
{
    uint8_t d[OBJECT_DIGEST_SIZE];
    object_leaf_digest(d, bytes, n);
    return memcmp(d, leaf, sizeof d) == 0;
}

enum status object_verify_range(const uint8_t *leaves, int64_t size, int64_t offset,
                                const void *bytes, size_t n, struct err *err)
{
    if (size < 0 || size > OBJECT_MAX_BYTES || offset < 0 || offset > size ||
        offset % OBJECT_LEAF_BYTES != 0 || n > (uint64_t)(size - offset))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "object: range %lld+%zu is not aligned to leaves or not inside %lld bytes",
                       (long long)offset, n, (long long)size);
    const uint8_t *p = bytes;
    int64_t leaf = offset / OBJECT_LEAF_BYTES;
    for (size_t at = 0; at < n; leaf++) {
        size_t len = object_leaf_len(size, leaf);
        if (n - at < len)
            return err_set(err, STATUS_INVALID_ARGUMENT, "object: range cuts leaf %lld",
                           (long long)leaf);
        if (!object_leaf_is_good(leaves + leaf * OBJECT_DIGEST_SIZE, p + at, len))
            return err_set(err, STATUS_DATA_LOSS, "object: leaf %lld is damaged", (long long)leaf);
        at += len;
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- files

#define READ_BYTES ((size_t)256 << 10)
#define PROGRESS_BYTES (INT64_C(1) << 20)

static enum status hash_to_end(int fd, const struct object_file_opts *o, int64_t size,
                               uint8_t *chunk, struct object_hasher *h, struct err *err)
{
    int64_t told = 0;
    for (;;) {
        if (o && cancel_is_fired(o->cancel))
            return err_set(err, STATUS_CANCELLED, "object: hashing cancelled");
        ssize_t n = pread(fd, chunk, READ_BYTES, h->size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "object: read at %lld", (long long)h->size);
        if (n == 0)
            return STATUS_OK;
        enum status s = object_hasher_update(h, chunk, (size_t)n, err);
        if (s != STATUS_OK)
            return s;
        if (o && o->progress && (h->size - told >= PROGRESS_BYTES || h->size == size)) {
            told = h->size;
            o->progress(o->ud, h->size, size);
        }
    }
}

enum status object_hash_fd(int fd, const struct object_file_opts *o,
                           uint8_t ret_digest[OBJECT_DIGEST_SIZE], int64_t *ret_size,
                           struct buf *leaves, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_errno(err, errno, "object: stat");
    AUTO(mem_free_p) uint8_t *chunk = mem_alloc(READ_BYTES);
    if (!chunk)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "object: out of memory");
    struct object_hasher h;
    object_hasher_init(&h, leaves);
    enum status s = hash_to_end(fd, o, st.st_size, chunk, &h, err);
    if (s != STATUS_OK)
        return s;
    if (h.size != st.st_size)
        return err_set(err, STATUS_ABORTED, "object: the file changed from %lld to %lld bytes",
                       (long long)st.st_size, (long long)h.size);
    s = object_hasher_final(&h, ret_digest, err);
    if (s == STATUS_OK)
        *ret_size = h.size;
    return s;
}
