#pragma once
// How protobuf-c lays a message out in memory, and what the mapping treats specially.
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <protobuf-c/protobuf-c.h>

#include "base/buf.h"
#include "json/json.h"

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

// Size of one value in memory.
size_t json_field_size(const ProtobufCFieldDescriptor *f);

// An empty message in zeroed memory of d->sizeof_message bytes.
void json_init_message(ProtobufCMessage *m, const ProtobufCMessageDescriptor *d);

// "item_id" is "itemId" in JSON.
bool json_put_name(struct buf *out, const char *proto_name);
bool json_name_is(const char *proto_name, const char *json_name);

// A map is a list of entries with a key and a value; descriptors of protobuf-c do not say that it
// is one, but nothing else that protoc accepts has an entry's name.
bool json_is_map(const ProtobufCMessageDescriptor *owner, const ProtobufCFieldDescriptor *f);
// An entry's fields.
static inline const ProtobufCFieldDescriptor *map_key(const ProtobufCFieldDescriptor *map)
{
    return &field_message(map)->fields[0];
}
static inline const ProtobufCFieldDescriptor *map_value(const ProtobufCFieldDescriptor *map)
{
    return &field_message(map)->fields[1];
}

// ---- messages that are text in JSON: proto_time.c ----
enum json_text_kind { JSON_TEXT_NONE, JSON_TEXT_TIMESTAMP, JSON_TEXT_DURATION };
enum json_text_kind json_text_kind(const ProtobufCMessageDescriptor *d);
// Times that the mapping cannot say are moved to the nearest that it can.
bool json_print_text(enum json_text_kind kind, const ProtobufCMessage *m, struct buf *out);
bool json_read_text(enum json_text_kind kind, const char *text, ProtobufCMessage *m);
const char *json_text_wanted(enum json_text_kind kind); // "a time such as 2026-..."

// ---- scalars: proto_scalar.c ----
// Where values come from: JSON, or text of a URL or of a map's key that stands for any scalar.
struct scalar {
    const struct json_value *json; // NULL: text
    const char *text;              // the string's text when json is a string
    size_t len;
};
// False when it is not one, or out of range.
bool json_scalar_i64(const struct scalar *s, int64_t min, int64_t max, int64_t *ret);
bool json_scalar_u64(const struct scalar *s, uint64_t *ret);
bool json_scalar_double(const struct scalar *s, double *ret);
bool json_scalar_float(const struct scalar *s, float *ret);
bool json_scalar_bool(const struct scalar *s, protobuf_c_boolean *ret);
bool json_scalar_enum(const struct scalar *s, const ProtobufCEnumDescriptor *d, int *ret);
