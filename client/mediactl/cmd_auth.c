// register, login, logout, whoami.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "cauce/session.rpc.h"
#include "ctl.h"

enum { MAX_PASSWORD_BYTES = 256 };

// ---------------------------------------------------------------- passwords: never from argv

static void wipe(char *p, size_t n)
{
    explicit_bzero(p, n);
}

static enum status read_line(FILE *f, const char *what, char *dst, size_t size, struct err *err)
{
    if (!fgets(dst, (int)size, f))
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s is empty", what);
    size_t n = strcspn(dst, "\r\n");
    if (dst[n] == '\0' && n == size - 1)
        return err_set(err, STATUS_INVALID_ARGUMENT, "%s: the password is longer than %d bytes",
                       what, MAX_PASSWORD_BYTES);
    dst[n] = '\0';
    return STATUS_OK;
}

static enum status ask(char *dst, size_t size, struct err *err)
{
    FILE *tty = fopen("/dev/tty", "r+e");
    if (!tty)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "no terminal to ask for a password: use --password-file or CAUCE_PASSWORD");
    struct termios before, silent;
    bool has = tcgetattr(fileno(tty), &before) == 0;
    silent = before;
    silent.c_lflag &= ~(tcflag_t)ECHO;
    if (has)
        tcsetattr(fileno(tty), TCSAFLUSH, &silent);
    fputs("password: ", tty);
    fflush(tty);
    enum status s = read_line(tty, "the password", dst, size, err);
    if (has)
        tcsetattr(fileno(tty), TCSAFLUSH, &before);
    fputs("\n", tty);
    fclose(tty);
    return s;
}

static enum status get_password(struct ctl *k, char *dst, size_t size)
{
    const char *env = getenv("CAUCE_PASSWORD");
    if (ctl_has(k, OPT_PASSWORD_FILE)) {
        const char *path = k->opt[OPT_PASSWORD_FILE];
        FILE *f = fopen(path, "re");
        if (!f)
            return err_errno(&k->err, errno, "open %s", path);
        enum status s = read_line(f, path, dst, size, &k->err);
        fclose(f);
        return s;
    }
    if (env && env[0])
        return str_copy(dst, size, env)
                   ? STATUS_OK
                   : err_set(&k->err, STATUS_INVALID_ARGUMENT, "CAUCE_PASSWORD is too long");
    return ask(dst, size, &k->err);
}

// ---------------------------------------------------------------- commands

static void print_user(struct ctl *k, const cauce_user *u)
{
    if (!ctl_has(k, OPT_JSON)) {
        printf("%s (%s), roles %s\n", u->name, u->id, u->roles);
        return;
    }
    struct buf b;
    buf_init(&b, 8192);
    buf_puts(&b, "{\"id\":");
    buf_put_json_string(&b, u->id, strlen(u->id));
    buf_puts(&b, ",\"name\":");
    buf_put_json_string(&b, u->name, strlen(u->name));
    buf_puts(&b, ",\"email\":");
    buf_put_json_string(&b, u->email, strlen(u->email));
    buf_puts(&b, ",\"roles\":[");
    for (const char *at = u->roles; *at;) {
        size_t n = strcspn(at, ",");
        buf_put_json_string(&b, at, n);
        at += n;
        if (*at) {
            buf_putc(&b, ',');
            at++;
        }
    }
    buf_puts(&b, "]}\n");
    fputs(buf_str(&b), stdout);
    buf_done(&b);
}

static enum status cmd_register(struct ctl *k)
{
    char password[MAX_PASSWORD_BYTES + 2];
    enum status s = get_password(k, password, sizeof(password));
    cauce_user u;
    cauce_error e;
    if (s == STATUS_OK)
        s = ctl_status(k, cauce_register(k->c, k->args[0], password, k->opt[OPT_EMAIL], &u, &e),
                       &e);
    wipe(password, sizeof(password));
    if (s == STATUS_OK)
        print_user(k, &u);
    return s;
}

static enum status cmd_login(struct ctl *k)
{
    char password[MAX_PASSWORD_BYTES + 2], device[128] = "";
    if (gethostname(device, sizeof(device) - 1) != 0)
        str_copy(device, sizeof(device), "mediactl");
    enum status s = get_password(k, password, sizeof(password));
    cauce_user u;
    cauce_error e;
    if (s == STATUS_OK)
        s = ctl_status(k, cauce_login(k->c, k->args[0], password, device, &u, &e), &e);
    wipe(password, sizeof(password));
    if (s == STATUS_OK)
        print_user(k, &u);
    return s;
}

static enum status cmd_logout(struct ctl *k)
{
    cauce_error e;
    enum status s = ctl_status(k, cauce_logout(k->c, ctl_has(k, OPT_EVERYWHERE), &e), &e);
    if (s == STATUS_OK)
        puts(ctl_has(k, OPT_JSON) ? "{}" : "logged out");
    return s;
}

static enum status cmd_whoami(struct ctl *k)
{
    cauce_user u;
    cauce_error e;
    enum status s = ctl_status(k, cauce_whoami(k->c, &u, &e), &e);
    if (s == STATUS_OK)
        print_user(k, &u);
    return s;
}

static const struct command commands[] = {
    {"register", "NAME", 1, 1, ALLOW(OPT_PASSWORD_FILE) | ALLOW(OPT_EMAIL), CONNECTED, cmd_register,
     "make an account and log in"},
    {"login", "NAME", 1, 1, ALLOW(OPT_PASSWORD_FILE), CONNECTED, cmd_login, "log in"},
    {"logout", "", 0, 0, ALLOW(OPT_EVERYWHERE), CONNECTED, cmd_logout, "log out"},
    {"whoami", "", 0, 0, 0, CONNECTED, cmd_whoami, "who is logged in"},
};
const struct command_group auth_commands = {commands, N_ELEMENTS(commands)};
