// What people decide about jobs and workers, against a PostgreSQL of its own: priority, pause,
// cancellation, cordons, restarts, checks.
#include "orchestrator/internal.h"

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
    struct items *items;
    char a[UUID_SIZE], b[UUID_SIZE]; // two jobs; b is the younger
};

#define must(call)                                                                                 \
    do {                                                                                           \
        struct err err = ERR_INIT;                                                                 \
        enum status must_s_ = (call);                                                              \
        if (must_s_ != STATUS_OK)                                                                  \
            fail_msg("%s: %s", status_name(must_s_), err.msg);                                     \
    } while (0)

static void sql(struct fixture *f, const char *text, const char *p1)
{
    must(db_query(f->db, text, &(struct db_param){.type = DB_P_TEXT, .ptr = p1}, p1 != NULL, NULL,
                  &err));
}

static bool holds(struct fixture *f, const char *text, const char *p1)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    must(db_query(f->db, text, &(struct db_param){.type = DB_P_TEXT, .ptr = p1}, p1 != NULL, &r,
                  &err));
    assert_int_equal(db_result_n_rows(r), 1);
    return db_bool(r, 0, 0);
}

static int setup_server(void **state)
{
    struct fixture *f = mem_alloc(sizeof *f);
    f->pg = test_pg_new();
    f->db = test_pg_db(f->pg, 8, true);
    f->items = items_new(f->db);
    *state = f;
    return 0;
}

static int teardown_server(void **state)
{
    struct fixture *f = *state;
    items_free(f->items);
    db_free(f->db);
    test_pg_free(f->pg);
    mem_free(f);
    return 0;
}

static void add_job(struct fixture *f, char job[UUID_SIZE])
{
    char upload[UUID_SIZE], item[UUID_SIZE];
    rand_uuid7(upload);
    rand_uuid7(item);
    rand_uuid7(job);
    must(
        db_query(f->db,
                 "INSERT INTO orchestrator.upload (id, item, owner, owner_name, filename, digest,"
                 "  size, kind, route, state) VALUES ($1::uuid, $2::uuid, $2::uuid, 'ana', 'a.mp4',"
                 "  decode(repeat('11', 32), 'hex'), 1000, 'video', 'video-1', 'committed')",
                 DB_PARAMS(DB_TEXT(upload), DB_TEXT(item)), NULL, &err));
    must(db_query(f->db,
                  "INSERT INTO orchestrator.item (id, upload, owner, title, kind, route, digest,"
                  "  size) VALUES ($2::uuid, $1::uuid, $2::uuid, 'A', 'video', 'video-1',"
                  "  decode(repeat('11', 32), 'hex'), 1000)",
                  DB_PARAMS(DB_TEXT(upload), DB_TEXT(item)), NULL, &err));
    must(
        db_query(f->db,
                 "INSERT INTO orchestrator.job (id, item, owner, state)"
                 "  VALUES ($1::uuid, $2::uuid, '018f2b6e-7d3a-7c11-9a55-00000000000a', 'running')",
                 DB_PARAMS(DB_TEXT(job), DB_TEXT(item)), NULL, &err));
}

static void add_task(struct fixture *f, const char *job, int priority)
{
    char id[UUID_SIZE];
    rand_uuid7(id);
    must(db_query(f->db,
                  "INSERT INTO orchestrator.task (id, job, item, kind, priority, renditions,"
                  "  n_segments) SELECT $1::uuid, id, item, 'chunk', $3::int, 'v480', 1 "
                  "FROM orchestrator.job WHERE id = $2::uuid",
                  DB_PARAMS(DB_TEXT(id), DB_TEXT(job), DB_I64(priority)), NULL, &err));
}

