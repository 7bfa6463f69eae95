// A transport on plain sockets, tcp and ipc, served by the process' event loops; to a peer it looks
// like nng's sockets. docs/decisions/0007 says why.
//
// A transport's opener lives on one loop, where it accepts or dials; pipes of a listener are spread
// over all loops, a dialled one stays with its opener. What a pipe's loop tells of it comes from
// that one thread, but for attach() of an accepted one, which precedes the rest. A pipe ends on its
// loop alone: others shut its socket down, which the loop sees.
#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/time.h"
#include "rpc/transport_epoll.h"

#define N_BUCKETS_LISTENER 1024
#define N_BUCKETS_DIALER 1
#define BACKLOG 4096       // the kernel's own limit may be lower
#define TURN_ACCEPTS 64    // before others have their turn
#define ACCEPT_PAUSE_MS 20 // when descriptors or memory are short

// ---------------------------------------------------------------- messages

static atomic_long n_messages;

long transport_epoll_messages(void)
{
    return n_messages;
}

struct transport_msg *msg_resize(struct transport_msg *m, size_t n)
{
    return mem_realloc(m, 1, sizeof *m + n);
}

struct transport_msg *msg_new(size_t n)
{
    struct transport_msg *m = msg_resize(NULL, n);
    if (!m)
        return NULL;
    atomic_fetch_add_explicit(&n_messages, 1, memory_order_relaxed);
    m->next = NULL;
    m->size = n;
    return m;
}

void msg_free(struct transport_msg *m)
{
    if (!m)
        return;
    atomic_fetch_sub_explicit(&n_messages, 1, memory_order_relaxed);
    mem_free(m);
}

static uint8_t *t_msg_data(struct transport_msg *m)
{
    return m->body;
}
static size_t t_msg_size(struct transport_msg *m)
{
    return m->size;
}
static void t_msg_shorten(struct transport_msg *m, size_t n)
{
    m->size = n;
}

// ---------------------------------------------------------------- the table of pipes

static struct pipe **table_at(struct transport *t, uint32_t id)
{
    struct pipe **at = &t->table[id % t->n_buckets];
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    return at;
}

static struct pipe *pipe_find(struct transport *t, uint32_t id)
{
    pthread_mutex_lock(&t->lock);
    struct pipe *p = *table_at(t, id);
    if (p)
        atomic_fetch_add(&p->refs, 1);
    pthread_mutex_unlock(&t->lock);
    return p;
}

static bool pipe_list(struct pipe *p)
{
    struct transport *t = p->t;
    pthread_mutex_lock(&t->lock);
    bool ok = !t->is_closing;
    if (ok) {
        do
            p->id = ++t->last_id;
        while (p->id == 0 || *table_at(t, p->id));
        *table_at(t, p->id) = p;
        t->n_pipes++;
    }
    pthread_mutex_unlock(&t->lock);
    return ok;
}

void pipe_forget(struct pipe *p)
{
    pthread_mutex_lock(&p->t->lock);
    *table_at(p->t, p->id) = p->next;
    pthread_mutex_unlock(&p->t->lock);
}

static void pipe_free(struct pipe *p)
{
    while (p->tx_head) {
        struct transport_msg *m = p->tx_head;
        p->tx_head = m->next;
        msg_free(m);
    }
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}

void pipe_unref(struct pipe *p)
{
    if (atomic_fetch_sub(&p->refs, 1) != 1)
        return;
    struct transport *t = p->t;
    pipe_free(p);
    pthread_mutex_lock(&t->lock);
    t->n_pipes--;
    pthread_cond_broadcast(&t->cond);
    pthread_mutex_unlock(&t->lock);
}

