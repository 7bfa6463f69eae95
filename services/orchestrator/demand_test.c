// Wishes against a PostgreSQL of their own: which task a wanted segment gets, who gives way, and
// how a wish ends.
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

#define AHEAD 4

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

static int64_t ask(struct fixture *f, const char *text)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    must(db_query(f->db, text, NULL, 0, &r, &err));
    assert_int_equal(db_result_n_rows(r), 1);
    return db_i64(r, 0, 0);
}

// An item with a job that runs, one worker with one slot, and no task.
static int setup_item(void **state)
{
    struct fixture *f = *state;
    char upload[UUID_SIZE];
    rand_uuid7(upload);
    rand_uuid7(f->item);
    rand_uuid7(f->job);
    sql(f,
        "TRUNCATE orchestrator.upload, orchestrator.item, orchestrator.job, orchestrator.task,"
        "  orchestrator.output, orchestrator.worker, orchestrator.event, orchestrator.turn CASCADE",
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
    sql(f, "INSERT INTO orchestrator.worker (id, slots) VALUES ('w0', 1)", NULL);
    return 0;
}

static void add_background(struct fixture *f, int first, int n)
{
    char id[UUID_SIZE];
    rand_uuid7(id);
    must(db_query(
        f->db,
        "INSERT INTO orchestrator.task (id, job, item, kind, renditions, first_segment,"
        "  n_segments) VALUES ($1::uuid, $2::uuid, $3::uuid, 'chunk', 'v480,v240',"
        "  $4::int, $5::int)",
        DB_PARAMS(DB_TEXT(id), DB_TEXT(f->job), DB_TEXT(f->item), DB_I64(first), DB_I64(n)), NULL,
        &err));
}

static void add_output(struct fixture *f, const char *rendition, int segment)
{
    must(db_query(f->db,
                  "INSERT INTO orchestrator.output (item, rendition, segment, digest, size,"
                  "  first_pts, duration, samples, init_digest, task, worker, attempts) VALUES"
                  "  ($1::uuid, $2::text, $3::int, decode(repeat('22', 32), 'hex'), 10, 0, 1, 1,"
                  "  '', $1::uuid, 'w0', 1)",
                  DB_PARAMS(DB_TEXT(f->item), DB_TEXT(rendition), DB_I64(segment)), NULL, &err));
}

static bool want_wakes(struct fixture *f, const char *rendition, int segment)
{
    struct demand d = {
        .item = f->item, .rendition = rendition, .segment = segment, .n_ahead = AHEAD};
    must(demand_want_in(f->db, &d, &err));
    return d.wake;
}

static enum status want_status(struct fixture *f, const char *rendition, int segment, bool follow)
{
    struct err err = ERR_INIT;
    struct demand d = {.item = f->item,
                       .rendition = rendition,
                       .segment = segment,
                       .n_ahead = AHEAD,
                       .follow = follow};
    return demand_want_in(f->db, &d, &err);
}

static void want(struct fixture *f, const char *rendition, int segment)
{
    assert_int_equal(want_status(f, rendition, segment, false), STATUS_OK);
}

static bool claim(struct fixture *f, const char *worker, struct queue_task *t)
{
    bool found = false;
    must(queue_claim(f->db, worker, "", t, &found, &err));
    return found;
}

static bool yields(struct fixture *f, const struct queue_task *t)
{
    bool y = false;
    must(demand_yields(f->db, t->id, t->fence, "", &y, &err));
    return y;
}

struct part {
    const struct queue_task *t;
    bool yield;
};

static enum status published_tx(struct db_conn *c, void *ud, struct err *err)
{
    struct part *p = ud;
    return demand_published(c, p->t, "", &p->yield, err);
}

// As if the task had published these segments. True: it is to give the rest back.
static bool publish_one(struct fixture *f, const struct queue_task *t, const char *rendition,
                        int segment)
{
    struct part p = {.t = t};
    add_output(f, rendition, segment);
    must(db_tx(f->db, DB_READ_COMMITTED, published_tx, &p, &err));
    return p.yield;
}

#define assert_task(t, rendition, first, n)                                                        \
    do {                                                                                           \
        assert_string_equal((t).renditions, rendition);                                            \
        assert_int_equal((t).first_segment, first);                                                \
        assert_int_equal((t).n_segments, n);                                                       \
    } while (0)

// ---------------------------------------------------------------- what is made

static void test_wanted_segment_is_begun_with_and_alone_of_its_rung(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 4; i++)
        add_background(f, 4 * i, 4);
    want(f, "v480", 6);
    struct queue_task t;
    assert_true(claim(f, "w0", &t));
    assert_task(t, "v480", 6, AHEAD);
    assert_int_equal(t.priority, ORCH_PRIO_WANTED);
    // Background work goes on, but not where the wish is being fulfilled (4..7 and 8..11).
    assert_true(claim(f, "w1", &t));
    assert_task(t, "v480,v240", 0, 4);
    assert_true(claim(f, "w1", &t));
    assert_task(t, "v480,v240", 12, 4);
    assert_false(claim(f, "w1", &t));
}

