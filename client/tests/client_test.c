// libcauce against a server in the same process, over TCP.
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "cauce/cauce.h"
#include "fake_server.h"

enum { SOURCE_BYTES = 20 * OBJECT_LEAF_BYTES + 777 };

struct world {
    struct fake fake;
    char dir[64];
    char path[128]; // of the file to upload
    uint8_t *bytes;
    cauce *c;
};

static cauce *connect_to(struct world *w, const char *state)
{
    static char dir[160];
    cauce_opts o;
    cauce_opts_init(&o);
    o.server = w->fake.address;
    o.timeout_ms = 10000;
    if (state) {
        snprintf(dir, sizeof(dir), "%s/%s", w->dir, state);
        o.state_dir = dir;
    }
    cauce *c = NULL;
    cauce_error e;
    if (cauce_connect(&o, &c, &e) != CAUCE_OK)
        fail_msg("%s", e.message);
    return c;
}

static int set_up(void **state)
{
    struct world *w = mem_alloc(sizeof(*w));
    assert_non_null(w);
    fake_start(&w->fake);
    strcpy(w->dir, "/tmp/cauce-client-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(w->path, sizeof(w->path), "%s/film.mp4", w->dir);
    w->bytes = mem_alloc(SOURCE_BYTES);
    assert_non_null(w->bytes);
    for (size_t i = 0; i < SOURCE_BYTES; i++)
        w->bytes[i] = (uint8_t)(i * 2654435761U >> 13);
    FILE *f = fopen(w->path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(w->bytes, 1, SOURCE_BYTES, f), SOURCE_BYTES);
    fclose(f);
    fake_set_source(&w->fake, w->bytes, SOURCE_BYTES);
    w->c = connect_to(w, "state");
    cauce_error e;
    if (cauce_register(w->c, "ada", "a long password", NULL, NULL, &e) != CAUCE_OK)
        fail_msg("%s", e.message);
    *state = w;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static int tear_down(void **state)
{
    struct world *w = *state;
    cauce_close(w->c);
    fake_stop(&w->fake);
    nftw(w->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    mem_free(w->bytes);
    mem_free(w);
    return 0;
}

static void check(cauce_status s, const cauce_error *e)
{
    if (s != CAUCE_OK)
        fail_msg("%s: %s", cauce_status_name(s), e->message);
}

// ---------------------------------------------------------------- addresses, logins

static void test_connect_refuses_bad_addresses(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "http://x:1#AA",
        "cauce://host",
        "cauce://host#AAAA",
        "cauce://host:0#AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "cauce://host:99999#AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "cauce://host:1#short",
        "cauce://:1#AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"};
    for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
        cauce_opts o;
        cauce_opts_init(&o);
        o.server = bad[i];
        cauce *c = NULL;
        cauce_error e;
        if (cauce_connect(&o, &c, &e) != CAUCE_INVALID_ARGUMENT || c)
            fail_msg("%s was accepted", bad[i]);
    }
}

static void test_login_is_kept_private_and_found_again(void **state)
{
    struct world *w = *state;
    char path[160];
    struct stat st;
    snprintf(path, sizeof(path), "%s/state", w->dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    snprintf(path, sizeof(path), "%s/state/server", w->dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);

    cauce *other = connect_to(w, "state");
    cauce_user u;
    cauce_error e;
    check(cauce_whoami(other, &u, &e), &e);
    assert_string_equal(u.name, "ada");
    assert_string_equal(u.roles, "user,creator");
    check(cauce_logout(other, 0, &e), &e);
    assert_int_equal(cauce_whoami(other, &u, &e), CAUCE_UNAUTHENTICATED);
    cauce_close(other);
}

static void test_expired_token_is_renewed_before_the_call(void **state)
{
    struct world *w = *state;
    FAKE_SET(&w->fake, life_s, 5); // less than the margin
    cauce *c = connect_to(w, NULL);
    cauce_error e;
    check(cauce_register(c, "ada", "a long password", NULL, NULL, &e), &e);
    FAKE_SET(&w->fake, life_s, 600);
    check(cauce_whoami(c, NULL, &e), &e);
    check(cauce_whoami(c, NULL, &e), &e);
    assert_int_equal(FAKE_GET(&w->fake, n_refreshes), 1);
    cauce_close(c);
}

static void test_refused_token_is_renewed_and_the_call_repeated(void **state)
{
    struct world *w = *state;
    // another access token in the file, as after a restored backup; the refresh token still counts
    char cmd[400];
    snprintf(cmd, sizeof(cmd), "sed -i 's/^access .*/access wrong/' %s/state/login-*", w->dir);
    assert_int_equal(system(cmd), 0);
    cauce *c = connect_to(w, "state");
    cauce_error e;
    check(cauce_whoami(c, NULL, &e), &e);
    assert_int_equal(FAKE_GET(&w->fake, n_refreshes), 1);
    // the first handle's refresh token is spent, but the folder has its successor
    FAKE_SET(&w->fake, life_s, 600);
    cauce_close(w->c);
    w->c = connect_to(w, "state");
    check(cauce_whoami(w->c, NULL, &e), &e);
    assert_int_equal(FAKE_GET(&w->fake, n_refreshes), 1);
    cauce_close(c);
}

static void test_short_password_says_why(void **state)
{
    struct world *w = *state;
    cauce_error e;
    assert_int_equal(cauce_register(w->c, "ada", "short", NULL, NULL, &e), CAUCE_INVALID_ARGUMENT);
    assert_non_null(strstr(e.message, "too short"));
}

// ---------------------------------------------------------------- catalogue, shop

static void test_list_gives_items_and_next_page(void **state)
{
    struct world *w = *state;
    cauce_query q;
    cauce_query_init(&q);
    cauce_items *items = NULL;
    cauce_error e;
    check(cauce_items_list(w->c, &q, &items, &e), &e);
    assert_int_equal(items->n, 1);
    assert_string_equal(items->item[0].id, FAKE_ITEM);
    assert_string_equal(items->item[0].title, "for a user");
    assert_string_equal(items->next_page, "p2");
    cauce_items_free(items);
    cauce *anon = connect_to(w, NULL);
    check(cauce_items_list(anon, &q, &items, &e), &e);
    assert_string_equal(items->item[0].title, "for anybody");
    cauce_items_free(items);
    cauce_close(anon);
}

static void test_purchase_is_charged_once_when_the_answer_is_lost(void **state)
{
    struct world *w = *state;
    const char *ids[] = {FAKE_ITEM};
    cauce_quote q;
    cauce_order o;
    cauce_error e;
    check(cauce_get_quote(w->c, ids, 1, &q, &e), &e);
    assert_int_equal(q.total.minor, 500);
    check(cauce_purchase(w->c, q.id, "key-1", &o, &e), &e);
    assert_string_equal(o.id, "o-1");
    assert_int_equal(FAKE_GET(&w->fake, n_charges), 1);
    assert_int_equal(cauce_get_quote(w->c, ids, 0, &q, &e), CAUCE_INVALID_ARGUMENT);
}

// ---------------------------------------------------------------- uploads

static void test_upload_survives_broken_calls_and_sends_each_leaf_once(void **state)
{
    struct world *w = *state;
    FAKE_SET(&w->fake, break_puts, 3);
    cauce_upload_result r;
    cauce_error e;
    check(cauce_upload_file(w->c, w->path, NULL, NULL, NULL, &r, &e), &e);
    assert_string_equal(r.item_id, FAKE_ITEM);
    assert_int_equal(r.size, SOURCE_BYTES);
    assert_int_equal(r.sent, SOURCE_BYTES);
    assert_true(FAKE_GET(&w->fake, is_committed));
    pthread_mutex_lock(&w->fake.lock);
    bool is_source = memcmp(w->fake.digest, w->fake.source.digest, OBJECT_DIGEST_SIZE) == 0;
    pthread_mutex_unlock(&w->fake.lock);
    assert_true(is_source);
    assert_in_range(FAKE_GET(&w->fake, n_leaves_received), 21, 21 + 3 * 32);
    int before = FAKE_GET(&w->fake, n_leaves_received);
    check(cauce_upload_file(w->c, w->path, NULL, NULL, NULL, &r, &e), &e);
    assert_int_equal(r.sent, 0);
    assert_int_equal(FAKE_GET(&w->fake, n_leaves_received), before);
}

struct stop_at {
    int64_t sent, skipped;
    int64_t limit;
};

static int stop(const cauce_progress *p, void *ud)
{
    struct stop_at *s = ud;
    if (strcmp(p->stage, "send") != 0)
        return 0;
    s->sent = p->sent;
    s->skipped = p->skipped;
    return p->sent >= s->limit;
}

static void test_cancelled_upload_continues_with_what_is_missing(void **state)
{
    struct world *w = *state;
    FAKE_SET(&w->fake, break_puts, 1); // four leaves arrive, then the call breaks
    struct stop_at at = {.limit = 1};
    cauce_upload_result r;
    cauce_error e;
    assert_int_equal(cauce_upload_file(w->c, w->path, NULL, stop, &at, &r, &e), CAUCE_CANCELLED);
    // what the origin kept by then, it need not be sent again
    int kept = 0;
    pthread_mutex_lock(&w->fake.lock);
    w->fake.break_puts = 0;
    for (size_t i = 0; i < FAKE_MAX_LEAVES; i++)
        kept += w->fake.have[i];
    w->fake.have[5] = true; // as if another process had sent one more
    pthread_mutex_unlock(&w->fake.lock);
    at = (struct stop_at){.limit = INT64_MAX};
    check(cauce_upload_file(w->c, w->path, NULL, stop, &at, &r, &e), &e);
    assert_true(at.skipped >= OBJECT_LEAF_BYTES);
    assert_int_equal(at.sent + at.skipped, SOURCE_BYTES);
    assert_true(r.sent <= SOURCE_BYTES - OBJECT_LEAF_BYTES);
    assert_in_range(kept, 0, 21);
}

static void test_upload_refuses_what_is_no_file(void **state)
{
    struct world *w = *state;
    cauce_upload_result r;
    cauce_error e;
    assert_int_equal(cauce_upload_file(w->c, w->dir, NULL, NULL, NULL, &r, &e),
                     CAUCE_INVALID_ARGUMENT);
    assert_int_equal(cauce_upload_file(w->c, "/nonexistent/x", NULL, NULL, NULL, &r, &e),
                     CAUCE_NOT_FOUND);
    assert_int_equal(truncate(w->path, 0), 0);
    assert_int_equal(cauce_upload_file(w->c, w->path, NULL, NULL, NULL, &r, &e),
                     CAUCE_INVALID_ARGUMENT);
    assert_non_null(strstr(e.message, "empty"));
}

static void test_wait_ends_with_the_event(void **state)
{
    struct world *w = *state;
    cauce_error e;
    check(cauce_wait_ready(w->c, FAKE_ITEM, CAUCE_UNTIL_READY, 10000, NULL, NULL, &e), &e);
    assert_int_equal(FAKE_GET(&w->fake, n_job_gets), 2);
}

static void test_wait_fails_with_the_jobs_reason(void **state)
{
    struct world *w = *state;
    FAKE_SET(&w->fake, job_failure, "no picture in it");
    cauce_error e;
    assert_int_equal(cauce_wait_ready(w->c, FAKE_ITEM, CAUCE_UNTIL_PLAYABLE, 10000, NULL, NULL, &e),
                     CAUCE_FAILED_PRECONDITION);
    assert_non_null(strstr(e.message, "no picture in it"));
}

// ---------------------------------------------------------------- playback

static size_t read_all(cauce_stream *s, uint8_t *p, size_t n)
{
    size_t done = 0;
    for (int64_t r; (r = cauce_stream_read(s, p + done, n - done)) != 0; done += (size_t)r)
        if (r < 0)
            fail_msg("%s", cauce_stream_error(s)->message);
    return done;
}

static void test_direct_play_reads_and_seeks_verified_bytes(void **state)
{
    struct world *w = *state;
    FAKE_SET(&w->fake, break_reads, 1); // after the first piece of bytes: continued behind it
    cauce_stream *s = NULL;
    cauce_error e;
    check(cauce_play_open(w->c, FAKE_ITEM, NULL, &s, &e), &e);
    cauce_stream_info i;
    cauce_stream_get_info(s, &i);
    assert_true(i.direct);
    assert_int_equal(i.size, SOURCE_BYTES);
    AUTO(mem_free_p) uint8_t *got = mem_alloc(SOURCE_BYTES + 1);
    assert_int_equal(read_all(s, got, SOURCE_BYTES + 1), SOURCE_BYTES);
    assert_memory_equal(got, w->bytes, SOURCE_BYTES);
    static const int64_t at[] = {0, 1, 65535, 65536, 1 << 20, SOURCE_BYTES - 3, SOURCE_BYTES};
    for (size_t k = 0; k < N_ELEMENTS(at); k++) {
        assert_int_equal(cauce_stream_seek(s, at[k], SEEK_SET), at[k]);
        size_t left = (size_t)(SOURCE_BYTES - at[k]), want = left < 100 ? left : 100;
        assert_int_equal(cauce_stream_read(s, got, 100), want);
        assert_memory_equal(got, w->bytes + at[k], want);
    }
    assert_int_equal(cauce_stream_seek(s, -3, SEEK_END), SOURCE_BYTES - 3);
    assert_int_equal(cauce_stream_seek(s, 1, SEEK_CUR), SOURCE_BYTES - 2);
    assert_int_equal(cauce_stream_seek(s, -1, SEEK_SET), -CAUCE_INVALID_ARGUMENT);
    assert_int_equal(cauce_stream_seek_time(s, 0), CAUCE_UNIMPLEMENTED);
    cauce_stream_close(s);
}

static void test_corrupt_bytes_are_never_given_out(void **state)
{
    struct world *w = *state;
    FAKE_SET(&w->fake, corrupt, true);
    cauce_stream *s = NULL;
    cauce_error e;
    uint8_t got[16];
    check(cauce_play_open(w->c, FAKE_ITEM, NULL, &s, &e), &e);
    assert_int_equal(cauce_stream_read(s, got, sizeof(got)), -CAUCE_DATA_LOSS);
    cauce_stream_close(s);
    fake_make_plan(&w->fake, 10);
    check(cauce_play_open(w->c, FAKE_ITEM, NULL, &s, &e), &e);
    int64_t n; // the init segment comes with the plan
    while ((n = cauce_stream_read(s, got, sizeof(got))) > 0)
        ;
    assert_int_equal(n, -CAUCE_DATA_LOSS);
    cauce_stream_close(s);
}

static void test_unknown_item_is_not_found(void **state)
{
    struct world *w = *state;
    cauce_stream *s = NULL;
    cauce_error e;
    assert_int_equal(cauce_play_open(w->c, "other", NULL, &s, &e), CAUCE_NOT_FOUND);
    assert_null(s);
}

static void test_fragments_make_one_mp4_and_seek_by_time(void **state)
{
    struct world *w = *state;
    fake_make_plan(&w->fake, 30);
    cauce_stream *s = NULL;
    cauce_error e;
    check(cauce_play_open(w->c, FAKE_ITEM, NULL, &s, &e), &e);
    AUTO(mem_free_p) uint8_t *all = mem_alloc(1 << 20);
    AUTO(mem_free_p) uint8_t *part = mem_alloc(1 << 20);
    size_t n = read_all(s, all, 1 << 20);
    assert_memory_equal(all + 4, "ftyp", 4);
    // the bytes of every segment follow in order, only the sequence number differs
    size_t want = 0;
    for (size_t i = 0; i < w->fake.n_segments; i++)
        want += w->fake.segments[i].bytes.len;
    size_t init = n - want;
    assert_in_range(init, 100, 4096);
    // complete: sizes are known, so it seeks like a file
    assert_int_equal(cauce_stream_seek(s, 0, SEEK_END), (int64_t)n);
    assert_int_equal(cauce_stream_seek(s, (int64_t)init + 50, SEEK_SET), (int64_t)init + 50);
    size_t m = read_all(s, part, 1 << 20);
    assert_int_equal(m, n - init - 50);
    assert_memory_equal(part, all + init + 50, m);
    // by time: init again, then the segment that is heard at 10 s
    assert_int_equal(cauce_stream_seek_time(s, 10 * 1000000), CAUCE_OK);
    m = read_all(s, part, 1 << 20);
    size_t seg = media_grid_segment_at(&w->fake.plan->audio, 10 * 1000000), rest = 0;
    for (size_t i = seg; i < w->fake.n_segments; i++)
        rest += w->fake.segments[i].bytes.len;
    assert_true(seg > 0);
    assert_int_equal(m, init + rest);
    assert_memory_equal(part, all, init);
    assert_memory_equal(part + init, all + n - rest, rest);
    cauce_stream_close(s);
}

// ---------------------------------------------------------------- library

static void expect_file(const char *path, const uint8_t *bytes, size_t n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    AUTO(mem_free_p) uint8_t *got = mem_alloc(n + 1);
    assert_int_equal(fread(got, 1, n + 1, f), n);
    assert_memory_equal(got, bytes, n);
    fclose(f);
}

static void flip_byte(const char *path, long at)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, at, SEEK_SET);
    int c = fgetc(f);
    fseek(f, at, SEEK_SET);
    fputc(c ^ 1, f);
    fclose(f);
}

