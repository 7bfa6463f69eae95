#pragma once
// What the orchestrator's own files share.
//
// All state lives in PostgreSQL, so any number of orchestrators may run at once; what a process
// keeps in memory (the items' cache, the origins' health) is a hint that it can lose at any time.
#include <stdbool.h>
#include <stdint.h>

#include "cauce/common.pb-c.h"
#include "cauce/orchestrator.pb-c.h"
#include "cauce/transcode.pb-c.h"
#include "google/protobuf/timestamp.pb-c.h"

#include "base/arena.h"
#include "base/rand.h"
#include "db/db.h"
#include "event/event.h"
#include "log/log.h"
#include "media/loudness.h"
#include "media/plan.h"
#include "media/texts.h"
#include "rpc/rpc.h"
#include "service/service.h"
#include "work/work.h"

#define ORCH_SCHEMA "orchestrator"
#define ORCH_DIGEST_SIZE 32
#define ORCH_TASK_CHANNEL "orchestrator_task" // something may be leased
#define ORCH_LOST_CHANNEL "orchestrator_lost" // leases were taken away from whoever held them
#define ORCH_UNPUBLISHED_CHANNEL "orchestrator_unpublished" // payload: an item that lost segments
#define ORCH_ITEM_CHANNEL "orchestrator_item"               // payload: the item that changed

#define ORCH_LEASE_MS 15000
#define ORCH_RENEW_MS 5000
#define ORCH_MAX_ATTEMPTS 5
#define ORCH_MAX_CRASHES 2
#define ORCH_SYNC_MAX_US (INT64_C(10) * 1000000) // inputs that Commit may wait for
#define ORCH_SYNC_WAIT_MS 60000
#define ORCH_MAX_RENDITIONS_TEXT 1024 // "v720,v480"
#define ORCH_MAX_WAIT_MS 30000        // of Lease, Locate, Renew and Drain
#define ORCH_AWAY_TEXT 1024           // ids of origins that do not answer
#define ORCH_WISH_MS 40000            // longer than anybody waits in one call

#define ORCH_WORKER_GONE_AFTER "45 seconds" // a poll lasts at most 30
// How far the row t of orchestrator.task is, 0..1: leased ones count what their stage is worth.
#define ORCH_TASK_PROGRESS                                                                         \
    "CASE WHEN t.state = 'done' THEN 1 WHEN t.state <> 'leased' THEN 0 "                           \
    "WHEN t.stage = 'encode' THEN 0.1 + 0.8 * t.progress "                                         \
    "WHEN t.stage = 'store' THEN 0.9 + 0.1 * t.progress ELSE 0 END"
// The row w of orchestrator.worker may be given tasks and would come for them.
#define ORCH_WORKER_SERVES                                                                         \
    "w.last_seen > now() - interval '" ORCH_WORKER_GONE_AFTER "' AND NOT w.cordoned "              \
    "AND w.quarantined_until <= now()"

// 900 and more is made at once; from 600 on owners take turns for what lets an item start, below it
// for what goes on (docs/media.md).
enum orch_priority {
    ORCH_PRIO_MEASURE = 90, // the whole sound is decoded for it
    ORCH_PRIO_REST = 100,
    ORCH_PRIO_TEXTS = 340,
    ORCH_PRIO_IMAGES = 350,
    ORCH_PRIO_AUDIO = 400,
    ORCH_PRIO_VERIFY = 500,
    ORCH_PRIO_FIRST_TOP = 600, // first segment, the highest rung alone
    ORCH_PRIO_FIRST = 650,     // first segment, all other rungs
    ORCH_PRIO_FIRST_AUDIO = 660,
    ORCH_PRIO_PROBE = 700,
    ORCH_PRIO_MOVE = 750,
    ORCH_PRIO_NEXT = 900, // follows what somebody waits for
    ORCH_PRIO_WANTED = 1000,
};

struct orch_options {
    struct svc_options common;
    int64_t max_upload_bytes;
    int64_t quota_bytes; // of one user's live uploads; 0: none
    int64_t max_open_uploads;
    int64_t upload_ttl_ms; // an upload that nobody continues is dropped then
    int64_t failed_ttl_ms; // a dead job's source is kept that long for a retry
    struct svc_event_options events;
    // Checks of results: a new worker's first tasks, then one in so many; 0: none.
    int64_t verify_first, verify_one_in;
    char *local_worker; // node id of the worker of last resort; NULL, "off": none
    int64_t local_worker_after_ms;
};

