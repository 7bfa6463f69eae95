// Dialling for the epoll transport: one pipe to one name, for ever.
//
//   waiting --its time--> looking up --> connecting --> unheard --hello--> attached
//      ^                      |              | each address      |             |
//      +----------------------+--------------+-------------------+-------------+
//
// Everything here runs on the transport's loop. Names are looked up on a thread of their own, since
// that may take as long as it likes; a transport that is freed meanwhile leaves it behind.
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/time.h"
#include "rpc/transport_epoll.h"

#define CONNECT_MS 10000 // for one address, and for the other side's hello

// ---------------------------------------------------------------- names

struct look_up { // of one name: the thread's until it is posted, then the loop's
    pthread_mutex_t lock;
    struct transport *t; // NULL: gone
    struct address_name name;
    struct loop_task done;
    int rv;
    struct address addresses[ADDRESS_MAX];
    size_t n_addresses;
};

static void look_up_free(struct look_up *l)
{
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}

static void connect_next(struct transport *t, const char *why);

static void looked_up(struct loop_task *task)
{
    struct look_up *l = list_entry(task, struct look_up, done);
    pthread_mutex_lock(&l->lock); // the thread has let go of it
    struct transport *t = l->t;
    pthread_mutex_unlock(&l->lock);
    if (t) {
        t->look_up = NULL;
        memcpy(t->addresses, l->addresses, sizeof t->addresses);
        t->n_addresses = l->n_addresses;
        t->next_address = 0;
        if (l->rv != 0)
            dial_again(t, gai_strerror(l->rv));
        else
            connect_next(t, "the name has no address");
    }
    look_up_free(l);
}

static void *look_up_thread(void *ud)
{
    struct look_up *l = ud;
    pthread_setname_np(pthread_self(), "rpc-names");
    l->rv = address_look_up(&l->name, false, false, l->addresses, &l->n_addresses);
    pthread_mutex_lock(&l->lock);
    bool wanted = l->t != NULL;
    if (wanted)
        loop_post(l->t->loop, &l->done);
    pthread_mutex_unlock(&l->lock);
    if (!wanted)
        look_up_free(l);
    return NULL;
}

static bool look_up_start(struct transport *t)
{
    struct look_up *l = mem_alloc(sizeof *l);
    if (!l)
        return false;
    pthread_mutex_init(&l->lock, NULL);
    l->t = t;
    l->name = t->name;
    l->done.run = looked_up;
    sigset_t all, old;
    sigfillset(&all);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread;
    int failed = pthread_create(&thread, &attr, look_up_thread, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (failed) {
        look_up_free(l);
        return false;
    }
    t->look_up = l;
    return true;
}

// ---------------------------------------------------------------- connecting

static void close_fd(struct transport *t)
{
    if (t->fd < 0)
        return;
    loop_remove(t->loop, t->fd);
    close(t->fd);
    t->fd = -1;
}

static void set_timer(struct transport *t, int64_t ms)
{
    loop_timer_set(t->loop, &t->timer, time_mono_us() + ms * 1000);
}

static void connected(struct transport *t)
{
    int fd = t->fd;
    t->fd = -1;
    loop_remove(t->loop, fd); // from here on it is the pipe's, which may not come to be
    struct pipe *p = pipe_new(t, fd, t->loop, &t->addresses[t->next_address - 1]);
    if (!p) {
        dial_again(t, "out of memory");
        return;
    }
    p->why = "the server closed the connection at once: it is full, or had too many failed "
             "attempts from here";
    t->unheard = p;
    set_timer(t, CONNECT_MS);
    if (!pipe_say_hello(p) || !loop_add(t->loop, p->fd, EPOLLIN, &p->io))
        pipe_over(p);
}

static void on_connect(struct loop_io *io, uint32_t events)
{
    (void)events;
    struct transport *t = list_entry(io, struct transport, io);
    int failed = 0;
    socklen_t len = sizeof failed;
    if (getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &failed, &len) != 0)
        failed = errno;
    if (failed)
        connect_next(t, strerror(failed));
    else
        connected(t);
}

static bool connect_start(struct transport *t, const struct address *a)
{
    t->fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (t->fd < 0)
        return false;
    address_tune(&t->name, t->fd);
    if (connect(t->fd, (const struct sockaddr *)&a->sa, a->len) != 0 && errno != EINPROGRESS)
        return false;
    t->io.ready = on_connect; // at once, when it is connected already
    return loop_add(t->loop, t->fd, EPOLLOUT, &t->io);
}

// why: what became of the address before.
static void connect_next(struct transport *t, const char *why)
{
    close_fd(t);
    while (t->next_address < t->n_addresses) {
        set_timer(t, CONNECT_MS);
        if (connect_start(t, &t->addresses[t->next_address++]))
            return;
        why = strerror(errno);
        close_fd(t);
    }
    dial_again(t, why);
}

static void dial_now(struct transport *t)
{
    t->next_address = t->n_addresses = 0;
    if (t->name.is_ipc) {
        t->addresses[t->n_addresses++] = t->name.path;
        connect_next(t, NULL);
        return;
    }
    int rv = address_look_up(&t->name, true, false, t->addresses, &t->n_addresses);
    if (rv == 0)
        connect_next(t, "the name has no address");
    else if (rv != EAI_NONAME)
        dial_again(t, gai_strerror(rv));
    else if (!look_up_start(t))
        dial_again(t, "no memory or thread to look the name up");
}

// ---------------------------------------------------------------- time

static void on_time(struct loop_timer *tm)
{
    struct transport *t = list_entry(tm, struct transport, timer);
    if (t->unheard) {
        t->unheard->why = "it does not answer";
        pipe_close(t->unheard);
    } else if (t->fd >= 0) {
        connect_next(t, strerror(ETIMEDOUT));
    } else {
        dial_now(t);
    }
}

void dial_heard(struct transport *t)
{
    t->unheard = NULL;
    loop_timer_stop(&t->timer);
}

void dial_again(struct transport *t, const char *why)
{
    t->unheard = NULL;
    loop_timer_stop(&t->timer);
    if (why && t->ev->failed)
        t->ev->failed(t->ud, why);
    if (!why)
        t->connect_ms = TRANSPORT_BACKOFF_MIN_MS / 2;
    else if ((t->connect_ms *= 2) > TRANSPORT_BACKOFF_MAX_MS)
        t->connect_ms = TRANSPORT_BACKOFF_MAX_MS;
    pthread_mutex_lock(&t->lock);
    int64_t ms = t->connect_ms > t->backoff_ms ? t->connect_ms : t->backoff_ms;
    bool go_on = !t->is_closing;
    pthread_mutex_unlock(&t->lock);
    if (go_on)
        set_timer(t, ms / 2 + (int64_t)rand_below((uint64_t)ms + 1));
}

void dial_start(struct transport *t)
{
    loop_timer_init(&t->timer, on_time);
    t->connect_ms = TRANSPORT_BACKOFF_MIN_MS;
    dial_now(t);
}

void dial_stop(struct transport *t)
{
    loop_timer_stop(&t->timer);
    close_fd(t);
    if (!t->look_up)
        return;
    pthread_mutex_lock(&t->look_up->lock);
    t->look_up->t = NULL; // who still has it frees it
    pthread_mutex_unlock(&t->look_up->lock);
    t->look_up = NULL;
}
