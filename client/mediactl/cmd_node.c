// node ls, info, health, channels, calls, methods: what the processes do just now.
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/time.h"
#include "cauce/node.rpc.h"
#include "ctl.h"

enum { REDRAW_MS = 1000, WATCH_MS = 24 * 3600 * 1000, MAX_WATCHED = 64, MAX_DRAWN_BYTES = 8 << 20 };

static const char *node_arg(const struct ctl *k)
{
    return k->n_args ? k->args[0] : NULL;
}

// "1.2 MB"
static const char *bytes_text(char dst[16], int64_t n)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double v = (double)n;
    size_t u = 0;
    for (; v >= 1000 && u + 1 < N_ELEMENTS(units); u++)
        v /= 1000;
    snprintf(dst, 16, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return dst;
}

// "850 ms", "12.3 s", "4:05", "2:10:00"
static const char *span_text(char dst[CTL_TIME_SIZE], int64_t ms)
{
    if (ms < 0)
        snprintf(dst, CTL_TIME_SIZE, "-");
    else if (ms < 1000)
        snprintf(dst, CTL_TIME_SIZE, "%d ms", (int)ms);
    else if (ms < 60000)
        snprintf(dst, CTL_TIME_SIZE, "%.1f s", (double)ms / 1000);
    else
        ctl_duration(dst, ms * 1000);
    return dst;
}

// A value of an enum without the prefix that its names share: CHANNEL_READY is "ready".
static const char *word_of(const ProtobufCEnumDescriptor *d, int v, size_t prefix)
{
    const ProtobufCEnumValue *e = protobuf_c_enum_descriptor_get_value(d, v);
    return e && strlen(e->name) > prefix ? e->name + prefix : "?";
}

static const char *serving_word(Node__Serving v)
{
    return v == NODE__SERVING__SERVING_UNKNOWN ? "UNREACHABLE"
                                               : word_of(&node__serving__descriptor, (int)v, 0);
}

// ---------------------------------------------------------------- once, or live

// Ask and print one picture.
typedef enum status (*draw_fn)(struct ctl *k, FILE *f);

static enum status draw_over(struct ctl *k, draw_fn draw)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return err_set(&k->err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = draw(k, f);
    fclose(f);
    // One write, from the top: the picture does not flicker.
    if (s == STATUS_OK)
        printf("%s%s", isatty(STDOUT_FILENO) && !ctl_has(k, OPT_JSON) ? "\033[H\033[2J" : "", text);
    fflush(stdout);
    free(text);
    return s;
}

static enum status show(struct ctl *k, draw_fn draw)
{
    if (!ctl_has(k, OPT_WATCH))
        return draw(k, stdout);
    enum status s = STATUS_OK;
    while (s == STATUS_OK) {
        s = draw_over(k, draw);
        if (s == STATUS_OK)
            s = client_wait_ms(k->c, REDRAW_MS, &k->err);
    }
    return s;
}

static enum status print_json(struct ctl *k, const ProtobufCMessage *m, FILE *f)
{
    struct buf b;
    buf_init(&b, MAX_DRAWN_BYTES);
    enum status s = ctl_put_message(k, m, &b);
    if (s == STATUS_OK)
        fprintf(f, "%s\n", buf_str(&b));
    buf_done(&b);
    return s;
}

// ---------------------------------------------------------------- ls, info

static enum status draw_nodes(struct ctl *k, FILE *f)
{
    static const char *const heads[] = {"NODE",  "ROLE", "KIND",  "STATUS", "MS",     "UP",
                                        "CALLS", "OPEN", "CONNS", "MEMORY", "VERSION"};
    Node__ClusterRequest req = NODE__CLUSTER_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__ClusterReply *r = NULL;
    enum status s = CTL_CALL(k, node_node_cluster, NULL, &req, &r);
    if (s != STATUS_OK)
        return s;
    if (ctl_has(k, OPT_JSON))
        return print_json(k, &r->base, f);
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_nodes; i++) {
        const Node__NodeStatus *n = r->nodes[i];
        const Node__InfoReply empty = NODE__INFO_REPLY__INIT, *info = n->info ? n->info : &empty;
        char up[CTL_TIME_SIZE], mem[16];
        table_add(&t, "%s", n->node_id);
        table_add(&t, "%s", n->role);
        table_add(&t, "%s", n->kind);
        table_add(&t, "%s", serving_word(n->status));
        table_add(&t, "%.1f", (double)n->latency_us / 1000);
        table_add(&t, "%s", n->info ? span_text(up, info->uptime_ms) : "-");
        table_add(&t, "%" PRId64, info->calls_total);
        table_add(&t, "%" PRId64, info->calls_open);
        table_add(&t, "%" PRId64, info->connections);
        table_add(&t, "%s", bytes_text(mem, info->rss_bytes));
        table_add(&t, "%s", info->version);
    }
    return table_print(&t, f, &k->err);
}

