// A server: its listeners, its connections, its methods.
//
// Received messages go from nng's thread to the connection's inbox; one task at a time empties it
// on a small pool of I/O threads, so a connection's records are opened in order and connections in
// parallel. Handlers run on the pool the service gave us.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define DEFAULT_IO_THREADS 2
#define DEFAULT_CALLS_CLIENT 128
#define DEFAULT_CALLS_SERVICE 4096 // a gateway brings many clients' calls over one link
#define SLOTS_CLIENT 16
#define SLOTS_SERVICE 1024
#define HALF_OPEN_MAX 4096
#define PUBLIC_MIN_FILES 16384
#define INBOX_ROUND 16
#define LATE_US 5000  // until a full pool is tried again
#define GOODBYE_MS 50 // for peers to take note when there is no grace

// ---------------------------------------------------------------- methods

static unsigned name_hash(const char *name)
{
    unsigned h = 2166136261U;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 16777619U;
    return h % N_METHOD_BUCKETS;
}

struct method_entry *server_method(struct rpc_server *s, const char *name)
{
    struct method_entry *e = s->methods[name_hash(name)];
    while (e && strcmp(e->m->name, name) != 0)
        e = e->next;
    return e;
}

static enum status add_method(struct rpc_server *s, const struct rpc_method *m, rpc_thunk thunk,
                              void (*handler)(void), void *self, struct err *err)
{
    struct method_entry *e = server_method(s, m->name);
    if (e && e->thunk && thunk)
        return err_set(err, STATUS_ALREADY_EXISTS, "method %s is served already", m->name);
    if (!e) {
        e = mem_alloc(sizeof *e);
        if (!e)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "method %s: out of memory", m->name);
        struct method_entry **at = &s->methods[name_hash(m->name)];
        e->m = m;
        e->next = *at;
        *at = e;
    }
    if (thunk) {
        e->m = m;
        e->thunk = thunk;
        e->handler = handler;
        e->self = self;
    }
    return STATUS_OK;
}

