// Node grants: who a key belongs to, said by the operator.
//
//   "CQG1" | key 32 | role 2 | node id 64, zero-padded | not-before 8 | not-after 8 | serial 8
//   | Ed25519 signature 64 over everything before it
//
// Integers are big-endian. One layout, one length: whatever differs is no grant. The operator key
// signs nothing else, and the four letters in front keep it so should that ever change.
#include <string.h>

#include "base/mem.h"
#include "channel/internal.h"
#include "crypto/crypto.h"

#define MAGIC "CQG1"
#define SIGNED_SIZE (CHAN_GRANT_SIZE - 64)
#define FIRST_NODE_ROLE 8
#define LAST_NODE_ROLE 14

static bool is_node_id(const char id[CHAN_NODE_ID_SIZE])
{
    size_t len = strnlen(id, CHAN_NODE_ID_SIZE);

    if (len == 0 || len == CHAN_NODE_ID_SIZE)
        return false;
    return strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789._-") == len;
}

static bool is_node_role(unsigned role)
{
    return role >= FIRST_NODE_ROLE && role <= LAST_NODE_ROLE;
}

enum status chan_grant_sign(struct buf *out, const struct chan_grant *g,
                            const uint8_t operator_secret[64], struct err *err)
{
    AUTO(buf_done) struct buf b = {0};
    char node_id[CHAN_NODE_ID_SIZE] = {0};
    uint8_t sig[64];

    if (!is_node_id(g->node_id))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "grant: a node id has 1 to %d characters of a-z 0-9 . _ -",
                       CHAN_NODE_ID_SIZE - 1);
    if (!is_node_role(g->role) || g->not_before_s < 0 || g->not_after_s < g->not_before_s)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "grant %s: role %u is no node's, or it ends before it begins", g->node_id,
                       g->role);
    memcpy(node_id, g->node_id, strlen(g->node_id));
    buf_init(&b, CHAN_GRANT_SIZE);
    buf_append(&b, MAGIC, 4);
    buf_append(&b, g->key, sizeof(g->key));
    buf_put_be16(&b, (uint16_t)g->role);
    buf_append(&b, node_id, sizeof(node_id));
    buf_put_be64(&b, (uint64_t)g->not_before_s);
    buf_put_be64(&b, (uint64_t)g->not_after_s);
    buf_put_be64(&b, g->serial);
    if (!b.failed)
        crypto_ed25519_sign(sig, operator_secret, b.data, b.len);
    if (b.failed || !buf_append(&b, sig, sizeof(sig)) || !buf_append(out, b.data, b.len))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "grant %s: out of memory", g->node_id);
    return STATUS_OK;
}

static void parse(struct chan_grant *g, const void *p)
{
    struct reader r;

    reader_init(&r, p, SIGNED_SIZE);
    (void)reader_bytes(&r, 4);
    memcpy(g->key, reader_bytes(&r, sizeof(g->key)), sizeof(g->key));
    g->role = reader_be16(&r);
    memcpy(g->node_id, reader_bytes(&r, sizeof(g->node_id)), sizeof(g->node_id));
    g->not_before_s = (int64_t)reader_be64(&r);
    g->not_after_s = (int64_t)reader_be64(&r);
    g->serial = reader_be64(&r);
}

enum status chan_grant_verify(struct chan_grant *ret, const void *p, size_t n,
                              const uint8_t operator_public[32], int64_t now_s, struct err *err)
{
    struct chan_grant g;

    if (n != CHAN_GRANT_SIZE || memcmp(p, MAGIC, 4) != 0)
        return err_set(err, STATUS_UNAUTHENTICATED, "grant: malformed");
    if (!crypto_ed25519_verify((const uint8_t *)p + SIGNED_SIZE, operator_public, p, SIGNED_SIZE))
        return err_set(err, STATUS_UNAUTHENTICATED, "grant: not signed by the operator");
    parse(&g, p);
    if (!is_node_id(g.node_id) || !is_node_role(g.role))
        return err_set(err, STATUS_UNAUTHENTICATED, "grant: malformed");
    if (now_s < g.not_before_s || now_s > g.not_after_s)
        return err_set(err, STATUS_UNAUTHENTICATED, "grant of %s: %s", g.node_id,
                       now_s < g.not_before_s ? "not valid yet" : "expired");
    *ret = g;
    return STATUS_OK;
}