static void test_lazy_rendition_has_the_tasks_that_somebody_wants_and_no_others(void **state)
{
    struct fixture *f = *state;
    add_background(f, 0, 4);
    want(f, "v480-hevc", 2);
    want(f, "v480-hevc", 2);
    want(f, "v480-hevc", 3); // comes next
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task WHERE demand"), 1);
    want(f, "v480-hevc", 9);
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task WHERE demand"), 2);
    struct queue_task t;
    assert_true(claim(f, "w0", &t));
    assert_true(claim(f, "w0", &t));
    assert_true(claim(f, "w0", &t)); // another rendition is no reason to keep away
    assert_task(t, "v480,v240", 0, 4);
}

#define N_VIEWERS 8

struct viewer {
    struct fixture *f;
    pthread_barrier_t *start;
    enum status s;
};

static void *view(void *ud)
{
    struct viewer *v = ud;
    pthread_barrier_wait(v->start);
    v->s = want_status(v->f, "v480-hevc", 5, false);
    return NULL;
}

// Claims pass over a row that is locked: whoever locks one that is free to be leased wakes them.
static void test_workers_are_woken_by_a_wish_unless_it_is_being_fulfilled(void **state)
{
    struct fixture *f = *state;
    struct queue_task t;
    assert_true(want_wakes(f, "v480", 0));
    assert_true(want_wakes(f, "v480", 0));
    assert_true(claim(f, "w0", &t));
    assert_false(want_wakes(f, "v480", 0));
    must(queue_release(f->db, "w0", t.id, t.fence, &err));
    assert_true(want_wakes(f, "v480", 0));
}

static void test_many_viewers_at_once_make_one_task(void **state)
{
    struct fixture *f = *state;
    pthread_barrier_t start;
    pthread_t threads[N_VIEWERS];
    struct viewer v[N_VIEWERS];
    pthread_barrier_init(&start, NULL, N_VIEWERS);
    for (int i = 0; i < N_VIEWERS; i++) {
        v[i] = (struct viewer){.f = f, .start = &start};
        assert_int_equal(pthread_create(&threads[i], NULL, view, &v[i]), 0);
    }
    for (int i = 0; i < N_VIEWERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(v[i].s, STATUS_OK);
    }
    pthread_barrier_destroy(&start);
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task"), 1);
}

static void test_what_is_made_is_not_made_again(void **state)
{
    struct fixture *f = *state;
    add_output(f, "v480", 3);
    want(f, "v480", 1); // 1, 2; then comes what is there
    struct queue_task t;
    assert_true(claim(f, "w0", &t));
    assert_task(t, "v480", 1, 2);
    add_output(f, "v480", 1);
    AUTO(db_result_free_p) struct db_result *r = NULL;
    must(demand_made(f->db, &t, &r, &err));
    assert_int_equal(db_result_n_rows(r), 1);
    assert_string_equal(db_text(r, 0, 0), "v480");
    assert_int_equal(db_i64(r, 0, 1), 1);
}

static void test_who_follows_the_playhead_gets_the_next_missing_one(void **state)
{
    struct fixture *f = *state;
    add_output(f, "v480", 3);
    assert_int_equal(want_status(f, "v480", 3, true), STATUS_OK);
    struct queue_task t;
    assert_true(claim(f, "w0", &t));
    assert_task(t, "v480", 4, AHEAD - 1);
    assert_int_equal(t.priority, ORCH_PRIO_NEXT);
    want(f, "v480", 4); // now somebody waits for it: who has it goes on
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task"), 1);
    assert_int_equal(ask(f, "SELECT wanted FROM orchestrator.task"), 4);
}

