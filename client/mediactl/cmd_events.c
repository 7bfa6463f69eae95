// events tail: follows a topic, across lost connections, without a gap.
#include <inttypes.h>
#include <string.h>

#include "cauce/event.rpc.h"
#include "ctl.h"
#include "json/proto.h"

enum { FOLLOW_MS = 10 * 60 * 1000 };

static enum status print_event(struct ctl *k, Event__EventRecord *e)
{
    if (ctl_has(k, OPT_JSON)) {
        enum status s = ctl_print_message(k, &e->base);
        fflush(stdout);
        return s;
    }
    ctl_tidy(&e->base);
    char when[TIME_RFC3339_SIZE] = "-";
    if (e->time)
        time_rfc3339(when, e->time->seconds * 1000 + e->time->nanos / 1000000);
    printf("%6" PRId64 "  %s  %-18s %s  %s\n", e->seq, when, e->kind, e->subject, e->data);
    fflush(stdout);
    return STATUS_OK;
}

// One subscription. *next moves with what was printed.
static enum status follow(struct ctl *k, const char *topic, int64_t *next)
{
    struct client_try t;
    enum status s = client_try_begin(&t, k->c, CLIENT_LOGGED_IN, topic, FOLLOW_MS, NULL, &k->err);
    if (s != STATUS_OK)
        return s;
    Event__ReadRequest req = EVENT__READ_REQUEST__INIT;
    req.topic = client_str(topic);
    req.from_seq = *next;
    req.follow = 1;
    req.subject = client_str(k->opt[OPT_SUBJECT]);
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    s = event_event_read_open(client_rpc(k->c), &t.opts, &req, &st, &k->err);
    while (s == STATUS_OK) {
        AUTO(rpc_message_free_p) Event__EventRecord *e = NULL;
        s = event_event_read_recv(st, &e, &k->err);
        if (s == STATUS_OK && !e)
            return err_set(&k->err, STATUS_UNAVAILABLE, "the event stream ended");
        if (s == STATUS_OK)
            s = print_event(k, e);
        if (s == STATUS_OK)
            *next = e->seq + 1;
    }
    return s;
}

static enum status cmd_tail(struct ctl *k)
{
    const char *topic = ctl_has(k, OPT_TOPIC) ? k->opt[OPT_TOPIC] : "transcode";
    int64_t next;
    enum status s = ctl_number(k, OPT_FROM, -1, INT64_MAX, -1, &next, &k->err);
    for (unsigned n = 0; s == STATUS_OK; n++) {
        int64_t before = next, began_ms = time_mono_ms();
        s = follow(k, topic, &next);
        if (s != STATUS_UNAVAILABLE && s != STATUS_DEADLINE_EXCEEDED)
            return s;
        if (next != before || time_mono_ms() - began_ms > 10000)
            n = 0;
        if (n == 8)
            return s;
        s = client_backoff_default(k->c, n, &k->err);
    }
    return s;
}

static const struct command commands[] = {
    {"events tail", "", 0, 0, ALLOW(OPT_TOPIC) | ALLOW(OPT_FROM) | ALLOW(OPT_SUBJECT), CONNECTED,
     cmd_tail, "follow what happens; with --json one object per line"},
};
const struct command_group event_commands = {commands, N_ELEMENTS(commands)};
