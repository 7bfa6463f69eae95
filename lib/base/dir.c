#include "base/dir.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/auto.h"
#include "base/mem.h"

enum status dir_make(const char *path, struct err *err)
{
    AUTO(mem_free_p) char *part = mem_strdup(path);
    if (!part)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    for (char *p = part; *p;) {
        p += strspn(p, "/");
        p += strcspn(p, "/");
        char at = *p;
        *p = 0;
        if (part[0] && mkdir(part, 0700) != 0 && errno != EEXIST)
            return err_errno(err, errno, "make %s", part);
        *p = at;
    }
    return STATUS_OK;
}