// ---------------------------------------------------------------- who gives way

static void test_seek_elsewhere_ends_what_runs_at_its_next_segment(void **state)
{
    struct fixture *f = *state;
    struct queue_task first, second;
    want(f, "v480", 0);
    assert_true(claim(f, "w0", &first));
    assert_false(yields(f, &first)); // somebody waits for segment 0
    assert_false(publish_one(f, &first, "v480", 0));
    want(f, "v480", 50);
    assert_true(publish_one(f, &first, "v480", 1));
    must(queue_release(f->db, "w0", first.id, first.fence, &err));
    assert_true(claim(f, "w0", &second));
    assert_task(second, "v480", 50, AHEAD);
    assert_false(publish_one(f, &second, "v480", 50));
    assert_true(claim(f, "w1", &first)); // the other viewer's share
    assert_task(first, "v480", 0, AHEAD);
}

static void test_seek_within_what_runs_starts_there(void **state)
{
    struct fixture *f = *state;
    struct queue_task first, second;
    want(f, "v480", 0);
    assert_true(claim(f, "w0", &first));
    (void)publish_one(f, &first, "v480", 0);
    want(f, "v480", 1); // it is there already
    assert_false(yields(f, &first));
    assert_false(claim(f, "w1", &second));
    want(f, "v480", 3);
    assert_true(yields(f, &first));
    assert_true(claim(f, "w1", &second));
    assert_task(second, "v480", 3, AHEAD);
}

static void test_background_gives_way_when_nobody_is_free(void **state)
{
    struct fixture *f = *state;
    struct queue_task slow, urgent;
    add_background(f, 0, 8);
    assert_true(claim(f, "w0", &slow));
    assert_false(publish_one(f, &slow, "v480", 0));
    want(f, "v480-hevc", 30);
    assert_true(publish_one(f, &slow, "v480", 1));
    assert_true(yields(f, &slow)); // says so until it is given back
    must(queue_release(f->db, "w0", slow.id, slow.fence, &err));
    assert_true(claim(f, "w0", &urgent));
    assert_task(urgent, "v480-hevc", 30, AHEAD);
    assert_true(claim(f, "w0", &slow));
    assert_false(yields(f, &slow));
}

static void test_background_goes_on_while_others_are_free(void **state)
{
    struct fixture *f = *state;
    struct queue_task slow;
    sql(f, "INSERT INTO orchestrator.worker (id, slots) VALUES ('w1', 4)", NULL);
    add_background(f, 0, 8);
    assert_true(claim(f, "w0", &slow));
    want(f, "v480-hevc", 30);
    sql(f, "UPDATE orchestrator.task SET created = now() + interval '1 hour' WHERE demand", NULL);
    assert_false(yields(f, &slow));
    // Free by the numbers, but nobody has come for it: they are not there.
    sql(f, "UPDATE orchestrator.task SET created = now() - interval '1 second' WHERE demand", NULL);
    assert_true(yields(f, &slow));
}

static void test_spare_slot_is_for_who_waits_while_the_others_are_busy(void **state)
{
    struct fixture *f = *state;
    struct queue_task t;
    bool found = true;
    add_background(f, 0, 4);
    add_background(f, 4, 4);
    want(f, "v480-hevc", 30);
    must(queue_claim_wanted(f->db, "w0", "", &t, &found, &err));
    assert_false(found); // its own slot is free and will take it
    sql(f, "UPDATE orchestrator.task SET state = 'blocked' WHERE demand", NULL);
    assert_true(claim(f, "w0", &t));
    must(queue_claim_wanted(f->db, "w0", "", &t, &found, &err));
    assert_false(found); // nobody waits for the other one
    sql(f, "UPDATE orchestrator.task SET state = 'available' WHERE demand", NULL);
    must(queue_claim_wanted(f->db, "w0", "", &t, &found, &err));
    assert_true(found);
    assert_task(t, "v480-hevc", 30, AHEAD);
}

