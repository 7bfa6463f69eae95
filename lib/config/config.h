#pragma once
// Option tables: one row says an option's name, type, default, limits and help. Values come from
// default < file (INI, section = program or role name) < environment (CAUCE_ORIGIN_MAX_BYTES) <
// argv
// (--max-bytes V, --max-bytes=V, --flag, --no-flag). Only user of libinih.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

enum cfg_type {
    CFG_STRING,      // char *, heap, freed by cfg_done(); NULL when default is NULL
    CFG_STRING_LIST, // char **, NULL-terminated; an option given again appends; env/file: comma
                     // list
    CFG_BOOL,        // bool
    CFG_I64,         // int64_t
    CFG_DURATION_MS, // int64_t
    CFG_BYTES,       // int64_t
};

struct cfg_option {
    const char *name; // "idle-timeout"
    enum cfg_type type;
    size_t offset;    // into the options struct
    const char *def;  // as it would be typed; NULL = unset/false/0
    int64_t min, max; // numbers, durations, bytes (both 0: no limit)
    const char *help; // one line
};

struct cfg_spec {
    const char *section; // "origin": INI section and environment infix
    const char *usage;   // "cauced origin [options]"
    const struct cfg_option *options;
    size_t n_options;
};

// Fill the zeroed struct `into` from all four sources.
//
// file     may be NULL; a file that is named but cannot be read is an error
// argv     the words after the program name; words that are not options are collected in
//          ret_rest (NULL-terminated, borrowed from argv, heap array freed with mem_free), or
//          refused when ret_rest is NULL; "--" ends options
// errors   INVALID_ARGUMENT naming the option, the source ("environment", "file x line n") and the
//          limits; CANCELLED when --help was asked for (the help was printed to stdout)
enum status cfg_load(const struct cfg_spec *spec, void *into, const char *file, int argc,
                     char **argv, char ***ret_rest, struct err *err) MUST_CHECK;
void cfg_done(const struct cfg_spec *spec, void *into);
void cfg_print_help(const struct cfg_spec *spec, FILE *f);

// A plain INI file (nodes.ini): called for each key in file order; a non-OK return stops with it.
typedef enum status (*cfg_ini_fn)(void *ud, const char *section, const char *key, const char *value,
                                  struct err *err);
enum status cfg_ini_read(const char *path, cfg_ini_fn fn, void *ud, struct err *err) MUST_CHECK;
