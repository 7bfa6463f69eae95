// LISTEN on a connection of its own. One thread: connect, listen, wait for notifications; after a
// loss wait a little and start again. The stop event ends every one of its waits.
#include "db/internal.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rand.h"

#define PROBE_MS 30000 // a silent connection is asked whether it still works
#define RECONNECT_MIN_MS 50
#define RECONNECT_MAX_MS 3000

struct db_listener {
    struct db_conf conf;
    char **channels;
    size_t n_channels;
    db_notify_fn fn;
    void *ud;
    int stop_fd;
    pthread_t thread;
    bool started;
};

static enum status subscribe(struct db_listener *l, struct db_conn *c, struct err *err)
{
    for (size_t i = 0; i < l->n_channels; i++) {
        char *name = PQescapeIdentifier(c->pg, l->channels[i], strlen(l->channels[i]));
        AUTO(mem_free_p) char *sql = name ? mem_printf("LISTEN %s", name) : NULL;
        PQfreemem(name);
        if (!sql)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "listen: out of memory");
        enum status s = db_conn_simple(c, sql, NULL, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

static void deliver(struct db_listener *l, struct db_conn *c)
{
    for (PGnotify *n; (n = PQnotifies(c->pg));) {
        l->fn(l->ud, n->relname, n->extra);
        PQfreemem(n);
    }
}

// Until the connection is lost (true) or the listener stops (false).
static bool serve(struct db_listener *l, struct db_conn *c)
{
    struct pollfd fds[2] = {{.fd = PQsocket(c->pg), .events = POLLIN},
                            {.fd = l->stop_fd, .events = POLLIN}};
    for (;;) {
        deliver(l, c);
        int n = poll(fds, 2, PROBE_MS);
        if (n < 0 && errno != EINTR)
            return true;
        if (n > 0 && fds[1].revents)
            return false;
        if (n == 0 && db_conn_simple(c, "SELECT 1", NULL, NULL) != STATUS_OK)
            return true;
        if (n > 0 && !PQconsumeInput(c->pg))
            return true;
    }
}

static bool wait_or_stop(struct db_listener *l, int64_t ms)
{
    struct pollfd p = {.fd = l->stop_fd, .events = POLLIN};
    return poll(&p, 1, (int)ms) > 0;
}

static void *run(void *arg)
{
    struct db_listener *l = arg;
    int64_t delay_ms = RECONNECT_MIN_MS;
    for (bool going = true; going;) {
        AUTO(db_conn_close_p) struct db_conn *c = NULL;
        enum status s = db_conn_open(&l->conf, l->stop_fd, &c, NULL);
        if (s == STATUS_OK)
            s = subscribe(l, c, NULL);
        if (s == STATUS_OK) {
            delay_ms = RECONNECT_MIN_MS;
            for (size_t i = 0; i < l->n_channels; i++)
                l->fn(l->ud, l->channels[i], NULL);
            going = serve(l, c);
        } else {
            going = s != STATUS_CANCELLED;
        }
        if (going && wait_or_stop(l, delay_ms / 2 + (int64_t)rand_below((uint64_t)delay_ms)))
            going = false;
        delay_ms = delay_ms * 2 > RECONNECT_MAX_MS ? RECONNECT_MAX_MS : delay_ms * 2;
    }
    return NULL;
}

struct db_listener *db_listen(const struct db_opts *o, const char *const *channels, size_t n,
                              db_notify_fn fn, void *ud, struct err *err)
{
    struct db_listener *l = mem_alloc(sizeof *l);
    if (!l) {
        err_set(err, STATUS_RESOURCE_EXHAUSTED, "listen: out of memory");
        return NULL;
    }
    l->fn = fn, l->ud = ud, l->stop_fd = -1;
    enum status s = db_conf_init(&l->conf, o, err);
    if (s == STATUS_OK && !(l->channels = mem_array(n, sizeof *l->channels)))
        s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "listen: out of memory");
    for (size_t i = 0; s == STATUS_OK && i < n; i++, l->n_channels++)
        if (!(l->channels[i] = mem_strdup(channels[i])))
            s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "listen: out of memory");
    if (s == STATUS_OK && (l->stop_fd = eventfd(0, EFD_CLOEXEC)) < 0)
        s = err_errno(err, errno, "listen: eventfd");
    if (s == STATUS_OK) {
        int e = pthread_create(&l->thread, NULL, run, l);
        l->started = e == 0;
        if (e)
            s = err_errno(err, e, "listen: thread");
    }
    if (s == STATUS_OK)
        return l;
    db_listener_free(l);
    return NULL;
}

void db_listener_free(struct db_listener *l)
{
    if (!l)
        return;
    if (l->started) {
        eventfd_write(l->stop_fd, 1);
        pthread_join(l->thread, NULL);
    }
    if (l->stop_fd >= 0)
        close(l->stop_fd);
    for (size_t i = 0; i < l->n_channels; i++)
        mem_free(l->channels[i]);
    mem_free(l->channels);
    db_conf_done(&l->conf);
    mem_free(l);
}
