// The store: objects, pins, garbage, quota, faults of the disk and of memory.
#include "object/store_test_util.h"

#include <pthread.h>

static void test_objects_of_all_shapes_come_back(void **state)
{
    struct fixture *fx = *state;
    static const size_t sizes[] = {0, 1, 65535, 65536, 65537, 200000, 1000001};
    uint8_t digest[32];
    for (unsigned i = 0; i < N_ELEMENTS(sizes); i++) {
        bool existed = true;
        assert_int_equal(fx_put(fx, sizes[i], i, NULL, digest, &existed), STATUS_OK);
        assert_false(existed);
        assert_true(fx_is_good(fx, sizes[i], i));
        int64_t size = -1;
        assert_true(object_store_stat(fx->s, digest, &size));
        assert_int_equal(size, sizes[i]);
    }
    struct object_store_usage before = fx_usage(fx);
    assert_int_equal(before.objects, N_ELEMENTS(sizes));
    assert_int_equal(before.reserved_bytes, 0);
    fx_reopen(fx);
    struct object_store_usage after = fx_usage(fx);
    assert_int_equal(after.objects, before.objects);
    assert_int_equal(after.bytes, before.bytes);
    for (unsigned i = 0; i < N_ELEMENTS(sizes); i++)
        assert_true(fx_is_good(fx, sizes[i], i));
    assert_int_equal(fx_count(fx, "tmp"), 0);
}

static void test_leaf_digests_come_with_the_object(void **state)
{
    struct fixture *fx = *state;
    enum { SIZE = 3 * 65536 + 5 };
    uint8_t digest[32], leaves[4 * 32], *p = fx_bytes(SIZE, 1);
    assert_int_equal(fx_put(fx, SIZE, 1, NULL, digest, NULL), STATUS_OK);
    struct object_file *f = NULL;
    assert_int_equal(object_file_open(fx->s, digest, &f, NULL), STATUS_OK);
    assert_int_equal(object_file_read_leaves(f, 0, 4, leaves, NULL), STATUS_OK);
    assert_int_equal(object_verify_leaves(digest, SIZE, leaves, sizeof leaves, NULL), STATUS_OK);
    assert_int_equal(object_file_read_leaves(f, 3, 2, leaves, NULL), STATUS_OUT_OF_RANGE);
    assert_int_equal(object_file_read(f, SIZE - 1, p, 2, NULL), STATUS_OUT_OF_RANGE);
    assert_int_equal(object_file_read(f, -1, p, 1, NULL), STATUS_OUT_OF_RANGE);
    uint8_t byte;
    assert_int_equal(pread(object_file_fd(f), &byte, 1, SIZE - 1), 1);
    assert_int_equal(byte, p[SIZE - 1]);
    object_file_free(f);
    free(p);
}

static void test_wrong_bytes_are_refused_and_leave_nothing(void **state)
{
    struct fixture *fx = *state;
    uint8_t digest[32] = {1};
    struct object_writer *w = NULL;
    assert_int_equal(object_writer_new(fx->s, 10, &w, NULL), STATUS_OK);
    assert_int_equal(object_writer_write(w, "0123456789", 10, NULL), STATUS_OK);
    assert_int_equal(object_writer_commit(w, digest, NULL, NULL, NULL), STATUS_DATA_LOSS);
    assert_int_equal(object_writer_commit(w, digest, NULL, NULL, NULL), STATUS_FAILED_PRECONDITION);
    object_writer_free(TAKE(w));
    assert_int_equal(object_writer_new(fx->s, 10, &w, NULL), STATUS_OK);
    assert_int_equal(object_writer_write(w, "0123456789x", 11, NULL), STATUS_INVALID_ARGUMENT);
    object_writer_free(TAKE(w));
    assert_int_equal(object_writer_new(fx->s, 10, &w, NULL), STATUS_OK);
    assert_int_equal(object_writer_commit(w, digest, NULL, NULL, NULL), STATUS_INVALID_ARGUMENT);
    object_writer_free(TAKE(w));
    assert_int_equal(object_writer_new(fx->s, -1, &w, NULL), STATUS_OUT_OF_RANGE);
    assert_int_equal(object_writer_new(fx->s, OBJECT_MAX_BYTES + 1, &w, NULL), STATUS_OUT_OF_RANGE);
    assert_int_equal(fx_usage(fx).objects, 0);
    assert_int_equal(fx_usage(fx).reserved_bytes, 0);
    assert_int_equal(fx_count(fx, "tmp"), 0);
    assert_int_equal(fx_count(fx, "objects"), 0);
}