struct pipe *pipe_new(struct transport *t, int fd, struct loop *l, const struct address *remote)
{
    struct pipe *p = mem_alloc(sizeof *p);
    if (!p) {
        close(fd);
        return NULL;
    }
    pthread_mutex_init(&p->lock, NULL);
    p->io.ready = pipe_ready;
    p->t = t;
    p->loop = l;
    p->refs = 1;
    p->peer = address_peer(remote);
    p->fd = fd;
    p->tx_tail = &p->tx_head;
    p->gather.run = pipe_gather;
    if (pipe_list(p))
        return p;
    close(fd);
    pipe_free(p);
    return NULL;
}

// ---------------------------------------------------------------- accepting

static void accepted(struct transport *t, int fd, const struct address *from)
{
    address_tune(&t->name, fd);
    struct loop *l = loop_next();
    struct pipe *p = pipe_new(t, fd, l ? l : t->loop, from);
    if (!p)
        return;
    p->is_attached = pipe_say_hello(p) && t->ev->attach(t->ud, p->id);
    if (!p->is_attached || !loop_add(p->loop, fd, EPOLLIN, &p->io))
        pipe_over(p);
}

// The peer's fault, or over already: the next one may be fine.
static bool is_passing(int error)
{
    static const int passing[] = {EINTR,       ECONNABORTED, EPROTO,       ENOPROTOOPT, ENETDOWN,
                                  ENETUNREACH, EHOSTDOWN,    EHOSTUNREACH, ENONET};
    for (size_t i = 0; i < N_ELEMENTS(passing); i++) {
        if (error == passing[i])
            return true;
    }
    return false;
}

static void pause_accepting(struct transport *t)
{
    loop_timer_set(t->loop, &t->timer, time_mono_us() + ACCEPT_PAUSE_MS * 1000);
}

static void on_connection(struct loop_io *io, uint32_t events)
{
    (void)events;
    struct transport *t = list_entry(io, struct transport, io);
    for (unsigned i = 0; i < TURN_ACCEPTS; i++) {
        struct address from = {.len = sizeof from.sa};
        int fd =
            accept4(t->fd, (struct sockaddr *)&from.sa, &from.len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            accepted(t, fd, &from);
        } else if (errno == EAGAIN) {
            return;
        } else if (!is_passing(errno)) { // short of something: let go, and come back
            loop_change(t->loop, t->fd, 0, &t->io);
            pause_accepting(t);
            return;
        }
    }
}

static void accept_watch(struct transport *t)
{
    if (!loop_add(t->loop, t->fd, EPOLLIN, &t->io))
        pause_accepting(t);
}

static void on_pause_over(struct loop_timer *tm)
{
    struct transport *t = list_entry(tm, struct transport, timer);
    if (!loop_change(t->loop, t->fd, EPOLLIN, &t->io))
        accept_watch(t);
}

static void accept_start(struct transport *t)
{
    t->io.ready = on_connection;
    loop_timer_init(&t->timer, on_pause_over);
    pthread_mutex_lock(&t->lock);
    bool go_on = t->is_accepting;
    pthread_mutex_unlock(&t->lock);
    if (go_on)
        accept_watch(t);
}

static void accept_stop(struct transport *t)
{
    loop_timer_stop(&t->timer);
    if (t->fd < 0)
        return;
    loop_remove(t->loop, t->fd);
    close(t->fd);
    t->fd = -1;
    if (t->name.is_ipc)
        unlink(((const struct sockaddr_un *)&t->name.path.sa)->sun_path);
}

// ---------------------------------------------------------------- opening a listener

static int bind_and_listen(int fd, const struct address *a)
{
    return bind(fd, (const struct sockaddr *)&a->sa, a->len) == 0 && listen(fd, BACKLOG) == 0
               ? 0
               : errno;
}

// The socket file of a process that died is in the way: nobody answers there.
static bool remove_stale(const struct address *a)
{
    struct stat st;
    const char *path = ((const struct sockaddr_un *)&a->sa)->sun_path;
    if (stat(path, &st) != 0 || !S_ISSOCK(st.st_mode))
        return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool stale = fd >= 0 && connect(fd, (const struct sockaddr *)&a->sa, a->len) != 0 &&
                 errno == ECONNREFUSED;
    if (fd >= 0)
        close(fd);
    return stale && unlink(path) == 0;
}

