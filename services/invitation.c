#include "invitation.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "config/config.h"
#include "crypto/crypto.h"

#define FOLDER "invitations"
#define MAX_FILE_BYTES 2048
#define TOLD_S (7 * 24 * 3600) // how long the holder of an expired one is told that it is

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

static char *path_of(const char *dir, const uint8_t id[CHAN_JOIN_ID_SIZE])
{
    char hex[2 * CHAN_JOIN_ID_SIZE + 1];

    str_hex(hex, id, CHAN_JOIN_ID_SIZE);
    return mem_printf("%s/" FOLDER "/%s", dir, hex);
}

// ---------------------------------------------------------------- files

static void put_bytes(struct buf *b, const char *name, const uint8_t bytes[32])
{
    char text[64];

    str_b64(text, bytes, 32);
    buf_printf(b, "%s = %s\n", name, text);
    crypto_wipe(text, sizeof(text));
}

enum status invitation_save(const char *dir, const struct invitation *i, struct err *err)
{
    AUTO(buf_done) struct buf b = {0};
    AUTO(mem_free_p) char *path = path_of(dir, i->join.id);
    AUTO(mem_free_p) char *folder = mem_printf("%s/" FOLDER, dir);

    if (!path || !folder)
        return no_memory(err);
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return err_errno(err, errno, "make %s", folder);
    buf_init(&b, MAX_FILE_BYTES);
    buf_puts(&b, "[invitation]\n");
    put_bytes(&b, "secret", i->join.secret);
    buf_printf(&b, "node = %s\nrole = %s\n", i->node.id, svc_role_name(i->node.role));
    if (i->node.kind[0])
        buf_printf(&b, "kind = %s\n", i->node.kind);
    if (i->node.url[0])
        buf_printf(&b, "url = %s\n", i->node.url);
    buf_printf(&b, "expires = %lld\nvalid = %lld\n", (long long)i->expires_s,
               (long long)i->valid_s);
    if (i->is_used)
        put_bytes(&b, "used-by", i->used_by);
    if (i->is_done)
        buf_puts(&b, "done = yes\n");
    enum status s =
        b.failed ? no_memory(err) : keyring_replace_file(path, 0600, b.data, b.len, err);
    crypto_wipe(b.data, b.len);
    return s;
}

static bool take_bytes(uint8_t out[32], const char *text)
{
    size_t n = 0;

    return str_unb64(out, 32, text, strlen(text), &n) && n == 32;
}

static bool take(struct invitation *i, const char *key, const char *value)
{
    if (str_eq(key, "secret"))
        return take_bytes(i->join.secret, value);
    if (str_eq(key, "node"))
        return str_copy(i->node.id, sizeof(i->node.id), value);
    if (str_eq(key, "role"))
        return (i->node.role = svc_role_from_name(value)) != 0;
    if (str_eq(key, "kind"))
        return str_copy(i->node.kind, sizeof(i->node.kind), value);
    if (str_eq(key, "url"))
        return str_copy(i->node.url, sizeof(i->node.url), value);
    if (str_eq(key, "expires"))
        return str_parse_i64(value, 1, INT64_MAX, &i->expires_s, NULL) == STATUS_OK;
    if (str_eq(key, "valid"))
        return str_parse_i64(value, 1, INT64_MAX, &i->valid_s, NULL) == STATUS_OK;
    if (str_eq(key, "done"))
        return i->is_done = str_eq(value, "yes");
    if (str_eq(key, "used-by"))
        return i->is_used = take_bytes(i->used_by, value);
    return false;
}

static enum status take_key(void *ud, const char *section, const char *key, const char *value,
                            struct err *err)
{
    if (str_eq(section, "invitation") && take(ud, key, value))
        return STATUS_OK;
    return err_set(err, STATUS_DATA_LOSS, "%s: unknown, or not what it should be", key);
}

enum status invitation_load(const char *dir, const uint8_t id[CHAN_JOIN_ID_SIZE],
                            struct invitation *ret, struct err *err)
{
    struct invitation i = {0};
    AUTO(mem_free_p) char *path = path_of(dir, id);
    if (!path)
        return no_memory(err);
    memcpy(i.join.id, id, sizeof(i.join.id));
    enum status s = cfg_ini_read(path, take_key, &i, err);
    if (s == STATUS_OK &&
        (i.node.role == 0 || i.expires_s == 0 || i.valid_s == 0 || !keyring_is_node_id(i.node.id)))
        s = err_set(err, STATUS_DATA_LOSS, "%s lacks something", path);
    if (s == STATUS_OK)
        *ret = i;
    crypto_wipe(&i, sizeof(i));
    return s;
}

