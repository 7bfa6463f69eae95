// The store over the real wire: an orchestrator makes an item, a user buys it, and the media token
// that comes back is verified as origins and gateways verify it.
#include "internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cauce/store.rpc.h"

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "support/pg.h"
#include "support/rig.h"

static struct test_pg *pg;
static struct test_rig rig;
static struct store store;
static struct rpc_user maker, buyer, root;
static char *maker_token, *buyer_token, *root_token;
static char item_id[UUID_SIZE];

static void must(enum status st, const struct err *err)
{
    if (st != STATUS_OK)
        fail_msg("%s: %s", status_name(st), err->msg);
}

static enum status find_user(void *ud, const char *id_or_name, struct store_user *ret,
                             struct err *err)
{
    const struct rpc_user *known[] = {&maker, &buyer, &root};
    (void)ud;
    for (size_t i = 0; i < N_ELEMENTS(known); i++) {
        if (!str_eq(known[i]->id, id_or_name) && !str_eq(known[i]->name, id_or_name))
            continue;
        *ret = (struct store_user){.roles = known[i]->roles};
        str_copy(ret->id, sizeof ret->id, known[i]->id);
        return STATUS_OK;
    }
    return err_set(err, STATUS_NOT_FOUND, "no such user");
}

static char *make_user(struct rpc_user *u, const char *name, unsigned roles)
{
    *u = (struct rpc_user){.roles = roles};
    rand_uuid7(u->id);
    rand_uuid7(u->session);
    str_copy(u->name, sizeof u->name, name);
    return test_rig_token(&rig, u);
}

static int setup(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    pg = test_pg_new();
    test_rig_init(&rig);
    maker_token = make_user(&maker, "maker", ROLE_USER | ROLE_CREATOR);
    buyer_token = make_user(&buyer, "buyer", ROLE_USER);
    root_token = make_user(&root, "root", ROLE_USER | ROLE_CREATOR | ROLE_ADMIN);
    store = (struct store){.db = test_pg_db(pg, 8, true),
                           .find_user = find_user,
                           .mint = svc_token_mint_media,
                           .media_token_ms = 6 * 3600 * 1000,
                           .quote_ms = 60000};
    memcpy(store.token_secret, rig.store_secret, sizeof store.token_secret);
    must(store_serve(&store, rig.server, &err), &err);
    test_rig_listen(&rig);
    rand_uuid7(item_id);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    test_rig_done(&rig);
    db_free(store.db);
    test_pg_free(pg);
    mem_free(maker_token);
    mem_free(buyer_token);
    mem_free(root_token);
    rpc_fini();
    return 0;
}

static struct rpc_opts with(const char *token)
{
    return (struct rpc_opts){.token = token, .deadline_us = time_deadline_in_ms(20000)};
}

static void test_orchestrator_makes_the_item(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct rpc_opts o = with(NULL);
    AUTO(rpc_message_free_p) Store__Item *made = NULL;
    AUTO(rpc_message_free_p) Store__Item *ready = NULL;
    AUTO(rpc_message_free_p) Store__Item *refused = NULL;
    Common__Money price = COMMON__MONEY__INIT;
    Store__CreateItemRequest q = STORE__CREATE_ITEM_REQUEST__INIT;
    char title[] = "Film", kind[] = "video", currency[] = "EUR", state_ready[] = "ready";
    price.minor = 300, price.currency = currency;
    q.item_id = item_id, q.owner = maker.id, q.owner_name = maker.name;
    q.title = title, q.kind = kind, q.price = &price;
    must(store_catalog_create(rig.node, &o, &q, &made, &err), &err);
    assert_false(made->published);
    Store__SetMediaRequest m = STORE__SET_MEDIA_REQUEST__INIT;
    m.item_id = item_id, m.state = state_ready, m.duration_us = 5000000;
    must(store_catalog_set_media(rig.node, &o, &m, &ready, &err), &err);
    assert_string_equal(ready->state, "ready");
    o = with(root_token);
    assert_int_equal(store_catalog_create(rig.client, &o, &q, &refused, &err),
                     STATUS_PERMISSION_DENIED);
}

