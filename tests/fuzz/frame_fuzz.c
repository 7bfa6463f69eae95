// Frames of a record: whatever is decoded can be encoded again, and is the same then.
#include <string.h>

#include "base/mem.h"
#include "fuzz.h"
#include "rpc/frame.h"

static void check_frame(const struct frame *f)
{
    uint64_t number;
    uint8_t head[FRAME_HEAD_MAX];
    size_t n = frame_head(head, f->type, f->flags, f->id, f->n);
    FUZZ_CHECK(n <= FRAME_HEAD_MAX);
    AUTO(mem_free_p) uint8_t *again = mem_alloc(n + f->n);
    FUZZ_CHECK(again);
    memcpy(again, head, n);
    if (f->n)
        memcpy(again + n, f->p, f->n);
    const uint8_t *p = again;
    struct frame g;
    FUZZ_CHECK(frame_next(&p, again + n + f->n, &g));
    FUZZ_CHECK(g.type == f->type && g.flags == f->flags && g.id == f->id && g.n == f->n);
    FUZZ_CHECK(p == again + n + f->n);
    if (frame_number(f, &number)) {
        struct buf b;
        buf_init(&b, 64);
        frame_put_number(&b, f->type, f->id, number);
        const uint8_t *q = b.data;
        uint64_t same;
        FUZZ_CHECK(frame_next(&q, b.data + b.len, &g) && frame_number(&g, &same));
        FUZZ_CHECK(same == number);
        buf_done(&b);
    }
}

// A run is made of whole frames, fits, and counts its STATUS frames.
static void check_run(const uint8_t *p, size_t n, size_t max)
{
    unsigned n_status, left;
    struct frame f;
    if (max >= n)
        return;
    size_t run = frame_run(p, n, max, &n_status);
    FUZZ_CHECK(run <= max);
    left = n_status;
    const uint8_t *at = p;
    while (at < p + run) {
        FUZZ_CHECK(frame_next(&at, p + run, &f));
        left -= f.type == FRAME_STATUS;
    }
    FUZZ_CHECK(left == 0);
    FUZZ_CHECK(!frame_next(&at, p + n, &f) || (size_t)(at - p) > max); // the longest one
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    size_t max = fuzz_u16(&in);
    const uint8_t *p = in.p, *end = in.p + in.n;
    struct frame f;
    for (size_t total = 0; frame_next(&p, end, &f); total = (size_t)(p - in.p)) {
        FUZZ_CHECK(p > in.p + total && p <= end && f.p + f.n == p);
        check_frame(&f);
    }
    check_run(in.p, in.n, max);
    return 0;
}
