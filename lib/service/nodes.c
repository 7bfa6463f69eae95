// nodes.ini: who is where, by which keys they are known, and whose grants are revoked.
//
// A node that was handed out is never changed or freed while the list lives, so that nobody who
// uses one needs a lock: a node that changed is another object, and the old one is kept. Each
// change is somebody's edit of the file, so what is kept stays small.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "service/internal.h"

#define MAX_NODES 4096
#define MAX_REVOKED 4096

struct box {
    struct svc_node node; // first: a node handed out is a box
    size_t slot;
    struct box *older; // what the slot held before
};

struct slot { // one node id, for ever
    struct box *box;
    bool is_gone; // from the file
};

struct svc_nodes {
    pthread_mutex_t lock;
    struct slot *slots; // in the order in which the ids were first read
    size_t n, cap;
    uint8_t operator_key[32];
    bool has_operator;
    uint64_t serial_floor;
    struct svc_revocation *revoked;
    size_t n_revoked;
    char (*shut_out)[CHAN_NODE_ID_SIZE]; // by the last reload
    size_t n_shut_out;
};

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

// ---------------------------------------------------------------- slots (lock held, or not shared)

static struct slot *find_slot(const struct svc_nodes *n, const char *id)
{
    for (size_t i = 0; i < n->n; i++)
        if (str_eq(n->slots[i].box->node.id, id))
            return &n->slots[i];
    return NULL;
}

// Put a node into its slot, made when its id is new. What was there is kept.
static enum status put_node(struct svc_nodes *n, const struct svc_node *node, struct err *err)
{
    struct slot *slot = find_slot(n, node->id);

    if (!slot && n->n == n->cap) {
        size_t cap = n->cap ? 2 * n->cap : 16;
        struct slot *more = mem_realloc(n->slots, cap, sizeof(*more));
        if (!more)
            return no_memory(err);
        n->slots = more;
        n->cap = cap;
    }
    struct box *box = mem_alloc(sizeof(*box));
    if (!box)
        return no_memory(err);
    box->node = *node;
    if (!slot) {
        slot = &n->slots[n->n++];
        *slot = (struct slot){0};
    }
    box->slot = (size_t)(slot - n->slots);
    box->older = slot->box;
    slot->box = box;
    slot->is_gone = false;
    return STATUS_OK;
}

// ---------------------------------------------------------------- reading

// The node of that section, made when it is new. Only while the list is not shared.
static enum status node_of(struct svc_nodes *n, const char *section, struct svc_node **ret,
                           struct err *err)
{
    struct svc_node node = {0};
    struct slot *there = find_slot(n, section);

    if (!there) {
        if (section[0] == '\0' || !str_copy(node.id, sizeof(node.id), section) || n->n == MAX_NODES)
            return err_set(err, STATUS_INVALID_ARGUMENT,
                           "section [%s] is no node id, or one too many", section);
        enum status s = put_node(n, &node, err);
        if (s != STATUS_OK)
            return s;
        there = &n->slots[n->n - 1];
    }
    *ret = &there->box->node;
    return STATUS_OK;
}

// "worker-3:1763730000", "worker-4"
static bool parse_revocation(char *word, struct svc_revocation *ret)
{
    char *colon = strchr(word, ':');
    int64_t serial = 0;

    ret->serial = UINT64_MAX;
    if (colon) {
        *colon = '\0';
        if (str_parse_i64(colon + 1, 0, INT64_MAX, &serial, NULL) != STATUS_OK)
            return false;
        ret->serial = (uint64_t)serial;
    }
    return word[0] != '\0' && str_copy(ret->id, sizeof(ret->id), word);
}

static enum status add_revoked(struct svc_nodes *n, const char *value, struct err *err)
{
    AUTO(mem_free_p) char *copy = mem_strdup(value);
    char *rest = copy;