// Returns errno's number or 0.
static int open_at(struct transport *t, const struct address *a)
{
    t->fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (t->fd < 0)
        return errno;
    if (!t->name.is_ipc)
        setsockopt(t->fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    int failed = bind_and_listen(t->fd, a);
    if (failed == EADDRINUSE && t->name.is_ipc && remove_stale(a))
        failed = bind_and_listen(t->fd, a);
    if (!failed)
        return 0;
    close(t->fd); // not accept_stop(): the path is somebody else's
    t->fd = -1;
    return failed;
}

static enum status listen_error(struct err *err, int failed, const char *url)
{
    enum status s = STATUS_UNAVAILABLE;
    if (failed == EADDRINUSE)
        s = STATUS_ALREADY_EXISTS;
    else if (failed == EACCES || failed == EPERM)
        s = STATUS_PERMISSION_DENIED;
    else if (failed == ENOMEM || failed == EMFILE || failed == ENFILE)
        s = STATUS_RESOURCE_EXHAUSTED;
    return err_set(err, s, "listen on %s: %s", url, strerror(failed));
}

static enum status open_listener(struct transport *t, const char *url, struct err *err)
{
    struct address a[ADDRESS_MAX] = {t->name.path};
    size_t n = 1;
    int rv = t->name.is_ipc ? 0 : address_look_up(&t->name, false, true, a, &n);
    if (rv != 0 || n == 0)
        return err_set(err, STATUS_INVALID_ARGUMENT, "listen on %s: %s", url,
                       rv != 0 ? gai_strerror(rv) : "the name has no address");
    int failed = EAFNOSUPPORT;
    for (size_t i = 0; i < n && (failed == EAFNOSUPPORT || failed == EADDRNOTAVAIL); i++)
        failed = open_at(t, &a[i]); // the first that this machine has, and no other
    return failed ? listen_error(err, failed, url) : STATUS_OK;
}

// ---------------------------------------------------------------- life

static void run_start(struct loop_task *task)
{
    struct transport *t = list_entry(task, struct transport, start);
    if (t->is_dialer)
        dial_start(t);
    else
        accept_start(t);
}

static void run_stop(struct loop_task *task)
{
    struct transport *t = list_entry(task, struct transport, stop);
    if (t->is_dialer)
        dial_stop(t);
    else
        accept_stop(t);
    pthread_mutex_lock(&t->lock);
    t->is_stopped = true;
    pthread_cond_broadcast(&t->cond);
    pthread_mutex_unlock(&t->lock);
}

// The opener ends soon, on its loop.
static void stop_opener(struct transport *t)
{
    pthread_mutex_lock(&t->lock);
    bool was = !t->is_accepting;
    t->is_accepting = false;
    pthread_mutex_unlock(&t->lock);
    if (!was)
        loop_post(t->loop, &t->stop);
}

static void t_release(struct transport *t)
{
    if (t->fd >= 0)
        close(t->fd);
    pthread_cond_destroy(&t->cond);
    pthread_mutex_destroy(&t->lock);
    mem_free(t->table);
    mem_free(t);
    loops_leave();
}

static void t_free(struct transport *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->is_closing = true; // before the opener stops: nothing sets its timer again
    pthread_mutex_unlock(&t->lock);
    stop_opener(t);
    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->n_buckets; i++) {
        for (struct pipe *p = t->table[i]; p; p = p->next)
            pipe_close(p);
    }
    while (t->n_pipes || !t->is_stopped)
        pthread_cond_wait(&t->cond, &t->lock);
    pthread_mutex_unlock(&t->lock);
    t_release(t);
}

