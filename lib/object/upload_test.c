// Uploads: any order, several connections, cuts, restarts, faults; and a process killed at any
// time.
#include "object/store_test_util.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "base/rand.h"
#include "base/time.h"

enum { LEAF = OBJECT_LEAF_BYTES };

// A file that somebody uploads.
struct source {
    size_t size;
    uint8_t *bytes;
    struct buf leaves;
    struct object_upload_spec spec;
};

static void source_init(struct source *src, size_t size, unsigned seed)
{
    *src = (struct source){.size = size, .bytes = fx_bytes(size, seed)};
    buf_init(&src->leaves, 1 << 20);
    struct object_hasher h;
    object_hasher_init(&h, &src->leaves);
    assert_int_equal(object_hasher_update(&h, src->bytes, size, NULL), STATUS_OK);
    src->spec = (struct object_upload_spec){
        .id = UPLOAD_1, .owner = OWNER, .item = ITEM_A, .size = (int64_t)size};
    assert_int_equal(object_hasher_final(&h, src->spec.digest, NULL), STATUS_OK);
}

static void source_done(struct source *src)
{
    free(src->bytes);
    buf_done(&src->leaves);
}

static struct object_upload_info create(struct fixture *fx, struct source *src)
{
    struct object_upload_info info;
    struct err e = ERR_INIT;
    if (object_upload_create(fx->s, &src->spec, &info, &e) != STATUS_OK)
        fail_msg("create: %s", e.msg);
    return info;
}

static struct object_upload *join(struct fixture *fx, struct source *src)
{
    struct object_upload *c = NULL;
    struct err e = ERR_INIT;
    if (object_upload_open(fx->s, src->spec.id, src->spec.owner, &c, &e) != STATUS_OK)
        fail_msg("open: %s", e.msg);
    return c;
}

static enum status send_leaves(struct object_upload *c, struct source *src, size_t piece)
{
    enum status s = STATUS_OK;
    for (size_t at = 0; s == STATUS_OK && at < src->leaves.len; at += piece) {
        size_t left = src->leaves.len - at;
        s = object_upload_leaves_add(c, src->leaves.data + at, left < piece ? left : piece, NULL);
    }
    return s == STATUS_OK ? object_upload_leaves_end(c, NULL) : s;
}

static enum status put(struct object_upload *c, struct source *src, int64_t leaf)
{
    return object_upload_put(c, leaf, src->bytes + leaf * LEAF,
                             object_leaf_len((int64_t)src->size, leaf), NULL);
}

static struct object_upload_info info_of(struct object_upload *c)
{
    struct object_upload_info info;
    object_upload_info(c, &info);
    return info;
}

static enum status finish(struct fixture *fx, struct source *src)
{
    struct object_upload_info info;
    enum status s = object_upload_finish(fx->s, src->spec.id, &info, NULL);
    if (s == STATUS_OK) {
        assert_int_equal(info.size, src->size);
        assert_memory_equal(info.digest, src->spec.digest, 32);
        assert_int_equal(info.missing_bytes, 0);
    }
    return s;
}

static void test_leaves_in_any_order_become_the_object(void **state)
{
    struct fixture *fx = *state;
    static const int64_t order[] = {6, 0, 3, 1, 5, 2, 4};
    struct source src;
    source_init(&src, 6 * LEAF + 10, 1);
    struct object_upload_info info = create(fx, &src);
    assert_false(info.existed);
    assert_true(info.need_leaves);
    assert_int_equal(info.missing_bytes, src.size);
    struct object_upload *c = join(fx, &src);
    assert_int_equal(put(c, &src, 0), STATUS_FAILED_PRECONDITION); // leaf digests first
    assert_int_equal(send_leaves(c, &src, 13), STATUS_OK);
    assert_false(info_of(c).need_leaves);
    for (size_t i = 0; i < N_ELEMENTS(order); i++) {
        assert_int_equal(finish(fx, &src), STATUS_FAILED_PRECONDITION);
        assert_int_equal(put(c, &src, order[i]), STATUS_OK);
        assert_int_equal(object_upload_sync(c, NULL), STATUS_OK);
    }
    assert_int_equal(object_upload_n_stored(c), 7);
    assert_int_equal(info_of(c).missing_bytes, 0);
    assert_false(object_store_stat(fx->s, src.spec.digest, NULL));
    assert_int_equal(finish(fx, &src), STATUS_OK);
    assert_true(fx_is_good(fx, src.size, 1));
    assert_true(object_store_is_pinned(fx->s, ITEM_A, src.spec.digest));
    assert_int_equal(finish(fx, &src), STATUS_OK); // again
    assert_int_equal(put(c, &src, 3), STATUS_OK);  // late: needed no more
    object_upload_free(c);
    assert_int_equal(fx_usage(fx).reserved_bytes, 0);
    assert_int_equal(fx_usage(fx).uploads_open, 0);
    fx_reopen(fx);
    assert_int_equal(finish(fx, &src), STATUS_OK); // and after a restart
    assert_true(create(fx, &src).existed);
    assert_true(fx_is_good(fx, src.size, 1));
    assert_int_equal(fx_count(fx, "uploads"), 1);
    source_done(&src);
}

