// Following a topic: every event in order, from hints that may be lost and a log that has them all.
//
// A follower is a thread and a queue. nng's thread opens what is published and puts it into the
// queue as long as its events follow one another; whatever does not fit there only raises
// `last_seq`. The follower's thread hands over what the queue has next, and reads from the log what
// is missing below `last_seq`. So a lost, late or forged message can delay an event, never lose,
// repeat or change it.
//
//   position  consumer's row, `from`, or what Subscribe says comes next
//   session   one publisher, for as long as it is heard: Subscribe gives address, key and number;
//             each (re)connect asks again, since what was sent meanwhile is missed
//   silence   the publisher says when its silence means that something is wrong: a new session
//
// An unknown epoch is a reason to ask for the key at once, but forged messages could make us ask
// for ever: a few questions may follow each other, then one a second.
#include <errno.h>
#include <string.h>

#include "cauce/event.rpc.h"

#include "base/mem.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/time.h"
#include "event/internal.h"
#include "rpc/pubsub.h"

#define MAX_QUEUE 1024
#define MAX_QUEUE_BYTES (1U << 20)
#define MAX_QUESTIONS 4 // in a row
#define QUESTION_EVERY_US 1000000
#define COMMIT_EVERY 64 // events; and whenever there is nothing to do
#define CALL_MS 10000
#define READ_MS 60000
#define LAST_COMMIT_MS 1000
#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 3000
#define DEFAULT_SILENCE_MS 15000

struct item {
    struct list link;
    Event__Notice *notice; // with an event
    size_t bytes;
};

struct event_follower {
    struct event_follow_opts o;
    char topic[EVENT_TOPIC_SIZE], consumer[80];
    struct cancel *cancel;
    pthread_t thread;
    bool is_started;

    pthread_mutex_t lock; // guards what follows
    pthread_cond_t cond;
    bool is_closing, is_connected, must_ask;
    struct pubsub_reader reader;
    struct list queue; // events that follow one another
    size_t n_queued, queued_bytes;
    int64_t queue_next; // after the queue's last; 0: the queue is empty
    int64_t last_seq;   // the topic's last number, as far as we heard
    int64_t heard_us;   // last genuine message, or answer
    struct event_follower_stats stats;

    // The thread's alone:
    struct rpc_client *client;
    struct pubsub_subscriber *socket;
    char url[RPC_URL_SIZE];
    int64_t next; // first event wanted; 0: the oldest; -1: what comes next
    bool is_positioned;
    unsigned n_uncommitted;
    // A consumer that began with what comes next has a position from then on: what comes while it
    // is down is not lost, though it has handled nothing yet.
    bool must_register;
    int64_t silence_us;
    int64_t asked_us; // time up to which questions are paid for
};

// ---------------------------------------------------------------- waiting

// With the lock held: until woken or until_us; false when that time came.
static bool wait_locked(struct event_follower *f, int64_t until_us)
{
    struct timespec ts = {.tv_sec = (time_t)(until_us / 1000000),
                          .tv_nsec = (long)(until_us % 1000000) * 1000};
    if (until_us == TIME_NEVER)
        return pthread_cond_wait(&f->cond, &f->lock) == 0;
    return pthread_cond_timedwait(&f->cond, &f->lock, &ts) != ETIMEDOUT;
}

static bool is_closing(struct event_follower *f)
{
    pthread_mutex_lock(&f->lock);
    bool yes = f->is_closing;
    pthread_mutex_unlock(&f->lock);
    return yes;
}

// Half to one and a half times a doubling delay. False: closing.
static bool back_off(struct event_follower *f, unsigned n)
{
    int64_t ms = n < 5 ? (int64_t)BACKOFF_MIN_MS << n : BACKOFF_MAX_MS;
    int64_t until_us = time_deadline_in_ms(ms / 2 + (int64_t)rand_below((uint64_t)ms));
    pthread_mutex_lock(&f->lock);
    while (!f->is_closing && wait_locked(f, until_us))
        ;
    bool closing = f->is_closing;
    pthread_mutex_unlock(&f->lock);
    return !closing;
}

