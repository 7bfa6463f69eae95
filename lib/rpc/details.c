// Details of a status: a small protobuf message behind the text, for programs.
#include "rpc/details.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "cauce/status.pb-c.h"

#define MAX_VIOLATIONS 32
#define MAX_ENTRIES 8
#define ENTRY_OVERHEAD 16 // tags and lengths of one entry, generously

struct call_details {
    Status__Details msg;
    Status__Violation *violations[MAX_VIOLATIONS];
    Status__Entry *entries[MAX_ENTRIES];
    size_t room; // bytes that still fit
};

static bool reason_ok(const char *word)
{
    size_t n = strspn(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
    return n > 0 && n <= RPC_REASON_MAX && word[n] == 0;
}

// ---------------------------------------------------------------- the server's side

struct call_details *details_new(struct arena *a)
{
    struct call_details *d = a ? arena_alloc(a, sizeof *d) : NULL;
    if (!d)
        return NULL;
    status__details__init(&d->msg);
    d->msg.violations = d->violations;
    d->msg.metadata = d->entries;
    d->room = RPC_DETAILS_MAX_BYTES - RPC_REASON_MAX - ENTRY_OVERHEAD;
    return d;
}

static bool spend(struct call_details *d, size_t n)
{
    if (n + ENTRY_OVERHEAD > d->room)
        return false;
    d->room -= n + ENTRY_OVERHEAD;
    return true;
}

void details_reason(struct call_details *d, struct arena *a, const char *word)
{
    char *kept = reason_ok(word) ? arena_strdup(a, word) : NULL;
    if (kept)
        d->msg.reason = kept;
}

void details_retryable(struct call_details *d)
{
    d->msg.retryable = true;
}

void details_violation(struct call_details *d, struct arena *a, const char *field,
                       const char *description)
{
    if (d->msg.n_violations >= MAX_VIOLATIONS || !spend(d, strlen(field) + strlen(description)))
        return;
    Status__Violation *v = arena_alloc(a, sizeof *v);
    if (!v)
        return;
    status__violation__init(v);
    v->field = arena_strdup(a, field);
    v->description = arena_strdup(a, description);
    if (v->field && v->description)
        d->violations[d->msg.n_violations++] = v;
}

void details_entry(struct call_details *d, struct arena *a, const char *key, const void *value,
                   size_t n)
{
    if (d->msg.n_metadata >= MAX_ENTRIES || !spend(d, strlen(key) + n))
        return;
    Status__Entry *e = arena_alloc(a, sizeof *e);
    if (!e)
        return;
    status__entry__init(e);
    e->key = arena_strdup(a, key);
    e->value.data = arena_dup(a, value, n);
    e->value.len = e->value.data ? n : 0;
    if (e->key)
        d->entries[d->msg.n_metadata++] = e;
}

size_t details_pack(const struct call_details *d, uint8_t dst[RPC_DETAILS_MAX_BYTES])
{
    size_t n = status__details__get_packed_size(&d->msg);
    return n <= RPC_DETAILS_MAX_BYTES ? status__details__pack(&d->msg, dst) : 0;
}

size_t details_pack_reason(uint8_t dst[DETAILS_REASON_SIZE], const char *word, bool retryable)
{
    Status__Details msg = STATUS__DETAILS__INIT;
    char kept[RPC_REASON_MAX + 1];
    str_copy(kept, sizeof kept, word);
    msg.reason = kept;
    msg.retryable = retryable;
    return status__details__pack(&msg, dst);
}

// ---------------------------------------------------------------- the client's side

struct kept { // what rpc_details.mem points to
    ProtobufCMessage *msg;
    struct rpc_violation *violations;
    struct rpc_metadata *metadata;
};

static void kept_free(struct kept *k)
{
    if (!k)
        return;
    rpc_message_free(k->msg);
    mem_free(k->violations);
    mem_free(k->metadata);
    mem_free(k);
}

static bool keep_lists(struct kept *k, const Status__Details *d)
{
    k->violations = mem_array(d->n_violations + 1, sizeof *k->violations);
    k->metadata = mem_array(d->n_metadata + 1, sizeof *k->metadata);
    if (!k->violations || !k->metadata)
        return false;
    for (size_t i = 0; i < d->n_violations; i++)
        k->violations[i] = (struct rpc_violation){.field = d->violations[i]->field,
                                                  .description = d->violations[i]->description};
    for (size_t i = 0; i < d->n_metadata; i++)
        k->metadata[i] = (struct rpc_metadata){.key = d->metadata[i]->key,
                                               .value = d->metadata[i]->value.data,
                                               .n_value = d->metadata[i]->value.len};
    return true;
}

void details_unpack(const struct frame_status *st, struct rpc_details *ret)
{
    *ret = (struct rpc_details){.retry_after_ms = st->retry_after_ms};
    struct err err = ERR_INIT;
    struct kept *k = st->n_details ? mem_alloc(sizeof *k) : NULL;
    if (!k)
        return;
    if (rpc_message_unpack(&status__details__descriptor, st->details, st->n_details, &k->msg,
                           &err) != STATUS_OK ||
        !keep_lists(k, (const Status__Details *)(const void *)k->msg)) {
        kept_free(k); // as if none had come: the status itself is what counts
        return;
    }
    const Status__Details *d = (const Status__Details *)(const void *)k->msg;
    if (reason_ok(d->reason))
        str_copy(ret->reason, sizeof ret->reason, d->reason);
    ret->retryable = d->retryable;
    ret->violations = k->violations;
    ret->n_violations = d->n_violations;
    ret->metadata = k->metadata;
    ret->n_metadata = d->n_metadata;
    ret->mem = k;
}

void rpc_details_done(struct rpc_details *d)
{
    kept_free(d->mem);
    *d = (struct rpc_details){.retry_after_ms = 0};
}