// Two jobs of one owner with a task each, and three workers that are up.
static int setup_jobs(void **state)
{
    struct fixture *f = *state;
    sql(f,
        "TRUNCATE orchestrator.upload, orchestrator.item, orchestrator.job, orchestrator.task,"
        "  orchestrator.output, orchestrator.chore, orchestrator.worker, orchestrator.event"
        "  CASCADE",
        NULL);
    for (int i = 0; i < 3; i++) {
        char w[16];
        snprintf(w, sizeof w, "w%d", i);
        sql(f, "INSERT INTO orchestrator.worker (id, slots) VALUES ($1::text, 1)", w);
    }
    add_job(f, f->a);
    add_task(f, f->a, ORCH_PRIO_REST);
    add_job(f, f->b);
    add_task(f, f->b, ORCH_PRIO_REST);
    return 0;
}

static bool claim(struct fixture *f, const char *worker, struct queue_task *ret)
{
    bool found = false;
    must(queue_claim(f->db, worker, "", ret, &found, &err));
    return found;
}

static void expect_claim_of(struct fixture *f, const char *worker, const char *job)
{
    struct queue_task t;
    assert_true(claim(f, worker, &t));
    assert_string_equal(t.job, job);
}

static void expect_no_claim(struct fixture *f, const char *worker)
{
    struct queue_task t;
    assert_false(claim(f, worker, &t));
}

// ---------------------------------------------------------------- jobs

static void test_priority_moves_a_job_before_the_older_one(void **state)
{
    struct fixture *f = *state;
    must(job_set_priority(f->db, f->b, 800, &err));
    add_task(f, f->b, ORCH_PRIO_REST); // keeps it
    expect_claim_of(f, "w0", f->b);
    expect_claim_of(f, "w0", f->b);
    expect_claim_of(f, "w0", f->a);
}

static void test_no_priority_comes_before_what_is_wanted(void **state)
{
    struct fixture *f = *state;
    must(job_set_priority(f->db, f->b, 1000, &err));
    must(job_set_priority(f->db, f->a, -1000, &err));
    add_task(f, f->a, ORCH_PRIO_WANTED);
    expect_claim_of(f, "w0", f->a);
    expect_claim_of(f, "w0", f->b);
}

static void test_paused_job_waits_until_it_is_resumed(void **state)
{
    struct fixture *f = *state;
    must(job_set_paused(f->db, f->a, true, &err));
    expect_claim_of(f, "w0", f->b);
    expect_no_claim(f, "w0");
    must(job_set_paused(f->db, f->a, false, &err));
    expect_claim_of(f, "w0", f->a);
}

static void test_cancelled_job_loses_its_leases_and_can_be_retried(void **state)
{
    struct fixture *f = *state;
    struct queue_task t;
    assert_true(claim(f, "w0", &t));
    must(job_cancel(f->db, f->a, "cancelled by ana", &err));
    struct queue_progress p = {.task = t.id, .stage = "encode", .fence = t.fence};
    bool held = true;
    must(queue_renew(f->db, "w0", &p, &held, &err));
    assert_false(held);
    bool retry = false;
    struct err late = ERR_INIT;
    assert_int_equal(queue_fail(f->db, "w0", t.id, t.fence, QUEUE_TRANSIENT, "late", &retry, &late),
                     STATUS_ABORTED);
    assert_true(holds(f,
                      "SELECT j.state = 'cancelled' AND i.state = 'failed' AND NOT i.purged"
                      "  AND i.reason = 'cancelled by ana' FROM orchestrator.job j"
                      "  JOIN orchestrator.item i ON i.id = j.item WHERE j.id = $1::uuid",
                      f->a));
    must(job_cancel(f->db, f->a, "cancelled again", &err)); // changes nothing
    must(queue_retry(f->db, f->a, &err));
    expect_claim_of(f, "w1", f->a);
}

static void test_cancelled_jobs_bytes_go_when_the_time_is_over(void **state)
{
    struct fixture *f = *state;
    must(job_cancel(f->db, f->a, "cancelled by ana", &err));
    must(queue_purge(f->db, 3600000, &err));
    assert_true(holds(f,
                      "SELECT NOT purged FROM orchestrator.item i JOIN orchestrator.job j"
                      "  ON j.item = i.id WHERE j.id = $1::uuid",
                      f->a));
    sql(f, "UPDATE orchestrator.job SET finished = now() - interval '2 hours' WHERE id = $1::uuid",
        f->a);
    must(queue_purge(f->db, 3600000, &err));
    assert_true(holds(f,
                      "SELECT purged FROM orchestrator.item i JOIN orchestrator.job j"
                      "  ON j.item = i.id WHERE j.id = $1::uuid",
                      f->a));
}

