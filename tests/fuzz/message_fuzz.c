// The guarded unpacking of every message of the product; the first two bytes say which.
#include <string.h>

#include "base/mem.h"
#include "everything.pb-c.h"
#include "fuzz.h"
#include "rpc/rpc.h"
#include "support/every_message.h"
#include "json/proto.h"

static uint8_t *pack(const ProtobufCMessage *m, size_t *ret_n)
{
    *ret_n = protobuf_c_message_get_packed_size(m);
    uint8_t *p = mem_alloc(*ret_n + 1);
    FUZZ_CHECK(p);
    FUZZ_CHECK(protobuf_c_message_pack(m, p) == *ret_n);
    return p;
}

static void print(const ProtobufCMessage *m)
{
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, 64 << 20);
    enum status s = json_print_message(m, 0, &b, &err);
    FUZZ_CHECK(s == STATUS_OK || s == STATUS_RESOURCE_EXHAUSTED);
    buf_done(&b);
}

// What was unpacked packs into bytes that unpack into the same.
static void check_message(const ProtobufCMessageDescriptor *d, const ProtobufCMessage *m)
{
    size_t n, n_again;
    AUTO(mem_free_p) uint8_t *p = pack(m, &n);
    AUTO(rpc_message_free_p) ProtobufCMessage *again = NULL;
    struct err err = ERR_INIT;
    enum status s = rpc_message_unpack(d, p, n, &again, &err);
    if (s == STATUS_RESOURCE_EXHAUSTED)
        return; // packed it can be larger than it came
    FUZZ_CHECK(s == STATUS_OK);
    AUTO(mem_free_p) uint8_t *q = pack(again, &n_again);
    FUZZ_CHECK(n_again == n && memcmp(p, q, n) == 0);
    print(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct type_list types;
    struct fuzz_input in = {data, size};
    if (!types.n)
        FUZZ_CHECK(type_list_init(&types) && type_list_add(&types, &test__everything__descriptor));
    const ProtobufCMessageDescriptor *d = types.d[fuzz_u16(&in) % types.n];
    AUTO(rpc_message_free_p) ProtobufCMessage *m = NULL;
    struct err err = ERR_INIT;
    enum status s = rpc_message_unpack(d, in.p, in.n, &m, &err);
    FUZZ_CHECK((s == STATUS_OK) == (m != NULL));
    if (m)
        check_message(d, m);
    else
        FUZZ_CHECK(err.msg[0]);
    return 0;
}