// The world outside, so that tests can make one of their own.
struct orch_env {
    struct log *log;
    struct work_pool *pool;
    struct db *db;
    const struct db_opts *listen;
    const struct orch_options *options;
    const struct svc_node *const *origins; // as they were at the start
    size_t n_origins;
    // Optional: one of them as it is by now, whose key may be another; NULL when it is gone.
    const struct svc_node *(*current)(void *ud, const char *node_id);
    // Borrowed clients; NULL with err when the node is not known.
    struct rpc_client *(*store)(void *ud, struct err *err);
    struct rpc_client *(*origin)(void *ud, const char *node_id, struct err *err);
    enum status (*verify_media)(void *ud, const char *token, struct svc_media_claims *ret,
                                struct err *err);
    void *ud;
};

struct orch {
    struct orch_env env;
    struct db *db;
    struct log *log;
    struct hub *hub;
    struct items *items;
    struct backends *backends;
    struct sweeper *sweeper;
    struct event_log *events;
    struct db_listener *listener;
    bool migrated, db_answers; // atomic; for readiness
};
// Starts threads; serves nothing yet.
enum status orch_new(const struct orch_env *env, struct orch **ret, struct err *err) MUST_CHECK;
enum status orch_serve(struct orch *o, struct rpc_server *s, struct err *err) MUST_CHECK;
void orch_drain(struct orch *o); // answers everybody who waits; never blocks
void orch_free(struct orch *o);  // after the server has stopped

enum status uploads_serve(struct orch *o, struct rpc_server *s, struct err *err) MUST_CHECK;
enum status work_serve(struct orch *o, struct rpc_server *s, struct err *err) MUST_CHECK;
enum status playback_serve(struct orch *o, struct rpc_server *s, struct err *err) MUST_CHECK;
enum status subtitles_serve(struct orch *o, struct rpc_server *s, struct err *err) MUST_CHECK;
enum status jobs_serve(struct orch *o, struct rpc_server *s, struct err *err) MUST_CHECK;
enum status admin_serve(struct orch *o, struct rpc_server *s, struct err *err) MUST_CHECK;

// Timestamp of microseconds since the epoch, as the queries give them; NULL for 0 or out of memory.
Google__Protobuf__Timestamp *orch_timestamp(struct arena *a, int64_t us);
ProtobufCBinaryData orch_bytes(struct arena *a, const void *p, size_t n);
char *orch_str(struct arena *a, const char *s); // a copy; "" for NULL or out of memory
// Columns for orch_timestamp(): 0 for NULL.
#define ORCH_US(column) "coalesce((extract(epoch FROM " column ") * 1000000)::bigint, 0)"
// A page of a list: how many rows, 1..200.
int64_t orch_page_size(const Common__Page *p);      // p may be NULL
const char *orch_page_after(const Common__Page *p); // id to go on from; "" at the beginning
// As it is told to others; NULL out of memory.
Common__Loudness *orch_loudness(struct arena *a, const struct media_loudness *l);
struct rpc_client *orch_origin(struct orch *o, const char *node_id, struct err *err);
const struct svc_node *orch_origin_node(const struct orch *o, const char *node_id); // or NULL

// ---- leases that were taken away (leases.c) ----
// A worker says what it is. When it was started again, the leases that it had are over: others take
// them at once instead of when they run out.
enum status leases_join(struct db *db, const char *worker, const Transcode__JoinRequest *req,
                        struct err *err) MUST_CHECK;
// Ends a deferred Work.Renew: at once when a lease of the request is lost, else after wait_ms.
enum status leases_watch(struct rpc_call *call, const Transcode__RenewRequest *req,
                         struct err *err) MUST_CHECK;

// ---- jobs for people (jobs.c, steer.c, watch.c, why.c) ----
// By the job's id or the item's; only what the caller may see. Strings belong to the arena.
// errors  NOT_FOUND
enum status jobs_find(struct rpc_call *call, struct arena *a, const char *id,
                      Orchestrator__JobInfo *ret, struct err *err) MUST_CHECK;
// Tasks in order; active: those that are leased or wait for a retry.
enum status jobs_fill_tasks(struct orch *o, struct arena *a, bool active,
                            Orchestrator__JobInfo *ret, struct err *err) MUST_CHECK;
// Leased tasks of a job that ends here lose their leases; the item fails with that reason. Nothing
// happens to a job that has ended.
enum status job_cancel(struct db *db, const char *job, const char *reason,
                       struct err *err) MUST_CHECK;