static void test_several_leaves_in_one_call(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 600 * LEAF + 10, 1); // more than what is synced by itself
    create(fx, &src);
    struct object_upload *c = join(fx, &src);
    assert_int_equal(send_leaves(c, &src, 4096), STATUS_OK);
    for (size_t at = 0; at < src.size; at += 4 * LEAF)
        assert_int_equal(object_upload_put(c, (int64_t)at / LEAF, src.bytes + at,
                                           src.size - at < 4 * LEAF ? src.size - at : 4 * LEAF,
                                           NULL),
                         STATUS_OK);
    assert_int_equal(object_upload_n_stored(c), 512);
    assert_int_equal(object_upload_sync(c, NULL), STATUS_OK);
    assert_int_equal(object_upload_n_stored(c), 601);
    assert_int_equal(finish(fx, &src), STATUS_OK);
    object_upload_free(c);
    assert_true(fx_is_good(fx, src.size, 1));
    source_done(&src);
}

static void test_upload_resumes_after_a_restart(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 20 * LEAF, 2);
    create(fx, &src);
    struct object_upload *c = join(fx, &src);
    assert_int_equal(send_leaves(c, &src, 64), STATUS_OK);
    static const int64_t have[] = {0, 1, 2, 5, 9, 19};
    for (size_t i = 0; i < N_ELEMENTS(have); i++)
        assert_int_equal(put(c, &src, have[i]), STATUS_OK);
    assert_int_equal(object_upload_sync(c, NULL), STATUS_OK);
    assert_int_equal(put(c, &src, 12), STATUS_OK); // not synced: does not count
    object_upload_free(c);
    int64_t reserved = fx_usage(fx).reserved_bytes;
    fx_reopen(fx);
    assert_int_equal(fx_usage(fx).reserved_bytes, reserved);
    assert_int_equal(fx_usage(fx).uploads_open, 1);
    c = join(fx, &src);
    assert_false(info_of(c).need_leaves);
    assert_int_equal(info_of(c).n_have, 6);
    struct object_run runs[8];
    bool truncated;
    size_t n = object_upload_missing(c, runs, 8, &truncated);
    static const struct object_run want[] = {{3, 2}, {6, 3}, {10, 9}};
    assert_int_equal(n, 3);
    assert_false(truncated);
    assert_memory_equal(runs, want, sizeof want);
    assert_int_equal(object_upload_missing(c, runs, 2, &truncated), 2);
    assert_true(truncated);
    for (size_t i = 0; i < 3; i++)
        for (int64_t j = 0; j < want[i].count; j++)
            assert_int_equal(put(c, &src, want[i].first + j), STATUS_OK);
    assert_int_equal(object_upload_sync(c, NULL), STATUS_OK);
    object_upload_free(c);
    assert_int_equal(finish(fx, &src), STATUS_OK);
    assert_true(fx_is_good(fx, src.size, 2));
    source_done(&src);
}

