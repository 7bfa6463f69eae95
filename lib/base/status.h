#pragma once
// Canonical status codes: gRPC's set with gRPC's numbers, so a code crosses the wire unchanged.
// source: https://grpc.github.io/grpc/core/md_doc_statuscodes.html

enum status {
    STATUS_OK = 0,
    STATUS_CANCELLED = 1,
    STATUS_UNKNOWN = 2,
    STATUS_INVALID_ARGUMENT = 3,
    STATUS_DEADLINE_EXCEEDED = 4,
    STATUS_NOT_FOUND = 5,
    STATUS_ALREADY_EXISTS = 6,
    STATUS_PERMISSION_DENIED = 7,
    STATUS_RESOURCE_EXHAUSTED = 8,
    STATUS_FAILED_PRECONDITION = 9,
    STATUS_ABORTED = 10,
    STATUS_OUT_OF_RANGE = 11,
    STATUS_UNIMPLEMENTED = 12,
    STATUS_INTERNAL = 13,
    STATUS_UNAVAILABLE = 14,
    STATUS_DATA_LOSS = 15,
    STATUS_UNAUTHENTICATED = 16,
};

// The code's canonical name, "NOT_FOUND"; "UNKNOWN" for a number outside the set. Static storage.
const char *status_name(enum status s);

// The status of that name; STATUS_UNKNOWN for a name outside the set.
enum status status_from_name(const char *name);

// A code received from outside: itself when in the set, STATUS_UNKNOWN otherwise.
enum status status_from_wire(unsigned code);

// The status that best says what errno e means for the caller (ENOENT -> NOT_FOUND, ENOSPC ->
// RESOURCE_EXHAUSTED, ...); STATUS_INTERNAL when nothing fits better.
enum status status_from_errno(int e);
