// nodes.ini: who is where, and by which keys they are known.
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "service/internal.h"

#define MAX_NODES 4096

static const struct {
    const char *name;
    unsigned role;
} roles[] = {
    {"session", ROLE_NODE_SESSION},     {"orchestrator", ROLE_NODE_ORCHESTRATOR},
    {"transcode", ROLE_NODE_TRANSCODE}, {"store", ROLE_NODE_STORE},
    {"origin", ROLE_NODE_ORIGIN},       {"gateway", ROLE_NODE_GATEWAY},
    {"admin", ROLE_NODE_ADMIN},
};

unsigned svc_role_from_name(const char *name)
{
    for (size_t i = 0; i < N_ELEMENTS(roles); i++)
        if (str_eq(roles[i].name, name))
            return roles[i].role;
    return 0;
}

const char *svc_role_name(unsigned role_bit)
{
    for (size_t i = 0; i < N_ELEMENTS(roles); i++)
        if (roles[i].role == role_bit)
            return roles[i].name;
    return "unknown";
}

static bool key_from_text(uint8_t key[32], const char *text)
{
    size_t n = 0;

    return str_unb64(key, 32, text, strlen(text), &n) && n == 32;
}

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "nodes: out of memory");
}

// The node of that section, made when it is new.
static enum status node_of(struct svc_nodes *n, const char *section, struct svc_node **ret,
                           struct err *err)
{
    for (size_t i = 0; i < n->n; i++) {
        if (str_eq(n->all[i].id, section)) {
            *ret = &n->all[i];
            return STATUS_OK;
        }
    }
    if (strlen(section) == 0 || strlen(section) >= CHAN_NODE_ID_SIZE || n->n == MAX_NODES)
        return err_set(err, STATUS_INVALID_ARGUMENT, "section [%s] is no node id, or one too many",
                       section);
    if (n->n == n->cap) {
        size_t cap = n->cap ? 2 * n->cap : 16;
        struct svc_node *more = mem_realloc(n->all, cap, sizeof(*more));
        if (!more)
            return no_memory(err);
        n->all = more;
        n->cap = cap;
    }
    struct svc_node *node = &n->all[n->n++];
    memset(node, 0, sizeof(*node));
    (void)str_copy(node->id, sizeof(node->id), section);
    *ret = node;
    return STATUS_OK;
}

static enum status operator_key(struct svc_nodes *n, const char *key, const char *value,
                                struct err *err)
{
    int64_t floor = 0;

    if (str_eq(key, "key") && key_from_text(n->operator_key, value)) {
        n->has_operator = true;
        return STATUS_OK;
    }
    if (str_eq(key, "serial-floor") &&
        str_parse_i64(value, 0, INT64_MAX, &floor, err) == STATUS_OK) {
        n->serial_floor = (uint64_t)floor;
        return STATUS_OK;
    }
    return err_set(err, STATUS_INVALID_ARGUMENT, "[operator] %s: unknown, or not a key", key);
}

static bool set_node_key(struct svc_node *node, const char *key, const char *value)
{
    if (str_eq(key, "role"))
        return (node->role = svc_role_from_name(value)) != 0;
    if (str_eq(key, "kind"))
        return str_copy(node->kind, sizeof(node->kind), value);
    if (str_eq(key, "url"))
        return strstr(value, "://") && str_copy(node->url, sizeof(node->url), value);
    if (str_eq(key, "key"))
        return key_from_text(node->key, value);
    if (str_eq(key, "token-key"))
        return node->has_token_key = key_from_text(node->token_key, value);
    return false;
}

static enum status take_key(void *ud, const char *section, const char *key, const char *value,
                            struct err *err)
{
    struct svc_nodes *n = ud;
    struct svc_node *node = NULL;

    if (str_eq(section, "operator"))
        return operator_key(n, key, value, err);
    enum status s = node_of(n, section, &node, err);
    if (s != STATUS_OK)
        return s;
    if (!set_node_key(node, key, value))
        return err_set(err, STATUS_INVALID_ARGUMENT, "[%s] %s: unknown, or a bad value", section,
                       key);
    return STATUS_OK;
}

static enum status check(const struct svc_nodes *n, struct err *err)
{
    static const uint8_t none[32];

    if (!n->has_operator)
        return err_set(err, STATUS_INVALID_ARGUMENT, "no [operator] key");
    for (size_t i = 0; i < n->n; i++) {
        const struct svc_node *node = &n->all[i];
        const char *missing = node->role == 0                              ? "role"
                              : node->url[0] == '\0'                       ? "url"
                              : memcmp(node->key, none, sizeof(none)) == 0 ? "key"
                                                                           : NULL;
        if (missing)
            return err_set(err, STATUS_INVALID_ARGUMENT, "[%s] has no %s", node->id, missing);
    }
    return STATUS_OK;
}

enum status svc_nodes_load(const char *path, struct svc_nodes **ret, struct err *err)
{
    AUTO(svc_nodes_free_p) struct svc_nodes *n = mem_alloc(sizeof(*n));
    if (!n)
        return no_memory(err);
    enum status s = cfg_ini_read(path, take_key, n, err);
    if (s != STATUS_OK)
        return s;
    s = check(n, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "%s", path);
    *ret = TAKE(n);
    return STATUS_OK;
}

void svc_nodes_free(struct svc_nodes *n)
{
    if (!n)
        return;
    mem_free(n->all);
    mem_free(n);
}

const struct svc_node *svc_nodes_next(const struct svc_nodes *n, unsigned role,
                                      const struct svc_node *prev)
{
    for (size_t i = prev ? (size_t)(prev - n->all) + 1 : 0; i < n->n; i++)
        if (n->all[i].role & role)
            return &n->all[i];
    return NULL;
}

const struct svc_node *svc_nodes_find(const struct svc_nodes *n, const char *id)
{
    for (size_t i = 0; i < n->n; i++)
        if (str_eq(n->all[i].id, id))
            return &n->all[i];
    return NULL;
}

const uint8_t *svc_nodes_operator(const struct svc_nodes *n)
{
    return n->operator_key;
}

uint64_t svc_nodes_serial_floor(const struct svc_nodes *n)
{
    return n->serial_floor;
}
