#pragma once
// The store below its RPC handlers. Its functions take and fill the messages of cauce.store.v1; all
// memory of a reply comes from the call's arena.
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "cauce/store.pb-c.h"

#include "base/arena.h"
#include "base/buf.h"
#include "base/rand.h"
#include "db/db.h"
#include "event/event.h"
#include "log/log.h"
#include "rpc/rpc.h"
#include "service/service.h"

#define STORE_SCHEMA "store"
#define STORE_TOPIC "store"
#define STORE_TOPIC_NODES (ROLE_NODE_STORE | ROLE_NODE_ORCHESTRATOR | ROLE_NODE_GATEWAY)
#define STORE_MAX_MINOR 1000000000000 // of one price or credit
#define STORE_NIL_UUID "00000000-0000-0000-0000-000000000000"

struct store_options {
    struct svc_options common;
    int64_t media_token_ms;
    int64_t quote_ms;
    struct svc_event_options events;
};

// What the session service knows about a user.
struct store_user {
    char id[UUID_SIZE];
    unsigned roles;
    bool disabled;
};
// By id or name. NOT_FOUND; UNAVAILABLE when the session service does not answer.
typedef enum status (*store_find_user_fn)(void *ud, const char *id_or_name, struct store_user *ret,
                                          struct err *err);
typedef enum status (*store_mint_fn)(const uint8_t secret[64],
                                     const struct svc_media_claims *claims, struct buf *out,
                                     struct err *err);

struct store {
    struct db *db;
    struct log *log;
    struct event_log *events;
    struct svc *svc;
    store_find_user_fn find_user;
    void *find_user_ud;
    store_mint_fn mint; // svc_token_mint_media
    uint8_t token_secret[64];
    int64_t media_token_ms;
    int64_t quote_ms;
    const char *migrations;
    struct svc_gauge gauge;
    bool is_prepared; // of who asks the gauge
};

// Who calls, and where the reply's memory comes from.
struct store_call {
    struct store *store;
    struct arena *arena;
    const struct rpc_user *user; // NULL: a node by itself, or nobody
    bool is_node;                // the orchestrator by itself: sees everything
};

// ---- helpers (util.c) ----
const char *store_caller_id(const struct store_call *c); // NULL when there is no user
bool store_is_admin(const struct store_call *c);
enum status store_no_memory(struct err *err);
enum status store_need_user(const struct store_call *c, struct err *err) MUST_CHECK;
// The admin behind the call, asked from the session service: money and admin calls do not rely on
// what an access token said up to ten minutes ago.
enum status store_need_admin(const struct store_call *c, struct err *err) MUST_CHECK;
// A string of a row in the arena; "" for NULL. NULL when out of memory.
char *store_dup(const struct store_call *c, const struct db_result *r, size_t row, unsigned col);
Google__Protobuf__Timestamp *store_timestamp(const struct store_call *c, int64_t wall_us);
// NULL (absent) for an amount of 0 without currency; *ok turns false when out of memory.
Common__Money *store_money(const struct store_call *c, int64_t minor, const char *currency,
                           bool *ok);
// field: its path in the request, for whoever sent it.
enum status store_check_currency(const char *currency, const char *field,
                                 struct err *err) MUST_CHECK;
enum status store_check_money(const Common__Money *m, const char *field, bool zero_is_fine,
                              struct err *err) MUST_CHECK;
enum status store_check_id(const char *id, const char *field, struct err *err) MUST_CHECK;

#define STORE_PAGE_KEY 96
struct store_page {
    int64_t size;
    char after[STORE_PAGE_KEY]; // key of the last row seen; "": from the start
};
enum status store_page_parse(const Common__Page *p, struct store_page *ret,
                             struct err *err) MUST_CHECK;
char *store_page_token(const struct store_call *c, const char *key); // NULL: out of memory

// ---- items (items.c) ----
// $1 is the viewer's id or NULL.
#define STORE_ITEM_COLUMNS                                                                         \
    "i.id, i.owner, i.owner_name, i.title, i.description, i.kind, i.state, i.reason, i.published," \
    " i.price_minor, i.currency, i.duration_us, i.width, i.height,"                                \
    " (extract(epoch FROM i.created) * 1000000)::bigint, i.version,"                               \
    " coalesce(i.owner = $1::uuid OR EXISTS (SELECT 1 FROM store.entitlement e WHERE"              \
    " e.item = i.id AND e.buyer = $1::uuid AND e.revoked IS NULL), false)"
#define STORE_ITEM_N_COLUMNS 17
enum status store_item_read(const struct store_call *c, const struct db_result *r, size_t row,
                            Store__Item *ret, struct err *err) MUST_CHECK;
// Any item, whoever may see it. NOT_FOUND.
enum status store_item_load(const struct store_call *c, const char *item_id, Store__Item *ret,
                            struct err *err) MUST_CHECK;
enum status store_item_list(struct store_call *c, const Store__ListItemsRequest *req,
                            Store__ListItemsReply *ret, struct err *err) MUST_CHECK;