// ---------------------------------------------------------------- what is published (nng's thread)

static void item_free(struct item *it)
{
    rpc_message_free(it->notice);
    mem_free(it);
}

static void clear_queue(struct event_follower *f)
{
    for (struct list *l; (l = list_pop_front(&f->queue));)
        item_free(list_entry(l, struct item, link));
    f->n_queued = 0;
    f->queued_bytes = 0;
    f->queue_next = 0;
}

static bool fits(const struct event_follower *f, const Event__Notice *n, size_t bytes)
{
    return n->event && n->event->kind[0] && n->event->seq == n->last_seq &&
           (f->queue_next == 0 || f->queue_next == n->last_seq) && f->n_queued < MAX_QUEUE &&
           f->queued_bytes + bytes <= MAX_QUEUE_BYTES;
}

// Consumes n.
static void take_notice(struct event_follower *f, Event__Notice *n, size_t bytes)
{
    struct item *it = fits(f, n, bytes) ? mem_alloc(sizeof *it) : NULL;
    if (n->last_seq > f->last_seq)
        f->last_seq = n->last_seq;
    if (!it) {
        rpc_message_free(n);
        return;
    }
    it->notice = n;
    it->bytes = bytes;
    list_push_back(&f->queue, &it->link);
    f->queue_next = n->last_seq + 1;
    f->n_queued++;
    f->queued_bytes += bytes;
}

static void on_message(void *ud, uint8_t *msg, size_t n)
{
    struct event_follower *f = ud;
    const uint8_t *payload = NULL;
    size_t size = 0;
    ProtobufCMessage *m = NULL;
    pthread_mutex_lock(&f->lock);
    enum pubsub_result r = pubsub_open(&f->reader, msg, n, time_mono_us(), &payload, &size);
    if (r == PUBSUB_OPENED) {
        f->heard_us = time_mono_us();
        if (rpc_message_unpack(&event__notice__descriptor, payload, size, &m, NULL) == STATUS_OK)
            take_notice(f, (Event__Notice *)(void *)m, size);
        else
            f->must_ask = true; // the publisher is newer than we, or memory is short
    }
    f->must_ask = f->must_ask || r == PUBSUB_ASK;
    pthread_cond_signal(&f->cond);
    pthread_mutex_unlock(&f->lock);
}

static void on_connected(void *ud, bool is_connected)
{
    struct event_follower *f = ud;
    pthread_mutex_lock(&f->lock);
    f->is_connected = is_connected;
    f->must_ask = true; // what was sent meanwhile is missed
    pthread_cond_signal(&f->cond);
    pthread_mutex_unlock(&f->lock);
}

static const struct pubsub_events socket_events = {.message = on_message,
                                                   .connected = on_connected};

// ---------------------------------------------------------------- calls

static struct rpc_opts call_opts(const struct event_follower *f, int64_t ms)
{
    return (struct rpc_opts){
        .route = f->topic, .deadline_us = time_deadline_in_ms(ms), .cancel = f->cancel};
}

static char *text(const char *s)
{
    return (char *)(uintptr_t)s; // protobuf-c's fields lack const; packing only reads
}

static enum status check_reply(const Event__SubscribeReply *r, struct err *err)
{
    if (r->key.len == 32 && r->verify_key.len == 32 && r->publisher && r->epoch && r->next_seq > 0)
        return STATUS_OK;
    return err_set(err, STATUS_INTERNAL, "subscribe: the answer lacks a key or a number");
}

static enum status connect_socket(struct event_follower *f, const char *url, struct err *err)
{
    struct pubsub_topic t = pubsub_topic_of(f->topic);
    if (f->socket && str_eq(f->url, url))
        return STATUS_OK;
    pubsub_subscriber_free(TAKE(f->socket));
    if (!str_copy(f->url, sizeof f->url, url))
        return err_set(err, STATUS_INTERNAL, "subscribe: the publisher's address is too long");
    return pubsub_subscriber_new(url, &t, &socket_events, f, &f->socket, err);
}

