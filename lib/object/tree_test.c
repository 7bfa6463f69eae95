// The tree: known answers of an independent implementation, streaming, verification, damage.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "object/object.h"

static uint8_t *pattern(size_t size)
{
    uint8_t *p = malloc(size + 1);
    assert_non_null(p);
    for (size_t i = 0; i < size; i++)
        p[i] = (uint8_t)((i * UINT64_C(2654435761) + size) >> 13);
    return p;
}

static FILE *open_vectors(void)
{
    const char *root = getenv("CAUCE_SOURCE_DIR");
    char path[512];
    snprintf(path, sizeof path, "%s/lib/object/testdata/tree_vectors.txt", root ? root : ".");
    FILE *f = fopen(path, "re");
    if (!f)
        fail_msg("%s: %s", path, strerror(errno));
    return f;
}

static void hash_in_pieces(const uint8_t *p, size_t n, size_t piece, struct buf *leaves,
                           uint8_t digest[32])
{
    struct object_hasher h;
    object_hasher_init(&h, leaves);
    for (size_t at = 0; at < n; at += piece)
        assert_int_equal(object_hasher_update(&h, p + at, n - at < piece ? n - at : piece, NULL),
                         0);
    assert_int_equal(object_hasher_final(&h, digest, NULL), 0);
}

static void test_known_answers(void **state)
{
    (void)state;
    static const size_t pieces[] = {1 << 20, 65536, 65535, 40961};
    FILE *f = open_vectors();
    size_t size, n_rows = 0;
    char hex[80];
    while (fscanf(f, "%zu %64s", &size, hex) == 2) {
        uint8_t want[32], got[32];
        assert_true(str_unhex(want, 32, hex));
        uint8_t *p = pattern(size);
        object_digest(got, p, size);
        assert_memory_equal(got, want, 32);
        for (size_t i = 0; i < N_ELEMENTS(pieces); i++) {
            struct buf leaves;
            buf_init(&leaves, 1 << 20);
            hash_in_pieces(p, size, pieces[i], &leaves, got);
            assert_memory_equal(got, want, 32);
            assert_int_equal(leaves.len, 32 * object_n_leaves((int64_t)size));
            assert_int_equal(
                object_verify_leaves(want, (int64_t)size, buf_str(&leaves), leaves.len, NULL),
                STATUS_OK);
            buf_done(&leaves);
        }
        free(p);
        n_rows++;
    }
    fclose(f);
    assert_int_equal(n_rows, 21);
}

static void test_sizes_and_shapes(void **state)
{
    (void)state;
    assert_int_equal(object_n_leaves(0), 0);
    assert_int_equal(object_n_leaves(65536), 1);
    assert_int_equal(object_n_leaves(65537), 2);
    assert_int_equal(object_n_leaves(OBJECT_MAX_BYTES), 1 << 24);
    assert_int_equal(object_leaf_len(65537, 0), 65536);
    assert_int_equal(object_leaf_len(65537, 1), 1);
    assert_int_equal(object_leaf_len(65537, 2), 0);
    assert_int_equal(object_leaf_len(65537, -1), 0);
    assert_int_equal(object_leaf_len(0, 0), 0);
}

// The same leaves under another size are another object, and a shape that does not fit is refused.
static void test_root_binds_the_size(void **state)
{
    (void)state;
    struct object_tree t;
    uint8_t leaf[32] = {7}, a[32], b[32];
    object_tree_init(&t);
    for (int i = 0; i < 3; i++)
        assert_true(object_tree_add(&t, leaf));
    assert_true(object_tree_root(&t, 3 * 65536, a));
    assert_true(object_tree_root(&t, 3 * 65536 - 1, b));
    assert_memory_not_equal(a, b, 32);
    assert_false(object_tree_root(&t, 3 * 65536 + 1, b));
    assert_false(object_tree_root(&t, 2 * 65536, b));
    assert_false(object_tree_root(&t, -1, b));
}

