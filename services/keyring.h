#pragma once
// The operator's folder: operator.key, nodes.ini, keys and grants of nodes. Its commands change it
// one at a time, under a lock on the folder.
//
//   DIR/operator.key          Ed25519 secret; belongs somewhere safe and offline afterwards
//   DIR/nodes.ini             public: give it to every node
//   DIR/ID.key, ID.grant      the node's X25519 secret and its grant: give them to that node only
//   DIR/ID.next.key, .grant   those that follow them, while the key is rotated
//   DIR/ID.token.key          session and store: the Ed25519 secret that signs tokens
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "service/service.h"

#define KEYRING_MAX_NODES 512
#define KEYRING_MAX_REVOKED 1024
#define KEYRING_RENEW_S (30 * 24 * 3600) // a grant that ends within this is due for another
#define KEYRING_VALID "3650d"            // how long new grants last, unless told

struct keyring {
    const char *dir; // borrowed
    int lock_fd;     // -1: not locked
    uint8_t operator_secret[64], operator_public[32];
    bool has_operator;        // its secret is here
    struct svc_nodes *before; // as the file was; NULL when there was none
    struct svc_node nodes[KEYRING_MAX_NODES];
    size_t n;
    uint64_t serial_floor;
    struct svc_revocation revoked[KEYRING_MAX_REVOKED];
    size_t n_revoked;
};

// Lock the folder and read what is in it. Without nodes.ini it is an empty one.
//
// dir     borrowed until keyring_free()
// errors  NOT_FOUND: no such folder; FAILED_PRECONDITION: the operator's key is not nodes.ini's
enum status keyring_open(const char *dir, struct keyring **ret, struct err *err) MUST_CHECK;
void keyring_free(struct keyring *k); // unlocks; NULL does nothing
DEFINE_AUTO(struct keyring, keyring_free)

struct svc_node *keyring_find(struct keyring *k, const char *id); // borrowed; NULL when unknown
// A new node at the end. NULL: too many.
struct svc_node *keyring_add(struct keyring *k, const struct svc_node *n);
void keyring_remove(struct keyring *k, struct svc_node *n);
// Grants of that node are revoked up to that serial.
enum status keyring_revoke(struct keyring *k, const char *id, uint64_t serial,
                           struct err *err) MUST_CHECK;
// nodes.ini anew, whole or not at all.
enum status keyring_write_nodes(const struct keyring *k, struct err *err) MUST_CHECK;
bool keyring_put_nodes(const struct keyring *k, struct buf *b); // its text

// DIR/ID + suffix. NULL: out of memory.
char *keyring_path(const struct keyring *k, const char *id, const char *suffix) MUST_CHECK;
// The grant of that file, whatever its dates. errors  NOT_FOUND, UNAUTHENTICATED
enum status keyring_load_grant(const struct keyring *k, const char *id, const char *suffix,
                               struct chan_grant *ret, struct err *err) MUST_CHECK;
// A grant for n with that key, newer than any before it.
//
// errors  FAILED_PRECONDITION: operator.key is not here
enum status keyring_sign(const struct keyring *k, const struct svc_node *n, const uint8_t key[32],
                         int64_t valid_s, uint8_t ret[CHAN_GRANT_SIZE], struct err *err) MUST_CHECK;
// A grant to DIR/ID + suffix, in place of what is there.
enum status keyring_save_grant(const struct keyring *k, const char *id, const char *suffix,
                               const uint8_t grant[CHAN_GRANT_SIZE], struct err *err) MUST_CHECK;
// Both: sign and save.
enum status keyring_write_grant(const struct keyring *k, const struct svc_node *n,
                                const char *suffix, const uint8_t key[32], int64_t valid_s,
                                struct err *err) MUST_CHECK;

bool keyring_is_node_id(const char *id);
bool keyring_is_kind(const struct svc_node *n); // fits the role
bool keyring_is_url(const char *url);
// Write a whole file under a temporary name, sync it, rename it. errors  those of the file system
enum status keyring_replace_file(const char *path, unsigned mode, const void *p, size_t n,
                                 struct err *err) MUST_CHECK;

#define KEYRING_FINGERPRINT_SIZE 20 // four groups of four hexadecimal digits
void keyring_fingerprint(char out[KEYRING_FINGERPRINT_SIZE], const uint8_t key[32]);
