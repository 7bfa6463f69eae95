/* Upload a file and wait until it can be played.
 *
 *     example-upload cauce://host:port#key NAME FILE      (password in CAUCE_PASSWORD)
 */
#include <stdio.h>
#include <stdlib.h>

#include <cauce/cauce.h>

static int fail(const char *what, const cauce_error *e)
{
    fprintf(stderr, "%s: %s\n", what, e->message);
    return 1;
}

static int show(const cauce_progress *p, void *ud)
{
    (void)ud;
    fprintf(stderr, "\r%s %lld of %lld ", p->stage, (long long)(p->sent + p->skipped),
            (long long)p->total);
    return 0; /* anything else cancels */
}

int main(int argc, char **argv)
{
    const char *password = getenv("CAUCE_PASSWORD");
    cauce_opts opts;
    cauce_upload_opts upload;
    cauce_upload_result result;
    cauce_error e;
    cauce *c = NULL;
    int code = 0;

    if (argc != 4 || !password) {
        fprintf(stderr, "usage: CAUCE_PASSWORD=... %s SERVER NAME FILE\n", argv[0]);
        return 2;
    }
    cauce_opts_init(&opts);
    opts.server = argv[1];
    if (cauce_connect(&opts, &c, &e) != CAUCE_OK)
        return fail("connect", &e);
    cauce_upload_opts_init(&upload);
    upload.publish = 1;
    if (cauce_login(c, argv[2], password, "example", NULL, &e) != CAUCE_OK)
        code = fail("login", &e);
    else if (cauce_upload_file(c, argv[3], &upload, show, NULL, &result, &e) != CAUCE_OK)
        code = fail("upload", &e);
    else if (cauce_wait_ready(c, result.item_id, CAUCE_UNTIL_PLAYABLE, 0, show, NULL, &e) !=
             CAUCE_OK)
        code = fail("wait", &e);
    else
        printf("%s\n", result.item_id);
    cauce_close(c);
    return code;
}
