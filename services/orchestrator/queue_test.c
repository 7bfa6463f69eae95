// The queue against a PostgreSQL of its own: claims, fences, expiry, retries, the end of a job.
#include "orchestrator/internal.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "support/pg.h"

struct fixture {
    struct test_pg *pg;
    struct db *db;
    char item[UUID_SIZE], job[UUID_SIZE];
};

#define must(call)                                                                                 \
    do {                                                                                           \
        struct err err = ERR_INIT;                                                                 \
        enum status must_s_ = (call);                                                              \
        if (must_s_ != STATUS_OK)                                                                  \
            fail_msg("%s: %s", status_name(must_s_), err.msg);                                     \
    } while (0)

static int setup_server(void **state)
{
    struct fixture *f = mem_alloc(sizeof *f);
    f->pg = test_pg_new();
    f->db = test_pg_db(f->pg, 16, true);
    *state = f;
    return 0;
}

static int teardown_server(void **state)
{
    struct fixture *f = *state;
    db_free(f->db);
    test_pg_free(f->pg);
    mem_free(f);
    return 0;
}

static void sql(struct fixture *f, const char *text, const char *p1)
{
    must(db_query(f->db, text, &(struct db_param){.type = DB_P_TEXT, .ptr = p1}, p1 != NULL, NULL,
                  &err));
}

static int64_t ask(struct fixture *f, const char *text, const char *p1)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    must(db_query(f->db, text, &(struct db_param){.type = DB_P_TEXT, .ptr = p1}, p1 != NULL, &r,
                  &err));
    assert_int_equal(db_result_n_rows(r), 1);
    return db_i64(r, 0, 0);
}

static void ask_text(struct fixture *f, const char *text, const char *p1, char *dst, size_t size)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    must(db_query(f->db, text, &(struct db_param){.type = DB_P_TEXT, .ptr = p1}, p1 != NULL, &r,
                  &err));
    assert_int_equal(db_result_n_rows(r), 1);
    str_copy(dst, size, db_text(r, 0, 0));
}

// An item with a job and no task, in an empty schema.
static int setup_item(void **state)
{
    struct fixture *f = *state;
    char upload[UUID_SIZE];
    rand_uuid7(upload);
    rand_uuid7(f->item);
    rand_uuid7(f->job);
    sql(f,
        "TRUNCATE orchestrator.upload, orchestrator.item, orchestrator.job, orchestrator.task,"
        "  orchestrator.output, orchestrator.chore, orchestrator.worker, orchestrator.event,"
        "  orchestrator.turn"
        "  CASCADE",
        NULL);
    must(
        db_query(f->db,
                 "INSERT INTO orchestrator.upload (id, item, owner, owner_name, filename, digest,"
                 "  size, kind, route, state) VALUES ($1::uuid, $2::uuid, $2::uuid, 'ana', 'a.mp4',"
                 "  decode(repeat('11', 32), 'hex'), 1000, 'video', 'video-1', 'committed')",
                 DB_PARAMS(DB_TEXT(upload), DB_TEXT(f->item)), NULL, &err));
    must(db_query(f->db,
                  "INSERT INTO orchestrator.item (id, upload, owner, title, kind, route, digest,"
                  "  size) VALUES ($2::uuid, $1::uuid, $2::uuid, 'A', 'video', 'video-1',"
                  "  decode(repeat('11', 32), 'hex'), 1000)",
                  DB_PARAMS(DB_TEXT(upload), DB_TEXT(f->item)), NULL, &err));
    must(db_query(f->db,
                  "INSERT INTO orchestrator.job (id, item, owner, state)"
                  "  VALUES ($1::uuid, $2::uuid, $2::uuid, 'running')",
                  DB_PARAMS(DB_TEXT(f->job), DB_TEXT(f->item)), NULL, &err));
    for (int i = 0; i < 3; i++) {
        char w[16];
        snprintf(w, sizeof w, "w%d", i);
        sql(f, "INSERT INTO orchestrator.worker (id) VALUES ($1::text)", w);
    }
    return 0;
}

static void add_task(struct fixture *f, int position, int priority, int first, int n, char *ret_id)
{
    char id[UUID_SIZE];
    rand_uuid7(id);
    must(db_query(f->db,
                  "INSERT INTO orchestrator.task (id, job, item, kind, position, priority,"
                  "  renditions, first_segment, n_segments) VALUES ($1::uuid, $2::uuid, $3::uuid,"
                  "  'chunk', $4::int, $5::int, 'v480,v240', $6::int, $7::int)",
                  DB_PARAMS(DB_TEXT(id), DB_TEXT(f->job), DB_TEXT(f->item), DB_I64(position),
                            DB_I64(priority), DB_I64(first), DB_I64(n)),
                  NULL, &err));
    if (ret_id)
        str_copy(ret_id, UUID_SIZE, id);
}

