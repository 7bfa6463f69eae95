#pragma once
// The files of web/, built into the program.
#include <stddef.h>
#include <stdint.h>

struct gateway_web_file {
    const char *name, *type;
    const uint8_t *start, *end;
};
extern const struct gateway_web_file gateway_web_files[];
extern const size_t gateway_n_web_files;
