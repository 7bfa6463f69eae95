// What workers and uploads say of media: plans, fragments, tasks, first bytes of files.
#include <string.h>

#include "base/mem.h"
#include "fuzz.h"
#include "media/cmaf.h"
#include "media/playlist.h"
#include "media/sniff.h"
#include "media/task.h"

static void print_playlists(const struct media_plan *p)
{
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, 16 << 20);
    FUZZ_CHECK(media_playlist_master(p, &(struct media_offer){0}, NULL, &b, &err) == STATUS_OK ||
               err.msg[0]);
    for (size_t i = 0; i < p->n_renditions; i++) {
        buf_reset(&b);
        FUZZ_CHECK(media_playlist_rendition(p, i, &b, &err) == STATUS_OK || err.msg[0]);
    }
    buf_done(&b);
}

static void try_plan(struct fuzz_input in)
{
    AUTO(media_plan_free_p) struct media_plan *p = NULL;
    AUTO(media_plan_free_p) struct media_plan *again = NULL;
    struct err err = ERR_INIT;
    struct buf one, two;
    if (media_plan_decode(in.p, in.n, &p, &err) != STATUS_OK)
        return;
    FUZZ_CHECK(media_plan_check(p, &err) == STATUS_OK);
    buf_init(&one, MEDIA_PLAN_MAX_BYTES);
    buf_init(&two, MEDIA_PLAN_MAX_BYTES);
    FUZZ_CHECK(media_plan_encode(p, &one, &err) == STATUS_OK);
    FUZZ_CHECK(media_plan_decode(one.data, one.len, &again, &err) == STATUS_OK);
    FUZZ_CHECK(media_plan_encode(again, &two, &err) == STATUS_OK);
    FUZZ_CHECK(one.len == two.len && memcmp(one.data, two.data, one.len) == 0);
    print_playlists(p);
    buf_done(&one);
    buf_done(&two);
}

// The first sample alone is a fragment again, and shorter or the same.
static void try_key(struct fuzz_input in)
{
    struct media_fragment all, key;
    struct err err = ERR_INIT;
    struct buf b;
    buf_init(&b, MEDIA_MAX_SEGMENT_BYTES);
    if (media_cmaf_key(in.p, in.n, &b, &err) == STATUS_OK) {
        FUZZ_CHECK(media_cmaf_parse(in.p, in.n, &all, &err) == STATUS_OK);
        FUZZ_CHECK(media_cmaf_parse(b.data, b.len, &key, &err) == STATUS_OK);
        FUZZ_CHECK(key.n_samples == 1 && key.duration == all.duration);
        FUZZ_CHECK(key.data_len <= all.data_len);
    }
    buf_done(&b);
}

// A name that is understood is the only one for what it says.
static void try_offer(struct fuzz_input in)
{
    char name[256], again[MEDIA_OFFER_SIZE];
    struct media_offer o;
    size_t n = in.n < sizeof(name) - 1 ? in.n : sizeof(name) - 1;
    memcpy(name, in.p, n);
    name[n] = '\0';
    if (media_offer_parse(name, &o, NULL) != STATUS_OK)
        return;
    media_offer_name(&o, again);
    FUZZ_CHECK(strcmp(name, again) == 0);
}

static void try_fragment(struct fuzz_input in)
{
    struct media_fragment f;
    struct err err = ERR_INIT;
    if (media_cmaf_parse(in.p, in.n, &f, &err) == STATUS_OK) {
        FUZZ_CHECK(f.data_offset <= in.n && f.data_len <= in.n - f.data_offset);
        try_key(in);
    }
    struct media_sample samples[16];
    // Cut off in the body: what is told of samples adds up all the same.
    if (media_cmaf_head(in.p, in.n, (int64_t)in.n + 100, samples, 16, &f, &err) == STATUS_OK)
        FUZZ_CHECK(f.data_offset + f.data_len == in.n + 100 && samples[0].duration > 0);
}

static void try_task(struct fuzz_input in)
{
    struct media_task t, again;
    struct err err = ERR_INIT;
    struct buf b;
    if (media_task_decode(in.p, in.n, &t, &err) != STATUS_OK)
        return;
    FUZZ_CHECK(t.plan_len == 0 || (t.plan >= in.p && t.plan + t.plan_len <= in.p + in.n));
    buf_init(&b, 16 << 20);
    FUZZ_CHECK(media_task_encode(&t, &b, &err) == STATUS_OK);
    FUZZ_CHECK(media_task_decode(b.data, b.len, &again, &err) == STATUS_OK);
    FUZZ_CHECK(again.n_renditions == t.n_renditions && again.plan_len == t.plan_len);
    buf_done(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    switch (fuzz_u8(&in) % 5) {
    case 0:
        try_plan(in);
        break;
    case 1:
        try_fragment(in);
        break;
    case 2:
        try_task(in);
        break;
    case 3:
        try_offer(in);
        break;
    default:
        (void)media_kind_name(media_sniff(in.n ? in.p : (const void *)"", in.n));
        break;
    }
    return 0;
}