static bool claim(struct fixture *f, const char *worker, struct queue_task *t)
{
    bool found = false;
    must(queue_claim(f->db, worker, "", t, &found, &err));
    return found;
}

static void state_of(struct fixture *f, const char *task, char dst[16])
{
    ask_text(f, "SELECT state FROM orchestrator.task WHERE id = $1::uuid", task, dst, 16);
}

#define assert_state(f, task, expected)                                                            \
    do {                                                                                           \
        char state_[16];                                                                           \
        state_of(f, task, state_);                                                                 \
        assert_string_equal(state_, expected);                                                     \
    } while (0)

static void make_late(struct fixture *f, const char *task)
{
    sql(f,
        "UPDATE orchestrator.task SET lease_until = now() - interval '1 second' "
        "WHERE id = $1::uuid",
        task);
}

static int64_t sweep(struct fixture *f)
{
    int64_t n = 0;
    must(queue_sweep(f->db, true, &n, &err));
    return n;
}

// ---------------------------------------------------------------- claims

#define N_CLAIMERS 8
#define N_TASKS 60

struct claimer {
    struct fixture *f;
    pthread_barrier_t *start;
    int n;
    char worker[16];
};

static void *claim_all(void *ud)
{
    struct claimer *c = ud;
    pthread_barrier_wait(c->start);
    struct queue_task t;
    bool found = true;
    while (found) {
        struct err err = ERR_INIT;
        if (queue_claim(c->f->db, c->worker, "", &t, &found, &err) != STATUS_OK)
            return ud;
        c->n += found;
    }
    return NULL;
}

static void test_claims_of_many_threads_never_give_a_task_twice(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < N_TASKS; i++)
        add_task(f, i, 100, i, 1, NULL);
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, N_CLAIMERS);
    pthread_t threads[N_CLAIMERS];
    struct claimer c[N_CLAIMERS];
    for (int i = 0; i < N_CLAIMERS; i++) {
        c[i] = (struct claimer){.f = f, .start = &start};
        snprintf(c[i].worker, sizeof c[i].worker, "c%d", i);
        assert_int_equal(pthread_create(&threads[i], NULL, claim_all, &c[i]), 0);
    }
    int total = 0;
    for (int i = 0; i < N_CLAIMERS; i++) {
        void *failed = NULL;
        pthread_join(threads[i], &failed);
        assert_null(failed);
        total += c[i].n;
    }
    pthread_barrier_destroy(&start);
    assert_int_equal(total, N_TASKS);
    assert_int_equal(ask(f, "SELECT max(attempts) FROM orchestrator.task", NULL), 1);
}

static void test_claim_takes_the_most_urgent_then_the_oldest(void **state)
{
    struct fixture *f = *state;
    char low[UUID_SIZE], high[UUID_SIZE], second[UUID_SIZE];
    add_task(f, 1, 100, 0, 1, low);
    add_task(f, 2, 600, 1, 1, high);
    add_task(f, 3, 100, 2, 1, second);
    struct queue_task t;
    assert_true(claim(f, "w0", &t));
    assert_string_equal(t.id, high);
    assert_true(claim(f, "w0", &t));
    assert_string_equal(t.id, low);
    assert_true(claim(f, "w0", &t));
    assert_string_equal(t.id, second);
    assert_false(claim(f, "w0", &t));
}