    if (!copy)
        return no_memory(err);
    for (char *word; (word = strsep(&rest, ", \t"));) {
        if (word[0] == '\0')
            continue;
        struct svc_revocation *more = n->n_revoked < MAX_REVOKED
                                          ? mem_realloc(n->revoked, n->n_revoked + 1, sizeof(*more))
                                          : NULL;
        if (!more)
            return err_set(err, STATUS_RESOURCE_EXHAUSTED, "[operator] revoked: too many");
        n->revoked = more;
        if (!parse_revocation(word, &n->revoked[n->n_revoked]))
            return err_set(err, STATUS_INVALID_ARGUMENT,
                           "[operator] revoked: '%s' is not ID or ID:SERIAL", word);
        n->n_revoked++;
    }
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
    if (str_eq(key, "revoked"))
        return add_revoked(n, value, err);
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
    if (str_eq(key, "next-key"))
        return node->has_next_key = key_from_text(node->next_key, value);
    if (str_eq(key, "token-key"))
        return node->has_token_key = key_from_text(node->token_key, value);
    if (str_eq(key, "next-token-key"))
        return node->has_next_token_key = key_from_text(node->next_token_key, value);
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
        const struct svc_node *node = &n->slots[i].box->node;
        const char *missing = node->role == 0                              ? "role"
                              : node->url[0] == '\0'                       ? "url"
                              : memcmp(node->key, none, sizeof(none)) == 0 ? "key"
                                                                           : NULL;
        if (missing)
            return err_set(err, STATUS_INVALID_ARGUMENT, "[%s] has no %s", node->id, missing);
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------- life

enum status svc_nodes_load(const char *path, struct svc_nodes **ret, struct err *err)
{
    AUTO(svc_nodes_free_p) struct svc_nodes *n = mem_alloc(sizeof(*n));
    if (!n)
        return no_memory(err);
    pthread_mutex_init(&n->lock, NULL);
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
    for (size_t i = 0; i < n->n; i++) {
        for (struct box *b = n->slots[i].box; b;) {
            struct box *older = b->older;
            mem_free(b);
            b = older;
        }
    }
    mem_free(n->slots);
    mem_free(n->revoked);
    mem_free(n->shut_out);
    pthread_mutex_destroy(&n->lock);
    mem_free(n);
}

// Of zeroed memory and filled by the same code, so bytes compare.
static bool is_same_node(const struct svc_node *a, const struct svc_node *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

static uint64_t serial_of(const struct svc_nodes *n, const char *id)
{
    for (size_t i = 0; i < n->n_revoked; i++)
        if (str_eq(n->revoked[i].id, id))
            return n->revoked[i].serial;
    return 0;
}

// Those that the fresh list removes, or revokes further than before. Room for all is there.
static void find_shut_out(struct svc_nodes *n, const struct svc_nodes *fresh,
                          char (*ids)[CHAN_NODE_ID_SIZE])
{
    n->n_shut_out = 0;
    for (size_t i = 0; i < n->n; i++) {
        const struct slot *slot = &n->slots[i];
        const char *id = slot->box->node.id;
        if (!slot->is_gone && !find_slot(fresh, id))
            (void)str_copy(ids[n->n_shut_out++], CHAN_NODE_ID_SIZE, id);
    }
    for (size_t i = 0; i < fresh->n_revoked; i++) {
        const struct svc_revocation *r = &fresh->revoked[i];
        if (r->serial > serial_of(n, r->id) && !find_slot(fresh, r->id) && !find_slot(n, r->id))
            (void)str_copy(ids[n->n_shut_out++], CHAN_NODE_ID_SIZE, r->id);
    }
    mem_free(n->shut_out);
    n->shut_out = ids;
}

// What is new first: should memory end in between, the list holds more than the file, not less.
static enum status merge(struct svc_nodes *n, struct svc_nodes *fresh, struct err *err)
{
    AUTO(mem_free_p)
    char(*ids)[CHAN_NODE_ID_SIZE] = mem_array(n->n + fresh->n_revoked + 1, sizeof(*ids));
    if (!ids)
        return no_memory(err);
    for (size_t i = 0; i < fresh->n; i++) {
        const struct svc_node *node = &fresh->slots[i].box->node;
        const struct slot *there = find_slot(n, node->id);
        if (there && !there->is_gone && is_same_node(&there->box->node, node))
            continue;
        enum status s = put_node(n, node, err);
        if (s != STATUS_OK)
            return s;
    }
    find_shut_out(n, fresh, TAKE(ids));
    for (size_t i = 0; i < n->n; i++)
        n->slots[i].is_gone = !find_slot(fresh, n->slots[i].box->node.id);
    struct svc_revocation *revoked = n->revoked; // the old ones go with fresh
    n->revoked = fresh->revoked;
    n->n_revoked = fresh->n_revoked;
    fresh->revoked = revoked;
    n->serial_floor = fresh->serial_floor;
    return STATUS_OK;
}

enum status svc_nodes_reload(struct svc_nodes *n, const char *path, struct err *err)
{
    AUTO(svc_nodes_free_p) struct svc_nodes *fresh = NULL;
    enum status s = svc_nodes_load(path, &fresh, err);

    if (s != STATUS_OK)
        return s;
    if (memcmp(fresh->operator_key, n->operator_key, sizeof(n->operator_key)) != 0)
        return err_set(err, STATUS_FAILED_PRECONDITION, "%s is another operator's: restart with it",
                       path);
    pthread_mutex_lock(&n->lock);
    s = merge(n, fresh, err);
    pthread_mutex_unlock(&n->lock);
    return s;
}

// ---------------------------------------------------------------- asking

const struct svc_node *svc_nodes_next(struct svc_nodes *n, unsigned role,
                                      const struct svc_node *prev)
{
    const struct svc_node *found = NULL;
    size_t i = prev ? ((const struct box *)(const void *)prev)->slot + 1 : 0;

    pthread_mutex_lock(&n->lock);
    for (; i < n->n && !found; i++)
        if (!n->slots[i].is_gone && (n->slots[i].box->node.role & role))
            found = &n->slots[i].box->node;
    pthread_mutex_unlock(&n->lock);
    return found;
}

const struct svc_node *svc_nodes_find(struct svc_nodes *n, const char *id)
{
    pthread_mutex_lock(&n->lock);
    const struct slot *slot = find_slot(n, id);
    const struct svc_node *found = slot && !slot->is_gone ? &slot->box->node : NULL;
    pthread_mutex_unlock(&n->lock);
    return found;
}

const uint8_t *svc_nodes_operator(const struct svc_nodes *n)
{
    return n->operator_key;
}

uint64_t svc_nodes_serial_floor(struct svc_nodes *n)
{
    pthread_mutex_lock(&n->lock);
    uint64_t floor = n->serial_floor;
    pthread_mutex_unlock(&n->lock);
    return floor;
}

// The key is one of a node that somebody took out of the file. With a new key it may come again.
static bool was_removed(const struct svc_nodes *n, const struct chan_grant *g)
{
    const struct slot *slot = find_slot(n, g->node_id);

    if (!slot || !slot->is_gone)
        return false;
    const struct svc_node *node = &slot->box->node;
    return memcmp(node->key, g->key, sizeof(g->key)) == 0 ||
           (node->has_next_key && memcmp(node->next_key, g->key, sizeof(g->key)) == 0);
}

bool svc_nodes_is_revoked(struct svc_nodes *n, const struct chan_grant *g)
{
    pthread_mutex_lock(&n->lock);
    bool yes = g->serial < n->serial_floor || was_removed(n, g);
    for (size_t i = 0; i < n->n_revoked && !yes; i++)
        yes = g->serial <= n->revoked[i].serial && str_eq(n->revoked[i].id, g->node_id);
    pthread_mutex_unlock(&n->lock);
    return yes;
}

bool svc_nodes_shut_out(struct svc_nodes *n, size_t i, char ret_id[CHAN_NODE_ID_SIZE])
{
    pthread_mutex_lock(&n->lock);
    bool found = i < n->n_shut_out;
    if (found)
        (void)str_copy(ret_id, CHAN_NODE_ID_SIZE, n->shut_out[i]);
    pthread_mutex_unlock(&n->lock);
    return found;
}

bool svc_nodes_revocation(struct svc_nodes *n, size_t i, struct svc_revocation *ret)
{
    pthread_mutex_lock(&n->lock);
    bool found = i < n->n_revoked;
    if (found)
        *ret = n->revoked[i];
    pthread_mutex_unlock(&n->lock);
    return found;
}