static void test_bad_leaves_are_named_and_do_not_count(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 3 * LEAF + 9, 3);
    create(fx, &src);
    struct object_upload *c = join(fx, &src);
    assert_int_equal(send_leaves(c, &src, 32), STATUS_OK);
    struct err e = ERR_INIT;
    src.bytes[LEAF + 77] ^= 1;
    assert_int_equal(object_upload_put(c, 0, src.bytes, 3 * LEAF, &e), STATUS_DATA_LOSS);
    assert_non_null(strstr(e.msg, "leaf 1 "));
    src.bytes[LEAF + 77] ^= 1;
    assert_int_equal(object_upload_sync(c, NULL), STATUS_OK);
    assert_int_equal(object_upload_n_stored(c), 1); // the one before it is kept
    assert_int_equal(object_upload_put(c, 3, src.bytes + 3 * LEAF, 8, NULL),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(object_upload_put(c, 4, src.bytes, 9, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(object_upload_put(c, -1, src.bytes, LEAF, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(object_upload_put(c, INT64_MAX, src.bytes, LEAF, NULL),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(object_upload_put(c, 1, src.bytes, LEAF, NULL), STATUS_DATA_LOSS);
    object_upload_free(c);
    source_done(&src);
}

static void test_wrong_leaf_digests_are_refused(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 3 * LEAF, 3);
    create(fx, &src);
    struct object_upload *c = join(fx, &src);
    src.leaves.data[40] ^= 1;
    assert_int_equal(send_leaves(c, &src, 32), STATUS_DATA_LOSS);
    src.leaves.data[40] ^= 1;
    object_upload_free(c);
    c = join(fx, &src);
    src.leaves.len -= 32;
    assert_int_equal(send_leaves(c, &src, 32), STATUS_DATA_LOSS);
    src.leaves.len += 32;
    object_upload_free(c);
    c = join(fx, &src);
    assert_int_equal(object_upload_leaves_add(c, src.leaves.data, 96, NULL), STATUS_OK);
    assert_int_equal(object_upload_leaves_add(c, src.leaves.data, 32, NULL), STATUS_DATA_LOSS);
    object_upload_free(c);
    c = join(fx, &src);
    assert_true(info_of(c).need_leaves);
    assert_int_equal(send_leaves(c, &src, 96), STATUS_OK);
    assert_int_equal(send_leaves(c, &src, 96), STATUS_DATA_LOSS); // twice through one connection
    object_upload_free(c);
    c = join(fx, &src);
    assert_int_equal(send_leaves(c, &src, 50), STATUS_OK); // again: fine, and checked again
    object_upload_free(c);
    source_done(&src);
}

static void test_newer_connection_takes_the_leaf_digests_over(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 4 * LEAF, 3);
    create(fx, &src);
    struct object_upload *old = join(fx, &src), *new = join(fx, &src);
    uint8_t wrong[32] = {1};
    assert_int_equal(object_upload_leaves_add(old, wrong, 32, NULL), STATUS_OK);
    assert_int_equal(object_upload_leaves_add(new, src.leaves.data, 64, NULL), STATUS_OK);
    assert_int_equal(object_upload_leaves_add(old, wrong, 32, NULL), STATUS_ABORTED);
    assert_int_equal(object_upload_leaves_add(new, src.leaves.data + 64, 64, NULL), STATUS_OK);
    assert_int_equal(object_upload_leaves_end(new, NULL), STATUS_OK);
    for (int64_t i = 0; i < 4; i++)
        assert_int_equal(put(old, &src, i), STATUS_OK);
    assert_int_equal(object_upload_sync(old, NULL), STATUS_OK);
    object_upload_free(old);
    object_upload_free(new);
    assert_int_equal(finish(fx, &src), STATUS_OK);
    source_done(&src);
}

struct feeder {
    struct fixture *fx;
    struct source *src;
    bool backwards;
    enum status s;
};

static void *feed(void *ud)
{
    struct feeder *f = ud;
    struct object_upload *c = NULL;
    f->s = object_upload_open(f->fx->s, f->src->spec.id, OWNER, &c, NULL);
    int64_t n = object_n_leaves((int64_t)f->src->size);
    for (int64_t i = 0; f->s == STATUS_OK && i < n; i++) {
        f->s = put(c, f->src, f->backwards ? n - 1 - i : i);
        if (f->s == STATUS_OK && i % 7 == 0)
            f->s = object_upload_sync(c, NULL);
    }
    if (f->s == STATUS_OK)
        f->s = object_upload_sync(c, NULL);
    object_upload_free(c);
    if (f->s == STATUS_OK)
        f->s = finish(f->fx, f->src);
    return NULL;
}

static void test_two_connections_feed_and_finish_one_upload(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 60 * LEAF + 1, 5);
    create(fx, &src);
    struct object_upload *c = join(fx, &src);
    assert_int_equal(send_leaves(c, &src, 1024), STATUS_OK);
    object_upload_free(c);
    struct feeder f[3] = {{fx, &src, false, 0}, {fx, &src, true, 0}, {fx, &src, false, 0}};
    pthread_t t[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&t[i], NULL, feed, &f[i]), 0);
    for (int i = 0; i < 3; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(f[i].s, STATUS_OK);
    }
    assert_true(fx_is_good(fx, src.size, 5));
    assert_int_equal(fx_usage(fx).objects, 1);
    assert_int_equal(fx_usage(fx).reserved_bytes, 0);
    source_done(&src);
}

static void test_existing_object_needs_no_bytes(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    uint8_t d[32];
    source_init(&src, 100000, 6);
    assert_int_equal(fx_put(fx, 100000, 6, NULL, d, NULL), STATUS_OK);
    assert_true(create(fx, &src).existed);
    int64_t objects, bytes;
    fx->mono_us += 5000000;
    assert_int_equal(object_store_collect(fx->s, NULL, &objects, &bytes, NULL), STATUS_OK);
    assert_int_equal(objects, 0); // the upload holds it
    fx_reopen(fx);
    fx->mono_us += 5000000;
    assert_int_equal(object_store_collect(fx->s, NULL, &objects, &bytes, NULL), STATUS_OK);
    assert_int_equal(objects, 0); // after a restart, too
    struct object_upload *c = join(fx, &src);
    assert_true(info_of(c).existed);
    bool truncated;
    struct object_run run;
    assert_int_equal(object_upload_missing(c, &run, 1, &truncated), 0);
    object_upload_free(c);
    assert_int_equal(finish(fx, &src), STATUS_OK);
    assert_true(object_store_is_pinned(fx->s, ITEM_A, d));
    assert_int_equal(finish(fx, &src), STATUS_OK);
    source_done(&src);
}

static void test_object_that_comes_by_another_way_ends_the_sending(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    uint8_t d[32];
    source_init(&src, 3 * LEAF, 6);
    assert_false(create(fx, &src).existed);
    struct object_upload *c = join(fx, &src);
    assert_int_equal(send_leaves(c, &src, 32), STATUS_OK);
    assert_int_equal(put(c, &src, 1), STATUS_OK);
    assert_int_equal(fx_put(fx, 3 * LEAF, 6, NULL, d, NULL), STATUS_OK);
    assert_int_equal(object_upload_sync(c, NULL), STATUS_OK);
    assert_true(info_of(c).existed);
    object_upload_free(c);
    assert_int_equal(finish(fx, &src), STATUS_OK);
    assert_int_equal(fx_usage(fx).objects, 1);
    assert_int_equal(fx_usage(fx).reserved_bytes, 0);
    assert_int_equal(fx_count(fx, "uploads"), 1);
    source_done(&src);
}

// Puts what is missing, as an honest client does. Returns the number of leaves.
static int64_t put_missing(struct object_upload *c, struct source *src)
{
    struct object_run runs[64];
    bool truncated;
    int64_t n_leaves = 0;
    size_t n = object_upload_missing(c, runs, N_ELEMENTS(runs), &truncated);
    assert_false(truncated);
    for (size_t i = 0; i < n; i++)
        for (int64_t k = 0; k < runs[i].count; k++, n_leaves++)
            assert_int_equal(put(c, src, runs[i].first + k), STATUS_OK);
    assert_int_equal(object_upload_sync(c, NULL), STATUS_OK);
    return n_leaves;
}

static void test_existing_object_is_proven_by_a_few_leaves(void **state)
{
    struct fixture *fx = *state;
    static const int64_t leaves[] = {1, 3, OBJECT_PROOF_LEAVES, 50};
    for (size_t i = 0; i < N_ELEMENTS(leaves); i++) {
        struct source src;
        size_t size = (size_t)leaves[i] * LEAF - 7;
        int64_t want = leaves[i] < OBJECT_PROOF_LEAVES ? leaves[i] : OBJECT_PROOF_LEAVES;
        source_init(&src, size, (unsigned)i);
        src.spec.prove = true;
        assert_int_equal(fx_put(fx, size, (unsigned)i, NULL, src.spec.digest, NULL), STATUS_OK);
        struct object_upload_info info = create(fx, &src);
        assert_false(info.existed);
        assert_false(info.need_leaves);
        assert_in_range(info.missing_bytes, want * LEAF - 7, want * LEAF);
        assert_int_equal(fx_usage(fx).reserved_bytes, 0);
        assert_int_equal(finish(fx, &src), STATUS_FAILED_PRECONDITION);
        if (i % 2) {
            fx_reopen(fx);
            assert_false(create(fx, &src).existed);
            assert_int_equal(finish(fx, &src), STATUS_FAILED_PRECONDITION);
        }
        struct object_upload *c = join(fx, &src);
        assert_int_equal(put_missing(c, &src), want);
        assert_int_equal(object_upload_n_stored(c), want);
        assert_int_equal(info_of(c).missing_bytes, 0);
        object_upload_free(c);
        assert_false(object_store_is_pinned(fx->s, ITEM_A, src.spec.digest));
        assert_int_equal(finish(fx, &src), STATUS_OK);
        assert_true(object_store_is_pinned(fx->s, ITEM_A, src.spec.digest));
        assert_true(fx_is_good(fx, size, (unsigned)i));
        assert_int_equal(object_upload_drop(fx->s, UPLOAD_1, NULL), STATUS_OK);
        assert_int_equal(fx_count(fx, "uploads"), 0);
        source_done(&src);
    }
}

static void test_proof_with_other_bytes_is_refused(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 20 * LEAF, 6);
    src.spec.prove = true;
    assert_int_equal(fx_put(fx, 20 * LEAF, 6, NULL, src.spec.digest, NULL), STATUS_OK);
    create(fx, &src);
    memset(src.bytes, 0, src.size);
    struct object_upload *c = join(fx, &src);
    struct object_run run;
    bool truncated;
    assert_int_equal(object_upload_missing(c, &run, 1, &truncated), 1);
    assert_int_equal(put(c, &src, run.first), STATUS_DATA_LOSS);
    // Leaves that were not asked for are passed over, and earn nothing.
    for (int64_t leaf = 0; leaf < 20; leaf++) {
        enum status s = put(c, &src, leaf);
        assert_true(s == STATUS_OK || s == STATUS_DATA_LOSS);
    }
    assert_int_equal(object_upload_sync(c, NULL), STATUS_OK);
    assert_int_equal(send_leaves(c, &src, 32), STATUS_OK); // known: they prove nothing
    assert_int_equal(info_of(c).missing_bytes, OBJECT_PROOF_LEAVES * LEAF);
    object_upload_free(c);
    assert_int_equal(finish(fx, &src), STATUS_FAILED_PRECONDITION);
    assert_false(object_store_is_pinned(fx->s, ITEM_A, src.spec.digest));
    source_done(&src);
}