// Another user's item with a job and one task.
static void add_others_task(struct fixture *f, int priority, char ret_id[UUID_SIZE])
{
    char item[UUID_SIZE], owner[UUID_SIZE];
    rand_uuid7(item);
    rand_uuid7(owner);
    rand_uuid7(ret_id);
    const struct db_param ids[] = {DB_TEXT(item), DB_TEXT(owner), DB_TEXT(f->item), DB_TEXT(ret_id),
                                   DB_I64(priority)};
    must(db_query(f->db,
                  "INSERT INTO orchestrator.upload (id, item, owner, owner_name, filename, digest,"
                  "  size, kind, route, state) SELECT $1::uuid, $1::uuid, $2::uuid, 'bob', 'b.mp4',"
                  "  digest, size, kind, route, state FROM orchestrator.upload"
                  "  WHERE item = $3::uuid",
                  ids, 3, NULL, &err));
    must(db_query(f->db,
                  "INSERT INTO orchestrator.item (id, upload, owner, title, kind, route, digest,"
                  "  size) SELECT $1::uuid, $1::uuid, $2::uuid, 'B', kind, route, digest, size"
                  "  FROM orchestrator.item WHERE id = $3::uuid",
                  ids, 3, NULL, &err));
    must(db_query(f->db,
                  "INSERT INTO orchestrator.job (id, item, owner, state)"
                  "  VALUES ($1::uuid, $1::uuid, $2::uuid, 'running')",
                  ids, 2, NULL, &err));
    must(
        db_query(f->db,
                 "INSERT INTO orchestrator.task (id, job, item, kind, priority, renditions,"
                 "  n_segments) VALUES ($1::uuid, $2::uuid, $2::uuid, 'chunk', $3::int, 'v480', 1)",
                 DB_PARAMS(DB_TEXT(ret_id), DB_TEXT(item), DB_I64(priority)), NULL, &err));
}

static void test_owners_take_turns(void **state)
{
    struct fixture *f = *state;
    char bobs[UUID_SIZE], carols[UUID_SIZE];
    for (int i = 0; i < 100; i++)
        add_task(f, i, ORCH_PRIO_PROBE, i, 1, NULL); // so many uploads of one
    add_others_task(f, ORCH_PRIO_FIRST, bobs);
    add_others_task(f, ORCH_PRIO_REST, carols);
    struct queue_task t;
    bool bob = false;
    for (int i = 0; i < 2; i++) {
        assert_true(claim(f, "w0", &t));
        bob |= str_eq(t.id, bobs);
    }
    assert_true(bob); // not after the hundredth
    for (int i = 0; i < 99; i++) {
        assert_true(claim(f, "w0", &t)); // what starts comes before what merely goes on
        assert_string_not_equal(t.id, carols);
    }
    assert_true(claim(f, "w0", &t));
    assert_string_equal(t.id, carols);
}

static void test_claim_leaves_what_needs_an_origin_that_is_away(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 2, NULL);
    struct queue_task t;
    bool found = true;
    must(queue_claim(f->db, "w0", "audio-1,video-1", &t, &found, &err));
    assert_false(found);
    must(queue_claim(f->db, "w0", "audio-1,video-11", &t, &found, &err));
    assert_true(found);
}

// ---------------------------------------------------------------- fences

static bool renew(struct fixture *f, const char *worker, const struct queue_task *t)
{
    bool held = false;
    struct queue_progress p = {
        .task = t->id, .stage = "encode", .fence = t->fence, .progress = 0.5};
    must(queue_renew(f->db, worker, &p, &held, &err));
    return held;
}

static enum status fail_task(struct fixture *f, const char *worker, const struct queue_task *t,
                             enum queue_failure why, const char *message, bool *ret_retry)
{
    struct err err = ERR_INIT;
    return queue_fail(f->db, worker, t->id, t->fence, why, message, ret_retry, &err);
}

static void test_expired_lease_goes_to_another_and_the_old_token_is_refused(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    struct queue_task first, second;
    assert_true(claim(f, "w0", &first));
    assert_true(renew(f, "w0", &first));
    assert_int_equal(sweep(f), 0);
    make_late(f, first.id);
    assert_int_equal(sweep(f), 1);
    assert_false(renew(f, "w0", &first));
    assert_true(claim(f, "w1", &second));
    assert_string_equal(second.id, first.id);
    assert_true(second.fence > first.fence);
    bool retry = false;
    assert_int_equal(fail_task(f, "w0", &first, QUEUE_REJECTED, "late word", &retry),
                     STATUS_ABORTED);
    must(queue_release(f->db, "w0", first.id, first.fence, &err));
    assert_state(f, first.id, "leased");
    assert_true(renew(f, "w1", &second));
}

static void test_renew_needs_the_worker_that_has_the_lease(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    struct queue_task t;
    assert_true(claim(f, "w0", &t));
    assert_false(renew(f, "w1", &t));
    assert_true(renew(f, "w0", &t));
}

static void test_release_costs_no_attempt(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    struct queue_task t, again;
    for (int i = 0; i < ORCH_MAX_ATTEMPTS + 2; i++) {
        assert_true(claim(f, "w0", &t));
        assert_int_equal(t.attempt, 1);
        must(queue_release(f->db, "w0", t.id, t.fence, &err));
    }
    assert_true(claim(f, "w0", &again));
    assert_int_equal(again.fence, ORCH_MAX_ATTEMPTS + 3);
}