static void test_owner_edits_and_publishes(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct rpc_opts o = with(maker_token), anon = with(NULL);
    AUTO(rpc_message_free_p) Store__Item *edited = NULL;
    AUTO(rpc_message_free_p) Store__Item *published = NULL;
    AUTO(rpc_message_free_p) Store__Item *hidden = NULL;
    AUTO(rpc_message_free_p) Store__Item *seen = NULL;
    Store__GetItemRequest g = STORE__GET_ITEM_REQUEST__INIT;
    Store__EditItemRequest e = STORE__EDIT_ITEM_REQUEST__INIT;
    Store__PublishRequest p = STORE__PUBLISH_REQUEST__INIT;
    char text[] = "described";
    g.item_id = e.item_id = p.item_id = item_id;
    assert_int_equal(store_catalog_get(rig.client, &anon, &g, &hidden, &err), STATUS_NOT_FOUND);
    anon.on_behalf = true; // a service that asks for a stranger is one
    assert_int_equal(store_catalog_get(rig.node, &anon, &g, &hidden, &err), STATUS_NOT_FOUND);
    Store__ListItemsRequest all = STORE__LIST_ITEMS_REQUEST__INIT;
    AUTO(rpc_message_free_p) Store__ListItemsReply *list = NULL;
    must(store_catalog_list(rig.node, &anon, &all, &list, &err), &err);
    assert_int_equal(list->n_items, 0);
    anon = with(NULL);
    e.description = text; // the title is absent and stays
    must(store_catalog_edit(rig.client, &o, &e, &edited, &err), &err);
    assert_string_equal(edited->title, "Film");
    assert_string_equal(edited->description, "described");
    p.published = true;
    must(store_catalog_publish(rig.client, &o, &p, &published, &err), &err);
    assert_true(published->published && published->owned);
    must(store_catalog_get(rig.client, &anon, &g, &seen, &err), &err);
    assert_false(seen->owned);
}

static Store__CheckReply *check(struct rpc_client *c, const char *token, const char *right)
{
    struct err err = ERR_INIT;
    struct rpc_opts o = with(token);
    Store__CheckReply *ret = NULL;
    Store__CheckRequest q = STORE__CHECK_REQUEST__INIT;
    q.item_id = item_id, q.right = (char *)(uintptr_t)right;
    must(store_entitlement_check(c, &o, &q, &ret, &err), &err);
    return ret;
}

static void test_buying_opens_the_gate(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct rpc_opts o = with(buyer_token), by_root = with(root_token);
    struct svc_media_claims claims;
    AUTO(rpc_message_free_p) Store__CheckReply *before = check(rig.client, buyer_token, "stream");
    assert_false(before->allowed);
    assert_string_equal(before->reason, "not_bought");
    assert_string_equal(before->media_token, "");

    AUTO(rpc_message_free_p) Store__BalanceReply *balance = NULL;
    AUTO(rpc_message_free_p) Store__QuoteReply *quote = NULL;
    AUTO(rpc_message_free_p) Store__Order *order = NULL;
    AUTO(rpc_message_free_p) Store__Order *again = NULL;
    Common__Money money = COMMON__MONEY__INIT;
    Store__CreditRequest c = STORE__CREDIT_REQUEST__INIT;
    Store__QuoteRequest q = STORE__QUOTE_REQUEST__INIT;
    Store__PurchaseRequest p = STORE__PURCHASE_REQUEST__INIT;
    char name[] = "buyer", currency[] = "EUR", key[] = "k", *ids[] = {item_id};
    money.minor = 1000, money.currency = currency;
    c.user = name, c.amount = &money, c.idempotency_key = key;
    must(store_shop_credit(rig.client, &by_root, &c, &balance, &err), &err);
    q.n_item_ids = 1, q.item_ids = ids;
    must(store_shop_quote(rig.client, &o, &q, &quote, &err), &err);
    p.quote_id = quote->quote_id, p.idempotency_key = key;
    must(store_shop_purchase(rig.client, &o, &p, &order, &err), &err);
    must(store_shop_purchase(rig.client, &o, &p, &again, &err), &err);
    assert_string_equal(order->order_id, again->order_id);
    assert_string_equal(order->lines[0]->title, "Film");

    // With the user's token on a node's link, as the orchestrator asks.
    AUTO(rpc_message_free_p) Store__CheckReply *after = check(rig.node, buyer_token, "download");
    assert_string_equal(after->reason, "bought");
    must(svc_tokens_verify_media(rig.tokens, after->media_token, &claims, &err), &err);
    assert_string_equal(claims.sub, buyer.id);
    assert_string_equal(claims.item, item_id);
    assert_int_equal(claims.rights, SVC_RIGHT_STREAM | SVC_RIGHT_DOWNLOAD);
    assert_true(claims.exp_wall_ms - time_wall_ms() <= 6 * 3600 * 1000);
    AUTO(rpc_message_free_p) Store__CheckReply *stream = check(rig.client, buyer_token, "stream");
    must(svc_tokens_verify_media(rig.tokens, stream->media_token, &claims, &err), &err);
    assert_int_equal(claims.rights, SVC_RIGHT_STREAM);
}

