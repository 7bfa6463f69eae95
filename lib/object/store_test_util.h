#pragma once
// Fixtures of the store's tests: a directory of its own, faults, clocks, patterns.
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "object/store.h"
#include "object/upload.h"

#define ITEM_A "01890a5d-ac96-774b-bcce-b302099a8001"
#define ITEM_B "01890a5d-ac96-774b-bcce-b302099a8002"
#define OWNER "01890a5d-ac96-774b-bcce-b302099a8003"
#define STRANGER "01890a5d-ac96-774b-bcce-b302099a8004"
#define UPLOAD_1 "01890a5d-ac96-774b-bcce-b302099a8011"
#define UPLOAD_2 "01890a5d-ac96-774b-bcce-b302099a8012"

struct fixture {
    char dir[64];
    struct object_store_opts o;
    struct object_store *s;
    int64_t mono_us, wall_ms;
    enum object_io_op fail_op; // the fail_at-th of them fails with fail_errno, and all later ones
    int64_t fail_at;           // if fail_sticky; -1: none
    int fail_errno;
    bool fail_any, fail_sticky; // any: whatever operation
    int64_t n_ops;
};

static inline int fx_fault(void *ud, enum object_io_op op, const char *path)
{
    struct fixture *fx = ud;
    (void)path;
    if (fx->fail_at < 0 || (!fx->fail_any && op != fx->fail_op))
        return 0;
    int64_t n = fx->n_ops++;
    return n == fx->fail_at || (fx->fail_sticky && n > fx->fail_at) ? fx->fail_errno : 0;
}

static inline void fx_fail(struct fixture *fx, enum object_io_op op, int64_t at, int errnum)
{
    fx->fail_op = op;
    fx->fail_at = at;
    fx->fail_errno = errnum;
    fx->fail_any = fx->fail_sticky = false;
    fx->n_ops = 0;
}

static inline int64_t fx_mono(void *ud)
{
    return ((struct fixture *)ud)->mono_us;
}

static inline int64_t fx_wall(void *ud)
{
    return ((struct fixture *)ud)->wall_ms;
}

static inline void fx_open(struct fixture *fx)
{
    struct err e = ERR_INIT;
    if (object_store_open(&fx->o, &fx->s, &e) != STATUS_OK)
        fail_msg("open: %s", e.msg);
}

static inline void fx_reopen(struct fixture *fx)
{
    object_store_free(TAKE(fx->s));
    fx_open(fx);
}

static inline int fx_setup(void **state)
{
    struct fixture *fx = calloc(1, sizeof *fx);
    assert_non_null(fx);
    strcpy(fx->dir, "/tmp/cauce-store-XXXXXX");
    assert_non_null(mkdtemp(fx->dir));
    fx->fail_at = -1;
    fx->mono_us = 1000000;
    fx->wall_ms = INT64_C(1800000000000);
    fx->o = (struct object_store_opts){
        .dir = fx->dir,
        .grace_ms = 1000,
        .upload_ttl_ms = 10000,
        .mono_us = fx_mono,
        .wall_ms = fx_wall,
        .fault = fx_fault,
        .ud = fx,
    };
    fx_open(fx);
    *state = fx;
    return 0;
}

static inline int fx_remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static inline int fx_teardown(void **state)
{
    struct fixture *fx = *state;
    object_store_free(fx->s);
    nftw(fx->dir, fx_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(fx);
    return 0;
}

static inline uint8_t *fx_bytes(size_t size, unsigned seed)
{
    uint8_t *p = malloc(size + 1);
    assert_non_null(p);
    uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i < size; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        p[i] = (uint8_t)x;
    }
    return p;
}

// Store `size` bytes of pattern `seed`; the status of whatever step failed first.
static inline enum status fx_put(struct fixture *fx, size_t size, unsigned seed, const char *item,
                                 uint8_t digest[32], bool *existed)
{
    uint8_t *p = fx_bytes(size, seed);
    object_digest(digest, p, size);
    struct object_writer *w = NULL;
    struct err e = ERR_INIT;
    enum status s = object_writer_new(fx->s, (int64_t)size, &w, &e);
    for (size_t at = 0; s == STATUS_OK && at < size; at += 100000)
        s = object_writer_write(w, p + at, size - at < 100000 ? size - at : 100000, &e);
    if (s == STATUS_OK)
        s = object_writer_commit(w, digest, item, existed, &e);
    object_writer_free(w);
    free(p);
    assert_int_equal(s, e.code);
    return s;
}

// The object is there and every byte of it is right.
static inline bool fx_is_good(struct fixture *fx, size_t size, unsigned seed)
{
    uint8_t digest[32], *p = fx_bytes(size, seed), *q = malloc(size + 1);
    object_digest(digest, p, size);
    struct object_file *f = NULL;
    bool good = object_file_open(fx->s, digest, &f, NULL) == STATUS_OK &&
                object_file_size(f) == (int64_t)size &&
                object_file_read(f, 0, q, size, NULL) == STATUS_OK && memcmp(p, q, size) == 0;
    object_file_free(f);
    free(p);
    free(q);
    return good;
}

static inline int fx_count(struct fixture *fx, const char *folder)
{
    char cmd[128];
    snprintf(cmd, sizeof cmd, "find %s/%s -type f | wc -l", fx->dir, folder);
    FILE *f = popen(cmd, "r");
    int n = -1;
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &n), 1);
    pclose(f);
    return n;
}

static inline struct object_store_usage fx_usage(struct fixture *fx)
{
    struct object_store_usage u;
    object_store_usage(fx->s, &u);
    return u;
}

static inline void fx_object_path(struct fixture *fx, const uint8_t digest[32], char *dst, size_t n)
{
    char hex[OBJECT_HEX_SIZE];
    str_hex(hex, digest, 32);
    snprintf(dst, n, "%s/objects/%.2s/%s", fx->dir, hex, hex);
}

// Flip one bit of a file.
static inline void fx_flip(const char *path, long at)
{
    FILE *f = fopen(path, "r+e");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    int c = fgetc(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    fputc(c ^ 4, f);
    fclose(f);
}
