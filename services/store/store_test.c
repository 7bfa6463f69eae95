// The store below its handlers, on a private PostgreSQL: catalogue, search, money, rights; and the
// property that matters: whatever many clients do at once with retries, the books are right.
#include "internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/time.h"
#include "crypto/crypto.h"
#include "support/pg.h"

static struct test_pg *pg;
static struct store store;
static struct rpc_user seller, buyer, other, admin;

static enum status find_user(void *ud, const char *id_or_name, struct store_user *ret,
                             struct err *err)
{
    const struct rpc_user *known[] = {&seller, &buyer, &other, &admin};
    (void)ud;
    for (size_t i = 0; i < N_ELEMENTS(known); i++) {
        if (!str_eq(known[i]->id, id_or_name) && !str_eq(known[i]->name, id_or_name))
            continue;
        *ret = (struct store_user){.roles = known[i]->roles};
        str_copy(ret->id, sizeof ret->id, known[i]->id);
        return STATUS_OK;
    }
    if (!uuid_is_valid(id_or_name))
        return err_set(err, STATUS_NOT_FOUND, "no such user");
    *ret = (struct store_user){.roles = ROLE_USER};
    str_copy(ret->id, sizeof ret->id, id_or_name);
    return STATUS_OK;
}

// What a token says, readable.
static enum status mint(const uint8_t secret[64], const struct svc_media_claims *claims,
                        struct buf *out, struct err *err)
{
    (void)secret, (void)err;
    buf_printf(out, "%s %s %u", claims->sub, claims->item, claims->rights);
    return STATUS_OK;
}

static void make_user(struct rpc_user *u, const char *name, unsigned roles)
{
    *u = (struct rpc_user){.roles = roles};
    rand_uuid7(u->id);
    str_copy(u->name, sizeof u->name, name);
}

static int setup(void **state)
{
    (void)state;
    if (crypto_init(NULL) != STATUS_OK)
        return 1;
    pg = test_pg_new();
    store = (struct store){.db = test_pg_db(pg, 12, true),
                           .find_user = find_user,
                           .mint = mint,
                           .media_token_ms = 6 * 3600 * 1000,
                           .quote_ms = 15 * 60 * 1000};
    make_user(&seller, "seller", ROLE_USER | ROLE_CREATOR);
    make_user(&buyer, "buyer", ROLE_USER);
    make_user(&other, "other", ROLE_USER | ROLE_CREATOR);
    make_user(&admin, "admin", ROLE_USER | ROLE_CREATOR | ROLE_ADMIN);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    db_free(store.db);
    test_pg_free(pg);
    return 0;
}

// ---------------------------------------------------------------- calls

static struct store_call as(const struct rpc_user *u)
{
    return (struct store_call){.store = &store, .arena = arena_new(0), .user = u};
}

static struct store_call as_node(void)
{
    return (struct store_call){.store = &store, .arena = arena_new(0), .is_node = true};
}

static void done(struct store_call *c)
{
    arena_free(c->arena);
}

static void expect(enum status got, enum status want, const struct err *err)
{
    if (got != want)
        fail_msg("%s instead of %s: %s", status_name(got), status_name(want), err->msg);
}

static Common__Money money(int64_t minor, const char *currency)
{
    Common__Money m = COMMON__MONEY__INIT;
    m.minor = minor;
    m.currency = (char *)(uintptr_t)currency;
    return m;
}

static char *mutable(const char *s)
{
    return (char *)(uintptr_t)s;
}

static void make_item(char id[UUID_SIZE], const char *title, int64_t minor, const char *currency,
                      bool publish)
{
    struct store_call c = as_node();
    struct err err = ERR_INIT;
    Store__Item item = STORE__ITEM__INIT;
    Store__CreateItemRequest q = STORE__CREATE_ITEM_REQUEST__INIT;
    Common__Money price = money(minor, currency);
    rand_uuid7(id);
    q.item_id = id, q.owner = seller.id, q.owner_name = seller.name;
    q.title = mutable(title), q.description = mutable("a description"), q.kind = mutable("video");
    q.price = &price, q.publish = publish;
    expect(store_item_create(&c, &q, &item, &err), STATUS_OK, &err);
    assert_string_equal(item.title, title);
    done(&c);
}

static enum status credit(const struct rpc_user *by, const char *user, int64_t minor,
                          const char *key, struct err *err)
{
    struct store_call c = as(by);
    Store__BalanceReply ret = STORE__BALANCE_REPLY__INIT;
    Store__CreditRequest q = STORE__CREDIT_REQUEST__INIT;
    Common__Money amount = money(minor, "EUR");
    q.user = mutable(user), q.amount = &amount, q.idempotency_key = mutable(key);
    enum status s = store_credit(&c, &q, &ret, err);
    done(&c);
    return s;
}

static enum status quote(const struct rpc_user *u, const char *const *ids, size_t n,
                         char quote_id[UUID_SIZE], int64_t *total, struct err *err)
{
    struct store_call c = as(u);
    Store__QuoteReply ret = STORE__QUOTE_REPLY__INIT;
    Store__QuoteRequest q = STORE__QUOTE_REQUEST__INIT;
    q.n_item_ids = n, q.item_ids = (char **)(uintptr_t)ids;
    enum status s = store_quote(&c, &q, &ret, err);
    if (s == STATUS_OK) {
        str_copy(quote_id, UUID_SIZE, ret.quote_id);
        *total = ret.total ? ret.total->minor : 0;
    }
    done(&c);
    return s;
}