static enum status cmd_ls(struct ctl *k)
{
    return show(k, draw_nodes);
}

static enum status cmd_info(struct ctl *k)
{
    Node__InfoRequest req = NODE__INFO_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__InfoReply *r = NULL;
    enum status s = CTL_CALL(k, node_node_info, node_arg(k), &req, &r);
    if (s != STATUS_OK)
        return s;
    if (ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    char up[CTL_TIME_SIZE], in[16], out[16], mem[16];
    printf("node %s, %s%s%s, version %s, up %s\n"
           "calls %" PRId64 ", open %" PRId64 ", connections %" PRId64 "\n"
           "received %s, sent %s, memory %s\n",
           r->node_id, r->role, r->kind[0] ? " of " : "", r->kind, r->version,
           span_text(up, r->uptime_ms), r->calls_total, r->calls_open, r->connections,
           bytes_text(in, r->bytes_in), bytes_text(out, r->bytes_out),
           bytes_text(mem, r->rss_bytes));
    return STATUS_OK;
}

// ---------------------------------------------------------------- channels

static enum status print_channels(struct ctl *k, const Node__ChannelsReply *r, FILE *f)
{
    static const char *const heads[] = {"CHANNEL", "TO",     "STATE",  "BREAKER",   "OPEN",
                                        "CALLS",   "ERRORS", "AGAIN",  "HEDGED",    "IN",
                                        "OUT",     "AGE",    "ACK MS", "LAST ERROR"};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_channels; i++) {
        const Node__Channel *c = r->channels[i];
        char in[16], out[16], age[CTL_TIME_SIZE];
        table_add(&t, "%s", c->name);
        table_add(&t, "%s", c->url);
        table_add(&t, "%s", word_of(&node__channel_state__descriptor, (int)c->state, 8));
        table_add(&t, "%s", word_of(&node__breaker_state__descriptor, (int)c->breaker, 8));
        table_add(&t, "%" PRId64, c->calls_open);
        table_add(&t, "%" PRId64, c->calls);
        table_add(&t, "%" PRId64, c->errors);
        table_add(&t, "%" PRId64, c->retries);
        table_add(&t, "%" PRId64, c->hedges);
        table_add(&t, "%s", bytes_text(in, c->bytes_in));
        table_add(&t, "%s", bytes_text(out, c->bytes_out));
        table_add(&t, "%s", span_text(age, c->age_ms));
        table_add(&t, "%.2f", (double)c->rtt_us / 1000);
        table_add(&t, "%s", c->last_error);
    }
    return table_print(&t, f, &k->err);
}

static enum status print_connections(struct ctl *k, const Node__ChannelsReply *r, FILE *f)
{
    static const char *const heads[] = {"CONNECTION", "ROLE", "THROUGH", "AGE",    "OPEN",
                                        "IN",         "OUT",  "RECORDS", "ACK MS", ""};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_connections; i++) {
        const Node__Connection *c = r->connections[i];
        char in[16], out[16], age[CTL_TIME_SIZE];
        table_add(&t, "%s", c->peer[0] ? c->peer : c->remote[0] ? c->remote : "client");
        table_add(&t, "%s", c->peer_role);
        table_add(&t, "%s", c->address);
        table_add(&t, "%s", span_text(age, c->age_ms));
        table_add(&t, "%" PRId64, c->calls_open);
        table_add(&t, "%s", bytes_text(in, c->bytes_in));
        table_add(&t, "%s", bytes_text(out, c->bytes_out));
        table_add(&t, "%" PRId64 "/%" PRId64, c->records_in, c->records_out);
        table_add(&t, "%.2f", (double)c->rtt_us / 1000);
        table_add(&t, "%s", c->draining ? "draining" : c->half_open ? "half open" : "");
    }
    return table_print(&t, f, &k->err);
}