// A node's input offered as a leaf gives another digest: no second preimage by changing levels.
static void test_levels_are_apart(void **state)
{
    (void)state;
    uint8_t *p = pattern(2 * 65536);
    struct buf leaves;
    buf_init(&leaves, 1 << 20);
    uint8_t two[32], one[32];
    hash_in_pieces(p, 2 * 65536, 65536, &leaves, two);
    object_digest(one, leaves.data, leaves.len);
    assert_memory_not_equal(two, one, 32);
    buf_done(&leaves);
    free(p);
}

static void test_every_bit_flip_of_a_range_is_refused(void **state)
{
    (void)state;
    enum { SIZE = 2 * 65536 + 301 };
    uint8_t *p = pattern(SIZE), digest[32];
    struct buf leaves;
    buf_init(&leaves, 1 << 20);
    hash_in_pieces(p, SIZE, SIZE, &leaves, digest);
    int64_t at = 2 * 65536;
    assert_int_equal(object_verify_range(leaves.data, SIZE, 0, p, SIZE, NULL), STATUS_OK);
    assert_int_equal(object_verify_range(leaves.data, SIZE, at, p + at, 301, NULL), STATUS_OK);
    for (int bit = 0; bit < 301 * 8; bit++) {
        p[at + bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(object_verify_range(leaves.data, SIZE, at, p + at, 301, NULL),
                         STATUS_DATA_LOSS);
        p[at + bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t byte = 0; byte < 2 * 65536; byte += 509) { // whole leaves: a sample of their bytes
        p[byte] ^= 0x10;
        struct err e = ERR_INIT;
        assert_int_equal(object_verify_range(leaves.data, SIZE, 0, p, 2 * 65536, &e),
                         STATUS_DATA_LOSS);
        assert_string_equal(e.msg, byte < 65536 ? "object: leaf 0 is damaged"
                                                : "object: leaf 1 is damaged");
        p[byte] ^= 0x10;
    }
    for (size_t bit = 0; bit < leaves.len * 8; bit++) {
        leaves.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(object_verify_leaves(digest, SIZE, leaves.data, leaves.len, NULL),
                         STATUS_DATA_LOSS);
        leaves.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    buf_done(&leaves);
    free(p);
}

static void test_ranges_that_are_not_leaves_are_refused(void **state)
{
    (void)state;
    enum { SIZE = 65536 + 10 };
    static const struct {
        int64_t offset;
        size_t n;
        enum status want;
    } rows[] = {
        {0, SIZE, STATUS_OK},
        {0, 65536, STATUS_OK},
        {65536, 10, STATUS_OK},
        {0, 0, STATUS_OK},
        {SIZE, 0, STATUS_INVALID_ARGUMENT},
        {1, 65535, STATUS_INVALID_ARGUMENT},
        {0, 65535, STATUS_INVALID_ARGUMENT},
        {65536, 9, STATUS_INVALID_ARGUMENT},
        {65536, 11, STATUS_INVALID_ARGUMENT},
        {131072, 0, STATUS_INVALID_ARGUMENT},
        {-65536, 65536, STATUS_INVALID_ARGUMENT},
        {0, SIZE_MAX, STATUS_INVALID_ARGUMENT},
    };
    uint8_t *p = pattern(SIZE), digest[32];
    struct buf leaves;
    buf_init(&leaves, 1 << 20);
    hash_in_pieces(p, SIZE, SIZE, &leaves, digest);
    for (size_t i = 0; i < N_ELEMENTS(rows); i++)
        assert_int_equal(object_verify_range(leaves.data, SIZE, rows[i].offset,
                                             p + (rows[i].offset == 65536 ? 65536 : 0), rows[i].n,
                                             NULL),
                         rows[i].want);
    assert_int_equal(object_verify_leaves(digest, SIZE, leaves.data, 32, NULL), STATUS_DATA_LOSS);
    assert_int_equal(object_verify_leaves(digest, -5, leaves.data, 0, NULL), STATUS_DATA_LOSS);
    buf_done(&leaves);
    free(p);
}

static void test_leaf_list_over_its_limit_is_an_error(void **state)
{
    (void)state;
    struct buf leaves;
    buf_init(&leaves, 40);
    struct object_hasher h;
    object_hasher_init(&h, &leaves);
    uint8_t *p = pattern(2 * 65536);
    assert_int_equal(object_hasher_update(&h, p, 2 * 65536, NULL), STATUS_RESOURCE_EXHAUSTED);
    buf_done(&leaves);
    free(p);
}

// ---------------------------------------------------------------- files

struct seen {
    int n;
    int64_t last;
    struct cancel *cancel;
};

static void on_progress(void *ud, int64_t done, int64_t total)
{
    struct seen *s = ud;
    s->n++;
    assert_true(done > s->last && done <= total);
    s->last = done;
    if (s->cancel)
        cancel_fire(s->cancel);
}

static int temp_file(const void *p, size_t n)
{
    char path[] = "/tmp/cauce-tree-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(write(fd, p, n), n);
    return fd;
}

static void test_file_is_hashed_with_progress(void **state)
{
    (void)state;
    enum { SIZE = 3 * (1 << 20) + 12345 };
    uint8_t *p = pattern(SIZE), want[32], got[32];
    object_digest(want, p, SIZE);
    int fd = temp_file(p, SIZE);
    struct seen seen = {0};
    struct object_file_opts o = {.progress = on_progress, .ud = &seen};
    int64_t size = -1;
    struct buf leaves;
    buf_init(&leaves, 1 << 20);
    assert_int_equal(object_hash_fd(fd, &o, got, &size, &leaves, NULL), STATUS_OK);
    assert_int_equal(size, SIZE);
    assert_memory_equal(got, want, 32);
    assert_int_equal(object_verify_leaves(want, SIZE, leaves.data, leaves.len, NULL), STATUS_OK);
    assert_int_equal(seen.last, SIZE);
    assert_true(seen.n >= 3 && seen.n <= 5);
    assert_int_equal(lseek(fd, 0, SEEK_CUR), SIZE); // the position is the caller's
    buf_done(&leaves);
    close(fd);
    free(p);
}

static void test_hashing_a_file_can_be_cancelled(void **state)
{
    (void)state;
    enum { SIZE = 3 << 20 };
    uint8_t *p = pattern(SIZE), got[32];
    int fd = temp_file(p, SIZE);
    struct cancel *c = cancel_new(NULL);
    struct seen seen = {.cancel = c};
    struct object_file_opts o = {.progress = on_progress, .ud = &seen, .cancel = c};
    int64_t size = -1;
    assert_int_equal(object_hash_fd(fd, &o, got, &size, NULL, NULL), STATUS_CANCELLED);
    assert_int_equal(seen.n, 1);
    assert_int_equal(size, -1);
    cancel_unref(c);
    close(fd);
    free(p);
}

static void test_hashing_a_directory_is_an_error(void **state)
{
    (void)state;
    uint8_t got[32];
    int64_t size;
    struct err e = ERR_INIT;
    FILE *dir = fopen("/tmp", "re");
    assert_non_null(dir);
    assert_int_not_equal(object_hash_fd(fileno(dir), NULL, got, &size, NULL, &e), STATUS_OK);
    assert_true(str_starts_with(e.msg, "object: read at 0"));
    fclose(dir);
}

int main(void)
{
    if (crypto_init(NULL) != STATUS_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_sizes_and_shapes),
        cmocka_unit_test(test_root_binds_the_size),
        cmocka_unit_test(test_levels_are_apart),
        cmocka_unit_test(test_every_bit_flip_of_a_range_is_refused),
        cmocka_unit_test(test_ranges_that_are_not_leaves_are_refused),
        cmocka_unit_test(test_leaf_list_over_its_limit_is_an_error),
        cmocka_unit_test(test_file_is_hashed_with_progress),
        cmocka_unit_test(test_hashing_a_file_can_be_cancelled),
        cmocka_unit_test(test_hashing_a_directory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
