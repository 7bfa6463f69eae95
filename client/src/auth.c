// Register, log in, log out, who am I.
#include <string.h>

#include "cauce/session.rpc.h"
#include "crypto/crypto.h"
#include "session.h"

enum status client_login_from(struct login *ret, const Session__Tokens *t, struct err *err)
{
    if (!str_copy(ret->access, sizeof(ret->access), t->access_token) ||
        !str_copy(ret->refresh, sizeof(ret->refresh), t->refresh_token))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "the server's token is too long");
    ret->access_exp_ms = t->access_expires ? t->access_expires->seconds * 1000 : 0;
    return STATUS_OK;
}

static void fill_user(cauce_user *ret, const Session__User *u)
{
    if (!ret)
        return;
    memset(ret, 0, sizeof(*ret));
    if (!u)
        return;
    str_copy(ret->id, sizeof(ret->id), u->id);
    str_copy(ret->name, sizeof(ret->name), u->name);
    str_copy(ret->email, sizeof(ret->email), u->email);
    for (size_t i = 0; i < u->n_roles; i++) {
        size_t n = strlen(ret->roles);
        if (i && n + 1 < sizeof(ret->roles))
            ret->roles[n++] = ',';
        str_copy(ret->roles + n, sizeof(ret->roles) - n, u->roles[i]);
    }
}

static enum status adopt(struct cauce *c, const Session__Tokens *t, struct err *err)
{
    struct login l;
    memset(&l, 0, sizeof(l));
    enum status s = client_login_from(&l, t, err);
    if (s == STATUS_OK)
        s = client_state_save(c, &l, err);
    if (s == STATUS_OK) {
        pthread_mutex_lock(&c->lock);
        c->login = l;
        pthread_mutex_unlock(&c->lock);
    }
    crypto_wipe(&l, sizeof(l));
    return s;
}

cauce_status cauce_register(cauce *c, const char *name, const char *password, const char *email,
                            cauce_user *ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    Session__RegisterRequest req = SESSION__REGISTER_REQUEST__INIT;
    req.name = client_str(name);
    req.password = client_str(password);
    req.email = client_str(email);
    AUTO(rpc_message_free_p) Session__Tokens *t = NULL;
    struct client_try try;
    enum status s = client_try_begin(&try, c, CLIENT_ANON, NULL, 0, NULL, &e);
    if (s == STATUS_OK)
        s = session_session_register(c->rpc, &try.opts, &req, &t, &e);
    if (s == STATUS_OK)
        s = adopt(c, t, &e);
    if (s == STATUS_OK)
        fill_user(ret, t->user);
    return client_fail(&e, s, err);
}

cauce_status cauce_login(cauce *c, const char *name, const char *password, const char *device,
                         cauce_user *ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    Session__LoginRequest req = SESSION__LOGIN_REQUEST__INIT;
    req.name = client_str(name);
    req.password = client_str(password);
    req.device = client_str(device);
    AUTO(rpc_message_free_p) Session__Tokens *t = NULL;
    struct client_try try;
    enum status s = client_try_begin(&try, c, CLIENT_ANON, NULL, 0, NULL, &e);
    if (s == STATUS_OK)
        s = session_session_login(c->rpc, &try.opts, &req, &t, &e);
    if (s == STATUS_OK)
        s = adopt(c, t, &e);
    if (s == STATUS_OK)
        fill_user(ret, t->user);
    return client_fail(&e, s, err);
}

cauce_status cauce_logout(cauce *c, int everywhere, cauce_error *err)
{
    struct err e = ERR_INIT;
    Session__LogoutRequest req = SESSION__LOGOUT_REQUEST__INIT;
    req.everywhere = everywhere != 0;
    AUTO(rpc_message_free_p) Session__LogoutReply *reply = NULL;
    struct client_try try;
    enum status s = client_try_begin(&try, c, CLIENT_LOGGED_IN, NULL, 0, NULL, &e);
    if (s == STATUS_OK)
        s = CLIENT_CALL(&try, session_session_logout(c->rpc, &try.opts, &req, &reply, &e), &e);
    client_state_forget(c);
    pthread_mutex_lock(&c->lock);
    crypto_wipe(&c->login, sizeof(c->login));
    pthread_mutex_unlock(&c->lock);
    return client_fail(&e, s, err);
}

cauce_status cauce_whoami(cauce *c, cauce_user *ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    Session__WhoAmIRequest req = SESSION__WHO_AM_IREQUEST__INIT;
    AUTO(rpc_message_free_p) Session__User *u = NULL;
    struct client_try try;
    enum status s = client_try_begin(&try, c, CLIENT_LOGGED_IN, NULL, 0, NULL, &e);
    if (s == STATUS_OK)
        s = CLIENT_CALL(&try, session_session_who_am_i(c->rpc, &try.opts, &req, &u, &e), &e);
    if (s == STATUS_OK)
        fill_user(ret, u);
    return client_fail(&e, s, err);
}