enum status rpc_server_add(struct rpc_server *s, const struct rpc_service *svc,
                           const rpc_thunk *thunks, void (*const *handlers)(void), void *self,
                           struct err *err)
{
    if (s->is_listening)
        return err_set(err, STATUS_FAILED_PRECONDITION, "%s: the server listens already",
                       svc->name);
    for (size_t i = 0; i < svc->n_methods; i++) {
        enum status st = add_method(s, &svc->methods[i], thunks[i], handlers[i], self, err);
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

void rpc_server_set_router(struct rpc_server *s, const struct rpc_service *const *known,
                           size_t n_known, rpc_route_fn fn, void *ud)
{
    s->route = fn;
    s->route_ud = ud;
    struct err err = ERR_INIT;
    for (size_t i = 0; i < n_known; i++) {
        for (size_t k = 0; k < known[i]->n_methods; k++) {
            if (add_method(s, &known[i]->methods[k], NULL, NULL, NULL, &err) != STATUS_OK)
                log_error(s->o.log, "rpc_route_table", F_ERR(&err));
        }
    }
}

// ---------------------------------------------------------------- connections

static struct conn **table_at(struct rpc_server *s, uint32_t pipe)
{
    struct conn **at = &s->table[pipe % N_CONN_BUCKETS];
    while (*at && (*at)->o.pipe != pipe)
        at = &(*at)->table_next;
    return at;
}

static struct conn *find_conn(struct rpc_server *s, uint32_t pipe)
{
    pthread_mutex_lock(&s->lock);
    struct conn *c = *table_at(s, pipe);
    if (c)
        conn_ref(c);
    pthread_mutex_unlock(&s->lock);
    return c;
}

// Called with the server's lock held.
static void unlist(struct rpc_server *s, struct conn *c)
{
    if (!c->is_listed)
        return;
    list_remove(&c->link);
    c->is_listed = false;
    if (c->confirmed_listed)
        s->n_conns--;
    else
        s->n_half_open--;
}

static void owner_confirmed(struct conn *c)
{
    struct listener *l = c->ud;
    struct rpc_server *s = l->server;
    pthread_mutex_lock(&s->lock);
    if (c->is_listed) {
        unlist(s, c);
        list_push_back(&s->conns, &c->link);
        c->is_listed = c->confirmed_listed = true;
        s->n_conns++;
    }
    pthread_mutex_unlock(&s->lock);
}

static void owner_dead(struct conn *c)
{
    struct listener *l = c->ud;
    struct rpc_server *s = l->server;
    pthread_mutex_lock(&s->lock);
    if (!c->confirmed)
        s->stats.n_conns_refused++;
    if (strcmp(c->why, "closed") != 0)
        s->stats.bad_records++;
    s->stats.bytes_in += c->bytes_in;
    s->stats.bytes_out += c->bytes_out;
    s->stats.records_in += c->rx_records;
    s->stats.records_out += c->tx_records;
    unlist(s, c);
    pthread_mutex_unlock(&s->lock);
    log_debug(s->o.log, "rpc_connection_closed", F_STR("why", c->why));
}

static void owner_ready(struct conn *c)
{
    (void)c;
}
static void owner_goaway(struct conn *c)
{
    (void)c; // clients may say it; they simply open no further calls
}

static void owner_idle(struct conn *c)
{
    struct listener *l = c->ud;
    pthread_mutex_lock(&l->server->lock);
    pthread_cond_broadcast(&l->server->cond);
    pthread_mutex_unlock(&l->server->lock);
}

static void owner_wake(struct conn *c, int64_t at_us)
{
    struct listener *l = c->ud;
    clock_wake_at(l->server->clock, at_us);
}

static bool owner_auth(struct conn *c, uint32_t slot, const void *text, size_t len)
{
    struct listener *l = c->ud;
    uint32_t n_slots = l->is_public ? SLOTS_CLIENT : SLOTS_SERVICE;
    if (slot == 0 || slot > n_slots || len > FRAME_TOKEN_MAX || memchr(text, 0, len))
        return false;
    if (!c->slots) {
        c->slots = mem_array(n_slots, sizeof(struct token *));
        c->n_slots = c->slots ? n_slots : 0;
        if (!c->slots)
            return false;
    }
    struct token *t = NULL;
    if (len) {
        t = token_get(l->server->tokens, text, len);
        if (!t)
            return false;
    }
    token_unref(c->slots[slot - 1]);
    c->slots[slot - 1] = t;
    return true;
}

static void owner_free(struct conn *c)
{
    for (uint32_t i = 0; i < c->n_slots; i++)
        token_unref(c->slots[i]);
    mem_free(c->slots);
}

static void owner_open(struct conn *c, uint32_t id, const struct frame_open *o)
{
    struct listener *l = c->ud;
    call_open(l->server, c, id, o);
}

const struct conn_owner server_conn_owner = {
    .open = owner_open,
    .auth = owner_auth,
    .ready = owner_ready,
    .confirmed = owner_confirmed,
    .goaway = owner_goaway,
    .idle = owner_idle,
    .dead = owner_dead,
    .wake = owner_wake,
    .free = owner_free,
};

static void kill_now(struct conn *c, const char *why)
{
    conn_lock(c);
    conn_kill(c, why);
    conn_unlock(c);
}

// The connection's strand: one at a time per connection.
static void run_inbox(void *ud)
{
    struct conn *c = ud;
    conn_lock(c);
    c->corked++; // whatever these messages cause leaves together
    conn_unlock(c);
    for (unsigned n = 0;;) {
        pthread_mutex_lock(&c->inbox_lock);
        struct transport_msg *m = NULL;
        if (c->inbox_len) {
            m = c->inbox[c->inbox_head];
            c->inbox_head = (c->inbox_head + 1) % CONN_INBOX_MAX;
            c->inbox_len--;
        }
        bool closed = c->inbox_closed;
        const char *why = c->inbox_why;
        if (!m && !closed && n == 0)
            c->inbox_scheduled = false;
        pthread_mutex_unlock(&c->inbox_lock);
        if (closed && !m) {
            conn_lock(c);
            c->corked--;
            conn_kill(c, why ? why : "closed");
            conn_unlock(c);
            break; // inbox_scheduled stays set: nothing runs here again
        }
        if (m) {
            conn_input(c, m);
            n++;
        }
        if (!m || n >= INBOX_ROUND) {
            conn_lock(c);
            c->corked--;
            conn_unlock(c);
            if (!m && n == 0)
                break;
            n = 0;
            conn_lock(c);
            c->corked++;
            conn_unlock(c);
        }
    }
    conn_unref(c);
}

// From nng's threads. m NULL: the pipe is gone.
static void deliver(struct rpc_server *s, struct conn *c, struct transport_msg *m, const char *why)
{
    bool schedule = false;
    pthread_mutex_lock(&c->inbox_lock);
    if (c->inbox_closed) {
        s->o.transport->msg_free(m);
    } else if (m && c->inbox_len < CONN_INBOX_MAX) {
        c->inbox[(c->inbox_head + c->inbox_len++) % CONN_INBOX_MAX] = m;
        schedule = true;
    } else { // gone, or it ignores our acknowledgements
        s->o.transport->msg_free(m);
        c->inbox_closed = true;
        c->inbox_why = m ? "too many records at once" : why;
        schedule = true;
    }
    schedule &= !c->inbox_scheduled;
    c->inbox_scheduled |= schedule;
    pthread_mutex_unlock(&c->inbox_lock);
    if (!schedule)
        return;
    conn_ref(c);
    if (!work_pool_submit(s->io, run_inbox, c)) {
        kill_now(c, "the server is overloaded");
        conn_unref(c);
    }
}

static bool on_attach(void *ud, uint32_t pipe)
{
    struct listener *l = ud;
    struct rpc_server *s = l->server;
    if (s->is_closing)
        return false;
    struct err err = ERR_INIT;
    unsigned links = l->is_public ? 1U << CHAN_LINK_CLIENT : 1U << CHAN_LINK_SERVICE;
    struct chan *chan = chan_new_responder(links, s->o.identity, s->o.trust, &err);
    if (!chan)
        return false;
    struct conn_opts o = {.ops = s->o.transport,
                          .t = l->transport,
                          .pipe = pipe,
                          .chan = chan,
                          .owner = &server_conn_owner,
                          .ud = l,
                          .is_server = true,
                          .is_client_link = l->is_public,
                          .ping_us = s->o.ping_after_ms * 1000};
    struct conn *c = conn_new(&o);
    if (!c)
        return false;
    struct conn *victim = NULL;
    pthread_mutex_lock(&s->lock);
    *table_at(s, pipe) = c;
    list_push_back(&s->half_open, &c->link);
    c->is_listed = true;
    s->stats.n_conns++;
    if (++s->n_half_open > s->max_half_open)
        victim = conn_ref(list_entry(s->half_open.next, struct conn, link));
    pthread_mutex_unlock(&s->lock);
    clock_wake_at(s->clock, c->next_tick_us);
    if (victim) {
        deliver(s, victim, NULL, "too many half-open connections");
        conn_unref(victim);
    }
    return true;
}

static void on_detach(void *ud, uint32_t pipe)
{
    struct listener *l = ud;
    struct rpc_server *s = l->server;
    pthread_mutex_lock(&s->lock);
    struct conn **at = table_at(s, pipe), *c = *at;
    if (c)
        *at = c->table_next;
    pthread_mutex_unlock(&s->lock);
    if (!c)
        return;
    deliver(s, c, NULL, "closed");
    conn_unref(c);
}

static void on_receive(void *ud, uint32_t pipe, struct transport_msg *m)
{
    struct listener *l = ud;
    struct conn *c = find_conn(l->server, pipe);
    if (!c) {
        l->server->o.transport->msg_free(m);
        return;
    }
    deliver(l->server, c, m, NULL);
    conn_unref(c);
}

static const struct transport_events listener_events = {
    .attach = on_attach,
    .detach = on_detach,
    .receive = on_receive,
};

// All connections, referenced. NULL when there are none or memory is short.
static struct conn **snapshot(struct rpc_server *s, size_t *ret_n)
{
    pthread_mutex_lock(&s->lock);
    size_t n = 0;
    struct conn **all = mem_array((size_t)s->n_conns + s->n_half_open + 1, sizeof(struct conn *));
    struct list *lists[] = {&s->half_open, &s->conns};
    for (size_t i = 0; all && i < N_ELEMENTS(lists); i++) {
        list_for_each(it, lists[i])
        {
            all[n++] = conn_ref(list_entry(it, struct conn, link));
        }
    }
    pthread_mutex_unlock(&s->lock);
    *ret_n = n;
    return all;
}

void server_call_late(struct rpc_server *s, struct rpc_call *c)
{
    pthread_mutex_lock(&s->lock);
    list_push_back(&s->late_calls, &c->late);
    pthread_mutex_unlock(&s->lock);
    clock_wake_at(s->clock, time_mono_us() + LATE_US);
}

static void submit_late(struct rpc_server *s)
{
    struct list late;
    list_init(&late);
    pthread_mutex_lock(&s->lock);
    while (!list_is_empty(&s->late_calls))
        list_push_back(&late, list_pop_front(&s->late_calls));
    pthread_mutex_unlock(&s->lock);
    while (!list_is_empty(&late))
        call_submit_writable(list_entry(list_pop_front(&late), struct rpc_call, late));
}

static int64_t next_late(struct rpc_server *s, int64_t now_us)
{
    pthread_mutex_lock(&s->lock);
    int64_t at = list_is_empty(&s->late_calls) ? TIME_NEVER : now_us + LATE_US;
    pthread_mutex_unlock(&s->lock);
    return at;
}

static int64_t on_tick(void *ud, int64_t now_us)
{
    struct rpc_server *s = ud;
    submit_late(s);
    int64_t next = next_late(s, now_us);
    size_t n;
    struct conn **all = snapshot(s, &n);
    if (!all)
        return now_us + 1000000;
    for (size_t i = 0; i < n; i++) {
        int64_t at = all[i]->next_tick_us;
        if (at <= now_us)
            at = conn_tick(all[i], now_us);
        next = at < next ? at : next;
        conn_unref(all[i]);
    }
    mem_free(all);
    // No oftener than once a millisecond, however many deadlines there are.
    return next < now_us + 1000 ? now_us + 1000 : next;
}

// ---------------------------------------------------------------- life

struct rpc_server *rpc_server_new(const struct rpc_server_opts *o, struct err *err)
{
    struct rpc_server *s = mem_alloc(sizeof *s);
    if (!s) {
        err_set(err, STATUS_RESOURCE_EXHAUSTED, "server: out of memory");
        return NULL;
    }
    s->o = *o;
    if (!s->o.transport)
        s->o.transport = &transport_nng;
    if (s->o.ping_after_ms == 0)
        s->o.ping_after_ms = DEFAULT_PING_MS;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->cond, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&s->half_open);
    list_init(&s->conns);
    list_init(&s->late_calls);
    s->max_half_open = HALF_OPEN_MAX;
    s->tokens = token_cache_new(o->verify, o->verify_ud);
    s->io = work_pool_new("rpc-io", o->n_io_threads ? o->n_io_threads : DEFAULT_IO_THREADS, 65536);
    s->clock = clock_new(on_tick, s);
    if (!s->tokens || !s->io || !s->clock) {
        err_set(err, STATUS_RESOURCE_EXHAUSTED, "server: cannot start threads");
        rpc_server_free(s);
        return NULL;
    }
    return s;
}

// A public listener needs descriptors to spare, or idle peers lock everybody out.
static enum status raise_file_limit(struct rpc_server *s, bool is_public, struct err *err)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return err_errno(err, errno, "read the limit of open files");
    if (r.rlim_cur < PUBLIC_MIN_FILES && r.rlim_cur != RLIM_INFINITY) {
        rlim_t had = r.rlim_cur;
        r.rlim_cur = r.rlim_max == RLIM_INFINITY || r.rlim_max >= 4 * PUBLIC_MIN_FILES
                         ? 4 * PUBLIC_MIN_FILES
                         : r.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &r) != 0)
            r.rlim_cur = had;
    }
    if (is_public && r.rlim_cur < PUBLIC_MIN_FILES)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "a public listener needs %d open files, the limit is %lld: raise it "
                       "(ulimit -n, LimitNOFILE)",
                       PUBLIC_MIN_FILES, (long long)r.rlim_cur);
    s->max_half_open = r.rlim_cur / 4 < HALF_OPEN_MAX ? (unsigned)(r.rlim_cur / 4) : HALF_OPEN_MAX;
    return STATUS_OK;
}

