// What a server's methods have done, in Prometheus' text format (version 0.0.4).
//
// A family's lines must stand together, so the methods are copied first and walked once a family.
// Those that were never called are left out: most of what a gateway could forward it never does.
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "service/internal.h"

#define N_FIRST 64
#define STEP 2 // of the histograms' buckets every second one is shown: each four times the last

struct methods {
    struct rpc_method_stats *all;
    size_t n, most;
    bool failed;
};

static void add_method(void *ud, const struct rpc_method_stats *m)
{
    struct methods *l = ud;
    if (m->n_started == 0 || l->failed)
        return;
    if (l->n == l->most) {
        size_t most = l->most ? 2 * l->most : N_FIRST;
        struct rpc_method_stats *more = mem_realloc(l->all, most, sizeof(*more));
        l->failed = !more;
        if (!more)
            return;
        l->all = more;
        l->most = most;
    }
    l->all[l->n++] = *m;
}

static void put_family(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_printf(b, "# HELP cauce_rpc_%s %s\n# TYPE cauce_rpc_%s %s\n", name, help, name, type);
}

// suffix: of a histogram's lines, else "". More labels may follow. Names need no escaping.
static void put_name(struct buf *b, const char *name, const char *suffix,
                     const struct rpc_method_stats *m)
{
    const char *method = m->method->name + m->n_service;
    buf_printf(b, "cauce_rpc_%s%s{service=\"%.*s\",method=\"%s\"", name, suffix, (int)m->n_service,
               m->service, method[0] == '.' ? method + 1 : method);
}

static void put_number(struct buf *b, const char *name, const struct rpc_method_stats *m,
                       uint64_t value)
{
    put_name(b, name, "", m);
    buf_printf(b, "} %llu\n", (unsigned long long)value);
}

static void put_seconds(struct buf *b, uint64_t us)
{
    buf_printf(b, "%llu.%06llu", (unsigned long long)(us / 1000000),
               (unsigned long long)(us % 1000000));
}

static void put_bound(struct buf *b, unsigned bucket)
{
    if (bucket == RPC_HISTOGRAM_BUCKETS - 1)
        buf_puts(b, "+Inf");
    else
        put_seconds(b, (uint64_t)rpc_histogram_bound_us(bucket));
}

static void put_histogram(struct buf *b, const char *name, const struct rpc_method_stats *m,
                          const struct rpc_histogram *h)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < RPC_HISTOGRAM_BUCKETS; i++) {
        sum += h->counts[i];
        if (i % STEP != 0 && i != RPC_HISTOGRAM_BUCKETS - 1)
            continue;
        put_name(b, name, "_bucket", m);
        buf_puts(b, ",le=\"");
        put_bound(b, i);
        buf_printf(b, "\"} %llu\n", (unsigned long long)sum);
    }
    put_name(b, name, "_sum", m);
    buf_puts(b, "} ");
    put_seconds(b, h->sum_us);
    buf_putc(b, '\n');
    put_name(b, name, "_count", m);
    buf_printf(b, "} %llu\n", (unsigned long long)sum);
}

static void put_by_status(struct buf *b, const char *name, const struct rpc_method_stats *m)
{
    for (unsigned i = 0; i < RPC_N_STATUS; i++) {
        if (m->by_status[i] == 0)
            continue;
        put_name(b, name, "", m);
        buf_printf(b, ",code=\"%s\"} %llu\n", status_name((enum status)i),
                   (unsigned long long)m->by_status[i]);
    }
}

static const struct {
    const char *name, *help;
    size_t offset; // of an uint64_t in the stats
} counters[] = {
    {"started_total", "Calls that came.", offsetof(struct rpc_method_stats, n_started)},
    {"shed_total", "Calls refused because too much was going on.",
     offsetof(struct rpc_method_stats, n_shed)},
    {"received_bytes_total", "Bytes of messages from callers.",
     offsetof(struct rpc_method_stats, bytes_in)},
    {"sent_bytes_total", "Bytes of messages to callers.",
     offsetof(struct rpc_method_stats, bytes_out)},
};

static uint64_t counter_of(const struct rpc_method_stats *m, size_t offset)
{
    uint64_t value;
    memcpy(&value, (const char *)m + offset, sizeof(value));
    return value;
}

void metrics_put_methods(struct buf *b, const struct rpc_method_stats *all, size_t n)
{
    for (size_t k = 0; k < N_ELEMENTS(counters); k++) {
        put_family(b, counters[k].name, "counter", counters[k].help);
        for (size_t i = 0; i < n; i++)
            put_number(b, counters[k].name, &all[i], counter_of(&all[i], counters[k].offset));
    }
    put_family(b, "in_flight", "gauge", "Calls that are open.");
    for (size_t i = 0; i < n; i++)
        put_number(b, "in_flight", &all[i], all[i].in_flight);
    put_family(b, "handled_total", "counter", "Calls that ended, by status.");
    for (size_t i = 0; i < n; i++)
        put_by_status(b, "handled_total", &all[i]);
    put_family(b, "queue_seconds", "histogram", "From the complete request to its handler.");
    for (size_t i = 0; i < n; i++)
        put_histogram(b, "queue_seconds", &all[i], &all[i].queue);
    put_family(b, "handling_seconds", "histogram", "From the handler's start to the status.");
    for (size_t i = 0; i < n; i++)
        put_histogram(b, "handling_seconds", &all[i], &all[i].handling);
}

void svc_metrics_put(struct svc *svc, struct buf *b)
{
    struct methods l = {.n = 0};
    rpc_server_methods_each(svc->server, add_method, &l);
    if (l.failed)
        b->failed = true;
    else
        metrics_put_methods(b, l.all, l.n);
    mem_free(l.all);
}