// Packed reply, to compare byte for byte; NULL unless OK.
static enum status purchase(const struct rpc_user *u, const char *quote_id, const char *key,
                            uint8_t packed[512], size_t *ret_n, char order_id[UUID_SIZE],
                            struct err *err)
{
    struct store_call c = as(u);
    Store__Order ret = STORE__ORDER__INIT;
    Store__PurchaseRequest q = STORE__PURCHASE_REQUEST__INIT;
    q.quote_id = mutable(quote_id), q.idempotency_key = mutable(key);
    enum status s = store_purchase(&c, &q, &ret, err);
    if (s == STATUS_OK) {
        assert_true(store__order__get_packed_size(&ret) <= 512);
        *ret_n = store__order__pack(&ret, packed);
        str_copy(order_id, UUID_SIZE, ret.order_id);
    }
    done(&c);
    return s;
}

static enum status refund(const struct rpc_user *by, const char *order_id, const char *key,
                          struct err *err)
{
    struct store_call c = as(by);
    Store__Order ret = STORE__ORDER__INIT;
    Store__RefundRequest q = STORE__REFUND_REQUEST__INIT;
    q.order_id = mutable(order_id), q.idempotency_key = mutable(key);
    enum status s = store_refund(&c, &q, &ret, err);
    if (s == STATUS_OK)
        assert_string_equal(ret.state, "refunded");
    done(&c);
    return s;
}

static int64_t balance(const struct rpc_user *u)
{
    struct store_call c = as(u);
    struct err err = ERR_INIT;
    Store__BalanceReply ret = STORE__BALANCE_REPLY__INIT;
    Store__BalanceRequest q = STORE__BALANCE_REQUEST__INIT;
    q.currency = mutable("EUR");
    expect(store_balance(&c, &q, &ret, &err), STATUS_OK, &err);
    assert_int_equal(ret.n_balances, 1);
    int64_t minor = ret.balances[0]->minor;
    done(&c);
    return minor;
}

static void expect_right(const struct rpc_user *u, const char *item, const char *reason)
{
    struct store_call c = as(u);
    struct err err = ERR_INIT;
    Store__CheckReply ret = STORE__CHECK_REPLY__INIT;
    Store__CheckRequest q = STORE__CHECK_REQUEST__INIT;
    bool is_no = !strncmp(reason, "not_", 4);
    q.item_id = mutable(item), q.right = mutable("stream");
    expect(store_check(&c, &q, &ret, &err), STATUS_OK, &err);
    assert_string_equal(ret.reason, reason);
    assert_true(ret.allowed == !is_no);
    assert_true((ret.media_token[0] != '\0') == !is_no);
    if (!is_no && u)
        assert_non_null(strstr(ret.media_token, u->id));
    done(&c);
}

static int64_t number(const char *sql)
{
    AUTO(db_result_free_p) struct db_result *r = NULL;
    struct err err = ERR_INIT;
    expect(db_query(store.db, sql, NULL, 0, &r, &err), STATUS_OK, &err);
    return db_i64(r, 0, 0);
}

// ---------------------------------------------------------------- catalogue

static void test_create_is_idempotent(void **state)
{
    (void)state;
    char id[UUID_SIZE];
    make_item(id, "Once", 100, "EUR", true);
    struct store_call c = as_node();
    struct err err = ERR_INIT;
    Store__Item item = STORE__ITEM__INIT;
    Store__CreateItemRequest q = STORE__CREATE_ITEM_REQUEST__INIT;
    q.item_id = id, q.owner = seller.id, q.title = mutable("Again"), q.kind = mutable("video");
    expect(store_item_create(&c, &q, &item, &err), STATUS_OK, &err);
    assert_string_equal(item.title, "Once");
    q.owner = other.id;
    expect(store_item_create(&c, &q, &item, &err), STATUS_ALREADY_EXISTS, &err);
    done(&c);
}

static enum status edit(const struct rpc_user *u, const char *id, const char *title,
                        int64_t version, Store__Item *ret, struct store_call *c, struct err *err)
{
    Store__EditItemRequest q = STORE__EDIT_ITEM_REQUEST__INIT;
    *c = as(u);
    q.item_id = mutable(id), q.title = mutable(title);
    q.has_version = version > 0, q.version = version;
    return store_item_edit(c, &q, ret, err);
}

static void test_edit_checks_owner_and_version(void **state)
{
    (void)state;
    char id[UUID_SIZE], hidden[UUID_SIZE];
    struct store_call c;
    struct err err = ERR_INIT;
    Store__Item item = STORE__ITEM__INIT;
    make_item(id, "Before", 100, "EUR", true);
    make_item(hidden, "Hidden", 100, "EUR", false);
    expect(edit(&seller, id, "After", 1, &item, &c, &err), STATUS_OK, &err);
    assert_string_equal(item.title, "After");
    assert_true(item.version == 2);
    assert_string_equal(item.description, "a description");
    assert_true(item.price->minor == 100);
    done(&c);
    expect(edit(&seller, id, "Late", 1, &item, &c, &err), STATUS_ABORTED, &err);
    done(&c);
    expect(edit(&other, id, "Foreign", 0, &item, &c, &err), STATUS_PERMISSION_DENIED, &err);
    done(&c);
    expect(edit(&other, hidden, "Foreign", 0, &item, &c, &err), STATUS_NOT_FOUND, &err);
    done(&c);
    expect(edit(&admin, id, "Admin", 0, &item, &c, &err), STATUS_OK, &err);
    done(&c);
    expect(edit(&seller, id, "  ", 0, &item, &c, &err), STATUS_INVALID_ARGUMENT, &err);
    done(&c);
}