enum status job_set_paused(struct db *db, const char *job, bool paused, struct err *err) MUST_CHECK;
// priority  -1000..1000; kept for tasks that come later
enum status job_set_priority(struct db *db, const char *job, int32_t priority,
                             struct err *err) MUST_CHECK;
enum status job_watch(struct rpc_call *call, const Orchestrator__GetJobRequest *req,
                      struct err *err) MUST_CHECK;
enum status job_why(struct rpc_call *call, const Orchestrator__GetJobRequest *req,
                    Orchestrator__WhyReply *ret, struct err *err) MUST_CHECK;
enum status queue_depths(struct rpc_call *call, const Orchestrator__QueueRequest *req,
                         Orchestrator__QueueReply *ret, struct err *err) MUST_CHECK; // admin.c

// ---- commit of uploads (commit.c) ----
// Take an upload in state committing to the end: origin Finish, store Create, item + job + probe
// task. Repeatable at any point; the sweeper calls it for what a crash cut off.
// errors  FAILED_PRECONDITION: leaves are missing (the upload is open again); UNAVAILABLE
enum status commit_run(struct orch *o, const char *upload_id, int64_t deadline_us,
                       struct err *err) MUST_CHECK;
// What its uploader chose, for the probe of an item.
enum status upload_options(struct orch *o, struct arena *a, const char *item, Transcode__Task *t,
                           struct err *err) MUST_CHECK;
// An upload that nobody continues, or that was asked to go: drop it at its origin.
enum status commit_abort(struct orch *o, const char *upload_id, struct err *err) MUST_CHECK;

// ---- the queue (queue.c): all of it is judged by the database's clock ----
struct queue_task {
    char id[UUID_SIZE], job[UUID_SIZE], item[UUID_SIZE];
    char kind[12]; // probe, chunk, move, images
    int64_t fence;
    int32_t attempt;
    int32_t priority;
    char target[CHAN_NODE_ID_SIZE];
    char renditions[ORCH_MAX_RENDITIONS_TEXT];
    int32_t first_segment, n_segments;
};
// Tasks beside the film: pictures, texts, checks. Without what they make the item is still whole,
// so that one of them that dies does not end the job.
bool queue_is_beside(const char *kind);
#define QUEUE_BESIDE "kind NOT IN ('probe', 'move', 'chunk')"
// Tasks of that kind are made from the plan.
bool queue_is_planned(const char *kind);
// Take the most urgent task; ret_found false when there is none, or the worker is in quarantine.
//
// away  origins that do not answer, "video-1,video-2": what needs them is left alone meanwhile, so
//       that it does not use up its attempts
enum status queue_claim(struct db *db, const char *worker, const char *away, struct queue_task *ret,
                        bool *ret_found, struct err *err) MUST_CHECK;
// The same for a worker whose slots are all busy: only what somebody waits for just now.
enum status queue_claim_wanted(struct db *db, const char *worker, const char *away,
                               struct queue_task *ret, bool *ret_found, struct err *err) MUST_CHECK;
struct queue_progress {
    const char *task, *stage;
    int64_t fence;
    double progress; // 0..1 of the stage
};
// ret_held false: the lease is lost and the work must be dropped. Tells an event now and then.
enum status queue_renew(struct db *db, const char *worker, const struct queue_progress *p,
                        bool *ret_held, struct err *err) MUST_CHECK;
// Back to the queue as if it had never been taken. A lease that is lost already is left alone.
enum status queue_release(struct db *db, const char *worker, const char *task, int64_t fence,
                          struct err *err) MUST_CHECK;
// All leases of a worker that is shut out, harmlessly: what it still has to say is refused.
enum status queue_take_back(struct db *db, const char *worker, struct err *err) MUST_CHECK;
enum queue_failure {
    QUEUE_REJECTED,  // the input is at fault
    QUEUE_TRANSIENT, // anybody may try again
    QUEUE_CRASH,     // the second one on a task rejects the input
};
// errors  ABORTED: the token is not the newest
enum status queue_fail(struct db *db, const char *worker, const char *task, int64_t fence,
                       enum queue_failure why, const char *message, bool *ret_will_retry,
                       struct err *err) MUST_CHECK;
// What a tick does: waits that are over, leases that ran out (when expire). ret_n: tasks moved.
enum status queue_sweep(struct db *db, bool expire, int64_t *ret_n, struct err *err) MUST_CHECK;
// Dead and cancelled tasks of a failed job, from the start.
// errors  NOT_FOUND; FAILED_PRECONDITION: not failed, or its source is gone
enum status queue_retry(struct db *db, const char *job, struct err *err) MUST_CHECK;

