// Descriptors that another process describes itself with: made, described, and used to read a
// message.
#include <string.h>

#include "fuzz.h"
#include "reflect/reflect.h"

static void describe(const struct reflect *r, const char *name)
{
    struct buf b;
    struct err err = ERR_INIT;
    buf_init(&b, 4 << 20);
    FUZZ_CHECK(reflect_describe(r, name, &b, &err) == STATUS_OK || err.msg[0]);
    buf_done(&b);
}

static void describe_all(const struct reflect *r)
{
    for (size_t i = 0; i < reflect_n_services(r); i++) {
        const struct rpc_service *s = reflect_service_at(r, i);
        FUZZ_CHECK(s && s->name);
        describe(r, s->name);
        for (size_t k = 0; k < s->n_methods; k++)
            FUZZ_CHECK(s->methods[k].request && s->methods[k].reply);
    }
    for (size_t i = 0; i < reflect_n_messages(r); i++)
        describe(r, reflect_message_at(r, i)->name);
}

static void unpack(const ProtobufCMessageDescriptor *d, struct fuzz_input in)
{
    AUTO(rpc_message_free_p) ProtobufCMessage *m = NULL;
    struct err err = ERR_INIT;
    if (rpc_message_unpack(d, in.p, in.n, &m, &err) == STATUS_OK)
        FUZZ_CHECK(protobuf_c_message_get_packed_size(m) < SIZE_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct fuzz_input message = fuzz_part(&in);
    AUTO(reflect_free_p) struct reflect *r = NULL;
    struct err err = ERR_INIT;
    if (reflect_new(in.n ? in.p : (const void *)"", in.n, &r, &err) != STATUS_OK) {
        FUZZ_CHECK(err.msg[0]);
        return 0;
    }
    describe_all(r);
    for (size_t i = 0; i < reflect_n_messages(r) && i < 8; i++)
        unpack(reflect_message_at(r, i), message);
    return 0;
}
