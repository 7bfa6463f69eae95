#pragma once
// Published test vectors (JSON), read from CAUCE_TEST_DATA/vectors; CAUCE_TEST_DATA defaults to
// ../shared beside the source tree. Values are borrowed and live as long as the file is open.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vectors;

// NULL, with a line saying so, when the file is not there. A file that is broken fails the test.
// array: the key of the list of vectors.
struct vectors *vectors_open(const char *file, const char *array);
void vectors_close(struct vectors *v);

struct vector; // one JSON object
size_t vectors_n(const struct vectors *v);
const struct vector *vectors_at(const struct vectors *v, size_t i);

const char *vector_str(const struct vector *v, const char *key); // NULL when absent or null
bool vector_bool(const struct vector *v, const char *key);
// Hex value into dst; its length; 0 when absent. Fails the test when longer than cap.
size_t vector_hex(const struct vector *v, const char *key, uint8_t *dst, size_t cap);
size_t vector_n(const struct vector *v, const char *key); // members of a list
const struct vector *vector_at(const struct vector *v, const char *key, size_t i);
// Member i of a list of hex strings.
size_t vector_hex_at(const struct vector *v, const char *key, size_t i, uint8_t *dst, size_t cap);
