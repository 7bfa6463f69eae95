// events: follows topics, across lost connections, without a gap or a repeat; reads them; keeps and
// shows positions.
//
// A followed topic has a thread, which prints, under a lock that keeps lines whole. With --consumer
// another thread commits what was printed: while one commit is under way more is printed, and the
// next one covers it. What was printed and not committed when the program is killed comes again.
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "cauce/event.rpc.h"
#include "ctl.h"
#include "json/proto.h"

enum {
    FOLLOW_MS = 10 * 60 * 1000, // one call
    LASTED_MS = 10000,          // a connection that was no failure
    MAX_TOPICS = 16,
    MAX_FIRST_TRIES = 8,
    MAX_REFUSALS = 2, // of tokens, in a row
    READ_LIMIT = 50,
};

static const char *const all_topics[] = {"auth", "upload", "transcode", "store", "swarm"};

// ---------------------------------------------------------------- shared

static enum status print_event(struct ctl *k, Event__EventRecord *e, bool with_topic)
{
    char when[TIME_RFC3339_SIZE] = "-";
    enum status s = STATUS_OK;
    if (ctl_has(k, OPT_JSON)) {
        s = ctl_print_message(k, &e->base);
    } else {
        ctl_tidy(&e->base);
        if (e->time)
            time_rfc3339(when, e->time->seconds * 1000 + e->time->nanos / 1000000);
        if (with_topic)
            printf("%-9s ", e->topic);
        printf("%6" PRId64 "  %s  %-18s %s  %s\n", e->seq, when, e->kind, e->subject, e->data);
    }
    if (s == STATUS_OK && fflush(stdout) != 0)
        s = err_set(&k->err, STATUS_UNKNOWN, "standard output takes no more");
    return s;
}

static enum status ask_consumers(struct ctl *k, const char *topic, const char *name, bool all,
                                 Event__ConsumersReply **ret, struct err *err)
{
    struct client_try t;
    Event__ConsumersRequest req = EVENT__CONSUMERS_REQUEST__INIT;
    req.topic = client_str(topic);
    req.name = client_str(name);
    req.all = all;
    enum status s = client_try_begin(&t, k->c, CLIENT_LOGGED_IN, topic, 0, NULL, err);
    if (s != STATUS_OK)
        return s;
    return CLIENT_CALL(&t, event_event_consumers(client_rpc(k->c), &t.opts, &req, ret, err), err);
}

// --since: a time, or how long ago.
static enum status parse_since(struct ctl *k, int64_t *ret_wall_ms)
{
    int64_t ago_ms = 0;
    *ret_wall_ms = 0;
    if (!ctl_has(k, OPT_SINCE) || time_parse_rfc3339(k->opt[OPT_SINCE], ret_wall_ms))
        return STATUS_OK;
    if (str_parse_duration_ms(k->opt[OPT_SINCE], &ago_ms, NULL) != STATUS_OK)
        return ctl_misused(k,
                           "--since \"%s\" is neither a time (2025-01-31T12:00:00Z) nor how "
                           "long ago (10m)",
                           k->opt[OPT_SINCE]);
    *ret_wall_ms = time_wall_ms() - ago_ms;
    return STATUS_OK;
}

struct range {
    int64_t from, since_wall_ms;
    bool follow;
};

static enum status open_read(struct ctl *k, struct client_try *t, const char *topic,
                             const struct range *r, struct rpc_stream **ret, struct err *err)
{
    Event__ReadRequest req = EVENT__READ_REQUEST__INIT;
    Google__Protobuf__Timestamp since = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
    req.topic = client_str(topic);
    req.from_seq = r->from;
    req.follow = r->follow;
    req.subject = client_str(k->opt[OPT_SUBJECT]);
    since.seconds = r->since_wall_ms / 1000;
    if (r->since_wall_ms > 0)
        req.since = &since;
    return event_event_read_open(client_rpc(k->c), &t->opts, &req, ret, err);
}

// ---------------------------------------------------------------- tail

