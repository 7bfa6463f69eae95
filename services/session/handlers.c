// RPC handlers of cauce.session.v1: messages in and out, nothing decided here.
#include "internal.h"

#include <string.h>

#include "cauce/session.pb-c.h"
#include "cauce/session.rpc.h"

#include "base/arena.h"
#include "base/buf.h"
#include "base/str.h"
#include "base/time.h"

#define PAGE_DEFAULT 50
#define PAGE_MAX 200
#define ACCESS_TOKEN_MAX 2048
#define RETRY_AFTER_MS 1000

static enum status no_memory(struct err *err)
{
    return err_set(err, STATUS_RESOURCE_EXHAUSTED, "reply: out of memory");
}

static Google__Protobuf__Timestamp *timestamp(struct arena *a, int64_t wall_us)
{
    Google__Protobuf__Timestamp *t = arena_alloc(a, sizeof *t);
    if (!t)
        return NULL;
    google__protobuf__timestamp__init(t);
    t->seconds = wall_us / 1000000;
    t->nanos = (int32_t)(wall_us % 1000000) * 1000;
    return t;
}

static enum status fill_user(struct arena *a, const struct session_account *from,
                             Session__User *ret, struct err *err)
{
    const char *names[3];
    ret->n_roles = session_roles_names(from->roles, names);
    ret->id = arena_strdup(a, from->id);
    ret->name = arena_strdup(a, from->name);
    ret->email = arena_strdup(a, from->email);
    ret->disabled = from->disabled;
    ret->created = timestamp(a, from->created_us);
    ret->roles = arena_array(a, 3, sizeof *ret->roles);
    for (size_t i = 0; ret->roles && i < ret->n_roles; i++)
        if (!(ret->roles[i] = arena_strdup(a, names[i])))
            return no_memory(err);
    if (!ret->id || !ret->name || !ret->email || !ret->created || !ret->roles)
        return no_memory(err);
    return STATUS_OK;
}

static enum status mint(const struct session *s, const struct session_grant *g, struct arena *a,
                        Session__Tokens *ret, struct err *err)
{
    struct rpc_user u = {.roles = g->account.roles,
                         .epoch = g->account.epoch,
                         .exp_wall_ms = time_wall_ms() + SESSION_ACCESS_MS};
    str_copy(u.id, sizeof u.id, g->account.id);
    str_copy(u.name, sizeof u.name, g->account.name);
    str_copy(u.session, sizeof u.session, g->login);
    AUTO(buf_done) struct buf b;
    buf_init(&b, ACCESS_TOKEN_MAX);
    enum status st = svc_token_mint_access(s->token_secret, &u, &b, err);
    if (st != STATUS_OK)
        return st;
    ret->access_token = arena_strndup(a, buf_str(&b), b.len);
    ret->access_expires = timestamp(a, u.exp_wall_ms * 1000);
    return ret->access_token && ret->access_expires ? STATUS_OK : no_memory(err);
}

static enum status fill_tokens(struct rpc_call *call, const struct session_grant *g,
                               Session__Tokens *ret, struct err *err)
{
    struct arena *a = rpc_call_arena(call);
    enum status st = mint(rpc_call_self(call), g, a, ret, err);
    if (st != STATUS_OK)
        return st;
    ret->refresh_token = arena_strdup(a, g->refresh);
    ret->refresh_expires = timestamp(a, g->refresh_expires_us);
    ret->user = arena_alloc(a, sizeof *ret->user);
    if (!ret->refresh_token || !ret->refresh_expires || !ret->user)
        return no_memory(err);
    session__user__init(ret->user);
    return fill_user(a, &g->account, ret->user, err);
}

// What is over a limit may be tried again: the sentence says so to people, this to programs.
static enum status limited(struct rpc_call *call, enum status st)
{
    if (st == STATUS_RESOURCE_EXHAUSTED)
        rpc_call_retry_after(call, RETRY_AFTER_MS);
    return st;
}

// ---------------------------------------------------------------- Session

