// The login on disk: <state_dir>/login-<key>, mode 0600, one "name value" per line, replaced by
// rename; <state_dir>/server names the server of the last login.
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crypto/crypto.h"

enum { MAX_STATE_BYTES = 3 * CLIENT_MAX_TOKEN };

static void close_p(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static char *path_in(const char *dir, const char *name)
{
    return mem_printf("%s/%s", dir, name);
}

// mkdir -p, each folder that is made with mode 0700.
static enum status make_folder(const char *dir, struct err *err)
{
    AUTO(mem_free_p) char *path = mem_strdup(dir);
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    for (char *p = path + 1;; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        char at = *p;
        *p = '\0';
        if (mkdir(path, 0700) != 0 && errno != EEXIST)
            return err_errno(err, errno, "make folder %s", path);
        *p = at;
        if (at == '\0')
            return STATUS_OK;
    }
}

static enum status read_small(const char *path, struct buf *ret, struct err *err)
{
    AUTO(close_p) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_errno(err, errno, "open %s", path);
    for (;;) {
        uint8_t *p = buf_reserve(ret, 1024);
        if (!p)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s is too large", path);
        ssize_t n = read(fd, p, 1024);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "read %s", path);
        if (n == 0)
            return buf_putc(ret, '\0') ? STATUS_OK
                                       : err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        buf_commit(ret, (size_t)n);
    }
}

static enum status write_fd(int fd, const char *path, const struct buf *b, struct err *err)
{
    for (size_t done = 0; done < b->len;) {
        ssize_t n = write(fd, b->data + done, b->len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "write %s", path);
        done += (size_t)n;
    }
    return fsync(fd) == 0 ? STATUS_OK : err_errno(err, errno, "write %s", path);
}

static enum status replace_file(const char *dir, const char *name, const struct buf *b,
                                struct err *err)
{
    enum status s = make_folder(dir, err);
    if (s != STATUS_OK)
        return s;
    AUTO(mem_free_p) char *path = path_in(dir, name);
    AUTO(mem_free_p) char *temp = mem_printf("%s/.%s.%d", dir, name, (int)getpid());
    if (!path || !temp)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    unlink(temp);
    AUTO(close_p) int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, errno, "make %s", temp);
    s = write_fd(fd, temp, b, err);
    if (s == STATUS_OK && rename(temp, path) != 0)
        s = err_errno(err, errno, "rename %s", temp);
    if (s != STATUS_OK)
        unlink(temp);
    return s;
}

// ---------------------------------------------------------------- the login

static void take_line(struct login *l, const char *line)
{
    int64_t exp;
    if (str_starts_with(line, "access "))
        str_copy(l->access, sizeof(l->access), line + strlen("access "));
    else if (str_starts_with(line, "refresh "))
        str_copy(l->refresh, sizeof(l->refresh), line + strlen("refresh "));
    else if (str_starts_with(line, "access-expires ") &&
             str_parse_i64(line + strlen("access-expires "), 0, INT64_MAX, &exp, NULL) == STATUS_OK)
        l->access_exp_ms = exp;
}

enum status client_state_load(struct cauce *c, struct login *ret, struct err *err)
{
    memset(ret, 0, sizeof(*ret));
    if (!c->state_dir)
        return STATUS_OK;
    AUTO(mem_free_p) char *path = path_in(c->state_dir, c->login_name);
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    struct buf b;
    buf_init(&b, MAX_STATE_BYTES);
    enum status s = read_small(path, &b, err);
    char *at = (char *)b.data;
    for (char *line; s == STATUS_OK && (line = strsep(&at, "\n"));)
        take_line(ret, line);
    if (b.data)
        crypto_wipe(b.data, b.len);
    buf_done(&b);
    return s == STATUS_NOT_FOUND ? STATUS_OK : s;
}

enum status client_state_save(struct cauce *c, const struct login *l, struct err *err)
{
    if (!c->state_dir)
        return STATUS_OK;
    struct buf b;
    buf_init(&b, MAX_STATE_BYTES);
    buf_printf(&b, "access %s\naccess-expires %lld\nrefresh %s\n", l->access,
               (long long)l->access_exp_ms, l->refresh);
    enum status s = b.failed ? err_set(err, STATUS_RESOURCE_EXHAUSTED, "login is too large")
                             : replace_file(c->state_dir, c->login_name, &b, err);
    if (b.data)
        crypto_wipe(b.data, b.len);
    buf_reset(&b);
    buf_printf(&b, "%s\n", c->server);
    if (s == STATUS_OK)
        s = replace_file(c->state_dir, "server", &b, err);
    buf_done(&b);
    return s;
}

void client_state_forget(struct cauce *c)
{
    if (!c->state_dir)
        return;
    AUTO(mem_free_p) char *path = path_in(c->state_dir, c->login_name);
    if (path)
        unlink(path);
}

enum status client_state_server(const char *dir, char **ret, struct err *err)
{
    AUTO(mem_free_p) char *path = path_in(dir, "server");
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    struct buf b;
    buf_init(&b, MAX_STATE_BYTES);
    enum status s = read_small(path, &b, err);
    if (s == STATUS_OK) {
        b.data[strcspn((char *)b.data, "\r\n")] = '\0';
        *ret = mem_strdup((char *)b.data);
        if (!*ret)
            s = err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    } else if (s == STATUS_NOT_FOUND) {
        s = err_set(err, STATUS_INVALID_ARGUMENT,
                    "no server given and none known in %s: name one as cauce://host:port#key", dir);
    }
    buf_done(&b);
    return s;
}

enum status client_state_lock(struct cauce *c, int *ret_fd, struct err *err)
{
    *ret_fd = -1;
    if (!c->state_dir)
        return STATUS_OK;
    enum status s = make_folder(c->state_dir, err);
    if (s != STATUS_OK)
        return s;
    AUTO(mem_free_p) char *path = path_in(c->state_dir, "lock");
    if (!path)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    AUTO(close_p) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, errno, "open %s", path);
    while (flock(fd, LOCK_EX) != 0)
        if (errno != EINTR)
            return err_errno(err, errno, "lock %s", path);
    *ret_fd = fd;
    fd = -1;
    return STATUS_OK;
}