enum status rpc_server_listen(struct rpc_server *s, const char *url, bool is_public, char *ret_url,
                              struct err *err)
{
    if (s->n_listeners == MAX_LISTENERS)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "listen on %s: more than %d listeners", url,
                       MAX_LISTENERS);
    enum status st = raise_file_limit(s, is_public, err);
    if (st != STATUS_OK)
        return st;
    s->is_listening = true;
    struct listener *l = &s->listeners[s->n_listeners];
    *l = (struct listener){.server = s, .is_public = is_public};
    st =
        s->o.transport->listen(url, &listener_events, l, ret_url, RPC_URL_SIZE, &l->transport, err);
    if (st == STATUS_OK)
        s->n_listeners++;
    return st;
}

void rpc_server_close(struct rpc_server *s)
{
    pthread_mutex_lock(&s->lock);
    bool was = s->is_closing;
    s->is_closing = true;
    pthread_mutex_unlock(&s->lock);
    if (was)
        return;
    for (size_t i = 0; i < s->n_listeners; i++)
        s->o.transport->stop_accepting(s->listeners[i].transport);
    size_t n;
    struct conn **all = snapshot(s, &n);
    for (size_t i = 0; i < n; i++) {
        conn_lock(all[i]);
        conn_goaway(all[i]);
        conn_unlock(all[i]);
        conn_unref(all[i]);
    }
    mem_free(all);
}

