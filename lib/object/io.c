// The disk: thin wrappers that name what failed, go on after short transfers, and can be made to
// fail by tests. fsync is never tried again: after a failure the kernel may have dropped the pages
// and would report success for bytes that are not there.
#include "object/internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int fault(const struct io *io, enum object_io_op op, const char *path)
{
    return io->fault ? io->fault(io->ud, op, path) : 0;
}

enum status io_open(const struct io *io, int dirfd, const char *path, int flags, int *ret,
                    struct err *err)
{
    int e = fault(io, OBJECT_IO_OPEN, path);
    if (e == 0) {
        int fd = openat(dirfd, path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd >= 0) {
            *ret = fd;
            return STATUS_OK;
        }
        e = errno;
    }
    return err_errno(err, e, "open %s", path);
}

enum status io_mkdir(const struct io *io, int dirfd, const char *path, struct err *err)
{
    int e = fault(io, OBJECT_IO_OPEN, path);
    if (e == 0 && mkdirat(dirfd, path, 0700) != 0 && errno != EEXIST)
        e = errno;
    return e == 0 ? STATUS_OK : err_errno(err, e, "make %s", path);
}

enum status io_read(const struct io *io, int fd, const char *path, int64_t at, void *p, size_t n,
                    struct err *err)
{
    int e = fault(io, OBJECT_IO_READ, path);
    if (e != 0)
        return err_errno(err, e, "read %s", path);
    uint8_t *to = p;
    while (n > 0) {
        ssize_t got = pread(fd, to, n, at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_errno(err, errno, "read %s at %lld", path, (long long)at);
        if (got == 0)
            return err_set(err, STATUS_DATA_LOSS, "read %s: ends at %lld", path, (long long)at);
        to += got;
        n -= (size_t)got;
        at += got;
    }
    return STATUS_OK;
}

// DATA_LOSS speaks of bytes that do not match; a disk that does not take them is INTERNAL.
static enum status write_failed(struct err *err, int e, const char *path, int64_t at)
{
    enum status s = err_errno(err, e, "write %s at %lld", path, (long long)at);
    return s == STATUS_DATA_LOSS ? err_set(err, STATUS_INTERNAL, "write %s at %lld: %s", path,
                                           (long long)at, strerror(e))
                                 : s;
}

enum status io_write(const struct io *io, int fd, const char *path, int64_t at, const void *p,
                     size_t n, struct err *err)
{
    int e = fault(io, OBJECT_IO_WRITE, path);
    if (e != 0)
        return write_failed(err, e, path, at);
    const uint8_t *from = p;
    while (n > 0) {
        ssize_t put = pwrite(fd, from, n, at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return write_failed(err, put < 0 ? errno : EIO, path, at);
        from += put;
        n -= (size_t)put;
        at += put;
    }
    return STATUS_OK;
}

enum status io_resize(const struct io *io, int fd, const char *path, int64_t size, struct err *err)
{
    int e = fault(io, OBJECT_IO_RESIZE, path);
    if (e == 0 && ftruncate(fd, size) != 0)
        e = errno;
    return e == 0 ? STATUS_OK : err_errno(err, e, "resize %s", path);
}

enum status io_sync(const struct io *io, int fd, const char *path, struct err *err)
{
    int e = fault(io, OBJECT_IO_SYNC, path);
    if (e == 0 && fdatasync(fd) != 0) // the size is data for fdatasync; times may be lost
        e = errno;
    return e == 0 ? STATUS_OK
                  : err_set(err, STATUS_INTERNAL, "sync %s: %s; it does not count as stored", path,
                            strerror(e));
}

enum status io_sync_dir(const struct io *io, int dirfd, const char *path, struct err *err)
{
    int fd = -1;
    enum status s = io_open(io, dirfd, path, O_RDONLY | O_DIRECTORY, &fd, err);
    if (s != STATUS_OK)
        return s;
    int e = fault(io, OBJECT_IO_SYNC, path);
    if (e == 0 && fsync(fd) != 0)
        e = errno;
    close(fd);
    return e == 0 ? STATUS_OK
                  : err_set(err, STATUS_INTERNAL, "sync folder %s: %s", path, strerror(e));
}

enum status io_rename(const struct io *io, int dirfd, const char *from, const char *to,
                      struct err *err)
{
    int e = fault(io, OBJECT_IO_RENAME, to);
    if (e == 0 && renameat(dirfd, from, dirfd, to) != 0)
        e = errno;
    return e == 0 ? STATUS_OK : err_errno(err, e, "rename %s to %s", from, to);
}

enum status io_unlink(const struct io *io, int dirfd, const char *path, struct err *err)
{
    int e = fault(io, OBJECT_IO_UNLINK, path);
    if (e == 0 && unlinkat(dirfd, path, 0) != 0 && errno != ENOENT)
        e = errno;
    return e == 0 ? STATUS_OK : err_errno(err, e, "delete %s", path);
}

void io_discard(const struct io *io, int dirfd, const char *path)
{
    if (fault(io, OBJECT_IO_UNLINK, path) == 0)
        (void)unlinkat(dirfd, path, 0);
}

static enum status write_whole(const struct io *io, int dirfd, const char *path, const void *p,
                               size_t n, struct err *err)
{
    int fd = -1;
    enum status s = io_open(io, dirfd, path, O_WRONLY | O_CREAT | O_TRUNC, &fd, err);
    if (s != STATUS_OK)
        return s;
    s = io_write(io, fd, path, 0, p, n, err);
    if (s == STATUS_OK)
        s = io_sync(io, fd, path, err);
    close(fd);
    return s;
}

enum status io_write_file(const struct io *io, int dirfd, const char *temp, const char *path,
                          const char *folder, const void *p, size_t n, struct err *err)
{
    enum status s = write_whole(io, dirfd, temp, p, n, err);
    if (s == STATUS_OK)
        s = io_rename(io, dirfd, temp, path, err);
    if (s != STATUS_OK) {
        io_discard(io, dirfd, temp);
        return s;
    }
    return io_sync_dir(io, dirfd, folder, err);
}

int64_t io_space(const struct io *io, int dirfd, bool *ret_ro)
{
    struct statvfs v;
    *ret_ro = false;
    if (fault(io, OBJECT_IO_SPACE, ".") != 0)
        return 0;
    if (fstatvfs(dirfd, &v) != 0 || v.f_frsize == 0)
        return -1;
    *ret_ro = (v.f_flag & ST_RDONLY) != 0;
    if (v.f_bavail > INT64_MAX / v.f_frsize)
        return INT64_MAX;
    return (int64_t)(v.f_bavail * v.f_frsize);
}

enum status io_each(int dirfd, const char *path, io_each_fn fn, void *ud, struct err *err)
{
    int fd = openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (!d) {
        int e = errno;
        if (fd >= 0)
            close(fd);
        return err_errno(err, e, "list %s", path);
    }
    enum status s = STATUS_OK;
    while (s == STATUS_OK) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e) {
            if (errno != 0)
                s = err_errno(err, errno, "list %s", path);
            break;
        }
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            s = fn(ud, e->d_name, err);
    }
    closedir(d);
    return s;
}