static enum status t_new(const char *url, bool is_dialer, const struct transport_events *ev,
                         void *ud, struct transport **ret, struct err *err)
{
    struct address_name name;
    enum status s = address_parse(url, &name, err);
    if (s != STATUS_OK)
        return s;
    size_t n_buckets = is_dialer ? N_BUCKETS_DIALER : N_BUCKETS_LISTENER;
    struct transport *t = mem_alloc(sizeof *t);
    struct pipe **table = mem_array(n_buckets, sizeof(struct pipe *));
    if (!t || !table) {
        mem_free(t);
        mem_free(table);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", url);
    }
    *t = (struct transport){.ev = ev,
                            .ud = ud,
                            .name = name,
                            .is_dialer = is_dialer,
                            .n_prefix = name.is_ipc ? 13 : 12,
                            .fd = -1,
                            .start.run = run_start,
                            .stop.run = run_stop,
                            .is_accepting = true,
                            .backoff_ms = TRANSPORT_BACKOFF_MIN_MS,
                            .n_buckets = n_buckets,
                            .table = table};
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->cond, NULL);
    loops_use();
    t->loop = loop_next();
    if (!t->loop) {
        s = err_errno(err, errno, "%s: start an event loop", url);
        t_release(t);
        return s;
    }
    *ret = t;
    return STATUS_OK;
}

static enum status t_listen(const char *url, const struct transport_events *ev, void *ud,
                            char *ret_url, size_t ret_url_size, struct transport **ret,
                            struct err *err)
{
    struct transport *t;
    enum status s = t_new(url, false, ev, ud, &t, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "listen");
    s = open_listener(t, url, err);
    if (s != STATUS_OK) {
        t_release(t);
        return s;
    }
    struct address a = {.len = sizeof a.sa};
    if (getsockname(t->fd, (struct sockaddr *)&a.sa, &a.len) != 0)
        a = t->name.path; // the url as it came is the best that is known
    if (ret_url)
        address_real_url(&a, url, ret_url, ret_url_size);
    *ret = t; // events may name it from here on
    loop_post(t->loop, &t->start);
    return STATUS_OK;
}

static enum status t_dial(const char *url, const struct transport_events *ev, void *ud,
                          struct transport **ret, struct err *err)
{
    struct transport *t;
    enum status s = t_new(url, true, ev, ud, &t, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "dial");
    *ret = t; // events may name it from here on
    loop_post(t->loop, &t->start);
    return STATUS_OK;
}

// ---------------------------------------------------------------- the rest

static bool t_send(struct transport *t, uint32_t id, struct transport_msg *m)
{
    struct pipe *p = pipe_find(t, id);
    if (!p) {
        msg_free(m);
        return true;
    }
    bool left = pipe_send(p, m);
    pipe_unref(p);
    return left;
}

static void t_set_backoff(struct transport *t, int64_t ms)
{
    pthread_mutex_lock(&t->lock);
    t->backoff_ms = ms;
    pthread_mutex_unlock(&t->lock);
}

static void t_drop(struct transport *t, uint32_t id)
{
    struct pipe *p = pipe_find(t, id);
    if (!p)
        return;
    pipe_close(p);
    pipe_unref(p);
}

static bool t_peer(struct transport *t, uint32_t id, struct transport_addr *ret)
{
    struct pipe *p = pipe_find(t, id);
    if (!p)
        return false;
    *ret = p->peer;
    pipe_unref(p);
    return true;
}

static void t_quiesce(struct transport *t)
{
    (void)t; // messages belong to their pipe
}

const struct transport_ops transport_epoll = {
    .name = "epoll",
    .is_serial = true,
    .listen = t_listen,
    .dial = t_dial,
    .set_backoff = t_set_backoff,
    .send = t_send,
    .drop = t_drop,
    .peer = t_peer,
    .stop_accepting = stop_opener,
    .quiesce = t_quiesce,
    .free = t_free,
    .msg_new = msg_new,
    .msg_data = t_msg_data,
    .msg_size = t_msg_size,
    .msg_shorten = t_msg_shorten,
    .msg_free = msg_free,
};
