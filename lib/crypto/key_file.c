// Key files: "kind:<base64url>\n", mode 0600.
//
// A key is written under a temporary name, synced and then given its real name in a way that fails
// when that name is taken: neither a crash nor a second run can lose a key.
#include "crypto/crypto.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"

#define MAX_KEY_BYTES 256
#define MAX_FILE_BYTES 512

static void close_p(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static enum status sync_folder_of(const char *path, struct err *err)
{
    AUTO(mem_free_p) char *copy = mem_strdup(path);
    if (!copy)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "key file %s: out of memory", path);
    const char *folder = dirname(copy);
    AUTO(close_p) int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        return err_errno(err, errno, "sync folder %s", folder);
    return STATUS_OK;
}

// Give the file its real name unless that is taken. Not every file system knows
// RENAME_NOREPLACE; a hard link does the same in two steps.
static int rename_new(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -1;
    if (link(from, to) != 0)
        return -1;
    return unlink(from);
}

static enum status write_text(int fd, const char *temp, const char *text, size_t n, struct err *err)
{
    while (n > 0) {
        ssize_t done = write(fd, text, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return err_errno(err, errno, "write %s", temp);
        text += done;
        n -= (size_t)done;
    }
    if (fsync(fd) != 0)
        return err_errno(err, errno, "sync %s", temp);
    return STATUS_OK;
}

static enum status save_text(const char *path, const char *text, size_t n, struct err *err)
{
    AUTO(mem_free_p) char *temp = mem_printf("%s.new.XXXXXX", path);
    if (!temp)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "key file %s: out of memory", path);
    AUTO(close_p) int fd = mkostemp(temp, O_CLOEXEC); // mode 0600
    if (fd < 0)
        return err_errno(err, errno, "create %s", temp);

    enum status s = write_text(fd, temp, text, n, err);
    if (s == STATUS_OK && rename_new(temp, path) != 0)
        s = err_errno(err, errno, "key file %s", path);
    if (s != STATUS_OK) {
        unlink(temp);
        return s;
    }
    return sync_folder_of(path, err);
}

enum status crypto_key_save(const char *path, const char *kind, const void *key, size_t n,
                            struct err *err)
{
    char text[MAX_FILE_BYTES];
    size_t kind_len = strlen(kind);

    if (n > MAX_KEY_BYTES || kind_len + 1 + str_b64_len(n) + 2 > sizeof(text))
        return err_set(err, STATUS_INVALID_ARGUMENT, "key file %s: a key of %zu bytes is too long",
                       path, n);
    memcpy(text, kind, kind_len);
    text[kind_len] = ':';
    str_b64(text + kind_len + 1, key, n);
    size_t len = strlen(text);
    text[len++] = '\n';
    enum status s = save_text(path, text, len, err);
    crypto_wipe(text, sizeof(text));
    return s;
}

static enum status read_text(const char *path, char *text, size_t cap, size_t *ret_len,
                             struct err *err)
{
    AUTO(close_p) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return err_errno(err, errno, "key file %s", path);
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_errno(err, errno, "key file %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, STATUS_INVALID_ARGUMENT, "key file %s: not a regular file", path);
    if (st.st_mode & (S_IRWXG | S_IRWXO))
        return err_set(err, STATUS_PERMISSION_DENIED,
                       "key file %s: mode %04o lets others in; run chmod 600 on it", path,
                       (unsigned)(st.st_mode & 07777));
    size_t len = 0;
    while (len < cap) {
        ssize_t n = read(fd, text + len, cap - len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "key file %s", path);
        if (n == 0)
            break;
        len += (size_t)n;
    }
    *ret_len = len;
    return STATUS_OK;
}

static enum status parse_text(const char *path, const char *kind, const char *text, size_t len,
                              void *key, size_t n, struct err *err)
{
    uint8_t bytes[MAX_KEY_BYTES];
    size_t kind_len = strlen(kind), n_bytes = 0;
    enum status s = STATUS_OK;

    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r'))
        len--;
    if (len <= kind_len || memcmp(text, kind, kind_len) != 0 || text[kind_len] != ':')
        s = err_set(err, STATUS_INVALID_ARGUMENT, "key file %s: does not begin with \"%s:\"", path,
                    kind);
    else if (!str_unb64(bytes, sizeof(bytes), text + kind_len + 1, len - kind_len - 1, &n_bytes) ||
             n_bytes != n)
        s = err_set(err, STATUS_INVALID_ARGUMENT,
                    "key file %s: not the base64url form of %zu bytes", path, n);
    else
        memcpy(key, bytes, n);
    crypto_wipe(bytes, sizeof(bytes));
    return s;
}

enum status crypto_key_load(const char *path, const char *kind, void *key, size_t n,
                            struct err *err)
{
    char text[MAX_FILE_BYTES];
    size_t len = 0;
    enum status s = read_text(path, text, sizeof(text), &len, err);

    if (s == STATUS_OK)
        s = parse_text(path, kind, text, len, key, n, err);
    crypto_wipe(text, sizeof(text));
    return s;
}