static void test_media_state_moves_forward_only(void **state)
{
    (void)state;
    char id[UUID_SIZE];
    struct store_call c = as_node();
    struct err err = ERR_INIT;
    Store__Item item = STORE__ITEM__INIT;
    Store__SetMediaRequest q = STORE__SET_MEDIA_REQUEST__INIT;
    make_item(id, "Moving", 0, "", true);
    q.item_id = id, q.state = mutable("ready"), q.duration_us = 7200000000, q.width = 1920;
    expect(store_item_set_media(&c, &q, &item, &err), STATUS_OK, &err);
    assert_string_equal(item.state, "ready");
    assert_true(item.duration_us == 7200000000);
    q.state = mutable("playable"), q.duration_us = 0, q.width = 0;
    expect(store_item_set_media(&c, &q, &item, &err), STATUS_OK, &err);
    assert_string_equal(item.state, "ready");
    assert_true(item.duration_us == 7200000000 && item.width == 1920);
    q.state = mutable("odd");
    expect(store_item_set_media(&c, &q, &item, &err), STATUS_INVALID_ARGUMENT, &err);
    done(&c);
}

// Pages through a list or a search; how many of the ids are seen, each once, in order.
static size_t walk(const struct rpc_user *u, const char *query, int size, const char *const *want,
                   size_t n_want)
{
    size_t seen = 0, pages = 0;
    char token[256] = "";
    do {
        struct store_call c = as(u);
        struct err err = ERR_INIT;
        Store__ListItemsReply ret = STORE__LIST_ITEMS_REPLY__INIT;
        Common__Page page = COMMON__PAGE__INIT;
        page.size = size, page.token = token;
        if (query) {
            Store__SearchRequest q = STORE__SEARCH_REQUEST__INIT;
            q.query = mutable(query), q.page = &page;
            expect(store_item_search(&c, &q, &ret, &err), STATUS_OK, &err);
        } else {
            Store__ListItemsRequest q = STORE__LIST_ITEMS_REQUEST__INIT;
            q.page = &page;
            expect(store_item_list(&c, &q, &ret, &err), STATUS_OK, &err);
        }
        assert_true(ret.n_items <= (size_t)size);
        for (size_t i = 0; i < ret.n_items; i++)
            for (size_t j = 0; j < n_want; j++)
                seen += str_eq(ret.items[i]->item_id, want[j]);
        str_copy(token, sizeof token, ret.next_page);
        done(&c);
    } while (token[0] && ++pages < 200);
    return seen;
}

static void test_list_shows_published_and_own(void **state)
{
    (void)state;
    char ids[5][UUID_SIZE];
    const char *want[5];
    for (size_t i = 0; i < 5; i++) {
        make_item(ids[i], "Listed", 0, "", i != 4);
        want[i] = ids[i];
    }
    assert_int_equal(walk(NULL, NULL, 2, want, 5), 4);
    assert_int_equal(walk(&buyer, NULL, 3, want, 5), 4);
    assert_int_equal(walk(&seller, NULL, 3, want, 5), 5);
    assert_int_equal(walk(&admin, NULL, 200, want, 5), 5);
}

static void test_search_words_phrases_and_pages(void **state)
{
    (void)state;
    char a[UUID_SIZE], b[UUID_SIZE], c[UUID_SIZE];
    make_item(a, "Quixotic Zebra crossing", 0, "", true);
    make_item(b, "Quixotic crossing of the ZEBRA ÜBER alles", 0, "", true);
    make_item(c, "Quixotic secret", 0, "", false);
    const char *all[] = {a, b, c};
    assert_int_equal(walk(NULL, "quixotic", 1, all, 3), 2);
    assert_int_equal(walk(&seller, "quixotic", 1, all, 3), 3);
    assert_int_equal(walk(NULL, "\"zebra crossing\"", 10, all, 3), 1);
    assert_int_equal(walk(NULL, "quixotic -über", 10, all, 3), 1);
    assert_int_equal(walk(NULL, "secret or alles", 10, all, 3), 1);
    assert_int_equal(walk(NULL, "'); DROP TABLE store.item; --", 10, all, 3), 0);
}

static enum status set_words(const char *item, const char *subtitle, int64_t start_ms,
                             const char *const *words, size_t n)
{
    struct store_call c = as_node();
    struct err err = ERR_INIT;
    Store__SetWordsReply ret = STORE__SET_WORDS_REPLY__INIT;
    Store__SetWordsRequest q = STORE__SET_WORDS_REQUEST__INIT;
    Store__SpokenWords cues[4], *list[4];
    for (size_t i = 0; i < n; i++) {
        store__spoken_words__init(&cues[i]);
        cues[i].start_ms = start_ms + (int64_t)i * 1000;
        cues[i].words = mutable(words[i]);
        list[i] = &cues[i];
    }
    q.item_id = mutable(item), q.subtitle = mutable(subtitle), q.cues = list, q.n_cues = n;
    enum status s = store_spoken_set(&c, &q, &ret, &err);
    done(&c);
    return s;
}

