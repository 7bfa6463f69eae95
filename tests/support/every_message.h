#pragma once
// Every message type of the product, for tests that leave none out.
#include <stdbool.h>
#include <stddef.h>

#include <protobuf-c/protobuf-c.h>

struct type_list {
    const ProtobufCMessageDescriptor **d; // in an order that is always the same
    size_t n;
};
// What the methods of all services take and give, the details of a status, published messages, and
// what these hold.
// False when memory is short.
bool type_list_init(struct type_list *ret);
bool type_list_add(struct type_list *l, const ProtobufCMessageDescriptor *d); // and what it holds
void type_list_done(struct type_list *l);