struct tails;
struct tail { // of one topic
    struct tails *all;
    const char *topic;
    int64_t since_wall_ms;
    unsigned n_refused;
    pthread_t thread;
    struct err err; // why it ended
    enum status status;
    // under the lock:
    struct rpc_stream *stream;
    int64_t next; // first event not yet printed; 0: the oldest
    int64_t committed;
};
struct tails {
    struct ctl *k;
    const char *consumer; // or NULL
    int64_t from;
    struct tail one[MAX_TOPICS];
    size_t n;
    pthread_mutex_t lock;
    pthread_cond_t printed;
    bool is_ending;
    struct err commit_err;
    enum status commit_status;
};

static bool is_ending(struct tails *all)
{
    pthread_mutex_lock(&all->lock);
    bool yes = all->is_ending;
    pthread_mutex_unlock(&all->lock);
    return yes;
}

static void end_all(struct tails *all)
{
    pthread_mutex_lock(&all->lock);
    all->is_ending = true;
    for (size_t i = 0; i < all->n; i++)
        if (all->one[i].stream)
            rpc_stream_cancel(all->one[i].stream);
    pthread_cond_broadcast(&all->printed);
    pthread_mutex_unlock(&all->lock);
}

static enum status commit(struct tail *t, int64_t position, struct err *err)
{
    struct client_try try_;
    struct ctl *k = t->all->k;
    Event__CommitRequest req = EVENT__COMMIT_REQUEST__INIT;
    AUTO(rpc_message_free_p) Event__Consumer *r = NULL;
    req.topic = client_str(t->topic);
    req.name = client_str(t->all->consumer);
    req.position = position;
    enum status s = client_try_begin(&try_, k->c, CLIENT_LOGGED_IN, t->topic, 0, NULL, err);
    if (s != STATUS_OK)
        return s;
    return CLIENT_CALL(&try_, event_event_commit(client_rpc(k->c), &try_.opts, &req, &r, err), err);
}

// Where to begin: a number, so that what comes before the first event is not lost with a
// connection.
static enum status find_start(struct tail *t, struct err *err)
{
    struct tails *all = t->all;
    AUTO(rpc_message_free_p) Event__ConsumersReply *r = NULL;
    enum status s =
        ask_consumers(all->k, t->topic, all->consumer ? all->consumer : "", false, &r, err);
    if (s != STATUS_OK)
        return s;
    bool is_known = all->consumer && r->n_consumers > 0;
    int64_t next = is_known        ? r->consumers[0]->position + 1
                   : all->from < 0 ? r->next_seq
                                   : all->from;
    if (all->consumer && !is_known && all->from < 0)
        s = commit(t, next - 1, err);
    if (is_known)
        t->since_wall_ms = 0;
    pthread_mutex_lock(&all->lock);
    t->next = next;
    t->committed = next - 1;
    pthread_mutex_unlock(&all->lock);
    return s;
}

static enum status take_event(struct tail *t, Event__EventRecord *e, struct err *err)
{
    struct tails *all = t->all;
    pthread_mutex_lock(&all->lock);
    enum status s = print_event(all->k, e, all->n > 1);
    if (s == STATUS_OK)
        t->next = e->seq + 1;
    else
        (void)err_set(err, s, "%s", all->k->err.msg);
    pthread_cond_signal(&all->printed);
    pthread_mutex_unlock(&all->lock);
    t->since_wall_ms = 0;
    return s;
}