static enum status handle_register(struct rpc_call *call, const Session__RegisterRequest *req,
                                   Session__Tokens *ret, struct err *err)
{
    struct session_grant g;
    enum status st = session_register(rpc_call_self(call), req->name, req->password, req->email,
                                      rpc_call_deadline_us(call), &g, err);
    return st == STATUS_OK ? fill_tokens(call, &g, ret, err) : limited(call, st);
}

static enum status handle_login(struct rpc_call *call, const Session__LoginRequest *req,
                                Session__Tokens *ret, struct err *err)
{
    struct session_grant g;
    enum status st = session_login(rpc_call_self(call), req->name, req->password, req->device,
                                   rpc_call_deadline_us(call), &g, err);
    return st == STATUS_OK ? fill_tokens(call, &g, ret, err) : limited(call, st);
}

static enum status handle_refresh(struct rpc_call *call, const Session__RefreshRequest *req,
                                  Session__Tokens *ret, struct err *err)
{
    struct session_grant g;
    enum status st = session_refresh(rpc_call_self(call), req->refresh_token, &g, err);
    return st == STATUS_OK ? fill_tokens(call, &g, ret, err) : st;
}

static enum status handle_logout(struct rpc_call *call, const Session__LogoutRequest *req,
                                 Session__LogoutReply *ret, struct err *err)
{
    struct session *s = rpc_call_self(call);
    const struct rpc_user *u = rpc_call_user(call);
    struct session_account a;
    (void)ret;
    enum status st = session_check_user(s, u, 0, &a, err);
    return st == STATUS_OK ? session_logout(s, &a, u->session, req->everywhere, err) : st;
}

static enum status handle_who_am_i(struct rpc_call *call, const Session__WhoAmIRequest *req,
                                   Session__User *ret, struct err *err)
{
    struct session_account a;
    (void)req;
    enum status st = session_check_user(rpc_call_self(call), rpc_call_user(call), 0, &a, err);
    return st == STATUS_OK ? fill_user(rpc_call_arena(call), &a, ret, err) : st;
}

static enum status handle_change_password(struct rpc_call *call,
                                          const Session__ChangePasswordRequest *req,
                                          Session__Tokens *ret, struct err *err)
{
    struct session *s = rpc_call_self(call);
    struct session_account a;
    struct session_grant g;
    enum status st = session_check_user(s, rpc_call_user(call), 0, &a, err);
    if (st == STATUS_OK)
        st = session_change_password(s, &a, req->old_password, req->new_password,
                                     rpc_call_deadline_us(call), &g, err);
    return st == STATUS_OK ? fill_tokens(call, &g, ret, err) : limited(call, st);
}

// ---------------------------------------------------------------- UserAdmin

static enum status check_admin(struct rpc_call *call, struct session_account *ret, struct err *err)
{
    return session_check_user(rpc_call_self(call), rpc_call_user(call), ROLE_ADMIN, ret, err);
}

struct page {
    size_t size;
    char after[UUID_SIZE]; // "": from the start
};

// The token is the last id seen, in base64url: opaque to the caller, checked here.
static enum status parse_page(const Common__Page *p, struct page *ret, struct err *err)
{
    size_t n = 0;
    *ret = (struct page){.size = PAGE_DEFAULT};
    if (!p)
        return STATUS_OK;
    if (p->size < 0 || p->size > PAGE_MAX)
        return rpc_bad_field(err, "page.size", "page size must be 1 to %d", PAGE_MAX);
    if (p->size)
        ret->size = (size_t)p->size;
    if (!p->token[0])
        return STATUS_OK;
    if (!str_unb64(ret->after, UUID_SIZE - 1, p->token, strlen(p->token), &n) ||
        n != UUID_SIZE - 1 || (ret->after[n] = '\0', !uuid_is_valid(ret->after)))
        return rpc_bad_field(err, "page.token", "page token is not one of ours");
    return STATUS_OK;
}