static void test_same_object_twice_exists(void **state)
{
    struct fixture *fx = *state;
    uint8_t digest[32];
    bool existed = true;
    assert_int_equal(fx_put(fx, 70000, 1, ITEM_A, digest, &existed), STATUS_OK);
    assert_false(existed);
    assert_int_equal(fx_put(fx, 70000, 1, ITEM_B, digest, &existed), STATUS_OK);
    assert_true(existed);
    assert_int_equal(fx_usage(fx).objects, 1);
    assert_true(object_store_is_pinned(fx->s, ITEM_A, digest));
    assert_true(object_store_is_pinned(fx->s, ITEM_B, digest));
    assert_int_equal(fx_count(fx, "tmp"), 0);
}

static void test_only_one_process_uses_a_directory(void **state)
{
    struct fixture *fx = *state;
    struct object_store *second = NULL;
    struct err e = ERR_INIT;
    assert_int_equal(object_store_open(&fx->o, &second, &e), STATUS_FAILED_PRECONDITION);
    assert_null(second);
    assert_non_null(strstr(e.msg, "another process"));
}

static void test_foreign_directory_is_refused(void **state)
{
    struct fixture *fx = *state;
    char path[128];
    object_store_free(TAKE(fx->s));
    snprintf(path, sizeof path, "%s/format", fx->dir);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs("cauce-origin 2\n", f);
    fclose(f);
    assert_int_equal(object_store_open(&fx->o, &fx->s, NULL), STATUS_FAILED_PRECONDITION);
    assert_null(fx->s);
}

// ---------------------------------------------------------------- pins, garbage

static int64_t collect(struct fixture *fx)
{
    int64_t objects, bytes;
    struct err e = ERR_INIT;
    if (object_store_collect(fx->s, NULL, &objects, &bytes, &e) != STATUS_OK)
        fail_msg("collect: %s", e.msg);
    return objects;
}

static void test_pins_keep_objects_and_survive_a_restart(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[3][32];
    int64_t changed = -1;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(fx_put(fx, 1000 + i, i, i == 0 ? ITEM_A : NULL, d[i], NULL), STATUS_OK);
    assert_int_equal(object_store_pin(fx->s, ITEM_A, d[0], 2, &changed, NULL), STATUS_OK);
    assert_int_equal(changed, 1); // the first was pinned by its put
    assert_int_equal(object_store_pin(fx->s, ITEM_B, d[1], 1, &changed, NULL), STATUS_OK);
    fx_reopen(fx);
    assert_int_equal(fx_usage(fx).pins, 3);
    assert_int_equal(collect(fx), 0); // grace begins anew at the start
    fx->mono_us += 1000 * 1000;
    assert_int_equal(collect(fx), 1);
    assert_false(object_store_stat(fx->s, d[2], NULL));
    assert_int_equal(fx_count(fx, "objects"), 2);

    assert_int_equal(object_store_unpin(fx->s, ITEM_A, NULL, 0, &changed, NULL), STATUS_OK);
    assert_int_equal(changed, 2);
    assert_int_equal(object_store_unpin(fx->s, ITEM_A, NULL, 0, &changed, NULL), STATUS_OK);
    assert_int_equal(changed, 0);
    assert_int_equal(collect(fx), 0); // grace
    fx->mono_us += 999 * 1000;
    assert_int_equal(collect(fx), 0);
    fx->mono_us += 1000;
    assert_int_equal(collect(fx), 1);
    assert_true(object_store_stat(fx->s, d[1], NULL)); // item B still keeps it
    fx_reopen(fx);
    assert_int_equal(object_store_unpin(fx->s, ITEM_B, d[1], 1, &changed, NULL), STATUS_OK);
    assert_int_equal(changed, 1);
    fx->mono_us += 1000 * 1000;
    assert_int_equal(collect(fx), 1);
    assert_int_equal(fx_usage(fx).objects, 0);
    assert_int_equal(fx_usage(fx).bytes, 0);
    assert_int_equal(fx_usage(fx).pins, 0);
}