// The role in an old token is not enough for money: the account is asked.
static void test_stale_admin_is_refused(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct rpc_opts o = with(root_token);
    Store__Voucher *none = NULL;
    Common__Money money = COMMON__MONEY__INIT;
    Store__CreateVoucherRequest q = STORE__CREATE_VOUCHER_REQUEST__INIT;
    char currency[] = "EUR";
    money.minor = 5, money.currency = currency, q.amount = &money;
    root.roles = ROLE_USER;
    assert_int_equal(store_shop_create_voucher(rig.client, &o, &q, &none, &err),
                     STATUS_PERMISSION_DENIED);
    root.roles = ROLE_USER | ROLE_CREATOR | ROLE_ADMIN;
}

static void expect_violation(struct rpc_details *d, const char *field)
{
    assert_int_equal(d->n_violations, 1);
    assert_string_equal(d->violations[0].field, field);
    assert_true(d->violations[0].description[0]);
    rpc_details_done(d);
}

static void test_wrong_fields_are_named(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct rpc_details d;
    struct rpc_opts o = with(root_token);
    o.ret_details = &d;
    char currency[] = "pesos", bad_id[] = "x";
    Store__Voucher *no_voucher = NULL;
    Common__Money money = COMMON__MONEY__INIT;
    Store__CreateVoucherRequest v = STORE__CREATE_VOUCHER_REQUEST__INIT;
    money.minor = 5, money.currency = currency, v.amount = &money;
    assert_int_equal(store_shop_create_voucher(rig.client, &o, &v, &no_voucher, &err),
                     STATUS_INVALID_ARGUMENT);
    expect_violation(&d, "amount.currency");
    Store__QuoteReply *no_quote = NULL;
    Store__QuoteRequest q = STORE__QUOTE_REQUEST__INIT;
    char *ids[] = {item_id, bad_id};
    q.item_ids = ids, q.n_item_ids = 2;
    assert_int_equal(store_shop_quote(rig.client, &o, &q, &no_quote, &err),
                     STATUS_INVALID_ARGUMENT);
    expect_violation(&d, "item_ids[1]");
    Store__ListItemsReply *no_list = NULL;
    Common__Page p = COMMON__PAGE__INIT;
    Store__SearchRequest s = STORE__SEARCH_REQUEST__INIT;
    char word[] = "film";
    p.size = -1, s.page = &p, s.query = word;
    assert_int_equal(store_catalog_search(rig.client, &o, &s, &no_list, &err),
                     STATUS_INVALID_ARGUMENT);
    expect_violation(&d, "page.size");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orchestrator_makes_the_item),
        cmocka_unit_test(test_owner_edits_and_publishes),
        cmocka_unit_test(test_buying_opens_the_gate),
        cmocka_unit_test(test_stale_admin_is_refused),
        cmocka_unit_test(test_wrong_fields_are_named),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
