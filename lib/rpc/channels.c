// What the clients of this process are doing, for whoever watches it.
//
// The list of clients is the process' own: nothing hands a client to those who look. Whoever looks
// pins each client while it copies what it shows, and shows it when no lock is held.
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

static pthread_mutex_t clients_lock = PTHREAD_MUTEX_INITIALIZER;
static struct list clients = {&clients, &clients};

void channels_add(struct rpc_client *c)
{
    pthread_mutex_lock(&clients_lock);
    list_push_back(&clients, &c->registered);
    pthread_mutex_unlock(&clients_lock);
}

void channels_remove(struct rpc_client *c)
{
    pthread_mutex_lock(&clients_lock);
    list_remove(&c->registered);
    pthread_mutex_unlock(&clients_lock);
}

// All clients, each kept alive by client_enter(); freed with mem_free() after client_leave().
static struct rpc_client **pin_clients(size_t *ret_n)
{
    size_t n = 0;
    pthread_mutex_lock(&clients_lock);
    list_for_each(it, &clients)
    {
        n++;
    }
    struct rpc_client **all = mem_array(n + 1, sizeof(struct rpc_client *));
    n = 0;
    list_for_each(it, &clients)
    {
        struct rpc_client *c = list_entry(it, struct rpc_client, registered);
        if (all && client_enter(c))
            all[n++] = c;
    }
    pthread_mutex_unlock(&clients_lock);
    *ret_n = n;
    return all;
}

// ---------------------------------------------------------------- channels

struct seen { // an endpoint, copied
    struct rpc_channel_info info;
    struct conn *conn; // referenced, or NULL
};

// Called with the client's lock held.
static void see_endpoint(const struct rpc_client *c, const struct endpoint *e, int64_t now_us,
                         struct seen *ret)
{
    struct rpc_channel_info *i = &ret->info;
    *i = (struct rpc_channel_info){.expect_role = c->o.expect_role,
                                   .state = endpoint_state(e),
                                   .breaker = breaker_state(&e->breaker, now_us),
                                   .calls_open = e->n_open,
                                   .n_calls = e->n_calls,
                                   .n_failed = e->n_failed,
                                   .n_retries = e->n_retries,
                                   .n_hedges = e->n_hedges,
                                   .n_connects = e->n_connects,
                                   .bytes_in = e->bytes_in,
                                   .bytes_out = e->bytes_out};
    str_copy(i->name, sizeof i->name, c->name);
    str_copy(i->url, sizeof i->url, e->url);
    str_copy(i->last_error, sizeof i->last_error, e->last_error);
    ret->conn = e->ready_at ? conn_ref(e->current->live) : NULL;
    if (ret->conn)
        i->age_ms = (now_us - e->since_us) / 1000;
}

static void see_conn(struct seen *s)
{
    if (!s->conn)
        return;
    conn_lock(s->conn);
    if (!s->conn->dead) {
        s->info.bytes_in += s->conn->bytes_in;
        s->info.bytes_out += s->conn->bytes_out;
        s->info.rtt_us = s->conn->rtt_us;
    }
    conn_unlock(s->conn);
    conn_unref(s->conn);
}

static void each_channel(struct rpc_client *c,
                         void (*fn)(void *ud, const struct rpc_channel_info *info), void *ud)
{
    size_t n = 0, most = 0;
    int64_t now = time_mono_us();
    pthread_mutex_lock(&c->lock);
    list_for_each(it, &c->all_endpoints)
    {
        most++;
    }
    struct seen *seen = mem_array(most + 1, sizeof *seen);
    list_for_each(it, &c->all_endpoints)
    {
        if (seen)
            see_endpoint(c, list_entry(it, struct endpoint, all), now, &seen[n++]);
    }
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < n; i++) {
        see_conn(&seen[i]);
        fn(ud, &seen[i].info);
    }
    mem_free(seen);
}

void rpc_channels_each(void (*fn)(void *ud, const struct rpc_channel_info *info), void *ud)
{
    size_t n;
    struct rpc_client **all = pin_clients(&n);
    for (size_t i = 0; i < n; i++) {
        each_channel(all[i], fn, ud);
        client_leave(all[i]);
    }
    mem_free(all);
}

// ---------------------------------------------------------------- calls in flight

struct call_list {
    struct rpc_client_call_info *infos;
    size_t n, most;
};

struct rpc_client_call_info *call_list_add(struct call_list *l)
{
    if (l->n == l->most) {
        size_t most = l->most ? 2 * l->most : 64;
        struct rpc_client_call_info *more = mem_realloc(l->infos, most, sizeof *more);
        if (!more)
            return NULL;
        l->infos = more;
        l->most = most;
    }
    return &l->infos[l->n++];
}

static int64_t deadline_ms(int64_t deadline_us)
{
    return deadline_us == TIME_NEVER ? -1 : time_left_ms(deadline_us);
}

// Called with the connection's lock held.
static void see_attempt(struct flow *f, int64_t now_us, struct rpc_client_call_info *ret)
{
    struct attempt *a = list_entry(f, struct attempt, flow);
    *ret = (struct rpc_client_call_info){.method = a->m->name,
                                         .deadline_ms = deadline_ms(a->deadline_us),
                                         .bytes_in = f->bytes_in,
                                         .bytes_out = f->bytes_out,
                                         .trace = a->trace};
    pthread_mutex_lock(&a->client->lock);
    ret->age_ms = (now_us - a->started_us) / 1000;
    ret->attempts = a->nth;
    if (a->endpoint)
        str_copy(ret->url, sizeof ret->url, a->endpoint->url);
    pthread_mutex_unlock(&a->client->lock);
}

static void see_flows(struct conn *c, int64_t now_us, struct call_list *calls)
{
    conn_lock(c);
    list_for_each(it, &c->flows)
    {
        struct rpc_client_call_info *i = call_list_add(calls);
        if (!i)
            break;
        see_attempt(list_entry(it, struct flow, all), now_us, i);
    }
    conn_unlock(c);
}

// The connections of all links, also those that only finish what is open; referenced.
static struct conn **pin_conns(struct rpc_client *c, size_t *ret_n)
{
    size_t n = 0;
    pthread_mutex_lock(&c->lock);
    list_for_each(it, &c->links)
    {
        n++;
    }
    struct conn **conns = mem_array(n + 1, sizeof(struct conn *));
    n = 0;
    list_for_each(it, &c->links)
    {
        struct conn *conn = conns ? link_conn(list_entry(it, struct link, all)) : NULL;
        if (conn)
            conns[n++] = conn;
    }
    pthread_mutex_unlock(&c->lock);
    *ret_n = n;
    return conns;
}

static void each_call(struct rpc_client *c,
                      void (*fn)(void *ud, const struct rpc_client_call_info *info), void *ud)
{
    struct call_list calls = {.n = 0};
    int64_t now = time_mono_us();
    size_t n;
    struct conn **conns = pin_conns(c, &n);
    for (size_t i = 0; i < n; i++) {
        see_flows(conns[i], now, &calls);
        conn_unref(conns[i]);
    }
    mem_free(conns);
    unary_see_waiting(c, now, &calls);
    for (size_t i = 0; i < calls.n; i++)
        fn(ud, &calls.infos[i]);
    mem_free(calls.infos);
}

void rpc_client_calls_each(void (*fn)(void *ud, const struct rpc_client_call_info *info), void *ud)
{
    size_t n;
    struct rpc_client **all = pin_clients(&n);
    for (size_t i = 0; i < n; i++) {
        each_call(all[i], fn, ud);
        client_leave(all[i]);
    }
    mem_free(all);
}