static void adopt(struct event_follower *f, const Event__SubscribeReply *r)
{
    struct pubsub_grant g = {.publisher = r->publisher, .epoch = r->epoch, .number = r->number};
    memcpy(g.key, r->key.data, sizeof g.key);
    memcpy(g.verify_key, r->verify_key.data, sizeof g.verify_key);
    pthread_mutex_lock(&f->lock);
    if (f->reader.publisher != g.publisher)
        clear_queue(f);
    pubsub_reader_adopt(&f->reader, &g, time_mono_us());
    if (r->next_seq - 1 > f->last_seq)
        f->last_seq = r->next_seq - 1;
    f->heard_us = time_mono_us();
    f->stats.n_asked++;
    pthread_mutex_unlock(&f->lock);
    explicit_bzero(&g, sizeof g);
    f->silence_us = 1000 * (r->silence_ms > 0 ? r->silence_ms : DEFAULT_SILENCE_MS);
    if (f->next < 0) {
        f->next = r->next_seq;
        f->must_register = f->consumer[0];
    }
}

static enum status subscribe(struct event_follower *f, struct err *err)
{
    Event__SubscribeRequest req = EVENT__SUBSCRIBE_REQUEST__INIT;
    struct rpc_opts o = call_opts(f, CALL_MS);
    AUTO(rpc_message_free_p) Event__SubscribeReply *r = NULL;
    req.topic = f->topic;
    enum status s = event_event_subscribe(f->client, &o, &req, &r, err);
    if (s == STATUS_OK)
        s = check_reply(r, err);
    if (s != STATUS_OK)
        return s;
    adopt(f, r);
    s = connect_socket(f, r->url, err);
    explicit_bzero(r->key.data, r->key.len);
    return s;
}

static enum status ask_consumers(struct event_follower *f, Event__ConsumersReply **ret,
                                 struct err *err)
{
    Event__ConsumersRequest req = EVENT__CONSUMERS_REQUEST__INIT;
    struct rpc_opts o = call_opts(f, CALL_MS);
    req.topic = f->topic;
    req.name = f->consumer;
    return event_event_consumers(f->client, &o, &req, ret, err);
}

static enum status find_position(struct event_follower *f, struct err *err)
{
    AUTO(rpc_message_free_p) Event__ConsumersReply *r = NULL;
    enum status s = f->consumer[0] ? ask_consumers(f, &r, err) : STATUS_OK;
    if (s != STATUS_OK)
        return s;
    f->next = r && r->n_consumers > 0 ? r->consumers[0]->position + 1 : f->o.from;
    f->is_positioned = true;
    return STATUS_OK;
}

static enum status commit(struct event_follower *f, int64_t ms, struct cancel *cancel,
                          struct err *err)
{
    Event__CommitRequest req = EVENT__COMMIT_REQUEST__INIT;
    struct rpc_opts o = call_opts(f, ms);
    AUTO(rpc_message_free_p) Event__Consumer *r = NULL;
    if (f->n_uncommitted == 0 && !f->must_register)
        return STATUS_OK;
    o.cancel = cancel;
    req.topic = f->topic;
    req.name = f->consumer;
    req.position = f->next - 1;
    enum status s = event_event_commit(f->client, &o, &req, &r, err);
    if (s == STATUS_ABORTED) { // another process of this consumer is ahead: go on from there
        log_warn(f->o.log, "consumer_is_ahead", F_STR("consumer", f->consumer), F_ERR(err));
        f->is_positioned = false;
    }
    if (s == STATUS_OK || s == STATUS_ABORTED) {
        f->n_uncommitted = 0;
        f->must_register = false;
    }
    return s;
}

// ---------------------------------------------------------------- handing over