// Removes those for which is_due says so.
static enum status remove_some(const char *dir,
                               bool (*is_due)(const struct invitation *, const void *),
                               const void *ud, struct err *err)
{
    AUTO(mem_free_p) char *folder = mem_printf("%s/" FOLDER, dir);
    if (!folder)
        return no_memory(err);
    DIR *d = opendir(folder);
    enum status s = d || errno == ENOENT ? STATUS_OK : err_errno(err, errno, "open %s", folder);

    for (struct dirent *e; s == STATUS_OK && d && (e = readdir(d));) {
        uint8_t id[CHAN_JOIN_ID_SIZE];
        struct invitation i;
        if (!str_unhex(id, sizeof(id), e->d_name) ||
            invitation_load(dir, id, &i, NULL) != STATUS_OK)
            continue;
        if (is_due(&i, ud) && unlinkat(dirfd(d), e->d_name, 0) != 0)
            s = err_errno(err, errno, "remove %s/%s", folder, e->d_name);
        crypto_wipe(&i, sizeof(i));
    }
    if (d)
        closedir(d);
    return s;
}

static bool is_long_over(const struct invitation *i, const void *ud)
{
    (void)ud;
    return i->expires_s + TOLD_S < time_wall_ms() / 1000;
}

void invitation_clean(const char *dir)
{
    (void)!remove_some(dir, is_long_over, NULL, NULL); // the next run comes
}

static bool is_for(const struct invitation *i, const void *node_id)
{
    return str_eq(i->node.id, node_id);
}

enum status invitation_withdraw(const char *dir, const char *node_id, struct err *err)
{
    return remove_some(dir, is_for, node_id, err);
}

// ---------------------------------------------------------------- the string

void invitation_text(char out[INVITATION_TEXT_SIZE], const char *url, const uint8_t key[32],
                     const struct chan_join *join)
{
    char k[64], id[32], secret[64];

    str_b64(k, key, 32);
    str_b64(id, join->id, sizeof(join->id));
    str_b64(secret, join->secret, sizeof(join->secret));
    snprintf(out, INVITATION_TEXT_SIZE, "%s#%s#%s#%s", url, k, id, secret);
    crypto_wipe(secret, sizeof(secret));
}

// The bytes between two of the marks.
static bool take_part(const char **at, uint8_t *out, size_t size)
{
    size_t len = strcspn(*at, "#"), n = 0;

    if (!str_unb64(out, size, *at, len, &n) || n != size)
        return false;
    *at += len;
    *at += **at == '#';
    return true;
}

enum status invitation_parse(const char *text, char ret_url[RPC_URL_SIZE], uint8_t ret_key[32],
                             struct chan_join *ret, struct err *err)
{
    size_t len = strcspn(text, "#");
    const char *at = text + len;

    if (len >= RPC_URL_SIZE || *at != '#')
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "this is no invitation: it has the form URL#KEY#ID#SECRET, in one word");
    memcpy(ret_url, text, len);
    ret_url[len] = '\0';
    at++;
    if (!keyring_is_url(ret_url))
        return err_set(err, STATUS_INVALID_ARGUMENT, "the invitation's address is none");
    if (!take_part(&at, ret_key, 32) || !take_part(&at, ret->id, sizeof(ret->id)) ||
        !take_part(&at, ret->secret, sizeof(ret->secret)) || *at)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "the invitation is not whole: copy all of it, to its end");
    return STATUS_OK;
}

// ---------------------------------------------------------------- the server's key

enum status invitation_server_key(const char *dir, struct chan_identity *ret, struct err *err)
{
    AUTO(mem_free_p) char *path = mem_printf("%s/enrol.key", dir);
    if (!path)
        return no_memory(err);
    memset(ret, 0, sizeof(*ret));
    enum status s = crypto_key_load(path, "cauce-x25519-secret", ret->secret, 32, err);
    if (s == STATUS_NOT_FOUND) {
        crypto_dh_keypair(ret->public_key, ret->secret);
        s = crypto_key_save(path, "cauce-x25519-secret", ret->secret, 32, err);
    }
    if (s == STATUS_OK)
        crypto_dh_public(ret->public_key, ret->secret);
    return s;
}
