// Streams that users send. Each holds a pool thread for as long as its sender likes to take, so
// they are bounded twice: in number, so that reads and the services' calls always find a thread,
// and in time, so that places come free again. Whoever finds no place is told to come back soon.
#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "internal.h"

#define FEED_MS 120000        // at least; what was stored by then is kept
#define FEED_SLOWEST_BPS 8192 // and time for the bytes announced at this rate
#define RETRY_AFTER_MS 1000

void origin_feeds_init(struct origin_feeds *f, unsigned n_threads)
{
    unsigned kept_free = n_threads / 4 > 2 ? n_threads / 4 : 2;
    f->max = n_threads > kept_free ? n_threads - kept_free : 1;
    f->max_per_user = f->max / 2 > 0 ? f->max / 2 : 1;
    list_init(&f->open);
}

static unsigned count(const struct origin_feeds *f, const char *user, unsigned *ret_of_user)
{
    unsigned n = 0;
    *ret_of_user = 0;
    list_for_each(l, &f->open)
    {
        n++;
        *ret_of_user += str_eq(list_entry(l, struct origin_feed, link)->user, user);
    }
    return n;
}

enum status origin_feed_begin(struct origin *o, struct rpc_call *call, struct origin_feed *ret,
                              struct err *err)
{
    const struct rpc_user *user = rpc_call_user(call);
    if (!user)
        return err_set(err, STATUS_UNAUTHENTICATED, "upload: sign in first");
    *ret = (struct origin_feed){.origin = o, .call = call};
    str_copy(ret->user, sizeof ret->user, user->id);
    unsigned of_user;
    pthread_mutex_lock(&o->mu);
    bool full =
        count(&o->feeds, user->id, &of_user) >= o->feeds.max || of_user >= o->feeds.max_per_user;
    if (!full)
        list_push_back(&o->feeds.open, &ret->link);
    pthread_mutex_unlock(&o->mu);
    if (full) {
        rpc_call_retry_after(call, RETRY_AFTER_MS);
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "upload: too many are being sent at once; try again in a second");
    }
    rpc_call_limit(call, time_deadline_in_ms(FEED_MS));
    return STATUS_OK;
}

void origin_feed_expect(struct origin_feed *f, int64_t bytes)
{
    rpc_call_limit(f->call, time_deadline_in_ms(FEED_MS + bytes / FEED_SLOWEST_BPS * 1000));
}

void origin_feed_end(struct origin_feed *f)
{
    pthread_mutex_lock(&f->origin->mu);
    list_remove(&f->link);
    pthread_mutex_unlock(&f->origin->mu);
}
