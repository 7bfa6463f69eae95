#pragma once
// What reflect.c makes and describe.c prints.
#include "cauce/options.pb-c.h"
#include "google/protobuf/descriptor.pb-c.h"
#include "reflect/reflect.h"

typedef Google__Protobuf__FileDescriptorProto file_proto;
typedef Google__Protobuf__DescriptorProto message_proto;
typedef Google__Protobuf__EnumDescriptorProto enum_proto;
typedef Google__Protobuf__ServiceDescriptorProto service_proto;
typedef Google__Protobuf__MethodDescriptorProto method_proto;
typedef Google__Protobuf__FieldDescriptorProto field_proto;

// One message or enum of the set, by its full name.
struct symbol {
    const char *name;
    const message_proto *message; // or
    const enum_proto *enumeration;
    const file_proto *file;
    ProtobufCMessageDescriptor *d;
    ProtobufCEnumDescriptor *e;
};
struct reflect {
    struct arena *arena;
    Google__Protobuf__FileDescriptorSet *set; // rpc_message_free()
    struct symbol *symbols;                   // by name
    size_t n_symbols;
    const ProtobufCMessageDescriptor **messages; // in the set's order
    size_t n_messages;
    struct rpc_service *services;
    const service_proto **service_protos; // of the same index
    const file_proto **service_files;
    size_t n_services;
};

const struct symbol *reflect_symbol(const struct reflect *r, const char *name);
// What (cauce.rule) of a method says; NULL when it has none or it is malformed. Free with
// rpc_message_free().
Cauce__Rule *reflect_rule(const method_proto *m);