// Give up the sources of jobs that failed longer ago than that.
enum status queue_purge(struct db *db, int64_t ttl_ms, struct err *err) MUST_CHECK;

// Inside a transaction, by a worker that says it is done. Locks the job, then the task.
struct queue_hold {
    struct queue_task task;
    int32_t attempts;
    bool duplicate; // done before under this very token: nothing more to do
};
// A token that is the newest counts even when its lease has run out, as long as nobody else took
// it. errors  NOT_FOUND; ABORTED
enum status queue_hold(struct db_conn *c, const char *worker, const char *task, int64_t fence,
                       struct queue_hold *ret, struct err *err) MUST_CHECK;
struct queue_seconds {
    double fetch, encode, store, cpu;
};
// Marks the held task done and credits the worker.
enum status queue_done(struct db_conn *c, const char *worker, const struct queue_hold *h,
                       const struct queue_seconds *s, struct err *err) MUST_CHECK;
// The item cannot be finished: job, item and tasks end here. purge: give up source and segments now
// (the input is at fault); otherwise they are kept for a retry.
enum status queue_fail_job(struct db_conn *c, const char *job, const char *reason, bool purge,
                           struct err *err) MUST_CHECK;
enum status queue_notify(struct db_conn *c, const char *channel, const char *payload,
                         struct err *err) MUST_CHECK;

// ---- what somebody waits for (demand.c) ----
struct item;
// Whether a picture, text or the like of the item exists or will: one that could not be made is not
// waited for. errors  NOT_FOUND: nothing will come of it
enum status demand_expected(struct orch *o, const struct item *it, const char *name,
                            struct err *err) MUST_CHECK;
// See that this segment is made as soon as can be, and what a player needs after it next. follow:
// nobody waits yet; what is missing from there on is made before all background work.
// errors  FAILED_PRECONDITION: it cannot be made; RESOURCE_EXHAUSTED: too much of the item is
// wanted
enum status demand_want(struct orch *o, const struct item *it, const char *rendition,
                        int32_t segment, bool follow, struct err *err) MUST_CHECK;
struct demand {
    const char *item, *rendition;
    int32_t segment, n_ahead; // n_ahead: segments from there on, at least 1
    bool follow;
    bool normalised; // nothing of it is made before the item is measured
    bool wake;       // by the call: there is something to lease that nobody may have seen yet
};
enum status demand_want_in(struct db *db, struct demand *d, struct err *err) MUST_CHECK;
// Rows (rendition, segment), in order, of a chunk's segments that are published.
enum status demand_made(struct db *db, const struct queue_task *t, struct db_result **ret,
                        struct err *err) MUST_CHECK;
// Must this lease be given back after the running segment? away: as for queue_claim()
enum status demand_yields(struct db *db, const char *task, int64_t fence, const char *away,
                          bool *ret, struct err *err) MUST_CHECK;
// Inside the transaction that publishes some of the held task's segments: renews the lease.
enum status demand_published(struct db_conn *c, const struct queue_task *t, const char *away,
                             bool *ret_yield, struct err *err) MUST_CHECK;
// Wishes that are over.
enum status demand_sweep(struct db *db, struct err *err) MUST_CHECK;

// ---- results (publish.c) ----
struct publish_output {
    const char *rendition;
    int32_t segment;
    const uint8_t *digest; // ORCH_DIGEST_SIZE bytes
    int64_t size, first_pts, duration;
    int32_t samples, repeated, dropped;
    const uint8_t *init_digest;
};
struct publish_result {
    const char *worker, *task;
    int64_t fence;
    struct queue_seconds seconds;
    const uint8_t *plan; // probe
    size_t plan_len;
    const struct media_loudness *loudness; // measure; else NULL
    const char *left_out; // pictures, texts: why some of it could not be made; may be empty
    const struct publish_output *outputs; // chunk
    size_t n_outputs;
    bool part; // chunk: some segments of a task that goes on
};
struct publish_verdict {
    bool duplicate; // the task was done before under this token
    bool yield;     // part: give the rest back
};
// What a task has made, in one transaction: a part of it, or the rest, and it is done.
// errors  NOT_FOUND; ABORTED: not the newest token; INVALID_ARGUMENT: does not agree with the plan
enum status publish(struct orch *o, const struct publish_result *r, struct publish_verdict *ret,
                    struct err *err) MUST_CHECK;