static void test_one_wish_ends_one_background_lease(void **state)
{
    struct fixture *f = *state;
    struct queue_task a, b;
    add_background(f, 0, 4);
    add_background(f, 4, 4);
    assert_true(claim(f, "w0", &a));
    assert_true(claim(f, "w1", &b));
    want(f, "v480-hevc", 30);
    assert_true(yields(f, &a));
    assert_false(yields(f, &b));
}

static void test_background_on_its_way_gives_way_and_at_it_goes_on(void **state)
{
    struct fixture *f = *state;
    struct queue_task slow, urgent;
    add_background(f, 0, 8);
    assert_true(claim(f, "w0", &slow));
    want(f, "v480", 0); // it begins with that
    assert_false(claim(f, "w1", &urgent));
    assert_false(publish_one(f, &slow, "v480", 0)); // v240 is not there yet: still wanted
    assert_int_equal(ask(f, "SELECT wanted FROM orchestrator.task"), 0);
    assert_false(publish_one(f, &slow, "v240", 0));
    assert_int_equal(ask(f, "SELECT count(wanted) FROM orchestrator.task"), 0);
    want(f, "v480", 5);
    assert_true(claim(f, "w1", &urgent));
    assert_task(urgent, "v480", 5, AHEAD);
    assert_true(yields(f, &slow));
}

static void test_worker_that_was_not_heard_of_is_not_waited_for(void **state)
{
    struct fixture *f = *state;
    struct queue_task lost, t;
    want(f, "v480", 0);
    assert_true(claim(f, "w0", &lost));
    sql(f, "UPDATE orchestrator.task SET lease_until = now() + interval '2 seconds'", NULL);
    want(f, "v480", 0);
    assert_true(claim(f, "w1", &t));
    assert_string_not_equal(t.id, lost.id);
    assert_task(t, "v480", 0, AHEAD);
}

// ---------------------------------------------------------------- how it ends

static void test_wish_that_is_not_repeated_ends(void **state)
{
    struct fixture *f = *state;
    struct queue_task t;
    want(f, "v480", 0);
    want(f, "v480", 20);
    assert_true(claim(f, "w0", &t));
    must(demand_sweep(f->db, &err));
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task"), 2);
    sql(f, "UPDATE orchestrator.task SET wanted_until = now() - interval '1 second'", NULL);
    must(demand_sweep(f->db, &err));
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task"), 1);
    assert_true(yields(f, &t)); // what runs ends at the next segment
    must(queue_release(f->db, "w0", t.id, t.fence, &err));
    must(demand_sweep(f->db, &err));
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task"), 0);
}

static void test_wish_that_cannot_be_fulfilled_spoils_nothing_else(void **state)
{
    struct fixture *f = *state;
    struct queue_task t;
    want(f, "v480-hevc", 7);
    assert_true(claim(f, "w0", &t));
    bool retry = true;
    must(queue_fail(f->db, "w0", t.id, t.fence, QUEUE_REJECTED, "broken there", &retry, &err));
    assert_false(retry);
    assert_int_equal(want_status(f, "v480-hevc", 7, false), STATUS_FAILED_PRECONDITION);
    want(f, "v480-hevc", 20);
    want(f, "v480", 7);
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.job WHERE state = 'running'"), 1);
    sql(f, "UPDATE orchestrator.task SET finished = now() - interval '1 hour' WHERE state = 'dead'",
        NULL);
    must(demand_sweep(f->db, &err));
    want(f, "v480-hevc", 7); // may be tried again
}

static void test_wishes_of_one_item_are_limited_by_those_that_nobody_has_begun(void **state)
{
    struct fixture *f = *state;
    struct queue_task t;
    int n = 0;
    while (n < 1000 && want_status(f, "v480-hevc", n * AHEAD, false) == STATUS_OK)
        n++;
    assert_in_range(n, 16, 256);
    assert_int_equal(want_status(f, "v480-av1", 0, false), STATUS_RESOURCE_EXHAUSTED);
    want(f, "v480-hevc", 0); // who waits already goes on waiting
    assert_true(claim(f, "w0", &t));
    want(f, "v480-av1", 0);
}

static void test_nothing_is_made_for_an_item_whose_job_has_failed(void **state)
{
    struct fixture *f = *state;
    sql(f, "UPDATE orchestrator.job SET state = 'failed'", NULL);
    assert_int_equal(want_status(f, "v480", 0, false), STATUS_FAILED_PRECONDITION);
    sql(f, "UPDATE orchestrator.job SET state = 'done'", NULL);
    want(f, "v480-hevc", 0);
}

