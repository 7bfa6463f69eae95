#pragma once
// What lib/event's own files share.
#include "base/err.h"

#define EVENT_SCHEMA_SIZE 32

// Schema names go into SQL text: nothing but lower-case letters and underscores.
enum status event_check_schema(const char *schema, struct err *err) MUST_CHECK;
