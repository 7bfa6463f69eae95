#include "keyring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"

#define MAX_INI_BYTES (1U << 20)
#define BACKDATE_S 3600 // clocks of nodes differ

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

char *keyring_path(const struct keyring *k, const char *id, const char *suffix)
{
    return mem_printf("%s/%s%s", k->dir, id, suffix);
}

// ---------------------------------------------------------------- words

bool keyring_is_node_id(const char *id)
{
    size_t n = strlen(id);

    return n > 0 && n < CHAN_NODE_ID_SIZE &&
           strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789._-") == n && id[0] != '.' &&
           !str_eq(id, "operator");
}

bool keyring_is_kind(const struct svc_node *n)
{
    if (n->role != ROLE_NODE_ORIGIN)
        return n->kind[0] == '\0';
    return str_eq(n->kind, "video") || str_eq(n->kind, "audio");
}

bool keyring_is_url(const char *url)
{
    static const char *const schemes[] = {"tcp://", "ipc://", "inproc://"};

    // What would end a line of nodes.ini, an invitation, or a string of JSON.
    for (const char *p = url; *p; p++)
        if ((unsigned char)*p <= ' ' || strchr(";#\"\\\x7f", *p))
            return false;
    for (size_t i = 0; i < N_ELEMENTS(schemes); i++)
        if (str_starts_with(url, schemes[i]) && url[strlen(schemes[i])])
            return strlen(url) < RPC_URL_SIZE;
    return false;
}

void keyring_fingerprint(char out[KEYRING_FINGERPRINT_SIZE], const uint8_t key[32])
{
    uint8_t hash[32];
    char hex[65];

    crypto_blake2b(hash, sizeof(hash), key, 32, NULL, 0, NULL);
    str_hex(hex, hash, sizeof(hash));
    snprintf(out, KEYRING_FINGERPRINT_SIZE, "%.4s-%.4s-%.4s-%.4s", hex, hex + 4, hex + 8, hex + 12);
}

// ---------------------------------------------------------------- open, close

static enum status lock_folder(struct keyring *k, struct err *err)
{
    k->lock_fd = open(k->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (k->lock_fd < 0)
        return err_errno(err, errno, "open %s", k->dir);
    while (flock(k->lock_fd, LOCK_EX) != 0)
        if (errno != EINTR)
            return err_errno(err, errno, "lock %s", k->dir);
    return STATUS_OK;
}

static enum status load_revoked(struct keyring *k, struct err *err)
{
    struct svc_revocation r;

    for (size_t i = 0; svc_nodes_revocation(k->before, i, &r); i++) {
        enum status s = keyring_revoke(k, r.id, r.serial, err);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

static enum status load_nodes(struct keyring *k, struct err *err)
{
    AUTO(mem_free_p) char *path = keyring_path(k, "nodes.ini", "");
    if (!path)
        return no_memory(err);
    enum status s = svc_nodes_load(path, &k->before, err);
    if (s == STATUS_NOT_FOUND)
        return STATUS_OK;
    if (s != STATUS_OK)
        return s;
    for (const struct svc_node *n = NULL; (n = svc_nodes_next(k->before, ROLE_NODE_ANY, n));)
        if (!keyring_add(k, n))
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "%s: more than %d nodes", path,
                           KEYRING_MAX_NODES);
    k->serial_floor = svc_nodes_serial_floor(k->before);
    return load_revoked(k, err);
}

static enum status load_operator(struct keyring *k, struct err *err)
{
    AUTO(mem_free_p) char *path = keyring_path(k, "operator.key", "");
    if (!path)
        return no_memory(err);
    enum status s = crypto_key_load(path, "cauce-ed25519-secret", k->operator_secret, 64, err);
    k->has_operator = s == STATUS_OK;
    if (k->has_operator)
        memcpy(k->operator_public, k->operator_secret + 32, 32);
    else if (s == STATUS_NOT_FOUND && k->before)
        memcpy(k->operator_public, svc_nodes_operator(k->before), 32);
    if (s != STATUS_OK && s != STATUS_NOT_FOUND)
        return s;
    if (k->before && !crypto_equal(k->operator_public, svc_nodes_operator(k->before), 32))
        return err_set(err, STATUS_FAILED_PRECONDITION, "%s is not the operator key of nodes.ini",
                       path);
    return STATUS_OK;
}

enum status keyring_open(const char *dir, struct keyring **ret, struct err *err)
{
    AUTO(keyring_free_p) struct keyring *k = mem_alloc(sizeof(*k));

