// A folder of <digest>.tree files: the leaf digests of sources that this worker has seen. A film's
// chunks are many tasks, and each would ask for the same digests. What is read back is verified by
// the caller, so nothing here needs to be trusted or durable.
#include "transcode/internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rand.h"
#include "base/str.h"

#define MAX_FILES 256
#define PATH_BYTES 1024

static bool path_of(char dst[PATH_BYTES], const char *dir, const uint8_t digest[32],
                    const char *suffix)
{
    char hex[OBJECT_HEX_SIZE];
    str_hex(hex, digest, OBJECT_DIGEST_SIZE);
    int n = snprintf(dst, PATH_BYTES, "%s/%s%s", dir, hex, suffix);
    return n > 0 && n < PATH_BYTES;
}

bool tree_cache_load(const char *dir, const uint8_t digest[32], struct buf *ret)
{
    char path[PATH_BYTES];
    int fd =
        path_of(path, dir, digest, ".tree") ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    if (fd < 0)
        return false;
    struct stat st;
    size_t n = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (size_t)st.st_size : 0;
    bool ok = n == ret->limit;
    uint8_t *p = ok ? buf_reserve(ret, n) : NULL;
    ok = p && read(fd, p, n) == (ssize_t)n; // at most 512 MiB: one call
    if (ok)
        buf_commit(ret, n);
    close(fd);
    return ok;
}

// Before the folder grows without end, everything in it of ours goes: it is cheap to have again.
static void make_room(const char *dir)
{
    DIR *d = opendir(dir);
    unsigned n = 0;
    for (struct dirent *e; d && (e = readdir(d));)
        n += str_ends_with(e->d_name, ".tree") || str_ends_with(e->d_name, ".part");
    if (n >= MAX_FILES) {
        rewinddir(d);
        for (struct dirent *e; (e = readdir(d));)
            if (str_ends_with(e->d_name, ".tree") || str_ends_with(e->d_name, ".part"))
                (void)unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d)
        closedir(d);
}

void tree_cache_save(const char *dir, const uint8_t digest[32], const struct buf *leaves)
{
    char path[PATH_BYTES], part[PATH_BYTES], suffix[32];
    snprintf(suffix, sizeof suffix, ".%llx.part", (unsigned long long)rand_u64());
    if (!path_of(path, dir, digest, ".tree") || !path_of(part, dir, digest, suffix))
        return;
    make_room(dir);
    int fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    bool ok = write(fd, leaves->data, leaves->len) == (ssize_t)leaves->len;
    ok = close(fd) == 0 && ok;
    if (!ok || rename(part, path) != 0)
        (void)unlink(part);
}