// Wait until pred(s) or the deadline; pred runs without the lock.
static bool wait_for(struct rpc_server *s, bool (*pred)(struct rpc_server *), int64_t deadline_us)
{
    for (;;) {
        if (pred(s))
            return true;
        int64_t now = time_mono_us();
        if (now >= deadline_us)
            return false;
        // The state may change between pred() and here without a signal: look again soon.
        int64_t until = now + 20000 < deadline_us ? now + 20000 : deadline_us;
        struct timespec ts = {.tv_sec = until / 1000000, .tv_nsec = until % 1000000 * 1000};
        pthread_mutex_lock(&s->lock);
        pthread_cond_timedwait(&s->cond, &s->lock, &ts);
        pthread_mutex_unlock(&s->lock);
    }
}

static bool no_live_calls(struct rpc_server *s)
{
    pthread_mutex_lock(&s->lock);
    bool none = s->n_live == 0;
    pthread_mutex_unlock(&s->lock);
    return none;
}

static unsigned open_calls(struct rpc_server *s)
{
    size_t n;
    unsigned open = 0;
    struct conn **all = snapshot(s, &n);
    for (size_t i = 0; i < n; i++) {
        conn_lock(all[i]);
        open += all[i]->dead ? 0 : all[i]->n_calls;
        open += !conn_all_acked(all[i]);
        conn_unlock(all[i]);
        conn_unref(all[i]);
    }
    mem_free(all);
    return open;
}