static enum status fill_list(struct arena *a, const struct session_account *accounts, size_t n,
                             bool more, Session__ListUsersReply *ret, struct err *err)
{
    ret->users = arena_array(a, n + 1, sizeof *ret->users);
    Session__User *users = arena_array(a, n + 1, sizeof *users);
    if (!ret->users || !users)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        session__user__init(&users[i]);
        enum status st = fill_user(a, &accounts[i], &users[i], err);
        if (st != STATUS_OK)
            return st;
        ret->users[ret->n_users++] = &users[i];
    }
    if (!more)
        return STATUS_OK;
    ret->next_page = arena_alloc(a, str_b64_len(UUID_SIZE - 1) + 1);
    if (!ret->next_page)
        return no_memory(err);
    str_b64(ret->next_page, accounts[n - 1].id, UUID_SIZE - 1);
    return STATUS_OK;
}

static enum status handle_list(struct rpc_call *call, const Session__ListUsersRequest *req,
                               Session__ListUsersReply *ret, struct err *err)
{
    struct arena *a = rpc_call_arena(call);
    struct session_account admin;
    struct page page;
    size_t n = 0;
    enum status st = check_admin(call, &admin, err);
    if (st == STATUS_OK)
        st = parse_page(req->page, &page, err);
    if (st != STATUS_OK)
        return st;
    struct session_account *accounts = arena_array(a, page.size + 1, sizeof *accounts);
    if (!accounts)
        return no_memory(err);
    st = session_account_list(rpc_call_self(call), page.after[0] ? page.after : NULL, page.size + 1,
                              accounts, &n, err);
    if (st != STATUS_OK)
        return st;
    bool more = n > page.size;
    return fill_list(a, accounts, more ? page.size : n, more, ret, err);
}

static enum status handle_get(struct rpc_call *call, const Session__GetUserRequest *req,
                              Session__User *ret, struct err *err)
{
    struct session_account a;
    enum status st = STATUS_OK;
    if (rpc_call_user(call)) // else a node: the dispatcher has checked its role
        st = check_admin(call, &a, err);
    if (st == STATUS_OK)
        st = session_account_get(rpc_call_self(call), req->user, &a, err);
    return st == STATUS_OK ? fill_user(rpc_call_arena(call), &a, ret, err) : st;
}

static enum status handle_set_roles(struct rpc_call *call, const Session__SetRolesRequest *req,
                                    Session__User *ret, struct err *err)
{
    struct session_account admin, a;
    unsigned roles = 0;
    enum status st = check_admin(call, &admin, err);
    if (st != STATUS_OK)
        return st;
    if (!session_roles_parse((const char *const *)req->roles, req->n_roles, &roles) || !roles)
        return rpc_bad_field(err, "roles", "roles are user, creator, admin; at least one");
    st = session_set_roles(rpc_call_self(call), admin.id, req->user, roles, &a, err);
    return st == STATUS_OK ? fill_user(rpc_call_arena(call), &a, ret, err) : st;
}

static enum status handle_set_disabled(struct rpc_call *call,
                                       const Session__SetDisabledRequest *req, Session__User *ret,
                                       struct err *err)
{
    struct session_account admin, a;
    enum status st = check_admin(call, &admin, err);
    if (st == STATUS_OK)
        st = session_set_disabled(rpc_call_self(call), admin.id, req->user, req->disabled, &a, err);
    return st == STATUS_OK ? fill_user(rpc_call_arena(call), &a, ret, err) : st;
}

enum status session_serve(struct session *s, struct rpc_server *server, struct err *err)
{
    static const struct session_session_handlers session = {
        .register_ = handle_register,
        .login = handle_login,
        .refresh = handle_refresh,
        .logout = handle_logout,
        .who_am_i = handle_who_am_i,
        .change_password = handle_change_password,
    };
    static const struct session_user_admin_handlers user_admin = {
        .list = handle_list,
        .get = handle_get,
        .set_roles = handle_set_roles,
        .set_disabled = handle_set_disabled,
    };
    enum status st = session_session_serve(server, &session, s, err);
    return st == STATUS_OK ? session_user_admin_serve(server, &user_admin, s, err) : st;
}
