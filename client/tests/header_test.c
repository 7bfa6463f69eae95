/* That cauce.h compiles alone as plain C11, and that a program which knows nothing else links. */
#include <cauce/cauce.h>

int main(void)
{
    cauce_opts opts;
    cauce *c = NULL;
    cauce_error e;
    cauce_opts_init(&opts);
    if (opts.size != sizeof(opts) || cauce_connect(&opts, &c, &e) != CAUCE_INVALID_ARGUMENT)
        return 1;
    return c != NULL || e.message[0] == '\0';
}