// How many hits; of the first one when it begins, and whether its words can be read.
static size_t find_spoken(const struct rpc_user *u, const char *query, int64_t *ret_ms,
                          bool *ret_readable)
{
    struct store_call c = as(u);
    struct err err = ERR_INIT;
    Store__SpokenReply ret = STORE__SPOKEN_REPLY__INIT;
    Store__SearchRequest q = STORE__SEARCH_REQUEST__INIT;
    q.query = mutable(query);
    expect(store_spoken_search(&c, &q, &ret, &err), STATUS_OK, &err);
    size_t n = ret.n_hits;
    *ret_ms = n ? ret.hits[0]->start_ms : -1;
    *ret_readable = n && ret.hits[0]->words[0];
    done(&c);
    return n;
}

static void test_spoken_words_are_found_by_who_may_see_the_item(void **state)
{
    (void)state;
    char open[UUID_SIZE], paid[UUID_SIZE], hidden[UUID_SIZE];
    static const char *const words[] = {"the flugelhorn \"plays\" \\ on", "the ümlaut sings"};
    static const char *const other_words[] = {"nothing of the kind"};
    int64_t ms;
    bool readable;
    make_item(open, "Spoken", 0, "", true);
    make_item(paid, "Spoken", 500, "EUR", true);
    make_item(hidden, "Spoken", 0, "", false);
    assert_int_equal(set_words(open, "s2", 61000, words, 2), STATUS_OK);
    assert_int_equal(find_spoken(NULL, "flugelhorn", &ms, &readable), 1);
    assert_true(ms == 61000 && readable);
    assert_int_equal(find_spoken(NULL, "Ümlaut", &ms, &readable), 1);
    assert_true(ms == 62000);
    assert_int_equal(find_spoken(NULL, "flugelhorn ümlaut", &ms, &readable), 0);
    assert_int_equal(set_words(hidden, "s2", 0, words, 2), STATUS_OK);
    assert_int_equal(find_spoken(&buyer, "flugelhorn", &ms, &readable), 1);
    assert_int_equal(find_spoken(&seller, "flugelhorn", &ms, &readable), 2);
    assert_int_equal(set_words(hidden, "s2", 0, NULL, 0), STATUS_OK);
    assert_int_equal(set_words(open, "s2", 5, other_words, 1), STATUS_OK); // instead
    assert_int_equal(find_spoken(&seller, "flugelhorn", &ms, &readable), 0);
    assert_int_equal(set_words(paid, "x1", 9, words, 1), STATUS_OK);
    assert_int_equal(find_spoken(&buyer, "flugelhorn", &ms, &readable), 1);
    assert_true(ms == 9 && !readable);
    assert_int_equal(find_spoken(&seller, "flugelhorn", &ms, &readable), 1);
    assert_true(readable);
    assert_int_equal(set_words(STORE_NIL_UUID, "s2", 0, words, 1), STATUS_NOT_FOUND);
    assert_int_equal(set_words(open, "", 0, words, 1), STATUS_INVALID_ARGUMENT);
    assert_int_equal(set_words(open, "s2", -1, words, 1), STATUS_INVALID_ARGUMENT);
}

static void test_page_tokens_are_checked(void **state)
{
    (void)state;
    static const char *const bad[] = {"x", "AAAA", "not base64!", "YWJj", "MS41IHh5eg"};
    for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
        struct store_call c = as(&buyer);
        struct err err = ERR_INIT;
        Store__ListItemsReply ret = STORE__LIST_ITEMS_REPLY__INIT;
        Common__Page page = COMMON__PAGE__INIT;
        Store__ListItemsRequest l = STORE__LIST_ITEMS_REQUEST__INIT;
        Store__SearchRequest q = STORE__SEARCH_REQUEST__INIT;
        page.token = mutable(bad[i]);
        l.page = q.page = &page, q.query = mutable("x");
        expect(store_item_list(&c, &l, &ret, &err), STATUS_INVALID_ARGUMENT, &err);
        expect(store_item_search(&c, &q, &ret, &err), STATUS_INVALID_ARGUMENT, &err);
        done(&c);
    }
}

// ---------------------------------------------------------------- rights

static void test_check_says_why(void **state)
{
    (void)state;
    char sold[UUID_SIZE], gift[UUID_SIZE], hidden[UUID_SIZE], nothing[UUID_SIZE];
    make_item(sold, "Sold", 500, "EUR", true);
    make_item(gift, "Gift", 0, "", true);
    make_item(hidden, "Hidden", 0, "", false);
    rand_uuid7(nothing);
    expect_right(&seller, sold, "owner");
    expect_right(&admin, sold, "admin");
    expect_right(&buyer, sold, "not_bought");
    expect_right(&buyer, gift, "free");
    expect_right(NULL, gift, "free");
    expect_right(NULL, sold, "not_bought");
    expect_right(&buyer, hidden, "not_published");
    expect_right(&buyer, nothing, "not_found");
}

// ---------------------------------------------------------------- money