// Also what is still on its way: an answer, or that we are going away.
static bool is_quiet(struct rpc_server *s)
{
    return no_live_calls(s) && open_calls(s) == 0;
}

static void end_all(struct rpc_server *s, bool kill)
{
    size_t n;
    struct conn **all = snapshot(s, &n);
    for (size_t i = 0; i < n; i++) {
        struct conn *c = all[i];
        conn_lock(c);
        if (kill) {
            conn_kill(c, "closed");
        } else {
            list_for_each_safe(it, tmp, &c->flows)
            {
                struct flow *f = list_entry(it, struct flow, all);
                f->status = (struct frame_status){.code = STATUS_UNAVAILABLE,
                                                  .msg = "the server is stopping"};
                flow_post(f, FLOW_ENDED);
            }
        }
        conn_unlock(c);
        conn_unref(c);
    }
    mem_free(all);
}

void rpc_server_stop(struct rpc_server *s, int64_t grace_ms)
{
    if (s->is_stopped)
        return;
    rpc_server_close(s);
    if (!wait_for(s, is_quiet, time_deadline_in_ms(grace_ms ? grace_ms : GOODBYE_MS))) {
        end_all(s, false);
        // Cancelled handlers end soon, and their answers are worth a moment.
        wait_for(s, is_quiet, time_deadline_in_ms(grace_ms < 1000 ? grace_ms : 1000));
    }
    end_all(s, true);
    while (!wait_for(s, no_live_calls, time_deadline_in_ms(10000)))
        log_warn(s->o.log, "rpc_stop_waits_for_handlers", F_I64("calls", s->n_live));
    for (size_t i = 0; i < s->n_listeners; i++)
        s->o.transport->free(s->listeners[i].transport);
    work_pool_stop(s->io);
    clock_stop(s->clock);
    s->is_stopped = true;
}

