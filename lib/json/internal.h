#pragma once
// How protobuf-c lays a message out in memory.
#include <string.h>

#include <protobuf-c/protobuf-c.h>

#define JSON_TIMESTAMP "google.protobuf.Timestamp"

static inline const void *member_at(const ProtobufCMessage *m, unsigned offset)
{
    return (const char *)m + offset;
}
static inline void *member_at_mutable(ProtobufCMessage *m, unsigned offset)
{
    return (char *)m + offset;
}
static inline const ProtobufCMessageDescriptor *field_message(const ProtobufCFieldDescriptor *f)
{
    return f->descriptor;
}
static inline int is_timestamp(const ProtobufCMessageDescriptor *d)
{
    return strcmp(d->name, JSON_TIMESTAMP) == 0;
}
// google.protobuf.Timestamp's fields by number.
enum { TIMESTAMP_SECONDS = 1, TIMESTAMP_NANOS = 2 };

// Size of one value in memory.
size_t json_field_size(const ProtobufCFieldDescriptor *f);
// "item_id" -> "itemId"; dst holds JSON_NAME_SIZE.
#define JSON_NAME_SIZE 64
void json_field_name(char *dst, const char *proto_name);