static void test_buy_once_per_key_and_refund(void **state)
{
    (void)state;
    char item[UUID_SIZE], qid[UUID_SIZE], order[UUID_SIZE], again[UUID_SIZE];
    uint8_t first[512], second[512];
    size_t n1 = 0, n2 = 0;
    int64_t total = 0, before = balance(&buyer);
    struct err err = ERR_INIT;
    make_item(item, "Film", 700, "EUR", true);
    const char *ids[] = {item};
    expect(credit(&admin, "buyer", 1000, "c1", &err), STATUS_OK, &err);
    expect(credit(&admin, "buyer", 1000, "c1", &err), STATUS_OK, &err);
    expect(credit(&admin, "buyer", 2000, "c1", &err), STATUS_ALREADY_EXISTS, &err);
    assert_true(balance(&buyer) == before + 1000);

    expect(quote(&buyer, ids, 1, qid, &total, &err), STATUS_OK, &err);
    assert_true(total == 700);
    expect(purchase(&other, qid, "k", first, &n1, order, &err), STATUS_NOT_FOUND, &err);
    expect(purchase(&buyer, qid, "", first, &n1, order, &err), STATUS_INVALID_ARGUMENT, &err);
    expect(purchase(&buyer, qid, "k1", first, &n1, order, &err), STATUS_OK, &err);
    expect(purchase(&buyer, qid, "k1", second, &n2, again, &err), STATUS_OK, &err);
    assert_int_equal(n1, n2);
    assert_memory_equal(first, second, n1);
    expect(purchase(&buyer, qid, "k2", first, &n1, again, &err), STATUS_FAILED_PRECONDITION, &err);
    assert_true(balance(&buyer) == before + 300);
    expect_right(&buyer, item, "bought");

    expect(refund(&buyer, order, "r1", &err), STATUS_PERMISSION_DENIED, &err);
    expect(refund(&admin, order, "r1", &err), STATUS_OK, &err);
    expect(refund(&admin, order, "r1", &err), STATUS_OK, &err);
    expect(refund(&admin, order, "r2", &err), STATUS_FAILED_PRECONDITION, &err);
    assert_true(balance(&buyer) == before + 1000);
    expect_right(&buyer, item, "not_bought");
}

static void test_same_key_other_request_is_refused(void **state)
{
    (void)state;
    char item[UUID_SIZE], q1[UUID_SIZE], q2[UUID_SIZE], order[UUID_SIZE];
    uint8_t packed[512];
    size_t n;
    int64_t total;
    struct err err = ERR_INIT;
    make_item(item, "Gratis", 0, "", true);
    const char *ids[] = {item};
    expect(quote(&buyer, ids, 1, q1, &total, &err), STATUS_OK, &err);
    expect(quote(&buyer, ids, 1, q2, &total, &err), STATUS_OK, &err);
    expect(purchase(&buyer, q1, "same", packed, &n, order, &err), STATUS_OK, &err);
    expect(purchase(&buyer, q2, "same", packed, &n, order, &err), STATUS_ALREADY_EXISTS, &err);
    // The item is owned now, so the other quote must not sell it again.
    expect(purchase(&buyer, q2, "fresh", packed, &n, order, &err), STATUS_FAILED_PRECONDITION,
           &err);
    // Another account may use the same key.
    expect(quote(&other, ids, 1, q1, &total, &err), STATUS_OK, &err);
    expect(purchase(&other, q1, "same", packed, &n, order, &err), STATUS_OK, &err);
}

static void test_quote_rules(void **state)
{
    (void)state;
    char euro[UUID_SIZE], dollar[UUID_SIZE], hidden[UUID_SIZE], qid[UUID_SIZE], order[UUID_SIZE];
    uint8_t packed[512];
    size_t n;
    int64_t total;
    struct err err = ERR_INIT;
    make_item(euro, "Euro", 5, "EUR", true);
    make_item(dollar, "Dollar", 5, "USD", true);
    make_item(hidden, "Hidden", 5, "EUR", false);
    const char *mixed[] = {euro, dollar}, *twice[] = {euro, euro}, *unseen[] = {hidden};
    const char *bad[] = {"x"};
    expect(quote(&buyer, mixed, 2, qid, &total, &err), STATUS_FAILED_PRECONDITION, &err);
    expect(quote(&buyer, twice, 2, qid, &total, &err), STATUS_INVALID_ARGUMENT, &err);
    expect(quote(&buyer, unseen, 1, qid, &total, &err), STATUS_NOT_FOUND, &err);
    expect(quote(&buyer, bad, 1, qid, &total, &err), STATUS_INVALID_ARGUMENT, &err);
    expect(quote(&buyer, NULL, 0, qid, &total, &err), STATUS_INVALID_ARGUMENT, &err);
    expect(quote(&seller, mixed, 1, qid, &total, &err), STATUS_OK, &err);
    assert_true(total == 0); // their own
    const char *one[] = {dollar};
    expect(quote(&buyer, one, 1, qid, &total, &err), STATUS_OK, &err);
    expect(purchase(&buyer, qid, "poor", packed, &n, order, &err), STATUS_FAILED_PRECONDITION,
           &err);
    assert_non_null(strstr(err.msg, "balance too low"));
    store.quote_ms = -1;
    expect(quote(&buyer, one, 1, qid, &total, &err), STATUS_OK, &err);
    store.quote_ms = 15 * 60 * 1000;
    expect(purchase(&buyer, qid, "late", packed, &n, order, &err), STATUS_FAILED_PRECONDITION,
           &err);
    assert_non_null(strstr(err.msg, "expired"));
}

