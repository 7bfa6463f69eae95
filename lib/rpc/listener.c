// A server's listeners and their connections.
//
// Received messages go from the transport's thread to the connection's inbox; one task at a time
// empties it on a small pool of I/O threads, so a connection's records are opened in order and
// connections in parallel. A transport that is serial does as much by itself: there records are
// opened on the thread that brings them, and only handshakes take the way through the inbox, so
// that a flood of them does not hold up the connections that share the thread.
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/resource.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "rpc/internal.h"

#define SLOTS_CLIENT 16
#define SLOTS_SERVICE 1024
#define PUBLIC_MIN_FILES 16384
#define INBOX_ROUND 16
#define TELL_US 10000000 // the log hears of refused strangers no oftener

// ---------------------------------------------------------------- the door's news

// Something was refused. Called with the server's lock held.
static void door_news(struct rpc_server *s, int64_t now_us)
{
    if (s->tell_at_us)
        return;
    s->tell_at_us = now_us > s->told_us + TELL_US ? now_us : s->told_us + TELL_US;
    clock_wake_at(s->clock, s->tell_at_us);
}

int64_t server_tell_of_door(struct rpc_server *s, int64_t now_us)
{
    pthread_mutex_lock(&s->lock);
    int64_t at = s->tell_at_us ? s->tell_at_us : TIME_NEVER;
    struct rpc_server_stats is = s->stats, was = s->told;
    bool now = at <= now_us;
    if (now) {
        s->told = is;
        s->told_us = now_us;
        s->tell_at_us = 0;
        at = TIME_NEVER;
    }
    unsigned half_open = door_n_half_open(s->door);
    pthread_mutex_unlock(&s->lock);
    if (now)
        log_warn(s->o.log, "rpc_strangers_refused",
                 F_I64("turned_away", (int64_t)(is.n_turned_away - was.n_turned_away)),
                 F_I64("handshakes_refused",
                       (int64_t)(is.n_handshakes_refused - was.n_handshakes_refused)),
                 F_I64("crowded_out", (int64_t)(is.n_crowded_out - was.n_crowded_out)),
                 F_I64("half_open", half_open));
    return at;
}

// ---------------------------------------------------------------- connections

// Each listener's transport numbers its pipes by itself.
static struct conn **table_at(const struct listener *l, uint32_t pipe)
{
    struct conn **at = &l->server->table[pipe % N_CONN_BUCKETS];
    while (*at && ((*at)->o.pipe != pipe || (*at)->ud != l))
        at = &(*at)->table_next;
    return at;
}

static struct conn *find_conn(const struct listener *l, uint32_t pipe)
{
    struct rpc_server *s = l->server;
    pthread_mutex_lock(&s->lock);
    struct conn *c = *table_at(l, pipe);
    if (c)
        conn_ref(c);
    pthread_mutex_unlock(&s->lock);
    return c;
}

// Called with the server's lock held, and so are those below.
static void leave_door(struct rpc_server *s, struct conn *c, enum door_end end)
{
    list_remove(&c->crowd);
    door_leave(s->door, c->caller, c->has_knocked, end);
}

static void unlist(struct rpc_server *s, struct conn *c)
{
    if (!c->is_listed)
        return;
    list_remove(&c->link);
    c->is_listed = false;
    if (c->confirmed_listed) {
        s->n_conns--;
        door_gone(s->door, c->caller);
    } else {
        leave_door(s, c, DOOR_FAILED);
    }
    c->caller = NULL;
}

static void owner_confirmed(struct conn *c)
{
    struct listener *l = c->ud;
    struct rpc_server *s = l->server;
    pthread_mutex_lock(&s->lock);
    if (c->is_listed) {
        leave_door(s, c, DOOR_WELCOME);
        list_remove(&c->link);
        list_push_back(&s->conns, &c->link);
        c->is_listed = c->confirmed_listed = true;
        s->n_conns++;
    }
    pthread_mutex_unlock(&s->lock);
}