static void test_pinning_what_is_not_here_pins_nothing(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[2][32];
    memset(d, 9, sizeof d);
    assert_int_equal(fx_put(fx, 10, 1, NULL, d[0], NULL), STATUS_OK);
    int64_t changed = -1;
    assert_int_equal(object_store_pin(fx->s, ITEM_A, d[0], 2, &changed, NULL), STATUS_NOT_FOUND);
    assert_int_equal(changed, -1);
    assert_false(object_store_is_pinned(fx->s, ITEM_A, d[0]));
    assert_int_equal(object_store_pin(fx->s, "../../etc", d[0], 1, NULL, NULL),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(object_store_pin(fx->s, NULL, d[0], 1, NULL, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(object_store_unpin(fx->s, ITEM_A, d[1], 1, &changed, NULL), STATUS_OK);
    assert_int_equal(changed, 0);
}

static void test_open_object_outlives_its_deletion(void **state)
{
    struct fixture *fx = *state;
    uint8_t digest[32], byte;
    assert_int_equal(fx_put(fx, 100, 1, NULL, digest, NULL), STATUS_OK);
    struct object_file *f = NULL;
    assert_int_equal(object_file_open(fx->s, digest, &f, NULL), STATUS_OK);
    fx->mono_us += 1000 * 1000;
    assert_int_equal(collect(fx), 1);
    assert_int_equal(object_file_read(f, 99, &byte, 1, NULL), STATUS_OK);
    object_file_free(f);
    assert_int_equal(object_file_open(fx->s, digest, &f, NULL), STATUS_NOT_FOUND);
}

static void pins_path(struct fixture *fx, char *dst, size_t n)
{
    snprintf(dst, n, "%s/pins.log", fx->dir);
}

static void test_torn_pin_record_is_cut_off(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[2][32];
    char path[128];
    assert_int_equal(fx_put(fx, 10, 1, ITEM_A, d[0], NULL), STATUS_OK);
    assert_int_equal(fx_put(fx, 10, 2, ITEM_A, d[1], NULL), STATUS_OK);
    object_store_free(TAKE(fx->s));
    pins_path(fx, path, sizeof path);
    assert_int_equal(truncate(path, 64 + 33), 0);
    fx_open(fx);
    assert_int_equal(fx_usage(fx).pins, 1);
    assert_int_equal(fx_usage(fx).pins_damaged, 0);
    assert_int_equal(object_store_pin(fx->s, ITEM_B, d[1], 1, NULL, NULL), STATUS_OK);
    fx_reopen(fx);
    assert_int_equal(fx_usage(fx).pins, 2);
}

static void test_damaged_pin_record_stops_garbage_collection(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[2][32];
    char path[128];
    int64_t objects, bytes;
    assert_int_equal(fx_put(fx, 10, 1, ITEM_A, d[0], NULL), STATUS_OK);
    assert_int_equal(fx_put(fx, 10, 2, ITEM_A, d[1], NULL), STATUS_OK);
    object_store_free(TAKE(fx->s));
    pins_path(fx, path, sizeof path);
    fx_flip(path, 30);
    fx_open(fx);
    assert_int_equal(fx_usage(fx).pins_damaged, 1);
    fx->mono_us += 1000 * 1000;
    assert_int_equal(object_store_collect(fx->s, NULL, &objects, &bytes, NULL),
                     STATUS_FAILED_PRECONDITION);
    assert_true(object_store_stat(fx->s, d[0], NULL));
}

static void test_pin_log_is_rewritten_when_mostly_history(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    struct stat st;
    char path[128];
    pins_path(fx, path, sizeof path);
    assert_int_equal(fx_put(fx, 10, 1, ITEM_A, d, NULL), STATUS_OK);
    for (int i = 0; i < 2100; i++) {
        assert_int_equal(object_store_pin(fx->s, ITEM_B, d, 1, NULL, NULL), STATUS_OK);
        assert_int_equal(object_store_unpin(fx->s, ITEM_B, d, 1, NULL, NULL), STATUS_OK);
    }
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 4201 * 64);
    fx_fail(fx, OBJECT_IO_RENAME, 0, EIO);
    int64_t objects, bytes;
    assert_int_not_equal(object_store_collect(fx->s, NULL, &objects, &bytes, NULL), STATUS_OK);
    fx->fail_at = -1;
    assert_int_equal(object_store_pin(fx->s, ITEM_B, d, 1, NULL, NULL), STATUS_OK);
    assert_int_equal(collect(fx), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 2 * 64);
    assert_int_equal(object_store_unpin(fx->s, ITEM_A, NULL, 0, NULL, NULL), STATUS_OK);
    fx_reopen(fx);
    assert_int_equal(fx_usage(fx).pins, 1);
    assert_true(object_store_is_pinned(fx->s, ITEM_B, d));
}

struct pinner {
    struct fixture *fx;
    const uint8_t *digest;
    unsigned n;
    int failed;
};

static void *pin_many(void *ud)
{
    struct pinner *p = ud;
    for (int i = 0; i < 50; i++) {
        char item[40];
        snprintf(item, sizeof item, "01890a5d-ac96-774b-bcce-b3%010x", p->n * 1000 + (unsigned)i);
        if (object_store_pin(p->fx->s, item, p->digest, 1, NULL, NULL) != STATUS_OK ||
            (i % 2 && object_store_unpin(p->fx->s, item, NULL, 0, NULL, NULL) != STATUS_OK))
            p->failed++;
    }
    return NULL;
}

static void test_pins_from_many_threads_are_all_durable(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    assert_int_equal(fx_put(fx, 10, 1, NULL, d, NULL), STATUS_OK);
    pthread_t t[4];
    struct pinner p[4];
    for (unsigned i = 0; i < 4; i++) {
        p[i] = (struct pinner){.fx = fx, .digest = d, .n = i + 1};
        assert_int_equal(pthread_create(&t[i], NULL, pin_many, &p[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(p[i].failed, 0);
    }
    assert_int_equal(fx_usage(fx).pins, 100);
    fx_reopen(fx);
    assert_int_equal(fx_usage(fx).pins, 100);
}

// ---------------------------------------------------------------- quota

static void test_quota_refuses_before_any_byte(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    fx->o.max_bytes = 200000;
    fx_reopen(fx);
    assert_int_equal(fx_put(fx, 100000, 1, NULL, d, NULL), STATUS_OK);
    struct object_writer *a = NULL, *b = NULL;
    assert_int_equal(object_writer_new(fx->s, 100000, &a, NULL), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(object_writer_new(fx->s, 60000, &a, NULL), STATUS_OK);
    assert_int_equal(object_writer_new(fx->s, 60000, &b, NULL), STATUS_RESOURCE_EXHAUSTED);
    object_writer_free(a);
    assert_int_equal(object_writer_new(fx->s, 60000, &b, NULL), STATUS_OK);
    object_writer_free(b);
    fx->mono_us += 1000 * 1000;
    assert_int_equal(collect(fx), 1);
    assert_int_equal(fx_put(fx, 190000, 2, NULL, d, NULL), STATUS_OK);
}

static void test_full_disk_refuses_before_any_byte(void **state)
{
    struct fixture *fx = *state;
    struct object_writer *w = NULL;
    char reason[100];
    fx->o.min_free_bytes = 1;
    fx_reopen(fx);
    assert_true(object_store_is_healthy(fx->s, reason, sizeof reason));
    fx_fail(fx, OBJECT_IO_SPACE, 0, ENOSPC); // the disk has nothing left
    fx->fail_sticky = true;
    assert_int_equal(object_writer_new(fx->s, 1, &w, NULL), STATUS_RESOURCE_EXHAUSTED);
    assert_false(object_store_is_healthy(fx->s, reason, sizeof reason));
    assert_non_null(strstr(reason, "full"));
    assert_int_equal(fx_usage(fx).reserved_bytes, 0);
}

// ---------------------------------------------------------------- faults

// Whatever operation fails while an object is stored: an error, nothing visible, nothing left, and
// the next try works.
static void test_every_disk_fault_while_storing_leaves_nothing(void **state)
{
    struct fixture *fx = *state;
    static const int errnos[] = {EIO, ENOSPC};
    for (size_t e = 0; e < N_ELEMENTS(errnos); e++) {
        int64_t n = 0;
        for (bool ok = false; !ok; n++) {
            uint8_t d[32];
            unsigned seed = (unsigned)(e * 1000) + (unsigned)n;
            fx_fail(fx, OBJECT_IO_OPEN, n, errnos[e]);
            fx->fail_any = true;
            enum status s = fx_put(fx, 150000, seed, NULL, d, NULL);
            ok = fx->n_ops <= n || s == STATUS_OK;
            fx->fail_at = -1;
            assert_int_equal(object_store_stat(fx->s, d, NULL), s == STATUS_OK);
            assert_int_equal(fx_usage(fx).reserved_bytes, 0);
            if (s != STATUS_OK) {
                assert_int_equal(fx_put(fx, 150000, seed, NULL, d, NULL), STATUS_OK);
                assert_true(fx_is_good(fx, 150000, seed));
            }
        }
        assert_true(n >= 6); // space, open, writes, sync, rename, folder sync
    }
    fx_reopen(fx);
    assert_int_equal(fx_count(fx, "tmp"), 0);
}

static void test_failed_sync_is_not_acknowledged(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    for (int64_t n = 0; n < 2; n++) { // of the file, of the folder
        fx_fail(fx, OBJECT_IO_SYNC, n, EIO);
        assert_int_equal(fx_put(fx, 100000, 7, ITEM_A, d, NULL), STATUS_INTERNAL);
        assert_int_equal(fx->n_ops, n + 1); // and was not tried again
        fx->fail_at = -1;
        assert_false(object_store_stat(fx->s, d, NULL));
        assert_int_equal(fx_count(fx, "objects"), 0);
    }
    assert_int_equal(fx_put(fx, 100000, 7, ITEM_A, d, NULL), STATUS_OK);
}

static void test_failed_sync_of_the_pin_log_ends_it_until_a_restart(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    char reason[100];
    assert_int_equal(fx_put(fx, 1000, 1, NULL, d, NULL), STATUS_OK);
    fx_fail(fx, OBJECT_IO_SYNC, 0, EIO);
    assert_int_equal(object_store_pin(fx->s, ITEM_A, d, 1, NULL, NULL), STATUS_INTERNAL);
    fx->fail_at = -1;
    assert_int_equal(object_store_pin(fx->s, ITEM_A, d, 1, NULL, NULL), STATUS_INTERNAL);
    assert_int_equal(object_store_pin(fx->s, ITEM_B, d, 1, NULL, NULL), STATUS_INTERNAL);
    assert_false(object_store_is_healthy(fx->s, reason, sizeof reason));
    assert_true(fx_is_good(fx, 1000, 1)); // reading goes on
    fx_reopen(fx);
    assert_true(object_store_is_healthy(fx->s, reason, sizeof reason));
    assert_int_equal(object_store_pin(fx->s, ITEM_B, d, 1, NULL, NULL), STATUS_OK);
}

static void test_full_disk_under_the_pin_log_heals(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    assert_int_equal(fx_put(fx, 1000, 1, NULL, d, NULL), STATUS_OK);
    fx_fail(fx, OBJECT_IO_WRITE, 0, ENOSPC);
    fx->fail_sticky = true;
    assert_int_equal(object_store_pin(fx->s, ITEM_A, d, 1, NULL, NULL), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(object_store_pin(fx->s, ITEM_A, d, 1, NULL, NULL), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(object_store_pin(fx->s, ITEM_B, d, 1, NULL, NULL), STATUS_RESOURCE_EXHAUSTED);
    fx->fail_at = -1;
    assert_int_equal(object_store_pin(fx->s, ITEM_A, d, 1, NULL, NULL), STATUS_OK);
    fx_reopen(fx);
    assert_int_equal(fx_usage(fx).pins, 2); // B's was queued before A's: repeated or not, it lasts
}

static void test_every_failed_allocation_is_an_error_only(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    int64_t n = 0;
    for (bool done = false; !done; n++) {
        mem_fail_at(n);
        enum status s = fx_put(fx, 70000, 5, ITEM_A, d, NULL);
        done = mem_n_allocs() <= n;
        mem_fail_at(-1);
        if (!done && s != STATUS_OK)
            assert_int_equal(s, STATUS_RESOURCE_EXHAUSTED);
        if (done)
            assert_int_equal(s, STATUS_OK);
    }
    assert_true(n > 4);
    assert_true(object_store_is_pinned(fx->s, ITEM_A, d));
    assert_int_equal(fx_usage(fx).reserved_bytes, 0);
}

static void test_every_failed_allocation_at_the_start_is_an_error_only(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    struct object_upload_info info;
    struct object_upload_spec spec = {
        .id = UPLOAD_1, .owner = OWNER, .item = ITEM_A, .digest = {4}, .size = 300000};
    assert_int_equal(fx_put(fx, 70000, 5, ITEM_A, d, NULL), STATUS_OK);
    assert_int_equal(object_upload_create(fx->s, &spec, &info, NULL), STATUS_OK);
    object_store_free(TAKE(fx->s));
    int64_t n = 0;
    for (bool ok = false; !ok; n++) {
        mem_fail_at(n);
        enum status s = object_store_open(&fx->o, &fx->s, NULL);
        mem_fail_at(-1);
        ok = s == STATUS_OK;
        if (!ok) {
            assert_int_equal(s, STATUS_RESOURCE_EXHAUSTED);
            assert_null(fx->s);
        }
    }
    assert_true(n > 8);
    assert_true(object_store_is_pinned(fx->s, ITEM_A, d));
    assert_int_equal(fx_usage(fx).uploads_open, 1);
}

// ---------------------------------------------------------------- damage

struct scrubbed {
    int64_t checked, bytes, bad;
    uint8_t last_bad[32];
};

static bool on_scrub(void *ud, const struct object_scrub *now)
{
    struct scrubbed *r = ud;
    r->checked = now->checked;
    r->bytes = now->bytes;
    if (now->bad) {
        r->bad++;
        memcpy(r->last_bad, now->bad, 32);
    }
    return true;
}

static void test_scrub_finds_every_kind_of_damage(void **state)
{
    struct fixture *fx = *state;
    enum { SIZE = 150000 };
    static const long places[] = {0, 65536, SIZE - 1, SIZE, SIZE + 40, SIZE + 3 * 32, SIZE + 111};
    uint8_t good[32], d[32];
    assert_int_equal(fx_put(fx, 1234, 99, NULL, good, NULL), STATUS_OK);
    for (unsigned i = 0; i < N_ELEMENTS(places); i++) {
        char path[200];
        assert_int_equal(fx_put(fx, SIZE, 3, ITEM_A, d, NULL), STATUS_OK);
        fx_object_path(fx, d, path, sizeof path);
        fx_flip(path, places[i]);
        struct scrubbed r = {0};
        assert_int_equal(object_store_scrub(fx->s, NULL, on_scrub, &r, NULL, NULL), STATUS_OK);
        assert_int_equal(r.checked, 2);
        assert_int_equal(r.bad, 1);
        assert_memory_equal(r.last_bad, d, 32);
        assert_false(object_store_stat(fx->s, d, NULL));
        assert_true(object_store_is_pinned(fx->s, ITEM_A, d)); // it is wanted still
        assert_int_equal(fx_count(fx, "damaged"), 1);
    }
    assert_int_equal(fx_put(fx, SIZE, 3, NULL, d, NULL), STATUS_OK); // stored again: repaired
    struct scrubbed r = {0};
    assert_int_equal(object_store_scrub(fx->s, d, on_scrub, &r, NULL, NULL), STATUS_OK);
    assert_int_equal(r.checked, 1);
    assert_int_equal(r.bytes, SIZE);
    assert_int_equal(r.bad, 0);
    assert_true(object_store_is_pinned(fx->s, ITEM_A, d));
    d[0] ^= 1;
    assert_int_equal(object_store_scrub(fx->s, d, on_scrub, &r, NULL, NULL), STATUS_NOT_FOUND);
}

static void test_object_of_impossible_length_is_set_aside_at_the_start(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    char path[200];
    assert_int_equal(fx_put(fx, 1000, 1, NULL, d, NULL), STATUS_OK);
    fx_object_path(fx, d, path, sizeof path);
    object_store_free(TAKE(fx->s));
    assert_int_equal(truncate(path, 30), 0);
    fx_open(fx);
    assert_false(object_store_stat(fx->s, d, NULL));
    assert_int_equal(fx_usage(fx).damaged, 1);
    assert_int_equal(fx_count(fx, "damaged"), 1);
}

static void test_vanished_file_is_found_by_scrub(void **state)
{
    struct fixture *fx = *state;
    uint8_t d[32];
    char path[200];
    assert_int_equal(fx_put(fx, 1000, 1, NULL, d, NULL), STATUS_OK);
    fx_object_path(fx, d, path, sizeof path);
    assert_int_equal(unlink(path), 0);
    struct scrubbed r = {0};
    assert_int_equal(object_store_scrub(fx->s, NULL, on_scrub, &r, NULL, NULL), STATUS_OK);
    assert_int_equal(r.bad, 1);
    assert_false(object_store_stat(fx->s, d, NULL));
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, fx_setup, fx_teardown)

int main(void)
{
    if (crypto_init(NULL) != STATUS_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        CASE(test_objects_of_all_shapes_come_back),
        CASE(test_leaf_digests_come_with_the_object),
        CASE(test_wrong_bytes_are_refused_and_leave_nothing),
        CASE(test_same_object_twice_exists),
        CASE(test_only_one_process_uses_a_directory),
        CASE(test_foreign_directory_is_refused),
        CASE(test_pins_keep_objects_and_survive_a_restart),
        CASE(test_pinning_what_is_not_here_pins_nothing),
        CASE(test_open_object_outlives_its_deletion),
        CASE(test_torn_pin_record_is_cut_off),
        CASE(test_damaged_pin_record_stops_garbage_collection),
        CASE(test_pin_log_is_rewritten_when_mostly_history),
        CASE(test_pins_from_many_threads_are_all_durable),
        CASE(test_quota_refuses_before_any_byte),
        CASE(test_full_disk_refuses_before_any_byte),
        CASE(test_every_disk_fault_while_storing_leaves_nothing),
        CASE(test_failed_sync_is_not_acknowledged),
        CASE(test_failed_sync_of_the_pin_log_ends_it_until_a_restart),
        CASE(test_full_disk_under_the_pin_log_heals),
        CASE(test_every_failed_allocation_is_an_error_only),
        CASE(test_every_failed_allocation_at_the_start_is_an_error_only),
        CASE(test_scrub_finds_every_kind_of_damage),
        CASE(test_object_of_impossible_length_is_set_aside_at_the_start),
        CASE(test_vanished_file_is_found_by_scrub),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
