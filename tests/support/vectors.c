#include "support/vectors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <jansson.h>

#include "base/str.h"

struct vectors {
    json_t *root, *list;
};

static const json_t *json_of(const struct vector *v)
{
    return (const json_t *)(const void *)v;
}

static const struct vector *vector_of(const json_t *j)
{
    return (const struct vector *)(const void *)j;
}

struct vectors *vectors_open(const char *file, const char *array)
{
    char path[1024];
    const char *data = getenv("CAUCE_TEST_DATA"), *source = getenv("CAUCE_SOURCE_DIR");

    if (data && *data)
        snprintf(path, sizeof(path), "%s/vectors/%s", data, file);
    else
        snprintf(path, sizeof(path), "%s/../shared/vectors/%s", source ? source : ".", file);
    if (access(path, R_OK) != 0) {
        printf("[  NOTE    ] no test data: %s is not there; set CAUCE_TEST_DATA\n", path);
        return NULL;
    }
    json_error_t why;
    json_t *root = json_load_file(path, 0, &why);
    if (!root)
        fail_msg("%s: line %d: %s", path, why.line, why.text);
    json_t *list = json_object_get(root, array);
    if (!json_is_array(list))
        fail_msg("%s: no list \"%s\"", path, array);
    struct vectors *v = malloc(sizeof(*v));
    assert_non_null(v);
    *v = (struct vectors){root, list};
    return v;
}

void vectors_close(struct vectors *v)
{
    if (!v)
        return;
    json_decref(v->root);
    free(v);
}

size_t vectors_n(const struct vectors *v)
{
    return json_array_size(v->list);
}

const struct vector *vectors_at(const struct vectors *v, size_t i)
{
    return vector_of(json_array_get(v->list, i));
}

const char *vector_str(const struct vector *v, const char *key)
{
    return json_string_value(json_object_get(json_of(v), key));
}

bool vector_bool(const struct vector *v, const char *key)
{
    return json_is_true(json_object_get(json_of(v), key));
}

static size_t unhex(const char *hex, uint8_t *dst, size_t cap)
{
    size_t n = hex ? strlen(hex) / 2 : 0;

    assert_true(n <= cap);
    if (n > 0)
        assert_true(str_unhex(dst, n, hex));
    return n;
}

size_t vector_hex(const struct vector *v, const char *key, uint8_t *dst, size_t cap)
{
    return unhex(vector_str(v, key), dst, cap);
}

size_t vector_n(const struct vector *v, const char *key)
{
    return json_array_size(json_object_get(json_of(v), key));
}

const struct vector *vector_at(const struct vector *v, const char *key, size_t i)
{
    return vector_of(json_array_get(json_object_get(json_of(v), key), i));
}

size_t vector_hex_at(const struct vector *v, const char *key, size_t i, uint8_t *dst, size_t cap)
{
    return unhex(json_string_value(json_of(vector_at(v, key, i))), dst, cap);
}
