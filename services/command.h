#pragma once
// A command of cauced that ends: options, work, what went wrong, exit status (0, 1; 2 wrong usage).
#include <stdbool.h>

#include "base/err.h"
#include "config/config.h"

struct command_line {
    const char *name; // "keys show", for messages
    const struct cfg_spec *spec;
    bool takes_words; // besides options
    // The work. words: NULL-terminated, may be wiped; NULL without takes_words. A wrong command
    // line sets *ret_misused.
    enum status (*run)(void *ud, char **words, bool *ret_misused, struct err *err);
};
// options: what spec describes, zeros; freed again. ud is for run().
int command_main(const struct command_line *c, void *options, void *ud, int argc, char **argv);
// For run(): says what is needed.
enum status command_misused(bool *ret_misused, struct err *err, const char *what);