static void test_voucher_is_single_use(void **state)
{
    (void)state;
    struct store_call c = as(&admin), b = as(&buyer), o = as(&other);
    struct err err = ERR_INIT;
    Common__Money amount = money(250, "EUR");
    Store__Voucher v = STORE__VOUCHER__INIT;
    Store__CreateVoucherRequest q = STORE__CREATE_VOUCHER_REQUEST__INIT;
    Store__RedeemVoucherRequest r = STORE__REDEEM_VOUCHER_REQUEST__INIT;
    Store__BalanceReply ret = STORE__BALANCE_REPLY__INIT;
    int64_t before = balance(&buyer);
    q.amount = &amount;
    expect(store_create_voucher(&b, &q, &v, &err), STATUS_PERMISSION_DENIED, &err);
    expect(store_create_voucher(&c, &q, &v, &err), STATUS_OK, &err);
    for (char *p = v.code; *p; p++) // as people type it
        *p = (char)(*p >= 'A' && *p <= 'Z' ? *p + 32 : *p == '-' ? ' ' : *p);
    r.code = v.code;
    expect(store_redeem_voucher(&b, &r, &ret, &err), STATUS_OK, &err);
    expect(store_redeem_voucher(&b, &r, &ret, &err), STATUS_OK, &err);
    assert_true(balance(&buyer) == before + 250);
    expect(store_redeem_voucher(&o, &r, &ret, &err), STATUS_FAILED_PRECONDITION, &err);
    r.code = mutable("AAAAA-AAAAA-AAAAA-AAAAA");
    expect(store_redeem_voucher(&b, &r, &ret, &err), STATUS_NOT_FOUND, &err);
    r.code = mutable("nonsense");
    expect(store_redeem_voucher(&b, &r, &ret, &err), STATUS_NOT_FOUND, &err);
    done(&c), done(&b), done(&o);
}

static void test_database_keeps_the_ledger(void **state)
{
    (void)state;
    static const struct {
        const char *sql;
        enum status status;
    } rows[] = {
        {"UPDATE store.entry SET amount = amount + 1", STATUS_FAILED_PRECONDITION},
        {"DELETE FROM store.entry", STATUS_FAILED_PRECONDITION},
        {"TRUNCATE store.entry", STATUS_FAILED_PRECONDITION},
        {"DELETE FROM store.txn", STATUS_FAILED_PRECONDITION},
        {"WITH t AS (INSERT INTO store.txn (id, kind, actor) VALUES (gen_random_uuid(), 'credit',"
         " gen_random_uuid()) RETURNING id) INSERT INTO store.entry SELECT t.id, 0, a.id, 5,"
         " a.currency FROM t, (SELECT id, currency FROM store.account LIMIT 1) a",
         STATUS_FAILED_PRECONDITION},
        {"INSERT INTO store.entry SELECT (SELECT id FROM store.txn LIMIT 1), 99, a.id, 5,"
         " a.currency FROM store.account a LIMIT 1",
         STATUS_FAILED_PRECONDITION},
        {"INSERT INTO store.entry SELECT (SELECT id FROM store.txn LIMIT 1), 99, a.id, 5, 'XXX'"
         " FROM store.account a LIMIT 1",
         STATUS_FAILED_PRECONDITION},
        {"UPDATE store.account SET balance = -1 WHERE kind = 'prepaid'",
         STATUS_FAILED_PRECONDITION},
    };
    for (size_t i = 0; i < N_ELEMENTS(rows); i++) {
        struct err err = ERR_INIT;
        enum status s = db_query(store.db, rows[i].sql, NULL, 0, NULL, &err);
        if (s != rows[i].status)
            fail_msg("%s: %s %s", rows[i].sql, status_name(s), err.msg);
    }
}

static void test_library_and_orders_page(void **state)
{
    (void)state;
    struct rpc_user u;
    char ids[3][UUID_SIZE], qid[UUID_SIZE], order[UUID_SIZE], key[16];
    uint8_t packed[512];
    size_t n, seen = 0;
    int64_t total;
    struct err err = ERR_INIT;
    make_user(&u, "reader", ROLE_USER);
    for (int i = 0; i < 3; i++) {
        make_item(ids[i], "Kept", 0, "", true);
        const char *one[] = {ids[i]};
        snprintf(key, sizeof key, "k%d", i);
        expect(quote(&u, one, 1, qid, &total, &err), STATUS_OK, &err);
        expect(purchase(&u, qid, key, packed, &n, order, &err), STATUS_OK, &err);
    }
    char token[128] = "", otoken[128] = "";
    for (int page_n = 0; page_n < 2; page_n++) {
        struct store_call c = as(&u);
        Common__Page page = COMMON__PAGE__INIT;
        Store__ListLibraryReply ret = STORE__LIST_LIBRARY_REPLY__INIT;
        Store__ListLibraryRequest q = STORE__LIST_LIBRARY_REQUEST__INIT;
        Store__ListOrdersReply orders = STORE__LIST_ORDERS_REPLY__INIT;
        Store__ListOrdersRequest oq = STORE__LIST_ORDERS_REQUEST__INIT;
        page.size = 2, page.token = token, q.page = &page;
        expect(store_library(&c, &q, &ret, &err), STATUS_OK, &err);
        page.token = otoken, oq.page = &page;
        expect(store_list_orders(&c, &oq, &orders, &err), STATUS_OK, &err);
        assert_int_equal(ret.n_entries, page_n == 0 ? 2 : 1);
        assert_int_equal(orders.n_orders, ret.n_entries);
        for (size_t i = 0; i < ret.n_entries; i++) {
            assert_string_equal(ret.entries[i]->item->item_id, ids[2 - seen]);
            assert_string_equal(orders.orders[i]->lines[0]->item_id, ids[2 - seen++]);
        }
        str_copy(token, sizeof token, ret.next_page);
        str_copy(otoken, sizeof otoken, orders.next_page);
        done(&c);
    }
    assert_int_equal(seen, 3);
    assert_string_equal(token, "");
    assert_string_equal(otoken, "");
    struct store_call c = as(&other);
    Store__Order o = STORE__ORDER__INIT;
    Store__GetOrderRequest q = STORE__GET_ORDER_REQUEST__INIT;
    q.order_id = order;
    expect(store_get_order(&c, &q, &o, &err), STATUS_NOT_FOUND, &err);
    done(&c);
}

