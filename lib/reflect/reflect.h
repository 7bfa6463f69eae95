#pragma once
// Messages and methods that a program was not built with: a google.protobuf.FileDescriptorSet
// becomes the descriptors that protobuf-c works with, so that such messages are packed, unpacked
// and read from JSON like generated ones. Immutable once made: any thread.
#include <stddef.h>

#include <protobuf-c/protobuf-c.h>

#include "base/buf.h"
#include "base/err.h"
#include "rpc/rpc.h"

struct reflect; // owns all that it names

// set     a packed FileDescriptorSet, n bytes; not kept. Files in any order; what they name must be
//         there
// errors  INVALID_ARGUMENT: malformed, a type that is not in the set, a group; RESOURCE_EXHAUSTED
enum status reflect_new(const void *set, size_t n, struct reflect **ret,
                        struct err *err) MUST_CHECK;
void reflect_free(struct reflect *r); // NULL does nothing
DEFINE_AUTO(struct reflect, reflect_free)

// By full name without a leading dot; NULL when there is none. Borrowed from r. Descriptors have no
// message_init: a message is made by protobuf_c_message_unpack() or json_read_message().
const ProtobufCMessageDescriptor *reflect_message(const struct reflect *r, const char *name);
const ProtobufCEnumDescriptor *reflect_enum(const struct reflect *r, const char *name);
const struct rpc_service *reflect_service(const struct reflect *r, const char *name);
const struct rpc_method *reflect_method(const struct reflect *r, const char *name);

// All of the set, in its order.
size_t reflect_n_services(const struct reflect *r);
const struct rpc_service *reflect_service_at(const struct reflect *r, size_t i);
size_t reflect_n_messages(const struct reflect *r);
const ProtobufCMessageDescriptor *reflect_message_at(const struct reflect *r, size_t i);

// "NODE_ORIGIN" of the bit number of a ROLE_ constant; NULL: there is no such role.
const char *reflect_role_name(unsigned bit);

struct reflect_part { // borrowed from the set
    const char *kind; // "service", "method", "message", "enum" or "file"
    const char *file; // where it is declared
};
// Append to out, as a packed FileDescriptorSet, the file that declares name and all that it needs.
//
// services  full names: only their files, and what these need, are looked at
// name      full name of a service, method, message or enum; or a file's
// errors    NOT_FOUND; RESOURCE_EXHAUSTED: over the buffer's limit
enum status reflect_subset(const struct reflect *r, const char *const *services, size_t n_services,
                           const char *name, struct reflect_part *ret, struct buf *out,
                           struct err *err) MUST_CHECK;

// Append what a .proto file says of a service, method, message or enum (full name), with its
// comments where the set has them.
// errors  NOT_FOUND; RESOURCE_EXHAUSTED: over the buffer's limit
enum status reflect_describe(const struct reflect *r, const char *name, struct buf *out,
                             struct err *err) MUST_CHECK;
