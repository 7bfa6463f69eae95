#pragma once
// protobuf-c messages as JSON, by descriptor: proto3's JSON mapping. Names in lowerCamelCase, 64
// bit integers as strings, bytes as base64, enum values by name, maps as objects,
// google.protobuf.Timestamp as RFC 3339 and Duration as "1.5s". The other well-known types, which
// no message of ours uses, have no form of their own; nor do fields with a json_name.
// source: https://protobuf.dev/programming-guides/json/
#include <protobuf-c/protobuf-c.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "json/json.h"

enum {
    JSON_PROTO_DEFAULTS = 1U << 0,       // print fields that have their default value as well
    JSON_PROTO_IGNORE_UNKNOWN = 1U << 1, // read: skip members that the message has no field for
};

// Append m as one JSON object without line ends. Times out of the range that the mapping can say
// are moved to its ends.
// errors  RESOURCE_EXHAUSTED: over the buffer's limit, or messages nested deeper than
//         JSON_MAX_DEPTH
enum status json_print_message(const ProtobufCMessage *m, unsigned flags, struct buf *out,
                               struct err *err) MUST_CHECK;

// A message of that type from a JSON object, allocated from the arena and valid as long as it is.
// Field names may be in lowerCamelCase or as in the .proto file; a field that is null counts as
// absent. Input: integers as numbers or strings, bytes in base64 or base64url with or without
// padding, enums by name or any number.
//
// v       NULL or JSON null: an empty message
// errors  INVALID_ARGUMENT naming the field by its way from the top, "items[3].itemId": unknown, of
//         another kind, out of range, given twice, two of one oneof; RESOURCE_EXHAUSTED: the arena
enum status json_read_message(const struct json_value *v, const ProtobufCMessageDescriptor *d,
                              struct arena *a, ProtobufCMessage **ret, struct err *err) MUST_CHECK;
// The same with JSON_PROTO_IGNORE_UNKNOWN or 0.
enum status json_read_message_with(const struct json_value *v, const ProtobufCMessageDescriptor *d,
                                   unsigned flags, struct arena *a, ProtobufCMessage **ret,
                                   struct err *err) MUST_CHECK;

// Set one field from text, as found in a URL: "page.size" reaches into messages; a repeated field
// grows by one value.
enum status json_set_field(ProtobufCMessage *m, const char *path, const char *text, struct arena *a,
                           struct err *err) MUST_CHECK;