// ---------------------------------------------------------------- the property

enum { N_CLIENTS = 6, N_BUYERS = 3, N_KEYS = 8, N_FILMS = 6, N_STEPS = 25 };

struct world {
    struct rpc_user buyers[N_BUYERS];
    char films[N_FILMS][UUID_SIZE];
    char quotes[N_BUYERS][N_KEYS][UUID_SIZE];
    // The order that a (buyer, key) was answered with, "" until one was; all answers must agree.
    char orders[N_BUYERS][N_KEYS][UUID_SIZE];
    pthread_mutex_t lock;
    uint64_t seed;
    atomic_int n_bad;
};
struct client {
    struct world *w;
    uint64_t random;
};

static uint32_t next(struct client *c, uint32_t n)
{
    c->random ^= c->random << 13, c->random ^= c->random >> 7, c->random ^= c->random << 17;
    return (uint32_t)(c->random >> 33) % n;
}

static void note_order(struct world *w, uint32_t b, uint32_t k, const char *order)
{
    pthread_mutex_lock(&w->lock);
    if (!w->orders[b][k][0])
        str_copy(w->orders[b][k], UUID_SIZE, order);
    else if (!str_eq(w->orders[b][k], order))
        atomic_fetch_add(&w->n_bad, 1);
    pthread_mutex_unlock(&w->lock);
}

// What clients may be told in this crowd; anything else is a finding.
static bool is_expected(enum status s)
{
    return s == STATUS_OK || s == STATUS_FAILED_PRECONDITION || s == STATUS_ABORTED;
}

static void step(struct client *c)
{
    struct world *w = c->w;
    uint32_t b = next(c, N_BUYERS), k = next(c, N_KEYS), what = next(c, 10);
    uint8_t packed[512];
    size_t n;
    char order[UUID_SIZE], key[16];
    struct err err = ERR_INIT;
    enum status s;
    snprintf(key, sizeof key, "key-%u", k);
    if (what < 7) {
        s = purchase(&w->buyers[b], w->quotes[b][k], key, packed, &n, order, &err);
        if (s == STATUS_OK)
            note_order(w, b, k, order);
    } else if (what < 9) {
        pthread_mutex_lock(&w->lock);
        str_copy(order, sizeof order, w->orders[b][k]);
        pthread_mutex_unlock(&w->lock);
        snprintf(key, sizeof key, "r-%.8s-%u", w->buyers[b].name, k);
        s = order[0] ? refund(&admin, order, key, &err) : STATUS_OK;
    } else {
        snprintf(key, sizeof key, "c-%.6s-%u", w->buyers[b].name, k);
        s = credit(&admin, w->buyers[b].id, 300, key, &err);
    }
    if (!is_expected(s)) {
        print_error("seed %llu: %s %s\n", (unsigned long long)w->seed, status_name(s), err.msg);
        atomic_fetch_add(&w->n_bad, 1);
    }
}

static void *client_main(void *arg)
{
    for (int i = 0; i < N_STEPS; i++)
        step(arg);
    return NULL;
}

static void make_world(struct world *w)
{
    struct err err = ERR_INIT;
    char name[16];
    int64_t total;
    for (uint32_t f = 0; f < N_FILMS; f++)
        make_item(w->films[f], "Crowd", 100 + 37 * f, "EUR", true);
    for (uint32_t b = 0; b < N_BUYERS; b++) {
        snprintf(name, sizeof name, "b%u", b);
        make_user(&w->buyers[b], name, ROLE_USER);
        expect(credit(&admin, w->buyers[b].id, 500, name, &err), STATUS_OK, &err);
        for (uint32_t k = 0; k < N_KEYS; k++) {
            const char *ids[] = {w->films[k % N_FILMS], w->films[(k + 1) % N_FILMS]};
            expect(quote(&w->buyers[b], ids, 1 + k % 2, w->quotes[b][k], &total, &err), STATUS_OK,
                   &err);
        }
    }
}

static void check_books(void)
{
    static const struct {
        const char *name, *sql;
    } zero[] = {
        {"ledger sums to zero", "SELECT coalesce(sum(abs(x)), 0)::bigint FROM (SELECT sum(amount) x"
                                " FROM store.entry GROUP BY txn, currency) s"},
        {"balances are the entries", "SELECT count(*) FROM store.account a WHERE a.balance <>"
                                     " coalesce((SELECT sum(amount) FROM store.entry e"
                                     " WHERE e.account = a.id), 0)"},
        {"no negative balance",
         "SELECT count(*) FROM store.account WHERE kind <> 'external' AND balance < 0"},
        {"one order per quote", "SELECT count(*) - count(DISTINCT quote) FROM store.orders"},
        {"paid orders have their entitlements",
         "SELECT count(*) FROM store.orders o JOIN store.order_line l ON l.order_id = o.id"
         " WHERE o.state = 'paid' AND NOT l.owned AND NOT EXISTS (SELECT 1 FROM store.entitlement e"
         " WHERE e.order_id = o.id AND e.item = l.item AND e.revoked IS NULL)"},
        {"entitlements have a paid order",
         "SELECT count(*) FROM store.entitlement e JOIN store.orders o ON o.id = e.order_id"
         " WHERE e.revoked IS NULL AND o.state <> 'paid'"},
        {"each order has its ledger transaction",
         "SELECT count(*) FROM store.orders o WHERE (o.total > 0) <> (o.txn IS NOT NULL)"},
        {"a refund is all of it, once",
         "SELECT count(*) FROM store.orders o WHERE (o.state = 'refunded' AND o.total > 0) <>"
         " EXISTS (SELECT 1 FROM store.txn t WHERE t.reverses = o.txn)"},
        {"paid events are the orders",
         "SELECT (SELECT count(*) FROM store.event WHERE kind = 'order.paid') -"
         " (SELECT count(*) FROM store.orders)"},
        {"events have no gap", "SELECT max(seq) - count(*) FROM store.event WHERE topic = 'store'"},
    };
    for (size_t i = 0; i < N_ELEMENTS(zero); i++)
        if (number(zero[i].sql) != 0)
            fail_msg("%s: %lld", zero[i].name, (long long)number(zero[i].sql));
}

