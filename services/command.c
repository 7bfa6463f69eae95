#include "command.h"

#include <stdio.h>

#include "base/mem.h"

enum status command_misused(bool *ret_misused, struct err *err, const char *what)
{
    *ret_misused = true;
    return err_set(err, STATUS_INVALID_ARGUMENT, "%s needed; see --help", what);
}

int command_main(const struct command_line *c, void *options, void *ud, int argc, char **argv)
{
    struct err err = ERR_INIT;
    AUTO(mem_free_p) char **words = NULL;
    enum status s =
        cfg_load(c->spec, options, NULL, argc, argv, c->takes_words ? &words : NULL, &err);

    if (s == STATUS_CANCELLED)
        return 0; // help was asked for
    bool misused = s != STATUS_OK;
    if (s == STATUS_OK)
        s = c->run(ud, words, &misused, &err);
    if (s != STATUS_OK)
        (void)fprintf(stderr, "cauced %s: %s\n", c->name, err.msg);
    cfg_done(c->spec, options);
    return s == STATUS_OK ? 0 : misused ? 2 : 1;
}