static bool owner_knock(struct conn *c)
{
    struct listener *l = c->ud;
    struct rpc_server *s = l->server;
    pthread_mutex_lock(&s->lock);
    c->has_knocked = c->caller && door_knock(s->door, c->caller, c->now_us);
    bool may = c->has_knocked;
    s->stats.n_handshakes_refused += !may && c->caller;
    if (!may)
        door_news(s, c->now_us);
    pthread_mutex_unlock(&s->lock);
    return may;
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
    .knock = owner_knock,
    .ready = owner_ready,
    .confirmed = owner_confirmed,
    .goaway = owner_goaway,
    .idle = owner_idle,
    .dead = owner_dead,
    .wake = owner_wake,
    .free = owner_free,
};

void server_kill_conn(struct conn *c, const char *why)
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
            conn_input(c, m, false);
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

// From the transport's threads. m NULL: the pipe is gone.
static void deliver(struct rpc_server *s, struct conn *c, struct transport_msg *m, const char *why)
{
    bool schedule = false;
    pthread_mutex_lock(&c->inbox_lock);
    if (c->inbox_closed) {
        c->o.ops->msg_free(m);
    } else if (m && c->inbox_len < CONN_INBOX_MAX) {
        c->inbox[(c->inbox_head + c->inbox_len++) % CONN_INBOX_MAX] = m;
        schedule = true;
    } else { // gone, or it ignores our acknowledgements
        c->o.ops->msg_free(m);
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
        server_kill_conn(c, "the server is overloaded");
        conn_unref(c);
    }
}

// On the thread that tells of the pipe: what came before has been dealt with, and what comes may be
// dealt with here. From then on it always is.
static bool is_inline(struct conn *c)
{
    if (c->is_inline || !c->o.ops->is_serial)
        return c->is_inline;
    pthread_mutex_lock(&c->inbox_lock);
    bool is_idle = !c->inbox_scheduled;
    pthread_mutex_unlock(&c->inbox_lock);
    if (!is_idle)
        return false;
    conn_lock(c);
    c->is_inline = c->ready;
    conn_unlock(c);
    return c->is_inline;
}

static struct conn *accept_conn(struct listener *l, uint32_t pipe)
{
    struct rpc_server *s = l->server;
    struct err err = ERR_INIT;
    struct chan *chan = chan_accept(s->local, l->links, &err);
    if (!chan)
        return NULL;
    struct conn_opts o = {.ops = l->ops,
                          .t = l->transport,
                          .pipe = pipe,
                          .chan = chan,
                          .owner = &server_conn_owner,
                          .ud = l,
                          .is_server = true,
                          .is_client_link = l->is_public,
                          .handshake_us = door_limits(s->door)->handshake_timeout_ms * 1000,
                          .ping_us = s->o.ping_after_ms * 1000};
    return conn_new(&o);
}

// The one that must make room, if any; referenced. Called with the server's lock held.
static struct conn *crowd_out(struct rpc_server *s, struct door_caller *caller)
{
    struct door_caller *crowd = door_crowd(s->door, caller);
    if (!crowd || list_is_empty(&crowd->half_open))
        return NULL;
    struct conn *victim = conn_ref(list_entry(crowd->half_open.next, struct conn, crowd));
    unlist(s, victim);
    s->stats.n_crowded_out++;
    return victim;
}

static struct door_caller *enter(struct listener *l, uint32_t pipe)
{
    struct rpc_server *s = l->server;
    struct transport_addr addr = {0};
    if (!l->is_local && !l->ops->peer(l->transport, pipe, &addr))
        return NULL; // gone already
    int64_t now = time_mono_us();
    pthread_mutex_lock(&s->lock);
    struct door_caller *caller = s->is_closing ? NULL : door_enter(s->door, &addr, now);
    s->stats.n_turned_away += !caller && !s->is_closing;
    if (!caller)
        door_news(s, now);
    pthread_mutex_unlock(&s->lock);
    return caller;
}