static void test_any_interleaving_keeps_the_books(void **state)
{
    (void)state;
    static struct world w;
    struct client clients[N_CLIENTS];
    pthread_t threads[N_CLIENTS];
    const char *seed = getenv("CAUCE_TEST_SEED");
    w.seed = seed ? strtoull(seed, NULL, 10) : rand_u64() >> 1;
    pthread_mutex_init(&w.lock, NULL);
    make_world(&w);
    for (uint32_t i = 0; i < N_CLIENTS; i++) {
        clients[i] = (struct client){.w = &w, .random = w.seed * 2654435761U + i + 1};
        assert_int_equal(0, pthread_create(&threads[i], NULL, client_main, &clients[i]));
    }
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        pthread_join(threads[i], NULL);
    print_message("seed %llu: %lld orders, %lld refunds\n", (unsigned long long)w.seed,
                  (long long)number("SELECT count(*) FROM store.orders"),
                  (long long)number("SELECT count(*) FROM store.txn WHERE kind = 'refund'"));
    assert_int_equal(atomic_load(&w.n_bad), 0);
    check_books();
    pthread_mutex_destroy(&w.lock);
}

struct same_key {
    const char *quote;
    char order[UUID_SIZE];
    uint8_t packed[512];
    size_t n;
    enum status status;
};

static void *buy_same(void *arg)
{
    struct same_key *k = arg;
    struct err err = ERR_INIT;
    do
        k->status = purchase(&buyer, k->quote, "everybody", k->packed, &k->n, k->order, &err);
    while (k->status == STATUS_ABORTED); // as a client would, with the same key
    return NULL;
}

static void test_concurrent_same_key_is_one_purchase(void **state)
{
    (void)state;
    enum { N = 8 };
    struct same_key keys[N];
    pthread_t threads[N];
    char item[UUID_SIZE], qid[UUID_SIZE];
    int64_t total, before;
    struct err err = ERR_INIT;
    make_item(item, "Wanted", 40, "EUR", true);
    const char *ids[] = {item};
    expect(credit(&admin, "buyer", 1000, "for-everybody", &err), STATUS_OK, &err);
    expect(quote(&buyer, ids, 1, qid, &total, &err), STATUS_OK, &err);
    before = balance(&buyer);
    for (int i = 0; i < N; i++) {
        keys[i] = (struct same_key){.quote = qid};
        assert_int_equal(0, pthread_create(&threads[i], NULL, buy_same, &keys[i]));
    }
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(keys[i].status, STATUS_OK);
        assert_int_equal(keys[i].n, keys[0].n);
        assert_memory_equal(keys[i].packed, keys[0].packed, keys[0].n);
    }
    assert_true(balance(&buyer) == before - 40);
    check_books();
}

static void test_database_down_refuses_without_effect(void **state)
{
    (void)state;
    char item[UUID_SIZE], qid[UUID_SIZE], order[UUID_SIZE];
    uint8_t packed[512];
    size_t n;
    int64_t total, before;
    struct err err = ERR_INIT;
    make_item(item, "Down", 10, "EUR", true);
    const char *ids[] = {item};
    expect(quote(&buyer, ids, 1, qid, &total, &err), STATUS_OK, &err);
    before = balance(&buyer);
    test_pg_kill(pg);
    expect(purchase(&buyer, qid, "down", packed, &n, order, &err), STATUS_UNAVAILABLE, &err);
    test_pg_start(pg);
    assert_true(balance(&buyer) == before);
    expect(purchase(&buyer, qid, "down", packed, &n, order, &err), STATUS_OK, &err);
    assert_true(balance(&buyer) == before - 10);
    check_books();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_is_idempotent),
        cmocka_unit_test(test_edit_checks_owner_and_version),
        cmocka_unit_test(test_media_state_moves_forward_only),
        cmocka_unit_test(test_list_shows_published_and_own),
        cmocka_unit_test(test_search_words_phrases_and_pages),
        cmocka_unit_test(test_spoken_words_are_found_by_who_may_see_the_item),
        cmocka_unit_test(test_page_tokens_are_checked),
        cmocka_unit_test(test_check_says_why),
        cmocka_unit_test(test_buy_once_per_key_and_refund),
        cmocka_unit_test(test_same_key_other_request_is_refused),
        cmocka_unit_test(test_quote_rules),
        cmocka_unit_test(test_voucher_is_single_use),
        cmocka_unit_test(test_database_keeps_the_ledger),
        cmocka_unit_test(test_library_and_orders_page),
        cmocka_unit_test(test_any_interleaving_keeps_the_books),
        cmocka_unit_test(test_concurrent_same_key_is_one_purchase),
        cmocka_unit_test(test_database_down_refuses_without_effect),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