static void test_tasks_of_a_worker_that_is_shut_out_are_taken_back(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    add_task(f, 0, 100, 1, 1, NULL);
    struct queue_task bad, good, again;
    assert_true(claim(f, "w0", &bad));
    assert_true(claim(f, "w1", &good));
    must(queue_take_back(f->db, "w0", &err));
    assert_false(renew(f, "w0", &bad));
    assert_true(renew(f, "w1", &good));
    assert_true(claim(f, "w1", &again));
    assert_string_equal(again.id, bad.id);
    assert_true(again.fence > bad.fence);
    assert_int_equal(again.attempt, 1); // it was not the task's fault
    must(queue_take_back(f->db, "w0", &err));
    assert_true(renew(f, "w1", &again));
}

// ---------------------------------------------------------------- failure

static void test_transient_failures_wait_longer_each_time_then_the_job_dies(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    add_task(f, 1, 50, 1, 1, NULL);
    struct queue_task t;
    for (int i = 1; i <= ORCH_MAX_ATTEMPTS; i++) {
        char worker[16];
        snprintf(worker, sizeof worker, "w%d", i % 3);
        assert_true(claim(f, worker, &t));
        assert_int_equal(t.attempt, i);
        bool retry = false;
        assert_int_equal(fail_task(f, worker, &t, QUEUE_TRANSIENT, "disk is full", &retry),
                         STATUS_OK);
        assert_int_equal(retry, i < ORCH_MAX_ATTEMPTS);
        if (!retry)
            break;
        assert_state(f, t.id, "retry_wait");
        int64_t wait_ms = ask(f,
                              "SELECT (extract(epoch FROM not_before - now()) * 1000)::bigint "
                              "FROM orchestrator.task WHERE id = $1::uuid",
                              t.id);
        assert_in_range(wait_ms, (1000 << (i - 1)) - 900, (1500 << (i - 1)));
        sql(f, "UPDATE orchestrator.task SET not_before = now() WHERE id = $1::uuid", t.id);
        assert_int_equal(sweep(f), 1);
    }
    assert_state(f, t.id, "dead");
    char text[64];
    ask_text(f, "SELECT state || ':' || reason FROM orchestrator.job WHERE id = $1::uuid", f->job,
             text, sizeof text);
    assert_string_equal(text, "failed:disk is full");
    assert_int_equal(
        ask(f, "SELECT count(*) FROM orchestrator.task WHERE state = 'cancelled'", NULL), 1);
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.chore", NULL), 0);
    assert_int_equal(
        ask(f, "SELECT count(*) FROM orchestrator.event WHERE kind = 'job.failed'", NULL), 1);

    // The source was kept: an admin may have it tried again.
    must(queue_retry(f->db, f->job, &err));
    assert_true(claim(f, "w0", &t));
    assert_int_equal(t.attempt, 1);
    assert_true(t.fence > ORCH_MAX_ATTEMPTS);
}

static void test_rejected_input_fails_the_job_at_once_and_gives_its_bytes_up(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    add_task(f, 1, 50, 1, 1, NULL);
    struct queue_task t;
    bool retry = true;
    assert_true(claim(f, "w0", &t));
    assert_int_equal(fail_task(f, "w0", &t, QUEUE_REJECTED, "no picture, no sound", &retry),
                     STATUS_OK);
    assert_false(retry);
    char text[64];
    ask_text(f, "SELECT state || ':' || reason FROM orchestrator.item WHERE id = $1::uuid", f->item,
             text, sizeof text);
    assert_string_equal(text, "failed:no picture, no sound");
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.chore WHERE kind = 'unpin'", NULL),
                     2);
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.chore WHERE kind = 'drop'", NULL),
                     1);
    struct err err = ERR_INIT;
    assert_int_equal(queue_retry(f->db, f->job, &err), STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(err.msg, "no picture, no sound"));
    // A worker that is still busy with the other task loses it.
    assert_false(claim(f, "w1", &t));
}

static void test_pictures_that_cannot_be_made_do_not_spoil_the_film(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    struct queue_task t;
    bool retry = true;
    sql(f,
        "UPDATE orchestrator.task SET kind = 'images', renditions = 'poster'"
        " WHERE job = $1::uuid",
        f->job);
    sql(f, "UPDATE orchestrator.job SET state = 'running' WHERE id = $1::uuid", f->job);
    assert_true(claim(f, "w0", &t));
    assert_int_equal(fail_task(f, "w0", &t, QUEUE_REJECTED, "no picture", &retry), STATUS_OK);
    assert_false(retry);
    assert_state(f, t.id, "dead");
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.job WHERE state = 'done'", NULL), 1);
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.item WHERE state = 'ready'", NULL),
                     1);
}

