// RPC handlers of cauce.store.v1: each finds out who calls and hands on.
#include "internal.h"

#include "cauce/store.rpc.h"

static struct store_call begin(struct rpc_call *call)
{
    const struct rpc_user *u = rpc_call_user(call);
    const struct chan_peer *p = rpc_call_peer(call);
    return (struct store_call){
        .store = rpc_call_self(call),
        .arena = rpc_call_arena(call),
        .user = u,
        .is_node = !u && p && p->has_grant && !rpc_call_is_forwarded(call) && p->grant.role < 32 &&
                   1U << p->grant.role == ROLE_NODE_ORCHESTRATOR,
    };
}

#define HANDLER(name, fn, request, reply)                                                          \
    static enum status name(struct rpc_call *call, const request *req, reply *ret,                 \
                            struct err *err)                                                       \
    {                                                                                              \
        struct store_call c = begin(call);                                                         \
        return fn(&c, req, ret, err);                                                              \
    }

HANDLER(list, store_item_list, Store__ListItemsRequest, Store__ListItemsReply)
HANDLER(search, store_item_search, Store__SearchRequest, Store__ListItemsReply)
HANDLER(search_spoken, store_spoken_search, Store__SearchRequest, Store__SpokenReply)
HANDLER(set_words, store_spoken_set, Store__SetWordsRequest, Store__SetWordsReply)
HANDLER(get, store_item_get, Store__GetItemRequest, Store__Item)
HANDLER(create, store_item_create, Store__CreateItemRequest, Store__Item)
HANDLER(set_media, store_item_set_media, Store__SetMediaRequest, Store__Item)
HANDLER(edit, store_item_edit, Store__EditItemRequest, Store__Item)
HANDLER(publish, store_item_publish, Store__PublishRequest, Store__Item)
HANDLER(quote, store_quote, Store__QuoteRequest, Store__QuoteReply)
HANDLER(purchase, store_purchase, Store__PurchaseRequest, Store__Order)
HANDLER(list_orders, store_list_orders, Store__ListOrdersRequest, Store__ListOrdersReply)
HANDLER(get_order, store_get_order, Store__GetOrderRequest, Store__Order)
HANDLER(balance, store_balance, Store__BalanceRequest, Store__BalanceReply)
HANDLER(credit, store_credit, Store__CreditRequest, Store__BalanceReply)
HANDLER(create_voucher, store_create_voucher, Store__CreateVoucherRequest, Store__Voucher)
HANDLER(redeem_voucher, store_redeem_voucher, Store__RedeemVoucherRequest, Store__BalanceReply)
HANDLER(refund, store_refund, Store__RefundRequest, Store__Order)
HANDLER(library, store_library, Store__ListLibraryRequest, Store__ListLibraryReply)
HANDLER(check, store_check, Store__CheckRequest, Store__CheckReply)

enum status store_serve(struct store *s, struct rpc_server *server, struct err *err)
{
    static const struct store_catalog_handlers catalog_handlers = {
        .list = list,
        .search = search,
        .search_spoken = search_spoken,
        .set_words = set_words,
        .get = get,
        .create = create,
        .set_media = set_media,
        .edit = edit,
        .publish = publish,
    };
    static const struct store_shop_handlers shop_handlers = {
        .quote = quote,
        .purchase = purchase,
        .list_orders = list_orders,
        .get_order = get_order,
        .balance = balance,
        .credit = credit,
        .create_voucher = create_voucher,
        .redeem_voucher = redeem_voucher,
        .refund = refund,
    };
    static const struct store_library_handlers library_handlers = {.list = library};
    static const struct store_entitlement_handlers entitlement_handlers = {.check = check};
    enum status st = store_catalog_serve(server, &catalog_handlers, s, err);
    if (st == STATUS_OK)
        st = store_shop_serve(server, &shop_handlers, s, err);
    if (st == STATUS_OK)
        st = store_library_serve(server, &library_handlers, s, err);
    return st == STATUS_OK ? store_entitlement_serve(server, &entitlement_handlers, s, err) : st;
}
