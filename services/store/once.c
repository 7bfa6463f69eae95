// Idempotency: the key's row, the effect and the reply are one SERIALIZABLE transaction. Whoever
// comes second finds the row and gets the stored bytes; whoever comes at the same time fails to
// serialize, is repeated by db_tx() and then comes second.
#include "internal.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "crypto/crypto.h"

#define KEY_MAX 64

static enum status digest_request(const struct store_once *o, uint8_t out[32], struct err *err)
{
    struct crypto_blake2b h;
    size_t n = protobuf_c_message_get_packed_size(o->request);
    AUTO(mem_free_p) uint8_t *p = mem_alloc(n + 1);
    if (!p)
        return store_no_memory(err);
    protobuf_c_message_pack(o->request, p);
    crypto_blake2b_init(&h, 32, NULL, 0, NULL);
    crypto_blake2b_update(&h, o->method, strlen(o->method) + 1);
    crypto_blake2b_update(&h, p, n);
    crypto_blake2b_final(&h, out, 32);
    return STATUS_OK;
}

static void *take_from_arena(void *arena, size_t n)
{
    return arena_alloc(arena, n);
}

static void leave_in_arena(void *arena, void *p)
{
    (void)arena, (void)p; // the arena's end frees all
}

// The stored bytes are our own, written below.
static enum status replay(struct store_once *o, const uint8_t *p, size_t n, struct err *err)
{
    ProtobufCAllocator a = {
        .alloc = take_from_arena, .free = leave_in_arena, .allocator_data = o->call->arena};
    const ProtobufCMessageDescriptor *d = o->reply->descriptor;
    ProtobufCMessage *m = protobuf_c_message_unpack(d, &a, n, p ? p : (const uint8_t *)"");
    if (!m)
        return err_set(err, STATUS_DATA_LOSS, "stored reply to key %s is unreadable", o->key);
    memcpy(o->reply, m, d->sizeof_message);
    return STATUS_OK;
}

static enum status look_up(struct db_conn *db, struct store_once *o, bool *ret_found,
                           struct err *err)
{
    size_t n = 0;
    AUTO(db_result_free_p) struct db_result *r = NULL;
    enum status s =
        db_exec(db,
                "SELECT digest = $3, response FROM store.idempotency"
                " WHERE account = $1 AND key = $2",
                DB_PARAMS(DB_TEXT(o->account), DB_TEXT(o->key), DB_BYTES(o->digest, 32)), &r, err);
    *ret_found = s == STATUS_OK && db_result_n_rows(r) == 1;
    if (!*ret_found)
        return s;
    if (!db_bool(r, 0, 0))
        return err_set(err, STATUS_ALREADY_EXISTS,
                       "idempotency key was used for another request: choose a new one");
    const uint8_t *p = db_bytes(r, 0, 1, &n);
    return replay(o, p, n, err);
}

static enum status remember(struct db_conn *db, const struct store_once *o, struct err *err)
{
    size_t n = protobuf_c_message_get_packed_size(o->reply);
    AUTO(mem_free_p) uint8_t *p = mem_alloc(n + 1);
    if (!p)
        return store_no_memory(err);
    protobuf_c_message_pack(o->reply, p);
    enum status s = db_exec(
        db,
        "INSERT INTO store.idempotency (account, key, digest, response)"
        " VALUES ($1, $2, $3, $4)",
        DB_PARAMS(DB_TEXT(o->account), DB_TEXT(o->key), DB_BYTES(o->digest, 32), DB_BYTES(p, n)),
        NULL, err);
    if (s != STATUS_OK)
        return s;
    return db_exec(db,
                   "DELETE FROM store.idempotency WHERE (account, key) IN (SELECT account, key"
                   " FROM store.idempotency WHERE created < now() - interval '30 days'"
                   " ORDER BY created LIMIT 20)",
                   NULL, 0, NULL, err);
}

static enum status once_tx(struct db_conn *db, void *ud, struct err *err)
{
    struct store_once *o = ud;
    bool found = false;
    protobuf_c_message_init(o->reply->descriptor, o->reply); // this may be a repetition
    enum status s = event_lock(db, STORE_SCHEMA, err);
    if (s == STATUS_OK)
        s = look_up(db, o, &found, err);
    if (s != STATUS_OK || found)
        return s;
    s = o->effect(db, o->ud, err);
    return s == STATUS_OK ? remember(db, o, err) : s;
}

enum status store_once(struct store_call *c, struct store_once *o, struct err *err)
{
    size_t n = strlen(o->key);
    if (n < 1 || n > KEY_MAX)
        return rpc_bad_field(err, "idempotency_key", "idempotency_key must have 1 to %d characters",
                             KEY_MAX);
    o->call = c;
    enum status s = digest_request(o, o->digest, err);
    return s == STATUS_OK ? db_tx(c->store->db, DB_SERIALIZABLE, once_tx, o, err) : s;
}