// Until it is handled. errors  CANCELLED: closing
static enum status hand_over(struct event_follower *f, const Event__EventRecord *e, bool was_read,
                             struct err *err)
{
    for (unsigned n = 0;; n++) {
        struct err why = ERR_INIT;
        if (is_closing(f))
            return err_set(err, STATUS_CANCELLED, "closing");
        if (f->o.handle(f->o.ud, e, &why) == STATUS_OK)
            break;
        log_warn(f->o.log, "event_not_handled", F_STR("topic", f->topic), F_I64("seq", e->seq),
                 F_ERR(&why));
        if (!back_off(f, n))
            return err_set(err, STATUS_CANCELLED, "closing");
    }
    f->next = e->seq + 1;
    f->n_uncommitted += f->consumer[0] != '\0';
    pthread_mutex_lock(&f->lock);
    f->stats.position = e->seq;
    f->stats.n_read += was_read;
    f->stats.n_published += !was_read;
    pthread_mutex_unlock(&f->lock);
    return STATUS_OK;
}

// The event wanted next, when the queue has it; older ones are thrown away. NULL: it has not.
static struct item *take_next(struct event_follower *f)
{
    struct item *it = NULL;
    pthread_mutex_lock(&f->lock);
    while (!it && !list_is_empty(&f->queue)) {
        struct item *first = list_entry(f->queue.next, struct item, link);
        int64_t seq = first->notice->event->seq;
        if (seq > f->next)
            break;
        list_remove(&first->link);
        f->n_queued--;
        f->queued_bytes -= first->bytes;
        if (seq == f->next)
            it = first;
        else
            item_free(first);
    }
    if (list_is_empty(&f->queue))
        f->queue_next = 0;
    pthread_mutex_unlock(&f->lock);
    return it;
}

static enum status hand_over_queue(struct event_follower *f, struct err *err)
{
    enum status s = STATUS_OK;
    for (struct item *it; s == STATUS_OK && f->next > 0 && (it = take_next(f));) {
        s = hand_over(f, it->notice->event, false, err);
        item_free(it);
        if (s == STATUS_OK && f->n_uncommitted >= COMMIT_EVERY)
            s = commit(f, CALL_MS, f->cancel, err);
    }
    return s;
}

static enum status hand_over_read(struct event_follower *f, const Event__EventRecord *e,
                                  struct err *err)
{
    if (f->next > 0 && e->seq != f->next)
        return err_set(err, STATUS_DATA_LOSS, "event %lld came instead of %lld", (long long)e->seq,
                       (long long)f->next);
    enum status s = hand_over(f, e, true, err);
    if (s == STATUS_OK && f->n_uncommitted >= COMMIT_EVERY)
        s = commit(f, CALL_MS, f->cancel, err);
    return s;
}

static enum status open_read(struct event_follower *f, struct rpc_stream **ret, struct err *err)
{
    Event__ReadRequest req = EVENT__READ_REQUEST__INIT;
    Google__Protobuf__Timestamp since;
    struct rpc_opts o = call_opts(f, READ_MS);
    req.topic = f->topic;
    req.subject = text("");
    req.from_seq = f->next;
    if (f->next == 0 && f->o.since_wall_ms > 0) {
        event_timestamp(f->o.since_wall_ms * 1000, &since);
        req.since = &since;
    }
    return event_event_read_open(f->client, &o, &req, ret, err);
}

// All that the log has now, from the event wanted next.
static enum status read_log(struct event_follower *f, struct err *err)
{
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    int64_t before = f->next;
    enum status s = open_read(f, &st, err);
    while (s == STATUS_OK) {
        AUTO(rpc_message_free_p) Event__EventRecord *e = NULL;
        s = event_event_read_recv(st, &e, err);
        if (s == STATUS_OK && !e)
            break;
        if (s == STATUS_OK)
            s = hand_over_read(f, e, err);
    }
    // A handler that took long is no reason to begin again: what was handled is behind us. Without
    // any event the log has not said what it has, least of all that it has nothing.
    return s == STATUS_DEADLINE_EXCEEDED && f->next != before ? STATUS_OK : s;
}