enum status store_item_search(struct store_call *c, const Store__SearchRequest *req,
                              Store__ListItemsReply *ret, struct err *err) MUST_CHECK;
enum status store_item_get(struct store_call *c, const Store__GetItemRequest *req, Store__Item *ret,
                           struct err *err) MUST_CHECK;
enum status store_item_create(struct store_call *c, const Store__CreateItemRequest *req,
                              Store__Item *ret, struct err *err) MUST_CHECK;
enum status store_item_set_media(struct store_call *c, const Store__SetMediaRequest *req,
                                 Store__Item *ret, struct err *err) MUST_CHECK;
enum status store_item_edit(struct store_call *c, const Store__EditItemRequest *req,
                            Store__Item *ret, struct err *err) MUST_CHECK;
enum status store_item_publish(struct store_call *c, const Store__PublishRequest *req,
                               Store__Item *ret, struct err *err) MUST_CHECK;

#define STORE_QUERY_MAX 500 // bytes of a search

// ---- what is said in items (spoken.c) ----
enum status store_spoken_search(struct store_call *c, const Store__SearchRequest *req,
                                Store__SpokenReply *ret, struct err *err) MUST_CHECK;
enum status store_spoken_set(struct store_call *c, const Store__SetWordsRequest *req,
                             Store__SetWordsReply *ret, struct err *err) MUST_CHECK;

// ---- money (once.c, ledger.c, orders.c, vouchers.c) ----
// Run an effect once per (account, key): a repetition with the same request gets the stored reply.
struct store_once {
    const char *account, *key, *method;
    const ProtobufCMessage *request;
    ProtobufCMessage *reply;
    // In the transaction, which is SERIALIZABLE and holds its place among the events.
    enum status (*effect)(struct db_conn *c, void *ud, struct err *err);
    void *ud;
    // Filled in by store_once():
    struct store_call *call;
    uint8_t digest[32];
};
enum status store_once(struct store_call *c, struct store_once *o, struct err *err) MUST_CHECK;

enum store_account_kind { STORE_PREPAID, STORE_EARNINGS, STORE_EXTERNAL };
// Inside a transaction: the account's id, made when it is not there yet.
enum status store_account(struct db_conn *db, enum store_account_kind kind, const char *owner,
                          const char *currency, char ret_id[UUID_SIZE], int64_t *ret_balance,
                          struct err *err) MUST_CHECK;
enum status store_txn(struct db_conn *db, const char *id, const char *kind, const char *reverses,
                      const char *actor, struct err *err) MUST_CHECK;
enum status store_entry(struct db_conn *db, const char *txn, int position, const char *account,
                        int64_t amount, const char *currency, struct err *err) MUST_CHECK;
// Money from outside to a user's balance.
enum status store_deposit(struct db_conn *db, const char *txn, const char *kind, const char *actor,
                          const char *user, int64_t minor, const char *currency,
                          struct err *err) MUST_CHECK;
// db NULL: on a connection of its own. currency "": all.
enum status store_read_balances(struct store_call *c, struct db_conn *db, const char *user,
                                const char *currency, Store__BalanceReply *ret,
                                struct err *err) MUST_CHECK;

enum status store_balance(struct store_call *c, const Store__BalanceRequest *req,
                          Store__BalanceReply *ret, struct err *err) MUST_CHECK;
enum status store_credit(struct store_call *c, const Store__CreditRequest *req,
                         Store__BalanceReply *ret, struct err *err) MUST_CHECK;
enum status store_create_voucher(struct store_call *c, const Store__CreateVoucherRequest *req,
                                 Store__Voucher *ret, struct err *err) MUST_CHECK;
enum status store_redeem_voucher(struct store_call *c, const Store__RedeemVoucherRequest *req,
                                 Store__BalanceReply *ret, struct err *err) MUST_CHECK;
enum status store_quote(struct store_call *c, const Store__QuoteRequest *req,
                        Store__QuoteReply *ret, struct err *err) MUST_CHECK;
enum status store_purchase(struct store_call *c, const Store__PurchaseRequest *req,
                           Store__Order *ret, struct err *err) MUST_CHECK;
enum status store_refund(struct store_call *c, const Store__RefundRequest *req, Store__Order *ret,
                         struct err *err) MUST_CHECK;
enum status store_list_orders(struct store_call *c, const Store__ListOrdersRequest *req,
                              Store__ListOrdersReply *ret, struct err *err) MUST_CHECK;
enum status store_get_order(struct store_call *c, const Store__GetOrderRequest *req,
                            Store__Order *ret, struct err *err) MUST_CHECK;

// ---- rights (rights.c) ----
enum status store_library(struct store_call *c, const Store__ListLibraryRequest *req,
                          Store__ListLibraryReply *ret, struct err *err) MUST_CHECK;
enum status store_check(struct store_call *c, const Store__CheckRequest *req,
                        Store__CheckReply *ret, struct err *err) MUST_CHECK;

// ---- handlers.c ----
enum status store_serve(struct store *s, struct rpc_server *server, struct err *err) MUST_CHECK;
