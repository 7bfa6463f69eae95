// The handle: address, connection, errors.
#include "internal.h"

#include <stdio.h>
#include <string.h>

#include "crypto/crypto.h"

const char *cauce_version(void)
{
    return CAUCE_VERSION;
}

const char *cauce_status_name(cauce_status status)
{
    return status_name((enum status)status);
}

cauce_status client_fail(const struct err *e, enum status s, cauce_error *ret)
{
    if (ret) {
        ret->status = (cauce_status)s;
        str_copy(ret->message, sizeof(ret->message), s == STATUS_OK ? "" : e->msg);
    }
    return (cauce_status)s;
}

bool client_is_transient(enum status s)
{
    return s == STATUS_UNAVAILABLE || s == STATUS_DEADLINE_EXCEEDED;
}

void cauce_opts_init(cauce_opts *opts)
{
    *opts = (cauce_opts){.size = sizeof(*opts)};
}

// ---------------------------------------------------------------- address

struct address {
    char url[RPC_URL_SIZE]; // tcp://host:port
    uint8_t key[32];
};

// cauce://host:port#key; host may be [an IPv6 address].
static enum status parse_server(const char *server, struct address *ret, struct err *err)
{
    static const char scheme[] = "cauce://";
    const char *hash = strchr(server, '#');
    if (!str_starts_with(server, scheme) || !hash)
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "server \"%s\" is not of the form cauce://host:port#key", server);
    const char *host = server + strlen(scheme);
    const char *colon = hash;
    while (colon > host && *colon != ':')
        colon--;
    int64_t port;
    char digits[8] = "";
    if (colon > host && (size_t)(hash - colon) <= sizeof(digits))
        memcpy(digits, colon + 1, (size_t)(hash - colon - 1));
    if (str_parse_i64(digits, 1, 65535, &port, NULL) != STATUS_OK)
        return err_set(err, STATUS_INVALID_ARGUMENT, "server \"%s\" has no port", server);
    size_t n = 0;
    if (!str_unb64(ret->key, sizeof(ret->key), hash + 1, strlen(hash + 1), &n) ||
        n != sizeof(ret->key))
        return err_set(err, STATUS_INVALID_ARGUMENT,
                       "server \"%s\": the key behind # is not 32 bytes of base64url", server);
    int len = snprintf(ret->url, sizeof(ret->url), "tcp://%.*s", (int)(hash - host), host);
    if (len < 0 || (size_t)len >= sizeof(ret->url))
        return err_set(err, STATUS_INVALID_ARGUMENT, "server address is too long");
    return STATUS_OK;
}

// ---------------------------------------------------------------- life

static enum status set_up(struct cauce *c, const cauce_opts *o, struct err *err)
{
    c->timeout_ms = o->timeout_ms ? o->timeout_ms : 15000;
    c->cancel = cancel_new(NULL);
    c->state_dir = mem_strdup(o->state_dir);
    if (!c->cancel || (o->state_dir && !c->state_dir))
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    enum status s = crypto_init(err);
    if (s != STATUS_OK)
        return s;
    if (o->server)
        c->server = mem_strdup(o->server);
    else if (o->state_dir)
        s = client_state_server(o->state_dir, &c->server, err);
    else
        return err_set(err, STATUS_INVALID_ARGUMENT, "no server given");
    if (s != STATUS_OK)
        return s;
    if (!c->server)
        return err_set(err, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    struct address a;
    s = parse_server(c->server, &a, err);
    if (s != STATUS_OK)
        return s;
    char hex[17];
    str_hex(hex, a.key, 8);
    snprintf(c->login_name, sizeof(c->login_name), "login-%s", hex);
    s = client_state_load(c, &c->login, err);
    if (s != STATUS_OK)
        return s;
    struct rpc_endpoint at = {.url = a.url};
    memcpy(at.key, a.key, sizeof(at.key));
    struct rpc_client_opts ro = {
        .endpoints = &at, .n_endpoints = 1, .connect_timeout_ms = o->connect_timeout_ms};
    c->rpc = rpc_client_new(&ro, err);
    return c->rpc ? STATUS_OK : err->code;
}

cauce_status cauce_connect(const cauce_opts *opts, cauce **ret, cauce_error *err)
{
    struct err e = ERR_INIT;
    if (opts->size < sizeof(*opts))
        return client_fail(&e, err_set(&e, STATUS_INVALID_ARGUMENT, "opts: not initialised"), err);
    struct cauce *c = mem_alloc(sizeof(*c));
    if (!c)
        return client_fail(&e, err_set(&e, STATUS_RESOURCE_EXHAUSTED, "out of memory"), err);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->refreshed, NULL);
    enum status s = set_up(c, opts, &e);
    if (s == STATUS_OK)
        *ret = c;
    else
        cauce_close(c);
    return client_fail(&e, s, err);
}

void cauce_cancel(cauce *c)
{
    cancel_fire(c->cancel);
}

void cauce_close(cauce *c)
{
    if (!c)
        return;
    if (c->cancel)
        cancel_fire(c->cancel);
    rpc_client_free(c->rpc);
    cancel_unref(c->cancel);
    crypto_wipe(&c->login, sizeof(c->login));
    mem_free(c->server);
    mem_free(c->state_dir);
    pthread_cond_destroy(&c->refreshed);
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

struct rpc_client *client_rpc(cauce *c)
{
    return c->rpc;
}

const char *cauce_server(const cauce *c)
{
    return c->server;
}
