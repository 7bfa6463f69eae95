// Reading INI files through libinih. The library silently cuts what is longer than its fixed
// buffers; here that is an error instead, because half a key or half an address is worse than none.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <ini.h>

#include "base/auto.h"
#include "config/config.h"

enum { NAME_MAX_BYTES = 49 }; // what libinih keeps of a section's or key's name

struct ini {
    FILE *f;
    const char *path;
    int line;
    cfg_ini_fn fn;
    void *ud;
    enum status status;
    struct err *err;
};

static void fclose_p(FILE **f)
{
    if (*f)
        fclose(*f);
}

// libinih's fgets(): also counts lines, stops at the first error and refuses long lines.
static char *read_line(char *line, int size, void *stream)
{
    struct ini *in = stream;
    if (in->status != STATUS_OK || !fgets(line, size, in->f))
        return NULL;
    in->line++;
    size_t n = strlen(line);
    if (n == (size_t)size - 1 && line[n - 1] != '\n') {
        in->status = err_set(in->err, STATUS_INVALID_ARGUMENT,
                             "%s line %d: longer than %d characters", in->path, in->line, size - 2);
        return NULL;
    }
    return line;
}

static int handle(void *ud, const char *section, const char *key, const char *value)
{
    struct ini *in = ud;
    if (strlen(section) >= NAME_MAX_BYTES || strlen(key) >= NAME_MAX_BYTES) {
        in->status = err_set(in->err, STATUS_INVALID_ARGUMENT,
                             "%s line %d: a name is longer than %d characters", in->path, in->line,
                             NAME_MAX_BYTES - 1);
        return 0;
    }
    in->status = in->fn(in->ud, section, key, value, in->err);
    if (in->status != STATUS_OK)
        err_wrap(in->err, in->status, "%s line %d", in->path, in->line);
    return in->status == STATUS_OK;
}

enum status cfg_ini_read(const char *path, cfg_ini_fn fn, void *ud, struct err *err)
{
    AUTO(fclose_p) FILE *f = fopen(path, "re");
    if (!f)
        return err_errno(err, errno, "open %s", path);
    struct ini in = {.f = f, .path = path, .fn = fn, .ud = ud, .err = err};
    int bad_line = ini_parse_stream(read_line, &in, handle, &in);
    if (in.status != STATUS_OK)
        return in.status;
    if (ferror(f))
        return err_errno(err, errno, "read %s", path);
    if (bad_line != 0)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "%s line %d: neither [section] nor name = value", path, bad_line);
    return STATUS_OK;
}
