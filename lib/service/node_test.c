// What every process says of itself (cauce.node.v1), asked by one node of another over real sealed
// connections.
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "cauce/node.rpc.h"
#include "cauce/store.rpc.h"
#include "crypto/crypto.h"
#include "reflect/reflect.h"
#include "service/internal.h"

enum { LONG_MS = 60000, MANY = 40 };

struct world {
    char dir[64];
    uint8_t operator_secret[64];
    struct instance asker, store; // gateway-1 asks store-1
    struct rpc_client *client;
    struct rpc_stream *watches[MANY + 1]; // freed at the end, also of a test that failed
    size_t n_watches;
    atomic_bool is_down; // the store's database
};
static struct world w;

// ---------------------------------------------------------------- two nodes

static bool store_ready(void *self, char *reason, size_t size)
{
    (void)self;
    if (atomic_load(&w.is_down))
        (void)str_copy(reason, size, "the database is away");
    return !atomic_load(&w.is_down);
}

static enum status fake_list(struct rpc_call *c, const Store__ListItemsRequest *req,
                             Store__ListItemsReply *ret, struct err *err)
{
    (void)c;
    (void)ret;
    return req->kind[0] ? err_set(err, STATUS_NOT_FOUND, "no kind %s", req->kind) : STATUS_OK;
}

static enum status start_store(struct svc *svc, const void *o, void **self, struct err *err)
{
    const struct store_catalog_handlers h = {.list = fake_list};
    (void)o;
    *self = &w;
    return store_catalog_serve(svc->server, &h, NULL, err);
}

static enum status start_asker(struct svc *svc, const void *o, void **self, struct err *err)
{
    (void)svc;
    (void)o;
    (void)self;
    (void)err;
    return STATUS_OK;
}

static const struct svc_role store_role = {.name = "store",
                                           .role = ROLE_NODE_STORE,
                                           .spec = {.section = "store", .usage = "store"},
                                           .options_size = sizeof(struct svc_options),
                                           .start = start_store,
                                           .ready = store_ready};
static const struct svc_role asker_role = {.name = "gateway",
                                           .role = ROLE_NODE_GATEWAY,
                                           .spec = {.section = "gateway", .usage = "gateway"},
                                           .options_size = sizeof(struct svc_options),
                                           .start = start_asker};

static void save(const char *name, const char *kind, const void *p, size_t n)
{
    AUTO(mem_free_p) char *path = mem_printf("%s/%s", w.dir, name);
    assert_int_equal(crypto_key_save(path, kind, p, n, NULL), STATUS_OK);
}

static void add_node(FILE *ini, const char *id, const char *role, unsigned number)
{
    struct chan_grant g = {.role = number,
                           .not_before_s = time_wall_ms() / 1000 - 60,
                           .not_after_s = time_wall_ms() / 1000 + 365 * 86400,
                           .serial = 1};
    uint8_t secret[32];
    char key[64], file[100];
    struct buf grant;
    crypto_dh_keypair(g.key, secret);
    snprintf(g.node_id, sizeof g.node_id, "%s", id);
    buf_init(&grant, 1024);
    assert_int_equal(chan_grant_sign(&grant, &g, w.operator_secret, NULL), STATUS_OK);
    snprintf(file, sizeof file, "%s.key", id);
    save(file, "cauce-x25519-secret", secret, 32);
    snprintf(file, sizeof file, "%s.grant", id);
    save(file, "cauce-grant", grant.data, grant.len);
    buf_done(&grant);
    str_b64(key, g.key, 32);
    fprintf(ini, "[%s]\nrole = %s\nurl = ipc://%s/%s.sock\nkey = %s\n", id, role, w.dir, id, key);
}

static void make_keys(void)
{
    uint8_t operator_key[32];
    char text[64], path[100];
    crypto_ed25519_keypair(operator_key, w.operator_secret);
    snprintf(path, sizeof path, "%s/nodes.ini", w.dir);
    FILE *ini = fopen(path, "we");
    assert_non_null(ini);
    str_b64(text, operator_key, 32);
    fprintf(ini, "[operator]\nkey = %s\n", text);
    add_node(ini, "gateway-1", "gateway", 13);
    add_node(ini, "store-1", "store", 11);
    assert_int_equal(fclose(ini), 0);
}