static bool on_attach(void *ud, uint32_t pipe)
{
    struct listener *l = ud;
    struct rpc_server *s = l->server;
    struct door_caller *caller = enter(l, pipe);
    if (!caller)
        return false;
    struct conn *c = accept_conn(l, pipe);
    struct conn *victim = NULL;
    pthread_mutex_lock(&s->lock);
    if (!c || s->is_closing) { // from here on nobody would tell it to go away
        door_leave(s->door, caller, false, DOOR_WITHDRAWN);
        pthread_mutex_unlock(&s->lock);
        conn_unref(c);
        return false;
    }
    c->caller = caller;
    list_push_back(&caller->half_open, &c->crowd);
    *table_at(l, pipe) = c;
    list_push_back(&s->half_open, &c->link);
    c->is_listed = true;
    s->stats.n_conns++;
    victim = crowd_out(s, caller);
    if (victim)
        door_news(s, c->born_us);
    pthread_mutex_unlock(&s->lock);
    clock_wake_at(s->clock, c->next_tick_us);
    if (victim) {
        deliver(s, victim, NULL, "crowded out by newer half-open connections");
        conn_unref(victim);
    }
    return true;
}

static void on_detach(void *ud, uint32_t pipe)
{
    struct listener *l = ud;
    struct rpc_server *s = l->server;
    pthread_mutex_lock(&s->lock);
    struct conn **at = table_at(l, pipe), *c = *at;
    if (c)
        *at = c->table_next;
    pthread_mutex_unlock(&s->lock);
    if (!c)
        return;
    if (is_inline(c))
        server_kill_conn(c, "closed");
    else
        deliver(s, c, NULL, "closed");
    conn_unref(c);
}

static void on_receive(void *ud, uint32_t pipe, struct transport_msg *m, bool more)
{
    struct listener *l = ud;
    struct conn *c = find_conn(l, pipe);
    if (!c)
        l->ops->msg_free(m);
    else if (is_inline(c))
        conn_input(c, m, more);
    else
        deliver(l->server, c, m, NULL);
    conn_unref(c);
}

static const struct transport_events listener_events = {
    .attach = on_attach,
    .detach = on_detach,
    .receive = on_receive,
};

// All connections, referenced. NULL when there are none or memory is short.
struct conn **server_conns(struct rpc_server *s, size_t *ret_n)
{
    pthread_mutex_lock(&s->lock);
    size_t n = 0;
    struct conn **all =
        mem_array((size_t)s->n_conns + door_n_half_open(s->door) + 1, sizeof(struct conn *));
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

// ---------------------------------------------------------------- listening

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
    pthread_mutex_lock(&s->lock);
    if (r.rlim_cur < UINT_MAX)
        door_set_files(s->door, (unsigned)r.rlim_cur);
    pthread_mutex_unlock(&s->lock);
    return STATUS_OK;
}

static enum status listen_for(struct rpc_server *s, const char *url, enum chan_link link,
                              char *ret_url, struct err *err)
{
    if (s->n_listeners == MAX_LISTENERS)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "listen on %s: more than %d listeners", url,
                       MAX_LISTENERS);
    enum status st = raise_file_limit(s, link == CHAN_LINK_CLIENT, err);
    if (st != STATUS_OK)
        return st;
    s->is_listening = true;
    struct listener *l = &s->listeners[s->n_listeners];
    *l = (struct listener){.server = s,
                           .ops = transport_for(s->o.transport, url),
                           .is_public = link != CHAN_LINK_SERVICE,
                           .is_local = !str_starts_with(url, "tcp"),
                           .links = 1U << link};
    char real[RPC_URL_SIZE];
    st = l->ops->listen(url, &listener_events, l, real, sizeof real, &l->transport, err);
    if (st == STATUS_OK && ret_url)
        str_copy(ret_url, RPC_URL_SIZE, real);
    pthread_mutex_lock(&s->lock); // peers may be here already, and be looked at
    str_copy(l->url, sizeof l->url, st == STATUS_OK ? real : "");
    pthread_mutex_unlock(&s->lock);
    if (st == STATUS_OK)
        s->n_listeners++;
    return st;
}

enum status rpc_server_listen(struct rpc_server *s, const char *url, bool is_public, char *ret_url,
                              struct err *err)
{
    return listen_for(s, url, is_public ? CHAN_LINK_CLIENT : CHAN_LINK_SERVICE, ret_url, err);
}

enum status rpc_server_listen_enrol(struct rpc_server *s, const char *url, char *ret_url,
                                    struct err *err)
{
    return listen_for(s, url, CHAN_LINK_ENROL, ret_url, err);
}