static void test_object_of_somebody_else_does_not_end_a_sending_that_must_prove(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 12 * LEAF, 6);
    src.spec.prove = true;
    assert_false(create(fx, &src).existed);
    struct object_upload *c = join(fx, &src);
    assert_int_equal(send_leaves(c, &src, 32), STATUS_OK);
    assert_int_equal(fx_put(fx, 12 * LEAF, 6, NULL, src.spec.digest, NULL), STATUS_OK);
    assert_int_equal(info_of(c).missing_bytes, src.size);
    object_upload_free(c);
    assert_int_equal(finish(fx, &src), STATUS_FAILED_PRECONDITION);
    fx_reopen(fx);
    assert_int_equal(create(fx, &src).missing_bytes, src.size);
    c = join(fx, &src);
    assert_int_equal(put_missing(c, &src), 12);
    object_upload_free(c);
    assert_int_equal(finish(fx, &src), STATUS_OK);
    assert_int_equal(fx_usage(fx).objects, 1);
    assert_int_equal(fx_usage(fx).reserved_bytes, 0);
    assert_int_equal(fx_count(fx, "uploads"), 1);
    source_done(&src);
}

static void test_empty_upload(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    struct object_upload_info info;
    source_init(&src, 0, 1);
    info = create(fx, &src);
    assert_false(info.need_leaves);
    assert_int_equal(finish(fx, &src), STATUS_OK);
    assert_true(fx_is_good(fx, 0, 1));
    src.spec.id = UPLOAD_2;
    src.spec.digest[0] ^= 1;
    assert_int_equal(object_upload_create(fx->s, &src.spec, &info, NULL), STATUS_INVALID_ARGUMENT);
    source_done(&src);
}