static enum status draw_channels(struct ctl *k, FILE *f)
{
    Node__ChannelsRequest req = NODE__CHANNELS_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__ChannelsReply *r = NULL;
    enum status s = CTL_CALL(k, node_node_channels, node_arg(k), &req, &r);
    if (s != STATUS_OK)
        return s;
    if (ctl_has(k, OPT_JSON))
        return print_json(k, &r->base, f);
    fprintf(f, "%s knows %zu endpoints and has accepted %zu connections\n", r->node_id,
            r->n_channels, r->n_connections);
    s = r->n_channels ? print_channels(k, r, f) : STATUS_OK;
    return s == STATUS_OK && r->n_connections ? print_connections(k, r, f) : s;
}

static enum status cmd_channels(struct ctl *k)
{
    return show(k, draw_channels);
}

// ---------------------------------------------------------------- calls

static enum status draw_calls(struct ctl *k, FILE *f)
{
    static const char *const heads[] = {"METHOD", "WAY", "STATE",  "AGE",  "LEFT",
                                        "IN",     "OUT", "CALLER", "TRACE"};
    Node__CallsRequest req = NODE__CALLS_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__CallsReply *r = NULL;
    enum status s = CTL_CALL(k, node_node_calls, node_arg(k), &req, &r);
    if (s != STATUS_OK)
        return s;
    if (ctl_has(k, OPT_JSON))
        return print_json(k, &r->base, f);
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_calls; i++) {
        const Node__CallStatus *c = r->calls[i];
        char in[16], out[16], age[CTL_TIME_SIZE], left[CTL_TIME_SIZE];
        table_add(&t, "%s", c->method);
        table_add(&t, "%s", word_of(&node__call_direction__descriptor, (int)c->direction, 5));
        table_add(&t, "%s", word_of(&node__call_state__descriptor, (int)c->state, 5));
        table_add(&t, "%s", span_text(age, c->age_ms));
        table_add(&t, "%s", span_text(left, c->deadline_ms));
        table_add(&t, "%s", bytes_text(in, c->bytes_in));
        table_add(&t, "%s", bytes_text(out, c->bytes_out));
        table_add(&t, "%s", c->caller);
        table_add(&t, "%s", c->trace_id);
    }
    fprintf(f, "%" PRId64 " calls open at %s\n", r->total, r->node_id);
    return table_print(&t, f, &k->err);
}

static enum status cmd_calls(struct ctl *k)
{
    return show(k, draw_calls);
}

// ---------------------------------------------------------------- methods

// The bucket's upper end below which this share of the calls lies; -1: none were counted.
static double quantile_ms(const Node__Histogram *h, const Node__MethodsReply *r, double share)
{
    int64_t total = 0, sum = 0;
    for (size_t i = 0; h && i < h->n_counts; i++)
        total += h->counts[i];
    for (size_t i = 0; h && total && i < h->n_counts; i++) {
        sum += h->counts[i];
        if ((double)sum >= share * (double)total)
            return i < r->n_bounds_us ? (double)r->bounds_us[i] / 1000
                                      : (double)r->bounds_us[r->n_bounds_us - 1] / 1000;
    }
    return -1;
}

static void add_ms(struct table *t, double ms)
{
    if (ms < 0)
        table_add(t, "-");
    else
        table_add(t, "%.1f", ms);
}

static void add_failures(struct table *t, const Node__MethodStats *m)
{
    struct buf b;
    buf_init(&b, 4096);
    for (size_t i = 0; i < m->n_failures; i++)
        buf_printf(&b, "%s%s %" PRId64, i ? ", " : "", m->failures[i]->status,
                   m->failures[i]->count);
    table_add(t, "%s", buf_str(&b));
    buf_done(&b);
}