    if (!k)
        return no_memory(err);
    k->dir = dir;
    enum status s = lock_folder(k, err);
    if (s == STATUS_OK)
        s = crypto_init(err);
    if (s == STATUS_OK)
        s = load_nodes(k, err);
    if (s == STATUS_OK)
        s = load_operator(k, err);
    if (s == STATUS_OK)
        *ret = TAKE(k);
    return s;
}

void keyring_free(struct keyring *k)
{
    if (!k)
        return;
    svc_nodes_free(k->before);
    if (k->lock_fd >= 0)
        close(k->lock_fd);
    crypto_wipe(k->operator_secret, sizeof(k->operator_secret));
    mem_free(k);
}

// ---------------------------------------------------------------- nodes

struct svc_node *keyring_find(struct keyring *k, const char *id)
{
    for (size_t i = 0; i < k->n; i++)
        if (str_eq(k->nodes[i].id, id))
            return &k->nodes[i];
    return NULL;
}

struct svc_node *keyring_add(struct keyring *k, const struct svc_node *n)
{
    if (k->n == KEYRING_MAX_NODES)
        return NULL;
    k->nodes[k->n] = *n;
    return &k->nodes[k->n++];
}

void keyring_remove(struct keyring *k, struct svc_node *n)
{
    size_t i = (size_t)(n - k->nodes);

    k->n--;
    memmove(n, n + 1, (k->n - i) * sizeof(*n));
}

static uint64_t revoked_serial(const struct keyring *k, const char *id)
{
    for (size_t i = 0; i < k->n_revoked; i++)
        if (str_eq(k->revoked[i].id, id))
            return k->revoked[i].serial;
    return 0;
}

enum status keyring_revoke(struct keyring *k, const char *id, uint64_t serial, struct err *err)
{
    for (size_t i = 0; i < k->n_revoked; i++) {
        if (!str_eq(k->revoked[i].id, id))
            continue;
        if (serial > k->revoked[i].serial)
            k->revoked[i].serial = serial;
        return STATUS_OK;
    }
    if (k->n_revoked == KEYRING_MAX_REVOKED)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED,
                       "more than %d revoked nodes: raise serial-floor instead",
                       KEYRING_MAX_REVOKED);
    struct svc_revocation *r = &k->revoked[k->n_revoked++];
    (void)str_copy(r->id, sizeof(r->id), id);
    r->serial = serial;
    return STATUS_OK;
}

// ---------------------------------------------------------------- nodes.ini

static void put_key(struct buf *b, const char *name, const uint8_t key[32])
{
    char text[64];

    str_b64(text, key, 32);
    buf_printf(b, "%s = %s\n", name, text);
}

static void put_operator(struct buf *b, const struct keyring *k)
{
    buf_puts(b, "; made by 'cauced keys'; every node has the same\n[operator]\n");
    put_key(b, "key", k->operator_public);
    if (k->serial_floor > 0)
        buf_printf(b, "serial-floor = %llu\n", (unsigned long long)k->serial_floor);
    for (size_t i = 0; i < k->n_revoked; i++) {
        const struct svc_revocation *r = &k->revoked[i];
        if (r->serial == UINT64_MAX)
            buf_printf(b, "revoked = %s\n", r->id);
        else
            buf_printf(b, "revoked = %s:%llu\n", r->id, (unsigned long long)r->serial);
    }
}

static void put_node(struct buf *b, const struct svc_node *n)
{
    buf_printf(b, "\n[%s]\nrole = %s\n", n->id, svc_role_name(n->role));
    if (n->kind[0])
        buf_printf(b, "kind = %s\n", n->kind);
    buf_printf(b, "url = %s\n", n->url);
    put_key(b, "key", n->key);
    if (n->has_next_key)
        put_key(b, "next-key", n->next_key);
    if (n->has_token_key)
        put_key(b, "token-key", n->token_key);
    if (n->has_next_token_key)
        put_key(b, "next-token-key", n->next_token_key);
}

bool keyring_put_nodes(const struct keyring *k, struct buf *b)
{
    put_operator(b, k);
    for (size_t i = 0; i < k->n; i++)
        put_node(b, &k->nodes[i]);
    return !b->failed;
}

static enum status write_whole(const char *path, unsigned mode, const void *p, size_t n,
                               struct err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, (mode_t)mode);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    if (!f) {
        int why = errno;
        if (fd >= 0)
            close(fd);
        return err_errno(err, why, "create %s", path);
    }
    bool ok = fwrite(p, 1, n, f) == n && fflush(f) == 0 && fsync(fd) == 0;
    int why = errno;
    if (fclose(f) != 0 || !ok)
        return err_errno(err, ok ? errno : why, "write %s", path);
    return STATUS_OK;
}

enum status keyring_replace_file(const char *path, unsigned mode, const void *p, size_t n,
                                 struct err *err)
{
    AUTO(mem_free_p) char *temp = mem_printf("%s.new", path);
    if (!temp)
        return no_memory(err);
    (void)unlink(temp); // of a run that was cut off, perhaps with another mode
    enum status s = write_whole(temp, mode, p, n, err);
    if (s == STATUS_OK && rename(temp, path) != 0)
        s = err_errno(err, errno, "write %s", path);
    if (s != STATUS_OK)
        (void)unlink(temp);
    return s;
}

