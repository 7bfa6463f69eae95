// The pool: at most max_conns connections, the most recently used first; and what runs on borrowed
// ones.
#include "db/internal.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>

#include "base/mem.h"
#include "base/rand.h"
#include "base/time.h"

#define MAX_TX_ATTEMPTS 9 // the first and 8 retries

struct db {
    struct db_conf conf;
    pthread_mutex_t lock;
    pthread_cond_t returned;
    struct list idle;
    unsigned n_open; // idle, lent, or being opened
};

struct db *db_new(const struct db_opts *o, struct err *err)
{
    struct db *d = mem_alloc(sizeof *d);
    if (!d) {
        err_set(err, STATUS_RESOURCE_EXHAUSTED, "database pool: out of memory");
        return NULL;
    }
    if (db_conf_init(&d->conf, o, err) != STATUS_OK) {
        mem_free(d);
        return NULL;
    }
    list_init(&d->idle);
    pthread_mutex_init(&d->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&d->returned, &attr);
    pthread_condattr_destroy(&attr);
    return d;
}

void db_free(struct db *d)
{
    if (!d)
        return;
    for (struct list *l; (l = list_pop_front(&d->idle));)
        db_conn_close(list_entry(l, struct db_conn, link));
    pthread_cond_destroy(&d->returned);
    pthread_mutex_destroy(&d->lock);
    db_conf_done(&d->conf);
    mem_free(d);
}

const struct db_conf *db_get_conf(const struct db *d)
{
    return &d->conf;
}

// With the lock held: an idle connection, or NULL with a place reserved for a new one.
static enum status wait_for_place(struct db *d, struct db_conn **ret, struct err *err)
{
    int64_t deadline_us = time_deadline_in_ms(d->conf.statement_timeout_ms);
    struct timespec ts = {.tv_sec = (time_t)(deadline_us / 1000000),
                          .tv_nsec = (long)(deadline_us % 1000000) * 1000};
    for (;;) {
        struct list *l = list_pop_front(&d->idle);
        if (l) {
            *ret = list_entry(l, struct db_conn, link);
            return STATUS_OK;
        }
        if (d->n_open < d->conf.max_conns) {
            d->n_open++;
            *ret = NULL;
            return STATUS_OK;
        }
        if (pthread_cond_timedwait(&d->returned, &d->lock, &ts) == ETIMEDOUT)
            return err_set(err, STATUS_UNAVAILABLE,
                           "no database connection became free within %lld ms",
                           (long long)d->conf.statement_timeout_ms);
    }
}

static void give_place_back(struct db *d)
{
    pthread_mutex_lock(&d->lock);
    d->n_open--;
    pthread_cond_signal(&d->returned);
    pthread_mutex_unlock(&d->lock);
}

static enum status borrow(struct db *d, struct db_conn **ret, struct err *err)
{
    for (;;) {
        struct db_conn *c = NULL;
        pthread_mutex_lock(&d->lock);
        enum status s = wait_for_place(d, &c, err);
        pthread_mutex_unlock(&d->lock);
        if (s != STATUS_OK)
            return s;
        if (!c) {
            s = db_conn_open(&d->conf, -1, ret, err);
            if (s != STATUS_OK)
                give_place_back(d);
            return s;
        }
        if (db_conn_is_alive(c)) {
            *ret = c;
            return STATUS_OK;
        }
        db_conn_close(c);
        give_place_back(d);
    }
}

static void give_back(struct db *d, struct db_conn *c)
{
    if (c->broken || !db_conn_is_alive(c)) {
        db_conn_close(c);
        give_place_back(d);
        return;
    }
    pthread_mutex_lock(&d->lock);
    list_push_front(&d->idle, &c->link);
    pthread_cond_signal(&d->returned);
    pthread_mutex_unlock(&d->lock);
}

enum status db_query(struct db *d, const char *sql, const struct db_param *params, size_t n,
                     struct db_result **ret, struct err *err)
{
    struct db_conn *c = NULL;
    enum status s = borrow(d, &c, err);
    if (s != STATUS_OK)
        return s;
    s = db_exec(c, sql, params, n, ret, err);
    give_back(d, c);
    return s;
}

enum status db_ping(struct db *d, struct err *err)
{
    return db_query(d, "SELECT 1", NULL, 0, NULL, err);
}

// Full jitter over 4, 8, 16 ... 512 ms, ended early by the connection's end.
static void back_off(struct db_conn *c, unsigned attempt)
{
    struct pollfd p = {.fd = PQsocket(c->pg), .events = POLLIN};
    uint64_t most_ms = 4ULL << (attempt < 7 ? attempt : 7);
    int n = poll(&p, 1, 1 + (int)rand_below(most_ms));
    (void)n; // whatever ended the wait, the next attempt finds out
}

enum status db_tx(struct db *d, enum db_isolation iso, db_tx_fn fn, void *ud, struct err *err)
{
    struct db_conn *c = NULL;
    enum status s = borrow(d, &c, err);
    if (s != STATUS_OK)
        return s;
    for (unsigned attempt = 0;; attempt++) {
        s = db_conn_tx(c, iso, fn, ud, err);
        if (s == STATUS_OK || !c->serialization_failed || c->broken ||
            attempt + 1 == MAX_TX_ATTEMPTS)
            break;
        back_off(c, attempt);
    }
    give_back(d, c);
    return s;
}
