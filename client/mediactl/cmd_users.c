// user ls, user credit, user role.
#include <string.h>

#include "base/rand.h"
#include "cauce/session.rpc.h"
#include "cauce/store.rpc.h"
#include "ctl.h"

static void print_user(const Session__User *u)
{
    printf("%s  %-16s %s", u->id, u->name, u->disabled ? "disabled " : "");
    for (size_t i = 0; i < u->n_roles; i++)
        printf("%s%s", i ? "," : "", u->roles[i]);
    putchar('\n');
}

static enum status cmd_ls(struct ctl *k)
{
    Common__Page page;
    enum status s = ctl_page(k, &page);
    if (s != STATUS_OK)
        return s;
    Session__ListUsersRequest req = SESSION__LIST_USERS_REQUEST__INIT;
    req.page = &page;
    AUTO(rpc_message_free_p) Session__ListUsersReply *r = NULL;
    s = CTL_CALL(k, session_user_admin_list, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    for (size_t i = 0; s == STATUS_OK && i < r->n_users; i++)
        print_user(r->users[i]);
    if (s == STATUS_OK)
        ctl_say_more(r->next_page);
    return s;
}

static enum status cmd_credit(struct ctl *k)
{
    Common__Money amount = COMMON__MONEY__INIT;
    char currency[4], key[UUID_SIZE];
    enum status s = ctl_parse_money(k, k->args[1], &amount.minor, currency);
    if (s != STATUS_OK)
        return s;
    amount.currency = currency;
    rand_uuid7(key);
    Store__CreditRequest req = STORE__CREDIT_REQUEST__INIT;
    req.user = k->args[0];
    req.amount = &amount;
    req.idempotency_key =
        ctl_has(k, OPT_IDEMPOTENCY_KEY) ? client_str(k->opt[OPT_IDEMPOTENCY_KEY]) : key;
    AUTO(rpc_message_free_p) Store__BalanceReply *r = NULL;
    s = CTL_CALL(k, store_shop_credit, NULL, &req, &r);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &r->base);
    for (size_t i = 0; s == STATUS_OK && i < r->n_balances; i++) {
        char text[CTL_MONEY_SIZE];
        ctl_money(text, r->balances[i]->minor, r->balances[i]->currency);
        printf("%s now has %s\n", k->args[0], text);
    }
    return s;
}

static enum status cmd_role(struct ctl *k)
{
    Session__SetRolesRequest req = SESSION__SET_ROLES_REQUEST__INIT;
    req.user = k->args[0];
    req.n_roles = k->n_args - 1;
    req.roles = k->args + 1;
    AUTO(rpc_message_free_p) Session__User *u = NULL;
    enum status s = CTL_CALL(k, session_user_admin_set_roles, NULL, &req, &u);
    if (s == STATUS_OK && ctl_has(k, OPT_JSON))
        return ctl_print_message(k, &u->base);
    if (s == STATUS_OK)
        print_user(u);
    return s;
}

static const struct command commands[] = {
    {"user ls", "", 0, 0, ALLOW_PAGE, CONNECTED, cmd_ls, "accounts (admin)"},
    {"user credit", "NAME AMOUNT", 2, 2, ALLOW(OPT_IDEMPOTENCY_KEY), CONNECTED, cmd_credit,
     "put money on an account (admin)"},
    {"user role", "NAME ROLE..", 2, 8, 0, CONNECTED, cmd_role,
     "set all roles of a user: user, creator, admin (admin)"},
};
const struct command_group user_commands = {commands, N_ELEMENTS(commands)};