// ---------------------------------------------------------------- workers

static void test_cordoned_worker_gets_nothing(void **state)
{
    struct fixture *f = *state;
    sql(f, "UPDATE orchestrator.worker SET cordoned = true WHERE id = $1::text", "w0");
    expect_no_claim(f, "w0");
    expect_claim_of(f, "w1", f->a);
}

static void join(struct fixture *f, const char *worker, const char *instance)
{
    char text[16], none[1] = "";
    str_copy(text, sizeof text, instance);
    Transcode__JoinRequest req;
    transcode__join_request__init(&req);
    req.slots = 1;
    req.build = req.cpu_class = req.codecs = none;
    req.instance = text;
    must(leases_join(f->db, worker, &req, &err));
}

static void test_worker_that_starts_again_gives_its_leases_to_others(void **state)
{
    struct fixture *f = *state;
    struct queue_task t;
    join(f, "w0", "one");
    assert_true(claim(f, "w0", &t));
    join(f, "w0", "one"); // the same still
    assert_true(
        holds(f, "SELECT state = 'leased' FROM orchestrator.task WHERE id = $1::uuid", t.id));
    join(f, "w0", "two");
    assert_true(holds(f,
                      "SELECT state = 'available' AND attempts = 1 FROM orchestrator.task"
                      "  WHERE id = $1::uuid",
                      t.id));
}

// ---------------------------------------------------------------- checks

struct finish {
    const char *worker;
    const struct queue_task *t;
};

static enum status finish_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct finish *f = ud;
    static const struct orch_options first = {.verify_first = 1};
    static const struct queue_seconds none = {0};
    struct queue_hold h = {.duplicate = false};
    enum status s = queue_hold(c, f->worker, f->t->id, f->t->fence, &h, err);
    if (s == STATUS_OK)
        s = queue_done(c, f->worker, &h, &none, err);
    return s == STATUS_OK ? verify_order(c, &first, f->worker, f->t, err) : s;
}

static void publish_one(struct fixture *f, const struct queue_task *t)
{
    must(db_query(f->db,
                  "INSERT INTO orchestrator.output (item, rendition, segment, digest, size,"
                  "  first_pts, duration, samples, init_digest, task, worker, attempts) "
                  "VALUES ($1::uuid, 'v480', 0, decode(repeat('22', 32), 'hex'), 10, 0, 1, 1,"
                  "  decode(repeat('33', 32), 'hex'), $2::uuid, 'w0', 1)",
                  DB_PARAMS(DB_TEXT(t->item), DB_TEXT(t->id)), NULL, &err));
}

// The worker has made job a's only segment, and a check of it is ordered.
static void made_and_ordered(struct fixture *f, struct queue_task *ret, const char *worker)
{
    assert_true(claim(f, worker, ret));
    assert_string_equal(ret->job, f->a);
    publish_one(f, ret);
    struct finish done = {.worker = worker, .t = ret};
    must(db_tx(f->db, DB_READ_COMMITTED, finish_tx, &done, &err));
}

static void test_check_is_for_another_worker_while_one_serves(void **state)
{
    struct fixture *f = *state;
    struct queue_task made, t;
    made_and_ordered(f, &made, "w0");
    assert_true(claim(f, "w0", &t)); // a check would come first
    assert_string_equal(t.job, f->b);
    expect_no_claim(f, "w0");
    assert_true(claim(f, "w1", &t));
    assert_true(verify_is(t.kind));
    must(queue_release(f->db, "w1", t.id, t.fence, &err));
    sql(f, "UPDATE orchestrator.worker SET cordoned = true WHERE id <> 'w0'", NULL);
    assert_true(claim(f, "w0", &t));
    assert_true(verify_is(t.kind));
}