// The ledger alone: some of the task's (rendition, segment) pairs, each as the plan says; of
// pictures, some of those that were asked for.
enum status publish_check(const struct media_plan *plan, const struct queue_task *t,
                          const struct publish_output *outputs, size_t n,
                          struct err *err) MUST_CHECK;
// The tasks that make a plan's segments.
struct publish_task {
    char renditions[ORCH_MAX_RENDITIONS_TEXT];
    int32_t first_segment, n_segments, priority;
};
enum status publish_tasks(const struct media_plan *plan, struct publish_task **ret, size_t *ret_n,
                          struct err *err) MUST_CHECK; // mem_free()

// ---- text that was added (subtitles.c) ----
// The file that an item's text of that id is made from.
// errors  NOT_FOUND
enum status subtitles_source(struct orch *o, const char *item, const char *id,
                             uint8_t ret_digest[ORCH_DIGEST_SIZE], int64_t *ret_size,
                             struct err *err) MUST_CHECK;
// In the transaction that publishes its task: ready, or failed because of `left_out`.
enum status subtitles_made(struct db_conn *c, const struct queue_task *t, bool ready,
                           const char *left_out, struct err *err) MUST_CHECK;
// Tell the store what is said in that text of the item, or that it is gone.
enum status subtitles_tell(struct orch *o, const char *item, const char *id, const char *origin,
                           struct err *err) MUST_CHECK;
// What players may choose, in `a`. base: address of the item's media on the gateway; NULL: none.
struct Orchestrator__SubtitleInfo;
enum status subtitles_fill(struct arena *a, const struct item *it, const char *base,
                           struct Orchestrator__SubtitleInfo ***ret, size_t *ret_n,
                           struct err *err) MUST_CHECK;

// Inside a transaction: the job of a task that is done has ended, when that was the last.
enum status publish_end(struct db_conn *c, const struct queue_task *t, struct err *err) MUST_CHECK;

// ---- items (items.c): a cache of what playing needs ----
struct item_plan { // reference counted, immutable
    unsigned n_refs;
    struct media_plan *plan;
    uint8_t *bytes;
    size_t len;
};
struct item_plan *item_plan_new(const void *bytes, size_t n, struct err *err) MUST_CHECK;
struct item_plan *item_plan_ref(struct item_plan *p);
void item_plan_unref(struct item_plan *p);
DEFINE_AUTO(struct item_plan, item_plan_unref)

#define ORCH_MAX_TEXTS 32 // that were added and are there
struct item {
    char id[UUID_SIZE], owner[UUID_SIZE];
    char kind[8], state[12], route[CHAN_NODE_ID_SIZE];
    char title[512], reason[512];
    uint8_t digest[ORCH_DIGEST_SIZE];
    int64_t size, duration_us;
    struct item_plan *plan;                  // own reference; NULL until probed
    struct media_text texts[ORCH_MAX_TEXTS]; // that were added and can be chosen
    size_t n_texts;
    bool is_measured;
    struct media_loudness loudness;
};
bool item_has_text(const struct item *it, const char *id); // among those that were added
void item_done(struct item *it);
struct item_segment {
    uint8_t digest[ORCH_DIGEST_SIZE];
    int64_t size; // 0: not made yet
};

struct items;
struct items *items_new(struct db *db) MUST_CHECK;
void items_free(struct items *c);
// Fresh from the database when it changed or was never seen; what is remembered while the database
// is away. *ret is done with item_done().
// errors  NOT_FOUND; UNAVAILABLE: not remembered and the database is away
enum status items_get(struct items *c, const char *id, struct item *ret,
                      struct err *err) MUST_CHECK;
// The same, once more from the database when no plan is known yet: for whoever has learned
// elsewhere that there is one. errors  FAILED_PRECONDITION: there is none
enum status items_get_planned(struct items *c, const char *id, struct item *ret,
                              struct err *err) MUST_CHECK;
// Published segments [first, first + n) of a rendition into ret (n places).
enum status items_segments(struct items *c, const char *id, const char *rendition, int32_t first,
                           int32_t n, struct item_segment *ret, struct err *err) MUST_CHECK;
// Where an item keeps what is made of that rendition or picture (media/image.h), and of how many
// segments it is; -1: the plan has none of that name.
int items_place(const struct media_plan *p, const char *rendition, size_t *ret_n_segments);
// How many segments of a rendition are published.
int32_t items_n_ready(struct items *c, const char *id, const char *rendition);
void items_changed(struct items *c, const char *id); // NULL: all may have
// Segments of it were taken back: what is remembered of them does not count.
void items_unpublished(struct items *c, const char *id);

