// struct json_value is jansson's json_t under a name of ours. Its parser recurses up to a depth
// fixed when it was built (2,048), so the depth is checked before it runs.
#include "json/json.h"

#include <jansson.h>

static const json_t *in(const struct json_value *v)
{
    return (const json_t *)(const void *)v;
}

// jansson's getters for containers take non-const pointers and change nothing.
static json_t *in_mutable(const struct json_value *v)
{
    return (json_t *)(uintptr_t)v;
}

static struct json_value *out(json_t *j)
{
    return (struct json_value *)(void *)j;
}

// Brackets outside strings. Wrong nesting is the parser's business.
static bool is_deeper_than(const char *p, size_t n, unsigned max_depth)
{
    unsigned depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        if (in_string) {
            if (p[i] == '\\')
                i++;
            else if (p[i] == '"')
                in_string = false;
        } else if (p[i] == '"') {
            in_string = true;
        } else if ((p[i] == '{' || p[i] == '[') && ++depth > max_depth) {
            return true;
        } else if ((p[i] == '}' || p[i] == ']') && depth > 0) {
            depth--;
        }
    }
    return false;
}

enum status json_parse(const void *bytes, size_t n, unsigned max_depth, struct json_value **ret,
                       struct err *err)
{
    if (max_depth == 0 || max_depth > JSON_MAX_DEPTH)
        max_depth = JSON_MAX_DEPTH;
    if (n && is_deeper_than(bytes, n, max_depth))
        return err_set(err, STATUS_INVALID_ARGUMENT, "JSON: nested deeper than %u levels",
                       max_depth);
    json_error_t e;
    json_t *j = json_loadb(n ? bytes : "", n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (j) {
        *ret = out(j);
        return STATUS_OK;
    }
    if (json_error_code(&e) == json_error_out_of_memory)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "JSON: out of memory");
    return err_set(err, STATUS_INVALID_ARGUMENT, "JSON line %d column %d: %s", e.line, e.column,
                   e.text);
}

void json_free(struct json_value *root)
{
    json_decref((json_t *)(void *)root);
}

enum json_kind json_kind(const struct json_value *v)
{
    switch (v ? json_typeof(in(v)) : JSON_NULL) {
    case JSON_OBJECT:
        return JSON_KIND_OBJECT;
    case JSON_ARRAY:
        return JSON_KIND_ARRAY;
    case JSON_STRING:
        return JSON_KIND_STRING;
    case JSON_INTEGER:
        return JSON_KIND_INTEGER;
    case JSON_REAL:
        return JSON_KIND_REAL;
    case JSON_TRUE:
    case JSON_FALSE:
        return JSON_KIND_BOOL;
    case JSON_NULL:
        return JSON_KIND_NULL;
    }
    return JSON_KIND_NULL;
}

const struct json_value *json_member(const struct json_value *object, const char *key)
{
    return out(json_object_get(in(object), key));
}

size_t json_size(const struct json_value *v)
{
    switch (json_kind(v)) {
    case JSON_KIND_ARRAY:
        return json_array_size(in(v));
    case JSON_KIND_OBJECT:
        return json_object_size(in(v));
    case JSON_KIND_NULL:
    case JSON_KIND_BOOL:
    case JSON_KIND_INTEGER:
    case JSON_KIND_REAL:
    case JSON_KIND_STRING:
        return 0;
    }
    return 0;
}

const struct json_value *json_element(const struct json_value *array, size_t i)
{
    return out(json_array_get(in(array), i));
}

bool json_get_string(const struct json_value *v, const char **ret, size_t *ret_len)
{
    if (json_kind(v) != JSON_KIND_STRING)
        return false;
    *ret = json_string_value(in(v));
    if (ret_len)
        *ret_len = json_string_length(in(v));
    return true;
}

bool json_get_i64(const struct json_value *v, int64_t *ret)
{
    if (json_kind(v) != JSON_KIND_INTEGER)
        return false;
    *ret = json_integer_value(in(v));
    return true;
}

bool json_get_double(const struct json_value *v, double *ret)
{
    enum json_kind kind = json_kind(v);
    if (kind != JSON_KIND_INTEGER && kind != JSON_KIND_REAL)
        return false;
    *ret = json_number_value(in(v));
    return true;
}

bool json_get_bool(const struct json_value *v, bool *ret)
{
    if (json_kind(v) != JSON_KIND_BOOL)
        return false;
    *ret = json_is_true(in(v));
    return true;
}

const char *json_string_or(const struct json_value *v, const char *otherwise)
{
    json_get_string(v, &otherwise, NULL);
    return otherwise;
}

bool json_next_member(const struct json_value *object, void **iter, const char **ret_key,
                      const struct json_value **ret_value)
{
    if (json_kind(object) != JSON_KIND_OBJECT)
        return false;
    json_t *o = in_mutable(object);
    *iter = *iter ? json_object_iter_next(o, *iter) : json_object_iter(o);
    if (!*iter)
        return false;
    *ret_key = json_object_iter_key(*iter);
    *ret_value = out(json_object_iter_value(*iter));
    return true;
}