static int stop_download(const cauce_progress *p, void *ud)
{
    return strcmp(p->stage, "download") == 0 && p->sent >= *(int64_t *)ud;
}

static void test_download_resumes_repairs_and_plays_without_server(void **state)
{
    struct world *w = *state;
    char folder[128];
    snprintf(folder, sizeof(folder), "%s/library", w->dir);
    int64_t limit = 1;
    cauce_download_result r;
    cauce_error e;
    assert_int_equal(cauce_download(w->c, FAKE_ITEM, folder, stop_download, &limit, &r, &e),
                     CAUCE_CANCELLED);
    check(cauce_download(w->c, FAKE_ITEM, folder, NULL, NULL, &r, &e), &e);
    assert_int_equal(r.size, SOURCE_BYTES);
    assert_int_equal(r.verified, 1 << 20);
    assert_int_equal(r.received, SOURCE_BYTES - (1 << 20));
    expect_file(r.path, w->bytes, SOURCE_BYTES);

    check(cauce_download(w->c, FAKE_ITEM, folder, NULL, NULL, &r, &e), &e);
    assert_int_equal(r.received, 0);
    flip_byte(r.path, (1 << 20) + 5);
    check(cauce_download(w->c, FAKE_ITEM, folder, NULL, NULL, &r, &e), &e);
    assert_int_equal(r.verified, 1 << 20);
    expect_file(r.path, w->bytes, SOURCE_BYTES);

    cauce_library *l = NULL;
    check(cauce_library_open(folder, &l, &e), &e);
    assert_int_equal(cauce_library_count(l), 1);
    assert_string_equal(cauce_library_item(l, 0), FAKE_ITEM);
    cauce_stream *s = NULL;
    check(cauce_library_play(l, FAKE_ITEM, &s, &e), &e);
    AUTO(mem_free_p) uint8_t *got = mem_alloc(SOURCE_BYTES + 1);
    assert_int_equal(read_all(s, got, SOURCE_BYTES + 1), SOURCE_BYTES);
    assert_memory_equal(got, w->bytes, SOURCE_BYTES);
    cauce_stream_close(s);
    flip_byte(r.path, 100);
    check(cauce_library_play(l, FAKE_ITEM, &s, &e), &e);
    assert_int_equal(cauce_stream_read(s, got, 10), -CAUCE_DATA_LOSS);
    cauce_stream_close(s);
    assert_int_equal(cauce_library_play(l, "../x", &s, &e), CAUCE_INVALID_ARGUMENT);
    cauce_library_close(l);
}

