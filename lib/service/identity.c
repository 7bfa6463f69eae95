// Who we are: our key files and the operator's word for them.
//
//   ID.key, ID.grant            what nodes.ini names
//   ID.next.key, ID.next.grant  there while the key is rotated: what it will name
//
// Peers judge our grants; saying what they will dislike before they do saves a long search.
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "service/internal.h"

char *instance_key_path(const struct instance *in, const char *suffix)
{
    return mem_printf("%s/%s%s", instance_options(in)->keys, in->svc.self->id, suffix);
}

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

static enum status load_secret(const struct instance *in, const char *suffix,
                               struct chan_identity *id, struct err *err)
{
    AUTO(mem_free_p) char *path = instance_key_path(in, suffix);
    if (!path)
        return no_memory(err);
    enum status s = crypto_key_load(path, "cauce-x25519-secret", id->secret, 32, err);
    if (s == STATUS_NOT_FOUND)
        return err_wrap(err, s, "our key is missing; 'cauced keys' makes it");
    if (s != STATUS_OK)
        return s;
    crypto_dh_public(id->public_key, id->secret);
    return STATUS_OK;
}

static enum status load_grant(const struct instance *in, const char *suffix,
                              struct chan_identity *id, int64_t *ret_until_s, struct err *err)
{
    struct chan_grant g;
    AUTO(mem_free_p) char *path = instance_key_path(in, suffix);
    if (!path)
        return no_memory(err);
    enum status s = crypto_key_load(path, "cauce-grant", id->grant, CHAN_GRANT_SIZE, err);
    if (s != STATUS_OK)
        return err_wrap(err, s, "our grant is missing or broken; 'cauced keys' makes it");
    id->grant_len = CHAN_GRANT_SIZE;
    s = chan_grant_verify(&g, id->grant, id->grant_len, svc_nodes_operator(in->nodes),
                          time_wall_ms() / 1000, err);
    if (s != STATUS_OK)
        return err_wrap(err, STATUS_FAILED_PRECONDITION, "%s; 'cauced keys' renews it", path);
    if (1U << g.role != in->role->role || !str_eq(g.node_id, in->svc.self->id) ||
        !crypto_equal(g.key, id->public_key, 32) || svc_nodes_is_revoked(in->nodes, &g))
        return err_set(
            err, STATUS_FAILED_PRECONDITION,
            "%s is another node's, another role's or revoked; 'cauced keys' makes a new one", path);
    *ret_until_s = g.not_after_s;
    return STATUS_OK;
}

// The list may be a step ahead of the files, or behind: either of its keys will do.
static bool is_listed(const struct instance *in, const struct chan_identity *id)
{
    const struct svc_node *now = svc_nodes_find(in->nodes, in->svc.self->id);

    return now && (crypto_equal(id->public_key, now->key, 32) ||
                   (now->has_next_key && crypto_equal(id->public_key, now->next_key, 32)));
}

static enum status load_one(const struct instance *in, const char *key, const char *grant,
                            struct chan_identity *id, int64_t *ret_until_s, struct err *err)
{
    enum status s = load_secret(in, key, id, err);

    if (s == STATUS_OK && !is_listed(in, id))
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "%s/%s%s is not the key that nodes.ini has for it; run 'cauced keys' again",
                       instance_options(in)->keys, in->svc.self->id, key);
    return s == STATUS_OK ? load_grant(in, grant, id, ret_until_s, err) : s;
}

enum status instance_load_identities(const struct instance *in, struct identities *ret,
                                     struct err *err)
{
    memset(ret, 0, sizeof(*ret));
    if (!svc_nodes_find(in->nodes, in->svc.self->id))
        return err_set(err, STATUS_FAILED_PRECONDITION,
                       "nodes.ini has no %s any more: it was removed or revoked", in->svc.self->id);
    enum status next = load_one(in, ".next.key", ".next.grant", &ret->next, &ret->until_s, err);
    int64_t until_s = 0;
    bool is_wrong = next != STATUS_OK && next != STATUS_NOT_FOUND; // then err is about this one

    ret->has_next = next == STATUS_OK;
    enum status listed =
        load_one(in, ".key", ".grant", &ret->listed, &until_s, is_wrong ? NULL : err);
    ret->has_listed = listed == STATUS_OK;
    if (!ret->has_next)
        ret->until_s = until_s;
    return is_wrong ? err_wrap(err, next, "the key to come") : listed;
}

const struct chan_identity *identities_shown(const struct identities *ids)
{
    return ids->has_next ? &ids->next : &ids->listed;
}

const struct chan_identity *identities_other(const struct identities *ids)
{
    return ids->has_next && ids->has_listed ? &ids->listed : NULL;
}