// What comes next was pruned. OK: go on with the oldest.
static enum status skip_pruned(struct event_follower *f, struct err *err)
{
    AUTO(rpc_message_free_p) Event__ConsumersReply *r = NULL;
    struct err why = ERR_INIT;
    if (!f->o.skip_pruned) {
        pthread_mutex_lock(&f->lock);
        f->stats.has_ended = true;
        pthread_mutex_unlock(&f->lock);
        return STATUS_OUT_OF_RANGE;
    }
    enum status s = ask_consumers(f, &r, &why);
    if (s != STATUS_OK)
        return err_set(err, s, "%s", why.msg);
    log_warn(f->o.log, "events_skipped", F_STR("topic", f->topic), F_I64("from", f->next),
             F_I64("to", r->oldest_seq - 1));
    f->next = r->oldest_seq;
    return STATUS_OK;
}

static enum status fill(struct event_follower *f, int64_t last_seq, struct err *err)
{
    int64_t before = f->next;
    enum status s = read_log(f, err);
    if (s == STATUS_OUT_OF_RANGE)
        return skip_pruned(f, err);
    if (s != STATUS_OK)
        return s;
    if (f->next == 0) // nothing there, or nothing that is new enough
        f->next = last_seq + 1;
    if (f->next == before && f->next <= last_seq)
        return err_set(err, STATUS_UNAVAILABLE, "event %lld is not in the log yet",
                       (long long)f->next);
    return STATUS_OK;
}

// ---------------------------------------------------------------- a session

enum turn { TURN_END, TURN_FILL, TURN_ASK, TURN_QUEUE, TURN_COMMIT, TURN_SILENT };

static int64_t question_at(const struct event_follower *f)
{
    return f->asked_us - (int64_t)(MAX_QUESTIONS - 1) * QUESTION_EVERY_US;
}

static void pay_question(struct event_follower *f)
{
    int64_t now_us = time_mono_us();
    f->asked_us = (f->asked_us > now_us ? f->asked_us : now_us) + QUESTION_EVERY_US;
}

static bool queue_has_next(const struct event_follower *f)
{
    return !list_is_empty(&f->queue) &&
           list_entry(f->queue.next, struct item, link)->notice->event->seq <= f->next;
}

// Waits until there is something to do.
static enum turn next_turn(struct event_follower *f, int64_t *ret_last_seq)
{
    enum turn t = TURN_END;
    pthread_mutex_lock(&f->lock);
    for (;;) {
        int64_t now_us = time_mono_us(), silent_at = f->heard_us + f->silence_us;
        int64_t until_us = silent_at;
        if (f->is_closing)
            break;
        t = TURN_QUEUE;
        if (f->next > 0 && queue_has_next(f))
            break;
        t = TURN_FILL;
        if (f->next == 0 || f->next <= f->last_seq)
            break;
        t = TURN_ASK;
        if (f->must_ask && question_at(f) <= now_us)
            break;
        t = TURN_COMMIT;
        if (f->n_uncommitted > 0 || f->must_register)
            break;
        t = TURN_SILENT;
        if (now_us >= silent_at)
            break;
        if (f->must_ask && question_at(f) < until_us)
            until_us = question_at(f);
        (void)wait_locked(f, until_us);
        t = TURN_END;
    }
    if (t == TURN_ASK)
        f->must_ask = false;
    *ret_last_seq = f->last_seq;
    pthread_mutex_unlock(&f->lock);
    return t;
}

static enum status take_turn(struct event_follower *f, enum turn t, int64_t last_seq,
                             struct err *err)
{
    switch (t) {
    case TURN_END:
        return err_set(err, STATUS_CANCELLED, "closing");
    case TURN_QUEUE:
        return hand_over_queue(f, err);
    case TURN_FILL:
        return fill(f, last_seq, err);
    case TURN_ASK:
        pay_question(f);
        return subscribe(f, err);
    case TURN_COMMIT:
        return commit(f, CALL_MS, f->cancel, err);
    case TURN_SILENT:
        return err_set(err, STATUS_UNAVAILABLE, "nothing was heard of %s at %s", f->topic, f->url);
    }
    return STATUS_INTERNAL;
}

static void end_session(struct event_follower *f)
{
    pubsub_subscriber_free(TAKE(f->socket));
    pthread_mutex_lock(&f->lock);
    clear_queue(f);
    f->is_connected = false;
    pthread_mutex_unlock(&f->lock);
}