static void test_download_of_fragments_is_one_file(void **state)
{
    struct world *w = *state;
    fake_make_plan(&w->fake, 12);
    char folder[128];
    snprintf(folder, sizeof(folder), "%s/library", w->dir);
    cauce_download_result r;
    cauce_error e;
    check(cauce_download(w->c, FAKE_ITEM, folder, NULL, NULL, &r, &e), &e);
    cauce_stream *s = NULL;
    check(cauce_play_open(w->c, FAKE_ITEM, NULL, &s, &e), &e);
    AUTO(mem_free_p) uint8_t *all = mem_alloc(1 << 20);
    size_t n = read_all(s, all, 1 << 20);
    cauce_stream_close(s);
    assert_int_equal(r.size, n);
    expect_file(r.path, all, n);
}

// ---------------------------------------------------------------- outages

static void test_calls_go_on_after_the_server_restarted(void **state)
{
    struct world *w = *state;
    cauce_error e;
    check(cauce_whoami(w->c, NULL, &e), &e);
    fake_restart(&w->fake);
    check(cauce_whoami(w->c, NULL, &e), &e);
}

static void test_cancel_ends_what_waits(void **state)
{
    struct world *w = *state;
    cauce_cancel(w->c);
    cauce_error e;
    assert_int_equal(cauce_whoami(w->c, NULL, &e), CAUCE_CANCELLED);
    assert_int_equal(cauce_wait_ready(w->c, FAKE_ITEM, CAUCE_UNTIL_READY, 0, NULL, NULL, &e),
                     CAUCE_CANCELLED);
}

