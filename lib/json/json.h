#pragma once
// JSON (RFC 8259) read into a tree. Writing needs no tree: buf_put_json_string() and printf do.
// Only user of jansson. A tree is read-only once made: any thread.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/auto.h"
#include "base/err.h"

struct json_value; // any value; the one that json_parse() gave owns all below it

enum json_kind {
    JSON_KIND_NULL,
    JSON_KIND_BOOL,
    JSON_KIND_INTEGER, // fits int64_t
    JSON_KIND_REAL,
    JSON_KIND_STRING,
    JSON_KIND_ARRAY,
    JSON_KIND_OBJECT,
};

#define JSON_MAX_DEPTH 64 // default, and the most that may be asked for

// bytes      UTF-8, n of them, need not end with NUL; the caller has limited n
// max_depth  levels of arrays and objects; 0 = JSON_MAX_DEPTH
// errors     INVALID_ARGUMENT with line and column: not JSON, bad UTF-8, U+0000 in a string, a key
//            twice, an integer outside int64_t, too deep; RESOURCE_EXHAUSTED
enum status json_parse(const void *bytes, size_t n, unsigned max_depth, struct json_value **ret,
                       struct err *err) MUST_CHECK;
void json_free(struct json_value *root); // NULL does nothing
DEFINE_AUTO(struct json_value, json_free)

// All getters take NULL (a member that is not there) and then find nothing; what they give is
// borrowed from the tree.
enum json_kind json_kind(const struct json_value *v); // JSON_KIND_NULL for NULL
const struct json_value *json_member(const struct json_value *object, const char *key);
size_t json_size(const struct json_value *v); // elements or members; 0 for anything else
const struct json_value *json_element(const struct json_value *array, size_t i);

// False when it is of another kind; *ret is untouched then.
bool json_get_string(const struct json_value *v, const char **ret, size_t *ret_len);
bool json_get_i64(const struct json_value *v, int64_t *ret);
bool json_get_double(const struct json_value *v, double *ret); // integers too
bool json_get_bool(const struct json_value *v, bool *ret);
const char *json_string_or(const struct json_value *v, const char *otherwise);

// Members of an object, in order: start with *iter NULL; false after the last.
bool json_next_member(const struct json_value *object, void **iter, const char **ret_key,
                      const struct json_value **ret_value);