void rpc_server_free(struct rpc_server *s)
{
    if (!s)
        return;
    if (s->clock && s->io)
        rpc_server_stop(s, 0);
    for (size_t i = 0; i < N_CONN_BUCKETS; i++) {
        while (s->table[i]) {
            struct conn *c = s->table[i];
            s->table[i] = c->table_next;
            kill_now(c, "closed");
            conn_unref(c);
        }
    }
    clock_free(s->clock);
    work_pool_free(s->io);
    token_cache_free(s->tokens);
    for (size_t i = 0; i < N_METHOD_BUCKETS; i++) {
        while (s->methods[i]) {
            struct method_entry *next = s->methods[i]->next;
            mem_free(s->methods[i]);
            s->methods[i] = next;
        }
    }
    pthread_cond_destroy(&s->cond);
    pthread_mutex_destroy(&s->lock);
    mem_free(s);
}

void server_call_gone(struct rpc_server *s)
{
    pthread_mutex_lock(&s->lock);
    if (--s->n_live == 0)
        pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
}

void rpc_server_get_stats(struct rpc_server *s, struct rpc_server_stats *ret)
{
    size_t n;
    unsigned open = 0;
    struct conn **all = snapshot(s, &n);
    struct rpc_server_stats live = {.n_calls = 0};
    for (size_t i = 0; i < n; i++) {
        struct conn *c = all[i];
        conn_lock(c);
        if (!c->dead) {
            open += c->n_calls;
            live.bytes_in += c->bytes_in;
            live.bytes_out += c->bytes_out;
            live.records_in += c->rx_records;
            live.records_out += c->tx_records;
        }
        conn_unlock(c);
        conn_unref(c);
    }
    mem_free(all);
    pthread_mutex_lock(&s->lock);
    *ret = s->stats;
    ret->conns_open = s->n_conns;
    pthread_mutex_unlock(&s->lock);
    ret->calls_open = open;
    ret->bytes_in += live.bytes_in;
    ret->bytes_out += live.bytes_out;
    ret->records_in += live.records_in;
    ret->records_out += live.records_out;
}

unsigned server_max_calls(const struct rpc_server *s, const struct conn *c)
{
    if (s->o.max_calls_per_conn)
        return s->o.max_calls_per_conn;
    return c->o.is_client_link ? DEFAULT_CALLS_CLIENT : DEFAULT_CALLS_SERVICE;
}

void rpc_fini(void)
{
    transport_nng_fini();
}
