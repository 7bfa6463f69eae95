// What a call says at its beginning and at its end: OPEN with trace and metadata, STATUS with
// details.
#include <string.h>

#include "fuzz.h"
#include "rpc/details.h"
#include "rpc/frame.h"

static void check_metadata(const struct frame_open *o, struct rpc_metadata all[RPC_METADATA_MAX],
                           char keys[RPC_METADATA_MAX][RPC_METADATA_KEY_MAX + 1])
{
    const uint8_t *p = o->metadata;
    const uint8_t *end = p ? p + o->n_metadata_bytes : NULL;
    size_t sum = 0;
    FUZZ_CHECK(o->n_metadata <= RPC_METADATA_MAX);
    for (unsigned i = 0; i < o->n_metadata; i++) {
        size_t key_len;
        FUZZ_CHECK(frame_metadata_next(&p, end, &all[i], &key_len));
        FUZZ_CHECK(frame_metadata_key_ok(all[i].key, key_len));
        sum += key_len + all[i].n_value;
        memcpy(keys[i], all[i].key, key_len);
        keys[i][key_len] = '\0';
        all[i].key = keys[i];
    }
    FUZZ_CHECK(o->n_metadata == 0 || p == end);
    FUZZ_CHECK(sum <= RPC_METADATA_MAX_BYTES);
}

static void check_same_open(const struct frame_open *o, const struct frame_call *c)
{
    struct buf b;
    struct frame f;
    struct frame_open again;
    buf_init(&b, 1 << 20);
    frame_put_open(&b, 7, c);
    const uint8_t *p = b.data;
    FUZZ_CHECK(frame_next(&p, b.data + b.len, &f) && f.type == FRAME_OPEN && f.id == 7);
    FUZZ_CHECK(frame_open(&f, &again));
    FUZZ_CHECK(again.slot == o->slot && again.deadline_ms == o->deadline_ms);
    FUZZ_CHECK(!strcmp(again.method, o->method) && !strcmp(again.route, o->route) &&
               !strcmp(again.key, o->key));
    FUZZ_CHECK(again.n_metadata == o->n_metadata);
    FUZZ_CHECK(!memcmp(again.trace.trace_id, o->trace.trace_id, sizeof o->trace.trace_id));
    buf_done(&b);
}

static void try_open(const struct frame *f)
{
    struct frame_open o;
    struct rpc_metadata all[RPC_METADATA_MAX];
    static char keys[RPC_METADATA_MAX][RPC_METADATA_KEY_MAX + 1];
    if (!frame_open(f, &o))
        return;
    check_metadata(&o, all, keys);
    struct frame_call c = {.flags = o.flags & FRAME_OPEN_FORWARDED,
                           .slot = o.slot,
                           .deadline_ms = o.deadline_ms,
                           .method = o.method,
                           .route = o.route,
                           .key = o.key,
                           .trace = o.flags & FRAME_OPEN_TRACE ? &o.trace : NULL,
                           .metadata = all,
                           .n_metadata = o.n_metadata};
    check_same_open(&o, &c);
}

static void try_status(const struct frame *f)
{
    struct frame_status st, again;
    struct rpc_details d;
    if (!frame_status(f, &st))
        return;
    FUZZ_CHECK(st.n_details <= RPC_DETAILS_MAX_BYTES && memchr(st.msg, 0, sizeof st.msg));
    details_unpack(&st, &d);
    FUZZ_CHECK(strlen(d.reason) <= RPC_REASON_MAX);
    for (size_t i = 0; i < d.n_violations; i++)
        FUZZ_CHECK(d.violations[i].field && d.violations[i].description);
    for (size_t i = 0; i < d.n_metadata; i++)
        FUZZ_CHECK(d.metadata[i].key && (d.metadata[i].value || !d.metadata[i].n_value));
    rpc_details_done(&d);

    struct buf b;
    struct frame g;
    buf_init(&b, 1 << 20);
    frame_put_status(&b, 7, &st);
    const uint8_t *p = b.data;
    FUZZ_CHECK(frame_next(&p, b.data + b.len, &g) && frame_status(&g, &again));
    FUZZ_CHECK(again.code == st.code);
    FUZZ_CHECK(st.code == STATUS_OK ||
               (!strcmp(again.msg, st.msg) && again.retry_after_ms == st.retry_after_ms &&
                again.n_details == st.n_details));
    buf_done(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    bool is_status = fuzz_u8(&in) & 1;
    struct frame f = {.type = is_status ? FRAME_STATUS : FRAME_OPEN, .id = 7, .p = in.p, .n = in.n};
    if (is_status)
        try_status(&f);
    else
        try_open(&f);
    return 0;
}