static void test_wish_waits_for_a_source_that_is_moved(void **state)
{
    struct fixture *f = *state;
    sql(f,
        "INSERT INTO orchestrator.task (id, job, item, kind, state) SELECT gen_random_uuid(), id,"
        "  item, 'move', 'leased' FROM orchestrator.job",
        NULL);
    want(f, "v480", 0);
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task WHERE state = 'blocked'"), 1);
}

static void add_measure(struct fixture *f)
{
    char id[UUID_SIZE];
    rand_uuid7(id);
    must(db_query(
        f->db,
        "INSERT INTO orchestrator.task (id, job, item, kind, renditions, first_segment,"
        "  n_segments, priority) VALUES ($1::uuid, $2::uuid, $3::uuid, 'measure',"
        "  'loudness', 0, 1, $4::int)",
        DB_PARAMS(DB_TEXT(id), DB_TEXT(f->job), DB_TEXT(f->item), DB_I64(ORCH_PRIO_MEASURE)), NULL,
        &err));
}

static bool normalised_wakes(struct fixture *f)
{
    struct demand d = {
        .item = f->item, .rendition = "a128n", .segment = 3, .n_ahead = AHEAD, .normalised = true};
    must(demand_want_in(f->db, &d, &err));
    return d.wake;
}

static void test_normalised_sound_waits_for_the_measurement_which_comes_first(void **state)
{
    struct fixture *f = *state;
    struct queue_task t;
    add_background(f, 0, 4);
    add_measure(f);
    assert_true(normalised_wakes(f));
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task"
                            " WHERE demand AND state = 'blocked' AND unmeasured"),
                     1);
    assert_true(claim(f, "w0", &t));
    assert_string_equal(t.kind, "measure");
    assert_false(normalised_wakes(f)); // asked again meanwhile: still one task
    assert_int_equal(ask(f, "SELECT count(*) FROM orchestrator.task WHERE demand"), 1);
}

static void test_normalised_sound_of_a_measured_item_waits_for_nothing(void **state)
{
    struct fixture *f = *state;
    struct queue_task t;
    sql(f, "UPDATE orchestrator.item SET loudness_mlufs = -23000", NULL);
    assert_true(normalised_wakes(f));
    assert_true(claim(f, "w0", &t));
    assert_string_equal(t.renditions, "a128n");
    assert_int_equal(t.first_segment, 3);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup(fn, setup_item)
    const struct CMUnitTest tests[] = {
        TEST(test_wanted_segment_is_begun_with_and_alone_of_its_rung),
        TEST(test_lazy_rendition_has_the_tasks_that_somebody_wants_and_no_others),
        TEST(test_workers_are_woken_by_a_wish_unless_it_is_being_fulfilled),
        TEST(test_many_viewers_at_once_make_one_task),
        TEST(test_what_is_made_is_not_made_again),
        TEST(test_who_follows_the_playhead_gets_the_next_missing_one),
        TEST(test_seek_elsewhere_ends_what_runs_at_its_next_segment),
        TEST(test_seek_within_what_runs_starts_there),
        TEST(test_background_gives_way_when_nobody_is_free),
        TEST(test_background_goes_on_while_others_are_free),
        TEST(test_spare_slot_is_for_who_waits_while_the_others_are_busy),
        TEST(test_one_wish_ends_one_background_lease),
        TEST(test_background_on_its_way_gives_way_and_at_it_goes_on),
        TEST(test_worker_that_was_not_heard_of_is_not_waited_for),
        TEST(test_wish_that_is_not_repeated_ends),
        TEST(test_wish_that_cannot_be_fulfilled_spoils_nothing_else),
        TEST(test_wishes_of_one_item_are_limited_by_those_that_nobody_has_begun),
        TEST(test_nothing_is_made_for_an_item_whose_job_has_failed),
        TEST(test_wish_waits_for_a_source_that_is_moved),
        TEST(test_normalised_sound_waits_for_the_measurement_which_comes_first),
        TEST(test_normalised_sound_of_a_measured_item_waits_for_nothing),
    };
    return cmocka_run_group_tests_name("demand", tests, setup_server, teardown_server);
}