static void test_bad_specs_are_refused(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    struct object_upload_info info;
    source_init(&src, 100, 1);
    static const struct {
        const char *id, *owner, *item;
        int64_t size;
        enum status want;
    } rows[] = {
        {"../x", OWNER, ITEM_A, 100, STATUS_INVALID_ARGUMENT},
        {UPLOAD_1, "", ITEM_A, 100, STATUS_INVALID_ARGUMENT},
        {UPLOAD_1, OWNER, "a b", 100, STATUS_INVALID_ARGUMENT},
        {UPLOAD_1, OWNER, ITEM_A, -1, STATUS_OUT_OF_RANGE},
        {UPLOAD_1, OWNER, ITEM_A, INT64_MAX, STATUS_OUT_OF_RANGE},
        {UPLOAD_1, OWNER, ITEM_A, 0, STATUS_INVALID_ARGUMENT},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct object_upload_spec spec = src.spec;
        spec.id = rows[i].id;
        spec.owner = rows[i].owner;
        spec.item = rows[i].item;
        spec.size = rows[i].size;
        assert_int_equal(object_upload_create(fx->s, &spec, &info, NULL), rows[i].want);
    }
    create(fx, &src);
    create(fx, &src); // the same again is fine
    src.spec.size = 101;
    assert_int_equal(object_upload_create(fx->s, &src.spec, &info, NULL), STATUS_ALREADY_EXISTS);
    source_done(&src);
}