// One node, one publisher, until something fails.
static enum status session(struct event_follower *f, unsigned attempt, struct err *err)
{
    int64_t last_seq = 0;
    f->client = f->o.client(f->o.ud, attempt, err);
    if (!f->client)
        return STATUS_UNAVAILABLE;
    enum status s = f->is_positioned ? STATUS_OK : find_position(f, err);
    if (s == STATUS_OK)
        s = subscribe(f, err);
    while (s == STATUS_OK && f->is_positioned)
        s = take_turn(f, next_turn(f, &last_seq), last_seq, err);
    end_session(f);
    return s;
}

static void *run(void *ud)
{
    struct event_follower *f = ud;
    pthread_setname_np(pthread_self(), "follow");
    for (unsigned attempt = 0, n_failed = 0;; attempt++) {
        struct err err = ERR_INIT;
        int64_t before = f->next;
        enum status s = session(f, attempt, &err);
        if (is_closing(f))
            break;
        if (s == STATUS_OUT_OF_RANGE && f->stats.has_ended) {
            log_error(f->o.log, "follow_ended", F_STR("topic", f->topic), F_ERR(&err));
            break;
        }
        n_failed = f->next != before ? 0 : n_failed + 1;
        log_debug(f->o.log, "follow_again", F_STR("topic", f->topic), F_I64("next", f->next),
                  F_ERR(&err));
        if (!back_off(f, n_failed))
            break;
    }
    struct err ignored = ERR_INIT; // handled, not committed: it comes again
    if (f->client)
        (void)!commit(f, LAST_COMMIT_MS, NULL, &ignored);
    return NULL;
}

// ---------------------------------------------------------------- start and end

static struct event_follower *follower_new(const struct event_follow_opts *o)
{
    struct event_follower *f = mem_alloc(sizeof *f);
    pthread_condattr_t a;
    if (!f)
        return NULL;
    f->o = *o;
    f->next = o->from;
    pthread_mutex_init(&f->lock, NULL);
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&f->cond, &a);
    pthread_condattr_destroy(&a);
    list_init(&f->queue);
    pubsub_reader_init(&f->reader, o->topic);
    f->cancel = cancel_new(NULL);
    return f;
}

enum status event_follow(const struct event_follow_opts *o, struct event_follower **ret,
                         struct err *err)
{
    AUTO(event_follower_free_p) struct event_follower *f = follower_new(o);
    if (!f || !f->cancel)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "follow %s: out of memory", o->topic);
    if (!str_copy(f->topic, sizeof f->topic, o->topic) ||
        !str_copy(f->consumer, sizeof f->consumer, o->consumer ? o->consumer : "") || o->from < -1)
        return err_set(err, STATUS_INVALID_ARGUMENT, "follow %s: the name or the start is none",
                       o->topic);
    int e = pthread_create(&f->thread, NULL, run, f);
    if (e)
        return err_errno(err, e, "follow %s: thread", o->topic);
    f->is_started = true;
    *ret = TAKE(f);
    return STATUS_OK;
}

void event_follower_close(struct event_follower *f)
{
    pthread_mutex_lock(&f->lock);
    f->is_closing = true;
    pthread_cond_broadcast(&f->cond);
    pthread_mutex_unlock(&f->lock);
    cancel_fire(f->cancel);
}

void event_follower_free(struct event_follower *f)
{
    if (!f)
        return;
    if (f->is_started) {
        event_follower_close(f);
        pthread_join(f->thread, NULL);
    }
    clear_queue(f);
    pubsub_reader_done(&f->reader);
    cancel_unref(f->cancel);
    pthread_cond_destroy(&f->cond);
    pthread_mutex_destroy(&f->lock);
    mem_free(f);
}

void event_follower_get_stats(struct event_follower *f, struct event_follower_stats *ret)
{
    pthread_mutex_lock(&f->lock);
    *ret = f->stats;
    ret->is_connected = f->is_connected;
    const struct pubsub_reader_stats *r = &f->reader.stats;
    ret->n_dropped = r->n_repeated + r->n_forged + r->n_stale + r->n_unknown;
    pthread_mutex_unlock(&f->lock);
}