enum status keyring_write_nodes(const struct keyring *k, struct err *err)
{
    AUTO(buf_done) struct buf b = {0};
    AUTO(mem_free_p) char *path = keyring_path(k, "nodes.ini", "");

    buf_init(&b, MAX_INI_BYTES);
    if (!keyring_put_nodes(k, &b) || !path)
        return no_memory(err);
    return keyring_replace_file(path, 0644, b.data, b.len, err);
}

// ---------------------------------------------------------------- grants

enum status keyring_load_grant(const struct keyring *k, const char *id, const char *suffix,
                               struct chan_grant *ret, struct err *err)
{
    uint8_t bytes[CHAN_GRANT_SIZE];
    AUTO(mem_free_p) char *path = keyring_path(k, id, suffix);
    if (!path)
        return no_memory(err);
    enum status s = crypto_key_load(path, "cauce-grant", bytes, sizeof(bytes), err);
    if (s != STATUS_OK)
        return s;
    // Its dates are the caller's to judge: look from within them.
    int64_t not_before_s = 0;
    for (size_t i = 0; i < 8; i++)
        not_before_s = not_before_s << 8 | bytes[4 + 32 + 2 + CHAN_NODE_ID_SIZE + i];
    return chan_grant_verify(ret, bytes, sizeof(bytes), k->operator_public, not_before_s, err);
}

static unsigned role_number(unsigned role_bit)
{
    unsigned number = 0;

    while (role_bit >>= 1)
        number++;
    return number;
}

// Above what was revoked and what is out, though all be made within one second.
static uint64_t next_serial(const struct keyring *k, const char *id, int64_t now_s)
{
    static const char *const suffixes[] = {".grant", ".next.grant"};
    uint64_t serial = (uint64_t)now_s, revoked = revoked_serial(k, id);
    struct chan_grant g;

    if (serial < k->serial_floor)
        serial = k->serial_floor;
    if (serial <= revoked && revoked < UINT64_MAX)
        serial = revoked + 1;
    for (size_t i = 0; i < N_ELEMENTS(suffixes); i++)
        if (keyring_load_grant(k, id, suffixes[i], &g, NULL) == STATUS_OK && serial <= g.serial)
            serial = g.serial + 1;
    return serial;
}

enum status keyring_sign(const struct keyring *k, const struct svc_node *n, const uint8_t key[32],
                         int64_t valid_s, uint8_t ret[CHAN_GRANT_SIZE], struct err *err)
{
    AUTO(buf_done) struct buf b = {0};
    int64_t now_s = time_wall_ms() / 1000;

    if (!k->has_operator)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "%s needs a new grant, and operator.key is not in %s: put it there", n->id,
                       k->dir);
    if (revoked_serial(k, n->id) == UINT64_MAX)
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "nodes.ini revokes all grants of %s for ever: choose another id", n->id);
    struct chan_grant g = {.role = role_number(n->role),
                           .not_before_s = now_s - BACKDATE_S,
                           .not_after_s = now_s + valid_s,
                           .serial = next_serial(k, n->id, now_s)};
    memcpy(g.key, key, sizeof(g.key));
    (void)str_copy(g.node_id, sizeof(g.node_id), n->id);
    buf_init(&b, CHAN_GRANT_SIZE);
    enum status s = chan_grant_sign(&b, &g, k->operator_secret, err);
    if (s == STATUS_OK)
        memcpy(ret, b.data, CHAN_GRANT_SIZE);
    return s;
}

enum status keyring_write_grant(const struct keyring *k, const struct svc_node *n,
                                const char *suffix, const uint8_t key[32], int64_t valid_s,
                                struct err *err)
{
    uint8_t grant[CHAN_GRANT_SIZE];
    enum status s = keyring_sign(k, n, key, valid_s, grant, err);

    return s == STATUS_OK ? keyring_save_grant(k, n->id, suffix, grant, err) : s;
}

enum status keyring_save_grant(const struct keyring *k, const char *id, const char *suffix,
                               const uint8_t grant[CHAN_GRANT_SIZE], struct err *err)
{
    AUTO(mem_free_p) char *path = keyring_path(k, id, suffix);
    AUTO(mem_free_p) char *temp = keyring_path(k, id, ".grant.new");
    if (!path || !temp)
        return no_memory(err);
    (void)unlink(temp); // of a run that was cut off
    enum status s = crypto_key_save(temp, "cauce-grant", grant, CHAN_GRANT_SIZE, err);
    if (s == STATUS_OK && rename(temp, path) != 0)
        s = err_errno(err, errno, "write %s", path);
    return s;
}