static int end_process(void **state)
{
    (void)state;
    rpc_fini();
    return 0;
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_connect_refuses_bad_addresses),
        CASE(test_login_is_kept_private_and_found_again),
        CASE(test_expired_token_is_renewed_before_the_call),
        CASE(test_refused_token_is_renewed_and_the_call_repeated),
        CASE(test_short_password_says_why),
        CASE(test_list_gives_items_and_next_page),
        CASE(test_purchase_is_charged_once_when_the_answer_is_lost),
        CASE(test_upload_survives_broken_calls_and_sends_each_leaf_once),
        CASE(test_cancelled_upload_continues_with_what_is_missing),
        CASE(test_upload_refuses_what_is_no_file),
        CASE(test_wait_ends_with_the_event),
        CASE(test_wait_fails_with_the_jobs_reason),
        CASE(test_direct_play_reads_and_seeks_verified_bytes),
        CASE(test_corrupt_bytes_are_never_given_out),
        CASE(test_unknown_item_is_not_found),
        CASE(test_fragments_make_one_mp4_and_seek_by_time),
        CASE(test_download_resumes_repairs_and_plays_without_server),
        CASE(test_download_of_fragments_is_one_file),
        CASE(test_calls_go_on_after_the_server_restarted),
        CASE(test_cancel_ends_what_waits),
    };
    return cmocka_run_group_tests(tests, NULL, end_process);
}