static enum status draw_methods(struct ctl *k, FILE *f)
{
    static const char *const heads[] = {"METHOD", "CALLS",  "NOW", "SHED", "QUEUE P99 MS",
                                        "P50 MS", "P99 MS", "IN",  "OUT",  "FAILED"};
    Node__MethodsRequest req = NODE__METHODS_REQUEST__INIT;
    req.unused = ctl_has(k, OPT_UNUSED);
    AUTO(rpc_message_free_p) Node__MethodsReply *r = NULL;
    enum status s = CTL_CALL(k, node_node_methods, node_arg(k), &req, &r);
    if (s != STATUS_OK)
        return s;
    if (ctl_has(k, OPT_JSON))
        return print_json(k, &r->base, f);
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_methods; i++) {
        const Node__MethodStats *m = r->methods[i];
        char in[16], out[16];
        table_add(&t, "%s", m->name);
        table_add(&t, "%" PRId64, m->calls);
        table_add(&t, "%" PRId64, m->in_flight);
        table_add(&t, "%" PRId64, m->shed);
        add_ms(&t, r->n_bounds_us ? quantile_ms(m->queue, r, 0.99) : -1);
        add_ms(&t, r->n_bounds_us ? quantile_ms(m->handling, r, 0.5) : -1);
        add_ms(&t, r->n_bounds_us ? quantile_ms(m->handling, r, 0.99) : -1);
        table_add(&t, "%s", bytes_text(in, m->bytes_in));
        table_add(&t, "%s", bytes_text(out, m->bytes_out));
        add_failures(&t, m);
    }
    fprintf(f, "methods of %s\n", r->node_id);
    return table_print(&t, f, &k->err);
}

static enum status cmd_methods(struct ctl *k)
{
    return show(k, draw_methods);
}

// ---------------------------------------------------------------- health

static enum status print_health(struct ctl *k, const Node__ClusterReply *r)
{
    static const char *const heads[] = {"NODE", "ROLE", "KIND", "STATUS", "MS", "CALLS", "REASON"};
    struct table t;
    table_heads(&t, heads, N_ELEMENTS(heads));
    for (size_t i = 0; i < r->n_nodes; i++) {
        const Node__NodeStatus *n = r->nodes[i];
        table_add(&t, "%s", n->node_id);
        table_add(&t, "%s", n->role);
        table_add(&t, "%s", n->kind);
        table_add(&t, "%s", serving_word(n->status));
        table_add(&t, "%.1f", (double)n->latency_us / 1000);
        table_add(&t, "%" PRId64, n->info ? n->info->calls_total : 0);
        table_add(&t, "%s", n->reason);
    }
    return table_print(&t, stdout, &k->err);
}

// One node's watcher: a thread, because streams block.
struct watch {
    struct ctl *k;
    pthread_mutex_t *lock; // of standard output
    const char *node;
    pthread_t thread;
    struct err err;
};

static void print_change(struct watch *w, const char *status, const char *reason)
{
    char when[TIME_RFC3339_SIZE];
    time_rfc3339(when, time_wall_ms());
    pthread_mutex_lock(w->lock);
    if (ctl_has(w->k, OPT_JSON)) {
        struct buf b;
        buf_init(&b, 65536);
        buf_put_json_string(&b, reason, strlen(reason));
        printf("{\"time\":\"%s\",\"node\":\"%s\",\"status\":\"%s\",\"reason\":%s}\n", when, w->node,
               status, buf_str(&b));
        buf_done(&b);
    } else {
        printf("%s  %-16s %-12s %s\n", when, w->node, status, reason);
    }
    fflush(stdout);
    pthread_mutex_unlock(w->lock);
}

// One stream of changes, until it ends.
static enum status follow_health(struct watch *w, bool *ret_heard)
{
    struct client_try t;
    enum status s =
        client_try_begin(&t, w->k->c, CLIENT_IF_LOGGED_IN, w->node, WATCH_MS, NULL, &w->err);
    if (s != STATUS_OK)
        return s;
    Node__WatchRequest req = NODE__WATCH_REQUEST__INIT;
    AUTO(rpc_stream_free_p) struct rpc_stream *st = NULL;
    s = node_health_watch_open(client_rpc(w->k->c), &t.opts, &req, &st, &w->err);
    while (s == STATUS_OK) {
        AUTO(rpc_message_free_p) Node__CheckReply *r = NULL;
        s = node_health_watch_recv(st, &r, &w->err);
        if (s == STATUS_OK && !r)
            return err_set(&w->err, STATUS_UNAVAILABLE, "the node ended the watch");
        if (s != STATUS_OK)
            return s;
        *ret_heard = true;
        ctl_tidy(&r->base);
        print_change(w, serving_word(r->status), r->reason);
    }
    return s;
}

