/* Play an item into a file.
 *
 *     example-play cauce://host:port#key NAME ITEM FILE      (password in CAUCE_PASSWORD)
 */
#include <stdio.h>
#include <stdlib.h>

#include <cauce/cauce.h>

static int fail(const char *what, const cauce_error *e)
{
    fprintf(stderr, "%s: %s\n", what, e->message);
    return 1;
}

static int copy(cauce_stream *from, const char *path)
{
    static char block[65536];
    int64_t n = 0;
    FILE *f = fopen(path, "wb");
    int ok = f != NULL;
    while (ok && (n = cauce_stream_read(from, block, sizeof(block))) > 0)
        ok = fwrite(block, 1, (size_t)n, f) == (size_t)n;
    if (f && fclose(f) != 0)
        ok = 0;
    if (n < 0)
        return fail("play", cauce_stream_error(from));
    if (!ok)
        perror(path);
    return !ok;
}

int main(int argc, char **argv)
{
    const char *password = getenv("CAUCE_PASSWORD");
    cauce_opts opts;
    cauce_error e;
    cauce *c = NULL;
    cauce_stream *stream = NULL;
    int code;

    if (argc != 5 || !password) {
        fprintf(stderr, "usage: CAUCE_PASSWORD=... %s SERVER NAME ITEM FILE\n", argv[0]);
        return 2;
    }
    cauce_opts_init(&opts);
    opts.server = argv[1];
    if (cauce_connect(&opts, &c, &e) != CAUCE_OK)
        return fail("connect", &e);
    if (cauce_login(c, argv[2], password, "example", NULL, &e) != CAUCE_OK ||
        cauce_play_open(c, argv[3], NULL, &stream, &e) != CAUCE_OK)
        code = fail("play", &e);
    else
        code = copy(stream, argv[4]);
    cauce_stream_close(stream);
    cauce_close(c);
    return code;
}