static enum status pump(struct tail *t, struct rpc_stream *st, struct err *err)
{
    for (enum status s = STATUS_OK; s == STATUS_OK;) {
        AUTO(rpc_message_free_p) Event__EventRecord *e = NULL;
        s = event_event_read_recv(st, &e, err);
        if (s == STATUS_OK)
            s = e ? take_event(t, e, err)
                  : err_set(err, STATUS_UNAVAILABLE, "%s: the stream of events ended", t->topic);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

// One connection's worth.
static enum status follow_once(struct tail *t, struct err *err)
{
    struct tails *all = t->all;
    struct client_try try_;
    struct rpc_stream *st = NULL;
    struct range r = {.from = t->next, .since_wall_ms = t->since_wall_ms, .follow = true};
    enum status s =
        client_try_begin(&try_, all->k->c, CLIENT_LOGGED_IN, t->topic, FOLLOW_MS, NULL, err);
    if (s == STATUS_OK)
        s = open_read(all->k, &try_, t->topic, &r, &st, err);
    if (s != STATUS_OK)
        return s;
    pthread_mutex_lock(&all->lock);
    t->stream = st;
    bool ending = all->is_ending;
    pthread_mutex_unlock(&all->lock);
    s = ending ? err_set(err, STATUS_CANCELLED, "ending") : pump(t, st, err);
    pthread_mutex_lock(&all->lock);
    t->stream = NULL;
    pthread_mutex_unlock(&all->lock);
    rpc_stream_free(st);
    // The rights may have changed: with a new token it may go on.
    if (s == STATUS_UNAUTHENTICATED && t->n_refused++ < MAX_REFUSALS &&
        client_try_again(&try_, &s, err))
        s = STATUS_UNAVAILABLE;
    return s;
}

// True: it may work again later.
static bool is_passing(enum status s)
{
    return s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED;
}

static enum status back_off(struct tails *all, unsigned n, struct err *err)
{
    return client_backoff_default(all->k->c, n < MAX_FIRST_TRIES ? n : MAX_FIRST_TRIES, err);
}

static enum status wait_to_retry(struct tail *t, unsigned n, enum status s, struct err *err)
{
    if (n == 1) // the first time it may have been a restart
        fprintf(stderr, "mediactl: %s: %s; trying again\n", t->topic, err->msg);
    return back_off(t->all, n, err) == STATUS_OK ? s : STATUS_CANCELLED;
}

static enum status find_start_patiently(struct tail *t, struct err *err)
{
    for (unsigned n = 0;; n++) {
        enum status s = find_start(t, err);
        if (!is_passing(s) || n == MAX_FIRST_TRIES)
            return s;
        if (back_off(t->all, n, err) != STATUS_OK)
            return STATUS_CANCELLED;
    }
}

// Gives up at the start only: what has worked once will again.
static enum status follow(struct tail *t, struct err *err)
{
    enum status s = find_start_patiently(t, err);
    for (unsigned n = 0; (s == STATUS_OK || is_passing(s)) && !is_ending(t->all); n++) {
        int64_t before = t->next, began_ms = time_mono_ms();
        s = follow_once(t, err);
        if (t->next != before || time_mono_ms() - began_ms > LASTED_MS)
            n = t->n_refused = 0;
        if (is_passing(s))
            s = wait_to_retry(t, n, s, err);
    }
    return s;
}

static void *tail_thread(void *ud)
{
    struct tail *t = ud;
    t->status = follow(t, &t->err);
    end_all(t->all);
    return NULL;
}

// ---- positions ----

// With the lock held: one that has printed more than it has committed.
static struct tail *uncommitted(struct tails *all)
{
    for (size_t i = 0; i < all->n; i++)
        if (all->one[i].next - 1 > all->one[i].committed)
            return &all->one[i];
    return NULL;
}

static enum status commit_until_done(struct tail *t, int64_t position, struct err *err)
{
    for (unsigned n = 0;; n++) {
        enum status s = commit(t, position, err);
        if (!is_passing(s) || is_ending(t->all))
            return s;
        if (back_off(t->all, n, err) != STATUS_OK)
            return STATUS_CANCELLED;
    }
}

static enum status commit_all(struct tails *all, struct err *err)
{
    enum status s = STATUS_OK;
    pthread_mutex_lock(&all->lock);
    for (struct tail *t; s == STATUS_OK && ((t = uncommitted(all)) || !all->is_ending);) {
        if (!t) {
            pthread_cond_wait(&all->printed, &all->lock);
            continue;
        }
        int64_t position = t->next - 1;
        pthread_mutex_unlock(&all->lock);
        s = commit_until_done(t, position, err);
        pthread_mutex_lock(&all->lock);
        if (s == STATUS_OK)
            t->committed = position;
    }
    pthread_mutex_unlock(&all->lock);
    return s;
}

static void *commit_thread(void *ud)
{
    struct tails *all = ud;
    all->commit_status = commit_all(all, &all->commit_err);
    end_all(all);
    return NULL;
}

// ---- the command ----

static enum status result(struct tails *all)
{
    // The first that did not end because another one had.
    for (size_t i = 0; i < all->n; i++)
        if (all->one[i].status != STATUS_OK && all->one[i].status != STATUS_CANCELLED)
            return err_set(&all->k->err, all->one[i].status, "%s", all->one[i].err.msg);
    if (all->commit_status != STATUS_OK)
        return err_set(&all->k->err, all->commit_status, "%s", all->commit_err.msg);
    return err_set(&all->k->err, STATUS_CANCELLED, "cancelled");
}

static enum status run_tails(struct tails *all)
{
    pthread_t committer;
    size_t n = 0;
    bool commits = all->consumer && pthread_create(&committer, NULL, commit_thread, all) == 0;
    if (all->consumer && !commits)
        return err_set(&all->k->err, STATUS_RESOURCE_EXHAUSTED, "cannot start a thread");
    while (n < all->n && pthread_create(&all->one[n].thread, NULL, tail_thread, &all->one[n]) == 0)
        n++;
    if (n < all->n) {
        all->one[n].status =
            err_set(&all->one[n].err, STATUS_RESOURCE_EXHAUSTED, "cannot start a thread");
        end_all(all);
    }
    for (size_t i = 0; i < n; i++)
        pthread_join(all->one[i].thread, NULL);
    if (commits)
        pthread_join(committer, NULL);
    return result(all);
}

static enum status add_topic(struct ctl *k, struct tails *all, const char *topic)
{
    for (size_t i = 0; i < all->n; i++)
        if (str_eq(all->one[i].topic, topic))
            return ctl_misused(k, "topic %s is named twice", topic);
    all->one[all->n++].topic = topic; // the command takes no more than there is room for
    return STATUS_OK;
}

static enum status cmd_tail(struct ctl *k)
{
    struct tails all = {.k = k, .consumer = k->opt[OPT_CONSUMER]};
    int64_t since_ms = 0;
    enum status s =
        ctl_number(k, OPT_FROM, -1, INT64_MAX, ctl_has(k, OPT_SINCE) ? 0 : -1, &all.from, &k->err);
    if (s == STATUS_OK)
        s = parse_since(k, &since_ms);
    if (s == STATUS_OK && ctl_has(k, OPT_FROM) && ctl_has(k, OPT_SINCE))
        s = ctl_misused(k, "give --from or --since, not both");
    for (size_t i = 0; s == STATUS_OK && i < k->n_args; i++)
        s = add_topic(k, &all, k->args[i]);
    if (s == STATUS_OK && (all.n == 0 || ctl_has(k, OPT_TOPIC)))
        s = add_topic(k, &all, ctl_has(k, OPT_TOPIC) ? k->opt[OPT_TOPIC] : "transcode");
    if (s != STATUS_OK)
        return s;
    for (size_t i = 0; i < all.n; i++) {
        all.one[i].all = &all;
        all.one[i].since_wall_ms = since_ms;
    }
    pthread_mutex_init(&all.lock, NULL);
    pthread_cond_init(&all.printed, NULL);
    s = run_tails(&all);
    pthread_cond_destroy(&all.printed);
    pthread_mutex_destroy(&all.lock);
    return s;
}

// ---------------------------------------------------------------- read

static enum status read_events(struct ctl *k, struct client_try *t, const struct range *r,
                               int64_t limit, int64_t *n)
{
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    enum status s = open_read(k, t, k->args[0], r, &st, &k->err);
    while (s == STATUS_OK && *n < limit) {
        AUTO(rpc_message_free_p) Event__EventRecord *e = NULL;
        s = event_event_read_recv(st, &e, &k->err);
        if (s == STATUS_OK && !e)
            break;
        if (s == STATUS_OK)
            s = print_event(k, e, false);
        *n += s == STATUS_OK;
    }
    return s;
}

static enum status cmd_read(struct ctl *k)
{
    struct client_try t;
    struct range r = {.follow = false};
    int64_t limit, n = 0;
    enum status s = ctl_number(k, OPT_FROM, 0, INT64_MAX, 0, &r.from, &k->err);
    if (s == STATUS_OK)
        s = ctl_number(k, OPT_LIMIT, 1, INT64_MAX, READ_LIMIT, &limit, &k->err);
    if (s == STATUS_OK)
        s = parse_since(k, &r.since_wall_ms);
    if (s == STATUS_OK)
        s = client_try_begin(&t, k->c, CLIENT_LOGGED_IN, k->args[0], FOLLOW_MS, NULL, &k->err);
    if (s != STATUS_OK)
        return s;
    do
        s = read_events(k, &t, &r, limit, &n);
    while (n == 0 && client_try_again(&t, &s, &k->err));
    return s;
}

// ---------------------------------------------------------------- consumers, forget

static void add_consumer(struct table *t, const Event__ConsumersReply *r, const Event__Consumer *c)
{
    char when[TIME_RFC3339_SIZE] = "-";
    int64_t from = c->position + 1 > r->oldest_seq ? c->position + 1 : r->oldest_seq;
    if (c->updated)
        time_rfc3339(when, c->updated->seconds * 1000);
    table_add(t, "%s", c->topic);
    table_add(t, "%s", c->name);
    table_add(t, "%s", c->owner);
    table_add(t, "%" PRId64, c->position);
    table_add(t, "%" PRId64, r->next_seq - from);
    table_add(t, "%" PRId64, from - c->position - 1);
    table_add(t, "%s", when);
}

static enum status list_topic(struct ctl *k, struct table *t, const char *topic)
{
    AUTO(rpc_message_free_p) Event__ConsumersReply *r = NULL;
    enum status s = ask_consumers(k, topic, "", ctl_has(k, OPT_ALL), &r, &k->err);
    if (s != STATUS_OK)
        return s;
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    ctl_tidy(&r->base);
    for (size_t i = 0; i < r->n_consumers; i++)
        add_consumer(t, r, r->consumers[i]);
    return STATUS_OK;
}

static enum status cmd_consumers(struct ctl *k)
{
    static const char *const heads[] = {"TOPIC", "NAME", "OWNER",  "POSITION",
                                        "LAG",   "LOST", "UPDATED"};
    struct table t;
    struct err print_err = ERR_INIT;
    enum status s = STATUS_OK;
    size_t n = k->n_args ? k->n_args : N_ELEMENTS(all_topics);
    table_heads(&t, heads, ctl_has(k, OPT_JSON) ? 0 : N_ELEMENTS(heads));
    for (size_t i = 0; s == STATUS_OK && i < n; i++)
        s = list_topic(k, &t, k->n_args ? k->args[i] : all_topics[i]);
    enum status printed = table_print(&t, stdout, &print_err);
    if (s == STATUS_OK && printed != STATUS_OK)
        s = err_set(&k->err, printed, "%s", print_err.msg);
    return s;
}

static enum status cmd_forget(struct ctl *k)
{
    Event__ForgetRequest req = EVENT__FORGET_REQUEST__INIT;
    AUTO(rpc_message_free_p) Event__ForgetReply *r = NULL;
    req.topic = k->args[0];
    req.name = k->args[1];
    req.owner = client_str(k->opt[OPT_OWNER]);
    enum status s = CTL_CALL(k, event_event_forget, k->args[0], &req, &r);
    return s == STATUS_OK && ctl_has(k, OPT_JSON) ? ctl_print_message(k, &r->base) : s;
}

static const struct command commands[] = {
    {"events tail", "[TOPIC..]", 0, MAX_TOPICS - 1,
     ALLOW(OPT_TOPIC) | ALLOW(OPT_FROM) | ALLOW(OPT_SINCE) | ALLOW(OPT_SUBJECT) |
         ALLOW(OPT_CONSUMER),
     CONNECTED, cmd_tail, "follow what happens; with --json one object per line"},
    {"events read", "TOPIC", 1, 1,
     ALLOW(OPT_FROM) | ALLOW(OPT_SINCE) | ALLOW(OPT_LIMIT) | ALLOW(OPT_SUBJECT), CONNECTED,
     cmd_read, "what has happened"},
    {"events consumers", "[TOPIC..]", 0, MAX_TOPICS, ALLOW(OPT_ALL), CONNECTED, cmd_consumers,
     "positions that are kept, and how far they are behind"},
    {"events forget", "TOPIC NAME", 2, 2, ALLOW(OPT_OWNER), CONNECTED, cmd_forget,
     "forget a position"},
};
const struct command_group event_commands = {commands, N_ELEMENTS(commands)};