static void *watch_node(void *ud)
{
    struct watch *w = ud;
    enum status s;
    bool told = false;
    for (unsigned n = 0;; n++) {
        bool heard = false;
        s = follow_health(w, &heard);
        bool again = s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED;
        if (!again)
            break;
        if (heard || !told)
            print_change(w, serving_word(NODE__SERVING__SERVING_UNKNOWN), w->err.msg);
        told = true;
        n = heard ? 0 : n;
        s = client_backoff_default(w->k->c, n, &w->err);
        if (s != STATUS_OK)
            break;
    }
    return NULL;
}

static enum status watch_nodes(struct ctl *k, const char *const *nodes, size_t n)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct watch watches[MAX_WATCHED];
    size_t n_started = 0;
    enum status s = STATUS_OK;
    for (; n_started < n && n_started < MAX_WATCHED; n_started++) {
        struct watch *w = &watches[n_started];
        *w = (struct watch){.k = k, .lock = &lock, .node = nodes[n_started], .err = ERR_INIT};
        int e = pthread_create(&w->thread, NULL, watch_node, w);
        if (e) {
            s = err_errno(&k->err, e, "start a thread");
            cauce_cancel(k->c);
            break;
        }
    }
    for (size_t i = 0; i < n_started; i++) {
        pthread_join(watches[i].thread, NULL);
        if (s == STATUS_OK && watches[i].err.code != STATUS_OK) {
            k->err = watches[i].err;
            s = watches[i].err.code;
        }
    }
    return s;
}

static enum status watch_health(struct ctl *k, const Node__ClusterReply *r)
{
    const char *nodes[MAX_WATCHED];
    size_t n = 0;
    for (; n < r->n_nodes && n < MAX_WATCHED; n++)
        nodes[n] = r->nodes[n]->node_id;
    return watch_nodes(k, nodes, n);
}

// Leaves in the reply only the node that was named.
static enum status keep_named(struct ctl *k, Node__ClusterReply *r)
{
    for (size_t i = 0; i < r->n_nodes; i++)
        if (strcmp(r->nodes[i]->node_id, k->args[0]) == 0) {
            r->nodes[0] = r->nodes[i];
            r->n_nodes = 1;
            return STATUS_OK;
        }
    return err_set(&k->err, STATUS_NOT_FOUND, "no node is called %s: see mediactl node ls",
                   k->args[0]);
}

// Succeeds when every node that was asked about serves, so that scripts can ask.
static enum status cmd_health(struct ctl *k)
{
    Node__ClusterRequest req = NODE__CLUSTER_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__ClusterReply *r = NULL;
    enum status s = CTL_CALL(k, node_node_cluster, NULL, &req, &r);
    if (s == STATUS_OK && k->n_args)
        s = keep_named(k, r);
    if (s == STATUS_OK && ctl_has(k, OPT_WATCH))
        return watch_health(k, r);
    if (s == STATUS_OK)
        s = ctl_has(k, OPT_JSON) ? ctl_print_message(k, &r->base) : print_health(k, r);
    for (size_t i = 0; s == STATUS_OK && i < r->n_nodes; i++)
        if (r->nodes[i]->status != NODE__SERVING__SERVING)
            s = err_set(&k->err, STATUS_UNAVAILABLE, "node %s does not serve: %s",
                        r->nodes[i]->node_id, r->nodes[i]->reason);
    return s;
}

static const struct command commands[] = {
    {"node ls", "", 0, 0, ALLOW(OPT_WATCH), CONNECTED, cmd_ls, "every node (admin)"},
    {"node info", "[NODE]", 0, 1, 0, CONNECTED, cmd_info, "one node, else the gateway (admin)"},
    {"node health", "[NODE]", 0, 1, ALLOW(OPT_WATCH), CONNECTED, cmd_health,
     "every node or this one, asked just now; --watch: each change (admin)"},
    {"node channels", "[NODE]", 0, 1, ALLOW(OPT_WATCH), CONNECTED, cmd_channels,
     "connections that a node made and accepted (admin)"},
    {"node calls", "[NODE]", 0, 1, ALLOW(OPT_WATCH), CONNECTED, cmd_calls,
     "calls that are open at a node (admin)"},
    {"node methods", "[NODE]", 0, 1, ALLOW(OPT_WATCH) | ALLOW(OPT_UNUSED), CONNECTED, cmd_methods,
     "what each method of a node has done (admin)"},
};
const struct command_group node_commands = {commands, N_ELEMENTS(commands)};