static void test_other_owners_upload_looks_unknown(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    struct object_upload *c = NULL;
    source_init(&src, 100, 1);
    create(fx, &src);
    struct err a = ERR_INIT, b = ERR_INIT;
    assert_int_equal(object_upload_open(fx->s, UPLOAD_1, STRANGER, &c, &a), STATUS_NOT_FOUND);
    object_store_free(TAKE(fx->s));
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm %s/uploads/*", fx->dir);
    assert_int_equal(system(cmd), 0);
    fx_open(fx);
    assert_int_equal(object_upload_open(fx->s, UPLOAD_1, STRANGER, &c, &b), STATUS_NOT_FOUND);
    assert_string_equal(a.msg, b.msg);
    source_done(&src);
}

static void test_drop_forgets_everything(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 3 * LEAF, 1);
    create(fx, &src);
    struct object_upload *c = join(fx, &src);
    assert_int_equal(send_leaves(c, &src, 32), STATUS_OK);
    assert_int_equal(put(c, &src, 0), STATUS_OK);
    assert_int_equal(object_upload_drop(fx->s, UPLOAD_1, NULL), STATUS_OK);
    assert_int_equal(put(c, &src, 1), STATUS_NOT_FOUND); // a connection that still feeds it
    assert_int_equal(fx_count(fx, "uploads"), 0);
    assert_int_equal(fx_usage(fx).reserved_bytes, 0);
    create(fx, &src); // the same id anew, while the old connection is still there
    object_upload_free(c);
    c = join(fx, &src);
    assert_true(info_of(c).need_leaves);
    object_upload_free(c);
    assert_int_equal(object_upload_drop(fx->s, UPLOAD_1, NULL), STATUS_OK);
    assert_int_equal(object_upload_drop(fx->s, UPLOAD_1, NULL), STATUS_OK); // again
    assert_int_equal(finish(fx, &src), STATUS_NOT_FOUND);
    source_done(&src);
}

static void test_abandoned_uploads_expire(void **state)
{
    struct fixture *fx = *state;
    struct source a, b;
    int64_t dropped;
    source_init(&a, 3 * LEAF, 1);
    source_init(&b, 2 * LEAF, 2);
    b.spec.id = UPLOAD_2;
    create(fx, &a);
    fx->wall_ms += 9999;
    create(fx, &b);
    assert_int_equal(object_upload_expire(fx->s, &dropped, NULL), STATUS_OK);
    assert_int_equal(dropped, 0);
    fx->wall_ms += 1;
    struct object_upload *c = join(fx, &a); // in use: stays, and counts as touched
    fx->wall_ms += 1;
    object_upload_free(c);
    assert_int_equal(object_upload_expire(fx->s, &dropped, NULL), STATUS_OK);
    assert_int_equal(dropped, 0);
    fx->wall_ms += 9998;
    assert_int_equal(object_upload_expire(fx->s, &dropped, NULL), STATUS_OK);
    assert_int_equal(dropped, 1);
    fx->wall_ms += 1;
    assert_int_equal(object_upload_expire(fx->s, &dropped, NULL), STATUS_OK);
    assert_int_equal(dropped, 1);
    assert_int_equal(fx_count(fx, "uploads"), 0);
    assert_int_equal(fx_usage(fx).reserved_bytes, 0);
    source_done(&a);
    source_done(&b);
}

static void test_open_uploads_count_towards_the_quota(void **state)
{
    struct fixture *fx = *state;
    struct source a, b;
    struct object_upload_info info;
    source_init(&a, 3 * LEAF, 1);
    source_init(&b, 3 * LEAF, 2);
    b.spec.id = UPLOAD_2;
    fx->o.max_bytes = 5 * LEAF;
    fx_reopen(fx);
    create(fx, &a);
    assert_int_equal(object_upload_create(fx->s, &b.spec, &info, NULL), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(object_upload_drop(fx->s, UPLOAD_1, NULL), STATUS_OK);
    create(fx, &b);
    source_done(&a);
    source_done(&b);
}

// ---------------------------------------------------------------- faults

static enum status whole_upload(struct fixture *fx, struct source *src)
{
    struct object_upload_info info;
    struct object_upload *c = NULL;
    enum status s = object_upload_create(fx->s, &src->spec, &info, NULL);
    if (s == STATUS_OK)
        s = object_upload_open(fx->s, src->spec.id, OWNER, &c, NULL);
    if (s == STATUS_OK && info.need_leaves)
        s = send_leaves(c, src, 48);
    for (int64_t i = 0; s == STATUS_OK && i < object_n_leaves((int64_t)src->size); i++)
        s = put(c, src, i);
    if (s == STATUS_OK)
        s = object_upload_sync(c, NULL);
    object_upload_free(c);
    return s == STATUS_OK ? object_upload_finish(fx->s, src->spec.id, &info, NULL) : s;
}

// Whatever fails, at whatever step: an error; then the same upload goes on and ends well.
static void test_every_disk_fault_can_be_resumed_from(void **state)
{
    struct fixture *fx = *state;
    int64_t n = 0;
    for (bool ok = false; !ok; n++) {
        struct source src;
        source_init(&src, 3 * LEAF + 100, (unsigned)n);
        fx_fail(fx, OBJECT_IO_OPEN, n, n % 2 ? EIO : ENOSPC);
        fx->fail_any = true;
        enum status s = whole_upload(fx, &src);
        ok = fx->n_ops <= n;
        fx->fail_at = -1;
        if (s != STATUS_OK) {
            if (n % 3 == 0)
                fx_reopen(fx);
            s = whole_upload(fx, &src);
            if (s == STATUS_INTERNAL) { // the pin log's sync failed: only a restart heals it
                fx_reopen(fx);
                s = whole_upload(fx, &src);
            }
        }
        assert_int_equal(s, STATUS_OK);
        assert_true(fx_is_good(fx, src.size, (unsigned)n));
        assert_true(object_store_is_pinned(fx->s, ITEM_A, src.spec.digest));
        assert_int_equal(object_upload_drop(fx->s, UPLOAD_1, NULL), STATUS_OK);
        assert_int_equal(fx_usage(fx).reserved_bytes, 0);
        source_done(&src);
    }
    assert_true(n > 30);
    assert_int_equal(fx_usage(fx).objects, n);
    assert_int_equal(fx_count(fx, "uploads"), 0);
}

// A failed sync takes everything with it that was written since the last good one, also what
// another connection wrote: none of it may ever count.
static void test_failed_sync_of_one_connection_voids_what_the_other_wrote(void **state)
{
    struct fixture *fx = *state;
    struct source src;
    source_init(&src, 4 * LEAF, 1);
    create(fx, &src);
    struct object_upload *a = join(fx, &src), *b = join(fx, &src);
    assert_int_equal(send_leaves(a, &src, 128), STATUS_OK);
    assert_int_equal(put(a, &src, 0), STATUS_OK);
    assert_int_equal(put(b, &src, 1), STATUS_OK);
    fx_fail(fx, OBJECT_IO_SYNC, 0, EIO);
    assert_int_equal(object_upload_sync(a, NULL), STATUS_INTERNAL);
    fx->fail_at = -1;
    assert_int_equal(object_upload_sync(b, NULL), STATUS_INTERNAL);
    assert_int_equal(info_of(a).n_have, 0);
    for (int64_t i = 0; i < 4; i++) // sent again they count
        assert_int_equal(put(i % 2 ? a : b, &src, i), STATUS_OK);
    assert_int_equal(object_upload_sync(a, NULL), STATUS_OK);
    assert_int_equal(object_upload_sync(b, NULL), STATUS_OK);
    object_upload_free(a);
    object_upload_free(b);
    assert_int_equal(finish(fx, &src), STATUS_OK);
    source_done(&src);
}

static void test_every_failed_allocation_can_be_resumed_from(void **state)
{
    struct fixture *fx = *state;
    int64_t n = 0;
    for (bool done = false; !done; n++) {
        struct source src;
        source_init(&src, 3 * LEAF + 100, (unsigned)n);
        mem_fail_at(n);
        enum status s = whole_upload(fx, &src);
        done = mem_n_allocs() <= n;
        mem_fail_at(-1);
        if (s != STATUS_OK) {
            assert_int_equal(s, STATUS_RESOURCE_EXHAUSTED);
            assert_int_equal(whole_upload(fx, &src), STATUS_OK);
        }
        assert_true(fx_is_good(fx, src.size, (unsigned)n));
        assert_int_equal(object_upload_drop(fx->s, UPLOAD_1, NULL), STATUS_OK);
        assert_int_equal(fx_usage(fx).reserved_bytes, 0);
        source_done(&src);
    }
    assert_true(n > 6);
}

// ---------------------------------------------------------------- kill -9
// The child stores objects and uploads for ever and tells what was acknowledged; the parent kills
// it at a random moment, opens the directory, and holds it against what it was told.

struct ack {
    char what; // 'o' object of seed n, 'l' leaf n of the upload of seed `seed`, 'f' that one
               // finished
    unsigned seed, n;
};
enum { OBJECT_BYTES = 90000, UPLOAD_LEAVES = 12 };

static void tell(int fd, char what, unsigned seed, unsigned n)
{
    struct ack a = {what, seed, n};
    if (write(fd, &a, sizeof a) != sizeof a)
        _exit(3);
}

static void child_id(char *dst, unsigned seed)
{
    snprintf(dst, UUID_SIZE, "01890a5d-ac96-774b-bcce-b4%010x", seed);
}

static void child_upload(struct fixture *fx, int fd, unsigned seed)
{
    struct source src;
    struct object_upload_info info;
    struct object_upload *c = NULL;
    char id[UUID_SIZE];
    child_id(id, seed);
    source_init(&src, UPLOAD_LEAVES * LEAF, seed);
    src.spec.id = id;
    if (object_upload_create(fx->s, &src.spec, &info, NULL) != STATUS_OK ||
        object_upload_open(fx->s, id, OWNER, &c, NULL) != STATUS_OK ||
        (info.need_leaves && send_leaves(c, &src, 100) != STATUS_OK))
        _exit(4);
    for (int64_t i = 0; i < UPLOAD_LEAVES; i++) {
        if (put(c, &src, i) != STATUS_OK)
            _exit(5);
        if (i % 3 != 2)
            continue;
        if (object_upload_sync(c, NULL) != STATUS_OK)
            _exit(6);
        for (int64_t j = i - 2; j <= i; j++)
            tell(fd, 'l', seed, (unsigned)j);
    }
    object_upload_free(c);
    if (object_upload_finish(fx->s, id, &info, NULL) != STATUS_OK)
        _exit(7);
    tell(fd, 'f', seed, 0);
    source_done(&src);
}

static void child_main(struct fixture *fx, int fd, unsigned seed)
{
    fx_open(fx);
    for (;; seed++) {
        uint8_t d[32];
        if (fx_put(fx, OBJECT_BYTES, seed, ITEM_B, d, NULL) != STATUS_OK)
            _exit(2);
        tell(fd, 'o', seed, 0);
        child_upload(fx, fd, seed + 500000);
    }
}

static void check_acks(struct fixture *fx, const struct ack *acks, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct ack *a = &acks[i];
        if (a->what == 'o')
            assert_true(fx_is_good(fx, OBJECT_BYTES, a->seed));
        if (a->what == 'f')
            assert_true(fx_is_good(fx, UPLOAD_LEAVES * LEAF, a->seed));
        if (a->what != 'l')
            continue;
        char id[UUID_SIZE];
        child_id(id, a->seed);
        struct object_upload *c = NULL;
        assert_int_equal(object_upload_open(fx->s, id, OWNER, &c, NULL), STATUS_OK);
        struct object_run runs[UPLOAD_LEAVES];
        bool truncated;
        size_t n_runs = object_upload_missing(c, runs, UPLOAD_LEAVES, &truncated);
        for (size_t r = 0; r < n_runs; r++)
            assert_false(a->n >= runs[r].first && a->n < runs[r].first + runs[r].count);
        object_upload_free(c);
    }
}

static bool none_bad(void *ud, const struct object_scrub *now)
{
    (void)ud;
    assert_null(now->bad);
    return true;
}

// Every upload that the kill cut is completed.
static void resume_all(struct fixture *fx, unsigned first, unsigned last)
{
    for (unsigned seed = first; seed <= last; seed++) {
        struct object_upload *c = NULL;
        struct source src;
        char id[UUID_SIZE];
        child_id(id, seed);
        if (object_upload_open(fx->s, id, OWNER, &c, NULL) != STATUS_OK)
            continue;
        object_upload_free(c);
        source_init(&src, UPLOAD_LEAVES * LEAF, seed);
        src.spec.id = id;
        assert_int_equal(whole_upload(fx, &src), STATUS_OK);
        assert_true(fx_is_good(fx, src.size, seed));
        source_done(&src);
    }
}

// Run the child for a random while, kill it; what it acknowledged.
static size_t run_and_kill(struct fixture *fx, unsigned first, struct ack *acks, size_t max)
{
    int fds[2];
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(fds[0]);
        child_main(fx, fds[1], first);
    }
    close(fds[1]);
    size_t n = 0, stop_after = rand_below(24);
    int64_t extra_us = (int64_t)rand_below(3000);
    while (n < max && n < stop_after && read(fds[0], &acks[n], sizeof *acks) == sizeof *acks)
        n++;
    struct pollfd nothing = {.fd = -1};
    struct timespec ts = {.tv_nsec = extra_us * 1000}; // somewhere inside the next step
    ppoll(&nothing, 1, &ts, NULL);
    kill(pid, SIGKILL);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    while (n < max && read(fds[0], &acks[n], sizeof *acks) == sizeof *acks)
        n++;
    close(fds[0]);
    return n;
}

static void test_killed_at_any_moment_nothing_acknowledged_is_lost(void **state)
{
    struct fixture *fx = *state;
    enum { ROUNDS = 40, MAX_ACKS = 4096 };
    struct ack *acks = calloc(MAX_ACKS, sizeof *acks);
    assert_non_null(acks);
    object_store_free(TAKE(fx->s));
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned first = round * 1000;
        size_t n = run_and_kill(fx, first, acks, MAX_ACKS);
        fx_open(fx);
        assert_int_equal(fx_count(fx, "tmp"), 0);
        check_acks(fx, acks, n);
        assert_int_equal(object_store_scrub(fx->s, NULL, none_bad, NULL, NULL, NULL), STATUS_OK);
        resume_all(fx, first + 500000, first + 500000 + 30);
        assert_int_equal(fx_usage(fx).damaged, 0);
        assert_int_equal(fx_usage(fx).reserved_bytes, 0);
        object_store_free(TAKE(fx->s));
        char cmd[128]; // each round starts small
        snprintf(cmd, sizeof cmd, "rm -rf %s/*", fx->dir);
        assert_int_equal(system(cmd), 0);
    }
    free(acks);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, fx_setup, fx_teardown)

int main(void)
{
    if (crypto_init(NULL) != STATUS_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        CASE(test_leaves_in_any_order_become_the_object),
        CASE(test_several_leaves_in_one_call),
        CASE(test_upload_resumes_after_a_restart),
        CASE(test_bad_leaves_are_named_and_do_not_count),
        CASE(test_wrong_leaf_digests_are_refused),
        CASE(test_newer_connection_takes_the_leaf_digests_over),
        CASE(test_two_connections_feed_and_finish_one_upload),
        CASE(test_existing_object_needs_no_bytes),
        CASE(test_object_that_comes_by_another_way_ends_the_sending),
        CASE(test_existing_object_is_proven_by_a_few_leaves),
        CASE(test_proof_with_other_bytes_is_refused),
        CASE(test_object_of_somebody_else_does_not_end_a_sending_that_must_prove),
        CASE(test_empty_upload),
        CASE(test_bad_specs_are_refused),
        CASE(test_other_owners_upload_looks_unknown),
        CASE(test_drop_forgets_everything),
        CASE(test_abandoned_uploads_expire),
        CASE(test_open_uploads_count_towards_the_quota),
        CASE(test_every_disk_fault_can_be_resumed_from),
        CASE(test_failed_sync_of_one_connection_voids_what_the_other_wrote),
        CASE(test_every_failed_allocation_can_be_resumed_from),
        CASE(test_killed_at_any_moment_nothing_acknowledged_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