static void say(struct fixture *f, const struct queue_task *t, Transcode__FailClass class,
                bool expect_handled)
{
    struct orch o = {.db = f->db, .items = f->items};
    char id[UUID_SIZE];
    str_copy(id, sizeof id, t->id);
    Transcode__FailRequest req;
    transcode__fail_request__init(&req);
    req.task_id = id;
    req.fence = t->fence;
    req.class_ = class;
    bool handled = false, transient = false;
    must(verify_failed(&o, "w1", &req, "not the film's", &handled, &transient, &err));
    assert_int_equal(handled, expect_handled);
    assert_int_equal(transient, class != TRANSCODE__FAIL_CLASS__MISMATCH);
}

static void test_refuted_result_is_made_again_by_others(void **state)
{
    struct fixture *f = *state;
    struct queue_task made, check, t;
    made_and_ordered(f, &made, "w0");
    assert_true(claim(f, "w1", &check));
    say(f, &check, TRANSCODE__FAIL_CLASS__MISMATCH, true);
    assert_true(holds(f, "SELECT NOT EXISTS (SELECT FROM orchestrator.output)", NULL));
    assert_true(holds(f,
                      "SELECT quarantined_until = 'infinity' AND quarantine_reason"
                      "  = 'a check by w1 refuted what it made: not the film''s'"
                      "  FROM orchestrator.worker WHERE id = $1::text",
                      "w0"));
    expect_no_claim(f, "w0");
    assert_true(claim(f, "w2", &t));
    assert_string_equal(t.id, made.id);
    assert_true(t.fence > made.fence);
    assert_true(
        holds(f, "SELECT state = 'running' FROM orchestrator.job WHERE id = $1::uuid", f->a));
}

static enum status hold_tx(struct db_conn *c, void *ud, struct err *err)
{
    const struct finish *f = ud;
    struct queue_hold h = {.duplicate = false};
    return queue_hold(c, f->worker, f->t->id, f->t->fence, &h, err);
}

static void expect_refused(struct fixture *f, const char *worker, const struct queue_task *t)
{
    struct err err = ERR_INIT;
    struct finish late = {.worker = worker, .t = t};
    assert_int_equal(db_tx(f->db, DB_READ_COMMITTED, hold_tx, &late, &err), STATUS_ABORTED);
}

static void test_who_is_refuted_cannot_say_it_again(void **state)
{
    struct fixture *f = *state;
    struct queue_task made, check, held;
    made_and_ordered(f, &made, "w0");
    assert_true(claim(f, "w0", &held)); // job b's
    assert_true(claim(f, "w1", &check));
    say(f, &check, TRANSCODE__FAIL_CLASS__MISMATCH, true);
    expect_refused(f, "w0", &made);
    expect_refused(f, "w0", &held);
}

static void test_of_what_several_published_nobody_is_blamed(void **state)
{
    struct fixture *f = *state;
    struct queue_task made, check, t;
    made_and_ordered(f, &made, "w0");
    sql(f, "UPDATE orchestrator.output SET worker = 'w2'", NULL); // for a viewer, meanwhile
    assert_true(claim(f, "w1", &check));
    say(f, &check, TRANSCODE__FAIL_CLASS__MISMATCH, true);
    assert_true(holds(f, "SELECT NOT EXISTS (SELECT FROM orchestrator.output)", NULL));
    assert_true(
        holds(f, "SELECT bool_and(quarantined_until < now()) FROM orchestrator.worker", NULL));
    assert_true(claim(f, "w1", &t));
    assert_string_equal(t.id, made.id);
}

