#pragma once
// The details of a status, packed and unpacked. proto/cauce/status.proto has their shape.
#include "base/arena.h"
#include "rpc/frame.h"
#include "rpc/rpc.h"

// ---- server: collected while a handler runs, in its arena. What does not fit is left out. ----
struct call_details;
struct call_details *details_new(struct arena *a); // NULL: out of memory
void details_reason(struct call_details *d, struct arena *a, const char *word);
void details_retryable(struct call_details *d);
void details_violation(struct call_details *d, struct arena *a, const char *field,
                       const char *description);
void details_entry(struct call_details *d, struct arena *a, const char *key, const void *value,
                   size_t n);
size_t details_pack(const struct call_details *d, uint8_t dst[RPC_DETAILS_MAX_BYTES]);
// Details of a reason alone.
#define DETAILS_REASON_SIZE (RPC_REASON_MAX + 8)
size_t details_pack_reason(uint8_t dst[DETAILS_REASON_SIZE], const char *word, bool retryable);

// ---- client ----
// What came is another's: malformed details count as none.
void details_unpack(const struct frame_status *st, struct rpc_details *ret);