static void start(struct instance *in, const struct svc_role *role)
{
    char keys[] = "--keys";
    char *argv[] = {keys, w.dir};
    const struct role_word word = {.role = role};
    struct err err = ERR_INIT;
    *in = (struct instance){0};
    enum status s = instance_load_options(in, &word, true, NULL, 0, 2, argv, &err);
    if (s == STATUS_OK)
        s = instance_start(in, NULL, &err);
    if (s == STATUS_OK)
        s = instance_listen(in, &err);
    if (s != STATUS_OK)
        fail_msg("%s: %s", role->name, err.msg);
}

static void stop(struct instance *in)
{
    if (!in->role)
        return;
    instance_drain(in);
    instance_stop(in, time_deadline_in_ms(LONG_MS));
    instance_done(in);
    *in = (struct instance){0};
}

static int setup(void **state)
{
    struct err err = ERR_INIT;
    (void)state;
    w = (struct world){.client = NULL};
    assert_int_equal(crypto_init(NULL), STATUS_OK);
    snprintf(w.dir, sizeof w.dir, "/tmp/cauce-node-XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    make_keys();
    start(&w.store, &store_role);
    start(&w.asker, &asker_role);
    w.client = svc_client(&w.asker.svc, ROLE_NODE_STORE, "store-1", &err);
    assert_non_null(w.client);
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int teardown(void **state)
{
    (void)state;
    for (size_t i = 0; i < w.n_watches; i++)
        rpc_stream_free(w.watches[i]);
    stop(&w.asker);
    stop(&w.store);
    nftw(w.dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

static struct rpc_opts patient(void)
{
    return (struct rpc_opts){.deadline_us = time_deadline_in_ms(LONG_MS)};
}

// ---------------------------------------------------------------- Health.Watch

static struct rpc_stream *watch(void)
{
    Node__WatchRequest req = NODE__WATCH_REQUEST__INIT;
    const struct rpc_opts o = patient();
    struct rpc_stream *st = NULL;
    struct err err = ERR_INIT;
    if (node_health_watch_open(w.client, &o, &req, &st, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_true(w.n_watches < N_ELEMENTS(w.watches));
    return w.watches[w.n_watches++] = st;
}

static void unwatch(struct rpc_stream *st)
{
    for (size_t i = 0; i < w.n_watches; i++)
        if (w.watches[i] == st)
            w.watches[i] = w.watches[--w.n_watches];
    rpc_stream_free(st);
}

static void hears(struct rpc_stream *st, Node__Serving status, const char *reason)
{
    AUTO(rpc_message_free_p) Node__CheckReply *r = NULL;
    struct err err = ERR_INIT;
    if (node_health_watch_recv(st, &r, &err) != STATUS_OK || !r)
        fail_msg("the watch ended: %s", err.msg);
    assert_int_equal(r->status, status);
    assert_string_equal(r->reason, reason);
}

static void hears_the_end(struct rpc_stream *st)
{
    AUTO(rpc_message_free_p) Node__CheckReply *r = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(node_health_watch_recv(st, &r, &err), STATUS_UNAVAILABLE);
    assert_string_equal(err.msg, "the node is stopping");
}

static void test_watch_hears_the_state_each_change_and_the_end(void **state)
{
    (void)state;
    struct rpc_stream *st = watch();
    hears(st, NODE__SERVING__SERVING, "");
    atomic_store(&w.is_down, true);
    hears(st, NODE__SERVING__NOT_SERVING, "the database is away");
    struct rpc_stream *late = watch();
    hears(late, NODE__SERVING__NOT_SERVING, "the database is away");
    atomic_store(&w.is_down, false);
    hears(st, NODE__SERVING__SERVING, "");
    hears(late, NODE__SERVING__SERVING, "");
    instance_set_problem(&w.store, "the grant ends soon");
    hears(st, NODE__SERVING__SERVING, "the grant ends soon");
    hears(late, NODE__SERVING__SERVING, "the grant ends soon");
    instance_drain(&w.store);
    hears(st, NODE__SERVING__NOT_SERVING, "stopping");
    hears(late, NODE__SERVING__NOT_SERVING, "stopping");
    hears_the_end(st);
    hears_the_end(late);
}

static void test_watchers_come_and_go(void **state)
{
    (void)state;
    struct rpc_stream *all[MANY];
    for (int i = 0; i < MANY; i++)
        all[i] = watch();
    for (int i = 0; i < MANY; i++)
        hears(all[i], NODE__SERVING__SERVING, "");
    for (int i = 0; i < MANY; i += 2)
        unwatch(all[i]);
    atomic_store(&w.is_down, true);
    for (int i = 1; i < MANY; i += 2)
        hears(all[i], NODE__SERVING__NOT_SERVING, "the database is away");
    for (int i = 1; i < MANY; i += 2)
        unwatch(all[i]);
    struct rpc_stream *last = watch(); // after there was nobody
    hears(last, NODE__SERVING__NOT_SERVING, "the database is away");
    atomic_store(&w.is_down, false);
    hears(last, NODE__SERVING__SERVING, "");
    stop(&w.store); // with one that hears nothing more
}

// ---------------------------------------------------------------- Channels, Calls, Methods

static void test_channels_show_both_sides_of_a_connection(void **state)
{
    (void)state;
    Node__ChannelsRequest req = NODE__CHANNELS_REQUEST__INIT;
    const struct rpc_opts o = patient();
    struct err err = ERR_INIT;
    AUTO(rpc_message_free_p) Node__ChannelsReply *r = NULL;
    if (node_node_channels(w.client, &o, &req, &r, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_string_equal(r->node_id, "store-1");
    assert_int_equal(r->n_channels, 1); // of this process
    const Node__Channel *c = r->channels[0];
    assert_string_equal(c->name, "gateway-1>store-1");
    assert_true(str_ends_with(c->url, "/store-1.sock"));
    assert_string_equal(c->peer_role, "store");
    assert_int_equal(c->state, NODE__CHANNEL_STATE__CHANNEL_READY);
    assert_int_equal(c->breaker, NODE__BREAKER_STATE__BREAKER_CLOSED);
    assert_int_equal(c->calls_open, 1); // this one
    assert_int_equal(c->connects, 1);
    assert_true(c->bytes_out > 0);
    assert_int_equal(r->n_connections, 1);
    const Node__Connection *n = r->connections[0];
    assert_string_equal(n->peer, "gateway-1");
    assert_string_equal(n->peer_role, "gateway");
    assert_true(str_ends_with(n->address, "/store-1.sock"));
    assert_int_equal(n->calls_open, 1);
    assert_true(n->records_in > 0 && n->bytes_in > 0 && !n->draining && !n->half_open);
}

static void test_calls_show_what_is_open(void **state)
{
    (void)state;
    struct rpc_stream *st = watch();
    hears(st, NODE__SERVING__SERVING, "");
    Node__CallsRequest req = NODE__CALLS_REQUEST__INIT;
    const struct rpc_opts o = patient();
    struct err err = ERR_INIT;
    char prefix[] = "cauce.node.v1.Health.";
    req.prefix = prefix;
    AUTO(rpc_message_free_p) Node__CallsReply *r = NULL;
    if (node_node_calls(w.client, &o, &req, &r, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_string_equal(r->node_id, "store-1");
    assert_int_equal(r->total, 2);
    assert_int_equal(r->n_calls, 2);
    bool out_first = r->calls[0]->direction == NODE__CALL_DIRECTION__CALL_OUTGOING;
    const Node__CallStatus *in = r->calls[out_first], *out = r->calls[!out_first];
    assert_int_equal(in->direction, NODE__CALL_DIRECTION__CALL_INCOMING);
    assert_int_equal(out->direction, NODE__CALL_DIRECTION__CALL_OUTGOING);
    assert_string_equal(in->method, "cauce.node.v1.Health.Watch");
    assert_string_equal(out->method, "cauce.node.v1.Health.Watch");
    assert_string_equal(in->caller, "gateway-1");
    assert_true(str_ends_with(out->caller, "/store-1.sock"));
    assert_int_equal(in->state, NODE__CALL_STATE__CALL_STREAMING);
    assert_int_equal(out->state, NODE__CALL_STATE__CALL_RUNNING);
    assert_int_equal(strlen(in->trace_id), 32);
    assert_in_range(in->deadline_ms, 1, LONG_MS);
    assert_true(in->bytes_out > 0);

    Node__CallsRequest all = NODE__CALLS_REQUEST__INIT;
    AUTO(rpc_message_free_p) Node__CallsReply *every = NULL;
    assert_int_equal(node_node_calls(w.client, &o, &all, &every, &err), STATUS_OK);
    assert_in_range(every->total, 4, 6); // this one too; the one before may not be quite over
    for (size_t i = 1; i < every->n_calls; i++)
        assert_true(every->calls[i - 1]->age_ms >= every->calls[i]->age_ms);
}

static Node__MethodsReply *ask_methods(const char *prefix, bool unused)
{
    Node__MethodsRequest req = NODE__METHODS_REQUEST__INIT;
    const struct rpc_opts o = patient();
    Node__MethodsReply *r = NULL;
    struct err err = ERR_INIT;
    req.prefix = (char *)(uintptr_t)prefix;
    req.unused = unused;
    if (node_node_methods(w.client, &o, &req, &r, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_string_equal(r->node_id, "store-1");
    return r;
}

static void list_items(const char *kind, enum status want)
{
    Store__ListItemsRequest req = STORE__LIST_ITEMS_REQUEST__INIT;
    const struct rpc_opts o = patient();
    struct err err = ERR_INIT;
    AUTO(rpc_message_free_p) Store__ListItemsReply *r = NULL;
    req.kind = (char *)(uintptr_t)kind;
    assert_int_equal(store_catalog_list(w.client, &o, &req, &r, &err), want);
}

static int64_t sum_of(const Node__Histogram *h)
{
    int64_t n = 0;
    for (size_t i = 0; i < h->n_counts; i++)
        n += h->counts[i];
    return n;
}

static void test_methods_count_calls_failures_and_times(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++)
        list_items("", STATUS_OK);
    for (int i = 0; i < 2; i++)
        list_items("none", STATUS_NOT_FOUND);
    AUTO(rpc_message_free_p) Node__MethodsReply *r = ask_methods("cauce.store.v1.", false);
    assert_int_equal(r->n_methods, 1);
    const Node__MethodStats *m = r->methods[0];
    assert_string_equal(m->name, "cauce.store.v1.Catalog.List");
    assert_int_equal(m->calls, 7);
    assert_int_equal(m->in_flight, 0);
    assert_int_equal(m->shed, 0);
    assert_int_equal(m->n_failures, 1);
    assert_string_equal(m->failures[0]->status, "NOT_FOUND");
    assert_int_equal(m->failures[0]->count, 2);
    assert_int_equal(r->n_bounds_us + 1, m->queue->n_counts);
    assert_int_equal(r->n_bounds_us + 1, m->handling->n_counts);
    assert_int_equal(sum_of(m->queue), 7);
    assert_int_equal(sum_of(m->handling), 7);
    for (size_t i = 1; i < r->n_bounds_us; i++)
        assert_true(r->bounds_us[i] > r->bounds_us[i - 1]);
    assert_true(m->max_concurrent > 0 && m->max_queue_ms > 0 && !m->forwarded);

    AUTO(rpc_message_free_p) Node__MethodsReply *own = ask_methods("cauce.node.v1.Node.", true);
    assert_int_equal(own->n_methods, 4); // but for Cluster, which only gateways serve
    assert_string_equal(own->methods[0]->name, "cauce.node.v1.Node.Calls");
    assert_int_equal(own->methods[0]->calls, 0);
    assert_string_equal(own->methods[3]->name, "cauce.node.v1.Node.Methods");
    assert_int_equal(own->methods[3]->calls, 1);
    assert_int_equal(own->methods[3]->in_flight, 1); // this one
    AUTO(rpc_message_free_p) Node__MethodsReply *none = ask_methods("cauce.session.", true);
    assert_int_equal(none->n_methods, 0);
}

// ---------------------------------------------------------------- Reflection

static const Node__ServiceInfo *find_service(const Node__ListReply *r, const char *name)
{
    for (size_t i = 0; i < r->n_services; i++)
        if (str_eq(r->services[i]->name, name))
            return r->services[i];
    fail_msg("%s is not listed", name);
    return NULL;
}

static void test_reflection_lists_what_is_served_here(void **state)
{
    (void)state;
    Node__ListRequest req = NODE__LIST_REQUEST__INIT;
    const struct rpc_opts o = patient();
    struct err err = ERR_INIT;
    AUTO(rpc_message_free_p) Node__ListReply *r = NULL;
    if (node_reflection_list(w.client, &o, &req, &r, &err) != STATUS_OK)
        fail_msg("%s", err.msg);
    assert_string_equal(r->node_id, "store-1");
    assert_int_equal(r->n_services, 4);
    assert_int_equal(find_service(r, "cauce.node.v1.Node")->n_methods, 4);
    assert_int_equal(find_service(r, "cauce.node.v1.Health")->n_methods, 2);
    assert_int_equal(find_service(r, "cauce.node.v1.Reflection")->n_methods, 2);
    const Node__ServiceInfo *catalog = find_service(r, "cauce.store.v1.Catalog");
    assert_int_equal(catalog->n_methods, 1); // the others have no handler
    const Node__MethodInfo *m = catalog->methods[0];
    assert_string_equal(m->name, "cauce.store.v1.Catalog.List");
    assert_int_equal(m->kind, NODE__METHOD_KIND__UNARY);
    assert_string_equal(m->request, "cauce.store.v1.ListItemsRequest");
    assert_string_equal(m->reply, "cauce.store.v1.ListItemsReply");
    assert_string_equal(m->http, "GET /api/v1/items");
    assert_true(m->n_allow > 0 && m->idempotent && !m->forwarded);
    assert_string_equal(m->allow[0], "ANON");
}

static enum status describe(const char *symbol, Node__DescribeReply **ret)
{
    Node__DescribeRequest req = NODE__DESCRIBE_REQUEST__INIT;
    const struct rpc_opts o = patient();
    struct err err = ERR_INIT;
    req.symbol = (char *)(uintptr_t)symbol;
    return node_reflection_describe(w.client, &o, &req, ret, &err);
}

static void test_reflection_describes_what_is_served_here(void **state)
{
    (void)state;
    static const struct {
        const char *symbol, *kind, *file;
    } known[] = {
        {"cauce.store.v1.Catalog", "service", "cauce/store.proto"},
        {"cauce.store.v1.Catalog.List", "method", "cauce/store.proto"},
        {"cauce.store.v1.ListItemsReply", "message", "cauce/store.proto"},
        {"cauce.node.v1.Serving", "enum", "cauce/node.proto"},
        {"cauce/node.proto", "file", "cauce/node.proto"},
    };
    for (size_t i = 0; i < N_ELEMENTS(known); i++) {
        AUTO(rpc_message_free_p) Node__DescribeReply *r = NULL;
        AUTO(reflect_free_p) struct reflect *made = NULL;
        struct err err = ERR_INIT;
        assert_int_equal(describe(known[i].symbol, &r), STATUS_OK);
        assert_string_equal(r->kind, known[i].kind);
        assert_string_equal(r->file, known[i].file);
        if (reflect_new(r->descriptor_set.data, r->descriptor_set.len, &made, &err) != STATUS_OK)
            fail_msg("%s: %s", known[i].symbol, err.msg);
        assert_true(!str_eq(known[i].kind, "method") || reflect_method(made, known[i].symbol));
        assert_true(!str_eq(known[i].kind, "message") || reflect_message(made, known[i].symbol));
    }
    static const char *const unknown[] = {"", "cauce", "cauce.session.v1.Session",
                                          "cauce/session.proto", "cauce.store.v1.None"};
    for (size_t i = 0; i < N_ELEMENTS(unknown); i++) {
        AUTO(rpc_message_free_p) Node__DescribeReply *r = NULL;
        assert_int_equal(describe(unknown[i], &r), STATUS_NOT_FOUND);
    }
}

int main(void)
{
#define WORLD(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
    const struct CMUnitTest tests[] = {
        WORLD(test_watch_hears_the_state_each_change_and_the_end),
        WORLD(test_watchers_come_and_go),
        WORLD(test_channels_show_both_sides_of_a_connection),
        WORLD(test_calls_show_what_is_open),
        WORLD(test_methods_count_calls_failures_and_times),
        WORLD(test_reflection_lists_what_is_served_here),
        WORLD(test_reflection_describes_what_is_served_here),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rpc_fini();
    return failed;
}