static void test_check_of_much_is_of_its_first_segments(void **state)
{
    struct fixture *f = *state;
    struct queue_task made, check;
    sql(f, "UPDATE orchestrator.task SET n_segments = 8 WHERE job = $1::uuid", f->a);
    assert_true(claim(f, "w0", &made));
    publish_one(f, &made);
    sql(f,
        "INSERT INTO orchestrator.output (item, rendition, segment, digest, size, first_pts,"
        "  duration, samples, init_digest, task, worker, attempts) SELECT item, rendition, n,"
        "  digest, 20 << 20, 0, 1, 1, init_digest, task, worker, 1"
        "  FROM orchestrator.output, generate_series(1, 7) n",
        NULL);
    struct finish done = {.worker = "w0", .t = &made};
    must(db_tx(f->db, DB_READ_COMMITTED, finish_tx, &done, &err));
    assert_true(claim(f, "w1", &check));
    assert_true(verify_is(check.kind));
    assert_int_equal(check.first_segment, 0);
    assert_int_equal(check.n_segments, 2);
    say(f, &check, TRANSCODE__FAIL_CLASS__MISMATCH, true); // and all of it goes
    assert_true(holds(f, "SELECT NOT EXISTS (SELECT FROM orchestrator.output)", NULL));
}

static void test_film_that_nobody_makes_rightly_blames_nobody(void **state)
{
    struct fixture *f = *state;
    struct queue_task made, check, again;
    made_and_ordered(f, &made, "w0");
    assert_true(claim(f, "w1", &check));
    say(f, &check, TRANSCODE__FAIL_CLASS__MISMATCH, true);
    made_and_ordered(f, &again, "w2"); // checked whatever else is
    assert_string_equal(again.id, made.id);
    assert_true(claim(f, "w1", &check));
    assert_true(verify_is(check.kind));
    say(f, &check, TRANSCODE__FAIL_CLASS__MISMATCH, true);
    assert_true(holds(f, "SELECT count(*) = 1 FROM orchestrator.output", NULL));
    assert_true(
        holds(f, "SELECT bool_and(quarantined_until < now()) FROM orchestrator.worker", NULL));
    assert_true(holds(f, "SELECT state = 'done' FROM orchestrator.job WHERE id = $1::uuid", f->a));
}

static void test_check_without_verdict_ends_after_some_attempts(void **state)
{
    struct fixture *f = *state;
    struct queue_task made, check;
    made_and_ordered(f, &made, "w0");
    for (int i = 1; i <= 3; i++) {
        assert_true(claim(f, "w1", &check));
        assert_true(verify_is(check.kind));
        say(f, &check, TRANSCODE__FAIL_CLASS__CRASH, i == 3);
        if (i == 3)
            break;
        bool retry = false;
        must(queue_fail(f->db, "w1", check.id, check.fence, QUEUE_TRANSIENT, "x", &retry, &err));
        sql(f, "UPDATE orchestrator.task SET state = 'available' WHERE state = 'retry_wait'", NULL);
    }
    // The job has what it needs, and nobody is to blame.
    assert_true(holds(f, "SELECT state = 'done' FROM orchestrator.job WHERE id = $1::uuid", f->a));
    assert_true(holds(f, "SELECT count(*) = 1 FROM orchestrator.output", NULL));
    assert_true(holds(f,
                      "SELECT quarantined_until < now() FROM orchestrator.worker"
                      "  WHERE id = $1::text",
                      "w0"));
}

#define TEST(name) cmocka_unit_test_setup(name, setup_jobs)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_priority_moves_a_job_before_the_older_one),
        TEST(test_no_priority_comes_before_what_is_wanted),
        TEST(test_paused_job_waits_until_it_is_resumed),
        TEST(test_cancelled_job_loses_its_leases_and_can_be_retried),
        TEST(test_cancelled_jobs_bytes_go_when_the_time_is_over),
        TEST(test_cordoned_worker_gets_nothing),
        TEST(test_worker_that_starts_again_gives_its_leases_to_others),
        TEST(test_check_is_for_another_worker_while_one_serves),
        TEST(test_refuted_result_is_made_again_by_others),
        TEST(test_who_is_refuted_cannot_say_it_again),
        TEST(test_of_what_several_published_nobody_is_blamed),
        TEST(test_check_of_much_is_of_its_first_segments),
        TEST(test_film_that_nobody_makes_rightly_blames_nobody),
        TEST(test_check_without_verdict_ends_after_some_attempts),
    };
    return cmocka_run_group_tests(tests, setup_server, teardown_server);
}