// ---- origins' health (backends.c) ----
struct backend_info {
    const struct svc_node *node;
    const char *state; // closed, open, half_open
    int64_t calls, failures, free_bytes, used_bytes;
};
struct backends;
struct backends *backends_new(struct orch *o) MUST_CHECK;
void backends_free(struct backends *b); // waits for its own calls
void backends_poll(struct backends *b); // asks every origin for its usage; does not wait
size_t backends_list(struct backends *b, struct backend_info *ret, size_t max);
// The healthy origin of that kind that holds least and has room; tried: ids not to take again.
const struct svc_node *backends_pick(struct backends *b, const char *kind, int64_t size,
                                     const struct svc_node *const *tried, size_t n_tried);
bool backends_is_open(struct backends *b, const char *node_id); // known to be away
void backends_away(struct backends *b, char *dst, size_t size); // all of those, comma separated
void backends_report(struct backends *b, const char *node_id, enum status s);
// UNAVAILABLE unless the origin answers or has just done so; takes at most 1.5 s.
enum status backends_check(struct backends *b, const char *node_id, struct err *err) MUST_CHECK;

// ---- those who wait without a thread (hub.c) ----
// HUB_LEASES: some were taken away. HUB_ANY: whatever anybody is woken for.
enum hub_topic { HUB_TASKS, HUB_ITEM, HUB_LEASES, HUB_ANY };
enum hub_why { HUB_EVENT, HUB_TIMEOUT, HUB_CANCELLED, HUB_STOPPING };
// Runs on a pool thread, never twice at once. True: answered, the waiter is gone. For anything but
// HUB_EVENT it must answer, and is gone whatever it returns.
typedef bool (*hub_try_fn)(void *ud, enum hub_why why);
struct hub;
struct hub *hub_new(struct work_pool *pool) MUST_CHECK;
void hub_close(struct hub *h); // HUB_STOPPING to all; later ones at once; never blocks
void hub_stop(struct hub *h);  // waits until all are gone; hub_wake() stays allowed
void hub_free(struct hub *h);
// try runs soon for the first time (so that nothing that happened meanwhile is missed), then at
// each hub_wake() of the topic (and item).
//
// item    HUB_ITEM only; copied
// cancel  of the call; may be NULL
// errors  RESOURCE_EXHAUSTED; try will not run then
enum status hub_park(struct hub *h, enum hub_topic topic, const char *item, int64_t deadline_us,
                     struct cancel *cancel, hub_try_fn fn, void *ud, struct err *err) MUST_CHECK;
void hub_wake(struct hub *h, enum hub_topic topic, const char *item); // NULL: all of the topic

// ---- checks of results (verify.c) ----
bool verify_is(const char *kind);
// Inside a transaction that marked that task done: order a check of what the worker made, or not.
enum status verify_order(struct db_conn *c, const struct orch_options *opt, const char *worker,
                         const struct queue_task *t, struct err *err) MUST_CHECK;
// For the lease of a check: what is to be looked at.
enum status verify_describe(struct orch *o, struct arena *a, const struct queue_task *q,
                            Transcode__Task *t, struct err *err) MUST_CHECK;
// A worker says that a task failed. When it is a check that comes to its end by that (a result is
// wrong, or there will be no verdict) *ret_handled; *ret_transient: it is a check, and nothing that
// it says is the input's fault.
enum status verify_failed(struct orch *o, const char *worker, const Transcode__FailRequest *req,
                          const char *message, bool *ret_handled, bool *ret_transient,
                          struct err *err) MUST_CHECK;

// ---- the worker of last resort (local_worker.c); the queue's thread only, but for free ----
struct local_worker;
struct local_worker *local_worker_new(struct orch *o) MUST_CHECK;
void local_worker_round(struct local_worker *w); // once a second
void local_worker_free(struct local_worker *w);  // waits at most 3 s for its end

// ---- what happens by itself (sweeper.c) ----
struct sweeper *sweeper_new(struct orch *o) MUST_CHECK;
void sweeper_free(struct sweeper *s); // joins
// That worker is shut out: its tasks go to others in the next round. Does not block.
void sweeper_shut_out(struct sweeper *s, const char *worker);
void sweeper_kick(struct sweeper *s); // something is to be told to the store or an origin: now
// One round of each, for tests.
void sweeper_queue_round(struct orch *o);
void sweeper_chore_round(struct orch *o);