static void test_second_crash_on_a_task_rejects_the_input(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    struct queue_task t;
    bool retry = false;
    assert_true(claim(f, "w0", &t));
    assert_int_equal(fail_task(f, "w0", &t, QUEUE_CRASH, "signal 11", &retry), STATUS_OK);
    assert_true(retry);
    sql(f, "UPDATE orchestrator.task SET not_before = now() WHERE id = $1::uuid", t.id);
    sweep(f);
    assert_true(claim(f, "w1", &t));
    assert_int_equal(fail_task(f, "w1", &t, QUEUE_CRASH, "signal 11", &retry), STATUS_OK);
    assert_false(retry);
    assert_state(f, t.id, "dead");
    assert_int_equal(
        ask(f, "SELECT purged::int FROM orchestrator.item WHERE id = $1::uuid", f->item), 1);
}

static void test_fail_said_twice_counts_once(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    struct queue_task t;
    bool retry = false;
    assert_true(claim(f, "w0", &t));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(fail_task(f, "w0", &t, QUEUE_CRASH, "signal 11", &retry), STATUS_OK);
        assert_true(retry);
    }
    assert_int_equal(ask(f, "SELECT crashes FROM orchestrator.task WHERE id = $1::uuid", t.id), 1);
    assert_int_equal(ask(f, "SELECT failed FROM orchestrator.worker WHERE id = $1::text", "w0"), 1);
}

static void test_leases_that_all_run_out_end_in_a_dead_task_with_a_reason(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    struct queue_task t;
    for (int i = 0; i < ORCH_MAX_ATTEMPTS; i++) {
        assert_true(claim(f, "w0", &t));
        make_late(f, t.id);
        assert_int_equal(sweep(f), 1);
    }
    assert_state(f, t.id, "dead");
    char text[128];
    ask_text(f, "SELECT reason FROM orchestrator.job WHERE id = $1::uuid", f->job, text,
             sizeof text);
    assert_non_null(strstr(text, "no worker could finish it"));
}

static void test_worker_that_keeps_failing_rests_and_others_go_on(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 6; i++)
        add_task(f, i, 100, i, 1, NULL);
    struct queue_task t;
    bool retry = false;
    for (int i = 0; i < 5; i++) {
        assert_true(claim(f, "w0", &t));
        assert_int_equal(fail_task(f, "w0", &t, QUEUE_TRANSIENT, "no codec here", &retry),
                         STATUS_OK);
    }
    assert_false(claim(f, "w0", &t));
    assert_true(claim(f, "w1", &t));
}

static void test_claims_stop_and_recover_with_the_database(void **state)
{
    struct fixture *f = *state;
    add_task(f, 0, 100, 0, 1, NULL);
    struct queue_task t;
    bool found = false;
    test_pg_stop(f->pg);
    struct err err = ERR_INIT;
    assert_int_equal(queue_claim(f->db, "w0", "", &t, &found, &err), STATUS_UNAVAILABLE);
    test_pg_start(f->pg);
    assert_true(claim(f, "w0", &t));
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup(fn, setup_item)
    const struct CMUnitTest tests[] = {
        TEST(test_claims_of_many_threads_never_give_a_task_twice),
        TEST(test_claim_takes_the_most_urgent_then_the_oldest),
        TEST(test_owners_take_turns),
        TEST(test_claim_leaves_what_needs_an_origin_that_is_away),
        TEST(test_expired_lease_goes_to_another_and_the_old_token_is_refused),
        TEST(test_renew_needs_the_worker_that_has_the_lease),
        TEST(test_release_costs_no_attempt),
        TEST(test_tasks_of_a_worker_that_is_shut_out_are_taken_back),
        TEST(test_transient_failures_wait_longer_each_time_then_the_job_dies),
        TEST(test_rejected_input_fails_the_job_at_once_and_gives_its_bytes_up),
        TEST(test_second_crash_on_a_task_rejects_the_input),
        TEST(test_fail_said_twice_counts_once),
        TEST(test_pictures_that_cannot_be_made_do_not_spoil_the_film),
        TEST(test_leases_that_all_run_out_end_in_a_dead_task_with_a_reason),
        TEST(test_worker_that_keeps_failing_rests_and_others_go_on),
        TEST(test_claims_stop_and_recover_with_the_database),
    };
    return cmocka_run_group_tests_name("orchestrator queue", tests, setup_server, teardown_server);
}
